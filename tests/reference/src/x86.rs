//! x86-64 tables of 4 and 5 levels: CPU tables, VT-d first stage, AMD guest (v2) tables.
//!
//! Intel 64 and IA-32 Software Developer's Manual, volume 3, 4.5 (4-level and 5-level paging); VT-d
//! architecture specification 3.6 and 9.7 (first stage); AMD64 Architecture Programmer's Manual,
//! volume 2, 5.3. Levels count from 1 (4 KiB pages) to the root.
//!
//! All of these set accessed and dirty flags themselves, so a clear flag is no fault.

use crate::scan::Scan;
use crate::word::{bit, bits, exceeds, in_place};
use crate::{Fault, Item, Memory, MemoryAttributes, Rigour, ScanError, Setup, Translation};

/// Meaning of bit 63.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum ExecuteDisable {
    /// XD, NX: forbids instruction fetches.
    Enabled,
    /// No meaning at all.
    Ignored,
    /// A reserved bit.
    Reserved,
}

/// How hardware was told to read the tables.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Config {
    /// CR3, FSPTPTR (older: FLPTPTR), guest CR3: address of the root table; bits 51:12 count.
    pub root: u64,
    /// Levels: 4 or 5 for 48 or 57 address bits.
    pub levels: u8,
    /// Input addresses are canonical: all bits above the width equal the top bit of the width.
    /// Otherwise they are zero.
    pub sign_extended: bool,
    /// Output address size in bits; the address bits above are reserved.
    pub oa_bits: u8,
    /// Meaning of bit 63.
    pub execute_disable: ExecuteDisable,
}

impl Config {
    /// A CPU table with 52 output bits, canonical addresses and execute-disable.
    pub const fn new(root: u64, levels: u8) -> Self {
        Self {
            root,
            levels,
            sign_extended: true,
            oa_bits: 52,
            execute_disable: ExecuteDisable::Enabled,
        }
    }

    /// A VT-d first-stage table with `oa_bits` of host address width.
    pub const fn vtd_first(root: u64, levels: u8, oa_bits: u8) -> Self {
        Self {
            oa_bits,
            ..Self::new(root, levels)
        }
    }

    /// An AMD guest table.
    pub const fn amd_guest(root: u64, levels: u8) -> Self {
        Self::new(root, levels)
    }

    /// Checks what can be checked without an address.
    ///
    /// # Errors
    ///
    /// Names the setting that is not legal.
    pub fn check(&self) -> Result<(), Setup> {
        if !(4..=5).contains(&self.levels) {
            return Err(Setup::Levels {
                levels: self.levels.cast_signed(),
            });
        }
        if !(32..=52).contains(&self.oa_bits) {
            return Err(Setup::OutputBits {
                oa_bits: self.oa_bits,
            });
        }
        let root = in_place(self.root, 51, 12);
        if exceeds(root, u32::from(self.oa_bits)) {
            return Err(Setup::Root { root });
        }
        Ok(())
    }

    fn input_bits(&self) -> u32 {
        item_bits(self.levels) + 9
    }

    fn covers(&self, iova: u64) -> bool {
        if self.sign_extended {
            let above = iova.cast_signed() >> (self.input_bits() - 1);
            above == 0 || above == -1
        } else {
            !exceeds(iova, self.input_bits())
        }
    }

    fn entry(&self, word: u64, level: u8, rights: Rights) -> Result<Entry, Fault> {
        let number = level.cast_signed();
        if !bit(word, 0) {
            return Err(Fault::NotMapped { level: number });
        }
        let reserved = Fault::Reserved {
            level: number,
            word,
        };
        let is_page = match level {
            1 => true,
            2 | 3 => bit(word, 7),
            _ if bit(word, 7) => return Err(reserved),
            _ => false,
        };
        let xd = match self.execute_disable {
            ExecuteDisable::Enabled => bit(word, 63),
            ExecuteDisable::Reserved if bit(word, 63) => return Err(reserved),
            ExecuteDisable::Ignored | ExecuteDisable::Reserved => false,
        };
        let rights = Rights {
            write: rights.write && bit(word, 1),
            user: rights.user && bit(word, 2),
            execute: rights.execute && !xd,
        };
        let address = in_place(word, 51, 12);
        if exceeds(address, u32::from(self.oa_bits)) {
            return Err(Fault::AddressSize {
                level: number,
                address,
            });
        }
        if !is_page {
            return Ok(Entry::Table { address, rights });
        }
        let item_bits = item_bits(level);
        // A large page has PAT in bit 12 and reserves the bits from there to its size.
        if level > 1 && bits(word, item_bits - 1, 13) != 0 {
            return Err(reserved);
        }
        let pat = if level == 1 {
            bit(word, 7)
        } else {
            bit(word, 12)
        };
        Ok(Entry::Page(Translation {
            oa: in_place(word, 51, item_bits),
            page_len: 1 << item_bits,
            item_len: 1 << item_bits,
            read: true,
            write: rights.write,
            execute: rights.execute,
            user: rights.user,
            dirty: bit(word, 6),
            accessed: bit(word, 5),
            memory: MemoryAttributes::LongMode {
                pat_index: (u64::from(pat) << 2 | bits(word, 4, 3)) as u8,
            },
            level: number,
            word,
        }))
    }
}

/// R/W, U/S and XD of all entries so far.
#[derive(Clone, Copy)]
struct Rights {
    write: bool,
    user: bool,
    execute: bool,
}

impl Rights {
    const ALL: Self = Self {
        write: true,
        user: true,
        execute: true,
    };
}

enum Entry {
    Table { address: u64, rights: Rights },
    Page(Translation),
}

fn item_bits(level: u8) -> u32 {
    12 + 9 * (u32::from(level) - 1)
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
    let mut table = in_place(config.root, 51, 12);
    let mut rights = Rights::ALL;
    let mut level = config.levels;
    loop {
        let address = table + 8 * bits(iova, item_bits(level) + 8, item_bits(level));
        let word = memory
            .read64(address)
            .ok_or(Fault::MissingMemory { address })?;
        match config.entry(word, level, rights)? {
            Entry::Page(page) => {
                return Ok(Translation {
                    oa: page.oa | iova & (page.item_len - 1),
                    ..page
                });
            }
            // Level 1 holds pages only, so this ends.
            Entry::Table {
                address,
                rights: below,
            } => (table, rights) = (address, below),
        }
        level -= 1;
    }
}

/// Reports every leaf item in the order of the root's entries, so the upper half comes last.
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
    let table = in_place(config.root, 51, 12);
    visit(
        config,
        &mut scan,
        Node {
            table,
            level: config.levels,
            base: 0,
            rights: Rights::ALL,
        },
    )
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
    for index in 0..512 {
        let mut iova = node.base | index << item_bits(node.level);
        if config.sign_extended && bit(iova, config.input_bits() - 1) {
            iova |= u64::MAX << config.input_bits();
        }
        let word = scan.word(node.table + 8 * index)?;
        match config.entry(word, node.level, node.rights) {
            Ok(Entry::Page(page)) => scan.leaf(iova, page)?,
            Ok(Entry::Table { address, rights }) => {
                visit(
                    config,
                    scan,
                    Node {
                        table: address,
                        level: node.level - 1,
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
