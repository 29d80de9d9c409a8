//! The guest CR3 table: from a PASID to version 2 tables.
//!
//! Source: document 48882, section 2.2.6 "I/O Page Tables for Guest Translations", and section
//! 2.2.6.3 "Guest CR3 Tables".
//!
//! The table has 1 to 3 levels of 512 entries. An entry of either kind holds V in bit 0 and an
//! address in bits 51:12.

use crate::context::update::{Fetch, Rules};
use crate::walk::Root;
use crate::x86_64::AmdV2;
use crate::{Bits, Field, Level, Oa, bit};

/// V: the entry is valid.
const VALID: u64 = bit(0);
/// Base of the next GCR3 table, or of the root page table.
const BASE: Bits<51, 12> = Bits;
const INDEX_BITS: u8 = 9;
const PASID_BITS: u8 = 20;

/// A guest CR3 table, as a device table entry describes it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Gcr3Table {
    pub(super) root: Oa,
    pub(super) levels: u8,
    pub(super) paging_levels: u8,
}

impl Gcr3Table {
    /// Describes the table of `levels` levels, 1 to 3, at `root`, that leads to page tables of
    /// `paging_levels` levels, 4 or 5.
    ///
    /// # Errors
    ///
    /// [`Gcr3Error::Base`] unless `root` is aligned to 4 KiB and below 2^52; [`Gcr3Error::Levels`] and
    /// [`Gcr3Error::PagingLevels`] for other numbers.
    pub const fn new(root: Oa, levels: u8, paging_levels: u8) -> Result<Self, Gcr3Error> {
        if root.get() & !BASE.mask() != 0 {
            return Err(Gcr3Error::Base { base: root });
        }
        match (levels, paging_levels) {
            (1..=3, 4 | 5) => Ok(Self {
                root,
                levels,
                paging_levels,
            }),
            (1..=3, _) => Err(Gcr3Error::PagingLevels {
                levels: paging_levels,
            }),
            _ => Err(Gcr3Error::Levels { levels }),
        }
    }

    /// Returns where the table lies; guest-physical if the device has host tables too.
    pub const fn root(self) -> Oa {
        self.root
    }

    /// Returns the number of levels of this table: 1 to 3.
    pub const fn levels(self) -> u8 {
        self.levels
    }

    /// Returns the number of levels of the page tables below it: 4 or 5.
    pub const fn paging_levels(self) -> u8 {
        self.paging_levels
    }

    /// Returns the format of those page tables.
    pub fn format(self) -> AmdV2 {
        let va_bits = 12 + 9 * self.paging_levels;
        AmdV2::sign_extended(va_bits).expect("4 and 5 levels take 48 and 57 bits")
    }

    /// Returns the width of the PASIDs that have an entry, in bits.
    pub const fn pasid_bits(self) -> u8 {
        let bits = self.levels * INDEX_BITS;
        if bits < PASID_BITS { bits } else { PASID_BITS }
    }

    /// Finds the page tables of `pasid`. Requests without a PASID that use this table have 0.
    ///
    /// `read` returns the 64-bit entry at an address, or `None` where no memory is.
    ///
    /// # Errors
    ///
    /// The [`Gcr3Error`] that the search ends in.
    pub fn locate(
        self,
        pasid: u32,
        mut read: impl FnMut(Oa) -> Option<u64>,
    ) -> Result<Root, Gcr3Error> {
        let bits = self.pasid_bits();
        if u64::from(pasid) >> bits != 0 {
            return Err(Gcr3Error::PasidWidth { pasid, bits });
        }
        let mut base = self.root;
        for level in (0..self.levels).rev() {
            let index = (u64::from(pasid) >> (INDEX_BITS * level)) & 0x1ff;
            let address = Oa::new(base.get() | (index * 8));
            let word = read(address).ok_or(Gcr3Error::Unreadable { address })?;
            let entry = Gcr3Entry::decode(word)?;
            base = entry.ok_or(Gcr3Error::NotValid { address })?.base;
        }
        Ok(Root {
            oa: base,
            level: Level(self.paging_levels - 1),
        })
    }
}

/// A valid entry of a guest CR3 table.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Gcr3Entry {
    base: Oa,
}

impl Gcr3Entry {
    /// Names of the fields.
    pub const FIELDS: &[Field] = &[Field::new("V", 0, 0), Field::new("BaseAddress", 51, 12)];

    /// Describes an entry that leads to `base`.
    ///
    /// # Errors
    ///
    /// [`Gcr3Error::Base`] unless `base` is aligned to 4 KiB and below 2^52.
    pub const fn new(base: Oa) -> Result<Self, Gcr3Error> {
        if base.get() & !BASE.mask() == 0 {
            Ok(Self { base })
        } else {
            Err(Gcr3Error::Base { base })
        }
    }

    /// Returns the table of the level below or, in the last level, the root of the page tables.
    pub const fn base(self) -> Oa {
        self.base
    }

    /// Returns the word. An entry that is not valid is zero.
    pub const fn encode(self) -> u64 {
        self.base.get() | VALID
    }

    /// Decodes an entry; `None` if it is not valid.
    ///
    /// # Errors
    ///
    /// [`Gcr3Error::Reserved`] if a reserved bit of a valid entry is set.
    pub const fn decode(word: u64) -> Result<Option<Self>, Gcr3Error> {
        if word & VALID == 0 {
            return Ok(None);
        }
        let bits = word & !(VALID | BASE.mask());
        if bits != 0 {
            return Err(Gcr3Error::Reserved { word, bits });
        }
        Ok(Some(Self {
            base: Oa::new(word & BASE.mask()),
        }))
    }
}

/// How entries of a guest CR3 table change: in one store, because each is one word.
///
/// Hardware may hold an entry until it is told, also one that is not valid, and what it translated by it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Gcr3Rules;

impl Rules<1> for Gcr3Rules {
    fn used(&self, entry: &[u64; 1]) -> [u64; 1] {
        [if self.is_valid(entry) {
            u64::MAX
        } else {
            VALID
        }]
    }

    fn is_valid(&self, entry: &[u64; 1]) -> bool {
        entry[0] & VALID != 0
    }

    fn fetch(&self) -> Fetch {
        Fetch::Whole
    }
}

/// Why a PASID leads to no page tables.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Gcr3Error {
    /// The table has no entry for the PASID.
    #[error("pasid {pasid:#x} is wider than the {bits} bits of the guest CR3 table")]
    PasidWidth {
        /// The PASID.
        pasid: u32,
        /// What the table has entries for.
        bits: u8,
    },
    /// An address has no place in its field.
    #[error("{base} is not aligned to 4 KiB or has more than 52 bits")]
    Base {
        /// The address.
        base: Oa,
    },
    /// No guest CR3 table has this number of levels.
    #[error("a guest CR3 table has 1 to 3 levels, not {levels}")]
    Levels {
        /// The levels.
        levels: u8,
    },
    /// No guest page tables have this number of levels.
    #[error("guest page tables have 4 or 5 levels, not {levels}")]
    PagingLevels {
        /// The levels.
        levels: u8,
    },
    /// An entry lies where no memory is.
    #[error("cannot read the guest CR3 entry at {address}")]
    Unreadable {
        /// Its address.
        address: Oa,
    },
    /// An entry is not valid.
    #[error("the guest CR3 entry at {address} is not valid")]
    NotValid {
        /// Its address.
        address: Oa,
    },
    /// A reserved bit of an entry is set.
    #[error("reserved bits {bits:#x} of the guest CR3 entry {word:#018x} are set")]
    Reserved {
        /// The entry.
        word: u64,
        /// The bits, in place.
        bits: u64,
    },
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Format as _;

    const TABLE: Gcr3Table = Gcr3Table {
        root: Oa::new(0x1000),
        levels: 3,
        paging_levels: 5,
    };

    #[test]
    fn three_levels_split_the_pasid_into_2_9_and_9_bits() {
        // 0x9abcd = 0b10_011010101_111001101.
        let read = |address: Oa| match address.get() {
            0x1010 => Some(0x2001),
            0x26a8 => Some(0x3001),
            0x3e68 => Some(0x0008_0000_0000_4001),
            _ => None,
        };
        let root = TABLE.locate(0x9_abcd, read);
        assert_eq!(
            root,
            Ok(Root {
                oa: Oa::new(0x0008_0000_0000_4000),
                level: Level(4)
            })
        );
        let error = Gcr3Error::Unreadable {
            address: Oa::new(0x1008),
        };
        assert_eq!(TABLE.locate(0x4_0000, read), Err(error));
    }

    #[test]
    fn the_format_takes_the_addresses_that_the_levels_reach() {
        let table = Gcr3Table {
            paging_levels: 4,
            ..TABLE
        };
        assert_eq!(table.format().geometry().va_bits, 48);
        assert_eq!(TABLE.format().geometry().va_bits, 57);
    }

    #[test]
    fn an_entry_changes_in_one_store_and_is_told() {
        use crate::context::update::plan;

        for (from, to) in [(0, 0x5001), (0x5001, 0x6001), (0x5001, 0)] {
            let update = plan(&Gcr3Rules, &[from], &[to]);
            assert_eq!((update.steps().len(), update.sync_count()), (1, 1));
            assert!(!update.is_breaking());
            assert_eq!(update.is_hitless(), from & to & VALID != 0);
        }
        assert_eq!(plan(&Gcr3Rules, &[0x5001], &[0x5001]).steps(), []);
    }

    #[test]
    fn one_level_has_512_pasids() {
        let table = Gcr3Table {
            levels: 1,
            paging_levels: 4,
            ..TABLE
        };
        let root = Root {
            oa: Oa::new(0x5000),
            level: Level(3),
        };
        assert_eq!(table.locate(0x1ff, |_| Some(0x5001)), Ok(root));
        let error = Gcr3Error::PasidWidth {
            pasid: 0x200,
            bits: 9,
        };
        assert_eq!(table.locate(0x200, |_| Some(0x5001)), Err(error));
        assert_eq!(TABLE.pasid_bits(), 20);
        assert!(TABLE.locate(0x10_0000, |_| Some(0x5001)).is_err());
    }

    #[test]
    fn entries_and_tables_are_made_of_what_fields_can_hold() {
        let base = Oa::new(0x000f_edcb_a987_6000);
        let entry = Gcr3Entry::new(base).expect("the field can hold it");
        assert_eq!(entry.encode(), 0x000f_edcb_a987_6001);
        assert_eq!(Gcr3Entry::decode(entry.encode()), Ok(Some(entry)));
        for n in (0..64).filter(|n| !(12..52).contains(n)) {
            let base = Oa::new(bit(n));
            let error = Gcr3Error::Base { base };
            assert_eq!(Gcr3Entry::new(base), Err(error));
            assert_eq!(Gcr3Table::new(base, 1, 4), Err(error));
        }
        assert_eq!(Gcr3Table::new(Oa::new(0x1000), 3, 5), Ok(TABLE));
        for levels in [0, 4, 255] {
            let error = Gcr3Error::Levels { levels };
            assert_eq!(Gcr3Table::new(base, levels, 4), Err(error));
        }
        for levels in [0, 3, 6, 255] {
            let error = Gcr3Error::PagingLevels { levels };
            assert_eq!(Gcr3Table::new(base, 1, levels), Err(error));
        }
    }

    #[test]
    fn entries_are_valid_addresses_and_nothing_else() {
        assert_eq!(Gcr3Entry::decode(!VALID), Ok(None));
        let error = Gcr3Error::NotValid {
            address: Oa::new(0x1000),
        };
        assert_eq!(TABLE.locate(0, |_| Some(0x2000)), Err(error));
        for bits in [bit(1), bit(11), bit(52), bit(63)] {
            let word = 0x2001 | bits;
            assert_eq!(
                Gcr3Entry::decode(word),
                Err(Gcr3Error::Reserved { word, bits })
            );
        }
    }
}
