//! Making device table entries.
//!
//! Source: document 48882, section 2.2.2.1 "Device Table Entry Format".

use crate::Rights;

use super::{
    ATS, CACHE_HINT, Dte, EXCLUSION, GCR3_HIGH, GCR3_LOW, GCR3_MIDDLE, GLX, GUEST_IO_VALID,
    GUEST_PAGING, GUEST_VALID, GuestTables, HAD, HostTables, INTERRUPT_CONTROL,
    INTERRUPT_TABLE_LENGTH, INTERRUPTS_VALID, IO_CONTROL, Interrupts, MODE, PAGE_REQUESTS,
    PAGE_RESPONSE_PASID, PortIo, READ, SNOOP_DISABLE, SUPPRESS_ALL, SUPPRESS_REPEATED,
    SYSTEM_MANAGEMENT, SystemManagement, TRANSLATION_VALID, Tracking, Translation, VALID, WRITE,
};

/// An entry for each translation, and what else an entry says of a device.
///
/// All of them have V set: an entry without it lets the device's requests pass. Putting an entry
/// together from what its getters say gives the same words, but for bits that hardware ignores
/// (fields of what TV, GV or IV do not make valid, the root of host tables that `Mode` denies) and
/// those of word 3, which concern virtual IOMMUs and memory attributes and which nothing here sets.
impl Dte {
    /// Makes an entry for `translation`.
    pub fn of(translation: Translation) -> Self {
        match translation {
            Translation::Blocked => Self::blocked(),
            Translation::PassThrough { rights } => Self::pass_through(rights),
            Translation::Host(tables) => Self::host(tables),
            Translation::Guest(tables) => Self::guest(tables),
        }
    }

    /// Makes an entry that lets nothing through: V without TV.
    pub const fn blocked() -> Self {
        Self([VALID, 0, 0, 0])
    }

    /// Makes an entry that leaves addresses as they are, for the accesses among reads and writes that
    /// `rights` has. Without either it blocks.
    pub const fn pass_through(rights: Rights) -> Self {
        Self([VALID | TRANSLATION_VALID | limits(rights), 0, 0, 0])
    }

    /// Makes an entry that leads to version 1 tables.
    pub fn host(tables: HostTables) -> Self {
        Self([
            VALID | TRANSLATION_VALID | limits(tables.limit()) | host_fields(tables),
            0,
            0,
            0,
        ])
    }

    /// Makes an entry that leads to version 2 tables, on top of version 1 tables or not.
    pub fn guest(tables: GuestTables) -> Self {
        let gcr3 = tables.gcr3();
        let root = gcr3.root().get();
        let low = VALID
            | TRANSLATION_VALID
            | GUEST_VALID
            | limits(tables.limit())
            | tables.host().map_or(0, host_fields)
            | GLX.put(u64::from(gcr3.levels()) - 1)
            | GCR3_LOW.put(root >> 12 & 0x7)
            | if tables.serves_requests_without_pasid() {
                GUEST_IO_VALID
            } else {
                0
            };
        let high = GCR3_MIDDLE.put(root >> 15 & 0xffff) | GCR3_HIGH.put(root >> 31);
        let modes = GUEST_PAGING.put(u64::from(gcr3.paging_levels()) - 4);
        Self([low, high, modes, 0])
    }

    /// Returns this entry with the domain that tags the device's translations.
    #[must_use]
    pub const fn with_domain_id(self, domain_id: u16) -> Self {
        let [low, high, modes, guest] = self.0;
        Self([low, high & !0xffff | domain_id as u64, modes, guest])
    }

    /// Returns this entry with the device allowed to use ATS (the field I).
    #[must_use]
    pub const fn with_ats(self) -> Self {
        self.with(1, ATS)
    }

    /// Returns this entry with the device allowed to request pages (PPR).
    #[must_use]
    pub const fn with_page_requests(self) -> Self {
        self.with(0, PAGE_REQUESTS)
    }

    /// Returns this entry with answers to page requests that carry a PASID (GPRP).
    #[must_use]
    pub const fn with_page_response_pasid(self) -> Self {
        self.with(0, PAGE_RESPONSE_PASID)
    }

    /// Returns this entry with repeated page faults of the device not logged (SE).
    #[must_use]
    pub const fn with_repeated_faults_suppressed(self) -> Self {
        self.with(1, SUPPRESS_REPEATED)
    }

    /// Returns this entry with no page fault of the device logged (SA).
    #[must_use]
    pub const fn with_all_faults_suppressed(self) -> Self {
        self.with(1, SUPPRESS_ALL)
    }

    /// Returns this entry with the hint to keep more of the device's translations (Cache).
    #[must_use]
    pub const fn with_cache_hint(self) -> Self {
        self.with(1, CACHE_HINT)
    }

    /// Returns this entry with reads of the device's tables that do not snoop (SD).
    #[must_use]
    pub const fn with_snoop_disabled(self) -> Self {
        self.with(1, SNOOP_DISABLE)
    }

    /// Returns this entry with the exclusion range applied to the device (EX).
    #[must_use]
    pub const fn with_exclusion(self) -> Self {
        self.with(1, EXCLUSION)
    }

    /// Returns this entry with what happens to port IO.
    #[must_use]
    pub const fn with_port_io(self, port_io: PortIo) -> Self {
        let value = match port_io {
            PortIo::Aborted => 0,
            PortIo::Forwarded => 1,
            PortIo::Translated => 2,
        };
        self.without(1, IO_CONTROL.mask())
            .with(1, IO_CONTROL.put(value))
    }

    /// Returns this entry with what happens to accesses in the system management range.
    #[must_use]
    pub const fn with_system_management(self, system_management: SystemManagement) -> Self {
        let value = match system_management {
            SystemManagement::Aborted => 0,
            SystemManagement::Forwarded => 1,
            SystemManagement::InterruptsForwarded => 2,
            SystemManagement::Translated => 3,
        };
        self.without(1, SYSTEM_MANAGEMENT.mask())
            .with(1, SYSTEM_MANAGEMENT.put(value))
    }

    /// Returns this entry with what the device's fixed and arbitrated interrupts go through. Other
    /// interrupts stay blocked unless [`with_interrupts_of`](Self::with_interrupts_of) lets them pass.
    #[must_use]
    pub const fn with_interrupts(self, interrupts: Interrupts) -> Self {
        let fields = match interrupts {
            // Without IV they would need no field, but other interrupts would pass too.
            Interrupts::Forwarded => INTERRUPTS_VALID | INTERRUPT_CONTROL.put(1),
            Interrupts::Aborted => INTERRUPTS_VALID,
            Interrupts::Remapped(table) => {
                INTERRUPTS_VALID
                    | INTERRUPT_CONTROL.put(2)
                    | INTERRUPT_TABLE_LENGTH.put(table.count_lg2() as u64)
                    | table.root().get()
            }
        };
        self.without(2, Self::INTERRUPT_FIELDS).with(2, fields)
    }

    /// Returns this entry with all interrupt fields of `other`, as they are.
    #[must_use]
    pub const fn with_interrupts_of(self, other: Self) -> Self {
        self.without(2, Self::INTERRUPT_FIELDS)
            .with(2, other.0[2] & Self::INTERRUPT_FIELDS)
    }

    const fn with(self, word: usize, bits: u64) -> Self {
        let mut words = self.0;
        words[word] |= bits;
        Self(words)
    }

    const fn without(self, word: usize, bits: u64) -> Self {
        let mut words = self.0;
        words[word] &= !bits;
        Self(words)
    }
}

/// Returns IR and IW.
const fn limits(rights: Rights) -> u64 {
    let read = if rights.contains(Rights::READ) {
        READ
    } else {
        0
    };
    let write = if rights.contains(Rights::WRITE) {
        WRITE
    } else {
        0
    };
    read | write
}

/// Returns what word 0 says of host tables.
fn host_fields(tables: HostTables) -> u64 {
    let had = match tables.tracking() {
        Tracking::None => 0,
        Tracking::Accessed => 1,
        Tracking::AccessedAndDirty => 3,
    };
    let root = tables.root();
    HAD.put(had) | MODE.put(u64::from(root.level.0) + 1) | root.oa.get()
}
