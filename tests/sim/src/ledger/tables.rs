//! Which pages hold tables.

use std::collections::BTreeMap;

/// A use of a page: it changes whenever the page is freed or allocated.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Generation(u64);

impl Generation {
    pub(crate) const fn is_free(self) -> bool {
        self.0.is_multiple_of(2)
    }
}

#[derive(Debug, Default)]
pub(super) struct Tables {
    /// Length and number of changes by address; odd while allocated.
    pages: BTreeMap<u64, (u64, u64)>,
}

impl Tables {
    pub(super) fn allocate(&mut self, address: u64, len: u64) {
        let (old, changes) = self.pages.entry(address).or_default();
        *old = len;
        *changes += 1 + *changes % 2;
    }

    pub(super) fn free(&mut self, address: u64) {
        if let Some((_, changes)) = self.pages.get_mut(&address) {
            *changes += *changes % 2;
        }
    }

    pub(super) fn generation(&self, address: u64) -> Option<Generation> {
        // A page may have been part of a larger one before: whoever lives counts.
        let mut below = self.pages.range(..=address).rev().take(NEIGHBOURS);
        let mut freed = None;
        let covers = |start: u64, len: u64| address - start < len;
        let found = below.find_map(|(start, (len, changes))| {
            let generation = Generation(*changes);
            if !covers(*start, *len) {
                None
            } else if generation.is_free() {
                freed.get_or_insert(generation);
                None
            } else {
                Some(generation)
            }
        });
        found.or(freed)
    }
}

/// Smaller tables that may stand between an address and the start of the one it lies in: 64 KiB hold 16 of
/// 4 KiB.
const NEIGHBOURS: usize = 17;

#[cfg(test)]
mod tests {
    use super::{Generation, Tables};

    #[test]
    fn a_page_that_is_used_again_is_another_table() {
        let mut tables = Tables::default();
        assert_eq!(tables.generation(0x1000), None);
        tables.allocate(0x1000, 0x1000);
        let first = tables.generation(0x1ff8);
        assert!(first.is_some_and(|first| !first.is_free()));
        assert_eq!(tables.generation(0x2000), None);
        tables.free(0x1000);
        assert!(tables.generation(0x1000).is_some_and(Generation::is_free));
        tables.allocate(0x1000, 0x1000);
        assert!(tables.generation(0x1000).is_some_and(|now| !now.is_free()));
        assert_ne!(tables.generation(0x1000), first);
    }

    #[test]
    fn a_large_table_over_freed_small_ones_lives() {
        let mut tables = Tables::default();
        tables.allocate(0x1_1000, 0x1000);
        tables.free(0x1_1000);
        tables.allocate(0x1_0000, 0x1_0000);
        assert!(
            tables
                .generation(0x1_1000)
                .is_some_and(|now| !now.is_free())
        );
    }
}
