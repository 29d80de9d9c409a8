//! Ranges that nobody may map, and those that stay open for automatic choice.
//!
//! Domains reserve what lies outside of their apertures, devices their own windows; several may
//! reserve the same bytes. An allowed list, given by the user, says where automatic choice may go and
//! keeps owners from reserving there later.
//!
//! # Invariants
//!
//! - **V1** (apart): no byte is both reserved and allowed.
//! - **V2** (allowed): allowed ranges ascend, and a byte at least lies between two.

use alloc::vec::Vec;

use iopt_formats::{Iova, IovaRange};

use super::OutOfNodes;
use super::spans;
use super::tree::IntervalTree;

#[cfg(test)]
mod tests;

/// Why a range cannot be reserved. Nothing has changed.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub(crate) enum ReserveError {
    /// The user may rely on a byte of it.
    #[error("the range {range} overlaps {with}, which is allowed")]
    Allowed {
        /// The range to be reserved.
        range: IovaRange,
        /// The lowest allowed range that it overlaps; allowed neighbours count as one.
        with: IovaRange,
    },
    /// There is no memory.
    #[error(transparent)]
    OutOfMemory(#[from] OutOfNodes),
}

/// Why a list of allowed ranges is refused. The old list stays.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum AllowError {
    /// A range has one byte only.
    #[error("the range {range} has one byte only")]
    OneByte {
        /// The range.
        range: IovaRange,
    },
    /// Two ranges of the list share a byte.
    #[error("the allowed ranges {lower} and {upper} overlap")]
    Overlap {
        /// The one that begins first.
        lower: IovaRange,
        /// The other.
        upper: IovaRange,
    },
    /// A range shares a byte with a reservation.
    #[error("the range {range} overlaps {with}, which is reserved")]
    Reserved {
        /// The range of the list.
        range: IovaRange,
        /// The reservation.
        with: IovaRange,
    },
    /// There is no memory for a list of this length.
    #[error("no memory for {count} allowed ranges")]
    OutOfMemory {
        /// Ranges in the list.
        count: usize,
    },
}

/// Reserved ranges by owner, and the allowed list.
#[derive(Debug)]
pub(crate) struct Reservations<O> {
    reserved: IntervalTree<O>,
    allowed: Vec<IovaRange>,
}

impl<O: Copy + Eq> Reservations<O> {
    pub(crate) const fn new() -> Self {
        Self {
            reserved: IntervalTree::new(),
            allowed: Vec::new(),
        }
    }

    /// Reserves a range for `owner`, whatever else is reserved.
    ///
    /// # Errors
    ///
    /// Each leaves everything as it was:
    ///
    /// - [`ReserveError::Allowed`] if a byte of it is allowed;
    /// - [`ReserveError::OutOfMemory`].
    pub(crate) fn reserve(&mut self, range: IovaRange, owner: O) -> Result<(), ReserveError> {
        let above = self
            .allowed
            .partition_point(|allowed| allowed.last() < range.start());
        let met = self.allowed.get(above).copied();
        if let Some(with) = met.filter(|met| met.overlaps(range)) {
            return Err(ReserveError::Allowed { range, with });
        }
        self.reserved.try_reserve(1)?;
        self.reserved
            .insert(range.start().get(), range.last().get(), owner);
        Ok(())
    }

    /// Ends all reservations of `owner`. Cannot fail.
    pub(crate) fn release(&mut self, owner: O) {
        self.reserved.retain(|&other| other != owner);
    }

    /// Returns the reservation with the lowest start that shares a byte with `range`.
    pub(crate) fn is_reserved(&self, range: IovaRange) -> Option<IovaRange> {
        let (start, last) = (range.start().get(), range.last().get());
        let (_, start, last) = self.reserved.overlapping(start, last).next()?;
        IovaRange::new(Iova::new(start), Iova::new(last))
    }

    /// Replaces the allowed list, in any order; an empty one allows everything.
    ///
    /// # Errors
    ///
    /// Each leaves the old list as it was. What is wrong with the list itself comes before what
    /// is in its way:
    ///
    /// - [`AllowError::OutOfMemory`];
    /// - [`AllowError::OneByte`] for the first such range in the list;
    /// - [`AllowError::Overlap`] for the lowest two of the list that overlap;
    /// - [`AllowError::Reserved`] for the lowest range that a reservation overlaps.
    pub(crate) fn set_allowed(&mut self, list: &[IovaRange]) -> Result<(), AllowError> {
        let mut allowed = Vec::new();
        let count = list.len();
        let room = allowed.try_reserve_exact(count);
        room.map_err(|_| AllowError::OutOfMemory { count })?;
        if let Some(&range) = list.iter().find(|range| range.start() == range.last()) {
            return Err(AllowError::OneByte { range });
        }
        allowed.extend_from_slice(list);
        allowed.sort_unstable_by_key(|range| (range.start(), range.last()));
        if let Some((lower, upper)) = first_overlap(&allowed) {
            return Err(AllowError::Overlap { lower, upper });
        }
        let mut reserved = allowed
            .iter()
            .filter_map(|&range| Some((range, self.is_reserved(range)?)));
        if let Some((range, with)) = reserved.next() {
            return Err(AllowError::Reserved { range, with });
        }
        allowed.dedup_by(|upper, lower| {
            let union = neighbours(*lower, *upper);
            union.inspect(|&union| *lower = union).is_some()
        });
        self.allowed = allowed;
        Ok(())
    }

    /// Returns all reservations with their owners.
    pub(crate) fn reserved(&self) -> impl Iterator<Item = (IovaRange, O)> {
        let all = self.reserved.overlapping(0, u64::MAX);
        all.filter_map(|(at, start, last)| {
            let range = IovaRange::new(Iova::new(start), Iova::new(last))?;
            Some((range, *self.reserved.get(at)))
        })
    }

    /// Returns the allowed list, in order, of which neighbours count as one.
    pub(crate) fn allowed(&self) -> &[IovaRange] {
        &self.allowed
    }

    /// Returns the parts of the 64-bit space that nobody reserved, as long as they can be, lowest
    /// first. What is allowed makes no difference.
    pub(crate) fn iova_ranges(&self) -> impl Iterator<Item = IovaRange> {
        self.holes(IovaRange::FULL)
    }

    /// Returns where automatic choice may go, lowest first: the allowed ranges, of which neighbours
    /// count as one and none is reserved; without any, what is not reserved of `default`.
    pub(crate) fn windows(&self, default: IovaRange) -> impl Iterator<Item = IovaRange> {
        let default = self.allowed.is_empty().then(|| self.holes(default));
        let allowed = self.allowed.iter().copied();
        allowed.chain(default.into_iter().flatten())
    }

    fn holes(&self, range: IovaRange) -> impl Iterator<Item = IovaRange> {
        let (start, last) = (range.start().get(), range.last().get());
        let spans = spans::covered_spans(&self.reserved, start, last);
        spans
            .filter(|span| !span.is_covered)
            .filter_map(|span| IovaRange::new(Iova::new(span.start), Iova::new(span.last)))
    }
}

/// Returns the first two of a sorted list that overlap.
fn first_overlap(sorted: &[IovaRange]) -> Option<(IovaRange, IovaRange)> {
    let pairs = sorted.windows(2).map(|pair| (pair[0], pair[1]));
    pairs
        .into_iter()
        .find(|(lower, upper)| lower.overlaps(*upper))
}

/// Returns both ranges as one if the upper begins where the lower ends.
fn neighbours(lower: IovaRange, upper: IovaRange) -> Option<IovaRange> {
    let next = lower.last().checked_add(1)?;
    let union = IovaRange::new(lower.start(), upper.last())?;
    (next == upper.start()).then_some(union)
}
