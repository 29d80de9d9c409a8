//! Table memory that watches its user.

#![expect(
    unsafe_code,
    reason = "hands out raw pages and reads their words as hardware does"
)]

use std::alloc::{Layout, alloc, dealloc};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use iopt::mem::{OutOfMemory, TableMemory};
use iopt_formats::{Oa, PageSize};

/// The largest page, and the alignment of the memory.
const LARGEST: PageSize = PageSize::from_lg2(20);
const SMALLEST: PageSize = PageSize::KIB_4;
/// What a freed page is filled with: no address and no present bit that would make sense.
const POISON: u8 = 0xa5;

/// Table memory for tests: counts pages, runs out on demand, catches pages that are freed twice or
/// with another size, and lets walkers read words of live pages only.
pub struct TestMemory {
    start: NonNull<u8>,
    len: u64,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Live pages by offset.
    live: BTreeMap<u64, PageSize>,
    /// Freed pages, by size; used again last in, first out.
    free: BTreeMap<PageSize, Vec<u64>>,
    /// Offset above which nothing was ever handed out.
    fresh: u64,
    /// Allocations that succeed from now on, if there is a limit.
    left: Option<usize>,
}

impl State {
    /// Returns the offset of the live page that `offset` lies in.
    fn page_of(&self, offset: u64) -> Option<u64> {
        let (&start, &size) = self.live.range(..=offset).next_back()?;
        (offset - start < size.bytes()).then_some(start)
    }
}

impl TestMemory {
    /// Output address of the first page: within 32 bits, and no multiple of what tables map.
    pub const BASE: Oa = Oa::new(0x4130_0000);

    /// Creates a memory of `count` largest pages (1 MiB).
    ///
    /// # Panics
    ///
    /// Panics if the system has no memory left.
    pub fn new(count: u64) -> Self {
        let len = count * LARGEST.bytes();
        // SAFETY: `count` is at least one, so the layout is not empty.
        let start = unsafe { alloc(layout(len)) };
        let start = NonNull::new(start).expect("the tests need some memory");
        Self {
            start,
            len,
            state: Mutex::default(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn at(&self, offset: u64) -> *mut u8 {
        self.start.as_ptr().wrapping_add(offset as usize)
    }

    /// Lets `count` further allocations succeed; `None` lifts the limit.
    pub fn set_left(&self, count: Option<usize>) {
        self.state().left = count;
    }

    /// Returns the number of live pages.
    pub fn page_count(&self) -> usize {
        self.state().live.len()
    }

    /// Returns the bytes in live pages.
    pub fn used_len(&self) -> u64 {
        self.state().live.values().map(|size| size.bytes()).sum()
    }

    /// Copies the words of every live page.
    pub fn snapshot(&self) -> Snapshot {
        let state = self.state();
        let end = state
            .live
            .last_key_value()
            .map_or(0, |(offset, size)| offset + size.bytes());
        let live = state.live.keys();
        let mut snapshot = Snapshot {
            pages: live
                .map(|offset| Oa::new(Self::BASE.get() + offset))
                .collect(),
            is_live: vec![false; (end / SMALLEST.bytes()) as usize],
            words: vec![0; (end / 8) as usize],
        };
        for (&offset, size) in &state.live {
            let first = (offset / 8) as usize;
            for (index, word) in snapshot.words[first..][..(size.bytes() / 8) as usize]
                .iter_mut()
                .enumerate()
            {
                *word = self.word(offset + index as u64 * 8).load(Ordering::Acquire);
            }
            let smallest = (offset / SMALLEST.bytes()) as usize;
            snapshot.is_live[smallest..][..(size.bytes() / SMALLEST.bytes()) as usize].fill(true);
        }
        snapshot
    }

    /// Returns the word at `oa`, or `None` if that is no word of a live page.
    pub fn read(&self, oa: Oa) -> Option<u64> {
        self.with_word(oa, |word| word.load(Ordering::Acquire))
    }

    /// Replaces the word at `oa` by what `change` makes of it, as one access of hardware does, and
    /// returns the old one; `None` if there is no such word.
    pub fn update(&self, oa: Oa, change: impl Fn(u64) -> u64) -> Option<u64> {
        self.with_word(oa, |word| {
            let mut seen = word.load(Ordering::Acquire);
            loop {
                let swap =
                    word.compare_exchange(seen, change(seen), Ordering::AcqRel, Ordering::Acquire);
                match swap {
                    Ok(old) => return old,
                    Err(other) => seen = other,
                }
            }
        })
    }

    /// Returns the output address of a pointer into the memory, given by its address.
    pub fn oa_of(&self, address: usize) -> Option<Oa> {
        let offset = address.checked_sub(self.start.addr().get())? as u64;
        (offset < self.len).then(|| Oa::new(Self::BASE.get() + offset))
    }

    fn with_word<T>(&self, oa: Oa, access: impl FnOnce(&AtomicU64) -> T) -> Option<T> {
        let offset = oa
            .get()
            .checked_sub(Self::BASE.get())
            .filter(|offset| offset % 8 == 0)?;
        let state = self.state();
        state.page_of(offset)?;
        Some(access(self.word(offset)))
    }

    /// Returns the word at `offset`, which the caller knows to lie in a live page and keeps so by
    /// holding the lock.
    fn word(&self, offset: u64) -> &AtomicU64 {
        // SAFETY: the word lies in a live page, which `alloc` made and initialised; it stays live
        // because `free` waits for the lock, which callers hold. Engine and tests access words of
        // live pages with atomic operations only. The page is aligned and so is the offset.
        unsafe { AtomicU64::from_ptr(self.at(offset).cast()) }
    }
}

/// What the live pages of a memory held at one moment.
#[derive(Clone, Eq, PartialEq)]
pub struct Snapshot {
    pages: BTreeSet<Oa>,
    /// For each page of the smallest size.
    is_live: Vec<bool>,
    words: Vec<u64>,
}

impl fmt::Debug for Snapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let words = self
            .words
            .iter()
            .enumerate()
            .filter(|(_, word)| **word != 0);
        f.debug_map()
            .entries(words.map(|(index, word)| (index * 8, word)))
            .finish()
    }
}

impl Snapshot {
    /// Returns this snapshot with each word of a live page replaced by what `change` says for its
    /// address.
    #[must_use]
    pub fn map(mut self, change: impl Fn(Oa) -> u64) -> Self {
        for (index, word) in self.words.iter_mut().enumerate() {
            let offset = index as u64 * 8;
            if self.is_live[(offset / SMALLEST.bytes()) as usize] {
                *word = change(Oa::new(TestMemory::BASE.get() + offset));
            }
        }
        self
    }

    /// Returns the addresses of the live pages.
    pub fn pages(&self) -> &BTreeSet<Oa> {
        &self.pages
    }

    /// Returns the word at `oa`, or `None` if that is no word of a live page.
    pub fn read(&self, oa: Oa) -> Option<u64> {
        let offset = oa
            .get()
            .checked_sub(TestMemory::BASE.get())
            .filter(|offset| offset % 8 == 0)?;
        let page = usize::try_from(offset / SMALLEST.bytes()).ok()?;
        self.is_live.get(page).filter(|is_live| **is_live)?;
        self.words.get((offset / 8) as usize).copied()
    }
}

fn layout(len: u64) -> Layout {
    Layout::from_size_align(len as usize, LARGEST.bytes() as usize)
        .expect("the alignment is a power of two")
}

// SAFETY: the memory is owned; pages of it are given to one caller each, under the lock.
unsafe impl Send for TestMemory {}
// SAFETY: as above; shared state is behind the lock, words are accessed atomically.
unsafe impl Sync for TestMemory {}

// SAFETY: M1: pages are cut from aligned memory at multiples of their size, zeroed, and live for
// one caller until freed. M2: `ptr` is an addition to a fixed start. M3: the base and the length
// are far below 2^52.
unsafe impl TableMemory for TestMemory {
    fn alloc(&self, size: PageSize) -> Result<Oa, OutOfMemory> {
        assert!((SMALLEST..=LARGEST).contains(&size), "no table has {size}");
        let mut state = self.state();
        if let Some(left) = &mut state.left {
            *left = left.checked_sub(1).ok_or(OutOfMemory { size })?;
        }
        let used = state.free.get_mut(&size).and_then(Vec::pop);
        let offset = used.unwrap_or_else(|| state.fresh.next_multiple_of(size.bytes()));
        state.fresh = state.fresh.max(offset + size.bytes());
        assert!(
            offset + size.bytes() <= self.len,
            "the test needs a larger memory"
        );
        state.live.insert(offset, size);
        // SAFETY: the page lies inside the memory, and nobody else has it.
        unsafe { self.at(offset).write_bytes(0, size.bytes() as usize) };
        Ok(Oa::new(Self::BASE.get() + offset))
    }

    unsafe fn free(&self, oa: Oa, size: PageSize) {
        let offset = oa.get().wrapping_sub(Self::BASE.get());
        let mut state = self.state();
        let found = state.live.remove(&offset);
        assert_eq!(found, Some(size), "the page at {oa} is freed as {size}");
        // SAFETY: the page is live until here and by the caller's contract nobody uses it.
        unsafe { self.at(offset).write_bytes(POISON, size.bytes() as usize) };
        state.free.entry(size).or_default().push(offset);
    }

    fn ptr(&self, oa: Oa) -> *mut u8 {
        self.at(oa.get().wrapping_sub(Self::BASE.get()))
    }
}

impl Drop for TestMemory {
    fn drop(&mut self) {
        // SAFETY: allocated in `new` with this layout; pages cannot be used without `self`.
        unsafe { dealloc(self.start.as_ptr(), layout(self.len)) };
    }
}

impl fmt::Debug for TestMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TestMemory")
            .field("page_count", &self.page_count())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_words_of_live_pages_can_be_read() {
        let memory = TestMemory::new(1);
        let page = memory.alloc(PageSize::KIB_16).unwrap();
        let word = Oa::new(page.get() + 0x3ff8);
        assert_eq!(memory.read(word), Some(0));
        assert_eq!(memory.update(word, |old| old | 5), Some(0));
        assert_eq!(memory.read(word), Some(5));
        let snapshot = memory.snapshot();
        assert_eq!(
            (snapshot.read(word), snapshot.read(page)),
            (Some(5), Some(0))
        );
        assert_eq!(snapshot.read(Oa::new(page.get() + 0x4000)), None);
        assert_eq!(memory.read(Oa::new(page.get() + 4)), None);
        assert_eq!(memory.read(Oa::new(page.get() + 0x4000)), None);
        // SAFETY: allocated above with this size, and not used any more.
        unsafe { memory.free(page, PageSize::KIB_16) };
        assert_eq!(memory.read(word), None);
        assert_eq!(memory.page_count(), 0);
    }

    #[test]
    fn a_used_page_comes_back_zeroed() {
        let memory = TestMemory::new(1);
        let page = memory.alloc(PageSize::KIB_4).unwrap();
        // SAFETY: allocated above with this size, and not used any more.
        unsafe { memory.free(page, PageSize::KIB_4) };
        assert_eq!(memory.alloc(PageSize::KIB_4), Ok(page));
        assert_eq!(memory.read(page), Some(0));
    }

    #[test]
    #[should_panic(expected = "is freed as")]
    fn a_page_freed_with_another_size_is_caught() {
        let memory = TestMemory::new(1);
        let page = memory.alloc(PageSize::KIB_4).unwrap();
        // SAFETY: breaks the contract, which the memory is there to notice.
        unsafe { memory.free(page, PageSize::KIB_16) };
    }

    #[test]
    fn the_limit_counts_allocations() {
        let memory = TestMemory::new(1);
        memory.set_left(Some(1));
        memory.alloc(PageSize::KIB_4).unwrap();
        assert_eq!(
            memory.alloc(PageSize::KIB_4),
            Err(OutOfMemory {
                size: PageSize::KIB_4
            })
        );
        memory.set_left(None);
        memory.alloc(PageSize::KIB_4).unwrap();
    }
}
