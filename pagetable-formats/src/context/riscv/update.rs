//! Changing contexts under hardware.
//!
//! Source: section "Guidelines for invalidations" and those on caching of directories.

use super::{ContextFormat, DeviceContext, ProcessContext, VALID};
use crate::context::update::{Fetch, Rules};

/// How contexts change: device contexts in extended format have 8 words, in base format 4, process
/// contexts 2.
///
/// V is written last where it is set and first where it is cleared. Hardware may keep contexts that
/// are not valid, so that it is told of every change.
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
