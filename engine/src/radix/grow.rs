//! The root, and how it grows (AMD).

use iopt_formats::walk::Root;
use iopt_formats::{Format, Level, Oa};

use crate::mem::{OutOfMemory, TableMemory};
use crate::radix::Table;
use crate::radix::node::flush_items;
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
    pub(super) const fn new(root: Root) -> Self {
        Self(AtomicU64::new(pack(root)))
    }

    #[inline]
    pub(super) fn load(&self) -> Root {
        let word = self.0.load(Ordering::Acquire);
        Root {
            oa: Oa::new(word & !LEVEL_MASK),
            level: Level((word & LEVEL_MASK) as u8),
        }
    }
}

impl<F: Format, M: TableMemory> Table<F, M> {
    /// Returns the last address that a root of level `top` reaches, after the window's bias.
    #[inline]
    pub(super) fn reach(&self, top: Level) -> u64 {
        if top >= self.geometry.max_top {
            self.geometry.va_mask()
        } else {
            // Only tables without a bias grow.
            (1 << (F::item_lg2(top) + F::item_count_lg2())) - 1
        }
    }

    /// Grows the tree until it reaches `last`, which the format can decode.
    pub(super) fn grow_to(&self, last: u64) -> Result<(), OutOfMemory> {
        loop {
            let root = self.top.load();
            if last.wrapping_add(self.geometry.bias()) <= self.reach(root.level) {
                return Ok(());
            }
            self.grow_once(root)?;
        }
    }

    /// Puts one level on top of `old`, unless somebody did so meanwhile.
    #[expect(unsafe_code, reason = "frees a page that lost the race to be the root")]
    fn grow_once(&self, old: Root) -> Result<(), OutOfMemory> {
        let level = Level(old.level.0 + 1);
        let oa = self.alloc_root(level)?;
        let node = self.node_at_root(oa, level);
        let link = self.format.encode_table(old.oa, level) | F::PUBLISHED;
        node.item(0, level).store(link, Ordering::Relaxed);
        flush_items(&self.memory, node.items());
        let new = Root { oa, level };
        let swapped =
            self.top
                .0
                .compare_exchange(pack(old), pack(new), Ordering::Release, Ordering::Relaxed);
        if swapped.is_ok() {
            self.page_count.fetch_add(1, Ordering::Relaxed);
        } else {
            // SAFETY: `oa` was allocated above with this size and never published.
            unsafe { self.memory.free(oa, Self::root_page(&self.format, level)) };
        }
        Ok(())
    }
}
