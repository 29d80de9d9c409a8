//! Hardware that does not answer.

use iopt_formats::context::amd::Interrupts;

use super::*;
use crate::device::context::{LinkError, Unwritten};
use crate::invalidation::Instance;
use crate::mem::{FlushLine, NonSnooped};

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

/// Makes hardware silent for some stores.
#[derive(Clone)]
struct Pauses {
    instance: Arc<Instance<Planner, Queue>>,
    /// Stores so far, and those around which hardware is silent.
    state: Arc<Mutex<(usize, core::ops::Range<usize>)>>,
}

impl FlushLine for Pauses {
    fn flush_line(&self, _line: *const u8) {
        let is_silent = {
            let mut state = self.state.lock();
            state.0 += 1;
            state.1.contains(&(state.0 - 1))
        };
        self.instance.queue().device().set_silent(is_silent);
    }
}

/// Where hardware may still take tables for ones of the old number of levels, it is not led to the new ones.
#[test]
fn tables_are_not_led_to_while_their_levels_are_unknown() {
    type Memory = NonSnooped<Heap, Pauses>;

    let mut quarantined_count = 0;
    for (first, count) in (0..6).flat_map(|first| (1..6).map(move |count| (first, count))) {
        let planner = Planner {
            has_absent_entries: false,
        };
        let instance = Queue::instance_of(planner);
        let pauses = Pauses {
            instance: Arc::clone(&instance),
            state: Arc::new(Mutex::new(&LOG, (0, 0..0))),
        };
        let memory = Arc::new(NonSnooped::new(Heap, pauses.clone()));
        let iommu = AmdIommu::new(FEATURES, memory, instance, 0x7f).expect("memory");
        let address = DeviceAddress::Node(NodeIndex(0));
        let arrival = Arrival {
            device: &Resolved::new(address, 0),
            ids: &[8, 9],
            pasid_bits: 4,
            control: &PlainDevices,
        };
        let port = AmdVi::port(&iommu, &arrival).expect("the table has them");
        let at = vec![(Arc::clone(&iommu), port)];
        let device = AmdEndpoint::new(address, at, Arc::new(PlainDevices), (false, 4));
        let domain = |bits| -> Arc<dyn Hwpt> {
            let format = AmdV2::new(bits).expect("legal");
            let made = AmdDomain::<Memory, Queue>::guest(format, Arc::new(Heap), MapSide::Silent);
            Arc::new(made.expect("memory"))
        };
        let (old, new) = (domain(47), domain(56));
        device.prepare(None, &old).expect("it fits").commit();
        let prepared = device.prepare(None, &new).expect("it fits");
        *pauses.state.lock() = (0, first..first + count);
        prepared.commit();
        let is_known = !iommu.is_quarantined(8) && !iommu.is_quarantined(9);
        let entry = device.gcr3_entry(0, pasid(0));
        assert!(is_known || entry.is_none(), "{first} {count}");
        quarantined_count += usize::from(!is_known);
        pauses.state.lock().1 = 0..0;
        iommu.instance().queue().device().set_silent(false);
        device
            .prepare(None, &new)
            .expect("hardware answers")
            .commit();
        assert!(!device.is_quarantined());
        assert!(device.gcr3_entry(0, pasid(0)).is_some());
        device.release();
    }
    assert!(quarantined_count > 3, "{quarantined_count}");
}

/// The entry is the IOMMU's, which lives on.
#[test]
fn a_device_that_is_dropped_where_it_is_is_blocked() {
    for make in [host, guest] {
        let world = World::new(FEATURES);
        for is_released in [true, false] {
            let device = world.device(&[8], false, 4);
            attach(&device, None, &make()).expect("it fits");
            if is_released {
                device.release();
            }
            drop(device);
            assert_eq!(world.dte(8), Dte::blocked());
            let ids = world.iommu.domain_ids();
            assert_eq!((ids.used_count(), ids.quarantined_count()), (0, 0));
        }
    }
}

/// Nobody knows what hardware holds under the IDs of a device that it did not confirm to have left.
#[test]
fn the_ids_of_a_device_that_is_dropped_in_silence_stay_taken() {
    for make in [host, guest] {
        let world = World::new(FEATURES);
        let device = world.device(&[8], false, 4);
        attach(&device, None, &make()).expect("it fits");
        world.queue().set_silent(true);
        drop(device);
        world.queue().set_silent(false);
        let ids = world.iommu.domain_ids();
        assert_eq!((ids.used_count(), ids.quarantined_count()), (1, 0));
    }
}

/// Rules of interrupts leave what memory is led to; who blocks does not.
#[test]
fn an_entry_blocks_in_memory_though_its_interrupts_were_not_confirmed() {
    let world = World::new(FEATURES);
    let device = world.device(&[8], false, 0);
    attach(&device, None, &host()).expect("it fits");
    world.queue().set_silent(true);
    let remapped = Dte::blocked().with_interrupts(Interrupts::Aborted);
    assert!(world.iommu.write_interrupts(8, remapped).is_err());
    assert!(world.iommu.is_quarantined(8));
    assert!(leads(&world, &device, None, true));
    device.block(None);
    assert!(!leads(&world, &device, None, true));
    assert!(world.dte(8).is_valid() && device.is_quarantined());
}

#[test]
fn a_device_that_comes_where_another_was_is_blocked_for_sure() {
    let world = World::new(FEATURES);
    let device = world.device(&[8], false, 0);
    attach(&device, None, &Arc::new(Domain::identity())).expect("it fits");
    world.queue().set_silent(true);
    drop(device);
    let arrival = Arrival {
        device: &Resolved::new(DeviceAddress::Node(NodeIndex(8)), 0),
        ids: &[8],
        pasid_bits: 0,
        control: &PlainDevices,
    };
    let come = || AmdVi::port(&world.iommu, &arrival).map(drop);
    assert!(matches!(come(), Err(LinkError::Sync(_))));
    world.queue().set_silent(false);
    assert_eq!(come(), Ok(()));
    assert!(!world.iommu.is_quarantined(8));
}

/// One that is reset or removed does not stop the others.
#[test]
fn an_id_is_led_as_long_as_one_of_its_devices_is_attached() {
    for (make, is_host) in [(host as fn() -> Arc<Domain>, true), (guest, false)] {
        let world = World::new(FEATURES);
        // Device 8 is what both are seen as.
        let devices = [[8, 9], [8, 10]].map(|ids| world.device(&ids, false, 4));
        let domain = make();
        for device in &devices {
            attach(device, None, &domain).expect("it fits");
        }
        devices[0].block(None);
        assert_eq!(world.dte(8), world.dte(10));
        assert!(leads(&world, &devices[1], None, is_host));
        assert_eq!(world.dte(9), Dte::blocked());
        attach(&devices[0], None, &domain).expect("it fits");
        assert_eq!(world.dte(8), world.dte(10));
        devices[1].release();
        assert_eq!(world.dte(8), world.dte(9));
        devices[0].release();
        assert_eq!(world.dte(8), Dte::blocked());
        drop(devices);
        let ids = world.iommu.domain_ids();
        assert_eq!((ids.used_count(), ids.quarantined_count()), (0, 0));
    }
}

/// What passes without a PASID beside version 2 tables has the device's ID, too, and no PASID in caches.
#[test]
fn what_passed_under_a_devices_id_is_forgotten_before_the_id_is_used_otherwise() {
    let world = World::new(FEATURES);
    let device = world.device(&[8], false, 4);
    attach(&device, None, &Arc::new(Domain::identity())).expect("it fits");
    let forgotten = Command::InvalidatePages {
        domain_id: guest_id(&device),
        pasid: None,
        has_tables: true,
        span: iopt_formats::command::Span::ALL,
    };
    assert!(!world.commands().contains(&forgotten));
    attach(&device, None, &guest()).expect("it fits");
    let commands = world.commands();
    let entry = Command::InvalidateDeviceTableEntry { device_id: 8 };
    let at = |command| commands.iter().position(|it| *it == command);
    assert!(
        at(entry).is_some() && at(entry) < at(forgotten),
        "{commands:?}"
    );
    // Once.
    attach(&device, None, &guest()).expect("it fits");
    assert!(!world.commands().contains(&forgotten));
    // Not confirmed: the ID is nobody else's.
    attach(&device, None, &Arc::new(Domain::identity())).expect("it fits");
    world.queue().fall_silent_after(1);
    device.block(None);
    assert!(device.is_cut_off());
    drop(device);
    assert_eq!(world.iommu.domain_ids().used_count(), 1);
    world.queue().set_silent(false);
}

/// Those that passed under no ID of the device have domain ID 0 in caches.
#[test]
fn pages_of_requests_that_passed_are_forgotten_once_requests_no_longer_do() {
    let forgotten = Command::InvalidatePages {
        domain_id: 0,
        pasid: None,
        has_tables: true,
        span: iopt_formats::command::Span::ALL,
    };
    let entry = Command::InvalidateDeviceTableEntry { device_id: 8 };
    let world = World::new(FEATURES);
    let device = world.device(&[8], false, 0);
    let identity = Arc::new(Domain::identity());
    for next in [None, Some(host()), Some(guest())] {
        attach(&device, None, &identity).expect("it fits");
        assert!(!world.commands().contains(&forgotten));
        match &next {
            None => device.block(None),
            Some(next) => attach(&device, None, next).expect("it fits"),
        }
        let commands = world.commands();
        let at = |command| commands.iter().position(|it| *it == command);
        let entry = at(entry);
        assert!(entry.is_some() && entry < at(forgotten), "{commands:?}");
        device.block(None);
        assert!(!world.commands().contains(&forgotten));
    }
    // Not confirmed: asked again.
    attach(&device, None, &identity).expect("it fits");
    world.queue().fall_silent_after(1);
    device.block(None);
    assert!(device.is_cut_off());
    world.queue().set_silent(false);
    world.commands();
    assert!(device.retry());
    assert!(world.commands().contains(&forgotten));
}

/// Whoever has the entry confirmed confirms what it says of interrupts, too.
#[test]
fn interrupts_are_said_though_hardware_did_not_confirm_the_entry() {
    let world = World::new(FEATURES);
    let device = world.device(&[8], false, 0);
    attach(&device, None, &host()).expect("it fits");
    world.queue().set_silent(true);
    device.block(None);
    assert!(world.iommu.is_quarantined(8));
    let remapped = Dte::blocked().with_interrupts(Interrupts::Aborted);
    let written = world.iommu.write_interrupts(8, remapped);
    assert!(matches!(written, Err(Unwritten::Quarantined(_))));
    let fields = |dte: Dte| dte.words()[2] & Dte::INTERRUPT_FIELDS;
    assert_eq!(fields(world.dte(8)), fields(remapped));
    assert!(!leads(&world, &device, None, true));
    world.queue().set_silent(false);
    attach(&device, None, &host()).expect("hardware answers");
    assert_eq!(fields(world.dte(8)), fields(remapped));
    assert!(leads(&world, &device, None, true));
}
