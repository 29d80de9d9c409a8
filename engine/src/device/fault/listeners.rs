//! Which device an ID in a record of hardware names.

use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;
use core::fmt;
use core::time::Duration;

use crate::device::fault::queue::DeviceFaults;
use crate::device::fault::request::Requester;
use crate::device::fault::rounds::{Mark, Open, Rounds};
use crate::sync::{LISTENERS, Mutex};

/// The devices of one instance that can ask for pages, by the IDs in its records.
pub struct Listeners {
    /// In rising order of ID; of one ID, in the order in which devices came.
    entries: Mutex<Vec<Entry>>,
    /// Of who reads groups, and of who reads transactions that wait.
    rounds: [Reading; 2],
}

/// A queue of records.
struct Reading {
    rounds: Arc<Rounds>,
    /// When a device left its IDs last, if any did.
    left: Mutex<Option<Mark>>,
}

impl Default for Reading {
    fn default() -> Self {
        Self {
            rounds: Arc::new(Rounds::new()),
            left: Mutex::new(&LISTENERS, None),
        }
    }
}

/// A round of who reads an instance's records: from before it looks where the queue ends until it has taken in all up
/// to there. A queue has one reader at a time; rounds that overlap do not count, nor does one that is dropped.
///
/// Who shares a place with a domain that left is asked for nothing that was in the queue by then. What is in doubt is
/// answered: groups so that the device asks again, transactions that wait so that they go on in the new domain if that
/// replaced the old one, and are given up if the place was empty in between. PASIDs of processes are used again only
/// after a round, so there should be rounds also where there is nothing to read. A round that ends with an error, or
/// before the end that was seen, is dropped.
///
/// What is not in the queue yet when a domain leaves, nobody can tell from what is asked for later: who drives the
/// device stops it first, and waits until all that it asked is on record. With a PASID a device says itself that it has
/// stopped (*PCI Express Base Specification*, section 10.4.1.2).
#[must_use = "dropped, it does not count"]
pub struct Round<'l> {
    listeners: &'l Listeners,
    open: Open<'l>,
}

impl Round<'_> {
    /// Says that all was taken in that was in the queue when it began.
    pub fn finish(self) {
        let Self { listeners, open } = self;
        if open.finish() {
            listeners.for_each(DeviceFaults::forget_passed);
        }
    }
}

impl fmt::Debug for Round<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Round").field(&self.open).finish()
    }
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
    /// Creates an empty list, of records whose readers tell their [rounds](Self::begin).
    pub fn new() -> Self {
        Self {
            entries: Mutex::new(&LISTENERS, Vec::new()),
            rounds: Default::default(),
        }
    }

    /// Begins a round over the records of groups, or of transactions that wait.
    pub fn begin(&self, has_stalls: bool) -> Round<'_> {
        Round {
            listeners: self,
            open: self.reading(has_stalls).rounds.begin(),
        }
    }

    const fn reading(&self, has_stalls: bool) -> &Reading {
        &self.rounds[has_stalls as usize]
    }

    /// Says that records of a device, of which this instance is the `port`th, come in the queue of groups, or in that
    /// of transactions that wait. Comes before it is [entered](Self::enter).
    ///
    /// # Errors
    ///
    /// [`ListenError`], with nothing noted.
    pub fn watch(
        &self,
        port: usize,
        faults: &DeviceFaults,
        has_stalls: bool,
    ) -> Result<(), ListenError> {
        let reading = self.reading(has_stalls);
        // What is in the queue may be of a device that had the ID.
        let left = *reading.left.lock();
        let left = left.filter(|&left| !reading.rounds.has_passed(left));
        let watched = faults.read_by(port, has_stalls, &reading.rounds, left);
        watched.map_err(|_| ListenError)
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
        for reading in &self.rounds {
            let now = reading.rounds.mark();
            let mut left = reading.left.lock();
            *left = (*left).max(Some(now));
        }
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
