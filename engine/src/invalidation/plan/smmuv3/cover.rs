//! Granules as range invalidations of the SMMUv3: each covers 1 to 32 times a power of two of them.

/// How a range is covered by commands.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
pub enum Cover {
    /// By the fewest: one where that is exact, else two that overlap.
    #[default]
    Overlapping,
    /// As [`Overlapping`](Self::Overlapping), with a third where two would divide a contiguous group:
    /// for hardware that drops a cached group only if one command covers all of it.
    WholeGroups,
    /// By up to eight that do not overlap, from the smallest up: what Linux sends.
    Disjoint,
}

/// `(num + 1) * 2^scale` granules.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Piece {
    /// Number of the first granule in the address space.
    pub(super) first: u64,
    pub(super) num: u8,
    pub(super) scale: u8,
}

impl Piece {
    /// Returns `factor`, 1 to 32, times `2^scale` granules.
    const fn new(first: u64, factor: u64, scale: u32) -> Self {
        Self {
            first,
            num: (factor - 1) as u8,
            scale: scale as u8,
        }
    }
}

/// The largest factor of a piece.
const MAX_FACTOR: u64 = 32;
/// The largest SCALE that every implementation has.
const MAX_SCALE: u32 = 31;

impl Cover {
    /// Returns how many granules a few commands can cover.
    pub(super) const fn max_count(self) -> u64 {
        match self {
            Self::Overlapping | Self::WholeGroups => (2 * MAX_FACTOR) << MAX_SCALE,
            Self::Disjoint => MAX_FACTOR << MAX_SCALE,
        }
    }

    /// Calls `emit` with pieces that cover `count` granules from number `first` on, and no others but those
    /// of a group; `count` is 1 to [`max_count`](Self::max_count).
    ///
    /// Bit `n` of `groups` says that contiguous groups of `2^n` granules are among what the pieces drop.
    pub(super) fn pieces(self, first: u64, count: u64, groups: u64, emit: impl FnMut(Piece)) {
        match self {
            Self::Overlapping => overlapping(first, count, 0, emit),
            Self::WholeGroups => overlapping(first, count, groups, emit),
            Self::Disjoint => disjoint(first, count, emit),
        }
    }
}

fn overlapping(first: u64, count: u64, groups: u64, mut emit: impl FnMut(Piece)) {
    let exact = count.trailing_zeros().min(MAX_SCALE);
    if count >> exact <= MAX_FACTOR {
        emit(Piece::new(first, count >> exact, exact));
        return;
    }
    // The smallest scale with which two of the largest factor reach: 2^5 * 2^scale is at least half of the
    // count, and less than all of it.
    let scale = (count - 1).ilog2() + 1 - 6;
    let len = MAX_FACTOR << scale;
    let second = first + (count - len);
    emit(Piece::new(first, MAX_FACTOR, scale));
    emit(Piece::new(second, MAX_FACTOR, scale));
    if let Some(group) = divided_group(first, count, len, groups) {
        emit(group);
    }
}

/// Returns the largest group that neither the first `len` nor the last `len` of `count` granules contain.
///
/// Such a group begins before the last `len` and ends behind the first, which end no earlier than the last
/// begin: so it holds the granule before the last `len`. Groups are aligned, so those that hold it contain
/// each other, and the largest that lies inside the range decides for all.
fn divided_group(first: u64, count: u64, len: u64, groups: u64) -> Option<Piece> {
    let inside = first + (count - len) - 1;
    let mut rest = groups;
    while let Some(size_lg2) = rest.checked_ilog2() {
        rest &= !(1 << size_lg2);
        let start = inside >> size_lg2 << size_lg2;
        let end = start + (1 << size_lg2);
        if start >= first && end <= first + count {
            return (end > first + len).then_some(Piece::new(start, 1, size_lg2));
        }
    }
    None
}

fn disjoint(mut first: u64, mut count: u64, mut emit: impl FnMut(Piece)) {
    while count > 0 {
        let scale = count.trailing_zeros().min(MAX_SCALE);
        let factor = if scale == MAX_SCALE {
            (count >> scale).min(MAX_FACTOR)
        } else {
            // Five bits; the lowest of them is set.
            count >> scale & (MAX_FACTOR - 1)
        };
        emit(Piece::new(first, factor, scale));
        first += factor << scale;
        count -= factor << scale;
    }
}

#[cfg(test)]
mod tests {
    use alloc::vec::Vec;

    use super::*;
    use crate::invalidation::plan::testing::Numbers;

    fn pieces(cover: Cover, first: u64, count: u64, groups: u64) -> Vec<Piece> {
        let mut all = Vec::new();
        cover.pieces(first, count, groups, |piece| all.push(piece));
        all
    }

    /// The granules of a piece, by the formula of the specification; the end is exclusive.
    fn span(piece: Piece) -> (u64, u64) {
        let count = (u64::from(piece.num) + 1) * 2_u64.pow(piece.scale.into());
        (piece.first, piece.first + count)
    }

    /// Whether the pieces cover `first..end` and nothing else.
    fn is_exact(pieces: &[Piece], first: u64, end: u64) -> bool {
        let mut spans: Vec<_> = pieces.iter().copied().map(span).collect();
        spans.sort_unstable();
        let mut reached = first;
        for &(start, stop) in &spans {
            if start > reached || start < first || stop > end {
                return false;
            }
            reached = reached.max(stop);
        }
        reached == end
    }

    fn fits_fields(pieces: &[Piece]) -> bool {
        pieces
            .iter()
            .all(|piece| piece.num < 32 && piece.scale < 32)
    }

    /// Whether each aligned group of `size` granules that lies in `first..end` lies in one piece.
    ///
    /// A group that lies in none, but in their union, holds the last granule of the piece that its own first
    /// granule lies in: so only groups around ends of pieces are looked at.
    fn keeps_groups_whole(pieces: &[Piece], first: u64, end: u64, size: u64) -> bool {
        pieces.iter().all(|&piece| {
            let start = (span(piece).1 - 1) / size * size;
            start < first
                || start + size > end
                || pieces
                    .iter()
                    .any(|&other| span(other).0 <= start && start + size <= span(other).1)
        })
    }

    /// All counts to 2^16, then such of more bits, each with a first granule.
    fn cases(max_lg2: u64) -> impl Iterator<Item = (u64, u64)> {
        let mut small_first = Numbers::new(1);
        let small = (1..=1 << 16).map(move |count| (small_first.below(1 << 44), count));
        let mut numbers = Numbers::new(2);
        let large = core::iter::repeat_with(move || {
            let bits = 17 + numbers.below(max_lg2 - 16);
            // Many counts end in zeroes, and first granules, too.
            let zeroes = numbers.below(bits);
            let count = numbers.below(1 << bits) >> zeroes << zeroes;
            let first = numbers.below(1 << 48) >> zeroes << zeroes;
            (first, count.max(1))
        });
        small.chain(large.take(20_000))
    }

    /// A3.16: the cover of the fewest commands.
    #[test]
    #[cfg_attr(miri, ignore = "arithmetic alone, and much of it")]
    fn two_commands_cover_every_range_exactly() {
        for (first, count) in cases(37).chain([(0, 1 << 37), (5, (1 << 37) - 1)]) {
            let pieces = pieces(Cover::Overlapping, first, count, 0);
            assert!(pieces.len() <= 2, "{count}");
            assert!(fits_fields(&pieces), "{count}: {pieces:?}");
            assert!(
                is_exact(&pieces, first, first + count),
                "{count}: {pieces:?}"
            );
        }
    }

    /// A3.16: the disjoint cover.
    #[test]
    #[cfg_attr(miri, ignore = "arithmetic alone, and much of it")]
    fn disjoint_commands_cover_every_range_exactly_and_once() {
        for (first, count) in cases(36).chain([(0, 1 << 36), (5, (1 << 36) - 1)]) {
            let pieces = pieces(Cover::Disjoint, first, count, u64::MAX);
            assert!(pieces.len() <= 8, "{count}");
            assert!(fits_fields(&pieces), "{count}: {pieces:?}");
            assert!(
                is_exact(&pieces, first, first + count),
                "{count}: {pieces:?}"
            );
            let sum: u64 = pieces
                .iter()
                .map(|&piece| span(piece).1 - piece.first)
                .sum();
            assert_eq!(sum, count, "{pieces:?}");
        }
    }

    /// Groups of the granules: 16 and 16 * 2^9 pages of 4 KiB, 128 and 32 * 2^11 of 16 KiB, 32 and 32 * 2^13
    /// of 64 KiB.
    const GROUPS: [[u64; 2]; 3] = [[16, 1 << 13], [128, 1 << 16], [32, 1 << 18]];

    /// A3.16: with the erratum.
    #[test]
    #[cfg_attr(miri, ignore = "arithmetic alone, and much of it")]
    fn a_third_command_keeps_groups_whole() {
        let mut third_count = 0;
        for (index, (first, count)) in cases(37).enumerate() {
            let sizes = GROUPS[index % 3];
            let pieces = pieces(Cover::WholeGroups, first, count, sizes[0] | sizes[1]);
            assert!(pieces.len() <= 3, "{count}");
            assert!(fits_fields(&pieces), "{count}: {pieces:?}");
            assert!(
                is_exact(&pieces, first, first + count),
                "{count}: {pieces:?}"
            );
            for size in sizes {
                assert!(
                    keeps_groups_whole(&pieces, first, first + count, size),
                    "{first} {count} {size}: {pieces:?}"
                );
            }
            third_count += usize::from(pieces.len() == 3);
        }
        assert!(third_count > 100, "{third_count}");
    }

    #[test]
    #[cfg_attr(miri, ignore = "arithmetic alone, and much of it")]
    fn groups_are_whole_whatever_the_first_granule() {
        for first in 0..32 {
            for count in 1..=600 {
                let pieces = pieces(Cover::WholeGroups, first, count, 16);
                let end = first + count;
                assert!(is_exact(&pieces, first, end), "{first} {count}: {pieces:?}");
                // Granule by granule: the pieces that hold each of a group's.
                for group in (0..end)
                    .step_by(16)
                    .filter(|&at| at >= first && at + 16 <= end)
                {
                    let holds_all = pieces.iter().any(|&piece| {
                        (group..group + 16).all(|at| span(piece).0 <= at && at < span(piece).1)
                    });
                    assert!(holds_all, "{first} {count} {group}: {pieces:?}");
                }
            }
        }
    }

    #[test]
    fn known_ranges_have_known_commands() {
        let plain = |cover, count| -> Vec<(u64, u8, u8)> {
            pieces(cover, 0, count, 0)
                .iter()
                .map(|piece| (piece.first, piece.num, piece.scale))
                .collect()
        };
        for cover in [Cover::Overlapping, Cover::Disjoint] {
            assert_eq!(plain(cover, 1), [(0, 0, 0)]);
            assert_eq!(plain(cover, 2), [(0, 0, 1)]);
            assert_eq!(plain(cover, 31), [(0, 30, 0)]);
            assert_eq!(plain(cover, 32), [(0, 0, 5)]);
            assert_eq!(plain(cover, 512), [(0, 0, 9)]);
            assert_eq!(plain(cover, 1 << 32), [(0, 1, 31)]);
            assert_eq!(plain(cover, 1 << 36), [(0, 31, 31)]);
        }
        assert_eq!(plain(Cover::Disjoint, 33), [(0, 0, 0), (1, 0, 5)]);
        assert_eq!(plain(Cover::Disjoint, 63), [(0, 30, 0), (31, 0, 5)]);
        assert_eq!(plain(Cover::Disjoint, 511), [(0, 30, 0), (31, 14, 5)]);
        assert_eq!(plain(Cover::Disjoint, 1023), [(0, 30, 0), (31, 30, 5)]);
        assert_eq!(plain(Cover::Disjoint, (1 << 21) - 1).len(), 5);
        assert_eq!(plain(Cover::Overlapping, 33), [(0, 31, 0), (1, 31, 0)]);
        assert_eq!(plain(Cover::Overlapping, 63), [(0, 31, 0), (31, 31, 0)]);
        assert_eq!(plain(Cover::Overlapping, 511), [(0, 31, 3), (255, 31, 3)]);
        assert_eq!(plain(Cover::Overlapping, 1023), [(0, 31, 4), (511, 31, 4)]);
        assert_eq!(
            plain(Cover::Overlapping, (1 << 21) - 1),
            [(0, 31, 15), ((1 << 20) - 1, 31, 15)]
        );
    }

    #[test]
    #[cfg_attr(miri, ignore = "arithmetic alone, and much of it")]
    fn leaves_stay_whole_in_ranges_of_leaves() {
        for (first, count) in cases(27) {
            for cover in [Cover::Overlapping, Cover::Disjoint] {
                for piece in pieces(cover, first << 9, count << 9, 0) {
                    let (start, end) = span(piece);
                    assert!((start | end).is_multiple_of(512), "{count}: {piece:?}");
                }
            }
        }
    }
}
