//! Contexts that a test sets, without any words.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use iopt_reference::Memory;
use iopt_reference::context::ContextFault;

use super::{Context, Contexts, Resolution};
use crate::context_cache::Structure;
use crate::tag::Space;

/// Contexts by device and PASID. They are cached like those that are read: whoever changes one has to
/// invalidate it.
#[derive(Debug, Default)]
pub struct ContextTable {
    contexts: Mutex<BTreeMap<(u32, Option<u32>), Context>>,
}

impl ContextTable {
    /// Creates a table in which no device has a context.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets, or with `None` removes, the context of a device and PASID.
    pub fn set(&self, device: u32, pasid: Option<u32>, context: Option<Context>) {
        let mut contexts = self.contexts.lock().unwrap_or_else(PoisonError::into_inner);
        match context {
            Some(context) => contexts.insert((device, pasid), context),
            None => contexts.remove(&(device, pasid)),
        };
    }
}

impl Contexts for ContextTable {
    fn resolve(&self, _: &dyn Memory, device: u32, pasid: Option<u32>) -> Resolution {
        let contexts = self.contexts.lock().unwrap_or_else(PoisonError::into_inner);
        let result = contexts
            .get(&(device, pasid))
            .cloned()
            .ok_or(ContextFault::DeviceId { device_id: device });
        // Address spaces by number come from the entry of a process.
        let has_process = match &result {
            Ok(context) => context.tag.space != Space::Only,
            Err(_) => pasid.is_some(),
        };
        let mut structures = vec![(Structure::Device, 0)];
        if has_process {
            structures.push((Structure::Process, 0));
        }
        Resolution {
            result,
            reads: Vec::new(),
            structures,
            entry_pasid: pasid.unwrap_or(0),
        }
    }
}
