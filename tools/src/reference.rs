//! Our configurations in the terms of the reference walker.

use iopt_formats::catalog::{FormatName, Options};
use iopt_formats::walk::Root;
use iopt_formats::{Format, Memory, Window};
use iopt_reference::arm::{self, Granule, Half};
use iopt_reference::{MemoryAttributes, Table, amd, riscv, vtd, x86};

/// Returns the table at `root` for the reference walker.
pub(crate) fn table<F: Format>(
    name: FormatName,
    options: &Options,
    format: &F,
    root: Root,
) -> Table {
    let oa = root.oa.get();
    let (geometry, oa_bits) = (format.geometry(), format.oa_bits());
    let levels = root.level.0 + 1;
    let arm = |stage, granule| {
        let half = Half::new(oa, geometry.va_bits, granule);
        let config = match (stage, geometry.window) {
            (1, Window::Upper) => arm::Config::stage1_upper(half, oa_bits),
            (1, _) => arm::Config::stage1(half, oa_bits),
            _ => arm::Config::stage2(half, format.arch_level(root.level), oa_bits),
        };
        let config = if options.lpa {
            config.with_52_bits()
        } else {
            config
        };
        Table::Arm(if options.dirty {
            config.with_hardware_update()
        } else {
            config
        })
    };
    let riscv = |stage| {
        let (svnapot, svpbmt) = (options.svnapot, options.svpbmt);
        let config = riscv::Config::new(stage, oa, levels);
        Table::Riscv(riscv::Config {
            svnapot,
            svpbmt,
            oa_bits,
            ..config
        })
    };
    let long_mode = |config: x86::Config| {
        let sign_extended = geometry.window == Window::SignExtended;
        Table::LongMode(x86::Config {
            sign_extended,
            oa_bits,
            ..config
        })
    };
    match name {
        FormatName::ArmS1_4k => arm(1, Granule::K4),
        FormatName::ArmS1_16k => arm(1, Granule::K16),
        FormatName::ArmS1_64k => arm(1, Granule::K64),
        FormatName::ArmS2_4k => arm(2, Granule::K4),
        FormatName::ArmS2_16k => arm(2, Granule::K16),
        FormatName::ArmS2_64k => arm(2, Granule::K64),
        FormatName::ArmLpae32 => Table::Arm(arm::Config {
            oa_bits,
            ..arm::Config::lpae32(oa, geometry.va_bits)
        }),
        FormatName::ArmMali => Table::Arm(arm::Config::mali(oa, geometry.va_bits, oa_bits)),
        FormatName::VtdSs => Table::VtdSecond(vtd::Config {
            oa_bits,
            ..vtd::Config::new(oa, levels)
        }),
        FormatName::VtdFs => long_mode(x86::Config::vtd_first(oa, levels, oa_bits)),
        FormatName::AmdV1 => Table::AmdV1(amd::Config {
            oa_bits,
            ..amd::Config::new(oa, levels)
        }),
        FormatName::AmdV2 => long_mode(x86::Config::amd_guest(oa, levels)),
        FormatName::RiscvSv39 | FormatName::RiscvSv48 | FormatName::RiscvSv57 => {
            riscv(riscv::Stage::First)
        }
        FormatName::RiscvSv39x4 | FormatName::RiscvSv48x4 | FormatName::RiscvSv57x4 => {
            riscv(riscv::Stage::G)
        }
        // The catalog's names may grow; the nearest relative judges until this table does too.
        _ => long_mode(x86::Config::new(oa, levels)),
    }
}

/// Returns the memory type that raw attributes stand for with the attribute registers that our
/// formats assume, or `None` where there is no such type or the attributes do not say.
pub(crate) fn memory_type(attributes: MemoryAttributes) -> Option<Memory> {
    match attributes {
        MemoryAttributes::ArmStage1 { attr_indx: 0, .. }
        | MemoryAttributes::ArmStage2 {
            mem_attr: 0b0101, ..
        }
        | MemoryAttributes::Riscv { pbmt: 1 } => Some(Memory::NonCacheable),
        MemoryAttributes::ArmStage1 { attr_indx: 1, .. }
        | MemoryAttributes::ArmStage2 {
            mem_attr: 0b1111 | 0b0110,
            ..
        } => Some(Memory::WriteBack),
        MemoryAttributes::ArmStage1 { attr_indx: 2, .. }
        | MemoryAttributes::ArmStage2 {
            mem_attr: 0b0001, ..
        }
        | MemoryAttributes::Riscv { pbmt: 2 } => Some(Memory::Device),
        MemoryAttributes::ArmStage1 { attr_indx: 3, .. } => Some(Memory::SystemCache),
        _ => None,
    }
}
