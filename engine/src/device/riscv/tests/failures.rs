//! Hardware that does not answer.

use super::*;

#[test]
fn what_hardware_does_not_confirm_stays_told_until_it_does() {
    for case in 0..4 {
        let [has_processes, has_pasid] = [case > 0, case > 1];
        let world = World::new(FEATURES);
        let bits = if has_processes { 4 } else { 0 };
        let device = world.device(&[8], true, bits);
        let place = has_pasid.then(|| pasid(7));
        let (old, new) = (first(), first());
        // Another device has the old one too, so that leaving it takes no command.
        let other = world.device(&[9], true, bits);
        attach(&other, place, &old).expect("it fits");
        attach(&device, place, &old).expect("it fits");
        let shared: Arc<dyn Hwpt> = Arc::clone(&new) as _;
        let prepared = device.prepare(place, &shared).expect("it fits");
        world.silence(true);
        prepared.commit();
        // Blocked in memory, and both may be in use.
        let is_valid = || {
            if has_processes {
                let words = device.process_words(0, place.unwrap_or(pasid(0)));
                words.expect("it is there")[0] & 1 != 0
            } else {
                world.words(8)[0] & 1 != 0
            }
        };
        assert!(!is_valid() && device.is_quarantined());
        let counts = || [&old, &new].map(|domain| world.ats_users(domain, 8, place));
        assert_eq!(counts(), [1, 1]);
        assert!(device.prepare(place, &shared).is_err());
        // Blocking cannot fail, and forgets nothing that may be in use.
        device.block(place);
        assert_eq!(counts(), [1, 1]);
        world.silence(false);
        world.commands();
        attach(&device, place, &new).expect("hardware answers");
        assert_eq!(counts(), [0, 1]);
        assert!(!device.is_quarantined() && is_valid());
        // Nobody knew which context hardware had: everything of the host, and of all guests, had to go.
        let everything = Command::IotinvalGvma {
            gscid: None,
            target: None,
        };
        assert!(world.commands().contains(&everything));
        device.block(place);
        assert_eq!(counts(), [0, 0]);
        other.block(place);
        world.assert_unused();
    }
}

/// Wherever in a commit hardware falls silent: what it may use stays in the sets, and when it answers again
/// the next attachment ends as if nothing had happened.
#[test]
fn a_commit_that_is_cut_short_anywhere_leaves_nothing_untold() {
    let mut quarantined = [0; 2];
    for has_processes in [false, true] {
        for silent_after in 0..14 {
            let world = World::new(FEATURES);
            let device = world.device(&[8, 9], true, if has_processes { 4 } else { 0 });
            let (old, new) = (first(), first());
            attach(&device, None, &old).expect("it fits");
            let shared: Arc<dyn Hwpt> = Arc::clone(&new) as _;
            let prepared = device.prepare(None, &shared).expect("it fits");
            let queue = world.unit.instance().queue().device();
            queue.fall_silent_after(silent_after);
            prepared.commit();
            let old_count = world.ats_users(&old, 8, None);
            assert_eq!(old_count, usize::from(device.is_quarantined()));
            assert_eq!(world.ats_users(&new, 8, None), 1);
            quarantined[usize::from(has_processes)] += old_count;
            world.silence(false);
            attach(&device, None, &new).expect("hardware answers");
            assert!(!device.is_quarantined());
            assert_eq!(world.ats_users(&old, 8, None), 0);
            assert_eq!(world.ats_users(&new, 9, None), 1);
            device.block(None);
            world.assert_unused();
        }
    }
    // Two for each device context, or for the process context that they share; one for what the device caches,
    // one for the PSCID.
    assert_eq!(quarantined, [6, 4]);
}

#[test]
fn what_a_quarantined_device_leaves_is_never_used_again() {
    let world = World::new(FEATURES);
    let device = world.device(&[8], false, 8);
    let domain = first();
    attach(&device, None, &domain).expect("it fits");
    let pscid = world.id(&domain);
    world.silence(true);
    device.release();
    drop(device);
    world.silence(false);
    assert_eq!(world.id(&domain), pscid);
    assert_eq!(world.unit.pscids().used_count(), 1);
}

/// A unit that does not answer when a device comes, and when it is written by hand.
#[test]
fn a_device_is_not_taken_in_by_hardware_that_does_not_answer() {
    use crate::device::context::{LinkError, Unwritten};
    use crate::invalidation::SyncError;

    let world = World::new(FEATURES);
    world.silence(true);
    let silent = LinkError::Sync(SyncError::TimedOut);
    assert_eq!(world.unit.link(8), Err(silent));
    let taken = Port::new(&world.unit, &[8], 8).map(|_| ());
    assert_eq!(taken, Err(silent));
    assert_eq!(
        world.unit.write(0x4000, None),
        Err(Unwritten::Absent { index: 0x4000 })
    );
    world.silence(false);
    assert_eq!(world.unit.link(8), Ok(()));
    assert!(!world.unit.is_quarantined(8));
}

/// One that is reset or removed does not stop the others.
#[test]
fn an_id_is_led_as_long_as_one_of_its_devices_is_attached() {
    for bits in [0, 4] {
        let world = World::new(FEATURES);
        // Device 7 is what both are seen as.
        let devices = [[7, 8], [7, 9]].map(|ids| world.device(&ids, false, bits));
        let domain = first();
        for device in &devices {
            attach(device, None, &domain).expect("it fits");
        }
        devices[0].block(None);
        assert_eq!(world.words(7), world.words(9));
        assert!(world.context(7).is_some() && world.context(8).is_none());
        attach(&devices[0], None, &domain).expect("it fits");
        assert_eq!(world.words(7), world.words(9));
        devices[1].release();
        assert_eq!(world.words(7), world.words(8));
        devices[0].release();
        assert!(world.context(7).is_none());
        drop(devices);
        world.assert_unused();
    }
}

#[test]
fn a_device_that_comes_where_another_was_is_blocked_for_sure() {
    use crate::device::context::LinkError;

    let world = World::new(Features::new(CAPABILITIES, 0, 1));
    let device = world.device(&[8], false, 0);
    attach(&device, None, &first()).expect("it fits");
    world.silence(true);
    drop(device);
    let come = || Port::new(&world.unit, &[8], 0).map(drop);
    assert!(matches!(come(), Err(LinkError::Sync(_))));
    world.silence(false);
    assert_eq!(come(), Ok(()));
    assert!(!world.unit.is_quarantined(8));
}
