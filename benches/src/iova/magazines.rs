//! The allocator that Linux has, as far as it matters: magazines of freed ranges in front of an ordered
//! tree.
//!
//! Sizes of 1 to 32 pages are rounded up to powers of two. For each processor and size there are two
//! magazines of 127 ranges behind a lock, and behind those a depot without a bound, under a lock of its
//! own. What is longer, or in no magazine, comes out of a tree under one lock, from the top down, aligned
//! to its size.

use std::collections::BTreeMap;

use crossbeam_utils::CachePadded;
use parking_lot::Mutex;

/// Ranges of a magazine.
const MAGAZINE_LEN: usize = 127;

/// Sizes that are cached: 1, 2, .. 32 pages.
const CLASS_COUNT: usize = 6;

type Magazine = Vec<u64>;

#[derive(Debug)]
struct Cache {
    loaded: Magazine,
    previous: Magazine,
}

/// The allocator, in pages.
#[derive(Debug)]
pub(super) struct Magazines {
    caches: Vec<CachePadded<[Mutex<Cache>; CLASS_COUNT]>>,
    depots: [Mutex<Vec<Magazine>>; CLASS_COUNT],
    tree: Mutex<Tree>,
}

/// Free ranges: first page and number of pages.
#[derive(Debug)]
struct Tree(BTreeMap<u64, u64>);

impl Tree {
    /// Takes the highest free range that fits.
    fn take(&mut self, count: u64) -> Option<u64> {
        let align = count.next_power_of_two();
        let (start, len, page) = self.0.iter().rev().find_map(|(&start, &len)| {
            let page = (start + len).checked_sub(count)? / align * align;
            (page >= start).then_some((start, len, page))
        })?;
        self.0.remove(&start);
        if page > start {
            self.0.insert(start, page - start);
        }
        let end = start + len;
        if page + count < end {
            self.0.insert(page + count, end - page - count);
        }
        Some(page)
    }

    fn put(&mut self, mut page: u64, mut count: u64) {
        if let Some(above) = self.0.remove(&(page + count)) {
            count += above;
        }
        if let Some((&start, &len)) = self.0.range(..page).next_back()
            && start + len == page
        {
            page = start;
            count += len;
        }
        self.0.insert(page, count);
    }
}

impl Magazines {
    /// Creates an allocator of `page_count` pages for so many threads.
    pub(super) fn new(page_count: u64, thread_count: usize) -> Self {
        let magazine = || Vec::with_capacity(MAGAZINE_LEN);
        let cache = || {
            Mutex::new(Cache {
                loaded: magazine(),
                previous: magazine(),
            })
        };
        let caches = || CachePadded::new(std::array::from_fn(|_| cache()));
        Self {
            caches: (0..thread_count).map(|_| caches()).collect(),
            depots: std::array::from_fn(|_| Mutex::default()),
            // Page 0 is never given out.
            tree: Mutex::new(Tree(BTreeMap::from([(1, page_count - 1)]))),
        }
    }

    /// Returns the class of a size and what it is rounded up to.
    const fn class(count: u64) -> Option<(usize, u64)> {
        let rounded = count.next_power_of_two();
        let class = rounded.ilog2() as usize;
        if class < CLASS_COUNT {
            Some((class, rounded))
        } else {
            None
        }
    }

    /// Takes `count` pages.
    pub(super) fn take(&self, thread: usize, count: u64) -> Option<u64> {
        let Some((class, rounded)) = Self::class(count) else {
            return self.tree.lock().take(count);
        };
        let mut cache = self.caches[thread][class].lock();
        if cache.loaded.is_empty() {
            let Cache { loaded, previous } = &mut *cache;
            if !previous.is_empty() {
                std::mem::swap(loaded, previous);
            } else if let Some(full) = self.depots[class].lock().pop() {
                *loaded = full;
            }
        }
        let cached = cache.loaded.pop();
        drop(cache);
        cached.or_else(|| self.tree.lock().take(rounded))
    }

    /// Gives back what was taken with this `count`.
    pub(super) fn put(&self, thread: usize, page: u64, count: u64) {
        let Some((class, _)) = Self::class(count) else {
            return self.tree.lock().put(page, count);
        };
        let mut cache = self.caches[thread][class].lock();
        if cache.loaded.len() == MAGAZINE_LEN {
            let Cache { loaded, previous } = &mut *cache;
            std::mem::swap(loaded, previous);
            if loaded.len() == MAGAZINE_LEN {
                let full = std::mem::replace(loaded, Vec::with_capacity(MAGAZINE_LEN));
                self.depots[class].lock().push(full);
            }
        }
        cache.loaded.push(page);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_aligned_apart_and_used_again() {
        let magazines = Magazines::new(1 << 20, 1);
        let taken: Vec<_> = [1, 3, 32, 33, 500]
            .map(|count| (magazines.take(0, count).unwrap(), count))
            .into();
        for (index, &(page, count)) in taken.iter().enumerate() {
            assert!(page.is_multiple_of(count.next_power_of_two()));
            let is_apart =
                |&(other, len): &(u64, u64)| other + len <= page || page + count <= other;
            assert!(taken[..index].iter().all(is_apart));
        }
        for &(page, count) in &taken {
            magazines.put(0, page, count);
        }
        assert_eq!(magazines.take(0, 4), Some(taken[1].0));
    }

    #[test]
    fn full_magazines_go_to_the_depot_and_come_back() {
        let magazines = Magazines::new(1 << 20, 2);
        let pages: Vec<_> = (0..400).map(|_| magazines.take(0, 1).unwrap()).collect();
        for &page in &pages {
            magazines.put(0, page, 1);
        }
        // The thread keeps two that are full or filling.
        assert_eq!(magazines.depots[0].lock().len(), 2);
        let again: Vec<_> = (0..127).map(|_| magazines.take(1, 1).unwrap()).collect();
        assert!(again.iter().all(|page| pages.contains(page)));
        assert_eq!(magazines.depots[0].lock().len(), 1);
    }

    #[test]
    fn neighbours_in_the_tree_become_one() {
        let mut tree = Tree(BTreeMap::from([(1, 99)]));
        let pages: Vec<_> = (0..99).map(|_| tree.take(1).unwrap()).collect();
        assert_eq!(tree.take(1), None);
        let even = (2..=98).step_by(2);
        for page in pages.into_iter().step_by(2).chain(even) {
            tree.put(page, 1);
        }
        assert_eq!(tree.0, BTreeMap::from([(1, 99)]));
    }
}
