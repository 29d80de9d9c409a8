//! Spaces through their interface: what is given out, where, and what makes it free again.

mod lifecycle;
mod model;
mod threads;

use alloc::vec::Vec;

use iopt_formats::Iova;
use iopt_formats::armv8::Stage2;
use iopt_formats::vtd::SecondStage;

use super::*;
use crate::mem::Heap;

const PAGE: u64 = 0x1000;
const CHUNK: u64 = 0x20_0000;
const GIB: u64 = 1 << 30;

fn range(start: u64, last: u64) -> IovaRange {
    IovaRange::new(Iova::new(start), Iova::new(last)).expect("last is not below start")
}

fn table() -> Table<SecondStage, Heap> {
    Table::new(SecondStage::new(48).expect("48 bits"), Heap).expect("memory")
}

/// Returns a space over `aperture`, and its table.
fn space(aperture: IovaRange) -> IovaSpace {
    IovaSpace::new(&table(), IovaConfig::new(aperture)).expect("a space")
}

#[test]
fn small_ranges_are_packed_into_one_chunk_in_order_of_use() {
    let space = space(range(0, GIB - 1));
    let buffers: Vec<_> = [1, 1, 0x2000, 0x1001, PAGE, 0x8000]
        .map(|len| space.alloc(&IovaRequest::new(len)).expect("room"))
        .into_iter()
        .collect();
    let places: Vec<_> = buffers.iter().map(FreshIova::range).collect();
    let expected = [
        range(0, 0xfff),
        range(0x1000, 0x1fff),
        range(0x2000, 0x3fff),
        range(0x4000, 0x5fff),
        range(0x6000, 0x6fff),
        range(0x8000, 0xffff),
    ];
    assert_eq!(places, expected);
    assert_eq!(space.statistics().open_chunk_count, 1);
    assert_eq!(space.statistics().used_len, 0xf000);
}

#[test]
fn ranges_of_every_size_are_aligned_to_it_or_to_what_is_asked_for() {
    let space = space(range(0, (1 << 48) - 1));
    let mut all = Vec::new();
    for lg2 in 12..=40 {
        for len in [1_u64 << lg2, (1 << lg2) + 1, (1 << lg2) - PAGE] {
            let fresh = space.alloc(&IovaRequest::new(len));
            if len == 0 {
                assert_eq!(fresh.expect_err("nothing"), IovaError::Empty);
                continue;
            }
            let fresh = fresh.expect("room");
            let rounded = len.next_multiple_of(PAGE);
            assert_eq!(fresh.range().len(), Some(rounded));
            let align = rounded.next_power_of_two();
            assert!(
                fresh.range().start().get().is_multiple_of(align),
                "{len:#x}"
            );
            all.push(fresh);
            let alignment = PageSize::from_lg2(lg2.min(31));
            let request = IovaRequest::new(len).with_alignment(alignment);
            let fresh = space.alloc(&request).expect("room");
            assert!(alignment.divides(fresh.range().start().get()));
            all.push(fresh);
        }
    }
    let used: u64 = all.iter().filter_map(|fresh| fresh.range().len()).sum();
    assert_eq!(space.statistics().used_len, used);
    drop(all);
    space.leave_chunks();
    let statistics = space.statistics();
    assert_eq!((statistics.used_len, statistics.open_chunk_count), (0, 0));
    assert_eq!(statistics.largest_free_len, 1 << 48);
    space.space.check_at_rest();
}

#[test]
fn the_whole_space_is_one_allocation() {
    let space = space(range(0, 8 * GIB - 1));
    let whole = space.alloc(&IovaRequest::new(8 * GIB)).expect("all of it");
    assert_eq!(whole.range(), range(0, 8 * GIB - 1));
    let refused = space
        .alloc(&IovaRequest::new(1))
        .expect_err("nothing is left");
    assert!(
        matches!(refused, IovaError::Exhausted { free_len: 0, .. }),
        "{refused}"
    );
}

#[test]
fn a_long_range_shares_its_last_chunk() {
    let space = space(range(0, GIB - 1));
    let long = space
        .alloc(&IovaRequest::new(CHUNK + 3 * PAGE))
        .expect("room");
    assert_eq!(long.range(), range(0, CHUNK + 3 * PAGE - 1));
    let small = space.alloc(&IovaRequest::new(PAGE)).expect("room");
    assert_eq!(small.range().start().get(), CHUNK + 3 * PAGE);
    assert_eq!(space.statistics().open_chunk_count, 1);
    drop(long);
    assert_eq!(space.statistics().used_len, PAGE);
    drop(small);
    space.leave_chunks();
    assert_eq!(space.statistics().open_chunk_count, 0);
}

#[test]
fn low_addresses_come_first_and_high_ones_when_those_are_used_up() {
    let aperture = range(0, 8 * GIB - 1);
    for is_low_first in [true, false] {
        let config = IovaConfig::new(aperture).with_low_first(is_low_first);
        let space = IovaSpace::new(&table(), config).expect("a space");
        let is_low = |fresh: &FreshIova<'_>| fresh.range().last().get() < 4 * GIB;
        for len in [PAGE, 100 * PAGE, CHUNK, GIB] {
            let fresh = space.alloc(&IovaRequest::new(len)).expect("room");
            assert_eq!(is_low(&fresh), is_low_first, "{len:#x}");
        }
        // So that no part of a block is kept to.
        space.leave_chunks();
        let first: Vec<_> = (0..4)
            .map(|_| space.alloc(&IovaRequest::new(GIB)).expect("room"))
            .collect();
        assert!(first.iter().all(|fresh| is_low(fresh) == is_low_first));
        for _ in 0..200 {
            for len in [PAGE, 65 * PAGE, CHUNK] {
                let fresh = space.alloc(&IovaRequest::new(len)).expect("room");
                assert_eq!(is_low(&fresh), !is_low_first, "{len:#x}");
            }
        }
        drop(first);
        // What was used up is tried again, if not at once.
        let mut is_found = false;
        for _ in 0..200 {
            is_found |=
                is_low(&space.alloc(&IovaRequest::new(CHUNK)).expect("room")) == is_low_first;
        }
        assert!(is_found);
    }
}

#[test]
fn a_limit_holds_for_every_size_whatever_the_thread_keeps_to() {
    let space = space(range(0, 64 * GIB - 1));
    for limit in [
        0xff_ffff_u64,
        0x3fff_ffff,
        0xffff_ffff,
        0x3_ffff_ffff,
        0x12_3456,
        0x1_2345_6789,
    ] {
        for len in [PAGE, 3 * PAGE, 65 * PAGE, 200 * PAGE] {
            let request = IovaRequest::new(len).with_limit(Iova::new(limit));
            let fresh = space.alloc(&request).expect("room");
            assert!(
                fresh.range().last().get() <= limit,
                "{len:#x} up to {limit:#x}"
            );
        }
    }
    // One page lies at or below it.
    let request = IovaRequest::new(PAGE).with_limit(Iova::new(2 * PAGE - 2));
    let fresh = space.alloc(&request).expect("the first page");
    assert_eq!(fresh.range(), range(0, PAGE - 1));
    let refused = space.alloc(&request).expect_err("no other");
    let expected = IovaError::Exhausted {
        len: PAGE,
        align: PAGE,
        limit: Iova::new(2 * PAGE - 2),
        free_len: 0,
        largest_len: 0,
    };
    assert_eq!(refused, expected);
}

#[test]
fn reserved_ranges_and_those_not_allowed_are_never_given_out() {
    let mut config = IovaConfig::new(range(PAGE, GIB - 1));
    let doorbell = range(0x10_0000, 0x10_1fff);
    config.reserve(doorbell).expect("nothing is allowed yet");
    config
        .reserve(range(0x18_0800, 0x18_0900))
        .expect("a part of a page");
    let space = IovaSpace::new(&table(), config).expect("a space");
    assert_eq!(space.statistics().total_len, GIB - PAGE - 3 * PAGE);
    let pages: Vec<_> = core::iter::from_fn(|| space.alloc(&IovaRequest::new(PAGE)).ok())
        .take(1000)
        .collect();
    assert!(pages.iter().all(|page| page.range().start().get() != 0));
    assert!(!pages.iter().any(|page| page.range().overlaps(doorbell)));
    assert!(
        !pages
            .iter()
            .any(|page| page.range().start().get() == 0x18_0000)
    );
    let mut starts: Vec<_> = pages
        .iter()
        .map(|page| page.range().start().get())
        .collect();
    starts.sort_unstable();
    assert_eq!(
        starts.last(),
        Some(&(0x3e_8000 + 3 * PAGE)),
        "and nothing else is left out"
    );

    let mut config = IovaConfig::new(range(0, GIB - 1));
    let allowed = [range(0x40_0000, 0x40_7fff), range(2 * GIB, 3 * GIB)];
    config.allow(&allowed).expect("they do not overlap");
    let refused = config.reserve(range(0x40_1000, 0x40_1fff));
    assert!(matches!(refused, Err(IovaConfigError::Allowed { .. })));
    let refused = config.allow(&[range(0, 9), range(5, 20)]);
    assert!(matches!(refused, Err(IovaConfigError::Allow(_))));
    let space = IovaSpace::new(&table(), config).expect("a space");
    assert_eq!(space.statistics().total_len, 0x8000);
    let all = space.alloc(&IovaRequest::new(0x8000)).expect("all of it");
    assert_eq!(all.range(), allowed[0]);
    assert!(space.alloc(&IovaRequest::new(1)).is_err());
}

#[test]
fn a_refusal_says_what_is_left() {
    let space = space(range(0, CHUNK - 1));
    let mut pages: Vec<_> =
        core::iter::from_fn(|| space.alloc(&IovaRequest::new(PAGE)).ok()).collect();
    assert_eq!(pages.len(), 512);
    pages.sort_by_key(|page| page.range().start());
    // Three pages in a row, and one elsewhere.
    pages.drain(100..103);
    pages.remove(10).cancel();
    let refused = space
        .alloc(&IovaRequest::new(4 * PAGE))
        .expect_err("no four in a row");
    let expected = IovaError::Exhausted {
        len: 4 * PAGE,
        align: 4 * PAGE,
        limit: Iova::new(u64::MAX),
        free_len: 4 * PAGE,
        largest_len: 3 * PAGE,
    };
    assert_eq!(refused, expected);
    let statistics = space.statistics();
    assert_eq!(
        (statistics.free_len, statistics.largest_free_len),
        (4 * PAGE, 3 * PAGE)
    );
    let request = IovaRequest::new(3 * PAGE).with_alignment(PageSize::KIB_4);
    let three = space.alloc(&request).expect("three");
    assert_eq!(three.range().start().get(), 100 * PAGE);
}

#[test]
fn a_chunk_has_the_span_of_a_leaf_table_of_the_granule() {
    let table = Table::new(Stage2::<16>::new(48, 48).expect("a format"), Heap).expect("memory");
    let space = IovaSpace::new(&table, IovaConfig::new(range(0, 64 * GIB - 1))).expect("a space");
    assert_eq!(
        (space.chunk_len(), space.granule()),
        (512 << 20, PageSize::KIB_64)
    );
    let pages: Vec<_> = (0..8192)
        .map(|_| space.alloc(&IovaRequest::new(1)).expect("room"))
        .collect();
    assert_eq!(space.statistics().open_chunk_count, 1);
    assert_eq!(
        pages.last().map(|page| page.range().last().get()),
        Some((512 << 20) - 1)
    );
    let next = space.alloc(&IovaRequest::new(1)).expect("room");
    assert_eq!(next.range().start().get(), 512 << 20);
}

#[test]
fn spaces_that_cannot_be_are_refused() {
    let table = table();
    let new = |aperture| IovaSpace::new(&table, IovaConfig::new(aperture)).map(|_| ());
    assert!(matches!(
        new(IovaRange::FULL),
        Err(IovaSpaceError::TooWide { .. })
    ));
    assert!(matches!(
        new(range(1, PAGE)),
        Err(IovaSpaceError::Empty { .. })
    ));
    assert!(matches!(
        new(range(0, 1 << 48)),
        Err(IovaSpaceError::TooWide { .. })
    ));
    let above = range(1 << 48, (1 << 48) + GIB);
    assert!(matches!(new(above), Err(IovaSpaceError::OutOfReach(_))));
    let claim = table
        .claim(range(GIB, GIB + PAGE - 1))
        .expect("nobody else has one");
    assert!(matches!(
        new(range(0, 2 * GIB - 1)),
        Err(IovaSpaceError::Claimed(_))
    ));
    drop(claim);
    assert_eq!(new(range(0, 2 * GIB - 1)), Ok(()));
}
