//! Scalable mode: entries of PASID tables.
//!
//! Source: VT-d specification, revision 4.1, section 9.6. Earlier revisions call the stages levels:
//! FSPTPTR was FLPTPTR, FSPM FLPM, SSPTPTR SLPTPTR and SSADE SLADE.

use super::{
    AddressWidth, ContextError, FAULT_DISABLE, POINTER, POINTER_TOO_WIDE, PRESENT, Stage,
    Translation, pointer, refuse, second_stage,
};
use crate::vtd::{FirstStage, SecondStage};
use crate::{Bits, Field, Format as _, bit};

const ENTRY: &str = "PASID entry";

/// AW, in word 0.
const ADDRESS_WIDTH: Bits<4, 2> = Bits;
/// PGTT, in word 0.
const TRANSLATION_TYPE: Bits<8, 6> = Bits;
const FIRST: u64 = 1;
const SECOND: u64 = 2;
const NESTED: u64 = 3;
const PASS_THROUGH: u64 = 4;
/// SSADE, in word 0: accessed and dirty flags in the second stage.
const ACCESSED_DIRTY: u64 = bit(9);
/// DID, in word 1.
const DOMAIN_ID: Bits<15, 0> = Bits;
/// PWSNP, in word 1.
const WALK_SNOOP: u64 = bit(23);
/// PGSNP, in word 1.
const PAGE_SNOOP: u64 = bit(24);
/// CD, in word 1.
const CACHE_DISABLE: u64 = bit(25);
/// EMTE, in word 1.
const EXTENDED_TYPES: u64 = bit(26);
/// PAT, in word 1.
const PAT: Bits<63, 32> = Bits;
/// SRE, in word 2.
const SUPERVISOR_REQUESTS: u64 = bit(0);
/// FSPM, in word 2.
const PAGING_MODE: Bits<3, 2> = Bits;
/// WPE, in word 2.
const WRITE_PROTECT: u64 = bit(4);
/// NXE, in word 2: fetches from first-stage pages with XD are refused. Revision 4.1 has hardware ignore it; to earlier
/// ones XD is reserved without it.
const EXECUTE_DISABLE: u64 = bit(5);
/// EAFE, in word 2.
const EXTENDED_ACCESSED: u64 = bit(7);

/// An entry of a PASID table.
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is an independent bit of the entry"
)]
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct PasidEntry {
    is_fault_disabled: bool,
    has_walk_snoop: bool,
    has_page_snoop: bool,
    has_supervisor_requests: bool,
    has_write_protect: bool,
    has_extended_accessed: bool,
    has_execute_disable: bool,
    memory_types: MemoryTypes,
    domain_id: u16,
    /// AW of an entry without a second stage, else 0.
    address_width: u8,
    translation: Translation,
}

/// Memory types of first-stage accesses, for hardware with `ECAP_REG.MTS`.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct MemoryTypes {
    /// Whether every access is uncached (CD).
    pub is_cache_disabled: bool,
    /// Whether the second stage's memory types count (EMTE).
    pub has_extended: bool,
    /// Memory types of the eight attributes of first-stage entries, four bits each (PAT).
    pub pat: u32,
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
            Field::new("NXE", 5, 5),
            Field::new("EAFE", 7, 7),
            Field::new("FSPTPTR", 63, 12),
        ],
        &[],
        &[],
        &[],
        &[],
        &[],
    ];

    /// Bits of each word that may take either value while others change: FPD, which decides about
    /// reports only.
    pub const SAFE: [u64; 8] = [FAULT_DISABLE, 0, 0, 0, 0, 0, 0, 0];

    /// Describes an entry that is not present: every request faults.
    pub const fn blocked() -> Self {
        Self {
            is_fault_disabled: false,
            has_walk_snoop: false,
            has_page_snoop: false,
            has_supervisor_requests: false,
            has_write_protect: false,
            has_extended_accessed: false,
            has_execute_disable: false,
            memory_types: MemoryTypes {
                is_cache_disabled: false,
                has_extended: false,
                pat: 0,
            },
            domain_id: 0,
            address_width: 0,
            translation: Translation::Blocked,
        }
    }

    /// Describes an entry that uses addresses as they are. `width` is the widest that the hardware
    /// supports (`CAP_REG.SAGAW`); it needs `ECAP_REG.PT`.
    pub const fn pass_through(domain_id: u16, width: AddressWidth) -> Self {
        Self {
            address_width: width.field(),
            ..Self::present(domain_id, Translation::PassThrough)
        }
    }

    /// Describes an entry that leads to first-stage tables alone.
    pub const fn first(domain_id: u16, stage: Stage<FirstStage>) -> Self {
        Self::present(domain_id, Translation::First(stage))
    }

    /// Describes an entry that leads to second-stage tables alone.
    pub const fn second(domain_id: u16, stage: Stage<SecondStage>) -> Self {
        Self::present(domain_id, Translation::Second(stage))
    }

    /// Describes an entry that leads to first-stage tables, at an address that the second stage
    /// translates.
    pub const fn nested(
        domain_id: u16,
        first: Stage<FirstStage>,
        second: Stage<SecondStage>,
    ) -> Self {
        Self::present(domain_id, Translation::Nested { first, second })
    }

    const fn present(domain_id: u16, translation: Translation) -> Self {
        Self {
            domain_id,
            translation,
            ..Self::blocked()
        }
    }

    const fn is_present(self) -> bool {
        !matches!(self.translation, Translation::Blocked)
    }

    /// Returns this entry with faults going unreported (FPD).
    #[must_use]
    pub const fn with_faults_disabled(self) -> Self {
        Self {
            is_fault_disabled: true,
            ..self
        }
    }

    /// Returns this entry with walks that snoop the CPU caches (PWSNP). An entry that is not present
    /// stays as it is.
    #[must_use]
    pub const fn with_walk_snoop(self) -> Self {
        Self {
            has_walk_snoop: self.is_present(),
            ..self
        }
    }

    /// Returns this entry with accesses that snoop whatever the request says (PGSNP). An entry that
    /// is not present stays as it is.
    #[must_use]
    pub const fn with_page_snoop(self) -> Self {
        Self {
            has_page_snoop: self.is_present(),
            ..self
        }
    }

    /// Returns this entry with supervisor requests translated (SRE). An entry that is not present
    /// stays as it is.
    #[must_use]
    pub const fn with_supervisor_requests(self) -> Self {
        Self {
            has_supervisor_requests: self.is_present(),
            ..self
        }
    }

    /// Returns this entry with supervisor writes that heed read-only pages of the first stage (WPE).
    /// An entry that is not present stays as it is.
    #[must_use]
    pub const fn with_write_protect(self) -> Self {
        Self {
            has_write_protect: self.is_present(),
            ..self
        }
    }

    /// Returns this entry with hardware that sets the extended accessed flag in the first stage
    /// (EAFE). An entry that is not present stays as it is.
    #[must_use]
    pub const fn with_extended_accessed(self) -> Self {
        Self {
            has_extended_accessed: self.is_present(),
            ..self
        }
    }

    /// Returns this entry with XD in first-stage entries honoured, or at least not refused (NXE). An entry that is
    /// not present stays as it is.
    #[must_use]
    pub const fn with_execute_disable(self) -> Self {
        Self {
            has_execute_disable: self.is_present(),
            ..self
        }
    }

    /// Returns this entry with `types` (CD, EMTE and PAT). An entry that is not present stays as it
    /// is.
    #[must_use]
    pub const fn with_memory_types(self, types: MemoryTypes) -> Self {
        if self.is_present() {
            Self {
                memory_types: types,
                ..self
            }
        } else {
            self
        }
    }

    /// Returns this entry with `width` in AW, for entries that lead to first-stage tables alone:
    /// system software writes the hardware's widest there, and hardware has no use for it. Other
    /// entries stay as they are, because a second stage says its own width.
    #[must_use]
    pub const fn with_address_width(self, width: AddressWidth) -> Self {
        match self.translation {
            Translation::First(_) => Self {
                address_width: width.field(),
                ..self
            },
            _ => self,
        }
    }

    /// Returns whether faults go unreported (FPD); holds for an entry that is not present too.
    pub const fn is_fault_disabled(self) -> bool {
        self.is_fault_disabled
    }

    /// Returns whether walks snoop the CPU caches (PWSNP).
    pub const fn has_walk_snoop(self) -> bool {
        self.has_walk_snoop
    }

    /// Returns whether accesses snoop whatever the request says (PGSNP).
    pub const fn has_page_snoop(self) -> bool {
        self.has_page_snoop
    }

    /// Returns whether supervisor requests are translated (SRE).
    pub const fn has_supervisor_requests(self) -> bool {
        self.has_supervisor_requests
    }

    /// Returns whether supervisor writes heed read-only pages of the first stage (WPE).
    pub const fn has_write_protect(self) -> bool {
        self.has_write_protect
    }

    /// Returns whether hardware sets the extended accessed flag in the first stage (EAFE).
    pub const fn has_extended_accessed(self) -> bool {
        self.has_extended_accessed
    }

    /// Returns whether XD in first-stage entries is honoured, or at least not refused (NXE).
    pub const fn has_execute_disable(self) -> bool {
        self.has_execute_disable
    }

    /// Returns the memory types of first-stage accesses.
    pub const fn memory_types(self) -> MemoryTypes {
        self.memory_types
    }

    /// Returns the tag of the cached translations; 0 if the entry is not present.
    pub const fn domain_id(self) -> u16 {
        self.domain_id
    }

    /// Returns what happens to requests with this PASID.
    pub const fn translation(self) -> Translation {
        self.translation
    }

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
        // Bits 6:5 of word 2 were SMEP and NXE; section 9.6 has hardware ignore them.
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
        let blocked = Self {
            is_fault_disabled: control & FAULT_DISABLE != 0,
            ..Self::blocked()
        };
        if control & PRESENT == 0 {
            return Ok(blocked);
        }
        for (word, reserved) in RESERVED.into_iter().enumerate() {
            refuse(ENTRY, word, words[word], reserved)?;
        }
        let width = ADDRESS_WIDTH.get(control) as u8;
        let (address_width, translation) = match TRANSLATION_TYPE.get(control) {
            FIRST => (width, Translation::First(first_stage(first)?)),
            SECOND => (0, Translation::Second(second_stage_of(control)?)),
            NESTED => (
                0,
                Translation::Nested {
                    first: first_stage(first)?,
                    second: second_stage_of(control)?,
                },
            ),
            PASS_THROUGH => (width, Translation::PassThrough),
            value => {
                return Err(ContextError::TranslationType {
                    entry: ENTRY,
                    value: value as u8,
                });
            }
        };
        Ok(Self {
            has_walk_snoop: memory & WALK_SNOOP != 0,
            has_page_snoop: memory & PAGE_SNOOP != 0,
            has_supervisor_requests: first & SUPERVISOR_REQUESTS != 0,
            has_write_protect: first & WRITE_PROTECT != 0,
            has_extended_accessed: first & EXTENDED_ACCESSED != 0,
            has_execute_disable: first & EXECUTE_DISABLE != 0,
            memory_types: MemoryTypes {
                is_cache_disabled: memory & CACHE_DISABLE != 0,
                has_extended: memory & EXTENDED_TYPES != 0,
                pat: PAT.get(memory) as u32,
            },
            domain_id: DOMAIN_ID.get(memory) as u16,
            address_width,
            translation,
            ..blocked
        })
    }

    /// Returns the eight words. What hardware ignores is zero: bit 6 of word 2, SSADE and pointers
    /// of stages that the entry does not have, FSPM without a first stage, all but P and FPD of an
    /// entry that is not present.
    pub fn encode(self) -> [u64; 8] {
        let flag = |is_set: bool, bits: u64| if is_set { bits } else { 0 };
        let fault_disable = flag(self.is_fault_disabled, FAULT_DISABLE);
        let own_width = ADDRESS_WIDTH.put(self.address_width.into());
        let (kind, second, first) = match self.translation {
            Translation::Blocked => return [fault_disable, 0, 0, 0, 0, 0, 0, 0],
            Translation::PassThrough => (PASS_THROUGH, own_width, 0),
            Translation::First(first) => (FIRST, own_width, first_word(first)),
            Translation::Second(second) => (SECOND, second_word(second), 0),
            Translation::Nested { first, second } => {
                (NESTED, second_word(second), first_word(first))
            }
        };
        let control = PRESENT | fault_disable | TRANSLATION_TYPE.put(kind) | second;
        let memory = DOMAIN_ID.put(self.domain_id.into())
            | flag(self.has_walk_snoop, WALK_SNOOP)
            | flag(self.has_page_snoop, PAGE_SNOOP)
            | flag(self.memory_types.is_cache_disabled, CACHE_DISABLE)
            | flag(self.memory_types.has_extended, EXTENDED_TYPES)
            | PAT.put(self.memory_types.pat.into());
        let supervisor = flag(self.has_supervisor_requests, SUPERVISOR_REQUESTS)
            | flag(self.has_write_protect, WRITE_PROTECT)
            | flag(self.has_extended_accessed, EXTENDED_ACCESSED)
            | flag(self.has_execute_disable, EXECUTE_DISABLE);
        [control, memory, supervisor | first, 0, 0, 0, 0, 0]
    }

    /// Returns the bits that hardware reads of an entry with these words.
    ///
    /// Flags that some revision or capability reads count as read whatever the translation type is;
    /// an entry whose type is reserved counts as read in full.
    pub const fn used(words: [u64; 8]) -> [u64; 8] {
        let first = PAGING_MODE.mask() | POINTER.mask();
        let second = ACCESSED_DIRTY | POINTER.mask();
        if words[0] & PRESENT == 0 {
            return [PRESENT | FAULT_DISABLE, 0, 0, 0, 0, 0, 0, 0];
        }
        let (second, first) = match TRANSLATION_TYPE.get(words[0]) {
            FIRST => (0, first),
            SECOND => (second, 0),
            NESTED => (second, first),
            PASS_THROUGH => (0, 0),
            _ => return [u64::MAX; 8],
        };
        [
            PRESENT | FAULT_DISABLE | ADDRESS_WIDTH.mask() | TRANSLATION_TYPE.mask() | second,
            DOMAIN_ID.mask()
                | WALK_SNOOP
                | PAGE_SNOOP
                | CACHE_DISABLE
                | EXTENDED_TYPES
                | PAT.mask(),
            SUPERVISOR_REQUESTS | WRITE_PROTECT | EXTENDED_ACCESSED | EXECUTE_DISABLE | first,
            0,
            0,
            0,
            0,
            0,
        ]
    }
}

/// Returns the stage that word 0 describes.
fn second_stage_of(control: u64) -> Result<Stage<SecondStage>, ContextError> {
    let format = second_stage(ENTRY, ADDRESS_WIDTH.get(control) as u8)?;
    let format = if control & ACCESSED_DIRTY == 0 {
        format
    } else {
        format.with_dirty()
    };
    Ok(Stage::at(format, pointer(control)))
}

/// Returns what word 0 says of `stage`.
fn second_word(stage: Stage<SecondStage>) -> u64 {
    let accessed_dirty = if stage.format.dirty_rule().is_some() {
        ACCESSED_DIRTY
    } else {
        0
    };
    stage.root.oa.get() | ADDRESS_WIDTH.put(stage.format.aw().into()) | accessed_dirty
}

/// Returns the stage that word 2 describes.
fn first_stage(word: u64) -> Result<Stage<FirstStage>, ContextError> {
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
    Ok(Stage::at(format, pointer(word)))
}

/// Returns what word 2 says of `stage`.
fn first_word(stage: Stage<FirstStage>) -> u64 {
    let has_five_levels = stage.format.levels() == 5;
    stage.root.oa.get() | PAGING_MODE.put(has_five_levels.into())
}
