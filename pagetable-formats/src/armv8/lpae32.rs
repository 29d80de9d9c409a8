//! 32-bit LPAE: the long descriptors of VMSAv8-32 and `ARMv7`.
//!
//! Source: DDI 0487, G5.5 "VMSAv8-32 Long-descriptor format translation tables". The descriptors
//! are those of VMSAv8-64 with a 4 KiB granule except that
//!
//! - stage 1 decodes at most 32 bits and stage 2 at most 40; addresses have at most 40 bits;
//! - there is no dirty state;
//! - bit 54 is `XN` for both privilege levels; and stage 2 fetches need the read right.
//!
//! The Contiguous bit is read but never set: the `SMMUv1` and `SMMUv2` walkers that these tables are for
//! gain nothing from it.

use super::{Concatenation, HardwareUpdates, Stage1, Stage2};
use crate::{
    ConfigError, DirtyRule, Entry, Field, Format, Geometry, Leaf, Level, Oa, PageSize, PageSizes,
    Prot, Reserved, Rights, bit,
};

/// XN: no fetches at all.
const XN: u64 = bit(54);

const SIZES: PageSizes = PageSizes::EMPTY
    .with(PageSize::KIB_4)
    .with(PageSize::MIB_2)
    .with(PageSize::GIB_1);

/// 32-bit LPAE stage 1.
///
/// Entries cannot allow writes or fetches without reads, so [`effective`](Format::effective) adds
/// the read right.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Lpae32(Stage1<12>);

impl Lpae32 {
    /// Creates the format of tables that translate the addresses below `2^va_bits` (`TTBR0`).
    ///
    /// # Errors
    ///
    /// - [`ConfigError::VaBits`] unless `va_bits` is 25 to 32;
    /// - [`ConfigError::OaBits`] unless `oa_bits` is 32, 36 or 40.
    pub const fn new(va_bits: u8, oa_bits: u8) -> Result<Self, ConfigError> {
        if va_bits > 32 {
            return Err(ConfigError::VaBits {
                bits: va_bits,
                rule: "25 to 32 bits",
            });
        }
        if oa_bits > 40 {
            return Err(ConfigError::OaBits {
                bits: oa_bits,
                rule: "32, 36 or 40 bits",
            });
        }
        match Stage1::new(va_bits, oa_bits) {
            Ok(format) => Self(format).with_sizes(SIZES),
            Err(error) => Err(error),
        }
    }

    /// Marks leaves and tables non-secure, for tables of the secure world.
    #[must_use]
    pub const fn with_non_secure(self) -> Self {
        Self(self.0.with_non_secure())
    }

    /// Lets nothing fault for a clear access flag (`AFFD = 1`).
    #[must_use]
    pub const fn with_access_flag_ignored(self) -> Self {
        Self(self.0.with_updates(HardwareUpdates::Ignored))
    }

    /// Ignores what table entries say about rights (`HAD = 1`).
    #[must_use]
    pub const fn without_table_limits(self) -> Self {
        Self(self.0.without_table_limits())
    }

    /// Takes the memory types from `mair`, as [`Stage1::with_mair`] does.
    #[must_use]
    pub const fn with_mair(self, mair: u64) -> Self {
        Self(self.0.with_mair(mair))
    }

    /// Uses only the page sizes in `allowed`.
    ///
    /// # Errors
    ///
    /// [`ConfigError::Sizes`] if none of 4 KiB, 2 MiB and 1 GiB is left.
    pub const fn with_sizes(self, allowed: PageSizes) -> Result<Self, ConfigError> {
        match self.0.with_sizes(allowed.intersection(SIZES)) {
            Ok(format) => Ok(Self(format)),
            Err(error) => Err(error),
        }
    }

    /// Returns `T0SZ`: 32 less the width of an input address, 0 to 7.
    pub fn t0sz(&self) -> u8 {
        32 - self.geometry().va_bits
    }

    /// Returns the base-2 logarithm of the bytes that a root is aligned to: its size.
    pub const fn root_align_lg2(&self) -> u8 {
        self.0.root_align_lg2()
    }

    const fn widened(prot: Prot) -> Prot {
        prot
    }

    /// Returns what is left of the rights that VMSAv8-64 finds in `word`.
    const fn narrowed(word: u64, rights: Rights) -> Rights {
        if word & XN == 0 {
            rights
        } else {
            rights.difference(Rights::EXECUTE)
        }
    }
}

/// 32-bit LPAE stage 2.
///
/// Entries do not tell privileged from unprivileged requests and cannot allow fetches without
/// reads: [`effective`](Format::effective) adds those rights.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Lpae32Stage2(Stage2<12>);

impl Lpae32Stage2 {
    /// Creates the format; the root is concatenated
    /// [where possible](Concatenation::WherePossible).
    ///
    /// # Errors
    ///
    /// - [`ConfigError::VaBits`] unless `va_bits` is 25 to 40;
    /// - [`ConfigError::OaBits`] unless `oa_bits` is 32, 36 or 40.
    pub const fn new(va_bits: u8, oa_bits: u8) -> Result<Self, ConfigError> {
        if va_bits > 40 {
            return Err(ConfigError::VaBits {
                bits: va_bits,
                rule: "25 to 40 bits",
            });
        }
        if oa_bits > 40 {
            return Err(ConfigError::OaBits {
                bits: oa_bits,
                rule: "32, 36 or 40 bits",
            });
        }
        match Stage2::new(va_bits, oa_bits) {
            Ok(format) => Self(format).with_sizes(SIZES),
            Err(error) => Err(error),
        }
    }

    /// Chooses the starting level by another rule.
    ///
    /// # Errors
    ///
    /// [`ConfigError::Sizes`] as for [`Stage2::with_concatenation`].
    pub const fn with_concatenation(self, rule: Concatenation) -> Result<Self, ConfigError> {
        match self.0.with_concatenation(rule) {
            Ok(format) => Ok(Self(format)),
            Err(error) => Err(error),
        }
    }

    /// Sets the level of the root, 1 or 2, as `SL0` gives it.
    ///
    /// # Errors
    ///
    /// - [`ConfigError::Levels`] if the level does not exist or does not fit the address width;
    /// - [`ConfigError::Sizes`] as for [`Stage2::with_start_level`].
    pub const fn with_start_level(self, top: Level) -> Result<Self, ConfigError> {
        if top.0 != 1 && top.0 != 2 {
            let levels = top.0.saturating_add(1);
            return Err(ConfigError::Levels {
                levels,
                rule: "2 or 3 levels",
            });
        }
        match self.0.with_start_level(top) {
            Ok(format) => Ok(Self(format)),
            Err(error) => Err(error),
        }
    }

    /// Lets nothing fault for a clear access flag (`AFFD = 1`).
    #[must_use]
    pub const fn with_access_flag_ignored(self) -> Self {
        Self(self.0.with_updates(HardwareUpdates::Ignored))
    }

    /// Uses the memory attributes of forced write-back, as
    /// [`Stage2::with_forced_write_back`] does.
    #[must_use]
    pub const fn with_forced_write_back(self) -> Self {
        Self(self.0.with_forced_write_back())
    }

    /// Uses only the page sizes in `allowed`.
    ///
    /// # Errors
    ///
    /// [`ConfigError::Sizes`] if none of 4 KiB, 2 MiB and 1 GiB is left.
    pub const fn with_sizes(self, allowed: PageSizes) -> Result<Self, ConfigError> {
        match self.0.with_sizes(allowed.intersection(SIZES)) {
            Ok(format) => Ok(Self(format)),
            Err(error) => Err(error),
        }
    }

    /// Returns `T0SZ`: 32 less the width of an input address, -8 to 7.
    pub fn t0sz(&self) -> i8 {
        32 - self.geometry().va_bits.cast_signed()
    }

    /// Returns `SL0`: 0 where walks start at a root of level 1, 1 for level 2.
    pub fn sl0(&self) -> u8 {
        self.geometry().top.0 - 1
    }

    /// Returns the base-2 logarithm of the bytes that a root is aligned to: its size.
    pub const fn root_align_lg2(&self) -> u8 {
        self.0.root_align_lg2()
    }

    /// Adds the read right to fetches.
    const fn widened(prot: Prot) -> Prot {
        if prot.can_execute() {
            prot.with(Rights::READ)
        } else {
            prot
        }
    }

    /// Returns what is left of the rights that VMSAv8-64 finds in `_word`.
    const fn narrowed(_word: u64, rights: Rights) -> Rights {
        if rights.contains(Rights::READ) {
            rights
        } else {
            rights.difference(Rights::EXECUTE)
        }
    }
}

macro_rules! narrow_vmsav8_64 {
    ($format:ty, $wide:ty) => {
        impl crate::format::sealed::Sealed for $format {}

        impl Format for $format {
            const GRANULE: PageSize = <$wide>::GRANULE;
            const PRESENT: u64 = <$wide>::PRESENT;
            const GROUPED: u64 = <$wide>::GROUPED;
            const PENDING: u64 = <$wide>::PENDING;
            const BREAK_BEFORE_MAKE: bool = <$wide>::BREAK_BEFORE_MAKE;

            #[inline]
            fn geometry(&self) -> Geometry {
                self.0.geometry()
            }

            #[inline]
            fn oa_bits(&self) -> u8 {
                self.0.oa_bits()
            }

            #[inline]
            fn sizes(&self) -> PageSizes {
                self.0.sizes()
            }

            #[inline]
            fn effective(&self, prot: Prot) -> Option<Prot> {
                self.0.effective(Self::widened(prot))
            }

            #[inline]
            fn leaf_attributes(&self, prot: Prot, size: PageSize) -> u64 {
                self.0.leaf_attributes(Self::widened(prot), size)
            }

            #[inline]
            fn encode_oa(&self, oa: Oa) -> u64 {
                self.0.encode_oa(oa)
            }

            #[inline]
            fn decode_oa(&self, word: u64) -> Oa {
                self.0.decode_oa(word)
            }

            #[inline]
            fn item_step(&self, size: PageSize) -> u64 {
                self.0.item_step(size)
            }

            #[inline]
            fn encode_table(&self, oa: Oa, level: Level) -> u64 {
                self.0.encode_table(oa, level)
            }

            #[inline]
            fn child(&self, word: u64, level: Level) -> Option<Oa> {
                self.0.child(word, level)
            }

            fn decode(&self, word: u64, level: Level) -> Result<Entry, Reserved> {
                Ok(match self.0.decode(word, level)? {
                    Entry::Leaf(leaf) => {
                        let rights = Self::narrowed(word, leaf.prot.rights());
                        Entry::Leaf(Leaf {
                            prot: leaf.prot.with_rights(rights),
                            ..leaf
                        })
                    }
                    entry => entry,
                })
            }

            fn dirty_rule(&self) -> Option<DirtyRule> {
                None
            }

            fn faults_unaccessed(&self) -> bool {
                self.0.faults_unaccessed()
            }

            fn arch_level(&self, level: Level) -> i8 {
                self.0.arch_level(level)
            }

            fn fields(&self, word: u64, level: Level) -> &'static [Field] {
                self.0.fields(word, level)
            }
        }
    };
}

narrow_vmsav8_64!(Lpae32, Stage1<12>);
narrow_vmsav8_64!(Lpae32Stage2, Stage2<12>);
