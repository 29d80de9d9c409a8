//! Which group Linux puts a PCI function into, given the groups that are there: its rule up to 7.1.
//!
//! It looks only at what is between a function and the root complex, and joins only what has a group
//! already, so the answer depends on the order: here, a bridge comes before all below it.

use core::ops::Range;

use crate::topology::tree::taken_id;
use crate::topology::{AcsFlags, FunctionKind, PciTree};

/// Returns the group of the function at a place of the tree that it joins, if it joins any. `group_of` says
/// which has a group so far.
pub(super) fn group<G>(
    tree: &PciTree,
    index: usize,
    group_of: &impl Fn(usize) -> Option<G>,
) -> Option<G> {
    // Up through the bridges that requests take on another name from, to the last one.
    let mut top = index;
    let mut at = tree.parent_index(index);
    while let Some(bridge) = at {
        if taken_id(&tree.functions()[bridge]).is_some() {
            top = bridge;
            if let Some(group) = group_of(bridge) {
                return Some(group);
            }
        }
        at = tree.parent_index(bridge);
    }
    // Up to where access control is on in every bridge that is left.
    while let Some(bridge) = tree.parent_index(top) {
        if is_path_controlled(tree, bridge) {
            break;
        }
        top = bridge;
        if let Some(group) = group_of(bridge) {
            return Some(group);
        }
    }
    let mut search = Search {
        tree,
        bus: tree.bus_of(top),
        has_seen: [false; 256],
        group_of,
    };
    search.by_alias(top).or_else(|| search.by_device(top))
}

fn is_path_controlled(tree: &PciTree, bridge: usize) -> bool {
    let mut at = Some(bridge);
    while let Some(bridge) = at {
        if !is_controlled(tree, bridge) {
            return false;
        }
        at = tree.parent_index(bridge);
    }
    true
}

fn is_controlled(tree: &PciTree, index: usize) -> bool {
    let function = &tree.functions()[index];
    let has_control = || {
        let acs = function.acs;
        acs.is_some_and(|acs| acs.has_on_where_capable(AcsFlags::ISOLATION))
    };
    match function.kind {
        _ if function.is_isolated => true,
        FunctionKind::RootPort | FunctionKind::DownstreamPort => has_control(),
        FunctionKind::Endpoint | FunctionKind::UpstreamPort | FunctionKind::RootComplexEndpoint => {
            !function.is_multifunction || has_control()
        }
        FunctionKind::PciePciBridge
        | FunctionKind::PciPcieBridge
        | FunctionKind::ConventionalBridge
        | FunctionKind::EventCollector
        | FunctionKind::Conventional => false,
    }
}

/// A search among the functions of a bus; each is met once, so calls nest 512 deep at most.
struct Search<'a, G, F: Fn(usize) -> Option<G>> {
    tree: &'a PciTree,
    bus: Range<usize>,
    has_seen: [bool; 256],
    group_of: &'a F,
}

impl<G, F: Fn(usize) -> Option<G>> Search<'_, G, F> {
    /// Returns the group of a function, or of one that shares a requester ID with it.
    fn by_alias(&mut self, index: usize) -> Option<G> {
        let number = self.tree.functions()[index].address.requester.get();
        let seen = &mut self.has_seen[usize::from(number & 0xff)];
        if core::mem::replace(seen, true) {
            return None;
        }
        (self.group_of)(index).or_else(|| {
            self.bus.clone().find_map(|other| {
                if !self.share_id(index, other) {
                    return None;
                }
                self.by_alias(other).or_else(|| self.by_device(other))
            })
        })
    }

    /// Returns the group of a function of the same device that is not isolated either.
    fn by_device(&mut self, index: usize) -> Option<G> {
        let function = &self.tree.functions()[index];
        if !function.is_multifunction || is_controlled(self.tree, index) {
            return None;
        }
        let device = function.address.requester.device();
        self.bus.clone().find_map(|other| {
            let is_peer = other != index
                && self.tree.functions()[other].address.requester.device() == device
                && !is_controlled(self.tree, other);
            is_peer.then(|| self.by_alias(other)).flatten()
        })
    }

    fn share_id(&self, one: usize, other: usize) -> bool {
        let [one, other] = [one, other].map(|index| &self.tree.functions()[index]);
        one.address != other.address
            && (one.aliases.contains(&other.address.requester)
                || other.aliases.contains(&one.address.requester))
    }
}
