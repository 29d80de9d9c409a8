//! What guests tell their SMMUs.

use iopt_formats::Level;
use iopt_formats::command::smmuv3::{Msi, Range, Signal, StreamSpan};
use iopt_formats::command::{CommandError, Narrow};

use super::*;
use crate::device::context::{GuestCommandError, GuestDeviceError, Refusal};

const CMD_SYNC: Command = Command::Sync {
    signal: Signal::None,
    msi: Msi::NONE,
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
        attach(device, None, &nest(&guest, [WORD_0, WORD_1 | EATS])).expect("it fits");
    }
    world.commands();
    (guest, devices)
}

#[test]
fn a_guests_commands_are_carried_out_in_the_hosts_names() {
    let world = World::new(FEATURES);
    // So that the VMID is none that a guest would name.
    let taken = world.smmu.vmids().allocate().expect("one is free");
    let (guest, _devices) = two_devices(&world, &stage2());
    let vmid = guest.vmid().expect("it is attached");
    assert_eq!(vmid, 2);
    let target = Target::single(Iova::new(0x7000), true);
    let substream = Pasid::new(3);
    let inv = |stream| Command::AtcInv {
        stream,
        substream,
        is_global: true,
        address: Iova::new(0x7000),
        span: AtcSpan::new(0).expect("one page"),
    };
    let cd = |stream| Command::CfgiCd {
        stream,
        substream: pasid(3),
        is_secure: false,
        is_leaf: true,
    };
    let (asid, named) = (77, 1);
    guest
        .invalidate(&[
            Command::TlbiNhVa {
                vmid: named,
                asid,
                target,
            },
            Command::TlbiNhVaa {
                vmid: named,
                target,
            },
            Command::TlbiNhAsid { vmid: named, asid },
            Command::TlbiNhAll { vmid: named },
            Command::TlbiNsnhAll,
            cd(1),
            cds_of(2),
            CMD_SYNC,
            inv(1),
            // It keeps no TLB.
            inv(2),
            CMD_SYNC,
        ])
        .expect("a guest may give them");
    assert_eq!(
        world.commands(),
        [
            Command::TlbiNhVa { vmid, asid, target },
            Command::TlbiNhVaa { vmid, target },
            Command::TlbiNhAsid { vmid, asid },
            Command::TlbiNhAll { vmid },
            Command::TlbiNhAll { vmid },
            cd(8),
            cd(12),
            cds_of(9),
            inv(8),
            inv(12),
        ]
    );
    drop(taken);
}

#[test]
fn a_command_that_is_not_the_guests_ends_the_list() {
    let world = World::new(FEATURES);
    let (guest, _devices) = two_devices(&world, &stage2());
    let vmid = guest.vmid().expect("it is attached");
    let fine = Command::TlbiNhAsid { vmid: 0, asid: 1 };
    let range = Range::new(Granule::Kib4, Narrow::MAX, 0, Some(Level::LEAF)).expect("legal");
    let target = Target {
        range: Some(range),
        ..Target::single(Iova::new(0), true)
    };
    let device = Refusal::Device { id: 8 };
    let illegal = Refusal::Illegal(CommandError::ReservedValue {
        field: "TG",
        value: 1,
    });
    let secure = Command::CfgiCdAll {
        stream: 1,
        is_secure: true,
    };
    let whole = Command::CfgiSteRange {
        stream: 0,
        span: StreamSpan::ALL,
        is_secure: false,
    };
    let entry = Command::CfgiSte {
        stream: 1,
        is_secure: false,
        is_leaf: true,
    };
    let retry = Command::Resume {
        stream: 1,
        is_secure: false,
        stag: 0,
        is_retry: true,
        is_abort: false,
    };
    let cases = [
        (Command::TlbiS12Vmall { vmid: 0 }, Refusal::Forbidden),
        (s2_ipa(0), Refusal::Forbidden),
        (Command::TlbiEl2All, Refusal::Forbidden),
        (Command::TlbiSnhAll, Refusal::Forbidden),
        (secure, Refusal::Forbidden),
        (whole, Refusal::Forbidden),
        (entry, Refusal::Forbidden),
        (retry, Refusal::Forbidden),
        (cds_of(8), device),
        (atc(8, 0, AtcSpan::ALL), device),
        (Command::TlbiNhVaa { vmid: 0, target }, illegal),
    ];
    for (command, refusal) in cases {
        for index in [0, 2, 3] {
            let mut commands = vec![fine; 4];
            commands.insert(index, command);
            if index == 3 {
                commands[1] = CMD_SYNC;
            }
            let refused = guest.invalidate(&commands);
            assert_eq!(refused, Err(GuestCommandError { index, refusal }));
            let own = Command::TlbiNhAsid { vmid, asid: 1 };
            let count = if index == 3 { 2 } else { index };
            assert_eq!(world.commands(), vec![own; count]);
        }
    }
    assert_eq!(guest.invalidate(&[]), Ok(()));
    assert_eq!(world.commands(), []);
}

#[test]
fn commands_about_what_is_not_attached_have_nothing_to_do() {
    let world = World::new(FEATURES);
    let parent = stage2();
    let (guest, devices) = two_devices(&world, &parent);
    let vmid = guest.vmid().expect("it is attached");
    let commands = [
        Command::TlbiNhAll { vmid: 0 },
        cds_of(1),
        cds_of(2),
        atc(1, 0, AtcSpan::ALL),
    ];
    let carried_out = || {
        guest.invalidate(&commands).expect("a guest may give them");
        world.commands()
    };
    // To the host again, with ATS.
    attach(&devices[0], None, &stage1()).expect("it fits");
    world.commands();
    assert_eq!(carried_out(), [Command::TlbiNhAll { vmid }, cds_of(9)]);
    attach(&devices[1], None, &nest(&guest, [1 | 4 << 1, 0])).expect("it fits");
    world.commands();
    assert_eq!(carried_out(), [Command::TlbiNhAll { vmid }]);
    devices[1].block(None);
    world.commands();
    assert_eq!(carried_out(), []);
    // The VMID is another's now.
    let other = super::guest(&world, &parent);
    attach(&devices[1], None, &nest(&other, [WORD_0, WORD_1])).expect("it fits");
    assert_eq!(other.vmid(), Some(vmid));
    world.commands();
    let tlbs = guest.invalidate(&commands[..1]);
    assert_eq!((tlbs, world.commands()), (Ok(()), Vec::new()));
}

#[test]
fn hardware_that_does_not_answer_ends_the_list_where_it_fell_silent() {
    let world = World::new(FEATURES);
    let (guest, _devices) = two_devices(&world, &stage2());
    let all = Command::TlbiNhAll { vmid: 0 };
    world.smmu.instance().queue().device().fall_silent_after(1);
    let refused = guest.invalidate(&[all, CMD_SYNC, all, all, CMD_SYNC, Command::TlbiEl2All]);
    let Err(GuestCommandError { index, refusal }) = refused else {
        panic!("it is silent");
    };
    assert!(index == 2 && matches!(refusal, Refusal::Hardware(_)));
    world.silence(false);
}

#[test]
fn a_device_has_one_name_in_a_guest() {
    let world = World::new(FEATURES);
    let (guest, _devices) = two_devices(&world, &stage2());
    assert_eq!(guest.add_device(1, &[9]), Err(GuestDeviceError::Taken));
    assert_eq!(guest.add_device(3, &[12]), Err(GuestDeviceError::Taken));
    assert_eq!(
        guest.add_device(3, &[0x1_0000]),
        Err(GuestDeviceError::Unknown { id: 0x1_0000 })
    );
    assert!(guest.remove_device(1) && !guest.remove_device(1));
    let refused = guest.invalidate(&[cds_of(1)]);
    let refusal = Refusal::Device { id: 1 };
    assert_eq!(refused, Err(GuestCommandError { index: 0, refusal }));
    assert_eq!(guest.add_device(3, &[]), Err(GuestDeviceError::Nameless));
    // What is given twice is told once.
    assert_eq!(guest.add_device(3, &[12, 8, 12]), Ok(()));
    assert_eq!(world.commands(), []);
    guest.invalidate(&[cds_of(3)]).expect("it is there");
    assert_eq!(world.commands(), [cds_of(12), cds_of(8)]);
}

/// Hardware may take it for an error, which stops the queue of all.
#[test]
fn names_that_hardware_has_no_bits_for_are_refused() {
    let illegal = |field, value| {
        Err(Refusal::Illegal(CommandError::ReservedValue {
            field,
            value,
        }))
    };
    let by_asid = |asid| Command::TlbiNhAsid { vmid: 0, asid };
    let by_address = |asid| Command::TlbiNhVa {
        vmid: 0,
        asid,
        target: Target::single(Iova::new(0), true),
    };
    let cd = |substream| Command::CfgiCd {
        stream: 1,
        substream: pasid(substream),
        is_secure: false,
        is_leaf: true,
    };
    let inv = |substream| Command::AtcInv {
        stream: 1,
        substream: Some(pasid(substream)),
        is_global: false,
        address: Iova::new(0),
        span: AtcSpan::ALL,
    };
    for has_wide_asids in [false, true] {
        for substream_bits in [0, 5] {
            let world = World::new(Features {
                substream_bits,
                has_wide_asids,
                ..FEATURES
            });
            let guest = guest(&world, &stage2());
            guest.add_device(1, &[8]).expect_err("it is not linked");
            let _device = world.device(&[8], true, 0);
            guest.add_device(1, &[8]).expect("it is free");
            let give = |command| {
                let given = guest.invalidate(&[command]);
                given.map_err(|error| error.refusal)
            };
            for command in [by_asid, by_address] {
                assert_eq!(give(command(0xff)), Ok(()));
                let refused = if has_wide_asids {
                    Ok(())
                } else {
                    illegal("ASID", 0x100)
                };
                assert_eq!(give(command(0x100)), refused);
            }
            let refusal = |value| illegal("SubstreamID", value);
            let has_any = substream_bits > 0;
            assert_eq!(give(cd(0)), Ok(()));
            assert_eq!(give(cd(31)), if has_any { Ok(()) } else { refusal(31) });
            assert_eq!(give(cd(32)), refusal(32));
            assert_eq!(give(inv(0)), if has_any { Ok(()) } else { refusal(0) });
            assert_eq!(give(inv(31)), if has_any { Ok(()) } else { refusal(31) });
            assert_eq!(give(inv(32)), refusal(32));
        }
    }
}
