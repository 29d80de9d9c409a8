//! How many instructions does one map, unmap or lookup of a 4 KiB page take?
//!
//! ```text
//! cargo install gungraun-runner --version 0.20.0
//! cargo bench -p iopt-benches --features instructions --bench instructions
//! ```
//!
//! The runner must have the version of the crate `gungraun` (formerly iai-callgrind) in
//! `Cargo.lock`, and valgrind must be installed. Each bench counts [`COUNT`] operations, without
//! their setup, and fails if they take more than that many budgets. Without the runner,
//! `cargo run --release -p iopt-benches --bin count` counts the same.

#![expect(missing_docs, reason = "the macros of gungraun make public items")]

use gungraun::prelude::*;
use gungraun::{Callgrind, EventKind};
use iopt_benches::instructions::Operation::{Lookup, LookupAlone, LookupOwn, Map, Unmap};
use iopt_benches::instructions::Pages::{Hot, Random};
use iopt_benches::instructions::{Operation, Work, prepare};
use iopt_formats::catalog::FormatName::{self, AmdV1, ArmS1_4k, RiscvSv48, VtdSs};

/// Operations of a bench.
const COUNT: u32 = 500;

/// Instructions around the operations: entering and leaving the bench.
const FRAME: u32 = 100;

/// Fails what takes more than `COUNT` budgets.
fn limit(operation: Operation) -> LibraryBenchmarkConfig {
    let limit = u64::from(operation.budget() * COUNT + FRAME);
    let mut callgrind = Callgrind::default();
    callgrind.hard_limits([(EventKind::Ir, limit)]);
    let mut config = LibraryBenchmarkConfig::default();
    config.tool(callgrind);
    config
}

fn map_hot(format: FormatName) -> Work {
    prepare(format, Map, Hot, COUNT as usize)
}

fn map_random(format: FormatName) -> Work {
    prepare(format, Map, Random, COUNT as usize)
}

fn unmap_hot(format: FormatName) -> Work {
    prepare(format, Unmap, Hot, COUNT as usize)
}

fn unmap_random(format: FormatName) -> Work {
    prepare(format, Unmap, Random, COUNT as usize)
}

fn lookup_hot(format: FormatName) -> Work {
    prepare(format, Lookup, Hot, COUNT as usize)
}

fn lookup_random(format: FormatName) -> Work {
    prepare(format, Lookup, Random, COUNT as usize)
}

fn lookup_alone_hot(format: FormatName) -> Work {
    prepare(format, LookupAlone, Hot, COUNT as usize)
}

fn lookup_own_hot(format: FormatName) -> Work {
    prepare(format, LookupOwn, Hot, COUNT as usize)
}

#[library_benchmark(config = limit(Map))]
#[benches::hot(args = [ArmS1_4k, VtdSs, AmdV1, RiscvSv48], setup = map_hot)]
#[benches::random(args = [ArmS1_4k, VtdSs, AmdV1, RiscvSv48], setup = map_random)]
fn map(mut work: Work) -> Work {
    work();
    work
}

#[library_benchmark(config = limit(Unmap))]
#[benches::hot(args = [ArmS1_4k, VtdSs, AmdV1, RiscvSv48], setup = unmap_hot)]
#[benches::random(args = [ArmS1_4k, VtdSs, AmdV1, RiscvSv48], setup = unmap_random)]
fn unmap(mut work: Work) -> Work {
    work();
    work
}

#[library_benchmark(config = limit(Lookup))]
#[benches::hot(args = [ArmS1_4k, VtdSs, AmdV1, RiscvSv48], setup = lookup_hot)]
#[benches::random(args = [ArmS1_4k, VtdSs, AmdV1, RiscvSv48], setup = lookup_random)]
fn lookup(mut work: Work) -> Work {
    work();
    work
}

#[library_benchmark(config = limit(LookupAlone))]
#[benches::hot(args = [ArmS1_4k, VtdSs, AmdV1, RiscvSv48], setup = lookup_alone_hot)]
fn lookup_alone(mut work: Work) -> Work {
    work();
    work
}

#[library_benchmark(config = limit(LookupOwn))]
#[benches::hot(args = [ArmS1_4k, VtdSs, AmdV1, RiscvSv48], setup = lookup_own_hot)]
fn lookup_own(mut work: Work) -> Work {
    work();
    work
}

library_benchmark_group!(
    name = pages_of_4k,
    benchmarks = [map, unmap, lookup, lookup_alone, lookup_own]
);
main!(library_benchmark_groups = pages_of_4k);
