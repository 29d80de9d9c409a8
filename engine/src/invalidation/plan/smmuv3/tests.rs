//! What an SMMU is told for every kind of change, against a reading of the commands of its own.

mod random;

use alloc::vec;
use alloc::vec::Vec;

use iopt_formats::PageSize;

use super::*;

const KIB4: Granule = Granule::Kib4;
const KIB16: Granule = Granule::Kib16;
const KIB64: Granule = Granule::Kib64;

const WITHOUT_RANGES: Smmuv3 = Smmuv3 {
    features: Features {
        has_range_invalidation: false,
        has_wide_descriptors: false,
    },
    cover: Cover::Overlapping,
};

const WITH_RANGES: Smmuv3 = Smmuv3 {
    features: Features {
        has_range_invalidation: true,
        ..WITHOUT_RANGES.features
    },
    ..WITHOUT_RANGES
};

const DISJOINT: Smmuv3 = Smmuv3 {
    cover: Cover::Disjoint,
    ..WITH_RANGES
};

const WIDE: Smmuv3 = Smmuv3 {
    features: Features {
        has_range_invalidation: true,
        has_wide_descriptors: true,
    },
    ..WITH_RANGES
};

fn stage1(granule: Granule) -> Tag {
    Tag::Stage1 {
        vmid: 1,
        asid: 2,
        granule,
    }
}

fn range(start: u64, len: u64) -> IovaRange {
    IovaRange::with_len(Iova::new(start), len).expect("the range is in the space")
}

fn sizes(lg2: &[u8]) -> PageSizes {
    lg2.iter().fold(PageSizes::EMPTY, |sizes, &lg2| {
        sizes.with(PageSize::from_lg2(lg2))
    })
}

/// Leaves of sizes 2^`lg2` were removed.
fn removed(start: u64, len: u64, lg2: &[u8]) -> Changes {
    Changes::leaves(range(start, len), sizes(lg2), Kind::Removed)
}

fn with_table(mut changes: Changes, level: u8) -> Changes {
    let range = changes.range().expect("something changed");
    changes.add_table(range, Level(level));
    changes
}

/// Only a table was unlinked.
fn table(start: u64, len: u64, level: u8) -> Changes {
    with_table(removed(start, len, &[]), level)
}

fn plan(smmu: Smmuv3, tag: Tag, changes: &Changes) -> Vec<Command> {
    let mut commands = Vec::new();
    smmu.plan(&tag, changes, |command| commands.push(command));
    for command in &commands {
        assert_eq!(command.check(smmu.features), Ok(()), "{command:?}");
        assert_eq!(Command::decode(command.encode()), Ok(*command));
    }
    commands
}

fn targets(smmu: Smmuv3, granule: Granule, changes: &Changes) -> Vec<Target> {
    plan(smmu, stage1(granule), changes)
        .iter()
        .map(|command| command.target().expect("only some addresses are told"))
        .collect()
}

fn is_whole(smmu: Smmuv3, granule: Granule, changes: &Changes) -> bool {
    plan(smmu, stage1(granule), changes) == [Command::TlbiNhAsid { vmid: 1, asid: 2 }]
}

/// Address, NUM, SCALE and TTL of the targets that are ranges.
fn ranges(targets: &[Target]) -> Vec<(u64, u32, u8, u8)> {
    targets
        .iter()
        .map(|target| {
            let range = target.range.expect("a range");
            let ttl = range.level().map_or(0, |level| 3 - level.0);
            (target.address.get(), range.num().get(), range.scale(), ttl)
        })
        .collect()
}

#[test]
fn without_ranges_each_leaf_has_its_command() {
    let told = targets(WITHOUT_RANGES, KIB4, &removed(0x5000, 0x3000, &[12]));
    let expected = [0x5000, 0x6000, 0x7000].map(|at| Target::single(Iova::new(at), true));
    assert_eq!(told, expected);

    let told = targets(WITHOUT_RANGES, KIB4, &removed(0x4000_0000, 3 << 21, &[21]));
    let expected =
        [0x4000_0000, 0x4020_0000, 0x4040_0000].map(|at| Target::single(Iova::new(at), true));
    assert_eq!(told, expected);

    // The smallest leaf decides.
    let told = targets(
        WITHOUT_RANGES,
        KIB64,
        &removed(0x2000_0000, 0x10_0000, &[16, 29]),
    );
    assert_eq!(told.len(), 16);
}

#[test]
fn the_items_of_a_contiguous_group_are_told_one_by_one() {
    // Hardware may have cached 16 pages, or 16 blocks, instead of the group.
    let told = targets(WITHOUT_RANGES, KIB4, &removed(0x1_0000, 0x1_0000, &[16]));
    assert_eq!(told.len(), 16);
    assert_eq!(told[15].address, Iova::new(0x1_f000));
    let told = targets(WITHOUT_RANGES, KIB4, &removed(0, 32 << 20, &[25]));
    assert_eq!(told.len(), 16);
    assert_eq!(told[1].address, Iova::new(2 << 20));
}

#[test]
#[cfg_attr(miri, ignore = "arithmetic alone, and much of it")]
fn many_commands_become_one_for_the_address_space() {
    for (granule, limit) in [(KIB4, 512), (KIB16, 2048), (KIB64, 8192)] {
        let page_lg2 = granule.lg2();
        let pages = |count: u64| removed(0, count << page_lg2, &[page_lg2]);
        assert_eq!(
            targets(WITHOUT_RANGES, granule, &pages(limit - 1)).len() as u64,
            limit - 1
        );
        assert!(is_whole(WITHOUT_RANGES, granule, &pages(limit)));
    }
    let full = Changes::leaves(IovaRange::FULL, sizes(&[12]), Kind::Removed);
    assert!(is_whole(WITHOUT_RANGES, KIB4, &full));
    for smmu in [WITH_RANGES, DISJOINT, WIDE] {
        assert!(is_whole(smmu, KIB4, &full));
        let largest = smmu.cover.max_count();
        assert!(!is_whole(smmu, KIB4, &removed(0, largest << 12, &[12])));
        assert!(is_whole(
            smmu,
            KIB4,
            &removed(0, (largest + 1) << 12, &[12])
        ));
    }
}

#[test]
fn the_whole_of_every_tag_has_its_command() {
    let full = Changes::leaves(IovaRange::FULL, sizes(&[12]), Kind::Removed);
    let whole = |tag| plan(WITHOUT_RANGES, tag, &full);
    assert_eq!(
        whole(Tag::Stage2 {
            vmid: 7,
            granule: KIB4
        }),
        [Command::TlbiS12Vmall { vmid: 7 }]
    );
    assert_eq!(
        whole(Tag::El2 {
            asid: Some(5),
            granule: KIB4
        }),
        [Command::TlbiEl2Asid { asid: 5 }]
    );
    assert_eq!(
        whole(Tag::El2 {
            asid: None,
            granule: KIB4
        }),
        [Command::TlbiEl2All]
    );
}

#[test]
fn each_regime_has_its_command_by_address() {
    let changes = removed(0x5000, 0x1000, &[12]);
    let target = Target::single(Iova::new(0x5000), true);
    let one = |tag| plan(WITHOUT_RANGES, tag, &changes);
    let (vmid, granule) = (7, KIB4);
    assert_eq!(
        one(Tag::Stage1 {
            vmid,
            asid: 9,
            granule
        }),
        [Command::TlbiNhVa {
            vmid,
            asid: 9,
            target
        }]
    );
    assert_eq!(
        one(Tag::Stage2 { vmid, granule }),
        [Command::TlbiS2Ipa { vmid, target }]
    );
    for asid in [None, Some(5)] {
        assert_eq!(
            one(Tag::El2 { asid, granule }),
            [Command::TlbiEl2Va {
                asid: asid.unwrap_or(0),
                target
            }]
        );
    }
}

#[test]
fn what_came_needs_no_command() {
    let added = removed(0x5000, 0x1000, &[12]).with_kind(Kind::Added);
    for tag in [
        stage1(KIB4),
        Tag::Stage2 {
            vmid: 0,
            granule: KIB4,
        },
        Tag::Combined {
            vmid: 0,
            granule: KIB4,
        },
        Tag::Ats {
            stream: 0,
            substream: None,
        },
        Tag::AtsFull { stream: 0 },
    ] {
        for smmu in [WITHOUT_RANGES, WITH_RANGES] {
            assert_eq!(plan(smmu, tag, &added), []);
            assert_eq!(plan(smmu, tag, &Changes::none(Kind::Removed)), []);
        }
    }
}

#[test]
fn pointers_to_tables_stay_only_if_no_table_went() {
    for smmu in [WITHOUT_RANGES, WITH_RANGES, DISJOINT] {
        let leaves = removed(0x20_0000, 0x20_0000, &[12, 21]);
        assert!(
            targets(smmu, KIB4, &removed(0, 0x5000, &[12]))
                .iter()
                .all(|told| told.is_leaf)
        );
        for changes in [
            with_table(removed(0x20_0000, 0x1f_f000, &[12]), 1),
            table(0x20_0000, 0x20_0000, 1),
            removed(0x20_0000, 0x20_0000, &[21]).with_kind(Kind::Replaced),
        ] {
            let told = targets(smmu, KIB4, &changes);
            assert!(told.iter().all(|told| !told.is_leaf));
            assert!(
                told.iter()
                    .all(|told| told.range.is_none_or(|range| range.level().is_none()))
            );
        }
        assert!(smmu == WITHOUT_RANGES || targets(smmu, KIB4, &leaves)[0].is_leaf);
    }
}

#[test]
fn tables_are_told_in_steps_of_the_lowest_of_them() {
    let told = targets(WITHOUT_RANGES, KIB4, &table(0x4000_0000, 0x4000_0000, 2));
    assert_eq!(told, [Target::single(Iova::new(0x4000_0000), false)]);
    let told = targets(WITHOUT_RANGES, KIB4, &table(0x4000_0000, 0x60_0000, 1));
    assert_eq!(told.len(), 3);
    // A leaf table below the table of level 2 needs all 512 steps.
    let both = with_table(table(0x4000_0000, 0x4000_0000, 2), 1);
    assert!(is_whole(WITHOUT_RANGES, KIB4, &both));
    // A larger leaf in the place of tables that nobody named.
    let replaced = removed(0x4000_0000, 0x4000_0000, &[30]).with_kind(Kind::Replaced);
    assert!(is_whole(WITHOUT_RANGES, KIB4, &replaced));
}

/// A3.16: the level.
#[test]
fn a_level_is_named_if_all_leaves_are_of_it() {
    let ttl = |smmu, granule, changes: &Changes| ranges(&targets(smmu, granule, changes))[0].3;
    for (granule, size, expected) in [
        (KIB4, 12, 3),
        (KIB4, 16, 3), // 16 pages
        (KIB4, 21, 2),
        (KIB4, 25, 2), // 16 blocks
        (KIB4, 30, 1),
        (KIB4, 34, 1), // 16 blocks
        (KIB4, 39, 0), // has no code
        (KIB16, 14, 3),
        (KIB16, 21, 3), // 128 pages
        (KIB16, 25, 2),
        (KIB16, 30, 2), // 32 blocks
        (KIB64, 16, 3),
        (KIB64, 21, 3), // 32 pages
        (KIB64, 29, 2),
        (KIB64, 34, 2), // 32 blocks
        (KIB64, 42, 1),
    ] {
        for smmu in [WITH_RANGES, DISJOINT, WIDE] {
            let changes = removed(1 << 45, 3 << size, &[size]);
            assert_eq!(ttl(smmu, granule, &changes), expected, "{granule:?} {size}");
        }
    }
    let large = removed(1 << 45, 1 << 36, &[36]);
    assert_eq!(ttl(WITH_RANGES, KIB16, &large), 0);
    assert_eq!(ttl(WIDE, KIB16, &large), 1);

    assert_eq!(ttl(WITH_RANGES, KIB4, &removed(0, 0x12_0000, &[12, 16])), 3);
    assert_eq!(ttl(WITH_RANGES, KIB4, &removed(0, 0x40_0000, &[12, 21])), 0);
    assert_eq!(ttl(WITH_RANGES, KIB4, &removed(0, 0x40_0000, &[16, 21])), 0);
    let tables = with_table(removed(0, 0x40_0000, &[12]), 1);
    assert_eq!(ttl(WITH_RANGES, KIB4, &tables), 0);
}

#[test]
fn a_range_starts_where_a_leaf_of_its_level_does() {
    // Changes may be wider than what changed.
    let told = targets(WITH_RANGES, KIB4, &removed(0x5000, 0x20_0000, &[21]));
    assert_eq!(ranges(&told), [(0, 0, 10, 2)]);
    let told = targets(WITH_RANGES, KIB4, &removed(0, 33 << 21, &[21]));
    assert_eq!(ranges(&told), [(0, 31, 9, 2), (1 << 21, 31, 9, 2)]);
}

#[test]
fn one_granule_without_a_level_is_told_as_one_address() {
    let page = with_table(removed(0x5000, 0x1000, &[12]), 1);
    assert_eq!(
        targets(WITH_RANGES, KIB4, &page),
        [Target::single(Iova::new(0x5000), false)]
    );
    // What Linux sends covers one granule more.
    assert_eq!(ranges(&targets(DISJOINT, KIB4, &page)), [(0x5000, 0, 1, 0)]);
    let pages = with_table(removed(0x5000, 33 << 12, &[12]), 1);
    assert_eq!(
        ranges(&targets(DISJOINT, KIB4, &pages)),
        [(0x5000, 16, 1, 0)]
    );
    // With a level it is legal.
    let leaf = removed(0x5000, 0x1000, &[12]);
    for smmu in [WITH_RANGES, DISJOINT] {
        assert_eq!(ranges(&targets(smmu, KIB4, &leaf)), [(0x5000, 0, 0, 3)]);
    }
}

#[test]
fn the_last_page_of_the_address_space_is_told() {
    let top = 0xffff_ffff_ffff_f000;
    let leaf = removed(top, 0x1000, &[12]);
    let with_tables = with_table(leaf, 1);
    assert_eq!(
        targets(WITHOUT_RANGES, KIB4, &leaf),
        [Target::single(Iova::new(top), true)]
    );
    assert_eq!(ranges(&targets(WITH_RANGES, KIB4, &leaf)), [(top, 0, 0, 3)]);
    assert_eq!(
        targets(WITH_RANGES, KIB4, &with_tables),
        [Target::single(Iova::new(top), false)]
    );
    // There is no granule behind it, so one before it is told, too.
    assert_eq!(
        ranges(&targets(DISJOINT, KIB4, &with_tables)),
        [(top - 0x1000, 0, 1, 0)]
    );
    let upper = removed(0xffff_8000_0000_0000, 511 << 12, &[12]);
    assert_eq!(
        ranges(&targets(WITH_RANGES, KIB4, &upper)),
        [
            (0xffff_8000_0000_0000, 31, 3, 3),
            (0xffff_8000_000f_f000, 31, 3, 3)
        ]
    );
}

#[test]
fn divided_groups_are_told_again_where_the_hardware_needs_it() {
    let smmu = Smmuv3 {
        cover: Cover::WholeGroups,
        ..WITH_RANGES
    };
    // The commands meet at page 40, inside of the group of 16 at page 32.
    let changes = removed(8 << 12, 63 << 12, &[12, 16]);
    assert_eq!(
        ranges(&targets(smmu, KIB4, &changes)),
        [
            (8 << 12, 31, 0, 3),
            (39 << 12, 31, 0, 3),
            (32 << 12, 0, 4, 3)
        ]
    );
    assert_eq!(targets(WITH_RANGES, KIB4, &changes).len(), 2);
    // No groups were among the leaves.
    assert_eq!(
        targets(smmu, KIB4, &removed(8 << 12, 63 << 12, &[12])).len(),
        2
    );
}

#[test]
fn what_two_stages_made_is_dropped_with_the_second() {
    let (vmid, granule) = (3, KIB4);
    let stage2 = Tag::Stage2 { vmid, granule };
    let combined = Tag::Combined { vmid, granule };
    let descriptors = Tag::Descriptors { stream: 7 };
    let read = Command::CfgiCdAll {
        stream: 7,
        is_secure: false,
    };
    let pages = removed(0x5000, 0x1000, &[12]);
    for smmu in [WITHOUT_RANGES, WITH_RANGES] {
        assert_eq!(plan(smmu, stage2, &pages).len(), 1);
        assert_eq!(plan(smmu, combined, &pages), [Command::TlbiNhAll { vmid }]);
        // What drops the whole VM drops them, too, but old CDs could make them again.
        let full = Changes::leaves(IovaRange::FULL, sizes(&[12]), Kind::Removed);
        assert_eq!(plan(smmu, stage2, &full), [Command::TlbiS12Vmall { vmid }]);
        assert_eq!(plan(smmu, combined, &full), [Command::TlbiNhAll { vmid }]);
        // No translation went with an empty table.
        assert_eq!(plan(smmu, combined, &table(0, 0x20_0000, 1)), []);
        // Nor was a CD found through it.
        assert_eq!(plan(smmu, descriptors, &table(0, 0x20_0000, 1)), []);
        assert_eq!(plan(smmu, descriptors, &pages), [read]);
        assert_eq!(plan(smmu, descriptors, &full), [read]);
    }
}

#[test]
fn devices_are_told_the_smallest_span_that_holds_the_change() {
    let told = |changes: &Changes| {
        plan(
            WITH_RANGES,
            Tag::Ats {
                stream: 6,
                substream: Pasid::new(1),
            },
            changes,
        )
    };
    let span = |address, pages_lg2| {
        vec![Command::AtcInv {
            stream: 6,
            substream: Pasid::new(1),
            is_global: false,
            address: Iova::new(address),
            span: AtcSpan::new(pages_lg2).expect("at most 52"),
        }]
    };
    assert_eq!(told(&removed(0x8000, 0x4000, &[12])), span(0x8000, 2));
    assert_eq!(told(&removed(0x7000, 0x4000, &[12])), span(0, 4));
    assert_eq!(told(&removed(0x7000, 0x1000, &[12])), span(0x7000, 0));
    let top = 0xffff_ffff_ffff_0000;
    assert_eq!(told(&removed(top, 0x1_0000, &[16])), span(top, 4));
    let full = Changes::leaves(IovaRange::FULL, sizes(&[12]), Kind::Removed);
    assert_eq!(told(&full), span(0, 52));
    assert_eq!(told(&table(0, 0x20_0000, 1)), []);
    assert_eq!(
        told(&removed(0, 0x20_0000, &[21]).with_kind(Kind::Replaced)),
        []
    );
    assert_eq!(
        plan(
            WITH_RANGES,
            Tag::AtsFull { stream: 6 },
            &removed(0x8000, 0x4000, &[12])
        ),
        [Command::AtcInv {
            stream: 6,
            substream: None,
            is_global: false,
            address: Iova::new(0),
            span: AtcSpan::ALL,
        }]
    );
}

#[test]
fn the_order_of_tags_is_that_of_their_phases() {
    let granule = KIB64;
    let mut tags = [
        Tag::AtsFull { stream: 0 },
        Tag::Descriptors { stream: 9 },
        Tag::Ats {
            stream: 9,
            substream: None,
        },
        Tag::Combined { vmid: 0, granule },
        Tag::Stage2 { vmid: 9, granule },
        Tag::El2 {
            asid: None,
            granule,
        },
        stage1(granule),
    ];
    tags.sort_unstable();
    let phases: Vec<_> = tags.iter().map(Smmuv3::phase).collect();
    assert!(phases.is_sorted());
    assert_eq!(phases[0], Phase::Iotlb);
    let middle = [Phase::Iotlb, Phase::Contexts, Phase::CombinedEntries];
    assert_eq!(phases[2..5], middle);
    assert_eq!(phases[6], Phase::DeviceTlb);
    // What a walk begins with goes before what it made.
    assert_eq!(tags[3], Tag::Descriptors { stream: 9 });
}
