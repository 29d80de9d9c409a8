//! IO page tables for VMMs and user-space drivers.
//!
//! A [`radix::Table`] holds the translations of one domain in the exact format that an IOMMU
//! walks. Changing a range needs a [`claim::Claim`] over it; looking up needs nothing. Each change
//! says what the hardware's caches have to be told, and [`invalidation`] turns that into proof.
//!
//! ```
//! use iopt::invalidation::NoHardware;
//! use iopt::mem::Heap;
//! use iopt::radix::{Table, UnmapPolicy};
//! use iopt_formats::vtd::SecondStage;
//! use iopt_formats::{Iova, IovaRange, Oa, Prot};
//!
//! let table = Table::new(SecondStage::new(48)?, Heap)?;
//! let buffer = IovaRange::with_len(Iova::new(0x10_0000), 0x4000).unwrap();
//!
//! let mut claim = table.claim(buffer)?;
//! let mut mapper = table.mapper(&mut claim)?;
//! mapper.map(buffer, Oa::new(0x8000_0000), Prot::RW)?.sync(&NoHardware)?;
//! assert_eq!(table.lookup(Iova::new(0x10_2345)).unwrap().oa(), Oa::new(0x8000_2345));
//!
//! let flushed = mapper.unmap(buffer, UnmapPolicy::Exact)?.gather.sync(&NoHardware)?;
//! assert!(flushed.covers(buffer)); // now, and not before, the pages may be reused
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! Who keeps one address space equal over several tables, with the memory behind it pinned once, uses an
//! [`ioas::Ioas`] instead: it owns the claims, the pins and the syncs.
//!
//! ```
//! use std::sync::Arc;
//!
//! use iopt::domain::{Domain, TableDomain};
//! use iopt::invalidation::NoHardware;
//! use iopt::ioas::{Holes, Ioas, Mapping, Pages, Place};
//! use iopt::mem::Heap;
//! use iopt::pin::{Simulated, Source};
//! use iopt::radix::Table;
//! use iopt_formats::vtd::SecondStage;
//! use iopt_formats::{PageSize, Prot};
//!
//! let table = Table::new(SecondStage::new(48)?, Heap)?;
//! let domain: Arc<dyn Domain> = Arc::new(TableDomain::new(table, NoHardware));
//! let ioas = Ioas::new();
//! ioas.attach(Arc::clone(&domain))?;
//!
//! let memory = Arc::new(Simulated::new(PageSize::KIB_4, 1024));
//! let pages = Pages::new(Arc::clone(&memory) as Arc<dyn Source>, None);
//! let range = ioas.map(Mapping {
//!     pages: &pages,
//!     offset: 0,
//!     len: 0x40_0000,
//!     prot: Prot::RW,
//!     place: Place::Anywhere,
//! })?;
//! assert_eq!(memory.pinned_pages(), 1024);
//! assert_eq!(ioas.unmap(range, Holes::Refused)?, 0x40_0000);
//! assert_eq!(memory.pinned_pages(), 0);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Layers
//!
//! A module may use the modules below it, never those above:
//!
//! ```text
//! device         devices, the instances that serve them, groups that are attached together
//! ioas           one address space over many domains: areas, pages, accesses
//! domain         a table with its hardware, or a sink that keeps translations elsewhere
//! iova           which IOVA drivers get, and when it is free again
//! radix          one table of any format: map, unmap, look up, dirty, cut, compact
//! invalidation   what changed -> hardware told -> proof
//! claim          who may change which range
//! reclaim        unlinked tables, until neither hardware nor a reader can meet them
//! mem            where table pages come from
//! pin            where the memory behind an address space comes from, and what keeps it there
//! firmware       what firmware says of IOMMUs, one description for all tables
//! topology       PCI functions, and the groups that isolation cannot part
//! stripes, intervals   sets of ranges
//! sync           locks, atomics, epochs; the only module that names std::sync or its kin
//! ```
//!
//! # Threads
//!
//! All of it works from `&Table`:
//!
//! | operation | needs | runs beside |
//! |---|---|---|
//! | map, unmap, protect, cut, merge, take dirty, compact | a claim over the range | everything outside of the range, and every reader |
//! | look up, dump, dirty | nothing; a [`Reader`](radix::Reader) makes many of them cheap | everything |
//! | reclaim | a proof | everything |
//!
//! Mappers of disjoint ranges write no common cache line, but for the entries that link new tables and
//! the leaves of a table that they share. No operation waits for another.
//!
//! Who owns a set of tables together, as an IO address space does, keeps it under a
//! [`DomainLock`](sync::DomainLock). The locks of the engine, their order, and how debug builds check
//! it, that of yours included, stand in [`sync`].
//!
//! # Features
//!
//! | feature | adds |
//! |---|---|
//! | `std` (default) | address spaces, [`mem::Arena`], locks that block, epochs: without it tables are freed under `&mut` only |
//! | `parking_lot` | locks of `parking_lot` instead of the standard library's |
//! | `parallel` | maps, unmaps, scans and dumps of large ranges on all cores, with `rayon` |
//!
//! Without `std` the crate needs `core` and `alloc` only. It refuses to build for targets whose
//! pointers are not 64 bits wide.

#![cfg_attr(not(feature = "std"), no_std)]

extern crate alloc;

#[cfg(not(target_pointer_width = "64"))]
compile_error!("addresses are 64 bits wide, and so must pointers be");

pub mod claim;
#[cfg(feature = "std")]
pub mod device;
#[cfg(feature = "std")]
pub mod domain;
pub mod firmware;
#[cfg_attr(
    not(feature = "std"),
    expect(dead_code, reason = "only address spaces need all of it")
)]
mod intervals;
pub mod invalidation;
#[cfg(feature = "std")]
pub mod ioas;
pub mod iova;
pub mod mem;
#[cfg(feature = "std")]
pub mod pin;
pub mod radix;
mod reclaim;
mod stripes;
pub mod sync;
pub mod topology;
