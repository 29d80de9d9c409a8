//! Mapping in general: any sizes, missing tables, lists of runs.
//!
//! A map first fills in one pass and hopes. If an item on the way is not empty or a table is
//! missing, it takes back what it filled and goes the careful way: check everything and count the
//! tables that are missing, allocate them all, then fill, which cannot fail any more. So a map
//! that fails leaves no trace, not even an empty table.

use iopt_formats::{Format, Iova, IovaRange, Level, Oa, Prot};

use crate::invalidation::{Changes, Kind, MapSync, RetiredSpan};
use crate::mem::TableMemory;
use crate::radix::fill::{Careful, Need};
use crate::radix::job::Job;
use crate::radix::node::{Supply, flush_items};
use crate::radix::unmap::clear_items;
use crate::radix::{MapError, MapSide, Mapper, Table};
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
        let job = self.job(range, oa, prot)?;
        self.run_job(job)
    }

    /// Maps a scatter list: runs of output addresses, one behind the other from `iova` on.
    ///
    /// The list is mapped whole or not at all, and takes one sync. Empty tables that the runs
    /// before a refused one needed stay linked.
    ///
    /// # Errors
    ///
    /// [`MapError`] for the first run that is refused; nothing is mapped then.
    #[doc(alias = "map_sg")]
    pub fn map_runs(
        &mut self,
        iova: Iova,
        runs: impl IntoIterator<Item = (Oa, u64)>,
        prot: Prot,
    ) -> Result<MapSync, MapError> {
        let mut sync = MapSync::none(self.table.id);
        let mut next = Some(iova);
        let mut mapped_last = None;
        for (oa, len) in runs {
            let piece = next.and_then(|at| IovaRange::with_len(at, len));
            let at = next.unwrap_or(iova);
            let mapped = match piece {
                Some(range) => self.map(range, oa, prot).map(|done| (done, range.last())),
                None => Err(MapError::Wraps { iova: at, len }),
            };
            match mapped {
                Ok((done, last)) => {
                    sync.absorb(done);
                    mapped_last = Some(last);
                    next = last.checked_add(1);
                }
                Err(error) => {
                    if let Some(last) = mapped_last {
                        self.take_back(iova.get(), last.get());
                    }
                    return Err(error);
                }
            }
        }
        Ok(sync)
    }

    /// Removes the mappings of `iova..=last`, made by one operation that no device knows of.
    fn take_back(&mut self, iova: u64, last: u64) {
        let table = self.table;
        table.each_stretch(iova, last, |_, items, _, _, _| {
            clear_items(items);
            flush_items(&table.memory, items);
        });
        fence(Ordering::Release);
    }

    /// Checks everything about a mapping but the tree.
    fn job(&self, range: IovaRange, oa: Oa, prot: Prot) -> Result<Job, MapError> {
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

    fn run_job(&mut self, job: Job) -> Result<MapSync, MapError> {
        let table = self.table;
        table.grow_to(job.last)?;
        let range = IovaRange::new(Iova::new(job.iova), Iova::new(job.last))
            .expect("a job is made of a range");
        let mut changes = Changes {
            kind: Kind::Added,
            ..Changes::NONE
        };
        let mut retired = RetiredSpan::NONE;
        if let Err(filled) = table.fill(job) {
            table.unfill(job, filled);
            let mut need = Need::default();
            table.check(job, &mut need)?;
            let mut supply = Supply::empty(&table.memory);
            supply.add(need.table_count)?;
            let may_replace = need.replaced_count > 0 && table.reserve_limbo(need.replaced_count);
            let mut careful = Careful {
                supply: &mut supply,
                may_replace,
                changes,
                retired,
            };
            table.fill_checked(job, &mut careful)?;
            (changes, retired) = (careful.changes, careful.retired);
        }
        fence(Ordering::Release);
        let new_root = self.announce_root();
        if table.map_side == MapSide::Announced || new_root.is_some() {
            changes.absorb(&Changes::leaves(range, job.sizes_used(), Kind::Added));
        }
        if changes.range().is_none() {
            return Ok(MapSync::none(table.id));
        }
        Ok(MapSync::new(table.id, changes, retired, new_root))
    }

    /// Links every table that mappings of `range` with the smallest pages need, so that maps
    /// inside it cannot run out of memory until [`Table::compact`] unlinks them or a larger leaf
    /// takes their place.
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
        table.grow_to(last)?;
        let mut need = Need::default();
        Table::<F, M>::each_leaf_table(iova, last, |at| {
            if let Err(missing) = table.find_table(at, Level::LEAF) {
                need.count::<F>(at, missing, Level::LEAF);
            }
            Ok::<(), MapError>(())
        })?;
        let mut supply = Supply::empty(&table.memory);
        supply.add(need.table_count)?;
        Table::<F, M>::each_leaf_table(iova, last, |at| {
            match table.link_path(at, Level::LEAF, &mut supply) {
                // A leaf above level 0 needs no table.
                Ok(_) | Err(MapError::Occupied { .. }) => Ok(()),
                Err(error) => Err(error),
            }
        })
    }
}
