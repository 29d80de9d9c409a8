//! Who may change which IOVA.
//!
//! A [`Claim`] proves that its holder alone may change the translations of an IOVA range. Tables
//! that share a [`Registry`] are changed under the same claims, as one address space over many
//! domains needs; a [`Table`](crate::radix::Table) made without one has its own.
//!
//! Taking a claim, dividing it and giving it back lock a part of the registry; using it costs
//! nothing. A driver thread claims its chunk of the space once, divides it among its queues as it
//! likes, and never meets another thread again.
//!
//! # State
//!
//! ```text
//! registry   shard 0     shard 1     ..     shard 15     each a lock over {last -> start}
//!               |           |                  |
//!            stripes of 2 MiB, spread over the shards by a hash of their number
//! ```
//!
//! A claim stands in every shard that one of its stripes belongs to; a claim over many stripes
//! stands in all shards. A claim *lives* from the call that returns it until it is dropped, or
//! goes into the call that divides or joins it; one that is forgotten lives for ever.
//!
//! # Invariants
//!
//! - **C1** No two living claims of a registry share an address.
//! - **C2** A living claim is an entry, with exactly its range, of every shard of its stripes.
//! - **C3** Who adds entries holds the locks of all shards of all ranges in question together,
//!   from the search for overlaps to the last entry. Locks are taken in rising order, so no two
//!   threads wait for each other.
//! - **C4** The shards of a part are among the shards of the whole.
//! - **C5** Every claim comes out of [`Registry::claim`], [`Claim::split_at`] or [`Claim::join`]:
//!   claims are not `Clone`, and nothing outside this module can write their fields.
//!
//! No sequence of safe calls breaks C1, whatever the order, the threads and the addresses:
//!
//! - *claim* adds an entry after it has found none that overlaps. Two claims that share an address
//!   share its stripe, hence a shard, where the second finds the entry of the first (C2), and
//!   nothing comes between finding and adding (C3).
//! - *split* replaces an entry by two that do not overlap and together are as large, under the
//!   locks of the whole (C4): what was claimed never looks free.
//! - *join* replaces two entries by their union, under the locks of the union (C4). The two are
//!   neighbours, so the union has no address that was not claimed by one of them. Above the last
//!   address of the 64-bit space there is none: the claim that ends there has no upper neighbour.
//! - *drop* removes the entry, found by its last address, which no other has (C1), from one shard
//!   after the other. Meanwhile it refuses what overlaps it wherever it still stands, and what is
//!   granted has found it gone from every shard of its own.
//! - *forget* leaves the entry: the range stays claimed for ever.
//! - *a refusal* changes no entry and gives every claim back.
//! - *a panic* beside claims drops or leaks them, see above. No foreign code runs under the locks;
//!   only want of memory can stop an operation half-way, and the claims that went into it are then
//!   dropped: entries may be left over, which refuse; none is missing that a living claim needs.
//! - *the last handle of a registry* may go before its claims do: they keep the shards.
//!
//! # Memory order
//!
//! What the holder of a claim did happens before what the next holder of one of its addresses
//! does: the first unlocks the shard of that address when it drops the claim, the second locks it
//! afterwards. A claim that moves to another thread, split or joined, needs no more than what moves
//! any value there.

#[cfg(all(test, loom))]
mod models;
mod shards;
#[cfg(all(test, not(loom)))]
mod tests;

use alloc::sync::Arc;
use core::fmt;

use iopt_formats::{Iova, IovaRange};

use crate::claim::shards::{Keeper, Shards};

/// A handle to one set of claims. Clones are handles to the same set.
#[derive(Clone)]
pub struct Registry {
    root: Arc<Root>,
}

/// What all handles share, apart from the claims.
struct Root {
    shards: Arc<Shards>,
}

impl Drop for Root {
    fn drop(&mut self) {
        self.shards.close();
    }
}

impl Default for Registry {
    fn default() -> Self {
        Self::new()
    }
}

impl Registry {
    /// Creates a set without claims.
    pub fn new() -> Self {
        let shards = Arc::new(Shards::new());
        Self {
            root: Arc::new(Root { shards }),
        }
    }

    /// Claims `range` until the result is dropped.
    ///
    /// # Errors
    ///
    /// [`ClaimError::Overlap`] if a byte of it is claimed; nothing changes then.
    pub fn claim(&self, range: IovaRange) -> Result<Claim, ClaimError> {
        match self.root.shards.claim(range) {
            Ok(keeper) => Ok(Claim {
                keeper: Some(keeper),
                range,
            }),
            Err(with) => Err(ClaimError::Overlap { range, with }),
        }
    }

    /// Returns whether `claim` belongs to this set.
    pub fn issued(&self, claim: &Claim) -> bool {
        Arc::ptr_eq(&self.root.shards, claim.shards())
    }
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let claim_count = self.root.shards.count();
        f.debug_struct("Registry")
            .field("claim_count", &claim_count)
            .finish_non_exhaustive()
    }
}

/// The exclusive right to change the translations of one IOVA range.
///
/// ```
/// use iopt::claim::Registry;
/// use iopt_formats::{Iova, IovaRange};
///
/// let registry = Registry::new();
/// let chunk = IovaRange::with_len(Iova::new(0x4000_0000), 0x4000_0000).unwrap();
/// let (lower, upper) = registry.claim(chunk)?.split_at(Iova::new(0x6000_0000))?;
/// assert_eq!(upper.range().start(), Iova::new(0x6000_0000));
///
/// // Each half may go to a thread of its own; nobody else gets in meanwhile.
/// assert!(registry.claim(chunk).is_err());
/// assert_eq!(upper.join(lower)?.range(), chunk);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[must_use = "a claim ends when it is dropped"]
pub struct Claim {
    /// `None` only in what went into another claim and has no entry any more.
    keeper: Option<Arc<Keeper>>,
    range: IovaRange,
}

impl Claim {
    /// Returns the claimed range.
    pub const fn range(&self) -> IovaRange {
        self.range
    }

    /// Divides the claim into the part below `iova` and the part from `iova` on. Nobody can claim
    /// an address of either meanwhile.
    ///
    /// # Errors
    ///
    /// [`SplitError::Outside`], with the claim unchanged, unless `iova` lies in the range and
    /// above its start: no part is empty.
    pub fn split_at(mut self, iova: Iova) -> Result<(Self, Self), SplitError> {
        let whole = self.range;
        let Some((lower, upper)) = parts(whole, iova) else {
            return Err(SplitError::Outside { claim: self, iova });
        };
        self.shards().replace(whole, &[whole], [lower, upper]);
        self.range = lower;
        let upper = Self {
            keeper: self.keeper.clone(),
            range: upper,
        };
        Ok((self, upper))
    }

    /// Makes one claim of two whose ranges are neighbours, in either order. Nobody can claim an
    /// address of either meanwhile.
    ///
    /// # Errors
    ///
    /// Each gives both claims back, unchanged:
    ///
    /// - [`JoinError::Foreign`] if they belong to different registries;
    /// - [`JoinError::Apart`] if there are addresses between their ranges.
    pub fn join(mut self, mut other: Self) -> Result<Self, JoinError> {
        let (first, second) = (self.range, other.range);
        if !Arc::ptr_eq(self.shards(), other.shards()) {
            return Err(JoinError::Foreign {
                first: self,
                second: other,
            });
        }
        let Some(union) = union(first, second) else {
            return Err(JoinError::Apart {
                first: self,
                second: other,
            });
        };
        self.shards().replace(union, &[first, second], [union]);
        other.keeper = None;
        self.range = union;
        Ok(self)
    }

    fn shards(&self) -> &Arc<Shards> {
        let keeper = self.keeper.as_ref();
        keeper
            .expect("what went into another claim is out of reach")
            .shards()
    }
}

/// Returns the part of `whole` below `iova` and the rest, if neither is empty.
fn parts(whole: IovaRange, iova: Iova) -> Option<(IovaRange, IovaRange)> {
    let below = Iova::new(iova.get().checked_sub(1)?);
    let lower = IovaRange::new(whole.start(), below)?;
    let upper = IovaRange::new(iova, whole.last())?;
    Some((lower, upper))
}

/// Returns both ranges as one, if one begins where the other ends.
fn union(first: IovaRange, second: IovaRange) -> Option<IovaRange> {
    let is_lower = first.start() < second.start();
    let (lower, upper) = if is_lower {
        (first, second)
    } else {
        (second, first)
    };
    // No address lies above the last of the space.
    let next = lower.last().checked_add(1)?;
    let union = IovaRange::new(lower.start(), upper.last())?;
    (next == upper.start()).then_some(union)
}

impl fmt::Debug for Claim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Claim")
            .field("range", &self.range)
            .finish_non_exhaustive()
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        if let Some(keeper) = &self.keeper {
            keeper.shards().release(self.range);
        }
    }
}

/// Why a range cannot be claimed.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum ClaimError {
    /// A byte of the range is claimed already.
    #[error("the range {range} overlaps the claimed range {with}")]
    Overlap {
        /// The range asked for.
        range: IovaRange,
        /// The lowest claimed range that it overlaps.
        with: IovaRange,
    },
}

/// Why a claim cannot be divided. Holds the claim, unchanged.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SplitError {
    /// One part would be empty.
    #[error("{iova} divides the claim on {} into no two parts", .claim.range())]
    Outside {
        /// The claim.
        claim: Claim,
        /// Where it should have been divided.
        iova: Iova,
    },
}

impl SplitError {
    /// Returns the claim.
    pub fn into_claim(self) -> Claim {
        let Self::Outside { claim, .. } = self;
        claim
    }
}

/// Why two claims cannot become one. Holds both, unchanged.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum JoinError {
    /// They belong to different registries.
    #[error("different registries issued the claims on {} and {}", .first.range(), .second.range())]
    Foreign {
        /// The claim that was to be extended.
        first: Claim,
        /// The claim that was to go into it.
        second: Claim,
    },
    /// There are addresses between their ranges.
    #[error("the claims on {} and {} are no neighbours", .first.range(), .second.range())]
    Apart {
        /// The claim that was to be extended.
        first: Claim,
        /// The claim that was to go into it.
        second: Claim,
    },
}

impl JoinError {
    /// Returns both claims, in the order in which they were given.
    pub fn into_claims(self) -> (Claim, Claim) {
        match self {
            Self::Foreign { first, second } | Self::Apart { first, second } => (first, second),
        }
    }
}
