//! Whole address spaces against a plain model.
//!
//! A [`world`] has two address spaces, domains of several formats, sources of several kinds, and a
//! [`model`] of all that. A [`plan`] draws operations that are mostly possible, and lets some parts of some
//! of them fail. After each the world compares results, counts, and the tables as walkers see them that
//! share no code with the engine.

pub mod facts;
pub mod fault;
pub mod holder;
pub mod model;
pub mod op;
pub mod plan;
pub mod random;
pub mod refused;
pub mod setting;
pub mod witness;
pub mod world;
