//! Walking tables that anybody wrote, through a function that reads memory.

use core::ops::ControlFlow;

use crate::{Entry, Format, Iova, IovaRange, Leaf, Level, Oa, PageSize, Prot, Reserved, Rights};

/// Where a walk starts.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Root {
    /// Address of the root table.
    pub oa: Oa,
    /// Its level.
    pub level: Level,
}

/// One item that a walk read.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Step {
    /// Level of the table.
    pub level: Level,
    /// Address of the table.
    pub table: Oa,
    /// Index of the item in it.
    pub index: usize,
    /// The raw item.
    pub word: u64,
    /// What it means.
    pub entry: Result<Entry, Reserved>,
}

/// The end of a walk that translates.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Walked {
    /// Output address of the looked-up byte.
    pub oa: Oa,
    /// What the entry grants, cut by the limits of the tables above it.
    pub prot: Prot,
    /// The entry itself.
    pub leaf: Leaf,
}

/// The end of a walk that does not translate.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Fault {
    /// The table does not decode the address, or the root is of a level that the format lacks.
    #[error("address {iova} is outside of what the table decodes")]
    OutsideWindow {
        /// The address.
        iova: Iova,
    },
    /// An item is empty.
    #[error("no translation: the item at level {level} is empty")]
    NotPresent {
        /// Its level.
        level: Level,
    },
    /// An item has a reserved encoding.
    #[error(transparent)]
    Reserved(#[from] Reserved),
    /// A leaf lacks the accessed flag and hardware does not set it.
    #[error("access flag fault: the leaf at level {level} was never accessed")]
    NotAccessed {
        /// Its level.
        level: Level,
    },
    /// The tables grant no right at all.
    #[error("no right is left after the limits of the tables above")]
    NoRights,
    /// An output address does not fit the width that the tables are configured for.
    #[error("output address {oa} at level {level} is wider than the configured width")]
    OaWidth {
        /// The address.
        oa: Oa,
        /// Level of the item that holds it.
        level: Level,
    },
    /// A table lies where no memory is.
    #[error("cannot read the item at {address}")]
    Unreadable {
        /// Address of the item.
        address: Oa,
    },
}

/// Translates `iova`, calling `seen` with each item on the way.
///
/// `read` returns the 64-bit item at an address, or `None` where no memory is. The walk ends after
/// at most six items, whatever the memory holds.
///
/// # Errors
///
/// The [`Fault`] that the walk ends in.
pub fn walk<F: Format>(
    format: &F,
    root: Root,
    iova: Iova,
    mut read: impl FnMut(Oa) -> Option<u64>,
    mut seen: impl FnMut(&Step),
) -> Result<Walked, Fault> {
    let geometry = format.geometry();
    if root.level > geometry.max_top
        || !geometry.contains(iova)
        || !root_spans(format, root.level, iova)
    {
        return Err(Fault::OutsideWindow { iova });
    }
    let mut rights = Rights::ALL;
    let (mut table, mut level) = (root.oa, root.level);
    let mut index = format.root_index(iova, level);
    loop {
        let address = item_address(table, index)?;
        let word = read(address).ok_or(Fault::Unreadable { address })?;
        let entry = format.decode(word, level);
        seen(&Step {
            level,
            table,
            index,
            word,
            entry,
        });
        match entry? {
            Entry::Empty => return Err(Fault::NotPresent { level }),
            Entry::Table(child) => {
                check_oa_width(format, child.oa, level)?;
                rights = rights.intersection(child.limit);
                if !skipped_bits_are_zero::<F>(iova, level, child.level) {
                    return Err(Fault::NotPresent { level });
                }
                // F3 and `decode` make the level fall, so the loop ends.
                (table, level) = (child.oa, child.level);
                index = F::index(iova, level);
            }
            Entry::Leaf(leaf) => {
                check_oa_width(format, leaf.oa, level)?;
                if format.faults_unaccessed() && !leaf.accessed {
                    return Err(Fault::NotAccessed { level });
                }
                let prot = leaf
                    .prot
                    .with_rights(leaf.prot.rights().intersection(rights));
                if prot.rights().difference(Rights::USER) == Rights::NONE {
                    return Err(Fault::NoRights);
                }
                let oa = Oa::new(leaf.oa.get() | iova.get() & leaf.span.offset_mask());
                return Ok(Walked { oa, prot, leaf });
            }
        }
    }
}

/// Returns whether a root of `level`, which may be below the format's highest, decodes `iova`.
fn root_spans<F: Format>(format: &F, level: Level, iova: Iova) -> bool {
    let geometry = format.geometry();
    let span_lg2 = u32::from(F::item_lg2(level)) + u32::from(format.root_count_lg2(level));
    let biased = iova.get().wrapping_add(geometry.bias());
    biased.checked_shr(span_lg2).unwrap_or(0) == 0
}

/// Returns whether `iova` lies in the part of an item of `level` that a table of level `child`
/// spans; an entry that skips levels translates only the lowest part of its item.
fn skipped_bits_are_zero<F: Format>(iova: Iova, level: Level, child: Level) -> bool {
    let child_span_lg2 = F::item_lg2(child) + F::item_count_lg2();
    let item_offset = PageSize::from_lg2(F::item_lg2(level)).offset_mask();
    (iova.get() & item_offset) >> child_span_lg2 == 0
}

fn item_address(table: Oa, index: usize) -> Result<Oa, Fault> {
    table
        .checked_add(index as u64 * 8)
        .ok_or(Fault::Unreadable { address: table })
}

fn check_oa_width<F: Format>(format: &F, oa: Oa, level: Level) -> Result<(), Fault> {
    if oa.get() >> format.oa_bits() == 0 {
        Ok(())
    } else {
        Err(Fault::OaWidth { oa, level })
    }
}

/// One leaf item found by [`visit`].
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Found {
    /// IOVA that this item translates.
    pub iova: IovaRange,
    /// Output address of its first byte.
    pub oa: Oa,
    /// Rights after the limits of the tables above, and memory type.
    pub prot: Prot,
    /// The raw item.
    pub word: u64,
    /// Level of the item.
    pub level: Level,
    /// The entry that it belongs to.
    pub leaf: Leaf,
}

/// Why [`visit`] ended early.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum VisitError {
    /// A table is its own ancestor.
    #[error("loop: the table at {table} is reached again below itself, from iova {iova}")]
    Loop {
        /// The table.
        table: Oa,
        /// First IOVA translated through the second visit.
        iova: Iova,
    },
    /// A table below `iova` cannot be read or has a reserved item.
    #[error("at iova {iova}: {fault}")]
    Fault {
        /// First IOVA translated through the item.
        iova: Iova,
        /// What is wrong.
        fault: Fault,
    },
    /// More items were read than the caller allows.
    #[error("the tables hold more than {limit} items")]
    TooLarge {
        /// The limit given.
        limit: u64,
    },
    /// The callback asked to stop.
    #[error("stopped by the visitor")]
    Stopped,
}

/// Calls `found` with every leaf item, in rising order of table index.
///
/// Items that translate nothing are skipped. At most `limit` items are read, so that tables which
/// share subtables cannot make the visit endless.
///
/// # Errors
///
/// [`VisitError`] at the first thing that is wrong; leaves before it have been reported.
pub fn visit<F: Format>(
    format: &F,
    root: Root,
    limit: u64,
    read: impl FnMut(Oa) -> Option<u64>,
    found: impl FnMut(&Found) -> ControlFlow<()>,
) -> Result<(), VisitError> {
    let iova = Iova::new(0_u64.wrapping_sub(format.geometry().bias()));
    if root.level > format.geometry().max_top {
        return Err(VisitError::Fault {
            iova,
            fault: Fault::OutsideWindow { iova },
        });
    }
    let mut visitor = Visitor {
        format,
        read,
        found,
        limit,
        left: limit,
        path: [Oa::new(0); 6],
    };
    visitor.table(
        root.oa,
        root.level,
        1 << format.root_count_lg2(root.level),
        0,
        Rights::ALL,
        0,
    )
}

struct Visitor<'a, F, R, V> {
    format: &'a F,
    read: R,
    found: V,
    limit: u64,
    left: u64,
    /// Tables from the root down to the one being read.
    path: [Oa; 6],
}

impl<F, R, V> Visitor<'_, F, R, V>
where
    F: Format,
    R: FnMut(Oa) -> Option<u64>,
    V: FnMut(&Found) -> ControlFlow<()>,
{
    /// Reads one table whose first item translates the biased address `base`; recursion is at
    /// most six deep because the level falls.
    fn table(
        &mut self,
        table: Oa,
        level: Level,
        item_count: usize,
        base: u64,
        rights: Rights,
        depth: usize,
    ) -> Result<(), VisitError> {
        let item = PageSize::from_lg2(F::item_lg2(level));
        let first = self.iova(base, item);
        if self.path[..depth].contains(&table) {
            return Err(VisitError::Loop {
                table,
                iova: first.start(),
            });
        }
        self.path[depth] = table;
        for slot in 0..item_count {
            self.left = self
                .left
                .checked_sub(1)
                .ok_or(VisitError::TooLarge { limit: self.limit })?;
            let base = base | (slot as u64) << item.lg2();
            let iova = self.iova(base, item);
            let fault = |fault| VisitError::Fault {
                iova: iova.start(),
                fault,
            };
            // The window's bias only ever moves the root's index.
            let index = if depth == 0 {
                self.format.root_index(iova.start(), level)
            } else {
                slot
            };
            let address = item_address(table, index).map_err(fault)?;
            let word = (self.read)(address).ok_or(fault(Fault::Unreadable { address }))?;
            match self
                .format
                .decode(word, level)
                .map_err(|error| fault(error.into()))?
            {
                Entry::Empty => {}
                Entry::Table(child) => {
                    check_oa_width(self.format, child.oa, level).map_err(fault)?;
                    let rights = rights.intersection(child.limit);
                    let count = 1 << F::item_count_lg2();
                    self.table(child.oa, child.level, count, base, rights, depth + 1)?;
                }
                Entry::Leaf(leaf) => {
                    check_oa_width(self.format, leaf.oa, level).map_err(fault)?;
                    if self.format.faults_unaccessed() && !leaf.accessed {
                        continue;
                    }
                    let prot = leaf
                        .prot
                        .with_rights(leaf.prot.rights().intersection(rights));
                    if prot.rights().difference(Rights::USER) == Rights::NONE {
                        continue;
                    }
                    let oa = Oa::new(leaf.oa.get() | iova.start().get() & leaf.span.offset_mask());
                    let found = Found {
                        iova,
                        oa,
                        prot,
                        word,
                        level,
                        leaf,
                    };
                    if (self.found)(&found).is_break() {
                        return Err(VisitError::Stopped);
                    }
                }
            }
        }
        Ok(())
    }

    fn iova(&self, base: u64, item: PageSize) -> IovaRange {
        let start = base.wrapping_sub(self.format.geometry().bias());
        IovaRange::with_len(Iova::new(start), item.bytes())
            .expect("an item's IOVA is aligned to its size, so it does not wrap")
    }
}
