//! Reference walkers.
