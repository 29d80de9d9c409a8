//! What an arena does beyond its contract.

#![expect(unsafe_code, reason = "memories hand out raw pages")]

use super::*;

const CHUNK: u64 = 2 << 20;

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
    assert_eq!(arena.usage().used_len, 0);
}

#[test]
fn an_arena_of_no_use_is_refused() {
    assert!(Arena::new(4095).is_err());
    assert!(Arena::with_base(4096, Oa::new(4096)).is_err());
    assert!(Arena::with_base(4096, Oa::new(1 << 52)).is_err());
    assert!(Arena::new(usize::MAX).is_err());
    assert!(cfg!(miri) || Arena::new(1 << 51).is_err());
}

#[test]
fn usage_says_where_the_pages_are() {
    let arena = Arena::new((4 << 20) + 4096).unwrap();
    let usage = arena.usage();
    assert_eq!(usage.len, (4 << 20) + 4096);
    assert_eq!([usage.used_len, usage.held_len, usage.reached_len], [0; 3]);
    let page = Taken::new(&arena, PageSize::KIB_16, 1).unwrap();
    let usage = arena.usage();
    assert_eq!(usage.used_len, 16 << 10);
    assert_eq!(usage.held_len, CHUNK - (16 << 10));
    assert_eq!(usage.reached_len, CHUNK);
    page.give(&arena, 1);
    while arena.alloc(PageSize::KIB_64).is_ok() {}
    while arena.alloc(PageSize::KIB_4).is_ok() {}
    let usage = arena.usage();
    assert_eq!([usage.used_len, usage.reached_len], [usage.len; 2]);
    assert_eq!(usage.held_len, 0);
}

#[test]
fn a_node_is_a_hint() {
    assert!(!Arena::new(1 << 20).unwrap().is_bound());
    for node in [0, 1022, 1023, u32::MAX] {
        let config = ArenaConfig::new(1 << 20).with_node(node);
        let arena = Arena::with_config(config).unwrap();
        assert!(!arena.is_bound() || node < 1023);
        assert!(arena.alloc(PageSize::KIB_4).is_ok());
    }
}

#[test]
fn an_arena_without_huge_pages_works_as_well() {
    let config = ArenaConfig::new(4 << 20).with_huge_pages(HugePages::NotAsked);
    upholds_its_contract(&Arena::with_config(config).unwrap());
}

#[test]
fn pages_that_were_backed_beforehand_are_pages_as_others() {
    let config = ArenaConfig::new(5 << 20).with_prefault(1);
    let arena = Arena::with_config(config).unwrap();
    assert_eq!(arena.usage().reached_len, CHUNK);
    let page = Taken::new(&arena, PageSize::KIB_4, 3).unwrap();
    assert_eq!(page.oa.get(), 1 << 20, "address order");
    // In use, free in the magazine, new, and more than there is.
    arena.prefault(u64::MAX).unwrap();
    let usage = arena.usage();
    assert_eq!(usage.reached_len, usage.len);
    assert_eq!([usage.used_len, usage.held_len], [4096, CHUNK - 4096]);
    page.give(&arena, 3);
    upholds_its_contract(&arena);
}

#[test]
fn trimming_keeps_what_is_used_and_leaves_zeroes() {
    let arena = Arena::new(6 << 20).unwrap();
    assert_eq!(arena.trim(), 0);
    let kept = Taken::new(&arena, PageSize::KIB_4, 1).unwrap();
    let large: Vec<_> = (0..5)
        .map(|_| Taken::new(&arena, LARGEST, 2).unwrap())
        .collect();
    let count = large.len();
    for page in large {
        page.give(&arena, 2);
    }
    // The first of three chunks has a page in use.
    let trimmed = arena.trim();
    assert!([0, 2 * CHUNK].contains(&trimmed), "{trimmed}");
    assert_eq!(arena.trim(), 0, "nothing is given back twice");
    assert_eq!(arena.usage().used_len, 4096);
    kept.give(&arena, 1);
    for _ in 0..count {
        assert!(Taken::new(&arena, LARGEST, 3).is_some());
    }
}

/// What the system knows of the memory.
#[cfg(all(target_os = "linux", not(miri)))]
mod on_linux {
    use std::io;
    use std::os::fd::AsFd as _;

    use memmap2::MmapOptions;

    use super::*;

    /// Returns the bytes of the pages in `len` bytes from `oa` on that are backed by memory.
    fn backed_len(arena: &Arena, oa: Oa, len: u64) -> u64 {
        // SAFETY: asks for a number.
        let page_len = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
        let page_len = usize::try_from(page_len).unwrap();
        let mut states = alloc::vec![0_u8; (len as usize).div_ceil(page_len)];
        // SAFETY: the range is mapped as long as `arena` lives, and there is a byte for each of
        // its pages.
        let result =
            unsafe { libc::mincore(arena.ptr(oa).cast(), len as usize, states.as_mut_ptr()) };
        assert_eq!(result, 0, "{}", io::Error::last_os_error());
        let count = states.iter().filter(|&state| state & 1 != 0).count();
        (count * page_len) as u64
    }

    fn arena(backing: Backing) -> Arena {
        let config = ArenaConfig::new(16 << 20)
            .with_base(Oa::new(0))
            .with_huge_pages(HugePages::NotAsked)
            .with_backing(backing);
        Arena::with_config(config).unwrap()
    }

    #[test]
    fn memory_is_backed_when_asked_and_given_back_when_trimmed() {
        for backing in [Backing::Private, Backing::Shared] {
            let arena = arena(backing);
            arena.prefault(2 * CHUNK).unwrap();
            assert_eq!(backed_len(&arena, Oa::new(0), 2 * CHUNK), 2 * CHUNK);
            let kept = Taken::new(&arena, PageSize::KIB_4, 4).unwrap();
            assert_eq!(arena.trim(), CHUNK);
            assert_eq!(backed_len(&arena, Oa::new(0), CHUNK), CHUNK);
            assert_eq!(backed_len(&arena, Oa::new(CHUNK), CHUNK), 0);
            assert_eq!(arena.trim(), 0);
            kept.give(&arena, 4);
            assert_eq!(arena.trim(), CHUNK);
            assert_eq!(backed_len(&arena, Oa::new(0), 16 << 20), 0);
            upholds_its_contract(&arena);
        }
    }

    #[test]
    fn metadata_of_a_large_arena_costs_nothing_until_it_is_used() {
        let arena = Arena::new(1 << 40).unwrap();
        let page = Taken::new(&arena, PageSize::KIB_4, 1).unwrap();
        page.give(&arena, 1);
        assert_eq!(arena.usage().reached_len, CHUNK);
    }

    #[test]
    fn tables_of_a_shared_arena_are_seen_through_its_file() {
        let arena = arena(Backing::Shared);
        let file = arena.shared_fd().unwrap();
        let page = Taken::new(&arena, PageSize::KIB_16, 0x1234_5678).unwrap();
        // SAFETY: the size of the file is sealed, and what is read is not changed meanwhile.
        let other = unsafe { MmapOptions::new().map(&file) }.unwrap();
        assert_eq!(other.len() as u64, arena.usage().len);
        let offset = page.oa.get() as usize;
        let word = |offset: usize| {
            let bytes = other[offset..offset + 8].try_into().unwrap();
            u64::from_ne_bytes(bytes)
        };
        assert_eq!(word(offset), 0x1234_5678);
        assert_eq!(word(offset + (16 << 10) - 8), 0x1234_5678);
        drop(other);
        page.give(&arena, 0x1234_5678);
        // SAFETY: as above.
        let other = unsafe { MmapOptions::new().map(&file) }.unwrap();
        assert!(
            other[offset..offset + (16 << 10)]
                .iter()
                .all(|&byte| byte == 0)
        );
    }

    #[test]
    fn nobody_can_shorten_the_file_of_a_shared_arena() {
        let arena = arena(Backing::Shared);
        let file = arena
            .shared_fd()
            .unwrap()
            .as_fd()
            .try_clone_to_owned()
            .unwrap();
        assert!(rustix::fs::ftruncate(&file, 0).is_err());
        assert!(rustix::fs::ftruncate(&file, 1 << 30).is_err());
        drop(arena);
        assert_eq!(rustix::fs::fstat(&file).unwrap().st_size, 16 << 20);
    }

    #[test]
    fn a_private_arena_has_no_file() {
        assert!(arena(Backing::Private).shared_fd().is_none());
    }
}
