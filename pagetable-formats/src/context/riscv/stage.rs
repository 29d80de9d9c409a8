//! The words that point to page tables: `iosatp`, `iohgatp`, and the `fsc` of a process context.
//!
//! Source: sections "First-Stage context" and "IO hypervisor guest address translation and
//! protection" of "Device-context fields".

use crate::riscv::{Sv, Svx4};
use crate::walk::Root;
use crate::{Bits, Format as _, Level, Oa, PageSize};

use super::features::{Features, capability};
use super::{MODE, Misconfigured, PPN, ProcessDirectory, check_reserved, page_number};

/// GSCID of `iohgatp`.
const GSCID: Bits<59, 44> = Bits;
/// The same bits of `fsc`.
const FSC_RESERVED: Bits<59, 44> = Bits;
/// MODE of `Sv39`, and of `Sv32` where addresses have 32 bits; the wider schemes follow.
const MODE_FIRST: u8 = 8;

/// What the first stage of a device goes through.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum FirstStage {
    /// One set of tables for all requests.
    Tables(FirstStageTables),
    /// A set of tables for each process.
    Directory(ProcessDirectory),
}

/// First-stage tables.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum FirstStageTables {
    /// None: addresses stay as they are.
    Bare,
    /// `Sv39`, `Sv48` or `Sv57`. The root is guest-physical if there is a second stage.
    Sv {
        /// Their format.
        format: Sv,
        /// Their root.
        root: Root,
    },
    /// `Sv32`, whose 32-bit items this crate does not read.
    Sv32 {
        /// Their root.
        root: Oa,
    },
}

/// What the second stage of a device goes through.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum SecondStage {
    /// None: addresses stay as they are.
    Bare,
    /// `Sv39x4`, `Sv48x4` or `Sv57x4`.
    Svx4 {
        /// Their format.
        format: Svx4,
        /// Their root.
        root: Root,
        /// The guest that tags translations.
        gscid: u16,
    },
    /// `Sv32x4`, whose 32-bit items this crate does not read.
    Sv32x4 {
        /// Their root.
        root: Oa,
        /// The guest that tags translations.
        gscid: u16,
    },
}

impl FirstStageTables {
    /// Returns `iosatp`, or the `fsc` of a process context.
    pub(super) fn word(self) -> Result<u64, Misconfigured> {
        match self {
            Self::Bare => Ok(0),
            Self::Sv { format, root } => {
                check_level(root, format.geometry().top)?;
                Ok(MODE.put(format.mode()) | page_number(root.oa)?)
            }
            Self::Sv32 { root } => Ok(MODE.put(MODE_FIRST.into()) | page_number(root)?),
        }
    }

    /// Returns whether the format has hardware set A and D.
    pub(super) fn updates_flags(self) -> bool {
        matches!(self, Self::Sv { format, .. } if format.dirty_rule().is_some())
    }
}

/// Refuses a root that is not at level `top`.
fn check_level(root: Root, top: Level) -> Result<(), Misconfigured> {
    if root.level == top {
        Ok(())
    } else {
        Err(Misconfigured::RootLevel { level: root.level })
    }
}

/// How a device's first-stage tables are read, whichever word points to them.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct FirstStageRules {
    pub(super) features: Features,
    /// SXL: addresses have 32 bits.
    pub(super) is_32_bit: bool,
    /// SADE: hardware sets A and D.
    pub(super) updates_flags: bool,
    /// A second stage follows, so output addresses are guest-physical.
    pub(super) is_nested: bool,
}

impl FirstStageRules {
    /// Refuses tables whose items have another width than the rules say.
    pub(super) const fn check_width(self, tables: FirstStageTables) -> Result<(), Misconfigured> {
        match (tables, self.is_32_bit) {
            (FirstStageTables::Sv { .. }, true) | (FirstStageTables::Sv32 { .. }, false) => {
                Err(Misconfigured::SupervisorWidth)
            }
            _ => Ok(()),
        }
    }

    /// Decodes word `number` of a context, an `iosatp` or a word like it.
    pub(super) fn decode(self, number: u8, word: u64) -> Result<FirstStageTables, Misconfigured> {
        check_reserved(number, word, FSC_RESERVED.mask())?;
        let mode = MODE.get(word) as u8;
        let oa = Oa::new(PPN.get(word) << 12);
        if mode == 0 {
            return Ok(FirstStageTables::Bare);
        }
        let error = Misconfigured::FirstStageMode { mode };
        if self.is_32_bit {
            let is_sv32 = mode == MODE_FIRST && self.features.has(capability::SV32);
            return if is_sv32 {
                Ok(FirstStageTables::Sv32 { root: oa })
            } else {
                Err(error)
            };
        }
        let format = match mode {
            8 => Sv::sv39(),
            9 => Sv::sv48(),
            10 => Sv::sv57(),
            _ => return Err(error),
        };
        if !self
            .features
            .has(capability::SV39 + u32::from(mode - MODE_FIRST))
        {
            return Err(error);
        }
        // "IOMMU implementations must support the Svnapot standard extension."
        let mut format = format.with_svnapot();
        if self.features.has(capability::SVPBMT) {
            format = format.with_svpbmt();
        }
        if self.updates_flags {
            format = format.with_dirty();
        }
        if !self.is_nested {
            // A PAS that no IOMMU can have leaves the width of the format.
            format = format
                .with_oa_bits(self.features.physical_bits())
                .unwrap_or(format);
        }
        let root = Root {
            oa,
            level: format.geometry().top,
        };
        Ok(FirstStageTables::Sv { format, root })
    }
}

impl SecondStage {
    /// Returns `iohgatp`.
    pub(super) fn word(self) -> Result<u64, Misconfigured> {
        let (mode, root, gscid) = match self {
            Self::Bare => return Ok(0),
            Self::Svx4 {
                format,
                root,
                gscid,
            } => {
                check_level(root, format.geometry().top)?;
                (format.mode(), root.oa, gscid)
            }
            Self::Sv32x4 { root, gscid } => (MODE_FIRST.into(), root, gscid),
        };
        Ok(MODE.put(mode) | GSCID.put(gscid.into()) | page_number(root)?)
    }

    /// Returns whether the format has hardware set A and D.
    pub(super) fn updates_flags(self) -> bool {
        matches!(self, Self::Svx4 { format, .. } if format.dirty_rule().is_some())
    }

    /// Decodes `iohgatp`, word 1 of a device context.
    pub(super) fn decode(
        word: u64,
        features: Features,
        updates_flags: bool,
    ) -> Result<Self, Misconfigured> {
        let mode = MODE.get(word) as u8;
        if mode == 0 {
            return Ok(Self::Bare);
        }
        let error = Misconfigured::SecondStageMode { mode };
        let oa = Oa::new(PPN.get(word) << 12);
        let gscid = GSCID.get(word) as u16;
        let is_aligned = PageSize::KIB_16.divides(oa.get());
        let misaligned = Misconfigured::SecondStageRoot { root: oa };
        if features.is_guest_32_bit() {
            return match (mode, features.has(capability::SV32X4)) {
                (MODE_FIRST, true) if is_aligned => Ok(Self::Sv32x4 { root: oa, gscid }),
                (MODE_FIRST, true) => Err(misaligned),
                _ => Err(error),
            };
        }
        let format = match mode {
            8 => Svx4::sv39x4(),
            9 => Svx4::sv48x4(),
            10 => Svx4::sv57x4(),
            _ => return Err(error),
        };
        if !features.has(capability::SV39X4 + u32::from(mode - MODE_FIRST)) {
            return Err(error);
        }
        if !is_aligned {
            return Err(misaligned);
        }
        let mut format = format.with_svnapot();
        if features.has(capability::SVPBMT) {
            format = format.with_svpbmt();
        }
        if updates_flags {
            format = format.with_dirty();
        }
        let format = format
            .with_oa_bits(features.physical_bits())
            .unwrap_or(format);
        let root = Root {
            oa,
            level: format.geometry().top,
        };
        Ok(Self::Svx4 {
            format,
            root,
            gscid,
        })
    }
}
