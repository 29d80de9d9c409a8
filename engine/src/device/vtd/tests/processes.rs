//! Processes bound to devices behind units whose descriptors are written down.

use alloc::sync::Weak;

use iopt_formats::command::Span;
use iopt_formats::command::vtd::{Device as Source, PasidIotlbScope, PasidScope, QueueDepth};
use iopt_formats::context::vtd::Translation;
use iopt_formats::event::vtd::PageRequest as Record;
use iopt_formats::{Iova, IovaRange};

use super::rig::{ASKING_FEATURES, Rig, Switch, first, node};
use super::*;
use crate::device::context::Architecture as _;
use crate::device::fault::{FaultHandler, PageResponse};
use crate::device::process::{
    BindProcessError, Bond, ExitError, Process, ProcessMemory, ProcessTables, Processes, Right,
};
use crate::device::testing_faults::Collector;
use crate::device::vtd::Stage as Tables;
use crate::device::vtd::architecture::Vtd;
use crate::device::{DomainKind, GroupDomainError, NewDomainError};
use crate::sync::{Class, Mutex};

/// Of the tests' own locks: held for a moment, and around nothing.
static LOG: Class = Class::unranked("log of a test");

const ROOT: Oa = Oa::new(0x7654_3000);

/// A process that does as it is told.
struct Toy {
    identity: u64,
    tables: ProcessTables,
    listeners: Mutex<Vec<Weak<Process>>>,
    handler: Option<Arc<Collector>>,
}

impl Toy {
    fn new(levels: u8, handler: Option<&Arc<Collector>>) -> Arc<Self> {
        Arc::new(Self {
            identity: 77,
            tables: ProcessTables::X86 { levels, root: ROOT },
            listeners: Mutex::new(&LOG, Vec::new()),
            handler: handler.map(Arc::clone),
        })
    }
}

impl core::fmt::Debug for Toy {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_tuple("Toy").field(&self.identity).finish()
    }
}

impl ProcessMemory for Toy {
    fn identity(&self) -> u64 {
        self.identity
    }

    fn tables(&self) -> ProcessTables {
        self.tables
    }

    fn subscribe(&self, listener: Weak<Process>) {
        self.listeners.lock().push(listener);
    }

    fn fault_handler(&self) -> Option<Arc<dyn FaultHandler>> {
        let handler = self.handler.as_ref()?;
        Some(Arc::clone(handler) as Arc<dyn FaultHandler>)
    }
}

fn process(toy: &Arc<Toy>) -> Arc<Process> {
    let memory = Arc::clone(toy) as Arc<dyn ProcessMemory>;
    let process = Processes::new(256).process(&memory);
    process.expect("there are PASIDs")
}

fn bind(rig: &Rig, process: &Arc<Process>, device: usize) -> Result<Arc<Bond>, BindProcessError> {
    let right = Right::Owner(Arc::clone(&rig.ownerships[device]));
    process.bind(&rig.registry, node(device), &right)
}

fn bound(rig: &Rig, process: &Arc<Process>, device: usize) -> Arc<Bond> {
    bind(rig, process, device).expect("it fits")
}

fn is_unsupported(bond: &Result<Arc<Bond>, BindProcessError>) -> bool {
    matches!(
        bond,
        Err(BindProcessError::Domain(GroupDomainError::New(
            NewDomainError::Unsupported
        )))
    )
}

const fn source(source_id: u16) -> Source {
    Source {
        source_id,
        physical_function: 0,
        queue_depth: QueueDepth::new(1),
    }
}

fn device_tlb(source_id: u16, pasid: Pasid, span: Span) -> Descriptor {
    Descriptor::PasidDeviceTlb {
        device: source(source_id),
        pasids: PasidScope::One(pasid),
        span,
    }
}

/// An entry that says nothing, not even that requests fault.
fn ended() -> PasidEntry {
    PasidEntry::blocked().with_faults_disabled()
}

#[test]
fn a_process_is_led_to_by_the_entry_of_its_pasid() {
    let rig = Rig::new();
    let process = process(&Toy::new(4, None));
    let bond = bound(&rig, &process, 0);
    assert!(Arc::ptr_eq(&bond, &bound(&rig, &process, 0)));
    for number in [0, 1] {
        let entry = rig.entry(number, 1);
        let Translation::First(stage) = entry.translation() else {
            panic!("{entry:?}");
        };
        assert_eq!((stage.root().oa, stage.format().levels()), (ROOT, 4));
        assert!(entry.has_execute_disable() && entry.has_walk_snoop());
        assert!(!entry.has_supervisor_requests() && !entry.is_fault_disabled());
        assert!(rig.context(number).has_pasid() && rig.context(number).has_device_tlb());
        assert!(!rig.context(number).has_page_requests());
    }
    let attached = rig.registry.attached(node(0), Some(pasid(1)));
    assert_eq!(attached.map(|hwpt| hwpt.kind()), Some(DomainKind::Process));
    drop(bond);
    for number in [0, 1] {
        assert_eq!(rig.entry(number, 1), PasidEntry::blocked());
        assert_eq!(rig.units[number].domain_ids().quarantined_count(), 0);
    }
}

/// What a process's tables may hold, the unit has to read, as a CPU does.
#[test]
fn units_that_read_less_than_a_cpu_are_not_bound() {
    let second = |cap: u64, ecap: u64| {
        let features = Features::from_registers(cap, ecap, 48);
        Rig::with(features, TableMode::Scalable, false)
    };
    let snooping = ECAP | 1 << 48;
    let is_refused =
        |rig: &Rig, levels| is_unsupported(&bind(rig, &process(&Toy::new(levels, None)), 1));
    assert!(!is_refused(&second(CAP, snooping), 4));
    // Walks that snoop, pages of 1 GiB, first stages.
    assert!(is_refused(&second(CAP, ECAP), 4));
    assert!(is_refused(&second(CAP & !(1 << 56), snooping), 4));
    assert!(is_refused(&second(CAP, snooping & !(1 << 47)), 4));
    // Five levels.
    assert!(is_refused(&second(CAP, snooping), 5));
    let wide = Features::from_registers(CAP | 1 << 60, snooping, 48);
    let rig = Rig::with(wide, TableMode::Scalable, false);
    // The other one has none.
    assert!(is_refused(&rig, 5));
    let rig = Rig::with(ASKING_FEATURES, TableMode::Legacy, false);
    let bond = bind(&rig, &process(&Toy::new(4, None)), 2);
    assert!(bond.is_err());
    // A write buffer wants to be told of pages that come.
    let stage = Tables::process(4, ROOT).expect("four levels");
    let buffered = Planner {
        has_write_buffer: true,
        ..PLANNER
    };
    for (planner, fits) in [(PLANNER, true), (CACHING, true), (buffered, false)] {
        let instance = Queue::instance_of(planner);
        let mode = TableMode::Scalable;
        let unit = Unit::new(ASKING_FEATURES, mode, Arc::new(Heap), instance);
        let unit = unit.expect("memory");
        assert_eq!(Vtd::<Heap, Queue>::fits(&unit, &stage), fits);
    }
}

#[test]
fn tables_of_other_cpus_and_other_shapes_are_none() {
    let of = |tables| Vtd::<Heap, Queue>::process_stage(&tables);
    for levels in 0..=255 {
        let tables = ProcessTables::X86 { levels, root: ROOT };
        assert_eq!(of(tables).is_some(), levels == 4 || levels == 5);
    }
    let root = Oa::new(0x1008);
    assert_eq!(of(ProcessTables::X86 { levels: 4, root }), None);
    let root = Oa::new(1 << 52);
    assert_eq!(of(ProcessTables::X86 { levels: 4, root }), None);
    assert_eq!(
        of(ProcessTables::Riscv {
            levels: 4,
            root: ROOT
        }),
        None
    );
}

#[test]
fn a_change_is_told_to_the_unit_and_then_to_the_device() {
    let rig = Rig::new();
    let process = process(&Toy::new(4, None));
    let _bond = bound(&rig, &process, 2);
    let domain_id = rig.entry(2, 1).domain_id();
    rig.commands(0);
    let range = IovaRange::with_len(Iova::new(0x7000_0000), 0x1000).expect("legal");
    process.changed(range).expect("hardware answers");
    let span = Span::new(0x7000_0000, 0).expect("aligned");
    let told = [
        Descriptor::PasidIotlb {
            domain_id,
            pasid: pasid(1),
            scope: PasidIotlbScope::Pages {
                span,
                is_leaf_only: false,
            },
        },
        device_tlb(0x12, pasid(1), span),
    ];
    assert_eq!(rig.commands(0), told);
}

/// A3.10.
#[test]
fn nothing_is_walked_after_the_end_and_the_pasid_stays_until_the_bond_is_gone() {
    let rig = Rig::new();
    let process = process(&Toy::new(4, None));
    let bond = bound(&rig, &process, 2);
    let domain_id = rig.entry(2, 1).domain_id();
    rig.commands(0);
    process.exit().expect("hardware answers");
    assert_eq!(rig.entry(2, 1), ended());
    assert!(rig.context(2).directory().is_some());
    // The entry, what was translated by it; then all of that once more, and what the device has.
    let told = rig.commands(0);
    let head = [entry(domain_id, pasid(1)), space(domain_id, pasid(1))];
    assert_eq!(told[..2], head);
    assert_eq!(told.last(), Some(&device_tlb(0x12, pasid(1), Span::ALL)));
    assert!(matches!(
        bind(&rig, &process, 0),
        Err(BindProcessError::Exited)
    ));
    let attached = rig.registry.attached(node(2), Some(pasid(1)));
    assert_eq!(attached.map(|hwpt| hwpt.kind()), Some(DomainKind::Process));
    // Another domain of the device changes nothing there.
    rig.attach(2, 0, &Arc::new(first())).expect("it fits");
    rig.detach(2, 0);
    assert_eq!(rig.entry(2, 1), ended());
    drop(bond);
    assert_eq!(rig.entry(2, 1), PasidEntry::blocked());
    assert!(rig.context(2).directory().is_none());
    process.exit().expect("hardware answers");
    let ids = rig.units[0].domain_ids();
    assert_eq!(ids.quarantined_count(), 0);
}

#[test]
fn an_end_that_hardware_does_not_confirm_is_none() {
    let rig = Rig::new();
    let process = process(&Toy::new(4, None));
    let bond = bound(&rig, &process, 2);
    rig.silence(0, true);
    assert_eq!(process.exit(), Err(ExitError));
    rig.silence(0, false);
    process.exit().expect("hardware answers");
    assert_eq!(rig.entry(2, 1), ended());
    drop(bond);
    assert_eq!(rig.entry(2, 1), PasidEntry::blocked());
    assert_eq!(rig.units[0].domain_ids().quarantined_count(), 0);
}

#[test]
fn a_process_is_asked_for_pages_until_it_ends() {
    let rig = Rig::new();
    let collector = Collector::new();
    let process = process(&Toy::new(4, Some(&collector)));
    let bond = bound(&rig, &process, 2);
    assert!(rig.context(2).has_page_requests());
    let on = [Switch::Ats(true), Switch::PageRequests(true)];
    assert_eq!(rig.switches(), on.map(|switch| (node(2), switch)));
    let record = Record {
        requester_id: 0x12,
        pasid: Some(pasid(1)),
        group: Narrow::new(9).expect("it fits"),
        is_last: true,
        is_read: true,
        is_write: false,
        is_fetch: false,
        is_privileged: false,
        address: Iova::new(0x1234_5000),
        private_data: None,
    };
    let ask = || rig.units[0].take_page_request(&record).expect("taken");
    ask();
    ask();
    let mut groups = collector.take();
    rig.commands(0);
    let answer = |response| Descriptor::PageGroupResponse {
        requester_id: 0x12,
        pasid: Some(pasid(1)),
        response,
        group: record.group,
        is_last: true,
        private_data: None,
    };
    let group = groups.pop().expect("two");
    group.respond(PageResponse::Success).expect("it is open");
    assert_eq!(rig.commands(0), [answer(PageResponse::Success)]);
    drop(bond);
    let told = rig.commands(0);
    assert!(told.contains(&answer(PageResponse::Invalid)), "{told:?}");
    let off = [Switch::PageRequests(false), Switch::Ats(false)];
    assert_eq!(rig.switches(), off.map(|switch| (node(2), switch)));
    assert_eq!(rig.faults(2).open_count(), 0);
}
