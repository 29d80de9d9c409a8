//! Every command as words put together by hand from the figures of the specification, and what is illegal.

extern crate std;

use std::vec;
use std::vec::Vec;

use super::*;
use crate::command::testing::check_codec;

const ADDRESSED: u64 = 0x0fff_f006_0000_0400;
const TARGET: u64 = 0x3fff_ffff_ffff_fe00;
const MESSAGE: u64 = 0xffff_ff03_ffff_f000;

fn pasid(value: u32) -> Pasid {
    Pasid::new(value).expect("20 bits")
}

fn narrow<const BITS: u32>(value: u32) -> Narrow<BITS> {
    Narrow::new(value).expect("the number is narrow")
}

fn page(address: u64) -> Target {
    Target {
        span: span(address, 0),
        is_leaf: true,
    }
}

fn span(address: u64, order: u8) -> Span {
    Span::new(address, order).expect("at most 52")
}

/// Each command, its words, and the bits that it may have besides the opcode and func3.
#[expect(clippy::too_many_lines, reason = "a few lines for each command")]
fn vectors() -> Vec<(Command, [u64; 2], [u64; 2])> {
    let vma = [ADDRESSED | 0x0000_0001_ffff_f000, TARGET];
    let gvma = [ADDRESSED, TARGET];
    let function = Function {
        segment: Some(0xfe),
        requester: 0x1234,
    };
    let local = Function {
        segment: None,
        requester: 0x0100,
    };
    vec![
        (
            Command::IotinvalVma {
                gscid: None,
                pscid: None,
                target: None,
            },
            [1, 0],
            vma,
        ),
        (
            // The address is 0x1234_5678_9abc_d000, and its page number stands at bit 10.
            Command::IotinvalVma {
                gscid: Some(0xbeef),
                pscid: Some(narrow(0xa_bcde)),
                target: Some(page(0x1234_5678_9abc_d000)),
            },
            [0x0bee_f003_abcd_e401, 0x048d_159e_26af_3400],
            vma,
        ),
        (
            // The top page of the address space.
            Command::IotinvalVma {
                gscid: None,
                pscid: Some(narrow(0)),
                target: Some(page(0xffff_ffff_ffff_f000)),
            },
            [0x0000_0001_0000_0401, 0x3fff_ffff_ffff_fc00],
            vma,
        ),
        (
            // Two pages: the lowest bit of the page number is zero.
            Command::IotinvalVma {
                gscid: None,
                pscid: Some(narrow(1)),
                target: Some(Target {
                    span: span(0x2000, 1),
                    is_leaf: false,
                }),
            },
            [0x0000_0005_0000_1401, 0xa00],
            vma,
        ),
        (
            // 2 MiB: eight ones.
            Command::IotinvalGvma {
                gscid: Some(1),
                target: Some(Target {
                    span: span(0x4020_0000, 9),
                    is_leaf: true,
                }),
            },
            [0x0000_1002_0000_0481, 0x1008_0000 | 0xff << 10 | 0x200],
            gvma,
        ),
        (
            // Everything: ones but for the highest bit.
            Command::IotinvalGvma {
                gscid: Some(1),
                target: Some(Target {
                    span: Span::ALL,
                    is_leaf: false,
                }),
            },
            [0x0000_1006_0000_0481, 0x1fff_ffff_ffff_fe00],
            gvma,
        ),
        (
            Command::IotinvalGvma {
                gscid: None,
                target: None,
            },
            [0x81, 0],
            gvma,
        ),
        (
            Command::IofenceC {
                store: Some(Store {
                    address: Oa::new(0xffff_ffff_8765_4320),
                    data: 0xdead_beef,
                }),
                has_interrupt: false,
                has_read_order: true,
                has_write_order: true,
            },
            [0xdead_beef_0000_3402, 0x3fff_ffff_e1d9_50c8],
            [0xffff_ffff_0000_3c00, 0x3fff_ffff_ffff_ffff],
        ),
        (
            Command::IofenceC {
                store: None,
                has_interrupt: true,
                has_read_order: false,
                has_write_order: false,
            },
            [0x802, 0],
            [0xffff_ffff_0000_3c00, 0x3fff_ffff_ffff_ffff],
        ),
        (
            Command::IodirInvalDdt { device: None },
            [3, 0],
            [0xffff_ff02_0000_0000, 0],
        ),
        (
            Command::IodirInvalDdt {
                device: Some(narrow(0xab_cdef)),
            },
            [0xabcd_ef02_0000_0003, 0],
            [0xffff_ff02_0000_0000, 0],
        ),
        (
            Command::IodirInvalPdt {
                device: narrow(1),
                process: pasid(0xf_0001),
            },
            [0x0000_0102_f000_1083, 0],
            [0xffff_ff02_ffff_f000, 0],
        ),
        (
            Command::AtsInval {
                function,
                pasid: Some(pasid(0x12345)),
                is_global: true,
                span: span(0x8000, 2),
            },
            [0xfe12_3403_1234_5004, 0x9801],
            [MESSAGE, 0xffff_ffff_ffff_f801],
        ),
        (
            Command::AtsInval {
                function: local,
                pasid: None,
                is_global: false,
                span: Span::ALL,
            },
            [0x0001_0000_0000_0004, 0x7fff_ffff_ffff_f800],
            [MESSAGE, 0xffff_ffff_ffff_f801],
        ),
        (
            Command::AtsPrgr {
                function: local,
                pasid: Some(pasid(2)),
                group: narrow(0x1a5),
                response: PageResponse::Failure,
            },
            [0x0001_0001_0000_2084, 0x0000_f1a5_0000_0000],
            [MESSAGE, 0x0000_f1ff_0000_0000],
        ),
    ]
}

#[test]
fn every_command_has_the_words_of_the_specification_and_no_other_bits() {
    check_codec(&vectors(), 0x3ff, Command::encode, Command::decode);
}

#[test]
fn opcodes_and_functions_that_are_not_defined_are_unknown() {
    let defined = [0x001, 0x081, 0x002, 0x003, 0x083, 0x004, 0x084];
    for opcode in 0..0x400 {
        let decoded = Command::decode([opcode, 0]);
        let is_unknown = matches!(
            decoded,
            Err(CommandError::UnknownOpcode { opcode: named }) if u64::from(named) == opcode
        );
        assert_eq!(is_unknown, !defined.contains(&opcode), "{opcode:#x}");
    }
}

fn reserved(field: &'static str, value: u64) -> Result<Command, CommandError> {
    Err(CommandError::ReservedValue { field, value })
}

#[test]
fn a_second_stage_has_no_process_context() {
    let pscv = 1 << 32;
    assert!(Command::decode([0x001 | pscv, 0]).is_ok());
    assert_eq!(
        Command::decode([0x081 | pscv, 0]),
        Err(CommandError::ReservedBits {
            word: 0,
            bits: pscv
        })
    );
}

#[test]
fn the_process_directory_needs_a_device() {
    assert_eq!(Command::decode([0x083, 0]), reserved("DV", 0));
    assert_eq!(
        Command::decode([0x003 | 1 << 12, 0]),
        Err(CommandError::ReservedBits {
            word: 0,
            bits: 1 << 12
        })
    );
}

#[test]
fn operands_without_their_valid_bit_are_zero() {
    assert_eq!(Command::decode([0x001 | 1 << 44, 0]), reserved("GSCID", 1));
    assert_eq!(Command::decode([0x001 | 1 << 12, 0]), reserved("PSCID", 1));
    assert_eq!(Command::decode([0x001 | 1 << 34, 0]), reserved("NL", 1));
    assert_eq!(Command::decode([0x001, 1 << 9]), reserved("S", 1));
    assert_eq!(Command::decode([0x001, 1 << 10]), reserved("ADDR", 1));
    assert_eq!(Command::decode([0x002 | 1 << 32, 0]), reserved("DATA", 1));
    assert_eq!(Command::decode([0x002, 4]), reserved("ADDR", 4));
    assert_eq!(Command::decode([0x003 | 1 << 40, 0]), reserved("DID", 1));
    assert_eq!(Command::decode([0x004 | 1 << 12, 0]), reserved("PID", 1));
    assert_eq!(Command::decode([0x004 | 1 << 56, 0]), reserved("DSEG", 1));
}

#[test]
fn a_range_of_only_ones_means_nothing() {
    let ones = 0x000f_ffff_ffff_ffff;
    assert_eq!(
        Command::decode([0x401, ones << 10 | 0x200]),
        reserved("ADDR", ones)
    );
    assert_eq!(
        Command::decode([0x004, ones << 12 | 0x800]),
        reserved("ADDR", ones)
    );
    // Without S they are the last page.
    assert!(Command::decode([0x401, ones << 10]).is_ok());
}

#[test]
fn only_three_page_responses_are_defined() {
    for code in 0..16 {
        let decoded = Command::decode([0x084, code << 44]);
        if matches!(code, 0 | 1 | 15) {
            assert!(decoded.is_ok());
        } else {
            assert_eq!(decoded, reserved("Response Code", code));
        }
    }
}

#[test]
fn an_iommu_refuses_the_commands_that_it_lacks() {
    let none = Features::default();
    let check = |words, features| {
        Command::decode(words)
            .expect("legal somewhere")
            .check(features)
    };
    let bits = |word, bits| Err(CommandError::ReservedBits { word, bits });
    assert_eq!(check([0x401, 0x400], none), Ok(()));
    let non_leaf = [0x401 | 1 << 34, 0];
    assert_eq!(check(non_leaf, none), bits(0, 1 << 34));
    let has_non_leaf = Features {
        has_non_leaf: true,
        ..none
    };
    assert_eq!(check(non_leaf, has_non_leaf), Ok(()));
    let range = [0x481 | 1 << 33, 0x200];
    assert_eq!(check(range, has_non_leaf), bits(1, 1 << 9));
    let has_ranges = Features {
        has_ranges: true,
        ..none
    };
    assert_eq!(check(range, has_ranges), Ok(()));
    assert_eq!(check([0x802, 0], none), bits(0, 1 << 11));
    let has_wires = Features {
        has_wires: true,
        ..none
    };
    assert_eq!(check([0x802, 0], has_wires), Ok(()));
    let has_ats = Features {
        has_ats: true,
        ..none
    };
    for opcode in [0x004, 0x084] {
        assert_eq!(
            check([opcode.into(), 0], none),
            Err(CommandError::UnknownOpcode { opcode })
        );
        assert_eq!(check([opcode.into(), 0], has_ats), Ok(()));
    }
}

#[test]
fn every_span_encodes_as_ones_below_a_zero() {
    for pages_lg2 in 1..=52_u32 {
        let command = Command::IotinvalVma {
            gscid: None,
            pscid: None,
            target: Some(Target {
                span: span(u64::MAX, pages_lg2 as u8),
                is_leaf: true,
            }),
        };
        let [_, word1] = command.encode();
        let page_number = word1 >> 10;
        assert_eq!(page_number.trailing_ones(), pages_lg2 - 1);
        // What is above the zero is the address.
        assert_eq!(page_number.count_ones(), 51);
        assert_eq!(word1 & 0x3ff, 0x200);
    }
}
