//! Records of the RISC-V IOMMU's fault queue and page-request queue.
//!
//! Source: *RISC-V IOMMU Architecture Specification*, version 1.0.1, sections "Fault/Event-Queue (FQ)" (32 bytes)
//! and "Page-Request-Queue (PQ)" (16 bytes). Whoever loads the words follows `fctl.BE`.
//!
//! ```
//! use iopt_formats::event::riscv::{Fault, Transaction};
//!
//! // Device 9 wrote to 0x1234_5678 with process ID 5, and found no page.
//! let fault = Fault::decode([9 << 40 | 3 << 34 | 1 << 32 | 5 << 12 | 15, 0, 0x1234_5678, 0]);
//! assert_eq!((fault.device.get(), fault.transaction), (9, Transaction::Write));
//! assert_eq!(fault.cause.description(), Some("write/AMO page fault"));
//! assert!(!fault.cause.is_reported_always());
//! ```

#[cfg(test)]
mod tests;

use core::fmt;

use crate::command::{Narrow, Pasid, when};
use crate::{Bits, Iova, Oa, bit};

const CAUSE: Bits<11, 0> = Bits;
const PID: Bits<31, 12> = Bits;
const PV: u64 = bit(32);
const PRIV: u64 = bit(33);
const TTYP: Bits<39, 34> = Bits;
const DID: Bits<63, 40> = Bits;
const CUSTOM: Bits<31, 0> = Bits;
/// Of `iotval2` after a fault of the second stage.
const IS_IMPLICIT: u64 = bit(0);
const IS_IMPLICIT_WRITE: u64 = bit(1);
const GUEST_ADDRESS: Bits<63, 2> = Bits;

const EXEC: u64 = bit(34);
/// The payload of a Page Request message.
const READ: u64 = bit(0);
const WRITE: u64 = bit(1);
const LAST: u64 = bit(2);
const GROUP: Bits<11, 3> = Bits;
const ADDRESS: Bits<63, 12> = Bits;

/// A record of the fault queue.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Fault {
    /// What is wrong (`CAUSE`).
    pub cause: Cause,
    /// What kind of transaction it was (`TTYP`).
    pub transaction: Transaction,
    /// Whose it was (`DID`); 0 if it was nobody's.
    pub device: Narrow<24>,
    /// Its process ID, if it had one (`PV`, `PID`).
    pub process: Option<Pasid>,
    /// It was a supervisor's (`PRIV`); never set without a process ID.
    pub is_privileged: bool,
    /// The implementation's own bits.
    pub custom: u32,
    /// The address of the transaction, possibly without its offset in the page; of a message, its code; of what is
    /// no transaction, what the cause says (`iotval`).
    pub value: u64,
    /// After a [fault of the second stage](Cause::is_of_second_stage), the address there and what accessed it:
    /// [`guest_access`](Self::guest_access). Else 0, or what the cause says (`iotval2`).
    pub value2: u64,
}

impl Fault {
    /// Decodes a record, doubleword 0 first.
    pub const fn decode(words: [u64; 4]) -> Self {
        let [head, custom, value, value2] = words;
        let process = process(head);
        Self {
            cause: Cause(Narrow::from_field(CAUSE.get(head))),
            transaction: Transaction::from_field(TTYP.get(head)),
            device: Narrow::from_field(DID.get(head)),
            process,
            is_privileged: process.is_some() && head & PRIV != 0,
            custom: CUSTOM.get(custom) as u32,
            value,
            value2,
        }
    }

    /// Returns the words of the record, doubleword 0 first.
    pub const fn encode(&self) -> [u64; 4] {
        let process = put_process(self.process, self.is_privileged);
        [
            CAUSE.put(self.cause.0.field())
                | process
                | TTYP.put(self.transaction.field())
                | DID.put(self.device.field()),
            CUSTOM.put(self.custom as u64),
            self.value,
            self.value2,
        ]
    }

    /// Returns what the second stage failed to translate; `None` if it was not that.
    pub const fn guest_access(&self) -> Option<GuestAccess> {
        if !self.cause.is_of_second_stage() {
            return None;
        }
        let is_implicit = self.value2 & IS_IMPLICIT != 0;
        Some(GuestAccess {
            address: Oa::new(self.value2 & GUEST_ADDRESS.mask()),
            is_implicit,
            is_implicit_write: is_implicit && self.value2 & IS_IMPLICIT_WRITE != 0,
        })
    }
}

/// An access to a guest-physical address that failed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct GuestAccess {
    /// Where, bits 63:2; possibly without the offset in the page.
    pub address: Oa,
    /// It was one to tables of the first stage or to a process directory, not the device's own.
    pub is_implicit: bool,
    /// It was one that was to set A or D there.
    pub is_implicit_write: bool,
}

/// Why a record was written: a code of the table "Fault record CAUSE field encodings".
#[derive(Clone, Copy, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Cause(Narrow<12>);

impl Cause {
    /// Returns the cause with a code, or `None` if that has more than 12 bits.
    pub const fn new(code: u16) -> Option<Self> {
        match Narrow::new(code as u32) {
            Some(code) => Some(Self(code)),
            None => None,
        }
    }

    /// Returns the code.
    pub const fn code(self) -> u16 {
        // It has 12 bits.
        self.0.get() as u16
    }

    /// Returns what the specification calls it; `None` for codes that are reserved or the implementation's own.
    pub const fn description(self) -> Option<&'static str> {
        Some(match self.code() {
            1 => "instruction access fault",
            4 => "read address misaligned",
            5 => "read access fault",
            6 => "write/AMO address misaligned",
            7 => "write/AMO access fault",
            12 => "instruction page fault",
            13 => "read page fault",
            15 => "write/AMO page fault",
            20 => "instruction guest page fault",
            21 => "read guest-page fault",
            23 => "write/AMO guest-page fault",
            256 => "all inbound transactions disallowed",
            257 => "DDT entry load access fault",
            258 => "DDT entry not valid",
            259 => "DDT entry misconfigured",
            260 => "transaction type disallowed",
            261 => "MSI PTE load access fault",
            262 => "MSI PTE not valid",
            263 => "MSI PTE misconfigured",
            264 => "MRIF access fault",
            265 => "PDT entry load access fault",
            266 => "PDT entry not valid",
            267 => "PDT entry misconfigured",
            268 => "DDT data corruption",
            269 => "PDT data corruption",
            270 => "MSI PT data corruption",
            271 => "MSI MRIF data corruption",
            272 => "internal data path error",
            273 => "IOMMU MSI write access fault",
            274 => "first/second-stage PT data corruption",
            _ => return None,
        })
    }

    /// Returns whether tables of the first stage had no page, or not with the right.
    pub const fn is_of_first_stage(self) -> bool {
        matches!(self.code(), 12 | 13 | 15)
    }

    /// Returns whether tables of the second stage had no page, or not with the right.
    pub const fn is_of_second_stage(self) -> bool {
        matches!(self.code(), 20 | 21 | 23)
    }

    /// Returns whether it is reported although the device's context says that its faults are not (`DTF`).
    pub const fn is_reported_always(self) -> bool {
        matches!(self.code(), 256..=259 | 268 | 272 | 273)
    }
}

impl fmt::Debug for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.code(), self)
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.description() {
            Some(description) => f.write_str(description),
            None => write!(f, "cause {}", self.code()),
        }
    }
}

/// What kind of transaction failed (table "Fault record TTYP field encodings").
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Transaction {
    /// None: no transaction caused it.
    None,
    /// An untranslated fetch of instructions.
    Fetch,
    /// An untranslated read.
    Read,
    /// An untranslated write or atomic operation.
    Write,
    /// A fetch of instructions by a translated address.
    TranslatedFetch,
    /// A read by a translated address.
    TranslatedRead,
    /// A write or atomic operation by a translated address.
    TranslatedWrite,
    /// A translation request (ATS).
    TranslationRequest,
    /// A message.
    Message,
    /// A code that is reserved, or the implementation's own.
    Reserved(u8),
}

impl Transaction {
    const fn from_field(value: u64) -> Self {
        match value {
            0 => Self::None,
            1 => Self::Fetch,
            2 => Self::Read,
            3 => Self::Write,
            5 => Self::TranslatedFetch,
            6 => Self::TranslatedRead,
            7 => Self::TranslatedWrite,
            8 => Self::TranslationRequest,
            9 => Self::Message,
            // 6 bits.
            value => Self::Reserved(value as u8),
        }
    }

    const fn field(self) -> u64 {
        match self {
            Self::None => 0,
            Self::Fetch => 1,
            Self::Read => 2,
            Self::Write => 3,
            Self::TranslatedFetch => 5,
            Self::TranslatedRead => 6,
            Self::TranslatedWrite => 7,
            Self::TranslationRequest => 8,
            Self::Message => 9,
            Self::Reserved(value) => value as u64 & 0x3f,
        }
    }
}

/// A record of the page-request queue: a device asks for a page.
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is an independent bit of the record"
)]
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct PageRequest {
    /// The device (`DID`).
    pub device: Narrow<24>,
    /// The PASID of the request, if it has one (`PV`, `PID`).
    pub process: Option<Pasid>,
    /// The group (Page Request Group Index).
    pub group: Narrow<9>,
    /// No request of the group follows (`L`).
    pub is_last: bool,
    /// It is to be read (`R`).
    pub is_read: bool,
    /// It is to be written (`W`).
    pub is_write: bool,
    /// Instructions are to be fetched from it (`EXEC`); never set without a PASID.
    pub is_fetch: bool,
    /// By privileged software (`PRIV`); never set without a PASID.
    pub is_privileged: bool,
    /// The page; bits below 12 are dropped.
    pub address: Iova,
}

impl PageRequest {
    /// Decodes a record, doubleword 0 first.
    pub const fn decode(words: [u64; 2]) -> Self {
        let [head, payload] = words;
        let process = process(head);
        Self {
            device: Narrow::from_field(DID.get(head)),
            process,
            group: Narrow::from_field(GROUP.get(payload)),
            is_last: payload & LAST != 0,
            is_read: payload & READ != 0,
            is_write: payload & WRITE != 0,
            is_fetch: process.is_some() && head & EXEC != 0,
            is_privileged: process.is_some() && head & PRIV != 0,
            address: Iova::new(payload & ADDRESS.mask()),
        }
    }

    /// Returns the words of the record, doubleword 0 first.
    pub const fn encode(&self) -> [u64; 2] {
        [
            DID.put(self.device.field())
                | put_process(self.process, self.is_privileged)
                | when(self.process.is_some() && self.is_fetch, EXEC),
            GROUP.put(self.group.field())
                | when(self.is_last, LAST)
                | when(self.is_read, READ)
                | when(self.is_write, WRITE)
                | self.address.get() & ADDRESS.mask(),
        ]
    }

    /// Returns whether it asks for nothing, but says that the device has sent its last request with the PASID
    /// (Stop Marker). It is not answered.
    pub const fn is_stop_marker(&self) -> bool {
        self.is_last && !self.is_read && !self.is_write
    }
}

const fn process(head: u64) -> Option<Pasid> {
    if head & PV == 0 {
        None
    } else {
        Some(Pasid::from_field(PID.get(head)))
    }
}

const fn put_process(process: Option<Pasid>, is_privileged: bool) -> u64 {
    match process {
        None => 0,
        Some(process) => PV | PID.put(process.get() as u64) | when(is_privileged, PRIV),
    }
}
