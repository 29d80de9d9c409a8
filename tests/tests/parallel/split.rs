//! Mappers split for the threads of a scope.

use std::thread;

use iopt::invalidation::NoHardware;
use iopt::radix::{MapError, UnmapPolicy};
use iopt_formats::tiny::Tiny;
use iopt_formats::{Iova, Level, Oa, Prot};
use iopt_tests::configuration::legal;

use crate::{Image, MIB, PAGE, range, table};

#[test]
fn a_mapper_splits_inside_its_range_only() {
    let table = table(legal(Tiny::new(3)), 1);
    let mut claim = table
        .claim(range(0x4000, 0x8000))
        .expect("nothing is claimed");
    let mut mapper = table.mapper(&mut claim).expect("it is decoded");
    for edge in [0, 0x3fff, 0x4000, 0xc000, u64::MAX] {
        assert!(mapper.split_at(Iova::new(edge)).is_none(), "{edge:#x}");
    }
    for edge in [0x4001, 0xbfff, 0x7000] {
        let (low, high) = mapper.split_at(Iova::new(edge)).expect("both hold a byte");
        assert_eq!(low.range(), range(0x4000, edge - 0x4000));
        assert_eq!(high.range(), range(edge, 0xc000 - edge));
    }
}

#[test]
fn a_part_changes_nothing_outside_of_its_range() {
    let table = table(legal(Tiny::new(3)), 1);
    let all = range(0, 0x1_0000);
    let mut claim = table.claim(all).expect("nothing is claimed");
    let mut mapper = table.mapper(&mut claim).expect("it is decoded");
    let block = range(0x4000, 0x4000);
    let sync = mapper.map(block, Oa::new(0), Prot::RW).expect("it is free");
    sync.sync(&NoHardware).expect("there is no hardware");
    let before = Image::of_table(&table);
    let (mut low, mut high) = mapper
        .split_at(Iova::new(0x6000))
        .expect("both hold a byte");
    for (part, own) in [
        (&mut low, range(0, 0x6000)),
        (&mut high, range(0x6000, 0xa000)),
    ] {
        let outside = MapError::OutsideClaim {
            range: all,
            claim: own,
        };
        assert_eq!(
            part.map(all, Oa::new(0), Prot::RW).map(|_| ()),
            Err(outside)
        );
        // The entry that reaches over the boundary belongs to neither.
        for policy in [UnmapPolicy::Exact, UnmapPolicy::WholeEntries] {
            let at = block
                .intersection(own)
                .expect("it reaches over the boundary");
            part.unmap(at, policy)
                .expect_err("the entry is not inside the part");
        }
    }
    assert_eq!(Image::of_table(&table), before);
    let unmapped = mapper
        .unmap(block, UnmapPolicy::Exact)
        .expect("it is mapped");
    unmapped
        .gather
        .sync(&NoHardware)
        .expect("there is no hardware");
}

/// Two threads fill one leaf table and the tables above it from both sides.
#[test]
fn two_threads_share_the_tables_between_their_parts() {
    let turns = if cfg!(miri) { 3 } else { 200 };
    for _ in 0..turns {
        let table = table(legal(Tiny::growing(2, 4)), 1);
        let mut claim = table.claim(range(0, MIB)).expect("nothing is claimed");
        let mut mapper = table.mapper(&mut claim).expect("it is decoded");
        let middle = 0x2_2000;
        let (mut low, mut high) = mapper
            .split_at(Iova::new(middle))
            .expect("both hold a byte");
        thread::scope(|scope| {
            scope.spawn(|| {
                for page in (0..16).rev() {
                    let at = range(middle - (page + 1) * PAGE, PAGE);
                    let sync = low.map(at, Oa::new(PAGE), Prot::RW).expect("it is free");
                    sync.sync(&NoHardware).expect("there is no hardware");
                }
            });
            for page in 0..16 {
                let at = range(middle + page * PAGE, PAGE);
                let sync = high.map(at, Oa::new(PAGE), Prot::RW).expect("it is free");
                sync.sync(&NoHardware).expect("there is no hardware");
            }
        });
        let image = Image::of_table(&table);
        assert_eq!(image.items.len(), 32);
        let all = range(middle - 16 * PAGE, 32 * PAGE);
        let unmapped = mapper.unmap(all, UnmapPolicy::Exact).expect("it is mapped");
        unmapped
            .gather
            .sync(&NoHardware)
            .expect("there is no hardware");
    }
}

#[test]
fn a_part_announces_the_root_that_it_needed_and_the_mapper_what_it_needs_later() {
    let table = table(legal(Tiny::growing(2, 4)), 1);
    let mut claim = table.claim(range(0, MIB)).expect("nothing is claimed");
    let mut mapper = table.mapper(&mut claim).expect("it is decoded");
    let (mut low, mut high) = mapper
        .split_at(Iova::new(MIB / 2))
        .expect("both hold a byte");
    let page = range(MIB - PAGE, PAGE);
    let sync = high.map(page, Oa::new(0), Prot::RW).expect("it is free");
    assert_eq!(sync.new_root().map(|root| root.level), Some(Level(3)));
    sync.sync(&NoHardware).expect("there is no hardware");
    let page = range(MIB / 4, PAGE);
    let sync = low.map(page, Oa::new(0), Prot::RW).expect("it is free");
    assert_eq!(sync.new_root().map(|root| root.level), Some(Level(3)));
    sync.sync(&NoHardware).expect("there is no hardware");
    let page = range(MIB - 2 * PAGE, PAGE);
    let sync = mapper.map(page, Oa::new(0), Prot::RW).expect("it is free");
    assert_eq!(sync.new_root().map(|root| root.level), Some(Level(3)));
    sync.sync(&NoHardware).expect("there is no hardware");
}

/// A part may unlink the table that the mapper used last; a block stored to it would be lost.
#[test]
fn a_mapper_walks_anew_after_its_parts() {
    let table = table(legal(Tiny::new(4)), 1);
    let mut claim = table.claim(range(0, MIB)).expect("nothing is claimed");
    let mut mapper = table.mapper(&mut claim).expect("it is decoded");
    let block = range(0, 4 * PAGE);
    for _ in 0..3 {
        let sync = mapper.map(block, Oa::new(0), Prot::RW).expect("it is free");
        sync.sync(&NoHardware).expect("there is no hardware");
        assert!(table.lookup(block.start()).is_some());
        // Remembers the way.
        let unmapped = mapper
            .unmap(block, UnmapPolicy::Exact)
            .expect("it is mapped");
        unmapped
            .gather
            .sync(&NoHardware)
            .expect("there is no hardware");
        let (mut low, _) = mapper
            .split_at(Iova::new(MIB / 2))
            .expect("both hold a byte");
        let gather = low.compact(range(0, MIB / 2)).expect("claimed");
        assert!(!gather.is_empty());
        // The table is not freed yet, so that it would take the block.
        gather.sync(&NoHardware).expect("there is no hardware");
    }
}
