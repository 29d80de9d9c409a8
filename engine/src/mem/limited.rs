//! A memory that runs out on demand.

#![expect(unsafe_code, reason = "forwards to another table memory")]

use iopt_formats::{Oa, PageSize};

use crate::mem::{OutOfMemory, TableMemory};
use crate::sync::unmodelled::{AtomicUsize, Ordering};

/// A table memory that refuses once a number of pages is handed out, to test what a table does
/// then, or to bound what one table may take.
#[derive(Debug)]
pub struct Limited<M> {
    memory: M,
    left_count: AtomicUsize,
    used_count: AtomicUsize,
}

impl<M> Limited<M> {
    /// Allows `count` pages to be handed out at one time.
    pub const fn new(memory: M, count: usize) -> Self {
        Self {
            memory,
            left_count: AtomicUsize::new(count),
            used_count: AtomicUsize::new(0),
        }
    }

    /// Allows `count` further pages from now on, whatever was left.
    pub fn set_left(&self, count: usize) {
        self.left_count.store(count, Ordering::Relaxed);
    }

    /// Returns the number of pages handed out and not freed.
    pub fn used_count(&self) -> usize {
        self.used_count.load(Ordering::Relaxed)
    }

    fn count_freed(&self) {
        self.used_count.fetch_sub(1, Ordering::Relaxed);
        // A saturating add: `set_left(usize::MAX)` means "no limit".
        let _ = self
            .left_count
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| {
                left.checked_add(1)
            });
    }
}

// SAFETY: M1 to M3 hold because every page comes from `memory`, which upholds them.
unsafe impl<M: TableMemory> TableMemory for Limited<M> {
    const SNOOPED: bool = M::SNOOPED;

    fn alloc(&self, size: PageSize) -> Result<Oa, OutOfMemory> {
        self.left_count
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| {
                left.checked_sub(1)
            })
            .map_err(|_| OutOfMemory { size })?;
        let page = self.memory.alloc(size).inspect_err(|_| {
            self.left_count.fetch_add(1, Ordering::Relaxed);
        })?;
        self.used_count.fetch_add(1, Ordering::Relaxed);
        Ok(page)
    }

    unsafe fn free(&self, oa: Oa, size: PageSize) {
        // SAFETY: the caller's contract is that of the memory behind.
        unsafe { self.memory.free(oa, size) };
        self.count_freed();
    }

    unsafe fn free_zeroed(&self, oa: Oa, size: PageSize) {
        // SAFETY: as for `free`.
        unsafe { self.memory.free_zeroed(oa, size) };
        self.count_freed();
    }

    #[inline]
    fn ptr(&self, oa: Oa) -> *mut u8 {
        self.memory.ptr(oa)
    }

    fn flush_line(&self, line: *const u8) {
        self.memory.flush_line(line);
    }
}
