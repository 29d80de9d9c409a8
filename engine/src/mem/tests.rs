//! Each memory against its contract M1 to M3.

#![expect(unsafe_code, reason = "memories hand out raw pages")]

use alloc::vec::Vec;
use core::ptr::NonNull;

use super::*;

const SIZES: [PageSize; 4] = [
    PageSize::KIB_4,
    PageSize::KIB_16,
    PageSize::KIB_64,
    PageSize::from_lg2(20),
];

/// Takes pages of all sizes, soils them, gives them back, and takes them again.
fn upholds_its_contract(memory: &impl TableMemory) {
    for round in 0..2 {
        let mut pages: Vec<(Oa, PageSize)> = Vec::new();
        for size in SIZES {
            for _ in 0..2 {
                let page = memory.alloc(size).unwrap();
                assert!(size.divides(page.get()), "{page} in round {round}");
                assert!(size.divides(memory.ptr(page).addr() as u64));
                assert!(pages.iter().all(|&(other, other_size)| {
                    page.get() + size.bytes() <= other.get()
                        || other.get() + other_size.bytes() <= page.get()
                }));
                for offset in [0, size.bytes() - 1] {
                    let byte = memory.ptr(Oa::new(page.get() + offset));
                    assert_eq!(byte.addr() - memory.ptr(page).addr(), offset as usize);
                    // SAFETY: M1 and M2: the byte lies in a page that is ours alone.
                    let old = unsafe { byte.replace(0xff) };
                    assert_eq!(old, 0);
                }
                pages.push((page, size));
            }
        }
        for (page, size) in pages {
            // SAFETY: allocated above with this size, freed once, not used any more.
            unsafe { memory.free(page, size) };
        }
    }
    let too_large = PageSize::from_lg2(21);
    assert_eq!(
        memory.alloc(too_large),
        Err(OutOfMemory { size: too_large })
    );
    let too_small = PageSize::from_lg2(11);
    assert_eq!(
        memory.alloc(too_small),
        Err(OutOfMemory { size: too_small })
    );
}

#[test]
fn the_heap_upholds_its_contract() {
    upholds_its_contract(&Heap);
}

#[test]
fn a_limited_memory_counts_and_refuses() {
    let memory = Limited::new(Heap, 8);
    upholds_its_contract(&&memory);
    assert_eq!(memory.used_count(), 0);
    memory.set_left(1);
    let page = memory.alloc(PageSize::KIB_4).unwrap();
    assert!(memory.alloc(PageSize::KIB_4).is_err());
    // SAFETY: allocated above with this size, freed once, not used any more.
    unsafe { memory.free(page, PageSize::KIB_4) };
    let page = memory.alloc(PageSize::KIB_4).unwrap();
    // SAFETY: as above.
    unsafe { memory.free(page, PageSize::KIB_4) };
}

#[test]
fn a_region_upholds_its_contract_and_ends_at_its_end() {
    let len = 4 << 20;
    let layout = core::alloc::Layout::from_size_align(len, 1 << 20).unwrap();
    // SAFETY: the layout is not empty.
    let memory = NonNull::new(unsafe { alloc::alloc::alloc(layout) }).unwrap();
    // SAFETY: the memory is `len` bytes and used by the region alone until it is freed below.
    let region = unsafe { Region::new(memory, len as u64, Oa::new(0x1_2340_0000)) }.unwrap();
    upholds_its_contract(&region);
    assert_eq!(
        region.usage(),
        Usage {
            len: len as u64,
            used_len: 0
        }
    );
    let mut count = 0;
    while region.alloc(PageSize::KIB_64).is_ok() {
        count += 1;
    }
    assert!((16..64).contains(&count), "{count}");
    // SAFETY: allocated above with this layout; the region is not used any more.
    unsafe { alloc::alloc::dealloc(memory.as_ptr(), layout) };
}

#[test]
fn a_region_refuses_what_it_cannot_align_or_address() {
    let memory = NonNull::<u8>::without_provenance((1 << 20).try_into().unwrap());
    // SAFETY: a region that is refused never touches the memory.
    let unaligned = unsafe { Region::new(memory, 4096, Oa::new(0x1000)) };
    assert!(matches!(unaligned, Err(RegionError::Unaligned { .. })));
    // SAFETY: as above.
    let wide = unsafe { Region::new(memory, 2 << 20, Oa::new((1 << 52) - (1 << 20))) };
    assert!(matches!(wide, Err(RegionError::TooWide { .. })));
}

#[cfg(feature = "std")]
#[test]
fn an_arena_upholds_its_contract_and_counts() {
    let arena = Arena::with_base(8 << 20, Oa::new(0x4000_0000)).unwrap();
    upholds_its_contract(&alloc::sync::Arc::new(&arena));
    assert_eq!(arena.usage().used_len, 0);
    let page = arena.alloc(PageSize::KIB_4).unwrap();
    assert!(page.get() >= 0x4000_0000);
    assert_eq!(arena.usage().used_len, 4096);
    // SAFETY: allocated above with this size, freed once, not used any more.
    unsafe { arena.free(page, PageSize::KIB_4) };
    assert!(Arena::new(4095).is_err());
    assert!(Arena::with_base(4096, Oa::new(4096)).is_err());
    assert!(Arena::with_base(4096, Oa::new(1 << 52)).is_err());
}
