//! Looking up and dumping, without a claim.

use core::ops::ControlFlow;

use iopt_formats::{
    Entry, Format, Iova, IovaRange, Leaf, Level, Memory, Oa, PageSize, Prot, Rights,
};

use crate::mem::TableMemory;
use crate::radix::node::Inner;
use crate::radix::{DirtyError, Slot, Table};
use crate::sync::atomic::Ordering;
use crate::sync::epoch::{self, Pin};

/// The translation of one address, as it stood at a moment of the lookup.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Translation<'t, F> {
    oa: Oa,
    word: u64,
    level: Level,
    format: &'t F,
}

impl<F: Format> Translation<'_, F> {
    /// Returns the output address of the byte that was looked up.
    #[inline]
    pub const fn oa(&self) -> Oa {
        self.oa
    }

    /// Returns the raw item.
    pub const fn word(&self) -> u64 {
        self.word
    }

    /// Returns the level of the item.
    pub const fn level(&self) -> Level {
        self.level
    }

    /// Returns what the entry grants.
    pub fn prot(&self) -> Prot {
        self.leaf()
            .map_or(Prot::new(Rights::NONE, Memory::default()), |leaf| leaf.prot)
    }

    /// Returns the size of the entry, contiguous items together.
    pub fn size(&self) -> PageSize {
        self.leaf().map_or(F::GRANULE, |leaf| leaf.size)
    }

    /// Returns whether the item says that a device wrote to the page; `false` if the table does
    /// not track it.
    pub fn is_dirty(&self) -> bool {
        self.format
            .dirty_rule()
            .is_some_and(|rule| rule.is_dirty(self.word))
    }

    fn leaf(&self) -> Option<Leaf> {
        match self.format.decode(self.word, self.level) {
            Ok(Entry::Leaf(leaf)) => Some(leaf),
            _ => None,
        }
    }
}

/// IOVA that translate to consecutive output addresses with the same rights.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Run {
    /// The IOVA.
    pub range: IovaRange,
    /// The first output address.
    pub oa: Oa,
    /// What the entries grant.
    pub prot: Prot,
}

/// Joins neighbouring runs into maximal ones.
#[derive(Default)]
pub(super) struct Joiner(Option<(Run, bool)>);

impl Joiner {
    /// Adds a run behind the last one; returns that one if the two do not join.
    pub(super) fn push(&mut self, run: Run, flag: bool) -> Option<(Run, bool)> {
        if let Some((open, open_flag)) = &mut self.0 {
            let follows = open.range.last().checked_add(1) == Some(run.range.start())
                && open
                    .oa
                    .checked_add(open.range.len_minus_one())
                    .and_then(|oa| oa.checked_add(1))
                    == Some(run.oa)
                && open.prot == run.prot
                && *open_flag == flag;
            if follows {
                open.range = IovaRange::new(open.range.start(), run.range.last())
                    .expect("a run that follows does not end before");
                return None;
            }
        }
        self.0.replace((run, flag))
    }

    /// Returns the last run.
    pub(super) fn finish(self) -> Option<(Run, bool)> {
        self.0
    }
}

/// Looks up without a claim, beside maps, unmaps and compaction of any thread.
///
/// It holds an epoch, which a lookup of [`Table`] enters and leaves each time, so it makes many of
/// them cheaper. Tables that are unlinked meanwhile cannot be freed, so [`renew`](Self::renew) it
/// between batches; one that stays for ever keeps at most the table's quarantine full, and
/// delays nobody.
#[derive(Debug)]
pub struct Reader<'t, F: Format, M: TableMemory> {
    table: &'t Table<F, M>,
    pin: Pin,
}

impl<'t, F: Format, M: TableMemory> Reader<'t, F, M> {
    /// Lets go of everything that was unlinked up to now.
    pub fn renew(&mut self) {
        self.pin.renew();
    }

    /// Translates `iova`; see [`Table::lookup`].
    #[doc(alias = "iova_to_phys")]
    #[inline]
    pub fn lookup(&self, iova: Iova) -> Option<Translation<'t, F>> {
        self.table.translate(iova)
    }

    /// Reports what `range` translates to; see [`Table::dump`].
    pub fn dump(&self, range: IovaRange, each: impl FnMut(Run) -> ControlFlow<()>) {
        self.table.each_run(range, each);
    }

    /// Reports what devices wrote to; see [`Table::dirty`].
    ///
    /// # Errors
    ///
    /// [`DirtyError::NotTracked`] if the format is configured without.
    pub fn dirty(&self, range: IovaRange, each: impl FnMut(IovaRange)) -> Result<(), DirtyError> {
        self.table.each_dirty(range, each)
    }
}

impl<F: Format, M: TableMemory> Table<F, M> {
    /// Returns a handle that looks up in batches.
    pub fn reader(&self) -> Reader<'_, F, M> {
        Reader {
            table: self,
            pin: epoch::pin(),
        }
    }

    /// Translates `iova` by a walk from the root.
    ///
    /// Runs beside maps, unmaps and compaction of any thread and returns what was there at some
    /// moment of the call.
    #[doc(alias = "iova_to_phys")]
    #[inline]
    pub fn lookup(&self, iova: Iova) -> Option<Translation<'_, F>> {
        let _pin = epoch::pin();
        self.translate(iova)
    }

    /// As [`lookup`](Self::lookup), for callers that T7 allows to walk.
    #[expect(
        clippy::inline_always,
        reason = "several callers share it, and a call costs half of what it does"
    )]
    #[inline(always)]
    pub(super) fn translate(&self, iova: Iova) -> Option<Translation<'_, F>> {
        let address = iova.get();
        // Straight through the four levels of a 48-bit table; other shapes in a function of their
        // own, so that they cost this one nothing.
        let root = self.top.word().root_at(Level(3));
        let table = root.and_then(|root| self.leaf_table_under(root, 3, address));
        let (word, level) = match table {
            Some(table) => (
                table.item(address, Level::LEAF).load(Ordering::Relaxed),
                Level::LEAF,
            ),
            None => self.item_of(address),
        };
        if word & F::PRESENT == 0 {
            return None;
        }
        let oa = if level == Level::LEAF && word & F::GROUPED == 0 {
            Oa::new(self.format.decode_oa(word).get() | address & F::GRANULE.offset_mask())
        } else {
            self.large_oa(word, level, address)
        };
        Some(Translation {
            oa,
            word,
            level,
            format: &self.format,
        })
    }

    /// Returns the leaf table of `iova` under a root of level `top`, over tables that are exactly as
    /// encoded.
    #[expect(
        clippy::inline_always,
        reason = "the loop over levels must unroll where `top` is a literal"
    )]
    #[inline(always)]
    fn leaf_table_under(&self, root: Oa, top: u8, iova: u64) -> Option<Inner<'_, F>> {
        let span = self.span(Level(top));
        // The index into the root, not masked, tells whether the root reaches the address.
        let biased = iova.wrapping_add(self.bias) >> F::item_lg2(Level(top));
        let mut item = self
            .node_at_root(root, Level(top))
            .get(biased ^ span.flip)?;
        let mut level = Level(top);
        loop {
            let word = item.load(Ordering::Acquire);
            let node = self.node_at(self.format.exact_child(word, level)?);
            level = level.below()?;
            if level == Level::LEAF {
                return Inner::new(node);
            }
            item = node.item(iova, level);
        }
    }

    /// Returns the item that a walk to `iova` ends at, whatever its level; an empty one if the
    /// table does not decode the address.
    #[inline(never)]
    fn item_of(&self, iova: u64) -> (u64, Level) {
        let root = self.top.word().root_at(Level(2));
        if let Some(table) = root.and_then(|root| self.leaf_table_under(root, 2, iova)) {
            return (
                table.item(iova, Level::LEAF).load(Ordering::Relaxed),
                Level::LEAF,
            );
        }
        if !self.reaches(iova) {
            return (0, Level::LEAF);
        }
        let Slot { level, word, .. } = self.descend(iova, Level::LEAF);
        (word, level)
    }

    /// Returns what a leaf of more than one ordinary page translates `iova` to.
    #[inline(never)]
    fn large_oa(&self, word: u64, level: Level, iova: u64) -> Oa {
        match self.format.decode(word, level) {
            Ok(Entry::Leaf(leaf)) => Oa::new(leaf.oa.get() | iova & leaf.span.offset_mask()),
            // Unreachable for words of our encoder (F2): they are leaves if the walk ends there.
            _ => Oa::new(0),
        }
    }

    /// Calls `each` with the translations of `range`, joined to maximal runs, in rising order;
    /// entries at the edges are cut to the range. `Break` ends the dump.
    ///
    /// Runs beside maps, unmaps and compaction of any thread; each item is read at some moment of
    /// the call.
    pub fn dump(&self, range: IovaRange, each: impl FnMut(Run) -> ControlFlow<()>) {
        self.reader().dump(range, each);
    }

    /// As [`dump`](Self::dump), for callers that T7 allows to walk.
    fn each_run(&self, range: IovaRange, mut each: impl FnMut(Run) -> ControlFlow<()>) {
        let mut joiner = Joiner::default();
        let flow = self.try_each_item(range, |level, word, iova, last| {
            let Some(run) = self.item_run(word, level, iova) else {
                return ControlFlow::Continue(());
            };
            let cut = IovaRange::new(
                run.range.start(),
                Iova::new(last.min(run.range.last().get())),
            )
            .expect("the item starts inside the range");
            match joiner.push(Run { range: cut, ..run }, false) {
                Some((run, _)) => each(run),
                None => ControlFlow::Continue(()),
            }
        });
        if let (ControlFlow::Continue(()), Some((run, _))) = (flow, joiner.finish()) {
            // Nothing is left to end.
            let _ = each(run);
        }
    }

    /// Calls `each` with level, word, first address inside `range` and last address of `range`
    /// for every leaf item that translates a part of it.
    pub(super) fn try_each_item(
        &self,
        range: IovaRange,
        mut each: impl FnMut(Level, u64, u64, u64) -> ControlFlow<()>,
    ) -> ControlFlow<()> {
        let mut next = Some((range.start().get(), range.last().get()));
        while let Some((at, last)) = next {
            let Some((at, last)) = self.decoded_part(at, last) else {
                break;
            };
            let slot = self.descend(at, Level::LEAF);
            let (level, item_lg2) = (slot.level, F::item_lg2(slot.level));
            let (items, span_last) = slot.span(at, last);
            let mut iova = at;
            let mut seen_last = span_last;
            for item in items {
                // The first one as the walk met it: by now it may be a table, cut out of a leaf
                // that must not be missed.
                let word = if iova == at {
                    slot.word
                } else {
                    item.load(Ordering::Acquire)
                };
                let item_last = iova | PageSize::from_lg2(item_lg2).offset_mask();
                if self.child(word, level).is_some() {
                    // Walk into it from here.
                    seen_last = iova - 1;
                    break;
                }
                if word & F::PRESENT != 0 {
                    each(level, word, iova, last)?;
                }
                iova = item_last.wrapping_add(1);
            }
            next = Self::after(seen_last, range.last().get());
        }
        ControlFlow::Continue(())
    }

    pub(super) fn after(done: u64, last: u64) -> Option<(u64, u64)> {
        (done < last).then(|| (done + 1, last))
    }

    /// Returns the first stretch of `at..=last` that the current root decodes.
    pub(super) fn decoded_part(&self, at: u64, last: u64) -> Option<(u64, u64)> {
        let bias = self.bias;
        let reach = self.span(self.top.load().level).reach;
        // The window is `0..=reach` after the bias: at most two stretches before it.
        let window_start = 0_u64.wrapping_sub(bias);
        let window_last = reach.wrapping_sub(bias);
        let stretches = if window_start <= window_last {
            [(window_start, window_last), (window_start, window_last)]
        } else {
            [(0, window_last), (window_start, u64::MAX)]
        };
        stretches
            .into_iter()
            .map(|(low, high)| (at.max(low), last.min(high)))
            .find(|(first, last)| first <= last)
    }

    /// Returns what one leaf item translates from `iova` on.
    pub(super) fn item_run(&self, word: u64, level: Level, iova: u64) -> Option<Run> {
        let Ok(Entry::Leaf(leaf)) = self.format.decode(word, level) else {
            return None;
        };
        let item_last = iova | PageSize::from_lg2(F::item_lg2(level)).offset_mask();
        let range = IovaRange::new(Iova::new(iova), Iova::new(item_last))?;
        let oa = Oa::new(leaf.oa.get() | iova & leaf.span.offset_mask());
        Some(Run {
            range,
            oa,
            prot: leaf.prot,
        })
    }

    /// Returns what the whole entry translates whose first item, at `iova`, is `word`.
    pub(super) fn entry_run(&self, word: u64, level: Level, iova: u64) -> Option<Run> {
        let Ok(Entry::Leaf(leaf)) = self.format.decode(word, level) else {
            return None;
        };
        let range = IovaRange::new(Iova::new(iova), Iova::new(iova | leaf.size.offset_mask()))?;
        Some(Run {
            range,
            oa: leaf.oa,
            prot: leaf.prot,
        })
    }
}
