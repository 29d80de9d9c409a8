//! Devices behind a simulated VT-d unit that reads the root, context and PASID tables which the engine
//! writes, and caches whatever it may of them.

#![expect(
    clippy::unwrap_used,
    reason = "a world that cannot be made fails the test"
)]

mod entries;
mod life;
mod nested;
mod process;
mod standing;
mod world;
