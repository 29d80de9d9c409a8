//! A trace on a machine.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use iopt::invalidation::deferred::{Deferred, Release, Window};
use iopt::invalidation::{Changes, Flushed, Invalidate, SetTicket, SyncError};
use iopt::radix::TablePolicy;
use iopt_formats::{Iova, IovaRange, Oa, Prot};
use iopt_rig::{Behaviour, Domain, Machine, MachineConfig, RigError};
use iopt_sim::{Outcome, Rights, StaleAccess, Statistics};
use iopt_tools::trace::{Action, DomainEnd, Operation};

use crate::replay::simulate::SimulateFault;

/// As long as the trace says that removals wait for their flush, in ns: what Linux does.
const WINDOW_NS: u64 = 10_000_000;

/// Mismatches that are described; others are counted.
const DETAIL_LIMIT: usize = 10;

/// What a trace on a machine showed.
#[derive(Debug)]
pub(super) struct Found {
    /// What the IOMMU was asked to do.
    pub(super) statistics: Statistics,
    /// Requests of devices.
    pub(super) dma_count: u64,
    /// Outcomes that lead where nothing may lead any more.
    pub(super) stale_count: u64,
    /// Requests that were refused or led astray where the trace maps something.
    pub(super) lost_count: u64,
    /// The first of both.
    pub(super) details: Vec<String>,
}

/// A machine, the domains of a trace on it, and what was found so far.
pub(super) struct Simulation<B: Behaviour> {
    machine: Arc<Machine<B>>,
    is_deferred: bool,
    domain_end: DomainEnd,
    domains: BTreeMap<u32, SimulatedDomain<B>>,
    /// Number of each device, and the domain that it is attached to.
    devices: BTreeMap<Box<str>, (u16, Option<u32>)>,
    found: Found,
}

/// A domain, and what it removed and did not flush.
struct SimulatedDomain<B: Behaviour> {
    domain: Arc<Domain<B>>,
    deferred: Deferred<Told<B>, Removal<B>>,
    waiting: Rc<RefCell<Waiting>>,
    /// The attached devices.
    devices: Vec<u16>,
}

/// Ranges that wait for a flush, by their start.
#[derive(Debug, Default)]
struct Waiting {
    ranges: BTreeMap<Iova, Iova>,
    /// When the first of them came.
    since_ns: u64,
}

/// The hardware of a domain.
struct Told<B: Behaviour>(Arc<Domain<B>>);

impl<B: Behaviour> Invalidate for Told<B> {
    type Ticket = SetTicket;

    fn submit(&self, changes: &Changes) -> Result<SetTicket, SyncError> {
        self.0.set().submit(changes)
    }

    fn wait(&self, ticket: SetTicket) -> Result<(), SyncError> {
        self.0.set().wait(ticket)
    }
}

/// A range that the hardware is yet to forget.
struct Removal<B: Behaviour> {
    domain: Arc<Domain<B>>,
    range: IovaRange,
    waiting: Rc<RefCell<Waiting>>,
}

impl<B: Behaviour> Release for Removal<B> {
    fn release(self, flushed: Flushed) {
        self.waiting.borrow_mut().ranges.remove(&self.range.start());
        self.domain.forgotten(bytes(self.range), &flushed);
    }
}

fn bytes(range: IovaRange) -> std::ops::RangeInclusive<u64> {
    range.start().get()..=range.last().get()
}

impl<B: Behaviour> SimulatedDomain<B> {
    fn new(machine: &Arc<Machine<B>>) -> Result<Self, RigError> {
        let domain = Arc::new(machine.domain()?);
        // The time is that of the trace.
        let window = Window {
            queue_count: 1,
            age: Duration::MAX,
            ..Window::PER_THREAD
        };
        let deferred = Deferred::new(Told(Arc::clone(&domain)), window);
        Ok(Self {
            domain,
            deferred,
            waiting: Rc::default(),
            devices: Vec::new(),
        })
    }

    /// Flushes what waits.
    fn flush(&self) -> Result<(), SimulateFault> {
        Ok(self.deferred.flush().map_err(RigError::from)?)
    }

    /// Flushes what waited long enough by the time of the trace, and before `reused` is used again.
    fn flush_due(&self, now_ns: u64, reused: Option<IovaRange>) -> Result<(), SimulateFault> {
        let is_due = {
            let waiting = self.waiting.borrow();
            let is_old = now_ns.saturating_sub(waiting.since_ns) >= WINDOW_NS;
            let is_reused = reused.is_some_and(|reused| {
                let below = waiting.ranges.range(..=reused.last()).next_back();
                below.is_some_and(|(_, &last)| last >= reused.start())
            });
            !waiting.ranges.is_empty() && (is_old || is_reused)
        };
        if is_due { self.flush() } else { Ok(()) }
    }

    /// Removes a range, and leaves its flush for later.
    fn defer(&self, range: IovaRange, now_ns: u64) -> Result<(), SimulateFault> {
        let gather = self.domain.removed(bytes(range), TablePolicy::Keep)?;
        {
            let mut waiting = self.waiting.borrow_mut();
            if waiting.ranges.is_empty() {
                waiting.since_ns = now_ns;
            }
            waiting.ranges.insert(range.start(), range.last());
        }
        let removal = Removal {
            domain: Arc::clone(&self.domain),
            range,
            waiting: Rc::clone(&self.waiting),
        };
        let result = self.deferred.defer(gather, removal);
        result.map_err(|_| SimulateFault::NotDeferred { range })
    }
}

impl<B: Behaviour> Simulation<B> {
    pub(super) fn new(
        behaviour: B,
        is_deferred: bool,
        domain_end: DomainEnd,
    ) -> Result<Self, RigError> {
        Ok(Self {
            machine: Machine::new(behaviour, MachineConfig::default())?,
            is_deferred,
            domain_end,
            domains: BTreeMap::new(),
            devices: BTreeMap::new(),
            found: Found {
                statistics: Statistics::default(),
                dma_count: 0,
                stale_count: 0,
                lost_count: 0,
                details: Vec::new(),
            },
        })
    }

    /// Does one operation, and what devices do then.
    pub(super) fn step(&mut self, operation: &Operation) -> Result<(), SimulateFault> {
        let Operation {
            time_ns,
            domain,
            ref action,
            ..
        } = *operation;
        let (is_deferred, domain_end) = (self.is_deferred, self.domain_end);
        let simulated = self.domain(domain)?;
        match action {
            &Action::Map { range, oa, prot } => {
                simulated.flush_due(time_ns, Some(range))?;
                simulated.domain.map(bytes(range), oa.get(), prot)?;
                self.reach(domain, range, Some((oa, prot)));
            }
            &Action::Unmap { range } => {
                if is_deferred {
                    simulated.flush_due(time_ns, None)?;
                    simulated.defer(range, time_ns)?;
                } else {
                    simulated.domain.unmap(bytes(range))?;
                }
                self.reach(domain, range, None);
            }
            Action::Attach { device } => self.attach(domain, device)?,
            Action::Detach { device } => {
                self.detach(device)?;
                let simulated = self.domain(domain)?;
                if simulated.devices.is_empty() && domain_end == DomainEnd::LastDetach {
                    simulated.flush()?;
                    self.domains.remove(&domain);
                }
            }
        }
        Ok(())
    }

    /// Flushes everything, holds all that is cached against the trace, and says what was found.
    pub(super) fn finish(mut self) -> Result<Found, SimulateFault> {
        for simulated in self.domains.values() {
            simulated.flush()?;
        }
        if let Err(stale) = self.machine.check_all() {
            self.found.note_stale(&stale);
        }
        self.found.statistics = self.machine.iommu().statistics();
        Ok(self.found)
    }

    fn domain(&mut self, number: u32) -> Result<&SimulatedDomain<B>, RigError> {
        let simulated = match self.domains.remove(&number) {
            Some(simulated) => simulated,
            None => SimulatedDomain::new(&self.machine)?,
        };
        Ok(self.domains.entry(number).or_insert(simulated))
    }

    /// Attaches a device, which leaves the domain that it was in.
    fn attach(&mut self, domain: u32, device: &str) -> Result<(), SimulateFault> {
        self.detach(device)?;
        let number = match self.devices.get(device) {
            Some(&(number, _)) => number,
            None => u16::try_from(self.devices.len()).map_err(|_| SimulateFault::Devices)?,
        };
        self.devices.insert(device.into(), (number, Some(domain)));
        if let Some(simulated) = self.domains.get_mut(&domain) {
            self.machine.attach(&simulated.domain, number, false)?;
            simulated.devices.push(number);
        }
        Ok(())
    }

    fn detach(&mut self, device: &str) -> Result<(), SimulateFault> {
        let Some((number, place)) = self.devices.get_mut(device) else {
            return Ok(());
        };
        let left = place
            .take()
            .and_then(|domain| self.domains.get_mut(&domain));
        if let Some(simulated) = left {
            self.machine.detach(&simulated.domain, *number)?;
            simulated.devices.retain(|device| device != number);
        }
        Ok(())
    }

    /// Lets a device of the domain reach for the first and the last byte of a range that is mapped to
    /// `target`, or was unmapped.
    fn reach(&mut self, domain: u32, range: IovaRange, target: Option<(Oa, Prot)>) {
        let simulated = self.domains.get(&domain);
        let Some(&device) = simulated.and_then(|simulated| simulated.devices.first()) else {
            return;
        };
        let rights = target.map_or(Rights::READ, |(_, prot)| asked(prot));
        for iova in [range.start().get(), range.last().get()] {
            self.found.dma_count += 1;
            let outcome = match self.machine.access(device, iova, rights) {
                Ok(outcome) => outcome,
                Err(stale) => {
                    self.found.note_stale(&stale);
                    continue;
                }
            };
            let Some((oa, _)) = target else {
                continue;
            };
            let expected = oa.get().wrapping_add(iova - range.start().get());
            if !matches!(outcome, Outcome::Translated { oa, .. } if oa == expected) {
                let text = format!(
                    "domain {domain}: {iova:#x} leads to {outcome:?}, not to {expected:#x}"
                );
                self.found.lost_count += 1;
                self.found.note(text);
            }
        }
    }
}

/// Returns what a device may ask for of a mapping.
fn asked(prot: Prot) -> Rights {
    Rights {
        read: prot.can_read(),
        write: prot.can_write(),
    }
}

impl Found {
    fn note_stale(&mut self, stale: &StaleAccess) {
        self.stale_count += 1;
        self.note(stale.to_string());
    }

    fn note(&mut self, text: String) {
        if self.details.len() < DETAIL_LIMIT {
            self.details.push(text);
        }
    }
}
