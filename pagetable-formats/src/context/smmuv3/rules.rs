//! Which bits of STEs and CDs hardware reads, for the [hitless writer](crate::context::update)
//! (IHI 0070, sections 5.2 and 5.4, "IGNORED").
//!
//! Reads of both structures are atomic in words of 64 bits only (section 3.21.3), and hardware may
//! fetch the words in any order and keep them until it is told: [`Unit::Bytes8`] and
//! [`Fetch::AnyOrder`], a sync being `CFGI_STE` or `CFGI_CD` with a `CMD_SYNC`. The valid bit of
//! both stands in word 0.
//!
//! Bits that are reserved, implementation defined or mean what this crate does not decode (MPAM,
//! the secure stage 2, permission indirection) count as read wherever the entry is not one that
//! aborts: they are never changed beside others.
//!
//! [`Unit::Bytes8`]: crate::context::update::Unit::Bytes8
//! [`Fetch::AnyOrder`]: crate::context::update::Fetch::AnyOrder

use crate::context::update::Rules;
use crate::{Bits, bit};

/// `V` of an STE, word 0.
const STE_VALID: u64 = bit(0);
/// `Config[2]`, word 0: clear if the stream aborts, whatever the rest says.
const STE_CONFIG_ENABLED: u64 = bit(3);
/// `Config[1]`, word 0.
const STE_CONFIG_STAGE2: u64 = bit(2);
/// `Config[0]`, word 0.
const STE_CONFIG_STAGE1: u64 = bit(1);
const S1_FMT: Bits<5, 4> = Bits;
const S1_CONTEXT_PTR: Bits<55, 6> = Bits;
const S1_CD_MAX: Bits<63, 59> = Bits;

const S1_DSS: Bits<1, 0> = Bits;
/// `S1DSS` of a stream whose transactions without a substream bypass stage 1.
const S1_DSS_BYPASS: u64 = 1;
/// `S1CIR`, `S1COR` and `S1CSH`, word 1.
const S1_FETCH: Bits<7, 2> = Bits;
const MEV: u64 = bit(19);
/// Word 1: for software.
const SW_RESERVED: Bits<23, 20> = Bits;
const S2_FWB: u64 = bit(25);
const S1_STALLD: u64 = bit(27);
/// `EATS[0]`: full ATS.
const EATS_FULL: u64 = bit(28);
/// `EATS[1]`: split-stage ATS, or full ATS with checks.
const EATS_OTHER: u64 = bit(29);
const STRW: Bits<31, 30> = Bits;
const MEM_ATTR: Bits<35, 32> = Bits;
const MT_CFG: u64 = bit(36);
/// The lower three bits of `ALLOCCFG`.
const ALLOC_HINTS: Bits<39, 37> = Bits;
/// `ALLOCCFG[3]`: the lower bits replace incoming hints.
const ALLOC_OVERRIDE: u64 = bit(40);
const SH_CFG: Bits<45, 44> = Bits;

const S2_VMID: Bits<15, 0> = Bits;
/// `S2T0SZ` to `S2PS`.
const VTCR: Bits<50, 32> = Bits;
/// `S2AA64` to `S2R`, word 2.
const S2_FLAGS: Bits<58, 51> = Bits;
const S2_AFFD: u64 = bit(53);
const S2_HA: u64 = bit(56);
const S2_S: u64 = bit(57);
/// `S2SL0_2`, `S2DS` and `S2TTB`.
const S2_TABLE: Bits<51, 2> = Bits;

/// Bits of word 1 that depend on the configuration; `PRIVCFG`, `INSTCFG` and what is unknown do not.
const STE_WORD1: u64 = S1_DSS.mask()
    | S1_FETCH.mask()
    | MEV
    | SW_RESERVED.mask()
    | S2_FWB
    | S1_STALLD
    | EATS_FULL
    | EATS_OTHER
    | STRW.mask()
    | MEM_ATTR.mask()
    | MT_CFG
    | ALLOC_HINTS.mask()
    | SH_CFG.mask();

/// What hardware reads of stream table entries.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct SteRules;

impl Rules<8> for SteRules {
    fn used(&self, ste: &[u64; 8]) -> [u64; 8] {
        if ste[0] & STE_VALID == 0 {
            return [STE_VALID, 0, 0, 0, 0, 0, 0, 0];
        }
        if ste[0] & STE_CONFIG_ENABLED == 0 {
            return [STE_VALID | STE_CONFIG_ENABLED, 0, 0, 0, 0, 0, 0, 0];
        }
        let has_stage1 = ste[0] & STE_CONFIG_STAGE1 != 0;
        let has_stage2 = ste[0] & STE_CONFIG_STAGE2 != 0;
        let mut used = [
            !(S1_FMT.mask() | S1_CONTEXT_PTR.mask() | S1_CD_MAX.mask()),
            !STE_WORD1,
            !(S2_VMID.mask() | VTCR.mask() | S2_FLAGS.mask()),
            !S2_TABLE.mask(),
            u64::MAX,
            u64::MAX,
            u64::MAX,
            u64::MAX,
        ];
        if has_stage1 {
            used[0] |= S1_CONTEXT_PTR.mask() | S1_CD_MAX.mask();
            if S1_CD_MAX.get(ste[0]) != 0 {
                used[0] |= S1_FMT.mask();
            }
            used[1] |= S1_DSS.mask() | S1_FETCH.mask() | S1_STALLD | STRW.mask();
        }
        if has_stage2 {
            used[1] |= S2_FWB;
            used[2] |= VTCR.mask() | S2_FLAGS.mask();
            if ste[2] & S2_HA != 0 {
                used[2] &= !S2_AFFD;
            }
            used[3] |= S2_TABLE.mask();
        }
        if has_stage1 || has_stage2 {
            used[1] |= MEV | EATS_FULL | EATS_OTHER;
            used[2] |= S2_VMID.mask();
        }
        // Stage 1 replaces the types of whatever it translates.
        if !has_stage1 || has_stage2 || S1_DSS.get(ste[1]) == S1_DSS_BYPASS {
            used[1] |= SH_CFG.mask() | MT_CFG;
            if ste[1] & MT_CFG != 0 {
                used[1] |= MEM_ATTR.mask();
            }
        }
        if ste[1] & ALLOC_OVERRIDE != 0 {
            used[1] |= ALLOC_HINTS.mask();
        }
        used
    }

    fn is_valid(&self, ste: &[u64; 8]) -> bool {
        ste[0] & STE_VALID != 0
    }

    /// `MEV` always: it only permits fewer records. `EATS[0]`, because nobody relies on the moment
    /// when it changes: ATS is enabled at the device after the STE allows it, and disabled before.
    /// Not so where it may turn one way of answering into another, or meet stalls, which full ATS
    /// excludes.
    fn safe(&self, current: &[u64; 8], target: &[u64; 8]) -> [u64; 8] {
        let has_other_way = (current[1] | target[1]) & EATS_OTHER != 0;
        let may_stall = (current[2] | target[2]) & S2_S != 0;
        let eats = if has_other_way || may_stall {
            0
        } else {
            EATS_FULL
        };
        [0, MEV | eats, 0, 0, 0, 0, 0, 0]
    }
}

/// `V` of a CD, word 0.
const CD_VALID: u64 = bit(31);
/// `T0SZ`, `TG0`, `IR0`, `OR0` and `SH0`, word 0; those of the upper half stand 16 bits higher.
const CD_WALK: Bits<13, 0> = Bits;
/// `EPD0`; that of the upper half stands 16 bits higher.
const CD_EPD: u64 = bit(14);
const CD_UPPER: u32 = 16;
/// `HAD0` and `TTB0`, word 1; `HAD1` and `TTB1`, word 2.
const CD_TABLE: u64 = bit(1) | Bits::<51, 4>.mask();
const CD_AFFD: u64 = bit(35);
const CD_UWXN: u64 = bit(37);
const CD_AA64: u64 = bit(41);
const CD_HA: u64 = bit(43);

/// What hardware reads of context descriptors, of streams for which `EPD` means anything: those of
/// EL1, and of EL2 with `E2H`.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct CdRules;

impl Rules<8> for CdRules {
    fn used(&self, cd: &[u64; 8]) -> [u64; 8] {
        if cd[0] & CD_VALID == 0 {
            return [CD_VALID, 0, 0, 0, 0, 0, 0, 0];
        }
        let mut used = [u64::MAX; 8];
        if cd[0] & CD_EPD != 0 {
            used[0] &= !CD_WALK.mask();
            used[1] &= !CD_TABLE;
        }
        if cd[0] & CD_EPD << CD_UPPER != 0 {
            used[0] &= !(CD_WALK.mask() << CD_UPPER);
            used[2] &= !CD_TABLE;
        }
        if cd[0] & CD_AA64 != 0 {
            used[0] &= !CD_UWXN;
            if cd[0] & CD_HA != 0 {
                used[0] &= !CD_AFFD;
            }
        }
        used
    }

    fn is_valid(&self, cd: &[u64; 8]) -> bool {
        cd[0] & CD_VALID != 0
    }
}
