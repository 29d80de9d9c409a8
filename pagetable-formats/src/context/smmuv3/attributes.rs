//! What an STE makes of the attributes that transactions bring along (IHI 0070, sections 5.2 and
//! 13.1): `MTCFG`, `MemAttr`, `ALLOCCFG`, `SHCFG`, `PRIVCFG`, `INSTCFG`.

use super::Override;
use crate::armv8::Shareability;
use crate::{Bits, bit};

const MEM_ATTR: Bits<35, 32> = Bits;
const MT_CFG: u64 = bit(36);
const ALLOC_TRANSIENT: u64 = bit(37);
const ALLOC_WRITE: u64 = bit(38);
const ALLOC_READ: u64 = bit(39);
const ALLOC_OVERRIDE: u64 = bit(40);
const SH_CFG: Bits<45, 44> = Bits;
const SH_CFG_INCOMING: u64 = 1;
const PRIV_CFG: Bits<49, 48> = Bits;
const INST_CFG: Bits<51, 50> = Bits;

/// A memory type that replaces the incoming one (`MemAttr`), encoded as in stage 2 entries without
/// forced write-back.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct MemoryType(u8);

impl MemoryType {
    /// Creates the type from its four bits, or returns `None` for what is wider or reserved: 4, 8
    /// and 12.
    pub const fn new(bits: u8) -> Option<Self> {
        match bits {
            4 | 8 | 12 | 16.. => None,
            _ => Some(Self(bits)),
        }
    }

    /// Returns the four bits.
    pub const fn bits(self) -> u8 {
        self.0
    }
}

/// Allocation hints that replace the incoming ones (`ALLOCCFG`).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct AllocationHints {
    /// Reads allocate.
    pub read: bool,
    /// Writes allocate.
    pub write: bool,
    /// What is allocated is not needed for long.
    pub transient: bool,
}

/// What replaces attributes of incoming transactions.
///
/// Hardware replaces types, hints and shareability only with `SMMU_IDR1.ATTR_TYPES_OVR`, privilege
/// and instruction only with `ATTR_PERMS_OVR`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Attributes {
    /// The memory type.
    pub memory: Option<MemoryType>,
    /// The allocation hints.
    pub allocation: Option<AllocationHints>,
    /// The shareability.
    pub shareability: Option<Shareability>,
    /// The privilege.
    pub privilege: Override,
    /// The mark that a read fetches instructions.
    pub instruction: Override,
}

impl Attributes {
    /// Nothing is replaced.
    pub const INCOMING: Self = Self {
        memory: None,
        allocation: None,
        shareability: None,
        privilege: Override::Incoming,
        instruction: Override::Incoming,
    };

    /// All bits are zero, as hardware without `ATTR_TYPES_OVR` demands, which replaces nothing;
    /// other hardware makes transactions non-shareable.
    pub const UNSUPPORTED: Self = Self {
        shareability: Some(Shareability::None),
        ..Self::INCOMING
    };

    /// Returns these attributes less the type and shareability, whose bits are zero.
    pub(super) const fn without_types(self) -> Self {
        Self {
            memory: None,
            shareability: Some(Shareability::None),
            ..self
        }
    }

    /// Returns the bits of STE word 1.
    pub(super) const fn word1(self) -> u64 {
        let memory = match self.memory {
            Some(memory) => MT_CFG | MEM_ATTR.put(memory.0 as u64),
            None => 0,
        };
        let allocation = match self.allocation {
            Some(hints) => {
                ALLOC_OVERRIDE
                    | if hints.read { ALLOC_READ } else { 0 }
                    | if hints.write { ALLOC_WRITE } else { 0 }
                    | if hints.transient { ALLOC_TRANSIENT } else { 0 }
            }
            None => 0,
        };
        let shareability = match self.shareability {
            Some(shareability) => shareability as u64,
            None => SH_CFG_INCOMING,
        };
        memory
            | allocation
            | SH_CFG.put(shareability)
            | PRIV_CFG.put(self.privilege.bits())
            | INST_CFG.put(self.instruction.bits())
    }

    /// Decodes STE word 1; reserved values act as others.
    pub(super) const fn from_word1(word: u64) -> Self {
        let memory = if word & MT_CFG == 0 {
            None
        } else {
            MemoryType::new(MEM_ATTR.get(word) as u8)
        };
        let allocation = if word & ALLOC_OVERRIDE == 0 {
            None
        } else {
            Some(AllocationHints {
                read: word & ALLOC_READ != 0,
                write: word & ALLOC_WRITE != 0,
                transient: word & ALLOC_TRANSIENT != 0,
            })
        };
        let shareability = match SH_CFG.get(word) {
            SH_CFG_INCOMING => None,
            shareability => Some(Shareability::from_bits(shareability)),
        };
        Self {
            memory,
            allocation,
            shareability,
            privilege: Override::from_bits(PRIV_CFG.get(word)),
            instruction: Override::from_bits(INST_CFG.get(word)),
        }
    }
}
