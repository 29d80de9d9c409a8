//! RISC-V contexts: device and process directories.
//!
//! RISC-V IOMMU specification: device context, process context.

use iopt_reference::Memory;
use iopt_reference::context::Binding;
use iopt_reference::context::riscv::{Registers, resolve};

use super::{Context, Contexts, Resolution, bit, bits, structures};
use crate::context_cache::Structure;
use crate::memory::{Read, Recorder};
use crate::tag::{Regime, Space, Stage, Tag};

/// Words of a device context that are read: `tc`, `iohgatp`, `ta`, `fsc`.
const WORDS: usize = 4;

impl Contexts for Registers {
    fn resolve(&self, memory: &dyn Memory, device: u32, pasid: Option<u32>) -> Resolution {
        let recorder = Recorder::new(memory, &[]);
        let binding = resolve(self, &recorder, device, pasid);
        let reads = recorder.into_reads();
        // ddtp.iommu_mode 2 to 4: one to three levels, of which the last holds contexts.
        let start = (bits(self.ddtp, 3, 0) as usize).saturating_sub(2);
        let end = start + WORDS;
        let word = |index: usize| reads.get(index).map_or(0, |read: &Read| read.word);
        let [tc, iohgatp, ta] = [0, 1, 2].map(|index| word(start + index));
        let process = process_context(&reads, end);
        let ends = [
            (Structure::Directory, start),
            (Structure::Device, end),
            (Structure::SubDirectory, process.unwrap_or(reads.len())),
            (Structure::Process, reads.len()),
        ];
        let ends: Vec<_> = ends
            .into_iter()
            .filter(|(structure, _)| *structure != Structure::Directory || start > 0)
            .collect();
        let pscid = bits(process.map_or(ta, word), 31, 12) as u32;
        let gscid = (bits(iohgatp, 63, 60) != 0).then_some(bits(iohgatp, 59, 44) as u32);
        let stage = match (&binding, gscid) {
            (Ok(Binding::Nested { .. }), _) => Stage::Combined,
            (Ok(Binding::Table(_)), Some(_)) => Stage::Second,
            _ => Stage::First,
        };
        let space = if stage == Stage::Second {
            Space::Only
        } else {
            Space::Id(pscid)
        };
        let tag = Tag {
            regime: Regime::System,
            stage,
            domain: gscid,
            space,
        };
        let has_ats = bit(tc, 1);
        let structures = structures(&ends, reads.len());
        Resolution {
            result: binding.map(|binding| Context {
                binding,
                tag,
                has_ats,
            }),
            reads,
            structures,
            entry_pasid: pasid.unwrap_or(0),
        }
    }
}

/// Returns which read is `ta` of the process context, if one was read: it stands before `fsc`, which was
/// read last, perhaps behind a walk of the second stage.
fn process_context(reads: &[Read], from: usize) -> Option<usize> {
    let before = reads.last()?.address.checked_sub(8)?;
    let is_before = |read: &Read| read.address == before;
    let found = reads.get(from..)?.iter().rposition(is_before)?;
    Some(from + found)
}
