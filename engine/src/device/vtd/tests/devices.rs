//! Devices behind units, as their drivers see them.

mod fits;
mod nested;
mod shared;
mod silent;

use alloc::collections::BTreeMap;
use alloc::vec;

use iopt_formats::command::vtd::{Device as Source, PasidScope, QueueDepth};
use iopt_formats::context::vtd::Translation;

use super::*;
use crate::device::context::{Architecture as _, Arrival};
use crate::device::vtd::architecture::Vtd;
use crate::device::{
    AttachFailure, DeviceAddress, DeviceControl, DirectRegion, DomainKind, Endpoint as _, Hwpt,
    PlainDevices, Resolved,
};
use crate::firmware::NodeIndex;
use crate::invalidation::plan::vtd::Tag;
use crate::radix::MapSide;
use crate::sync::{Class, Mutex};

type Domain = VtdDomain<Heap, Queue>;
type Device = VtdEndpoint<Heap, Queue>;

/// Of the tests' own locks: held for a moment, and around nothing.
static LOG: Class = Class::unranked("log of a test");

/// Switches of devices, written down.
#[derive(Debug)]
struct Switches(Mutex<Vec<bool>>);

impl DeviceControl for Switches {
    fn has_ats(&self, _device: DeviceAddress) -> bool {
        true
    }

    fn ats_queue_depth(&self, _device: DeviceAddress) -> u8 {
        32
    }

    fn set_ats(&self, _device: DeviceAddress, is_enabled: bool) {
        self.0.lock().push(is_enabled);
    }
}

impl Switches {
    fn take(&self) -> Vec<bool> {
        core::mem::take(&mut *self.0.lock())
    }
}

struct World {
    unit: Arc<Unit>,
    switches: Arc<Switches>,
}

impl World {
    fn new(mode: TableMode) -> Self {
        Self::of(unit(mode, PLANNER))
    }

    fn of(unit: Unit) -> Self {
        Self {
            unit: Arc::new(unit),
            switches: Arc::new(Switches(Mutex::new(&LOG, Vec::new()))),
        }
    }

    fn device(&self, ids: &[u32], can_ats: bool, pasid_bits: u8) -> Device {
        let control: Arc<dyn DeviceControl> = if can_ats {
            Arc::clone(&self.switches) as _
        } else {
            Arc::new(PlainDevices)
        };
        let address = DeviceAddress::Node(NodeIndex(ids[0] as usize));
        let arrival = Arrival {
            device: &Resolved::new(address, 0),
            ids,
            pasid_bits,
            control: &*control,
        };
        let port = Vtd::port(&self.unit, &arrival).expect("hardware answers");
        let at = vec![(Arc::clone(&self.unit), port)];
        Device::new(address, at, control, (can_ats, pasid_bits))
    }

    fn commands(&self) -> Vec<Descriptor> {
        take(&self.unit)
    }

    fn users(&self, domain: &Arc<Domain>, tag: Tag) -> usize {
        let set = domain.set().expect("it has tables");
        set.users(self.unit.instance(), tag)
    }

    fn ats_users(&self, domain: &Arc<Domain>, source_id: u16, pasid: Option<Pasid>) -> usize {
        let device = source(source_id);
        self.users(domain, Tag::Ats { device, pasid })
    }

    fn silence(&self, is_silent: bool) {
        let queue = self.unit.instance().queue().device();
        queue.set_silent(is_silent);
    }

    fn id(&self, domain: &Arc<Domain>) -> u16 {
        let users = domain.users().expect("it has tables");
        let id = users.id(self.unit.instance()).expect("it is attached");
        id.try_into().expect("it has 16 bits")
    }

    fn legacy(&self, source_id: u16) -> LegacyContext {
        match self.unit.context(source_id) {
            Some(ContextEntry::Legacy(context)) => context,
            other => panic!("{other:?}"),
        }
    }

    fn scalable(&self, source_id: u16) -> ScalableContext {
        match self.unit.context(source_id) {
            Some(ContextEntry::Scalable(context)) => context,
            other => panic!("{other:?}"),
        }
    }

    /// Whether nothing leads anywhere.
    fn is_blocked(&self, device: &Device, source_id: u16, place: Option<Pasid>) -> bool {
        match self.unit.context(source_id).expect("it is linked") {
            ContextEntry::Legacy(context) => context.translation() == Translation::Blocked,
            ContextEntry::Scalable(context) => {
                let entry = device.pasid_entry(0, place.unwrap_or(pasid(0)));
                let is_absent = |entry: PasidEntry| entry.translation() == Translation::Blocked;
                context.directory().is_none() || entry.is_none_or(is_absent)
            }
        }
    }
}

const fn source(source_id: u16) -> Source {
    Source {
        source_id,
        physical_function: 0,
        queue_depth: QueueDepth::new(32),
    }
}

fn first() -> Arc<Domain> {
    let format = FirstStage::new(47).expect("legal").with_oa_bits(48);
    let format = format.expect("legal");
    Arc::new(Domain::first_stage(format, Arc::new(Heap), MapSide::Silent).expect("memory"))
}

fn second() -> Arc<Domain> {
    Arc::new(second_of(48))
}

fn second_of(bits: u8) -> Domain {
    let format = SecondStage::new(bits).expect("legal").with_oa_bits(48);
    Domain::second_stage(format.expect("legal"), Arc::new(Heap), MapSide::Silent).expect("memory")
}

/// A domain that units in this mode can walk.
fn domain_for(mode: TableMode, has_ats: bool) -> Arc<Domain> {
    let format = FirstStage::new(47).expect("legal").with_oa_bits(48);
    let domain = match mode {
        TableMode::Legacy => second_of(48),
        TableMode::Scalable => {
            Domain::first_stage(format.expect("legal"), Arc::new(Heap), MapSide::Silent)
                .expect("memory")
        }
    };
    Arc::new(if has_ats {
        domain
    } else {
        domain.without_ats()
    })
}

const MODES: [TableMode; 2] = [TableMode::Legacy, TableMode::Scalable];

fn attach(
    device: &Device,
    place: Option<Pasid>,
    domain: &Arc<Domain>,
) -> Result<(), AttachFailure> {
    let domain: Arc<dyn Hwpt> = Arc::clone(domain) as _;
    device.prepare(place, &domain)?.commit();
    Ok(())
}

/// The first table at the head of the module.
#[test]
fn a_legacy_entry_says_what_requests_meet() {
    let world = World::new(TableMode::Legacy);
    let device = world.device(&[8, 0x100], true, 0);
    let (one, plain) = (second(), Arc::new(second_of(48).without_ats()));
    let both = || {
        assert_eq!(world.legacy(8), world.legacy(0x100));
        world.legacy(8)
    };
    assert_eq!(both(), LegacyContext::blocked());
    attach(&device, None, &one).expect("it fits");
    assert!(matches!(both().translation(), Translation::Second(_)));
    assert!(both().has_device_tlb());
    assert_eq!(both().domain_id(), world.id(&one));
    attach(&device, None, &plain).expect("it fits");
    assert!(!both().has_device_tlb());
    assert_eq!(both().domain_id(), world.id(&plain));
    attach(&device, None, &Arc::new(Domain::identity())).expect("it fits");
    let through = LegacyContext::pass_through(1, AddressWidth::Bits48);
    assert_eq!(both(), through);
    attach(&device, None, &Arc::new(Domain::blocked())).expect("it fits");
    assert_eq!(both(), LegacyContext::blocked());
    assert_eq!(world.unit.domain_ids().used_count(), 0);
    assert_eq!(world.unit.domain_ids().quarantined_count(), 0);
}

/// The second table at the head of the module.
#[test]
fn scalable_entries_say_what_requests_with_and_without_pasids_meet() {
    let world = World::new(TableMode::Scalable);
    let device = world.device(&[8, 0x180], true, 20);
    let (one, other) = (first(), second());
    let both = || {
        assert_eq!(world.scalable(8), world.scalable(0x180));
        world.scalable(8)
    };
    let of = |place| {
        let entry = device.pasid_entry(0, pasid(place));
        entry.expect("it is linked")
    };
    assert_eq!(both(), ScalableContext::blocked());
    attach(&device, None, &Arc::new(Domain::identity())).expect("it fits");
    let directory = both().directory().expect("something is attached");
    assert_eq!((directory.pasid_count(), both().rid_pasid()), (1 << 20, 0));
    assert!(both().has_pasid() && !both().has_device_tlb());
    let through = PasidEntry::pass_through(1, AddressWidth::Bits48);
    assert_eq!(of(0), through);
    attach(&device, Some(pasid(0x4_0001)), &one).expect("it fits");
    assert!(both().has_device_tlb());
    assert!(matches!(of(0x4_0001).translation(), Translation::First(_)));
    assert_eq!(of(0x4_0001).domain_id(), world.id(&one));
    assert_eq!(of(0), through);
    assert_eq!(of(0x4_0002), PasidEntry::blocked());
    assert_eq!(device.pasid_entry(0, pasid(0x4_0040)), None);
    // Either stage beside the other.
    attach(&device, None, &other).expect("it fits");
    assert!(matches!(of(0).translation(), Translation::Second(_)));
    assert_eq!(of(0).domain_id(), world.id(&other));
    device.block(None);
    assert_eq!(of(0), PasidEntry::blocked());
    assert!(both().directory().is_some());
    device.block(Some(pasid(0x4_0001)));
    assert_eq!(both(), ScalableContext::blocked());
    assert_eq!(of(0x4_0001), PasidEntry::blocked());
    assert_eq!(world.unit.domain_ids().used_count(), 0);
    assert_eq!(world.unit.domain_ids().quarantined_count(), 0);
}

/// Section 6.5.3: the entry, the entries of PASIDs, translations, and devices in the end.
#[test]
fn what_is_detached_is_forgotten_from_the_entry_to_the_device() {
    let world = World::new(TableMode::Scalable);
    let device = world.device(&[8], true, 4);
    let other = world.device(&[9], true, 4);
    let (one, two) = (first(), first());
    let at = pasid(3);
    attach(&other, None, &one).expect("it fits");
    attach(&device, None, &one).expect("it fits");
    attach(&device, Some(at), &two).expect("it fits");
    let (one_id, two_id) = (world.id(&one), world.id(&two));
    world.commands();
    device.block(Some(at));
    let device_tlb = Descriptor::PasidDeviceTlb {
        device: source(8),
        pasids: PasidScope::One(at),
        span: iopt_formats::command::Span::ALL,
    };
    // Nobody else has it, so it is forgotten once more before its ID is free.
    let told = [
        entry(two_id, at),
        space(two_id, at),
        device_tlb,
        space(two_id, at),
    ];
    assert_eq!(world.commands(), told);
    // Another device has this one still: what is in flight to it is waited for all the same.
    device.block(None);
    let told = [
        entry(one_id, pasid(0)),
        space(one_id, pasid(0)),
        context(8, 0),
    ];
    assert_eq!(world.commands(), told);
    assert_eq!(world.switches.take(), [true, true, false]);
    let world = World::new(TableMode::Legacy);
    let device = world.device(&[8], false, 0);
    let one = second();
    attach(&device, None, &one).expect("it fits");
    let id = world.id(&one);
    world.commands();
    device.block(None);
    assert_eq!(world.commands(), [context(8, id), domain(id), domain(id)]);
}

/// A3.3: all of {old, new} x {without ATS, with}.
#[test]
fn each_domain_counts_its_devices_with_ats_exactly() {
    let cases = [(false, false), (false, true), (true, false), (true, true)];
    for (mode, (old_has, new_has)) in MODES
        .into_iter()
        .flat_map(|mode| cases.map(|it| (mode, it)))
    {
        let world = World::new(mode);
        let device = world.device(&[8], true, 0);
        let (old, new) = (domain_for(mode, old_has), domain_for(mode, new_has));
        let counts = || [&old, &new].map(|domain| world.ats_users(domain, 8, None));
        attach(&device, None, &old).expect("it fits");
        assert_eq!(counts(), [usize::from(old_has), 0]);
        assert_eq!(world.switches.take(), vec![true; usize::from(old_has)]);
        // Taken back: nothing remains.
        let shared: Arc<dyn Hwpt> = Arc::clone(&new) as _;
        drop(device.prepare(None, &shared).expect("it fits"));
        assert_eq!(counts(), [usize::from(old_has), 0]);
        assert_eq!(device.has_ats(), old_has);
        world.commands();
        attach(&device, None, &new).expect("it fits");
        assert_eq!(counts(), [0, usize::from(new_has)], "{old_has} {new_has}");
        let switched = (old_has != new_has).then_some(new_has);
        assert_eq!(world.switches.take(), Vec::from_iter(switched));
        assert_eq!(device.has_ats(), new_has);
        let has_device_tlb = match mode {
            TableMode::Legacy => world.legacy(8).has_device_tlb(),
            TableMode::Scalable => world.scalable(8).has_device_tlb(),
        };
        assert_eq!(has_device_tlb, new_has);
        // Only who keeps a TLB has to forget.
        let commands = world.commands();
        let is_device = |it: &&Descriptor| matches!(it, Descriptor::DeviceTlb { .. });
        let count = commands.iter().filter(is_device).count();
        assert_eq!(count, usize::from(old_has && new_has));
        device.block(None);
        assert_eq!(counts(), [0, 0]);
        assert!(!device.has_ats());
    }
}

/// A3.5.
#[test]
fn nothing_is_sent_to_a_device_that_left() {
    use crate::invalidation::{Changes, Gather, TableId};

    for mode in MODES {
        let world = World::new(mode);
        let (leaving, staying) = (world.device(&[8], true, 0), world.device(&[9], true, 0));
        let domain = domain_for(mode, true);
        for device in [&leaving, &staying] {
            attach(device, None, &domain).expect("it fits");
        }
        leaving.block(None);
        world.commands();
        let tags = [8, 9].map(|source_id| world.ats_users(&domain, source_id, None));
        assert_eq!(tags, [0, 1]);
        // Everything that the domain is synced with.
        let gather = Gather::new(
            Changes::everything(),
            TableId::next(),
            crate::reclaim::Operation::NONE,
        );
        gather
            .sync(domain.set().expect("it has tables"))
            .expect("hardware answers");
        let told = world.commands().into_iter();
        let devices: Vec<_> = told
            .filter_map(|descriptor| match descriptor {
                Descriptor::DeviceTlb { device, .. } => Some(device.source_id),
                _ => None,
            })
            .collect();
        assert_eq!(devices, [9]);
    }
}

/// A3.2: after every change, the set of each domain is the multiset of its attachments.
#[test]
fn sets_are_the_places_of_all_attachments() {
    for mode in MODES {
        let world = World::new(mode);
        let sources: [&[u32]; 3] = [&[8], &[16, 17], &[0x0280]];
        let (place_count, pasid_bits) = match mode {
            TableMode::Legacy => (1, 0),
            TableMode::Scalable => (8, 3),
        };
        let devices: Vec<_> = sources
            .iter()
            .map(|ids| world.device(ids, ids[0] != 8, pasid_bits))
            .collect();
        let domains = match mode {
            TableMode::Legacy => [second(), second(), second()],
            TableMode::Scalable => [first(), second(), first()],
        };
        let identity = Arc::new(Domain::identity());
        let mut attached: BTreeMap<(usize, u32), usize> = BTreeMap::new();
        let mut seed = 0x1234_5678_u64;
        let mut below = |count: u64| {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            (seed >> 20) % count
        };
        for _ in 0..400 {
            let device = below(3) as usize;
            let place = below(place_count) as u32;
            let number = below(3) as usize;
            let at = (place > 0).then(|| pasid(place));
            match below(8) {
                0..4 => {
                    attach(&devices[device], at, &domains[number]).expect("it fits");
                    attached.insert((device, place), number);
                }
                4 => {
                    let domain: Arc<dyn Hwpt> = Arc::clone(&domains[number]) as _;
                    drop(devices[device].prepare(at, &domain).expect("it fits"));
                }
                5 if place == 0 => {
                    attach(&devices[device], None, &identity).expect("it fits");
                    attached.remove(&(device, 0));
                }
                _ => {
                    devices[device].block(at);
                    attached.remove(&(device, place));
                }
            }
            for (number, domain) in domains.iter().enumerate() {
                let of_it = |at: Option<u32>| {
                    let of_it = attached.iter().filter(|(_, other)| **other == number);
                    let at = move |place: &u32| at.is_none_or(|at| at == *place);
                    of_it.filter(|((_, place), _)| at(place)).count()
                };
                let users = domain.users().expect("tables");
                let id = users.id(world.unit.instance());
                assert_eq!(id.is_some(), of_it(None) > 0);
                let Some(id) = id else { continue };
                let domain_id = id as u16;
                let is_first = mode == TableMode::Scalable && number != 1;
                for place in 0..place_count as u32 {
                    if is_first {
                        let pasid = pasid(place);
                        let tag = Tag::FirstStage { domain_id, pasid };
                        assert_eq!(world.users(domain, tag), of_it(Some(place)));
                    }
                    for (device, ids) in sources.iter().enumerate() {
                        let is_there = attached.get(&(device, place)) == Some(&number);
                        let expected = usize::from(is_there && ids[0] != 8);
                        for &id in *ids {
                            let at = (place > 0).then(|| pasid(place));
                            assert_eq!(world.ats_users(domain, id as u16, at), expected);
                        }
                    }
                }
                if !is_first {
                    let tag = Tag::SecondStage { domain_id };
                    assert_eq!(world.users(domain, tag), of_it(None));
                }
            }
            world.commands();
        }
        drop(devices);
        assert_eq!(world.unit.domain_ids().quarantined_count(), 0);
    }
}
