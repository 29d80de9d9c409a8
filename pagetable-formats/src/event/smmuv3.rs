//! Records of the SMMUv3's event queue and PRI queue.
//!
//! Source: *Arm System Memory Management Unit Architecture Specification, SMMU architecture version 3*
//! (IHI 0070), section 7.3 (event records, 32 bytes) and chapter 8 (page requests, 16 bytes).
//!
//! ```
//! use iopt_formats::event::smmuv3::{Event, FaultKind};
//!
//! // A write of stream 9 to 0x1234_5678 found no translation, and waits under the tag 7.
//! let Event::Fault(fault) = Event::decode([0x9_0000_0010, 0x8000_0007 | 2 << 40, 0x1234_5678, 0])
//! else {
//!     panic!("0x10 is F_TRANSLATION");
//! };
//! assert_eq!(fault.kind, FaultKind::Translation);
//! assert_eq!((fault.stream, fault.stall), (9, Some(7)));
//! assert!(!fault.is_read);
//! ```

#[cfg(test)]
mod tests;

use crate::command::{Narrow, Pasid};
use crate::{Bits, Iova, Oa, bit};

const NUMBER: Bits<7, 0> = Bits;
const EVENT_SSV: u64 = bit(11);
const EVENT_SSID: Bits<31, 12> = Bits;
const EVENT_SID: Bits<63, 32> = Bits;
const STAG: Bits<15, 0> = Bits;
const STALL: u64 = bit(31);
const PNU: u64 = bit(33);
const IND: u64 = bit(34);
const RNW: u64 = bit(35);
const S2: u64 = bit(39);
const CLASS: Bits<41, 40> = Bits;
const IPA: Bits<55, 12> = Bits;

const PRI_SID: Bits<31, 0> = Bits;
const PRI_SSID: Bits<51, 32> = Bits;
const PRI_PRIVILEGED: u64 = bit(58);
const PRI_EXECUTE: u64 = bit(59);
const PRI_READ: u64 = bit(60);
const PRI_WRITE: u64 = bit(61);
const PRI_LAST: u64 = bit(62);
const PRI_SSV: u64 = bit(63);
const PRI_GROUP: Bits<8, 0> = Bits;
const PRI_ADDRESS: Bits<63, 12> = Bits;

/// A record of the event queue.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Event {
    /// A transaction failed in translation, and possibly waits.
    Fault(Fault),
    /// Anything else: a structure that is not valid or could not be read, or what a later revision defines.
    Other {
        /// Which event.
        number: u8,
        /// The stream, where the record names one.
        stream: u32,
        /// Its substream, where the record names one.
        substream: Option<Pasid>,
    },
}

/// `F_TRANSLATION`, `F_ADDR_SIZE`, `F_ACCESS` or `F_PERMISSION` (7.3.13 to 7.3.16).
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is an independent bit of the record"
)]
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Fault {
    /// What failed.
    pub kind: FaultKind,
    /// Whose transaction it was.
    pub stream: u32,
    /// Its substream, if it had one.
    pub substream: Option<Pasid>,
    /// The tag under which the transaction waits for `CMD_RESUME` (`STAG`); `None` if it has ended.
    pub stall: Option<u16>,
    /// It was a read (`RnW`), else a write.
    pub is_read: bool,
    /// It was a fetch of instructions (`InD`).
    pub is_fetch: bool,
    /// It was privileged (`PnU`).
    pub is_privileged: bool,
    /// Stage 2 failed (`S2`), else stage 1.
    pub is_stage2: bool,
    /// What was translated.
    pub class: FaultClass,
    /// The address of the transaction (`InputAddr`).
    pub address: Iova,
    /// The input of stage 2, bits 55:12; says something if that failed.
    pub ipa: Oa,
}

/// What failed about a translation.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
#[repr(u8)]
pub enum FaultKind {
    /// There is none (`F_TRANSLATION`).
    Translation = 0x10,
    /// Its output is too wide (`F_ADDR_SIZE`).
    AddressSize = 0x11,
    /// Its access flag is clear (`F_ACCESS`).
    Access = 0x12,
    /// It lacks the right (`F_PERMISSION`).
    Permission = 0x13,
}

/// What was translated when it failed (`CLASS`).
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum FaultClass {
    /// The address of a CD.
    Descriptor,
    /// The address of an entry of a stage 1 table.
    Table,
    /// The address of the transaction.
    Input,
    /// A code that the specification reserves.
    Reserved,
}

impl FaultClass {
    const fn from_field(value: u64) -> Self {
        match value {
            0 => Self::Descriptor,
            1 => Self::Table,
            2 => Self::Input,
            _ => Self::Reserved,
        }
    }

    const fn field(self) -> u64 {
        match self {
            Self::Descriptor => 0,
            Self::Table => 1,
            Self::Input => 2,
            Self::Reserved => 3,
        }
    }
}

impl Event {
    /// Decodes a record, word 0 first.
    pub const fn decode(words: [u64; 4]) -> Self {
        let stream = EVENT_SID.get(words[0]) as u32;
        let substream = if words[0] & EVENT_SSV == 0 {
            None
        } else {
            Some(Pasid::from_field(EVENT_SSID.get(words[0])))
        };
        let kind = match NUMBER.get(words[0]) {
            0x10 => FaultKind::Translation,
            0x11 => FaultKind::AddressSize,
            0x12 => FaultKind::Access,
            0x13 => FaultKind::Permission,
            number => {
                return Self::Other {
                    number: number as u8,
                    stream,
                    substream,
                };
            }
        };
        Self::Fault(Fault {
            kind,
            stream,
            substream,
            stall: if words[1] & STALL == 0 {
                None
            } else {
                Some(STAG.get(words[1]) as u16)
            },
            is_read: words[1] & RNW != 0,
            is_fetch: words[1] & IND != 0,
            is_privileged: words[1] & PNU != 0,
            is_stage2: words[1] & S2 != 0,
            class: FaultClass::from_field(CLASS.get(words[1])),
            address: Iova::new(words[2]),
            ipa: Oa::new(words[3] & IPA.mask()),
        })
    }

    /// Returns the words of the record, word 0 first. Of other events than faults that is what all have in
    /// common.
    pub const fn encode(&self) -> [u64; 4] {
        match self {
            Self::Fault(fault) => fault.encode(),
            Self::Other {
                number,
                stream,
                substream,
            } => [event(*number, *stream, *substream), 0, 0, 0],
        }
    }
}

impl Fault {
    /// Returns the words of the record, word 0 first.
    pub const fn encode(&self) -> [u64; 4] {
        let stall = match self.stall {
            None => 0,
            Some(tag) => STALL | STAG.put(tag as u64),
        };
        [
            event(self.kind as u8, self.stream, self.substream),
            stall
                | when(PNU, self.is_privileged)
                | when(IND, self.is_fetch)
                | when(RNW, self.is_read)
                | when(S2, self.is_stage2)
                | CLASS.put(self.class.field()),
            self.address.get(),
            self.ipa.get() & IPA.mask(),
        ]
    }
}

const fn when(bits: u64, is_set: bool) -> u64 {
    if is_set { bits } else { 0 }
}

const fn event(number: u8, stream: u32, substream: Option<Pasid>) -> u64 {
    let substream = match substream {
        None => 0,
        Some(substream) => EVENT_SSV | EVENT_SSID.put(substream.get() as u64),
    };
    NUMBER.put(number as u64) | EVENT_SID.put(stream as u64) | substream
}

/// A record of the PRI queue: a device asks for a page.
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is an independent bit of the record"
)]
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct PageRequest {
    /// The device.
    pub stream: u32,
    /// The PASID of the request, if it has one.
    pub substream: Option<Pasid>,
    /// The group (`PRGIndex`).
    pub group: Narrow<9>,
    /// No request of the group follows (`Last`).
    pub is_last: bool,
    /// It is to be read (`R`).
    pub is_read: bool,
    /// It is to be written (`W`).
    pub is_write: bool,
    /// Instructions are to be fetched from it (`X`); never set without a PASID.
    pub is_fetch: bool,
    /// By privileged software (`Priv`); never set without a PASID.
    pub is_privileged: bool,
    /// The page; bits below 12 are dropped.
    pub address: Iova,
}

impl PageRequest {
    /// Decodes a record, word 0 first.
    pub const fn decode(words: [u64; 2]) -> Self {
        let has_substream = words[0] & PRI_SSV != 0;
        Self {
            stream: PRI_SID.get(words[0]) as u32,
            substream: if has_substream {
                Some(Pasid::from_field(PRI_SSID.get(words[0])))
            } else {
                None
            },
            group: Narrow::from_field(PRI_GROUP.get(words[1])),
            is_last: words[0] & PRI_LAST != 0,
            is_read: words[0] & PRI_READ != 0,
            is_write: words[0] & PRI_WRITE != 0,
            is_fetch: words[0] & PRI_EXECUTE != 0,
            is_privileged: words[0] & PRI_PRIVILEGED != 0,
            address: Iova::new(words[1] & PRI_ADDRESS.mask()),
        }
    }

    /// Returns the words of the record, word 0 first.
    pub const fn encode(&self) -> [u64; 2] {
        let substream = match self.substream {
            None => 0,
            Some(substream) => PRI_SSV | PRI_SSID.put(substream.get() as u64),
        };
        [
            PRI_SID.put(self.stream as u64)
                | substream
                | when(PRI_PRIVILEGED, self.is_privileged)
                | when(PRI_EXECUTE, self.is_fetch)
                | when(PRI_READ, self.is_read)
                | when(PRI_WRITE, self.is_write)
                | when(PRI_LAST, self.is_last),
            PRI_GROUP.put(self.group.field()) | self.address.get() & PRI_ADDRESS.mask(),
        ]
    }

    /// Returns whether it asks for nothing, but says that the device has sent its last request with the PASID
    /// (Stop Marker). It is not answered.
    pub const fn is_stop_marker(&self) -> bool {
        self.substream.is_some() && self.is_last && !self.is_read && !self.is_write
    }
}
