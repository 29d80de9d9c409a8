//! Tables dumped from a guest's memory, with what they should translate.
//!
//! `NAME.json.gz` (the sidecar) holds the registers, the streams and the expected leaves;
//! `NAME.pages.gz` beside it holds the pages of the tables: `{ u64 little-endian address; 4096
//! bytes }`, ascending.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use iopt_formats::Oa;
use serde::{Deserialize, Deserializer, de};

use crate::input;

/// Most bytes of a sidecar once decompressed.
pub const MAX_SIDECAR_LEN: u64 = 256 << 20;
/// Most bytes of a pages file once decompressed.
pub const MAX_PAGES_LEN: u64 = 1 << 30;

const PAGE_LEN: usize = 4096;

/// The kind of IOMMU that walked the tables.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq)]
#[serde(rename_all = "lowercase")]
pub enum Platform {
    /// Arm SMMUv3.
    #[serde(rename = "smmuv3")]
    SmmuV3,
    /// Intel VT-d, legacy or scalable mode.
    Vtd,
    /// AMD-Vi.
    Amd,
    /// RISC-V IOMMU.
    Riscv,
}

/// A number that the sidecar spells in hexadecimal text.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Word(pub u64);

impl<'de> Deserialize<'de> for Word {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;

        impl de::Visitor<'_> for Visitor {
            type Value = Word;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a 64-bit number as text, in hexadecimal with 0x")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Word, E> {
                let invalid = || E::invalid_value(de::Unexpected::Str(text), &self);
                input::hex(text).map(Word).ok_or_else(invalid)
            }
        }

        deserializer.deserialize_str(Visitor)
    }
}

/// One requester id and the raw words that its device's requests lead to. Which words there are
/// depends on the platform.
#[derive(Clone, Debug, Deserialize)]
pub struct Stream {
    /// The requester id.
    pub sid: u32,
    /// SMMUv3: stream table entry.
    pub ste: Option<Vec<Word>>,
    /// SMMUv3: context descriptor.
    pub cd: Option<Vec<Word>>,
    /// VT-d: context entry.
    pub ctx: Option<Vec<Word>>,
    /// VT-d scalable mode: entry of PASID 0.
    pub pasid0: Option<Vec<Word>>,
    /// AMD: device table entry.
    pub dte: Option<Vec<Word>>,
    /// RISC-V: device context.
    pub dc: Option<Vec<Word>>,
}

/// One leaf item: address, output address, bytes, raw item.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq)]
pub struct ExpectedLeaf(pub Word, pub Word, pub u64, pub Word);

/// One domain and everything that it translates.
#[derive(Clone, Debug, Deserialize)]
pub struct ExpectedDomain {
    /// Short name of the kind of table: `s1`, `s2`, `ss`, `fs`, `v1`.
    pub kind: String,
    /// Where the root table lies.
    #[serde(alias = "ttb0")]
    pub root: Word,
    /// Requester ids of the devices in it.
    pub sids: Vec<u32>,
    /// Its leaf items, lowest address first.
    pub leaves: Vec<ExpectedLeaf>,
}

/// A piece of the guest's memory map.
#[derive(Clone, Copy, Debug, Deserialize)]
pub struct RamPiece {
    /// First byte.
    pub base: Word,
    /// Bytes.
    pub size: u64,
}

#[derive(Debug, Deserialize)]
struct Sidecar {
    format: Platform,
    registers: BTreeMap<String, Word>,
    streams: Vec<Stream>,
    domains: Vec<ExpectedDomain>,
    ram: Vec<RamPiece>,
    pages_file: String,
    pages: usize,
}

/// The memory that a pages file holds.
#[derive(Clone, Debug, Default)]
pub struct Pages {
    pages: BTreeMap<u64, Box<[u8; PAGE_LEN]>>,
}

impl Pages {
    /// Returns the little-endian 64-bit word at `oa`, or `None` if its page is not in the file or
    /// `oa` is not a multiple of 8.
    pub fn word(&self, oa: Oa) -> Option<u64> {
        let offset = (oa.get() as usize) & (PAGE_LEN - 1);
        let page = self.pages.get(&(oa.get() - offset as u64))?;
        let bytes = page.get(offset..)?.first_chunk()?;
        oa.get()
            .is_multiple_of(8)
            .then_some(u64::from_le_bytes(*bytes))
    }

    /// Returns the number of bytes.
    #[expect(
        clippy::len_without_is_empty,
        reason = "tables without any memory are no case of use"
    )]
    pub fn len(&self) -> u64 {
        self.pages.len() as u64 * PAGE_LEN as u64
    }

    /// Returns the number of pages.
    pub fn count(&self) -> usize {
        self.pages.len()
    }

    fn read(mut reader: impl Read) -> Result<Self, FixtureFault> {
        let mut pages = BTreeMap::new();
        let mut record = [0; 8 + PAGE_LEN];
        loop {
            match read_full(&mut reader, &mut record)? {
                0 => return Ok(Self { pages }),
                len if len < record.len() => {
                    return Err(FixtureFault::CutRecord { index: pages.len() });
                }
                _ => {}
            }
            let (address, bytes) = record.split_first_chunk().expect("a record holds 8 bytes");
            let address = u64::from_le_bytes(*address);
            let is_above = pages
                .last_key_value()
                .is_none_or(|(&last, _)| last < address);
            if !is_above || !address.is_multiple_of(PAGE_LEN as u64) {
                return Err(FixtureFault::Address {
                    index: pages.len(),
                    address,
                });
            }
            let bytes = bytes.try_into().expect("the rest of a record is a page");
            pages.insert(address, Box::new(bytes));
        }
    }
}

/// Reads until `buffer` is full or the input ends, and returns how many bytes were read.
fn read_full(reader: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut len = 0;
    while let Some(rest) = buffer.get_mut(len..).filter(|rest| !rest.is_empty()) {
        match reader.read(rest) {
            Ok(0) => break,
            Ok(read) => len += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(len)
}

/// Dumped tables and the answer that they should give.
#[derive(Clone, Debug)]
pub struct Fixture {
    /// The kind of IOMMU.
    pub platform: Platform,
    /// Registers by the name that the manual gives them.
    pub registers: BTreeMap<String, u64>,
    /// Streams by rising requester id.
    pub streams: Vec<Stream>,
    /// The expected domains.
    pub domains: Vec<ExpectedDomain>,
    /// The guest's memory map.
    pub ram: Vec<RamPiece>,
    /// The tables.
    pub pages: Pages,
    /// Path of the pages file.
    pub pages_path: PathBuf,
}

/// What is wrong with one file of a fixture.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FixtureFault {
    /// The file cannot be read.
    #[error(transparent)]
    Read(#[from] io::Error),
    /// The sidecar is not the JSON that it should be.
    #[error(transparent)]
    Json(#[from] serde_json::Error),
    /// The sidecar names a pages file outside of its own folder.
    #[error("`pages_file` {0:?} is not a plain file name")]
    PagesName(String),
    /// The last record of the pages file is not whole.
    #[error("record {index} is cut short")]
    CutRecord {
        /// Position of the record, from 0.
        index: usize,
    },
    /// A page stands at an impossible address.
    #[error("record {index}: page address {address:#x} is unaligned or not above the one before")]
    Address {
        /// Position of the record, from 0.
        index: usize,
        /// The address.
        address: u64,
    },
    /// The pages file does not hold as many pages as the sidecar says.
    #[error("{found} pages, but the sidecar says {expected}")]
    PageCount {
        /// Pages in the file.
        found: usize,
        /// Pages expected.
        expected: usize,
    },
}

/// A fault and the file that has it.
#[derive(Debug, thiserror::Error)]
#[error("{}: {fault}", path.display())]
pub struct FixtureError {
    /// The file.
    pub path: PathBuf,
    /// What is wrong with it.
    #[source]
    pub fault: FixtureFault,
}

impl Fixture {
    /// Reads the sidecar at `path` and the pages file that it names, which lies beside it.
    ///
    /// # Errors
    ///
    /// [`FixtureError`] names the file.
    pub fn open(path: &Path) -> Result<Self, FixtureError> {
        let sidecar = input::open(path, MAX_SIDECAR_LEN).map_err(|error| FixtureError {
            path: path.into(),
            fault: error.into(),
        })?;
        Self::read(path, sidecar, |path| input::open(path, MAX_PAGES_LEN))
    }

    /// Reads a sidecar that stands at `path`, and the pages file beside it, which `open_pages` opens.
    ///
    /// # Errors
    ///
    /// [`FixtureError`] names the file.
    pub fn read<R: Read>(
        path: &Path,
        sidecar: impl Read,
        open_pages: impl FnOnce(&Path) -> io::Result<R>,
    ) -> Result<Self, FixtureError> {
        let error = |fault| FixtureError {
            path: path.into(),
            fault,
        };
        let sidecar = read_sidecar(sidecar).map_err(error)?;
        // A sidecar from elsewhere must not make us read files of its choice.
        if Path::new(&sidecar.pages_file).file_name() != Some(sidecar.pages_file.as_ref()) {
            return Err(error(FixtureFault::PagesName(sidecar.pages_file)));
        }
        let pages_path = path.with_file_name(&sidecar.pages_file);
        let pages = open_pages(&pages_path).map_err(FixtureFault::from);
        let pages = pages.and_then(|pages| read_pages(pages, sidecar.pages));
        let pages = pages.map_err(|fault| FixtureError {
            path: pages_path.clone(),
            fault,
        })?;
        let registers = sidecar
            .registers
            .into_iter()
            .map(|(name, word)| (name, word.0))
            .collect();
        let mut streams = sidecar.streams;
        streams.sort_by_key(|stream| stream.sid);
        Ok(Self {
            platform: sidecar.format,
            registers,
            streams,
            domains: sidecar.domains,
            ram: sidecar.ram,
            pages,
            pages_path,
        })
    }

    /// Returns the number of leaf items that the sidecar expects.
    pub fn leaf_count(&self) -> usize {
        self.domains.iter().map(|domain| domain.leaves.len()).sum()
    }
}

fn read_sidecar(mut reader: impl Read) -> Result<Sidecar, FixtureFault> {
    let mut json = Vec::new();
    reader.read_to_end(&mut json)?;
    Ok(serde_json::from_slice(&json)?)
}

fn read_pages(reader: impl Read, expected: usize) -> Result<Pages, FixtureFault> {
    let pages = Pages::read(reader)?;
    let found = pages.count();
    if found == expected {
        Ok(pages)
    } else {
        Err(FixtureFault::PageCount { found, expected })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(address: u64, first_word: u64) -> Vec<u8> {
        let mut bytes = address.to_le_bytes().to_vec();
        bytes.extend(first_word.to_le_bytes());
        bytes.resize(8 + PAGE_LEN, 0xff);
        bytes
    }

    fn read(bytes: &[u8]) -> Result<Pages, String> {
        Pages::read(bytes).map_err(|fault| fault.to_string())
    }

    #[test]
    fn words_are_little_endian_and_aligned() {
        let pages =
            read(&[record(0x1000, 0x0102_0304_0506_0708), record(0x3000, 7)].concat()).unwrap();
        assert_eq!(pages.word(Oa::new(0x1000)), Some(0x0102_0304_0506_0708));
        assert_eq!(pages.word(Oa::new(0x1ff8)), Some(u64::MAX));
        assert_eq!(pages.word(Oa::new(0x3000)), Some(7));
        for oa in [0, 0x0fff, 0x1004, 0x2000, 0x1ffc, u64::MAX, u64::MAX - 7] {
            assert_eq!(pages.word(Oa::new(oa)), None, "{oa:#x}");
        }
    }

    #[test]
    fn damaged_pages_are_refused() {
        let two = [record(0x1000, 0), record(0x2000, 0)].concat();
        assert_eq!(
            read(&two[..two.len() - 1]).unwrap_err(),
            "record 1 is cut short"
        );
        assert_eq!(read(&two[..1]).unwrap_err(), "record 0 is cut short");
        let twice = [record(0x1000, 0), record(0x1000, 0)].concat();
        assert_eq!(
            read(&twice).unwrap_err(),
            "record 1: page address 0x1000 is unaligned or not above the one before"
        );
        assert!(read(&record(0x1008, 0)).is_err());
    }

    #[test]
    fn numbers_of_a_sidecar_are_hexadecimal_text() {
        assert_eq!(serde_json::from_str::<Word>("\"0xff\"").unwrap(), Word(255));
        for json in ["\"ff\"", "\"0x\"", "\"0x1ffffffffffffffff\"", "255", "null"] {
            assert!(serde_json::from_str::<Word>(json).is_err(), "{json}");
        }
    }
}
