use super::*;
use crate::command::testing::{Numbers, check_words};

const PASID_ABCDE: Option<Pasid> = Pasid::new(0xa_bcde);

fn span(address: u64, order: u8) -> Span {
    Span::new(address, order).expect("a valid order")
}

/// Commands and their words, put together from the figures of section 2.4.
fn vectors() -> [(Command, [u64; 2]); 16] {
    let wait = |store, has_interrupt, is_fence| Command::CompletionWait {
        store,
        has_interrupt,
        is_fence,
    };
    let pages = |pasid, has_tables, span| Command::InvalidatePages {
        domain_id: 0x1234,
        pasid,
        has_tables,
        span,
    };
    let iotlb = |pasid, span| Command::InvalidateIotlbPages {
        device_id: 0xabcd,
        max_pending: 0x20,
        queue_id: 0x1238,
        pasid,
        span,
    };
    let prefetch = |pasid, invalidates, span| Command::PrefetchPages {
        device_id: 0xabcd,
        count: 0xfe,
        pasid,
        invalidates,
        span,
    };
    let complete = |pasid, tag| Command::CompletePageRequest {
        device_id: 0xabcd,
        pasid,
        tag,
    };
    let store = Store {
        address: 0x000f_edcb_a987_6548,
        data: 0x0123_4567_89ab_cdef,
    };
    [
        (
            wait(Some(store), false, false),
            [0x100f_edcb_a987_6549, 0x0123_4567_89ab_cdef],
        ),
        (wait(None, true, true), [0x1000_0000_0000_0006, 0]),
        (
            Command::InvalidateDeviceTableEntry { device_id: 0xabcd },
            [0x2000_0000_0000_abcd, 0],
        ),
        (
            pages(None, false, span(0x1234_5000, 0)),
            [0x3000_1234_0000_0000, 0x1234_5000],
        ),
        (
            pages(None, true, span(0x20_0000, 9)),
            [0x3000_1234_0000_0000, 0x002f_f003],
        ),
        (
            pages(PASID_ABCDE, false, span(0xffff_8000_0000_0000, 1)),
            [0x3000_1234_000a_bcde, 0xffff_8000_0000_0005],
        ),
        // The address that drivers send for everything.
        (
            pages(None, true, Span::ALL),
            [0x3000_1234_0000_0000, 0x7fff_ffff_ffff_f003],
        ),
        (
            pages(Pasid::new(0), true, Span::ALL),
            [0x3000_1234_0000_0000, 0x7fff_ffff_ffff_f007],
        ),
        (
            iotlb(None, span(0x1234_4000, 2)),
            [0x4000_1238_2000_abcd, 0x1234_5001],
        ),
        (
            iotlb(PASID_ABCDE, span(0x1000, 0)),
            [0x4ade_1238_20bc_abcd, 0x1004],
        ),
        (
            Command::InvalidateInterruptTable { device_id: 0xabcd },
            [0x5000_0000_0000_abcd, 0],
        ),
        (
            prefetch(PASID_ABCDE, true, span(0x1000, 0)),
            [0x600a_bcde_fe00_abcd, 0x1014],
        ),
        (
            prefetch(None, false, span(0x2000, 1)),
            [0x6000_0000_fe00_abcd, 0x2001],
        ),
        (
            complete(PASID_ABCDE, 0xf1ff),
            [0x700a_bcde_0000_abcd, 0x0000_f1ff_0000_0004],
        ),
        (
            complete(None, 1),
            [0x7000_0000_0000_abcd, 0x0000_0001_0000_0000],
        ),
        (Command::InvalidateAll, [0x8000_0000_0000_0000, 0]),
    ]
}

#[test]
fn every_command_has_the_words_of_the_specification() {
    for (command, words) in vectors() {
        assert_eq!(command.encode(), words, "{command:x?}");
        assert_eq!(Command::decode(words), Ok(command));
    }
}

#[test]
fn words_that_decode_are_encoded_as_they_were() {
    for (command, words) in vectors() {
        let decoded = check_words(words, Command::decode, Command::encode);
        assert!(decoded > 0 || command == Command::InvalidateAll);
    }
    let mut numbers = Numbers::new(3);
    let mut decoded = 0;
    for _ in 0..200_000 {
        let sparse = numbers.next() & numbers.next() & numbers.next() & !OPCODE.mask();
        let low = sparse | OPCODE.put(numbers.below(16));
        let high = numbers.next() & numbers.next() & numbers.next() & numbers.next();
        let words = [low, if numbers.chance() { high & !0xff8 } else { 0 }];
        if let Ok(command) = Command::decode(words) {
            assert_eq!(command.encode(), words, "{command:x?}");
            decoded += 1;
        }
    }
    assert!(decoded > 1000, "only {decoded} words were commands");
}

#[test]
fn commands_survive_their_words() {
    let mut numbers = Numbers::new(4);
    for _ in 0..50_000 {
        let device_id = numbers.next() as u16;
        let pasid = numbers.chance().then_some(numbers.pasid());
        let span = numbers.span();
        let command = match numbers.below(8) {
            0 => Command::CompletionWait {
                store: numbers.chance().then_some(Store {
                    address: numbers.next() & 0x000f_ffff_ffff_fff8,
                    data: numbers.next(),
                }),
                has_interrupt: numbers.chance(),
                is_fence: numbers.chance(),
            },
            1 => Command::InvalidateDeviceTableEntry { device_id },
            2 => Command::InvalidatePages {
                domain_id: numbers.next() as u16,
                pasid,
                has_tables: numbers.chance(),
                span,
            },
            3 => Command::InvalidateIotlbPages {
                device_id,
                max_pending: numbers.next() as u8,
                queue_id: numbers.next() as u16,
                pasid,
                span,
            },
            4 => Command::InvalidateInterruptTable { device_id },
            5 => Command::PrefetchPages {
                device_id,
                count: numbers.next() as u8,
                pasid,
                invalidates: numbers.chance(),
                span,
            },
            6 => Command::CompletePageRequest {
                device_id,
                pasid,
                tag: numbers.next() as u16,
            },
            _ => Command::InvalidateAll,
        };
        assert_eq!(Command::decode(command.encode()), Ok(command));
    }
}

#[test]
fn words_that_the_specification_reserves_are_refused_by_name() {
    let bits = |word, bits| Err(CommandError::ReservedBits { word, bits });
    let value = |field, value| Err(CommandError::ReservedValue { field, value });
    let cases = [
        ([0, 0], Err(CommandError::UnknownOpcode { opcode: 0 })),
        (
            [0x9000_0000_0000_0000, 0],
            Err(CommandError::UnknownOpcode { opcode: 9 }),
        ),
        ([0x1010_0000_0000_0001, 0], bits(0, 1 << 52)),
        // An address and data, but nothing to store.
        ([0x1000_0000_0000_0008, 0], bits(0, 8)),
        ([0x1000_0000_0000_0000, 1], bits(1, 1)),
        ([0x2000_0000_0001_0000, 0], bits(0, 0x1_0000)),
        ([0x2000_0000_0000_0000, 1], bits(1, 1)),
        ([0x3000_0000_0010_0000, 4], bits(0, 0x10_0000)),
        ([0x3001_0000_0000_0000, 0], bits(0, 1 << 48)),
        ([0x3000_0000_0000_0000, 8], bits(1, 8)),
        // A PASID without GN.
        ([0x3000_0000_0000_0001, 0], bits(0, 1)),
        ([0x4001_0000_0000_0000, 0], bits(0, 1 << 48)),
        ([0x6000_0001_0000_0000, 0], bits(0, 1 << 32)),
        ([0x7000_0001_0000_0000, 0], bits(0, 1 << 32)),
        (
            [0x3000_0000_0000_0000, 0xffff_ffff_ffff_f001],
            value("Address", 0x000f_ffff_ffff_ffff),
        ),
        ([0x4000_0000_0000_0000, 2], bits(1, 2)),
        ([0x4000_0000_0000_0000, 0x10], value("Type", 1)),
        ([0x5000_0001_0000_0000, 0], bits(0, 1 << 32)),
        ([0x6000_0000_0001_0000, 0], bits(0, 0x1_0000)),
        ([0x6000_0000_0000_0000, 0x20], bits(1, 0x20)),
        ([0x7000_0000_0001_0000, 0], bits(0, 0x1_0000)),
        ([0x7000_0000_0000_0000, 1 << 48], bits(1, 1 << 48)),
        ([0x8000_0000_0000_0001, 0], bits(0, 1)),
        ([0x8000_0000_0000_0000, 1], bits(1, 1)),
    ];
    for (words, expected) in cases {
        assert_eq!(Command::decode(words), expected, "{words:x?}");
    }
}
