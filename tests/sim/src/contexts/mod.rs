//! From a device to its tables and the tags that they are cached under.

use iopt_reference::Memory;
use iopt_reference::context::{Binding, ContextFault};

use crate::context_cache::Structure;
use crate::memory::Read;
use crate::tag::Tag;

mod amd;
mod riscv;
mod smmu;
mod table;
mod vtd;

pub use table::ContextTable;

/// What a request of a device, with its PASID or without one, is bound to.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Context {
    /// The tables.
    pub binding: Binding,
    /// The tag of what is cached in the end; that of the second of two stages follows.
    pub tag: Tag,
    /// The device may ask for translations.
    pub has_ats: bool,
}

/// The answer to a look-up.
#[derive(Clone, Debug)]
pub struct Resolution {
    /// The context, or why there is none.
    pub result: Result<Context, ContextFault>,
    /// What was read.
    pub reads: Vec<Read>,
    /// The structures that were read, each with the number of reads until its end. With the last one the
    /// result was known.
    pub structures: Vec<(Structure, usize)>,
    /// The PASID by which the entry was found: that of the request, or the one that requests without have.
    pub entry_pasid: u32,
}

/// Finds contexts as one architecture does. The same reads must lead to the same answer.
pub trait Contexts: Send + Sync {
    /// Looks up the context of a request.
    fn resolve(&self, memory: &dyn Memory, device: u32, pasid: Option<u32>) -> Resolution;
}

/// Cuts what was read into structures; the last one ends where reading ended.
///
/// `ends` counts the reads until the end of each structure that has all its words.
fn structures(ends: &[(Structure, usize)], reads: usize) -> Vec<(Structure, usize)> {
    let mut found = Vec::new();
    if reads == 0 {
        // Registers alone said it, and registers are not cached.
        return found;
    }
    for &(structure, end) in ends {
        found.push((structure, end.min(reads)));
        if end >= reads {
            return found;
        }
    }
    found
}

/// Returns bits `high..=low` of `word`, moved down to bit 0.
pub(crate) const fn bits(word: u64, high: u32, low: u32) -> u64 {
    word >> low & u64::MAX >> (63 - (high - low))
}

/// Returns bit `n` of `word`.
pub(crate) const fn bit(word: u64, n: u32) -> bool {
    word >> n & 1 == 1
}
