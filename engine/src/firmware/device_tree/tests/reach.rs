//! `dma-ranges` from a device up to the root.

use std::vec::Vec;

use iopt_formats::{Iova, IovaRange};

use crate::firmware::device_tree::reach::MAX_STEPS;
use crate::firmware::device_tree::tests::{flaws, iommu, node, open_host, read, requesters, tree};
use crate::firmware::fdt::writer::Writer;
use crate::firmware::{Description, DmaRange, NodeIndex, Problem, Reach, Subject, Topic};

/// A bus with addresses and sizes of one cell.
fn open_bus(writer: Writer, ranges: Option<&[u32]>) -> Writer {
    let writer = writer
        .begin("bus")
        .cells("#address-cells", &[1])
        .cells("#size-cells", &[1]);
    match ranges {
        Some(ranges) => writer.cells("dma-ranges", ranges),
        None => writer,
    }
}

/// A device behind an IOMMU on the innermost of some buses.
fn device(buses: &[Option<&[u32]>]) -> Description {
    let writer = iommu(tree(), 1, 1);
    let writer = buses
        .iter()
        .fold(writer, |writer, ranges| open_bus(writer, *ranges));
    let writer = writer.begin("nic").cells("iommus", &[1, 0]).end();
    read(buses.iter().fold(writer, |writer, _| writer.end()))
}

fn range(start: u64, last: u64, cpu: u64) -> DmaRange {
    DmaRange {
        range: IovaRange::new(Iova::new(start), Iova::new(last)).expect("it is one"),
        cpu,
    }
}

fn reach(subject: Subject, ranges: &[DmaRange]) -> Reach {
    Reach {
        subject,
        address_bits: None,
        ranges: ranges.to_vec(),
    }
}

#[test]
fn a_device_reaches_what_the_bus_that_it_is_on_says() {
    let found = device(&[Some(&[
        0,
        0x8000_0000,
        0x4000_0000,
        0xc000_0000,
        0,
        0x4000_0000,
    ])]);
    let ranges = [
        range(0, 0x3fff_ffff, 0x8000_0000),
        range(0xc000_0000, 0xffff_ffff, 0),
    ];
    assert_eq!(found.reaches, [reach(node(0), &ranges)]);
    assert_eq!(device(&[None]).reaches, []);
    assert_eq!(device(&[Some(&[])]).reaches, []);
    assert_eq!(device(&[]).reaches, []);
}

#[test]
fn ranges_are_those_that_all_buses_above_let_through() {
    let outer = [0x1000, 0x10_0000, 0x1000, 0x2000, 0x20_0000, 0x1000];
    let inner = [0, 0x1800, 0x1000];
    let found = device(&[Some(&outer), Some(&inner)]);
    let ranges = [range(0, 0x7ff, 0x10_0800), range(0x800, 0xfff, 0x20_0000)];
    assert_eq!(found.reaches, [reach(node(0), &ranges)]);
    // A bus without ranges above changes nothing, and neither does an empty one.
    for between in [None, Some(&[][..])] {
        let found = device(&[Some(&outer), between, Some(&inner)]);
        assert_eq!(found.reaches, [reach(node(0), &ranges)]);
    }
    // The closest one with ranges counts, if nothing before it is silent where another was not.
    let found = device(&[Some(&inner), None]);
    assert_eq!(found.reaches, [reach(node(0), &[range(0, 0xfff, 0x1800)])]);
    let found = device(&[Some(&inner), None, Some(&[])]);
    assert_eq!(found.reaches, []);
}

#[test]
fn a_bus_that_leads_nowhere_is_a_flaw() {
    let found = device(&[Some(&[0x1000, 0, 0x1000]), Some(&[0, 0x2000, 0x1000])]);
    assert_eq!(found.reaches, []);
    let nowhere = Problem::NoTranslation { address: 0x2000 };
    assert_eq!(flaws(&found), [(Topic::Reach, "dma-ranges", nowhere)]);
    assert_eq!(found.flaws[0].subject, Some(node(0)));
    let found = device(&[Some(&[0, 0, 0x1000, 1])]);
    assert_eq!(
        flaws(&found),
        [(Topic::Reach, "dma-ranges", Problem::Length { len: 16 })]
    );
    // Ranges without bytes say nothing.
    assert_eq!(device(&[Some(&[0, 0, 0])]).reaches, []);
}

#[test]
fn more_ranges_than_are_kept_are_a_flaw() {
    let ranges = |count: u32| -> Vec<u32> {
        (0..count)
            .flat_map(|at| [0x1000 * at, 0x1000 * at, 0x1000])
            .collect()
    };
    assert_eq!(device(&[Some(&ranges(64))]).reaches[0].ranges.len(), 64);
    let too_many = (Topic::Reach, "dma-ranges", Problem::TooMany { limit: 64 });
    assert_eq!(
        flaws(&device(&[Some(&ranges(65))])),
        std::slice::from_ref(&too_many)
    );
    // Few ranges can be cut into many.
    let inner: Vec<u32> = [[0, 0, 0x10_0000], [0x20_0000, 0, 0x10_0000]].concat();
    assert_eq!(
        flaws(&device(&[Some(&ranges(33)), Some(&inner)])),
        [too_many]
    );
}

#[test]
fn functions_reach_what_their_host_says_in_memory_space() {
    let writer = open_host(tree(), "pci").cells(
        "dma-ranges",
        &[
            0x4200_0000,
            1,
            0,
            0x8000_0000,
            0,
            0x4000_0000, // memory
            0x0100_0000,
            0,
            0,
            0,
            0,
            0x1000, // I/O
        ],
    );
    let found = read(writer.end());
    let ranges = [range(0x1_0000_0000, 0x1_3fff_ffff, 0x8000_0000)];
    assert_eq!(
        found.reaches,
        [reach(requesters(0, 0xffff, 0, 0xffff), &ranges)]
    );
}

#[test]
fn devices_on_a_mapped_bus_reach_what_the_bus_itself_says() {
    let writer = open_bus(iommu(tree(), 1, 1), Some(&[0, 0x1000, 0x1000]));
    let writer = writer.begin("mc").cells("iommu-map", &[0, 1, 0, 1]);
    let writer = writer
        .cells("#address-cells", &[1])
        .cells("#size-cells", &[1]);
    let found = read(writer.cells("dma-ranges", &[0, 0x800, 0x400]).end().end());
    let inputs = Subject::Inputs {
        node: NodeIndex(0),
        mask: u32::MAX,
        first: 0,
        last: u32::MAX,
    };
    assert_eq!(
        found.reaches,
        [
            reach(inputs, &[range(0, 0x3ff, 0x1800)]),
            reach(node(0), &[range(0, 0xfff, 0x1000)])
        ]
    );
}

#[test]
fn buses_below_a_deep_chain_of_many_windows_are_no_endless_work() {
    // 64 ranges pass each bus, and are compared with 256 windows there.
    let windows = |count: u32| -> Vec<u32> {
        let starts = (0..count).map(|window| window << 16);
        starts.flat_map(|start| [start, start, 0x1000]).collect()
    };
    let mut writer = iommu(tree(), 1, 1);
    for _ in 0..50 {
        writer = open_bus(writer, Some(&windows(256)));
    }
    for _ in 0..30 {
        writer = open_bus(writer, Some(&windows(64)));
        writer = writer.begin("nic").cells("iommus", &[1, 0]).end().end();
    }
    let found = read((0..50).fold(writer, |writer, _| writer.end()));
    assert_eq!(found.reaches.len(), MAX_STEPS / (50 * 64 * 256));
    assert_eq!(found.reaches.len() + found.flaws.len(), 30);
    let problem = Problem::TooMany { limit: MAX_STEPS };
    assert!(found.flaws.iter().all(|flaw| flaw.problem == problem));
}

#[test]
fn a_bus_below_a_pci_function_has_pci_addresses_above() {
    // Memory of 32 bits at 0x1000_0000 of the PCI bus, which the host leads to 0x8000_0000.
    let memory = 0x0200_0000;
    let writer = open_host(iommu(tree(), 1, 1), "pci");
    let writer = writer.cells("dma-ranges", &[memory, 0, 0, 0x7000_0000, 0, 0x4000_0000]);
    let writer = writer.begin("function").cells("reg", &[0x800, 0, 0, 0, 0]);
    let writer = writer
        .cells("#address-cells", &[1])
        .cells("#size-cells", &[1]);
    let writer = writer.cells("dma-ranges", &[0x100, memory, 0, 0x1000_0000, 0x1000]);
    let writer = writer
        .begin("nic")
        .cells("iommus", &[1, 0])
        .end()
        .end()
        .end();
    let found = read(writer);
    assert_eq!(flaws(&found), []);
    let ranges = [range(0x100, 0x10ff, 0x8000_0000)];
    let of_node = found.reaches.iter().find(|reach| reach.subject == node(0));
    assert_eq!(of_node, Some(&reach(node(0), &ranges)));
}

#[test]
fn more_windows_of_a_bus_than_are_read_are_a_flaw_on_every_bus() {
    let windows = |count: u32| -> Vec<u32> {
        let starts = (0..count).map(|window| window << 16);
        starts.flat_map(|start| [start, start, 0x1000]).collect()
    };
    assert_eq!(
        flaws(&device(&[Some(&windows(256)), Some(&[0, 0, 0x1000])])),
        []
    );
    let found = device(&[Some(&windows(257)), Some(&[0, 0, 0x1000])]);
    let problem = Problem::TooMany { limit: 256 };
    assert_eq!(flaws(&found), [(Topic::Reach, "dma-ranges", problem)]);
}
