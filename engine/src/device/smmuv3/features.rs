//! What an SMMU can do, from its ID registers.

use iopt_formats::armv8::{Granule, HardwareUpdates, TableWalk};

/// Whether transactions that fault wait for software (section 3.12).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Stalls {
    /// They never do.
    Impossible,
    /// They do where a CD, or an STE for stage 2, says so.
    Allowed,
    /// They do, and whatever says otherwise is illegal. Such an SMMU has no device with ATS, which needs stages 2 that
    /// do not stall.
    Forced,
}

/// What of an SMMU decides how its tables are made.
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a field of an ID register"
)]
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Features {
    /// Bits of a stream number (`IDR1.SIDSIZE`), 32 at most.
    pub stream_bits: u8,
    /// Bits of a substream number (`IDR1.SSIDSIZE`), 20 at most; 0 without substreams.
    pub substream_bits: u8,
    /// Stream tables may have two levels (`IDR0.ST_LEVEL`).
    pub has_two_level_streams: bool,
    /// Tables of CDs may have two levels (`IDR0.CD2L`).
    pub has_two_level_cds: bool,
    /// There is a stage 1 (`IDR0.S1P`).
    pub has_stage1: bool,
    /// There is a stage 2 (`IDR0.S2P`).
    pub has_stage2: bool,
    /// ATS requests are understood (`IDR0.ATS`).
    pub has_ats: bool,
    /// Devices may ask for pages (`IDR0.PRI`).
    pub has_page_requests: bool,
    /// Whether faults stall (`IDR0.STALL_MODEL`).
    pub stalls: Stalls,
    /// ASIDs have 16 bits, not 8 (`IDR0.ASID16`).
    pub has_wide_asids: bool,
    /// VMIDs have 16 bits, not 8 (`IDR0.VMID16`).
    pub has_wide_vmids: bool,
    /// Incoming attributes can be replaced (`IDR1.ATTR_TYPES_OVR`).
    pub has_attribute_overrides: bool,
    /// Which flags of leaves hardware updates (`IDR0.HTTU`).
    pub updates: HardwareUpdates,
    /// Bits of an output address (`IDR5.OAS`): 32, 36, 40, 42, 44, 48 or 52.
    pub oa_bits: u8,
    /// Bits of an input address of stage 1 (`IDR5.VAX`): 48 or 52. Those of stage 2 are as many as an output address has.
    pub va_bits: u8,
    /// Stage 2 can force write-back (`IDR3.FWB`).
    pub has_forced_write_back: bool,
    /// Tables are read through the caches of the CPUs (`IDR0.COHACC`).
    pub is_coherent: bool,
    /// Descriptors of 52 bits with tables of 4 KiB and 16 KiB (`IDR5.DS`).
    pub has_wide_descriptors: bool,
    /// Tables of 4 KiB (`IDR5.GRAN4K`).
    pub has_4k: bool,
    /// Tables of 16 KiB (`IDR5.GRAN16K`).
    pub has_16k: bool,
    /// Tables of 64 KiB (`IDR5.GRAN64K`).
    pub has_64k: bool,
}

impl Features {
    /// Decodes `SMMU_IDR0`, `SMMU_IDR1`, `SMMU_IDR3` and `SMMU_IDR5` (sections 6.3.1, 6.3.2, 6.3.4 and 6.3.6). A
    /// reserved `OAS` acts as 48 bits.
    pub const fn from_registers(idr0: u32, idr1: u32, idr3: u32, idr5: u32) -> Self {
        const fn has(register: u32, bit: u32) -> bool {
            register >> bit & 1 != 0
        }
        let stream_bits = (idr1 & 0x3f) as u8;
        let substream_bits = (idr1 >> 6 & 0x1f) as u8;
        Self {
            stream_bits: if stream_bits < 32 { stream_bits } else { 32 },
            substream_bits: if substream_bits < 20 {
                substream_bits
            } else {
                20
            },
            has_two_level_streams: idr0 >> 27 & 3 == 1,
            has_two_level_cds: has(idr0, 19),
            has_stage1: has(idr0, 1),
            has_stage2: has(idr0, 0),
            has_ats: has(idr0, 10),
            has_page_requests: has(idr0, 16),
            stalls: match idr0 >> 24 & 3 {
                0 => Stalls::Allowed,
                2 => Stalls::Forced,
                _ => Stalls::Impossible,
            },
            has_wide_asids: has(idr0, 12),
            has_wide_vmids: has(idr0, 18),
            has_attribute_overrides: has(idr1, 27),
            updates: match idr0 >> 6 & 3 {
                0 => HardwareUpdates::None,
                1 => HardwareUpdates::Accessed,
                _ => HardwareUpdates::Dirty,
            },
            oa_bits: match idr5 & 7 {
                0 => 32,
                1 => 36,
                2 => 40,
                3 => 42,
                4 => 44,
                6 => 52,
                _ => 48,
            },
            va_bits: if idr5 >> 10 & 3 == 1 { 52 } else { 48 },
            has_forced_write_back: has(idr3, 8),
            is_coherent: has(idr0, 4),
            has_wide_descriptors: has(idr5, 7),
            has_4k: has(idr5, 4),
            has_16k: has(idr5, 5),
            has_64k: has(idr5, 6),
        }
    }

    /// Returns whether hardware updates all flags of leaves that tables with `updates` leave to it.
    pub(super) const fn has_updates(&self, updates: HardwareUpdates) -> bool {
        match updates {
            HardwareUpdates::None | HardwareUpdates::Ignored => true,
            HardwareUpdates::Accessed => matches!(
                self.updates,
                HardwareUpdates::Accessed | HardwareUpdates::Dirty
            ),
            HardwareUpdates::Dirty => matches!(self.updates, HardwareUpdates::Dirty),
        }
    }

    /// Returns whether tables can be read as they want it.
    pub(super) fn has_walk(&self, walk: TableWalk) -> bool {
        self.is_coherent || walk == TableWalk::NON_COHERENT
    }

    /// Returns whether tables of `granule` can be walked.
    pub const fn has_granule(&self, granule: Granule) -> bool {
        match granule {
            Granule::Kib4 => self.has_4k,
            Granule::Kib16 => self.has_16k,
            Granule::Kib64 => self.has_64k,
        }
    }
}
