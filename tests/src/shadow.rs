//! What walkers see of table memory: everything, or only the lines that were written back, as they
//! were then.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use iopt::mem::{FlushLine, LINE_LEN, NonSnooped, TableMemory};
use iopt_formats::Oa;

use crate::memory::{Snapshot, TestMemory};

/// Words of a cache line.
const WORD_COUNT: usize = LINE_LEN / 8;

/// What a snapshot shows of lines that were never written back.
const NEVER_WRITTEN: u64 = 0xa5a5_a5a5_a5a5_a5a5;

type Lines = BTreeMap<Oa, [u64; WORD_COUNT]>;

/// The memory behind the caches. Lines that were never written back hold nothing that can be read.
pub struct Shadow {
    memory: Arc<TestMemory>,
    lines: Mutex<Lines>,
}

impl Shadow {
    /// Creates the shadow of `memory`.
    pub fn new(memory: Arc<TestMemory>) -> Self {
        Self {
            memory,
            lines: Mutex::default(),
        }
    }

    fn lines(&self) -> MutexGuard<'_, Lines> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the word at `oa` as it was written back last.
    pub fn read(&self, oa: Oa) -> Option<u64> {
        let offset = oa.get() % LINE_LEN as u64;
        let lines = self.lines();
        let line = lines.get(&Oa::new(oa.get() - offset))?;
        line.get((offset / 8) as usize).copied()
    }
}

impl FlushLine for Shadow {
    fn flush_line(&self, line: *const u8) {
        let mut lines = self.lines();
        let start = self
            .memory
            .oa_of(line.addr())
            .expect("only table memory is written back");
        let words = std::array::from_fn(|index| {
            let word = self.memory.read(Oa::new(start.get() + index as u64 * 8));
            word.expect("only lines of live tables are written back")
        });
        lines.insert(start, words);
    }
}

impl fmt::Debug for Shadow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shadow")
            .field("line_count", &self.lines().len())
            .finish_non_exhaustive()
    }
}

/// Table memory that tests look into as hardware does.
pub trait Watched: TableMemory + fmt::Debug {
    /// Creates it on top of `memory`.
    fn over(memory: Arc<TestMemory>) -> Self;

    /// Returns the word that a walker sees at `oa`.
    fn seen(&self, oa: Oa) -> Option<u64>;

    /// Returns what a walker sees of every live page.
    fn snapshot(&self) -> Snapshot;

    /// Changes the word at `oa` as a walker does; `None` if there is none.
    fn update(&self, oa: Oa, change: impl Fn(u64) -> u64) -> Option<u64>;
}

impl Watched for Arc<TestMemory> {
    fn over(memory: Self) -> Self {
        memory
    }

    fn seen(&self, oa: Oa) -> Option<u64> {
        self.read(oa)
    }

    fn snapshot(&self) -> Snapshot {
        TestMemory::snapshot(self)
    }

    fn update(&self, oa: Oa, change: impl Fn(u64) -> u64) -> Option<u64> {
        TestMemory::update(self, oa, change)
    }
}

/// Table memory whose walkers do not snoop.
pub type Unsnooped = NonSnooped<Arc<TestMemory>, Shadow>;

impl Watched for Unsnooped {
    fn over(memory: Arc<TestMemory>) -> Self {
        Self::new(Arc::clone(&memory), Shadow::new(memory))
    }

    fn seen(&self, oa: Oa) -> Option<u64> {
        self.flush().read(oa)
    }

    fn snapshot(&self) -> Snapshot {
        let shadow = self.flush();
        shadow
            .memory
            .snapshot()
            .map(|oa| shadow.read(oa).unwrap_or(NEVER_WRITTEN))
    }

    fn update(&self, oa: Oa, change: impl Fn(u64) -> u64) -> Option<u64> {
        let shadow = self.flush();
        let old = shadow.memory.update(oa, change)?;
        shadow.flush_line(
            shadow
                .memory
                .ptr(oa)
                .cast_const()
                .map_addr(|address| address & !(LINE_LEN - 1)),
        );
        Some(old)
    }
}
