//! Tables for tests, written byte for byte.

use alloc::vec::Vec;

use crate::firmware::acpi::error::{AcpiError, Fault};
use crate::firmware::acpi::table::Signature;

/// Writes a table, or a part of one.
#[derive(Clone, Default)]
pub(crate) struct Writer(Vec<u8>);

impl Writer {
    /// Begins a table: the header of 36 bytes.
    pub(crate) fn table(signature: [u8; 4], revision: u8) -> Self {
        Self(Vec::new())
            .bytes(&signature)
            .u32(0)
            .u8(revision)
            .u8(0)
            .bytes(b"OEMID_OEMTABLE")
            .u32(1)
            .bytes(b"MAKE")
            .u32(1)
    }

    pub(crate) fn bytes(mut self, bytes: &[u8]) -> Self {
        self.0.extend(bytes);
        self
    }

    pub(crate) fn u8(self, value: u8) -> Self {
        self.bytes(&[value])
    }

    pub(crate) fn u16(self, value: u16) -> Self {
        self.bytes(&value.to_le_bytes())
    }

    pub(crate) fn u32(self, value: u32) -> Self {
        self.bytes(&value.to_le_bytes())
    }

    pub(crate) fn u64(self, value: u64) -> Self {
        self.bytes(&value.to_le_bytes())
    }

    /// Adds zeroes.
    pub(crate) fn zeroes(self, count: usize) -> Self {
        self.bytes(&alloc::vec![0; count])
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// Returns the bytes of a part.
    pub(crate) fn part(self) -> Vec<u8> {
        self.0
    }

    /// Writes the length and the checksum of a table.
    pub(crate) fn finish(self) -> Vec<u8> {
        let mut bytes = self.0;
        seal(&mut bytes);
        bytes
    }
}

/// Writes the length of a table, and its checksum.
pub(crate) fn seal(bytes: &mut [u8]) {
    let len = u32::try_from(bytes.len()).expect("it is short");
    bytes[4..8].copy_from_slice(&len.to_le_bytes());
    bytes[9] = 0;
    let sum = bytes.iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte));
    bytes[9] = sum.wrapping_neg();
}

/// The result that says what is wrong.
pub(crate) fn fault<T>(
    table: [u8; 4],
    offset: usize,
    what: &'static str,
    fault: Fault,
) -> Result<T, AcpiError> {
    let table = Signature(table);
    Err(AcpiError {
        table,
        offset,
        what,
        fault,
    })
}
