//! What a caller keeps of a submission.

/// One or more submissions to one [`Queue`](super::Queue), to be waited for there.
#[derive(Clone, Copy, Debug)]
#[must_use = "nothing is known to be invalidated until it is waited for"]
pub struct Ticket {
    first: u64,
    /// The position behind the last command.
    end: u64,
    /// The SYNC that was sent along, or that it joined.
    sync: Option<u64>,
}

impl Ticket {
    /// The ticket of no commands: they are done.
    pub const NOTHING: Self = Self {
        first: 0,
        end: 0,
        sync: None,
    };

    /// Returns the ticket of `count` commands from position `first` on, which a SYNC may follow.
    pub(super) const fn of_list(first: u64, count: u64, has_sync: bool) -> Self {
        let end = first + count;
        Self {
            first,
            end,
            sync: if has_sync { Some(end) } else { None },
        }
    }

    /// Returns one ticket for both, so that one wait serves them. It fails if either would, or if a
    /// command between them does.
    pub fn and(self, other: Self) -> Self {
        if self.is_nothing() {
            return other;
        }
        if other.is_nothing() {
            return self;
        }
        let end = self.end.max(other.end);
        Self {
            first: self.first.min(other.first),
            end,
            sync: self.sync.max(other.sync).filter(|&sync| sync >= end),
        }
    }

    /// Returns whether there is nothing to wait for.
    pub const fn is_nothing(&self) -> bool {
        self.first == self.end && self.sync.is_none()
    }

    pub(super) const fn first(&self) -> u64 {
        self.first
    }

    pub(super) const fn end(&self) -> u64 {
        self.end
    }

    /// Notes a SYNC that stands at or behind the end.
    pub(super) const fn join(&mut self, sync: u64) {
        self.sync = Some(sync);
    }

    pub(super) const fn own_sync(&self) -> Option<u64> {
        self.sync
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_joined_ticket_spans_both_and_keeps_a_sync_behind_both() {
        let fields = |ticket: Ticket| (ticket.first, ticket.end, ticket.sync);
        let later = || Ticket::of_list(5, 3, false);
        for (one, other, joined) in [
            (later(), Ticket::NOTHING, (5, 8, None)),
            (later(), Ticket::of_list(8, 1, true), (5, 9, Some(9))),
            (later(), Ticket::of_list(9, 0, true), (5, 9, Some(9))),
            // A SYNC that stands before the other's commands confirms them not.
            (later(), Ticket::of_list(2, 1, true), (2, 8, None)),
            (
                Ticket::of_list(2, 1, true),
                Ticket::of_list(4, 1, true),
                (2, 5, Some(5)),
            ),
        ] {
            let swapped = one.and(other);
            assert_eq!(fields(other.and(one)), joined);
            assert_eq!(fields(swapped), joined);
        }
        assert!(Ticket::NOTHING.and(Ticket::NOTHING).is_nothing());
    }
}
