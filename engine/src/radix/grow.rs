//! The root, and how it grows (AMD).

use iopt_formats::walk::Root;
use iopt_formats::{Format, Level, Oa, PageSize};

use crate::mem::{OutOfMemory, TableMemory};
use crate::radix::Table;
use crate::sync::atomic::{AtomicU64, Ordering};

/// Root address and level in one word, so that a reader always has a pair that belongs together.
///
/// Roots are aligned to 4 KiB, which leaves the low bits for the level.
#[derive(Debug)]
pub(super) struct Top(AtomicU64);

const LEVEL_MASK: u64 = 7;

const fn pack(root: Root) -> u64 {
    root.oa.get() | root.level.0 as u64
}

impl Top {
    pub(super) fn new(root: Root) -> Self {
        Self(AtomicU64::new(pack(root)))
    }

    #[inline]
    pub(super) fn load(&self) -> Root {
        let TopWord(word) = self.word();
        Root {
            oa: Oa::new(word & !LEVEL_MASK),
            level: Level((word & LEVEL_MASK) as u8),
        }
    }

    #[inline]
    pub(super) fn word(&self) -> TopWord {
        TopWord(self.0.load(Ordering::Acquire))
    }
}

/// The pair at one moment, still packed.
#[derive(Clone, Copy)]
pub(super) struct TopWord(u64);

impl TopWord {
    /// Returns the root's address if its level is `level`: one subtraction and one test where that
    /// is a constant.
    #[inline]
    pub(super) fn root_at(self, level: Level) -> Option<Oa> {
        let rest = self.0.wrapping_sub(u64::from(level.0));
        (rest & LEVEL_MASK == 0).then_some(Oa::new(rest))
    }
}

impl<F: Format, M: TableMemory> Table<F, M> {
    /// Returns the last address that a mapper may change through a root of level `top`: a claim
    /// lies inside the window, so only a root that can still grow limits it.
    pub(super) fn fast_reach(&self, top: Level) -> u64 {
        if top < self.geometry.max_top {
            self.span(top).reach
        } else {
            u64::MAX
        }
    }

    /// Returns the largest leaf that may translate address 0: former roots do, and device contexts may
    /// still point to one, so that none gives way to a leaf (T6).
    pub(super) fn largest_at_roots(&self) -> PageSize {
        if self.geometry.top == self.geometry.max_top {
            return PageSize::from_lg2(63);
        }
        let reach = self.span(self.geometry.top).reach;
        PageSize::from_lg2(reach.trailing_ones() as u8 - 1)
    }

    /// Returns the level of a root that reaches `last`, which the format can decode.
    pub(super) fn top_for(&self, last: u64) -> Level {
        let mut level = self.top.load().level;
        while last.wrapping_add(self.bias) > self.span(level).reach && level < self.geometry.max_top
        {
            level = Level(level.0 + 1);
        }
        level
    }

    /// Grows the tree until it reaches `last`, which the format can decode.
    pub(super) fn grow_to(&self, last: u64) -> Result<(), OutOfMemory> {
        loop {
            let old = self.top.load();
            let top = self.top_for(last);
            if top <= old.level {
                return Ok(());
            }
            self.replace_root(old, top)?;
        }
    }

    /// Puts levels on top of `old` up to `top`, all or none, unless somebody did so meanwhile.
    #[expect(unsafe_code, reason = "frees pages that were never published")]
    fn replace_root(&self, old: Root, top: Level) -> Result<(), OutOfMemory> {
        let free = |root: Root| {
            // SAFETY: the page was allocated below with this size and never published.
            unsafe {
                self.memory
                    .free(root.oa, Self::root_page(&self.format, root.level));
            }
        };
        let mut made = [None; Level::MAX.0 as usize + 1];
        let mut below = old;
        for level in (old.level.0 + 1..=top.0).map(Level) {
            let oa = self.alloc_root(level).inspect_err(|_| {
                made.iter().copied().flatten().for_each(&free);
            })?;
            let node = self.node_at_root(oa, level);
            // Written back together with its table before anybody sees it.
            let link = self.format.encode_table(below.oa, level);
            node.item(0, level).store(link, Ordering::Relaxed);
            self.flush_root(oa, level);
            below = Root { oa, level };
            made[usize::from(level.0)] = Some(below);
        }
        let swapped = self.top.0.compare_exchange(
            pack(old),
            pack(below),
            Ordering::Release,
            Ordering::Relaxed,
        );
        if swapped.is_err() {
            made.iter().copied().flatten().for_each(free);
        }
        Ok(())
    }
}
