//! What an IOMMU is told for every kind of change, against a reading of the commands of its own.

use alloc::vec;
use alloc::vec::Vec;

use iopt_formats::{Level, PageSize, PageSizes};

use super::*;
use crate::invalidation::plan::testing::Numbers;

const PLAIN: Riscv = Riscv {
    features: Features {
        has_non_leaf: false,
        has_ranges: false,
        has_ats: true,
        has_wires: false,
    },
    needs_map_invalidation: false,
};

const NON_LEAF: Riscv = Riscv {
    features: Features {
        has_non_leaf: true,
        ..PLAIN.features
    },
    ..PLAIN
};

const RANGES: Riscv = Riscv {
    features: Features {
        has_ranges: true,
        ..NON_LEAF.features
    },
    ..PLAIN
};

const FUNCTION: Function = Function {
    segment: None,
    requester: 0x100,
};

fn first_stage() -> Tag {
    Tag::FirstStage {
        gscid: Some(4),
        pscid: pscid(),
    }
}

fn pscid() -> Narrow<20> {
    Narrow::new(5).expect("20 bits")
}

fn range(start: u64, len: u64) -> IovaRange {
    IovaRange::with_len(Iova::new(start), len).expect("the range is in the space")
}

/// Leaves of sizes 2^`lg2` were removed.
fn removed(start: u64, len: u64, lg2: &[u8]) -> Changes {
    let sizes = lg2.iter().fold(PageSizes::EMPTY, |sizes, &lg2| {
        sizes.with(PageSize::from_lg2(lg2))
    });
    Changes::leaves(range(start, len), sizes, Kind::Removed)
}

fn with_table(mut changes: Changes, level: u8) -> Changes {
    let range = changes.range().expect("something changed");
    changes.add_table(range, Level(level));
    changes
}

fn plan(iommu: Riscv, tag: Tag, changes: &Changes) -> Vec<Command> {
    let mut commands = Vec::new();
    iommu.plan(&tag, changes, |command| commands.push(command));
    for command in &commands {
        assert_eq!(command.check(iommu.features), Ok(()), "{command:?}");
        assert_eq!(Command::decode(command.encode()), Ok(*command));
    }
    commands
}

/// The targets for a first stage; `None` is everything.
fn targets(iommu: Riscv, changes: &Changes) -> Vec<Option<Target>> {
    plan(iommu, first_stage(), changes)
        .into_iter()
        .map(|command| match command {
            Command::IotinvalVma {
                gscid: Some(4),
                pscid: Some(space),
                target,
            } if space == pscid() => target,
            other => panic!("{other:?} is for somebody else"),
        })
        .collect()
}

#[expect(clippy::unnecessary_wraps, reason = "commands have it so")]
fn target(address: u64, pages_lg2: u8, is_leaf: bool) -> Option<Target> {
    Some(Target {
        span: Span::new(address, pages_lg2).expect("at most 52"),
        is_leaf,
    })
}

#[test]
fn each_leaf_has_its_command() {
    assert_eq!(
        targets(PLAIN, &removed(0x5000, 0x2000, &[12])),
        [target(0x5000, 0, true), target(0x6000, 0, true)]
    );
    assert_eq!(
        targets(PLAIN, &removed(0x4000_0000, 2 << 21, &[21])),
        [target(0x4000_0000, 0, true), target(0x4020_0000, 0, true)]
    );
    assert_eq!(targets(PLAIN, &removed(0, 3 << 30, &[30])).len(), 3);
    // The smallest decides, and a 64 KiB page is sixteen.
    assert_eq!(targets(PLAIN, &removed(0, 0x2_0000, &[12, 16])).len(), 32);
    assert_eq!(targets(PLAIN, &removed(0, 0x2_0000, &[16])).len(), 32);
    let top = 0xffff_ffff_ffff_f000;
    assert_eq!(
        targets(PLAIN, &removed(top, 0x1000, &[12])),
        [target(top, 0, true)]
    );
}

#[test]
fn many_commands_become_one_for_the_address_space() {
    assert_eq!(
        targets(PLAIN, &removed(0x1000, 511 << 12, &[12])).len(),
        511
    );
    assert_eq!(targets(PLAIN, &removed(0x1000, 512 << 12, &[12])), [None]);
    let full = Changes::leaves(IovaRange::FULL, PageSizes::ALL, Kind::Removed);
    assert_eq!(targets(PLAIN, &full), [None]);
    assert_eq!(targets(RANGES, &full), [None]);
}

#[test]
fn tables_need_everything_or_the_extension() {
    let leaves_and_table = with_table(removed(0x20_0000, 0x20_0000, &[12]), 1);
    let only_table = with_table(removed(0x4000_0000, 0x60_0000, &[]), 1);
    let upper_table = with_table(removed(0x4000_0000, 0x4000_0000, &[]), 2);
    let replaced = removed(0x20_0000, 0x20_0000, &[21]).with_kind(Kind::Replaced);
    for changes in [&leaves_and_table, &only_table, &upper_table, &replaced] {
        assert_eq!(targets(PLAIN, changes), [None]);
        let told = targets(RANGES, changes);
        assert!(told.iter().flatten().all(|told| !told.is_leaf));
    }
    assert_eq!(targets(NON_LEAF, &leaves_and_table), [None]);
    assert_eq!(
        targets(NON_LEAF, &only_table),
        [0x4000_0000, 0x4020_0000, 0x4040_0000].map(|at| target(at, 0, false))
    );
    assert_eq!(
        targets(NON_LEAF, &upper_table),
        [target(0x4000_0000, 0, false)]
    );
    assert_eq!(targets(NON_LEAF, &replaced), [target(0x20_0000, 0, false)]);
    // A larger leaf in the place of tables that nobody named.
    let large = removed(0x4000_0000, 0x4000_0000, &[30]).with_kind(Kind::Replaced);
    assert_eq!(targets(NON_LEAF, &large), [None]);
    assert_eq!(
        targets(RANGES, &leaves_and_table),
        [target(0x20_0000, 9, false)]
    );
}

#[test]
fn a_range_is_one_span_or_two() {
    let told = |start, len| targets(RANGES, &removed(start, len, &[12]));
    assert_eq!(told(0x5000, 0x1000), [target(0x5000, 0, true)]);
    assert_eq!(told(0x8000, 0x4000), [target(0x8000, 2, true)]);
    assert_eq!(
        told(0x7000, 0x2000),
        [target(0x7000, 0, true), target(0x8000, 0, true)]
    );
    // Three pages, then five.
    assert_eq!(
        told(0x5000, 0x8000),
        [target(0x4000, 2, true), target(0x8000, 3, true)]
    );
    let half = 1 << 38;
    assert_eq!(told(half, half), [target(half, 26, true)]);
    assert_eq!(told(0, 2 * half), [None]);
    assert_eq!(told(0xffff_ff00_0000_0000, half).len(), 1);
    let around = 0x4000_0000 - 0x1000;
    assert_eq!(told(around, 0x2000).len(), 2);
    assert_eq!(
        told(0xffff_ffff_ffff_d000, 0x3000),
        [
            target(0xffff_ffff_ffff_d000, 0, true),
            target(0xffff_ffff_ffff_e000, 1, true)
        ]
    );
}

#[test]
#[cfg_attr(miri, ignore = "arithmetic alone, and much of it")]
fn spans_hold_every_range_and_less_than_twice_as_much() {
    let mut numbers = Numbers::new(5);
    let mut random = |below| numbers.below(below);
    let mut two_count = 0;
    for case in 0..60_000 {
        // Every range of the first 64 pages or so, then others.
        let (first, count) = if case < 4096 {
            (case / 64, case % 64 + 1)
        } else {
            let most = 1 << random(26);
            (random(1 << 30), random(most) + 1)
        };
        let told = targets(RANGES, &removed(first << 12, count << 12, &[12]));
        let mut spans: Vec<_> = told
            .iter()
            .map(|target| {
                let target = target.expect("the range is small");
                let start = target.span.start() >> 12;
                (start, start + (1 << target.span.order()))
            })
            .collect();
        spans.sort_unstable();
        assert!(spans[0].0 <= first, "{first} {count}: {spans:?}");
        assert!(
            spans[spans.len() - 1].1 >= first + count,
            "{first} {count}: {spans:?}"
        );
        assert!(
            spans.windows(2).all(|pair| pair[1].0 == pair[0].1),
            "{spans:?}"
        );
        let held: u64 = spans.iter().map(|span| span.1 - span.0).sum();
        assert!(held < 2 * count, "{first} {count}: {spans:?}");
        assert!(told.len() <= 2);
        two_count += usize::from(told.len() == 2);
    }
    assert!(two_count > 1000);
}

#[test]
fn what_came_is_told_only_to_emulators_that_ask() {
    let added = removed(0x5000, 0x1000, &[12]).with_kind(Kind::Added);
    let asking = Riscv {
        needs_map_invalidation: true,
        ..PLAIN
    };
    let (gscid, pasid) = (4, None);
    let combined = Tag::Combined { gscid };
    let ats = Tag::Ats {
        function: FUNCTION,
        pasid,
    };
    for tag in [first_stage(), Tag::SecondStage { gscid }, combined, ats] {
        assert_eq!(plan(PLAIN, tag, &added), []);
        assert_eq!(plan(asking, tag, &Changes::none(Kind::Added)), []);
    }
    // What was absent may have been an item of any level, and not where the leaf is that came.
    assert_eq!(targets(asking, &added), [None]);
    let naming = Riscv {
        needs_map_invalidation: true,
        ..NON_LEAF
    };
    assert_eq!(targets(naming, &added), [target(0x5000, 0, false)]);
    let group = removed(0x1_0000, 0x1_0000, &[16]).with_kind(Kind::Added);
    let pages = (0..16).map(|page| target(0x1_0000 + (page << 12), 0, false));
    assert_eq!(targets(naming, &group), pages.collect::<Vec<_>>());
    let block = removed(0x20_0000, 0x20_0000, &[21]).with_kind(Kind::Added);
    assert_eq!(targets(naming, &block), [None]);
    assert_eq!(plan(asking, combined, &added).len(), 1);
    // Devices do not cache that there is no translation.
    assert_eq!(plan(asking, ats, &added), []);
}

#[test]
fn a_second_stage_takes_the_first_stages_of_its_guest_with_it() {
    let gscid = 4;
    let device = Narrow::new(0x100).expect("24 bits");
    let pages = removed(0x5000, 0x1000, &[12]);
    let table = with_table(removed(0, 0x20_0000, &[]), 1);
    assert_eq!(
        plan(PLAIN, Tag::SecondStage { gscid }, &pages),
        [Command::IotinvalGvma {
            gscid: Some(gscid),
            target: target(0x5000, 0, true)
        }]
    );
    assert_eq!(
        plan(PLAIN, Tag::SecondStage { gscid }, &table),
        [Command::IotinvalGvma {
            gscid: Some(gscid),
            target: None
        }]
    );
    assert_eq!(
        plan(PLAIN, Tag::Combined { gscid }, &pages),
        [Command::IotinvalVma {
            gscid: Some(gscid),
            pscid: None,
            target: None
        }]
    );
    assert_eq!(
        plan(PLAIN, Tag::Directory { device }, &pages),
        [Command::IodirInvalDdt {
            device: Some(device)
        }]
    );
    // No translation went with an empty table.
    assert_eq!(plan(PLAIN, Tag::Combined { gscid }, &table), []);
    assert_eq!(plan(PLAIN, Tag::Directory { device }, &table), []);
}

#[test]
fn devices_are_told_the_smallest_span_that_holds_the_change() {
    let pasid = Pasid::new(7);
    let tag = Tag::Ats {
        function: FUNCTION,
        pasid,
    };
    let span = |address, pages_lg2| {
        vec![Command::AtsInval {
            function: FUNCTION,
            pasid,
            is_global: false,
            span: Span::new(address, pages_lg2).expect("at most 52"),
        }]
    };
    assert_eq!(
        plan(PLAIN, tag, &removed(0x8000, 0x4000, &[12])),
        span(0x8000, 2)
    );
    assert_eq!(
        plan(PLAIN, tag, &removed(0x7000, 0x4000, &[12])),
        span(0, 4)
    );
    let full = Changes::leaves(IovaRange::FULL, PageSizes::ALL, Kind::Removed);
    assert_eq!(plan(PLAIN, tag, &full), span(0, 52));
    let table = with_table(removed(0, 0x20_0000, &[]), 1);
    assert_eq!(plan(PLAIN, tag, &table), []);
    let all = Tag::AtsFull {
        function: FUNCTION,
        pasid,
    };
    assert_eq!(
        plan(PLAIN, all, &removed(0x8000, 0x4000, &[12])),
        span(0, 52)
    );
    assert_eq!(plan(PLAIN, all, &table), []);
}

#[test]
fn the_order_of_tags_is_that_of_their_phases() {
    let pasid = None;
    let mut tags = [
        Tag::AtsFull {
            function: FUNCTION,
            pasid,
        },
        Tag::Ats {
            function: FUNCTION,
            pasid,
        },
        Tag::Combined { gscid: 0 },
        Tag::Directory {
            device: Narrow::MAX,
        },
        Tag::SecondStage { gscid: 9 },
        first_stage(),
    ];
    tags.sort_unstable();
    let phases = tags.map(|tag| Riscv::phase(&tag));
    assert!(phases.is_sorted());
    assert_eq!(phases[1], Phase::Iotlb);
    assert_eq!(phases[2..4], [Phase::Contexts, Phase::CombinedEntries]);
    assert_eq!(phases[5], Phase::DeviceTlb);
    // Addresses in contexts are looked up anew before what is walked from them.
    assert!(matches!(tags[2], Tag::Directory { .. }));
}
