//! Small loops that show what the machine can do, to measure the engine against.
//!
//! | | loop | unit |
//! |---|---|---|
//! | Y1 | eight stores, 64 times | entry |
//! | Y2 | eight loads or-ed, one branch, eight stores, 64 times | entry |
//! | Y3 | eight loads and-ed, one branch, eight stores of 0, 64 times | entry |
//! | Y4 | a page zeroed, then Y1 | entry |
//! | Y5 | a walk of four levels with a check at each | walk |
//! | Y6 | a call of an empty function through a pointer | call |
//! | Y7 | a compare-exchange of one word | exchange |
//! | Y12 | a page zeroed | page |
//!
//! They work on atomics, which the compiler neither merges, nor vectorises, nor hoists.

#![expect(
    unsafe_code,
    reason = "zeroes pages and walks from pointer to pointer as hardware does"
)]

use std::hint::black_box;
use std::ptr;
use std::sync::atomic::Ordering::{Acquire, Relaxed, SeqCst};
use std::sync::atomic::{AtomicU64, compiler_fence};

use crate::pool::{PAGE_LEN, Page, leak_pages};

/// A bit that valid words have, as in most formats.
pub const VALID: u64 = 1;

const PAGE: u64 = PAGE_LEN as u64;

/// Items of a cache line.
const LINE: usize = 8;

/// A line of a page was not as the loop expects it.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("a line holds an item that is mapped, or not mapped, against expectation")]
pub struct Unexpected;

/// Y1: stores rising words.
#[inline(never)]
pub fn store(page: &Page, mut word: u64) {
    for line in page.0.chunks_exact(LINE) {
        for (i, item) in line.iter().enumerate() {
            item.store(word + i as u64 * PAGE, Relaxed);
        }
        word += LINE as u64 * PAGE;
    }
}

/// Y2: stores rising words where nothing stands.
///
/// # Errors
///
/// [`Unexpected`] if something stands there; lines before it are stored.
#[inline(never)]
pub fn check_and_store(page: &Page, word: u64) -> Result<(), Unexpected> {
    check_and_store_items(&page.0, word)
}

/// As [`check_and_store`], for some items of a page.
///
/// # Errors
///
/// As for [`check_and_store`].
#[inline(always)]
pub fn check_and_store_items(items: &[AtomicU64], mut word: u64) -> Result<(), Unexpected> {
    let mut lines = items.chunks_exact(LINE);
    for line in &mut lines {
        if line.iter().fold(0, |seen, item| seen | item.load(Relaxed)) != 0 {
            return Err(Unexpected);
        }
        for (i, item) in line.iter().enumerate() {
            item.store(word + i as u64 * PAGE, Relaxed);
        }
        word += LINE as u64 * PAGE;
    }
    for item in lines.remainder() {
        if item.load(Relaxed) != 0 {
            return Err(Unexpected);
        }
        item.store(word, Relaxed);
        word += PAGE;
    }
    Ok(())
}

/// Y3: clears words that all have the [`VALID`] bit.
///
/// # Errors
///
/// [`Unexpected`] if one has not; lines before it are cleared.
#[inline(never)]
pub fn check_and_clear(page: &Page) -> Result<(), Unexpected> {
    check_and_clear_items(&page.0)
}

/// As [`check_and_clear`], for some items of a page.
///
/// # Errors
///
/// As for [`check_and_clear`].
#[inline(always)]
pub fn check_and_clear_items(items: &[AtomicU64]) -> Result<(), Unexpected> {
    let mut lines = items.chunks_exact(LINE);
    for line in &mut lines {
        if line
            .iter()
            .fold(VALID, |seen, item| seen & item.load(Relaxed))
            == 0
        {
            return Err(Unexpected);
        }
        for item in line {
            item.store(0, Relaxed);
        }
    }
    for item in lines.remainder() {
        if item.load(Relaxed) & VALID == 0 {
            return Err(Unexpected);
        }
        item.store(0, Relaxed);
    }
    Ok(())
}

/// Y12: zeroes a page with the C library's loop.
#[inline(never)]
pub fn zero(page: &Page) {
    let items = ptr::from_ref(page).cast::<AtomicU64>().cast_mut();
    // SAFETY: `items` points to the 512 atomics of `page`, whose memory may change behind a shared
    // borrow, and the tables of a yardstick belong to one thread.
    unsafe { items.write_bytes(0, page.0.len()) };
}

/// Y4: zeroes a page, then stores rising words, as a table that is new does.
#[inline(never)]
pub fn zero_and_store(page: &Page, word: u64) {
    zero(page);
    // Keeps the zeroes: without it the compiler could drop them before the stores.
    compiler_fence(SeqCst);
    store(page, word);
}

/// Y6: calls an empty function `count` times.
#[inline(never)]
pub fn empty_calls(count: u64) {
    #[inline(never)]
    fn empty() {}
    let opaque: fn() = black_box(empty);
    for _ in 0..count {
        opaque();
    }
}

/// Y7: exchanges one word `count` times.
#[inline(never)]
pub fn exchanges(word: &AtomicU64, count: u64) {
    let mut old = word.load(Relaxed);
    for _ in 0..count {
        old = match word.compare_exchange(old, old + 1, Acquire, Acquire) {
            Ok(old) => old + 1,
            Err(seen) => seen,
        };
    }
}

/// Tables of four levels for Y5.
#[derive(Debug)]
pub struct Walk {
    root: &'static Page,
    iovas: Vec<u64>,
}

impl Walk {
    /// Builds tables that map the pages `iovas` to themselves.
    ///
    /// # Panics
    ///
    /// Panics if the tables of these pages do not fit in 4096 pages.
    pub fn new(iovas: Vec<u64>) -> Self {
        let pages = leak_pages(4096);
        let mut fresh = pages.iter();
        let mut next_page = || {
            fresh
                .next()
                .expect("the yardstick's tables fit in 4096 pages")
        };
        let root = next_page();
        for &iova in &iovas {
            let mut table = root;
            for shift in [39, 30, 21] {
                let item = item_of(table, iova, shift);
                if item.load(Relaxed) == 0 {
                    let address = ptr::from_ref(next_page()).expose_provenance() as u64;
                    item.store(address | VALID, Relaxed);
                }
                table = child(item.load(Relaxed)).expect("a table was just linked");
            }
            item_of(table, iova, 12).store(iova | VALID, Relaxed);
        }
        Self { root, iovas }
    }

    /// Returns how many pages a pass walks to.
    pub fn count(&self) -> usize {
        self.iovas.len()
    }

    /// Y5a, Y5b: walks to every page; the walks do not wait for each other.
    #[inline(never)]
    pub fn throughput(&self) -> u64 {
        let mut sum = 0_u64;
        for &iova in &self.iovas {
            sum = sum.wrapping_add(self.translate(iova).unwrap_or(0));
        }
        sum
    }

    /// Y5c: walks to every page; each walk needs the result of the one before.
    #[inline(never)]
    pub fn dependent(&self) -> u64 {
        let mut result = 0;
        for &iova in &self.iovas {
            // Bit 63 of a result is never set, which the compiler does not know.
            result = self.translate(iova + (result >> 63)).unwrap_or(0);
        }
        result
    }

    #[inline(always)]
    fn translate(&self, iova: u64) -> Option<u64> {
        let l2 = child(item_of(self.root, iova, 39).load(Acquire))?;
        let l1 = child(item_of(l2, iova, 30).load(Acquire))?;
        let l0 = child(item_of(l1, iova, 21).load(Acquire))?;
        let word = item_of(l0, iova, 12).load(Acquire);
        (word & VALID != 0).then_some(word & !(PAGE - 1) | iova & (PAGE - 1))
    }
}

#[inline(always)]
fn item_of(table: &Page, iova: u64, shift: u32) -> &AtomicU64 {
    &table.0[(iova >> shift) as usize & 511]
}

/// Returns the table that a word of [`Walk`] points to.
#[inline(always)]
fn child(word: u64) -> Option<&'static Page> {
    let address = (word & !(PAGE - 1)) as usize;
    // SAFETY: `Walk::new` stores only addresses of pages of its leaked slice above level 0, and
    // `child` is not called for words of level 0.
    (word & VALID != 0).then(|| unsafe { &*ptr::with_exposed_provenance::<Page>(address) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(page: &Page) -> Vec<u64> {
        page.0.iter().map(|item| item.load(Relaxed)).collect()
    }

    #[test]
    fn the_stores_fill_a_page_and_the_clears_empty_it() {
        let page = &leak_pages(1)[0];
        check_and_store(page, 0x5000 | VALID).unwrap();
        let rising: Vec<u64> = (0..512).map(|i| 0x5001 + i * 0x1000).collect();
        assert_eq!(words(page), rising);
        assert_eq!(check_and_store(page, VALID), Err(Unexpected));
        check_and_clear(page).unwrap();
        assert_eq!(words(page), [0; 512]);
        assert_eq!(check_and_clear(page), Err(Unexpected));
        zero_and_store(page, 0x5000 | VALID);
        assert_eq!(words(page), rising);
        zero(page);
        assert_eq!(words(page), [0; 512]);
    }

    #[test]
    fn some_items_of_a_page_are_stored_and_cleared_alone() {
        let page = &leak_pages(1)[0];
        let items = &page.0[16..27];
        check_and_store_items(items, 0x5000 | VALID).unwrap();
        let stored: Vec<u64> = (0..11).map(|i| 0x5001 + i * 0x1000).collect();
        assert_eq!(words(page)[16..27], stored);
        assert_eq!(words(page).iter().filter(|&&word| word != 0).count(), 11);
        for occupied in [20, 26] {
            let around = &page.0[occupied..=occupied];
            assert_eq!(check_and_store_items(around, VALID), Err(Unexpected));
        }
        check_and_clear_items(items).unwrap();
        assert_eq!(words(page), [0; 512]);
        assert_eq!(check_and_clear_items(&page.0[26..27]), Err(Unexpected));
    }

    #[test]
    fn a_walk_finds_what_was_mapped_and_nothing_else() {
        let walk = Walk::new(vec![0x40_0000_0000, 0x40_0020_3000, 0x7f_ffff_f000]);
        assert_eq!(walk.translate(0x40_0020_3abc), Some(0x40_0020_3abc));
        assert_eq!(walk.translate(0x40_0020_4000), None);
        assert_eq!(walk.translate(0x80_0000_0000), None);
        assert_eq!(
            walk.throughput(),
            0x40_0000_0000 + 0x40_0020_3000 + 0x7f_ffff_f000
        );
        assert_eq!(walk.dependent(), 0x7f_ffff_f000);
    }
}
