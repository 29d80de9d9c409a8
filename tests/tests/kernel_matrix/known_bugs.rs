//! Bugs that the kernel had or has, one test each, named after what should happen.

use std::sync::Arc;

use iopt::domain::Domain;
use iopt::ioas::{
    AccessError, DirtyBitmap, DirtyError, Forget, Holes, Ioas, MapError, Pages, Place, Quarantined,
    UnmapError,
};
use iopt::pin::{Access, Fixed, Kind, Source};
use iopt_formats::{Iova, IovaRange, Oa, PageSize};
use iopt_tests::sink::{Call, ModelSink, Reach, Watched};

use crate::fixture::{
    BASE, Deaf, Driver, Fixture, HUGE, PAGE, PAGE_COUNT, Runs, assert_gone, at, dynamic, memory,
    range, slice,
};

fn fixture(domain_count: usize) -> Fixture {
    Fixture::new(memory(PAGE_COUNT, Runs::Huge), domain_count)
}

/// Memory without limits and without a program that could look at it.
fn device(page_count: u64) -> Arc<Pages> {
    let (page, kind) = (PageSize::KIB_4, Kind::Device);
    let source = Fixed::new(Oa::new(0), page, page_count, kind, Access::ReadWrite);
    Pages::new(Arc::new(source.expect("it is aligned")), None)
}

/// What was left over of a run, when only its beginning could be unpinned, had a wrong last page.
#[test]
fn a_pin_anywhere_in_a_run_splits_it_at_its_own_ends() {
    let (len, last_page) = (2 * HUGE, 2 * HUGE / PAGE - 1);
    let pins = [
        vec![(0, 1)],
        vec![(1, 1)],
        vec![(255, 2)],
        vec![(511, 2)],
        vec![(last_page, 1)],
        vec![(3, 5), (5, 2), (6, 9), (510, 4)],
        vec![(0, 512), (512, 512)],
        vec![(0, last_page + 1)],
    ];
    for pins in pins {
        let mut fixture = fixture(1);
        fixture.map(BASE, 0, len);
        let access = fixture.ioas.access(Deaf);
        let of = |&(page, count): &(u64, u64)| range(BASE + page * PAGE, count * PAGE);
        for pin in &pins {
            access.pin(of(pin), true).expect("it is mapped");
        }
        let sink = fixture.sinks.remove(0);
        fixture.detach(&sink);
        let is_pinned = |page: u64| {
            pins.iter()
                .any(|&(first, count)| (first..first + count).contains(&page))
        };
        for page in 0..=last_page {
            assert_eq!(
                fixture.source.oa_of(page).is_some(),
                is_pinned(page),
                "page {page}"
            );
        }
        // They are used again by whoever comes, and the rest is pinned anew.
        let late = fixture.attach();
        fixture.check_map_of(&late, range(BASE, len), 0);
        fixture.check_pinned(0, len);
        fixture.detach(&late);
        for pin in &pins {
            access.unpin(of(pin)).expect("it is pinned");
        }
        fixture.check_unpinned();
    }
}

/// The lowest address that fits was rounded up past the end of what was free, or past the last address.
#[test]
fn a_choice_near_the_last_address_never_wraps() {
    let fixture = fixture(0);
    let huge = device(1 << 51);
    let from_6 = IovaRange::new(Iova::new(6), Iova::new(u64::MAX)).expect("it is in order");
    fixture.ioas.reserve(from_6, 1).expect("it is free");
    let last_page = u64::MAX - (PAGE - 1);
    for len in [1, 5, PAGE, 5 * PAGE, 1 << 62, 1 << 63] {
        let mapped = fixture.ioas.map(slice(&huge, 0, len, Place::Anywhere));
        assert!(matches!(mapped, Err(MapError::NoSpace { .. })), "{len:#x}");
    }
    fixture.ioas.release_reserved(1);
    // All that is left is at the very end: four pages, of which the last is never chosen.
    let below = IovaRange::new(Iova::new(0), Iova::new(last_page - 3 * PAGE - 1));
    fixture
        .ioas
        .reserve(below.expect("it is in order"), 1)
        .expect("it is free");
    for len in [
        3 * PAGE + 1,
        4 * PAGE,
        HUGE,
        1 << 62,
        (1 << 63) - 1,
        1 << 63,
    ] {
        let mapped = fixture.ioas.map(slice(&huge, 0, len, Place::Anywhere));
        assert!(matches!(mapped, Err(MapError::NoSpace { .. })), "{len:#x}");
    }
    let chosen = fixture.ioas.map(slice(&huge, 0, 3 * PAGE, Place::Anywhere));
    assert_eq!(
        chosen.expect("it fits"),
        range(last_page - 3 * PAGE, 3 * PAGE)
    );
    // By hand even the last byte can be mapped.
    fixture.ioas.release_reserved(1);
    let last = fixture.ioas.map(slice(&huge, 0, PAGE, at(last_page)));
    assert_eq!(last.expect("it is free").last(), Iova::new(u64::MAX));
    fixture.ioas.unmap_all().expect("nothing is in the way");
}

#[test]
fn lengths_and_addresses_at_the_limits_give_errors() {
    let fixture = fixture(0);
    let memory = device(1 << 52);
    let most = [u64::MAX, u64::MAX - 1, u64::MAX - (PAGE - 1)];
    for iova in [0, 1, PAGE, u64::MAX - 1, u64::MAX] {
        for (offset, len) in most
            .iter()
            .flat_map(|&len| [(0, len), (len, len), (1, len)])
        {
            for pages in [&memory, &fixture.pages] {
                let end = offset.checked_add(len);
                let is_there = end.is_some_and(|end| end <= pages.len());
                let place = at(iova);
                match fixture.ioas.map(slice(pages, offset, len, place)) {
                    Ok(mapped) => {
                        assert!(is_there && iova.checked_add(len - 1).is_some());
                        assert_eq!(fixture.unmap(mapped).expect("it is mapped"), len);
                    }
                    Err(MapError::NoRange { .. }) => {
                        assert!(is_there && iova.checked_add(len - 1).is_none());
                    }
                    Err(MapError::OutsidePages { .. }) => assert!(!is_there),
                    Err(error) => panic!("{iova:#x}, {offset:#x}, {len:#x}: {error}"),
                }
            }
        }
        for pages in [&memory, &fixture.pages] {
            let empty = fixture.ioas.map(slice(pages, 0, 0, at(iova)));
            assert!(matches!(empty, Err(MapError::NoRange { len: 0, .. })));
        }
    }
    let empty = fixture.ioas.map(slice(&memory, 0, 0, Place::Anywhere));
    assert!(matches!(empty, Err(MapError::NoRange { len: 0, .. })));
    assert_eq!(fixture.ioas.area_count(), 0);
}

#[test]
fn a_bitmap_at_the_limits_sets_the_bits_that_it_has() {
    let sizes = [0, 11, 12, 21, 30, 62, 63].map(PageSize::from_lg2);
    let bases = [0, 1, BASE, 1 << 63, u64::MAX - PAGE, u64::MAX - 1, u64::MAX];
    for (size, base) in sizes
        .iter()
        .flat_map(|&size| bases.map(|base| (size, base)))
    {
        let mut bits = [0_u8; 3];
        let mut bitmap = DirtyBitmap::new(Iova::new(base), size, &mut bits);
        let whole = bitmap.range().expect("there are bits");
        assert_eq!(whole.start(), Iova::new(base));
        let last = u128::from(base) + (24 << size.lg2()) - 1;
        assert_eq!(
            u128::from(whole.last().get()),
            last.min(u128::from(u64::MAX))
        );
        // Nothing outside has a bit.
        if let Some(below) = base.checked_sub(1) {
            bitmap.set(range(0, base));
            assert!(!bitmap.is_set(Iova::new(below)));
        }
        assert_eq!(bitmap.count(), 0);
        bitmap.set(range(base, 1));
        assert!(bitmap.is_set(Iova::new(base)));
        assert_eq!(bitmap.count(), 1);
        bitmap.set(IovaRange::FULL);
        let bit_count = (whole.len_minus_one() >> size.lg2()) + 1;
        assert_eq!(bitmap.count(), bit_count);
        assert!(bitmap.is_set(whole.last()));
    }
    let mut none = DirtyBitmap::new(Iova::new(0), PageSize::KIB_4, &mut []);
    none.set(IovaRange::FULL);
    assert_eq!((none.range(), none.count()), (None, 0));
}

/// The kernel had unmapped some areas by then, and did not say how many.
#[test]
fn a_late_error_of_an_unmap_leaves_all_or_tells_the_bytes() {
    let fixture = fixture(2);
    for index in 0..4 {
        fixture.map(BASE + index * 2 * PAGE, index * 2 * PAGE, PAGE);
    }
    let all = range(BASE, 7 * PAGE);
    let access = fixture.ioas.access(Deaf);
    access
        .pin(range(BASE + 6 * PAGE, PAGE), true)
        .expect("it is mapped");
    let late = fixture.ioas.unmap(all, Holes::Tolerated);
    assert!(matches!(late, Err(UnmapError::Deadlock { .. })));
    for index in 0..4 {
        fixture.check_map(range(BASE + index * 2 * PAGE, PAGE), index * 2 * PAGE);
    }
    access.destroy().expect("no callback runs");

    // A domain fails at the third area: nothing is free, and it is said what is not.
    let failing = &fixture.sinks[1];
    failing.fail(&[Call::Unmap], 2, false);
    let late = fixture.ioas.unmap(all, Holes::Tolerated);
    assert!(matches!(late, Err(UnmapError::Quarantined { bytes, .. }) if bytes == 4 * PAGE));
    assert_eq!(failing.fired_count(), 1);
    let quarantined = fixture.ioas.quarantined();
    assert_eq!((quarantined.area_count, quarantined.bytes), (4, 4 * PAGE));
    assert_eq!(fixture.source.pinned_count(), 4);
    assert_eq!(fixture.ioas.retry_quarantined(), Quarantined::default());
    fixture.check_unpinned();
    fixture.map(BASE, 0, PAGE);
}

#[test]
fn a_hole_in_a_dirty_query_is_an_error_that_says_where() {
    let fixture = fixture(1);
    fixture.map(BASE, 0, PAGE);
    fixture.map(BASE + 2 * PAGE, 2 * PAGE, PAGE);
    let domain = dynamic(&fixture.sinks[0]);
    fixture
        .ioas
        .set_dirty_tracking(&domain, true)
        .expect("it can");
    for page in [0, 2] {
        assert!(fixture.sinks[0].write(Iova::new(BASE + page * PAGE)));
    }
    let mut bits = [0];
    let mut bitmap = DirtyBitmap::new(Iova::new(BASE), PageSize::KIB_4, &mut bits);
    let mut read = |start, page_count, holes| {
        let all = range(start, page_count * PAGE);
        fixture
            .ioas
            .read_dirty(&domain, all, holes, Forget::No, &mut bitmap)
    };
    let hole = |read: Result<(), DirtyError>, wanted: u64| {
        assert!(matches!(read, Err(DirtyError::Hole { iova }) if iova.get() == wanted));
    };
    hole(read(BASE, 3, Holes::Refused), BASE + PAGE);
    hole(read(BASE + 2 * PAGE, 2, Holes::Refused), BASE + 3 * PAGE);
    hole(read(BASE - PAGE, 2, Holes::Refused), BASE - PAGE);
    hole(read(BASE + PAGE, 1, Holes::Refused), BASE + PAGE);
    read(BASE, 4, Holes::Tolerated).expect("holes are fine");
    assert_eq!(bits, [0b101]);
}

/// Pages of a device buffer have no memory behind them that software could hold.
#[test]
fn device_memory_is_refused_to_software_before_it_is_pinned() {
    let reach = Reach::default();
    let source = Fixed::new(
        Oa::new(1 << 40),
        PageSize::KIB_4,
        4,
        Kind::Device,
        Access::ReadWrite,
    );
    let source = Arc::new(Watched::new(
        Arc::new(source.expect("it is aligned")),
        &reach,
    ));
    let pages = Pages::new(Arc::clone(&source) as Arc<dyn Source>, None);
    let ioas = Arc::new(Ioas::new());
    ioas.map(slice(&pages, 0, 4 * PAGE, at(BASE)))
        .expect("it is free");
    let access = ioas.access(Driver::default());
    for is_write in [false, true] {
        let refused = access.pin(range(BASE, PAGE), is_write);
        assert!(matches!(refused, Err(AccessError::Device { .. })));
        assert_eq!((source.pinned_count(), access.pin_count()), (0, 0));
    }
    let mut byte = [0];
    let refused = access.read(Iova::new(BASE), &mut byte);
    assert!(matches!(refused, Err(AccessError::Memory(_))));
    assert_eq!(ioas.unmap_all().expect("nothing is pinned"), 4 * PAGE);
}

#[test]
fn a_refused_dirty_call_keeps_nothing_of_its_domain() {
    let fixture = fixture(1);
    let sink = Arc::new(ModelSink::small());
    let domain: Arc<dyn Domain> = dynamic(&sink);
    let mut bits = [0];
    let mut bitmap = DirtyBitmap::new(Iova::new(BASE), PageSize::KIB_4, &mut bits);
    let page = range(BASE, PAGE);
    let ioas = &fixture.ioas;
    for _ in 0..3 {
        let read = ioas.read_dirty(&domain, page, Holes::Refused, Forget::Yes, &mut bitmap);
        assert!(matches!(read, Err(DirtyError::NotAttached)));
        let tracked = ioas.set_dirty_tracking(&domain, true);
        assert!(matches!(tracked, Err(DirtyError::NotAttached)));
        let found = ioas.dirty_pages(&domain, page, Forget::No);
        assert!(matches!(found, Err(DirtyError::NotAttached)));
    }
    assert_eq!((Arc::strong_count(&sink), bitmap.count()), (2, 0));
    assert_gone(&sink);
}
