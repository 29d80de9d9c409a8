//! Requests of several threads, whose answers the device holds back.

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use iopt::domain::DomainError;
use iopt::domain::virtio::VirtioDomain;
use iopt::invalidation::SyncError;
use iopt::ioas::{Holes, Quarantined, UnmapError};
use iopt_formats::Prot;

use crate::{NUMBER, PAGE, World, range};
use iopt_tests::virtio::{ATTACH, DETACH, DEVICE_ERROR, Fault, MAP, NO_MEMORY, UNMAP};

#[test]
fn an_address_is_not_free_while_a_request_of_another_thread_may_unmap_it() {
    let world = World::patient(64, Duration::from_millis(200));
    let area = world.map(0x10_0000, 0, 3, Prot::RW).expect("it is free");
    world.domain.detach(1).expect("it is attached");
    let fault = Fault::DoneBut(DEVICE_ERROR);
    world.device.order(MAP, 1, fault, false);
    world.domain.attach(1).expect_err("one mapping is in doubt");
    world.device.order(UNMAP, 0, Fault::Silent, false);
    thread::scope(|scope| {
        scope.spawn(|| world.domain.refill().expect_err("there is no answer"));
        world.device.wait_until(|state| !state.late.is_empty());
        // The request for the whole area is answered, that for the page in its middle is not.
        let unmapped = world.ioas.unmap(area, Holes::Refused);
        let is_late = matches!(
            unmapped,
            Err(UnmapError::Quarantined {
                error: DomainError::Sync(SyncError::TimedOut),
                ..
            })
        );
        assert!(is_late, "{unmapped:?}");
    });
    world.device.answer_late();
    assert_eq!(world.ioas.retry_quarantined(), Quarantined::default());
    world.assert_empty();
    world
        .map(0x10_0000, 8, 3, Prot::RW)
        .expect("it is free now");
    world.assert_reaches(1, 0x10_0000, 8, 3, 3);
    world.device.assert_clean();
}

#[test]
fn an_endpoint_is_attached_while_another_thread_maps_without_an_end() {
    let world = World::patient(64, Duration::from_secs(5));
    let lost = world.map(0x10_0000, 0, 1, Prot::RW).expect("it is free");
    world.device.order(MAP, 0, Fault::Status(NO_MEMORY), true);
    world.ioas.protect(lost, Prot::R).expect_err("no memory");
    world.device.heal();
    world.device.order(MAP, 0, Fault::Held, false);
    world.device.order(MAP, 0, Fault::Held, false);
    thread::scope(|scope| {
        let attached = scope.spawn(|| world.domain.attach(2));
        // It waits for what was lost, and a mapping comes that was not there when it began to.
        world.device.wait_until(|state| state.held.len() == 1);
        let mapped = scope.spawn(|| world.map(0x20_0000, 1, 1, Prot::RW));
        world.device.wait_until(|state| state.held.len() == 2);
        world.device.release();
        let attached = attached.join().expect("it does not panic");
        attached.expect("everything of before is there");
        world.assert_reaches(2, 0x10_0000, 0, 1, 3);
        world.device.release();
        let mapped = mapped.join().expect("it does not panic");
        mapped.expect("it is free");
    });
    world.assert_reaches(2, 0x20_0000, 1, 1, 3);
    world.device.assert_clean();
}

/// Runs `first`, whose request of type `kind` is carried out at once and answered late, and then `second`, which
/// is over before that if it can be.
fn overtake(world: &World, kind: u8, first: impl FnOnce() + Send, second: impl FnOnce() + Send) {
    world.device.order(kind, 0, Fault::Held, false);
    thread::scope(|scope| {
        scope.spawn(first);
        world.device.wait_until(|state| !state.held.is_empty());
        let second = scope.spawn(second);
        for _ in 0..100 {
            if !second.is_finished() {
                thread::sleep(Duration::from_millis(1));
            }
        }
        world.device.release();
    });
}

#[test]
fn the_last_endpoint_leaves_before_the_next_one_joins() {
    let world = World::patient(64, Duration::from_secs(5));
    world.map(0x10_0000, 0, 4, Prot::RW).expect("it is free");
    overtake(
        &world,
        DETACH,
        || world.domain.detach(1).expect("it is attached"),
        || world.domain.attach(2).expect("there is such an endpoint"),
    );
    assert_eq!(world.domain.endpoint_count(), 1);
    world.assert_reaches(2, 0x10_0000, 0, 4, 3);
    world.device.assert_clean();
}

#[test]
fn an_endpoint_is_in_the_domain_that_got_it_last() {
    let world = World::patient(64, Duration::from_secs(5));
    let other = VirtioDomain::new(Arc::clone(&world.iommu), NUMBER + 1).expect("it is free");
    overtake(
        &world,
        ATTACH,
        || world.domain.attach(2).expect("there is such an endpoint"),
        || other.attach(2).expect("there is such an endpoint"),
    );
    assert_eq!(
        (world.domain.endpoint_count(), other.endpoint_count()),
        (1, 1)
    );
    assert_eq!(world.device.state().endpoints[&2], Some(NUMBER + 1));
}

#[test]
fn a_sync_is_not_kept_from_success_by_what_others_unmapped() {
    let world = World::patient(64, Duration::from_secs(5));
    let areas = [0x10_0000, 0x20_0000, 0x30_0000].map(|iova| range(iova, PAGE));
    for area in areas {
        let mapped = world.map(area.start().get(), 0, 1, Prot::RW);
        mapped.expect("it is free");
    }
    let [first, foreign, last] = areas;
    world.device.order(MAP, 0, Fault::Status(NO_MEMORY), true);
    world.ioas.protect(last, Prot::R).expect_err("no memory");
    world.device.heal();
    world.device.order(MAP, 0, Fault::Held, false);
    let fault = Fault::Status(DEVICE_ERROR);
    let start = foreign.start().get();
    world.device.order_at(UNMAP, start, fault);
    let before = world.device.count(UNMAP);
    thread::scope(|scope| {
        scope.spawn(|| world.domain.refill());
        world.device.wait_until(|state| !state.held.is_empty());
        // It has unmapped the first, and waits for the map of the last.
        let unmapped = scope.spawn(|| world.ioas.unmap_many(&[first, last], Holes::Refused));
        world.device.wait_until(|state| state.count(UNMAP) > before);
        let refused = world.ioas.unmap(foreign, Holes::Refused);
        refused.expect_err("the device does not forget it");
        world.device.release();
        let unmapped = unmapped.join().expect("it does not panic");
        assert_eq!(unmapped.expect("the device forgets both"), 2 * PAGE);
    });
    // The one of another thread was asked for twice, by that.
    assert_eq!(world.device.count(UNMAP), before + 4);
    world.device.heal();
    assert_eq!(world.ioas.retry_quarantined(), Quarantined::default());
    world.assert_empty();
    world.device.assert_clean();
}
