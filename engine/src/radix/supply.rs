//! Pages that are allocated but not linked yet.

#![expect(
    unsafe_code,
    reason = "writes to pages that it owns, and gives them back"
)]

use iopt_formats::{Format, Level, Oa};

use crate::mem::{OutOfMemory, TableMemory};
use crate::radix::alloc_page;
use crate::radix::node::{Node, flush_items};
use crate::sync::atomic::{AtomicU64, Ordering};

/// More tables than this at once are out of memory without a try: 16 GiB of 4 KiB tables. It bounds
/// the time that a hopeless request takes.
pub(super) const TABLE_LIMIT: usize = 1 << 22;

/// Zeroed pages, as runs of neighbours: memory that hands out pages in the order of their addresses
/// makes few runs, and a page of a run is not touched before it is used. Runs are chained through the
/// first page of each, so that a supply of any length takes no memory of its own.
pub(super) struct Supply<'m, F: Format, M: TableMemory> {
    format: &'m F,
    memory: &'m M,
    /// The run that is added to and taken from.
    run: Option<PageRun>,
    /// First page of the next run; its items [`NEXT`] and [`COUNT`] say what follows.
    chain: Option<Oa>,
}

/// Neighbouring pages; at least one.
#[derive(Clone, Copy)]
struct PageRun {
    first: Oa,
    count: u64,
}

/// Item of a chained run's first page that holds where the next run begins, with [`LINKED`], or 0.
const NEXT: u64 = 0;

/// Item of a chained run's first page that holds the number of its pages.
const COUNT: u64 = 1;

/// Tells a link to address 0 from no link.
const LINKED: u64 = 1;

impl<'m, F: Format, M: TableMemory> Supply<'m, F, M> {
    pub(super) const fn empty(format: &'m F, memory: &'m M) -> Self {
        Self {
            format,
            memory,
            run: None,
            chain: None,
        }
    }

    pub(super) const fn is_empty(&self) -> bool {
        self.run.is_none()
    }

    /// Adds `count` pages; on failure the supply keeps what it has.
    pub(super) fn add(&mut self, count: usize) -> Result<(), OutOfMemory> {
        if count > TABLE_LIMIT {
            return Err(OutOfMemory { size: F::GRANULE });
        }
        for _ in 0..count {
            let page = alloc_page(self.memory, self.format, F::GRANULE)?;
            self.put_back(page);
        }
        Ok(())
    }

    /// Takes a zeroed page, written back for walkers that do not snoop.
    pub(super) fn take(&mut self) -> Option<Oa> {
        let page = self.take_unflushed()?;
        // SAFETY: the page is ours, allocated and not linked: nobody frees it meanwhile.
        let node = unsafe { Node::<F>::child(self.memory, page) };
        flush_items(self.memory, node.items());
        Some(page)
    }

    /// Adds a page that was allocated or taken, never linked, and holds zeroes.
    pub(super) fn put_back(&mut self, page: Oa) {
        let run = match self.run {
            Some(run) if run.end::<F>() == Some(page) => PageRun {
                count: run.count + 1,
                ..run
            },
            Some(run) if page.checked_add(F::GRANULE.bytes()) == Some(run.first) => PageRun {
                first: page,
                count: run.count + 1,
            },
            open => {
                if let Some(run) = open {
                    self.chain_up(run);
                }
                PageRun {
                    first: page,
                    count: 1,
                }
            }
        };
        self.run = Some(run);
    }

    /// Takes the lowest page of the open run.
    fn take_unflushed(&mut self) -> Option<Oa> {
        let run = self.run?;
        self.run = if run.count > 1 {
            Some(PageRun {
                // The next page is there, so its address is.
                first: Oa::new(run.first.get() + F::GRANULE.bytes()),
                count: run.count - 1,
            })
        } else {
            self.unchain()
        };
        Some(run.first)
    }

    fn chain_up(&mut self, run: PageRun) {
        let next = self.chain.map_or(0, |next| next.get() | LINKED);
        self.item(run.first, NEXT).store(next, Ordering::Relaxed);
        self.item(run.first, COUNT)
            .store(run.count, Ordering::Relaxed);
        self.chain = Some(run.first);
    }

    fn unchain(&mut self) -> Option<PageRun> {
        let first = self.chain?;
        let next = self.take_item(first, NEXT);
        self.chain = (next & LINKED != 0).then_some(Oa::new(next & !LINKED));
        let count = self.take_item(first, COUNT);
        Some(PageRun { first, count })
    }

    /// Reads an item and makes it zero again. The page is ours alone, so two steps will do.
    fn take_item(&self, page: Oa, index: u64) -> u64 {
        let item = self.item(page, index);
        let word = item.load(Ordering::Relaxed);
        item.store(0, Ordering::Relaxed);
        word
    }

    fn item(&self, page: Oa, index: u64) -> &AtomicU64 {
        // SAFETY: `page` is allocated by this supply and not linked yet, so it is alive and nobody
        // else accesses it.
        let node = unsafe { Node::<F>::child(self.memory, page) };
        node.item(index << F::item_lg2(Level::LEAF), Level::LEAF)
    }
}

impl PageRun {
    /// Returns the address behind the run, if there is one.
    fn end<F: Format>(self) -> Option<Oa> {
        self.first.checked_add(self.count << F::GRANULE.lg2())
    }
}

impl<F: Format, M: TableMemory> Drop for Supply<'_, F, M> {
    fn drop(&mut self) {
        while let Some(page) = self.take_unflushed() {
            // SAFETY: the page came from `alloc` with this size and was never linked; the items
            // that chained it are zero again, as all others always were.
            unsafe { self.memory.free_zeroed(page, F::GRANULE) };
        }
    }
}
