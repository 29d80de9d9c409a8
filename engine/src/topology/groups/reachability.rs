//! The closure of "one reaches the other past the IOMMU, or they share a requester ID".
//!
//! Access control limits what *leaves* a port or a function, so one leak suffices: where a function sends
//! requests sideways, whoever is there is reached with all that is below, however well those are isolated
//! themselves. Two facts make the closure linear:
//!
//! * What can pass between functions side by side is all or nothing. Such a *unit* is the functions of a device
//!   or the downstream ports of a switch with its upstream port; if one member leaks, it reaches all
//!   others, so that all are one group.
//! * Requests that come from above are passed on downwards by everything. So a bridge that is reached is one with
//!   all that is below: it is *open*.

use alloc::vec::Vec;

use crate::topology::groups::union::Sets;
use crate::topology::tree::taken_id;
use crate::topology::{Acs, AcsFlags, FunctionKind, PciTree};

/// Functions side by side.
#[derive(Clone, Copy, Eq, Ord, PartialEq, PartialOrd)]
enum Unit {
    /// The functions of a device on a root bus: segment, bus, device.
    Slot(u16, u8, u8),
    /// All below a port: there is one device at the end of a link, which may use all device numbers (ARI)
    /// and, for virtual functions, further buses.
    Link(usize),
    /// All on the bus inside of the switch with this upstream port.
    Switch(usize),
}

/// Returns the sets of functions, by their places in the tree, that are in one group; `bound` numbers in
/// all, at least as many as there are functions.
pub(super) fn closure(tree: &PciTree, bound: usize) -> Sets {
    let functions = tree.functions();
    let mut sets = Sets::new(bound);
    join_shared_ids(tree, &mut sets);

    let mut is_open: Vec<_> = functions
        .iter()
        .enumerate()
        .map(|(index, function)| {
            function.kind.takes_requests()
                || function.kind.is_downstream() && !is_contained(tree, index)
        })
        .collect();
    join_units(tree, &mut sets, &mut is_open);

    // A bridge stands before all below it.
    for index in 0..functions.len() {
        if let Some(parent) = tree.parent_index(index).filter(|parent| is_open[*parent]) {
            sets.join(parent, index);
            is_open[index] = true;
        }
    }
    sets
}

/// Joins functions with a common requester ID. What a bridge puts into requests from below is shared by all
/// below; it is open, so that it stands for them here, if there are any.
fn join_shared_ids(tree: &PciTree, sets: &mut Sets) {
    let functions = tree.functions();
    let mut ids = Vec::with_capacity(functions.len());
    for (index, function) in functions.iter().enumerate() {
        let segment = function.address.segment;
        ids.push((segment, function.address.requester, index));
        let aliases = function.aliases.iter();
        ids.extend(aliases.map(|id| (segment, *id, index)));
        if let Some(parent) = tree.parent_index(index) {
            let taken = taken_id(&functions[parent]);
            ids.extend(taken.map(|id| (segment, id, parent)));
        }
    }
    ids.sort_unstable();
    for pair in ids.windows(2) {
        if (pair[0].0, pair[0].1) == (pair[1].0, pair[1].1) {
            sets.join(pair[0].2, pair[1].2);
        }
    }
}

/// Joins the members of each unit that has a leak, and opens them.
fn join_units(tree: &PciTree, sets: &mut Sets, is_open: &mut [bool]) {
    let mut members: Vec<_> = (0..tree.functions().len())
        .filter_map(|index| Some((unit(tree, index)?, index)))
        .collect();
    members.sort_unstable();
    for unit in members.chunk_by(|one, next| one.0 == next.0) {
        let upstream = match unit[0].0 {
            Unit::Switch(upstream) => Some(upstream),
            Unit::Slot(..) | Unit::Link(_) if unit.len() == 1 => continue,
            Unit::Slot(..) | Unit::Link(_) => None,
        };
        if unit.iter().all(|(_, index)| is_contained(tree, *index)) {
            continue;
        }
        for index in unit.iter().map(|(_, index)| *index).chain(upstream) {
            sets.join(unit[0].1, index);
            is_open[index] = true;
        }
    }
}

/// Returns the unit of a function; none on a conventional bus, where all are one group anyway.
fn unit(tree: &PciTree, index: usize) -> Option<Unit> {
    let function = &tree.functions()[index];
    let Some(parent) = tree.parent_index(index) else {
        let slot = function.physical.unwrap_or(function.address.requester);
        let (bus, device) = (slot.bus(), slot.device());
        return Some(Unit::Slot(function.address.segment, bus, device));
    };
    match tree.functions()[parent].kind {
        FunctionKind::RootPort | FunctionKind::DownstreamPort => Some(Unit::Link(parent)),
        FunctionKind::UpstreamPort => Some(Unit::Switch(parent)),
        _ => None,
    }
}

/// Returns `true` if requests that go upstream through a function, or begin at it, all go on to the root
/// complex (PCI Express Base Specification 6.12.1).
fn is_contained(tree: &PciTree, index: usize) -> bool {
    let function = &tree.functions()[index];
    // What a virtual function does not say itself, its physical function says for it.
    let physical = function.physical.and_then(|requester| {
        let mut address = function.address;
        address.requester = requester;
        tree.get(address)
    });
    if function.is_isolated || physical.is_some_and(|function| function.is_isolated) {
        return true;
    }
    let acs = function.acs.or_else(|| physical?.acs);
    acs.is_some_and(|acs| redirects(function.kind, acs))
}

fn redirects(kind: FunctionKind, acs: Acs) -> bool {
    // A vector that nobody here knows lets requests pass to the peers whose bits are 0, even with RR.
    if acs.enabled.has(AcsFlags::EC) {
        return false;
    }
    match kind {
        // A switch's downstream port has to implement all four.
        FunctionKind::DownstreamPort => acs.enabled.has(AcsFlags::ISOLATION),
        // A root port has to implement SV, and the others if it passes requests on to other root ports.
        FunctionKind::RootPort => {
            acs.enabled.has(AcsFlags::SV) && acs.has_on_where_capable(AcsFlags::ISOLATION)
        }
        // Functions side by side may implement neither SV nor UF, and the others if they reach each other.
        FunctionKind::UpstreamPort | FunctionKind::Endpoint | FunctionKind::RootComplexEndpoint => {
            acs.has_on_where_capable(AcsFlags::RR | AcsFlags::CR)
        }
        // There is no access control for these.
        FunctionKind::PciePciBridge
        | FunctionKind::PciPcieBridge
        | FunctionKind::ConventionalBridge
        | FunctionKind::EventCollector
        | FunctionKind::Conventional => false,
    }
}
