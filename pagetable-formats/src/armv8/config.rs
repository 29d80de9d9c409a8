//! The control fields of a table walk, as an SMMUv3 holds them in its CD and STE.
//!
//! Source: IHI 0070, sections 5.2 (STE words 1 to 3) and 5.4 (CD words 0 to 2). The fields are
//! those of `TCR_ELx` and `VTCR_EL2` in other places.

use super::shape::OA_WIDTHS;
use super::{Granule, HardwareUpdates};
use crate::{Bits, ConfigError, Level, Oa, bit};

/// `IPS`, CD word 0.
const CD_IPS: Bits<34, 32> = Bits;
/// `AFFD`, CD word 0.
const CD_AFFD: u64 = bit(35);
/// `AA64`, CD word 0.
const CD_AA64: u64 = bit(41);
/// `HD`, CD word 0.
const CD_HD: u64 = bit(42);
/// `HA`, CD word 0.
const CD_HA: u64 = bit(43);
/// `HAD0` and `HAD1`, CD words 1 and 2.
const CD_HAD: u64 = bit(1);
/// `DS`, CD word 2.
const CD_DS: u64 = bit(58);
/// The address of a table, CD words 1 and 2 and STE word 3.
pub(crate) const TTB: Bits<51, 4> = Bits;

/// `S2FWB`, STE word 1.
const STE_S2FWB: u64 = bit(25);
/// The lowest bit of `VTCR`, STE word 2.
const STE_VTCR: u32 = 32;
/// `S2AA64`, STE word 2.
const STE_S2AA64: u64 = bit(51);
/// `S2AFFD`, STE word 2.
const STE_S2AFFD: u64 = bit(53);
/// `S2HD`, STE word 2.
const STE_S2HD: u64 = bit(55);
/// `S2HA`, STE word 2.
const STE_S2HA: u64 = bit(56);
/// `S2SL0_2`, STE word 3.
const STE_S2SL0_2: u64 = bit(2);
/// `S2DS`, STE word 3.
const STE_S2DS: u64 = bit(3);

/// `T0SZ`, in a half of CD word 0 and in `VTCR`.
const T0SZ: Bits<5, 0> = Bits;
/// `TG0`, in a half of CD word 0.
const CD_TG: Bits<7, 6> = Bits;
/// `EPD0`, in a half of CD word 0.
const CD_EPD: u64 = bit(14);
/// `SL0`, in `VTCR`.
const VTCR_SL0: Bits<7, 6> = Bits;
/// `TG0`, in `VTCR`.
const VTCR_TG: Bits<15, 14> = Bits;
/// `PS`, in `VTCR`.
const VTCR_PS: Bits<18, 16> = Bits;
/// `IR0`, `OR0` and `SH0`, in both.
const WALK: Bits<13, 8> = Bits;

/// One of the two address ranges of stage 1.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Half {
    /// The bottom of the space, translated by `TTB0`.
    Lower,
    /// The top of the space, translated by `TTB1`.
    Upper,
}

impl Half {
    /// The lowest bit of this half's fields in CD word 0.
    const fn shift(self) -> u32 {
        match self {
            Self::Lower => 0,
            Self::Upper => 16,
        }
    }
}

/// How a table walk uses caches of one region, `IR` and `OR`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(u8)]
pub enum Cacheability {
    /// Normal memory, non-cacheable.
    NonCacheable = 0,
    /// Write-back, read-allocate, write-allocate.
    WriteBack = 1,
    /// Write-through, read-allocate.
    WriteThrough = 2,
    /// Write-back without write-allocate; without read-allocate for the fetch of a CD.
    WriteBackNoAllocate = 3,
}

impl Cacheability {
    /// Decodes the lowest two bits.
    pub(crate) const fn from_bits(bits: u64) -> Self {
        match bits & 3 {
            0 => Self::NonCacheable,
            1 => Self::WriteBack,
            2 => Self::WriteThrough,
            _ => Self::WriteBackNoAllocate,
        }
    }
}

/// The shareability of an access, `SH`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(u8)]
pub enum Shareability {
    /// Non-shareable; also what the reserved value 1 acts as.
    None = 0,
    /// Outer shareable.
    Outer = 2,
    /// Inner shareable.
    Inner = 3,
}

impl Shareability {
    /// Decodes the lowest two bits.
    pub(crate) const fn from_bits(bits: u64) -> Self {
        match bits & 3 {
            0 | 1 => Self::None,
            2 => Self::Outer,
            _ => Self::Inner,
        }
    }
}

/// Memory attributes of the accesses that a table walk makes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct TableWalk {
    /// Inner cacheability, `IRGN` or `IR`.
    pub inner: Cacheability,
    /// Outer cacheability, `ORGN` or `OR`.
    pub outer: Cacheability,
    /// Shareability, `SH`.
    pub shareability: Shareability,
}

impl TableWalk {
    /// A walk that snoops the caches of the CPUs.
    pub const COHERENT: Self = Self {
        inner: Cacheability::WriteBack,
        outer: Cacheability::WriteBack,
        shareability: Shareability::Inner,
    };
    /// A walk that reads memory: entries are flushed after they are written.
    pub const NON_COHERENT: Self = Self {
        inner: Cacheability::NonCacheable,
        outer: Cacheability::NonCacheable,
        shareability: Shareability::Outer,
    };
    /// A walk that does not snoop but allocates in a system cache.
    pub const OUTER_WRITE_BACK: Self = Self {
        outer: Cacheability::WriteBack,
        ..Self::NON_COHERENT
    };

    const fn bits(self) -> u64 {
        let sh = (self.shareability as u64) << 4;
        WALK.put(self.inner as u64 | (self.outer as u64) << 2 | sh)
    }

    const fn from_bits(bits: u64) -> Self {
        let walk = WALK.get(bits);
        Self {
            inner: Cacheability::from_bits(walk),
            outer: Cacheability::from_bits(walk >> 2),
            shareability: Shareability::from_bits(walk >> 4),
        }
    }
}

/// Control fields of a stage 1 walk through one half of the space (`TCR_ELx`).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Tcr {
    /// The half that the table translates.
    pub half: Half,
    /// `T0SZ` or `T1SZ`: 64 less the width of an input address.
    pub tsz: u8,
    /// `TG0` or `TG1`.
    pub granule: Granule,
    /// `IR`, `OR` and `SH`.
    pub walk: TableWalk,
    /// `IPS`, in bits; never wider than what a descriptor holds.
    pub oa_bits: u8,
    /// `DS`: LPA2 descriptors.
    pub ds: bool,
    /// `HA`, `HD` and `AFFD`.
    pub updates: HardwareUpdates,
    /// `HAD` is clear: table entries limit the rights below them.
    pub table_limits: bool,
}

impl Tcr {
    /// Returns the bits of CD words 0, 1 and 2 that belong to the tables, with the root at `root`.
    ///
    /// The other half is disabled (`EPD`). What else a CD holds (`V`, `ASID`, `ASET`, `A`, `R`,
    /// `S`) is left clear.
    pub const fn cd(self, root: Oa) -> [u64; 3] {
        let (tg, other) = match self.half {
            Half::Lower => (self.granule.tg0(), Half::Upper),
            Half::Upper => (self.granule.tg1(), Half::Lower),
        };
        let half = (self.tsz as u64 & T0SZ.mask()) | CD_TG.put(tg as u64) | self.walk.bits();
        let word0 = half << self.half.shift()
            | CD_EPD << other.shift()
            | Self::ips_code(self.oa_bits)
            | Self::update_bits(self.updates)
            | CD_AA64;
        let table = root.get() & TTB.mask() | if self.table_limits { 0 } else { CD_HAD };
        let ds = if self.ds { CD_DS } else { 0 };
        match self.half {
            Half::Lower => [word0, table, ds],
            Half::Upper => [word0, 0, table | ds],
        }
    }

    /// Decodes CD words 0, 1 and 2 with `AA64` set, whether or not the half is enabled.
    ///
    /// # Errors
    ///
    /// [`ConfigError::Option`] if the granule is reserved.
    pub const fn from_cd(words: [u64; 3], half: Half) -> Result<Self, ConfigError> {
        let fields = words[0] >> half.shift();
        let tg = CD_TG.get(fields) as u8;
        let (granule, table) = match half {
            Half::Lower => (Granule::from_tg0(tg), words[1]),
            Half::Upper => (Granule::from_tg1(tg), words[2]),
        };
        let Some(granule) = granule else {
            let rule = "TG0 is not 3 and TG1 is not 0";
            return Err(ConfigError::Option {
                option: "granule",
                rule,
            });
        };
        // DS means nothing to the 64 KiB granule.
        let ds = words[2] & CD_DS != 0 && !matches!(granule, Granule::Kib64);
        Ok(Self {
            half,
            tsz: T0SZ.get(fields) as u8,
            granule,
            walk: TableWalk::from_bits(fields),
            oa_bits: effective_oa_bits(CD_IPS.get(words[0]), granule, ds),
            ds,
            updates: HardwareUpdates::from_bits(
                words[0] & CD_HA != 0,
                words[0] & CD_HD != 0,
                words[0] & CD_AFFD != 0,
            ),
            table_limits: Self::has_table_limits(table),
        })
    }

    /// Returns `IPS` in its place in CD word 0: the narrowest width of at least `oa_bits`.
    pub(crate) const fn ips_code(oa_bits: u8) -> u64 {
        CD_IPS.put(oa_code(oa_bits))
    }

    /// Returns the width that `IPS` in CD word 0 stands for; the reserved value 7 acts as 6.
    pub(crate) const fn ips_bits(word0: u64) -> u8 {
        let code = CD_IPS.get(word0) as usize;
        if code < OA_WIDTHS.len() {
            OA_WIDTHS[code]
        } else {
            52
        }
    }

    /// Returns `HA`, `HD` and `AFFD` in their places in CD word 0.
    pub(crate) const fn update_bits(updates: HardwareUpdates) -> u64 {
        match updates {
            HardwareUpdates::None => 0,
            HardwareUpdates::Ignored => CD_AFFD,
            HardwareUpdates::Accessed => CD_HA,
            HardwareUpdates::Dirty => CD_HA | CD_HD,
        }
    }

    /// Returns whether the CD word with the table's address leaves `HAD` clear.
    pub(crate) const fn has_table_limits(word: u64) -> bool {
        word & CD_HAD == 0
    }

    /// Returns whether CD word 0 disables walks through `half` (`EPD`).
    pub(crate) const fn is_disabled(word0: u64, half: Half) -> bool {
        word0 >> half.shift() & CD_EPD != 0
    }
}

/// Control fields of a stage 2 walk (`VTCR_EL2`).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Vtcr {
    /// `T0SZ`: 64 less the width of an input address.
    pub t0sz: u8,
    /// `TG`.
    pub granule: Granule,
    /// `SL0` with `SL0_2`: the level of the root.
    pub start: Level,
    /// `IR0`, `OR0` and `SH0`.
    pub walk: TableWalk,
    /// `PS`, in bits; never wider than what a descriptor holds.
    pub oa_bits: u8,
    /// `DS`: LPA2 descriptors.
    pub ds: bool,
    /// `HA`, `HD` and `AFFD`.
    pub updates: HardwareUpdates,
    /// `FWB`: attributes may override stage 1.
    pub forced_write_back: bool,
}

impl Vtcr {
    /// Returns the bits of STE words 1, 2 and 3 that belong to the tables, with the root at `root`.
    ///
    /// What else the words hold (`S2VMID`, `S2PTW`, `S2R`, `S2S`) is left clear.
    pub const fn ste(self, root: Oa) -> [u64; 3] {
        let (sl2, sl0) = self.start_code();
        let vtcr = (self.t0sz as u64 & T0SZ.mask())
            | VTCR_SL0.put(sl0)
            | self.walk.bits()
            | VTCR_TG.put(self.granule.tg0() as u64)
            | VTCR_PS.put(oa_code(self.oa_bits));
        let word1 = if self.forced_write_back { STE_S2FWB } else { 0 };
        let word2 = vtcr << STE_VTCR
            | if self.updates.sets_accessed() {
                STE_S2HA
            } else {
                0
            }
            | if self.updates.sets_dirty() {
                STE_S2HD
            } else {
                0
            }
            | if matches!(self.updates, HardwareUpdates::Ignored) {
                STE_S2AFFD
            } else {
                0
            }
            | STE_S2AA64;
        let word3 = root.get() & TTB.mask()
            | if sl2 { STE_S2SL0_2 } else { 0 }
            | if self.ds { STE_S2DS } else { 0 };
        [word1, word2, word3]
    }

    /// Decodes STE words 1, 2 and 3 with `S2AA64` set.
    ///
    /// # Errors
    ///
    /// - [`ConfigError::Option`] if the granule is reserved;
    /// - [`ConfigError::Levels`] if the starting level is.
    pub const fn from_ste(words: [u64; 3]) -> Result<Self, ConfigError> {
        let vtcr = words[1] >> STE_VTCR;
        let Some(granule) = Granule::from_tg0(VTCR_TG.get(vtcr) as u8) else {
            let rule = "S2TG is not 3";
            return Err(ConfigError::Option {
                option: "granule",
                rule,
            });
        };
        let ds = words[2] & STE_S2DS != 0 && !matches!(granule, Granule::Kib64);
        let sl2 = words[2] & STE_S2SL0_2 != 0 && ds;
        let start = match start_level(granule, sl2, VTCR_SL0.get(vtcr) as u8) {
            Ok(start) => start,
            Err(error) => return Err(error),
        };
        Ok(Self {
            t0sz: T0SZ.get(vtcr) as u8,
            granule,
            start,
            walk: TableWalk::from_bits(vtcr),
            oa_bits: effective_oa_bits(VTCR_PS.get(vtcr), granule, ds),
            ds,
            updates: HardwareUpdates::from_bits(
                words[1] & STE_S2HA != 0,
                words[1] & STE_S2HD != 0,
                words[1] & STE_S2AFFD != 0,
            ),
            forced_write_back: words[0] & STE_S2FWB != 0,
        })
    }

    /// Encodes the starting level as `SL0_2` and `SL0`.
    const fn start_code(self) -> (bool, u64) {
        match (self.granule, self.start.0) {
            (Granule::Kib4, 4) => (true, 0),
            (Granule::Kib4, 0) => (false, 3),
            (Granule::Kib4, top) => (false, (top as u64 - 1) & 3),
            (Granule::Kib16 | Granule::Kib64, top) => (false, top as u64 & 3),
        }
    }
}

/// Decodes `SL0_2` and `SL0` (`VTCR_EL2.SL0`).
const fn start_level(granule: Granule, sl2: bool, sl0: u8) -> Result<Level, ConfigError> {
    match (granule, sl2, sl0) {
        (Granule::Kib4, false, 3) => Ok(Level(0)),
        (Granule::Kib4, false, _) => Ok(Level(sl0 + 1)),
        (Granule::Kib4, true, 0) => Ok(Level(4)),
        (Granule::Kib64, _, 3) | (Granule::Kib4, true, _) => {
            let rule = "SL0 is not 3 with a 64 KiB granule, and 0 with SL0_2";
            Err(ConfigError::Levels {
                levels: sl0 + 1,
                rule,
            })
        }
        (Granule::Kib16 | Granule::Kib64, _, _) => Ok(Level(sl0)),
    }
}

/// Encodes an address width as `PS` or `IPS`.
const fn oa_code(bits: u8) -> u64 {
    let mut code = 0;
    while code + 1 < OA_WIDTHS.len() && OA_WIDTHS[code] < bits {
        code += 1;
    }
    code as u64
}

/// Decodes `PS` or `IPS`: descriptors hold 52 bits at most, and 48 without LPA or LPA2, so that a
/// wider setting has no effect.
const fn effective_oa_bits(code: u64, granule: Granule, ds: bool) -> u8 {
    let code = code as usize;
    let bits = if code < OA_WIDTHS.len() {
        OA_WIDTHS[code]
    } else {
        52
    };
    let held = if ds || matches!(granule, Granule::Kib64) {
        52
    } else {
        48
    };
    if bits < held { bits } else { held }
}
