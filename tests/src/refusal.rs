//! Why operations are refused, in the words of the model.

use iopt::radix::{MapError, UnmapError};
use iopt_formats::{Format, Iova, IovaRange, PageSize};

use crate::check::Mismatch;
use crate::model::Model;

/// A reason to refuse an operation. Several may apply; which of them an operation reports is its
/// own business.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Refusal {
    /// An address or length is no multiple of the granule.
    Unaligned,
    /// The range leaves the claim.
    OutsideClaim,
    /// The output passes the width of output addresses.
    OaWidth,
    /// No entry grants these rights.
    Prot,
    /// The first address of the range that is mapped.
    Occupied(Iova),
    /// The first address of the range that is not mapped.
    Hole(Iova),
    /// An end of the range lies inside the entry of this start and size.
    Splits(Iova, PageSize),
    /// The memory type of the entry that starts here would change.
    Memory(Iova),
    /// The runs of a list pass the end of the space.
    Wraps,
}

/// Returns why a map was refused, in the words of the model.
pub(crate) fn map_reason(error: &MapError) -> Option<Refusal> {
    match *error {
        MapError::Unaligned { .. } => Some(Refusal::Unaligned),
        MapError::OutsideClaim { .. } => Some(Refusal::OutsideClaim),
        MapError::OaWidth { .. } => Some(Refusal::OaWidth),
        MapError::Prot { .. } => Some(Refusal::Prot),
        MapError::Wraps { .. } => Some(Refusal::Wraps),
        MapError::Occupied { iova } => Some(Refusal::Occupied(iova)),
        _ => None,
    }
}

/// Returns why an operation on the whole entries of `range` was refused, in the words of the model.
pub(crate) fn unmap_reason<F: Format>(
    model: &Model<F>,
    range: IovaRange,
    error: &UnmapError,
) -> Option<Refusal> {
    match *error {
        UnmapError::Unaligned { .. } => Some(Refusal::Unaligned),
        UnmapError::OutsideClaim { .. } => Some(Refusal::OutsideClaim),
        UnmapError::Hole { iova } => Some(Refusal::Hole(iova)),
        UnmapError::Splits { iova, size } if range.contains_addr(iova) => model
            .lookup(iova)
            .map(|entry| Refusal::Splits(entry.start, size)),
        _ => None,
    }
}

/// Checks that an operation that succeeded was allowed.
pub(crate) fn expect_allowed(what: &str, refusals: &[Refusal]) -> Result<(), Mismatch> {
    if refusals.is_empty() {
        return Ok(());
    }
    Err(Mismatch::new(format!(
        "{what} succeeded, but should fail: {refusals:x?}"
    )))
}

/// Checks that an operation failed for one of the reasons that apply.
pub(crate) fn expect_refused(
    reason: Option<Refusal>,
    refusals: &[Refusal],
    error: &dyn std::error::Error,
) -> Result<(), Mismatch> {
    if reason.is_some_and(|reason| refusals.contains(&reason)) {
        return Ok(());
    }
    Err(Mismatch::new(format!(
        "failed with \"{error}\", expected one of {refusals:x?}"
    )))
}
