//! What guests tell their IOMMUs.

use iopt_formats::command::CommandError;
use iopt_formats::command::PageResponse;

use super::*;
use crate::device::context::{GuestCommandError, GuestDeviceError, Refusal};

const FENCE: Command = Command::IofenceC {
    store: None,
    has_interrupt: false,
    has_read_order: false,
    has_write_order: false,
};

/// A guest with two devices, which it calls 1 and 2; one has ATS.
fn two_devices(world: &World, parent: &Arc<Domain>) -> (Guest, [Device; 2]) {
    let guest = guest(world, parent);
    let devices = [
        world.device(&[8, 12], true, 5),
        world.device(&[9], false, 5),
    ];
    guest.add_device(1, &[8, 12]).expect("it is free");
    guest.add_device(2, &[9]).expect("it is free");
    for device in &devices {
        attach(device, None, &nest(&guest, WITH_ATS)).expect("it fits");
    }
    world.commands();
    (guest, devices)
}

/// As a guest says it, which has no second stage.
fn page_of(gscid: Option<u16>, pscid: u32) -> Command {
    Command::IotinvalVma {
        gscid,
        pscid: Narrow::new(pscid),
        target: Some(Target {
            span: span(0x7000),
            is_leaf: true,
        }),
    }
}

fn process(id: u32) -> Command {
    Command::IodirInvalPdt {
        device: Narrow::new(id).expect("24 bits"),
        process: pasid(3),
    }
}

/// A world whose IOMMU has ATS commands, as its queue knows.
fn world_with_ats() -> World {
    let mut planner = Planner::default();
    planner.features.has_ats = true;
    World {
        unit: RiscvIommu::new(FEATURES, Arc::new(Heap), Recorder::instance_of(planner))
            .expect("memory"),
        switches: Arc::new(Switches(Mutex::new(&LOG, Vec::new()))),
    }
}

#[test]
fn a_guests_commands_are_carried_out_in_the_hosts_names() {
    let world = world_with_ats();
    // So that the GSCID is none that comes first.
    let taken = world.unit.gscids().allocate().expect("one is free");
    let (guest, _devices) = two_devices(&world, &second());
    let gscid = guest.gscid().expect("it is attached");
    assert_eq!(gscid, 2);
    let all = Command::IotinvalVma {
        gscid: None,
        pscid: None,
        target: None,
    };
    let everything = Command::IodirInvalDdt { device: None };
    let three = Pasid::new(3);
    guest
        .invalidate(&[
            page_of(None, 77),
            all,
            forget(1),
            everything,
            process(2),
            FENCE,
            tlb(1, three, span(0x7000)),
            // It keeps no TLB.
            tlb(2, three, span(0x7000)),
            FENCE,
        ])
        .expect("a guest may give them");
    assert_eq!(
        world.commands(),
        [
            page_of(Some(gscid), 77),
            vma(gscid),
            forget(8),
            forget(12),
            forget(8),
            forget(12),
            forget(9),
            process(9),
            tlb(8, three, span(0x7000)),
            tlb(12, three, span(0x7000)),
        ]
    );
    drop(taken);
}

#[test]
fn a_command_that_is_not_the_guests_ends_the_list() {
    let world = world_with_ats();
    let (guest, _devices) = two_devices(&world, &second());
    let gscid = guest.gscid();
    let fine = page_of(None, 1);
    let device = Refusal::Device { id: 8 };
    let range = Command::IotinvalVma {
        gscid: None,
        pscid: None,
        target: Some(Target {
            span: Span::new(0, 3).expect("8 pages"),
            is_leaf: true,
        }),
    };
    let answer = Command::AtsPrgr {
        function: function(1),
        pasid: None,
        group: Narrow::MAX,
        response: PageResponse::Success,
    };
    let segment = Function {
        segment: Some(1),
        requester: 1,
    };
    let elsewhere = Command::AtsInval {
        function: segment,
        pasid: None,
        is_global: false,
        span: Span::ALL,
    };
    let illegal = CommandError::ReservedBits {
        word: 1,
        bits: 1 << 9,
    };
    for (command, refusal) in [
        (page_of(Some(1), 1), Refusal::Forbidden),
        (gvma(1), Refusal::Forbidden),
        (answer, Refusal::Forbidden),
        (forget(8), device),
        (process(8), device),
        (tlb(8, None, Span::ALL), device),
        (elsewhere, Refusal::Device { id: 0x1_0001 }),
        (range, Refusal::Illegal(illegal)),
    ] {
        for index in [0, 2, 3] {
            let mut commands = vec![fine; 4];
            commands.insert(index, command);
            if index == 3 {
                commands[1] = FENCE;
            }
            let refused = guest.invalidate(&commands);
            assert_eq!(refused, Err(GuestCommandError { index, refusal }));
            let count = if index == 3 { 2 } else { index };
            assert_eq!(world.commands(), vec![page_of(gscid, 1); count]);
        }
    }
    // Without ATS no such command is legal.
    let plain = World::new(FEATURES);
    let (guest, _devices) = two_devices(&plain, &second());
    let refused = guest.invalidate(&[tlb(1, None, Span::ALL)]);
    assert!(matches!(
        refused,
        Err(GuestCommandError {
            refusal: Refusal::Illegal(_),
            ..
        })
    ));
    assert_eq!(guest.invalidate(&[]), Ok(()));
}

#[test]
fn commands_about_what_is_not_attached_have_nothing_to_do() {
    let world = world_with_ats();
    let parent = second();
    let (guest, devices) = two_devices(&world, &parent);
    let gscid = guest.gscid();
    let commands = [
        page_of(None, 1),
        forget(1),
        process(2),
        tlb(1, None, Span::ALL),
    ];
    let carried_out = || {
        guest.invalidate(&commands).expect("a guest may give them");
        world.commands()
    };
    // To the host again, with ATS.
    attach(&devices[0], None, &first()).expect("it fits");
    world.commands();
    assert_eq!(carried_out(), [page_of(gscid, 1), process(9)]);
    attach(&devices[1], None, &nest(&guest, PASSES)).expect("it fits");
    world.commands();
    assert_eq!(carried_out(), [page_of(gscid, 1)]);
    devices[1].block(None);
    world.commands();
    assert_eq!(carried_out(), []);
    // The GSCID is another guest's now.
    let other = super::guest(&world, &parent);
    attach(&devices[1], None, &nest(&other, TABLES)).expect("it fits");
    assert_eq!(other.gscid(), gscid);
    world.commands();
    let tlbs = guest.invalidate(&commands[..1]);
    assert_eq!((tlbs, world.commands()), (Ok(()), Vec::new()));
}

#[test]
fn hardware_that_does_not_answer_ends_the_list_where_it_fell_silent() {
    let world = World::new(FEATURES);
    let (guest, _devices) = two_devices(&world, &second());
    let one = page_of(None, 1);
    world.unit.instance().queue().device().fall_silent_after(1);
    let refused = guest.invalidate(&[one, FENCE, one, one, FENCE, gvma(1)]);
    let Err(GuestCommandError { index, refusal }) = refused else {
        panic!("it is silent");
    };
    assert!(index == 2 && matches!(refusal, Refusal::Hardware(_)));
    world.silence(false);
}

#[test]
fn a_device_has_one_name_in_a_guest() {
    let world = World::new(FEATURES);
    let (guest, _devices) = two_devices(&world, &second());
    assert_eq!(guest.add_device(1, &[9]), Err(GuestDeviceError::Taken));
    assert_eq!(guest.add_device(3, &[12]), Err(GuestDeviceError::Taken));
    assert_eq!(
        guest.add_device(3, &[0x8000]),
        Err(GuestDeviceError::Unknown { id: 0x8000 })
    );
    assert!(guest.remove_device(1) && !guest.remove_device(1));
    let refused = guest.invalidate(&[forget(1)]);
    let refusal = Refusal::Device { id: 1 };
    assert_eq!(refused, Err(GuestCommandError { index: 0, refusal }));
    assert_eq!(guest.add_device(3, &[12, 8]), Ok(()));
    assert_eq!(world.commands(), []);
    guest.invalidate(&[forget(3)]).expect("it is there");
    assert_eq!(world.commands(), [forget(12), forget(8)]);
}
