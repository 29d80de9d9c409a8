//! The index of areas alone: who enters, removes and finds a page-sized area the fastest?
//!
//! | index | |
//! |---|---|
//! | engine | 64 shards of trees with a lock each, behind [`Ioas`](iopt::ioas::Ioas) |
//! | `BTreeMap` | by last address, behind one lock |
//! | linked tree | a red-black tree of nodes that exist before, by last address, behind one lock |
//! | augmented tree | a red-black tree of intervals that may overlap, behind one lock |
//!
//! The engine's index has no interface of its own. It is measured through a space without a domain,
//! and nothing is subtracted: each of its pairs makes an area, publishes it, drains it and ends it. A
//! look-up asks for an unmap of one byte inside an area, which is found and refused.

#![expect(
    clippy::expl_impl_clone_on_copy,
    reason = "the macro of the tree's crate implements both"
)]

use std::collections::BTreeMap;
use std::hint::black_box;
use std::sync::Arc;

use intrusive_collections::{Bound, KeyAdapter, RBTree, RBTreeAtomicLink, intrusive_adapter};
use iopt::ioas::{Holes, Pages, UnmapError};
use iset::IntervalMap;
use parking_lot::RwLock;

use crate::clock;
use crate::ioas::space::{
    Cursor, Engine, Layout, Memory, Order, PAGE_LEN, Space as _, everything, fill, holes,
    large_source, own_source,
};
use crate::ioas::threads::{Scaled, THREAD_COUNT};
use crate::paired::{Side, Turns};
use crate::row::Row;
use crate::subject::range;
use crate::workload::{Phase, Times};

/// Areas in the index.
const COUNTS: [u64; 2] = [1_000, 100_000];

/// Operations between two looks at the clock.
const BATCH_LEN: usize = 512;

/// What an index has to do.
trait Index: Sync {
    /// What a thread keeps from pair to pair.
    type Spare: Default;

    /// Enters the page at `start`, where nothing is, and removes it again.
    fn pair(&self, start: u64, spare: &mut Self::Spare);

    /// Returns whether an area holds `iova`.
    fn holds(&self, iova: u64) -> bool;
}

/// The engine's, with memory that new areas translate to; without a domain nobody looks at it.
struct OfEngine {
    engine: Engine,
    own: Arc<Pages>,
}

impl OfEngine {
    fn new(count: u64) -> Self {
        let engine = Engine::new(0);
        fill(
            &engine,
            &Engine::memory(large_source(count)),
            Layout::Holes,
            count,
        );
        let own = Engine::memory(own_source());
        Self { engine, own }
    }
}

impl Index for OfEngine {
    type Spare = ();

    #[inline(always)]
    fn pair(&self, start: u64, (): &mut ()) {
        self.engine.with_seat(&self.own, everything(), |seat| {
            seat.map(start, Memory::Own.page(start));
            seat.unmap(start);
        });
    }

    #[inline(always)]
    fn holds(&self, iova: u64) -> bool {
        let found = self.engine.ioas.unmap(range(iova + 1, 1), Holes::Tolerated);
        matches!(found, Err(UnmapError::Splits { .. }))
    }
}

/// Areas by their last address.
struct OfMap(RwLock<BTreeMap<u64, u64>>);

impl OfMap {
    fn new(count: u64) -> Self {
        let areas = Layout::Holes.areas(count);
        let areas = areas.map(|start| (start + (PAGE_LEN - 1), start));
        Self(RwLock::new(areas.collect()))
    }
}

impl Index for OfMap {
    type Spare = ();

    #[inline(always)]
    fn pair(&self, start: u64, (): &mut ()) {
        let last = start + (PAGE_LEN - 1);
        {
            let mut map = self.0.write();
            let next = map.range(start..).next();
            assert!(next.is_none_or(|(_, &next)| next > last), "it is free");
            map.insert(last, start);
        }
        let removed = self.0.write().remove(&last);
        assert_eq!(removed, Some(start), "it was entered");
    }

    #[inline(always)]
    fn holds(&self, iova: u64) -> bool {
        let map = self.0.read();
        map.range(iova..)
            .next()
            .is_some_and(|(_, &start)| start <= iova)
    }
}

struct Node {
    link: RBTreeAtomicLink,
    start: u64,
    last: u64,
}

intrusive_adapter!(ByLast = Box<Node>: Node { link => RBTreeAtomicLink });

impl<'a> KeyAdapter<'a> for ByLast {
    type Key = u64;

    fn get_key(&self, node: &'a Node) -> u64 {
        node.last
    }
}

/// Nodes that are linked by their last address.
struct Linked(RwLock<RBTree<ByLast>>);

impl Linked {
    fn new(count: u64) -> Self {
        let mut tree = RBTree::new(ByLast::new());
        for start in Layout::Holes.areas(count) {
            tree.insert(Box::new(Self::node(start)));
        }
        Self(RwLock::new(tree))
    }

    fn node(start: u64) -> Node {
        Node {
            link: RBTreeAtomicLink::new(),
            start,
            last: start + (PAGE_LEN - 1),
        }
    }
}

impl Index for Linked {
    type Spare = Option<Box<Node>>;

    #[inline(always)]
    fn pair(&self, start: u64, spare: &mut Option<Box<Node>>) {
        let mut node = spare.take().unwrap_or_else(|| Box::new(Self::node(start)));
        let last = start + (PAGE_LEN - 1);
        (node.start, node.last) = (start, last);
        {
            let mut tree = self.0.write();
            let mut next = tree.lower_bound_mut(Bound::Included(&start));
            assert!(
                next.get().is_none_or(|next| next.start > last),
                "it is free"
            );
            next.insert_before(node);
        }
        *spare = self.0.write().find_mut(&last).remove();
        assert!(spare.is_some(), "it was entered");
    }

    #[inline(always)]
    fn holds(&self, iova: u64) -> bool {
        let tree = self.0.read();
        let next = tree.lower_bound(Bound::Included(&iova));
        next.get().is_some_and(|next| next.start <= iova)
    }
}

/// Intervals that may overlap.
struct Augmented(RwLock<IntervalMap<u64, u64>>);

impl Augmented {
    fn new(count: u64) -> Self {
        let areas = Layout::Holes.areas(count);
        let areas = areas.map(|start| (start..start + PAGE_LEN, start));
        Self(RwLock::new(areas.collect()))
    }
}

impl Index for Augmented {
    type Spare = ();

    #[inline(always)]
    fn pair(&self, start: u64, (): &mut ()) {
        let area = start..start + PAGE_LEN;
        {
            let mut tree = self.0.write();
            assert!(!tree.has_overlap(area.clone()), "it is free");
            tree.insert(area.clone(), start);
        }
        let removed = self.0.write().remove(area);
        assert_eq!(removed, Some(start), "it was entered");
    }

    #[inline(always)]
    fn holds(&self, iova: u64) -> bool {
        self.0.read().values(iova..=iova).next().is_some()
    }
}

/// Who ran in a measurement.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Who {
    Engine,
    Map,
    Linked,
    Augmented,
}

impl Who {
    const ALL: [Self; 4] = [Self::Engine, Self::Map, Self::Linked, Self::Augmented];

    const fn as_str(self) -> &'static str {
        match self {
            Self::Engine => "engine, a whole space",
            Self::Map => "BTreeMap",
            Self::Linked => "linked tree",
            Self::Augmented => "augmented tree",
        }
    }
}

/// What is done.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Work {
    Pairs,
    Lookups,
}

impl Work {
    const ALL: [Self; 2] = [Self::Pairs, Self::Lookups];

    const fn as_str(self) -> &'static str {
        match self {
            Self::Pairs => "insert and remove",
            Self::Lookups => "look up",
        }
    }

    const fn phase(self) -> Phase {
        match self {
            Self::Pairs => Phase::Map,
            Self::Lookups => Phase::Translate,
        }
    }
}

/// The four of them with the same areas, and the addresses to use.
struct Indexes {
    of_engine: OfEngine,
    of_map: OfMap,
    linked: Linked,
    augmented: Augmented,
}

impl Indexes {
    fn new(count: u64) -> Self {
        Self {
            of_engine: OfEngine::new(count),
            of_map: OfMap::new(count),
            linked: Linked::new(count),
            augmented: Augmented::new(count),
        }
    }
}

/// Measures all of them on one thread.
pub fn measure_one() -> Vec<Row> {
    each_case(Indexes::measure_one)
}

/// Measures all of them on two of `cpus`, if there are so many.
pub fn measure_two(cpus: &[usize], trial_count: usize) -> Vec<Row> {
    cpus.get(..THREAD_COUNT).map_or_else(Vec::new, |cpus| {
        each_case(|indexes, iovas, what| indexes.measure_two(cpus, trial_count, iovas, what))
    })
}

fn each_case(
    measure: impl Fn(&Indexes, Iovas<'_>, &dyn Fn(Work) -> String) -> Vec<Row>,
) -> Vec<Row> {
    let mut rows = Vec::new();
    for count in COUNTS {
        let indexes = Indexes::new(count);
        for order in Order::ALL {
            let mut holes = holes(count);
            let mut areas: Vec<u64> = Layout::Holes.areas(count).collect();
            order.apply(&mut holes);
            order.apply(&mut areas);
            let iovas = Iovas {
                holes: &holes,
                areas: &areas,
            };
            let what = |work: Work| format!("{} of {count}, {}", work.as_str(), order.as_str());
            rows.extend(measure(&indexes, iovas, &what));
        }
    }
    rows
}

/// Addresses in the order in which they are used.
#[derive(Clone, Copy)]
struct Iovas<'a> {
    holes: &'a [u64],
    areas: &'a [u64],
}

impl Indexes {
    fn measure_one(&self, iovas: Iovas<'_>, what: &dyn Fn(Work) -> String) -> Vec<Row> {
        let mut sides = [
            side(Who::Engine, &self.of_engine, iovas),
            side(Who::Map, &self.of_map, iovas),
            side(Who::Linked, &self.linked, iovas),
            side(Who::Augmented, &self.augmented, iovas),
        ];
        let yardsticks = [(Who::Map, Phase::Map), (Who::Map, Phase::Translate)];
        let turns = Turns::measure(&mut sides, &yardsticks);
        let mut rows = Vec::new();
        for work in Work::ALL {
            let phase = work.phase();
            let of = |who| turns.compare((who, phase), (Who::Map, phase));
            let row = |who| {
                let comparison = of(who);
                let ns = comparison.subject_ns;
                Row::new(&what(work), who.as_str(), ns, "ns, 1 thread")
                    .beside("of BTreeMap", comparison.ratio)
            };
            rows.extend(with_winner(Who::ALL.map(row)));
        }
        rows
    }

    fn measure_two(
        &self,
        cpus: &[usize],
        trial_count: usize,
        iovas: Iovas<'_>,
        what: &dyn Fn(Work) -> String,
    ) -> Vec<Row> {
        let mut rows = Vec::new();
        for work in Work::ALL {
            let row = |who| {
                let scaled = match who {
                    Who::Engine => scaled(&self.of_engine, cpus, trial_count, work, iovas),
                    Who::Map => scaled(&self.of_map, cpus, trial_count, work, iovas),
                    Who::Linked => scaled(&self.linked, cpus, trial_count, work, iovas),
                    Who::Augmented => scaled(&self.augmented, cpus, trial_count, work, iovas),
                };
                let ns = scaled.together_ns;
                let row = Row::new(&what(work), who.as_str(), ns, "ns, 2 threads")
                    .beside("times one thread", scaled.speed_up());
                if ns.is_infinite() {
                    row.too_noisy()
                } else {
                    row
                }
            };
            rows.extend(with_winner(Who::ALL.map(row)));
        }
        rows
    }
}

/// Marks the fastest of several rows.
fn with_winner<const COUNT: usize>(mut rows: [Row; COUNT]) -> [Row; COUNT] {
    let fastest = rows
        .iter()
        .map(|row| row.value)
        .fold(f64::INFINITY, f64::min);
    for row in &mut rows {
        if row.value <= fastest {
            row.how.push_str(" (fastest)");
        }
    }
    rows
}

fn side<'a, I: Index>(who: Who, index: &'a I, iovas: Iovas<'a>) -> Side<'a, Who> {
    let mut holes = Cursor::new(iovas.holes);
    let mut areas = Cursor::new(iovas.areas);
    let mut spare = I::Spare::default();
    Side::new(who, move || {
        let (holes, areas) = (holes.take(BATCH_LEN), areas.take(BATCH_LEN));
        let map = clock::time(|| holes.iter().for_each(|&iova| index.pair(iova, &mut spare)));
        let translate = clock::time(|| look_up(index, areas));
        Times {
            map: map / holes.len() as f64,
            translate: translate / areas.len() as f64,
            ..Times::default()
        }
    })
}

fn look_up(index: &impl Index, areas: &[u64]) {
    for &iova in areas {
        assert!(black_box(index.holds(iova)), "an area starts there");
    }
}

/// Measures threads of which each takes a part of the addresses, in their order.
fn scaled<I: Index>(
    index: &I,
    cpus: &[usize],
    trial_count: usize,
    work: Work,
    iovas: Iovas<'_>,
) -> Scaled {
    Scaled::measure(cpus, trial_count, |thread, trials, share| {
        let all = match work {
            Work::Pairs => iovas.holes,
            Work::Lookups => iovas.areas,
        };
        let part_len = all.len() / THREAD_COUNT;
        let mut cursor = Cursor::new(&all[thread * part_len..][..part_len]);
        let mut spare = I::Spare::default();
        trials.each(share, || {
            let mut left = share.piece_len as usize;
            while left > 0 {
                let iovas = cursor.take(left);
                match work {
                    Work::Pairs => iovas.iter().for_each(|&iova| index.pair(iova, &mut spare)),
                    Work::Lookups => look_up(index, iovas),
                }
                left -= iovas.len();
            }
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check<I: Index>(index: &I) {
        let mut spare = I::Spare::default();
        for hole in holes(20) {
            assert!(!index.holds(hole));
            index.pair(hole, &mut spare);
            assert!(!index.holds(hole));
        }
        for area in Layout::Holes.areas(20) {
            assert!(index.holds(area));
        }
    }

    #[test]
    fn every_index_finds_what_it_holds_and_forgets_what_it_held() {
        check(&OfEngine::new(20));
        check(&OfMap::new(20));
        check(&Linked::new(20));
        check(&Augmented::new(20));
    }

    #[test]
    fn the_fastest_row_is_marked() {
        let row = |how, value| Row::new("look up", how, value, "ns");
        let rows = with_winner([row("a", 3.0), row("b", 2.0)]);
        assert_eq!(rows.map(|row| row.how), ["a", "b (fastest)"]);
    }
}
