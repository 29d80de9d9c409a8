//! Plans against a model of what the commands drop.

use std::vec::Vec;

use iopt_formats::{PageSize, PageSizes};

use super::*;
use crate::invalidation::plan::testing::{Numbers, range};

const DOMAIN: u16 = 7;
const PASID: Option<Pasid> = Pasid::new(0xa_bcde);
const DEVICE: Device = Device {
    device_id: 0x100,
    queue_id: 0x110,
    max_pending: 32,
};
const HOST: Tag = Tag::Iotlb {
    domain_id: DOMAIN,
    pasid: None,
};
const GUEST: Tag = Tag::Iotlb {
    domain_id: DOMAIN,
    pasid: PASID,
};
const COMBINED: Tag = Tag::Combined { domain_id: DOMAIN };
const GUEST_CR3: Tag = Tag::GuestCr3 { device_id: 0x100 };
const ATS: Tag = Tag::Ats {
    device: DEVICE,
    pasid: PASID,
};
const ATS_FULL: Tag = Tag::AtsFull {
    device: DEVICE,
    pasid: PASID,
};
const IOMMU: Amd = Amd {
    has_absent_entries: false,
};

fn plan(iommu: Amd, tag: Tag, changes: &Changes) -> Vec<Command> {
    let mut commands = Vec::new();
    iommu.plan(&tag, changes, |command| commands.push(command));
    commands
}

fn leaves(range: IovaRange, sizes: u64, kind: Kind) -> Changes {
    Changes::leaves(range, PageSizes::from_bits(sizes), kind)
}

/// Returns whether the commands drop an entry: one no larger than the block that overlaps it.
fn drops(commands: &[Command], tag: Tag, entry: Span, is_table: bool) -> bool {
    commands.iter().any(|&command| {
        let (span, has_tables) = match (command, tag) {
            (
                Command::InvalidatePages {
                    domain_id: DOMAIN,
                    pasid,
                    has_tables,
                    span,
                },
                Tag::Iotlb { pasid: tagged, .. },
            ) if pasid == tagged => (span, has_tables),
            (
                Command::InvalidatePages {
                    domain_id: DOMAIN,
                    pasid: None,
                    has_tables,
                    span,
                },
                Tag::Combined { .. },
            ) => (span, has_tables),
            (
                Command::InvalidateIotlbPages {
                    device_id: 0x100,
                    max_pending: 32,
                    queue_id: 0x110,
                    pasid: PASID,
                    span,
                },
                Tag::Ats { .. } | Tag::AtsFull { .. },
            ) => (span, false),
            other => panic!("{other:x?} drops nothing under the tag"),
        };
        // From 2^52 bytes on, all addresses.
        let span = if span.order() >= 40 { Span::ALL } else { span };
        let is_small = entry.order() <= span.order();
        is_small && span.range().overlaps(entry.range()) && (has_tables || !is_table)
    })
}

/// Checks that a plan drops every entry of a size that changed, leaf or table, that overlaps the range.
fn check(tag: Tag, changes: &Changes) {
    let commands = plan(IOMMU, tag, changes);
    assert_eq!(commands.len(), 1);
    assert_eq!(Command::decode(commands[0].encode()), Ok(commands[0]));
    let range = changes.range().expect("something changed");
    let (first, last) = (range.start().get() >> 12, range.last().get() >> 12);
    // All pages of a short range; of a long one those near the ends, where plans go wrong.
    let near = (last - first).min(24);
    for page in (0..=near).flat_map(|page| [first + page, last - page]) {
        let entry = |order| Span::new(page << 12, order).expect("a valid order");
        for size in changes.leaf_sizes().iter() {
            let leaf = entry(size.lg2() - 12);
            let is_dropped = drops(&commands, tag, leaf, false);
            assert!(is_dropped, "{changes:x?}: leaf {leaf:x?} stays");
        }
        for level in 1..=Level::MAX.0 {
            if changes.has_table(Level(level)) && Amd::phase(&tag) < Phase::DeviceTlb {
                let table = entry(9 * level);
                let is_dropped = drops(&commands, tag, table, true);
                assert!(is_dropped, "{changes:x?}: table {table:x?} stays");
            }
        }
    }
}

const TAGS: [Tag; 5] = [HOST, GUEST, COMBINED, ATS, ATS_FULL];

#[test]
#[cfg_attr(miri, ignore = "arithmetic alone, and much of it")]
fn every_small_range_is_dropped_with_leaves_of_any_sizes() {
    const PAGES: u64 = 18;
    for first in 0..PAGES {
        for last in first..PAGES {
            let range = range(first << 12, (last << 12) + 0xfff);
            // All sets of 4 to 64 KiB, whole leaves in the range or not.
            for sizes in 1..32 {
                for tag in TAGS {
                    check(tag, &leaves(range, sizes << 12, Kind::Removed));
                }
            }
            for level in 1..=Level::MAX.0 {
                let mut changes = Changes::none(Kind::Removed);
                // With the tables below it, as a rule.
                changes.add_table(range, Level(1));
                changes.add_table(range, Level(level));
                changes.add_leaf(range, PageSize::KIB_4);
                for tag in TAGS {
                    check(tag, &changes);
                }
            }
        }
    }
}

#[test]
#[cfg_attr(miri, ignore = "arithmetic alone, and much of it")]
fn random_ranges_are_dropped_up_to_the_last_byte() {
    let mut numbers = Numbers::new(3);
    for round in 0..2000 {
        let start = numbers.wide() & !0xfff;
        let last = match round % 4 {
            0 => u64::MAX,
            1 => start.saturating_add(numbers.below(1 << 24)) | 0xfff,
            _ => start.max(numbers.wide()) | 0xfff,
        };
        let sizes = numbers.wide() & numbers.next() & 0x00ff_ffff_ffff_f000;
        let mut changes = leaves(range(start, last), sizes, Kind::Removed);
        if numbers.below(2) == 0 {
            let level = 1 + numbers.below(5) as u8;
            changes.add_table(range(start, last), Level(level));
        }
        for tag in TAGS {
            check(tag, &changes);
        }
    }
    for tag in TAGS {
        check(tag, &leaves(IovaRange::FULL, 1 << 12, Kind::Removed));
        let top = range(u64::MAX - 0xfff, u64::MAX);
        check(tag, &leaves(top, 1 << 12, Kind::Removed));
    }
}

#[test]
fn a_range_takes_the_smallest_block_that_drops_it() {
    let span = |address, order| Span::new(address, order).expect("a valid order");
    let pages = |has_tables, span| {
        [Command::InvalidatePages {
            domain_id: DOMAIN,
            pasid: None,
            has_tables,
            span,
        }]
    };
    let removed = |start, last, sizes| {
        plan(
            IOMMU,
            HOST,
            &leaves(range(start, last), sizes, Kind::Removed),
        )
    };
    assert_eq!(
        removed(0x5000, 0x5fff, 1 << 12),
        pages(false, span(0x5000, 0))
    );
    assert_eq!(removed(0x3000, 0x4fff, 1 << 12), pages(false, span(0, 3)));
    // One page of a leaf of 64 KiB takes the leaf.
    assert_eq!(removed(0x5000, 0x5fff, 1 << 16), pages(false, span(0, 4)));
    // 2^51 bytes can be told, more are all.
    assert_eq!(
        removed(0, (1 << 51) - 1, 1 << 12),
        pages(false, span(0, 39))
    );
    assert_eq!(removed(0, 1 << 51, 1 << 12), pages(false, Span::ALL));
    assert_eq!(removed(0, 0xfff, 1 << 52), pages(false, Span::ALL));
    // A table that a block of 512 GiB was cut to, though only 2 MiB of it were in use.
    let mut changes = leaves(range(0x20_0000, 0x3f_ffff), 1 << 12, Kind::Removed);
    changes.add_table(range(0x20_0000, 0x3f_ffff), Level(3));
    assert_eq!(plan(IOMMU, HOST, &changes), pages(true, span(0, 27)));
}

#[test]
fn tables_are_dropped_unless_leaves_went_alone() {
    let has_tables = |changes: &Changes| {
        let [Command::InvalidatePages { has_tables, .. }] = plan(IOMMU, GUEST, changes)[..] else {
            panic!("one invalidation of pages");
        };
        has_tables
    };
    let range = range(0x20_0000, 0x3f_ffff);
    let removed = leaves(range, 1 << 12, Kind::Removed);
    assert!(!has_tables(&removed));
    let mut with_table = removed;
    with_table.add_table(range, Level(1));
    assert!(has_tables(&with_table));
    assert!(has_tables(&removed.with_kind(Kind::Replaced)));
}

#[test]
fn additions_are_told_where_absent_entries_are_cached() {
    let added = leaves(range(0x5000, 0x5fff), 1 << 12, Kind::Added);
    for tag in TAGS {
        assert_eq!(plan(IOMMU, tag, &added), [], "{tag:?}");
    }
    let caching = Amd::from_capability_header(1 << 26);
    assert!(caching.has_absent_entries);
    assert!(!Amd::from_capability_header(!(1 << 26)).has_absent_entries);
    let pages = |pasid, span| Command::InvalidatePages {
        domain_id: DOMAIN,
        pasid,
        has_tables: true,
        span,
    };
    let page = Span::new(0x5000, 0).expect("a valid order");
    assert_eq!(plan(caching, HOST, &added), [pages(None, page)]);
    assert_eq!(plan(caching, GUEST, &added), [pages(PASID, page)]);
    assert_eq!(plan(caching, COMBINED, &added), [pages(None, Span::ALL)]);
    let entry = Command::InvalidateDeviceTableEntry { device_id: 0x100 };
    assert_eq!(plan(caching, GUEST_CR3, &added), [entry]);
    assert_eq!(plan(IOMMU, GUEST_CR3, &added), []);
    for tag in [ATS, ATS_FULL] {
        assert_eq!(plan(caching, tag, &added), [], "{tag:?}");
    }
}

#[test]
fn of_combined_entries_all_are_dropped_whatever_the_guest_calls_them() {
    let changes = leaves(range(0x5000, 0x5fff), 1 << 12, Kind::Removed);
    let expected = Command::InvalidatePages {
        domain_id: DOMAIN,
        pasid: None,
        has_tables: true,
        span: Span::ALL,
    };
    assert_eq!(plan(IOMMU, COMBINED, &changes), [expected]);
    let entry = Command::InvalidateDeviceTableEntry { device_id: 0x100 };
    assert_eq!(plan(IOMMU, GUEST_CR3, &changes), [entry]);
    let [Command::InvalidateIotlbPages { span, .. }] = plan(IOMMU, ATS_FULL, &changes)[..] else {
        panic!("one invalidation of the device");
    };
    assert_eq!(span, Span::ALL);
}

#[test]
fn tags_are_in_the_order_of_their_phases() {
    let mut tags = [TAGS.as_slice(), &[GUEST_CR3]].concat();
    tags.sort_unstable();
    assert!(TAGS.is_sorted() && tags.is_sorted_by_key(Amd::phase));
    assert_eq!(tags[2..4], [GUEST_CR3, COMBINED]);
    assert_eq!(Amd::phase(&GUEST_CR3), Phase::Contexts);
    assert_eq!(Amd::phase(&COMBINED), Phase::CombinedEntries);
    assert_eq!(Amd::phase(&ATS), Phase::DeviceTlb);
}

#[test]
fn no_changes_need_no_commands() {
    for tag in TAGS {
        assert_eq!(plan(IOMMU, tag, &Changes::none(Kind::Removed)), []);
    }
}
