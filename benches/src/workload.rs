//! What is done to tables: the workloads and the loops that time them.
//!
//! The first IOVA is `1 << 40` and the output address is the IOVA plus one page of the smallest
//! size in use, so that no implementation can merge pages into larger ones. A round maps
//! everything, translates everything where that is asked for, and unmaps everything; each of the
//! three is timed over the whole round.
//!
//! | | entries | calls of a round |
//! |---|---|---|
//! | W1 | 4 KiB, one leaf table | 511 of one page, in order |
//! | W2, W3 | 4 KiB, 128 leaf tables | 65 536 of one page, in order and in random order |
//! | W5 | 4 KiB, one leaf table | 31 of 64 KiB |
//! | W6, W7 | 2 MiB and 1 GiB | 511 and 255 of one block |
//! | W8 | 4 KiB, 128 leaf tables | 128 of 2 MiB |
//! | W9 | 4 KiB, 512 leaf tables | one of 1 GiB |
//! | W10a | as W8, into a table without any page | 128 of 2 MiB |
//! | W10b | 4 KiB, 512 leaf tables, into a table without any page | 512 of one page |
//! | W13 | as W8; an unmap may drop the leaf table, with a look at what it holds or without | 128 of 2 MiB |
//!
//! Times are nanoseconds an entry: a page, a block of W6 and W7, or 2 MiB of W13.

use std::hint::black_box;
use std::marker::PhantomData;
use std::ops::AddAssign;

use crate::clock;
use crate::random::Random;

/// Where every workload starts.
pub const FIRST_IOVA: u64 = 1 << 40;

const KIB_4: u64 = 1 << 12;
const MIB_2: u64 = 1 << 21;
const GIB_1: u64 = 1 << 30;

/// Page tables that are measured. Every call succeeds or panics.
pub trait Tables {
    /// Maps one page or block of `2^SIZE_LG2` bytes: 4 KiB, 2 MiB or 1 GiB.
    fn map_page<const SIZE_LG2: u8>(&mut self, iova: u64, oa: u64);

    /// Maps `len` bytes that only 4 KiB pages fit.
    fn map_run(&mut self, iova: u64, oa: u64, len: u64);

    /// Unmaps what one [`map_page`](Self::map_page) mapped.
    fn unmap_page<const SIZE_LG2: u8>(&mut self, iova: u64);

    /// Unmaps what one [`map_run`](Self::map_run) mapped.
    fn unmap_run(&mut self, iova: u64, len: u64);

    /// Returns what `iova` translates to, or `None` if it is not mapped: one lookup on its own.
    fn translate(&self, iova: u64) -> Option<u64>;

    /// Translates all of `iovas` and returns the [`sum`]: many lookups at a time.
    #[inline(always)]
    fn translate_batch(&self, iovas: &[u64]) -> u64 {
        sum(iovas, |iova| self.translate(iova))
    }

    /// The same, by who alone may change these addresses.
    #[inline(always)]
    fn translate_own(&self, iovas: &[u64]) -> u64 {
        sum(iovas, |iova| self.translate(iova))
    }

    /// Frees what the calls before left to be freed; not timed.
    fn tidy(&mut self) {}
}

/// Returns the sum of what `iovas` translate to, so that no translation is left out.
#[inline(always)]
pub fn sum(iovas: &[u64], translate: impl Fn(u64) -> Option<u64>) -> u64 {
    let add = |sum: u64, &iova| sum.wrapping_add(translate(iova).unwrap_or(0));
    iovas.iter().fold(0, add)
}

/// Makes empty tables.
pub trait Make: 'static {
    /// What is made.
    type Tables<'a>: Tables;

    /// Runs `work` with tables that nothing is mapped in; they end with it.
    fn with<R>(&self, work: impl FnOnce(&mut Self::Tables<'_>) -> R) -> R;
}

/// Makes tables that need nothing from outside.
#[derive(Clone, Copy, Debug, Default)]
pub struct MakeDefault<T>(PhantomData<T>);

impl<T> MakeDefault<T> {
    /// Creates the maker.
    pub const fn new() -> Self {
        Self(PhantomData)
    }
}

impl<T: Tables + Default + 'static> Make for MakeDefault<T> {
    type Tables<'a> = T;

    fn with<R>(&self, work: impl FnOnce(&mut T) -> R) -> R {
        work(&mut T::default())
    }
}

/// One thing that is done to tables.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Phase {
    /// Mapping, with the sync that a new mapping may need.
    Map,
    /// Looking addresses up, many at a time.
    Translate,
    /// Looking one address up.
    TranslateAlone,
    /// Looking addresses up that nobody else may change.
    TranslateOwn,
    /// Unmapping, with gather and sync.
    Unmap,
}

/// Time of each phase, in nanoseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Times {
    /// [`Phase::Map`], and the only time of what has no phases.
    pub map: f64,
    /// [`Phase::Translate`].
    pub translate: f64,
    /// [`Phase::TranslateAlone`].
    pub translate_alone: f64,
    /// [`Phase::TranslateOwn`].
    pub translate_own: f64,
    /// [`Phase::Unmap`].
    pub unmap: f64,
}

impl Times {
    /// Returns the time of one phase.
    pub const fn get(self, phase: Phase) -> f64 {
        match phase {
            Phase::Map => self.map,
            Phase::Translate => self.translate,
            Phase::TranslateAlone => self.translate_alone,
            Phase::TranslateOwn => self.translate_own,
            Phase::Unmap => self.unmap,
        }
    }

    /// Returns the times that `time` returns for each phase.
    pub fn of_phases(mut time: impl FnMut(Phase) -> f64) -> Self {
        Self {
            map: time(Phase::Map),
            translate: time(Phase::Translate),
            translate_alone: time(Phase::TranslateAlone),
            translate_own: time(Phase::TranslateOwn),
            unmap: time(Phase::Unmap),
        }
    }

    /// Returns each time divided by `count`.
    #[must_use]
    pub fn divided_by(self, count: f64) -> Self {
        Self::of_phases(|phase| self.get(phase) / count)
    }
}

impl AddAssign for Times {
    fn add_assign(&mut self, other: Self) {
        *self = Self::of_phases(|phase| self.get(phase) + other.get(phase));
    }
}

/// A workload by name.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum WorkloadName {
    /// 4 KiB pages of one leaf table.
    W1,
    /// 4 KiB pages of 128 leaf tables, in order.
    W2,
    /// 4 KiB pages of 128 leaf tables, in random order.
    W3,
    /// 64 KiB of 4 KiB pages.
    W5,
    /// 2 MiB blocks.
    W6,
    /// 1 GiB blocks.
    W7,
    /// 2 MiB of 4 KiB pages.
    W8,
    /// 1 GiB of 4 KiB pages.
    W9,
    /// W8 into new tables, whose pages are hot in the caches.
    W10Lifo,
    /// W8 into new tables, whose pages are in no cache.
    W10Fifo,
    /// 4 KiB pages of a new leaf table each.
    W10b,
    /// W8 where an unmap may drop the leaf table, if all of it is mapped.
    W13Exact,
    /// W8 where an unmap may drop the leaf table, whatever it holds.
    W13Sparse,
}

impl WorkloadName {
    /// Every workload.
    pub const ALL: [Self; 13] = [
        Self::W1,
        Self::W2,
        Self::W3,
        Self::W5,
        Self::W6,
        Self::W7,
        Self::W8,
        Self::W9,
        Self::W10Lifo,
        Self::W10Fifo,
        Self::W10b,
        Self::W13Exact,
        Self::W13Sparse,
    ];
}

/// How a call covers its addresses.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Shape {
    Page4K,
    Block2M,
    Block1G,
    Run { len: u64 },
}

/// The calls of one round.
#[derive(Clone, Debug)]
pub struct Workload {
    name: WorkloadName,
    shape: Shape,
    iovas: Vec<u64>,
}

impl Workload {
    /// Creates the workload `name`.
    pub fn new(name: WorkloadName) -> Self {
        let (shape, stride, count) = match name {
            WorkloadName::W1 => (Shape::Page4K, KIB_4, 511),
            WorkloadName::W2 | WorkloadName::W3 => (Shape::Page4K, KIB_4, 65_536),
            WorkloadName::W5 => (Shape::Run { len: 16 * KIB_4 }, 16 * KIB_4, 31),
            WorkloadName::W6 => (Shape::Block2M, MIB_2, 511),
            WorkloadName::W7 => (Shape::Block1G, GIB_1, 255),
            WorkloadName::W8
            | WorkloadName::W10Lifo
            | WorkloadName::W10Fifo
            | WorkloadName::W13Exact
            | WorkloadName::W13Sparse => (Shape::Run { len: MIB_2 }, MIB_2, 128),
            WorkloadName::W10b => (Shape::Page4K, MIB_2, 512),
            WorkloadName::W9 => (Shape::Run { len: GIB_1 }, GIB_1, 1),
        };
        let mut iovas: Vec<u64> = (0..count).map(|i| FIRST_IOVA + i * stride).collect();
        if name == WorkloadName::W3 {
            Random::new(3).shuffle(&mut iovas);
        }
        Self { name, shape, iovas }
    }

    /// Returns the name.
    pub const fn name(&self) -> WorkloadName {
        self.name
    }

    const fn drops_tables(&self) -> bool {
        matches!(self.name, WorkloadName::W13Exact | WorkloadName::W13Sparse)
    }

    /// Returns how many entries a round maps.
    pub fn entry_count(&self) -> f64 {
        let entries_of_call = match self.shape {
            Shape::Run { len } if !self.drops_tables() => len / KIB_4,
            Shape::Run { .. } | Shape::Page4K | Shape::Block2M | Shape::Block1G => 1,
        };
        self.iovas.len() as f64 * entries_of_call as f64
    }

    /// Returns the addresses of the calls, in the order of the calls.
    pub fn iovas(&self) -> &[u64] {
        &self.iovas
    }

    /// Does one round and returns the time an entry.
    pub fn round<T: Tables>(&self, tables: &mut T) -> Times {
        let looks_up = self.name == WorkloadName::W1;
        let look_up = |work: &dyn Fn()| if looks_up { clock::time(work) } else { 0.0 };
        let iovas = &self.iovas;
        let map = clock::time(|| self.map(tables));
        let times = Times {
            map,
            translate: look_up(&|| translate_batch(tables, iovas)),
            translate_alone: look_up(&|| translate_alone(tables, iovas)),
            translate_own: look_up(&|| translate_own(tables, iovas)),
            unmap: clock::time(|| self.unmap(tables)),
        };
        tables.tidy();
        times.divided_by(self.entry_count())
    }

    /// Maps everything.
    #[inline(always)]
    pub fn map<T: Tables>(&self, tables: &mut T) {
        match self.shape {
            Shape::Page4K => map_pages::<T, 12>(tables, &self.iovas),
            Shape::Block2M => map_pages::<T, 21>(tables, &self.iovas),
            Shape::Block1G => map_pages::<T, 30>(tables, &self.iovas),
            Shape::Run { len } => map_runs(tables, &self.iovas, len),
        }
    }

    /// Unmaps everything.
    #[inline(always)]
    pub fn unmap<T: Tables>(&self, tables: &mut T) {
        match self.shape {
            Shape::Page4K => unmap_pages::<T, 12>(tables, &self.iovas),
            Shape::Block2M => unmap_pages::<T, 21>(tables, &self.iovas),
            Shape::Block1G => unmap_pages::<T, 30>(tables, &self.iovas),
            Shape::Run { len } => unmap_runs(tables, &self.iovas, len),
        }
    }

    /// Checks one round: the first and the last page of each call are translated while it is
    /// mapped, and not before or after.
    ///
    /// # Panics
    ///
    /// Panics if a translation is wrong.
    pub fn check<T: Tables>(&self, tables: &mut T) {
        let (len, oa_offset) = match self.shape {
            Shape::Page4K => (KIB_4, KIB_4),
            Shape::Block2M => (MIB_2, MIB_2),
            Shape::Block1G => (GIB_1, GIB_1),
            Shape::Run { len } => (len, KIB_4),
        };
        let expect = |tables: &T, expected: &dyn Fn(u64) -> Option<u64>| {
            for &iova in &self.iovas {
                for probe in [iova, iova + len - KIB_4, iova + len - 1] {
                    assert_eq!(tables.translate(probe), expected(probe), "at {probe:#x}");
                    let sum = expected(probe).unwrap_or(0);
                    assert_eq!(tables.translate_batch(&[probe]), sum, "at {probe:#x}");
                    assert_eq!(tables.translate_own(&[probe]), sum, "at {probe:#x}");
                }
            }
        };
        expect(tables, &|_| None);
        self.map(tables);
        expect(tables, &|iova| Some(iova + oa_offset));
        self.unmap(tables);
        expect(tables, &|_| None);
    }
}

/// Maps each of `iovas` with one page or block.
#[inline(never)]
pub fn map_pages<T: Tables, const SIZE_LG2: u8>(tables: &mut T, iovas: &[u64]) {
    for &iova in iovas {
        tables.map_page::<SIZE_LG2>(iova, iova + (1 << SIZE_LG2));
    }
}

#[inline(never)]
fn map_runs<T: Tables>(tables: &mut T, iovas: &[u64], len: u64) {
    for &iova in iovas {
        tables.map_run(iova, iova + KIB_4, len);
    }
}

#[inline(never)]
fn unmap_pages<T: Tables, const SIZE_LG2: u8>(tables: &mut T, iovas: &[u64]) {
    for &iova in iovas {
        tables.unmap_page::<SIZE_LG2>(iova);
    }
}

#[inline(never)]
fn unmap_runs<T: Tables>(tables: &mut T, iovas: &[u64], len: u64) {
    for &iova in iovas {
        tables.unmap_run(iova, len);
    }
}

/// Looks all of `iovas` up, many at a time.
#[inline(never)]
pub fn translate_batch<T: Tables>(tables: &T, iovas: &[u64]) {
    black_box(tables.translate_batch(iovas));
}

/// Looks each of `iovas` up on its own.
#[inline(never)]
pub fn translate_alone<T: Tables>(tables: &T, iovas: &[u64]) {
    black_box(sum(iovas, |iova| tables.translate(iova)));
}

/// Looks all of `iovas` up as who alone may change them.
#[inline(never)]
pub fn translate_own<T: Tables>(tables: &T, iovas: &[u64]) {
    black_box(tables.translate_own(iovas));
}

#[cfg(test)]
#[expect(clippy::float_cmp, reason = "the values have exact representations")]
mod tests {
    use super::*;

    #[test]
    fn an_entry_is_a_page_a_block_or_what_an_unmap_may_unlink_at_once() {
        let count_of = |name| Workload::new(name).entry_count();
        assert_eq!(count_of(WorkloadName::W5), 31.0 * 16.0);
        assert_eq!(count_of(WorkloadName::W6), 511.0);
        assert_eq!(count_of(WorkloadName::W8), 65_536.0);
        assert_eq!(count_of(WorkloadName::W10b), 512.0);
        assert_eq!(count_of(WorkloadName::W13Exact), 128.0);
    }

    #[test]
    fn times_are_added_and_divided_phase_by_phase() {
        let mut next = 0.0;
        let mut times = Times::of_phases(|_| {
            next += 1.0;
            next
        });
        times += times;
        let halves = times.divided_by(4.0);
        let phases = [
            Phase::Map,
            Phase::Translate,
            Phase::TranslateAlone,
            Phase::TranslateOwn,
            Phase::Unmap,
        ];
        let halves = phases.map(|phase| halves.get(phase));
        assert_eq!(halves, [0.5, 1.0, 1.5, 2.0, 2.5]);
    }
}
