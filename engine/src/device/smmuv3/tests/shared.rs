//! Devices that have a stream in common, and devices that are dropped.

use super::*;
use crate::device::context::LinkError;

/// Streams 8 and 9 are the devices' own.
const SHARED: u32 = 7;

fn table(ste: Ste) -> Option<iopt_formats::Oa> {
    let table = ste.cd_table().expect("legal");
    table.map(|table| table.base())
}

/// One that is reset or removed does not stop the others, and leaves nothing of its own in use.
#[test]
fn a_stream_is_led_as_long_as_one_of_its_devices_is_attached() {
    for order in [[0, 1], [1, 0]] {
        let world = World::new(FEATURES);
        let devices = [[SHARED, 8], [SHARED, 9]].map(|streams| world.device(&streams, true, 4));
        let own = |at: usize| world.ste(8 + at as u32);
        let (domain, process) = (stage1(), stage1());
        for device in &devices {
            attach(device, None, &domain).expect("it fits");
            attach(device, Some(pasid(3)), &process).expect("it fits");
        }
        let [first, last] = order;
        let is_led = || world.ste(SHARED).config() == StreamConfig::Stage1;
        assert!(is_led());
        devices[first].block(Some(pasid(3)));
        // To where the PASID still leads.
        assert_eq!(table(world.ste(SHARED)), table(own(last)));
        devices[first].block(None);
        assert_eq!(table(world.ste(SHARED)), table(own(last)));
        assert_eq!(own(first).config(), StreamConfig::Abort);
        // It comes back, or another one comes: nothing is disturbed.
        attach(&devices[first], None, &domain).expect("it fits");
        assert_eq!(table(world.ste(SHARED)), table(own(last)));
        devices[first].block(None);
        let newcomer = world.device(&[SHARED, 10], true, 4);
        assert!(is_led());
        drop(newcomer);
        assert!(is_led());
        devices[last].release();
        assert_eq!(world.ste(SHARED).config(), StreamConfig::Abort);
        drop(devices);
        assert_eq!(world.smmu.asids().used_count(), 0);
    }
}

/// At no moment of a commit is the shared stream led to a CD that is not there.
#[test]
fn the_stream_goes_elsewhere_before_a_shared_cd_goes() {
    let world = World::new(FEATURES);
    let devices = [[SHARED, 8], [SHARED, 9]].map(|streams| world.device(&streams, false, 4));
    let (domain, process) = (stage1(), stage1());
    for device in &devices {
        attach(device, None, &domain).expect("it fits");
        attach(device, Some(pasid(3)), &process).expect("it fits");
    }
    world.commands();
    devices[0].block(Some(pasid(3)));
    let commands = world.commands();
    let ste = commands
        .iter()
        .position(|it| matches!(it, Command::CfgiSte { stream: SHARED, .. }));
    let cd = commands
        .iter()
        .position(|it| matches!(it, Command::CfgiCd { stream: 8, .. }));
    assert!(
        ste.zip(cd).is_some_and(|(ste, cd)| ste < cd),
        "{commands:?}"
    );
}

/// The entries are the SMMU's, which lives on.
#[test]
fn a_device_that_is_dropped_where_it_is_is_blocked() {
    for place in [None, Some(pasid(3))] {
        let world = World::new(FEATURES);
        let domain = stage1();
        let device = world.device(&[8], true, 4);
        attach(&device, place, &domain).expect("it fits");
        drop(device);
        assert_eq!(world.ste(8).config(), StreamConfig::Abort);
        assert_eq!(world.switches.take(), [true, false]);
        assert_eq!(world.ats_users(&domain, 8, place), 0);
        let asids = world.smmu.asids();
        assert_eq!((asids.used_count(), asids.quarantined_count()), (0, 0));
        // What hardware does not confirm stays told, and its ID taken.
        let device = world.device(&[8], true, 4);
        attach(&device, place, &domain).expect("it fits");
        world.silence(true);
        drop(device);
        world.silence(false);
        assert_eq!(world.ats_users(&domain, 8, place), 1);
        assert_eq!(asids.used_count(), 1);
    }
}

/// Hardware may hold what another device had there, for as long as it does not answer.
#[test]
fn a_device_that_comes_where_another_was_is_blocked_for_sure() {
    let linear = Features {
        stream_bits: 6,
        has_two_level_streams: false,
        ..FEATURES
    };
    let world = World::new(linear);
    let device = world.device(&[8], false, 0);
    attach(&device, None, &Arc::new(Domain::identity())).expect("it fits");
    world.silence(true);
    drop(device);
    assert!(world.smmu.is_quarantined(8));
    let address = DeviceAddress::Node(NodeIndex(8));
    let arrival = Arrival {
        device: &Resolved::new(address, 0),
        ids: &[8],
        pasid_bits: 0,
        control: &PlainDevices,
    };
    let come = || Smmuv3::port(&world.smmu, &arrival).map(drop);
    assert!(matches!(come(), Err(LinkError::Sync(_))));
    world.silence(false);
    assert_eq!(come(), Ok(()));
    assert!(!world.smmu.is_quarantined(8));
    assert_eq!(world.ste(8).config(), StreamConfig::Abort);
}

/// As many as are attached can become stuck at once.
#[test]
fn all_that_hardware_does_not_confirm_is_kept_and_left_later() {
    let world = World::new(FEATURES);
    let device = world.device(&[8], false, 4);
    let domains: Vec<_> = (1..8).map(|_| stage1()).collect();
    for (domain, value) in domains.iter().zip(1..) {
        attach(&device, Some(pasid(value)), domain).expect("it fits");
    }
    world.silence(true);
    for value in 1..8 {
        device.block(Some(pasid(value)));
    }
    world.silence(false);
    attach(&device, None, &Arc::new(Domain::identity())).expect("hardware answers");
    assert!(!device.is_quarantined());
    assert_eq!(world.smmu.asids().used_count(), 0);
}

/// One of them changes, and hardware does not answer: the stream blocks for all.
#[test]
fn whoever_shares_a_stream_knows_that_it_blocks_and_can_have_it_led_again() {
    for is_gone in [false, true] {
        let world = World::new(FEATURES);
        let [first, last] = [[SHARED, 8], [SHARED, 9]].map(|ids| world.device(&ids, false, 4));
        let domain = stage1();
        for device in [&first, &last] {
            attach(device, None, &domain).expect("it fits");
        }
        let is_led = || world.ste(SHARED).config() == StreamConfig::Stage1;
        world.silence(true);
        first.block(None);
        assert!(!is_led());
        assert!(first.is_cut_off() && last.is_cut_off() && last.is_quarantined());
        assert!(!last.retry(), "nobody has answered");
        let first = (!is_gone).then_some(first);
        world.silence(false);
        assert!(last.retry() && is_led());
        assert!(!last.is_cut_off() && !last.is_quarantined());
        assert!(first.is_none_or(|first| first.retry()));
        assert!(is_led());
    }
}

/// Requests name an ID, not a device: with ATS the one could send what only the other may.
#[test]
fn devices_that_share_a_stream_have_no_ats() {
    let world = World::new(FEATURES);
    let domain = stage1();
    let alone = world.device(&[SHARED, 8], true, 0);
    attach(&alone, None, &domain).expect("it fits");
    assert!(alone.has_ats());
    alone.block(None);
    let other = world.device(&[SHARED, 9], false, 0);
    attach(&alone, None, &domain).expect("it fits");
    assert!(!alone.has_ats());
    assert_eq!(world.ste(SHARED).ats(), Ats::Refused);
    alone.block(None);
    drop(other);
    attach(&alone, None, &domain).expect("it fits");
    assert!(alone.has_ats());
}

/// Nobody would ever lead its contexts elsewhere again.
#[test]
fn what_was_let_go_is_attached_to_nothing() {
    for place in [None, Some(pasid(3))] {
        let world = World::new(FEATURES);
        let device = world.device(&[8], true, 4);
        let domain = stage1();
        let hwpt: Arc<dyn Hwpt> = Arc::clone(&domain) as _;
        let prepared = device.prepare(place, &hwpt).expect("it fits");
        device.release();
        prepared.commit();
        assert_eq!(world.ste(8).config(), StreamConfig::Abort);
        assert_eq!(world.ats_users(&domain, 8, place), 0);
        assert_eq!(world.smmu.asids().used_count(), 0);
        assert!(matches!(
            device.prepare(place, &hwpt),
            Err(AttachFailure::Unsupported { .. })
        ));
    }
}

/// The stream may be led to tables of the one that has none.
#[test]
fn a_pasid_needs_a_stream_that_no_device_without_pasids_has() {
    let world = World::new(FEATURES);
    let device = world.device(&[SHARED, 8], false, 4);
    let other = world.device(&[SHARED, 9], false, 0);
    let domain = stage1();
    assert!(matches!(
        attach(&device, Some(pasid(3)), &domain),
        Err(AttachFailure::Unsupported { .. })
    ));
    attach(&device, None, &domain).expect("it fits");
    drop(other);
    attach(&device, Some(pasid(3)), &domain).expect("it fits");
}
