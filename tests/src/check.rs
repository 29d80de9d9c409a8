//! Comparing a table with its model, through everything that can read it.

use std::collections::BTreeSet;
use std::fmt;
use std::ops::ControlFlow;
use std::sync::Arc;

use iopt::mem::TableMemory;
use iopt::radix::Table;
use iopt_formats::walk::{self, Fault, Root, Walked};
use iopt_formats::{Entry, Format, Iova, IovaRange, Oa, Rights};
use iopt_reference::{self as reference, Rigour};

use crate::memory::{Snapshot, TestMemory};
use crate::model::{self, Model, Run, join_ranges, windows};
use crate::referee::{Judged, controls_execution};
use crate::shadow::Watched;

/// Leaf items that a test's tables hold at most.
const ITEM_LIMIT: u64 = 4 << 20;

/// What a table and its model disagree about.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Mismatch(String);

impl Mismatch {
    /// Creates a mismatch from its description.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Mismatch {}

/// Returns an error that names both values unless they are equal.
///
/// # Errors
///
/// A [`Mismatch`] if they differ.
pub fn ensure_eq<T: fmt::Debug + PartialEq>(
    what: impl fmt::Display,
    found: &T,
    expected: &T,
) -> Result<(), Mismatch> {
    if found == expected {
        return Ok(());
    }
    Err(Mismatch(format!(
        "{what}:\n   found {found:x?}\nexpected {expected:x?}"
    )))
}

/// The table of a test, in memory that everybody sees.
pub type TestTable<F> = Table<F, Arc<TestMemory>>;

/// Compares everything that can be asked about one address.
///
/// # Errors
///
/// The first [`Mismatch`].
pub fn check_address<F: Judged, M: Watched>(
    table: &Table<F, M>,
    model: &Model<F>,
    iova: Iova,
) -> Result<(), Mismatch> {
    let expected = model.lookup(iova);
    let expected_parts = expected.map(|entry| (entry.oa_of(iova), entry.prot, entry.size));

    let found = table.lookup(iova);
    let parts = found.map(|found| (found.oa(), found.prot(), found.size()));
    ensure_eq(format_args!("lookup of {iova}"), &parts, &expected_parts)?;
    let may_be_dirty = expected.is_some_and(|entry| entry.is_dirty);
    if found.is_some_and(|found| found.is_dirty()) && !may_be_dirty {
        return Err(Mismatch(format!(
            "lookup of {iova}: dirty though nothing was written"
        )));
    }

    let memory = table.memory();
    let walked = walk::walk(
        table.format(),
        table.root(),
        iova,
        |oa| memory.seen(oa),
        |_| {},
    );
    let parts = match walked {
        Ok(Walked { oa, prot, leaf, .. }) => Some((oa, prot, leaf.size)),
        Err(Fault::NotPresent { .. } | Fault::OutsideWindow { .. }) => None,
        Err(fault) => return Err(Mismatch(format!("walk to {iova}: {fault}"))),
    };
    ensure_eq(format_args!("walk to {iova}"), &parts, &expected_parts)?;

    let judge = table.format().judge(table.root());
    let read = |address| memory.seen(Oa::new(address));
    let verdict = match judge.walk(&read, iova.get()) {
        Ok(translation) => Some(Verdict::of(&translation, table.format())),
        Err(reference::Fault::NotMapped { .. } | reference::Fault::OutOfWindow { .. }) => None,
        Err(fault) => return Err(Mismatch(format!("reference walk to {iova}: {fault}"))),
    };
    let expected = expected.map(|entry| Verdict::expected(&entry, iova, table.format()));
    ensure_eq(
        format_args!("reference walk to {iova}"),
        &verdict,
        &expected,
    )
}

/// What table and reference must agree on about one address.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Verdict {
    oa: Oa,
    len: u64,
    rights: Rights,
}

impl Verdict {
    fn of<F: Format>(found: &reference::Translation, format: &F) -> Self {
        let execute = found.execute && controls_execution(format);
        let rights = Rights::NONE
            .with_if(Rights::READ, found.read)
            .with_if(Rights::WRITE, found.write)
            .with_if(Rights::USER, found.user)
            .with_if(Rights::EXECUTE, execute);
        Self {
            oa: Oa::new(found.oa),
            len: found.page_len,
            rights,
        }
    }

    fn expected<F: Format>(entry: &model::Entry, iova: Iova, format: &F) -> Self {
        let mut rights = entry.prot.rights();
        if !controls_execution(format) {
            rights = rights.difference(Rights::EXECUTE);
        }
        Self {
            oa: entry.oa_of(iova),
            len: entry.size.bytes(),
            rights,
        }
    }
}

/// Compares the addresses at which an operation on `range` could have gone wrong.
///
/// # Errors
///
/// The first [`Mismatch`].
pub fn check_around<F: Judged, M: Watched>(
    table: &Table<F, M>,
    model: &Model<F>,
    range: IovaRange,
) -> Result<(), Mismatch> {
    let (start, last) = (range.start().get(), range.last().get());
    let page = F::GRANULE.bytes();
    let middle = start + (last - start) / 2;
    let mut addresses: BTreeSet<u64> = [start, middle, last].into();
    for near in [start, last] {
        addresses.extend(
            [near.checked_sub(page), near.checked_add(page)]
                .into_iter()
                .flatten(),
        );
    }
    let entries = model.overlapping(range);
    for entry in entries.first().into_iter().chain(entries.last()) {
        addresses.extend([entry.range().start().get(), entry.range().last().get()]);
    }
    for address in addresses {
        check_address(table, model, Iova::new(address))?;
    }
    let near = IovaRange::new(
        Iova::new(start.saturating_sub(page)),
        Iova::new(last.saturating_add(page)),
    );
    check_runs(table, model, near.expect("a range grows"))
}

/// Compares the translations and the dirty state of `range`.
///
/// # Errors
///
/// The first [`Mismatch`].
pub fn check_runs<F: Format, M: TableMemory>(
    table: &Table<F, M>,
    model: &Model<F>,
    range: IovaRange,
) -> Result<(), Mismatch> {
    let mut runs = Vec::new();
    table.dump(range, |run| {
        runs.push(Run {
            range: run.range,
            oa: run.oa,
            prot: run.prot,
        });
        ControlFlow::Continue(())
    });
    ensure_eq(format_args!("dump of {range}"), &runs, &model.runs(range))?;
    if table.format().dirty_rule().is_none() {
        return Ok(());
    }
    let mut dirty = Vec::new();
    table
        .dirty(range, |part| dirty.push(part))
        .map_err(|error| Mismatch(format!("dirty pages of {range}: {error}")))?;
    let cut = |part: IovaRange| part.intersection(range).expect("an entry of the range");
    let expected = join_ranges(model.dirty(range).into_iter().map(cut));
    let found = join_ranges(dirty);
    ensure_eq(format_args!("dirty pages of {range}"), &found, &expected)
}

/// Compares everything: every leaf item that the words in memory hold, every run, every table.
///
/// No unlinked table may wait to be freed.
///
/// # Errors
///
/// The first [`Mismatch`].
pub fn check_all<F: Judged, M: Watched>(
    table: &Table<F, M>,
    model: &Model<F>,
) -> Result<(), Mismatch> {
    for window in windows(table.format().geometry()) {
        check_runs(table, model, window)?;
    }
    ensure_eq("level of the root", &table.root().level, &model.top())?;

    let (format, memory) = (table.format(), table.memory().snapshot());
    let mut found = Vec::new();
    let visited = walk::visit(
        format,
        table.root(),
        ITEM_LIMIT,
        |oa| memory.read(oa),
        |item| {
            found.push(*item);
            ControlFlow::Continue(())
        },
    );
    visited.map_err(|error| Mismatch(format!("visit: {error}")))?;
    found.sort_by_key(|item| item.iova.start());
    let mut mapped = 0_u64;
    for item in &found {
        let entry = model.lookup(item.iova.start());
        let found = Some((item.oa, item.prot, item.leaf.size));
        let iova = item.iova.start();
        let expected = entry.map(|entry| (entry.oa_of(iova), entry.prot, entry.size));
        ensure_eq(format_args!("item at {iova}"), &found, &expected)?;
        mapped = mapped
            .wrapping_add(item.iova.len_minus_one())
            .wrapping_add(1);
    }
    let expected = model
        .entries()
        .fold(0, |sum: u64, entry| sum.wrapping_add(entry.size.bytes()));
    ensure_eq("bytes in leaf items", &mapped, &expected)?;

    let mut judged = Vec::new();
    let judge = format.judge(table.root());
    let read = |address| memory.read(Oa::new(address));
    let scanned = judge.enumerate(&read, ITEM_LIMIT, Rigour::Strict, |item| judged.push(item));
    scanned.map_err(|error| Mismatch(format!("reference scan: {error}")))?;
    ensure_eq("number of leaf items", &judged.len(), &found.len())?;
    for item in &judged {
        let iova = Iova::new(item.iova);
        let expected = model
            .lookup(iova)
            .map(|entry| Verdict::expected(&entry, iova, format));
        let found = Some(Verdict::of(&item.translation, format));
        ensure_eq(format_args!("reference item at {iova}"), &found, &expected)?;
    }

    let mut linked = BTreeSet::new();
    collect_tables(table, &memory, table.root(), &mut linked)?;
    ensure_eq("linked tables and live pages", &linked, memory.pages())?;
    ensure_eq("number of tables", &linked.len(), &model.table_count())?;
    ensure_eq("table count", &table.table_count(), &model.table_count())
}

/// Adds the addresses of the tables below `at`, itself included.
fn collect_tables<F: Format, M: TableMemory>(
    table: &Table<F, M>,
    memory: &Snapshot,
    at: Root,
    tables: &mut BTreeSet<Oa>,
) -> Result<(), Mismatch> {
    let Root { oa, level } = at;
    if !tables.insert(oa) {
        return Err(Mismatch(format!("the table at {oa} is linked twice")));
    }
    let format = table.format();
    let count_lg2 = if at == table.root() {
        format.root_count_lg2(level)
    } else {
        F::item_count_lg2()
    };
    for index in 0..1_u64 << count_lg2 {
        let word = memory.read(Oa::new(oa.get() + index * 8));
        let word = word.ok_or_else(|| Mismatch(format!("the table at {oa} is not live")))?;
        if let Ok(Entry::Table(child)) = format.decode(word, level) {
            collect_tables(
                table,
                memory,
                Root {
                    oa: child.oa,
                    level: child.level,
                },
                tables,
            )?;
        }
    }
    Ok(())
}
