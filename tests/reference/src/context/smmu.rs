//! SMMUv3: stream table entries and context descriptors.
//!
//! Arm System Memory Management Unit Architecture Specification, version 3 (IHI 0070): 3.3 stream
//! tables, 3.4 address sizes, 5.1 level 1 stream table descriptor, 5.2 STE, 5.3 level 1 CD
//! descriptor, 5.4 CD, 6.3 registers. Non-secure streams only; `StreamWorld` EL1 or, by STRW, EL2.

use super::{Binding, Budget, ContextFault, Device, Through, check_pasid, read};
use crate::arm::{Config, Granule, Half, Stage};
use crate::word::{bit, bits, exceeds, in_place};
use crate::{Memory, Table};

/// The registers that matter, as read.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Registers {
    /// `SMMU_IDR0`.
    pub idr0: u32,
    /// `SMMU_IDR1`.
    pub idr1: u32,
    /// `SMMU_IDR3`; 0 if unknown, which means no HAD and no XNX.
    pub idr3: u32,
    /// `SMMU_IDR5`.
    pub idr5: u32,
    /// `SMMU_CR0`.
    pub cr0: u32,
    /// `SMMU_GBPA`.
    pub gbpa: u32,
    /// `SMMU_STRTAB_BASE`.
    pub strtab_base: u64,
    /// `SMMU_STRTAB_BASE_CFG`.
    pub strtab_base_cfg: u32,
}

impl Registers {
    fn is_enabled(&self) -> bool {
        self.cr0 & 1 == 1
    }

    /// What happens while SMMUEN is 0 (6.3.14, GBPA.ABORT).
    fn global_bypass(&self) -> Binding {
        if bit(u64::from(self.gbpa), 20) {
            Binding::Blocked
        } else {
            Binding::OPEN
        }
    }

    /// Bits of a `StreamID` that the stream table covers.
    fn stream_bits(&self) -> u32 {
        let log2size = bits(u64::from(self.strtab_base_cfg), 5, 0) as u32;
        log2size
            .min(bits(u64::from(self.idr1), 5, 0) as u32)
            .min(32)
    }

    /// SPLIT of a two-level table, `None` for a linear one.
    fn split(&self) -> Option<u32> {
        let cfg = u64::from(self.strtab_base_cfg);
        let has_levels = bits(u64::from(self.idr0), 28, 27) == 1;
        match bits(cfg, 10, 6) {
            _ if !has_levels || bits(cfg, 17, 16) != 1 => None,
            split @ (6 | 8 | 10) => Some(split as u32),
            // Other values are reserved and act as 6.
            _ => Some(6),
        }
    }

    /// Base of the stream table, whose alignment is its size and at least 64 bytes.
    fn base(&self) -> u64 {
        let size = match self.split() {
            None => self.stream_bits() + 6,
            Some(split) => (self.stream_bits().saturating_sub(split) + 3).max(6),
        };
        in_place(self.strtab_base, 51, size)
    }

    /// Address of the STE (3.3.2).
    fn ste<M: Memory + ?Sized>(&self, memory: &M, device_id: u32) -> Result<u64, ContextFault> {
        let sid = u64::from(device_id);
        if exceeds(sid, self.stream_bits()) {
            return Err(ContextFault::DeviceId { device_id });
        }
        let Some(split) = self.split() else {
            return Ok(self.base() + 64 * sid);
        };
        let address = self.base() + 8 * (sid >> split);
        let [descriptor] = read(memory, address)?;
        let index = bits(sid, split - 1, 0);
        match bits(descriptor, 4, 0) as u32 {
            0 => Err(ContextFault::NotValid { address }),
            span if span > split + 1 => Err(ContextFault::Illegal {
                field: "L1STD.Span",
                value: u64::from(span),
            }),
            span if index >> (span - 1) != 0 => Err(ContextFault::DeviceId { device_id }),
            span => Ok(in_place(descriptor, 51, span + 5) + 64 * index),
        }
    }

    fn oas(&self) -> u8 {
        address_size(u64::from(self.idr5))
    }

    fn ssid_bits(&self) -> u32 {
        bits(u64::from(self.idr1), 10, 6) as u32
    }

    /// Whether hardware can do update level `level` of translation tables (HTTU: 1 access flag,
    /// 2 dirty state too).
    fn updates(&self, level: u64) -> bool {
        bits(u64::from(self.idr0), 7, 6) >= level
    }
}

/// IPS, S2PS, OAS: the address size in bits. 56 bits need 128-bit descriptors, so 52 is the most.
fn address_size(encoded: u64) -> u8 {
    match bits(encoded, 2, 0) {
        0 => 32,
        1 => 36,
        2 => 40,
        3 => 42,
        4 => 44,
        5 => 48,
        _ => 52,
    }
}

/// Finds the binding of a stream and, with `pasid`, of a substream.
///
/// # Errors
///
/// Returns why hardware aborts: `C_BAD_STREAMID`, `C_BAD_STE`, `C_BAD_CD`, `C_BAD_SUBSTREAMID`.
pub fn resolve<M: Memory + ?Sized>(
    registers: &Registers,
    memory: &M,
    device_id: u32,
    pasid: Option<u32>,
) -> Result<Binding, ContextFault> {
    check_pasid(pasid)?;
    if !registers.is_enabled() {
        return Ok(registers.global_bypass());
    }
    let address = registers.ste(memory, device_id)?;
    let ste: [u64; 8] = read(memory, address)?;
    if !bit(ste[0], 0) {
        return Err(ContextFault::NotValid { address });
    }
    let config = bits(ste[0], 3, 1);
    let (has_stage1, has_stage2) = match config {
        0..=3 => return Ok(Binding::Blocked),
        4 => (false, false),
        5 => (true, false),
        6 => (false, true),
        _ => (true, true),
    };
    // S1P and S2P: stages that the hardware has.
    if has_stage1 && !bit(registers.idr0.into(), 1) || has_stage2 && !bit(registers.idr0.into(), 0)
    {
        return Err(ContextFault::Illegal {
            field: "STE.Config",
            value: config,
        });
    }
    let behind = if has_stage2 {
        Binding::Table(Table::Arm(stage2(registers, &ste)?))
    } else {
        Binding::OPEN
    };
    if !has_stage1 {
        // Stage 1 bypass takes no substreams (5.2, S1Fmt).
        return if pasid.is_some() {
            Err(ContextFault::Pasid { pasid })
        } else {
            behind.check()
        };
    }
    behind.check()?;
    let Some(cd) = context_descriptor(registers, memory, &ste, pasid, &behind)? else {
        return Ok(behind);
    };
    match cd {
        Substream::Terminate => Ok(Binding::Blocked),
        Substream::Descriptor(cd) => {
            let first = Table::Arm(stage1(registers, &ste, &cd)?);
            behind.nest(first).check()
        }
    }
}

/// Which context descriptor a request uses.
enum Substream {
    /// None: the request is aborted.
    Terminate,
    Descriptor([u64; 8]),
}

/// Fetches the CD (5.2: `S1Fmt`, `S1CDMax`, S1DSS). `None` means that stage 1 is bypassed.
fn context_descriptor<M: Memory + ?Sized>(
    registers: &Registers,
    memory: &M,
    ste: &[u64; 8],
    pasid: Option<u32>,
    behind: &Binding,
) -> Result<Option<Substream>, ContextFault> {
    let max = if registers.ssid_bits() == 0 {
        0
    } else {
        bits(ste[0], 63, 59) as u32
    };
    if max > registers.ssid_bits() {
        return Err(ContextFault::Illegal {
            field: "STE.S1CDMax",
            value: u64::from(max),
        });
    }
    let ssid = match (pasid, max) {
        (None, 0) => 0,
        (None, _) => match bits(ste[1], 1, 0) {
            1 => return Ok(None),
            2 => 0,
            _ => return Ok(Some(Substream::Terminate)),
        },
        // SubstreamID 0 stands for the requests without one if S1DSS says so.
        (Some(0), 1..) if bits(ste[1], 1, 0) == 2 => return Ok(Some(Substream::Terminate)),
        (Some(ssid), 1..) if ssid >> max == 0 => u64::from(ssid),
        (Some(_), _) => return Err(ContextFault::Pasid { pasid }),
    };
    // With stage 2, the pointers to the CD are IPAs.
    let fetch = |address: u64| -> Result<u64, ContextFault> {
        match behind {
            Binding::Table(second) => {
                let through = Through { second, memory };
                let inner = second
                    .walk(memory, address)
                    .map_err(|fault| ContextFault::Second {
                        ipa: address,
                        fault,
                    })?;
                through
                    .read64(address)
                    .ok_or(ContextFault::MissingMemory { address: inner.oa })
            }
            _ => memory
                .read64(address)
                .ok_or(ContextFault::MissingMemory { address }),
        }
    };
    let pointer = in_place(ste[0], 55, 6);
    let format = if max == 0 { 0 } else { bits(ste[0], 5, 4) };
    // CD2L: two-level tables are supported.
    if matches!(format, 1 | 2) && !bit(registers.idr0.into(), 19) {
        return Err(ContextFault::Illegal {
            field: "STE.S1Fmt",
            value: format,
        });
    }
    let leaf_bits = match format {
        1 => 6,
        2 => 10,
        _ => 0,
    };
    let address = if leaf_bits == 0 {
        in_place(pointer, 55, max + 6) + 64 * ssid
    } else {
        let table = in_place(pointer, 55, (max.saturating_sub(leaf_bits) + 3).max(6));
        let address = table + 8 * (ssid >> leaf_bits);
        let descriptor = fetch(address)?;
        if !bit(descriptor, 0) {
            return Err(ContextFault::NotValid { address });
        }
        in_place(descriptor, 51, leaf_bits + 6) + 64 * bits(ssid, leaf_bits - 1, 0)
    };
    let mut cd = [0; 8];
    for (index, word) in (0..).zip(&mut cd) {
        *word = fetch(address + 8 * index)?;
    }
    if !bit(cd[0], 31) {
        return Err(ContextFault::NotValid { address });
    }
    Ok(Some(Substream::Descriptor(cd)))
}

/// Stage 1 by CD (5.4).
fn stage1(registers: &Registers, ste: &[u64; 8], cd: &[u64; 8]) -> Result<Config, ContextFault> {
    let aarch32 = !bit(cd[0], 41);
    let strw = bits(ste[1], 31, 30);
    // StreamWorld EL2 and EL3 have TTB0 only and no EPD; STRW is for stage 1 alone.
    let one_privilege = bits(ste[0], 3, 1) == 5 && matches!(strw, 1 | 2);
    let ds = bit(cd[2], 58) && bit(registers.idr5.into(), 7) && !aarch32;
    let oa_bits = if aarch32 {
        40
    } else {
        address_size(cd[0] >> 32).min(registers.oas())
    };
    let has_had = bit(registers.idr3.into(), 2);
    // The fields of half 1 stand 16 bits above those of half 0.
    let half = |shift: u32, ttb: u64, granule: Option<Granule>, tbi: bool| {
        let fields = cd[0] >> shift;
        let tsz = bits(fields, 5, 0) as u8;
        let field = if shift == 0 { "CD.TG0" } else { "CD.TG1" };
        let granule = if aarch32 { Some(Granule::K4) } else { granule };
        let granule = granule
            .ok_or(ContextFault::Illegal {
                field,
                value: bits(fields, 7, 6),
            })
            .and_then(|granule| supported(registers, granule, field))?;
        Ok(Half {
            root: in_place(ttb, 51, 4),
            ia_bits: if aarch32 {
                32 - (tsz & 7)
            } else {
                input_size(tsz, granule, ds)?
            },
            granule,
            tbi,
            had: has_had && bit(ttb, 1),
            sh: bits(fields, 13, 12) as u8,
        })
    };
    let granules = [
        Granule::from_tg0(bits(cd[0], 7, 6)),
        Granule::from_tg1(bits(cd[0], 23, 22)),
    ];
    let epd0 = bit(cd[0], 14) && !one_privilege;
    let epd1 = bit(cd[0], 30) || one_privilege;
    if bit(cd[0], 15) && !(epd0 && epd1) {
        return Err(ContextFault::Unsupported { field: "CD.ENDI" });
    }
    let lower = (!epd0)
        .then(|| half(0, cd[1], granules[0], bit(cd[0], 38)))
        .transpose()?;
    let upper = (!epd1)
        .then(|| half(16, cd[2], granules[1], bit(cd[0], 39)))
        .transpose()?;
    let ha = bit(cd[0], 43) && registers.updates(1) && !aarch32;
    Ok(Config {
        stage: Stage::One,
        lower,
        upper,
        aarch32,
        oa_bits,
        lpa: registers.oas() == 52 && !aarch32,
        ds,
        ha,
        hd: ha && bit(cd[0], 42) && registers.updates(2),
        affd: bit(cd[0], 35),
        xnx: false,
        one_privilege,
    })
}

/// Stage 2 by STE (5.2: S2T0SZ to S2TTB).
fn stage2(registers: &Registers, ste: &[u64; 8]) -> Result<Config, ContextFault> {
    let aarch32 = !bit(ste[2], 51);
    let vtcr = ste[2] >> 32;
    let tsz = bits(vtcr, 5, 0) as u8;
    if bit(ste[2], 52) {
        return Err(ContextFault::Unsupported {
            field: "STE.S2ENDI",
        });
    }
    let tg = bits(vtcr, 15, 14);
    let granule = if aarch32 {
        Some(Granule::K4)
    } else {
        Granule::from_tg0(tg)
    };
    let granule = granule
        .ok_or(ContextFault::Illegal {
            field: "STE.S2TG",
            value: tg,
        })
        .and_then(|granule| supported(registers, granule, "STE.S2TG"))?;
    let has_ds = bit(registers.idr5.into(), 7) && !aarch32;
    let ds = has_ds && bit(ste[3], 3) && granule != Granule::K64;
    let sl2 = if ds && granule == Granule::K4 {
        u64::from(bit(ste[3], 2))
    } else {
        0
    };
    let sl = sl2 << 2 | bits(vtcr, 7, 6);
    let stage = Stage::two(granule, sl as u8)
        // 32-bit tables start at level 1 or 2.
        .filter(|stage| !aarch32 || matches!(stage, Stage::Two { start_level: 1 | 2 }))
        .ok_or(ContextFault::Illegal {
            field: "STE.S2SL0",
            value: sl,
        })?;
    let ia_bits = if aarch32 {
        // A signed field of four bits: -8 to 7.
        32u8.wrapping_sub(tsz & 7).wrapping_add(tsz & 8)
    } else {
        input_size(tsz, granule, ds || granule == Granule::K64)?
    };
    let ha = bit(ste[2], 56) && registers.updates(1) && !aarch32;
    Ok(Config {
        stage,
        lower: Some(Half {
            root: in_place(ste[3], 51, 4),
            ia_bits,
            granule,
            tbi: false,
            had: false,
            sh: bits(vtcr, 13, 12) as u8,
        }),
        upper: None,
        aarch32,
        oa_bits: if aarch32 {
            40
        } else {
            address_size(vtcr >> 16).min(registers.oas())
        },
        lpa: registers.oas() == 52 && !aarch32,
        ds,
        ha,
        hd: ha && bit(ste[2], 55) && registers.updates(2),
        affd: bit(ste[2], 53),
        xnx: bit(registers.idr3.into(), 4),
        one_privilege: false,
    })
}

/// Checks `TxSZ`: 16 to 39 with all hardware, down to 12 with 52-bit input, up to 48 with small
/// tables. Whether the size fits granule and start level is the table's own check.
fn input_size(tsz: u8, granule: Granule, ds: bool) -> Result<u8, ContextFault> {
    let least = if ds || granule == Granule::K64 {
        12
    } else {
        16
    };
    if (least..=48).contains(&tsz) {
        Ok(64 - tsz)
    } else {
        Err(ContextFault::Illegal {
            field: "TxSZ",
            value: u64::from(tsz),
        })
    }
}

/// Checks a granule against `IDR5.GRAN4K`, `GRAN16K` and `GRAN64K`.
fn supported(
    registers: &Registers,
    granule: Granule,
    field: &'static str,
) -> Result<Granule, ContextFault> {
    let n = match granule {
        Granule::K4 => 4,
        Granule::K16 => 5,
        Granule::K64 => 6,
    };
    if bit(registers.idr5.into(), n) {
        Ok(granule)
    } else {
        Err(ContextFault::Illegal {
            field,
            value: u64::from(n),
        })
    }
}

/// Finds every `StreamID` whose STE is valid, ascending.
///
/// `limit` bounds the entries read: STEs, and level 1 descriptors without a level 2 table.
///
/// # Errors
///
/// [`ContextFault::Limit`], or [`ContextFault::MissingMemory`] for the stream table.
pub fn devices<M: Memory + ?Sized>(
    registers: &Registers,
    memory: &M,
    limit: u64,
) -> Result<Vec<Device>, ContextFault> {
    let mut found = Vec::new();
    let mut budget = Budget::new(limit);
    if !registers.is_enabled() {
        return Ok(found);
    }
    let end = 1u64 << registers.stream_bits();
    let mut sid = 0;
    while let (true, Ok(id)) = (sid < end, u32::try_from(sid)) {
        budget.spend()?;
        let address = match registers.ste(memory, id) {
            Ok(address) => address,
            Err(fault @ ContextFault::MissingMemory { .. }) => return Err(fault),
            // Nothing here: go on behind what one level 1 descriptor covers.
            Err(_) => {
                let split = registers.split().unwrap_or(0);
                sid = ((sid >> split) + 1) << split;
                continue;
            }
        };
        let [word] = read(memory, address)?;
        if bit(word, 0) {
            found.push(Device {
                id,
                binding: resolve(registers, memory, id, None),
            });
        }
        sid += 1;
    }
    Ok(found)
}
