//! IO page-table formats: bit layouts and entry codecs.
//!
//! A format turns an item's raw word into an [`Entry`] and back. It never touches memory, takes no
//! lock and allocates nothing, so every function here is pure and can be tested against the text
//! of its specification. The contract is [`Format`]; [`conformance`] checks it.
//!
//! # Language
//!
//! | term | meaning |
//! |---|---|
//! | IOVA | input address of a table, in bytes ([`Iova`]) |
//! | OA | output address of a table, in bytes ([`Oa`]) |
//! | granule | smallest page of a format |
//! | level | 0 holds only leaves; the number grows towards the root ([`Level`]) |
//! | item | one word of a table |
//! | entry | all items that make one translation; more than one item only for contiguous groups |
//! | leaf, table | an entry that translates; an entry that points to a table |
//! | IAS, OAS | widths of input and output addresses, in bits |
//! | run | consecutive IOVA that translate to consecutive OA |
//! | `last` | inclusive bound; an exclusive one is called `end` |
//! | `len`, `count` | bytes; number of things |
//! | `_lg2` | base-2 logarithm of the value |
//!
//! # Features
//!
//! | feature | adds |
//! |---|---|
//! | `tiny` | `tiny::Tiny`, a format of no hardware for model checkers and tests |
//!
//! The crate is `no_std` and builds for bare-metal targets.

#![no_std]
#![forbid(unsafe_code)]

pub mod amd;
pub mod armv8;
pub mod catalog;
pub mod command;
pub mod conformance;
pub mod context;
pub mod event;
pub mod riscv;
#[cfg(feature = "tiny")]
pub mod tiny;
pub mod vtd;
pub mod walk;
pub mod x86_64;

mod addr;
mod bits;
mod format;
mod page_size;
mod prot;

pub use crate::addr::{Iova, IovaRange, Oa};
pub use crate::bits::{Bits, Field, bit};
pub use crate::format::{
    ConfigError, DirtyRule, Entry, Format, Geometry, Leaf, Level, Reserved, TableEntry, Window,
};
pub use crate::page_size::{PageSize, PageSizes};
pub use crate::prot::{Memory, Prot, Rights};
