//! Domains for devices behind VT-d units, and how hardware is led to their tables.

use alloc::boxed::Box;
use alloc::sync::Arc;

use iopt_formats::command::Pasid;
use iopt_formats::context::vtd::{
    self as context, ContextError, LegacyContext, PasidEntry, TableMode,
};
use iopt_formats::vtd::{FirstStage, SecondStage};
use iopt_formats::{ConfigError, Format as _, Oa, PageSizes};

use crate::device::NewDomainError;
use crate::device::context::{HardwareDomain, Set};
use crate::device::vtd::{CommandDevice, Features, GuestFirst, Vtd};
use crate::invalidation::SetError;
use crate::invalidation::plan::vtd::{Tag, Vtd as Planner};
use crate::mem::TableMemory;
use crate::radix::{MapSide, Table, TableConfig, TableError};

/// Bits of the input addresses of first stages: the lower half of four levels.
const FIRST_BITS: u8 = 47;

/// The narrowest addresses that a format has.
const LEAST_HOST_BITS: u8 = 32;

/// What entries say of a domain, but for its ID: which tables, and how they are read. And whether maps are told,
/// which some units need.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Stage {
    /// First-stage tables, in scalable mode only.
    First(First),
    /// Second-stage tables.
    Second(Second),
    /// A guest's first-stage tables, and behind them second-stage tables, in scalable mode only.
    Nested(GuestFirst, Second),
}

/// First-stage tables.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct First {
    format: FirstStage,
    tables: context::Stage<FirstStage>,
    map_side: MapSide,
    /// A CPU writes them, and tells nobody.
    is_process: bool,
}

/// Second-stage tables.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Second {
    format: SecondStage,
    tables: context::Stage<SecondStage>,
    map_side: MapSide,
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
    /// No entry can lead to it.
    #[error(transparent)]
    Context(#[from] ContextError),
    /// No format has it.
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

impl<M: TableMemory + 'static, D: CommandDevice> HardwareDomain<Vtd<M, D>> {
    /// Creates a domain with first-stage tables, for units in scalable mode, with devices that need their memory
    /// pinned. Units with a write buffer need to be told of maps.
    ///
    /// # Errors
    ///
    /// [`DomainError`].
    pub fn first_stage<T>(
        format: FirstStage,
        memory: Arc<T>,
        map_side: MapSide,
    ) -> Result<Self, DomainError>
    where
        T: TableMemory + 'static,
    {
        let set = Arc::new(Set::<Vtd<M, D>>::new()?);
        let config = TableConfig::new().with_map_side(map_side);
        let table = Table::with_config(format, memory, config)?;
        let stage = Stage::first(format, table.root().oa, map_side)?;
        Ok(Self::paging(table, set, stage))
    }

    /// Creates a domain with second-stage tables, with devices that need their memory pinned. Units with caching
    /// mode or with a write buffer need to be told of maps.
    ///
    /// # Errors
    ///
    /// [`DomainError`].
    pub fn second_stage<T>(
        format: SecondStage,
        memory: Arc<T>,
        map_side: MapSide,
    ) -> Result<Self, DomainError>
    where
        T: TableMemory + 'static,
    {
        let set = Arc::new(Set::<Vtd<M, D>>::new()?);
        let config = TableConfig::new().with_map_side(map_side);
        let table = Table::with_config(format, memory, config)?;
        let stage = Stage::second(format, table.root().oa, map_side)?;
        Ok(Self::paging(table, set, stage))
    }
}

/// What of a unit decides which tables it can walk.
pub(super) struct Walker {
    pub(super) features: Features,
    pub(super) mode: TableMode,
    pub(super) planner: Planner,
}

/// Makes a domain that all of these units can walk: with first stages where all of them have any, because these
/// need no command when something is mapped; else with second stages.
pub(super) fn translate<M: TableMemory + 'static, D: CommandDevice>(
    memory: &Arc<M>,
    walkers: &[Walker],
) -> Result<HardwareDomain<Vtd<M, D>>, NewDomainError> {
    let fits = |stage: Result<Stage, ContextError>| {
        let fits = |stage: Stage| walkers.iter().all(|walker| stage.fits(walker));
        stage.is_ok_and(fits)
    };
    let is_told = |needs: fn(Planner) -> bool| {
        if walkers.iter().any(|walker| needs(walker.planner)) {
            MapSide::Announced
        } else {
            MapSide::Silent
        }
    };
    // Wherever the root will be.
    let root = Oa::new(0);
    let first_side = is_told(first_needs_maps);
    let first = first_format(walkers);
    let first = first.filter(|format| fits(Stage::first(*format, root, first_side)));
    let second_side = is_told(second_needs_maps);
    let second = second_format(walkers);
    let second = second.filter(|format| fits(Stage::second(*format, root, second_side)));
    let memory = Arc::clone(memory);
    let made = match (first, second) {
        (Some(format), _) => HardwareDomain::<Vtd<M, D>>::first_stage(format, memory, first_side),
        (None, Some(format)) => {
            HardwareDomain::<Vtd<M, D>>::second_stage(format, memory, second_side)
        }
        (None, None) => return Err(NewDomainError::Unsupported),
    };
    Ok(made?)
}

/// Whether a unit has to be told what is mapped in a first stage: absent entries of these are never cached.
const fn first_needs_maps(planner: Planner) -> bool {
    planner.has_write_buffer
}

const fn second_needs_maps(planner: Planner) -> bool {
    planner.has_write_buffer || planner.has_caching_mode
}

fn host_bits(walkers: &[Walker]) -> u8 {
    let bits = walkers.iter().map(|walker| walker.features.host_bits);
    bits.min().unwrap_or(52)
}

/// Returns the first-stage format that suits all, if they have first stages.
fn first_format(walkers: &[Walker]) -> Option<FirstStage> {
    let format = FirstStage::new(FIRST_BITS).ok()?;
    let sizes = walkers.iter().map(|walker| walker.features.first_sizes);
    let sizes = sizes.fold(format.sizes(), PageSizes::intersection);
    let format = format.with_sizes(sizes).ok()?;
    format.with_oa_bits(host_bits(walkers)).ok()
}

/// Returns the second-stage format that suits all: with four levels where all have these, and as many bits as
/// all take.
fn second_format(walkers: &[Walker]) -> Option<SecondStage> {
    let shapes = [(48, 4), (57, 5), (39, 3)];
    let (bits, levels) = shapes.into_iter().find(|(_, levels)| {
        let mut walkers = walkers.iter();
        walkers.all(|walker| walker.features.has_levels(*levels))
    })?;
    let widths = walkers.iter().map(|walker| walker.features.input_bits);
    let format = SecondStage::new(widths.chain([bits]).min()?).ok()?;
    let format = format.with_levels(levels).ok()?;
    let sizes = walkers.iter().map(|walker| walker.features.second_sizes);
    let sizes = sizes.fold(format.sizes(), PageSizes::intersection);
    let format = format.with_sizes(sizes).ok()?;
    format.with_oa_bits(host_bits(walkers)).ok()
}

impl Stage {
    /// Describes first-stage tables with their root at `root`.
    ///
    /// # Errors
    ///
    /// [`ContextError`].
    pub fn first(format: FirstStage, root: Oa, map_side: MapSide) -> Result<Self, ContextError> {
        let tables = context::Stage::<FirstStage>::first(format, root)?;
        Ok(Self::First(First {
            format,
            tables,
            map_side,
            is_process: false,
        }))
    }

    /// Describes the tables of a process, of 4 or 5 levels, with their root at `root`.
    ///
    /// Nobody says how wide the addresses in them are, but that one: the CPU has the memory that the platform has,
    /// and so do units. Pages of all sizes may be in them.
    ///
    /// # Errors
    ///
    /// [`DomainError::Context`] and [`DomainError::Config`].
    pub fn process(levels: u8, root: Oa) -> Result<Self, DomainError> {
        let va_bits = match levels {
            0..=4 => 48,
            5.. => 57,
        };
        // Refuses other levels than 4 and 5.
        let format = FirstStage::sign_extended(va_bits)?.with_levels(levels)?;
        let root_bits = (u64::BITS - root.get().leading_zeros()) as u8;
        let format = format.with_oa_bits(root_bits.max(LEAST_HOST_BITS))?;
        Ok(Self::First(First {
            format,
            tables: context::Stage::<FirstStage>::first(format, root)?,
            map_side: MapSide::Silent,
            is_process: true,
        }))
    }

    /// Describes second-stage tables with their root at `root`.
    ///
    /// # Errors
    ///
    /// [`ContextError`].
    pub fn second(format: SecondStage, root: Oa, map_side: MapSide) -> Result<Self, ContextError> {
        let tables = context::Stage::<SecondStage>::second(format, root)?;
        Ok(Self::Second(Second {
            format,
            tables,
            map_side,
        }))
    }

    /// Returns whether a unit can walk the tables, and all that they may hold.
    pub(super) fn fits(&self, walker: &Walker) -> bool {
        let Walker {
            features,
            mode,
            planner,
        } = walker;
        let are_within = |sizes: PageSizes, of: PageSizes| sizes.intersection(of) == sizes;
        match self {
            Self::First(First {
                format,
                map_side,
                is_process,
                ..
            }) => {
                *mode == TableMode::Scalable
                    && (*map_side == MapSide::Announced || !first_needs_maps(*planner))
                    && features.has_first_stage
                    // A CPU does not write its caches back for a unit.
                    && (features.has_walk_snoop || !is_process)
                    && (format.levels() == 4 || features.has_five_first_levels)
                    && are_within(format.sizes(), features.first_sizes)
                    && format.oa_bits() <= features.host_bits
            }
            Self::Nested(first, second) => {
                *mode == TableMode::Scalable
                    && features.has_nesting
                    && first.check(features).is_ok()
                    && Self::Second(*second).fits(walker)
            }
            Self::Second(Second {
                format, map_side, ..
            }) => {
                let is_there = match mode {
                    // There is no place for the flags' enable bit.
                    TableMode::Legacy => format.dirty_rule().is_none(),
                    TableMode::Scalable => {
                        features.has_second_stage
                            && (format.dirty_rule().is_none() || features.has_second_dirty)
                    }
                };
                is_there
                    && (*map_side == MapSide::Announced || !second_needs_maps(*planner))
                    && features.has_levels(format.levels())
                    && format.geometry().va_bits <= features.input_bits
                    && are_within(format.sizes(), features.second_sizes)
                    && format.oa_bits() <= features.host_bits
            }
        }
    }

    /// Returns where the IOTLB has translations of requests with `pasid`, or of those without one, in rising order.
    pub(super) fn tags(&self, domain_id: u16, pasid: Pasid) -> impl Iterator<Item = Tag> + use<> {
        let (first, second) = match self {
            Self::First(_) => (Tag::FirstStage { domain_id, pasid }, None),
            Self::Second(_) => (Tag::SecondStage { domain_id }, None),
            Self::Nested(..) => {
                let space = Tag::GuestSpace { domain_id, pasid };
                (Tag::Combined { domain_id }, Some(space))
            }
        };
        core::iter::once(first).chain(second)
    }

    /// Returns whether it is a guest's first stage.
    pub(super) const fn is_nested(&self) -> bool {
        matches!(self, Self::Nested(..))
    }

    /// Returns the context entry of legacy mode.
    pub(super) fn legacy(&self, domain_id: u16, has_device_tlb: bool) -> LegacyContext {
        let Self::Second(Second { tables, .. }) = self else {
            return LegacyContext::blocked();
        };
        let context = LegacyContext::second(domain_id, *tables);
        let context = context.unwrap_or(LegacyContext::blocked());
        if has_device_tlb {
            context.with_device_tlb().unwrap_or(context)
        } else {
            context
        }
    }

    /// Returns the PASID entry of scalable mode.
    pub(super) fn pasid(&self, domain_id: u16, features: &Features) -> PasidEntry {
        let entry = match self {
            Self::First(First {
                tables, is_process, ..
            }) => {
                let entry = PasidEntry::first(domain_id, *tables);
                // A process has pages that are not to be executed.
                if *is_process {
                    entry.with_execute_disable()
                } else {
                    entry
                }
            }
            Self::Second(Second { tables, .. }) => PasidEntry::second(domain_id, *tables),
            Self::Nested(first, Second { tables, .. }) => first.entry(domain_id, *tables),
        };
        let entry = features
            .widest()
            .map_or(entry, |width| entry.with_address_width(width));
        if features.has_walk_snoop {
            entry.with_walk_snoop()
        } else {
            entry
        }
    }
}
