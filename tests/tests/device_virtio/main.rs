//! Devices behind a simulated virtio-iommu, attached over a registry.

#![expect(
    clippy::unwrap_used,
    reason = "a world that cannot be made fails the test"
)]

#[path = "../topology/facts.rs"]
mod facts;
mod failures;
mod life;
mod viot;
mod world;
