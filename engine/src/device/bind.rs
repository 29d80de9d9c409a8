//! Binding drivers to devices: it only asks, and counts.

use alloc::sync::Arc;
use alloc::vec::Vec;

use crate::device::group::Old;
use crate::device::registry::{Bound, State, Status};
use crate::device::{BindError, DeviceAddress, Hwpt, NoIommu, Registry, Report, UnknownDevice};
use crate::sync::MutexGuard;

/// The right to bind, unbind or remove one device: its lock.
///
/// Whoever has it hands it on; nothing in the engine takes it a second time. It must not be taken inside a
/// driver's [`probe`](crate::device::Driver::probe).
#[derive(Debug)]
pub struct DeviceGuard<'a> {
    registry: &'a Registry,
    number: usize,
    _lock: MutexGuard<'a, ()>,
}

impl<'a> DeviceGuard<'a> {
    /// Returns which device it is.
    pub fn address(&self) -> DeviceAddress {
        self.registry.machine().address(self.number)
    }

    /// Returns the registry and the device's number.
    pub(super) const fn place(&self) -> (&'a Registry, usize) {
        (self.registry, self.number)
    }

    /// Binds a driver: asks whether what the device needs is ready, and counts the driver among the users
    /// of the default domain. Probes nothing. The first driver of a group that could not go back to its default
    /// domain has that tried again.
    ///
    /// # Errors
    ///
    /// [`BindError`], with nothing changed.
    pub fn bind(&mut self, usage: Use) -> Result<Binding, BindError> {
        let (registry, number) = (self.registry, self.number);
        let address = self.address();
        let mut state = registry.lock();
        let device = state.device(number).filter(|device| !device.is_removed);
        let device = device.ok_or(UnknownDevice { address })?;
        if device.bound.is_some() {
            return Err(BindError::Bound);
        }
        let (why, group) = match &device.status {
            Status::Waiting | Status::Probing => return Err(BindError::Defer),
            Status::NoIommu(NoIommu::TimedOut) if registry.is_changing(&state, number) => {
                return Err(BindError::Defer);
            }
            Status::NoIommu(why) => (*why, None),
            Status::Probed(probed) => {
                // So is what leaves with its instance.
                if !probed.is_settled || registry.is_changing(&state, number) {
                    return Err(BindError::Defer);
                }
                let group = registry.groups[registry.machine().group_of(number)].lock();
                let is_taken = group.owner.is_some() || group.private_of.is_some();
                if usage == Use::DefaultDomain && is_taken {
                    return Err(BindError::Owned);
                }
                (NoIommu::NoDomain, Some(group))
            }
        };
        let is_claim = group.is_some() && usage == Use::DefaultDomain;
        if let Some(device) = state.device_mut(number) {
            device.bound = Some(Bound {
                is_claim,
                is_translated: group.is_some(),
            });
        }
        let Some(mut group) = group else {
            return Ok(Binding::Untranslated(why));
        };
        // The claim holds from here on; the hardware takes longer.
        drop(state);
        let (mut old, mut unfit) = (Old::new(), None);
        if is_claim {
            group.driver_count += 1;
            // Who had it last may have left it blocked.
            if group.driver_count == 1 && !group.is_in_default() {
                (old, unfit) = group.restore();
            }
        }
        let member = group.members.get(&number);
        let is_there =
            member.is_some_and(|member| member.has_joined) && (!is_claim || group.is_in_default());
        let default = group.default.clone().filter(|_| is_there);
        drop(group);
        drop(old);
        registry.tell_unfit(unfit);
        if is_claim {
            registry.look_at(registry.machine().group_of(number));
        }
        let untranslated = Binding::Untranslated(why);
        Ok(default.map_or(untranslated, Binding::Translated))
    }

    /// Unbinds the driver, if one is bound. When the last one of a group goes, the group is in its default
    /// domain and has no PASID attached. A device that was not translated, on account of an instance that went
    /// meanwhile, waits as others do; where another one has come, until it is [added](Registry::add_device) again.
    pub fn unbind(&mut self) {
        let (registry, number) = (self.registry, self.number);
        let bound = {
            let mut state = registry.lock();
            state.change(&registry.machine(), number, |slot| {
                let device = slot.as_mut()?;
                if core::mem::take(&mut device.is_outdated) {
                    device.status = Status::Waiting;
                }
                device.bound.take()
            })
        };
        if bound.is_some_and(|bound| bound.is_claim) {
            let index = registry.machine().group_of(number);
            let ((old, unfit), has_left_out) = {
                let mut group = registry.groups[index].lock();
                group.driver_count -= 1;
                if group.driver_count == 0 {
                    let is_private = group.private_of.is_some();
                    (group.restore(), is_private && group.has_left_out())
                } else {
                    Default::default()
                }
            };
            drop(old);
            registry.tell_unfit(unfit);
            registry.look_at(index);
            if has_left_out {
                registry.settle_left_out(index);
            }
        }
    }
}

/// What a driver does with its device's DMA.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Use {
    /// It relies on the group's default domain, and so keeps others from owning the group.
    DefaultDomain,
    /// It arranges for itself, or does none: it claims nothing.
    DriverManaged,
}

/// What a bound driver has to know.
#[derive(Clone, Debug)]
#[must_use = "a device that is not translated may need other treatment"]
pub enum Binding {
    /// An IOMMU translates the device's requests; this is its group's default domain.
    Translated(Arc<dyn Hwpt>),
    /// None does.
    Untranslated(NoIommu),
}

impl Registry {
    /// Waits for the right to a device.
    ///
    /// # Errors
    ///
    /// [`UnknownDevice`] if the machine does not have it.
    ///
    /// # Panics
    ///
    /// Debug builds panic if the thread has such a right, or runs in a driver's probe.
    #[cfg_attr(debug_assertions, track_caller)]
    pub fn lock_device(&self, address: DeviceAddress) -> Result<DeviceGuard<'_>, UnknownDevice> {
        let number = self.number_of(address)?;
        Ok(DeviceGuard {
            registry: self,
            number,
            _lock: self.guards[number].lock(),
        })
    }

    /// Takes the right to a device and [binds](DeviceGuard::bind) a driver, after a look at the
    /// [clock](Self::tick).
    ///
    /// # Errors
    ///
    /// As for [`DeviceGuard::bind`].
    pub fn bind_device(&self, address: DeviceAddress, usage: Use) -> Result<Binding, BindError> {
        self.tick();
        self.lock_device(address)?.bind(usage)
    }

    /// Takes the right to a device and [unbinds](DeviceGuard::unbind) its driver.
    ///
    /// # Errors
    ///
    /// [`UnknownDevice`] if the machine does not have it.
    pub fn unbind_device(&self, address: DeviceAddress) -> Result<(), UnknownDevice> {
        self.lock_device(address)?.unbind();
        Ok(())
    }

    /// Says that all devices were added that there are from the start, and all drivers have registered what
    /// they drive, but for those that are loaded later: from now on who waits does so for the
    /// [patience](crate::device::Config::patience) that is configured, and no group waits for a device
    /// that was not added.
    pub fn finish_initialization(&self) {
        let now = self.config.clock.now();
        {
            let mut state = self.lock();
            if state.is_initialised {
                return;
            }
            state.armed_at = now;
            state.end_initialisation(&self.machine());
        }
        // Groups that come later wait for nobody.
        for group in 0..self.machine().group_count() {
            self.settle(group);
        }
        self.tick();
    }

    /// Looks at the clock: if time is over, devices whose instances are missing are taken for such that
    /// have none, and their groups go on without them. Probes nothing.
    pub fn tick(&self) {
        let now = self.config.clock.now();
        let late: Vec<_> = {
            let mut state = self.lock();
            let is_over =
                state.is_initialised && now.saturating_sub(state.armed_at) >= self.config.patience;
            if !is_over || state.waiting.is_empty() {
                return;
            }
            let machine = self.machine();
            let is_missing = |number: &usize| {
                let mut needs = machine.needs(*number);
                needs.any(|identity| state.serving(identity).is_none())
            };
            let late: Vec<_> = state.waiting.iter().copied().filter(is_missing).collect();
            for &number in &late {
                state.change(&machine, number, |device| {
                    if let Some(device) = device {
                        device.status = Status::NoIommu(NoIommu::TimedOut);
                    }
                });
            }
            late
        };
        if !late.is_empty() {
            let machine = self.machine();
            let devices = late.iter().map(|&number| machine.address(number));
            let devices = devices.collect();
            self.tell([Report::TimedOut { devices }]);
            for &number in &late {
                self.settle(machine.group_of(number));
            }
        }
    }

    /// Returns whether an instance of a device comes or goes at this moment.
    pub(super) fn is_changing(&self, state: &State, number: usize) -> bool {
        self.machine().needs(number).any(|identity| {
            let instance = state.instances.get(&identity);
            instance.is_some_and(|instance| instance.is_walking || instance.is_dying)
        })
    }
}
