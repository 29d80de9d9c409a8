//! What an IO address space keeps equal: tables that hardware walks, and sinks that keep translations
//! elsewhere.
//!
//! [`Domain`] is the seam. [`TableDomain`] is a [`Table`](crate::radix::Table) with the hardware that
//! walks it, [`VirtioDomain`](virtio::VirtioDomain) asks a virtio-iommu device to translate; a container
//! of `vfio`, an `iommufd`, a `vhost` device or a guest's memory map fits the same way: runs go in with
//! all that such a sink may want to know about them, whole areas come out.
//!
//! # Who may call
//!
//! The methods that change translations take a [`Grant`], which only an [`Ioas`](crate::ioas::Ioas)
//! makes: the right to change one range, for the time of the call.
//!
//! # Invariants
//!
//! - **G1** (one tenant): a domain serves one address space at a time, from the [`Tenant`] it accepts to
//!   the [`Farewell`] of the same; only address spaces make either.
//! - **G2** (no two grants): no two grants of one tenant that live at the same time share an address. Areas
//!   do not overlap, and of each there is at most one grant: its state or its lock says whose
//!   ([`ioas`](crate::ioas), I2). A domain that leaves gets grants under a lock of its own. A tenant is one
//!   attachment of one domain, so that a domain that hands grants on to another one changes nothing.
//! - **G3** (leaving): when a tenant says farewell, none of its grants lives, nor will, and what was
//!   removed with them is flushed.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::error::Error;
use core::fmt;
use core::marker::PhantomData;

use iopt_formats::{IovaRange, Oa, PageSize, PageSizes, Prot};

use crate::invalidation::{Gather, SyncError};
use crate::pin::Source;
use crate::sync::unmodelled::{AtomicU64, Ordering};

mod table;
pub mod virtio;

pub use crate::domain::table::TableDomain;

/// What a domain can do.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Caps {
    /// Page sizes; every area begins and ends at a multiple of the smallest.
    pub sizes: PageSizes,
    /// The IOVA that it translates.
    pub aperture: IovaRange,
    /// Whether hardware that does not fault walks it, so that pages must not move: only sources whose
    /// [`Firmness`](crate::pin::Firmness) suits hardware are mapped.
    pub needs_pinned: bool,
    /// Whether it records which pages were written to.
    pub tracks_dirty: bool,
}

/// One run to map.
#[derive(Clone, Copy, Debug)]
pub struct MapOp<'a> {
    /// The IOVA.
    pub range: IovaRange,
    /// The first output address.
    pub oa: Oa,
    /// What to grant.
    pub prot: Prot,
    /// Where the pages come from: says whether they are memory, and by what else a sink may name them.
    pub source: &'a dyn Source,
    /// Bytes from the start of the source.
    pub offset: u64,
}

/// Something that translates IOVA, kept equal to an address space.
///
/// Calls may come from several threads at once, for ranges that do not overlap.
pub trait Domain: Send + Sync + fmt::Debug {
    /// Returns what it can do; always the same.
    fn caps(&self) -> Caps;

    /// Accepts an address space as the one that changes it from now on.
    ///
    /// # Errors
    ///
    /// [`Taken`] if it serves another one, or somebody else changes its translations.
    fn bind(&self, tenant: Tenant) -> Result<(), Taken>;

    /// Ends what [`bind`](Self::bind) began; nothing is mapped any more.
    fn unbind(&self, farewell: Farewell);

    /// Maps `ops`, in order, all of them inside the grant.
    ///
    /// # Errors
    ///
    /// [`MapFailure`] says which one failed: those before it stay mapped, those behind are not.
    fn map_batch(&self, grant: &mut Grant<'_>, ops: &[MapOp<'_>]) -> Result<(), MapFailure>;

    /// Removes whatever the grant's range holds, which may be nothing, and returns how many bytes that
    /// was; holes are no error. Adds what the hardware has to be told to `flush`, and calls `dirty`,
    /// if there is one, with what devices wrote to, in rising order.
    ///
    /// # Errors
    ///
    /// [`DomainError`] if translations may be left.
    fn unmap(
        &self,
        grant: &mut Grant<'_>,
        flush: &mut Flush,
        dirty: Option<&mut dyn FnMut(IovaRange)>,
    ) -> Result<u64, DomainError>;

    /// Tells the hardware and waits: afterwards no device reaches what was removed.
    ///
    /// # Errors
    ///
    /// [`NotFlushed`] if the hardware fails or does not answer.
    fn sync(&self, flush: Flush) -> Result<(), NotFlushed>;

    /// Changes the rights of the grant's range, all of which is mapped. Calls `lost` with what devices
    /// wrote to and the new entries cannot say so.
    ///
    /// # Errors
    ///
    /// [`DomainError`], with nothing changed.
    fn protect(
        &self,
        grant: &mut Grant<'_>,
        prot: Prot,
        flush: &mut Flush,
        lost: &mut dyn FnMut(IovaRange),
    ) -> Result<(), DomainError>;

    /// Begins or ends to record what devices write to.
    ///
    /// # Errors
    ///
    /// [`DomainError::Unsupported`] if it cannot.
    fn set_tracking(&self, is_on: bool) -> Result<(), DomainError> {
        let _ = is_on;
        Err(DomainError::Unsupported { what: TRACKING })
    }

    /// Reports what devices wrote to in `range`, inside the grant, since it was last forgotten, in rising
    /// order, whole pages cut to the range; and forgets it if there is a flush to add to. Pages that
    /// reach out of the range may be forgotten whole.
    ///
    /// # Errors
    ///
    /// [`DomainError::Unsupported`] if it does not track that.
    fn dirty(
        &self,
        grant: &mut Grant<'_>,
        range: IovaRange,
        forget: Option<&mut Flush>,
        each: &mut dyn FnMut(IovaRange),
    ) -> Result<(), DomainError> {
        let _ = (grant, range, forget, each);
        Err(DomainError::Unsupported { what: TRACKING })
    }

    /// Returns whether the grant's range translates exactly as `ops` say, which come in rising order: what
    /// they do not name translates nothing.
    ///
    /// # Errors
    ///
    /// [`DomainError::Unsupported`] if it does not know.
    fn holds(&self, grant: &mut Grant<'_>, ops: &[MapOp<'_>]) -> Result<bool, DomainError> {
        let _ = (grant, ops);
        Err(DomainError::Unsupported {
            what: "telling what it translates",
        })
    }

    /// Cuts the pages that translate `range`, inside the grant, into pages of at most `size`, so that
    /// dirty state is exact and parts can be unmapped; devices notice nothing. Tells the hardware
    /// itself.
    ///
    /// # Errors
    ///
    /// [`DomainError`]; pages may be smaller than before then.
    fn cut(
        &self,
        grant: &mut Grant<'_>,
        range: IovaRange,
        size: PageSize,
    ) -> Result<(), DomainError> {
        let _ = (grant, range, size);
        Err(DomainError::Unsupported {
            what: "cutting large pages",
        })
    }

    /// Merges what `range`, inside the grant, holds into the largest pages that fit; devices notice
    /// nothing. Tells the hardware itself.
    ///
    /// # Errors
    ///
    /// [`DomainError`]; pages may be larger than before then.
    fn merge(&self, grant: &mut Grant<'_>, range: IovaRange) -> Result<(), DomainError> {
        let _ = (grant, range);
        Err(DomainError::Unsupported {
            what: "merging small pages",
        })
    }
}

const TRACKING: &str = "tracking of what devices write to";

/// Tells attachments of one program apart: an address space is another tenant each time that it attaches
/// a domain.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct TenantId(pub(crate) u64);

impl TenantId {
    /// Returns one that nobody had before.
    pub(crate) fn fresh() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        Self(NEXT.fetch_add(1, Ordering::Relaxed))
    }
}

/// An address space that wants to change a domain, from now until its [`Farewell`].
#[derive(Debug)]
pub struct Tenant(pub(crate) TenantId);

impl Tenant {
    /// Returns who it is.
    pub const fn id(&self) -> TenantId {
        self.0
    }
}

/// Says that a tenant left (G3).
#[derive(Debug)]
pub struct Farewell(pub(crate) TenantId);

impl Farewell {
    /// Returns who left.
    pub const fn id(&self) -> TenantId {
        self.0
    }
}

/// The right to change one range of one tenant's domains, while it lives (G2).
#[derive(Debug)]
pub struct Grant<'a> {
    tenant: TenantId,
    range: IovaRange,
    _lent: PhantomData<&'a mut ()>,
}

impl Grant<'_> {
    /// Grants `range`.
    ///
    /// Whoever calls this answers for G2, on which memory safety rests.
    pub(crate) const fn new(tenant: TenantId, range: IovaRange) -> Self {
        Self {
            tenant,
            range,
            _lent: PhantomData,
        }
    }

    /// Returns the range.
    pub const fn range(&self) -> IovaRange {
        self.range
    }

    /// Returns whose right it is.
    pub const fn tenant(&self) -> TenantId {
        self.tenant
    }
}

/// What one domain's hardware has to be told, gathered over a whole operation.
#[derive(Debug, Default)]
#[must_use = "devices may still use what was removed until it is synced"]
pub struct Flush {
    gather: Option<Gather>,
    /// Kept apart, as it is moved a lot and mostly has none.
    rest: Option<Box<Rest>>,
}

/// What one gather cannot hold.
#[derive(Debug, Default)]
struct Rest {
    /// Gathers that cannot join the first: each unlinked tables.
    gathers: Vec<Gather>,
    /// What a domain that keeps no gather put down.
    tickets: Vec<u64>,
}

impl Flush {
    /// Creates one that asks for nothing.
    pub const fn new() -> Self {
        Self {
            gather: None,
            rest: None,
        }
    }

    /// Returns whether there is nothing to tell.
    pub fn is_empty(&self) -> bool {
        self.tickets().is_empty() && self.gather.as_ref().is_none_or(Gather::is_empty)
    }

    /// Puts down that something went which no gather holds, for a domain that keeps none: the sync is
    /// not left out then, and gets the ticket. What it means is the domain's business; equal ones in a
    /// row are kept once, so that one number does for a domain that tells its hardware everything.
    pub fn mark(&mut self, ticket: u64) {
        if self.tickets().last() != Some(&ticket) {
            self.rest.get_or_insert_default().tickets.push(ticket);
        }
    }

    /// Returns the tickets of all [marks](Self::mark), by whatever operation, that this sync is to
    /// confirm.
    pub fn tickets(&self) -> &[u64] {
        self.rest.as_ref().map_or(&[], |rest| &rest.tickets)
    }

    /// Puts the tickets into rising order.
    fn sort_tickets(&mut self) {
        if let Some(rest) = &mut self.rest {
            rest.tickets.sort_unstable();
        }
    }

    /// Adds what a table's operation gathered.
    fn add(&mut self, gather: Gather) {
        let refused = match &mut self.gather {
            None => {
                self.gather = Some(gather);
                return;
            }
            Some(first) => first.join(gather),
        };
        if let Err(refused) = refused {
            self.rest
                .get_or_insert_default()
                .gathers
                .push(refused.gather);
        }
    }

    /// Adds what another one of the same domain holds.
    pub(crate) fn append(&mut self, mut other: Self) {
        for &ticket in other.tickets() {
            self.mark(ticket);
        }
        while let Some(gather) = other.pop() {
            self.add(gather);
        }
    }

    /// Returns a gather that it holds, until there is none.
    fn pop(&mut self) -> Option<Gather> {
        let of_rest = self.rest.as_mut().and_then(|rest| rest.gathers.pop());
        of_rest.or_else(|| self.gather.take())
    }
}

/// A domain that serves somebody else.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("the domain's translations are changed by somebody else")]
pub struct Taken;

/// A batch that was mapped in part.
#[derive(Debug, thiserror::Error)]
#[error("run {index} of a batch cannot be mapped: {error}")]
pub struct MapFailure {
    /// Number of the run that failed; those before it are mapped, those behind are not. It may be itself,
    /// if the hardware did not confirm that it saw it: the grant's range is to be unmapped then.
    pub index: usize,
    /// Why.
    #[source]
    pub error: DomainError,
}

/// Why a domain cannot do something.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DomainError {
    /// No memory for tables, or no room for more mappings.
    #[error("the domain has no memory or room left")]
    OutOfMemory,
    /// It cannot do that at all.
    #[error("the domain does not support {what}")]
    Unsupported {
        /// What.
        what: &'static str,
    },
    /// The domain serves another tenant than the one that asks.
    #[error("the domain does not serve this address space")]
    Stranger,
    /// The hardware did not confirm that it forgot what was removed.
    #[error(transparent)]
    Sync(#[from] SyncError),
    /// Anything else.
    #[error(transparent)]
    Other(Box<dyn Error + Send + Sync>),
}

/// A flush that the hardware did not carry out: nothing of it may be used again until the device is
/// blocked or reset.
#[derive(Debug, thiserror::Error)]
#[error("the hardware may still use what was removed: {error}")]
pub struct NotFlushed {
    /// What is left to tell.
    pub flush: Flush,
    /// Why.
    #[source]
    pub error: SyncError,
}
