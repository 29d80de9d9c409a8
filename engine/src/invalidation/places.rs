//! A counted, sorted set.

use alloc::collections::TryReserveError;
use alloc::vec::Vec;

/// A sorted set of places, each with the number of attachments that need it.
///
/// It is derived data: at any time it equals the places of all attachments, counted. Growing is prepared on
/// a copy and may fail there; shrinking happens in place and cannot fail.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct PlaceSet<P> {
    places: Vec<(P, usize)>,
}

impl<P: Copy + Ord> PlaceSet<P> {
    pub(super) const fn new() -> Self {
        Self { places: Vec::new() }
    }

    /// Returns this set with each of `places` counted once more.
    ///
    /// # Errors
    ///
    /// [`TryReserveError`] if there is no memory for it.
    pub(super) fn with(
        &self,
        places: impl ExactSizeIterator<Item = P>,
    ) -> Result<Self, TryReserveError> {
        let mut merged = Vec::new();
        merged.try_reserve_exact(self.places.len() + places.len())?;
        merged.extend_from_slice(&self.places);
        for place in places {
            match merged.binary_search_by_key(&place, |&(place, _)| place) {
                Ok(at) => merged[at].1 += 1,
                Err(at) => merged.insert(at, (place, 1)),
            }
        }
        Ok(Self { places: merged })
    }

    /// Counts each of `places`, which were counted before, once less.
    pub(super) fn remove(&mut self, places: impl Iterator<Item = P>) {
        for place in places {
            match self
                .places
                .binary_search_by_key(&place, |&(place, _)| place)
            {
                Ok(at) => self.places[at].1 -= 1,
                Err(_) => debug_assert!(false, "who detaches was attached"),
            }
        }
        self.places.retain(|&(_, users)| users > 0);
    }

    /// Returns the places in order, with how many attachments need each.
    pub(super) fn as_slice(&self) -> &[(P, usize)] {
        &self.places
    }

    /// Returns how many attachments need `place`.
    pub(super) fn users(&self, place: &P) -> usize {
        let found = self.places.binary_search_by_key(place, |&(place, _)| place);
        found.map_or(0, |at| self.places[at].1)
    }
}

#[cfg(not(loom))]
#[cfg(test)]
mod tests {
    use super::*;

    fn set<P: Copy + Ord>(counted: &[(P, usize)]) -> PlaceSet<P> {
        PlaceSet {
            places: counted.to_vec(),
        }
    }

    /// The steps of acceptance test A3.7. There a place without users stays until it is purged; here it
    /// goes at once.
    #[test]
    fn places_are_counted_and_go_with_their_last_user() {
        let mut places = PlaceSet::new();
        let merge = |places: &PlaceSet<u32>, more: &[u32]| {
            places.with(more.iter().copied()).expect("memory")
        };
        places = merge(&places, &[1, 2, 3]);
        assert_eq!(places, set(&[(1, 1), (2, 1), (3, 1)]));
        places = merge(&places, &[1, 4, 5]);
        assert_eq!(places, set(&[(1, 2), (2, 1), (3, 1), (4, 1), (5, 1)]));
        places.remove([1, 4, 5].into_iter());
        assert_eq!(places, set(&[(1, 1), (2, 1), (3, 1)]));
        places = merge(&places, &[1, 5, 6]);
        assert_eq!(places, set(&[(1, 2), (2, 1), (3, 1), (5, 1), (6, 1)]));
        places.remove([1, 2, 3].into_iter());
        assert_eq!(places, set(&[(1, 1), (5, 1), (6, 1)]));
        places.remove([1, 5, 6].into_iter());
        assert_eq!(places, set(&[]));
    }

    #[test]
    fn device_tlbs_are_counted_by_device_and_pasid() {
        let one = [(10, 1), (10, 3), (12, 1)];
        let other = [(10, 2), (10, 3), (12, 2)];
        let places = PlaceSet::new().with(one.into_iter()).expect("memory");
        let places = places.with(other.into_iter()).expect("memory");
        let expected = [
            ((10, 1), 1),
            ((10, 2), 1),
            ((10, 3), 2),
            ((12, 1), 1),
            ((12, 2), 1),
        ];
        assert_eq!(places, set(&expected));
        assert_eq!(places.users(&(10, 3)), 2);
        assert_eq!(places.users(&(11, 0)), 0);
    }

    #[test]
    fn places_stay_sorted_in_whatever_order_they_come() {
        let places = PlaceSet::new()
            .with([9, 1, 5, 1, 3].into_iter())
            .expect("memory");
        assert_eq!(places, set(&[(1, 2), (3, 1), (5, 1), (9, 1)]));
    }
}
