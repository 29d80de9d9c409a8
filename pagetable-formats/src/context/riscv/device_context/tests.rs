//! Contexts worked out by hand.

mod encoding;
mod refusals;
mod updates;

use super::*;
use crate::context::riscv::FirstStageTables;
use crate::riscv::{Sv, Svx4};
use crate::walk::Root;
use crate::{Format as _, Level};

/// Every capability, 56 address bits.
const EVERYTHING: u64 = !0x3f_0000_0000 | 56 << 32;
const FULL: Features = Features::new(EVERYTHING, 0);
/// A device with both stages, and MSIs sent to a guest.
const CONTEXT: [u64; 8] = [
    0x47,
    0x8012_3000_0008_8004,
    0x4561_2300_abcd_e000,
    0x9000_0000_0008_8001,
    0x1000_0000_0008_9000,
    0xff,
    0x2_8000,
    0,
];

fn decode(words: [u64; 8], features: Features) -> DeviceContext {
    let context = DeviceContext::decode(words, features).expect("the context is configured well");
    context.expect("the context is valid")
}

/// Returns the context that has `word` in place of word `number`.
fn with(number: usize, word: u64) -> [u64; 8] {
    let mut words = CONTEXT;
    words[number] = word;
    words
}

fn refused(words: [u64; 8], features: Features) -> Misconfigured {
    DeviceContext::decode(words, features).expect_err("the context is misconfigured")
}

#[test]
fn both_stages_lead_to_configured_formats() {
    let context = decode(CONTEXT, FULL);
    let FirstStage::Tables(FirstStageTables::Sv { format, root }) = context.first_stage() else {
        panic!("{context:?} has no first-stage tables");
    };
    assert_eq!(format, Sv::sv48().with_svnapot().with_svpbmt());
    assert_eq!(
        root,
        Root {
            oa: Oa::new(0x8800_1000),
            level: Level(3)
        }
    );
    let SecondStage::Svx4 {
        format,
        root,
        gscid,
    } = context.second_stage()
    else {
        panic!("{context:?} has no second-stage tables");
    };
    assert_eq!(format, Svx4::sv39x4().with_svnapot().with_svpbmt());
    assert_eq!(
        root,
        Root {
            oa: Oa::new(0x8800_4000),
            level: Level(2)
        }
    );
    assert_eq!(gscid, 0x0123);
    assert_eq!(context.pscid(), 0xa_bcde);
    assert_eq!(context.qos_ids(), (0x123, 0x456));
    assert!(context.has_ats() && context.has_page_requests());
    assert!(!context.has_guest_ats() && !context.suppresses_faults() && !context.is_big_endian());
}

#[test]
fn capabilities_and_flags_shape_the_formats() {
    // PAS 40, no Svpbmt; SADE and GADE.
    let narrow = Features::new(EVERYTHING & !(0x3f << 32) & !bit(15) | 40 << 32, 0);
    let context = decode(with(0, 0x181), narrow);
    let FirstStage::Tables(FirstStageTables::Sv { format, .. }) = context.first_stage() else {
        panic!("{context:?} has no first-stage tables");
    };
    assert_eq!(
        format,
        Sv::sv48().with_svnapot().with_dirty(),
        "guest-physical addresses"
    );
    let SecondStage::Svx4 { format, .. } = context.second_stage() else {
        panic!("{context:?} has no second-stage tables");
    };
    assert_eq!(format.oa_bits(), 40);
    assert!(format.dirty_rule().is_some());
    let alone = decode(with(1, 0), narrow).first_stage();
    let expected = Sv::sv48()
        .with_svnapot()
        .with_oa_bits(40)
        .expect("40 bits are possible");
    let root = Root {
        oa: Oa::new(0x8800_1000),
        level: Level(3),
    };
    let tables = FirstStageTables::Sv {
        format: expected,
        root,
    };
    assert_eq!(alone, FirstStage::Tables(tables));
}

#[test]
fn a_context_without_v_says_nothing() {
    assert_eq!(DeviceContext::decode([!VALID; 8], FULL), Ok(None));
}

#[test]
fn all_zero_words_but_v_pass_everything() {
    let context = decode([1, 0, 0, 0, 0, 0, 0, 0], FULL);
    assert_eq!(
        context.first_stage(),
        FirstStage::Tables(FirstStageTables::Bare)
    );
    assert_eq!(context.second_stage(), SecondStage::Bare);
    assert_eq!(context.msi_table(), None);
}

#[test]
fn msi_tables_exist_in_extended_contexts_only() {
    let table = decode(CONTEXT, FULL).msi_table().expect("MODE is flat");
    assert_eq!(table.root, Oa::new(0x8900_0000));
    assert!(table.contains(Oa::new(0x2800_0000)) && table.contains(Oa::new(0x280f_ffff)));
    assert!(!table.contains(Oa::new(0x2810_0000)) && !table.contains(Oa::new(0x27ff_ffff)));
    let base = Features::new(EVERYTHING & !bit(22), 0);
    assert_eq!(decode(with(7, u64::MAX), base).msi_table(), None);
}

#[test]
fn a_process_directory_takes_the_place_of_tables() {
    let mut words = with(0, 0x221);
    words[3] = 0x2000_0000_0008_8001;
    let FirstStage::Directory(directory) = decode(words, FULL).first_stage() else {
        panic!("PDTV is set");
    };
    assert_eq!(
        (directory.root(), directory.levels()),
        (Some(Oa::new(0x8800_1000)), 2)
    );
    assert_eq!(directory.process_id_bits(), 17);
    assert!(directory.has_default_process());
    words[3] = 0;
    let FirstStage::Directory(directory) = decode(words, FULL).first_stage() else {
        panic!("PDTV is set");
    };
    assert_eq!((directory.root(), directory.process_id_bits()), (None, 0));
}

#[test]
fn sxl_chooses_32_bit_tables() {
    let mut words = with(0, 0x801);
    words[3] = 0x8000_0000_0008_8001;
    let tables = FirstStageTables::Sv32 {
        root: Oa::new(0x8800_1000),
    };
    assert_eq!(
        decode(words, FULL).first_stage(),
        FirstStage::Tables(tables)
    );
    let guest = SecondStage::Sv32x4 {
        root: Oa::new(0x8800_4000),
        gscid: 0x0123,
    };
    assert_eq!(
        decode(words, Features::new(EVERYTHING, 4)).second_stage(),
        guest
    );
    words[3] = 0x9000_0000_0008_8001;
    assert_eq!(
        refused(words, FULL),
        Misconfigured::FirstStageMode { mode: 9 }
    );
}

#[test]
fn reserved_bits_are_misconfigured() {
    for (number, word) in (0..).zip(CONTEXT) {
        let bits: &[u64] = match number {
            0 => &[bit(12), bit(23), bit(32), bit(63)],
            2 => &[bit(0), bit(11), bit(32), bit(39)],
            3 | 4 => &[bit(44), bit(59)],
            5 | 6 => &[bit(52), bit(63)],
            7 => &[bit(0), bit(63)],
            _ => &[],
        };
        for &bits in bits {
            let error = Misconfigured::Reserved { word: number, bits };
            assert_eq!(refused(with(number.into(), word | bits), FULL), error);
        }
    }
    // Custom bits are not reserved.
    assert!(DeviceContext::decode(with(0, 0xff00_0047), FULL).is_ok());
    let no_qos = Features::new(EVERYTHING & !bit(41), 0);
    let bits = 0x4561_2300_0000_0000;
    assert_eq!(
        refused(CONTEXT, no_qos),
        Misconfigured::Reserved { word: 2, bits }
    );
}

#[test]
fn flags_that_need_each_other_or_the_hardware_are_misconfigured() {
    let without = |n| Features::new(EVERYTHING & !bit(n), 0);
    let big_endian = Features::new(EVERYTHING & !bit(27), 1);
    let rules = [
        (0x03, without(25), Misconfigured::AtsUnsupported),
        (0x05, without(25), Misconfigured::AtsUnsupported),
        (0x41, without(25), Misconfigured::AtsUnsupported),
        (0x09, FULL, Misconfigured::T2gpaWithoutAts),
        (0x05, FULL, Misconfigured::PriWithoutAts),
        (0x43, FULL, Misconfigured::PrprWithoutPri),
        (0x0b, without(26), Misconfigured::T2gpaUnsupported),
        (0x201, FULL, Misconfigured::DpeWithoutDirectory),
        (0x81, without(24), Misconfigured::UpdatesUnsupported),
        (0x101, without(24), Misconfigured::UpdatesUnsupported),
        (0x401, without(27), Misconfigured::ByteOrder),
        (0x001, big_endian, Misconfigured::ByteOrder),
        (
            0x001,
            Features::new(EVERYTHING, 4),
            Misconfigured::SupervisorWidth,
        ),
        (
            0x801,
            Features::new(EVERYTHING & !bit(8) & !bit(16), 0),
            Misconfigured::SupervisorWidth,
        ),
    ];
    for (tc, features, error) in rules {
        assert_eq!(refused(with(0, tc), features), error, "{tc:#x}");
    }
    for (tc, features) in [
        (0x0b, FULL),
        (0x401, FULL),
        (0x401, big_endian),
        (0x181, FULL),
    ] {
        assert!(
            DeviceContext::decode(with(0, tc), features).is_ok(),
            "{tc:#x}"
        );
    }
    let mut words = with(0, 0x0b);
    words[1] = 0;
    assert_eq!(refused(words, FULL), Misconfigured::T2gpaWithoutSecondStage);
}

#[test]
fn modes_are_those_that_the_hardware_has() {
    for mode in (1..16).filter(|mode| !(8..=10).contains(mode)) {
        let error = Misconfigured::FirstStageMode { mode: mode as u8 };
        assert_eq!(refused(with(3, mode << 60), FULL), error);
        let error = Misconfigured::SecondStageMode { mode: mode as u8 };
        assert_eq!(refused(with(1, mode << 60), FULL), error);
    }
    for (mode, first, second) in [(8, 9, 17), (9, 10, 18), (10, 11, 19)] {
        let features = Features::new(EVERYTHING & !bit(first), 0);
        let error = Misconfigured::FirstStageMode { mode: mode as u8 };
        assert_eq!(refused(with(3, mode << 60), features), error);
        let features = Features::new(EVERYTHING & !bit(second), 0);
        let error = Misconfigured::SecondStageMode { mode: mode as u8 };
        assert_eq!(refused(with(1, mode << 60), features), error);
    }
    for (mode, capability) in [(1, 38), (2, 39), (3, 40)] {
        let mut words = with(0, 0x21);
        words[3] = mode << 60;
        assert!(DeviceContext::decode(words, FULL).is_ok());
        let features = Features::new(EVERYTHING & !bit(capability), 0);
        let error = Misconfigured::ProcessDirectoryMode { mode: mode as u8 };
        assert_eq!(refused(words, features), error);
        words[3] = 4 << 60;
        let error = Misconfigured::ProcessDirectoryMode { mode: 4 };
        assert_eq!(refused(words, FULL), error);
    }
    assert_eq!(
        refused(with(4, 2 << 60), FULL),
        Misconfigured::MsiMode { mode: 2 }
    );
    for ppn in [1, 2, 3] {
        let error = Misconfigured::SecondStageRoot {
            root: Oa::new(ppn << 12),
        };
        assert_eq!(refused(with(1, 8 << 60 | ppn), FULL), error);
    }
}

#[test]
fn no_word_makes_decoding_panic() {
    for n in 0..64 {
        for word in [bit(n), !bit(n), u64::MAX] {
            for number in 0..8 {
                for gxl in [0, 4] {
                    let _ = DeviceContext::decode(with(number, word), Features::new(word, gxl));
                    let _ = DeviceContext::decode(with(number, word), FULL);
                }
            }
        }
    }
}

#[test]
fn fields_do_not_overlap() {
    for fields in DeviceContext::FIELDS {
        let mut seen = 0;
        for field in fields {
            assert_eq!(seen & field.mask(), 0, "{field:?}");
            seen |= field.mask();
        }
    }
}
