//! IDs under which an instance sees several devices: functions behind a bridge that speaks for them, or that
//! firmware or a quirk gives the same alias.
//!
//! There is one entry for such an ID, and each device wants it to lead to tables of its own. Devices that share an
//! ID are in one group, so they are attached to the same domains; but one of them may be blocked alone, because it is
//! being reset, is removed, or comes. So the instance notes what each wants, and lets the entry say what one of
//! them, the holder, does: as long as anybody is attached under an ID, it is led.
//!
//! # Invariants
//!
//! - **S1** (one holder): of those that want something of an ID exactly one is its holder; of an ID of which nobody
//!   wants anything, none.
//! - **S2** (steady): the holder changes only if it wants nothing any more, or gives way.
//! - **S3** (one fate): what is known of an ID's entry is known to all who have the ID, whoever wrote it last.

#[cfg(all(test, not(loom)))]
mod tests;

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;

use crate::device::context::{Outcome, Unwritten};
use crate::sync::{Mutex, SHARED_IDS};

/// Who has which IDs of an instance, and what each wants of their entries.
pub struct Shares<E> {
    inner: Mutex<Inner<E>>,
}

struct Inner<E> {
    /// By ID, then by user.
    claims: Vec<Claim<E>>,
    next_user: u64,
}

struct Claim<E> {
    id: u32,
    user: u64,
    /// Nothing if its requests are to be blocked.
    wanted: Option<E>,
    is_holder: bool,
    /// Whether the device has PASIDs.
    has_pasids: bool,
    /// The same of all claims to the ID (S3).
    standing: Outcome,
}

/// How a device's IDs at an instance stand, and who else has them.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Sharing {
    /// What is known of their entries, whoever wrote them last.
    pub standing: Outcome,
    /// Whether another device has one of them.
    pub has_others: bool,
    /// Whether one of those has no PASIDs: what leads the ID to its tables leads none with a PASID anywhere.
    pub lacks_pasids: bool,
}

impl Sharing {
    /// Of a device that has its IDs alone, and whose entries say what they are to say.
    pub const ALONE: Self = Self {
        standing: Outcome::Known,
        has_others: false,
        lacks_pasids: false,
    };

    /// Returns what holds for both.
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self {
            standing: self.standing.and(other.standing),
            has_others: self.has_others || other.has_others,
            lacks_pasids: self.lacks_pasids || other.lacks_pasids,
        }
    }
}

/// No memory to note who has an ID.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("no memory to note who has an ID")]
pub struct ShareError;

impl<E: Copy> Shares<E> {
    /// Creates the value for an instance that sees no device.
    pub fn new() -> Arc<Self> {
        let inner = Inner {
            claims: Vec::new(),
            next_user: 0,
        };
        Arc::new(Self {
            inner: Mutex::new(&SHARED_IDS, inner),
        })
    }

    /// Notes that a device has `ids`, each of them given once, and whether it has PASIDs. It wants nothing of them.
    ///
    /// # Errors
    ///
    /// [`ShareError`], with nothing noted.
    pub fn enter(self: &Arc<Self>, ids: &[u32], has_pasids: bool) -> Result<Share<E>, ShareError> {
        let mut inner = self.inner.lock();
        let reserved = inner.claims.try_reserve(ids.len());
        reserved.map_err(|_| ShareError)?;
        let user = inner.next_user;
        inner.next_user += 1;
        for &id in ids {
            let standing = inner.of(id).first().map(|claim| claim.standing);
            // Behind all others, as users are numbered in the order in which they come.
            let at = inner.claims.partition_point(|claim| claim.id <= id);
            let claim = Claim {
                id,
                user,
                wanted: None,
                is_holder: false,
                has_pasids,
                standing: standing.unwrap_or(Outcome::Known),
            };
            inner.claims.insert(at, claim);
        }
        Ok(Share {
            shares: Arc::clone(self),
            user,
        })
    }
}

impl<E> Inner<E> {
    /// Returns the claims to one ID.
    fn of(&mut self, id: u32) -> &mut [Claim<E>] {
        let first = self.claims.partition_point(|claim| claim.id < id);
        let end = self.claims.partition_point(|claim| claim.id <= id);
        self.claims.get_mut(first..end).unwrap_or_default()
    }
}

/// What one device has of an instance's IDs, until it is dropped.
pub struct Share<E> {
    shares: Arc<Shares<E>>,
    user: u64,
}

impl<E: Copy> Share<E> {
    /// Notes that the device wants `wanted` of the entry of an ID, or nothing, and has `write` make the entry say what
    /// the ID's holder wants, or block if there is none. A device that `gives_way` holds no ID that another one can
    /// hold; who wants nothing does that. Allocates nothing.
    ///
    /// # Errors
    ///
    /// Those of `write`, which all hear of who have the ID (S3).
    pub fn lead(
        &self,
        id: u32,
        wanted: Option<E>,
        gives_way: bool,
        write: impl FnOnce(Option<E>) -> Result<(), Unwritten>,
    ) -> Result<(), Unwritten> {
        let mut inner = self.shares.inner.lock();
        let claims = inner.of(id);
        let own = claims.iter().position(|claim| claim.user == self.user);
        let Some(own) = own else {
            return write(wanted);
        };
        claims[own].wanted = wanted;
        let can_hold =
            |at: usize, claim: &Claim<E>| claim.wanted.is_some() && (at != own || !gives_way);
        let able = || {
            claims
                .iter()
                .enumerate()
                .filter(|&(at, claim)| can_hold(at, claim))
        };
        let steady = able().find(|(_, claim)| claim.is_holder);
        // S1, S2.
        let holder = steady.or_else(|| able().find(|&(at, _)| at == own));
        let holder = holder.or_else(|| able().next()).map(|(at, _)| at);
        let holder = holder.or(wanted.is_some().then_some(own));
        for (at, claim) in claims.iter_mut().enumerate() {
            claim.is_holder = Some(at) == holder;
        }
        // Under the lock, so that entries are written in the order in which holders change.
        let wanted = holder.and_then(|at| claims[at].wanted);
        let written = write(wanted);
        let standing = match Outcome::from(written) {
            Outcome::Blocked if wanted.is_none() => Outcome::Known,
            standing => standing,
        };
        for claim in claims {
            claim.standing = standing;
        }
        written
    }

    /// Returns how its IDs stand, and who else has them, whatever they want.
    pub fn sharing(&self) -> Sharing {
        let inner = self.shares.inner.lock();
        let is_own = |claim: &Claim<E>| claim.user == self.user;
        // By ID.
        let all = inner.claims.chunk_by(|one, next| one.id == next.id);
        let own = all.filter(|claims| claims.iter().any(is_own));
        own.fold(Sharing::ALONE, |sharing, claims| {
            let mut others = claims.iter().filter(|claim| !is_own(claim));
            sharing.and(Sharing {
                standing: claims[0].standing,
                has_others: claims.len() > 1,
                lacks_pasids: others.any(|claim| !claim.has_pasids),
            })
        })
    }

    /// Returns whether another device wants something of one of `ids`.
    pub fn is_shared(&self, ids: impl IntoIterator<Item = u32>) -> bool {
        let mut inner = self.shares.inner.lock();
        let others = |id| {
            let mut claims = inner.of(id).iter();
            claims.any(|claim| claim.user != self.user && claim.wanted.is_some())
        };
        ids.into_iter().any(others)
    }
}

impl<E> Drop for Share<E> {
    fn drop(&mut self) {
        let mut inner = self.shares.inner.lock();
        inner.claims.retain(|claim| claim.user != self.user);
    }
}

impl<E> fmt::Debug for Shares<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let inner = self.inner.lock();
        let claims = inner.claims.iter().map(|claim| (claim.id, claim.user));
        f.debug_set().entries(claims).finish()
    }
}

impl<E> fmt::Debug for Share<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Share").field(&self.user).finish()
    }
}
