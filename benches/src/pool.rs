//! Memory of all tables that are compared: one pool of pages a thread.
//!
//! The engine and its peers take their table pages from here, so that a difference in time is one
//! of code and not of memory. Pages are faulted in beforehand, in huge pages where the system gives
//! them, and live until the process ends, so that nothing can outlive them. The address that a
//! parent entry holds is the pointer less a constant.

#![expect(unsafe_code, reason = "maps memory and hands out pages of it")]

use std::cell::RefCell;
use std::collections::VecDeque;
use std::ptr::{self, NonNull};
use std::slice;
use std::sync::atomic::AtomicU64;

use iopt::mem::{OutOfMemory, TableMemory};
use iopt_formats::{Oa, PageSize};
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous};

use crate::random::Random;

/// Bytes of a page of the pool.
pub const PAGE_LEN: usize = 4096;

/// Pages that a thread's pool starts with: enough for several tables of 1 GiB at once.
const PAGE_COUNT: usize = 8192;

/// Pages of the pool in [`with_cold_pages`]: 1 GiB, more than any cache holds.
const COLD_PAGE_COUNT: usize = 1 << 18;

/// Pointer less output address. No process has memory below 1 MiB, so the difference never wraps.
const OA_OFFSET: usize = 1 << 20;

const HUGE_PAGE_LEN: usize = 2 << 20;

/// One table page.
#[derive(Debug)]
#[repr(C, align(4096))]
pub struct Page(pub [AtomicU64; 512]);

/// Maps `count` pages of zeroes that stay until the process ends, all of them faulted in.
pub fn leak_pages(count: usize) -> &'static [Page] {
    let first = leak_memory(count * PAGE_LEN).cast::<Page>();
    // SAFETY: the mapping is aligned to its pages, zero is a valid `AtomicU64`, it is never
    // unmapped, and only this slice and pointers made from it reach it.
    unsafe { slice::from_raw_parts(first.as_ptr(), count) }
}

fn leak_memory(len: usize) -> NonNull<u8> {
    let mapped_len = len + HUGE_PAGE_LEN;
    let (prot, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE);
    // SAFETY: without a wanted address the system chooses one that nothing uses.
    let start = unsafe { mmap_anonymous(ptr::null_mut(), mapped_len, prot, flags) };
    let start = start
        .expect("the benches need up to 2 GiB of memory")
        .cast::<u8>();
    let first = start.map_addr(|address| address.next_multiple_of(HUGE_PAGE_LEN));
    // SAFETY: the advice changes how the mapping is backed, not what it holds. Where the system
    // has no huge pages all sides lose the same.
    let _ = unsafe { madvise(first.cast(), len, Advice::LinuxHugepage) };
    for offset in (0..len).step_by(PAGE_LEN) {
        // SAFETY: `first` lies less than a huge page into the mapping, which is that much longer
        // than `len`.
        unsafe { first.wrapping_add(offset).write_volatile(0) };
    }
    first.expose_provenance();
    NonNull::new(first).expect("a mapping is not at address 0")
}

/// Where a page that is given back goes.
#[derive(Clone, Copy)]
enum Order {
    /// To the front: the next page taken is in the caches.
    Lifo,
    /// To the end: the next page taken has long left the caches.
    Fifo,
}

struct Pool {
    free: VecDeque<NonNull<u8>>,
    order: Order,
}

impl Pool {
    fn new(page_count: usize, order: Order) -> Self {
        let first = leak_memory(page_count * PAGE_LEN);
        let page = |index: usize| {
            // SAFETY: `index` is below `page_count`, so the page lies in the mapping.
            unsafe { first.add(index * PAGE_LEN) }
        };
        Self {
            free: (0..page_count).map(page).collect(),
            order,
        }
    }
}

thread_local! {
    static POOL: RefCell<Pool> = RefCell::new(Pool::new(PAGE_COUNT, Order::Lifo));
}

/// Takes a page that holds whatever its last user left.
#[inline]
pub fn take() -> Option<NonNull<u8>> {
    POOL.with_borrow_mut(|pool| pool.free.pop_front())
}

/// Takes a page of zeroes.
#[inline]
pub fn take_zeroed() -> Option<NonNull<u8>> {
    let page = take()?;
    // SAFETY: the pool handed the page to us alone and it is `PAGE_LEN` long.
    unsafe { page.write_bytes(0, PAGE_LEN) };
    Some(page)
}

/// Gives a page back.
///
/// # Safety
///
/// `page` came from [`take`] or [`take_zeroed`] and is not used any more.
#[inline]
pub unsafe fn give(page: NonNull<u8>) {
    POOL.with_borrow_mut(|pool| match pool.order {
        Order::Lifo => pool.free.push_front(page),
        Order::Fifo => pool.free.push_back(page),
    });
}

/// Returns the address that a parent entry holds for `page`.
#[inline]
pub fn oa_of(page: NonNull<u8>) -> u64 {
    (page.as_ptr().expose_provenance() - OA_OFFSET) as u64
}

/// Returns the pointer to the byte of a pool page at `oa`.
#[inline]
pub fn pointer_to(oa: u64) -> *mut u8 {
    ptr::with_exposed_provenance_mut((oa as usize).wrapping_add(OA_OFFSET))
}

/// Returns the page at `oa`, of a table that [`oa_of`] placed there.
///
/// # Panics
///
/// Panics if `oa` is no address of the pool.
#[inline]
pub fn page_at(oa: u64) -> NonNull<u8> {
    NonNull::new(pointer_to(oa)).expect("the pool has no page at address 0")
}

/// Runs `work` with a pool of 1 GiB in random order, whose pages come back last: each page taken
/// is cold in every cache.
///
/// `work` gives back all pages it takes.
pub fn with_cold_pages<R>(work: impl FnOnce() -> R) -> R {
    let mut cold = Pool::new(COLD_PAGE_COUNT, Order::Fifo);
    Random::new(1).shuffle(cold.free.make_contiguous());
    let warm = POOL.replace(cold);
    let result = work();
    POOL.set(warm);
    result
}

/// Runs `work` with `count` pages of zeroes of `memory`, in the order in which it hands them out.
///
/// # Panics
///
/// Panics if there are not so many.
pub fn with_pages_of<R>(
    memory: &impl TableMemory,
    count: u64,
    work: impl FnOnce(&[&Page]) -> R,
) -> R {
    let size = PageSize::KIB_4;
    let taken: Result<Vec<Oa>, _> = (0..count).map(|_| memory.alloc(size)).collect();
    let taken = taken.expect("the memory has as many pages as are asked for");
    let page_at = |&oa: &Oa| {
        let page = NonNull::new(memory.ptr(oa)).expect("no page is at address 0");
        // SAFETY: M1, M2: the page is 4 KiB long, aligned to that, and ours until it is freed
        // below, and it holds zeroes, which are valid atomics.
        unsafe { page.cast::<Page>().as_ref() }
    };
    let result = work(&taken.iter().map(page_at).collect::<Vec<_>>());
    for oa in taken {
        // SAFETY: the page was taken above with this size, and `work`, which can keep no
        // reference, has returned.
        unsafe { memory.free(oa, size) };
    }
    result
}

/// The pool of the calling thread as memory for the engine's tables.
#[derive(Clone, Copy, Debug, Default)]
pub struct PoolMemory;

// SAFETY: M1: `take_zeroed` hands a page of zeroes to one caller, aligned to 4 KiB in both spaces
// because `OA_OFFSET` is a multiple of that, and larger pages are refused. M2: a pointer is the OA
// plus a constant and the memory is never unmapped. M3: user addresses have less than 52 bits.
unsafe impl TableMemory for PoolMemory {
    #[inline]
    fn alloc(&self, size: PageSize) -> Result<Oa, OutOfMemory> {
        let page = if size == PageSize::KIB_4 {
            take_zeroed()
        } else {
            None
        };
        page.map(|page| Oa::new(oa_of(page)))
            .ok_or(OutOfMemory { size })
    }

    #[inline]
    unsafe fn free(&self, oa: Oa, _size: PageSize) {
        // SAFETY: by the caller's contract the page came from `alloc` and is not used any more.
        unsafe { give(page_at(oa.get())) };
    }

    #[inline]
    fn ptr(&self, oa: Oa) -> *mut u8 {
        pointer_to(oa.get())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering::Relaxed;

    use iopt::mem::Arena;

    use super::*;

    #[test]
    fn a_page_that_was_given_back_is_taken_next_and_zeroed() {
        let memory = PoolMemory;
        let first = memory.alloc(PageSize::KIB_4).unwrap();
        // SAFETY: the page is ours and 4 KiB long.
        unsafe { memory.ptr(first).wrapping_add(PAGE_LEN - 1).write(0xff) };
        // SAFETY: the page came from `alloc` and is not used any more.
        unsafe { memory.free(first, PageSize::KIB_4) };
        let second = memory.alloc(PageSize::KIB_4).unwrap();
        assert_eq!(first, second);
        // SAFETY: the page is ours and 4 KiB long.
        let last = unsafe { memory.ptr(second).wrapping_add(PAGE_LEN - 1).read() };
        assert_eq!(last, 0);
    }

    #[test]
    fn pages_of_a_memory_are_zeroed_and_given_back() {
        let arena = Arena::new(1 << 20).unwrap();
        for _ in 0..2 {
            with_pages_of(&arena, 16, |pages| {
                for page in pages {
                    assert_eq!(page.0[511].swap(7, Relaxed), 0);
                }
            });
        }
        assert_eq!(arena.usage().used_len, 0);
    }

    #[test]
    fn pages_of_other_sizes_are_refused() {
        assert!(PoolMemory.alloc(PageSize::KIB_64).is_err());
    }
}
