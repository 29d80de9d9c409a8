//! The AMD command buffer: its base, head and tail registers and the status register.
//!
//! AMD 48882: 2.4 commands, 3.4 MMIO registers.

use super::{Queue, Stop, bit, bits};

/// The registers. Errors are the status register, in which `CmdBufRun` falls when the buffer stops; writing
/// the control register with `CmdBufEn` starts it again at the head.
#[derive(Debug, Default)]
pub(super) struct CommandBuffer {
    base: u64,
    count: u64,
    tail: u64,
    head: u64,
    is_running: bool,
    has_event: bool,
}

const LEN: u64 = 16;
/// Status: an event was logged.
const EVENT_LOG_INTERRUPT: u64 = 1 << 1;
/// Status: commands are fetched.
const RUNNING: u64 = 1 << 4;

impl Queue for CommandBuffer {
    fn write_base(&mut self, word: u64) {
        *self = Self {
            base: bits(word, 51, 12) << 12,
            // ComLen, base-2 logarithm of the entries.
            count: 1 << bits(word, 59, 56),
            is_running: true,
            ..Self::default()
        };
    }

    fn write_tail(&mut self, word: u64) {
        self.tail = bits(word, 18, 4) % self.count.max(1);
    }

    fn head(&self) -> u64 {
        self.head * LEN
    }

    fn errors(&self) -> u64 {
        let running = if self.is_running { RUNNING } else { 0 };
        let event = if self.has_event {
            EVENT_LOG_INTERRUPT
        } else {
            0
        };
        running | event
    }

    fn acknowledge(&mut self, word: u64) {
        self.has_event = false;
        self.is_running = bit(word, 12);
    }

    fn next(&self) -> Option<u64> {
        (self.is_running && self.head != self.tail)
            .then_some(self.base.wrapping_add(self.head * LEN))
    }

    fn consume(&mut self) {
        self.head = (self.head + 1) % self.count;
    }

    fn stop(&mut self, _: Stop) {
        self.has_event = true;
        self.is_running = false;
    }
}
