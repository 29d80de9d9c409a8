//! Drivers that draw what they do: one that forgets nothing is never accused, and each that forgets one
//! kind of command is.

use iopt_sim::{Context, Rights};

use crate::machines::{
    AMD, AMD_ABSENT, Machine, RISCV, RISCV_NON_LEAF, ROOT, SMMU, SMMU_ERRATUM, SMMU_RANGES, VTD,
    VTD_CACHING, amd_context, riscv_context, smmu_context, vtd_context,
};
use crate::rig::{DEVICE, DOMAIN, Rig, Words};
use crate::scenes::{LEVEL_2, LEVEL_3, OFFSET};

const PAGE: u64 = 0x1000;
const BLOCK: u64 = 0x20_0000;
/// Tables that may hold pages of the first two blocks of addresses.
const TABLES: [u64; 3] = [0x4000, 0x5000, 0x6000];
/// Pages of each table that are used.
const USED: u64 = 16;

/// What a driver leaves out.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Forgets {
    Nothing,
    /// Invalidations of what was taken away.
    Removed,
    /// That a table was taken away.
    Tables,
    /// Invalidations of what came.
    Added,
    /// Device TLBs.
    Devices,
    /// To wait.
    Syncs,
}

/// Commands of one architecture.
struct Dialect {
    machine: &'static Machine,
    context: fn() -> Context,
    /// For a span of `2^lg2` bytes; leaves only, or pointers to tables too.
    flush: fn(start: u64, lg2: u32, has_table: bool) -> Vec<Words>,
    device: fn(start: u64, lg2: u32) -> Words,
    /// What comes has to be told.
    caches_absent: bool,
}

/// The address with ones below its size, from bit 12 on.
fn encoded(start: u64, lg2: u32) -> u64 {
    start | ((1 << (lg2 - 1)) - 1) & !0xfff
}

fn smmu_device(start: u64, lg2: u32) -> Words {
    [0x40 | u64::from(DEVICE) << 32, start | u64::from(lg2 - 12)]
}

fn smmu_flush(start: u64, lg2: u32, has_table: bool) -> Vec<Words> {
    if lg2 > 12 && has_table {
        // One by one would be 512.
        return vec![[0x11 | 5 << 48, 0]];
    }
    // Any address of a leaf names it.
    vec![[0x12 | 5 << 48, start | u64::from(!has_table)]]
}

fn smmu_range_flush(start: u64, lg2: u32, has_table: bool) -> Vec<Words> {
    // Two granules for one: the form with a single one needs a level.
    let scale = u64::from(lg2 - 12).max(1);
    vec![[
        0x12 | scale << 20 | 5 << 48,
        start | 1 << 10 | u64::from(!has_table),
    ]]
}

const fn smmu(machine: &'static Machine, has_ranges: bool) -> Dialect {
    Dialect {
        machine,
        context: smmu_context,
        flush: if has_ranges {
            smmu_range_flush
        } else {
            smmu_flush
        },
        device: smmu_device,
        caches_absent: false,
    }
}

const fn vtd(machine: &'static Machine, caches_absent: bool) -> Dialect {
    Dialect {
        machine,
        context: vtd_context,
        flush: |start, lg2, has_table| {
            let ih = if has_table { 0 } else { 1 << 6 };
            vec![[2 | 3 << 4 | 9 << 16, start | u64::from(lg2 - 12) | ih]]
        },
        device: |start, lg2| {
            let address = if lg2 == 12 {
                start
            } else {
                encoded(start, lg2) | 1
            };
            [3 | u64::from(DEVICE) << 32, address]
        },
        caches_absent,
    }
}

const fn amd(machine: &'static Machine, caches_absent: bool) -> Dialect {
    Dialect {
        machine,
        context: amd_context,
        flush: |start, lg2, has_table| {
            let pde = if has_table { 2 } else { 0 };
            let address = if lg2 == 12 {
                start
            } else {
                encoded(start, lg2) | 1
            };
            vec![[3 << 60 | 9 << 32, address | pde]]
        },
        device: |start, lg2| {
            let address = if lg2 == 12 {
                start
            } else {
                encoded(start, lg2) | 1
            };
            [4 << 60 | u64::from(DEVICE), address]
        },
        caches_absent,
    }
}

fn riscv_device(start: u64, lg2: u32) -> Words {
    let address = if lg2 == 12 {
        start
    } else {
        encoded(start, lg2) | 1 << 11
    };
    [4 | u64::from(DEVICE) << 40, address]
}

fn riscv_flush(start: u64, lg2: u32, has_table: bool) -> Vec<Words> {
    if has_table {
        return vec![[1 | 5 << 12 | 1 << 32, 0]];
    }
    let range = if lg2 == 12 { 0 } else { 1 << 9 };
    let address = if lg2 == 12 {
        start
    } else {
        encoded(start, lg2)
    };
    vec![[1 | 5 << 12 | 1 << 32 | 1 << 10, address >> 12 << 10 | range]]
}

fn riscv_non_leaf_flush(start: u64, lg2: u32, has_table: bool) -> Vec<Words> {
    let mut commands = riscv_flush(start, lg2, false);
    commands[0][0] |= u64::from(has_table) << 34;
    commands
}

const fn riscv(machine: &'static Machine, has_non_leaf: bool) -> Dialect {
    Dialect {
        machine,
        context: riscv_context,
        flush: if has_non_leaf {
            riscv_non_leaf_flush
        } else {
            riscv_flush
        },
        device: riscv_device,
        caches_absent: false,
    }
}

static DIALECTS: [Dialect; 9] = [
    smmu(&SMMU, false),
    smmu(&SMMU_RANGES, true),
    smmu(&SMMU_ERRATUM, true),
    vtd(&VTD, false),
    vtd(&VTD_CACHING, true),
    amd(&AMD, false),
    amd(&AMD_ABSENT, true),
    riscv(&RISCV, false),
    riscv(&RISCV_NON_LEAF, true),
];

/// What stands in an entry for a block of addresses.
#[derive(Clone, Copy, Eq, PartialEq)]
enum Entry {
    Absent,
    Block,
    Table(u64),
}

struct Driver {
    rig: Rig,
    dialect: &'static Dialect,
    forgets: Forgets,
    random: u64,
    entries: [Entry; 2],
    /// Output address of each page of a table, 0 for none.
    pages: [[u64; USED as usize]; 2],
    free: Vec<u64>,
    fresh: u64,
}

/// Somebody met something stale.
struct Accused;

impl Driver {
    fn new(dialect: &'static Dialect, forgets: Forgets, seed: u64) -> Self {
        let rig = Rig::new(dialect.machine, (dialect.context)());
        rig.iommu.set_device_tlb(DEVICE, true);
        let pointer = dialect.machine.pointer;
        rig.put(ROOT, pointer(LEVEL_3, 3));
        rig.put(LEVEL_3, pointer(LEVEL_2, 2));
        rig.put(LEVEL_2, 0);
        Self {
            rig,
            dialect,
            forgets,
            random: seed,
            entries: [Entry::Absent; 2],
            pages: [[0; USED as usize]; 2],
            free: TABLES.to_vec(),
            fresh: OFFSET,
        }
    }

    fn draw(&mut self, count: u64) -> u64 {
        self.random = self
            .random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.random >> 33) % count
    }

    /// A new place to map to, so that what is old is known.
    fn place(&mut self, len: u64) -> u64 {
        self.fresh = self.fresh.next_multiple_of(len) + len;
        self.fresh - len
    }

    /// The device asks for some addresses.
    fn requests(&mut self) -> Result<(), Accused> {
        for _ in 0..self.draw(4) {
            let iova = self.draw(2) * BLOCK + self.draw(USED + 1) * PAGE;
            self.rig.read(iova).map_err(|_| Accused)?;
        }
        Ok(())
    }

    fn send(&mut self, commands: &[Words]) -> Result<(), Accused> {
        for half in commands.chunks(3) {
            self.rig.send(half);
            self.requests()?;
        }
        if self.forgets != Forgets::Syncs {
            let sync = self.rig.machine.sync;
            self.rig.send(&[sync]);
        }
        self.requests()?;
        self.rig.wait();
        Ok(())
    }

    /// Makes hardware forget a span, from which something was taken.
    fn flush(&mut self, start: u64, lg2: u32, has_table: bool) -> Result<(), Accused> {
        self.requests()?;
        if self.forgets != Forgets::Removed {
            let has_table = has_table && self.forgets != Forgets::Tables;
            let commands = (self.dialect.flush)(start, lg2, has_table);
            self.send(&commands)?;
        }
        if self.forgets != Forgets::Devices {
            let command = (self.dialect.device)(start, lg2);
            self.send(&[command])?;
        }
        Ok(())
    }

    fn map(&mut self, slot: u64, word: u64, iova: u64, oa: u64, lg2: u32) -> Result<(), Accused> {
        let range = iova..=iova + (1 << lg2) - 1;
        self.rig.ledger.map(DOMAIN, range.clone(), oa, Rights::ALL);
        self.rig.put(slot, word);
        self.requests()?;
        if self.dialect.caches_absent && self.forgets != Forgets::Added {
            // Absent tables are cached too.
            let commands = (self.dialect.flush)(iova, lg2, true);
            self.send(&commands)?;
        }
        self.rig.ledger.map_done(DOMAIN, range);
        self.requests()
    }

    fn step(&mut self) -> Result<(), Accused> {
        let block = self.draw(2);
        let (start, slot) = (block * BLOCK, LEVEL_2 + 8 * block);
        match (self.entries[block as usize], self.draw(8)) {
            (Entry::Absent, 0) => {
                let oa = self.place(BLOCK);
                let word = (self.rig.machine.block)(oa);
                self.map(slot, word, start, oa, 21)?;
                self.entries[block as usize] = Entry::Block;
            }
            (Entry::Absent, _) => {
                let Some(table) = self.free.pop() else {
                    return Ok(());
                };
                self.rig.ledger.table_allocated(table, PAGE);
                for index in 0..512 {
                    self.rig.put(table + 8 * index, 0);
                }
                self.rig.put(slot, (self.rig.machine.pointer)(table, 1));
                self.entries[block as usize] = Entry::Table(table);
            }
            (Entry::Block, _) => {
                self.rig.ledger.unmap(DOMAIN, start..=start + BLOCK - 1);
                self.rig.put(slot, 0);
                self.flush(start, 21, false)?;
                self.rig.ledger.forgotten(DOMAIN, start..=start + BLOCK - 1);
                self.entries[block as usize] = Entry::Absent;
            }
            (Entry::Table(table), 0) => self.detach(block, table)?,
            (Entry::Table(table), _) => self.change_page(block, table)?,
        }
        self.rig.iommu.check_all().map_err(|_| Accused)
    }

    /// Takes a table away with all its pages.
    fn detach(&mut self, block: u64, table: u64) -> Result<(), Accused> {
        let start = block * BLOCK;
        self.rig.ledger.unmap(DOMAIN, start..=start + BLOCK - 1);
        self.rig.put(LEVEL_2 + 8 * block, 0);
        self.flush(start, 21, true)?;
        self.rig.ledger.forgotten(DOMAIN, start..=start + BLOCK - 1);
        self.rig.ledger.table_freed(table);
        self.free.insert(0, table);
        self.pages[block as usize] = [0; USED as usize];
        self.entries[block as usize] = Entry::Absent;
        Ok(())
    }

    fn change_page(&mut self, block: u64, table: u64) -> Result<(), Accused> {
        let index = self.draw(USED);
        let iova = block * BLOCK + index * PAGE;
        let old = self.pages[block as usize][index as usize];
        if old == 0 {
            let oa = self.place(PAGE);
            let word = (self.rig.machine.page)(oa);
            self.map(table + 8 * index, word, iova, oa, 12)?;
            self.pages[block as usize][index as usize] = oa;
        } else {
            let range = iova..=iova + PAGE - 1;
            self.rig.ledger.unmap(DOMAIN, range.clone());
            self.rig.put(table + 8 * index, 0);
            self.flush(iova, 12, false)?;
            self.rig.ledger.forgotten(DOMAIN, range);
            self.pages[block as usize][index as usize] = 0;
        }
        Ok(())
    }
}

/// Returns whether a driver was accused within some steps.
fn is_accused(dialect: &'static Dialect, forgets: Forgets, seed: u64, steps: u32) -> bool {
    let mut driver = Driver::new(dialect, forgets, seed);
    (0..steps).any(|_| driver.step().is_err())
}

#[test]
fn a_driver_that_forgets_nothing_is_never_accused() {
    for (index, dialect) in DIALECTS.iter().enumerate() {
        for seed in 0..8 {
            let is_accused = is_accused(dialect, Forgets::Nothing, seed, 300);
            assert!(!is_accused, "dialect {index}, seed {seed}");
        }
    }
}

#[test]
fn each_driver_that_forgets_something_is_accused() {
    for (index, dialect) in DIALECTS.iter().enumerate() {
        for forgets in [
            Forgets::Removed,
            Forgets::Tables,
            Forgets::Added,
            Forgets::Devices,
            Forgets::Syncs,
        ] {
            if forgets == Forgets::Added && !dialect.caches_absent {
                continue;
            }
            let is_accused = is_accused(dialect, forgets, 1, 400);
            assert!(is_accused, "dialect {index} forgets {forgets:?}");
        }
    }
}
