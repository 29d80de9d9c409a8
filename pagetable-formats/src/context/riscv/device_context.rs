//! The device context (DC).
//!
//! Source: sections "Device-context fields" and "Device-context configuration checks".

mod build;

pub use self::build::DeviceOptions;

use crate::{Bits, Field, Oa, bit};

use super::features::capability;
use super::stage::FirstStageRules;
use super::{
    ContextFormat, Features, FirstStage, MODE, Misconfigured, PPN, ProcessDirectory, STAGE_FIELDS,
    SecondStage, VALID, check_reserved,
};

/// `EN_ATS`: ATS is allowed.
const ENABLE_ATS: u64 = bit(1);
/// `EN_PRI`: page requests are allowed.
const ENABLE_PRI: u64 = bit(2);
/// T2GPA: ATS gives the device guest-physical addresses.
const T2GPA: u64 = bit(3);
/// DTF: translation faults are not reported.
const DISABLE_FAULTS: u64 = bit(4);
/// PDTV: `fsc` is a `pdtp`.
const HAS_DIRECTORY: u64 = bit(5);
/// PRPR: answers to page requests carry a PASID.
const PRPR: u64 = bit(6);
/// GADE: hardware sets A and D in second-stage tables.
const SECOND_STAGE_UPDATES: u64 = bit(7);
/// SADE: hardware sets A and D in first-stage tables.
const FIRST_STAGE_UPDATES: u64 = bit(8);
/// DPE: requests without a process id use process 0.
const DEFAULT_PROCESS: u64 = bit(9);
/// SBE: process directories and first-stage tables are big-endian.
const BIG_ENDIAN: u64 = bit(10);
/// SXL: first-stage addresses have 32 bits.
const SXL: u64 = bit(11);
/// Bits of `tc` for the vendor.
const CUSTOM: Bits<31, 24> = Bits;
/// Reserved bits of `tc`, 23:12 and 63:32; the others above 11 are custom.
const TC_RESERVED: u64 = 0xffff_ffff_00ff_f000;
/// PSCID of `ta`.
const PSCID: Bits<31, 12> = Bits;
const PSCID_BITS: u8 = 20;
/// RCID of `ta`, with QOSID.
const RCID: Bits<51, 40> = Bits;
/// Width of RCID and MCID.
const QOS_BITS: u8 = 12;
/// MCID of `ta`, with QOSID.
const MCID: Bits<63, 52> = Bits;
/// Bits of `ta` that no field takes: 11:0 and 39:32.
const TA_RESERVED: u64 = !(PSCID.mask() | RCID.mask() | MCID.mask());
/// Bits of `msiptp` that are neither PPN nor MODE.
const MSIPTP_RESERVED: Bits<59, 44> = Bits;
/// Bits of `msi_addr_mask` and `msi_addr_pattern` above the page number.
const MSI_ADDRESS_RESERVED: Bits<63, 52> = Bits;

/// A valid device context.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct DeviceContext {
    tc: u64,
    ta: u64,
    first_stage: FirstStage,
    second_stage: SecondStage,
    msi: Option<MsiTable>,
}

/// The table that sends a guest's MSIs to its interrupt files.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct MsiTable {
    /// Where it lies.
    pub root: Oa,
    /// Page number bits in which interrupt files differ.
    pub mask: u64,
    /// Page number of the interrupt files in all other bits.
    pub pattern: u64,
}

impl MsiTable {
    /// Returns whether the guest-physical `address` belongs to an interrupt file.
    pub const fn contains(self, address: Oa) -> bool {
        (address.get() >> 12 ^ self.pattern) & !self.mask == 0
    }
}

impl DeviceContext {
    /// Names of the fields of each word; contexts in base format have the first four.
    pub const FIELDS: [&[Field]; 8] = [
        &[
            Field::new("V", 0, 0),
            Field::new("EN_ATS", 1, 1),
            Field::new("EN_PRI", 2, 2),
            Field::new("T2GPA", 3, 3),
            Field::new("DTF", 4, 4),
            Field::new("PDTV", 5, 5),
            Field::new("PRPR", 6, 6),
            Field::new("GADE", 7, 7),
            Field::new("SADE", 8, 8),
            Field::new("DPE", 9, 9),
            Field::new("SBE", 10, 10),
            Field::new("SXL", 11, 11),
            Field::new("custom", 31, 24),
        ],
        &[
            Field::new("PPN", 43, 0),
            Field::new("GSCID", 59, 44),
            Field::new("MODE", 63, 60),
        ],
        &[
            Field::new("PSCID", 31, 12),
            Field::new("RCID", 51, 40),
            Field::new("MCID", 63, 52),
        ],
        STAGE_FIELDS,
        STAGE_FIELDS,
        &[Field::new("mask", 51, 0)],
        &[Field::new("pattern", 51, 0)],
        &[],
    ];

    /// Decodes a context; `None` if it is not valid.
    ///
    /// A context in base format has four words; the others are not looked at then.
    ///
    /// # Errors
    ///
    /// [`Misconfigured`]: the first rule that a valid context breaks. Widths that registers do not
    /// tell, those of RCID and MCID, are not checked.
    pub fn decode(words: [u64; 8], features: Features) -> Result<Option<Self>, Misconfigured> {
        let [tc, iohgatp, ta, fsc, msi_words @ ..] = words;
        if tc & VALID == 0 {
            return Ok(None);
        }
        check_tc(tc, features)?;
        let has_qos = features.has(capability::QOSID);
        let qos = if has_qos {
            0
        } else {
            RCID.mask() | MCID.mask()
        };
        check_reserved(2, ta, TA_RESERVED | qos)?;

        let second_stage = SecondStage::decode(iohgatp, features, tc & SECOND_STAGE_UPDATES != 0)?;
        let is_nested = second_stage != SecondStage::Bare;
        if tc & T2GPA != 0 && !is_nested {
            return Err(Misconfigured::T2gpaWithoutSecondStage);
        }
        let rules = FirstStageRules {
            features,
            is_32_bit: tc & SXL != 0,
            updates_flags: tc & FIRST_STAGE_UPDATES != 0,
            is_nested,
        };
        let first_stage = if tc & HAS_DIRECTORY == 0 {
            FirstStage::Tables(rules.decode(3, fsc)?)
        } else {
            let has_default_process = tc & DEFAULT_PROCESS != 0;
            FirstStage::Directory(ProcessDirectory::decode(fsc, has_default_process, rules)?)
        };
        let msi = match features.context_format() {
            ContextFormat::Base => None,
            ContextFormat::Extended => decode_msi(msi_words)?,
        };
        Ok(Some(Self {
            tc,
            ta,
            first_stage,
            second_stage,
            msi,
        }))
    }

    /// Returns the first stage.
    pub const fn first_stage(self) -> FirstStage {
        self.first_stage
    }

    /// Returns the second stage.
    pub const fn second_stage(self) -> SecondStage {
        self.second_stage
    }

    /// Returns the MSI table, if there is one.
    pub const fn msi_table(self) -> Option<MsiTable> {
        self.msi
    }

    /// Returns the address space that tags translations; it has no meaning without first-stage
    /// tables, or with a process directory.
    pub const fn pscid(self) -> u32 {
        PSCID.get(self.ta) as u32
    }

    /// Returns the resource-control and the monitoring id of the IOMMU's own accesses.
    pub const fn qos_ids(self) -> (u16, u16) {
        (RCID.get(self.ta) as u16, MCID.get(self.ta) as u16)
    }

    /// Returns whether the device may use ATS (`EN_ATS`).
    pub const fn has_ats(self) -> bool {
        self.tc & ENABLE_ATS != 0
    }

    /// Returns whether the device may request pages (`EN_PRI`).
    pub const fn has_page_requests(self) -> bool {
        self.tc & ENABLE_PRI != 0
    }

    /// Returns whether ATS gives the device guest-physical addresses (T2GPA).
    pub const fn has_guest_ats(self) -> bool {
        self.tc & T2GPA != 0
    }

    /// Returns whether translation faults of the device are not reported (DTF).
    pub const fn suppresses_faults(self) -> bool {
        self.tc & DISABLE_FAULTS != 0
    }

    /// Returns whether process directories and first-stage tables are big-endian (SBE).
    pub const fn is_big_endian(self) -> bool {
        self.tc & BIG_ENDIAN != 0
    }
}

/// Checks the rules that concern `tc` and the IOMMU alone.
fn check_tc(tc: u64, features: Features) -> Result<(), Misconfigured> {
    check_reserved(0, tc, TC_RESERVED)?;
    let is_set = |bits| tc & bits != 0;
    let lacks = |capability| !features.has(capability);
    let is_32_bit = is_set(SXL);
    let can_be_32_bit = features.is_guest_32_bit() || features.has_32_bit_schemes();
    let rules = [
        (
            lacks(capability::ATS) && is_set(ENABLE_ATS | ENABLE_PRI | PRPR),
            Misconfigured::AtsUnsupported,
        ),
        (
            !is_set(ENABLE_ATS) && is_set(T2GPA),
            Misconfigured::T2gpaWithoutAts,
        ),
        (
            !is_set(ENABLE_ATS) && is_set(ENABLE_PRI),
            Misconfigured::PriWithoutAts,
        ),
        (
            !is_set(ENABLE_PRI) && is_set(PRPR),
            Misconfigured::PrprWithoutPri,
        ),
        (
            lacks(capability::T2GPA) && is_set(T2GPA),
            Misconfigured::T2gpaUnsupported,
        ),
        (
            !is_set(HAS_DIRECTORY) && is_set(DEFAULT_PROCESS),
            Misconfigured::DpeWithoutDirectory,
        ),
        (
            lacks(capability::AMO_HWAD) && is_set(FIRST_STAGE_UPDATES | SECOND_STAGE_UPDATES),
            Misconfigured::UpdatesUnsupported,
        ),
        (
            lacks(capability::END) && features.is_big_endian() != is_set(BIG_ENDIAN),
            Misconfigured::ByteOrder,
        ),
        (
            if is_32_bit {
                !can_be_32_bit
            } else {
                features.is_guest_32_bit()
            },
            Misconfigured::SupervisorWidth,
        ),
    ];
    rules
        .into_iter()
        .find(|&(is_broken, _)| is_broken)
        .map_or(Ok(()), |(_, rule)| Err(rule))
}

/// Decodes words 4 to 7 of a context in extended format.
fn decode_msi(words: [u64; 4]) -> Result<Option<MsiTable>, Misconfigured> {
    let [msiptp, mask, pattern, reserved] = words;
    check_reserved(4, msiptp, MSIPTP_RESERVED.mask())?;
    check_reserved(5, mask, MSI_ADDRESS_RESERVED.mask())?;
    check_reserved(6, pattern, MSI_ADDRESS_RESERVED.mask())?;
    check_reserved(7, reserved, u64::MAX)?;
    match MODE.get(msiptp) as u8 {
        0 => Ok(None),
        1 => Ok(Some(MsiTable {
            root: Oa::new(PPN.get(msiptp) << 12),
            mask,
            pattern,
        })),
        mode => Err(Misconfigured::MsiMode { mode }),
    }
}

#[cfg(test)]
mod tests;
