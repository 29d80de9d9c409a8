//! Memory for walkers that do not see this program's caches.

#![expect(unsafe_code, reason = "forwards to another table memory")]

use iopt_formats::{Oa, PageSize};

use crate::mem::{OutOfMemory, TableMemory};

/// Writes one cache line back to memory, as `clflush`, `clwb` or `dc cvac` do.
pub trait FlushLine: Send + Sync {
    /// Writes the line at `line` back and waits until walkers can see it.
    fn flush_line(&self, line: *const u8);
}

/// A table memory whose walkers do not snoop: every line that changes is written back.
#[derive(Clone, Copy, Debug)]
pub struct NonSnooped<M, L> {
    memory: M,
    flush: L,
}

impl<M, L> NonSnooped<M, L> {
    /// Wraps `memory` so that `flush` runs once for each changed cache line.
    pub const fn new(memory: M, flush: L) -> Self {
        Self { memory, flush }
    }

    /// Returns the memory behind.
    pub(super) const fn memory(&self) -> &M {
        &self.memory
    }

    /// Returns the flush given to [`new`](Self::new).
    pub const fn flush(&self) -> &L {
        &self.flush
    }
}

// SAFETY: M1 to M3 hold because every page comes from `memory`, which upholds them.
unsafe impl<M: TableMemory, L: FlushLine> TableMemory for NonSnooped<M, L> {
    const SNOOPED: bool = false;

    fn alloc(&self, size: PageSize) -> Result<Oa, OutOfMemory> {
        self.memory.alloc(size)
    }

    unsafe fn free(&self, oa: Oa, size: PageSize) {
        // SAFETY: the caller's contract is that of the memory behind.
        unsafe { self.memory.free(oa, size) };
    }

    unsafe fn free_zeroed(&self, oa: Oa, size: PageSize) {
        // SAFETY: as for `free`.
        unsafe { self.memory.free_zeroed(oa, size) };
    }

    #[inline]
    fn ptr(&self, oa: Oa) -> *mut u8 {
        self.memory.ptr(oa)
    }

    fn flush_line(&self, line: *const u8) {
        self.flush.flush_line(line);
    }
}
