//! Bringing pages into memory and keeping them there.
//!
//! The system's locks on pages do not nest: one unlock undoes any number of locks. So the program's
//! sources share one [`Ledger`], and a page is unlocked by whoever unpins it last.
//!
//! # Invariants
//!
//! - **L1** (order): a pin is in the ledger before its pages are locked; pages are unlocked under
//!   the ledger's lock, after a look that finds them in no pin. So no unlock follows the lock of a
//!   pin that stands.

#![expect(unsafe_code, reason = "tells the system about memory")]

use core::ptr;

use iopt_formats::PageSize;
use rustix::io::{Errno, retry_on_intr};
use rustix::mm::{Advice, MsyncFlags, madvise, mlock, msync, munlock};
use rustix::param;

use crate::pin::ledger::Ledger;
use crate::pin::page_set::PageSet;
use crate::pin::{Access, PageRange};
use crate::sync::unmodelled::{AtomicU64, Ordering};
use crate::sync::{Mutex, PINS};

/// What the sources of the program have locked, in pages of the program's address space.
static LOCKED: Mutex<Ledger<u64>> = Mutex::new(&PINS, Ledger::new());

/// Returns the system's page size.
pub(super) fn system_page_size() -> PageSize {
    PageSize::from_lg2(param::page_size().trailing_zeros() as u8)
}

/// Returns whether the system can bring pages into memory on demand: Linux 5.14 or later.
pub(super) fn can_populate() -> bool {
    // SAFETY: no byte is advised on.
    let advised = unsafe { madvise(ptr::null_mut(), 0, Advice::LinuxPopulateRead) };
    advised.is_ok()
}

/// The first byte of a page of the program's address space, and the bytes of `pages`. The pages all
/// lie in the address space.
fn span(pages: PageRange) -> (*mut core::ffi::c_void, usize) {
    let page_size = system_page_size();
    let start = pages.first() << page_size.lg2();
    let len = pages.count() << page_size.lg2();
    // The system takes the address as a number.
    (ptr::without_provenance_mut(start as usize), len as usize)
}

/// Brings `pages` of the address space into memory, for the kind of access.
pub(super) fn populate(pages: PageRange, access: Access) -> Result<(), Errno> {
    let advice = if access.is_writable() {
        Advice::LinuxPopulateWrite
    } else {
        Advice::LinuxPopulateRead
    };
    let (start, len) = span(pages);
    retry_on_intr(|| {
        // SAFETY: pages that are missing are brought in as a touch would; none changes.
        unsafe { madvise(start, len, advice) }
    })
}

/// Returns whether nothing is mapped in some of `pages`.
pub(super) fn has_hole(pages: PageRange) -> bool {
    let (start, len) = span(pages);
    // SAFETY: starts no writing and changes no page; the system looks for holes all the same.
    let synced = unsafe { msync(start, len, MsyncFlags::ASYNC) };
    synced == Err(Errno::NOMEM)
}

/// Who locks pages: one value for each source.
#[derive(Debug)]
pub(super) struct Locker {
    id: u64,
}

/// Why pages are not locked.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum LockError {
    /// The locker has locked `page` of the address space already.
    Already { page: u64 },
    /// There is no memory to note it.
    NoMemory,
    /// The system refuses.
    System(Errno),
}

impl Locker {
    pub(super) fn new() -> Self {
        static NEXT_ID: AtomicU64 = AtomicU64::new(0);
        Self {
            id: NEXT_ID.fetch_add(1, Ordering::Relaxed),
        }
    }

    /// Locks `pages` of the address space, none of which this locker has locked.
    pub(super) fn lock(&self, pages: PageRange) -> Result<(), LockError> {
        let pinned = PageSet::try_full(pages).ok_or(LockError::NoMemory)?;
        {
            let mut ledger = LOCKED.lock();
            if let Some(run) = ledger.first_run(pages, |id| id == self.id) {
                return Err(LockError::Already { page: run.first() });
            }
            ledger.try_reserve(1).map_err(|_| LockError::NoMemory)?;
            ledger.insert(pages, pinned, self.id);
        }
        let (start, len) = span(pages);
        let locked = retry_on_intr(|| {
            // SAFETY: changes neither what is mapped nor what it holds.
            unsafe { mlock(start, len) }
        });
        locked.map_err(|errno| {
            self.unlock(pages);
            LockError::System(errno)
        })
    }

    /// Takes the locker's locks off `pages` of the address space. Where the system has no room to
    /// tell neighbours apart that are locked and unlocked, pages stay locked until their neighbours
    /// are unlocked or they are unmapped.
    pub(super) fn unlock(&self, pages: PageRange) {
        let mut ledger = LOCKED.lock();
        let mut rest = Some(pages);
        while let Some(left) = rest {
            let Some(taken) = ledger.take_run(left, |id| id == self.id) else {
                return;
            };
            unlock_free(&ledger, taken.run);
            rest = left.above(taken.run.last());
        }
    }
}

/// Unlocks those of `pages` that nobody has locked.
fn unlock_free(ledger: &Ledger<u64>, pages: PageRange) {
    let mut rest = Some(pages);
    while let Some(left) = rest {
        let kept = ledger.first_run(left, |_| true);
        let free = match kept {
            Some(kept) => PageRange::with_count(left.first(), kept.first() - left.first()),
            None => Some(left),
        };
        if let Some(free) = free {
            unlock(free);
        }
        rest = kept.and_then(|kept| left.above(kept.last()));
    }
}

/// Takes the system's locks off `pages`.
fn unlock(pages: PageRange) {
    let (start, len) = span(pages);
    // SAFETY: changes neither what is mapped nor what it holds.
    let unlocked = unsafe { munlock(start, len) };
    // Nothing depends on it.
    let _ = unlocked;
}
