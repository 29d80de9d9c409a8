//! What a table should translate, kept as plainly as possible.

use std::collections::BTreeMap;

use iopt_formats::{Iova, IovaRange, Oa, Prot};

/// Consecutive IOVA that one map call made and no unmap call touched.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Extent {
    /// What is mapped.
    pub range: IovaRange,
    /// Where its first byte goes.
    pub oa: Oa,
    /// What was asked for.
    pub prot: Prot,
}

impl Extent {
    /// Returns where `iova`, a byte of the extent, goes.
    pub fn oa_of(&self, iova: Iova) -> Oa {
        Oa::new(
            self.oa
                .get()
                .wrapping_add(iova.get().wrapping_sub(self.range.start().get())),
        )
    }

    /// Returns the part of the extent inside `range`, if any.
    fn part(&self, range: IovaRange) -> Option<Self> {
        let part = self.range.intersection(range)?;
        Some(Self {
            range: part,
            oa: self.oa_of(part.start()),
            prot: self.prot,
        })
    }
}

/// Why an operation does not fit what is mapped. The model is unchanged then.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum ModelError {
    /// A map over something mapped.
    #[error("map over {iova}, which is mapped already")]
    Occupied {
        /// First such address.
        iova: Iova,
    },
    /// An unmap of something not mapped.
    #[error("unmap of {iova}, which is not mapped")]
    Hole {
        /// First such address.
        iova: Iova,
    },
    /// The output range passes the last byte of the 64-bit space.
    #[error("the output range from {oa} passes the end of the 64-bit space")]
    OaWraps {
        /// Start of the output.
        oa: Oa,
    },
}

/// The translations of one domain.
///
/// ```
/// use iopt_formats::{Iova, IovaRange, Oa, Prot};
/// use iopt_tools::model::Model;
///
/// let mut model = Model::default();
/// let range = IovaRange::with_len(Iova::new(0x1000), 0x3000).unwrap();
/// model.map(range, Oa::new(0x8000), Prot::RW).unwrap();
/// model.unmap(IovaRange::with_len(Iova::new(0x2000), 0x1000).unwrap()).unwrap();
/// assert_eq!(model.lookup(Iova::new(0x3008)), Some((Oa::new(0xa008), Prot::RW)));
/// assert_eq!(model.lookup(Iova::new(0x2000)), None);
/// assert_eq!(model.live_bytes(), 0x2000);
/// ```
#[derive(Clone, Debug, Default)]
pub struct Model {
    /// Extents by their first byte; they never overlap.
    extents: BTreeMap<u64, Extent>,
    live_bytes: u64,
}

impl Model {
    /// Adds a mapping.
    ///
    /// # Errors
    ///
    /// [`ModelError::Occupied`] and [`ModelError::OaWraps`].
    pub fn map(&mut self, range: IovaRange, oa: Oa, prot: Prot) -> Result<(), ModelError> {
        if oa.checked_add(range.len_minus_one()).is_none() {
            return Err(ModelError::OaWraps { oa });
        }
        if let Some(extent) = self.overlapping(range).next() {
            let iova = extent.range.start().max(range.start());
            return Err(ModelError::Occupied { iova });
        }
        self.extents
            .insert(range.start().get(), Extent { range, oa, prot });
        self.live_bytes = self.live_bytes.saturating_add(bytes(range));
        Ok(())
    }

    /// Removes everything in `range`, parts of mappings too, and returns how many mappings it
    /// removed or cut.
    ///
    /// # Errors
    ///
    /// [`ModelError::Hole`] if a byte of the range is not mapped.
    pub fn unmap(&mut self, range: IovaRange) -> Result<usize, ModelError> {
        let touched: Vec<Extent> = self.overlapping(range).collect();
        let mut next = Some(range.start());
        for extent in &touched {
            match next {
                Some(iova) if extent.range.start() > iova => return Err(ModelError::Hole { iova }),
                _ => next = extent.range.last().checked_add(1),
            }
        }
        if let Some(iova) = next.filter(|&iova| iova <= range.last()) {
            return Err(ModelError::Hole { iova });
        }
        for extent in &touched {
            self.extents.remove(&extent.range.start().get());
            for rest in outside(extent.range, range).into_iter().flatten() {
                self.extents
                    .extend(extent.part(rest).map(|part| (rest.start().get(), part)));
            }
        }
        self.live_bytes = self.live_bytes.saturating_sub(bytes(range));
        Ok(touched.len())
    }

    /// Returns where `iova` goes and the rights that were asked for.
    pub fn lookup(&self, iova: Iova) -> Option<(Oa, Prot)> {
        let extent = self.overlapping(IovaRange::new(iova, iova)?).next()?;
        Some((extent.oa_of(iova), extent.prot))
    }

    /// Returns the extent that holds `iova`, or else the next one above.
    pub fn extent_from(&self, iova: Iova) -> Option<Extent> {
        self.overlapping(IovaRange::new(iova, Iova::new(u64::MAX))?)
            .next()
    }

    /// Returns the extents, lowest first.
    pub fn extents(&self) -> impl Iterator<Item = Extent> {
        self.extents.values().copied()
    }

    /// Returns the number of extents.
    pub fn extent_count(&self) -> usize {
        self.extents.len()
    }

    /// Returns the number of bytes mapped.
    pub fn live_bytes(&self) -> u64 {
        self.live_bytes
    }

    /// Returns the extents that share a byte with `range`, lowest first.
    fn overlapping(&self, range: IovaRange) -> impl Iterator<Item = Extent> {
        let below = self.extents.range(..range.start().get()).next_back();
        let inside = self.extents.range(range.start().get()..=range.last().get());
        below
            .into_iter()
            .chain(inside)
            .map(|(_, &extent)| extent)
            .filter(move |extent| extent.range.overlaps(range))
    }
}

/// Returns the parts of `whole` below and above `hole`.
fn outside(whole: IovaRange, hole: IovaRange) -> [Option<IovaRange>; 2] {
    let below = hole.start().get().checked_sub(1).map(Iova::new);
    let above = hole.last().checked_add(1);
    [
        below.and_then(|last| IovaRange::new(whole.start(), last)),
        above.and_then(|start| IovaRange::new(start, whole.last())),
    ]
}

/// Returns the length of `range`; the full space, which no trace maps, counts one byte less.
fn bytes(range: IovaRange) -> u64 {
    range.len().unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(start: u64, last: u64) -> IovaRange {
        IovaRange::new(Iova::new(start), Iova::new(last)).unwrap()
    }

    fn two_mappings() -> Model {
        let mut model = Model::default();
        model
            .map(range(0x1000, 0x2fff), Oa::new(0x10_0000), Prot::RW)
            .unwrap();
        model
            .map(range(0x3000, 0x3fff), Oa::new(0x20_0000), Prot::R)
            .unwrap();
        model
    }

    #[test]
    fn a_map_over_any_mapped_byte_is_refused() {
        let mut model = two_mappings();
        for (over, iova) in [
            (range(0x1000, 0x1fff), 0x1000),
            (range(0x2000, 0x2fff), 0x2000),
            (range(0, 0x1000), 0x1000),
            (range(0x3fff, 0x4fff), 0x3fff),
            (range(0, u64::MAX), 0x1000),
        ] {
            let refused = model.map(over, Oa::new(0), Prot::R);
            assert_eq!(
                refused,
                Err(ModelError::Occupied {
                    iova: Iova::new(iova)
                })
            );
        }
        assert_eq!(model.live_bytes(), 0x3000);
        model.map(range(0, 0xfff), Oa::new(0), Prot::R).unwrap();
        model
            .map(range(0x4000, 0x4fff), Oa::new(0), Prot::R)
            .unwrap();
    }

    #[test]
    fn an_unmap_of_any_hole_is_refused_and_changes_nothing() {
        let mut model = two_mappings();
        for (over, iova) in [
            (range(0x0, 0x1fff), 0x0),
            (range(0x3000, 0x4fff), 0x4000),
            (range(0x8000, 0x8fff), 0x8000),
            (range(0xfff, 0xfff), 0xfff),
        ] {
            let refused = model.unmap(over);
            assert_eq!(
                refused,
                Err(ModelError::Hole {
                    iova: Iova::new(iova)
                })
            );
        }
        assert_eq!(
            model.extents().collect::<Vec<_>>(),
            two_mappings().extents().collect::<Vec<_>>()
        );
    }

    #[test]
    fn an_unmap_may_cut_and_span_mappings() {
        let mut model = two_mappings();
        assert_eq!(model.unmap(range(0x2000, 0x37ff)), Ok(2));
        assert_eq!(
            model.lookup(Iova::new(0x1fff)),
            Some((Oa::new(0x10_0fff), Prot::RW))
        );
        assert_eq!(model.lookup(Iova::new(0x2000)), None);
        assert_eq!(model.lookup(Iova::new(0x37ff)), None);
        assert_eq!(
            model.lookup(Iova::new(0x3800)),
            Some((Oa::new(0x20_0800), Prot::R))
        );
        assert_eq!((model.live_bytes(), model.extent_count()), (0x1800, 2));
        let start_of_next = |iova| Some(model.extent_from(Iova::new(iova))?.range.start().get());
        assert_eq!(start_of_next(0x1fff), Some(0x1000));
        assert_eq!(start_of_next(0x2000), Some(0x3800));
        assert_eq!(start_of_next(0x4000), None);
    }

    #[test]
    fn the_last_page_of_the_space_can_be_mapped() {
        let mut model = Model::default();
        let top = range(0xffff_ffff_ffff_f000, u64::MAX);
        model.map(top, Oa::new(0xf000), Prot::W).unwrap();
        assert_eq!(
            model.lookup(Iova::new(u64::MAX)),
            Some((Oa::new(0xffff), Prot::W))
        );
        assert_eq!(model.unmap(top), Ok(1));
        assert_eq!(model.live_bytes(), 0);
    }

    #[test]
    fn an_output_range_must_end_in_the_space() {
        let oa = Oa::new(0xffff_ffff_ffff_f000);
        let refused = Model::default().map(range(0, 0x1fff), oa, Prot::R);
        assert_eq!(refused, Err(ModelError::OaWraps { oa }));
    }
}
