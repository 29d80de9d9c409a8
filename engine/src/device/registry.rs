//! What is registered and added, and how each device stands.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::any::Any;
use core::fmt;
use core::time::Duration;

use smallvec::SmallVec;

use crate::device::driver::Published;
use crate::device::group::Group;
use crate::device::{
    Config, DeviceAddress, Driver, Endpoint, GrowError, Identity, Machine, Refusal, Report,
    UnknownDevice,
};
use crate::sync::{DEVICE_GUARD, Growing, Latest, Mutex, MutexGuard, REGISTRY, thread_index};

/// The devices of a machine, the instances that serve them, and their groups.
///
/// A machine can [grow](Self::grow); what grows with it is never moved.
pub struct Registry {
    /// Replaced under the registry's lock, when all else has grown.
    machine: Latest<Machine>,
    pub(super) config: Config,
    /// Of each device of the machine, and of more at most.
    pub(super) guards: Growing<Mutex<()>>,
    /// Of the machine, and more at most.
    pub(super) groups: Growing<Group>,
    state: Mutex<State>,
}

/// What the registry's lock guards.
pub(super) struct State {
    pub(super) instances: BTreeMap<Identity, Instance>,
    /// By number; `None` is not added.
    devices: Vec<Option<Device>>,
    pub(super) slots: Vec<Slot>,
    /// Calls of drivers, and what is done around them, that others may have to wait for.
    pub(super) callbacks: Vec<Callback>,
    /// Devices that wait for an instance.
    pub(super) waiting: BTreeSet<usize>,
    pub(super) is_initialised: bool,
    /// Since when time is counted.
    pub(super) armed_at: Duration,
    next_number: u64,
}

/// A registered instance.
pub(super) struct Instance {
    pub(super) published: Published,
    pub(super) driver: Arc<dyn Driver>,
    /// What its driver says of it.
    pub(super) tells_devices_apart: bool,
    /// Its devices are being probed.
    pub(super) is_walking: bool,
    /// It serves nobody any more.
    pub(super) is_dying: bool,
}

/// An added device.
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is noted and asked for by somebody else"
)]
pub(super) struct Device {
    /// Of all times that devices were added, which this is.
    pub(super) generation: u64,
    pub(super) status: Status,
    pub(super) bound: Option<Bound>,
    /// Somebody takes it out of its group, and is done with it when this ends.
    pub(super) is_leaving: bool,
    /// Of those who are to take it out one has begun.
    pub(super) is_taken_out: bool,
    /// It is gone once it does not leave any more; otherwise it waits again.
    pub(super) is_removed: bool,
    /// Who tells its driver of its default domain at this moment releases it.
    pub(super) is_handed_over: bool,
    /// While a driver was bound an instance went on account of which it is not translated: it waits once unbound.
    pub(super) is_outdated: bool,
}

pub(super) enum Status {
    /// An instance is missing.
    Waiting,
    /// A driver is being asked.
    Probing,
    /// It is in its group.
    Probed(Probed),
    /// It is not translated.
    NoIommu(NoIommu),
}

pub(super) struct Probed {
    pub(super) endpoint: Arc<dyn Endpoint>,
    /// Who serves it.
    pub(super) identities: SmallVec<[Identity; 1]>,
    /// Whether its group, with it, is ready for drivers.
    pub(super) is_settled: bool,
}

/// Why a device is not translated.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
#[non_exhaustive]
pub enum NoIommu {
    /// No rule names it, and no other instance there is takes it.
    NotBehind,
    /// Firmware says that its instance may not be used.
    Disabled,
    /// It is itself the instance that would translate it.
    SelfTranslation,
    /// It is refused, for what firmware says of it or does not say.
    Refused(Refusal),
    /// Its instances are different drivers'.
    Mixed,
    /// An instance did not come in time.
    TimedOut,
    /// Its driver could not take it in.
    Failed,
    /// Its group has no default domain: it is blocked.
    NoDomain,
}

/// A driver that is bound.
pub(super) struct Bound {
    /// Whether it counts as one of those that use the default domain.
    pub(super) is_claim: bool,
    /// Whether it uses what is behind the device's instances.
    pub(super) is_translated: bool,
}

/// A group, as far as the registry's lock guards it.
#[derive(Default)]
pub(super) struct Slot {
    /// Members of which it is not known yet what becomes of them.
    pub(super) unsettled_count: usize,
    /// Members that are probed.
    pub(super) endpoint_count: usize,
    /// There are members that were not seen to yet.
    pub(super) has_newcomers: bool,
    /// Somebody sees to newcomers.
    pub(super) is_working: bool,
    /// Newcomers join without waiting for more of them.
    pub(super) is_complete: bool,
}

/// Something that runs with no lock held.
pub(super) struct Callback {
    number: u64,
    pub(super) thread: usize,
    pub(super) about: About,
}

#[derive(Clone, Copy, Eq, PartialEq)]
pub(super) enum About {
    /// A probe of a device.
    Probe(usize),
    /// Newcomers of a group; one of them is being told now.
    Settle(usize, Option<usize>),
    /// The release of a device.
    Release(usize),
}

impl Registry {
    /// Creates the registry of a machine, with no device added and no instance registered.
    pub fn new(machine: Arc<Machine>, config: Config) -> Self {
        let mut state = State {
            instances: BTreeMap::new(),
            devices: Vec::new(),
            slots: Vec::new(),
            callbacks: Vec::new(),
            waiting: BTreeSet::new(),
            is_initialised: false,
            armed_at: config.clock.now(),
            next_number: 0,
        };
        state.grow(&machine);
        let (guards, groups) = (Growing::new(), Growing::new());
        grow_all(&guards, &groups, &machine);
        Self {
            machine: Latest::new(machine),
            config,
            guards,
            groups,
            state: Mutex::new(&REGISTRY, state),
        }
    }

    /// Returns the machine, as far as it is known by now.
    pub fn machine(&self) -> Arc<Machine> {
        self.machine.get()
    }

    /// Makes more of the machine known: `machine` is all of it, resolved again with devices that came since,
    /// and with instances behind the known ones. New devices come into groups of their own or into one that
    /// is there. They are [added](Self::add_device) afterwards, as others are.
    ///
    /// Takes as long as all of the machine is large.
    ///
    /// # Errors
    ///
    /// [`GrowError`]; everything is as before then.
    pub fn grow(&self, machine: Machine) -> Result<(), GrowError> {
        let mut state = self.lock();
        let grown = machine.grown_from(&self.machine())?;
        for (&identity, instance) in &state.instances {
            if grown.facts(identity).tells_devices_apart
                && !instance.tells_devices_apart
                && grown.devices_of(identity).len() > 1
            {
                return Err(GrowError::Apart { identity });
            }
        }
        state.grow(&grown);
        grow_all(&self.guards, &self.groups, &grown);
        self.machine.set(Arc::new(grown));
        Ok(())
    }

    /// Returns what an instance was registered with; `None` also if that is no `T`. It can be found from
    /// the moment at which the first device is probed.
    pub fn instance<T: Any + Send + Sync>(&self, identity: Identity) -> Option<Arc<T>> {
        let state = self.lock();
        let instance = &state.instances.get(&identity)?.published.instance;
        let instance = Arc::clone(instance);
        drop(state);
        Arc::downcast(instance).ok()
    }

    /// Returns the device as its driver knows it; `None` if none has taken it in.
    pub fn endpoint(&self, address: DeviceAddress) -> Option<Arc<dyn Endpoint>> {
        let number = self.machine().number_of(address)?;
        let state = self.lock();
        let probed = state.device(number)?.probed()?;
        Some(Arc::clone(&probed.endpoint))
    }

    #[cfg_attr(debug_assertions, track_caller)]
    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    pub(super) fn number_of(&self, address: DeviceAddress) -> Result<usize, UnknownDevice> {
        let number = self.machine().number_of(address);
        number.ok_or(UnknownDevice { address })
    }

    /// Says what came up while the registry was locked.
    pub(super) fn tell(&self, reports: impl IntoIterator<Item = Report>) {
        for report in reports {
            self.config.tell(report);
        }
    }

    /// Notes that something begins to run, until the result is dropped.
    pub(super) fn running(&self, state: &mut State, about: About) -> Running<'_> {
        let number = state.next_number();
        state.callbacks.push(Callback {
            number,
            thread: thread_index(),
            about,
        });
        Running {
            registry: self,
            number,
        }
    }
}

/// Makes what devices and groups have for themselves, as far as it is not there.
fn grow_all(guards: &Growing<Mutex<()>>, groups: &Growing<Group>, machine: &Machine) {
    guards.grow(machine.len(), || Mutex::new(&DEVICE_GUARD, ()));
    groups.grow(machine.group_count(), Group::new);
}

/// Says when it is dropped that something does not run any more, also if it panicked.
pub(super) struct Running<'a> {
    registry: &'a Registry,
    number: u64,
}

impl Running<'_> {
    /// Notes which newcomer is told.
    pub(super) fn tells(&self, state: &mut State, device: Option<usize>) {
        for callback in &mut state.callbacks {
            if callback.number == self.number
                && let About::Settle(group, _) = callback.about
            {
                callback.about = About::Settle(group, device);
            }
        }
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        let mut state = self.registry.lock();
        let number = self.number;
        state.callbacks.retain(|callback| callback.number != number);
    }
}

impl State {
    pub(super) fn next_number(&mut self) -> u64 {
        self.next_number += 1;
        self.next_number
    }

    pub(super) fn device(&self, number: usize) -> Option<&Device> {
        self.devices[number].as_ref()
    }

    /// Returns a device for changes other than of its status, which only [`change`](Self::change) may.
    pub(super) fn device_mut(&mut self, number: usize) -> Option<&mut Device> {
        self.devices[number].as_mut()
    }

    /// Makes room for devices and groups that become known.
    fn grow(&mut self, machine: &Machine) {
        let known = self.devices.len();
        self.devices.resize_with(machine.len(), || None);
        self.slots.resize_with(machine.group_count(), Slot::default);
        for number in known..machine.len() {
            if !self.standing(number).is_settled {
                self.slots[machine.group_of(number)].unsettled_count += 1;
            }
        }
    }

    /// Changes a device, and the counts that depend on it.
    pub(super) fn change<R>(
        &mut self,
        machine: &Machine,
        number: usize,
        change: impl FnOnce(&mut Option<Device>) -> R,
    ) -> R {
        let before = self.standing(number);
        let result = change(&mut self.devices[number]);
        let after = self.standing(number);
        let slot = &mut self.slots[machine.group_of(number)];
        if before.is_settled != after.is_settled {
            if after.is_settled {
                slot.unsettled_count -= 1;
            } else {
                slot.unsettled_count += 1;
            }
        }
        if after.is_waiting {
            self.waiting.insert(number);
        } else {
            self.waiting.remove(&number);
        }
        result
    }

    /// Ends the leaving of a device: it is gone, or waits.
    pub(super) fn end_leaving(&mut self, machine: &Machine, number: usize) {
        self.change(machine, number, |slot| match slot {
            Some(device) if device.is_removed => *slot = None,
            Some(device) => {
                device.is_leaving = false;
                device.is_taken_out = false;
                device.is_handed_over = false;
                device.status = Status::Waiting;
            }
            None => {}
        });
    }

    /// Says that devices which were not added need not be waited for.
    pub(super) fn end_initialisation(&mut self, machine: &Machine) {
        self.is_initialised = true;
        for group in 0..self.slots.len() {
            let members = machine.members_of(group).iter();
            let unsettled = members.filter(|&&number| !self.standing(number).is_settled);
            self.slots[group].unsettled_count = unsettled.count();
        }
    }

    fn standing(&self, number: usize) -> Standing {
        let device = self.device(number).filter(|device| !device.is_leaving);
        let status = device.map(|device| &device.status);
        Standing {
            is_settled: match status {
                None => self.is_initialised,
                Some(Status::Waiting | Status::Probing) => false,
                Some(Status::Probed(_) | Status::NoIommu(_)) => true,
            },
            is_waiting: matches!(status, Some(Status::Waiting)),
        }
    }

    /// Returns whether an instance is registered, and no other one of its identity since.
    pub(super) fn is_registered(&self, identity: Identity, serial: u64) -> bool {
        let instance = self.instances.get(&identity);
        instance.is_some_and(|instance| instance.published.serial == serial)
    }

    /// Returns an instance that serves.
    pub(super) fn serving(&self, identity: Identity) -> Option<&Instance> {
        let instance = self.instances.get(&identity)?;
        (!instance.is_dying).then_some(instance)
    }
}

struct Standing {
    is_settled: bool,
    is_waiting: bool,
}

impl Device {
    /// Creates one that was just added.
    pub(super) const fn new(generation: u64) -> Self {
        Self {
            generation,
            status: Status::Waiting,
            bound: None,
            is_leaving: false,
            is_taken_out: false,
            is_removed: false,
            is_handed_over: false,
            is_outdated: false,
        }
    }

    pub(super) fn probed_mut(&mut self) -> Option<&mut Probed> {
        match &mut self.status {
            Status::Probed(probed) if !self.is_leaving => Some(probed),
            _ => None,
        }
    }

    /// Returns what its driver made of it, unless it leaves.
    pub(super) fn probed(&self) -> Option<&Probed> {
        match &self.status {
            Status::Probed(probed) if !self.is_leaving => Some(probed),
            _ => None,
        }
    }
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.lock();
        f.debug_struct("Registry")
            .field("devices", &state.devices.iter().flatten().count())
            .field("instances", &state.instances.keys())
            .finish_non_exhaustive()
    }
}
