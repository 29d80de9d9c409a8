//! Processes that devices know, and their PASIDs.

use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;
use core::fmt;

use iopt_formats::IovaRange;
use iopt_formats::command::Pasid;

use crate::device::fault::{FaultHandler, Kept};
use crate::device::ids::{Id, IdError, Ids};
use crate::device::process::bond::Bonds;
use crate::device::process::{ExitError, ProcessDomain, ProcessMemory, ProcessTables};
use crate::invalidation::SyncError;
use crate::sync::{Mutex, PROCESS, PROCESS_DOMAINS, PROCESSES, lockdep};

/// All processes that share one space of PASIDs.
#[derive(Debug)]
pub struct Processes {
    pasids: Arc<Ids>,
    known: Mutex<Vec<(u64, Weak<Process>)>>,
}

/// A process that devices can be bound to.
pub struct Process {
    processes: Arc<Processes>,
    memory: Arc<dyn ProcessMemory>,
    me: Weak<Self>,
    pasid: Pasid,
    own_pasid: Arc<OwnPasid>,
    pub(super) bonds: Mutex<Bonds>,
    domains: Mutex<Domains>,
}

/// The PASID of a process. It is another's only when nobody has this any more: the process, and who may still be asked
/// for pages with it (F5).
struct OwnPasid(Option<Id>);

impl Drop for OwnPasid {
    fn drop(&mut self) {
        // Whatever led to the process's tables kept it; so hardware holds nothing under its PASID (S1).
        if let Some(id) = self.0.take() {
            id.give_back_unused();
        }
    }
}

struct Domains {
    has_exited: bool,
    /// Those that anybody keeps. Nobody moves, as the list may be half read.
    list: Vec<Weak<dyn ProcessDomain>>,
}

/// Why there is no such process.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum ProcessError {
    /// No PASID.
    #[error("no PASID: {0}")]
    Pasid(#[from] IdError),
    /// No memory.
    #[error("no memory for a process")]
    Memory,
}

impl Processes {
    /// Creates a space of the PASIDs from 1 to one less than `count`, 2^20 at most. PASID 0 is that of requests
    /// without one.
    pub fn new(count: u32) -> Arc<Self> {
        let last = count.saturating_sub(1).min(Pasid::MAX.get());
        Arc::new(Self {
            pasids: Ids::new(1..=last),
            known: Mutex::new(&PROCESSES, Vec::new()),
        })
    }

    /// Returns the PASIDs.
    pub const fn pasids(&self) -> &Arc<Ids> {
        &self.pasids
    }

    /// Returns the process of some memory, the same one for as long as anybody has it.
    ///
    /// # Errors
    ///
    /// [`ProcessError`].
    pub fn process(
        self: &Arc<Self>,
        memory: &Arc<dyn ProcessMemory>,
    ) -> Result<Arc<Process>, ProcessError> {
        lockdep::assert_none_held();
        let identity = memory.identity();
        if let Some(process) = self.find(identity) {
            return Ok(process);
        }
        // It listens before anybody can bind a device to it.
        let process = Process::new(self, memory)?;
        memory.subscribe(Arc::downgrade(&process));
        let other = {
            let mut known = self.known.lock();
            let others = known.iter_mut().find(|(other, _)| *other == identity);
            if let Some((_, other)) = others {
                let found = other.upgrade();
                if found.is_none() {
                    *other = Arc::downgrade(&process);
                }
                found
            } else {
                known.try_reserve(1).map_err(|_| ProcessError::Memory)?;
                known.push((identity, Arc::downgrade(&process)));
                None
            }
        };
        Ok(other.unwrap_or(process))
    }

    fn find(&self, identity: u64) -> Option<Arc<Process>> {
        let known = self.known.lock();
        let mut known = known.iter();
        known.find(|(other, _)| *other == identity)?.1.upgrade()
    }
}

impl Process {
    fn new(
        processes: &Arc<Processes>,
        memory: &Arc<dyn ProcessMemory>,
    ) -> Result<Arc<Self>, ProcessError> {
        let id = processes.pasids.allocate()?;
        // The last one has 20 bits.
        let Some(pasid) = Pasid::new(id.get()) else {
            return Err(ProcessError::Memory);
        };
        Ok(Arc::new_cyclic(|me| Self {
            processes: Arc::clone(processes),
            memory: Arc::clone(memory),
            me: Weak::clone(me),
            pasid,
            own_pasid: Arc::new(OwnPasid(Some(id))),
            bonds: Mutex::new(&PROCESS, Bonds::default()),
            domains: Mutex::new(
                &PROCESS_DOMAINS,
                Domains {
                    has_exited: false,
                    list: Vec::new(),
                },
            ),
        }))
    }

    /// Returns its PASID, at all devices.
    pub const fn pasid(&self) -> Pasid {
        self.pasid
    }

    /// Returns what keeps its PASID from other processes.
    pub(in crate::device) fn kept_pasid(&self) -> Kept {
        Arc::clone(&self.own_pasid) as Kept
    }

    /// Returns which process it is.
    pub fn identity(&self) -> u64 {
        self.memory.identity()
    }

    /// Returns where its tables are.
    pub fn tables(&self) -> ProcessTables {
        self.memory.tables()
    }

    /// Returns who makes pages be there that devices ask for.
    pub fn fault_handler(&self) -> Option<Arc<dyn FaultHandler>> {
        self.memory.fault_handler()
    }

    /// Returns whether it has [exited](Self::exit).
    pub fn has_exited(&self) -> bool {
        self.domains.lock().has_exited
    }

    /// Takes a change of its tables in: when this returns no device meets what was in `range`, and the pages and
    /// tables behind it can be used otherwise. Called by who watches the process, after the change.
    ///
    /// # Errors
    ///
    /// [`SyncError`] if hardware fails or does not answer: devices may use what was there.
    pub fn changed(&self, range: IovaRange) -> Result<(), SyncError> {
        let mut outcome = Ok(());
        self.find_domain(|domain| {
            outcome = outcome.and(domain.changed(range));
            None::<()>
        });
        outcome
    }

    /// Takes its end in (S3): when this returns `Ok`, its tables can go. Called by who watches the process; again
    /// it does it again, after an error for one. No device can be bound any more.
    ///
    /// # Errors
    ///
    /// [`ExitError`].
    pub fn exit(&self) -> Result<(), ExitError> {
        self.domains.lock().has_exited = true;
        let mut outcome = Ok(());
        self.find_domain(|domain| {
            outcome = outcome.and(domain.exit());
            None::<()>
        });
        outcome
    }

    /// Looks at the domains one after the other, without a lock, until it finds something. One that is entered
    /// meanwhile leads devices only to what the tables are now, or nowhere.
    pub(super) fn find_domain<R>(
        &self,
        mut look: impl FnMut(Arc<dyn ProcessDomain>) -> Option<R>,
    ) -> Option<R> {
        let mut index = 0;
        loop {
            let domain = self.domains.lock().list.get(index)?.upgrade();
            let found = domain.and_then(&mut look);
            if found.is_some() {
                return found;
            }
            index += 1;
        }
    }

    /// Enters a domain, before anything is attached to it. Returns whether there was memory. Who sees afterwards
    /// that the process has not exited knows that its end will be told to the domain.
    pub(super) fn enter(&self, domain: &Arc<dyn ProcessDomain>) -> bool {
        let mut domains = self.domains.lock();
        let mut places = domains.list.iter_mut();
        if let Some(place) = places.find(|place| place.strong_count() == 0) {
            *place = Arc::downgrade(domain);
            return true;
        }
        if domains.list.try_reserve(1).is_err() {
            return false;
        }
        domains.list.push(Arc::downgrade(domain));
        true
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.memory.unsubscribe(&self.me);
        let me = &self.me;
        let mut known = self.processes.known.lock();
        known.retain(|(_, other)| !other.ptr_eq(me));
    }
}

impl fmt::Debug for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Process")
            .field("identity", &self.identity())
            .field("pasid", &self.pasid)
            .finish_non_exhaustive()
    }
}
