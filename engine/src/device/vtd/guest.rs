//! A guest that has a remapping unit of its own over a second stage of the host.

use alloc::sync::Arc;
use core::fmt;

use iopt_formats::command::Span;
use iopt_formats::command::vtd::{Descriptor, IotlbScope};
use iopt_formats::context::vtd::TableMode;

use crate::device::context::{
    GuestCommandError, GuestDeviceError, GuestDevices, HardwareDomain, NestError, Nesting, Permits,
    Refusal, Users, carry_out,
};
use crate::device::vtd::architecture::{NO_PASID, walker};
use crate::device::vtd::{CommandDevice, GuestEntry, GuestEntryError, Stage, VtdDomain, VtdUnit};
use crate::invalidation::plan::vtd::{Tag, device_tlb};
use crate::invalidation::{PlacesAt, SyncError};
use crate::mem::TableMemory;

/// A remapping unit in scalable mode as a guest has it, as far as hardware is concerned: the parent that translates
/// the guest's addresses, and which of the guest's devices are which.
///
/// The PASID tables are the host's: whoever emulates the guest's unit attaches a domain for each of the guest's
/// entries, at the device and the PASID that these are for. Each has a domain ID of its own, so that translations
/// of two first stages are never found under one name. Domain IDs are the unit's, for all guests and the host (256 to
/// 65536, `CAP_REG.ND`), and each makes every unmap of the parent longer; so a guest has but
/// [so many](Self::with_limit) domains at a time.
///
/// ```text
/// guest's PASID entry ---------> GuestEntry ---> nest ---> a domain: attached at a device and a PASID
/// guest's invalidation queue --> invalidate, for the domain that DID and PASID mean
/// ```
pub struct GuestVtd<M: TableMemory + 'static, D: CommandDevice> {
    unit: Arc<VtdUnit<M, D>>,
    parent: Arc<VtdDomain<M, D>>,
    /// By requester ID.
    devices: GuestDevices<u16>,
    permits: Permits,
}

impl<M: TableMemory + 'static, D: CommandDevice> GuestVtd<M, D> {
    /// Creates the unit of a guest whose addresses are those that `parent` translates, for devices behind `unit`.
    ///
    /// # Errors
    ///
    /// - [`NestError::NoSecondStage`] if `parent` has no second-stage tables;
    /// - [`NestError::Foreign`] if `unit` cannot walk them;
    /// - [`NestError::Unsupported`] if `unit` is not in scalable mode, or cannot nest (`ECAP_REG.NEST`).
    pub fn new(
        unit: &Arc<VtdUnit<M, D>>,
        parent: &Arc<VtdDomain<M, D>>,
    ) -> Result<Self, NestError> {
        let (Some(stage @ Stage::Second(_)), None) = (parent.stage(), parent.parent()) else {
            return Err(NestError::NoSecondStage);
        };
        let features = unit.features();
        let is_scalable = unit.root_table().mode() == TableMode::Scalable;
        if !is_scalable || !features.has_nesting || !features.has_first_stage {
            return Err(NestError::Unsupported);
        }
        if !stage.fits(&walker(unit)) {
            return Err(NestError::Foreign);
        }
        Ok(Self {
            unit: Arc::clone(unit),
            parent: Arc::clone(parent),
            devices: GuestDevices::new(),
            // A quarter of the domain IDs.
            permits: Permits::new((1 << features.domain_id_bits.min(16)) / 4),
        })
    }

    /// Lets the guest have `limit` domains at a time that translate or pass, instead of a quarter of the unit's domain
    /// IDs. Comes before any is made.
    #[must_use]
    pub fn with_limit(self, limit: u64) -> Self {
        Self {
            permits: Permits::new(limit),
            ..self
        }
    }

    /// Returns what translates the guest's addresses.
    pub const fn parent(&self) -> &Arc<VtdDomain<M, D>> {
        &self.parent
    }

    /// Makes the domain that does with requests what an entry of the guest wants. Those that pass are translated by
    /// the parent all the same. Where the guest's context entry does not enable the device's TLB, it is to be
    /// [without ATS](HardwareDomain::without_ats).
    ///
    /// # Errors
    ///
    /// [`GuestEntryError::Unsupported`], [`GuestEntryError::TooMany`].
    pub fn nest(&self, entry: &GuestEntry) -> Result<VtdDomain<M, D>, GuestEntryError> {
        let nesting = match (self.parent.stage(), self.parent.set(), entry) {
            (Some(&stage @ Stage::Second(second)), Some(set), entry) => {
                let stage = match entry {
                    GuestEntry::Blocked => None,
                    GuestEntry::PassThrough => Some(stage),
                    GuestEntry::First(first) => {
                        first.check(self.unit.features())?;
                        Some(Stage::Nested(*first, second))
                    }
                };
                match stage {
                    None => None,
                    Some(stage) => Some(Nesting {
                        users: Users::new(Arc::clone(set)),
                        stage,
                        at: Arc::clone(self.unit.instance()),
                        allows_ats: true,
                        permit: Some(self.permits.take().ok_or(GuestEntryError::TooMany)?),
                    }),
                }
            }
            _ => None,
        };
        Ok(HardwareDomain::nested(&self.parent, nesting))
    }

    /// Enters a device: what the guest's descriptors say of the requester ID `guest` is about the requester IDs
    /// `host`, while a domain of the guest is attached to them.
    ///
    /// # Errors
    ///
    /// [`GuestDeviceError`].
    pub fn add_device(&self, guest: u16, host: &[u16]) -> Result<(), GuestDeviceError> {
        let unknown = host.iter().find(|id| self.unit.context(**id).is_none());
        if let Some(&id) = unknown {
            return Err(GuestDeviceError::Unknown { id: id.into() });
        }
        self.devices.add(guest.into(), host)
    }

    /// Makes the guest's requester ID one that it does not have; returns whether it had it.
    pub fn remove_device(&self, guest: u16) -> bool {
        self.devices.remove(guest.into())
    }

    /// Carries out descriptors by which the guest means the translations of `domain`, in their order, and waits for
    /// them. Domain IDs, PASIDs and requester IDs are replaced by those that the host has for the domain; what it is
    /// not attached to has nothing to do. With a wait descriptor all before it is complete; what it stores or
    /// raises is for whoever emulates the guest's queue.
    ///
    /// | descriptor | carried out as |
    /// |---|---|
    /// | PASID-based IOTLB | the same, for the domain's ID and each PASID that it is attached at |
    /// | IOTLB, global or of a domain | IOTLB of the domain's ID |
    /// | device TLB, PASID-based or not | for each requester ID of the device and each such PASID |
    /// | wait | nothing of its own: all before it is complete. That page requests are drained (`PD`) is for whoever hands them to the guest |
    /// | any other | refused: entries are the host's, and a guest has no second stage |
    ///
    /// # Errors
    ///
    /// [`GuestCommandError`]: which one was the first that was not carried out, and why. All are refused if
    /// `domain` is no first stage over this guest's parent.
    pub fn invalidate(
        &self,
        domain: &VtdDomain<M, D>,
        descriptors: &[Descriptor],
    ) -> Result<(), GuestCommandError> {
        let parent = domain.parent();
        let is_own = domain.stage().is_some_and(Stage::is_nested)
            && parent.is_some_and(|parent| Arc::ptr_eq(parent, &self.parent));
        carry_out(
            descriptors,
            |descriptor| {
                if is_own {
                    self.check(descriptor)
                } else {
                    Err(Refusal::Forbidden)
                }
            },
            |descriptor| matches!(descriptor, Descriptor::Wait { .. }),
            |part| self.execute(domain, part),
        )
    }

    /// Returns whether the guest may give a descriptor.
    fn check(&self, descriptor: &Descriptor) -> Result<(), Refusal> {
        match descriptor {
            Descriptor::PasidIotlb { .. }
            | Descriptor::Iotlb {
                scope: IotlbScope::Global | IotlbScope::Domain { .. },
                ..
            }
            | Descriptor::Wait { .. } => Ok(()),
            Descriptor::DeviceTlb { device, .. } | Descriptor::PasidDeviceTlb { device, .. } => {
                let id = device.source_id.into();
                if self.devices.has(id) {
                    Ok(())
                } else {
                    Err(Refusal::Device { id })
                }
            }
            _ => Err(Refusal::Forbidden),
        }
    }

    /// Carries out descriptors that were checked.
    fn execute(
        &self,
        domain: &VtdDomain<M, D>,
        descriptors: &[Descriptor],
    ) -> Result<(), SyncError> {
        let instance = self.unit.instance();
        let id = domain.users().and_then(|users| users.id(instance));
        // Domain IDs have 16 bits at most.
        let (Some(set), Some(domain_id)) = (domain.set(), id.map(|id| id as u16)) else {
            // Hardware forgot it with its last device.
            return Ok(());
        };
        set.execute(instance, |places, emit| {
            let own = |tag| match tag {
                Tag::GuestSpace {
                    domain_id: other,
                    pasid,
                } if other == domain_id => Some(pasid),
                _ => None,
            };
            for descriptor in descriptors {
                match *descriptor {
                    Descriptor::PasidIotlb { scope, .. } => {
                        for pasid in places.tags().filter_map(own) {
                            emit(Descriptor::PasidIotlb {
                                domain_id,
                                pasid,
                                scope,
                            });
                        }
                    }
                    // Another one's by now, if it is not there.
                    Descriptor::Iotlb { .. } if places.has(Tag::Combined { domain_id }) => {
                        let scope = IotlbScope::Domain { domain_id };
                        emit(instance.planner().iotlb(scope));
                    }
                    Descriptor::DeviceTlb { device, span }
                    | Descriptor::PasidDeviceTlb { device, span, .. } => {
                        self.forget_device(places, (domain_id, device.source_id), span, emit);
                    }
                    _ => {}
                }
            }
        })
    }

    /// Makes the TLBs of a device of the guest forget a block of a domain's addresses.
    fn forget_device(
        &self,
        places: PlacesAt<'_, Tag>,
        (domain_id, guest): (u16, u16),
        span: Span,
        emit: &mut dyn FnMut(Descriptor),
    ) {
        let devices = self.devices.lock();
        let Some(own) = devices.get(&guest.into()) else {
            return;
        };
        for tag in places.tags() {
            if let Tag::AtsFull { device, pasid } = tag {
                let space = Tag::GuestSpace {
                    domain_id,
                    pasid: pasid.unwrap_or(NO_PASID),
                };
                if own.contains(&device.source_id) && places.has(space) {
                    emit(device_tlb(device, pasid, span));
                }
            }
        }
    }
}

impl<M: TableMemory + 'static, D: CommandDevice> fmt::Debug for GuestVtd<M, D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GuestVtd")
            .field("parent", &self.parent)
            .field("devices", &self.devices)
            .finish_non_exhaustive()
    }
}
