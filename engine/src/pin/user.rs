//! Memory of the program.

#![expect(unsafe_code, reason = "memory by address")]

use core::ptr::NonNull;

use iopt_formats::PageSize;
use memmap2::{Advice, MmapOptions, MmapRaw};

use crate::pin::region::{Mapped, MemoryError, Reach, Region, check_len, mapped_source};
use crate::pin::resident::system_page_size;
use crate::pin::{
    Access, Firmness, Kind, OaRun, Origin, PageRange, PinError, Source, check_bytes, check_write,
};

/// Memory that the program has mapped, by its address, in pages of the system's size.
///
/// Pinned pages are locked in memory: `mlock`, which counts against `RLIMIT_MEMLOCK`. The system
/// does not count how often a page is locked, so that the program's sources do so together: a page
/// stays locked until the last of them unpins it. Locks that the program takes by other means are
/// lost with that.
///
/// Output addresses are addresses in the program, and consecutive pages are one run.
#[derive(Debug)]
pub struct UserMemory {
    region: Region,
}

impl UserMemory {
    /// Creates the source of `len` bytes at `start`. Copies are the program's own.
    ///
    /// # Safety
    ///
    /// For as long as the value lives,
    ///
    /// - all of the memory stays mapped with a right to read, and to write if `access` says so,
    ///   and no file behind it becomes shorter;
    /// - no reference points to it but to atomics of 8 bytes, and nothing in this program relies
    ///   on what it holds; other programs and devices may change it at any time;
    /// - what this program does to it by other means while a call reads or writes is atomic, by
    ///   aligned 8 bytes.
    ///
    /// # Errors
    ///
    /// [`MemoryError`] says which rule the arguments break.
    pub unsafe fn new(start: NonNull<u8>, len: usize, access: Access) -> Result<Self, MemoryError> {
        // SAFETY: the caller's contract is P2 and P3.
        let region = unsafe { Region::new(start, len, system_page_size(), access, Reach::Direct) };
        region.map(|region| Self { region })
    }

    /// As [`new`](Self::new), of memory that may have holes, become unmapped, or be a file that
    /// becomes shorter: pins, reads and writes then fail with [`PinError::Fault`]. Copies are left to
    /// the system, which costs some microseconds each.
    ///
    /// # Safety
    ///
    /// For as long as the value lives, whatever is mapped in the range may be read, and changed if
    /// `access` says so, at any time: no reference points to it but to atomics, and nothing in this
    /// program relies on what it holds.
    ///
    /// # Errors
    ///
    /// As for [`new`](Self::new).
    pub unsafe fn with_holes(
        start: NonNull<u8>,
        len: usize,
        access: Access,
    ) -> Result<Self, MemoryError> {
        // SAFETY: the caller's contract is P2.
        let region = unsafe { Region::new(start, len, system_page_size(), access, Reach::Checked) };
        region.map(|region| Self { region })
    }
}

mapped_source!(UserMemory, |source| Origin::HostVa(source.region.start()));

/// What [`AnonymousPages`] are backed by.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[non_exhaustive]
pub enum Backing {
    /// Pages of the system's size, unless the system gives larger ones to everybody.
    #[default]
    Plain,
    /// Huge pages where the system has some at hand; the unit of pins stays the system's page.
    Transparent,
    /// Huge pages of this size that the administrator set aside; they are the unit of pins.
    Hugetlb(PageSize),
}

/// Memory of the program's own, mapped for the purpose and zero at first; it is pinned as
/// [`UserMemory`] is.
///
/// ```
/// use iopt::pin::{AnonymousPages, Backing, Source};
///
/// let memory = AnonymousPages::new(1 << 20, Backing::Plain)?;
/// memory.write(0x1234, b"some words")?;
/// let mut word = [0; 4];
/// memory.read(0x1234, &mut word)?;
/// assert_eq!(&word, b"some");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct AnonymousPages {
    // Unpinned before it is unmapped.
    region: Region,
    _map: MmapRaw,
}

impl AnonymousPages {
    /// Maps `len` bytes, a multiple of the page size.
    ///
    /// # Errors
    ///
    /// [`MemoryError`] says which rule the arguments break, or why the system refuses: it does if
    /// fewer huge pages are set aside than are needed.
    pub fn new(len: usize, backing: Backing) -> Result<Self, MemoryError> {
        const ALIGNMENT: usize = 2 << 20;
        let page_size = match backing {
            Backing::Plain | Backing::Transparent => system_page_size(),
            Backing::Hugetlb(page_size) => page_size,
        };
        check_len(len as u64, page_size)?;
        let mut options = MmapOptions::new();
        let mut mapped_len = len;
        match backing {
            Backing::Plain => {}
            Backing::Transparent => {
                // Huge pages are aligned, and so should the memory be.
                let too_wide = MemoryError::TooWide {
                    start: 0,
                    len: len as u64,
                };
                mapped_len = len.checked_add(ALIGNMENT).ok_or(too_wide)?;
            }
            Backing::Hugetlb(page_size) => {
                if page_size < system_page_size() {
                    // The system would take the smallest for its default.
                    let errno = libc::EINVAL;
                    return Err(MemoryError::System { errno });
                }
                options.huge(Some(page_size.lg2()));
            }
        }
        let map = MmapRaw::from(options.len(mapped_len).map_anon()?);
        let address = map.as_mut_ptr().addr();
        let mut skipped = 0;
        if backing == Backing::Transparent {
            skipped = address.next_multiple_of(ALIGNMENT) - address;
            // A wish: nothing depends on it.
            let _ = map.advise_range(Advice::HugePage, skipped, len);
        }
        let start = NonNull::new(map.as_mut_ptr().wrapping_add(skipped));
        let start = start.ok_or(MemoryError::Empty)?;
        let (access, reach) = (Access::ReadWrite, Reach::Direct);
        // SAFETY: P3: the mapping lives as long as the value, and nobody else can unmap it soundly.
        // P2: nobody has a reference to it; users of `start` promise the rest.
        let region = unsafe { Region::new(start, len, page_size, access, reach) }?;
        Ok(Self { region, _map: map })
    }
}

mapped_source!(AnonymousPages, |source| Origin::HostVa(source.start()));
