//! What the IOMMU can do: the registers `capabilities` and `fctl`.
//!
//! Source: sections "IOMMU capabilities" and "Features-control register".

use crate::{Bits, Field, bit};

/// Bits of `capabilities`.
pub(super) mod capability {
    pub(crate) const SV32: u32 = 8;
    pub(crate) const SV39: u32 = 9;
    pub(crate) const SVPBMT: u32 = 15;
    pub(crate) const SV32X4: u32 = 16;
    pub(crate) const SV39X4: u32 = 17;
    pub(crate) const MSI_FLAT: u32 = 22;
    pub(crate) const AMO_HWAD: u32 = 24;
    pub(crate) const ATS: u32 = 25;
    pub(crate) const T2GPA: u32 = 26;
    pub(crate) const END: u32 = 27;
    pub(crate) const PD8: u32 = 38;
    pub(crate) const QOSID: u32 = 41;
}

/// PAS of `capabilities`.
const PAS: Bits<37, 32> = Bits;

/// The registers of an IOMMU that say how it reads its directories.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Features {
    capabilities: u64,
    fctl: u32,
}

/// Which layout device contexts have.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum ContextFormat {
    /// 32 bytes, without MSI translation.
    Base,
    /// 64 bytes.
    Extended,
}

impl ContextFormat {
    /// Returns the base-2 logarithm of a context's length in bytes.
    pub const fn len_lg2(self) -> u8 {
        match self {
            Self::Base => 5,
            Self::Extended => 6,
        }
    }
}

impl Features {
    /// Names of the fields of `capabilities`.
    pub const CAPABILITIES_FIELDS: &[Field] = &[
        Field::new("version", 7, 0),
        Field::new("Sv32", 8, 8),
        Field::new("Sv39", 9, 9),
        Field::new("Sv48", 10, 10),
        Field::new("Sv57", 11, 11),
        Field::new("Svpbmt", 15, 15),
        Field::new("Sv32x4", 16, 16),
        Field::new("Sv39x4", 17, 17),
        Field::new("Sv48x4", 18, 18),
        Field::new("Sv57x4", 19, 19),
        Field::new("AMO_MRIF", 21, 21),
        Field::new("MSI_FLAT", 22, 22),
        Field::new("MSI_MRIF", 23, 23),
        Field::new("AMO_HWAD", 24, 24),
        Field::new("ATS", 25, 25),
        Field::new("T2GPA", 26, 26),
        Field::new("END", 27, 27),
        Field::new("IGS", 29, 28),
        Field::new("HPM", 30, 30),
        Field::new("DBG", 31, 31),
        Field::new("PAS", 37, 32),
        Field::new("PD8", 38, 38),
        Field::new("PD17", 39, 39),
        Field::new("PD20", 40, 40),
        Field::new("QOSID", 41, 41),
        Field::new("NL", 42, 42),
        Field::new("S", 43, 43),
    ];

    /// Names of the fields of `fctl`.
    pub const FCTL_FIELDS: &[Field] = &[
        Field::new("BE", 0, 0),
        Field::new("WSI", 1, 1),
        Field::new("GXL", 2, 2),
    ];

    /// Creates the value from the registers `capabilities` and `fctl`.
    pub const fn new(capabilities: u64, fctl: u32) -> Self {
        Self { capabilities, fctl }
    }

    /// Returns the layout of device contexts.
    pub const fn context_format(self) -> ContextFormat {
        if self.has(capability::MSI_FLAT) {
            ContextFormat::Extended
        } else {
            ContextFormat::Base
        }
    }

    /// Returns the width of physical addresses, in bits (PAS).
    pub const fn physical_bits(self) -> u8 {
        PAS.get(self.capabilities) as u8
    }

    /// Returns whether directories are big-endian (`fctl.BE`).
    pub const fn is_big_endian(self) -> bool {
        self.fctl & 1 != 0
    }

    /// Returns whether guest-physical addresses have at most 34 bits (`fctl.GXL`).
    pub(super) const fn is_guest_32_bit(self) -> bool {
        self.fctl & 4 != 0
    }

    /// Returns whether bit `n` of `capabilities` is set.
    pub(super) const fn has(self, n: u32) -> bool {
        self.capabilities & bit(n) != 0
    }

    /// Returns whether SXL may be 1 although GXL is 0: that is so where GXL is writable, which
    /// registers do not tell, but an IOMMU without 32-bit schemes has no use for it.
    pub(super) const fn has_32_bit_schemes(self) -> bool {
        self.has(capability::SV32) || self.has(capability::SV32X4)
    }
}
