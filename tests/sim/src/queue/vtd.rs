//! The VT-d invalidation queue: `IQA_REG`, `IQT_REG`, `IQH_REG` and the error bits of `FSTS_REG`.
//!
//! Intel VT-d specification: 6.5.2 queued invalidation, 11.4.9 invalidation queue registers.

use super::{Queue, Stop, bits};

/// The registers. Errors are bits of `FSTS_REG`, which a one clears.
#[derive(Debug)]
pub(super) struct InvalidationQueue {
    base: u64,
    entry_len: u64,
    count: u64,
    tail: u64,
    head: u64,
    status: u64,
}

/// Invalidation queue error: the descriptor at the head is illegal or cannot be read.
const IQE: u64 = 1 << 4;
/// Invalidation time-out error: a device did not answer; the wait descriptor behind is given up.
const ITE: u64 = 1 << 6;

impl InvalidationQueue {
    pub(super) const fn new(entry_len: u64) -> Self {
        Self {
            base: 0,
            entry_len,
            count: 0,
            tail: 0,
            head: 0,
            status: 0,
        }
    }
}

impl Queue for InvalidationQueue {
    fn write_base(&mut self, word: u64) {
        // QS: 2^QS pages of 4 KiB.
        let len = 0x1000 << bits(word, 2, 0);
        *self = Self {
            base: bits(word, 63, 12) << 12,
            count: len / self.entry_len,
            ..Self::new(self.entry_len)
        };
    }

    fn write_tail(&mut self, word: u64) {
        let offset = bits(word, 18, 4) << 4;
        self.tail = offset / self.entry_len % self.count.max(1);
    }

    fn head(&self) -> u64 {
        self.head * self.entry_len
    }

    fn errors(&self) -> u64 {
        self.status
    }

    fn acknowledge(&mut self, word: u64) {
        self.status &= !word;
    }

    fn next(&self) -> Option<u64> {
        let is_running = self.status == 0 && self.count != 0;
        (is_running && self.head != self.tail)
            .then_some(self.base.wrapping_add(self.head * self.entry_len))
    }

    fn consume(&mut self) {
        self.head = (self.head + 1) % self.count;
    }

    fn stop(&mut self, reason: Stop) {
        match reason {
            Stop::Illegal | Stop::Abort => self.status |= IQE,
            Stop::DeviceTimeout => {
                self.status |= ITE;
                self.consume();
            }
        }
    }
}
