//! Which records of hardware were there before somebody left.
//!
//! A domain leaves a place, and records of what was asked of it lie in the queue of the instance still. The next domain
//! of the place must not be asked for them: their addresses are another's. No record says when it came, so its reader
//! does, by *rounds*: a round begins before the reader looks where the queue ends, and is finished when all up to
//! there is taken in. What was there when somebody left is read in a round that had begun, or in the next one.
//!
//! ```text
//! reader:   begin 7 . end of queue? . take . take . finish 7 . begin 8 . end of queue? . take . finish 8
//! records:                  old                        old                                  new
//! device:                              leaves: mark 7                  another one comes
//!                                      |------------------- in doubt ---------------------------|
//! ```
//!
//! # Invariants
//!
//! - **F5** (no mistaken identity): what was in the queue when a domain left a place, or a device left its IDs, is
//!   handed over to no domain that came after.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::any::Any;
use core::fmt;

use iopt_formats::command::Pasid;

use crate::device::fault::queue::CountError;
use crate::sync::{Mutex, ROUNDS};

/// The rounds of who reads a queue of records.
#[derive(Debug)]
pub struct Rounds {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    begun: u64,
    finished: u64,
    /// The first and the last time that somebody waits to be passed.
    awaited: Option<(u64, u64)>,
    open_count: usize,
    /// Several were open at once: which of them takes what is in the queue nobody knows.
    is_mixed: bool,
}

/// A point in time, as rounds tell it.
#[derive(Clone, Copy, Debug, Default, Eq, Ord, PartialEq, PartialOrd)]
pub(super) struct Mark(u64);

impl Default for Rounds {
    fn default() -> Self {
        Self::new()
    }
}

impl Rounds {
    /// Creates those of a queue that nobody has read.
    pub fn new() -> Self {
        Self {
            state: Mutex::new(&ROUNDS, State::default()),
        }
    }

    /// Begins a round. Rounds that overlap count for nothing: a queue has one reader at a time.
    pub(super) fn begin(&self) -> Open<'_> {
        let mut state = self.state.lock();
        state.begun += 1;
        state.is_mixed |= state.open_count > 0;
        state.open_count += 1;
        Open {
            rounds: self,
            number: state.begun,
        }
    }

    /// Returns what the time is, to be waited for.
    pub(super) fn mark(&self) -> Mark {
        let mut state = self.state.lock();
        let now = state.begun;
        let first = state.awaited.map_or(now, |(first, _)| first);
        state.awaited = Some((first, now));
        Mark(now)
    }

    /// Returns whether all has been read that was there at a time.
    pub(super) fn has_passed(&self, mark: Mark) -> bool {
        self.state.lock().finished > mark.0
    }
}

/// A round that has begun.
#[derive(Debug)]
pub(super) struct Open<'r> {
    rounds: &'r Rounds,
    number: u64,
}

impl Open<'_> {
    /// Says that all was taken in that was there when it began. Returns whether somebody waits for that.
    pub(super) fn finish(self) -> bool {
        let mut state = self.rounds.state.lock();
        if state.is_mixed {
            return false;
        }
        state.finished = self.number;
        let passed = state.awaited.filter(|&(first, _)| first < self.number);
        if let Some((_, last)) = passed {
            state.awaited = (last == self.number).then_some((last, last));
        }
        passed.is_some()
    }
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        let mut state = self.rounds.state.lock();
        state.open_count -= 1;
        state.is_mixed &= state.open_count > 0;
    }
}

/// What a record answers to whom it is in doubt for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Doubt {
    /// Who asks is to try again: what it meets then is the new domain's.
    Retry,
    /// It is given up: what waits since before would go on in the new domain.
    GiveUp,
}

/// The queues in which records of a device come, and who left it with records unread.
#[derive(Default)]
pub(super) struct Doubts {
    sources: Vec<Source>,
    entries: Vec<Unread>,
}

/// A queue.
struct Source {
    port: usize,
    /// Of transactions that wait, not of groups.
    has_stalls: bool,
    rounds: Arc<Rounds>,
    /// What came before is in doubt at all places.
    all: Option<Mark>,
}

/// A place that was left.
pub(super) struct Unread {
    source: usize,
    place: Option<Pasid>,
    mark: Mark,
    doubt: Doubt,
    /// What must not be used otherwise meanwhile.
    _kept: Option<Kept>,
}

/// Something that is kept until all that was asked under it is read.
pub type Kept = Arc<dyn Any + Send + Sync>;

impl Doubts {
    /// Enters a queue. What is there already may be another device's if `left` has not passed.
    pub(super) fn enter(
        &mut self,
        port: usize,
        has_stalls: bool,
        rounds: &Arc<Rounds>,
        left: Option<Mark>,
    ) -> Result<(), CountError> {
        self.sources.try_reserve(1)?;
        self.sources.push(Source {
            port,
            has_stalls,
            rounds: Arc::clone(rounds),
            all: left,
        });
        Ok(())
    }

    /// Gets room for as many places to be left.
    pub(super) fn reserve(&mut self, place_count: usize) -> Result<(), CountError> {
        let count = self.sources.len().saturating_mul(place_count);
        Ok(self.entries.try_reserve(count)?)
    }

    /// Notes that what is in the queues for a place is not for who comes next.
    pub(super) fn leave(&mut self, place: Option<Pasid>, doubt: Doubt, kept: Option<&Kept>) {
        for (index, source) in self.sources.iter_mut().enumerate() {
            let mark = source.rounds.mark();
            if self.entries.len() < self.entries.capacity() {
                self.entries.push(Unread {
                    source: index,
                    place,
                    mark,
                    doubt,
                    _kept: kept.cloned(),
                });
            } else {
                // Never without room, and safe all the same.
                source.all = Some(mark);
                core::mem::forget(kept.cloned());
            }
        }
    }

    /// Returns whether a record is in doubt.
    pub(super) fn find(
        &self,
        port: usize,
        has_stalls: bool,
        place: Option<Pasid>,
    ) -> Option<Doubt> {
        let mut sources = self.sources.iter();
        let index =
            sources.position(|source| source.port == port && source.has_stalls == has_stalls)?;
        let source = &self.sources[index];
        let is_open = |mark: Mark| !source.rounds.has_passed(mark);
        let entries = self.entries.iter();
        let entries = entries.filter(|it| it.source == index && it.place == place);
        let mut doubts = entries.filter(|it| is_open(it.mark)).map(|it| it.doubt);
        let all = source.all.filter(|&mark| is_open(mark));
        let first = all.map(|_| Doubt::GiveUp).or_else(|| doubts.next())?;
        let gives_up = first == Doubt::GiveUp || doubts.any(|it| it == Doubt::GiveUp);
        // What is asked for by groups is asked for again, and by nobody who waits.
        Some(if has_stalls && gives_up {
            Doubt::GiveUp
        } else {
            Doubt::Retry
        })
    }

    /// Takes out something of which all is read, to be dropped without a lock.
    pub(super) fn take_passed(&mut self) -> Option<Unread> {
        let has_passed = |entry: &Unread| {
            let source = &self.sources[entry.source];
            source.rounds.has_passed(entry.mark)
        };
        let at = self.entries.iter().position(has_passed)?;
        Some(self.entries.swap_remove(at))
    }

    /// Returns how many entries there are.
    pub(super) const fn len(&self) -> usize {
        self.entries.len()
    }
}

impl fmt::Debug for Doubts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Doubts")
            .field("sources", &self.sources.len())
            .field("entries", &self.entries.len())
            .finish()
    }
}
