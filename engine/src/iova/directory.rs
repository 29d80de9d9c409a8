//! The blocks that were ever touched, by number.
//!
//! # Invariant
//!
//! - **Y1** (there for good): an entry is null, or points to a block that came out of a box, that no
//!   other entry points to, and that lives until the directory is dropped.

#![expect(unsafe_code, reason = "blocks behind atomic pointers")]

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::ptr;

use crate::iova::block::Block;
use crate::sync::atomic::{AtomicPtr, Ordering};

pub(super) struct Directory(Box<[AtomicPtr<Block>]>);

impl Directory {
    /// Returns a directory of `count` blocks that do not exist yet, or `None` if there is no memory.
    pub(super) fn new(count: usize) -> Option<Self> {
        let mut entries = Vec::new();
        entries.try_reserve_exact(count).ok()?;
        entries.extend((0..count).map(|_| AtomicPtr::new(ptr::null_mut())));
        Some(Self(entries.into_boxed_slice()))
    }

    /// Returns a block that exists.
    #[inline]
    pub(super) fn get(&self, index: usize) -> Option<&Block> {
        let block = self.0.get(index)?.load(Ordering::Acquire);
        // SAFETY: Y1: null, or a block that outlives the borrow of the directory; its maker filled it
        // before it released the pointer.
        unsafe { block.as_ref() }
    }

    /// Returns a block, which is made with `make` if it does not exist; `None` if that has no memory.
    pub(super) fn get_or_make(
        &self,
        index: usize,
        make: impl FnOnce() -> Option<Box<Block>>,
    ) -> Option<&Block> {
        if let Some(block) = self.get(index) {
            return Some(block);
        }
        let made = Box::into_raw(make()?);
        let entry = self.0.get(index)?;
        let entered =
            entry.compare_exchange(ptr::null_mut(), made, Ordering::AcqRel, Ordering::Acquire);
        if entered.is_err() {
            // SAFETY: it came out of a box, and nobody else has seen it.
            drop(unsafe { Box::from_raw(made) });
        }
        self.get(index)
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        for entry in &self.0 {
            let block = entry.load(Ordering::Relaxed);
            if !block.is_null() {
                // SAFETY: Y1: it came out of a box, and with the directory its last borrow ended.
                drop(unsafe { Box::from_raw(block) });
            }
        }
    }
}
