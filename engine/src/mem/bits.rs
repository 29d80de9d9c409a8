//! Flags that start as 0 and cost no memory until they are set.

#![cfg_attr(
    not(loom),
    expect(
        unsafe_code,
        reason = "zeroed memory of the allocator, which may be untouched, as atomics"
    )
)]

use alloc::boxed::Box;

use crate::sync::atomic::{AtomicU64, Ordering};

const WORD_BITS: usize = u64::BITS as usize;

/// Flags by index. They order nothing.
pub(super) struct Bits(Box<[AtomicU64]>);

impl Bits {
    /// Returns `count` flags, or `None` if the allocator has no room for them.
    pub(super) fn new(count: usize) -> Option<Self> {
        zeroed_words(count.div_ceil(WORD_BITS)).map(Self)
    }

    /// Sets the flag; a load alone if it is.
    #[inline]
    pub(super) fn set(&self, index: usize) {
        let bit = 1 << (index % WORD_BITS);
        if let Some(word) = self.0.get(index / WORD_BITS)
            && word.load(Ordering::Relaxed) & bit == 0
        {
            word.fetch_or(bit, Ordering::Relaxed);
        }
    }

    pub(super) fn get(&self, index: usize) -> bool {
        let word = self.0.get(index / WORD_BITS);
        word.is_some_and(|word| word.load(Ordering::Relaxed) >> (index % WORD_BITS) & 1 != 0)
    }
}

/// Returns `count` words that are 0, or `None` if the allocator has no room for them.
#[cfg(not(loom))]
pub(super) fn zeroed_words(count: usize) -> Option<Box<[AtomicU64]>> {
    use core::alloc::Layout;
    use core::ptr;

    if count == 0 {
        return Some(Box::default());
    }
    let layout = Layout::array::<AtomicU64>(count).ok()?;
    // SAFETY: `count` is not 0, so neither is the size of the layout.
    let words = unsafe { alloc::alloc::alloc_zeroed(layout) };
    if words.is_null() {
        return None;
    }
    #[expect(clippy::cast_ptr_alignment, reason = "allocated with this alignment")]
    let words = ptr::slice_from_raw_parts_mut(words.cast::<AtomicU64>(), count);
    // SAFETY: the global allocator returned the memory for this very layout, it is ours alone, and
    // an `AtomicU64` may be all zeroes.
    Some(unsafe { Box::from_raw(words) })
}

/// Models know of each atomic.
#[cfg(loom)]
#[expect(clippy::unnecessary_wraps, reason = "the interface of the other kind")]
pub(super) fn zeroed_words(count: usize) -> Option<Box<[AtomicU64]>> {
    Some((0..count).map(|_| AtomicU64::new(0)).collect())
}
