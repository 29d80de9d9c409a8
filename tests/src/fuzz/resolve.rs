//! What firmware says, of each function of a tree: told to all at once and asked for one by one.

use std::iter;

use iopt::device::{
    Besides, DeviceAddress, Machine, Refusal, Resolution, ResolveError, Resolved, Untranslated,
};
use iopt::firmware::{
    Behind, Description, Identity, NodeIndex, Place, Seen, Who, acpi, device_tree,
};
use iopt::topology::{FunctionKind, PciAddress, PciTree, RequesterId, Rule};

use crate::fuzz::{firmware, topology as trees};

/// The first byte: how many functions there are, and whether the rest is a device tree.
const COUNT: u8 = 0x1f;
const DEVICE_TREE: u8 = 0x80;

/// Functions, and the tables of their machine.
pub fn resolve(bytes: &[u8]) -> bool {
    let Some((&head, rest)) = bytes.split_first() else {
        return false;
    };
    let len = usize::from(head & COUNT) * trees::FUNCTION_LEN;
    let (functions, rest) = rest.split_at(len.min(rest.len()));
    let functions = trees::functions(functions).into_iter();
    let functions: Vec<_> = functions.map(|(function, _)| function).collect();
    let Ok(tree) = trees::tree(&functions) else {
        return false;
    };
    let mut rest = rest.to_vec();
    let description = if head & DEVICE_TREE == 0 {
        acpi::parse(&firmware::split_tables(&mut rest)).ok()
    } else {
        device_tree::parse(&rest).ok()
    };
    description.is_some_and(|description| {
        check(&description, &tree);
        true
    })
}

fn check(description: &Description, tree: &PciTree) {
    let mut besides = Besides::default();
    let nodes = description.nodes.len().min(2);
    let inputs = (0..nodes).flat_map(|node| [0, 0x10].map(|id| (NodeIndex(node), id)));
    besides.inputs.extend(inputs);
    let resolve = |rule| {
        let resolution = Resolution::new(description, tree, &besides, rule);
        resolution.expect("all of it is there, once")
    };
    let resolution = resolve(Rule::Reachability);
    let mut untranslated = resolution.untranslated.iter().peekable();
    for device in &resolution.parts.devices {
        let is_it = |(address, _): &&(DeviceAddress, _)| *address == device.address;
        let why_not = untranslated.next_if(is_it).map(|(_, why)| *why);
        check_device(description, tree, device, why_not);
    }
    assert_eq!(
        untranslated.next(),
        None,
        "the rest is no device, or not in order"
    );
    assert_eq!(resolve(Rule::Linux).untranslated, resolution.untranslated);
    Machine::new(resolution.parts).expect("what was resolved is a machine");
    besides.inputs.push((NodeIndex(description.nodes.len()), 0));
    let refused = Resolution::new(description, tree, &besides, Rule::Reachability);
    assert!(matches!(refused, Err(ResolveError::NoNode { .. })));
}

/// Checks a device against looking it up by itself.
fn check_device(
    description: &Description,
    tree: &PciTree,
    device: &Resolved,
    why_not: Option<Untranslated>,
) {
    let mut found = Vec::new();
    let mut regions = Vec::new();
    // IDs that no instance sees, and whether that matters if one sees others.
    let mut open = Vec::new();
    let mut see = |seen: Seen<'_>| {
        let id = match seen.identity {
            Identity::Number(id) => Some(id),
            Identity::Cells(_) => None,
        };
        found.push((seen.instance, id));
        found.extend(seen.alias.map(|alias| (seen.instance, Some(alias))));
    };
    match device.address {
        DeviceAddress::Pci(address) => {
            let place = Place::new(tree, address);
            let last = last_taken(tree, address);
            for requester in tree.requesters(address).expect("it is there") {
                let under = PciAddress {
                    requester,
                    ..address
                };
                let is_last = last.is_none_or(|last| last == requester);
                match description.requester(under, &place) {
                    Behind::Instance(seen) => see(seen),
                    Behind::Unsaid => open.push((requester.get().into(), is_last)),
                    Behind::Nothing(_) | Behind::Unreadable(_) => {
                        open.push((requester.get().into(), true));
                    }
                }
                let who = Who::Requester(under, &place);
                regions.extend(description.regions_of(who).map(|region| region.range));
            }
        }
        DeviceAddress::Node(node) => {
            if let Behind::Instance(all) = description.node(node) {
                all.into_iter().for_each(see);
            }
            let who = Who::Node(node);
            regions.extend(description.regions_of(who).map(|region| region.range));
        }
        DeviceAddress::Input { node, id } => {
            if let Behind::Instance(seen) = description.input(node, id) {
                see(seen);
            }
            let who = Who::Input(node, id);
            regions.extend(description.regions_of(who).map(|region| region.range));
        }
    }
    let mut instances: Vec<_> = found.iter().map(|(instance, _)| *instance).collect();
    instances.sort_unstable();
    instances.dedup();
    let streams = device.streams.iter().map(|stream| stream.instance);
    assert_eq!(streams.collect::<Vec<_>>(), instances, "{}", device.address);
    found.retain(|(_, id)| id.is_some());
    found.sort_unstable();
    found.dedup();
    let streams = device.streams.iter();
    let ids = streams.flat_map(|stream| stream.ids.iter().map(|id| (stream.instance, Some(*id))));
    assert_eq!(ids.collect::<Vec<_>>(), found, "{}", device.address);
    let decisive = open.iter().find(|(_, is_decisive)| *is_decisive);
    match why_not {
        None => assert!(!device.streams.is_empty() && decisive.is_none()),
        Some(Untranslated::Itself(_)) => {}
        Some(Untranslated::Partly { id, .. }) => {
            assert!(!device.streams.is_empty() && open.contains(&(id, true)));
        }
        Some(Untranslated::Unreadable(_)) if device.refusal == Some(Refusal::Regions) => {
            assert!(!device.streams.is_empty());
        }
        Some(_) => assert!(device.streams.is_empty()),
    }
    let is_partly = matches!(why_not, Some(Untranslated::Partly { .. }));
    assert_eq!(device.refusal == Some(Refusal::Partial), is_partly);
    let mut told: Vec<_> = device.regions.iter().map(|region| region.range).collect();
    for ranges in [&mut told, &mut regions] {
        ranges.sort_unstable_by_key(|range| (range.start(), range.last()));
        ranges.dedup();
    }
    assert_eq!(told, regions, "{}", device.address);
}

/// The ID that the last bridge on the way up puts in place of a function's, if one does.
fn last_taken(tree: &PciTree, address: PciAddress) -> Option<RequesterId> {
    let above = iter::successors(tree.parent(address), |bridge| tree.parent(bridge.address));
    let taken = above.filter_map(|bridge| match bridge.kind {
        FunctionKind::PciePciBridge => RequesterId::from_parts(bridge.buses?.secondary, 0, 0),
        FunctionKind::ConventionalBridge | FunctionKind::PciPcieBridge => {
            Some(bridge.address.requester)
        }
        _ => None,
    });
    taken.last()
}

/// One machine with the tables of each other one.
pub fn seeds() -> Vec<Vec<u8>> {
    let functions = trees::MACHINE.concat();
    let seed = |head: u8, tables: Vec<u8>| {
        let head = head | trees::MACHINE.len() as u8;
        [vec![head], functions.clone(), tables].concat()
    };
    let acpi = firmware::acpi_seeds().into_iter();
    let acpi = acpi.map(|tables| seed(0, tables));
    let small = firmware::tree_seeds().into_iter().min_by_key(Vec::len);
    acpi.chain(small.map(|blob| seed(DEVICE_TREE, blob)))
        .collect()
}
