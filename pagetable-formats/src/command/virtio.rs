//! virtio-iommu: requests, their status, fault events, probe properties and the configuration space.
//!
//! Source: *Virtual I/O Device (VIRTIO) Version 1.3*, section 5.13 "IOMMU Device".
//!
//! A request is a chain of buffers: some that the device reads, which end where the request's fields do,
//! then some that it writes, whose last four bytes are the tail. All numbers are little-endian. There is
//! no command that invalidates: an `UNMAP` is complete once the device has forgotten the mapping.
//!
//! A word in a [`CommandError`] is eight bytes, from the first byte of the structure.

mod config;
mod event;
mod property;

pub use self::config::{Config, feature};
pub use self::event::{Fault, FaultReason};
pub use self::property::{Properties, Property, ReservedMemory};

use crate::command::{CommandError, check_reserved};
use crate::{Bits, Iova, IovaRange, Oa, bit};

/// One request.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Request {
    /// Moves an endpoint to a domain, which comes to be if it does not exist.
    Attach {
        /// The domain.
        domain: u32,
        /// The endpoint.
        endpoint: u32,
        /// Whether addresses pass the domain as they are; needs the feature `BYPASS_CONFIG`.
        is_bypass: bool,
    },
    /// Takes an endpoint out of its domain, which goes with its last endpoint, and the mappings with it.
    Detach {
        /// The domain.
        domain: u32,
        /// The endpoint.
        endpoint: u32,
    },
    /// Maps a range that has no mapping.
    Map {
        /// The domain.
        domain: u32,
        /// `virt_start` and `virt_end`: what is mapped.
        range: IovaRange,
        /// `phys_start`: where the first byte lies.
        oa: Oa,
        /// What is allowed there.
        access: Access,
    },
    /// Removes all mappings of a range, none of which may reach out of it.
    Unmap {
        /// The domain.
        domain: u32,
        /// `virt_start` and `virt_end`: what is removed.
        range: IovaRange,
    },
    /// Asks for the [properties](Properties) of an endpoint; needs the feature `PROBE`.
    Probe {
        /// The endpoint.
        endpoint: u32,
    },
}

/// What a mapping allows.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
pub struct Access {
    /// Whether it may be read.
    pub is_readable: bool,
    /// Whether it may be written.
    pub is_writable: bool,
    /// Whether a device's registers lie there; needs the feature `MMIO`.
    pub is_mmio: bool,
}

/// How a request ended.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
#[repr(u8)]
pub enum Status {
    /// It is done.
    Ok = 0,
    /// The transport or the memory of the request failed.
    IoError = 1,
    /// The device has no such request.
    Unsupported = 2,
    /// The device failed.
    DeviceError = 3,
    /// A field has a wrong value, or does not fit the state of the domain.
    Invalid = 4,
    /// An address or a domain is out of range, or a range does not fit the granule or a mapping.
    Range = 5,
    /// There is no such endpoint or domain.
    NoEntry = 6,
    /// The memory of the request is not accessible.
    Fault = 7,
    /// The device has no memory left.
    NoMemory = 8,
}

/// The bytes of a request that the device reads.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct RequestBytes {
    bytes: [u8; LONGEST],
    len: usize,
}

/// Bytes of the longest request, `PROBE`.
const LONGEST: usize = 72;
const WORDS: usize = LONGEST / 8;
/// Bytes of the head.
const HEAD: usize = 4;

const ATTACH: u8 = 1;
const DETACH: u8 = 2;
const MAP: u8 = 3;
const UNMAP: u8 = 4;
const PROBE: u8 = 5;

/// Of word 0.
const TYPE: Bits<7, 0> = Bits;
const HEAD_RESERVED: u64 = Bits::<31, 8>.mask();
/// Domain, or the endpoint of a probe.
const SUBJECT: Bits<63, 32> = Bits;
/// Of word 1 of attach and detach.
const ENDPOINT: Bits<31, 0> = Bits;
const ATTACH_FLAGS: Bits<63, 32> = Bits;
const ATTACH_BYPASS: u64 = bit(32);
/// Of word 4 of a map.
const MAP_READ: u64 = bit(0);
const MAP_WRITE: u64 = bit(1);
const MAP_MMIO: u64 = bit(2);

impl RequestBytes {
    /// Returns the bytes.
    pub fn as_slice(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

impl Request {
    /// Bytes of the tail, which stands behind what else the device writes.
    pub const TAIL_LEN: usize = 4;

    /// Returns the number of bytes that the device reads.
    pub const fn read_len(&self) -> usize {
        len_of(self.opcode())
    }

    /// Returns the number of bytes that the device writes, the tail among them. `probe_size` is that of
    /// the [configuration](Config::probe_size).
    pub const fn written_len(&self, probe_size: u32) -> u64 {
        let properties = match self {
            Self::Probe { .. } => probe_size as u64,
            _ => 0,
        };
        properties + Self::TAIL_LEN as u64
    }

    const fn opcode(&self) -> u8 {
        match self {
            Self::Attach { .. } => ATTACH,
            Self::Detach { .. } => DETACH,
            Self::Map { .. } => MAP,
            Self::Unmap { .. } => UNMAP,
            Self::Probe { .. } => PROBE,
        }
    }

    /// Returns the bytes that the device reads.
    pub fn encode(&self) -> RequestBytes {
        let mut words = [0; WORDS];
        let subject = match *self {
            Self::Attach {
                domain,
                endpoint,
                is_bypass,
            } => {
                words[1] = u64::from(endpoint) | if is_bypass { ATTACH_BYPASS } else { 0 };
                domain
            }
            Self::Detach { domain, endpoint } => {
                words[1] = u64::from(endpoint);
                domain
            }
            Self::Map {
                domain,
                range,
                oa,
                access,
            } => {
                words[1] = range.start().get();
                words[2] = range.last().get();
                words[3] = oa.get();
                words[4] = access.encode();
                domain
            }
            Self::Unmap { domain, range } => {
                words[1] = range.start().get();
                words[2] = range.last().get();
                domain
            }
            Self::Probe { endpoint } => endpoint,
        };
        words[0] = TYPE.put(self.opcode().into()) | SUBJECT.put(subject.into());
        RequestBytes {
            bytes: to_bytes(words),
            len: self.read_len(),
        }
    }

    /// Decodes the bytes that the device reads; more than the request has are not looked at.
    ///
    /// # Errors
    ///
    /// [`CommandError::UnknownOpcode`] for a type that is none of the five, [`CommandError::TooShort`] for
    /// fewer bytes than it needs, [`CommandError::ReservedBits`] for reserved fields that are not zero and
    /// unknown flags, and [`CommandError::ReservedValue`] for a `virt_end` below `virt_start`. The first
    /// two have no status: the device returns the request with nothing written. The others are
    /// [`Status::Invalid`].
    pub fn decode(bytes: &[u8]) -> Result<Self, CommandError> {
        need(bytes, HEAD)?;
        let opcode = bytes[0];
        if len_of(opcode) == 0 {
            return Err(CommandError::UnknownOpcode {
                opcode: opcode.into(),
            });
        }
        need(bytes, len_of(opcode))?;
        let words: [u64; WORDS] = to_words(&bytes[..len_of(opcode)]);
        check_reserved(0, words[0], HEAD_RESERVED)?;
        let subject = SUBJECT.get(words[0]) as u32;
        let endpoint = ENDPOINT.get(words[1]) as u32;
        // What no request has a use for, most requests are too short for.
        let refuse_from = |first: usize| {
            let mut rest = words.iter().zip(0_u8..).skip(first);
            rest.try_for_each(|(&word, number)| check_reserved(number, word, u64::MAX))
        };
        match opcode {
            ATTACH => {
                check_reserved(1, words[1], ATTACH_FLAGS.mask() & !ATTACH_BYPASS)?;
                refuse_from(2)?;
                Ok(Self::Attach {
                    domain: subject,
                    endpoint,
                    is_bypass: words[1] & ATTACH_BYPASS != 0,
                })
            }
            DETACH => {
                check_reserved(1, words[1], !ENDPOINT.mask())?;
                refuse_from(2)?;
                Ok(Self::Detach {
                    domain: subject,
                    endpoint,
                })
            }
            MAP => Ok(Self::Map {
                domain: subject,
                range: range("virt_end", words[1], words[2])?,
                oa: Oa::new(words[3]),
                access: Access::decode(words[4])?,
            }),
            UNMAP => {
                refuse_from(3)?;
                Ok(Self::Unmap {
                    domain: subject,
                    range: range("virt_end", words[1], words[2])?,
                })
            }
            _ => {
                refuse_from(1)?;
                Ok(Self::Probe { endpoint: subject })
            }
        }
    }
}

impl Access {
    fn encode(self) -> u64 {
        let mut flags = 0;
        if self.is_readable {
            flags |= MAP_READ;
        }
        if self.is_writable {
            flags |= MAP_WRITE;
        }
        if self.is_mmio {
            flags |= MAP_MMIO;
        }
        flags
    }

    fn decode(flags: u64) -> Result<Self, CommandError> {
        check_reserved(4, flags, !(MAP_READ | MAP_WRITE | MAP_MMIO))?;
        Ok(Self {
            is_readable: flags & MAP_READ != 0,
            is_writable: flags & MAP_WRITE != 0,
            is_mmio: flags & MAP_MMIO != 0,
        })
    }
}

impl Status {
    /// Returns the bytes of the tail.
    pub const fn encode(self) -> [u8; Request::TAIL_LEN] {
        [self as u8, 0, 0, 0]
    }

    /// Decodes the bytes of a tail. A driver ignores what is reserved in it.
    ///
    /// # Errors
    ///
    /// [`CommandError::ReservedValue`] for a status that does not exist.
    pub const fn decode(tail: [u8; Request::TAIL_LEN]) -> Result<Self, CommandError> {
        Ok(match tail[0] {
            0 => Self::Ok,
            1 => Self::IoError,
            2 => Self::Unsupported,
            3 => Self::DeviceError,
            4 => Self::Invalid,
            5 => Self::Range,
            6 => Self::NoEntry,
            7 => Self::Fault,
            8 => Self::NoMemory,
            value => {
                return Err(CommandError::ReservedValue {
                    field: "status",
                    value: value as u64,
                });
            }
        })
    }
}

/// Returns the number of bytes that the device reads of a request of a type, or 0 if there is none.
const fn len_of(opcode: u8) -> usize {
    match opcode {
        ATTACH | DETACH => 20,
        MAP => 36,
        UNMAP => 28,
        PROBE => LONGEST,
        _ => 0,
    }
}

/// Refuses fewer bytes than `needed`.
fn need(bytes: &[u8], needed: usize) -> Result<(), CommandError> {
    let len = bytes.len();
    if len < needed {
        return Err(CommandError::TooShort { len, needed });
    }
    Ok(())
}

fn range(field: &'static str, start: u64, last: u64) -> Result<IovaRange, CommandError> {
    match IovaRange::new(Iova::new(start), Iova::new(last)) {
        Some(range) => Ok(range),
        None => Err(CommandError::ReservedValue { field, value: last }),
    }
}

/// Reads words; bytes that are missing count as zero, and those behind the last word are left out.
fn to_words<const N: usize>(bytes: &[u8]) -> [u64; N] {
    let mut words = [0; N];
    for (word, chunk) in words.iter_mut().zip(bytes.chunks(8)) {
        let mut all = [0; 8];
        all[..chunk.len()].copy_from_slice(chunk);
        *word = u64::from_le_bytes(all);
    }
    words
}

/// Writes as many words as there are bytes for.
fn to_bytes<const N: usize, const M: usize>(words: [u64; N]) -> [u8; M] {
    let mut bytes = [0; M];
    for (chunk, word) in bytes.chunks_mut(8).zip(words) {
        chunk.copy_from_slice(&word.to_le_bytes()[..chunk.len()]);
    }
    bytes
}

#[cfg(test)]
mod tests;
