//! Who reaches whom, found by sending packets: hop by hop, each port and function passes them wherever its
//! access control lets it. No sets, no units: a packet knows where it is and where it came from.

use std::collections::BTreeSet;

use iopt::topology::{FunctionKind, PciAddress};

use crate::machine::{Machine, Part, Wire};

/// Where a packet is.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
enum Hop {
    /// Sent by this function, or come to it from below: about to go upstream.
    Up(usize),
    /// Come to this function from above or from beside.
    In(usize),
}

/// Returns for each pair of functions whether they are in one group.
pub(crate) fn relation(machine: &Machine) -> Vec<Vec<bool>> {
    let count = machine.parts.len();
    let mut related = vec![vec![false; count]; count];
    let ids: Vec<_> = (0..count).map(|part| requesters(machine, part)).collect();
    for from in 0..count {
        related[from][from] = true;
        for to in reached(machine, from) {
            related[from][to] = true;
            related[to][from] = true;
        }
        for to in 0..count {
            related[from][to] |= !ids[from].is_disjoint(&ids[to]);
        }
    }
    // Warshall's closure.
    for middle in 0..count {
        let beyond = related[middle].clone();
        for row in related.iter_mut().filter(|row| row[middle]) {
            for (is_related, is_beyond) in row.iter_mut().zip(&beyond) {
                *is_related |= is_beyond;
            }
        }
    }
    related
}

/// Returns the segments and IDs under which packets of a function come out at the top.
pub(crate) fn requesters(machine: &Machine, part: usize) -> BTreeSet<(u16, u16)> {
    let function = &machine.parts[part].function;
    let segment = function.address.segment;
    let mut ids = BTreeSet::from([function.address.requester.get()]);
    ids.extend(function.aliases.iter().map(|id| id.get()));
    let mut at = part;
    while let Some(above) = above(machine.parts[at].wire) {
        let bridge = &machine.parts[above].function;
        match bridge.kind {
            FunctionKind::PciePciBridge => {
                let buses = bridge.buses.expect("something is below it");
                ids.insert(u16::from(buses.secondary) << 8);
            }
            FunctionKind::PciPcieBridge | FunctionKind::ConventionalBridge => {
                ids.insert(bridge.address.requester.get());
            }
            _ => {}
        }
        at = above;
    }
    ids.into_iter().map(|id| (segment, id)).collect()
}

fn above(wire: Wire) -> Option<usize> {
    match wire {
        Wire::Root => None,
        Wire::Link(above) | Wire::Switch(above) | Wire::Shared(above) => Some(above),
    }
}

/// Returns all functions that get a packet which one sends, on any way that does not lead through the root
/// complex.
fn reached(machine: &Machine, from: usize) -> BTreeSet<usize> {
    let mut seen = BTreeSet::new();
    let mut waiting = vec![Hop::Up(from)];
    while let Some(hop) = waiting.pop() {
        if seen.insert(hop) {
            waiting.extend(next(machine, hop));
        }
    }
    let arrived = seen.into_iter().filter_map(|hop| match hop {
        Hop::In(part) => Some(part),
        Hop::Up(_) => None,
    });
    arrived.collect()
}

fn next(machine: &Machine, hop: Hop) -> Vec<Hop> {
    let others = |is_there: &dyn Fn(&Part) -> bool| -> Vec<Hop> {
        let parts = machine.parts.iter().enumerate();
        let there = parts.filter(|(_, part)| is_there(part));
        there.map(|(index, _)| Hop::In(index)).collect()
    };
    let part = match hop {
        // Everything below a bridge can be the target of what comes to it.
        Hop::In(bridge) => return others(&|part| above(part.wire) == Some(bridge)),
        Hop::Up(part) => part,
    };
    let Part { wire, device, .. } = machine.parts[part];
    let mut hops = Vec::new();
    match wire {
        Wire::Root => {}
        Wire::Link(above) | Wire::Switch(above) => hops.push(Hop::Up(above)),
        // Everybody on the bus sees it, and the bridge, which can answer it as well as pass it on.
        Wire::Shared(bridge) => {
            hops.extend(others(&|part| part.wire == wire));
            hops.extend([Hop::In(bridge), Hop::Up(bridge)]);
        }
    }
    if !sends_sideways(machine, part) {
        return hops;
    }
    // To the other functions of the device, and for what is inside of a switch to all that is there.
    hops.extend(others(&|part| part.device == device));
    if let Wire::Switch(upstream) = wire {
        hops.extend(others(&|part| part.wire == wire));
        hops.push(Hop::In(upstream));
    }
    match machine.parts[part].function.kind {
        // Back down to where it came from.
        FunctionKind::RootPort | FunctionKind::DownstreamPort => hops.push(Hop::In(part)),
        _ => hops.retain(|hop| *hop != Hop::In(part)),
    }
    hops
}

fn sends_sideways(machine: &Machine, part: usize) -> bool {
    let function = &machine.parts[part].function;
    let mut said = (function.acs, function.is_isolated);
    if let Some(requester) = function.physical {
        let segment = function.address.segment;
        let address = PciAddress { segment, requester };
        let mut parts = machine.parts.iter();
        let physical = parts.find(|part| part.function.address == address);
        let physical = &physical.expect("it was made before").function;
        said.0 = said.0.or(physical.acs);
        said.1 |= physical.is_isolated;
    }
    let (acs, is_isolated) = said;
    if is_isolated {
        return false;
    }
    let Some(acs) = acs else {
        return true;
    };
    let is_on = |bit: u16| acs.enabled.bits() >> bit & 1 != 0;
    let is_lacking = |bit: u16| acs.capable.bits() >> bit & 1 == 0;
    // Bits of the registers: 0 validation, 2 and 3 redirect, 4 forwarding, 5 egress control.
    let is_redirected = match function.kind {
        FunctionKind::DownstreamPort => [0, 2, 3, 4].into_iter().all(is_on),
        FunctionKind::RootPort => {
            is_on(0)
                && [2, 3, 4]
                    .into_iter()
                    .all(|bit| is_on(bit) || is_lacking(bit))
        }
        FunctionKind::Endpoint | FunctionKind::UpstreamPort | FunctionKind::RootComplexEndpoint => {
            [2, 3].into_iter().all(|bit| is_on(bit) || is_lacking(bit))
        }
        _ => false,
    };
    is_on(5) || !is_redirected
}
