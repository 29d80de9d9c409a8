//! VMSAv8-64 stage 2 tables.
//!
//! Source: DDI 0487, D8.3.1, tables D8-51 (tables) and D8-53 (blocks and pages); D8.2.2 for
//! concatenated roots, D8.4.2.1 for permissions, D8.5 for the access flag and dirty state.
//!
//! ```text
//!  63 62   59 58   55 54 53  52   51  50 49     12 11 10 9  8 7   6 5       2  1    0
//! +--+-------+-------+-----+----+---+--+---------+--+--+----+-----+---------+----+-----+
//! |. |   .   |  SW   | XN  |Cont|DBM| .|   OA    |. |AF| SH |S2AP | MemAttr |Type|Valid|
//! +--+-------+-------+-----+----+---+--+---------+--+--+----+-----+---------+----+-----+
//! ```

use super::fields::{self, Dialect};
use super::granule::{item_lg2, natural_top};
use super::memory::MemAttr;
use super::shape::{AF, CONTIGUOUS, DBM, Kind, NT, PENDING, SH, Shape, TABLE_POINTER, VALID};
use super::{Granule, HardwareUpdates, TableWalk, Vtcr};
use crate::{
    Bits, ConfigError, DirtyRule, Entry, Field, Format, Geometry, Leaf, Level, Memory, Oa,
    PageSize, PageSizes, Prot, Reserved, Rights, TableEntry, Window, bit,
};

/// `MemAttr[3:0]`: the memory type.
const MEM_ATTR: Bits<5, 2> = Bits;
/// S2AP[0]: reads are allowed.
const S2AP_READ: u64 = bit(6);
/// S2AP[1]: writes are allowed.
const S2AP_WRITE: u64 = bit(7);
/// XN[1]: no fetches. XN[1:0] is 0b10 for all requests; with `FEAT_XNX` 0b11 lets privileged
/// requests fetch (table D8-78).
const XN: u64 = bit(54);

/// When the root of a stage 2 table is made of several tables of the level below (D8.2.2).
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Concatenation {
    /// Whenever 16 tables are enough and two levels remain: walks are shorter.
    #[default]
    WherePossible,
    /// Only where the architecture does not allow the higher starting level, as Linux does in
    /// `io-pgtable`.
    WhereMandatory,
}

/// VMSAv8-64 stage 2 with a granule of `2^G` bytes: `G` is 12, 14 or 16.
///
/// Stage 2 does not tell privileged from unprivileged requests:
/// [`effective`](Format::effective) adds the user right. All combinations of the other rights
/// exist.
///
/// ```
/// use iopt_formats::armv8::Stage2;
/// use iopt_formats::{Format, Level};
///
/// // 40 bits: two concatenated tables of 2^9 items each, instead of a root of two items.
/// let format = Stage2::<12>::new(40, 44)?;
/// assert_eq!(format.geometry().top, Level(2));
/// assert_eq!(format.root_count_lg2(Level(2)), 10);
/// # Ok::<(), iopt_formats::ConfigError>(())
/// ```
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Stage2<const G: u8> {
    shape: Shape<G>,
    updates: HardwareUpdates,
    mem_attr: MemAttr,
}

impl<const G: u8> Stage2<G> {
    /// Creates the format with 48-bit descriptors or, for the 64 KiB granule and output addresses
    /// of 52 bits, LPA descriptors.
    ///
    /// The root is concatenated [where possible](Concatenation::WherePossible).
    ///
    /// # Errors
    ///
    /// - [`ConfigError::OaBits`] unless `oa_bits` is 32, 36, 40, 42, 44 or 48, or 52 with the
    ///   64 KiB granule;
    /// - [`ConfigError::VaBits`] unless `va_bits` is 25 to 48, or to 52 with LPA.
    pub const fn new(va_bits: u8, oa_bits: u8) -> Result<Self, ConfigError> {
        Self::with_shape(Shape::new(va_bits, oa_bits, G == 16 && oa_bits == 52))
    }

    /// Creates the format with 52-bit descriptors: LPA for the 64 KiB granule, else LPA2
    /// (`DS = 1`), whose shareability comes from `VTCR` instead of the entry.
    ///
    /// The root is concatenated [where possible](Concatenation::WherePossible).
    ///
    /// # Errors
    ///
    /// - [`ConfigError::OaBits`] unless `oa_bits` is 52 or, with LPA2, 32, 36, 40, 42, 44 or 48;
    /// - [`ConfigError::VaBits`] unless `va_bits` is 25 to 52.
    pub const fn new_lpa(va_bits: u8, oa_bits: u8) -> Result<Self, ConfigError> {
        Self::with_shape(Shape::new(va_bits, oa_bits, true))
    }

    const fn with_shape(shape: Result<Shape<G>, ConfigError>) -> Result<Self, ConfigError> {
        let shape = match shape {
            Ok(shape) => shape,
            Err(error) => return Err(error),
        };
        if shape.va_bits() > 48 && !shape.is_wide() {
            let rule = "stage 2 inputs above 48 bits need 52-bit descriptors";
            return Err(ConfigError::VaBits {
                bits: shape.va_bits(),
                rule,
            });
        }
        let format = Self {
            shape,
            updates: HardwareUpdates::None,
            mem_attr: MemAttr::Combined,
        };
        format.with_concatenation(Concatenation::WherePossible)
    }

    /// Chooses the starting level by another rule.
    ///
    /// The implemented address width that decides what is mandatory is taken to be the wider one
    /// of input and output.
    ///
    /// # Errors
    ///
    /// [`ConfigError::Sizes`] if the level that goes away was the only one with an
    /// [allowed](Self::with_sizes) size.
    pub const fn with_concatenation(self, rule: Concatenation) -> Result<Self, ConfigError> {
        let natural = natural_top(G, self.shape.va_bits());
        let top_bits = self.shape.va_bits() - item_lg2(G, natural);
        let concatenated = match rule {
            // A one-level table of the 4 KiB granule would need FEAT_TTST.
            Concatenation::WherePossible => top_bits <= 4 && natural.0 >= 2,
            Concatenation::WhereMandatory => !self.may_start_at(natural),
        };
        self.with_top(if concatenated {
            Level(natural.0 - 1)
        } else {
            natural
        })
    }

    /// Returns whether a walk may start at the natural level `top` (`VTCR_EL2.SL0`).
    const fn may_start_at(&self, top: Level) -> bool {
        let (va_bits, oa_bits) = (self.shape.va_bits(), self.shape.oa_bits());
        let implemented = if va_bits > oa_bits { va_bits } else { oa_bits };
        // Widths of an implementation are those of `PS`: above 40 means 42, above 42 means 44.
        match (G, top.0) {
            (14, 2) => implemented > 40,
            (14, 3) => self.shape.has_ds(),
            (12, 3) | (16, 2) => implemented > 42,
            _ => true,
        }
    }

    /// Sets the level of the root, as `SL0` gives it; the root holds all remaining address bits.
    ///
    /// Whether hardware can start there may also depend on its address width, which is not checked.
    ///
    /// # Errors
    ///
    /// - [`ConfigError::Levels`] if the level does not exist, or if the root would have no address
    ///   bit or be more than 16 tables;
    /// - [`ConfigError::Sizes`] if none of the [allowed](Self::with_sizes) sizes exists.
    pub const fn with_start_level(self, top: Level) -> Result<Self, ConfigError> {
        let highest = match G {
            12 => 3 + self.shape.has_ds() as u8,
            14 => 2 + self.shape.has_ds() as u8,
            _ => 2,
        };
        let levels = top.0.saturating_add(1);
        if top.0 > highest {
            let rule = "3 levels with a 64 or 16 KiB granule, 4 with 4 KiB, one more with LPA2";
            return Err(ConfigError::Levels { levels, rule });
        }
        let item = item_lg2(G, top);
        // 16 tables of 2^(G - 3) items.
        if self.shape.va_bits() <= item || self.shape.va_bits() - item > G - 3 + 4 {
            let rule = "the root is at least two items and at most 16 tables";
            return Err(ConfigError::Levels { levels, rule });
        }
        self.with_top(top)
    }

    const fn with_top(mut self, top: Level) -> Result<Self, ConfigError> {
        self.shape = self.shape.with_top(top);
        if self.shape.sizes().is_empty() {
            Err(ConfigError::Sizes)
        } else {
            Ok(self)
        }
    }

    /// Uses the memory attributes of forced write-back (`S2FWB = 1`), which may override stage 1.
    #[must_use]
    pub const fn with_forced_write_back(mut self) -> Self {
        self.mem_attr = MemAttr::Forced;
        self
    }

    /// Sets what hardware does with the access flag and the dirty state.
    #[must_use]
    pub const fn with_updates(mut self, updates: HardwareUpdates) -> Self {
        self.updates = updates;
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
    pub const fn vtcr(&self, walk: TableWalk) -> Vtcr {
        Vtcr {
            t0sz: 64 - self.shape.va_bits(),
            granule: Granule::from_lg2(G),
            start: self.shape.top(),
            walk,
            oa_bits: self.shape.oa_bits(),
            ds: self.shape.has_ds(),
            updates: self.updates,
            forced_write_back: matches!(self.mem_attr, MemAttr::Forced),
        }
    }

    /// Creates the format that hardware with these control fields takes tables for.
    ///
    /// `G` must be the granule of `vtcr`.
    pub(super) const fn from_vtcr(vtcr: Vtcr) -> Result<Self, ConfigError> {
        let wide = if G == 16 { vtcr.oa_bits == 52 } else { vtcr.ds };
        let va_bits = 64_u8.saturating_sub(vtcr.t0sz);
        let format = match Self::with_shape(Shape::new(va_bits, vtcr.oa_bits, wide)) {
            Ok(format) => format.with_updates(vtcr.updates),
            Err(error) => return Err(error),
        };
        let format = if vtcr.forced_write_back {
            format.with_forced_write_back()
        } else {
            format
        };
        format.with_start_level(vtcr.start)
    }

    /// Returns the base-2 logarithm of the bytes that a root is aligned to: its size with all
    /// concatenated tables, and at least 64 bytes where addresses have 52 bits.
    pub const fn root_align_lg2(&self) -> u8 {
        self.shape.root_align_lg2()
    }

    /// Returns whether `word` says that writes to it are recorded.
    const fn is_tracked(&self, word: u64) -> bool {
        self.updates.sets_dirty() && word & DBM != 0
    }
}

impl<const G: u8> crate::format::sealed::Sealed for Stage2<G> {}

impl<const G: u8> Format for Stage2<G> {
    const GRANULE: PageSize = Shape::<G>::GRANULE;
    const PRESENT: u64 = VALID;
    const GROUPED: u64 = CONTIGUOUS;
    const PENDING: u64 = PENDING;
    const BLOCK_MARK: u64 = NT;
    const OA_LINEAR_LG2: u8 = Shape::<G>::LINEAR_LG2;
    const BREAK_BEFORE_MAKE: bool = true;

    #[inline]
    fn geometry(&self) -> Geometry {
        self.shape.geometry(Window::Lower)
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
        Some(
            prot.with(Rights::USER)
                .with_memory(self.mem_attr.nearest(prot.memory())),
        )
    }

    #[inline]
    fn leaf_attributes(&self, prot: Prot, size: PageSize) -> u64 {
        if prot.rights().difference(Rights::USER) == Rights::NONE {
            return 0;
        }
        let read = if prot.can_read() { S2AP_READ } else { 0 };
        // A writable entry starts dirty, so that hardware never has to write it.
        let recorded = if self.updates.sets_dirty() { DBM } else { 0 };
        let write = if prot.can_write() {
            S2AP_WRITE | recorded
        } else {
            0
        };
        let fetch = if prot.can_execute() { 0 } else { XN };
        let inner = u64::from(matches!(prot.memory(), Memory::WriteBack));
        let sh = if self.shape.has_ds() {
            0
        } else {
            SH.put(2 | inner)
        };
        let memory = MEM_ATTR.put(self.mem_attr.encode(prot.memory()));
        Shape::<G>::type_bits(size) | AF | memory | read | write | fetch | sh
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
        Shape::<G>::encode_oa(oa) | TABLE_POINTER
    }

    #[inline]
    fn child(&self, word: u64, _level: Level) -> Option<Oa> {
        self.shape.child(word)
    }

    #[inline]
    fn exact_child(&self, word: u64, _level: Level) -> Option<Oa> {
        Shape::<G>::exact_child(word, TABLE_POINTER)
    }

    #[inline]
    fn decode(&self, word: u64, level: Level) -> Result<Entry, Reserved> {
        Ok(match self.shape.classify(word, level)? {
            Kind::Empty => Entry::Empty,
            // Stage 2 tables limit nothing: bits 62:59 are reserved (table D8-51).
            Kind::Table(oa, level) => Entry::Table(TableEntry {
                oa,
                level,
                limit: Rights::ALL,
            }),
            Kind::Leaf(place) => {
                let tracked = self.is_tracked(word);
                let rights = Rights::USER
                    .with_if(Rights::READ, word & S2AP_READ != 0)
                    .with_if(Rights::WRITE, word & S2AP_WRITE != 0 || tracked)
                    .with_if(Rights::EXECUTE, word & XN == 0);
                let memory = self.mem_attr.decode(MEM_ATTR.get(word));
                Entry::Leaf(Leaf {
                    oa: place.oa,
                    span: place.span,
                    size: place.size,
                    prot: Prot::new(rights, memory),
                    accessed: word & AF != 0,
                    dirty: tracked && word & S2AP_WRITE != 0,
                })
            }
        })
    }

    #[inline]
    fn dirty_rule(&self) -> Option<DirtyRule> {
        let rule = DirtyRule {
            tracked: DBM,
            mask: S2AP_WRITE,
            dirty: S2AP_WRITE,
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
        fields::of::<G>(Dialect::Stage2, self.shape.is_wide(), word, level)
    }
}
