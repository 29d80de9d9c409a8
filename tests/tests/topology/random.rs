//! Groups of random machines against packets that were sent through them, in any order of anything.

use std::collections::BTreeSet;

use iopt::topology::{Function, Member, Node, Partition, PciTree, Rule, Translation, groups};

use crate::machine::{Machine, Random};
use crate::packets;

const COUNT: usize = if cfg!(miri) { 5 } else { 300 };

fn each_machine(mut check: impl FnMut(&Machine, &PciTree, &mut Random)) {
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    for _ in 0..COUNT {
        let machine = Machine::random(&mut random);
        let tree = PciTree::new(&machine.roots, functions(&machine)).expect("it is a tree");
        check(&machine, &tree, &mut random);
    }
}

fn functions(machine: &Machine) -> Vec<Function> {
    let parts = machine.parts.iter();
    parts.map(|part| part.function.clone()).collect()
}

fn member(function: &Function) -> Member {
    Member {
        node: Node::Pci(function.address),
        translation: Translation::ById,
    }
}

fn found(partition: &Partition) -> BTreeSet<Vec<Node>> {
    partition
        .groups()
        .map(|(_, nodes)| nodes.to_vec())
        .collect()
}

fn partition(tree: &PciTree, members: &[Member], rule: Rule) -> Partition {
    groups(tree, members, rule).expect("all are there, once")
}

/// Returns the groups by the packets, of the functions that `is_member` names by their numbers.
fn expected(machine: &Machine, is_member: impl Fn(usize) -> bool) -> BTreeSet<Vec<Node>> {
    let relation = packets::relation(machine);
    let group = |row: &Vec<bool>| {
        let members = (0..row.len()).filter(|part| row[*part] && is_member(*part));
        let node = |part: usize| Node::Pci(machine.parts[part].function.address);
        let mut nodes: Vec<_> = members.map(node).collect();
        nodes.sort_unstable();
        nodes
    };
    relation
        .iter()
        .map(group)
        .filter(|group| !group.is_empty())
        .collect()
}

/// A2.1: what packets reach is the oracle.
#[test]
fn groups_are_what_packets_reach_in_every_order_of_functions_and_members() {
    let (mut singletons, mut shared) = (0, 0);
    each_machine(|machine, tree, random| {
        let expected = expected(machine, |_| true);
        let mut functions = functions(machine);
        let mut members: Vec<_> = functions.iter().map(member).collect();
        let first = partition(tree, &members, Rule::Reachability);
        assert_eq!(found(&first), expected, "{machine:#x?}");
        singletons += expected.iter().filter(|group| group.len() == 1).count();
        shared += expected.iter().filter(|group| group.len() > 2).count();

        random.shuffle(&mut functions);
        random.shuffle(&mut members);
        let other = PciTree::new(&machine.roots, functions).expect("it is a tree");
        assert_eq!(&other, tree);
        assert_eq!(partition(&other, &members, Rule::Reachability), first);
        let linux = partition(tree, &members, Rule::Linux);
        random.shuffle(&mut members);
        assert_eq!(partition(tree, &members, Rule::Linux), linux);
    });
    // Machines that are all one group, or all singletons, would show little.
    assert!(
        singletons > COUNT && shared > COUNT / 2,
        "{singletons} {shared}"
    );
}

#[test]
fn who_has_no_group_still_connects_those_that_have() {
    each_machine(|machine, tree, random| {
        let is_member: Vec<_> = machine.parts.iter().map(|_| random.below(3) != 0).collect();
        let expected = expected(machine, |part| is_member[part]);
        let mut members = Vec::new();
        for (part, is_member) in machine.parts.iter().zip(&is_member) {
            if *is_member || random.below(2) == 0 {
                let mut member = member(&part.function);
                if !is_member {
                    member.translation = Translation::Untranslated;
                }
                members.push(member);
            }
        }
        let partition = partition(tree, &members, Rule::Reachability);
        assert_eq!(found(&partition), expected, "{machine:#x?}");
    });
}

#[test]
fn ids_under_which_packets_arrive_are_the_ones_that_the_tree_says() {
    each_machine(|machine, tree, _| {
        for (index, part) in machine.parts.iter().enumerate() {
            let address = part.function.address;
            let requesters = tree.requesters(address).expect("it is there");
            assert_eq!(requesters[0], address.requester);
            let ids: BTreeSet<_> = requesters
                .iter()
                .map(|requester| (address.segment, requester.get()))
                .collect();
            assert_eq!(ids.len(), requesters.len(), "one is there twice");
            assert_eq!(ids, packets::requesters(machine, index), "{machine:#x?}");
        }
    });
}

/// A2.1: in any order.
#[test]
fn devices_that_are_added_in_any_order_end_up_in_the_same_groups() {
    each_machine(|machine, tree, random| {
        let mut parts = functions(machine);
        random.shuffle(&mut parts);
        let members: Vec<_> = parts.iter().map(member).collect();
        let whole = partition(tree, &members, Rule::Reachability);
        // The tree is known from the start: each joins who is there, and no two groups ever meet.
        let mut one_by_one = partition(tree, &[], Rule::Reachability);
        for member in &members {
            let added = one_by_one
                .add(tree, *member, |_| true)
                .expect("its group is one");
            assert!(added.merges.is_empty());
        }
        assert_eq!(one_by_one, whole);

        // The tree grows with them: groups meet, and become one.
        let mut here = Vec::new();
        let mut grown = partition(tree, &[], Rule::Reachability);
        while !parts.is_empty() {
            let place = parts.iter().position(|part| can_come(tree, &here, part));
            let part = parts.remove(place.expect("a bridge on a root bus can always come"));
            here.push(part.clone());
            let tree = PciTree::new(&machine.roots, here.clone()).expect("it is a tree");
            let added = grown.add(&tree, member(&part), |_| false);
            let added = added.expect("no group is in use");
            assert_eq!(grown.group_of(Node::Pci(part.address)), added.group);
        }
        assert_eq!(grown, whole, "{machine:#x?}");
    });
}

/// Returns `true` if a function can come to the machine: what is above it, and its physical function, are there.
fn can_come(tree: &PciTree, here: &[Function], part: &Function) -> bool {
    let is_here = |address| here.iter().any(|other| other.address == address);
    let parent = tree.parent(part.address);
    let physical = part.physical.map(|requester| {
        let mut address = part.address;
        address.requester = requester;
        address
    });
    parent.is_none_or(|parent| is_here(parent.address)) && physical.is_none_or(is_here)
}

/// A2.3.
#[test]
fn devices_that_go_and_come_back_keep_their_company() {
    each_machine(|machine, tree, random| {
        let members: Vec<_> = functions(machine).iter().map(member).collect();
        let whole = partition(tree, &members, Rule::Reachability);
        let mut partition = whole.clone();
        let mut gone: Vec<_> = members
            .into_iter()
            .filter(|_| random.below(2) == 0)
            .collect();
        for member in &gone {
            assert!(partition.remove(member.node).is_some());
        }
        random.shuffle(&mut gone);
        for member in gone {
            partition
                .add(tree, member, |_| true)
                .expect("its group is one");
        }
        assert_eq!(partition, whole);
    });
}
