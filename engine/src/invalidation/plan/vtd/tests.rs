//! Plans against a model of what the descriptors drop.

use std::vec::Vec;

use iopt_formats::command::vtd::QueueDepth;
use iopt_formats::{Level, PageSize, PageSizes};

use super::*;
use crate::invalidation::plan::testing::{Numbers, range};

const DOMAIN: u16 = 7;
const PASID: Pasid = Pasid::new(0xa_bcde).expect("20 bits");
const DEVICE: Device = Device {
    source_id: 0x100,
    physical_function: 0x110,
    queue_depth: QueueDepth::new(32),
};
const SECOND: Tag = Tag::SecondStage { domain_id: DOMAIN };
const FIRST: Tag = Tag::FirstStage {
    domain_id: DOMAIN,
    pasid: PASID,
};
const COMBINED: Tag = Tag::Combined { domain_id: DOMAIN };
const ATS: Tag = Tag::Ats {
    device: DEVICE,
    pasid: None,
};
const ATS_FULL: Tag = Tag::AtsFull {
    device: DEVICE,
    pasid: Some(PASID),
};

/// A unit that has all there is for leaving entries alone.
const UNIT: Vtd = Vtd {
    has_blocks: true,
    max_order: 18,
    has_caching_mode: false,
    has_write_buffer: false,
    has_read_drain: true,
    has_write_drain: true,
};

fn plan(unit: Vtd, tag: Tag, changes: &Changes) -> Vec<Descriptor> {
    let mut descriptors = Vec::new();
    unit.plan(&tag, changes, |descriptor| descriptors.push(descriptor));
    descriptors
}

fn leaves(range: IovaRange, kind: Kind) -> Changes {
    Changes::leaves(range, PageSizes::EMPTY.with(PageSize::KIB_4), kind)
}

/// Changes of leaves and of the tables that held them.
fn tables(range: IovaRange) -> Changes {
    let mut changes = leaves(range, Kind::Removed);
    changes.add_table(range, Level(1));
    changes
}

/// What a cache holds of the table under a tag: a leaf of any size, or a pointer to a table.
#[derive(Clone, Copy, Debug)]
struct Cached {
    range: IovaRange,
    is_table: bool,
}

/// Returns what a descriptor drops: the addresses, and whether tables too.
fn dropped(descriptor: Descriptor) -> (IovaRange, bool) {
    match descriptor {
        Descriptor::Iotlb {
            scope: IotlbScope::Domain { domain_id: DOMAIN },
            ..
        }
        | Descriptor::PasidIotlb {
            domain_id: DOMAIN,
            pasid: PASID,
            scope: PasidIotlbScope::All,
        } => (IovaRange::FULL, true),
        Descriptor::Iotlb {
            scope:
                IotlbScope::Pages {
                    domain_id: DOMAIN,
                    span,
                    is_leaf_only,
                },
            ..
        }
        | Descriptor::PasidIotlb {
            domain_id: DOMAIN,
            pasid: PASID,
            scope: PasidIotlbScope::Pages { span, is_leaf_only },
        } => (span.range(), !is_leaf_only),
        Descriptor::DeviceTlb { span, .. } | Descriptor::PasidDeviceTlb { span, .. } => {
            (span.range(), false)
        }
        other => panic!("{other:x?} drops nothing of the domain"),
    }
}

fn drops(descriptors: &[Descriptor], cached: Cached) -> bool {
    descriptors.iter().any(|&descriptor| {
        let (range, has_tables) = dropped(descriptor);
        range.overlaps(cached.range) && (has_tables || !cached.is_table)
    })
}

/// Checks that a plan drops all that may be cached of `changes`, in few descriptors that the unit has.
fn check(unit: Vtd, tag: Tag, changes: &Changes) {
    let descriptors = plan(unit, tag, changes);
    let range = changes.range().expect("something changed");
    assert!(!descriptors.is_empty() && descriptors.len() as u64 <= MAX_BLOCKS);
    // An entry that overlaps the range holds one of its pages: each is tried, alone and in larger entries.
    // Of long ranges only those near the ends, where plans go wrong.
    let (first, last) = (range.start().get() >> 12, range.last().get() >> 12);
    let near = (last - first).min(40);
    let near_both_ends = (0..=near).flat_map(|page| [first + page, last - page]);
    for page in near_both_ends {
        for order in [0, 1, 9, Span::MAX_ORDER] {
            let entry = Span::new(page << 12, order).expect("a valid order");
            let leaf = Cached {
                range: entry.range(),
                is_table: false,
            };
            assert!(drops(&descriptors, leaf), "{changes:x?}: {leaf:x?} stays");
            let table = Cached {
                is_table: true,
                ..leaf
            };
            let is_dropped = drops(&descriptors, table);
            let must = !changes.is_leaf_only() && Phase::Iotlb == Vtd::phase(&tag);
            assert!(is_dropped || !must, "{changes:x?}: {table:x?} stays");
        }
    }
    for descriptor in &descriptors {
        if let Descriptor::Iotlb {
            scope: IotlbScope::Pages { span, .. },
            ..
        } = descriptor
        {
            assert!(unit.has_blocks && span.order() <= unit.max_order);
        }
        assert_eq!(Descriptor::decode(descriptor.encode()), Ok(*descriptor));
    }
}

#[test]
#[cfg_attr(miri, ignore = "arithmetic alone, and much of it")]
fn every_small_range_is_dropped_whatever_the_unit_can() {
    const PAGES: u64 = 40;
    for max_order in [0, 1, 2, 3, 5, 18] {
        for has_blocks in [false, true] {
            let unit = Vtd {
                has_blocks,
                max_order,
                ..UNIT
            };
            for first in 0..PAGES {
                for last in first..PAGES {
                    let range = range(first << 12, (last << 12) + 0xfff);
                    for tag in [SECOND, FIRST, COMBINED, ATS] {
                        check(unit, tag, &leaves(range, Kind::Removed));
                        check(unit, tag, &tables(range));
                    }
                }
            }
        }
    }
}

#[test]
#[cfg_attr(miri, ignore = "arithmetic alone, and much of it")]
fn random_ranges_are_dropped_up_to_the_last_byte() {
    let mut numbers = Numbers::new(1);
    for round in 0..4000 {
        let (start, last) = (numbers.wide() & !0xfff, numbers.wide() | 0xfff);
        let last = match round % 4 {
            0 => u64::MAX,
            1 => start.saturating_add(numbers.below(1 << 24)) | 0xfff,
            _ => start.max(last) | 0xfff,
        };
        let range = range(start, last);
        let unit = Vtd {
            max_order: numbers.below(64) as u8,
            ..UNIT
        };
        let tag = [SECOND, FIRST, COMBINED, ATS][numbers.below(4) as usize];
        check(unit, tag, &tables(range));
        check(unit, tag, &leaves(range, Kind::Removed));
    }
    for tag in [SECOND, FIRST, COMBINED, ATS, ATS_FULL] {
        check(UNIT, tag, &tables(IovaRange::FULL));
        check(UNIT, tag, &tables(range(u64::MAX - 0xfff, u64::MAX)));
    }
}

#[test]
#[cfg_attr(miri, ignore = "arithmetic alone, and much of it")]
fn what_is_dropped_needlessly_is_less_than_the_range() {
    let unit = Vtd {
        max_order: 63,
        ..UNIT
    };
    let mut numbers = Numbers::new(2);
    for _ in 0..20_000 {
        let start = numbers.wide() >> 1 & !0xfff;
        let len = (numbers.wide() >> 1 & !0xfff) + 0x1000;
        let range = range(start, start + (len - 1));
        let descriptors = plan(unit, SECOND, &leaves(range, Kind::Removed));
        assert!(descriptors.len() <= 2);
        let pages = descriptors.iter().map(|&descriptor| {
            let (range, _) = dropped(descriptor);
            range.len_minus_one() / 0x1000 + 1
        });
        let pages = pages.sum::<u64>();
        if descriptors
            .iter()
            .all(|&descriptor| dropped(descriptor).0 != IovaRange::FULL)
        {
            assert!(pages < 2 * (len >> 12), "{range}: {descriptors:x?}");
        }
    }
}

#[test]
fn a_range_takes_the_descriptors_that_it_needs() {
    let page = |span, is_leaf_only| {
        let scope = IotlbScope::Pages {
            domain_id: DOMAIN,
            span,
            is_leaf_only,
        };
        UNIT.iotlb(scope)
    };
    let span = |address, order| Span::new(address, order).expect("a valid order");
    let removed = |start, last| plan(UNIT, SECOND, &leaves(range(start, last), Kind::Removed));
    assert_eq!(removed(0x5000, 0x5fff), [page(span(0x5000, 0), true)]);
    assert_eq!(removed(0x4000, 0x6fff), [page(span(0x4000, 2), true)]);
    // Two pages that no small block holds.
    let two = [
        page(span(0x3f_f000, 0), true),
        page(span(0x40_0000, 0), true),
    ];
    assert_eq!(removed(0x3f_f000, 0x40_0fff), two);
    let gib = [page(span(0x4000_0000, 18), true)];
    assert_eq!(removed(0x4000_0000, 0x7fff_ffff), gib);
    // Larger than the largest block: as many as it takes, until they are too many.
    let two = [page(span(0, 18), true), page(span(0x4000_0000, 18), true)];
    assert_eq!(removed(0, 0x7fff_ffff), two);
    assert_eq!(removed(0, (8 << 30) - 1).len(), 8);
    let domain = [UNIT.iotlb(IotlbScope::Domain { domain_id: DOMAIN })];
    assert_eq!(removed(0, 8 << 30), domain);
    assert_eq!(removed(0, u64::MAX), domain);
    assert_eq!(
        plan(UNIT, SECOND, &tables(range(0, 0x1f_ffff))),
        [page(span(0, 9), false)]
    );
    let all = Descriptor::PasidIotlb {
        domain_id: DOMAIN,
        pasid: PASID,
        scope: PasidIotlbScope::All,
    };
    assert_eq!(plan(UNIT, FIRST, &tables(IovaRange::FULL)), [all]);
    // Blocks of a first stage have no largest one.
    let half = range(1 << 63, u64::MAX);
    let scope = PasidIotlbScope::Pages {
        span: span(1 << 63, 51),
        is_leaf_only: true,
    };
    let expected = Descriptor::PasidIotlb {
        domain_id: DOMAIN,
        pasid: PASID,
        scope,
    };
    assert_eq!(plan(UNIT, FIRST, &leaves(half, Kind::Removed)), [expected]);
}

#[test]
fn the_hint_is_for_leaves_that_went_alone() {
    let has_hint = |changes: &Changes, tag| {
        let descriptors = plan(UNIT, tag, changes);
        descriptors.iter().any(|&descriptor| !dropped(descriptor).1)
    };
    let range = range(0x20_0000, 0x3f_ffff);
    for tag in [SECOND, FIRST] {
        assert!(has_hint(&leaves(range, Kind::Removed), tag));
        assert!(!has_hint(&tables(range), tag));
        // A block in the place of a table, even if no level is named.
        assert!(!has_hint(&leaves(range, Kind::Replaced), tag));
        assert!(!has_hint(&tables(range).with_kind(Kind::Replaced), tag));
    }
}

#[test]
fn additions_are_told_to_units_that_cache_or_buffer() {
    let added = leaves(range(0x20_0000, 0x3f_ffff), Kind::Added);
    let all = [SECOND, FIRST, COMBINED, ATS, ATS_FULL];
    for tag in all {
        assert_eq!(plan(UNIT, tag, &added), [], "{tag:?}");
    }
    let caching = Vtd {
        has_caching_mode: true,
        ..UNIT
    };
    // Like removals, but for the hint: absent items of tables are cached too.
    assert_eq!(
        plan(caching, SECOND, &added),
        plan(UNIT, SECOND, &tables(range(0x20_0000, 0x3f_ffff)))
    );
    let domain = UNIT.iotlb(IotlbScope::Domain { domain_id: DOMAIN });
    assert_eq!(plan(caching, COMBINED, &added), [domain]);
    for tag in [FIRST, ATS, ATS_FULL] {
        assert_eq!(plan(caching, tag, &added), [], "{tag:?}");
    }
    // Any one page will do.
    let buffering = Vtd {
        has_write_buffer: true,
        ..UNIT
    };
    for tag in [SECOND, COMBINED, FIRST] {
        let descriptors = plan(buffering, tag, &added);
        let page = range(0x20_0000, 0x20_0fff);
        assert_eq!(descriptors.len(), 1);
        assert_eq!(dropped(descriptors[0]), (page, false), "{tag:?}");
    }
    let without_blocks = Vtd {
        has_blocks: false,
        ..buffering
    };
    assert_eq!(plan(without_blocks, SECOND, &added), [domain]);
    for tag in [ATS, ATS_FULL] {
        assert_eq!(plan(buffering, tag, &added), [], "{tag:?}");
    }
}

#[test]
fn of_combined_entries_all_are_dropped() {
    let changes = leaves(range(0x5000, 0x5fff), Kind::Removed);
    let domain = UNIT.iotlb(IotlbScope::Domain { domain_id: DOMAIN });
    assert_eq!(plan(UNIT, COMBINED, &changes), [domain]);
    let device = Descriptor::PasidDeviceTlb {
        device: DEVICE,
        pasids: PasidScope::One(PASID),
        span: Span::ALL,
    };
    assert_eq!(plan(UNIT, ATS_FULL, &changes), [device]);
}

#[test]
fn a_device_gets_one_block_of_its_pasid() {
    let changes = leaves(range(0x3000, 0x4fff), Kind::Removed);
    let span = Span::new(0, 3).expect("a valid order");
    let expected = Descriptor::DeviceTlb {
        device: DEVICE,
        span,
    };
    assert_eq!(plan(UNIT, ATS, &changes), [expected]);
    // 32 invalidations at once are written as 0; eight pages as two ones below a zero.
    assert_eq!(expected.encode(), [0x0110_0100_0000_0003, 0x3001]);
    let tag = Tag::Ats {
        device: DEVICE,
        pasid: Some(PASID),
    };
    let expected = Descriptor::PasidDeviceTlb {
        device: DEVICE,
        pasids: PasidScope::One(PASID),
        span,
    };
    assert_eq!(plan(UNIT, tag, &changes), [expected]);
}

#[test]
fn requests_in_flight_are_waited_for_where_the_unit_can() {
    let changes = leaves(range(0, 0xfff), Kind::Removed);
    for (has_read_drain, has_write_drain) in [(false, true), (true, false)] {
        let unit = Vtd {
            has_read_drain,
            has_write_drain,
            ..UNIT
        };
        for tag in [SECOND, COMBINED] {
            let [
                Descriptor::Iotlb {
                    drains_reads,
                    drains_writes,
                    ..
                },
            ] = plan(unit, tag, &changes)[..]
            else {
                panic!("one invalidation of the IOTLB");
            };
            assert_eq!(
                (drains_reads, drains_writes),
                (has_read_drain, has_write_drain)
            );
        }
    }
}

#[test]
fn features_stand_at_the_bits_of_the_capability_register() {
    let none = Vtd {
        has_blocks: false,
        max_order: 0,
        has_caching_mode: false,
        has_write_buffer: false,
        has_read_drain: false,
        has_write_drain: false,
    };
    assert_eq!(Vtd::from_capabilities(!0x00ff_0080_0000_0090), none);
    let all = Vtd {
        has_blocks: true,
        max_order: 0x12,
        has_caching_mode: true,
        has_write_buffer: true,
        has_read_drain: true,
        has_write_drain: true,
    };
    assert_eq!(Vtd::from_capabilities(0x00d2_0080_0000_0090), all);
}

#[test]
fn tags_are_in_the_order_of_their_phases() {
    let tags = [SECOND, FIRST, COMBINED, ATS, ATS_FULL];
    assert!(tags.is_sorted() && tags.is_sorted_by_key(Vtd::phase));
    assert_eq!(Vtd::phase(&COMBINED), Phase::Iotlb);
    assert_eq!(Vtd::phase(&ATS), Phase::DeviceTlb);
}

#[test]
fn no_changes_need_no_descriptors() {
    for tag in [SECOND, FIRST, COMBINED, ATS, ATS_FULL] {
        assert_eq!(plan(UNIT, tag, &Changes::none(Kind::Removed)), []);
    }
}
