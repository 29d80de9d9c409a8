//! Page requests and stalls of devices behind SMMUs, from record to command.

use iopt_formats::command::smmuv3::PageResponse as PriResponse;
use iopt_formats::command::{Narrow, PageResponse};
use iopt_formats::context::smmuv3::StreamConfig;
use iopt_formats::event::smmuv3::{Event, Fault, FaultClass, FaultKind, PageRequest as Record};
use iopt_formats::{Iova, Oa};

use super::*;
use crate::device::driver::Published;
use crate::device::fault::{FaultGroup, RespondError};
use crate::device::testing_faults::Collector;
use crate::device::testing_smmu::{self, Rig, Switch, capable, node};
use crate::device::{
    AttachError, DeviceTlb, Driver as _, Identity, ProbeError, ProbeRequest, Stream,
};
use crate::firmware::InstanceIndex;

fn record(stream: u32, place: u32, group: u32, is_last: bool) -> Record {
    Record {
        stream,
        substream: (place > 0).then(|| pasid(place)),
        group: Narrow::new(group).expect("it fits"),
        is_last,
        is_read: true,
        is_write: false,
        is_fetch: false,
        is_privileged: false,
        address: Iova::new(0x1234_5000),
    }
}

fn stall(stream: u32, place: u32, stag: u16) -> Event {
    Event::Fault(Fault {
        kind: FaultKind::Translation,
        stream,
        substream: (place > 0).then(|| pasid(place)),
        stall: Some(stag),
        is_read: false,
        is_fetch: false,
        is_privileged: false,
        is_stage2: false,
        class: FaultClass::Input,
        address: Iova::new(0x1234_5678),
        ipa: Oa::new(0),
    })
}

fn response(stream: u32, place: u32, group: u32, response: PriResponse) -> Command {
    Command::PriResp {
        stream,
        substream: (place > 0).then(|| pasid(place)),
        group: Narrow::new(group).expect("it fits"),
        response,
    }
}

fn resume(stream: u32, stag: u16, is_retry: bool) -> Command {
    Command::Resume {
        stream,
        is_secure: false,
        stag,
        is_retry,
        is_abort: !is_retry,
    }
}

fn answers(rig: &Rig, smmu: usize) -> Vec<Command> {
    let mut commands = rig.commands(smmu);
    commands.retain(|it| matches!(it, Command::PriResp { .. } | Command::Resume { .. }));
    commands
}

#[test]
fn a_page_request_reaches_the_handler_of_its_place_and_its_answer_the_device() {
    let rig = Rig::new();
    let (one, other) = (Collector::new(), Collector::new());
    rig.attach(2, 0, &capable(&one)).expect("it fits");
    rig.attach(2, 5, &capable(&other)).expect("it fits");
    let take = |record: &Record| rig.smmus[0].take_page_request(record).expect("answered");
    take(&record(0x12, 5, 0x1ff, false));
    take(&record(0x12, 0, 7, true));
    take(&record(0x12, 5, 0x1ff, true));
    let groups: Vec<FaultGroup> = one.take();
    assert_eq!((groups.len(), groups[0].device()), (1, node(2)));
    let responses = [
        (PageResponse::Success, PriResponse::Success),
        (PageResponse::Failure, PriResponse::Failure),
    ];
    for group in groups {
        group.respond(responses[0].0).expect("the SMMU takes it");
    }
    let groups = other.take();
    assert_eq!(groups[0].requests().len(), 2);
    assert_eq!(groups[0].requests()[0].address, Iova::new(0x1234_5000));
    for group in groups {
        group.respond(responses[1].0).expect("the SMMU takes it");
    }
    let expected = [
        response(0x12, 0, 7, responses[0].1),
        response(0x12, 5, 0x1ff, responses[1].1),
    ];
    assert_eq!(answers(&rig, 0), expected);
    // Nothing attached there, no such stream, nothing to answer, nothing asked.
    take(&record(0x12, 6, 1, true));
    take(&record(0x99, 3, 2, true));
    take(&record(0x99, 3, 3, false));
    take(&Record {
        is_read: false,
        ..record(0x12, 5, 4, true)
    });
    let expected = [
        response(0x12, 6, 1, PriResponse::Invalid),
        response(0x99, 3, 2, PriResponse::Invalid),
    ];
    assert_eq!(answers(&rig, 0), expected);
    assert!(one.take().is_empty() && other.take().is_empty());
}

#[test]
fn a_transaction_that_waits_is_retried_or_aborted() {
    let rig = Rig::with(testing_smmu::FEATURES, true);
    let collector = Collector::new();
    // ATS is not needed for that.
    rig.attach(2, 0, &Arc::new(testing_smmu::stage1()))
        .expect("it fits");
    assert!(!rig.cd(2, 0).stalls());
    rig.attach(2, 5, &capable(&collector)).expect("it fits");
    assert!(rig.cd(2, 5).stalls() && !rig.cd(2, 0).stalls());
    assert!(!rig.ste(2).stage1_stalls_disabled());
    let take = |event: &Event| rig.smmus[0].take_event(event).expect("answered");
    assert!(take(&stall(0x12, 5, 1)));
    assert!(take(&stall(0x12, 5, 2)));
    let mut groups = collector.take();
    assert!(groups[0].requests()[0].is_write);
    let last = groups.pop().expect("two");
    last.respond(PageResponse::Success).expect("it is open");
    let first = groups.pop().expect("two");
    first.respond(PageResponse::Invalid).expect("it is open");
    assert!(take(&stall(0x12, 0, 3)));
    assert!(take(&stall(0x99, 0, 4)));
    let expected = [
        resume(0x12, 2, true),
        resume(0x12, 1, false),
        resume(0x12, 3, false),
        resume(0x99, 4, false),
    ];
    assert_eq!(answers(&rig, 0), expected);
    // What does not wait needs no answer.
    let Event::Fault(fault) = stall(0x12, 5, 5) else {
        panic!("it is one");
    };
    assert!(!take(&Event::Fault(Fault {
        stall: None,
        ..fault
    })));
    assert!(!take(&Event::Other {
        number: 2,
        stream: 0x12,
        substream: None
    }));
    assert!(answers(&rig, 0).is_empty() && collector.take().is_empty());
}

#[test]
fn a_device_that_cannot_ask_gets_no_fault_capable_domain() {
    let lacking = Features {
        has_page_requests: false,
        ..testing_smmu::FEATURES
    };
    let rig = Rig::with(lacking, false);
    let collector = Collector::new();
    let refused = rig.attach(3, 0, &capable(&collector));
    assert!(matches!(
        refused,
        Err(AttachError::Failed {
            error: AttachFailure::Unsupported {
                what: "page requests"
            },
            ..
        })
    ));
    assert!(rig.endpoint(3).faults().is_none());
    // Without ATS a device has nothing to ask for.
    let plain = testing_smmu::stage1()
        .without_ats()
        .with_faults(Collector::new());
    assert!(rig.attach(2, 0, &Arc::new(plain)).is_err());
    assert_eq!(rig.faults(2).count(), 0);
    rig.attach(2, 0, &capable(&collector)).expect("it can");
}

#[test]
fn page_requests_are_allowed_after_ats_and_forbidden_before_it_ends() {
    let rig = Rig::new();
    let collector = Collector::new();
    rig.attach(2, 0, &capable(&collector)).expect("it fits");
    let on = [Switch::Ats(true), Switch::PageRequests(true)];
    assert_eq!(rig.switches(), on.map(|switch| (node(2), switch)));
    rig.smmus[0]
        .take_page_request(&record(0x12, 0, 1, true))
        .expect("it is kept");
    rig.commands(0);
    rig.detach(2, 0);
    let off = [Switch::PageRequests(false), Switch::Ats(false)];
    assert_eq!(rig.switches(), off.map(|switch| (node(2), switch)));
    // The answer comes when the STE blocks for sure.
    let commands = rig.commands(0);
    let answer = response(0x12, 0, 1, PriResponse::Invalid);
    let answered = commands.iter().position(|it| *it == answer);
    let ste = |it: &Command| matches!(it, Command::CfgiSte { .. });
    let written = commands.iter().rposition(ste);
    assert!(written < answered, "{commands:?}");
    assert_eq!(rig.ste(2).config(), StreamConfig::Abort);
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
    // The second member cannot be attached: its SMMU has no ASID left. The first one was prepared by then.
    let fails = |place| {
        let mut taken = Vec::new();
        while let Ok(id) = rig.smmus[1].asids().allocate() {
            taken.push(id);
        }
        let before = counts();
        assert!(rig.attach(0, place, &capable(&collector)).is_err());
        assert_eq!(counts(), before, "a failure restores the count");
        for id in taken {
            id.give_back_unused();
        }
        // Nor with another answer about ATS than the others, nor with what the SMMU cannot walk.
        if before[0] > 0 {
            let plain = testing_smmu::stage1().without_ats();
            assert!(rig.attach(0, 9, &Arc::new(plain)).is_err());
        }
        let foreign: Arc<dyn Hwpt> = Arc::new(crate::device::tests::Foreign);
        let by = rig.by(0);
        assert!(rig.registry.attach(node(0), by, &foreign).is_err());
        assert_eq!(counts(), before);
    };
    let ask = |place, group| {
        for (smmu, stream) in [(0, 0x10), (1, 0x11)] {
            let record = record(stream, place, group, true);
            rig.smmus[smmu].take_page_request(&record).expect("kept");
        }
    };
    fails(0);
    fails(1);
    assert!(!rig.faults(0).has_queue() && rig.switches().is_empty());
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
        ask(place, 10 + place);
        rig.attach(0, place, &Arc::new(testing_smmu::stage1()))
            .expect("it fits");
        assert_eq!(counts(), [3; 2]);
        fails(place);
        rig.attach(0, place, &capable(&collector)).expect("it fits");
        ask(place, 20 + place);
    }
    for place in [2, 0, 3, 1] {
        rig.detach(0, place);
    }
    assert_eq!(counts(), [0; 2]);
    assert!(!rig.faults(0).has_queue() && !rig.faults(1).has_queue());
    for number in [0, 1] {
        let switches = rig.switches_of(number);
        let requests = switches
            .iter()
            .filter(|it| matches!(it, Switch::PageRequests(_)));
        let requests: Vec<_> = requests.collect();
        let once = [Switch::PageRequests(true), Switch::PageRequests(false)];
        assert_eq!(requests, once.iter().collect::<Vec<_>>());
        // Each of the eight groups was answered, once.
        assert_eq!(answers(&rig, number).len(), 8);
        assert_eq!(rig.faults(number).open_count(), 0);
    }
    for group in collector.take() {
        let late = group.respond(PageResponse::Success);
        assert_eq!(late, Err(RespondError::Detached));
    }
    for smmu in &rig.smmus {
        assert_eq!(smmu.asids().quarantined_count(), 0);
    }
}

#[test]
fn who_is_removed_is_asked_nothing_more_and_answered() {
    let rig = Rig::new();
    let collector = Collector::new();
    rig.attach(2, 0, &capable(&collector)).expect("it fits");
    let ask = || {
        let taken = rig.smmus[0].take_page_request(&record(0x12, 0, 1, true));
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
fn what_the_smmu_answered_itself_is_forgotten_for_all_devices() {
    let rig = Rig::new();
    let collector = Collector::new();
    for device in [0, 2] {
        rig.attach(device, 0, &capable(&collector))
            .expect("it fits");
    }
    assert_eq!(rig.smmus[0].expire_page_requests(), None);
    let take = |record: &Record| rig.smmus[0].take_page_request(record).expect("kept");
    take(&record(0x10, 0, 1, false));
    take(&record(0x12, 0, 1, false));
    assert!(rig.smmus[0].expire_page_requests().is_some());
    rig.smmus[0].forget_partial_groups();
    assert_eq!(rig.smmus[0].expire_page_requests(), None);
    take(&record(0x12, 0, 1, true));
    assert_eq!(collector.take()[0].requests().len(), 1);
}

#[test]
fn a_device_tlb_of_which_firmware_says_nothing_stays_off() {
    for (said, is_on) in [
        (DeviceTlb::Unsaid, false),
        (DeviceTlb::Allowed, true),
        (DeviceTlb::Required, true),
    ] {
        let rig = Rig::saying(said);
        rig.attach(2, 0, &Arc::new(testing_smmu::stage1()))
            .expect("it fits");
        let switches = rig.switches();
        assert_eq!(
            switches.contains(&(node(2), Switch::Ats(true))),
            is_on,
            "{said:?}: {switches:?}"
        );
    }
}

/// Devices that have no ATS, and one for which firmware demands it.
#[test]
fn a_device_that_needs_its_tlb_is_taken_in_with_it_or_not_at_all() {
    let smmu = Smmu::new(FEATURES, Arc::new(Heap), Recorder::instance()).expect("memory");
    let instances = [Published {
        identity: Identity::Described(InstanceIndex(0)),
        serial: 1,
        instance: smmu,
    }];
    let driver = Smmuv3Driver::<Heap, Recorder>::new(Arc::new(Heap), Arc::new(PlainDevices));
    let mut device = Resolved::new(node(2), 0);
    device.streams.push(Stream {
        instance: InstanceIndex(0),
        ids: vec![8],
    });
    for (said, is_in) in [(DeviceTlb::Allowed, true), (DeviceTlb::Required, false)] {
        device.device_tlb = said;
        let probed = driver.probe(&ProbeRequest {
            device: &device,
            instances: &instances,
        });
        assert_eq!(probed.is_ok(), is_in, "{said:?}");
        assert!(matches!(probed, Ok(_) | Err(ProbeError::Failed(_))));
    }
    let rig = Rig::saying(DeviceTlb::Required);
    let plain = Arc::new(testing_smmu::stage1().without_ats());
    assert!(rig.attach(2, 0, &plain).is_err());
    rig.attach(2, 0, &Arc::new(testing_smmu::stage1()))
        .expect("with ATS");
}

#[test]
fn a_device_that_goes_is_forbidden_to_ask_before_ats_ends() {
    let rig = Rig::new();
    let collector = Collector::new();
    rig.attach(2, 0, &capable(&collector)).expect("it fits");
    rig.attach(2, 3, &capable(&collector)).expect("it fits");
    rig.switches();
    rig.endpoint(2).release();
    let off = [Switch::PageRequests(false), Switch::Ats(false)];
    assert_eq!(rig.switches(), off.map(|switch| (node(2), switch)));
    assert_eq!(rig.faults(2).count(), 0);
}
