//! Whether the operations of a trace can follow each other.

use std::collections::{HashMap, HashSet};

use iopt_formats::PageSize;

use crate::model::Model;
use crate::trace::{Action, DomainEnd, Figures, Header, Operation, TraceFault};

/// Follows every domain of a trace.
pub(super) struct Checker {
    page_size: PageSize,
    domain_end: DomainEnd,
    domains: HashMap<u32, Checked>,
    live_bytes: u64,
    peak_live_bytes: u64,
    figures: Figures,
}

#[derive(Default)]
struct Checked {
    model: Model,
    devices: HashSet<Box<str>>,
    is_ended: bool,
}

impl Checker {
    /// Starts with no domain.
    pub(super) fn new(header: &Header) -> Self {
        Self {
            page_size: header.page_size,
            domain_end: header.domain_end,
            domains: HashMap::new(),
            live_bytes: 0,
            peak_live_bytes: 0,
            figures: Figures::default(),
        }
    }

    /// Follows one operation, or says why it cannot be.
    pub(super) fn check(&mut self, operation: &Operation) -> Result<(), TraceFault> {
        let id = operation.domain;
        let domain = self.domains.entry(id).or_default();
        if domain.is_ended {
            return Err(TraceFault::Ended { domain: id });
        }
        let live_before = domain.model.live_bytes();
        let mapping = |fault| TraceFault::Mapping { domain: id, fault };
        match &operation.action {
            &Action::Map { range, oa, prot } => {
                domain.model.map(range, oa, prot).map_err(mapping)?;
                self.figures.maps += 1;
            }
            &Action::Unmap { range } => {
                domain.model.unmap(range).map_err(mapping)?;
                self.figures.unmaps += 1;
            }
            Action::Attach { device } => {
                if !domain.devices.insert(device.clone()) {
                    return Err(TraceFault::Attached {
                        domain: id,
                        device: device.to_string(),
                    });
                }
            }
            Action::Detach { device } => {
                if !domain.devices.remove(device) {
                    return Err(TraceFault::NotAttached {
                        domain: id,
                        device: device.to_string(),
                    });
                }
                if domain.devices.is_empty() && self.domain_end == DomainEnd::LastDetach {
                    domain.model = Model::default();
                    domain.is_ended = true;
                }
            }
        }
        let live = self.live_bytes.saturating_sub(live_before);
        self.live_bytes = live.saturating_add(domain.model.live_bytes());
        self.peak_live_bytes = self.peak_live_bytes.max(self.live_bytes);
        Ok(())
    }

    /// Returns the figures of everything followed.
    pub(super) fn finish(self) -> Figures {
        let mappings = self
            .domains
            .values()
            .map(|domain| domain.model.extent_count() as u64);
        Figures {
            peak_live_pages: self.peak_live_bytes >> self.page_size.lg2(),
            live_pages: self.live_bytes >> self.page_size.lg2(),
            live_mappings: mappings.sum(),
            domains: self.domains.len() as u64,
            ..self.figures
        }
    }
}
