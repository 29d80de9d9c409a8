//! Hand-made tables.
