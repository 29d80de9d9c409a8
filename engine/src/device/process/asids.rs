//! ASIDs of an instance that takes part in the CPUs' broadcast TLB maintenance.
//!
//! Source: IHI 0070, section 3.17. Such an instance tags what it caches for a process with the ASID that the CPUs
//! have for it (`ASET` clear), and what it caches for domains of its own with ASIDs that its driver chose (`ASET`
//! set). Both are looked up alike. So a number must not mean both: when the CPUs' ASID of a process is one that a
//! domain has, the domain moves to another first.
//!
//! ```text
//! allocate ---> PrivateAsid of a domain ---.
//!                                          | the CPUs have the same number
//! pin -------------------------------------+--> AsidHolder::renumber: contexts name the new number, hardware
//!                                          |    forgets the old one
//!                                          `--> SharedAsid, counted
//! ```
//!
//! # Invariants
//!
//! - **N1** (one meaning): at any moment a number is free, one private holder's, or the CPUs'.
//! - **N2** (forgotten in between): it changes its meaning only while hardware holds nothing under it.

use alloc::collections::BTreeMap;
use alloc::sync::{Arc, Weak};
use core::fmt;

use crate::device::ids::{Id, IdError, Ids};
use crate::invalidation::SyncError;
use crate::sync::{ASID_HOLDERS, Mutex, SHARED_ASIDS};

/// What has an ASID of an instance's own, and can take another.
pub trait AsidHolder: Send + Sync {
    /// Makes all contexts of the holder that name `old` name `new`, one after the other, and the instance forget what
    /// it cached under `old`, after that. Requests are served throughout. Returns `old`, under which nothing is held
    /// any more; or `new` if it does not have `old` any longer.
    ///
    /// Called with a lock held: it must not call the [`SharedAsids`].
    ///
    /// # Errors
    ///
    /// [`RenumberError`]. Contexts, or what is cached, may name either, so the holder keeps both.
    fn renumber(&self, old: u32, new: Id) -> Result<Id, RenumberError>;
}

/// Why a holder keeps its ASID.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum RenumberError {
    /// Hardware does not confirm.
    #[error("hardware did not confirm that an ASID is out of use: {0}")]
    Hardware(#[from] SyncError),
}

/// The ASIDs of an instance.
#[derive(Debug)]
pub struct SharedAsids {
    ids: Arc<Ids>,
    /// The CPUs' that are pinned, with how often. Held while a holder moves.
    pinned: Mutex<BTreeMap<u32, Pinned>>,
    holders: Mutex<BTreeMap<u32, Weak<dyn AsidHolder>>>,
}

struct Pinned {
    id: Id,
    count: usize,
}

impl fmt::Debug for Pinned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.count.fmt(f)
    }
}

/// Why an ASID of the CPUs is not to be used.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum PinError {
    /// There is no other ASID for the domain that has it; or it is wider than the instance's are.
    #[error(transparent)]
    Id(#[from] IdError),
    /// The domain that has it keeps it.
    #[error(transparent)]
    Renumber(#[from] RenumberError),
    /// Somebody has it who cannot move, or it is lost.
    #[error("ASID {number} is in use and cannot be made free")]
    Taken {
        /// Which.
        number: u32,
    },
}

/// An ASID of the CPUs that an instance uses. Dropped, it stays in use: who can tell that hardware holds nothing
/// under it [releases](Self::release) it.
#[must_use = "dropped, it stays in use"]
#[derive(Debug)]
pub struct SharedAsid {
    asids: Arc<SharedAsids>,
    number: u32,
}

impl SharedAsids {
    /// Creates the ASIDs of an instance, of `bits` bits. 0 is nobody's.
    pub fn of_width(bits: u8) -> Arc<Self> {
        Arc::new(Self {
            ids: Ids::of_width(bits),
            pinned: Mutex::new(&SHARED_ASIDS, BTreeMap::new()),
            holders: Mutex::new(&ASID_HOLDERS, BTreeMap::new()),
        })
    }

    /// Returns the numbers.
    pub const fn ids(&self) -> &Arc<Ids> {
        &self.ids
    }

    /// Takes an ASID for a domain of the instance's own, which is to be [named](Self::hold).
    ///
    /// # Errors
    ///
    /// [`IdError`].
    pub fn allocate(&self) -> Result<Id, IdError> {
        self.ids.allocate()
    }

    /// Says whose an allocated ASID is: who moves if the CPUs have the same. Until it is said, the number cannot be
    /// made free.
    pub fn hold(&self, id: &Id, holder: Weak<dyn AsidHolder>) {
        let mut holders = self.holders.lock();
        holders.retain(|_, other| other.strong_count() > 0);
        holders.insert(id.get(), holder);
    }

    /// Uses an ASID of the CPUs, which they must not give to another process meanwhile. A domain of the instance's
    /// own that has it moves first.
    ///
    /// # Errors
    ///
    /// [`PinError`], with nothing changed but who has which number.
    pub fn pin(self: &Arc<Self>, number: u32) -> Result<SharedAsid, PinError> {
        let mut pinned = self.pinned.lock();
        if let Some(pinned) = pinned.get_mut(&number) {
            pinned.count += 1;
        } else {
            let id = self.free(number)?;
            pinned.insert(number, Pinned { id, count: 1 });
        }
        Ok(SharedAsid {
            asids: Arc::clone(self),
            number,
        })
    }

    /// Gets a number, from a domain if need be.
    fn free(&self, number: u32) -> Result<Id, PinError> {
        if let Some(id) = self.ids.take(number)? {
            return Ok(id);
        }
        let holder = self.holders.lock().get(&number).and_then(Weak::upgrade);
        let Some(holder) = holder else {
            // It may have been given back since.
            let id = self.ids.take(number)?;
            return id.ok_or(PinError::Taken { number });
        };
        let new = self.ids.allocate()?;
        self.hold(&new, Arc::downgrade(&holder));
        let id = holder.renumber(number, new)?;
        if id.get() == number {
            self.holders.lock().remove(&number);
            return Ok(id);
        }
        // It went of itself while it was asked.
        id.give_back_unused();
        let id = self.ids.take(number)?;
        id.ok_or(PinError::Taken { number })
    }
}

impl SharedAsid {
    /// Returns the number, for contexts with `ASET` clear.
    pub const fn get(&self) -> u32 {
        self.number
    }

    /// Ends its use, when no context names it and the instance has forgotten what it cached under it: with the
    /// last one it is free.
    pub fn release(self) {
        let mut pinned = self.asids.pinned.lock();
        let last = match pinned.get_mut(&self.number) {
            Some(pinned) if pinned.count > 1 => {
                pinned.count -= 1;
                None
            }
            _ => pinned.remove(&self.number),
        };
        drop(pinned);
        if let Some(last) = last {
            last.id.give_back_unused();
        }
    }
}
