//! A domain of a device and a table side by side, equal after whatever is done to their address space.

use std::collections::BTreeSet;
use std::sync::Arc;

use iopt::domain::TableDomain;
use iopt::invalidation::NoHardware;
use iopt::ioas::{Holes, Mapping, Pages, Place, Quarantined};
use iopt::mem::Heap;
use iopt::pin::{Simulated, Source};
use iopt::radix::Table;
use iopt_formats::vtd::SecondStage;
use iopt_formats::{Iova, IovaRange, PageSize, Prot};

use crate::{NUMBER, PAGE, World, range};
use iopt_tests::virtio::{DEVICE_ERROR, Fault, MAP, NO_MEMORY, RANGE, UNMAP};

/// First address, and pages, that the test uses.
const BASE: u64 = 0x10_0000;
const PAGE_COUNT: u64 = 64;

/// Numbers of a fixed seed (xorshift64).
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}

struct Pair {
    world: World,
    table: Arc<TableDomain<SecondStage, Heap, NoHardware>>,
    /// Memory of which pages lie side by side, in runs of four.
    runs: Arc<Pages>,
    numbers: Numbers,
    /// Areas that there were.
    areas: Vec<IovaRange>,
    /// Which operations succeeded and which failed.
    seen: BTreeSet<(&'static str, bool)>,
}

impl Pair {
    fn new(seed: u64) -> Self {
        let mut numbers = Numbers(seed);
        let world = World::new([1, 3, 64][numbers.below(3) as usize]);
        world.device.state().shuffle = Some(seed);
        let format = SecondStage::new(39).expect("39 bits are a width");
        let table = Table::new(format, Heap).expect("there is memory");
        let table = Arc::new(TableDomain::new(table, NoHardware));
        let attached = world.ioas.attach(Arc::clone(&table) as _);
        attached.expect("it fits");
        let runs = Simulated::new(PageSize::KIB_4, 128).scattered(5, 4);
        Self {
            world,
            table,
            runs: Pages::new(Arc::new(runs) as Arc<dyn Source>, None),
            numbers,
            areas: Vec::new(),
            seen: BTreeSet::new(),
        }
    }

    fn iova(&mut self) -> Iova {
        Iova::new(BASE + self.numbers.below(PAGE_COUNT) * PAGE)
    }

    fn prot(&mut self) -> Prot {
        [Prot::R, Prot::W, Prot::RW][self.numbers.below(3) as usize]
    }

    /// Returns a range that was an area not long ago, or one page.
    fn range(&mut self) -> IovaRange {
        let iova = self.iova();
        let recent = &self.areas[self.areas.len().saturating_sub(16)..];
        match recent.len() as u64 {
            0 => range(iova.get(), PAGE),
            count => recent[self.numbers.below(count) as usize],
        }
    }

    fn step(&mut self) {
        let choice = self.numbers.below(20);
        let (name, is_done) = match choice {
            0..7 => {
                let len = (1 + self.numbers.below(12)) * PAGE;
                let pages = [&self.world.pages, &self.runs][self.numbers.below(2) as usize];
                let mapping = Mapping {
                    pages: &Arc::clone(pages),
                    offset: self.numbers.below(100) * PAGE,
                    len,
                    prot: self.prot(),
                    place: Place::Fixed(self.iova()),
                };
                let mapped = self.world.ioas.map(mapping);
                self.areas.extend(mapped.as_ref().ok());
                ("map", mapped.is_ok())
            }
            7..11 => {
                let range = self.range();
                (
                    "unmap",
                    self.world.ioas.unmap(range, Holes::Refused).is_ok(),
                )
            }
            11..14 => {
                let iova = self.iova();
                let split = self.world.ioas.split(iova);
                let area = self
                    .areas
                    .iter()
                    .rev()
                    .find(|area| area.contains_addr(iova));
                if let Some(&area) = area.filter(|area| area.start() < iova && split.is_ok()) {
                    let lower = range(area.start().get(), iova.get() - area.start().get());
                    let upper = IovaRange::new(iova, area.last());
                    self.areas.push(lower);
                    self.areas.extend(upper);
                }
                ("split", split.is_ok())
            }
            14..16 => {
                let (range, prot) = (self.range(), self.prot());
                ("protect", self.world.ioas.protect(range, prot).is_ok())
            }
            16..18 => {
                let (range, to) = (self.range(), Place::Fixed(self.iova()));
                let moved = self.world.ioas.remap(range, to);
                self.areas.extend(moved.as_ref().ok());
                ("remap", moved.is_ok())
            }
            18 => {
                let endpoint = 1 + self.numbers.below(2) as u32;
                let is_attached = self.world.device.state().endpoints[&endpoint].is_some();
                if is_attached {
                    ("detach", self.world.domain.detach(endpoint).is_ok())
                } else {
                    ("attach", self.world.domain.attach(endpoint).is_ok())
                }
            }
            _ => {
                let bytes = self.world.ioas.unmap_all();
                ("unmap all", bytes.is_ok())
            }
        };
        self.seen.insert((name, is_done));
    }

    /// Checks that devices reach the same through both.
    fn check(&self, context: &str) {
        let device = &self.world.device;
        let attached: Vec<u32> = {
            let state = device.state();
            let in_domain =
                |(&endpoint, &of): (&u32, &Option<u32>)| (of == Some(NUMBER)).then_some(endpoint);
            state.endpoints.iter().filter_map(in_domain).collect()
        };
        assert_eq!(attached.len(), self.world.domain.endpoint_count());
        for iova in (BASE..BASE + 2 * PAGE_COUNT * PAGE).step_by(PAGE as usize) {
            let expected = self.table.table().lookup(Iova::new(iova)).map(|found| {
                let flags =
                    u32::from(found.prot().can_read()) | u32::from(found.prot().can_write()) << 1;
                (found.oa().get(), flags)
            });
            for &endpoint in &attached {
                assert_eq!(
                    device.translate(endpoint, iova),
                    expected,
                    "{context}: {iova:#x}"
                );
            }
        }
    }
}

/// Runs random operations, with requests that fail now and then if `has_faults`.
fn run(seed: u64, step_count: u64, has_faults: bool) -> BTreeSet<(&'static str, bool)> {
    let mut pair = Pair::new(seed);
    for step in 0..step_count {
        let is_faulty = has_faults && pair.numbers.below(3) == 0;
        if is_faulty {
            let kind = [MAP, UNMAP][pair.numbers.below(2) as usize];
            let fault = [
                Fault::Status(NO_MEMORY),
                Fault::Status(RANGE),
                Fault::Status(DEVICE_ERROR),
                Fault::DoneBut(DEVICE_ERROR),
                Fault::Empty,
            ][pair.numbers.below(5) as usize];
            let left = pair.numbers.below(4);
            let is_lasting = kind == UNMAP && pair.numbers.below(4) == 0;
            pair.world.device.order(kind, left, fault, is_lasting);
        }
        pair.step();
        if is_faulty {
            pair.world.device.heal();
            let left = pair.world.ioas.retry_quarantined();
            assert_eq!(left, Quarantined::default(), "seed {seed}, step {step}");
            // What an endpoint did not get, or was lost where the device refused twice.
            pair.world.domain.refill().expect("nothing fails now");
        }
        pair.check(&format!("seed {seed}, step {step}"));
    }
    pair.world.ioas.unmap_all().expect("nothing is in the way");
    pair.world.assert_empty();
    pair.world.device.assert_clean();
    pair.seen
}

const SEED_COUNT: u64 = if cfg!(miri) { 1 } else { 24 };
const STEP_COUNT: u64 = if cfg!(miri) { 20 } else { 300 };

#[test]
fn a_device_and_a_table_stay_equal() {
    let mut seen = BTreeSet::new();
    for seed in 1..=SEED_COUNT {
        seen.append(&mut run(seed, STEP_COUNT, false));
    }
    if !cfg!(miri) {
        for name in [
            "map", "unmap", "split", "protect", "remap", "attach", "detach",
        ] {
            assert!(seen.contains(&(name, true)), "no {name} in {seen:?}");
        }
    }
}

#[test]
fn a_device_and_a_table_stay_equal_when_requests_fail() {
    let mut seen = BTreeSet::new();
    for seed in 101..101 + SEED_COUNT {
        seen.append(&mut run(seed, STEP_COUNT, true));
    }
    if !cfg!(miri) {
        for name in ["map", "unmap", "protect", "remap", "attach", "unmap all"] {
            assert!(
                seen.contains(&(name, false)),
                "no {name} failed in {seen:?}"
            );
        }
    }
}
