//! A table that outlives its program: another mapping of the same file, or another process, goes on
//! with it while hardware walks. The walkers of the reference crate play the hardware.

#![cfg(target_os = "linux")]
#![expect(
    unsafe_code,
    reason = "maps files that others have filled, and reads table words as hardware does"
)]

use std::collections::BTreeMap;
use std::env;
use std::io::{self, Write as _};
use std::ops::ControlFlow;
use std::os::fd::{AsFd as _, OwnedFd};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use iopt::invalidation::NoHardware;
use iopt::mem::{Arena, ArenaConfig, Backing, HugePages, TableMemory as _};
use iopt::radix::{AdoptError, Table, TableConfig, UnmapPolicy};
use iopt_formats::walk::Root;
use iopt_formats::{
    Format, Iova, IovaRange, Level, Oa, PageSize, Prot, amd, armv8, riscv, vtd, x86_64,
};
use iopt_reference::{Rigour, ScanError};
use iopt_tests::configuration::{
    LARGE_PAGES, MIXED_PAGES, SMALL_PAGES, dirty_stage1, dirty_stage2, legal,
};
use iopt_tests::for_each_configuration;
use iopt_tests::model::windows;
use iopt_tests::referee::Judged;

/// Bytes of the arenas.
const LEN: u64 = 4 << 20;

/// First output address: within 32 bits, and no multiple of what tables map.
const BASE: u64 = 0x4130_0000;

/// Leaf items that a test's tables hold at most.
const ITEM_LIMIT: u64 = 1 << 16;

/// Trees that a corruption test breaks, for each configuration.
const SEED_COUNT: u64 = 8;

/// Says which table the child process of a test takes over.
const HANDED_OVER: &str = "IOPT_TEST_HANDED_OVER";

type Shared<F> = Table<F, Arc<Arena>>;

fn config() -> ArenaConfig {
    ArenaConfig::new(LEN as usize)
        .with_base(Oa::new(BASE))
        .with_huge_pages(HugePages::NotAsked)
        .with_backing(Backing::Shared)
}

fn arena() -> Arc<Arena> {
    Arc::new(Arena::with_config(config()).expect("a small memory file"))
}

fn file(arena: &Arena) -> OwnedFd {
    let file = arena.shared_fd().expect("the arena is shared");
    file.try_clone_to_owned().expect("one more descriptor")
}

fn adopt_file(file: OwnedFd) -> Arc<Arena> {
    // SAFETY: who has filled the file has handed its table over and writes no more.
    Arc::new(unsafe { Arena::adopt(file, config()) }.expect("an arena of this length"))
}

fn adopt<F: Format>(format: F, arena: &Arc<Arena>, root: Root) -> Result<Shared<F>, AdoptError> {
    Table::adopt(format, Arc::clone(arena), TableConfig::new(), root)
}

fn free_rest(arena: &Arena) -> u64 {
    // SAFETY: the walkers start at the root that was adopted, and cache nothing.
    unsafe { arena.free_rest() }
}

/// A word of the arena, or `None` if there is no such.
fn word(arena: &Arena, address: u64) -> Option<&AtomicU64> {
    let is_inside = (BASE..BASE + LEN).contains(&address) && address.is_multiple_of(8);
    // SAFETY: the word lies in the mapping of the arena, and everybody uses atomic operations.
    is_inside.then(|| unsafe { AtomicU64::from_ptr(arena.ptr(Oa::new(address)).cast()) })
}

fn read(arena: &Arena) -> impl Fn(u64) -> Option<u64> + '_ {
    |address| word(arena, address).map(|word| word.load(Ordering::Acquire))
}

/// What hardware makes of one leaf item: bytes, output address, and whether it reads and writes.
type Seen = (u64, u64, bool, bool);

/// Returns what hardware finds below `root`, by address.
fn scan<F: Judged>(
    format: &F,
    arena: &Arena,
    root: Root,
) -> Result<BTreeMap<u64, Seen>, ScanError> {
    let mut found = BTreeMap::new();
    let judge = format.judge(root);
    judge.enumerate(&read(arena), ITEM_LIMIT, Rigour::Strict, |item| {
        let at = item.translation;
        found.insert(item.iova, (item.len, at.oa, at.read, at.write));
    })?;
    Ok(found)
}

/// Checks that the table says what hardware finds, no less and no more.
fn agrees<F: Judged>(table: &Shared<F>, found: &BTreeMap<u64, Seen>) {
    for (&iova, &(len, oa, read, write)) in found {
        for offset in [0, len / 2, len - 1] {
            let at = table.lookup(Iova::new(iova + offset));
            let at = at.unwrap_or_else(|| panic!("{iova:#x} is lost"));
            let prot = at.prot();
            assert_eq!(
                (at.oa().get(), prot.can_read(), prot.can_write()),
                (oa + offset, read, write),
                "{iova:#x} + {offset:#x}"
            );
        }
    }
    let mut mapped_len = 0_u128;
    table.dump(IovaRange::FULL, |run| {
        mapped_len += u128::from(run.range.len_minus_one()) + 1;
        ControlFlow::Continue(())
    });
    let found_len: u128 = found.values().map(|seen| u128::from(seen.0)).sum();
    assert_eq!(mapped_len, found_len);
}

/// A small generator, so that a failing seed can be run again.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }

    fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    fn pick<T: Copy>(&mut self, items: &[T]) -> T {
        items[self.below(items.len() as u64) as usize]
    }
}

/// Maps or unmaps something. What is refused changes nothing.
fn step<F: Format>(table: &Shared<F>, random: &mut Random) {
    let format = table.format();
    let sizes: Vec<_> = format.sizes().iter().collect();
    let window = random.pick(&windows(format.geometry()));
    let size = random.pick(&sizes);
    // Few places, so that some share tables.
    let place = random.pick(&[
        0,
        1,
        2,
        3,
        16,
        17,
        511,
        u64::MAX / 2,
        u64::MAX - 1,
        u64::MAX,
    ]);
    let count = window.len_minus_one() >> size.lg2();
    let start = window.start().get() + (place.min(count) << size.lg2());
    let Some(range) = IovaRange::with_len(Iova::new(start), size.bytes()) else {
        return;
    };
    let mut claim = table.claim(window).expect("nothing is claimed");
    let mut mapper = table.mapper(&mut claim).expect("a window is decoded");
    if random.below(4) == 0 {
        if let Ok(done) = mapper.unmap(range, UnmapPolicy::Sparse) {
            let flushed = done.gather.sync(&NoHardware).expect("no hardware fails");
            table.reclaim(&flushed);
        }
        return;
    }
    let oa_count = 1_u64 << (format.oa_bits() - size.lg2().min(format.oa_bits()));
    let oa = Oa::new(random.below(oa_count) << size.lg2());
    let prot = random.pick(&[Prot::R, Prot::RW]);
    if let Ok(mapped) = mapper.map(range, oa, prot) {
        mapped.sync(&NoHardware).expect("no hardware fails");
    }
}

/// Returns the bytes of the tables that are linked: those that were unlinked and wait for readers are
/// nobody's once the table is handed over.
fn linked_len<F: Format>(table: &Shared<F>) -> u64 {
    let waiting_len = table.quarantined_count() as u64 * F::GRANULE.bytes();
    table.memory().usage().used_len - waiting_len
}

/// Builds a table that holds something.
fn build<F: Format>(format: F, random: &mut Random) -> Shared<F> {
    let arena = arena();
    let table = Table::new(format, arena).expect("a page for the root");
    for _ in 0..random.below(24) + 8 {
        step(&table, random);
    }
    table
}

/// Hands a table over and returns where it is.
fn hand_over<F: Format>(table: Shared<F>) -> (Arc<Arena>, Root) {
    (Arc::clone(table.memory()), table.hand_over())
}

/// Unmaps everything, frees what is empty, and finds every page free afterwards.
fn ends_without_a_trace<F: Format>(table: Shared<F>) {
    let arena = Arc::clone(table.memory());
    for window in windows(table.format().geometry()) {
        let mut claim = table.claim(window).expect("nothing is claimed");
        let mut mapper = table.mapper(&mut claim).expect("a window is decoded");
        let done = mapper.unmap(window, UnmapPolicy::Sparse);
        let gather = done.expect("nothing is cut").gather;
        table.reclaim(&gather.sync(&NoHardware).expect("no hardware fails"));
        let gather = mapper.compact(window).expect("inside the claim");
        table.reclaim(&gather.sync(&NoHardware).expect("no hardware fails"));
    }
    let level_count = table.root().level.0 - table.format().geometry().top.0;
    let linked_count = table.table_count() - table.quarantined_count();
    assert_eq!(linked_count, usize::from(level_count) + 1);
    drop(table);
    assert_eq!(arena.usage().used_len, 0);
    let is_zero = (BASE..BASE + LEN)
        .step_by(8)
        .all(|address| read(&arena)(address) == Some(0));
    assert!(is_zero, "free pages hold zeroes");
}

/// Hands a table over from mapping to mapping, each of which changes it.
fn goes_from_hand_to_hand<F: Judged>(format: F) {
    for seed in 0..3 {
        let mut random = Random(seed);
        let mut table = build(format, &mut random);
        for _ in 0..3 {
            let used_len = linked_len(&table);
            let (arena, root) = hand_over(table);
            let found = scan(&format, &arena, root).expect("our own table is sound");
            let heirs = adopt_file(file(&arena));
            let heir = adopt(format, &heirs, root).expect("our own table is sound");
            assert_eq!(heir.root(), root);
            agrees(&heir, &found);
            free_rest(&heirs);
            assert_eq!(heirs.usage().used_len, used_len, "no page is lost");
            for _ in 0..12 {
                step(&heir, &mut random);
            }
            let found = scan(&format, &heirs, heir.root()).expect("our own table is sound");
            agrees(&heir, &found);
            table = heir;
        }
        ends_without_a_trace(table);
    }
}

/// Changes one word of a table page as no table operation would.
fn corrupt(arena: &Arena, random: &mut Random) {
    let reached = BASE..BASE + LEN;
    let words: Vec<u64> = reached
        .step_by(8)
        .filter(|&address| read(arena)(address) != Some(0))
        .collect();
    let victim = match random.below(8) {
        // Near a word that is used, so in a table mostly.
        0 | 1 => (random.pick(&words) & !0xfff) + random.below(512) * 8,
        _ => random.pick(&words),
    };
    let other = random.pick(&words);
    let word = word(arena, victim).expect("words lie inside");
    let old = word.load(Ordering::Relaxed);
    let new = match random.below(8) {
        // An address of some page, or somebody else's item.
        0 => (old & !0xf_ffff_f000) | (BASE + (random.below(64) << 12)),
        1 => read(arena)(other).expect("words lie inside"),
        2 => random.next(),
        3 => 0,
        _ => old ^ 1 << random.below(64),
    };
    word.store(new, Ordering::Relaxed);
}

/// Whatever somebody wrote into the tables: it is refused, and then nothing changed, or it is a sound
/// table. Returns how many were refused.
fn survives_corruption<F: Judged>(format: F) {
    let (mut refused_count, mut sound_count) = (0, 0);
    for seed in 0..SEED_COUNT {
        let mut random = Random(seed ^ 0x5eed << 32);
        let (arena, root) = hand_over(build(format, &mut random));
        // Some stay as they were built.
        let count = if seed % 8 == 0 {
            0
        } else {
            random.below(2) + 1
        };
        for _ in 0..count {
            corrupt(&arena, &mut random);
        }
        let heirs = adopt_file(file(&arena));
        let found = scan(&format, &heirs, root);
        match adopt(format, &heirs, root) {
            Err(_) => {
                refused_count += 1;
                assert_eq!(scan(&format, &heirs, root), found, "nothing changed");
                assert_eq!(free_rest(&heirs), LEN, "nothing is held back");
            }
            Ok(heir) => {
                sound_count += 1;
                let found = found.unwrap_or_else(|error| panic!("seed {seed}: {error}"));
                agrees(&heir, &found);
                free_rest(&heirs);
                ends_without_a_trace(heir);
            }
        }
    }
    assert!(refused_count > SEED_COUNT / 4, "{refused_count}");
    assert!(sound_count >= SEED_COUNT / 8, "{sound_count}");
}

/// What the child process of a test does with the table that it finds: the file is its standard
/// input.
fn lives_in_this_process<F: Judged>(format: F, root: Root) {
    let file = io::stdin().as_fd().try_clone_to_owned();
    let arena = adopt_file(file.expect("the file was passed"));
    let heir = adopt(format, &arena, root).expect("our own table is sound");
    let found = scan(&format, &arena, root).expect("our own table is sound");
    agrees(&heir, &found);
    free_rest(&arena);
    // The first entry gives way to a page of the smallest size.
    let smallest = format.sizes().smallest().expect("a format has sizes");
    let &first = found.keys().next().expect("something is mapped");
    let size = heir.lookup(Iova::new(first)).expect("it is mapped").size();
    let range = |size: PageSize| IovaRange::with_len(Iova::new(first), size.bytes());
    let entry = range(size).expect("entries do not wrap");
    let mut claim = heir.claim(entry).expect("nothing is claimed");
    let mut mapper = heir.mapper(&mut claim).expect("entries are decoded");
    let done = mapper.unmap(entry, UnmapPolicy::Exact).expect("one entry");
    done.gather.sync(&NoHardware).expect("no hardware fails");
    let page = range(smallest).expect("entries do not wrap");
    let mapped = mapper.map(page, Oa::new(smallest.bytes()), Prot::RW);
    let mapped = mapped.expect("it was unmapped");
    mapped.sync(&NoHardware).expect("no hardware fails");
    drop(claim);
    let used_len = linked_len(&heir);
    let root = heir.hand_over();
    let mut output = io::stdout();
    writeln!(
        output,
        "\nleft {} {} {used_len}",
        root.oa.get(),
        root.level.0
    )
    .expect("a pipe");
}

/// Hands a table to a process, and takes it back when that one has ended; hardware walks meanwhile.
fn lives_in_another_process<F: Judged>(format: F, name: &str) {
    let mut random = Random(7);
    let (arena, root) = loop {
        let (arena, root) = hand_over(build(format, &mut random));
        let found = scan(&format, &arena, root).expect("our own table is sound");
        if found.len() > 1 {
            break (arena, root);
        }
    };
    let mut expected = scan(&format, &arena, root).expect("our own table is sound");
    let (&watched, &watched_seen) = expected.last_key_value().expect("two items at least");

    let is_over = AtomicBool::new(false);
    let output = thread::scope(|scope| {
        let walker = scope.spawn(|| {
            let mut walk_count = 0;
            while !is_over.load(Ordering::Relaxed) || walk_count == 0 {
                let at = format.judge(root).walk(&read(&arena), watched);
                let at = at.expect("it stays mapped");
                assert_eq!((at.oa, at.read, at.write), {
                    let (_, oa, read, write) = watched_seen;
                    (oa, read, write)
                });
                walk_count += 1;
            }
        });
        let program = env::current_exe().expect("this test");
        let output = Command::new(program)
            .args([
                "--exact",
                "a_child_process_takes_a_table_over",
                "--nocapture",
            ])
            .env(
                HANDED_OVER,
                format!("{name} {} {}", root.oa.get(), root.level.0),
            )
            .stdin(Stdio::from(file(&arena)))
            .output();
        is_over.store(true, Ordering::Relaxed);
        walker.join().expect("hardware never faulted");
        output.expect("this test can be run")
    });
    let text = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{name}: {text}{errors}");
    let left = text.lines().find_map(|line| line.strip_prefix("left "));
    let left = left.expect("the child says what it left").split(' ');
    let left: Vec<u64> = left.map(|word| word.parse().expect("a number")).collect();
    let &[oa, level, used_len] = left.as_slice() else {
        panic!("{text}")
    };
    let root = Root {
        oa: Oa::new(oa),
        level: Level(u8::try_from(level).expect("a level")),
    };

    let heirs = adopt_file(file(&arena));
    let heir = adopt(format, &heirs, root).expect("our own table is sound");
    free_rest(&heirs);
    assert_eq!(heirs.usage().used_len, used_len, "no page is lost");
    let found = scan(&format, &heirs, root).expect("our own table is sound");
    agrees(&heir, &found);
    // The rest is as it was.
    let smallest = format
        .sizes()
        .smallest()
        .expect("a format has sizes")
        .bytes();
    let (&first, &(_, oa, ..)) = found.first_key_value().expect("two items at least");
    assert_eq!(oa, smallest, "the page that the child mapped");
    expected.retain(|iova, _| found.contains_key(iova));
    expected.remove(&first);
    assert!(expected.contains_key(&watched) || watched == first);
    assert_eq!(
        found.range(first + 1..).count(),
        expected.len() + smaller_items::<F>(&format)
    );
    assert!(
        expected
            .iter()
            .all(|(iova, seen)| found.get(iova) == Some(seen))
    );
    ends_without_a_trace(heir);
}

/// Returns the number of items, less one, that make a leaf of the smallest size.
fn smaller_items<F: Format>(format: &F) -> usize {
    format.sizes().smallest().map_or(0, F::item_count) - 1
}

#[test]
fn a_child_process_takes_a_table_over() {
    let Ok(handed_over) = env::var(HANDED_OVER) else {
        // Not a child.
        return;
    };
    let mut words = handed_over.split(' ');
    let (name, oa, level) = (words.next(), words.next(), words.next());
    let number = |word: Option<&str>| word.and_then(|word| word.parse::<u64>().ok());
    let root = Root {
        oa: Oa::new(number(oa).expect("an address")),
        level: Level(number(level).expect("a level") as u8),
    };
    let name = name.expect("a configuration");
    macro_rules! choose {
        ($($name:ident: $configured:expr;)*) => {
            match name {
                $(stringify!($name) => lives_in_this_process(legal($configured), root),)*
                other => panic!("no configuration {other}"),
            }
        };
    }
    for_each_configuration!(choose);
}

macro_rules! tests {
    ($($name:ident: $configured:expr;)*) => {
        mod a_table_goes_from_hand_to_hand {
            use super::*;
            $(
                #[test]
                fn $name() {
                    goes_from_hand_to_hand(legal($configured));
                }
            )*
        }

        mod a_corrupt_table_is_refused_or_sound {
            use super::*;
            $(
                #[test]
                fn $name() {
                    survives_corruption(legal($configured));
                }
            )*
        }

        mod a_table_lives_on_in_another_process {
            use super::*;
            $(
                #[test]
                fn $name() {
                    lives_in_another_process(legal($configured), stringify!($name));
                }
            )*
        }
    };
}
for_each_configuration!(tests);
