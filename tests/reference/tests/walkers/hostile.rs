//! Memory full of nonsense: nothing panics, everything ends, and the two ways to read a table
//! agree.

use iopt_reference::arm::{Config, Granule, Half};
use iopt_reference::context::{ContextFault, Device, amd, riscv, smmu, vtd};
use iopt_reference::{Memory, Rigour, Table, Translation};

use crate::{LIMIT, rights};

/// A word that depends on `seed` alone, with all bits in use (`SplitMix64`).
fn scramble(seed: u64) -> u64 {
    let seed = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let seed = (seed ^ seed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let seed = (seed ^ seed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    seed ^ seed >> 31
}

/// Every table that the tests below walk: each format, with each size of root.
fn tables(root: u64) -> Vec<Table> {
    let mut tables = Vec::new();
    for granule in [Granule::K4, Granule::K16, Granule::K64] {
        let half = |ia_bits| Half::new(root, ia_bits, granule);
        tables.push(Table::Arm(Config::stage1(half(40), 44)));
        tables.push(Table::Arm(
            Config::stage1(half(52), 52)
                .with_52_bits()
                .with_hardware_update(),
        ));
        tables.push(Table::Arm(Config::stage1_upper(half(48), 48)));
        tables.push(Table::Arm(Config::stage2(half(48), 1, 48)));
        tables.push(Table::Arm(
            Config::stage2(half(42), 1, 48).with_hardware_update(),
        ));
    }
    tables.push(Table::Arm(Config::lpae32(root, 32)));
    tables.push(Table::Arm(Config::mali(root, 40, 40)));
    for levels in 3..=5 {
        use iopt_reference::riscv::{Config, Stage};
        tables.push(Table::VtdSecond(iopt_reference::vtd::Config::new(
            root, levels,
        )));
        tables.push(Table::Riscv(Config::new(Stage::First, root, levels)));
        tables.push(Table::Riscv(Config {
            hardware_ad: true,
            ..Config::new(Stage::G, root, levels)
        }));
    }
    for levels in 4..=5 {
        use iopt_reference::x86::Config;
        tables.push(Table::LongMode(Config::new(root, levels)));
        tables.push(Table::LongMode(Config {
            sign_extended: false,
            ..Config::new(root, levels)
        }));
    }
    for mode in 1..=6 {
        tables.push(Table::AmdV1(iopt_reference::amd::Config::new(root, mode)));
    }
    tables
}

/// Checks that walks of an item's first and last byte say what the enumeration said.
fn check_item(table: &Table, memory: &impl Memory, iova: u64, item: &Translation) {
    for offset in [0, item.item_len - 1] {
        let walked = table.walk(memory, iova + offset);
        assert_eq!(
            walked,
            Ok(Translation {
                oa: item.oa + offset,
                ..*item
            }),
            "{table:?} {iova:#x}"
        );
    }
    assert!(item.item_len <= item.page_len && item.page_len.is_power_of_two());
    assert_ne!(&rights(item)[..3], "---");
}

#[test]
fn walks_and_enumerations_of_random_words_end_and_agree() {
    let mut items = 0;
    for seed in 0..if cfg!(miri) { 1 } else { 24 } {
        // Tables of 128 KiB lie at 16 addresses; pointers lead there more often than not. In most
        // memories a table points at higher ones only, so that not every enumeration ends early.
        let memory = move |address: u64| {
            let word = scramble(seed << 48 ^ address);
            let region = address >> 17;
            let target = (region + 1 + word % 3) << 17;
            let low = scramble(word);
            Some(match low % 8 {
                0..4 => 0,
                4 | 5 => word & 0x6000_0000_0000_0fff | target | 1,
                // The same as a RISC-V pointer and as an AMD one.
                6 => (target >> 2) & 0x3f_ffff_ffff_fc00 | low >> 8 & 0xff | 1,
                _ => word & 0x7fff | low & 0x6060_ffff_0000_0000 | 1,
            })
            .filter(|_| (1..=16).contains(&region))
        };
        for table in tables(1 << 17) {
            let mut found = Vec::new();
            let scan = table.enumerate(&memory, 3000, Rigour::Lenient, |item| found.push(item));
            for item in found.iter().step_by(7) {
                check_item(&table, &memory, item.iova, &item.translation);
            }
            items += found.len();
            let strict = table.enumerate(&memory, 3000, Rigour::Strict, |_| ());
            assert!(scan.is_ok() || strict.is_err());
            for probe in 0..200 {
                let iova = scramble(seed << 32 | probe) >> (probe % 60);
                let Ok(walked) = table.walk(&memory, iova) else {
                    continue;
                };
                let start = iova & !(walked.item_len - 1);
                let item = Translation {
                    oa: walked.oa - (iova - start),
                    ..walked
                };
                assert!(scan.is_err() || found.iter().any(|item| item.iova == start));
                check_item(&table, &memory, start, &item);
            }
        }
    }
    // The words were good enough to get somewhere.
    assert!(cfg!(miri) || items > 10_000, "{items}");
}

#[test]
fn memory_of_any_single_word_is_harmless() {
    let words = (0..64).map(|n| 1 << n).chain((0..64).map(|n| !(1 << n)));
    for word in words.chain([0, u64::MAX]) {
        let memory = move |_| Some(word);
        for table in tables(1 << 17) {
            for iova in [0, 1 << 30, u64::MAX] {
                let _ = table.walk(&memory, iova);
            }
            for rigour in [Rigour::Lenient, Rigour::Strict] {
                let _ = table.enumerate(&memory, 600, rigour, |_| ());
            }
        }
    }
}

#[test]
fn any_root_address_and_any_geometry_is_harmless() {
    for root in [0, 1, u64::MAX, 1 << 52, (1 << 52) - 1, (1 << 56) - 0x1000] {
        for table in tables(root) {
            let _ = table.walk(&|_| Some(u64::MAX >> 12), 0);
            let _ = table.walk(&|_| None, u64::MAX);
        }
    }
    for raw in 0..=255 {
        for start in [-128, -2, -1, 0, 3, 4, 127] {
            for granule in [Granule::K4, Granule::K16, Granule::K64] {
                let half = Half {
                    tbi: true,
                    ..Half::new(0, raw, granule)
                };
                for config in [Config::stage1(half, raw), Config::stage2(half, start, 52)] {
                    for config in [
                        config,
                        config.with_52_bits(),
                        Config {
                            aarch32: true,
                            ..config
                        },
                    ] {
                        let _ = Table::Arm(config).walk(&|_| None, u64::MAX);
                    }
                }
            }
        }
    }
}

fn check_devices(found: Result<Vec<Device>, ContextFault>) {
    for device in found.unwrap_or_default() {
        if let Ok(binding) = device.binding {
            let _ = binding.walk(
                &|address| Some(scramble(address)),
                scramble(u64::from(device.id)),
            );
        }
    }
}

#[test]
fn registers_and_context_tables_of_random_words_are_harmless() {
    for seed in 0..if cfg!(miri) { 4 } else { 400u64 } {
        let random = |n: u64| scramble(seed << 8 | n);
        let memory = move |address: u64| Some(scramble(address ^ seed) & scramble(!address ^ seed));
        let [idr0, idr1, idr3, idr5] = [0, 1, 3, 5].map(|n| random(n) as u32);
        let smmu = smmu::Registers {
            idr0,
            idr1,
            idr3,
            idr5,
            cr0: 1,
            gbpa: 0,
            strtab_base: random(6),
            strtab_base_cfg: random(7) as u32,
        };
        let vtd = vtd::Registers {
            cap: random(8),
            ecap: random(9),
            gsts: 1 << 31,
            rtaddr: random(10),
            host_address_bits: random(11) as u8,
        };
        let amd = amd::Registers {
            devtab: random(12),
            control: random(13) | 1,
        };
        let riscv = riscv::Registers {
            capabilities: random(14),
            fctl: 0,
            ddtp: random(15) & !0xf | (seed % 6),
        };
        check_devices(smmu::devices(&smmu, &memory, 50));
        check_devices(vtd::devices(&vtd, &memory, 50));
        check_devices(amd::devices(&amd, &memory, 50));
        check_devices(riscv::devices(&riscv, &memory, 50));
        for probe in 16..32 {
            let id = random(probe) as u32 >> (probe % 16);
            let pasid = (probe % 3 > 0).then(|| random(probe + 16) as u32 >> 12);
            let _ = smmu::resolve(&smmu, &memory, id, pasid);
            let _ = vtd::resolve(&vtd, &memory, id, pasid);
            let _ = amd::resolve(&amd, &memory, id, pasid);
            let _ = riscv::resolve(&riscv, &memory, id, pasid);
        }
    }
}

#[test]
fn no_enumeration_of_devices_passes_its_limit() {
    let full = |_| Some(1);
    let smmu = smmu::Registers {
        idr1: 32,
        cr0: 1,
        strtab_base_cfg: 32,
        ..smmu::Registers::default()
    };
    assert_eq!(
        smmu::devices(&smmu, &full, LIMIT),
        Err(ContextFault::Limit { limit: LIMIT })
    );
    let riscv = riscv::Registers {
        ddtp: 4,
        ..riscv::Registers::default()
    };
    assert_eq!(
        riscv::devices(&riscv, &full, LIMIT),
        Err(ContextFault::Limit { limit: LIMIT })
    );
    let amd = amd::Registers {
        devtab: 0x1ff,
        control: 1,
    };
    assert_eq!(
        amd::devices(&amd, &full, 65535),
        Err(ContextFault::Limit { limit: 65535 })
    );
    assert_eq!(
        amd::devices(&amd, &full, LIMIT).unwrap().len(),
        LIMIT as usize
    );
}
