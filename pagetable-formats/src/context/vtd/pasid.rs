//! Scalable mode: context entries, the PASID directory and PASID tables.
//!
//! Source: VT-d specification, revision 4.1, sections 9.4 to 9.6. Earlier revisions call the stages
//! levels: FSPTPTR was FLPTPTR, FSPM FLPM, SSPTPTR SLPTPTR and SSADE SLADE.

use super::{
    ContextError, FAULT_DISABLE, POINTER_TOO_WIDE, PRESENT, Stage, Translation, pointer, refuse,
    second_stage,
};
use crate::vtd::{FirstStage, SecondStage};
use crate::{Bits, Field, Oa, bit};

/// A context entry in scalable mode.
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is an independent bit of the entry"
)]
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct ScalableContext {
    /// Whether faults go unreported (FPD); holds for an entry that is not present too.
    pub fault_disable: bool,
    /// Whether the device may ask for translations and cache them (DTE).
    pub device_tlb: bool,
    /// Whether requests with a PASID are translated (PASIDE).
    pub pasid: bool,
    /// Whether the device may ask for pages (PRE).
    pub page_requests: bool,
    /// Whether requests without a PASID are privileged (`RID_PRIV`).
    pub privileged: bool,
    /// PASID of requests without one (`RID_PASID`), 20 bits.
    pub rid_pasid: u32,
    /// The PASID directory; `None` if the entry is not present and every request is blocked.
    pub directory: Option<PasidDirectory>,
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

    /// Decodes the four words of an entry.
    ///
    /// # Errors
    ///
    /// [`ContextError::Reserved`].
    pub fn decode(words: [u64; 4]) -> Result<Self, ContextError> {
        const DIRECTORY_SIZE: Bits<11, 9> = Bits;
        const RID_PASID: Bits<19, 0> = Bits;
        const RESERVED: [u64; 4] = [
            Bits::<8, 5>.mask() | POINTER_TOO_WIDE.mask(),
            Bits::<63, 21>.mask(),
            u64::MAX,
            u64::MAX,
        ];

        let [low, high, ..] = words;
        let is_present = low & PRESENT != 0;
        if is_present {
            for (word, reserved) in RESERVED.into_iter().enumerate() {
                refuse("scalable context entry", word, words[word], reserved)?;
            }
        }
        let has = |word, bits| is_present && word & bits != 0;
        let directory = PasidDirectory {
            oa: pointer(low),
            // Each directory entry stands for a table of 64 PASIDs.
            pasid_count: 64 << (DIRECTORY_SIZE.get(low) + 7),
        };
        Ok(Self {
            fault_disable: low & FAULT_DISABLE != 0,
            device_tlb: has(low, bit(2)),
            pasid: has(low, bit(3)),
            page_requests: has(low, bit(4)),
            privileged: has(high, bit(20)),
            rid_pasid: if is_present {
                RID_PASID.get(high) as u32
            } else {
                0
            },
            directory: is_present.then_some(directory),
        })
    }
}

/// The PASID directory of a device.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct PasidDirectory {
    /// Where it lies.
    pub oa: Oa,
    /// Number of PASIDs that it serves, 2^13 to 2^20.
    pub pasid_count: u32,
}

impl PasidDirectory {
    /// Returns the address of the directory entry of `pasid`, one word, or `None` if the directory
    /// does not serve it.
    pub fn entry(self, pasid: u32) -> Option<Oa> {
        if pasid >= self.pasid_count {
            return None;
        }
        self.oa.checked_add(u64::from(pasid >> 6) * 8)
    }
}

/// An entry of the PASID directory.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct PasidDirectoryEntry {
    /// Whether faults go unreported (FPD); holds for an entry that is not present too.
    pub fault_disable: bool,
    /// Where the table of 64 PASID entries lies; `None` if the entry is not present.
    pub table: Option<Oa>,
}

impl PasidDirectoryEntry {
    /// The named fields of the word.
    pub const FIELDS: &[Field] = &[
        Field::new("P", 0, 0),
        Field::new("FPD", 1, 1),
        Field::new("SMPTBLPTR", 63, 12),
    ];

    /// Decodes the word of an entry.
    ///
    /// # Errors
    ///
    /// [`ContextError::Reserved`].
    pub fn decode(word: u64) -> Result<Self, ContextError> {
        const RESERVED: Bits<11, 2> = Bits;
        let fault_disable = word & FAULT_DISABLE != 0;
        if word & PRESENT == 0 {
            return Ok(Self {
                fault_disable,
                table: None,
            });
        }
        let reserved = RESERVED.mask() | POINTER_TOO_WIDE.mask();
        refuse("PASID directory entry", 0, word, reserved)?;
        Ok(Self {
            fault_disable,
            table: Some(pointer(word)),
        })
    }

    /// Returns the address of the PASID entry of `pasid`, eight words, or `None` if the table is not
    /// present.
    pub fn entry(self, pasid: u32) -> Option<Oa> {
        self.table?.checked_add(u64::from(pasid % 64) * 64)
    }
}

/// An entry of a PASID table.
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is an independent bit of the entry"
)]
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct PasidEntry {
    /// Whether faults go unreported (FPD); holds for an entry that is not present too.
    pub fault_disable: bool,
    /// Whether walks snoop the CPU caches (PWSNP).
    pub walk_snoop: bool,
    /// Whether accesses snoop whatever the request says (PGSNP).
    pub page_snoop: bool,
    /// Whether supervisor requests are translated (SRE).
    pub supervisor_requests: bool,
    /// Whether supervisor writes heed read-only pages of the first stage (WPE).
    pub write_protect: bool,
    /// Whether hardware sets the extended accessed flag in the first stage (EAFE).
    pub extended_accessed: bool,
    /// Tag of the cached translations; 0 if the entry is not present.
    pub domain_id: u16,
    /// What happens to requests with this PASID.
    pub translation: Translation,
}

impl PasidEntry {
    /// The named fields of the eight words.
    pub const FIELDS: [&'static [Field]; 8] = [
        &[
            Field::new("P", 0, 0),
            Field::new("FPD", 1, 1),
            Field::new("AW", 4, 2),
            Field::new("PGTT", 8, 6),
            Field::new("SSADE", 9, 9),
            Field::new("SSPTPTR", 63, 12),
        ],
        &[
            Field::new("DID", 15, 0),
            Field::new("PWSNP", 23, 23),
            Field::new("PGSNP", 24, 24),
            Field::new("CD", 25, 25),
            Field::new("EMTE", 26, 26),
            Field::new("PAT", 63, 32),
        ],
        &[
            Field::new("SRE", 0, 0),
            Field::new("FSPM", 3, 2),
            Field::new("WPE", 4, 4),
            Field::new("EAFE", 7, 7),
            Field::new("FSPTPTR", 63, 12),
        ],
        &[],
        &[],
        &[],
        &[],
        &[],
    ];

    /// Decodes the eight words of an entry.
    ///
    /// First-stage tables are taken to translate sign-extended addresses, as hardware does, and not
    /// to control execution.
    ///
    /// # Errors
    ///
    /// [`ContextError::Reserved`], [`TranslationType`](ContextError::TranslationType) and, for the
    /// stages in use, [`AddressWidth`](ContextError::AddressWidth) and
    /// [`PagingMode`](ContextError::PagingMode).
    pub fn decode(words: [u64; 8]) -> Result<Self, ContextError> {
        const TRANSLATION_TYPE: Bits<8, 6> = Bits;
        const DOMAIN_ID: Bits<15, 0> = Bits;
        // Bits 6:5 of word 2 were NXE and SMEP; section 9.6 has hardware ignore them.
        const RESERVED: [u64; 8] = [
            bit(5) | Bits::<11, 10>.mask() | POINTER_TOO_WIDE.mask(),
            Bits::<22, 16>.mask() | Bits::<31, 27>.mask(),
            bit(1) | Bits::<11, 8>.mask() | POINTER_TOO_WIDE.mask(),
            u64::MAX,
            u64::MAX,
            u64::MAX,
            u64::MAX,
            u64::MAX,
        ];

        let [control, memory, first, ..] = words;
        let is_present = control & PRESENT != 0;
        let has = |word, bits| is_present && word & bits != 0;
        let translation = if is_present {
            for (word, reserved) in RESERVED.into_iter().enumerate() {
                refuse(ENTRY, word, words[word], reserved)?;
            }
            match TRANSLATION_TYPE.get(control) {
                1 => Translation::First(first_stage(first)?),
                2 => Translation::Second(second_stage_of(control)?),
                3 => Translation::Nested {
                    first: first_stage(first)?,
                    second: second_stage_of(control)?,
                },
                4 => Translation::PassThrough,
                value => {
                    return Err(ContextError::TranslationType {
                        entry: ENTRY,
                        value: value as u8,
                    });
                }
            }
        } else {
            Translation::Blocked
        };
        Ok(Self {
            fault_disable: control & FAULT_DISABLE != 0,
            walk_snoop: has(memory, bit(23)),
            page_snoop: has(memory, bit(24)),
            supervisor_requests: has(first, bit(0)),
            write_protect: has(first, bit(4)),
            extended_accessed: has(first, bit(7)),
            domain_id: if is_present {
                DOMAIN_ID.get(memory) as u16
            } else {
                0
            },
            translation,
        })
    }
}

const ENTRY: &str = "PASID entry";

/// Returns the stage that word 0 describes.
fn second_stage_of(control: u64) -> Result<Stage<SecondStage>, ContextError> {
    const ADDRESS_WIDTH: Bits<4, 2> = Bits;
    const ACCESSED_DIRTY: u64 = bit(9);
    let format = second_stage(ENTRY, ADDRESS_WIDTH.get(control) as u8)?;
    let format = if control & ACCESSED_DIRTY == 0 {
        format
    } else {
        format.with_dirty()
    };
    Ok(Stage::new(format, pointer(control)))
}

/// Returns the stage that word 2 describes.
fn first_stage(word: u64) -> Result<Stage<FirstStage>, ContextError> {
    const PAGING_MODE: Bits<3, 2> = Bits;
    let va_bits = match PAGING_MODE.get(word) {
        0 => 48,
        1 => 57,
        value => {
            return Err(ContextError::PagingMode {
                entry: ENTRY,
                value: value as u8,
            });
        }
    };
    let format = FirstStage::sign_extended(va_bits).expect("both widths exist");
    Ok(Stage::new(format, pointer(word)))
}
