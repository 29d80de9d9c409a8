//! Threads that change two domains at random, with devices that use them meanwhile.

use std::env;
use std::ops::RangeInclusive;
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use iopt::invalidation::deferred::{Deferred, Release, Window};
use iopt::invalidation::{Flushed, InvalidationSet};
use iopt::radix::TablePolicy;
use iopt_formats::{Format as _, Level, Prot};
use iopt_rig::{Behaviour, Domain, Machine, MachineConfig};
use iopt_sim::{Outcome, Rights, StaleAccess};
use iopt_tests::space::random::Random;

use crate::machines::{MEMORY, range};

/// Devices that stay where they are, one in each domain.
const RESIDENT: [u16; 2] = [1, 2];
/// The first of those that threads move, one each.
const MOVED: u16 = 16;
/// Pieces of IOVA of each thread in each domain.
const SLOT_COUNT: u64 = 12;
/// Pages of a piece whose leaf table others use, too.
const SMALL_PAGES: u64 = 8;
/// Blocks of a piece that has its leaf tables alone.
const LARGE_BLOCKS: u64 = 3;

on_each_behaviour! {
    strict_flushes_leave_nothing_stale
    deferred_flushes_leave_nothing_stale
}

fn strict_flushes_leave_nothing_stale<B: Behaviour>(behaviour: &B) {
    run_all(behaviour, false);
}

fn deferred_flushes_leave_nothing_stale<B: Behaviour>(behaviour: &B) {
    run_all(behaviour, true);
}

fn number(name: &str, default: u64) -> u64 {
    let value = env::var(name).ok().and_then(|value| value.parse().ok());
    value.unwrap_or(default)
}

fn run_all<B: Behaviour>(behaviour: &B, is_deferred: bool) {
    let first = number("IOPT_SIMULATED_SEED", 1);
    for seed in first..first + number("IOPT_SIMULATED_COUNT", 1) {
        let steps = number("IOPT_SIMULATED_STEPS", 150);
        run(behaviour, seed, steps, is_deferred);
    }
}

/// A range that was removed and becomes free with its proof.
struct Freed<'a, B: Behaviour> {
    domain: &'a Domain<B>,
    range: RangeInclusive<u64>,
    slot: &'a Mutex<Slot>,
}

impl<B: Behaviour> Release for Freed<'_, B> {
    fn release(self, flushed: Flushed) {
        self.domain.forgotten(self.range, &flushed);
        *lock(self.slot) = Slot::Free;
    }
}

/// What a thread does with a piece of IOVA.
#[derive(Clone, Debug, Eq, PartialEq)]
enum Slot {
    Free,
    Mapped {
        range: RangeInclusive<u64>,
        oa: u64,
    },
    /// Until its flush.
    Waiting,
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

type Queues<'a, B> = Deferred<
    &'a InvalidationSet<<B as Behaviour>::Planner, <B as Behaviour>::Device>,
    Freed<'a, B>,
>;

/// One thread's part of the world.
struct Worker<'q, 'a, B: Behaviour> {
    machine: &'a Machine<B>,
    domains: &'a [Domain<B>],
    slots: &'a [Vec<Mutex<Slot>>],
    deferred: Option<&'q [Queues<'a, B>]>,
    index: u64,
    thread_count: u64,
    random: Random,
    /// The domain of the thread's own device, if it is attached.
    home: Option<usize>,
}

fn run<B: Behaviour>(behaviour: &B, seed: u64, steps: u64, is_deferred: bool) {
    let name = format!("{behaviour:?}, seed {seed}, deferred {is_deferred}");
    let thread_count = 2 + seed % 3;
    let config = MachineConfig {
        seed,
        // Whoever runs lets time pass for those who do not.
        limit: Duration::from_secs(1 << 30),
        has_shared_syncs: (seed + u64::from(is_deferred)).is_multiple_of(2),
        ..MachineConfig::default()
    };
    let machine = Machine::new(behaviour.clone(), config).expect("the tests need some memory");
    let domains = [(); 2].map(|()| machine.domain().expect("there is memory"));
    for (device, domain) in RESIDENT.into_iter().zip(&domains) {
        let attached = machine.attach(domain, device, device == 2);
        attached.expect("the hardware answers");
    }
    let slots: Vec<Vec<Mutex<Slot>>> = (0..2 * thread_count)
        .map(|_| (0..SLOT_COUNT).map(|_| Mutex::new(Slot::Free)).collect())
        .collect();
    let window = Window {
        queue_count: 2,
        capacity: 8,
        age: Duration::from_secs(3600),
    };
    let queues: Vec<Queues<'_, B>> = domains
        .iter()
        .map(|domain| Deferred::new(domain.set(), window))
        .collect();
    thread::scope(|scope| {
        for index in 0..thread_count {
            let mut worker = Worker {
                machine: &machine,
                domains: &domains,
                slots: &slots[2 * index as usize..][..2],
                deferred: is_deferred.then_some(&queues[..]),
                index,
                thread_count,
                random: Random::new(seed << 8 | index),
                home: None,
            };
            let name = &name;
            scope.spawn(move || {
                for step in 0..steps {
                    worker.step().unwrap_or_else(|stale| {
                        panic!("{name}, thread {index}, step {step}: {stale}")
                    });
                }
            });
        }
    });
    for queue in &queues {
        queue.flush().expect("the hardware answers");
        assert_eq!(queue.waiting_count(), 0);
    }
    finish(&machine, &domains, &slots).unwrap_or_else(|stale| panic!("{name}: {stale}"));
}

/// Removes what is left, and looks for anything of it.
fn finish<B: Behaviour>(
    machine: &Machine<B>,
    domains: &[Domain<B>],
    slots: &[Vec<Mutex<Slot>>],
) -> Result<(), Box<StaleAccess>> {
    machine.check_all()?;
    for (part, slots) in slots.iter().enumerate() {
        for slot in slots {
            let slot = lock(slot).clone();
            assert_ne!(slot, Slot::Waiting);
            let Slot::Mapped { range, oa } = slot else {
                continue;
            };
            let domain = part % 2;
            let device = RESIDENT[domain];
            let outcome = machine.access(device, *range.start(), Rights::ALL)?;
            let is_reached =
                |outcome| matches!(outcome, Outcome::Translated { oa: at, .. } if at == oa);
            assert!(is_reached(outcome), "{outcome:?} in {range:x?}");
            domains[domain]
                .unmap(range.clone())
                .expect("the hardware answers");
            let outcome = machine.access(device, *range.start(), Rights::ALL)?;
            assert!(
                matches!(outcome, Outcome::Refused(_)),
                "{outcome:?} in {range:x?}"
            );
        }
    }
    machine.check_all()
}

impl<B: Behaviour> Worker<'_, '_, B> {
    fn step(&mut self) -> Result<(), Box<StaleAccess>> {
        let domain = self.random.below(2) as usize;
        let number = self.random.below(SLOT_COUNT);
        match self.random.weighted(&[30, 22, 40, 4, 1]) {
            0 => self.map(domain, number),
            1 => self.unmap(domain, number),
            2 => return self.access(domain, number),
            3 => self.move_device(),
            _ => return self.machine.check_all(),
        }
        Ok(())
    }

    fn slot(&self, domain: usize, number: u64) -> &'_ Mutex<Slot> {
        &self.slots[domain][number as usize]
    }

    /// Returns where a slot begins and how long it is at most: small ones of all threads stand side by side.
    fn place(&self, number: u64) -> (u64, u64) {
        let page_len = B::Format::GRANULE.bytes();
        let place = number * self.thread_count + self.index;
        if number.is_multiple_of(3) {
            let len = LARGE_BLOCKS << B::Format::item_lg2(Level(1));
            (len * (16 + place), len)
        } else {
            let len = SMALL_PAGES * page_len;
            (len * (1 + place), len)
        }
    }

    fn map(&mut self, domain: usize, number: u64) {
        if *lock(self.slot(domain, number)) != Slot::Free {
            return;
        }
        let page_len = B::Format::GRANULE.bytes();
        let (start, len) = self.place(number);
        // Whole, or some pages of it.
        let range = if self.random.is_one_in(2) {
            range(start, len)
        } else {
            let first = self.random.below(len / page_len);
            let count = 1 + self.random.below((len / page_len - first).min(40));
            range(start + first * page_len, count * page_len)
        };
        // As it lies in the IOVA, so that there are large leaves, or a page beside that.
        let odd = self.random.below(2) * page_len;
        let oa = MEMORY * (1 + self.random.below(8)) + range.start() + odd;
        let mapped = self.domains[domain].map(range.clone(), oa, Prot::RW);
        mapped.expect("it is free");
        *lock(self.slot(domain, number)) = Slot::Mapped { range, oa };
    }

    fn unmap(&mut self, domain: usize, number: u64) {
        let slot = lock(self.slot(domain, number)).clone();
        let Slot::Mapped { range, .. } = slot else {
            return;
        };
        let tables = if self.random.is_one_in(2) {
            TablePolicy::Detach
        } else {
            TablePolicy::Keep
        };
        let place = &self.domains[domain];
        let Some(queues) = self.deferred else {
            let unmapped = place.unmap_by(range, tables, place.set());
            unmapped.expect("the hardware answers");
            *lock(self.slot(domain, number)) = Slot::Free;
            return;
        };
        *lock(self.slot(domain, number)) = Slot::Waiting;
        let gather = place
            .removed(range.clone(), tables)
            .expect("whole mappings are removed");
        let freed = Freed {
            domain: place,
            range,
            slot: &self.slots[domain][number as usize],
        };
        let deferred = queues[domain].defer(gather, freed);
        assert!(deferred.is_ok(), "the hardware answers");
    }

    /// Has a device use a slot, mapped or not.
    fn access(&mut self, domain: usize, number: u64) -> Result<(), Box<StaleAccess>> {
        let (start, len) = self.place(number);
        let device = match self.home {
            Some(home) if home == domain && self.random.is_one_in(2) => self.device(),
            _ => RESIDENT[domain],
        };
        let slot = lock(self.slot(domain, number)).clone();
        let offset = self.random.below(len);
        let iova = match &slot {
            Slot::Mapped { range, .. } => {
                let len = range.end() - range.start() + 1;
                range.start() + offset % len
            }
            Slot::Free | Slot::Waiting => start + offset,
        };
        let outcome = self.machine.access(device, iova, Rights::ALL)?;
        match (slot, outcome) {
            (Slot::Mapped { range, oa }, Outcome::Translated { oa: reached, .. }) => {
                assert_eq!(reached, oa + (iova - range.start()));
            }
            (Slot::Mapped { .. }, Outcome::Refused(refusal)) => panic!("{refusal:?} at {iova:#x}"),
            (Slot::Free, outcome) => {
                assert!(
                    matches!(outcome, Outcome::Refused(_)),
                    "{outcome:?} at {iova:#x}"
                );
            }
            // Until its flush both may be.
            (Slot::Waiting, _) => {}
        }
        Ok(())
    }

    fn device(&self) -> u16 {
        MOVED + self.index as u16
    }

    /// Takes the thread's device out of its domain, or lets it in.
    fn move_device(&mut self) {
        let device = self.device();
        let domain = self.random.below(2) as usize;
        let moved = if let Some(home) = self.home.take() {
            self.machine.detach(&self.domains[home], device)
        } else {
            self.home = Some(domain);
            let has_ats = self.random.is_one_in(2);
            self.machine.attach(&self.domains[domain], device, has_ats)
        };
        moved.expect("the hardware answers");
    }
}
