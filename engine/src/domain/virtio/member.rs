//! A domain as the device knows it: which endpoints are in it or may come, and what is mapped.

use alloc::vec::Vec;

use iopt_formats::IovaRange;

use crate::domain::virtio::mappings::Mappings;

/// A domain of the device.
pub(super) struct Member {
    pub(super) number: u32,
    seats: Vec<Seat>,
    bookings: Vec<Booked>,
    pub(super) mappings: Mappings,
    /// [`TenantId`](crate::domain::TenantId) of the tenant, or 0.
    pub(super) tenant: u64,
    /// Whether its maker is gone.
    pub(super) is_dropped: bool,
}

/// An endpoint that is in the domain, or may be.
struct Seat {
    endpoint: u32,
    /// The `ATTACH` of which nobody knows what it did, if the endpoint may not be here.
    doubt: Option<u64>,
}

/// What somebody who may come needs; by a ticket of its own.
struct Booked {
    ticket: u64,
    seat_count: usize,
    reserved: Vec<IovaRange>,
}

impl Member {
    pub(super) const fn new(number: u32) -> Self {
        Self {
            number,
            seats: Vec::new(),
            bookings: Vec::new(),
            mappings: Mappings::new(),
            tenant: 0,
            is_dropped: false,
        }
    }

    /// Returns whether an endpoint is, or may be, in the domain: otherwise the device has nothing of it.
    pub(super) fn is_live(&self) -> bool {
        !self.seats.is_empty()
    }

    pub(super) fn endpoint_count(&self) -> usize {
        self.seats.len()
    }

    /// Returns whether an endpoint is in the domain, and if it is, whether that is certain.
    pub(super) fn seat(&self, endpoint: u32) -> Option<bool> {
        let mut seats = self.seats.iter();
        let seat = seats.find(|seat| seat.endpoint == endpoint)?;
        Some(seat.doubt.is_none())
    }

    /// Notes that an endpoint is in the domain, or that it may be, since the `ATTACH` that is `doubt`.
    pub(super) fn join(&mut self, endpoint: u32, doubt: Option<u64>) {
        let mut seats = self.seats.iter_mut();
        match seats.find(|seat| seat.endpoint == endpoint) {
            Some(seat) if doubt.is_none() => seat.doubt = None,
            Some(_) => {}
            None => self.seats.push(Seat { endpoint, doubt }),
        }
    }

    /// Notes that an endpoint is not in the domain. Returns whether it was there, or could have been.
    pub(super) fn leave(&mut self, endpoint: u32) -> bool {
        let place = self.seats.iter().position(|seat| seat.endpoint == endpoint);
        place.map(|place| self.seats.swap_remove(place)).is_some()
    }

    /// Returns whether an endpoint counts as here for one `ATTACH` alone.
    pub(super) fn is_doubted_for(&self, endpoint: u32, tag: u64) -> bool {
        let mut seats = self.seats.iter();
        seats.any(|seat| seat.endpoint == endpoint && seat.doubt == Some(tag))
    }

    /// Notes that the device has forgotten all.
    pub(super) fn was_reset(&mut self) {
        self.seats.clear();
        self.mappings.dropped();
    }

    /// Makes room for so many more endpoints than are booked. Returns false if there is no memory.
    pub(super) fn make_room(&mut self, count: usize) -> bool {
        let booked = self.bookings.iter().map(|booked| booked.seat_count);
        let needed = booked.fold(count, usize::saturating_add);
        self.seats.try_reserve(needed).is_ok()
    }

    /// Keeps seats, and ranges free of mappings. Returns false if there is no memory.
    pub(super) fn book(&mut self, ticket: u64, seat_count: usize, ranges: &[IovaRange]) -> bool {
        let mut reserved = Vec::new();
        let has_room = self.make_room(seat_count)
            && self.bookings.try_reserve(1).is_ok()
            && reserved.try_reserve_exact(ranges.len()).is_ok();
        if has_room {
            reserved.extend_from_slice(ranges);
            self.bookings.push(Booked {
                ticket,
                seat_count,
                reserved,
            });
        }
        has_room
    }

    pub(super) fn unbook(&mut self, ticket: u64) {
        self.bookings.retain(|booked| booked.ticket != ticket);
    }

    /// Returns what of `range` is to stay free of mappings.
    pub(super) fn reserved_in(&self, range: IovaRange) -> Option<IovaRange> {
        let all = self.bookings.iter().flat_map(|booked| &booked.reserved);
        all.copied().find(|reserved| reserved.overlaps(range))
    }
}
