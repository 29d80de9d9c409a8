//! SMMUv3 contexts: stream table entry and context descriptor.
//!
//! Arm IHI 0070: 5.2 STE, 5.4 CD.

use iopt_reference::Memory;
use iopt_reference::context::Binding;
use iopt_reference::context::smmu::{Registers, resolve};

use super::{Context, Contexts, Resolution, bit, bits, structures};
use crate::context_cache::Structure;
use crate::memory::{Read, Recorder};
use crate::tag::{Regime, Space, Stage, Tag};

/// Words of an STE and of a CD.
const WORDS: usize = 8;

impl Contexts for Registers {
    fn resolve(&self, memory: &dyn Memory, device: u32, pasid: Option<u32>) -> Resolution {
        let recorder = Recorder::new(memory, &[]);
        let binding = resolve(self, &recorder, device, pasid);
        let reads = recorder.into_reads();
        let has_levels =
            bits(self.idr0.into(), 28, 27) == 1 && bits(self.strtab_base_cfg.into(), 17, 16) == 1;
        let start = usize::from(has_levels);
        let ste = reads.get(start..start + WORDS).unwrap_or_default();
        let cd = context_descriptor(&reads, start + ste.len());
        let ends = [
            (Structure::Directory, start),
            (Structure::Device, start + WORDS),
            (Structure::SubDirectory, cd.unwrap_or(reads.len())),
            (Structure::Process, reads.len()),
        ];
        let has_sub_directory = bits(word(ste, 0), 5, 4) != 0 && bits(word(ste, 0), 63, 59) != 0;
        let ends: Vec<_> = ends
            .into_iter()
            .filter(|(structure, _)| match structure {
                Structure::Directory => has_levels,
                Structure::SubDirectory => has_sub_directory,
                _ => true,
            })
            .collect();
        let result = binding.map(|binding| {
            let tag = tag(self, &binding, ste, cd.map(|at| reads[at].word));
            Context {
                binding,
                tag,
                has_ats: matches!(bits(word(ste, 1), 29, 28), 1 | 2),
            }
        });
        let structures = structures(&ends, reads.len());
        Resolution {
            result,
            reads,
            structures,
            entry_pasid: pasid.unwrap_or(0),
        }
    }
}

fn word(words: &[Read], index: usize) -> u64 {
    words.get(index).map_or(0, |read| read.word)
}

/// Returns which read is the first word of the CD, if one was read: its words stand side by side, and the
/// seven other ones were read after it, each perhaps behind a walk of the second stage.
fn context_descriptor(reads: &[Read], from: usize) -> Option<usize> {
    let first = reads.last()?.address.checked_sub(8 * (WORDS as u64 - 1))?;
    let is_first = |read: &Read| read.address == first;
    let found = reads.get(from..)?.iter().rposition(is_first)?;
    Some(from + found)
}

/// Tags: ASID of the CD, VMID of the STE, regime by STRW (5.2).
fn tag(registers: &Registers, binding: &Binding, ste: &[Read], cd: Option<u64>) -> Tag {
    let has_stage2 = bit(registers.idr0.into(), 0);
    let config = bits(word(ste, 0), 3, 1);
    let is_hypervisor = config == 5 && bits(word(ste, 1), 31, 30) == 2;
    let vmid = if has_stage2 && !is_hypervisor {
        bits(word(ste, 2), 15, 0)
    } else {
        0
    };
    // 8-bit ASIDs where IDR0.ASID16 is clear.
    let asid_bits = if bit(registers.idr0.into(), 12) {
        63
    } else {
        55
    };
    let asid = bits(cd.unwrap_or(0), asid_bits, 48);
    let stage = match (binding, config) {
        (Binding::Nested { .. }, _) => Stage::Combined,
        (Binding::Table(_), 6) => Stage::Second,
        // Stage 1 is bypassed (S1DSS).
        (Binding::Table(_), 7) if cd.is_none() => Stage::Second,
        _ => Stage::First,
    };
    Tag {
        regime: if is_hypervisor {
            Regime::Hypervisor
        } else {
            Regime::System
        },
        stage,
        domain: Some(vmid as u32),
        space: if stage == Stage::Second {
            Space::Only
        } else {
            Space::Id(asid as u32)
        },
    }
}
