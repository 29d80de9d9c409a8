//! Every command as words put together by hand from the figures of chapter 4, and what is illegal.

extern crate std;

use std::vec;
use std::vec::Vec;

use super::*;
use crate::armv8::{Granule, Shareability};
use crate::command::Span;
use crate::command::testing::{check_codec, numbers};
use crate::{IovaRange, Level, Oa};

const STREAM: u64 = 0xffff_ffff_0000_0400;
const SUBSTREAM: u64 = 0xffff_f800;
const VMID: u64 = 0x0000_ffff_0000_0000;
const ASID: u64 = 0xffff_0000_0000_0000;
const NUMBER: u64 = 0x03f1_f000;
const VA_TARGET: u64 = 0xffff_ffff_ffff_ff01;
const IPA_TARGET: u64 = 0x00ff_ffff_ffff_ff01;

fn pasid(value: u32) -> Pasid {
    Pasid::new(value).expect("20 bits")
}

fn narrow<const BITS: u32>(value: u32) -> Narrow<BITS> {
    Narrow::new(value).expect("the number is narrow")
}

/// 4 * 2^9 granules, all leaves of level 0.
fn target() -> Target {
    Target {
        address: Iova::new(0xffff_0080_0000_0000),
        range: Some(Range::new(Granule::Kib16, narrow(3), 9, Some(Level::LEAF)).expect("legal")),
        is_leaf: true,
    }
}

/// The largest range, from an address that an IPA can be.
fn ipa_target() -> Target {
    Target {
        address: Iova::new(0x00ff_0080_0000_0000),
        range: Some(Range::new(Granule::Kib64, narrow(31), 39, None).expect("legal")),
        is_leaf: false,
    }
}

/// Each command, its words, and the bits that it may have besides the opcode.
#[expect(clippy::too_many_lines, reason = "a few lines for each command")]
fn vectors() -> Vec<(Command, [u64; 2], [u64; 2])> {
    let (vmid, asid) = (0x1234, 0xabcd);
    let target = target();
    // NUM 3 at 12, SCALE 9 at 20; Leaf at 0, TTL 3 at 8, TG 2 at 10.
    let (number, va) = (0x0090_3000, 0xffff_0080_0000_0b01);
    let tags = 0xabcd_1234_0000_0000;
    vec![
        (
            Command::PrefetchConfig {
                stream: 0x8765_4321,
                substream: Some(pasid(0xa_bcde)),
                is_secure: true,
            },
            [0x8765_4321_abcd_ec01, 0],
            [STREAM | SUBSTREAM, 0],
        ),
        (
            Command::PrefetchAddress {
                stream: 1,
                substream: None,
                is_secure: false,
                address: Iova::new(0xffff_ffff_ffff_f000),
                count_lg2: narrow(3),
                stride_lg2: narrow(9),
                is_non_secure: true,
            },
            [0x0000_0001_0000_0002, 0xffff_ffff_ffff_f923],
            [STREAM | SUBSTREAM, 0xffff_ffff_ffff_fbff],
        ),
        (
            Command::CfgiSte {
                stream: 0x1ff,
                is_secure: false,
                is_leaf: true,
            },
            [0x0000_01ff_0000_0003, 1],
            [STREAM, 1],
        ),
        (
            Command::CfgiSteRange {
                stream: 0x100,
                span: StreamSpan::new(8).expect("256 streams"),
                is_secure: true,
            },
            [0x0000_0100_0000_0404, 7],
            [STREAM, 31],
        ),
        (
            Command::CfgiSteRange {
                stream: 0,
                span: StreamSpan::ALL,
                is_secure: false,
            },
            [4, 31],
            [STREAM, 31],
        ),
        (
            Command::CfgiCd {
                stream: 2,
                substream: pasid(0xf_ffff),
                is_secure: false,
                is_leaf: false,
            },
            [0x0000_0002_ffff_f005, 0],
            [STREAM | 0xffff_f000, 1],
        ),
        (
            Command::CfgiCdAll {
                stream: 3,
                is_secure: true,
            },
            [0x0000_0003_0000_0406, 0],
            [STREAM, 0],
        ),
        (
            Command::TlbiNhAll { vmid },
            [0x0000_1234_0000_0010, 0],
            [VMID, 0],
        ),
        (
            Command::TlbiNhAsid { vmid, asid },
            [tags | 0x11, 0],
            [VMID | ASID, 0],
        ),
        (
            Command::TlbiNhVa { vmid, asid, target },
            [tags | number | 0x12, va],
            [VMID | ASID | NUMBER, VA_TARGET],
        ),
        (
            Command::TlbiNhVaa { vmid, target },
            [0x0000_1234_0000_0000 | number | 0x13, va],
            [VMID | NUMBER, VA_TARGET],
        ),
        (Command::TlbiEl3All, [0x18, 0], [0, 0]),
        (
            Command::TlbiEl3Va { target },
            [number | 0x1a, va],
            [NUMBER, VA_TARGET],
        ),
        (Command::TlbiEl2All, [0x20, 0], [0, 0]),
        (
            Command::TlbiEl2Asid { asid },
            [0xabcd_0000_0000_0021, 0],
            [ASID, 0],
        ),
        (
            Command::TlbiEl2Va { asid, target },
            [0xabcd_0000_0000_0000 | number | 0x22, va],
            [ASID | NUMBER, VA_TARGET],
        ),
        (
            Command::TlbiEl2Vaa { target },
            [number | 0x23, va],
            [NUMBER, VA_TARGET],
        ),
        (
            Command::TlbiS12Vmall { vmid },
            [0x0000_1234_0000_0028, 0],
            [VMID, 0],
        ),
        (
            Command::TlbiS2Ipa {
                vmid,
                target: ipa_target(),
            },
            // NUM 31, SCALE 39; TG 3, no TTL.
            [0x0000_1234_0271_f02a, 0x00ff_0080_0000_0c00],
            [VMID | NUMBER, IPA_TARGET],
        ),
        (Command::TlbiNsnhAll, [0x30, 0], [0, 0]),
        (
            Command::AtcInv {
                stream: 0x20,
                substream: Some(pasid(7)),
                is_global: true,
                address: Iova::new(0x8000),
                span: AtcSpan::new(2).expect("16 KiB"),
            },
            [0x0000_0020_0000_7a40, 0x8002],
            [0xffff_ffff_0000_0200 | SUBSTREAM, 0xffff_ffff_ffff_f03f],
        ),
        (
            Command::AtcInv {
                stream: 0x20,
                substream: None,
                is_global: false,
                address: Iova::new(0),
                span: AtcSpan::ALL,
            },
            [0x0000_0020_0000_0040, 52],
            [0xffff_ffff_0000_0200 | SUBSTREAM, 0xffff_ffff_ffff_f03f],
        ),
        (
            Command::PriResp {
                stream: 0x20,
                substream: Some(pasid(0)),
                group: narrow(0x1ab),
                response: PageResponse::Success,
            },
            [0x0000_0020_0000_0841, 0x21ab],
            [0xffff_ffff_0000_0000 | SUBSTREAM, 0x31ff],
        ),
        (
            Command::Resume {
                stream: 5,
                is_secure: false,
                stag: 0xbeef,
                is_retry: false,
                is_abort: true,
            },
            [0x0000_0005_0000_2044, 0xbeef],
            [STREAM | 0x3000, 0xffff],
        ),
        (
            Command::Resume {
                stream: 5,
                is_secure: true,
                stag: 0,
                is_retry: true,
                is_abort: false,
            },
            [0x0000_0005_0000_1444, 0],
            [STREAM | 0x3000, 0xffff],
        ),
        (
            Command::StallTerm {
                stream: 6,
                is_secure: false,
            },
            [0x0000_0006_0000_0045, 0],
            [STREAM, 0],
        ),
        (
            Command::Sync {
                signal: Signal::None,
                msi: Msi::NONE,
            },
            [0x46, 0],
            [0xffff_ffff_0fc0_3000, 0x00ff_ffff_ffff_fffc],
        ),
        (
            Command::Sync {
                signal: Signal::Interrupt,
                msi: Msi {
                    address: Oa::new(0x0080_1234_5678_9abc),
                    data: 0xfeed_f00d,
                    shareability: Shareability::Inner,
                    memory: narrow(0xf),
                },
            },
            [0xfeed_f00d_0fc0_1046, 0x0080_1234_5678_9abc],
            [0xffff_ffff_0fc0_3000, 0x00ff_ffff_ffff_fffc],
        ),
        (
            // What a driver sends that names the attributes of a store that there is not.
            Command::Sync {
                signal: Signal::Event,
                msi: Msi {
                    shareability: Shareability::Outer,
                    memory: narrow(5),
                    ..Msi::NONE
                },
            },
            [0x0580_2046, 0],
            [0xffff_ffff_0fc0_3000, 0x00ff_ffff_ffff_fffc],
        ),
        (Command::TlbiSEl2All, [0x50, 0], [0, 0]),
        (
            Command::TlbiSEl2Asid { asid },
            [0xabcd_0000_0000_0051, 0],
            [ASID, 0],
        ),
        (
            Command::TlbiSEl2Va { asid, target },
            [0xabcd_0000_0000_0000 | number | 0x52, va],
            [ASID | NUMBER, VA_TARGET],
        ),
        (
            Command::TlbiSEl2Vaa { target },
            [number | 0x53, va],
            [NUMBER, VA_TARGET],
        ),
        (
            Command::TlbiSS12Vmall { vmid },
            [0x0000_1234_0000_0058, 0],
            [VMID, 0],
        ),
        (
            Command::TlbiSS2Ipa {
                vmid,
                target: Target::single(Iova::new(0x1000), true),
            },
            [0x0000_1234_0000_005a, 0x1001],
            [VMID | NUMBER, IPA_TARGET],
        ),
        (Command::TlbiSnhAll, [0x60, 0], [0, 0]),
    ]
}

#[test]
fn every_command_has_the_words_of_the_specification_and_no_other_bits() {
    check_codec(&vectors(), 0xff, Command::encode, Command::decode);
}

#[test]
fn every_opcode_of_the_specification_has_a_vector_and_all_others_are_unknown() {
    let known: Vec<u8> = vectors()
        .iter()
        .map(|(command, ..)| command.opcode())
        .collect();
    let expected = [
        1, 2, 3, 4, 5, 6, 0x10, 0x11, 0x12, 0x13, 0x18, 0x1a, 0x20, 0x21, 0x22, 0x23, 0x28, 0x2a,
        0x30, 0x40, 0x41, 0x44, 0x45, 0x46, 0x50, 0x51, 0x52, 0x53, 0x58, 0x5a, 0x60,
    ];
    for opcode in 0..=u8::MAX {
        assert_eq!(
            known.contains(&opcode),
            expected.contains(&opcode),
            "{opcode:#x}"
        );
        let unknown = matches!(
            Command::decode([opcode.into(), 0]),
            Err(CommandError::UnknownOpcode { opcode: named }) if named == u16::from(opcode)
        );
        assert_eq!(unknown, !expected.contains(&opcode), "{opcode:#x}");
    }
}

fn reserved<T>(field: &'static str, value: u64) -> Result<T, CommandError> {
    Err(CommandError::ReservedValue { field, value })
}

#[test]
fn reserved_values_of_fields_are_refused_by_name() {
    assert_eq!(Command::decode([0x3046, 0]), reserved("CS", 3));
    assert_eq!(Command::decode([0x0040_0046, 0]), reserved("MSH", 1));
    assert_eq!(Command::decode([0x41, 0x3000]), reserved("Resp", 3));
    assert_eq!(Command::decode([0x40, 53]), reserved("Size", 53));
    assert_eq!(Command::decode([0x1040, 0]), reserved("SubstreamID", 1));
    assert_eq!(Command::decode([0x1041, 0]), reserved("SubstreamID", 1));
    assert_eq!(Command::decode([0x1001, 0]), reserved("SubstreamID", 1));
}

#[test]
fn a_target_without_a_granule_has_neither_number_nor_level() {
    for opcode in [0x12, 0x13, 0x1a, 0x22, 0x23, 0x2a, 0x52, 0x53, 0x5a] {
        assert!(Command::decode([opcode, 0x1000]).is_ok());
        assert_eq!(Command::decode([opcode | 0x2000, 0]), reserved("NUM", 2));
        assert_eq!(
            Command::decode([opcode | 0x0010_0000, 0]),
            reserved("SCALE", 1)
        );
        assert_eq!(Command::decode([opcode, 0x300]), reserved("TTL", 3));
    }
}

#[test]
fn a_granule_alone_is_reserved() {
    for tg in 1..=3 {
        let word1 = tg << 10;
        assert_eq!(Command::decode([0x12, word1]), reserved("TG", tg));
        // Each of the three makes it legal.
        assert!(Command::decode([0x1012, word1]).is_ok());
        assert!(Command::decode([0x0010_0012, word1]).is_ok());
        assert!(Command::decode([0x12, word1 | 0x100]).is_ok());
    }
}

#[test]
fn a_scale_above_39_means_nothing() {
    assert!(Command::decode([0x0270_0012, 0x400]).is_ok());
    assert_eq!(Command::decode([0x0280_0012, 0x400]), reserved("SCALE", 40));
    assert_eq!(
        Range::new(Granule::Kib4, Narrow::MIN, 255, None),
        reserved("SCALE", 255)
    );
    assert_eq!(
        Range::new(Granule::Kib4, Narrow::MIN, 0, Some(Level(3))),
        reserved("TTL", 3)
    );
}

#[test]
fn an_implementation_refuses_the_targets_that_it_lacks() {
    let none = Features::default();
    let ranges = Features {
        has_range_invalidation: true,
        ..none
    };
    let wide = Features {
        has_wide_descriptors: true,
        ..ranges
    };
    let check = |words, features| {
        Command::decode(words)
            .expect("legal somewhere")
            .check(features)
    };
    let single = [0x12, 0x1000];
    assert_eq!(check(single, none), Ok(()));
    assert_eq!(check([0x46, 0], none), Ok(()));
    let range = [0x01f1_f012, 0xb00];
    assert_eq!(check(range, none), reserved("TG", 2));
    assert_eq!(check(range, ranges), Ok(()));
    let wide_scale = [0x0200_0012, 0x400];
    assert_eq!(check(wide_scale, ranges), reserved("SCALE", 32));
    assert_eq!(check(wide_scale, wide), Ok(()));
    // TTL 1 of the 16 KiB granule, and of the others.
    assert_eq!(check([0x12, 0x900], ranges), reserved("TTL", 1));
    assert_eq!(check([0x12, 0x900], wide), Ok(()));
    assert_eq!(check([0x12, 0x500], ranges), Ok(()));
    assert_eq!(check([0x12, 0xd00], ranges), Ok(()));
}

#[test]
fn a_range_tells_its_parts() {
    let range = Range::new(Granule::Kib64, narrow(2), 5, Some(Level(1))).expect("legal");
    assert_eq!(range.granule(), Granule::Kib64);
    assert_eq!((range.num().get(), range.scale()), (2, 5));
    assert_eq!(range.level(), Some(Level(1)));
    assert_eq!(range.len(), 3 * 32 * 0x1_0000);
    let largest = Range::new(Granule::Kib64, Narrow::MAX, 39, None).expect("legal");
    assert_eq!(largest.len(), 1 << 60);
}

#[test]
fn unaligned_addresses_lose_what_their_fields_lack() {
    let with = |address| Command::TlbiS2Ipa {
        vmid: 0,
        target: Target::single(Iova::new(address), false),
    };
    assert_eq!(with(u64::MAX).encode(), [0x2a, 0x00ff_ffff_ffff_f000]);
    let sync = Command::Sync {
        signal: Signal::Interrupt,
        msi: Msi {
            address: Oa::new(u64::MAX),
            ..Msi::NONE
        },
    };
    assert_eq!(sync.encode(), [0x1046, 0x00ff_ffff_ffff_fffc]);
}

#[test]
fn a_span_of_streams_has_one_to_thirty_two_bits() {
    assert_eq!(StreamSpan::new(0), None);
    assert_eq!(StreamSpan::new(33), None);
    assert_eq!(StreamSpan::new(32), Some(StreamSpan::ALL));
    assert_eq!(StreamSpan::new(1).map(StreamSpan::streams_lg2), Some(1));
}

#[test]
fn the_span_of_a_range_is_the_smallest_aligned_one_that_holds_it() {
    let span = |first: u64, last: u64| {
        let range = IovaRange::new(Iova::new(first << 12), Iova::new((last << 12) | 0xfff));
        AtcSpan::of(Span::covering(range.expect("in order"))).pages_lg2()
    };
    assert_eq!(span(8, 11), 2);
    assert_eq!(span(7, 10), 4);
    assert_eq!(span(5, 5), 0);
    assert_eq!(AtcSpan::of(Span::ALL), AtcSpan::ALL);
    assert_eq!(AtcSpan::new(53), None);
    for (first, second) in numbers(1).zip(numbers(2)).take(2000) {
        let pages = (
            first >> (first & 0x33) >> 12,
            second >> (second & 0x33) >> 12,
        );
        let (first, last) = (pages.0.min(pages.1), pages.0.max(pages.1));
        let expected = (0..=52)
            .find(|&lg2| first >> lg2 == last >> lg2)
            .expect("52 bits hold every page");
        assert_eq!(u32::from(span(first, last)), expected);
    }
}

#[test]
fn the_error_of_the_consumer_stands_in_its_register() {
    for (code, error) in [
        (0, None),
        (1, Some(ConsumerError::Illegal)),
        (2, Some(ConsumerError::Abort)),
        (3, Some(ConsumerError::AtcTimeout)),
        (4, Some(ConsumerError::Reserved(narrow(4)))),
        (0x7f, Some(ConsumerError::Reserved(narrow(0x7f)))),
    ] {
        assert_eq!(
            ConsumerError::from_register(code << 24 | 0x800f_ffff),
            error
        );
        assert_eq!(error.map_or(0, ConsumerError::to_register), code << 24);
    }
}
