//! A writer of blobs for tests: what it is told, in that order, with the offsets set right.

use alloc::vec::Vec;

/// A blob to be.
pub(crate) struct Writer {
    structure: Vec<u8>,
    strings: Vec<u8>,
    reservations: Vec<u8>,
}

impl Writer {
    /// Begins with an open root.
    pub(crate) fn new() -> Self {
        Self::bare().begin("")
    }

    /// Begins with nothing.
    pub(crate) fn bare() -> Self {
        Self {
            structure: Vec::new(),
            strings: Vec::new(),
            reservations: Vec::new(),
        }
    }

    pub(crate) fn reserve(mut self, address: u64, size: u64) -> Self {
        self.reservations.extend(address.to_be_bytes());
        self.reservations.extend(size.to_be_bytes());
        self
    }

    /// One word of the structure block.
    pub(crate) fn word(mut self, word: u32) -> Self {
        self.structure.extend(word.to_be_bytes());
        self
    }

    pub(crate) fn begin(self, name: &str) -> Self {
        let mut writer = self.word(1);
        writer.structure.extend(name.as_bytes());
        writer.structure.push(0);
        writer.pad()
    }

    pub(crate) fn end(self) -> Self {
        self.word(2)
    }

    pub(crate) fn bytes(mut self, name: &str, value: &[u8]) -> Self {
        let name_at = u32::try_from(self.strings.len()).expect("tests are small");
        self.strings.extend(name.as_bytes());
        self.strings.push(0);
        let len = u32::try_from(value.len()).expect("tests are small");
        let mut writer = self.word(3).word(len).word(name_at);
        writer.structure.extend(value);
        writer.pad()
    }

    pub(crate) fn cells(self, name: &str, cells: &[u32]) -> Self {
        let bytes: Vec<u8> = cells.iter().flat_map(|cell| cell.to_be_bytes()).collect();
        self.bytes(name, &bytes)
    }

    pub(crate) fn text(self, name: &str, text: &str) -> Self {
        let mut bytes = text.as_bytes().to_vec();
        bytes.push(0);
        self.bytes(name, &bytes)
    }

    /// How long the structure block is now.
    pub(crate) fn at(&self) -> usize {
        self.structure.len()
    }

    /// Ends the root and the tree.
    pub(crate) fn finish(self) -> Vec<u8> {
        self.end().word(9).blob()
    }

    /// The blob of what there is.
    pub(crate) fn blob(self) -> Vec<u8> {
        let reservations = self.reserve(0, 0);
        let structure_at = 40 + reservations.reservations.len();
        let strings_at = structure_at + reservations.structure.len();
        let total = strings_at + reservations.strings.len();
        let header = [
            0xd00d_feed,
            total,
            structure_at,
            strings_at,
            40,
            17,
            16,
            0,
            reservations.strings.len(),
            reservations.structure.len(),
        ];
        let words = header.map(|word| u32::try_from(word).expect("tests are small"));
        let mut blob: Vec<u8> = words.iter().flat_map(|word| word.to_be_bytes()).collect();
        blob.extend(reservations.reservations);
        blob.extend(reservations.structure);
        blob.extend(reservations.strings);
        blob
    }

    fn pad(mut self) -> Self {
        let len = self.structure.len().next_multiple_of(4);
        self.structure.resize(len, 0);
        self
    }
}
