//! How much one user may pin.

use crate::sync::unmodelled::{AtomicU64, Ordering};

/// A limit on the bytes that a user has pinned, shared by everything that pins on their behalf.
///
/// It is the engine's own limit, whatever the system counts: charge before pinning, release after
/// unpinning.
///
/// ```
/// use iopt::pin::Budget;
///
/// let budget = Budget::new(0x4000);
/// budget.charge(0x3000)?;
/// assert!(budget.charge(0x2000).is_err());
/// budget.release(0x3000);
/// assert_eq!(budget.used(), 0);
/// # Ok::<(), iopt::pin::LimitExceeded>(())
/// ```
#[derive(Debug)]
pub struct Budget {
    limit: u64,
    /// Never above `limit`. Orders nothing: what is charged for is published by other means.
    used: AtomicU64,
}

/// The limit of a [`Budget`] does not allow a charge. All values are bytes.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{used:#x} of {limit:#x} bytes are pinned, which leaves no room for {asked:#x}")]
pub struct LimitExceeded {
    /// The limit.
    pub limit: u64,
    /// What was charged when the call looked.
    pub used: u64,
    /// What was asked for.
    pub asked: u64,
}

impl Budget {
    /// Creates a budget of `limit` bytes; `u64::MAX` does not limit anything.
    pub const fn new(limit: u64) -> Self {
        Self {
            limit,
            used: AtomicU64::new(0),
        }
    }

    /// Charges for `bytes`.
    ///
    /// # Errors
    ///
    /// [`LimitExceeded`] if that passes the limit; nothing is charged then.
    pub fn charge(&self, bytes: u64) -> Result<(), LimitExceeded> {
        let add = |used: u64| used.checked_add(bytes).filter(|sum| *sum <= self.limit);
        let charged = self
            .used
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, add);
        match charged {
            Ok(_) => Ok(()),
            Err(used) => Err(LimitExceeded {
                limit: self.limit,
                used,
                asked: bytes,
            }),
        }
    }

    /// Gives back what was charged for, in any pieces. More than is charged is a mistake of the
    /// caller's, and leaves nothing charged.
    pub fn release(&self, bytes: u64) {
        let subtract = |used: u64| Some(used.saturating_sub(bytes));
        let released = self
            .used
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, subtract);
        debug_assert!(
            released.is_ok_and(|used| used >= bytes),
            "{bytes:#x} bytes were never charged"
        );
    }

    /// Returns the bytes that are charged for.
    pub fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    /// Returns the limit in bytes.
    pub const fn limit(&self) -> u64 {
        self.limit
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_charge_that_passes_the_limit_charges_nothing() {
        let budget = Budget::new(10);
        budget.charge(4).unwrap();
        budget.charge(6).unwrap();
        let error = LimitExceeded {
            limit: 10,
            used: 10,
            asked: 1,
        };
        assert_eq!(budget.charge(1), Err(error));
        assert_eq!(budget.charge(0), Ok(()));
        budget.release(3);
        assert!(budget.charge(4).is_err());
        assert_eq!((budget.used(), budget.limit()), (7, 10));
    }

    #[test]
    fn sums_beyond_64_bits_pass_every_limit() {
        let budget = Budget::new(u64::MAX);
        budget.charge(u64::MAX).unwrap();
        assert!(budget.charge(1).is_err());
        assert_eq!(budget.used(), u64::MAX);
    }

    #[test]
    #[cfg(feature = "std")]
    fn threads_never_pass_the_limit_together() {
        let budget = Budget::new(100);
        let charge_all = || (0..100).filter(|_| budget.charge(1).is_ok()).count();
        let counts = std::thread::scope(|scope| {
            let threads = [(); 4].map(|()| scope.spawn(charge_all));
            threads.map(|thread| thread.join().unwrap())
        });
        assert_eq!(counts.iter().sum::<usize>(), 100);
        assert_eq!(budget.used(), 100);
    }
}
