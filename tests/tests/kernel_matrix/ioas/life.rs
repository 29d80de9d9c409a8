//! Spaces and domains come and go.

use std::sync::Arc;

use iopt::ioas::{AttachError, DetachError, Holes, Ioas, OptionError};
use iopt_tests::sink::ModelSink;

use crate::fixture::{BASE, Driver, Fixture, HALF, PAGE, assert_gone, dynamic, range};
use crate::ioas::in_every_variant;

in_every_variant!(
    a_space_that_ends_takes_everything_along,
    a_domain_serves_one_space_until_that_ends,
    a_domain_joins_by_hand_and_a_stranger_cannot_leave,
    an_area_does_not_keep_its_space,
    ten_areas_end_with_their_space,
    pages_that_an_access_holds_outlive_the_domain,
    large_pages_are_an_option_of_spaces_without_areas_or_domains,
    alignment_rises_only_over_areas_that_fit_it,
);

fn a_space_that_ends_takes_everything_along(fixture: &mut Fixture) {
    let sinks = fixture.sinks.clone();
    assert!(sinks.iter().all(|sink| sink.is_bound()));
    fixture.end();
    assert!(!sinks.iter().any(|sink| sink.is_bound()));
}

fn a_domain_serves_one_space_until_that_ends(fixture: &mut Fixture) {
    let other = Ioas::new();
    let sinks = fixture.sinks.clone();
    for sink in &sinks {
        let taken = other.attach(dynamic(sink));
        assert!(matches!(taken, Err(AttachError::Taken(_))));
        let again = fixture.ioas.attach(dynamic(sink));
        assert!(matches!(again, Err(AttachError::Taken(_))));
    }
    assert_eq!((other.domain_count(), other.alignment()), (0, 1));
    assert_eq!(
        other.iova_ranges().len(),
        1,
        "a refused domain reserves nothing"
    );
    assert_eq!(fixture.ioas.domain_count(), sinks.len());
    fixture.end();
    for sink in &sinks {
        other.attach(dynamic(sink)).expect("it is free by now");
    }
}

fn a_domain_joins_by_hand_and_a_stranger_cannot_leave(fixture: &mut Fixture) {
    fixture.map(BASE, 0, PAGE);
    let stranger = dynamic(&Arc::new(ModelSink::small()));
    let left = fixture.ioas.detach(&stranger);
    assert!(matches!(left, Err(DetachError::NotAttached)));
    let replaced = fixture.ioas.replace(&stranger, Arc::clone(&stranger));
    assert!(matches!(replaced, Err(AttachError::NoOld)));
    let sink = fixture.attach();
    fixture.check_map_of(&sink, range(BASE, PAGE), 0);
    fixture.detach(&sink);
    let again = fixture.ioas.detach(&dynamic(&sink));
    assert!(matches!(again, Err(DetachError::NotAttached)));
    fixture.check_map(range(BASE, PAGE), 0);
}

fn an_area_does_not_keep_its_space(fixture: &mut Fixture) {
    fixture.map(BASE, 0, PAGE);
    let space = Arc::downgrade(&fixture.ioas);
    fixture.end();
    assert!(space.upgrade().is_none());
}

fn ten_areas_end_with_their_space(fixture: &mut Fixture) {
    for index in 0..10 {
        fixture.map(BASE + index * PAGE, index * PAGE, PAGE);
    }
    assert_eq!(fixture.ioas.area_count(), 10);
    let pinned = if fixture.has_domain() { 10 } else { 0 };
    assert_eq!(fixture.source.pinned_count(), pinned);
    fixture.end();
}

/// Two huge pages, one page of them pinned: as the last domain leaves, all others go, also those of the
/// same run, and that one stays.
fn pages_that_an_access_holds_outlive_the_domain(fixture: &mut Fixture) {
    let len = fixture.pages.len();
    fixture.map(BASE, 0, len);
    let driver = Driver::default();
    let access = fixture.ioas.access(driver.clone());
    let page = range(BASE + PAGE, PAGE);
    let runs = driver.pin(&access, page);
    crate::fixture::check_runs(fixture, &runs, page, PAGE);
    let late = fixture.attach();
    fixture.check_map_of(&late, range(BASE, len), 0);
    fixture.check_pinned(0, len);
    fixture.detach(&late);
    for sink in fixture.sinks.drain(..) {
        fixture
            .ioas
            .detach(&dynamic(&sink))
            .expect("it is attached");
        assert_gone(&sink);
    }
    fixture.check_pinned(PAGE, PAGE);
    assert_eq!(
        fixture.source.oa_of(1),
        Some(runs[0].1),
        "it stays where it is"
    );
    access.unpin(page).expect("it is pinned");
    fixture.check_unpinned();
    assert_eq!(driver.call_count(), 0, "nothing was unmapped");
}

fn large_pages_are_an_option_of_spaces_without_areas_or_domains(fixture: &mut Fixture) {
    let ioas = &fixture.ioas;
    assert!(!ioas.page_by_page());
    ioas.set_page_by_page(true).expect("there are no areas");
    ioas.set_page_by_page(true).expect("it is so already");
    assert_eq!((ioas.page_by_page(), ioas.alignment()), (true, PAGE));
    ioas.set_page_by_page(false)
        .expect("back is always possible");
    let alignment = if fixture.has_domain() { HALF } else { 1 };
    assert_eq!((ioas.page_by_page(), ioas.alignment()), (false, alignment));

    fixture.map(BASE, 0, PAGE);
    let switched = ioas.set_page_by_page(true);
    let wanted = if fixture.has_domain() {
        Err(OptionError::InUse)
    } else {
        Ok(())
    };
    assert_eq!(switched, wanted);
    assert_eq!(ioas.page_by_page(), wanted.is_ok());
    ioas.set_page_by_page(false)
        .expect("back is always possible");
}

fn alignment_rises_only_over_areas_that_fit_it(fixture: &mut Fixture) {
    let ioas = &fixture.ioas;
    if fixture.has_domain() {
        // With domains it cannot rise over areas at all; without areas it can.
        fixture.map(BASE + HALF, HALF, PAGE);
        assert_eq!(ioas.set_page_by_page(true), Err(OptionError::InUse));
        fixture
            .unmap(range(BASE + HALF, PAGE))
            .expect("it is mapped");
    }
    if !fixture.has_domain() {
        fixture.map(BASE, 0, PAGE);
    }
    ioas.set_page_by_page(true).expect("everything is aligned");
    let misaligned = ioas.map(fixture.slice(BASE + PAGE, HALF, PAGE));
    assert!(misaligned.is_err(), "the offset divides a page");
    let misaligned = ioas.map(fixture.slice(BASE + PAGE + HALF, 0, PAGE));
    assert!(misaligned.is_err(), "the address divides a page");
    let misaligned = ioas.map(fixture.slice(BASE + PAGE, 0, HALF));
    assert!(misaligned.is_err(), "the length divides a page");
    ioas.set_page_by_page(false)
        .expect("back is always possible");
    fixture.map(BASE + PAGE, HALF, PAGE);
    let refused = ioas.set_page_by_page(true);
    let wanted = if fixture.has_domain() {
        OptionError::InUse
    } else {
        let area = range(BASE + PAGE, PAGE);
        OptionError::Unaligned { area }
    };
    assert_eq!(refused, Err(wanted));
    assert!(!ioas.page_by_page());
    let bytes = ioas.unmap(range(BASE, 2 * PAGE), Holes::Tolerated);
    let left = if fixture.has_domain() { 1 } else { 2 };
    assert_eq!(bytes.expect("whole areas"), left * PAGE);
}
