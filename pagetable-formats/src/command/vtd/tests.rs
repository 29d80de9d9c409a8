use super::*;
use crate::command::testing::{Numbers, check_words};

const PASID_ABCDE: Pasid = Pasid::new(0xa_bcde).expect("20 bits");

fn span(address: u64, order: u8) -> Span {
    Span::new(address, order).expect("a valid order")
}

const fn device(queue_depth: u8) -> Device {
    Device {
        source_id: 0xabcd,
        physical_function: 0x1238,
        queue_depth: QueueDepth::new(queue_depth),
    }
}

/// Descriptors and their words, put together from the figures of section 6.5.2.
#[expect(clippy::too_many_lines, reason = "a table")]
fn vectors() -> [(Descriptor, [u64; 2]); 24] {
    let wait = |status, has_interrupt, is_fence, drains_page_requests| Descriptor::Wait {
        status,
        has_interrupt,
        is_fence,
        drains_page_requests,
    };
    let iotlb = |scope, drains_reads, drains_writes| Descriptor::Iotlb {
        scope,
        drains_reads,
        drains_writes,
    };
    let pasid_iotlb = |scope| Descriptor::PasidIotlb {
        domain_id: 0x12,
        pasid: PASID_ABCDE,
        scope,
    };
    let response = |pasid, response, group, is_last| Descriptor::PageGroupResponse {
        requester_id: 0xabcd,
        pasid,
        response,
        group: Narrow::new(group).expect("9 bits"),
        is_last,
        private_data: None,
    };
    let domain_id = 0x1234;
    let context = |scope| Descriptor::ContextCache { scope };
    let interrupts = |scope| Descriptor::InterruptEntryCache { scope };
    let pasid_cache = |scope| Descriptor::PasidCache { scope };
    let pasid_device = |queue_depth, pasids, span| Descriptor::PasidDeviceTlb {
        device: device(queue_depth),
        pasids,
        span,
    };
    [
        (context(ContextScope::Global), [0x11, 0]),
        (
            context(ContextScope::Domain { domain_id }),
            [0x1234_0021, 0],
        ),
        (
            context(ContextScope::Device {
                domain_id,
                source_id: 0xabcd,
                function_mask: Narrow::new(2).expect("2 bits"),
            }),
            [0x0002_abcd_1234_0031, 0],
        ),
        (iotlb(IotlbScope::Global, true, true), [0xd2, 0]),
        (iotlb(IotlbScope::Global, false, true), [0x52, 0]),
        (
            iotlb(IotlbScope::Domain { domain_id }, true, false),
            [0x1234_00a2, 0],
        ),
        (
            iotlb(
                IotlbScope::Pages {
                    domain_id,
                    span: span(0x4000_0000, 9),
                    is_leaf_only: true,
                },
                false,
                false,
            ),
            [0x1234_0032, 0x4000_0049],
        ),
        (
            Descriptor::DeviceTlb {
                device: device(5),
                span: span(0x1234_4000, 2),
            },
            [0x1230_abcd_0005_8003, 0x1234_5001],
        ),
        (
            Descriptor::DeviceTlb {
                device: device(32),
                span: span(0x1234_4000, 0),
            },
            [0x1230_abcd_0000_8003, 0x1234_4000],
        ),
        (interrupts(InterruptScope::Global), [0x4, 0]),
        (
            interrupts(InterruptScope::Entries {
                index: 0x1234,
                mask: Narrow::new(3).expect("5 bits"),
            }),
            [0x0000_1234_1800_0014, 0],
        ),
        (
            wait(
                Some(StatusWrite {
                    address: 0x0012_3456_7894,
                    data: 0xdead_beef,
                }),
                false,
                true,
                false,
            ),
            [0xdead_beef_0000_0065, 0x0012_3456_7894],
        ),
        (wait(None, true, false, true), [0x95, 0]),
        (
            pasid_iotlb(PasidIotlbScope::All),
            [0x000a_bcde_0012_0026, 0],
        ),
        (
            pasid_iotlb(PasidIotlbScope::Pages {
                span: span(0xffff_8000_0000_0000, 18),
                is_leaf_only: false,
            }),
            [0x000a_bcde_0012_0036, 0xffff_8000_0000_0012],
        ),
        (
            pasid_cache(PasidCacheScope::Domain { domain_id: 0x12 }),
            [0x0012_0007, 0],
        ),
        (
            pasid_cache(PasidCacheScope::Pasid {
                domain_id: 0x12,
                pasid: PASID_ABCDE,
            }),
            [0x000a_bcde_0012_0017, 0],
        ),
        (pasid_cache(PasidCacheScope::Global), [0x37, 0]),
        (
            pasid_device(200, PasidScope::One(PASID_ABCDE), Span::ALL),
            [0x123a_bcde_abcd_8008, 0x7fff_ffff_ffff_f800],
        ),
        (
            pasid_device(31, PasidScope::One(PASID_ABCDE), span(0x2000, 1)),
            [0x123a_bcde_abcd_81f8, 0x2800],
        ),
        (
            pasid_device(1, PasidScope::All, span(0x1000, 0)),
            [0x1230_0000_abcd_8018, 0x1001],
        ),
        (
            response(Some(PASID_ABCDE), PageResponse::Invalid, 0x1ff, true),
            [0x000a_bcde_abcd_1019, 0xffc],
        ),
        (
            response(None, PageResponse::Success, 0x100, false),
            [0xabcd_0009, 0x800],
        ),
        (
            response(None, PageResponse::Failure, 1, false),
            [0xabcd_f009, 0x8],
        ),
    ]
}

#[test]
fn every_descriptor_has_the_words_of_the_specification() {
    for (descriptor, words) in vectors() {
        assert_eq!(descriptor.encode(), words, "{descriptor:x?}");
        assert_eq!(Descriptor::decode(words), Ok(descriptor));
        let [low, high] = words;
        let wide = [low, high, 0, 0];
        assert_eq!(descriptor.encode_wide(), wide, "{descriptor:x?}");
        assert_eq!(Descriptor::decode_wide(wide), Ok(descriptor));
    }
}

#[test]
fn private_data_stands_in_the_upper_half_of_wide_responses_alone() {
    let without = Descriptor::PageGroupResponse {
        requester_id: 0xabcd,
        pasid: Some(PASID_ABCDE),
        response: PageResponse::Success,
        group: Narrow::new(2).expect("9 bits"),
        is_last: false,
        private_data: None,
    };
    let with = Descriptor::PageGroupResponse {
        requester_id: 0xabcd,
        pasid: Some(PASID_ABCDE),
        response: PageResponse::Success,
        group: Narrow::new(2).expect("9 bits"),
        is_last: false,
        private_data: Some([1, 0xfedc_ba98_7654_3210]),
    };
    let wide = [0x000a_bcde_abcd_0039, 0x10, 1, 0xfedc_ba98_7654_3210];
    assert_eq!(with.encode_wide(), wide);
    assert_eq!(Descriptor::decode_wide(wide), Ok(with));
    assert_eq!(with.encode(), without.encode());
    let error = CommandError::ReservedBits {
        word: 0,
        bits: 0x20,
    };
    assert_eq!(Descriptor::decode([wide[0], wide[1]]), Err(error));
    // No other descriptor may have them.
    let [low, high] = without.encode();
    let error = CommandError::ReservedBits { word: 3, bits: 4 };
    assert_eq!(Descriptor::decode_wide([low, high, 0, 4]), Err(error));
}

#[test]
fn words_that_decode_are_encoded_as_they_were() {
    for (_, words) in vectors() {
        // At least the other values of some field.
        assert!(check_words(words, Descriptor::decode, Descriptor::encode) > 0);
    }
    let mut numbers = Numbers::new(1);
    let mut decoded = 0;
    for _ in 0..200_000 {
        // Random words of a type, with few bits in the places that are mostly reserved.
        let sparse = numbers.next() & numbers.next() & numbers.next();
        let low = (sparse & !0xf) | numbers.below(16);
        let high = numbers.next() & numbers.next() & numbers.next() & numbers.next();
        let words = [low, if numbers.chance() { high & !0xfff } else { 0 }];
        if let Ok(descriptor) = Descriptor::decode(words) {
            assert_eq!(descriptor.encode(), words, "{descriptor:x?}");
            decoded += 1;
        }
        let wide = [words[0], words[1], numbers.below(2), 0];
        if let Ok(descriptor) = Descriptor::decode_wide(wide) {
            assert_eq!(descriptor.encode_wide(), wide, "{descriptor:x?}");
        }
    }
    assert!(decoded > 1000, "only {decoded} words were descriptors");
}

/// Returns a descriptor with arbitrary fields.
fn any_descriptor(numbers: &mut Numbers) -> Descriptor {
    let domain_id = numbers.next() as u16;
    let pasid = numbers.pasid();
    let device = Device {
        source_id: numbers.next() as u16,
        physical_function: numbers.next() as u16,
        queue_depth: QueueDepth::new(numbers.next() as u8),
    };
    let span = numbers.span();
    let is_leaf_only = numbers.chance();
    match numbers.below(9) {
        0 => Descriptor::ContextCache {
            scope: match numbers.below(3) {
                0 => ContextScope::Global,
                1 => ContextScope::Domain { domain_id },
                _ => ContextScope::Device {
                    domain_id,
                    source_id: numbers.next() as u16,
                    function_mask: Narrow::from_field(numbers.next()),
                },
            },
        },
        1 => Descriptor::Iotlb {
            scope: match numbers.below(3) {
                0 => IotlbScope::Global,
                1 => IotlbScope::Domain { domain_id },
                _ => IotlbScope::Pages {
                    domain_id,
                    span,
                    is_leaf_only,
                },
            },
            drains_reads: numbers.chance(),
            drains_writes: numbers.chance(),
        },
        2 => Descriptor::DeviceTlb { device, span },
        3 => Descriptor::InterruptEntryCache {
            scope: match numbers.below(2) {
                0 => InterruptScope::Global,
                _ => InterruptScope::Entries {
                    index: numbers.next() as u16,
                    mask: Narrow::from_field(numbers.next()),
                },
            },
        },
        4 => Descriptor::Wait {
            status: numbers.chance().then_some(StatusWrite {
                address: numbers.next() & !3,
                data: numbers.next() as u32,
            }),
            has_interrupt: numbers.chance(),
            is_fence: numbers.chance(),
            drains_page_requests: numbers.chance(),
        },
        5 => Descriptor::PasidIotlb {
            domain_id,
            pasid,
            scope: match numbers.below(2) {
                0 => PasidIotlbScope::All,
                _ => PasidIotlbScope::Pages { span, is_leaf_only },
            },
        },
        6 => Descriptor::PasidCache {
            scope: match numbers.below(3) {
                0 => PasidCacheScope::Domain { domain_id },
                1 => PasidCacheScope::Pasid { domain_id, pasid },
                _ => PasidCacheScope::Global,
            },
        },
        7 => Descriptor::PasidDeviceTlb {
            device,
            pasids: match numbers.below(2) {
                0 => PasidScope::All,
                _ => PasidScope::One(pasid),
            },
            span,
        },
        _ => Descriptor::PageGroupResponse {
            requester_id: numbers.next() as u16,
            pasid: numbers.chance().then_some(pasid),
            response: match numbers.below(3) {
                0 => PageResponse::Success,
                1 => PageResponse::Invalid,
                _ => PageResponse::Failure,
            },
            group: Narrow::from_field(numbers.next()),
            is_last: numbers.chance(),
            private_data: numbers.chance().then_some([numbers.next(), numbers.next()]),
        },
    }
}

#[test]
fn descriptors_survive_their_words() {
    let mut numbers = Numbers::new(2);
    for _ in 0..50_000 {
        let descriptor = any_descriptor(&mut numbers);
        let wide = descriptor.encode_wide();
        assert_eq!(Descriptor::decode_wide(wide), Ok(descriptor), "{wide:x?}");
        if !matches!(
            descriptor,
            Descriptor::PageGroupResponse {
                private_data: Some(_),
                ..
            }
        ) {
            assert_eq!(Descriptor::decode(descriptor.encode()), Ok(descriptor));
        }
    }
}

#[test]
fn words_that_the_specification_reserves_are_refused_by_name() {
    let bits = |word, bits| Err(CommandError::ReservedBits { word, bits });
    let value = |field, value| Err(CommandError::ReservedValue { field, value });
    let cases = [
        ([0x0, 0], Err(CommandError::UnknownOpcode { opcode: 0 })),
        ([0xa, 0], Err(CommandError::UnknownOpcode { opcode: 10 })),
        // Bits 6:4 of the type make another type of it.
        (
            [0x0211, 0],
            Err(CommandError::UnknownOpcode { opcode: 0x11 }),
        ),
        ([0x01, 0], value("G", 0)),
        ([0x02, 0], value("G", 0)),
        ([0x16, 0], value("G", 1)),
        ([0x27, 0], value("G", 2)),
        // A domain in a global invalidation, a device in a domain's.
        ([0x1_0011, 0], bits(0, 0x1_0000)),
        ([0x1_0000_0021, 0], bits(0, 1 << 32)),
        ([0x0004_0000_0000_0031, 0], bits(0, 1 << 50)),
        ([0x11, 1], bits(1, 1)),
        ([0x22, 0x1000], bits(1, 0x1000)),
        ([0x32, 0x1080], bits(1, 0x80)),
        // An address that is not aligned to its mask, and more address bits than there are.
        ([0x32, 0x1001], bits(1, 0x1000)),
        ([0x32, 53], value("AM", 53)),
        ([0x1_0000_0032, 0], bits(0, 1 << 32)),
        ([0x13, 0], bits(0, 0x10)),
        ([0x3, 2], bits(1, 2)),
        (
            [0x3, 0xffff_ffff_ffff_f001],
            value("ADDR", 0x000f_ffff_ffff_ffff),
        ),
        ([0x1_0000_0004, 0], bits(0, 1 << 32)),
        ([0x34, 0], bits(0, 0x20)),
        // Data without a status write, and an address that is not of a word.
        ([0x1_0000_0005, 0], bits(0, 1 << 32)),
        ([0x105, 0], bits(0, 0x100)),
        ([0x25, 2], bits(1, 2)),
        ([0x5, 8], bits(1, 8)),
        ([0x0010_0000_0000_0026, 0], bits(0, 1 << 52)),
        ([0x1_0000_0007, 0], bits(0, 1 << 32)),
        ([0x8, 2], bits(1, 2)),
        // A PASID beside all of them.
        ([0x1_0000_0008, 1], bits(0, 1 << 32)),
        ([0x2009, 0], value("response code", 2)),
        ([0x49, 0], bits(0, 0x40)),
        ([0x1_0000_0009, 0], bits(0, 1 << 32)),
        ([0x9, 1], bits(1, 1)),
        ([0x9, 0x1000], bits(1, 0x1000)),
    ];
    for (words, expected) in cases {
        assert_eq!(Descriptor::decode(words), expected, "{words:x?}");
    }
}

#[test]
fn a_queue_depth_of_32_and_more_is_written_as_0() {
    let depths = [0, 1, 31, 32, 33, 255].map(|depth| QueueDepth::new(depth).get());
    assert_eq!(depths, [0, 1, 31, 0, 0, 0]);
}
