//! Devices behind SMMUs whose commands are written down.

mod condition;
mod direct;
mod fits;
mod shared;
mod silence;
mod stalls;

use alloc::collections::BTreeMap;
use alloc::sync::Arc;
use alloc::vec;
use alloc::vec::Vec;

use iopt_formats::armv8::{Granule, Stage1, Stage2};
use iopt_formats::command::Pasid;
use iopt_formats::command::smmuv3::Command;
use iopt_formats::context::smmuv3::{Ats, Cd, DefaultSubstream, Ste, StreamConfig};

use super::*;
use crate::device::context::{Architecture as _, Arrival};
use crate::device::testing::Recorder;
use crate::device::{
    AttachFailure, DeviceAddress, DeviceControl, DirectRegion, Endpoint as _, Hwpt, PlainDevices,
    Resolved,
};
use crate::firmware::NodeIndex;
use crate::invalidation::plan::smmuv3::Tag;
use crate::mem::Heap;
use crate::sync::{Class, Mutex};

mod faults;
mod nested;

type Domain = Smmuv3Domain<Heap, Recorder>;
type Device = Smmuv3Endpoint<Heap, Recorder>;

/// Of the tests' own locks: held for a moment, and around nothing.
static LOG: Class = Class::unranked("log of a test");

const FEATURES: Features = Features {
    has_two_level_streams: true,
    has_two_level_cds: true,
    has_stage1: true,
    has_stage2: true,
    has_ats: true,
    has_forced_write_back: true,
    is_coherent: true,
    ..Features::from_registers(0, 16 | 20 << 6 | 1 << 27, 0, 5 | 7 << 4)
};

/// Switches of devices, written down.
#[derive(Debug)]
struct Switches(Mutex<Vec<bool>>);

impl DeviceControl for Switches {
    fn has_ats(&self, _device: DeviceAddress) -> bool {
        true
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
    smmu: Arc<Smmu<Heap, Recorder>>,
    switches: Arc<Switches>,
}

impl World {
    fn new(features: Features) -> Self {
        let smmu = Smmu::new(features, Arc::new(Heap), Recorder::instance()).expect("memory");
        Self {
            smmu,
            switches: Arc::new(Switches(Mutex::new(&LOG, Vec::new()))),
        }
    }

    fn device(&self, streams: &[u32], can_ats: bool, pasid_bits: u8) -> Device {
        let address = DeviceAddress::Node(NodeIndex(streams[0] as usize));
        let arrival = Arrival {
            device: &Resolved::new(address, 0),
            ids: streams,
            pasid_bits,
            control: &PlainDevices,
        };
        let port = Smmuv3::port(&self.smmu, &arrival).expect("hardware answers");
        let control: Arc<dyn DeviceControl> = if can_ats {
            Arc::clone(&self.switches) as _
        } else {
            Arc::new(PlainDevices)
        };
        let at = vec![(Arc::clone(&self.smmu), port)];
        Device::new(address, at, control, (can_ats, pasid_bits))
    }

    fn commands(&self) -> Vec<Command> {
        self.smmu.instance().queue().device().take()
    }

    fn ste(&self, stream: u32) -> Ste {
        self.smmu.ste(stream).expect("it is linked")
    }

    fn users(&self, domain: &Arc<Domain>, tag: Tag) -> usize {
        let set = domain.set().expect("it has tables");
        set.users(self.smmu.instance(), tag)
    }

    fn ats_users(&self, domain: &Arc<Domain>, stream: u32, substream: Option<Pasid>) -> usize {
        self.users(domain, Tag::Ats { stream, substream })
    }

    fn silence(&self, is_silent: bool) {
        self.smmu.instance().queue().device().set_silent(is_silent);
    }
}

fn stage1() -> Arc<Domain> {
    let format = Stage1::<12>::new(48, 48).expect("legal");
    Arc::new(Domain::stage1(format, Arc::new(Heap)).expect("memory"))
}

fn plain() -> Arc<Domain> {
    let format = Stage1::<12>::new(48, 48).expect("legal");
    let domain = Domain::stage1(format, Arc::new(Heap)).expect("memory");
    Arc::new(domain.without_ats())
}

fn stage2() -> Arc<Domain> {
    let format = Stage2::<12>::new(48, 48).expect("legal");
    Arc::new(Domain::stage2(format, Arc::new(Heap)).expect("memory"))
}

fn pasid(value: u32) -> Pasid {
    Pasid::new(value).expect("it has 20 bits")
}

fn attach(
    device: &Device,
    place: Option<Pasid>,
    domain: &Arc<Domain>,
) -> Result<(), AttachFailure> {
    let domain: Arc<dyn Hwpt> = Arc::clone(domain) as _;
    device.prepare(place, &domain)?.commit();
    Ok(())
}

fn id(world: &World, domain: &Arc<Domain>) -> u32 {
    let users = domain.users().expect("it has tables");
    users.id(world.smmu.instance()).expect("it is attached")
}

#[test]
fn the_id_registers_say_what_hardware_can() {
    // Of an emulated SMMU, and all ones.
    let features = Features::from_registers(0x0d4f_101f & !1, 0x0000_0010 | 5 << 6, 0, 0x0000_0074);
    assert!(features.has_stage1 && !features.has_stage2 && !features.has_ats);
    assert_eq!((features.stream_bits, features.substream_bits), (16, 5));
    assert!(features.has_two_level_streams && features.has_two_level_cds);
    assert_eq!(features.oa_bits, 44);
    assert!(features.is_coherent && !features.has_forced_write_back);
    assert!(features.has_4k && features.has_16k && features.has_64k && features.has_wide_asids);
    let all = Features::from_registers(u32::MAX, u32::MAX, u32::MAX, u32::MAX);
    assert_eq!((all.stream_bits, all.substream_bits), (32, 20));
    assert_eq!(all.oa_bits, 48);
}

#[test]
fn a_stream_is_linked_and_announced_before_it_is_used() {
    let world = World::new(FEATURES);
    assert_eq!(world.smmu.ste(0x123), None);
    world.smmu.link(0x123).expect("hardware answers");
    let announced = |stream| Command::CfgiSte {
        stream,
        is_secure: false,
        is_leaf: false,
    };
    assert_eq!(world.commands(), [announced(0x123)]);
    // The whole piece is there, blocked; others may have looked for it before.
    assert_eq!(world.ste(0x1ff).config(), StreamConfig::Abort);
    world.smmu.link(0x1ff).expect("it is there");
    assert_eq!(world.commands(), [announced(0x1ff)]);
    assert_eq!(world.ste(0x1ff).config(), StreamConfig::Abort);
    assert!(world.smmu.link(0x1_0000).is_err());
    let linear = Features {
        stream_bits: 6,
        has_two_level_streams: false,
        ..FEATURES
    };
    let world = World::new(linear);
    world.smmu.link(0x3f).expect("it is there");
    assert_eq!(world.commands(), []);
    assert_eq!(world.smmu.stream_table().split(), None);
    assert!(world.smmu.link(0x40).is_err());
}

/// The table at the head of the module.
#[test]
fn an_ste_says_what_requests_without_and_with_pasids_meet() {
    let world = World::new(FEATURES);
    let device = world.device(&[8, 9], false, 20);
    let (one, other) = (stage1(), stage1());
    let identity = Arc::new(Domain::identity());
    let default = |ste: Ste| {
        assert_eq!(ste.config(), StreamConfig::Stage1);
        let table = ste.cd_table().expect("legal").expect("stage 1");
        assert_eq!(table.count_lg2(), 20);
        ste.default_substream()
    };
    let both = |world: &World| {
        assert_eq!(world.ste(8), world.ste(9));
        world.ste(8)
    };
    assert_eq!(both(&world).config(), StreamConfig::Abort);
    attach(&device, None, &identity).expect("it fits");
    assert_eq!(both(&world).config(), StreamConfig::Bypass);
    attach(&device, Some(pasid(5)), &one).expect("it fits");
    assert_eq!(default(both(&world)), DefaultSubstream::Bypass);
    let cd = device.cd(0, pasid(5)).expect("it is there");
    assert!(cd.is_valid() && u32::from(cd.asid()) == id(&world, &one));
    assert_eq!(device.cd(0, pasid(6)), Some(Cd::INVALID));
    assert_eq!(device.cd(0, pasid(1024)), None);
    attach(&device, None, &other).expect("it fits");
    assert_eq!(default(both(&world)), DefaultSubstream::Substream0);
    assert_eq!(
        device.cd(0, pasid(0)).expect("there").asid(),
        id(&world, &other) as u16
    );
    device.block(None);
    assert_eq!(default(both(&world)), DefaultSubstream::Terminate);
    assert_eq!(device.cd(0, pasid(0)), Some(Cd::INVALID));
    attach(&device, None, &identity).expect("it fits");
    assert_eq!(default(both(&world)), DefaultSubstream::Bypass);
    device.block(Some(pasid(5)));
    assert_eq!(device.cd(0, pasid(5)), Some(Cd::INVALID));
    assert_eq!(both(&world).config(), StreamConfig::Bypass);
    let second = stage2();
    attach(&device, None, &second).expect("it fits");
    assert_eq!(both(&world).config(), StreamConfig::Stage2);
    assert_eq!(u32::from(both(&world).vmid()), id(&world, &second));
    attach(&device, None, &Arc::new(Domain::blocked())).expect("it fits");
    assert_eq!(both(&world).config(), StreamConfig::Abort);
    assert_eq!(
        world.smmu.asids().used_count() + world.smmu.vmids().used_count(),
        0
    );
    let lost = world.smmu.asids().quarantined_count() + world.smmu.vmids().quarantined_count();
    assert_eq!(lost, 0);
}

/// Another driver's domain.
#[derive(Debug)]
struct Stranger;

impl Hwpt for Stranger {
    fn kind(&self) -> crate::device::DomainKind {
        crate::device::DomainKind::Identity
    }

    fn map_direct(&self, _: DirectRegion) -> Result<(), crate::domain::DomainError> {
        Ok(())
    }
}

/// A3.6 and A3.9, as far as they are the driver's.
#[test]
fn what_does_not_fit_is_refused_and_changes_nothing() {
    let world = World::new(FEATURES);
    let device = world.device(&[8], true, 5);
    let (first, second) = (stage1(), stage2());
    attach(&device, Some(pasid(3)), &first).expect("it fits");
    let before = (world.ste(8), id(&world, &first));
    let ats = world.ats_users(&first, 8, Some(pasid(3)));
    world.commands();
    let refused = |place: Option<u32>, domain: &Arc<Domain>| {
        let refused = attach(&device, place.map(pasid), domain);
        assert!(
            matches!(refused, Err(AttachFailure::Unsupported { .. })),
            "{place:?}"
        );
    };
    refused(None, &second);
    refused(Some(4), &second);
    refused(Some(4), &Arc::new(Domain::identity()));
    refused(Some(0), &first);
    refused(Some(32), &first);
    // One with ATS beside one without.
    refused(None, &plain());
    refused(Some(4), &plain());
    attach(&device, Some(pasid(31)), &first).expect("the last one");
    device.block(Some(pasid(31)));
    let small = World::new(Features {
        oa_bits: 40,
        ..FEATURES
    });
    let narrow = small.device(&[8], false, 0);
    assert!(matches!(
        attach(&narrow, None, &first),
        Err(AttachFailure::Foreign)
    ));
    let stranger: Arc<dyn Hwpt> = Arc::new(Stranger);
    assert!(matches!(
        device.prepare(None, &stranger),
        Err(AttachFailure::Foreign)
    ));
    assert_eq!((world.ste(8), id(&world, &first)), before);
    assert_eq!(world.ats_users(&first, 8, Some(pasid(3))), ats);
    assert!(matches!(
        world.commands().first(),
        Some(Command::CfgiCd { .. })
    ));
    device.block(Some(pasid(3)));
    attach(&device, None, &second).expect("no PASID is in the way");
    refused(Some(3), &first);
}

/// What is prepared may be committed, so others have to do with it.
#[test]
fn what_is_prepared_counts_like_what_is_attached() {
    let world = World::new(FEATURES);
    let device = world.device(&[8], true, 5);
    let pairs = [
        (None, stage2(), Some(pasid(3)), stage1()),
        (Some(pasid(3)), stage1(), None, stage2()),
        (None, stage1(), Some(pasid(3)), plain()),
        (Some(pasid(3)), plain(), Some(pasid(4)), stage1()),
    ];
    for (place, one, other_place, other) in pairs {
        let shared: Arc<dyn Hwpt> = one;
        let prepared = device.prepare(place, &shared).expect("it fits");
        assert!(attach(&device, other_place, &other).is_err(), "{place:?}");
        drop(prepared);
        attach(&device, other_place, &other).expect("nothing is in the way");
        assert!(device.prepare(place, &shared).is_err(), "{place:?}");
        device.block(other_place);
    }
}

/// Otherwise requests would meet nothing for a moment, where they could meet one of both.
#[test]
fn an_ste_leads_to_a_cd_only_while_that_is_valid() {
    let world = World::new(FEATURES);
    let device = world.device(&[8], false, 5);
    let is_ste = |command: &Command| match command {
        Command::CfgiSte { .. } => Some(true),
        Command::CfgiCd { is_leaf, .. } => is_leaf.then_some(false),
        _ => None,
    };
    let order = || {
        let commands = world.commands();
        let mut order: Vec<bool> = commands.iter().filter_map(is_ste).collect();
        order.dedup();
        order
    };
    let identity = Arc::new(Domain::identity());
    attach(&device, None, &identity).expect("it fits");
    order();
    attach(&device, None, &stage1()).expect("it fits");
    assert_eq!(order(), [false, true]);
    attach(&device, None, &identity).expect("it fits");
    assert_eq!(order(), [true, false]);
    attach(&device, Some(pasid(3)), &stage1()).expect("it fits");
    assert_eq!(order(), [false, true]);
}

/// IDs are taken by who has the endpoint, so an endpoint wanted by who has IDs would be the other order.
#[test]
fn an_endpoint_wanted_while_an_id_is_chosen_is_reported() {
    if !crate::sync::lockdep::IS_CHECKED {
        return;
    }
    let world = World::new(FEATURES);
    let device = world.device(&[8], false, 0);
    let domain = stage1();
    let users = domain.users().expect("it has tables");
    let join = || {
        let tags = |_| {
            device.block(None);
            smallvec::smallvec![]
        };
        users
            .join(world.smmu.instance(), world.smmu.asids(), tags)
            .is_ok()
    };
    let panic = std::panic::catch_unwind(core::panic::AssertUnwindSafe(join));
    let panic = panic.expect_err("it is reported");
    let text = panic.downcast_ref::<String>();
    let text = text.expect("it is a text");
    let order = r#"takes "endpoint" (rank 520) under "domain IDs" (rank 540)"#;
    assert!(text.contains(order), "{text}");
    attach(&device, None, &domain).expect("nobody has the lock");
}

/// A3.3: all of {old, new} x {without ATS, with}.
#[test]
fn each_domain_counts_its_devices_with_ats_exactly() {
    for old_has in [false, true] {
        for new_has in [false, true] {
            let world = World::new(FEATURES);
            let device = world.device(&[8], true, 0);
            let domain = |has_ats| if has_ats { stage1() } else { plain() };
            let (old, new) = (domain(old_has), domain(new_has));
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
            let ats = if new_has { Ats::Full } else { Ats::Refused };
            assert_eq!(world.ste(8).ats(), ats);
            let is_atc = |command: &Command| matches!(command, Command::AtcInv { .. });
            // Only who keeps a TLB has to forget.
            let atc_count = world
                .commands()
                .iter()
                .filter(|command| is_atc(command))
                .count();
            assert_eq!(atc_count, usize::from(old_has && new_has));
            device.block(None);
            assert_eq!(counts(), [0, 0]);
            assert!(!device.has_ats());
        }
    }
}

/// A3.5.
#[test]
fn nothing_is_sent_to_a_device_that_left() {
    let world = World::new(FEATURES);
    let (leaving, staying) = (world.device(&[8], true, 0), world.device(&[9], true, 0));
    let domain = stage1();
    for device in [&leaving, &staying] {
        attach(device, None, &domain).expect("it fits");
    }
    leaving.block(None);
    world.commands();
    let tags = [8, 9].map(|stream| world.ats_users(&domain, stream, None));
    assert_eq!(tags, [0, 1]);
    // Everything that the domain is synced with.
    let gather = {
        use crate::invalidation::{Changes, Gather, TableId};
        Gather::new(
            Changes::everything(),
            TableId::next(),
            crate::reclaim::Operation::NONE,
        )
    };
    gather
        .sync(domain.set().expect("it has tables"))
        .expect("hardware answers");
    let streams: Vec<u32> = world
        .commands()
        .iter()
        .filter_map(|command| match command {
            Command::AtcInv { stream, .. } => Some(*stream),
            _ => None,
        })
        .collect();
    assert_eq!(streams, [9]);
}

/// A3.2: after every change, the set of each domain is the multiset of its attachments.
#[test]
fn sets_are_the_places_of_all_attachments() {
    let world = World::new(FEATURES);
    let streams: [&[u32]; 3] = [&[8], &[16, 17], &[300]];
    let devices: Vec<_> = streams
        .iter()
        .map(|streams| world.device(streams, streams[0] != 8, 3))
        .collect();
    let domains = [stage1(), stage1(), stage1()];
    let identity = Arc::new(Domain::identity());
    let mut attached: BTreeMap<(usize, u32), usize> = BTreeMap::new();
    let mut seed = 0x1234_5678_u64;
    let mut below = |count: u64| {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        (seed >> 20) % count
    };
    for _ in 0..600 {
        let device = below(3) as usize;
        let place = below(8) as u32;
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
            let of_it = || attached.iter().filter(|(_, other)| **other == number);
            let users = domain.users().expect("tables");
            let id = users.id(world.smmu.instance());
            assert_eq!(id.is_some(), of_it().count() > 0);
            if let Some(id) = id {
                let tlb = Tag::Stage1 {
                    vmid: 0,
                    asid: id as u16,
                    granule: Granule::Kib4,
                };
                assert_eq!(world.users(domain, tlb), of_it().count());
            }
            for (device, streams) in streams.iter().enumerate() {
                for place in 0..8 {
                    let is_there = attached.get(&(device, place)) == Some(&number);
                    let expected = usize::from(is_there && streams[0] != 8);
                    for &stream in *streams {
                        let substream = (place > 0).then(|| pasid(place));
                        assert_eq!(world.ats_users(domain, stream, substream), expected);
                    }
                }
            }
        }
        world.commands();
    }
    drop(devices);
    assert_eq!(world.smmu.asids().quarantined_count(), 0);
}
