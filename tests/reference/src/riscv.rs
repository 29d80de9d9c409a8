//! RISC-V tables: Sv39, Sv48, Sv57, and the wider Sv39x4, Sv48x4, Sv57x4 of the G-stage.
//!
//! The RISC-V Instruction Set Manual, volume II: 12.4 to 12.6 (Sv39 and larger), Svnapot, Svpbmt,
//! Svadu, and 21.5 two-stage address translation; RISC-V IOMMU Architecture Specification 2.3.
//! Levels count from 0 (4 KiB pages) to the root.

use crate::scan::Scan;
use crate::word::{bit, bits, exceeds, in_place};
use crate::{Fault, Item, Memory, MemoryAttributes, Rigour, ScanError, Setup, Translation};

/// Which stage a table is for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Stage {
    /// First stage (iosatp, satp, vsatp): sign-extended input addresses.
    First,
    /// G-stage (iohgatp, hgatp): zero-extended, two more input bits, a root of four pages, and
    /// leaves need U.
    G,
}

/// How hardware was told to read the tables.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Config {
    /// Address of the root table.
    pub root: u64,
    /// The stage.
    pub stage: Stage,
    /// Levels: 3, 4, 5 for Sv39, Sv48, Sv57 and their x4 forms (MODE 8, 9, 10).
    pub levels: u8,
    /// Svnapot is there: N makes a 64 KiB page of 16 entries.
    pub svnapot: bool,
    /// Svpbmt is there and enabled.
    pub svpbmt: bool,
    /// ADUE, SADE, GADE: hardware sets A and D, so clear ones do not fault.
    pub hardware_ad: bool,
    /// Output address size in bits, at most 56.
    pub oa_bits: u8,
}

impl Config {
    /// A table with Svnapot, Svpbmt, 56 output bits and A and D left to software.
    pub const fn new(stage: Stage, root: u64, levels: u8) -> Self {
        Self {
            root,
            stage,
            levels,
            svnapot: true,
            svpbmt: true,
            hardware_ad: false,
            oa_bits: 56,
        }
    }

    /// Checks what can be checked without an address.
    ///
    /// # Errors
    ///
    /// Names the setting that is not legal.
    pub fn check(&self) -> Result<(), Setup> {
        if !(3..=5).contains(&self.levels) {
            return Err(Setup::Levels {
                levels: self.levels.cast_signed(),
            });
        }
        if !(32..=56).contains(&self.oa_bits) {
            return Err(Setup::OutputBits {
                oa_bits: self.oa_bits,
            });
        }
        // The register has the page number; the low two bits of a G-stage's are zero.
        let alignment = if self.stage == Stage::G {
            0x4000
        } else {
            0x1000
        };
        if exceeds(self.root, u32::from(self.oa_bits)) || !self.root.is_multiple_of(alignment) {
            return Err(Setup::Root { root: self.root });
        }
        Ok(())
    }

    fn top(&self) -> u8 {
        self.levels - 1
    }

    /// Address bits that a table of `level` resolves.
    fn index_bits(&self, level: u8) -> u32 {
        if self.stage == Stage::G && level == self.top() {
            11
        } else {
            9
        }
    }

    fn input_bits(&self) -> u32 {
        item_bits(self.top()) + self.index_bits(self.top())
    }

    fn covers(&self, iova: u64) -> bool {
        match self.stage {
            Stage::First => {
                let above = iova.cast_signed() >> (self.input_bits() - 1);
                above == 0 || above == -1
            }
            Stage::G => !exceeds(iova, self.input_bits()),
        }
    }

    fn entry(&self, word: u64, level: u8) -> Result<Entry, Fault> {
        let number = level.cast_signed();
        let reserved = Fault::Reserved {
            level: number,
            word,
        };
        let [v, r, w, x, u] = [0, 1, 2, 3, 4].map(|n| bit(word, n));
        let [a, d] = [6, 7].map(|n| bit(word, n));
        let pbmt = bits(word, 62, 61) as u8;
        let n = bit(word, 63);
        if !v {
            return Err(Fault::NotMapped { level: number });
        }
        if w && !r
            || bits(word, 60, 54) != 0
            || pbmt == 3
            || pbmt != 0 && !self.svpbmt
            || n && !self.svnapot
        {
            return Err(reserved);
        }
        let ppn = bits(word, 53, 10);
        let address = ppn << 12;
        let is_wide = exceeds(address, u32::from(self.oa_bits));
        if !r && !w && !x {
            // D, A, U, PBMT and N of a pointer are reserved.
            if level == 0 || a || d || u || pbmt != 0 || n {
                return Err(reserved);
            }
            if is_wide {
                return Err(Fault::AddressSize {
                    level: number,
                    address,
                });
            }
            return Ok(Entry::Table { address });
        }
        let item_bits = item_bits(level);
        // A large page must be aligned; a NAPOT page has 0b1000 as its lowest page number bits.
        let (oa, page_bits) = match (n, level) {
            (false, 0) => (address, 12),
            (false, _) if in_place(address, item_bits - 1, 12) == 0 => (address, item_bits),
            (true, 0) if bits(ppn, 3, 0) == 0b1000 => (in_place(address, 55, 16), 16),
            _ => return Err(reserved),
        };
        if is_wide {
            return Err(Fault::AddressSize {
                level: number,
                address,
            });
        }
        if self.stage == Stage::G && !u {
            return Err(Fault::NoAccess { level: number });
        }
        if !a && !self.hardware_ad {
            return Err(Fault::AccessFlag { level: number });
        }
        Ok(Entry::Page(Translation {
            oa,
            page_len: 1 << page_bits,
            item_len: 1 << item_bits,
            read: r,
            write: w && (d || self.hardware_ad),
            execute: x,
            user: u,
            dirty: d,
            accessed: a,
            memory: MemoryAttributes::Riscv { pbmt },
            level: number,
            word,
        }))
    }
}

enum Entry {
    Table {
        address: u64,
    },
    /// A page; `oa` is that of its first byte, not of the item's.
    Page(Translation),
}

fn item_bits(level: u8) -> u32 {
    12 + 9 * u32::from(level)
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
    if !config.covers(iova) {
        return Err(Fault::OutOfWindow { iova });
    }
    let mut table = config.root;
    let mut level = config.top();
    loop {
        let item = item_bits(level);
        let address = table + 8 * bits(iova, item + config.index_bits(level) - 1, item);
        let word = memory
            .read64(address)
            .ok_or(Fault::MissingMemory { address })?;
        match config.entry(word, level)? {
            Entry::Page(page) => {
                return Ok(Translation {
                    oa: page.oa | iova & (page.page_len - 1),
                    ..page
                });
            }
            // Level 0 has no pointers, so this ends.
            Entry::Table { address } => table = address,
        }
        level -= 1;
    }
}

/// Reports every leaf item in the order of the root's entries, so a first stage's upper half comes
/// last. The items of a NAPOT page come one by one.
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
    visit(
        config,
        &mut scan,
        Node {
            table: config.root,
            level: config.top(),
            base: 0,
        },
    )
}

/// A table and where it stands.
#[derive(Clone, Copy)]
struct Node {
    table: u64,
    level: u8,
    base: u64,
}

fn visit<M, F>(config: &Config, scan: &mut Scan<'_, M, F>, node: Node) -> Result<(), ScanError>
where
    M: Memory + ?Sized,
    F: FnMut(Item),
{
    scan.enter(node.table)?;
    for index in 0..1 << config.index_bits(node.level) {
        let mut iova = node.base | index << item_bits(node.level);
        if config.stage == Stage::First && bit(iova, config.input_bits() - 1) {
            iova |= u64::MAX << config.input_bits();
        }
        let word = scan.word(node.table + 8 * index)?;
        match config.entry(word, node.level) {
            Ok(Entry::Page(page)) => {
                if scan.is_strict() {
                    check_group(scan, node, index, &page)?;
                }
                let oa = page.oa | iova & (page.page_len - 1);
                scan.leaf(iova, Translation { oa, ..page })?;
            }
            Ok(Entry::Table { address }) => {
                visit(
                    config,
                    scan,
                    Node {
                        table: address,
                        level: node.level - 1,
                        base: iova,
                    },
                )?;
            }
            Err(fault) => scan.fault(iova, fault)?,
        }
    }
    scan.leave();
    Ok(())
}

/// Checks that all entries which a NAPOT page spans hold the same word.
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
    // Hardware sets A and D (bits 7:6) in single entries; RSW (bits 9:8) belongs to software.
    let compared = |word: u64| in_place(word, 63, 10) | in_place(word, 5, 0);
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
