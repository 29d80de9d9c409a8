//! AMD-Vi: entries of the event log and of the peripheral page request log.
//!
//! Source: *AMD I/O Virtualization Technology (IOMMU) Specification*, document 48882, sections 2.5 "Event Logging"
//! and 2.6 "Peripheral Page Request (PPR) Logging". An entry has 128 bits. The specification numbers the bits of
//! four 32-bit words; here they are two words of 64 bits.
//!
//! ```
//! use iopt_formats::event::amd::{Event, Space};
//!
//! // Device 9 wrote to 0x1234_5678, where domain 5 has nothing.
//! let event = Event::decode([2 << 60 | 1 << 53 | 5 << 32 | 9, 0x1234_5678]);
//! let Event::PageFault(fault) = event else {
//!     panic!("code 2 is IO_PAGE_FAULT");
//! };
//! assert_eq!((fault.device_id, fault.space), (9, Space::Domain(5)));
//! assert!(fault.is_write && !fault.is_present);
//! ```

#[cfg(test)]
mod tests;

use crate::command::{Narrow, Pasid, when};
use crate::{Bits, Iova, bit};

const CODE: Bits<63, 60> = Bits;
const DEVICE_ID: Bits<15, 0> = Bits;
const PAGE_FAULT: u64 = 2;
const PAGE_SERVICE_REQUEST: u64 = 1;

/// Of page faults.
const FAULT_PASID_19_16: Bits<19, 16> = Bits;
const DOMAIN_OR_PASID: Bits<47, 32> = Bits;
const GUEST: u64 = bit(48);
const NO_EXECUTE: u64 = bit(49);
const USER: u64 = bit(50);
const INTERRUPT: u64 = bit(51);
const PRESENT: u64 = bit(52);
const WRITE: u64 = bit(53);
const PERMISSION: u64 = bit(54);
const RESERVED: u64 = bit(55);
const TRANSLATION: u64 = bit(56);

/// Of page requests.
const REQUEST_PASID_15_0: Bits<31, 16> = Bits;
const GROUP: Bits<40, 32> = Bits;
const LAST: u64 = bit(41);
const REQUEST_PASID_19_16: Bits<45, 42> = Bits;
const REQUEST_EXECUTE: u64 = bit(49);
const REQUEST_READ: u64 = bit(50);
const REQUEST_WRITE: u64 = bit(53);
const REQUEST_USER: u64 = bit(54);
const REQUEST_RESERVED: u64 = bit(55);
const REQUEST_GUEST: u64 = bit(56);
const PAGE: Bits<63, 12> = Bits;

/// An entry of the event log.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Event {
    /// `IO_PAGE_FAULT`: a request of a device was not translated, or not allowed.
    PageFault(PageFault),
    /// Anything else: an entry or a command that is illegal, hardware that fails, what a later revision defines.
    Other(Other),
}

/// `IO_PAGE_FAULT` (2.5.3).
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is an independent bit of the entry"
)]
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct PageFault {
    /// Whose request it was.
    pub device_id: u16,
    /// Whose addresses it used (GN).
    pub space: Space,
    /// NX, of which the specification says when it has a meaning.
    pub no_execute: bool,
    /// It was a user's (US), else a supervisor's; says something of requests with a PASID.
    pub is_user: bool,
    /// It was an interrupt (I).
    pub is_interrupt: bool,
    /// What it went to is there (PR).
    pub is_present: bool,
    /// It was a write (RW), else a read; says something of what [is present](Self::is_present).
    pub is_write: bool,
    /// It lacked the right (PE).
    pub lacks_permission: bool,
    /// A reserved bit was set in a table, or a level made no sense (RZ).
    pub is_malformed: bool,
    /// It asked for a translation (TR), else it was a transaction.
    pub is_translation: bool,
    /// Its address.
    pub address: Iova,
}

/// What a page fault names, besides the device.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Space {
    /// The domain of the device's entry.
    Domain(u16),
    /// A PASID of the device's guest CR3 table.
    Process(Pasid),
}

/// An entry that is no page fault.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct Other {
    words: [u64; 2],
}

impl Event {
    /// Decodes an entry.
    pub const fn decode(words: [u64; 2]) -> Self {
        let [low, high] = words;
        if CODE.get(low) != PAGE_FAULT {
            return Self::Other(Other { words });
        }
        // It has 16 bits.
        let id = DOMAIN_OR_PASID.get(low);
        Self::PageFault(PageFault {
            device_id: DEVICE_ID.get(low) as u16,
            space: if low & GUEST == 0 {
                Space::Domain(id as u16)
            } else {
                Space::Process(Pasid::from_field(FAULT_PASID_19_16.get(low) << 16 | id))
            },
            no_execute: low & NO_EXECUTE != 0,
            is_user: low & USER != 0,
            is_interrupt: low & INTERRUPT != 0,
            is_present: low & PRESENT != 0,
            is_write: low & WRITE != 0,
            lacks_permission: low & PERMISSION != 0,
            is_malformed: low & RESERVED != 0,
            is_translation: low & TRANSLATION != 0,
            address: Iova::new(high),
        })
    }

    /// Returns the two words of the entry.
    pub const fn encode(&self) -> [u64; 2] {
        match self {
            Self::PageFault(fault) => fault.encode(),
            Self::Other(other) => other.words,
        }
    }
}

impl PageFault {
    /// Returns the two words of the entry.
    pub const fn encode(&self) -> [u64; 2] {
        let space = match self.space {
            Space::Domain(id) => DOMAIN_OR_PASID.put(id as u64),
            Space::Process(pasid) => {
                let pasid = pasid.get() as u64;
                GUEST | FAULT_PASID_19_16.put(pasid >> 16) | DOMAIN_OR_PASID.put(pasid & 0xffff)
            }
        };
        let low = CODE.put(PAGE_FAULT)
            | DEVICE_ID.put(self.device_id as u64)
            | space
            | when(self.no_execute, NO_EXECUTE)
            | when(self.is_user, USER)
            | when(self.is_interrupt, INTERRUPT)
            | when(self.is_present, PRESENT)
            | when(self.is_write, WRITE)
            | when(self.lacks_permission, PERMISSION)
            | when(self.is_malformed, RESERVED)
            | when(self.is_translation, TRANSLATION);
        [low, self.address.get()]
    }
}

impl Other {
    /// Returns its code, 4 bits.
    pub const fn code(self) -> u8 {
        CODE.get(self.words[0]) as u8
    }

    /// Returns what the specification calls it; `None` for codes that are reserved.
    pub const fn name(self) -> Option<&'static str> {
        Some(match self.code() {
            1 => "ILLEGAL_DEV_TABLE_ENTRY",
            3 => "DEV_TAB_HARDWARE_ERROR",
            4 => "PAGE_TAB_HARDWARE_ERROR",
            5 => "ILLEGAL_COMMAND_ERROR",
            6 => "COMMAND_HARDWARE_ERROR",
            7 => "IOTLB_INV_TIMEOUT",
            8 => "INVALID_DEVICE_REQUEST",
            9 => "INVALID_PPR_REQUEST",
            10 => "EVENT_COUNTER_ZERO",
            11 => "GUEST_EVENT_FAULT",
            12 => "VIOMMU_HARDWARE_ERROR",
            13 => "RMP_PAGE_FAULT",
            14 => "RMP_HARDWARE_ERROR",
            _ => return None,
        })
    }

    /// Returns the device, if it is about one.
    pub const fn device_id(self) -> Option<u16> {
        match self.code() {
            1 | 3 | 4 | 7..=9 => Some(DEVICE_ID.get(self.words[0]) as u16),
            _ => None,
        }
    }

    /// Returns the two words of the entry.
    pub const fn words(self) -> [u64; 2] {
        self.words
    }
}

/// `PAGE_SERVICE_REQUEST`, an entry of the page request log: a device asks for a page.
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is an independent bit of the entry"
)]
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct PageRequest {
    /// The device.
    pub device_id: u16,
    /// The PASID of the request, if it has one (GN).
    pub pasid: Option<Pasid>,
    /// The group (PPR tag, bits 8:0).
    pub group: Narrow<9>,
    /// No request of the group follows (PPR tag, bit 9).
    pub is_last: bool,
    /// It is to be read.
    pub is_read: bool,
    /// It is to be written.
    pub is_write: bool,
    /// Instructions are to be fetched from it.
    pub is_fetch: bool,
    /// By privileged software (US clear); never set without a PASID.
    pub is_privileged: bool,
    /// A reserved bit was set in the request (RZ), so that nobody knows what it asks for.
    pub is_malformed: bool,
    /// The page; bits below 12 are dropped.
    pub address: Iova,
}

impl PageRequest {
    /// Decodes an entry; `None` if it is no page request. One that hardware has announced and not written yet has the
    /// code 0.
    pub const fn decode(words: [u64; 2]) -> Option<Self> {
        let [low, high] = words;
        if CODE.get(low) != PAGE_SERVICE_REQUEST {
            return None;
        }
        let has_pasid = low & REQUEST_GUEST != 0;
        let pasid = REQUEST_PASID_19_16.get(low) << 16 | REQUEST_PASID_15_0.get(low);
        Some(Self {
            device_id: DEVICE_ID.get(low) as u16,
            pasid: if has_pasid {
                Some(Pasid::from_field(pasid))
            } else {
                None
            },
            group: Narrow::from_field(GROUP.get(low)),
            is_last: low & LAST != 0,
            is_read: low & REQUEST_READ != 0,
            is_write: low & REQUEST_WRITE != 0,
            is_fetch: low & REQUEST_EXECUTE != 0,
            is_privileged: has_pasid && low & REQUEST_USER == 0,
            is_malformed: low & REQUEST_RESERVED != 0,
            address: Iova::new(high & PAGE.mask()),
        })
    }

    /// Returns the two words of the entry.
    pub const fn encode(&self) -> [u64; 2] {
        let pasid = match self.pasid {
            None => 0,
            Some(pasid) => {
                let pasid = pasid.get() as u64;
                REQUEST_GUEST
                    | REQUEST_PASID_19_16.put(pasid >> 16)
                    | REQUEST_PASID_15_0.put(pasid & 0xffff)
                    | when(!self.is_privileged, REQUEST_USER)
            }
        };
        let low = CODE.put(PAGE_SERVICE_REQUEST)
            | DEVICE_ID.put(self.device_id as u64)
            | pasid
            | GROUP.put(self.group.field())
            | when(self.is_last, LAST)
            | when(self.is_read, REQUEST_READ)
            | when(self.is_write, REQUEST_WRITE)
            | when(self.is_fetch, REQUEST_EXECUTE)
            | when(self.is_malformed, REQUEST_RESERVED);
        [low, self.address.get() & PAGE.mask()]
    }

    /// Returns whether it asks for nothing, but says that the device has sent its last request with the PASID
    /// (Stop Marker). It is not answered.
    pub const fn is_stop_marker(&self) -> bool {
        self.pasid.is_some() && self.is_last && !self.is_read && !self.is_write
    }
}
