//! How long a plan takes: from what an unmap removed to the entries of a queue.

use std::hint::black_box;

use iopt::claim::Claim;
use iopt::invalidation::plan::{Planner, amd, riscv, smmuv3, vtd};
use iopt::invalidation::{Changes, NoHardware};
use iopt::mem::Heap;
use iopt::radix::{Table, UnmapPolicy};
use iopt_formats::armv8::Granule;
use iopt_formats::command::Narrow;
use iopt_formats::vtd::SecondStage;
use iopt_formats::{IovaRange, Oa, Prot};

use crate::clock;
use crate::paired::{Side, Turns};
use crate::row::Row;
use crate::subject::range;
use crate::workload::{FIRST_IOVA, Phase, Times};

/// Plans between two looks at the machine's clock.
const PLAN_COUNT: u32 = 1000;

const KIB_4: u64 = 1 << 12;
const MIB_2: u64 = 1 << 21;

/// What was removed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Removal {
    Page,
    Pages64,
    Block,
    Scattered,
}

impl Removal {
    const ALL: [Self; 4] = [Self::Page, Self::Pages64, Self::Block, Self::Scattered];

    const fn as_str(self) -> &'static str {
        match self {
            Self::Page => "1 page",
            Self::Pages64 => "64 pages",
            Self::Block => "2 MiB",
            Self::Scattered => "33 pages in 64 MiB",
        }
    }

    /// Maps, unmaps, and returns what the hardware has to be told.
    fn changes(self) -> Changes {
        let table = Table::new(SecondStage::new(48).expect("48 bits are legal"), Heap);
        let table = table.expect("there is memory for a root");
        let all = range(FIRST_IOVA, 1 << 30);
        let mut claim: Claim = table.claim(all).expect("nobody else has it");
        let mut mapper = table.mapper(&mut claim).expect("it is the table's");
        let mut map = |range: IovaRange, oa: u64| {
            let mapped = mapper.map(range, Oa::new(oa), Prot::RW.cached());
            let sync = mapped.expect("nothing is mapped there");
            sync.sync(&NoHardware).expect("nothing can fail");
        };
        let removed = match self {
            Self::Page => range(FIRST_IOVA + 5 * KIB_4, KIB_4),
            Self::Pages64 => range(FIRST_IOVA + 64 * KIB_4, 64 * KIB_4),
            Self::Block => range(FIRST_IOVA + MIB_2, MIB_2),
            Self::Scattered => range(FIRST_IOVA, 32 * MIB_2),
        };
        if self == Self::Scattered {
            for block in 0..33 {
                let page = block * 496 + block * 167 % 496;
                map(range(FIRST_IOVA + page * KIB_4, KIB_4), (1 << 32) + KIB_4);
            }
        } else if self == Self::Block {
            map(removed, 1 << 32);
        } else {
            map(removed, (1 << 32) + KIB_4);
        }
        let unmapped = mapper.unmap(removed, UnmapPolicy::Sparse);
        let gather = unmapped.expect("there is memory").gather;
        let changes = *gather.changes();
        gather.sync(&NoHardware).expect("nothing can fail");
        changes
    }
}

/// Measures every planner.
pub fn measure() -> Vec<Row> {
    let with_ranges = |has_ranges| smmuv3::Smmuv3 {
        features: iopt_formats::command::smmuv3::Features {
            has_range_invalidation: has_ranges,
            ..Default::default()
        },
        ..Default::default()
    };
    let smmu_tag = smmuv3::Tag::Stage1 {
        vmid: 0,
        asid: 1,
        granule: Granule::Kib4,
    };
    let vtd = vtd::Vtd {
        has_blocks: true,
        max_order: 18,
        has_caching_mode: false,
        has_write_buffer: false,
        has_read_drain: true,
        has_write_drain: true,
    };
    let amd = amd::Amd {
        has_absent_entries: false,
    };
    let amd_tag = amd::Tag::Iotlb {
        domain_id: 1,
        pasid: None,
    };
    let riscv = |has_ranges| {
        let mut riscv = riscv::Riscv::default();
        riscv.features.has_ranges = has_ranges;
        riscv
    };
    let riscv_tag = riscv::Tag::FirstStage {
        gscid: None,
        pscid: Narrow::<20>::new(1).unwrap_or(Narrow::MAX),
    };
    let mut rows = of("smmuv3, ranges", &with_ranges(true), smmu_tag);
    rows.extend(of("smmuv3, no ranges", &with_ranges(false), smmu_tag));
    rows.extend(of("vtd", &vtd, vtd::Tag::SecondStage { domain_id: 1 }));
    rows.extend(of("amd", &amd, amd_tag));
    rows.extend(of("riscv, ranges", &riscv(true), riscv_tag));
    rows.extend(of("riscv, no ranges", &riscv(false), riscv_tag));
    rows
}

fn of<P: Planner>(name: &str, planner: &P, tag: P::Tag) -> Vec<Row> {
    let changes = Removal::ALL.map(|removal| (removal, removal.changes()));
    let plan = |changes: &Changes| {
        let mut command_count = 0;
        planner.plan(black_box(&tag), changes, |command| {
            black_box(command);
            command_count += 1;
        });
        command_count
    };
    let plan = &plan;
    let side = |(removal, changes): (Removal, Changes)| {
        Side::new(removal, move || {
            let work = || {
                for _ in 0..PLAN_COUNT {
                    black_box(plan(black_box(&changes)));
                }
            };
            Times {
                map: clock::time(work) / f64::from(PLAN_COUNT),
                ..Times::default()
            }
        })
    };
    let mut sides = changes.map(side);
    let yardstick = (Removal::Page, Phase::Map);
    let turns = Turns::measure(&mut sides, &[yardstick]);
    let row = |(removal, changes): (Removal, Changes)| {
        let ns = turns.compare((removal, Phase::Map), yardstick).subject_ns;
        Row::new(name, removal.as_str(), ns, "ns a plan")
            .beside("commands", f64::from(plan(&changes)))
    };
    changes.map(row).into()
}
