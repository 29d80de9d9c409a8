//! All nodes of a tree, for looking up.

use alloc::string::String;
use alloc::vec::Vec;
use core::ops::Range;

use crate::firmware::fdt::FdtError;
use crate::firmware::fdt::events::{Event, Events, Property};

/// A node of a tree: its place among all. Parents come before their children.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct NodeId(usize);

impl NodeId {
    /// The root.
    pub const ROOT: Self = Self(0);

    /// Returns the place among all nodes.
    pub const fn get(self) -> usize {
        self.0
    }
}

/// All nodes of a tree.
#[derive(Clone, Debug)]
pub struct Nodes<'a> {
    nodes: Vec<Record<'a>>,
    /// Those of one node lie together, sorted by name.
    properties: Vec<Property<'a>>,
}

#[derive(Clone, Debug)]
struct Record<'a> {
    name: &'a str,
    parent: Option<NodeId>,
    properties: Range<usize>,
}

impl<'a> Nodes<'a> {
    pub(super) fn new(events: Events<'a>) -> Result<Self, FdtError> {
        let mut nodes: Vec<Record<'a>> = Vec::new();
        let mut properties = Vec::new();
        let mut current = None;
        for event in events {
            match event? {
                Event::Begin(name) => {
                    let start = properties.len();
                    nodes.push(Record {
                        name,
                        parent: current,
                        properties: start..start,
                    });
                    current = Some(NodeId(nodes.len() - 1));
                }
                Event::Property(property) => {
                    properties.push(property);
                    // Properties come before children: the last node is the one they belong to.
                    if let Some(node) = nodes.last_mut() {
                        node.properties.end = properties.len();
                    }
                }
                Event::End => {
                    current = current
                        .and_then(|NodeId(node)| nodes.get(node))
                        .and_then(|node| node.parent);
                }
            }
        }
        for node in &nodes {
            // Stable: of two properties of one name the first one counts.
            properties[node.properties.clone()].sort_by_key(|property| property.name);
        }
        Ok(Self { nodes, properties })
    }

    /// Returns all nodes, in the order of the tree.
    pub fn iter(&self) -> impl Iterator<Item = NodeId> + use<> {
        (0..self.nodes.len()).map(NodeId)
    }

    /// Returns the name of a node, with its unit address; of the root, mostly nothing.
    pub fn name(&self, node: NodeId) -> &'a str {
        self.nodes.get(node.0).map_or("", |record| record.name)
    }

    /// Returns the node that a node is in; `None` for the root.
    pub fn parent(&self, node: NodeId) -> Option<NodeId> {
        self.nodes.get(node.0).and_then(|record| record.parent)
    }

    /// Returns a node and those around it, up to the root.
    pub fn up(&self, node: NodeId) -> impl Iterator<Item = NodeId> + use<'_, 'a> {
        core::iter::successors(Some(node), |node| self.parent(*node))
    }

    /// Returns a property of a node.
    pub fn property(&self, node: NodeId, name: &str) -> Option<Property<'a>> {
        let record = self.nodes.get(node.0)?;
        let properties = self.properties.get(record.properties.clone())?;
        let at = properties.partition_point(|property| property.name < name);
        let found = properties.get(at).copied();
        found.filter(|property| property.name == name)
    }

    /// Returns the path of a node: `/` for the root, `/soc/uart@1000` for what is below.
    pub fn path(&self, node: NodeId) -> String {
        let mut names: Vec<&str> = self.up(node).map(|node| self.name(node)).collect();
        names.pop();
        if names.is_empty() {
            return "/".into();
        }
        let mut path = String::new();
        for name in names.iter().rev() {
            path.push('/');
            path.push_str(name);
        }
        path
    }
}
