//! Hand-made tables: endpoints, the virtio-iommu's own function, what is refused.

use alloc::vec::Vec;

use super::*;
use crate::firmware::acpi::testing::{Writer, fault, seal};
use crate::firmware::acpi::viot::describe::SEGMENTS;
use crate::firmware::{
    Architecture, Description, InstanceIndex, Location, NodeIndex, Output, Rule, Subject,
};

const WHAT: [u8; 4] = *b"VIOT";

fn table(nodes: &[Writer]) -> Vec<u8> {
    let count = nodes.len() as u16;
    let writer = Writer::table(WHAT, 0).u16(count).u16(48).zeroes(8);
    let nodes = nodes.iter().map(|node| node.clone().part());
    nodes
        .fold(writer, |writer, node| writer.bytes(&node))
        .finish()
}

fn node(kind: u8, len: u16) -> Writer {
    Writer::default().u8(kind).u8(0).u16(len)
}

/// 16 bytes.
fn iommu_pci(segment: u16, requester: u16) -> Writer {
    node(3, 16).u16(segment).u16(requester).zeroes(8)
}

/// 16 bytes.
fn iommu_mmio(base: u64) -> Writer {
    node(4, 16).zeroes(4).u64(base)
}

/// 24 bytes.
fn range(endpoint: u32, segments: (u16, u16), functions: (u16, u16), output: u16) -> Writer {
    let writer = node(1, 24).u32(endpoint).u16(segments.0).u16(segments.1);
    writer
        .u16(functions.0)
        .u16(functions.1)
        .u16(output)
        .zeroes(6)
}

/// 24 bytes.
fn mmio(endpoint: u32, base: u64, output: u16) -> Writer {
    node(2, 24).u32(endpoint).u64(base).u16(output).zeroes(6)
}

fn describe(nodes: &[Writer]) -> Result<Description, AcpiError> {
    let mut description = Description::default();
    Table::parse(&table(nodes))?.describe(&mut description)?;
    Ok(description)
}

fn rule(segment: u16, first: u16, last: u16, instance: usize, endpoint: u32) -> Rule {
    Rule {
        subject: Subject::Requesters {
            segment,
            mask: 0xffff,
            first: RequesterId::new(first),
            last: RequesterId::new(last),
        },
        instance: Some(InstanceIndex(instance)),
        output: Output::Offset(endpoint),
        amd_settings: 0,
    }
}

#[test]
fn an_endpoint_counts_from_the_first_function_and_a_segment_is_65536_of_them() {
    let nodes = [
        iommu_mmio(0x1000_0000),
        range(0x1000, (2, 3), (0x100, 0x1ff), 48),
        mmio(0x7_0000, 0xa00_0000, 48),
    ];
    let description = describe(&nodes).expect("it is right");
    let instance = &description.instances[0];
    assert_eq!(instance.architecture, Architecture::Virtio);
    let (base, len) = (0x1000_0000, None);
    assert_eq!(instance.location, Location::Memory { base, len });
    assert_eq!(description.nodes[0].name, "memory at 0xa000000");
    assert_eq!(
        description.rules,
        [
            rule(2, 0x100, 0x1ff, 0, 0x1000),
            rule(3, 0x100, 0x1ff, 0, 0x1_1000),
            Rule {
                subject: Subject::Node(NodeIndex(0)),
                instance: Some(InstanceIndex(0)),
                output: Output::Fixed(0x7_0000),
                amd_settings: 0,
            },
        ]
    );
}

#[test]
fn a_virtio_iommu_is_not_behind_itself_but_behind_another_it_may_be() {
    let nodes = [
        iommu_pci(0, 0x48),
        iommu_pci(1, 0),
        range(0x20, (0, 1), (0, 0xff), 48),
        range(0, (2, 2), (0x48, 0x48), 48),
        range(0x900, (1, 1), (0, 0x1ff), 64),
    ];
    let description = describe(&nodes).expect("it is right");
    assert_eq!(
        description.rules,
        [
            rule(0, 0, 0x47, 0, 0x20),
            rule(0, 0x49, 0xff, 0, 0x69),
            rule(1, 0, 0xff, 0, 0x1_0020),
            rule(2, 0x48, 0x48, 0, 0),
            // The first range has the others, and this virtio-iommu's own function.
            rule(1, 0x100, 0x1ff, 1, 0xa00),
        ]
    );
    assert_eq!(
        description.instances[1].location,
        Location::Pci("0001:00:00.0".parse().expect("it is one"))
    );
    // At the ends of its range, and as all of it.
    let own = |functions| {
        describe(&[iommu_pci(0, 0x48), range(0, (0, 0), functions, 48)])
            .expect("it is right")
            .rules
    };
    assert_eq!(own((0x48, 0x50)), [rule(0, 0x49, 0x50, 0, 1)]);
    assert_eq!(own((0x40, 0x48)), [rule(0, 0x40, 0x47, 0, 0)]);
    assert_eq!(own((0x48, 0x48)), []);
}

#[test]
fn of_ranges_with_the_same_function_the_first_one_counts() {
    let nodes = [
        iommu_mmio(0x1000),
        iommu_mmio(0x2000),
        range(0, (0, 0), (0x10, 0x1f), 48),
        range(0x100, (0, 0), (0, 0xff), 64),
    ];
    assert_eq!(
        describe(&nodes).expect("it is right").rules,
        [
            rule(0, 0x10, 0x1f, 0, 0),
            rule(0, 0, 0xf, 1, 0x100),
            rule(0, 0x20, 0xff, 1, 0x120),
        ]
    );
}

#[test]
fn an_unknown_node_is_passed_over() {
    let unknown = node(9, 4);
    let nodes = [unknown, iommu_mmio(0x1000), range(0, (0, 0), (0, 9), 52)];
    assert_eq!(
        describe(&nodes).expect("it is right").rules,
        [rule(0, 0, 9, 0, 0)]
    );
}

#[test]
fn an_output_is_a_virtio_iommu() {
    let unknown = node(9, 4);
    for (node, at) in [(range(0, (0, 0), (0, 0), 0), 16), (mmio(0, 0, 0), 16)] {
        // Nothing, the endpoint itself, an unknown node, the middle of a virtio-iommu.
        for to in [0, 48, 72, 80, 0xffff_u16] {
            let mut bytes = table(&[node.clone(), unknown.clone(), iommu_mmio(0)]);
            bytes[48 + at..50 + at].copy_from_slice(&to.to_le_bytes());
            seal(&mut bytes);
            let to = Fault::Reference { to: to.into() };
            assert_eq!(Table::parse(&bytes), fault(WHAT, 64, "the output node", to));
        }
    }
}

#[test]
fn ranges_that_are_no_ranges_are_refused() {
    let of = |range| describe(&[iommu_mmio(0), range]).map(|_| ());
    let reversed = Fault::Reversed { first: 2, last: 1 };
    assert_eq!(
        of(range(0, (2, 1), (0, 0), 48)),
        fault(WHAT, 72, "the segments", reversed)
    );
    assert_eq!(
        of(range(0, (0, 0), (2, 1), 48)),
        fault(WHAT, 76, "the functions", reversed)
    );
    assert_eq!(of(range(u32::MAX - 0x1_0001, (0, 1), (0, 1), 48)), Ok(()));
    assert_eq!(
        of(range(u32::MAX - 0x1_0000, (0, 1), (0, 1), 48)),
        fault(WHAT, 68, "the first endpoint", Fault::Overflow)
    );
    let last = SEGMENTS as u16 - 1;
    assert_eq!(of(range(0, (0, last), (0, 0), 48)), Ok(()));
    let many = Fault::TooMany { limit: SEGMENTS };
    assert_eq!(
        of(range(0, (0, last + 1), (0, 0), 48)),
        fault(WHAT, 72, "the segments", many)
    );
    let two = [
        iommu_mmio(0),
        range(0, (0, last), (0, 0), 48),
        range(0, (7, 7), (0, 0), 48),
    ];
    assert_eq!(describe(&two), fault(WHAT, 96, "the segments", many));
}

#[test]
fn nodes_that_do_not_fit_are_refused() {
    let parse = |edit: fn(&mut Vec<u8>)| {
        let mut bytes = table(&[iommu_mmio(0), range(0, (0, 0), (0, 0), 48)]);
        edit(&mut bytes);
        seal(&mut bytes);
        Table::parse(&bytes).map(|_| ())
    };
    let short = |needed, available| Fault::Truncated { needed, available };
    assert_eq!(parse(|_| {}), Ok(()));
    assert_eq!(
        parse(|bytes| bytes[66] = 0),
        fault(WHAT, 64, "a node", Fault::Length { len: 0 })
    );
    assert_eq!(
        parse(|bytes| bytes[66] = 23),
        fault(WHAT, 64, "a node", Fault::Length { len: 23 })
    );
    assert_eq!(
        parse(|bytes| bytes[50] = 15),
        fault(WHAT, 48, "a node", Fault::Length { len: 15 })
    );
    assert_eq!(
        parse(|bytes| bytes[66] = 25),
        fault(WHAT, 64, "a node", short(25, 24))
    );
    assert_eq!(
        parse(|bytes| bytes[36..38].fill(0xff)),
        fault(WHAT, 88, "a node", short(4, 0))
    );
    assert_eq!(
        parse(|bytes| bytes[38] = 36),
        fault(WHAT, 38, "the offset of the nodes", Fault::Overlap)
    );
    assert_eq!(
        parse(|bytes| bytes[38] = 88),
        fault(WHAT, 88, "a node", short(4, 0))
    );
    assert_eq!(
        Table::parse(&Writer::table(WHAT, 0).zeroes(8).finish()),
        fault(WHAT, 0, "the table", short(48, 44))
    );
}
