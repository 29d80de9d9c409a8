//! The device table entry (DTE).
//!
//! Source: document 48882, section 2.2.2.1 "Device Table Entry Format".
//!
//! The entry is valid in parts: V covers words 0 and 1, TV the translation fields in them, GV the
//! guest fields, IV the interrupt fields of word 2.

mod build;
mod parts;
mod update;

pub use self::parts::{
    GuestTables, HostTables, InterruptTable, Interrupts, PortIo, SystemManagement, Tracking,
    Translation,
};
pub use self::update::UpdateRules;

use crate::walk::Root;
use crate::{Bits, Field, Level, Oa, Rights, bit};

use super::Gcr3Table;

/// V: words 0 and 1 are valid.
const VALID: u64 = bit(0);
/// TV: the translation fields are valid.
const TRANSLATION_VALID: u64 = bit(1);
/// HAD: which flags hardware sets in host tables.
const HAD: Bits<8, 7> = Bits;
/// `Mode`: levels of the host tables, 0 for none.
const MODE: Bits<11, 9> = Bits;
/// Root of the host tables.
const HOST_ROOT: Bits<51, 12> = Bits;
/// PPR: the device may request pages.
const PAGE_REQUESTS: u64 = bit(52);
/// GPRP: answers to page requests carry a PASID.
const PAGE_RESPONSE_PASID: u64 = bit(53);
/// `GIoV`: requests without a PASID use entry 0 of the guest CR3 table.
const GUEST_IO_VALID: u64 = bit(54);
/// GV: the guest fields are valid.
const GUEST_VALID: u64 = bit(55);
/// GLX: levels of the guest CR3 table, less one.
const GLX: Bits<57, 56> = Bits;
/// Bits 14:12 of the guest CR3 table's address, in word 0.
const GCR3_LOW: Bits<60, 58> = Bits;
/// IR: reads allowed.
const READ: u64 = bit(61);
/// IW: writes allowed.
const WRITE: u64 = bit(62);
/// Bits 30:15 of the guest CR3 table's address, in word 1.
const GCR3_MIDDLE: Bits<31, 16> = Bits;
/// Bits 51:31 of the guest CR3 table's address, in word 1.
const GCR3_HIGH: Bits<63, 43> = Bits;
/// I: the device may use ATS, in word 1.
const ATS: u64 = bit(32);
/// SE: repeated page faults are not logged, in word 1.
const SUPPRESS_REPEATED: u64 = bit(33);
/// SA: no page fault is logged, in word 1.
const SUPPRESS_ALL: u64 = bit(34);
/// Cache, in word 1: a hint for the IOTLB.
const CACHE_HINT: u64 = bit(37);
/// SD, in word 1: accesses of the IOMMU do not snoop.
const SNOOP_DISABLE: u64 = bit(38);
/// EX, in word 1: the exclusion range applies.
const EXCLUSION: u64 = bit(39);
/// `IoCtl`, in word 1.
const IO_CONTROL: Bits<36, 35> = Bits;
/// `SysMgt`, in word 1.
const SYSTEM_MANAGEMENT: Bits<41, 40> = Bits;
/// IV: the interrupt fields of word 2 are valid.
const INTERRUPTS_VALID: u64 = bit(0);
/// `IntTabLen`, in word 2: base-2 logarithm of the number of entries, up to 11.
const INTERRUPT_TABLE_LENGTH: Bits<4, 1> = Bits;
/// Interrupt table root, in word 2.
const INTERRUPT_ROOT: Bits<51, 6> = Bits;
/// `GuestPagingMode`, in word 2: levels of the guest page tables, less four.
const GUEST_PAGING: Bits<55, 54> = Bits;
/// `IntCtl`, in word 2.
const INTERRUPT_CONTROL: Bits<61, 60> = Bits;

/// Reserved bits: 63 and 6:2; 42 (bit 106 of the entry); 59 and 53:52; 53:48 and 14:0.
const RESERVED: [u64; 4] = [
    bit(63) | 0x7c,
    bit(42),
    bit(59) | 0x0030_0000_0000_0000,
    0x003f_0000_0000_7fff,
];

/// A device table entry: four 64-bit words, lowest first.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Dte([u64; 4]);

impl Dte {
    /// Length of an entry, in bytes.
    pub const LEN: u64 = 32;

    /// Names of the fields of each word.
    pub const FIELDS: [&[Field]; 4] = [
        &[
            Field::new("V", 0, 0),
            Field::new("TV", 1, 1),
            Field::new("HAD", 8, 7),
            Field::new("Mode", 11, 9),
            Field::new("HostPageTableRootPtr", 51, 12),
            Field::new("PPR", 52, 52),
            Field::new("GPRP", 53, 53),
            Field::new("GIoV", 54, 54),
            Field::new("GV", 55, 55),
            Field::new("GLX", 57, 56),
            Field::new("GCR3[14:12]", 60, 58),
            Field::new("IR", 61, 61),
            Field::new("IW", 62, 62),
        ],
        &[
            Field::new("DomainID", 15, 0),
            Field::new("GCR3[30:15]", 31, 16),
            Field::new("I", 32, 32),
            Field::new("SE", 33, 33),
            Field::new("SA", 34, 34),
            Field::new("IoCtl", 36, 35),
            Field::new("Cache", 37, 37),
            Field::new("SD", 38, 38),
            Field::new("EX", 39, 39),
            Field::new("SysMgt", 41, 40),
            Field::new("GCR3[51:31]", 63, 43),
        ],
        &[
            Field::new("IV", 0, 0),
            Field::new("IntTabLen", 4, 1),
            Field::new("IG", 5, 5),
            Field::new("InterruptTableRootPtr", 51, 6),
            Field::new("GuestPagingMode", 55, 54),
            Field::new("InitPass", 56, 56),
            Field::new("EIntPass", 57, 57),
            Field::new("NMIPass", 58, 58),
            Field::new("IntCtl", 61, 60),
            Field::new("Lint0Pass", 62, 62),
            Field::new("Lint1Pass", 63, 63),
        ],
        &[
            Field::new("vIOMMU", 47, 15),
            Field::new("AttrV", 54, 54),
            Field::new("Mode0FC", 55, 55),
            Field::new("SnoopAttribute", 63, 56),
        ],
    ];

    /// Creates an entry from its words.
    pub const fn new(words: [u64; 4]) -> Self {
        Self(words)
    }

    /// Returns the words.
    pub const fn words(self) -> [u64; 4] {
        self.0
    }

    /// Returns the value of V; without it, the device's requests pass untranslated.
    pub const fn is_valid(self) -> bool {
        self.0[0] & VALID != 0
    }

    /// Returns the domain that tags the device's translations.
    pub const fn domain_id(self) -> u16 {
        self.0[1] as u16
    }

    /// Returns whether the device may use ATS: the field I, "IOTLB enable".
    pub const fn has_ats(self) -> bool {
        self.0[1] & ATS != 0
    }

    /// Returns whether the device may request pages (PPR).
    pub const fn has_page_requests(self) -> bool {
        self.0[0] & PAGE_REQUESTS != 0
    }

    /// Returns whether answers to page requests carry a PASID (GPRP).
    pub const fn has_page_response_pasid(self) -> bool {
        self.0[0] & PAGE_RESPONSE_PASID != 0
    }

    /// Returns whether repeated page faults of the device are not logged (SE) or none are (SA).
    pub const fn suppresses_faults(self) -> bool {
        self.0[1] & (SUPPRESS_REPEATED | SUPPRESS_ALL) != 0
    }

    /// Returns whether no page fault of the device is logged (SA).
    pub const fn suppresses_all_faults(self) -> bool {
        self.0[1] & SUPPRESS_ALL != 0
    }

    /// Returns whether the IOMMU may keep more of the device's translations (Cache).
    pub const fn has_cache_hint(self) -> bool {
        self.0[1] & CACHE_HINT != 0
    }

    /// Returns whether the IOMMU does not snoop when it reads the device's tables (SD).
    pub const fn has_snoop_disabled(self) -> bool {
        self.0[1] & SNOOP_DISABLE != 0
    }

    /// Returns whether the exclusion range applies to the device (EX).
    pub const fn has_exclusion(self) -> bool {
        self.0[1] & EXCLUSION != 0
    }

    /// Returns what happens to accesses in the system management range.
    pub const fn system_management(self) -> SystemManagement {
        match SYSTEM_MANAGEMENT.get(self.0[1]) {
            0 => SystemManagement::Aborted,
            1 => SystemManagement::Forwarded,
            2 => SystemManagement::InterruptsForwarded,
            _ => SystemManagement::Translated,
        }
    }

    /// Returns what happens to port IO of the device.
    ///
    /// # Errors
    ///
    /// [`DteError::PortIo`] if `IoCtl` is 3.
    pub const fn port_io(self) -> Result<PortIo, DteError> {
        match IO_CONTROL.get(self.0[1]) {
            0 => Ok(PortIo::Aborted),
            1 => Ok(PortIo::Forwarded),
            2 => Ok(PortIo::Translated),
            _ => Err(DteError::PortIo),
        }
    }

    /// Returns which flags hardware sets in the host tables.
    ///
    /// # Errors
    ///
    /// [`DteError::Tracking`] if HAD is 2.
    pub const fn tracking(self) -> Result<Tracking, DteError> {
        match HAD.get(self.0[0]) {
            0 => Ok(Tracking::None),
            1 => Ok(Tracking::Accessed),
            3 => Ok(Tracking::AccessedAndDirty),
            _ => Err(DteError::Tracking),
        }
    }

    /// Returns what the device's memory accesses go through.
    ///
    /// # Errors
    ///
    /// [`DteError`] if V is set and a field that takes part has a reserved value: hardware aborts
    /// the request and logs an illegal device table entry.
    pub fn translation(self) -> Result<Translation, DteError> {
        if !self.is_valid() {
            return Ok(Translation::PassThrough {
                rights: Rights::ALL,
            });
        }
        self.check_reserved(0)?;
        self.check_reserved(1)?;
        if self.0[0] & TRANSLATION_VALID == 0 {
            return Ok(Translation::Blocked);
        }
        let host = self.host_tables()?;
        if self.0[0] & GUEST_VALID != 0 {
            return self.guest_tables(host).map(Translation::Guest);
        }
        Ok(match host {
            Some(host) => Translation::Host(host),
            None if self.0[0] & (READ | WRITE) == 0 => Translation::Blocked,
            None => Translation::PassThrough {
                rights: self.rights(),
            },
        })
    }

    /// Returns what the device's interrupts go through.
    ///
    /// # Errors
    ///
    /// [`DteError`] if IV is set and a field that takes part has a reserved value.
    pub fn interrupts(self) -> Result<Interrupts, DteError> {
        let word = self.0[2];
        if word & INTERRUPTS_VALID == 0 {
            return Ok(Interrupts::Forwarded);
        }
        self.check_reserved(2)?;
        let count_lg2 = INTERRUPT_TABLE_LENGTH.get(word) as u8;
        match INTERRUPT_CONTROL.get(word) {
            0 => Ok(Interrupts::Aborted),
            1 => Ok(Interrupts::Forwarded),
            2 => InterruptTable::new(Oa::new(word & INTERRUPT_ROOT.mask()), count_lg2)
                .map(Interrupts::Remapped),
            _ => Err(DteError::InterruptControl),
        }
    }

    /// Returns the rights that IR and IW give; nothing else is denied here.
    fn rights(self) -> Rights {
        Rights::USER
            .union(Rights::EXECUTE)
            .with_if(Rights::READ, self.0[0] & READ != 0)
            .with_if(Rights::WRITE, self.0[0] & WRITE != 0)
    }

    fn host_tables(self) -> Result<Option<HostTables>, DteError> {
        let levels = match MODE.get(self.0[0]) {
            0 => return Ok(None),
            7 => return Err(DteError::Mode),
            levels => levels as u8,
        };
        let root = Root {
            oa: Oa::new(self.0[0] & HOST_ROOT.mask()),
            level: Level(levels - 1),
        };
        let tables = HostTables::new(root, self.tracking()?)?;
        Ok(Some(tables.with_limit(self.rights())))
    }

    fn guest_tables(self, host: Option<HostTables>) -> Result<GuestTables, DteError> {
        let [low, high, modes, _] = self.0;
        self.check_reserved(2)?;
        let levels = match GLX.get(low) {
            3 => return Err(DteError::Gcr3Levels),
            levels => levels as u8 + 1,
        };
        let paging_levels = match GUEST_PAGING.get(modes) {
            0 => 4,
            1 => 5,
            _ => return Err(DteError::GuestPagingMode),
        };
        let root =
            GCR3_LOW.get(low) << 12 | GCR3_MIDDLE.get(high) << 15 | GCR3_HIGH.get(high) << 31;
        let gcr3 = Gcr3Table {
            root: Oa::new(root),
            levels,
            paging_levels,
        };
        let mut tables = GuestTables::new(gcr3);
        if let Some(host) = host {
            tables = tables.with_host(host);
        }
        if low & GUEST_IO_VALID != 0 {
            tables = tables.with_requests_without_pasid();
        }
        Ok(tables.with_limit(self.rights()))
    }

    fn check_reserved(self, word: usize) -> Result<(), DteError> {
        match self.0[word] & RESERVED[word] {
            0 => Ok(()),
            bits => Err(DteError::Reserved {
                word: word as u8,
                bits,
            }),
        }
    }
}

/// Why an entry is illegal, or would be.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum DteError {
    /// Reserved bits are set.
    #[error("reserved bits {bits:#x} of word {word} are set")]
    Reserved {
        /// Number of the word, 0 to 3.
        word: u8,
        /// The bits, in place.
        bits: u64,
    },
    /// `Mode` is 7.
    #[error("Mode is 7, but host tables have at most 6 levels")]
    Mode,
    /// The level of the root is above 5.
    #[error("host tables have 1 to 6 levels, and no root at level {level}")]
    HostRootLevel {
        /// The level.
        level: Level,
    },
    /// An address has no place in its field.
    #[error("{oa} is not aligned to {alignment} bytes or has more than 52 bits")]
    Pointer {
        /// The address.
        oa: Oa,
        /// What the field asks for, in bytes.
        alignment: u64,
    },
    /// HAD is 2.
    #[error("HAD is 2, which is reserved")]
    Tracking,
    /// GLX is 3.
    #[error("GLX is 3, but guest CR3 tables have at most 3 levels")]
    Gcr3Levels,
    /// `GuestPagingMode` is 2 or 3.
    #[error("GuestPagingMode is reserved")]
    GuestPagingMode,
    /// `IoCtl` is 3.
    #[error("IoCtl is 3, which is reserved")]
    PortIo,
    /// `IntCtl` is 3.
    #[error("IntCtl is 3, which is reserved")]
    InterruptControl,
    /// The interrupt table has more than 2048 entries.
    #[error("IntTabLen is {count_lg2}, but interrupt tables have at most 2^11 entries")]
    InterruptTableLength {
        /// Base-2 logarithm of the number of entries.
        count_lg2: u8,
    },
}

#[cfg(test)]
mod tests;
