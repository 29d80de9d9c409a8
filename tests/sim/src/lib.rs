//! Simulated IOMMUs that cache whatever they may, so that a missing invalidation shows.
//!
//! A real IOMMU forgives: what a driver forgot to invalidate has often been evicted, and a command drops
//! more than it must. The ones here keep every translation, pointer and context that the architecture
//! allows to be cached, and drop exactly what a command must drop. They read the bytes of real queues,
//! decode them on their own, and walk real tables by `iopt-reference`.
//!
//! - [`Iommu`] is one of five behaviours ([`Architecture`]), with registers on one side and
//!   [`access`](Iommu::access) on the other.
//! - [`Ledger`] is what devices may reach, as the test tells it; [`StaleAccess`] says how an outcome
//!   broke it.
//! - [`Contexts`] lead from devices to tables: by registers of `iopt_reference::context`, or a
//!   [`ContextTable`].
//! - [`Clock`] is virtual time. With one thread and one seed everything happens again alike.
//!
//! What the caches hold is either sure or dropped: a command marks what it drops, which may be used until
//! a sync completes, and what is cached after the command stays. So both an early and a late execution of
//! each command are covered.

mod atc;
pub mod behaviour;
mod clock;
mod context_cache;
pub mod contexts;
mod examine;
mod injection;
pub mod invalidation;
mod iommu;
mod iotlb;
mod ledger;
mod lineage;
mod memory;
mod queue;
mod report;
mod rights;
mod shape;
mod span;
mod state;
mod statistics;
mod tag;
mod translate;
mod two_stages;
mod walk_cache;

pub use atc::AtcEntry;
pub use behaviour::Architecture;
pub use clock::{Clock, Latencies};
pub use context_cache::{CachedContext, Structure};
pub use contexts::{Context, ContextTable, Contexts, Resolution};
pub use injection::Injection;
pub use iommu::{Config, Iommu, Outcome};
pub use iotlb::{LeafEntry, Origin, Target};
pub use ledger::{Attachment, DomainId, Generation, Ledger};
pub use memory::{Memory, Ram, Read};
pub use report::{Law, Passed, Source, StaleAccess};
pub use rights::Rights;
pub use span::Span;
pub use statistics::Statistics;
pub use tag::{Regime, Space, Stage, Tag};
pub use translate::Refusal;
pub use walk_cache::TableEntry;
