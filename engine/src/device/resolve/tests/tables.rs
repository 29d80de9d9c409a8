//! Machines resolved from firmware's tables.

use super::*;
use crate::firmware::acpi::testing::Writer as Acpi;
use crate::firmware::fdt::writer::Writer as Blob;
use crate::firmware::{acpi, device_tree};

/// A tree with one cell for addresses and sizes.
fn blob() -> Blob {
    Blob::new()
        .cells("#address-cells", &[1])
        .cells("#size-cells", &[1])
}

/// An SMMU with a phandle, for more properties.
fn smmu(writer: Blob, phandle: u32, cells: u32) -> Blob {
    writer
        .begin("iommu")
        .text("compatible", "arm,smmu-v3")
        .cells("reg", &[0x1000 * phandle, 0x1000])
        .cells("phandle", &[phandle])
        .cells("#iommu-cells", &[cells])
}

fn of_tree(writer: Blob) -> Description {
    device_tree::parse(&writer.finish()).expect("it is sound")
}

fn node(number: usize) -> DeviceAddress {
    DeviceAddress::Node(NodeIndex(number))
}

#[test]
fn an_smmu_of_a_device_tree_is_not_behind_itself_but_behind_another_it_is() {
    let writer = blob().begin("nic").cells("iommus", &[2, 7]).end();
    let writer = smmu(writer, 1, 1).cells("iommus", &[1, 5]).end();
    let writer = smmu(writer, 2, 1).cells("iommus", &[1, 6]).end();
    let resolution = resolve(&of_tree(writer));
    let [nic, one, two] = [0, 1, 2].map(node);
    assert_eq!(resolution.streams(one), [(0, vec![5])]);
    let itself = Untranslated::Itself(InstanceIndex(0));
    assert_eq!(resolution.why_not(one), Some(itself));
    assert_eq!(resolution.why_not(two), None);
    let machine = Machine::new(resolution.parts).expect("it is a machine");
    // The second SMMU is bound before what it serves, and after the one that serves it.
    let order = machine.binding_order();
    let place = |device| order.iter().position(|other| *other == device);
    assert!(place(one) < place(two) && place(two) < place(nic));
}

/// A VIOT of virtio-iommus and endpoints in memory: their IDs, addresses and the offsets of whom they are
/// behind.
fn viot(iommus: &[u64], endpoints: &[(u32, u64, u16)]) -> Description {
    let count = iommus.len() + endpoints.len();
    let writer = Acpi::table(*b"VIOT", 0).u16(count as u16).u16(48).zeroes(8);
    let writer = iommus.iter().fold(writer, |writer, base| {
        writer.u8(4).u8(0).u16(16).zeroes(4).u64(*base)
    });
    let endpoints = endpoints.iter();
    let writer = endpoints.fold(writer, |writer, (id, base, output)| {
        let writer = writer.u8(2).u8(0).u16(24).u32(*id).u64(*base);
        writer.u16(*output).zeroes(6)
    });
    acpi::parse(&[&writer.finish()]).expect("it is right")
}

#[test]
fn a_virtio_iommu_in_memory_is_not_behind_itself_but_behind_another_it_is() {
    // Of two endpoints at one address the first one counts.
    let endpoints = [
        (1, 0x1000, 48),
        (2, 0x2000, 48),
        (3, 0x3000, 64),
        (4, 0x1000, 64),
    ];
    let resolution = resolve(&viot(&[0x1000, 0x2000], &endpoints));
    let itself = Untranslated::Itself(InstanceIndex(0));
    assert_eq!(resolution.why_not(node(0)), Some(itself));
    assert_eq!(resolution.streams(node(0)), [(0, vec![1])]);
    assert_eq!(resolution.why_not(node(1)), None);
    assert_eq!(resolution.streams(node(2)), [(1, vec![3])]);
    assert_eq!(resolution.parts.instances[1].hardware, Some(node(1)));
    assert_eq!(resolution.parts.devices.len(), tree().functions().len() + 3);
}
