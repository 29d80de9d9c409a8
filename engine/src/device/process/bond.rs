//! A device and a process that are bound.

use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;
use core::fmt;

use iopt_formats::command::Pasid;
use smallvec::SmallVec;

use crate::device::process::{Process, ProcessDomain};
use crate::device::{
    AttachError, AttachFailure, By, DeviceAddress, GroupDomainError, Hwpt, NewDomainError,
    Ownership, Registry, UnknownDevice,
};
use crate::sync::lockdep;

/// By what right a device is bound to a process; as [`By`], kept.
#[derive(Clone, Debug)]
pub enum Right {
    /// As the driver of the device.
    Driver,
    /// As the owner of its group.
    Owner(Arc<Ownership>),
}

impl Right {
    pub(super) fn by(&self) -> By<'_> {
        match self {
            Self::Driver => By::Driver,
            Self::Owner(ownership) => By::Owner(ownership),
        }
    }
}

/// A device that uses the memory of a process, by the process's PASID. With the last clone of its `Arc` it ends.
///
/// It does not keep the device, nor, by [`Right::Driver`], the right: once no device of the group is there, or no
/// driver is bound to any, nothing is attached. A device can be bound anew then, also while there is the old bond,
/// which is nobody's any more.
pub struct Bond {
    process: Arc<Process>,
    registry: Arc<Registry>,
    device: DeviceAddress,
    /// An owner's claim lasts as long as its bonds.
    _right: Right,
    serial: u64,
}

/// Why a device is not bound to a process.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BindProcessError {
    /// Something else is attached to the PASID.
    #[error("something else is attached to PASID {pasid}")]
    Busy {
        /// The PASID.
        pasid: Pasid,
    },
    /// The process has ended.
    #[error("the process has ended")]
    Exited,
    /// The device cannot walk the process's tables.
    #[error(transparent)]
    Domain(#[from] GroupDomainError),
    /// It cannot be attached.
    #[error(transparent)]
    Attach(AttachError),
    /// No memory.
    #[error("no memory to bind a device")]
    Memory,
}

impl From<UnknownDevice> for BindProcessError {
    fn from(error: UnknownDevice) -> Self {
        Self::Attach(error.into())
    }
}

/// What of a process is bound; S2.
#[derive(Default)]
pub(super) struct Bonds {
    entries: Vec<Entry>,
    attached: Vec<Attached>,
    next_serial: u64,
}

/// A device that is bound.
struct Entry {
    at: At,
    device: DeviceAddress,
    /// Which bond it is of. One that is about to go may have left it to another.
    serial: u64,
    bond: Weak<Bond>,
}

/// A group with a device that is bound.
struct Attached {
    at: At,
    domain: Arc<dyn ProcessDomain>,
    entry_count: usize,
}

#[derive(Clone)]
struct At {
    registry: Arc<Registry>,
    group: usize,
}

impl PartialEq for At {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.registry, &other.registry) && self.group == other.group
    }
}

impl Process {
    /// Binds a device: its requests with the process's PASID use the process's memory. Bound again, it is the same
    /// bond. Devices of a group share what is attached, and each of them needs the right to it and the PASID.
    ///
    /// # Errors
    ///
    /// [`BindProcessError`], with nothing changed.
    pub fn bind(
        self: &Arc<Self>,
        registry: &Arc<Registry>,
        device: DeviceAddress,
        right: &Right,
    ) -> Result<Arc<Bond>, BindProcessError> {
        lockdep::assert_none_held();
        let group = registry.group_of(device)?;
        let at = At {
            registry: Arc::clone(registry),
            group,
        };
        // What others made may not fit, and then one more does.
        let mut made: Option<Arc<dyn ProcessDomain>> = None;
        loop {
            if self.has_exited() {
                return Err(BindProcessError::Exited);
            }
            let bond = self.bind_to_known(&at, device, right);
            registry.look_at(group);
            if let Some(bond) = bond? {
                return Ok(bond);
            }
            if made.is_some() {
                let error = AttachError::Failed {
                    device,
                    error: AttachFailure::Foreign,
                };
                return Err(BindProcessError::Attach(error));
            }
            let domain = registry.new_process_domain(device, self)?;
            if !self.enter(&domain) {
                return Err(BindProcessError::Memory);
            }
            made = Some(domain);
        }
    }

    /// Binds a device by a domain that there is. `None`: none fits.
    fn bind_to_known(
        self: &Arc<Self>,
        at: &At,
        device: DeviceAddress,
        right: &Right,
    ) -> Result<Option<Arc<Bond>>, BindProcessError> {
        // Domains may end with it, without the lock.
        let mut ended = SmallVec::<[Arc<dyn ProcessDomain>; 1]>::new();
        let mut bonds = self.bonds.lock();
        let checked = at.registry.check_pasid(device, right.by(), self.pasid());
        checked.map_err(BindProcessError::Attach)?;
        ended.extend(bonds.forget_ended(at, self.pasid()));
        let serial = bonds.next_serial;
        bonds.next_serial += 1;
        let bond = || {
            Arc::new(Bond {
                process: Arc::clone(self),
                registry: Arc::clone(&at.registry),
                device,
                _right: right.clone(),
                serial,
            })
        };
        let mut entries = bonds.entries.iter_mut();
        if let Some(entry) = entries.find(|entry| entry.at == *at && entry.device == device) {
            if let Some(bond) = entry.bond.upgrade() {
                return Ok(Some(bond));
            }
            // The old bond is gone, and has not come to detach yet: it finds that it need not.
            let bond = bond();
            entry.serial = serial;
            entry.bond = Arc::downgrade(&bond);
            return Ok(Some(bond));
        }
        let no_memory = |_| BindProcessError::Memory;
        bonds.entries.try_reserve(1).map_err(no_memory)?;
        bonds.attached.try_reserve(1).map_err(no_memory)?;
        let mut attached = bonds.attached.iter_mut();
        if let Some(attached) = attached.find(|attached| attached.at == *at) {
            attached.entry_count += 1;
        } else {
            let Some(domain) = self.attach(at, device, right)? else {
                return Ok(None);
            };
            bonds.attached.push(Attached {
                at: at.clone(),
                domain,
                entry_count: 1,
            });
        }
        let bond = bond();
        bonds.entries.push(Entry {
            at: at.clone(),
            device,
            serial,
            bond: Arc::downgrade(&bond),
        });
        Ok(Some(bond))
    }

    /// Attaches the first of the process's domains that fits.
    fn attach(
        &self,
        at: &At,
        device: DeviceAddress,
        right: &Right,
    ) -> Result<Option<Arc<dyn ProcessDomain>>, BindProcessError> {
        let pasid = self.pasid();
        let attached = self.find_domain(|domain| {
            let hwpt = Arc::clone(&domain) as Arc<dyn Hwpt>;
            match at.registry.put_at_pasid(device, right.by(), pasid, &hwpt) {
                Ok(()) => Some(Ok(domain)),
                Err(AttachError::Failed {
                    error: AttachFailure::Foreign,
                    ..
                }) => None,
                Err(AttachError::Attached { pasid }) => Some(Err(BindProcessError::Busy { pasid })),
                Err(error) => Some(Err(BindProcessError::Attach(error))),
            }
        });
        attached.transpose()
    }

    fn unbind(&self, bond: &Bond) {
        let (group, domain) = {
            let mut bonds = self.bonds.lock();
            let mut entries = bonds.entries.iter();
            let Some(at) = entries.position(|entry| entry.serial == bond.serial) else {
                return;
            };
            let entry = bonds.entries.swap_remove(at);
            let mut attached = bonds.attached.iter();
            let Some(at) = attached.position(|attached| attached.at == entry.at) else {
                return;
            };
            let attached = &mut bonds.attached[at];
            attached.entry_count -= 1;
            if attached.entry_count > 0 {
                return;
            }
            let attached = bonds.attached.swap_remove(at);
            let hwpt = Arc::clone(&attached.domain) as Arc<dyn Hwpt>;
            // By the bonds, which were the last: the device may be gone, and the driver unbound.
            let registry = &bond.registry;
            registry.detach_from_pasid(attached.at.group, self.pasid(), &hwpt);
            (attached.at.group, attached.domain)
        };
        // The domain may end here.
        drop(domain);
        bond.registry.look_at(group);
    }
}

impl Bonds {
    /// Forgets the bonds of a group that has lost what was attached by them, as it does with its last device or
    /// its last driver. Returns what was attached.
    fn forget_ended(&mut self, at: &At, pasid: Pasid) -> Option<Arc<dyn ProcessDomain>> {
        let mut attached = self.attached.iter();
        let index = attached.position(|attached| attached.at == *at)?;
        let hwpt = Arc::clone(&self.attached[index].domain) as Arc<dyn Hwpt>;
        if at.registry.is_at(at.group, pasid, &hwpt) {
            return None;
        }
        self.entries.retain(|entry| entry.at != *at);
        Some(self.attached.swap_remove(index).domain)
    }
}

impl Bond {
    /// Returns the process.
    pub const fn process(&self) -> &Arc<Process> {
        &self.process
    }

    /// Returns the device.
    pub const fn device(&self) -> DeviceAddress {
        self.device
    }

    /// Returns the PASID that the device has to use.
    pub fn pasid(&self) -> Pasid {
        self.process.pasid()
    }
}

impl Drop for Bond {
    fn drop(&mut self) {
        self.process.unbind(self);
    }
}

impl fmt::Debug for Bond {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bond")
            .field("process", &self.process)
            .field("device", &self.device)
            .finish_non_exhaustive()
    }
}

impl Registry {
    /// Makes a domain of a process that fits the group of a device.
    ///
    /// # Errors
    ///
    /// [`GroupDomainError`].
    pub fn new_process_domain(
        &self,
        address: DeviceAddress,
        process: &Arc<Process>,
    ) -> Result<Arc<dyn ProcessDomain>, GroupDomainError> {
        let (driver, endpoints) = self.members_for_domain(address)?;
        lockdep::assert_none_held();
        let made: Result<_, NewDomainError> = driver.new_process_domain(process, &endpoints);
        Ok(made?)
    }

    fn group_of(&self, address: DeviceAddress) -> Result<usize, UnknownDevice> {
        Ok(self.machine().group_of(self.number_of(address)?))
    }
}
