//! Devices behind a simulated RISC-V IOMMU that reads the device and process directories which the engine
//! writes, and caches whatever it may of them.

#![expect(
    clippy::unwrap_used,
    reason = "a world that cannot be made fails the test"
)]

mod entries;
mod life;
mod limits;
mod nested;
mod process;
mod world;
