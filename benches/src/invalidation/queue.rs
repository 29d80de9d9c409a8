//! The queue beside one mutex around a plain ring.
//!
//! Hardware has done everything as soon as it is told ([`Prompt`]), so what is left is
//! what the processor does: to find room, write entries, tell the hardware and look whether it is done. The
//! baseline does the same with the same entries and registers, but holds a mutex from the first to the tail
//! register, which is the least that one can do with a mutex.

use std::hint::black_box;
use std::sync::atomic::{Ordering, fence};

use iopt::invalidation::Encode as _;
use iopt::invalidation::queue::smmuv3::CommandQueue;
use iopt::invalidation::queue::{Device as _, Queue, WithSync};
use iopt::sync::SYNC;
use iopt_formats::Iova;
use iopt_formats::command::smmuv3::{Command, Target};
use parking_lot::Mutex;

use crate::clock;
use crate::invalidation::prompt::Prompt;
use crate::ioas::threads::Scaled;
use crate::paired::{Side, Turns, quantile};
use crate::row::Row;
use crate::workload::{Phase, Times};

/// Commands of a submission.
pub const BATCHES: [usize; 4] = [1, 2, 16, 64];

/// What a thread does between two submissions, in rounds of a few cycles: nothing, or about as long as it takes to
/// map and unmap a buffer.
pub const PAUSES: [u32; 2] = [0, 256];

/// Submissions between two looks at the machine's clock.
const SUBMISSION_COUNT: u32 = 1024;

type Smmu = CommandQueue<Prompt>;

/// Something to send commands with.
pub trait Sender: Sync {
    /// Its name.
    const NAME: &'static str;

    /// Sends a list; with a SYNC, which it waits for, or without.
    fn send(&self, list: &[[u64; 2]], has_sync: bool);
}

/// The engine's queue.
pub struct Engine(Queue<Smmu>);

impl Engine {
    /// Creates the queue.
    ///
    /// # Panics
    ///
    /// Never: the shape is sound.
    pub fn new() -> Self {
        let queue = Queue::new(CommandQueue::new(Prompt::default()));
        Self(queue.expect("the device has a sound shape"))
    }
}

impl Default for Engine {
    fn default() -> Self {
        Self::new()
    }
}

impl Sender for Engine {
    const NAME: &'static str = "engine";

    #[inline(never)]
    fn send(&self, list: &[[u64; 2]], has_sync: bool) {
        let _waiting = SYNC.waiting();
        let sync = if has_sync {
            WithSync::Now
        } else {
            WithSync::Later
        };
        let ticket = self.0.submit(list, sync).expect("the hardware makes room");
        if has_sync {
            self.0.wait(ticket).expect("the hardware answers");
        }
    }
}

/// A ring with a mutex.
pub struct Baseline {
    device: Smmu,
    places: Mutex<Places>,
}

#[derive(Debug, Default)]
struct Places {
    tail: u64,
    head: u64,
}

impl Default for Baseline {
    fn default() -> Self {
        Self {
            device: CommandQueue::new(Prompt::default()),
            places: Mutex::default(),
        }
    }
}

impl Baseline {
    fn lg2_entries(&self) -> u8 {
        self.device.shape().lg2_entries
    }

    /// Returns the true place of the hardware, at or behind `known`.
    fn head(&self, known: u64) -> u64 {
        let mask = (2 << self.lg2_entries()) - 1;
        known + (u64::from(self.device.head().index).wrapping_sub(known) & mask)
    }

    fn write(&self, place: u64, entry: &[u64; 2]) {
        let first = 2 * (place & ((1 << self.lg2_entries()) - 1)) as usize;
        for (word, value) in self.device.ring()[first..].iter().zip(entry) {
            word.store(value.to_le(), Ordering::Relaxed);
        }
    }
}

impl Sender for Baseline {
    const NAME: &'static str = "mutex";

    #[inline(never)]
    fn send(&self, list: &[[u64; 2]], has_sync: bool) {
        let count = list.len() as u64 + u64::from(has_sync);
        let mut places = self.places.lock();
        while places.tail + count > places.head + (1 << self.lg2_entries()) {
            places.head = self.head(places.head);
        }
        for entry in list {
            self.write(places.tail, entry);
            places.tail += 1;
        }
        if has_sync {
            self.write(places.tail, &self.device.sync_entry(0));
            places.tail += 1;
        }
        let end = places.tail;
        // Entries, and tables, before the tail.
        fence(Ordering::SeqCst);
        let mask = (2 << self.lg2_entries()) - 1;
        self.device.write_tail((end & mask) as u32);
        let mut head = places.head;
        drop(places);
        while has_sync && head < end {
            head = self.head(head);
        }
    }
}

impl core::fmt::Debug for Engine {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_tuple("Engine").field(&self.0).finish()
    }
}

impl core::fmt::Debug for Baseline {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Baseline")
            .field("places", &self.places)
            .finish_non_exhaustive()
    }
}

/// Returns `count` commands.
fn commands(count: usize) -> Vec<[u64; 2]> {
    let command = |page: u64| Command::TlbiNhVa {
        vmid: 0,
        asid: 1,
        target: Target::single(Iova::new(page << 12), true),
    };
    (0..count as u64)
        .map(|page| command(page).entry())
        .collect()
}

/// Sends lists without looking at the clock: for a profiler.
pub fn count<S: Sender>(sender: &S, batch: usize, has_sync: bool, submission_count: u64) {
    let list = commands(batch);
    for _ in 0..submission_count {
        sender.send(&list, has_sync);
    }
}

/// Works for `round_count` rounds of some cycles each, without memory.
#[inline(always)]
fn think(round_count: u32) {
    let mut state = 1_u64;
    for _ in 0..round_count {
        // A multiplication that waits for the one before: three cycles or more.
        state = black_box(state.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    }
    black_box(state);
}

fn how(batch: usize, has_sync: bool) -> String {
    let sync = if has_sync { "and SYNC" } else { "" };
    format!("{batch:2} commands {sync}").trim_end().to_owned()
}

/// Measures one thread alone: nanoseconds of a submission.
pub fn measure_one() -> Vec<Row> {
    let mut rows = Vec::new();
    for has_sync in [false, true] {
        for batch in BATCHES {
            rows.extend(compare_one(batch, has_sync));
        }
    }
    rows
}

fn compare_one(batch: usize, has_sync: bool) -> [Row; 2] {
    fn side<S: Sender + 'static>(
        sender: S,
        list: &[[u64; 2]],
        has_sync: bool,
    ) -> Side<'_, &'static str> {
        Side::new(S::NAME, move || {
            let work = || {
                for _ in 0..SUBMISSION_COUNT {
                    sender.send(list, has_sync);
                }
            };
            Times {
                map: clock::time(work) / f64::from(SUBMISSION_COUNT),
                ..Times::default()
            }
        })
    }
    let list = commands(batch);
    let mut sides = [
        side(Engine::new(), &list, has_sync),
        side(Baseline::default(), &list, has_sync),
    ];
    let yardstick = (Baseline::NAME, Phase::Map);
    let turns = Turns::measure(&mut sides, &[yardstick]);
    [Engine::NAME, Baseline::NAME].map(|name| {
        let compared = turns.compare((name, Phase::Map), yardstick);
        Row::new(
            &how(batch, has_sync),
            name,
            compared.subject_ns,
            "ns a submission",
        )
        .beside("of mutex's time", compared.ratio)
        .beside("of the best", compared.min_ratio)
    })
}

/// Measures all of `cpus` at once, in `pass_count` passes of which the median counts.
///
/// A thread that does nothing else takes a mutex again before another one has noticed that it was free, so
/// that lists of one thread come in long runs and no cache line moves: fast, and nothing that drivers do. So
/// they also work between two submissions.
pub fn measure_all(cpus: &[usize], trial_count: usize, pass_count: usize) -> Vec<Row> {
    let mut rows = Vec::new();
    for thread_count in 2..=cpus.len() {
        let cpus = &cpus[..thread_count];
        for pause in PAUSES {
            for has_sync in [false, true] {
                for batch in BATCHES {
                    let list = List {
                        batch,
                        has_sync,
                        pause,
                    };
                    rows.extend(compare_all(cpus, trial_count, pass_count, list));
                }
            }
        }
    }
    rows
}

/// What threads send.
#[derive(Clone, Copy, Debug)]
struct List {
    batch: usize,
    has_sync: bool,
    /// One of [`PAUSES`].
    pause: u32,
}

fn compare_all(cpus: &[usize], trial_count: usize, pass_count: usize, list: List) -> [Row; 2] {
    let passes: Vec<[Scaled; 2]> = (0..pass_count)
        .map(|_| {
            [
                scaled(&Engine::new(), cpus, trial_count, list),
                scaled(&Baseline::default(), cpus, trial_count, list),
            ]
        })
        .collect();
    let median = |get: &dyn Fn(&[Scaled; 2]) -> f64| {
        quantile(&passes.iter().map(get).collect::<Vec<_>>(), 0.5)
    };
    let List {
        batch,
        has_sync,
        pause,
    } = list;
    let work = if pause > 0 { ", with work" } else { "" };
    let what = format!("{}, {} threads{work}", how(batch, has_sync), cpus.len());
    let row = |name, index: usize| {
        let together_ns = median(&|pass| pass[index].together_p25_ns);
        let row = Row::new(
            &what,
            name,
            batch as f64 * 1e3 / together_ns,
            "commands a us",
        )
        .beside(
            "times mutex's rate",
            median(&|pass| pass[1].together_p25_ns / pass[index].together_p25_ns),
        )
        .beside(
            "times 1 thread",
            median(&|pass| pass[index].alone_ns / pass[index].together_p25_ns),
        )
        .beside("1 thread ns", median(&|pass| pass[index].alone_ns));
        if together_ns.is_finite() {
            row
        } else {
            row.too_noisy()
        }
    };
    [row(Engine::NAME, 0), row(Baseline::NAME, 1)]
}

fn scaled<S: Sender>(sender: &S, cpus: &[usize], trial_count: usize, list: List) -> Scaled {
    let List {
        batch,
        has_sync,
        pause,
    } = list;
    let list = commands(batch);
    Scaled::measure(cpus, trial_count, |_, trials, share| {
        trials.each(share, || {
            for _ in 0..share.piece_len {
                think(pause);
                sender.send(&list, has_sync);
            }
        })
    })
}
