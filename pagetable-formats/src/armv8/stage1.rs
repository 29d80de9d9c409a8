//! VMSAv8-64 stage 1 tables.
//!
//! Source: DDI 0487, D8.3.1, tables D8-50 (tables) and D8-52 (blocks and pages); D8.4.1.2 for
//! permissions, D8.5 for the access flag and the dirty state.
//!
//! ```text
//!  63 62   59 58   55 54  53  52   51  50 49     12 11 10 9  8 7   6 5  4      2  1    0
//! +--+-------+-------+---+---+----+---+--+---------+--+--+----+-----+--+--------+----+-----+
//! |. |   .   |  SW   |UXN|PXN|Cont|DBM| .|   OA    |nG|AF| SH |AP2:1|NS|AttrIndx|Type|Valid|
//! +--+-------+-------+---+---+----+---+--+---------+--+--+----+-----+--+--------+----+-----+
//! |NS|AP:UXN:PXN|         .          | .|   OA    |               .               | 1  |  1  |
//! +--+-------+-------+---+---+----+---+--+---------+-------------------------------+----+-----+
//! ```
//!
//! The second row is a table; its bits 63:59 are `NSTable`, `APTable`, `UXNTable`, `PXNTable`.

use super::fields::{self, Dialect};
use super::memory::AttributeIndices;
use super::shape::{AF, CONTIGUOUS, DBM, Kind, NT, PENDING, SH, Shape, TABLE_POINTER, VALID};
use super::{Granule, Half, HardwareUpdates, TableWalk, Tcr};
use crate::{
    Bits, ConfigError, DirtyRule, Entry, Field, Format, Geometry, Leaf, Level, Memory, Oa,
    PageSize, PageSizes, Prot, Reserved, Rights, TableEntry, Window, bit,
};

/// `AttrIndx[2:0]`: which byte of `MAIR` gives the memory type.
const ATTR_INDX: Bits<4, 2> = Bits;
/// NS: the output address is non-secure; only looked at in secure tables.
const NS: u64 = bit(5);
/// AP[1]: unprivileged requests are allowed.
const AP1_USER: u64 = bit(6);
/// AP[2]: writes are not allowed.
const AP2_READ_ONLY: u64 = bit(7);
/// nG: the translation is tagged with the ASID.
const NG: u64 = bit(11);
/// PXN: no privileged fetches.
const PXN: u64 = bit(53);
/// UXN: no unprivileged fetches; XN where there is one privilege level.
const UXN: u64 = bit(54);
/// `PXNTable`: no privileged fetches below.
const PXN_TABLE: u64 = bit(59);
/// `UXNTable`: no unprivileged fetches below.
const UXN_TABLE: u64 = bit(60);
/// `APTable[0]`: no unprivileged requests below.
const AP0_TABLE: u64 = bit(61);
/// `APTable[1]`: no writes below.
const AP1_TABLE: u64 = bit(62);
/// `NSTable`: the subtree is non-secure.
const NS_TABLE: u64 = bit(63);

/// VMSAv8-64 stage 1 with a granule of `2^G` bytes: `G` is 12, 14 or 16.
///
/// Entries cannot allow writes or fetches without reads, so [`effective`](Format::effective) adds
/// the read right.
///
/// ```
/// use iopt_formats::armv8::Stage1;
/// use iopt_formats::{Format, Oa, PageSize, Prot};
///
/// let format = Stage1::<12>::new(48, 44)?;
/// let word = format.leaf_item(Oa::new(0x1_2345_6000), PageSize::KIB_4, Prot::RW.cached(), 0);
/// assert_eq!(word, 0x0060_0001_2345_6f47);
/// # Ok::<(), iopt_formats::ConfigError>(())
/// ```
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Stage1<const G: u8> {
    shape: Shape<G>,
    window: Window,
    /// Attributes that every leaf has.
    always: u64,
    /// What every table entry holds besides the address.
    pointer: u64,
    updates: HardwareUpdates,
    /// Table entries limit the rights below them.
    limits: bool,
    attributes: AttributeIndices,
}

impl<const G: u8> Stage1<G> {
    /// Creates the format of tables in the lower half (`TTB0`), with 48-bit descriptors or, for
    /// the 64 KiB granule and output addresses of 52 bits, LPA descriptors.
    ///
    /// # Errors
    ///
    /// - [`ConfigError::OaBits`] unless `oa_bits` is 32, 36, 40, 42, 44 or 48, or 52 with the
    ///   64 KiB granule;
    /// - [`ConfigError::VaBits`] unless `va_bits` is 25 to 48, or to 52 with the 64 KiB granule.
    pub const fn new(va_bits: u8, oa_bits: u8) -> Result<Self, ConfigError> {
        Self::with_shape(Shape::new(va_bits, oa_bits, G == 16 && oa_bits == 52))
    }

    /// Creates the format of tables in the lower half with 52-bit descriptors: LPA for the 64 KiB
    /// granule, else LPA2 (`DS = 1`), whose shareability comes from `TCR` instead of the entry.
    ///
    /// # Errors
    ///
    /// - [`ConfigError::OaBits`] unless `oa_bits` is 52 or, with LPA2, 32, 36, 40, 42, 44 or 48;
    /// - [`ConfigError::VaBits`] unless `va_bits` is 25 to 52.
    pub const fn new_lpa(va_bits: u8, oa_bits: u8) -> Result<Self, ConfigError> {
        Self::with_shape(Shape::new(va_bits, oa_bits, true))
    }

    const fn with_shape(shape: Result<Shape<G>, ConfigError>) -> Result<Self, ConfigError> {
        match shape {
            Ok(shape) => Ok(Self {
                shape,
                window: Window::Lower,
                always: AF | NG,
                pointer: TABLE_POINTER,
                updates: HardwareUpdates::None,
                limits: true,
                attributes: AttributeIndices::DEFAULT,
            }),
            Err(error) => Err(error),
        }
    }

    /// Moves the table to the upper half of the space (`TTB1`).
    #[must_use]
    pub const fn in_upper_half(mut self) -> Self {
        self.window = Window::Upper;
        self
    }

    /// Marks leaves and tables non-secure, for tables of the secure world.
    #[must_use]
    pub const fn with_non_secure(mut self) -> Self {
        self.always |= NS;
        self.pointer |= NS_TABLE;
        self
    }

    /// Sets what hardware does with the access flag and the dirty state.
    #[must_use]
    pub const fn with_updates(mut self, updates: HardwareUpdates) -> Self {
        self.updates = updates;
        self
    }

    /// Ignores what table entries say about rights (`HAD = 1`).
    #[must_use]
    pub const fn without_table_limits(mut self) -> Self {
        self.limits = false;
        self
    }

    /// Takes the memory types from `mair`, for tables that are shared with somebody who does not
    /// use [`MAIR`](super::MAIR).
    ///
    /// A memory type that `mair` lacks is mapped as the nearest one that it has.
    #[must_use]
    pub const fn with_mair(mut self, mair: u64) -> Self {
        self.attributes = AttributeIndices::from_mair(mair);
        self
    }

    /// Uses only the page sizes in `allowed`, as an erratum may demand.
    ///
    /// # Errors
    ///
    /// [`ConfigError::Sizes`] if none is left.
    pub const fn with_sizes(mut self, allowed: PageSizes) -> Result<Self, ConfigError> {
        match self.shape.with_sizes(allowed) {
            Ok(shape) => {
                self.shape = shape;
                Ok(self)
            }
            Err(error) => Err(error),
        }
    }

    /// Returns the control fields that make hardware walk these tables.
    pub const fn tcr(&self, walk: TableWalk) -> Tcr {
        Tcr {
            half: if matches!(self.window, Window::Upper) {
                Half::Upper
            } else {
                Half::Lower
            },
            tsz: 64 - self.shape.va_bits(),
            granule: Granule::from_lg2(G),
            walk,
            oa_bits: self.shape.oa_bits(),
            ds: self.shape.has_ds(),
            updates: self.updates,
            table_limits: self.limits,
        }
    }

    /// Creates the format that hardware with these control fields takes tables for.
    ///
    /// `G` must be the granule of `tcr`.
    pub(super) const fn from_tcr(tcr: Tcr, mair: u64) -> Result<Self, ConfigError> {
        let wide = if G == 16 { tcr.oa_bits == 52 } else { tcr.ds };
        let va_bits = 64_u8.saturating_sub(tcr.tsz);
        let mut format = match Self::with_shape(Shape::new(va_bits, tcr.oa_bits, wide)) {
            Ok(format) => format.with_updates(tcr.updates).with_mair(mair),
            Err(error) => return Err(error),
        };
        format.limits = tcr.table_limits;
        match tcr.half {
            Half::Lower => Ok(format),
            Half::Upper => Ok(format.in_upper_half()),
        }
    }

    /// Returns the base-2 logarithm of the bytes that a root is aligned to: its size, and at least
    /// 64 bytes where addresses have 52 bits.
    pub const fn root_align_lg2(&self) -> u8 {
        self.shape.root_align_lg2()
    }

    /// Returns whether `word` says that writes to it are recorded.
    const fn is_tracked(&self, word: u64) -> bool {
        self.updates.sets_dirty() && word & DBM != 0
    }

    /// Decodes the rights of a leaf (tables D8-63 and D8-52).
    const fn leaf_rights(&self, word: u64) -> Rights {
        let user = word & AP1_USER != 0;
        let writable = word & AP2_READ_ONLY == 0 || self.is_tracked(word);
        let never_fetch = if user { UXN } else { PXN };
        Rights::READ
            .with_if(Rights::USER, user)
            .with_if(Rights::WRITE, writable)
            .with_if(Rights::EXECUTE, word & never_fetch == 0)
    }

    /// Decodes what a table leaves to its subtree (table D8-64). Fetches are those of unprivileged
    /// requests unless the table takes all rights from them.
    const fn table_limit(&self, word: u64) -> Rights {
        if !self.limits {
            return Rights::ALL;
        }
        let user = word & AP0_TABLE == 0;
        let never_fetch = if user { UXN_TABLE } else { PXN_TABLE };
        Rights::READ
            .with_if(Rights::USER, user)
            .with_if(Rights::WRITE, word & AP1_TABLE == 0)
            .with_if(Rights::EXECUTE, word & never_fetch == 0)
    }
}

impl<const G: u8> crate::format::sealed::Sealed for Stage1<G> {}

impl<const G: u8> Format for Stage1<G> {
    const GRANULE: PageSize = Shape::<G>::GRANULE;
    const PRESENT: u64 = VALID;
    const GROUPED: u64 = CONTIGUOUS;
    const PENDING: u64 = PENDING;
    const BLOCK_MARK: u64 = NT;
    const OA_LINEAR_LG2: u8 = Shape::<G>::LINEAR_LG2;
    const BREAK_BEFORE_MAKE: bool = true;

    #[inline]
    fn geometry(&self) -> Geometry {
        self.shape.geometry(self.window)
    }

    #[inline]
    fn oa_bits(&self) -> u8 {
        self.shape.oa_bits()
    }

    #[inline]
    fn sizes(&self) -> PageSizes {
        self.shape.sizes()
    }

    #[inline]
    fn effective(&self, prot: Prot) -> Option<Prot> {
        if prot.rights().difference(Rights::USER) == Rights::NONE {
            return None;
        }
        let memory = self.attributes.memory(self.attributes.index(prot.memory()));
        Some(prot.with(Rights::READ).with_memory(memory))
    }

    #[inline]
    fn leaf_attributes(&self, prot: Prot, size: PageSize) -> u64 {
        if prot.rights().difference(Rights::USER) == Rights::NONE {
            return 0;
        }
        let index = ATTR_INDX.put(self.attributes.index(prot.memory()));
        let user = if prot.is_user() { AP1_USER } else { 0 };
        // A writable entry starts dirty, so that hardware never has to write it.
        let recorded = if self.updates.sets_dirty() { DBM } else { 0 };
        let write = if prot.can_write() {
            recorded
        } else {
            AP2_READ_ONLY
        };
        let fetch = if prot.can_execute() { 0 } else { UXN | PXN };
        let inner = u64::from(matches!(prot.memory(), Memory::WriteBack));
        let sh = if self.shape.has_ds() {
            0
        } else {
            SH.put(2 | inner)
        };
        Shape::<G>::type_bits(size) | self.always | index | user | write | fetch | sh
    }

    #[inline]
    fn encode_oa(&self, oa: Oa) -> u64 {
        Shape::<G>::encode_oa(oa)
    }

    #[inline]
    fn decode_oa(&self, word: u64) -> Oa {
        self.shape.decode_oa(word)
    }

    #[inline]
    fn item_step(&self, size: PageSize) -> u64 {
        Shape::<G>::item_step(size)
    }

    #[inline]
    fn encode_table(&self, oa: Oa, _level: Level) -> u64 {
        Shape::<G>::encode_oa(oa) | self.pointer
    }

    #[inline]
    fn child(&self, word: u64, _level: Level) -> Option<Oa> {
        self.shape.child(word)
    }

    #[inline]
    fn exact_child(&self, word: u64, _level: Level) -> Option<Oa> {
        Shape::<G>::exact_child(word, self.pointer)
    }

    #[inline]
    fn decode(&self, word: u64, level: Level) -> Result<Entry, Reserved> {
        Ok(match self.shape.classify(word, level)? {
            Kind::Empty => Entry::Empty,
            Kind::Table(oa, level) => Entry::Table(TableEntry {
                oa,
                level,
                limit: self.table_limit(word),
            }),
            Kind::Leaf(place) => {
                let memory = self.attributes.memory(ATTR_INDX.get(word));
                Entry::Leaf(Leaf {
                    oa: place.oa,
                    span: place.span,
                    size: place.size,
                    prot: Prot::new(self.leaf_rights(word), memory),
                    accessed: word & AF != 0,
                    dirty: self.is_tracked(word) && word & AP2_READ_ONLY == 0,
                })
            }
        })
    }

    #[inline]
    fn dirty_rule(&self) -> Option<DirtyRule> {
        let rule = DirtyRule {
            tracked: DBM,
            mask: AP2_READ_ONLY,
            dirty: 0,
        };
        self.updates.sets_dirty().then_some(rule)
    }

    #[inline]
    fn faults_unaccessed(&self) -> bool {
        matches!(self.updates, HardwareUpdates::None)
    }

    fn arch_level(&self, level: Level) -> i8 {
        3 - level.0.cast_signed()
    }

    fn fields(&self, word: u64, level: Level) -> &'static [Field] {
        fields::of::<G>(Dialect::Stage1, self.shape.is_wide(), word, level)
    }
}
