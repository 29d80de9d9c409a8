use super::*;
use crate::command::testing::Numbers;
use crate::{PageSize, PageSizes};

fn range_of(start: u64, last: u64) -> IovaRange {
    IovaRange::new(Iova::new(start), Iova::new(last)).expect("start is not above last")
}

const READ_WRITE: Access = Access {
    is_readable: true,
    is_writable: true,
    is_mmio: false,
};

/// A request and its bytes: each line one field of the structures in section 5.13.6.
fn vectors() -> [(Request, &'static [u8]); 7] {
    let attach = |is_bypass| Request::Attach {
        domain: 0x0403_0201,
        endpoint: 0x0807_0605,
        is_bypass,
    };
    let range = range_of(0x1122_3344_5566_7000, 0x1122_3344_5566_7fff);
    let map = |access| Request::Map {
        domain: 0x0403_0201,
        range,
        oa: Oa::new(0x0a0b_0c0d_0e0f_1000),
        access,
    };
    [
        (
            attach(false),
            &[
                1, 0, 0, 0, // type, reserved
                1, 2, 3, 4, // domain
                5, 6, 7, 8, // endpoint
                0, 0, 0, 0, // flags
                0, 0, 0, 0, // reserved
            ],
        ),
        (
            attach(true),
            &[
                1, 0, 0, 0, //
                1, 2, 3, 4, //
                5, 6, 7, 8, //
                1, 0, 0, 0, // flags: BYPASS
                0, 0, 0, 0, //
            ],
        ),
        (
            Request::Detach {
                domain: 0x0403_0201,
                endpoint: 0x0807_0605,
            },
            &[
                2, 0, 0, 0, // type, reserved
                1, 2, 3, 4, // domain
                5, 6, 7, 8, // endpoint
                0, 0, 0, 0, 0, 0, 0, 0, // reserved
            ],
        ),
        (
            map(READ_WRITE),
            &[
                3, 0, 0, 0, // type, reserved
                1, 2, 3, 4, // domain
                0x00, 0x70, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11, // virt_start
                0xff, 0x7f, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11, // virt_end
                0x00, 0x10, 0x0f, 0x0e, 0x0d, 0x0c, 0x0b, 0x0a, // phys_start
                3, 0, 0, 0, // flags: READ, WRITE
            ],
        ),
        (
            map(Access {
                is_readable: false,
                is_writable: true,
                is_mmio: true,
            }),
            &[
                3, 0, 0, 0, //
                1, 2, 3, 4, //
                0x00, 0x70, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11, //
                0xff, 0x7f, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11, //
                0x00, 0x10, 0x0f, 0x0e, 0x0d, 0x0c, 0x0b, 0x0a, //
                6, 0, 0, 0, // flags: WRITE, MMIO
            ],
        ),
        (
            Request::Unmap {
                domain: 0x0403_0201,
                range,
            },
            &[
                4, 0, 0, 0, // type, reserved
                1, 2, 3, 4, // domain
                0x00, 0x70, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11, // virt_start
                0xff, 0x7f, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11, // virt_end
                0, 0, 0, 0, // reserved
            ],
        ),
        (
            Request::Probe {
                endpoint: 0x0807_0605,
            },
            &[
                5, 0, 0, 0, // type, reserved
                5, 6, 7, 8, // endpoint
                0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, // reserved
                0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, //
                0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, //
                0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, //
            ],
        ),
    ]
}

/// A3.17: requests.
#[test]
fn every_request_has_the_bytes_of_the_specification() {
    for (request, bytes) in vectors() {
        assert_eq!(request.encode().as_slice(), bytes, "{request:x?}");
        assert_eq!(Request::decode(bytes), Ok(request));
        assert_eq!(request.read_len(), bytes.len());
    }
}

#[test]
fn a_request_has_the_lengths_of_the_specification() {
    let lens = vectors().map(|(request, _)| (request.read_len(), request.written_len(0x200)));
    assert_eq!(
        lens,
        [
            (20, 4),
            (20, 4),
            (20, 4),
            (36, 4),
            (36, 4),
            (28, 4),
            (72, 0x204)
        ]
    );
}

#[test]
fn a_short_request_is_refused_whatever_is_missing() {
    for (_, bytes) in vectors() {
        for len in 0..bytes.len() {
            let needed = if len < 4 { 4 } else { bytes.len() };
            let error = CommandError::TooShort { len, needed };
            assert_eq!(Request::decode(&bytes[..len]), Err(error));
        }
    }
}

#[test]
fn bytes_behind_a_request_are_not_looked_at() {
    for (request, bytes) in vectors() {
        let mut longer = [0xff; 128];
        longer[..bytes.len()].copy_from_slice(bytes);
        assert_eq!(Request::decode(&longer), Ok(request));
    }
}

#[test]
fn an_unknown_type_is_refused() {
    for opcode in (0..=255).filter(|opcode| !(1..=5).contains(opcode)) {
        let mut bytes = [0; 72];
        bytes[0] = opcode;
        let error = CommandError::UnknownOpcode {
            opcode: opcode.into(),
        };
        assert_eq!(Request::decode(&bytes), Err(error));
        assert_eq!(Request::decode(&bytes[..4]), Err(error));
    }
}

#[test]
fn reserved_fields_must_be_zero() {
    // Of each request above, the bytes that are reserved.
    let reserved: [&[usize]; 7] = [
        &[1, 2, 3, 13, 14, 15, 16, 17, 18, 19],
        &[1, 2, 3, 13, 14, 15, 16, 17, 18, 19],
        &[1, 2, 3, 12, 13, 14, 15, 16, 17, 18, 19],
        &[1, 2, 3, 33, 34, 35],
        &[1, 2, 3, 33, 34, 35],
        &[1, 2, 3, 24, 25, 26, 27],
        &[1, 2, 3, 8, 16, 24, 32, 40, 48, 56, 64, 71],
    ];
    for ((_, bytes), reserved) in vectors().into_iter().zip(reserved) {
        for &at in reserved {
            let mut changed = [0; 72];
            changed[..bytes.len()].copy_from_slice(bytes);
            changed[at] |= 0x80;
            let error = CommandError::ReservedBits {
                word: (at / 8) as u8,
                bits: 0x80 << (at % 8 * 8),
            };
            assert_eq!(Request::decode(&changed), Err(error), "byte {at}");
        }
    }
    // Flags that do not exist beside those that do.
    let mut map = [0; 36];
    map[..4].copy_from_slice(&[3, 0, 0, 0]);
    map[32] = 0x0f;
    let error = CommandError::ReservedBits { word: 4, bits: 8 };
    assert_eq!(Request::decode(&map), Err(error));
}

#[test]
fn a_range_that_ends_before_it_starts_is_refused() {
    for opcode in [3, 4] {
        let mut bytes = [0; 36];
        bytes[0] = opcode;
        bytes[9] = 0x10;
        let error = CommandError::ReservedValue {
            field: "virt_end",
            value: 0,
        };
        assert_eq!(Request::decode(&bytes), Err(error));
        bytes[17] = 0x10;
        assert!(Request::decode(&bytes).is_ok());
    }
}

#[test]
fn requests_survive_their_bytes_and_bytes_their_requests() {
    let mut numbers = Numbers::new(5);
    let mut decoded = 0;
    for _ in 0..50_000 {
        let mut bytes: [u8; 72] = [0; 72];
        for byte in &mut bytes {
            // Many zeroes, or hardly anything is a request.
            if numbers.below(16) == 0 {
                *byte = numbers.next() as u8;
            }
        }
        bytes[0] = numbers.below(6) as u8;
        if let Ok(request) = Request::decode(&bytes) {
            let encoded = request.encode();
            assert_eq!(encoded.as_slice(), &bytes[..request.read_len()]);
            assert_eq!(Request::decode(encoded.as_slice()), Ok(request));
            decoded += 1;
        }
    }
    assert!(decoded > 1000, "only {decoded} were requests");
}

#[test]
fn every_status_has_its_number() {
    let all = [
        Status::Ok,
        Status::IoError,
        Status::Unsupported,
        Status::DeviceError,
        Status::Invalid,
        Status::Range,
        Status::NoEntry,
        Status::Fault,
        Status::NoMemory,
    ];
    for (number, status) in (0..).zip(all) {
        assert_eq!(status.encode(), [number, 0, 0, 0]);
        assert_eq!(Status::decode([number, 1, 2, 3]), Ok(status));
    }
    let error = CommandError::ReservedValue {
        field: "status",
        value: 9,
    };
    assert_eq!(Status::decode([9, 0, 0, 0]), Err(error));
}

/// A3.17: the fault.
#[test]
fn a_fault_has_the_bytes_of_the_specification() {
    let fault = Fault {
        reason: FaultReason::Mapping,
        is_read: false,
        is_write: true,
        endpoint: 0x0807_0605,
        address: Some(Iova::new(0x1122_3344_5566_7788)),
    };
    let bytes = [
        2, 0, 0, 0, // reason, reserved
        2, 1, 0, 0, // flags: WRITE, ADDRESS
        5, 6, 7, 8, // endpoint
        0, 0, 0, 0, // reserved
        0x88, 0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11, // address
    ];
    assert_eq!(fault.encode(), bytes);
    assert_eq!(Fault::decode(&bytes), Ok(fault));
    let unknown = Fault {
        reason: FaultReason::Domain,
        is_read: true,
        is_write: false,
        endpoint: 1,
        address: None,
    };
    let mut bytes_of_unknown = [0; 24];
    bytes_of_unknown[..9].copy_from_slice(&[1, 0, 0, 0, 1, 0, 0, 0, 1]);
    assert_eq!(unknown.encode(), bytes_of_unknown);
    assert_eq!(Fault::decode(&bytes_of_unknown), Ok(unknown));

    for at in [1, 2, 3, 4, 5, 6, 7, 12, 15, 16, 23] {
        let mut changed = bytes_of_unknown;
        changed[at] ^= 0x80;
        let error = CommandError::ReservedBits {
            word: (at / 8) as u8,
            bits: 0x80 << (at % 8 * 8),
        };
        assert_eq!(Fault::decode(&changed), Err(error), "byte {at}");
    }
    let mut changed = bytes;
    changed[0] = 3;
    let error = CommandError::ReservedValue {
        field: "reason",
        value: 3,
    };
    assert_eq!(Fault::decode(&changed), Err(error));
    let error = CommandError::TooShort {
        len: 23,
        needed: 24,
    };
    assert_eq!(Fault::decode(&bytes[..23]), Err(error));
}

/// Both subtypes of reserved memory.
const PROPERTIES: [[u8; 24]; 2] = [
    [
        1, 0, 20, 0, // type, length
        0, 0, 0, 0, // subtype RESERVED, reserved
        0x00, 0x70, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11, // start
        0xff, 0x7f, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11, // end
    ],
    [
        1, 0, 20, 0, //
        1, 0, 0, 0, // subtype MSI
        0x00, 0x00, 0xe0, 0xfe, 0, 0, 0, 0, //
        0xff, 0xff, 0xef, 0xfe, 0, 0, 0, 0, //
    ],
];

fn properties() -> [Property; 2] {
    [
        Property::ReservedMemory {
            subtype: ReservedMemory::Reserved,
            range: range_of(0x1122_3344_5566_7000, 0x1122_3344_5566_7fff),
        },
        Property::ReservedMemory {
            subtype: ReservedMemory::Msi,
            range: range_of(0xfee0_0000, 0xfeef_ffff),
        },
    ]
}

/// A3.17: properties that a probe finds.
#[test]
fn properties_have_the_bytes_of_the_specification() {
    for (property, bytes) in properties().into_iter().zip(PROPERTIES) {
        assert_eq!(property.encode(), bytes);
        assert!(Properties::new(&bytes).eq([Ok(property)]));
    }
    // Zeroes, a type of nothing, end the list before its buffer does.
    let mut both = [0; 64];
    both[..24].copy_from_slice(&PROPERTIES[0]);
    both[24..48].copy_from_slice(&PROPERTIES[1]);
    assert!(Properties::new(&both).eq(properties().map(Ok)));
    assert!(Properties::new(&both[..48]).eq(properties().map(Ok)));
    assert!(Properties::new(&[]).eq([]));
    assert!(Properties::new(&[0; 8]).eq([]));
}

#[test]
fn properties_of_unknown_types_are_skipped() {
    let mut bytes = [0; 24 + 7 + 24];
    // RESV_MEM with a bit of the upper four set is none.
    bytes[..24].copy_from_slice(&PROPERTIES[0]);
    bytes[1] = 0x10;
    bytes[24..31].copy_from_slice(&[0xff, 0x0f, 3, 0, 9, 9, 9]);
    bytes[31..].copy_from_slice(&PROPERTIES[1]);
    let [_, msi] = properties();
    assert!(Properties::new(&bytes).eq([Ok(msi)]));
    // An unknown subtype is addresses that do not arrive.
    let mut other = PROPERTIES[0];
    other[4] = 7;
    let [reserved, _] = properties();
    assert!(Properties::new(&other).eq([Ok(reserved)]));
}

#[test]
fn a_malformed_property_ends_the_list() {
    let too_long = CommandError::TooShort {
        len: 24,
        needed: 25,
    };
    let mut bytes = PROPERTIES[0];
    bytes[2] = 21;
    assert!(Properties::new(&bytes).eq([Err(too_long)]));
    let mut bytes = [0; 48];
    bytes[..24].copy_from_slice(&PROPERTIES[0]);
    bytes[24..].copy_from_slice(&PROPERTIES[1]);
    bytes[2] = 19;
    let too_short = CommandError::TooShort {
        len: 23,
        needed: 24,
    };
    assert!(Properties::new(&bytes).eq([Err(too_short)]));
    let mut bytes = PROPERTIES[0];
    bytes[17] = 0;
    let backwards = CommandError::ReservedValue {
        field: "end",
        value: 0x1122_3344_5566_00ff,
    };
    assert!(Properties::new(&bytes).eq([Err(backwards)]));
}

#[test]
fn the_configuration_has_the_bytes_of_the_specification() {
    let config = Config {
        page_sizes: PageSizes::EMPTY.with(PageSize::KIB_4).with(PageSize::MIB_2),
        input_range: range_of(0x1000, 0xffff_ffff_ffff),
        first_domain: 1,
        last_domain: 0x0001_0000,
        probe_size: 0x200,
        is_bypass: true,
    };
    let bytes = [
        0x00, 0x10, 0x20, 0, 0, 0, 0, 0, // page_size_mask
        0x00, 0x10, 0, 0, 0, 0, 0, 0, // input_range.start
        0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0, // input_range.end
        1, 0, 0, 0, // domain_range.start
        0, 0, 1, 0, // domain_range.end
        0, 2, 0, 0, // probe_size
        1, // bypass
        0, 0, 0, // reserved
    ];
    assert_eq!(config.encode(), bytes);
    assert_eq!(Config::decode(&bytes), Ok(config));
    let refused = |at: usize, byte, field, value| {
        let mut changed = bytes;
        changed[at] = byte;
        changed[2] &= !if at == 1 { 0x20 } else { 0 };
        let error = CommandError::ReservedValue { field, value };
        assert_eq!(Config::decode(&changed), Err(error));
    };
    refused(1, 0, "page_size_mask", 0);
    refused(15, 1, "input_range.end", 0xffff_ffff_ffff);
    refused(27, 1, "domain_range.end", 0x0001_0000);
    refused(36, 2, "bypass", 2);
}
