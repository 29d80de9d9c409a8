//! What hardware does not confirm is reported, asked about again, and ends without a lock.

use super::*;
use crate::device::fault::{FaultGroup, FaultHandler};
use crate::device::testing_smmu::{self, Rig, node};
use crate::device::{Condition, Registry};
use crate::sync::lockdep;

/// Wherever in an attachment hardware falls silent.
#[test]
fn what_hardware_does_not_confirm_is_reported_once_and_once_more_when_it_does() {
    let mut seen = Vec::new();
    for silent_after in 0..14 {
        let rig = Rig::new();
        let [old, new] = [(); 2].map(|()| Arc::new(testing_smmu::stage1()));
        rig.attach(2, 0, &old).expect("it fits");
        assert!(rig.conditions().is_empty());
        rig.smmus[0]
            .instance()
            .queue()
            .device()
            .fall_silent_after(silent_after);
        rig.attach(2, 0, &new).expect("a commit cannot fail");
        let told = rig.conditions();
        let look = || rig.registry.look_after(node(2)).expect("it is there");
        let condition = look();
        let is_sound = condition == Condition::Sound;
        assert_eq!(told.is_empty(), is_sound, "{silent_after}");
        assert!(told.iter().all(|&(device, _)| device == node(2)));
        seen.push(condition);
        // Asked in vain.
        assert_eq!(look(), condition);
        rig.conditions();
        rig.silence(0, false);
        assert_eq!(look(), Condition::Sound);
        assert_eq!(rig.conditions().len(), usize::from(!is_sound));
        assert!(rig.cd(2, 0).is_valid() && rig.ste(2).is_valid());
        assert_eq!(
            rig.cd(2, 0).asid(),
            new.users()
                .and_then(|it| it.id(rig.smmus[0].instance()))
                .expect("it is known") as u16
        );
    }
    assert!(seen.contains(&Condition::Sound) && seen.contains(&Condition::Quarantined));
}

/// One silence in the middle: the entry blocks for sure, and nothing else says so.
#[test]
fn a_device_that_is_blocked_in_silence_is_reported_and_led_on_when_it_is_asked_again() {
    let rig = Rig::new();
    let [old, new] = [(); 2].map(|()| Arc::new(testing_smmu::stage1()));
    rig.attach(2, 0, &old).expect("it fits");
    let device = rig.smmus[0].instance().queue().device();
    device.fall_silent_after(0);
    rig.attach(2, 0, &new).expect("a commit cannot fail");
    let told = rig.conditions();
    assert_eq!(told.len(), 1);
    assert_ne!(told[0].1, Condition::Sound);
    assert!(!rig.cd(2, 0).is_valid());
    rig.silence(0, false);
    // What is attached elsewhere asks, too.
    rig.attach(2, 5, &old).expect("it fits");
    assert_eq!(rig.conditions(), [(node(2), Condition::Sound)]);
    assert!(rig.cd(2, 0).is_valid());
}

#[test]
fn who_is_removed_while_hardware_is_silent_is_reported() {
    let rig = Rig::new();
    rig.attach(2, 0, &Arc::new(testing_smmu::stage1()))
        .expect("it fits");
    rig.silence(0, true);
    rig.registry
        .lock_device(node(2))
        .expect("it is there")
        .remove();
    assert_eq!(rig.conditions(), [(node(2), Condition::Quarantined)]);
}

/// A handler whose end calls the registry.
struct Clingy(Arc<Registry>);

impl FaultHandler for Clingy {
    fn handle(&self, _: FaultGroup) {}
}

impl Drop for Clingy {
    fn drop(&mut self) {
        lockdep::assert_none_held();
        assert!(self.0.attached(node(2), None).is_some());
    }
}

#[test]
fn a_domain_that_hardware_left_late_ends_without_a_lock() {
    let rig = Rig::new();
    let handler = Arc::new(Clingy(Arc::clone(&rig.registry)));
    let domain = testing_smmu::capable(&handler);
    let other = Arc::new(testing_smmu::stage1());
    rig.attach(2, 0, &domain).expect("it fits");
    rig.silence(0, true);
    rig.detach(2, 0);
    drop(domain);
    assert_eq!(Arc::strong_count(&handler), 2);
    rig.silence(0, false);
    rig.attach(2, 0, &other).expect("hardware answers");
    assert_eq!(Arc::strong_count(&handler), 1);
}
