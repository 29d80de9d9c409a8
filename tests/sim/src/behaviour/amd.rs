//! AMD-Vi commands, by AMD 48882, 2.4.

use super::{Command, Completion, Effect, Illegal, bit, bits, encoded_lg2, mask, reserved};
use crate::context_cache::Structure;
use crate::invalidation::{
    ALL_STAGES, AtcDrop, ContextDrop, Devices, FIRST_STAGES, Leaves, Names, SECOND_STAGE, Spaces,
    Tables, TlbDrop,
};
use crate::span::Span;
use crate::tag::Regime;

/// What one IOMMU can do.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Features {
    /// `NpCache`: entries that are not present are cached.
    pub caches_absent: bool,
    /// `EFR.IASup`: `INVALIDATE_IOMMU_ALL` is there.
    pub has_invalidate_all: bool,
}

const OPCODE: u64 = mask(63, 60);
const ALL_STRUCTURES: &[Structure] = &[
    Structure::Directory,
    Structure::Device,
    Structure::SubDirectory,
    Structure::Process,
];

pub(super) fn decode(features: Features, words: [u64; 2]) -> Result<Command, Illegal> {
    let [low, high] = words;
    let contexts = |devices| {
        Effect::Context(ContextDrop {
            devices,
            pasid: None,
            domain: None,
            structures: ALL_STRUCTURES,
        })
    };
    let device = Devices::Masked {
        id: bits(low, 15, 0) as u32,
        mask: u32::MAX,
    };
    match bits(low, 63, 60) {
        1 => {
            reserved(&words, &[OPCODE | mask(51, 0), u64::MAX])?;
            let completion = if bit(low, 0) {
                Completion::Store64 {
                    address: low & mask(51, 3),
                    word: high,
                }
            } else {
                Completion::Head
            };
            Ok(Command::new("COMPLETION_WAIT", Effect::Sync(completion)))
        }
        2 => {
            reserved(&words, &[OPCODE | mask(15, 0), 0])?;
            Ok(Command::new("INVALIDATE_DEVTAB_ENTRY", contexts(device)))
        }
        3 => pages(words),
        4 => {
            let defined = OPCODE | mask(59, 56) | mask(55, 48) | mask(47, 32) | mask(31, 0);
            reserved(&words, &[defined, mask(63, 12) | mask(2, 0)])?;
            // The PASID is in three pieces.
            let pasid = bits(low, 59, 56) << 16 | bits(low, 23, 16) << 8 | bits(low, 55, 48);
            Ok(Command::new(
                "INVALIDATE_IOTLB_PAGES",
                Effect::Atc(AtcDrop {
                    device: bits(low, 15, 0) as u32,
                    pasid: bit(high, 2).then_some(pasid as u32),
                    span: span(high),
                }),
            ))
        }
        5 => Ok(Command::idle("INVALIDATE_INTERRUPT_TABLE")),
        6 => Ok(Command::idle("PREFETCH_IOMMU_PAGES")),
        7 => Ok(Command::idle("COMPLETE_PPR_REQUEST")),
        8 if features.has_invalidate_all => {
            reserved(&words, &[OPCODE, 0])?;
            Ok(Command {
                name: "INVALIDATE_IOMMU_ALL",
                effects: vec![
                    contexts(Devices::All),
                    Effect::Tlb(TlbDrop::all(Names::ALL)),
                ],
            })
        }
        _ => Err(Illegal("unknown opcode")),
    }
}

/// The addresses of a command: a page, or with S what the ones of the address encode.
fn span(word: u64) -> Span {
    let lg2 = if bit(word, 0) { encoded_lg2(word) } else { 12 };
    // From 2^52 on all addresses are meant.
    if lg2 >= 52 {
        Span::ALL
    } else {
        Span::around(word, lg2)
    }
}

/// `INVALIDATE_IOMMU_PAGES` (2.4.3). What is larger than the command stays. GN chooses between guest and host
/// translations; all addresses of the host drop what was combined with them too, whose PASIDs a hypervisor
/// cannot know.
fn pages(words: [u64; 2]) -> Result<Command, Illegal> {
    let [low, high] = words;
    let defined = OPCODE | mask(47, 32) | mask(19, 0);
    reserved(&words, &[defined, mask(63, 12) | mask(2, 0)])?;
    let domain = Some(bits(low, 47, 32) as u32);
    let span = span(high);
    let is_guest = bit(high, 2);
    if !is_guest && bits(low, 19, 0) != 0 {
        return Err(Illegal("a PASID without GN"));
    }
    let (stages, spaces) = if is_guest {
        (FIRST_STAGES, Spaces::One(bits(low, 19, 0) as u32))
    } else if span == Span::ALL && bit(high, 1) {
        (ALL_STAGES, Spaces::All)
    } else {
        (SECOND_STAGE, Spaces::All)
    };
    let lg2 = span.lg2;
    Ok(Command::new(
        "INVALIDATE_IOMMU_PAGES",
        Effect::Tlb(TlbDrop {
            names: Names {
                regime: Regime::System,
                stages,
                domain,
                is_virtual: None,
                spaces,
            },
            range: (span.start, span.last()),
            leaves: Leaves::AtMost { lg2 },
            tables: if bit(high, 1) {
                Tables::AtMost { lg2 }
            } else {
                Tables::None
            },
            is_void: None,
        }),
    ))
}
