//! One register file that passes for the queue of any architecture, and hardware behind it that executes what
//! decodes and stops at what does not.

use alloc::boxed::Box;
use alloc::collections::VecDeque;
use alloc::vec::Vec;

use crate::invalidation::queue::{Platform, amd, riscv, smmuv3, vtd};
use crate::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use crate::sync::{Class, Mutex};

static HARDWARE: Class = Class::unranked("fake hardware");

/// What an entry is to the hardware.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Meaning {
    /// Nothing that can fail.
    Plain,
    /// An invalidation that a device has to answer.
    Device,
    /// A SYNC, and what it stores.
    Sync(Option<u64>),
    /// Refused.
    Illegal,
}

/// Why the hardware stands still, or what it logged.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Stop {
    Illegal = 1,
    Fetch = 2,
    Timeout = 3,
}

const RELAXED: Ordering = Ordering::Relaxed;

/// What hardware does at a SYNC before which a device did not answer.
#[derive(Clone, Copy, Debug)]
pub(super) enum OnTimeout {
    StopAtSync,
    DropSync,
    Log,
}

/// What tells the hardware of one architecture from that of another.
#[derive(Clone, Copy, Debug)]
pub(super) struct Nature {
    pub(super) words: usize,
    pub(super) has_wrap_bit: bool,
    pub(super) on_timeout: OnTimeout,
    pub(super) decode: fn(&[u64]) -> Meaning,
}

#[derive(Debug)]
pub(super) struct Fake {
    nature: Nature,
    ring: Box<[AtomicU64]>,
    status_word: AtomicU64,
    /// In entries, with the wrap bit.
    head: AtomicU32,
    tail: AtomicU32,
    /// What it stands still for; 0 for nothing.
    stop: AtomicU32,
    /// Stays when the error is acknowledged, as `CMDQ_CONS.ERR` does.
    last_stop: AtomicU32,
    gerror: AtomicU32,
    gerrorn: AtomicU32,
    events: Mutex<VecDeque<amd::Event>>,
    executed: Mutex<Vec<Meaning>>,
    clock: AtomicU64,
    pub(super) acknowledged_count: AtomicU32,
    /// Reads of registers of 32 bits.
    pub(super) read_count: AtomicU32,
    /// A device was told something and will not answer.
    is_silent: AtomicBool,
    /// What devices do with what they are told.
    pub(super) are_devices_silent: AtomicBool,
    pub(super) failing_fetches: AtomicU32,
    /// An answer came that nobody asked for.
    pub(super) has_stray_answer: AtomicBool,
    pub(super) is_stuck: AtomicBool,
    /// What the head register of AMD reads as, if not `u32::MAX`: its value when somebody looked who stood still
    /// since.
    pub(super) late_head: AtomicU32,
    /// All registers read as ones.
    pub(super) is_gone: AtomicBool,
}

impl Fake {
    pub(super) fn new(nature: Nature, entries: usize) -> Self {
        Self {
            nature,
            ring: (0..entries * nature.words)
                .map(|_| AtomicU64::new(u64::MAX))
                .collect(),
            status_word: AtomicU64::new(0x1234_5678_0000_0005),
            head: AtomicU32::new(0),
            tail: AtomicU32::new(0),
            stop: AtomicU32::new(0),
            last_stop: AtomicU32::new(0),
            gerror: AtomicU32::new(0x80),
            gerrorn: AtomicU32::new(0x00),
            events: Mutex::new(&HARDWARE, VecDeque::new()),
            executed: Mutex::new(&HARDWARE, Vec::new()),
            clock: AtomicU64::new(0),
            acknowledged_count: AtomicU32::new(0),
            read_count: AtomicU32::new(0),
            is_silent: AtomicBool::new(false),
            are_devices_silent: AtomicBool::new(false),
            failing_fetches: AtomicU32::new(0),
            has_stray_answer: AtomicBool::new(false),
            is_stuck: AtomicBool::new(false),
            late_head: AtomicU32::new(u32::MAX),
            is_gone: AtomicBool::new(false),
        }
    }

    pub(super) fn take_executed(&self) -> Vec<Meaning> {
        core::mem::take(&mut self.executed.lock())
    }

    pub(super) fn tail(&self) -> u32 {
        self.tail.load(RELAXED)
    }

    pub(super) fn log(&self, event: amd::Event) {
        self.events.lock().push_back(event);
    }

    pub(super) fn store_status(&self, word: u64) {
        self.status_word.store(word.to_le(), RELAXED);
    }

    /// Stops with nothing in the log of AMD.
    pub(super) fn stop_unlogged(&self) {
        self.stop.store(Stop::Illegal as u32, RELAXED);
    }

    fn halt(&self, stop: Stop) {
        self.stop.store(stop as u32, RELAXED);
        self.last_stop.store(stop as u32, RELAXED);
        self.gerror.fetch_xor(1, RELAXED);
        match stop {
            Stop::Illegal => self.log(amd::Event::IllegalCommand),
            Stop::Fetch => self.log(amd::Event::CommandHardware),
            Stop::Timeout => {}
        }
    }

    fn go_on(&self) {
        self.stop.store(0, RELAXED);
        self.acknowledged_count.fetch_add(1, RELAXED);
    }

    fn entry_count(&self) -> u32 {
        (self.ring.len() / self.nature.words) as u32
    }

    fn advance(&self) {
        let count = self.entry_count() << u32::from(self.nature.has_wrap_bit);
        self.head
            .store((self.head.load(RELAXED) + 1) % count, RELAXED);
    }

    /// Consumes an entry, if it can.
    fn step(&self) {
        let head = self.head.load(RELAXED);
        let is_idle = self.stop.load(RELAXED) != 0 || head == self.tail.load(RELAXED);
        if is_idle || self.is_stuck.load(RELAXED) {
            return;
        }
        if self.failing_fetches.load(RELAXED) > 0 {
            self.failing_fetches.fetch_sub(1, RELAXED);
            self.halt(Stop::Fetch);
            return;
        }
        let slot = (head % self.entry_count()) as usize * self.nature.words;
        let words = self.ring[slot..][..self.nature.words].iter();
        let words: Vec<u64> = words.map(|word| u64::from_le(word.load(RELAXED))).collect();
        let meaning = (self.nature.decode)(&words);
        match meaning {
            Meaning::Illegal => return self.halt(Stop::Illegal),
            Meaning::Device if self.are_devices_silent.load(RELAXED) => {
                self.is_silent.store(true, RELAXED);
            }
            Meaning::Sync(store) => {
                if self.is_silent.swap(false, RELAXED) {
                    match self.nature.on_timeout {
                        OnTimeout::StopAtSync => return self.halt(Stop::Timeout),
                        OnTimeout::DropSync => {
                            self.advance();
                            return self.halt(Stop::Timeout);
                        }
                        OnTimeout::Log => self.log(amd::Event::InvalidationTimeout),
                    }
                }
                if let Some(word) = store {
                    self.store_status(word);
                }
            }
            Meaning::Plain | Meaning::Device => {}
        }
        self.executed.lock().push(meaning);
        self.advance();
    }

    fn is(&self, stop: Stop) -> bool {
        self.stop.load(RELAXED) == stop as u32
    }

    /// Returns what a register reads as.
    fn register(&self, value: u32) -> u32 {
        self.read_count.fetch_add(1, RELAXED);
        if self.is_gone.load(RELAXED) {
            u32::MAX
        } else {
            value
        }
    }

    fn wide_register(&self, value: u64) -> u64 {
        if self.is_gone.load(RELAXED) {
            u64::MAX
        } else {
            value
        }
    }

    fn len_lg2(&self) -> u32 {
        (8 * self.nature.words).ilog2()
    }
}

impl Platform for Fake {
    fn ring(&self) -> &[AtomicU64] {
        &self.ring
    }

    fn now_ns(&self) -> u64 {
        self.clock.load(RELAXED)
    }

    fn pause(&self, _turn: u32) {
        self.clock.fetch_add(1, RELAXED);
        self.step();
    }
}

impl smmuv3::Registers for Fake {
    fn set_cmdq_prod(&self, value: u32) {
        self.tail.store(value, RELAXED);
    }

    fn cmdq_cons(&self) -> u32 {
        let error = self.last_stop.load(RELAXED);
        self.register(self.head.load(RELAXED) | error << 24)
    }

    fn gerror(&self) -> u32 {
        self.register(self.gerror.load(RELAXED))
    }

    fn gerrorn(&self) -> u32 {
        self.register(self.gerrorn.load(RELAXED))
    }

    fn change_gerrorn(&self, mask: u32, value: u32) {
        assert_eq!(mask, 1, "other errors are others' to acknowledge");
        let old = self.gerrorn.load(RELAXED);
        self.gerrorn.store(old & !mask | value & mask, RELAXED);
        assert_eq!((self.gerror.load(RELAXED) ^ value) & 1, 0);
        self.go_on();
    }
}

impl vtd::Registers for Fake {
    fn status_word(&self) -> &AtomicU64 {
        &self.status_word
    }

    fn set_iqt(&self, value: u64) {
        assert!(value.is_multiple_of(1 << self.len_lg2()));
        self.tail.store((value >> self.len_lg2()) as u32, RELAXED);
    }

    fn iqh(&self) -> u64 {
        self.wide_register(u64::from(self.head.load(RELAXED)) << self.len_lg2())
    }

    fn fsts(&self) -> u32 {
        let stop = match self.stop.load(RELAXED) {
            1 | 2 => 1 << 4,
            3 => 1 << 6,
            _ => 0,
        };
        let stray = u32::from(self.has_stray_answer.load(RELAXED)) << 5;
        // A fault of a device, which is none of the queue's.
        self.register(stop | stray | 1 << 1)
    }

    fn clear_fsts(&self, bits: u32) {
        match bits {
            0x10 => assert!(self.is(Stop::Illegal) || self.is(Stop::Fetch)),
            0x20 => {
                self.has_stray_answer.store(false, RELAXED);
                self.acknowledged_count.fetch_add(1, RELAXED);
                return;
            }
            _ => {
                assert_eq!(bits, 0x40);
                assert!(self.is(Stop::Timeout));
            }
        }
        self.go_on();
    }
}

impl amd::Registers for Fake {
    fn status_word(&self) -> &AtomicU64 {
        &self.status_word
    }

    fn set_tail(&self, value: u64) {
        assert!(value.is_multiple_of(16));
        self.tail.store((value / 16) as u32, RELAXED);
    }

    fn head(&self) -> u64 {
        let head = match self.late_head.load(RELAXED) {
            u32::MAX => self.head.load(RELAXED),
            late => late,
        };
        self.wide_register(u64::from(head) * 16)
    }

    fn status(&self) -> u64 {
        let is_running = self.stop.load(RELAXED) == 0;
        self.wide_register(u64::from(is_running) << 4 | 1 << 1)
    }

    fn event(&self) -> Option<amd::Event> {
        self.events.lock().front().copied()
    }

    fn acknowledge(&self, event: Option<amd::Event>) {
        let mut events = self.events.lock();
        if event.is_some() {
            assert_eq!(events.pop_front(), event);
        }
        drop(events);
        if event != Some(amd::Event::InvalidationTimeout) {
            self.go_on();
        }
    }
}

impl riscv::Registers for Fake {
    fn set_cqt(&self, value: u32) {
        self.tail.store(value, RELAXED);
    }

    fn cqh(&self) -> u32 {
        self.register(self.head.load(RELAXED))
    }

    fn cqcsr(&self) -> u32 {
        let stop = match self.stop.load(RELAXED) {
            1 => 1 << 10,
            2 => 1 << 8,
            3 => 1 << 9,
            _ => 0,
        };
        // On, with the interrupt of some fence pending.
        self.register(stop | 1 << 16 | 1 << 11 | 1)
    }

    fn clear_cqcsr(&self, bits: u32) {
        let stop = match bits {
            0x400 => Stop::Illegal,
            0x100 => Stop::Fetch,
            _ => Stop::Timeout,
        };
        assert!(self.is(stop), "{bits:#x}");
        self.go_on();
    }
}
