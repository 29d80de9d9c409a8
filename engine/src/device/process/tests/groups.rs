//! Processes and groups of several devices: rights, and devices that come and go beside each other's bonds.

use super::*;
use crate::device::Use;

/// Nobody owns the devices; drivers of 0 and 1, which are one group, are bound.
fn driven() -> (Rig, Arc<Processes>, Arc<Toy>, Arc<Process>) {
    let (mut rig, processes, toy, process) = scene();
    rig.ownerships.clear();
    for device in [0, 1] {
        drive(&rig, device);
    }
    (rig, processes, toy, process)
}

fn drive(rig: &Rig, device: usize) {
    let bound = rig.registry.bind_device(node(device), Use::DefaultDomain);
    let _ = bound.expect("it is ready");
}

fn undrive(rig: &Rig, device: usize) {
    let unbound = rig.registry.unbind_device(node(device));
    unbound.expect("it is there");
}

fn remove(rig: &Rig, device: usize) {
    let guard = rig.registry.lock_device(node(device));
    let removal = guard.expect("it is there").remove();
    assert_eq!(removal, crate::device::Removal::Done);
}

fn bind_driven(
    rig: &Rig,
    process: &Arc<Process>,
    device: usize,
) -> Result<Arc<Bond>, BindProcessError> {
    process.bind(&rig.registry, node(device), &Right::Driver)
}

#[test]
fn the_last_bond_of_a_group_detaches_whatever_became_of_its_device_and_its_right() {
    // Its driver is unbound, or it is removed.
    for is_removed in [false, true] {
        let (rig, processes, _toy, process) = driven();
        let bonds = [0, 1].map(|device| bind_driven(&rig, &process, device).expect("it fits"));
        let pasid = process.pasid();
        if is_removed {
            remove(&rig, 1);
        } else {
            undrive(&rig, 1);
        }
        let [first, last] = bonds;
        drop(first);
        assert_eq!(kind(&rig, 0, &process), Some(DomainKind::Process));
        drop(last);
        assert_eq!(kind(&rig, 0, &process), None);
        assert!(!cd(&rig, 0, &process).is_valid());
        let again = bind_driven(&rig, &process, 0).expect("it fits");
        drop((again, process));
        assert!(!rig.cd(0, pasid.get()).is_valid());
        assert_eq!(processes.pasids().used_count(), 0);
    }
}

#[test]
fn each_device_of_a_group_needs_the_right_to_it_and_has_to_be_there() {
    let (rig, _processes, _toy, process) = driven();
    let first = bind_driven(&rig, &process, 0).expect("it fits");
    undrive(&rig, 1);
    let refused = bind_driven(&rig, &process, 1).err();
    let is_refused = matches!(
        refused,
        Some(BindProcessError::Attach(AttachError::NotOwner))
    );
    assert!(is_refused, "{refused:?}");
    remove(&rig, 1);
    let refused = bind_driven(&rig, &process, 1).err();
    let is_refused = matches!(
        refused,
        Some(BindProcessError::Attach(AttachError::Unknown(_)))
    );
    assert!(is_refused, "{refused:?}");
    // Nothing was counted: the first bond is the last.
    drop(first);
    assert_eq!(kind(&rig, 0, &process), None);
}

#[test]
fn a_bond_whose_group_lost_what_was_attached_is_nobodys_any_more() {
    for is_removed in [false, true] {
        let (rig, _processes, _toy, process) = driven();
        let old = [0, 1].map(|device| bind_driven(&rig, &process, device).expect("it fits"));
        for device in [0, 1] {
            if is_removed {
                remove(&rig, device);
                rig.registry.add_device(node(device)).expect("it is there");
            } else {
                undrive(&rig, device);
            }
        }
        assert_eq!(kind(&rig, 0, &process), None);
        for device in [0, 1] {
            drive(&rig, device);
        }
        let [first, second] = old;
        drop(second);
        let fresh = bind_driven(&rig, &process, 1).expect("it fits");
        assert_eq!(kind(&rig, 1, &process), Some(DomainKind::Process));
        let own = bind_driven(&rig, &process, 0).expect("it fits");
        assert!(!Arc::ptr_eq(&own, &first), "it is not the dead one");
        drop((first, own));
        assert_eq!(kind(&rig, 1, &process), Some(DomainKind::Process));
        drop(fresh);
        assert_eq!(kind(&rig, 1, &process), None);
    }
}
