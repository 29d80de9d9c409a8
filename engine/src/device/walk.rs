//! Adding devices and registering instances: the only two things that probe.
//!
//! # The protocol
//!
//! - **B1** (one asks): a device that waits and has all of its instances is taken to `Probing` under the
//!   registry's lock, by one thread; others leave it to that one, and bind defers.
//! - **B2** (both see): a device is entered before it looks for its instances, and an instance is published
//!   before it looks for its devices, both under the registry's lock. So one of the two finds the other.
//! - **B3** (looked at again): a driver is asked with no lock held. Afterwards the device's generation, its
//!   leaving and the registrations of its instances are looked at again under the lock; who finds a change
//!   releases what was probed, and only then lets the device go.
//! - **B4** (published is ready): an instance enters the registry whole, by one value.
//! - **B5** (nothing stays half done): what is entered for the time of a callback ends with it, also if it panics:
//!   a probe that does has failed, and the walk is over. Groups are seen to again when one of their devices is
//!   added.

use alloc::boxed::Box;
use alloc::collections::BTreeSet;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::any::Any;
use core::error::Error;
use core::fmt;
use core::mem;

use smallvec::SmallVec;

use crate::device::driver::Published;
use crate::device::group::Member;
use crate::device::registry::{About, Device, Instance, Probed, Running, State, Status};
use crate::device::{
    AddError, Condition, DeviceAddress, Driver, Endpoint, Identity, NoIommu, ProbeError,
    ProbeRequest, RegisterError, Registry, Report,
};
use crate::sync::{BUS_WALK, lockdep};

/// An instance, ready to be used.
#[derive(Clone)]
pub struct Registration {
    /// Which it is: the one thing by which devices find it.
    pub identity: Identity,
    /// Who drives it.
    pub driver: Arc<dyn Driver>,
    /// What the driver gets back whenever a device of the instance is concerned.
    pub instance: Arc<dyn Any + Send + Sync>,
}

impl fmt::Debug for Registration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registration")
            .field("identity", &self.identity)
            .field("driver", &self.driver)
            .finish_non_exhaustive()
    }
}

/// What makes a walk end before its end.
pub(super) struct Fatal {
    device: DeviceAddress,
    error: Box<dyn Error + Send + Sync>,
}

/// A device that is about to be asked about.
struct Job<'a> {
    number: usize,
    generation: u64,
    driver: Arc<dyn Driver>,
    /// All that the device needs.
    instances: SmallVec<[Published; 1]>,
    _running: Running<'a>,
}

/// What becomes of a device that is looked at.
enum Outlook {
    /// Nothing, for now.
    Unchanged,
    Ask(Arc<dyn Driver>, SmallVec<[Published; 1]>),
    NoIommu(NoIommu),
}

impl Registry {
    /// Adds a device, and probes it if its instances are there. A device that was added before is tried
    /// again if its driver could not take it in then; otherwise nothing happens.
    ///
    /// # Errors
    ///
    /// [`AddError`].
    pub fn add_device(&self, address: DeviceAddress) -> Result<(), AddError> {
        let number = self.number_of(address)?;
        {
            let mut state = self.lock();
            let generation = state.next_number();
            let added = state.change(&self.machine(), number, |device| match device {
                None => {
                    *device = Some(Device::new(generation));
                    Ok(())
                }
                Some(device) if device.is_leaving => Err(AddError::Leaving { address }),
                Some(device) => {
                    if matches!(device.status, Status::NoIommu(NoIommu::Failed))
                        && device.bound.is_none()
                    {
                        device.status = Status::Waiting;
                    }
                    Ok(())
                }
            });
            added?;
        }
        self.probe_late(number);
        self.settle(self.machine().group_of(number));
        Ok(())
    }

    /// Registers an instance and takes in all of its devices that wait for it: when this returns each of
    /// them has a group, and each group of which no other member is awaited its default domain.
    ///
    /// # Errors
    ///
    /// [`RegisterError`]; nothing of the instance is left then, and others are as before.
    pub fn register(&self, registration: Registration) -> Result<(), RegisterError> {
        let identity = registration.identity;
        let serial = self.publish(registration)?;
        let walk = Walk {
            registry: self,
            identity,
            serial,
        };
        // Devices that become known later find the instance.
        for &number in self.machine().devices_of(identity) {
            if let Err(Fatal { device, error }) = self.probe(number) {
                self.withdraw(identity, serial);
                return Err(RegisterError::Fatal {
                    identity,
                    device,
                    error,
                });
            }
        }
        drop(walk);
        // With the groups that the machine got during the walk: they waited for its end, too.
        let machine = self.machine();
        self.settle_groups_of(machine.devices_of(identity));
        Ok(())
    }

    /// Sees to the newcomers of the groups of some devices.
    pub(super) fn settle_groups_of(&self, numbers: &[usize]) {
        let machine = self.machine();
        let groups = numbers.iter().map(|&number| machine.group_of(number));
        let groups: BTreeSet<_> = groups.collect();
        for group in groups {
            self.settle(group);
        }
    }

    /// Probes what waits for an instance again, for which it may have been in vain.
    pub(super) fn walk_again(&self, identity: Identity) {
        for &number in self.machine().devices_of(identity) {
            self.probe_late(number);
        }
    }

    /// Probes a device whose instances were registered before: one that turns out unusable stays, and is reported.
    fn probe_late(&self, number: usize) {
        if let Err(Fatal { device, error }) = self.probe(number) {
            let error = ProbeError::Fatal(error);
            self.tell([Report::ProbeFailed { device, error }]);
        }
    }

    fn publish(&self, registration: Registration) -> Result<u64, RegisterError> {
        let Registration {
            identity,
            driver,
            instance,
        } = registration;
        let now = self.config.clock.now();
        let tells_devices_apart = driver.tells_devices_apart();
        let mut state = self.lock();
        let machine = self.machine();
        if !machine.is_known(identity) {
            return Err(RegisterError::Unknown { identity });
        }
        let facts = machine.facts(identity);
        if !facts.is_enabled {
            return Err(RegisterError::Disabled { identity });
        }
        if facts.tells_devices_apart
            && !tells_devices_apart
            && machine.devices_of(identity).len() > 1
        {
            return Err(RegisterError::Apart { identity });
        }
        if state.instances.contains_key(&identity) {
            return Err(RegisterError::Twice { identity });
        }
        if matches!(identity, Identity::Anonymous(_)) {
            let all = Identity::Anonymous(0)..=Identity::Anonymous(u32::MAX);
            let mut anonymous = state.instances.range(all);
            if anonymous.any(|(_, other)| !is_same(&other.driver, &driver)) {
                return Err(RegisterError::AnotherDriver);
            }
        }
        let serial = state.next_number();
        let published = Published {
            identity,
            serial,
            instance,
        };
        let instance = Instance {
            published,
            driver,
            tells_devices_apart,
            is_walking: true,
            is_dying: false,
        };
        state.instances.insert(identity, instance);
        state.armed_at = now;
        Ok(serial)
    }

    /// Probes a device if it is time, until nothing changes any more.
    pub(super) fn probe(&self, number: usize) -> Result<(), Fatal> {
        // What was probed in vain is tried again, as somebody may have left it to this thread meanwhile.
        while let Some(job) = self.begin_probe(number) {
            let unanswered = Unanswered {
                registry: self,
                job: &job,
            };
            let answer = self.ask(&job);
            mem::forget(unanswered);
            if let Some(result) = self.end_probe(&job, answer) {
                return result;
            }
        }
        Ok(())
    }

    fn begin_probe(&self, number: usize) -> Option<Job<'_>> {
        let address = self.machine().address(number);
        let mut state = self.lock();
        match self.outlook(&state, number) {
            Outlook::Unchanged => {
                let late = self.late(&state, number);
                drop(state);
                self.tell(late);
                None
            }
            Outlook::NoIommu(why) => {
                let is_news = state.change(&self.machine(), number, |device| {
                    device.as_mut().is_some_and(|device| {
                        device.status = Status::NoIommu(why);
                        why != NoIommu::NotBehind
                    })
                });
                drop(state);
                let device = address;
                self.tell(is_news.then_some(Report::NoIommu { device, why }));
                None
            }
            Outlook::Ask(driver, instances) => {
                let generation = state.change(&self.machine(), number, |device| {
                    let device = device.as_mut()?;
                    device.status = Status::Probing;
                    Some(device.generation)
                })?;
                let running = self.running(&mut state, About::Probe(number));
                Some(Job {
                    number,
                    generation,
                    driver,
                    instances,
                    _running: running,
                })
            }
        }
    }

    /// Says what the machine and the instances mean for a device.
    fn outlook(&self, state: &State, number: usize) -> Outlook {
        let Some(device) = state.device(number) else {
            return Outlook::Unchanged;
        };
        let is_open = matches!(
            device.status,
            Status::Waiting | Status::NoIommu(NoIommu::TimedOut)
        );
        if !is_open || device.is_leaving || device.bound.is_some() {
            return Outlook::Unchanged;
        }
        let machine = self.machine();
        let address = machine.address(number);
        if let Some(refusal) = machine.resolved(number).refusal {
            return Outlook::NoIommu(NoIommu::Refused(refusal));
        }
        let mut instances = SmallVec::new();
        let mut driver: Option<Arc<dyn Driver>> = None;
        let mut is_missing = false;
        let mut is_mixed = false;
        for identity in machine.needs(number) {
            let facts = machine.facts(identity);
            if !facts.is_enabled {
                return Outlook::NoIommu(NoIommu::Disabled);
            }
            if facts.hardware == Some(address) {
                return Outlook::NoIommu(NoIommu::SelfTranslation);
            }
            let Some(instance) = state.serving(identity) else {
                is_missing = true;
                continue;
            };
            match &driver {
                None => driver = Some(Arc::clone(&instance.driver)),
                Some(driver) => is_mixed |= !is_same(driver, &instance.driver),
            }
            instances.push(instance.published.clone());
        }
        match driver {
            _ if is_missing => Outlook::Unchanged,
            _ if is_mixed => Outlook::NoIommu(NoIommu::Mixed),
            Some(driver) => Outlook::Ask(driver, instances),
            None => Outlook::NoIommu(NoIommu::NotBehind),
        }
    }

    /// Says which instance came when a driver was bound already.
    fn late(&self, state: &State, number: usize) -> Option<Report> {
        let device = state.device(number)?;
        let is_late = device.is_outdated
            || matches!(
                device.status,
                Status::Waiting | Status::NoIommu(NoIommu::TimedOut)
            );
        let machine = self.machine();
        let mut needs = machine.needs(number);
        let instance = machine.needs(number).last()?;
        let is_there = needs.all(|identity| state.serving(identity).is_some());
        (is_late && device.bound.is_some() && is_there).then(|| Report::Late {
            device: machine.address(number),
            instance,
        })
    }

    /// Asks the driver, with no lock held.
    fn ask(&self, job: &Job<'_>) -> Result<Probed, ProbeError> {
        let machine = self.machine();
        let device = machine.resolved(job.number);
        // Those that no rule names are one of the instances', which the instances know.
        let at_once = if device.streams.is_empty() {
            1
        } else {
            job.instances.len()
        };
        for instances in job.instances.chunks(at_once.max(1)) {
            let _running = BUS_WALK.running();
            lockdep::assert_none_held();
            match job.driver.probe(&ProbeRequest { device, instances }) {
                Ok(endpoint) => {
                    let identities = instances.iter().map(|published| published.identity);
                    return Ok(Probed {
                        endpoint,
                        identities: identities.collect(),
                        is_settled: false,
                    });
                }
                Err(ProbeError::NotMine) => {}
                Err(error) => return Err(error),
            }
        }
        Err(ProbeError::NotMine)
    }

    /// Enters what the driver said, or finds that it does not hold any more: then there is no result, and
    /// the device may be looked at anew.
    fn end_probe(
        &self,
        job: &Job<'_>,
        answer: Result<Probed, ProbeError>,
    ) -> Option<Result<(), Fatal>> {
        let number = job.number;
        let device = self.machine().address(number);
        let mut state = self.lock();
        if !state.still_holds(job) {
            drop(state);
            let _end = GivenUp {
                registry: self,
                job,
            };
            if let Ok(probed) = answer {
                release(&probed.endpoint);
            }
            return None;
        }
        let (status, error) = match answer {
            Ok(probed) => {
                let member = Member {
                    generation: job.generation,
                    endpoint: Arc::clone(&probed.endpoint),
                    driver: Arc::clone(&job.driver),
                    has_joined: false,
                    is_told: false,
                    is_resetting: false,
                    condition: Condition::Sound,
                };
                let group = self.machine().group_of(number);
                let mut inner = self.groups[group].lock();
                inner.members.insert(number, member);
                inner.newcomers.push(number);
                drop(inner);
                let slot = &mut state.slots[group];
                slot.endpoint_count += 1;
                slot.has_newcomers = true;
                (Status::Probed(probed), None)
            }
            Err(ProbeError::NotMine) => (Status::NoIommu(NoIommu::NotBehind), None),
            Err(error) => (Status::NoIommu(NoIommu::Failed), Some(error)),
        };
        let is_named = !self.machine().resolved(number).streams.is_empty();
        let is_news = is_named && matches!(status, Status::NoIommu(NoIommu::NotBehind));
        state.change(&self.machine(), number, |device| {
            if let Some(device) = device {
                device.status = status;
            }
        });
        drop(state);
        let why = NoIommu::NotBehind;
        self.tell(is_news.then_some(Report::NoIommu { device, why }));
        match error {
            None => Some(Ok(())),
            Some(ProbeError::Fatal(error)) => Some(Err(Fatal { device, error })),
            Some(error) => {
                self.tell([Report::ProbeFailed { device, error }]);
                Some(Ok(()))
            }
        }
    }

    /// Lets a device wait again, or ends its removal, which waited for this.
    fn give_up_probe(&self, job: &Job<'_>) {
        let mut state = self.lock();
        let device = state.device(job.number);
        if device.is_some_and(|device| device.generation == job.generation) {
            state.end_leaving(&self.machine(), job.number);
        }
    }

    /// Returns the instances that are registered, in rising order.
    pub fn instances(&self) -> Vec<Identity> {
        self.lock().instances.keys().copied().collect()
    }
}

/// The walk of an instance that is registered. It is over when this is dropped.
struct Walk<'a> {
    registry: &'a Registry,
    identity: Identity,
    serial: u64,
}

impl Drop for Walk<'_> {
    fn drop(&mut self) {
        let mut state = self.registry.lock();
        let instance = state.instances.get_mut(&self.identity);
        // Another one of this identity has a walk of its own.
        if let Some(instance) = instance.filter(|it| it.published.serial == self.serial) {
            instance.is_walking = false;
        }
    }
}

/// A driver that is being asked. Dropped, it panicked.
struct Unanswered<'a> {
    registry: &'a Registry,
    job: &'a Job<'a>,
}

impl Drop for Unanswered<'_> {
    fn drop(&mut self) {
        let registry = self.registry;
        let mut state = registry.lock();
        if state.still_holds(self.job) {
            state.change(&registry.machine(), self.job.number, |device| {
                if let Some(device) = device {
                    device.status = Status::NoIommu(NoIommu::Failed);
                }
            });
        } else {
            drop(state);
            registry.give_up_probe(self.job);
        }
    }
}

/// A probe in vain, which is over when this is dropped.
struct GivenUp<'a> {
    registry: &'a Registry,
    job: &'a Job<'a>,
}

impl Drop for GivenUp<'_> {
    fn drop(&mut self) {
        self.registry.give_up_probe(self.job);
    }
}

impl State {
    /// Returns whether nothing that a probe relied on has changed.
    fn still_holds(&self, job: &Job<'_>) -> bool {
        let is_same_device = self.device(job.number).is_some_and(|device| {
            device.generation == job.generation
                && !device.is_leaving
                && matches!(device.status, Status::Probing)
        });
        let is_same_instance = |published: &Published| {
            let instance = self.serving(published.identity);
            instance.is_some_and(|instance| instance.published.serial == published.serial)
        };
        is_same_device && job.instances.iter().all(is_same_instance)
    }
}

/// Returns whether two instances have the same driver, by the value that they share.
pub(super) fn is_same(one: &Arc<dyn Driver>, other: &Arc<dyn Driver>) -> bool {
    core::ptr::addr_eq(Arc::as_ptr(one), Arc::as_ptr(other))
}

/// Lets a driver let go of a device, which is blocked and in no group.
fn release(endpoint: &Arc<dyn Endpoint>) {
    lockdep::assert_none_held();
    endpoint.release();
}

impl Registry {
    /// Lets a driver let go of a device that leaves; it has left then, also if the driver panicked.
    pub(super) fn release(&self, number: usize, endpoint: &Arc<dyn Endpoint>) {
        let _end = Leaving {
            registry: self,
            number,
        };
        release(endpoint);
        let condition = endpoint.look_after(false);
        let device = self.machine().address(number);
        let is_news = condition != Condition::Sound;
        self.tell(is_news.then_some(Report::Condition { device, condition }));
    }
}

/// A device that leaves, and has left when this is dropped.
struct Leaving<'a> {
    registry: &'a Registry,
    number: usize,
}

impl Drop for Leaving<'_> {
    fn drop(&mut self) {
        let mut state = self.registry.lock();
        state.end_leaving(&self.registry.machine(), self.number);
    }
}
