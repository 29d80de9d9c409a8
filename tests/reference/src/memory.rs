//! Where the walkers read their words.

use std::collections::BTreeMap;
use std::fmt;

/// Memory as the table walker of the hardware sees it.
///
/// Closures are memory too:
///
/// ```
/// use iopt_reference::Memory;
///
/// let zeroes = |address: u64| (address < 0x1000).then_some(0);
/// assert_eq!(zeroes.read64(0xff8), Some(0));
/// assert_eq!(zeroes.read64(0x1000), None);
/// ```
pub trait Memory {
    /// Returns the little-endian 64-bit word at `address`, a multiple of 8.
    ///
    /// `None` says that nothing is there: no RAM, or a page that was not captured.
    fn read64(&self, address: u64) -> Option<u64>;
}

impl<F> Memory for F
where
    F: Fn(u64) -> Option<u64>,
{
    fn read64(&self, address: u64) -> Option<u64> {
        self(address)
    }
}

const PAGE_LEN: usize = 0x1000;
const WORDS: usize = PAGE_LEN / 8;

/// A sparse memory of 4 KiB pages, for captured tables and for tables written by hand.
#[derive(Clone, Default)]
pub struct PageMap {
    pages: BTreeMap<u64, Box<[u64; WORDS]>>,
}

impl PageMap {
    /// Creates a memory without any page.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds the page that starts at `address` (its low 12 bits are ignored), replacing one that
    /// is there.
    pub fn insert_page(&mut self, address: u64, bytes: &[u8; PAGE_LEN]) {
        let mut words = Box::new([0; WORDS]);
        for (word, chunk) in words.iter_mut().zip(bytes.chunks_exact(8)) {
            *word = chunk
                .iter()
                .rev()
                .fold(0, |word, &byte| word << 8 | u64::from(byte));
        }
        self.pages.insert(address >> 12, words);
    }

    /// Writes one word, adding a zeroed page if there is none.
    ///
    /// # Panics
    ///
    /// Panics if `address` is not a multiple of 8: a test that says so does not mean it.
    pub fn write64(&mut self, address: u64, word: u64) {
        assert!(
            address.is_multiple_of(8),
            "{address:#x} is not the address of a 64-bit word"
        );
        let page = self
            .pages
            .entry(address >> 12)
            .or_insert_with(|| Box::new([0; WORDS]));
        page[Self::index(address)] = word;
    }

    /// Returns the addresses of the pages, ascending.
    pub fn pages(&self) -> impl Iterator<Item = u64> + '_ {
        self.pages.keys().map(|page| page << 12)
    }

    fn index(address: u64) -> usize {
        address as usize % PAGE_LEN / 8
    }
}

impl Memory for PageMap {
    fn read64(&self, address: u64) -> Option<u64> {
        if !address.is_multiple_of(8) {
            return None;
        }
        self.pages
            .get(&(address >> 12))
            .map(|page| page[Self::index(address)])
    }
}

impl fmt::Debug for PageMap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PageMap")
            .field("pages", &self.pages.len())
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::{Memory as _, PageMap};

    #[test]
    fn words_are_little_endian_and_pages_are_zeroed() {
        let mut memory = PageMap::new();
        let mut page = [0; 0x1000];
        page[8..16].copy_from_slice(&[1, 2, 3, 4, 5, 6, 7, 8]);
        memory.insert_page(0x5000, &page);
        memory.write64(0x7ff8, 9);
        assert_eq!(memory.read64(0x5008), Some(0x0807_0605_0403_0201));
        assert_eq!(memory.read64(0x7ff8), Some(9));
        assert_eq!(memory.read64(0x7000), Some(0));
        assert_eq!(memory.read64(0x6000), None);
        assert_eq!(memory.read64(0x5004), None);
        assert_eq!(memory.pages().collect::<Vec<_>>(), [0x5000, 0x7000]);
    }
}
