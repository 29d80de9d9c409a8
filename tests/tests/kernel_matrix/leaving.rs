//! Domains that leave and do not confirm that they forgot everything.

use iopt::ioas::{DetachError, Quarantined, SplitError, UnmapError};
use iopt_formats::{Iova, PageSize, PageSizes};
use iopt_tests::sink::{Call, ModelSink};

use crate::fixture::{
    BASE, Fixture, HUGE, PAGE, PAGE_COUNT, Runs, assert_gone, dynamic, memory, range,
};

fn fixture(domain_count: usize) -> Fixture {
    Fixture::new(memory(PAGE_COUNT, Runs::Single), domain_count)
}

/// It is asked once more for what it holds of an area, and flushes whatever was removed before.
#[test]
fn an_unmap_takes_its_area_out_of_a_domain_that_left_and_did_not_confirm() {
    for call in [Call::Unmap, Call::Sync] {
        let mut fixture = fixture(1);
        for place in 0..3 {
            fixture.map(BASE + place * HUGE, place * PAGE, PAGE);
        }
        let sink = fixture.sinks.remove(0);
        sink.fail(&[call], 0, true);
        let left = fixture.ioas.detach(&dynamic(&sink));
        assert!(matches!(left, Err(DetachError::NotFlushed(_))));
        let stuck = fixture.unmap(range(BASE, PAGE));
        assert!(matches!(stuck, Err(UnmapError::Quarantined { .. })));
        fixture.check_pinned(0, 3 * PAGE);
        sink.heal();
        let unmapped = fixture.unmap(range(BASE + 2 * HUGE, PAGE));
        assert_eq!(unmapped.expect("nothing fails any more"), PAGE);
        fixture.check_pinned(0, 2 * PAGE);
        let quarantined = fixture.ioas.quarantined();
        assert_eq!((quarantined.area_count, quarantined.domain_count), (1, 1));
        assert_eq!(fixture.ioas.retry_quarantined(), Quarantined::default());
        assert_gone(&sink);
        fixture.check_unpinned();
        assert_eq!(fixture.ioas.area_count(), 1);
    }
}

/// What came after it left may have any place and size: there is nothing of it in the domain.
#[test]
fn what_came_since_a_domain_left_need_not_fit_it() {
    for call in [Call::Unmap, Call::Sync] {
        let mut fixture = fixture(1);
        fixture.map(BASE, 0, PAGE);
        let sink = fixture.sinks.remove(0);
        sink.fail(&[call], 0, false);
        let left = fixture.ioas.detach(&dynamic(&sink));
        assert!(matches!(left, Err(DetachError::NotFlushed(_))));
        let narrow = PageSizes::EMPTY.with(PageSize::from_lg2(9));
        let other = fixture.watch(ModelSink::new(narrow));
        fixture.ioas.attach(dynamic(&other)).expect("it fits");
        for (iova, len) in [(0, PAGE), (BASE + PAGE + 512, 1024), (1 << 40, PAGE)] {
            fixture.map(iova, 0, len);
            let unmapped = fixture.unmap(range(iova, len));
            assert_eq!(unmapped.expect("nothing fails any more"), len);
        }
        fixture.detach(&other);
        assert_eq!(fixture.ioas.retry_quarantined(), Quarantined::default());
        assert_gone(&sink);
    }
}

/// Its leaves may reach over the border, and the parts are unmapped one by one.
#[test]
fn an_area_is_divided_when_a_domain_that_left_holds_nothing_of_it() {
    let memory = memory(PAGE_COUNT, Runs::Huge);
    let mut fixture = Fixture::with(memory, [ModelSink::huge()].into_iter());
    fixture.map(BASE, 0, HUGE);
    let sink = fixture.sinks.remove(0);
    sink.fail(&[Call::Unmap], 0, true);
    let left = fixture.ioas.detach(&dynamic(&sink));
    assert!(matches!(left, Err(DetachError::NotFlushed(_))));
    let border = Iova::new(BASE + PAGE);
    let refused = fixture.ioas.split(border);
    assert!(matches!(refused, Err(SplitError::Domain { .. })));
    assert_eq!(fixture.ioas.area_count(), 1);
    sink.heal();
    fixture.ioas.split(border).expect("nothing fails any more");
    let unmapped = fixture.unmap(range(BASE, PAGE));
    assert_eq!(unmapped.expect("the domain is flushed"), PAGE);
    fixture.check_pinned(PAGE, HUGE - PAGE);
    assert_eq!(fixture.ioas.retry_quarantined(), Quarantined::default());
    assert_gone(&sink);
    fixture.check_unpinned();
}

#[test]
fn a_domain_confirms_before_it_is_gone_what_it_did_not_confirm_to_an_unmap() {
    let mut fixture = fixture(1);
    fixture.map(BASE, 0, PAGE);
    let sink = fixture.sinks.remove(0);
    sink.fail(&[Call::Sync], 0, false);
    let stuck = fixture.unmap(range(BASE, PAGE));
    assert!(matches!(stuck, Err(UnmapError::Quarantined { .. })));
    fixture.detach(&sink);
    fixture.check_pinned(0, PAGE);
    assert_eq!(fixture.ioas.retry_quarantined(), Quarantined::default());
    fixture.check_unpinned();
}
