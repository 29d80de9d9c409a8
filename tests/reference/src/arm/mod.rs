//! ARM long-descriptor tables: `VMSAv8-64` stage 1 and 2, 32-bit LPAE, Mali LPAE.
//!
//! Arm Architecture Reference Manual for A-profile (DDI 0487): D8.2 translation process, D8.3
//! descriptor formats, D8.4 access control, D8.5 access flag and dirty state, D8.7.1 Contiguous
//! bit; G5.4 to G5.6 for the 32-bit long-descriptor format. SMMUv3 (IHI 0070) section 3.4 address
//! sizes. Mali: the descriptors of the GPU's LPAE mode.
//!
//! Not modelled: permission indirection, WXN, PAN, E0PD, 128-bit descriptors, and the rules that
//! tie a stage 2 start level to the physical address size that the hardware implements.

mod descriptor;
mod geometry;
mod walk;

pub use walk::{enumerate, walk};

use crate::{Fault, Setup};
use geometry::Geometry;

/// Which stage, and so which permission encoding.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Stage {
    /// Stage 1; the start level follows from the input address size.
    One,
    /// Stage 2.
    Two {
        /// Level of the initial lookup, -1 to 3. With more input bits than one table of that level
        /// takes, up to 16 tables stand side by side.
        start_level: i8,
    },
    /// Mali LPAE: stage 1 attributes, stage 2 permissions, always level 0 to 3, no access flag.
    Mali,
}

impl Stage {
    /// Stage 2 by the start level field: `{SL2, SL0}` of VTCR, `{S2SL0_2, S2SL0}` of an STE.
    ///
    /// Returns `None` for values that the granule reserves. SL2 counts with the 4 KiB granule only.
    pub const fn two(granule: Granule, sl: u8) -> Option<Self> {
        let start_level = match (granule, sl) {
            (Granule::K4, 0b000) | (Granule::K16 | Granule::K64, 0b001 | 0b101) => 2,
            (Granule::K4, 0b001) | (Granule::K16 | Granule::K64, 0b010 | 0b110) => 1,
            (Granule::K4, 0b010) | (Granule::K16, 0b011 | 0b111) => 0,
            (Granule::K4, 0b011) | (Granule::K16 | Granule::K64, 0b000 | 0b100) => 3,
            (Granule::K4, 0b100) => -1,
            _ => return None,
        };
        Some(Self::Two { start_level })
    }
}

/// Translation granule: the size of the smallest page, and of a full table.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Granule {
    /// 4 KiB.
    K4,
    /// 16 KiB.
    K16,
    /// 64 KiB.
    K64,
}

impl Granule {
    /// Decodes TG0, and S2TG. `None` for the reserved value.
    pub const fn from_tg0(tg0: u64) -> Option<Self> {
        match tg0 {
            0 => Some(Self::K4),
            1 => Some(Self::K64),
            2 => Some(Self::K16),
            _ => None,
        }
    }

    /// Decodes TG1, whose values differ from those of TG0. `None` for the reserved value.
    pub const fn from_tg1(tg1: u64) -> Option<Self> {
        match tg1 {
            1 => Some(Self::K16),
            2 => Some(Self::K4),
            3 => Some(Self::K64),
            _ => None,
        }
    }

    const fn lg2(self) -> u32 {
        match self {
            Self::K4 => 12,
            Self::K16 => 14,
            Self::K64 => 16,
        }
    }
}

/// One translation table base and the part of the input address space that it covers.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Half {
    /// TTBR0, TTBR1, VTTBR: address of the root table. Bits below the table's alignment are
    /// ignored, as by the SMMU.
    pub root: u64,
    /// Input address size in bits: 64 - `TxSZ`, or 32 - `TxSZ` with 32-bit LPAE.
    pub ia_bits: u8,
    /// Granule.
    pub granule: Granule,
    /// TBI: bits 63:56 of the input address are ignored.
    pub tbi: bool,
    /// HAD, HPD: hierarchical permissions of table descriptors are ignored.
    pub had: bool,
    /// SH of the control register, which entries take with 52-bit descriptors (DS).
    pub sh: u8,
}

impl Half {
    /// Creates a half without TBI, with hierarchical permissions, inner shareable.
    pub const fn new(root: u64, ia_bits: u8, granule: Granule) -> Self {
        Self {
            root,
            ia_bits,
            granule,
            tbi: false,
            had: false,
            sh: 3,
        }
    }
}

/// How hardware was told to read the tables.
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is one bit of a control register"
)]
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Config {
    /// The stage.
    pub stage: Stage,
    /// TTBR0 or VTTBR, which covers the addresses that begin with zeroes.
    pub lower: Option<Half>,
    /// TTBR1, which covers the addresses that begin with ones. Stage 1 only.
    pub upper: Option<Half>,
    /// 32-bit LPAE (`VMSAv8-32` long descriptors).
    pub aarch32: bool,
    /// Output address size in bits, what (I)PS and the hardware's size say together.
    pub oa_bits: u8,
    /// 64 KiB granule, hardware with 52-bit addresses (`FEAT_LPA`): descriptor bits 15:12 hold
    /// OA\[51:48\].
    pub lpa: bool,
    /// DS, 4 KiB and 16 KiB granules (`FEAT_LPA2`): descriptor bits 49:48 and 9:8 hold
    /// OA\[51:48\], and levels -1 and 0 become possible.
    pub ds: bool,
    /// HA: hardware sets the access flag.
    pub ha: bool,
    /// HD: hardware turns a write to a clean page with DBM into a dirty page. Needs `ha`.
    pub hd: bool,
    /// AFFD: a clear access flag does not fault.
    pub affd: bool,
    /// `FEAT_XNX`: stage 2 has two execute-never bits.
    pub xnx: bool,
    /// Stage 1 of a regime with one privilege level (`StreamWorld` EL2): AP\[1\], `APTable[0]` and PXN
    /// mean nothing.
    pub one_privilege: bool,
}

impl Config {
    /// Stage 1 of TTBR0 alone.
    pub const fn stage1(half: Half, oa_bits: u8) -> Self {
        Self::plain(Stage::One, Some(half), oa_bits)
    }

    /// Stage 1 of TTBR1 alone.
    pub const fn stage1_upper(half: Half, oa_bits: u8) -> Self {
        Self {
            upper: Some(half),
            ..Self::plain(Stage::One, None, oa_bits)
        }
    }

    /// Stage 2 that starts at `start_level` (-1 to 3).
    pub const fn stage2(half: Half, start_level: i8, oa_bits: u8) -> Self {
        Self::plain(Stage::Two { start_level }, Some(half), oa_bits)
    }

    /// 32-bit LPAE stage 1 of TTBR0, with 40-bit output addresses.
    pub const fn lpae32(root: u64, ia_bits: u8) -> Self {
        let half = Half::new(root, ia_bits, Granule::K4);
        Self {
            aarch32: true,
            ..Self::plain(Stage::One, Some(half), 40)
        }
    }

    /// Mali LPAE by TRANSTAB, whose low bits hold mode and attributes.
    pub const fn mali(transtab: u64, ia_bits: u8, oa_bits: u8) -> Self {
        let half = Half::new(transtab & !0xfff, ia_bits, Granule::K4);
        Self::plain(Stage::Mali, Some(half), oa_bits)
    }

    /// Returns the same with 52-bit descriptors: `lpa` for the 64 KiB granule, else `ds`.
    #[must_use]
    pub const fn with_52_bits(mut self) -> Self {
        let is_64k = match (self.lower, self.upper) {
            (Some(half), _) | (None, Some(half)) => matches!(half.granule, Granule::K64),
            (None, None) => false,
        };
        self.lpa = is_64k;
        self.ds = !is_64k;
        self
    }

    /// Returns the same with hardware update of access flag and dirty state.
    #[must_use]
    pub const fn with_hardware_update(mut self) -> Self {
        self.ha = true;
        self.hd = true;
        self
    }

    const fn plain(stage: Stage, lower: Option<Half>, oa_bits: u8) -> Self {
        Self {
            stage,
            lower,
            upper: None,
            aarch32: false,
            oa_bits,
            lpa: false,
            ds: false,
            ha: false,
            hd: false,
            affd: false,
            xnx: true,
            one_privilege: false,
        }
    }

    /// Checks what can be checked without an address.
    ///
    /// # Errors
    ///
    /// Names the setting that is not legal.
    pub fn check(&self) -> Result<(), Setup> {
        [self.lower, self.upper]
            .iter()
            .flatten()
            .try_for_each(|half| Geometry::new(self, half).map(drop))
    }

    /// Returns the half that translates `iova` (D8.2.6, "Selection between TTBR0 and TTBR1").
    fn select(&self, iova: u64) -> Result<&Half, Fault> {
        let half = if self.aarch32 {
            self.select32(iova)
        } else {
            self.select64(iova)
        };
        half.ok_or(Fault::OutOfWindow { iova })
    }

    fn select64(&self, iova: u64) -> Option<&Half> {
        let sign = |half: &Half| {
            let ignored = if half.tbi && self.stage == Stage::One {
                8
            } else {
                0
            };
            // Arithmetic shift: 0 if all the bits that count are zeroes, -1 if they are ones.
            (iova << ignored)
                .cast_signed()
                .checked_shr(u32::from(half.ia_bits) + ignored)
        };
        let lower = self.lower.as_ref().filter(|half| sign(half) == Some(0));
        let upper = self.upper.as_ref().filter(|half| sign(half) == Some(-1));
        lower.or(upper)
    }

    /// G5.5.5, "Selecting between TTBR0 and TTBR1, Long-descriptor format".
    fn select32(&self, iova: u64) -> Option<&Half> {
        const SPACE: u64 = 1 << 32;
        let lower_len = self
            .lower
            .map_or(SPACE, |half| geometry::span(half.ia_bits));
        let upper_start = match self.upper {
            None => SPACE,
            // T1SZ = 0: everything that TTBR0 does not cover.
            Some(half) if half.ia_bits >= 32 => lower_len,
            Some(half) => SPACE - geometry::span(half.ia_bits),
        };
        if self.stage == Stage::One && iova >= SPACE {
            None
        } else if self.upper.is_some() && iova >= upper_start {
            self.upper.as_ref()
        } else if iova < lower_len {
            self.lower.as_ref()
        } else {
            None
        }
    }
}
