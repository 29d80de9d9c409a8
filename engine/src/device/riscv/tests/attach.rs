//! Who is told what, and what is refused.

use alloc::collections::BTreeMap;

use super::*;
use crate::device::DirectRegion;

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
    let (one, guest) = (first(), second());
    attach(&device, Some(pasid(3)), &one).expect("it fits");
    let before = (world.words(8), world.id(&one));
    let ats = world.ats_users(&one, 8, Some(pasid(3)));
    world.commands();
    let refused = |place: Option<u32>, domain: &Arc<Domain>| {
        let refused = attach(&device, place.map(pasid), domain);
        assert!(
            matches!(refused, Err(AttachFailure::Unsupported { .. })),
            "{place:?}"
        );
    };
    refused(None, &guest);
    refused(Some(4), &guest);
    refused(Some(4), &Arc::new(Domain::identity()));
    refused(Some(0), &one);
    refused(Some(32), &one);
    // One with ATS beside one without.
    refused(None, &plain());
    refused(Some(4), &plain());
    attach(&device, Some(pasid(31)), &one).expect("the last one");
    device.block(Some(pasid(31)));
    world.commands();
    let small = World::new(Features::new(SV39 | PD8 | PAS, 0, 1));
    let narrow = small.device(&[8], false, 0);
    let foreign = attach(&narrow, None, &one);
    assert!(matches!(foreign, Err(AttachFailure::Foreign)));
    let foreign = attach(&narrow, None, &guest);
    assert!(matches!(foreign, Err(AttachFailure::Foreign)));
    let stranger: Arc<dyn Hwpt> = Arc::new(Stranger);
    let foreign = device.prepare(None, &stranger);
    assert!(matches!(foreign, Err(AttachFailure::Foreign)));
    assert_eq!((world.words(8), world.id(&one)), before);
    assert_eq!(world.ats_users(&one, 8, Some(pasid(3))), ats);
    assert_eq!(world.commands(), []);
    device.block(Some(pasid(3)));
    attach(&device, None, &guest).expect("no PASID is in the way");
    refused(Some(3), &one);
    // Without PASIDs there is no process directory.
    let without = world.device(&[9], false, 0);
    let refused = attach(&without, Some(pasid(1)), &one);
    assert!(matches!(refused, Err(AttachFailure::Unsupported { .. })));
}

/// A3.3: all of {old, new} x {without ATS, with}, in contexts that lead there, and by processes.
#[test]
fn each_domain_counts_its_devices_with_ats_exactly() {
    /// `EN_ATS`.
    const ENABLED: u64 = 2;
    for case in 0..8 {
        let [old_has, new_has, has_pasids] = [1, 2, 4].map(|bit| case & bit != 0);
        let world = World::new(FEATURES);
        let device = world.device(&[8], true, if has_pasids { 8 } else { 0 });
        let domain = |has_ats| if has_ats { first() } else { plain() };
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
        assert_eq!(counts(), [0, usize::from(new_has)], "{case}");
        let switched = (old_has != new_has).then_some(new_has);
        assert_eq!(world.switches.take(), Vec::from_iter(switched));
        assert_eq!(device.has_ats(), new_has);
        assert_eq!(world.words(8)[0] & ENABLED != 0, new_has);
        // Only who keeps a TLB has to forget.
        let is_ats = |command: &Command| matches!(command, Command::AtsInval { .. });
        let ats_count = world.commands().into_iter().filter(is_ats).count();
        assert_eq!(ats_count, usize::from(old_has && new_has));
        device.block(None);
        assert_eq!(counts(), [0, 0]);
        assert!(!device.has_ats());
        world.assert_unused();
    }
}

/// A3.5.
#[test]
fn nothing_is_sent_to_a_device_that_left() {
    let world = World::new(FEATURES);
    let (leaving, staying) = (world.device(&[8], true, 0), world.device(&[9], true, 0));
    let domain = first();
    for device in [&leaving, &staying] {
        attach(device, None, &domain).expect("it fits");
    }
    leaving.block(None);
    world.commands();
    let counts = [8, 9].map(|id| world.ats_users(&domain, id, None));
    assert_eq!(counts, [0, 1]);
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
    let told = world.commands();
    let functions = told.iter().filter_map(|command| match command {
        Command::AtsInval { function, .. } => Some(*function),
        _ => None,
    });
    assert_eq!(functions.collect::<Vec<_>>(), [function(9)]);
}

/// A3.2: after every change, the set of each domain is the multiset of its attachments.
#[test]
fn sets_are_the_places_of_all_attachments() {
    let world = World::new(EXTENDED);
    let ids: [&[u32]; 3] = [&[8], &[16, 17], &[300]];
    let devices = ids.map(|ids| world.device(ids, ids[0] != 8, 3));
    let domains = [first(), first(), first()];
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
            let id = users.id(world.unit.instance());
            assert_eq!(id.is_some(), of_it().count() > 0);
            if let Some(id) = id {
                let tlb = Tag::FirstStage {
                    gscid: None,
                    pscid: Narrow::new(id).expect("20 bits"),
                };
                assert_eq!(world.users(domain, tlb), of_it().count());
            }
            for (device, ids) in ids.iter().enumerate() {
                for place in 0..8 {
                    let is_there = attached.get(&(device, place)) == Some(&number);
                    let expected = usize::from(is_there && ids[0] != 8);
                    for &id in *ids {
                        let at = (place > 0).then(|| pasid(place));
                        assert_eq!(world.ats_users(domain, id as u16, at), expected);
                    }
                }
            }
        }
        world.commands();
    }
    for device in &devices {
        device.release();
    }
    world.assert_unused();
}
