//! What devices that ask for pages, and processes that they are bound to, do behind IOMMUs of any architecture.

use alloc::sync::Arc;

use iopt_formats::Oa;
use iopt_formats::command::PageResponse;

use crate::device::Hwpt;
use crate::device::fault::{FaultHandler, RespondError};
use crate::device::process::{BindProcessError, ExitError, ProcessTables, Processes};
use crate::device::testing_faults::Collector;
use crate::device::testing_rig::{Rig, Subject, Switch, Toy, known, node, pasid};

/// Requests of all places reach their handlers, and answers the devices; who asks where nobody is gets an answer at
/// once.
pub(super) fn requests_are_answered<A: Subject>() {
    use PageResponse::{Failure, Invalid, Success};

    let rig = Rig::<A>::new();
    let (one, other) = (Collector::new(), Collector::new());
    rig.attach(2, 0, &Rig::capable(&one)).expect("it fits");
    rig.attach(2, 0xa_bcde, &Rig::capable(&other))
        .expect("it fits");
    rig.commands(0);
    let unit = &*rig.units[0];
    A::ask(unit, 0x12, 0xa_bcde, 0x1ff, false);
    A::ask(unit, 0x12, 0, 7, true);
    A::ask(unit, 0x12, 0xa_bcde, 0x1ff, true);
    let groups = one.take();
    assert_eq!((groups.len(), groups[0].device()), (1, node(2)));
    assert_eq!(groups[0].pasid(), None);
    for group in groups {
        group.respond(Success).expect("hardware takes it");
    }
    let groups = other.take();
    assert_eq!(groups[0].pasid(), Some(pasid(0xa_bcde)));
    assert_eq!(groups[0].requests().len(), 2);
    assert_eq!(groups[0].requests()[0].address.get(), 0x1234_5000);
    for group in groups {
        group.respond(Failure).expect("hardware takes it");
    }
    let expected = [(0x12, 0, 7, Success), (0x12, 0xa_bcde, 0x1ff, Failure)];
    assert_eq!(rig.answers(0), expected);
    // Nothing attached there, no such device, nothing to answer.
    A::ask(unit, 0x12, 6, 1, true);
    A::ask(unit, 0x1f, 3, 2, true);
    A::ask(unit, 0x1f, 3, 3, false);
    let expected = [(0x12, 6, 1, Invalid), (0x1f, 3, 2, Invalid)];
    assert_eq!(rig.answers(0), expected);
    // A PASID is named only to who wants that.
    let rig = Rig::<A>::with([true; 2], false);
    rig.attach(3, 5, &Rig::capable(&one)).expect("it fits");
    rig.commands(1);
    rig.ask(3, 5, 9);
    for group in one.take() {
        group.respond(Success).expect("hardware takes it");
    }
    assert_eq!(rig.answers(1), [(0x13, 0, 9, Success)]);
}

/// Where an IOMMU has no page requests, or a domain no ATS, nobody answers for pages.
pub(super) fn who_cannot_ask_is_refused<A: Subject>() {
    let rig = Rig::<A>::with([true, false], true);
    let collector = Collector::new();
    assert!(rig.attach(3, 0, &Rig::capable(&collector)).is_err());
    assert!(rig.endpoint(3).faults().is_none());
    // A group of which one member cannot.
    assert!(rig.attach(0, 0, &Rig::capable(&collector)).is_err());
    assert_eq!(rig.faults(0).count(), 0);
    let handler = Arc::clone(&collector) as Arc<dyn FaultHandler>;
    let plain = A::domain().without_ats().with_faults(handler);
    assert!(rig.attach(2, 0, &Arc::new(plain)).is_err());
    assert_eq!(rig.faults(2).count(), 0);
    assert!(!rig.allows(2) && !rig.allows(3));
    rig.attach(2, 0, &Rig::capable(&collector)).expect("it can");
}

/// Page requests are allowed after ATS and forbidden before it ends, and what was not answered is then.
pub(super) fn requests_end_with_the_domain<A: Subject>() {
    let rig = Rig::<A>::new();
    let collector = Collector::new();
    rig.attach(2, 0, &Rig::plain()).expect("it fits");
    assert!(!rig.allows(2));
    rig.detach(2, 0);
    rig.switches();
    rig.attach(2, 0, &Rig::capable(&collector))
        .expect("it fits");
    let on = [Switch::Ats(true), Switch::PageRequests(true)];
    assert_eq!(rig.switches(), on.map(|switch| (node(2), switch)));
    assert!(rig.allows(2));
    rig.ask(2, 0, 1);
    rig.commands(0);
    rig.detach(2, 0);
    let off = [Switch::PageRequests(false), Switch::Ats(false)];
    assert_eq!(rig.switches(), off.map(|switch| (node(2), switch)));
    assert!(!rig.allows(2));
    // The answer comes when contexts block for sure.
    let commands = rig.commands(0);
    let written = commands.iter().rposition(A::is_of_context);
    let answered = commands.iter().position(|it| A::answer(it).is_some());
    assert!(written.is_some() && written < answered, "{commands:?}");
    for group in collector.take() {
        let late = group.respond(PageResponse::Success);
        assert_eq!(late, Err(RespondError::Detached));
    }
    assert!(rig.answers(0).is_empty());
    // With the device, too.
    rig.attach(2, 7, &Rig::capable(&collector))
        .expect("it fits");
    rig.ask(2, 7, 2);
    rig.commands(0);
    rig.registry
        .lock_device(node(2))
        .expect("it is there")
        .remove();
    assert_eq!(rig.answers(0).len(), 1);
    collector.take();
    A::ask(&rig.units[0], 0x12, 7, 3, true);
    assert_eq!(rig.answers(0).len(), 1);
    assert!(collector.take().is_empty());
}

/// A3.8: requests without PASID and with three, in a group of two devices, with failures wherever one can be.
pub(super) fn devices_ask_between_one_enable_and_one_disable<A: Subject>() {
    let rig = Rig::<A>::new();
    let collector = Collector::new();
    let capable = || Rig::capable(&collector);
    let counts = || [0, 1].map(|number| rig.faults(number).count());
    let mut fresh = 0x1_0000;
    // The second member cannot be attached: its IOMMU does not say that it knows of new pieces of directories. The
    // first one was prepared by then.
    let mut fails = || {
        fresh += 0x1000;
        rig.silence(1, true);
        let before = counts();
        assert!(rig.attach(0, fresh, &capable()).is_err());
        assert_eq!(counts(), before, "a failure restores the count");
        rig.silence(1, false);
        // Nor with another answer about ATS than the others, nor with what is not the IOMMU's.
        if before[0] > 0 {
            let plain = Arc::new(A::domain().without_ats());
            assert!(rig.attach(0, 9, &plain).is_err());
        }
        let foreign: Arc<dyn Hwpt> = Arc::new(crate::device::tests::Foreign);
        let by = rig.by(0);
        assert!(rig.registry.attach(node(0), by, &foreign).is_err());
        assert_eq!(counts(), before);
    };
    let mut answered = [0; 2];
    let mut count_answers = || {
        for (unit, answered) in answered.iter_mut().enumerate() {
            *answered += rig.answers(unit).len();
        }
        answered
    };
    let ask = |place, group| {
        for number in [0, 1] {
            rig.ask(number, place, group);
        }
    };
    let may_ask = || [0, 1].map(|number| rig.allows(number));
    fails();
    assert!(!rig.faults(0).has_queue() && rig.switches().is_empty());
    let places = [0, 1, 2, 3];
    for (number, place) in places.into_iter().enumerate() {
        assert_eq!(may_ask(), [number > 0; 2]);
        rig.attach(0, place, &capable()).expect("it fits");
        assert_eq!(counts(), [number + 1; 2]);
        ask(place, number as u16);
        fails();
    }
    // Replaced, by another and by one that is not fault-capable, and back.
    for place in [0, 2] {
        rig.attach(0, place, &capable()).expect("it fits");
        rig.read_all();
        ask(place, 10 + place as u16);
        rig.attach(0, place, &Rig::plain()).expect("it fits");
        assert_eq!(counts(), [3; 2]);
        fails();
        rig.attach(0, place, &capable()).expect("it fits");
        rig.read_all();
        ask(place, 20 + place as u16);
    }
    for place in [2, 0, 3, 1] {
        assert_eq!(may_ask(), [true; 2]);
        rig.detach(0, place);
    }
    assert_eq!(may_ask(), [false; 2]);
    assert_eq!(counts(), [0; 2]);
    assert!(!rig.faults(0).has_queue() && !rig.faults(1).has_queue());
    for number in [0, 1] {
        assert_eq!(rig.request_switches(number), [true, false]);
        assert_eq!(rig.faults(number).open_count(), 0);
    }
    // Each of the eight groups was answered, once.
    assert_eq!(count_answers(), [8; 2]);
    let groups = collector.take();
    assert_eq!(groups.len(), 16);
    for group in groups {
        let late = group.respond(PageResponse::Success);
        assert_eq!(late, Err(RespondError::Detached));
    }
    rig.units.iter().for_each(|unit| A::assert_unused(unit));
}

/// F5: what an IOMMU has on record when a domain leaves a place is answered, so that the device asks again, and is asked
/// of none that comes after.
pub(super) fn what_was_asked_before_reaches_none_that_comes_after<A: Subject>() {
    let rig = Rig::<A>::new();
    let (old, new) = (Collector::new(), Collector::new());
    let unit = &*rig.units[0];
    for (place, is_replaced) in [(0, true), (5, false)] {
        rig.attach(2, place, &Rig::capable(&old)).expect("it fits");
        let before = A::begin(unit);
        if !is_replaced {
            rig.detach(2, place);
        }
        rig.attach(2, place, &Rig::capable(&new)).expect("it fits");
        rig.commands(0);
        let is_asked_again = |group| {
            rig.ask(2, place, group);
            rig.answers(0) == [(0x12, place, group, PageResponse::Success)]
        };
        assert!(is_asked_again(1));
        // That one may have seen an end of the queue that came before the domain left.
        before.finish();
        assert!(is_asked_again(2));
        let after = A::begin(unit);
        assert!(is_asked_again(3));
        assert!(old.take().is_empty() && new.take().is_empty());
        after.finish();
        assert!(!is_asked_again(4));
        assert_eq!((old.take().len(), new.take().len()), (0, 1));
        assert_eq!(rig.faults(2).unread_count(), 0);
    }
}

const ROOT: Oa = Oa::new(0x7654_3000);

/// F5 of PASIDs, which come again on their own.
pub(super) fn a_pasid_is_used_again_only_after_a_round<A: Subject>() {
    let rig = Rig::<A>::new();
    let processes = Processes::new(256);
    let asking = |identity| known(&processes, &Toy::new(identity, A::tables(ROOT), true));
    let unit = &*rig.units[0];
    let first = asking(1);
    let number = first.pasid();
    let bond = rig.bind(&first, 2).expect("it fits");
    let round = A::begin(unit);
    drop((bond, first));
    assert_eq!(processes.pasids().used_count(), 1, "it is nobody's");
    let second = asking(2);
    assert_ne!(second.pasid(), number);
    let _bond = rig.bind(&second, 2).expect("it fits");
    rig.commands(0);
    rig.ask(2, number.get(), 1);
    let refused = (0x12, number.get(), 1, PageResponse::Invalid);
    assert_eq!(rig.answers(0), [refused]);
    round.finish();
    assert_ne!(asking(3).pasid(), number);
    A::begin(unit).finish();
    assert_eq!(asking(4).pasid(), number);
    assert_eq!(processes.pasids().quarantined_count(), 0);
}

/// A3.10: bound twice is bound once; after the end nothing is walked, and nothing freed twice.
pub(super) fn a_process_is_walked_until_it_ends<A: Subject>() {
    let rig = Rig::<A>::new();
    let processes = Processes::new(256);
    let toy = Toy::new(77, A::tables(ROOT), true);
    let process = known(&processes, &toy);
    let place = process.pasid().get();
    // Beside a domain that stays, in a group, and elsewhere.
    rig.attach(0, 0, &Rig::plain()).expect("it fits");
    let kept = rig.root(0, 0);
    let first = rig.bind(&process, 0).expect("it fits");
    for number in [0, 1] {
        assert_eq!(rig.root(number, place), Some(ROOT));
        // The process's memory has a handler.
        assert!(rig.allows(number));
    }
    rig.forget_commands();
    assert!(Arc::ptr_eq(
        &first,
        &rig.bind(&process, 0).expect("it fits")
    ));
    let same_group = rig.bind(&process, 1).expect("it fits");
    assert!([0, 1].iter().all(|&unit| rig.commands(unit).is_empty()));
    let alone = rig.bind(&process, 2).expect("it fits");
    assert_eq!(rig.root(2, place), Some(ROOT));
    rig.ask(2, place, 5);
    rig.forget_commands();
    toy.end().expect("hardware answers");
    for number in [0, 1, 2] {
        assert_eq!(rig.root(number, place), None);
        let attached = rig.registry.attached(node(number), Some(pasid(place)));
        assert!(attached.is_some(), "until it is unbound");
    }
    assert_eq!((rig.root(0, 0), rig.root(1, 0)), (kept, kept));
    assert!(rig.bind(&process, 3).is_err());
    assert!(matches!(
        rig.bind(&process, 3),
        Err(BindProcessError::Exited)
    ));
    // Once more changes nothing, nor does what comes and goes beside it.
    toy.end().expect("hardware answers");
    rig.attach(0, 9, &Rig::plain()).expect("it fits");
    rig.detach(0, 9);
    assert_eq!(rig.root(0, place), None);
    drop((same_group, first, alone));
    assert!((0..3).all(|number| !rig.allows(number)));
    rig.detach(0, 0);
    drop(process);
    rig.read_all();
    assert_eq!(processes.pasids().used_count(), 0);
    rig.units.iter().for_each(|unit| A::assert_unused(unit));
}

/// S3 beside hardware that does not answer: the tables have to stay until it does.
pub(super) fn an_end_that_is_not_confirmed_is_an_error<A: Subject>() {
    let rig = Rig::<A>::new();
    let processes = Processes::new(256);
    let toy = Toy::new(77, A::tables(ROOT), false);
    let process = known(&processes, &toy);
    let place = process.pasid().get();
    let bonds = [0, 2].map(|number| rig.bind(&process, number).expect("it fits"));
    // Without a handler nobody asks.
    assert!(!rig.allows(0) && !rig.allows(2));
    rig.silence(1, true);
    assert_eq!(toy.end(), Err(ExitError));
    // Those behind the other one do not walk any more.
    assert_eq!((rig.root(0, place), rig.root(2, place)), (None, None));
    rig.silence(1, false);
    assert_eq!(toy.end(), Ok(()));
    assert_eq!(rig.root(1, place), None);
    drop(bonds);
    drop(process);
    rig.units.iter().for_each(|unit| A::assert_unused(unit));
}

/// Tables that hardware cannot walk.
pub(super) fn tables_that_do_not_fit_are_refused<A: Subject>(
    tables: impl IntoIterator<Item = ProcessTables>,
) {
    let rig = Rig::<A>::new();
    let processes = Processes::new(256);
    for (number, tables) in tables.into_iter().enumerate() {
        let toy = Toy::new(number as u64, tables, false);
        let process = known(&processes, &toy);
        let refused = rig.bind(&process, 2);
        assert!(
            matches!(refused, Err(BindProcessError::Domain(_))),
            "{tables:?}: {refused:?}"
        );
        assert!(
            rig.registry
                .attached(node(2), Some(process.pasid()))
                .is_none()
        );
    }
    rig.units.iter().for_each(|unit| A::assert_unused(unit));
}
