//! What the bytes of a command mean, one module an architecture.

use std::fmt;

use crate::invalidation::{AtcDrop, ContextDrop, TlbDrop};

pub mod amd;
pub mod riscv;
pub mod smmuv3;
pub mod vtd;

pub(crate) use crate::contexts::{bit, bits};

/// Which IOMMU is simulated, and what it can do.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Architecture {
    /// Arm SMMUv3; with or without range invalidation.
    SmmuV3(smmuv3::Features),
    /// Intel VT-d.
    Vtd(vtd::Features),
    /// AMD-Vi.
    Amd(amd::Features),
    /// RISC-V IOMMU.
    Riscv(riscv::Features),
}

/// What hardware caches besides what is there.
#[expect(clippy::struct_excessive_bools, reason = "each is another cache")]
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Absences {
    /// Contexts that are not valid.
    pub(crate) contexts: bool,
    /// Leaves that are not present.
    pub(crate) leaves: bool,
    /// That holds for first stages too.
    pub(crate) first_stages: bool,
    /// Pointers to tables that are not present.
    pub(crate) tables: bool,
}

impl Architecture {
    /// Bytes of a queue entry.
    pub(crate) const fn entry_len(&self) -> u64 {
        match self {
            Self::Vtd(features) if features.is_wide => 32,
            _ => 16,
        }
    }

    pub(crate) const fn absences(&self) -> Absences {
        match self {
            // Translation faults are not cached; STE, CD and level 1 descriptors that are not valid may be.
            Self::SmmuV3(_) => Absences {
                contexts: true,
                leaves: false,
                first_stages: false,
                tables: false,
            },
            Self::Vtd(features) => Absences {
                contexts: features.has_caching_mode,
                leaves: features.has_caching_mode,
                first_stages: false,
                tables: features.has_caching_mode,
            },
            Self::Amd(features) => Absences {
                contexts: features.caches_absent,
                leaves: features.caches_absent,
                first_stages: true,
                tables: false,
            },
            Self::Riscv(_) => Absences {
                contexts: false,
                leaves: false,
                first_stages: false,
                tables: false,
            },
        }
    }

    /// Decodes a queue entry; entries of 16 bytes have two words, which zeroes follow.
    pub(crate) fn decode(&self, words: [u64; 4]) -> Result<Command, Illegal> {
        let [low, high, ..] = words;
        match self {
            Self::SmmuV3(features) => smmuv3::decode(*features, [low, high]),
            Self::Vtd(features) => vtd::decode(*features, words),
            Self::Amd(features) => amd::decode(*features, [low, high]),
            Self::Riscv(features) => riscv::decode(*features, [low, high]),
        }
    }
}

/// A command that hardware stops at.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Illegal(pub &'static str);

impl fmt::Display for Illegal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "illegal command: {}", self.0)
    }
}

/// A decoded command.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Command {
    /// Its name in the manual.
    pub name: &'static str,
    /// What it does.
    pub effects: Vec<Effect>,
}

/// What a command does.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Effect {
    /// Drops translations.
    Tlb(TlbDrop),
    /// Sends an invalidation to a device.
    Atc(AtcDrop),
    /// Drops contexts.
    Context(ContextDrop),
    /// Waits for all commands before it, then tells.
    Sync(Completion),
}

/// How a completion is told, besides the head that passes the command.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Completion {
    /// In no other way.
    Head,
    /// By a 32-bit store.
    Store32 {
        /// The address, a multiple of 4.
        address: u64,
        /// What is stored.
        word: u32,
    },
    /// By a 64-bit store.
    Store64 {
        /// The address, a multiple of 8.
        address: u64,
        /// What is stored.
        word: u64,
    },
}

impl Command {
    /// A command that caches have nothing to do with.
    pub(crate) const fn idle(name: &'static str) -> Self {
        Self {
            name,
            effects: Vec::new(),
        }
    }

    pub(crate) fn new(name: &'static str, effect: Effect) -> Self {
        Self {
            name,
            effects: vec![effect],
        }
    }
}

/// Refuses words with bits outside of those that a command has.
fn reserved(words: &[u64], defined: &[u64]) -> Result<(), Illegal> {
    let mut pairs = words.iter().zip(defined);
    if pairs.any(|(word, defined)| word & !defined != 0) {
        Err(Illegal("a reserved bit is set"))
    } else {
        Ok(())
    }
}

/// Returns bits `high..=low`, set.
const fn mask(high: u32, low: u32) -> u64 {
    bits(u64::MAX, high, low) << low
}

/// Returns the base-2 logarithm of the size that the ones at the lower end of an address from bit 12 on
/// encode: none is 8 KiB.
const fn encoded_lg2(address: u64) -> u32 {
    let lg2 = 12 + (address >> 12).trailing_ones() + 1;
    if lg2 > 64 { 64 } else { lg2 }
}

#[cfg(test)]
mod tests {
    use super::{Architecture, amd, riscv, smmuv3, vtd};

    #[test]
    fn any_words_are_a_command_or_an_error() {
        let architectures = [
            Architecture::SmmuV3(smmuv3::Features::ALL),
            Architecture::Vtd(vtd::Features::default()),
            Architecture::Amd(amd::Features {
                caches_absent: true,
                has_invalidate_all: true,
            }),
            Architecture::Riscv(riscv::Features {
                has_non_leaf: true,
                has_ranges: true,
                ..riscv::Features::default()
            }),
        ];
        let mut random = 1_u64;
        let mut draw = || {
            random = random
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            random ^ random >> 29
        };
        let mut commands = 0;
        for _ in 0..20_000 {
            // Few bits, or reserved ones would refuse nearly all.
            let (low, high) = (draw() & draw() & draw(), draw() & draw());
            let opcode = draw() % 0x50;
            for architecture in architectures {
                for low in [low & !0xff | opcode, low & !(0xf << 60) | opcode << 60] {
                    for high in [high, 0, u64::MAX << 12, high & !0xfff] {
                        commands += u32::from(architecture.decode([low, high, 0, 0]).is_ok());
                    }
                }
            }
        }
        assert!(commands > 1000, "{commands}");
    }
}
