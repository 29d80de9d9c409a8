//! Removing devices and unregistering instances.
//!
//! A device that leaves is marked under the registry's lock by one thread, which takes it out of its group,
//! lets the driver release it, and only then lets it go. While the driver is being asked about the device,
//! or told of it, that is left to the thread which does so.
//!
//! A device behind several instances leaves with each of them that goes. Whoever comes first takes it out, and
//! no instance goes before that is done.

use alloc::collections::BTreeSet;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::time::Duration;

use crate::device::group::Old;
use crate::device::registry::{About, Callback, State, Status};
use crate::device::{
    DeviceAddress, DeviceGuard, Endpoint, Identity, NoIommu, Registry, UnregisterError,
};
use crate::sync::{BUS_WALK, Deadline, FINALIZE, Left, pause, thread_index};

/// How long is waited for drivers' callbacks.
const PATIENCE: Duration = Duration::from_secs(if cfg!(test) { 1 } else { 10 });

/// What became of a removal.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Removal {
    /// The device is gone, and nothing of it runs any more.
    Done,
    /// It is gone as soon as a callback of its driver ends, inside which this may be; until then it cannot
    /// be added.
    Pending,
    /// It was not added.
    Absent,
}

impl DeviceGuard<'_> {
    /// Removes a device: its driver is unbound, it is blocked and released. Waits some seconds for a driver
    /// that is asked about it at this moment. Cannot fail.
    pub fn remove(mut self) -> Removal {
        let (registry, number) = self.place();
        self.unbind();
        let mut state = registry.lock();
        let Some(device) = state.device_mut(number) else {
            return Removal::Absent;
        };
        device.is_removed = true;
        let generation = device.generation;
        if device.is_leaving {
            drop(state);
            drop(self);
            return registry.await_removal(number, generation);
        }
        let endpoint = state.change(&registry.machine(), number, |slot| {
            let device = slot.as_mut()?;
            device.is_leaving = true;
            match &device.status {
                Status::Probed(probed) => {
                    device.is_taken_out = true;
                    Some(Arc::clone(&probed.endpoint))
                }
                Status::Probing => None,
                Status::Waiting | Status::NoIommu(_) => {
                    *slot = None;
                    None
                }
            }
        });
        let running = endpoint.map(|endpoint| {
            let running = registry.running(&mut state, About::Release(number));
            (endpoint, running)
        });
        drop(state);
        if let Some((endpoint, _running)) = running {
            registry.take_out(number, &endpoint);
        }
        drop(self);
        // This one may be what others waited for.
        registry.settle(registry.machine().group_of(number));
        registry.await_removal(number, generation)
    }
}

impl Registry {
    /// Unregisters an instance: its devices are blocked, released, and wait for it as before.
    ///
    /// # Errors
    ///
    /// [`UnregisterError`]; the instance serves as before then.
    ///
    /// # Panics
    ///
    /// Debug builds panic if the thread holds the guard of a device.
    pub fn unregister(&self, identity: Identity) -> Result<(), UnregisterError> {
        let (serial, leaving) = {
            let mut state = self.lock();
            let me = thread_index();
            if state.callbacks.iter().any(|callback| callback.thread == me) {
                return Err(UnregisterError::InsideCallback);
            }
            let Some(instance) = state.serving(identity) else {
                return Err(UnregisterError::Unknown { identity });
            };
            let serial = instance.published.serial;
            let devices = self.users(&state, identity);
            if !devices.is_empty() {
                return Err(UnregisterError::InUse { devices });
            }
            (serial, self.mark_leaving(&mut state, identity))
        };
        let has_ended = {
            let _told = FINALIZE.waiting();
            let _asked = BUS_WALK.waiting();
            self.await_callbacks(|callback| self.concerns(callback, identity))
        };
        if has_ended {
            self.end_instance((identity, serial), &leaving);
            return Ok(());
        }
        self.revive((identity, serial), &leaving);
        Err(UnregisterError::Stuck)
    }

    /// Takes an instance back whose registration failed.
    pub(super) fn withdraw(&self, identity: Identity, serial: u64) {
        let (leaving, is_inside) = {
            let mut state = self.lock();
            if !state.is_registered(identity, serial) {
                // Somebody else has unregistered it.
                return;
            }
            let me = thread_index();
            let is_inside = state.callbacks.iter().any(|callback| callback.thread == me);
            (self.mark_leaving(&mut state, identity), is_inside)
        };
        if !is_inside {
            // Nothing depends on their end: who is asked finds the instance gone.
            let _asked = BUS_WALK.waiting();
            self.await_callbacks(|callback| {
                matches!(callback.about, About::Probe(_) | About::Release(_))
                    && self.concerns(callback, identity)
            });
        }
        self.end_instance((identity, serial), &leaving);
    }

    /// Lets an instance serve nobody any more. Returns its devices, which leave, some with others of their
    /// instances, too.
    fn mark_leaving(&self, state: &mut State, identity: Identity) -> Vec<usize> {
        if let Some(instance) = state.instances.get_mut(&identity) {
            instance.is_dying = true;
        }
        let machine = self.machine();
        let mut leaving = Vec::new();
        for &number in machine.devices_of(identity) {
            let device = state.device(number);
            let is_behind = device.is_some_and(|device| {
                matches!(&device.status, Status::Probed(probed)
                    if probed.identities.contains(&identity) && !device.is_taken_out)
            });
            if is_behind {
                state.change(&machine, number, |slot| {
                    if let Some(device) = slot {
                        device.is_leaving = true;
                    }
                });
                leaving.push(number);
            }
        }
        leaving
    }

    /// Releases what leaves with an instance, and forgets it.
    fn end_instance(&self, (identity, serial): (Identity, u64), leaving: &[usize]) {
        for &number in leaving {
            self.release_leaving(number);
        }
        let machine = {
            let mut state = self.lock();
            if state.is_registered(identity, serial) {
                state.instances.remove(&identity);
            }
            // Whoever comes with a machine that grew later finds the instance gone.
            let machine = self.machine();
            for &number in machine.devices_of(identity) {
                state.change(&machine, number, |slot| {
                    if let Some(device) = slot
                        && let Status::NoIommu(
                            NoIommu::Failed | NoIommu::Mixed | NoIommu::NotBehind,
                        ) = device.status
                    {
                        if device.bound.is_some() {
                            device.is_outdated = true;
                        } else {
                            device.status = Status::Waiting;
                        }
                    }
                });
            }
            machine
        };
        self.settle_groups_of(machine.devices_of(identity));
    }

    /// Lets an instance serve again that could not be unregistered.
    fn revive(&self, (identity, serial): (Identity, u64), leaving: &[usize]) {
        let mut removed = Vec::new();
        {
            let mut state = self.lock();
            let instance = state.instances.get_mut(&identity);
            if let Some(instance) = instance.filter(|it| it.published.serial == serial) {
                instance.is_dying = false;
            }
            for &number in leaving {
                let Some(device) = state.device(number) else {
                    continue;
                };
                let Status::Probed(probed) = &device.status else {
                    continue;
                };
                if !device.is_leaving || device.is_taken_out {
                    continue;
                }
                let mut identities = probed.identities.iter();
                if device.is_removed {
                    removed.push(number);
                } else if identities.all(|&identity| state.serving(identity).is_some()) {
                    state.change(&self.machine(), number, |slot| {
                        if let Some(device) = slot {
                            device.is_leaving = false;
                        }
                    });
                }
                // Otherwise another instance goes, and takes it along or lets it stay.
            }
        }
        for number in removed {
            self.release_leaving(number);
        }
        self.walk_again(identity);
        self.settle_groups_of(self.machine().devices_of(identity));
    }

    /// Takes a device that leaves out, unless somebody else does.
    fn release_leaving(&self, number: usize) {
        let (endpoint, _running) = {
            let mut state = self.lock();
            let device = state.device_mut(number);
            let Some(device) = device.filter(|device| device.is_leaving && !device.is_taken_out)
            else {
                return;
            };
            let Status::Probed(probed) = &device.status else {
                return;
            };
            let endpoint = Arc::clone(&probed.endpoint);
            device.is_taken_out = true;
            (endpoint, self.running(&mut state, About::Release(number)))
        };
        self.take_out(number, &endpoint);
    }

    /// Takes a device that leaves out of its group and releases it, or leaves that to who tells its driver
    /// of it.
    fn take_out(&self, number: usize, endpoint: &Arc<dyn Endpoint>) {
        let group = self.machine().group_of(number);
        let member = {
            let mut inner = self.groups[group].lock();
            inner.part(number);
            inner.members.remove(&number)
        };
        drop(member);
        let (old, is_handed_over) = {
            let mut state = self.lock();
            let slot = &mut state.slots[group];
            slot.endpoint_count -= 1;
            let is_empty = slot.endpoint_count == 0 && !slot.is_working;
            slot.is_complete &= slot.endpoint_count > 0;
            let old: Option<Old> = is_empty.then(|| self.groups[group].lock().forget());
            let telling = About::Settle(group, Some(number));
            let mut callbacks = state.callbacks.iter();
            let is_told = callbacks.any(|callback| callback.about == telling);
            if let Some(device) = state.device_mut(number) {
                device.is_handed_over = is_told;
            }
            (old, is_told)
        };
        drop(old);
        if !is_handed_over {
            self.release(number, endpoint);
        }
    }

    /// Waits until a removed device is gone, if somebody else lets it go.
    fn await_removal(&self, number: usize, generation: u64) -> Removal {
        // A fresh one may be there by then.
        let has_ended = |state: &State| {
            let device = state.device(number);
            device.is_none_or(|device| device.generation != generation)
        };
        {
            let state = self.lock();
            if has_ended(&state) {
                return Removal::Done;
            }
            let me = thread_index();
            let mut callbacks = state.callbacks.iter();
            let is_inside = callbacks.any(|callback| callback.thread == me);
            let is_told = state
                .device(number)
                .is_some_and(|device| device.is_handed_over);
            if is_inside || is_told {
                return Removal::Pending;
            }
        }
        let _waiting = BUS_WALK.waiting();
        if self.await_state(has_ended) {
            Removal::Done
        } else {
            Removal::Pending
        }
    }

    /// Waits until none of some callbacks runs. Returns false if they do not end.
    fn await_callbacks(&self, is_meant: impl Fn(&Callback) -> bool) -> bool {
        self.await_state(|state| !state.callbacks.iter().any(&is_meant))
    }

    /// Waits for something that is noted under the lock, some seconds at most. Returns whether it came.
    fn await_state(&self, has_come: impl Fn(&State) -> bool) -> bool {
        let mut deadline = Deadline::after(PATIENCE);
        let mut turn = 0;
        while !has_come(&self.lock()) {
            if deadline.left() == Left::Nothing {
                return false;
            }
            pause(turn);
            turn = turn.saturating_add(1);
        }
        true
    }

    fn concerns(&self, callback: &Callback, identity: Identity) -> bool {
        match callback.about {
            About::Probe(number) | About::Release(number) => self
                .machine()
                .needs(number)
                .any(|needed| needed == identity),
            About::Settle(group, _) => {
                let machine = self.machine();
                let identities = machine.instances_of(group);
                identities.binary_search(&identity).is_ok()
            }
        }
    }

    /// Returns the devices on account of which an instance has to stay.
    fn users(&self, state: &State, identity: Identity) -> Vec<DeviceAddress> {
        let machine = self.machine();
        let mut users = BTreeSet::new();
        for &number in machine.devices_of(identity) {
            let Some(device) = state.device(number) else {
                continue;
            };
            let Some(probed) = device.probed() else {
                continue;
            };
            let is_bound = device
                .bound
                .as_ref()
                .is_some_and(|bound| bound.is_translated);
            let is_owned = || {
                let group = machine.group_of(number);
                self.groups[group].lock().owner.is_some()
            };
            if probed.identities.contains(&identity) && (is_bound || is_owned()) {
                users.insert(machine.address(number));
            }
        }
        if let Identity::Described(index) = identity {
            for address in machine.consumers(index) {
                let device = machine.number_of(address);
                let device = device.and_then(|number| state.device(number));
                if device.is_some_and(|device| device.bound.is_some()) {
                    users.insert(address);
                }
            }
        }
        users.into_iter().collect()
    }
}
