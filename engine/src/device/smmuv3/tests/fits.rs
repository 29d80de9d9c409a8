//! Tables that hardware cannot walk, field by field.

use iopt_formats::armv8::HardwareUpdates;

use super::*;

#[test]
fn tables_that_hardware_cannot_walk_are_foreign() {
    let fits = |features: Features, domain: Result<Domain, DomainError>| {
        let world = World::new(features);
        let device = world.device(&[8], false, 0);
        let attached = attach(&device, None, &Arc::new(domain.expect("memory")));
        let is_foreign = matches!(attached, Err(AttachFailure::Foreign));
        assert_ne!(attached.is_ok(), is_foreign);
        !is_foreign
    };
    let memory = || Arc::new(Heap);
    let updates = |updates| Features {
        updates,
        ..FEATURES
    };
    let all = [
        HardwareUpdates::None,
        HardwareUpdates::Accessed,
        HardwareUpdates::Dirty,
    ];
    for (of_hardware, &has) in all.iter().enumerate() {
        for (of_tables, &wants) in all.iter().enumerate() {
            let format = Stage1::<12>::new(48, 48)
                .expect("legal")
                .with_updates(wants);
            let made = Domain::stage1(format, memory());
            assert_eq!(fits(updates(has), made), of_tables <= of_hardware);
            let format = Stage2::<12>::new(48, 48)
                .expect("legal")
                .with_updates(wants);
            let made = Domain::stage2(format, memory());
            assert_eq!(fits(updates(has), made), of_tables <= of_hardware);
        }
    }
    let lpa = || Domain::stage1(Stage1::<12>::new_lpa(48, 48).expect("legal"), memory());
    let wide = |has_wide_descriptors| Features {
        has_wide_descriptors,
        ..FEATURES
    };
    assert!(fits(wide(true), lpa()) && !fits(wide(false), lpa()));
    let far = || Domain::stage1(Stage1::<16>::new(52, 48).expect("legal"), memory());
    let reach = |va_bits| Features {
        va_bits,
        ..FEATURES
    };
    assert!(fits(reach(52), far()) && !fits(reach(48), far()));
    let forced = || {
        let format = Stage2::<12>::new(48, 48).expect("legal");
        Domain::stage2(format.with_forced_write_back(), memory())
    };
    let forces = |has_forced_write_back| Features {
        has_forced_write_back,
        ..FEATURES
    };
    assert!(fits(forces(true), forced()) && !fits(forces(false), forced()));
    let of = |idr3| Features::from_registers(0, 0, idr3, 0);
    assert!(of(1 << 8).has_forced_write_back && !of(!(1 << 8)).has_forced_write_back);
    let of = |idr5| Features::from_registers(0, 0, 0, idr5);
    assert_eq!((of(0).va_bits, of(1 << 10).va_bits), (48, 52));
    assert!(of(1 << 7).has_wide_descriptors && !of(!(1 << 7)).has_wide_descriptors);
}

/// What is in the CPUs' caches would not be seen.
#[test]
fn memory_that_hardware_does_not_see_as_the_cpus_do_is_refused() {
    let of = |idr0| Features::from_registers(idr0, 0, 0, 0);
    assert!(of(1 << 4).is_coherent && !of(!(1 << 4)).is_coherent);
    let features = Features {
        is_coherent: false,
        ..FEATURES
    };
    let instance = Recorder::instance();
    let made = Smmu::new(features, Arc::new(Heap), instance);
    assert!(matches!(made, Err(SmmuError::Incoherent)));
    let domain = stage1();
    assert!(domain.stage().is_some_and(|stage| stage.fits(&FEATURES)));
    assert!(!domain.stage().is_some_and(|stage| stage.fits(&features)));
}
