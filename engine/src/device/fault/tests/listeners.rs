//! Whose a record is.

use super::*;
use crate::device::fault::Listeners;

/// Devices that share an ID are attached alike, unless one of them is blocked alone: it has asked nothing.
#[test]
fn of_several_with_an_id_who_came_last_of_those_that_may_ask_has_its_records() {
    let worlds = [World::new(), World::new(), World::new()];
    let devices = worlds.each_ref().map(World::faults);
    let listeners = Listeners::new();
    assert!(listeners.find(7).is_none());
    for (port, faults) in devices.iter().enumerate() {
        let entered = listeners.enter(&[7, 0x10 + port as u32], port, faults);
        entered.expect("memory");
    }
    let found = |id| {
        let (faults, requester) = listeners.find(id)?;
        let at = devices.iter().position(|it| Arc::ptr_eq(it, &faults));
        assert_eq!((Some(requester.port), requester.id), (at, id));
        at
    };
    assert_eq!(found(7), Some(2));
    let collector = Collector::new();
    for (capable, expected) in [(0, 0), (1, 1), (2, 2)] {
        attach(&devices[capable], None, &collector);
        assert_eq!(found(7), Some(expected));
    }
    detach(&devices[2], None);
    assert_eq!(found(7), Some(1));
    // Its own ID is its alone.
    assert_eq!(found(0x12), Some(2));
    listeners.strike_out(&devices[1]);
    assert_eq!(found(7), Some(0));
    detach(&devices[0], None);
    assert_eq!(found(7), Some(2));
    detach(&devices[1], None);
}
