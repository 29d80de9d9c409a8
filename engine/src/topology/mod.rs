//! What can reach what: PCI functions, and the groups that isolation cannot part.

mod address;

pub use crate::topology::address::{AddressError, PciAddress, RequesterId};
