//! A small format that keeps every law, and one bug for each way to break one.

use super::*;
use crate::{DirtyRule, Field, Geometry, Memory, PageSizes, Reserved, Window, bit};

/// What is wrong with a [`Tiny`].
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Bug {
    None,
    EmptyFaults,
    LeafAddressLost,
    LeafMemoryLost,
    StepTooSmall,
    Unaccessed,
    TableLimited,
    ChildOfLeaf,
    ChildOfEmpty,
    SizeOfWholeTable,
    RootAboveMax,
    NoSizes,
    UserLost,
    EffectiveNotIdempotent,
    AttributesOfNothing,
    ExecuteLostSometimes,
    GroupUnmarked,
    SingleMarked,
    CleanDropsWrite,
    StartsClean,
    AddressNotLinear,
    AddressOverlapsAttributes,
    DecodeOaKeepsFlags,
    PendingLimits,
    PendingHidesForeignTable,
    TableAtLevelZero,
    OtherWordInError,
    LeafUnaligned,
    FieldsOverlap,
    FieldWithoutName,
}

/// 64-byte pages, 8 items a table, 3 levels, groups of 4 items.
///
/// ```text
///  63 62        45            6   5   4   3   2   1   0
/// +--+--+- ... +---------------+---+---+---+---+---+---+
/// | X| U|      |  address      |PND| D | G | T | W | P |
/// +--+--+- ... +---------------+---+---+---+---+---+---+
/// ```
///
/// Bit 61 is reserved, bit 60 says write-back, bit 59 is the accessed flag. Bit 58 turns the
/// meaning of G around.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Tiny(Bug);

const P: u64 = bit(0);
const W: u64 = bit(1);
const T: u64 = bit(2);
const G: u64 = bit(3);
const D: u64 = bit(4);
const PND: u64 = bit(5);
const OTHER_G: u64 = bit(58);
const A: u64 = bit(59);
const CACHED: u64 = bit(60);
const RESERVED: u64 = bit(61);
const U: u64 = bit(62);
const X: u64 = bit(63);
const ADDRESS: u64 = 0x3fff_ffff_ffc0;
const PAGE: PageSize = PageSize::from_lg2(6);
const GROUP: PageSize = PageSize::from_lg2(8);
const BLOCK: PageSize = PageSize::from_lg2(9);

const LEAF_FIELDS: &[Field] = &[Field::new("P", 0, 0), Field::new("ADDR", 45, 6)];
const OVERLAPPING: &[Field] = &[Field::new("D", 4, 4), Field::new("LOW", 5, 0)];
const NAMELESS: &[Field] = &[Field::new("", 0, 0)];

impl Tiny {
    fn has(self, bug: Bug) -> bool {
        self.0 == bug
    }

    /// Extracts the address; one bug stores it rotated by one bit.
    fn address(self, word: u64) -> Oa {
        let bits = word & ADDRESS;
        Oa::new(match self.0 {
            Bug::AddressNotLinear => (bits >> 1 | bits << 39) & ADDRESS,
            _ => bits,
        })
    }
}

impl crate::format::sealed::Sealed for Tiny {}

impl Format for Tiny {
    const GRANULE: PageSize = PAGE;
    const PRESENT: u64 = P;
    const GROUPED: u64 = G;
    const PENDING: u64 = PND;

    fn geometry(&self) -> Geometry {
        let max_top = Level(2);
        let top = if self.has(Bug::RootAboveMax) {
            Level(3)
        } else {
            max_top
        };
        Geometry {
            va_bits: 15,
            window: Window::Lower,
            top,
            max_top,
        }
    }

    fn oa_bits(&self) -> u8 {
        46
    }

    fn sizes(&self) -> PageSizes {
        match self.0 {
            Bug::NoSizes => PageSizes::EMPTY,
            Bug::SizeOfWholeTable => PageSizes::EMPTY.with(PAGE).with(PageSize::from_lg2(15)),
            _ => PageSizes::EMPTY.with(PAGE).with(GROUP).with(BLOCK),
        }
    }

    fn effective(&self, prot: Prot) -> Option<Prot> {
        let rights = prot.rights();
        if rights.difference(Rights::USER) == Rights::NONE {
            return None;
        }
        let lost = match self.0 {
            Bug::UserLost => Rights::USER,
            Bug::ExecuteLostSometimes if prot.can_write() => Rights::EXECUTE,
            _ => Rights::NONE,
        };
        let memory = match (self.0, prot.memory()) {
            (Bug::EffectiveNotIdempotent, Memory::NonCacheable) => Memory::Device,
            (_, Memory::WriteBack) => Memory::WriteBack,
            _ => Memory::NonCacheable,
        };
        Some(Prot::new(
            rights.union(Rights::READ).difference(lost),
            memory,
        ))
    }

    fn leaf_attributes(&self, prot: Prot, size: PageSize) -> u64 {
        let Some(prot) = self.effective(prot) else {
            return if self.has(Bug::AttributesOfNothing) {
                P
            } else {
                0
            };
        };
        let set = |bits, condition| if condition { bits } else { 0 };
        let group = match self.0 {
            Bug::GroupUnmarked if size == GROUP => OTHER_G,
            Bug::SingleMarked if size != GROUP => G | OTHER_G,
            _ => set(G, size == GROUP),
        };
        P | set(A, !self.has(Bug::Unaccessed))
            | set(W, prot.can_write())
            | set(D, prot.can_write() && !self.has(Bug::StartsClean))
            | group
            | set(U, prot.is_user())
            | set(X, prot.can_execute())
            | set(CACHED, prot.memory() == Memory::WriteBack)
    }

    fn encode_oa(&self, oa: Oa) -> u64 {
        match self.0 {
            Bug::AddressNotLinear => (oa.get() << 1 | oa.get() >> 39) & ADDRESS,
            Bug::AddressOverlapsAttributes => oa.get() | P,
            _ => oa.get(),
        }
    }

    fn decode_oa(&self, word: u64) -> Oa {
        let flags = if self.has(Bug::DecodeOaKeepsFlags) {
            word & CACHED
        } else {
            0
        };
        Oa::new(self.address(word).get() | flags)
    }

    fn item_step(&self, _size: PageSize) -> u64 {
        match self.0 {
            Bug::StepTooSmall => 0,
            Bug::AddressNotLinear => PAGE.bytes() << 1,
            _ => PAGE.bytes(),
        }
    }

    fn encode_table(&self, oa: Oa, _level: Level) -> u64 {
        self.encode_oa(oa) | P | T | W
    }

    fn child(&self, word: u64, _level: Level) -> Option<Oa> {
        let pointer = match self.0 {
            Bug::ChildOfLeaf => P,
            Bug::ChildOfEmpty => 0,
            _ => T,
        };
        (word & pointer == pointer).then_some(self.address(word))
    }

    fn decode(&self, word: u64, level: Level) -> Result<Entry, Reserved> {
        let reason = "bit 61";
        if self.has(Bug::EmptyFaults) && word & RESERVED != 0 {
            return Err(Reserved {
                word,
                level,
                reason,
            });
        }
        if word & P == 0 {
            return Ok(Entry::Empty);
        }
        if word & RESERVED != 0 {
            let word = if self.has(Bug::OtherWordInError) {
                0
            } else {
                word
            };
            return Err(Reserved {
                word,
                level,
                reason,
            });
        }
        let oa = self.address(word);
        if word & T != 0 && (level > Level::LEAF || self.has(Bug::TableAtLevelZero)) {
            let limited = match self.0 {
                Bug::TableLimited => true,
                Bug::PendingLimits => word & PND != 0,
                Bug::PendingHidesForeignTable => word & PND != 0 && word & W == 0,
                _ => false,
            };
            let limit = if limited { Rights::READ } else { Rights::ALL };
            let level = Level(level.0.saturating_sub(1));
            return Ok(Entry::Table(TableEntry { oa, level, limit }));
        }
        let item = PageSize::from_lg2(Self::item_lg2(level));
        let grouped = (word & G != 0) != (word & OTHER_G != 0) && level == Level::LEAF;
        let offset = match self.0 {
            Bug::LeafUnaligned => 0,
            _ => item.offset_mask(),
        };
        let rights = Rights::READ
            .with_if(Rights::WRITE, word & W != 0)
            .with_if(Rights::USER, word & U != 0)
            .with_if(Rights::EXECUTE, word & X != 0);
        let cached = word & CACHED != 0 && !self.has(Bug::LeafMemoryLost);
        let memory = if cached {
            Memory::WriteBack
        } else {
            Memory::NonCacheable
        };
        Ok(Entry::Leaf(Leaf {
            oa: Oa::new(if self.has(Bug::LeafAddressLost) {
                0
            } else {
                oa.get() & !offset
            }),
            span: item,
            size: if grouped { GROUP } else { item },
            prot: Prot::new(rights, memory),
            accessed: word & A != 0,
            dirty: word & D != 0,
        }))
    }

    fn dirty_rule(&self) -> Option<DirtyRule> {
        let mask = if self.has(Bug::CleanDropsWrite) {
            D | U
        } else {
            D
        };
        Some(DirtyRule {
            tracked: W,
            mask,
            dirty: mask,
        })
    }

    fn faults_unaccessed(&self) -> bool {
        true
    }

    fn arch_level(&self, level: Level) -> i8 {
        level.0.cast_signed()
    }

    fn fields(&self, _word: u64, _level: Level) -> &'static [Field] {
        match self.0 {
            Bug::FieldsOverlap => OVERLAPPING,
            Bug::FieldWithoutName => NAMELESS,
            _ => LEAF_FIELDS,
        }
    }
}

#[test]
fn a_lawful_format_passes() {
    assert_eq!(check(Tiny(Bug::None)), Ok(()));
}

#[test]
fn each_broken_law_is_named() {
    let cases = [
        (Bug::EmptyFaults, Law::F1),
        (Bug::LeafAddressLost, Law::F2),
        (Bug::LeafMemoryLost, Law::F2),
        (Bug::StepTooSmall, Law::F2),
        (Bug::Unaccessed, Law::F2),
        (Bug::TableLimited, Law::F3),
        (Bug::ChildOfLeaf, Law::F3),
        (Bug::ChildOfEmpty, Law::F3),
        (Bug::SizeOfWholeTable, Law::F4),
        (Bug::RootAboveMax, Law::F4),
        (Bug::NoSizes, Law::F4),
        (Bug::UserLost, Law::F5),
        (Bug::EffectiveNotIdempotent, Law::F5),
        (Bug::AttributesOfNothing, Law::F5),
        (Bug::ExecuteLostSometimes, Law::F5),
        (Bug::GroupUnmarked, Law::F6),
        (Bug::SingleMarked, Law::F6),
        (Bug::CleanDropsWrite, Law::F7),
        (Bug::StartsClean, Law::F7),
        (Bug::AddressNotLinear, Law::F8),
        (Bug::AddressOverlapsAttributes, Law::F8),
        (Bug::DecodeOaKeepsFlags, Law::F8),
        (Bug::PendingLimits, Law::F9),
        (Bug::PendingHidesForeignTable, Law::F9),
        (Bug::TableAtLevelZero, Law::F10),
        (Bug::OtherWordInError, Law::F10),
        (Bug::LeafUnaligned, Law::F10),
        (Bug::FieldsOverlap, Law::F11),
        (Bug::FieldWithoutName, Law::F11),
    ];
    for (bug, law) in cases {
        let broken = check(Tiny(bug)).map_err(|violation| violation.law);
        assert_eq!(broken, Err(law), "{bug:?}");
    }
}
