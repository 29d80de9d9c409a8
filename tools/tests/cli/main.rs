//! The built command, run on real and on damaged inputs.

mod common;
mod picture;
mod replay;
mod simulate;
mod topology;
mod usage;
mod walk;
