//! A whole IO address space: areas, pages, domains, and what a call of it costs.
//!
//! | question | answered in |
//! |---|---|
//! | What does a 4 KiB map with its unmap cost among 10^5 areas, on one thread? | [`pairs`] |
//! | Do two threads do twice as much? | [`threads`] |
//! | Which index of areas is the fastest? | [`index`] |
//! | How long do a map of 16 GiB and an unmap of 10^4 areas take? | [`bulk`] |
//! | How fast is the scan for what devices wrote to? | [`dirty`] |
//! | How long does it take to fill a new domain, and who has to wait? | [`attach`] |
//!
//! The space is compared with a [`baseline`] that is built as Linux's iommufd is, and with a
//! `BTreeMap` that holds as many areas and nothing else. The tables underneath are the same.

pub mod attach;
pub mod baseline;
pub mod bulk;
pub mod dirty;
pub mod index;
pub mod pairs;
pub mod space;
pub mod threads;
