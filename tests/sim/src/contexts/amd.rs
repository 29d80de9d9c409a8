//! AMD-Vi contexts: device table entry and guest CR3 table.
//!
//! AMD 48882: 2.2.2 device table entry, 2.2.6 guest CR3 table.

use iopt_reference::context::Binding;
use iopt_reference::context::amd::{Registers, resolve};
use iopt_reference::{Memory, Table};

use super::{Context, Contexts, Resolution, bit, bits, structures};
use crate::context_cache::Structure;
use crate::memory::{Read, Recorder};
use crate::tag::Tag;

/// Words of a device table entry.
const WORDS: usize = 4;

impl Contexts for Registers {
    fn resolve(&self, memory: &dyn Memory, device: u32, pasid: Option<u32>) -> Resolution {
        let recorder = Recorder::new(memory, &[]);
        let binding = resolve(self, &recorder, device, pasid);
        let reads = recorder.into_reads();
        let ends = [
            (Structure::Device, WORDS),
            (Structure::Process, reads.len()),
        ];
        let word = |index: usize| reads.get(index).map_or(0, |read: &Read| read.word);
        let domain = bits(word(1), 15, 0) as u32;
        // Without PASID, and with GIOV, the guest table of slot 0.
        let space = pasid.unwrap_or(0);
        let has_ats = bit(word(1), 32);
        let structures = structures(&ends, reads.len());
        let result = binding.map(|binding| {
            let tag = match binding {
                Binding::Nested { .. } => Tag::combined(domain, space),
                Binding::Table(Table::LongMode(_)) => Tag::first(Some(domain), space),
                _ => Tag::second(domain),
            };
            Context {
                binding,
                tag,
                has_ats,
            }
        });
        Resolution {
            result,
            reads,
            structures,
            entry_pasid: space,
        }
    }
}
