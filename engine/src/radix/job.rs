//! One mapping to make, and the pieces that it is made in.

use iopt_formats::{Format, Iova, Oa, PageSize, PageSizes, Prot};

/// A mapping to make, checked against everything but the tree.
#[derive(Clone, Copy)]
pub(super) struct Job {
    pub(super) iova: u64,
    pub(super) last: u64,
    pub(super) oa: u64,
    pub(super) prot: Prot,
    pub(super) sizes: PageSizes,
}

/// A part of a job whose leaves have one size and whose items lie in one table.
#[derive(Clone, Copy)]
pub(super) struct Chunk {
    pub(super) iova: u64,
    pub(super) last: u64,
    pub(super) oa: u64,
    pub(super) size: PageSize,
}

impl Job {
    /// Returns the part of this job from `iova` on, limited to `sizes`.
    pub(super) fn part(self, iova: u64, last: u64, sizes: PageSizes) -> Self {
        Self {
            iova,
            last,
            oa: self.oa + (iova - self.iova),
            sizes,
            ..self
        }
    }

    /// Calls `each` with the chunks, in rising order.
    pub(super) fn try_for_each<F: Format, E>(
        self,
        mut each: impl FnMut(Chunk) -> Result<(), E>,
    ) -> Result<(), E> {
        let (mut iova, mut oa) = (self.iova, self.oa);
        loop {
            // The caller checked the alignment of the job, so that the smallest size always fits.
            let Some(size) =
                self.sizes
                    .largest_fitting(Iova::new(iova), Iova::new(self.last), Oa::new(oa))
            else {
                return Ok(());
            };
            let last = self.chunk_last::<F>(iova, oa, size);
            each(Chunk {
                iova,
                last,
                oa,
                size,
            })?;
            if last == self.last {
                return Ok(());
            }
            oa += last - iova + 1;
            iova = last + 1;
        }
    }

    /// Returns the last address up to which leaves of `size` are the largest that fit, inside one
    /// table and one window in which output addresses are linear.
    pub(super) fn chunk_last<F: Format>(self, iova: u64, oa: u64, size: PageSize) -> u64 {
        let len_minus_one = self.last - iova;
        // Whole leaves of this size that fit.
        let mut last = match len_minus_one.checked_add(1) {
            Some(len) => iova + ((len & !size.offset_mask()) - 1),
            None => self.last,
        };
        let usable = usable_sizes(self.sizes, iova, oa, len_minus_one).bits();
        let larger = PageSizes::from_bits(usable & !size.offset_mask()).without(size);
        if let Some(next) = larger.smallest() {
            // `iova` is not aligned to the next size, else that one would have been chosen.
            let boundary_last = iova | next.offset_mask();
            if boundary_last < last && self.last - boundary_last >= next.bytes() {
                last = boundary_last;
            }
        }
        let table_lg2 = F::item_lg2(F::level_of(size)) + F::item_count_lg2();
        let window_lg2 = table_lg2.min(63);
        last = last.min(iova | ((1 << window_lg2) - 1));
        if F::OA_LINEAR_LG2 < 64 {
            last = last.min(iova.saturating_add((oa | ((1 << F::OA_LINEAR_LG2) - 1)) - oa));
        }
        last
    }
}

impl Job {
    /// Returns a set that holds every size that the job's leaves have.
    pub(super) fn sizes_used(self) -> PageSizes {
        usable_sizes(self.sizes, self.iova, self.oa, self.last - self.iova)
    }
}

/// Returns the sizes that some leaf of a mapping can have: those that divide the distance of its
/// addresses and do not exceed its length.
#[inline]
pub(super) fn usable_sizes(sizes: PageSizes, iova: u64, oa: u64, len_minus_one: u64) -> PageSizes {
    let distance = iova ^ oa;
    let alignment = distance ^ distance.wrapping_sub(1);
    let length = match len_minus_one.checked_add(1) {
        Some(len) => u64::MAX >> len.leading_zeros(),
        None => u64::MAX,
    };
    PageSizes::from_bits(sizes.bits() & alignment & length)
}

/// Returns whether [`Format::encode_oa`] is linear over the whole of a run.
#[inline]
pub(super) fn is_linear<F: Format>(oa: Oa, len_minus_one: u64) -> bool {
    F::OA_LINEAR_LG2 >= 64
        || oa.get() >> F::OA_LINEAR_LG2 == (oa.get() + len_minus_one) >> F::OA_LINEAR_LG2
}
