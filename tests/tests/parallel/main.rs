//! One huge range on many threads, against the same on one: equal words, results and errors.

mod huge;
mod random;
mod split;

use std::collections::BTreeSet;
use std::fmt;
use std::ops::ControlFlow;
use std::sync::Arc;

use iopt::radix::Run;
use iopt_formats::walk::{self, Root};
use iopt_formats::{Entry, Format, Iova, IovaRange, Level, Oa};
use iopt_tests::check::TestTable;
use iopt_tests::memory::TestMemory;

const PAGE: u64 = 0x1000;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

fn range(start: u64, len: u64) -> IovaRange {
    IovaRange::with_len(Iova::new(start), len).expect("the range does not wrap")
}

fn table<F: Format>(format: F, mib: u64) -> TestTable<F> {
    TestTable::new(format, Arc::new(TestMemory::new(mib))).expect("a page for the root")
}

/// Threads of a pool.
const THREAD_COUNT: usize = if cfg!(miri) { 2 } else { 4 };

/// Runs `test` in a pool, whose threads end before this returns.
fn in_pool<T: Send>(test: impl FnOnce() -> T + Send) -> T {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(THREAD_COUNT);
    pool.build_scoped(rayon::ThreadBuilder::run, |pool| pool.install(test))
        .expect("threads can be started")
}

/// The words of a tree without the addresses of its tables: each leaf item with its level, and the
/// level of each table, by the address that they translate first.
#[derive(Eq, PartialEq)]
struct Image {
    items: Vec<(Iova, Level, u64)>,
    tables: BTreeSet<(u64, Level)>,
}

impl fmt::Debug for Image {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} items in {:x?}", self.items.len(), self.tables)
    }
}

impl Image {
    fn of<F: Format>(format: &F, root: Root, read: impl Fn(Oa) -> Option<u64>) -> Self {
        let mut items = Vec::new();
        walk::visit(format, root, 4 << 20, &read, |item| {
            items.push((item.iova.start(), item.level, item.word));
            ControlFlow::Continue(())
        })
        .expect("every item is as encoded");
        let mut tables = BTreeSet::new();
        let count_lg2 = format.root_count_lg2(root.level);
        add_tables(format, root, count_lg2, 0, &read, &mut tables);
        Self { items, tables }
    }

    fn of_table<F: Format>(table: &TestTable<F>) -> Self {
        let words = table.memory().snapshot();
        let image = Self::of(table.format(), table.root(), |oa| words.read(oa));
        assert_eq!(image.tables.len(), table.memory().page_count());
        assert_eq!(image.tables.len(), table.table_count());
        image
    }
}

fn add_tables<F: Format>(
    format: &F,
    at: Root,
    count_lg2: u8,
    start: u64,
    read: &impl Fn(Oa) -> Option<u64>,
    tables: &mut BTreeSet<(u64, Level)>,
) {
    tables.insert((start, at.level));
    for index in 0..1 << count_lg2 {
        let word = read(Oa::new(at.oa.get() + index * 8)).expect("tables lie in live pages");
        if let Ok(Entry::Table(child)) = format.decode(word, at.level) {
            let start = start + (index << F::item_lg2(at.level));
            let (oa, level) = (child.oa, child.level);
            add_tables(
                format,
                Root { oa, level },
                F::item_count_lg2(),
                start,
                read,
                tables,
            );
        }
    }
}

/// Returns what one thread reads of `at`.
fn runs_of<F: Format>(table: &TestTable<F>, at: IovaRange) -> Vec<Run> {
    let mut runs = Vec::new();
    table.dump(at, |run| {
        runs.push(run);
        ControlFlow::Continue(())
    });
    runs
}
