//! Entries that hardware reads while they are written.
//!
//! [`plan`] says which stores lead from one entry to another and after which of them hardware must be told;
//! here they are carried out. Words are stored one by one, whatever larger unit the rules of the entry allow:
//! that costs a breaking update now and then, and is never wrong.
//!
//! # When hardware does not answer
//!
//! A device context must not be left half written, and a commit cannot fail. So an entry whose sync failed
//! is made to block: that is stored at once, and hardware is told once more. If it answers now, it is known to
//! block. If not, the entry is *quarantined*: hardware may go on with the old entry, or with what it held on the
//! way, for as long as it likes, so whoever owns what these lead to keeps it, and keeps it told of changes. The
//! next write of the entry asks hardware again before anything else.
//!
//! # Invariants
//!
//! - **E1** (own): `oa` and `size` are those of a page that `memory` handed out, zeroed; it is freed when the
//!   table is dropped, and not before.
//! - **E2** (inside): entries 0 to `len - 1`, `N` words each, lie inside the page.
//! - **E3** (atomic): this program accesses the page as atomic words only.
//!
//! # Memory orderings
//!
//! Stores release, so that what an entry points to is visible before the entry, and each step before the
//! next. Between steps with a sync the queue's full fence stands besides. Loads are those of the one writer.

#![expect(unsafe_code, reason = "entries lie in memory that hardware reads, too")]

use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;
use core::slice;

use iopt_formats::context::update::{Fetch, Rules, Unit, plan};
use iopt_formats::{Oa, PageSize};

use crate::invalidation::SyncError;
use crate::mem::{LINE_LEN, OutOfMemory, TableMemory};
use crate::sync::atomic::{AtomicU64, Ordering};

/// Bits of a word of flags.
const WORD_BITS: usize = 64;

/// A table of entries of `N` words, in one page that is aligned to its size.
pub struct EntryTable<M: TableMemory, const N: usize> {
    memory: Arc<M>,
    oa: Oa,
    size: PageSize,
    len: usize,
    /// Bit n: hardware did not confirm what entry n holds.
    quarantined: Box<[u64]>,
}

/// Why an entry does not say what it was to say. It blocks.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Unwritten {
    /// The table has no such entry, or none is linked there.
    #[error("there is no entry {index}")]
    Absent {
        /// The index asked for.
        index: usize,
    },
    /// Hardware failed once, and confirmed that the entry blocks.
    #[error("the entry blocks: {0}")]
    Blocked(#[source] SyncError),
    /// Hardware did not confirm that the entry blocks: it may use any that was there since it last answered.
    #[error("hardware may still use an old entry: {0}")]
    Quarantined(#[source] SyncError),
}

impl<M: TableMemory, const N: usize> EntryTable<M, N> {
    /// Creates a table of `len` entries, all of them `initial`, which hardware does not know yet.
    ///
    /// # Errors
    ///
    /// [`OutOfMemory`], also for tables of more than 1 MiB.
    pub fn new(memory: &Arc<M>, len: usize, initial: &[u64; N]) -> Result<Self, OutOfMemory> {
        let bytes = len
            .checked_mul(8 * N)
            .and_then(usize::checked_next_power_of_two);
        let lg2 = bytes.map_or(63, |bytes| bytes.max(4096).ilog2() as u8);
        let size = PageSize::from_lg2(lg2);
        let mut quarantined = Vec::new();
        quarantined
            .try_reserve_exact(len.div_ceil(WORD_BITS))
            .map_err(|_| OutOfMemory { size })?;
        quarantined.resize(len.div_ceil(WORD_BITS), 0);
        let oa = memory.alloc(size)?;
        let table = Self {
            memory: Arc::clone(memory),
            oa,
            size,
            len,
            quarantined: quarantined.into_boxed_slice(),
        };
        if *initial != [0; N] {
            for (word, &value) in table.words().iter().zip(initial.iter().cycle()) {
                word.store(value.to_le(), Ordering::Relaxed);
            }
            table.flush(0, len * N);
        }
        Ok(table)
    }

    /// Returns where hardware finds it.
    pub const fn oa(&self) -> Oa {
        self.oa
    }

    /// Returns the number of entries.
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Returns whether it has no entry.
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    fn words(&self) -> &[AtomicU64] {
        #[expect(clippy::cast_ptr_alignment, reason = "pages are aligned to their size")]
        let start = self.memory.ptr(self.oa).cast::<AtomicU64>();
        // SAFETY: by E1 and M2 the page is valid for reads and writes, and aligned, as long as `self`; the
        // words lie inside by E2; every access is atomic by E3.
        unsafe { slice::from_raw_parts(start, self.len * N) }
    }

    /// Returns an entry as it was written last.
    pub fn get(&self, index: usize) -> Option<[u64; N]> {
        let words = self.words().chunks_exact(N).nth(index)?;
        Some(core::array::from_fn(|word| {
            u64::from_le(words[word].load(Ordering::Relaxed))
        }))
    }

    /// Returns whether hardware may use another entry there than the one that was written last.
    pub fn is_quarantined(&self, index: usize) -> bool {
        let flags = self.quarantined.get(index / WORD_BITS);
        flags.is_some_and(|flags| flags >> (index % WORD_BITS) & 1 != 0)
    }

    fn set_quarantined(&mut self, index: usize, is_set: bool) {
        if let Some(flags) = self.quarantined.get_mut(index / WORD_BITS) {
            let bit = 1 << (index % WORD_BITS);
            *flags = if is_set { *flags | bit } else { *flags & !bit };
        }
    }

    /// Makes an entry `target`, so that hardware finds at any moment what it was, what it shall be, or one
    /// that blocks. `sync` makes hardware forget the entry and waits for that. Returns how often it did.
    ///
    /// # Errors
    ///
    /// [`Unwritten`] if hardware does not answer: the entry blocks then.
    pub fn write<R: Rules<N> + ?Sized>(
        &mut self,
        rules: &R,
        index: usize,
        target: &[u64; N],
        mut sync: impl FnMut() -> Result<(), SyncError>,
    ) -> Result<usize, Unwritten> {
        let rules = &ByWords(rules);
        if self.is_quarantined(index) {
            if let Err(error) = sync() {
                // Who quarantined it may have had rules that keep it as it was.
                self.block(rules, index);
                if rules.preserved()[0] == u64::MAX {
                    // It leads no request anywhere, so there is nothing to block, and whoever has the entry confirmed
                    // at last confirms this.
                    self.overwrite(rules, index, target);
                }
                return Err(Unwritten::Quarantined(error));
            }
            self.set_quarantined(index, false);
        }
        let current = self.get(index).ok_or(Unwritten::Absent { index })?;
        let update = plan(rules, &current, target);
        for step in update.steps() {
            for store in step.stores() {
                for (word, &value) in store.words.iter().enumerate() {
                    self.store(index, store.first + word, value);
                }
            }
            if step.needs_sync()
                && let Err(error) = sync()
            {
                return Err(self.stop(rules, index, error, sync));
            }
        }
        Ok(update.sync_count())
    }

    /// Makes an entry block, and tells hardware once more.
    #[cold]
    fn stop<R: Rules<N>>(
        &mut self,
        rules: &R,
        index: usize,
        error: SyncError,
        mut sync: impl FnMut() -> Result<(), SyncError>,
    ) -> Unwritten {
        self.block(rules, index);
        match sync() {
            Ok(()) => Unwritten::Blocked(error),
            Err(error) => {
                self.set_quarantined(index, true);
                Unwritten::Quarantined(error)
            }
        }
    }

    /// Makes an entry block in memory, as far as the rules may change it.
    fn block<R: Rules<N>>(&self, rules: &R, index: usize) {
        let preserved = rules.preserved()[0];
        let first = self.get(index).map_or(0, |words| words[0]);
        self.store(index, 0, rules.blocked() & !preserved | first & preserved);
    }

    /// Makes an entry `target` as far as the rules may change it, word by word.
    fn overwrite<R: Rules<N>>(&self, rules: &R, index: usize, target: &[u64; N]) {
        let Some(current) = self.get(index) else {
            return;
        };
        let words = current.iter().zip(target).zip(rules.preserved());
        for (word, ((&old, &new), preserved)) in words.enumerate() {
            if (old ^ new) & !preserved != 0 {
                self.store(index, word, new & !preserved | old & preserved);
            }
        }
    }

    /// Stores one word of an entry, behind all stores before.
    fn store(&self, index: usize, word: usize, value: u64) {
        let at = index * N + word;
        if let Some(word) = self.words().get(at) {
            word.store(value.to_le(), Ordering::Release);
            self.flush(at, 1);
        }
    }

    /// Writes words back to memory, if hardware does not see this program's caches.
    fn flush(&self, first: usize, count: usize) {
        if M::SNOOPED {
            return;
        }
        let words = self.words().get(first..first + count).unwrap_or_default();
        // Pages are aligned to more than a line, so lines begin at multiples of its words.
        let line_words = LINE_LEN / 8;
        let skipped = first % line_words;
        for word in (0..count + skipped).step_by(line_words) {
            if let Some(word) = words.get(word.saturating_sub(skipped)) {
                self.memory.flush_line(core::ptr::from_ref(word).cast());
            }
        }
    }
}

impl<M: TableMemory> EntryTable<M, 1> {
    /// Stores an entry of one word, behind all stores before: hardware may read it from now on, and may hold
    /// on to the old one until it is told.
    pub fn publish(&mut self, index: usize, word: u64) {
        self.store(index, 0, word);
    }
}

impl<M: TableMemory, const N: usize> Drop for EntryTable<M, N> {
    fn drop(&mut self) {
        // SAFETY: by E1 this is the page's allocation, freed once; `self` is the last user in this program, and
        // who drops it answers for hardware, which is led elsewhere and was told.
        unsafe { self.memory.free(self.oa, self.size) };
    }
}

impl<M: TableMemory, const N: usize> fmt::Debug for EntryTable<M, N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EntryTable")
            .field("oa", &self.oa)
            .field("len", &self.len)
            .finish_non_exhaustive()
    }
}

/// Rules of entries that software stores word by word.
struct ByWords<'a, R: ?Sized>(&'a R);

impl<const N: usize, R: Rules<N> + ?Sized> Rules<N> for ByWords<'_, R> {
    fn used(&self, entry: &[u64; N]) -> [u64; N] {
        self.0.used(entry)
    }

    fn is_valid(&self, entry: &[u64; N]) -> bool {
        self.0.is_valid(entry)
    }

    fn unit(&self) -> Unit {
        Unit::Bytes8
    }

    fn fetch(&self) -> Fetch {
        self.0.fetch()
    }

    fn keeps_invalid(&self) -> bool {
        self.0.keeps_invalid()
    }

    fn safe(&self, current: &[u64; N], target: &[u64; N]) -> [u64; N] {
        self.0.safe(current, target)
    }

    fn preserved(&self) -> [u64; N] {
        self.0.preserved()
    }

    fn blocked(&self) -> u64 {
        self.0.blocked()
    }
}
