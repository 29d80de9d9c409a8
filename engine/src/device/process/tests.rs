//! Processes bound to devices behind SMMUs whose commands are written down.

use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;

use iopt_formats::armv8::{Half, MAIR, Stage1, TableWalk, Tcr};
use iopt_formats::command::smmuv3::Command;
use iopt_formats::context::smmuv3::Cd;
use iopt_formats::{Iova, IovaRange, Oa};

use super::*;
use crate::device::fault::FaultHandler;
use crate::device::ids::IdError;
use crate::device::smmuv3::Features;
use crate::device::testing_faults::Collector;
use crate::device::testing_smmu::{FEATURES, Rig, node, pasid, stage1};
use crate::device::{AttachError, AttachFailure, DomainKind};
use crate::sync::{Class, Mutex};

mod asids;
mod groups;
mod rounds;
mod silence;

/// Of the tests' own locks: held for a moment, and around nothing.
static LOG: Class = Class::unranked("log of a test");

/// A process that does as it is told.
#[derive(Debug)]
pub(super) struct Toy {
    identity: u64,
    tcr: Tcr,
    listeners: Mutex<Vec<Weak<Process>>>,
    asks: bool,
}

const ROOT: Oa = Oa::new(0x7654_3000);

impl Toy {
    pub(super) fn new(identity: u64) -> Arc<Self> {
        Self::with(identity, 48, false)
    }

    fn with(identity: u64, oa_bits: u8, asks: bool) -> Arc<Self> {
        let format = Stage1::<12>::new(48, oa_bits).expect("legal");
        Arc::new(Self {
            identity,
            tcr: format.tcr(TableWalk::COHERENT),
            listeners: Mutex::new(&LOG, Vec::new()),
            asks,
        })
    }

    fn listener_count(&self) -> usize {
        self.listeners.lock().len()
    }

    /// Ends, as an operating system would have it.
    fn end(&self) -> Result<(), ExitError> {
        let listener = self.listeners.lock()[0].upgrade();
        listener.map_or(Ok(()), |process| process.exit())
    }
}

impl ProcessMemory for Toy {
    fn identity(&self) -> u64 {
        self.identity
    }

    fn tables(&self) -> ProcessTables {
        ProcessTables::Armv8 {
            tcr: self.tcr,
            mair: MAIR,
            root: ROOT,
        }
    }

    fn subscribe(&self, listener: Weak<Process>) {
        crate::sync::lockdep::assert_none_held();
        self.listeners.lock().push(listener);
    }

    fn unsubscribe(&self, listener: &Weak<Process>) {
        self.listeners
            .lock()
            .retain(|other| !other.ptr_eq(listener));
    }

    fn fault_handler(&self) -> Option<Arc<dyn FaultHandler>> {
        self.asks.then(|| Collector::new() as Arc<dyn FaultHandler>)
    }
}

fn known(processes: &Arc<Processes>, toy: &Arc<Toy>) -> Arc<Process> {
    let memory = Arc::clone(toy) as Arc<dyn ProcessMemory>;
    processes.process(&memory).expect("there are PASIDs")
}

/// A rig with one process.
fn scene() -> (Rig, Arc<Processes>, Arc<Toy>, Arc<Process>) {
    scene_on(Rig::new())
}

fn scene_on(rig: Rig) -> (Rig, Arc<Processes>, Arc<Toy>, Arc<Process>) {
    let processes = Processes::new(256);
    let toy = Toy::new(77);
    let process = known(&processes, &toy);
    (rig, processes, toy, process)
}

fn bind(rig: &Rig, process: &Arc<Process>, device: usize) -> Result<Arc<Bond>, BindProcessError> {
    let right = Right::Owner(Arc::clone(&rig.ownerships[device]));
    process.bind(&rig.registry, node(device), &right)
}

fn bound(rig: &Rig, process: &Arc<Process>, device: usize) -> Arc<Bond> {
    bind(rig, process, device).expect("it fits")
}

fn kind(rig: &Rig, device: usize, process: &Process) -> Option<DomainKind> {
    let attached = rig.registry.attached(node(device), Some(process.pasid()));
    attached.map(|hwpt| hwpt.kind())
}

fn cd(rig: &Rig, device: usize, process: &Process) -> Cd {
    rig.cd(device, process.pasid().get())
}

fn is_tlbi(command: &Command, asid: u16) -> bool {
    matches!(command, Command::TlbiNhAsid { asid: own, .. } if *own == asid)
}

#[test]
fn a_process_has_one_pasid_for_as_long_as_anybody_has_it() {
    let (_rig, processes, toy, first) = scene();
    assert_eq!((first.pasid(), first.identity()), (pasid(1), 77));
    assert!(Arc::ptr_eq(&first, &known(&processes, &toy)));
    let others = [Toy::new(1), Toy::new(2)];
    let others = others.map(|toy| known(&processes, &toy));
    assert_eq!(others.each_ref().map(|it| it.pasid()), [2, 3].map(pasid));
    assert_eq!(toy.listener_count(), 1);
    drop(first);
    assert_eq!(
        (toy.listener_count(), processes.pasids().used_count()),
        (0, 2)
    );
    let again = known(&processes, &toy);
    assert_eq!(again.pasid(), pasid(1));
    assert_eq!(processes.pasids().quarantined_count(), 0);
    let few = Processes::new(2);
    let only = known(&few, &Toy::new(1));
    let memory = Toy::new(2) as Arc<dyn ProcessMemory>;
    assert!(matches!(
        few.process(&memory),
        Err(ProcessError::Pasid(IdError::Exhausted { last: 1, .. }))
    ));
    drop(only);
    assert!(few.process(&memory).is_ok());
}

/// A3.10, first half.
#[test]
fn a_device_and_a_process_that_are_bound_twice_are_bound_once() {
    let (rig, processes, _toy, process) = scene();
    let first = bound(&rig, &process, 2);
    assert_eq!((first.device(), first.pasid()), (node(2), pasid(1)));
    assert_eq!(kind(&rig, 2, &process), Some(DomainKind::Process));
    let entry = cd(&rig, 2, &process);
    assert!(entry.is_valid());
    let (_, root) = entry
        .decode()
        .expect("legal")
        .table(Half::Lower)
        .expect("enabled");
    assert_eq!(root, ROOT);
    rig.commands(0);
    let second = bound(&rig, &process, 2);
    assert!(Arc::ptr_eq(&first, &second));
    assert!(rig.commands(0).is_empty());
    drop(first);
    assert!(cd(&rig, 2, &process).is_valid());
    // The bond keeps the process.
    let pasid = process.pasid();
    drop(process);
    assert_eq!(processes.pasids().used_count(), 1);
    drop(second);
    assert!(!rig.cd(2, pasid.get()).is_valid());
    assert_eq!(
        rig.registry
            .attached(node(2), Some(pasid))
            .map(|it| it.kind()),
        None
    );
    assert_eq!(processes.pasids().used_count(), 0);
    assert_eq!(rig.smmus[0].asids().used_count(), 0);
    assert_eq!(rig.smmus[0].asids().quarantined_count(), 0);
}

/// A3.10, second half.
#[test]
fn of_a_process_that_ends_while_bound_nothing_is_walked_and_nothing_freed_twice() {
    let (rig, processes, toy, process) = scene();
    let bonds = [2, 3].map(|device| bound(&rig, &process, device));
    let asid = cd(&rig, 2, &process).asid();
    let live = cd(&rig, 2, &process);
    rig.commands(0);
    toy.end().expect("hardware answers");
    for device in [2, 3] {
        let ended = cd(&rig, device, &process);
        // Valid, so that what still comes is no configuration error; and nothing is walked.
        assert!(ended.is_valid());
        let context = ended.decode().expect("legal");
        assert_eq!(
            [Half::Lower, Half::Upper].map(|half| context.table(half)),
            [None; 2]
        );
        assert!(!context.faults().stalls && !context.faults().records);
        assert_eq!(context.asid(), asid);
        assert_eq!(kind(&rig, device, &process), Some(DomainKind::Process));
    }
    // First the CD, then what was cached under it, then what the device has.
    let commands = rig.commands(0);
    let position = |is_it: &dyn Fn(&Command) -> bool| commands.iter().position(is_it);
    let entry = position(&|it| matches!(it, Command::CfgiCd { .. }));
    let tlb = position(&|it| is_tlbi(it, asid));
    let device = position(&|it| matches!(it, Command::AtcInv { .. }));
    assert!(
        entry.is_some() && entry < tlb && tlb < device,
        "{commands:?}"
    );
    assert!(matches!(
        bind(&rig, &process, 2),
        Err(BindProcessError::Exited)
    ));
    // The end may be told again.
    toy.end().expect("hardware answers");
    assert!(cd(&rig, 2, &process).is_valid());
    assert_ne!(cd(&rig, 2, &process), live);
    let [first, second] = bonds;
    drop(first);
    assert!(!cd(&rig, 2, &process).is_valid());
    assert!(
        cd(&rig, 3, &process).is_valid(),
        "the entry goes at the last unbinding"
    );
    let weak = Arc::downgrade(&process);
    drop(second);
    assert!(!cd(&rig, 3, &process).is_valid());
    drop(process);
    assert_eq!(weak.strong_count(), 0);
    assert_eq!(processes.pasids().used_count(), 0);
    for smmu in &rig.smmus {
        assert_eq!(
            (smmu.asids().used_count(), smmu.asids().quarantined_count()),
            (0, 0)
        );
    }
}

#[test]
fn a_process_that_has_ended_leads_no_device_that_comes_later_anywhere() {
    let (rig, _processes, toy, process) = scene();
    let bond = bound(&rig, &process, 2);
    let hwpt = rig.registry.attached(node(2), Some(process.pasid()));
    let hwpt = hwpt.expect("it is attached");
    toy.end().expect("hardware answers");
    // By the domain, not by a bond.
    let by = rig.by(3);
    let attached = rig
        .registry
        .attach_pasid(node(3), by, process.pasid(), &hwpt);
    attached.expect("it fits");
    let context = cd(&rig, 3, &process).decode().expect("legal");
    assert_eq!(context.table(Half::Lower), None);
    rig.detach(3, 1);
    drop(bond);
}

#[test]
fn hardware_that_does_not_confirm_the_end_is_asked_again() {
    let (rig, _processes, toy, process) = scene();
    let bond = bound(&rig, &process, 2);
    rig.silence(0, true);
    assert_eq!(toy.end(), Err(ExitError));
    rig.silence(0, false);
    assert_eq!(toy.end(), Ok(()));
    let context = cd(&rig, 2, &process).decode();
    assert!(context.is_ok_and(|it| it.table(Half::Lower).is_none()));
    drop(bond);
    assert_eq!(rig.smmus[0].asids().used_count(), 0);
}

#[test]
fn a_pasid_with_another_domain_is_busy() {
    let (rig, _processes, _toy, process) = scene();
    rig.attach(2, 1, &Arc::new(stage1())).expect("it fits");
    assert!(matches!(
        bind(&rig, &process, 2),
        Err(BindProcessError::Busy { pasid: busy }) if busy == pasid(1)
    ));
    assert_eq!(kind(&rig, 2, &process), Some(DomainKind::Paging));
    rig.detach(2, 1);
    let bond = bound(&rig, &process, 2);
    // And the other way around; nor does the domain fit another place.
    let hwpt = rig
        .registry
        .attached(node(2), Some(pasid(1)))
        .expect("it is");
    let by = || rig.by(2);
    let twice = rig.registry.attach_pasid(node(2), by(), pasid(1), &hwpt);
    assert!(matches!(twice, Err(AttachError::Attached { .. })));
    for place in [None, Some(pasid(9))] {
        let misplaced = match place {
            None => rig.registry.attach(node(2), by(), &hwpt),
            Some(pasid) => rig.registry.attach_pasid(node(2), by(), pasid, &hwpt),
        };
        assert!(matches!(
            misplaced,
            Err(AttachError::Failed {
                error: AttachFailure::Unsupported { .. },
                ..
            })
        ));
    }
    drop(bond);
}

#[test]
fn a_domain_is_shared_where_it_fits_and_another_made_where_it_does_not() {
    let (rig, _processes, _toy, process) = scene();
    let bonds = [2, 3].map(|device| bound(&rig, &process, device));
    let attached = |rig: &Rig, device| {
        let attached = rig.registry.attached(node(device), Some(pasid(1)));
        Arc::as_ptr(&attached.expect("it is")).cast::<()>()
    };
    assert_eq!(attached(&rig, 2), attached(&rig, 3));
    drop(bonds);
    // Behind an SMMU that cannot walk the tables.
    let other = Features {
        has_4k: false,
        ..FEATURES
    };
    let rig = Rig::with(other, false);
    let processes = Processes::new(256);
    let process = known(&processes, &Toy::new(1));
    let bond = bound(&rig, &process, 2);
    let refused = bind(&rig, &process, 3);
    assert!(
        matches!(refused, Err(BindProcessError::Domain(_))),
        "{refused:?}"
    );
    drop(bond);
}

#[test]
fn members_of_a_group_share_what_is_attached_and_each_has_its_bond() {
    let (rig, _processes, _toy, process) = scene();
    let bonds = [0, 1].map(|device| bound(&rig, &process, device));
    assert!(!Arc::ptr_eq(&bonds[0], &bonds[1]));
    assert!(cd(&rig, 0, &process).is_valid() && cd(&rig, 1, &process).is_valid());
    let [first, second] = bonds;
    drop(first);
    assert!(cd(&rig, 0, &process).is_valid(), "the group is bound still");
    let again = bound(&rig, &process, 0);
    drop(second);
    assert!(cd(&rig, 1, &process).is_valid());
    drop(again);
    assert!(!cd(&rig, 0, &process).is_valid() && !cd(&rig, 1, &process).is_valid());
}

#[test]
fn changes_are_forgotten_wherever_the_process_is_known() {
    let (rig, _processes, _toy, process) = scene();
    let bonds = [2, 3].map(|device| bound(&rig, &process, device));
    rig.commands(0);
    rig.commands(1);
    let range = IovaRange::with_len(Iova::new(0x1234_5000), 0x1000).expect("a page");
    process.changed(range).expect("hardware answers");
    for (smmu, stream) in [(0, 0x12), (1, 0x13)] {
        let commands = rig.commands(smmu);
        let tlb = commands.iter().position(
            |it| matches!(it, Command::TlbiNhVa { target, .. } if target.address == range.start()),
        );
        let asid = commands
            .iter()
            .position(|it| matches!(it, Command::TlbiNhAsid { .. }));
        let own = |it: &Command| {
            matches!(it, Command::AtcInv { stream: own, substream, .. }
                if *own == stream && *substream == Some(pasid(1)))
        };
        let device = commands.iter().position(own);
        assert!(
            tlb.or(asid).is_some() && tlb.or(asid) < device,
            "{commands:?}"
        );
    }
    drop(bonds);
    process.changed(range).expect("nobody is left");
    assert!(
        rig.commands(0)
            .iter()
            .all(|it| !matches!(it, Command::TlbiNhVa { .. }))
    );
}

#[test]
fn a_process_that_makes_pages_be_there_counts_as_fault_capable() {
    let rig = Rig::new();
    let processes = Processes::new(256);
    let process = known(&processes, &Toy::with(5, 48, true));
    let bond = bound(&rig, &process, 2);
    assert_eq!(rig.faults(2).count(), 1);
    drop(bond);
    assert_eq!(
        (rig.faults(2).count(), rig.faults(2).has_queue()),
        (0, false)
    );
}

#[test]
fn a_device_that_is_removed_is_bound_no_more_and_its_bond_harms_nobody() {
    let (rig, _processes, _toy, process) = scene();
    let bond = bound(&rig, &process, 2);
    let guard = rig.registry.lock_device(node(2)).expect("it is there");
    guard.remove();
    assert_eq!(kind(&rig, 2, &process), None);
    rig.registry.add_device(node(2)).expect("it is known");
    drop(bond);
    assert_eq!(rig.smmus[0].asids().quarantined_count(), 0);
    // What somebody else attached to the PASID meanwhile stays.
    let bond = bound(&rig, &process, 3);
    rig.attach(3, 1, &Arc::new(stage1())).expect("replaced");
    drop(bond);
    assert_eq!(kind(&rig, 3, &process), Some(DomainKind::Paging));
}

#[test]
fn threads_that_bind_and_unbind_leave_nothing_and_see_one_bond() {
    let (rig, processes, toy, process) = scene_on(Rig::patient());
    let rounds = if cfg!(miri) { 4 } else { 60 };
    std::thread::scope(|scope| {
        for device in [0, 1, 2, 2] {
            let (rig, process) = (&rig, &process);
            scope.spawn(move || {
                for _ in 0..rounds {
                    let bond = bound(rig, process, device);
                    assert_eq!(kind(rig, device, process), Some(DomainKind::Process));
                    let again = bound(rig, process, device);
                    assert!(Arc::ptr_eq(&bond, &again));
                }
            });
        }
        scope.spawn(|| {
            for _ in 0..rounds {
                let other = Toy::new(9);
                let other = known(&processes, &other);
                drop(bind(&rig, &other, 3));
                process.changed(IovaRange::FULL).expect("hardware answers");
            }
        });
    });
    for device in 0..4 {
        assert_eq!(kind(&rig, device, &process), None);
        assert!(!cd(&rig, device, &process).is_valid());
    }
    drop((process, toy));
    assert_eq!(processes.pasids().used_count(), 0);
    for smmu in &rig.smmus {
        assert_eq!(
            (smmu.asids().used_count(), smmu.asids().quarantined_count()),
            (0, 0)
        );
    }
}

#[test]
fn a_process_ends_beside_devices_that_come_and_none_walks() {
    for _ in 0..if cfg!(miri) { 2 } else { 40 } {
        let (rig, _processes, toy, process) = scene_on(Rig::patient());
        let bonds = std::thread::scope(|scope| {
            let binding = scope.spawn(|| {
                let devices = [0, 2, 3].into_iter();
                let bonds = devices.map(|device| bind(&rig, &process, device).ok());
                bonds.collect::<Vec<_>>()
            });
            toy.end().expect("hardware answers");
            binding.join().expect("no thread panics")
        });
        for device in 0..4 {
            let cd = cd(&rig, device, &process);
            let context = cd.decode().ok();
            let root = context.and_then(|it| it.table(Half::Lower));
            assert_eq!(root, None);
        }
        drop(bonds);
    }
}
