//! Raw memory dumps, read where a walk needs them.

use std::cell::RefCell;
use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};

use iopt_formats::Oa;

const BLOCK_LEN: usize = 4096;
/// Blocks kept in memory; a walk of more tables than that reads some of them again.
const MAX_BLOCKS: usize = 1 << 16;

/// A file that holds the memory from some address on.
#[derive(Debug)]
pub struct Ram {
    path: PathBuf,
    base: u64,
    len: u64,
    state: RefCell<State>,
}

#[derive(Debug)]
struct State {
    file: File,
    blocks: HashMap<u64, Box<[u8; BLOCK_LEN]>>,
    error: Option<io::Error>,
}

impl Ram {
    /// Opens the dump at `path` of the memory from `base` on.
    ///
    /// # Errors
    ///
    /// Whatever the system says about the file.
    pub fn open(path: &Path, base: Oa) -> io::Result<Self> {
        let mut file = File::open(path)?;
        let len = file.seek(SeekFrom::End(0))?;
        let state = State {
            file,
            blocks: HashMap::new(),
            error: None,
        };
        Ok(Self {
            path: path.into(),
            base: base.get(),
            len,
            state: RefCell::new(state),
        })
    }

    /// Returns the path of the file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the address of the first byte.
    pub fn base(&self) -> Oa {
        Oa::new(self.base)
    }

    /// Returns the number of bytes.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Returns whether the file holds nothing.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Returns the little-endian 64-bit word at `oa`, or `None` if it is not in the file, cannot
    /// be read, or `oa` is not a multiple of 8 from the base.
    pub fn word(&self, oa: Oa) -> Option<u64> {
        let offset = oa.get().checked_sub(self.base)?;
        if !offset.is_multiple_of(8) || self.len.checked_sub(offset)? < 8 {
            return None;
        }
        let mut state = self.state.borrow_mut();
        let block = state.block(offset / BLOCK_LEN as u64)?;
        let bytes = block.get(offset as usize % BLOCK_LEN..)?.first_chunk()?;
        Some(u64::from_le_bytes(*bytes))
    }

    /// Returns the first error met while reading, once.
    pub fn take_error(&self) -> Option<io::Error> {
        self.state.borrow_mut().error.take()
    }
}

impl State {
    fn block(&mut self, index: u64) -> Option<&[u8; BLOCK_LEN]> {
        if !self.blocks.contains_key(&index) {
            let block = self
                .read(index)
                .map_err(|error| self.error.get_or_insert(error))
                .ok()?;
            if self.blocks.len() >= MAX_BLOCKS {
                self.blocks.clear();
            }
            self.blocks.insert(index, block);
        }
        self.blocks.get(&index).map(|block| &**block)
    }

    /// Reads a block; the last one of the file may be short and is filled up with zeroes.
    fn read(&mut self, index: u64) -> io::Result<Box<[u8; BLOCK_LEN]>> {
        let mut block = Box::new([0; BLOCK_LEN]);
        self.file.seek(SeekFrom::Start(index * BLOCK_LEN as u64))?;
        let mut len = 0;
        while let Some(rest) = block.get_mut(len..).filter(|rest| !rest.is_empty()) {
            match self.file.read(rest) {
                Ok(0) => break,
                Ok(read) => len += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(block)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[test]
    fn words_are_found_by_address() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        let words = 0..1025_u64;
        let bytes: Vec<u8> = words.flat_map(|word| (word << 32).to_le_bytes()).collect();
        file.write_all(&bytes).unwrap();
        file.write_all(b"tail").unwrap();
        let ram = Ram::open(file.path(), Oa::new(0x8000_0000)).unwrap();
        assert_eq!(ram.len(), 1025 * 8 + 4);
        for index in [0, 1, 511, 512, 1023, 1024] {
            assert_eq!(
                ram.word(Oa::new(0x8000_0000 + index * 8)),
                Some(index << 32)
            );
        }
        for oa in [
            0,
            0x7fff_fff8,
            0x8000_0004,
            0x8000_0000 + 1025 * 8,
            u64::MAX,
        ] {
            assert_eq!(ram.word(Oa::new(oa)), None, "{oa:#x}");
        }
        assert!(ram.take_error().is_none());
    }
}
