//! Commands of the RISC-V IOMMU.
//!
//! Source: *RISC-V IOMMU Architecture Specification*, version 1.0.1, section "Command-Queue (CQ)", and the
//! extensions "Non-leaf PTE Invalidation" (NL) and "Address Range Invalidation" (S), version 1.0. A command
//! is 16 bytes; whoever stores the words follows `fctl.BE`.
//!
//! An operand that a valid bit makes ignored (GSCID where GV is clear, say) must be zero here.
//!
//! ```
//! use iopt_formats::command::Span;
//! use iopt_formats::command::riscv::{Command, Target};
//!
//! let command = Command::IotinvalVma {
//!     gscid: None,
//!     pscid: None,
//!     target: Some(Target {
//!         span: Span::new(0x1234_5000, 0).unwrap(),
//!         is_leaf: true,
//!     }),
//! };
//! // The page number, not the address, stands from bit 10 on.
//! assert_eq!(command.encode(), [0x401, 0x12345 << 10]);
//! assert_eq!(Command::decode(command.encode()), Ok(command));
//! ```

mod target;

#[cfg(test)]
mod tests;

pub use self::target::Target;

use self::target::{AV, NL, decode_span};
use crate::command::{
    CommandError, Narrow, PageResponse, Pasid, Span, attempt, check_reserved, when,
};
use crate::{Bits, Oa, bit};

/// The opcode and func3, which is part of it.
const OPCODE: Bits<9, 0> = Bits;
/// PSCID of IOTINVAL and PID of IODIR and ATS.
const ID: Bits<31, 12> = Bits;
const PSCV: u64 = bit(32);
const GV: u64 = bit(33);
const GSCID: Bits<59, 44> = Bits;
const WSI: u64 = bit(11);
const PR: u64 = bit(12);
const PW: u64 = bit(13);
const DATA: Bits<63, 32> = Bits;
/// Bits 63:2 of the address of a store.
const STORE: Bits<61, 0> = Bits;
const DV: u64 = bit(33);
const DID: Bits<63, 40> = Bits;
const PV: u64 = bit(32);
const DSV: u64 = bit(33);
const RID: Bits<55, 40> = Bits;
const DSEG: Bits<63, 56> = Bits;
const GLOBAL: u64 = bit(0);
const RANGE: u64 = bit(11);
const UNTRANSLATED: Bits<63, 12> = Bits;
const GROUP: Bits<40, 32> = Bits;
const RESPONSE: Bits<47, 44> = Bits;

/// A command.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Command {
    /// `IOTINVAL.VMA`: drops what is cached of first-stage tables.
    IotinvalVma {
        /// The VM; `None` is the host: contexts without a second stage.
        gscid: Option<u16>,
        /// The address space; `None` is all, and global mappings with them.
        pscid: Option<Narrow<20>>,
        /// Which addresses; `None` is all, and pointers to tables with them.
        target: Option<Target>,
    },
    /// `IOTINVAL.GVMA`: drops what is cached of second-stage tables.
    IotinvalGvma {
        /// The VM; `None` is all.
        gscid: Option<u16>,
        /// Which guest-physical addresses, ignored for all VMs; `None` is all, and pointers to tables with
        /// them.
        target: Option<Target>,
    },
    /// `IOFENCE.C`: waits for the commands before it.
    IofenceC {
        /// What is stored on completion.
        store: Option<Store>,
        /// Completion raises the wired interrupt of the queue (WSI).
        has_interrupt: bool,
        /// Reads of devices that were processed before are globally ordered on completion (PR).
        has_read_order: bool,
        /// Writes of devices that were processed before are globally ordered on completion (PW).
        has_write_order: bool,
    },
    /// `IODIR.INVAL_DDT`: drops what is cached of device contexts, and of process contexts below them.
    IodirInvalDdt {
        /// The device, of whose contexts only the last level is dropped; `None` is everything.
        device: Option<Narrow<24>>,
    },
    /// `IODIR.INVAL_PDT`: drops a process context.
    IodirInvalPdt {
        /// The device.
        device: Narrow<24>,
        /// The process.
        process: Pasid,
    },
    /// `ATS.INVAL`: drops what a device has cached.
    AtsInval {
        /// The device.
        function: Function,
        /// The PASID; `None` sends a request without, which reaches what was asked for with any.
        pasid: Option<Pasid>,
        /// Translations of all PASIDs are meant (G).
        is_global: bool,
        /// Where.
        span: Span,
    },
    /// `ATS.PRGR`: answers a group of page requests.
    AtsPrgr {
        /// The device.
        function: Function,
        /// The PASID of the requests, if they had one.
        pasid: Option<Pasid>,
        /// The group.
        group: Narrow<9>,
        /// The answer.
        response: PageResponse,
    },
}

/// The 32-bit store that an `IOFENCE.C` ends with.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct Store {
    /// Where to; bits below 2 are dropped.
    pub address: Oa,
    /// What, in the byte order of `fctl.BE`.
    pub data: u32,
}

/// A PCI function that a message goes to.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Function {
    /// Its segment (DSEG), if the system has several.
    pub segment: Option<u8>,
    /// Bus, device and function (RID).
    pub requester: u16,
}

/// What of an IOMMU decides which commands are legal, as its `capabilities` and `fctl` say.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
#[expect(clippy::struct_excessive_bools, reason = "bits of registers")]
pub struct Features {
    /// `capabilities.NL`: pointers to tables can be dropped by address.
    pub has_non_leaf: bool,
    /// `capabilities.S`: address ranges.
    pub has_ranges: bool,
    /// `capabilities.ATS`.
    pub has_ats: bool,
    /// `fctl.WSI`: interrupts are wires.
    pub has_wires: bool,
}

impl Command {
    /// Returns the words of the command, doubleword 0 first.
    pub const fn encode(&self) -> [u64; 2] {
        let opcode = self.opcode() as u64;
        let [word0, word1] = match *self {
            Self::IotinvalVma {
                gscid,
                pscid,
                target,
            } => {
                let address_space = match pscid {
                    Some(pscid) => PSCV | ID.put(pscid.field()),
                    None => 0,
                };
                let [word0, word1] = Target::encode(target);
                [word0 | vm(gscid) | address_space, word1]
            }
            Self::IotinvalGvma { gscid, target } => {
                let [word0, word1] = Target::encode(target);
                [word0 | vm(gscid), word1]
            }
            Self::IofenceC {
                store,
                has_interrupt,
                has_read_order,
                has_write_order,
            } => {
                let flags =
                    when(has_interrupt, WSI) | when(has_read_order, PR) | when(has_write_order, PW);
                match store {
                    Some(Store { address, data }) => [
                        flags | AV | DATA.put(data as u64),
                        STORE.put(address.get() >> 2),
                    ],
                    None => [flags, 0],
                }
            }
            Self::IodirInvalDdt { device } => match device {
                Some(device) => [DV | DID.put(device.field()), 0],
                None => [0, 0],
            },
            Self::IodirInvalPdt { device, process } => [
                DV | DID.put(device.field()) | ID.put(process.get() as u64),
                0,
            ],
            Self::AtsInval {
                function,
                pasid,
                is_global,
                span,
            } => [
                message(function, pasid),
                span.address_field() | when(is_global, GLOBAL) | when(span.has_size(), RANGE),
            ],
            Self::AtsPrgr {
                function,
                pasid,
                group,
                response,
            } => [
                message(function, pasid),
                GROUP.put(group.field()) | RESPONSE.put(response as u64),
            ],
        };
        [word0 | opcode, word1]
    }

    /// Decodes the words of a command, doubleword 0 first.
    ///
    /// Accepts what any IOMMU may accept; [`check`](Self::check) knows one IOMMU.
    ///
    /// # Errors
    ///
    /// [`CommandError`] if an opcode, a bit or a value is reserved.
    pub const fn decode(words: [u64; 2]) -> Result<Self, CommandError> {
        let opcode = OPCODE.get(words[0]) as u16;
        let Some([mask0, mask1]) = legal_bits(opcode) else {
            return Err(CommandError::UnknownOpcode { opcode });
        };
        attempt!(check_reserved(0, words[0], !(mask0 | OPCODE.mask())));
        attempt!(check_reserved(1, words[1], !mask1));
        let [word0, word1] = words;
        Ok(match opcode {
            0x001 => Self::IotinvalVma {
                gscid: attempt!(decode_vm(word0)),
                pscid: match attempt!(operand("PSCID", word0 & PSCV != 0, ID.get(word0))) {
                    Some(value) => Some(Narrow::from_field(value)),
                    None => None,
                },
                target: attempt!(Target::decode(words)),
            },
            0x081 => Self::IotinvalGvma {
                gscid: attempt!(decode_vm(word0)),
                target: attempt!(Target::decode(words)),
            },
            0x002 => Self::IofenceC {
                store: attempt!(decode_store(words)),
                has_interrupt: word0 & WSI != 0,
                has_read_order: word0 & PR != 0,
                has_write_order: word0 & PW != 0,
            },
            0x003 => Self::IodirInvalDdt {
                device: match attempt!(operand("DID", word0 & DV != 0, DID.get(word0))) {
                    Some(value) => Some(Narrow::from_field(value)),
                    None => None,
                },
            },
            0x083 => {
                if word0 & DV == 0 {
                    return Err(CommandError::ReservedValue {
                        field: "DV",
                        value: 0,
                    });
                }
                Self::IodirInvalPdt {
                    device: Narrow::from_field(DID.get(word0)),
                    process: Pasid::from_field(ID.get(word0)),
                }
            }
            0x004 => {
                let encoded = word1 & UNTRANSLATED.mask();
                Self::AtsInval {
                    function: attempt!(decode_function(word0)),
                    pasid: attempt!(decode_pasid(word0)),
                    is_global: word1 & GLOBAL != 0,
                    span: attempt!(decode_span(encoded, word1 & RANGE != 0)),
                }
            }
            _ => Self::AtsPrgr {
                function: attempt!(decode_function(word0)),
                pasid: attempt!(decode_pasid(word0)),
                group: Narrow::from_field(GROUP.get(word1)),
                response: attempt!(PageResponse::from_field(
                    "Response Code",
                    RESPONSE.get(word1)
                )),
            },
        })
    }

    /// Refuses a command that an IOMMU with `features` does not have: it stops the queue (`cmd_ill`).
    ///
    /// # Errors
    ///
    /// [`CommandError`] for NL, S, WSI or an ATS command without its feature.
    pub const fn check(&self, features: Features) -> Result<(), CommandError> {
        match *self {
            Self::IotinvalVma {
                target: Some(target),
                ..
            }
            | Self::IotinvalGvma {
                target: Some(target),
                ..
            } => target.check(features),
            Self::IofenceC {
                has_interrupt: true,
                ..
            } if !features.has_wires => Err(CommandError::ReservedBits { word: 0, bits: WSI }),
            Self::AtsInval { .. } | Self::AtsPrgr { .. } if !features.has_ats => {
                Err(CommandError::UnknownOpcode {
                    opcode: self.opcode(),
                })
            }
            _ => Ok(()),
        }
    }

    /// Returns the opcode in bits 6:0, and func3 in bits 9:7.
    pub const fn opcode(&self) -> u16 {
        match self {
            Self::IotinvalVma { .. } => 0x001,
            Self::IotinvalGvma { .. } => 0x081,
            Self::IofenceC { .. } => 0x002,
            Self::IodirInvalDdt { .. } => 0x003,
            Self::IodirInvalPdt { .. } => 0x083,
            Self::AtsInval { .. } => 0x004,
            Self::AtsPrgr { .. } => 0x084,
        }
    }
}

/// Returns the bits of both words that commands with `opcode` have, the opcode itself left out.
const fn legal_bits(opcode: u16) -> Option<[u64; 2]> {
    const ADDRESSED: u64 = AV | NL | GV | GSCID.mask();
    const TARGET: u64 = target::ADDR.mask() | target::S;
    const MESSAGE: u64 = ID.mask() | PV | DSV | RID.mask() | DSEG.mask();
    Some(match opcode {
        0x001 => [ADDRESSED | PSCV | ID.mask(), TARGET],
        // Without PSCV, which is illegal, and the PSCID that it makes ignored.
        0x081 => [ADDRESSED, TARGET],
        0x002 => [AV | WSI | PR | PW | DATA.mask(), STORE.mask()],
        0x003 => [DV | DID.mask(), 0],
        0x083 => [DV | DID.mask() | ID.mask(), 0],
        0x004 => [MESSAGE, GLOBAL | RANGE | UNTRANSLATED.mask()],
        0x084 => [MESSAGE, GROUP.mask() | RESPONSE.mask()],
        _ => return None,
    })
}

const fn vm(gscid: Option<u16>) -> u64 {
    match gscid {
        Some(gscid) => GV | GSCID.put(gscid as u64),
        None => 0,
    }
}

const fn message(function: Function, pasid: Option<Pasid>) -> u64 {
    let process = match pasid {
        Some(pasid) => PV | ID.put(pasid.get() as u64),
        None => 0,
    };
    let segment = match function.segment {
        Some(segment) => DSV | DSEG.put(segment as u64),
        None => 0,
    };
    process | segment | RID.put(function.requester as u64)
}

/// Returns the `value` of a field that `is_valid`; one that is not must be zero.
const fn operand(
    field: &'static str,
    is_valid: bool,
    value: u64,
) -> Result<Option<u64>, CommandError> {
    match value {
        _ if is_valid => Ok(Some(value)),
        0 => Ok(None),
        _ => Err(CommandError::ReservedValue { field, value }),
    }
}

const fn decode_vm(word0: u64) -> Result<Option<u16>, CommandError> {
    Ok(
        match attempt!(operand("GSCID", word0 & GV != 0, GSCID.get(word0))) {
            Some(value) => Some(value as u16),
            None => None,
        },
    )
}

const fn decode_store(words: [u64; 2]) -> Result<Option<Store>, CommandError> {
    let has_store = words[0] & AV != 0;
    let data = attempt!(operand("DATA", has_store, DATA.get(words[0])));
    let address = attempt!(operand("ADDR", has_store, STORE.get(words[1])));
    Ok(match (address, data) {
        (Some(address), Some(data)) => Some(Store {
            address: Oa::new(address << 2),
            data: data as u32,
        }),
        _ => None,
    })
}

const fn decode_function(word0: u64) -> Result<Function, CommandError> {
    let segment = attempt!(operand("DSEG", word0 & DSV != 0, DSEG.get(word0)));
    Ok(Function {
        segment: match segment {
            Some(segment) => Some(segment as u8),
            None => None,
        },
        requester: RID.get(word0) as u16,
    })
}

const fn decode_pasid(word0: u64) -> Result<Option<Pasid>, CommandError> {
    Ok(
        match attempt!(operand("PID", word0 & PV != 0, ID.get(word0))) {
            Some(value) => Some(Pasid::from_field(value)),
            None => None,
        },
    )
}
