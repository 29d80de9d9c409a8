//! Groups of page requests, from record to answer, on hardware that writes down what it is told.

use alloc::collections::BTreeMap;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::time::Duration;
use std::thread;

use iopt_formats::Iova;
use iopt_formats::command::Pasid;

use super::*;
use crate::device::testing_faults::{Collector, World, pasid};
use crate::device::tests::Gate;
use crate::invalidation::SyncError;

mod listeners;
mod mailbox;
mod rounds;
mod threads;

const PORT: Requester = Requester { port: 0, id: 0x18 };

pub(super) const fn request(page: u64) -> PageRequest {
    PageRequest {
        address: Iova::new(page << 12),
        is_read: true,
        is_write: false,
        is_fetch: false,
        is_privileged: false,
    }
}

pub(super) const fn member(pasid: Option<Pasid>, group: u16, page: u64, is_last: bool) -> Reported {
    Reported {
        requester: PORT,
        pasid,
        origin: Origin::Group(group),
        is_last,
        request: request(page),
    }
}

fn attach(faults: &Arc<DeviceFaults>, place: Option<Pasid>, handler: &Arc<Collector>) {
    let handler = Arc::clone(handler) as Arc<dyn FaultHandler>;
    let counted = faults.prepare(handler).expect("memory");
    faults.begin_change(place, true);
    faults.change(place, Some(counted));
}

fn detach(faults: &Arc<DeviceFaults>, place: Option<Pasid>) {
    faults.begin_change(place, false);
    faults.change(place, None);
}

fn pages(group: &FaultGroup) -> Vec<u64> {
    let requests = group.requests().iter();
    requests
        .map(|request| request.address.get() >> 12)
        .collect()
}

#[test]
fn requests_are_kept_until_the_last_of_their_group_comes() {
    let world = World::new();
    let faults = world.faults();
    let (one, other) = (Collector::new(), Collector::new());
    attach(&faults, None, &one);
    attach(&faults, pasid(3), &other);
    // Two places and two groups at once, in any order.
    faults.report(&member(None, 5, 1, false));
    faults.report(&member(pasid(3), 5, 2, false));
    faults.report(&member(None, 6, 3, false));
    faults.report(&member(None, 5, 4, false));
    assert_eq!(faults.partial_count(), 3);
    assert!(one.take().is_empty() && other.take().is_empty());
    faults.report(&member(None, 5, 5, true));
    let groups = one.take();
    assert_eq!(groups.len(), 1);
    assert_eq!(pages(&groups[0]), [1, 4, 5]);
    assert_eq!(
        (groups[0].pasid(), groups[0].device()),
        (None, world.address)
    );
    faults.report(&member(pasid(3), 5, 6, true));
    let others = other.take();
    assert_eq!(pages(&others[0]), [2, 6]);
    assert_eq!(others[0].pasid(), pasid(3));
    assert_eq!((faults.partial_count(), faults.open_count()), (1, 2));
    assert!(world.answers().is_empty());
}

#[test]
fn groups_are_answered_one_by_one_in_any_order() {
    let world = World::new();
    let faults = world.faults();
    let collector = Collector::new();
    attach(&faults, pasid(3), &collector);
    for group in 0..3 {
        faults.report(&member(pasid(3), group, 1, true));
    }
    let mut groups = collector.take();
    let responses = [
        PageResponse::Failure,
        PageResponse::Success,
        PageResponse::Invalid,
    ];
    for (at, response) in [(2, responses[0]), (0, responses[1]), (0, responses[2])] {
        let group = groups.remove(at);
        assert!(group.is_open());
        group.respond(response).expect("hardware takes it");
    }
    let expected: Vec<_> = [(2, responses[0]), (0, responses[1]), (1, responses[2])]
        .iter()
        .map(|&(group, response)| Answer {
            requester: PORT,
            pasid: pasid(3),
            origin: Origin::Group(group),
            response,
        })
        .collect();
    assert_eq!(world.answers(), expected);
    assert_eq!(faults.open_count(), 0);
}

#[test]
fn responses_name_the_pasid_only_where_the_device_wants_it() {
    let world = World::new();
    world.with(|inner| inner.needs_no_pasids = true);
    let faults = world.faults();
    let collector = Collector::new();
    attach(&faults, pasid(3), &collector);
    faults.report(&member(pasid(3), 1, 1, true));
    faults.report(&member(pasid(4), 2, 1, true));
    drop(collector.take());
    let pasids: Vec<_> = world.answers().iter().map(|answer| answer.pasid).collect();
    assert_eq!(pasids, [None, None]);
}

#[test]
fn what_nobody_can_be_asked_is_answered_at_once() {
    let world = World::new();
    let faults = world.faults();
    // No queue at all; then another place than the one that is attached.
    faults.report(&member(None, 1, 1, false));
    assert!(world.answers().is_empty(), "more of the group follows");
    faults.report(&member(None, 1, 1, true));
    let collector = Collector::new();
    attach(&faults, pasid(3), &collector);
    faults.report(&member(None, 2, 1, false));
    faults.report(&member(None, 2, 1, true));
    faults.report(&member(pasid(4), 3, 1, true));
    faults.report(&Reported {
        origin: Origin::Stall(7),
        is_last: false,
        ..member(pasid(4), 0, 1, false)
    });
    let answers = world.answers();
    let origins: Vec<_> = answers.iter().map(|answer| answer.origin).collect();
    let group = Origin::Group;
    assert_eq!(origins, [group(1), group(2), group(3), Origin::Stall(7)]);
    let mut responses = answers.iter().map(|answer| answer.response);
    assert!(responses.all(|response| response == PageResponse::Invalid));
    assert!(collector.take().is_empty());
    assert_eq!((faults.partial_count(), faults.open_count()), (0, 0));
}

#[test]
fn a_transaction_that_waits_is_a_group_of_its_own() {
    let world = World::new();
    let faults = world.faults();
    let collector = Collector::new();
    attach(&faults, pasid(3), &collector);
    for tag in [9, 8] {
        faults.report(&Reported {
            origin: Origin::Stall(tag),
            ..member(pasid(3), 0, 1, false)
        });
    }
    let groups = collector.take();
    assert_eq!(groups.len(), 2);
    for group in groups {
        group.respond(PageResponse::Success).expect("it is open");
    }
    let origins: Vec<_> = world.answers().iter().map(|it| it.origin).collect();
    assert_eq!(origins, [Origin::Stall(9), Origin::Stall(8)]);
}

#[test]
fn a_group_that_is_dropped_is_answered() {
    let world = World::new();
    let faults = world.faults();
    let collector = Collector::new();
    attach(&faults, None, &collector);
    faults.report(&member(None, 1, 1, true));
    drop(collector.take());
    let answers = world.answers();
    assert_eq!(answers.len(), 1);
    assert_eq!(answers[0].response, PageResponse::Invalid);
    assert_eq!(faults.open_count(), 0);
}

#[test]
fn what_is_not_answered_in_time_is_answered_and_later_refused() {
    let world = World::new();
    let faults = world.faults();
    let collector = Collector::new();
    attach(&faults, None, &collector);
    assert_eq!(faults.expire(), None);
    faults.report(&member(None, 1, 1, true));
    world.pass(4);
    faults.report(&member(None, 2, 1, true));
    faults.report(&member(None, 3, 1, false));
    assert_eq!(faults.expire(), Some(Duration::from_secs(10)));
    world.pass(5);
    assert_eq!(faults.expire(), Some(Duration::from_secs(10)));
    assert!(world.answers().is_empty());
    world.pass(1);
    assert_eq!(faults.expire(), Some(Duration::from_secs(14)));
    let answers = world.answers();
    assert_eq!(answers.len(), 1);
    assert_eq!(answers[0].origin, Origin::Group(1));
    assert_eq!(answers[0].response, PageResponse::Invalid);
    let mut groups = collector.take();
    let late = groups.remove(0);
    assert!(!late.is_open());
    assert_eq!(
        late.respond(PageResponse::Success),
        Err(RespondError::TimedOut)
    );
    assert!(world.answers().is_empty());
    // Too late, though nobody looked at the clock.
    world.pass(4);
    let late = groups.remove(0).respond(PageResponse::Success);
    assert_eq!(late, Err(RespondError::TimedOut));
    let answers = world.answers();
    assert_eq!(answers.len(), 1);
    assert_eq!(answers[0].origin, Origin::Group(2));
    assert_eq!(answers[0].response, PageResponse::Invalid);
    // The last request of the third group never came.
    assert_eq!(faults.partial_count(), 1);
    assert_eq!(faults.expire(), None);
    assert_eq!((faults.partial_count(), faults.open_count()), (0, 0));
    assert!(world.answers().is_empty());
}

#[test]
fn a_domain_that_leaves_a_place_answers_what_came_there_and_nothing_else() {
    let world = World::new();
    let faults = world.faults();
    let (old, new, other) = (Collector::new(), Collector::new(), Collector::new());
    attach(&faults, pasid(3), &old);
    attach(&faults, None, &other);
    faults.report(&member(pasid(3), 1, 1, true));
    faults.report(&member(pasid(3), 2, 1, true));
    faults.report(&member(pasid(3), 3, 1, false));
    faults.report(&member(None, 4, 1, true));
    faults.report(&member(None, 5, 1, false));
    attach(&faults, pasid(3), &new);
    let answers = world.answers();
    let origins: Vec<_> = answers.iter().map(|it| it.origin).collect();
    assert_eq!(origins, [Origin::Group(1), Origin::Group(2)]);
    assert!(
        answers
            .iter()
            .all(|it| it.response == PageResponse::Invalid)
    );
    for group in old.take() {
        assert!(!group.is_open());
        let late = group.respond(PageResponse::Success);
        assert_eq!(late, Err(RespondError::Detached));
    }
    assert_eq!((faults.partial_count(), faults.open_count()), (1, 1));
    // What comes now is the new one's, without what the old one was to get.
    faults.report(&member(pasid(3), 3, 9, true));
    assert!(old.take().is_empty());
    let groups = new.take();
    assert_eq!(pages(&groups[0]), [9]);
    detach(&faults, pasid(3));
    let late = groups.into_iter().next().expect("one");
    assert_eq!(
        late.respond(PageResponse::Success),
        Err(RespondError::Detached)
    );
    assert_eq!(world.answers().len(), 1);
    let mut others = other.take();
    let own = others.remove(0).respond(PageResponse::Success);
    own.expect("it never left");
}

/// A3.8, as far as it is the queue's: failures are preparations that come to nothing.
#[test]
fn a_device_may_ask_from_the_first_fault_capable_attachment_to_the_last() {
    let world = World::new();
    let faults = world.faults();
    let collector = Collector::new();
    let handler = || Arc::clone(&collector) as Arc<dyn FaultHandler>;
    let places = [None, pasid(1), pasid(2), pasid(3)];
    assert!(!faults.has_queue());
    // The first one fails: there was a queue for a moment, and the device never asked.
    let failing = faults.prepare(handler()).expect("memory");
    assert!(faults.has_queue());
    drop(failing);
    assert!(!faults.has_queue());
    assert_eq!((faults.count(), world.switches()), (0, Vec::new()));
    for (number, &place) in places.iter().enumerate() {
        attach(&faults, place, &collector);
        drop(faults.prepare(handler()).expect("memory"));
        assert_eq!(faults.count(), number + 1);
        faults.report(&member(place, number as u16, 1, true));
    }
    // Replacing: the new one is counted before the old one is gone.
    let counted = faults.prepare(handler()).expect("memory");
    assert_eq!(faults.count(), 5);
    faults.begin_change(None, true);
    faults.change(None, Some(counted));
    assert_eq!(faults.count(), 4);
    // A domain without a handler in place of one with.
    detach(&faults, pasid(2));
    detach(&faults, pasid(2));
    assert_eq!(faults.count(), 3);
    attach(&faults, pasid(2), &collector);
    for &place in &places[1..] {
        detach(&faults, place);
    }
    assert_eq!((faults.count(), world.switches()), (1, [true].to_vec()));
    attach(&faults, None, &collector);
    detach(&faults, None);
    assert_eq!(
        (faults.count(), world.switches()),
        (0, [true, false].to_vec())
    );
    assert!(!faults.has_queue());
    let answers = world.answers();
    assert_eq!(answers.len(), 4, "no group is unanswered");
    for group in collector.take() {
        let late = group.respond(PageResponse::Success);
        assert_eq!(late, Err(RespondError::Detached));
    }
    assert!(world.answers().is_empty());
}

#[test]
fn a_last_attachment_that_leaves_beside_a_preparation_ends_the_asking_not_the_queue() {
    let world = World::new();
    let faults = world.faults();
    let collector = Collector::new();
    attach(&faults, None, &collector);
    let handler = Arc::clone(&collector) as Arc<dyn FaultHandler>;
    let counted = faults.prepare(handler).expect("memory");
    detach(&faults, None);
    assert!(faults.has_queue());
    faults.change(pasid(1), Some(counted));
    assert_eq!(world.switches(), [true, false, true]);
    faults.report(&member(pasid(1), 1, 1, true));
    assert_eq!(collector.take().len(), 1);
}

#[test]
fn a_device_that_asks_for_more_than_it_may_is_refused_not_remembered() {
    let world = World::new();
    let faults = world.faults_with(|settings| {
        settings.group_limit = 2;
        settings.request_limit = 3;
    });
    let collector = Collector::new();
    attach(&faults, None, &collector);
    for page in 0..5 {
        faults.report(&member(None, 1, page, false));
    }
    faults.report(&member(None, 2, 9, false));
    faults.report(&member(None, 3, 9, false));
    assert_eq!(faults.partial_count(), 2);
    // Neither is whole.
    faults.report(&member(None, 1, 9, true));
    faults.report(&member(None, 2, 9, true));
    let answers = world.answers();
    assert_eq!(answers.len(), 2);
    assert!(
        answers
            .iter()
            .all(|it| it.response == PageResponse::Invalid)
    );
    assert!(collector.take().is_empty());
    // There is room again.
    for page in 0..3 {
        faults.report(&member(None, 1, page, false));
    }
    faults.report(&member(None, 1, 3, true));
    faults.report(&member(None, 2, 1, true));
    faults.report(&member(None, 3, 1, true));
    let groups = collector.take();
    assert_eq!(groups.len(), 2);
    assert_eq!(pages(&groups[0]), [0, 1, 2, 3]);
    let answers = world.answers();
    assert_eq!(answers.len(), 1);
    assert_eq!(answers[0].origin, Origin::Group(3));
}

#[test]
fn a_group_of_which_hardware_lost_the_end_is_forgotten() {
    let world = World::new();
    let faults = world.faults();
    let collector = Collector::new();
    attach(&faults, None, &collector);
    faults.report(&member(None, 1, 1, false));
    faults.forget_partial();
    // Its index names another group now.
    faults.report(&member(None, 1, 2, true));
    assert_eq!(pages(&collector.take()[0]), [2]);
}

#[test]
fn an_answer_that_hardware_does_not_take_is_an_error_and_counted() {
    let world = World::new();
    let faults = world.faults();
    let collector = Collector::new();
    attach(&faults, None, &collector);
    faults.report(&member(None, 1, 1, true));
    faults.report(&member(None, 2, 1, true));
    world.with(|inner| inner.is_silent = true);
    let mut groups = collector.take();
    let refused = groups.remove(0).respond(PageResponse::Success);
    assert_eq!(refused, Err(RespondError::Hardware(SyncError::TimedOut)));
    assert_eq!(faults.lost_count(), 1);
    detach(&faults, None);
    assert_eq!((faults.lost_count(), faults.open_count()), (2, 0));
}

/// Each answer that is not taken takes all the time that hardware has for one.
#[test]
fn hardware_that_takes_no_answer_is_not_asked_about_all_others() {
    let world = World::new();
    let faults = world.faults();
    let collector = Collector::new();
    let silent = |groups: core::ops::Range<u16>, end: &dyn Fn()| {
        attach(&faults, None, &collector);
        for group in groups {
            faults.report(&member(None, group, 1, true));
        }
        world.with(|inner| (inner.is_silent, inner.refused_count) = (true, 0));
        end();
        assert_eq!(world.with(|inner| inner.refused_count), 1);
        world.with(|inner| inner.is_silent = false);
    };
    silent(0..5, &|| detach(&faults, None));
    assert_eq!((faults.lost_count(), faults.open_count()), (5, 0));
    silent(5..12, &|| {
        world.pass(11);
        faults.expire();
    });
    assert_eq!((faults.lost_count(), faults.open_count()), (12, 0));
}

#[test]
fn a_handler_that_never_returns_hangs_nobody_who_detaches() {
    struct Stuck(Arc<Gate>);
    impl FaultHandler for Stuck {
        fn handle(&self, group: FaultGroup) {
            self.0.stop();
            let late = group.respond(PageResponse::Success);
            assert_eq!(late, Err(RespondError::Detached));
        }
    }
    let world = World::new();
    let faults = world.faults();
    let gate = Gate::new();
    let stuck = Arc::new(Stuck(Arc::clone(&gate)));
    let counted = faults.prepare(stuck).expect("memory");
    faults.change(None, Some(counted));
    thread::scope(|scope| {
        let reporting = scope.spawn(|| faults.report(&member(None, 1, 1, true)));
        gate.await_stop();
        detach(&faults, None);
        assert_eq!(world.answers().len(), 1);
        gate.go_on();
        reporting.join().expect("it is refused");
    });
    assert!(world.answers().is_empty());
}

#[test]
fn handlers_are_called_with_no_lock_held_and_may_change_what_is_attached() {
    struct Leaver(Arc<World>);
    impl FaultHandler for Leaver {
        fn handle(&self, group: FaultGroup) {
            crate::sync::lockdep::assert_none_held();
            let faults = Arc::clone(&self.0.faults());
            detach(&faults, group.pasid());
            let late = group.respond(PageResponse::Success);
            assert_eq!(late, Err(RespondError::Detached));
        }
    }
    let world = World::new();
    let faults = world.faults();
    let leaver = Arc::new(Leaver(Arc::clone(&world)));
    faults.change(None, Some(faults.prepare(leaver).expect("memory")));
    faults.report(&member(None, 1, 1, true));
    assert_eq!(world.answers().len(), 1);
    assert_eq!(faults.count(), 0);
}

/// Random requests, answers, attachments and time: each group that was complete is answered once.
#[test]
fn every_complete_group_is_answered_exactly_once_whatever_happens() {
    for start in 1..40_u64 {
        let world = World::new();
        let faults = world.faults_with(|settings| settings.group_limit = 6);
        let collector = Collector::new();
        let mut seed = start << 20 | 0x9d;
        let mut below = |count: u64| {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            (seed >> 20) % count
        };
        let mut groups = Vec::new();
        let mut complete: BTreeMap<u16, usize> = BTreeMap::new();
        let mut answered: BTreeMap<u16, usize> = BTreeMap::new();
        let mut next = 0;
        for _ in 0..400 {
            let place = pasid(below(3) as u32).filter(|pasid| pasid.get() > 0);
            match below(8) {
                0 => attach(&faults, place, &collector),
                1 => detach(&faults, place),
                2 => {
                    world.pass(below(4));
                    faults.expire();
                }
                3 => {
                    groups.extend(collector.take());
                    if !groups.is_empty() {
                        let group: FaultGroup =
                            groups.swap_remove(below(groups.len() as u64) as usize);
                        let is_open = group.is_open();
                        let responded = group.respond(PageResponse::Success);
                        assert!(is_open || responded.is_err());
                    }
                }
                4 => faults.report(&member(place, next, 1, false)),
                _ => {
                    faults.report(&member(place, next, 1, true));
                    *complete.entry(next).or_default() += 1;
                    next += 1;
                }
            }
        }
        for place in [None, pasid(1), pasid(2)] {
            detach(&faults, place);
        }
        groups.extend(collector.take());
        for group in groups {
            assert!(group.respond(PageResponse::Success).is_err());
        }
        for answer in world.answers() {
            let Origin::Group(group) = answer.origin else {
                panic!("no stalls")
            };
            *answered.entry(group).or_default() += 1;
        }
        assert_eq!(complete, answered);
        assert_eq!((faults.count(), faults.has_queue()), (0, false));
        let switches = world.switches();
        let mut pairs = switches.chunks(2);
        assert!(pairs.all(|pair| pair == [true, false]), "{switches:?}");
    }
}
