//! Benches of `iopt`: one file per question.
//!
//! | question | command |
//! |---|---|
//! | Are the promises about one thread kept? | `cargo bench -p iopt-benches --bench promises` |
//! | Do several threads on one table do several times as much as one? | `cargo bench -p iopt-benches --bench scaling` |
//! | What does the shared side of a domain's lock cost? | `cargo bench -p iopt-benches --bench locks` |
//! | How long does attaching take while other threads map? | `cargo bench -p iopt-benches --bench attach` |
//! | How close to the bare loop is a map of 12 TiB? | `cargo bench -p iopt-benches --bench large` |
//! | How long does a map, an unmap, a lookup take? | `cargo bench -p iopt-benches --bench operations` |
//! | What does a call of a whole IO address space cost? | `cargo bench -p iopt-benches --bench ioas` |
//! | How long until a large machine's devices are grouped and probed? | `cargo bench -p iopt-benches --bench machine` |
//! | What does it cost to get an IOVA and to give it back, and what after a long time? | `cargo bench -p iopt-benches --bench iova` |
//! | Does a driver lose anything by flushing before memory is used again? | `cargo bench -p iopt-benches --bench invalidation` |
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
//! Several threads are compared with one of them, and with other locks and other ways to guard a
//! table ([`designs`]), in many trials of less than a millisecond, of which those count whose
//! threads ran side by side ([`trials`]).
//!
//! A whole IO address space is compared with one that is built as Linux's iommufd is ([`ioas`]).
//!
//! Strict invalidation is compared with deferred one, on a clock that skips what hardware takes
//! ([`invalidation`]).
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

pub mod areas;
pub mod attach;
pub mod cases;
pub mod clock;
pub mod command;
pub mod cpu;
pub mod designs;
pub mod formats;
pub mod histogram;
pub mod instructions;
pub mod invalidation;
pub mod ioas;
pub mod iova;
pub mod large;
pub mod locks;
pub mod loops;
pub mod machine;
pub mod paired;
pub mod peers;
pub mod pool;
pub mod promises;
pub mod random;
pub mod report;
pub mod row;
pub mod scaling;
pub mod subject;
pub mod trials;
pub mod verdict;
pub mod workload;
pub mod yardstick;
