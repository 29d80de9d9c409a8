//! Requests that fail.

use iopt::domain::DomainError;
use iopt::domain::virtio::{EndpointError, RequestError, VirtioError};
use iopt::invalidation::SyncError;
use iopt::ioas::{Holes, MapError, ProtectError, Quarantined, UnmapError};
use iopt_formats::{IovaRange, Prot};

use crate::{NUMBER, PAGE, World, range};
use iopt_tests::virtio::{
    ATTACH, DETACH, DEVICE_ERROR, Fault, INVALID, MAP, NO_MEMORY, RANGE, UNMAP, UNSUPPORTED,
};

/// Returns the run and the cause of a map that failed.
fn cause(result: Result<IovaRange, MapError>) -> (IovaRange, DomainError) {
    match result {
        Err(MapError::Domain { range, error, .. }) => (range, error),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_refused_map_names_its_run_and_leaves_nothing() {
    for (status, expected) in [
        (1, RequestError::Io),
        (UNSUPPORTED, RequestError::Unsupported),
        (DEVICE_ERROR, RequestError::Device),
        (INVALID, RequestError::Invalid),
        (RANGE, RequestError::Range),
        (6, RequestError::NoEntry),
        (7, RequestError::Fault),
        (9, RequestError::NoStatus),
    ] {
        for fault in [Fault::Status(status), Fault::DoneBut(status)] {
            let is_done = matches!(fault, Fault::DoneBut(_));
            let leaves_open = matches!(
                expected,
                RequestError::Io | RequestError::Device | RequestError::NoStatus
            );
            if is_done && !leaves_open {
                continue;
            }
            let world = World::new(64);
            world.map(0x20_0000, 40, 4, Prot::RW).expect("it is free");
            world.device.order(MAP, 5, fault, false);
            let (failed, error) = cause(world.map(0x10_0000, 0, 12, Prot::RW));
            assert_eq!(failed, range(0x10_5000, PAGE));
            let DomainError::Other(error) = error else {
                panic!("{error:?}");
            };
            assert_eq!(error.downcast_ref(), Some(&expected));
            // What came behind is taken back by the batch, what came before by the address space.
            assert_eq!(world.device.count(UNMAP), 2);
            assert_eq!(world.device.mapping_count(NUMBER), 4);
            assert_eq!(world.source.pinned_pages(), 4);
            world
                .map(0x10_0000, 0, 12, Prot::RW)
                .expect("it is free again");
            world.assert_reaches(1, 0x10_0000, 0, 12, 3);
            world.device.assert_clean();
        }
    }
}

#[test]
fn a_device_without_memory_is_out_of_memory() {
    let world = World::new(4);
    world.device.order(MAP, 7, Fault::Status(NO_MEMORY), true);
    let (failed, error) = cause(world.map(0x10_0000, 0, 12, Prot::RW));
    assert_eq!(failed, range(0x10_7000, PAGE));
    assert!(matches!(error, DomainError::OutOfMemory));
    world.assert_empty();
}

#[test]
fn a_request_that_comes_back_without_a_byte_has_failed() {
    let world = World::new(64);
    world.device.order(MAP, 0, Fault::Empty, false);
    let (_, error) = cause(world.map(0x10_0000, 0, 1, Prot::RW));
    let DomainError::Other(error) = error else {
        panic!("{error:?}");
    };
    assert_eq!(error.downcast_ref(), Some(&RequestError::NoStatus));
    world.device.order(DETACH, 0, Fault::Empty, false);
    assert_eq!(world.domain.detach(1), Err(RequestError::NoStatus));
}

#[test]
fn an_unmap_that_fails_is_sent_again_and_quarantined_if_it_fails_for_good() {
    let world = World::new(64);
    for fault in [
        Fault::Status(DEVICE_ERROR),
        Fault::DoneBut(DEVICE_ERROR),
        Fault::Status(RANGE),
        Fault::Empty,
    ] {
        world.map(0x10_0000, 0, 4, Prot::RW).expect("it is free");
        world.device.order(UNMAP, 0, fault, false);
        let bytes = world.ioas.unmap_all();
        assert_eq!(bytes.expect("the sync asks again"), 4 * PAGE);
        world.assert_empty();

        world.map(0x10_0000, 0, 4, Prot::RW).expect("it is free");
        world.device.order(UNMAP, 0, fault, true);
        let refused = world.ioas.unmap_all();
        let is_refused = matches!(
            refused,
            Err(UnmapError::Quarantined {
                error: DomainError::Sync(SyncError::Refused),
                ..
            })
        );
        assert!(is_refused, "{refused:?}");
        assert_eq!(world.source.pinned_pages(), 4);
        let occupied = world.map(0x10_0000, 8, 1, Prot::RW);
        assert!(matches!(occupied, Err(MapError::Occupied { .. })));
        assert_eq!(world.ioas.retry_quarantined().area_count, 1);
        // Others are not kept from their own.
        world.device.heal();
        world.map(0x20_0000, 8, 1, Prot::RW).expect("it is free");
        world
            .ioas
            .unmap(range(0x20_0000, PAGE), Holes::Refused)
            .expect("it is mapped");
        assert_eq!(world.ioas.retry_quarantined(), Quarantined::default());
        world.assert_empty();
        world.device.assert_clean();
    }
}

#[test]
fn an_unmap_without_an_answer_is_quarantined_until_there_is_one() {
    let world = World::new(64);
    world.map(0x10_0000, 0, 4, Prot::RW).expect("it is free");
    world.map(0x20_0000, 4, 4, Prot::RW).expect("it is free");
    world.device.order(UNMAP, 0, Fault::Silent, false);
    let late = world.ioas.unmap(range(0x10_0000, 4 * PAGE), Holes::Refused);
    let is_late = |error: &UnmapError| {
        matches!(
            error,
            UnmapError::Quarantined {
                error: DomainError::Sync(SyncError::TimedOut),
                ..
            }
        )
    };
    assert!(late.as_ref().is_err_and(is_late), "{late:?}");
    assert_eq!(world.source.pinned_pages(), 8);
    // Nothing new is asked of a device that does not answer.
    let sent = world.device.state().kinds.len();
    let (_, error) = cause(world.map(0x30_0000, 8, 1, Prot::RW));
    assert!(matches!(error, DomainError::Sync(SyncError::TimedOut)));
    let other = world.ioas.unmap(range(0x20_0000, 4 * PAGE), Holes::Refused);
    assert!(other.as_ref().is_err_and(is_late), "{other:?}");
    assert_eq!(world.device.state().kinds.len(), sent);
    assert_eq!(world.ioas.retry_quarantined().area_count, 2);

    world.device.answer_late();
    assert_eq!(world.ioas.retry_quarantined(), Quarantined::default());
    world.assert_empty();
    world
        .map(0x30_0000, 8, 1, Prot::RW)
        .expect("it answers again");
    world.device.assert_clean();
}

#[test]
fn a_map_without_an_answer_may_yet_come_and_is_unmapped_then() {
    let world = World::new(64);
    world.device.order(MAP, 2, Fault::Silent, false);
    let refused = world.map(0x10_0000, 0, 8, Prot::RW);
    assert!(
        matches!(refused, Err(MapError::Quarantined { .. })),
        "{refused:?}"
    );
    assert_eq!(world.source.pinned_pages(), 8);
    world.device.answer_late();
    assert!(world.device.mapping_count(NUMBER) > 0);
    assert_eq!(world.ioas.retry_quarantined(), Quarantined::default());
    world.assert_empty();
    world.device.assert_clean();
}

#[test]
fn a_reset_confirms_everything_and_mappings_come_back_with_the_endpoint() {
    let world = World::new(64);
    world.map(0x10_0000, 0, 4, Prot::RW).expect("it is free");
    world.map(0x20_0000, 4, 4, Prot::RW).expect("it is free");
    world.device.order(UNMAP, 0, Fault::Silent, false);
    let late = world.ioas.unmap(range(0x10_0000, 4 * PAGE), Holes::Refused);
    late.expect_err("there is no answer");
    world.device.reset();
    world.iommu.was_reset(world.device.clone());
    assert_eq!(world.domain.endpoint_count(), 0);
    assert_eq!(world.ioas.retry_quarantined(), Quarantined::default());
    assert_eq!(world.source.pinned_pages(), 4);
    world.domain.attach(1).expect("there is such an endpoint");
    world.assert_reaches(1, 0x20_0000, 4, 4, 3);
    assert_eq!(world.device.mapping_count(NUMBER), 4);
    world.device.assert_clean();
}

#[test]
fn an_attach_without_an_answer_counts_until_it_is_refused() {
    let world = World::new(64);
    world.domain.detach(1).expect("it is attached");
    world.device.order(ATTACH, 0, Fault::Silent, false);
    let late = world.domain.attach(1);
    assert!(matches!(
        late,
        Err(EndpointError::Request(RequestError::TimedOut))
    ));
    assert_eq!(world.domain.endpoint_count(), 1);
    world.device.answer_late();
    world.domain.refill().expect("it answered");
    world.map(0x10_0000, 0, 4, Prot::RW).expect("it is free");
    world.assert_reaches(1, 0x10_0000, 0, 4, 3);

    world.domain.detach(1).expect("it is attached");
    world.device.order(ATTACH, 0, Fault::Silent, false);
    world.domain.attach(99).expect_err("there is no answer");
    world.device.answer_late();
    world
        .domain
        .refill()
        .expect("nothing is there to be sent to");
    assert_eq!(world.domain.endpoint_count(), 0);
}

#[test]
fn rights_that_the_device_does_not_take_are_the_old_ones_again() {
    for fault in [
        Fault::Status(NO_MEMORY),
        Fault::DoneBut(DEVICE_ERROR),
        Fault::Empty,
    ] {
        for (kind, left) in [(UNMAP, 0), (MAP, 0), (MAP, 3)] {
            let world = World::new(64);
            world.map(0x10_0000, 0, 6, Prot::RW).expect("it is free");
            world.device.order(kind, left, fault, false);
            let whole = range(0x10_0000, 6 * PAGE);
            let protected = world.ioas.protect(whole, Prot::R);
            // Of an unmap the device may say what it likes: it is asked once more.
            let flags = if protected.is_ok() { 1 } else { 3 };
            assert_eq!(
                protected.is_ok(),
                kind == UNMAP && fault != Fault::Status(NO_MEMORY)
            );
            world.assert_reaches(1, 0x10_0000, 0, 6, flags);
            world.ioas.protect(whole, Prot::R).expect("nothing fails");
            world.assert_reaches(1, 0x10_0000, 0, 6, 1);
            world.device.assert_clean();
        }
    }
}

#[test]
fn mappings_that_are_lost_are_named_and_can_be_sent_again() {
    let world = World::new(64);
    world.map(0x10_0000, 0, 3, Prot::RW).expect("it is free");
    world.device.order(MAP, 1, Fault::Status(NO_MEMORY), true);
    let lost = world.ioas.protect(range(0x10_0000, 3 * PAGE), Prot::R);
    let Err(ProtectError::Domain {
        error: DomainError::Other(error),
        ..
    }) = lost
    else {
        panic!("{lost:?}");
    };
    assert!(matches!(
        error.downcast_ref(),
        Some(VirtioError::Lost { .. })
    ));
    // The device is not asked to forget what it does not have.
    let unmap_count = world.device.count(UNMAP);
    let lost = world.ioas.protect(range(0x10_0000, 3 * PAGE), Prot::R);
    lost.expect_err("there is no room yet");
    assert_eq!(world.device.count(UNMAP), unmap_count);
    world.device.heal();
    world.domain.refill().expect("there is room again");
    world.assert_reaches(1, 0x10_0000, 0, 3, 3);
    world.ioas.unmap_all().expect("nothing is in the way");
    world.assert_empty();
}

#[test]
fn mappings_are_not_lost_if_a_late_device_is_not_asked_to_forget_them() {
    let world = World::new(64);
    let area = world.map(0x10_0000, 0, 3, Prot::RW).expect("it is free");
    let other = world.map(0x20_0000, 3, 1, Prot::RW).expect("it is free");
    world.device.order(UNMAP, 0, Fault::Silent, false);
    let late = world.ioas.unmap(other, Holes::Refused);
    late.expect_err("there is no answer");
    let protected = world.ioas.protect(area, Prot::R);
    let is_late = matches!(
        protected,
        Err(ProtectError::Domain {
            error: DomainError::Sync(SyncError::TimedOut),
            ..
        })
    );
    assert!(is_late, "{protected:?}");
    world.assert_reaches(1, 0x10_0000, 0, 3, 3);
    world.device.answer_late();
    assert_eq!(world.ioas.retry_quarantined(), Quarantined::default());
    world.ioas.protect(area, Prot::R).expect("it answers again");
    world.assert_reaches(1, 0x10_0000, 0, 3, 1);
    world.device.assert_clean();
}

#[test]
fn answers_to_nothing_do_not_keep_anybody() {
    let world = World::new(4);
    world.device.state().stray_count = 1000;
    world.map(0x10_0000, 0, 1, Prot::RW).expect("it is free");
    world.ioas.unmap_all().expect("nothing is in the way");
    assert!(world.device.state().stray_count > 0);
    world.assert_empty();
}
