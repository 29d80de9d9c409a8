//! Plans for the RISC-V IOMMU: `IOTINVAL` by address or of a whole address space, and `ATS.INVAL`.
//!
//! Source: *RISC-V IOMMU Architecture Specification*, version 1.0.1, section "Command-Queue (CQ)", and the
//! extensions NL (non-leaf entries by address) and S (address ranges).

#[cfg(test)]
mod tests;

use iopt_formats::command::riscv::{Command, Features, Function, Target};
use iopt_formats::command::{Narrow, Pasid, Span};
use iopt_formats::{Iova, IovaRange};

use crate::invalidation::plan::{Phase, Planner, step_lg2};
use crate::invalidation::{Changes, Kind};

/// What of an IOMMU decides how it is told.
///
/// ```
/// use iopt::invalidation::NoHardware;
/// use iopt::invalidation::plan::Planner;
/// use iopt::invalidation::plan::riscv::{Riscv, Tag};
/// use iopt::mem::Heap;
/// use iopt::radix::{Table, UnmapPolicy};
/// use iopt_formats::command::Narrow;
/// use iopt_formats::riscv::Sv;
/// use iopt_formats::{Iova, IovaRange, Oa, Prot};
///
/// let table = Table::new(Sv::sv48(), Heap)?;
/// let buffer = IovaRange::with_len(Iova::new(0x10_0000), 33 * 0x1000).unwrap();
/// let mut claim = table.claim(buffer)?;
/// let mut mapper = table.mapper(&mut claim)?;
/// mapper.map(buffer, Oa::new(0x8000_1000), Prot::RW)?.sync(&NoHardware)?;
/// let gather = mapper.unmap(buffer, UnmapPolicy::Exact)?.gather;
///
/// let tag = Tag::FirstStage { gscid: None, pscid: Narrow::new(5).unwrap() };
/// let mut commands = Vec::new();
/// let mut iommu = Riscv::default();
/// iommu.plan(&tag, gather.changes(), |command| commands.push(command));
/// assert_eq!(commands.len(), 33);
///
/// iommu.features.has_ranges = true;
/// commands.clear();
/// iommu.plan(&tag, gather.changes(), |command| commands.push(command));
/// assert_eq!(commands.len(), 2);
/// # gather.sync(&NoHardware)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
pub struct Riscv {
    /// Which commands are legal.
    pub features: Features,
    /// Translations that came have to be told, too: for emulators whose firmware tables ask for it. Hardware
    /// never caches that a translation is absent.
    pub needs_map_invalidation: bool,
}

/// A cache of an IOMMU, or of a device behind it, under the tag that its entries have.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Tag {
    /// Translations of a first stage.
    FirstStage {
        /// The VM; `None` is the host: contexts without a second stage.
        gscid: Option<u16>,
        /// The address space.
        pscid: Narrow<20>,
    },
    /// Translations of a second stage.
    SecondStage {
        /// The VM.
        gscid: u16,
    },
    /// Contexts of a device whose first-stage tables, or process directory, lie in guest-physical memory:
    /// the IOMMU may have translated their addresses once for all, and may have read what stands there. Stands beside
    /// [`SecondStage`](Self::SecondStage).
    Directory {
        /// The device.
        device: Narrow<24>,
    },
    /// Translations of a guest's first stages, which may be cached by themselves or combined with the second
    /// stage. Stands beside [`SecondStage`](Self::SecondStage).
    Combined {
        /// The VM.
        gscid: u16,
    },
    /// What a device caches of the addresses that changed.
    Ats {
        /// The device.
        function: Function,
        /// The PASID; without one, translations for all of them are dropped.
        pasid: Option<Pasid>,
    },
    /// What a device caches, all of it: its addresses are a guest's, and those that changed are not.
    AtsFull {
        /// The device.
        function: Function,
        /// The PASID; without one, translations for all of them are dropped.
        pasid: Option<Pasid>,
    },
}

impl Planner for Riscv {
    type Command = Command;
    type Tag = Tag;

    fn plan(&self, tag: &Tag, changes: &Changes, mut emit: impl FnMut(Command)) {
        let Some(range) = changes.range() else {
            return;
        };
        let is_added = changes.kind() == Kind::Added;
        if is_added && !self.needs_map_invalidation {
            return;
        }
        let has_lost_leaves = changes.has_lost_leaves();
        match *tag {
            Tag::FirstStage { gscid, pscid } => self.plan_stage(changes, range, |target| {
                emit(Command::IotinvalVma {
                    gscid,
                    pscid: Some(pscid),
                    target,
                });
            }),
            Tag::SecondStage { gscid } => self.plan_stage(changes, range, |target| {
                emit(Command::IotinvalGvma {
                    gscid: Some(gscid),
                    target,
                });
            }),
            Tag::Directory { device } if has_lost_leaves => emit(Command::IodirInvalDdt {
                device: Some(device),
            }),
            Tag::Combined { gscid } if has_lost_leaves || is_added => {
                emit(Command::IotinvalVma {
                    gscid: Some(gscid),
                    pscid: None,
                    target: None,
                });
            }
            Tag::Ats { function, pasid } if has_lost_leaves => emit(Command::AtsInval {
                function,
                pasid,
                is_global: false,
                span: Span::covering(range),
            }),
            Tag::AtsFull { function, pasid } if has_lost_leaves => emit(Command::AtsInval {
                function,
                pasid,
                is_global: false,
                span: Span::ALL,
            }),
            Tag::Directory { .. }
            | Tag::Combined { .. }
            | Tag::Ats { .. }
            | Tag::AtsFull { .. } => {}
        }
    }

    fn phase(tag: &Tag) -> Phase {
        match tag {
            Tag::FirstStage { .. } | Tag::SecondStage { .. } => Phase::Iotlb,
            // An old context that is still there would make combined entries again.
            Tag::Directory { .. } => Phase::Contexts,
            Tag::Combined { .. } => Phase::CombinedEntries,
            Tag::Ats { .. } | Tag::AtsFull { .. } => Phase::DeviceTlb,
        }
    }

    fn can_repeat(command: &Command) -> bool {
        !matches!(command, Command::AtsInval { .. } | Command::AtsPrgr { .. })
    }
}

/// So many commands for one change are one for the whole address space instead. With pages of 4 KiB this is
/// 2 MiB, where Linux draws the line, too.
const MAX_STEPS: u64 = 512;

/// The largest range that is told as such: half the addresses of Sv39. Larger ones can hold addresses that no
/// table has, for which hardware need not do anything.
const MAX_ORDER: u8 = 38 - PAGE_LG2;

const PAGE_LG2: u8 = 12;

impl Riscv {
    /// Calls `emit` with each target that makes the caches of a stage forget the changes, or with `None` for
    /// everything.
    fn plan_stage(self, changes: &Changes, range: IovaRange, mut emit: impl FnMut(Option<Target>)) {
        let is_leaf = changes.has_lost_only_leaves();
        if !is_leaf && !self.features.has_non_leaf {
            emit(None);
            return;
        }
        if self.features.has_ranges {
            let (first, second) = spans(range);
            let is_legal = |span: Span| span.order() <= MAX_ORDER;
            if !is_legal(first) || !second.is_none_or(is_legal) {
                emit(None);
                return;
            }
            for span in [Some(first), second].into_iter().flatten() {
                emit(Some(Target { span, is_leaf }));
            }
            return;
        }
        let step_lg2 = if changes.kind() == Kind::Added {
            // What was absent may have been asked for page by page.
            PAGE_LG2
        } else {
            step_lg2(PAGE_LG2, changes)
        };
        let first = range.start().get() >> step_lg2;
        let last = range.last().get() >> step_lg2;
        if last - first >= MAX_STEPS - 1 {
            emit(None);
            return;
        }
        for step in first..=last {
            let span = Span::new(step << step_lg2, 0).unwrap_or(Span::ALL);
            emit(Some(Target { span, is_leaf }));
        }
    }
}

/// Returns one span or two that hold `range`, and less than twice as much.
fn spans(range: IovaRange) -> (Span, Option<Span>) {
    let whole = Span::covering(range);
    let [first, last] = [range.start(), range.last()].map(|address| address.get() >> PAGE_LG2);
    let Some(half) = whole.order().checked_sub(1) else {
        return (whole, None);
    };
    if last - first == (1 << whole.order()) - 1 {
        return (whole, None);
    }
    // Left of the middle of the whole, ranges end with spans; right of it, they begin with them.
    let middle = whole.start() + (1 << half << PAGE_LG2);
    let low = IovaRange::new(range.start(), Iova::new(middle - 1));
    let high = IovaRange::new(Iova::new(middle), range.last());
    match (low, high) {
        (Some(low), Some(high)) => (Span::covering(low), Some(Span::covering(high))),
        _ => (whole, None),
    }
}
