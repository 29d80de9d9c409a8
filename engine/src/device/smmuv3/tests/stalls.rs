//! Whether faults stall, on SMMUs that let software choose and on others.

use super::*;

fn world(stalls: Stalls) -> World {
    World::new(Features { stalls, ..FEATURES })
}

#[test]
fn the_stall_model_is_one_of_three() {
    let of = |model: u32| Features::from_registers(model << 24, 0, 0, 0).stalls;
    let expected = [
        Stalls::Allowed,
        Stalls::Impossible,
        Stalls::Forced,
        Stalls::Impossible,
    ];
    assert_eq!([0, 1, 2, 3].map(of), expected);
}

/// CDs and stages 2 that do not stall are illegal where faults have to, as are streams that disable it.
#[test]
fn what_hardware_forces_is_what_entries_say() {
    for (stalls, expected) in [
        (Stalls::Impossible, (false, false, false)),
        (Stalls::Allowed, (false, true, false)),
        (Stalls::Forced, (true, false, true)),
    ] {
        let world = world(stalls);
        let device = world.device(&[8], false, 4);
        for place in [None, Some(pasid(3))] {
            attach(&device, place, &stage1()).expect("it fits");
            let cd = device.cd(0, place.unwrap_or(pasid(0)));
            let cd = cd.expect("it is there");
            let ste = world.ste(8);
            let said = (cd.stalls(), ste.stage1_stalls_disabled());
            assert_eq!(said, (expected.0, expected.1), "{stalls:?}");
        }
        device.block(Some(pasid(3)));
        attach(&device, None, &stage2()).expect("it fits");
        assert_eq!(world.ste(8).stage2_stalls(), expected.2, "{stalls:?}");
    }
}

#[test]
fn a_device_has_no_ats_where_faults_have_to_stall() {
    type Driven = Smmuv3<Heap, Recorder>;

    let has_ats = |stalls| Driven::has_ats(&world(stalls).smmu);
    let all = [Stalls::Impossible, Stalls::Allowed, Stalls::Forced];
    assert_eq!(all.map(has_ats), [true, true, false]);
}
