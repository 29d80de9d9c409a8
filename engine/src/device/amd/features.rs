//! What an IOMMU can do, from its registers.

/// What of an IOMMU decides how its tables are made.
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a field of a register"
)]
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Features {
    /// ATS requests are understood (`IotlbSup`).
    pub has_ats: bool,
    /// Devices may ask for pages (`PPRSup`).
    pub has_page_requests: bool,
    /// The most levels of version 1 tables (`HATS`): 4 to 6, or 0 if there are none.
    pub host_levels: u8,
    /// The most levels of version 2 tables (`GTSup`, `GATS`): 4 or 5, or 0 if there are none.
    pub guest_levels: u8,
    /// The most levels of guest CR3 tables (`GLXSup`): 1 to 3.
    pub gcr3_levels: u8,
    /// Requests without a PASID may use version 2 tables (`GIoSup`).
    pub has_guest_default: bool,
    /// Guest CR3 tables may be at addresses of a guest, which version 1 tables translate (`GCR3TRPModeSup`).
    pub has_guest_addresses: bool,
    /// Bits of a PASID (`PASmax`), 20 at most.
    pub pasid_bits: u8,
    /// Hardware sets A and D in version 1 tables (`HASup`, `HDSup`).
    pub has_dirty: bool,
    /// The device table may be in 2 to the power of this pieces (`DevTabSegSup`): 0 to 3.
    pub segment_bits: u8,
    /// Bits of a physical address (`PASize`), 32 to 52.
    pub oa_bits: u8,
}

impl Features {
    /// Decodes the first word of the capability block in configuration space and that at offset 10h (sections
    /// 3.2.1 and 3.2.6), and the extended feature register (MMIO offset 30h, section 3.4.9), which counts only
    /// where the capability says that it is there. Reserved values act as the smallest ones. What the second extended
    /// feature register says is [added](Self::with_second_register).
    pub const fn from_registers(capability: u32, miscellaneous: u32, extended: u64) -> Self {
        const fn field(register: u64, high: u32, low: u32) -> u8 {
            (register >> low & ((1 << (high - low + 1)) - 1)) as u8
        }
        const fn has(register: u64, bit: u32) -> bool {
            register >> bit & 1 != 0
        }
        const fn at_most(value: u8, limit: u8) -> u8 {
            if value < limit { value } else { limit }
        }
        let capability = capability as u64;
        let extended = if has(capability, 27) { extended } else { 0 };
        let oa_bits = at_most(field(miscellaneous as u64, 14, 8), 52);
        Self {
            has_ats: has(capability, 24),
            has_page_requests: has(extended, 1),
            host_levels: match field(extended, 11, 10) {
                3 => 0,
                more => 4 + more,
            },
            guest_levels: match field(extended, 13, 12) {
                _ if !has(extended, 4) => 0,
                1 | 2 => 5,
                _ => 4,
            },
            gcr3_levels: match field(extended, 15, 14) {
                3 => 1,
                more => 1 + more,
            },
            has_guest_default: has(extended, 48),
            has_guest_addresses: false,
            pasid_bits: at_most(field(extended, 36, 32) + 1, 20),
            has_dirty: has(extended, 49) && has(extended, 52),
            segment_bits: field(extended, 39, 38),
            oa_bits: if oa_bits < 32 { 32 } else { oa_bits },
        }
    }

    /// Returns these features with what the second extended feature register says (MMIO offset 1A0h).
    #[must_use]
    pub const fn with_second_register(self, extended: u64) -> Self {
        Self {
            has_guest_addresses: extended >> 3 & 1 != 0,
            ..self
        }
    }

    /// Returns whether guests' version 2 tables can stand over version 1 tables of the host. If so, `GCR3TRPMode` has
    /// to be set in the control register, bit 58, before any is attached.
    pub const fn can_nest(&self) -> bool {
        self.has_guest_tables() && self.has_guest_addresses && self.host_levels > 0
    }

    /// Returns whether version 2 tables can be all that a device uses.
    pub const fn has_guest_tables(&self) -> bool {
        self.guest_levels > 0 && self.has_guest_default
    }

    /// Returns how wide the PASIDs of a device can be: 0 without any.
    pub(super) const fn usable_pasid_bits(&self) -> u8 {
        let reach = 9 * self.gcr3_levels;
        if !self.has_guest_tables() {
            0
        } else if reach < self.pasid_bits {
            reach
        } else {
            self.pasid_bits
        }
    }
}
