//! Pointers to the tables of a tree.
//!
//! The only place where the address in a parent entry becomes a reference. Everything it hands out
//! is atomic items that live as long as the tree is borrowed (invariants T1 and T2 of
//! [`radix`](crate::radix)).

#![expect(
    unsafe_code,
    reason = "a table is reached through the address stored in its parent"
)]

use core::marker::PhantomData;
use core::ptr::NonNull;
use core::slice;

use iopt_formats::{Format, Level, Oa};

use crate::mem::{LINE_LEN, TableMemory};
use crate::sync::atomic::{AtomicU64, Ordering};

/// One table of a tree that is borrowed for `'t`.
pub(super) struct Node<'t, F> {
    items: NonNull<AtomicU64>,
    /// Number of items less one, all of its bits set.
    mask: u64,
    _tree: PhantomData<(&'t AtomicU64, F)>,
}

impl<F> Clone for Node<'_, F> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<F> Copy for Node<'_, F> {}

// SAFETY: a node is a shared reference to atomics, which any thread may use.
unsafe impl<F> Send for Node<'_, F> {}
// SAFETY: as above.
unsafe impl<F> Sync for Node<'_, F> {}

impl<'t, F: Format> Node<'t, F> {
    /// Borrows the root table of `mask + 1` items, a power of two, at `oa`.
    ///
    /// # Safety
    ///
    /// `oa` is a page of `memory` of at least that many items (T1) that is not freed during `'t`
    /// (T2), and that nobody accesses other than through atomics of 64 bits.
    #[inline]
    pub(super) unsafe fn root<M: TableMemory>(memory: &M, oa: Oa, mask: u64) -> Self {
        // SAFETY: by the caller's contract `oa` lies in an allocated page, and by M2 its pointer
        // is valid, so not null.
        let items = unsafe { NonNull::new_unchecked(memory.ptr(oa).cast()) };
        Self {
            items,
            mask,
            _tree: PhantomData,
        }
    }

    /// Borrows a table below the root.
    ///
    /// # Safety
    ///
    /// As for [`root`](Self::root), for the number of items of every table below the root.
    #[inline]
    pub(super) unsafe fn child<M: TableMemory>(memory: &M, oa: Oa) -> Self {
        // SAFETY: the caller's contract is that of `root`.
        unsafe { Self::root(memory, oa, table_mask::<F>()) }
    }

    /// Returns the number of items.
    #[inline]
    pub(super) fn count(self) -> usize {
        self.mask as usize + 1
    }

    /// Returns the index that `iova` selects, this being a table of `level`.
    #[inline]
    pub(super) fn index(self, iova: u64, level: Level) -> usize {
        ((iova >> F::item_lg2(level)) & self.mask) as usize
    }

    /// Returns the item that `iova` selects, this being a table of `level`.
    #[inline]
    pub(super) fn item(self, iova: u64, level: Level) -> &'t AtomicU64 {
        // SAFETY: `index` is below `count`, and by the contract of `root` the page has that many
        // items.
        let item = unsafe { self.items.add(self.index(iova, level)) };
        // SAFETY: T1 and T2 (contract of `root`): the item is alive and aligned during `'t`, and
        // every other access to it is atomic.
        unsafe { item.as_ref() }
    }

    /// Returns the item of that index, if there is one.
    #[inline]
    pub(super) fn get(self, index: u64) -> Option<&'t AtomicU64> {
        if index > self.mask {
            return None;
        }
        // SAFETY: `index` is below `count`, and by the contract of `root` the page has that many
        // items.
        let item = unsafe { self.items.add(index as usize) };
        // SAFETY: as for `item`.
        Some(unsafe { item.as_ref() })
    }

    /// Returns all items.
    #[inline]
    pub(super) fn items(self) -> &'t [AtomicU64] {
        // SAFETY: as for `item`, for each of the `count` items of the page.
        unsafe { slice::from_raw_parts(self.items.as_ptr(), self.count()) }
    }
}

/// A table below the root that is borrowed for `'t`: all of these have the same number of items, so
/// that no bound needs to be loaded.
pub(super) struct Inner<'t, F> {
    items: NonNull<AtomicU64>,
    _tree: PhantomData<(&'t AtomicU64, F)>,
}

impl<F> Clone for Inner<'_, F> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<F> Copy for Inner<'_, F> {}

// SAFETY: as for `Node`.
unsafe impl<F> Send for Inner<'_, F> {}
// SAFETY: as for `Node`.
unsafe impl<F> Sync for Inner<'_, F> {}

impl<'t, F: Format> Inner<'t, F> {
    /// Returns `node` as a table below the root, if it has the number of items.
    #[inline]
    pub(super) fn new(node: Node<'t, F>) -> Option<Self> {
        (node.mask == table_mask::<F>()).then_some(Self {
            items: node.items,
            _tree: PhantomData,
        })
    }

    #[inline]
    fn node(self) -> Node<'t, F> {
        Node {
            items: self.items,
            mask: table_mask::<F>(),
            _tree: PhantomData,
        }
    }

    /// Returns the item that `iova` selects, this being a table of `level`.
    #[inline]
    pub(super) fn item(self, iova: u64, level: Level) -> &'t AtomicU64 {
        self.node().item(iova, level)
    }

    /// Returns the items of a leaf table from `iova` up to `last`, and the last address that they
    /// translate.
    #[inline]
    pub(super) fn span(self, iova: u64, last: u64) -> (&'t [AtomicU64], u64) {
        let span_last = last.min(iova | ((1 << F::item_lg2(Level(1))) - 1));
        let node = self.node();
        let first = node.index(iova, Level::LEAF);
        // The maximum only matters if `last` is below `iova`.
        let end = node.index(span_last, Level::LEAF).max(first) + 1;
        // SAFETY: `index` is below the number of items, so `first < end <= count`.
        let items = unsafe { node.items().get_unchecked(first..end) };
        (items, span_last)
    }
}

/// Returns the number of items, less one, of every table below the root.
#[inline]
fn table_mask<F: Format>() -> u64 {
    (1 << F::item_count_lg2()) - 1
}

/// Items that [`summarize`] takes at a time.
const LANES: usize = 4;

/// What some items have in common.
pub(super) struct Summary {
    /// Bits that are set in any of them.
    pub(super) any: u64,
    /// Bits that are set in all of them.
    pub(super) all: u64,
}

/// Summarizes items that the caller alone may change.
///
/// With plain loads where it can, so that the compiler takes several items at a time: a check in
/// front of a fill costs a fraction of the fill. Where walkers set dirty bits, which a walker of
/// this very program does with atomic operations, item by item.
///
/// # Safety
///
/// The caller holds the claim over everything that `items` translate, so that by T3 no mapper stores
/// to them during the call.
#[inline]
pub(super) unsafe fn summarize<F: Format>(format: &F, items: &[AtomicU64]) -> Summary {
    if cfg!(loom) || format.dirty_rule().is_some() {
        let words = items.iter().map(|item| item.load(Ordering::Relaxed));
        return words.fold(
            Summary {
                any: 0,
                all: u64::MAX,
            },
            |seen, word| Summary {
                any: seen.any | word,
                all: seen.all & word,
            },
        );
    }
    // SAFETY: `AtomicU64` has the size, alignment and bit validity of `u64`, and the slice is
    // alive; by the caller's contract nothing is stored to it meanwhile, so plain reads race with
    // nothing.
    let words = unsafe { slice::from_raw_parts(items.as_ptr().cast::<u64>(), items.len()) };
    // Two vectors of accumulators each, so that no chain of dependent operations limits the loop.
    let mut any = [0; LANES];
    let mut all = [u64::MAX; LANES];
    let (groups, rest) = words.as_chunks::<LANES>();
    for group in groups {
        for (lane, word) in group.iter().enumerate() {
            any[lane] |= word;
            all[lane] &= word;
        }
    }
    for word in rest {
        any[0] |= word;
        all[0] &= word;
    }
    let any = any.into_iter().fold(0, |seen, word| seen | word);
    let all = all.into_iter().fold(u64::MAX, |seen, word| seen & word);
    Summary { any, all }
}

/// Writes back the cache lines that `items` lie in, once each.
pub(super) fn flush_items<M: TableMemory>(memory: &M, items: &[AtomicU64]) {
    if M::SNOOPED {
        return;
    }
    let range = items.as_ptr_range();
    let skew = range.start.addr() % LINE_LEN;
    let mut line = range.start.cast::<u8>().wrapping_sub(skew);
    while line.addr() < range.end.addr() {
        memory.flush_line(line);
        line = line.wrapping_add(LINE_LEN);
    }
}
