//! Pages mapped in the program, as sources of memory and files share them.
//!
//! # Invariants
//!
//! - **P1** (place): the pages lie in the program's address space, which they do not wrap around,
//!   and start at a multiple of their size.
//! - **P2** (others): what is mapped there may be read, and written if `access` says so, at any time;
//!   nothing in this program relies on what it holds, and whatever accesses it while the source
//!   reads or writes does so by atomics of 8 bytes.
//! - **P3** (mapped): if `reach` is direct, all of it is mapped for as long as the value lives,
//!   with memory behind it that nobody takes away.

#![expect(unsafe_code, reason = "copies to and from memory by address")]

use core::ptr::NonNull;

use iopt_formats::{Oa, PageSize};
use rustix::io::Errno;

use crate::pin::copy::{self, SharedBytes};
use crate::pin::resident::{self, LockError, Locker};
use crate::pin::{Access, OaRun, PageRange, PinError, Source, check_pages};

/// How to copy to and from the pages.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Reach {
    /// By the program, because nothing can be missing.
    Direct,
    /// By the system, which finds pages missing without harm.
    Checked,
}

/// The pages.
#[derive(Debug)]
pub(super) struct Region {
    start: NonNull<u8>,
    page_size: PageSize,
    page_count: u64,
    access: Access,
    reach: Reach,
    locker: Locker,
}

// SAFETY: the pointer stands for memory that any thread may use (P2).
unsafe impl Send for Region {}
// SAFETY: as above; the rest is plain data.
unsafe impl Sync for Region {}

/// Why memory cannot be a source.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum MemoryError {
    /// There are no pages.
    #[error("a source has at least one page")]
    Empty,
    /// An address, an offset or a length is no multiple of the page size.
    #[error("{value:#x} is no multiple of {page_size}")]
    Unaligned {
        /// The address, offset or length in bytes.
        value: u64,
        /// The page size.
        page_size: PageSize,
    },
    /// The memory passes the end of the address space, or of the offsets that a file can have.
    #[error("{len:#x} bytes from {start:#x} on pass the end of the space")]
    TooWide {
        /// First address or offset.
        start: u64,
        /// Length in bytes.
        len: u64,
    },
    /// The file is shorter.
    #[error("the file ends at {file_len:#x}, before {end:#x}")]
    BeyondFile {
        /// Offset that the file would have to reach, in bytes.
        end: u64,
        /// Length of the file in bytes.
        file_len: u64,
    },
    /// The system cannot bring pages into memory on demand: it is older than Linux 5.14.
    #[error("the system is older than Linux 5.14")]
    TooOld,
    /// The system refuses to map the memory or to tell about the file.
    #[error("the system refuses the memory, with error number {errno}")]
    System {
        /// The system's number of the error.
        errno: i32,
    },
}

impl From<Errno> for MemoryError {
    fn from(errno: Errno) -> Self {
        let errno = errno.raw_os_error();
        Self::System { errno }
    }
}

impl From<std::io::Error> for MemoryError {
    fn from(error: std::io::Error) -> Self {
        // An error without a number can only be an argument that never reached the system.
        let errno = error.raw_os_error().unwrap_or(libc::EINVAL);
        Self::System { errno }
    }
}

/// Checks that `len` bytes are whole pages, at least one.
pub(super) fn check_len(len: u64, page_size: PageSize) -> Result<u64, MemoryError> {
    if len == 0 {
        return Err(MemoryError::Empty);
    }
    if !page_size.divides(len) {
        let value = len;
        return Err(MemoryError::Unaligned { value, page_size });
    }
    Ok(len / page_size.bytes())
}

impl Region {
    /// Creates the source of `len` bytes at `start`, in pages of `page_size`, which is not smaller
    /// than the system's.
    ///
    /// # Safety
    ///
    /// P2 holds, and P3 if `reach` is direct.
    pub(super) unsafe fn new(
        start: NonNull<u8>,
        len: usize,
        page_size: PageSize,
        access: Access,
        reach: Reach,
    ) -> Result<Self, MemoryError> {
        let (address, len) = (start.addr().get() as u64, len as u64);
        let page_count = check_len(len, page_size)?;
        if !page_size.divides(address) {
            let value = address;
            return Err(MemoryError::Unaligned { value, page_size });
        }
        if address.checked_add(len).is_none() {
            let start = address;
            return Err(MemoryError::TooWide { start, len });
        }
        if !resident::can_populate() {
            return Err(MemoryError::TooOld);
        }
        Ok(Self {
            start,
            page_size,
            page_count,
            access,
            reach,
            locker: Locker::new(),
        })
    }

    pub(super) const fn start(&self) -> NonNull<u8> {
        self.start
    }

    pub(super) const fn page_size(&self) -> PageSize {
        self.page_size
    }

    pub(super) const fn page_count(&self) -> u64 {
        self.page_count
    }

    pub(super) const fn access(&self) -> Access {
        self.access
    }

    /// Returns all pages.
    fn all(&self) -> PageRange {
        let all = PageRange::with_count(0, self.page_count);
        all.expect("P1: there is a page")
    }

    /// Returns where pages of the region lie, in the system's pages of the address space.
    fn in_space(&self, pages: PageRange) -> PageRange {
        let system_lg2 = resident::system_page_size().lg2();
        let shift = self.page_size.lg2() - system_lg2;
        let origin = self.start.addr().get() as u64 >> system_lg2;
        let first = origin + (pages.first() << shift);
        PageRange::with_count(first, pages.count() << shift).expect("P1: nothing wraps around")
    }

    /// Brings `pages` into memory.
    ///
    /// # Errors
    ///
    /// [`PinError::OutOfRange`], [`PinError::Fault`], [`PinError::NoMemory`] or
    /// [`PinError::Refused`].
    pub(super) fn populate(&self, pages: PageRange) -> Result<(), PinError> {
        check_pages(pages, self.page_count)?;
        let populate = |first, last| match PageRange::new(first, last) {
            Some(pages) => resident::populate(self.in_space(pages), self.access),
            None => Ok(()),
        };
        let (mut first, mut last) = (pages.first(), pages.last());
        let Err(mut errno) = populate(first, last) else {
            return Ok(());
        };
        let is_of_a_page = |errno| {
            matches!(
                errno,
                Errno::FAULT | Errno::HWPOISON | Errno::INVAL | Errno::NOMEM
            )
        };
        // The system does not say where it stopped. It goes upward, so that all below is there.
        while is_of_a_page(errno) && first < last {
            let middle = first + (last - first) / 2;
            match populate(first, middle) {
                Ok(()) => first = middle + 1,
                Err(other) => (errno, last) = (other, middle),
            }
        }
        let page = first;
        let here = PageRange::new(page, page).map(|page| self.in_space(page));
        let is_hole = errno == Errno::NOMEM && here.is_some_and(resident::has_hole);
        Err(if errno == Errno::NOMEM && !is_hole {
            PinError::NoMemory {
                page_count: pages.count(),
            }
        } else if is_of_a_page(errno) {
            PinError::Fault { page }
        } else {
            let errno = errno.raw_os_error();
            PinError::Refused { errno }
        })
    }

    /// As [`Source::pin`]: all pages are one run.
    pub(super) fn pin(
        &self,
        pages: PageRange,
        runs: &mut dyn FnMut(OaRun),
    ) -> Result<(), PinError> {
        self.populate(pages)?;
        let page_count = pages.count();
        let in_space = self.in_space(pages);
        self.locker.lock(in_space).map_err(|error| match error {
            LockError::Already { page } => {
                let distance = page - self.in_space(self.all()).first();
                let shift = self.page_size.lg2() - resident::system_page_size().lg2();
                let page = distance >> shift;
                PinError::AlreadyPinned { page }
            }
            LockError::NoMemory => PinError::NoMemory { page_count },
            LockError::System(Errno::NOMEM | Errno::AGAIN | Errno::PERM) => {
                PinError::SystemLimit { page_count }
            }
            LockError::System(errno) => {
                let errno = errno.raw_os_error();
                PinError::Refused { errno }
            }
        })?;
        let distance = pages.first() * self.page_size.bytes();
        runs(OaRun {
            oa: Oa::new(self.start.addr().get() as u64 + distance),
            page_count,
        });
        Ok(())
    }

    pub(super) fn unpin(&self, pages: PageRange) {
        if let Some(pages) = pages.intersection(self.all()) {
            self.locker.unlock(self.in_space(pages));
        }
    }

    /// Returns the memory for copies of the program's own.
    fn bytes(&self) -> SharedBytes {
        // P1: pages start at a word.
        SharedBytes::new(self.start.as_ptr().cast())
    }

    /// Reads bytes that the region has.
    pub(super) fn read(&self, offset: u64, into: &mut [u8]) -> Result<(), PinError> {
        match self.reach {
            Reach::Direct => {
                // SAFETY: P3 and P2; words of the range belong to its pages.
                unsafe { self.bytes().read(offset as usize, into) };
                Ok(())
            }
            Reach::Checked => {
                let from = self.start.as_ptr().wrapping_add(offset as usize);
                let copied = copy::read_checked(from, into);
                copied.map_err(|error| self.copy_error(offset, error))
            }
        }
    }

    /// Writes bytes that the region has and may change.
    pub(super) fn write(&self, offset: u64, from: &[u8]) -> Result<(), PinError> {
        match self.reach {
            Reach::Direct => {
                // SAFETY: P3 and P2; words of the range belong to its pages.
                unsafe { self.bytes().write(offset as usize, from) };
                Ok(())
            }
            Reach::Checked => {
                let Some(last_distance) = (from.len() as u64).checked_sub(1) else {
                    return Ok(());
                };
                let page_of = |offset: u64| offset >> self.page_size.lg2();
                let last = offset + last_distance;
                if let Some(pages) = PageRange::new(page_of(offset), page_of(last)) {
                    // The system would find a missing page only after changing those in front.
                    self.populate(pages)?;
                }
                let into = self.start.as_ptr().wrapping_add(offset as usize);
                // SAFETY: P2.
                let copied = unsafe { copy::write_checked(into, from) };
                copied.map_err(|error| self.copy_error(offset, error))
            }
        }
    }

    fn copy_error(&self, offset: u64, error: copy::CopyError) -> PinError {
        if error.errno == libc::EFAULT {
            let page = (offset + error.done as u64) >> self.page_size.lg2();
            return PinError::Fault { page };
        }
        let errno = error.errno;
        PinError::Refused { errno }
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        self.unpin(self.all());
    }
}

/// Memory that is mapped in the program, all of it in one place, which it does not wrap around.
pub trait Mapped: Source {
    /// Returns the first byte. Who uses it touches the memory as
    /// [`UserMemory::new`](crate::pin::UserMemory::new) says, for as long as the value lives.
    fn start(&self) -> NonNull<u8>;

    /// Brings pages into memory, without any promise that they stay.
    ///
    /// # Errors
    ///
    /// [`PinError`]; some of the pages may be in memory then.
    fn populate(&self, pages: PageRange) -> Result<(), PinError>;
}

/// Implements `Source` for a type whose field `region` holds its pages; `$origin` is its origin.
macro_rules! mapped_source {
    ($name:ident, |$source:ident| $origin:expr) => {
        impl Source for $name {
            fn page_size(&self) -> PageSize {
                self.region.page_size()
            }

            fn page_count(&self) -> u64 {
                self.region.page_count()
            }

            fn firmness(&self) -> Firmness {
                Firmness::Resident
            }

            fn kind(&self) -> Kind {
                Kind::Ram
            }

            fn is_writable(&self) -> bool {
                self.region.access().is_writable()
            }

            fn origin(&self) -> Origin<'_> {
                let $source = self;
                $origin
            }

            fn pin(&self, pages: PageRange, runs: &mut dyn FnMut(OaRun)) -> Result<(), PinError> {
                self.region.pin(pages, runs)
            }

            fn prefault(&self, pages: PageRange) -> Result<(), PinError> {
                self.region.populate(pages)
            }

            fn unpin(&self, pages: PageRange) {
                self.region.unpin(pages);
            }

            fn read(&self, offset: u64, into: &mut [u8]) -> Result<(), PinError> {
                check_bytes(self, offset, into.len())?;
                self.region.read(offset, into)
            }

            fn write(&self, offset: u64, from: &[u8]) -> Result<(), PinError> {
                check_write(self, offset, from.len())?;
                self.region.write(offset, from)
            }
        }

        impl Mapped for $name {
            fn start(&self) -> NonNull<u8> {
                self.region.start()
            }

            fn populate(&self, pages: PageRange) -> Result<(), PinError> {
                self.region.populate(pages)
            }
        }
    };
}

pub(super) use mapped_source;
