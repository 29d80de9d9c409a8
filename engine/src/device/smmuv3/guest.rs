//! A guest that has an SMMU of its own over a stage 2 of the host.

use alloc::sync::Arc;
use core::fmt;

use iopt_formats::Oa;
use iopt_formats::armv8::Vtcr;
use iopt_formats::command::smmuv3::Command;
use iopt_formats::command::{CommandError, Pasid};

use crate::device::context::{
    GuestCommandError, GuestDeviceError, GuestDevices, HardwareDomain, NestError, Nesting, Refusal,
    Users, carry_out,
};
use crate::device::smmuv3::{
    CommandDevice, GuestStream, GuestStreamError, Smmu, Smmuv3Domain, Stage,
};
use crate::invalidation::SyncError;
use crate::invalidation::plan::smmuv3::{Smmuv3 as Planner, Tag};
use crate::mem::TableMemory;

/// An SMMU as a guest has it, as far as hardware is concerned: a VMID of its own at one SMMU, the parent that
/// translates the guest's addresses, and which of the guest's streams are which.
///
/// The guest's ASIDs mean something beside its VMID alone, so each of the SMMUs that a guest may have needs one
/// of these, over the same parent or not. Its domains differ in words 0 and 1 of the STE alone: one replaces the
/// other without a moment in which requests abort, where no two of these words change at once.
///
/// With attributes of stage 1 a guest may have devices read and write past the caches. So the parent's format forces
/// write-back (`S2FWB`), or whoever makes this knows that devices are coherent whatever a stage says.
///
/// ```text
/// guest's STE ---> GuestStream ---> nest ---> a domain: attached in place of the guest's stream
/// guest's CMDQ -------------------> invalidate
/// ```
pub struct GuestSmmu<M: TableMemory + 'static, D: CommandDevice> {
    smmu: Arc<Smmu<M, D>>,
    parent: Arc<Smmuv3Domain<M, D>>,
    users: Arc<Users<Planner, D>>,
    /// The parent's tables.
    second: (Vtcr, Oa),
    streams: GuestDevices<u32>,
}

impl<M: TableMemory + 'static, D: CommandDevice> GuestSmmu<M, D> {
    /// Creates the SMMU of a guest whose addresses are those that `parent` translates, for devices behind `smmu`.
    ///
    /// # Errors
    ///
    /// - [`NestError::NoSecondStage`] if `parent` is no domain of stage 2;
    /// - [`NestError::Foreign`] if `smmu` cannot walk its tables;
    /// - [`NestError::Unsupported`] if `smmu` has but one stage;
    /// - [`NestError::Incoherent`] if the parent's format does not
    ///   [force write-back](iopt_formats::armv8::Stage2::with_forced_write_back).
    pub fn new(
        smmu: &Arc<Smmu<M, D>>,
        parent: &Arc<Smmuv3Domain<M, D>>,
    ) -> Result<Self, NestError> {
        let guest = Self::for_coherent_devices(smmu, parent)?;
        if guest.second.0.forced_write_back {
            Ok(guest)
        } else {
            Err(NestError::Incoherent)
        }
    }

    /// As [`new`](Self::new), for devices that see the caches whatever attributes their requests get: firmware says
    /// so of their root port (`CANWBS` of an IORT node). With others the guest could read what the host has not
    /// written back, which is what the memory held before it was the guest's.
    ///
    /// # Errors
    ///
    /// As there, without [`NestError::Incoherent`].
    pub fn for_coherent_devices(
        smmu: &Arc<Smmu<M, D>>,
        parent: &Arc<Smmuv3Domain<M, D>>,
    ) -> Result<Self, NestError> {
        let features = smmu.features();
        let (Some(&stage @ Stage::Second { vtcr, root }), Some(set)) =
            (parent.stage(), parent.set())
        else {
            return Err(NestError::NoSecondStage);
        };
        if !features.has_stage1 || !features.has_stage2 {
            return Err(NestError::Unsupported);
        }
        if !stage.fits(features) {
            return Err(NestError::Foreign);
        }
        Ok(Self {
            smmu: Arc::clone(smmu),
            parent: Arc::clone(parent),
            users: Users::new(Arc::clone(set)),
            second: (vtcr, root),
            streams: GuestDevices::new(),
        })
    }

    /// Returns what translates the guest's addresses.
    pub const fn parent(&self) -> &Arc<Smmuv3Domain<M, D>> {
        &self.parent
    }

    /// Returns the VMID, as long as any domain of the guest that translates is attached.
    pub fn vmid(&self) -> Option<u16> {
        // IDs have at most 16 bits.
        self.users.id(self.smmu.instance()).map(|id| id as u16)
    }

    /// Makes the domain that does with requests what the guest wants. Those that bypass the guest's stage 1 are
    /// translated by the parent all the same. Where the guest has CDs, it cannot be
    /// [fault-capable](HardwareDomain::with_faults): PASIDs are the guest's, and nothing tells its handler which one
    /// asks for a page.
    ///
    /// # Errors
    ///
    /// [`GuestStreamError::Substreams`] and [`GuestStreamError::TwoLevels`].
    pub fn nest(&self, stream: &GuestStream) -> Result<Smmuv3Domain<M, D>, GuestStreamError> {
        stream.check(self.smmu.features())?;
        let (stage1, allows_ats) = match *stream {
            GuestStream::Abort => return Ok(HardwareDomain::nested(&self.parent, None)),
            GuestStream::Bypass => (None, false),
            GuestStream::Stage1 { stage1, has_ats } => (Some(stage1), has_ats),
        };
        let (vtcr, root) = self.second;
        let nesting = Nesting {
            users: Arc::clone(&self.users),
            stage: Stage::Nested { stage1, vtcr, root },
            at: Arc::clone(self.smmu.instance()),
            allows_ats,
            permit: None,
        };
        Ok(HardwareDomain::nested(&self.parent, Some(nesting)))
    }

    /// Enters a device: what the guest's commands say of the stream `guest` is about the streams of `host`, while
    /// a domain of the guest is attached to them.
    ///
    /// # Errors
    ///
    /// [`GuestDeviceError`].
    pub fn add_device(&self, guest: u32, host: &[u32]) -> Result<(), GuestDeviceError> {
        let unknown = host.iter().find(|stream| self.smmu.ste(**stream).is_none());
        if let Some(&id) = unknown {
            return Err(GuestDeviceError::Unknown { id });
        }
        self.streams.add(guest, host)
    }

    /// Makes the guest's stream one that it does not have; returns whether it had it.
    pub fn remove_device(&self, guest: u32) -> bool {
        self.streams.remove(guest)
    }

    /// Carries out commands of the guest, in their order, and waits for them: those of its ASIDs, CDs and of its
    /// devices' TLBs, which are the guest's whatever it says. VMIDs and streams are replaced by the host's; what
    /// names something that is attached to no domain of the guest has nothing to do. With a SYNC all before it is
    /// complete; what it signals is for whoever emulates the guest's queue.
    ///
    /// | command | carried out as |
    /// |---|---|
    /// | `TLBI_NH_ALL`, `TLBI_NSNH_ALL` | `TLBI_NH_ALL` of the VMID |
    /// | `TLBI_NH_ASID`, `TLBI_NH_VA`, `TLBI_NH_VAA` | the same of the VMID |
    /// | `CFGI_CD`, `CFGI_CD_ALL`, `ATC_INV` | the same of each stream of the device |
    /// | any other | refused; `CFGI_STE` is for whoever reads the guest's stream table |
    ///
    /// # Errors
    ///
    /// [`GuestCommandError`]: which one was the first that was not carried out, and why.
    pub fn invalidate(&self, commands: &[Command]) -> Result<(), GuestCommandError> {
        carry_out(
            commands,
            |command| self.check(command),
            |command| matches!(command, Command::Sync { .. }),
            |part| self.execute(part),
        )
    }

    /// Returns whether the guest may give a command, and the hardware has it. What it lacks could be taken for an
    /// error that stops the queue of all.
    fn check(&self, command: &Command) -> Result<(), Refusal> {
        let stream = match *command {
            Command::TlbiNhAll { .. } | Command::TlbiNsnhAll | Command::Sync { .. } => None,
            Command::TlbiNhAsid { asid, .. } => {
                self.check_asid(asid)?;
                None
            }
            Command::TlbiNhVa { .. } | Command::TlbiNhVaa { .. } => {
                if let Command::TlbiNhVa { asid, .. } = *command {
                    self.check_asid(asid)?;
                }
                let features = self.smmu.instance().planner().features;
                command.check(features).map_err(Refusal::Illegal)?;
                None
            }
            Command::CfgiCd {
                stream,
                substream,
                is_secure: false,
                ..
            } => {
                // Without substreams there is one CD, of number 0.
                if substream.get() > 0 {
                    self.check_substream(substream)?;
                }
                Some(stream)
            }
            Command::CfgiCdAll {
                stream,
                is_secure: false,
            } => Some(stream),
            Command::AtcInv {
                stream, substream, ..
            } => {
                if let Some(substream) = substream {
                    self.check_substream(substream)?;
                }
                Some(stream)
            }
            _ => return Err(Refusal::Forbidden),
        };
        match stream {
            Some(id) if !self.streams.has(id) => Err(Refusal::Device { id }),
            _ => Ok(()),
        }
    }

    /// Without `IDR0.ASID16` the upper half of an ASID is reserved.
    fn check_asid(&self, asid: u16) -> Result<(), Refusal> {
        if self.smmu.features().has_wide_asids || asid < 0x100 {
            return Ok(());
        }
        Err(reserved("ASID", asid.into()))
    }

    /// Beyond `IDR1.SSIDSIZE` another substream may be meant (section 4.1.7).
    fn check_substream(&self, substream: Pasid) -> Result<(), Refusal> {
        let (bits, value) = (self.smmu.features().substream_bits, substream.get());
        if bits > 0 && value >> bits == 0 {
            return Ok(());
        }
        Err(reserved("SubstreamID", value.into()))
    }

    /// Carries out commands that were checked.
    fn execute(&self, commands: &[Command]) -> Result<(), SyncError> {
        let Some(vmid) = self.vmid() else {
            // Hardware forgot the guest with its last device.
            return Ok(());
        };
        let granule = self.second.0.granule;
        let set = self.users.set();
        set.execute(self.smmu.instance(), |places, emit| {
            let streams = self.streams.lock();
            for command in commands {
                if let Some(own) = of_vm(command, vmid) {
                    // Another one's by now, if it is not there.
                    if places.has(Tag::Combined { vmid, granule }) {
                        emit(own);
                    }
                    continue;
                }
                let streams = stream_of(command).and_then(|stream| streams.get(&stream));
                for &stream in streams.into_iter().flatten() {
                    let (own, tag) = of_stream(command, stream);
                    if places.has(tag) {
                        emit(own);
                    }
                }
            }
        })
    }
}

const fn reserved(field: &'static str, value: u64) -> Refusal {
    Refusal::Illegal(CommandError::ReservedValue { field, value })
}

/// Returns the command for a VM, of those that are about one.
const fn of_vm(command: &Command, vmid: u16) -> Option<Command> {
    Some(match *command {
        Command::TlbiNhAll { .. } | Command::TlbiNsnhAll => Command::TlbiNhAll { vmid },
        Command::TlbiNhAsid { asid, .. } => Command::TlbiNhAsid { vmid, asid },
        Command::TlbiNhVa { asid, target, .. } => Command::TlbiNhVa { vmid, asid, target },
        Command::TlbiNhVaa { target, .. } => Command::TlbiNhVaa { vmid, target },
        _ => return None,
    })
}

const fn stream_of(command: &Command) -> Option<u32> {
    match *command {
        Command::CfgiCd { stream, .. }
        | Command::CfgiCdAll { stream, .. }
        | Command::AtcInv { stream, .. } => Some(stream),
        _ => None,
    }
}

/// Returns the command for a stream, and where that has what is to be forgotten.
const fn of_stream(command: &Command, stream: u32) -> (Command, Tag) {
    let mut own = *command;
    match &mut own {
        Command::AtcInv { stream: named, .. } => {
            *named = stream;
            (own, Tag::AtsFull { stream })
        }
        Command::CfgiCd { stream: named, .. } | Command::CfgiCdAll { stream: named, .. } => {
            *named = stream;
            (own, Tag::Descriptors { stream })
        }
        _ => (own, Tag::Descriptors { stream }),
    }
}

impl<M: TableMemory + 'static, D: CommandDevice> fmt::Debug for GuestSmmu<M, D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GuestSmmu")
            .field("parent", &self.parent)
            .field("streams", &self.streams)
            .finish_non_exhaustive()
    }
}
