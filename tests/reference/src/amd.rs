//! AMD IO page tables, version 1 (host tables).
//!
//! AMD I/O Virtualization Technology (IOMMU) Specification (48882), 2.2.3 "I/O Page Tables for Host
//! Translations": page table entries, Next Level, page size encodings. Levels count from 1 (4 KiB
//! pages) to 6. A page of the default size of its level has Next Level 0; one of another size has
//! Next Level 7, the size in its address field, and the same word in every entry that it spans.
//!
//! The specification allows default pages of 512 GiB at level 4, so this walker takes them, although
//! published errata make software avoid that size.
//!
//! The guest tables (version 2) have the format of x86-64: see [`x86`](crate::x86).

use crate::scan::Scan;
use crate::word::{bit, bits, exceeds, in_place};
use crate::{Fault, Item, Memory, MemoryAttributes, Rigour, ScanError, Setup, Translation};

/// How hardware was told to read the tables.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Config {
    /// Host page table root pointer, bits 51:12.
    pub root: u64,
    /// Mode of the device table entry: levels, 1 to 6.
    pub mode: u8,
    /// IR of the device table entry.
    pub read: bool,
    /// IW of the device table entry.
    pub write: bool,
    /// Output address size in bits.
    pub oa_bits: u8,
}

impl Config {
    /// A table of `mode` levels, with all rights and 52 output bits.
    pub const fn new(root: u64, mode: u8) -> Self {
        Self {
            root,
            mode,
            read: true,
            write: true,
            oa_bits: 52,
        }
    }

    /// Checks what can be checked without an address.
    ///
    /// # Errors
    ///
    /// Names the setting that is not legal.
    pub fn check(&self) -> Result<(), Setup> {
        if !(1..=6).contains(&self.mode) {
            return Err(Setup::Levels {
                levels: self.mode.cast_signed(),
            });
        }
        if !(32..=52).contains(&self.oa_bits) {
            return Err(Setup::OutputBits {
                oa_bits: self.oa_bits,
            });
        }
        if exceeds(self.root, u32::from(self.oa_bits)) {
            return Err(Setup::Root { root: self.root });
        }
        Ok(())
    }

    fn root_node(&self) -> Node {
        let rights = Rights {
            read: self.read,
            write: self.write,
        };
        Node {
            table: in_place(self.root, 51, 12),
            level: self.mode,
            base: 0,
            rights,
        }
    }

    fn entry(&self, word: u64, level: u8, rights: Rights) -> Result<Entry, Fault> {
        let number = level.cast_signed();
        let reserved = Fault::Reserved {
            level: number,
            word,
        };
        if !bit(word, 0) {
            return Err(Fault::NotMapped { level: number });
        }
        let rights = Rights {
            read: rights.read && bit(word, 61),
            write: rights.write && bit(word, 62),
        };
        let next_level = bits(word, 11, 9) as u8;
        let address = in_place(word, 51, 12);
        let page_bits = match next_level {
            // Level 6 has no page of its own: 128 PiB do not fit an output address.
            0 if level == 6 => return Err(reserved),
            0 => item_bits(level),
            7 => encoded_size(word, level).ok_or(reserved)?,
            1..=6 if next_level >= level || bits(word, 60, 52) != 0 => return Err(reserved),
            _ if exceeds(address, u32::from(self.oa_bits)) => {
                return Err(Fault::AddressSize {
                    level: number,
                    address,
                });
            }
            _ => {
                return Ok(Entry::Table {
                    address,
                    level: next_level,
                    rights,
                });
            }
        };
        if bits(word, 58, 52) != 0 {
            return Err(reserved);
        }
        let oa = in_place(address, 51, page_bits);
        if exceeds(oa, u32::from(self.oa_bits)) {
            return Err(Fault::AddressSize {
                level: number,
                address: oa,
            });
        }
        if !rights.read && !rights.write {
            return Err(Fault::NoAccess { level: number });
        }
        Ok(Entry::Page(Translation {
            oa,
            page_len: 1 << page_bits,
            item_len: 1 << item_bits(level),
            read: rights.read,
            write: rights.write,
            execute: rights.read,
            user: true,
            dirty: bit(word, 6),
            accessed: bit(word, 5),
            memory: MemoryAttributes::Amd { fc: bit(word, 60) },
            level: number,
            word,
        }))
    }
}

/// IR and IW of all entries so far, those of the device table entry included.
#[derive(Clone, Copy)]
struct Rights {
    read: bool,
    write: bool,
}

enum Entry {
    /// A table whose level may be any lower one.
    Table {
        address: u64,
        level: u8,
        rights: Rights,
    },
    /// A page; `oa` is that of its first byte, not of the item's.
    Page(Translation),
}

fn item_bits(level: u8) -> u32 {
    12 + 9 * (u32::from(level) - 1)
}

/// Address bits that a table of `level` resolves; the top one has what is left of 64.
fn index_bits(level: u8) -> u32 {
    if level == 6 { 7 } else { 9 }
}

/// Base-2 logarithm of the page size that a Next Level 7 entry encodes: the address bits below the
/// lowest zero from bit 12 on are ones, and that zero is the size's upper half.
///
/// Only sizes between the level's own and the next level's are legal, so level 6 has none.
fn encoded_size(word: u64, level: u8) -> Option<u32> {
    let ones = bits(word, 51, 12).trailing_ones();
    let size = 12 + ones + 1;
    (size > item_bits(level) && size < item_bits(level) + 9).then_some(size)
}

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
    if exceeds(iova, item_bits(config.mode) + index_bits(config.mode)) {
        return Err(Fault::OutOfWindow { iova });
    }
    let Node {
        mut table,
        mut level,
        mut rights,
        ..
    } = config.root_node();
    loop {
        let item = item_bits(level);
        let address = table + 8 * bits(iova, item + index_bits(level) - 1, item);
        let word = memory
            .read64(address)
            .ok_or(Fault::MissingMemory { address })?;
        match config.entry(word, level, rights)? {
            Entry::Page(page) => {
                return Ok(Translation {
                    oa: page.oa | iova & (page.page_len - 1),
                    ..page
                });
            }
            // The next level is lower, so this ends.
            Entry::Table {
                address,
                level: next,
                rights: below,
            } => {
                // The address bits of skipped levels must be zero.
                if in_place(iova, item - 1, item_bits(next) + 9) != 0 {
                    return Err(Fault::NotMapped {
                        level: level.cast_signed(),
                    });
                }
                (table, level, rights) = (address, next, below);
            }
        }
    }
}

/// Reports every leaf item, ascending. The items of a page with Next Level 7 come one by one.
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
    visit(config, &mut scan, config.root_node())
}

/// A table and where it stands.
#[derive(Clone, Copy)]
struct Node {
    table: u64,
    level: u8,
    base: u64,
    rights: Rights,
}

fn visit<M, F>(config: &Config, scan: &mut Scan<'_, M, F>, node: Node) -> Result<(), ScanError>
where
    M: Memory + ?Sized,
    F: FnMut(Item),
{
    scan.enter(node.table)?;
    for index in 0..1 << index_bits(node.level) {
        let iova = node.base | index << item_bits(node.level);
        let word = scan.word(node.table + 8 * index)?;
        match config.entry(word, node.level, node.rights) {
            Ok(Entry::Page(page)) => {
                if scan.is_strict() {
                    check_group(scan, node, index, &page)?;
                }
                let oa = page.oa | iova & (page.page_len - 1);
                scan.leaf(iova, Translation { oa, ..page })?;
            }
            Ok(Entry::Table {
                address,
                level,
                rights,
            }) => {
                visit(
                    config,
                    scan,
                    Node {
                        table: address,
                        level,
                        base: iova,
                        rights,
                    },
                )?;
            }
            Err(fault) => scan.fault(iova, fault)?,
        }
    }
    scan.leave();
    Ok(())
}

/// Checks that all entries which a page spans hold the same word.
///
/// The first one is compared with all others; any other one only with the first.
fn check_group<M, F>(
    scan: &Scan<'_, M, F>,
    node: Node,
    index: u64,
    page: &Translation,
) -> Result<(), ScanError>
where
    M: Memory + ?Sized,
    F: FnMut(Item),
{
    // Hardware sets A and D in single entries; bits 63, 8:7 and 4:1 are ignored.
    let compared = |word: u64| in_place(word, 62, 9) | u64::from(bit(word, 0));
    let count = page.page_len / page.item_len;
    let start = index & !(count - 1);
    let first = scan.word(node.table + 8 * start)?;
    let members = if index == start {
        start..start + count
    } else {
        index..index + 1
    };
    for member in members {
        let word = scan.word(node.table + 8 * member)?;
        if compared(word) != compared(first) {
            let iova = node.base | member << item_bits(node.level);
            return Err(ScanError::Inconsistent { iova, first, word });
        }
    }
    Ok(())
}
