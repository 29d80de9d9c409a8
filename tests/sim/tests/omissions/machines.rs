//! The architectures, with the words of a table of four levels and 4 KiB pages in each.

use iopt_reference::context::Binding;
use iopt_reference::{Table, amd, arm, riscv, vtd, x86};
use iopt_sim::behaviour;
use iopt_sim::{Architecture, Context, Tag};

use crate::rig::QUEUE;

/// Roots of the first, or only, and of the second of two stages.
pub(crate) const ROOT: u64 = 0x1000;
pub(crate) const SECOND_ROOT: u64 = 0x2_0000;

pub(crate) struct Machine {
    pub(crate) architecture: Architecture,
    /// Register words.
    pub(crate) base: u64,
    pub(crate) entries: u64,
    /// Times that the tail passes the ring until it begins anew: two with a wrap bit.
    pub(crate) laps: u64,
    pub(crate) shift: u32,
    /// A sync that its head tells of.
    pub(crate) sync: [u64; 2],
    /// Device TLBs are told when the commands before are complete.
    pub(crate) orders_device_tlb: bool,
    /// What acknowledges an error, when there is one.
    pub(crate) acknowledgement: u64,
    /// Words of a pointer to a table of `level` (1 is the last), of a page, and of a 2 MiB block.
    pub(crate) pointer: fn(address: u64, level: u64) -> u64,
    pub(crate) page: fn(oa: u64) -> u64,
    pub(crate) block: fn(oa: u64) -> u64,
}

const fn smmu(features: behaviour::smmuv3::Features) -> Machine {
    Machine {
        architecture: Architecture::SmmuV3(features),
        base: QUEUE | 6,
        entries: 64,
        laps: 2,
        shift: 0,
        sync: [0x46, 0],
        orders_device_tlb: false,
        acknowledgement: 1,
        pointer: |address, _| address | 0b11,
        // Not global, accessed, inner shareable, all may read and write.
        page: |oa| oa | 0xf43,
        block: |oa| oa | 0xf41,
    }
}

/// Without range invalidation.
pub(crate) static SMMU: Machine = smmu(behaviour::smmuv3::Features {
    has_ranges: false,
    has_52_bits: false,
    has_stage2: true,
    has_ats: true,
    has_contiguous_erratum: false,
});

/// With range invalidation.
pub(crate) static SMMU_RANGES: Machine = smmu(behaviour::smmuv3::Features::ALL);

/// With range invalidation and the erratum of contiguous groups.
pub(crate) static SMMU_ERRATUM: Machine = smmu(behaviour::smmuv3::Features {
    has_contiguous_erratum: true,
    ..behaviour::smmuv3::Features::ALL
});

/// The first stage of ASID 5 and VMID 0.
pub(crate) fn smmu_context() -> Context {
    let half = arm::Half::new(ROOT, 48, arm::Granule::K4);
    Context {
        binding: Binding::Table(Table::Arm(arm::Config::stage1(half, 48))),
        tag: Tag::first(Some(0), 5),
        has_ats: true,
    }
}

/// ASID 5 of a guest with VMID 7.
pub(crate) fn smmu_nested() -> Context {
    let half = |root| arm::Half::new(root, 48, arm::Granule::K4);
    Context {
        binding: Binding::Nested {
            first: Table::Arm(arm::Config::stage1(half(ROOT), 48)),
            second: Table::Arm(arm::Config::stage2(half(SECOND_ROOT), 0, 48)),
        },
        tag: Tag::combined(7, 5),
        has_ats: true,
    }
}

const fn vtd(has_caching_mode: bool, is_wide: bool, drops_combined: bool) -> Machine {
    Machine {
        architecture: Architecture::Vtd(behaviour::vtd::Features {
            is_wide,
            has_caching_mode,
            has_page_selective: true,
            most_address_mask: 18,
            is_scalable: true,
            page_selective_drops_combined: drops_combined,
        }),
        base: QUEUE,
        entries: if is_wide { 128 } else { 256 },
        laps: 1,
        shift: 4,
        sync: [5, 0],
        orders_device_tlb: false,
        acknowledgement: u64::MAX,
        pointer: |address, _| address | 0b11,
        page: |oa| oa | 0b11,
        block: |oa| oa | 0b1000_0011,
    }
}

/// The words of [`VTD`], for machines like it.
pub(crate) const VTD_WORDS: Machine = vtd(false, false, false);
pub(crate) static VTD: Machine = VTD_WORDS;
/// Device TLBs are told in order.
pub(crate) static VTD_ORDERED: Machine = Machine {
    orders_device_tlb: true,
    ..VTD_WORDS
};
pub(crate) static VTD_CACHING: Machine = vtd(true, false, false);
/// With descriptors of 256 bits.
pub(crate) static VTD_WIDE: Machine = vtd(false, true, false);
/// What is combined goes with pages of the second stage.
pub(crate) static VTD_JOINED: Machine = vtd(false, false, true);

/// The second stage of domain 9.
pub(crate) fn vtd_context() -> Context {
    Context {
        binding: Binding::Table(Table::VtdSecond(vtd::Config::new(ROOT, 4))),
        tag: Tag::second(9),
        has_ats: true,
    }
}

/// A first stage of PASID 5 in domain 9.
pub(crate) fn vtd_first_context() -> Context {
    Context {
        binding: Binding::Table(Table::LongMode(x86::Config::vtd_first(ROOT, 4, 48))),
        tag: Tag::first(Some(9), 5),
        has_ats: true,
    }
}

/// PASID 5 in domain 9, nested.
pub(crate) fn vtd_nested() -> Context {
    Context {
        binding: Binding::Nested {
            first: Table::LongMode(x86::Config::vtd_first(ROOT, 4, 48)),
            second: Table::VtdSecond(vtd::Config::new(SECOND_ROOT, 4)),
        },
        tag: Tag::combined(9, 5),
        has_ats: true,
    }
}

/// Readable and writable.
const AMD_RIGHTS: u64 = 0b11 << 61;

const fn amd(caches_absent: bool) -> Machine {
    Machine {
        architecture: Architecture::Amd(behaviour::amd::Features {
            caches_absent,
            has_invalidate_all: true,
        }),
        // 2^8 entries.
        base: QUEUE | 8 << 56,
        entries: 256,
        laps: 1,
        shift: 4,
        sync: [1 << 60, 0],
        orders_device_tlb: false,
        acknowledgement: 1 << 12,
        pointer: |address, level| address | AMD_RIGHTS | level << 9 | 1,
        page: |oa| oa | AMD_RIGHTS | 1,
        block: |oa| oa | AMD_RIGHTS | 1,
    }
}

/// The words of [`AMD`], for machines like it.
pub(crate) const AMD_WORDS: Machine = amd(false);
pub(crate) static AMD: Machine = AMD_WORDS;
pub(crate) static AMD_ABSENT: Machine = amd(true);

/// The host table of domain 9.
pub(crate) fn amd_context() -> Context {
    Context {
        binding: Binding::Table(Table::AmdV1(amd::Config::new(ROOT, 4))),
        tag: Tag::second(9),
        has_ats: true,
    }
}

/// The guest table of PASID 5 in domain 9.
pub(crate) fn amd_guest_context() -> Context {
    Context {
        binding: Binding::Table(Table::LongMode(x86::Config::amd_guest(ROOT, 4))),
        tag: Tag::first(Some(9), 5),
        has_ats: true,
    }
}

/// Both.
pub(crate) fn amd_nested() -> Context {
    Context {
        binding: Binding::Nested {
            first: Table::LongMode(x86::Config::amd_guest(ROOT, 4)),
            second: Table::AmdV1(amd::Config::new(SECOND_ROOT, 4)),
        },
        tag: Tag::combined(9, 5),
        has_ats: true,
    }
}

const fn riscv(has_non_leaf: bool, has_split_caches: bool) -> Machine {
    Machine {
        architecture: Architecture::Riscv(behaviour::riscv::Features {
            has_non_leaf,
            has_ranges: true,
            has_ats: true,
            has_split_caches,
        }),
        // Page number from bit 10; 2^(5 + 1) entries.
        base: QUEUE >> 12 << 10 | 5,
        entries: 64,
        laps: 1,
        shift: 0,
        sync: [2, 0],
        orders_device_tlb: false,
        acknowledgement: u64::MAX,
        pointer: |address, _| address >> 12 << 10 | 1,
        // V, R, W, X, U, A, D.
        page: |oa| oa >> 12 << 10 | 0xdf,
        block: |oa| oa >> 12 << 10 | 0xdf,
    }
}

pub(crate) static RISCV: Machine = riscv(false, true);
pub(crate) static RISCV_NON_LEAF: Machine = riscv(true, true);
/// By the text, what is combined goes with the second stage.
pub(crate) static RISCV_JOINED: Machine = riscv(false, false);

/// PSCID 5, without a second stage.
pub(crate) fn riscv_context() -> Context {
    Context {
        binding: Binding::Table(Table::Riscv(riscv::Config::new(
            riscv::Stage::First,
            ROOT,
            4,
        ))),
        tag: Tag::first(None, 5),
        has_ats: true,
    }
}

/// PSCID 5 in the guest with GSCID 7.
pub(crate) fn riscv_nested() -> Context {
    Context {
        binding: Binding::Nested {
            first: Table::Riscv(riscv::Config::new(riscv::Stage::First, ROOT, 4)),
            second: Table::Riscv(riscv::Config::new(riscv::Stage::G, SECOND_ROOT, 4)),
        },
        tag: Tag::combined(7, 5),
        has_ats: true,
    }
}
