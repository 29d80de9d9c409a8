//! Directories worked out by hand.

use super::*;
use crate::Level;
use crate::context::riscv::{Directory, Features};
use crate::riscv::Sv;
use crate::walk::Root;

/// Every capability, 56 address bits.
const FEATURES: Features = Features::new(!0x3f_0000_0000 | 56 << 32, 0);
const RULES: FirstStageRules = FirstStageRules {
    features: FEATURES,
    is_32_bit: false,
    updates_flags: false,
    is_nested: false,
};

fn directory(mode: u64) -> ProcessDirectory {
    ProcessDirectory::decode(mode << 60 | 1, false, RULES).expect("the mode is possible")
}

#[test]
fn three_levels_split_the_process_id_into_3_9_and_8_bits() {
    // 0x9abcd = 0b100_110101011_11001101.
    let read = |address: Oa| match address.get() {
        0x1020 => Some(0x801),
        0x2d58 => Some(0xc01),
        0x3cd0 => Some(0x1234_5003),
        0x3cd8 => Some(0x8000_0000_0008_8001),
        _ => None,
    };
    let context = directory(3)
        .locate(0x9_abcd, read)
        .expect("the context is valid");
    let tables = FirstStageTables::Sv {
        format: Sv::sv39().with_svnapot().with_svpbmt(),
        root: Root {
            oa: Oa::new(0x8800_1000),
            level: Level(2),
        },
    };
    assert_eq!(context.tables(), tables);
    assert_eq!(context.pscid(), 0x1_2345);
    assert!(context.has_supervisor() && !context.has_supervisor_user_memory());
}

#[test]
fn ids_fit_the_levels() {
    for (mode, bits) in [(1, 8), (2, 17), (3, 20)] {
        assert_eq!(directory(mode).process_id_bits(), bits);
        let id = 1 << bits;
        let error = LocateError::IdWidth { id, bits };
        assert_eq!(directory(mode).locate(id, |_| Some(0)), Err(error));
        assert_eq!(error.cause(Directory::Process), 260);
    }
}

#[test]
fn a_bare_directory_has_no_tables_for_anybody() {
    let context = directory(0)
        .locate(u32::MAX, |_| None)
        .expect("nothing is read");
    assert_eq!(context.tables(), FirstStageTables::Bare);
}

#[test]
fn entries_without_v_end_the_search() {
    let error = LocateError::NotValid {
        address: Oa::new(0x1010),
    };
    assert_eq!(directory(1).locate(1, |_| Some(0x800)), Err(error));
    assert_eq!(error.cause(Directory::Process), 266);
    assert_eq!(directory(1).decode_context([!VALID, u64::MAX]), Ok(None));
}

#[test]
fn misconfigured_contexts_name_the_rule() {
    let refused = |ta, fsc| {
        directory(1)
            .decode_context([ta, fsc])
            .expect_err("misconfigured")
    };
    for bits in [bit(3), bit(11), bit(32), bit(63)] {
        assert_eq!(
            refused(0x1 | bits, 0),
            Misconfigured::Reserved { word: 0, bits }
        );
    }
    for bits in [bit(44), bit(59)] {
        let fsc = 0x8000_0000_0008_8001 | bits;
        assert_eq!(refused(0x1, fsc), Misconfigured::Reserved { word: 1, bits });
    }
    for mode in [1, 7, 11, 15] {
        let error = Misconfigured::FirstStageMode { mode: mode as u8 };
        assert_eq!(refused(0x1, mode << 60), error);
    }
    let error = Misconfigured::Reserved {
        word: 3,
        bits: bit(44),
    };
    assert_eq!(ProcessDirectory::decode(bit(44), false, RULES), Err(error));
}
