//! `iommu-map`: which IDs of a bus are which IDs of which instance (`pci-iommu.yaml`).
//!
//! An entry is the first ID, the instance, the ID there in as many cells as the instance wants, and how
//! many IDs there are. Linux took the instance's ID for one cell whatever it wants until 2026, and there
//! are trees that only that reading fits: of four cells an entry, all for one instance. They are read in
//! the old way where they cannot be read in the other.

use alloc::vec::Vec;

use crate::firmware::device_tree::source::cell;
use crate::firmware::device_tree::{Reader, Sentence};
use crate::firmware::fdt::{NodeId, Property};
use crate::firmware::{InstanceIndex, Output, Problem, Subject, Topic};

/// Which bits of an ID a map looks at.
pub(super) const MASK: &str = "iommu-map-mask";

/// A map, up to its first flaw.
pub(super) struct Map<'a> {
    pub(super) property: Property<'a>,
    /// Which bits of an ID count.
    pub(super) mask: u32,
    pub(super) entries: Vec<MapEntry>,
    /// What ends it early, and where in the value.
    pub(super) flaw: Option<(usize, Problem)>,
}

/// An entry with IDs.
pub(super) struct MapEntry {
    first: u32,
    last: u32,
    pub(super) instance: InstanceIndex,
    output: Output,
}

/// An entry's place in the value and its shape.
struct Shape {
    /// The first cell's index.
    at: usize,
    /// How many cells the instance's ID has here.
    cells: usize,
}

impl<'a> Reader<'_, 'a> {
    /// The map of a bus; `None` if it has none, or if it is unreadable as a whole.
    pub(super) fn map(&mut self, node: NodeId, whole: &Subject) -> Option<Map<'a>> {
        let property = self.source.property(node, "iommu-map")?;
        let mask = match self.source.property(node, MASK) {
            None => u32::MAX,
            Some(property) => match self.source.number(node, MASK)? {
                Ok(mask) => mask,
                Err(problem) => {
                    let named = (MASK, property);
                    self.flaw(
                        Sentence::new(Topic::Rule, Some(whole), node, named),
                        problem,
                    );
                    return None;
                }
            },
        };
        let value = property.value;
        let mut entries = Vec::new();
        let (shapes, mut flaw) = self.shapes(value);
        for shape in &shapes {
            match self.entry(value, shape, mask) {
                Ok(entry) => entries.extend(entry),
                Err(problem) => {
                    flaw = Some((shape.at * 4, problem));
                    break;
                }
            }
        }
        Some(Map {
            property,
            mask,
            entries,
            flaw,
        })
    }

    /// Where the entries are, up to the first one that does not fit.
    fn shapes(&self, value: &[u8]) -> (Vec<Shape>, Option<(usize, Problem)>) {
        let count = value.len() / 4;
        let length = Problem::Length { len: value.len() };
        if count == 0 || !value.len().is_multiple_of(4) {
            return (Vec::new(), Some((0, length)));
        }
        let mut shapes = Vec::new();
        let mut at = 0;
        let flaw = loop {
            if at == count {
                return (shapes, None);
            }
            let cells = match cell(value, at + 1).map(|phandle| self.target(phandle)) {
                Some(Ok((_, cells))) => cells,
                Some(Err(problem)) => break (at * 4, problem),
                None => break (at * 4, length),
            };
            if at + 3 + cells > count {
                break (at * 4, length);
            }
            shapes.push(Shape { at, cells });
            at += 3 + cells;
        };
        let is_old = count.is_multiple_of(4)
            && (0..count)
                .step_by(4)
                .all(|at| cell(value, at + 1) == cell(value, 1));
        if is_old && cell(value, 1).is_some_and(|phandle| self.target(phandle).is_ok()) {
            let old = (0..count).step_by(4).map(|at| Shape { at, cells: 1 });
            return (old.collect(), None);
        }
        (shapes, Some(flaw))
    }

    /// An entry; `None` if it has no IDs.
    fn entry(&self, value: &[u8], shape: &Shape, mask: u32) -> Result<Option<MapEntry>, Problem> {
        let at = |index| cell(value, shape.at + index).unwrap_or(0);
        let (base, phandle, ids) = (at(0), at(1), at(2 + shape.cells));
        let (instance, wanted) = self.target(phandle)?;
        if base & !mask != 0 {
            return Err(Problem::BaseOutsideMask { base, mask });
        }
        let Some(more) = ids.checked_sub(1) else {
            return Ok(None);
        };
        let overflow = |first: u32| Problem::Overflow {
            first: u64::from(first),
            len: u64::from(ids),
        };
        let last = base.checked_add(more).ok_or_else(|| overflow(base))?;
        let output = match (wanted, shape.cells) {
            (0, _) => Output::Cells(Vec::new()),
            (_, 1) => {
                let output = at(2);
                let last = output.checked_add(more).ok_or_else(|| overflow(output))?;
                self.check_ids(instance, &[last])?;
                Output::Offset(output)
            }
            (_, cells) if more != 0 => {
                let cells = u32::try_from(cells).unwrap_or(u32::MAX);
                return Err(Problem::RangeOfCells { ids, cells });
            }
            (_, cells) => {
                let cells: Vec<_> = (2..2 + cells).map(at).collect();
                self.check_ids(instance, &cells)?;
                Output::Cells(cells)
            }
        };
        Ok(Some(MapEntry {
            first: base,
            last,
            instance,
            output,
        }))
    }
}

/// The part of an entry within bounds, which count too: its first and last ID, and its output.
pub(super) fn clipped(entry: &MapEntry, bounds: (u32, u32)) -> Option<(u32, u32, Output)> {
    let first = entry.first.max(bounds.0);
    let last = entry.last.min(bounds.1);
    if first > last {
        return None;
    }
    let output = match &entry.output {
        // No overflow: the output of the entry's last ID is a number, too.
        Output::Offset(offset) => Output::Offset(offset.saturating_add(first - entry.first)),
        output => output.clone(),
    };
    Some((first, last, output))
}
