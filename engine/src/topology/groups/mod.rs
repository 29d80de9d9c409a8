//! Groups: which devices get one translation, because nothing parts them.

mod linux;
mod partition;
mod reachability;
#[cfg(test)]
mod tests;
mod union;

use core::fmt;

use crate::topology::{PciAddress, PciTree};

pub use crate::topology::groups::partition::{AddError, Added, GroupId, Merge, Partition};

/// A device.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Node {
    /// A PCI function of the tree.
    Pci(PciAddress),
    /// A device on another bus, by a number that the caller gives it. Nothing is known of what it reaches,
    /// so it shares no group, but by [`Translation::Alike`].
    Other(u64),
}

impl fmt::Display for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pci(address) => address.fmt(f),
            Self::Other(number) => write!(f, "device {number}"),
        }
    }
}

/// What IOMMU a device is behind, as far as it decides on its group.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Translation {
    /// None: it gets no group. What reaches each other through it is one group all the same.
    Untranslated,
    /// An instance that knows devices by their IDs.
    ById,
    /// An instance that cannot tell its devices apart: all of them are one group.
    Alike {
        /// A number of the instance that no other one has.
        instance: usize,
    },
}

/// A device, and what IOMMU it is behind.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct Member {
    /// The device.
    pub node: Node,
    /// The IOMMU.
    pub translation: Translation,
}

/// What puts two devices into one group.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
#[non_exhaustive]
pub enum Rule {
    /// That one reaches the other's memory, or the IOMMU cannot tell them apart, through whatever is in the
    /// tree, members or not. The order of anything changes nothing.
    ///
    /// Access control (ACS) limits what leaves a port or a function, never what comes in; what is turned
    /// *on* counts, not what could be (PCI Express Base Specification 6.12.1). In detail:
    ///
    /// | what | sends sideways, unless | to |
    /// |---|---|---|
    /// | downstream port of a switch | SV, RR, CR and UF are on | all ports of the switch, all below them, and its upstream port |
    /// | root port | SV is on, and RR, CR and UF where it has them | all below itself; the functions of its device with all below them |
    /// | upstream port, endpoint | RR and CR are on where it has them | the functions of its device with all below them |
    /// | anything with EC on | never: the vector behind it is not known here | as above |
    /// | any function without ACS, or of unknown ACS | a quirk isolates it | as above |
    /// | PCI Express to PCI bridge, conventional bridge, conventional bus | never | all below it, and the bridge |
    ///
    /// A device is all functions of a slot on a root bus, or all at the end of a link, with their virtual
    /// functions; a virtual function whose own ACS is unknown goes by that of its physical function.
    ///
    /// That the root complex passes nothing between the slots of root buses is an assumption, which Linux makes,
    /// too: the specification leaves it to the implementation (1.3.1).
    ///
    /// Devices share requester IDs by quirks, and by what bridges to conventional buses take on; see
    /// [`PciTree::requesters`]. Requests that were translated before (DT, and what TB would refuse) have
    /// passed the IOMMU, and count for nothing here.
    #[default]
    Reachability,
    /// What Linux does up to 7.1, for comparison: it goes up from a device while access control is off somewhere on
    /// the way to the root complex, joins what has a group there, or else what shares an ID or a slot without
    /// access control. Members are taken in order of their addresses, bridges first. It parts devices below
    /// neighbouring ports of a switch that reach each other, and functions with access control from
    /// those without in the same device, which reach them.
    Linux,
}

/// Why there are no groups.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum GroupsError {
    /// A member is not in the tree.
    #[error("there is no function {address} in the tree")]
    NoFunction {
        /// The function.
        address: PciAddress,
    },
    /// A device is a member twice.
    #[error("{node} is a member twice")]
    Duplicate {
        /// The device.
        node: Node,
    },
}

/// Returns the groups of `members`, in any order, by `rule`.
///
/// This is a pure function of its arguments. Drivers are none of them: whether the driver of a port failed, or
/// there is none, changes nothing.
///
/// # Errors
///
/// [`GroupsError`]: a member is unknown, or there twice.
///
/// ```
/// use iopt::topology::{
///     BusRange, Function, FunctionKind, Member, Node, PciTree, RootBus, Rule, Translation, groups,
/// };
///
/// // A root port that redirects nothing, and an endpoint below.
/// let (port, endpoint) = ("0000:00:01.0".parse()?, "0000:01:00.0".parse()?);
/// let mut functions = vec![
///     Function::new(port, FunctionKind::RootPort),
///     Function::new(endpoint, FunctionKind::Endpoint),
/// ];
/// functions[0].buses = Some(BusRange { secondary: 1, subordinate: 1 });
/// let tree = PciTree::new(&[RootBus { segment: 0, bus: 0 }], functions)?;
///
/// let [port, endpoint] = [port, endpoint].map(Node::Pci);
/// let members = [port, endpoint].map(|node| Member { node, translation: Translation::ById });
/// let partition = groups(&tree, &members, Rule::Reachability)?;
/// assert_eq!(partition.group_of(port), partition.group_of(endpoint));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn groups(tree: &PciTree, members: &[Member], rule: Rule) -> Result<Partition, GroupsError> {
    let mut members = members.to_vec();
    members.sort_unstable_by_key(|member| member.node);
    if let Some(pair) = members.windows(2).find(|pair| pair[0].node == pair[1].node) {
        return Err(GroupsError::Duplicate { node: pair[0].node });
    }
    for member in &members {
        match member.node {
            Node::Pci(address) if tree.get(address).is_none() => {
                return Err(GroupsError::NoFunction { address });
            }
            _ => {}
        }
    }
    members.retain(|member| member.translation != Translation::Untranslated);
    Ok(Partition::of(tree, &members, rule))
}
