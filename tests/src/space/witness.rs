//! Domains of any format, with a walker that shares no code with them.

use std::fmt;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use iopt::domain::{Caps, Domain, TableDomain};
use iopt::invalidation::NoHardware;
use iopt::radix::{MapSide, Table, TableConfig};
use iopt_formats::{Iova, IovaRange, Oa, Prot, walk};
use iopt_reference::{Fault, Rigour, Translation};

use crate::check::Mismatch;
use crate::memory::TestMemory;
use crate::referee::Judged;
use crate::space::fault::{Faults, Fragile, Wire};

/// Largest pages (1 MiB) of table memory of one domain.
const MEMORY_COUNT: u64 = 24;

/// Leaf items that a table holds at most.
const ITEM_LIMIT: u64 = 1 << 20;

/// What the reference says of one address.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Seen {
    /// Its output address.
    pub oa: u64,
    /// Whether devices may read.
    pub can_read: bool,
    /// Whether devices may write.
    pub can_write: bool,
}

impl Seen {
    const fn of(found: &Translation) -> Self {
        Self {
            oa: found.oa,
            can_read: found.read,
            can_write: found.write,
        }
    }
}

/// A leaf item in a table.
#[derive(Clone, Copy, Debug)]
pub struct SeenItem {
    /// Where it begins.
    pub iova: u64,
    /// Bytes.
    pub len: u64,
    /// What it says of its first byte.
    pub seen: Seen,
}

/// A domain under test, whatever its format.
pub trait Witness: fmt::Debug {
    /// Returns the domain as an address space takes it.
    fn domain(&self) -> &Arc<dyn Domain>;

    /// Returns what it can do.
    fn caps(&self) -> Caps {
        self.domain().caps()
    }

    /// Returns what an entry for `prot` grants, or `None` if there is no such entry.
    fn effective(&self, prot: Prot) -> Option<Prot>;

    /// Returns whether large pages that are in use cannot be cut.
    fn refuses_cuts(&self) -> bool;

    /// Returns whether new entries say that they were written to.
    fn starts_dirty(&self) -> bool;

    /// Walks the table as hardware does.
    ///
    /// # Errors
    ///
    /// A [`Mismatch`] if the table is not legal.
    fn walk(&self, iova: u64) -> Result<Option<Seen>, Mismatch>;

    /// Returns the range of the entry that translates `iova`.
    fn entry_at(&self, iova: u64) -> Option<IovaRange>;

    /// Returns every leaf item.
    ///
    /// # Errors
    ///
    /// As for [`walk`](Self::walk).
    fn items(&self) -> Result<Vec<SeenItem>, Mismatch>;

    /// Marks what translates `iova` as written to, as hardware does. Returns whether there is such a
    /// thing.
    fn soil(&self, iova: u64) -> bool;

    /// Returns the memory of its tables.
    fn memory(&self) -> &Arc<TestMemory>;

    /// Gives back empty tables of a domain that nobody has attached; returns the tables that are left
    /// beyond the roots.
    ///
    /// # Errors
    ///
    /// A [`Mismatch`] if somebody has it.
    fn compact(&self) -> Result<usize, Mismatch>;
}

/// How to make a domain.
#[derive(Clone, Copy, Debug, Default)]
pub struct Making {
    /// Whether the table announces what it maps.
    pub announces: bool,
    /// Whether devices need pinned pages.
    pub needs_pinned: bool,
}

/// Creates a domain of a format.
///
/// # Panics
///
/// Panics if the system has no memory left.
pub fn witness<F: Judged + 'static>(
    format: F,
    making: Making,
    faults: &Arc<Faults>,
) -> Box<dyn Witness> {
    let memory = Arc::new(TestMemory::new(MEMORY_COUNT));
    let map_side = if making.announces {
        MapSide::Announced
    } else {
        MapSide::Silent
    };
    let config = TableConfig::new().with_map_side(map_side);
    let table = Table::with_config(format, Arc::clone(&memory), config);
    let table = table.expect("the memory is larger than a root");
    let wire = Wire(Arc::clone(faults));
    let table = if making.needs_pinned {
        TableDomain::for_hardware(table, wire)
    } else {
        TableDomain::new(table, wire)
    };
    let table = Arc::new(table);
    let inner = Arc::clone(&table) as Arc<dyn Domain>;
    let domain = Arc::new(Fragile::new(inner, Arc::clone(faults)));
    Box::new(TableWitness {
        table,
        domain,
        memory,
    })
}

#[derive(Debug)]
struct TableWitness<F: Judged> {
    table: Arc<TableDomain<F, Arc<TestMemory>, Wire>>,
    domain: Arc<dyn Domain>,
    memory: Arc<TestMemory>,
}

impl<F: Judged> TableWitness<F> {
    fn table(&self) -> &Table<F, Arc<TestMemory>> {
        self.table.table()
    }
}

impl<F: Judged> Witness for TableWitness<F> {
    fn domain(&self) -> &Arc<dyn Domain> {
        &self.domain
    }

    fn effective(&self, prot: Prot) -> Option<Prot> {
        self.table().format().effective(prot)
    }

    fn refuses_cuts(&self) -> bool {
        F::BREAK_BEFORE_MAKE
    }

    fn starts_dirty(&self) -> bool {
        let format = self.table().format();
        let page = format.sizes().smallest().unwrap_or(F::GRANULE);
        let word = format.leaf_item(Oa::new(0), page, Prot::RW, 0);
        format.dirty_rule().is_some_and(|rule| rule.is_dirty(word))
    }

    fn walk(&self, iova: u64) -> Result<Option<Seen>, Mismatch> {
        let judge = self.table().format().judge(self.table().root());
        let read = |address| self.memory.read(Oa::new(address));
        match judge.walk(&read, iova) {
            Ok(found) => Ok(Some(Seen::of(&found))),
            Err(Fault::NotMapped { .. } | Fault::OutOfWindow { .. }) => Ok(None),
            Err(fault) => Err(Mismatch::new(format!("walk to {iova:#x}: {fault}"))),
        }
    }

    fn entry_at(&self, iova: u64) -> Option<IovaRange> {
        let judge = self.table().format().judge(self.table().root());
        let read = |address| self.memory.read(Oa::new(address));
        let found = judge.walk(&read, iova).ok()?;
        let start = iova & !(found.page_len - 1);
        IovaRange::with_len(Iova::new(start), found.page_len)
    }

    fn items(&self) -> Result<Vec<SeenItem>, Mismatch> {
        let judge = self.table().format().judge(self.table().root());
        let memory = self.memory.snapshot();
        let read = |address| memory.read(Oa::new(address));
        let mut items = Vec::new();
        let scanned = judge.enumerate(&read, ITEM_LIMIT, Rigour::Strict, |item| {
            items.push(SeenItem {
                iova: item.iova,
                len: item.len,
                seen: Seen::of(&item.translation),
            });
        });
        scanned.map_err(|error| Mismatch::new(format!("scan: {error}")))?;
        Ok(items)
    }

    fn soil(&self, iova: u64) -> bool {
        let table = self.table();
        let Some(rule) = table.format().dirty_rule() else {
            return false;
        };
        let mut word = None;
        let read = |oa| self.memory.read(oa);
        let walked = walk::walk(
            table.format(),
            table.root(),
            Iova::new(iova),
            read,
            |step| {
                word = Some(Oa::new(step.table.get() + 8 * step.index as u64));
            },
        );
        let word = word.filter(|_| walked.is_ok());
        let old = word.and_then(|word| self.memory.update(word, |word| rule.soil(word)));
        old.is_some()
    }

    fn memory(&self) -> &Arc<TestMemory> {
        &self.memory
    }

    fn compact(&self) -> Result<usize, Mismatch> {
        let table = self.table();
        let window = self.caps().aperture;
        let failed = |what, error: &dyn fmt::Display| Mismatch::new(format!("{what}: {error}"));
        let claim = table.claim(window);
        let mut claim = claim.map_err(|error| failed("claim", &error))?;
        let mapper = table.mapper(&mut claim);
        let mut mapper = mapper.map_err(|error| failed("mapper", &error))?;
        let gather = mapper.compact(window);
        let gather = gather.map_err(|error| failed("compact", &error))?;
        let flushed = gather.sync(&NoHardware);
        let flushed = flushed.map_err(|error| failed("sync", &error))?;
        let format = table.format();
        let root_count = usize::from(table.root().level.0 - format.geometry().top.0) + 1;
        // Readers of other tests may keep what was unlinked for a moment.
        for _ in 0..2000 {
            table.reclaim(&flushed);
            if table.table_count() == root_count {
                break;
            }
            thread::sleep(Duration::from_millis(1));
        }
        Ok(table.table_count() - root_count)
    }
}
