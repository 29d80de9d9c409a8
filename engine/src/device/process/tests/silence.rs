//! The end of processes whose bonds ended while hardware was silent.

use super::*;

/// A process whose bond ended while hardware did not confirm it.
fn stuck() -> (Rig, Arc<Toy>, Arc<Process>) {
    let (rig, _processes, toy, process) = scene();
    let bond = bound(&rig, &process, 2);
    rig.silence(0, true);
    drop(bond);
    assert!(rig.endpoint(2).is_quarantined());
    assert_eq!(toy.end(), Err(ExitError));
    (rig, toy, process)
}

#[test]
fn the_end_of_a_process_asks_hardware_again_about_what_it_did_not_confirm() {
    let (rig, toy, _process) = stuck();
    rig.silence(0, false);
    assert_eq!(toy.end(), Ok(()));
    assert!(!rig.endpoint(2).is_quarantined());
}

#[test]
fn tables_that_a_device_may_use_which_is_gone_are_never_free() {
    let (rig, toy, _process) = stuck();
    let guard = rig.registry.lock_device(node(2)).expect("it is there");
    assert_eq!(guard.remove(), crate::device::Removal::Done);
    let endpoint = Arc::downgrade(&rig.endpoint(2));
    rig.forget_endpoint(2);
    assert_eq!(endpoint.strong_count(), 0);
    rig.silence(0, false);
    for _ in 0..2 {
        assert_eq!(toy.end(), Err(ExitError));
    }
}
