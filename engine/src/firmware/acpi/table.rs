//! Reading what all ACPI tables have in common: the header, little-endian fields, parts with a length.
//!
//! The header is that of ACPI Specification 6.5, section 5.2.6. A reader never reads past the part that
//! it was made for, and says where in the table it stands.

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

use crate::firmware::acpi::error::{AcpiError, Fault};

/// The first four bytes of a table.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Signature(pub [u8; 4]);

impl Signature {
    /// Reads the signature of a table.
    ///
    /// # Errors
    ///
    /// [`Fault::Truncated`] if there are less than four bytes.
    pub fn of(bytes: &[u8]) -> Result<Self, AcpiError> {
        match bytes.first_chunk() {
            Some(&signature) => Ok(Self(signature)),
            None => Err(AcpiError {
                table: Self([0; 4]),
                offset: 0,
                what: "the signature",
                fault: Fault::Truncated {
                    needed: 4,
                    available: bytes.len(),
                },
            }),
        }
    }
}

impl fmt::Display for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.escape_ascii().fmt(f)
    }
}

/// How long the header of every table is.
pub(super) const HEADER: usize = 36;

/// A part of a table, or all of it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Part<'a> {
    table: Signature,
    /// Where it begins in the table.
    offset: usize,
    bytes: &'a [u8],
}

impl<'a> Part<'a> {
    /// Opens a table with this signature: returns what its header says belongs to it, header included,
    /// and its revision.
    pub(super) fn open(signature: Signature, bytes: &'a [u8]) -> Result<(Self, u8), AcpiError> {
        let all = Self {
            table: signature,
            offset: 0,
            bytes,
        };
        let found = Signature::of(bytes)?;
        if found != signature {
            let value = u32::from_le_bytes(found.0).into();
            return Err(all.error(0, "the signature", Fault::Value { value }));
        }
        all.need(HEADER, "the header")?;
        let len = all.u32(4, "the length")? as usize;
        if len < HEADER {
            return Err(all.error(4, "the length", Fault::Length { len }));
        }
        let table = all.part(0, len, "the table")?;
        let sum = table
            .bytes
            .iter()
            .fold(0_u8, |sum, byte| sum.wrapping_add(*byte));
        if sum != 0 {
            return Err(all.error(0, "the bytes", Fault::Checksum { sum }));
        }
        Ok((table, table.u8(8, "the revision")?))
    }

    /// Says that something is wrong `at` bytes into this part.
    pub(super) const fn error(&self, at: usize, what: &'static str, fault: Fault) -> AcpiError {
        AcpiError {
            table: self.table,
            offset: self.offset.saturating_add(at),
            what,
            fault,
        }
    }

    /// Returns where this part begins in its table.
    pub(super) const fn offset(&self) -> usize {
        self.offset
    }

    pub(super) const fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Checks that there are `len` bytes at least.
    pub(super) const fn need(&self, len: usize, what: &'static str) -> Result<(), AcpiError> {
        if self.bytes.len() < len {
            let fault = Fault::Truncated {
                needed: len,
                available: self.bytes.len(),
            };
            return Err(self.error(0, what, fault));
        }
        Ok(())
    }

    /// Returns the `len` bytes at `at`.
    pub(super) fn part(
        &self,
        at: usize,
        len: usize,
        what: &'static str,
    ) -> Result<Self, AcpiError> {
        let rest = self.rest(at);
        match rest.bytes.get(..len) {
            Some(bytes) => Ok(Self { bytes, ..rest }),
            None => Err(rest.error(
                0,
                what,
                Fault::Truncated {
                    needed: len,
                    available: rest.len(),
                },
            )),
        }
    }

    /// Returns all from `at` on; nothing if that is past the end.
    pub(super) fn rest(&self, at: usize) -> Self {
        Self {
            table: self.table,
            offset: self.offset.saturating_add(at),
            bytes: self.bytes.get(at..).unwrap_or_default(),
        }
    }

    fn array<const N: usize>(&self, at: usize, what: &'static str) -> Result<[u8; N], AcpiError> {
        let rest = self.rest(at);
        rest.bytes.first_chunk().copied().ok_or_else(|| {
            let fault = Fault::Truncated {
                needed: N,
                available: rest.len(),
            };
            rest.error(0, what, fault)
        })
    }

    pub(super) fn u8(&self, at: usize, what: &'static str) -> Result<u8, AcpiError> {
        self.array::<1>(at, what).map(|[byte]| byte)
    }

    pub(super) fn u16(&self, at: usize, what: &'static str) -> Result<u16, AcpiError> {
        self.array(at, what).map(u16::from_le_bytes)
    }

    pub(super) fn u32(&self, at: usize, what: &'static str) -> Result<u32, AcpiError> {
        self.array(at, what).map(u32::from_le_bytes)
    }

    pub(super) fn u64(&self, at: usize, what: &'static str) -> Result<u64, AcpiError> {
        self.array(at, what).map(u64::from_le_bytes)
    }

    /// Returns the ASCII text at `at` that a zero ends.
    pub(super) fn text(&self, at: usize, what: &'static str) -> Result<String, AcpiError> {
        let rest = self.rest(at);
        let text = core::ffi::CStr::from_bytes_until_nul(rest.bytes)
            .ok()
            .and_then(|text| text.to_str().ok())
            .filter(|text| text.is_ascii());
        text.map(String::from)
            .ok_or_else(|| rest.error(0, what, Fault::Text))
    }

    /// Returns the ASCII text that fills all bytes but zeroes or blanks at the end.
    pub(super) fn padded_text(&self, what: &'static str) -> Result<String, AcpiError> {
        let len = self
            .bytes
            .iter()
            .rposition(|byte| !matches!(byte, 0 | b' '))
            .map_or(0, |last| last.saturating_add(1));
        match self.bytes.get(..len).map(core::str::from_utf8) {
            Some(Ok(text)) if text.bytes().all(|byte| byte.is_ascii_graphic()) => Ok(text.into()),
            _ => Err(self.error(0, what, Fault::Text)),
        }
    }

    /// Cuts off the first `len` bytes, which a length field of them says, and which must be `least` or
    /// more.
    pub(super) fn split(
        &mut self,
        len: usize,
        least: usize,
        what: &'static str,
    ) -> Result<Self, AcpiError> {
        if len < least {
            return Err(self.error(0, what, Fault::Length { len }));
        }
        let first = self.part(0, len, what)?;
        *self = self.rest(len);
        Ok(first)
    }
}

/// Which bytes of a part were used for what, where offsets in the part say it.
pub(super) struct Uses<'a> {
    part: Part<'a>,
    used: Vec<(usize, usize)>,
}

impl<'a> Uses<'a> {
    /// The first `fixed` bytes are used.
    pub(super) fn new(part: Part<'a>, fixed: usize, what: &'static str) -> Result<Self, AcpiError> {
        part.need(fixed, what)?;
        let used = [(0, fixed)].into();
        Ok(Self { part, used })
    }

    /// Returns `count` items of `size` bytes at `at`, which nothing else may use; none is nowhere.
    pub(super) fn array(
        &mut self,
        at: u32,
        count: u32,
        size: usize,
        what: &'static str,
    ) -> Result<impl Iterator<Item = Part<'a>> + use<'a>, AcpiError> {
        let (at, count) = (at as usize, count as usize);
        let part = self.part;
        let len = count
            .checked_mul(size)
            .ok_or_else(|| part.error(at, what, Fault::Overflow))?;
        let all = part.part(if count == 0 { 0 } else { at }, len, what)?;
        let end = at.saturating_add(len);
        let is_over = |&(start, other): &(usize, usize)| at < other && start < end;
        if count != 0 {
            if self.used.iter().any(is_over) {
                return Err(all.error(0, what, Fault::Overlap));
            }
            self.used.push((at, end));
        }
        Ok((0..count).map(move |index| {
            let at = index.saturating_mul(size);
            Part {
                offset: all.offset.saturating_add(at),
                bytes: all
                    .bytes
                    .get(at..)
                    .and_then(|rest| rest.get(..size))
                    .unwrap_or_default(),
                ..all
            }
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::firmware::acpi::testing::{Writer, fault};

    const TEST: Signature = Signature(*b"TEST");

    #[test]
    fn a_table_is_opened_up_to_its_own_length() {
        let mut bytes = Writer::table(*b"TEST", 7)
            .u64(0x0102_0304_0506_0708)
            .finish();
        bytes.extend([0xff; 3]);
        let (table, revision) = Part::open(TEST, &bytes).expect("it is whole");
        assert_eq!((table.len(), revision), (44, 7));
        assert_eq!(table.u64(36, "x"), Ok(0x0102_0304_0506_0708));
        assert_eq!(table.u32(37, "x"), Ok(0x0405_0607));
        assert_eq!(table.u16(42, "x"), Ok(0x0102));
        assert_eq!(
            table.u16(43, "x"),
            fault(
                *b"TEST",
                43,
                "x",
                Fault::Truncated {
                    needed: 2,
                    available: 1
                }
            )
        );
        let past = Fault::Truncated {
            needed: 1,
            available: 0,
        };
        assert_eq!(table.u8(1000, "x"), fault(*b"TEST", 1000, "x", past));
        assert_eq!(
            table.u8(usize::MAX, "x"),
            fault(*b"TEST", usize::MAX, "x", past)
        );
    }

    #[test]
    fn a_header_that_is_wrong_is_refused() {
        let good = Writer::table(*b"TEST", 0).u32(0).finish();
        let open = |bytes: &[u8]| Part::open(TEST, bytes).map(|_| ());
        assert_eq!(open(&good), Ok(()));

        let short = Fault::Truncated {
            needed: 4,
            available: 3,
        };
        assert_eq!(open(&good[..3]), fault([0; 4], 0, "the signature", short));
        let short = Fault::Truncated {
            needed: 36,
            available: 35,
        };
        assert_eq!(open(&good[..35]), fault(*b"TEST", 0, "the header", short));
        let short = Fault::Truncated {
            needed: 40,
            available: 39,
        };
        assert_eq!(open(&good[..39]), fault(*b"TEST", 0, "the table", short));

        let mut bytes = good.clone();
        bytes[39] = 0x11;
        let sum = Fault::Checksum { sum: 0x11 };
        assert_eq!(open(&bytes), fault(*b"TEST", 0, "the bytes", sum));
        bytes[4..8].fill(0);
        let length = Fault::Length { len: 0 };
        assert_eq!(open(&bytes), fault(*b"TEST", 4, "the length", length));
        bytes[0] = b'B';
        let other = Fault::Value { value: 0x5453_4542 };
        assert_eq!(open(&bytes), fault(*b"TEST", 0, "the signature", other));
    }

    #[test]
    fn text_ends_where_it_says_and_is_ascii() {
        let bytes = Writer::table(*b"TEST", 0)
            .bytes(b"\\_SB\0AMDI\0 \0\xc3\xa4\0")
            .finish();
        let (table, _) = Part::open(TEST, &bytes).expect("it is whole");
        assert_eq!(table.text(36, "x").as_deref(), Ok("\\_SB"));
        let hid = table.part(41, 7, "x").expect("it is there");
        assert_eq!(hid.padded_text("x").as_deref(), Ok("AMDI"));
        assert_eq!(
            table
                .part(40, 1, "x")
                .and_then(|part| part.padded_text("x"))
                .as_deref(),
            Ok("")
        );
        assert_eq!(table.text(48, "x"), fault(*b"TEST", 48, "x", Fault::Text));
        assert_eq!(table.text(51, "x"), fault(*b"TEST", 51, "x", Fault::Text));
        let part = table.part(41, 9, "x").expect("it is there");
        assert_eq!(part.padded_text("x"), fault(*b"TEST", 41, "x", Fault::Text));
    }

    #[test]
    fn an_array_lies_over_nothing_else_and_ends_with_its_part() {
        let bytes = Writer::table(*b"TEST", 0)
            .bytes(&[1, 2, 3, 4, 5, 6, 7])
            .finish();
        let (table, _) = Part::open(TEST, &bytes).expect("it is whole");
        let mut uses = Uses::new(table, 37, "the table").expect("it is that long");
        let items: Vec<_> = uses
            .array(38, 2, 2, "x")
            .expect("it fits")
            .map(|item| item.u16(0, "x"))
            .collect();
        assert_eq!(items, [Ok(0x0403), Ok(0x0605)]);
        let mut array = |at, count, size| uses.array(at, count, size, "x").map(|_| ());
        assert_eq!(array(0, 0, 2), Ok(()));
        assert_eq!(array(36, 1, 1), fault(*b"TEST", 36, "x", Fault::Overlap));
        assert_eq!(array(37, 2, 1), fault(*b"TEST", 37, "x", Fault::Overlap));
        assert_eq!(array(41, 1, 1), fault(*b"TEST", 41, "x", Fault::Overlap));
        let past = Fault::Truncated {
            needed: 2,
            available: 1,
        };
        assert_eq!(array(42, 1, 2), fault(*b"TEST", 42, "x", past));
        assert_eq!(array(37, 1, 1), Ok(()));
        assert_eq!(array(42, 1, 1), Ok(()));
        assert_eq!(
            array(1, u32::MAX, usize::MAX),
            fault(*b"TEST", 1, "x", Fault::Overflow)
        );
    }
}
