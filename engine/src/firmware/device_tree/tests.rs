//! Trees written for one rule each.

mod devices;
mod instances;
mod maps;
mod reach;
mod reserved;

use std::vec::Vec;

use crate::firmware::device_tree::{PATH_BYTES, parse};
use crate::firmware::fdt::writer::Writer;
use crate::firmware::fdt::{FdtError, MAX_DEPTH, MAX_NAME};
use crate::firmware::{
    Description, DeviceTreeError, InstanceIndex, NodeIndex, Output, Problem, Rule, Subject, Topic,
};
use crate::topology::RequesterId;

/// A tree whose root has addresses and sizes of one cell.
fn tree() -> Writer {
    Writer::new()
        .cells("#address-cells", &[1])
        .cells("#size-cells", &[1])
}

/// An IOMMU below the root, with a phandle and the cells of its IDs.
fn iommu(writer: Writer, phandle: u32, cells: u32) -> Writer {
    open_iommu(writer, phandle, cells).end()
}

/// The same, for more properties.
fn open_iommu(writer: Writer, phandle: u32, cells: u32) -> Writer {
    writer
        .begin("iommu@1000")
        .text("compatible", "arm,smmu-v3")
        .cells("reg", &[0x1000 * phandle, 0x1000])
        .cells("phandle", &[phandle])
        .cells("#iommu-cells", &[cells])
}

/// A host bridge below the root, for more properties.
fn open_host(writer: Writer, name: &str) -> Writer {
    writer
        .begin(name)
        .text("device_type", "pci")
        .cells("#address-cells", &[3])
        .cells("#size-cells", &[2])
}

fn read(writer: Writer) -> Description {
    parse(&writer.finish()).expect("it is sound")
}

/// All flaws: what about, in which property, and what.
fn flaws(description: &Description) -> Vec<(Topic, &'static str, Problem)> {
    let flaws = description.flaws.iter();
    flaws
        .map(|flaw| (flaw.topic, flaw.property, flaw.problem.clone()))
        .collect()
}

fn requesters(segment: u16, mask: u16, first: u16, last: u16) -> Subject {
    Subject::Requesters {
        segment,
        mask,
        first: RequesterId::new(first),
        last: RequesterId::new(last),
    }
}

fn rule(subject: Subject, instance: Option<usize>, output: Output) -> Rule {
    Rule {
        subject,
        instance: instance.map(InstanceIndex),
        output,
        amd_settings: 0,
    }
}

fn node(index: usize) -> Subject {
    Subject::Node(NodeIndex(index))
}

#[test]
fn a_blob_that_is_no_tree_is_refused() {
    assert_eq!(
        parse(&[0; 64]),
        Err(DeviceTreeError::Blob(FdtError::Magic { found: 0 }))
    );
    // The reservations are looked at, too: here they are the last word of the blob.
    let mut blob = tree().finish();
    blob.resize(blob.len().next_multiple_of(8) + 8, 1);
    let total = u32::try_from(blob.len()).expect("tests are small");
    blob[4..8].copy_from_slice(&total.to_be_bytes());
    blob[16..20].copy_from_slice(&(total - 8).to_be_bytes());
    assert_eq!(
        parse(&blob),
        Err(DeviceTreeError::Blob(FdtError::Truncated {
            structure: "memory reservation block",
            offset: blob.len() - 8,
            needed: 16,
            available: 8
        }))
    );
}

#[test]
fn a_phandle_that_two_nodes_have_is_refused() {
    let writer = iommu(iommu(tree(), 1, 1), 2, 1);
    let writer = writer.begin("third").cells("linux,phandle", &[1]);
    let offset = 56 + writer.at() - 4;
    assert_eq!(
        parse(&writer.end().finish()),
        Err(DeviceTreeError::SharedPhandle {
            phandle: 1,
            path: "/third".into(),
            offset
        })
    );
}

#[test]
fn a_tree_without_iommus_says_nothing() {
    let writer = tree().begin("uart").cells("reg", &[0, 1]).end();
    assert_eq!(read(writer), Description::default());
}

/// IOMMUs inside of nodes with the longest names, as deep as they may be.
fn deep(count: usize) -> Vec<u8> {
    let name = "n".repeat(MAX_NAME);
    let writer = (2..MAX_DEPTH).fold(tree(), |writer, _| writer.begin(&name));
    let writer = (0..count).fold(writer, |writer, _| {
        writer.begin("a").bytes("#iommu-cells", &[]).end()
    });
    (2..MAX_DEPTH)
        .fold(writer, |writer, _| writer.end())
        .finish()
}

#[test]
fn a_description_is_in_proportion_to_its_tree() {
    let blob = deep(8);
    let found = parse(&blob).expect("it is sound");
    assert_eq!(found.instances.len(), 8);
    let limit = PATH_BYTES * blob.len();
    let names = found.instances.iter().map(|instance| instance.name.len());
    assert!(names.sum::<usize>() < limit);
    for count in [100, 1000] {
        let blob = deep(count);
        let limit = PATH_BYTES * blob.len();
        assert_eq!(parse(&blob), Err(DeviceTreeError::Paths { limit }));
    }
}
