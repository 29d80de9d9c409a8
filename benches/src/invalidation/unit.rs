//! A simulated IOMMU that counts what it is told and takes its time.
//!
//! It reads commands when it is told of them, and decodes each. A SYNC is complete [`Latencies::sync_ns`]
//! after it was published or after the one before was complete, whichever is later; other commands take no
//! time of their own. So its rate of SYNCs has a limit, which all threads share.
//!
//! It lives outside of the threads' clocks ([`clock`](super::clock)). What an access to a register costs the
//! processor is not part of the simulation unless [`Latencies`] say so; accesses are counted.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};

use iopt::invalidation::queue::Platform;
use iopt::invalidation::queue::{smmuv3, vtd};
use iopt_formats::command::{smmuv3::Command, vtd::Descriptor, vtd::IotlbScope};
use parking_lot::Mutex;

use crate::invalidation::clock::outside;

/// Logarithm of the entries of a queue: what a page holds of 16 bytes each.
const LG2_ENTRIES: u32 = 8;

/// A wait that nothing is known of is tried again after this time.
const UNKNOWN_WAIT_NS: u64 = 100;

/// What hardware needs.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Latencies {
    /// Of a SYNC.
    pub sync_ns: u64,
    /// Of a read of a register, for which the processor waits.
    pub read_ns: u64,
    /// Of a write to a register.
    pub write_ns: u64,
}

/// What a unit was told, and asked.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Counts {
    /// SYNCs.
    pub sync_count: u64,
    /// Invalidations of leaves alone.
    pub leaf_count: u64,
    /// Invalidations that reach entries which point to tables.
    pub table_count: u64,
    /// Writes to registers.
    pub write_count: u64,
    /// Reads of registers.
    pub read_count: u64,
}

/// What a command asks for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Seen {
    /// A SYNC, with the number that it writes.
    Sync(u32),
    /// An invalidation of leaves alone.
    Leaf,
    /// An invalidation that reaches entries which point to tables.
    Table,
}

/// Returns what a command of an SMMUv3 asks for.
///
/// # Panics
///
/// Panics at what no planner and no queue sends.
pub fn smmuv3_command(words: [u64; 2]) -> Seen {
    match Command::decode(words).expect("the engine sends valid commands") {
        Command::Sync { .. } => Seen::Sync(0),
        command => match command.target() {
            Some(target) if target.is_leaf => Seen::Leaf,
            _ => Seen::Table,
        },
    }
}

/// Returns what a descriptor of a VT-d unit asks for.
///
/// # Panics
///
/// As [`smmuv3_command`].
pub fn vtd_descriptor(words: [u64; 2]) -> Seen {
    match Descriptor::decode(words).expect("the engine sends valid descriptors") {
        Descriptor::Wait { status, .. } => Seen::Sync(status.map_or(0, |status| status.data)),
        Descriptor::Iotlb {
            scope: IotlbScope::Pages {
                is_leaf_only: true, ..
            },
            ..
        } => Seen::Leaf,
        _ => Seen::Table,
    }
}

/// The simulated IOMMU.
#[derive(Debug)]
pub struct Unit {
    decode: fn([u64; 2]) -> Seen,
    latencies: Latencies,
    ring: Box<[AtomicU64]>,
    status: AtomicU64,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Entries that were read so far; indices are remainders of it.
    fetched: u64,
    syncs: VecDeque<Sync>,
    /// When the last SYNC is complete.
    busy_until_ns: u64,
    counts: Counts,
}

/// A SYNC that is not complete.
#[derive(Clone, Copy, Debug)]
struct Sync {
    at: u64,
    number: u32,
    done_ns: u64,
}

impl Unit {
    /// Creates a unit that reads commands with `decode`.
    pub fn new(decode: fn([u64; 2]) -> Seen, latencies: Latencies) -> Self {
        Self {
            decode,
            latencies,
            ring: (0..2 << LG2_ENTRIES).map(|_| AtomicU64::new(0)).collect(),
            status: AtomicU64::new(0),
            state: Mutex::default(),
        }
    }

    /// Returns what was counted since the last call.
    pub fn take_counts(&self) -> Counts {
        std::mem::take(&mut self.state.lock().counts)
    }

    /// Returns when the first SYNC is complete that is not so yet.
    pub fn next_done_ns(&self) -> Option<u64> {
        let state = self.state.lock();
        state.syncs.front().map(|sync| sync.done_ns)
    }

    /// Reads entries up to `tail`, an index of `index_bits` bits.
    fn tell(&self, tail: u64, index_bits: u32) {
        outside(|clock| {
            clock.skip_to(clock.now_ns() + self.latencies.write_ns);
            let now = clock.now_ns();
            let mut state = self.state.lock();
            state.counts.write_count += 1;
            let mask = (1 << index_bits) - 1;
            while state.fetched & mask != tail {
                let at = state.fetched;
                state.fetched += 1;
                let first = 2 * (at as usize & ((1 << LG2_ENTRIES) - 1));
                let word = |at: usize| u64::from_le(self.ring[at].load(Ordering::Acquire));
                match (self.decode)([word(first), word(first + 1)]) {
                    Seen::Sync(number) => {
                        let done_ns = state.busy_until_ns.max(now) + self.latencies.sync_ns;
                        state.busy_until_ns = done_ns;
                        state.syncs.push_back(Sync {
                            at,
                            number,
                            done_ns,
                        });
                        state.counts.sync_count += 1;
                    }
                    Seen::Leaf => state.counts.leaf_count += 1,
                    Seen::Table => state.counts.table_count += 1,
                }
            }
        });
    }

    /// Lets the thread look at the unit, as it is by then; `read_count` registers are read for that.
    fn look<R>(&self, read_count: u64, work: impl FnOnce(&State) -> R) -> R {
        outside(|clock| {
            clock.skip_to(clock.now_ns() + read_count * self.latencies.read_ns);
            let now = clock.now_ns();
            let mut state = self.state.lock();
            state.counts.read_count += read_count;
            while let Some(&sync) = state.syncs.front().filter(|sync| sync.done_ns <= now) {
                state.syncs.pop_front();
                // Memory that the unit writes before it says anything else.
                self.status.store(sync.number.into(), Ordering::Release);
            }
            work(&state)
        })
    }
}

impl Platform for Unit {
    fn ring(&self) -> &[AtomicU64] {
        &self.ring
    }

    fn now_ns(&self) -> u64 {
        outside(|clock| clock.now_ns())
    }

    fn pause(&self, _turn: u32) {
        outside(|clock| {
            let unknown = clock.now_ns() + UNKNOWN_WAIT_NS;
            clock.skip_to(self.next_done_ns().unwrap_or(unknown));
        });
    }
}

impl smmuv3::Registers for Unit {
    fn set_cmdq_prod(&self, value: u32) {
        self.tell(value.into(), LG2_ENTRIES + 1);
    }

    fn cmdq_cons(&self) -> u32 {
        self.look(1, |state| {
            let at = state.syncs.front().map_or(state.fetched, |sync| sync.at);
            at as u32 & ((2 << LG2_ENTRIES) - 1)
        })
    }

    fn gerror(&self) -> u32 {
        self.look(1, |_| 0)
    }

    fn gerrorn(&self) -> u32 {
        self.look(1, |_| 0)
    }

    fn change_gerrorn(&self, _mask: u32, _value: u32) {}
}

impl vtd::Registers for Unit {
    fn status_word(&self) -> &AtomicU64 {
        self.look(0, |_| ());
        &self.status
    }

    fn set_iqt(&self, value: u64) {
        self.tell(value >> 4, LG2_ENTRIES);
    }

    fn iqh(&self) -> u64 {
        self.look(1, |state| (state.fetched & ((1 << LG2_ENTRIES) - 1)) << 4)
    }

    fn fsts(&self) -> u32 {
        self.look(1, |_| 0)
    }

    fn clear_fsts(&self, _bits: u32) {}
}

#[cfg(test)]
mod tests {
    use iopt::invalidation::queue::smmuv3::{CommandQueue, Registers as _};
    use iopt::invalidation::queue::{Queue, WithSync};
    use iopt::invalidation::{Changes, plan::Planner as _};
    use iopt::sync::SYNC;

    use super::*;
    use crate::invalidation::clock::{Clock, Lanes};
    use crate::invalidation::rig::{Hardware as _, Smmuv3};

    const LATENCIES: Latencies = Latencies {
        sync_ns: 1000,
        read_ns: 0,
        write_ns: 0,
    };

    /// All on a clock that counts no work at all, so that times are exact.
    #[test]
    fn syncs_are_complete_one_after_the_other_and_commands_are_counted() {
        let _running = Clock::start(&Lanes::new(1), 0, 5000, f64::NEG_INFINITY);
        let unit = Unit::new(smmuv3_command, LATENCIES);
        let queue = Queue::new(CommandQueue::new(unit)).expect("the shape is sound");
        let _waiting = SYNC.waiting();
        let mut everything = Vec::new();
        let (planner, tag) = (Smmuv3::<Unit>::planner(), Smmuv3::<Unit>::tag());
        planner.plan(&tag, &Changes::everything(), |command| {
            everything.push(command.encode());
        });
        let unit = || queue.device().registers();
        let now = || outside(|clock| clock.now_ns());
        let first = queue
            .submit(&everything, WithSync::Now)
            .expect("there is room");
        let second = queue.submit(&[], WithSync::Now).expect("there is room");
        assert_eq!(unit().next_done_ns(), Some(6000));
        // The head stands at the first SYNC, behind the command.
        assert_eq!(unit().cmdq_cons(), 1);
        queue.wait(first).expect("the hardware answers");
        assert_eq!((now(), unit().next_done_ns()), (6000, Some(7000)));
        queue.wait(second).expect("the hardware answers");
        assert_eq!((now(), unit().next_done_ns()), (7000, None));
        let counts = unit().take_counts();
        assert_eq!(
            (counts.sync_count, counts.leaf_count, counts.table_count),
            (2, 0, 1)
        );
        assert_eq!(counts.write_count, 2);
    }
}
