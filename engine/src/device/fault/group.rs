//! A group of page requests in the hands of who is to answer it.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;

use iopt_formats::command::{PageResponse, Pasid};

use crate::device::DeviceAddress;
use crate::device::fault::queue::{DeviceFaults, Open};
use crate::device::fault::request::PageRequest;
use crate::invalidation::SyncError;
use crate::sync::unmodelled::{AtomicU8, Ordering};

/// Makes pages be there.
///
/// A domain that has one is fault-capable ([`Hwpt::fault_handler`](crate::device::Hwpt::fault_handler)).
pub trait FaultHandler: Send + Sync {
    /// Takes a group, to be answered now or later, from whatever thread. Called with no lock of the engine held,
    /// from the thread that reported the last request.
    ///
    /// The domain may have left the place, and the group be answered, by the time this is called: then the
    /// answer is refused.
    fn handle(&self, group: FaultGroup);
}

/// Requests that are answered together. Dropped without an answer, it is answered with
/// [`PageResponse::Invalid`].
pub struct FaultGroup {
    pub(super) faults: Arc<DeviceFaults>,
    pub(super) pasid: Option<Pasid>,
    pub(super) requests: Vec<PageRequest>,
    pub(super) fate: Arc<Fate>,
    pub(super) has_responded: bool,
}

/// Why an answer was refused, or did not arrive. The group is closed in any case.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum RespondError {
    /// It came too late: hardware was told that the pages cannot be had.
    #[error("the time to answer the page requests is over")]
    TimedOut,
    /// The domain left the place where the requests came, which answered them.
    #[error("the domain is no longer attached where the page requests came")]
    Detached,
    /// Hardware does not take it.
    #[error("the answer to page requests did not reach the device: {0}")]
    Hardware(#[from] SyncError),
}

impl FaultGroup {
    /// Returns which device asks.
    pub fn device(&self) -> DeviceAddress {
        self.faults.address()
    }

    /// Returns the PASID of the requests, if they had one.
    pub const fn pasid(&self) -> Option<Pasid> {
        self.pasid
    }

    /// Returns what is asked for, in the order of arrival; at least one request.
    pub fn requests(&self) -> &[PageRequest] {
        &self.requests
    }

    /// Returns whether nobody else has answered it so far.
    pub fn is_open(&self) -> bool {
        self.fate.is_open()
    }

    /// Answers the group.
    ///
    /// # Errors
    ///
    /// [`RespondError`].
    pub fn respond(mut self, response: PageResponse) -> Result<(), RespondError> {
        self.has_responded = true;
        self.faults.respond(&self.fate, response)
    }
}

impl Drop for FaultGroup {
    fn drop(&mut self) {
        if !self.has_responded {
            // Nobody is there to be told that it was answered meanwhile.
            let _ = self.faults.respond(&self.fate, PageResponse::Invalid);
        }
    }
}

impl fmt::Debug for FaultGroup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FaultGroup")
            .field("device", &self.device())
            .field("pasid", &self.pasid)
            .field("requests", &self.requests)
            .finish_non_exhaustive()
    }
}

/// Who closed a group other than who had it; written under the lock of its device. Tells open groups apart,
/// too.
pub(super) struct Fate(AtomicU8);

const OPEN: u8 = 0;
const TIMED_OUT: u8 = 1;
const DETACHED: u8 = 2;

impl Fate {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self(AtomicU8::new(OPEN)))
    }

    pub(super) fn set_timed_out(&self) {
        self.0.store(TIMED_OUT, Ordering::Relaxed);
    }

    pub(super) fn set_detached(&self) {
        self.0.store(DETACHED, Ordering::Relaxed);
    }

    /// What is read without the lock may be closed a moment later.
    pub(super) fn is_open(&self) -> bool {
        self.0.load(Ordering::Relaxed) == OPEN
    }

    /// Returns why a group is not open.
    pub(super) fn error(&self) -> RespondError {
        if self.0.load(Ordering::Relaxed) == TIMED_OUT {
            RespondError::TimedOut
        } else {
            RespondError::Detached
        }
    }

    pub(super) fn is_of(self: &Arc<Self>, open: &Open) -> bool {
        Arc::ptr_eq(self, &open.fate)
    }
}
