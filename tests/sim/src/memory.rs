//! Memory as hardware sees it, and recordings of what was read from it.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{PoisonError, RwLock};

/// Memory that a simulated IOMMU reads tables and queues from and stores completions to. Addresses are
/// those that hardware puts on its bus.
///
/// Called with locks of the simulation held: an implementation must not call back into it.
pub trait Memory: iopt_reference::Memory + Send + Sync {
    /// Stores 64 bits at `address`, a multiple of 8, after everything that was read before. Returns
    /// whether something is there.
    fn write64(&self, address: u64, word: u64) -> bool;

    /// Stores 32 bits at `address`, a multiple of 4, without touching its neighbours. Returns whether
    /// something is there.
    fn write32(&self, address: u64, word: u32) -> bool;
}

const PAGE_LEN: u64 = 0x1000;
const WORDS: usize = 512;

/// A sparse memory of zeroed 4 KiB pages that come into being when written.
#[derive(Default)]
pub struct Ram {
    pages: RwLock<BTreeMap<u64, Box<[AtomicU64; WORDS]>>>,
}

impl Ram {
    /// Creates a memory without any page.
    pub fn new() -> Self {
        Self::default()
    }

    /// Calls `change` with the word at `address`, adding its page if there is none.
    fn with_word<R>(&self, address: u64, change: impl Fn(&AtomicU64) -> R) -> R {
        let (page, index) = (address / PAGE_LEN, (address % PAGE_LEN / 8) as usize);
        {
            let pages = self.pages.read().unwrap_or_else(PoisonError::into_inner);
            if let Some(words) = pages.get(&page) {
                return change(&words[index]);
            }
        }
        let mut pages = self.pages.write().unwrap_or_else(PoisonError::into_inner);
        let words = pages
            .entry(page)
            .or_insert_with(|| Box::new([const { AtomicU64::new(0) }; WORDS]));
        change(&words[index])
    }
}

impl iopt_reference::Memory for Ram {
    fn read64(&self, address: u64) -> Option<u64> {
        if !address.is_multiple_of(8) {
            return None;
        }
        let pages = self.pages.read().unwrap_or_else(PoisonError::into_inner);
        let words = pages.get(&(address / PAGE_LEN))?;
        Some(words[(address % PAGE_LEN / 8) as usize].load(Ordering::Acquire))
    }
}

impl Memory for Ram {
    fn write64(&self, address: u64, word: u64) -> bool {
        if !address.is_multiple_of(8) {
            return false;
        }
        self.with_word(address, |at| at.store(word, Ordering::Release));
        true
    }

    fn write32(&self, address: u64, word: u32) -> bool {
        if !address.is_multiple_of(4) {
            return false;
        }
        let shift = address % 8 * 8;
        let mask = u64::from(u32::MAX) << shift;
        self.with_word(address & !7, |at| {
            let merge = |old| Some(old & !mask | u64::from(word) << shift);
            // The closure never refuses, so this never fails.
            let _ = at.fetch_update(Ordering::AcqRel, Ordering::Acquire, merge);
        });
        true
    }
}

impl fmt::Debug for Ram {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let pages = self.pages.read().unwrap_or_else(PoisonError::into_inner);
        f.debug_struct("Ram").field("pages", &pages.len()).finish()
    }
}

/// One word that hardware read.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Read {
    /// Its address.
    pub address: u64,
    /// Its value.
    pub word: u64,
}

/// Memory that records what is read, and answers the first reads from an earlier recording.
///
/// The i-th read of a walk is always that of its i-th item, so the beginning of a recording is a cached
/// walk: whoever reads on from it continues where the cached items point to.
pub(crate) struct Recorder<'a> {
    memory: &'a dyn iopt_reference::Memory,
    replayed: &'a [Read],
    reads: RefCell<Vec<Read>>,
}

impl<'a> Recorder<'a> {
    pub(crate) fn new(memory: &'a dyn iopt_reference::Memory, replayed: &'a [Read]) -> Self {
        Self {
            memory,
            replayed,
            reads: RefCell::default(),
        }
    }

    /// Returns everything read, the replayed words included.
    pub(crate) fn into_reads(self) -> Vec<Read> {
        self.reads.into_inner()
    }
}

impl iopt_reference::Memory for Recorder<'_> {
    fn read64(&self, address: u64) -> Option<u64> {
        let mut reads = self.reads.borrow_mut();
        let read = match self.replayed.get(reads.len()) {
            Some(read) => *read,
            None => Read {
                address,
                word: self.memory.read64(address)?,
            },
        };
        reads.push(read);
        Some(read.word)
    }
}

#[cfg(test)]
mod tests {
    use iopt_reference::Memory as _;

    use super::{Memory as _, Ram, Read, Recorder};

    #[test]
    fn half_a_word_is_stored_alone() {
        let ram = Ram::new();
        assert_eq!(ram.read64(0x1000), None);
        assert!(ram.write64(0x1000, u64::MAX));
        assert!(ram.write32(0x1004, 7));
        assert_eq!(ram.read64(0x1000), Some(0x7_ffff_ffff));
        assert!(!ram.write64(0x1004, 0) && !ram.write32(0x1002, 0));
    }

    #[test]
    fn a_recording_is_replayed_by_position() {
        let ram = Ram::new();
        assert!(ram.write64(8, 5));
        let replayed = [Read {
            address: 0x9000,
            word: 1,
        }];
        let recorder = Recorder::new(&ram, &replayed);
        assert_eq!(recorder.read64(0), Some(1));
        assert_eq!(recorder.read64(8), Some(5));
        let fresh = Read {
            address: 8,
            word: 5,
        };
        assert_eq!(recorder.into_reads(), [replayed[0], fresh]);
    }
}
