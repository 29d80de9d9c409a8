//! Device TLBs (ATC): what devices were told and remember.

use std::collections::BTreeMap;

use crate::invalidation::AtcDrop;
use crate::iotlb::{LeafEntry, Target};
use crate::span::Span;

/// A translation in a device TLB.
#[derive(Clone, Debug)]
pub struct AtcEntry {
    /// The device.
    pub device: u32,
    /// The PASID it asked with.
    pub pasid: Option<u32>,
    /// What the translation covers.
    pub span: Span,
    /// Where it leads.
    pub target: Target,
    /// What the IOMMU answered from.
    pub from: LeafEntry,
    /// Virtual nanoseconds when the device got it.
    pub time: u64,
    /// Commands that the IOMMU had consumed until then.
    pub commands: u64,
    /// A command has dropped it that is not complete yet.
    pub is_dropped: bool,
}

/// The device TLBs of all devices that have one.
#[derive(Debug, Default)]
pub(crate) struct Atcs {
    devices: BTreeMap<u32, Vec<AtcEntry>>,
}

impl Atcs {
    /// Enables or disables the TLB of a device; it is empty afterwards.
    pub(crate) fn set_enabled(&mut self, device: u32, is_enabled: bool) {
        self.devices.remove(&device);
        if is_enabled {
            self.devices.insert(device, Vec::new());
        }
    }

    pub(crate) fn is_enabled(&self, device: u32) -> bool {
        self.devices.contains_key(&device)
    }

    pub(crate) fn insert(&mut self, entry: AtcEntry) {
        let Some(entries) = self.devices.get_mut(&entry.device) else {
            return;
        };
        let is_there = |other: &AtcEntry| {
            !other.is_dropped
                && other.pasid == entry.pasid
                && other.span == entry.span
                && other.target == entry.target
        };
        if !entries.iter().any(is_there) {
            entries.push(entry);
        }
    }

    pub(crate) fn find(&self, device: u32, pasid: Option<u32>, iova: u64) -> Vec<AtcEntry> {
        let entries = self.devices.get(&device).into_iter().flatten();
        entries
            .filter(|entry| entry.pasid == pasid && entry.span.contains(iova))
            .cloned()
            .collect()
    }

    pub(crate) fn entries(&self) -> impl Iterator<Item = &AtcEntry> {
        self.devices.values().flatten()
    }

    /// Drops what the request reaches, until the next sync in name only.
    pub(crate) fn drop_where(&mut self, request: &AtcDrop) {
        for entry in self.devices.values_mut().flatten() {
            if request.keeps(entry).is_none() {
                entry.is_dropped = true;
            }
        }
    }

    /// Forgets what was dropped: a sync is complete.
    pub(crate) fn sync(&mut self) {
        for entries in self.devices.values_mut() {
            entries.retain(|entry| !entry.is_dropped);
        }
    }
}
