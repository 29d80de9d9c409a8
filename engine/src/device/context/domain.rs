//! What can be attached to a device behind hardware.

use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;

use iopt_formats::{Format, Iova, IovaRange};

use crate::claim::ClaimError;
use crate::device::context::process::ProcessPart;
use crate::device::context::{Architecture, Permit, Target, Users};
use crate::device::fault::FaultHandler;
use crate::device::process::{ExitError, Process, ProcessDomain};
use crate::device::{DirectRegion, DomainKind, Hwpt};
use crate::domain::{Domain, DomainError as TableError, TableDomain};
use crate::invalidation::{Changes, Instance, Invalidate as _, InvalidationSet, SyncError};
use crate::mem::TableMemory;
use crate::radix::{MapError, Table};
use crate::sync::{DOMAIN_IDS, Mutex, SYNC};

/// The set of a domain of that architecture.
pub type Set<A> = InvalidationSet<<A as Architecture>::Planner, <A as Architecture>::Queue>;

/// A domain for devices of one architecture: nothing passes, all passes, or tables translate.
pub struct HardwareDomain<A: Architecture> {
    kind: DomainKind,
    /// What translates after a guest's tables. Lives as long as those may lead there.
    parent: Option<Arc<Self>>,
    translation: Option<Translation<A>>,
    /// The tables, if they are the engine's.
    tables: Option<Tables>,
    /// Whose tables they are, if they are a process's.
    process: Option<ProcessPart<A>>,
    faults: Option<Arc<dyn FaultHandler>>,
}

/// How hardware finds translations, and who caches them.
pub(super) struct Translation<A: Architecture> {
    pub(super) users: Arc<Users<A::Planner, A::Queue>>,
    pub(super) stage: A::Stage,
    /// Whether devices may cache them.
    pub(super) allows_ats: bool,
    /// The only instance that it is for, if it is not for all that can walk the tables.
    only_at: Option<Arc<Instance<A::Planner, A::Queue>>>,
    /// Counts while it lives, of a guest that may have so many.
    _permit: Option<Permit>,
}

/// How a guest's requests are led to its tables, and from there to those of a parent.
pub(in crate::device) struct Nesting<A: Architecture> {
    /// By which ID the instance knows the guest. Its places are in the parent's set.
    pub(in crate::device) users: Arc<Users<A::Planner, A::Queue>>,
    /// Through both, or past the guest's.
    pub(in crate::device) stage: A::Stage,
    /// The instance that the guest's commands go to.
    pub(in crate::device) at: Arc<Instance<A::Planner, A::Queue>>,
    /// Whether the guest lets its devices cache translations.
    pub(in crate::device) allows_ats: bool,
    /// Where the guest may have but so many domains.
    pub(in crate::device) permit: Option<Permit>,
}

impl<A: Architecture> Translation<A> {
    const fn new(users: Arc<Users<A::Planner, A::Queue>>, stage: A::Stage) -> Self {
        Self {
            users,
            stage,
            allows_ats: true,
            only_at: None,
            _permit: None,
        }
    }

    /// Returns whether an instance can have it.
    pub(super) fn fits(&self, unit: &A::Unit) -> bool {
        let only_at = self.only_at.as_ref();
        only_at.is_none_or(|only_at| Arc::ptr_eq(only_at, A::instance(unit)))
            && A::fits(unit, &self.stage)
    }
}

struct Tables {
    domain: Arc<dyn Domain>,
    map_direct: Box<MapDirect>,
}

type MapDirect = dyn Fn(DirectRegion) -> Result<(), TableError> + Send + Sync;

impl<A: Architecture> HardwareDomain<A> {
    /// Creates a domain in which nothing passes.
    pub const fn blocked() -> Self {
        Self::of_kind(DomainKind::Blocked)
    }

    /// Creates a domain in which everything passes.
    pub const fn identity() -> Self {
        Self::of_kind(DomainKind::Identity)
    }

    const fn of_kind(kind: DomainKind) -> Self {
        Self {
            kind,
            parent: None,
            translation: None,
            tables: None,
            process: None,
            faults: None,
        }
    }

    /// Creates a domain whose tables are `table`, to which `stage` leads, with devices that need their memory
    /// pinned. Changes are told to `set`.
    pub fn paging<F, M>(table: Table<F, Arc<M>>, set: Arc<Set<A>>, stage: A::Stage) -> Self
    where
        F: Format,
        M: TableMemory + 'static,
    {
        let domain = Arc::new(TableDomain::for_hardware(table, Arc::clone(&set)));
        let direct = Direct::<F, M, A> {
            domain: Arc::clone(&domain),
            done: Mutex::new(&DOMAIN_IDS, Vec::new()),
        };
        Self {
            translation: Some(Translation::new(Users::new(set), stage)),
            tables: Some(Tables {
                domain,
                map_direct: Box::new(move |region| direct.map(region)),
            }),
            ..Self::of_kind(DomainKind::Paging)
        }
    }

    /// Creates a domain of a guest whose addresses `parent` translates; nothing passes without `nesting`.
    pub(in crate::device) fn nested(parent: &Arc<Self>, nesting: Option<Nesting<A>>) -> Self {
        let allows_ats = parent.translation.as_ref().is_some_and(|it| it.allows_ats);
        let translation = nesting.map(|nesting| Translation {
            allows_ats: nesting.allows_ats && allows_ats,
            only_at: Some(nesting.at),
            _permit: nesting.permit,
            ..Translation::new(nesting.users, nesting.stage)
        });
        Self {
            parent: Some(Arc::clone(parent)),
            translation,
            ..Self::of_kind(DomainKind::Nested)
        }
    }

    /// Creates a domain of a process, to whose tables `stage` leads. Changes are told to `set`.
    pub(super) fn of_process(process: &Arc<Process>, set: Arc<Set<A>>, stage: A::Stage) -> Self {
        Self {
            translation: Some(Translation::new(Users::new(set), stage)),
            process: Some(ProcessPart::new(process)),
            faults: process.fault_handler(),
            ..Self::of_kind(DomainKind::Process)
        }
    }

    /// Makes it fault-capable: `handler` is asked for pages that are not there.
    #[must_use]
    pub fn with_faults(mut self, handler: Arc<dyn FaultHandler>) -> Self {
        self.faults = Some(handler);
        self
    }

    /// Forbids devices to cache its translations.
    #[must_use]
    pub fn without_ats(mut self) -> Self {
        if let Some(translation) = &mut self.translation {
            translation.allows_ats = false;
        }
        self
    }

    /// Returns the places where its translations are cached, if it has any.
    pub fn set(&self) -> Option<&Arc<Set<A>>> {
        self.users().map(|users| users.set())
    }

    /// Returns its users, if it translates: by which ID each instance knows it.
    pub const fn users(&self) -> Option<&Arc<Users<A::Planner, A::Queue>>> {
        match &self.translation {
            Some(translation) => Some(&translation.users),
            None => None,
        }
    }

    /// Returns what translates after the guest's tables, of a domain that is a guest's.
    pub const fn parent(&self) -> Option<&Arc<Self>> {
        self.parent.as_ref()
    }

    pub(super) const fn process(&self) -> Option<&ProcessPart<A>> {
        self.process.as_ref()
    }

    /// Whether its process has ended.
    pub(super) fn has_exited(&self) -> bool {
        self.process.as_ref().is_some_and(ProcessPart::has_exited)
    }

    pub(super) const fn is_fault_capable(&self) -> bool {
        self.faults.is_some()
    }

    pub(in crate::device) fn stage(&self) -> Option<&A::Stage> {
        self.translation.as_ref().map(|it| &it.stage)
    }

    pub(super) const fn translation(&self) -> Option<&Translation<A>> {
        self.translation.as_ref()
    }

    /// Returns where requests are led.
    pub(super) const fn target(&self) -> Target<&A::Stage> {
        match (&self.translation, self.kind) {
            (Some(translation), _) => Target::Stage(&translation.stage),
            (None, DomainKind::Identity) => Target::Identity,
            (None, _) => Target::Blocked,
        }
    }
}

/// Maps what devices use at any time.
struct Direct<F: Format, M: TableMemory, A: Architecture> {
    domain: Arc<TableDomain<F, Arc<M>, Arc<Set<A>>>>,
    /// What is mapped, no IOVA twice.
    done: Mutex<Vec<Done>>,
}

struct Done {
    region: DirectRegion,
    /// Whether hardware confirmed that it was told.
    is_told: bool,
}

impl Done {
    /// Returns whether a region that overlaps it has the same translations where it does.
    fn agrees(&self, other: DirectRegion) -> bool {
        let shift = |region: DirectRegion| {
            let start = region.range.start();
            region.oa.get().wrapping_sub(start.get())
        };
        self.region.prot == other.prot && shift(self.region) == shift(other)
    }
}

/// Returns the first part of a range where nothing is mapped.
fn first_gap(done: &[Done], range: IovaRange) -> Option<IovaRange> {
    let ranges = || done.iter().map(|old| old.region.range);
    let mut start = range.start();
    while let Some(there) = ranges().find(|there| there.start() <= start && start <= there.last()) {
        start = there.last().checked_add(1)?;
    }
    let behind = ranges().map(IovaRange::start).filter(|&next| next > start);
    let ends = behind.filter_map(|next| next.get().checked_sub(1));
    let end = ends.map(Iova::new).min();
    IovaRange::new(start, end.map_or(range.last(), |end| end.min(range.last())))
}

impl<F: Format, M: TableMemory, A: Architecture> Direct<F, M, A> {
    fn map(&self, region: DirectRegion) -> Result<(), TableError> {
        let mut done = self.done.lock();
        for old in done.iter_mut().filter(|old| !old.is_told) {
            let hardware = self.domain.hardware();
            let changes = Changes::any_in(old.region.range);
            hardware.wait(hardware.submit(&changes)?)?;
            old.is_told = true;
        }
        let mut beside = done.iter();
        let is_clash = |old: &Done| old.region.range.overlaps(region.range) && !old.agrees(region);
        if beside.any(is_clash) {
            // The table says where.
            return self.map_gap(region, &mut done);
        }
        let mut rest = Some(region.range);
        while let Some(range) = rest.and_then(|rest| first_gap(&done, rest)) {
            let offset = range.start().get() - region.range.start().get();
            let Some(oa) = region.oa.checked_add(offset) else {
                // The table refuses what ends beyond all addresses.
                return self.map_gap(region, &mut done);
            };
            self.map_gap(
                DirectRegion {
                    range,
                    oa,
                    ..region
                },
                &mut done,
            )?;
            let next = range.last().checked_add(1);
            rest = next.and_then(|next| IovaRange::new(next, region.range.last()));
        }
        Ok(())
    }

    /// Maps where nothing is, and notes it.
    fn map_gap(&self, region: DirectRegion, done: &mut Vec<Done>) -> Result<(), TableError> {
        done.try_reserve(1).map_err(|_| TableError::OutOfMemory)?;
        let other = |error: Box<dyn core::error::Error + Send + Sync>| TableError::Other(error);
        let table = self.domain.table();
        let mut claim = table
            .claim(region.range)
            .map_err(|error: ClaimError| other(Box::new(error)))?;
        let mut mapper = table
            .mapper(&mut claim)
            .map_err(|error| other(Box::new(error)))?;
        let mapped = mapper.map(region.range, region.oa, region.prot);
        let sync = mapped.map_err(|error| match error {
            MapError::OutOfMemory(_) => TableError::OutOfMemory,
            error => other(Box::new(error)),
        })?;
        done.push(Done {
            region,
            is_told: false,
        });
        let flushed = sync
            .sync(self.domain.hardware())
            .map_err(|quarantined| TableError::from(quarantined.error()))?;
        table.reclaim(&flushed);
        if let Some(new) = done.last_mut() {
            new.is_told = true;
        }
        Ok(())
    }
}

impl<A: Architecture> Hwpt for HardwareDomain<A> {
    fn kind(&self) -> DomainKind {
        self.kind
    }

    fn domain(&self) -> Option<Arc<dyn Domain>> {
        let tables = self.tables.as_ref();
        tables.map(|tables| Arc::clone(&tables.domain))
    }

    fn fault_handler(&self) -> Option<Arc<dyn FaultHandler>> {
        self.faults.clone()
    }

    fn map_direct(&self, region: DirectRegion) -> Result<(), TableError> {
        match (&self.tables, self.kind) {
            (Some(tables), _) => (tables.map_direct)(region),
            (None, DomainKind::Identity) => Ok(()),
            (None, _) => Err(TableError::Unsupported {
                what: "regions of a domain without tables of its own",
            }),
        }
    }
}

impl<A: Architecture> HardwareDomain<A> {
    /// Makes all places forget `changes`.
    fn forget(&self, changes: &Changes) -> Result<(), SyncError> {
        let _waiting = SYNC.waiting();
        let Some(set) = self.set() else {
            return Ok(());
        };
        set.wait(set.submit(changes)?)
    }
}

impl<A: Architecture> ProcessDomain for HardwareDomain<A> {
    fn changed(&self, range: IovaRange) -> Result<(), SyncError> {
        self.forget(&Changes::any_in(range))
    }

    fn exit(self: Arc<Self>) -> Result<(), ExitError> {
        let Some(process) = &self.process else {
            return Ok(());
        };
        let are_released = process.exit(|endpoint| endpoint.end_process(&self));
        let forgotten = self.forget(&Changes::everything());
        if are_released && forgotten.is_ok() {
            Ok(())
        } else {
            Err(ExitError)
        }
    }
}

impl<A: Architecture> fmt::Debug for HardwareDomain<A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut debug = f.debug_struct("HardwareDomain");
        debug.field("kind", &self.kind);
        if let Some(translation) = &self.translation {
            debug.field("stage", &translation.stage);
        }
        debug.finish_non_exhaustive()
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use iopt_formats::{Oa, Prot};

    use super::*;

    #[test]
    fn a_gap_is_what_lies_between_regions() {
        let range = |start, last| IovaRange::new(Iova::new(start), Iova::new(last));
        let done: Vec<_> = [(30, 39), (10, 19), (20, 24), (u64::MAX - 9, u64::MAX)]
            .into_iter()
            .filter_map(|(start, last)| range(start, last))
            .map(|range| Done {
                region: DirectRegion {
                    range,
                    oa: Oa::new(0),
                    prot: Prot::RW,
                },
                is_told: true,
            })
            .collect();
        for (first, last, expected) in [
            (0, 50, range(0, 9)),
            (0, 9, range(0, 9)),
            (10, 50, range(25, 29)),
            (12, 26, range(25, 26)),
            (12, 24, None),
            (30, 50, range(40, 50)),
            (15, u64::MAX, range(25, 29)),
            (40, u64::MAX, range(40, u64::MAX - 10)),
            (u64::MAX - 5, u64::MAX, None),
        ] {
            let whole = range(first, last).expect("it rises");
            assert_eq!(first_gap(&done, whole), expected, "{first} {last}");
        }
    }
}
