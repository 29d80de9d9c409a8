//! What of a domain is a process's: where its end has to be made known.

use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;

use iopt_formats::command::Pasid;

use crate::device::AttachFailure;
use crate::device::context::{Architecture, HardwareEndpoint};
use crate::device::fault::Kept;
use crate::device::process::Process;
use crate::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use crate::sync::{Mutex, PROCESS_DOMAINS};

/// The process behind a domain, and the endpoints that lead to its tables.
///
/// An endpoint is entered before its contexts lead there; the end is noted before the list is read. So each
/// endpoint finds the end noted when it writes its contexts, or is found in the list.
pub(super) struct ProcessPart<A: Architecture> {
    process: Arc<Process>,
    has_exited: AtomicBool,
    /// What endpoints keep, as hardware did not confirm that it left the tables. Of an endpoint that is gone it
    /// counts for ever.
    stuck_count: AtomicUsize,
    /// Those that led there at any time, as far as they live.
    endpoints: Mutex<Vec<Weak<HardwareEndpoint<A>>>>,
}

impl<A: Architecture> ProcessPart<A> {
    pub(super) fn new(process: &Arc<Process>) -> Self {
        Self {
            process: Arc::clone(process),
            has_exited: AtomicBool::new(false),
            stuck_count: AtomicUsize::new(0),
            endpoints: Mutex::new(&PROCESS_DOMAINS, Vec::new()),
        }
    }

    pub(super) fn pasid(&self) -> Pasid {
        self.process.pasid()
    }

    /// Returns what keeps the PASID from other processes.
    pub(super) fn kept_pasid(&self) -> Kept {
        self.process.kept_pasid()
    }

    pub(super) fn has_exited(&self) -> bool {
        self.has_exited.load(Ordering::Acquire)
    }

    /// Enters an endpoint, or finds it entered.
    pub(super) fn enter(&self, endpoint: &Weak<HardwareEndpoint<A>>) -> Result<(), AttachFailure> {
        if endpoint.strong_count() == 0 {
            return Err(AttachFailure::Unsupported {
                what: "the domains of processes",
            });
        }
        let mut endpoints = self.endpoints.lock();
        if endpoints.iter().any(|other| other.ptr_eq(endpoint)) {
            return Ok(());
        }
        // Nobody moves, as the list may be half read.
        let mut places = endpoints.iter_mut();
        if let Some(place) = places.find(|other| other.strong_count() == 0) {
            *place = Weak::clone(endpoint);
            return Ok(());
        }
        endpoints
            .try_reserve(1)
            .map_err(|_| AttachFailure::Exhausted)?;
        endpoints.push(Weak::clone(endpoint));
        Ok(())
    }

    /// Notes that an endpoint keeps an attachment, under the endpoint's lock.
    pub(super) fn note_stuck(&self) {
        self.stuck_count.fetch_add(1, Ordering::AcqRel);
    }

    /// Notes that hardware has left what an endpoint kept.
    pub(super) fn note_left(&self) {
        self.stuck_count.fetch_sub(1, Ordering::AcqRel);
    }

    /// Notes the end, and makes it known to all endpoints. Returns whether each said that it is, and none that is
    /// gone has left anything behind.
    pub(super) fn exit(&self, make_known: impl Fn(&HardwareEndpoint<A>) -> bool) -> bool {
        self.has_exited.store(true, Ordering::Release);
        let mut is_known = true;
        let mut index = 0;
        loop {
            // Who is entered from now on finds it noted.
            let next = self.endpoints.lock().get(index).map(Weak::upgrade);
            match next {
                // Of those that are gone it was counted while they were there.
                None => return is_known && self.stuck_count.load(Ordering::Acquire) == 0,
                Some(endpoint) => is_known &= endpoint.is_none_or(|endpoint| make_known(&endpoint)),
            }
            index += 1;
        }
    }
}
