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
//!
//! # What is not simulated
//!
//! - Hardware stores no accessed and dirty bits, so nothing is said about when they are seen.
//! - No law is about break-before-make: a live entry may be replaced by any other, and what two of them at once
//!   would amalgamate to in a TLB is not made up.
//! - Directories of contexts are cached for each requester by itself.
//! - A device TLB keeps nothing of what is passed through.
//! - A request through two stages is never missed: what the guest's stage says is the guest's to know.
//! - [`Iommu::check_all`] holds cached leaves and pointers against the ledger. That a table is absent is found wrong
//!   by requests alone.
//!
//! ```
//! use std::sync::Arc;
//!
//! use iopt_reference::context::Binding;
//! use iopt_reference::{Table, vtd};
//! use iopt_sim::behaviour::vtd::Features;
//! use iopt_sim::{
//!     Architecture, Attachment, Clock, Config, Context, ContextTable, Iommu, Law, Ledger, Memory, Ram,
//!     Rights, Tag,
//! };
//!
//! let (ram, ledger, clock) = (Arc::new(Ram::new()), Arc::new(Ledger::new()), Clock::new(100));
//! let contexts = Arc::new(ContextTable::new());
//! let config = Config::new(Architecture::Vtd(Features::default()));
//! let iommu = Iommu::new(config, ram.clone(), contexts.clone(), ledger.clone(), &clock);
//! iommu.write_base(0x10_0000);
//!
//! // Device 7 is in domain 9, which maps 1 GiB.
//! let table = Table::VtdSecond(vtd::Config::new(0x1000, 3));
//! let context = Context {
//!     binding: Binding::Table(table),
//!     tag: Tag::second(9),
//!     has_ats: false,
//! };
//! contexts.set(7, None, Some(context));
//! ledger.attach(7, None, Attachment::Domain(0));
//! ledger.map(0, 0..=0x3fff_ffff, 0x4000_0000, Rights::ALL);
//! ram.write64(0x1000, 0x4000_0083);
//! assert!(iommu.access(7, None, 0x123, Rights::READ).is_ok());
//!
//! // It is cleared, but its memory is used again before the IOTLB has forgotten.
//! ram.write64(0x1000, 0);
//! ledger.forgotten(0, 0..=0x3fff_ffff);
//! let stale = iommu.access(7, None, 0x123, Rights::READ).unwrap_err();
//! assert_eq!(stale.law, Law::Reach);
//! println!("{stale}");
//!
//! // A domain-selective invalidation and a wait descriptor.
//! for (index, word) in [2 | 2 << 4 | 9 << 16, 0, 5, 0].into_iter().enumerate() {
//!     ram.write64(0x10_0000 + 8 * index as u64, word);
//! }
//! iommu.write_tail(2 << 4);
//! while iommu.read_head() != 2 << 4 {
//!     clock.poll();
//! }
//! assert!(iommu.access(7, None, 0x123, Rights::READ).is_ok());
//! ```

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
pub use queue::Stop;
pub use report::{Law, Passed, Source, StaleAccess};
pub use rights::Rights;
pub use span::Span;
pub use statistics::Statistics;
pub use tag::{Regime, Space, Stage, Tag};
pub use translate::Refusal;
pub use walk_cache::TableEntry;
