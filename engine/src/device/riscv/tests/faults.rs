//! Page requests of devices behind RISC-V IOMMUs, from record to command, and processes.

use iopt_formats::command::PageResponse;
use iopt_formats::context::riscv::{Misconfigured, ProcessDirectory};
use iopt_formats::event::riscv::PageRequest as Record;
use iopt_formats::{Iova, Oa};

use super::*;
use crate::device::context::HardwareEndpoint;
use crate::device::fault::Round;
use crate::device::process::{ProcessTables, Processes};
use crate::device::testing_faults::Collector;
use crate::device::testing_rig::{Rig, Subject, Toy, known};
use crate::device::testing_scenes;

type Arch = Riscv<Heap, Queue>;

/// The place as records and commands name it.
fn place(place: u32) -> Option<Pasid> {
    (place > 0).then(|| pasid(place))
}

fn record(id: u32, process: u32, group: u16, is_last: bool) -> Record {
    Record {
        device: Narrow::new(id).expect("24 bits"),
        process: place(process),
        group: Narrow::new(group.into()).expect("9 bits"),
        is_last,
        is_read: true,
        is_write: false,
        is_fetch: false,
        is_privileged: false,
        address: Iova::new(0x1234_5000),
    }
}

impl Subject for Arch {
    type Command = Command;

    fn unit(has_page_requests: bool) -> Arc<Self::Unit> {
        // Without ATS there are none.
        let ats = if has_page_requests { 0 } else { ATS };
        let features = Features::new(CAPABILITIES & !ats, 0, 1);
        let instance = Recorder::instance_of(Planner::default());
        RiscvIommu::new(features, Arc::new(Heap), instance).expect("memory")
    }

    fn domain() -> Domain {
        Domain::first_stage(Sv::sv48(), Arc::new(Heap), MapSide::Silent).expect("memory")
    }

    fn ask(unit: &Self::Unit, id: u32, place: u32, group: u16, is_last: bool) {
        let record = record(id, place, group, is_last);
        let record = Record::decode(record.encode());
        unit.take_page_request(&record).expect("answered");
    }

    fn begin(unit: &Self::Unit) -> Round<'_> {
        unit.begin_page_requests()
    }

    fn answer(command: &Command) -> Option<(u32, u32, u16, PageResponse)> {
        match *command {
            Command::AtsPrgr {
                function,
                pasid,
                group,
                response,
            } => {
                assert_eq!(function.segment, None);
                let place = pasid.map_or(0, Pasid::get);
                let group = group.get() as u16;
                Some((function.requester.into(), place, group, response))
            }
            _ => None,
        }
    }

    fn is_of_context(command: &Command) -> bool {
        matches!(
            command,
            Command::IodirInvalDdt { .. } | Command::IodirInvalPdt { .. }
        )
    }

    fn allows(unit: &Self::Unit, id: u32) -> bool {
        let words = unit.words(id).expect("it is linked");
        let context = DeviceContext::decode(words, unit.features().registers);
        let context = context.expect("the engine writes legal contexts");
        context.is_some_and(DeviceContext::has_page_requests)
    }

    fn tables(root: Oa) -> ProcessTables {
        ProcessTables::Riscv { levels: 3, root }
    }

    fn root(endpoint: &HardwareEndpoint<Self>, place: u32) -> Option<Oa> {
        let words = endpoint.process_words(0, pasid(place))?;
        let registers = endpoint.units()[0].features().registers;
        let directory = ProcessDirectory::new(Oa::new(0), 3, registers).expect("legal");
        match directory.decode_context(words).expect("legal")?.tables() {
            FirstStageTables::Sv { root, .. } => Some(root.oa),
            _ => None,
        }
    }

    fn assert_unused(unit: &Self::Unit) {
        for ids in [unit.pscids(), unit.gscids()] {
            assert_eq!((ids.used_count(), ids.quarantined_count()), (0, 0));
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

/// `EN_PRI` and PRPR, with a process directory and without, and of a second stage.
#[test]
fn contexts_say_that_devices_may_ask_as_long_as_somebody_answers() {
    /// `EN_ATS`, `EN_PRI`, PRPR.
    const SWITCHES: u64 = 1 << 1 | 1 << 2 | 1 << 6;
    for needs_pasids in [false, true] {
        let rig = Rig::<Arch>::with([true; 2], needs_pasids);
        let collector = Collector::new();
        let switches = || rig.units[0].words(0x12).expect("it is linked")[0] & SWITCHES;
        let all = if needs_pasids { 0x46 } else { 0x6 };
        rig.attach(2, 0, &Rig::plain()).expect("it fits");
        assert_eq!(switches(), 0x2);
        rig.attach(2, 5, &Rig::capable(&collector))
            .expect("it fits");
        assert_eq!(switches(), all);
        rig.attach(2, 0, &Rig::capable(&collector))
            .expect("it fits");
        rig.detach(2, 5);
        assert_eq!(switches(), all);
        rig.attach(2, 0, &Rig::plain()).expect("it fits");
        assert_eq!(switches(), 0x2);
        let format = Svx4::sv39x4();
        let second = Domain::second_stage(format, Arc::new(Heap), MapSide::Silent);
        let second = second.expect("memory").with_faults(collector);
        rig.attach(2, 0, &Arc::new(second)).expect("it fits");
        assert_eq!(switches(), all);
        rig.detach(2, 0);
        assert_eq!(switches(), 0);
    }
    // Hardware without ATS refuses such contexts.
    let features = Features::new(CAPABILITIES & !ATS, 0, 1);
    assert!(!features.has_page_requests() && FEATURES.has_page_requests());
    let options = iopt_formats::context::riscv::DeviceOptions {
        has_page_requests: true,
        ..Default::default()
    };
    let bare = FirstStage::Tables(FirstStageTables::Bare);
    let refused = features.context(bare, SecondStage::Bare, options);
    assert_eq!(refused, Err(Misconfigured::AtsUnsupported));
}

#[test]
fn answers_go_to_the_segment_of_the_device() {
    let features = Features::new(CAPABILITIES, 0, 3);
    let world = World::new(features);
    let request = record(0x12_0345, 6, 0x1ff, true);
    world.unit.take_page_request(&request).expect("answered");
    let function = Function {
        segment: Some(0x12),
        requester: 0x345,
    };
    let answer = Command::AtsPrgr {
        function,
        pasid: place(6),
        group: Narrow::MAX,
        response: PageResponse::Invalid,
    };
    assert_eq!(world.commands(), [answer]);
    // A marker is not answered, nor a request that others follow.
    let marker = Record {
        is_read: false,
        ..request
    };
    let first = Record {
        is_last: false,
        ..request
    };
    for record in [marker, first] {
        world
            .unit
            .take_page_request(&record)
            .expect("nothing to do");
    }
    assert_eq!(world.commands(), []);
    world.silence(true);
    assert!(world.unit.take_page_request(&request).is_err());
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
}

/// Each MODE, and what hardware is told when the process ends.
#[test]
fn a_process_has_a_context_of_its_own_until_it_ends() {
    let rig = Rig::<Arch>::new();
    let processes = Processes::new(256);
    let root = Oa::new(0x7654_3000);
    for (levels, mode) in [(3, 8), (4, 9)] {
        let toy = Toy::new(levels.into(), ProcessTables::Riscv { levels, root }, false);
        let process = known(&processes, &toy);
        let words = || {
            let words = rig.endpoint(2).process_words(0, process.pasid());
            words.expect("it is linked")
        };
        let bond = rig.bind(&process, 2).expect("it fits");
        let [ta, fsc] = words();
        // V alone: requests of supervisors are not allowed.
        assert_eq!(ta & 0xfff, 1);
        let pscid = (ta >> 12) as u32;
        assert_ne!(pscid, 0);
        assert_eq!(fsc, mode << 60 | 0x76543);
        rig.commands(0);
        let context = rig.units[0].words(0x12);
        toy.end().expect("hardware answers");
        assert_eq!(words()[0] & 1, 0);
        assert_eq!(rig.units[0].words(0x12), context);
        let device = Narrow::new(0x12).expect("24 bits");
        let vma = |target| Command::IotinvalVma {
            gscid: None,
            pscid: Narrow::new(pscid),
            target,
        };
        // The context first, then what was cached by way of it, there and in the device.
        let commands = rig.commands(0);
        let process = process.pasid();
        let told = [Command::IodirInvalPdt { device, process }, vma(None)];
        assert_eq!(commands[..2], told, "{commands:?}");
        let is_ats = |it: &Command| {
            let own = place(process.get());
            matches!(it, Command::AtsInval { pasid, .. } if *pasid == own)
        };
        let ats = commands.iter().position(is_ats);
        let tlb = commands.iter().position(|it| *it == vma(None));
        assert!(tlb < ats, "{commands:?}");
        drop(bond);
    }
}

#[test]
fn tables_of_other_processors_and_of_modes_that_are_not_there_are_refused() {
    let riscv = |levels, root| ProcessTables::Riscv {
        levels,
        root: Oa::new(root),
    };
    testing_scenes::tables_that_do_not_fit_are_refused::<Arch>([
        // Sv57 is not there, the others are no scheme.
        riscv(5, 0x1000),
        riscv(2, 0x1000),
        riscv(6, 0x1000),
        // Not aligned, and too wide.
        riscv(3, 0x1800),
        riscv(3, 1 << 56),
        ProcessTables::X86 {
            levels: 4,
            root: Oa::new(0x1000),
        },
    ]);
    // A root where the IOMMU has no memory.
    let planner = Planner::default();
    let narrow = Features::new(CAPABILITIES & !PAS | 40 << 32, 0, 1);
    let stage = |root| Stage::of_process(3, Oa::new(root)).expect("legal");
    assert!(stage(0xff_ffff_f000).fits(&narrow, planner));
    assert!(!stage(0x100_0000_0000).fits(&narrow, planner));
    // One that would have to be told of new pages, which nobody does.
    let told = Planner {
        needs_map_invalidation: true,
        ..planner
    };
    assert!(stage(0x1000).fits(&FEATURES, planner) && !stage(0x1000).fits(&FEATURES, told));
}
