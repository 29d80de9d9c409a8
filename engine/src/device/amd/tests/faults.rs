//! Page requests of devices behind AMD's IOMMUs, from entry to command, and processes.

use iopt_formats::command::{Narrow, PageResponse, Span};
use iopt_formats::event::amd::PageRequest as Record;
use iopt_formats::{Iova, Oa};

use super::*;
use crate::device::context::HardwareEndpoint;
use crate::device::fault::Round;
use crate::device::process::{ProcessTables, Processes};
use crate::device::testing_faults::Collector;
use crate::device::testing_rig::{Rig, Subject, Toy, known};
use crate::device::testing_scenes;

type Arch = AmdVi<Heap, Queue>;

/// The place as entries and commands name it.
fn place(place: u32) -> Option<Pasid> {
    (place > 0).then(|| pasid(place))
}

fn record(device_id: u16, process: u32, group: u16, is_last: bool) -> Record {
    Record {
        device_id,
        pasid: place(process),
        group: Narrow::new(group.into()).expect("9 bits"),
        is_last,
        is_read: true,
        is_write: false,
        is_fetch: false,
        is_privileged: false,
        is_malformed: false,
        address: Iova::new(0x1234_5000),
    }
}

impl Subject for Arch {
    type Command = Command;

    fn unit(has_page_requests: bool) -> Arc<Self::Unit> {
        let features = Features {
            has_page_requests,
            ..FEATURES
        };
        let planner = Planner {
            has_absent_entries: false,
        };
        let instance = Queue::instance_of(planner);
        AmdIommu::new(features, Arc::new(Heap), instance, 0x1f).expect("memory")
    }

    fn domain() -> Domain {
        let format = AmdV2::new(47).expect("legal");
        Domain::guest(format, Arc::new(Heap), MapSide::Silent).expect("memory")
    }

    fn ask(unit: &Self::Unit, id: u32, place: u32, group: u16, is_last: bool) {
        let record = record(id as u16, place, group, is_last);
        let record = Record::decode(record.encode()).expect("it is one");
        unit.take_page_request(&record).expect("answered");
    }

    fn begin(unit: &Self::Unit) -> Round<'_> {
        unit.begin_page_requests()
    }

    fn answer(command: &Command) -> Option<(u32, u32, u16, PageResponse)> {
        match *command {
            Command::CompletePageRequest {
                device_id,
                pasid,
                tag,
            } => {
                let response = match tag >> 12 {
                    0 => PageResponse::Success,
                    1 => PageResponse::Invalid,
                    0xf => PageResponse::Failure,
                    code => panic!("{code} is no response"),
                };
                let place = pasid.map_or(0, Pasid::get);
                Some((device_id.into(), place, tag & 0xfff, response))
            }
            _ => None,
        }
    }

    fn is_of_context(command: &Command) -> bool {
        matches!(command, Command::InvalidateDeviceTableEntry { .. })
    }

    fn allows(unit: &Self::Unit, id: u32) -> bool {
        let entry = unit.dte(id as u16).expect("the table has it");
        entry.has_page_requests()
    }

    fn tables(root: Oa) -> ProcessTables {
        ProcessTables::X86 { levels: 4, root }
    }

    fn root(endpoint: &HardwareEndpoint<Self>, place: u32) -> Option<Oa> {
        endpoint.gcr3_entry(0, pasid(place)).map(Gcr3Entry::base)
    }

    fn assert_unused(unit: &Self::Unit) {
        // Devices keep the ID of their guest CR3 table.
        assert_eq!(unit.numbers().used_count(), 0);
        for ids in [unit.numbers(), unit.domain_ids()] {
            assert_eq!(ids.quarantined_count(), 0);
        }
    }
}

#[test]
fn a_page_request_reaches_the_handler_of_its_place_and_its_answer_the_device() {
    testing_scenes::requests_are_answered::<Arch>();
}

#[test]
fn a_device_that_cannot_ask_gets_no_fault_capable_domain() {
    testing_scenes::who_cannot_ask_is_refused::<Arch>();
}

#[test]
fn page_requests_are_allowed_after_ats_and_forbidden_before_it_ends() {
    testing_scenes::requests_end_with_the_domain::<Arch>();
}

#[test]
fn a_device_is_allowed_to_ask_once_and_forbidden_once_whatever_fails_in_between() {
    testing_scenes::devices_ask_between_one_enable_and_one_disable::<Arch>();
}

#[test]
fn what_was_asked_before_a_place_was_left_reaches_none_that_comes_after() {
    testing_scenes::what_was_asked_before_reaches_none_that_comes_after::<Arch>();
}

#[test]
fn a_pasid_is_another_process_s_only_after_all_was_read_that_was_asked_for_with_it() {
    testing_scenes::a_pasid_is_used_again_only_after_a_round::<Arch>();
}

#[test]
fn a_device_walks_the_tables_of_a_process_until_that_ends() {
    testing_scenes::a_process_is_walked_until_it_ends::<Arch>();
}

#[test]
fn hardware_that_does_not_confirm_the_end_is_asked_again() {
    testing_scenes::an_end_that_is_not_confirmed_is_an_error::<Arch>();
}

#[test]
fn the_registers_say_whether_devices_may_ask() {
    for (capability, extended, has) in [
        (1 << 27, 1 << 1, true),
        (1 << 27, !(1 << 1), false),
        (0, 1 << 1, false),
    ] {
        let features = Features::from_registers(capability, 0, extended);
        assert_eq!(features.has_page_requests, has);
    }
}

/// PPR and GPRP, with version 2 tables and version 1.
#[test]
fn entries_say_that_devices_may_ask_as_long_as_somebody_answers() {
    for needs_pasids in [false, true] {
        let rig = Rig::<Arch>::with([true; 2], needs_pasids);
        let collector = Collector::new();
        let switches = || {
            let entry = rig.units[0].dte(0x12).expect("the table has it");
            assert_eq!(entry.words()[0] & 1, 1, "nothing passes");
            entry.words()[0] >> 52 & 3
        };
        let all = if needs_pasids { 3 } else { 1 };
        rig.attach(2, 0, &Rig::plain()).expect("it fits");
        assert_eq!(switches(), 0);
        rig.attach(2, 5, &Rig::capable(&collector))
            .expect("it fits");
        assert_eq!(switches(), all);
        rig.attach(2, 0, &Rig::capable(&collector))
            .expect("it fits");
        rig.detach(2, 5);
        assert_eq!(switches(), all);
        rig.attach(2, 0, &Rig::plain()).expect("it fits");
        assert_eq!(switches(), 0);
        let format = V1::fixed(4, 48).expect("legal");
        let host = Domain::host(format, Arc::new(Heap), MapSide::Silent);
        let host = host.expect("memory").with_faults(collector);
        rig.attach(2, 0, &Arc::new(host)).expect("it fits");
        assert_eq!(switches(), all);
        rig.detach(2, 0);
        assert_eq!(switches(), 0);
    }
}

#[test]
fn a_request_that_makes_no_sense_is_answered_and_what_came_before_it_forgotten() {
    let rig = Rig::<Arch>::new();
    let collector = Collector::new();
    rig.attach(2, 5, &Rig::capable(&collector))
        .expect("it fits");
    rig.commands(0);
    let unit = &rig.units[0];
    Arch::ask(unit, 0x12, 5, 7, false);
    let malformed = Record {
        is_malformed: true,
        ..record(0x12, 5, 7, true)
    };
    unit.take_page_request(&malformed).expect("answered");
    assert_eq!(rig.answers(0), [(0x12, 5, 7, PageResponse::Invalid)]);
    assert!(collector.take().is_empty());
    assert_eq!(rig.faults(2).partial_count(), 0);
    let unfinished = Record {
        is_last: false,
        ..malformed
    };
    let marker = Record {
        is_read: false,
        ..record(0x12, 5, 7, true)
    };
    for record in [unfinished, marker] {
        unit.take_page_request(&record).expect("nothing to do");
    }
    assert!(rig.answers(0).is_empty());
    Arch::ask(unit, 0x12, 5, 7, true);
    assert_eq!(collector.take()[0].requests().len(), 1);
}

#[test]
fn what_the_iommu_answered_itself_is_forgotten_for_all_devices() {
    let rig = Rig::<Arch>::new();
    let collector = Collector::new();
    for device in [0, 2] {
        rig.attach(device, 0, &Rig::capable(&collector))
            .expect("it fits");
    }
    let unit = &rig.units[0];
    assert_eq!(unit.expire_page_requests(), None);
    Arch::ask(unit, 0x10, 0, 1, false);
    Arch::ask(unit, 0x12, 0, 1, false);
    assert!(unit.expire_page_requests().is_some());
    unit.forget_partial_groups();
    assert_eq!(unit.expire_page_requests(), None);
    Arch::ask(unit, 0x12, 0, 1, true);
    assert_eq!(collector.take()[0].requests().len(), 1);
    rig.silence(0, true);
    let unknown = record(0x1f, 0, 1, true);
    assert!(unit.take_page_request(&unknown).is_err());
}

/// Four levels and five, and what hardware is told when the process ends.
#[test]
fn a_process_has_an_entry_of_its_own_until_it_ends() {
    let rig = Rig::<Arch>::new();
    let processes = Processes::new(256);
    let root = Oa::new(0x7654_3000);
    for levels in [4, 5] {
        let toy = Toy::new(levels.into(), ProcessTables::X86 { levels, root }, false);
        let process = known(&processes, &toy);
        let place = process.pasid();
        let bond = rig.bind(&process, 2).expect("it fits");
        assert_eq!(rig.root(2, place.get()), Some(root));
        let entry = || rig.units[0].dte(0x12).expect("the table has it");
        // The paging mode is the device's.
        assert_eq!(entry().words()[2] >> 54 & 3, u64::from(levels) - 4);
        let before = entry();
        rig.commands(0);
        toy.end().expect("hardware answers");
        assert_eq!(rig.root(2, place.get()), None);
        assert_eq!(entry(), before, "nothing else changes");
        // The entry first, then what was cached by way of it, there and in the device.
        let commands = rig.commands(0);
        let device_id = 0x12;
        let told = [
            Command::InvalidateDeviceTableEntry { device_id },
            Command::InvalidatePages {
                domain_id: before.domain_id(),
                pasid: Some(place),
                has_tables: true,
                span: Span::ALL,
            },
        ];
        assert_eq!(commands[..2], told, "{commands:?}");
        let is_ats = |it: &Command| matches!(it, Command::InvalidateIotlbPages { pasid, .. } if *pasid == Some(place));
        let ats = commands.iter().position(is_ats);
        assert!(ats.is_some_and(|ats| ats > 1), "{commands:?}");
        drop(bond);
    }
}

#[test]
fn tables_of_other_processors_and_of_other_levels_are_refused() {
    let x86 = |levels, root| ProcessTables::X86 {
        levels,
        root: Oa::new(root),
    };
    testing_scenes::tables_that_do_not_fit_are_refused::<Arch>([
        x86(3, 0x1000),
        x86(6, 0x1000),
        // Not aligned, and too wide.
        x86(4, 0x1008),
        x86(4, 1 << 52),
        ProcessTables::Riscv {
            levels: 4,
            root: Oa::new(0x1000),
        },
    ]);
    let planner = Planner {
        has_absent_entries: false,
    };
    let stage = |levels, root| Stage::of_process(levels, Oa::new(root)).expect("legal");
    // A root where the IOMMU has no memory, and levels that it has not.
    let narrow = Features {
        guest_levels: 4,
        oa_bits: 40,
        ..FEATURES
    };
    assert!(stage(4, 0xff_ffff_f000).fits(&narrow, planner));
    assert!(!stage(4, 0x100_0000_0000).fits(&narrow, planner));
    assert!(!stage(5, 0x1000).fits(&narrow, planner));
    // One that would have to be told of new pages, which nobody does.
    let told = Planner {
        has_absent_entries: true,
    };
    assert!(stage(4, 0x1000).fits(&FEATURES, planner) && !stage(4, 0x1000).fits(&FEATURES, told));
}
