//! A guest that has an IOMMU of its own over a second stage of the host.

use alloc::sync::Arc;
use core::fmt;

use iopt_formats::command::Narrow;
use iopt_formats::command::riscv::{Command, Function};

use crate::device::context::{
    GuestCommandError, GuestDeviceError, GuestDevices, HardwareDomain, NestError, Nesting, Refusal,
    Users, carry_out,
};
use crate::device::riscv::{
    CommandDevice, GuestContext, GuestContextError, RiscvDomain, RiscvIommu, Stage, changes,
};
use crate::invalidation::SyncError;
use crate::invalidation::plan::riscv::{Riscv as Planner, Tag};
use crate::mem::TableMemory;

/// Width of the requester in device IDs; above it are segments.
const REQUESTER_BITS: u8 = 16;

/// An IOMMU as a guest has it, as far as hardware is concerned: a GSCID of its own at one IOMMU, the parent that
/// translates the guest's addresses, and which of the guest's devices are which.
///
/// The guest's PSCIDs mean something beside its GSCID alone, so each of the IOMMUs that a guest may have needs one of
/// these, over the same parent or not. MSI page tables, a guest's or the host's, are not part of it.
///
/// ```text
/// guest's DC -------------> GuestContext ---> nest ---> a domain: attached in place of the guest's device
/// guest's command queue --> invalidate
/// ```
pub struct GuestIommu<M: TableMemory + 'static, D: CommandDevice> {
    unit: Arc<RiscvIommu<M, D>>,
    parent: Arc<RiscvDomain<M, D>>,
    users: Arc<Users<Planner, D>>,
    devices: GuestDevices<u32>,
}

impl<M: TableMemory + 'static, D: CommandDevice> GuestIommu<M, D> {
    /// Creates the IOMMU of a guest whose addresses are those that `parent` translates, for devices behind `unit`.
    ///
    /// # Errors
    ///
    /// - [`NestError::NoSecondStage`] if `parent` has no second-stage tables, or is a guest's itself;
    /// - [`NestError::Foreign`] if `unit` cannot walk them.
    pub fn new(
        unit: &Arc<RiscvIommu<M, D>>,
        parent: &Arc<RiscvDomain<M, D>>,
    ) -> Result<Self, NestError> {
        let (Some(stage @ Stage::Second { .. }), Some(set)) = (parent.stage(), parent.set()) else {
            return Err(NestError::NoSecondStage);
        };
        if !stage.fits(unit.features(), *unit.instance().planner()) {
            return Err(NestError::Foreign);
        }
        Ok(Self {
            unit: Arc::clone(unit),
            parent: Arc::clone(parent),
            users: Users::new(Arc::clone(set)),
            devices: GuestDevices::new(),
        })
    }

    /// Returns what translates the guest's addresses.
    pub const fn parent(&self) -> &Arc<RiscvDomain<M, D>> {
        &self.parent
    }

    /// Returns the GSCID, as long as any domain of the guest that translates is attached.
    pub fn gscid(&self) -> Option<u16> {
        // GSCIDs have 16 bits.
        self.users.id(self.unit.instance()).map(|id| id as u16)
    }

    /// Makes the domain that does with requests what the guest wants. Those that no first stage translates are
    /// translated by the parent all the same.
    ///
    /// # Errors
    ///
    /// [`GuestContextError::Misconfigured`], if it was decoded for other hardware.
    pub fn nest(&self, context: &GuestContext) -> Result<RiscvDomain<M, D>, GuestContextError> {
        let nesting = match (context, self.parent.stage()) {
            (
                GuestContext::First(first),
                Some(
                    parent @ &Stage::Second {
                        format,
                        root,
                        map_side,
                    },
                ),
            ) => {
                if let Some(second) = parent.second(0) {
                    first.check(self.unit.features(), second)?;
                }
                Some(Nesting {
                    users: Arc::clone(&self.users),
                    stage: Stage::Nested {
                        first: *first,
                        format,
                        root,
                        map_side,
                    },
                    at: Arc::clone(self.unit.instance()),
                    allows_ats: first.options.has_ats,
                    // All domains of the guest have one GSCID.
                    permit: None,
                })
            }
            _ => None,
        };
        Ok(HardwareDomain::nested(&self.parent, nesting))
    }

    /// Enters a device: what the guest's commands say of the device ID `guest` is about the device IDs `host`, while a
    /// domain of the guest is attached to them. Segments are the bits of the guest's ID from 16 on.
    ///
    /// # Errors
    ///
    /// [`GuestDeviceError`].
    pub fn add_device(&self, guest: u32, host: &[u32]) -> Result<(), GuestDeviceError> {
        let unknown = host.iter().find(|id| self.unit.words(**id).is_none());
        if let Some(&id) = unknown {
            return Err(GuestDeviceError::Unknown { id });
        }
        self.devices.add(guest, host)
    }

    /// Makes the guest's device ID one that it does not have; returns whether it had it.
    pub fn remove_device(&self, guest: u32) -> bool {
        self.devices.remove(guest)
    }

    /// Carries out commands of the guest, in their order, and waits for them. The guest's GSCID is put in, and device
    /// IDs are replaced by the host's; what names something that is attached to no domain of the guest has nothing to
    /// do. With a fence all before it is complete; what it stores or raises is for whoever emulates the guest's
    /// queue.
    ///
    /// | command | carried out as |
    /// |---|---|
    /// | `IOTINVAL.VMA` without GV | the same of the GSCID |
    /// | `IODIR.INVAL_DDT`, `IODIR.INVAL_PDT`, `ATS.INVAL` | the same of each device ID of the device, or of all devices of the guest; the context itself is for whoever reads the guest's directory |
    /// | any other | refused: a guest has no second stage |
    ///
    /// # Errors
    ///
    /// [`GuestCommandError`]: which one was the first that was not carried out, and why.
    pub fn invalidate(&self, commands: &[Command]) -> Result<(), GuestCommandError> {
        carry_out(
            commands,
            |command| self.check(command),
            |command| matches!(command, Command::IofenceC { .. }),
            |part| self.execute(part),
        )
    }

    /// Returns whether the guest may give a command, and the hardware has it.
    fn check(&self, command: &Command) -> Result<(), Refusal> {
        match command {
            // Carried out without what it signals.
            Command::IofenceC { .. } => {}
            Command::IotinvalVma { gscid: None, .. }
            | Command::IodirInvalDdt { .. }
            | Command::IodirInvalPdt { .. }
            | Command::AtsInval { .. } => {
                let features = self.unit.instance().planner().features;
                command.check(features).map_err(Refusal::Illegal)?;
            }
            _ => return Err(Refusal::Forbidden),
        }
        match named(command) {
            Some(id) if !self.devices.has(id) => Err(Refusal::Device { id }),
            _ => Ok(()),
        }
    }

    /// Carries out commands that were checked.
    fn execute(&self, commands: &[Command]) -> Result<(), SyncError> {
        let Some(gscid) = self.gscid() else {
            // Hardware forgot the guest with its last device.
            return Ok(());
        };
        let set = self.users.set();
        set.execute(self.unit.instance(), |places, emit| {
            let devices = self.devices.lock();
            for command in commands {
                if let Command::IotinvalVma { pscid, target, .. } = *command {
                    // Another one's by now, if it is not there.
                    if places.has(Tag::Combined { gscid }) {
                        emit(Command::IotinvalVma {
                            gscid: Some(gscid),
                            pscid,
                            target,
                        });
                    }
                    continue;
                }
                for &device in devices.of(named(command)) {
                    if let Some((own, tag)) = self.of_device(command, device)
                        && places.has(tag)
                    {
                        emit(own);
                    }
                }
            }
        })
    }

    /// Returns the command for a device ID of the host, of those that are about one, and where that has what is to be
    /// forgotten.
    fn of_device(&self, command: &Command, id: u32) -> Option<(Command, Tag)> {
        let device = changes::narrow(id);
        let directory = Tag::Directory { device };
        Some(match *command {
            Command::IodirInvalDdt { .. } => {
                let device = Some(device);
                (Command::IodirInvalDdt { device }, directory)
            }
            Command::IodirInvalPdt { process, .. } => {
                (Command::IodirInvalPdt { device, process }, directory)
            }
            Command::AtsInval {
                pasid,
                is_global,
                span,
                ..
            } => {
                let function = self.unit.function(id);
                let own = Command::AtsInval {
                    function,
                    pasid,
                    is_global,
                    span,
                };
                let pasid = None;
                (own, Tag::AtsFull { function, pasid })
            }
            _ => return None,
        })
    }
}

/// Returns the guest's device ID that a command names, if it names one.
fn named(command: &Command) -> Option<u32> {
    match *command {
        Command::IodirInvalDdt { device } => device.map(Narrow::get),
        Command::IodirInvalPdt { device, .. } => Some(device.get()),
        Command::AtsInval { function, .. } => Some(device_id(function)),
        _ => None,
    }
}

/// Returns the device ID that a command for a device's own caches names.
fn device_id(function: Function) -> u32 {
    let segment = u32::from(function.segment.unwrap_or(0));
    segment << REQUESTER_BITS | u32::from(function.requester)
}

impl<M: TableMemory + 'static, D: CommandDevice> fmt::Debug for GuestIommu<M, D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GuestIommu")
            .field("parent", &self.parent)
            .field("devices", &self.devices)
            .finish_non_exhaustive()
    }
}
