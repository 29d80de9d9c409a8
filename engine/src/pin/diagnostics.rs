//! What the system says about the program's memory, for people and tests.
//!
//! No source uses it: an address that is read here may be wrong by the time it is seen.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt as _;

use rustix::param;

/// Bytes of an entry of `/proc/self/pagemap`.
const ENTRY_LEN: usize = 8;
/// A bit of it (Linux, `admin-guide/mm/pagemap`): the page is present.
const PRESENT: u64 = 1 << 63;
/// The number of the page frame, in pages of the system's size.
const FRAME: u64 = (1 << 55) - 1;

/// Returns the physical address behind `ptr`, or `None` if there is none or the system does not
/// tell: only with `CAP_SYS_ADMIN` does it.
///
/// The system may move the page at any time, unless the kernel has pinned it.
///
/// # Errors
///
/// What the system says to reading `/proc/self/pagemap`.
pub fn physical_of<T>(ptr: *const T) -> io::Result<Option<u64>> {
    let page_len = param::page_size() as u64;
    let address = ptr.addr() as u64;
    let mut entry = [0; ENTRY_LEN];
    let pagemap = File::open("/proc/self/pagemap")?;
    pagemap.read_exact_at(&mut entry, address / page_len * ENTRY_LEN as u64)?;
    let entry = u64::from_ne_bytes(entry);
    let frame = entry & FRAME;
    // Frame 0 is what those see who may not know.
    let is_known = entry & PRESENT != 0 && frame != 0;
    Ok(is_known.then(|| frame * page_len + address % page_len))
}

/// How much memory of the program is kept in place, in bytes.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[non_exhaustive]
pub struct LockedMemory {
    /// Locked in memory: `VmLck`.
    pub locked: u64,
    /// Pinned by the kernel: `VmPin`.
    pub pinned: u64,
    /// Huge pages that were set aside: `HugetlbPages`.
    pub hugetlb: u64,
}

impl LockedMemory {
    /// Asks the system, which counts for the whole program.
    ///
    /// # Errors
    ///
    /// What the system says to reading `/proc/self/status`, and [`io::ErrorKind::InvalidData`] if
    /// it says something else than numbers of KiB there.
    pub fn now() -> io::Result<Self> {
        Self::parse(&fs::read_to_string("/proc/self/status")?)
    }

    /// Reads the text of a `status` file.
    fn parse(status: &str) -> io::Result<Self> {
        let bytes_of = |name: &str| -> io::Result<u64> {
            let lines = status.lines();
            let value = lines
                .filter_map(|line| line.split_once(':'))
                .find_map(|(key, value)| (key == name).then_some(value));
            let Some(value) = value else {
                // Systems without the feature do not list it.
                return Ok(0);
            };
            let kib = value.trim().strip_suffix("kB").map(str::trim_end);
            let kib = kib.and_then(|kib| kib.parse::<u64>().ok());
            let bytes = kib.and_then(|kib| kib.checked_mul(1024));
            bytes.ok_or_else(|| io::ErrorKind::InvalidData.into())
        };
        Ok(Self {
            locked: bytes_of("VmLck")?,
            pinned: bytes_of("VmPin")?,
            hugetlb: bytes_of("HugetlbPages")?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_of_a_status_file_are_kib() {
        let status = "Name:\tx\nVmLck:\t      12 kB\nVmPin:\t       0 kB\nHugetlbPages:\t2048 kB\n";
        let expected = LockedMemory {
            locked: 12 << 10,
            pinned: 0,
            hugetlb: 2 << 20,
        };
        assert_eq!(LockedMemory::parse(status).unwrap(), expected);
        assert_eq!(LockedMemory::parse("").unwrap(), LockedMemory::default());
        for bad in ["VmLck: 12", "VmLck: x kB", "VmPin: 18446744073709551615 kB"] {
            let error = LockedMemory::parse(bad).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{bad}");
        }
    }
}
