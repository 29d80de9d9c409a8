//! Devices behind a simulated SMMUv3 that reads the stream tables and context descriptors which the engine
//! writes, and caches whatever it may of them.

#![expect(
    clippy::unwrap_used,
    reason = "a world that cannot be made fails the test"
)]

mod entries;
mod life;
mod nested;
mod process;
mod world;
