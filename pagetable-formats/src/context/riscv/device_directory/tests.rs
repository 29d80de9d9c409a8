//! A directory that Linux wrote, and directories worked out by hand.

use super::*;
use crate::context::riscv::{
    Directory, DirectoryPage, FirstStage, FirstStageTables, Misconfigured, SecondStage,
};

/// Registers of an emulated IOMMU under Linux: extended contexts, three levels.
const FEATURES: Features = Features::new(0x78_e2cf_0f10, 0x2);
const DDTP: u64 = 0x2100_e004;

fn directory(word: u64, features: Features) -> DeviceDirectory {
    match Ddtp::decode(word, features) {
        Ok(Ddtp::Directory(directory)) => directory,
        other => panic!("{word:#x} is {other:?}"),
    }
}

/// Items of that IOMMU's directory, and zeros where it has others.
fn read(address: Oa) -> Option<u64> {
    Some(match address.get() {
        0x8403_8000 => 0x2100_e401,
        0x8403_9000 => 0x2100_e801,
        0x8403_9008 => 0x2100_f401,
        0x8403_9080 => 0x2101_0801,
        0x8403_a000 | 0x8403_a200 | 0x8403_d000 | 0x8404_2600 => 0x1,
        0x8403_8008..0x8403_b000 | 0x8403_d008..0x8403_e000 | 0x8404_2000..0x8404_3000 => 0,
        _ => return None,
    })
}

#[test]
fn contexts_of_linux_are_found_where_it_put_them() {
    let directory = directory(DDTP, FEATURES);
    assert_eq!(
        (directory.root(), directory.levels()),
        (Oa::new(0x8403_8000), 3)
    );
    assert_eq!(directory.device_id_bits(), 24);
    for (device_id, address) in [
        (0, 0x8403_a000),
        (0x8, 0x8403_a200),
        (0x40, 0x8403_d000),
        (0x418, 0x8404_2600),
    ] {
        assert_eq!(directory.locate(device_id, read), Ok(Oa::new(address)));
        let context = directory
            .context(device_id, read)
            .expect("the context is valid");
        assert_eq!(
            context.first_stage(),
            FirstStage::Tables(FirstStageTables::Bare)
        );
        assert_eq!(context.second_stage(), SecondStage::Bare);
    }
}

#[test]
fn a_search_says_where_it_ends() {
    let directory = directory(DDTP, FEATURES);
    let ends = [
        (
            0x9,
            LocateError::NotValid {
                address: Oa::new(0x8403_a240),
            },
            258,
        ),
        (
            0x80,
            LocateError::NotValid {
                address: Oa::new(0x8403_9010),
            },
            258,
        ),
        (
            0x100_0000,
            LocateError::IdWidth {
                id: 0x100_0000,
                bits: 24,
            },
            260,
        ),
    ];
    for (device_id, error, cause) in ends {
        assert_eq!(directory.context(device_id, read), Err(error));
        assert_eq!(error.cause(Directory::Device), cause);
    }
    let error = LocateError::Unreadable {
        address: Oa::new(0x8403_8000),
    };
    assert_eq!(directory.context(0, |_| None), Err(error));
    assert_eq!(
        (
            error.cause(Directory::Device),
            error.cause(Directory::Process)
        ),
        (257, 265)
    );
}

#[test]
fn a_pointer_holds_a_page_number_and_nothing_else() {
    let directory = directory(DDTP, FEATURES);
    for bits in [bit(1), bit(9), bit(54), bit(63)] {
        let address = Oa::new(0x8403_8000);
        let reason = Misconfigured::Reserved { word: 0, bits };
        let error = LocateError::Misconfigured { address, reason };
        assert_eq!(directory.locate(0, |_| Some(0x1 | bits)), Err(error));
        assert_eq!(
            (
                error.cause(Directory::Device),
                error.cause(Directory::Process)
            ),
            (259, 267)
        );
    }
}

#[test]
fn base_contexts_leave_other_bits_to_each_level() {
    let base = Features::new(0x78_e28f_0f10, 0);
    // 0x9a5d3 = 0b1001_101001011_1010011: 8, 9 and 7 bits.
    let read = |address: Oa| match address.get() {
        0x1048 => Some(0x801),
        0x2a58 => Some(0xc01),
        _ => None,
    };
    let three = directory(0x404, base);
    assert_eq!(three.locate(0x9_a5d3, read), Ok(Oa::new(0x3a60)));
    assert_eq!(directory(0x403, base).device_id_bits(), 16);
    assert_eq!(directory(0x402, base).device_id_bits(), 7);
    assert_eq!(
        directory(0x402, base).locate(0x53, |_| None),
        Ok(Oa::new(0x1a60))
    );
    assert_eq!(directory(0x403, FEATURES).device_id_bits(), 15);
    assert_eq!(directory(0x402, FEATURES).device_id_bits(), 6);
}

#[test]
fn the_register_says_off_bare_or_where_the_directory_lies() {
    assert_eq!(Ddtp::decode(0x2100_e000, FEATURES), Ok(Ddtp::Off));
    assert_eq!(Ddtp::decode(0x2100_e001, FEATURES), Ok(Ddtp::Bare));
    for mode in 5..16 {
        assert_eq!(
            Ddtp::decode(mode, FEATURES),
            Err(ReservedMode { mode: mode as u8 })
        );
    }
    let all_ones = directory(!0xf | 2, FEATURES);
    assert_eq!(all_ones.root(), Oa::new(0x00ff_ffff_ffff_f000));
    assert!(Ddtp::is_busy(0x2100_e014) && !Ddtp::is_busy(DDTP));
}

#[test]
fn the_register_and_pointers_are_made_of_what_fields_can_hold() {
    let root = Oa::new(0x00ab_cdef_0123_4000);
    for (levels, word) in [
        (1, 0x2a_f37b_c048_d002),
        (2, 0x2a_f37b_c048_d003),
        (3, 0x2a_f37b_c048_d004),
    ] {
        let directory = DeviceDirectory::new(root, levels, FEATURES);
        let ddtp = Ddtp::Directory(directory.expect("the fields can hold it"));
        assert_eq!(ddtp.encode(), word);
        assert_eq!(Ddtp::decode(word, FEATURES), Ok(ddtp));
    }
    assert_eq!((Ddtp::Off.encode(), Ddtp::Bare.encode()), (0, 1));
    let page = DirectoryPage::new(root).expect("the field can hold it");
    assert_eq!(page.encode(), 0x2a_f37b_c048_d001);
    assert_eq!(DirectoryPage::decode(page.encode()), Ok(Some(page)));
    assert_eq!(DirectoryPage::decode(!1), Ok(None));
    for n in (0..64).filter(|n| !(12..56).contains(n)) {
        let oa = Oa::new(root.get() ^ bit(n));
        let error = Misconfigured::Pointer { oa };
        assert_eq!(DirectoryPage::new(oa), Err(error));
        assert_eq!(DeviceDirectory::new(oa, 1, FEATURES), Err(error));
    }
    for levels in [0, 4, 255] {
        let error = Misconfigured::DirectoryLevels { levels };
        assert_eq!(DeviceDirectory::new(root, levels, FEATURES), Err(error));
    }
}
