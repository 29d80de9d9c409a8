//! Memory types: attribute indices of stage 1, `MemAttr` of stage 2.
//!
//! Source: DDI 0487, D8.6.1 (stage 1), D8.6.5 and D8.6.6 (stage 2); `MAIR_EL1` for the attribute
//! bytes, with the exceptions of IHI 0070, section 5.4, `MAIR0`.

use crate::Memory;

/// The attribute bytes that our stage 1 entries index: 0 non-cacheable (`0x44`), 1 write-back,
/// read and write allocate (`0xff`), 2 Device-nGnRE (`0x04`), 3 inner non-cacheable and outer
/// write-back (`0xf4`). Indices 4 to 7 are Device-nGnRnE (`0x00`).
pub const MAIR: u64 = 0xf404_ff44;

/// What the eight values of `AttrIndx[2:0]` mean, and which one stands for each memory type.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct AttributeIndices {
    /// Two bits an index: the memory type.
    types: u16,
    /// Four bits a memory type: its index.
    indices: u16,
}

impl AttributeIndices {
    /// The meaning of [`MAIR`].
    pub(super) const DEFAULT: Self = Self::from_mair(MAIR);

    /// Classifies the bytes of `mair`.
    ///
    /// A memory type that no byte has is given the index of the nearest one that exists.
    pub(super) const fn from_mair(mair: u64) -> Self {
        let mut types = 0;
        let mut i = 0;
        while i < 8 {
            types |= (memory_of_attribute((mair >> (8 * i)) as u8) as u16) << (2 * i);
            i += 1;
        }
        let mut indices = 0;
        let mut memory = 0;
        while memory < 4 {
            indices |= nearest_index(types, memory) << (4 * memory);
            memory += 1;
        }
        Self { types, indices }
    }

    /// Returns the index to encode `memory` with.
    #[inline]
    pub(super) const fn index(self, memory: Memory) -> u64 {
        (self.indices >> (4 * memory as u16) & 7) as u64
    }

    /// Returns the meaning of `index`, 0 to 7.
    #[inline]
    pub(super) const fn memory(self, index: u64) -> Memory {
        memory_from_code(self.types >> (2 * (index & 7)))
    }
}

/// Returns the first index whose type is `memory` or, if there is none, one that comes near: a
/// cached type for a cached one, then an uncached one, then device memory.
const fn nearest_index(types: u16, memory: u16) -> u16 {
    let order: [Memory; 4] = match memory_from_code(memory) {
        Memory::NonCacheable => [
            Memory::NonCacheable,
            Memory::Device,
            Memory::SystemCache,
            Memory::WriteBack,
        ],
        Memory::WriteBack => [
            Memory::WriteBack,
            Memory::SystemCache,
            Memory::NonCacheable,
            Memory::Device,
        ],
        Memory::Device => [
            Memory::Device,
            Memory::NonCacheable,
            Memory::SystemCache,
            Memory::WriteBack,
        ],
        Memory::SystemCache => [
            Memory::SystemCache,
            Memory::WriteBack,
            Memory::NonCacheable,
            Memory::Device,
        ],
    };
    let mut rank = 0;
    while rank < 4 {
        let mut index = 0;
        while index < 8 {
            if types >> (2 * index) & 3 == order[rank] as u16 {
                return index;
            }
            index += 1;
        }
        rank += 1;
    }
    0
}

/// Returns the memory type whose discriminant is in the lowest two bits.
const fn memory_from_code(code: u16) -> Memory {
    match code & 3 {
        0 => Memory::NonCacheable,
        1 => Memory::WriteBack,
        2 => Memory::Device,
        _ => Memory::SystemCache,
    }
}

/// Returns the type that one byte of `MAIR` describes.
///
/// Write-through counts as write-back: both are cached and coherent. Bytes that `MAIR_EL1` leaves
/// UNPREDICTABLE are what the SMMU takes them for.
const fn memory_of_attribute(byte: u8) -> Memory {
    match (byte >> 4, byte & 0xf) {
        (0, _) => Memory::Device,
        (4, 4 | 0) => Memory::NonCacheable,
        (_, 4) => Memory::SystemCache,
        _ => Memory::WriteBack,
    }
}

/// How stage 2 entries encode memory types in `MemAttr[3:0]`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum MemAttr {
    /// A type that is combined with that of stage 1 (`S2FWB = 0`, table D8-96).
    Combined,
    /// A type that may replace that of stage 1 (`S2FWB = 1`, table D8-101).
    Forced,
}

impl MemAttr {
    /// Returns the field's value for `memory`.
    #[inline]
    pub(super) const fn encode(self, memory: Memory) -> u64 {
        // One nibble a type, in the order of `Memory`.
        let nibbles: u64 = match self {
            Self::Combined => 0xd1f5,
            Self::Forced => 0x6165,
        };
        nibbles >> (4 * memory as u64) & 0xf
    }

    /// Returns the type that hardware is given for `memory`.
    pub(super) const fn nearest(self, memory: Memory) -> Memory {
        match (self, memory) {
            // There is no such forced type; write-back sees what is in any cache.
            (Self::Forced, Memory::SystemCache) => Memory::WriteBack,
            _ => memory,
        }
    }

    /// Returns the meaning of the field's value, 0 to 15.
    ///
    /// Write-through counts as write-back, and reserved values as non-cacheable. Where stage 1
    /// decides (`Forced`, `0b0111`), nothing is taken from write-back.
    pub(super) const fn decode(self, value: u64) -> Memory {
        match self {
            Self::Combined => match value & 0xf {
                0..=3 => Memory::Device,
                5 | 8 | 12 => Memory::NonCacheable,
                9 | 13 => Memory::SystemCache,
                // 4 is write-back, too, with FEAT_MTE_PERM, and reserved without.
                _ => Memory::WriteBack,
            },
            // MemAttr[3] only says NoTagAccess.
            Self::Forced => match value & 7 {
                0..=3 => Memory::Device,
                4 | 5 => Memory::NonCacheable,
                _ => Memory::WriteBack,
            },
        }
    }
}
