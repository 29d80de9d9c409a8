//! Each memory against its contract M1 to M3.

#![expect(unsafe_code, reason = "memories hand out raw pages")]

#[cfg(all(feature = "std", target_os = "linux", not(miri)))]
mod adopt;
#[cfg(feature = "std")]
mod arena;
mod sizes;
#[cfg(feature = "std")]
mod threads;

use alloc::vec::Vec;
use core::alloc::Layout;
use core::ops::Deref;
use core::ptr::NonNull;

use super::*;

/// A region over memory of the global allocator that holds no zeroes.
struct Soiled {
    region: Region,
    memory: NonNull<u8>,
    layout: Layout,
}

impl Soiled {
    fn new(len: usize, base: Oa) -> Self {
        let layout = Layout::from_size_align(len, 1 << 20).unwrap();
        // SAFETY: the layout is not empty.
        let memory = NonNull::new(unsafe { alloc::alloc::alloc(layout) }).unwrap();
        // SAFETY: the memory is `len` bytes long and ours.
        unsafe { memory.write_bytes(0xa5, len) };
        // SAFETY: the memory is `len` bytes long, and used by the region alone while it lives.
        let region = unsafe { Region::new(memory, len as u64, base) }.unwrap();
        Self {
            region,
            memory,
            layout,
        }
    }
}

impl Deref for Soiled {
    type Target = Region;

    fn deref(&self) -> &Region {
        &self.region
    }
}

impl Drop for Soiled {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout, and the region goes with `self`.
        unsafe { alloc::alloc::dealloc(self.memory.as_ptr(), self.layout) };
    }
}

/// A page that this test took, with the contract M1 checked; giving it back takes the value.
#[derive(Debug)]
struct Taken {
    oa: Oa,
    size: PageSize,
}

impl Taken {
    /// Takes a page, checks that it is aligned and zeroed, and soils all of it.
    fn new(memory: &impl TableMemory, size: PageSize, stamp: u64) -> Option<Self> {
        let oa = memory.alloc(size).ok()?;
        let page = Self { oa, size };
        assert!(size.divides(oa.get()), "{oa}");
        assert!(size.divides(memory.ptr(oa).addr() as u64));
        for word in page.words(memory) {
            // SAFETY: M1 and M2: the word lies in a page that is ours alone.
            let old = unsafe { word.replace(stamp) };
            assert_eq!(old, 0, "{oa}");
        }
        Some(page)
    }

    /// Gives the page back, which nobody else may have written to.
    fn give(self, memory: &impl TableMemory, stamp: u64) {
        for word in self.words(memory) {
            // SAFETY: as in `new`.
            let old = unsafe { word.read() };
            assert_eq!(old, stamp, "{}", self.oa);
        }
        // SAFETY: taken in `new` with this size; taking `self` ends the use.
        unsafe { memory.free(self.oa, self.size) };
    }

    /// As [`give`](Self::give), clearing the page itself.
    fn give_zeroed(self, memory: &impl TableMemory) {
        for word in self.words(memory) {
            // SAFETY: as in `new`.
            unsafe { word.write(0) };
        }
        // SAFETY: taken in `new` with this size, zeroed above; taking `self` ends the use.
        unsafe { memory.free_zeroed(self.oa, self.size) };
    }

    /// A word of each 512 bytes or of each page, and the last one.
    fn words<M: TableMemory>(&self, memory: &M) -> impl Iterator<Item = *mut u64> + use<M> {
        let first = memory.ptr(self.oa);
        let last = self.size.bytes() as usize - 8;
        let offsets = (0..last)
            .step_by(if cfg!(miri) { 4096 } else { 512 })
            .chain([last]);
        offsets.map(move |offset| first.wrapping_add(offset).cast())
    }
}

const SIZES: [PageSize; 4] = [
    PageSize::KIB_4,
    PageSize::KIB_16,
    PageSize::KIB_64,
    PageSize::from_lg2(20),
];

/// Takes pages of all sizes, soils them, gives them back, and takes them again.
fn upholds_its_contract(memory: &impl TableMemory) {
    for is_zeroed in [false, true, true, false] {
        let pages = SIZES.map(|size| Taken::new(memory, size, 7).unwrap());
        for page in pages {
            if is_zeroed {
                page.give_zeroed(memory);
            } else {
                page.give(memory, 7);
            }
        }
    }
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
    let region = Soiled::new(len, Oa::new(0x1_2340_0000));
    upholds_its_contract(&*region);
    assert_eq!(region.usage().len, len as u64);
    assert_eq!(region.usage().used_len, 0);
    let count = core::iter::from_fn(|| Taken::new(&*region, PageSize::KIB_64, 1)).count();
    assert_eq!(count, len / (64 << 10));
    assert_eq!(region.usage().used_len, len as u64);
}

#[test]
fn a_region_without_room_for_a_page_has_none() {
    let region = Soiled::new(4095, Oa::new(0));
    assert_eq!(region.usage().len, 0);
    assert!(region.alloc(PageSize::KIB_4).is_err());
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
