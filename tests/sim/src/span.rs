//! Aligned powers of two of addresses, and caches that are looked up by them.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::tag::Tag;

/// `2^lg2` bytes of input addresses from `start`, a multiple of them. `lg2` is at most 64.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct Span {
    /// Base-2 logarithm of the bytes.
    pub lg2: u32,
    /// The first address.
    pub start: u64,
}

impl Span {
    /// Every address.
    pub const ALL: Self = Self { lg2: 64, start: 0 };

    /// Returns the span of `2^lg2` bytes that `address` lies in.
    pub const fn around(address: u64, lg2: u32) -> Self {
        if lg2 >= 64 {
            return Self::ALL;
        }
        Self {
            lg2,
            start: address >> lg2 << lg2,
        }
    }

    /// Returns the last address.
    pub const fn last(&self) -> u64 {
        if self.lg2 >= 64 {
            u64::MAX
        } else {
            self.start | ((1 << self.lg2) - 1)
        }
    }

    /// Returns whether `address` lies in the span.
    pub const fn contains(&self, address: u64) -> bool {
        self.start <= address && address <= self.last()
    }

    /// Returns whether the span has an address of `start..=last`.
    pub const fn overlaps(&self, start: u64, last: u64) -> bool {
        self.start <= last && start <= self.last()
    }
}

/// Something that a cache holds for a span of input addresses under a tag.
pub(crate) trait Cached {
    fn tag(&self) -> Tag;
    fn span(&self) -> Span;
    /// Whether both say the same, whenever and by whomever they were cached.
    fn is_same(&self, other: &Self) -> bool;
}

/// What is cached, and whether a command has dropped it that is not complete yet: until the sync, hardware
/// may use it still.
#[derive(Debug)]
pub(crate) struct Slot<T> {
    pub(crate) entry: Arc<T>,
    pub(crate) is_dropped: bool,
}

impl<T> Clone for Slot<T> {
    fn clone(&self) -> Self {
        Self {
            entry: Arc::clone(&self.entry),
            is_dropped: self.is_dropped,
        }
    }
}

/// A cache without a limit.
#[derive(Debug)]
pub(crate) struct Cache<T> {
    tags: BTreeMap<Tag, BTreeMap<Span, Vec<Slot<T>>>>,
    /// Where dropped entries are, so that a sync need not look everywhere.
    dropped: Vec<(Tag, Span)>,
}

impl<T> Default for Cache<T> {
    fn default() -> Self {
        Self {
            tags: BTreeMap::new(),
            dropped: Vec::new(),
        }
    }
}

impl<T: Cached> Cache<T> {
    /// Adds an entry unless the same is there. `is_dropped` says whether it is gone with the next sync, and
    /// is asked only if that matters.
    pub(crate) fn insert(&mut self, entry: T, is_dropped: impl FnOnce(&T) -> bool) {
        let (tag, span) = (entry.tag(), entry.span());
        let slots = self.tags.entry(tag).or_default().entry(span).or_default();
        let is_there = |slots: &[Slot<T>], is_dropped: bool| {
            slots
                .iter()
                .any(|slot| slot.entry.is_same(&entry) && slot.is_dropped == is_dropped)
        };
        if is_there(slots, false) {
            return;
        }
        let is_dropped = is_dropped(&entry);
        if is_dropped && is_there(slots, true) {
            return;
        }
        slots.push(Slot {
            entry: Arc::new(entry),
            is_dropped,
        });
        if is_dropped {
            self.dropped.push((tag, span));
        }
    }

    /// Returns what is cached for `address` under `tag`.
    pub(crate) fn find(&self, tag: Tag, address: u64) -> Vec<Slot<T>> {
        let mut found = Vec::new();
        let Some(spans) = self.tags.get(&tag) else {
            return found;
        };
        for lg2 in sizes(spans) {
            let slots = spans.get(&Span::around(address, lg2));
            found.extend(slots.into_iter().flatten().cloned());
        }
        found
    }

    /// Drops what `keeps` gives no reason to keep, until the next sync in name only, and returns it.
    pub(crate) fn drop_where(
        &mut self,
        is_meant: impl Fn(Tag) -> bool,
        range: (u64, u64),
        keeps: impl Fn(&T) -> Option<&'static str>,
    ) -> Vec<Arc<T>> {
        let mut dropped = Vec::new();
        for (tag, spans) in &mut self.tags {
            if !is_meant(*tag) {
                continue;
            }
            for lg2 in sizes(spans) {
                let first = Span::around(range.0, lg2);
                let last = Span {
                    lg2,
                    start: range.1,
                };
                for (span, slots) in spans.range_mut(first..=last) {
                    for slot in slots.iter_mut().filter(|slot| !slot.is_dropped) {
                        if keeps(&slot.entry).is_none() {
                            slot.is_dropped = true;
                            self.dropped.push((*tag, *span));
                            dropped.push(Arc::clone(&slot.entry));
                        }
                    }
                }
            }
        }
        dropped
    }

    /// Forgets what was dropped: a sync is complete.
    pub(crate) fn sync(&mut self) {
        for (tag, span) in self.dropped.drain(..) {
            let Some(spans) = self.tags.get_mut(&tag) else {
                continue;
            };
            if let Some(slots) = spans.get_mut(&span) {
                slots.retain(|slot| !slot.is_dropped);
                if slots.is_empty() {
                    spans.remove(&span);
                }
            }
            if spans.is_empty() {
                self.tags.remove(&tag);
            }
        }
    }

    /// Returns everything under the tags that are meant.
    pub(crate) fn under(&self, is_meant: impl Fn(Tag) -> bool) -> Vec<Slot<T>> {
        self.tags
            .iter()
            .filter(|(tag, _)| is_meant(**tag))
            .flat_map(|(_, spans)| spans.values().flatten().cloned())
            .collect()
    }

    pub(crate) fn len(&self) -> usize {
        let spans = self.tags.values().flat_map(BTreeMap::values);
        spans.map(Vec::len).sum()
    }
}

/// Returns the sizes that occur.
fn sizes<V>(spans: &BTreeMap<Span, V>) -> Vec<u32> {
    let mut sizes = Vec::new();
    let mut least = Span { lg2: 0, start: 0 };
    while let Some((span, _)) = spans.range(least..).next() {
        sizes.push(span.lg2);
        least = Span {
            lg2: span.lg2 + 1,
            start: 0,
        };
    }
    sizes
}
