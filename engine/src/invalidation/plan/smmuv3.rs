//! Plans for the SMMUv3: TLB invalidations by address or of a whole address space, and ATC invalidations.
//!
//! Source: *Arm System Memory Management Unit Architecture Specification, SMMU architecture version 3*
//! (IHI 0070), sections 3.9.1 (ATS), 4.4 (TLB invalidation) and 4.5.1 (`CMD_ATC_INV`).
//!
//! Hardware never caches that a translation is absent, so [`Kind::Added`] needs no command.
//!
//! ```
//! use iopt::invalidation::NoHardware;
//! use iopt::invalidation::plan::Planner;
//! use iopt::invalidation::plan::smmuv3::{Smmuv3, Tag};
//! use iopt::mem::Heap;
//! use iopt::radix::{Table, UnmapPolicy};
//! use iopt_formats::armv8::{Granule, Stage1};
//! use iopt_formats::command::smmuv3::Features;
//! use iopt_formats::{Iova, IovaRange, Oa, Prot};
//!
//! let table = Table::new(Stage1::<12>::new(48, 48)?, Heap)?;
//! let buffer = IovaRange::with_len(Iova::new(0x10_0000), 33 * 0x1000).unwrap();
//! let mut claim = table.claim(buffer)?;
//! let mut mapper = table.mapper(&mut claim)?;
//! mapper.map(buffer, Oa::new(0x8000_1000), Prot::RW)?.sync(&NoHardware)?;
//! let gather = mapper.unmap(buffer, UnmapPolicy::Exact)?.gather;
//!
//! let tag = Tag::Stage1 { vmid: 0, asid: 5, granule: Granule::Kib4 };
//! let mut commands = Vec::new();
//! let mut smmu = Smmuv3::default();
//! smmu.plan(&tag, gather.changes(), |command| commands.push(command));
//! assert_eq!(commands.len(), 33);
//!
//! smmu.features.has_range_invalidation = true;
//! commands.clear();
//! smmu.plan(&tag, gather.changes(), |command| commands.push(command));
//! assert_eq!(commands.len(), 2);
//! # gather.sync(&NoHardware)?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod cover;

#[cfg(test)]
mod tests;

pub use self::cover::Cover;

use iopt_formats::armv8::Granule;
use iopt_formats::command::smmuv3::{AtcSpan, Command, Features, Range, Target};
use iopt_formats::command::{Narrow, Pasid, Span};
use iopt_formats::{Iova, IovaRange, Level, PageSizes};

use crate::invalidation::plan::{Phase, Planner, item_lg2, level_of, step_lg2};
use crate::invalidation::{Changes, Kind};

/// What of an SMMU decides how it is told.
///
/// With ranges (`SMMU_IDR3.RIL`) a few commands tell everything; without, one is needed for each leaf, and
/// many leaves are told as a whole address space instead.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
pub struct Smmuv3 {
    /// Which commands are legal.
    pub features: Features,
    /// How ranges are covered.
    pub cover: Cover,
}

/// A cache of an SMMU, or of a device behind it, under the tag that its entries have.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Tag {
    /// The TLB, stage 1 at EL1.
    Stage1 {
        /// The VM; 0 without stage 2.
        vmid: u16,
        /// The address space.
        asid: u16,
        /// The granule of the tables.
        granule: Granule,
    },
    /// The TLB, stage 1 at EL2.
    El2 {
        /// The address space, where `SMMU_CR2.E2H` is set.
        asid: Option<u16>,
        /// The granule of the tables.
        granule: Granule,
    },
    /// The TLB, stage 2.
    Stage2 {
        /// The VM.
        vmid: u16,
        /// The granule of the tables.
        granule: Granule,
    },
    /// The CDs of a stream that the SMMU read at a guest's addresses, which stage 2 translates. Stands beside the
    /// [`Stage2`](Self::Stage2) of its VM, never alone.
    Descriptors {
        /// The device.
        stream: u32,
    },
    /// The TLB, entries that combine a guest's stage 1 with the stage 2 of its VM. Stands beside the
    /// [`Stage2`](Self::Stage2) of the same VM and granule, never alone.
    Combined {
        /// The VM.
        vmid: u16,
        /// The granule of the stage 2 tables.
        granule: Granule,
    },
    /// What a device caches of the addresses that changed.
    Ats {
        /// The device.
        stream: u32,
        /// The PASID; without one, translations for all of them are dropped.
        substream: Option<Pasid>,
    },
    /// What a device caches, all of it: its addresses are a guest's, and those that changed are not.
    AtsFull {
        /// The device.
        stream: u32,
    },
}

impl Planner for Smmuv3 {
    type Command = Command;
    type Tag = Tag;

    fn plan(&self, tag: &Tag, changes: &Changes, mut emit: impl FnMut(Command)) {
        let Some(range) = changes.range() else {
            return;
        };
        if changes.kind() == Kind::Added {
            return;
        }
        let has_lost_leaves = changes.has_lost_leaves();
        match *tag {
            Tag::Stage1 {
                vmid,
                asid,
                granule,
            } => self.plan_tlb(granule, changes, range, |target| {
                emit(match target {
                    Some(target) => Command::TlbiNhVa { vmid, asid, target },
                    None => Command::TlbiNhAsid { vmid, asid },
                });
            }),
            Tag::El2 { asid, granule } => self.plan_tlb(granule, changes, range, |target| {
                emit(match (target, asid) {
                    (Some(target), _) => Command::TlbiEl2Va {
                        asid: asid.unwrap_or(0),
                        target,
                    },
                    (None, Some(asid)) => Command::TlbiEl2Asid { asid },
                    (None, None) => Command::TlbiEl2All,
                });
            }),
            Tag::Stage2 { vmid, granule } => self.plan_tlb(granule, changes, range, |target| {
                emit(match target {
                    Some(target) => Command::TlbiS2Ipa { vmid, target },
                    None => Command::TlbiS12Vmall { vmid },
                });
            }),
            Tag::Combined { vmid, .. } => {
                // Also where a whole VM was dropped with all its stages: until its old CDs were forgotten, which was
                // later, they could make such entries again.
                if has_lost_leaves {
                    emit(Command::TlbiNhAll { vmid });
                }
            }
            // Where a CD was found is not part of any translation, so TLB invalidations leave it (4.3.4).
            Tag::Descriptors { stream } => {
                if has_lost_leaves {
                    emit(Command::CfgiCdAll {
                        stream,
                        is_secure: false,
                    });
                }
            }
            Tag::Ats { stream, substream } if has_lost_leaves => {
                let block = Span::covering(range);
                emit(Command::AtcInv {
                    stream,
                    substream,
                    is_global: false,
                    address: Iova::new(block.start()),
                    span: AtcSpan::of(block),
                });
            }
            Tag::AtsFull { stream } if has_lost_leaves => emit(Command::AtcInv {
                stream,
                substream: None,
                is_global: false,
                address: Iova::new(0),
                span: AtcSpan::ALL,
            }),
            Tag::Ats { .. } | Tag::AtsFull { .. } => {}
        }
    }

    fn phase(tag: &Tag) -> Phase {
        match tag {
            Tag::Stage1 { .. } | Tag::El2 { .. } | Tag::Stage2 { .. } => Phase::Iotlb,
            // An old CD that is still there would make combined entries again.
            Tag::Descriptors { .. } => Phase::Contexts,
            Tag::Combined { .. } => Phase::CombinedEntries,
            Tag::Ats { .. } | Tag::AtsFull { .. } => Phase::DeviceTlb,
        }
    }

    fn can_repeat(command: &Command) -> bool {
        !matches!(
            command,
            Command::AtcInv { .. }
                | Command::PriResp { .. }
                | Command::Resume { .. }
                | Command::StallTerm { .. }
        )
    }
}

/// How a change is told to the TLB.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Reach {
    /// As a whole address space.
    All,
    /// Address by address, `2^step_lg2` bytes apart.
    Steps {
        start: u64,
        count: u64,
        step_lg2: u8,
    },
    /// As granules.
    Granules {
        first: u64,
        count: u64,
        level: Option<Level>,
    },
}

impl Smmuv3 {
    /// Calls `emit` with each target that makes the TLB forget the changes, or with `None` for everything.
    fn plan_tlb(
        self,
        granule: Granule,
        changes: &Changes,
        range: IovaRange,
        mut emit: impl FnMut(Option<Target>),
    ) {
        let is_leaf = changes.has_lost_only_leaves();
        match self.reach(granule, changes, range) {
            Reach::All => emit(None),
            Reach::Steps {
                start,
                count,
                step_lg2,
            } => {
                for step in 0..count {
                    let address = Iova::new(start + (step << step_lg2));
                    emit(Some(Target::single(address, is_leaf)));
                }
            }
            Reach::Granules {
                first,
                count,
                level,
            } => {
                let groups = match self.cover {
                    Cover::WholeGroups => groups(granule, changes.leaf_sizes()),
                    Cover::Overlapping | Cover::Disjoint => 0,
                };
                self.cover.pieces(first, count, groups, |piece| {
                    let num = Narrow::new(piece.num.into()).unwrap_or(Narrow::MAX);
                    emit(Some(Target {
                        address: Iova::new(piece.first << granule.lg2()),
                        // One granule of no level is reserved, and the same as one address.
                        range: Range::new(granule, num, piece.scale, level).ok(),
                        is_leaf,
                    }));
                });
            }
        }
    }

    fn reach(self, granule: Granule, changes: &Changes, range: IovaRange) -> Reach {
        let granule_lg2 = granule.lg2();
        if !self.features.has_range_invalidation {
            let step_lg2 = step_lg2(granule.lg2(), changes);
            let (first, last) = units(range, step_lg2);
            // As many as a table has items: Linux draws the line there, too.
            let limit = 1 << (granule_lg2 - 3);
            return if last - first >= limit - 1 {
                Reach::All
            } else {
                Reach::Steps {
                    start: first << step_lg2,
                    count: last - first + 1,
                    step_lg2,
                }
            };
        }
        let level = self.hint(granule, changes);
        // With a level, an address that is not aligned to its leaves is unpredictable.
        let unit_lg2 = level.map_or(granule_lg2, |level| item_lg2(granule.lg2(), level));
        let (first, last) = units(range, unit_lg2);
        let granules_lg2 = unit_lg2 - granule_lg2;
        let mut first = first << granules_lg2;
        let mut count = (last - (first >> granules_lg2) + 1) << granules_lg2;
        if self.cover == Cover::Disjoint && level.is_none() && count % 32 == 1 {
            // The first piece would be the reserved one; Linux takes one granule more, too.
            let is_at_top = first + (count - 1) == u64::MAX >> granule_lg2;
            first -= u64::from(is_at_top);
            count += 1;
        }
        if count > self.cover.max_count() {
            return Reach::All;
        }
        Reach::Granules {
            first,
            count,
            level,
        }
    }

    /// Returns the level of all leaves that went, if there is just one and a command can name it.
    fn hint(self, granule: Granule, changes: &Changes) -> Option<Level> {
        if !changes.has_lost_only_leaves() {
            return None;
        }
        let sizes = changes.leaf_sizes();
        let (smallest, largest) = (sizes.smallest()?, sizes.largest()?);
        let level = level_of(granule.lg2(), smallest);
        // A level of one size takes one division.
        let is_only = smallest == largest || level == level_of(granule.lg2(), largest);
        let has_code = match granule {
            Granule::Kib16 if !self.features.has_wide_descriptors => level.0 <= 1,
            _ => level.0 <= 2,
        };
        (is_only && has_code).then_some(level)
    }
}

/// Returns the numbers of the first and the last unit that share a byte with `range`.
fn units(range: IovaRange, unit_lg2: u8) -> (u64, u64) {
    (
        range.start().get() >> unit_lg2,
        range.last().get() >> unit_lg2,
    )
}

/// Returns which of `sizes` are contiguous groups: bit `n` stands for `2^n` granules.
fn groups(granule: Granule, sizes: PageSizes) -> u64 {
    sizes
        .iter()
        .filter(|&size| size.lg2() > item_lg2(granule.lg2(), level_of(granule.lg2(), size)))
        .fold(0, |groups, size| groups | size.bytes() >> granule.lg2())
}
