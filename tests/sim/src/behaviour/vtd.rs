//! VT-d invalidation descriptors, by the Intel VT-d specification, 6.5.2.

use super::{Command, Completion, Effect, Illegal, bit, bits, encoded_lg2, mask, reserved};
use crate::context_cache::Structure;
use crate::invalidation::{
    ALL_STAGES, AtcDrop, ContextDrop, Devices, FIRST_STAGES, Leaves, Names, SECOND_STAGE, Spaces,
    Tables, TlbDrop,
};
use crate::span::Span;
use crate::tag::{Regime, Stage};

/// What one unit can do.
#[expect(clippy::struct_excessive_bools, reason = "each is a bit of a register")]
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Features {
    /// IQA.DW: descriptors have 256 bits.
    pub is_wide: bool,
    /// CAP.CM: what is not present is cached.
    pub has_caching_mode: bool,
    /// CAP.PSI: ranges can be invalidated.
    pub has_page_selective: bool,
    /// CAP.MAMV: the largest address mask.
    pub most_address_mask: u32,
    /// ECAP.SMTS: the descriptors of scalable mode are there.
    pub is_scalable: bool,
    /// Page-selective descriptors of a domain drop combined translations that its address may be behind.
    /// Off, the careful reading of 6.5.2.3: only what is cached of the second stage alone.
    pub page_selective_drops_combined: bool,
}

impl Default for Features {
    fn default() -> Self {
        Self {
            is_wide: false,
            has_caching_mode: false,
            has_page_selective: true,
            most_address_mask: 18,
            is_scalable: true,
            page_selective_drops_combined: false,
        }
    }
}

const TYPE: u64 = mask(3, 0) | mask(11, 9);
const GRANULARITY: u64 = mask(5, 4);
const DID: u64 = mask(31, 16);
const PASID: u64 = mask(51, 32);

const SECOND_AND_COMBINED: &[Stage] = &[Stage::Second, Stage::Combined];
/// A context entry; the entries of PASIDs that were read through it have a cache of their own.
const CONTEXT: &[Structure] = &[Structure::Device];
const CONTEXT_AND_ROOT: &[Structure] = &[Structure::Directory, Structure::Device];
const PROCESS: &[Structure] = &[Structure::SubDirectory, Structure::Process];

pub(super) fn decode(features: Features, words: [u64; 4]) -> Result<Command, Illegal> {
    let [low, high, ..] = words;
    if words[2] != 0 || words[3] != 0 {
        return Err(Illegal("a reserved bit is set"));
    }
    let kind = bits(low, 11, 9) << 4 | bits(low, 3, 0);
    if matches!(kind, 6..=8) && !features.is_scalable {
        return Err(Illegal("a descriptor of scalable mode"));
    }
    match kind {
        1 => context(words),
        2 => iotlb(features, words),
        3 => {
            let defined = TYPE | mask(20, 16) | mask(15, 12) | mask(63, 52) | mask(47, 32);
            reserved(&words, &[defined, mask(63, 12) | 1])?;
            Ok(device_tlb(bits(low, 47, 32), None, bit(high, 0), high))
        }
        4 => Ok(Command::idle("interrupt entry cache")),
        5 => {
            reserved(&words, &[TYPE | mask(7, 4) | mask(63, 32), mask(63, 2)])?;
            let completion = if bit(low, 5) {
                Completion::Store32 {
                    address: high,
                    word: bits(low, 63, 32) as u32,
                }
            } else {
                Completion::Head
            };
            Ok(Command::new("wait", Effect::Sync(completion)))
        }
        6 => pasid_iotlb(features, words),
        7 => pasid_cache(words),
        8 => {
            let defined = TYPE | mask(8, 4) | mask(15, 12) | mask(63, 52) | DID | PASID;
            reserved(&words, &[defined, mask(63, 11) | 1])?;
            let pasid = (!bit(high, 0)).then_some(bits(low, 51, 32) as u32);
            Ok(device_tlb(bits(low, 31, 16), pasid, bit(high, 11), high))
        }
        9 => Ok(Command::idle("page group response")),
        _ => Err(Illegal("unknown type")),
    }
}

fn context(words: [u64; 4]) -> Result<Command, Illegal> {
    let [low, high, ..] = words;
    reserved(&words, &[TYPE | GRANULARITY | DID | mask(49, 32), 0])?;
    debug_assert_eq!(high, 0, "the line before refuses anything else");
    // The function mask leaves out the upper ones of the three function bits.
    let ignored = match bits(low, 49, 48) {
        0 => 0,
        1 => 0b100,
        2 => 0b110,
        _ => 0b111,
    };
    let device = Devices::Masked {
        id: bits(low, 47, 32) as u32,
        mask: 0xffff & !ignored,
    };
    let domain = Some(bits(low, 31, 16) as u32);
    let (devices, domain, structures) = match bits(low, 5, 4) {
        1 => (Devices::All, None, CONTEXT_AND_ROOT),
        2 => (Devices::All, domain, CONTEXT),
        3 => (device, domain, CONTEXT),
        _ => return Err(Illegal("G is reserved")),
    };
    Ok(Command::new(
        "context cache",
        Effect::Context(ContextDrop {
            devices,
            pasid: None,
            domain,
            structures,
        }),
    ))
}

fn pasid_cache(words: [u64; 4]) -> Result<Command, Illegal> {
    let [low, ..] = words;
    reserved(&words, &[TYPE | GRANULARITY | DID | PASID, 0])?;
    let domain = Some(bits(low, 31, 16) as u32);
    let pasid = Some(bits(low, 51, 32) as u32);
    let (domain, pasid) = match bits(low, 5, 4) {
        0 => (domain, None),
        1 => (domain, pasid),
        3 => (None, None),
        _ => return Err(Illegal("G is reserved")),
    };
    Ok(Command::new(
        "PASID cache",
        Effect::Context(ContextDrop {
            devices: Devices::All,
            pasid,
            domain,
            structures: PROCESS,
        }),
    ))
}

fn device_tlb(source: u64, pasid: Option<u32>, has_size: bool, address: u64) -> Command {
    let lg2 = if has_size { encoded_lg2(address) } else { 12 };
    Command::new(
        "device TLB",
        Effect::Atc(AtcDrop {
            device: source as u32,
            pasid,
            span: Span::around(address, lg2),
        }),
    )
}

fn names(stages: &'static [Stage], domain: Option<u32>, spaces: Spaces) -> Names {
    Names {
        regime: Regime::System,
        stages,
        domain,
        is_virtual: None,
        spaces,
    }
}

/// A range of `2^AM` pages. Every pointer to a table goes that its span meets, unless IH says that leaves
/// alone have changed.
fn pages(features: Features, high: u64, names: Names) -> Result<TlbDrop, Illegal> {
    let mask = bits(high, 5, 0) as u32;
    if !features.has_page_selective || mask > features.most_address_mask {
        return Err(Illegal("AM is above MAMV"));
    }
    let span = Span::around(high, 12 + mask);
    Ok(TlbDrop {
        names,
        range: (span.start, span.last()),
        leaves: Leaves::Any,
        tables: if bit(high, 6) {
            Tables::None
        } else {
            Tables::Any
        },
        is_void: None,
    })
}

fn iotlb(features: Features, words: [u64; 4]) -> Result<Command, Illegal> {
    let [low, high, ..] = words;
    let defined = TYPE | GRANULARITY | mask(7, 6) | DID;
    reserved(&words, &[defined, mask(63, 12) | mask(6, 0)])?;
    let domain = Some(bits(low, 31, 16) as u32);
    let stages = if features.page_selective_drops_combined {
        SECOND_AND_COMBINED
    } else {
        SECOND_STAGE
    };
    let drop = match bits(low, 5, 4) {
        1 => TlbDrop::all(Names::ALL),
        2 => TlbDrop::all(names(ALL_STAGES, domain, Spaces::All)),
        3 => {
            let mut drop = pages(features, high, names(stages, domain, Spaces::All))?;
            if stages.len() > 1 {
                // The address is one between the stages, which says nothing about where combined ones are.
                drop.names.stages = SECOND_STAGE;
                let combined = TlbDrop::all(names(&[Stage::Combined], domain, Spaces::All));
                return Ok(Command {
                    name: "IOTLB",
                    effects: vec![Effect::Tlb(drop), Effect::Tlb(combined)],
                });
            }
            drop
        }
        _ => return Err(Illegal("G is reserved")),
    };
    Ok(Command::new("IOTLB", Effect::Tlb(drop)))
}

fn pasid_iotlb(features: Features, words: [u64; 4]) -> Result<Command, Illegal> {
    let [low, high, ..] = words;
    let defined = TYPE | GRANULARITY | DID | PASID;
    reserved(&words, &[defined, mask(63, 12) | mask(6, 0)])?;
    let domain = Some(bits(low, 31, 16) as u32);
    let names = names(FIRST_STAGES, domain, Spaces::One(bits(low, 51, 32) as u32));
    let drop = match bits(low, 5, 4) {
        2 => TlbDrop::all(names),
        3 => pages(features, high, names)?,
        _ => return Err(Illegal("G is reserved")),
    };
    Ok(Command::new("PASID IOTLB", Effect::Tlb(drop)))
}
