//! Strict against deferred: a driver with many I/Os in flight.
//!
//! Each thread keeps [`DEPTH`] I/Os going: it allocates IOVA, maps [`PAGE_COUNT`] pages
//! and gives them to a device, which takes [`DEVICE_NS`]. Then it unmaps them. A strict I/O ends when the
//! hardware is known to have forgotten it: it is submitted, and looked after now and then while others go
//! on. A deferred one ends when it is queued. When nothing else is to be done the thread waits for whatever
//! comes first.
//!
//! There are two loads ([`Load`]). Over a link of 800 Gb/s data of all threads passes one after the other: that is
//! what a device may want, and what strict invalidation is promised to keep up with. Without a link the
//! processor is all that limits, with an I/O that consists of nothing but its mapping: that shows how much is
//! left, and every nanosecond that one mode takes more than another.
//!
//! Time is that of [`clock`](super::clock): the work of the processor, and waits, of which none is spun away.
//! What is compared is I/Os by time, inside turns. How much of the time is work of the processor stands
//! beside it, and so do commands, SYNCs and accesses to registers for each I/O.

use std::collections::VecDeque;
use std::hint::black_box;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use iopt::invalidation::deferred::Deferred;
use iopt::iova::{IovaAllocation, PendingIova};

use crate::cpu;
use crate::invalidation::clock::{Clock, Lanes, Reading, Running, outside};
use crate::invalidation::rig::{
    Hardware, Layout, Memory, Mode, PAGE_COUNT, PAGE_LEN, Rig, Set, Smmuv3, Vtd, Waiting,
};
use crate::invalidation::unit::{self, Counts, Latencies, Unit};
use crate::paired::quantile;
use crate::row::{Bar, Row};

/// I/Os of a thread in flight.
pub const DEPTH: u64 = 32;

/// What a device takes for an I/O.
pub const DEVICE_NS: f64 = 10_000.0;

/// What the data of an I/O takes on a link of 800 Gb/s.
pub const LINK_NS: f64 = (PAGE_COUNT * PAGE_LEN * 8) as f64 / 800.0;

/// I/Os in a microsecond that such a link carries, rounded up.
pub const LINK_RATE: f64 = 0.382;

/// What part of the I/Os of deferred invalidation strict one has to do.
pub const MIN_RATIO: f64 = 0.95;

/// Looks at the hardware are so far apart, unless there is nothing else to do.
const LOOK_NS: f64 = 1000.0;

/// I/Os before a measurement.
const WARM_UP_COUNT: u64 = 4 * DEPTH;

/// No thread works for longer without a look at the clock, but for who flushes [`Mode::DeferredSingle`].
const LONGEST_NS: f64 = 50e3;
const LONGEST_SINGLE_NS: f64 = 20e6;

/// What limits the I/Os, beside their depth.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Load {
    /// A link that all threads share.
    Link,
    /// The processor.
    Unlimited,
}

impl Load {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Link, Self::Unlimited];

    /// Returns the name as text.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Link => "800 Gb/s",
            Self::Unlimited => "no link",
        }
    }

    /// Returns which modes are measured.
    fn modes(self, layout: Layout) -> Vec<Mode> {
        let is_measured = |mode: &Mode| match mode {
            // Its flushes are as far apart as with the other load.
            Mode::DeferredSingle => self == Self::Unlimited,
            // What is contiguous may be mapped with larger entries, which are not unmapped page by page.
            Mode::PageByPage => layout == Layout::Scattered,
            Mode::Deferred | Mode::Strict | Mode::StrictShared => true,
        };
        Mode::ALL.into_iter().filter(is_measured).collect()
    }
}

/// What is measured.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Measurements of each mode.
    pub turn_count: usize,
    /// What the hardware takes.
    pub latencies: Latencies,
}

/// Measures both architectures, on one of `cpus` and on two.
pub fn measure(cpus: &[usize], options: &Options) -> Vec<Row> {
    let mut rows = Vec::new();
    let all = 1..=cpus.len().min(2);
    for cpus in all.map(|count| &cpus[..count]) {
        for load in Load::ALL {
            for layout in Layout::ALL {
                let new = |decode| move || Unit::new(decode, options.latencies);
                let smmuv3 = new(unit::smmuv3_command);
                let vtd = new(unit::vtd_descriptor);
                rows.extend(compare::<Smmuv3<Unit>>(cpus, load, layout, options, smmuv3));
                rows.extend(compare::<Vtd<Unit>>(cpus, load, layout, options, vtd));
            }
        }
    }
    rows
}

/// What some threads did in one mode.
#[derive(Clone, Copy, Debug, Default)]
struct Trial {
    /// I/Os of all threads in a microsecond.
    rate: f64,
    /// Work for an I/O.
    work_ns: f64,
    counts: Counts,
    /// I/Os that were counted.
    io_count: u64,
    interrupted_count: u64,
}

/// A rig of one mode.
struct Station<'r, H: Hardware> {
    rig: &'r Rig<H>,
    mode: Mode,
    load: Load,
    layout: Layout,
    /// When the link has carried everything.
    link_free_ns: AtomicU64,
    waiting: Option<Waiting<'r, H>>,
    lanes: Lanes,
    /// Where all clocks stand between trials.
    now_ns: AtomicU64,
}

fn compare<H: Hardware<Registers = Unit>>(
    cpus: &[usize],
    load: Load,
    layout: Layout,
    options: &Options,
    new_unit: impl Fn() -> Unit,
) -> Vec<Row> {
    let modes = load.modes(layout);
    let rigs: Vec<Rig<H>> = {
        // A queue asks its device where it stands.
        let _running = Clock::start(&Lanes::new(1), 0, 0, LONGEST_NS);
        let new = |&mode| Rig::new(new_unit(), mode);
        modes.iter().map(new).collect()
    };
    let mut stations = Vec::new();
    for (&mode, rig) in modes.iter().zip(&rigs) {
        stations.push(Station::new(rig, mode, load, layout, cpus.len()));
    }
    let mut trials: Vec<Vec<Trial>> = modes.iter().map(|_| Vec::new()).collect();
    for turn in 0..=options.turn_count {
        for (station, trials) in stations.iter().zip(&mut trials) {
            let trial = station.run(cpus);
            // The first brings memory into the caches, and makes tables.
            if turn > 0 {
                trials.push(trial);
            }
        }
    }
    // What is left is flushed, which takes a clock.
    for station in stations {
        let _running = station.start(0);
        drop(station.waiting);
    }
    let what = format!(
        "{}, {} threads, {}, {}",
        H::NAME,
        cpus.len(),
        load.as_str(),
        layout.as_str()
    );
    let yardstick = &trials[0];
    let mut rows = Vec::new();
    for (mode, trials) in modes.iter().zip(&trials) {
        rows.extend(rows_of(&what, load, *mode, trials, yardstick));
    }
    rows
}

fn median(trials: &[Trial], get: impl Fn(&Trial) -> f64) -> f64 {
    quantile(&trials.iter().map(get).collect::<Vec<_>>(), 0.5)
}

fn rows_of(what: &str, load: Load, mode: Mode, trials: &[Trial], yardstick: &[Trial]) -> Vec<Row> {
    let by_io = |get: fn(&Counts) -> u64| {
        median(trials, |trial| {
            get(&trial.counts) as f64 / trial.io_count as f64
        })
    };
    let interrupted = trials.iter().map(|trial| trial.interrupted_count);
    let name = mode.as_str();
    let rate = Row::new(what, name, median(trials, |trial| trial.rate), "I/Os a us")
        .beside("work ns", median(trials, |trial| trial.work_ns))
        .beside("syncs", by_io(|counts| counts.sync_count))
        .beside("reads", by_io(|counts| counts.read_count))
        .beside("writes", by_io(|counts| counts.write_count))
        .beside("interrupted", interrupted.sum::<u64>() as f64);
    let is_promised = matches!(mode, Mode::Strict | Mode::StrictShared);
    let mut rows = if is_promised && load == Load::Unlimited {
        vec![rate.with_bar(Bar::AtLeast(LINK_RATE), true)]
    } else {
        vec![rate]
    };
    if matches!(mode, Mode::Deferred | Mode::DeferredSingle) {
        return rows;
    }
    let ratios: Vec<Trial> = trials
        .iter()
        .zip(yardstick)
        .map(|(trial, yardstick)| Trial {
            rate: trial.rate / yardstick.rate,
            work_ns: trial.work_ns / yardstick.work_ns,
            ..*trial
        })
        .collect();
    let ratio = Row::new(
        what,
        name,
        median(&ratios, |ratio| ratio.rate),
        "times deferred",
    )
    .beside("p25", {
        let rates: Vec<f64> = ratios.iter().map(|ratio| ratio.rate).collect();
        quantile(&rates, 0.25)
    })
    .beside("work", median(&ratios, |ratio| ratio.work_ns));
    let leaf = Row::new(
        what,
        name,
        by_io(|counts| counts.leaf_count),
        "leaf commands an I/O",
    );
    let table = Row::new(
        what,
        name,
        by_io(|counts| counts.table_count),
        "table commands",
    );
    if is_promised {
        rows.push(match load {
            Load::Link => ratio.with_bar(Bar::AtLeast(MIN_RATIO), true),
            Load::Unlimited => ratio,
        });
        rows.push(leaf.with_bar(Bar::AtMost(1.0), false));
        rows.push(table.with_bar(Bar::AtMost(0.0), false));
    } else {
        rows.extend([ratio, leaf, table]);
    }
    rows
}

impl<'r, H: Hardware<Registers = Unit>> Station<'r, H> {
    fn new(rig: &'r Rig<H>, mode: Mode, load: Load, layout: Layout, thread_count: usize) -> Self {
        Self {
            rig,
            mode,
            load,
            layout,
            link_free_ns: AtomicU64::new(0),
            waiting: mode.window().map(|window| Deferred::new(rig.set(), window)),
            lanes: Lanes::new(thread_count),
            now_ns: AtomicU64::new(0),
        }
    }

    /// I/Os of a thread in a trial.
    const fn io_count(&self) -> u64 {
        match self.mode {
            // So that some flushes are in it.
            Mode::DeferredSingle => 1 << 16,
            Mode::PageByPage => 1 << 7,
            Mode::Deferred | Mode::Strict | Mode::StrictShared => 1 << 11,
        }
    }

    fn start(&self, lane: usize) -> Running {
        let longest_ns = match self.mode {
            Mode::DeferredSingle => LONGEST_SINGLE_NS,
            _ => LONGEST_NS,
        };
        let now_ns = self.now_ns.load(Ordering::Relaxed);
        Clock::start(&self.lanes, lane, now_ns, longest_ns)
    }

    /// Returns when the link has carried an I/O that a thread has ready at `now_ns`.
    #[expect(clippy::cast_sign_loss, reason = "time does not start below zero")]
    fn carried_ns(&self, now_ns: f64) -> f64 {
        if self.load == Load::Unlimited {
            return now_ns;
        }
        let carry = |free_ns: u64| now_ns.max(free_ns as f64) + LINK_NS;
        let update = |free_ns| Some(carry(free_ns) as u64);
        let (set, fetch) = (Ordering::Relaxed, Ordering::Relaxed);
        match self.link_free_ns.fetch_update(set, fetch, update) {
            Ok(free_ns) | Err(free_ns) => carry(free_ns),
        }
    }

    /// Lets each of `cpus` do its I/Os, at the same time.
    fn run(&self, cpus: &[usize]) -> Trial {
        let start_ns = self.now_ns.load(Ordering::Relaxed);
        for lane in 0..cpus.len() {
            self.lanes.hold(lane, start_ns);
        }
        self.rig.registers().take_counts();
        let readings: Vec<[Reading; 3]> = thread::scope(|scope| {
            let spawn = |(lane, &cpu): (usize, &usize)| {
                scope.spawn(move || {
                    let _running = self.start(lane);
                    cpu::pin(Some(cpu)).expect("the processors are those that the process may use");
                    self.work()
                })
            };
            // All are started before the first is waited for.
            let threads: Vec<_> = cpus.iter().enumerate().map(spawn).collect();
            let join = |thread: thread::ScopedJoinHandle<'_, [Reading; 3]>| {
                let joined = thread.join();
                joined.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            };
            threads.into_iter().map(join).collect()
        });
        let mut trial = Trial {
            counts: self.rig.registers().take_counts(),
            io_count: (WARM_UP_COUNT + self.io_count()) * cpus.len() as u64,
            ..Trial::default()
        };
        let mut end_ns = start_ns;
        for [first, last, end] in readings {
            let io_count = self.io_count() as f64;
            trial.rate += io_count / (last.now_ns - first.now_ns) * 1e3;
            trial.work_ns += (last.work_ns - first.work_ns) / io_count / cpus.len() as f64;
            trial.interrupted_count += last.interrupted_count - first.interrupted_count;
            #[expect(clippy::cast_sign_loss, reason = "time does not start below zero")]
            let end = end.now_ns.ceil() as u64;
            end_ns = end_ns.max(end);
        }
        self.now_ns.store(end_ns, Ordering::Relaxed);
        trial
    }

    /// Does the I/Os of one thread, and reads the clock when the first are done, when the last are, and at
    /// the end.
    fn work(&self) -> [Reading; 3] {
        let total = WARM_UP_COUNT + self.io_count();
        let mut flow = Flow {
            station: self,
            in_device: VecDeque::with_capacity(DEPTH as usize),
            pending: VecDeque::with_capacity(DEPTH as usize),
            started_count: 0,
            ended_count: 0,
            next_look_ns: 0.0,
        };
        let mut first = None;
        let mut now = outside(|clock| clock.reading());
        while flow.ended_count < total {
            flow.step(&mut now, total);
            if flow.ended_count >= WARM_UP_COUNT {
                first.get_or_insert(now);
            }
        }
        let end = outside(|clock| clock.reading());
        [first.unwrap_or(end), now, end]
    }
}

/// The I/Os of one thread.
struct Flow<'s, 'r, H: Hardware> {
    station: &'s Station<'r, H>,
    /// Those that the device has, with the time at which it is done.
    in_device: VecDeque<(IovaAllocation<'r>, f64)>,
    /// Those that the hardware has to forget.
    pending: VecDeque<PendingIova<'r, 'r, Set<H>>>,
    started_count: u64,
    ended_count: u64,
    next_look_ns: f64,
}

impl<'r, H: Hardware<Registers = Unit>> Flow<'_, 'r, H> {
    /// Ends, unmaps and starts one I/O each, or waits if none of that can be done. `now` is the time.
    fn step(&mut self, now: &mut Reading, total: u64) {
        let mut has_moved = self.collect(now.now_ns);
        let is_back = |io: &(IovaAllocation<'_>, f64)| io.1 <= now.now_ns;
        if self.in_device.front().is_some_and(is_back)
            && let Some((buffer, _)) = self.in_device.pop_front()
        {
            self.unmap(buffer);
            has_moved = true;
        }
        let is_free = self.started_count - self.ended_count < DEPTH;
        if is_free && self.started_count < total {
            let rig = self.station.rig;
            let buffer = rig.start(self.station.layout, self.started_count);
            self.started_count += 1;
            *now = outside(|clock| clock.reading());
            let done_ns = self.station.carried_ns(now.now_ns) + DEVICE_NS;
            self.in_device.push_back((buffer, done_ns));
        } else if has_moved {
            *now = outside(|clock| clock.reading());
        } else {
            *now = self.wait();
            self.next_look_ns = 0.0;
        }
    }

    /// Ends those I/Os of which the hardware has nothing any more, in their order, if it is time to look for
    /// them. Returns whether there were any.
    fn collect(&mut self, now_ns: f64) -> bool {
        if now_ns < self.next_look_ns || self.pending.is_empty() {
            return false;
        }
        let ended_count = self.ended_count;
        while self.pending.front_mut().is_some_and(PendingIova::is_done)
            && let Some(pending) = self.pending.pop_front()
        {
            let flushed = pending.wait();
            black_box(flushed.expect("the hardware answers"));
            self.ended_count += 1;
        }
        self.next_look_ns = now_ns + LOOK_NS;
        self.ended_count > ended_count
    }

    /// Unmaps what a device is done with, and has the hardware told, now or later.
    fn unmap(&mut self, buffer: IovaAllocation<'r>) {
        let Station {
            rig, mode, waiting, ..
        } = self.station;
        if *mode == Mode::PageByPage {
            black_box(rig.unmap_page_by_page(buffer));
            self.ended_count += 1;
            return;
        }
        let withdrawn = rig.unmap(buffer);
        if let Some(waiting) = waiting {
            let deferred = withdrawn.defer(waiting, Memory);
            deferred.expect("the hardware answers");
            self.ended_count += 1;
        } else {
            self.pending.push_back(withdrawn.submit(rig.set()));
        }
    }

    /// Waits until the device or the hardware is done with something.
    fn wait(&self) -> Reading {
        let device_ns = self.in_device.front().map(|io| io.1);
        let unit = self.station.rig.registers();
        outside(|clock| {
            let mut then_ns = u64::MAX;
            if let Some(device_ns) = device_ns {
                #[expect(clippy::cast_sign_loss, reason = "time does not start below zero")]
                let device_ns = device_ns.ceil() as u64;
                then_ns = device_ns;
            }
            if !self.pending.is_empty() {
                // Without a SYNC on its way one will be sent by the next look.
                let sync_ns = unit.next_done_ns().unwrap_or(clock.now_ns());
                then_ns = then_ns.min(sync_ns);
            }
            clock.skip_to(then_ns);
            clock.reading()
        })
    }
}
