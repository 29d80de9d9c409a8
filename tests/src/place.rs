//! Where bugs live: addresses at the edges of tables, blocks, windows and of the space.
//!
//! Test inputs name places by small numbers, so that a failing case shrinks to something that can
//! be read; a [`Places`] turns them into addresses of one format.

use iopt_formats::{Format, Iova, IovaRange, Level, Oa, PageSize};

use crate::model::{Model, halves, windows};

/// An address near an edge.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Spot {
    /// Number of the edge; any number names one.
    pub edge: u8,
    /// Distance from it in smallest pages.
    pub pages: i8,
    /// Bytes past the page's start.
    pub bytes: u16,
}

/// A length near a multiple of a page size.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Len {
    /// Number of the page size, from the smallest; any number names one.
    pub size: u8,
    /// How many of that size.
    pub count: u8,
    /// What is added, in smallest pages.
    pub pages: i8,
}

/// The IOVA range of an operation.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Target {
    /// A range near an edge.
    Edge {
        /// Its start.
        at: Spot,
        /// Its length.
        len: Len,
    },
    /// A range of mapped entries.
    Entries {
        /// Number of the first entry; any number names one.
        first: u16,
        /// How many entries, neighbours or not.
        count: u8,
        /// Smallest pages that are added at the start and at the end.
        grow: (i8, i8),
    },
    /// A part of an entry that is larger than the smallest page.
    Large {
        /// Number of the entry among those; any number names one.
        number: u16,
        /// Which part.
        part: Part,
    },
    /// Half a window, which is a whole claim.
    Half {
        /// Number of the half; any number names one.
        number: u8,
    },
}

/// A part of an entry.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Part {
    /// All of it.
    Whole,
    /// Its first page.
    First,
    /// Its last page.
    Last,
}

/// The output address of a mapping.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Output {
    /// Number of the page size whose offset the output shares with the IOVA; any number names one.
    pub like: u8,
    /// Which block of that size; the highest number is the last block below the width.
    pub block: u8,
    /// Distance from there in smallest pages.
    pub pages: i8,
}

impl Output {
    /// The block at the end of the output addresses.
    pub const LAST_BLOCK: u8 = 3;
}

/// The edges of one format.
#[derive(Clone, Debug)]
pub struct Places {
    edges: Vec<u64>,
    halves: Vec<IovaRange>,
    sizes: Vec<PageSize>,
    granule: PageSize,
    oa_bits: u8,
}

impl Places {
    /// Collects the edges of a table of `format`.
    pub fn new<F: Format>(format: &F) -> Self {
        let sizes: Vec<_> = format.sizes().iter().collect();
        let geometry = format.geometry();
        let mut edges = Vec::new();
        for window in windows(geometry) {
            let (start, end) = (window.start().get(), window.last().get().wrapping_add(1));
            edges.extend([start, end]);
            for block in &sizes {
                edges.extend([
                    start.wrapping_add(block.bytes()),
                    end.wrapping_sub(block.bytes()),
                ]);
            }
            for level in 0..geometry.max_top.0 {
                let span_lg2 = F::item_lg2(Level(level)) + F::item_count_lg2();
                let span = 1_u64.checked_shl(span_lg2.into()).unwrap_or(0);
                edges.extend([start.wrapping_add(span), end.wrapping_sub(span)]);
            }
        }
        edges.sort_unstable();
        edges.dedup();
        Self {
            edges,
            halves: halves(geometry),
            sizes,
            granule: F::GRANULE,
            oa_bits: format.oa_bits(),
        }
    }

    /// Returns the page size of a number.
    pub fn size(&self, number: u8) -> PageSize {
        self.sizes[usize::from(number) % self.sizes.len()]
    }

    /// Returns the address of `spot`, modulo the 64-bit space.
    pub fn iova(&self, spot: Spot) -> Iova {
        let edge = self.edges[usize::from(spot.edge) % self.edges.len()];
        let pages = i64::from(spot.pages) << self.granule.lg2();
        Iova::new(
            edge.wrapping_add_signed(pages)
                .wrapping_add(spot.bytes.into()),
        )
    }

    /// Returns the bytes of `len`, at least one.
    pub fn len(&self, len: Len) -> u64 {
        let whole = self.size(len.size).bytes().saturating_mul(len.count.into());
        whole
            .saturating_add_signed(i64::from(len.pages) << self.granule.lg2())
            .max(1)
    }

    /// Returns the range that `target` names, or `None` if it would wrap or nothing is mapped.
    pub fn range<F: Format>(&self, target: Target, model: &Model<F>) -> Option<IovaRange> {
        match target {
            Target::Edge { at, len } => IovaRange::with_len(self.iova(at), self.len(len)),
            Target::Entries { first, count, grow } => {
                let first = usize::from(first) % model.entry_count().max(1);
                let mut entries = model.entries().skip(first);
                let start = entries.next()?;
                let last = entries
                    .take(usize::from(count).saturating_sub(1))
                    .last()
                    .unwrap_or(start);
                let move_by = |address: u64, pages: i8| {
                    address.checked_add_signed(i64::from(pages) << self.granule.lg2())
                };
                let from = move_by(start.start.get(), grow.0)?;
                let to = move_by(last.range().last().get(), grow.1)?;
                IovaRange::new(Iova::new(from), Iova::new(to))
            }
            Target::Large { number, part } => {
                let large: Vec<_> = model
                    .entries()
                    .filter(|entry| entry.size > model.page())
                    .collect();
                let entry = large.get(usize::from(number) % large.len().max(1))?;
                let last = entry.range().last().get() - model.page().offset_mask();
                match part {
                    Part::Whole => Some(entry.range()),
                    Part::First => IovaRange::with_len(entry.start, model.page().bytes()),
                    Part::Last => IovaRange::with_len(Iova::new(last), model.page().bytes()),
                }
            }
            Target::Half { number } => Some(self.halves[usize::from(number) % self.halves.len()]),
        }
    }

    /// Returns the output address that `output` names for a mapping at `iova`.
    pub fn oa(&self, output: Output, iova: Iova) -> Oa {
        let size = self.size(output.like);
        let base = if output.block >= Output::LAST_BLOCK {
            u64::MAX
                .checked_shr(64 - u32::from(self.oa_bits))
                .unwrap_or(0)
                & !size.offset_mask()
        } else {
            size.bytes().wrapping_mul(output.block.into())
        };
        let offset = iova.get() & size.offset_mask();
        Oa::new((base | offset).wrapping_add_signed(i64::from(output.pages) << self.granule.lg2()))
    }
}
