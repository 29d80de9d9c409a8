//! A command queue that carries everything out at once, or nothing, and writes down what.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt::Debug;
use core::time::Duration;

use iopt_formats::command::{riscv, smmuv3, vtd};

use crate::invalidation::plan::Planner;
use crate::invalidation::queue::{Completion, Device, Entry, Fault, Head, Queue, Shape};
use crate::invalidation::{Encode, Instance};
use crate::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use crate::sync::{Class, Mutex};

/// Of the tests' own locks: held for a moment, and around nothing.
static LOG: Class = Class::unranked("log of a test");

const LG2_ENTRIES: u8 = 8;

/// A command as one architecture's queue has it.
pub(super) trait Recorded:
    Encode<Self::Entry> + Copy + Debug + Send + Sync + 'static
{
    type Entry: Entry + Send + Sync + 'static;
    type Planner: Planner<Command = Self> + Send + Sync;

    fn decode(words: &[u64]) -> Self;

    /// The command that the others before it are waited for with.
    fn sync() -> Self;

    fn is_sync(&self) -> bool;
}

impl Recorded for smmuv3::Command {
    type Entry = [u64; 2];
    type Planner = crate::invalidation::plan::smmuv3::Smmuv3;

    fn decode(words: &[u64]) -> Self {
        Self::decode([words[0], words[1]]).expect("the engine writes legal commands")
    }

    fn sync() -> Self {
        Self::Sync {
            signal: smmuv3::Signal::None,
            msi: smmuv3::Msi::NONE,
        }
    }

    fn is_sync(&self) -> bool {
        matches!(self, Self::Sync { .. })
    }
}

impl Recorded for riscv::Command {
    type Entry = [u64; 2];
    type Planner = crate::invalidation::plan::riscv::Riscv;

    fn decode(words: &[u64]) -> Self {
        Self::decode([words[0], words[1]]).expect("the engine writes legal commands")
    }

    fn sync() -> Self {
        Self::IofenceC {
            store: None,
            has_interrupt: false,
            has_read_order: true,
            has_write_order: true,
        }
    }

    fn is_sync(&self) -> bool {
        matches!(self, Self::IofenceC { .. })
    }
}

impl Recorded for vtd::Descriptor {
    type Entry = [u64; 4];
    type Planner = crate::invalidation::plan::vtd::Vtd;

    fn decode(words: &[u64]) -> Self {
        let words = [words[0], words[1], words[2], words[3]];
        Self::decode_wide(words).expect("the engine writes legal descriptors")
    }

    fn sync() -> Self {
        Self::Wait {
            status: None,
            has_interrupt: false,
            is_fence: false,
            drains_page_requests: false,
        }
    }

    fn is_sync(&self) -> bool {
        *self == Self::sync()
    }
}

/// A queue of commands, an SMMU's if nothing else is said.
pub(super) struct Recorder<C: Recorded = smmuv3::Command> {
    ring: Vec<AtomicU64>,
    tail: AtomicU32,
    head: AtomicU32,
    /// Whether nothing is carried out.
    is_silent: AtomicBool,
    /// SYNCs until it falls silent.
    left: AtomicU32,
    now: AtomicU64,
    commands: Mutex<Vec<C>>,
}

impl Recorder {
    /// Creates the queue of an SMMU, and the SMMU.
    pub(super) fn instance() -> Arc<Instance<crate::invalidation::plan::smmuv3::Smmuv3, Self>> {
        Self::instance_of(crate::invalidation::plan::smmuv3::Smmuv3::default())
    }

    /// As [`instance`](Self::instance), for as many threads as make time pass while they wait.
    pub(super) fn patient_instance()
    -> Arc<Instance<crate::invalidation::plan::smmuv3::Smmuv3, Self>> {
        let planner = crate::invalidation::plan::smmuv3::Smmuv3::default();
        Self::instance_with(planner, Duration::from_secs(1000))
    }
}

impl<C: Recorded> Recorder<C> {
    /// Creates the queue of an instance, and the instance.
    pub(super) fn instance_of(planner: C::Planner) -> Arc<Instance<C::Planner, Self>> {
        Self::instance_with(planner, Duration::from_micros(1))
    }

    fn instance_with(planner: C::Planner, limit: Duration) -> Arc<Instance<C::Planner, Self>> {
        let words = C::Entry::WORDS << LG2_ENTRIES;
        let recorder = Self {
            ring: (0..words).map(|_| AtomicU64::new(0)).collect(),
            tail: AtomicU32::new(0),
            head: AtomicU32::new(0),
            is_silent: AtomicBool::new(false),
            left: AtomicU32::new(u32::MAX),
            now: AtomicU64::new(0),
            commands: Mutex::new(&LOG, Vec::new()),
        };
        let queue = Queue::new(recorder).expect("the shape is sound");
        let queue = queue.with_limit(limit);
        Arc::new(Instance::new(planner, queue))
    }

    /// Carries nothing out from now on, or all that waits.
    pub(super) fn set_silent(&self, is_silent: bool) {
        self.is_silent.store(is_silent, Ordering::SeqCst);
        self.left.store(u32::MAX, Ordering::SeqCst);
        self.consume();
    }

    /// Falls silent after `count` SYNCs.
    pub(super) fn fall_silent_after(&self, count: u32) {
        self.left.store(count, Ordering::SeqCst);
    }

    /// Returns what was carried out since the last call, SYNCs left out.
    pub(super) fn take(&self) -> Vec<C> {
        core::mem::take(&mut *self.commands.lock())
    }

    fn consume(&self) {
        let mut commands = self.commands.lock();
        let mask = (2 << LG2_ENTRIES) - 1;
        let tail = self.tail.load(Ordering::SeqCst);
        let mut head = self.head.load(Ordering::SeqCst);
        while head != tail && !self.is_silent.load(Ordering::SeqCst) {
            let at = (head as usize & ((1 << LG2_ENTRIES) - 1)) * C::Entry::WORDS;
            let words = &self.ring[at..at + C::Entry::WORDS];
            let words = words.iter().map(|word| word.load(Ordering::SeqCst));
            let command = C::decode(&words.map(u64::from_le).collect::<Vec<_>>());
            if command.is_sync() {
                let left = self.left.load(Ordering::SeqCst);
                if left == 0 {
                    self.is_silent.store(true, Ordering::SeqCst);
                    break;
                }
                self.left.store(left - 1, Ordering::SeqCst);
            } else {
                commands.push(command);
            }
            head = (head + 1) & mask;
        }
        self.head.store(head, Ordering::SeqCst);
    }
}

impl<C: Recorded> Device for Recorder<C> {
    type Entry = C::Entry;

    fn shape(&self) -> Shape {
        Shape {
            lg2_entries: LG2_ENTRIES,
            least_lg2_entries: 1,
            has_wrap_bit: true,
            completion: Completion::Head,
        }
    }

    fn ring(&self) -> &[AtomicU64] {
        &self.ring
    }

    fn write_tail(&self, index: u32) {
        self.tail.store(index, Ordering::SeqCst);
        self.consume();
    }

    fn head(&self) -> Head {
        Head {
            index: self.head.load(Ordering::SeqCst),
            fault: None,
        }
    }

    fn sync_entry(&self, _number: u32) -> C::Entry {
        C::sync().entry()
    }

    fn acknowledge(&self, _fault: Fault) {}

    fn now_ns(&self) -> u64 {
        self.now.load(Ordering::SeqCst)
    }

    fn pause(&self, _turn: u32) {
        self.now.fetch_add(100, Ordering::SeqCst);
    }
}
