//! Cached device and process contexts.

use std::collections::BTreeSet;

use iopt_reference::context::ContextFault;

use crate::contexts::{Context, Resolution};
use crate::memory::Read;

/// A structure on the way from a device to its tables.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Structure {
    /// What leads to the device's entry: level 1 stream table descriptor, root entry, non-leaf DDT entry.
    Directory,
    /// The device's entry: STE, context entry, DTE, device context.
    Device,
    /// What leads to the PASID's entry: level 1 CD descriptor, PASID directory entry, non-leaf PDT entry.
    SubDirectory,
    /// The PASID's entry: CD, PASID table entry, process context.
    Process,
}

/// A context, or the beginning of one: a later look-up may go on from it.
#[derive(Clone, Debug)]
pub struct CachedContext {
    /// The device.
    pub device: u32,
    /// The PASID of the request.
    pub pasid: Option<u32>,
    /// The PASID by which the entry was found.
    pub entry_pasid: u32,
    /// The last structure that is cached.
    pub structure: Structure,
    /// The words up to there.
    pub words: Vec<Read>,
    /// What they mean, if nothing more is needed.
    pub meaning: Option<Result<Context, ContextFault>>,
    /// Commands consumed until it was cached.
    pub commands: u64,
    /// A command has dropped it that is not complete yet.
    pub is_dropped: bool,
}

impl CachedContext {
    /// Domain that the entry is named by; those without a meaning count as domain 0.
    pub(crate) fn domain(&self) -> u32 {
        match &self.meaning {
            Some(Ok(context)) => context.tag.domain.unwrap_or(0),
            _ => 0,
        }
    }
}

/// The context cache.
#[derive(Debug, Default)]
pub(crate) struct ContextCache {
    entries: Vec<CachedContext>,
}

impl ContextCache {
    /// Caches every structure of a look-up.
    ///
    /// A look-up that failed is cached only if hardware may cache entries that are not valid.
    pub(crate) fn insert(
        &mut self,
        request: (u32, Option<u32>),
        resolution: &Resolution,
        commands: u64,
        is_dropped: impl Fn(&CachedContext) -> bool,
        caches_invalid: bool,
    ) {
        let last = resolution.structures.len().saturating_sub(1);
        for (index, (structure, count)) in resolution.structures.iter().enumerate() {
            let meaning = (index == last).then(|| resolution.result.clone());
            if matches!(meaning, Some(Err(_))) && !caches_invalid {
                continue;
            }
            let mut entry = CachedContext {
                device: request.0,
                pasid: request.1,
                entry_pasid: resolution.entry_pasid,
                structure: *structure,
                words: resolution.reads[..(*count).min(resolution.reads.len())].to_vec(),
                meaning,
                commands,
                is_dropped: false,
            };
            entry.is_dropped = is_dropped(&entry);
            let is_there = |other: &CachedContext| {
                (other.device, other.pasid) == request
                    && other.structure == entry.structure
                    && other.words == entry.words
                    && other.meaning == entry.meaning
                    && (entry.is_dropped || !other.is_dropped)
            };
            if !self.entries.iter().any(is_there) {
                self.entries.push(entry);
            }
        }
    }

    /// Returns what a request may go on from: what is cached for it, and what is cached of its device for
    /// any PASID.
    pub(crate) fn find(&self, device: u32, pasid: Option<u32>) -> Vec<CachedContext> {
        let is_meant = |entry: &&CachedContext| {
            entry.device == device && (entry.pasid == pasid || entry.structure <= Structure::Device)
        };
        self.entries.iter().filter(is_meant).cloned().collect()
    }

    /// Drops what `keeps` gives no reason to keep, until the next sync in name only, and returns the
    /// requests that it was for.
    pub(crate) fn drop_where(
        &mut self,
        keeps: impl Fn(&CachedContext) -> Option<&'static str>,
    ) -> BTreeSet<(u32, Option<u32>)> {
        let meant = |entry: &&mut CachedContext| !entry.is_dropped && keeps(entry).is_none();
        let dropped = self.entries.iter_mut().filter(meant);
        dropped
            .map(|entry| {
                entry.is_dropped = true;
                (entry.device, entry.pasid)
            })
            .collect()
    }

    pub(crate) fn sync(&mut self) {
        self.entries.retain(|entry| !entry.is_dropped);
    }
}
