//! Contexts that hardware would refuse, or that have no words, are not made.

use super::encoding::{BARE, PLAIN, sv, svx4};
use super::*;
use crate::context::riscv::ProcessDirectory;

#[test]
fn what_has_no_encoding_is_not_made() {
    let new = |first, second, options| DeviceContext::new(first, second, options, FULL).map(|_| ());
    for n in (0..64).filter(|n| !(12..56).contains(n)) {
        let oa = Oa::new(bit(n));
        let error = Misconfigured::Pointer { oa };
        let first = FirstStage::Tables(sv(8, oa.get()));
        assert_eq!(new(first, SecondStage::Bare, PLAIN), Err(error));
        assert_eq!(new(BARE, svx4(8, oa.get(), 0), PLAIN), Err(error));
        assert_eq!(ProcessDirectory::new(oa, 1, FULL), Err(error));
        let msi = Some(MsiTable {
            root: oa,
            mask: 0,
            pattern: 0,
        });
        let options = DeviceOptions { msi, ..PLAIN };
        assert_eq!(new(BARE, SecondStage::Bare, options), Err(error));
    }
    let root = Oa::new(0x1000);
    let error = Misconfigured::SecondStageRoot { root };
    assert_eq!(new(BARE, svx4(8, 0x1000, 0), PLAIN), Err(error));
    for levels in [0, 4, 255] {
        let error = Misconfigured::DirectoryLevels { levels };
        assert_eq!(ProcessDirectory::new(root, levels, FULL), Err(error));
    }
    let level = Level(3);
    let mismatched = FirstStageTables::Sv {
        format: Sv::sv39(),
        root: Root { oa: root, level },
    };
    let error = Misconfigured::RootLevel { level };
    assert_eq!(
        new(FirstStage::Tables(mismatched), SecondStage::Bare, PLAIN),
        Err(error)
    );
    for (options, id, bits) in [
        (
            DeviceOptions {
                pscid: 0x10_0000,
                ..PLAIN
            },
            0x10_0000,
            20,
        ),
        (
            DeviceOptions {
                rcid: 0x1000,
                ..PLAIN
            },
            0x1000,
            12,
        ),
        (
            DeviceOptions {
                mcid: 0xffff,
                ..PLAIN
            },
            0xffff,
            12,
        ),
    ] {
        let error = Misconfigured::IdWidth { id, bits };
        assert_eq!(new(BARE, SecondStage::Bare, options), Err(error));
    }
    // Tables of the other width would be read as what they are not.
    let narrow = DeviceOptions {
        is_32_bit: true,
        ..PLAIN
    };
    let first = FirstStage::Tables(sv(8, 0x1000));
    let error = Misconfigured::SupervisorWidth;
    assert_eq!(new(first, SecondStage::Bare, narrow), Err(error));
    let second = SecondStage::Sv32x4 {
        root: Oa::new(0x4000),
        gscid: 0,
    };
    let error = Misconfigured::SecondStageMode { mode: 8 };
    assert_eq!(new(BARE, second, PLAIN), Err(error));
    let guest_32_bit = Features::new(EVERYTHING, 4);
    let refused = DeviceContext::new(BARE, svx4(8, 0x4000, 0), narrow, guest_32_bit);
    assert_eq!(refused, Err(error));
    let bare = DeviceContext::new(BARE, SecondStage::Bare, narrow, guest_32_bit);
    assert!(bare.is_ok(), "no tables have no width: {bare:?}");

    let msi = |mask, pattern| DeviceOptions {
        msi: Some(MsiTable {
            root,
            mask,
            pattern,
        }),
        ..PLAIN
    };
    let bits = bit(52);
    let error = Misconfigured::Reserved { word: 5, bits };
    assert_eq!(new(BARE, SecondStage::Bare, msi(bits, 0)), Err(error));
    let error = Misconfigured::Reserved { word: 6, bits };
    assert_eq!(new(BARE, SecondStage::Bare, msi(0, bits)), Err(error));
    let base = Features::new(EVERYTHING & !bit(22), 0);
    let refused = DeviceContext::new(BARE, SecondStage::Bare, msi(0, 0), base);
    assert_eq!(refused, Err(Misconfigured::MsiUnsupported));
}

#[test]
fn rules_that_decoding_checks_hold_for_what_is_made() {
    let second = svx4(8, 0x4000, 0);
    let ats = DeviceOptions {
        has_ats: true,
        ..PLAIN
    };
    for (options, features, second, error) in [
        (
            ats,
            Features::new(EVERYTHING & !bit(25), 0),
            second,
            Misconfigured::AtsUnsupported,
        ),
        (
            DeviceOptions {
                has_page_requests: true,
                ..PLAIN
            },
            FULL,
            second,
            Misconfigured::PriWithoutAts,
        ),
        (
            DeviceOptions {
                has_page_response_pasid: true,
                ..ats
            },
            FULL,
            second,
            Misconfigured::PrprWithoutPri,
        ),
        (
            DeviceOptions {
                has_guest_ats: true,
                ..PLAIN
            },
            FULL,
            second,
            Misconfigured::T2gpaWithoutAts,
        ),
        (
            DeviceOptions {
                has_guest_ats: true,
                ..ats
            },
            FULL,
            SecondStage::Bare,
            Misconfigured::T2gpaWithoutSecondStage,
        ),
        (
            DeviceOptions {
                is_big_endian: true,
                ..PLAIN
            },
            Features::new(EVERYTHING & !bit(27), 0),
            second,
            Misconfigured::ByteOrder,
        ),
        (
            PLAIN,
            Features::new(EVERYTHING & !bit(17), 0),
            second,
            Misconfigured::SecondStageMode { mode: 8 },
        ),
    ] {
        let refused = DeviceContext::new(BARE, second, options, features);
        assert_eq!(refused, Err(error));
    }
}
