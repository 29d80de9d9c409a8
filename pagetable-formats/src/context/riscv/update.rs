//! Changing contexts under hardware.
//!
//! Source: sections "Caching in-memory data structures", "Updating in-memory data structure entries" and
//! "Guidelines for invalidations".
//!
//! The specification promises four things. Hardware reads and stores at least 8 bytes at once where any hart
//! is of RV64. It may read an entry at any time and keep what it read, until it is told. Between two values
//! of a field that fit the others, one store switches; else V is cleared, and hardware told, before anything
//! else changes. And it must not keep entries that are not valid: "Software need not perform invalidations
//! when changing the V bit in these entries from 0 to 1." The last one would not hold if words read beside a
//! clear V could meet a set V that was read later. So [`Fetch::ValidFirst`] is what hardware does: nothing of
//! an entry that is not valid is used later, and nothing is assumed of the order within a valid one.
//!
//! That hardware is told of entries that become valid, too, is for emulators, which may ask for that
//! ("Guidelines for emulating an IOMMU").

use super::{ContextFormat, DeviceContext, ProcessContext, VALID};
use crate::context::update::{Fetch, Rules};

/// How contexts change: device contexts in extended format have 8 words, in base format 4, process
/// contexts 2.
///
/// V is written last where it is set and first where it is cleared. Hardware is told of every change.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct UpdateRules;

impl Rules<8> for UpdateRules {
    fn used(&self, entry: &[u64; 8]) -> [u64; 8] {
        DeviceContext::used(*entry, ContextFormat::Extended)
    }

    fn is_valid(&self, entry: &[u64; 8]) -> bool {
        entry[0] & VALID != 0
    }

    fn fetch(&self) -> Fetch {
        Fetch::ValidFirst
    }

    fn safe(&self, _current: &[u64; 8], _target: &[u64; 8]) -> [u64; 8] {
        DeviceContext::SAFE
    }
}

impl Rules<4> for UpdateRules {
    fn used(&self, entry: &[u64; 4]) -> [u64; 4] {
        let [tc, iohgatp, ta, fsc] = *entry;
        let words = [tc, iohgatp, ta, fsc, 0, 0, 0, 0];
        let [tc, iohgatp, ta, fsc, ..] = DeviceContext::used(words, ContextFormat::Base);
        [tc, iohgatp, ta, fsc]
    }

    fn is_valid(&self, entry: &[u64; 4]) -> bool {
        entry[0] & VALID != 0
    }

    fn fetch(&self) -> Fetch {
        Fetch::ValidFirst
    }

    fn safe(&self, _current: &[u64; 4], _target: &[u64; 4]) -> [u64; 4] {
        let [tc, iohgatp, ta, fsc, ..] = DeviceContext::SAFE;
        [tc, iohgatp, ta, fsc]
    }
}

impl Rules<2> for UpdateRules {
    fn used(&self, entry: &[u64; 2]) -> [u64; 2] {
        ProcessContext::used(*entry)
    }

    fn is_valid(&self, entry: &[u64; 2]) -> bool {
        entry[0] & VALID != 0
    }

    fn fetch(&self) -> Fetch {
        Fetch::ValidFirst
    }
}
