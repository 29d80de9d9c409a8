//! What walk caches hold: pointers to tables, with everything that led to them.

use iopt_reference::Table;

use crate::iotlb::Origin;
use crate::ledger::Generation;
use crate::span::{Cache, Cached, Span};
use crate::tag::Tag;

/// A cached pointer to a table: a later walk under the same tag may go on from it, whatever has become of
/// the items above.
#[derive(Clone, Debug)]
pub struct TableEntry {
    /// Its name.
    pub tag: Tag,
    /// What the item covers that points to the table.
    pub span: Span,
    /// Base-2 logarithm of the translation granule.
    pub granule_lg2: u32,
    /// The table that was walked, or the first of two.
    pub table: Table,
    /// The page that the item points to, as an address that hardware reads, with what the ledger knew.
    pub next: (u64, Option<Generation>),
    /// When it was cached, and all words from the root to the item, which are served again.
    pub origin: Origin,
}

impl Cached for TableEntry {
    fn tag(&self) -> Tag {
        self.tag
    }

    fn span(&self) -> Span {
        self.span
    }

    fn is_same(&self, other: &Self) -> bool {
        self.table == other.table
            && self.next == other.next
            && self.origin.words == other.origin.words
    }
}

/// The walk caches of all levels.
pub(crate) type WalkCache = Cache<TableEntry>;
