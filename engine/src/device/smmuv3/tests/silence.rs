//! SMMUs that do not answer.

use super::*;

#[test]
fn what_hardware_does_not_confirm_stays_told_until_it_does() {
    for has_pasid in [false, true] {
        let world = World::new(FEATURES);
        let device = world.device(&[8], true, 4);
        let place = has_pasid.then(|| pasid(7));
        let (old, new) = (stage1(), stage1());
        // Another device has the old one too, so that leaving it takes no command.
        let other = world.device(&[9], true, 4);
        attach(&other, place, &old).expect("it fits");
        attach(&device, place, &old).expect("it fits");
        let shared: Arc<dyn Hwpt> = Arc::clone(&new) as _;
        let prepared = device.prepare(place, &shared).expect("it fits");
        world.silence(true);
        prepared.commit();
        // Blocked in memory, and both may be in use.
        let is_blocked = match place {
            Some(place) => !device.cd(0, place).expect("it is there").is_valid(),
            None => !device.cd(0, pasid(0)).expect("it is there").is_valid(),
        };
        assert!(is_blocked && device.is_quarantined());
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
        let cd = device
            .cd(0, place.unwrap_or(pasid(0)))
            .expect("it is there");
        assert!(cd.is_valid());
        device.block(place);
        assert_eq!(counts(), [0, 0]);
        other.block(place);
        assert_eq!(world.smmu.asids().used_count(), 0);
        assert_eq!(world.smmu.asids().quarantined_count(), 0);
    }
}

/// As above, where nothing but contexts could be asked about.
#[test]
fn a_context_that_hardware_does_not_confirm_is_asked_about_first() {
    let world = World::new(FEATURES);
    let device = world.device(&[8], false, 0);
    let other = world.device(&[9], false, 0);
    let (old, new) = (stage1(), stage1());
    attach(&other, None, &old).expect("it fits");
    attach(&device, None, &old).expect("it fits");
    let prepared: Arc<dyn Hwpt> = Arc::clone(&new) as _;
    let prepared = device.prepare(None, &prepared).expect("it fits");
    world.silence(true);
    prepared.commit();
    let tlb = Tag::Stage1 {
        vmid: 0,
        asid: id(&world, &old) as u16,
        granule: Granule::Kib4,
    };
    assert!(attach(&device, None, &new).is_err());
    assert!(device.is_quarantined());
    assert_eq!(world.users(&old, tlb), 2);
    world.silence(false);
    attach(&device, None, &new).expect("hardware answers");
    assert_eq!(world.users(&old, tlb), 1);
}

/// Wherever in a commit hardware falls silent: what it may use stays in the sets, and when it answers again
/// the next attachment ends as if nothing had happened.
#[test]
fn a_commit_that_is_cut_short_anywhere_leaves_nothing_untold() {
    let mut quarantined_count = 0;
    for silent_after in 0..14 {
        let world = World::new(FEATURES);
        let device = world.device(&[8, 9], true, 4);
        let (old, new) = (stage1(), stage1());
        attach(&device, None, &old).expect("it fits");
        let shared: Arc<dyn Hwpt> = Arc::clone(&new) as _;
        let prepared = device.prepare(None, &shared).expect("it fits");
        let queue = world.smmu.instance().queue().device();
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
        device.block(None);
        assert_eq!(world.smmu.asids().used_count(), 0);
    }
    // Three for the CD, one for what the device caches, one for the ASID; the STEs stay as they are.
    assert_eq!(quarantined_count, 5);
}

#[test]
fn what_a_quarantined_device_leaves_is_never_used_again() {
    let world = World::new(FEATURES);
    let device = world.device(&[8], false, 0);
    let domain = stage1();
    attach(&device, None, &domain).expect("it fits");
    let asid = id(&world, &domain);
    world.silence(true);
    device.release();
    drop(device);
    world.silence(false);
    assert_eq!(id(&world, &domain), asid);
    assert_eq!(world.smmu.asids().used_count(), 1);
}

/// The device is gone, and its SMMU well: nobody waits for its TLB, and all ends.
#[test]
fn a_device_that_goes_is_not_asked_to_forget() {
    let world = World::new(FEATURES);
    let device = world.device(&[8], true, 4);
    let (domain, process) = (stage1(), stage1());
    attach(&device, None, &domain).expect("it fits");
    attach(&device, Some(pasid(7)), &process).expect("it fits");
    assert_eq!(world.switches.take(), [true]);
    world.commands();
    device.release();
    let commands = world.commands();
    let asks = |command: &Command| matches!(command, Command::AtcInv { .. });
    assert!(!commands.iter().any(asks), "{commands:?}");
    assert_eq!(world.switches.take(), [false]);
    assert!(!device.is_quarantined());
    assert_eq!(world.smmu.asids().used_count(), 0);
}

/// What it did not confirm while the device was there is asked about when it goes.
#[test]
fn what_became_stuck_is_left_with_the_device() {
    let world = World::new(FEATURES);
    let device = world.device(&[8], true, 4);
    let (domain, process) = (stage1(), stage1());
    attach(&device, None, &domain).expect("it fits");
    attach(&device, Some(pasid(7)), &process).expect("it fits");
    world.silence(true);
    device.block(Some(pasid(7)));
    assert!(device.is_quarantined());
    world.silence(false);
    device.release();
    assert!(!device.is_quarantined());
    assert_eq!(world.smmu.asids().used_count(), 0);
}
