//! What a RISC-V IOMMU reports of its devices' page requests, and what it is to tell them.
//!
//! Source: *RISC-V IOMMU Architecture Specification*, sections "Page-Request-Queue (PQ)", "IOMMU ATS commands"
//! (`ATS.PRGR`) and "Handling of `PCIe` ATS requests".

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;
use core::time::Duration;

use iopt_formats::command::riscv::Command;
use iopt_formats::command::{Narrow, PageResponse};
use iopt_formats::event::riscv::PageRequest as Record;

use crate::device::DeviceAddress;
use crate::device::fault::{
    Answer, Origin, PageRequest, PageResponder, Reported, Requester, Round,
};
use crate::device::riscv::{CommandDevice, RiscvIommu};
use crate::invalidation::SyncError;
use crate::mem::TableMemory;

impl<M: TableMemory + 'static, D: CommandDevice> RiscvIommu<M, D> {
    /// Begins a round over the records of the page-request queue: to be called before `pqt` is read, and finished
    /// when all records up to there were [taken in](Self::take_page_request).
    ///
    /// Devices must not ask any more when what is attached there ends ([`Round`]).
    pub fn begin_page_requests(&self) -> Round<'_> {
        self.listeners().begin(false)
    }

    /// Takes in a record of the page-request queue, in a [round](Self::begin_page_requests). If it completes a group, the
    /// handler of the domain is called that is attached where it came from; if there is none, or no such device, it is
    /// answered at once.
    ///
    /// When the queue has overflown (`pqcsr.pqof`), or its memory failed (`pqcsr.pqmf`), all its records are to be
    /// taken in, and then [those that are not complete](Self::forget_partial_groups) forgotten.
    ///
    /// Records of the fault queue ask for nothing: they are for people to read.
    ///
    /// # Errors
    ///
    /// [`SyncError`] if the record is of no device, and the IOMMU does not take the answer.
    pub fn take_page_request(&self, record: &Record) -> Result<(), SyncError> {
        if record.is_stop_marker() {
            return Ok(());
        }
        let id = record.device.get();
        // It has 9 bits.
        let origin = Origin::Group(record.group.get() as u16);
        if let Some((faults, requester)) = self.listeners().find(id) {
            faults.report(&Reported {
                requester,
                pasid: record.process,
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
        if !record.is_last {
            return Ok(());
        }
        self.answer(&Answer {
            requester: Requester { port: 0, id },
            pasid: record.process,
            origin,
            response: PageResponse::Invalid,
        })
    }

    /// Forgets groups whose last request did not come: the page-request queue overflew, and the IOMMU has answered
    /// them. Their indices may name other groups next.
    pub fn forget_partial_groups(&self) {
        self.listeners().forget_partial();
    }

    /// Answers what the handlers of domains did not answer in time, for all devices. Returns when to call it next,
    /// by the clock of the driver's [`FaultSettings`](crate::device::fault::FaultSettings), if anything is left.
    pub fn expire_page_requests(&self) -> Option<Duration> {
        self.listeners().expire()
    }

    fn answer(&self, answer: &Answer) -> Result<(), SyncError> {
        // No transaction waits here, and groups have 9 bits.
        let Origin::Group(group) = answer.origin else {
            return Ok(());
        };
        let command = Narrow::new(group.into()).map(|group| Command::AtsPrgr {
            function: self.function(answer.requester.id),
            pasid: answer.pasid,
            group,
            response: answer.response,
        });
        self.execute(command)
    }
}

/// The way for answers to a device behind some IOMMUs.
pub(super) struct Responder<M: TableMemory, D: CommandDevice> {
    units: Vec<Arc<RiscvIommu<M, D>>>,
}

impl<M: TableMemory + 'static, D: CommandDevice> Responder<M, D> {
    pub(super) fn new(units: &[Arc<RiscvIommu<M, D>>]) -> Arc<Self> {
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
