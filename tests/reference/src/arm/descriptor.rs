//! One descriptor (DDI 0487, D8.3.1 formats, D8.4 permissions, D8.5 access flag and dirty state).

use super::geometry::Geometry;
use super::{Config, Granule, Half, Stage};
use crate::word::{bit, bits, exceeds, in_place};
use crate::{Fault, MemoryAttributes, Translation};

/// What the table descriptors on the way take away (D8.4.1, hierarchical permissions).
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is one bit of a table descriptor"
)]
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Limits {
    /// `APTable[1]`.
    read_only: bool,
    /// `APTable[0]`.
    no_unprivileged: bool,
    /// `UXNTable`, or `XNTable` with one privilege level.
    uxn: bool,
    /// `PXNTable`.
    pxn: bool,
}

/// A valid descriptor.
pub(super) enum Descriptor {
    Table { address: u64, limits: Limits },
    Leaf(Translation),
}

/// What is known before a descriptor is read.
pub(super) struct Lookup<'a> {
    pub(super) config: &'a Config,
    pub(super) half: &'a Half,
    pub(super) geometry: &'a Geometry,
    pub(super) level: i8,
    pub(super) limits: Limits,
}

impl Lookup<'_> {
    pub(super) fn descriptor(&self, word: u64) -> Result<Descriptor, Fault> {
        let level = self.level;
        if !bit(word, 0) {
            return Err(Fault::NotMapped { level });
        }
        let is_table_or_page = bit(word, 1);
        // Mali's last level has 0b01 for pages, where the others have 0b11.
        let is_leaf = match (level, self.config.stage) {
            (3, Stage::Mali) if is_table_or_page => return Err(Fault::Reserved { level, word }),
            (3, Stage::Mali) => true,
            (3, _) if !is_table_or_page => return Err(Fault::Reserved { level, word }),
            (3, _) => true,
            _ => !is_table_or_page,
        };
        if !is_leaf {
            let address = self.output_address(word, self.half.granule.lg2())?;
            return Ok(Descriptor::Table {
                address,
                limits: self.limits_of(word),
            });
        }
        if level < self.first_block_level() {
            return Err(Fault::Reserved { level, word });
        }
        self.leaf(word).map(Descriptor::Leaf)
    }

    /// The lowest level number with block descriptors.
    fn first_block_level(&self) -> i8 {
        match self.half.granule {
            Granule::K4 if self.config.ds => 0,
            Granule::K4 => 1,
            Granule::K16 if self.config.ds => 1,
            Granule::K64 if self.config.lpa => 1,
            Granule::K16 | Granule::K64 => 2,
        }
    }

    /// The address in a descriptor whose low `align` bits are implied zeroes.
    fn output_address(&self, word: u64, align: u32) -> Result<u64, Fault> {
        let address = match self.half.granule {
            Granule::K64 if self.config.lpa => in_place(word, 47, align) | bits(word, 15, 12) << 48,
            Granule::K4 | Granule::K16 if self.config.ds => {
                in_place(word, 49, align) | bits(word, 9, 8) << 50
            }
            _ => in_place(word, 47, align),
        };
        if exceeds(address, u32::from(self.config.oa_bits)) {
            return Err(Fault::AddressSize {
                level: self.level,
                address,
            });
        }
        Ok(address)
    }

    fn limits_of(&self, word: u64) -> Limits {
        let Limits {
            read_only,
            no_unprivileged,
            uxn,
            pxn,
        } = self.limits;
        if self.config.stage != Stage::One || self.half.had {
            return self.limits;
        }
        Limits {
            read_only: read_only || bit(word, 62),
            no_unprivileged: no_unprivileged || bit(word, 61),
            uxn: uxn || bit(word, 60),
            pxn: pxn || bit(word, 59),
        }
    }

    fn leaf(&self, word: u64) -> Result<Translation, Fault> {
        let level = self.level;
        let item_bits = self.geometry.item_bits(level);
        let oa = self.output_address(word, item_bits)?;
        let accessed = self.config.stage == Stage::Mali || bit(word, 10);
        if !accessed && !self.config.ha && !self.config.affd {
            return Err(Fault::AccessFlag { level });
        }
        let leaf = Translation {
            oa,
            page_len: 1 << (item_bits + self.contiguous_bits(word).unwrap_or(0)),
            item_len: 1 << item_bits,
            read: false,
            write: false,
            execute: false,
            user: true,
            dirty: false,
            accessed,
            memory: self.memory(word),
            level,
            word,
        };
        let leaf = match self.config.stage {
            Stage::One => self.stage1_permissions(leaf),
            Stage::Two { .. } => self.stage2_permissions(leaf),
            Stage::Mali => {
                let read = bit(word, 6);
                Translation {
                    read,
                    write: bit(word, 7),
                    execute: read && !bit(word, 54),
                    ..leaf
                }
            }
        };
        if leaf.read || leaf.write || leaf.execute {
            Ok(leaf)
        } else {
            Err(Fault::NoAccess { level })
        }
    }

    /// AP\[2:1\] in bits 7:6, DBM 51, PXN 53, UXN 54.
    fn stage1_permissions(&self, leaf: Translation) -> Translation {
        let word = leaf.word;
        let dbm = bit(word, 51) && !self.config.aarch32;
        let one_privilege = self.config.one_privilege;
        let is_writeable = !bit(word, 7) || dbm && self.updates_dirty();
        let user = one_privilege || bit(word, 6) && !self.limits.no_unprivileged;
        let uxn = bit(word, 54) || self.limits.uxn;
        let pxn = bit(word, 53) || self.limits.pxn;
        Translation {
            read: true,
            write: is_writeable && !self.limits.read_only,
            execute: if user { !uxn } else { !pxn },
            user,
            dirty: dbm && !bit(word, 7),
            ..leaf
        }
    }

    /// S2AP\[1:0\] in bits 7:6, DBM 51, XN\[1:0\] 54:53.
    fn stage2_permissions(&self, leaf: Translation) -> Translation {
        let word = leaf.word;
        let dbm = bit(word, 51) && !self.config.aarch32;
        let read = bit(word, 6);
        let is_fetchable = if self.config.xnx && !self.config.aarch32 {
            // 00 everywhere, 01 unprivileged only, 10 nowhere, 11 privileged only.
            bits(word, 54, 53) != 0b10
        } else {
            !bit(word, 54)
        };
        Translation {
            read,
            write: bit(word, 7) || dbm && self.updates_dirty(),
            // 32-bit LPAE has no execute-only pages.
            execute: is_fetchable && (read || !self.config.aarch32),
            dirty: dbm && bit(word, 7),
            ..leaf
        }
    }

    /// {HD, HA} = 0b10 is reserved and acts as 0b00.
    fn updates_dirty(&self) -> bool {
        self.config.ha && self.config.hd
    }

    fn memory(&self, word: u64) -> MemoryAttributes {
        let sh = if self.config.ds && self.half.granule != Granule::K64 {
            self.half.sh
        } else {
            bits(word, 9, 8) as u8
        };
        match self.config.stage {
            Stage::One | Stage::Mali => MemoryAttributes::ArmStage1 {
                attr_indx: bits(word, 4, 2) as u8,
                sh,
            },
            Stage::Two { .. } => MemoryAttributes::ArmStage2 {
                mem_attr: bits(word, 5, 2) as u8,
                sh,
            },
        }
    }

    /// Base-2 logarithm of the items in the group that the Contiguous bit of a leaf announces.
    ///
    /// The bit is RES0 in the blocks that only 52-bit formats have (level 0 with 4 KiB, level 1
    /// with 16 KiB and 64 KiB; rule RCBXXM and its table), and a group that the table at the start
    /// level is too small for is a programming error that hardware may ignore (D8.7.1.3).
    pub(super) fn contiguous_bits(&self, word: u64) -> Option<u32> {
        let count_bits = match (self.half.granule, self.level) {
            (Granule::K4, 1..=3) => 4,
            (Granule::K16, 2) | (Granule::K64, 2 | 3) => 5,
            (Granule::K16, 3) => 7,
            _ => return None,
        };
        let fits = count_bits <= self.geometry.index_bits(self.level);
        (bit(word, 52) && fits && self.config.stage != Stage::Mali).then_some(count_bits)
    }

    /// The bits of a leaf in which the members of a contiguous group must agree.
    ///
    /// Hardware sets AF, and with DBM it changes AP\[2\] or S2AP\[1\], in single members; bits 58:55
    /// belong to software, bits 63:59 do nothing in themselves.
    pub(super) fn attributes(&self, word: u64) -> u64 {
        let has_sh = !self.config.ds || self.half.granule == Granule::K64;
        let sh = if has_sh { in_place(word, 9, 8) } else { 0 };
        let bit_7 = if bit(word, 51) {
            0
        } else {
            in_place(word, 7, 7)
        };
        in_place(word, 54, 51) | in_place(word, 11, 11) | sh | bit_7 | in_place(word, 6, 0)
    }
}
