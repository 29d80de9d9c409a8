//! Pages of all sizes among each other.

#![expect(unsafe_code, reason = "memories hand out raw pages")]

use super::*;

const ALL_SIZES: [PageSize; 9] = [
    PageSize::from_lg2(12),
    PageSize::from_lg2(13),
    PageSize::from_lg2(14),
    PageSize::from_lg2(15),
    PageSize::from_lg2(16),
    PageSize::from_lg2(17),
    PageSize::from_lg2(18),
    PageSize::from_lg2(19),
    PageSize::from_lg2(20),
];

/// Takes and gives pages of random sizes; each carries a stamp of its own while it is out, so that
/// no two can overlap.
fn sizes_mix(memory: &impl TableMemory, len: u64) {
    let mut state = 1_u64;
    let mut random = |below: usize| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % below
    };
    let mut pages: Vec<(Taken, u64)> = Vec::new();
    let mut refused_count = 0;
    for stamp in 1..if cfg!(miri) { 60 } else { 4000 } {
        // Small pages are asked for more often, as large ones fill the memory.
        let size = ALL_SIZES[random(ALL_SIZES.len()).min(random(ALL_SIZES.len()))];
        if random(8) < 5 || pages.is_empty() {
            match Taken::new(memory, size, stamp) {
                Some(page) => pages.push((page, stamp)),
                None => refused_count += 1,
            }
        }
        if random(8) < 4 && !pages.is_empty() {
            let (page, stamp) = pages.swap_remove(random(pages.len()));
            page.give(memory, stamp);
        }
    }
    assert!(cfg!(miri) || refused_count > 0, "the memory never ran out");
    for (page, stamp) in pages {
        page.give(memory, stamp);
    }
    // What was split is whole again.
    let whole = core::iter::from_fn(|| Taken::new(memory, LARGEST, 1));
    assert_eq!(whole.count() as u64, len / LARGEST.bytes());
}

#[test]
fn pages_of_a_region_split_and_merge_freely() {
    let len = if cfg!(miri) { 3 << 20 } else { 9 << 20 };
    let region = Soiled::new(len, Oa::new(3 << 20));
    sizes_mix(&*region, len as u64);
}

#[cfg(feature = "std")]
#[test]
fn pages_of_an_arena_split_and_merge_freely() {
    let len = if cfg!(miri) { 3 << 20 } else { 9 << 20 };
    sizes_mix(&Arena::new(len).unwrap(), len as u64);
}

#[test]
fn all_pages_of_each_size_are_handed_out_in_address_order() {
    for size in ALL_SIZES {
        // Pages of 4 KiB remain that no larger one fits in.
        let len = (2 << 20) + (1 << 20) + 0x3000;
        if cfg!(miri) && size < PageSize::KIB_64 {
            continue;
        }
        let base = 5 << 20;
        let region = Soiled::new(len, Oa::new(base));
        for index in 0..len as u64 / size.bytes() {
            let page = region.alloc(size).unwrap();
            assert_eq!(page.get(), base + index * size.bytes());
        }
        assert_eq!(region.alloc(size), Err(OutOfMemory { size }));
    }
}

#[test]
fn the_lowest_free_page_at_hand_comes_next() {
    let region = Soiled::new(2 << 20, Oa::new(0));
    let mut pages: Vec<_> = (0..20)
        .map(|_| Taken::new(&*region, PageSize::KIB_4, 1).unwrap())
        .collect();
    for index in [17, 11, 3] {
        pages.swap_remove(index).give(&*region, 1);
    }
    for index in [3, 11, 17, 20] {
        let page = region.alloc(PageSize::KIB_4).unwrap();
        assert_eq!(page.get(), index * 4096);
    }
}

#[test]
fn the_lowest_chunk_with_free_pages_comes_next() {
    let region = Soiled::new(8 << 20, Oa::new(0));
    let mut large: Vec<_> = (0..6)
        .map(|_| Taken::new(&*region, LARGEST, 1).unwrap())
        .collect();
    let at_hand = region.alloc(PageSize::KIB_4).unwrap();
    assert_eq!(at_hand.get(), 6 << 20);
    for index in [4, 2] {
        large.remove(index).give(&*region, 1);
    }
    let mut pages = core::iter::repeat_with(|| region.alloc(PageSize::KIB_4).unwrap());
    let elsewhere = pages.find(|page| page.get() < 6 << 20);
    assert_eq!(elsewhere, Some(Oa::new(2 << 20)));
    assert_eq!(region.usage().used_len, (6 << 20) + 4096);
}

#[test]
fn a_large_page_is_found_behind_chunks_of_small_ones() {
    let region = Soiled::new(6 << 20, Oa::new(0));
    let large = PageSize::from_lg2(20);
    let small = region.alloc(PageSize::KIB_4).unwrap();
    let first = region.alloc(large).unwrap();
    let second = region.alloc(large).unwrap();
    assert_eq!([first.get(), second.get()], [1 << 20, 2 << 20]);
    // Small pages go on where the last large one came from, and fill what was left later.
    let after = region.alloc(PageSize::KIB_4).unwrap();
    assert_eq!(after.get(), 3 << 20);
    // SAFETY: taken above with this size, not used.
    unsafe { region.free(small, PageSize::KIB_4) };
    let third = region.alloc(large).unwrap();
    assert_eq!(third.get(), 0);
}

#[cfg(debug_assertions)]
#[test]
#[should_panic(expected = "is not cleared")]
fn a_debug_build_notices_a_page_that_was_not_cleared() {
    let region = Soiled::new(1 << 20, Oa::new(0));
    let page = region.alloc(PageSize::KIB_4).unwrap();
    let last = region.ptr(page).wrapping_add(4095);
    // SAFETY: the page is ours and 4 KiB long.
    unsafe { last.write(1) };
    // SAFETY: not upheld, which debug builds of this memory check before anything else.
    unsafe { region.free_zeroed(page, PageSize::KIB_4) };
}
