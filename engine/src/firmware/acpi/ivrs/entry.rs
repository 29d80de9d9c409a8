//! The device entries of a hardware block: whose requests an IOMMU sees.
//!
//! AMD 48882, section 5.2, IVHD device entries. Types below 0x40 have 4 bytes, those below 0x80 have 8; what is above says
//! its length itself, and only one such type is known.

use alloc::string::String;
use alloc::vec::Vec;

use crate::firmware::acpi::error::{AcpiError, Fault};
use crate::firmware::acpi::table::Part;
use crate::topology::RequesterId;

/// A device entry, or the two that begin and end a range.
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum Entry {
    /// Functions.
    Functions {
        /// The first one.
        first: RequesterId,
        /// The last one.
        last: RequesterId,
        /// Under whose ID the IOMMU sees their requests, if not their own.
        alias: Option<RequesterId>,
        /// What to program.
        settings: Settings,
    },
    /// An interrupt controller or a timer.
    Special {
        /// Which of the two.
        kind: SpecialKind,
        /// Its number: the APIC ID, or that of the timer block.
        handle: u8,
        /// The ID of its requests.
        source: RequesterId,
        /// What to program.
        settings: Settings,
    },
    /// A device of the namespace.
    Named {
        /// Its hardware ID.
        hid: String,
        /// Its compatible ID; empty if there is none.
        cid: String,
        /// Its unique ID.
        uid: Option<Uid>,
        /// The ID of its requests.
        source: RequesterId,
        /// What to program.
        settings: Settings,
    },
}

/// What a device table entry is to be programmed with.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Settings {
    /// The data setting. Bits 0, 1, 2, 6, 7: INIT, external interrupts, NMI, LINT0, LINT1 pass; bits 5:4:
    /// system management messages.
    pub data: u8,
    /// The extended setting. Bit 31: the device must not use a TLB of its own.
    pub extended: u32,
}

impl Settings {
    /// Returns whether the device must not use a TLB of its own.
    pub const fn is_ats_disabled(self) -> bool {
        self.extended & 1 << 31 != 0
    }
}

/// A device that is not PCI's.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum SpecialKind {
    /// An I/O APIC.
    IoApic,
    /// A high precision event timer.
    Hpet,
}

/// What tells devices with the same hardware ID apart.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Uid {
    /// A number.
    Number(u64),
    /// A text.
    Text(String),
}

/// The first entry of a range, until its end is met.
struct Start {
    offset: usize,
    first: RequesterId,
    alias: Option<RequesterId>,
    settings: Settings,
}

impl Entry {
    /// Parses the entries of a block. Padding counts for nothing, and neither do types that this code does
    /// not know, except that its length is not known either from 0x80 on.
    pub(super) fn all(entries: &Part<'_>) -> Result<Vec<Self>, AcpiError> {
        let mut rest = *entries;
        let mut all = Vec::new();
        let mut start: Option<Start> = None;
        while rest.len() != 0 {
            let kind = rest.u8(0, "the type of a device entry")?;
            let len = match kind {
                0..0x40 => 4,
                0x40..0x80 => 8,
                0xf0 => usize::from(rest.u8(21, "the length of a unique ID")?) + 22,
                _ => {
                    let value = kind.into();
                    let what = "the type of a device entry";
                    return Err(rest.error(0, what, Fault::Value { value }));
                }
            };
            let entry = rest.split(len, len, "a device entry")?;
            let function = |at| entry.u16(at, "the function").map(RequesterId::new);
            let settings = Settings {
                data: entry.u8(3, "the data setting")?,
                extended: match kind {
                    0x46 | 0x47 => entry.u32(4, "the extended setting")?,
                    _ => 0,
                },
            };
            if kind == 0 {
                continue;
            }
            if let Some(start) = start.take() {
                let what = "a range of functions";
                if kind != 4 {
                    let at = start.offset.saturating_sub(entries.offset());
                    return Err(entries.error(at, what, Fault::Unfinished));
                }
                let (first, last) = (start.first, function(1)?);
                if last < first {
                    let (first, last) = (first.get().into(), last.get().into());
                    return Err(entry.error(1, what, Fault::Reversed { first, last }));
                }
                all.push(Self::Functions {
                    first,
                    last,
                    alias: start.alias,
                    settings: start.settings,
                });
                continue;
            }
            let alias = match kind {
                0x42 | 0x43 => Some(function(5)?),
                _ => None,
            };
            match kind {
                1 => all.push(Self::Functions {
                    first: RequesterId::MIN,
                    last: RequesterId::MAX,
                    alias,
                    settings,
                }),
                2 | 0x42 | 0x46 => all.push(Self::Functions {
                    first: function(1)?,
                    last: function(1)?,
                    alias,
                    settings,
                }),
                3 | 0x43 | 0x47 => {
                    start = Some(Start {
                        offset: entry.offset(),
                        first: function(1)?,
                        alias,
                        settings,
                    });
                }
                4 => {
                    let what = "the end of a range";
                    return Err(entry.error(0, what, Fault::Value { value: 4 }));
                }
                0x48 => all.push(Self::special(&entry, settings)?),
                0xf0 => all.push(Self::named(&entry, settings)?),
                _ => {}
            }
        }
        match start {
            Some(start) => {
                let at = start.offset.saturating_sub(entries.offset());
                Err(entries.error(at, "a range of functions", Fault::Unfinished))
            }
            None => Ok(all),
        }
    }

    fn special(entry: &Part<'_>, settings: Settings) -> Result<Self, AcpiError> {
        let what = "the kind of a special device";
        Ok(Self::Special {
            kind: match entry.u8(7, what)? {
                1 => SpecialKind::IoApic,
                2 => SpecialKind::Hpet,
                kind => {
                    let value = kind.into();
                    return Err(entry.error(7, what, Fault::Value { value }));
                }
            },
            handle: entry.u8(4, "the number of a special device")?,
            source: RequesterId::new(entry.u16(5, "the function")?),
            settings,
        })
    }

    fn named(entry: &Part<'_>, settings: Settings) -> Result<Self, AcpiError> {
        let text = |at, len, what| entry.part(at, len, what)?.padded_text(what);
        let hid = text(4, 8, "the hardware ID")?;
        if hid.is_empty() {
            return Err(entry.error(4, "the hardware ID", Fault::Text));
        }
        let what = "the format of a unique ID";
        let len = entry.len().saturating_sub(22);
        let uid = match entry.u8(20, what)? {
            0 => None,
            1 => {
                if len != 8 {
                    let what = "the length of a unique ID";
                    return Err(entry.error(21, what, Fault::Length { len }));
                }
                Some(Uid::Number(entry.u64(22, "a unique ID")?))
            }
            2 => Some(Uid::Text(text(22, len, "a unique ID")?)),
            format => {
                let value = format.into();
                return Err(entry.error(20, what, Fault::Value { value }));
            }
        };
        Ok(Self::Named {
            hid,
            cid: text(12, 8, "the compatible ID")?,
            uid,
            source: RequesterId::new(entry.u16(1, "the function")?),
            settings,
        })
    }
}
