//! Contexts made and encoded: words worked out by hand, and decoding what was encoded.

use super::*;
use crate::context::riscv::{ProcessDirectory, ProcessOptions};
use crate::context::testing::{Random, check_used};

pub(super) fn sv(mode: u8, oa: u64) -> FirstStageTables {
    let format = match mode {
        8 => Sv::sv39(),
        9 => Sv::sv48(),
        _ => Sv::sv57(),
    };
    FirstStageTables::Sv {
        format,
        root: Root {
            oa: Oa::new(oa),
            level: format.geometry().top,
        },
    }
}

pub(super) fn svx4(mode: u8, oa: u64, gscid: u16) -> SecondStage {
    let format = match mode {
        8 => Svx4::sv39x4(),
        9 => Svx4::sv48x4(),
        _ => Svx4::sv57x4(),
    };
    SecondStage::Svx4 {
        format,
        root: Root {
            oa: Oa::new(oa),
            level: format.geometry().top,
        },
        gscid,
    }
}

pub(super) const BARE: FirstStage = FirstStage::Tables(FirstStageTables::Bare);
pub(super) const PLAIN: DeviceOptions = DeviceOptions {
    has_ats: false,
    has_page_requests: false,
    has_page_response_pasid: false,
    has_guest_ats: false,
    suppresses_faults: false,
    has_first_stage_updates: false,
    has_second_stage_updates: false,
    is_big_endian: false,
    is_32_bit: false,
    custom: 0,
    pscid: 0,
    rcid: 0,
    mcid: 0,
    msi: None,
};

pub(super) fn directory(levels: u8) -> ProcessDirectory {
    ProcessDirectory::new(Oa::new(0x8800_1000), levels, FULL).expect("the directory is possible")
}

#[test]
fn stages_have_the_words_of_the_specification() {
    let tables = |mode, oa| FirstStage::Tables(sv(mode, oa));
    for (first, second, words) in [
        (BARE, SecondStage::Bare, [0x1, 0, 0]),
        (
            tables(8, 0x8800_1000),
            SecondStage::Bare,
            [0x1, 0, 0x8000_0000_0008_8001],
        ),
        (
            tables(9, 0x00ff_ffff_ffff_f000),
            SecondStage::Bare,
            [0x1, 0, 0x9000_0fff_ffff_ffff],
        ),
        (
            tables(10, 0),
            SecondStage::Bare,
            [0x1, 0, 0xa000_0000_0000_0000],
        ),
        (
            BARE,
            svx4(8, 0x8800_4000, 0xfedc),
            [0x1, 0x8fed_c000_0008_8004, 0],
        ),
        (
            BARE,
            svx4(9, 0x00ff_ffff_ffff_c000, 1),
            [0x1, 0x9000_1fff_ffff_fffc, 0],
        ),
        (
            tables(8, 0x1000),
            svx4(10, 0x4000, 0xffff),
            [0x1, 0xafff_f000_0000_0004, 0x8000_0000_0000_0001],
        ),
        (
            FirstStage::Directory(directory(1)),
            SecondStage::Bare,
            [0x21, 0, 0x1000_0000_0008_8001],
        ),
        (
            FirstStage::Directory(directory(2)),
            SecondStage::Bare,
            [0x21, 0, 0x2000_0000_0008_8001],
        ),
        (
            FirstStage::Directory(directory(3).with_default_process()),
            SecondStage::Bare,
            [0x221, 0, 0x3000_0000_0008_8001],
        ),
        (
            FirstStage::Tables(FirstStageTables::Sv32 {
                root: Oa::new(0x8800_1000),
            }),
            SecondStage::Bare,
            [0x801, 0, 0x8000_0000_0008_8001],
        ),
    ] {
        let context = DeviceContext::new(first, second, PLAIN, FULL).expect("it is possible");
        let [tc, iohgatp, fsc] = words;
        assert_eq!(context.encode(), [tc, iohgatp, 0, fsc, 0, 0, 0, 0]);
        assert_eq!(
            DeviceContext::decode(context.encode(), FULL),
            Ok(Some(context))
        );
    }
    let second = SecondStage::Sv32x4 {
        root: Oa::new(0x8800_4000),
        gscid: 0x123,
    };
    let options = DeviceOptions {
        is_32_bit: true,
        ..PLAIN
    };
    let narrow = Features::new(EVERYTHING, 4);
    let context = DeviceContext::new(BARE, second, options, narrow).expect("it is possible");
    assert_eq!(context.encode()[..2], [0x801, 0x8012_3000_0008_8004]);
}

/// `iohgatp` of the contexts that [`made`] makes.
const IOHGATP: u64 = 0x8000_0000_0000_0004;

fn made(options: DeviceOptions) -> DeviceContext {
    let context = DeviceContext::new(BARE, svx4(8, 0x4000, 0), options, FULL);
    context.expect("it is possible")
}

#[test]
fn flags_have_the_bits_of_the_specification() {
    for (options, tc) in [
        (PLAIN, 0x1),
        (
            DeviceOptions {
                has_ats: true,
                ..PLAIN
            },
            0x3,
        ),
        (
            DeviceOptions {
                has_ats: true,
                has_page_requests: true,
                ..PLAIN
            },
            0x7,
        ),
        (
            DeviceOptions {
                has_ats: true,
                has_guest_ats: true,
                ..PLAIN
            },
            0xb,
        ),
        (
            DeviceOptions {
                suppresses_faults: true,
                ..PLAIN
            },
            0x11,
        ),
        (
            DeviceOptions {
                has_ats: true,
                has_page_requests: true,
                has_page_response_pasid: true,
                ..PLAIN
            },
            0x47,
        ),
        (
            DeviceOptions {
                has_second_stage_updates: true,
                ..PLAIN
            },
            0x81,
        ),
        (
            DeviceOptions {
                has_first_stage_updates: true,
                ..PLAIN
            },
            0x101,
        ),
        (
            DeviceOptions {
                is_big_endian: true,
                ..PLAIN
            },
            0x401,
        ),
        (
            DeviceOptions {
                is_32_bit: true,
                ..PLAIN
            },
            0x801,
        ),
        (
            DeviceOptions {
                custom: 0xa5,
                ..PLAIN
            },
            0xa500_0001,
        ),
    ] {
        let context = made(options);
        assert_eq!(context.encode(), [tc, IOHGATP, 0, 0, 0, 0, 0, 0]);
        assert_eq!(context.options(), options);
    }
}

#[test]
fn ids_and_msi_tables_have_the_bits_of_the_specification() {
    for (options, ta) in [
        (
            DeviceOptions {
                pscid: 0xf_edcb,
                ..PLAIN
            },
            0xfedc_b000,
        ),
        (
            DeviceOptions {
                rcid: 0xabc,
                ..PLAIN
            },
            0x000a_bc00_0000_0000,
        ),
        (
            DeviceOptions {
                mcid: 0xabc,
                ..PLAIN
            },
            0xabc0_0000_0000_0000,
        ),
    ] {
        let context = made(options);
        assert_eq!(context.encode(), [0x1, IOHGATP, ta, 0, 0, 0, 0, 0]);
        assert_eq!(context.options(), options);
    }
    let msi = MsiTable {
        root: Oa::new(0x00ab_cdef_0123_4000),
        mask: 0x000f_0000_0000_00ff,
        pattern: 0x0001_2345_6789_abcd,
    };
    let options = DeviceOptions {
        msi: Some(msi),
        ..PLAIN
    };
    let context = made(options);
    let words = [0x1000_0abc_def0_1234, msi.mask, msi.pattern, 0];
    assert_eq!(context.encode()[4..], words);
    assert_eq!(context.options(), options);
}

#[test]
fn formats_that_track_dirty_pages_turn_hardware_updates_on() {
    let FirstStageTables::Sv { format, root } = sv(9, 0x1000) else {
        panic!("tables of 48 bits")
    };
    let tables = FirstStageTables::Sv {
        format: format.with_dirty(),
        root,
    };
    let SecondStage::Svx4 {
        format,
        root,
        gscid,
    } = svx4(9, 0x4000, 1)
    else {
        panic!("tables of 50 bits")
    };
    let second = SecondStage::Svx4 {
        format: format.with_dirty(),
        root,
        gscid,
    };
    let context = |first, second| DeviceContext::new(first, second, PLAIN, FULL);
    let first = FirstStage::Tables(tables);
    let tc = |context: Result<DeviceContext, Misconfigured>| context.map(|it| it.encode()[0]);
    assert_eq!(tc(context(first, SecondStage::Bare)), Ok(0x101));
    assert_eq!(tc(context(BARE, second)), Ok(0x81));
    assert_eq!(tc(context(first, second)), Ok(0x181));
    let without = Features::new(EVERYTHING & !bit(24), 0);
    let refused = DeviceContext::new(first, SecondStage::Bare, PLAIN, without);
    assert_eq!(refused, Err(Misconfigured::UpdatesUnsupported));
}

#[test]
fn process_contexts_have_the_words_of_the_specification() {
    let options = ProcessOptions::default();
    for (tables, options, words) in [
        (FirstStageTables::Bare, options, [0x1, 0]),
        (sv(8, 0x8800_1000), options, [0x1, 0x8000_0000_0008_8001]),
        (
            sv(9, 0x00ff_ffff_ffff_f000),
            options,
            [0x1, 0x9000_0fff_ffff_ffff],
        ),
        (
            FirstStageTables::Bare,
            ProcessOptions {
                pscid: 0xf_edcb,
                ..options
            },
            [0xfedc_b001, 0],
        ),
        (
            FirstStageTables::Bare,
            ProcessOptions {
                has_supervisor: true,
                ..options
            },
            [0x3, 0],
        ),
        (
            FirstStageTables::Bare,
            ProcessOptions {
                has_supervisor_user_memory: true,
                ..options
            },
            [0x5, 0],
        ),
    ] {
        let context = directory(3)
            .make_context(tables, options)
            .expect("it is possible");
        assert_eq!(context.encode(), words);
        assert_eq!(context.options(), options);
        assert_eq!(directory(3).decode_context(words), Ok(Some(context)));
    }
    let refused = |tables, options| directory(3).make_context(tables, options).map(|_| ());
    let pscid = 0x10_0000;
    let wide = ProcessOptions { pscid, ..options };
    let error = Misconfigured::IdWidth {
        id: pscid,
        bits: 20,
    };
    assert_eq!(refused(FirstStageTables::Bare, wide), Err(error));
    let root = Oa::new(0x1000);
    let error = Misconfigured::SupervisorWidth;
    assert_eq!(
        refused(FirstStageTables::Sv32 { root }, options),
        Err(error)
    );
    let FirstStageTables::Sv { format, root } = sv(8, 0x1000) else {
        panic!("tables of 39 bits")
    };
    let tracked = FirstStageTables::Sv {
        format: format.with_dirty(),
        root,
    };
    let error = Misconfigured::UpdatesUnsupported;
    assert_eq!(refused(tracked, options), Err(error));
}

/// Random words, most of them of a context that is configured well.
fn random_context(random: &mut Random) -> [u64; 8] {
    let mut tc = random.next() & !TC_RESERVED | VALID;
    if random.below(4) != 0 {
        tc &= !SXL;
    }
    if tc & ENABLE_ATS == 0 {
        tc &= !(T2GPA | ENABLE_PRI);
    }
    if tc & ENABLE_PRI == 0 {
        tc &= !PRPR;
    }
    if tc & HAS_DIRECTORY == 0 {
        tc &= !DEFAULT_PROCESS;
    }
    let mut stage = |modes: [u64; 4], clear: u64| {
        let mode = modes[random.below(4) as usize];
        MODE.put(mode) | random.next() & !MODE.mask() & !clear
    };
    let reserved = Bits::<59, 44>.mask();
    let iohgatp = stage([0, 8, 9, 10], 0x3);
    let fsc = match (tc & HAS_DIRECTORY, tc & SXL) {
        (0, 0) => stage([0, 8, 9, 10], reserved),
        (0, _) => stage([0, 8, 8, 8], reserved),
        _ => stage([0, 1, 2, 3], reserved),
    };
    let msiptp = stage([0, 1, 1, 1], reserved);
    let ta = random.next() & !TA_RESERVED;
    let address = |word: u64| word & !MSI_ADDRESS_RESERVED.mask();
    [
        tc,
        iohgatp,
        ta,
        fsc,
        msiptp,
        address(random.next()),
        address(random.next()),
        0,
    ]
}

#[test]
fn decoded_contexts_encode_to_the_bits_that_hardware_reads() {
    let base = Features::new(EVERYTHING & !bit(22), 0);
    for features in [FULL, base] {
        let format = features.context_format();
        let mut random = Random::new(0x0fed_cba9_8765_4321);
        let mut accepted = 0;
        for _ in 0..20_000 {
            let words = random_context(&mut random);
            let Ok(Some(context)) = DeviceContext::decode(words, features) else {
                continue;
            };
            accepted += 1;
            let encoded = context.encode();
            let read = DeviceContext::used(words, format);
            assert_eq!(DeviceContext::used(encoded, format), read);
            for word in 0..8 {
                assert_eq!(encoded[word], words[word] & read[word], "{words:#x?}");
            }
            assert_eq!(DeviceContext::decode(encoded, features), Ok(Some(context)));
            let again = DeviceContext::new(
                context.first_stage(),
                context.second_stage(),
                context.options(),
                features,
            );
            assert_eq!(again, Ok(context), "{words:#x?}");
            if accepted % 64 == 0 {
                check_used(words, read, |words| DeviceContext::decode(words, features));
            }
        }
        assert!(accepted > 10_000, "{accepted} of 20000 are accepted");
    }
}

#[test]
fn decoded_process_contexts_encode_to_the_bits_that_hardware_reads() {
    let directory = directory(2);
    let mut random = Random::new(0x1357_9bdf_0246_8ace);
    for count in 0..10_000 {
        let mode = [0, 8, 9, 10][random.below(4) as usize];
        let ta = random.next() & 0xffff_f006 | VALID;
        let fsc = MODE.put(mode) | random.next() & PPN.mask();
        let words = [ta, fsc];
        let context = directory.decode_context(words);
        let context = context.expect("it is configured well").expect("V is set");
        let read = crate::context::riscv::ProcessContext::used(words);
        assert_eq!(context.encode(), [ta & read[0], fsc & read[1]]);
        let again = directory.make_context(context.tables(), context.options());
        assert_eq!(again, Ok(context));
        if count % 64 == 0 {
            check_used(words, read, |words| directory.decode_context(words));
        }
    }
}
