//! What an SMMU reports of its devices' requests, and what it is to tell them.
//!
//! Source: IHI 0070, sections 3.12.2 (stalls), 4.5.2 (`CMD_PRI_RESP`), 4.7.1 (`CMD_RESUME`), 7.3 (events) and
//! chapter 8 (page requests).

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;
use core::time::Duration;

use iopt_formats::command::smmuv3::{Command, PageResponse as PriResponse};
use iopt_formats::command::{Narrow, PageResponse};
use iopt_formats::event::smmuv3::{Event, PageRequest as Record};

use crate::device::DeviceAddress;
use crate::device::fault::{
    Answer, Origin, PageRequest, PageResponder, Reported, Requester, Round,
};
use crate::device::smmuv3::{CommandDevice, Smmu};
use crate::invalidation::SyncError;
use crate::mem::TableMemory;

impl<M: TableMemory + 'static, D: CommandDevice> Smmu<M, D> {
    /// Begins a round over the records of the PRI queue: to be called before `SMMU_PRIQ_PROD` is read, and finished when
    /// all records up to there were [taken in](Self::take_page_request).
    ///
    /// Devices must not ask any more when what is attached there ends ([`Round`]).
    pub fn begin_page_requests(&self) -> Round<'_> {
        self.listeners().begin(false)
    }

    /// Begins a round over the records of the event queue: to be called before `SMMU_EVENTQ_PROD` is read, and finished
    /// when all records up to there were [taken in](Self::take_event).
    pub fn begin_events(&self) -> Round<'_> {
        self.listeners().begin(true)
    }

    /// Takes in a record of the PRI queue, in a [round](Self::begin_page_requests). If it completes a group, the handler
    /// of the domain is called that is attached where it came from; if there is none, or no such device, it is answered
    /// at once.
    ///
    /// When the queue has overflown (`SMMU_PRIQ_PROD.OVFLG`), all its records are to be taken in, and then
    /// [those that are not complete](Self::forget_partial_groups) forgotten.
    ///
    /// # Errors
    ///
    /// [`SyncError`] if the record is of no device, and the SMMU does not take the answer.
    pub fn take_page_request(&self, record: &Record) -> Result<(), SyncError> {
        if record.is_stop_marker() {
            return Ok(());
        }
        if let Some((faults, requester)) = self.listeners().find(record.stream) {
            faults.report(&Reported {
                requester,
                pasid: record.substream,
                origin: Origin::Group(record.group.get() as u16),
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
            requester: Requester {
                port: 0,
                id: record.stream,
            },
            pasid: record.substream,
            origin: Origin::Group(record.group.get() as u16),
            response: PageResponse::Invalid,
        })
    }

    /// Takes in a record of the event queue, in a [round](Self::begin_events). Returns whether it is dealt with: a
    /// transaction that waits is answered, by the handler of the domain or at once. All else is for people to read.
    ///
    /// # Errors
    ///
    /// [`SyncError`] if the transaction is of no device, and the SMMU does not take the answer.
    pub fn take_event(&self, event: &Event) -> Result<bool, SyncError> {
        let Event::Fault(fault) = event else {
            return Ok(false);
        };
        let Some(stag) = fault.stall else {
            return Ok(false);
        };
        let origin = Origin::Stall(stag);
        if let Some((faults, requester)) = self.listeners().find(fault.stream) {
            faults.report(&Reported {
                requester,
                pasid: fault.substream,
                origin,
                is_last: true,
                request: PageRequest {
                    address: fault.address,
                    is_read: fault.is_read,
                    is_write: !fault.is_read,
                    is_fetch: fault.is_fetch,
                    is_privileged: fault.is_privileged,
                },
            });
            return Ok(true);
        }
        let requester = Requester {
            port: 0,
            id: fault.stream,
        };
        self.answer(&Answer {
            requester,
            pasid: fault.substream,
            origin,
            response: PageResponse::Invalid,
        })?;
        Ok(true)
    }

    /// Forgets groups whose last request did not come: the PRI queue overflew, and the SMMU has answered them
    /// (section 8.1.1). Their indices may name other groups next.
    pub fn forget_partial_groups(&self) {
        self.listeners().forget_partial();
    }

    /// Answers what the handlers of domains did not answer in time, for all devices. Returns when to call it next,
    /// by the clock of the driver's [`FaultSettings`](crate::device::fault::FaultSettings), if anything is left.
    pub fn expire_page_requests(&self) -> Option<Duration> {
        self.listeners().expire()
    }

    fn answer(&self, answer: &Answer) -> Result<(), SyncError> {
        self.instance().execute(command(answer))
    }
}

/// Returns the command that says so; `None` for a group that no SMMU reports.
fn command(answer: &Answer) -> Option<Command> {
    let stream = answer.requester.id;
    Some(match answer.origin {
        Origin::Group(group) => Command::PriResp {
            stream,
            substream: answer.pasid,
            group: Narrow::new(group.into())?,
            response: match answer.response {
                PageResponse::Success => PriResponse::Success,
                PageResponse::Invalid => PriResponse::Invalid,
                PageResponse::Failure => PriResponse::Failure,
            },
        },
        Origin::Stall(stag) => {
            let is_retry = answer.response == PageResponse::Success;
            Command::Resume {
                stream,
                is_secure: false,
                stag,
                is_retry,
                is_abort: !is_retry,
            }
        }
        Origin::Private { .. } => return None,
    })
}

/// The way for answers to a device behind some SMMUs.
pub(super) struct Responder<M: TableMemory, D: CommandDevice> {
    smmus: Vec<Arc<Smmu<M, D>>>,
}

impl<M: TableMemory + 'static, D: CommandDevice> Responder<M, D> {
    pub(super) fn new(smmus: &[Arc<Smmu<M, D>>]) -> Arc<Self> {
        Arc::new(Self {
            smmus: smmus.to_vec(),
        })
    }
}

impl<M: TableMemory + 'static, D: CommandDevice> PageResponder for Responder<M, D> {
    fn respond(&self, _: DeviceAddress, answer: &Answer) -> Result<(), SyncError> {
        let smmu = self.smmus.get(answer.requester.port);
        smmu.map_or(Ok(()), |smmu| smmu.answer(answer))
    }
}

impl<M: TableMemory, D: CommandDevice> fmt::Debug for Responder<M, D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Responder").finish_non_exhaustive()
    }
}
