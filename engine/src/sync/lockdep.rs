//! Checks the order in which locks are taken.

/// What locks have in common that are taken for the same purpose: their place in the order.
#[derive(Debug)]
pub struct Class {
    name: &'static str,
    rank: u16,
}

impl Class {
    pub(crate) const fn ranked(name: &'static str, rank: u16) -> Self {
        Self { name, rank }
    }

    /// Returns what the class is called.
    pub const fn name(&self) -> &'static str {
        self.name
    }

    /// Returns the rank: locks are taken in rising order.
    pub const fn rank(&self) -> u16 {
        self.rank
    }
}
