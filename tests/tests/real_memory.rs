//! Real memory behind an address space: pinned once for two domains, reached through an access, and
//! given back to the last page.
//!
//! What the system refuses, such as locking a GiB for a plain user, or huge pages where none are set
//! aside, is skipped with a line that says so.

#![cfg(target_os = "linux")]

use std::error::Error;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use iopt::domain::{Domain, TableDomain};
use iopt::invalidation::NoHardware;
use iopt::ioas::{
    AccessHandle, AccessOps, HoldError, Holes, Ioas, MapError, Mapping, Pages, Place,
};
use iopt::mem::Heap;
use iopt::pin::diagnostics::LockedMemory;
use iopt::pin::{
    Access, AnonymousPages, Backing, Budget, FileMemory, KernelPinned, KernelPinnedError, Mapped,
    PinError, Source,
};
use iopt::radix::Table;
use iopt_formats::amd::V1;
use iopt_formats::vtd::SecondStage;
use iopt_formats::{Format, Iova, IovaRange, PageSize, Prot};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};

const GIB: usize = 1 << 30;

/// Lets go at once.
struct Yields;

impl AccessOps for Yields {
    fn unmap(&self, access: &AccessHandle, range: IovaRange) {
        access.unpin_all(range);
    }
}

fn domain<F: Format + Send + Sync + 'static>(format: F) -> Result<Arc<dyn Domain>, Box<dyn Error>> {
    let table = Table::new(format, Heap)?;
    Ok(Arc::new(TableDomain::new(table, NoHardware)))
}

/// Returns whether the system, not the engine, stands in the way.
fn is_refused_by_system(error: &MapError) -> bool {
    matches!(
        error,
        MapError::Hold(HoldError::Pin(
            PinError::SystemLimit { .. } | PinError::NoMemory { .. } | PinError::Refused { .. }
        ))
    )
}

/// Maps all of `source` to two domains of different formats, reads and writes it through an access, and
/// unmaps it. Returns whether the system let it.
fn goes_around(what: &str, source: Arc<dyn Source>) -> Result<bool, Box<dyn Error>> {
    let before = LockedMemory::now()?;
    let memory = Arc::downgrade(&source);
    let budget = Arc::new(Budget::new(u64::MAX));
    let pages = Pages::new(source, Some(Arc::clone(&budget)));
    let len = pages.len();
    let ioas = Arc::new(Ioas::new());
    let (first, second) = (domain(SecondStage::new(48)?)?, domain(V1::new())?);
    ioas.attach(Arc::clone(&first))?;
    ioas.attach(Arc::clone(&second))?;
    let mapped = ioas.map(Mapping {
        pages: &pages,
        offset: 0,
        len,
        prot: Prot::RW,
        place: Place::Anywhere,
    });
    let range = match mapped {
        Ok(range) => range,
        Err(error) if is_refused_by_system(&error) => {
            eprintln!("skipped: {what}: {error}");
            assert_eq!((budget.used(), LockedMemory::now()?), (0, before));
            return Ok(false);
        }
        Err(error) => return Err(error.into()),
    };
    // One pin for both domains.
    assert_eq!(budget.used(), len);
    let during = LockedMemory::now()?;
    let grown = (during.locked - before.locked).max(during.pinned - before.pinned);
    assert!(grown >= len || during.hugetlb > 0, "{what}: {during:?}");

    let access = ioas.access(Yields);
    let last = Iova::new(range.last().get() - 7);
    let mut bytes = [1; 8];
    access.read(last, &mut bytes)?;
    assert_eq!(bytes, [0; 8], "fresh memory is zero");
    access.write(last, b"the last")?;
    access.read(last, &mut bytes)?;
    assert_eq!(&bytes, b"the last");
    let part = IovaRange::with_len(range.start(), 0x40_0000).ok_or("a range")?;
    access.pin(part, true)?;
    ioas.detach(&second)?;

    assert_eq!(ioas.unmap(range, Holes::Refused)?, len);
    assert_eq!(access.pin_count(), 0, "it was asked to let go");
    assert_eq!(budget.used(), 0);
    access.destroy()?;
    drop((ioas, pages));
    assert!(memory.upgrade().is_none(), "{what}: nobody keeps it");
    let after = LockedMemory::now()?;
    assert_eq!(
        (after.locked, after.pinned),
        (before.locked, before.pinned),
        "{what}"
    );
    Ok(true)
}

fn memory_file(name: &str, flags: MemfdFlags, len: usize) -> Result<OwnedFd, Box<dyn Error>> {
    let file = memfd_create(name, flags)?;
    ftruncate(&file, len as u64)?;
    Ok(file)
}

/// Pins in the kernel, which not every system has or allows.
fn pinned<M: Mapped + 'static>(what: &str, memory: M) -> Result<(), Box<dyn Error>> {
    match KernelPinned::new(memory) {
        Ok(source) => {
            goes_around(what, Arc::new(source))?;
            Ok(())
        }
        Err(
            error @ (KernelPinnedError::Unsupported
            | KernelPinnedError::Forbidden
            | KernelPinnedError::SystemLimit),
        ) => {
            eprintln!("skipped: {what}: {error}");
            Ok(())
        }
        Err(error) => Err(error.into()),
    }
}

/// One test, because the counters are those of the whole process.
#[test]
#[cfg_attr(miri, ignore = "needs a system")]
fn a_gib_of_each_kind_is_pinned_once_and_given_back() -> Result<(), Box<dyn Error>> {
    let before = LockedMemory::now()?;
    let plain = AnonymousPages::new(GIB, Backing::Plain)?;
    goes_around("anonymous memory", Arc::new(plain))?;
    let transparent = AnonymousPages::new(GIB, Backing::Transparent)?;
    goes_around("transparent huge pages", Arc::new(transparent))?;

    let size = PageSize::MIB_2;
    match AnonymousPages::new(GIB, Backing::Hugetlb(size)) {
        Ok(memory) => {
            goes_around("huge pages", Arc::new(memory))?;
        }
        Err(error) => eprintln!("skipped: huge pages: {error}"),
    }
    let file = memory_file("plain", MemfdFlags::CLOEXEC, GIB)?;
    let file = FileMemory::new(file, 0, GIB, Access::ReadWrite)?;
    goes_around("a memory file", Arc::new(file))?;

    let huge = MemfdFlags::CLOEXEC | MemfdFlags::HUGETLB | MemfdFlags::HUGE_2MB;
    match memory_file("huge", huge, GIB) {
        Ok(file) => match FileMemory::new(File::from(file), 0, GIB, Access::ReadWrite) {
            Ok(memory) => {
                goes_around("a memory file of huge pages", Arc::new(memory))?;
            }
            Err(error) => eprintln!("skipped: a memory file of huge pages: {error}"),
        },
        Err(error) => eprintln!("skipped: a memory file of huge pages: {error}"),
    }
    pinned(
        "memory pinned by the kernel",
        AnonymousPages::new(GIB, Backing::Plain)?,
    )?;
    let file = memory_file("pinned", MemfdFlags::CLOEXEC, GIB)?;
    let file = FileMemory::new(file, 0, GIB, Access::ReadWrite)?;
    pinned("a memory file pinned by the kernel", file)?;

    let after = LockedMemory::now()?;
    assert_eq!(after, before, "as it was at the start");
    Ok(())
}
