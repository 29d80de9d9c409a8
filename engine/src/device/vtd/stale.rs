//! What hardware has to forget each time that it is told about an entry.

use smallvec::SmallVec;

use crate::invalidation::SyncError;

/// What a sync is about.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Told<T> {
    /// Nobody knows which entries hardware may have cached.
    Everything,
    /// These, none of them if no entry was present.
    Entries {
        entries: SmallVec<[T; 2]>,
        /// Also what was translated by them.
        has_translations: bool,
    },
}

/// An entry that changes from `old` to `new`, which are what names it in caches, or nothing if it is not
/// present.
///
/// If the change breaks, the first sync stands behind the store that took the old entry away, and the second
/// one behind the store that made the new one. If a sync fails, the entry is made to block and hardware is
/// asked again, about both.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stale<T> {
    pub(super) old: Option<T>,
    pub(super) new: Option<T>,
    pub(super) is_breaking: bool,
    /// Hardware may hold other entries than the old one.
    pub(super) is_unknown: bool,
    turn: Turn,
}

#[derive(Clone, Copy, Debug)]
enum Turn {
    First,
    Next,
    /// One failed.
    Again,
}

impl<T: Copy> Stale<T> {
    pub(super) const fn new(old: Option<T>, new: Option<T>) -> Self {
        Self {
            old,
            new,
            is_breaking: false,
            is_unknown: false,
            turn: Turn::First,
        }
    }

    /// Has `tell` carry out the next sync.
    pub(super) fn sync(
        &mut self,
        tell: impl FnOnce(Told<T>) -> Result<(), SyncError>,
    ) -> Result<(), SyncError> {
        let (old, new) = (self.old, self.new);
        let of = |entries: SmallVec<[T; 2]>, has_translations| Told::Entries {
            entries,
            has_translations,
        };
        let told = match self.turn {
            _ if self.is_unknown => Told::Everything,
            Turn::Again => of(old.into_iter().chain(new).collect(), true),
            // Whatever the new one translated meanwhile is right.
            Turn::Next if self.is_breaking => of(new.into_iter().collect(), false),
            Turn::First | Turn::Next => of(old.into_iter().collect(), true),
        };
        let told = tell(told);
        self.turn = match (self.turn, &told) {
            (Turn::First | Turn::Next, Ok(())) => Turn::Next,
            _ => Turn::Again,
        };
        told
    }
}
