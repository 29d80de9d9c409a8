//! Faults, which the device reports in buffers of the event queue.

use super::{need, to_bytes, to_words};
use crate::command::{CommandError, check_reserved};
use crate::{Bits, Iova, bit};

/// A request of an endpoint that was not let through.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct Fault {
    /// Why.
    pub reason: FaultReason,
    /// Whether it was a read; neither if the device does not know.
    pub is_read: bool,
    /// Whether it was a write.
    pub is_write: bool,
    /// The endpoint.
    pub endpoint: u32,
    /// The address, if the device knows it.
    pub address: Option<Iova>,
}

/// Why a request was not let through.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
#[repr(u8)]
pub enum FaultReason {
    /// The device does not say.
    Unknown = 0,
    /// The endpoint has no domain.
    Domain = 1,
    /// Nothing is mapped there, or the mapping does not allow it.
    Mapping = 2,
}

const REASON: Bits<7, 0> = Bits;
const READ: u64 = bit(32);
const WRITE: u64 = bit(33);
const HAS_ADDRESS: u64 = bit(40);
const ENDPOINT: Bits<31, 0> = Bits;

impl Fault {
    /// Bytes of an event.
    pub const LEN: usize = 24;

    /// Returns the bytes of the event.
    pub fn encode(&self) -> [u8; Self::LEN] {
        let mut first = REASON.put(self.reason as u64);
        if self.is_read {
            first |= READ;
        }
        if self.is_write {
            first |= WRITE;
        }
        if self.address.is_some() {
            first |= HAS_ADDRESS;
        }
        let address = self.address.unwrap_or_default().get();
        to_bytes([first, ENDPOINT.put(self.endpoint.into()), address])
    }

    /// Decodes the bytes of an event; more than it has are not looked at.
    ///
    /// # Errors
    ///
    /// [`CommandError::TooShort`]; [`CommandError::ReservedBits`] for reserved fields that are not zero,
    /// unknown flags and an address that the flags say is none; [`CommandError::ReservedValue`] for an
    /// unknown reason.
    pub fn decode(bytes: &[u8]) -> Result<Self, CommandError> {
        need(bytes, Self::LEN)?;
        let [first, second, address] = to_words(bytes);
        check_reserved(0, first, !(REASON.mask() | READ | WRITE | HAS_ADDRESS))?;
        check_reserved(1, second, !ENDPOINT.mask())?;
        let address = if first & HAS_ADDRESS == 0 {
            check_reserved(2, address, u64::MAX)?;
            None
        } else {
            Some(Iova::new(address))
        };
        let reason = match REASON.get(first) {
            0 => FaultReason::Unknown,
            1 => FaultReason::Domain,
            2 => FaultReason::Mapping,
            value => {
                return Err(CommandError::ReservedValue {
                    field: "reason",
                    value,
                });
            }
        };
        Ok(Self {
            reason,
            is_read: first & READ != 0,
            is_write: first & WRITE != 0,
            endpoint: ENDPOINT.get(second) as u32,
            address,
        })
    }
}
