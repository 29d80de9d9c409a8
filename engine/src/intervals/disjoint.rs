//! Closed intervals that do not overlap, each with a value.

use alloc::vec::Vec;

#[cfg(test)]
mod tests;

/// Intervals of one chunk at most. A chunk's last addresses are four cache lines, of which a binary
/// search touches two, and little moves to let one in.
const CAPACITY: usize = if cfg!(any(test, loom)) { 4 } else { 32 };

/// Disjoint intervals `start..=last`, in order. Neighbours stay separate. The unit, bytes or pages, is
/// the user's.
///
/// A tree of two levels: a sorted list of chunks, each a sorted list. An interval is found by two
/// binary searches over neighbouring words, and comes and goes by moving a part of one chunk, which
/// is faster than any balanced tree of single nodes up to millions of intervals: there is nothing to
/// balance, and next to nothing to chase.
#[derive(Debug)]
pub(crate) struct DisjointList<V> {
    /// The last address of each chunk.
    lasts: Vec<u64>,
    /// None is empty, but for one that is the only one.
    chunks: Vec<Chunk<V>>,
    /// Where the last one came in, unless the list changed since: buffers often go soon after they came,
    /// and others come beside them.
    recent: Place,
}

#[derive(Debug)]
struct Chunk<V> {
    lasts: Vec<u64>,
    /// First addresses and values.
    entries: Vec<(u64, V)>,
}

/// Where an interval stands, until the list changes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Place {
    chunk: usize,
    index: usize,
}

/// Why an interval is not put in.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum InsertError {
    /// It shares an address with others, of which this is the lowest.
    Overlap { start: u64, last: u64 },
    /// There is no memory.
    OutOfMemory,
}

impl<V> Chunk<V> {
    fn new() -> Option<Self> {
        let mut chunk = Self {
            lasts: Vec::new(),
            entries: Vec::new(),
        };
        chunk.lasts.try_reserve_exact(CAPACITY).ok()?;
        chunk.entries.try_reserve_exact(CAPACITY).ok()?;
        Some(chunk)
    }
}

impl<V> DisjointList<V> {
    pub(crate) const fn new() -> Self {
        Self {
            lasts: Vec::new(),
            chunks: Vec::new(),
            recent: Place { chunk: 0, index: 0 },
        }
    }

    /// Puts in `start..=last`; `start` is not above `last`.
    ///
    /// # Errors
    ///
    /// [`InsertError`]; nothing has changed then.
    pub(crate) fn insert(&mut self, start: u64, last: u64, value: V) -> Result<(), InsertError> {
        let mut place = self.place_of(start);
        if let Some((met, met_last)) = self.bounds_at(place)
            && met <= last
        {
            return Err(InsertError::Overlap {
                start: met,
                last: met_last,
            });
        }
        if place.chunk == self.chunks.len() {
            // Above all others: into the last chunk, if there is one.
            match self.chunks.len().checked_sub(1) {
                Some(chunk) => {
                    let index = self.chunks[chunk].lasts.len();
                    place = Place { chunk, index };
                }
                None => self.add_chunk(0).ok_or(InsertError::OutOfMemory)?,
            }
        }
        if self.chunks[place.chunk].lasts.len() == CAPACITY {
            place = self.divide(place).ok_or(InsertError::OutOfMemory)?;
        }
        let chunk = &mut self.chunks[place.chunk];
        chunk.lasts.insert(place.index, last);
        chunk.entries.insert(place.index, (start, value));
        self.refresh(place.chunk);
        self.recent = place;
        Ok(())
    }

    /// Takes an interval out. Needs no memory.
    pub(crate) fn remove(&mut self, place: Place) -> V {
        let chunk = &mut self.chunks[place.chunk];
        chunk.lasts.remove(place.index);
        let (_, value) = chunk.entries.remove(place.index);
        let len = chunk.lasts.len();
        if len == 0 && self.chunks.len() == 1 {
            // Lists of one interval that comes and goes keep their memory.
            self.lasts[0] = 0;
        } else if len == 0 {
            self.chunks.remove(place.chunk);
            self.lasts.remove(place.chunk);
        } else {
            self.refresh(place.chunk);
            if len <= CAPACITY / 4 {
                self.join(place.chunk);
            }
        }
        value
    }

    /// Returns the lowest interval that shares an address with `start..=last`.
    #[inline]
    pub(crate) fn find(&self, start: u64, last: u64) -> Option<Place> {
        let place = self.place_of(start);
        let (first, _) = self.bounds_at(place)?;
        (first <= last).then_some(place)
    }

    /// Returns the interval with exactly these bounds.
    pub(crate) fn find_exact(&self, start: u64, last: u64) -> Option<Place> {
        if self.bounds_at(self.recent) == Some((start, last)) {
            return Some(self.recent);
        }
        let place = self.place_of(start);
        (self.bounds_at(place)? == (start, last)).then_some(place)
    }

    /// Returns the next interval in order.
    pub(crate) fn next(&self, place: Place) -> Option<Place> {
        let Place { chunk, index } = place;
        if index + 1 < self.chunks[chunk].lasts.len() {
            let index = index + 1;
            return Some(Place { chunk, index });
        }
        let chunk = chunk + 1;
        (chunk < self.chunks.len()).then_some(Place { chunk, index: 0 })
    }

    /// Returns the intervals that share an address with `start..=last`, in order, each with its bounds.
    pub(crate) fn overlapping(
        &self,
        start: u64,
        last: u64,
    ) -> impl Iterator<Item = (u64, u64, &V)> {
        let mut next = self.find(start, last);
        core::iter::from_fn(move || {
            let place = next?;
            next = self.next(place);
            let (first, reach) = self.bounds(place);
            (first <= last).then(|| (first, reach, self.get(place)))
        })
    }

    #[inline]
    pub(crate) fn get(&self, place: Place) -> &V {
        &self.chunks[place.chunk].entries[place.index].1
    }

    pub(crate) fn get_mut(&mut self, place: Place) -> &mut V {
        &mut self.chunks[place.chunk].entries[place.index].1
    }

    /// Returns the first and the last address of an interval.
    #[inline]
    pub(crate) fn bounds(&self, place: Place) -> (u64, u64) {
        let chunk = &self.chunks[place.chunk];
        (chunk.entries[place.index].0, chunk.lasts[place.index])
    }

    /// Moves the end of an interval, to below the next one and not below its own start.
    pub(crate) fn set_last(&mut self, place: Place, last: u64) {
        self.chunks[place.chunk].lasts[place.index] = last;
        self.refresh(place.chunk);
    }

    /// Returns the place of the lowest interval that ends at `address` or above; behind all chunks if
    /// there is none.
    #[inline]
    fn place_of(&self, address: u64) -> Place {
        let near = self.recent.chunk;
        let is_near = self.lasts.get(near).is_some_and(|&last| last >= address)
            && (near == 0 || self.lasts[near - 1] < address);
        let chunk = if is_near {
            near
        } else {
            self.lasts.partition_point(|&last| last < address)
        };
        let lasts = self.chunks.get(chunk).map(|chunk| &chunk.lasts[..]);
        let index = lasts.map_or(0, |lasts| lasts.partition_point(|&last| last < address));
        Place { chunk, index }
    }

    #[inline]
    fn bounds_at(&self, place: Place) -> Option<(u64, u64)> {
        let chunk = self.chunks.get(place.chunk)?;
        Some((chunk.entries.get(place.index)?.0, chunk.lasts[place.index]))
    }

    /// Notes the last address of a chunk.
    #[inline]
    fn refresh(&mut self, chunk: usize) {
        if let Some(&last) = self.chunks[chunk].lasts.last() {
            self.lasts[chunk] = last;
        }
    }

    /// Adds an empty chunk in front of the one that stands at `at`.
    fn add_chunk(&mut self, at: usize) -> Option<()> {
        self.lasts.try_reserve(1).ok()?;
        self.chunks.try_reserve(1).ok()?;
        let chunk = Chunk::new()?;
        self.lasts.insert(at, 0);
        self.chunks.insert(at, chunk);
        Some(())
    }

    /// Divides a full chunk, and returns where `place` is then. At the upper end of all, where intervals
    /// often come in rising order, what is there stays dense.
    fn divide(&mut self, place: Place) -> Option<Place> {
        let Place { chunk, index } = place;
        let is_rising = index == CAPACITY && chunk + 1 == self.chunks.len();
        self.add_chunk(chunk + 1)?;
        if is_rising {
            return Some(Place {
                chunk: chunk + 1,
                index: 0,
            });
        }
        let half = CAPACITY / 2;
        let (lower, upper) = self.chunks.split_at_mut(chunk + 1);
        let (lower, upper) = (&mut lower[chunk], &mut upper[0]);
        upper.lasts.extend(lower.lasts.drain(half..));
        upper.entries.extend(lower.entries.drain(half..));
        self.refresh(chunk);
        self.refresh(chunk + 1);
        Some(if index > half {
            Place {
                chunk: chunk + 1,
                index: index - half,
            }
        } else {
            place
        })
    }

    /// Joins a chunk with its upper neighbour if both are small.
    fn join(&mut self, chunk: usize) {
        let Some(upper) = self.chunks.get(chunk + 1) else {
            return;
        };
        if self.chunks[chunk].lasts.len() + upper.lasts.len() > CAPACITY * 3 / 4 {
            return;
        }
        let upper = self.chunks.remove(chunk + 1);
        self.lasts.remove(chunk + 1);
        let lower = &mut self.chunks[chunk];
        lower.lasts.extend(upper.lasts);
        lower.entries.extend(upper.entries);
        self.refresh(chunk);
    }
}
