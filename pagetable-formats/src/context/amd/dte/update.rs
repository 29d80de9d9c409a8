//! Changing a device table entry under hardware.
//!
//! Source: document 48882, section 2.2.2.1 "Device Table Entry Format"; hardware reads the 256 bits of
//! an entry in one piece.

use crate::context::update::{Fetch, Rules, Unit};

use super::{
    Dte, GCR3_HIGH, GCR3_LOW, GCR3_MIDDLE, GLX, GUEST_IO_VALID, GUEST_PAGING, GUEST_VALID, HAD,
    HOST_ROOT, MODE, PAGE_REQUESTS, PAGE_RESPONSE_PASID, READ, RESERVED, SUPPRESS_ALL,
    SUPPRESS_REPEATED, TRANSLATION_VALID, VALID, WRITE,
};

/// How device table entries change: in stores of 16 bytes where the CPU has them, else of 8.
///
/// An update that cannot be one store blocks the device meanwhile (V without TV): it never clears V,
/// which would let requests pass. Interrupt fields stay as they are, whatever the new entry says: a
/// lock of the entry keeps whoever remaps interrupts from changing them during the update.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct UpdateRules {
    /// What one store writes: [`Unit::Bytes16`], or [`Unit::Bytes8`] without such stores.
    pub unit: Unit,
}

impl Dte {
    /// Bits of word 2 that belong to interrupt remapping: all but `GuestPagingMode` and the reserved
    /// bits beside it.
    pub const INTERRUPT_FIELDS: u64 = !(GUEST_PAGING.mask() | RESERVED[2] & 0x0030_0000_0000_0000);

    /// Returns the bits that hardware reads of an entry with these words, interrupt fields aside.
    ///
    /// Without V that is V alone, because requests pass. Fields that hardware may read without TV
    /// count as read, among them all of word 3.
    pub const fn used(words: [u64; 4]) -> [u64; 4] {
        const GUEST: [u64; 4] = [
            GUEST_IO_VALID | GLX.mask() | GCR3_LOW.mask(),
            GCR3_MIDDLE.mask() | GCR3_HIGH.mask(),
            GUEST_PAGING.mask(),
            0,
        ];
        // Reserved bits make an entry illegal, so hardware reads them as far as V makes words valid.
        const ALWAYS: [u64; 4] = [
            VALID | TRANSLATION_VALID | PAGE_REQUESTS | PAGE_RESPONSE_PASID | RESERVED[0],
            !GUEST[1],
            0,
            u64::MAX,
        ];
        const TRANSLATED: u64 = ALWAYS[0] | MODE.mask() | GUEST_VALID | READ | WRITE;
        if words[0] & VALID == 0 {
            return [VALID, 0, 0, 0];
        }
        if words[0] & TRANSLATION_VALID == 0 {
            return ALWAYS;
        }
        let host = if MODE.get(words[0]) == 0 {
            0
        } else {
            HAD.mask() | HOST_ROOT.mask()
        };
        if words[0] & GUEST_VALID == 0 {
            return [TRANSLATED | host, ALWAYS[1], ALWAYS[2], ALWAYS[3]];
        }
        [
            TRANSLATED | host | GUEST[0],
            ALWAYS[1] | GUEST[1],
            ALWAYS[2] | GUEST[2],
            ALWAYS[3],
        ]
    }
}

impl Rules<4> for UpdateRules {
    fn used(&self, entry: &[u64; 4]) -> [u64; 4] {
        Dte::used(*entry)
    }

    /// An entry without V acts too: it lets requests pass. What blocks is V without TV.
    fn is_valid(&self, entry: &[u64; 4]) -> bool {
        entry[0] & VALID == 0 || entry[0] & TRANSLATION_VALID != 0
    }

    fn unit(&self) -> Unit {
        self.unit
    }

    fn fetch(&self) -> Fetch {
        Fetch::Whole
    }

    /// Whether a page fault is logged matters to nobody while the entry changes.
    fn safe(&self, _current: &[u64; 4], _target: &[u64; 4]) -> [u64; 4] {
        [0, SUPPRESS_REPEATED | SUPPRESS_ALL, 0, 0]
    }

    fn preserved(&self) -> [u64; 4] {
        [0, 0, Dte::INTERRUPT_FIELDS, 0]
    }

    fn blocked(&self) -> u64 {
        VALID
    }
}
