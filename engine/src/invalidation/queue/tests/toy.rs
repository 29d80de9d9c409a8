//! A queue's hardware as simple as it gets: it notes what it consumes, and fails on request.

use alloc::boxed::Box;
use alloc::collections::VecDeque;
use alloc::vec::Vec;

use crate::invalidation::queue::{Completion, Device, Entry, Fault, Head, Shape};
use crate::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use crate::sync::{Class, Mutex};

static HARDWARE: Class = Class::unranked("toy hardware");

/// What an entry asks for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(in crate::invalidation) enum Opcode {
    /// Nothing that can fail.
    Plain = 1,
    Sync = 2,
    /// Refused.
    Illegal = 3,
    /// The device never answers; whoever waits for it finds out.
    Silent = 4,
}

/// An entry of `serial` by `producer`; the other words tell whether it is torn.
pub(in crate::invalidation) fn entry<E: ToyEntry>(opcode: Opcode, producer: u8, serial: u32) -> E {
    E::from_word(opcode as u64 | u64::from(producer) << 8 | u64::from(serial) << 32)
}

pub(in crate::invalidation) fn plain<E: ToyEntry>(producer: u8, serial: u32) -> E {
    entry(Opcode::Plain, producer, serial)
}

pub(in crate::invalidation) trait ToyEntry: Entry {
    fn from_word(word: u64) -> Self;
}

impl ToyEntry for [u64; 2] {
    fn from_word(word: u64) -> Self {
        [word, !word]
    }
}

impl ToyEntry for [u64; 4] {
    fn from_word(word: u64) -> Self {
        [word, !word, word ^ 1, word ^ 2]
    }
}

/// An entry that was consumed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(in crate::invalidation) struct Seen {
    pub(in crate::invalidation) opcode: u8,
    pub(in crate::invalidation) producer: u8,
    pub(in crate::invalidation) serial: u32,
}

#[derive(Debug)]
pub(in crate::invalidation) struct Toy<E> {
    shape: Shape,
    ring: Box<[AtomicU64]>,
    tail: AtomicU32,
    tail_write_count: AtomicU32,
    /// How often the head was read.
    pub(in crate::invalidation) head_read_count: AtomicU32,
    /// How often somebody asked for the time.
    pub(in crate::invalidation) clock_read_count: AtomicU32,
    head: AtomicU32,
    status: AtomicU32,
    fault: AtomicU32,
    /// Moves by one with each pause.
    clock: AtomicU64,
    /// How far others consume at each pause, for tests without a thread for it.
    steps_in_pause: AtomicU32,
    /// They do so at each pause of so many.
    pub(in crate::invalidation) pauses_to_step: AtomicU32,
    /// What the head register reads as, if not `u32::MAX`.
    pub(in crate::invalidation) false_head: AtomicU32,
    /// What the next fetches fail for.
    pub(in crate::invalidation) failing_fetches: AtomicU32,
    /// Whether numbers are written only on [`answer`](Toy::answer).
    pub(in crate::invalidation) is_slow: AtomicBool,
    inside: Mutex<Inside>,
    entry: core::marker::PhantomData<fn() -> E>,
}

#[derive(Debug, Default)]
struct Inside {
    seen: Vec<Seen>,
    /// SYNCs that are fetched and not complete.
    in_flight: VecDeque<u32>,
    is_silent: bool,
}

const FAULTS: [Option<Fault>; 5] = [
    None,
    Some(Fault::Illegal),
    Some(Fault::Fetch),
    Some(Fault::Timeout),
    Some(Fault::Dropped),
];

impl<E: ToyEntry> Toy<E> {
    pub(in crate::invalidation) fn new(shape: Shape) -> Self {
        Self::starting_at(shape, 0, 0)
    }

    /// A queue that others have used before.
    pub(in crate::invalidation) fn starting_at(shape: Shape, index: u32, status: u32) -> Self {
        let word_count = E::WORDS << shape.lg2_entries;
        Self {
            shape,
            ring: (0..word_count).map(|_| AtomicU64::new(u64::MAX)).collect(),
            tail: AtomicU32::new(index),
            tail_write_count: AtomicU32::new(0),
            head_read_count: AtomicU32::new(0),
            clock_read_count: AtomicU32::new(0),
            head: AtomicU32::new(index),
            status: AtomicU32::new(status),
            fault: AtomicU32::new(0),
            clock: AtomicU64::new(0),
            steps_in_pause: AtomicU32::new(0),
            pauses_to_step: AtomicU32::new(1),
            false_head: AtomicU32::new(u32::MAX),
            failing_fetches: AtomicU32::new(0),
            is_slow: AtomicBool::new(false),
            inside: Mutex::new(&HARDWARE, Inside::default()),
            entry: core::marker::PhantomData,
        }
    }

    pub(in crate::invalidation) fn consuming_in_pauses(self, count: u32) -> Self {
        self.steps_in_pause.store(count, Ordering::Relaxed);
        self
    }

    pub(in crate::invalidation) fn set_steps_in_pause(&self, count: u32) {
        self.steps_in_pause.store(count, Ordering::Relaxed);
    }

    /// Takes what was consumed.
    pub(in crate::invalidation) fn take_seen(&self) -> Vec<Seen> {
        core::mem::take(&mut self.inside.lock().seen)
    }

    pub(in crate::invalidation) fn seen_sync_count(&self) -> usize {
        let inside = self.inside.lock();
        let is_sync = |seen: &&Seen| seen.opcode == Opcode::Sync as u8;
        inside.seen.iter().filter(is_sync).count()
    }

    pub(in crate::invalidation) fn ticks(&self) -> u64 {
        self.clock.load(Ordering::Relaxed)
    }

    pub(in crate::invalidation) fn tail(&self) -> u32 {
        self.tail.load(Ordering::Relaxed)
    }

    pub(in crate::invalidation) fn tail_write_count(&self) -> u32 {
        self.tail_write_count.load(Ordering::Relaxed)
    }

    pub(in crate::invalidation) fn advance(&self, ticks: u64) {
        self.clock.fetch_add(ticks, Ordering::Relaxed);
    }

    /// Says that it has another shape than its memory.
    pub(in crate::invalidation) fn with_false_shape(mut self, shape: Shape) -> Self {
        self.shape = shape;
        self
    }

    /// Consumes an entry, if there is one and no error; returns whether it did.
    pub(in crate::invalidation) fn step(&self) -> bool {
        let mut inside = self.inside.lock();
        let head = self.head.load(Ordering::Relaxed);
        if self.fault.load(Ordering::Acquire) != 0 || head == self.tail.load(Ordering::Acquire) {
            return false;
        }
        if self.failing_fetches.load(Ordering::Relaxed) > 0 {
            self.failing_fetches.fetch_sub(1, Ordering::Relaxed);
            self.stop(Fault::Fetch);
            return false;
        }
        let slot = head as usize & ((1 << self.shape.lg2_entries) - 1);
        let words = &self.ring[slot * E::WORDS..][..E::WORDS];
        let word = |word: &AtomicU64| u64::from_le(word.load(Ordering::Relaxed));
        let words: Vec<_> = words.iter().map(word).collect();
        assert_eq!(words, E::from_word(words[0]).words(), "torn at {head}");
        let [opcode, producer, ..] = words[0].to_le_bytes();
        let serial = (words[0] >> 32) as u32;
        let is_sync = opcode == Opcode::Sync as u8;
        if opcode == Opcode::Illegal as u8 {
            self.stop(Fault::Illegal);
            return false;
        }
        assert!(is_sync || matches!(opcode, 1 | 4), "{words:x?} at {head}");
        let answers_in_status = self.shape.completion == Completion::Status;
        if is_sync && inside.is_silent {
            if answers_in_status {
                inside.in_flight.push_back(serial);
                self.move_to(head + 1);
                self.stop(Fault::Dropped);
                inside.in_flight.clear();
            } else {
                self.stop(Fault::Timeout);
            }
            inside.is_silent = false;
            return false;
        }
        inside.is_silent |= opcode == Opcode::Silent as u8;
        inside.seen.push(Seen {
            opcode,
            producer,
            serial,
        });
        if is_sync {
            inside.in_flight.push_back(serial);
        }
        self.move_to(head + 1);
        if answers_in_status && !self.is_slow.load(Ordering::Relaxed) {
            self.answer_in(&mut inside);
        }
        true
    }

    /// Consumes as much as there is.
    pub(in crate::invalidation) fn run(&self) {
        while self.step() {}
    }

    /// Completes what is in flight.
    pub(in crate::invalidation) fn answer(&self) {
        self.answer_in(&mut self.inside.lock());
    }

    /// Completes what is in flight, the last SYNC first.
    pub(in crate::invalidation) fn answer_backwards(&self) {
        let mut inside = self.inside.lock();
        inside.in_flight.make_contiguous().reverse();
        self.answer_in(&mut inside);
    }

    fn answer_in(&self, inside: &mut Inside) {
        for number in inside.in_flight.drain(..) {
            self.status.store(number, Ordering::Release);
        }
    }

    fn move_to(&self, index: u32) {
        let bits = u32::from(self.shape.lg2_entries) + u32::from(self.shape.has_wrap_bit);
        self.head
            .store(index & ((1 << bits) - 1), Ordering::Release);
    }

    fn stop(&self, fault: Fault) {
        let code = FAULTS.iter().position(|&known| known == Some(fault));
        self.fault
            .store(code.expect("all are listed") as u32, Ordering::Release);
    }
}

impl<E: ToyEntry> Device for Toy<E> {
    type Entry = E;

    fn shape(&self) -> Shape {
        self.shape
    }

    fn ring(&self) -> &[AtomicU64] {
        &self.ring
    }

    fn write_tail(&self, index: u32) {
        self.tail.store(index, Ordering::Relaxed);
        self.tail_write_count.fetch_add(1, Ordering::Relaxed);
    }

    fn head(&self) -> Head {
        self.head_read_count.fetch_add(1, Ordering::Relaxed);
        let fault = FAULTS[self.fault.load(Ordering::Acquire) as usize];
        let index = match self.false_head.load(Ordering::Relaxed) {
            u32::MAX => self.head.load(Ordering::Relaxed),
            index => index,
        };
        Head { index, fault }
    }

    fn status(&self) -> u32 {
        assert_eq!(self.shape.completion, Completion::Status);
        self.status.load(Ordering::Relaxed)
    }

    fn sync_entry(&self, number: u32) -> E {
        entry(Opcode::Sync, 0, number)
    }

    fn acknowledge(&self, fault: Fault) {
        let acknowledged = self.fault.swap(0, Ordering::AcqRel);
        assert_eq!(FAULTS[acknowledged as usize], Some(fault));
    }

    fn now_ns(&self) -> u64 {
        self.clock_read_count.fetch_add(1, Ordering::Relaxed);
        self.ticks()
    }

    fn pause(&self, turn: u32) {
        let tick = self.clock.fetch_add(1, Ordering::Relaxed) + 1;
        if !tick.is_multiple_of(self.pauses_to_step.load(Ordering::Relaxed).into()) {
            return;
        }
        for _ in 0..self.steps_in_pause.load(Ordering::Relaxed) {
            self.step();
        }
        if turn > 4 {
            std::thread::yield_now();
        }
    }
}
