//! Making device contexts, and their words.
//!
//! Source: sections "Device-context fields" and "Device-context configuration checks".

use crate::context::riscv::{FirstStageTables, check_id, page_number};

use super::{
    BIG_ENDIAN, CUSTOM, ContextFormat, DEFAULT_PROCESS, DISABLE_FAULTS, DeviceContext, ENABLE_ATS,
    ENABLE_PRI, FIRST_STAGE_UPDATES, Features, FirstStage, HAS_DIRECTORY, MCID, MODE,
    MSI_ADDRESS_RESERVED, Misconfigured, MsiTable, PPN, PRPR, PSCID, PSCID_BITS, QOS_BITS, RCID,
    SECOND_STAGE_UPDATES, SXL, SecondStage, T2GPA, VALID, check_reserved,
};

/// What a device context says besides its two stages.
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is an independent bit of the context"
)]
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct DeviceOptions {
    /// Whether the device may use ATS (`EN_ATS`).
    pub has_ats: bool,
    /// Whether the device may request pages (`EN_PRI`).
    pub has_page_requests: bool,
    /// Whether answers to page requests carry a PASID (PRPR).
    pub has_page_response_pasid: bool,
    /// Whether ATS gives the device guest-physical addresses (T2GPA).
    pub has_guest_ats: bool,
    /// Whether translation faults of the device are not reported (DTF).
    pub suppresses_faults: bool,
    /// Whether hardware sets A and D in first-stage tables (SADE), also if no format asks for it.
    pub has_first_stage_updates: bool,
    /// Whether hardware sets A and D in second-stage tables (GADE), also if no format asks for it.
    pub has_second_stage_updates: bool,
    /// Whether process directories and first-stage tables are big-endian (SBE).
    pub is_big_endian: bool,
    /// Whether first-stage addresses have 32 bits (SXL), also without tables that say so.
    pub is_32_bit: bool,
    /// The vendor's bits (31:24 of `tc`).
    pub custom: u8,
    /// The address space that tags translations, 20 bits (PSCID).
    pub pscid: u32,
    /// The resource-control id of the IOMMU's own accesses, 12 bits (RCID).
    pub rcid: u16,
    /// The monitoring id of the IOMMU's own accesses, 12 bits (MCID).
    pub mcid: u16,
    /// The MSI table, for contexts in extended format.
    pub msi: Option<MsiTable>,
}

impl DeviceContext {
    /// Bits of each word that may take either value while others change: DTF, which decides about
    /// reports only.
    pub const SAFE: [u64; 8] = [DISABLE_FAULTS, 0, 0, 0, 0, 0, 0, 0];

    /// Makes a context for an IOMMU with `features`.
    ///
    /// The context has the formats that hardware reads the tables as: page sizes, memory types and
    /// the width of addresses are those of the IOMMU, not of `first` and `second`.
    ///
    /// # Errors
    ///
    /// [`Misconfigured`]: the rule that hardware would see broken, or what no field can hold.
    pub fn new(
        first: FirstStage,
        second: SecondStage,
        options: DeviceOptions,
        features: Features,
    ) -> Result<Self, Misconfigured> {
        check_id(options.pscid, PSCID_BITS)?;
        check_id(options.rcid.into(), QOS_BITS)?;
        check_id(options.mcid.into(), QOS_BITS)?;
        let (stage_flags, fsc) = first_stage_words(first, options)?;
        let iohgatp = second.word()?;
        let is_sv32x4 = matches!(second, SecondStage::Sv32x4 { .. });
        if second != SecondStage::Bare && is_sv32x4 != features.is_guest_32_bit() {
            let mode = MODE.get(iohgatp) as u8;
            return Err(Misconfigured::SecondStageMode { mode });
        }

        let flag = |is_set: bool, bits: u64| if is_set { bits } else { 0 };
        let second_updates = options.has_second_stage_updates || second.updates_flags();
        let tc = VALID
            | flag(options.has_ats, ENABLE_ATS)
            | flag(options.has_page_requests, ENABLE_PRI)
            | flag(options.has_guest_ats, T2GPA)
            | flag(options.suppresses_faults, DISABLE_FAULTS)
            | flag(options.has_page_response_pasid, PRPR)
            | flag(second_updates, SECOND_STAGE_UPDATES)
            | flag(options.is_big_endian, BIG_ENDIAN)
            | CUSTOM.put(options.custom.into())
            | stage_flags;
        let ta = PSCID.put(options.pscid.into())
            | RCID.put(options.rcid.into())
            | MCID.put(options.mcid.into());
        if options.msi.is_some() && features.context_format() == ContextFormat::Base {
            return Err(Misconfigured::MsiUnsupported);
        }
        let [msiptp, mask, pattern] = msi_words(options.msi)?;
        let words = [tc, iohgatp, ta, fsc, msiptp, mask, pattern, 0];
        Self::decode(words, features).map(|context| context.expect("V is set"))
    }

    /// Returns the eight words; a context in base format has the first four, and the others are zero.
    ///
    /// What hardware ignores is zero: page numbers and GSCID where MODE says that there are no tables,
    /// mask and pattern without an MSI table. A context that is not valid is all zero.
    pub fn encode(self) -> [u64; 8] {
        let fsc = match self.first_stage {
            FirstStage::Tables(tables) => tables.word(),
            FirstStage::Directory(directory) => Ok(directory.word()),
        };
        let words = [self.second_stage.word(), fsc].map(|word| word.expect(WAS_DECODED));
        let [iohgatp, fsc] = words;
        let [msiptp, mask, pattern] = msi_words(self.msi).expect(WAS_DECODED);
        [self.tc, iohgatp, self.ta, fsc, msiptp, mask, pattern, 0]
    }

    /// Returns the bits that hardware reads of a context with these words, of which a context in base
    /// format has four.
    ///
    /// Reserved bits of a valid one count as read, because hardware refuses them, and so does PSCID,
    /// although it has no meaning without first-stage tables.
    pub const fn used(words: [u64; 8], format: ContextFormat) -> [u64; 8] {
        const GSCID_AND_PPN: u64 = !MODE.mask();
        if words[0] & VALID == 0 {
            return [VALID, 0, 0, 0, 0, 0, 0, 0];
        }
        let second = if MODE.get(words[1]) == 0 {
            !GSCID_AND_PPN
        } else {
            u64::MAX
        };
        let first = if MODE.get(words[3]) == 0 {
            !PPN.mask()
        } else {
            u64::MAX
        };
        let (msi, msi_address, reserved) = match format {
            ContextFormat::Base => (0, 0, 0),
            ContextFormat::Extended if MODE.get(words[4]) == 0 => {
                (!PPN.mask(), MSI_ADDRESS_RESERVED.mask(), u64::MAX)
            }
            ContextFormat::Extended => (u64::MAX, u64::MAX, u64::MAX),
        };
        [
            u64::MAX,
            second,
            u64::MAX,
            first,
            msi,
            msi_address,
            msi_address,
            reserved,
        ]
    }

    /// Returns what the context says besides its two stages. With them it makes the same context
    /// again.
    pub const fn options(self) -> DeviceOptions {
        let (rcid, mcid) = self.qos_ids();
        DeviceOptions {
            has_ats: self.has_ats(),
            has_page_requests: self.has_page_requests(),
            has_page_response_pasid: self.tc & PRPR != 0,
            has_guest_ats: self.has_guest_ats(),
            suppresses_faults: self.suppresses_faults(),
            has_first_stage_updates: self.tc & FIRST_STAGE_UPDATES != 0,
            has_second_stage_updates: self.tc & SECOND_STAGE_UPDATES != 0,
            is_big_endian: self.is_big_endian(),
            is_32_bit: self.tc & SXL != 0,
            custom: CUSTOM.get(self.tc) as u8,
            pscid: self.pscid(),
            rcid,
            mcid,
            msi: self.msi,
        }
    }
}

const WAS_DECODED: &str = "decoding gave what a word describes";

/// Returns what `tc` says of the first stage, and `fsc`.
fn first_stage_words(
    first: FirstStage,
    options: DeviceOptions,
) -> Result<(u64, u64), Misconfigured> {
    let flag = |is_set: bool, bits: u64| if is_set { bits } else { 0 };
    let updates = |asks: bool| flag(asks || options.has_first_stage_updates, FIRST_STAGE_UPDATES);
    match first {
        FirstStage::Tables(tables) => {
            let is_sv32 = matches!(tables, FirstStageTables::Sv32 { .. });
            let is_32_bit = options.is_32_bit || is_sv32;
            if is_32_bit && matches!(tables, FirstStageTables::Sv { .. }) {
                return Err(Misconfigured::SupervisorWidth);
            }
            let flags = flag(is_32_bit, SXL) | updates(tables.updates_flags());
            Ok((flags, tables.word()?))
        }
        FirstStage::Directory(directory) => {
            let flags = HAS_DIRECTORY
                | flag(directory.has_default_process(), DEFAULT_PROCESS)
                | flag(options.is_32_bit, SXL)
                | updates(directory.rules().updates_flags);
            Ok((flags, directory.word()))
        }
    }
}

/// Returns words 4 to 6.
fn msi_words(msi: Option<MsiTable>) -> Result<[u64; 3], Misconfigured> {
    let Some(table) = msi else {
        return Ok([0; 3]);
    };
    check_reserved(5, table.mask, MSI_ADDRESS_RESERVED.mask())?;
    check_reserved(6, table.pattern, MSI_ADDRESS_RESERVED.mask())?;
    let msiptp = MODE.put(1) | page_number(table.root)?;
    Ok([msiptp, table.mask, table.pattern])
}
