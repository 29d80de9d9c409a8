//! One huge range on many threads.
//!
//! A terabyte of pages takes half a million tables. The range is cut into parts, a few for each
//! thread of the current `rayon` pool, and an operation takes all parts through one phase after the
//! other. So it does what the sequential one does: the same words in the same number of tables, the
//! same result or the same error, and no trace of a failure.
//!
//! # Where parts meet
//!
//! - **P1** (whole entries): a boundary between parts that are changed lies inside no entry: for a
//!   map, inside none that it would make, else inside none that is there.
//!
//! A boundary of a map is aligned to the span of a whole table in which the largest leaves stand
//! that the distance of the addresses allows. Every entry is aligned to its size, which is less than
//! that span (F4), so none holds a boundary. As every part then ends where an entry ends, the
//! largest entry that fits at an address is the same as in the whole range.
//!
//! # Phases of a map
//!
//! 1. *Check* the parts in parallel; each counts the tables that it misses. In the order of
//!    addresses, the first part that refuses gives the error.
//! 2. *Allocate*: a table that translates for two parts and is missing was counted by both, and
//!    both need it: a leaf in its place would hold the boundary (P1). What is missing on the paths
//!    of the boundaries now was missing for the parts before (T4), so it is taken off their counts
//!    and comes from a supply of its own. Together the supplies hold what the sequential map
//!    allocates. Then the root grows, once.
//! 3. *Link* the shared tables, on one thread.
//! 4. *Fill* the parts in parallel, each from its own supply, which suffices now. Parts in which
//!    larger leaves replace empty tables go one after the other, because these tables retire under
//!    one operation.
//!
//! # Phases of an unmap
//!
//! 1. *Survey* the parts in parallel. In the order of addresses, the first part that refuses gives
//!    the error, and the first that has a hole ends the range where the policy allows holes.
//! 2. *Clear* what comes before that, in parallel.
//!
//! # Who may do this
//!
//! The threads work for the one mapper that is borrowed meanwhile, on parts of its range that do
//! not overlap, so T3 holds for each of them; what they stored happened before the call returns. A
//! thread that only reads enters an epoch for each part (T7).

use alloc::vec::Vec;
use core::ops::ControlFlow;

use iopt_formats::{Format, Iova, IovaRange, Level, Oa, Prot};
use rayon::prelude::*;

use crate::invalidation::{Changes, Gather, Kind, MapSync};
use crate::mem::{OutOfMemory, TableMemory};
use crate::radix::fill::{Filling, Missing, Need};
use crate::radix::job::Job;
use crate::radix::map::Piece;
use crate::radix::node::flush_items;
use crate::radix::read::Joiner;
use crate::radix::supply::{Supply, TABLE_LIMIT};
use crate::radix::unmap::clear_items;
use crate::radix::{
    DirtyError, MapError, Mapper, Run, Table, TablePolicy, UnmapError, UnmapPolicy, Unmapped,
};
use crate::reclaim::Operation;
use crate::sync::atomic::{Ordering, fence};

/// Parts for each thread, so that none waits long for the slowest.
const PARTS_PER_THREAD: u64 = 4;

/// Base-2 logarithm of the items that are worth a part: some ten microseconds of stores.
const PART_ITEMS_LG2: u8 = 15;

/// Returns the base-2 logarithm of the bytes of the smallest part whose leaves stand at `level`:
/// enough items, but whole tables of them, and no more than a table of the next level holds.
fn part_lg2<F: Format>(level: Level) -> u8 {
    let table = F::item_count_lg2();
    F::item_lg2(level) + PART_ITEMS_LG2.clamp(table, 2 * table)
}

/// Returns where to cut `start..=last` so that each thread gets a few parts, in rising order:
/// addresses at which whole tables of `level` end.
fn cuts<F: Format>(level: Level, start: u64, last: u64) -> impl Iterator<Item = u64> {
    let part_count = rayon::current_num_threads() as u64 * PARTS_PER_THREAD;
    let fair_lg2 = u64::BITS - ((last - start) / part_count).leading_zeros();
    let part = 1_u64.checked_shl(fair_lg2.max(part_lg2::<F>(level).into()));
    let next = move |at: u64| {
        let cut = (at | (part? - 1)).checked_add(1)?;
        (cut <= last).then_some(cut)
    };
    core::iter::successors(next(start), move |&cut| next(cut))
}

/// Returns the ranges that `start..=last` falls into at `cuts`, which rise.
fn ranges_between(start: u64, cuts: impl Iterator<Item = u64>, last: u64) -> Vec<IovaRange> {
    let mut ranges = Vec::new();
    let mut from = start;
    for cut in cuts {
        ranges.push(range_of(from, cut - 1));
        from = cut;
    }
    ranges.push(range_of(from, last));
    ranges
}

fn range_of(start: u64, last: u64) -> IovaRange {
    IovaRange::new(Iova::new(start), Iova::new(last)).expect("a part holds at least one byte")
}

/// Cuts a mapping into parts that meet as P1 says.
fn parts_of<F: Format>(job: Job) -> impl Iterator<Item = Job> {
    let largest = job.sizes_used().largest().unwrap_or(F::GRANULE);
    let cuts = cuts::<F>(F::level_of(largest), job.iova, job.last);
    let ranges = ranges_between(job.iova, cuts, job.last).into_iter();
    ranges.map(move |range| job.part(range.start().get(), range.last().get(), job.sizes))
}

/// Returns the level of the lowest table that translates both `cut` and the address before it.
fn shared_level<F: Format>(cut: u64) -> Level {
    let mut levels = (0..Level::MAX.0).map(Level);
    let table_lg2 = |level| u32::from(F::item_lg2(level) + F::item_count_lg2());
    let shared = levels.find(|&level| table_lg2(level) > cut.trailing_zeros());
    shared.unwrap_or(Level::MAX)
}

/// A part of a map that was checked.
struct Part<'t, F: Format, M: TableMemory> {
    job: Job,
    /// Missing tables that no other part needs.
    table_count: usize,
    /// Empty tables that larger leaves may replace.
    replaced_count: usize,
    supply: Supply<'t, F, M>,
}

impl<F: Format, M: TableMemory> Mapper<'_, F, M> {
    /// As [`map`](Self::map), on the threads of the current `rayon` pool where the range is large
    /// enough.
    ///
    /// # Errors
    ///
    /// As for [`map`](Self::map); nothing of the range is mapped then that was not before.
    pub fn par_map(&mut self, range: IovaRange, oa: Oa, prot: Prot) -> Result<MapSync, MapError> {
        let table = self.table;
        let job = self.job(Piece { range, oa }, prot)?;
        let jobs: Vec<Job> = table.beside_roots(job).flat_map(parts_of::<F>).collect();
        if jobs.len() < 2 || rayon::current_num_threads() < 2 {
            return self.map(range, oa, prot);
        }
        let cuts: Vec<u64> = jobs[1..].iter().map(|job| job.iova).collect();
        let last = range.last().get();

        let mut parts = table.check_parts(&jobs, &cuts, last)?;

        let mut shared = Supply::empty(&table.format, &table.memory);
        shared.add(table.missing_at(&cuts, last)?)?;
        parts
            .par_iter_mut()
            .try_for_each(|part| part.supply.add(part.table_count))?;
        let replaced_count = parts.iter().map(|part| part.replaced_count).sum();
        let mut retiring = table.room_to_replace(replaced_count);
        table.grow_to(last)?;

        for &cut in &cuts {
            table.link_path(cut, shared_level::<F>(cut), &mut shared)?;
        }

        let may_replace = retiring.is_some();
        let (mut alone, mut together): (Vec<_>, Vec<_>) = parts
            .into_iter()
            .partition(|part| may_replace && part.replaced_count > 0);
        together.par_iter_mut().try_for_each(|part| {
            let mut filling = Filling {
                supply: &mut part.supply,
                retiring: None,
                changes: Changes::none(Kind::Added),
            };
            table.fill(part.job, &mut filling)
        })?;
        let mut changes = Changes::none(Kind::Added);
        for part in &mut alone {
            let mut filling = Filling {
                supply: &mut part.supply,
                retiring,
                changes,
            };
            table.fill(part.job, &mut filling)?;
            Filling {
                retiring,
                changes,
                ..
            } = filling;
        }
        Ok(self.finish_map(range, job.sizes_used(), changes, retiring))
    }

    /// As [`unmap`](Self::unmap), on the threads of the current `rayon` pool where the range is
    /// large enough and its tables are kept ([`TablePolicy::Keep`]); to unlink them needs no help.
    ///
    /// # Errors
    ///
    /// As for [`unmap`](Self::unmap); nothing changed then.
    pub fn par_unmap(
        &mut self,
        range: IovaRange,
        policy: UnmapPolicy,
    ) -> Result<Unmapped, UnmapError> {
        let table = self.table;
        self.check_range(range)?;
        let parts = table.parts_at_entries(range);
        if parts.len() < 2
            || rayon::current_num_threads() < 2
            || self.table_policy == TablePolicy::Detach
        {
            return self.unmap(range, policy);
        }

        let mapper = &*self;
        let surveyed: Vec<_> = parts
            .par_iter()
            .map(|&part| mapper.survey(part, policy))
            .collect();
        let mut whole = Vec::new();
        for (part, found) in parts.iter().zip(surveyed) {
            let Some(last) = found? else { break };
            whole.push(range_of(part.start().get(), last));
            if last < part.last().get() {
                break;
            }
        }

        let cleared: Vec<Changes> = whole.par_iter().map(|&part| table.clear(part)).collect();
        fence(Ordering::Release);
        let mut changes = Changes::none(Kind::Removed);
        for part in &cleared {
            changes.absorb(part);
        }
        let bytes = changes
            .range()
            .map_or(0, |range| range.len_minus_one().saturating_add(1));
        Ok(Unmapped {
            gather: Gather::new(changes, table.id, Operation::NONE),
            bytes,
        })
    }

    /// As [`take_dirty`](Self::take_dirty), on the threads of the current `rayon` pool where the
    /// range is large enough; returns what it took in rising order.
    ///
    /// # Errors
    ///
    /// As for [`take_dirty`](Self::take_dirty); nothing changed then.
    pub fn par_take_dirty(
        &mut self,
        range: IovaRange,
    ) -> Result<(Vec<IovaRange>, Gather), DirtyError> {
        self.check_dirty(range)?;
        let parts = self.table.parts_at_entries(range);
        take_parts(self, &parts)
    }
}

/// Takes what is dirty in `parts`, of which there is one at least, one behind the other inside the
/// mapper's range.
fn take_parts<F: Format, M: TableMemory>(
    mapper: &mut Mapper<'_, F, M>,
    parts: &[IovaRange],
) -> Result<(Vec<IovaRange>, Gather), DirtyError> {
    if let &[part] = parts {
        let mut taken = Vec::new();
        let gather = mapper.take_dirty(part, |range| taken.push(range))?;
        return Ok((taken, gather));
    }
    let (low, high) = parts.split_at(parts.len() / 2);
    let (mut below, mut above) = mapper
        .split_at(high[0].start())
        .expect("the parts lie inside the claim");
    let (low, high) = rayon::join(
        || take_parts(&mut below, low),
        || take_parts(&mut above, high),
    );
    let ((low, mut gather), (high, other)) = (low?, high?);
    gather
        .join(other)
        .expect("both are of one table and retired nothing");
    Ok((joined(low, high, follow), gather))
}

impl<F: Format, M: TableMemory> Table<F, M> {
    /// Checks the parts of a map up to `last`, which meet at `cuts`.
    fn check_parts(
        &self,
        jobs: &[Job],
        cuts: &[u64],
        last: u64,
    ) -> Result<Vec<Part<'_, F, M>>, MapError> {
        let checked: Vec<_> = jobs
            .par_iter()
            .map(|&job| {
                let mut need = Need::up_to(self, last);
                let done = self.check(job, &mut need);
                (job, need, done)
            })
            .collect();
        let mut parts = Vec::with_capacity(checked.len());
        let mut table_count = self.missing_at(cuts, last)?;
        for (index, (job, need, done)) in checked.into_iter().enumerate() {
            // The cuts before and behind the part.
            let around = &cuts[index.saturating_sub(1)..cuts.len().min(index + 1)];
            let shared_count = self.missing_at(around, last)?;
            let part = Part {
                job,
                table_count: need.table_count.saturating_sub(shared_count),
                replaced_count: need.replaced_count,
                supply: Supply::empty(&self.format, &self.memory),
            };
            table_count += part.table_count;
            if table_count > TABLE_LIMIT {
                return Err(OutOfMemory { size: F::GRANULE }.into());
            }
            done?;
            parts.push(part);
        }
        Ok(parts)
    }

    /// Returns the number of missing tables that translate for both sides of some of `cuts`. The
    /// side before a cut decides: where the root ends there, growing it makes what the other side
    /// misses.
    fn missing_at(&self, cuts: &[u64], last: u64) -> Result<usize, OutOfMemory> {
        let mut need = Need::up_to(self, last);
        for &cut in cuts {
            let (before, bottom) = (cut - 1, shared_level::<F>(cut));
            if let Err(missing @ Missing::At(_)) = self.find_table(before, bottom, need.top()) {
                need.count::<F>(before, missing, bottom)?;
            }
        }
        Ok(need.table_count)
    }

    /// Clears `part`, which consists of whole entries.
    fn clear(&self, part: IovaRange) -> Changes {
        let mut changes = Changes::none(Kind::Removed);
        let (start, last) = (part.start().get(), part.last().get());
        self.each_stretch(start, last, |_, items, size, iova, stretch_last| {
            clear_items(items);
            flush_items(&self.memory, items);
            changes.add_leaf(range_of(iova, stretch_last), size);
        });
        changes
    }

    /// Cuts `range`, which the caller has claimed, into parts that meet as P1 says.
    fn parts_at_entries(&self, range: IovaRange) -> Vec<IovaRange> {
        let (start, last) = (range.start().get(), range.last().get());
        let mut cuts: Vec<u64> = cuts::<F>(F::level_of(self.smallest), start, last)
            .filter_map(|cut| match self.next_live(cut, cut) {
                Some(live) if live.start < cut => live.last().checked_add(1),
                _ => Some(cut),
            })
            .filter(|&cut| cut <= last)
            .collect();
        cuts.dedup();
        ranges_between(start, cuts.into_iter(), last)
    }

    /// As [`dump`](Self::dump), on the threads of the current `rayon` pool; returns all runs.
    pub fn par_dump(&self, range: IovaRange) -> Vec<Run> {
        let read = |part| {
            let mut runs = Vec::new();
            self.dump(part, |run| {
                runs.push(run);
                ControlFlow::Continue(())
            });
            runs
        };
        self.read_parts(range, &read, &|low, high| joined(low, high, continued))
    }

    /// As [`dirty`](Self::dirty), on the threads of the current `rayon` pool; returns what is
    /// dirty in rising order.
    ///
    /// # Errors
    ///
    /// As for [`dirty`](Self::dirty).
    pub fn par_dirty(&self, range: IovaRange) -> Result<Vec<IovaRange>, DirtyError> {
        let read = |part| {
            let mut parts = Vec::new();
            self.dirty(part, |dirty| parts.push(dirty))?;
            Ok(parts)
        };
        self.read_parts(range, &read, &|low: Result<_, _>, high| {
            Ok(joined(low?, high?, follow))
        })
    }

    /// Halves `range` until a part is small, or one item translates all of it, and joins what
    /// `read` returns for the parts. Reading cuts entries, so parts may meet inside one.
    fn read_parts<T: Send>(
        &self,
        range: IovaRange,
        read: &(impl Fn(IovaRange) -> T + Sync),
        join: &(impl Fn(T, T) -> T + Sync),
    ) -> T {
        let (start, last) = (range.start().get(), range.last().get());
        if (last - start) >> part_lg2::<F>(Level::LEAF) == 0
            || rayon::current_num_threads() < 2
            || self.is_one_item(start, last)
        {
            return read(range);
        }
        // The highest bit in which the two differ cuts along the tables.
        let middle = last & !(u64::MAX >> 1 >> (start ^ last).leading_zeros());
        let (low, high) = rayon::join(
            || self.read_parts(range_of(start, middle - 1), read, join),
            || self.read_parts(range_of(middle, last), read, join),
        );
        join(low, high)
    }

    /// Returns whether at most one item translates `start..=last`, as far as a reader sees now.
    fn is_one_item(&self, start: u64, last: u64) -> bool {
        if !self.reaches(start) {
            // What a root reaches has the lowest address in it, or the highest, or both.
            return !self.reaches(last);
        }
        let _reader = self.reader();
        let level = self.descend(start, Level::LEAF).level;
        start >> F::item_lg2(level) == last >> F::item_lg2(level)
    }
}

/// Appends `high` to `low`, the neighbours made one where `join` can.
fn joined<T>(mut low: Vec<T>, high: Vec<T>, join: impl Fn(&T, &T) -> Option<T>) -> Vec<T> {
    if low.is_empty() {
        return high;
    }
    let mut high = high.into_iter();
    if let (Some(left), Some(right)) = (low.last_mut(), high.as_slice().first())
        && let Some(both) = join(left, right)
    {
        *left = both;
        high.next();
    }
    low.extend(high);
    low
}

/// Returns two ranges as one if the second follows the first.
fn follow(low: &IovaRange, high: &IovaRange) -> Option<IovaRange> {
    (low.last().checked_add(1) == Some(high.start()))
        .then(|| range_of(low.start().get(), high.last().get()))
}

/// Returns two runs as one if the second continues the first.
fn continued(low: &Run, high: &Run) -> Option<Run> {
    let mut joiner = Joiner::default();
    joiner.push(*low, false);
    if joiner.push(*high, false).is_some() {
        return None;
    }
    joiner.finish().map(|(run, _)| run)
}
