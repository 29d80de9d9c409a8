//! A device behind a virtio-iommu: where its endpoints are.

use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::any::Any;
use core::fmt;
use core::mem;

use iopt_formats::IovaRange;
use iopt_formats::command::Pasid;
use iopt_formats::command::virtio::ReservedMemory;

use crate::device::virtio::unit::Seats;
use crate::device::virtio::{VirtioHwpt, VirtioUnit};
use crate::device::{
    AttachFailure, Condition, DeviceAddress, DomainKind, Endpoint, Hwpt, Prepared,
};
use crate::domain::virtio::{Booking, EndpointError, Place, RequestError, Transport, Whereabouts};
use crate::sync::{ENDPOINT, Mutex};

/// What a device that does not answer stands in the way of.
const UNCONFIRMED: AttachFailure = AttachFailure::Unsupported {
    what: "a domain while the virtio-iommu does not answer",
};

/// IOVA that are not translated for a device, as its virtio-iommu says.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct ReservedRegion {
    /// Which.
    pub range: IovaRange,
    /// What arrives there instead.
    pub subtype: ReservedMemory,
}

/// A device that a [`VirtioDriver`](crate::device::virtio::VirtioDriver) took in.
pub struct VirtioEndpoint<T: Transport> {
    address: DeviceAddress,
    unit: Arc<VirtioUnit<T>>,
    /// By which the unit knows it, as far as it says; at least one.
    ids: Vec<u32>,
    regions: Vec<ReservedRegion>,
    reserved: Vec<IovaRange>,
    state: Mutex<State<T>>,
    _seats: Seats<T>,
}

struct State<T: Transport> {
    attached: Option<Slot<T>>,
    /// Where it may still be (A3). Has room for two: what is attached, and what shall be.
    stuck: Vec<Slot<T>>,
    /// Where it is known not to be any more.
    gone: Vec<Slot<T>>,
    /// Whether nothing is attached though something should be.
    is_cut_off: bool,
    /// Why nothing is attached, or why it is not known what is.
    failure: Option<EndpointError>,
    is_quarantined: bool,
}

/// A domain as it is attached.
struct Slot<T: Transport> {
    hwpt: Arc<VirtioHwpt<T>>,
    /// Of a domain that translates.
    _booking: Option<Booking<T>>,
}

impl<T: Transport + 'static> VirtioEndpoint<T> {
    /// Takes in a device that is blocked.
    pub(super) fn new(
        address: DeviceAddress,
        unit: Arc<VirtioUnit<T>>,
        ids: Vec<u32>,
        regions: Vec<ReservedRegion>,
        seats: Seats<T>,
    ) -> Self {
        let reserved = regions.iter().map(|region| region.range).collect();
        let state = State {
            attached: None,
            stuck: Vec::with_capacity(2),
            gone: Vec::with_capacity(2),
            is_cut_off: false,
            failure: None,
            is_quarantined: false,
        };
        Self {
            address,
            unit,
            ids,
            regions,
            reserved,
            state: Mutex::new(&ENDPOINT, state),
            _seats: seats,
        }
    }

    /// Returns the unit.
    pub const fn unit(&self) -> &Arc<VirtioUnit<T>> {
        &self.unit
    }

    /// Returns the IDs of its endpoints, in rising order: those of the machine's that the virtio-iommu knows, if
    /// it can be asked (feature `PROBE`).
    pub fn ids(&self) -> &[u32] {
        &self.ids
    }

    /// Returns what is reserved for its endpoints, for an address space to
    /// [reserve](crate::ioas::Ioas::reserve) before the device is attached: a domain with a mapping there is
    /// refused, and one that is attached takes none.
    pub fn reserved(&self) -> &[ReservedRegion] {
        &self.regions
    }

    /// Returns why the last domain that was to be attached is not, or why it is not known where the device is.
    /// Afterwards nothing is to be told until it happens again.
    pub fn take_failure(&self) -> Option<EndpointError> {
        self.state.lock().failure.take()
    }

    /// Returns whether the virtio-iommu did not confirm that the device left a domain. Attaching anything, or
    /// blocking the device, asks once more.
    pub fn is_quarantined(&self) -> bool {
        self.state.lock().is_quarantined
    }

    /// Blocks all endpoints, and asks those of which the device said no word once more.
    fn isolate(&self) -> Result<(), EndpointError> {
        let mut isolated = Ok(());
        for &id in &self.ids {
            isolated = isolated.and(self.unit.isolate(id));
        }
        isolated
    }

    /// Moves all endpoints to a domain, one that translates with all that is mapped.
    fn enter(&self, hwpt: &VirtioHwpt<T>) -> Result<(), EndpointError> {
        let place = match (hwpt.translations(), hwpt.kind()) {
            (Some(domain), _) => domain.place(),
            (None, DomainKind::Identity) => match self.unit.bypass() {
                Some(place) => place,
                // Refused when it was prepared.
                None => return self.isolate(),
            },
            (None, _) => return self.isolate(),
        };
        let mut entered = Err(EndpointError::Request(RequestError::NoEntry));
        for &id in &self.ids {
            match self.move_to(place, id) {
                // Of an ID that the unit does not know no requests arrive.
                Err(EndpointError::Request(RequestError::NoEntry)) => {}
                moved => entered = Ok(moved?),
            }
        }
        entered?;
        hwpt.translations().map_or(Ok(()), |domain| domain.refill())
    }

    fn move_to(&self, place: &Place<T>, id: u32) -> Result<(), EndpointError> {
        match self.unit.device().whereabouts(id) {
            // Of another device, too, that nobody can tell from this one.
            Whereabouts::In(number) if number == place.number() => Ok(()),
            _ => place.attach(id, false),
        }
    }

    /// Puts `new`, or nothing, in place of what is attached (A2).
    fn change(&self, state: &mut State<T>, new: Option<Slot<T>>) {
        if self.recover(state).is_err() {
            return;
        }
        let old = state.attached.take();
        state.is_cut_off = false;
        if let Some(slot) = &new {
            match self.enter(&slot.hwpt) {
                Ok(()) => {
                    state.attached = new;
                    return;
                }
                Err(error) => {
                    state.failure = Some(error);
                    state.is_cut_off = true;
                }
            }
        }
        if let Err(error) = self.isolate() {
            state.failure = Some(error);
            state.is_quarantined = true;
            // There is room: there was none.
            state.stuck.extend(old);
            state.stuck.extend(new);
        }
    }

    /// Ends a quarantine, if the device confirms that all endpoints are blocked.
    fn recover(&self, state: &mut State<T>) -> Result<(), AttachFailure> {
        if state.is_quarantined {
            if let Err(error) = self.isolate() {
                state.failure = Some(error);
                return Err(UNCONFIRMED);
            }
            state.is_quarantined = false;
            // Domains may end with these, so they go without the lock.
            if state.gone.is_empty() {
                mem::swap(&mut state.stuck, &mut state.gone);
            } else {
                state.stuck.clear();
            }
        }
        Ok(())
    }

    /// Keeps what a domain needs for the device.
    fn book(&self, hwpt: &VirtioHwpt<T>) -> Result<Option<Booking<T>>, AttachFailure> {
        let Some(domain) = hwpt.translations() else {
            return match hwpt.kind() {
                DomainKind::Identity if !self.unit.has_identity() => {
                    Err(AttachFailure::Unsupported {
                        what: "a domain in which everything passes",
                    })
                }
                _ => Ok(None),
            };
        };
        if !Arc::ptr_eq(domain.device(), self.unit.device()) {
            return Err(AttachFailure::Foreign);
        }
        let booked = domain.place().book(self.ids.len(), &self.reserved);
        booked.map(Some).map_err(|error| match error {
            EndpointError::OutOfMemory => AttachFailure::Exhausted,
            error => AttachFailure::Other(Box::new(error)),
        })
    }
}

impl<T: Transport + 'static> Endpoint for VirtioEndpoint<T> {
    fn prepare(
        &self,
        pasid: Option<Pasid>,
        domain: &Arc<dyn Hwpt>,
    ) -> Result<Box<dyn Prepared + '_>, AttachFailure> {
        let any: Arc<dyn Any + Send + Sync> = Arc::<dyn Hwpt>::clone(domain);
        let hwpt: Arc<VirtioHwpt<T>> = any.downcast().map_err(|_| AttachFailure::Foreign)?;
        if pasid.is_some() {
            return Err(AttachFailure::Unsupported { what: "PASIDs" });
        }
        let booking = self.book(&hwpt)?;
        let mut state = self.state.lock();
        self.recover(&mut state)?;
        if !self.unit.device().is_answering() {
            return Err(UNCONFIRMED);
        }
        let slot = Slot {
            hwpt,
            _booking: booking,
        };
        drop(state);
        Ok(Box::new(Preparation {
            endpoint: self,
            slot,
        }))
    }

    fn block(&self, pasid: Option<Pasid>) {
        if pasid.is_none() {
            self.change(&mut self.state.lock(), None);
        }
    }

    fn release(&self) {
        self.block(None);
    }

    fn look_after(&self, asks_again: bool) -> Condition {
        let mut state = self.state.lock();
        if asks_again {
            // What comes of it stands below.
            let _ = self.recover(&mut state);
        }
        let condition = if state.is_quarantined {
            Condition::Quarantined
        } else if state.is_cut_off {
            Condition::CutOff
        } else {
            Condition::Sound
        };
        let gone = mem::replace(&mut state.gone, Vec::with_capacity(2));
        drop(state);
        drop(gone);
        condition
    }
}

/// A domain that is ready to be attached.
struct Preparation<'e, T: Transport> {
    endpoint: &'e VirtioEndpoint<T>,
    slot: Slot<T>,
}

impl<T: Transport + 'static> Prepared for Preparation<'_, T> {
    fn commit(self: Box<Self>) {
        let Self { endpoint, slot } = *self;
        endpoint.change(&mut endpoint.state.lock(), Some(slot));
    }
}

impl<T: Transport> fmt::Debug for VirtioEndpoint<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VirtioEndpoint")
            .field("address", &self.address)
            .field("ids", &self.ids)
            .field("regions", &self.regions)
            .finish_non_exhaustive()
    }
}
