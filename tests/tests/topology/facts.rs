//! Facts of emulated machines, as their fixtures have them, and the tree that they are.

use iopt::topology::{
    Acs, AcsFlags, BusRange, Function, FunctionKind, PciAddress, PciTree, RootBus,
};
use serde_json::Value;

pub(crate) fn list(value: &Value) -> &[Value] {
    value.as_array().expect("the fixture has a list there")
}

fn text(value: &Value) -> &str {
    value.as_str().expect("the fixture has a text there")
}

fn byte(value: &Value) -> u8 {
    let number = value.as_u64().expect("the fixture has a number there");
    u8::try_from(number).expect("it is the number of a bus")
}

pub(crate) fn address(value: &Value) -> PciAddress {
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

pub(crate) fn tree(machine: &Value) -> PciTree {
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
