//! VT-d contexts: root, context and PASID tables.
//!
//! Intel VT-d specification: 9.1 root entry to 9.6 scalable-mode PASID table entry.

use iopt_reference::context::Binding;
use iopt_reference::context::vtd::{Registers, resolve};
use iopt_reference::{Memory, Table};

use super::{Context, Contexts, Resolution, bit, bits, structures};
use crate::context_cache::Structure;
use crate::memory::{Read, Recorder};
use crate::tag::Tag;

/// Reads until the end of each structure; legacy mode has the first two, with a context entry of two words.
const LEGACY: &[(Structure, usize)] = &[(Structure::Directory, 2), (Structure::Device, 4)];
const SCALABLE: &[(Structure, usize)] = &[
    (Structure::Directory, 2),
    (Structure::Device, 6),
    (Structure::SubDirectory, 7),
    (Structure::Process, 15),
];

impl Contexts for Registers {
    fn resolve(&self, memory: &dyn Memory, device: u32, pasid: Option<u32>) -> Resolution {
        let recorder = Recorder::new(memory, &[]);
        let binding = resolve(self, &recorder, device, pasid);
        let reads = recorder.into_reads();
        let is_scalable = bits(self.rtaddr, 11, 10) == 1;
        let ends = if is_scalable { SCALABLE } else { LEGACY };
        let word = |index: usize| reads.get(index).map_or(0, |read: &Read| read.word);
        // RID_PASID names the space of requests without PASID.
        let rid_pasid = if is_scalable {
            bits(word(3), 19, 0) as u32
        } else {
            0
        };
        let space = pasid.unwrap_or(rid_pasid);
        let (domain, has_ats) = if is_scalable {
            // DTE enables translation requests.
            (bits(word(8), 15, 0) as u32, bit(word(2), 2))
        } else {
            (bits(word(3), 23, 8) as u32, bits(word(2), 3, 2) == 1)
        };
        let structures = structures(ends, reads.len());
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
