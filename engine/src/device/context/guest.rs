//! A guest that has its own tables and gives its own commands: what is the same of it on all architectures.
//!
//! A guest thinks that it has an IOMMU. Its tables stand in its own memory, at addresses that a parent domain
//! translates; so whatever they say, and however stale hardware's copies of them are, requests end in memory of
//! the guest. Its commands make hardware forget such copies: they are carried out with the host's names in
//! place of the guest's, about what is the guest's alone.

use alloc::sync::Arc;
use alloc::vec::Vec;

use iopt_formats::command::CommandError;

use crate::invalidation::SyncError;
use crate::sync::atomic::{AtomicU64, Ordering};
use crate::sync::{GUEST_DEVICES, Mutex, MutexGuard};

/// Why nothing can be nested in a parent at an instance.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum NestError {
    /// The parent has no tables that translate what leaves a guest's.
    #[error("the parent is no second stage of the host")]
    NoSecondStage,
    /// The instance cannot walk the parent's tables: it is for others.
    #[error("the parent does not fit the instance")]
    Foreign,
    /// The guest's stage could have devices read past the caches what the host has not written back: what was in
    /// the memory before it was the guest's.
    #[error("the parent leaves it to the guest whether devices are coherent")]
    Incoherent,
    /// The instance cannot have two stages at once.
    #[error("the instance does not nest")]
    Unsupported,
}

/// How many domains a guest may have.
#[derive(Debug)]
pub(in crate::device) struct Permits {
    used: Arc<AtomicU64>,
    limit: u64,
}

/// The right to one more domain, until it is dropped.
#[derive(Debug)]
pub(in crate::device) struct Permit(Arc<AtomicU64>);

impl Permits {
    pub(in crate::device) fn new(limit: u64) -> Self {
        let used = Arc::new(AtomicU64::new(0));
        Self { used, limit }
    }

    /// Returns one, if there are any.
    pub(in crate::device) fn take(&self) -> Option<Permit> {
        let more = |used| (used < self.limit).then_some(used + 1);
        let taken = self
            .used
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, more);
        taken.ok().map(|_| Permit(Arc::clone(&self.used)))
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The first of a guest's commands that was not carried out. All before it were: its index is their number.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("command {index} of the guest: {refusal}")]
pub struct GuestCommandError {
    /// The number of commands that were carried out.
    pub index: usize,
    /// Why this one was not.
    #[source]
    pub refusal: Refusal,
}

/// Why a guest's command is not carried out.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// It is about what is not the guest's, or for whoever emulates the rest of its IOMMU.
    #[error("it is none that a guest can give")]
    Forbidden,
    /// It names no device of the guest.
    #[error("the guest has no device {id:#x}")]
    Device {
        /// The device's ID, as the guest has it.
        id: u32,
    },
    /// The hardware does not have it in this form.
    #[error("the hardware does not have it: {0}")]
    Illegal(#[source] CommandError),
    /// Hardware failed or did not answer. Of commands that stood together, none is known to be carried out.
    #[error(transparent)]
    Hardware(#[from] SyncError),
}

/// Why a device does not become a guest's.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum GuestDeviceError {
    /// The guest's ID or the host's is one of a device that the guest has.
    #[error("the guest has a device of that ID")]
    Taken,
    /// The instance has no context of that ID.
    #[error("the instance knows no device {id:#x}")]
    Unknown {
        /// The device's ID, as the host has it.
        id: u32,
    },
    /// It has no ID of the host.
    #[error("the device has no ID")]
    Nameless,
    /// No memory to note it.
    #[error("no memory to note a guest's device")]
    Memory,
}

/// The devices of one guest at one instance: by which ID the guest knows each, and as what the host does.
#[derive(Debug)]
pub(in crate::device) struct GuestDevices<H> {
    devices: Mutex<NamedDevices<H>>,
}

/// The devices of a guest, by its names for them.
#[derive(Debug)]
pub(in crate::device) struct NamedDevices<H>(Vec<(u32, Vec<H>)>);

impl<H> NamedDevices<H> {
    fn find(&self, guest: u32) -> Result<usize, usize> {
        self.0.binary_search_by_key(&guest, |(name, _)| *name)
    }

    /// Returns the host's IDs of a device.
    #[expect(clippy::trivially_copy_pass_by_ref, reason = "as all maps have it")]
    pub(in crate::device) fn get(&self, guest: &u32) -> Option<&Vec<H>> {
        let at = self.find(*guest).ok()?;
        Some(&self.0[at].1)
    }

    /// Returns the host's IDs of a device, or of all.
    pub(in crate::device) fn of(&self, guest: Option<u32>) -> impl Iterator<Item = &H> {
        let meant = match guest.map(|guest| self.find(guest)) {
            None => &self.0[..],
            Some(Ok(at)) => &self.0[at..=at],
            Some(Err(_)) => &[],
        };
        meant.iter().flat_map(|(_, own)| own)
    }
}

impl<H: Copy + Eq> GuestDevices<H> {
    pub(in crate::device) fn new() -> Self {
        Self {
            devices: Mutex::new(&GUEST_DEVICES, NamedDevices(Vec::new())),
        }
    }

    /// Enters a device. IDs that are given twice count once.
    pub(in crate::device) fn add(&self, guest: u32, host: &[H]) -> Result<(), GuestDeviceError> {
        if host.is_empty() {
            return Err(GuestDeviceError::Nameless);
        }
        let mut own = Vec::new();
        own.try_reserve_exact(host.len())
            .map_err(|_| GuestDeviceError::Memory)?;
        for id in host {
            if !own.contains(id) {
                own.push(*id);
            }
        }
        let mut devices = self.devices.lock();
        let mut others = devices.0.iter().flat_map(|(_, ids)| ids);
        let Err(at) = devices.find(guest) else {
            return Err(GuestDeviceError::Taken);
        };
        if others.any(|other| own.contains(other)) {
            return Err(GuestDeviceError::Taken);
        }
        let reserved = devices.0.try_reserve(1);
        reserved.map_err(|_| GuestDeviceError::Memory)?;
        devices.0.insert(at, (guest, own));
        Ok(())
    }

    /// Returns whether there was such a device. It is not the guest's any more.
    pub(in crate::device) fn remove(&self, guest: u32) -> bool {
        let mut devices = self.devices.lock();
        let found = devices.find(guest);
        let removed = found.map(|at| devices.0.remove(at));
        // Its memory is given back outside the lock.
        drop(devices);
        removed.is_ok()
    }

    pub(in crate::device) fn has(&self, guest: u32) -> bool {
        self.devices.lock().find(guest).is_ok()
    }

    pub(in crate::device) fn lock(&self) -> MutexGuard<'_, NamedDevices<H>> {
        self.devices.lock()
    }
}

/// Carries out a guest's commands in parts, each of which is complete before the next begins, and says which was
/// the first that was not.
pub(in crate::device) fn carry_out<C>(
    commands: &[C],
    check: impl Fn(&C) -> Result<(), Refusal>,
    ends_part: impl Fn(&C) -> bool,
    execute: impl Fn(&[C]) -> Result<(), SyncError>,
) -> Result<(), GuestCommandError> {
    let refused = commands.iter().enumerate().find_map(|(index, command)| {
        let refusal = check(command).err()?;
        Some(GuestCommandError { index, refusal })
    });
    let count = refused.map_or(commands.len(), |error| error.index);
    let mut index = 0;
    for part in commands[..count].split_inclusive(ends_part) {
        execute(part).map_err(|error| GuestCommandError {
            index,
            refusal: error.into(),
        })?;
        index += part.len();
    }
    refused.map_or(Ok(()), Err)
}
