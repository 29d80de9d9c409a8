//! VT-d: descriptors of the invalidation queue.
//!
//! Source: *Intel Virtualization Technology for Directed I/O, Architecture Specification*,
//! revision 4.1, section 6.5.2 "Queued Invalidation Interface", and section 7.7.1 "Page Group Response
//! Descriptor"; private data of page group responses as in revision 3.0, which later ones dropped.
//!
//! A queue has descriptors of 128 bits or, in scalable mode, of 256 bits. The wide ones are the narrow
//! ones followed by zeroes, but for the private data of page group responses.

mod decode;

use crate::command::{CommandError, Narrow, PageResponse, Pasid, Span, check_reserved, when};
use crate::{Bits, bit};

/// One descriptor.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Descriptor {
    /// Drops cached context entries.
    ContextCache {
        /// Which.
        scope: ContextScope,
    },
    /// Drops translations, of any stage but the first alone, and entries of paging structures.
    Iotlb {
        /// Which.
        scope: IotlbScope,
        /// Whether reads that were translated before come first (DR).
        drains_reads: bool,
        /// Whether writes that were translated before come first (DW).
        drains_writes: bool,
    },
    /// Makes a device drop translations of requests without a PASID.
    DeviceTlb {
        /// The device.
        device: Device,
        /// Which addresses.
        span: Span,
    },
    /// Drops cached entries of the interrupt remapping table.
    InterruptEntryCache {
        /// Which.
        scope: InterruptScope,
    },
    /// Says when all descriptors before it are complete.
    Wait {
        /// What is then stored, if anything (SW).
        status: Option<StatusWrite>,
        /// Whether an interrupt is then raised (IF).
        has_interrupt: bool,
        /// Whether later descriptors start only then (FN).
        is_fence: bool,
        /// Whether page requests and responses are drained too (PD).
        drains_page_requests: bool,
    },
    /// Drops translations that a first stage has part in.
    PasidIotlb {
        /// DID: tag of the translations.
        domain_id: u16,
        /// Address space of the first stage.
        pasid: Pasid,
        /// Which addresses.
        scope: PasidIotlbScope,
    },
    /// Drops cached entries of PASID tables.
    PasidCache {
        /// Which.
        scope: PasidCacheScope,
    },
    /// Makes a device drop translations of requests with a PASID.
    PasidDeviceTlb {
        /// The device.
        device: Device,
        /// Whose translations.
        pasids: PasidScope,
        /// Which addresses.
        span: Span,
    },
    /// Answers a group of page requests.
    PageGroupResponse {
        /// Requester ID of the device.
        requester_id: u16,
        /// PASID of the requests, if they had one.
        pasid: Option<Pasid>,
        /// The answer.
        response: PageResponse,
        /// Which group.
        group: Narrow<9>,
        /// Whether the requests were the last ones of the group (LPIG).
        is_last: bool,
        /// What the device sent along, if it did (PDP). Only 256-bit descriptors have room for it.
        private_data: Option<[u64; 2]>,
    },
}

/// Which context entries.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum ContextScope {
    /// All.
    Global,
    /// All of a domain.
    Domain {
        /// DID.
        domain_id: u16,
    },
    /// Those of one device.
    Device {
        /// DID that its entry had.
        domain_id: u16,
        /// Its requester ID (SID).
        source_id: u16,
        /// How many of the three function bits of the requester ID are not looked at, from the top (FM).
        function_mask: Narrow<2>,
    },
}

/// Which translations.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum IotlbScope {
    /// All.
    Global,
    /// All of a domain.
    Domain {
        /// DID.
        domain_id: u16,
    },
    /// Those of a domain that overlap a block. Needs CAP.PSI, and a block of order CAP.MAMV at most.
    Pages {
        /// DID.
        domain_id: u16,
        /// ADDR and AM: the block.
        span: Span,
        /// IH: no table of the block was changed, entries of paging structures may stay.
        is_leaf_only: bool,
    },
}

/// Which translations of a PASID.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum PasidIotlbScope {
    /// All.
    All,
    /// Those of the first stage that overlap a block, of any order.
    Pages {
        /// ADDR and AM: the block.
        span: Span,
        /// IH: no table of the block was changed, entries of paging structures may stay.
        is_leaf_only: bool,
    },
}

/// Which entries of PASID tables.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum PasidCacheScope {
    /// All of a domain.
    Domain {
        /// DID.
        domain_id: u16,
    },
    /// One.
    Pasid {
        /// DID that the entry had.
        domain_id: u16,
        /// Number of the entry.
        pasid: Pasid,
    },
    /// All.
    Global,
}

/// Whose translations a device drops.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum PasidScope {
    /// Those of one PASID.
    One(Pasid),
    /// Those of all PASIDs (G).
    All,
}

/// Which entries of the interrupt remapping table.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum InterruptScope {
    /// All.
    Global,
    /// An aligned block.
    Entries {
        /// Number of the first entry (IIDX).
        index: u16,
        /// Base-2 logarithm of the number of entries (IM).
        mask: Narrow<5>,
    },
}

/// Which device, and how it takes invalidations.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Device {
    /// Its requester ID (SID).
    pub source_id: u16,
    /// Requester ID of its physical function, by which invalidations are throttled (PFSID). Zero where
    /// ECAP.DIT is.
    pub physical_function: u16,
    /// How many invalidations it takes at once (MIP).
    pub queue_depth: QueueDepth,
}

/// How many invalidations a device takes at once (MIP): 1 to 31, or 32 in one way or another.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct QueueDepth(u8);

impl QueueDepth {
    /// Creates the field from the depth that the device announces: like its ATS capability, the field
    /// writes 32 and more as 0.
    pub const fn new(depth: u8) -> Self {
        Self(if depth < 32 { depth } else { 0 })
    }

    /// Returns the field's value: 0 to 31, where 0 stands for 32.
    pub const fn get(self) -> u8 {
        self.0
    }
}

/// What a wait descriptor stores.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct StatusWrite {
    /// Physical address; bits 1:0 are dropped.
    pub address: u64,
    /// The value.
    pub data: u32,
}

const TYPE: Bits<3, 0> = Bits;
/// Bits 6:4 of the type, which are zero in all descriptors so far.
const TYPE_HIGH: Bits<11, 9> = Bits;
const GRANULARITY: Bits<5, 4> = Bits;
const DOMAIN_ID: Bits<31, 16> = Bits;
const SOURCE_ID: Bits<47, 32> = Bits;
const PASID: Bits<51, 32> = Bits;
const ADDRESS: Bits<63, 12> = Bits;

/// Of contexts.
const FUNCTION_MASK: Bits<49, 48> = Bits;
/// Of IOTLBs, in word 0.
const DRAIN_WRITES: u64 = bit(6);
const DRAIN_READS: u64 = bit(7);
/// Of IOTLBs, in word 1.
const ADDRESS_MASK: Bits<5, 0> = Bits;
const INVALIDATION_HINT: u64 = bit(6);
/// Of device TLBs.
const QUEUE_DEPTH: Bits<20, 16> = Bits;
const PHYSICAL_FUNCTION_LOW: Bits<15, 12> = Bits;
const PHYSICAL_FUNCTION_HIGH: Bits<63, 52> = Bits;
const DEVICE_TLB_SIZE: u64 = bit(0);
/// Of device TLBs with PASIDs.
const PASID_QUEUE_DEPTH: Bits<8, 4> = Bits;
const PASID_SOURCE_ID: Bits<31, 16> = Bits;
const PASID_DEVICE_TLB_GLOBAL: u64 = bit(0);
const PASID_DEVICE_TLB_SIZE: u64 = bit(11);
/// Of interrupts.
const INDEX_SELECTIVE: u64 = bit(4);
const INDEX_MASK: Bits<31, 27> = Bits;
const INDEX: Bits<47, 32> = Bits;
/// Of waits.
const INTERRUPT: u64 = bit(4);
const STATUS_WRITE: u64 = bit(5);
const FENCE: u64 = bit(6);
const PAGE_REQUEST_DRAIN: u64 = bit(7);
const STATUS_DATA: Bits<63, 32> = Bits;
const STATUS_ADDRESS: Bits<63, 2> = Bits;
/// Of responses.
const PASID_PRESENT: u64 = bit(4);
const PRIVATE_DATA_PRESENT: u64 = bit(5);
const RESPONSE: Bits<15, 12> = Bits;
const REQUESTER_ID: Bits<31, 16> = Bits;
const LAST_IN_GROUP: u64 = bit(2);
const GROUP: Bits<11, 3> = Bits;

impl Descriptor {
    /// Returns the two words of a 128-bit descriptor. Private data of a page group response, which has no
    /// place in them, is left out.
    pub const fn encode(&self) -> [u64; 2] {
        let [low, high, ..] = self.encode_wide();
        match self {
            Self::PageGroupResponse { .. } => [low & !PRIVATE_DATA_PRESENT, high],
            _ => [low, high],
        }
    }

    /// Returns the four words of a 256-bit descriptor.
    pub const fn encode_wide(&self) -> [u64; 4] {
        let [low, high] = match *self {
            Self::ContextCache { scope } => [1 | scope.encode(), 0],
            Self::Iotlb {
                scope,
                drains_reads,
                drains_writes,
            } => {
                let [low, high] = scope.encode();
                let drains = when(drains_reads, DRAIN_READS) | when(drains_writes, DRAIN_WRITES);
                [2 | low | drains, high]
            }
            Self::DeviceTlb { device, span } => [
                3 | device.encode_function()
                    | QUEUE_DEPTH.put(device.queue_depth.get() as u64)
                    | SOURCE_ID.put(device.source_id as u64),
                span.address_field() | when(span.has_size(), DEVICE_TLB_SIZE),
            ],
            Self::InterruptEntryCache { scope } => [4 | scope.encode(), 0],
            Self::Wait {
                status,
                has_interrupt,
                is_fence,
                drains_page_requests,
            } => {
                let flags = when(has_interrupt, INTERRUPT)
                    | when(is_fence, FENCE)
                    | when(drains_page_requests, PAGE_REQUEST_DRAIN);
                match status {
                    None => [5 | flags, 0],
                    Some(StatusWrite { address, data }) => [
                        5 | flags | STATUS_WRITE | STATUS_DATA.put(data as u64),
                        address & STATUS_ADDRESS.mask(),
                    ],
                }
            }
            Self::PasidIotlb {
                domain_id,
                pasid,
                scope,
            } => {
                let [granularity, high] = scope.encode();
                let tag = DOMAIN_ID.put(domain_id as u64) | PASID.put(pasid.get() as u64);
                [6 | granularity | tag, high]
            }
            Self::PasidCache { scope } => [7 | scope.encode(), 0],
            Self::PasidDeviceTlb {
                device,
                pasids,
                span,
            } => {
                let (pasid, global) = match pasids {
                    PasidScope::One(pasid) => (pasid.get(), 0),
                    PasidScope::All => (0, PASID_DEVICE_TLB_GLOBAL),
                };
                [
                    8 | device.encode_function()
                        | PASID_QUEUE_DEPTH.put(device.queue_depth.get() as u64)
                        | PASID_SOURCE_ID.put(device.source_id as u64)
                        | PASID.put(pasid as u64),
                    span.address_field() | when(span.has_size(), PASID_DEVICE_TLB_SIZE) | global,
                ]
            }
            Self::PageGroupResponse {
                requester_id,
                pasid,
                response,
                group,
                is_last,
                private_data,
            } => {
                let pasid = match pasid {
                    None => 0,
                    Some(pasid) => PASID_PRESENT | PASID.put(pasid.get() as u64),
                };
                let low = 9
                    | pasid
                    | RESPONSE.put(response as u64)
                    | REQUESTER_ID.put(requester_id as u64);
                let high = when(is_last, LAST_IN_GROUP) | GROUP.put(group.field());
                if let Some([first, second]) = private_data {
                    return [low | PRIVATE_DATA_PRESENT, high, first, second];
                }
                [low, high]
            }
        };
        [low, high, 0, 0]
    }

    /// Decodes the words of a 128-bit descriptor.
    ///
    /// # Errors
    ///
    /// As [`decode_wide`](Self::decode_wide); [`CommandError::ReservedBits`] also for private data.
    pub fn decode(words: [u64; 2]) -> Result<Self, CommandError> {
        let [low, high] = words;
        if type_of(low) == 9 {
            check_reserved(0, low, PRIVATE_DATA_PRESENT)?;
        }
        Self::decode_wide([low, high, 0, 0])
    }

    /// Decodes the words of a 256-bit descriptor.
    ///
    /// # Errors
    ///
    /// [`CommandError::UnknownOpcode`]; [`CommandError::ReservedBits`], also for bits that the granularity
    /// gives no meaning and for address bits below the block's size; [`CommandError::ReservedValue`] for
    /// a granularity, address mask, size or response code that no descriptor has.
    pub fn decode_wide(words: [u64; 4]) -> Result<Self, CommandError> {
        let [low, high, third, fourth] = words;
        if !(type_of(low) == 9 && low & PRIVATE_DATA_PRESENT != 0) {
            check_reserved(2, third, u64::MAX)?;
            check_reserved(3, fourth, u64::MAX)?;
        }
        match type_of(low) {
            1 => decode::context_cache(low, high),
            2 => decode::iotlb(low, high),
            3 => decode::device_tlb(low, high),
            4 => decode::interrupt_entry_cache(low, high),
            5 => decode::wait(low, high),
            6 => decode::pasid_iotlb(low, high),
            7 => decode::pasid_cache(low, high),
            8 => decode::pasid_device_tlb(low, high),
            9 => decode::page_group_response(words),
            opcode => Err(CommandError::UnknownOpcode { opcode }),
        }
    }
}

/// Returns the type of the descriptor, 7 bits in two fields.
const fn type_of(low: u64) -> u16 {
    (TYPE.get(low) | TYPE_HIGH.get(low) << 4) as u16
}

/// Returns word 1 of an invalidation of a block.
const fn encode_block(span: Span, is_leaf_only: bool) -> u64 {
    span.start() | ADDRESS_MASK.put(span.order() as u64) | when(is_leaf_only, INVALIDATION_HINT)
}

impl ContextScope {
    const fn encode(self) -> u64 {
        match self {
            Self::Global => GRANULARITY.put(1),
            Self::Domain { domain_id } => GRANULARITY.put(2) | DOMAIN_ID.put(domain_id as u64),
            Self::Device {
                domain_id,
                source_id,
                function_mask,
            } => {
                GRANULARITY.put(3)
                    | DOMAIN_ID.put(domain_id as u64)
                    | SOURCE_ID.put(source_id as u64)
                    | FUNCTION_MASK.put(function_mask.field())
            }
        }
    }
}

impl IotlbScope {
    const fn encode(self) -> [u64; 2] {
        match self {
            Self::Global => [GRANULARITY.put(1), 0],
            Self::Domain { domain_id } => [GRANULARITY.put(2) | DOMAIN_ID.put(domain_id as u64), 0],
            Self::Pages {
                domain_id,
                span,
                is_leaf_only,
            } => [
                GRANULARITY.put(3) | DOMAIN_ID.put(domain_id as u64),
                encode_block(span, is_leaf_only),
            ],
        }
    }
}

impl PasidIotlbScope {
    const fn encode(self) -> [u64; 2] {
        match self {
            Self::All => [GRANULARITY.put(2), 0],
            Self::Pages { span, is_leaf_only } => {
                [GRANULARITY.put(3), encode_block(span, is_leaf_only)]
            }
        }
    }
}

impl PasidCacheScope {
    const fn encode(self) -> u64 {
        match self {
            Self::Domain { domain_id } => DOMAIN_ID.put(domain_id as u64),
            Self::Pasid { domain_id, pasid } => {
                GRANULARITY.put(1) | DOMAIN_ID.put(domain_id as u64) | PASID.put(pasid.get() as u64)
            }
            Self::Global => GRANULARITY.put(3),
        }
    }
}

impl InterruptScope {
    const fn encode(self) -> u64 {
        match self {
            Self::Global => 0,
            Self::Entries { index, mask } => {
                INDEX_SELECTIVE | INDEX.put(index as u64) | INDEX_MASK.put(mask.field())
            }
        }
    }
}

impl Device {
    /// Returns PFSID, which stands in two fields.
    const fn encode_function(self) -> u64 {
        PHYSICAL_FUNCTION_LOW.put((self.physical_function & 0xf) as u64)
            | PHYSICAL_FUNCTION_HIGH.put((self.physical_function >> 4) as u64)
    }

    const fn decode_function(low: u64) -> u16 {
        (PHYSICAL_FUNCTION_LOW.get(low) | PHYSICAL_FUNCTION_HIGH.get(low) << 4) as u16
    }
}

#[cfg(test)]
mod tests;
