//! The built command, run on real and on damaged inputs.

mod common;
mod replay;
mod simulate;
mod usage;
mod walk;
