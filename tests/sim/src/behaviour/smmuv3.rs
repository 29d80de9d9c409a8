//! SMMUv3 commands, by Arm IHI 0070, 4.1 to 4.7.

use super::{Command, Completion, Effect, Illegal, bit, bits, mask, reserved};
use crate::context_cache::Structure;
use crate::invalidation::{
    ALL_STAGES, AtcDrop, ContextDrop, Devices, FIRST_STAGES, Leaves, Names, SECOND_STAGE, Spaces,
    Tables, TlbDrop,
};
use crate::span::Span;
use crate::tag::{Regime, Stage};

/// What one SMMU can do.
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a bit of an IDR register"
)]
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Features {
    /// IDR3.RIL: TLBI commands take ranges.
    pub has_ranges: bool,
    /// IDR5.DS: SCALE has six bits, and 16 KiB tables have blocks at level 1.
    pub has_52_bits: bool,
    /// IDR0.S2P: there is a stage 2.
    pub has_stage2: bool,
    /// IDR0.ATS.
    pub has_ats: bool,
    /// The erratum by which a contiguous group stays unless one range command covers all of it.
    pub has_contiguous_erratum: bool,
}

impl Features {
    /// All but the erratum.
    pub const ALL: Self = Self {
        has_ranges: true,
        has_52_bits: true,
        has_stage2: true,
        has_ats: true,
        has_contiguous_erratum: false,
    };
}

const OPCODE: u64 = mask(7, 0);
const SID: u64 = mask(63, 32);
const SSID: u64 = mask(31, 12);
const VMID: u64 = mask(47, 32);
const ASID: u64 = mask(63, 48);

const STREAM: &[Structure] = &[
    Structure::Device,
    Structure::SubDirectory,
    Structure::Process,
];
const STREAM_AND_ABOVE: &[Structure] = &[
    Structure::Directory,
    Structure::Device,
    Structure::SubDirectory,
    Structure::Process,
];
const DESCRIPTOR: &[Structure] = &[Structure::Process];
const DESCRIPTOR_AND_ABOVE: &[Structure] = &[Structure::SubDirectory, Structure::Process];

pub(super) fn decode(features: Features, words: [u64; 2]) -> Result<Command, Illegal> {
    let [low, high] = words;
    let opcode = bits(low, 7, 0);
    if matches!(opcode, 0x28 | 0x2a) && !features.has_stage2 || opcode == 0x40 && !features.has_ats
    {
        return Err(Illegal("the opcode belongs to a feature that is not there"));
    }
    let sid = bits(low, 63, 32) as u32;
    let one = Devices::Masked {
        id: sid,
        mask: u32::MAX,
    };
    let contexts = |devices, pasid, structures| {
        Effect::Context(ContextDrop {
            devices,
            pasid,
            domain: None,
            structures,
        })
    };
    let command = match opcode {
        0x01 => Command::idle("PREFETCH_CONFIG"),
        0x02 => Command::idle("PREFETCH_ADDR"),
        0x03 => {
            reserved(&words, &[OPCODE | SID, 1])?;
            let structures = if bit(high, 0) {
                STREAM
            } else {
                STREAM_AND_ABOVE
            };
            Command::new("CFGI_STE", contexts(one, None, structures))
        }
        0x04 => {
            reserved(&words, &[OPCODE | SID, mask(4, 0)])?;
            // 2^(Range + 1) streams from an aligned one.
            let devices = match bits(high, 4, 0) {
                31 => Devices::All,
                range => Devices::Masked {
                    id: sid,
                    mask: u32::MAX.checked_shl(range as u32 + 1).unwrap_or(0),
                },
            };
            Command::new("CFGI_STE_RANGE", contexts(devices, None, STREAM_AND_ABOVE))
        }
        0x05 => {
            reserved(&words, &[OPCODE | SSID | SID, 1])?;
            let structures = if bit(high, 0) {
                DESCRIPTOR
            } else {
                DESCRIPTOR_AND_ABOVE
            };
            let ssid = bits(low, 31, 12) as u32;
            Command::new("CFGI_CD", contexts(one, Some(ssid), structures))
        }
        0x06 => {
            reserved(&words, &[OPCODE | SID, 0])?;
            Command::new("CFGI_CD_ALL", contexts(one, None, DESCRIPTOR_AND_ABOVE))
        }
        0x10..=0x30 => translations(features, words)?,
        0x40 => device_tlb(words)?,
        0x41 => Command::idle("PRI_RESP"),
        0x44 => Command::idle("RESUME"),
        0x45 => Command::idle("STALL_TERM"),
        0x46 => sync(words)?,
        _ => return Err(Illegal("unknown opcode")),
    };
    Ok(command)
}

fn sync(words: [u64; 2]) -> Result<Command, Illegal> {
    let [low, high] = words;
    let defined = OPCODE | mask(13, 12) | mask(27, 22) | mask(63, 32);
    reserved(&words, &[defined, mask(51, 2)])?;
    let address = high & mask(51, 2);
    let completion = match bits(low, 13, 12) {
        // An interrupt, and a store if there is an address.
        1 if address != 0 => Completion::Store32 {
            address,
            word: bits(low, 63, 32) as u32,
        },
        0..=2 => Completion::Head,
        _ => return Err(Illegal("CS is reserved")),
    };
    Ok(Command::new("SYNC", Effect::Sync(completion)))
}

fn device_tlb(words: [u64; 2]) -> Result<Command, Illegal> {
    let [low, high] = words;
    let defined = OPCODE | mask(9, 9) | mask(11, 11) | SSID | SID;
    reserved(&words, &[defined, mask(63, 12) | mask(5, 0)])?;
    let lg2 = 12 + bits(high, 5, 0) as u32;
    if lg2 > 64 {
        return Err(Illegal("Size is above 52"));
    }
    // Without SSV the message has no PASID, and reaches what was asked for with any.
    let pasid = bit(low, 11) && !bit(low, 9);
    Ok(Command::new(
        "ATC_INV",
        Effect::Atc(AtcDrop {
            device: bits(low, 63, 32) as u32,
            pasid: pasid.then_some(bits(low, 31, 12) as u32),
            span: Span::around(high, lg2),
        }),
    ))
}

/// TLBI_*: which names, and whether by address.
fn translations(features: Features, words: [u64; 2]) -> Result<Command, Illegal> {
    let [low, _] = words;
    let asid = bits(low, 63, 48) as u32;
    let vmid = Some(bits(low, 47, 32) as u32);
    let names = |regime, stages: &'static [Stage], domain, spaces| Names {
        regime,
        stages,
        domain,
        is_virtual: None,
        spaces,
    };
    let (system, hypervisor) = (Regime::System, Regime::Hypervisor);
    let (name, names, fields, has_address) = match bits(low, 7, 0) {
        0x10 => (
            "TLBI_NH_ALL",
            names(system, FIRST_STAGES, vmid, Spaces::All),
            VMID,
            false,
        ),
        0x11 => (
            "TLBI_NH_ASID",
            names(system, FIRST_STAGES, vmid, Spaces::OneLocal(asid)),
            VMID | ASID,
            false,
        ),
        0x12 => (
            "TLBI_NH_VA",
            names(system, FIRST_STAGES, vmid, Spaces::One(asid)),
            VMID | ASID,
            true,
        ),
        0x13 => (
            "TLBI_NH_VAA",
            names(system, FIRST_STAGES, vmid, Spaces::All),
            VMID,
            true,
        ),
        0x20 => (
            "TLBI_EL2_ALL",
            names(hypervisor, ALL_STAGES, None, Spaces::All),
            0,
            false,
        ),
        0x21 => (
            "TLBI_EL2_ASID",
            names(hypervisor, ALL_STAGES, None, Spaces::OneLocal(asid)),
            ASID,
            false,
        ),
        0x22 => (
            "TLBI_EL2_VA",
            names(hypervisor, ALL_STAGES, None, Spaces::One(asid)),
            ASID,
            true,
        ),
        0x23 => (
            "TLBI_EL2_VAA",
            names(hypervisor, ALL_STAGES, None, Spaces::All),
            0,
            true,
        ),
        0x28 => (
            "TLBI_S12_VMALL",
            names(system, ALL_STAGES, vmid, Spaces::All),
            VMID,
            false,
        ),
        // Leaves what two stages were combined to.
        0x2a => (
            "TLBI_S2_IPA",
            names(system, SECOND_STAGE, vmid, Spaces::All),
            VMID,
            true,
        ),
        0x30 => ("TLBI_NSNH_ALL", Names::ALL, 0, false),
        _ => return Err(Illegal("unknown opcode, or one of another security state")),
    };
    let drop = if has_address {
        by_address(features, words, names, fields)?
    } else {
        reserved(&words, &[OPCODE | fields, 0])?;
        TlbDrop::all(names)
    };
    Ok(Command::new(name, Effect::Tlb(drop)))
}

/// The form with an address (4.4.1.1): a single one without TG, else a range of granules.
fn by_address(
    features: Features,
    words: [u64; 2],
    names: Names,
    fields: u64,
) -> Result<TlbDrop, Illegal> {
    let [low, high] = words;
    let scale_high = if features.has_52_bits { 25 } else { 24 };
    let ranges = mask(16, 12) | mask(scale_high, 20);
    reserved(&words, &[OPCODE | fields | ranges, mask(63, 8) | 1])?;
    let (num, scale) = (bits(low, 16, 12), bits(low, scale_high, 20) as u32);
    let (ttl, granule) = (bits(high, 9, 8) as u32, bits(high, 11, 10));
    let is_leaf_only = bit(high, 0);
    let address = high & mask(63, 12);
    if granule == 0 {
        if num != 0 || scale != 0 || ttl != 0 {
            return Err(Illegal("NUM, SCALE or TTL without TG"));
        }
        return Ok(TlbDrop {
            names,
            range: (address, address),
            leaves: Leaves::Any,
            tables: if is_leaf_only {
                Tables::None
            } else {
                Tables::Any
            },
            is_void: None,
        });
    }
    if !features.has_ranges {
        return Err(Illegal("TG without range invalidation"));
    }
    if num == 0 && scale == 0 && ttl == 0 {
        return Err(Illegal("one granule without a level"));
    }
    if scale > 39 {
        return Err(Illegal("SCALE is above 39"));
    }
    let granule_lg2 = 10 + 2 * granule as u32;
    if granule_lg2 == 14 && ttl == 1 && !features.has_52_bits {
        return Err(Illegal("TTL 1 with 16 KiB granules"));
    }
    let item_lg2 = (ttl != 0).then_some(granule_lg2 + (3 - ttl.min(3)) * (granule_lg2 - 3));
    let aligned = Span::around(address, item_lg2.unwrap_or(granule_lg2));
    let is_aligned = item_lg2.is_none() || aligned.start == address;
    let len = u128::from(num + 1) << scale << granule_lg2;
    let last = (u128::from(aligned.start) + len - 1).min(u128::from(u64::MAX)) as u64;
    Ok(TlbDrop {
        names,
        range: (aligned.start, last),
        leaves: Leaves::Granule {
            granule_lg2,
            item_lg2,
            is_whole: features.has_contiguous_erratum,
        },
        tables: if is_leaf_only {
            Tables::None
        } else {
            Tables::Granule {
                granule_lg2,
                above_lg2: item_lg2,
            }
        },
        is_void: (!is_aligned).then_some("the address is not aligned to the level of the hint"),
    })
}
