//! What the hardware did not confirm: kept until it does.

use alloc::sync::Arc;
use alloc::vec::Vec;

use crate::domain::{Domain, DomainError, TenantId};
use crate::ioas::area::{Area, State};
use crate::ioas::unconfirmed::Unconfirmed;
use crate::ioas::unmap::remove_from;
use crate::ioas::{Attached, Ioas, Quarantined, byte_count};

/// What is left to do in one domain.
pub(super) struct Leftover {
    pub(super) domain: Arc<dyn Domain>,
    pub(super) tenant: TenantId,
    pub(super) unconfirmed: Arc<Unconfirmed>,
    /// Whether all translations are out of the domain; else it is asked once more.
    pub(super) is_removed: bool,
}

impl Attached {
    /// Returns that everything is left to do in the domain.
    pub(super) fn leftover(&self) -> Leftover {
        Leftover {
            domain: Arc::clone(&self.domain),
            tenant: self.tenant,
            unconfirmed: Arc::clone(&self.unconfirmed),
            is_removed: false,
        }
    }
}

/// Areas that a device may still reach.
pub(super) struct Batch {
    leftovers: Vec<Leftover>,
    areas: Vec<Arc<Area>>,
}

impl Ioas {
    /// Keeps areas with their pages and IOVA until [`retry_quarantined`](Self::retry_quarantined).
    pub(super) fn keep(&self, leftovers: Vec<Leftover>, areas: &[Arc<Area>]) {
        for area in areas {
            area.status().state = State::Quarantined;
        }
        self.leftovers.lock().push(Batch {
            leftovers,
            areas: areas.to_vec(),
        });
    }

    /// Returns what is kept because the hardware did not confirm that it forgot it.
    pub fn quarantined(&self) -> Quarantined {
        let leaving = self.domains.read().leaving.len();
        let batches = self.leftovers.lock();
        let areas = batches.iter().flat_map(|batch| &batch.areas);
        Quarantined {
            area_count: areas.clone().count(),
            bytes: byte_count(areas),
            domain_count: leaving,
        }
    }

    /// Tries again to remove and flush what failed, for when the devices were blocked or reset. What the
    /// hardware confirms now is free; returns what is left.
    pub fn retry_quarantined(&self) -> Quarantined {
        let one = self.attaching.lock();
        self.retry_leaving();
        let has_left = self.domains.read().leaving.is_empty();
        let batches = core::mem::take(&mut *self.leftovers.lock());
        let mut kept = Vec::new();
        for mut batch in batches {
            batch.leftovers.retain_mut(|leftover| {
                let Leftover {
                    domain,
                    tenant,
                    unconfirmed,
                    is_removed,
                } = leftover;
                let mut so_far = unconfirmed.lock();
                if !*is_removed {
                    let flush = &mut so_far.flush;
                    let removed = remove_from(&**domain, *tenant, &batch.areas, flush, None);
                    // A domain that was detached meanwhile has nothing left of them.
                    *is_removed = matches!(removed, Ok(()) | Err(DomainError::Stranger));
                }
                let synced = so_far.sync(&**domain);
                synced.is_err() || !*is_removed
            });
            // Memory that was revoked may be pinned by an access, which is asked when it is unmapped.
            let is_free = batch.areas.iter().all(|area| area.status().pin_count == 0);
            if batch.leftovers.is_empty() && has_left && is_free {
                self.give_free(&batch.areas);
            } else {
                kept.push(batch);
            }
        }
        self.leftovers.lock().append(&mut kept);
        drop(one);
        self.quarantined()
    }

    /// Gives up all areas as the address space ends: without domains nobody reaches them, but for
    /// those in quarantine, whose pages stay pinned for good.
    pub(super) fn release_all(&mut self) {
        let is_reached = !self.domains.get_mut().leaving.is_empty();
        let quarantined = core::mem::take(self.leftovers.get_mut());
        core::mem::forget(quarantined);
        self.index.each(|_, area| {
            let status = area.status();
            if status.state == State::Quarantined {
                return;
            }
            if is_reached && area.is_held() {
                core::mem::forget(Arc::clone(area));
            } else {
                area.release_held();
            }
        });
    }
}
