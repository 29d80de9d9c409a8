//! Devices behind a simulated AMD IOMMU that reads the device table and the guest CR3 tables which the engine
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
