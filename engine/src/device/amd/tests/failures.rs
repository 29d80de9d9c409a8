//! Hardware that does not answer.

use super::*;

/// Whether a device's requests of a place are led anywhere, as far as memory says.
fn leads(world: &World, device: &Device, place: Option<Pasid>, is_host: bool) -> bool {
    use iopt_formats::context::amd::Translation;

    match world.dte(8).translation() {
        Ok(Translation::Guest(_)) => gcr3(device, place.map_or(0, Pasid::get)).is_some(),
        Ok(Translation::Host(_)) => is_host,
        _ => false,
    }
}

#[test]
fn what_hardware_does_not_confirm_stays_told_until_it_does() {
    for (has_pasid, is_host) in [(false, false), (true, false), (false, true)] {
        let world = World::new(FEATURES);
        let device = world.device(&[8], true, 4);
        let place = has_pasid.then(|| pasid(7));
        let make = if is_host { host } else { guest };
        let (old, new) = (make(), make());
        // Another device has the old one too, so that leaving it takes no command.
        let other = world.device(&[9], true, 4);
        attach(&other, place, &old).expect("it fits");
        attach(&device, place, &old).expect("it fits");
        let shared: Arc<dyn Hwpt> = Arc::clone(&new) as _;
        let prepared = device.prepare(place, &shared).expect("it fits");
        world.queue().set_silent(true);
        prepared.commit();
        // Blocked in memory, and both may be in use.
        assert!(!leads(&world, &device, place, is_host) && device.is_quarantined());
        let counts = || [&old, &new].map(|domain| world.ats_users(domain, 8, place));
        assert_eq!(counts(), [1, 1]);
        assert!(device.prepare(place, &shared).is_err());
        // Blocking cannot fail, and forgets nothing that may be in use.
        device.block(place);
        assert_eq!(counts(), [1, 1]);
        world.queue().set_silent(false);
        attach(&device, place, &new).expect("hardware answers");
        assert_eq!(counts(), [0, 1]);
        assert!(!device.is_quarantined());
        assert!(leads(&world, &device, place, is_host));
        device.block(place);
        assert_eq!(counts(), [0, 0]);
        other.block(place);
        drop((device, other));
        assert_eq!(world.iommu.domain_ids().used_count(), 0);
        assert_eq!(world.iommu.domain_ids().quarantined_count(), 0);
    }
}

/// Wherever in a commit hardware falls silent: what it may use stays in the sets, and when it answers again
/// the next attachment ends as if nothing had happened.
#[test]
fn a_commit_that_is_cut_short_anywhere_leaves_nothing_untold() {
    let kinds: [fn() -> Arc<Domain>; 3] = [host, guest, wide];
    let mut quarantined = [[0; 3]; 3];
    for (from, make_old) in kinds.into_iter().enumerate() {
        for (to, make_new) in kinds.into_iter().enumerate() {
            for silent_after in 0..16 {
                let world = World::new(FEATURES);
                let device = world.device(&[8, 9], true, 4);
                let (old, new) = (make_old(), make_new());
                attach(&device, None, &old).expect("it fits");
                let shared: Arc<dyn Hwpt> = Arc::clone(&new) as _;
                let prepared = device.prepare(None, &shared).expect("it fits");
                world.queue().fall_silent_after(silent_after);
                prepared.commit();
                let old_count = world.ats_users(&old, 8, None);
                assert_eq!(old_count, usize::from(device.is_quarantined()));
                assert_eq!(world.ats_users(&new, 8, None), 1);
                quarantined[from][to] += old_count;
                world.queue().set_silent(false);
                attach(&device, None, &new).expect("hardware answers");
                assert!(!device.is_quarantined());
                assert_eq!(world.ats_users(&old, 8, None), 0);
                assert_eq!(world.ats_users(&new, 9, None), 1);
                device.block(None);
                drop(device);
                assert_eq!(world.iommu.domain_ids().used_count(), 0);
                assert_eq!(world.iommu.domain_ids().quarantined_count(), 0);
            }
        }
    }
    // One for what the device caches and one for the old place in all of them. Entries of two IDs take two each, or one
    // where only the levels of tables change; an entry of the guest CR3 table takes two, twice if the levels change.
    assert_eq!(quarantined, [[6, 8, 8], [8, 4, 8], [8, 8, 4]]);
}

#[test]
fn what_a_quarantined_device_leaves_is_never_used_again() {
    for make in [host, guest] {
        let world = World::new(FEATURES);
        let device = world.device(&[8], false, 0);
        let domain = make();
        attach(&device, None, &domain).expect("it fits");
        world.queue().set_silent(true);
        device.release();
        drop(device);
        world.queue().set_silent(false);
        assert!(
            domain
                .users()
                .expect("tables")
                .id(world.iommu.instance())
                .is_some()
        );
        assert_eq!(world.iommu.domain_ids().used_count(), 1);
    }
}
