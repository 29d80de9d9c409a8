//! What can be attached to a device behind SMMUs.

use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;

use iopt_formats::armv8::{Granule, MAIR, Stage1, Stage2, Tcr, Vtcr};
use iopt_formats::context::smmuv3::{Cd, Context, StreamStage2};
use iopt_formats::{ConfigError, Format, Oa};

use crate::claim::ClaimError;
use crate::device::context::Users;
use crate::device::smmuv3::instance::walk;
use crate::device::smmuv3::{CommandDevice, Features};
use crate::device::{DirectRegion, DomainKind, Hwpt};
use crate::domain::{Domain, DomainError as TableError, TableDomain};
use crate::invalidation::plan::smmuv3::{Smmuv3 as Planner, Tag};
use crate::invalidation::{InvalidationSet, SetError};
use crate::mem::TableMemory;
use crate::radix::{MapError, Table, TableError as NewTableError};
use crate::sync::{DOMAIN_IDS, Mutex};

/// The set of a domain.
pub(super) type Set<D> = InvalidationSet<Planner, D>;

/// A domain for devices behind SMMUs: nothing passes, all passes, or tables translate.
pub struct Smmuv3Domain<D: CommandDevice> {
    what: What<D>,
}

enum What<D: CommandDevice> {
    Blocked,
    Identity,
    Paging(Paging<D>),
}

/// Tables, and what names them.
pub(super) struct Paging<D: CommandDevice> {
    pub(super) users: Arc<Users<Planner, D>>,
    pub(super) stage: Stage,
    /// Whether devices may cache its translations.
    pub(super) allows_ats: bool,
    domain: Arc<dyn Domain>,
    map_direct: Box<MapDirect>,
}

type MapDirect = dyn Fn(DirectRegion) -> Result<(), TableError> + Send + Sync;

/// How hardware is led to the tables.
#[derive(Clone, Copy, Debug)]
pub(super) enum Stage {
    First { tcr: Tcr, mair: u64, root: Oa },
    Second { vtcr: Vtcr, root: Oa },
}

/// Why there is no such domain.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DomainError {
    /// No table.
    #[error(transparent)]
    Table(#[from] NewTableError),
    /// No set.
    #[error(transparent)]
    Set(#[from] SetError),
    /// An STE or a CD cannot lead to it.
    #[error(transparent)]
    Config(#[from] ConfigError),
}

impl<D: CommandDevice> Smmuv3Domain<D> {
    /// Creates a domain in which nothing passes.
    pub const fn blocked() -> Self {
        Self {
            what: What::Blocked,
        }
    }

    /// Creates a domain in which everything passes.
    pub const fn identity() -> Self {
        Self {
            what: What::Identity,
        }
    }

    /// Creates a domain whose tables are those of stage 1, with devices that need their memory pinned.
    ///
    /// # Errors
    ///
    /// [`DomainError`].
    pub fn stage1<const G: u8, M>(format: Stage1<G>, memory: Arc<M>) -> Result<Self, DomainError>
    where
        Stage1<G>: Format,
        M: TableMemory + 'static,
    {
        let set = Arc::new(Set::<D>::new()?);
        let table = Table::new(format, memory)?;
        let tcr = format.tcr(walk::<M>());
        let stage = Stage::First {
            tcr,
            mair: MAIR,
            root: table.root().oa,
        };
        // Legal, or nothing is made.
        stage.context(0)?;
        Ok(Self::paging(table, set, stage))
    }

    /// Creates a domain whose tables are those of stage 2.
    ///
    /// # Errors
    ///
    /// [`DomainError`].
    pub fn stage2<const G: u8, M>(format: Stage2<G>, memory: Arc<M>) -> Result<Self, DomainError>
    where
        Stage2<G>: Format,
        M: TableMemory + 'static,
    {
        let set = Arc::new(Set::<D>::new()?);
        let table = Table::new(format, memory)?;
        let vtcr = format.vtcr(walk::<M>());
        let root = table.root().oa;
        StreamStage2::new(vtcr, root)?;
        Ok(Self::paging(table, set, Stage::Second { vtcr, root }))
    }

    fn paging<F, M>(table: Table<F, Arc<M>>, set: Arc<Set<D>>, stage: Stage) -> Self
    where
        F: Format,
        M: TableMemory + 'static,
    {
        let domain = Arc::new(TableDomain::for_hardware(table, Arc::clone(&set)));
        let direct = Direct {
            domain: Arc::clone(&domain),
            done: Mutex::new(&DOMAIN_IDS, Vec::new()),
        };
        Self {
            what: What::Paging(Paging {
                users: Users::new(set),
                stage,
                allows_ats: true,
                domain,
                map_direct: Box::new(move |region| direct.map(region)),
            }),
        }
    }

    /// Forbids devices to cache its translations.
    #[must_use]
    pub fn without_ats(mut self) -> Self {
        if let What::Paging(paging) = &mut self.what {
            paging.allows_ats = false;
        }
        self
    }

    /// Returns the places where its translations are cached, if it has any.
    pub fn set(&self) -> Option<&Arc<InvalidationSet<Planner, D>>> {
        match &self.what {
            What::Paging(paging) => Some(paging.users.set()),
            What::Blocked | What::Identity => None,
        }
    }

    /// Returns its users, if it has tables: by which ASID or VMID each instance knows it.
    pub const fn users(&self) -> Option<&Arc<Users<Planner, D>>> {
        match &self.what {
            What::Paging(paging) => Some(&paging.users),
            What::Blocked | What::Identity => None,
        }
    }

    pub(super) const fn paging_part(&self) -> Option<&Paging<D>> {
        match &self.what {
            What::Paging(paging) => Some(paging),
            What::Blocked | What::Identity => None,
        }
    }

    /// Returns whether an instance can walk its tables.
    pub(super) const fn fits(&self, features: &Features) -> bool {
        match &self.what {
            What::Blocked | What::Identity => true,
            What::Paging(paging) => match paging.stage {
                Stage::First { tcr, .. } => {
                    features.has_stage1
                        && features.has_granule(tcr.granule)
                        && tcr.oa_bits <= features.oa_bits
                }
                Stage::Second { vtcr, .. } => {
                    features.has_stage2
                        && features.has_granule(vtcr.granule)
                        && vtcr.oa_bits <= features.oa_bits
                }
            },
        }
    }
}

impl Stage {
    pub(super) const fn is_first(&self) -> bool {
        matches!(self, Self::First { .. })
    }

    const fn granule(&self) -> Granule {
        match self {
            Self::First { tcr, .. } => tcr.granule,
            Self::Second { vtcr, .. } => vtcr.granule,
        }
    }

    /// Returns where the TLB has its translations under `id`.
    pub(super) const fn tag(&self, id: u16) -> Tag {
        let granule = self.granule();
        match self {
            Self::First { .. } => Tag::Stage1 {
                vmid: 0,
                asid: id,
                granule,
            },
            Self::Second { .. } => Tag::Stage2 { vmid: id, granule },
        }
    }

    /// Returns what a CD says.
    fn context(&self, asid: u16) -> Result<Option<Context>, ConfigError> {
        match *self {
            Self::First { tcr, mair, root } => {
                let context = Context::empty(tcr.oa_bits)?.with_mair(mair);
                Ok(Some(context.with_table(tcr, root)?.with_asid(asid)))
            }
            Self::Second { .. } => Ok(None),
        }
    }

    /// Returns the CD that leads to the tables of stage 1.
    pub(super) fn cd(&self, asid: u16) -> Cd {
        let context = self.context(asid).ok().flatten();
        context.map_or(Cd::INVALID, |context| Cd::encode(&context))
    }

    /// Returns what an STE says of stage 2.
    pub(super) fn second(&self) -> Option<StreamStage2> {
        match *self {
            Self::First { .. } => None,
            Self::Second { vtcr, root } => StreamStage2::new(vtcr, root).ok(),
        }
    }
}

/// Maps what devices use at any time.
struct Direct<F: Format, M: TableMemory, D: CommandDevice> {
    domain: Arc<TableDomain<F, M, Arc<Set<D>>>>,
    done: Mutex<Vec<DirectRegion>>,
}

impl<F: Format, M: TableMemory, D: CommandDevice> Direct<F, M, D> {
    fn map(&self, region: DirectRegion) -> Result<(), TableError> {
        let mut done = self.done.lock();
        if done.contains(&region) {
            return Ok(());
        }
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
        let flushed = sync
            .sync(self.domain.hardware())
            .map_err(|quarantined| TableError::from(quarantined.error()))?;
        table.reclaim(&flushed);
        done.push(region);
        Ok(())
    }
}

impl<D: CommandDevice> Hwpt for Smmuv3Domain<D> {
    fn kind(&self) -> DomainKind {
        match &self.what {
            What::Blocked => DomainKind::Blocked,
            What::Identity => DomainKind::Identity,
            What::Paging(_) => DomainKind::Paging,
        }
    }

    fn domain(&self) -> Option<Arc<dyn Domain>> {
        self.paging_part().map(|paging| Arc::clone(&paging.domain))
    }

    fn map_direct(&self, region: DirectRegion) -> Result<(), TableError> {
        match &self.what {
            What::Paging(paging) => (paging.map_direct)(region),
            What::Identity => Ok(()),
            What::Blocked => Err(TableError::Unsupported {
                what: "regions of a domain that blocks",
            }),
        }
    }
}

impl<D: CommandDevice> fmt::Debug for Smmuv3Domain<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut debug = f.debug_struct("Smmuv3Domain");
        debug.field("kind", &self.kind());
        if let Some(paging) = self.paging_part() {
            debug.field("stage", &paging.stage);
        }
        debug.finish_non_exhaustive()
    }
}
