//! Random operations on two small tables, one of which is changed and read on many threads, and on
//! a list of pages that says what they should translate.

use std::sync::Arc;

use iopt::invalidation::{Changes, NoHardware};
use iopt::mem::NonSnooped;
use iopt::radix::{BreakBeforeMake, DirtyError, MapError, Mapper, Table, UnmapError, UnmapPolicy};
use iopt_formats::tiny::Tiny;
use iopt_formats::{Format, Iova, IovaRange, Level, Oa, PageSize, PageSizes, Prot, walk};
use iopt_tests::check::TestTable;
use iopt_tests::configuration::legal;
use iopt_tests::memory::TestMemory;
use iopt_tests::shadow::Shadow;

use crate::{Image, MIB, PAGE, in_pool, range, runs_of, table};

/// Numbers that look random, the same every time (`SplitMix64`).
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, count: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let word = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let word = (word ^ word >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        (word ^ word >> 31) % count
    }

    /// Returns a range of pages of `space`: its whole, one aligned part, much of it, or little.
    fn range(&mut self, space: u64) -> IovaRange {
        let pages = space / PAGE;
        let start = self.below(pages);
        let left = pages - start;
        match self.below(5) {
            0 => range(0, space),
            4 => {
                let span = (PAGE << (2 * self.below(5))).min(space);
                // Every other time where roots stand.
                let number = self.below(2) * self.below(space / span);
                range(number * span, span)
            }
            1 => range(start * PAGE, left * PAGE),
            2 => range(start * PAGE, (1 + self.below(left)) * PAGE),
            _ => range(start * PAGE, (1 + self.below(left.min(20))) * PAGE),
        }
    }
}

/// What an operation said.
#[derive(Debug, Eq, PartialEq)]
enum Outcome {
    Mapped(Result<(Option<Changes>, Option<Level>), MapError>),
    Unmapped(Result<(u64, Changes), UnmapError>),
    Taken(Result<(Vec<IovaRange>, Changes), DirtyError>),
    Other(bool),
}

#[derive(Clone, Copy, Debug)]
enum Kind {
    /// With so many pages left, if there is a limit.
    Map(Oa, Prot, Option<usize>),
    Unmap(UnmapPolicy),
    TakeDirty,
    /// A device writes to the first byte.
    Write,
    Compact,
    Cut(PageSize),
    Merge,
}

/// One operation.
#[derive(Clone, Copy, Debug)]
struct Op {
    kind: Kind,
    at: IovaRange,
    claim: IovaRange,
}

impl Op {
    fn random(numbers: &mut Numbers, space: u64) -> Self {
        let at = numbers.range(space);
        let kind = match numbers.below(16) {
            0..5 => {
                // Often a distance that allows large leaves.
                let distance = numbers.below(64) * (PAGE << (2 * numbers.below(4)));
                let left = (numbers.below(4) == 0).then(|| numbers.below(90) as usize);
                let prot = [Prot::R, Prot::RW, Prot::RW][numbers.below(3) as usize];
                Kind::Map(Oa::new(at.start().get() + distance), prot, left)
            }
            5..8 => Kind::Unmap(UnmapPolicy::Exact),
            8..11 => Kind::Unmap(UnmapPolicy::WholeEntries),
            11 => Kind::TakeDirty,
            12 => Kind::Write,
            13 => Kind::Compact,
            14 => Kind::Cut(PageSize::from_lg2(12 + numbers.below(5) as u8)),
            _ => Kind::Merge,
        };
        let claim = [at, range(0, space), range(0, space)][numbers.below(3) as usize];
        Self { kind, at, claim }
    }

    /// Does it, on many threads if `is_parallel`.
    fn run(self, table: &TestTable<Tiny>, is_parallel: bool) -> Outcome {
        let mut claim = table.claim(self.claim).expect("nothing is claimed");
        let mut mapper = table.mapper(&mut claim).expect("it is decoded");
        let synced = |flushed| table.reclaim(&flushed);
        let at = self.at;
        match self.kind {
            Kind::Map(oa, prot, left) => {
                table.memory().set_left(left);
                let map = if is_parallel {
                    Mapper::par_map
                } else {
                    Mapper::map
                };
                let mapped = map(&mut mapper, at, oa, prot);
                table.memory().set_left(None);
                Outcome::Mapped(mapped.map(|sync| {
                    let root = sync.new_root().map(|root| root.level);
                    let said = (sync.changes().copied(), root);
                    synced(sync.sync(&NoHardware).expect("there is no hardware"));
                    said
                }))
            }
            Kind::Unmap(policy) => {
                let unmap = if is_parallel {
                    Mapper::par_unmap
                } else {
                    Mapper::unmap
                };
                Outcome::Unmapped(unmap(&mut mapper, at, policy).map(|unmapped| {
                    let gather = unmapped.gather;
                    let said = (unmapped.bytes, *gather.changes());
                    synced(gather.sync(&NoHardware).expect("there is no hardware"));
                    said
                }))
            }
            Kind::TakeDirty => {
                let taken = if is_parallel {
                    mapper.par_take_dirty(at)
                } else {
                    let mut parts = Vec::new();
                    let taken = mapper.take_dirty(at, |part| parts.push(part));
                    taken.map(|gather| (parts, gather))
                };
                Outcome::Taken(taken.map(|(parts, gather)| {
                    let said = (parts, *gather.changes());
                    synced(gather.sync(&NoHardware).expect("there is no hardware"));
                    said
                }))
            }
            Kind::Write => Outcome::Other(write(table, at.start())),
            Kind::Compact => {
                let gather = mapper.compact(at).expect("claimed, and there is memory");
                let flushed = gather.sync(&NoHardware).expect("there is no hardware");
                let has_changed = flushed.changes().range().is_some();
                synced(flushed);
                Outcome::Other(has_changed)
            }
            Kind::Cut(size) => {
                let cut = mapper.cut(at, size, BreakBeforeMake::Hitless, &NoHardware);
                Outcome::Other(cut.map(synced).is_ok())
            }
            Kind::Merge => {
                let merged = mapper.merge(at, BreakBeforeMake::Hitless, &NoHardware);
                Outcome::Other(merged.map(synced).is_ok())
            }
        }
    }
}

/// Marks the item that translates `iova` dirty, as hardware does; returns whether there is one.
fn write<F: Format>(table: &TestTable<F>, iova: Iova) -> bool {
    let (format, memory) = (table.format(), table.memory());
    let rule = format.dirty_rule().expect("dirty pages are tracked");
    let mut item = Oa::new(0);
    let read = |oa| memory.read(oa);
    let found = walk::walk(format, table.root(), iova, read, |step| {
        item = Oa::new(step.table.get() + 8 * step.index as u64);
    });
    found.is_ok() && memory.update(item, |word| rule.soil(word)).is_some()
}

/// The output address of each page, if it has one.
struct Model(Vec<Option<Oa>>);

impl Model {
    fn pages(&mut self, at: IovaRange) -> &mut [Option<Oa>] {
        let [first, last] = [at.start(), at.last()].map(|iova| (iova.get() / PAGE) as usize);
        &mut self.0[first..=last]
    }

    /// Checks the outcome of `op` and does what it says.
    fn follow(&mut self, op: Op, outcome: &Outcome) {
        let pages = self.pages(op.at);
        match (op.kind, outcome) {
            (Kind::Map(oa, _, left), Outcome::Mapped(result)) => {
                let occupied = pages.iter().position(Option::is_some);
                let occupied = occupied.map(|page| op.at.start().get() + page as u64 * PAGE);
                match *result {
                    Ok(_) => {
                        assert_eq!(occupied, None);
                        for (index, page) in (0..).zip(pages) {
                            *page = Some(Oa::new(oa.get() + index * PAGE));
                        }
                    }
                    Err(MapError::Occupied { iova }) => assert_eq!(Some(iova.get()), occupied),
                    Err(MapError::OutOfMemory(_)) => assert!(left.is_some()),
                    Err(error) => panic!("{error}"),
                }
            }
            (Kind::Unmap(policy), Outcome::Unmapped(Ok((bytes, _)))) => {
                let len = op.at.len_minus_one() + 1;
                assert!(*bytes == len || policy == UnmapPolicy::WholeEntries);
                if *bytes > 0 {
                    let removed = range(op.at.start().get(), *bytes);
                    let pages = self.pages(removed);
                    assert!(pages.iter().all(Option::is_some));
                    pages.fill(None);
                }
                let next = (op.at.start().get() + bytes) / PAGE;
                assert!(*bytes >= len || self.0[next as usize].is_none());
            }
            _ => {}
        }
    }
}

/// The same operations on two tables: the same outcomes, the same words, and what they should
/// translate.
fn agrees(format: Tiny, seed: u64, op_count: u64) {
    let space = format.geometry().va_mask() + 1;
    let mut numbers = Numbers(seed);
    let mut tables = [table(format, 2), table(format, 2)];
    let first_root = tables[1].root();
    let mut model = Model(vec![None; (space / PAGE) as usize]);
    for step in 0..op_count {
        let op = Op::random(&mut numbers, space);
        let context = format!("{op:x?}, step {step} of seed {seed} on {format:?}");
        let [one, many] = &tables;
        let outcome = op.run(one, false);
        assert_eq!(op.run(many, true), outcome, "{context}");
        model.follow(op, &outcome);
        for (page, expected) in (0..).zip(&model.0) {
            let found = many.lookup(Iova::new(page * PAGE)).map(|found| found.oa());
            assert_eq!(found, *expected, "page {page:#x} after {context}");
        }
        // A device context may still point to the first root.
        let reach = PAGE << (2 * (first_root.level.0 + 1));
        for page in (0..reach).step_by(PAGE as usize) {
            let read = |oa| many.memory().read(oa);
            let found = walk::walk(&format, first_root, Iova::new(page), read, |_| {});
            let expected = model.0[(page / PAGE) as usize];
            assert_eq!(
                found.ok().map(|found| found.oa),
                expected,
                "{page:#x} after {context}"
            );
        }

        let at = numbers.range(space);
        assert_eq!(many.par_dump(at), runs_of(one, at), "{at} after {context}");
        let mut dirty = Vec::new();
        one.dirty(at, |part| dirty.push(part)).expect("tracked");
        assert_eq!(many.par_dirty(at), Ok(dirty), "{at} after {context}");

        tables.iter_mut().for_each(Table::trim);
        let [one, many] = tables.each_ref().map(Image::of_table);
        assert_eq!(many, one, "{context}");
    }
}

#[test]
fn any_operations_on_many_threads_do_what_they_do_on_one() {
    let (max_levels, seed_count, op_count) = if cfg!(miri) { (3, 1, 12) } else { (4, 20, 40) };
    let all_sizes = |levels| legal(Tiny::growing(levels, max_levels)).with_dirty();
    let formats = (2..=max_levels).flat_map(|levels| {
        let sizes = [1 << 12, 1 << 12 | 1 << 14].map(PageSizes::from_bits);
        let few_sizes = sizes.map(|sizes| legal(all_sizes(levels).with_sizes(sizes)));
        let many_sizes = [all_sizes(levels).with_groups(), all_sizes(levels)];
        many_sizes.into_iter().chain(few_sizes)
    });
    let formats = formats.take(if cfg!(miri) { 1 } else { usize::MAX });
    in_pool(|| {
        for format in formats {
            for seed in 0..seed_count {
                agrees(format, seed, op_count);
            }
        }
    });
}

/// The first root of the format has no items as large as the only leaf.
#[test]
fn a_root_starts_as_tall_as_the_smallest_leaf_needs() {
    let blocks = PageSizes::EMPTY.with(PageSize::KIB_64);
    let table = table(legal(legal(Tiny::growing(2, 4)).with_sizes(blocks)), 1);
    let at = range(0, 4 * PageSize::KIB_64.bytes());
    let mut claim = table.claim(at).expect("nothing is claimed");
    let mut mapper = table.mapper(&mut claim).expect("it is decoded");
    let sync = mapper.map(at, Oa::new(0), Prot::RW).expect("it is free");
    sync.sync(&NoHardware).expect("there is no hardware");
    assert_eq!(runs_of(&table, range(0, MIB)).len(), 1);
    assert_eq!((table.root().level, table.table_count()), (Level(2), 1));
}

/// Shared tables are linked by one thread and used by others; hardware that does not snoop finds
/// every way.
#[test]
fn walkers_that_do_not_snoop_see_what_many_threads_mapped() {
    let at = range(0, MIB);
    let memory = Arc::new(TestMemory::new(2));
    let shadow = NonSnooped::new(Arc::clone(&memory), Shadow::new(Arc::clone(&memory)));
    let tiny = legal(Tiny::growing(2, 4));
    let table = Table::new(tiny, shadow).expect("the format has a software bit");
    let mut claim = table.claim(at).expect("nothing is claimed");
    let mut mapper = table.mapper(&mut claim).expect("it is decoded");
    let seen = || Image::of(&tiny, table.root(), |oa| table.memory().flush().read(oa));
    let real = || Image::of(&tiny, table.root(), |oa| memory.read(oa));
    in_pool(|| {
        let sync = mapper
            .par_map(at, Oa::new(PAGE), Prot::RW)
            .expect("it is free");
        sync.sync(&NoHardware).expect("there is no hardware");
        assert_eq!(seen().items.len(), 256);
        assert_eq!(seen(), real());
        let unmapped = mapper
            .par_unmap(at, UnmapPolicy::Exact)
            .expect("it is mapped");
        unmapped
            .gather
            .sync(&NoHardware)
            .expect("there is no hardware");
        assert_eq!(seen().items, []);
        assert_eq!(seen(), real());
    });
}
