//! Commands that software puts into the queues of an IOMMU.
//!
//! One enum an architecture, with the fields of each command by name. `encode` gives the words that stand
//! in the queue, as numbers: whoever stores them writes little-endian bytes. `decode` is as strict as the
//! strictest hardware may be: an unknown opcode, a reserved bit that is set and a reserved value are errors.
//! So words and commands are two spellings of one thing: `decode(encode(c)) == c` for every command, and
//! `encode(decode(w)) == w` for all words that decode.

use core::fmt;

pub mod amd;
pub mod riscv;
pub mod smmuv3;
pub mod virtio;
pub mod vtd;

mod narrow;
mod span;
#[cfg(test)]
mod testing;

pub use self::narrow::Narrow;
pub use self::span::Span;

/// Why words are no command.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum CommandError {
    /// No command has this opcode, in architectures with a function field the two together.
    #[error("no command has the opcode {opcode:#x}")]
    UnknownOpcode {
        /// What stands in the place of the opcode.
        opcode: u16,
    },
    /// Bits are set that the command does not have.
    #[error("reserved bits {bits:#x} of word {word} are set")]
    ReservedBits {
        /// Number of the 64-bit word in the command, 0 the first.
        word: u8,
        /// The bits, in place.
        bits: u64,
    },
    /// A field has a value that the specification reserves, alone or beside the other fields.
    #[error("the value {value:#x} of {field} is reserved")]
    ReservedValue {
        /// Name of the field, as in the specification.
        field: &'static str,
        /// The value, shifted down to bit 0.
        value: u64,
    },
    /// There are fewer bytes than the command has.
    #[error("the command has {needed} bytes, of which {len} are there")]
    TooShort {
        /// Number of bytes that are there.
        len: usize,
        /// Number of bytes that the command has.
        needed: usize,
    },
}

/// `?` where constants are computed.
macro_rules! attempt {
    ($result:expr) => {
        match $result {
            Ok(value) => value,
            Err(error) => return Err(error),
        }
    };
}
use attempt;

/// Refuses `value` of word number `word` if it has one of the bits `reserved`.
pub(crate) const fn check_reserved(
    word: u8,
    value: u64,
    reserved: u64,
) -> Result<(), CommandError> {
    match value & reserved {
        0 => Ok(()),
        bits => Err(CommandError::ReservedBits { word, bits }),
    }
}

/// Refuses a `value` that is not zero, of a field that the others make ignored.
pub(crate) const fn check_zero(field: &'static str, value: u64) -> Result<(), CommandError> {
    match value {
        0 => Ok(()),
        _ => Err(CommandError::ReservedValue { field, value }),
    }
}

/// Returns `bits` if `condition` holds, else zero.
pub(crate) const fn when(condition: bool, bits: u64) -> u64 {
    if condition { bits } else { 0 }
}

/// How a group of page requests ended (*PCI Express Base Specification*, section 10.4.2.1), with the codes of
/// Page Group Responses.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
#[repr(u8)]
pub enum PageResponse {
    /// All pages are there.
    Success = 0,
    /// At least one page cannot be had.
    Invalid = 1,
    /// An error that paging cannot mend; the device sends no more requests.
    Failure = 15,
}

impl PageResponse {
    /// Returns the response that the `value` of `field` says.
    pub(crate) const fn from_field(field: &'static str, value: u64) -> Result<Self, CommandError> {
        match value {
            0 => Ok(Self::Success),
            1 => Ok(Self::Invalid),
            15 => Ok(Self::Failure),
            _ => Err(CommandError::ReservedValue { field, value }),
        }
    }
}

/// Names an address space of a device: a PASID, on Arm a `SubstreamID`, on RISC-V a `process_id`. 20 bits
/// wide (*PCI Express Base Specification*, section 6.20).
///
/// ```
/// use iopt_formats::command::Pasid;
///
/// assert_eq!(Pasid::new(0xf_ffff), Some(Pasid::MAX));
/// assert_eq!(Pasid::new(0x10_0000), None);
/// ```
#[derive(Clone, Copy, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd)]
#[repr(transparent)]
pub struct Pasid(Narrow<20>);

impl Pasid {
    /// The largest one.
    pub const MAX: Self = Self(Narrow::MAX);

    /// Returns the PASID `value`, or `None` if it is wider than 20 bits.
    pub const fn new(value: u32) -> Option<Self> {
        match Narrow::new(value) {
            Some(value) => Some(Self(value)),
            None => None,
        }
    }

    /// Returns the PASID that the low 20 bits of a field's value name.
    pub(crate) const fn from_field(value: u64) -> Self {
        Self(Narrow::from_field(value))
    }

    /// Returns the value.
    pub const fn get(self) -> u32 {
        self.0.get()
    }
}

impl fmt::Display for Pasid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.get())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pasid_has_twenty_bits() {
        assert_eq!(Pasid::new(0).map(Pasid::get), Some(0));
        assert_eq!(Pasid::new(0xf_ffff).map(Pasid::get), Some(0xf_ffff));
        assert_eq!(Pasid::new(0x10_0000), None);
        assert_eq!(Pasid::new(u32::MAX), None);
        assert_eq!(Pasid::from_field(0xabc0_1234_5678).get(), 0x4_5678);
    }
}
