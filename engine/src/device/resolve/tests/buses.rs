//! A1.10: what goes into an ID map by bus, and what comes out of it.

use super::tables::{blob, of_tree, smmu};
use super::*;
use crate::firmware::acpi;
use crate::firmware::acpi::testing::Writer as Acpi;

/// Finds what firmware names.
fn node(description: &Description, name: &str) -> NodeIndex {
    let mut nodes = description.nodes.iter();
    let found = nodes.position(|node| node.name.contains(name));
    NodeIndex(found.unwrap_or_else(|| panic!("no {name}: {:?}", description.nodes)))
}

#[test]
fn each_bus_of_a_device_tree_goes_through_its_own_map() {
    let writer = smmu(blob(), 1, 1).end();
    // Named devices have their IDs from their own specifiers.
    let writer = ["arm,pl330\0arm,primecell", "acme,nic"]
        .iter()
        .zip([7, 9])
        .fold(writer, |writer, (compatible, id)| {
            let name = compatible.split(',').nth(1).expect("it has a vendor");
            let name = name.split('\0').next().expect("it has a name");
            let writer = writer.begin(name).text("compatible", compatible);
            writer.cells("iommus", &[1, id]).end()
        });
    // Devices on a bus have them from the map of its root, by their IDs there.
    let buses = [
        ("fsl-mc", "fsl,qoriq-mc", 0x1000),
        ("cdx", "xlnx,versal-net-cdx", 0x2000),
        ("host1x", "nvidia,tegra234-host1x", 0x3000),
    ];
    let writer = buses
        .iter()
        .fold(writer, |writer, (name, compatible, base)| {
            let writer = writer.begin(name).text("compatible", compatible);
            writer.cells("iommu-map", &[0x20, 1, *base, 0x10]).end()
        });
    // Of its ICIDs this one looks at four bits.
    let writer = writer.begin("shared-mc").text("compatible", "fsl,qoriq-mc");
    let writer = writer.cells("iommu-map", &[0, 1, 0x4000, 0x10]);
    let writer = writer.cells("iommu-map-mask", &[0xf]).end();
    let writer = writer.begin("pci").text("device_type", "pci");
    let writer = writer.cells("iommu-map", &[0, 1, 0x5_0000, 0x1_0000]).end();
    let description = of_tree(writer);

    let bus = |name| node(&description, name);
    let inputs = [
        (bus("fsl-mc"), 0x23),
        (bus("cdx"), 0x2f),
        (bus("host1x"), 0x20),
        (bus("cdx"), 0x30),
        (bus("shared-mc"), 0x12),
        (bus("shared-mc"), 0x32),
    ];
    let besides = Besides {
        inputs: inputs.to_vec(),
        ..Besides::default()
    };
    let resolution = resolve_with(&description, &besides).expect("it can be resolved");
    let streams = |device| resolution.streams(device);
    for (name, id) in [("pl330", 7), ("nic", 9)] {
        let device = DeviceAddress::Node(bus(name));
        assert_eq!(streams(device), [(0, vec![id])], "{name}");
    }
    let at = |(node, id)| DeviceAddress::Input { node, id };
    let expected = [0x1003, 0x200f, 0x3000];
    for (input, id) in inputs.into_iter().zip(expected) {
        assert_eq!(streams(at(input)), [(0, vec![id])], "{input:?}");
    }
    assert_eq!(
        resolution.why_not(at(inputs[3])),
        Some(Untranslated::Unsaid)
    );
    // The function has a second requester ID.
    let function = device("0000:01:00.0");
    assert_eq!(streams(function), [(0, vec![0x5_0100, 0x5_0101])]);
    let machine = Machine::new(resolution.parts.clone()).expect("it is a machine");
    let group = |device| {
        machine
            .group(device)
            .expect("it is there")
            .collect::<Vec<_>>()
    };
    let shared = [at(inputs[4]), at(inputs[5])];
    assert_eq!(streams(shared[0]), [(0, vec![0x4002])]);
    assert_eq!(group(shared[1]), shared);
    assert_eq!(group(at(inputs[0])), [at(inputs[0])]);
}

/// An SMMUv3, a named component with an ID of its own, one with a map for what is behind it, and a root complex.
fn iort() -> Vec<u8> {
    let table = Acpi::table(*b"IORT", 6).u32(4).u32(48).u32(0);
    let header = |table: Acpi, kind: u8, len: u16, revision: u8, offset: u32| {
        let maps = u32::from(kind != 4);
        let table = table.u8(kind).u16(len).u8(revision).u32(0);
        table.u32(maps).u32(offset)
    };
    let map = |table: Acpi, [first, count, output, flags]: [u32; 4]| {
        let table = table.u32(first).u32(count - 1).u32(output);
        table.u32(48).u32(flags)
    };
    // At 48.
    let table = header(table, 4, 68, 5, 68).u64(0x1000_0000).zeroes(44);
    let table = header(table, 1, 56, 4, 36).zeroes(13);
    let table = map(table.bytes(b"NIC").zeroes(4), [0, 1, 0x77, 1]);
    let table = header(table, 1, 56, 4, 36).zeroes(13);
    let table = map(table.bytes(b"MC0").zeroes(4), [0x20, 0x10, 0x1000, 0]);
    let table = header(table, 2, 56, 4, 36).zeroes(20);
    map(table, [0, 0x1_0000, 0x5_0000, 0]).finish()
}

#[test]
fn each_bus_of_an_iort_goes_through_its_own_map() {
    let description = acpi::parse(&[&iort()]).expect("it is right");
    let bus = node(&description, "MC0");
    let inputs = [0x2a, 0x30];
    let besides = Besides {
        inputs: inputs.map(|id| (bus, id)).to_vec(),
        ..Besides::default()
    };
    let resolution = resolve_with(&description, &besides).expect("it can be resolved");
    let named = DeviceAddress::Node(node(&description, "NIC"));
    assert_eq!(resolution.streams(named), [(0, vec![0x77])]);
    let behind = |id| DeviceAddress::Input { node: bus, id };
    assert_eq!(resolution.streams(behind(0x2a)), [(0, vec![0x100a])]);
    let unsaid = Some(Untranslated::Unsaid);
    assert_eq!(resolution.why_not(behind(0x30)), unsaid);
    let function = device("0000:01:00.0");
    let ids = vec![0x5_0100, 0x5_0101];
    assert_eq!(resolution.streams(function), [(0, ids)]);
}
