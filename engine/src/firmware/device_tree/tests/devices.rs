//! `iommus`: who is behind what, and what a reference that cannot be read does.

use std::vec::Vec;

use crate::firmware::device_tree::tests::{
    flaws, iommu, node, open_host, open_iommu, read, requesters, rule, tree,
};
use crate::firmware::fdt::writer::Writer;
use crate::firmware::{
    Behind, Bus, Coherence, Flaw, InstanceIndex, NodeIndex, Output, Problem, Supplier, Topic, Who,
};

/// Three IOMMUs with phandles and cells of 0, 1 and 2 each, and 9, which is none.
fn three() -> Writer {
    let writer = (0..3).fold(tree(), |writer, cells| iommu(writer, cells + 1, cells));
    writer.begin("none").cells("phandle", &[9]).end()
}

fn device(writer: Writer, iommus: &[u32]) -> Writer {
    writer.begin("nic@1").cells("iommus", iommus).end()
}

#[test]
fn a_device_has_all_ids_of_all_its_iommus() {
    let found = read(device(three(), &[2, 0x10, 1, 3, 0x20, 0x21, 2, 0x11]));
    let cells =
        |instance, cells: &[u32]| rule(node(0), Some(instance), Output::Cells(cells.to_vec()));
    assert_eq!(
        found.rules,
        [
            cells(1, &[0x10]),
            cells(0, &[]),
            cells(2, &[0x20, 0x21]),
            cells(1, &[0x11])
        ]
    );
    let supplier = |instance| Supplier {
        consumer: node(0),
        instance: InstanceIndex(instance),
    };
    assert_eq!(found.suppliers, [supplier(1), supplier(0), supplier(2)]);
    assert_eq!(found.nodes[0].name, "/nic@1");
    assert_eq!(found.flaws, []);
}

#[test]
fn a_device_with_one_reference_that_cannot_be_read_has_none() {
    let cells = Problem::Cells {
        name: "#iommu-cells",
        path: "/bare".into(),
    };
    for (iommus, word, problem) in [
        (&[2, 0x10, 8, 1][..], 2, Problem::NoSuchNode { phandle: 8 }),
        (&[2, 0x10, 0], 2, Problem::NoSuchNode { phandle: 0 }),
        (&[2, 0x10, 9], 2, Problem::NoIommu { phandle: 9 }),
        (&[2], 0, Problem::Length { len: 4 }),
        (&[1, 3, 0x20], 1, Problem::Length { len: 12 }),
        (&[7, 1], 0, cells.clone()),
    ] {
        let writer = three().begin("bare").text("compatible", "riscv,iommu");
        let writer = writer.cells("phandle", &[7]).end().begin("nic@1");
        // The value is behind the token, its length and its name.
        let offset = 56 + writer.at() + 12 + word * 4;
        let found = read(writer.cells("iommus", iommus).end());
        assert_eq!(found.rules, [], "{iommus:?}");
        let flaw = Flaw {
            topic: Topic::Rule,
            subject: Some(node(0)),
            name: "/nic@1".into(),
            property: "iommus",
            offset,
            problem,
        };
        assert_eq!(found.flaws, std::slice::from_ref(&flaw));
        assert_eq!(found.node(NodeIndex(0)), Behind::Unreadable(&flaw));
    }
    let found = read(
        three()
            .begin("nic@1")
            .bytes("iommus", &[0, 0, 0, 2, 0])
            .end(),
    );
    assert_eq!(
        flaws(&found),
        [(Topic::Rule, "iommus", Problem::Length { len: 5 })]
    );
}

#[test]
fn a_device_with_one_iommu_that_is_disabled_is_behind_none() {
    let writer = open_iommu(three(), 4, 1).text("status", "disabled").end();
    let found = read(device(writer, &[2, 0x10, 4, 0x20]));
    let nothing = |cells: &[u32]| rule(node(0), None, Output::Cells(cells.to_vec()));
    assert_eq!(found.rules, [nothing(&[0x10]), nothing(&[0x20])]);
    assert_eq!(found.suppliers, []);
    assert_eq!(found.node(NodeIndex(0)), Behind::Nothing(&found.rules[0]));
}

#[test]
fn requests_snoop_as_the_closest_node_says() {
    let writer = three().begin("soc").bytes("dma-coherent", &[]);
    let writer = open_host(device(writer, &[1]), "pci").end();
    let writer = writer.begin("nic@2").bytes("dma-noncoherent", &[]);
    let writer = device(writer.cells("iommus", &[1]).end().end(), &[1]);
    let found = read(writer);
    let coherence = |subject, is_coherent| Coherence {
        subject,
        is_coherent,
    };
    let expected = [
        coherence(requesters(0, 0xffff, 0, 0xffff), true),
        coherence(node(0), true),
        coherence(node(1), false),
    ];
    assert_eq!(found.coherence, expected);
    assert_eq!(found.is_coherent(Who::Node(NodeIndex(1))), Some(false));
    assert_eq!(found.is_coherent(Who::Node(NodeIndex(2))), None);
}

#[test]
fn more_cells_than_an_id_can_have_are_a_flaw() {
    let ids = |cells: u32| {
        let iommus: Vec<u32> = [1].into_iter().chain(0..cells).collect();
        read(device(iommu(tree(), 1, cells), &iommus))
    };
    assert_eq!(ids(16).rules.len(), 1);
    let cells = Problem::Cells {
        name: "#iommu-cells",
        path: "/iommu@1000".into(),
    };
    assert_eq!(flaws(&ids(17)), [(Topic::Rule, "iommus", cells)]);
}

#[test]
fn devices_that_are_disabled_or_on_pci_have_no_rules_of_their_own() {
    let writer = three().begin("off").text("status", "disabled");
    let writer = writer.begin("nic").cells("iommus", &[2, 1]).end().end();
    let writer = open_host(writer, "pci").cells("iommus", &[2, 1]);
    let writer = writer
        .begin("function")
        .cells("iommus", &[2, 1])
        .end()
        .end();
    let found = read(writer);
    assert_eq!((found.rules.len(), found.nodes.len()), (0, 0));
    assert_eq!(found.flaws, []);
}

#[test]
fn a_device_is_on_the_bus_that_its_node_shows() {
    for (compatible, bus) in [
        ("arm,pl330\0arm,primecell", Bus::Amba),
        ("fsl,qoriq-mc", Bus::FslMc),
        ("xlnx,versal-net-cdx", Bus::Cdx),
        ("vendor,nic", Bus::Platform),
    ] {
        let writer = three().begin("nic").text("compatible", compatible);
        let found = read(writer.cells("iommus", &[1]).end());
        assert_eq!(found.nodes[0].bus, bus);
    }
}
