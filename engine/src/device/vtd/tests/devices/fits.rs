//! What can be attached to which device, and what is made for it.

use super::*;

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
    let world = World::new(TableMode::Scalable);
    let device = world.device(&[8], true, 5);
    let (one, two) = (first(), second());
    attach(&device, Some(pasid(3)), &one).expect("it fits");
    let before = (world.scalable(8), world.id(&one));
    world.commands();
    let refused = |place: Option<u32>, domain: &Arc<Domain>| {
        let refused = attach(&device, place.map(pasid), domain);
        assert!(
            matches!(refused, Err(AttachFailure::Unsupported { .. })),
            "{place:?}"
        );
    };
    refused(Some(4), &Arc::new(Domain::identity()));
    refused(Some(4), &Arc::new(Domain::blocked()));
    refused(Some(0), &one);
    refused(Some(32), &one);
    // One with ATS beside one without.
    refused(None, &Arc::new(second_of(48).without_ats()));
    let foreign = |domain: Arc<dyn Hwpt>| {
        let refused = device.prepare(None, &domain).err();
        assert!(
            matches!(refused, Some(AttachFailure::Foreign)),
            "{refused:?}"
        );
    };
    foreign(Arc::new(Stranger));
    foreign(Arc::new(second_of(57)));
    let wide = SecondStage::new(48).expect("legal");
    foreign(Arc::new(
        Domain::second_stage(wide, Arc::new(Heap), MapSide::Silent).expect("memory"),
    ));
    let tracked = wide.with_oa_bits(48).expect("legal").with_dirty();
    foreign(Arc::new(
        Domain::second_stage(tracked, Arc::new(Heap), MapSide::Silent).expect("memory"),
    ));
    assert_eq!((world.scalable(8), world.id(&one)), before);
    assert_eq!(world.ats_users(&one, 8, Some(pasid(3))), 1);
    assert_eq!(world.commands(), []);
    attach(&device, Some(pasid(31)), &two).expect("the last one");
    // Legacy mode has no first stage and no PASIDs, and not every unit lets all pass.
    let legacy = World::new(TableMode::Legacy);
    let device = legacy.device(&[8], false, 0);
    let refused = attach(&device, None, &one);
    assert!(matches!(refused, Err(AttachFailure::Foreign)));
    let refused = attach(&device, Some(pasid(1)), &two);
    assert!(matches!(refused, Err(AttachFailure::Unsupported { .. })));
    let opaque = Features {
        has_pass_through: false,
        ..FEATURES
    };
    for mode in MODES {
        let unit = Unit::new(opaque, mode, Arc::new(Heap), Queue::instance_of(PLANNER));
        let world = World::of(unit.expect("memory"));
        let device = world.device(&[8], false, 0);
        let refused = attach(&device, None, &Arc::new(Domain::identity()));
        assert!(matches!(refused, Err(AttachFailure::Unsupported { .. })));
    }
}

/// What is not present is cached, so that a table whose maps nobody is told of shows devices nothing.
#[test]
fn a_unit_that_has_to_be_told_of_maps_takes_no_other_tables() {
    let buffering = Planner {
        has_write_buffer: true,
        ..PLANNER
    };
    let second = |side| {
        let format = SecondStage::new(48).expect("legal").with_oa_bits(48);
        Domain::second_stage(format.expect("legal"), Arc::new(Heap), side)
    };
    let first = |side| {
        let format = FirstStage::new(47).expect("legal").with_oa_bits(48);
        Domain::first_stage(format.expect("legal"), Arc::new(Heap), side)
    };
    for (planner, takes_first, takes_second) in [
        (PLANNER, true, true),
        (CACHING, true, false),
        (buffering, false, false),
    ] {
        let world = World::of(unit(TableMode::Scalable, planner));
        let device = world.device(&[8], false, 0);
        let takes = |domain: Result<Domain, DomainError>| {
            let domain = Arc::new(domain.expect("memory"));
            match attach(&device, None, &domain) {
                Ok(()) => true,
                Err(AttachFailure::Foreign) => false,
                Err(error) => panic!("{error:?}"),
            }
        };
        assert_eq!(takes(first(MapSide::Silent)), takes_first);
        assert_eq!(takes(second(MapSide::Silent)), takes_second);
        assert!(takes(first(MapSide::Announced)) && takes(second(MapSide::Announced)));
    }
}

/// First stages if all units have any, else second stages that all can walk, else nothing.
#[test]
fn new_domains_are_what_all_units_of_all_devices_can_walk() {
    let lacking = |planner, change: fn(&mut Features)| {
        let mut features = FEATURES;
        change(&mut features);
        let instance = Queue::instance_of(planner);
        World::of(
            Unit::new(features, TableMode::Scalable, Arc::new(Heap), instance).expect("memory"),
        )
    };
    let full = lacking(PLANNER, |_| {});
    let legacy = World::of(unit(TableMode::Legacy, CACHING));
    let second_only = lacking(PLANNER, |features| {
        features.has_first_stage = false;
        features.has_48_bits = false;
        features.second_sizes = PageSizes::EMPTY.with(PageSize::KIB_4);
    });
    let neither = lacking(PLANNER, |features| {
        features.has_first_stage = false;
        features.has_second_stage = false;
    });
    let cases: [(&[&World], Option<bool>); 6] = [
        (&[&full], Some(true)),
        (&[&full, &full], Some(true)),
        (&[&legacy], Some(false)),
        (&[&full, &legacy], Some(false)),
        (&[&second_only, &full, &legacy], Some(false)),
        (&[&full, &neither], None),
    ];
    for (number, (worlds, is_first)) in cases.into_iter().enumerate() {
        let devices: Vec<_> = worlds
            .iter()
            .zip(8..)
            .map(|(world, id)| world.device(&[id], false, 0))
            .collect();
        let endpoints: Vec<&Device> = devices.iter().collect();
        let made = Vtd::translate(&Arc::new(Heap), &endpoints);
        assert_eq!(made.is_ok(), is_first.is_some(), "{number}");
        let Ok(domain) = made else { continue };
        let domain = Arc::new(domain);
        for (device, world) in devices.iter().zip(worlds) {
            attach(device, None, &domain).expect("it fits");
            let domain_id = world.id(&domain);
            let pasid = pasid(0);
            let tag = match is_first {
                Some(true) => Tag::FirstStage { domain_id, pasid },
                _ => Tag::SecondStage { domain_id },
            };
            assert!(world.users(&domain, tag) > 0, "{number}");
        }
    }
}
