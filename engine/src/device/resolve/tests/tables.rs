//! Machines resolved from firmware's tables.

use super::*;
use crate::firmware::acpi::testing::Writer as Acpi;
use crate::firmware::fdt::writer::Writer as Blob;
use crate::firmware::{acpi, device_tree};

/// A tree with one cell for addresses and sizes.
pub(super) fn blob() -> Blob {
    Blob::new()
        .cells("#address-cells", &[1])
        .cells("#size-cells", &[1])
}

/// An SMMU with a phandle, for more properties.
pub(super) fn smmu(writer: Blob, phandle: u32, cells: u32) -> Blob {
    writer
        .begin("iommu")
        .text("compatible", "arm,smmu-v3")
        .cells("reg", &[0x1000 * phandle, 0x1000])
        .cells("phandle", &[phandle])
        .cells("#iommu-cells", &[cells])
}

/// An SMMU before version 3, for more properties.
fn old_smmu(writer: Blob, phandle: u32, cells: u32) -> Blob {
    writer
        .begin("iommu")
        .text("compatible", "qcom,smmu-v2")
        .cells("phandle", &[phandle])
        .cells("#iommu-cells", &[cells])
}

pub(super) fn of_tree(writer: Blob) -> Description {
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

#[test]
fn devices_of_which_an_old_smmu_may_see_one_id_are_one_group() {
    let writer = old_smmu(blob(), 1, 2).end();
    let ids: [&[u32]; 5] = [
        &[1, 0x1a1, 0x1],
        &[1, 0x1a1, 0],
        &[1, 0x1a2, 0],
        &[1, 0x400, 0x3ff, 1, 0x9a2, 0x800],
        &[1, 0x800, 0],
    ];
    let writer = ids.iter().fold(writer, |writer, iommus| {
        writer.begin("nic").cells("iommus", iommus).end()
    });
    // A map of one cell, as Linux long read it, leads to the same streams.
    let writer = writer.begin("pci").text("device_type", "pci");
    let writer = writer.cells("iommu-map", &[0, 1, 0x7f0, 0x18]).end();
    let resolution = resolve(&of_tree(writer));
    let streams = |number| resolution.streams(node(number));
    assert_eq!(streams(0), [(0, vec![0x0001_01a0])]);
    assert_eq!(streams(1), [(0, vec![0x1a1])]);
    assert_eq!(streams(3), [(0, vec![0x03ff_0400, 0x0800_01a2])]);
    let machine = Machine::new(resolution.parts).expect("it is a machine");
    let group = |device| {
        machine
            .group(device)
            .expect("it is there")
            .collect::<Vec<_>>()
    };
    assert_eq!(group(node(0)), [node(0), node(1)]);
    // The first function of the third device is seen under one of the fourth device's IDs.
    let function = device("0000:00:01.0");
    assert_eq!(
        machine.device(function).expect("it is there").streams[0].ids,
        [0x7f8]
    );
    assert_eq!(group(node(2)), [function, node(2), node(3)]);
    assert_eq!(group(node(4)).len(), 2);
}

#[test]
fn an_old_smmu_with_a_mask_of_its_own_uses_it_for_all_ids() {
    let writer = old_smmu(blob(), 1, 1)
        .cells("stream-match-mask", &[0x7f80])
        .end();
    let writer = writer.begin("nic").cells("iommus", &[1, 0x85]).end();
    let writer = writer.begin("nic").cells("iommus", &[1, 0x105]).end();
    let writer = writer.begin("nic").cells("iommus", &[1, 0x106]).end();
    let resolution = resolve(&of_tree(writer));
    assert_eq!(resolution.streams(node(0)), [(0, vec![0x7f80_0005])]);
    assert_eq!(resolution.streams(node(1)), [(0, vec![0x7f80_0005])]);
    let group = |number| resolution.of(node(number)).group;
    assert_eq!(group(0), group(1));
    assert_ne!(group(0), group(2));
}

#[test]
fn an_id_that_an_old_smmu_cannot_see_is_no_id() {
    for iommus in [&[1, 0x1_0000, 0][..], &[1, 5, 0x1_0000]] {
        let writer = old_smmu(blob(), 1, 2).end();
        let writer = writer.begin("nic").cells("iommus", iommus).end();
        let resolution = resolve(&of_tree(writer));
        assert_eq!(
            resolution.why_not(node(0)),
            Some(Untranslated::Unreadable(0))
        );
    }
    let writer = old_smmu(blob(), 1, 1).end();
    let writer = writer.begin("pci").text("device_type", "pci");
    let writer = writer.cells("iommu-map", &[0, 1, 0xfff0, 0x20]).end();
    let why = resolve(&of_tree(writer)).why_not(device("0000:00:01.0"));
    assert_eq!(why, Some(Untranslated::Unreadable(0)));
    // Tables say as they like; there is no such ID.
    let rules = [sentence(
        requesters(0, 0xffff),
        Some(0),
        Output::Offset(0x1_0000 - 0x18),
    )];
    let mut description = described(1, rules);
    description.instances[0].architecture = Architecture::Smmu;
    let resolution = resolve(&description);
    assert_eq!(
        resolution.streams(device("0000:00:02.0")),
        [(0, vec![0xfff8])]
    );
    let why = resolution.why_not(device("0000:00:03.0"));
    assert_eq!(why, Some(Untranslated::Nothing(0)));
}

#[test]
fn an_amd_iommu_may_see_a_function_under_its_alias_and_its_own_id() {
    // The range 0x100 to 0x1ff with the alias 0xa0, and a device of its own ID there.
    let block = Acpi::default().u8(0x10).u8(0).u16(40).u16(2).u16(0x40);
    let block = block.u64(0xfeb8_0000).u16(0).u16(0).u32(0);
    let block = block.bytes(&[0x43, 0, 1, 0, 0, 0xa0, 0, 0, 4, 0xff, 1, 0]);
    let block = block.bytes(&[2, 0xa0, 0, 0]);
    let writer = Acpi::table(*b"IVRS", 2).u32(0).zeroes(8);
    let table = writer.bytes(&block.part()).finish();
    let description = acpi::parse(&[&table]).expect("it is right");
    let resolution = resolve(&description);
    let streams = resolution.streams(device("0000:01:00.0"));
    assert_eq!(streams, [(0, vec![0xa0, 0x100, 0x101])]);
    assert_eq!(
        resolution.streams(device("0000:01:10.0")),
        [(0, vec![0xa0, 0x180])]
    );
    let machine = Machine::new(resolution.parts).expect("it is a machine");
    let group = machine.group(device("0000:01:10.0")).expect("it is there");
    let expected = ["0000:01:00.0", "0000:01:10.0"].map(device);
    assert_eq!(group.collect::<Vec<_>>(), expected);
}

#[test]
fn what_drivers_want_to_know_of_a_device_comes_along() {
    let writer = smmu(blob(), 1, 1).end();
    let writer = writer.begin("pci").text("device_type", "pci");
    let writer = writer
        .bytes("ats-supported", &[])
        .bytes("dma-coherent", &[]);
    let writer = writer.cells("iommu-map", &[0, 1, 0, 0x1_0000]).end();
    let nic = |writer: Blob| writer.begin("nic").cells("iommus", &[1, 5]);
    let writer = nic(writer).cells("pasid-num-bits", &[8]).end();
    let writer = nic(writer).cells("pasid-num-bits", &[300]).end();
    let writer = nic(writer).bytes("dma-noncoherent", &[]).end();
    let writer = nic(writer).cells("pasid-num-bits", &[8, 8]).end();
    let description = of_tree(writer);
    assert_eq!(description.flaws.len(), 1);
    assert_eq!(description.flaws[0].topic, Topic::Pasids);
    assert_eq!(description.pasid_bits(Who::Node(NodeIndex(0))), 8);
    let resolution = resolve(&description);
    let facts = |address| {
        let device = resolution.of(address);
        (device.pasid_bits, device.is_coherent, device.device_tlb)
    };
    let unsaid = DeviceTlb::Unsaid;
    assert_eq!(facts(node(0)), (8, None, unsaid));
    assert_eq!(facts(node(1)), (20, None, unsaid));
    assert_eq!(facts(node(2)), (0, Some(false), unsaid));
    assert_eq!(facts(node(3)), (0, None, unsaid));
    let function = facts(device("0000:00:03.0"));
    assert_eq!(function, (0, Some(true), DeviceTlb::Allowed));
}
