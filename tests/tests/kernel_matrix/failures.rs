//! Operations of several steps that fail at one of them.

use std::sync::Arc;

use iopt::ioas::{
    AccessError, AttachError, CopyError, DirtyBitmap, DirtyError, Forget, HoldError, Holes,
    MapError, Mapping, Pages, ProtectError, Quarantined, RemapError, RevokeError, SplitError,
    UnmapError,
};
use iopt::pin::{Access, Firmness, Fixed, Kind, Simulated, Source};
use iopt_formats::{Iova, Oa, PageSize, PageSizes, Prot};
use iopt_tests::sink::{Call, ModelSink};

use crate::fixture::{
    BASE, Deaf, Driver, Fixture, HALF, HUGE, PAGE, PAGE_COUNT, Runs, assert_gone, at, dynamic,
    memory, range, slice,
};

/// Runs of the memory: two steps of 512 each.
const RUN_COUNT: u64 = PAGE_COUNT;

/// Numbers of runs around the borders of steps.
const RUNS: [u64; 7] = [0, 1, 510, 511, 512, 513, RUN_COUNT - 1];

fn fixture(domain_count: usize) -> Fixture {
    Fixture::new(memory(PAGE_COUNT, Runs::Single), domain_count)
}

#[test]
fn a_map_that_fails_at_any_run_of_any_domain_leaves_nothing() {
    let fixture = fixture(2);
    let len = RUN_COUNT * PAGE;
    for failing in 0..2 {
        for run in RUNS {
            let sink = &fixture.sinks[failing];
            let before = sink.count(Call::Op);
            sink.fail(&[Call::Op], run, false);
            let refused = fixture.ioas.map(fixture.slice(BASE, 0, len));
            let wanted = range(BASE + run * PAGE, PAGE);
            let is_exact = matches!(
                refused,
                Err(MapError::Domain { domain, range, .. }) if domain == failing && range == wanted
            );
            assert!(is_exact, "{refused:?}");
            assert_eq!(sink.count(Call::Op) - before, run + 1);
            assert_eq!(fixture.ioas.area_count(), 0);
            fixture.check_unpinned();
            assert!(fixture.sinks.iter().all(|sink| sink.leaf_count() == 0));
        }
    }
    fixture.map(BASE, 0, len);
    fixture.check_map(range(BASE, len), 0);
}

#[test]
fn a_domain_that_fails_at_any_run_does_not_join() {
    let len = RUN_COUNT * PAGE;
    for domain_count in 0..2 {
        let fixture = fixture(domain_count);
        fixture.map(BASE, 0, len);
        for run in RUNS {
            let late = fixture.watch(ModelSink::small());
            late.fail(&[Call::Op], run, false);
            let refused = fixture.ioas.attach(dynamic(&late));
            assert!(matches!(
                refused,
                Err(AttachError::Fill(MapError::Domain { .. }))
            ));
            assert_gone(&late);
            assert_eq!(fixture.ioas.domain_count(), domain_count);
            fixture.check_map(range(BASE, len), 0);
            let pinned = if domain_count == 0 { 0 } else { PAGE_COUNT };
            assert_eq!(fixture.source.pinned_count(), pinned);
        }
        let alignment = if domain_count == 0 { 1 } else { 2048 };
        assert_eq!(
            fixture.ioas.alignment(),
            alignment,
            "who did not join demands nothing"
        );
    }
}

#[test]
fn what_one_domain_does_not_confirm_stays_pinned_until_it_does() {
    let fixture = fixture(2);
    let len = RUN_COUNT * PAGE;
    for failing in 0..2 {
        for call in [Call::Unmap, Call::Sync] {
            fixture.map(BASE, 0, len);
            let sink = Arc::clone(&fixture.sinks[failing]);
            sink.fail(&[call], 0, true);
            let stuck = fixture.ioas.unmap_all();
            assert!(matches!(stuck, Err(UnmapError::Quarantined { bytes, .. }) if bytes == len));
            fixture.check_pinned(0, len);
            let quarantined = fixture.ioas.retry_quarantined();
            assert_eq!((quarantined.area_count, quarantined.bytes), (1, len));
            let occupied = fixture.ioas.map(fixture.slice(BASE, 0, PAGE));
            assert!(matches!(occupied, Err(MapError::Occupied { .. })));
            sink.heal();
            assert_eq!(fixture.ioas.retry_quarantined(), Quarantined::default());
            fixture.check_unpinned();
        }
    }
}

/// The map fails, and so does taking back what was mapped.
#[test]
fn a_map_that_cannot_be_taken_back_is_quarantined() {
    let fixture = fixture(2);
    let len = RUN_COUNT * PAGE;
    for call in [Call::Unmap, Call::Sync] {
        fixture.sinks[1].fail(&[Call::Op], 600, false);
        fixture.sinks[0].fail(&[call], 0, true);
        let stuck = fixture.ioas.map(fixture.slice(BASE, 0, len));
        assert!(matches!(stuck, Err(MapError::Quarantined { .. })));
        fixture.check_pinned(0, len);
        fixture.sinks[0].heal();
        assert_eq!(fixture.ioas.retry_quarantined(), Quarantined::default());
        fixture.check_unpinned();
        assert_eq!(fixture.ioas.area_count(), 0);
    }
}

#[test]
fn a_domain_that_is_replaced_and_does_not_confirm_keeps_what_it_reaches() {
    let mut fixture = fixture(1);
    fixture.map(BASE, 0, 4 * PAGE);
    let old = fixture.sinks.remove(0);
    let new = fixture.watch(ModelSink::small());
    old.fail(&[Call::Sync], 0, true);
    let replaced = fixture.ioas.replace(&dynamic(&old), dynamic(&new));
    assert!(matches!(replaced, Err(AttachError::OldNotFlushed(_))));
    fixture.check_map_of(&new, range(BASE, 4 * PAGE), 0);
    assert_eq!(fixture.ioas.domain_count(), 1);
    assert_eq!(fixture.ioas.quarantined().domain_count, 1);
    let stuck = fixture.ioas.unmap_all();
    assert!(matches!(stuck, Err(UnmapError::Quarantined { .. })));
    fixture.check_pinned(0, 4 * PAGE);
    old.heal();
    assert_eq!(fixture.ioas.retry_quarantined(), Quarantined::default());
    assert_gone(&old);
    fixture.check_unpinned();
}

#[test]
fn rights_change_in_all_areas_of_all_domains_or_in_none() {
    let fixture = fixture(2);
    for index in 0..3 {
        fixture.map(BASE + index * PAGE, index * PAGE, PAGE);
    }
    let all = range(BASE, 3 * PAGE);
    let rights = |fixture: &Fixture| -> Vec<bool> {
        let sinks = fixture.sinks.iter();
        let pages = sinks
            .flat_map(|sink| (0..3).map(|index| sink.translate(Iova::new(BASE + index * PAGE))));
        let found = pages.map(|found| found.expect("it is mapped").1.can_write());
        found.collect()
    };
    for failing in 0..2 {
        for index in 0..3 {
            fixture.sinks[failing].fail(&[Call::Protect], index, false);
            let refused = fixture.ioas.protect(all, Prot::R);
            assert!(matches!(refused, Err(ProtectError::Domain { .. })));
            assert_eq!(fixture.sinks[failing].fired_count(), index + 1);
            assert_eq!(rights(&fixture), [true; 6]);
            // Software has the old rights, too.
            let access = fixture.ioas.access(Driver::default());
            access
                .write(Iova::new(BASE), b"as before")
                .expect("it is writable");
        }
    }
    fixture.ioas.protect(all, Prot::R).expect("nothing fails");
    assert_eq!(rights(&fixture), [false; 6]);
}

/// Otherwise the next attempt finds it begun, and old writes count as new.
#[test]
fn tracking_that_cannot_begin_clean_does_not_begin() {
    let fixture = fixture(1);
    fixture.map(BASE, 0, PAGE);
    let (ioas, sink) = (&fixture.ioas, &fixture.sinks[0]);
    let domain = dynamic(sink);
    for call in [Call::Track, Call::Dirty, Call::Sync] {
        // A write from an earlier time.
        ioas.set_dirty_tracking(&domain, true).expect("it can");
        assert!(sink.write(Iova::new(BASE)));
        ioas.set_dirty_tracking(&domain, false).expect("it can");
        sink.fail(&[call], 0, false);
        let refused = ioas.set_dirty_tracking(&domain, true);
        assert!(matches!(refused, Err(DirtyError::Domain(_))));
        assert!(!sink.is_tracking());
        let mut bits = [0];
        let mut bitmap = DirtyBitmap::new(Iova::new(BASE), PageSize::KIB_4, &mut bits);
        let mut read = || {
            let page = range(BASE, PAGE);
            ioas.read_dirty(&domain, page, Holes::Refused, Forget::No, &mut bitmap)
        };
        assert!(matches!(read(), Err(DirtyError::NotTracking)));
        ioas.set_dirty_tracking(&domain, true)
            .expect("nothing fails");
        read().expect("it is tracked");
        assert_eq!(bits, [0], "{call:?}");
        // What was cleared and not confirmed by then has been told since: no write is lost.
        assert!(sink.write(Iova::new(BASE)));
        let mut bitmap = DirtyBitmap::new(Iova::new(BASE), PageSize::KIB_4, &mut bits);
        let page = range(BASE, PAGE);
        let read = ioas.read_dirty(&domain, page, Holes::Refused, Forget::No, &mut bitmap);
        read.expect("it is tracked");
        assert_eq!(bits, [1], "{call:?}");
        ioas.set_dirty_tracking(&domain, false).expect("it can");
    }
}

/// Pages may be larger than what an area is aligned to.
#[test]
fn an_area_is_not_divided_inside_a_page_that_the_domain_cannot_cut() {
    let source = Arc::new(Simulated::new(PageSize::MIB_2, 2));
    let fixture = Fixture::with(source, [ModelSink::huge()].into_iter());
    fixture
        .ioas
        .set_page_by_page(true)
        .expect("nothing is mapped");
    fixture.map(BASE, 0, 2 * HUGE);
    let inside = fixture.ioas.split(Iova::new(BASE + PAGE));
    assert!(matches!(inside, Err(SplitError::Domain { .. })));
    assert_eq!(fixture.ioas.area_count(), 1);
    fixture
        .ioas
        .split(Iova::new(BASE + HUGE))
        .expect("a page ends there");
    let bytes = fixture.unmap(range(BASE, HUGE));
    assert_eq!(bytes.expect("it is an area"), HUGE);
    assert_eq!(fixture.source.pinned_count(), 1);
}

/// Whole leaves of 16 KiB are there if the memory happens to have them, and only then.
#[test]
fn memory_in_smaller_pieces_than_a_leaf_is_refused_by_the_domain() {
    let size = PageSize::KIB_16;
    let coarse = || ModelSink::new(PageSizes::EMPTY.with(size));
    let scattered = Fixture::with(memory(16, Runs::Single), [coarse()].into_iter());
    let refused = scattered.ioas.map(scattered.slice(BASE, 0, size.bytes()));
    assert!(matches!(refused, Err(MapError::Domain { .. })));
    assert_eq!(scattered.ioas.area_count(), 0);
    scattered.check_unpinned();
    let refused = scattered
        .ioas
        .map(scattered.slice(BASE, PAGE, size.bytes()));
    assert!(matches!(refused, Err(MapError::Unaligned { .. })));
    let whole = Fixture::with(memory(16, Runs::Huge), [coarse()].into_iter());
    whole.map(BASE, 0, 2 * size.bytes());
    whole.check_map(range(BASE, 2 * size.bytes()), 0);
    let leaf_count = whole.sinks[0].leaf_count();
    assert_eq!(leaf_count, 2);
}

/// Pages may move as long as no hardware walks the domain.
#[test]
fn a_domain_of_hardware_gets_pinned_pages_only() {
    let soft = Fixture::with(memory(4, Runs::Single), [ModelSink::small()].into_iter());
    soft.map(BASE, 0, 4 * PAGE);
    let hardware = soft.watch(ModelSink::small().needing_pinned());
    let refused = soft.ioas.attach(dynamic(&hardware));
    assert!(matches!(refused, Err(AttachError::Fill(MapError::NotFirm))));
    assert_gone(&hardware);
    soft.unmap(range(BASE, 4 * PAGE)).expect("it is mapped");
    soft.ioas
        .attach(dynamic(&hardware))
        .expect("nothing is mapped");
    let refused = soft.ioas.map(soft.slice(BASE, 0, PAGE));
    assert!(matches!(refused, Err(MapError::NotFirm)));
    soft.check_unpinned();
    soft.detach(&hardware);

    let pinned = Simulated::new(PageSize::KIB_4, 4).with_firmness(Firmness::Pinned);
    let firm = Fixture::with(
        Arc::new(pinned),
        [ModelSink::small().needing_pinned()].into_iter(),
    );
    firm.map(BASE, 0, 4 * PAGE);
    firm.check_map(range(BASE, 4 * PAGE), 0);
}

#[test]
fn a_pin_that_fails_in_a_later_area_holds_nothing_of_the_first() {
    let source = memory(PAGE_COUNT, Runs::Huge);
    let fixture = Fixture::new(Arc::clone(&source) as Arc<dyn Source>, 0);
    fixture.map(BASE, 0, PAGE);
    fixture.map(BASE + PAGE, PAGE, PAGE);
    let device = Fixed::new(
        Oa::new(1 << 40),
        PageSize::KIB_4,
        1,
        Kind::Device,
        Access::ReadWrite,
    );
    let device = Pages::new(Arc::new(device.expect("it is aligned")), None);
    let mapped = fixture
        .ioas
        .map(slice(&device, 0, PAGE, at(BASE + 2 * PAGE)));
    mapped.expect("it is free");
    let access = fixture.ioas.access(Driver::default());
    let refused = access.pin(range(BASE, 3 * PAGE), true);
    assert!(matches!(refused, Err(AccessError::Device { .. })));
    fixture.check_unpinned();
    source.fail_pin_after(Some(1));
    let refused = access.pin(range(BASE, 2 * PAGE), true);
    assert!(matches!(refused, Err(AccessError::Hold(HoldError::Pin(_)))));
    fixture.check_unpinned();
    assert_eq!(access.pin_count(), 0);
    // Nobody waits for what was not pinned.
    assert_eq!(
        fixture.ioas.unmap_all().expect("nothing is pinned"),
        3 * PAGE
    );
}

/// The bit is gone, and hardware that was not told takes it for set: that must be made up for.
#[test]
fn no_write_is_lost_after_a_dirty_read_that_was_not_confirmed() {
    let fixture = fixture(1);
    fixture.map(BASE, 0, 2 * PAGE);
    let (ioas, sink) = (&fixture.ioas, &fixture.sinks[0]);
    let domain = dynamic(sink);
    ioas.set_dirty_tracking(&domain, true).expect("it can");
    let mut bits = [0];
    let mut read = |forget| {
        let mut bitmap = DirtyBitmap::new(Iova::new(BASE), PageSize::KIB_4, &mut bits);
        let all = range(BASE, 2 * PAGE);
        let read = ioas.read_dirty(&domain, all, Holes::Refused, forget, &mut bitmap);
        (read.is_ok(), std::mem::take(&mut bits))
    };
    assert!(sink.write(Iova::new(BASE)));
    sink.fail(&[Call::Sync], 0, false);
    assert_eq!(
        read(Forget::Yes),
        (false, [1]),
        "what was found is told all the same"
    );
    assert_eq!(read(Forget::Yes), (true, [0]));
    assert!(sink.write(Iova::new(BASE)));
    assert_eq!(read(Forget::No), (true, [1]));
    assert_eq!(read(Forget::Yes), (true, [1]));
    assert_eq!(read(Forget::Yes), (true, [0]));
}

#[test]
fn software_pins_whole_pages_with_the_rights_of_the_area_only() {
    let fixture = fixture(0);
    let readable = Mapping {
        prot: Prot::R,
        ..fixture.slice(BASE, 0, PAGE)
    };
    fixture.ioas.map(readable).expect("it is free");
    let writable = Mapping {
        prot: Prot::W,
        ..fixture.slice(BASE + PAGE, PAGE, PAGE)
    };
    fixture.ioas.map(writable).expect("it is free");
    fixture.map(BASE + 4 * PAGE, HALF, PAGE);
    let access = fixture.ioas.access(Driver::default());
    for (page, is_write) in [(0, true), (1, false)] {
        let page = range(BASE + page * PAGE, PAGE);
        let refused = access.pin(page, is_write);
        assert!(matches!(refused, Err(AccessError::Rights { area }) if area == page));
        access.pin(page, !is_write).expect("that is granted");
        access.unpin(page).expect("it is pinned");
    }
    // Both areas, with rights that one of them lacks.
    let refused = access.pin(range(BASE, 2 * PAGE), false);
    assert!(matches!(refused, Err(AccessError::Rights { .. })));
    for inside in [range(BASE + HALF, HALF), range(BASE + 4 * PAGE, PAGE)] {
        let refused = access.pin(inside, false);
        assert!(matches!(refused, Err(AccessError::Unaligned { .. })));
    }
    // A page may be pinned in part.
    let part = range(BASE, HALF);
    let runs = access.pin(part, false).expect("it is readable");
    assert_eq!((runs.len(), runs[0].range), (1, part));
    access.unpin(part).expect("it is pinned");
    fixture.check_unpinned();
}

#[test]
fn a_copy_grants_what_the_memory_allows_whatever_its_source_grants() {
    let fixture = fixture(1);
    let readable = Mapping {
        prot: Prot::R,
        ..fixture.slice(BASE, 0, PAGE)
    };
    fixture.ioas.map(readable).expect("it is free");
    let copied = fixture
        .ioas
        .copy(&fixture.ioas, range(BASE, PAGE), at(BASE + PAGE), Prot::RW);
    copied.expect("the memory is writable");
    let read_only = Simulated::new(PageSize::KIB_4, 1).with_access(Access::ReadOnly);
    let pages = Pages::new(Arc::new(read_only), None);
    let readable = Mapping {
        prot: Prot::R,
        ..slice(&pages, 0, PAGE, at(BASE + 2 * PAGE))
    };
    fixture.ioas.map(readable).expect("it is free");
    // The second part is refused, and the first is not copied either.
    let both = range(BASE + PAGE, 2 * PAGE);
    let refused = fixture
        .ioas
        .copy(&fixture.ioas, both, at(BASE + 8 * PAGE), Prot::RW);
    assert!(matches!(refused, Err(CopyError::Map(MapError::Rights))));
    assert_eq!(fixture.ioas.area_count(), 3);
}

#[test]
fn a_domain_that_does_not_translate_what_is_allowed_does_not_join() {
    let fixture = fixture(0);
    let allowed = range(BASE - PAGE, 16 * PAGE);
    fixture.ioas.allow(&[allowed]).expect("nobody reserved it");
    let sink = fixture.watch(ModelSink::small());
    let refused = fixture.ioas.attach(dynamic(&sink));
    assert!(matches!(refused, Err(AttachError::Aperture { with, .. }) if with == allowed));
    assert_gone(&sink);
    assert_eq!(fixture.ioas.iova_ranges().len(), 1);
    fixture
        .ioas
        .allow(&[range(BASE, 16 * PAGE)])
        .expect("nobody reserved it");
    fixture
        .ioas
        .attach(dynamic(&sink))
        .expect("it translates that");
    fixture.detach(&sink);
}

#[test]
fn a_move_that_fails_leaves_everything_where_it_was() {
    let fixture = fixture(2);
    fixture.map(BASE, 0, 4 * PAGE);
    fixture.map(BASE + 4 * PAGE, 4 * PAGE, 4 * PAGE);
    let (old, to) = (range(BASE, 8 * PAGE), at(BASE + 64 * PAGE));
    for failing in 0..2 {
        for run in [0, 3, 4, 7] {
            fixture.sinks[failing].fail(&[Call::Op], run, false);
            let refused = fixture.ioas.remap(old, to);
            assert!(matches!(refused, Err(RemapError::Copy(_))), "{refused:?}");
            assert_eq!(fixture.ioas.area_count(), 2);
            fixture.check_map(old, 0);
            assert!(fixture.sinks.iter().all(|sink| sink.bytes() == 8 * PAGE));
        }
    }
    let access = fixture.ioas.access(Deaf);
    access
        .pin(range(BASE + 5 * PAGE, PAGE), true)
        .expect("it is mapped");
    let stuck = fixture.ioas.remap(old, to);
    assert!(matches!(
        stuck,
        Err(RemapError::Unmap(UnmapError::Deadlock { .. }))
    ));
    assert_eq!(fixture.ioas.area_count(), 2);
    fixture.check_map(old, 0);
    assert!(fixture.sinks.iter().all(|sink| sink.bytes() == 8 * PAGE));
    access.destroy().expect("no callback runs");
    let moved = fixture.ioas.remap(old, to).expect("nothing is in the way");
    assert_eq!(
        (moved, fixture.ioas.area_count()),
        (range(BASE + 64 * PAGE, 8 * PAGE), 2)
    );
    fixture.check_map(moved, 0);
    fixture.check_pinned(0, 8 * PAGE);
}

#[test]
fn memory_that_was_taken_back_translates_nothing_until_it_is_given_again() {
    let fixture = fixture(1);
    let (ioas, pages, len) = (&fixture.ioas, &fixture.pages, 8 * PAGE);
    fixture.map(BASE, 0, len);
    fixture.map(BASE + len, PAGE, PAGE);
    ioas.revoke(pages).expect("domains let go");
    fixture.check_unpinned();
    assert_eq!((fixture.sinks[0].leaf_count(), ioas.area_count()), (0, 2));
    // It is in nobody's way, but for its addresses.
    let late = fixture.attach();
    assert_eq!(late.leaf_count(), 0);
    let refused = ioas.map(fixture.slice(BASE + 16 * PAGE, 0, PAGE));
    assert!(matches!(refused, Err(MapError::Hold(HoldError::Revoked))));
    let refused = ioas.map(fixture.slice(BASE, 0, PAGE));
    assert!(matches!(refused, Err(MapError::Occupied { .. })));
    assert_eq!(
        fixture
            .unmap(range(BASE + len, PAGE))
            .expect("it is an area"),
        PAGE
    );
    // A domain fails as it comes back: nothing of it is there, and it can be tried again.
    late.fail(&[Call::Op], 5, false);
    assert!(ioas.restore(pages).is_err());
    fixture.check_unpinned();
    assert_eq!((fixture.sinks[0].leaf_count(), late.leaf_count()), (0, 0));
    ioas.revoke(pages).expect("nothing is mapped");
    ioas.restore(pages).expect("nothing fails");
    fixture.check_map(range(BASE, len), 0);
    fixture.check_map_of(&late, range(BASE, len), 0);
    fixture.check_pinned(0, len);
    ioas.restore(pages).expect("it is there already");
    fixture.detach(&late);

    // Whoever takes it back is told if a device may still reach it.
    fixture.sinks[0].fail(&[Call::Sync], 0, true);
    assert!(matches!(ioas.revoke(pages), Err(RevokeError::Domain(_))));
    fixture.check_pinned(0, len);
    assert_eq!(ioas.quarantined().area_count, 1);
    fixture.sinks[0].heal();
    assert_eq!(ioas.retry_quarantined(), Quarantined::default());
    fixture.check_unpinned();
}
