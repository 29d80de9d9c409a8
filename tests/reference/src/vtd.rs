//! Intel VT-d second-stage tables.
//!
//! Intel Virtualization Technology for Directed I/O, architecture specification: 3.7 second-stage
//! translation, 9.8 second-stage paging entries. Levels count from 1 (4 KiB pages) to the root.
//!
//! The first stage has the format of x86-64: see [`x86::Config::vtd_first`](crate::x86::Config).

use crate::scan::Scan;
use crate::word::{bit, bits, exceeds, in_place};
use crate::{Fault, Item, Memory, MemoryAttributes, Rigour, ScanError, Setup, Translation};

/// How hardware was told to read the tables.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Config {
    /// SSPTPTR (older: SLPTPTR): address of the root table, bits 63:12.
    pub root: u64,
    /// Levels: 3, 4 or 5 for 39, 48 or 57 address bits (AW 1, 2, 3).
    pub levels: u8,
    /// Host address width in bits; the address bits above are reserved.
    pub oa_bits: u8,
    /// SSLPS (older: SLLPS) of the capability register: bit 0 for 2 MiB, bit 1 for 1 GiB pages.
    pub large_pages: u8,
    /// SC of the extended capability register: SNP is a snoop bit and not reserved.
    pub snoop_control: bool,
    /// DT of the extended capability register: TM (bit 62) of a page is a hint and not reserved.
    pub device_tlb: bool,
}

impl Config {
    /// Hardware with all page sizes, snoop control and 52 address bits, without device TLBs.
    pub const fn new(root: u64, levels: u8) -> Self {
        Self {
            root,
            levels,
            oa_bits: 52,
            large_pages: 3,
            snoop_control: true,
            device_tlb: false,
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

    fn entry(&self, word: u64, level: u8, rights: Rights) -> Result<Entry, Fault> {
        let number = level.cast_signed();
        // There is no present bit: an entry is present when it grants something.
        if !bit(word, 0) && !bit(word, 1) {
            return Err(Fault::NotMapped { level: number });
        }
        let reserved = Fault::Reserved {
            level: number,
            word,
        };
        let rights = Rights {
            read: rights.read && bit(word, 0),
            write: rights.write && bit(word, 1),
        };
        let address = in_place(word, 51, 12);
        let is_page = match level {
            1 => true,
            2 | 3 if bit(word, 7) && self.large_pages >> (level - 2) & 1 == 1 => true,
            _ if bit(word, 7) => return Err(reserved),
            _ => false,
        };
        let item_bits = item_bits(level);
        if exceeds(address, u32::from(self.oa_bits)) {
            return Err(Fault::AddressSize {
                level: number,
                address,
            });
        }
        // SNP and TM: of pages only, and where the hardware has them.
        let (snp, tm) = (bit(word, 11), bit(word, 62));
        if !is_page {
            return if snp || tm {
                Err(reserved)
            } else {
                Ok(Entry::Table { address, rights })
            };
        }
        // A large page reserves the address bits below its size.
        if in_place(address, item_bits - 1, 12) != 0
            || snp && !self.snoop_control
            || tm && !self.device_tlb
        {
            return Err(reserved);
        }
        if !rights.read && !rights.write {
            return Err(Fault::NoAccess { level: number });
        }
        Ok(Entry::Page(Translation {
            oa: address,
            page_len: 1 << item_bits,
            item_len: 1 << item_bits,
            read: rights.read,
            write: rights.write,
            execute: rights.read,
            user: true,
            dirty: bit(word, 9),
            accessed: bit(word, 8),
            memory: MemoryAttributes::VtdSecond {
                emt: bits(word, 5, 3) as u8,
                ipat: bit(word, 6),
                snp,
            },
            level: number,
            word,
        }))
    }
}

/// R and W of all entries so far: a request needs them in each (3.7.1).
#[derive(Clone, Copy)]
struct Rights {
    read: bool,
    write: bool,
}

impl Rights {
    const ALL: Self = Self {
        read: true,
        write: true,
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
    if exceeds(iova, item_bits(config.levels) + 9) {
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

/// Reports every leaf item, ascending.
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
        let iova = node.base | index << item_bits(node.level);
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
