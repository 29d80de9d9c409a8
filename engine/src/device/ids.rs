//! Numbers by which hardware tells what it caches: ASIDs, VMIDs, DIDs, PSCIDs, GSCIDs; and PASIDs.
//!
//! A number that is used again while hardware holds something under it gives one domain's translations to
//! another's devices. So a number comes back only with a proof that nothing is held: a [`Flushed`] of
//! everything, or a [forget](Instance::forget) of its tags that succeeded. One that is dropped without is never
//! given out again.

use alloc::collections::BinaryHeap;
use alloc::sync::Arc;
use core::cmp::Reverse;
use core::fmt;
use core::ops::RangeInclusive;

use iopt_formats::IovaRange;

use crate::invalidation::plan::Planner;
use crate::invalidation::queue::Device;
use crate::invalidation::{Encode, Flushed, Instance, SyncError};
use crate::sync::{IDS, Mutex};

/// Numbers of one kind, at one instance or for all.
pub struct Ids {
    last: u32,
    inner: Mutex<Inner>,
}

struct Inner {
    /// The first number that nobody ever had; beyond `last` if there is none.
    fresh: u64,
    /// Numbers that came back. Has room for all that may.
    free: BinaryHeap<Reverse<u32>>,
    /// Numbers that somebody has.
    used_count: usize,
    /// Numbers that were lost.
    quarantined_count: usize,
}

/// Why there is no number.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum IdError {
    /// All are in use, or lost.
    #[error("all IDs up to {last} are in use, {quarantined_count} of them for ever")]
    Exhausted {
        /// The largest one.
        last: u32,
        /// Those that were dropped without a proof.
        quarantined_count: usize,
    },
    /// No memory to note it.
    #[error("no memory to note an ID")]
    Memory,
}

impl Ids {
    /// Creates a supply of the numbers of `range`.
    pub fn new(range: RangeInclusive<u32>) -> Arc<Self> {
        let inner = Inner {
            fresh: (*range.start()).into(),
            free: BinaryHeap::new(),
            used_count: 0,
            quarantined_count: 0,
        };
        Arc::new(Self {
            last: *range.end(),
            inner: Mutex::new(&IDS, inner),
        })
    }

    /// Creates a supply of the numbers of `bits` bits, 32 at most, but 0: that is what hardware uses where
    /// no table is, and the PASID of requests without one.
    pub fn of_width(bits: u8) -> Arc<Self> {
        let last = u32::MAX.checked_shr(32_u32.saturating_sub(bits.into()));
        Self::new(1..=last.unwrap_or(0))
    }

    /// Takes the smallest number that was used before and is free, or one that nobody had.
    ///
    /// # Errors
    ///
    /// [`IdError`].
    pub fn allocate(self: &Arc<Self>) -> Result<Id, IdError> {
        let mut inner = self.inner.lock();
        // What is given back needs room that is there already.
        let needed = inner.used_count + 1;
        inner
            .free
            .try_reserve(needed)
            .map_err(|_| IdError::Memory)?;
        let number = match inner.free.pop() {
            Some(Reverse(number)) => number,
            None => match u32::try_from(inner.fresh) {
                Ok(number) if number <= self.last => {
                    inner.fresh += 1;
                    number
                }
                _ => {
                    return Err(IdError::Exhausted {
                        last: self.last,
                        quarantined_count: inner.quarantined_count,
                    });
                }
            },
        };
        inner.used_count += 1;
        Ok(Id {
            number,
            is_clean: false,
            ids: Arc::clone(self),
        })
    }

    /// Takes a certain number; `None` if it is in use, lost, or not of the range. Takes time in proportion to the
    /// numbers below it that nobody had.
    ///
    /// # Errors
    ///
    /// [`IdError::Memory`].
    pub fn take(self: &Arc<Self>, number: u32) -> Result<Option<Id>, IdError> {
        let mut inner = self.inner.lock();
        if number > self.last {
            return Ok(None);
        }
        // Those below it are free, too.
        let skipped = u64::from(number).saturating_sub(inner.fresh) as usize;
        let needed = inner.used_count + 1 + skipped;
        inner
            .free
            .try_reserve(needed)
            .map_err(|_| IdError::Memory)?;
        if u64::from(number) >= inner.fresh {
            while inner.fresh < number.into() {
                let skipped = inner.fresh as u32;
                inner.free.push(Reverse(skipped));
                inner.fresh += 1;
            }
            inner.fresh += 1;
        } else {
            let before = inner.free.len();
            inner.free.retain(|&Reverse(free)| free != number);
            if inner.free.len() == before {
                return Ok(None);
            }
        }
        inner.used_count += 1;
        Ok(Some(Id {
            number,
            is_clean: false,
            ids: Arc::clone(self),
        }))
    }

    /// Returns how many are in use.
    pub fn used_count(&self) -> usize {
        self.inner.lock().used_count
    }

    /// Returns how many were dropped without a proof, and are lost.
    pub fn quarantined_count(&self) -> usize {
        self.inner.lock().quarantined_count
    }
}

impl fmt::Debug for Ids {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let inner = self.inner.lock();
        f.debug_struct("Ids")
            .field("last", &self.last)
            .field("used_count", &inner.used_count)
            .field("quarantined_count", &inner.quarantined_count)
            .finish_non_exhaustive()
    }
}

/// A number that is nobody else's. Dropped, it is lost; who can prove that hardware holds nothing under it
/// gives it back.
#[must_use = "a number that is dropped is lost"]
pub struct Id {
    number: u32,
    /// Nothing is held under it.
    is_clean: bool,
    ids: Arc<Ids>,
}

impl Id {
    /// Returns the number.
    pub const fn get(&self) -> u32 {
        self.number
    }

    /// Gives a number back that no context and no command ever named.
    pub fn give_back_unused(mut self) {
        self.is_clean = true;
    }

    /// Gives it back after everything that hardware held under it was flushed.
    ///
    /// # Errors
    ///
    /// Returns it if `flushed` is about a part of the addresses.
    pub fn give_back(mut self, flushed: &Flushed) -> Result<(), Self> {
        if flushed.covers(IovaRange::FULL) {
            self.is_clean = true;
            Ok(())
        } else {
            Err(self)
        }
    }

    /// Makes an instance forget everything under `tags`, which are all that the number stands for, and gives
    /// it back. No context may name it any more.
    ///
    /// # Errors
    ///
    /// Returns it if hardware fails or does not answer: to be tried again, or lost.
    pub fn forget<P, D>(
        mut self,
        instance: &Instance<P, D>,
        tags: &[P::Tag],
    ) -> Result<(), (Self, SyncError)>
    where
        P: Planner<Command: Encode<D::Entry>>,
        D: Device,
    {
        match instance.forget(tags) {
            Ok(()) => {
                self.is_clean = true;
                Ok(())
            }
            Err(error) => Err((self, error)),
        }
    }
}

impl Drop for Id {
    fn drop(&mut self) {
        let mut inner = self.ids.inner.lock();
        inner.used_count -= 1;
        if self.is_clean {
            inner.free.push(Reverse(self.number));
        } else {
            inner.quarantined_count += 1;
        }
    }
}

impl fmt::Debug for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Id").field(&self.number).finish()
    }
}
