//! Where the pages behind an IO address space come from, and how they are kept in place.
//!
//! A [`Source`] is an array of pages without IOVA: memory of the program, a file, guest memory,
//! device memory, or simulated pages. Whoever maps a page pins it first and unpins it once nothing
//! can reach it any more. What a source can promise meanwhile differs:
//!
//! | source | output addresses | [`Firmness`] |
//! |---|---|---|
//! | [`Simulated`] | made up | `Simulated` |
//! | `UserMemory`, `AnonymousPages`, `FileMemory` (Linux) | host virtual | `Resident` |
//! | `KernelPinned` (Linux) | host virtual | `Pinned` |
//! | [`Guest`] | the VMM's | the VMM's |
//! | [`Fixed`] | given | `Fixed` |
//!
//! The system shows no physical address to programs that it would stand by, so that none of these
//! can hand one out.
//! A kernel interface that pins for itself is given the [`Origin`] of a source instead.
//!
//! # Counting
//!
//! A source knows two states of a page: pinned or not. Who lets several users share a page pins it
//! for the first of them and unpins it after the last. Two sources over the same memory need not
//! know of each other.
//!
//! How much one user may pin is the business of a [`Budget`]; sources do not charge for pins.

mod budget;
#[cfg(all(feature = "std", target_os = "linux", not(loom)))]
mod copy;
#[cfg(all(feature = "std", target_os = "linux"))]
pub mod diagnostics;
#[cfg(all(feature = "std", target_os = "linux", not(loom)))]
mod file;
mod fixed;
mod guest;
#[cfg(all(feature = "std", target_os = "linux", not(loom)))]
mod kernel;
#[cfg(all(feature = "std", target_os = "linux", not(loom)))]
mod ledger;
#[cfg(all(feature = "std", target_os = "linux", not(loom)))]
mod page_set;
mod pages;
#[cfg(feature = "parallel")]
mod parallel;
#[cfg(all(feature = "std", target_os = "linux", not(loom)))]
mod region;
#[cfg(all(feature = "std", target_os = "linux", not(loom)))]
mod resident;
#[cfg(all(feature = "std", target_os = "linux", not(loom)))]
mod ring;
mod simulated;
#[cfg(test)]
#[cfg(not(loom))]
mod tests;
#[cfg(all(feature = "std", target_os = "linux", not(loom)))]
mod user;

use core::fmt;
use core::ptr::NonNull;
#[cfg(all(feature = "std", unix))]
use std::os::fd::BorrowedFd;

use iopt_formats::{Oa, PageSize};

pub use crate::pin::budget::{Budget, LimitExceeded};
#[cfg(all(feature = "std", target_os = "linux", not(loom)))]
pub use crate::pin::file::FileMemory;
pub use crate::pin::fixed::{Fixed, FixedError};
pub use crate::pin::guest::{Guest, GuestMemory};
#[cfg(all(feature = "std", target_os = "linux", not(loom)))]
pub use crate::pin::kernel::{KernelPinned, KernelPinnedError};
pub use crate::pin::pages::PageRange;
#[cfg(feature = "parallel")]
pub use crate::pin::parallel::par_prefault;
#[cfg(all(feature = "std", target_os = "linux", not(loom)))]
pub use crate::pin::region::{Mapped, MemoryError};
pub use crate::pin::simulated::Simulated;
#[cfg(all(feature = "std", target_os = "linux", not(loom)))]
pub use crate::pin::user::{AnonymousPages, Backing, UserMemory};

/// How firmly pinned pages stay where they are.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Firmness {
    /// There is nothing that could move.
    Simulated,
    /// Pages stay in memory, but the system may move them to another physical address.
    Resident,
    /// The kernel keeps each page at its physical address until it is unpinned.
    Pinned,
    /// The memory is no page cache and no heap: device memory, or memory carved out at boot.
    Fixed,
}

impl Firmness {
    /// Returns whether a device may be let loose on the pages: only if they cannot move while it
    /// uses them.
    pub const fn suits_hardware(self) -> bool {
        matches!(self, Self::Pinned | Self::Fixed)
    }
}

/// What lies behind the pages.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Kind {
    /// Memory: a mapping of it that fails is an error.
    Ram,
    /// Registers or memory of a device: peers can often do without, and not every sink takes it.
    Device,
}

/// What may be done with the pages.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Access {
    /// Reading.
    ReadOnly,
    /// Reading and writing.
    ReadWrite,
}

impl Access {
    /// Returns whether writing is allowed.
    pub const fn is_writable(self) -> bool {
        matches!(self, Self::ReadWrite)
    }
}

/// Pages with consecutive output addresses.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct OaRun {
    /// Output address of the first page.
    pub oa: Oa,
    /// Pages of the source's page size, at least one.
    pub page_count: u64,
}

/// Byte 0 of a source, in the terms of sinks that take something else than output addresses. Byte
/// `n` lies `n` further on.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub enum Origin<'a> {
    /// A host virtual address.
    HostVa(NonNull<u8>),
    /// A place in a file that can be mapped.
    #[cfg(all(feature = "std", unix))]
    File {
        /// The file.
        fd: BorrowedFd<'a>,
        /// Bytes from its start.
        offset: u64,
    },
    /// A place in a DMA buffer that devices share.
    #[cfg(all(feature = "std", unix))]
    DmaBuf {
        /// The buffer.
        fd: BorrowedFd<'a>,
        /// Bytes from its start.
        offset: u64,
    },
    /// An output address, for sinks that are identity mapped or take guest-physical addresses.
    Oa(Oa),
    /// Keeps the lifetime where there are no files; cannot be made.
    #[cfg(not(all(feature = "std", unix)))]
    #[doc(hidden)]
    Never(core::convert::Infallible, core::marker::PhantomData<&'a ()>),
}

/// An array of pages that can be kept in place.
///
/// All methods may be called from many threads at once. The engine calls `pin`, `unpin`, `read` and
/// `write` while it holds locks of its own, so that a source must not call back into an address
/// space. A source holds none of its own locks while it calls `runs`.
pub trait Source: Send + Sync + fmt::Debug {
    /// Returns the size of a page, the unit of pins.
    fn page_size(&self) -> PageSize;

    /// Returns the number of pages, at least one.
    fn page_count(&self) -> u64;

    /// Returns what pinning is worth.
    fn firmness(&self) -> Firmness;

    /// Returns what lies behind the pages.
    fn kind(&self) -> Kind;

    /// Returns whether the pages may be written to.
    fn is_writable(&self) -> bool;

    /// Returns the address or file offset of byte 0. An IOVA that is chosen to agree with it in
    /// the low bits can use large pages.
    fn low_bits(&self) -> u64 {
        match self.origin() {
            Origin::HostVa(start) => start.as_ptr().addr() as u64,
            #[cfg(all(feature = "std", unix))]
            Origin::File { offset, .. } | Origin::DmaBuf { offset, .. } => offset,
            Origin::Oa(oa) => oa.get(),
            #[cfg(not(all(feature = "std", unix)))]
            Origin::Never(never, _) => match never {},
        }
    }

    /// Returns where byte 0 lies.
    fn origin(&self) -> Origin<'_>;

    /// Pins pages, none of which is pinned, and reports their output addresses in rising order, in
    /// runs as long as the source knows them to be.
    ///
    /// # Errors
    ///
    /// [`PinError`]; no page of `pages` is pinned by the call then, and runs that were reported
    /// are void.
    fn pin(&self, pages: PageRange, runs: &mut dyn FnMut(OaRun)) -> Result<(), PinError>;

    /// Brings pages into memory, without pinning them, so that a later pin finds them there. Many threads
    /// may do parts of it at once; see `par_prefault`.
    ///
    /// # Errors
    ///
    /// [`PinError`], as for [`pin`](Self::pin).
    fn prefault(&self, pages: PageRange) -> Result<(), PinError> {
        let _ = pages;
        Ok(())
    }

    /// Releases pinned pages, in any pieces: one call may release parts of several pins. Allocates
    /// nothing. Pages that are not pinned stay so.
    fn unpin(&self, pages: PageRange);

    /// Copies what lies at `offset`, in bytes, for devices that are programs. What others write
    /// meanwhile may be seen in part.
    ///
    /// # Errors
    ///
    /// [`PinError::BeyondEnd`], or [`PinError::NoAccess`] where the program cannot reach the pages.
    fn read(&self, offset: u64, into: &mut [u8]) -> Result<(), PinError>;

    /// Changes what lies at `offset`, in bytes.
    ///
    /// # Errors
    ///
    /// As for [`read`](Self::read), and [`PinError::ReadOnly`]; nothing is changed then.
    fn write(&self, offset: u64, from: &[u8]) -> Result<(), PinError>;
}

/// Why pages cannot be pinned, read or written.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum PinError {
    /// The range passes the last page of the source.
    #[error("pages {pages} are not all among the {page_count} of the source")]
    OutOfRange {
        /// The range asked for.
        pages: PageRange,
        /// Pages of the source.
        page_count: u64,
    },
    /// The page is pinned already.
    #[error("page {page} is pinned already")]
    AlreadyPinned {
        /// The lowest such page.
        page: u64,
    },
    /// There is nothing behind the page, or not with the access that the source stands for.
    #[error("page {page} cannot be made present")]
    Fault {
        /// The first such page.
        page: u64,
    },
    /// A limit of the system is reached: locked memory, mappings of the program, or buffers of a
    /// ring.
    #[error("the system allows no {page_count} pages more to be pinned")]
    SystemLimit {
        /// Pages asked for.
        page_count: u64,
    },
    /// The system has no memory left.
    #[error("no memory to pin {page_count} pages")]
    NoMemory {
        /// Pages asked for.
        page_count: u64,
    },
    /// The system refuses for a reason that has nothing to do with the pages.
    #[error("the system refuses to pin, with error number {errno}")]
    Refused {
        /// The system's number of the error.
        errno: i32,
    },
    /// The program cannot reach the pages: device memory.
    #[error("the pages are out of the program's reach")]
    NoAccess,
    /// The bytes pass the end of the source.
    #[error("{len:#x} bytes at offset {offset:#x} pass the end of the source")]
    BeyondEnd {
        /// First byte asked for.
        offset: u64,
        /// Bytes asked for.
        len: u64,
    },
    /// The pages may be read only.
    #[error("the pages are read-only")]
    ReadOnly,
}

/// Checks that a source of `page_count` pages has all of `pages`.
fn check_pages(pages: PageRange, page_count: u64) -> Result<(), PinError> {
    if pages.last() < page_count {
        Ok(())
    } else {
        Err(PinError::OutOfRange { pages, page_count })
    }
}

/// Checks that `source` has `len` bytes at `offset`.
fn check_bytes(source: &(impl Source + ?Sized), offset: u64, len: usize) -> Result<(), PinError> {
    let len = len as u64;
    // Sources as large as the address space have one byte more than fits 64 bits.
    let end = u128::from(offset) + u128::from(len);
    let source_len = u128::from(source.page_count()) << source.page_size().lg2();
    if end <= source_len {
        Ok(())
    } else {
        Err(PinError::BeyondEnd { offset, len })
    }
}

/// As [`check_bytes`], for writes.
fn check_write(source: &(impl Source + ?Sized), offset: u64, len: usize) -> Result<(), PinError> {
    if !source.is_writable() {
        return Err(PinError::ReadOnly);
    }
    check_bytes(source, offset, len)
}
