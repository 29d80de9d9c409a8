//! The register `RTADDR_REG` and the root table that it points to.
//!
//! Source: VT-d specification, revision 4.1, sections 9.1 and 9.2 and the description of the register.
//!
//! Both halves of a root entry are words of their own, so an update is one store and needs no order.

use super::{ContextError, POINTER_TOO_WIDE, PRESENT, TableMode, check_pointer, pointer, refuse};
use crate::{Bits, Field, Oa};

/// TTM: the layout of the tables.
const TABLE_MODE: Bits<11, 10> = Bits;
/// TTM of abort-DMA mode.
const ABORT: u64 = 0b11;
const REGISTER: &str = "root table address";
const ENTRY: &str = "root entry";

/// The root table, as the register `RTADDR_REG` describes it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct RootTable {
    mode: TableMode,
    oa: Oa,
}

impl RootTable {
    /// The named fields of the register.
    pub const FIELDS: &[Field] = &[Field::new("TTM", 11, 10), Field::new("RTA", 63, 12)];

    /// The register in abort-DMA mode, where every request is blocked.
    pub const ABORT_DMA: u64 = TABLE_MODE.put(ABORT);

    /// Describes the table of 256 root entries at `oa`.
    ///
    /// # Errors
    ///
    /// [`ContextError::Pointer`] unless `oa` is aligned to 4 KiB and below 2^52.
    pub fn new(mode: TableMode, oa: Oa) -> Result<Self, ContextError> {
        check_pointer(REGISTER, oa)?;
        Ok(Self { mode, oa })
    }

    /// Decodes the register, or returns `None` in abort-DMA mode, where every request is blocked.
    ///
    /// # Errors
    ///
    /// [`ContextError::Reserved`] and [`ContextError::TableMode`].
    pub fn decode(register: u64) -> Result<Option<Self>, ContextError> {
        const RESERVED: Bits<9, 0> = Bits;
        refuse(
            REGISTER,
            0,
            register,
            RESERVED.mask() | POINTER_TOO_WIDE.mask(),
        )?;
        let mode = match TABLE_MODE.get(register) {
            0b00 => TableMode::Legacy,
            0b01 => TableMode::Scalable,
            ABORT => return Ok(None),
            value => return Err(ContextError::TableMode { value: value as u8 }),
        };
        Ok(Some(Self {
            mode,
            oa: pointer(register),
        }))
    }

    /// Returns the register's value. Hardware ignores the address in abort-DMA mode, so that mode has
    /// one value, [`ABORT_DMA`](Self::ABORT_DMA).
    pub const fn encode(self) -> u64 {
        let mode = match self.mode {
            TableMode::Legacy => 0b00,
            TableMode::Scalable => 0b01,
        };
        self.oa.get() | TABLE_MODE.put(mode)
    }

    /// Returns the layout of the context entries.
    pub const fn mode(self) -> TableMode {
        self.mode
    }

    /// Returns where the table of 256 root entries lies.
    pub const fn oa(self) -> Oa {
        self.oa
    }

    /// Returns the address of the root entry of `bus`, two words.
    pub const fn entry(self, bus: u8) -> Oa {
        Oa::new(self.oa.get() | (bus as u64 * 16))
    }
}

/// A root entry: the context tables of one bus.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct RootEntry {
    mode: TableMode,
    lower: Option<Oa>,
    upper: Option<Oa>,
}

impl RootEntry {
    /// Describes the 256 context entries of legacy mode at `table`, or their absence.
    ///
    /// # Errors
    ///
    /// [`ContextError::Pointer`] unless `table` is aligned to 4 KiB and below 2^52.
    pub fn legacy(table: Option<Oa>) -> Result<Self, ContextError> {
        check_table(table)?;
        Ok(Self::with_legacy_table(table))
    }

    /// Describes the two tables of 128 context entries of scalable mode, or their absence: of
    /// devices 0 to 15 at `lower`, 16 to 31 at `upper`.
    ///
    /// # Errors
    ///
    /// [`ContextError::Pointer`] unless both are aligned to 4 KiB and below 2^52.
    pub fn scalable(lower: Option<Oa>, upper: Option<Oa>) -> Result<Self, ContextError> {
        check_table(lower)?;
        check_table(upper)?;
        let mode = TableMode::Scalable;
        Ok(Self { mode, lower, upper })
    }

    fn with_legacy_table(table: Option<Oa>) -> Self {
        let mode = TableMode::Legacy;
        Self {
            mode,
            lower: table,
            upper: table.and_then(|table| table.checked_add(128 * mode.context_len())),
        }
    }

    /// Decodes the two words of an entry.
    ///
    /// # Errors
    ///
    /// [`ContextError::Reserved`].
    pub fn decode(words: [u64; 2], mode: TableMode) -> Result<Self, ContextError> {
        const RESERVED: Bits<11, 1> = Bits;
        let half = |word: usize| {
            if words[word] & PRESENT == 0 {
                return Ok(None);
            }
            let reserved = RESERVED.mask() | POINTER_TOO_WIDE.mask();
            refuse(ENTRY, word, words[word], reserved)?;
            Ok(Some(pointer(words[word])))
        };
        let lower = half(0)?;
        if mode == TableMode::Scalable {
            let upper = half(1)?;
            return Ok(Self { mode, lower, upper });
        }
        if lower.is_some() {
            refuse(ENTRY, 1, words[1], u64::MAX)?;
        }
        Ok(Self::with_legacy_table(lower))
    }

    /// Returns the two words. Those of a half that is not present, whose pointer hardware ignores, are
    /// zero.
    pub fn encode(self) -> [u64; 2] {
        let half = |table: Option<Oa>| table.map_or(0, |table| table.get() | PRESENT);
        match self.mode {
            TableMode::Legacy => [half(self.lower), 0],
            TableMode::Scalable => [half(self.lower), half(self.upper)],
        }
    }

    /// Returns the layout of the context entries.
    pub const fn mode(self) -> TableMode {
        self.mode
    }

    /// Returns where the 128 context entries of devices 0 to 15 lie, if present.
    pub const fn lower(self) -> Option<Oa> {
        self.lower
    }

    /// Returns where those of devices 16 to 31 lie; in legacy mode, right behind the others.
    pub const fn upper(self) -> Option<Oa> {
        self.upper
    }

    /// Returns the address of the context entry of `devfn`, the device number in the upper five bits
    /// and the function in the lower three, or `None` if its table is not present.
    pub fn context(self, devfn: u8) -> Option<Oa> {
        let table = if devfn < 128 { self.lower } else { self.upper };
        table?.checked_add(u64::from(devfn & 127) * self.mode.context_len())
    }

    /// Returns the named fields of both words.
    pub const fn fields(mode: TableMode) -> [&'static [Field]; 2] {
        const LEGACY: [&[Field]; 2] = [&[Field::new("P", 0, 0), Field::new("CTP", 63, 12)], &[]];
        const SCALABLE: [&[Field]; 2] = [
            &[Field::new("LP", 0, 0), Field::new("LCTP", 63, 12)],
            &[Field::new("UP", 0, 0), Field::new("UCTP", 63, 12)],
        ];
        match mode {
            TableMode::Legacy => LEGACY,
            TableMode::Scalable => SCALABLE,
        }
    }
}

fn check_table(table: Option<Oa>) -> Result<(), ContextError> {
    table.map_or(Ok(()), |table| check_pointer(ENTRY, table))
}
