//! Models and differential tests.
