//! Legacy mode: context entries that lead to second-stage tables.
//!
//! Source: VT-d specification, revision 4.1, section 9.3. Earlier revisions call SSPTPTR SLPTPTR.

use super::{
    AddressWidth, ContextError, FAULT_DISABLE, POINTER, POINTER_TOO_WIDE, PRESENT, Stage,
    Translation, pointer, refuse, second_stage,
};
use crate::vtd::SecondStage;
use crate::{Bits, Field, Format as _, bit};

const ENTRY: &str = "context entry";
/// TT: 0 and 1 lead to tables, 1 with a device TLB; 2 passes through.
const TRANSLATION_TYPE: Bits<3, 2> = Bits;
const PASS_THROUGH: u64 = 2;
/// AW, in word 1.
const ADDRESS_WIDTH: Bits<2, 0> = Bits;
/// DID, in word 1.
const DOMAIN_ID: Bits<23, 8> = Bits;

/// A context entry in legacy mode.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct LegacyContext {
    is_fault_disabled: bool,
    has_device_tlb: bool,
    domain_id: u16,
    /// AW of an entry that passes through, else 0.
    address_width: u8,
    translation: Translation,
}

impl LegacyContext {
    /// The named fields of both words.
    pub const FIELDS: [&'static [Field]; 2] = [
        &[
            Field::new("P", 0, 0),
            Field::new("FPD", 1, 1),
            Field::new("TT", 3, 2),
            Field::new("SSPTPTR", 63, 12),
        ],
        &[
            Field::new("AW", 2, 0),
            Field::new("AVAIL", 6, 3),
            Field::new("DID", 23, 8),
        ],
    ];

    /// Bits of each word that may take either value while others change: FPD, which decides about
    /// reports only.
    pub const SAFE: [u64; 2] = [FAULT_DISABLE, 0];

    /// Describes an entry that is not present: every request faults.
    pub const fn blocked() -> Self {
        Self {
            is_fault_disabled: false,
            has_device_tlb: false,
            domain_id: 0,
            address_width: 0,
            translation: Translation::Blocked,
        }
    }

    /// Describes an entry that uses addresses as they are. `width` is the widest that the hardware
    /// supports (`CAP_REG.SAGAW`); it needs `ECAP_REG.PT`.
    pub const fn pass_through(domain_id: u16, width: AddressWidth) -> Self {
        Self {
            domain_id,
            address_width: width.field(),
            translation: Translation::PassThrough,
            ..Self::blocked()
        }
    }

    /// Describes an entry that leads to second-stage tables.
    ///
    /// # Errors
    ///
    /// [`ContextError::DirtyTracking`] if the tables are to be tracked: this entry has no SSADE.
    pub fn second(domain_id: u16, stage: Stage<SecondStage>) -> Result<Self, ContextError> {
        if stage.format.dirty_rule().is_some() {
            return Err(ContextError::DirtyTracking { entry: ENTRY });
        }
        Ok(Self {
            domain_id,
            translation: Translation::Second(stage),
            ..Self::blocked()
        })
    }

    /// Returns this entry with the device allowed to ask for translations and cache them (TT 1).
    ///
    /// # Errors
    ///
    /// [`ContextError::DeviceTlb`] if it leads to no tables.
    pub const fn with_device_tlb(self) -> Result<Self, ContextError> {
        match self.translation {
            Translation::Second(_) => Ok(Self {
                has_device_tlb: true,
                ..self
            }),
            _ => Err(ContextError::DeviceTlb { entry: ENTRY }),
        }
    }

    /// Returns this entry with faults going unreported (FPD).
    #[must_use]
    pub const fn with_faults_disabled(self) -> Self {
        Self {
            is_fault_disabled: true,
            ..self
        }
    }

    /// Returns whether faults go unreported; holds for an entry that is not present too.
    pub const fn is_fault_disabled(self) -> bool {
        self.is_fault_disabled
    }

    /// Returns whether the device may ask for translations and cache them (TT 1).
    pub const fn has_device_tlb(self) -> bool {
        self.has_device_tlb
    }

    /// Returns the tag of the cached translations; 0 if the entry is not present.
    pub const fn domain_id(self) -> u16 {
        self.domain_id
    }

    /// Returns what happens to requests: [`Translation::Blocked`],
    /// [`PassThrough`](Translation::PassThrough) or [`Second`](Translation::Second).
    pub const fn translation(self) -> Translation {
        self.translation
    }

    /// Decodes the two words of an entry.
    ///
    /// # Errors
    ///
    /// [`ContextError::Reserved`], [`TranslationType`](ContextError::TranslationType) and, unless
    /// addresses pass through, [`AddressWidth`](ContextError::AddressWidth).
    pub fn decode(words: [u64; 2]) -> Result<Self, ContextError> {
        const RESERVED: [u64; 2] = [
            0xff0 | POINTER_TOO_WIDE.mask(),
            bit(7) | Bits::<63, 24>.mask(),
        ];

        let [low, high] = words;
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
        let width = ADDRESS_WIDTH.get(high) as u8;
        let second = || {
            let format = second_stage(ENTRY, width)?;
            Ok(Translation::Second(Stage::at(format, pointer(low))))
        };
        let (has_device_tlb, address_width, translation) = match TRANSLATION_TYPE.get(low) {
            0 => (false, 0, second()?),
            1 => (true, 0, second()?),
            PASS_THROUGH => (false, width, Translation::PassThrough),
            value => {
                return Err(ContextError::TranslationType {
                    entry: ENTRY,
                    value: value as u8,
                });
            }
        };
        Ok(Self {
            has_device_tlb,
            domain_id: DOMAIN_ID.get(high) as u16,
            address_width,
            translation,
            ..blocked
        })
    }

    /// Returns the two words. What hardware ignores is zero: AVAIL, the pointer of an entry that
    /// passes through, all but P and FPD of one that is not present.
    pub fn encode(self) -> [u64; 2] {
        let fault_disable = u64::from(self.is_fault_disabled) << 1;
        let (kind, width, table) = match self.translation {
            Translation::PassThrough => (PASS_THROUGH, self.address_width, 0),
            Translation::Second(stage) => (
                self.has_device_tlb.into(),
                stage.format.aw(),
                stage.root.oa.get(),
            ),
            // No constructor makes the other two.
            Translation::Blocked | Translation::First(_) | Translation::Nested { .. } => {
                return [fault_disable, 0];
            }
        };
        [
            PRESENT | fault_disable | TRANSLATION_TYPE.put(kind) | table,
            ADDRESS_WIDTH.put(width.into()) | DOMAIN_ID.put(self.domain_id.into()),
        ]
    }

    /// Returns the bits that hardware reads of an entry with these words.
    ///
    /// An entry whose translation type is reserved counts as read in full.
    pub const fn used(words: [u64; 2]) -> [u64; 2] {
        const BOTH: [u64; 2] = [
            PRESENT | FAULT_DISABLE | TRANSLATION_TYPE.mask(),
            ADDRESS_WIDTH.mask() | DOMAIN_ID.mask(),
        ];
        if words[0] & PRESENT == 0 {
            return [PRESENT | FAULT_DISABLE, 0];
        }
        match TRANSLATION_TYPE.get(words[0]) {
            0 | 1 => [BOTH[0] | POINTER.mask(), BOTH[1]],
            PASS_THROUGH => BOTH,
            _ => [u64::MAX; 2],
        }
    }
}
