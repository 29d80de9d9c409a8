//! The AMD command buffer: its base, head and tail registers, the status register, and what the event log says of
//! commands.
//!
//! AMD 48882: 2.4 commands, 2.5 event logging, 3.4 MMIO registers.

use std::collections::VecDeque;

use super::{Queue, Stop, bit, bits};

/// The registers. Errors are the status register, in which `CmdBufRun` falls when the buffer stops; writing
/// the control register with `CmdBufEn` starts it again at the head. It does not stop for a silent device: that is
/// logged, and the waits behind complete.
#[derive(Debug, Default)]
pub(super) struct CommandBuffer {
    base: u64,
    count: u64,
    tail: u64,
    head: u64,
    is_running: bool,
    events: VecDeque<Stop>,
}

const LEN: u64 = 16;
/// Status: there is something in the event log.
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
        let event = if self.events.is_empty() {
            0
        } else {
            EVENT_LOG_INTERRUPT
        };
        running | event
    }

    fn acknowledge(&mut self, word: u64) {
        self.is_running = bit(word, 12);
    }

    fn next(&self) -> Option<u64> {
        (self.is_running && self.head != self.tail)
            .then_some(self.base.wrapping_add(self.head * LEN))
    }

    fn consume(&mut self) {
        self.head = (self.head + 1) % self.count;
    }

    fn stop(&mut self, reason: Stop) {
        self.events.push_back(reason);
        self.is_running &= reason == Stop::DeviceTimeout;
    }

    fn event(&self) -> Option<Stop> {
        self.events.front().copied()
    }

    fn take_event(&mut self) -> Option<Stop> {
        self.events.pop_front()
    }
}
