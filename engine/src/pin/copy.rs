//! Copies to and from memory that others change meanwhile.
//!
//! Threads, other programs and devices may use the memory at the same time, so that it is touched
//! by relaxed atomic accesses only, and always by whole aligned words: atomic accesses of different
//! sizes that overlap are no better than plain ones. Bytes at the edges are cut out of a word, or
//! put into it by a compare-and-exchange that leaves its other bytes to whoever changes them.

#![expect(unsafe_code, reason = "memory that no reference may point to")]

use std::io;

use crate::sync::unmodelled::{AtomicU64, Ordering};

/// Bytes of a word.
const WORD_LEN: usize = size_of::<AtomicU64>();

/// Memory in words.
#[derive(Clone, Copy, Debug)]
pub(super) struct SharedBytes {
    start: *mut AtomicU64,
}

impl SharedBytes {
    /// Creates the view of the memory at `start`, the first of words that are aligned.
    pub(super) const fn new(start: *mut AtomicU64) -> Self {
        Self { start }
    }

    /// Copies what lies at `offset`.
    ///
    /// # Safety
    ///
    /// Every word that has a byte of the range is mapped and may be read. Whatever this program
    /// does to it at the same time is atomic, by words.
    pub(super) unsafe fn read(self, offset: usize, into: &mut [u8]) {
        let (head_len, word) = head(offset, into.len());
        let (head, rest) = into.split_at_mut(head_len);
        if head_len > 0 {
            // SAFETY: the word has a byte of the range: the caller answers for it.
            let bytes = unsafe { self.load(word) };
            head.copy_from_slice(&bytes[offset - word..][..head_len]);
        }
        let mut at = offset + head_len;
        let mut chunks = rest.chunks_exact_mut(WORD_LEN);
        for chunk in &mut chunks {
            // SAFETY: as above.
            let bytes = unsafe { self.load(at) };
            chunk.copy_from_slice(&bytes);
            at += WORD_LEN;
        }
        let tail = chunks.into_remainder();
        if !tail.is_empty() {
            // SAFETY: as above.
            let bytes = unsafe { self.load(at) };
            tail.copy_from_slice(&bytes[..tail.len()]);
        }
    }

    /// Changes what lies at `offset`.
    ///
    /// # Safety
    ///
    /// As for [`read`](Self::read), and every such word may be written.
    pub(super) unsafe fn write(self, offset: usize, from: &[u8]) {
        let (head_len, word) = head(offset, from.len());
        let (head, rest) = from.split_at(head_len);
        if head_len > 0 {
            // SAFETY: the word has a byte of the range: the caller answers for it.
            unsafe { self.merge(word, offset - word, head) };
        }
        let mut at = offset + head_len;
        let (words, tail) = rest.as_chunks::<WORD_LEN>();
        for bytes in words {
            // SAFETY: as above.
            let word = unsafe { self.word(at) };
            word.store(u64::from_ne_bytes(*bytes), Ordering::Relaxed);
            at += WORD_LEN;
        }
        if !tail.is_empty() {
            // SAFETY: as above.
            unsafe { self.merge(at, 0, tail) };
        }
    }

    /// # Safety
    ///
    /// As for [`word`](Self::word).
    unsafe fn load(self, offset: usize) -> [u8; WORD_LEN] {
        // SAFETY: the caller's contract is the same.
        let word = unsafe { self.word(offset) };
        word.load(Ordering::Relaxed).to_ne_bytes()
    }

    /// Replaces the bytes of a word from `first` on by `bytes`.
    ///
    /// # Safety
    ///
    /// As for [`word`](Self::word), and the word may be written.
    unsafe fn merge(self, offset: usize, first: usize, bytes: &[u8]) {
        let merge = |old: u64| {
            let mut new = old.to_ne_bytes();
            new[first..first + bytes.len()].copy_from_slice(bytes);
            Some(u64::from_ne_bytes(new))
        };
        // SAFETY: the caller's contract is the same.
        let word = unsafe { self.word(offset) };
        let merged = word.fetch_update(Ordering::Relaxed, Ordering::Relaxed, merge);
        debug_assert!(merged.is_ok(), "every word can be merged");
    }

    /// Returns the word at `offset`, a multiple of its size.
    ///
    /// # Safety
    ///
    /// The word is mapped for as long as the result is used, may be read, and this program accesses
    /// it by atomics of its size alone while it does. A word that may not be written is only loaded,
    /// relaxed, which atomics of up to a pointer's size allow.
    unsafe fn word<'a>(self, offset: usize) -> &'a AtomicU64 {
        let word = self.start.wrapping_byte_add(offset);
        // SAFETY: it is aligned, because `start` and `offset` are; the rest is the caller's contract.
        unsafe { &*word }
    }
}

/// Copies what lies at `from`, as the system does it, which finds pages missing without harm to the
/// program.
///
/// # Errors
///
/// [`CopyError`] says how far it came.
pub(super) fn read_checked(from: *const u8, into: &mut [u8]) -> Result<(), CopyError> {
    let len = into.len();
    let into = into.as_mut_ptr();
    transfer(len, |done| {
        let local = part_of(into.wrapping_add(done), len - done);
        let remote = part_of(from.wrapping_add(done).cast_mut(), len - done);
        // SAFETY: the local bytes are the slice's, which is borrowed for writing; the system checks
        // each page at the other end, and reads it as another program would.
        unsafe { libc::process_vm_readv(own_id(), &raw const local, 1, &raw const remote, 1, 0) }
    })
}

/// Changes what lies at `into`, as [`read_checked`] reads.
///
/// # Safety
///
/// Where memory that may be written is mapped in the range, it may be changed at any time.
///
/// # Errors
///
/// As for [`read_checked`].
pub(super) unsafe fn write_checked(into: *mut u8, from: &[u8]) -> Result<(), CopyError> {
    let len = from.len();
    let from = from.as_ptr().cast_mut();
    transfer(len, |done| {
        let local = part_of(from.wrapping_add(done), len - done);
        let remote = part_of(into.wrapping_add(done), len - done);
        // SAFETY: the local bytes are the slice's and only read; the system checks each page at the
        // other end, which may be changed by the caller's contract.
        unsafe { libc::process_vm_writev(own_id(), &raw const local, 1, &raw const remote, 1, 0) }
    })
}

/// Why and where the system did not go on.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct CopyError {
    /// Bytes that were copied.
    pub(super) done: usize,
    /// The system's number of the error; that of a bad address if it gave none.
    pub(super) errno: i32,
}

const fn part_of(base: *mut u8, len: usize) -> libc::iovec {
    libc::iovec {
        iov_base: base.cast(),
        iov_len: len,
    }
}

/// Returns the program's own id, as the system calls take it.
fn own_id() -> libc::pid_t {
    std::process::id().cast_signed()
}

/// Calls `copy` with the bytes that are done until `len` are.
fn transfer(len: usize, mut copy: impl FnMut(usize) -> isize) -> Result<(), CopyError> {
    let mut done = 0;
    while done < len {
        match usize::try_from(copy(done)) {
            Ok(0) => {
                let errno = libc::EFAULT;
                return Err(CopyError { done, errno });
            }
            // The system stops early at a page that is missing, and says so when asked again.
            Ok(count) => done += count,
            Err(_) => {
                let errno = io::Error::last_os_error().raw_os_error();
                let errno = errno.unwrap_or(libc::EFAULT);
                if errno != libc::EINTR {
                    return Err(CopyError { done, errno });
                }
            }
        }
    }
    Ok(())
}

/// Returns how many of `len` bytes at `offset` stand in a word whose first byte is not among them,
/// and where it begins.
fn head(offset: usize, len: usize) -> (usize, usize) {
    let word = offset & !(WORD_LEN - 1);
    let head_len = if offset == word {
        0
    } else {
        (word + WORD_LEN - offset).min(len)
    };
    (head_len, word)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_offset_and_length_moves_exactly_its_bytes() {
        const LEN: usize = if cfg!(miri) { 24 } else { 40 };
        for offset in 0..LEN {
            for len in 0..=LEN - offset {
                let mut words = [0_u64; LEN / WORD_LEN];
                let memory = SharedBytes::new(words.as_mut_ptr().cast());
                let from: [u8; LEN] = core::array::from_fn(|index| index as u8 + 1);
                // SAFETY: the words are this test's own.
                unsafe { memory.write(offset, &from[..len]) };
                let mut all = [0xff; LEN];
                // SAFETY: as above.
                unsafe { memory.read(0, &mut all) };
                let mut expected = [0; LEN];
                expected[offset..offset + len].copy_from_slice(&from[..len]);
                assert_eq!(all, expected, "{len} bytes written at {offset}");
                let mut part = [0xff; LEN];
                // SAFETY: as above.
                unsafe { memory.read(offset, &mut part[..len]) };
                assert_eq!(part[..len], from[..len], "{len} bytes read at {offset}");
                assert!(part[len..].iter().all(|byte| *byte == 0xff));
            }
        }
    }
}
