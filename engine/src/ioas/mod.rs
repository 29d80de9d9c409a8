//! One IO address space, kept equal over many domains.
//!
//! An [`Ioas`] maps slices of [`Pages`] at IOVA, as *areas*, to every domain that is attached. A domain that is
//! attached later gets all of them; without a domain nothing is pinned. *Accesses* are software that
//! uses the space: an emulated device pins ranges, or reads and writes.
//!
//! ```text
//! Ioas -- domains (domain lock) -- reservations, alignment, [Domain]
//!      -- index (64 shards)     -- areas -- Pages -- Source
//!      -- accesses                            `-- runs of output addresses, with how many hold them
//! ```
//!
//! # Ways through
//!
//! - *map*: an area is reserved in the index, its pages are held, each domain maps their runs, the area is
//!   published. Nothing of it stays if a step fails.
//! - *unmap*: the areas of the range drain, all or none: accesses are told, with no lock held, until they
//!   have let go. Then all domains remove them, each syncs *once*, and only then pages and IOVA are free
//!   again. What a domain does not confirm is quarantined.
//! - *attach*: the domain narrows the space, joins the set, so that new areas map to it, too, and gets those
//!   that are there one by one, in short read sections.
//! - *detach*: the domain leaves the set, is emptied a few areas at a time, and syncs. An unmap beside that
//!   removes its areas from it, too, instead of waiting.
//!
//! # What is like Linux's iommufd, and what is not
//!
//! Areas, pages that are pinned once, accesses that are told to let go, reserved and allowed ranges,
//! apertures, alignment and dirty bitmaps mean what they mean there. Stricter or more:
//!
//! - an unmap of several areas takes all of them or none;
//! - a failed flush keeps pages and IOVA ([`Quarantined`]) instead of a warning;
//! - holes in a dirty query are an error if asked for, and what was looked through before is valid;
//! - areas can be divided, moved and given other rights, and many mapped or unmapped with one sync.
//!
//! The owner of an address space cannot be changed to another process: memory is that of this one,
//! accounted to the [`Budget`](crate::pin::Budget) that its maker gave it.
//!
//! # Locks
//!
//! Map, unmap, pin and the filling of a new domain share the domain lock; only the change of the set owns
//! it, and never does more than that. The index is locked for the moment of an insertion or removal, no
//! page table is touched meanwhile. Sources and domains are called with locks of the engine held, and
//! must not call back; callbacks of accesses run with none. The order stands in [`sync`].
//!
//! Areas carry the invariants I1 to I3, pages N1 to N3, domains G1 to G3, what is not
//! flushed U1, at the heads of their files.

mod access;
mod area;
mod attach;
mod bitmap;
mod change;
mod dirty;
mod error;
mod image;
mod leaving;
mod leftovers;
mod map;
#[cfg(all(test, loom))]
mod models;
mod msi;
mod pages;
mod ranges;
#[cfg(all(test, not(loom)))]
mod tests;
mod unconfirmed;
mod unmap;

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;
use core::time::Duration;

use iopt_formats::{Iova, IovaRange, PageSize, Prot};

use crate::domain::{Caps, Domain, Flush, Grant, TenantId};
use crate::intervals::gaps::Gaps;
use crate::intervals::reservations::Reservations;
use crate::ioas::access::Registered;
use crate::ioas::area::Area;
use crate::ioas::leaving::Leaving;
use crate::ioas::leftovers::Batch;
use crate::ioas::msi::Msi;
use crate::ioas::unconfirmed::Unconfirmed;
use crate::stripes::Stripes;
use crate::sync::unmodelled::AtomicBool;
use crate::sync::{self, DomainLock, Mutex};

pub use crate::intervals::reservations::AllowError;
pub use crate::ioas::access::{Access, AccessHandle, AccessOps, PinnedRun};
pub use crate::ioas::bitmap::DirtyBitmap;
pub use crate::ioas::dirty::{DirtyPages, Forget};
pub use crate::ioas::error::*;
pub use crate::ioas::image::{RestoreError, SaveError};
pub use crate::ioas::pages::{HoldError, Pages};

/// Shards of the area index.
const SHARD_COUNT: usize = if cfg!(loom) { 2 } else { 64 };

/// How long others are waited for: accesses that read or write at this moment, callbacks that run.
const PATIENCE: Duration = Duration::from_secs(10);

/// Callbacks that accesses get before somebody who needs them to let go gives up.
const TRY_COUNT: u32 = 100;

/// One IO address space.
#[doc(alias = "io_pagetable")]
pub struct Ioas {
    domains: DomainLock<Domains>,
    index: Stripes<Arc<Area>, (), SHARD_COUNT>,
    /// What automatic choice of IOVA knows to be used.
    gaps: Mutex<Gaps>,
    /// Who attaches or detaches, one at a time; and the doorbells, which come and go with domains.
    attaching: Mutex<Msi>,
    accesses: Mutex<Vec<Arc<Registered>>>,
    leftovers: Mutex<Vec<Batch>>,
    /// Whether each page is mapped by itself, so that any part of an area can be unmapped. Changes while
    /// there are no areas or no domains.
    page_by_page: AtomicBool,
}

/// What the domain lock guards.
struct Domains {
    list: Vec<Attached>,
    /// Those that are out of the set, and not known to be empty and flushed.
    leaving: Vec<Leaving>,
    reservations: Reservations<Owner>,
    /// What domains demand, by their keys.
    alignments: Vec<(u64, PageSize)>,
    /// The largest of it: every area begins and ends at a multiple.
    alignment: PageSize,
    /// Of the next domain; one is left out when a domain leaves, so that keys tell the time.
    next_key: u64,
}

/// A domain of the set.
struct Attached {
    domain: Arc<dyn Domain>,
    tenant: TenantId,
    caps: Caps,
    /// Tells it from all others, and from itself at another time.
    key: u64,
    is_tracking: bool,
    /// What was forgotten of dirty pages and not confirmed: the next read tells the hardware again, as
    /// it records no write to them before.
    unsynced: Flush,
    /// What was removed and not flushed.
    unconfirmed: Arc<Unconfirmed>,
}

impl Attached {
    /// Grants `range` of the domain; the caller answers for G2.
    const fn grant(&self, range: IovaRange) -> Grant<'_> {
        Grant::new(self.tenant, range)
    }
}

/// Who reserved a range.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Owner {
    /// What a domain does not translate; by its key.
    Domain(u64),
    /// A device, or whatever the user says.
    User(u64),
    /// Where doorbells lie.
    Msi,
}

/// Where a mapping goes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Place {
    /// Exactly here, also outside of what [`Ioas::allow`] allows.
    Fixed(Iova),
    /// To the lowest free range that is allowed, with the low address bits of the source, so that large
    /// pages fit. Never to address 0.
    Anywhere,
}

/// What to map.
#[derive(Clone, Copy, Debug)]
pub struct Mapping<'a> {
    /// The memory.
    pub pages: &'a Arc<Pages>,
    /// First byte of it.
    pub offset: u64,
    /// Bytes of it.
    pub len: u64,
    /// What devices and accesses may do.
    pub prot: Prot,
    /// Where it goes.
    pub place: Place,
}

/// What an operation over a range does where nothing is mapped.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Holes {
    /// It fails.
    Refused,
    /// It goes on.
    Tolerated,
}

/// What is kept because the hardware did not confirm that it forgot it.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Quarantined {
    /// Areas that keep their IOVA and their pages.
    pub area_count: usize,
    /// Their bytes.
    pub bytes: u64,
    /// Domains that left and are not known to be empty.
    pub domain_count: usize,
}

impl Ioas {
    /// Creates an address space without domains, in which everything is allowed.
    pub fn new() -> Self {
        let domains = Domains {
            list: Vec::new(),
            leaving: Vec::new(),
            reservations: Reservations::new(),
            alignments: Vec::new(),
            alignment: PageSize::from_lg2(0),
            next_key: 1,
        };
        Self {
            domains: DomainLock::new(domains),
            index: Stripes::new(&sync::AREA_SHARD),
            gaps: Mutex::new(&sync::GAPS, Gaps::new()),
            attaching: Mutex::new(&sync::ATTACH, Msi::default()),
            accesses: Mutex::new(&sync::ACCESS_LIST, Vec::new()),
            leftovers: Mutex::new(&sync::LEFTOVERS, Vec::new()),
            page_by_page: AtomicBool::new(false),
        }
    }

    /// Returns the number of areas, in whatever state.
    pub fn area_count(&self) -> usize {
        self.index.count()
    }
}

impl Default for Ioas {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Ioas {
    fn drop(&mut self) {
        self.detach_all();
        self.release_all();
    }
}

impl fmt::Debug for Ioas {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ioas")
            .field("area_count", &self.area_count())
            .finish_non_exhaustive()
    }
}

/// Returns the bytes of areas; `u64::MAX` also for one more.
fn byte_count<'a>(areas: impl IntoIterator<Item = &'a Arc<Area>>) -> u64 {
    areas.into_iter().fold(0, |sum, area| {
        let len = area.range().len_minus_one().saturating_add(1);
        sum.saturating_add(len)
    })
}

/// Returns whether areas of this `range` on byte `offset` fit `alignment`.
fn is_aligned(range: IovaRange, offset: u64, alignment: PageSize) -> bool {
    let bits = range.start().get() | range.last().get().wrapping_add(1) | offset;
    bits & alignment.offset_mask() == 0
}
