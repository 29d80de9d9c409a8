//! What the IOTLB holds: leaves, contiguous groups both whole and by the items that were met, and the absence of
//! leaves where hardware caches that.

use crate::memory::Read;
use crate::rights::Rights;
use crate::span::{Cache, Cached, Span};
use crate::tag::Tag;

/// When and from what something was cached.
#[derive(Clone, Debug)]
pub struct Origin {
    /// Virtual nanoseconds.
    pub time: u64,
    /// Commands consumed until then.
    pub commands: u64,
    /// The device whose request filled the cache.
    pub device: u32,
    /// Its PASID.
    pub pasid: Option<u32>,
    /// The words that led there, cached ones included.
    pub words: Vec<Read>,
}

/// Where a span of input addresses leads.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Target {
    /// Output address of the first byte.
    pub oa: u64,
    /// Output address of the first of two stages; the input address without one.
    pub ipa: u64,
    /// What is allowed.
    pub rights: Rights,
}

/// A cached leaf.
#[derive(Clone, Debug)]
pub struct LeafEntry {
    /// Its name.
    pub tag: Tag,
    /// What it covers: the whole contiguous group, or one item of it; of two stages the smaller one.
    pub span: Span,
    /// Base-2 logarithm of the bytes of one item of the (first) stage's leaf, without contiguity.
    pub item_lg2: u32,
    /// Base-2 logarithm of the translation granule.
    pub granule_lg2: u32,
    /// Where it leads; `None` if the cached fact is that there is nothing.
    pub target: Option<Target>,
    /// The absence is that of a table, so it is cached where pointers to tables are.
    pub is_table: bool,
    /// When and from what it was cached.
    pub origin: Origin,
}

impl LeafEntry {
    /// Returns the entry as hardware may cache it that takes no notice of contiguity: the item of the group that
    /// `iova` lies in, alone. `None` if this is no group.
    pub(crate) fn item_at(&self, iova: u64) -> Option<Self> {
        (self.item_lg2 < self.span.lg2).then(|| self.piece_at(iova, self.item_lg2))
    }

    /// Returns what the entry says of the `2^lg2` bytes around `iova`, which lie in it.
    pub(crate) fn piece_at(&self, iova: u64, lg2: u32) -> Self {
        let span = Span::around(iova, lg2);
        let offset = span.start - self.span.start;
        let moved = |target: Target| Target {
            oa: target.oa.wrapping_add(offset),
            ipa: target.ipa.wrapping_add(offset),
            ..target
        };
        Self {
            span,
            target: self.target.map(moved),
            ..self.clone()
        }
    }
}

impl Cached for LeafEntry {
    fn tag(&self) -> Tag {
        self.tag
    }

    fn span(&self) -> Span {
        self.span
    }

    fn is_same(&self, other: &Self) -> bool {
        self.target == other.target
            && self.item_lg2 == other.item_lg2
            && self.granule_lg2 == other.granule_lg2
            && self.is_table == other.is_table
    }
}

/// The IOTLB.
pub(crate) type Iotlb = Cache<LeafEntry>;
