//! RISC-V IOMMU commands, by the RISC-V IOMMU specification, "in-memory queue interface".

use super::{Command, Completion, Effect, Illegal, bit, bits, encoded_lg2, mask, reserved};
use crate::context_cache::Structure;
use crate::invalidation::{
    AtcDrop, ContextDrop, Devices, FIRST_STAGES, Leaves, Names, SECOND_STAGE, Spaces, Tables,
    TlbDrop,
};
use crate::span::Span;
use crate::tag::{Regime, Stage};

/// What one IOMMU can do.
#[expect(
    clippy::struct_excessive_bools,
    reason = "most are bits of the capabilities"
)]
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Features {
    /// Capability 42: IOTINVAL by address can drop pointers to tables.
    pub has_non_leaf: bool,
    /// Capability 43: IOTINVAL takes ranges.
    pub has_ranges: bool,
    /// Capability 25.
    pub has_ats: bool,
    /// What two stages were combined to is dropped by IOTINVAL.VMA alone. By the text IOTINVAL.GVMA
    /// suffices; caches of this shape need both, which does no harm to others.
    pub has_split_caches: bool,
}

impl Default for Features {
    fn default() -> Self {
        Self {
            has_non_leaf: false,
            has_ranges: false,
            has_ats: true,
            has_split_caches: true,
        }
    }
}

const OPCODE: u64 = mask(9, 0);
const PROCESS_ID: u64 = mask(31, 12);

const SECOND_AND_COMBINED: &[Stage] = &[Stage::Second, Stage::Combined];
/// A device context, and all process contexts that were read through it.
const DEVICE: &[Structure] = &[
    Structure::Device,
    Structure::SubDirectory,
    Structure::Process,
];
const ALL: &[Structure] = &[
    Structure::Directory,
    Structure::Device,
    Structure::SubDirectory,
    Structure::Process,
];
const PROCESS: &[Structure] = &[Structure::Process];

pub(super) fn decode(features: Features, words: [u64; 2]) -> Result<Command, Illegal> {
    let [low, high] = words;
    match (bits(low, 6, 0), bits(low, 9, 7)) {
        (1, 0) => translations(features, words, false),
        (1, 1) => translations(features, words, true),
        (2, 0) => {
            reserved(&words, &[OPCODE | mask(13, 10) | mask(63, 32), mask(61, 0)])?;
            let completion = if bit(low, 10) {
                Completion::Store32 {
                    address: high << 2,
                    word: bits(low, 63, 32) as u32,
                }
            } else {
                Completion::Head
            };
            Ok(Command::new("IOFENCE.C", Effect::Sync(completion)))
        }
        (3, function @ 0..=1) => contexts(words, function == 1),
        (4, 0) if features.has_ats => {
            let defined = OPCODE | PROCESS_ID | mask(33, 32) | mask(63, 40);
            reserved(&words, &[defined, mask(63, 11) | 1])?;
            let segment = if bit(low, 33) { bits(low, 63, 56) } else { 0 };
            let lg2 = if bit(high, 11) { encoded_lg2(high) } else { 12 };
            let is_one = bit(low, 32) && !bit(high, 0);
            Ok(Command::new(
                "ATS.INVAL",
                Effect::Atc(AtcDrop {
                    device: (segment << 16 | bits(low, 55, 40)) as u32,
                    pasid: is_one.then_some(bits(low, 31, 12) as u32),
                    span: Span::around(high, lg2),
                }),
            ))
        }
        (4, 1) if features.has_ats => Ok(Command::idle("ATS.PRGR")),
        _ => Err(Illegal("unknown opcode or function")),
    }
}

fn contexts(words: [u64; 2], is_process: bool) -> Result<Command, Illegal> {
    let [low, _] = words;
    let process_id = if is_process { PROCESS_ID } else { 0 };
    reserved(
        &words,
        &[OPCODE | process_id | mask(33, 33) | mask(63, 40), 0],
    )?;
    let has_device = bit(low, 33);
    if is_process && !has_device {
        return Err(Illegal("INVAL_PDT without DV"));
    }
    let (name, pasid, structures) = match (is_process, has_device) {
        (true, _) => ("IODIR.INVAL_PDT", Some(bits(low, 31, 12) as u32), PROCESS),
        (false, true) => ("IODIR.INVAL_DDT", None, DEVICE),
        (false, false) => ("IODIR.INVAL_DDT", None, ALL),
    };
    let devices = if has_device {
        Devices::Masked {
            id: bits(low, 63, 40) as u32,
            mask: u32::MAX,
        }
    } else {
        Devices::All
    };
    Ok(Command::new(
        name,
        Effect::Context(ContextDrop {
            devices,
            pasid,
            domain: None,
            structures,
        }),
    ))
}

/// IOTINVAL.VMA, and with `is_guest` IOTINVAL.GVMA.
fn translations(features: Features, words: [u64; 2], is_guest: bool) -> Result<Command, Illegal> {
    let [low, high] = words;
    let non_leaf = if features.has_non_leaf {
        mask(34, 34)
    } else {
        0
    };
    let range = if features.has_ranges { mask(9, 9) } else { 0 };
    let defined = OPCODE | mask(10, 10) | PROCESS_ID | mask(33, 32) | mask(59, 44) | non_leaf;
    reserved(&words, &[defined, mask(61, 10) | range])?;
    let [has_address, has_process, has_guest] = [10, 32, 33].map(|n| bit(low, n));
    if is_guest && has_process {
        return Err(Illegal("GVMA with PSCV"));
    }
    let gscid = bits(low, 59, 44) as u32;
    let spaces = if has_process {
        Spaces::OneLocal(bits(low, 31, 12) as u32)
    } else {
        Spaces::All
    };
    let stages = match (is_guest, features.has_split_caches) {
        (false, _) => FIRST_STAGES,
        (true, true) => SECOND_STAGE,
        (true, false) => SECOND_AND_COMBINED,
    };
    let names = Names {
        regime: Regime::System,
        stages,
        domain: has_guest.then_some(gscid),
        // VMA without GV means contexts that have no second stage.
        is_virtual: (!is_guest && !has_guest).then_some(false),
        spaces,
    };
    let mut drop = TlbDrop::all(names);
    // GVMA takes an address for one guest only.
    if has_address && (!is_guest || has_guest) {
        let address = bits(high, 61, 10) << 12;
        let lg2 = if bit(high, 9) {
            encoded_lg2(address)
        } else {
            12
        };
        let span = Span::around(address, lg2);
        drop.range = (span.start, span.last());
        drop.leaves = Leaves::Any;
        drop.tables = if bit(low, 34) {
            Tables::Any
        } else {
            Tables::None
        };
    }
    let name = if is_guest {
        "IOTINVAL.GVMA"
    } else {
        "IOTINVAL.VMA"
    };
    if is_guest && !features.has_split_caches {
        // The address is one between the stages, which says nothing about where combined ones are.
        let mut combined = TlbDrop::all(names);
        combined.names.stages = &[Stage::Combined];
        drop.names.stages = SECOND_STAGE;
        return Ok(Command {
            name,
            effects: vec![Effect::Tlb(drop), Effect::Tlb(combined)],
        });
    }
    Ok(Command::new(name, Effect::Tlb(drop)))
}
