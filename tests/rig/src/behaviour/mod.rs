//! What one machine's IOMMU is, on both sides: the simulation's and the engine's.

mod amd;
mod riscv;
mod smmuv3;
mod vtd;

use std::fmt::Debug;

use iopt::invalidation::Encode;
use iopt::invalidation::plan::Planner;
use iopt::invalidation::queue::Device;
use iopt_formats::walk::Root;
use iopt_formats::{Format, Oa};
use iopt_sim::{Architecture, Attachment, Context, DomainId};

pub use amd::Amd;
pub use riscv::Riscv;
pub use smmuv3::Smmuv3;
pub use vtd::Vtd;

use crate::registers::Registers;

/// The tags of a behaviour's caches.
pub type TagOf<B> = <<B as Behaviour>::Planner as Planner>::Tag;

/// The entries of a behaviour's queue.
pub type EntryOf<B> = <<B as Behaviour>::Device as Device>::Entry;

/// An IOMMU of one architecture with certain features, and tables of one format.
pub trait Behaviour: Clone + Debug + Send + Sync + 'static {
    /// The format of the tables.
    type Format: Format;
    /// What plans the commands.
    type Planner: Planner<Command: Encode<EntryOf<Self>>, Tag: Send + Sync> + Clone + Send + Sync;
    /// The queue's hardware.
    type Device: Device + Send + Sync;

    /// Returns what the simulation does.
    fn architecture(&self) -> Architecture;

    /// Returns the planner for it.
    fn planner(&self) -> Self::Planner;

    /// Returns the queue's hardware over its registers, with the status word at `status`.
    fn device(&self, registers: Registers, status: Oa) -> Self::Device;

    /// Returns what the base register holds for a ring at `ring`.
    fn base(&self, device: &Self::Device, ring: Oa) -> u64;

    /// Returns the format.
    fn format(&self) -> Self::Format;

    /// Returns whether maps are told, too.
    fn is_told_of_maps(&self) -> bool {
        false
    }

    /// Returns the places where translations of domain `id`, which is not 0, are cached for a `device`: by the
    /// IOMMU, and if it `has_ats`, by itself. They rise.
    fn tags(&self, id: u16, device: u16, has_ats: bool) -> Vec<TagOf<Self>>;

    /// Returns what the ledger knows of a device that is attached to the domain.
    fn attachment(&self, domain: DomainId) -> Attachment {
        Attachment::Domain(domain)
    }

    /// Returns the context of a device whose translations are those of domain `id`, with its table below
    /// `root`.
    fn context(&self, id: u16, root: Root, has_ats: bool) -> Context;

    /// Returns the entry that makes the IOMMU forget the context of `device`.
    fn forget_context(&self, device: u16) -> EntryOf<Self>;
}
