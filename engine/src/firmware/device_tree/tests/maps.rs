//! `iommu-map`, of PCI hosts and of other buses.

use crate::firmware::device_tree::hosts::MAX_SEGMENTS;
use crate::firmware::device_tree::tests::{
    flaws, iommu, open_host, open_iommu, read, requesters, rule, tree,
};
use crate::firmware::fdt::writer::Writer;
use crate::firmware::{
    Ats, Bus, Description, InstanceIndex, NodeIndex, Output, Problem, Rule, Subject, Supplier,
    Topic,
};

/// IOMMUs with phandles 1 to 3, of 1, 0 and 2 cells.
fn three() -> Writer {
    iommu(iommu(iommu(tree(), 1, 1), 2, 0), 3, 2)
}

/// A host with a map, of all buses.
fn mapped(map: &[u32]) -> Description {
    read(open_host(three(), "pci").cells("iommu-map", map).end())
}

fn offset(first: u16, last: u16, instance: usize, offset: u32) -> Rule {
    let subject = requesters(0, 0xffff, first, last);
    rule(subject, Some(instance), Output::Offset(offset))
}

fn wrong(problem: Problem) -> (Topic, &'static str, Problem) {
    (Topic::Rule, "iommu-map", problem)
}

#[test]
fn a_map_keeps_its_entries_in_their_order() {
    let found = mapped(&[0x100, 1, 0x1100, 0x100, 0, 1, 0x2000, 0x180, 8, 1, 0, 0]);
    assert_eq!(
        found.rules,
        [offset(0x100, 0x1ff, 0, 0x1100), offset(0, 0x17f, 0, 0x2000)],
        "unsorted, overlapping, and one without IDs"
    );
    let expected = Supplier {
        consumer: requesters(0, 0xffff, 0, 0xffff),
        instance: InstanceIndex(0),
    };
    assert_eq!(found.suppliers, [expected]);
    assert_eq!(found.flaws, []);
}

#[test]
fn entries_are_as_long_as_the_cells_of_their_iommu() {
    let found = mapped(&[0, 2, 8, 8, 1, 0x40, 8, 0x10, 3, 0x50, 0x51, 1]);
    let none = Output::Cells([].to_vec());
    let two = Output::Cells([0x50, 0x51].to_vec());
    assert_eq!(
        found.rules,
        [
            rule(requesters(0, 0xffff, 0, 7), Some(1), none),
            offset(8, 15, 0, 0x40),
            rule(requesters(0, 0xffff, 0x10, 0x10), Some(2), two),
        ]
    );
    assert_eq!(found.flaws, []);
}

#[test]
fn entries_of_four_cells_are_read_as_linux_long_did() {
    let found = mapped(&[0, 3, 0x100, 0x80, 0x80, 3, 0x300, 0x80]);
    assert_eq!(
        found.rules,
        [offset(0, 0x7f, 2, 0x100), offset(0x80, 0xff, 2, 0x300)]
    );
    let found = mapped(&[0, 2, 0x100, 0x80]);
    let none = Output::Cells([].to_vec());
    assert_eq!(
        found.rules,
        [rule(requesters(0, 0xffff, 0, 0x7f), Some(1), none)]
    );
    // Of several IOMMUs there is no such reading.
    let found = mapped(&[0, 3, 0x100, 0x80, 0x80, 1, 0x300, 0x80]);
    assert_eq!(found.rules, []);
    assert_eq!(found.flaws.len(), 1);
}

#[test]
fn a_map_ends_at_the_entry_that_cannot_be_read() {
    let sound = offset(0, 7, 0, 0x40);
    for (rest, at, problem) in [
        (&[8, 7, 0, 1][..], 16, Problem::NoSuchNode { phandle: 7 }),
        (&[8, 1, 0], 16, Problem::Length { len: 28 }),
        (&[8], 16, Problem::Length { len: 20 }),
        (
            &[8, 3, 0, 0, 2],
            16,
            Problem::RangeOfCells { ids: 2, cells: 2 },
        ),
        (
            &[8, 1, 0, u32::MAX],
            16,
            Problem::Overflow {
                first: 8,
                len: 0xffff_ffff,
            },
        ),
        (
            &[8, 1, u32::MAX, 2],
            16,
            Problem::Overflow {
                first: 0xffff_ffff,
                len: 2,
            },
        ),
    ] {
        let map: Vec<u32> = [0, 1, 0x40, 8].iter().chain(rest).copied().collect();
        let writer = open_host(three(), "pci");
        let offset = 56 + writer.at() + 12 + at;
        let found = read(writer.cells("iommu-map", &map).end());
        assert_eq!(found.rules, std::slice::from_ref(&sound), "{rest:x?}");
        assert_eq!(flaws(&found), [wrong(problem)]);
        assert_eq!(found.flaws[0].offset, offset);
        assert_eq!(
            found.flaws[0].subject,
            Some(requesters(0, 0xffff, 0, 0xffff))
        );
    }
    assert_eq!(flaws(&mapped(&[])), [wrong(Problem::Length { len: 0 })]);
    let whole = mapped(&[0, 1, 0, 0xffff_ffff]);
    assert_eq!(
        whole.rules,
        [offset(0, 0xffff, 0, 0)],
        "only 16 bits of it are requesters"
    );
    assert_eq!(mapped(&[0x1_0000, 1, 0, 1]).rules, []);
}

#[test]
fn a_mask_is_part_of_the_rule_and_of_the_check() {
    let masked = |base: u32, mask: &[u32]| {
        let writer = open_host(three(), "pci").cells("iommu-map", &[base, 1, 0x40, 8]);
        read(writer.cells("iommu-map-mask", mask).end())
    };
    let expected = rule(requesters(0, 0xff, 8, 15), Some(0), Output::Offset(0x40));
    assert_eq!(masked(8, &[0xff]).rules, [expected]);
    let found = masked(0x108, &[0xff]);
    assert_eq!(found.rules, []);
    let outside = Problem::BaseOutsideMask {
        base: 0x108,
        mask: 0xff,
    };
    assert_eq!(flaws(&found), [wrong(outside)]);
    let found = masked(8, &[0xff, 0]);
    assert_eq!(found.rules, []);
    let length = Problem::Length { len: 8 };
    assert_eq!(flaws(&found), [(Topic::Rule, "iommu-map-mask", length)]);
}

#[test]
fn hosts_of_one_segment_speak_of_their_own_buses_only() {
    let host = |writer: Writer, name: &str, buses: &[u32]| {
        let writer = open_host(writer, name).cells("linux,pci-domain", &[0]);
        writer.cells("bus-range", buses)
    };
    let writer = host(three(), "a", &[0, 0x7f]).cells("iommu-map", &[0, 1, 0x100, 0x1_0000]);
    let writer = host(writer.end(), "b", &[0x80, 0xff]);
    let writer = writer
        .cells("iommu-map", &[0x1000, 1, 0x5_0000, 0x1_0000])
        .end();
    let writer = host(writer, "c", &[0x80, 0xff]).cells("iommu-map", &[0, 1, 0, 0x100]);
    // The value is behind the token, its length and its name.
    let mask_at = 56 + writer.at() + 12;
    let writer = writer.cells("iommu-map-mask", &[0xff]).end();
    let found = read(writer);
    assert_eq!(
        found.rules,
        [
            offset(0, 0x7fff, 0, 0x100),
            offset(0x8000, 0xffff, 0, 0x5_7000)
        ]
    );
    let shared = Problem::SharedSegment {
        mask: 0xff,
        segment: 0,
    };
    assert_eq!(flaws(&found), [(Topic::Rule, "iommu-map-mask", shared)]);
    assert_eq!(found.flaws[0].offset, mask_at);
}

#[test]
fn the_ids_of_other_buses_are_mapped_at_their_controller() {
    for (compatible, bus) in [
        ("fsl,qoriq-mc", Bus::FslMc),
        ("xlnx,versal-net-cdx", Bus::Cdx),
        ("vendor,codec", Bus::Platform),
    ] {
        let writer = three().begin("bus").text("compatible", compatible);
        let writer = writer.cells("iommu-map", &[0x10, 1, 0x2_0000, 0x10, 0x30, 2, 1]);
        let found = read(writer.cells("iommu-map-mask", &[0xffff]).end());
        assert_eq!(found.nodes[0].bus, bus);
        let inputs = |mask, first, last| Subject::Inputs {
            node: NodeIndex(0),
            mask,
            first,
            last,
        };
        let none = Output::Cells([].to_vec());
        assert_eq!(
            found.rules,
            [
                rule(
                    inputs(0xffff, 0x10, 0x1f),
                    Some(0),
                    Output::Offset(0x2_0000)
                ),
                rule(inputs(0xffff, 0x30, 0x30), Some(1), none),
            ]
        );
        assert_eq!(found.suppliers[0].consumer, inputs(u32::MAX, 0, u32::MAX));
    }
}

#[test]
fn a_map_to_a_disabled_iommu_leads_to_none() {
    let writer = open_iommu(tree(), 1, 1).text("status", "disabled").end();
    let writer = open_host(writer, "pci").cells("iommu-map", &[0, 1, 0, 0x1_0000]);
    let found = read(writer.end());
    let expected = rule(requesters(0, 0xffff, 0, 0xffff), None, Output::Offset(0));
    assert_eq!(found.rules, [expected]);
    assert_eq!(found.suppliers, []);
}

#[test]
fn a_host_says_whether_functions_may_translate_by_themselves() {
    let found = read(open_host(tree(), "pci").bytes("ats-supported", &[]).end());
    let expected = Ats {
        subject: requesters(0, 0xffff, 0, 0xffff),
        is_required: false,
    };
    assert_eq!(found.ats, [expected]);
}

#[test]
fn a_host_for_which_no_segment_is_left_is_a_flaw_and_no_other_bus() {
    let host = |writer: Writer| {
        let writer = writer.begin("pci").text("device_type", "pci");
        writer.cells("iommu-map", &[0, 1, 0, 0x1_0000]).end()
    };
    let writer = (0..MAX_SEGMENTS + 2).fold(three(), |writer, _| host(writer));
    let found = read(writer);
    assert_eq!(
        (found.hosts.len(), found.rules.len()),
        (MAX_SEGMENTS, MAX_SEGMENTS)
    );
    assert_eq!(found.nodes, []);
    let problem = Problem::TooMany {
        limit: MAX_SEGMENTS,
    };
    let flaw = (Topic::Host, "device_type", problem);
    assert_eq!(flaws(&found), [flaw.clone(), flaw]);
}
