//! Bits that say which pages were written to.

use iopt_formats::{Iova, IovaRange, PageSize};

/// A caller's bitmap over an IOVA range: bit `n` stands for page `n` from `base` on, in little-endian
/// order of bits and bytes, as the kernel's interfaces have it. The bytes may lie at any address.
///
/// Bits are only ever set, so that one bitmap can gather over several calls and domains.
///
/// ```
/// use iopt::ioas::DirtyBitmap;
/// use iopt_formats::{Iova, IovaRange, PageSize};
///
/// let mut bits = [0; 2];
/// let mut bitmap = DirtyBitmap::new(Iova::new(0x8000), PageSize::KIB_4, &mut bits);
/// bitmap.set(IovaRange::with_len(Iova::new(0x9800), 0x1000).unwrap());
/// assert_eq!(bitmap.count(), 2);
/// assert_eq!(bits, [0b110, 0]);
/// ```
#[derive(Debug)]
pub struct DirtyBitmap<'a> {
    base: Iova,
    page: PageSize,
    bits: &'a mut [u8],
}

impl<'a> DirtyBitmap<'a> {
    /// Creates a bitmap of `8 * bits.len()` pages from `base` on. Pages may be of any size, also smaller
    /// than what a domain maps.
    pub const fn new(base: Iova, page: PageSize, bits: &'a mut [u8]) -> Self {
        Self { base, page, bits }
    }

    /// Returns the size of a page.
    pub const fn page_size(&self) -> PageSize {
        self.page
    }

    /// Returns the addresses that have a bit, or `None` if there is none.
    pub fn range(&self) -> Option<IovaRange> {
        let page_count = (self.bits.len() as u64).checked_mul(8)?;
        let last = page_count.checked_sub(1)?.checked_mul(self.page.bytes());
        let last = last.and_then(|last| last.checked_add(self.page.offset_mask()));
        let last = last.and_then(|last| self.base.checked_add(last));
        IovaRange::new(self.base, last.unwrap_or(Iova::new(u64::MAX)))
    }

    /// Sets the bits of every page that shares an address with `range`.
    pub fn set(&mut self, range: IovaRange) {
        let Some(part) = self.range().and_then(|whole| whole.intersection(range)) else {
            return;
        };
        let index = |iova: Iova| (iova.get() - self.base.get()) >> self.page.lg2();
        let (first, last) = (index(part.start()) as usize, index(part.last()) as usize);
        let (first_byte, last_byte) = (first / 8, last / 8);
        let from = u8::MAX << (first % 8);
        let to = u8::MAX >> (7 - last % 8);
        if first_byte == last_byte {
            self.bits[first_byte] |= from & to;
        } else {
            self.bits[first_byte] |= from;
            self.bits[first_byte + 1..last_byte].fill(u8::MAX);
            self.bits[last_byte] |= to;
        }
    }

    /// Returns whether the page of `iova` is marked.
    pub fn is_set(&self, iova: Iova) -> bool {
        let at = IovaRange::new(iova, iova).filter(|&at| {
            let whole = self.range();
            whole.is_some_and(|whole| whole.contains(at))
        });
        at.is_some_and(|at| {
            let index = ((at.start().get() - self.base.get()) >> self.page.lg2()) as usize;
            self.bits[index / 8] & 1 << (index % 8) != 0
        })
    }

    /// Returns the number of marked pages.
    pub fn count(&self) -> u64 {
        self.bits
            .iter()
            .map(|byte| u64::from(byte.count_ones()))
            .sum()
    }
}
