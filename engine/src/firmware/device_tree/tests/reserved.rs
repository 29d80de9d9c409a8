//! `iommu-addresses` of reserved memory.

use std::vec::Vec;

use iopt_formats::{Iova, IovaRange, Prot};

use crate::firmware::device_tree::tests::{flaws, iommu, node, open_host, read, requesters, tree};
use crate::firmware::fdt::writer::Writer;
use crate::firmware::{Description, Problem, Region, RegionKind, Subject, Topic};

const DIRECT: RegionKind = RegionKind::Direct {
    prot: Prot::RW,
    is_relaxable: false,
};

/// Reserved memory with addresses and sizes of two cells, for more nodes in it.
fn open_reserved() -> Writer {
    let writer = tree()
        .begin("reserved-memory")
        .cells("#address-cells", &[2]);
    writer.cells("#size-cells", &[2]).bytes("ranges", &[])
}

/// One region, and the devices 1 (below the root), 2 (on a bus with addresses and sizes of two cells), 3
/// (a PCI host) and 4 (a function of it).
fn region(reg: &[u32], addresses: &[u32]) -> Writer {
    let writer = open_reserved().begin("buffer");
    let writer = match reg {
        [] => writer,
        reg => writer.cells("reg", reg),
    };
    devices(writer.cells("iommu-addresses", addresses).end().end())
}

fn devices(writer: Writer) -> Writer {
    let writer = writer.begin("display").cells("phandle", &[1]).end();
    let writer = writer
        .begin("soc")
        .cells("#address-cells", &[2])
        .cells("#size-cells", &[2]);
    let writer = writer.begin("codec").cells("phandle", &[2]).end().end();
    let writer = open_host(writer, "pci").cells("phandle", &[3]);
    let writer = writer.begin("function").cells("phandle", &[4]);
    writer.cells("reg", &[0x1_0800, 0, 0, 0, 0]).end().end()
}

fn expected(subject: Subject, start: u64, last: u64, kind: RegionKind) -> Region {
    Region {
        subject: Some(subject),
        range: IovaRange::new(Iova::new(start), Iova::new(last)).expect("it is one"),
        kind,
    }
}

fn problems(description: &Description) -> Vec<Problem> {
    let all = flaws(description).into_iter();
    all.inspect(|(topic, name, _)| assert_eq!((*topic, *name), (Topic::Region, "iommu-addresses")))
        .map(|(_, _, problem)| problem)
        .collect()
}

#[test]
fn memory_at_its_own_address_is_direct_and_at_another_is_mapped() {
    let found = read(region(
        &[0, 0x9000_0000, 0, 0x1000],
        &[1, 0x9000_0000, 0x1000],
    ));
    assert_eq!(
        found.regions,
        [expected(node(0), 0x9000_0000, 0x9000_0fff, DIRECT)]
    );
    assert_eq!(found.nodes[0].name, "/display");
    let found = read(region(&[0, 0x9000_0000, 0, 0x1000], &[1, 0x4000, 0x1000]));
    let mapped = RegionKind::Mapped {
        oa: 0x9000_0000,
        prot: Prot::RW,
    };
    assert_eq!(found.regions, [expected(node(0), 0x4000, 0x4fff, mapped)]);
}

#[test]
fn iova_without_memory_of_their_size_are_reserved() {
    for reg in [&[][..], &[0, 0x4000, 0, 0x2000]] {
        let found = read(region(reg, &[1, 0x4000, 0x1000]));
        let reserved = RegionKind::Reserved;
        assert_eq!(
            found.regions,
            [expected(node(0), 0x4000, 0x4fff, reserved)],
            "{reg:x?}"
        );
    }
}

#[test]
fn each_entry_is_in_the_cells_of_the_bus_of_its_device() {
    let addresses = [1, 0x1000, 0x1000, 2, 1, 0, 0, 0x1000];
    let more = [4, 0x0200_0000, 2, 0, 0, 0x1000, 3, 0x3000, 0x1000];
    let addresses: Vec<u32> = addresses.into_iter().chain(more).collect();
    let found = read(region(&[], &addresses));
    let kind = RegionKind::Reserved;
    assert_eq!(
        found.regions,
        [
            expected(node(0), 0x1000, 0x1fff, kind),
            expected(node(1), 0x1_0000_0000, 0x1_0000_0fff, kind),
            // The root bus is the host's first one, whatever the function's address says.
            expected(
                requesters(0, 0xffff, 8, 8),
                0x2_0000_0000,
                0x2_0000_0fff,
                kind
            ),
            expected(requesters(0, 0xffff, 0, 0xffff), 0x3000, 0x3fff, kind),
        ]
    );
    assert_eq!(found.flaws, []);
}

#[test]
fn a_range_can_end_with_the_address_space_but_not_behind_it() {
    let found = read(region(&[], &[2, 0, 0x6000_0000, 0xffff_ffff, 0xa000_0000]));
    let kind = RegionKind::Reserved;
    assert_eq!(
        found.regions,
        [expected(node(0), 0x6000_0000, u64::MAX, kind)]
    );
    // The entry behind one that does not fit is read.
    let found = read(region(
        &[],
        &[
            2,
            0,
            0x6000_0000,
            0xffff_ffff,
            0xa000_0001,
            1,
            0,
            0,
            1,
            0x2000,
            0x1000,
        ],
    ));
    assert_eq!(found.regions, [expected(node(1), 0x2000, 0x2fff, kind)]);
    assert_eq!(
        problems(&found),
        [
            Problem::Overflow {
                first: 0x6000_0000,
                len: 0xffff_ffff_a000_0001
            },
            Problem::Overflow { first: 0, len: 0 }
        ]
    );
}

#[test]
fn entries_end_at_the_one_that_cannot_be_read() {
    let found = read(region(&[], &[1, 0x1000, 0x1000, 7, 0, 0]));
    assert_eq!(found.regions.len(), 1);
    assert_eq!(problems(&found), [Problem::NoSuchNode { phandle: 7 }]);
    let found = read(region(&[], &[2, 0, 0x1000, 0]));
    assert_eq!(problems(&found), [Problem::Length { len: 16 }]);
    let found = read(region(&[0, 0x1000, 0], &[1, 0x1000, 0x1000]));
    assert_eq!(
        (found.regions.len(), problems(&found)),
        (0, [Problem::Length { len: 12 }].to_vec())
    );
}

#[test]
fn what_is_disabled_or_elsewhere_reserves_nothing() {
    let writer = open_reserved().begin("off").text("status", "disabled");
    let writer = writer
        .cells("iommu-addresses", &[1, 0x1000, 0x1000])
        .end()
        .end();
    let writer = writer.begin("elsewhere");
    let writer = writer.cells("iommu-addresses", &[1, 0x1000, 0x1000]).end();
    assert_eq!(read(devices(writer)).regions, []);
    let writer = open_reserved().begin("buffer");
    let writer = writer
        .cells("iommu-addresses", &[5, 0x1000, 0x1000])
        .end()
        .end();
    let writer = writer
        .begin("gone")
        .text("status", "disabled")
        .cells("phandle", &[5]);
    assert_eq!(read(writer.end()).regions, []);
}

#[test]
fn a_device_behind_an_iommu_must_not_refer_to_memory_that_is_not_there() {
    let device = |iommus: &[u32], phandle: u32| {
        let writer = iommu(
            open_reserved()
                .begin("buffer")
                .cells("phandle", &[5])
                .end()
                .end(),
            1,
            1,
        );
        let writer = writer.begin("nic").cells("memory-region", &[5, phandle]);
        let writer = match iommus {
            [] => writer,
            iommus => writer.cells("iommus", iommus),
        };
        read(writer.end())
    };
    let missing = (
        Topic::Region,
        "memory-region",
        Problem::NoSuchNode { phandle: 6 },
    );
    assert_eq!(flaws(&device(&[1, 0], 6)), [missing]);
    assert_eq!(device(&[1, 0], 5).flaws, []);
    assert_eq!(device(&[], 6).flaws, []);
}

#[test]
fn of_memory_with_the_size_of_an_entry_the_first_counts() {
    let reg = [
        0, 0x9000, 0, 0x2000, 0, 0x6000, 0, 0x1000, 0, 0x4000, 0, 0x1000,
    ];
    let found = read(region(&reg, &[1, 0x8000, 0x1000, 1, 0x4000, 0x1000]));
    let kinds: Vec<_> = found.regions.iter().map(|region| region.kind).collect();
    let mapped = RegionKind::Mapped {
        oa: 0x6000,
        prot: Prot::RW,
    };
    assert_eq!(kinds, [mapped, DIRECT]);
}

/// Whoever compares each entry with all memory does not end.
#[test]
fn much_memory_and_many_entries_are_no_endless_work() {
    let count = if cfg!(miri) { 100 } else { 60_000 };
    let reg: Vec<u32> = (0..count).flat_map(|at| [0, at, 0, 1]).collect();
    let addresses: Vec<u32> = (0..count).flat_map(|at| [1, at, 2]).collect();
    let found = read(region(&reg, &addresses));
    assert_eq!(found.regions.len(), count as usize);
    let is_reserved = |region: &Region| region.kind == RegionKind::Reserved;
    assert!(found.regions.iter().all(is_reserved));
}

#[test]
fn a_function_of_which_the_tree_does_not_say_where_it_is_loses_no_region_in_silence() {
    let of = |reg: Option<&[u32]>, problem| {
        let writer = open_reserved().begin("buffer");
        let writer = writer.cells("iommu-addresses", &[5, 0, 0, 0, 0, 0x1000]);
        let writer = open_host(writer.end().end(), "pci").begin("bridge");
        let writer = writer
            .text("device_type", "pci")
            .cells("reg", &[0x800, 0, 0, 0, 0]);
        let writer = writer
            .cells("#address-cells", &[3])
            .cells("#size-cells", &[2]);
        let writer = writer.begin("function").cells("phandle", &[5]);
        let writer = match reg {
            Some(reg) => writer.cells("reg", reg),
            None => writer,
        };
        let found = read(writer.end().end().end());
        assert_eq!(found.regions, []);
        assert_eq!(problems(&found), [problem]);
    };
    of(None, Problem::Length { len: 0 });
    of(Some(&[]), Problem::Length { len: 0 });
    // The bus of a function below a bridge that has no numbers.
    of(Some(&[0x0300]), Problem::Value { value: 0x0300 });
}
