//! Benches of `iopt`: one file per question.
//!
//! | question | command |
//! |---|---|
//! | Are the promises kept? | `cargo bench -p iopt-benches --bench promises` |
//! | How long does a map, an unmap, a lookup take? | `cargo bench -p iopt-benches --bench operations` |
//! | How many instructions do they take? | `cargo run --release -p iopt-benches --bin count`, or with `gungraun`: `cargo bench -p iopt-benches --features instructions --bench instructions` |
//!
//! # What is compared
//!
//! The engine is used as a driver would use it: through its safe interface, with a claim that is
//! held, and every gather synced ([`subject`]). Times of one machine say nothing about another, so
//! promises are ratios to *yardsticks* of the same process: loops that show what the machine can do
//! ([`yardstick`]) and published crates on the same workload and memory ([`peers`]). A side runs
//! for a few milliseconds, then the next one, on one core; a ratio is taken inside each turn
//! ([`paired`]).
//!
//! Numbers need a quiet machine. Instruction counts do not, and gate changes.

#![expect(
    clippy::cast_precision_loss,
    reason = "counts and nanoseconds stay far below the 52 bits of an f64"
)]
#![expect(
    clippy::inline_always,
    reason = "what is compared has to be compiled alike on both sides"
)]

pub mod cases;
pub mod clock;
pub mod cpu;
pub mod formats;
pub mod instructions;
pub mod loops;
pub mod paired;
pub mod peers;
pub mod pool;
pub mod promises;
pub mod random;
pub mod subject;
pub mod workload;
pub mod yardstick;
