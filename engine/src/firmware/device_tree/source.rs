//! A tree with what its properties mean to all bindings: references, cells, addresses.

use alloc::string::String;
use alloc::vec::Vec;
use core::cell::Cell;

use crate::firmware::Problem;
use crate::firmware::device_tree::DeviceTreeError;
use crate::firmware::fdt::{NodeId, Nodes, Property};

/// How many cells an address or a size may have; a PCI address has three.
const MAX_CELLS: usize = 4;
/// How many entries of `ranges` and `dma-ranges` are read, so that looking up stays cheap.
const MAX_WINDOWS: usize = 256;

/// A tree, for readers of its meaning.
pub(super) struct Source<'a> {
    nodes: Nodes<'a>,
    /// Sorted.
    phandles: Vec<(u32, NodeId)>,
    /// Of each node: neither it nor one around it is disabled.
    is_enabled: Vec<bool>,
    /// How many bytes of paths may still be made; `None` if there were more.
    path_bytes: Cell<Option<usize>>,
}

/// An entry of `ranges` or `dma-ranges`: where a part of the addresses of a bus is on the bus above.
#[derive(Clone, Copy)]
pub(super) struct Window {
    pub(super) child: u64,
    pub(super) parent: u64,
    pub(super) len: u64,
}

impl<'a> Source<'a> {
    pub(super) fn new(nodes: Nodes<'a>, path_bytes: usize) -> Result<Self, DeviceTreeError> {
        let mut phandles = Vec::new();
        let mut is_enabled: Vec<bool> = Vec::new();
        for node in nodes.iter() {
            let status = nodes.property(node, "status");
            let is_okay = status.is_none_or(|status| matches!(text(status), b"okay" | b"ok"));
            let is_parent_enabled = nodes
                .parent(node)
                .is_none_or(|parent| is_enabled.get(parent.get()) == Some(&true));
            is_enabled.push(is_okay && is_parent_enabled);
            if let Some((phandle, property)) = phandle(&nodes, node) {
                phandles.push((phandle, node, property.offset));
            }
        }
        phandles.sort_by_key(|(phandle, node, _)| (*phandle, *node));
        for pair in phandles.windows(2) {
            if let [(first, ..), (second, node, offset)] = pair
                && first == second
            {
                return Err(DeviceTreeError::SharedPhandle {
                    phandle: *second,
                    path: nodes.path(*node),
                    offset: *offset,
                });
            }
        }
        let phandles = phandles
            .into_iter()
            .map(|(phandle, node, _)| (phandle, node))
            .collect();
        Ok(Self {
            nodes,
            phandles,
            is_enabled,
            path_bytes: Cell::new(Some(path_bytes)),
        })
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = NodeId> + use<> {
        self.nodes.iter()
    }

    /// The path of a node, or nothing once all paths together have become too long.
    pub(super) fn path(&self, node: NodeId) -> String {
        let Some(left) = self.path_bytes.get() else {
            return String::new();
        };
        let path = self.nodes.path(node);
        self.path_bytes.set(left.checked_sub(path.len()));
        path
    }

    pub(super) fn has_too_long_paths(&self) -> bool {
        self.path_bytes.get().is_none()
    }

    pub(super) fn name(&self, node: NodeId) -> &'a str {
        self.nodes.name(node)
    }

    pub(super) fn parent(&self, node: NodeId) -> Option<NodeId> {
        self.nodes.parent(node)
    }

    pub(super) fn up(&self, node: NodeId) -> impl Iterator<Item = NodeId> + use<'_, 'a> {
        self.nodes.up(node)
    }

    pub(super) fn property(&self, node: NodeId, name: &str) -> Option<Property<'a>> {
        self.nodes.property(node, name)
    }

    pub(super) fn has(&self, node: NodeId, name: &str) -> bool {
        self.property(node, name).is_some()
    }

    pub(super) fn is_enabled(&self, node: NodeId) -> bool {
        self.is_enabled.get(node.get()) == Some(&true)
    }

    /// The node with a phandle.
    pub(super) fn find(&self, phandle: u32) -> Result<NodeId, Problem> {
        let at = self.phandles.partition_point(|(first, _)| *first < phandle);
        match self.phandles.get(at) {
            Some((found, node)) if *found == phandle => Ok(*node),
            _ => Err(Problem::NoSuchNode { phandle }),
        }
    }

    /// What a node is compatible with, the closest first.
    pub(super) fn compatible(&self, node: NodeId) -> impl Iterator<Item = &'a [u8]> + use<'a> {
        let value = self.property(node, "compatible").map_or(&[][..], text);
        value.split(|byte| *byte == 0)
    }

    pub(super) fn is_compatible(&self, node: NodeId, names: &[&str]) -> bool {
        let mut own = self.compatible(node);
        own.any(|own| names.iter().any(|name| name.as_bytes() == own))
    }

    /// A property of one cell; `None` if it is not there.
    pub(super) fn number(&self, node: NodeId, name: &str) -> Option<Result<u32, Problem>> {
        let value = self.property(node, name)?.value;
        Some(match value {
            [_, _, _, _] => Ok(cell(value, 0).unwrap_or(0)),
            _ => Err(Problem::Length { len: value.len() }),
        })
    }

    /// How many cells `name`, a property of a node, counts.
    pub(super) fn cells(
        &self,
        node: NodeId,
        name: &'static str,
        default: Option<u32>,
        max: usize,
    ) -> Result<usize, Problem> {
        let found = self
            .number(node, name)
            .unwrap_or(Ok(default.unwrap_or(u32::MAX)));
        let count = found.ok().and_then(|count| usize::try_from(count).ok());
        count
            .filter(|count| *count <= max)
            .ok_or_else(|| Problem::Cells {
                name,
                path: self.path(node),
            })
    }

    /// How many cells the addresses on a bus have, and how many their sizes.
    pub(super) fn bus_cells(&self, bus: NodeId) -> Result<(usize, usize), Problem> {
        Ok((
            self.cells(bus, "#address-cells", Some(2), MAX_CELLS)?,
            self.cells(bus, "#size-cells", Some(1), MAX_CELLS)?,
        ))
    }

    /// Whether the node is a bridge to a PCI bus, so that its children are functions.
    pub(super) fn is_pci_bus(&self, node: NodeId) -> bool {
        let kind = self.property(node, "device_type");
        kind.is_some_and(|kind| matches!(text(kind), b"pci" | b"pciex"))
    }

    /// Whether requests of a node snoop the processor's caches: as it says, or the closest node around it
    /// that says anything.
    pub(super) fn is_coherent(&self, node: NodeId) -> Option<bool> {
        self.up(node).find_map(|node| {
            let is_coherent = self.has(node, "dma-coherent").then_some(true);
            is_coherent.or_else(|| self.has(node, "dma-noncoherent").then_some(false))
        })
    }

    /// Whether the node is a function of a PCI bus.
    pub(super) fn is_pci_function(&self, node: NodeId) -> bool {
        self.parent(node)
            .is_some_and(|parent| self.is_pci_bus(parent))
    }

    /// Addresses and sizes of a property of a node, in the cells of the bus that it is on.
    pub(super) fn reg(&self, node: NodeId) -> Option<Result<Vec<(u64, u64)>, Problem>> {
        let value = self.property(node, "reg")?.value;
        let bus = self.parent(node)?;
        Some(self.bus_cells(bus).and_then(|(address_cells, size_cells)| {
            let entries = entries(value, address_cells + size_cells)?;
            let read = |entry: &[u8]| {
                let (address, size) = split(entry, address_cells)?;
                Some((number(address)?, number(size)?))
            };
            entries
                .map(|entry| read(entry).ok_or(Problem::Length { len: value.len() }))
                .collect()
        }))
    }

    /// The entries of `ranges` or `dma-ranges` of a bus; `None` if it has none, or an empty one, both of
    /// which the caller knows the meaning of.
    pub(super) fn windows(
        &self,
        bus: NodeId,
        name: &str,
    ) -> Option<Result<impl Iterator<Item = Window> + use<'a>, Problem>> {
        let value = self.property(bus, name)?.value;
        let parent = self.parent(bus)?;
        if value.is_empty() {
            return None;
        }
        // Addresses of PCI have three cells, above a bridge as well as below.
        let [is_pci, is_below_pci] = [bus, parent].map(|bus| self.is_pci_bus(bus));
        let address = |value, is_pci| {
            if is_pci {
                pci_memory(value)
            } else {
                number(value)
            }
        };
        let layout = self.bus_cells(bus).and_then(|(child, size)| {
            let (parent, _) = self.bus_cells(parent)?;
            Ok((child, parent, size))
        });
        Some(
            layout.and_then(move |(child_cells, parent_cells, size_cells)| {
                let entries = entries(value, child_cells + parent_cells + size_cells)?;
                if entries.len() > MAX_WINDOWS {
                    return Err(Problem::TooMany { limit: MAX_WINDOWS });
                }
                Ok(entries.filter_map(move |entry| {
                    let (child, rest) = split(entry, child_cells)?;
                    let (parent, len) = split(rest, parent_cells)?;
                    Some(Window {
                        child: address(child, is_pci)?,
                        parent: address(parent, is_below_pci)?,
                        len: number(len)?,
                    })
                }))
            }),
        )
    }

    /// The processor's address of one on the bus that `node` is on.
    pub(super) fn translate(&self, node: NodeId, address: u64) -> Result<u64, Problem> {
        let nowhere = Problem::NoTranslation { address };
        let mut current = address;
        for bus in self.up(node).skip(1) {
            if bus == NodeId::ROOT {
                return Ok(current);
            }
            let Some(windows) = self.windows(bus, "ranges") else {
                if self.has(bus, "ranges") {
                    continue;
                }
                return Err(nowhere);
            };
            let found = windows?.find_map(|window| window.up(current));
            current = found.ok_or_else(|| nowhere.clone())?;
        }
        Err(nowhere)
    }
}

impl Window {
    /// An address of the bus, on the bus above.
    fn up(&self, address: u64) -> Option<u64> {
        let offset = address.checked_sub(self.child)?;
        if offset < self.len {
            self.parent.checked_add(offset)
        } else {
            None
        }
    }
}

/// The phandle of a node; old blobs give it another name.
fn phandle<'a>(nodes: &Nodes<'a>, node: NodeId) -> Option<(u32, Property<'a>)> {
    let property = nodes
        .property(node, "phandle")
        .or_else(|| nodes.property(node, "linux,phandle"))?;
    let phandle = cell(property.value, 0)?;
    (property.value.len() == 4 && phandle != 0 && phandle != u32::MAX)
        .then_some((phandle, property))
}

/// A string, or strings, without the last zero.
fn text(property: Property<'_>) -> &[u8] {
    property.value.strip_suffix(&[0]).unwrap_or(property.value)
}

/// The cell with an index.
pub(super) fn cell(value: &[u8], index: usize) -> Option<u32> {
    let at = index.checked_mul(4)?;
    let bytes = value.get(at..at.checked_add(4)?)?;
    Some(u32::from_be_bytes(bytes.try_into().ok()?))
}

/// The value cut into entries of so many cells.
pub(super) fn entries(
    value: &[u8],
    cells: usize,
) -> Result<core::slice::ChunksExact<'_, u8>, Problem> {
    let len = cells * 4;
    if len == 0 || !value.len().is_multiple_of(len) {
        return Err(Problem::Length { len: value.len() });
    }
    Ok(value.chunks_exact(len))
}

/// The value cut behind so many cells.
pub(super) fn split(value: &[u8], cells: usize) -> Option<(&[u8], &[u8])> {
    value.split_at_checked(cells * 4)
}

/// The number in all cells of a value; `None` if it has more than 64 bits.
pub(super) fn number(value: &[u8]) -> Option<u64> {
    let mut number = 0u64;
    for at in 0..value.len() / 4 {
        let cell = cell(value, at)?;
        if number >> 32 != 0 {
            return None;
        }
        number = number << 32 | u64::from(cell);
    }
    Some(number)
}

/// The address in a PCI address of three cells; `None` in I/O and configuration space (PCI Bus Binding
/// to IEEE 1275, 2.2.1.1: `ss` in bits 25:24 of the first cell).
pub(super) fn pci_memory(value: &[u8]) -> Option<u64> {
    let (space, address) = split(value, 1)?;
    let is_memory = cell(space, 0)? >> 25 & 1 == 1;
    is_memory.then(|| number(address)).flatten()
}
