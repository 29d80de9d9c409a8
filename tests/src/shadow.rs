//! What a walker sees that does not snoop: the lines that were written back, as they were then.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use iopt::mem::{FlushLine, LINE_LEN};
use iopt_formats::Oa;

use crate::memory::TestMemory;

/// Words of a cache line.
const WORD_COUNT: usize = LINE_LEN / 8;

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
