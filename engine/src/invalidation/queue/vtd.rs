//! The invalidation queue of a VT-d unit.
//!
//! Source: *Intel Virtualization Technology for Directed I/O, Architecture Specification*, revision 4.1,
//! sections 6.5.2 "Queued Invalidation Interface" and 11.4.9 "Invalidation Queue Registers".

use core::fmt;

use iopt_formats::Oa;
use iopt_formats::command::vtd::{Descriptor, StatusWrite};

use crate::invalidation::Encode;
use crate::invalidation::queue::platform::{Platform, lg2_entries};
use crate::invalidation::queue::{Completion, Device, Entry, Fault, Head, Shape};
use crate::sync::atomic::{AtomicU64, Ordering};

/// An entry that holds one descriptor: of 128 bits, or of 256 as in scalable mode.
pub trait DescriptorEntry: Entry {
    /// Returns the entry for `descriptor`.
    fn of(descriptor: &Descriptor) -> Self;
}

impl DescriptorEntry for [u64; 2] {
    fn of(descriptor: &Descriptor) -> Self {
        descriptor.encode()
    }
}

impl DescriptorEntry for [u64; 4] {
    fn of(descriptor: &Descriptor) -> Self {
        descriptor.encode_wide()
    }
}

impl<E: DescriptorEntry> Encode<E> for Descriptor {
    fn entry(&self) -> E {
        E::of(self)
    }
}

/// The registers of an invalidation queue, and the word that wait descriptors write. Stores reach the unit
/// before later ones, loads are not made up.
pub trait Registers: Platform {
    /// Returns the status word: wait descriptors write its first 32 bits. Always the same.
    fn status_word(&self) -> &AtomicU64;

    /// Writes `IQT_REG`, an offset in bytes.
    fn set_iqt(&self, value: u64);

    /// Reads `IQH_REG`, an offset in bytes.
    fn iqh(&self) -> u64;

    /// Reads `FSTS_REG`.
    fn fsts(&self) -> u32;

    /// Clears bits of `FSTS_REG` by writing ones to them, and to no others.
    fn clear_fsts(&self, bits: u32);
}

/// Of `FSTS_REG`, invalidation queue error: the descriptor at the head is refused.
const IQE: u32 = 1 << 4;
/// Invalidation completion error: an answer that nothing was asked for. It stops nothing; whatever it was
/// meant for times out.
const ICE: u32 = 1 << 5;
/// Invalidation time-out error: a device did not answer, and waits that were fetched are dropped.
const ITE: u32 = 1 << 6;

/// Bytes of 2^QS pages, QS being 7 at most.
const PAGE_LG2: u32 = 12;
const MOST_LEN_LG2: u32 = PAGE_LG2 + 7;

/// An invalidation queue whose descriptors have `WORDS` words, 2 or 4, with completion shown by a status word.
pub struct InvalidationQueue<R, const WORDS: usize> {
    registers: R,
    status: Oa,
}

impl<R: Registers, const WORDS: usize> InvalidationQueue<R, WORDS> {
    /// Logarithm of a descriptor's bytes.
    const LEN_LG2: u32 = {
        assert!(WORDS == 2 || WORDS == 4, "descriptors have 128 or 256 bits");
        (8 * WORDS).ilog2()
    };

    /// Creates the queue that `registers` belong to, which is enabled and empty. The unit finds the status
    /// word at the address `status`, a multiple of 8.
    pub const fn new(registers: R, status: Oa) -> Self {
        Self { registers, status }
    }

    /// Returns the registers.
    pub const fn registers(&self) -> &R {
        &self.registers
    }

    fn lg2_entries(&self) -> u8 {
        let most = (MOST_LEN_LG2 - Self::LEN_LG2) as u8;
        lg2_entries(self.registers.ring().len(), Self::LEN_LG2 - 3, most)
    }

    /// Returns what `IQA_REG` must hold for a ring at `address`, which is aligned to 4 KiB and has a page or
    /// more. Bits below 12 are dropped.
    pub fn base(&self, address: Oa) -> u64 {
        const WIDE: u64 = 1 << 11;
        let len_lg2 = u32::from(self.lg2_entries()) + Self::LEN_LG2;
        let width = if WORDS == 4 { WIDE } else { 0 };
        address.get() & !0xfff | width | u64::from(len_lg2.saturating_sub(PAGE_LG2))
    }
}

impl<R: Registers, const WORDS: usize> Device for InvalidationQueue<R, WORDS>
where
    [u64; WORDS]: Entry,
    Descriptor: Encode<[u64; WORDS]>,
{
    type Entry = [u64; WORDS];

    fn shape(&self) -> Shape {
        Shape {
            lg2_entries: self.lg2_entries(),
            least_lg2_entries: (PAGE_LG2 - Self::LEN_LG2) as u8,
            has_wrap_bit: false,
            completion: Completion::Status,
        }
    }

    fn ring(&self) -> &[AtomicU64] {
        self.registers.ring()
    }

    fn write_tail(&self, index: u32) {
        self.registers.set_iqt(u64::from(index) << Self::LEN_LG2);
    }

    fn head(&self) -> Head {
        let errors = self.registers.fsts();
        let has = |bit: u32| errors & bit != 0;
        // Both may be set. What was dropped was fetched before the head stopped at what is refused.
        let fault = if has(ITE) {
            Some(Fault::Dropped)
        } else if has(IQE) {
            Some(Fault::Illegal)
        } else if has(ICE) {
            // Nothing to be done but to acknowledge it.
            Some(Fault::Fetch)
        } else {
            None
        };
        let index = self.registers.iqh() >> Self::LEN_LG2;
        let index = u32::try_from(index).unwrap_or(u32::MAX);
        Head { index, fault }
    }

    fn status(&self) -> u32 {
        let word = self.registers.status_word().load(Ordering::Relaxed);
        u64::from_le(word) as u32
    }

    fn sync_entry(&self, number: u32) -> [u64; WORDS] {
        let wait = Descriptor::Wait {
            status: Some(StatusWrite {
                address: self.status.get(),
                data: number,
            }),
            has_interrupt: false,
            is_fence: false,
            drains_page_requests: false,
        };
        wait.entry()
    }

    fn acknowledge(&self, fault: Fault) {
        self.registers.clear_fsts(match fault {
            Fault::Dropped | Fault::Timeout | Fault::Unanswered => ITE,
            Fault::Illegal => IQE,
            Fault::Fetch => ICE,
        });
    }

    fn now_ns(&self) -> u64 {
        self.registers.now_ns()
    }

    fn pause(&self, turn: u32) {
        self.registers.pause(turn);
    }
}

impl<R: Registers, const WORDS: usize> fmt::Debug for InvalidationQueue<R, WORDS> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("InvalidationQueue")
            .field("lg2_entries", &self.lg2_entries())
            .field("status", &self.status)
            .finish_non_exhaustive()
    }
}
