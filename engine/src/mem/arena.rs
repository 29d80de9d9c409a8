//! Table pages out of one mapping.

#![expect(unsafe_code, reason = "hands out pages of the mapping")]

#[cfg(target_os = "linux")]
mod adopt;

use core::fmt;
use std::io;
#[cfg(target_os = "linux")]
use std::os::fd::BorrowedFd;

use iopt_formats::{Oa, PageSize};

#[cfg(target_os = "linux")]
use crate::mem::chunk::PAGE_COUNT;
#[cfg(target_os = "linux")]
use crate::mem::heirs::Heirs;
use crate::mem::pool::{Content, Pool};
use crate::mem::system::{HUGE_LEN, Mapping};
use crate::mem::{LARGEST, OutOfMemory, SMALLEST, TableMemory, Usage, debug_usage};

/// Whether an arena asks the system for huge pages.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[non_exhaustive]
pub enum HugePages {
    /// Where the system offers them: the first touch of 2 MiB then backs all of it. Tables reached
    /// through few TLB entries are read and written faster.
    #[default]
    WhereOffered,
    /// None asked for, so that an arena with one table costs one page. A system that gives huge
    /// pages to everybody gives them here, too.
    NotAsked,
}

/// What an arena's memory is.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[non_exhaustive]
pub enum Backing {
    /// Memory that only this program sees.
    #[default]
    Private,
    /// A file in memory (`memfd`, Linux only) that other programs can map: see
    /// [`Arena::shared_fd`].
    Shared,
}

/// How an [`Arena`] is to be made.
///
/// ```
/// use iopt::mem::{Arena, ArenaConfig};
///
/// let config = ArenaConfig::new(1 << 30).with_prefault(2 << 20).with_node(0);
/// let arena = Arena::with_config(config)?;
/// assert_eq!(arena.usage().len, 1 << 30);
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Clone, Copy, Debug)]
pub struct ArenaConfig {
    max_len: usize,
    base: Oa,
    huge_pages: HugePages,
    backing: Backing,
    prefault_len: u64,
    node: Option<u32>,
}

impl ArenaConfig {
    /// Asks for address space for `max_len` bytes of table pages; a remainder below 4 KiB is not
    /// used. Output addresses start at 1 MiB, so that no table has the address 0; the memory is
    /// private, in huge pages where the system offers them, and backed when touched.
    pub const fn new(max_len: usize) -> Self {
        Self {
            max_len,
            base: Oa::new(LARGEST.bytes()),
            huge_pages: HugePages::WhereOffered,
            backing: Backing::Private,
            prefault_len: 0,
            node: None,
        }
    }

    /// Lets output addresses start at `base`, a multiple of 1 MiB.
    #[must_use]
    pub const fn with_base(mut self, base: Oa) -> Self {
        self.base = base;
        self
    }

    /// Chooses whether to ask for huge pages.
    #[must_use]
    pub const fn with_huge_pages(mut self, huge_pages: HugePages) -> Self {
        self.huge_pages = huge_pages;
        self
    }

    /// Chooses who can see the memory.
    #[must_use]
    pub const fn with_backing(mut self, backing: Backing) -> Self {
        self.backing = backing;
        self
    }

    /// Backs the first `len` bytes with memory from the start, as [`Arena::prefault`] does.
    #[must_use]
    pub const fn with_prefault(mut self, len: u64) -> Self {
        self.prefault_len = len;
        self
    }

    /// Prefers memory of NUMA node `node`, the one that the IOMMU is attached to. A hint:
    /// [`Arena::is_bound`] says whether the system took it.
    #[must_use]
    pub const fn with_node(mut self, node: u32) -> Self {
        self.node = Some(node);
        self
    }

    /// Returns the bytes of whole pages, if there can be such an arena.
    fn checked_len(&self) -> io::Result<u64> {
        let refuse = |why| Err(io::Error::new(io::ErrorKind::InvalidInput, why));
        let len = self.max_len as u64 & !SMALLEST.offset_mask();
        if len == 0 {
            return refuse("an arena needs at least one page of 4 KiB");
        }
        if !LARGEST.divides(self.base.get()) {
            return refuse("the base of an arena must be a multiple of 1 MiB");
        }
        if self
            .base
            .checked_add(len)
            .is_none_or(|end| end.get() > 1 << 52)
        {
            return refuse("the output addresses of an arena must fit 52 bits");
        }
        Ok(len)
    }
}

/// One mapping that table pages are cut from; memory is used only once touched.
///
/// Its output addresses are the offsets in the mapping plus a base, so that translating one to a
/// pointer is an addition. Free pages hold zeroes and are handed out as they are, lowest addresses
/// first; each thread draws from 2 MiB of its own as long as there are enough.
pub struct Arena {
    pages: Pool,
    /// Keeps the memory behind `pages` mapped.
    mapping: Mapping,
    is_bound: bool,
    /// Who has which page, if the arena was handed over.
    #[cfg(target_os = "linux")]
    heirs: Option<Heirs>,
}

impl Arena {
    /// Reserves address space for `max_len` bytes of table pages, with output addresses from 1 MiB
    /// on, so that no table has the address 0.
    ///
    /// # Errors
    ///
    /// Fails if the system refuses the mapping, or if `max_len` is below 4 KiB or does not fit 52
    /// bits.
    pub fn new(max_len: usize) -> io::Result<Self> {
        Self::with_config(ArenaConfig::new(max_len))
    }

    /// As [`new`](Self::new), with output addresses from `base` on, a multiple of 1 MiB.
    ///
    /// # Errors
    ///
    /// As for [`new`](Self::new), and if `base` is not a multiple of 1 MiB.
    pub fn with_base(max_len: usize, base: Oa) -> io::Result<Self> {
        Self::with_config(ArenaConfig::new(max_len).with_base(base))
    }

    /// Makes an arena as `config` says.
    ///
    /// # Errors
    ///
    /// As for [`with_base`](Self::with_base); [`io::ErrorKind::Unsupported`] for a shared arena on
    /// a system without `memfd`; and whatever the system says to the memory that is to be backed
    /// from the start.
    pub fn with_config(config: ArenaConfig) -> io::Result<Self> {
        let len = config.checked_len()?;
        let mapping = match config.backing {
            Backing::Private => Mapping::anonymous(len as usize),
            Backing::Shared => Mapping::shared(len as usize),
        }?;
        // SAFETY: S2: it holds zeroes; nobody else knows the mapping.
        unsafe { Self::over(mapping, config, Content::Zeroes) }
    }

    /// Makes an arena of a mapping as long as `config` says.
    ///
    /// # Safety
    ///
    /// The mapping holds what `content` says, and nobody else uses its pages but hardware those that
    /// count as handed out.
    unsafe fn over(mapping: Mapping, config: ArenaConfig, content: Content) -> io::Result<Self> {
        let len = config.checked_len()?;
        if config.huge_pages == HugePages::WhereOffered && len >= HUGE_LEN as u64 {
            mapping.wish_huge_pages();
        }
        let is_bound = config.node.is_some_and(|node| mapping.bind(node));
        // SAFETY: S1: the mapping is `len` bytes long, aligned to more than the largest page, and
        // lives as long as the pool beside it; the base was checked. The caller vouches for the
        // content.
        let pages = unsafe { Pool::new(mapping.start(), len, config.base, content) };
        let arena = Self {
            pages: pages.ok_or(io::ErrorKind::OutOfMemory)?,
            mapping,
            is_bound,
            #[cfg(target_os = "linux")]
            heirs: None,
        };
        arena.prefault(config.prefault_len)?;
        Ok(arena)
    }

    /// Returns how much is handed out. Looks at each page: threads that take or give pages
    /// meanwhile are seen or not.
    pub fn usage(&self) -> Usage {
        self.pages.usage()
    }

    /// Backs the free pages among the first `len` bytes with memory, in steps of 2 MiB, so that
    /// using them costs no page fault later. More than there is means all.
    ///
    /// Threads that take pages meanwhile go on, with pages from behind the part at work.
    ///
    /// # Errors
    ///
    /// What the system says if there is not enough memory; a part may be backed then.
    pub fn prefault(&self, len: u64) -> io::Result<()> {
        self.pages
            .prefault(len, |offsets| self.mapping.populate(offsets))
    }

    /// Gives the memory of free pages back to the system where 2 MiB in a row are free, and returns
    /// how many bytes. The pages stay free, hold zeroes as before, and cost a page fault again.
    ///
    /// Not for an arena whose memory is pinned for devices that read the tables (pinned by VFIO or
    /// iommufd): they would go on with the memory that was given back, and never see the tables
    /// that are written to what takes its place.
    pub fn trim(&self) -> u64 {
        self.pages.trim(|offsets| {
            // SAFETY: the pool promises that nobody uses the range meanwhile and wants it to be
            // zero afterwards.
            unsafe { self.mapping.give_back(offsets) }
        })
    }

    /// Returns whether the system took the hint of [`ArenaConfig::with_node`].
    pub const fn is_bound(&self) -> bool {
        self.is_bound
    }

    /// Returns the file behind a [`Backing::Shared`] arena. The byte at offset `n` is that of output
    /// address base plus `n`; its size is fixed.
    ///
    /// Another program that maps it sees the tables as a walker does, while they change. It may
    /// write to them as hardware does: dirty and accessed bits.
    #[cfg(target_os = "linux")]
    pub fn shared_fd(&self) -> Option<BorrowedFd<'_>> {
        self.mapping.file()
    }
}

// SAFETY: M1: the pool hands out zeroed pages aligned to their size relative to a base that is
// aligned to the largest size in both spaces. M2: `ptr` is an addition to a fixed base of a mapping
// that lives as long as `self`. M3: `with_config` checks the width.
unsafe impl TableMemory for Arena {
    #[inline]
    fn alloc(&self, size: PageSize) -> Result<Oa, OutOfMemory> {
        self.pages.alloc(size)
    }

    #[inline]
    unsafe fn free(&self, oa: Oa, size: PageSize) {
        // SAFETY: the caller's contract is the same.
        unsafe { self.pages.free(oa, size) };
    }

    #[inline]
    unsafe fn free_zeroed(&self, oa: Oa, size: PageSize) {
        // SAFETY: the caller's contract is the same.
        unsafe { self.pages.free_zeroed(oa, size) };
    }

    #[inline]
    fn ptr(&self, oa: Oa) -> *mut u8 {
        self.pages.ptr(oa)
    }
}

impl fmt::Debug for Arena {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        debug_usage(f, "Arena", self.pages.first(), self.usage())
    }
}
