//! Formats by name, for tools that choose one at run time.

use core::fmt;
use core::str::FromStr;

use crate::{Format, PageSizes};

macro_rules! names {
    ($($(#[$doc:meta])* $variant:ident = $name:literal),+ $(,)?) => {
        /// The name of a format, as the command line spells it.
        #[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
        #[non_exhaustive]
        pub enum FormatName {
            $($(#[$doc])* $variant,)+
        }

        impl FormatName {
            /// Every name, in the order of documentation.
            pub const ALL: &[Self] = &[$(Self::$variant,)+];

            /// Returns the name as text.
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)+
                }
            }
        }
    };
}

names! {
    /// ARM `VMSAv8-64` stage 1, 4 KiB granule.
    ArmS1_4k = "arm-s1-4k",
    /// ARM `VMSAv8-64` stage 1, 16 KiB granule.
    ArmS1_16k = "arm-s1-16k",
    /// ARM `VMSAv8-64` stage 1, 64 KiB granule.
    ArmS1_64k = "arm-s1-64k",
    /// ARM `VMSAv8-64` stage 2, 4 KiB granule.
    ArmS2_4k = "arm-s2-4k",
    /// ARM `VMSAv8-64` stage 2, 16 KiB granule.
    ArmS2_16k = "arm-s2-16k",
    /// ARM `VMSAv8-64` stage 2, 64 KiB granule.
    ArmS2_64k = "arm-s2-64k",
    /// ARM 32-bit LPAE, stage 1.
    ArmLpae32 = "arm-lpae32",
    /// Mali LPAE.
    ArmMali = "arm-mali",
    /// Intel VT-d second stage.
    VtdSs = "vtd-ss",
    /// Intel VT-d first stage.
    VtdFs = "vtd-fs",
    /// x86-64 CPU tables.
    X86_64 = "x86-64",
    /// AMD IO page tables, version 1.
    AmdV1 = "amd-v1",
    /// AMD guest (version 2) page tables.
    AmdV2 = "amd-v2",
    /// RISC-V Sv39.
    RiscvSv39 = "riscv-sv39",
    /// RISC-V Sv48.
    RiscvSv48 = "riscv-sv48",
    /// RISC-V Sv57.
    RiscvSv57 = "riscv-sv57",
    /// RISC-V G-stage Sv39x4.
    RiscvSv39x4 = "riscv-sv39x4",
    /// RISC-V G-stage Sv48x4.
    RiscvSv48x4 = "riscv-sv48x4",
    /// RISC-V G-stage Sv57x4.
    RiscvSv57x4 = "riscv-sv57x4",
}

impl fmt::Display for FormatName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// A text that names no format.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("no such format; `iopt formats` lists the names")]
pub struct UnknownFormat;

impl FromStr for FormatName {
    type Err = UnknownFormat;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        Self::ALL
            .iter()
            .copied()
            .find(|known| known.as_str() == name)
            .ok_or(UnknownFormat)
    }
}

/// Options of a format; what is `None` or `false` takes the format's default.
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is an independent hardware feature"
)]
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Options {
    /// Input address bits (IAS, T0SZ, AGAW).
    pub va_bits: Option<u8>,
    /// Output address bits (OAS, IPS, PS).
    pub oa_bits: Option<u8>,
    /// Levels of the table: VT-d, x86-64, AMD.
    pub levels: Option<u8>,
    /// ARM stage 1: the upper half of the space (`TTBR1`).
    pub upper_half: bool,
    /// x86-64, VT-d first stage: both halves of a sign-extended space.
    pub sign_extended: bool,
    /// ARM: 52-bit descriptors, LPA with the 64 KiB granule, else LPA2 (DS).
    pub lpa: bool,
    /// Hardware records dirty pages.
    pub dirty: bool,
    /// ARM stage 1: non-secure tables and pages.
    pub non_secure: bool,
    /// ARM stage 2: forced write-back attributes.
    pub s2fwb: bool,
    /// VT-d SNP, AMD FC: force coherent accesses.
    pub force_snoop: bool,
    /// RISC-V Svnapot: 64 KiB entries.
    pub svnapot: bool,
    /// RISC-V Svpbmt: memory types.
    pub svpbmt: bool,
    /// The only page sizes to use, out of those of the format.
    pub sizes: Option<PageSizes>,
}

/// What to do with a format that is known only at run time.
pub trait Visitor {
    /// What the visit returns.
    type Output;

    /// Runs with the configured format.
    fn visit<F: Format>(self, format: F) -> Self::Output;
}
