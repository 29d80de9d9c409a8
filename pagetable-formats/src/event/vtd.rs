//! Records of a VT-d unit: the descriptors of its page request queue, and its fault recording registers.
//!
//! Source: *Intel Virtualization Technology for Directed I/O, Architecture Specification*, revision 4.1,
//! section 7.4.1 (page request descriptors, 32 bytes) and section 11.4.14 (fault recording registers, 16 bytes);
//! private data of page requests as in revision 3.0, which later ones dropped. Descriptors of 16 bytes are those
//! of a mode that revision 3.0 took away.
//!
//! ```
//! use iopt_formats::event::vtd::PageRequest;
//!
//! // Function 0100 asks to read 0x1234_5000 under PASID 5: the last request of group 7.
//! let words = [0x5_0100_0101, 0x1234_5000 | 7 << 3 | 1 << 2 | 1, 0, 0];
//! let request = PageRequest::decode(words).expect("type 1");
//! assert_eq!((request.requester_id, request.group.get()), (0x100, 7));
//! assert!(request.is_last && request.is_read && !request.is_write);
//! ```

#[cfg(test)]
mod tests;

use crate::command::{Narrow, Pasid};
use crate::{Bits, Iova, bit};

const TYPE: Bits<7, 0> = Bits;
const PASID_PRESENT: u64 = bit(8);
const PRIVATE_DATA_PRESENT: u64 = bit(9);
const REQUESTER_ID: Bits<31, 16> = Bits;
const REQUEST_PASID: Bits<51, 32> = Bits;
const EXECUTE_REQUESTED: u64 = bit(52);
const PRIVILEGED_REQUESTED: u64 = bit(53);
/// In word 1, as all that follows of requests.
const READ_REQUESTED: u64 = bit(0);
const WRITE_REQUESTED: u64 = bit(1);
const LAST_IN_GROUP: u64 = bit(2);
const GROUP: Bits<11, 3> = Bits;
const PAGE: Bits<63, 12> = Bits;

/// `Page_req_dsc`.
const PAGE_REQUEST: u64 = 1;

/// FI, in the lower word.
const FAULT_PAGE: Bits<63, 12> = Bits;
const INTERRUPT_INDEX: Bits<63, 48> = Bits;
/// In the upper word, as all that follows of faults.
const SOURCE_ID: Bits<15, 0> = Bits;
/// T2.
const TYPE_LOW: u64 = bit(28);
const PRIVILEGED: u64 = bit(29);
const EXECUTE: u64 = bit(30);
const FAULT_PASID_PRESENT: u64 = bit(31);
const REASON: Bits<39, 32> = Bits;
const FAULT_PASID: Bits<59, 40> = Bits;
const ADDRESS_TYPE: Bits<61, 60> = Bits;
/// T1.
const TYPE_HIGH: u64 = bit(62);
/// F.
const FAULT: u64 = bit(63);

/// A record of the page request queue: a device asks for a page.
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is an independent bit of the record"
)]
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct PageRequest {
    /// The device (RID).
    pub requester_id: u16,
    /// The PASID of the request, if it has one (PP).
    pub pasid: Option<Pasid>,
    /// The group (PRGI).
    pub group: Narrow<9>,
    /// No request of the group follows (LPIG).
    pub is_last: bool,
    /// It is to be read (RR).
    pub is_read: bool,
    /// It is to be written (WR).
    pub is_write: bool,
    /// Instructions are to be fetched from it (EXR).
    pub is_fetch: bool,
    /// By privileged software (PMR).
    pub is_privileged: bool,
    /// The page; bits below 12 are dropped.
    pub address: Iova,
    /// What the device sent along, if it did (PDP). The request has to be answered on its own then, with the same
    /// data, even if it is not the last one of its group.
    pub private_data: Option<[u64; 2]>,
}

impl PageRequest {
    /// Decodes a record, word 0 first; `None` if it is of a type that the specification reserves.
    pub const fn decode(words: [u64; 4]) -> Option<Self> {
        let [low, high, ..] = words;
        if TYPE.get(low) != PAGE_REQUEST {
            return None;
        }
        Some(Self {
            requester_id: REQUESTER_ID.get(low) as u16,
            pasid: if low & PASID_PRESENT == 0 {
                None
            } else {
                Some(Pasid::from_field(REQUEST_PASID.get(low)))
            },
            group: Narrow::from_field(GROUP.get(high)),
            is_last: high & LAST_IN_GROUP != 0,
            is_read: high & READ_REQUESTED != 0,
            is_write: high & WRITE_REQUESTED != 0,
            is_fetch: low & EXECUTE_REQUESTED != 0,
            is_privileged: low & PRIVILEGED_REQUESTED != 0,
            address: Iova::new(high & PAGE.mask()),
            private_data: if low & PRIVATE_DATA_PRESENT == 0 {
                None
            } else {
                Some([words[2], words[3]])
            },
        })
    }

    /// Returns the words of the record, word 0 first.
    pub const fn encode(&self) -> [u64; 4] {
        let pasid = match self.pasid {
            None => 0,
            Some(pasid) => PASID_PRESENT | REQUEST_PASID.put(pasid.get() as u64),
        };
        let (has_data, [data_low, data_high]) = match self.private_data {
            None => (false, [0; 2]),
            Some(data) => (true, data),
        };
        [
            TYPE.put(PAGE_REQUEST)
                | pasid
                | when(PRIVATE_DATA_PRESENT, has_data)
                | REQUESTER_ID.put(self.requester_id as u64)
                | when(EXECUTE_REQUESTED, self.is_fetch)
                | when(PRIVILEGED_REQUESTED, self.is_privileged),
            when(READ_REQUESTED, self.is_read)
                | when(WRITE_REQUESTED, self.is_write)
                | when(LAST_IN_GROUP, self.is_last)
                | GROUP.put(self.group.field())
                | self.address.get() & PAGE.mask(),
            data_low,
            data_high,
        ]
    }

    /// Returns whether it asks for nothing, but says that the device has sent its last request with the PASID
    /// (Stop Marker). It is not answered.
    pub const fn is_stop_marker(&self) -> bool {
        self.pasid.is_some() && self.is_last && !self.is_read && !self.is_write
    }
}

/// A fault recording register that recorded a fault: a request that the unit refused, and that cannot be repeated.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Fault {
    /// The requester ID (SID).
    pub source_id: u16,
    /// Why, as the specification numbers it (FR; section 7.1.3 and annex A).
    pub reason: u8,
    /// What was refused.
    pub refused: Refused,
}

/// A request that was refused.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Refused {
    /// An interrupt.
    Interrupt {
        /// Its entry of the remapping table, where the reason is about one (FI).
        index: u16,
    },
    /// A request for memory, or for a page.
    Memory {
        /// What it wanted (T1 and T2).
        access: Access,
        /// What its address was (AT).
        address_type: AddressType,
        /// The PASID, if it had one (PP).
        pasid: Option<Pasid>,
        /// It was a fetch of instructions (EXE).
        is_fetch: bool,
        /// It was privileged (PRIV).
        is_privileged: bool,
        /// The page (FI); bits below 12 are dropped.
        address: Iova,
    },
}

/// What a request wanted that was refused (T1 and T2).
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Access {
    /// To write.
    Write,
    /// A page.
    PageRequest,
    /// To read. Units that do not know the others say this of atomic operations, too.
    Read,
    /// An atomic operation.
    Atomic,
}

/// What the address of a request was (AT). Units without device TLBs say that all are untranslated.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum AddressType {
    /// The unit was to translate it.
    Untranslated,
    /// The device asked for its translation.
    TranslationRequest,
    /// The device had translated it.
    Translated,
    /// A code that the specification reserves.
    Reserved,
}

impl Fault {
    /// What is written to the upper word of the register to make it free for the next fault (F).
    pub const CLEAR: u64 = FAULT;

    /// Decodes a register, lower word first; `None` if it recorded nothing (F).
    pub const fn decode(words: [u64; 2]) -> Option<Self> {
        let [low, high] = words;
        if high & FAULT == 0 {
            return None;
        }
        let reason = REASON.get(high) as u8;
        let refused = if is_about_interrupts(reason) {
            Refused::Interrupt {
                index: INTERRUPT_INDEX.get(low) as u16,
            }
        } else {
            Refused::Memory {
                access: match (high & TYPE_HIGH != 0, high & TYPE_LOW != 0) {
                    (false, false) => Access::Write,
                    (false, true) => Access::PageRequest,
                    (true, false) => Access::Read,
                    (true, true) => Access::Atomic,
                },
                address_type: match ADDRESS_TYPE.get(high) {
                    0 => AddressType::Untranslated,
                    1 => AddressType::TranslationRequest,
                    2 => AddressType::Translated,
                    _ => AddressType::Reserved,
                },
                pasid: if high & FAULT_PASID_PRESENT == 0 {
                    None
                } else {
                    Some(Pasid::from_field(FAULT_PASID.get(high)))
                },
                is_fetch: high & EXECUTE != 0,
                is_privileged: high & PRIVILEGED != 0,
                address: Iova::new(low & FAULT_PAGE.mask()),
            }
        };
        Some(Self {
            source_id: SOURCE_ID.get(high) as u16,
            reason,
            refused,
        })
    }

    /// Returns the words of the register, lower word first. What was refused has to be what the reason is about,
    /// or is decoded as something else.
    pub const fn encode(&self) -> [u64; 2] {
        let common = FAULT | SOURCE_ID.put(self.source_id as u64) | REASON.put(self.reason as u64);
        match self.refused {
            Refused::Interrupt { index } => [INTERRUPT_INDEX.put(index as u64), common],
            Refused::Memory {
                access,
                address_type,
                pasid,
                is_fetch,
                is_privileged,
                address,
            } => {
                let access = match access {
                    Access::Write => 0,
                    Access::PageRequest => TYPE_LOW,
                    Access::Read => TYPE_HIGH,
                    Access::Atomic => TYPE_HIGH | TYPE_LOW,
                };
                let address_type = match address_type {
                    AddressType::Untranslated => 0,
                    AddressType::TranslationRequest => 1,
                    AddressType::Translated => 2,
                    AddressType::Reserved => 3,
                };
                let pasid = match pasid {
                    None => 0,
                    Some(pasid) => FAULT_PASID_PRESENT | FAULT_PASID.put(pasid.get() as u64),
                };
                let flags = when(EXECUTE, is_fetch) | when(PRIVILEGED, is_privileged);
                let address_type = ADDRESS_TYPE.put(address_type);
                [
                    address.get() & FAULT_PAGE.mask(),
                    common | access | address_type | pasid | flags,
                ]
            }
        }
    }
}

/// Returns whether a reason is one of interrupt remapping: 20h to 2Fh are set aside for these.
const fn is_about_interrupts(reason: u8) -> bool {
    reason >> 4 == 2
}

const fn when(bits: u64, is_set: bool) -> u64 {
    if is_set { bits } else { 0 }
}
