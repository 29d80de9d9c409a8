//! Units that do not answer.

use super::*;

#[test]
fn what_hardware_does_not_confirm_stays_told_until_it_does() {
    for (mode, place) in [
        (TableMode::Legacy, None),
        (TableMode::Scalable, None),
        (TableMode::Scalable, Some(pasid(7))),
    ] {
        let pasid_bits = if mode == TableMode::Legacy { 0 } else { 4 };
        let world = World::new(mode);
        let device = world.device(&[8], true, pasid_bits);
        let (old, new) = (domain_for(mode, true), domain_for(mode, true));
        // Another device has the old one too, so that leaving it takes no command.
        let other = world.device(&[9], true, pasid_bits);
        attach(&other, place, &old).expect("it fits");
        attach(&device, place, &old).expect("it fits");
        let shared: Arc<dyn Hwpt> = Arc::clone(&new) as _;
        let prepared = device.prepare(place, &shared).expect("it fits");
        world.silence(true);
        prepared.commit();
        // Blocked in memory, and both may be in use.
        assert!(world.is_blocked(&device, 8, place) && device.is_quarantined());
        let counts = || [&old, &new].map(|domain| world.ats_users(domain, 8, place));
        assert_eq!(counts(), [1, 1]);
        assert!(device.prepare(place, &shared).is_err());
        // Blocking cannot fail, and forgets nothing that may be in use.
        device.block(place);
        assert_eq!(counts(), [1, 1]);
        world.silence(false);
        attach(&device, place, &new).expect("hardware answers");
        assert_eq!(counts(), [0, 1]);
        assert!(!device.is_quarantined());
        assert!(!world.is_blocked(&device, 8, place));
        device.block(place);
        assert_eq!(counts(), [0, 0]);
        other.block(place);
        assert_eq!(world.unit.domain_ids().used_count(), 0);
        assert_eq!(world.unit.domain_ids().quarantined_count(), 0);
    }
}

/// Wherever in a commit hardware falls silent: what it may use stays in the sets, and when it answers again
/// the next attachment ends as if nothing had happened.
#[test]
fn a_commit_that_is_cut_short_anywhere_leaves_nothing_untold() {
    for mode in MODES {
        let mut quarantined_count = 0;
        for silent_after in 0..16 {
            let world = World::new(mode);
            let device = world.device(&[8, 9], true, 0);
            let (old, new) = (domain_for(mode, true), domain_for(mode, true));
            attach(&device, None, &old).expect("it fits");
            let shared: Arc<dyn Hwpt> = Arc::clone(&new) as _;
            let prepared = device.prepare(None, &shared).expect("it fits");
            let queue = world.unit.instance().queue().device();
            queue.fall_silent_after(silent_after);
            prepared.commit();
            let old_count = world.ats_users(&old, 8, None);
            assert_eq!(old_count, usize::from(device.is_quarantined()));
            assert_eq!(world.ats_users(&new, 8, None), 1);
            quarantined_count += old_count;
            world.silence(false);
            attach(&device, None, &new).expect("hardware answers");
            assert!(!device.is_quarantined());
            assert_eq!(world.ats_users(&old, 8, None), 0);
            assert_eq!(world.ats_users(&new, 9, None), 1);
            assert!(!world.is_blocked(&device, 8, None));
            device.block(None);
            assert_eq!(world.unit.domain_ids().used_count(), 0);
        }
        // Three for each entry, one for what the device caches, one for the ID. In scalable mode two requester IDs
        // share an entry, and the contexts stay as they are.
        let expected = match mode {
            TableMode::Legacy => 8,
            TableMode::Scalable => 5,
        };
        assert_eq!(quarantined_count, expected, "{mode:?}");
    }
}

#[test]
fn what_a_quarantined_device_leaves_is_never_used_again() {
    for mode in MODES {
        let world = World::new(mode);
        let device = world.device(&[8], false, 0);
        let domain = domain_for(mode, true);
        attach(&device, None, &domain).expect("it fits");
        let id = world.id(&domain);
        world.silence(true);
        device.release();
        drop(device);
        world.silence(false);
        assert_eq!(world.id(&domain), id);
        assert_eq!(world.unit.domain_ids().used_count(), 1);
    }
}
