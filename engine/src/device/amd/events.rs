//! What an IOMMU logs of its devices' page requests, and what it is to tell them.
//!
//! Source: *AMD I/O Virtualization Technology (IOMMU) Specification*, document 48882, sections 2.4.7
//! (`COMPLETE_PPR_REQUEST`) and 2.6 (page request log).

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;
use core::time::Duration;

use iopt_formats::command::PageResponse;
use iopt_formats::command::amd::Command;
use iopt_formats::event::amd::PageRequest as Record;

use crate::device::DeviceAddress;
use crate::device::amd::{AmdIommu, CommandDevice};
use crate::device::fault::{
    Answer, Origin, PageRequest, PageResponder, Reported, Requester, Round,
};
use crate::invalidation::SyncError;
use crate::mem::TableMemory;

/// The group in a `CompletionTag`; above it is the response.
const GROUP_MASK: u16 = 0x1ff;
const RESPONSE_SHIFT: u32 = 12;

impl<M: TableMemory + 'static, D: CommandDevice> AmdIommu<M, D> {
    /// Begins a round over the entries of the page request log: to be called before the log's tail pointer (MMIO offset
    /// 2038h) is read, and finished when all entries up to there were [taken in](Self::take_page_request).
    ///
    /// Devices must not ask any more when what is attached there ends ([`Round`]).
    pub fn begin_page_requests(&self) -> Round<'_> {
        self.listeners().begin(false)
    }

    /// Takes in an entry of the page request log, in a [round](Self::begin_page_requests). If it completes a group, the
    /// handler of the domain is called that is attached where it came from; if there is none, or no such device, or
    /// nobody knows what it asks for, it is answered at once.
    ///
    /// When the log has overflown (`PPROverflow` of the status register), all its entries are to be taken in, and then
    /// [those that are not complete](Self::forget_partial_groups) forgotten.
    ///
    /// Entries of the event log ask for nothing: they are for people to read.
    ///
    /// # Errors
    ///
    /// [`SyncError`] if the entry is of no device, or of no known meaning, and the IOMMU does not take the answer.
    pub fn take_page_request(&self, record: &Record) -> Result<(), SyncError> {
        if record.is_stop_marker() {
            return Ok(());
        }
        let id = record.device_id.into();
        // It has 9 bits.
        let origin = Origin::Group(record.group.get() as u16);
        match self.listeners().find(id) {
            // Its group cannot be had whole.
            Some((faults, _)) if record.is_malformed => faults.forget_partial(),
            Some((faults, requester)) => {
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
            None => {}
        }
        if !record.is_last {
            return Ok(());
        }
        self.answer(&Answer {
            requester: Requester { port: 0, id },
            pasid: record.pasid,
            origin,
            response: PageResponse::Invalid,
        })
    }

    /// Forgets groups whose last request did not come: the log overflew, and the IOMMU has answered them
    /// (`PPRAutoRspEn`), or their devices are reset. Their indices may name other groups next.
    pub fn forget_partial_groups(&self) {
        self.listeners().forget_partial();
    }

    /// Answers what the handlers of domains did not answer in time, for all devices. Returns when to call it next,
    /// by the clock of the driver's [`FaultSettings`](crate::device::fault::FaultSettings), if anything is left.
    pub fn expire_page_requests(&self) -> Option<Duration> {
        self.listeners().expire()
    }

    fn answer(&self, answer: &Answer) -> Result<(), SyncError> {
        // No transaction waits here.
        let Origin::Group(group) = answer.origin else {
            return Ok(());
        };
        // Device IDs have 16 bits; others have no entry, and were not logged.
        let device_id = answer.requester.id as u16;
        self.instance().execute([Command::CompletePageRequest {
            device_id,
            pasid: answer.pasid,
            tag: group & GROUP_MASK | (answer.response as u16) << RESPONSE_SHIFT,
        }])
    }
}

/// The way for answers to a device behind some IOMMUs.
pub(super) struct Responder<M: TableMemory, D: CommandDevice> {
    units: Vec<Arc<AmdIommu<M, D>>>,
}

impl<M: TableMemory + 'static, D: CommandDevice> Responder<M, D> {
    pub(super) fn new(units: &[Arc<AmdIommu<M, D>>]) -> Arc<Self> {
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
