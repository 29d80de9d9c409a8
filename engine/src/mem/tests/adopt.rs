//! What an arena does that another program has filled.

#![expect(unsafe_code, reason = "memories hand out raw pages")]

use std::os::fd::OwnedFd;

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, fstat, ftruncate, memfd_create};

use super::*;

const CHUNK: u64 = 2 << 20;
const LEN: u64 = 16 << 20;
const BASE: u64 = 0x4000_0000;

fn config() -> ArenaConfig {
    ArenaConfig::new(LEN as usize)
        .with_base(Oa::new(BASE))
        .with_huge_pages(HugePages::NotAsked)
        .with_backing(Backing::Shared)
}

fn file(arena: &Arena) -> OwnedFd {
    let file = arena.shared_fd().expect("the arena is shared");
    file.try_clone_to_owned().expect("one more descriptor")
}

fn adopt(arena: &Arena) -> Arena {
    // SAFETY: the tests write to one mapping at a time.
    unsafe { Arena::adopt(file(arena), config()) }.expect("the same file and length")
}

fn free_rest(arena: &Arena) -> u64 {
    // SAFETY: no hardware walks tables of the tests.
    unsafe { arena.free_rest() }
}

/// Returns the bytes of the file that are backed by memory.
fn backed_len(arena: &Arena) -> u64 {
    let blocks = fstat(file(arena)).expect("a file").st_blocks;
    u64::try_from(blocks).expect("not negative") * 512
}

#[test]
fn what_is_adopted_stays_and_the_rest_is_free_and_zero() {
    let first = Arena::with_config(config()).expect("a small memory file");
    let kept = Taken::new(&first, PageSize::KIB_16, 5).expect("there is room");
    let lost: Vec<_> = (0..700)
        .map(|_| Taken::new(&first, PageSize::KIB_4, 6).expect("there is room"))
        .collect();
    let arena = adopt(&first);
    let usage = arena.usage();
    assert_eq!([usage.used_len, usage.reached_len], [LEN; 2]);
    assert!(arena.alloc(PageSize::KIB_4).is_err());
    assert_eq!(arena.adopt_page(kept.oa, kept.size), Ok(()));
    assert_eq!(free_rest(&arena), LEN - (16 << 10));
    assert_eq!(arena.usage().used_len, 16 << 10);
    // Every page that was lost can be had again, holds zeroes, and is had once.
    let mut pages: Vec<_> =
        core::iter::from_fn(|| Taken::new(&arena, PageSize::KIB_4, 7)).collect();
    assert_eq!(pages.len() as u64, LEN / 4096 - 4);
    pages.sort_by_key(|page| page.oa);
    pages.dedup_by_key(|page| page.oa);
    assert_eq!(pages.len() as u64, LEN / 4096 - 4);
    assert!(
        lost.iter()
            .all(|page| pages.iter().any(|new| new.oa == page.oa))
    );
    for page in pages {
        page.give(&arena, 7);
    }
    kept.give(&arena, 5);
    assert_eq!(arena.usage().used_len, 0);
    upholds_its_contract(&arena);
}

#[test]
fn memory_that_was_never_used_is_not_backed_by_freeing_it() {
    let first = Arena::with_config(config()).expect("a small memory file");
    let page = Taken::new(&first, PageSize::KIB_4, 1).expect("there is room");
    assert_eq!(backed_len(&first), 4096);
    let arena = adopt(&first);
    assert_eq!(free_rest(&arena), LEN);
    // What lies around the page was looked at.
    assert!((1..=CHUNK).contains(&backed_len(&arena)));
    let again = Taken::new(&arena, PageSize::KIB_4, 2).expect("there is room");
    assert_eq!(again.oa, page.oa, "lowest addresses first");
    again.give(&arena, 2);
    assert_eq!(arena.trim(), CHUNK);
    assert_eq!(backed_len(&arena), 0);
}

#[test]
fn a_page_is_adopted_once_and_lies_inside() {
    let first = Arena::with_config(config()).expect("a small memory file");
    let arena = adopt(&first);
    let (small, large) = (PageSize::KIB_4, PageSize::from_lg2(20));
    let at = |offset: u64| Oa::new(BASE + offset);
    assert_eq!(arena.adopt_page(at(0x5000), small), Ok(()));
    for (oa, size) in [
        (at(0x5000), small),
        (at(0), large),
        (at(0x4000), PageSize::KIB_16),
    ] {
        assert_eq!(
            arena.adopt_page(oa, size),
            Err(PageError::Taken { oa, size })
        );
    }
    for (oa, size) in [(at(0x5008), small), (at(0x1000), large), (at(0xfff), small)] {
        assert_eq!(
            arena.adopt_page(oa, size),
            Err(PageError::Unaligned { oa, size })
        );
    }
    let huge = PageSize::from_lg2(21);
    let last = Oa::new(!0xfff);
    for (oa, size) in [
        (at(LEN), small),
        (at(LEN - 4096), large),
        (Oa::new(BASE - 4096), small),
        (Oa::new(0), large),
        (last, small),
        (at(0), huge),
        (at(0), PageSize::from_lg2(11)),
    ] {
        assert_eq!(
            arena.adopt_page(oa, size),
            Err(PageError::Outside { oa, size })
        );
    }
    assert_eq!(arena.adopt_page(at(LEN - large.bytes()), large), Ok(()));
    // SAFETY: adopted above with this size, and never used.
    unsafe { arena.disown_page(at(LEN - large.bytes()), large) };
    assert_eq!(free_rest(&arena), LEN - 4096);
    let (oa, size) = (at(LEN - large.bytes()), large);
    assert_eq!(
        arena.adopt_page(oa, size),
        Err(PageError::Taken { oa, size })
    );
}

#[test]
fn an_arena_that_was_not_handed_over_gives_nothing_to_adopt() {
    let arena = Arena::with_config(config()).expect("a small memory file");
    let (oa, size) = (Oa::new(BASE), PageSize::KIB_4);
    assert_eq!(
        arena.adopt_page(oa, size),
        Err(PageError::Taken { oa, size })
    );
    assert_eq!(free_rest(&arena), 0);
}

#[test]
fn an_adopted_page_that_is_freed_early_is_free() {
    let first = Arena::with_config(config()).expect("a small memory file");
    let page = Taken::new(&first, PageSize::KIB_64, 3).expect("there is room");
    let arena = adopt(&first);
    assert_eq!(arena.adopt_page(page.oa, page.size), Ok(()));
    let (oa, size) = (page.oa, page.size);
    page.give(&arena, 3);
    let again = Taken::new(&arena, size, 4).expect("one page is free");
    assert_eq!(again.oa, oa);
    assert!(arena.adopt_page(oa, size).is_err());
    assert_eq!(free_rest(&arena), LEN - (64 << 10));
    assert_eq!(arena.usage().used_len, 64 << 10);
    again.give(&arena, 4);
}

#[test]
fn only_the_file_of_an_arena_of_that_length_is_adopted() {
    let refused = |file: OwnedFd, config: ArenaConfig| {
        // SAFETY: nobody writes to the files of this test.
        let refused = unsafe { Arena::adopt(file, config) };
        refused.expect_err("no such arena").kind()
    };
    let memory = |seals: SealFlags| {
        let file = memfd_create("test", MemfdFlags::ALLOW_SEALING).expect("a memory file");
        ftruncate(&file, LEN).expect("a small file");
        fcntl_add_seals(&file, seals).expect("a new file");
        file
    };
    let invalid = std::io::ErrorKind::InvalidInput;
    for seals in [SealFlags::empty(), SealFlags::GROW, SealFlags::SHRINK] {
        assert_eq!(refused(memory(seals), config()), invalid);
    }
    let (no_file, _other) = std::io::pipe().expect("two descriptors");
    assert_eq!(refused(no_file.into(), config()), invalid);
    let sealed = || memory(SealFlags::SHRINK | SealFlags::GROW);
    for len in [LEN - 4096, LEN + 4096, 4095, 0] {
        assert_eq!(refused(sealed(), ArenaConfig::new(len as usize)), invalid);
    }
    assert_eq!(
        refused(sealed(), config().with_base(Oa::new(4096))),
        invalid
    );
    // SAFETY: nobody else writes to the file.
    assert!(unsafe { Arena::adopt(sealed(), config()) }.is_ok());
}
