//! Which device an ID in a record of hardware names.

use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;
use core::fmt;
use core::time::Duration;

use crate::device::fault::queue::DeviceFaults;
use crate::device::fault::request::Requester;
use crate::sync::{LISTENERS, Mutex};

/// The devices of one instance that can ask for pages, by the IDs in its records.
pub struct Listeners {
    /// In rising order of ID; of one ID, in the order in which devices came.
    entries: Mutex<Vec<Entry>>,
}

struct Entry {
    id: u32,
    port: usize,
    faults: Weak<DeviceFaults>,
}

/// No memory to note that a device may ask for pages.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("no memory to note that a device may ask for pages")]
pub struct ListenError;

impl Default for Listeners {
    fn default() -> Self {
        Self::new()
    }
}

impl Listeners {
    /// Creates an empty list.
    pub fn new() -> Self {
        Self {
            entries: Mutex::new(&LISTENERS, Vec::new()),
        }
    }

    /// Says that records with one of `ids` are about a device, of which this instance is the `port`th. Where others
    /// have an ID, too, nobody can tell whose a record is, and it goes to who came last of those that may ask.
    ///
    /// # Errors
    ///
    /// [`ListenError`], with nothing noted.
    pub fn enter(
        &self,
        ids: &[u32],
        port: usize,
        faults: &Arc<DeviceFaults>,
    ) -> Result<(), ListenError> {
        let mut entries = self.entries.lock();
        entries.retain(|entry| entry.faults.strong_count() > 0);
        entries.try_reserve(ids.len()).map_err(|_| ListenError)?;
        for &id in ids {
            let entry = Entry {
                id,
                port,
                faults: Arc::downgrade(faults),
            };
            let at = entries.partition_point(|entry| entry.id <= id);
            entries.insert(at, entry);
        }
        Ok(())
    }

    /// Forgets a device.
    pub fn strike_out(&self, faults: &Arc<DeviceFaults>) {
        let is_it = |entry: &Entry| core::ptr::eq(entry.faults.as_ptr(), Arc::as_ptr(faults));
        self.entries.lock().retain(|entry| !is_it(entry));
    }

    /// Answers what was not answered in time, of all devices ([`DeviceFaults::expire`]). Returns when to call it
    /// next, by the clock of the devices, if anything is left.
    pub fn expire(&self) -> Option<Duration> {
        let mut next = None;
        self.for_each(|faults| {
            let own = faults.expire();
            next = own.into_iter().chain(next).min();
        });
        next
    }

    /// Forgets what is kept of groups whose last request did not come, of all devices
    /// ([`DeviceFaults::forget_partial`]).
    pub fn forget_partial(&self) {
        self.for_each(DeviceFaults::forget_partial);
    }

    /// Looks at the devices one after the other, without the lock; at one with several IDs for each.
    fn for_each(&self, mut look: impl FnMut(&DeviceFaults)) {
        let mut from = Some(0);
        while let Some(first) = from {
            let (id, count) = {
                let entries = self.entries.lock();
                let at = entries.partition_point(|entry| entry.id < first);
                let Some(id) = entries.get(at).map(|entry| entry.id) else {
                    return;
                };
                (id, entries.partition_point(|entry| entry.id <= id) - at)
            };
            for nth in 0..count {
                let faults = {
                    let entries = self.entries.lock();
                    let at = entries.partition_point(|entry| entry.id < id) + nth;
                    let entry = entries.get(at).filter(|entry| entry.id == id);
                    entry.and_then(|entry| entry.faults.upgrade())
                };
                if let Some(faults) = faults {
                    look(&faults);
                }
            }
            from = id.checked_add(1);
        }
    }

    /// Returns whose an ID is, and what answers have to name. Of several, those go first who have a fault-capable
    /// domain: the others were not allowed to ask.
    pub fn find(&self, id: u32) -> Option<(Arc<DeviceFaults>, Requester)> {
        let mut idle = None;
        let mut nth = 0;
        loop {
            // One after the other, as their own locks come before this one.
            let found = {
                let entries = self.entries.lock();
                let first = entries.partition_point(|entry| entry.id < id);
                let end = entries.partition_point(|entry| entry.id <= id);
                let mut own = entries.get(first..end)?.iter().rev().skip(nth);
                let Some(entry) = own.next() else {
                    return idle;
                };
                let port = entry.port;
                let requester = Requester { port, id };
                entry.faults.upgrade().map(|faults| (faults, requester))
            };
            match found {
                Some((faults, requester)) if faults.has_queue() => {
                    return Some((faults, requester));
                }
                Some(found) => idle = idle.or(Some(found)),
                None => {}
            }
            nth += 1;
        }
    }
}

impl fmt::Debug for Listeners {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let entries = self.entries.lock();
        let ids = entries.iter().map(|entry| entry.id);
        f.debug_set().entries(ids).finish()
    }
}
