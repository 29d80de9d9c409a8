//! A plain allocator of aligned pages out of one span of memory.
//!
//! Free pages of each size form a list whose links stand in the pages themselves, so freeing
//! needs no memory and cannot fail. Sizes do not merge again: a table keeps asking for the sizes it
//! gave back.
//!
//! # Invariants
//!
//! - **A1**: `origin` plus any address of `first..end` is valid for reads and writes for as long as
//!   the list lives, and all pages come from there.
//! - **A2**: a page is handed out, or on exactly one list, or above `fresh`; the three never overlap.
//! - **A3**: a page on a list starts with the address of the next one plus one, or 0 at the end.

#![expect(unsafe_code, reason = "hands out raw memory and keeps its links in it")]

use core::ptr::NonNull;

use iopt_formats::{Oa, PageSize};

use crate::mem::{LARGEST, OutOfMemory, SMALLEST, Usage};
use crate::sync::{self, Mutex};

const LIST_COUNT: usize = (LARGEST.lg2() - SMALLEST.lg2() + 1) as usize;

/// The allocator. Pages go by their output addresses.
#[derive(Debug)]
pub(crate) struct FreeList {
    /// Where output address 0 would be; turning an address into a pointer is one addition.
    origin: *mut u8,
    first: Oa,
    end: u64,
    /// Whether memory that was never handed out holds zeroes.
    fresh_is_zero: bool,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// Address of the memory that was never handed out.
    fresh: u64,
    /// Address of the first free page of each size, plus one; 0 for none.
    heads: [u64; LIST_COUNT],
    used_len: u64,
}

// SAFETY: the memory behind `origin` belongs to the list (A1) and is touched only under the lock or
// by the one caller that a page was handed to (A2).
unsafe impl Send for FreeList {}
// SAFETY: as above; every method takes the lock before it touches shared state.
unsafe impl Sync for FreeList {}

impl FreeList {
    /// Creates a list over `len` bytes at `memory`, which have output addresses from `first` on.
    ///
    /// # Safety
    ///
    /// The memory is valid for reads and writes for as long as the list lives, nobody else uses
    /// it, `memory` and `first` are multiples of [`LARGEST`], and the memory holds zeroes if
    /// `fresh_is_zero`.
    pub(crate) unsafe fn new(
        memory: NonNull<u8>,
        len: u64,
        first: Oa,
        fresh_is_zero: bool,
    ) -> Self {
        let state = State {
            fresh: first.get(),
            heads: [0; LIST_COUNT],
            used_len: 0,
        };
        Self {
            // Wrapping keeps the provenance of `memory` while the pointer is out of its bounds.
            origin: memory.as_ptr().wrapping_sub(first.get() as usize),
            first,
            end: first.get() + len,
            fresh_is_zero,
            state: Mutex::new(&sync::MAGAZINE, state),
        }
    }

    /// Returns the pointer to the byte at `oa`.
    #[inline]
    pub(crate) fn ptr(&self, oa: u64) -> *mut u8 {
        self.origin.wrapping_add(oa as usize)
    }

    /// Returns the first output address.
    pub(crate) fn first(&self) -> Oa {
        self.first
    }

    pub(crate) fn usage(&self) -> Usage {
        Usage {
            len: self.end - self.first.get(),
            used_len: self.state.lock().used_len,
        }
    }

    /// Takes a zeroed page, aligned to `size`.
    pub(crate) fn alloc(&self, size: PageSize) -> Result<Oa, OutOfMemory> {
        let list = list_of(size).ok_or(OutOfMemory { size })?;
        let mut state = self.state.lock();
        let (page, is_zero) = match state.heads[list].checked_sub(1) {
            Some(page) => {
                state.heads[list] = self.read_link(page);
                (page, false)
            }
            None => (self.take_fresh(&mut state, size)?, self.fresh_is_zero),
        };
        state.used_len += size.bytes();
        drop(state);
        if !is_zero {
            // SAFETY: A2 makes the page ours alone, and A1 its `size` bytes writable.
            unsafe { self.ptr(page).write_bytes(0, size.bytes() as usize) };
        }
        Ok(Oa::new(page))
    }

    /// Cuts a page off the memory that was never handed out; what alignment skips goes on the list
    /// of the smallest pages.
    fn take_fresh(&self, state: &mut State, size: PageSize) -> Result<u64, OutOfMemory> {
        let page = state.fresh.next_multiple_of(size.bytes());
        let end = page
            .checked_add(size.bytes())
            .filter(|&end| end <= self.end);
        let end = end.ok_or(OutOfMemory { size })?;
        while state.fresh < page {
            let skipped = state.fresh;
            self.write_link(skipped, state.heads[0]);
            state.heads[0] = skipped + 1;
            state.fresh += SMALLEST.bytes();
        }
        state.fresh = end;
        Ok(page)
    }

    /// Gives a page back.
    ///
    /// # Safety
    ///
    /// The page at `oa` was handed out with this `size` and nobody uses it any more.
    pub(crate) unsafe fn free(&self, oa: Oa, size: PageSize) {
        let Some(list) = list_of(size) else { return };
        let mut state = self.state.lock();
        self.write_link(oa.get(), state.heads[list]);
        state.heads[list] = oa.get() + 1;
        state.used_len -= size.bytes();
    }

    fn link(&self, page: u64) -> *mut u64 {
        self.ptr(page).cast()
    }

    fn read_link(&self, page: u64) -> u64 {
        // SAFETY: `page` is on a list: A2 keeps others away while the lock is held, A3 says that
        // it starts with a link.
        unsafe { self.link(page).read() }
    }

    fn write_link(&self, page: u64, link: u64) {
        // SAFETY: `page` is about to join a list, so by A2 nobody else uses it; A1 makes it
        // writable.
        unsafe { self.link(page).write(link) };
    }
}

/// Returns the list that pages of `size` are kept on.
fn list_of(size: PageSize) -> Option<usize> {
    (SMALLEST..=LARGEST)
        .contains(&size)
        .then(|| usize::from(size.lg2() - SMALLEST.lg2()))
}
