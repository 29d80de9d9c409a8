//! Groups of machines that are written down here, with what comes and goes.

use super::*;
use crate::topology::FunctionKind::{
    self, Conventional, DownstreamPort, Endpoint, PciePciBridge, RootComplexEndpoint, RootPort,
    UpstreamPort,
};
use crate::topology::{Acs, AcsFlags, BusRange, Function, RootBus};
use Rule::{Linux, Reachability};
use alloc::string::{String, ToString as _};
use alloc::vec::Vec;

const ROOTS: [RootBus; 1] = [RootBus { segment: 0, bus: 0 }];
/// Capable of all but EC, as many ports are.
const CAPABLE: AcsFlags = AcsFlags::from_bits(0x5f);

fn address(text: &str) -> PciAddress {
    text.parse().expect("the test writes an address")
}

fn node(text: &str) -> Node {
    Node::Pci(address(text))
}

fn function(text: &str, kind: FunctionKind, enabled: Option<AcsFlags>) -> Function {
    Function {
        acs: enabled.map(|enabled| Acs {
            capable: CAPABLE | enabled,
            enabled,
        }),
        ..Function::new(address(text), kind)
    }
}

fn bridge(text: &str, kind: FunctionKind, last: u8, enabled: Option<AcsFlags>) -> Function {
    // Buses are numbered so that the first one below follows from the device or the bus above.
    let requester = address(text).requester;
    let secondary = match kind {
        RootPort | UpstreamPort | PciePciBridge => requester.bus() + 1,
        _ => requester.bus() + 1 + requester.device(),
    };
    Function {
        buses: Some(BusRange {
            secondary,
            subordinate: last,
        }),
        ..function(text, kind, enabled)
    }
}

/// A root port, a switch with two ports, an endpoint A (03:00.0) and B (04:00.0) below.
fn switch(root: Option<AcsFlags>, ports: [Option<AcsFlags>; 2]) -> Vec<Function> {
    vec![
        bridge("0:0:1.0", RootPort, 4, root),
        bridge("0:1:0.0", UpstreamPort, 4, None),
        bridge("0:2:0.0", DownstreamPort, 3, ports[0]),
        bridge("0:2:1.0", DownstreamPort, 4, ports[1]),
        function("0:3:0.0", Endpoint, None),
        function("0:4:0.0", Endpoint, None),
    ]
}

fn tree(functions: &[Function]) -> PciTree {
    PciTree::new(&ROOTS, functions.to_vec()).expect("it is a tree")
}

fn by_id(node: Node) -> Member {
    Member {
        node,
        translation: Translation::ById,
    }
}

fn all(tree: &PciTree) -> Vec<Member> {
    let addresses = tree.functions().iter().map(|function| function.address);
    addresses.map(|address| by_id(Node::Pci(address))).collect()
}

fn partition(functions: &[Function], rule: Rule) -> Partition {
    let tree = tree(functions);
    groups(&tree, &all(&tree), rule).expect("all are there, once")
}

/// Returns groups of two or more, as "bus:device.function+...", without the segment.
fn shared(partition: &Partition) -> Vec<String> {
    let groups = partition.groups().filter(|(_, nodes)| nodes.len() > 1);
    let name = |node: &Node| node.to_string().replacen("0000:", "", 1);
    groups
        .map(|(_, nodes)| nodes.iter().map(name).collect::<Vec<_>>().join("+"))
        .collect()
}

fn shared_of(functions: &[Function], rule: Rule) -> Vec<String> {
    shared(&partition(functions, rule))
}

const ON: Option<AcsFlags> = Some(AcsFlags::ISOLATION);
const OFF: Option<AcsFlags> = Some(AcsFlags::NONE);
const ALL: &str = "00:01.0+01:00.0+02:00.0+02:01.0+03:00.0+04:00.0";
const SWITCH: &str = "01:00.0+02:00.0+02:01.0+03:00.0+04:00.0";

/// A2.2: {A, B}.
#[test]
fn endpoints_below_ports_of_a_switch_without_access_control_are_one_group() {
    // A reaches B's memory through the two ports. Linux looks up only, and parts them.
    let functions = switch(ON, [None, None]);
    assert_eq!(shared_of(&functions, Reachability), [SWITCH]);
    assert_eq!(
        shared_of(&functions, Linux),
        ["02:00.0+03:00.0", "02:01.0+04:00.0"]
    );
}

#[test]
fn one_port_of_a_switch_that_leaks_reaches_into_those_that_do_not() {
    for ports in [[ON, None], [None, ON], [ON, OFF]] {
        assert_eq!(shared_of(&switch(ON, ports), Reachability), [SWITCH]);
    }
}

/// A2.2: all with access control.
#[test]
fn access_control_on_the_whole_way_up_gives_singletons() {
    let functions = switch(ON, [ON, ON]);
    for rule in [Reachability, Linux] {
        assert_eq!(partition(&functions, rule).len(), functions.len());
    }
}

#[test]
fn what_is_capable_decides_nothing_what_is_on_does() {
    // All are capable of all; each control missing alone leaks.
    for missing in [AcsFlags::SV, AcsFlags::RR, AcsFlags::CR, AcsFlags::UF] {
        let some = Some(AcsFlags::ISOLATION.without(missing));
        assert_eq!(shared_of(&switch(some, [ON, ON]), Reachability), [ALL]);
        assert_eq!(shared_of(&switch(ON, [some, ON]), Reachability), [SWITCH]);
        assert_eq!(shared_of(&switch(some, [ON, ON]), Linux), [ALL]);
    }
    // Egress control lets through what nobody here knows.
    let control = Some(AcsFlags::ISOLATION | AcsFlags::EC);
    assert_eq!(
        shared_of(&switch(ON, [control, ON]), Reachability),
        [SWITCH]
    );
    let more = Some(AcsFlags::ISOLATION | AcsFlags::TB | AcsFlags::DT);
    assert!(shared_of(&switch(more, [more, more]), Reachability).is_empty());
}

#[test]
fn what_a_port_need_not_have_is_not_asked_of_it() {
    // A root port that passes nothing on to others has no redirect. A switch's port must have it.
    let mut functions = switch(Some(AcsFlags::SV), [ON, ON]);
    functions[0].acs = Some(Acs {
        capable: AcsFlags::SV,
        enabled: AcsFlags::SV,
    });
    assert!(shared_of(&functions, Reachability).is_empty());
    functions[0].acs = Some(Acs::default());
    assert_eq!(shared_of(&functions, Reachability), [ALL]);
    let mut functions = switch(ON, [ON, ON]);
    functions[2].acs = functions[2].acs.map(|acs| Acs {
        capable: AcsFlags::SV,
        ..acs
    });
    assert!(shared_of(&functions, Reachability).is_empty());
    functions[2].acs = Some(Acs {
        capable: AcsFlags::SV,
        enabled: AcsFlags::SV,
    });
    assert_eq!(shared_of(&functions, Reachability), [SWITCH]);
}

#[test]
fn a_root_port_without_access_control_is_one_with_all_below_and_with_nothing_beside() {
    let mut functions = switch(None, [ON, ON]);
    functions.push(function("0:0:2.0", Conventional, None));
    for rule in [Reachability, Linux] {
        assert_eq!(shared_of(&functions, rule), [ALL]);
    }
    functions[0].is_isolated = true;
    for rule in [Reachability, Linux] {
        assert!(
            shared_of(&functions, rule).is_empty(),
            "a quirk isolates it"
        );
    }
}

/// 00:1f.0 and .2 without access control, .6 as given.
fn slot(last: Option<AcsFlags>) -> Vec<Function> {
    ["0:0:1f.0", "0:0:1f.2", "0:0:1f.6"]
        .into_iter()
        .zip([None, None, last])
        .map(|(text, enabled)| Function {
            is_multifunction: true,
            ..function(text, RootComplexEndpoint, enabled)
        })
        .collect()
}

/// A2.2: {1f.0, 1f.2, 1f.6}.
#[test]
fn functions_without_access_control_reach_those_with_it_in_the_same_device() {
    let with = slot(Some(AcsFlags::RR | AcsFlags::CR));
    assert_eq!(shared_of(&with, Reachability), ["00:1f.0+00:1f.2+00:1f.6"]);
    let functions = slot(Some(AcsFlags::ISOLATION));
    assert_eq!(shared_of(&functions, Linux), ["00:1f.0+00:1f.2"]);
    let mut isolated = with;
    for function in &mut isolated[..2] {
        function.is_isolated = true;
    }
    assert!(shared_of(&isolated, Reachability).is_empty());
}

#[test]
fn root_ports_of_one_device_reach_what_is_below_each_other() {
    let mut functions = vec![
        bridge("0:0:1.0", RootPort, 1, None),
        Function {
            buses: Some(BusRange {
                secondary: 2,
                subordinate: 2,
            }),
            ..function("0:0:1.1", RootPort, ON)
        },
        function("0:1:0.0", Endpoint, None),
        function("0:2:0.0", Endpoint, None),
    ];
    let one = ["00:01.0+00:01.1+01:00.0+02:00.0"];
    assert_eq!(shared_of(&functions, Reachability), one);
    functions[0].acs = functions[1].acs;
    assert!(shared_of(&functions, Reachability).is_empty());
}

#[test]
fn a_function_beside_an_upstream_port_is_reached_from_below_it() {
    let mut functions = switch(ON, [ON, ON]);
    functions.push(function(
        "0:1:0.1",
        Endpoint,
        Some(AcsFlags::RR | AcsFlags::CR),
    ));
    let one = ["01:00.0+01:00.1+02:00.0+02:01.0+03:00.0+04:00.0"];
    assert_eq!(shared_of(&functions, Reachability), one);
    functions[1].acs = functions[6].acs;
    assert!(shared_of(&functions, Reachability).is_empty());
}

#[test]
fn a_conventional_bus_is_one_group_with_its_bridge() {
    let functions = [
        bridge("0:0:4.0", PciePciBridge, 2, None),
        function("0:1:3.0", Conventional, None),
        Function {
            buses: Some(BusRange {
                secondary: 2,
                subordinate: 2,
            }),
            ..function("0:1:5.0", FunctionKind::ConventionalBridge, None)
        },
        function("0:2:1.0", Conventional, None),
    ];
    for rule in [Reachability, Linux] {
        assert_eq!(
            shared_of(&functions, rule),
            ["00:04.0+01:03.0+01:05.0+02:01.0"]
        );
    }
}

#[test]
fn devices_that_share_a_requester_id_are_one_group() {
    let mut functions = vec![
        function("0:0:3.0", RootComplexEndpoint, None),
        function("0:0:4.0", RootComplexEndpoint, None),
        function("0:0:5.0", RootComplexEndpoint, None),
    ];
    functions[2].aliases = vec![address("0:0:3.0").requester];
    for rule in [Reachability, Linux] {
        assert_eq!(shared_of(&functions, rule), ["00:03.0+00:05.0"]);
    }
    // An ID of nobody's that two devices use.
    functions[1].aliases = vec![address("0:0:7.0").requester];
    functions[2].aliases = functions[1].aliases.clone();
    assert_eq!(shared_of(&functions, Reachability), ["00:04.0+00:05.0"]);
}

#[test]
fn who_uses_the_id_that_a_bridge_takes_is_one_with_all_below_it() {
    let mut functions = vec![
        function("0:0:3.0", RootComplexEndpoint, None),
        bridge("0:0:4.0", PciePciBridge, 1, None),
        function("0:1:3.0", Conventional, None),
    ];
    functions[0].aliases = vec![address("0:1:0.0").requester];
    let one = ["00:03.0+00:04.0+01:03.0"];
    assert_eq!(shared_of(&functions, Reachability), one);
    // Nothing is below, so nobody else uses that ID.
    functions.pop();
    assert!(shared_of(&functions, Reachability).is_empty());
}

#[test]
fn virtual_functions_go_by_their_own_access_control_or_by_their_physical_functions() {
    let mut functions = vec![
        bridge("0:0:1.0", RootPort, 2, ON),
        function("0:1:0.0", Endpoint, Some(AcsFlags::RR | AcsFlags::CR)),
        function("0:1:0.1", Endpoint, None),
        function("0:2:0.0", Endpoint, None),
    ];
    for function in &mut functions[2..] {
        function.physical = Some(address("0:1:0.0").requester);
    }
    assert!(shared_of(&functions, Reachability).is_empty());
    // One that says of itself that it leaks, on a bus of the device that no bridge leads to.
    functions[3].acs = Some(Acs {
        capable: AcsFlags::RR | AcsFlags::CR,
        enabled: AcsFlags::CR,
    });
    let one = ["01:00.0+01:00.1+02:00.0"];
    assert_eq!(shared_of(&functions, Reachability), one);
    // Nobody says anything.
    functions[1].acs = None;
    functions[3].acs = None;
    assert_eq!(shared_of(&functions, Reachability), one);
}

/// A2.4: groups are made of facts, and drivers are none.
#[test]
fn a_port_without_a_driver_leaves_the_groups_below_as_they_are() {
    // Drivers are no input. What could follow from one that fails: the port is no member, or one that is
    // behind no IOMMU.
    for (root, ports) in [(None, [ON, ON]), (ON, [None, None]), (ON, [ON, ON])] {
        let tree = tree(&switch(root, ports));
        let whole = groups(&tree, &all(&tree), Reachability).expect("all are there");
        let endpoints = [node("0:3:0.0"), node("0:4:0.0")];
        let mut members: Vec<_> = endpoints.map(by_id).to_vec();
        for translation in [None, Some(Translation::Untranslated)] {
            members.truncate(2);
            members.extend(translation.map(|translation| Member {
                node: node("0:0:1.0"),
                translation,
            }));
            let partition = groups(&tree, &members, Reachability).expect("all are there");
            let is_one = |partition: &Partition| {
                let [one, other] = endpoints.map(|node| partition.group_of(node));
                one.expect("it is a member") == other.expect("it is a member")
            };
            assert_eq!(is_one(&partition), is_one(&whole));
            assert_eq!(partition.group_of(node("0:0:1.0")), None);
        }
    }
}

#[test]
fn what_cannot_be_told_apart_is_one_group_and_what_is_no_pci_function_is_alone() {
    let tree = tree(&slot(None)[..1]);
    let alike = |node, instance| Member {
        node,
        translation: Translation::Alike { instance },
    };
    let members = [
        alike(Node::Other(1), 0),
        by_id(Node::Other(2)),
        alike(Node::Other(3), 1),
        by_id(Node::Other(4)),
        alike(node("0:0:1f.0"), 0),
    ];
    for rule in [Reachability, Linux] {
        let mut partition = groups(&tree, &members, rule).expect("all are there, once");
        assert_eq!(shared(&partition), ["00:1f.0+device 1"]);
        assert_eq!(partition.len(), 4);
        // Whoever comes joins those who are left, and nobody if all are gone.
        let group = partition.remove(node("0:0:1f.0"));
        let add = |partition: &mut Partition, number| {
            let added = partition.add(&tree, alike(Node::Other(number), 0), |_| false);
            added.expect("it can").group
        };
        assert_eq!(add(&mut partition, 5), group);
        assert_eq!(partition.remove(Node::Other(5)), group);
        assert_eq!(partition.remove(Node::Other(1)), group);
        assert_eq!(partition.len(), 3);
        assert_ne!(add(&mut partition, 6), group);
    }
}

#[test]
fn members_that_are_unknown_or_there_twice_are_refused() {
    let tree = tree(&slot(None));
    let missing = address("0:0:1f.7");
    let refused = |members: &[Member]| groups(&tree, members, Reachability).expect_err("refused");
    let unknown = by_id(Node::Pci(missing));
    assert_eq!(
        refused(&[unknown]),
        GroupsError::NoFunction { address: missing }
    );
    let twice = by_id(Node::Other(5));
    let node = twice.node;
    assert_eq!(refused(&[twice, twice]), GroupsError::Duplicate { node });
    let mut partition = groups(&tree, &[twice], Reachability).expect("once");
    assert_eq!(
        partition.add(&tree, unknown, |_| false),
        Err(AddError::NoFunction { address: missing })
    );
    let group = partition.group_of(node).expect("it is a member");
    assert_eq!(
        partition.add(&tree, twice, |_| false),
        Err(AddError::Present { node, group })
    );
}

/// The switch without B's port, and one where it is there and redirects nothing.
fn before_and_after() -> (PciTree, PciTree) {
    let after = switch(ON, [ON, None]);
    let mut before = after.clone();
    before.retain(|function| {
        !["0:2:1.0", "0:4:0.0"]
            .map(address)
            .contains(&function.address)
    });
    (tree(&before), tree(&after))
}

#[test]
fn a_device_that_would_join_two_groups_in_use_is_refused_and_changes_nothing() {
    let (before, after) = before_and_after();
    let mut partition = groups(&before, &all(&before), Reachability).expect("all are there");
    let was = partition.clone();
    let ids = ["0:1:0.0", "0:2:0.0", "0:3:0.0"].map(|text| partition.group_of(node(text)));
    let [upstream, _, endpoint] = ids.map(|id| id.expect("it is a member"));
    let port = by_id(node("0:2:1.0"));
    let is_used = |id| id == upstream || id == endpoint;
    let refused = partition.add(&after, port, is_used);
    let joins = AddError::Joins {
        node: port.node,
        first: upstream,
        second: endpoint,
    };
    assert_eq!(refused, Err(joins));
    assert_eq!(partition, was);
    // So it is if the port has no IOMMU itself.
    let silent = Member {
        translation: Translation::Untranslated,
        ..port
    };
    assert_eq!(partition.add(&after, silent, is_used), Err(joins));
    assert_eq!(partition, was);
}

#[test]
fn groups_become_one_if_one_of_them_at_most_is_in_use() {
    let (before, after) = before_and_after();
    let whole = groups(&after, &all(&after), Reachability).expect("all are there");
    for used in [None, Some("0:3:0.0")] {
        let mut partition = groups(&before, &all(&before), Reachability).expect("all are there");
        let used = used.map(|text| partition.group_of(node(text)).expect("it is a member"));
        let lowest = partition.group_of(node("0:1:0.0"));
        let port = by_id(node("0:2:1.0"));
        let added = partition.add(&after, port, |id| Some(id) == used);
        let added = added.expect("nothing is in the way");
        assert_eq!(added.group, used.or(lowest));
        assert_eq!(added.merges.len(), 2);
        for merge in &added.merges {
            assert_eq!(Some(merge.into), added.group);
            assert!(partition.members(merge.from).is_empty());
        }
        let endpoint = by_id(node("0:4:0.0"));
        let added = partition
            .add(&after, endpoint, |_| true)
            .expect("it joins one group");
        assert_eq!((added.group, added.merges.len()), (used.or(lowest), 0));
        assert_eq!(partition, whole);
    }
}

/// A2.3.
#[test]
fn a_device_that_goes_and_comes_back_is_where_it_was() {
    for (root, ports) in [(None, [ON, ON]), (ON, [None, None]), (ON, [ON, ON])] {
        let tree = tree(&switch(root, ports));
        let members = all(&tree);
        let whole = groups(&tree, &members, Reachability).expect("all are there");
        let mut partition = whole.clone();
        for member in &members {
            let was = whole.group_of(member.node);
            assert_eq!(partition.remove(member.node), was);
            assert_eq!(partition.remove(member.node), None);
            let added = partition.add(&tree, *member, |_| true);
            let added = added.expect("its group is one");
            // A group that had it alone was gone, and has another number now.
            let is_alone = was.is_some_and(|was| whole.members(was).len() == 1);
            assert_eq!(added.group == was, !is_alone);
            assert_eq!(partition, whole);
        }
    }
}

#[test]
fn who_goes_parts_nobody() {
    // The upstream port's neighbour connects all below it with nothing but itself.
    let mut functions = switch(ON, [ON, ON]);
    functions.push(function("0:1:0.1", Endpoint, None));
    let (after, before) = (tree(&functions[..6]), tree(&functions));
    let mut partition = groups(&before, &all(&before), Reachability).expect("all are there");
    partition.remove(node("0:1:0.1"));
    assert_eq!(shared(&partition), [SWITCH]);
    let endpoint = by_id(node("0:3:0.0"));
    partition.remove(endpoint.node);
    let added = partition
        .add(&after, endpoint, |_| true)
        .expect("it is in nobody's way");
    assert!(added.merges.is_empty(), "what is parted now can come alone");
    assert_eq!(partition.group_of(endpoint.node), added.group);
}
