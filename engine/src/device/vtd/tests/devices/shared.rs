//! Devices that have a requester ID in common.

use super::*;

/// Requester IDs 8 and 9 are the devices' own.
const SHARED: u16 = 7;

/// One that is reset or removed does not stop the others.
#[test]
fn a_requester_id_is_led_as_long_as_one_of_its_devices_is_attached() {
    for mode in MODES {
        let world = World::new(mode);
        let devices = [[7, 8], [7, 9]].map(|ids| world.device(&ids, true, 0));
        let domain = domain_for(mode, true);
        for device in &devices {
            attach(device, None, &domain).expect("it fits");
        }
        let shared = || world.unit.context(SHARED);
        let blocked = Some(world.unit.blocked());
        assert_eq!(shared(), world.unit.context(8));
        world.commands();
        devices[0].block(None);
        assert_eq!(shared(), world.unit.context(9));
        assert!(!world.is_blocked(&devices[1], 9, None));
        assert_eq!(world.unit.context(8), blocked);
        // What led to the table that is left behind, and all behind it, is forgotten.
        let is_told = world.commands().contains(&ALL_TRANSLATIONS);
        assert_eq!(is_told, mode == TableMode::Scalable);
        attach(&devices[0], None, &domain).expect("it fits");
        assert_eq!(shared(), world.unit.context(9));
        devices[1].release();
        assert_eq!(shared(), world.unit.context(8));
        devices[0].release();
        assert_eq!(shared(), blocked);
        drop(devices);
        let ids = world.unit.domain_ids();
        assert_eq!((ids.used_count(), ids.quarantined_count()), (0, 0));
    }
}

#[test]
fn a_device_that_comes_where_another_was_is_blocked_for_sure() {
    for mode in MODES {
        let world = World::new(mode);
        let device = world.device(&[8], false, 0);
        attach(&device, None, &domain_for(mode, false)).expect("it fits");
        world.silence(true);
        drop(device);
        let arrival = Arrival {
            device: &Resolved::new(DeviceAddress::Node(NodeIndex(8)), 0),
            ids: &[8],
            pasid_bits: 0,
            control: &PlainDevices,
        };
        let come = || Vtd::port(&world.unit, &arrival).map(drop);
        assert_eq!(come().is_err(), world.unit.is_quarantined(8));
        world.silence(false);
        assert_eq!(come(), Ok(()));
        assert!(!world.unit.is_quarantined(8));
    }
}
