//! Readers of the project's data files, shared by the `iopt` command, tests and benches.
//!
//! | module | reads |
//! |---|---|
//! | [`trace`] | what a guest did to its IOMMU, one operation a line |
//! | [`flush`] | where that guest's kernel flushed |
//! | [`fixture`] | tables dumped from a guest's memory, with the expected answer |
//! | [`ram`] | raw memory dumps |
//!
//! Every reader takes files from anywhere: a damaged one gives an error that names the line or the
//! record, never a panic, and the memory used is bounded by the limits of [`input`]. [`model`] is
//! the obviously correct page table that a trace is checked against.

#![forbid(unsafe_code)]

pub mod fixture;
pub mod flush;
pub mod input;
pub mod model;
pub mod ram;
pub mod trace;
