//! Trees built in one mapping of a file and taken over in another.

#![expect(unsafe_code, reason = "maps a file twice and writes words into tables")]

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::ops::ControlFlow;

use iopt_formats::amd::V1;
use iopt_formats::armv8::{HardwareUpdates, Stage1};
use iopt_formats::tiny::Tiny;
use iopt_formats::vtd::SecondStage;
use iopt_formats::{IovaRange, PageSizes, Prot};

use super::*;
use crate::invalidation::NoHardware;
use crate::mem::{Arena, ArenaConfig, Backing, FlushLine, HugePages, NonSnooped};
use crate::radix::{BreakBeforeMake, UnmapPolicy};

const PAGE: u64 = 0x1000;
const BASE: u64 = 0x4130_0000;

fn config() -> ArenaConfig {
    ArenaConfig::new(4 << 20)
        .with_base(Oa::new(BASE))
        .with_huge_pages(HugePages::NotAsked)
        .with_backing(Backing::Shared)
}

fn arena() -> Arc<Arena> {
    Arc::new(Arena::with_config(config()).expect("a small memory file"))
}

/// Maps the file of `arena` once more, as another program does that takes it over.
fn second(arena: &Arena) -> Arc<Arena> {
    let file = arena.shared_fd().expect("the arena is shared");
    let file = file.try_clone_to_owned().expect("one more descriptor");
    // SAFETY: the tests use the tables of the first mapping no more, and drop none.
    Arc::new(unsafe { Arena::adopt(file, config()) }.expect("the same file and length"))
}

fn free_rest(arena: &Arena) -> u64 {
    // SAFETY: no hardware walks the tables of the tests.
    unsafe { arena.free_rest() }
}

fn range(start: u64, len: u64) -> IovaRange {
    IovaRange::with_len(Iova::new(start), len).expect("the range does not wrap")
}

/// A word of a table's page, by its address.
fn word(arena: &Arena, oa: u64) -> &AtomicU64 {
    let word = arena.ptr(Oa::new(oa)).cast();
    // SAFETY: the word lies in the arena, and everybody accesses it by atomics.
    unsafe { AtomicU64::from_ptr(word) }
}

fn dump<F: Format, M: TableMemory>(table: &Table<F, M>) -> Vec<(IovaRange, Oa, Prot)> {
    let mut runs = Vec::new();
    table.dump(IovaRange::FULL, |run| {
        runs.push((run.range, run.oa, run.prot));
        ControlFlow::Continue(())
    });
    runs
}

type Shared<F> = Table<F, Arc<Arena>>;

fn map<F: Format>(table: &Shared<F>, start: u64, len: u64, oa: u64) {
    let mut claim = table.claim(range(start, len)).expect("nothing is claimed");
    let mut mapper = table.mapper(&mut claim).expect("the range is decoded");
    let mapped = mapper.map(range(start, len), Oa::new(oa), Prot::RW);
    let mapped = mapped.expect("nothing is mapped there");
    mapped.sync(&NoHardware).expect("no hardware fails");
}

fn unmap<F: Format>(table: &Shared<F>, start: u64, len: u64) {
    let mut claim = table.claim(range(start, len)).expect("nothing is claimed");
    let mut mapper = table.mapper(&mut claim).expect("the range is decoded");
    let done = mapper.unmap(range(start, len), UnmapPolicy::Sparse);
    let done = done.expect("nothing is cut").gather;
    let flushed = done.sync(&NoHardware).expect("no hardware fails");
    drop(claim);
    table.reclaim(&flushed);
    compact(table);
}

/// Frees all tables that hold nothing.
fn compact<F: Format>(table: &Shared<F>) {
    let geometry = table.format().geometry();
    let start = Iova::new(0_u64.wrapping_sub(geometry.bias()));
    let last = Iova::new(geometry.va_mask().wrapping_sub(geometry.bias()));
    let window = IovaRange::new(start, last).expect("no window of the tests wraps");
    let mut claim = table.claim(window).expect("nothing is claimed");
    let mut mapper = table.mapper(&mut claim).expect("the range is decoded");
    let gather = mapper.compact(window).expect("inside the claim");
    let flushed = gather.sync(&NoHardware).expect("no hardware fails");
    table.reclaim(&flushed);
}

fn adopt<F: Format>(format: F, arena: &Arc<Arena>, root: Root) -> Result<Shared<F>, AdoptError> {
    Table::adopt(format, Arc::clone(arena), TableConfig::new(), root)
}

/// Builds a table with `maps` (start, length, output address) and returns its arena and root.
fn build<F: Format>(format: F, maps: &[(u64, u64, u64)]) -> (Arc<Arena>, Root) {
    let arena = arena();
    let table = Table::new(format, Arc::clone(&arena)).expect("a page for the root");
    for &(start, len, oa) in maps {
        map(&table, start, len, oa);
    }
    (arena, table.hand_over())
}

/// Hands a tree over and goes on with it.
fn lives_on<F: Format>(format: F, maps: &[(u64, u64, u64)], more: (u64, u64, u64)) {
    let first = arena();
    let table = Table::new(format, Arc::clone(&first)).expect("a page for the root");
    for &(start, len, oa) in maps {
        map(&table, start, len, oa);
    }
    // Litter: pages that were in use and hold words.
    let litter = first.alloc(PageSize::KIB_16).expect("there is room");
    word(&first, litter.get()).store(u64::MAX, Ordering::Relaxed);
    let (runs, count, used_len) = (dump(&table), table.table_count(), first.usage().used_len);
    let root = table.hand_over();

    let arena = second(&first);
    let heir = adopt(format, &arena, root).expect("the tree is sound");
    assert_eq!(heir.root(), root);
    assert_eq!((dump(&heir), heir.table_count()), (runs.clone(), count));
    assert_eq!(
        arena.alloc(PageSize::KIB_4),
        Err(crate::mem::OutOfMemory {
            size: PageSize::KIB_4
        })
    );
    let freed_len = free_rest(&arena);
    assert_eq!(free_rest(&arena), 0);
    let usage = arena.usage();
    assert_eq!(usage.used_len, used_len - (16 << 10));
    assert_eq!(usage.used_len + freed_len, usage.len);
    // The litter's page comes back cleared, and each page once.
    assert_eq!(word(&arena, litter.get()).load(Ordering::Relaxed), 0);

    let (start, len, oa) = more;
    map(&heir, start, len, oa);
    let at = heir.lookup(Iova::new(start + len - 1));
    assert_eq!(at.map(|at| at.oa().get()), Some(oa + len - 1));
    unmap(&heir, start, len);
    assert_eq!((dump(&heir), heir.table_count()), (runs, count));
    for &(start, len, _) in maps {
        unmap(&heir, start, len);
    }
    assert_eq!(dump(&heir), []);
    drop(heir);
    assert_eq!(arena.usage().used_len, 0);
}

#[test]
fn a_tree_lives_on_in_another_mapping() {
    let tiny = Tiny::growing(2, 4).expect("2 to 4 levels").with_groups();
    lives_on(
        tiny,
        &[(PAGE, 7 * PAGE, 0x10_1000), (0x3_0000, 0x1_0000, 0x1_0000)],
        (0x2_1000, 2 * PAGE, 0x5000),
    );
    lives_on(tiny.with_dirty(), &[(0, 3 * PAGE, 0)], (0xf000, PAGE, 0));
    let ss = SecondStage::new(48).expect("a legal width");
    lives_on(
        ss.with_dirty(),
        &[(0, 5 << 20, 0), (0x7f_ffff_f000, PAGE, PAGE)],
        (1 << 40, 1 << 30, 0),
    );
    let arm = Stage1::<12>::new(48, 44).expect("legal widths");
    lives_on(
        arm.with_updates(HardwareUpdates::Dirty),
        &[(0x1_0000, 0x2_1000, 0x3_0000), (1 << 30, 33 << 20, 0)],
        (1 << 47, 1 << 16, 0),
    );
    let upper = Stage1::<16>::new(48, 48)
        .expect("legal widths")
        .in_upper_half();
    let start = 0xffff_u64 << 48;
    lives_on(
        upper,
        &[(start, 1 << 20, 0)],
        (start + (1 << 40), 1 << 29, 0),
    );
}

#[test]
fn a_root_that_has_grown_goes_on_growing() {
    let v1 = V1::new().with_dirty();
    lives_on(
        v1,
        &[(0x5000, PAGE, 0), (1 << 45, 3 << 20, 0x4000_0000)],
        (1 << 45 | 1 << 40, 1 << 16, 0),
    );
    let (first, root) = build(v1, &[(0x5000, PAGE, 0), (1 << 45, PAGE, 0)]);
    assert_eq!(root.level, Level(3));
    let arena = second(&first);
    let heir = adopt(v1, &arena, root).expect("the tree is sound");
    free_rest(&arena);
    map(&heir, 1 << 60, PAGE, 0x9000);
    assert_eq!(heir.root().level, Level(5));
    let found = [0x5000, 1 << 45, 1 << 60].map(|iova| heir.lookup(Iova::new(iova)));
    assert!(found.iter().all(Option::is_some));
}

#[test]
fn what_hardware_has_marked_is_adopted_as_it_is() {
    // Accessed bits of a pointer and of a leaf, and a page that was cleaned.
    let v1 = V1::new().with_dirty();
    let (first, root) = build(v1, &[(0, PAGE, 0x7000)]);
    let level1 = word(&first, root.oa.get()).fetch_or(1 << 5, Ordering::Relaxed);
    let level1 = level1 & 0xf_ffff_ffff_f000;
    let level0 = word(&first, level1).fetch_or(1 << 5, Ordering::Relaxed) & 0xf_ffff_ffff_f000;
    word(&first, level0).fetch_and(!(1 << 6), Ordering::Relaxed);
    let heir = adopt(v1, &second(&first), root).expect("the tree is sound");
    let found = heir.lookup(Iova::new(5)).expect("it is mapped");
    assert_eq!((found.oa().get(), found.is_dirty()), (0x7005, false));
    word(&first, level0).fetch_or(1 << 6, Ordering::Relaxed);
    assert!(
        heir.lookup(Iova::new(5))
            .is_some_and(|found| found.is_dirty())
    );
    assert_eq!(heir.hand_over(), root);
}

#[test]
fn the_mark_of_a_cut_that_hardware_did_not_answer_is_no_fault() {
    let arm = Stage1::<12>::new(39, 40).expect("legal widths");
    let (first, root) = build(arm, &[(2 << 20, 2 << 20, 0)]);
    let level1 = word(&first, root.oa.get()).load(Ordering::Relaxed) & 0xff_ffff_f000;
    word(&first, level1 + 8).fetch_or(1 << 16, Ordering::Relaxed);
    let arena = second(&first);
    let heir = adopt(arm, &arena, root).expect("the tree is sound");
    free_rest(&arena);
    let block = range(2 << 20, 2 << 20);
    let mut claim = heir.claim(block).expect("nothing is claimed");
    let mut mapper = heir.mapper(&mut claim).expect("the range is decoded");
    mapper
        .cut(block, PageSize::KIB_4, BreakBeforeMake::Marked, &NoHardware)
        .expect("there is room");
    assert_eq!(
        heir.lookup(block.start()).map(|at| at.size()),
        Some(PageSize::KIB_4)
    );
}

/// The tree that the tests below break: VT-d, 3 levels, four tables.
struct Broken {
    first: Arc<Arena>,
    root: Root,
    /// Addresses of the tables on the path of address 0, from the root down.
    path: [u64; 3],
}

fn broken() -> Broken {
    let maps = [
        (0, 3 * PAGE, 0x8_0000),
        (2 << 20, 2 << 20, 0),
        (1 << 30, PAGE, 0),
    ];
    let (first, root) = build(second_stage(), &maps);
    let below = |oa| word(&first, oa).load(Ordering::Relaxed) & 0xf_ffff_ffff_f000;
    let path = [
        root.oa.get(),
        below(root.oa.get()),
        below(below(root.oa.get())),
    ];
    Broken { first, root, path }
}

fn second_stage() -> SecondStage {
    let format = SecondStage::new(39).expect("a legal width");
    format.with_oa_bits(40).expect("a legal width")
}

impl Broken {
    fn set(&self, table: usize, index: u64, value: u64) {
        word(&self.first, self.path[table] + index * 8).store(value, Ordering::Relaxed);
    }

    fn bytes(&self) -> Vec<u64> {
        let words = (0..4 << 20).step_by(8);
        let read = |offset| word(&self.first, BASE + offset).load(Ordering::Relaxed);
        words.map(read).collect()
    }

    /// Tries to adopt it, and checks that a refusal leaves no trace.
    fn refusal(&self) -> AdoptError {
        let before = self.bytes();
        let arena = second(&self.first);
        let refused = adopt(second_stage(), &arena, self.root).expect_err("it is broken");
        // Nothing is held back for good.
        for size in [PageSize::KIB_4, PageSize::from_lg2(20)] {
            let first = Oa::new(BASE);
            arena.adopt_page(first, size).expect("nobody has it");
            // SAFETY: adopted above with this size, and not used.
            unsafe { arena.disown_page(first, size) };
        }
        assert!(self.bytes() == before, "a refused tree is not touched");
        assert_eq!(free_rest(&arena), 4 << 20);
        refused
    }

    fn fault(&self) -> (u64, u8, u64, ItemFault) {
        match self.refusal() {
            AdoptError::Item {
                iova,
                level,
                word,
                fault,
            } => (iova.get(), level.0, word, fault),
            other => panic!("{other}"),
        }
    }
}

#[test]
fn loops_and_shared_tables_are_refused() {
    for table in 0..3 {
        // A pointer below to a table above, or to itself.
        for above in 0..table {
            let broken = broken();
            let oa = Oa::new(broken.path[above]);
            broken.set(table - 1, 1, oa.get() | 3);
            let (iova, level, word, fault) = broken.fault();
            assert_eq!(iova, if table == 1 { 1 << 30 } else { 2 << 20 });
            assert_eq!((u64::from(level), word), (3 - table as u64, oa.get() | 3));
            let size = PageSize::KIB_4;
            assert_eq!(fault, ItemFault::Page(PageError::Taken { oa, size }));
        }
    }
    // One leaf table linked twice.
    let broken = broken();
    broken.set(1, 9, broken.path[2] | 3);
    let (iova, _, _, fault) = broken.fault();
    assert_eq!(iova, 9 << 21);
    assert!(matches!(fault, ItemFault::Page(PageError::Taken { .. })));
}

#[test]
fn a_table_of_another_tree_is_refused() {
    let arena = arena();
    let [one, two] = [0, 1].map(|_| {
        let table = Table::new(second_stage(), Arc::clone(&arena)).expect("there is room");
        map(&table, 0, PAGE, 0);
        table.hand_over()
    });
    let link = word(&arena, one.oa.get()).load(Ordering::Relaxed);
    let own = word(&arena, two.oa.get()).swap(link, Ordering::Relaxed);
    let heirs = second(&arena);
    let heir = adopt(second_stage(), &heirs, one).expect("the tree is sound");
    let refused = adopt(second_stage(), &heirs, two).expect_err("it shares a table");
    assert!(matches!(refused, AdoptError::Item { .. }), "{refused}");
    assert!(matches!(
        adopt(second_stage(), &heirs, one),
        Err(AdoptError::Root(ItemFault::Page(PageError::Taken { .. })))
    ));
    word(&arena, two.oa.get()).store(own, Ordering::Relaxed);
    let other = adopt(second_stage(), &heirs, two).expect("the tree is sound now");
    free_rest(&heirs);
    drop((heir, other));
    assert_eq!(heirs.usage().used_len, 0);
}

#[test]
fn a_root_outside_of_the_memory_or_the_format_is_refused() {
    let broken = broken();
    let arena = second(&broken.first);
    let size = PageSize::KIB_4;
    for oa in [
        0,
        BASE - PAGE,
        BASE + (4 << 20),
        (1 << 52) - PAGE,
        u64::MAX << 12,
    ] {
        let (oa, level) = (Oa::new(oa), broken.root.level);
        let refused = adopt(second_stage(), &arena, Root { oa, level });
        let outside = ItemFault::Page(PageError::Outside { oa, size });
        assert_eq!(refused.err(), Some(AdoptError::Root(outside)));
    }
    let (oa, level) = (Oa::new(BASE + 8), broken.root.level);
    let refused = adopt(second_stage(), &arena, Root { oa, level });
    let unaligned = ItemFault::Page(PageError::Unaligned { oa, size });
    assert_eq!(refused.err(), Some(AdoptError::Root(unaligned)));
    for level in [0, 1, 3, 5, 6, 255].map(Level) {
        let oa = broken.root.oa;
        let refused = adopt(second_stage(), &arena, Root { oa, level });
        assert!(matches!(refused, Err(AdoptError::RootLevel { .. })));
    }
}

#[test]
fn a_table_outside_of_the_memory_is_refused() {
    for oa in [0, BASE - PAGE, BASE + (4 << 20), (1 << 40) - PAGE] {
        let broken = broken();
        broken.set(0, 3, oa | 3);
        let (oa, size) = (Oa::new(oa), PageSize::KIB_4);
        let outside = ItemFault::Page(PageError::Outside { oa, size });
        assert_eq!(broken.fault(), (3 << 30, 2, oa.get() | 3, outside));
    }
}

#[test]
fn items_that_the_encoder_does_not_make_are_refused() {
    let foreign = |table: usize, value: u64| {
        let broken = broken();
        broken.set(table, 7, value);
        let (_, level, word, fault) = broken.fault();
        assert_eq!((u64::from(level), word), (2 - table as u64, value));
        fault
    };
    // Not present, but not zero.
    assert_eq!(foreign(2, 0x5000), ItemFault::Residue);
    assert_eq!(foreign(0, 0x80), ItemFault::Residue);
    // A memory type, TM, SNP; ignored bits of a leaf and above the address of a pointer.
    for bits in [1 << 3, 1 << 6, 1 << 11, 1 << 62, 1 << 63, 1 << 52, 1 << 2] {
        assert_eq!(foreign(2, 0x5003 | bits), ItemFault::Foreign, "{bits:#x}");
    }
    let next = BASE + (3 << 20);
    for bits in [1 << 62, 1 << 63, 1 << 52] {
        assert_eq!(foreign(1, next | 3 | bits), ItemFault::Foreign, "{bits:#x}");
    }
    // A pointer that allows less than the leaves below.
    assert_eq!(foreign(1, next | 1), ItemFault::Foreign);
    // Not written back.
    assert_eq!(foreign(1, next | 3 | 1 << 10), ItemFault::Pending);
    // A large page that is not aligned, and one that no level has.
    assert!(matches!(foreign(1, 0x1083), ItemFault::Reserved(_)));
    // Wider than 40 bits.
    let wide = ItemFault::OaWidth(Oa::new(1 << 40));
    assert_eq!(foreign(2, 1 << 40 | 3), wide);
    assert_eq!(foreign(1, 1 << 40 | 3), wide);
    assert_eq!(foreign(1, 1 << 40 | 0x83), wide);
}

#[test]
fn a_size_that_the_configuration_lacks_is_refused() {
    let (first, root) = build(
        SecondStage::new(39).expect("a legal width"),
        &[(0, 2 << 20, 0)],
    );
    let small = SecondStage::new(39)
        .and_then(|format| format.with_sizes(PageSizes::EMPTY.with(PageSize::KIB_4)))
        .expect("a legal format");
    let refused = adopt(small, &second(&first), root).err();
    let fault = ItemFault::Size(PageSize::MIB_2);
    assert!(matches!(refused, Some(AdoptError::Item { fault: found, .. }) if found == fault));
}

#[test]
fn a_group_must_agree() {
    let arm = Stage1::<12>::new(39, 40).expect("legal widths");
    let change = |index: u64, change: fn(u64) -> u64| {
        let (first, root) = build(arm, &[(0, 1 << 16, 1 << 16), (1 << 16, PAGE, 0)]);
        let below = |oa| word(&first, oa).load(Ordering::Relaxed) & 0xff_ffff_f000;
        let leaves = below(below(root.oa.get()));
        let item = word(&first, leaves + index * 8);
        item.store(change(item.load(Ordering::Relaxed)), Ordering::Relaxed);
        let refused = adopt(arm, &second(&first), root).err();
        match refused {
            Some(AdoptError::Item { iova, fault, .. }) => (iova.get(), fault),
            other => panic!("{other:?}"),
        }
    };
    // Missing, elsewhere, other rights, no part of it; a lone item of one.
    assert_eq!(change(3, |_| 0), (0, ItemFault::Group));
    assert_eq!(change(3, |word| word + 0x1000), (0, ItemFault::Group));
    assert_eq!(change(15, |word| word ^ 1 << 7), (0, ItemFault::Group));
    assert_eq!(change(9, |word| word ^ 1 << 52), (0, ItemFault::Group));
    assert_eq!(change(0, |word| word ^ 1 << 52), (PAGE, ItemFault::Group));
    assert_eq!(change(0, |word| word + 0x1000), (0, ItemFault::Group));
    assert_eq!(
        change(16, |word| word | 1 << 52),
        (1 << 16, ItemFault::Group)
    );
    // Hardware never sets the accessed flag here: such a leaf faults.
    assert_eq!(
        change(16, |word| word & !(1 << 10)),
        (1 << 16, ItemFault::Foreign)
    );
}

#[test]
fn a_group_must_begin_at_a_multiple_of_its_size() {
    let arm = Stage1::<12>::new(39, 40).expect("legal widths");
    let (first, root) = build(arm, &[(0, 1 << 16, 1 << 16)]);
    let below = |oa| word(&first, oa).load(Ordering::Relaxed) & 0xff_ffff_f000;
    let leaves = below(below(root.oa.get()));
    for index in (0..16).rev() {
        let item = word(&first, leaves + index * 8).swap(0, Ordering::Relaxed);
        word(&first, leaves + (index + 8) * 8).store(item, Ordering::Relaxed);
    }
    match adopt(arm, &second(&first), root).err() {
        Some(AdoptError::Item { iova, fault, .. }) => {
            assert_eq!((iova.get(), fault), (8 * PAGE, ItemFault::Group));
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_mark_of_hardware_hides_no_foreign_bit_of_a_pointer() {
    let v1 = V1::new();
    let (first, root) = build(v1, &[(0, PAGE, 0)]);
    let item = word(&first, root.oa.get());
    // A, which hardware sets, with bit 63, which it ignores: alone, it would be taken for address.
    item.fetch_or(1 << 63 | 1 << 5, Ordering::Relaxed);
    let refused = adopt(v1, &second(&first), root).err();
    let fault = ItemFault::Foreign;
    assert!(matches!(refused, Some(AdoptError::Item { fault: found, .. }) if found == fault));
}

#[test]
fn two_wrong_bits_of_a_leaf_are_refused_if_one_is_a_flag_of_hardware() {
    let v1 = V1::new().with_dirty();
    let (first, root) = build(v1, &[(0, PAGE, 0)]);
    let below = |oa| word(&first, oa).load(Ordering::Relaxed) & 0xf_ffff_ffff_f000;
    let leaf = word(&first, below(below(root.oa.get())));
    leaf.fetch_xor(1 << 63 | 1 << 6, Ordering::Relaxed);
    let refused = adopt(v1, &second(&first), root).err();
    let fault = ItemFault::Foreign;
    assert!(matches!(refused, Some(AdoptError::Item { fault: found, .. }) if found == fault));
}

#[test]
fn levels_must_not_be_skipped_and_former_roots_must_stay() {
    let v1 = V1::new();
    let (first, root) = build(v1, &[(0, PAGE, 0), (1 << 45, PAGE, 0)]);
    let item = word(&first, root.oa.get());
    let link = item.load(Ordering::Relaxed);
    let refused = |value| {
        item.store(value, Ordering::Relaxed);
        match adopt(v1, &second(&first), root).err() {
            Some(AdoptError::Item { fault, .. }) => fault,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(refused(link - (1 << 9)), ItemFault::Skips(Level(1)));
    assert_eq!(refused(0), ItemFault::FormerRoot);
    assert!(matches!(refused(link + (1 << 9)), ItemFault::Reserved(_)));
    item.store(link, Ordering::Relaxed);
    assert!(adopt(v1, &second(&first), root).map(Table::hand_over) == Ok(root));
}

#[test]
fn words_behind_the_items_must_be_zero() {
    let tiny = Tiny::new(3).expect("2 to 4 levels");
    let (first, root) = build(tiny, &[(0, PAGE, 0)]);
    let below = word(&first, root.oa.get()).load(Ordering::Relaxed) & 0xf_ffff_ffff_f000;
    word(&first, below + 4 * 8).store(7, Ordering::Relaxed);
    let refused = adopt(tiny, &second(&first), root).err();
    let behind = ItemFault::Behind(4);
    assert!(matches!(refused, Some(AdoptError::Item { fault, .. }) if fault == behind));
    word(&first, below + 4 * 8).store(0, Ordering::Relaxed);
    word(&first, root.oa.get() + 4088).store(7, Ordering::Relaxed);
    let refused = adopt(tiny, &second(&first), root).err();
    assert_eq!(refused, Some(AdoptError::Root(ItemFault::Behind(511))));
}

/// Writes nothing back: caches of the test's machine are coherent.
#[derive(Debug)]
struct NoFlush;

impl FlushLine for NoFlush {
    fn flush_line(&self, _line: *const u8) {}
}

#[test]
fn a_tree_for_walkers_that_do_not_snoop_is_adopted_too() {
    let first = arena();
    let memory = NonSnooped::new(Arc::clone(&first), NoFlush);
    let table = Table::new(second_stage(), memory).expect("a page for the root");
    let mut claim = table.claim(range(0, PAGE)).expect("nothing is claimed");
    let mut mapper = table.mapper(&mut claim).expect("the range is decoded");
    let mapped = mapper
        .map(range(0, PAGE), Oa::new(0), Prot::RW)
        .expect("it is free");
    mapped.sync(&NoHardware).expect("no hardware fails");
    drop(claim);
    let root = table.hand_over();
    let arena = second(&first);
    let memory = NonSnooped::new(Arc::clone(&arena), NoFlush);
    let heir = Table::adopt(second_stage(), memory, TableConfig::new(), root);
    let heir = heir.expect("no pointer is pending");
    assert!(heir.lookup(Iova::new(0)).is_some());
    free_rest(&arena);
    drop(heir);
    assert_eq!(arena.usage().used_len, 0);
}
