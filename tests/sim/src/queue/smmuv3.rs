//! The SMMUv3 command queue: `CMDQ_BASE`, `CMDQ_PROD`, `CMDQ_CONS`, `GERROR`, `GERRORN`.
//!
//! Arm IHI 0070: 3.5.1 circular queues, 6.3 registers, 7.1 command queue errors.

use super::{Queue, Stop, bits};

/// The registers. Head is `CMDQ_CONS`, errors `GERROR`, and `GERRORN` acknowledges them.
#[derive(Debug, Default)]
pub(super) struct CommandQueue {
    base: u64,
    log2size: u32,
    prod: u64,
    cons: u64,
    /// `CMDQ_CONS.ERR`.
    error: u64,
    /// Bit 0, `CMDQ_ERR`, differs between both while an error is active.
    gerror: u64,
    gerrorn: u64,
}

const LEN: u64 = 16;

impl CommandQueue {
    /// Index and wrap bit.
    fn mask(&self) -> u64 {
        (2 << self.log2size) - 1
    }
}

impl Queue for CommandQueue {
    fn write_base(&mut self, word: u64) {
        *self = Self {
            base: bits(word, 51, 5) << 5,
            log2size: bits(word, 4, 0).min(19) as u32,
            ..Self::default()
        };
    }

    fn write_tail(&mut self, word: u64) {
        self.prod = word & self.mask();
    }

    fn head(&self) -> u64 {
        self.cons | self.error << 24
    }

    fn errors(&self) -> u64 {
        self.gerror
    }

    fn acknowledge(&mut self, word: u64) {
        self.gerrorn = word & 1;
    }

    fn next(&self) -> Option<u64> {
        let index = self.cons & ((1 << self.log2size) - 1);
        let is_running = self.gerror == self.gerrorn && self.base != 0;
        (is_running && self.cons != self.prod).then_some(self.base.wrapping_add(index * LEN))
    }

    fn consume(&mut self) {
        self.cons = (self.cons + 1) & self.mask();
    }

    fn stop(&mut self, reason: Stop) {
        self.error = match reason {
            Stop::Illegal => 1,
            Stop::Abort => 2,
            Stop::DeviceTimeout => 3,
        };
        self.gerror ^= 1;
    }
}
