//! SMMUv3.

use iopt_reference::arm::{Config, Granule, Half};
use iopt_reference::context::smmu::{Registers, devices, resolve};
use iopt_reference::context::{Binding, ContextFault};
use iopt_reference::{Fault, PageMap, Table};

use crate::{LIMIT, OPEN, ids, memory, put};

/// Both stages, 64-bit tables, dirty state, two-level tables; 16-bit streams, 20-bit substreams, HAD and
/// XNX, all granules, 48-bit output.
const REGISTERS: Registers = Registers {
    idr0: 1 << 27 | 1 << 19 | 2 << 6 | 2 << 2 | 0b11,
    idr1: 20 << 6 | 16,
    idr3: 1 << 4 | 1 << 2,
    idr5: 0x70 | 5,
    cr0: 1,
    gbpa: 0,
    strtab_base: 1 << 62 | 0x1_0000,
    strtab_base_cfg: 10,
};

/// T0SZ 16, 4 KiB, EPD1, V, IPS 48 bits, AA64, R, A, ASET, ASID 1.
const CD_0: u64 = 16 | 3 << 12 | 1 << 30 | 1 << 31 | 5 << 32 | 1 << 41 | 0b111 << 45 | 1 << 48;
/// V, Config 5, CD at `0x8000`.
const STAGE_1: u64 = 0x8000 | 5 << 1 | 1;
/// T0SZ 20, SL0 2, inner shareable, 4 KiB, 44 bits, AA64, R; VMID 1.
const STAGE_2: u64 = (20 | 2 << 6 | 3 << 12 | 4 << 16 | 1 << 19 | 1 << 26) << 32 | 1;

fn ste(device_id: u64, words: &[u64]) -> PageMap {
    memory(&[
        (0x1_0000 + 64 * device_id, words),
        (0x1_0ff8, &[0]),
        (0x8000, &[CD_0, 0x2_0000, 0, 0]),
    ])
}

fn with_cd(cd: &[u64]) -> Result<Binding, ContextFault> {
    let mut memory = ste(0, &[STAGE_1, 0]);
    put(&mut memory, 0x8000, cd);
    resolve(&REGISTERS, &memory, 0, None)
}

fn arm(binding: Result<Binding, ContextFault>) -> Config {
    match binding {
        Ok(Binding::Table(Table::Arm(config))) => config,
        other => panic!("not one ARM table: {other:?}"),
    }
}

#[test]
fn a_disabled_smmu_does_what_gbpa_says() {
    let off = Registers {
        cr0: 0,
        ..REGISTERS
    };
    let nothing = PageMap::new();
    assert_eq!(resolve(&off, &nothing, 7, None), Ok(OPEN));
    let abort = Registers {
        gbpa: 1 << 20,
        ..off
    };
    assert_eq!(resolve(&abort, &nothing, 7, None), Ok(Binding::Blocked));
    assert_eq!(devices(&off, &nothing, LIMIT), Ok(vec![]));
}

#[test]
fn the_config_field_chooses_the_stages() {
    let config = |config: u64| {
        resolve(
            &REGISTERS,
            &ste(5, &[STAGE_1 & !0xe | config << 1, 0, STAGE_2, 0x3_0000]),
            5,
            None,
        )
    };
    for blocked in 0..=3 {
        assert_eq!(config(blocked), Ok(Binding::Blocked));
    }
    assert_eq!(config(4), Ok(OPEN));
    let first = Config {
        xnx: false,
        ..Config::stage1(Half::new(0x2_0000, 48, Granule::K4), 48)
    };
    assert_eq!(arm(config(5)), first);
    let second = Config::stage2(Half::new(0x3_0000, 44, Granule::K4), 0, 44);
    assert_eq!(arm(config(6)), second);
    // The CD of a nested stream is at an IPA, which nothing maps here.
    let fault = Fault::MissingMemory { address: 0x3_0000 };
    assert_eq!(config(7), Err(ContextFault::Second { ipa: 0x8000, fault }));
    let invalid = resolve(&REGISTERS, &ste(5, &[STAGE_1 & !1]), 5, None);
    assert_eq!(invalid, Err(ContextFault::NotValid { address: 0x1_0140 }));
}

#[test]
fn a_stage_that_the_hardware_lacks_is_illegal() {
    for (lacking, config) in [(0b10, 6), (0b01, 5), (0b10, 7), (0b01, 7)] {
        let registers = Registers {
            idr0: REGISTERS.idr0 & !3 | lacking,
            ..REGISTERS
        };
        let memory = ste(0, &[STAGE_1 & !0xe | config << 1, 0, STAGE_2, 0x3_0000]);
        let illegal = ContextFault::Illegal {
            field: "STE.Config",
            value: config,
        };
        assert_eq!(resolve(&registers, &memory, 0, None), Err(illegal));
    }
}

#[test]
fn nested_streams_fetch_the_context_descriptor_through_stage_2() {
    let mut memory = ste(0, &[STAGE_1 | 7 << 1, 0, STAGE_2, 0x3_0000]);
    // Stage 2 maps IPA 0 to 2 MiB to 0x4000_0000.
    put(&mut memory, 0x3_0000, &[0x3_1003]);
    put(&mut memory, 0x3_1000, &[0x3_2003]);
    put(&mut memory, 0x3_2000, &[0x4000_07fd]);
    put(
        &mut memory,
        0x4000_8000,
        &[CD_0, 0x5_0000, 0, 0, 0, 0, 0, 0],
    );
    // The first stage, at IPA 0x5_0000, maps 0 to IPA 0x6_0000.
    put(&mut memory, 0x4005_0000, &[0x5_1003]);
    put(&mut memory, 0x4005_1000, &[0x5_2003]);
    put(&mut memory, 0x4005_2000, &[0x5_3003]);
    put(&mut memory, 0x4005_3000, &[0x6_0f47]);
    let binding = resolve(&REGISTERS, &memory, 0, None).unwrap();
    let first = Config {
        xnx: false,
        ..Config::stage1(Half::new(0x5_0000, 48, Granule::K4), 48)
    };
    let second = Config::stage2(Half::new(0x3_0000, 44, Granule::K4), 0, 44);
    assert_eq!(
        binding,
        Binding::Nested {
            first: Table::Arm(first),
            second: Table::Arm(second)
        }
    );
    assert_eq!(binding.walk(&memory, 0x123).unwrap().oa, 0x4006_0123);
}

#[test]
fn linear_stream_tables_end_where_the_register_says() {
    let memory = ste(1023, &[STAGE_1 & !0xe | 4 << 1]);
    assert_eq!(resolve(&REGISTERS, &memory, 1023, None), Ok(OPEN));
    let beyond = ContextFault::DeviceId { device_id: 1024 };
    assert_eq!(resolve(&REGISTERS, &memory, 1024, None), Err(beyond));
    // SIDSIZE limits it as well.
    let narrow = Registers {
        idr1: 9,
        ..REGISTERS
    };
    let beyond = ContextFault::DeviceId { device_id: 1023 };
    assert_eq!(resolve(&narrow, &memory, 1023, None), Err(beyond));
    // A linear table of 2^10 entries is aligned to 64 KiB: low bits of the base do not count.
    let odd = Registers {
        strtab_base: 0x1_ffc0,
        ..REGISTERS
    };
    assert_eq!(resolve(&odd, &memory, 1023, None), Ok(OPEN));
}

#[test]
fn two_level_stream_tables_have_spans() {
    let registers = Registers {
        strtab_base_cfg: 1 << 16 | 8 << 6 | 16,
        ..REGISTERS
    };
    let bypass = STAGE_1 & !0xe | 4 << 1;
    let memory = memory(&[
        // L1: bus 0 has 256 entries, bus 1 none, bus 2 two, bus 3 a reserved span.
        (0x1_0000, &[0x2_0000 | 9, 0, 0x3_0000 | 2, 0x4_0000 | 10]),
        (0x2_0000 + 64 * 255, &[bypass]),
        (0x3_0040, &[1]),
    ]);
    let of = |sid| resolve(&registers, &memory, sid, None);
    assert_eq!(of(0xff), Ok(OPEN));
    assert_eq!(of(0x100), Err(ContextFault::NotValid { address: 0x1_0008 }));
    assert_eq!(of(0x201), Ok(Binding::Blocked));
    assert_eq!(of(0x202), Err(ContextFault::DeviceId { device_id: 0x202 }));
    assert_eq!(
        of(0x300),
        Err(ContextFault::Illegal {
            field: "L1STD.Span",
            value: 10
        })
    );
    assert_eq!(
        of(0x1_0000),
        Err(ContextFault::DeviceId {
            device_id: 0x1_0000
        })
    );
}

#[test]
fn hardware_with_linear_tables_only_ignores_the_format_field() {
    let registers = Registers {
        idr0: REGISTERS.idr0 & !(3 << 27),
        strtab_base_cfg: 1 << 16 | 8 << 6 | 10,
        ..REGISTERS
    };
    let memory = ste(1, &[STAGE_1 & !0xe | 4 << 1]);
    assert_eq!(resolve(&registers, &memory, 1, None), Ok(OPEN));
}

#[test]
fn devices_are_those_with_a_valid_entry() {
    let registers = Registers {
        strtab_base_cfg: 1 << 16 | 8 << 6 | 10,
        ..REGISTERS
    };
    let mut memory = memory(&[
        (0x1_0000, &[0x2_0000 | 9, 0, 0, 0x3_0000 | 1]),
        (0x3_0000, &[1]),
    ]);
    for page in 0x20..0x24 {
        memory.write64(page << 12, 0);
    }
    put(&mut memory, 0x2_0000 + 64 * 8, &[STAGE_1, 0]);
    put(&mut memory, 0x2_0000 + 64 * 9, &[STAGE_1 & !1, 0]);
    put(&mut memory, 0x2_0000 + 64 * 255, &[STAGE_1 & !0xe | 4 << 1]);
    put(&mut memory, 0x8000, &[CD_0, 0x2_0000]);
    let found = devices(&registers, &memory, LIMIT).unwrap();
    assert_eq!(ids(&found), [8, 255, 0x300]);
    assert!(matches!(found[0].binding, Ok(Binding::Table(_))));
    assert_eq!(found[1].binding, Ok(OPEN));
    assert_eq!(found[2].binding, Ok(Binding::Blocked));
}

#[test]
fn substreams_choose_their_own_context_descriptor() {
    // Four CDs in a linear table; S1DSS as given.
    let with_dss = |dss: u64| {
        // S1CIR to S1CSH, next to S1DSS, mean nothing here.
        let mut memory = ste(0, &[STAGE_1 | 2 << 59, dss | 0xfc]);
        put(&mut memory, 0x80c0, &[CD_0, 0x9_0000, 0, 0, 0, 0, 0, 0]);
        memory
    };
    let root = |memory: &PageMap, pasid| {
        arm(resolve(&REGISTERS, memory, 0, pasid))
            .lower
            .unwrap()
            .root
    };
    assert_eq!(root(&with_dss(0), Some(3)), 0x9_0000);
    assert_eq!(root(&with_dss(0), Some(0)), 0x2_0000);
    let of = |dss, pasid| resolve(&REGISTERS, &with_dss(dss), 0, pasid);
    assert_eq!(
        of(0, Some(1)),
        Err(ContextFault::NotValid { address: 0x8040 })
    );
    assert_eq!(of(0, Some(4)), Err(ContextFault::Pasid { pasid: Some(4) }));
    assert_eq!(of(0, None), Ok(Binding::Blocked));
    assert_eq!(of(1, None), Ok(OPEN));
    assert_eq!(root(&with_dss(2), None), 0x2_0000);
    assert_eq!(of(2, Some(0)), Ok(Binding::Blocked));
    assert_eq!(root(&with_dss(2), Some(3)), 0x9_0000);
    // One CD, or no stage 1, takes no substreams.
    let single = ste(0, &[STAGE_1, 0]);
    let refused = Err(ContextFault::Pasid { pasid: Some(0) });
    assert_eq!(resolve(&REGISTERS, &single, 0, Some(0)), refused);
    let bypass = ste(0, &[STAGE_1 & !0xe | 4 << 1, 0]);
    assert_eq!(resolve(&REGISTERS, &bypass, 0, Some(0)), refused);
    let too_many = ste(0, &[STAGE_1 | 21 << 59, 0]);
    let illegal = Err(ContextFault::Illegal {
        field: "STE.S1CDMax",
        value: 21,
    });
    assert_eq!(resolve(&REGISTERS, &too_many, 0, None), illegal);
}

#[test]
fn context_descriptor_tables_of_two_levels_have_leaves_of_64_or_1024() {
    // An L1 table of 8 KiB or 512 bytes, whose pointer bits below that size do not count.
    for (format, leaf_bits, odd) in [(1, 6, 0x1fc0), (2, 10, 0x1c0)] {
        let ssid = 3 << leaf_bits | 5;
        let mut memory = ste(0, &[STAGE_1 | odd | format << 4 | 16 << 59, 0]);
        // L1 at 0x8000, entry 3; CD 5 of its leaf.
        put(&mut memory, 0x8000, &[0, 0, 0, 0xa_0001]);
        put(
            &mut memory,
            0xa_0000 + 64 * 5,
            &[CD_0, 0x9_0000, 0, 0, 0, 0, 0, 0],
        );
        let binding = resolve(&REGISTERS, &memory, 0, Some(ssid));
        assert_eq!(arm(binding).lower.unwrap().root, 0x9_0000);
        let none = resolve(&REGISTERS, &memory, 0, Some(2 << leaf_bits));
        assert_eq!(none, Err(ContextFault::NotValid { address: 0x8010 }));
        let no_levels = Registers {
            idr0: REGISTERS.idr0 & !(1 << 19),
            ..REGISTERS
        };
        let illegal = ContextFault::Illegal {
            field: "STE.S1Fmt",
            value: format,
        };
        assert_eq!(resolve(&no_levels, &memory, 0, Some(ssid)), Err(illegal));
    }
}

#[test]
fn both_halves_of_a_context_descriptor_have_their_own_fields() {
    // T1SZ 25, TG1 = 3 (64 KiB), IR1 and OR1 3, SH1 2; TBI1, HAD1; TBI0 and HAD0 are clear.
    let word = CD_0 & !(1 << 30) | 25 << 16 | 3 << 22 | 0xf << 24 | 2 << 28 | 1 << 39;
    let config = arm(with_cd(&[word, 0x2_0000, 0x7_0000 | 2]));
    let upper = Half {
        tbi: true,
        had: true,
        sh: 2,
        ..Half::new(0x7_0000, 39, Granule::K64)
    };
    assert_eq!(config.upper, Some(upper));
    assert_eq!(config.lower, Some(Half::new(0x2_0000, 48, Granule::K4)));
    // EPD0 leaves the upper half alone.
    let config = arm(with_cd(&[word | 1 << 14, 0x2_0000, 0x7_0000]));
    assert_eq!(config.lower, None);
    assert!(config.upper.is_some());
    let flags = arm(with_cd(&[
        CD_0 | 1 << 35 | 1 << 38 | 1 << 42 | 1 << 43,
        0x2_0000 | 2,
    ]));
    assert!(flags.affd && flags.ha && flags.hd);
    assert!(flags.lower.unwrap().tbi && flags.lower.unwrap().had);
    // HD alone is reserved.
    let odd = arm(with_cd(&[CD_0 | 1 << 42, 0x2_0000]));
    assert!(!odd.ha && !odd.hd);
}

#[test]
fn stream_world_el2_has_one_half_and_one_privilege_level() {
    // STRW 2; EPD0 is ignored.
    let mut memory = ste(0, &[STAGE_1, 2 << 30]);
    put(
        &mut memory,
        0x8000,
        &[CD_0 & !(1 << 30) | 1 << 14, 0x2_0000, 0x7_0000],
    );
    let config = arm(resolve(&REGISTERS, &memory, 0, None));
    assert!(config.one_privilege && config.lower.is_some() && config.upper.is_none());
}

#[test]
fn illegal_context_descriptors_are_refused() {
    assert_eq!(
        with_cd(&[CD_0 & !(1 << 31), 0]),
        Err(ContextFault::NotValid { address: 0x8000 })
    );
    let illegal = |field, value| Err(ContextFault::Illegal { field, value });
    assert_eq!(with_cd(&[CD_0 | 3 << 6, 0x2_0000]), illegal("CD.TG0", 3));
    assert_eq!(
        with_cd(&[CD_0 & !(1 << 30) | 16 << 16, 0x2_0000]),
        illegal("CD.TG1", 0)
    );
    assert_eq!(with_cd(&[CD_0 & !0x3f | 15, 0x2_0000]), illegal("TxSZ", 15));
    assert_eq!(with_cd(&[CD_0 & !0x3f | 49, 0x2_0000]), illegal("TxSZ", 49));
    assert_eq!(
        with_cd(&[CD_0 | 1 << 15, 0]),
        Err(ContextFault::Unsupported { field: "CD.ENDI" })
    );
    assert!(matches!(
        with_cd(&[CD_0, 1 << 50]),
        Err(ContextFault::Setup(_))
    ));
    let only_4k = Registers {
        idr5: 0x15,
        ..REGISTERS
    };
    let mut memory = ste(0, &[STAGE_1, 0]);
    put(&mut memory, 0x8000, &[CD_0 | 1 << 6, 0x2_0000]);
    assert_eq!(resolve(&only_4k, &memory, 0, None), illegal("CD.TG0", 6));
    put(&mut memory, 0x8000, &[CD_0, 0x2_0000]);
    assert!(resolve(&only_4k, &memory, 0, None).is_ok());
    let only_16k = Registers {
        idr5: 0x25,
        ..REGISTERS
    };
    assert_eq!(resolve(&only_16k, &memory, 0, None), illegal("CD.TG0", 4));
}

#[test]
fn address_sizes_are_capped_by_the_hardware() {
    // IPS 52 bits on hardware with 48, then 44, then 52.
    let ips = |oas: u32| {
        let mut memory = ste(0, &[STAGE_1, 0]);
        put(
            &mut memory,
            0x8000,
            &[CD_0 & !(7 << 32) | 6 << 32, 0x2_0000],
        );
        arm(resolve(
            &Registers {
                idr5: 0x70 | oas,
                ..REGISTERS
            },
            &memory,
            0,
            None,
        ))
    };
    assert_eq!((ips(5).oa_bits, ips(5).lpa), (48, false));
    assert_eq!(ips(4).oa_bits, 44);
    assert_eq!((ips(6).oa_bits, ips(6).lpa), (52, true));
    let sizes: Vec<u8> = (0..6)
        .map(|ips| arm(with_cd(&[CD_0 & !(7 << 32) | ips << 32, 0x2_0000])).oa_bits)
        .collect();
    assert_eq!(sizes, [32, 36, 40, 42, 44, 48]);
}

#[test]
fn descriptors_of_52_bits_need_ds_on_both_sides() {
    let cd = [
        CD_0 & !0x3f & !(7 << 32) | 12 | 6 << 32,
        0x8_0000_0002_0000,
        1 << 58,
    ];
    let of = |idr5| {
        let mut memory = ste(0, &[STAGE_1, 0]);
        put(&mut memory, 0x8000, &cd);
        resolve(&Registers { idr5, ..REGISTERS }, &memory, 0, None)
    };
    let config = arm(of(0xf6));
    assert!(config.ds);
    assert_eq!(config.lower.unwrap().root, 0x8_0000_0002_0000);
    assert_eq!(config.lower.unwrap().ia_bits, 52);
    assert_eq!(
        of(0x76),
        Err(ContextFault::Illegal {
            field: "TxSZ",
            value: 12
        })
    );
}

#[test]
fn stage_2_fields_decode_by_hand() {
    let of = |vtcr: u64, flags: u64, word_3| {
        let ste_words = [0b1101, 0, flags | vtcr << 32, word_3];
        resolve(
            &Registers {
                idr5: 0xf6,
                ..REGISTERS
            },
            &ste(0, &ste_words),
            0,
            None,
        )
    };
    let aa64 = 1 << 51;
    // 16 KiB, 40 bits in two levels (SL0 1, level 2), PS 40 bits: 16 tables side by side.
    let config = arm(of(24 | 1 << 6 | 2 << 14 | 2 << 16, aa64, 0x4_0000));
    let expected = Config {
        lpa: true,
        ..Config::stage2(
            Half {
                sh: 0,
                ..Half::new(0x4_0000, 40, Granule::K16)
            },
            2,
            40,
        )
    };
    assert_eq!(config, expected);
    // 4 KiB with DS: {S2SL0_2, S2SL0} = 0b100 is level -1.
    let config = arm(of(12 | 6 << 16, aa64, 0x4_0000 | 1 << 3 | 1 << 2));
    assert!(config.ds);
    assert_eq!(
        (config.stage, config.oa_bits),
        (iopt_reference::arm::Stage::Two { start_level: -1 }, 52)
    );
    // S2HA, S2HD, S2AFFD.
    let config = arm(of(20 | 2 << 6, aa64 | 1 << 53 | 1 << 55 | 1 << 56, 0));
    assert!(config.affd && config.ha && config.hd);
    let config = arm(of(20 | 2 << 6, aa64 | 1 << 55, 0));
    assert!(!config.ha && !config.hd);
    let config = arm(of(20 | 2 << 6, aa64 | 1 << 56, 0));
    assert!(config.ha && !config.hd);
    // 32-bit LPAE: T0SZ is signed, -8 makes 40 bits; SL0 1 is level 1.
    let config = arm(of(8 | 1 << 6, 0, 0x4000));
    assert!(config.aarch32);
    assert_eq!((config.lower.unwrap().ia_bits, config.oa_bits), (40, 40));
    assert_eq!(arm(of(7, 0, 0x4000)).lower.unwrap().ia_bits, 25);
    // Illegal: reserved granule, reserved start level, one that does not fit, big-endian.
    let illegal = |field, value| Err(ContextFault::Illegal { field, value });
    assert_eq!(of(20 | 2 << 6 | 3 << 14, aa64, 0), illegal("STE.S2TG", 3));
    assert_eq!(of(20 | 3 << 6 | 1 << 14, aa64, 0), illegal("STE.S2SL0", 3));
    assert_eq!(of(2 << 6, 0, 0), illegal("STE.S2SL0", 2));
    assert!(matches!(
        of(16 | 1 << 6, aa64, 0),
        Err(ContextFault::Setup(_))
    ));
    let big = Err(ContextFault::Unsupported {
        field: "STE.S2ENDI",
    });
    assert_eq!(of(20 | 2 << 6, aa64 | 1 << 52, 0), big);
}

#[test]
fn hardware_updates_no_more_than_it_announces() {
    // HTTU 0 to 2 in IDR0[7:6]; bit 5 beside it is BTM.
    for (httu, updates) in [
        (0, (false, false)),
        (1, (true, false)),
        (2, (true, true)),
        (3, (true, true)),
    ] {
        let registers = Registers {
            idr0: REGISTERS.idr0 & !(3 << 6) | httu << 6 | 1 << 5,
            ..REGISTERS
        };
        let mut memory = ste(0, &[STAGE_1, 0]);
        put(&mut memory, 0x8000, &[CD_0 | 3 << 42, 0x2_0000]);
        let first = arm(resolve(&registers, &memory, 0, None));
        assert_eq!((first.ha, first.hd), updates);
        let memory = ste(0, &[0b1101, 0, STAGE_2 | 3 << 55, 0x3_0000]);
        let second = arm(resolve(&registers, &memory, 0, None));
        assert_eq!((second.ha, second.hd), updates);
    }
}

#[test]
fn stage_2_ignores_ds_where_the_hardware_or_the_granule_has_none() {
    let of = |idr5, vtcr: u64| {
        let words = [0b1101, 0, 1 << 51 | vtcr << 32, 0x4_0000 | 1 << 3 | 1 << 2];
        arm(resolve(
            &Registers { idr5, ..REGISTERS },
            &ste(0, &words),
            0,
            None,
        ))
    };
    // Without DS, S2SL0_2 does not count: SL0 2 stays level 0.
    assert!(of(0xf5, 12 | 5 << 16).ds);
    let plain = of(0x75, 20 | 2 << 6 | 5 << 16);
    assert!(!plain.ds);
    assert_eq!(
        plain.stage,
        iopt_reference::arm::Stage::Two { start_level: 0 }
    );
    let large = of(0xf5, 22 | 1 << 6 | 1 << 14 | 5 << 16);
    assert!(!large.ds);
    assert_eq!(
        large.stage,
        iopt_reference::arm::Stage::Two { start_level: 2 }
    );
}

#[test]
fn context_descriptors_of_32_bit_tables_have_small_sizes_and_one_granule() {
    // T0SZ 2 (bits above it are ignored), T1SZ 1, TG0 = TG1 = 3 (ignored), IPS 0 (ignored).
    let word = 2 | 7 << 3 | 3 << 6 | 1 << 16 | 3 << 22 | 1 << 31;
    let config = arm(with_cd(&[word, 0x2_0000, 0x7_0000]));
    assert!(config.aarch32 && !config.lpa && !config.ds);
    assert_eq!(config.oa_bits, 40);
    let half = |root, ia_bits| Half {
        sh: 0,
        ..Half::new(root, ia_bits, Granule::K4)
    };
    assert_eq!(
        (config.lower, config.upper),
        (Some(half(0x2_0000, 30)), Some(half(0x7_0000, 31)))
    );
}

#[test]
fn reserved_split_values_act_as_6_and_reserved_pointer_bits_do_not_count() {
    let registers = Registers {
        strtab_base_cfg: 1 << 16 | 7 << 6 | 10,
        ..REGISTERS
    };
    let mut memory = memory(&[
        (0x1_0000, &[0, 0x2_0000 | 7]),
        (0x2_0000 + 64 * 63, &[STAGE_1 | 7 << 56, 0]),
    ]);
    put(&mut memory, 0x8000, &[CD_0, 0x2_0000, 0, 0, 0, 0, 0, 0]);
    assert!(matches!(
        resolve(&registers, &memory, 127, None),
        Ok(Binding::Table(_))
    ));
}
