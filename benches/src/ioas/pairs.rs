//! One thread maps a page and unmaps it, among 10^5 areas.
//!
//! All sides hold the same areas: the engine with one and two domains, the [`Baseline`] with as many,
//! and a `BTreeMap` of areas by their last address, which is what any index costs at least. The
//! parts of a pair are measured alone, too: the space without a domain, the source, the table.

use std::collections::BTreeMap;
use std::sync::Arc;

use iopt::invalidation::NoHardware;
use iopt::pin::{PageRange, Source};
use iopt::radix::UnmapPolicy;
use iopt_formats::Oa;

use crate::clock;
use crate::ioas::baseline::Baseline;
use crate::ioas::space::{
    AREA_COUNT, Cursor, Engine, Layout, Memory, Order, PAGE_LEN, PROT, Seat, Space, everything,
    fill, holes, large_source, new_table, own_source,
};
use crate::paired::{Side, Turns};
use crate::row::{Bar, Row};
use crate::subject::range;
use crate::workload::{FIRST_IOVA, Phase, Times};

/// What a pair of the engine with one domain may take, in nanoseconds.
pub const MAX_NS: f64 = 300.0;

/// Pairs between two looks at the clock.
const PAIR_COUNT: usize = 512;

/// Where a page goes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Choice {
    /// To a hole that the caller chooses.
    Fixed(Order),
    /// To the lowest hole, which is the lowest address of all.
    Automatic,
    /// The same, with all areas below it, side by side.
    AutomaticPacked,
}

impl Choice {
    /// Every choice.
    pub const ALL: [Self; 4] = [
        Self::Fixed(Order::Rising),
        Self::Fixed(Order::Random),
        Self::Automatic,
        Self::AutomaticPacked,
    ];

    /// Returns the name as text.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Fixed(Order::Rising) => "fixed-rising",
            Self::Fixed(Order::Random) => "fixed-random",
            Self::Automatic => "automatic",
            Self::AutomaticPacked => "automatic-packed",
        }
    }

    const fn layout(self) -> Layout {
        match self {
            Self::Fixed(_) | Self::Automatic => Layout::Holes,
            Self::AutomaticPacked => Layout::Packed,
        }
    }

    const fn order(self) -> Order {
        match self {
            Self::Fixed(order) => order,
            Self::Automatic | Self::AutomaticPacked => Order::Rising,
        }
    }

    /// Returns holes, for a fixed choice, in their order.
    fn iovas(self) -> Vec<u64> {
        let mut iovas = holes(AREA_COUNT);
        self.order().apply(&mut iovas);
        iovas
    }

    const fn is_fixed(self) -> bool {
        matches!(self, Self::Fixed(_))
    }

    /// Returns the page that is mapped, if the hole is the one at `iova`: one that no area uses.
    const fn page(self, memory: Memory, iova: u64) -> u64 {
        match (self.layout(), memory) {
            (Layout::Packed, Memory::Shared) => AREA_COUNT + Memory::Own.page(iova),
            _ => memory.page(iova),
        }
    }
}

/// Maps and unmaps a page for each of `iovas`.
#[inline(never)]
pub fn pairs(seat: &mut dyn Seat, choice: Choice, memory: Memory, iovas: &[u64]) {
    for &iova in iovas {
        let page = choice.page(memory, iova);
        if choice.is_fixed() {
            seat.map(iova, page);
            seat.unmap(iova);
        } else {
            let at = seat.map_anywhere(page);
            seat.unmap(at);
        }
    }
}

/// A space with its areas, and both kinds of memory.
#[derive(Debug)]
struct Filled<S: Space> {
    space: S,
    shared: S::Memory,
    own: S::Memory,
}

impl<S: Space> Filled<S> {
    fn new(space: S, layout: Layout) -> Self {
        let shared = S::memory(large_source(AREA_COUNT));
        fill(&space, &shared, layout, AREA_COUNT);
        let own = S::memory(own_source());
        Self { space, shared, own }
    }

    const fn memory(&self, memory: Memory) -> &S::Memory {
        match memory {
            Memory::Own => &self.own,
            Memory::Shared => &self.shared,
        }
    }

    fn side<'a>(
        &'a self,
        who: Who,
        choice: Choice,
        memory: Memory,
        iovas: &'a [u64],
    ) -> Side<'a, Who> {
        let mut cursor = Cursor::new(iovas);
        Side::new(who, move || {
            let iovas = cursor.take(PAIR_COUNT);
            self.space
                .with_seat(self.memory(memory), everything(), |seat| {
                    timed(iovas.len(), || pairs(seat, choice, memory, iovas))
                })
        })
    }
}

fn timed(count: usize, work: impl FnOnce()) -> Times {
    Times {
        map: clock::time(work) / count as f64,
        ..Times::default()
    }
}

/// Who ran in a measurement.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Who {
    Engine(usize),
    Baseline(usize),
    Map,
    Source,
    Table,
}

/// Lets the engine with one domain do pairs without looking at the clock: for a profiler.
pub fn count(choice: Choice, memory: Memory, pair_count: usize) {
    let engine = Filled::new(Engine::new(1), choice.layout());
    let iovas = choice.iovas();
    let mut cursor = Cursor::new(&iovas);
    let mut left = pair_count;
    let source = engine.memory(memory);
    engine.space.with_seat(source, everything(), |seat| {
        while left > 0 {
            let iovas = cursor.take(left.min(PAIR_COUNT));
            pairs(seat, choice, memory, iovas);
            left -= iovas.len();
        }
    });
}

/// Measures every choice, with both kinds of memory.
pub fn measure() -> Vec<Row> {
    let mut rows = Vec::new();
    for layout in [Layout::Holes, Layout::Packed] {
        let spaces = Spaces::new(layout);
        for choice in Choice::ALL {
            if choice.layout() == layout {
                for memory in Memory::ALL {
                    rows.extend(spaces.measure(choice, memory));
                }
            }
        }
        if layout == Layout::Holes {
            rows.extend(spaces.measure_parts());
        }
    }
    rows
}

/// The engine and what it is compared with, all filled alike.
struct Spaces {
    /// By the number of their domains.
    engines: Vec<Filled<Engine>>,
    baselines: [Filled<Baseline>; 2],
    map: BTreeMap<u64, (u64, u64)>,
}

impl Spaces {
    fn new(layout: Layout) -> Self {
        let areas = layout.areas(AREA_COUNT);
        let lowest = match layout {
            Layout::Holes => 0,
            Layout::Packed => FIRST_IOVA,
        };
        let engine = |domain_count| {
            let engine = Filled::new(Engine::new(domain_count), layout);
            if layout == Layout::Packed {
                // Nothing below the areas, as for the baseline.
                let allowed = engine.space.ioas.allow(&[range(lowest, 1 << 40)]);
                allowed.expect("nothing is reserved there");
            }
            engine
        };
        Self {
            engines: (0..=2).map(engine).collect(),
            baselines: [1, 2].map(|count| Filled::new(Baseline::new(count, lowest), layout)),
            map: areas
                .map(|iova| (iova + (PAGE_LEN - 1), (iova, iova)))
                .collect(),
        }
    }

    fn measure(&self, choice: Choice, memory: Memory) -> Vec<Row> {
        let iovas = choice.iovas();
        // To walk over all areas takes so long that it is measured apart from the others.
        let is_walking = choice == Choice::AutomaticPacked;
        let mut sides: Vec<_> = [1, 2]
            .into_iter()
            .map(|count| self.engines[count].side(Who::Engine(count), choice, memory, &iovas))
            .collect();
        if !is_walking {
            sides.extend([1, 2].map(|count| {
                self.baselines[count - 1].side(Who::Baseline(count), choice, memory, &iovas)
            }));
        }
        sides.push(map_side(&self.map, &iovas));
        let turns = Turns::measure(&mut sides, &[(Who::Map, Phase::Map)]);
        let what = format!("{}, {} pages", choice.as_str(), memory.as_str());
        let of_map = |who| turns.compare((who, Phase::Map), (Who::Map, Phase::Map));
        let mut rows = Vec::new();
        for (who, how) in [
            (Who::Engine(1), "engine, 1 domain"),
            (Who::Engine(2), "engine, 2 domains"),
            (Who::Baseline(1), "baseline, 1 domain"),
            (Who::Baseline(2), "baseline, 2 domains"),
        ] {
            if is_walking && matches!(who, Who::Baseline(_)) {
                continue;
            }
            let comparison = of_map(who);
            let mut row = Row::new(&what, how, comparison.subject_ns, "ns a pair")
                .beside("of BTreeMap", comparison.ratio);
            if let Who::Engine(count) = who
                && !is_walking
            {
                let of_baseline =
                    turns.compare((who, Phase::Map), (Who::Baseline(count), Phase::Map));
                row = row.beside("of baseline", of_baseline.ratio);
            }
            // Past the caches, what memory takes is not the engine's: the ratios say more.
            if who == Who::Engine(1) && choice != Choice::Fixed(Order::Random) {
                row = row.with_bar(Bar::AtMost(MAX_NS), comparison.is_noisy);
            }
            rows.push(row);
        }
        let map = of_map(Who::Map).subject_ns;
        rows.push(Row::new(
            &what,
            "BTreeMap, remove and insert",
            map,
            "ns a pair",
        ));
        if is_walking {
            rows.push(self.measure_walk(&what, choice, memory, &iovas));
        }
        rows
    }

    /// Measures a few pairs of the baseline where it walks past every area.
    fn measure_walk(&self, what: &str, choice: Choice, memory: Memory, iovas: &[u64]) -> Row {
        const WALK_COUNT: usize = 8;
        let baseline = &self.baselines[0];
        let source = baseline.memory(memory);
        let iovas = &iovas[..WALK_COUNT];
        let ns = baseline.space.with_seat(source, everything(), |seat| {
            clock::time(|| pairs(seat, choice, memory, iovas)) / WALK_COUNT as f64
        });
        Row::new(what, "baseline, 1 domain", ns, "ns a pair")
    }

    /// Measures what a pair consists of.
    fn measure_parts(&self) -> Vec<Row> {
        let (choice, memory) = (Choice::Fixed(Order::Rising), Memory::Own);
        let iovas = choice.iovas();
        let table = new_table();
        let source = own_source();
        let whole = self.engines[1].side(Who::Engine(1), choice, memory, &iovas);
        let no_domain = self.engines[0].side(Who::Engine(0), choice, memory, &iovas);
        let mut sides = [
            whole,
            no_domain,
            source_side(&source, &iovas),
            table_side(&table, &iovas),
        ];
        let turns = Turns::measure(&mut sides, &[(Who::Engine(1), Phase::Map)]);
        let part = |who, how| {
            let comparison = turns.compare((who, Phase::Map), (Who::Engine(1), Phase::Map));
            Row::new(
                "parts of a fixed pair",
                how,
                comparison.subject_ns,
                "ns a pair",
            )
            .beside("of the whole", comparison.ratio)
        };
        vec![
            part(Who::Engine(1), "whole, 1 domain"),
            part(Who::Engine(0), "space without a domain"),
            part(Who::Source, "source: pin and unpin"),
            part(Who::Table, "table: map, sync, unmap, sync"),
        ]
    }
}

/// Removes and inserts areas of a `BTreeMap`.
fn map_side<'a>(map: &BTreeMap<u64, (u64, u64)>, iovas: &'a [u64]) -> Side<'a, Who> {
    let mut map = map.clone();
    let mut cursor = Cursor::new(iovas);
    Side::new(Who::Map, move || {
        let iovas = cursor.take(PAIR_COUNT);
        timed(iovas.len(), || {
            for &iova in iovas {
                let last = iova + (PAGE_LEN - 1);
                map.insert(last, (iova, iova));
                map.remove(&last);
            }
        })
    })
}

fn source_side<'a>(source: &'a Arc<dyn Source>, iovas: &'a [u64]) -> Side<'a, Who> {
    let mut cursor = Cursor::new(iovas);
    Side::new(Who::Source, move || {
        let iovas = cursor.take(PAIR_COUNT);
        timed(iovas.len(), || {
            for &iova in iovas {
                let page = Memory::Own.page(iova);
                let page = PageRange::new(page, page).expect("it is one page");
                source.pin(page, &mut |_| ()).expect("the page is there");
                source.unpin(page);
            }
        })
    })
}

fn table_side<'a>(
    table: &'a iopt::radix::Table<iopt_formats::vtd::SecondStage, iopt::mem::Arena>,
    iovas: &'a [u64],
) -> Side<'a, Who> {
    let mut cursor = Cursor::new(iovas);
    Side::new(Who::Table, move || {
        let iovas = cursor.take(PAIR_COUNT);
        let claim = table.claim(everything());
        let mut claim = claim.expect("nobody else has a claim");
        let mut mapper = table.mapper(&mut claim).expect("the claim is the table's");
        timed(iovas.len(), || {
            for &iova in iovas {
                let range = range(iova, PAGE_LEN);
                let mapped = mapper.map(range, Oa::new(iova), PROT);
                let synced = mapped.expect("nothing is mapped there").sync(&NoHardware);
                synced.expect("the hardware does nothing");
                let unmapped = mapper.unmap(range, UnmapPolicy::Sparse);
                let gather = unmapped.expect("the claim holds the page").gather;
                gather.sync(&NoHardware).expect("the hardware does nothing");
            }
        })
    })
}
