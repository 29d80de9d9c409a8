//! What it costs to keep hardware's caches in step, and what flushing late would save.
//!
//! | question | answered in |
//! |---|---|
//! | How close is an I/O that is flushed before its memory is free to one that is flushed later? | [`io`] |
//! | What does such an I/O cost the processor, with hardware that answers at once? | [`cost`] |
//! | How fast is the queue, beside one with a mutex? | [`queue`] |
//! | How long does a plan take? | [`plan`] |
//!
//! # Two clocks
//!
//! What the hardware needs is not what the processor needs, and a processor that shares its core with
//! others shows neither. So [`io`] runs on [`clock`]: a thread's time is its own work, measured, and waits
//! for hardware, which are skipped; the simulated [IOMMU](mod@unit) lives outside of it. The others have no hardware to
//! wait for and are measured in turns, as everything else is ([`paired`](crate::paired)), but for threads that use
//! one queue at once: [`queue::measure_all`] measures trials in passes, in each the engine first and then the mutex.

pub mod clock;
pub mod cost;
pub mod io;
pub mod plan;
pub mod prompt;
pub mod queue;
pub mod rig;
pub mod unit;
