//! Firmware's tables.

use std::fmt::Debug;

use iopt::firmware::acpi::{
    self as tables, AcpiError, Fault, Signature, dmar as dmar_table, iort as iort_table,
    ivrs as ivrs_table, mcfg as mcfg_table, viot as viot_table,
};
use iopt::firmware::fdt::{Event, FdtError, NodeId, Tree};
use iopt::firmware::{
    Description, InstanceIndex, NodeIndex, PciPath, Position, Subject, Who,
    device_tree as described,
};
use iopt::topology::{PciAddress, RequesterId};

use crate::fuzz::{each_once, fixtures, tree_blob};

/// Length of the header of an ACPI table.
const HEADER: usize = 36;

/// A flattened device tree, walked and described.
pub fn device_tree(bytes: &[u8]) -> bool {
    let found = described::parse(bytes);
    let Ok(tree) = Tree::new(bytes) else {
        assert!(found.is_err(), "there is a description of no tree");
        return false;
    };
    let whole = tree.as_bytes();
    assert!(bytes.starts_with(whole));
    let counted = count_nodes(&tree);
    match (&counted, tree.nodes()) {
        (Ok(count), Ok(nodes)) => {
            assert_eq!(nodes.iter().count(), *count);
            for node in nodes.iter() {
                let parent = nodes.parent(node);
                // Parents come first, so that going up ends.
                assert!(parent.is_none_or(|parent| parent < node));
                assert_eq!(parent.is_none(), node == NodeId::ROOT);
                assert!(nodes.path(node).starts_with('/'));
            }
        }
        (counted, nodes) => assert_eq!(counted.as_ref().err(), nodes.err().as_ref()),
    }
    let Ok(description) = found else {
        return false;
    };
    assert!(counted.is_ok(), "a malformed tree was described");
    if whole.len() < bytes.len() {
        let alone = described::parse(whole);
        assert_eq!(
            alone.as_ref(),
            Ok(&description),
            "bytes behind a tree count"
        );
    }
    check(&description, whole.len());
    true
}

/// Counts the nodes of a walk, and checks that it is balanced and that what it yields is where it says.
fn count_nodes(tree: &Tree<'_>) -> Result<usize, FdtError> {
    let (mut depth, mut count) = (0_usize, 0);
    let mut has_child = false;
    let mut error = None;
    for event in tree.events() {
        assert!(error.is_none(), "a walk goes on behind an error");
        match event {
            Ok(Event::Begin(_)) => {
                assert_eq!(depth == 0, count == 0, "there is one root");
                (depth, count, has_child) = (depth + 1, count + 1, false);
            }
            Ok(Event::Property(property)) => {
                assert!(depth > 0 && !has_child, "properties come before children");
                let end = property.offset + property.value.len();
                let there = tree.as_bytes().get(property.offset..end);
                assert_eq!(there, Some(property.value));
            }
            Ok(Event::End) => {
                depth = depth.checked_sub(1).expect("a node ends that began");
                has_child = true;
            }
            Err(found) => error = Some(found),
        }
    }
    if let Some(error) = error {
        assert!(!error.to_string().is_empty());
        return Err(error);
    }
    assert!(depth == 0 && count > 0);
    Ok(count)
}

/// An IORT.
pub fn iort(bytes: &[u8]) -> bool {
    table(bytes, iort_table::SIGNATURE, iort_table::Table::parse)
}

/// A VIOT.
pub fn viot(bytes: &[u8]) -> bool {
    table(bytes, viot_table::SIGNATURE, viot_table::Table::parse)
}

/// A DMAR table.
pub fn dmar(bytes: &[u8]) -> bool {
    table(bytes, dmar_table::SIGNATURE, dmar_table::Table::parse)
}

/// An IVRS.
pub fn ivrs(bytes: &[u8]) -> bool {
    table(bytes, ivrs_table::SIGNATURE, ivrs_table::Table::parse)
}

/// An MCFG table.
pub fn mcfg(bytes: &[u8]) -> bool {
    table(bytes, mcfg_table::SIGNATURE, mcfg_table::Table::parse)
}

/// Reads bytes as they are, then as a table of this kind with a right checksum and, unless the bytes say
/// otherwise, a right length.
fn table<T: Debug + PartialEq>(
    bytes: &[u8],
    signature: Signature,
    parse: impl Fn(&[u8]) -> Result<T, AcpiError>,
) -> bool {
    let as_it_is = parse(bytes);
    let mut sealed = bytes.to_vec();
    if sealed.len() < HEADER {
        assert!(as_it_is.is_err());
        return false;
    }
    sealed[..4].copy_from_slice(&signature.0);
    // The byte of the revision decides, so that one flipped bit does.
    if sealed[8] & 0x80 == 0 {
        let len = sealed.len() as u32;
        sealed[4..8].copy_from_slice(&len.to_le_bytes());
    }
    let len = set_checksum(&mut sealed);
    let parsed = parse(&sealed);
    let description = tables::parse(&[&sealed]);
    let Ok(parsed) = parsed else {
        assert!(description.is_err(), "there is a description of no table");
        return check_error(parsed.err(), signature, sealed.len());
    };
    let len = len.expect("its length was found right");
    let mut longer = sealed.clone();
    longer.push(0xa5);
    assert_eq!(
        parse(&longer).as_ref(),
        Ok(&parsed),
        "bytes behind a table count"
    );
    // Any other byte is noticed: each one in turn, as the checksum has it.
    let place = 8 + usize::from(sealed[9]) % (len - 8);
    sealed[place] ^= 0x40;
    assert!(parse(&sealed).is_err(), "damage goes unnoticed");
    match description {
        Ok(description) => {
            check(&description, len);
            true
        }
        Err(error) => check_error(Some(error), signature, len),
    }
}

fn check_error(error: Option<AcpiError>, signature: Signature, len: usize) -> bool {
    if let Some(error) = error {
        assert_eq!(error.table, signature);
        // A reference can lead behind the table: nothing is there.
        let is_nothing = matches!(error.fault, Fault::Truncated { available: 0, .. });
        assert!(
            error.offset <= len || is_nothing,
            "{error} is behind the table"
        );
    }
    false
}

/// Writes the checksum of as much as the length says, and returns that if it is possible.
fn set_checksum(table: &mut [u8]) -> Option<usize> {
    let len = u32::from_le_bytes(*table.get(4..)?.first_chunk()?) as usize;
    let table = table.get_mut(..len).filter(|table| table.len() >= HEADER)?;
    table[9] = 0;
    let sum = table.iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte));
    table[9] = sum.wrapping_neg();
    Some(len)
}

/// Several tables, one behind the other by their lengths.
pub fn acpi(bytes: &[u8]) -> bool {
    let mut copy = bytes.to_vec();
    let all = split_tables(&mut copy);
    let found = tables::parse(&all);
    let turned: Vec<_> = all.iter().rev().copied().collect();
    let other = tables::parse(&turned);
    match found {
        Ok(description) => {
            assert_eq!(
                other.as_ref(),
                Ok(&description),
                "the order of tables counts"
            );
            check(&description, bytes.len());
            true
        }
        Err(error) => {
            assert!(!error.to_string().is_empty());
            assert!(other.is_err(), "the order of tables counts");
            false
        }
    }
}

/// Cuts bytes into tables by their lengths, and makes their checksums right.
pub(super) fn split_tables(mut bytes: &mut [u8]) -> Vec<&[u8]> {
    let mut all: Vec<&[u8]> = Vec::new();
    while !bytes.is_empty() && all.len() < 8 {
        let len = set_checksum(bytes).unwrap_or(bytes.len());
        let (table, rest) = bytes.split_at_mut(len);
        all.push(table);
        bytes = rest;
    }
    all
}

/// A function that no path leads to.
#[derive(Debug)]
struct Nowhere;

impl Position for Nowhere {
    fn is_at(&self, _: &PciPath) -> bool {
        false
    }

    fn is_below(&self, _: &PciPath) -> bool {
        false
    }

    fn is_below_root_port(&self) -> bool {
        false
    }
}

/// Checks that a description of a table of `len` bytes refers to what is there and is in proportion, and
/// asks it.
pub(super) fn check(description: &Description, len: usize) {
    let instance = |index: InstanceIndex| assert!(index.0 < description.instances.len());
    let subject = |subject: &Subject| match subject {
        Subject::Requesters { first, last, .. } => assert!(first <= last),
        Subject::Function(path) | Subject::Below(path) => {
            assert!(!path.steps.is_empty());
            assert!(
                path.steps
                    .iter()
                    .all(|step| step.device < 32 && step.function < 8)
            );
        }
        Subject::Node(node) => assert!(node.0 < description.nodes.len()),
        Subject::Inputs {
            node, first, last, ..
        } => {
            assert!(node.0 < description.nodes.len() && first <= last);
        }
        Subject::Streams {
            instance: index,
            first,
            last,
        } => {
            instance(*index);
            assert!(first <= last);
        }
        _ => {}
    };
    for rule in &description.rules {
        subject(&rule.subject);
        rule.instance.into_iter().for_each(instance);
    }
    for region in &description.regions {
        region.subject.iter().for_each(subject);
    }
    description
        .reaches
        .iter()
        .for_each(|reach| subject(&reach.subject));
    description
        .coherence
        .iter()
        .for_each(|said| subject(&said.subject));
    description.ats.iter().for_each(|ats| subject(&ats.subject));
    for supplier in &description.suppliers {
        subject(&supplier.consumer);
        instance(supplier.instance);
    }
    for host in &description.hosts {
        assert!(host.buses.0 <= host.buses.1);
    }
    for flaw in &description.flaws {
        flaw.subject.iter().for_each(subject);
        assert!(flaw.offset <= len, "{flaw}");
    }
    // Segments of a VIOT and reserved memory of an IORT have limits of their own.
    let limit = len + 4096;
    let counts = [
        description.instances.len(),
        description.nodes.len(),
        description.hosts.len(),
        description.rules.len(),
        description.regions.len(),
        description.reaches.len(),
        description.flaws.len(),
    ];
    assert!(
        counts.iter().all(|count| *count <= limit),
        "{counts:?} of {len} bytes"
    );
    ask(description);
}

fn ask(description: &Description) {
    for (segment, requester) in [(0, 0), (0, 0x48), (1, 0xffff)] {
        let requester = RequesterId::new(requester);
        let who = Who::Requester(PciAddress { segment, requester }, &Nowhere);
        let _ = (
            description.regions_of(who).count(),
            description.reach_of(who),
            description.is_coherent(who),
            description.ats_of(who),
        );
    }
    for node in (0..description.nodes.len().min(4)).map(NodeIndex) {
        let _ = (description.node(node), description.input(node, 0x10));
        assert!(description.regions_of(Who::Node(node)).count() <= description.regions.len());
    }
}

/// Device trees of virtual machines, and a small one.
pub fn tree_seeds() -> Vec<Vec<u8>> {
    let mut all = each_once(fixtures("dtb").into_iter().map(|(_, bytes)| bytes));
    // The small one often: most damage to the others is to what nobody reads.
    all.extend(vec![tree_blob::small(); all.len()]);
    all
}

/// IORTs of virtual machines.
pub fn iort_seeds() -> Vec<Vec<u8>> {
    tables_of(iort_table::SIGNATURE)
}

/// VIOTs of virtual machines.
pub fn viot_seeds() -> Vec<Vec<u8>> {
    tables_of(viot_table::SIGNATURE)
}

/// DMAR tables of virtual machines.
pub fn dmar_seeds() -> Vec<Vec<u8>> {
    tables_of(dmar_table::SIGNATURE)
}

/// IVRS of virtual machines.
pub fn ivrs_seeds() -> Vec<Vec<u8>> {
    tables_of(ivrs_table::SIGNATURE)
}

/// MCFG tables of virtual machines.
pub fn mcfg_seeds() -> Vec<Vec<u8>> {
    tables_of(mcfg_table::SIGNATURE)
}

/// All tables of each virtual machine.
pub fn acpi_seeds() -> Vec<Vec<u8>> {
    let mut machines: Vec<(_, Vec<u8>)> = Vec::new();
    for (folder, bytes) in fixtures("aml") {
        match machines.last_mut().filter(|(last, _)| *last == folder) {
            Some((_, tables)) => tables.extend(bytes),
            None => machines.push((folder, bytes)),
        }
    }
    each_once(machines.into_iter().map(|(_, tables)| tables))
}

fn tables_of(signature: Signature) -> Vec<Vec<u8>> {
    let tables = fixtures("aml").into_iter().map(|(_, bytes)| bytes);
    each_once(tables.filter(|bytes| bytes.starts_with(&signature.0)))
}
