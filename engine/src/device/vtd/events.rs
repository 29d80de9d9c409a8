//! What a unit reports of its devices' requests for pages, and what it is to tell them.
//!
//! Source: VT-d specification, revision 4.1, sections 7.4 (page requests), 7.7 (responses) and 7.10 (draining);
//! private data as in revision 3.0.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;
use core::time::Duration;

use iopt_formats::command::Narrow;
use iopt_formats::command::vtd::Descriptor;
use iopt_formats::event::vtd::PageRequest as Record;

use crate::device::DeviceAddress;
use crate::device::fault::{
    Answer, Origin, PageRequest, PageResponder, PageResponse, Reported, Requester, Round,
};
use crate::device::vtd::{CommandDevice, VtdUnit};
use crate::invalidation::SyncError;
use crate::mem::TableMemory;

impl<M: TableMemory + 'static, D: CommandDevice> VtdUnit<M, D> {
    /// Begins a round over the records of the page request queue: to be called before `PQT_REG` is read, and finished
    /// when all records up to there were [taken in](Self::take_page_request).
    ///
    /// Devices must not ask any more when what is attached there ends ([`Round`]), and what they asked has to be in the
    /// queue by then: where the unit can, it is [drained](Self::drain_page_requests) in between.
    pub fn begin_page_requests(&self) -> Round<'_> {
        self.listeners().begin(false)
    }

    /// Takes in a record of the page request queue, in a [round](Self::begin_page_requests). If it completes a group, or
    /// has to be answered on its own, the handler of the domain is called that is attached where it came from; if there
    /// is none, or no such device, it is answered at once.
    ///
    /// When the queue has overflown (`PRS_REG.PRO`), all its records are to be taken in, and then
    /// [those that are not complete](Self::forget_partial_groups) forgotten.
    ///
    /// # Errors
    ///
    /// [`SyncError`] if the record is of no device, and the unit does not take the answer.
    pub fn take_page_request(&self, record: &Record) -> Result<(), SyncError> {
        if record.is_stop_marker() {
            return Ok(());
        }
        let group = record.group.get() as u16;
        let origin = match record.private_data {
            None => Origin::Group(group),
            Some(data) => Origin::Private {
                group,
                is_last: record.is_last,
                data,
            },
        };
        let id = u32::from(record.requester_id);
        if let Some((faults, requester)) = self.listeners().find(id) {
            faults.report(&Reported {
                requester,
                pasid: record.pasid,
                origin,
                is_last: record.is_last,
                request: PageRequest {
                    address: record.address,
                    is_read: record.is_read,
                    is_write: record.is_write,
                    is_fetch: record.is_fetch,
                    is_privileged: record.is_privileged,
                },
            });
            return Ok(());
        }
        if !record.is_last && record.private_data.is_none() {
            return Ok(());
        }
        self.answer(&Answer {
            requester: Requester { port: 0, id },
            pasid: record.pasid,
            origin,
            response: PageResponse::Invalid,
        })
    }

    /// Forgets groups whose last request did not come: the queue overflew, and the unit has answered them itself
    /// (section 7.4). Their indices may name other groups next.
    pub fn forget_partial_groups(&self) {
        self.listeners().forget_partial();
    }

    /// Answers what the handlers of domains did not answer in time, for all devices. Returns when to call it next,
    /// by the clock of the driver's [`FaultSettings`](crate::device::fault::FaultSettings), if anything is left.
    pub fn expire_page_requests(&self) -> Option<Duration> {
        self.listeners().expire()
    }

    /// Waits until what devices asked for before is in the page request queue, and answers are on their way to them
    /// (section 7.10). Returns whether the unit can do that (`ECAP_REG.PDS`).
    ///
    /// Comes after a device was stopped and before what is attached there ends: then all that was asked is in the queue
    /// when the domain leaves, and [rounds](Self::begin_page_requests) keep it from the next one. It reads nothing, and
    /// ends no round. Later it serves only who leaves the place empty until a round has ended that began after it;
    /// PASIDs of processes do not wait for that.
    ///
    /// The queue has to have room, or to be read meanwhile.
    ///
    /// # Errors
    ///
    /// [`SyncError`].
    pub fn drain_page_requests(&self) -> Result<bool, SyncError> {
        if !self.features().has_page_request_drain {
            return Ok(false);
        }
        // The descriptor that the queue waits for comes behind the fence.
        self.instance().execute([Descriptor::Wait {
            status: None,
            has_interrupt: false,
            is_fence: true,
            drains_page_requests: true,
        }])?;
        Ok(true)
    }

    fn answer(&self, answer: &Answer) -> Result<(), SyncError> {
        self.instance().execute(descriptor(answer))
    }
}

/// Returns the descriptor that says so; `None` for what no unit reports.
fn descriptor(answer: &Answer) -> Option<Descriptor> {
    let (group, is_last, private_data) = match answer.origin {
        Origin::Group(group) => (group, true, None),
        Origin::Private {
            group,
            is_last,
            data,
        } => (group, is_last, Some(data)),
        Origin::Stall(_) => return None,
    };
    Some(Descriptor::PageGroupResponse {
        requester_id: u16::try_from(answer.requester.id).ok()?,
        pasid: answer.pasid,
        response: answer.response,
        group: Narrow::new(group.into())?,
        is_last,
        private_data,
    })
}

/// The way for answers to a device behind some units.
pub(super) struct Responder<M: TableMemory, D: CommandDevice> {
    units: Vec<Arc<VtdUnit<M, D>>>,
}

impl<M: TableMemory + 'static, D: CommandDevice> Responder<M, D> {
    pub(super) fn new(units: &[Arc<VtdUnit<M, D>>]) -> Arc<Self> {
        Arc::new(Self {
            units: units.to_vec(),
        })
    }
}

impl<M: TableMemory + 'static, D: CommandDevice> PageResponder for Responder<M, D> {
    fn respond(&self, _: DeviceAddress, answer: &Answer) -> Result<(), SyncError> {
        let unit = self.units.get(answer.requester.port);
        unit.map_or(Ok(()), |unit| unit.answer(answer))
    }
}

impl<M: TableMemory, D: CommandDevice> fmt::Debug for Responder<M, D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Responder").finish_non_exhaustive()
    }
}
