//! Words worked out by hand.
