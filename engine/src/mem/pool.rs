//! Pages of zeroes out of one span of memory.
//!
//! Which pages are free is bits beside the memory, never links inside it, so that a free page holds
//! zeroes and is handed out as it is. A page is cleared by the thread that gives it back, before it
//! does; by nobody if it says that the page holds zeroes again. Sizes split and merge freely: a large
//! page is an aligned group of small ones.
//!
//! # Invariants
//!
//! - **A1** (memory): `origin` plus any address from `first` on, within all pages, is valid for
//!   reads and writes for as long as the pool lives.
//! - **A2** (one owner): of each page there is one owner: the pool or the caller it was handed to
//!   (B1); what one did to it happens before what the next does (B2).
//! - **A3** (zeroes): a page of the pool's holds only zeroes, unless `cleaned` is there and has its
//!   bit clear.

#![expect(unsafe_code, reason = "hands out raw memory and clears it")]

#[cfg(feature = "std")]
use core::ops::Range;
use core::ptr::NonNull;
use core::slice;

use iopt_formats::{Oa, PageSize};

use crate::mem::bits::Bits;
use crate::mem::chunk::Order;
#[cfg(feature = "std")]
use crate::mem::chunk::{Chunk, PAGE_COUNT};
use crate::mem::frames::Frames;
use crate::mem::{OutOfMemory, SMALLEST, Usage};

/// Bytes of the smallest page.
const PAGE_LEN: u64 = SMALLEST.bytes();

/// What memory holds at first.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Content {
    /// Zeroes.
    #[cfg(feature = "std")]
    Zeroes,
    /// Anything.
    Unknown,
    /// Anything, and every page counts as handed out: each comes back by a `free`, or together with
    /// others by [`Pool::release`].
    #[cfg(all(feature = "std", target_os = "linux"))]
    Taken,
}

/// The allocator. Pages go by their output addresses.
pub(super) struct Pool {
    /// Where output address 0 would be; turning an address into a pointer is one addition.
    origin: *mut u8,
    first: Oa,
    frames: Frames,
    /// The pages that held zeroes at least once; `None` if all did from the start. The owner of a
    /// page alone uses its bit.
    cleaned: Option<Bits>,
}

// SAFETY: the memory behind `origin` belongs to the pool (A1) and each page is touched by its one
// owner (A2); all else is atomics and locks.
unsafe impl Send for Pool {}
// SAFETY: as above.
unsafe impl Sync for Pool {}

impl Pool {
    /// Creates a pool over `len` bytes at `memory`, which have output addresses from `first` on, or
    /// returns `None` if the allocator has no room for the pool's own data.
    ///
    /// # Safety
    ///
    /// The memory is valid for reads and writes for as long as the pool lives, nobody else uses it,
    /// `memory` and `first` are multiples of [`LARGEST`](crate::mem::LARGEST), and the memory holds
    /// what `content` says.
    pub(super) unsafe fn new(
        memory: NonNull<u8>,
        len: u64,
        first: Oa,
        content: Content,
    ) -> Option<Self> {
        let page_count = (len / PAGE_LEN) as usize;
        let cleaned = match content {
            #[cfg(feature = "std")]
            Content::Zeroes => None,
            Content::Unknown => Some(Bits::new(page_count)?),
            // What comes back is cleared first.
            #[cfg(all(feature = "std", target_os = "linux"))]
            Content::Taken => None,
        };
        let frames = match content {
            #[cfg(all(feature = "std", target_os = "linux"))]
            Content::Taken => Frames::taken(page_count)?,
            _ => Frames::new(page_count)?,
        };
        Some(Self {
            // Wrapping keeps the provenance of `memory` while the pointer is out of its bounds.
            origin: memory.as_ptr().wrapping_sub(first.get() as usize),
            first,
            frames,
            cleaned,
        })
    }

    /// Returns the pointer to the byte at `oa`.
    #[inline]
    pub(super) fn ptr(&self, oa: Oa) -> *mut u8 {
        self.origin.wrapping_add(oa.get() as usize)
    }

    /// Returns the first output address.
    pub(super) const fn first(&self) -> Oa {
        self.first
    }

    pub(super) fn usage(&self) -> Usage {
        let counts = self.frames.counts();
        Usage {
            len: self.frames.page_count() as u64 * PAGE_LEN,
            used_len: counts.used as u64 * PAGE_LEN,
            held_len: counts.held as u64 * PAGE_LEN,
            reached_len: counts.reached as u64 * PAGE_LEN,
        }
    }

    /// Takes a zeroed page, aligned to `size`: the free one with the lowest address of those that
    /// the thread has at hand.
    #[inline]
    pub(super) fn alloc(&self, size: PageSize) -> Result<Oa, OutOfMemory> {
        let refused = OutOfMemory { size };
        let order = Order::of(size).ok_or(refused)?;
        let page = self.frames.take(order).ok_or(refused)?;
        if let Some(cleaned) = &self.cleaned {
            self.clean(cleaned, page, order);
        }
        Ok(self.oa_of(page))
    }

    /// Clears those pages of a group that just became ours and never were.
    fn clean(&self, cleaned: &Bits, page: usize, order: Order) {
        for page in page..page + order.page_count() {
            if !cleaned.get(page) {
                // SAFETY: A2 makes the page ours alone, and A1 its bytes writable.
                unsafe { self.ptr(self.oa_of(page)).write_bytes(0, PAGE_LEN as usize) };
                cleaned.set(page);
            }
        }
    }

    /// Clears a page and takes it back.
    ///
    /// # Safety
    ///
    /// The page at `oa` was handed out with this `size` and nobody uses it any more.
    #[inline]
    pub(super) unsafe fn free(&self, oa: Oa, size: PageSize) {
        // SAFETY: by the caller's contract the page is ours again (A2), and by A1 writable.
        unsafe { self.ptr(oa).write_bytes(0, size.bytes() as usize) };
        // SAFETY: the caller's contract is the same, and the page holds zeroes now.
        unsafe { self.free_zeroed(oa, size) };
    }

    /// Takes a page back that holds zeroes.
    ///
    /// # Safety
    ///
    /// As for [`free`](Self::free), and every byte of the page is 0.
    #[inline]
    pub(super) unsafe fn free_zeroed(&self, oa: Oa, size: PageSize) {
        // A size that was never handed out cannot come back.
        let Some(order) = Order::of(size) else { return };
        debug_assert!(self.is_zero(oa, size), "the page at {oa} is not cleared");
        self.frames.put(self.page_of(oa), order);
    }

    /// Reads a page that is ours alone.
    fn is_zero(&self, oa: Oa, size: PageSize) -> bool {
        static ZEROES: [u8; PAGE_LEN as usize] = [0; PAGE_LEN as usize];
        let mut offsets = (0..size.bytes()).step_by(ZEROES.len());
        offsets.all(|offset| {
            let part = self.ptr(oa).wrapping_add(offset as usize).cast_const();
            // SAFETY: the caller gives the page back (A2), A1 makes it readable; it was written or
            // zero from the start (A3), and nobody writes to it while it is compared.
            let part = unsafe { slice::from_raw_parts(part, ZEROES.len()) };
            *part == ZEROES
        })
    }

    #[inline]
    fn oa_of(&self, page: usize) -> Oa {
        Oa::new(self.first.get() + page as u64 * PAGE_LEN)
    }

    #[inline]
    fn page_of(&self, oa: Oa) -> usize {
        (oa.get().wrapping_sub(self.first.get()) / PAGE_LEN) as usize
    }
}

/// What lies behind the pages.
#[cfg(feature = "std")]
impl Pool {
    /// Sees to it that the free pages among the first `len` bytes, rounded up to whole chunks, are
    /// backed by memory. `populate` does that for a range of offsets and leaves what it holds; if it
    /// returns false, the pages are touched.
    pub(super) fn prefault<E>(
        &self,
        len: u64,
        mut populate: impl FnMut(Range<usize>) -> Result<bool, E>,
    ) -> Result<(), E> {
        let page_count = (len.div_ceil(PAGE_LEN) as usize).min(self.frames.page_count());
        let end = page_count.div_ceil(PAGE_COUNT);
        self.frames.visit_below(end, |chunk| {
            if !populate(self.offsets(chunk))? {
                chunk.pages().for_each(|page| self.touch(page));
            }
            Ok(())
        })
    }

    /// Writes to a page of ours what it holds.
    fn touch(&self, page: usize) {
        let first = self.ptr(self.oa_of(page));
        // SAFETY: by A2 the page is ours alone, by A3 it holds zeroes, by A1 it is writable.
        unsafe { first.write_volatile(0) };
    }

    /// Gives the memory of free chunks that were in use back by `give_back`, which takes a range of
    /// offsets that nobody uses meanwhile, whose bytes are 0 before and must be 0 afterwards, and
    /// returns whether it did. Returns the bytes given back.
    pub(super) fn trim(&self, mut give_back: impl FnMut(Range<usize>) -> bool) -> u64 {
        let mut trimmed_len = 0;
        self.frames.visit_touched(|chunk| {
            let offsets = self.offsets(chunk);
            let len = offsets.len() as u64;
            let is_given = give_back(offsets);
            if is_given {
                trimmed_len += len;
            }
            is_given
        });
        trimmed_len
    }

    /// Takes pages of a chunk over that nobody uses, and clears those that need it. They hold what
    /// `content` says.
    ///
    /// # Safety
    ///
    /// The pool was made of pages that count as handed out ([`Content::Taken`]); those of the chunk
    /// were never given back, nobody uses them, and they hold what `content` says.
    #[cfg(target_os = "linux")]
    pub(super) unsafe fn release(&self, chunk: &Chunk, content: Content) {
        let is_touched = content != Content::Zeroes;
        for page in chunk.pages().filter(|_| is_touched) {
            let oa = self.oa_of(page);
            if !self.is_zero(oa, SMALLEST) {
                // SAFETY: by the caller's contract the page is ours (A2), and by A1 writable.
                unsafe { self.ptr(oa).write_bytes(0, PAGE_LEN as usize) };
            }
        }
        self.frames.release(chunk, is_touched);
    }

    /// Returns where a chunk lies in the memory, in bytes.
    pub(super) fn offsets(&self, chunk: &Chunk) -> Range<usize> {
        let first = chunk.index() * PAGE_COUNT;
        let end = (first + PAGE_COUNT).min(self.frames.page_count());
        first * PAGE_LEN as usize..end * PAGE_LEN as usize
    }
}
