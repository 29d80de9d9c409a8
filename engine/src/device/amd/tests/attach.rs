//! Domains that are attached, by version and place.

use alloc::collections::BTreeMap;

use iopt_formats::command::Span;
use iopt_formats::context::amd::{GuestTables, Translation};
use iopt_formats::{Level, Rights};

use super::*;
use crate::device::{DefaultKind, DirectRegion, DomainKind, Driver as _};
use crate::invalidation::{Changes, Gather, TableId};

/// What the entries of both IDs say of a guest CR3 table.
fn guest_tables(world: &World, ids: [u16; 2]) -> GuestTables {
    assert_eq!(world.dte(ids[0]), world.dte(ids[1]));
    match world.dte(ids[0]).translation() {
        Ok(Translation::Guest(tables)) => tables,
        other => panic!("{other:?}"),
    }
}

/// The table at the head of the module.
#[test]
fn an_entry_says_what_requests_without_and_with_pasids_meet() {
    let world = World::new(FEATURES);
    let (one, other, below) = (guest(), guest(), host());
    let [one_entry, other_entry] = [&one, &other].map(|domain| leading(&world, domain));
    let device = world.device(&[8, 9], false, 20);
    let identity = Arc::new(Domain::identity());
    let passing = Ok(Translation::PassThrough {
        rights: Rights::ALL,
    });
    let both = || {
        assert_eq!(world.dte(8), world.dte(9));
        world.dte(8)
    };
    assert_eq!(both(), Dte::blocked());
    attach(&device, None, &identity).expect("it fits");
    let before = both();
    attach(&device, Some(pasid(5)), &one).expect("it fits");
    // PASIDs that come or go are nothing to whatever passes.
    assert_eq!(both(), before);
    let tables = guest_tables(&world, [8, 9]);
    assert!(!tables.serves_requests_without_pasid() && tables.host().is_none());
    assert_eq!(
        (tables.gcr3().levels(), tables.gcr3().paging_levels()),
        (3, 4)
    );
    assert_eq!(both().domain_id(), guest_id(&device));
    assert_ne!(both().domain_id(), 0);
    let found = |place| gcr3(&device, place);
    assert_eq!([0, 5, 6].map(found), [None, one_entry, None]);
    attach(&device, None, &other).expect("it fits");
    assert!(guest_tables(&world, [8, 9]).serves_requests_without_pasid());
    assert_eq!([0, 5, 6].map(found), [other_entry, one_entry, None]);
    device.block(None);
    assert!(guest_tables(&world, [8, 9]).serves_requests_without_pasid());
    assert_eq!([0, 5, 6].map(found), [None, one_entry, None]);
    attach(&device, None, &other).expect("it fits");
    attach(&device, None, &identity).expect("it fits");
    assert!(!guest_tables(&world, [8, 9]).serves_requests_without_pasid());
    assert_eq!([0, 5].map(found), [None, one_entry]);
    device.block(Some(pasid(5)));
    assert_eq!(both(), before);
    assert_eq!(found(5), None);
    attach(&device, None, &below).expect("it fits");
    let Ok(Translation::Host(tables)) = both().translation() else {
        panic!("version 1 tables")
    };
    assert_eq!(tables.root().level, Level(3));
    assert_eq!(both().domain_id(), world.id(&below));
    attach(&device, None, &Arc::new(Domain::blocked())).expect("it fits");
    assert_eq!(both(), Dte::blocked());
    assert!(!both().has_ats());
    let other = world.device(&[10], false, 0);
    attach(&other, None, &identity).expect("it fits");
    assert_eq!(world.dte(10).translation(), passing);
    drop((device, other));
    assert_eq!(world.iommu.domain_ids().used_count(), 0);
    assert_eq!(world.iommu.domain_ids().quarantined_count(), 0);
}

/// Another driver's domain.
#[derive(Debug)]
struct Stranger;

impl Hwpt for Stranger {
    fn kind(&self) -> DomainKind {
        DomainKind::Identity
    }

    fn map_direct(&self, _: DirectRegion) -> Result<(), crate::domain::DomainError> {
        Ok(())
    }
}

/// A3.6 and A3.9, as far as they are the driver's.
#[test]
fn what_does_not_fit_is_refused_and_changes_nothing() {
    let world = World::new(FEATURES);
    let (first, below) = (guest(), host());
    let device = world.device(&[8], true, 5);
    attach(&device, Some(pasid(3)), &first).expect("it fits");
    let before = (world.dte(8), gcr3(&device, 3), guest_id(&device));
    world.commands();
    let refused = |place: Option<u32>, domain: &Arc<Domain>| {
        let refused = attach(&device, place.map(pasid), domain);
        assert!(
            matches!(refused, Err(AttachFailure::Unsupported { .. })),
            "{place:?}"
        );
    };
    // Version 1 tables would be under those of PASIDs.
    refused(None, &below);
    refused(Some(4), &below);
    refused(Some(4), &Arc::new(Domain::identity()));
    refused(Some(0), &first);
    refused(Some(32), &first);
    // One number of levels for all.
    refused(None, &wide());
    refused(Some(4), &wide());
    // C2: one with ATS beside one without.
    refused(None, &plain());
    refused(Some(4), &plain());
    let stranger: Arc<dyn Hwpt> = Arc::new(Stranger);
    assert!(matches!(
        device.prepare(None, &stranger),
        Err(AttachFailure::Foreign)
    ));
    assert_eq!(world.commands(), []);
    let after = (world.dte(8), gcr3(&device, 3), guest_id(&device));
    assert_eq!(after, before);
    assert_eq!(world.ats_users(&first, 8, Some(pasid(3))), 1);
    attach(&device, Some(pasid(31)), &first).expect("the last one");
    device.block(Some(pasid(31)));
    device.block(Some(pasid(3)));
    attach(&device, None, &below).expect("no PASID is in the way");
    refused(Some(3), &first);
    // Replaced, other levels are nobody's neighbours.
    attach(&device, None, &first).expect("it fits");
    attach(&device, None, &wide()).expect("it fits");
}

#[test]
fn tables_that_hardware_cannot_walk_are_foreign() {
    let few = Features {
        host_levels: 4,
        guest_levels: 4,
        has_dirty: false,
        oa_bits: 48,
        ..FEATURES
    };
    let without = Features {
        has_guest_default: false,
        ..few
    };
    let own = |format: V1| {
        Arc::new(Domain::host(format, Arc::new(Heap), MapSide::Silent).expect("memory"))
    };
    let narrow = V1::fixed(4, 48).and_then(|format| format.with_oa_bits(48));
    let narrow = narrow.expect("legal");
    let version2 = AmdV2::new(47).and_then(|format| format.with_oa_bits(48));
    let version2 = Domain::guest(version2.expect("legal"), Arc::new(Heap), MapSide::Silent);
    let version2 = Arc::new(version2.expect("memory"));
    let check = |features, domain: &Arc<Domain>, fits: bool| {
        let world = World::new(features);
        let device = world.device(&[8], false, 0);
        let attached = attach(&device, None, domain);
        assert_eq!(attached.is_ok(), fits, "{domain:?}");
        assert!(fits || matches!(attached, Err(AttachFailure::Foreign)));
    };
    check(few, &own(narrow), true);
    check(few, &own(narrow.with_dirty()), false);
    check(FEATURES, &own(narrow.with_dirty()), true);
    check(few, &host(), false);
    let five = V1::fixed(5, 57).and_then(|format| format.with_oa_bits(48));
    check(few, &own(five.expect("legal")), false);
    check(few, &version2, true);
    check(few, &wide(), false);
    check(without, &version2, false);
    check(without, &own(narrow), true);
    // Who caches that nothing is mapped needs to be told of maps.
    for (map_side, fits) in [(MapSide::Silent, false), (MapSide::Announced, true)] {
        let domain = Domain::host(narrow, Arc::new(Heap), map_side).expect("memory");
        let planner = Planner {
            has_absent_entries: true,
        };
        let iommu = AmdIommu::new(few, Arc::new(Heap), Queue::instance_of(planner), 8);
        let iommu = iommu.expect("memory");
        let world = World {
            iommu,
            switches: World::new(few).switches,
        };
        let attached = attach(&world.device(&[8], false, 0), None, &Arc::new(domain));
        assert_eq!(attached.is_ok(), fits);
    }
    let grows = Domain::host(V1::new(), Arc::new(Heap), MapSide::Silent);
    assert!(matches!(grows, Err(DomainError::Growing)));
}

#[test]
fn a_default_domain_is_of_version_2_where_a_device_has_pasids() {
    let driver = AmdDriver::<Heap, Queue>::new(Arc::new(Heap), Arc::new(PlainDevices));
    let entry = |features, pasid_bits| {
        let world = World::new(features);
        let device = Arc::new(world.device(&[8], false, pasid_bits));
        let made = driver.new_domain(DefaultKind::Paging, &[Arc::clone(&device) as _]);
        let made = made.ok()?;
        device.prepare(None, &made).expect("it fits").commit();
        Some(world.dte(8).translation())
    };
    let is_guest = |entry| matches!(entry, Some(Ok(Translation::Guest(_))));
    let is_host = |entry| matches!(entry, Some(Ok(Translation::Host(_))));
    assert!(is_guest(entry(FEATURES, 4)) && is_host(entry(FEATURES, 0)));
    let no_host = Features {
        host_levels: 0,
        ..FEATURES
    };
    assert!(is_guest(entry(no_host, 0)));
    let no_guest = Features {
        guest_levels: 0,
        ..FEATURES
    };
    assert!(is_host(entry(no_guest, 0)));
    let none = Features {
        host_levels: 0,
        ..no_guest
    };
    assert!(entry(none, 0).is_none());
}

/// A3.3: all of {old, new} x {without ATS, with}.
#[test]
fn each_domain_counts_its_devices_with_ats_exactly() {
    for (old_has, new_has) in [(false, false), (false, true), (true, false), (true, true)] {
        let world = World::new(FEATURES);
        let device = world.device(&[8], true, 0);
        let domain = |has_ats| if has_ats { guest() } else { plain() };
        let (old, new) = (domain(old_has), domain(new_has));
        let counts = || [&old, &new].map(|domain| world.ats_users(domain, 8, None));
        attach(&device, None, &old).expect("it fits");
        assert_eq!(counts(), [usize::from(old_has), 0]);
        assert_eq!(world.switches.take(), vec![true; usize::from(old_has)]);
        assert_eq!(world.dte(8).has_ats(), old_has);
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
        assert_eq!(world.dte(8).has_ats(), new_has);
        // Only who keeps a TLB has to forget.
        let told = device_tlbs(&world.commands());
        assert_eq!(told.len(), usize::from(old_has && new_has));
        device.block(None);
        assert_eq!(counts(), [0, 0]);
        assert!(!device.has_ats() && !world.dte(8).has_ats());
    }
}

/// The devices that are told to forget, with their queues' depths.
fn device_tlbs(commands: &[Command]) -> Vec<(u16, u8)> {
    let told = commands.iter().filter_map(|command| match *command {
        Command::InvalidateIotlbPages {
            device_id,
            max_pending,
            ..
        } => Some((device_id, max_pending)),
        _ => None,
    });
    told.collect()
}

/// A3.5.
#[test]
fn nothing_is_sent_to_a_device_that_left() {
    let world = World::new(FEATURES);
    let (leaving, staying) = (world.device(&[8], true, 4), world.device(&[9], true, 4));
    for place in [None, Some(pasid(3))] {
        let domain = guest();
        for device in [&leaving, &staying] {
            attach(device, place, &domain).expect("it fits");
        }
        leaving.block(place);
        world.commands();
        let counts = [8, 9].map(|device_id| world.ats_users(&domain, device_id, place));
        assert_eq!(counts, [0, 1]);
        // Everything that the domain is synced with.
        let everything = Changes::everything();
        let gather = Gather::new(everything, TableId::next(), crate::reclaim::Operation::NONE);
        gather
            .sync(domain.set().expect("it has tables"))
            .expect("hardware answers");
        let commands = world.commands();
        assert_eq!(device_tlbs(&commands), [(9, 16)]);
        // Nor is the IOMMU told of what it no longer has under the device's ID.
        let id = guest_id(&staying);
        assert_ne!(id, guest_id(&leaving));
        let is_it = |command: &Command| matches!(command, Command::InvalidatePages { .. });
        let pages: Vec<_> = commands.iter().filter(|command| is_it(command)).collect();
        let pasid = Some(place.unwrap_or(pasid(0)));
        let expected = Command::InvalidatePages {
            domain_id: id,
            pasid,
            has_tables: true,
            span: Span::ALL,
        };
        assert_eq!(pages, [&expected]);
    }
}

/// What an entry of the guest CR3 table led to is forgotten with it, after the way there.
#[test]
fn a_pasid_is_forgotten_when_it_leads_elsewhere() {
    let world = World::new(FEATURES);
    let device = world.device(&[8, 9], false, 4);
    let (one, other) = (guest(), guest());
    // Another device holds the domain, so that nothing is left for good.
    let staying = world.device(&[10], false, 4);
    attach(&staying, Some(pasid(3)), &one).expect("it fits");
    attach(&device, Some(pasid(3)), &one).expect("it fits");
    let id = guest_id(&device);
    world.commands();
    let forgotten = Command::InvalidatePages {
        domain_id: id,
        pasid: Some(pasid(3)),
        has_tables: true,
        span: Span::ALL,
    };
    let device_entry = |device_id| Command::InvalidateDeviceTableEntry { device_id };
    let expected = [device_entry(8), device_entry(9), forgotten];
    attach(&device, Some(pasid(3)), &other).expect("it fits");
    let commands = world.commands();
    assert_eq!(commands[..3], expected);
    device.block(Some(pasid(3)));
    let commands = world.commands();
    let own = commands.iter().position(|command| *command == forgotten);
    assert!(own.is_some_and(|at| commands[..at].contains(&device_entry(9))));
}

/// A3.2: after every change, the set of each domain is the multiset of its attachments.
#[test]
fn sets_are_the_places_of_all_attachments() {
    let world = World::new(FEATURES);
    let ids: [&[u32]; 3] = [&[8], &[16, 17], &[300]];
    let devices: Vec<_> = ids
        .iter()
        .map(|ids| world.device(ids, ids[0] != 8, 3))
        .collect();
    // Two of version 2, and one of version 1 for whoever has no PASID.
    let domains = [guest(), guest(), host()];
    let identity = Arc::new(Domain::identity());
    let mut attached: BTreeMap<(usize, u32), usize> = BTreeMap::new();
    let mut seed = 0x1234_5678_u64;
    let mut below = |count: u64| {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        (seed >> 20) % count
    };
    let (mut refused, mut hosts) = (0, 0);
    for _ in 0..800 {
        let device = below(3) as usize;
        let place = below(4) as u32;
        let number = below(3) as usize;
        let at = (place > 0).then(|| pasid(place));
        let others = attached
            .keys()
            .filter(|key| key.0 == device && key.1 != place);
        let has_host = attached.get(&(device, 0)) == Some(&2) && place > 0;
        let fits = if number == 2 {
            place == 0 && others.count() == 0
        } else {
            !has_host
        };
        match below(8) {
            0..4 => {
                let result = attach(&devices[device], at, &domains[number]);
                assert_eq!(result.is_ok(), fits);
                if fits {
                    attached.insert((device, place), number);
                    hosts += usize::from(number == 2);
                } else {
                    refused += 1;
                }
            }
            4 => {
                let domain: Arc<dyn Hwpt> = Arc::clone(&domains[number]) as _;
                assert_eq!(devices[device].prepare(at, &domain).is_ok(), fits);
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
            let id = users.id(world.iommu.instance());
            assert_eq!(id.is_some(), of_it().count() > 0);
            if number == 2
                && let Some(id) = id
            {
                let tlb = Tag::Iotlb {
                    domain_id: id as u16,
                    pasid: None,
                };
                assert_eq!(world.users(domain, tlb), of_it().count());
            }
            for (device, ids) in ids.iter().enumerate() {
                for place in 0..4 {
                    let is_there = attached.get(&(device, place)) == Some(&number);
                    let own = guest_id(&devices[device]);
                    if number < 2 && own > 0 {
                        let tlb = Tag::Iotlb {
                            domain_id: own,
                            pasid: Some(pasid(place)),
                        };
                        assert_eq!(world.users(domain, tlb), usize::from(is_there));
                    }
                    let expected = usize::from(is_there && ids[0] != 8);
                    for &id in *ids {
                        let place = (place > 0).then(|| pasid(place));
                        assert_eq!(world.ats_users(domain, id as u16, place), expected);
                    }
                }
            }
        }
        world.commands();
    }
    assert!(refused > 50 && hosts > 5, "{refused} {hosts}");
    for device in &devices {
        device.release();
    }
    drop(devices);
    assert_eq!(world.iommu.domain_ids().used_count(), 0);
    assert_eq!(world.iommu.domain_ids().quarantined_count(), 0);
}

#[test]
fn devices_and_domains_share_the_ids_until_none_is_left() {
    let world = World::new(FEATURES);
    let taken: Vec<_> = (1..0xffff_u32)
        .map(|_| world.iommu.domain_ids().allocate().expect("there are more"))
        .collect();
    let (device, other) = (world.device(&[8], false, 4), world.device(&[9], false, 4));
    let (below, above) = (host(), guest());
    attach(&device, None, &below).expect("the last one");
    assert_eq!(world.id(&below), 0xffff);
    let before = world.dte(9);
    world.commands();
    for (place, domain) in [(None, &host()), (None, &above), (Some(pasid(1)), &above)] {
        let refused = attach(&other, place, domain);
        assert!(matches!(refused, Err(AttachFailure::Exhausted)));
    }
    attach(&other, None, &below).expect("the domain has one");
    other.block(None);
    assert_eq!(world.dte(9), before);
    device.block(None);
    attach(&other, None, &above).expect("one came back");
    assert_eq!(guest_id(&other), 0xffff);
    assert_eq!(world.dte(9).domain_id(), 0xffff);
    for id in taken {
        id.give_back_unused();
    }
}
