//! Emulated machines: what Linux made of them, and what a closure over their facts gives.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use iopt::topology::{
    Acs, AcsFlags, BusRange, Function, FunctionKind, Member, Node, Partition, PciAddress, PciTree,
    RootBus, Rule, Translation, groups,
};
use serde_json::Value;

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

fn list(value: &Value) -> &[Value] {
    value.as_array().expect("the fixture has a list there")
}

fn text(value: &Value) -> &str {
    value.as_str().expect("the fixture has a text there")
}

fn byte(value: &Value) -> u8 {
    let number = value.as_u64().expect("the fixture has a number there");
    u8::try_from(number).expect("it is the number of a bus")
}

fn address(value: &Value) -> PciAddress {
    text(value)
        .parse()
        .expect("the fixture has an address there")
}

fn flags(value: &Value) -> AcsFlags {
    let flags = list(value).iter().map(text).map(AcsFlags::from_name);
    flags
        .map(|flag| flag.expect("the flag has a name"))
        .fold(AcsFlags::NONE, |all, flag| all | flag)
}

fn function(device: &Value) -> Function {
    let kind = match text(&device["type"]) {
        "root-port" => FunctionKind::RootPort,
        "pcie-pci-bridge" => FunctionKind::PciePciBridge,
        "endpoint" => FunctionKind::Endpoint,
        "rc-endpoint" => FunctionKind::RootComplexEndpoint,
        "conventional" => FunctionKind::Conventional,
        other => panic!("the fixtures have no {other}"),
    };
    let mut function = Function::new(address(&device["bdf"]), kind);
    function.is_multifunction = device["multifunction"].as_bool().expect("it is there");
    if let Some([secondary, subordinate]) = device["secondary_bus"].as_array().map(Vec::as_slice) {
        function.buses = Some(BusRange {
            secondary: byte(secondary),
            subordinate: byte(subordinate),
        });
    }
    // In these machines only functions that are capable of something have the capability.
    let capable = flags(&device["acs_capable"]);
    let enabled = flags(&device["acs_enabled"]);
    function.acs = (capable != AcsFlags::NONE).then_some(Acs { capable, enabled });
    function
}

fn tree(machine: &Value) -> PciTree {
    let roots: Vec<_> = list(&machine["root_buses"])
        .iter()
        .map(|bus| RootBus {
            segment: 0,
            bus: byte(bus),
        })
        .collect();
    let functions = list(&machine["devices"]).iter().map(function);
    PciTree::new(&roots, functions).expect("the machine is a tree")
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
