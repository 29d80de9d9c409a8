//! What a command drops, in words that all architectures share.

use crate::atc::AtcEntry;
use crate::context_cache::{CachedContext, Structure};
use crate::iotlb::LeafEntry;
use crate::span::Span;
use crate::tag::{Regime, Space, Stage, Tag};
use crate::walk_cache::TableEntry;

/// Which address spaces of a domain a command means.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Spaces {
    /// All, and global pages.
    All,
    /// One, and global pages.
    One(u32),
    /// One, without global pages.
    OneLocal(u32),
}

/// Which names a command means.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Names {
    /// One regime.
    pub regime: Regime,
    /// Entries of these stages.
    pub stages: &'static [Stage],
    /// One domain; `None` for all of them.
    pub domain: Option<u32>,
    /// If all domains: those that have a second stage (`true`) or those that have none.
    pub is_virtual: Option<bool>,
    /// Address spaces.
    pub spaces: Spaces,
}

/// All stages.
pub(crate) const ALL_STAGES: &[Stage] = &[Stage::First, Stage::Second, Stage::Combined];
/// The stages that begin with a first one.
pub(crate) const FIRST_STAGES: &[Stage] = &[Stage::First, Stage::Combined];
/// The second stage alone.
pub(crate) const SECOND_STAGE: &[Stage] = &[Stage::Second];

impl Names {
    /// Means everything.
    pub(crate) const ALL: Self = Self {
        regime: Regime::System,
        stages: ALL_STAGES,
        domain: None,
        is_virtual: None,
        spaces: Spaces::All,
    };

    pub(crate) fn is_meant(&self, tag: Tag) -> bool {
        self.spares(tag).is_none()
    }

    /// Returns why the command does not mean `tag`.
    fn spares(&self, tag: Tag) -> Option<&'static str> {
        if tag.regime != self.regime {
            return Some("another regime");
        }
        if !self.stages.contains(&tag.stage) {
            return Some("another stage");
        }
        if self.domain.is_some() && tag.domain != self.domain {
            return Some("another domain (VMID, DID, GSCID)");
        }
        if self
            .is_virtual
            .is_some_and(|is_virtual| is_virtual != tag.domain.is_some())
        {
            return Some("contexts with, or without, a second stage only");
        }
        let is_meant = match (self.spaces, tag.space) {
            (Spaces::All, _) | (Spaces::One(_), Space::Global) => true,
            (Spaces::One(id) | Spaces::OneLocal(id), Space::Id(other)) => id == other,
            _ => false,
        };
        (!is_meant).then_some("another address space (ASID, PASID, PSCID)")
    }
}

/// Which leaves go.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Leaves {
    /// All that have an address of the range.
    Any,
    /// Those no larger than the command.
    AtMost {
        /// Base-2 logarithm of the command's bytes.
        lg2: u32,
    },
    /// Those of one granule, perhaps of one level.
    Granule {
        /// Base-2 logarithm of the granule.
        granule_lg2: u32,
        /// Base-2 logarithm of an item of the level, if the command hints at one.
        item_lg2: Option<u32>,
        /// A contiguous group goes only if the range covers all of it.
        is_whole: bool,
    },
}

/// Which pointers to tables go.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Tables {
    /// None.
    None,
    /// All whose span has an address of the range.
    Any,
    /// Those no larger than the command.
    AtMost {
        /// Base-2 logarithm of the command's bytes.
        lg2: u32,
    },
    /// Those of one granule.
    Granule {
        /// Base-2 logarithm of the granule.
        granule_lg2: u32,
        /// Only those above items of this size.
        above_lg2: Option<u32>,
    },
}

/// An invalidation of IOTLB and walk caches.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct TlbDrop {
    /// The names.
    pub names: Names,
    /// First and last input address.
    pub range: (u64, u64),
    /// The leaves.
    pub leaves: Leaves,
    /// The pointers to tables.
    pub tables: Tables,
    /// Drops nothing at all, for this reason.
    pub is_void: Option<&'static str>,
}

impl TlbDrop {
    /// Everything under `names`.
    pub(crate) const fn all(names: Names) -> Self {
        Self {
            names,
            range: (0, u64::MAX),
            leaves: Leaves::Any,
            tables: Tables::Any,
            is_void: None,
        }
    }

    /// Returns why a leaf stays.
    pub(crate) fn keeps_leaf(&self, entry: &LeafEntry) -> Option<&'static str> {
        if entry.is_table {
            return self.keeps_pointer(entry.tag, entry.span, entry.granule_lg2);
        }
        if let Some(reason) = self.spares(entry.tag, entry.span) {
            return Some(reason);
        }
        match self.leaves {
            Leaves::Any => None,
            Leaves::AtMost { lg2 } => {
                (entry.span.lg2 > lg2).then_some("the leaf is larger than the command")
            }
            Leaves::Granule {
                granule_lg2,
                item_lg2,
                is_whole,
            } => {
                let (start, last) = self.range;
                if granule_lg2 != entry.granule_lg2 {
                    Some("another granule")
                } else if item_lg2.is_some_and(|lg2| lg2 != entry.item_lg2) {
                    Some("the level hint is another level than the leaf's")
                } else if is_whole
                    && entry.span.lg2 > entry.item_lg2
                    && (entry.span.start < start || last < entry.span.last())
                {
                    Some("the range covers a part of the contiguous group only")
                } else {
                    None
                }
            }
        }
    }

    /// Returns why a pointer to a table stays.
    pub(crate) fn keeps_table(&self, entry: &TableEntry) -> Option<&'static str> {
        self.keeps_pointer(entry.tag, entry.span, entry.granule_lg2)
    }

    fn keeps_pointer(&self, tag: Tag, span: Span, granule: u32) -> Option<&'static str> {
        if let Some(reason) = self.spares(tag, span) {
            return Some(reason);
        }
        match self.tables {
            Tables::None => Some("the command means leaves only"),
            Tables::Any => None,
            Tables::AtMost { lg2 } => {
                (span.lg2 > lg2).then_some("the table's span is larger than the command")
            }
            Tables::Granule {
                granule_lg2,
                above_lg2,
            } => {
                if granule_lg2 != granule {
                    Some("another granule")
                } else if above_lg2.is_some_and(|lg2| span.lg2 <= lg2) {
                    Some("the level hint is above the table's level")
                } else {
                    None
                }
            }
        }
    }

    fn spares(&self, tag: Tag, span: Span) -> Option<&'static str> {
        let (start, last) = self.range;
        let elsewhere = || (!span.overlaps(start, last)).then_some("another range");
        self.is_void
            .or_else(|| self.names.spares(tag))
            .or_else(elsewhere)
    }
}

/// An invalidation of a device TLB.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct AtcDrop {
    /// The device.
    pub device: u32,
    /// Translations of one PASID; `None` for all, those without PASID included.
    pub pasid: Option<u32>,
    /// What is dropped.
    pub span: Span,
}

impl AtcDrop {
    /// Returns why a translation stays.
    pub(crate) fn keeps(&self, entry: &AtcEntry) -> Option<&'static str> {
        if entry.device != self.device {
            Some("another device")
        } else if self.pasid.is_some() && self.pasid != entry.pasid {
            Some("another PASID")
        } else if !self.span.overlaps(entry.span.start, entry.span.last()) {
            Some("another range")
        } else {
            None
        }
    }
}

/// Which devices an invalidation of contexts means.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Devices {
    /// All.
    All,
    /// Those whose id equals `id` in the bits of `mask`.
    Masked {
        /// The id.
        id: u32,
        /// The bits that count.
        mask: u32,
    },
}

/// An invalidation of cached device and process contexts.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct ContextDrop {
    /// The devices.
    pub devices: Devices,
    /// One PASID, by which the entry is found; `None` for all.
    pub pasid: Option<u32>,
    /// One domain; contexts that are not valid count as domain 0.
    pub domain: Option<u32>,
    /// Structures that go, and what was read through them.
    pub structures: &'static [Structure],
}

impl ContextDrop {
    /// Returns why a context stays.
    pub(crate) fn keeps(&self, entry: &CachedContext) -> Option<&'static str> {
        let is_device = match self.devices {
            Devices::All => true,
            Devices::Masked { id, mask } => (entry.device ^ id) & mask == 0,
        };
        if !is_device {
            Some("another device")
        } else if self.pasid.is_some_and(|pasid| pasid != entry.entry_pasid) {
            Some("another PASID")
        } else if self.domain.is_some_and(|domain| domain != entry.domain()) {
            Some("another domain")
        } else if !self.structures.contains(&entry.structure) {
            Some("another structure")
        } else {
            None
        }
    }
}
