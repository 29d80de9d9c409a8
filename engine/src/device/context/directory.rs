//! Tables of entries by number: all in one piece, or in pieces that one or two levels of pointers lead to.

#[cfg(all(test, not(loom)))]
mod tests;

use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;

use iopt_formats::Oa;
use iopt_formats::context::update::Rules;

use crate::device::AttachFailure;
use crate::device::context::{EntryTable, ShareError, Unwritten};
use crate::invalidation::SyncError;
use crate::mem::{OutOfMemory, TableMemory};

/// Entries of `N` words that hardware finds by a number. Pieces, and pointers to them, come when they are needed
/// and stay as long as the directory: hardware may have cached the way to them.
pub struct Directory<M: TableMemory, const N: usize> {
    memory: Arc<M>,
    initial: [u64; N],
    levels: Levels<M, N>,
}

enum Levels<M: TableMemory, const N: usize> {
    One(EntryTable<M, N>),
    More {
        first: EntryTable<M, 1>,
        /// The base-2 logarithm of the entries of a piece.
        split: u8,
        pieces: Numbered<EntryTable<M, N>>,
        middle: Option<Middle<M>>,
    },
}

/// Pointers between the first level and the pieces.
struct Middle<M: TableMemory> {
    /// The base-2 logarithm of the pointers of a table.
    split: u8,
    tables: Numbered<EntryTable<M, 1>>,
}

/// Some things by number, which stay.
struct Numbered<T>(Vec<(usize, T)>);

impl<T> Numbered<T> {
    fn find(&self, number: usize) -> Result<usize, usize> {
        self.0.binary_search_by_key(&number, |(other, _)| *other)
    }

    fn get(&self, number: usize) -> Option<&T> {
        let at = self.find(number).ok()?;
        Some(&self.0[at].1)
    }

    fn get_mut(&mut self, number: usize) -> Option<&mut T> {
        let at = self.find(number).ok()?;
        Some(&mut self.0[at].1)
    }

    /// Returns the one of a number. If it is not there yet, it is made once there is room for it.
    fn get_or_make(
        &mut self,
        number: usize,
        make: impl FnOnce() -> Result<T, LinkError>,
    ) -> Result<&mut T, LinkError> {
        let at = match self.find(number) {
            Ok(at) => at,
            Err(at) => {
                let size = iopt_formats::PageSize::KIB_4;
                let reserved = self.0.try_reserve(1);
                reserved.map_err(|_| OutOfMemory { size })?;
                self.0.insert(at, (number, make()?));
                at
            }
        };
        Ok(&mut self.0[at].1)
    }
}

/// Why there is no entry of a number.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum LinkError {
    /// The number is beyond the last one.
    #[error("number {index} is beyond the end of the table")]
    Absent {
        /// The number.
        index: usize,
    },
    /// No memory for a piece.
    #[error(transparent)]
    Memory(#[from] OutOfMemory),
    /// A piece, or a table of pointers, is at an address that the level above cannot hold.
    #[error("the level above cannot point to {address}")]
    Address {
        /// The address.
        address: Oa,
    },
    /// Hardware did not confirm that it knows the entry; to be tried again.
    #[error(transparent)]
    Sync(#[from] SyncError),
    /// No memory to note who has the number.
    #[error(transparent)]
    Share(#[from] ShareError),
}

impl LinkError {
    /// Makes the entries of `ids` ready for a device that comes: where hardware may still use what another device had
    /// there, `block` makes them block.
    ///
    /// # Errors
    ///
    /// [`LinkError::Absent`] without such an entry, [`LinkError::Sync`] if hardware still does not answer.
    pub fn block_quarantined<I: Copy>(
        ids: impl IntoIterator<Item = I>,
        is_quarantined: impl Fn(I) -> bool,
        block: impl Fn(I) -> Result<(), Unwritten>,
    ) -> Result<(), Self> {
        let mut ids = ids.into_iter().filter(|&id| is_quarantined(id));
        ids.try_for_each(|id| match block(id) {
            Ok(()) | Err(Unwritten::Blocked(_)) => Ok(()),
            Err(Unwritten::Absent { index }) => Err(Self::Absent { index }),
            Err(Unwritten::Quarantined(error)) => Err(Self::Sync(error)),
        })
    }
}

impl From<LinkError> for AttachFailure {
    fn from(error: LinkError) -> Self {
        match error {
            LinkError::Memory(_) | LinkError::Share(_) => Self::Exhausted,
            error => Self::Other(Box::new(error)),
        }
    }
}

impl<M: TableMemory, const N: usize> Directory<M, N> {
    /// Creates one of `2^count_lg2` entries in one piece, all of them `initial`.
    ///
    /// # Errors
    ///
    /// [`OutOfMemory`], also for more than 1 MiB.
    pub fn linear(memory: &Arc<M>, count_lg2: u8, initial: [u64; N]) -> Result<Self, OutOfMemory> {
        let table = EntryTable::new(memory, 1 << count_lg2, &initial)?;
        Ok(Self {
            memory: Arc::clone(memory),
            initial,
            levels: Levels::One(table),
        })
    }

    /// Creates one of `2^count_lg2` entries in pieces of `2^split`, none of which is there. All entries of a
    /// piece are `initial` when it comes.
    ///
    /// # Errors
    ///
    /// [`OutOfMemory`], also if the first level has more than 1 MiB.
    pub fn two_level(
        memory: &Arc<M>,
        count_lg2: u8,
        split: u8,
        initial: [u64; N],
    ) -> Result<Self, OutOfMemory> {
        let first = EntryTable::new(memory, 1 << count_lg2.saturating_sub(split), &[0])?;
        Ok(Self {
            memory: Arc::clone(memory),
            initial,
            levels: Levels::More {
                first,
                split,
                pieces: Numbered(Vec::new()),
                middle: None,
            },
        })
    }

    /// Creates one of `2^count_lg2` entries in pieces of `2^splits[0]`, to which tables of `2^splits[1]` pointers
    /// lead; none of these is there. All entries of a piece are `initial` when it comes.
    ///
    /// # Errors
    ///
    /// [`OutOfMemory`], also if the first level has more than 1 MiB.
    pub fn three_level(
        memory: &Arc<M>,
        count_lg2: u8,
        splits: [u8; 2],
        initial: [u64; N],
    ) -> Result<Self, OutOfMemory> {
        let [split, middle_split] = splits;
        let below = split.saturating_add(middle_split);
        let first = EntryTable::new(memory, 1 << count_lg2.saturating_sub(below), &[0])?;
        Ok(Self {
            memory: Arc::clone(memory),
            initial,
            levels: Levels::More {
                first,
                split,
                pieces: Numbered(Vec::new()),
                middle: Some(Middle {
                    split: middle_split,
                    tables: Numbered(Vec::new()),
                }),
            },
        })
    }

    /// Returns where hardware finds the only table, or the first level.
    pub const fn base(&self) -> Oa {
        match &self.levels {
            Levels::One(table) => table.oa(),
            Levels::More { first, .. } => first.oa(),
        }
    }

    /// Sees to it that there is an entry `index`, before it is written for the first time. `describe` returns
    /// the word that points to a piece, or to a table of pointers, or `None` if there is none for that address.
    ///
    /// `announce` makes hardware forget what the levels above said of this number. It is called in pieces that were
    /// there, too: hardware may have looked this number up before they were, and remember that by number.
    ///
    /// # Errors
    ///
    /// [`LinkError`]. After [`LinkError::Sync`] the entry is there, and hardware may not know.
    pub fn link(
        &mut self,
        index: usize,
        mut describe: impl FnMut(Oa) -> Option<u64>,
        announce: impl FnOnce() -> Result<(), SyncError>,
    ) -> Result<(), LinkError> {
        let (first, split, pieces, middle) = match &mut self.levels {
            Levels::One(table) if index < table.len() => return Ok(()),
            Levels::One(_) => return Err(LinkError::Absent { index }),
            Levels::More {
                first,
                split,
                pieces,
                middle,
            } => (first, *split, pieces, middle),
        };
        let piece = index >> split;
        let top = middle.as_ref().map_or(piece, |it| piece >> it.split);
        if top >= first.len() {
            return Err(LinkError::Absent { index });
        }
        let (pointers, slot) = match middle {
            None => (first, piece),
            Some(Middle { split, tables }) => {
                let table = tables.get_or_make(top, || {
                    let table = EntryTable::new(&self.memory, 1 << *split, &[0])?;
                    point(first, top, table.oa(), &mut describe)?;
                    Ok(table)
                })?;
                (table, piece & ((1 << *split) - 1))
            }
        };
        pieces.get_or_make(piece, || {
            let table = EntryTable::new(&self.memory, 1 << split, &self.initial)?;
            point(pointers, slot, table.oa(), &mut describe)?;
            Ok(table)
        })?;
        Ok(announce()?)
    }

    /// Returns the table that holds an entry, and the entry's place there.
    fn find(&self, index: usize) -> Option<(&EntryTable<M, N>, usize)> {
        match &self.levels {
            Levels::One(table) => Some((table, index)),
            Levels::More { split, pieces, .. } => {
                let piece = pieces.get(index >> split)?;
                Some((piece, index & ((1 << split) - 1)))
            }
        }
    }

    /// Returns an entry as it was written last, if it is there.
    pub fn get(&self, index: usize) -> Option<[u64; N]> {
        let (table, index) = self.find(index)?;
        table.get(index)
    }

    /// Returns whether hardware may use another entry there than the one that was written last.
    pub fn is_quarantined(&self, index: usize) -> bool {
        self.find(index)
            .is_some_and(|(table, index)| table.is_quarantined(index))
    }

    /// Makes an entry, which is there, `target`; see [`EntryTable::write`].
    ///
    /// # Errors
    ///
    /// [`Unwritten`].
    pub fn write<R: Rules<N> + ?Sized>(
        &mut self,
        rules: &R,
        index: usize,
        target: &[u64; N],
        sync: impl FnMut() -> Result<(), SyncError>,
    ) -> Result<usize, Unwritten> {
        let (table, inner) = match &mut self.levels {
            Levels::One(table) => (table, index),
            Levels::More { split, pieces, .. } => {
                let piece = pieces.get_mut(index >> *split);
                let piece = piece.ok_or(Unwritten::Absent { index })?;
                (piece, index & ((1 << *split) - 1))
            }
        };
        table.write(rules, inner, target, sync)
    }
}

/// Makes a pointer lead to `address`.
fn point<M: TableMemory>(
    pointers: &mut EntryTable<M, 1>,
    index: usize,
    address: Oa,
    describe: &mut impl FnMut(Oa) -> Option<u64>,
) -> Result<(), LinkError> {
    let word = describe(address).ok_or(LinkError::Address { address })?;
    pointers.publish(index, word);
    Ok(())
}

impl<M: TableMemory, const N: usize> fmt::Debug for Directory<M, N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Directory")
            .field("base", &self.base())
            .finish_non_exhaustive()
    }
}
