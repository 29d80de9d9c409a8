//! Plans for VT-d units.
//!
//! Source: *Intel Virtualization Technology for Directed I/O, Architecture Specification*, revision 4.1,
//! sections 6.2 "Caching Mode", 6.5.2 "Queued Invalidation Interface" and 6.8 "Write Buffer Flushing".
//!
//! An invalidation of a block drops every leaf that overlaps it, of any size, and the entries that point to
//! tables of the block unless its hint says that no table changed. So a range needs only to be covered.

use iopt_formats::command::vtd::{Descriptor, Device, IotlbScope, PasidIotlbScope, PasidScope};
use iopt_formats::command::{Pasid, Span};
use iopt_formats::{Iova, IovaRange};

use crate::invalidation::plan::{Phase, Planner};
use crate::invalidation::{Changes, Kind};

/// At most so many descriptors for one tag: above, the domain is dropped as a whole.
///
/// Matters only for units whose blocks are small, and bounds what one tag takes of the queue.
const MAX_BLOCKS: u64 = 8;

/// What of one unit decides how it is told.
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is an independent bit of the capability register"
)]
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct Vtd {
    /// Whether the IOTLB can drop blocks (CAP.PSI).
    pub has_blocks: bool,
    /// Base-2 logarithm of the pages of the largest such block (CAP.MAMV).
    pub max_order: u8,
    /// Whether the unit caches that nothing is mapped (CAP.CM), as emulated ones do.
    pub has_caching_mode: bool,
    /// Whether writes to tables stay in a buffer until the unit is told something (CAP.RWBF).
    pub has_write_buffer: bool,
    /// Whether an invalidation can wait for reads in flight (CAP.DRD).
    pub has_read_drain: bool,
    /// Whether an invalidation can wait for writes in flight (CAP.DWD).
    pub has_write_drain: bool,
}

/// One place where a unit, or a device behind it, caches translations.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Tag {
    /// The unit's IOTLB, for a domain that is translated by a second stage alone.
    SecondStage {
        /// DID.
        domain_id: u16,
    },
    /// The unit's IOTLB, for a first stage.
    FirstStage {
        /// DID.
        domain_id: u16,
        /// The address space.
        pasid: Pasid,
    },
    /// The unit's IOTLB, for entries that combine a guest's first stages with the second stage. Every DID of
    /// such a nesting needs its own tag, beside the tags of what the second stage translates alone.
    Combined {
        /// DID.
        domain_id: u16,
    },
    /// What of [`Combined`](Self::Combined) one address space of the guest has part in. Commands of the guest are
    /// about such places; what changes in the second stage is told of all of them together. So no command is for such
    /// a place alone: where one goes and its DID stays, what was cached for it went with the change of its PASID entry.
    GuestSpace {
        /// DID.
        domain_id: u16,
        /// The address space, as the unit knows it.
        pasid: Pasid,
    },
    /// What a device caches of the addresses that changed.
    Ats {
        /// The device.
        device: Device,
        /// PASID of its requests, if they have one.
        pasid: Option<Pasid>,
    },
    /// What a device caches, all of it: its addresses are a guest's, and those that changed are not.
    AtsFull {
        /// The device.
        device: Device,
        /// PASID of its requests, if they have one.
        pasid: Option<Pasid>,
    },
}

impl Vtd {
    /// Takes the features from the value of the capability register.
    pub const fn from_capabilities(capabilities: u64) -> Self {
        const fn has(capabilities: u64, bit: u32) -> bool {
            capabilities >> bit & 1 != 0
        }
        Self {
            has_blocks: has(capabilities, 39),
            max_order: (capabilities >> 48 & 0x3f) as u8,
            has_caching_mode: has(capabilities, 7),
            has_write_buffer: has(capabilities, 4),
            has_read_drain: has(capabilities, 55),
            has_write_drain: has(capabilities, 54),
        }
    }

    pub(crate) const fn iotlb(self, scope: IotlbScope) -> Descriptor {
        // Requests in flight may still use a translation that was dropped.
        Descriptor::Iotlb {
            scope,
            drains_reads: self.has_read_drain,
            drains_writes: self.has_write_drain,
        }
    }

    fn second_stage(
        self,
        domain_id: u16,
        range: IovaRange,
        is_leaf_only: bool,
        mut emit: impl FnMut(Descriptor),
    ) {
        let is_covered = self.has_blocks
            && cover(range, self.max_order, |span| {
                emit(self.iotlb(IotlbScope::Pages {
                    domain_id,
                    span,
                    is_leaf_only,
                }));
            });
        if !is_covered {
            emit(self.iotlb(IotlbScope::Domain { domain_id }));
        }
    }
}

impl Planner for Vtd {
    type Command = Descriptor;
    type Tag = Tag;

    fn plan(&self, tag: &Tag, changes: &Changes, mut emit: impl FnMut(Descriptor)) {
        let Some(range) = changes.range() else {
            return;
        };
        let is_added = changes.kind() == Kind::Added;
        let is_leaf_only = changes.has_lost_only_leaves();
        // An invalidation of any one page flushes the write buffer, and hardly drops anything.
        let first_page =
            IovaRange::new(range.start(), range.start()).expect("an address is not above itself");
        match *tag {
            // Absent entries of a second stage are cached under any level's address, so tables too.
            Tag::SecondStage { domain_id } if !is_added || self.has_caching_mode => {
                self.second_stage(domain_id, range, is_leaf_only, emit);
            }
            // Addresses of the second stage are not those that nested translations are found by.
            Tag::Combined { domain_id } if !is_added || self.has_caching_mode => {
                emit(self.iotlb(IotlbScope::Domain { domain_id }));
            }
            Tag::SecondStage { domain_id } | Tag::Combined { domain_id } => {
                if self.has_write_buffer {
                    self.second_stage(domain_id, first_page, true, emit);
                }
            }
            // Absent entries of a first stage are never cached.
            Tag::FirstStage { domain_id, pasid } if !is_added || self.has_write_buffer => {
                let (range, is_leaf_only) = if is_added {
                    (first_page, true)
                } else {
                    (range, is_leaf_only)
                };
                let mut emit = |scope| {
                    emit(Descriptor::PasidIotlb {
                        domain_id,
                        pasid,
                        scope,
                    });
                };
                // Blocks of any order exist here, whatever the capability register says.
                let is_covered = cover(range, Span::MAX_ORDER, |span| {
                    emit(PasidIotlbScope::Pages { span, is_leaf_only });
                });
                if !is_covered {
                    emit(PasidIotlbScope::All);
                }
            }
            // A device does not cache that nothing is mapped.
            Tag::Ats { device, pasid } if !is_added => {
                emit(device_tlb(device, pasid, Span::covering(range)));
            }
            Tag::AtsFull { device, pasid } if !is_added => {
                emit(device_tlb(device, pasid, Span::ALL));
            }
            Tag::FirstStage { .. }
            | Tag::GuestSpace { .. }
            | Tag::Ats { .. }
            | Tag::AtsFull { .. } => {}
        }
    }

    fn phase(tag: &Tag) -> Phase {
        match tag {
            Tag::SecondStage { .. }
            | Tag::FirstStage { .. }
            | Tag::Combined { .. }
            | Tag::GuestSpace { .. } => Phase::Iotlb,
            Tag::Ats { .. } | Tag::AtsFull { .. } => Phase::DeviceTlb,
        }
    }

    fn can_repeat(command: &Descriptor) -> bool {
        !matches!(
            command,
            Descriptor::DeviceTlb { .. }
                | Descriptor::PasidDeviceTlb { .. }
                | Descriptor::PageGroupResponse { .. }
        )
    }
}

/// One block, even if it is much larger than the range: each costs a round trip to the device.
pub(crate) const fn device_tlb(device: Device, pasid: Option<Pasid>, span: Span) -> Descriptor {
    match pasid {
        None => Descriptor::DeviceTlb { device, span },
        Some(pasid) => Descriptor::PasidDeviceTlb {
            device,
            pasids: PasidScope::One(pasid),
            span,
        },
    }
}

/// Calls `emit` with blocks of at most `max_order` that cover `range`, together less than twice its pages
/// if two can, or returns false if that takes more than [`MAX_BLOCKS`], or one of all addresses.
fn cover(range: IovaRange, max_order: u8, mut emit: impl FnMut(Span)) -> bool {
    let (low, high) = halves(range);
    let largest = high.map_or(low.order(), |high| low.order().max(high.order()));
    if largest == Span::MAX_ORDER {
        return false;
    }
    if largest <= max_order {
        emit(low);
        if let Some(high) = high {
            emit(high);
        }
        return true;
    }
    let block = |iova: Iova| Span::new(iova.get(), max_order).unwrap_or(Span::ALL);
    let (first, last) = (block(range.start()), block(range.last()));
    let count = (last.start() - first.start()) >> max_order >> 12;
    if count >= MAX_BLOCKS {
        return false;
    }
    let mut next = first;
    while next != last {
        emit(next);
        let Some(start) = next.range().last().checked_add(1) else {
            break;
        };
        next = block(start);
    }
    emit(last);
    true
}

/// Returns the smallest block that holds `range`, if it has less than twice the pages; else two, of which
/// this holds together.
///
/// The two meet where the halves of the one block do, so that each is the part of the range on its side,
/// rounded up to a power of two.
fn halves(range: IovaRange) -> (Span, Option<Span>) {
    let whole = Span::covering(range);
    let Some(half_order) = whole.order().checked_sub(1) else {
        return (whole, None);
    };
    let half_pages = 1_u64 << half_order;
    let pages_minus_one = (range.last().get() >> 12) - (range.start().get() >> 12);
    if pages_minus_one >= half_pages {
        return (whole, None);
    }
    // The first page above the middle: the range reaches from one half into the other.
    let middle = whole.start() + (half_pages << 12);
    let low = IovaRange::new(range.start(), Iova::new(middle - 1));
    let high = IovaRange::new(Iova::new(middle), range.last());
    match (low, high) {
        (Some(low), Some(high)) => (Span::covering(low), Some(Span::covering(high))),
        _ => (whole, None),
    }
}

#[cfg(test)]
mod tests;
