//! What can reach what: PCI functions, and the groups that isolation cannot part.
//!
//! ```text
//! functions, root buses -> PciTree --+-> requester IDs of a function, where it is on a path of firmware
//!                                    +-> groups(tree, members, rule) -> Partition
//! ```
//!
//! All of it is computed, from facts that are all there before the first device is probed: no order of
//! probes, no driver and no lock takes part. A machine that changes gets another [`PciTree`], and its
//! [`Partition`] takes devices in and lets them go.
//!
//! # What a group is
//!
//! Two devices are in one group if one can reach the other's memory without an IOMMU in between, or if an
//! IOMMU cannot tell their requests apart; and so is who is in a group with both. What decides that is listed
//! at [`Rule::Reachability`].

mod acs;
mod address;
mod function;
mod groups;
mod tree;

pub use crate::topology::acs::{Acs, AcsFlags};
pub use crate::topology::address::{AddressError, PciAddress, RequesterId};
pub use crate::topology::function::{BusRange, Function, FunctionKind};
pub use crate::topology::groups::{
    AddError, Added, GroupId, GroupsError, Member, Merge, Node, Partition, Rule, Translation,
    groups,
};
pub use crate::topology::tree::{PciTree, Position, RootBus, TreeError};
