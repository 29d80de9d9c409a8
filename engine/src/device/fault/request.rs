//! What a device asks for, and what it is told.

use core::fmt;

use iopt_formats::Iova;
use iopt_formats::command::{PageResponse, Pasid};

use crate::device::DeviceAddress;
use crate::invalidation::SyncError;

/// A page that is not there, or not with the rights.
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is an independent right"
)]
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct PageRequest {
    /// An address in it.
    pub address: Iova,
    /// It is to be read.
    pub is_read: bool,
    /// It is to be written.
    pub is_write: bool,
    /// Instructions are to be fetched from it.
    pub is_fetch: bool,
    /// By privileged software.
    pub is_privileged: bool,
}

/// From where a request came, and where its answer goes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Requester {
    /// Which of the instances that the device is behind, in their order.
    pub port: usize,
    /// The ID by which that knows the device.
    pub id: u32,
}

/// How an answer says what it is about.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Origin {
    /// By the index of a group of requests (*PCI Express Base Specification*, section 10.4).
    Group(u16),
    /// By the tag of one transaction that waits.
    Stall(u16),
    /// As a group, and by what the device sent along, which the answer repeats. Such a request is answered on its
    /// own (Intel VT-d specification, revision 3.0, section 7.7).
    Private {
        /// The index of the group.
        group: u16,
        /// No request of the group follows.
        is_last: bool,
        /// What the device sent along.
        data: [u64; 2],
    },
}

impl Origin {
    /// Returns the group of which a request may be the last one.
    pub(super) const fn completes(self) -> Option<u16> {
        match self {
            Self::Group(group)
            | Self::Private {
                group,
                is_last: true,
                ..
            } => Some(group),
            Self::Stall(_) | Self::Private { .. } => None,
        }
    }
}

/// A request as hardware reported it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Reported {
    /// Whose.
    pub requester: Requester,
    /// The PASID of the request, if it had one.
    pub pasid: Option<Pasid>,
    /// What it belongs to.
    pub origin: Origin,
    /// No request of the same group follows. What is not of a plain group is answered alone in any case.
    pub is_last: bool,
    /// What is asked for.
    pub request: PageRequest,
}

impl Reported {
    pub(super) const fn is_complete(&self) -> bool {
        self.is_last || !matches!(self.origin, Origin::Group(_))
    }
}

/// The answer to a group.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Answer {
    /// Where it goes.
    pub requester: Requester,
    /// The PASID that it has to name, if any.
    pub pasid: Option<Pasid>,
    /// What it is about.
    pub origin: Origin,
    /// What became of the pages.
    pub response: PageResponse,
}

/// The way to hardware that an architecture provides: `CMD_PRI_RESP` and `CMD_RESUME`, page group responses,
/// `COMPLETE_PPR_REQUEST`, `ATS.PRGR`.
pub trait PageResponder: Send + Sync + fmt::Debug {
    /// Sends an answer. It need not wait until the device has it; it must end in bounded time.
    ///
    /// Called with locks held, possibly from within an attachment: it must call neither the registry nor
    /// anything of this module.
    ///
    /// # Errors
    ///
    /// [`SyncError`] if hardware did not take it.
    fn respond(&self, device: DeviceAddress, answer: &Answer) -> Result<(), SyncError>;
}
