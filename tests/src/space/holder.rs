//! Accesses that let go when they are asked, or never.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use iopt::ioas::{AccessHandle, AccessOps};
use iopt_formats::IovaRange;

/// What an access knows of itself.
#[derive(Debug, Default)]
pub struct Holder {
    pins: Mutex<Vec<IovaRange>>,
    is_stubborn: AtomicBool,
}

impl Holder {
    /// Says whether it holds on to its pins.
    pub fn set_stubborn(&self, is_stubborn: bool) {
        self.is_stubborn.store(is_stubborn, Ordering::Relaxed);
    }

    /// Returns the ranges that it has pinned.
    pub fn pins(&self) -> MutexGuard<'_, Vec<IovaRange>> {
        self.pins.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Lets go of whatever it is asked for.
#[derive(Debug)]
pub struct Yields(pub Arc<Holder>);

impl AccessOps for Yields {
    fn unmap(&self, access: &AccessHandle, range: IovaRange) {
        if self.0.is_stubborn.load(Ordering::Relaxed) {
            return;
        }
        let (gone, kept) = {
            let mut pins = self.0.pins();
            let all = std::mem::take(&mut *pins).into_iter();
            all.partition::<Vec<_>, _>(|pin| pin.overlaps(range))
        };
        *self.0.pins() = kept;
        for pin in gone {
            access.unpin(pin).expect("what is noted is pinned");
        }
    }
}
