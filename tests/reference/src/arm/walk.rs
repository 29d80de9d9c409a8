//! The walk itself, for one address and for all.

use std::ptr;

use super::descriptor::{Descriptor, Limits, Lookup};
use super::geometry::{Geometry, span};
use super::{Config, Half};
use crate::scan::Scan;
use crate::{Fault, Item, Memory, Rigour, ScanError, Translation};

/// Translates `iova`.
///
/// # Errors
///
/// Returns the fault that hardware takes.
pub fn walk<M: Memory + ?Sized>(
    config: &Config,
    memory: &M,
    iova: u64,
) -> Result<Translation, Fault> {
    config.check().map_err(Fault::Setup)?;
    let half = config.select(iova)?;
    let geometry = &Geometry::new(config, half).map_err(Fault::Setup)?;
    let mut table = geometry.root;
    let mut limits = Limits::default();
    let mut level = geometry.start;
    loop {
        let address = table + 8 * geometry.index(iova, level);
        let word = memory
            .read64(address)
            .ok_or(Fault::MissingMemory { address })?;
        match (Lookup {
            config,
            half,
            geometry,
            level,
            limits,
        })
        .descriptor(word)?
        {
            Descriptor::Leaf(leaf) => {
                let oa = leaf.oa | iova & (leaf.item_len - 1);
                return Ok(Translation { oa, ..leaf });
            }
            // Level 3 has no table descriptors, so this ends.
            Descriptor::Table {
                address,
                limits: below,
            } => (table, limits) = (address, below),
        }
        level += 1;
    }
}

/// Reports every leaf item, TTBR0 before TTBR1, each in ascending order.
///
/// # Errors
///
/// Stops at what [`ScanError`] names.
pub fn enumerate<M: Memory + ?Sized, F: FnMut(Item)>(
    config: &Config,
    memory: &M,
    limit: u64,
    rigour: Rigour,
    callback: F,
) -> Result<(), ScanError> {
    config.check().map_err(ScanError::Setup)?;
    let mut scan = Scan::new(memory, limit, rigour, callback);
    for (half, is_upper) in [(&config.lower, false), (&config.upper, true)] {
        let Some(half) = half else { continue };
        let geometry = Geometry::new(config, half).map_err(ScanError::Setup)?;
        let base = match (is_upper, config.aarch32) {
            (false, _) => 0,
            (true, false) => u64::MAX << half.ia_bits,
            (true, true) => (1 << 32) - span(half.ia_bits),
        };
        let root = Node {
            table: geometry.root,
            level: geometry.start,
            base,
            limits: Limits::default(),
        };
        Tree {
            config,
            half,
            geometry: &geometry,
        }
        .visit(&mut scan, root)?;
    }
    Ok(())
}

/// The tables below one base.
struct Tree<'a> {
    config: &'a Config,
    half: &'a Half,
    geometry: &'a Geometry,
}

/// A table and where it stands.
#[derive(Clone, Copy)]
struct Node {
    table: u64,
    level: i8,
    base: u64,
    limits: Limits,
}

impl Tree<'_> {
    fn visit<M, F>(&self, scan: &mut Scan<'_, M, F>, node: Node) -> Result<(), ScanError>
    where
        M: Memory + ?Sized,
        F: FnMut(Item),
    {
        let Node {
            table,
            level,
            base,
            limits,
        } = node;
        let lookup = Lookup {
            config: self.config,
            half: self.half,
            geometry: self.geometry,
            level,
            limits,
        };
        scan.enter(table)?;
        for index in 0..1 << self.geometry.index_bits(level) {
            let iova = base | index << self.geometry.item_bits(level);
            // A Mali root, and the roots of 32-bit tables, have entries outside their window.
            if !self
                .config
                .select(iova)
                .is_ok_and(|half| ptr::eq(half, self.half))
            {
                continue;
            }
            let word = scan.word(table + 8 * index)?;
            match lookup.descriptor(word) {
                Ok(Descriptor::Leaf(leaf)) => {
                    if scan.is_strict() {
                        self.check_group(scan, &lookup, node, index, &leaf)?;
                    }
                    scan.leaf(iova, leaf)?;
                }
                Ok(Descriptor::Table { address, limits }) => {
                    self.visit(
                        scan,
                        Node {
                            table: address,
                            level: level + 1,
                            base: iova,
                            limits,
                        },
                    )?;
                }
                Err(fault) => scan.fault(iova, fault)?,
            }
        }
        scan.leave();
        Ok(())
    }

    /// Checks the group of a leaf with the Contiguous bit (D8.7.1, rules RSKQHL and RQTRPM): all
    /// members valid leaves with the bit, equal attributes, consecutive aligned output.
    ///
    /// The first member is compared with all others; any other one only with the first.
    fn check_group<M, F>(
        &self,
        scan: &Scan<'_, M, F>,
        lookup: &Lookup<'_>,
        node: Node,
        index: u64,
        leaf: &Translation,
    ) -> Result<(), ScanError>
    where
        M: Memory + ?Sized,
        F: FnMut(Item),
    {
        let Some(count_bits) = lookup.contiguous_bits(leaf.word) else {
            return Ok(());
        };
        let count = 1 << count_bits;
        let start = index & !(count - 1);
        let first = scan.word(node.table + 8 * start)?;
        let members = if index == start {
            start..start + count
        } else {
            index..index + 1
        };
        for member in members {
            let word = scan.word(node.table + 8 * member)?;
            let agrees = match (lookup.descriptor(first), lookup.descriptor(word)) {
                (Ok(Descriptor::Leaf(a)), Ok(Descriptor::Leaf(b))) => {
                    lookup.attributes(first) == lookup.attributes(word)
                        && a.oa & (a.page_len - 1) == 0
                        && b.oa == a.oa + (member - start) * a.item_len
                }
                _ => false,
            };
            if !agrees {
                let iova = node.base | member << self.geometry.item_bits(node.level);
                return Err(ScanError::Inconsistent { iova, first, word });
            }
        }
        Ok(())
    }
}
