//! Bugs that page-table code is known for, one test each, named after what should happen.
//!
//! - [`everywhere`]: known from others, and possible with every configuration;
//! - [`elsewhere`]: known from others, for the tables where they were seen;
//! - [`here`]: our own.
//!
//! Each comment says what went wrong; reports of others are public and named.

mod elsewhere;
mod everywhere;
mod here;

use std::sync::Arc;

use iopt::claim::Claim;
use iopt::invalidation::NoHardware;
use iopt::radix::{Table, UnmapPolicy};
use iopt_formats::{Format, Iova, IovaRange, Oa, Prot};
use iopt_tests::check::TestTable;
use iopt_tests::memory::TestMemory;
use iopt_tests::model::windows;

pub(crate) const KIB_4: u64 = 0x1000;
pub(crate) const MIB_2: u64 = 0x20_0000;
pub(crate) const GIB_1: u64 = 0x4000_0000;

pub(crate) fn range(start: u64, len: u64) -> IovaRange {
    IovaRange::with_len(Iova::new(start), len).expect("the range does not wrap")
}

/// A table in test memory and a claim over the last part of what it decodes.
pub(crate) fn table<F: Format>(format: F) -> (TestTable<F>, Claim) {
    let memory = Arc::new(TestMemory::new(8));
    let table = Table::new(format, memory).expect("a page for the root");
    let window = *windows(format.geometry())
        .last()
        .expect("a table decodes something");
    let claim = table.claim(window).expect("nothing is claimed");
    (table, claim)
}

/// Maps `page` without a thought for hardware.
pub(crate) fn map<F: Format>(table: &TestTable<F>, claim: &mut Claim, page: IovaRange, oa: u64) {
    let mut mapper = table.mapper(claim).expect("the claim lies in the window");
    let synced = mapper
        .map(page, Oa::new(oa), Prot::RW)
        .expect("nothing is mapped");
    synced.sync(&NoHardware).expect("there is no hardware");
}

/// Unmaps `page` without a thought for hardware.
pub(crate) fn unmap<F: Format>(table: &TestTable<F>, claim: &mut Claim, page: IovaRange) {
    let mut mapper = table.mapper(claim).expect("the claim lies in the window");
    let unmapped = mapper
        .unmap(page, UnmapPolicy::Exact)
        .expect("it is mapped");
    unmapped
        .gather
        .sync(&NoHardware)
        .expect("there is no hardware");
}
