//! Files that may be gzip-compressed, read within limits.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;

use flate2::bufread::MultiGzDecoder;

/// Most bytes that a trace or a flush file may hold once decompressed.
pub const MAX_TEXT_LEN: u64 = 512 << 20;
/// Most bytes of one line.
pub const MAX_LINE_LEN: usize = 1024;

/// Opens the file at `path`, which is decompressed while it is read if it starts like gzip data.
///
/// Reading more than `limit` bytes gives an error, so that a small file cannot fill the memory.
///
/// # Errors
///
/// Whatever the system says about the file.
pub fn open(path: &Path, limit: u64) -> io::Result<BufReader<Limited>> {
    let mut file = BufReader::with_capacity(1 << 16, File::open(path)?);
    let inner: Box<dyn Read + Send> = if file.fill_buf()?.starts_with(&[0x1f, 0x8b]) {
        Box::new(MultiGzDecoder::new(file))
    } else {
        Box::new(file)
    };
    Ok(BufReader::with_capacity(
        1 << 16,
        Limited {
            inner,
            left: limit,
            limit,
        },
    ))
}

/// A reader that fails after a number of bytes.
#[expect(
    missing_debug_implementations,
    reason = "there is nothing to say about a boxed reader"
)]
pub struct Limited {
    inner: Box<dyn Read + Send>,
    left: u64,
    limit: u64,
}

impl Read for Limited {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let len = self
            .inner
            .read(buffer)
            .map_err(|error| match error.kind() {
                io::ErrorKind::UnexpectedEof => {
                    io::Error::new(error.kind(), "the gzip data is cut short")
                }
                io::ErrorKind::InvalidInput | io::ErrorKind::InvalidData => {
                    io::Error::new(error.kind(), "the gzip data is damaged")
                }
                _ => error,
            })?;
        let too_large = || io::Error::other(format!("more than {} bytes of data", self.limit));
        self.left = self.left.checked_sub(len as u64).ok_or_else(too_large)?;
        Ok(len)
    }
}

/// Why no further line can be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LineError {
    /// The file cannot be read.
    #[error(transparent)]
    Read(#[from] io::Error),
    /// The last line has no end, so it may have been longer.
    #[error("the line is cut: it has no line end")]
    Cut,
    /// The line is longer than any that the format has.
    #[error("the line is longer than {MAX_LINE_LEN} bytes")]
    TooLong,
    /// The line is not text.
    #[error("the line is not UTF-8 text")]
    NotText,
}

/// The lines of a text file, numbered from 1.
#[derive(Debug)]
pub struct Lines<R> {
    reader: R,
    number: u64,
    line: Vec<u8>,
}

impl<R: BufRead> Lines<R> {
    /// Starts before the first line.
    pub fn new(reader: R) -> Self {
        Self {
            reader,
            number: 0,
            line: Vec::new(),
        }
    }

    /// Returns the number of the line read last, 0 before the first one.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// Reads one line and returns it without its end, or `None` at the end of the file.
    ///
    /// # Errors
    ///
    /// [`LineError`]; [`number`](Self::number) is the line that cannot be read.
    pub fn read(&mut self) -> Result<Option<&str>, LineError> {
        self.line.clear();
        self.number += 1;
        let mut limited = self.reader.by_ref().take(MAX_LINE_LEN as u64 + 1);
        if limited.read_until(b'\n', &mut self.line)? == 0 {
            return Ok(None);
        }
        match self.line.pop() {
            Some(b'\n') => {}
            _ if self.line.len() >= MAX_LINE_LEN => return Err(LineError::TooLong),
            _ => return Err(LineError::Cut),
        }
        str::from_utf8(&self.line)
            .map(Some)
            .map_err(|_| LineError::NotText)
    }
}

/// Parses a hexadecimal number with its `0x`.
pub(crate) fn hex(text: &str) -> Option<u64> {
    let digits = text.strip_prefix("0x")?;
    // `from_str_radix` would accept a sign.
    let is_number = digits.bytes().all(|digit| digit.is_ascii_hexdigit());
    if is_number {
        u64::from_str_radix(digits, 16).ok()
    } else {
        None
    }
}

/// Parses a decimal number.
pub(crate) fn decimal(text: &str) -> Option<u64> {
    let is_number = text.bytes().all(|digit| digit.is_ascii_digit());
    if is_number { text.parse().ok() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_no_sign_and_no_space() {
        assert_eq!(hex("0x0"), Some(0));
        assert_eq!(hex("0xffffffffffffffff"), Some(u64::MAX));
        for text in ["", "0x", "10", "0x+1", "0x 1", "0x10000000000000000", "0xg"] {
            assert_eq!(hex(text), None, "{text:?}");
        }
        assert_eq!(decimal("18446744073709551615"), Some(u64::MAX));
        for text in ["", "+1", "-1", "1 ", "0x1", "18446744073709551616"] {
            assert_eq!(decimal(text), None, "{text:?}");
        }
    }

    #[test]
    fn a_last_line_without_an_end_is_refused() {
        let mut lines = Lines::new(&b"one\ntwo"[..]);
        assert_eq!(lines.read().unwrap(), Some("one"));
        assert!(matches!(lines.read(), Err(LineError::Cut)));
        assert_eq!(lines.number(), 2);
    }

    #[test]
    fn a_line_without_end_does_not_fill_the_memory() {
        let mut lines = Lines::new(io::repeat(b'a').take(1 << 40).chain(io::empty()).buffered());
        assert!(matches!(lines.read(), Err(LineError::TooLong)));
    }

    #[test]
    fn the_longest_line_is_accepted() {
        let text = "a".repeat(MAX_LINE_LEN) + "\n";
        assert_eq!(
            Lines::new(text.as_bytes()).read().unwrap().map(str::len),
            Some(MAX_LINE_LEN)
        );
        let text = "a".repeat(MAX_LINE_LEN + 1) + "\n";
        assert!(matches!(
            Lines::new(text.as_bytes()).read(),
            Err(LineError::TooLong)
        ));
    }

    #[test]
    fn more_bytes_than_the_limit_are_an_error() {
        let mut text = String::new();
        let mut input = Limited {
            inner: Box::new(io::repeat(b'a')),
            left: 100,
            limit: 100,
        };
        let error = input.read_to_string(&mut text).unwrap_err();
        assert_eq!(error.to_string(), "more than 100 bytes of data");
    }

    trait Buffered: Read + Sized {
        fn buffered(self) -> BufReader<Self> {
            BufReader::new(self)
        }
    }

    impl<R: Read> Buffered for R {}
}
