//! What a device tree says of IOMMUs.
//!
//! A device names its instances in `iommus`, a bus whose devices are found at run time maps their IDs in
//! `iommu-map`; which instance that is, is told by a phandle, and how many cells an ID has, by the
//! instance's `#iommu-cells`. The bindings are those of the Devicetree Specification v0.4 and of the
//! schemas `iommu.yaml`, `pci-iommu.yaml` and `reserved-memory.yaml` that Linux keeps.
//!
//! * A device has all IDs of its `iommus` or, where one of them cannot be read, none: a device that is
//!   half behind an IOMMU is no device to be given away. A bus keeps what its map says before the entry
//!   that cannot be read. Either is a [`Flaw`].
//! * Devices that are disabled, or in a node that is, are left out; an IOMMU that is, is kept, and who is
//!   behind it has rules that lead to none. So has a device all of its rules if only one of its IOMMUs
//!   is disabled.
//! * Functions of a PCI bus that the tree lists are found by the map of the host bridge, as all others;
//!   `iommus` of such a node says nothing.

mod devices;
mod hosts;
mod instances;
mod maps;
mod reach;
mod reserved;
mod source;
#[cfg(test)]
mod tests;

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::string::String;

use crate::firmware::device_tree::source::Source;
use crate::firmware::fdt::{FdtError, NodeId, Property, Tree};
use crate::firmware::{
    Bus, Description, Flaw, InstanceIndex, Node, NodeIndex, Problem, Subject, Topic,
};

/// A blob says nothing that can be relied on.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum DeviceTreeError {
    /// It is no flattened device tree.
    #[error(transparent)]
    Blob(#[from] FdtError),
    /// Two nodes have the same phandle, so that a reference to it means nothing.
    #[error("phandle {phandle:#x} of {path}, at byte {offset}, is another node's, too")]
    SharedPhandle {
        /// The phandle.
        phandle: u32,
        /// The second of the nodes.
        path: String,
        /// Where its property is in the blob, in bytes.
        offset: usize,
    },
    /// The names of all that it describes would be far larger than the blob: nodes with long names have many
    /// others inside.
    #[error("the paths of what it describes have more than {limit} bytes")]
    Paths {
        /// How many they may have together.
        limit: usize,
    },
}

/// How many bytes of paths a description has at most for each byte of the blob. Trees of real machines need
/// less than one.
const PATH_BYTES: usize = 16;

/// Reads a flattened device tree.
///
/// # Errors
///
/// [`DeviceTreeError`] if the blob is malformed. A property of a sound tree that is malformed is a
/// [`Flaw`] of the description.
pub fn parse(blob: &[u8]) -> Result<Description, DeviceTreeError> {
    let tree = Tree::new(blob)?;
    for entry in tree.reservations() {
        entry?;
    }
    let limit = tree.as_bytes().len().saturating_mul(PATH_BYTES);
    let source = Source::new(tree.nodes()?, limit)?;
    let mut reader = Reader::new(&source);
    reader.read_hosts();
    reader.read_instances();
    reader.read_devices();
    reader.read_reserved_memory();
    reader.read_reaches();
    reader.read_coherence();
    reader.read_pasids();
    reader.find_instances_among_devices();
    if source.has_too_long_paths() {
        return Err(DeviceTreeError::Paths { limit });
    }
    Ok(reader.description)
}

/// What has been read, and where from.
struct Reader<'s, 'a> {
    source: &'s Source<'a>,
    description: Description,
    /// Places in [`Description::instances`].
    instances: BTreeMap<NodeId, InstanceIndex>,
    /// Places in [`Description::hosts`].
    hosts: BTreeMap<NodeId, usize>,
    /// Places in [`Description::nodes`].
    nodes: BTreeMap<NodeId, NodeIndex>,
    /// What [`Description::suppliers`] has.
    edges: BTreeSet<(NodeId, InstanceIndex)>,
}

/// Where a sentence is, and whom it is about: what its flaw says of it.
#[derive(Clone, Copy)]
struct Sentence<'r> {
    topic: Topic,
    subject: Option<&'r Subject>,
    node: NodeId,
    name: &'static str,
    offset: usize,
}

impl<'s, 'a> Reader<'s, 'a> {
    fn new(source: &'s Source<'a>) -> Self {
        Self {
            source,
            description: Description::default(),
            instances: BTreeMap::new(),
            hosts: BTreeMap::new(),
            nodes: BTreeMap::new(),
            edges: BTreeSet::new(),
        }
    }

    fn flaw(&mut self, sentence: Sentence<'_>, problem: Problem) {
        self.description.flaws.push(Flaw {
            topic: sentence.topic,
            subject: sentence.subject.cloned(),
            name: self.source.path(sentence.node),
            property: sentence.name,
            offset: sentence.offset,
            problem,
        });
    }

    /// The place of a device in the description, which it gets if it has none.
    fn node_index(&mut self, node: NodeId) -> NodeIndex {
        let nodes = &mut self.description.nodes;
        *self.nodes.entry(node).or_insert_with(|| {
            nodes.push(Node {
                name: self.source.path(node),
                bus: bus(self.source, node),
            });
            NodeIndex(nodes.len() - 1)
        })
    }
}

impl<'r> Sentence<'r> {
    fn new(
        topic: Topic,
        subject: Option<&'r Subject>,
        node: NodeId,
        (name, property): (&'static str, Property<'_>),
    ) -> Self {
        Self {
            topic,
            subject,
            node,
            name,
            offset: property.offset,
        }
    }
}

fn bus(source: &Source<'_>, node: NodeId) -> Bus {
    if source.is_compatible(node, &["fsl,qoriq-mc"]) {
        Bus::FslMc
    } else if source.is_compatible(node, &["xlnx,versal-net-cdx"]) {
        Bus::Cdx
    } else if source.is_compatible(node, &["arm,primecell"]) {
        Bus::Amba
    } else {
        Bus::Platform
    }
}
