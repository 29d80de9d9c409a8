//! What devices use at any time, and attachments that did not become what they were to be.

use iopt_formats::{Iova, IovaRange, Oa, Prot};

use super::*;

fn region(first: u64, last: u64, shift: u64, prot: Prot) -> DirectRegion {
    let [start, end] = [first * 0x1000, last * 0x1000 + 0xfff];
    DirectRegion {
        range: IovaRange::new(Iova::new(start), Iova::new(end)).expect("it rises"),
        oa: Oa::new(start + shift),
        prot,
    }
}

/// Firmware may name the same memory for a device and for all of them.
#[test]
fn regions_may_overlap_where_they_say_the_same() {
    let domain = stage1();
    let map = |first, last, shift, prot| domain.map_direct(region(first, last, shift, prot));
    map(4, 5, 0, Prot::RW).expect("nothing is there");
    map(9, 9, 0, Prot::RW).expect("nothing is there");
    map(4, 5, 0, Prot::RW).expect("it is there");
    // A gap before, one between, one behind.
    map(2, 12, 0, Prot::RW).expect("the rest is the same");
    map(0, 20, 0, Prot::RW).expect("the rest is the same");
    // Others lead elsewhere, or have other rights.
    assert!(map(20, 21, 0x1000, Prot::RW).is_err());
    assert!(map(19, 22, 0, Prot::R).is_err());
    map(21, 22, 0, Prot::R).expect("nothing is there");
}

/// Blocked for sure is not attached: it is known, and mended as soon as hardware answers.
#[test]
fn a_device_that_a_failure_blocked_is_known_and_led_again() {
    for silent_count in 1..3 {
        let world = World::new(FEATURES);
        let device = world.device(&[8], false, 0);
        let domain = stage1();
        let shared: Arc<dyn Hwpt> = Arc::clone(&domain) as _;
        let prepared = device.prepare(None, &shared).expect("it fits");
        let queue = world.smmu.instance().queue().device();
        queue.fall_silent_after(silent_count);
        prepared.commit();
        assert!(device.is_cut_off());
        assert!(!device.retry());
        world.silence(false);
        assert!(device.retry() && !device.is_cut_off() && !device.is_quarantined());
        assert_eq!(world.ste(8).config(), StreamConfig::Stage1);
        assert!(device.cd(0, pasid(0)).is_some_and(|cd| cd.is_valid()));
    }
}
