//! Table memory that can be read the way hardware reads it.

#![expect(unsafe_code, reason = "reads words of tables that the engine writes")]

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};

use iopt::mem::{Arena, TableMemory as _};
use iopt_formats::Oa;

/// Where the output addresses of table pages start.
const BASE: u64 = 1 << 20;
/// Address space for tables; memory is used only where tables are.
const MAX_LEN: usize = 1 << 30;

/// The tables of all domains of a trace.
#[derive(Debug)]
pub(crate) struct Tables {
    arena: Arena,
    len: u64,
}

impl Tables {
    /// Reserves the address space.
    pub(crate) fn new() -> io::Result<Self> {
        let arena = Arena::with_base(MAX_LEN, Oa::new(BASE))?;
        let len = arena.usage().len;
        Ok(Self { arena, len })
    }

    /// Returns what the engine takes table pages from.
    pub(crate) fn arena(&self) -> &Arena {
        &self.arena
    }

    /// Returns the word at `oa`, or `None` where no table can be.
    pub(crate) fn word(&self, oa: Oa) -> Option<u64> {
        let offset = oa.get().checked_sub(BASE)?;
        if !offset.is_multiple_of(8) || offset >= self.len {
            return None;
        }
        #[expect(
            clippy::cast_ptr_alignment,
            reason = "the base and the offset are multiples of 8"
        )]
        let pointer = self.arena.ptr(oa).cast::<u64>();
        // SAFETY: the arena is one mapping of `len` bytes, a multiple of 8, at `BASE`, mapped as
        // long as `self` lives; `offset` is inside and aligned. The engine writes items through
        // atomics only.
        let item = unsafe { AtomicU64::from_ptr(pointer) };
        Some(item.load(Ordering::Acquire))
    }
}
