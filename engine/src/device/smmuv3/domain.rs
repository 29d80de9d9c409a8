//! What an SMMU translates by: stage 1, stage 2, or a guest's stage 1 and then stage 2.

use alloc::boxed::Box;
use alloc::sync::Arc;

use iopt_formats::armv8::{Granule, MAIR, Stage1, Stage2, Tcr, Vtcr};
use iopt_formats::context::smmuv3::{Cd, Context, FaultPolicy, Stream, StreamStage1, StreamStage2};
use iopt_formats::{ConfigError, Format, Oa};

use crate::device::NewDomainError;
use crate::device::context::{HardwareDomain, Set};
use crate::device::smmuv3::instance::walk;
use crate::device::smmuv3::{CommandDevice, Features, Smmuv3, Stalls};
use crate::invalidation::SetError;
use crate::invalidation::plan::smmuv3::Tag;
use crate::mem::TableMemory;
use crate::radix::{Table, TableError};

/// A domain for devices behind SMMUs.
pub type Smmuv3Domain<M, D> = HardwareDomain<Smmuv3<M, D>>;

/// How an SMMU is led to tables.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Stage {
    /// By a CD.
    First {
        /// Their format.
        tcr: Tcr,
        /// The attributes that they choose from.
        mair: u64,
        /// Where they are.
        root: Oa,
    },
    /// By the STE.
    Second {
        /// Their format.
        vtcr: Vtcr,
        /// Where they are.
        root: Oa,
    },
    /// By a guest's CDs, if it has stage 1, and from there by the STE.
    Nested {
        /// Where the CDs are, for the guest; without, requests have addresses of the guest's memory.
        stage1: Option<StreamStage1>,
        /// The format of the tables of stage 2.
        vtcr: Vtcr,
        /// Where these are.
        root: Oa,
    },
}

/// Why there is no such domain.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DomainError {
    /// No table.
    #[error(transparent)]
    Table(#[from] TableError),
    /// No set.
    #[error(transparent)]
    Set(#[from] SetError),
    /// An STE or a CD cannot lead to it.
    #[error(transparent)]
    Config(#[from] ConfigError),
}

impl From<DomainError> for NewDomainError {
    fn from(error: DomainError) -> Self {
        match error {
            DomainError::Set(_) | DomainError::Table(TableError::OutOfMemory(_)) => Self::Exhausted,
            error => Self::Other(Box::new(error)),
        }
    }
}

impl<M: TableMemory + 'static, D: CommandDevice> HardwareDomain<Smmuv3<M, D>> {
    /// Creates a domain whose tables are those of stage 1, with devices that need their memory pinned.
    ///
    /// # Errors
    ///
    /// [`DomainError`].
    pub fn stage1<const G: u8, T>(format: Stage1<G>, memory: Arc<T>) -> Result<Self, DomainError>
    where
        Stage1<G>: Format,
        T: TableMemory + 'static,
    {
        let set = Arc::new(Set::<Smmuv3<M, D>>::new()?);
        let table = Table::new(format, memory)?;
        // Legal, or nothing is made.
        let stage = Stage::first(format.tcr(walk::<T>()), MAIR, table.root().oa)?;
        Ok(Self::paging(table, set, stage))
    }

    /// Creates a domain whose tables are those of stage 2.
    ///
    /// # Errors
    ///
    /// [`DomainError`].
    pub fn stage2<const G: u8, T>(format: Stage2<G>, memory: Arc<T>) -> Result<Self, DomainError>
    where
        Stage2<G>: Format,
        T: TableMemory + 'static,
    {
        let set = Arc::new(Set::<Smmuv3<M, D>>::new()?);
        let table = Table::new(format, memory)?;
        let vtcr = format.vtcr(walk::<T>());
        let root = table.root().oa;
        StreamStage2::new(vtcr, root)?;
        Ok(Self::paging(table, set, Stage::Second { vtcr, root }))
    }
}

impl Stage {
    /// Returns how a CD leads to tables of stage 1.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] if no CD can.
    pub fn first(tcr: Tcr, mair: u64, root: Oa) -> Result<Self, ConfigError> {
        let stage = Self::First { tcr, mair, root };
        stage.context(0)?;
        Ok(stage)
    }

    /// Returns whether it is stage 1.
    pub const fn is_first(&self) -> bool {
        matches!(self, Self::First { .. })
    }

    /// Returns whether an instance can walk such tables.
    pub(super) fn fits(&self, features: &Features) -> bool {
        match self {
            Self::First { tcr, .. } => {
                features.has_stage1
                    && features.has_granule(tcr.granule)
                    && features.has_updates(tcr.updates)
                    && features.has_walk(tcr.walk)
                    && (features.has_wide_descriptors || !tcr.ds)
                    && 64_u8.saturating_sub(tcr.tsz) <= features.va_bits
                    && tcr.oa_bits <= features.oa_bits
            }
            Self::Second { vtcr, .. } | Self::Nested { vtcr, .. } => {
                features.has_stage2
                    && features.has_granule(vtcr.granule)
                    && features.has_updates(vtcr.updates)
                    && features.has_walk(vtcr.walk)
                    && (features.has_forced_write_back || !vtcr.forced_write_back)
                    && (features.has_wide_descriptors || !vtcr.ds)
                    && 64_u8.saturating_sub(vtcr.t0sz) <= features.oa_bits
                    && vtcr.oa_bits <= features.oa_bits
                    && (!self.is_nested() || features.has_stage1)
            }
        }
    }

    /// Returns whether it is a guest's.
    pub(super) const fn is_nested(&self) -> bool {
        matches!(self, Self::Nested { .. })
    }

    /// Returns whether a guest's CDs lead to it.
    pub(super) const fn has_guest_cds(&self) -> bool {
        matches!(
            self,
            Self::Nested {
                stage1: Some(_),
                ..
            }
        )
    }

    /// Returns whether stage 2 has a part in it.
    pub(super) const fn has_second(&self) -> bool {
        !self.is_first()
    }

    const fn granule(&self) -> Granule {
        match self {
            Self::First { tcr, .. } => tcr.granule,
            Self::Second { vtcr, .. } | Self::Nested { vtcr, .. } => vtcr.granule,
        }
    }

    /// Returns where the TLB has its translations under `id`: those of single stages.
    pub(super) const fn tag(&self, id: u16) -> Tag {
        let granule = self.granule();
        match self {
            Self::First { .. } => Tag::Stage1 {
                vmid: 0,
                asid: id,
                granule,
            },
            Self::Second { .. } | Self::Nested { .. } => Tag::Stage2 { vmid: id, granule },
        }
    }

    /// Returns where it has what it combined of a guest's stage 1 and stage 2. All domains of a guest have that
    /// place: what one left there may be met when the next is attached, so it goes with the VMID.
    pub(super) const fn combined(&self, vmid: u16) -> Option<Tag> {
        let granule = self.granule();
        if self.is_nested() {
            Some(Tag::Combined { vmid, granule })
        } else {
            None
        }
    }

    /// Returns what a CD says.
    fn context(&self, asid: u16) -> Result<Option<Context>, ConfigError> {
        match *self {
            Self::First { tcr, mair, root } => {
                let context = Context::empty(tcr.oa_bits)?.with_mair(mair);
                Ok(Some(context.with_table(tcr, root)?.with_asid(asid)))
            }
            Self::Second { .. } | Self::Nested { .. } => Ok(None),
        }
    }

    /// Returns the CD that leads to the tables of stage 1; transactions that fault wait, or not.
    pub(super) fn cd(&self, asid: u16, stalls: bool) -> Cd {
        let context = self.context(asid).ok().flatten();
        let faults = FaultPolicy {
            stalls,
            ..FaultPolicy::ABORT
        };
        context.map_or(Cd::INVALID, |context| {
            Cd::encode(&context.with_faults(faults))
        })
    }

    /// Returns the CD after the end of the process whose tables these were: valid, so that its transactions abort
    /// without a record, and nothing is walked (`EPD0`). It can take the place of [`cd`](Self::cd) in one store. Where
    /// faults have to stall they do.
    pub(super) fn ended_cd(&self, asid: u16, stalls: bool) -> Cd {
        let faults = FaultPolicy {
            stalls,
            records: false,
            aborts: true,
        };
        let Self::First { tcr, .. } = self else {
            return Cd::INVALID;
        };
        let context = self.context(asid).ok().flatten();
        context.map_or(Cd::INVALID, |context| {
            Cd::encode(&context.without_table(tcr.half).with_faults(faults))
        })
    }

    /// Returns what an STE says of stage 2, where transactions that fault wait, or not.
    pub(super) fn second(&self, stalls: bool) -> Option<StreamStage2> {
        match *self {
            Self::First { .. } => None,
            Self::Second { vtcr, root } | Self::Nested { vtcr, root, .. } => {
                let mut stage2 = StreamStage2::new(vtcr, root).ok()?;
                stage2.stalls = stalls;
                // A guest's CDs and tables are not to be in the memory of devices, which reads could change.
                stage2.protects_walks = self.is_nested();
                Some(stage2)
            }
        }
    }

    /// Returns what an STE says, but for the VMID and ATS, if no CDs of the host are needed. Faults of a guest's
    /// stage 1 do not stall, unless nothing else is legal: nobody resolves them.
    pub(super) fn stream(&self, smmu: &Features) -> Option<Stream> {
        let second = self.second(smmu.stalls == Stalls::Forced)?;
        let Self::Nested { stage1, .. } = *self else {
            return Some(Stream::stage2(second));
        };
        let stream = match stage1 {
            None => Stream::stage2(second),
            Some(mut stage1) => {
                stage1.stalls_disabled = smmu.stalls == Stalls::Allowed;
                Stream::nested(stage1, second).ok()?
            }
        };
        // A guest can make as many faults as it likes.
        Some(stream.with_merged_events())
    }
}
