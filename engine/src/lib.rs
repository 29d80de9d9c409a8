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
//! # Layers
//!
//! A module may use the modules below it, never those above:
//!
//! ```text
//! radix          one table of any format: map, unmap, look up, dirty, cut, compact
//! invalidation   what changed -> hardware told -> proof
//! claim   mem    who may change which range; where table pages come from
//! sync           locks and atomics; the only module that names std::sync or spin
//! ```
//!
//! # Features
//!
//! | feature | adds |
//! |---|---|
//! | `std` (default) | [`mem::Arena`] over anonymous memory, locks that block |
//!
//! Without `std` the crate needs `core` and `alloc` only. It refuses to build for targets whose
//! pointers are not 64 bits wide.

#![cfg_attr(not(feature = "std"), no_std)]

extern crate alloc;

#[cfg(not(target_pointer_width = "64"))]
compile_error!("addresses are 64 bits wide, and so must pointers be");

pub mod claim;
pub mod invalidation;
pub mod mem;
pub mod radix;
mod reclaim;
pub mod sync;
