//! The address space of an arena: every raw system call of [`mem`](crate::mem).
//!
//! # Invariants
//!
//! - **S1**: `len` bytes from `start` on are mapped, readable, writable and nobody else's in this
//!   program for as long as the value lives, at the same address; `start` is a multiple of
//!   [`HUGE_LEN`], and `skipped` bytes of `map` lie in front.
//! - **S2**: every byte that nobody has written is 0.

#![expect(
    unsafe_code,
    reason = "maps memory and tells the system how to back it"
)]

use core::ops::Range;
use core::ptr::NonNull;
use std::io;
#[cfg(target_os = "linux")]
use std::os::fd::OwnedFd;

use memmap2::{MmapOptions, MmapRaw};

/// Bytes of a huge page. A mapping starts at a multiple, whatever the system offers.
pub(super) const HUGE_LEN: usize = 2 << 20;

/// Memory that is reserved at once and backed where it is touched.
#[derive(Debug)]
pub(super) struct Mapping {
    map: MmapRaw,
    skipped: usize,
    len: usize,
    #[cfg(target_os = "linux")]
    file: Option<OwnedFd>,
}

impl Mapping {
    /// Maps `len` bytes that only this program sees.
    pub(super) fn anonymous(len: usize) -> io::Result<Self> {
        // One huge page more, to align the start inside.
        let mapped_len = len.checked_add(HUGE_LEN);
        let mapped_len = mapped_len.ok_or(io::ErrorKind::InvalidInput)?;
        let mut options = MmapOptions::new();
        options.len(mapped_len);
        if !cfg!(miri) {
            // Address space only; Miri knows no such flag.
            options.no_reserve_swap();
        }
        let map = MmapRaw::from(options.map_anon()?);
        let start = map.as_mut_ptr().addr();
        Ok(Self {
            map,
            skipped: start.next_multiple_of(HUGE_LEN) - start,
            len,
            #[cfg(target_os = "linux")]
            file: None,
        })
    }

    /// Returns the first byte.
    pub(super) fn start(&self) -> NonNull<u8> {
        let start = self.map.as_mut_ptr().wrapping_add(self.skipped);
        NonNull::new(start).expect("S1: a mapping does not wrap around to address 0")
    }
}

#[cfg(target_os = "linux")]
mod linux {
    use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

    use memmap2::{Advice, UncheckedAdvice};
    use rustix::fs::{
        MemfdFlags, SealFlags, SeekFrom, fcntl_add_seals, fcntl_get_seals, fstat, ftruncate,
        memfd_create, seek,
    };
    use rustix::io::Errno;
    use rustix::mm::{MapFlags, ProtFlags, mmap};

    use super::{Mapping, Range, io};

    /// Words of a set of memory nodes: more than any kernel is built for.
    const NODE_WORDS: usize = 16;

    /// The system reads one bit less than it is told.
    const NODE_COUNT: usize = NODE_WORDS * u64::BITS as usize - 1;

    impl Mapping {
        /// Maps `len` bytes of a file in memory that other programs may map, too. Its size is
        /// sealed: nobody can take memory away that this program uses.
        pub(in crate::mem) fn shared(len: usize) -> io::Result<Self> {
            let file = memfd_create(
                "iopt-tables",
                MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING,
            )?;
            ftruncate(&file, len as u64)?;
            fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
            Self::of_file(file, len)
        }

        /// Maps a file that [`shared`](Self::shared) made, here or in another program; S2 does not
        /// hold for it.
        pub(in crate::mem) fn adopted(file: OwnedFd, len: usize) -> io::Result<Self> {
            let refuse = |why| Err(io::Error::new(io::ErrorKind::InvalidInput, why));
            // Files of other kinds know no seals.
            let is_sealed = fcntl_get_seals(&file)
                .is_ok_and(|seals| seals.contains(SealFlags::SHRINK | SealFlags::GROW));
            if !is_sealed {
                return refuse("only a memory file whose size is sealed holds an arena");
            }
            if u64::try_from(fstat(&file)?.st_size) != Ok(len as u64) {
                return refuse("the file has another length than the arena");
            }
            Self::of_file(file, len)
        }

        /// Maps `len` bytes of a file of this size.
        fn of_file(file: OwnedFd, len: usize) -> io::Result<Self> {
            let mut mapping = Self::anonymous(len)?;
            let start = mapping.start().as_ptr().cast();
            let prot = ProtFlags::READ | ProtFlags::WRITE;
            let flags = MapFlags::SHARED | MapFlags::FIXED | MapFlags::NORESERVE;
            // SAFETY: by S1 the range is a mapping of our own, which nobody knows yet, so that it
            // may be replaced; `map` will unmap the replacement along with the rest.
            let mapped = unsafe { mmap(start, len, prot, flags, &file, 0) };
            mapped?;
            mapping.file = Some(file);
            Ok(mapping)
        }

        /// Returns the file behind the memory, if there is one; its first byte is that of `start`.
        pub(in crate::mem) fn file(&self) -> Option<BorrowedFd<'_>> {
            self.file.as_ref().map(|file| file.as_fd())
        }

        /// Returns whether the file may hold anything but zeroes at `offsets`: false where the
        /// system has never backed it.
        pub(in crate::mem) fn holds_data(&self, offsets: Range<usize>) -> bool {
            let Some(file) = &self.file else { return true };
            match seek(file, SeekFrom::Data(offsets.start as u64)) {
                Ok(found) => found < offsets.end as u64,
                // There is none up to the end of the file. Other errors say nothing.
                Err(error) => error != Errno::NXIO,
            }
        }

        /// Asks for huge pages. A wish: systems without them ignore it.
        pub(in crate::mem) fn wish_huge_pages(&self) {
            if !cfg!(miri) {
                let wished = self
                    .map
                    .advise_range(Advice::HugePage, self.skipped, self.len);
                // Nothing depends on it.
                drop(wished);
            }
        }

        /// Asks for memory of NUMA node `node`, before any is touched, and returns whether the
        /// system agreed.
        pub(in crate::mem) fn bind(&self, node: u32) -> bool {
            let node = node as usize;
            if cfg!(miri) || node >= NODE_COUNT {
                return false;
            }
            let mut nodes = [0_u64; NODE_WORDS];
            nodes[node / 64] |= 1 << (node % 64);
            // All arguments as wide as the system reads them.
            let policy = libc::c_ulong::from(libc::MPOL_PREFERRED.unsigned_abs());
            let bit_count = (NODE_COUNT + 1) as libc::c_ulong;
            let no_flags: libc::c_ulong = 0;
            // SAFETY: by S1 the range is ours; the call changes where its memory comes from, not
            // what it holds, and reads `NODE_COUNT` bits at `nodes`, which has more.
            let result = unsafe {
                libc::syscall(
                    libc::SYS_mbind,
                    self.start().as_ptr(),
                    self.len,
                    policy,
                    nodes.as_ptr(),
                    bit_count,
                    no_flags,
                )
            };
            result == 0
        }

        /// Backs `offsets` with memory without changing what it holds; false if the system cannot
        /// do so by itself.
        pub(in crate::mem) fn populate(&self, offsets: Range<usize>) -> io::Result<bool> {
            if cfg!(miri) {
                return Ok(false);
            }
            let first = self.skipped + offsets.start;
            let advised = self
                .map
                .advise_range(Advice::PopulateWrite, first, offsets.len());
            match advised {
                Ok(()) => Ok(true),
                // Systems older than this advice.
                Err(error) if error.kind() == io::ErrorKind::InvalidInput => Ok(false),
                Err(error) => Err(error),
            }
        }

        /// Gives the memory behind `offsets` back; it is zero afterwards. Returns false, and nothing
        /// has changed, if the system refuses.
        ///
        /// # Safety
        ///
        /// Nobody uses the range meanwhile, and nothing but zeroes is expected in it.
        pub(in crate::mem) unsafe fn give_back(&self, offsets: Range<usize>) -> bool {
            if cfg!(miri) {
                return false;
            }
            // What only this program sees is dropped; of a file a hole is made.
            let advice = if self.file.is_some() {
                UncheckedAdvice::Remove
            } else {
                UncheckedAdvice::DontNeed
            };
            let first = self.skipped + offsets.start;
            // SAFETY: by S1 the range is ours and stays mapped; by the caller's contract nobody
            // minds that it is zero afterwards.
            let result = unsafe {
                self.map
                    .unchecked_advise_range(advice, first, offsets.len())
            };
            result.is_ok()
        }
    }
}

#[cfg(not(target_os = "linux"))]
impl Mapping {
    pub(super) fn shared(_len: usize) -> io::Result<Self> {
        Err(io::ErrorKind::Unsupported.into())
    }

    pub(super) fn wish_huge_pages(&self) {}

    pub(super) fn bind(&self, _node: u32) -> bool {
        false
    }

    pub(super) fn populate(&self, _offsets: Range<usize>) -> io::Result<bool> {
        Ok(false)
    }

    /// # Safety
    ///
    /// None needed: it does nothing.
    pub(super) unsafe fn give_back(&self, _offsets: Range<usize>) -> bool {
        false
    }
}
