//! Hardware that has done everything as soon as it is told, for what the processor's part costs.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use iopt::invalidation::queue::Platform;
use iopt::invalidation::queue::{smmuv3, vtd};

/// Logarithm of the entries of a queue: what a page holds of 16 bytes each.
const LG2_ENTRIES: u32 = 8;

/// Type of a wait descriptor (Intel VT-d specification, 6.5.2.11), whose upper half is what it writes.
const WAIT: u64 = 5;

/// The hardware: a tail that is the head.
#[derive(Debug)]
pub struct Prompt {
    ring: Box<[AtomicU64]>,
    tail: AtomicU32,
    status: AtomicU64,
}

impl Default for Prompt {
    fn default() -> Self {
        Self {
            ring: (0..2 << LG2_ENTRIES).map(|_| AtomicU64::new(0)).collect(),
            tail: AtomicU32::new(0),
            status: AtomicU64::new(0),
        }
    }
}

impl Platform for Prompt {
    fn ring(&self) -> &[AtomicU64] {
        &self.ring
    }
}

impl smmuv3::Registers for Prompt {
    fn set_cmdq_prod(&self, value: u32) {
        self.tail.store(value, Ordering::Release);
    }

    fn cmdq_cons(&self) -> u32 {
        self.tail.load(Ordering::Acquire)
    }

    fn gerror(&self) -> u32 {
        0
    }

    fn gerrorn(&self) -> u32 {
        0
    }

    fn change_gerrorn(&self, _mask: u32, _value: u32) {}
}

impl vtd::Registers for Prompt {
    fn status_word(&self) -> &AtomicU64 {
        &self.status
    }

    fn set_iqt(&self, value: u64) {
        let tail = (value >> 4) as u32;
        let mut at = self.tail.load(Ordering::Relaxed);
        while at != tail {
            let word = u64::from_le(self.ring[2 * at as usize].load(Ordering::Relaxed));
            if word & 0xf == WAIT {
                self.status.store(word >> 32, Ordering::Release);
            }
            at = (at + 1) & ((1 << LG2_ENTRIES) - 1);
        }
        self.tail.store(tail, Ordering::Release);
    }

    fn iqh(&self) -> u64 {
        u64::from(self.tail.load(Ordering::Acquire)) << 4
    }

    fn fsts(&self) -> u32 {
        0
    }

    fn clear_fsts(&self, _bits: u32) {}
}
