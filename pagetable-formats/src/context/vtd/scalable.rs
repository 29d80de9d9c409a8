//! Scalable mode: context entries and the PASID directory.
//!
//! Source: VT-d specification, revision 4.1, sections 9.4 and 9.5.

use super::{
    ContextError, FAULT_DISABLE, POINTER, POINTER_TOO_WIDE, PRESENT, check_pointer, pointer, refuse,
};
use crate::{Bits, Field, Oa, bit};

const ENTRY: &str = "scalable context entry";
const DIRECTORY: &str = "PASID directory";
const DIRECTORY_ENTRY: &str = "PASID directory entry";
/// DTE: the device may ask for translations.
const DEVICE_TLB: u64 = bit(2);
/// PASIDE: requests with a PASID are translated.
const PASID: u64 = bit(3);
/// PRE: the device may ask for pages.
const PAGE_REQUESTS: u64 = bit(4);
/// PDTS: base-2 logarithm of the number of directory entries, less 7.
const DIRECTORY_SIZE: Bits<11, 9> = Bits;
/// `RID_PASID`, in word 1.
const RID_PASID: Bits<19, 0> = Bits;
/// `RID_PRIV`, in word 1.
const RID_PRIVILEGED: u64 = bit(20);
/// Base-2 logarithm of the PASIDs of the smallest directory: 2^7 entries for 64 PASIDs each.
const FEWEST_PASIDS_LG2: u32 = 13;
/// PASIDs have 20 bits.
const MOST_PASIDS_LG2: u32 = 20;

/// A context entry in scalable mode.
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is an independent bit of the entry"
)]
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct ScalableContext {
    is_fault_disabled: bool,
    has_device_tlb: bool,
    has_pasid: bool,
    has_page_requests: bool,
    is_privileged: bool,
    rid_pasid: u32,
    directory: Option<PasidDirectory>,
}

impl ScalableContext {
    /// The named fields of the four words.
    pub const FIELDS: [&'static [Field]; 4] = [
        &[
            Field::new("P", 0, 0),
            Field::new("FPD", 1, 1),
            Field::new("DTE", 2, 2),
            Field::new("PASIDE", 3, 3),
            Field::new("PRE", 4, 4),
            Field::new("PDTS", 11, 9),
            Field::new("PASIDDIRPTR", 63, 12),
        ],
        &[
            Field::new("RID_PASID", 19, 0),
            Field::new("RID_PRIV", 20, 20),
        ],
        &[],
        &[],
    ];

    /// Bits of each word that may take either value while others change: FPD, which decides about
    /// reports only.
    pub const SAFE: [u64; 4] = [FAULT_DISABLE, 0, 0, 0];

    /// Describes an entry that is not present: every request faults.
    pub const fn blocked() -> Self {
        Self {
            is_fault_disabled: false,
            has_device_tlb: false,
            has_pasid: false,
            has_page_requests: false,
            is_privileged: false,
            rid_pasid: 0,
            directory: None,
        }
    }

    /// Describes an entry that leads to `directory`; requests without a PASID get `rid_pasid`.
    ///
    /// # Errors
    ///
    /// [`ContextError::Pasid`] if the directory does not serve `rid_pasid`.
    pub const fn new(directory: PasidDirectory, rid_pasid: u32) -> Result<Self, ContextError> {
        if rid_pasid >= directory.pasid_count {
            return Err(ContextError::Pasid { pasid: rid_pasid });
        }
        Ok(Self {
            rid_pasid,
            directory: Some(directory),
            ..Self::blocked()
        })
    }

    /// Returns this entry with faults going unreported (FPD).
    #[must_use]
    pub const fn with_faults_disabled(self) -> Self {
        Self {
            is_fault_disabled: true,
            ..self
        }
    }

    /// Returns this entry with the device allowed to ask for translations and cache them (DTE).
    /// An entry that is not present stays as it is.
    #[must_use]
    pub const fn with_device_tlb(self) -> Self {
        Self {
            has_device_tlb: self.directory.is_some(),
            ..self
        }
    }

    /// Returns this entry with requests with a PASID translated (PASIDE). An entry that is not
    /// present stays as it is.
    #[must_use]
    pub const fn with_pasid(self) -> Self {
        Self {
            has_pasid: self.directory.is_some(),
            ..self
        }
    }

    /// Returns this entry with the device allowed to ask for pages (PRE). An entry that is not
    /// present stays as it is.
    #[must_use]
    pub const fn with_page_requests(self) -> Self {
        Self {
            has_page_requests: self.directory.is_some(),
            ..self
        }
    }

    /// Returns this entry with requests without a PASID privileged (`RID_PRIV`). An entry that is
    /// not present stays as it is.
    #[must_use]
    pub const fn with_privileged(self) -> Self {
        Self {
            is_privileged: self.directory.is_some(),
            ..self
        }
    }

    /// Returns whether faults go unreported (FPD); holds for an entry that is not present too.
    pub const fn is_fault_disabled(self) -> bool {
        self.is_fault_disabled
    }

    /// Returns whether the device may ask for translations and cache them (DTE).
    pub const fn has_device_tlb(self) -> bool {
        self.has_device_tlb
    }

    /// Returns whether requests with a PASID are translated (PASIDE).
    pub const fn has_pasid(self) -> bool {
        self.has_pasid
    }

    /// Returns whether the device may ask for pages (PRE).
    pub const fn has_page_requests(self) -> bool {
        self.has_page_requests
    }

    /// Returns whether requests without a PASID are privileged (`RID_PRIV`).
    pub const fn is_privileged(self) -> bool {
        self.is_privileged
    }

    /// Returns the PASID of requests without one (`RID_PASID`), 20 bits.
    pub const fn rid_pasid(self) -> u32 {
        self.rid_pasid
    }

    /// Returns the PASID directory; `None` if the entry is not present and every request is blocked.
    pub const fn directory(self) -> Option<PasidDirectory> {
        self.directory
    }

    /// Decodes the four words of an entry.
    ///
    /// # Errors
    ///
    /// [`ContextError::Reserved`].
    pub fn decode(words: [u64; 4]) -> Result<Self, ContextError> {
        const RESERVED: [u64; 4] = [
            Bits::<8, 5>.mask() | POINTER_TOO_WIDE.mask(),
            Bits::<63, 21>.mask(),
            u64::MAX,
            u64::MAX,
        ];

        let [low, high, ..] = words;
        let blocked = Self {
            is_fault_disabled: low & FAULT_DISABLE != 0,
            ..Self::blocked()
        };
        if low & PRESENT == 0 {
            return Ok(blocked);
        }
        for (word, reserved) in RESERVED.into_iter().enumerate() {
            refuse(ENTRY, word, words[word], reserved)?;
        }
        let directory = PasidDirectory {
            oa: pointer(low),
            pasid_count: 1 << (DIRECTORY_SIZE.get(low) as u32 + FEWEST_PASIDS_LG2),
        };
        Ok(Self {
            has_device_tlb: low & DEVICE_TLB != 0,
            has_pasid: low & PASID != 0,
            has_page_requests: low & PAGE_REQUESTS != 0,
            is_privileged: high & RID_PRIVILEGED != 0,
            rid_pasid: RID_PASID.get(high) as u32,
            directory: Some(directory),
            ..blocked
        })
    }

    /// Returns the four words. All but P and FPD of an entry that is not present, which hardware
    /// ignores, is zero.
    pub fn encode(self) -> [u64; 4] {
        let flag = |is_set: bool, bits: u64| if is_set { bits } else { 0 };
        let fault_disable = flag(self.is_fault_disabled, FAULT_DISABLE);
        let Some(directory) = self.directory else {
            return [fault_disable, 0, 0, 0];
        };
        let low = PRESENT
            | fault_disable
            | flag(self.has_device_tlb, DEVICE_TLB)
            | flag(self.has_pasid, PASID)
            | flag(self.has_page_requests, PAGE_REQUESTS)
            | DIRECTORY_SIZE.put((directory.pasid_count.ilog2() - FEWEST_PASIDS_LG2).into())
            | directory.oa.get();
        let high = RID_PASID.put(self.rid_pasid.into()) | flag(self.is_privileged, RID_PRIVILEGED);
        [low, high, 0, 0]
    }

    /// Returns the bits that hardware reads of an entry with these words.
    pub const fn used(words: [u64; 4]) -> [u64; 4] {
        if words[0] & PRESENT == 0 {
            return [PRESENT | FAULT_DISABLE, 0, 0, 0];
        }
        let flags = PRESENT | FAULT_DISABLE | DEVICE_TLB | PASID | PAGE_REQUESTS;
        [
            flags | DIRECTORY_SIZE.mask() | POINTER.mask(),
            RID_PASID.mask() | RID_PRIVILEGED,
            0,
            0,
        ]
    }
}

/// The PASID directory of a device.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct PasidDirectory {
    oa: Oa,
    pasid_count: u32,
}

impl PasidDirectory {
    /// Describes the directory at `oa` that serves `pasid_count` PASIDs, 2^13 to 2^20.
    ///
    /// # Errors
    ///
    /// [`ContextError::PasidCount`] unless the count is one of these powers of two;
    /// [`ContextError::Pointer`] unless `oa` is aligned to 4 KiB and below 2^52.
    pub fn new(oa: Oa, pasid_count: u32) -> Result<Self, ContextError> {
        check_pointer(DIRECTORY, oa)?;
        let is_possible = pasid_count.is_power_of_two()
            && (FEWEST_PASIDS_LG2..=MOST_PASIDS_LG2).contains(&pasid_count.ilog2());
        if is_possible {
            Ok(Self { oa, pasid_count })
        } else {
            Err(ContextError::PasidCount { count: pasid_count })
        }
    }

    /// Returns where it lies.
    pub const fn oa(self) -> Oa {
        self.oa
    }

    /// Returns the number of PASIDs that it serves, 2^13 to 2^20.
    pub const fn pasid_count(self) -> u32 {
        self.pasid_count
    }

    /// Returns the address of the directory entry of `pasid`, one word, or `None` if the directory
    /// does not serve it.
    pub fn entry(self, pasid: u32) -> Option<Oa> {
        if pasid >= self.pasid_count {
            return None;
        }
        self.oa.checked_add(u64::from(pasid >> 6) * 8)
    }
}

/// An entry of the PASID directory: one word, so an update is one store.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct PasidDirectoryEntry {
    is_fault_disabled: bool,
    table: Option<Oa>,
}

impl PasidDirectoryEntry {
    /// The named fields of the word.
    pub const FIELDS: &[Field] = &[
        Field::new("P", 0, 0),
        Field::new("FPD", 1, 1),
        Field::new("SMPTBLPTR", 63, 12),
    ];

    /// Describes an entry that is not present.
    pub const fn blocked() -> Self {
        Self {
            is_fault_disabled: false,
            table: None,
        }
    }

    /// Describes an entry that leads to the table of 64 PASID entries at `table`.
    ///
    /// # Errors
    ///
    /// [`ContextError::Pointer`] unless `table` is aligned to 4 KiB and below 2^52.
    pub fn new(table: Oa) -> Result<Self, ContextError> {
        check_pointer(DIRECTORY_ENTRY, table)?;
        Ok(Self {
            table: Some(table),
            ..Self::blocked()
        })
    }

    /// Returns this entry with faults going unreported (FPD).
    #[must_use]
    pub const fn with_faults_disabled(self) -> Self {
        Self {
            is_fault_disabled: true,
            ..self
        }
    }

    /// Returns whether faults go unreported (FPD); holds for an entry that is not present too.
    pub const fn is_fault_disabled(self) -> bool {
        self.is_fault_disabled
    }

    /// Returns where the table of 64 PASID entries lies; `None` if the entry is not present.
    pub const fn table(self) -> Option<Oa> {
        self.table
    }

    /// Decodes the word of an entry.
    ///
    /// # Errors
    ///
    /// [`ContextError::Reserved`].
    pub fn decode(word: u64) -> Result<Self, ContextError> {
        const RESERVED: Bits<11, 2> = Bits;
        let blocked = Self {
            is_fault_disabled: word & FAULT_DISABLE != 0,
            table: None,
        };
        if word & PRESENT == 0 {
            return Ok(blocked);
        }
        let reserved = RESERVED.mask() | POINTER_TOO_WIDE.mask();
        refuse(DIRECTORY_ENTRY, 0, word, reserved)?;
        Ok(Self {
            table: Some(pointer(word)),
            ..blocked
        })
    }

    /// Returns the word. The pointer of an entry that is not present, which hardware ignores, is zero.
    pub fn encode(self) -> u64 {
        let table = self.table.map_or(0, |table| table.get() | PRESENT);
        table | u64::from(self.is_fault_disabled) << 1
    }

    /// Returns the address of the PASID entry of `pasid`, eight words, or `None` if the table is not
    /// present.
    pub fn entry(self, pasid: u32) -> Option<Oa> {
        self.table?.checked_add(u64::from(pasid % 64) * 64)
    }
}
