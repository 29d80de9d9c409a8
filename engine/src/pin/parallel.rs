//! One huge range on all cores.

use rayon::prelude::*;

use crate::pin::{PageRange, PinError, Source};

/// Pages of one piece: 64 MiB of 4 KiB pages, many times what starting it costs.
const PIECE_PAGE_COUNT: u64 = 1 << 14;

/// Brings pages of a source into memory on the threads of the current `rayon` pool, which is most of the
/// work of pinning fresh memory: map it afterwards.
///
/// # Errors
///
/// [`PinError`] of a piece that fails; others may be in memory then, and none is pinned.
pub fn par_prefault(source: &dyn Source, pages: PageRange) -> Result<(), PinError> {
    let (first, last) = (
        pages.first() / PIECE_PAGE_COUNT,
        pages.last() / PIECE_PAGE_COUNT,
    );
    (first..=last).into_par_iter().try_for_each(|index| {
        let start = index * PIECE_PAGE_COUNT;
        let piece = PageRange::with_count(start, PIECE_PAGE_COUNT);
        let piece = piece.and_then(|piece| piece.intersection(pages));
        piece.map_or(Ok(()), |piece| source.prefault(piece))
    })
}
