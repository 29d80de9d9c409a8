//! What guests tell their IOMMUs.

use super::*;
use crate::device::context::{GuestCommandError, GuestDeviceError, Refusal};

const WAIT: Command = Command::CompletionWait {
    store: None,
    has_interrupt: false,
    is_fence: false,
};

/// A guest with two devices, which it calls 1 and 2, and the domain IDs 77 and 78; one has ATS.
fn two_devices(world: &World, parent: &Arc<Domain>) -> (Guest, [Device; 2]) {
    let guest = guest_of(world, parent);
    let devices = [
        world.device(&[8, 12], true, 5),
        world.device(&[9], false, 5),
    ];
    guest.add_device(1, &[8, 12]).expect("it is free");
    guest.add_device(2, &[9]).expect("it is free");
    attach(&devices[0], None, &nest(&guest, WITH_ATS)).expect("it fits");
    let other = of_domain(WITH_ATS, 78);
    attach(&devices[1], None, &nest(&guest, other)).expect("it fits");
    world.commands();
    (guest, devices)
}

fn pages(domain_id: u16, pasid: Option<Pasid>) -> Command {
    Command::InvalidatePages {
        domain_id,
        pasid,
        has_tables: false,
        span: Span::new(0x7000, 0).expect("a page"),
    }
}

/// As a guest gives it, which knows nothing of the host's queues.
fn tlb(device_id: u16, pasid: Option<Pasid>) -> Command {
    Command::InvalidateIotlbPages {
        device_id,
        max_pending: 1,
        queue_id: 5,
        pasid,
        span: Span::new(0x7000, 0).expect("a page"),
    }
}

#[test]
fn a_guests_commands_are_carried_out_in_the_hosts_names() {
    let world = World::new(FEATURES);
    let (guest, _devices) = two_devices(&world, &host());
    assert_eq!(
        (guest.domain_id(77), guest.domain_id(78)),
        (Some(1), Some(2))
    );
    let (three, zero) = (Pasid::new(3), Pasid::new(0));
    guest
        .invalidate(&[
            pages(77, three),
            pages(78, zero),
            // The guest's own version 1 tables, which it has none of: an address that would be the parent's.
            pages(78, None),
            // Another domain of the guest, or none.
            pages(1, three),
            entry(1),
            entry(2),
            WAIT,
            tlb(1, three),
            tlb(1, None),
            // It keeps no TLB.
            tlb(2, three),
            WAIT,
            Command::InvalidateAll,
        ])
        .expect("a guest may give them");
    let at = Span::new(0x7000, 0).expect("a page");
    assert_eq!(
        world.commands(),
        [
            pages(1, three),
            pages(2, zero),
            whole(2),
            entry(8),
            entry(12),
            entry(9),
            device_tlb(8, three, at),
            device_tlb(12, three, at),
            device_tlb(8, None, at),
            device_tlb(12, None, at),
            entry(8),
            entry(12),
            entry(9),
            whole(1),
            whole(2),
        ]
    );
}

#[test]
fn a_command_that_is_not_the_guests_ends_the_list() {
    let world = World::new(FEATURES);
    let (guest, _devices) = two_devices(&world, &host());
    let fine = pages(77, Pasid::new(3));
    let device = Refusal::Device { id: 8 };
    let prefetch = Command::PrefetchPages {
        device_id: 1,
        count: 1,
        pasid: None,
        invalidates: true,
        span: Span::ALL,
    };
    let answer = Command::CompletePageRequest {
        device_id: 1,
        pasid: None,
        tag: 0,
    };
    let interrupts = Command::InvalidateInterruptTable { device_id: 1 };
    for (command, refusal) in [
        (prefetch, Refusal::Forbidden),
        (answer, Refusal::Forbidden),
        (interrupts, Refusal::Forbidden),
        (entry(8), device),
        (tlb(8, None), device),
    ] {
        for index in [0, 2, 3] {
            let mut commands = vec![fine; 4];
            commands.insert(index, command);
            if index == 3 {
                commands[1] = WAIT;
            }
            let refused = guest.invalidate(&commands);
            assert_eq!(refused, Err(GuestCommandError { index, refusal }));
            let count = if index == 3 { 2 } else { index };
            assert_eq!(world.commands(), vec![pages(1, Pasid::new(3)); count]);
        }
    }
    assert_eq!(guest.invalidate(&[]), Ok(()));
    assert_eq!(world.commands(), []);
}

#[test]
fn commands_about_what_is_not_attached_have_nothing_to_do() {
    let world = World::new(FEATURES);
    let parent = host();
    let (guest, devices) = two_devices(&world, &parent);
    let three = Pasid::new(3);
    let commands = [
        pages(77, three),
        pages(78, three),
        entry(1),
        entry(2),
        tlb(1, three),
        Command::InvalidateAll,
    ];
    let carried_out = || {
        guest.invalidate(&commands).expect("a guest may give them");
        world.commands()
    };
    // To the host again, with ATS.
    attach(&devices[0], None, &super::guest()).expect("it fits");
    world.commands();
    assert_eq!(
        carried_out(),
        [pages(2, three), entry(9), entry(9), whole(2)]
    );
    // The parent's own device is not the guest's either.
    attach(&devices[0], None, &parent).expect("it fits");
    attach(&devices[1], None, &nest(&guest, of_domain(PASSES, 78))).expect("it fits");
    world.commands();
    assert_eq!(carried_out(), [pages(2, three), whole(2)]);
    devices[1].block(None);
    world.commands();
    assert_eq!(carried_out(), []);
    // The ID is another guest's now.
    let other = guest_of(&world, &parent);
    devices[0].block(None);
    let ids = [77, 78].map(|id| of_domain(TABLES, id));
    attach(&devices[0], None, &nest(&other, ids[0])).expect("it fits");
    attach(&devices[1], None, &nest(&other, ids[1])).expect("it fits");
    assert!(other.domain_id(77).is_some() && other.domain_id(78).is_some());
    world.commands();
    let tlbs = guest.invalidate(&commands[..2]);
    assert_eq!((tlbs, world.commands()), (Ok(()), Vec::new()));
}

#[test]
fn hardware_that_does_not_answer_ends_the_list_where_it_fell_silent() {
    let world = World::new(FEATURES);
    let (guest, _devices) = two_devices(&world, &host());
    let one = pages(77, None);
    world.queue().fall_silent_after(1);
    let interrupts = Command::InvalidateInterruptTable { device_id: 1 };
    let refused = guest.invalidate(&[one, WAIT, one, one, WAIT, interrupts]);
    let Err(GuestCommandError { index, refusal }) = refused else {
        panic!("it is silent");
    };
    assert!(index == 2 && matches!(refusal, Refusal::Hardware(_)));
    world.queue().set_silent(false);
}

#[test]
fn a_device_has_one_name_in_a_guest() {
    let world = World::new(FEATURES);
    let (guest, _devices) = two_devices(&world, &host());
    assert_eq!(guest.add_device(1, &[9]), Err(GuestDeviceError::Taken));
    assert_eq!(guest.add_device(3, &[12]), Err(GuestDeviceError::Taken));
    assert_eq!(
        guest.add_device(3, &[0x8000]),
        Err(GuestDeviceError::Unknown { id: 0x8000 })
    );
    assert!(guest.remove_device(1) && !guest.remove_device(1));
    let refused = guest.invalidate(&[entry(1)]);
    let refusal = Refusal::Device { id: 1 };
    assert_eq!(refused, Err(GuestCommandError { index: 0, refusal }));
    assert_eq!(guest.add_device(3, &[12, 8]), Ok(()));
    assert_eq!(world.commands(), []);
    guest.invalidate(&[entry(3)]).expect("it is there");
    assert_eq!(world.commands(), [entry(12), entry(8)]);
}
