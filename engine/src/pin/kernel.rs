//! Memory that the kernel pins.

use core::fmt;

use alloc::vec::Vec;

use iopt_formats::{Oa, PageSize};
use rustix::io::Errno;

use crate::pin::ledger::Ledger;
use crate::pin::page_set::PageSet;
use crate::pin::region::Mapped;
use crate::pin::ring::{MAX_BUFFER_LEN, MAX_SLOTS, Ring, RingError};
use crate::pin::{Firmness, Kind, OaRun, Origin, PageRange, PinError, Source, check_pages};
use crate::sync::{Mutex, PINS};

/// Memory of the program that the kernel keeps at its physical addresses while it is pinned: as a
/// buffer registered with an `io_uring` that is used for nothing else.
///
/// Each call of [`pin`](Source::pin) makes a buffer, or several of at most 1 GiB. The kernel
/// releases buffers as a whole: pages that are unpinned stay in place until all pages of their
/// buffer are. A source has 16384 buffers, so that very many pins of few pages reach a
/// [`PinError::SystemLimit`]; so does `RLIMIT_MEMLOCK`.
///
/// Output addresses are still addresses in the program: the kernel tells nobody the physical ones.
/// Pinned pages are not locked by `mlock` on top of that.
pub struct KernelPinned<M> {
    // Released before the memory is unmapped.
    ring: Ring,
    memory: M,
    max_buffer_len: u64,
    buffers: Mutex<Buffers>,
}

/// The slots of the ring and what is in them.
#[derive(Debug)]
struct Buffers {
    /// The buffers, each tagged with its slot.
    pinned: Ledger<u32>,
    /// Empty slots below `next_slot`; has room for all slots.
    empty_slots: Vec<u32>,
    /// Slots from here on were never used.
    next_slot: u32,
    slot_count: u32,
}

/// Why the kernel cannot be made to pin memory.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum KernelPinnedError {
    /// The system has no `io_uring`, or one older than Linux 5.19.
    #[error("the system's io_uring does not exist or is too old")]
    Unsupported,
    /// `io_uring` is forbidden to the program, by a filter of system calls or by the system's
    /// setting `kernel.io_uring_disabled`.
    #[error("the program is not allowed to use io_uring")]
    Forbidden,
    /// The kernel pins only memory that may be written to.
    #[error("the kernel does not pin read-only memory")]
    ReadOnly,
    /// There is no memory, no file descriptor, or no locked memory left for the ring.
    #[error("the system has no room for another ring")]
    SystemLimit,
    /// The system refuses for another reason.
    #[error("the system refuses a ring, with error number {errno}")]
    System {
        /// The system's number of the error.
        errno: i32,
    },
}

impl From<RingError> for KernelPinnedError {
    fn from(error: RingError) -> Self {
        let errno = match error {
            // Registering takes its sizes from this module: what is invalid is too new.
            RingError::Slots(Errno::INVAL) => return Self::Unsupported,
            RingError::Setup(errno) | RingError::Slots(errno) => errno,
        };
        match errno {
            Errno::NOSYS => Self::Unsupported,
            Errno::PERM | Errno::ACCESS => Self::Forbidden,
            Errno::NOMEM | Errno::MFILE | Errno::NFILE => Self::SystemLimit,
            errno => {
                let errno = errno.raw_os_error();
                Self::System { errno }
            }
        }
    }
}

impl<M: Mapped> KernelPinned<M> {
    /// Lets the kernel pin `memory`, none of it yet.
    ///
    /// # Errors
    ///
    /// [`KernelPinnedError`] says why that is impossible.
    pub fn new(memory: M) -> Result<Self, KernelPinnedError> {
        Self::with_limits(memory, MAX_SLOTS, MAX_BUFFER_LEN)
    }

    /// As [`new`](Self::new), with at most `max_slot_count` buffers of at most `max_buffer_len`
    /// bytes.
    pub(super) fn with_limits(
        memory: M,
        max_slot_count: u32,
        max_buffer_len: u64,
    ) -> Result<Self, KernelPinnedError> {
        if !memory.is_writable() {
            return Err(KernelPinnedError::ReadOnly);
        }
        // Each buffer has a page that no other has.
        let slot_count = memory.page_count().min(u64::from(max_slot_count)) as u32;
        let mut empty_slots = Vec::new();
        let reserved = empty_slots.try_reserve_exact(slot_count as usize);
        reserved.map_err(|_| KernelPinnedError::SystemLimit)?;
        let buffers = Buffers {
            pinned: Ledger::new(),
            empty_slots,
            next_slot: 0,
            slot_count,
        };
        Ok(Self {
            ring: Ring::new(slot_count)?,
            memory,
            max_buffer_len,
            buffers: Mutex::new(&PINS, buffers),
        })
    }

    /// Returns the memory. Pins of its own know nothing of those here.
    pub const fn memory(&self) -> &M {
        &self.memory
    }

    /// Returns the address of a page.
    fn address_of(&self, page: u64) -> *mut u8 {
        let distance = page.wrapping_mul(self.page_size().bytes());
        self.memory.start().as_ptr().wrapping_add(distance as usize)
    }

    /// Pins one buffer of the `page_count` pages that are asked for.
    fn fill(
        &self,
        buffers: &mut Buffers,
        pages: PageRange,
        page_count: u64,
    ) -> Result<(), PinError> {
        let no_memory = PinError::NoMemory { page_count };
        let set = PageSet::try_full(pages).ok_or(no_memory)?;
        let reserved = buffers.pinned.try_reserve(1);
        reserved.map_err(|_| no_memory)?;
        let slot = buffers.take_slot();
        let slot = slot.ok_or(PinError::SystemLimit { page_count })?;
        let len = pages.count() * self.page_size().bytes();
        let filled = self.ring.fill(slot, self.address_of(pages.first()), len);
        if let Err(errno) = filled {
            buffers.empty_slots.push(slot);
            return Err(match errno {
                Errno::NOMEM => PinError::SystemLimit { page_count },
                // All pages were there a moment ago.
                Errno::FAULT => PinError::Fault {
                    page: pages.first(),
                },
                errno => PinError::Refused {
                    errno: errno.raw_os_error(),
                },
            });
        }
        buffers.pinned.insert(pages, set, slot);
        Ok(())
    }

    fn release(&self, buffers: &mut Buffers, pages: PageRange) {
        let mut rest = Some(pages);
        while let Some(left) = rest {
            let Some(taken) = buffers.pinned.take_run(left, |_| true) else {
                return;
            };
            if taken.is_last {
                self.ring.empty(taken.tag);
                buffers.empty_slots.push(taken.tag);
            }
            rest = left.above(taken.run.last());
        }
    }
}

impl Buffers {
    fn take_slot(&mut self) -> Option<u32> {
        if let Some(slot) = self.empty_slots.pop() {
            return Some(slot);
        }
        let slot = self.next_slot;
        (slot < self.slot_count).then(|| {
            self.next_slot += 1;
            slot
        })
    }
}

impl<M: Mapped> Source for KernelPinned<M> {
    fn page_size(&self) -> PageSize {
        self.memory.page_size()
    }

    fn page_count(&self) -> u64 {
        self.memory.page_count()
    }

    fn firmness(&self) -> Firmness {
        Firmness::Pinned
    }

    fn kind(&self) -> Kind {
        Kind::Ram
    }

    fn is_writable(&self) -> bool {
        self.memory.is_writable()
    }

    fn origin(&self) -> Origin<'_> {
        self.memory.origin()
    }

    fn prefault(&self, pages: PageRange) -> Result<(), PinError> {
        self.memory.prefault(pages)
    }

    fn pin(&self, pages: PageRange, runs: &mut dyn FnMut(OaRun)) -> Result<(), PinError> {
        check_pages(pages, self.page_count())?;
        // The kernel would not say which page is missing.
        self.memory.populate(pages)?;
        {
            let mut buffers = self.buffers.lock();
            if let Some(run) = buffers.pinned.first_run(pages, |_| true) {
                return Err(PinError::AlreadyPinned { page: run.first() });
            }
            let max_count = (self.max_buffer_len >> self.page_size().lg2()).max(1);
            let mut rest = Some(pages);
            while let Some(left) = rest {
                let count = left.count().min(max_count);
                let part = PageRange::with_count(left.first(), count).unwrap_or(left);
                if let Err(error) = self.fill(&mut buffers, part, pages.count()) {
                    self.release(&mut buffers, pages);
                    return Err(error);
                }
                rest = left.above(part.last());
            }
        }
        runs(OaRun {
            oa: Oa::new(self.address_of(pages.first()).addr() as u64),
            page_count: pages.count(),
        });
        Ok(())
    }

    fn unpin(&self, pages: PageRange) {
        self.release(&mut self.buffers.lock(), pages);
    }

    fn read(&self, offset: u64, into: &mut [u8]) -> Result<(), PinError> {
        self.memory.read(offset, into)
    }

    fn write(&self, offset: u64, from: &[u8]) -> Result<(), PinError> {
        self.memory.write(offset, from)
    }
}

impl<M: fmt::Debug> fmt::Debug for KernelPinned<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KernelPinned")
            .field("memory", &self.memory)
            .field("ring", &self.ring)
            .finish_non_exhaustive()
    }
}
