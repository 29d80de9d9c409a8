//! Emulated machines: what Linux made of them, and what a closure over their facts gives.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use iopt::topology::{Member, Node, Partition, Rule, Translation, groups};
use serde_json::Value;

use crate::facts::{address, list, tree};

type Groups = BTreeSet<Vec<Node>>;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/firmware")
}

/// Returns the name and the facts of each machine that has any.
fn machines() -> Vec<(String, Value)> {
    let mut machines = Vec::new();
    for entry in fs::read_dir(folder()).expect("the fixtures are there") {
        let path = entry.expect("the folder is readable").path();
        let Ok(text) = fs::read_to_string(path.join("pci.json")) else {
            continue;
        };
        let value = serde_json::from_str(&text).expect("the fixture is JSON");
        let name = path.file_name().expect("it is a folder");
        machines.push((name.to_string_lossy().into_owned(), value));
    }
    machines.sort_by(|one, other| one.0.cmp(&other.0));
    machines
}

fn listed(groups: &Value) -> Groups {
    let nodes = |group: &Value| {
        list(group)
            .iter()
            .map(|node| Node::Pci(address(node)))
            .collect()
    };
    list(groups).iter().map(nodes).collect()
}

fn found(partition: &Partition) -> Groups {
    partition
        .groups()
        .map(|(_, nodes)| nodes.to_vec())
        .collect()
}

fn members(groups: &Groups) -> Vec<Member> {
    let member = |node: &Node| Member {
        node: *node,
        translation: Translation::ById,
    };
    groups.iter().flatten().map(member).collect()
}

#[test]
fn machines_have_the_groups_that_linux_gave_them() {
    let mut count = 0;
    for (name, machine) in machines() {
        let expected = listed(&machine["expected_groups"]);
        let partition = groups(&tree(&machine), &members(&expected), Rule::Linux);
        assert_eq!(
            found(&partition.expect("all are there")),
            expected,
            "{name}"
        );
        count += 1;
    }
    assert_eq!(count, 12, "machines with PCI facts");
}

#[test]
fn machines_have_the_groups_of_what_reaches_what() {
    let mut differing = Vec::new();
    for (name, machine) in machines() {
        let reachability = machine.get("reachability_groups");
        let expected = listed(reachability.unwrap_or(&machine["expected_groups"]));
        let tree = tree(&machine);
        let mut members = members(&expected);
        let partition = groups(&tree, &members, Rule::Reachability);
        assert_eq!(
            found(&partition.expect("all are there")),
            expected,
            "{name}"
        );
        if reachability.is_some() {
            differing.push(name.clone());
        }

        // Who has no group is in nobody's, whether it is mentioned or not.
        for left_out in list(&machine["ungrouped"]) {
            let node = Node::Pci(address(&left_out["bdf"]));
            if members.iter().all(|member| member.node != node) {
                members.push(Member {
                    node,
                    translation: Translation::Untranslated,
                });
            }
        }
        assert_eq!(members.len(), tree.functions().len(), "{name}");
        let partition = groups(&tree, &members, Rule::Reachability);
        assert_eq!(
            found(&partition.expect("all are there")),
            expected,
            "{name}"
        );
    }
    assert_eq!(differing, ["arm-acpi-virtio", "arm-dt-virtio", "x86-viot"]);
}
