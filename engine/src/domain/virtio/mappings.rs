//! What one domain should translate, and what of it the device has.
//!
//! ```text
//!            send MAP              answered
//!   Missing ----------> Coming ---------------> Present
//!      ^                   | refused             |  send UNMAP
//!      |<------------------'                     v
//!      |<------------------------------------- Going
//! ```
//!
//! A mapping that is unmapped for good has a ticket; it goes when the device does not have it.

use iopt_formats::command::virtio::Access;
use iopt_formats::{Iova, IovaRange, Oa};

use crate::domain::virtio::{RequestError, VirtioError};
use crate::intervals::disjoint::{DisjointList, InsertError};

/// Whether the device has a mapping.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Presence {
    /// It has not.
    Missing,
    /// A `MAP` is under way.
    Coming,
    /// It has, or may have.
    Present,
    /// An `UNMAP` is under way.
    Going,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Mapping {
    pub(super) oa: Oa,
    pub(super) access: Access,
    pub(super) presence: Presence,
    /// Names the unmap that ended it.
    pub(super) ticket: Option<u64>,
    /// Whether it is nobody's to unmap.
    pub(super) is_direct: bool,
    /// How many replace it at this moment (V3).
    pub(super) busy_count: u32,
    /// Tag of the request that is or was under way for it (V5).
    pub(super) tag: u64,
    /// What the device said last, if it was not that all is well.
    pub(super) error: Option<RequestError>,
}

impl Mapping {
    /// Returns whether the device has it for certain.
    pub(super) fn is_there(&self) -> bool {
        self.presence == Presence::Present && self.error.is_none()
    }
}

/// What an unmap found.
#[derive(Default)]
pub(super) struct Ended {
    pub(super) bytes: u64,
    /// From the first to the last mapping that the device is to forget now.
    pub(super) hull: Option<IovaRange>,
}

#[derive(Debug)]
pub(super) struct Mappings {
    list: DisjointList<Mapping>,
    /// Whether something that was ended may have no `UNMAP` under way.
    pub(super) has_stuck: bool,
    /// Whether any was ever direct.
    has_direct: bool,
}

impl Mappings {
    pub(super) const fn new() -> Self {
        Self {
            list: DisjointList::new(),
            has_stuck: false,
            has_direct: false,
        }
    }

    /// Puts in a mapping that the device does not have yet. `None` means that there is no memory.
    pub(super) fn insert(
        &mut self,
        range: IovaRange,
        oa: Oa,
        access: Access,
        is_direct: bool,
    ) -> Result<(), Option<VirtioError>> {
        let mapping = Mapping {
            oa,
            access,
            presence: Presence::Missing,
            ticket: None,
            is_direct,
            busy_count: 0,
            tag: 0,
            error: None,
        };
        let (start, last) = bounds(range);
        let inserted = self.list.insert(start, last, mapping);
        self.has_direct |= is_direct && inserted.is_ok();
        inserted.map_err(|error| match error {
            InsertError::OutOfMemory => None,
            InsertError::Overlap { start, last } => Some(VirtioError::Occupied {
                with: range_of(start, last),
            }),
        })
    }

    /// Returns the mappings that share an address with `range`, in rising order.
    pub(super) fn in_range(&self, range: IovaRange) -> impl Iterator<Item = (IovaRange, &Mapping)> {
        let (start, last) = bounds(range);
        let found = self.list.overlapping(start, last);
        found.map(|(start, last, mapping)| (range_of(start, last), mapping))
    }

    /// Calls `change` with the mappings that share an address with `range`, in rising order, and removes
    /// those for which it returns false.
    pub(super) fn change(
        &mut self,
        range: IovaRange,
        mut change: impl FnMut(IovaRange, &mut Mapping) -> bool,
    ) {
        let (mut start, last) = bounds(range);
        while let Some(place) = self.list.find(start, last) {
            let (first, reach) = self.list.bounds(place);
            if !change(range_of(first, reach), self.list.get_mut(place)) {
                self.list.remove(place);
            }
            match reach.checked_add(1) {
                Some(next) if next <= last => start = next,
                _ => return,
            }
        }
    }

    /// Returns whether the device has all mappings of `range` for certain.
    pub(super) fn are_there(&self, range: IovaRange) -> bool {
        self.in_range(range).all(|(_, mapping)| mapping.is_there())
    }

    /// Returns a mapping that reaches out of `range`.
    pub(super) fn divided_by(&self, range: IovaRange) -> Option<IovaRange> {
        let ends = [range.start(), range.last()];
        let at_ends = ends.map(|end| IovaRange::new(end, end).unwrap_or(range));
        at_ends
            .into_iter()
            .flat_map(|end| self.in_range(end).map(|(mapping, _)| mapping))
            .find(|mapping| !range.contains(*mapping))
    }

    /// Returns the first mapping in `range` that the device should have and has not, with what it is.
    pub(super) fn first_missing(&self, range: IovaRange) -> Option<(IovaRange, Mapping)> {
        self.in_range(range)
            .find(|(_, mapping)| {
                let is_wanted = mapping.ticket.is_none() && mapping.busy_count == 0;
                is_wanted && mapping.presence == Presence::Missing
            })
            .map(|(range, mapping)| (range, *mapping))
    }

    /// Ends the mappings of `range`, all of them inside, but for direct ones. Those that the device does not have
    /// are gone. Calls `each` with the tickets of the others, be it that they were ended before.
    pub(super) fn end(
        &mut self,
        range: IovaRange,
        ticket: u64,
        mut each: impl FnMut(u64),
    ) -> Ended {
        let mut ended = Ended::default();
        let mut has_stuck = false;
        self.change(range, |range, mapping| {
            if mapping.is_direct {
                return true;
            }
            if mapping.ticket.is_none() {
                let len = range.len_minus_one().saturating_add(1);
                ended.bytes = ended.bytes.saturating_add(len);
                match mapping.presence {
                    Presence::Missing => return false,
                    Presence::Present => ended.hull = Some(hull(ended.hull, range)),
                    // Only the answer tells whether there is something to unmap.
                    Presence::Coming | Presence::Going => has_stuck = true,
                }
            }
            each(*mapping.ticket.get_or_insert(ticket));
            true
        });
        self.has_stuck |= has_stuck;
        ended
    }

    /// Returns the first mapping in `range` that was not ended.
    pub(super) fn first_wanted(&self, range: IovaRange) -> Option<IovaRange> {
        let mut all = self.in_range(range);
        let found = all.find(|(_, mapping)| mapping.ticket.is_none());
        found.map(|(range, _)| range)
    }

    /// Returns whether there is exactly this direct mapping.
    pub(super) fn has_same_direct(&self, range: IovaRange, oa: Oa, access: Access) -> bool {
        self.has_direct
            && self.in_range(range).any(|(of, mapping)| {
                mapping.is_direct && (of, mapping.oa, mapping.access) == (range, oa, access)
            })
    }

    /// Makes a direct mapping one that can be ended.
    pub(super) fn give_up_direct(&mut self, range: IovaRange) {
        self.change(range, |_, mapping| {
            mapping.is_direct = false;
            true
        });
    }

    /// Returns the first part of `range` in which no mapping is direct.
    pub(super) fn first_indirect(&self, range: IovaRange) -> Option<IovaRange> {
        if !self.has_direct {
            return Some(range);
        }
        let mut start = range.start();
        let direct = self
            .in_range(range)
            .filter(|(_, mapping)| mapping.is_direct);
        for (direct, _) in direct {
            if start < direct.start() {
                return IovaRange::new(start, Iova::new(direct.start().get() - 1));
            }
            start = Iova::new(direct.last().get().checked_add(1)?);
        }
        IovaRange::new(start, range.last())
    }

    /// Begins or ends to replace the mappings of `range`.
    pub(super) fn set_busy(&mut self, range: IovaRange, is_busy: bool) {
        self.change(range, |_, mapping| {
            let count = mapping.busy_count;
            mapping.busy_count = if is_busy {
                count + 1
            } else {
                count.saturating_sub(1)
            };
            true
        });
    }

    /// Notes that nobody knows what the device has of the mappings of `range`, or, with nothing for an
    /// error, that it has them in spite of what it said.
    pub(super) fn set_doubt(&mut self, range: IovaRange, error: Option<RequestError>) {
        self.change(range, |_, mapping| {
            if mapping.presence == Presence::Missing && error.is_some() {
                mapping.presence = Presence::Present;
            }
            mapping.error = error;
            true
        });
    }

    /// Returns the first mapping in `range` of which nobody knows whether the device has it.
    pub(super) fn first_doubtful(&self, range: IovaRange) -> Option<IovaRange> {
        let mut all = self.in_range(range);
        let found = all.find(|(_, mapping)| {
            let is_free = mapping.ticket.is_none() && mapping.busy_count == 0;
            is_free && mapping.presence == Presence::Present && mapping.error.is_some()
        });
        found.map(|(range, _)| range)
    }

    /// Notes that the `MAP` of a mapping that is missing is under way.
    pub(super) fn begin_map(&mut self, range: IovaRange, tag: u64) {
        self.change(range, |_, mapping| {
            if mapping.presence == Presence::Missing && mapping.ticket.is_none() {
                mapping.presence = Presence::Coming;
                mapping.tag = tag;
                mapping.error = None;
            }
            true
        });
    }

    /// Notes that an `UNMAP` of what the device has of `range` is under way: of what was ended, or of what was
    /// not. Returns whether there is anything.
    pub(super) fn begin_unmap(&mut self, range: IovaRange, tag: u64, is_ended: bool) -> bool {
        let mut has_some = false;
        self.change(range, |_, mapping| {
            if mapping.presence == Presence::Present && mapping.ticket.is_some() == is_ended {
                mapping.presence = Presence::Going;
                mapping.tag = tag;
                mapping.error = None;
                has_some = true;
            }
            true
        });
        has_some
    }

    /// Notes the answer to a `MAP`.
    pub(super) fn mapped(&mut self, range: IovaRange, tag: u64, result: Result<(), RequestError>) {
        let mut has_stuck = false;
        self.change(range, |_, mapping| {
            if mapping.presence != Presence::Coming || mapping.tag != tag {
                return true;
            }
            mapping.error = result.err();
            // What the device may have done is undone as if it had.
            let is_missing = result.is_err_and(RequestError::is_without_effect);
            mapping.presence = if is_missing {
                Presence::Missing
            } else {
                Presence::Present
            };
            has_stuck |= mapping.ticket.is_some();
            !is_missing || mapping.ticket.is_none()
        });
        self.has_stuck |= has_stuck;
    }

    /// Notes the answer to an `UNMAP`.
    pub(super) fn unmapped(
        &mut self,
        range: IovaRange,
        tag: u64,
        result: Result<(), RequestError>,
    ) {
        let mut has_stuck = false;
        // Without the domain there are no mappings, either.
        let is_gone = matches!(result, Ok(()) | Err(RequestError::NoEntry));
        self.change(range, |_, mapping| {
            if mapping.presence != Presence::Going || mapping.tag != tag {
                return true;
            }
            mapping.error = result.err();
            mapping.presence = if is_gone {
                Presence::Missing
            } else {
                Presence::Present
            };
            has_stuck |= mapping.ticket.is_some();
            !is_gone || mapping.ticket.is_none()
        });
        self.has_stuck |= has_stuck;
    }

    /// Notes that the device has dropped everything.
    pub(super) fn dropped(&mut self) {
        self.change(IovaRange::FULL, |_, mapping| {
            mapping.presence = Presence::Missing;
            mapping.error = None;
            mapping.ticket.is_none()
        });
        self.has_stuck = false;
    }

    /// Returns the mappings of `range` that were ended with one of `tickets`, which rise, and may have no `UNMAP`
    /// under way, in rising order.
    pub(super) fn ended(
        &self,
        range: IovaRange,
        tickets: &[u64],
    ) -> impl Iterator<Item = (IovaRange, &Mapping)> {
        let looked_at = self.has_stuck.then(|| self.in_range(range));
        let all = looked_at.into_iter().flatten();
        all.filter(|(_, mapping)| {
            let ticket = mapping.ticket;
            ticket.is_some_and(|ticket| is_one(ticket, tickets))
        })
    }

    /// Returns whether any of them is left, and notes if nothing at all is that was ended.
    pub(super) fn has_ended(&mut self, tickets: &[u64]) -> bool {
        let has_ended = self.ended(IovaRange::FULL, tickets).next().is_some();
        if self.has_stuck && !has_ended {
            let is_ended = |(_, mapping): (_, &Mapping)| mapping.ticket.is_some();
            let has_others = self.in_range(IovaRange::FULL).any(is_ended);
            self.has_stuck = has_others;
        }
        has_ended
    }

    /// Divides the mapping `range` at `borders`, which rise and lie behind its start and inside. `None` means that
    /// there is no memory: the mapping is whole then.
    pub(super) fn divide(
        &mut self,
        range: IovaRange,
        borders: impl Iterator<Item = u64>,
    ) -> Option<()> {
        let (start, last) = bounds(range);
        let place = self.list.find_exact(start, last)?;
        let whole = *self.list.get(place);
        let mut end = last;
        let mut from = start;
        let mut is_done = true;
        // The upper parts are put in one by one, behind a first part that shrinks before.
        for border in borders {
            if from == start {
                self.list.set_last(place, border - 1);
                end = border - 1;
            } else if !self.insert_part(start, from, border - 1, whole) {
                is_done = false;
                break;
            }
            from = border;
        }
        if is_done && from != start {
            is_done = self.insert_part(start, from, last, whole);
        }
        if is_done {
            return Some(());
        }
        let parts = IovaRange::new(Iova::new(end + 1), range.last())?;
        self.change(parts, |_, _| false);
        let place = self.list.find_exact(start, end)?;
        self.list.set_last(place, last);
        None
    }

    /// Makes one mapping of the parts of `range` again, which begins at `oa`.
    pub(super) fn join(&mut self, range: IovaRange, oa: Oa) {
        let (start, last) = bounds(range);
        let Some(place) = self.list.find(start, last) else {
            return;
        };
        let (_, end) = self.list.bounds(place);
        let rest = end.checked_add(1).filter(|&rest| rest <= last);
        if let Some(rest) = rest {
            self.change(range_of(rest, last), |_, _| false);
        }
        if let Some(place) = self.list.find_exact(start, end) {
            self.list.get_mut(place).oa = oa;
            self.list.set_last(place, last);
        }
    }

    fn insert_part(&mut self, start: u64, from: u64, last: u64, whole: Mapping) -> bool {
        let oa = Oa::new(whole.oa.get() + (from - start));
        let part = Mapping { oa, ..whole };
        self.list.insert(from, last, part).is_ok()
    }
}

/// Returns whether a ticket is one of `tickets`, which rise.
pub(super) fn is_one(ticket: u64, tickets: &[u64]) -> bool {
    tickets.binary_search(&ticket).is_ok()
}

/// Returns what of `whole` is behind `part`.
pub(super) fn behind(part: IovaRange, whole: IovaRange) -> Option<IovaRange> {
    IovaRange::new(part.last().checked_add(1)?, whole.last())
}

/// Returns the range that holds both.
pub(super) fn hull(first: Option<IovaRange>, second: IovaRange) -> IovaRange {
    let Some(first) = first else {
        return second;
    };
    let start = first.start().min(second.start());
    IovaRange::new(start, first.last().max(second.last())).unwrap_or(second)
}

const fn bounds(range: IovaRange) -> (u64, u64) {
    (range.start().get(), range.last().get())
}

fn range_of(start: u64, last: u64) -> IovaRange {
    IovaRange::new(Iova::new(start), Iova::new(last)).expect("no interval ends before it starts")
}
