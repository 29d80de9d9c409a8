//! Names of PCI functions.

use alloc::string::String;
use core::fmt;
use core::num::ParseIntError;
use core::str::FromStr;

/// What a PCI function says of itself in each request: bus, device and function, as the PCI Express
/// Base Specification 2.2.6.2 has it.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct RequesterId(u16);

impl RequesterId {
    /// The smallest and the largest.
    pub const MIN: Self = Self(0);
    /// The largest one.
    pub const MAX: Self = Self(u16::MAX);

    /// Creates one from its number: the bus in bits 15:8, the device in 7:3, the function in 2:0.
    pub const fn new(number: u16) -> Self {
        Self(number)
    }

    /// Creates one from its parts; `None` unless the device is less than 32 and the function less than 8.
    pub const fn from_parts(bus: u8, device: u8, function: u8) -> Option<Self> {
        if device < 32 && function < 8 {
            Some(Self(
                (bus as u16) << 8 | (device as u16) << 3 | function as u16,
            ))
        } else {
            None
        }
    }

    /// Returns the number.
    pub const fn get(self) -> u16 {
        self.0
    }

    /// Returns the bus.
    pub const fn bus(self) -> u8 {
        (self.0 >> 8) as u8
    }

    /// Returns the device on its bus, less than 32.
    pub const fn device(self) -> u8 {
        (self.0 >> 3) as u8 & 31
    }

    /// Returns the function of its device, less than 8.
    pub const fn function(self) -> u8 {
        self.0 as u8 & 7
    }
}

impl fmt::Display for RequesterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (bus, device, function) = (self.bus(), self.device(), self.function());
        write!(f, "{bus:02x}:{device:02x}.{function}")
    }
}

/// A PCI function of a machine: its segment, which firmware calls a domain too, and its requester ID.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct PciAddress {
    /// The segment.
    pub segment: u16,
    /// The function in it.
    pub requester: RequesterId,
}

impl fmt::Display for PciAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04x}:{}", self.segment, self.requester)
    }
}

/// What is not the name of a PCI function.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum AddressError {
    /// It has another shape.
    #[error("{text:?} is not of the form SEGMENT:BUS:DEVICE.FUNCTION")]
    Shape {
        /// What was given.
        text: String,
    },
    /// A part of it is not a hexadecimal number that fits.
    #[error("{part:?} is no hexadecimal number that fits there")]
    Number {
        /// The part.
        part: String,
        /// Why.
        source: ParseIntError,
    },
    /// The device is above 1f or the function above 7.
    #[error("there is no device {device:x} with a function {function:x} on a bus")]
    Range {
        /// The device.
        device: u8,
        /// The function.
        function: u8,
    },
}

impl FromStr for PciAddress {
    type Err = AddressError;

    /// Parses `SEGMENT:BUS:DEVICE.FUNCTION`, all hexadecimal.
    fn from_str(text: &str) -> Result<Self, AddressError> {
        let shape = || AddressError::Shape { text: text.into() };
        let (segment, rest) = text.split_once(':').ok_or_else(shape)?;
        let (bus, rest) = rest.split_once(':').ok_or_else(shape)?;
        let (device, function) = rest.split_once('.').ok_or_else(shape)?;
        let segment = u16::from_str_radix(segment, 16).map_err(|source| number(segment, source))?;
        let [bus, device, function] = [byte(bus)?, byte(device)?, byte(function)?];
        let requester = RequesterId::from_parts(bus, device, function)
            .ok_or(AddressError::Range { device, function })?;
        Ok(Self { segment, requester })
    }
}

fn byte(part: &str) -> Result<u8, AddressError> {
    u8::from_str_radix(part, 16).map_err(|source| number(part, source))
}

fn number(part: &str, source: ParseIntError) -> AddressError {
    let part = part.into();
    AddressError::Number { part, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_read_as_it_is_printed() {
        for number in [0, 1, 0x00fa, 0x0400, 0xffff] {
            let requester = RequesterId::new(number);
            let parts = (requester.bus(), requester.device(), requester.function());
            assert_eq!(
                RequesterId::from_parts(parts.0, parts.1, parts.2),
                Some(requester)
            );
            let address = PciAddress {
                segment: 0xfffe,
                requester,
            };
            assert_eq!(address.to_string().parse(), Ok(address));
        }
        let text = "0000:00:1f.2";
        assert_eq!(
            text.parse::<PciAddress>().expect("it is one").to_string(),
            text
        );
    }

    #[test]
    fn what_is_no_address_is_refused_with_the_part_that_is_wrong() {
        use AddressError::{Number, Range, Shape};

        let refused = |text: &str| text.parse::<PciAddress>().expect_err("it is none");
        for text in ["", "0", "00:1f.2", "0000:00:1f"] {
            assert!(matches!(refused(text), Shape { .. }), "{text}");
        }
        assert!(matches!(refused("10000:00:00.0"), Number { part, .. } if part == "10000"));
        assert!(matches!(refused("0000:100:00.0"), Number { part, .. } if part == "100"));
        assert!(matches!(refused("0000:00:1f.g"), Number { part, .. } if part == "g"));
        assert_eq!(
            refused("0000:00:20.0"),
            Range {
                device: 0x20,
                function: 0
            }
        );
        assert_eq!(
            refused("0000:00:00.8"),
            Range {
                device: 0,
                function: 8
            }
        );
    }
}
