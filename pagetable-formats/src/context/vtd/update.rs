//! Changing entries under hardware.
//!
//! Source: VT-d specification, revision 4.1, sections 6.2 (what is cached of entries) and 9.3 to 9.6.

use super::{LegacyContext, PRESENT, PasidEntry, ScalableContext};
use crate::context::update::{Fetch, Rules};

/// How context and PASID entries change: legacy context entries have 2 words, scalable ones 4,
/// PASID entries 8.
///
/// P is written last where it is set and first where it is cleared, and stores are of 8 bytes: wider
/// ones that some hardware reads in one piece would save syncs, not disruptions.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct UpdateRules {
    /// Whether hardware caches entries that are not present (`CAP_REG.CM`).
    pub has_caching_mode: bool,
}

/// Implements the rules for entries of as many words as `SAFE` has.
macro_rules! rules {
    ($($entry:ident: $words:literal,)+) => {
        $(
            impl Rules<$words> for UpdateRules {
                fn used(&self, entry: &[u64; $words]) -> [u64; $words] {
                    $entry::used(*entry)
                }

                fn is_valid(&self, entry: &[u64; $words]) -> bool {
                    entry[0] & PRESENT != 0
                }

                fn fetch(&self) -> Fetch {
                    Fetch::ValidFirst
                }

                fn keeps_invalid(&self) -> bool {
                    self.has_caching_mode
                }

                fn safe(&self, _current: &[u64; $words], _target: &[u64; $words]) -> [u64; $words] {
                    $entry::SAFE
                }
            }
        )+
    };
}

rules! {
    LegacyContext: 2,
    ScalableContext: 4,
    PasidEntry: 8,
}
