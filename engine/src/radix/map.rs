//! Mapping in general: any sizes, missing tables, lists of runs.
//!
//! A map looks first and then changes, in three phases:
//!
//! 1. *check*: everything about the request, and that nothing is mapped there; counts the tables that
//!    are missing and the empty ones that larger leaves replace;
//! 2. *allocate*: all of the tables, room in the quarantine, and a taller root where one is needed;
//! 3. *fill*: links the tables and stores the leaves, which cannot fail any more.
//!
//! So a map that fails leaves no trace: no empty table, and no leaf that a device could have met
//! meanwhile. T3 and T4 keep what was checked true until it is filled: nobody else stores a leaf
//! there, and no table that was counted as there goes away.

use iopt_formats::{Format, Iova, IovaRange, Oa, PageSizes, Prot};

use crate::invalidation::{Changes, Kind, MapSync};
use crate::mem::TableMemory;
use crate::radix::fill::{Filling, Need};
use crate::radix::job::Job;
use crate::radix::supply::Supply;
use crate::radix::{MapError, MapSide, Mapper, Table};
use crate::reclaim::{Operation, Retiring};
use crate::sync::atomic::{Ordering, fence};

impl<F: Format, M: TableMemory> Mapper<'_, F, M> {
    /// Maps any range; see [`map`](Self::map).
    #[cold]
    #[inline(never)]
    pub(super) fn map_general(
        &mut self,
        range: IovaRange,
        oa: Oa,
        prot: Prot,
    ) -> Result<MapSync, MapError> {
        let piece = Piece { range, oa };
        self.map_pieces(core::iter::once(Ok(piece)), prot)
    }

    /// Maps a scatter list: runs of output addresses and lengths in bytes, one behind the other
    /// from `iova` on.
    ///
    /// The list is mapped whole or not at all, and takes one sync. It is a slice because it is gone
    /// through twice, to check and to store.
    ///
    /// # Errors
    ///
    /// [`MapError`] for the first run that is refused; nothing is mapped then.
    #[doc(alias = "map_sg")]
    pub fn map_runs(
        &mut self,
        iova: Iova,
        runs: &[(Oa, u64)],
        prot: Prot,
    ) -> Result<MapSync, MapError> {
        let pieces = pieces(iova, runs);
        let attributes = self.table.attributes[0][prot.index()];
        let is_quick = attributes != 0
            && pieces
                .clone()
                .all(|piece| piece.is_ok_and(|piece| self.is_quick(piece)));
        if !is_quick {
            return self.map_pieces(pieces, prot);
        }
        for piece in pieces.flatten() {
            self.store_pages(piece, attributes);
        }
        fence(Ordering::Release);
        Ok(MapSync::none(self.table.id))
    }

    /// Maps pieces of rising IOVA, all or none.
    fn map_pieces(
        &mut self,
        pieces: impl Iterator<Item = Result<Piece, MapError>> + Clone,
        prot: Prot,
    ) -> Result<MapSync, MapError> {
        let table = self.table;
        let Some((start, last)) = bounds(pieces.clone())? else {
            return Ok(MapSync::none(table.id));
        };

        let mut need = Need::up_to(table, last.get());
        for piece in pieces.clone() {
            for job in table.beside_roots(self.job(piece?, prot)?) {
                table.check(job, &mut need)?;
            }
        }

        let mut supply = Supply::empty(&table.format, &table.memory);
        supply.add(need.table_count)?;
        let retiring = table.room_to_replace(need.replaced_count);
        table.grow_to(last.get())?;

        let mut filling = Filling {
            supply: &mut supply,
            retiring,
            changes: Changes::none(Kind::Added),
        };
        let mut sizes = PageSizes::EMPTY;
        for piece in pieces {
            for job in table.beside_roots(self.job(piece?, prot)?) {
                sizes = sizes.union(job.sizes_used());
                table.fill(job, &mut filling)?;
            }
        }
        let Filling {
            changes, retiring, ..
        } = filling;
        let range = IovaRange::new(start, last).expect("pieces rise");
        Ok(self.finish_map(range, sizes, changes, retiring))
    }

    /// Ends a map of `range` with leaves of `sizes`, which replaced tables as `changes` says.
    pub(super) fn finish_map(
        &mut self,
        range: IovaRange,
        sizes: PageSizes,
        mut changes: Changes,
        retiring: Option<Retiring<'_>>,
    ) -> MapSync {
        let table = self.table;
        fence(Ordering::Release);
        let retired = retiring.map_or(Operation::NONE, Retiring::finish);
        let new_root = self.announce_root();
        if table.map_side == MapSide::Announced || new_root.is_some() {
            changes.absorb(&Changes::leaves(range, sizes, Kind::Added));
        }
        if retired != Operation::NONE {
            changes = changes.with_kind(Kind::Replaced);
            self.forget();
        }
        if changes.range().is_none() {
            return MapSync::none(table.id);
        }
        MapSync::new(table.id, changes, retired, new_root)
    }

    /// Checks everything about a mapping but the tree.
    pub(super) fn job(&self, piece: Piece, prot: Prot) -> Result<Job, MapError> {
        let Piece { range, oa } = piece;
        let table = self.table;
        let (iova, last) = (range.start().get(), range.last().get());
        if !table
            .smallest
            .divides(iova | oa.get() | last.wrapping_add(1))
        {
            return Err(MapError::Unaligned {
                range,
                oa,
                page: table.smallest,
            });
        }
        if !self.claims(iova, last) {
            return Err(MapError::OutsideClaim {
                range,
                claim: self.range(),
            });
        }
        let len_minus_one = range.len_minus_one();
        if oa.get() > table.oa_last || len_minus_one > table.oa_last - oa.get() {
            let oa_bits = table.format.oa_bits();
            return Err(MapError::OaWidth {
                oa,
                len_minus_one,
                oa_bits,
            });
        }
        if table.format.effective(prot).is_none() {
            return Err(MapError::Prot { prot });
        }
        Ok(Job {
            iova,
            last,
            oa: oa.get(),
            prot,
            sizes: table.sizes,
        })
    }

    /// Links every table that mappings of `range` with the smallest pages need, so that maps
    /// inside it cannot run out of memory until [`compact`](Self::compact) unlinks them or a larger leaf
    /// takes their place. Where a larger leaf is mapped now, nothing is linked below it, so mapping
    /// smaller pages there later, or cutting it, needs memory still.
    ///
    /// # Errors
    ///
    /// [`MapError::OutsideClaim`] or [`MapError::OutOfMemory`]; nothing changed then.
    pub fn reserve(&mut self, range: IovaRange) -> Result<(), MapError> {
        let (iova, last) = (range.start().get(), range.last().get());
        if !self.claims(iova, last) {
            return Err(MapError::OutsideClaim {
                range,
                claim: self.range(),
            });
        }
        let table = self.table;
        let bottom = F::level_of(table.smallest);
        let mut need = Need::up_to(table, last);
        Table::<F, M>::each_table(iova, last, bottom, |at| {
            if let Err(missing) = table.find_table(at, bottom, need.top()) {
                need.count::<F>(at, missing, bottom)?;
            }
            Ok::<(), MapError>(())
        })?;
        let mut supply = Supply::empty(&table.format, &table.memory);
        supply.add(need.table_count)?;
        table.grow_to(last)?;
        Table::<F, M>::each_table(iova, last, bottom, |at| {
            match table.link_path(at, bottom, &mut supply) {
                // A larger leaf needs no table.
                Ok(_) | Err(MapError::Occupied { .. }) => Ok(()),
                Err(error) => Err(error),
            }
        })
    }
}

impl<F: Format, M: TableMemory> Table<F, M> {
    /// Returns `job` in the one or two parts that it is made in. T6: former roots translate address
    /// 0, and none of them may give way to a leaf, so what the first root reaches is mapped with
    /// leaves that stand in it or below. Everywhere else alignment sees to it that a leaf is
    /// smaller than what the root spans.
    pub(super) fn beside_roots(&self, job: Job) -> impl Iterator<Item = Job> {
        let (first, rest) = if job.iova == 0 {
            let last = job.last.min(self.fast_reach(self.geometry.top));
            let sizes = job.sizes.up_to(self.largest_at_roots());
            let rest = (last < job.last).then(|| job.part(last + 1, job.last, job.sizes));
            (job.part(0, last, sizes), rest)
        } else {
            (job, None)
        };
        [Some(first), rest].into_iter().flatten()
    }

    /// Returns what replaces `count` empty tables by larger leaves; without room for them they
    /// stay and are filled.
    pub(super) fn room_to_replace(&self, count: usize) -> Option<Retiring<'_>> {
        let mut retiring = self.quarantine.begin();
        (count > 0 && retiring.reserve(count).is_ok()).then_some(retiring)
    }
}

/// One run of a mapping.
#[derive(Clone, Copy)]
pub(super) struct Piece {
    pub(super) range: IovaRange,
    pub(super) oa: Oa,
}

/// Places runs one behind the other from `iova` on.
fn pieces(
    iova: Iova,
    runs: &[(Oa, u64)],
) -> impl Iterator<Item = Result<Piece, MapError>> + Clone + '_ {
    runs.iter().scan(Some(iova), |next, &(oa, len)| {
        let at = *next;
        let range = at.and_then(|at| IovaRange::with_len(at, len));
        *next = range.and_then(|range| range.last().checked_add(1));
        let iova = at.unwrap_or(Iova::new(u64::MAX));
        Some(
            range
                .map(|range| Piece { range, oa })
                .ok_or(MapError::Wraps { iova, len }),
        )
    })
}

/// Returns the first and the last address of `pieces`, if there are any.
fn bounds(
    pieces: impl Iterator<Item = Result<Piece, MapError>>,
) -> Result<Option<(Iova, Iova)>, MapError> {
    let mut bounds = None;
    for piece in pieces {
        let range = piece?.range;
        let (start, _) = bounds.unwrap_or((range.start(), range.last()));
        bounds = Some((start, range.last()));
    }
    Ok(bounds)
}
