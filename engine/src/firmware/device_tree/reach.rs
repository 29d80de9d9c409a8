//! How far devices reach, `dma-ranges` of the buses above them (Devicetree Specification 2.3.9), and
//! whether their requests snoop (2.3.10).
//!
//! The closest bus above a device that has ranges says which addresses the device can use; they are
//! those of memory after the ranges of all buses above that one, where a bus that has none changes
//! nothing. A bus between the device and those ranges that has none at all ends the search: it cannot
//! be told what becomes of an address there.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;

use iopt_formats::{Iova, IovaRange};

use crate::firmware::device_tree::source::Window;
use crate::firmware::device_tree::{Reader, Sentence};
use crate::firmware::fdt::NodeId;
use crate::firmware::{Coherence, DmaRange, Problem, Reach, Subject, Topic};

const RANGES: &str = "dma-ranges";
/// How many ranges a device has at most.
const MAX_RANGES: usize = 64;
/// How often ranges and windows of buses above are compared, for all devices of a tree together.
pub(super) const MAX_STEPS: usize = 1 << 22;

/// The ranges of a bus, or on which bus which problem is.
type Found = Result<Vec<DmaRange>, (NodeId, Problem)>;

impl Reader<'_, '_> {
    pub(super) fn read_reaches(&mut self) {
        let mut known: BTreeMap<NodeId, Found> = BTreeMap::new();
        let mut steps = MAX_STEPS;
        for (bus, _, subject) in self.subjects() {
            let found = known
                .entry(bus)
                .or_insert_with(|| self.ranges(bus, &mut steps));
            match found.clone() {
                Ok(ranges) if ranges.is_empty() => {}
                Ok(ranges) => self.description.reaches.push(Reach {
                    subject,
                    address_bits: None,
                    ranges,
                }),
                Err((at, problem)) => {
                    if let Some(property) = self.source.property(at, RANGES) {
                        let named = (RANGES, property);
                        self.flaw(
                            Sentence::new(Topic::Reach, Some(&subject), at, named),
                            problem,
                        );
                    }
                }
            }
        }
    }

    /// Reads whose requests snoop.
    pub(super) fn read_coherence(&mut self) {
        for (_, node, subject) in self.subjects() {
            if let Some(is_coherent) = self.source.is_coherent(node) {
                self.description.coherence.push(Coherence {
                    subject,
                    is_coherent,
                });
            }
        }
    }

    /// All whom sentences can be about, with the bus that they are on and the node that speaks for them.
    fn subjects(&self) -> Vec<(NodeId, NodeId, Subject)> {
        let mut subjects = Vec::new();
        for (node, host) in &self.hosts {
            let subject = self.requesters(*host);
            subjects.extend(subject.map(|subject| (*node, *node, subject)));
        }
        for (node, index) in &self.nodes {
            if self.source.has(*node, "iommu-map") {
                let subject = Subject::Inputs {
                    node: *index,
                    mask: u32::MAX,
                    first: 0,
                    last: u32::MAX,
                };
                subjects.push((*node, *node, subject));
            }
            if let Some(bus) = self.source.parent(*node) {
                subjects.push((bus, *node, Subject::Node(*index)));
            }
        }
        subjects
    }

    /// What devices on a bus reach; nothing if no bus says. Takes what it needs from the steps that are left.
    fn ranges(&self, bus: NodeId, steps: &mut usize) -> Found {
        let source = self.source;
        let mut buses = source.up(bus);
        let mut has_ranges = false;
        let (bus, windows) = loop {
            let Some(bus) = buses.next() else {
                return Ok(Vec::new());
            };
            if let Some(windows) = source.windows(bus, RANGES) {
                break (bus, windows);
            }
            let has_empty = source.has(bus, RANGES);
            if has_ranges && !has_empty {
                return Ok(Vec::new());
            }
            has_ranges |= has_empty;
        };
        let windows = windows.map_err(|problem| (bus, problem))?;
        let mut found: Vec<DmaRange> = windows.filter_map(|window| window.piece()).collect();
        let first = found.first().map(|range| range.cpu);
        for above in buses {
            if found.len() > MAX_RANGES {
                break;
            }
            let Some(windows) = source.windows(above, RANGES) else {
                continue;
            };
            let windows: Vec<DmaRange> = windows
                .map_err(|problem| (above, problem))?
                .filter_map(|window| window.piece())
                .collect();
            let needed = windows.len() * found.len();
            *steps = steps.checked_sub(needed).ok_or_else(|| {
                let limit = MAX_STEPS;
                (above, Problem::TooMany { limit })
            })?;
            let pieces = found.iter().flat_map(|range| {
                let through = windows.iter().map(|window| through(*range, *window));
                through.flatten()
            });
            found = pieces.take(MAX_RANGES + 1).collect();
        }
        if found.len() > MAX_RANGES {
            return Err((bus, Problem::TooMany { limit: MAX_RANGES }));
        }
        match first {
            Some(address) if found.is_empty() => Err((bus, Problem::NoTranslation { address })),
            _ => Ok(found),
        }
    }
}

impl Window {
    /// The range that this is by itself; `None` if it is empty or passes the end of an address space.
    fn piece(&self) -> Option<DmaRange> {
        IovaRange::with_len(Iova::new(self.parent), self.len)?;
        Some(DmaRange {
            range: IovaRange::with_len(Iova::new(self.child), self.len)?,
            cpu: self.parent,
        })
    }
}

/// The part of a range that a window of the bus above lets through.
fn through(range: DmaRange, window: DmaRange) -> Option<DmaRange> {
    let last = range.cpu.checked_add(range.range.len_minus_one())?;
    let above = IovaRange::new(Iova::new(range.cpu), Iova::new(last))?;
    let shared = above.intersection(window.range)?;
    let (first, last) = (shared.start().get(), shared.last().get());
    let start = range.range.start().get() + (first - range.cpu);
    Some(DmaRange {
        range: IovaRange::new(Iova::new(start), Iova::new(start + (last - first)))?,
        cpu: window.cpu + (first - window.range.start().get()),
    })
}
