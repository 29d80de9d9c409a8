//! Page requests of devices behind units, from record to descriptor.

use iopt_formats::Iova;
use iopt_formats::command::PageResponse;
use iopt_formats::event::vtd::PageRequest as Record;

use super::rig::{ASKING_FEATURES, Rig, Switch, capable, first, node};
use super::*;
use crate::device::fault::{FaultGroup, RespondError};
use crate::device::testing_faults::Collector;
use crate::device::{AttachError, AttachFailure, Hwpt};

fn record(id: u16, place: u32, group: u32, is_last: bool) -> Record {
    Record {
        requester_id: id,
        pasid: (place > 0).then(|| pasid(place)),
        group: Narrow::new(group).expect("it fits"),
        is_last,
        is_read: true,
        is_write: false,
        is_fetch: false,
        is_privileged: false,
        address: Iova::new(0x1234_5000),
        private_data: None,
    }
}

fn response(id: u16, place: u32, group: u32, response: PageResponse) -> Descriptor {
    Descriptor::PageGroupResponse {
        requester_id: id,
        pasid: (place > 0).then(|| pasid(place)),
        response,
        group: Narrow::new(group).expect("it fits"),
        is_last: true,
        private_data: None,
    }
}

fn answers(rig: &Rig, unit: usize) -> Vec<Descriptor> {
    let mut commands = rig.commands(unit);
    commands.retain(|it| matches!(it, Descriptor::PageGroupResponse { .. }));
    commands
}

fn respond(groups: Vec<FaultGroup>, response: PageResponse) {
    for group in groups {
        group.respond(response).expect("the unit takes it");
    }
}

#[test]
fn a_page_request_reaches_the_handler_of_its_place_and_its_answer_the_device() {
    let rig = Rig::new();
    let (one, other) = (Collector::new(), Collector::new());
    rig.attach(2, 0, &capable(&one)).expect("it fits");
    rig.attach(2, 5, &capable(&other)).expect("it fits");
    let take = |record: &Record| rig.units[0].take_page_request(record).expect("answered");
    take(&record(0x12, 5, 0x1ff, false));
    take(&record(0x12, 0, 7, true));
    take(&Record {
        is_write: true,
        is_fetch: true,
        is_privileged: true,
        ..record(0x12, 5, 0x1ff, true)
    });
    let groups = one.take();
    assert_eq!((groups.len(), groups[0].device()), (1, node(2)));
    respond(groups, PageResponse::Success);
    let groups = other.take();
    assert_eq!((groups.len(), groups[0].pasid()), (1, Some(pasid(5))));
    let [plain, full] = groups[0].requests() else {
        panic!("{groups:?}");
    };
    assert_eq!(plain.address, Iova::new(0x1234_5000));
    assert!(plain.is_read && !plain.is_write && !plain.is_fetch && !plain.is_privileged);
    assert!(full.is_read && full.is_write && full.is_fetch && full.is_privileged);
    respond(groups, PageResponse::Failure);
    let expected = [
        response(0x12, 0, 7, PageResponse::Success),
        response(0x12, 5, 0x1ff, PageResponse::Failure),
    ];
    assert_eq!(answers(&rig, 0), expected);
    // Nothing attached there, no such device, nothing to answer, nothing asked.
    take(&record(0x12, 6, 1, true));
    take(&record(0x99, 3, 2, true));
    take(&record(0x99, 3, 3, false));
    take(&Record {
        is_read: false,
        ..record(0x12, 5, 4, true)
    });
    let expected = [
        response(0x12, 6, 1, PageResponse::Invalid),
        response(0x99, 3, 2, PageResponse::Invalid),
    ];
    assert_eq!(answers(&rig, 0), expected);
    assert!(one.take().is_empty() && other.take().is_empty());
}

/// What came with data is answered with it, each on its own.
#[test]
fn what_a_device_sends_along_comes_back_with_the_answer() {
    let rig = Rig::new();
    let collector = Collector::new();
    rig.attach(2, 5, &capable(&collector)).expect("it fits");
    let with = |data: u64, record: Record| Record {
        private_data: Some([data, !data]),
        ..record
    };
    let back = |data: u64, is_last: bool, response: Descriptor| match response {
        Descriptor::PageGroupResponse {
            requester_id,
            pasid,
            response,
            group,
            ..
        } => Descriptor::PageGroupResponse {
            requester_id,
            pasid,
            response,
            group,
            is_last,
            private_data: Some([data, !data]),
        },
        other => panic!("{other:?}"),
    };
    let take = |record: &Record| rig.units[0].take_page_request(record).expect("answered");
    let plain = record(0x12, 5, 3, false);
    let last = record(0x12, 5, 3, true);
    take(&plain);
    take(&with(1, plain));
    let alone = collector.take();
    assert_eq!(alone[0].requests().len(), 1);
    take(&with(2, plain));
    respond(collector.take(), PageResponse::Failure);
    respond(alone, PageResponse::Success);
    take(&with(3, last));
    let all = collector.take();
    assert_eq!(all[0].requests().len(), 2, "with the one that had no data");
    respond(all, PageResponse::Success);
    take(&last);
    let left = collector.take();
    assert_eq!(left[0].requests().len(), 1);
    respond(left, PageResponse::Success);
    take(&with(4, record(0x99, 0, 1, false)));
    let of = |response_| response(0x12, 5, 3, response_);
    let expected = [
        back(2, false, of(PageResponse::Failure)),
        back(1, false, of(PageResponse::Success)),
        back(3, true, of(PageResponse::Success)),
        of(PageResponse::Success),
        back(4, false, response(0x99, 0, 1, PageResponse::Invalid)),
    ];
    assert_eq!(answers(&rig, 0), expected);
    assert_eq!(rig.faults(2).partial_count(), 0);
}

#[test]
fn a_device_that_wants_no_pasids_in_responses_gets_none() {
    let rig = Rig::with(ASKING_FEATURES, TableMode::Scalable, true);
    let collector = Collector::new();
    rig.attach(2, 5, &capable(&collector)).expect("it fits");
    let taken = rig.units[0].take_page_request(&record(0x12, 5, 1, true));
    taken.expect("it is kept");
    respond(collector.take(), PageResponse::Success);
    let expected = [response(0x12, 0, 1, PageResponse::Success)];
    assert_eq!(answers(&rig, 0), expected);
}

#[test]
fn a_device_that_cannot_ask_gets_no_fault_capable_domain() {
    let lacking = Features {
        has_page_requests: false,
        ..ASKING_FEATURES
    };
    let collector = Collector::new();
    let is_refused = |refused: Result<(), AttachError>| {
        matches!(
            refused,
            Err(AttachError::Failed {
                error: AttachFailure::Unsupported {
                    what: "page requests"
                },
                ..
            })
        )
    };
    let rig = Rig::with(lacking, TableMode::Scalable, false);
    assert!(is_refused(rig.attach(0, 0, &capable(&collector))));
    assert!(rig.endpoint(1).faults().is_none());
    // Without ATS a device has nothing to ask for.
    let plain = first().without_ats().with_faults(Collector::new());
    assert!(is_refused(rig.attach(2, 0, &Arc::new(plain))));
    assert_eq!(rig.faults(2).count(), 0);
    rig.attach(2, 0, &capable(&collector)).expect("it can");
    // Nor in legacy mode.
    let rig = Rig::with(ASKING_FEATURES, TableMode::Legacy, false);
    for number in 0..3 {
        assert!(rig.endpoint(number).faults().is_none());
    }
    let taken = rig.units[0].take_page_request(&record(0x12, 0, 1, true));
    taken.expect("answered");
    let expected = [response(0x12, 0, 1, PageResponse::Invalid)];
    assert_eq!(answers(&rig, 0), expected);
}

/// `PRE` is set whenever the device may ask.
#[test]
fn page_requests_are_allowed_after_ats_and_forbidden_before_it_ends() {
    let rig = Rig::new();
    let collector = Collector::new();
    rig.attach(2, 3, &Arc::new(first())).expect("it fits");
    assert!(!rig.context(2).has_page_requests());
    rig.attach(2, 0, &capable(&collector)).expect("it fits");
    let on = [Switch::Ats(true), Switch::PageRequests(true)];
    assert_eq!(rig.switches(), on.map(|switch| (node(2), switch)));
    rig.detach(2, 3);
    rig.units[0]
        .take_page_request(&record(0x12, 0, 1, true))
        .expect("it is kept");
    rig.commands(0);
    rig.detach(2, 0);
    let off = [Switch::PageRequests(false), Switch::Ats(false)];
    assert_eq!(rig.switches(), off.map(|switch| (node(2), switch)));
    assert!(!rig.context(2).has_page_requests());
    // The answer comes when the entries block for sure.
    let commands = rig.commands(0);
    let answer = response(0x12, 0, 1, PageResponse::Invalid);
    let answered = commands.iter().position(|it| *it == answer);
    let is_entry = |it: &Descriptor| {
        matches!(
            it,
            Descriptor::ContextCache { .. } | Descriptor::PasidCache { .. }
        )
    };
    let written = commands.iter().rposition(is_entry);
    assert!(written.is_some() && written < answered, "{commands:?}");
    for group in collector.take() {
        let late = group.respond(PageResponse::Success);
        assert_eq!(late, Err(RespondError::Detached));
    }
    assert!(answers(&rig, 0).is_empty());
}

/// A3.8: requests without PASID and with three, in a group of two devices, with failures wherever one can be.
#[test]
fn a_device_is_allowed_to_ask_once_and_forbidden_once_whatever_fails_in_between() {
    let rig = Rig::new();
    let collector = Collector::new();
    let places = [0, 1, 2, 3];
    let counts = || [0, 1].map(|number| rig.faults(number).count());
    let mut switches = Vec::new();
    // The second member cannot be attached: its unit has no domain ID left. The first one was prepared by then.
    let fails = |place| {
        let mut taken = Vec::new();
        while let Ok(id) = rig.units[1].domain_ids().allocate() {
            taken.push(id);
        }
        let before = counts();
        let had = [0, 1].map(|number| rig.context(number).has_page_requests());
        assert!(rig.attach(0, place, &capable(&collector)).is_err());
        assert_eq!(counts(), before, "a failure restores the count");
        for id in taken {
            id.give_back_unused();
        }
        // Nor with another answer about ATS than the others, nor with what the unit cannot walk.
        if before[0] > 0 {
            let plain = first().without_ats();
            assert!(rig.attach(0, 9, &Arc::new(plain)).is_err());
        }
        let foreign: Arc<dyn Hwpt> = Arc::new(crate::device::tests::Foreign);
        let by = rig.by(0);
        assert!(rig.registry.attach(node(0), by, &foreign).is_err());
        assert_eq!(counts(), before);
        let has = [0, 1].map(|number| rig.context(number).has_page_requests());
        assert_eq!(has, had);
    };
    let ask = |place, group| {
        for (unit, id) in [(0, 0x10), (1, 0x11)] {
            let record = record(id, place, group, true);
            rig.units[unit].take_page_request(&record).expect("kept");
        }
    };
    let read_all = || {
        rig.units
            .each_ref()
            .map(|unit| unit.begin_page_requests().finish())
    };
    fails(0);
    fails(1);
    switches.extend(rig.switches());
    assert!(!rig.faults(0).has_queue() && switches.is_empty());
    for (number, place) in places.into_iter().enumerate() {
        rig.attach(0, place, &capable(&collector)).expect("it fits");
        assert_eq!(counts(), [number + 1; 2]);
        ask(place, number as u32);
        fails(place);
        fails(4);
    }
    // Replaced, by another and by one that is not fault-capable, and back.
    for place in [0, 2] {
        rig.attach(0, place, &capable(&collector)).expect("it fits");
        read_all();
        ask(place, 10 + place);
        rig.attach(0, place, &Arc::new(first())).expect("it fits");
        assert_eq!(counts(), [3; 2]);
        fails(place);
        rig.attach(0, place, &capable(&collector)).expect("it fits");
        read_all();
        ask(place, 20 + place);
    }
    for place in [2, 0, 3, 1] {
        assert!(rig.context(0).has_page_requests());
        rig.detach(0, place);
    }
    assert_eq!(counts(), [0; 2]);
    assert!(!rig.context(0).has_page_requests() && !rig.context(1).has_page_requests());
    switches.extend(rig.switches());
    for number in [0, 1] {
        assert!(!rig.faults(number).has_queue());
        let own = switches
            .iter()
            .filter(|(device, _)| *device == node(number));
        let own = own.filter(|(_, switch)| matches!(switch, Switch::PageRequests(_)));
        let own: Vec<_> = own.map(|(_, switch)| *switch).collect();
        let once = [Switch::PageRequests(true), Switch::PageRequests(false)];
        assert_eq!(own, once);
        // Each of the eight groups was answered, once.
        assert_eq!(answers(&rig, number).len(), 8);
        assert_eq!(rig.faults(number).open_count(), 0);
    }
    let groups = collector.take();
    assert_eq!(groups.len(), 16);
    for group in groups {
        let late = group.respond(PageResponse::Success);
        assert_eq!(late, Err(RespondError::Detached));
    }
    for unit in &rig.units {
        assert_eq!(unit.domain_ids().quarantined_count(), 0);
    }
}

#[test]
fn who_is_removed_is_asked_nothing_more_and_answered() {
    let rig = Rig::new();
    let collector = Collector::new();
    rig.attach(2, 0, &capable(&collector)).expect("it fits");
    let ask = || {
        let taken = rig.units[0].take_page_request(&record(0x12, 0, 1, true));
        taken.expect("answered");
    };
    ask();
    let guard = rig.registry.lock_device(node(2)).expect("it is there");
    guard.remove();
    assert_eq!(answers(&rig, 0).len(), 1);
    assert_eq!(collector.take().len(), 1);
    ask();
    assert_eq!(answers(&rig, 0).len(), 1);
    assert!(collector.take().is_empty());
}

#[test]
fn what_the_unit_answered_itself_is_forgotten_for_all_devices() {
    let rig = Rig::new();
    let collector = Collector::new();
    for device in [0, 2] {
        rig.attach(device, 0, &capable(&collector))
            .expect("it fits");
    }
    assert_eq!(rig.units[0].expire_page_requests(), None);
    let take = |record: &Record| rig.units[0].take_page_request(record).expect("kept");
    take(&record(0x10, 0, 1, false));
    take(&record(0x12, 0, 1, false));
    assert!(rig.units[0].expire_page_requests().is_some());
    rig.units[0].forget_partial_groups();
    assert_eq!(rig.units[0].expire_page_requests(), None);
    take(&record(0x12, 0, 1, true));
    assert_eq!(collector.take()[0].requests().len(), 1);
}

#[test]
fn draining_waits_behind_a_fence_where_the_unit_can() {
    let rig = Rig::new();
    assert_eq!(rig.units[0].drain_page_requests(), Ok(true));
    let drain = Descriptor::Wait {
        status: None,
        has_interrupt: false,
        is_fence: true,
        drains_page_requests: true,
    };
    assert_eq!(rig.commands(0), [drain]);
    let lacking = Features {
        has_page_request_drain: false,
        ..ASKING_FEATURES
    };
    let rig = Rig::with(lacking, TableMode::Scalable, false);
    assert_eq!(rig.units[1].drain_page_requests(), Ok(false));
    assert_eq!(rig.commands(1), []);
    rig.silence(0, true);
    assert!(rig.units[0].drain_page_requests().is_err());
}

#[test]
fn the_registers_say_who_passes_page_requests_on() {
    let of = |ecap| {
        let features = Features::from_registers(CAP, ecap, 48);
        (features.has_page_requests, features.has_page_request_drain)
    };
    assert_eq!(of(0), (false, false));
    assert_eq!(of(1 << 29), (true, false));
    assert_eq!(of(1 << 42), (false, true));
}
