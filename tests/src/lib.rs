//! Helpers of the workspace's tests: configurations, the model of a table, operations on it.
//!
//! A test runs [`op`]s at the [`place`]s where bugs live on a table in a [`memory`] that watches
//! its user, and on the [`model`] of the table; a [`session`] compares them after each step, for
//! every [`configuration`].

pub mod check;
pub mod configuration;
pub mod differential;
pub mod fuzz;
pub mod hardware;
pub mod memory;
pub mod model;
pub mod op;
pub mod place;
pub mod referee;
pub mod refusal;
pub mod session;
pub mod shadow;
pub mod sink;
pub mod space;
mod told;
pub mod virtio;
