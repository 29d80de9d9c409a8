//! Who may change which IOVA.
//!
//! A [`Claim`] proves that its holder alone may change the translations of an IOVA range. Claims
//! of one [`Registry`] never overlap (**C1**), are not `Clone`, and end when dropped. Tables that
//! share a registry are changed under the same claims, as one address space over many domains
//! needs; a [`Table`](crate::radix::Table) made without one has its own.
//!
//! A claim is taken and given back under a lock, but using it takes none: a driver thread that
//! holds a claim over its part of the space for hours pays nothing per operation.

use alloc::collections::BTreeMap;
use alloc::sync::Arc;
use core::fmt;

use iopt_formats::{Iova, IovaRange};

use crate::sync::{self, Mutex};

/// The ranges that are claimed, by their last address: a closed interval has one even at the top
/// of the space.
#[derive(Debug, Default)]
struct Ranges(BTreeMap<Iova, Iova>);

impl Ranges {
    /// Returns a claimed range that shares a byte with `range`.
    fn overlap(&self, range: IovaRange) -> Option<IovaRange> {
        let (&last, &start) = self.0.range(range.start()..).next()?;
        IovaRange::new(start, last).filter(|claimed| claimed.overlaps(range))
    }
}

/// A handle to one set of claims. Clones are handles to the same set.
#[derive(Clone)]
pub struct Registry {
    ranges: Arc<Mutex<Ranges>>,
}

impl Default for Registry {
    fn default() -> Self {
        Self::new()
    }
}

impl Registry {
    /// Creates a set without claims.
    pub fn new() -> Self {
        let ranges = Mutex::new(&sync::CLAIMS, Ranges::default());
        Self {
            ranges: Arc::new(ranges),
        }
    }

    /// Claims `range` until the result is dropped.
    ///
    /// # Errors
    ///
    /// [`ClaimError::Overlap`] if a byte of it is claimed; nothing changes then.
    pub fn claim(&self, range: IovaRange) -> Result<Claim, ClaimError> {
        let mut ranges = self.ranges.lock();
        if let Some(with) = ranges.overlap(range) {
            return Err(ClaimError::Overlap { range, with });
        }
        ranges.0.insert(range.last(), range.start());
        drop(ranges);
        Ok(Claim {
            registry: self.clone(),
            range,
        })
    }

    /// Returns whether `claim` belongs to this set.
    pub fn issued(&self, claim: &Claim) -> bool {
        Arc::ptr_eq(&self.ranges, &claim.registry.ranges)
    }
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count = self.ranges.lock().0.len();
        f.debug_struct("Registry")
            .field("claim_count", &count)
            .finish_non_exhaustive()
    }
}

/// The exclusive right to change the translations of one IOVA range.
#[derive(Debug)]
#[must_use = "a claim ends when it is dropped"]
pub struct Claim {
    registry: Registry,
    range: IovaRange,
}

impl Claim {
    /// Returns the claimed range.
    pub const fn range(&self) -> IovaRange {
        self.range
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.registry.ranges.lock().0.remove(&self.range.last());
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
        /// One claimed range that it overlaps.
        with: IovaRange,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(start: u64, last: u64) -> IovaRange {
        IovaRange::new(Iova::new(start), Iova::new(last)).unwrap()
    }

    #[test]
    fn claims_that_share_a_byte_are_refused() {
        let registry = Registry::new();
        let held = registry.claim(range(0x2000, 0x4fff)).unwrap();
        for (start, last) in [
            (0, 0x2000),
            (0x4fff, u64::MAX),
            (0x3000, 0x3fff),
            (0, u64::MAX),
        ] {
            let error = registry.claim(range(start, last)).unwrap_err();
            assert_eq!(
                error,
                ClaimError::Overlap {
                    range: range(start, last),
                    with: held.range()
                }
            );
        }
        let below = registry.claim(range(0, 0x1fff)).unwrap();
        let above = registry.claim(range(0x5000, u64::MAX)).unwrap();
        drop((below, above, held));
        drop(registry.claim(IovaRange::FULL).unwrap());
    }

    #[test]
    fn a_claim_belongs_to_the_registry_that_issued_it() {
        let (ours, theirs) = (Registry::new(), Registry::new());
        let claim = ours.claim(range(0, 0xfff)).unwrap();
        assert!(ours.clone().issued(&claim));
        assert!(!theirs.issued(&claim));
    }
}
