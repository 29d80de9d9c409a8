//! A table, the places where it is cached, and what the ledger is told of its changes.

use std::fmt;
use std::io;
use std::ops::RangeInclusive;
use std::sync::Arc;

use iopt::claim::ClaimError;
use iopt::invalidation::queue::ShapeError;
use iopt::invalidation::{
    Flushed, Gather, Invalidate, InvalidationSet, MapSync, Quarantined, SetError, SyncError,
};
use iopt::mem::OutOfMemory;
use iopt::radix::{
    MapError, MapSide, MapperError, ProtectError, Table, TableConfig, TableError, TablePolicy,
    UnmapError, UnmapPolicy,
};
use iopt_formats::{Format as _, Iova, IovaRange, Oa, Prot};
use iopt_sim::{DomainId, Rights};

use crate::behaviour::Behaviour;
use crate::machine::Machine;
use crate::memory::Tables;

/// Why something on a machine failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RigError {
    /// The system has no memory.
    #[error("the system refuses the memory")]
    System(#[from] io::Error),
    /// The machine's memory is used up.
    #[error(transparent)]
    Memory(#[from] OutOfMemory),
    /// The queue cannot be made.
    #[error(transparent)]
    Queue(#[from] ShapeError),
    /// No table can be made.
    #[error(transparent)]
    Table(#[from] TableError),
    /// All domain numbers were used.
    #[error("no number is left for a domain")]
    NoDomain,
    /// The device is attached to another domain than the one it is to be taken from.
    #[error("the device is attached to another domain")]
    OtherDomain,
    /// The domain does not take the device.
    #[error(transparent)]
    Set(#[from] SetError),
    /// The range is no range.
    #[error("the range is empty")]
    Range,
    /// Somebody else changes the range.
    #[error(transparent)]
    Claim(#[from] ClaimError),
    /// The table does not have the range.
    #[error(transparent)]
    Mapper(#[from] MapperError),
    /// A map failed.
    #[error(transparent)]
    Map(#[from] MapError),
    /// A change of rights failed.
    #[error(transparent)]
    Protect(#[from] ProtectError),
    /// An unmap failed.
    #[error(transparent)]
    Unmap(#[from] UnmapError),
    /// The hardware may still use what changed.
    #[error(transparent)]
    Quarantined(#[from] Quarantined),
    /// The hardware failed or did not answer.
    #[error(transparent)]
    Sync(#[from] SyncError),
}

/// The table of a domain and its hardware.
pub struct Domain<B: Behaviour> {
    machine: Arc<Machine<B>>,
    id: u16,
    table: Table<B::Format, Tables>,
    set: InvalidationSet<B::Planner, B::Device>,
}

impl<B: Behaviour> Domain<B> {
    pub(crate) fn new(machine: Arc<Machine<B>>, id: u16) -> Result<Self, RigError> {
        let map_side = if machine.behaviour().is_told_of_maps() {
            MapSide::Announced
        } else {
            MapSide::Silent
        };
        let config = TableConfig::new().with_map_side(map_side);
        let table = Table::with_config(machine.behaviour().format(), machine.tables(), config)?;
        Ok(Self {
            machine,
            id,
            table,
            set: InvalidationSet::new()?,
        })
    }

    /// Returns the machine.
    pub const fn machine(&self) -> &Arc<Machine<B>> {
        &self.machine
    }

    /// Returns the number that the hardware knows it by: ASID, DID, domain ID, PSCID.
    pub const fn id(&self) -> u16 {
        self.id
    }

    /// Returns the number that the ledger knows it by.
    pub fn number(&self) -> DomainId {
        self.id.into()
    }

    /// Returns the table.
    pub const fn table(&self) -> &Table<B::Format, Tables> {
        &self.table
    }

    /// Returns the places where it is cached.
    pub const fn set(&self) -> &InvalidationSet<B::Planner, B::Device> {
        &self.set
    }

    /// Maps `range` to the addresses from `oa` on, and tells the hardware what it needs to know.
    ///
    /// # Errors
    ///
    /// [`RigError`]; if it is [`Quarantined`](RigError::Quarantined), the range is mapped.
    pub fn map(&self, range: RangeInclusive<u64>, oa: u64, prot: Prot) -> Result<(), RigError> {
        let sync = self.added(range.clone(), oa, prot)?;
        let flushed = sync.sync(&self.set)?;
        self.arrived(range, &flushed);
        Ok(())
    }

    /// Removes everything in `range`, waits until the hardware has forgotten it, and gives the tables back
    /// that went with it.
    ///
    /// # Errors
    ///
    /// [`RigError`]; if it is [`Quarantined`](RigError::Quarantined), the hardware may still use what was
    /// removed.
    pub fn unmap(&self, range: RangeInclusive<u64>) -> Result<(), RigError> {
        self.unmap_by(range, TablePolicy::Keep, &self.set)
    }

    /// As [`unmap`](Self::unmap), with the tables that `tables` says, and `hardware` instead of the domain's
    /// own.
    ///
    /// # Errors
    ///
    /// As [`unmap`](Self::unmap).
    pub fn unmap_by<I: Invalidate>(
        &self,
        range: RangeInclusive<u64>,
        tables: TablePolicy,
        hardware: &I,
    ) -> Result<(), RigError> {
        let gather = self.removed(range.clone(), tables)?;
        let flushed = gather.sync(hardware)?;
        self.forgotten(range, &flushed);
        Ok(())
    }

    /// Maps, after telling the ledger that devices may reach the range; the hardware is still to be told.
    ///
    /// # Errors
    ///
    /// [`RigError`].
    pub fn added(
        &self,
        range: RangeInclusive<u64>,
        oa: u64,
        prot: Prot,
    ) -> Result<MapSync, RigError> {
        let iovas = iovas(&range)?;
        let mut claim = self.table.claim(iovas)?;
        let mut mapper = self.table.mapper(&mut claim)?;
        let ledger = self.machine.ledger();
        ledger.map(self.number(), range.clone(), oa, self.granted(prot));
        let mapped = mapper.map(iovas, Oa::new(oa), prot);
        if mapped.is_err() {
            ledger.unmap(self.number(), range.clone());
            ledger.forgotten(self.number(), range);
        }
        Ok(mapped?)
    }

    /// Gives `range`, which is mapped to the addresses from `oa` on, the rights `prot` instead of its own, and waits
    /// until the hardware has forgotten those.
    ///
    /// # Errors
    ///
    /// [`RigError`]; devices need not reach the range any more then.
    pub fn protect(&self, range: RangeInclusive<u64>, oa: u64, prot: Prot) -> Result<(), RigError> {
        let iovas = iovas(&range)?;
        let mut claim = self.table.claim(iovas)?;
        let mut mapper = self.table.mapper(&mut claim)?;
        let (ledger, number) = (self.machine.ledger(), self.number());
        // Both may be met until the sync.
        ledger.unmap(number, range.clone());
        ledger.map(number, range.clone(), oa, self.granted(prot));
        let flushed = mapper.protect(iovas, prot)?.gather.sync(&self.set)?;
        self.forgotten(range.clone(), &flushed);
        ledger.map_done(number, range);
        Ok(())
    }

    /// Returns what the format grants for `prot`: some cannot express every right, and grant more.
    fn granted(&self, prot: Prot) -> Rights {
        let granted = self.table.format().effective(prot).unwrap_or(prot);
        Rights {
            read: granted.can_read(),
            write: granted.can_write(),
        }
    }

    /// Tells the ledger that devices must reach `range` from now on, and gives back the tables that were
    /// replaced.
    pub fn arrived(&self, range: RangeInclusive<u64>, flushed: &Flushed) {
        self.table.reclaim(flushed);
        self.machine.ledger().map_done(self.number(), range);
    }

    /// Removes everything in `range`, after telling the ledger that it ends; the hardware is still to be told.
    ///
    /// # Errors
    ///
    /// [`RigError`].
    pub fn removed(
        &self,
        range: RangeInclusive<u64>,
        tables: TablePolicy,
    ) -> Result<Gather, RigError> {
        let iovas = iovas(&range)?;
        let mut claim = self.table.claim(iovas)?;
        let mut mapper = self.table.mapper(&mut claim)?;
        mapper.set_table_policy(tables);
        self.machine.ledger().unmap(self.number(), range);
        let unmapped = mapper.unmap(iovas, UnmapPolicy::Sparse)?;
        Ok(unmapped.gather)
    }

    /// Gives back the tables that went with `range`, and tells the ledger that nothing may lead there: its
    /// memory may be used for something else.
    pub fn forgotten(&self, range: RangeInclusive<u64>, flushed: &Flushed) {
        self.table.reclaim(flushed);
        self.machine.ledger().forgotten(self.number(), range);
    }
}

fn iovas(range: &RangeInclusive<u64>) -> Result<IovaRange, RigError> {
    let (start, last) = (Iova::new(*range.start()), Iova::new(*range.end()));
    IovaRange::new(start, last).ok_or(RigError::Range)
}

impl<B: Behaviour> fmt::Debug for Domain<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Domain")
            .field("id", &self.id)
            .field("set", &self.set)
            .finish_non_exhaustive()
    }
}
