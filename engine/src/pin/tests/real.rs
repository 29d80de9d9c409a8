//! Memory of the system.
//!
//! Which pages are locked is read from the system's list of mappings, so that tests need not know of
//! each other. What the kernel has pinned is counted for the whole program: one test alone looks.

#![expect(unsafe_code, reason = "maps memory with holes")]

use core::ptr::{self, NonNull};
use std::os::fd::OwnedFd;

use iopt_formats::PageSize;
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous, munmap};

use super::{check_contract, check_copies, pages, pin};
use crate::pin::diagnostics::{LockedMemory, physical_of};
use crate::pin::resident::system_page_size;
use crate::pin::{
    Access, AnonymousPages, Backing, FileMemory, Firmness, KernelPinned, KernelPinnedError, Mapped,
    MemoryError, Origin, PinError, Source as _, UserMemory,
};

fn page_len() -> usize {
    system_page_size().bytes() as usize
}

fn anonymous(page_count: usize) -> AnonymousPages {
    AnonymousPages::new(page_count * page_len(), Backing::Plain).unwrap()
}

fn memfd(page_count: usize, flags: MemfdFlags) -> rustix::io::Result<OwnedFd> {
    let file = memfd_create("pin-test", flags | MemfdFlags::CLOEXEC)?;
    ftruncate(&file, (page_count * page_len()) as u64)?;
    Ok(file)
}

fn sealed(page_count: usize) -> OwnedFd {
    let file = memfd(page_count, MemfdFlags::ALLOW_SEALING).unwrap();
    fcntl_add_seals(&file, SealFlags::SHRINK).unwrap();
    file
}

/// A source over pages of `memory`.
fn user(memory: &AnonymousPages, first: usize, page_count: usize) -> UserMemory {
    let start = memory.start().as_ptr().wrapping_add(first * page_len());
    let start = NonNull::new(start).unwrap();
    // SAFETY: the caller keeps `memory`, which is mapped, and nobody looks at it.
    unsafe { UserMemory::new(start, page_count * page_len(), Access::ReadWrite) }.unwrap()
}

/// Pages of `memory` that the system has locked.
fn locked(memory: &dyn Mapped) -> u64 {
    let start = memory.start().addr().get() as u64;
    let end = start + memory.page_count() * memory.page_size().bytes();
    let maps = std::fs::read_to_string("/proc/self/smaps").unwrap();
    let mut mapped = 0..0;
    let mut locked_len = 0;
    for line in maps.lines() {
        let word = line.split_whitespace().next().unwrap_or_default();
        if let Some((first, end)) = word.split_once('-') {
            let parse = |text| u64::from_str_radix(text, 16).unwrap();
            mapped = parse(first)..parse(end);
        } else if word == "VmFlags:" && line.split_whitespace().any(|flag| flag == "lo") {
            let (first, last) = (mapped.start.max(start), mapped.end.min(end));
            locked_len += last.saturating_sub(first);
        }
    }
    locked_len / page_len() as u64
}

/// Returns whether the program may lock enough for the tests; says so where not.
fn may_lock() -> bool {
    let memory = anonymous(512);
    let pinned = pin(&memory, pages(0, 511));
    if let Err(error) = &pinned {
        assert_eq!(*error, PinError::SystemLimit { page_count: 512 });
        assert_eq!(locked(&memory), 0);
        assert_eq!(pin(&memory, pages(0, 511)), pinned, "nothing is left of it");
        eprintln!("skipped: {error}");
    }
    pinned.is_ok()
}

/// Pages that the kernel has pinned since `start`.
fn pinned_since(start: LockedMemory) -> u64 {
    (LockedMemory::now().unwrap().pinned - start.pinned) / page_len() as u64
}

#[test]
#[cfg_attr(miri, ignore = "Miri locks no memory")]
fn every_source_keeps_the_contract() {
    if !may_lock() {
        return;
    }
    let memory = anonymous(12);
    check_contract(&memory);
    check_copies(&memory);
    assert_eq!(locked(&memory), 0);
    let part = user(&memory, 2, 9);
    check_contract(&part);
    check_copies(&part);
    assert_eq!(locked(&memory), 0);
    let huge = AnonymousPages::new(4 << 20, Backing::Transparent).unwrap();
    assert_eq!(huge.start().addr().get() % (2 << 20), 0);
    check_copies(&huge);
    let unsealed = memfd(10, MemfdFlags::empty()).unwrap();
    for file in [unsealed, sealed(10)] {
        let length = 9 * page_len();
        let read_only = file.try_clone().unwrap();
        let offset = page_len() as u64;
        let file = FileMemory::new(file, offset, length, Access::ReadWrite).unwrap();
        check_contract(&file);
        check_copies(&file);
        assert_eq!(locked(&file), 0);
        assert!(matches!(file.origin(), Origin::File { offset: at, .. } if at == offset));
        assert_eq!(file.low_bits(), offset);
        // The same bytes, seen through another mapping of the file.
        let whole = FileMemory::new(read_only, 0, 10 * page_len(), Access::ReadOnly).unwrap();
        file.write(3, &[1, 2, 3]).unwrap();
        let mut bytes = [0; 3];
        whole.read(offset + 3, &mut bytes).unwrap();
        assert_eq!(bytes, [1, 2, 3]);
        check_contract(&whole);
        check_copies(&whole);
        assert_eq!(whole.firmness(), Firmness::Resident);
    }
}

#[test]
#[cfg_attr(miri, ignore = "Miri locks no memory")]
fn pieces_are_unlocked_and_the_rest_with_the_source() {
    if !may_lock() {
        return;
    }
    let whole = anonymous(16);
    let memory = user(&whole, 0, 16);
    let oas = pin(&memory, pages(2, 13)).unwrap();
    let first = memory.start().addr().get() + 2 * page_len();
    assert_eq!(oas[0], first as u64);
    assert_eq!(locked(&whole), 12);
    let again = pin(&memory, pages(0, 5));
    assert_eq!(again, Err(PinError::AlreadyPinned { page: 2 }));
    assert_eq!(locked(&whole), 12);
    memory.unpin(pages(4, 4));
    memory.unpin(pages(4, 6));
    memory.unpin(pages(14, 400));
    assert_eq!(locked(&whole), 9);
    let part = user(&whole, 2, 12);
    pin(&part, pages(0, 0)).unwrap();
    drop(part);
    assert_eq!(locked(&whole), 9, "the other has the page, too");
    drop(memory);
    assert_eq!(locked(&whole), 0);
}

#[test]
#[cfg_attr(miri, ignore = "Miri locks no memory")]
fn overlapping_sources_share_locks() {
    if !may_lock() {
        return;
    }
    let memory = anonymous(16);
    let (low, high) = (user(&memory, 0, 12), user(&memory, 4, 12));
    pin(&low, pages(0, 9)).unwrap(); // 0..=9
    pin(&high, pages(1, 10)).unwrap(); // 5..=14
    assert_eq!(locked(&memory), 15);
    low.unpin(pages(0, 9));
    assert_eq!(locked(&memory), 10);
    high.unpin(pages(3, 4)); // 7..=8
    assert_eq!(locked(&memory), 8);
    pin(&low, pages(6, 7)).unwrap();
    assert_eq!(locked(&memory), 9);
    drop(high);
    assert_eq!(locked(&memory), 2);
    low.unpin(pages(0, 11));
    assert_eq!(locked(&memory), 0);
}

#[test]
#[cfg_attr(miri, ignore = "Miri locks no memory")]
fn threads_share_locks() {
    if !may_lock() {
        return;
    }
    let memory = anonymous(16);
    let kept = user(&memory, 6, 4);
    pin(&kept, pages(0, 3)).unwrap();
    let work = |thread: u64| {
        let source = user(&memory, thread as usize, 12);
        for round in 0..200 {
            let first = (round * 7 + thread) % 10;
            pin(&source, pages(first, first + 2)).unwrap();
            source.unpin(pages(first + 1, first + 1));
            source.unpin(pages(first, first + 2));
        }
        // Left to the drop.
        pin(&source, pages(0, 11)).unwrap();
    };
    std::thread::scope(|scope| {
        for thread in 0..4 {
            scope.spawn(move || work(thread));
        }
    });
    assert_eq!(locked(&memory), 4);
    drop(kept);
    assert_eq!(locked(&memory), 0);
}

#[test]
#[cfg_attr(miri, ignore = "Miri locks no memory")]
fn failed_pins_lock_nothing() {
    if !may_lock() {
        return;
    }
    let len = 8 * page_len();
    let prot = ProtFlags::READ | ProtFlags::WRITE;
    // SAFETY: a new mapping.
    let mapped = unsafe { mmap_anonymous(ptr::null_mut(), len, prot, MapFlags::PRIVATE) }.unwrap();
    let hole = mapped.wrapping_byte_add(5 * page_len());
    // SAFETY: a page of the mapping, which nobody uses. Nothing smaller than two pages is mapped by
    // other tests, so that it stays unmapped.
    unsafe { munmap(hole, page_len()) }.unwrap();
    let first = NonNull::new(mapped.cast()).unwrap();
    // SAFETY: nobody else uses the mapping.
    let memory = unsafe { UserMemory::with_holes(first, len, Access::ReadWrite) }.unwrap();
    let fault = PinError::Fault { page: 5 };
    for (first, last) in [(0, 7), (5, 5), (3, 5), (5, 7), (0, 5)] {
        assert_eq!(pin(&memory, pages(first, last)), Err(fault));
        assert_eq!(locked(&memory), 0);
    }
    let across = (5 * page_len() - 4) as u64;
    memory.write(across, &[9; 4]).unwrap();
    assert_eq!(memory.write(across, &[1; 8]), Err(fault));
    assert_eq!(memory.read(across, &mut [0; 8]), Err(fault));
    let mut bytes = [0; 4];
    memory.read(across, &mut bytes).unwrap();
    assert_eq!(bytes, [9; 4], "a write that failed changed nothing");
    check_parts(&memory);
    drop(memory);
    // SAFETY: nobody uses what is in front of the hole any more.
    unsafe { munmap(mapped, 5 * page_len()) }.unwrap();
    // SAFETY: nor what is behind it.
    unsafe { munmap(hole.wrapping_byte_add(page_len()), 2 * page_len()) }.unwrap();

    let file = memfd(8, MemfdFlags::empty()).unwrap();
    let handle = file.try_clone().unwrap();
    let memory = FileMemory::new(file, 0, len, Access::ReadWrite).unwrap();
    ftruncate(&handle, (5 * page_len()) as u64).unwrap();
    assert_eq!(pin(&memory, pages(0, 7)), Err(fault));
    assert_eq!(locked(&memory), 0);
    assert_eq!(memory.read(across, &mut [0; 8]), Err(fault));
    assert_eq!(memory.write(across, &[1; 8]), Err(fault));
    memory.read(across, &mut bytes).unwrap();
    assert_eq!(bytes, [0; 4], "a write that failed changed nothing");
    pin(&memory, pages(0, 4)).unwrap();
    assert_eq!(locked(&memory), 5);
}

/// Pins both sides of page 5.
fn check_parts(memory: &UserMemory) {
    pin(memory, pages(6, 7)).unwrap();
    pin(memory, pages(0, 4)).unwrap();
    assert_eq!(locked(memory), 7);
    memory.unpin(pages(0, 7));
    assert_eq!(locked(memory), 0);
}

#[test]
#[cfg_attr(miri, ignore = "Miri has no kernel")]
fn kernel_pins_are_counted() {
    if !may_lock() {
        return;
    }
    let start = LockedMemory::now().unwrap();
    let memory = match KernelPinned::new(anonymous(16)) {
        Ok(memory) => memory,
        Err(error) => {
            eprintln!("skipped: pins of the kernel: {error}");
            return;
        }
    };
    check_contract(&memory);
    check_copies(&memory);
    assert_eq!(pinned_since(start), 0);
    pin(&memory, pages(0, 7)).unwrap();
    assert_eq!((pinned_since(start), locked(memory.memory())), (8, 0));
    memory.unpin(pages(0, 6));
    assert_eq!(pinned_since(start), 8, "buffers are released as a whole");
    pin(&memory, pages(0, 3)).unwrap();
    let again = pin(&memory, pages(5, 9));
    assert_eq!(again, Err(PinError::AlreadyPinned { page: 7 }));
    memory.unpin(pages(7, 7));
    assert_eq!(pinned_since(start), 4);
    pin(&memory, pages(4, 15)).unwrap();
    assert_eq!(pinned_since(start), 16);
    assert!(memory.firmness().suits_hardware());
    drop(memory);
    assert_eq!(pinned_since(start), 0);

    let memory = KernelPinned::with_limits(anonymous(16), 2, 4 * page_len() as u64).unwrap();
    pin(&memory, pages(0, 7)).unwrap();
    let too_many = PinError::SystemLimit { page_count: 1 };
    assert_eq!(pin(&memory, pages(8, 8)), Err(too_many));
    memory.unpin(pages(0, 3));
    assert_eq!(pinned_since(start), 4);
    let too_many = PinError::SystemLimit { page_count: 8 };
    assert_eq!(pin(&memory, pages(8, 15)), Err(too_many));
    assert_eq!(
        pinned_since(start),
        4,
        "the half that was pinned is released"
    );
    pin(&memory, pages(8, 10)).unwrap();
    assert_eq!(pinned_since(start), 7);
    drop(memory);

    let file = KernelPinned::new(
        FileMemory::new(sealed(8), 0, 8 * page_len(), Access::ReadWrite).unwrap(),
    );
    check_contract(&file.unwrap());
    let read_only = FileMemory::new(sealed(8), 0, 8 * page_len(), Access::ReadOnly).unwrap();
    let refused = KernelPinned::new(read_only);
    assert_eq!(refused.unwrap_err(), KernelPinnedError::ReadOnly);
}

#[test]
#[cfg_attr(miri, ignore = "Miri maps no files")]
fn arguments_that_make_no_sense_are_refused() {
    let memory = anonymous(4);
    let inside = NonNull::new(memory.start().as_ptr().wrapping_add(8)).unwrap();
    for (start, len) in [(inside, page_len()), (memory.start(), page_len() + 8)] {
        // SAFETY: the range is inside of `memory`.
        let refused = unsafe { UserMemory::new(start, len, Access::ReadOnly) };
        assert!(matches!(refused, Err(MemoryError::Unaligned { .. })));
    }
    // SAFETY: the range is empty.
    let refused = unsafe { UserMemory::new(memory.start(), 0, Access::ReadOnly) };
    assert_eq!(refused.unwrap_err(), MemoryError::Empty);
    let last_pages = 0_usize.wrapping_sub(page_len());
    let start = memory.start().with_addr(last_pages.try_into().unwrap());
    // SAFETY: nothing is mapped there.
    let refused = unsafe { UserMemory::with_holes(start, 2 * page_len(), Access::ReadOnly) };
    assert!(matches!(refused, Err(MemoryError::TooWide { .. })));

    let part = |offset, len| FileMemory::new(sealed(4), offset, len, Access::ReadWrite);
    let (page, len) = (page_len() as u64, page_len());
    assert_eq!(part(0, 0).unwrap_err(), MemoryError::Empty);
    assert!(matches!(part(8, len), Err(MemoryError::Unaligned { .. })));
    let beyond = MemoryError::BeyondFile {
        end: 5 * page,
        file_len: 4 * page,
    };
    assert_eq!(part(page, 4 * len).unwrap_err(), beyond);
    let last = 0_u64.wrapping_sub(page);
    assert!(matches!(
        part(last, 2 * len),
        Err(MemoryError::TooWide { .. })
    ));
}

#[test]
#[cfg_attr(miri, ignore = "Miri has no physical memory")]
fn resident_pages_have_physical_addresses_for_the_privileged() {
    if !may_lock() {
        return;
    }
    let memory = anonymous(8);
    let byte = memory.start().as_ptr().wrapping_add(page_len() + 5);
    assert_eq!(physical_of(byte).unwrap(), None, "nobody has touched it");
    pin(&memory, pages(0, 7)).unwrap();
    assert!(LockedMemory::now().unwrap().locked >= (8 * page_len()) as u64);
    match physical_of(byte).unwrap() {
        Some(address) => assert_eq!(address % page_len() as u64, 5),
        None => eprintln!("skipped: the system shows no physical addresses"),
    }
}

#[test]
#[cfg_attr(miri, ignore = "Miri has no huge pages")]
fn huge_pages_are_the_unit_of_pins() {
    const HUGE: PageSize = PageSize::MIB_2;
    let refused = AnonymousPages::new(page_len(), Backing::Hugetlb(HUGE));
    assert!(matches!(refused, Err(MemoryError::Unaligned { .. })));
    let bytes = Backing::Hugetlb(PageSize::from_lg2(0));
    let refused = AnonymousPages::new(2 << 20, bytes).unwrap_err();
    let errno = libc::EINVAL;
    assert_eq!(refused, MemoryError::System { errno });
    match AnonymousPages::new(2 << 20, Backing::Hugetlb(HUGE)) {
        Ok(memory) => {
            assert_eq!((memory.page_size(), memory.page_count()), (HUGE, 1));
            pin(&memory, pages(0, 0)).unwrap();
            memory.write(0x1_2345, &[1]).unwrap();
        }
        Err(error) => eprintln!("skipped: huge pages: {error}"),
    }
    let flags = MemfdFlags::HUGETLB | MemfdFlags::HUGE_2MB;
    let pages_of_huge = (2 << 20) / page_len();
    let file = memfd(pages_of_huge, flags).map_err(MemoryError::from);
    match file.and_then(|file| FileMemory::new(file, 0, 2 << 20, Access::ReadWrite)) {
        Ok(memory) => {
            assert_eq!((memory.page_size(), memory.page_count()), (HUGE, 1));
            pin(&memory, pages(0, 0)).unwrap();
            memory.write(0x1_2345, &[1]).unwrap();
        }
        Err(error) => eprintln!("skipped: files of huge pages: {error}"),
    }
}
