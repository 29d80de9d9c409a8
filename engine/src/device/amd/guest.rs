//! A guest that has an IOMMU of its own over version 1 tables of the host.

use alloc::collections::BTreeMap;
use alloc::sync::{Arc, Weak};
use core::fmt;

use iopt_formats::command::Span;
use iopt_formats::command::amd::Command;
use smallvec::SmallVec;

use crate::device::amd::{AmdDomain, AmdIommu, CommandDevice, GuestDte, GuestDteError, Stage};
use crate::device::context::{
    GuestCommandError, GuestDeviceError, GuestDevices, HardwareDomain, NestError, Nesting, Permits,
    Refusal, Users, carry_out,
};
use crate::invalidation::plan::amd::{Amd as Planner, Tag, device_tlb};
use crate::invalidation::{PlacesAt, SyncError};
use crate::mem::TableMemory;
use crate::sync::{GUEST_DEVICES, Mutex};

/// Domain IDs, the guest's and the host's.
type Named = SmallVec<[(u16, u16); 4]>;

/// An IOMMU as a guest has it, as far as hardware is concerned: the parent that translates the guest's addresses, a
/// domain ID of the host for each of the guest's, and which of the guest's devices are which.
///
/// The guest CR3 tables are the guest's: hardware finds them at guest-physical addresses, which takes `GCR3TRPMode`
/// (bit 58 of the control register). Interrupt fields of the guest's entries are for whoever remaps interrupts.
///
/// ```text
/// guest's DTE ---------------> GuestDte ---> nest ---> a domain: attached in place of the guest's device
/// guest's command buffer ----> invalidate
/// ```
pub struct GuestIommu<M: TableMemory + 'static, D: CommandDevice> {
    iommu: Arc<AmdIommu<M, D>>,
    parent: Arc<AmdDomain<M, D>>,
    /// By the guest's domain IDs, while a domain with one is there.
    domains: Mutex<BTreeMap<u16, Weak<Users<Planner, D>>>>,
    devices: GuestDevices<u16>,
    permits: Permits,
}

/// How many domains a guest may have unless its user says otherwise: as many as a quarter of the domain IDs.
const DOMAIN_LIMIT: u64 = (1 << 16) / 4;

impl<M: TableMemory + 'static, D: CommandDevice> GuestIommu<M, D> {
    /// Creates the IOMMU of a guest whose addresses are those that `parent` translates, for devices behind `iommu`.
    ///
    /// # Errors
    ///
    /// - [`NestError::NoSecondStage`] if `parent` has no version 1 tables, or is a guest's itself;
    /// - [`NestError::Foreign`] if `iommu` cannot walk them;
    /// - [`NestError::Unsupported`] if `iommu` [cannot nest](crate::device::amd::Features::can_nest).
    pub fn new(
        iommu: &Arc<AmdIommu<M, D>>,
        parent: &Arc<AmdDomain<M, D>>,
    ) -> Result<Self, NestError> {
        let Some(stage @ Stage::Host { .. }) = parent.stage() else {
            return Err(NestError::NoSecondStage);
        };
        if !iommu.features().can_nest() {
            return Err(NestError::Unsupported);
        }
        if !stage.fits(iommu.features(), *iommu.instance().planner()) {
            return Err(NestError::Foreign);
        }
        Ok(Self {
            iommu: Arc::clone(iommu),
            parent: Arc::clone(parent),
            domains: Mutex::new(&GUEST_DEVICES, BTreeMap::new()),
            devices: GuestDevices::new(),
            permits: Permits::new(DOMAIN_LIMIT),
        })
    }

    /// Lets the guest have `limit` domains at a time that translate or pass, instead of a quarter of the IOMMU's domain
    /// IDs. Comes before any is made.
    #[must_use]
    pub fn with_limit(self, limit: u64) -> Self {
        Self {
            permits: Permits::new(limit),
            ..self
        }
    }

    /// Returns what translates the guest's addresses.
    pub const fn parent(&self) -> &Arc<AmdDomain<M, D>> {
        &self.parent
    }

    /// Returns the host's domain ID for one of the guest, as long as any domain with it is attached.
    pub fn domain_id(&self, guest: u16) -> Option<u16> {
        let users = self.domains.lock().get(&guest).and_then(Weak::upgrade)?;
        // IDs have 16 bits.
        users.id(self.iommu.instance()).map(|id| id as u16)
    }

    /// Makes the domain that does with requests what the guest wants. Those that pass are translated by the parent
    /// all the same.
    ///
    /// # Errors
    ///
    /// [`GuestDteError::Gcr3Levels`], [`GuestDteError::PagingLevels`] and [`GuestDteError::TooMany`].
    pub fn nest(&self, entry: &GuestDte) -> Result<AmdDomain<M, D>, GuestDteError> {
        entry.check(self.iommu.features())?;
        let (domain_id, guest, limit, allows_ats) = match *entry {
            GuestDte::Blocked => return Ok(HardwareDomain::nested(&self.parent, None)),
            GuestDte::PassThrough {
                domain_id,
                rights,
                has_ats,
            } => (domain_id, None, rights, has_ats),
            GuestDte::Tables {
                domain_id,
                tables,
                has_ats,
            } => (domain_id, Some(tables), tables.limit(), has_ats),
        };
        let nesting = match (self.parent.stage(), self.users(domain_id)) {
            (
                Some(&Stage::Host {
                    tables,
                    oa_bits,
                    map_side,
                }),
                Some(users),
            ) => Some(Nesting {
                users,
                stage: Stage::Nested {
                    guest,
                    tables: tables.with_limit(limit),
                    oa_bits,
                    map_side,
                },
                at: Arc::clone(self.iommu.instance()),
                allows_ats,
                permit: Some(self.permits.take().ok_or(GuestDteError::TooMany)?),
            }),
            _ => None,
        };
        Ok(HardwareDomain::nested(&self.parent, nesting))
    }

    /// Returns the users of all domains that have one of the guest's domain IDs.
    fn users(&self, domain_id: u16) -> Option<Arc<Users<Planner, D>>> {
        let set = self.parent.set()?;
        let mut domains = self.domains.lock();
        if let Some(users) = domains.get(&domain_id).and_then(Weak::upgrade) {
            return Some(users);
        }
        domains.retain(|_, users| users.strong_count() > 0);
        let users = Users::new(Arc::clone(set));
        domains.insert(domain_id, Arc::downgrade(&users));
        Some(users)
    }

    /// Enters a device: what the guest's commands say of the device ID `guest` is about the device IDs `host`, while
    /// a domain of the guest is attached to them.
    ///
    /// # Errors
    ///
    /// [`GuestDeviceError`].
    pub fn add_device(&self, guest: u16, host: &[u16]) -> Result<(), GuestDeviceError> {
        let unknown = host.iter().find(|id| self.iommu.dte(**id).is_none());
        if let Some(&id) = unknown {
            return Err(GuestDeviceError::Unknown { id: id.into() });
        }
        self.devices.add(guest.into(), host)
    }

    /// Makes the guest's device ID one that it does not have; returns whether it had it.
    pub fn remove_device(&self, guest: u16) -> bool {
        self.devices.remove(guest.into())
    }

    /// Carries out commands of the guest, in their order, and waits for them. Domain IDs and device IDs are replaced
    /// by the host's; what names something that is attached to no domain of the guest has nothing to do. With a
    /// completion wait all before it is complete; what it stores or raises is for whoever emulates the guest's
    /// buffer.
    ///
    /// | command | carried out as |
    /// |---|---|
    /// | `INVALIDATE_IOMMU_PAGES` with GN | the same of the host's domain ID |
    /// | `INVALIDATE_IOMMU_PAGES` without | all addresses and all PASIDs of that: its addresses would be the parent's |
    /// | `INVALIDATE_DEVTAB_ENTRY` | the same of each device ID: the guest CR3 table may have changed; the entry itself is for whoever reads the guest's device table |
    /// | `INVALIDATE_IOTLB_PAGES` | the same of each device ID, for the queue that the host knows |
    /// | `INVALIDATE_IOMMU_ALL` | both of the first for all that the guest has |
    /// | any other | refused |
    ///
    /// # Errors
    ///
    /// [`GuestCommandError`]: which one was the first that was not carried out, and why.
    pub fn invalidate(&self, commands: &[Command]) -> Result<(), GuestCommandError> {
        carry_out(
            commands,
            |command| self.check(command),
            |command| matches!(command, Command::CompletionWait { .. }),
            |part| self.execute(part),
        )
    }

    /// Returns whether the guest may give a command.
    fn check(&self, command: &Command) -> Result<(), Refusal> {
        match *command {
            Command::InvalidatePages { .. }
            | Command::InvalidateAll
            | Command::CompletionWait { .. } => Ok(()),
            Command::InvalidateDeviceTableEntry { device_id }
            | Command::InvalidateIotlbPages { device_id, .. } => {
                let id = device_id.into();
                if self.devices.has(id) {
                    Ok(())
                } else {
                    Err(Refusal::Device { id })
                }
            }
            _ => Err(Refusal::Forbidden),
        }
    }

    /// Returns the domain IDs that commands name, as far as the host knows them.
    fn named(&self, commands: &[Command]) -> Named {
        let mut guests: SmallVec<[u16; 4]> = SmallVec::new();
        for command in commands {
            match *command {
                Command::InvalidatePages { domain_id, .. } => guests.push(domain_id),
                Command::InvalidateAll => guests.extend(self.domains.lock().keys().copied()),
                _ => {}
            }
        }
        guests.sort_unstable();
        guests.dedup();
        let known = guests.into_iter();
        known
            .filter_map(|guest| Some((guest, self.domain_id(guest)?)))
            .collect()
    }

    /// Carries out commands that were checked.
    fn execute(&self, commands: &[Command]) -> Result<(), SyncError> {
        let Some(set) = self.parent.set() else {
            return Ok(());
        };
        let named = self.named(commands);
        set.execute(self.iommu.instance(), |places, emit| {
            // Another one's by now, if it is not there.
            let is_there = |&(_, domain_id): &(u16, u16)| places.has(Tag::Combined { domain_id });
            for command in commands {
                match *command {
                    Command::InvalidatePages {
                        domain_id,
                        pasid,
                        has_tables,
                        span,
                    } => {
                        let own = named.iter().find(|named| named.0 == domain_id);
                        let Some(&(_, domain_id)) = own.filter(|own| is_there(own)) else {
                            continue;
                        };
                        emit(match pasid {
                            Some(_) => Command::InvalidatePages {
                                domain_id,
                                pasid,
                                has_tables,
                                span,
                            },
                            None => whole(domain_id),
                        });
                    }
                    Command::InvalidateDeviceTableEntry { device_id } => {
                        self.forget_gcr3(places, Some(device_id), emit);
                    }
                    Command::InvalidateIotlbPages {
                        device_id,
                        pasid,
                        span,
                        ..
                    } => {
                        let devices = self.devices.lock();
                        let own = devices.get(&device_id.into());
                        for tag in places.tags() {
                            if let Tag::AtsFull { device, .. } = tag
                                && own.is_some_and(|own| own.contains(&device.device_id))
                            {
                                emit(device_tlb(device, pasid, span));
                            }
                        }
                    }
                    Command::InvalidateAll => {
                        self.forget_gcr3(places, None, emit);
                        let own = named.iter().filter(|own| is_there(own));
                        own.for_each(|&(_, domain_id)| emit(whole(domain_id)));
                    }
                    _ => {}
                }
            }
        })
    }

    /// Makes hardware forget what it read of the guest CR3 tables of a device of the guest, or of all.
    fn forget_gcr3(
        &self,
        places: PlacesAt<'_, Tag>,
        guest: Option<u16>,
        emit: &mut dyn FnMut(Command),
    ) {
        let devices = self.devices.lock();
        for &device_id in devices.of(guest.map(u32::from)) {
            if places.has(Tag::GuestCr3 { device_id }) {
                emit(Command::InvalidateDeviceTableEntry { device_id });
            }
        }
    }
}

/// Returns the command for all that an IOMMU has under a domain ID, whatever the guest calls it.
const fn whole(domain_id: u16) -> Command {
    Command::InvalidatePages {
        domain_id,
        pasid: None,
        has_tables: true,
        span: Span::ALL,
    }
}

impl<M: TableMemory + 'static, D: CommandDevice> fmt::Debug for GuestIommu<M, D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GuestIommu")
            .field("parent", &self.parent)
            .field("devices", &self.devices)
            .finish_non_exhaustive()
    }
}
