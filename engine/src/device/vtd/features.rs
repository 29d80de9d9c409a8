//! What a remapping unit can do, from its capability registers.

use iopt_formats::context::vtd::{AddressWidth, TableMode};
use iopt_formats::{PageSize, PageSizes};

/// What of a unit decides how its tables are made. What decides how it is told of changes is in
/// [its planner](crate::invalidation::plan::vtd::Vtd).
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a bit of a capability register"
)]
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Features {
    /// Bits of a domain ID (`CAP_REG.ND`), 4 to 16.
    pub domain_id_bits: u8,
    /// Bits of an address that a second stage, or nothing, translates (`CAP_REG.MGAW`), 64 at most.
    pub input_bits: u8,
    /// Second stages may have 3 levels (`CAP_REG.SAGAW`).
    pub has_39_bits: bool,
    /// Second stages may have 4 levels (`CAP_REG.SAGAW`).
    pub has_48_bits: bool,
    /// Second stages may have 5 levels (`CAP_REG.SAGAW`).
    pub has_57_bits: bool,
    /// Pages of second stages (`CAP_REG.SSLPS`), 4 KiB among them.
    pub second_sizes: PageSizes,
    /// Pages of first stages (`CAP_REG.FS1GP`), 4 KiB and 2 MiB among them.
    pub first_sizes: PageSizes,
    /// First stages may have 5 levels (`CAP_REG.FS5LP`).
    pub has_five_first_levels: bool,
    /// Devices may cache translations (`ECAP_REG.DT`).
    pub has_device_tlbs: bool,
    /// Invalidations of device TLBs are throttled by physical function (`ECAP_REG.DIT`).
    pub has_throttling: bool,
    /// Requests may pass untranslated (`ECAP_REG.PT`).
    pub has_pass_through: bool,
    /// Leaves of a second stage may force accesses to snoop (`ECAP_REG.SC`).
    pub has_snoop_control: bool,
    /// Bits of a PASID (`ECAP_REG.PSS`), 20 at most; 0 without (`ECAP_REG.PASID`).
    pub pasid_bits: u8,
    /// There is a scalable mode (`ECAP_REG.SMTS`).
    pub has_scalable_mode: bool,
    /// Scalable mode has first stages (`ECAP_REG.FSTS`).
    pub has_first_stage: bool,
    /// Scalable mode has second stages (`ECAP_REG.SSTS`); legacy mode always does.
    pub has_second_stage: bool,
    /// Hardware sets accessed and dirty flags in second stages (`ECAP_REG.SSADS`).
    pub has_second_dirty: bool,
    /// First stages may have a second stage behind them (`ECAP_REG.NEST`).
    pub has_nesting: bool,
    /// First stages may translate supervisor requests (`ECAP_REG.SRS`).
    pub has_supervisor_requests: bool,
    /// Hardware sets the extended accessed flag in first stages (`ECAP_REG.EAFS`).
    pub has_extended_accessed: bool,
    /// Walks of scalable mode can snoop the processor's caches (`ECAP_REG.SMPWCS`).
    pub has_walk_snoop: bool,
    /// Devices may ask for pages, in scalable mode (`ECAP_REG.PRS`).
    pub has_page_requests: bool,
    /// What they asked for can be waited for (`ECAP_REG.PDS`).
    pub has_page_request_drain: bool,
    /// Bits of a host address, 32 to 52: what the DMAR table says.
    pub host_bits: u8,
}

impl Features {
    /// Decodes `CAP_REG` and `ECAP_REG` (VT-d specification, revision 4.1, sections 11.4.2 and 11.4.3). The
    /// registers do not know the host address width; it is taken to be between 32 and 52 bits.
    pub const fn from_registers(cap: u64, ecap: u64, host_bits: u8) -> Self {
        const fn has(register: u64, bit: u32) -> bool {
            register >> bit & 1 != 0
        }
        const fn sizes(has_2m: bool, has_1g: bool) -> PageSizes {
            let sizes = PageSizes::EMPTY.with(PageSize::KIB_4);
            let sizes = if has_2m {
                sizes.with(PageSize::MIB_2)
            } else {
                sizes
            };
            if has_1g {
                sizes.with(PageSize::GIB_1)
            } else {
                sizes
            }
        }
        let domains = (cap & 7) as u8;
        let pasid_bits = (ecap >> 35 & 0x1f) as u8 + 1;
        Self {
            domain_id_bits: 4 + 2 * if domains < 6 { domains } else { 6 },
            input_bits: (cap >> 16 & 0x3f) as u8 + 1,
            has_39_bits: has(cap, 9),
            has_48_bits: has(cap, 10),
            has_57_bits: has(cap, 11),
            second_sizes: sizes(has(cap, 34), has(cap, 35)),
            first_sizes: sizes(true, has(cap, 56)),
            has_five_first_levels: has(cap, 60),
            has_device_tlbs: has(ecap, 2),
            has_throttling: has(ecap, 41),
            has_pass_through: has(ecap, 6),
            has_snoop_control: has(ecap, 7),
            pasid_bits: match (has(ecap, 40), pasid_bits) {
                (false, _) => 0,
                (true, 20..) => 20,
                (true, bits) => bits,
            },
            has_scalable_mode: has(ecap, 43),
            has_first_stage: has(ecap, 47),
            has_second_stage: has(ecap, 46),
            has_second_dirty: has(ecap, 45),
            has_nesting: has(ecap, 26),
            has_supervisor_requests: has(ecap, 31),
            has_extended_accessed: has(ecap, 34),
            has_walk_snoop: has(ecap, 48),
            has_page_requests: has(ecap, 29),
            has_page_request_drain: has(ecap, 42),
            host_bits: match host_bits {
                0..32 => 32,
                53.. => 52,
                bits => bits,
            },
        }
    }

    /// Returns the mode to use: scalable where there is one that translates.
    pub const fn best_mode(&self) -> TableMode {
        if self.has_scalable_mode && (self.has_first_stage || self.has_second_stage) {
            TableMode::Scalable
        } else {
            TableMode::Legacy
        }
    }

    /// Returns the widest address that an entry may name, if second stages have any levels.
    pub const fn widest(&self) -> Option<AddressWidth> {
        if self.has_57_bits {
            Some(AddressWidth::Bits57)
        } else if self.has_48_bits {
            Some(AddressWidth::Bits48)
        } else if self.has_39_bits {
            Some(AddressWidth::Bits39)
        } else {
            None
        }
    }

    /// Returns whether second stages may have so many levels.
    pub const fn has_levels(&self, levels: u8) -> bool {
        match levels {
            3 => self.has_39_bits,
            4 => self.has_48_bits,
            5 => self.has_57_bits,
            _ => false,
        }
    }
}
