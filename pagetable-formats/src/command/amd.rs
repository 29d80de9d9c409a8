//! AMD-Vi: commands of the command buffer.
//!
//! Source: *AMD I/O Virtualization Technology (IOMMU) Specification*, document 48882, revision 3.10,
//! section 2.4 "Commands".
//!
//! A command has 128 bits. The specification numbers the bits of four 32-bit words; here they are two
//! words of 64 bits.

use crate::command::{CommandError, Pasid, Span, check_reserved, when};
use crate::{Bits, bit};

/// One command.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Command {
    /// `COMPLETION_WAIT`: says when all commands before it are complete.
    CompletionWait {
        /// What is then stored, if anything (s).
        store: Option<Store>,
        /// Whether an interrupt is then raised (i).
        has_interrupt: bool,
        /// Whether later commands start only then (f).
        is_fence: bool,
    },
    /// `INVALIDATE_DEVTAB_ENTRY`: drops the cached device table entry of a device.
    InvalidateDeviceTableEntry {
        /// The device.
        device_id: u16,
    },
    /// `INVALIDATE_IOMMU_PAGES`: drops translations of a domain that are no larger than a block and
    /// overlap it.
    InvalidatePages {
        /// The domain.
        domain_id: u16,
        /// GN: the address space in the guest's tables; `None` for host tables.
        pasid: Option<Pasid>,
        /// PDE: also drops entries that point to tables, where they span no more than the block.
        has_tables: bool,
        /// Address and S: the block. One of order 40, 2^52 bytes, or more stands for all addresses.
        span: Span,
    },
    /// `INVALIDATE_IOTLB_PAGES`: makes a device drop translations.
    InvalidateIotlbPages {
        /// The device.
        device_id: u16,
        /// How many invalidations of its queue may be under way, as it announces (`Maxpend`).
        max_pending: u8,
        /// Which queue the invalidation counts for: the ID of the device, or of the physical function that
        /// it belongs to.
        queue_id: u16,
        /// GN: the PASID of the requests; `None` for requests without one.
        pasid: Option<Pasid>,
        /// Address and S: the block.
        span: Span,
    },
    /// `INVALIDATE_INTERRUPT_TABLE`: drops the cached interrupt remapping entries of a device.
    InvalidateInterruptTable {
        /// The device.
        device_id: u16,
    },
    /// `PREFETCH_IOMMU_PAGES`: asks for translations to be cached.
    PrefetchPages {
        /// The device.
        device_id: u16,
        /// Number of pages (`PreFetchCount`).
        count: u8,
        /// GN: the PASID of the requests to come; `None` for requests without one.
        pasid: Option<Pasid>,
        /// Inval: drop what is cached of them before.
        invalidates: bool,
        /// Address and S: the first page.
        span: Span,
    },
    /// `COMPLETE_PPR_REQUEST`: answers a group of page requests.
    CompletePageRequest {
        /// The device.
        device_id: u16,
        /// GN: the PASID of the requests, if they had one.
        pasid: Option<Pasid>,
        /// `CompletionTag`: number of the group in bits 8:0, the response code of PCI Express in bits
        /// 15:12.
        tag: u16,
    },
    /// `INVALIDATE_IOMMU_ALL`: drops everything that is cached.
    InvalidateAll,
}

/// What a `COMPLETION_WAIT` stores.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct Store {
    /// Physical address, 52 bits; other bits, and bits 2:0, are dropped.
    pub address: u64,
    /// The value.
    pub data: u64,
}

const OPCODE: Bits<63, 60> = Bits;
const DEVICE_ID: Bits<15, 0> = Bits;
const ADDRESS: Bits<63, 12> = Bits;
/// Bits of word 1 beside an address.
const SIZE: u64 = bit(0);
const TABLES: u64 = bit(1);
const GUEST: u64 = bit(2);

/// Of completion waits.
const STORE: u64 = bit(0);
const INTERRUPT: u64 = bit(1);
const FENCE: u64 = bit(2);
const STORE_ADDRESS: Bits<51, 3> = Bits;
/// Of page invalidations.
const PAGES_PASID: Bits<19, 0> = Bits;
const DOMAIN_ID: Bits<47, 32> = Bits;
/// Of IOTLB invalidations, which have the PASID in three parts.
const PASID_15_8: Bits<23, 16> = Bits;
const PASID_7_0: Bits<55, 48> = Bits;
const PASID_19_16: Bits<59, 56> = Bits;
const MAX_PENDING: Bits<31, 24> = Bits;
const QUEUE_ID: Bits<47, 32> = Bits;
const TYPE: Bits<5, 4> = Bits;
/// Of prefetches and completed requests.
const PREFETCH_COUNT: Bits<31, 24> = Bits;
const PASID: Bits<51, 32> = Bits;
const PREFETCH_INVALIDATES: u64 = bit(4);
const COMPLETION_TAG: Bits<47, 32> = Bits;

impl Command {
    /// Returns the two words of the command.
    pub const fn encode(&self) -> [u64; 2] {
        let (opcode, low, high) = match *self {
            Self::CompletionWait {
                store,
                has_interrupt,
                is_fence,
            } => {
                let flags = when(has_interrupt, INTERRUPT) | when(is_fence, FENCE);
                match store {
                    None => (1, flags, 0),
                    Some(Store { address, data }) => {
                        (1, flags | STORE | (address & STORE_ADDRESS.mask()), data)
                    }
                }
            }
            Self::InvalidateDeviceTableEntry { device_id } => {
                (2, DEVICE_ID.put(device_id as u64), 0)
            }
            Self::InvalidatePages {
                domain_id,
                pasid,
                has_tables,
                span,
            } => (
                3,
                DOMAIN_ID.put(domain_id as u64) | PAGES_PASID.put(number(pasid)),
                encode_address(span, pasid) | when(has_tables, TABLES),
            ),
            Self::InvalidateIotlbPages {
                device_id,
                max_pending,
                queue_id,
                pasid,
                span,
            } => (
                4,
                DEVICE_ID.put(device_id as u64)
                    | MAX_PENDING.put(max_pending as u64)
                    | QUEUE_ID.put(queue_id as u64)
                    | PASID_15_8.put(number(pasid) >> 8 & 0xff)
                    | PASID_7_0.put(number(pasid) & 0xff)
                    | PASID_19_16.put(number(pasid) >> 16),
                encode_address(span, pasid),
            ),
            Self::InvalidateInterruptTable { device_id } => (5, DEVICE_ID.put(device_id as u64), 0),
            Self::PrefetchPages {
                device_id,
                count,
                pasid,
                invalidates,
                span,
            } => (
                6,
                DEVICE_ID.put(device_id as u64)
                    | PREFETCH_COUNT.put(count as u64)
                    | PASID.put(number(pasid)),
                encode_address(span, pasid) | when(invalidates, PREFETCH_INVALIDATES),
            ),
            Self::CompletePageRequest {
                device_id,
                pasid,
                tag,
            } => (
                7,
                DEVICE_ID.put(device_id as u64) | PASID.put(number(pasid)),
                COMPLETION_TAG.put(tag as u64) | when(pasid.is_some(), GUEST),
            ),
            Self::InvalidateAll => (8, 0, 0),
        };
        [OPCODE.put(opcode) | low, high]
    }

    /// Decodes the words of a command.
    ///
    /// # Errors
    ///
    /// [`CommandError::UnknownOpcode`]; [`CommandError::ReservedBits`], also for a PASID without GN and for
    /// a store address or data without s; [`CommandError::ReservedValue`] for an address field that is all
    /// ones and a type of IOTLB invalidation other than 0.
    pub fn decode(words: [u64; 2]) -> Result<Self, CommandError> {
        let [low, high] = words;
        let device_id = DEVICE_ID.get(low) as u16;
        match OPCODE.get(low) {
            1 => decode_completion_wait(low, high),
            2 => {
                known(0, low, DEVICE_ID.mask())?;
                known(1, high, 0)?;
                Ok(Self::InvalidateDeviceTableEntry { device_id })
            }
            3 => {
                known(0, low, DOMAIN_ID.mask() | PAGES_PASID.mask())?;
                known(1, high, ADDRESS.mask() | SIZE | TABLES | GUEST)?;
                Ok(Self::InvalidatePages {
                    domain_id: DOMAIN_ID.get(low) as u16,
                    pasid: decode_pasid(low, high, PAGES_PASID.mask(), PAGES_PASID.get(low))?,
                    has_tables: high & TABLES != 0,
                    span: decode_address(high)?,
                })
            }
            4 => decode_iotlb_pages(low, high),
            5 => {
                known(0, low, DEVICE_ID.mask())?;
                known(1, high, 0)?;
                Ok(Self::InvalidateInterruptTable { device_id })
            }
            6 => {
                known(
                    0,
                    low,
                    DEVICE_ID.mask() | PREFETCH_COUNT.mask() | PASID.mask(),
                )?;
                let flags = SIZE | GUEST | PREFETCH_INVALIDATES;
                known(1, high, ADDRESS.mask() | flags)?;
                Ok(Self::PrefetchPages {
                    device_id,
                    count: PREFETCH_COUNT.get(low) as u8,
                    pasid: decode_pasid(low, high, PASID.mask(), PASID.get(low))?,
                    invalidates: high & PREFETCH_INVALIDATES != 0,
                    span: decode_address(high)?,
                })
            }
            7 => {
                known(0, low, DEVICE_ID.mask() | PASID.mask())?;
                known(1, high, GUEST | COMPLETION_TAG.mask())?;
                Ok(Self::CompletePageRequest {
                    device_id,
                    pasid: decode_pasid(low, high, PASID.mask(), PASID.get(low))?,
                    tag: COMPLETION_TAG.get(high) as u16,
                })
            }
            8 => {
                known(0, low, 0)?;
                known(1, high, 0)?;
                Ok(Self::InvalidateAll)
            }
            opcode => Err(CommandError::UnknownOpcode {
                opcode: opcode as u16,
            }),
        }
    }
}

const fn number(pasid: Option<Pasid>) -> u64 {
    match pasid {
        None => 0,
        Some(pasid) => pasid.get() as u64,
    }
}

/// Returns Address, S and GN.
const fn encode_address(span: Span, pasid: Option<Pasid>) -> u64 {
    span.address_field() | when(span.has_size(), SIZE) | when(pasid.is_some(), GUEST)
}

/// Refuses bits that are neither the opcode's nor among `known`.
fn known(word: u8, value: u64, known: u64) -> Result<(), CommandError> {
    let mine = if word == 0 { OPCODE.mask() } else { 0 };
    check_reserved(word, value, !(mine | known))
}

/// Decodes Address and S.
fn decode_address(high: u64) -> Result<Span, CommandError> {
    match Span::from_address_field(high & ADDRESS.mask(), high & SIZE != 0) {
        Some(span) => Ok(span),
        None => Err(CommandError::ReservedValue {
            field: "Address",
            value: ADDRESS.get(high),
        }),
    }
}

/// Decodes GN and the PASID `value`, the bits `mask` of the low word.
fn decode_pasid(low: u64, high: u64, mask: u64, value: u64) -> Result<Option<Pasid>, CommandError> {
    if high & GUEST == 0 {
        check_reserved(0, low, mask)?;
        return Ok(None);
    }
    Ok(Some(Pasid::from_field(value)))
}

fn decode_completion_wait(low: u64, high: u64) -> Result<Command, CommandError> {
    let flags = STORE | INTERRUPT | FENCE;
    let store = if low & STORE == 0 {
        known(0, low, flags)?;
        known(1, high, 0)?;
        None
    } else {
        known(0, low, flags | STORE_ADDRESS.mask())?;
        Some(Store {
            address: low & STORE_ADDRESS.mask(),
            data: high,
        })
    };
    Ok(Command::CompletionWait {
        store,
        has_interrupt: low & INTERRUPT != 0,
        is_fence: low & FENCE != 0,
    })
}

fn decode_iotlb_pages(low: u64, high: u64) -> Result<Command, CommandError> {
    known(1, high, ADDRESS.mask() | SIZE | GUEST | TYPE.mask())?;
    if TYPE.get(high) != 0 {
        return Err(CommandError::ReservedValue {
            field: "Type",
            value: TYPE.get(high),
        });
    }
    let pasid = PASID_19_16.get(low) << 16 | PASID_15_8.get(low) << 8 | PASID_7_0.get(low);
    let pasid_mask = PASID_19_16.mask() | PASID_15_8.mask() | PASID_7_0.mask();
    Ok(Command::InvalidateIotlbPages {
        device_id: DEVICE_ID.get(low) as u16,
        max_pending: MAX_PENDING.get(low) as u8,
        queue_id: QUEUE_ID.get(low) as u16,
        pasid: decode_pasid(low, high, pasid_mask, pasid)?,
        span: decode_address(high)?,
    })
}

#[cfg(test)]
mod tests;
