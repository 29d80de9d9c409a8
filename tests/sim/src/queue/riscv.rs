//! The RISC-V command queue: `cqb`, `cqt`, `cqh`, `cqcsr`.
//!
//! RISC-V IOMMU specification: command queue, memory-mapped registers.

use super::{Queue, Stop, bits};

/// The registers. Errors are `cqcsr`, whose error bits a one clears.
#[derive(Debug, Default)]
pub(super) struct CommandQueue {
    base: u64,
    count: u64,
    tail: u64,
    head: u64,
    status: u64,
}

const LEN: u64 = 16;
/// `cqmf`: a memory fault.
const FAULT: u64 = 1 << 8;
/// `cmd_to`: a device did not answer.
const TIMEOUT: u64 = 1 << 9;
/// `cmd_ill`.
const ILLEGAL: u64 = 1 << 10;
/// `cqen` and `cqon`.
const ON: u64 = 1 | 1 << 16;

impl Queue for CommandQueue {
    fn write_base(&mut self, word: u64) {
        *self = Self {
            base: bits(word, 53, 10) << 12,
            // LOG2SZ-1.
            count: 2 << bits(word, 4, 0),
            status: ON,
            ..Self::default()
        };
    }

    fn write_tail(&mut self, word: u64) {
        self.tail = word % self.count.max(1);
    }

    fn head(&self) -> u64 {
        self.head
    }

    fn errors(&self) -> u64 {
        self.status
    }

    fn acknowledge(&mut self, word: u64) {
        self.status &= !(word & (FAULT | TIMEOUT | ILLEGAL));
    }

    fn next(&self) -> Option<u64> {
        (self.status == ON && self.head != self.tail)
            .then_some(self.base.wrapping_add(self.head * LEN))
    }

    fn consume(&mut self) {
        self.head = (self.head + 1) % self.count;
    }

    fn stop(&mut self, reason: Stop) {
        self.status |= match reason {
            Stop::Illegal => ILLEGAL,
            Stop::Abort => FAULT,
            Stop::DeviceTimeout => TIMEOUT,
        };
    }
}
