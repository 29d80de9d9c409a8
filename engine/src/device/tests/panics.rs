//! Drivers that panic in their callbacks: what was entered for the time of one does not stay.

use super::*;

fn caught(work: impl FnOnce()) {
    let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
    caught.expect_err("the driver panics");
}

fn rig() -> Rig {
    Rig::new((0..2).map(|number| behind(number, 0, &[0])).collect())
}

#[test]
fn a_probe_that_panics_has_failed() {
    let rig = rig();
    rig.register(0);
    rig.driver.on_probe(|_| panic!("as it was told"));
    caught(|| rig.add(0));
    assert_eq!(rig.standing(0), Standing::NoIommu(NoIommu::Failed));
    *rig.driver.on_probe.lock() = None;
    rig.add_all();
    assert!(matches!(rig.bind(0), Ok(Binding::Translated(_))));
    assert_eq!(rig.remove(1), Removal::Done);
    rig.check();
}

#[test]
fn a_walk_that_panics_is_over() {
    let rig = rig();
    rig.add_all();
    rig.driver.on_probe(|_| panic!("as it was told"));
    caught(|| rig.register(0));
    *rig.driver.on_probe.lock() = None;
    rig.add_all();
    assert!(matches!(rig.bind(1), Ok(Binding::Translated(_))));
    rig.unbind(1);
    rig.registry.unregister(described(0)).expect("it is free");
    rig.check();
}

#[test]
fn who_tells_of_a_default_domain_and_panics_leaves_the_others_to_the_next() {
    let rig = rig();
    rig.add_all();
    rig.driver.on_finalize(|_| panic!("as it was told"));
    caught(|| rig.register(0));
    *rig.driver.on_finalize.lock() = None;
    rig.add_all();
    for number in [0, 1] {
        assert!(matches!(rig.bind(number), Ok(Binding::Translated(_))));
    }
    assert_eq!(rig.world.with(|world| world.finalized.len()), 2);
    rig.check();
}

#[test]
fn a_device_whose_release_panics_is_gone() {
    let rig = rig();
    rig.add_all();
    rig.register(0);
    let panicking = |world: &mut Inner| world.panicking_releases.insert(node(0));
    rig.world.with(panicking);
    caught(|| {
        rig.remove(0);
    });
    rig.world.with(|world| world.panicking_releases.clear());
    rig.add(0);
    assert!(matches!(rig.bind(0), Ok(Binding::Translated(_))));
    rig.check();
}
