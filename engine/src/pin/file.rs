//! Memory that is a file.

#![expect(unsafe_code, reason = "memory by address")]

use core::ptr::NonNull;
use std::os::fd::{AsFd as _, OwnedFd};

use iopt_formats::PageSize;
use memmap2::{MmapOptions, MmapRaw};
use rustix::fs::{SealFlags, fcntl_get_seals, fstat, fstatfs};

use crate::pin::region::{Mapped, MemoryError, Reach, Region, check_len, mapped_source};
use crate::pin::resident::system_page_size;
use crate::pin::{
    Access, Firmness, Kind, OaRun, Origin, PageRange, PinError, Source, check_bytes, check_write,
};

/// A part of a file, mapped and shared with everybody who maps it: of `memfd`, of a file system in
/// memory or of huge pages, or of any other that can be mapped.
///
/// It is pinned as [`UserMemory`](crate::pin::UserMemory) is, and its output addresses are addresses
/// in the program. Huge pages are the unit of pins where the file consists of them.
///
/// A file that becomes shorter loses its pages, pinned or not; pins, reads and writes fail with
/// [`PinError::Fault`] then. A file of plain pages with `F_SEAL_SHRINK` cannot, and is copied from and
/// to by the program; others are by the system, which costs some microseconds each time.
#[derive(Debug)]
pub struct FileMemory {
    // Unpinned before it is unmapped.
    region: Region,
    _map: MmapRaw,
    file: OwnedFd,
    offset: u64,
}

impl FileMemory {
    /// Maps `len` bytes of `file` from `offset` on, both multiples of the page size. The file is
    /// open for reading, and for writing if `access` says so.
    ///
    /// # Errors
    ///
    /// [`MemoryError`] says which rule the arguments break, or why the system refuses.
    pub fn new(
        file: impl Into<OwnedFd>,
        offset: u64,
        len: usize,
        access: Access,
    ) -> Result<Self, MemoryError> {
        let file = file.into();
        let page_size = page_size_of(&file)?;
        check_len(len as u64, page_size)?;
        if !page_size.divides(offset) {
            let value = offset;
            return Err(MemoryError::Unaligned { value, page_size });
        }
        let too_wide = MemoryError::TooWide {
            start: offset,
            len: len as u64,
        };
        let end = offset.checked_add(len as u64).ok_or(too_wide)?;
        // A size that is negative is none.
        let file_len = u64::try_from(fstat(&file)?.st_size).unwrap_or(0);
        if end > file_len {
            return Err(MemoryError::BeyondFile { end, file_len });
        }
        let mut options = MmapOptions::new();
        options.offset(offset).len(len);
        let map = match access {
            Access::ReadOnly => options.map_raw_read_only(&file),
            Access::ReadWrite => options.map_raw(&file),
        }?;
        let seals = fcntl_get_seals(&file).unwrap_or(SealFlags::empty());
        // Huge pages may run out even so, once somebody made a hole.
        let is_sealed = seals.contains(SealFlags::SHRINK) && page_size == system_page_size();
        let reach = if is_sealed {
            Reach::Direct
        } else {
            Reach::Checked
        };
        let start = NonNull::new(map.as_mut_ptr()).ok_or(MemoryError::Empty)?;
        // SAFETY: P3: the mapping lives as long as the value; the file is longer than its end, and
        // the seal, where copies are direct, keeps it so. P2: nobody has a reference to the mapping;
        // users of `start` promise the rest.
        let region = unsafe { Region::new(start, len, page_size, access, reach) }?;
        Ok(Self {
            region,
            _map: map,
            file,
            offset,
        })
    }
}

/// Returns the size of the pages that a file consists of.
fn page_size_of(file: &OwnedFd) -> Result<PageSize, MemoryError> {
    let system = fstatfs(file)?;
    let block_len = u64::try_from(system.f_bsize).unwrap_or(0);
    let is_huge = system.f_type == libc::HUGETLBFS_MAGIC;
    Ok(if is_huge && block_len.is_power_of_two() {
        PageSize::from_lg2(block_len.trailing_zeros() as u8)
    } else {
        system_page_size()
    })
}

mapped_source!(FileMemory, |source| Origin::File {
    fd: source.file.as_fd(),
    offset: source.offset,
});
