//! RISC-V IOMMU.

use iopt_reference::context::riscv::{Registers, devices, resolve};
use iopt_reference::context::{Binding, ContextFault};
use iopt_reference::riscv::{Config, Stage};
use iopt_reference::{Fault, PageMap, Setup, Table};

use crate::{LIMIT, OPEN, ids, memory, put};

/// All modes of both stages, Svpbmt, `AMO_HWAD`, ATS, T2GPA, PAS 56, all process directories.
const CAPABILITIES: u64 =
    0b111 << 9 | 1 << 15 | 0b111 << 17 | 1 << 24 | 1 << 25 | 1 << 26 | 56 << 32 | 0b111 << 38;
const EXTENDED: u64 = CAPABILITIES | 1 << 22;

/// Registers with a directory of `levels` at 0x1000.
fn registers(capabilities: u64, levels: u64) -> Registers {
    Registers {
        capabilities,
        fctl: 0,
        ddtp: 1 << 10 | (levels + 1),
    }
}

/// The device context of device 3 in a one-level directory of extended contexts.
fn of(context: &[u64]) -> Result<Binding, ContextFault> {
    resolve(
        &registers(EXTENDED, 1),
        &memory(&[(0x1000 + 64 * 3, context)]),
        3,
        None,
    )
}

fn first(root: u64, levels: u8) -> Config {
    Config::new(Stage::First, root, levels)
}

fn g_stage(root: u64, levels: u8) -> Config {
    Config::new(Stage::G, root, levels)
}

fn atp(mode: u64, root: u64) -> u64 {
    mode << 60 | root >> 12
}

#[test]
fn modes_without_a_directory_decide_for_all_devices() {
    let mode = |mode| Registers {
        ddtp: mode,
        ..registers(CAPABILITIES, 1)
    };
    assert_eq!(
        resolve(&mode(0), &PageMap::new(), 9, None),
        Ok(Binding::Blocked)
    );
    assert_eq!(resolve(&mode(1), &PageMap::new(), 9, None), Ok(OPEN));
    let illegal = ContextFault::Illegal {
        field: "ddtp.iommu_mode",
        value: 5,
    };
    assert_eq!(resolve(&mode(5), &PageMap::new(), 9, None), Err(illegal));
    assert_eq!(devices(&mode(0), &PageMap::new(), LIMIT), Ok(vec![]));
    assert_eq!(devices(&mode(5), &PageMap::new(), LIMIT), Err(illegal));
    assert_eq!(devices(&mode(1), &PageMap::new(), LIMIT), Ok(vec![]));
}

#[test]
fn device_ids_index_directories_of_one_to_three_levels_of_both_formats() {
    // Format, bits of DDI[0], bytes of a context.
    for (capabilities, leaf_bits, len) in [(CAPABILITIES, 7, 32), (EXTENDED, 6, 64)] {
        for levels in 1..=3 {
            let d0 = (1 << leaf_bits) - 3;
            let [d1, d2] = [(2, 0x1f6), (3, 0x87)].map(|(of, d)| if levels >= of { d } else { 0 });
            let id = d2 << (leaf_bits + 9) | d1 << leaf_bits | d0;
            let mut memory = PageMap::new();
            let mut table = 0x1000;
            for index in [d2, d1].iter().skip(3 - levels) {
                put(
                    &mut memory,
                    table + 8 * u64::from(*index),
                    &[(table + 0x1000) >> 2 | 1],
                );
                table += 0x1000;
            }
            put(
                &mut memory,
                table + len * u64::from(d0),
                &[1, 0, 0, atp(8, 0x7_7000)],
            );
            let registers = registers(capabilities, levels as u64);
            let table = Ok(Binding::Table(Table::Riscv(first(0x7_7000, 3))));
            assert_eq!(
                resolve(&registers, &memory, id, None),
                table,
                "{levels} {leaf_bits}"
            );
            let found = devices(&registers, &memory, LIMIT).unwrap();
            assert_eq!((ids(&found), found[0].binding), (vec![id], table));
            // The first id that needs another level.
            let device_id = 1 << (leaf_bits + 9 * (levels as u32 - 1)).min(24);
            let fault = Err(ContextFault::DeviceId { device_id });
            assert_eq!(resolve(&registers, &memory, device_id, None), fault);
        }
    }
}

#[test]
fn directory_entries_must_be_valid_and_plain() {
    let registers = registers(EXTENDED, 2);
    let entry = |word| resolve(&registers, &memory(&[(0x1000, &[word])]), 0, None);
    assert_eq!(entry(0), Err(ContextFault::NotValid { address: 0x1000 }));
    for word in [0x803, 1 << 9 | 0x801, 1 << 54 | 0x801, 1 << 63 | 0x801] {
        let illegal = ContextFault::Illegal {
            field: "directory entry",
            value: word,
        };
        assert_eq!(entry(word), Err(illegal));
    }
    assert_eq!(
        entry(0x801),
        Err(ContextFault::MissingMemory { address: 0x2000 })
    );
}

#[test]
fn device_contexts_decode_by_hand() {
    assert_eq!(
        of(&[0, 0, 0, 0]),
        Err(ContextFault::NotValid { address: 0x10c0 })
    );
    assert_eq!(of(&[1, 0, 0, 0]), Ok(OPEN));
    for (mode, levels) in [(8, 3), (9, 4), (10, 5)] {
        let one = Ok(Binding::Table(Table::Riscv(first(0x7_7000, levels))));
        assert_eq!(of(&[1, 0, 0, atp(mode, 0x7_7000)]), one);
        // GSCID stands between MODE and PPN.
        let iohgatp = atp(mode, 0x8_8000) | 0xabcd << 44;
        let second = Table::Riscv(g_stage(0x8_8000, levels));
        assert_eq!(of(&[1, iohgatp, 0, 0]), Ok(Binding::Table(second)));
        let both = Binding::Nested {
            first: Table::Riscv(first(0x7_7000, 3)),
            second,
        };
        assert_eq!(of(&[1, iohgatp, 0, atp(8, 0x7_7000)]), Ok(both));
    }
    let high = 0x80_0000_0007_7000;
    let table = Ok(Binding::Table(Table::Riscv(first(high, 3))));
    assert_eq!(of(&[1, 0, 0, atp(8, high)]), table);
    // SADE and GADE.
    let ade = [1 | 1 << 8 | 1 << 7, atp(8, 0x8_8000), 0, atp(8, 0x7_7000)];
    let both = Binding::Nested {
        first: Table::Riscv(Config {
            hardware_ad: true,
            ..first(0x7_7000, 3)
        }),
        second: Table::Riscv(Config {
            hardware_ad: true,
            ..g_stage(0x8_8000, 3)
        }),
    };
    assert_eq!(of(&ade), Ok(both));
    let gade = Table::Riscv(Config {
        hardware_ad: true,
        ..g_stage(0x8_8000, 3)
    });
    assert_eq!(
        of(&[1 | 1 << 7, atp(8, 0x8_8000), 0, 0]),
        Ok(Binding::Table(gade))
    );
    let sade = Table::Riscv(Config {
        hardware_ad: true,
        ..first(0x7_7000, 3)
    });
    assert_eq!(
        of(&[1 | 1 << 8, 0, 0, atp(8, 0x7_7000)]),
        Ok(Binding::Table(sade))
    );
    // A G-stage root is 16 KiB.
    let root = 0x8_9000;
    assert_eq!(
        of(&[1, atp(8, root), 0, 0]),
        Err(ContextFault::Setup(Setup::Root { root }))
    );
}

#[test]
fn misconfigured_contexts_are_refused() {
    let en_ats = 1 << 1;
    let wrong = |value| {
        Err(ContextFault::Illegal {
            field: "DC.tc",
            value,
        })
    };
    for tc in [
        1 | 1 << 2,          // EN_PRI without EN_ATS
        1 | 1 << 3,          // T2GPA without EN_ATS
        1 | en_ats | 1 << 3, // T2GPA with a bare G-stage
        1 | en_ats | 1 << 6, // PRPR without EN_PRI
        1 | 1 << 9,          // DPE without PDTV
        1 | 1 << 12,         // reserved
        1 | 1 << 32,         // reserved
    ] {
        assert_eq!(of(&[tc, 0, 0, 0]), wrong(tc), "{tc:#x}");
    }
    assert_eq!(of(&[1 | en_ats | 1 << 2 | 1 << 6, 0, 0, 0]), Ok(OPEN));
    // Bits 31:24 are for custom use.
    assert_eq!(of(&[1 | 0xff << 24, 0, 0, 0]), Ok(OPEN));
    let plain = |context: &[u64]| {
        let memory = memory(&[(0x1000, context)]);
        resolve(&registers(1 << 9 | 1 << 22, 1), &memory, 0, None)
    };
    assert_eq!(plain(&[1 | 1 << 8, 0, 0, 0]), wrong(1 | 1 << 8));
    assert_eq!(plain(&[1 | 1 << 7, 0, 0, 0]), wrong(1 | 1 << 7));
    assert_eq!(plain(&[1 | en_ats, 0, 0, 0]), wrong(1 | en_ats));
    let no_t2gpa = Registers {
        capabilities: EXTENDED & !(1 << 26),
        ..registers(0, 1)
    };
    let t2gpa = [1 | en_ats | 1 << 3, atp(8, 0x8_8000), 0, 0];
    let with_t2gpa = memory(&[(0x1000, &t2gpa)]);
    assert_eq!(resolve(&no_t2gpa, &with_t2gpa, 0, None), wrong(t2gpa[0]));
    assert!(resolve(&registers(EXTENDED, 1), &with_t2gpa, 0, None).is_ok());
    // Modes that the hardware lacks, or that are none.
    let illegal = |field, value| Err(ContextFault::Illegal { field, value });
    assert_eq!(plain(&[1, 0, 0, atp(9, 0)]), illegal("iosatp", atp(9, 0)));
    assert_eq!(
        plain(&[1, atp(8, 0), 0, 0]),
        illegal("DC.iohgatp", atp(8, 0))
    );
    assert_eq!(of(&[1, 0, 0, atp(7, 0)]), illegal("iosatp", atp(7, 0)));
    for reserved in [atp(8, 0) | 1 << 44, atp(8, 0) | 1 << 59] {
        assert_eq!(of(&[1, 0, 0, reserved]), illegal("iosatp", reserved));
    }
    for ta in [1, 1 << 11, 1 << 32, 1 << 39, 1 << 40, 1 << 63] {
        assert_eq!(of(&[1, 0, ta, 0]), illegal("DC.ta", ta));
    }
    let with_qos = Registers {
        capabilities: EXTENDED | 1 << 41,
        ..registers(0, 1)
    };
    let memory = memory(&[(0x1000, &[1, 0, 0xffff_ff00_ffff_f000, 0])]);
    assert_eq!(resolve(&with_qos, &memory, 0, None), Ok(OPEN));
    // 32-bit and big-endian tables.
    let unsupported = |field| Err(ContextFault::Unsupported { field });
    assert_eq!(
        of(&[1 | 1 << 11, 0, 0, atp(8, 0)]),
        unsupported("DC.tc.SXL")
    );
    assert_eq!(
        of(&[1 | 1 << 10, 0, 0, 0]),
        unsupported("big-endian tables")
    );
    // Without Svpbmt in the capabilities there is none in the table.
    let Ok(Binding::Table(Table::Riscv(table))) = plain(&[1, 0, 0, atp(8, 0x7000)]) else {
        panic!("no table");
    };
    assert!(!table.svpbmt && table.svnapot);
}

/// Device 3 with PDTV and further bits of tc, its process directory at 0x5000.
fn with_processes(tc: u64, mode: u64, iohgatp: u64) -> PageMap {
    memory(&[(
        0x1000 + 64 * 3,
        &[1 | 1 << 5 | tc, iohgatp, 0, atp(mode, 0x5000)],
    )])
}

#[test]
fn process_ids_index_directories_of_one_to_three_levels() {
    // Process directory mode, process id, words on the way to its context.
    let cases = [
        (1, 0xff, vec![(0x5ff0, 1)]),
        (2, 0x1_ff05, vec![(0x5ff8, 0x6 << 10 | 1), (0x6050, 1)]),
        (
            3,
            0xe_0306,
            vec![
                (0x5038, 0x6 << 10 | 1),
                (0x6018, 0x7 << 10 | 1),
                (0x7060, 1),
            ],
        ),
    ];
    for (mode, pasid, words) in cases {
        let mut memory = with_processes(0, mode, 0);
        for &(address, word) in &words {
            memory.write64(address, word);
        }
        let &(context, _) = words.last().unwrap();
        put(&mut memory, context + 8, &[atp(9, 0x7_7000)]);
        let registers = registers(EXTENDED, 1);
        let table = Ok(Binding::Table(Table::Riscv(first(0x7_7000, 4))));
        assert_eq!(
            resolve(&registers, &memory, 3, Some(pasid)),
            table,
            "{mode}"
        );
        memory.write64(context, 0);
        let invalid = Err(ContextFault::NotValid { address: context });
        assert_eq!(resolve(&registers, &memory, 3, Some(pasid)), invalid);
        // An id too wide for the directory.
        if let Some(pasid) = [0x100, 0x2_0000].get(mode as usize - 1) {
            let refused = Err(ContextFault::Pasid {
                pasid: Some(*pasid),
            });
            assert_eq!(resolve(&registers, &memory, 3, Some(*pasid)), refused);
        }
    }
}

#[test]
fn requests_without_a_process_id_have_a_default() {
    let registers = registers(EXTENDED, 1);
    let mut memory = with_processes(1 << 9, 1, 0);
    put(&mut memory, 0x5000, &[1, atp(8, 0x7_7000)]);
    // DPE: process 0.
    let table = Ok(Binding::Table(Table::Riscv(first(0x7_7000, 3))));
    assert_eq!(resolve(&registers, &memory, 3, None), table);
    // Without it, and with a bare directory, no first stage.
    assert_eq!(
        resolve(&registers, &with_processes(0, 1, 0), 3, None),
        Ok(OPEN)
    );
    let bare = crate::memory(&[(0x1000 + 64 * 3, &[1 | 1 << 5, 0, 0, 0])]);
    assert_eq!(resolve(&registers, &bare, 3, Some(7)), Ok(OPEN));
    // A context without processes takes none.
    let none = crate::memory(&[(0x1000 + 64 * 3, &[1, 0, 0, atp(8, 0x7_7000)])]);
    let refused = Err(ContextFault::Pasid { pasid: Some(0) });
    assert_eq!(resolve(&registers, &none, 3, Some(0)), refused);
    let pd8 = Registers {
        capabilities: EXTENDED & !(1 << 38),
        ..registers
    };
    let illegal = |value| {
        Err(ContextFault::Illegal {
            field: "pdtp",
            value,
        })
    };
    assert_eq!(resolve(&pd8, &memory, 3, None), illegal(atp(1, 0x5000)));
    // Even if no process is asked for.
    assert_eq!(
        resolve(&pd8, &with_processes(0, 1, 0), 3, None),
        illegal(atp(1, 0x5000))
    );
    for bit in [44, 59] {
        let pdtp = atp(1, 0x5000) | 1 << bit;
        let memory = crate::memory(&[(0x1000 + 64 * 3, &[1 | 1 << 5, 0, 0, pdtp])]);
        assert_eq!(resolve(&registers, &memory, 3, None), illegal(pdtp));
    }
    for mode in [4, 8, 9] {
        let memory = with_processes(0, mode, 0);
        assert_eq!(
            resolve(&registers, &memory, 3, None),
            illegal(atp(mode, 0x5000))
        );
    }
    let mut memory = memory.clone();
    for word in [1 | 1 << 3, 1 | 1 << 11, 1 | 1 << 32, 1 | 1 << 63] {
        memory.write64(0x5000, word);
        let illegal = ContextFault::Illegal {
            field: "PC.ta",
            value: word,
        };
        assert_eq!(resolve(&registers, &memory, 3, None), Err(illegal));
    }
    // ENS, SUM and PSCID mean nothing for the table.
    memory.write64(0x5000, 0xffff_f007);
    assert_eq!(resolve(&registers, &memory, 3, None), table);
}

#[test]
fn with_a_g_stage_the_process_directory_is_at_guest_addresses() {
    let registers = registers(EXTENDED, 1);
    let mut memory = with_processes(1 << 9, 1, atp(8, 0x8_8000));
    let missing = Fault::MissingMemory { address: 0x8_8000 };
    let fault = ContextFault::Second {
        ipa: 0x5000,
        fault: missing,
    };
    assert_eq!(resolve(&registers, &memory, 3, None), Err(fault));
    // The G-stage maps the first GiB to 0x4000_0000.
    put(&mut memory, 0x8_8000, &[0x1000_00df]);
    let fault = ContextFault::MissingMemory {
        address: 0x4000_5000,
    };
    assert_eq!(resolve(&registers, &memory, 3, None), Err(fault));
    put(&mut memory, 0x4000_5000, &[1, atp(8, 0x7_7000)]);
    let both = Binding::Nested {
        first: Table::Riscv(first(0x7_7000, 3)),
        second: Table::Riscv(g_stage(0x8_8000, 3)),
    };
    assert_eq!(resolve(&registers, &memory, 3, None), Ok(both));
}

#[test]
fn the_physical_address_size_limits_the_last_stage() {
    let narrow = Registers {
        capabilities: EXTENDED & !(0x3f << 32) | 40 << 32,
        ..registers(0, 1)
    };
    let of = |context: &[u64]| resolve(&narrow, &memory(&[(0x1000, context)]), 0, None);
    let first = |oa_bits| {
        Table::Riscv(Config {
            oa_bits,
            ..first(0x7_7000, 3)
        })
    };
    let second = Table::Riscv(Config {
        oa_bits: 40,
        ..g_stage(0x8_8000, 3)
    });
    assert_eq!(
        of(&[1, 0, 0, atp(8, 0x7_7000)]),
        Ok(Binding::Table(first(40)))
    );
    assert_eq!(of(&[1, atp(8, 0x8_8000), 0, 0]), Ok(Binding::Table(second)));
    let both = Binding::Nested {
        first: first(56),
        second,
    };
    assert_eq!(of(&[1, atp(8, 0x8_8000), 0, atp(8, 0x7_7000)]), Ok(both));
}
