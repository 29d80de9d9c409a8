//! Configuration words, both directions.

use super::*;
use crate::ConfigError;
use crate::armv8::{
    AnyFormat, Cacheability, Concatenation, Granule, Half, HardwareUpdates, Lpae32Stage2, MAIR,
    MALI_MEMATTR, Mali, Rooted, Shareability, Stage1, Stage2, TableWalk, Tcr, Vtcr,
};

const ROOT: Oa = Oa::new(0x4805_6000);

#[test]
fn the_cd_words_of_a_lower_table_are_those_of_linux() {
    // A Linux guest's CD with 48-bit input and 44-bit output, less V, R, A, ASET and ASID.
    let f = Stage1::<12>::new(48, 44).unwrap();
    let words = f.tcr(TableWalk::COHERENT).cd(ROOT);
    assert_eq!(words, [0x0000_0204_4000_3510, 0x4805_6000, 0]);
    assert_eq!(0x0001_e204_c000_3510 & !0xffff_e000_8000_0000, words[0]);
}

#[test]
fn the_fields_of_the_upper_half_stand_16_bits_higher() {
    let f = Stage1::<16>::new(42, 48).unwrap().in_upper_half();
    let words = f.tcr(TableWalk::NON_COHERENT).cd(ROOT);
    // T1SZ 22, TG1 3 (64 KiB), SH1 2, EPD0, IPS 5, AA64.
    assert_eq!(words, [0x0000_0205_20d6_4000, 0, 0x4805_6000]);
}

#[test]
fn options_of_stage1_have_their_bits() {
    let f = Stage1::<14>::new_lpa(52, 52)
        .unwrap()
        .with_updates(HardwareUpdates::Dirty)
        .without_table_limits();
    let words = f.tcr(TableWalk::OUTER_WRITE_BACK).cd(ROOT);
    // T0SZ 12, TG0 2, OR0 1, SH0 2; IPS 6, HD, HA, AA64; HAD0; DS.
    assert_eq!(words, [0x0000_0e06_4000_248c, 0x4805_6002, 1 << 58]);
    let ignored = Stage1::<12>::new(48, 48)
        .unwrap()
        .with_updates(HardwareUpdates::Ignored);
    assert_eq!(
        ignored.tcr(TableWalk::COHERENT).cd(ROOT)[0],
        0x0000_020d_4000_3510
    );
    let accessed = Stage1::<12>::new(48, 48)
        .unwrap()
        .with_updates(HardwareUpdates::Accessed);
    assert_eq!(
        accessed.tcr(TableWalk::COHERENT).cd(ROOT)[0],
        0x0000_0a05_4000_3510
    );
}

#[test]
fn every_stage1_format_survives_its_cd_words() {
    fn check<const G: u8>(format: Stage1<G>, wrap: fn(Stage1<G>) -> AnyFormat, half: Half) {
        for walk in [
            TableWalk::COHERENT,
            TableWalk::NON_COHERENT,
            TableWalk::OUTER_WRITE_BACK,
        ] {
            let tcr = format.tcr(walk);
            assert_eq!(Tcr::from_cd(tcr.cd(ROOT), half), Ok(tcr));
            assert_eq!(AnyFormat::stage1(tcr, MAIR), Ok(wrap(format)));
        }
    }
    for oa_bits in [32, 36, 40, 42, 44, 48] {
        let f = Stage1::<12>::new(39, oa_bits).unwrap();
        check(f, AnyFormat::Stage1Kib4, Half::Lower);
        check(f.in_upper_half(), AnyFormat::Stage1Kib4, Half::Upper);
    }
    let f = Stage1::<14>::new_lpa(52, 52)
        .unwrap()
        .with_updates(HardwareUpdates::Dirty);
    check(f, AnyFormat::Stage1Kib16, Half::Lower);
    check(f.in_upper_half(), AnyFormat::Stage1Kib16, Half::Upper);
    let f = Stage1::<16>::new(52, 52).unwrap().without_table_limits();
    check(f, AnyFormat::Stage1Kib64, Half::Lower);
    check(f.in_upper_half(), AnyFormat::Stage1Kib64, Half::Upper);
}

#[test]
fn output_widths_stop_at_what_a_descriptor_holds() {
    let oa_bits = |word0: u64, word2| {
        Tcr::from_cd([word0, 0, word2], Half::Lower)
            .unwrap()
            .oa_bits
    };
    let (ips_6, ips_7, k64, ds) = (6 << 32, 7 << 32, 1 << 6, 1 << 58);
    assert_eq!(oa_bits(ips_6, 0), 48);
    assert_eq!(oa_bits(ips_6, ds), 52);
    assert_eq!(oa_bits(ips_7 | k64, 0), 52);
    // DS means nothing to the 64 KiB granule.
    assert!(!Tcr::from_cd([ips_6 | k64, 0, ds], Half::Lower).unwrap().ds);
}

#[test]
fn reserved_granules_are_refused() {
    let refused = |result: Result<Tcr, _>| matches!(result, Err(ConfigError::Option { .. }));
    assert!(refused(Tcr::from_cd([3 << 6, 0, 0], Half::Lower)));
    assert!(refused(Tcr::from_cd([0, 0, 0], Half::Upper)));
    assert!(Vtcr::from_ste([0, 3 << 46, 0]).is_err());
}

#[test]
fn the_ste_words_of_stage2_are_those_of_linux() {
    // A Linux guest's STE: 44-bit input and output, less S2VMID, S2PTW and S2R.
    let f = Stage2::<12>::new(44, 44).unwrap();
    let words = f.vtcr(TableWalk::COHERENT).ste(Oa::new(0x480d_f000));
    assert_eq!(words, [0, 0x000c_3594_0000_0000, 0x480d_f000]);
    assert_eq!(0x044c_3594_0000_0001 & !0x0440_0000_0000_ffff, words[1]);
}

#[test]
fn options_of_stage2_have_their_bits() {
    let f = Stage2::<12>::new_lpa(52, 52)
        .unwrap()
        .with_concatenation(Concatenation::WhereMandatory)
        .unwrap()
        .with_updates(HardwareUpdates::Dirty)
        .with_forced_write_back();
    let words = f.vtcr(TableWalk::NON_COHERENT).ste(ROOT);
    // S2FWB; T0SZ 12, SL0 0, SH0 2, PS 6, AA64, HD, HA; SL0_2 and DS.
    assert_eq!(words, [1 << 25, 0x018e_200c_0000_0000, 0x4805_600c]);
    let f = Stage2::<16>::new(48, 48)
        .unwrap()
        .with_updates(HardwareUpdates::Ignored);
    // T0SZ 16, SL0 2, TG 1, PS 5, AA64, AFFD.
    assert_eq!(
        f.vtcr(TableWalk::COHERENT).ste(ROOT)[1],
        0x002d_7590_0000_0000
    );
}

#[test]
fn start_levels_have_the_codes_of_their_granule() {
    let sl0 = |vtcr: Vtcr| vtcr.ste(ROOT)[1] >> 38 & 3;
    let k4 = |va_bits, top| {
        Stage2::<12>::new(va_bits, 48)
            .unwrap()
            .with_start_level(Level(top))
            .unwrap()
    };
    let walk = TableWalk::COHERENT;
    assert_eq!(
        [(44, 3), (39, 2), (30, 1), (25, 0)].map(|(va, top)| sl0(k4(va, top).vtcr(walk))),
        [2, 1, 0, 3]
    );
    let k16 = |va_bits| Stage2::<14>::new(va_bits, 48).unwrap();
    assert_eq!([48, 36].map(|va_bits| sl0(k16(va_bits).vtcr(walk))), [2, 1]);
    let lpa2 = Stage2::<14>::new_lpa(52, 52).unwrap();
    assert_eq!(sl0(lpa2.vtcr(walk)), 3);
    let k64 = |va_bits| Stage2::<16>::new(va_bits, 48).unwrap();
    assert_eq!([48, 42].map(|va_bits| sl0(k64(va_bits).vtcr(walk))), [2, 1]);
}

#[test]
fn every_stage2_format_survives_its_ste_words() {
    fn check<const G: u8>(format: Stage2<G>, wrap: fn(Stage2<G>) -> AnyFormat) {
        let vtcr = format.vtcr(TableWalk::COHERENT);
        assert_eq!(Vtcr::from_ste(vtcr.ste(ROOT)), Ok(vtcr));
        assert_eq!(AnyFormat::stage2(vtcr), Ok(wrap(format)));
    }
    for va_bits in 25..=48 {
        for rule in [Concatenation::WherePossible, Concatenation::WhereMandatory] {
            let k4 = Stage2::<12>::new(va_bits, 48).unwrap();
            check(k4.with_concatenation(rule).unwrap(), AnyFormat::Stage2Kib4);
            let k16 = Stage2::<14>::new(va_bits, 48).unwrap();
            check(
                k16.with_concatenation(rule).unwrap(),
                AnyFormat::Stage2Kib16,
            );
            let k64 = Stage2::<16>::new(va_bits, 48).unwrap();
            check(
                k64.with_concatenation(rule).unwrap(),
                AnyFormat::Stage2Kib64,
            );
        }
    }
    for va_bits in 25..=52 {
        for rule in [Concatenation::WherePossible, Concatenation::WhereMandatory] {
            let k4 = Stage2::<12>::new_lpa(va_bits, 52).unwrap();
            check(
                k4.with_concatenation(rule)
                    .unwrap()
                    .with_forced_write_back(),
                AnyFormat::Stage2Kib4,
            );
            let k16 = Stage2::<14>::new_lpa(va_bits, 52).unwrap();
            check(
                k16.with_concatenation(rule).unwrap(),
                AnyFormat::Stage2Kib16,
            );
            let k64 = Stage2::<16>::new_lpa(va_bits, 52).unwrap();
            check(
                k64.with_updates(HardwareUpdates::Dirty),
                AnyFormat::Stage2Kib64,
            );
        }
    }
}

#[test]
fn reserved_start_levels_are_refused() {
    let start = |granule_code: u64, sl0: u64, word3| {
        Vtcr::from_ste([0, granule_code << 46 | sl0 << 38, word3]).map(|vtcr| vtcr.start)
    };
    assert!(matches!(start(1, 3, 0), Err(ConfigError::Levels { .. })));
    let (ds, sl2) = (1 << 3, 1 << 2);
    assert_eq!(start(0, 0, ds | sl2), Ok(Level(4)));
    assert!(matches!(
        start(0, 1, ds | sl2),
        Err(ConfigError::Levels { .. })
    ));
    // SL0_2 without DS means nothing.
    assert_eq!(start(0, 1, sl2), Ok(Level(2)));
}

#[test]
fn table_walk_attributes_have_the_codes_of_the_manual() {
    assert_eq!(Cacheability::WriteThrough as u8, 2);
    let walk = TableWalk {
        inner: Cacheability::WriteThrough,
        outer: Cacheability::WriteBackNoAllocate,
        shareability: Shareability::None,
    };
    let f = Stage1::<12>::new(48, 48).unwrap();
    assert_eq!(f.tcr(walk).cd(ROOT)[0] & 0x3f00, 0x0e00);
    // Reserved shareability 1 acts as 0.
    let tcr = Tcr::from_cd([0x1e10, 0, 0], Half::Lower).unwrap();
    assert_eq!(tcr.walk, walk);
}

#[test]
fn roots_lose_the_bits_below_their_alignment() {
    let format = AnyFormat::Stage2Kib4(Stage2::new(40, 44).unwrap());
    let rooted = Rooted::new(format, Oa::new(0x4805_7ff0));
    assert_eq!(
        (rooted.root.oa, rooted.root.level),
        (Oa::new(0x4805_6000), Level(2))
    );
}

#[test]
fn granules_have_two_encodings() {
    for (granule, lg2, tg0, tg1) in [
        (Granule::Kib4, 12, 0, 2),
        (Granule::Kib16, 14, 2, 1),
        (Granule::Kib64, 16, 1, 3),
    ] {
        assert_eq!(
            (granule.lg2(), granule.tg0(), granule.tg1()),
            (lg2, tg0, tg1)
        );
        assert_eq!(Granule::from_tg0(tg0), Some(granule));
        assert_eq!(Granule::from_tg1(tg1), Some(granule));
    }
    assert_eq!((Granule::from_tg0(3), Granule::from_tg1(0)), (None, None));
}

#[test]
fn registers_of_the_variants() {
    let f = Lpae32Stage2::new(40, 40).unwrap();
    assert_eq!((f.t0sz(), f.sl0()), (-8, 1));
    let f = Lpae32Stage2::new(32, 40).unwrap();
    assert_eq!((f.t0sz(), f.sl0()), (0, 0));
    let mali = Mali::new(48, 40).unwrap();
    assert_eq!(mali.transtab(Oa::new(0x8800_1000)), 0x8800_1007);
    assert_eq!(mali.coherent_transtab(Oa::new(0x8800_1000)), 0x8800_1017);
    assert_eq!(MALI_MEMATTR, 0x88_8d88);
    assert_eq!(MAIR, 0xf404_ff44);
}
