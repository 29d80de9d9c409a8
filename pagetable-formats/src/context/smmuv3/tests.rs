//! Words of real stream tables, and words worked out by hand.

use super::*;
use crate::armv8::{
    AnyFormat, Cacheability, Half, HardwareUpdates, Lpae32, Lpae32Stage2, Shareability, Stage1,
    Stage2,
};
use crate::catalog::Visitor;
use crate::walk::{Fault, Root, Walked, walk};
use crate::{ConfigError, Field, Format, Iova, Level, Oa, Prot, bit};

mod contexts;
mod encode;
mod layouts;
mod random;
mod transitions;

/// Of a Linux guest: stage 1, one CD.
const LINUX_S1: Ste = Ste::new([0x4805_500b, 0xd6, 0, 0, 0, 0, 0, 0]);
/// Of the same guest: 48-bit input, 44-bit output, ASID 1. Linux extends the sign of `MAIR`.
const LINUX_CD: Cd = Cd::new([
    0x0001_e204_c000_3510,
    0x4805_6000,
    0,
    0xffff_ffff_f404_ff44,
    0,
    0,
    0,
    0,
]);
/// Of a Linux guest: stage 2 with 44 bits, VMID 1.
const LINUX_S2: Ste = Ste::new([0xd, 0, 0x044c_3594_0000_0001, 0x480d_f000, 0, 0, 0, 0]);

/// Returns `cd` with another word.
fn with_cd_word(cd: &Cd, index: usize, word: u64) -> Cd {
    let mut words = *cd.words();
    words[index] = word;
    Cd::new(words)
}

/// Returns `ste` with another word.
fn with_ste_word(ste: &Ste, index: usize, word: u64) -> Ste {
    let mut words = *ste.words();
    words[index] = word;
    Ste::new(words)
}

fn root(oa: u64, level: u8) -> Root {
    Root {
        oa: Oa::new(oa),
        level: Level(level),
    }
}

#[test]
fn a_linux_stream_leads_to_its_stage1_table() {
    assert_eq!(LINUX_S1.config(), StreamConfig::Stage1);
    assert_eq!(LINUX_S1.stage2(), Ok(None));
    assert_eq!(LINUX_S1.cd_inner(), Cacheability::WriteBack);
    assert_eq!(LINUX_S1.cd_outer(), Cacheability::WriteBack);
    assert_eq!(LINUX_S1.cd_shareability(), Shareability::Inner);
    assert_eq!(LINUX_S1.default_substream(), DefaultSubstream::Substream0);
    let cds = LINUX_S1.cd_table().unwrap().unwrap();
    assert_eq!((cds.count_lg2(), cds.format()), (0, CdTableFormat::Linear));
    assert_eq!(cds.address(0), Some(CdAddress::Cd(Oa::new(0x4805_5000))));
    assert_eq!(cds.address(1), None);

    let table = LINUX_CD.table(Half::Lower).unwrap();
    // Bytes 4 to 7 of this MAIR are write-back.
    let format = Stage1::new(48, 44).unwrap().with_mair(LINUX_CD.mair());
    assert_eq!(table.format, AnyFormat::Stage1Kib4(format));
    assert_eq!(table.root, root(0x4805_6000, 3));
    assert_eq!(
        LINUX_CD.table(Half::Upper),
        Err(CdError::Disabled { half: Half::Upper })
    );
    assert_eq!(LINUX_CD.asid(), 1);
    assert!(LINUX_CD.records() && LINUX_CD.aborts() && LINUX_CD.has_private_asid());
    assert!(!LINUX_CD.stalls() && !LINUX_CD.ha() && !LINUX_CD.hd());
}

#[test]
fn the_table_of_a_linux_stream_can_be_walked() {
    struct Walk(Root, Iova);

    impl Visitor for Walk {
        type Output = Result<Walked, Fault>;

        fn visit<F: Format>(self, format: F) -> Self::Output {
            let read = |address: Oa| {
                Some(match address.get() {
                    0x4805_6000 => 0x4805_7003,
                    0x4805_7018 => 0x4805_8003,
                    0x4805_8ff8 => 0x4805_9003,
                    0x4805_9f00 => 0x4458_bf47,
                    _ => 0,
                })
            };
            walk(&format, self.0, self.1, read, |_| ())
        }
    }

    let table = LINUX_CD.table(Half::Lower).unwrap();
    let translate = |iova| table.format.visit(Walk(table.root, Iova::new(iova)));
    let found = translate(0xfffe_0123).unwrap();
    assert_eq!(found.oa, Oa::new(0x4458_b123));
    assert_eq!(found.prot, Prot::RW.cached().executable());
    assert_eq!(
        translate(0xfffe_1000),
        Err(Fault::NotPresent { level: Level(0) })
    );
    assert!(matches!(
        translate(1 << 48),
        Err(Fault::OutsideWindow { .. })
    ));
}

#[test]
fn a_linux_stream_leads_to_its_stage2_table() {
    assert_eq!(LINUX_S2.config(), StreamConfig::Stage2);
    assert_eq!(LINUX_S2.cd_table(), Ok(None));
    let table = LINUX_S2.stage2().unwrap().unwrap();
    assert_eq!(
        table.format,
        AnyFormat::Stage2Kib4(Stage2::new(44, 44).unwrap())
    );
    assert_eq!(table.root, root(0x480d_f000, 3));
    assert_eq!(LINUX_S2.vmid(), 1);
    assert!(LINUX_S2.stage2_records() && LINUX_S2.protects_table_walks());
    assert!(!LINUX_S2.stage2_stalls() && !LINUX_S2.is_stage2_big_endian());
}

#[test]
fn linux_finds_streams_through_two_levels() {
    let table = StreamTable::new(0x4000_0000_443b_4000, 0x1_0210);
    assert_eq!(
        (table.base(), table.split()),
        (Oa::new(0x443b_4000), Some(8))
    );
    assert!(table.read_allocate());
    // Stream 0x418: descriptor 4, STE 0x18.
    assert_eq!(
        table.address(0x418),
        Some(SteAddress::L1(Oa::new(0x443b_4020)))
    );
    let desc = L1StreamDesc::new(0x4ba7_0009);
    assert_eq!(desc.address(&table, 0x418), Some(Oa::new(0x4ba7_0600)));
    assert_eq!(
        table.address(0xffff),
        Some(SteAddress::L1(Oa::new(0x443b_47f8)))
    );
    assert_eq!(table.address(0x1_0000), None);
    assert_eq!(L1StreamDesc::new(0).address(&table, 0), None);
}

#[test]
fn a_linear_stream_table_is_indexed_by_the_stream() {
    // The base is aligned to 2^(10 + 6) bytes.
    let table = StreamTable::new(0x4001_2fc0, 10);
    assert_eq!(table.base(), Oa::new(0x4001_0000));
    assert_eq!(
        table.address(0x3ff),
        Some(SteAddress::Ste(Oa::new(0x4001_ffc0)))
    );
    assert_eq!(table.address(0x400), None);
    assert_eq!(L1StreamDesc::new(0x4ba7_0009).address(&table, 0), None);
    // The largest table and the highest stream.
    let table = StreamTable::new(u64::MAX, 32);
    assert_eq!(
        table.address(u32::MAX),
        Some(SteAddress::Ste(Oa::new(0x00ff_ffff_ffff_ffc0)))
    );
}

#[test]
fn reserved_values_of_the_stream_table_registers_act_as_others() {
    // Formats as linear, split points as 6, sizes as that of a stream number.
    for cfg in [2 << 16 | 16, 3 << 16 | 16] {
        assert_eq!(StreamTable::new(0, cfg).split(), None);
    }
    for split in [0, 6, 7, 9, 31] {
        let table = StreamTable::new(0, 1 << 16 | split << 6 | 16);
        assert_eq!(table.split(), Some(6));
    }
    for log2size in [33, 58, 63] {
        let table = StreamTable::new(u64::MAX, log2size);
        assert_eq!(table.count_lg2(), 32);
        // The size as written is what aligns the base.
        let base = u64::MAX >> 8 & u64::MAX.checked_shl(log2size + 6).unwrap_or(0);
        assert_eq!(table.base(), Oa::new(base));
    }
}

#[test]
fn a_level_1_descriptor_covers_its_span_only() {
    let table = StreamTable::new(0, 1 << 16 | 8 << 6 | 16);
    // Span 5: 16 STEs, so that the address is aligned to 1 KiB.
    let desc = L1StreamDesc::new(0x4ba7_07c0 | 5);
    assert_eq!(desc.l2_table(), Some(Oa::new(0x4ba7_0400)));
    assert_eq!(desc.address(&table, 0x10f), Some(Oa::new(0x4ba7_07c0)));
    assert_eq!(desc.address(&table, 0x110), None);
    // 512 STEs do not fit a split of 8; from 12 on, spans are reserved.
    assert_eq!(L1StreamDesc::new(0x4ba7_000a).address(&table, 0), None);
    assert_eq!(L1StreamDesc::new(0x4ba7_000c).l2_table(), None);
    assert_eq!(L1StreamDesc::new(0x4ba7_001f).count_lg2(), None);
}

#[test]
fn substreams_find_their_cds() {
    // S1Fmt and S1CDMax of a nested stream.
    let table = |fmt: u64, max: u64| {
        let word = 0x1234_5678_9000 | 0xf | fmt << 4 | max << 59;
        with_ste_word(&LINUX_S1, 0, word)
            .cd_table()
            .unwrap()
            .unwrap()
    };
    let linear = table(0, 5);
    assert_eq!(
        linear.address(31),
        Some(CdAddress::Cd(Oa::new(0x1234_5678_97c0)))
    );
    assert_eq!(linear.address(32), None);
    assert_eq!(table(3, 5).format(), CdTableFormat::Linear);
    // Without substreams the format means nothing.
    assert_eq!(table(2, 0).format(), CdTableFormat::Linear);

    let small = table(1, 20);
    // 2^14 descriptors: aligned to 128 KiB.
    assert_eq!(small.base(), Oa::new(0x1234_5678_0000 & !0x1_ffff));
    let l1 = small.base().get() + 8 * (0xf_1234 >> 6);
    assert_eq!(small.address(0xf_1234), Some(CdAddress::L1(Oa::new(l1))));
    let desc = L1CdDesc::new(0x8000_0000_8800_1001);
    assert_eq!(
        desc.address(&small, 0xf_1234),
        Some(Oa::new(0x8800_1000 + 0x34 * 64))
    );

    let large = table(2, 12);
    assert_eq!(
        large.address(0x400),
        Some(CdAddress::L1(Oa::new(0x1234_5678_9008)))
    );
    // 64 KiB tables are aligned to their size.
    let desc = L1CdDesc::new(0x8801_f001);
    assert_eq!(desc.address(&large, 0x7ff), Some(Oa::new(0x8801_ffc0)));
    assert_eq!(L1CdDesc::new(0x8801_f000).address(&large, 0), None);
    assert_eq!(desc.address(&linear, 0), None);
    // Few substreams use one descriptor.
    assert_eq!(
        table(2, 3).address(7),
        Some(CdAddress::L1(Oa::new(0x1234_5678_9000)))
    );
}

#[test]
fn every_config_has_a_meaning() {
    use StreamConfig::{Abort, Bypass, Nested, Stage1, Stage2};
    let configs = [0, 1, 2, 3, 4, 5, 6, 7]
        .map(|config| with_ste_word(&LINUX_S1, 0, 1 | config << 1).config());
    assert_eq!(
        configs,
        [Abort, Abort, Abort, Abort, Bypass, Stage1, Stage2, Nested]
    );
    assert!(Nested.has_stage1() && Nested.has_stage2());
    assert!(!Bypass.has_stage1() && !Bypass.has_stage2());
}

#[test]
fn an_invalid_entry_leads_nowhere() {
    let ste = with_ste_word(&LINUX_S1, 0, LINUX_S1.words()[0] & !1);
    assert_eq!(ste.cd_table(), Err(SteError::Invalid));
    assert_eq!(ste.stage2(), Err(SteError::Invalid));
    let cd = with_cd_word(&LINUX_CD, 0, LINUX_CD.words()[0] & !bit(31));
    assert_eq!(cd.table(Half::Lower), Err(CdError::Invalid));
}

#[test]
fn big_endian_tables_are_refused() {
    let ste = with_ste_word(&LINUX_S2, 2, LINUX_S2.words()[2] | bit(52));
    assert_eq!(ste.stage2(), Err(SteError::BigEndian));
    let cd = with_cd_word(&LINUX_CD, 0, LINUX_CD.words()[0] | bit(15));
    assert_eq!(cd.table(Half::Lower), Err(CdError::BigEndian));
}

#[test]
fn fields_of_word_1_of_an_ste_are_decoded() {
    use DefaultSubstream::{Bypass, Substream0, Terminate};
    use Override::{Clear, Incoming, Set};
    use Shareability::{Inner, None as NonShareable, Outer};
    use StreamWorld::{El1, El2, El3, Reserved};
    let ste = |word| with_ste_word(&LINUX_S1, 1, word);
    let dss = [0, 1, 2, 3].map(|value| ste(value).default_substream());
    assert_eq!(dss, [Terminate, Bypass, Substream0, Terminate]);
    let ats = [0, 1, 2, 3].map(|value| ste(value << 28).ats());
    assert_eq!(
        ats,
        [Ats::Refused, Ats::Full, Ats::SplitStage, Ats::Checked]
    );
    let worlds = [0, 1, 2, 3].map(|value| ste(value << 30).stream_world());
    assert_eq!(worlds, [El1, El3, El2, Reserved]);
    let shcfg = [0, 1, 2, 3].map(|value| ste(value << 44).shareability());
    assert_eq!(shcfg, [Some(NonShareable), None, Some(Outer), Some(Inner)]);
    let privilege = [0, 1, 2, 3].map(|value| ste(value << 48).privilege());
    assert_eq!(privilege, [Incoming, Incoming, Clear, Set]);
    let instruction = [0, 1, 2, 3].map(|value| ste(value << 50).instruction());
    assert_eq!(instruction, [Incoming, Incoming, Clear, Set]);
    assert_eq!(ste(0x1_4000).contiguous_lg2(), 10);
    assert_eq!(ste(0xa << 32).memory_attributes(), 0xa);
    assert!(ste(bit(19)).merges_events() && ste(bit(25)).forces_write_back());
    assert!(ste(bit(27)).stage1_stalls_disabled() && ste(bit(36)).replaces_memory_type());
}

#[test]
fn options_of_stage2_reach_the_format() {
    let updates = |bits: u64| match with_ste_word(&LINUX_S2, 2, LINUX_S2.words()[2] | bits)
        .stage2()
        .unwrap()
        .unwrap()
        .format
    {
        AnyFormat::Stage2Kib4(format) => format,
        other => panic!("{other:?}"),
    };
    let plain = Stage2::<12>::new(44, 44).unwrap();
    let (hd, ha, affd) = (bit(55), bit(56), bit(53));
    assert_eq!(updates(ha | hd), plain.with_updates(HardwareUpdates::Dirty));
    assert_eq!(
        updates(ha | affd),
        plain.with_updates(HardwareUpdates::Accessed)
    );
    assert_eq!(updates(hd), plain);
    assert_eq!(updates(affd), plain.with_updates(HardwareUpdates::Ignored));

    let forced = with_ste_word(&LINUX_S2, 1, bit(25))
        .stage2()
        .unwrap()
        .unwrap();
    let plain = plain.with_forced_write_back();
    assert_eq!(forced.format, AnyFormat::Stage2Kib4(plain));
}

#[test]
fn a_concatenated_root_follows_from_the_start_level() {
    // 40 bits, SL0 = 1, PS = 2: two tables side by side, so that bit 12 of the base is ignored.
    let word2 = (0x18 | 1 << 6 | 2 << 16 | 1 << 19) << 32;
    let ste = Ste::new([0xd, 0, word2, 0x480d_f000, 0, 0, 0, 0]);
    let table = ste.stage2().unwrap().unwrap();
    assert_eq!(
        table.format,
        AnyFormat::Stage2Kib4(Stage2::new(40, 40).unwrap())
    );
    assert_eq!(table.root, root(0x480d_e000, 2));
    // Five levels: S2SL0_2 and S2DS.
    let word2 = (0xc | 6 << 16 | 1 << 19) << 32;
    let ste = Ste::new([0xd, 0, word2, 0x480d_f000 | 0xc, 0, 0, 0, 0]);
    let format = Stage2::new_lpa(52, 52)
        .unwrap()
        .with_start_level(Level(4))
        .unwrap();
    let table = ste.stage2().unwrap().unwrap();
    assert_eq!(table.format, AnyFormat::Stage2Kib4(format));
    assert_eq!(table.root, root(0x480d_f000, 4));
}

#[test]
fn a_stage2_that_does_not_fit_itself_is_refused() {
    let stage2 = |vtcr: u64| Ste::new([0xd, 0, (vtcr | 1 << 19) << 32, 0, 0, 0, 0, 0]).stage2();
    let refused = |result| matches!(result, Err(SteError::Stage2(ConfigError::Levels { .. })));
    // 48 bits from level 2 (generic 1), and 30 bits from level 0.
    assert!(refused(stage2(16)));
    assert!(refused(stage2(0x22 | 2 << 6)));
    assert!(matches!(
        stage2(63),
        Err(SteError::Stage2(ConfigError::VaBits { .. }))
    ));
    assert!(matches!(
        stage2(3 << 14),
        Err(SteError::Stage2(ConfigError::Option { .. }))
    ));
}

#[test]
fn options_of_stage1_reach_the_format() {
    let format = |cd: Cd| cd.table(Half::Lower).unwrap().format;
    let plain = Stage1::<12>::new(48, 44)
        .unwrap()
        .with_mair(LINUX_CD.mair());
    let (hd, ha, affd) = (bit(42), bit(43), bit(35));
    let word0 = LINUX_CD.words()[0];
    let updates = |bits| format(with_cd_word(&LINUX_CD, 0, word0 | bits));
    let expected = |updates| AnyFormat::Stage1Kib4(plain.with_updates(updates));
    assert_eq!(updates(ha | hd), expected(HardwareUpdates::Dirty));
    assert_eq!(updates(ha), expected(HardwareUpdates::Accessed));
    assert_eq!(updates(hd), expected(HardwareUpdates::None));
    assert_eq!(updates(affd), expected(HardwareUpdates::Ignored));
    let had = with_cd_word(&LINUX_CD, 1, 0x4805_6002);
    assert_eq!(
        format(had),
        AnyFormat::Stage1Kib4(plain.without_table_limits())
    );
    assert!(with_cd_word(&LINUX_CD, 0, bit(36)).writable_never_executes());
    assert!(with_cd_word(&LINUX_CD, 0, bit(40)).denies_privileged_access());
}

#[test]
fn both_halves_have_their_own_table() {
    // TTB1: T1SZ 25, TG1 1 (16 KiB), EPD1 clear; DS, 52-bit output.
    let word0 = LINUX_CD.words()[0] & !bit(30) & !(7 << 32) | 6 << 32 | (0x19 | 1 << 6) << 16;
    let cd = with_cd_word(&with_cd_word(&LINUX_CD, 0, word0), 2, bit(58) | 0x8800_0040);
    assert!(cd.has_ds());
    let upper = cd.table(Half::Upper).unwrap();
    let mair = LINUX_CD.mair();
    let format = Stage1::new_lpa(39, 52)
        .unwrap()
        .with_mair(mair)
        .in_upper_half();
    assert_eq!(upper.format, AnyFormat::Stage1Kib16(format));
    assert_eq!(upper.root, root(0x8800_0040, 2));
    let lower = cd.table(Half::Lower).unwrap();
    let format = Stage1::new_lpa(48, 52).unwrap().with_mair(mair);
    assert_eq!(lower.format, AnyFormat::Stage1Kib4(format));
}

#[test]
fn bit_55_selects_the_half_and_tags_are_stripped() {
    let locate = |cd: &Cd, iova| {
        let (half, iova) = cd.locate(Iova::new(iova));
        (half, iova.get())
    };
    assert_eq!(locate(&LINUX_CD, 0x1000), (Half::Lower, 0x1000));
    assert_eq!(locate(&LINUX_CD, u64::MAX), (Half::Upper, u64::MAX));
    assert_eq!(
        locate(&LINUX_CD, 0xab00_0000_0000_1000),
        (Half::Lower, 0xab00_0000_0000_1000)
    );
    let tbi = with_cd_word(&LINUX_CD, 0, LINUX_CD.words()[0] | bit(38) | bit(39));
    assert!(tbi.ignores_top_byte(Half::Lower) && tbi.ignores_top_byte(Half::Upper));
    assert_eq!(locate(&tbi, 0xab00_0000_0000_1000), (Half::Lower, 0x1000));
    assert_eq!(
        locate(&tbi, 0x12ff_ffff_ffff_f000),
        (Half::Upper, 0xffff_ffff_ffff_f000)
    );
}

#[test]
fn lpae32_contexts_decode() {
    // AA64 clear: T0SZ 0, TTB0 aligned to the four items of the root.
    let cd = Cd::new([bit(31) | bit(30), 0x4805_6010, 0, 0xf404_ff44, 0, 0, 0, 0]);
    let table = cd.table(Half::Lower).unwrap();
    assert_eq!(
        table.format,
        AnyFormat::Lpae32(Lpae32::new(32, 40).unwrap())
    );
    assert_eq!(table.root, root(0x4805_6000, 2));
    assert_eq!(
        cd.locate(Iova::new(u64::MAX)),
        (Half::Lower, Iova::new(u64::MAX))
    );
    let both = with_cd_word(&cd, 0, bit(31) | bit(35));
    assert_eq!(both.table(Half::Upper), Err(CdError::UpperLpae32));
    let format = Lpae32::new(32, 40).unwrap().with_access_flag_ignored();
    assert_eq!(
        both.table(Half::Lower).unwrap().format,
        AnyFormat::Lpae32(format)
    );

    // S2AA64 clear: T0SZ -8, SL0 1.
    let ste = Ste::new([0xd, bit(25), (8 | 1 << 6) << 32, 0x480d_f000, 0, 0, 0, 0]);
    let table = ste.stage2().unwrap().unwrap();
    let format = Lpae32Stage2::new(40, 40).unwrap().with_forced_write_back();
    assert_eq!(table.format, AnyFormat::Lpae32Stage2(format));
    assert_eq!(table.root, root(0x480d_e000, 2));
    // T0SZ 0, SL0 3 is reserved.
    let ste = Ste::new([0xd, 0, (3 << 6) << 32, 0, 0, 0, 0, 0]);
    assert!(matches!(
        ste.stage2(),
        Err(SteError::Stage2(ConfigError::Levels { .. }))
    ));
}

#[test]
fn errors_say_what_is_wrong() {
    extern crate std;
    use std::string::ToString as _;

    let error = CdError::Disabled { half: Half::Upper };
    assert_eq!(error.to_string(), "walks through TTB1 are disabled");
    assert_eq!(
        SteError::Invalid.to_string(),
        "the stream table entry is not valid"
    );
}

#[test]
fn any_words_decode_to_something() {
    let mut word = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        word ^= word << 13;
        word ^= word >> 7;
        word ^= word << 17;
        word
    };
    for _ in 0..2000 {
        let words = [0; 8].map(|_: u64| next());
        // Half of the tries are valid and enabled, so that they get past the first checks.
        let ste = with_ste_word(&Ste::new(words), 0, words[0] | 0xd & next());
        let _ = ste.stage2();
        if let Ok(Some(cds)) = ste.cd_table() {
            let _ = cds.address(next() as u32);
            let _ = L1CdDesc::new(next()).address(&cds, next() as u32);
        }
        let cd = with_cd_word(&Cd::new(words), 0, (words[0] | bit(31)) & !bit(15));
        let _ = (
            cd.table(Half::Lower),
            cd.table(Half::Upper),
            cd.locate(Iova::new(next())),
        );
        let table = StreamTable::new(next(), next() as u32);
        let _ = table.address(next() as u32);
        let _ = L1StreamDesc::new(next()).address(&table, next() as u32);
    }
}

#[test]
fn fields_of_no_word_overlap() {
    let lists = Ste::FIELDS.into_iter().chain(Cd::FIELDS).chain([
        L1StreamDesc::FIELDS,
        L1CdDesc::FIELDS,
        STRTAB_BASE_FIELDS,
        STRTAB_BASE_CFG_FIELDS,
    ]);
    for fields in lists {
        let union = fields.iter().fold(0, |seen, field: &Field| {
            assert_eq!(seen & field.mask(), 0, "{}", field.name);
            seen | field.mask()
        });
        assert_ne!(union, 0);
    }
}
