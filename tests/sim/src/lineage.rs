//! What a translation was made from, as far as a command has dropped it.

use std::sync::Arc;

use crate::behaviour::Effect;
use crate::context_cache::CachedContext;
use crate::iotlb::LeafEntry;
use crate::walk_cache::TableEntry;

/// Something dropped, but not for sure gone, that was used.
#[derive(Clone, Debug)]
pub(crate) enum Parent {
    Leaf(Arc<LeafEntry>),
    Table(Arc<TableEntry>),
    Context(Arc<CachedContext>),
}

impl Parent {
    fn is_dropped_by(&self, effect: &Effect) -> bool {
        match self {
            Self::Leaf(entry) => drops_leaf(effect, entry),
            Self::Table(entry) => drops_table(effect, entry),
            Self::Context(entry) => drops_context(effect, entry),
        }
    }
}

/// Returns whether what was made from `parents` is gone with the next sync.
///
/// A parent that can be used says that the commands which drop it are not complete, and one of these
/// that drops the child as well will do so when it is. Other commands may be complete already.
pub(crate) fn is_dropped(
    pending: &[Vec<Effect>],
    parents: &[Parent],
    drops_child: impl Fn(&Effect) -> bool,
) -> bool {
    let drops_parent = |effect: &Effect| parents.iter().any(|parent| parent.is_dropped_by(effect));
    let drops_both = |command: &Vec<Effect>| {
        command.iter().any(&drops_child) && command.iter().any(drops_parent)
    };
    !parents.is_empty() && pending.iter().any(drops_both)
}

pub(crate) fn drops_leaf(effect: &Effect, entry: &LeafEntry) -> bool {
    matches!(effect, Effect::Tlb(request) if request.keeps_leaf(entry).is_none())
}

pub(crate) fn drops_table(effect: &Effect, entry: &TableEntry) -> bool {
    matches!(effect, Effect::Tlb(request) if request.keeps_table(entry).is_none())
}

pub(crate) fn drops_context(effect: &Effect, entry: &CachedContext) -> bool {
    matches!(effect, Effect::Context(request) if request.keeps(entry).is_none())
}
