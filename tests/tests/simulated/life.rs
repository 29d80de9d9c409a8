//! What a driver does all day, on every behaviour.

use iopt::radix::TablePolicy;
use iopt_formats::{Format as _, Prot};
use iopt_rig::Behaviour;
use iopt_sim::{Outcome, Rights};

use crate::machines::{Bench, CACHING, MEMORY, PLAIN, blocks, page_len, pages};

on_each_behaviour! {
    pages_come_and_go
    rights_are_kept
    rights_are_taken_away
    many_pages_come_and_go_at_once
    blocks_and_pages_go_together
    tables_are_freed_and_used_again
    a_block_replaces_an_empty_table
    devices_come_and_go
    one_page_is_mapped_again_and_again
}

fn pages_come_and_go<B: Behaviour>(behaviour: &B) {
    let bench = Bench::new(behaviour);
    let all = pages::<B>(0x100, 9);
    // No larger entries: the memory is at an odd page.
    let memory = MEMORY + page_len::<B>();
    // What is not there may be cached.
    bench.assert_refused(&all);
    bench.map(&all, memory);
    bench.assert_reached(&all, memory);
    let middle = pages::<B>(0x103, 3);
    bench.assert_reached(&middle, memory + 3 * page_len::<B>());
    bench.unmap(&middle);
    bench.assert_refused(&middle);
    bench.assert_reached(&pages::<B>(0x100, 3), memory);
    bench.assert_reached(&pages::<B>(0x106, 3), memory + 6 * page_len::<B>());
    bench.unmap(&all);
    bench.assert_refused(&all);
    assert!(bench.machine.iommu().statistics().device_tlb_hits > 0);
}

fn rights_are_kept<B: Behaviour>(behaviour: &B) {
    let bench = Bench::new(behaviour);
    let page = pages::<B>(5, 1);
    bench
        .domain
        .map(page.clone(), MEMORY, Prot::R)
        .expect("the hardware answers");
    for device in [PLAIN, CACHING] {
        let read = bench.machine.access(device, *page.start(), Rights::READ);
        assert!(matches!(read, Ok(Outcome::Translated { .. })));
        let write = bench.machine.access(device, *page.start(), Rights::WRITE);
        assert!(matches!(write, Ok(Outcome::Refused(_))));
    }
}

fn rights_are_taken_away<B: Behaviour>(behaviour: &B) {
    let bench = Bench::new(behaviour);
    // A larger leaf, or a group, and a page.
    for range in [blocks::<B>(7, 1), pages::<B>(5, 1)] {
        bench.map(&range, MEMORY);
        bench.assert_reached(&range, MEMORY);
        bench
            .domain
            .protect(range.clone(), MEMORY, Prot::R)
            .expect("the hardware answers");
        bench.assert_clean();
        for device in [PLAIN, CACHING] {
            let read = bench.machine.access(device, *range.end(), Rights::READ);
            assert!(matches!(read, Ok(Outcome::Translated { .. })), "{read:?}");
            let write = bench.machine.access(device, *range.end(), Rights::WRITE);
            assert!(matches!(write, Ok(Outcome::Refused(_))), "{write:?}");
        }
        bench.unmap(&range);
        bench.assert_refused(&range);
    }
}

fn many_pages_come_and_go_at_once<B: Behaviour>(behaviour: &B) {
    let bench = Bench::new(behaviour);
    // More than a leaf table has, neither end at the border of one.
    let all = pages::<B>(0x123, 3000);
    // Pages, because the memory is at an odd one.
    let memory = MEMORY + page_len::<B>();
    bench.map(&all, memory);
    bench.assert_reached(&all, memory);
    // Each of them is cached, so that what lies between two commands is seen.
    for iova in all.clone().step_by(page_len::<B>() as usize) {
        let reached = bench.machine.access(PLAIN, iova, Rights::ALL);
        reached.unwrap_or_else(|stale| panic!("{stale}"));
    }
    for (first, count) in [(0x123, 1), (0x200, 64), (0x300, 1000), (0x123, 3000)] {
        let part = pages::<B>(first, count);
        bench.unmap(&part);
        bench.assert_refused(&part);
    }
}

fn blocks_and_pages_go_together<B: Behaviour>(behaviour: &B) {
    let bench = Bench::new(behaviour);
    let (large, small) = (blocks::<B>(4, 2), blocks::<B>(6, 1));
    let block_len = small.end() - small.start() + 1;
    // Two leaves, and not one group of both.
    let memory = MEMORY + block_len;
    bench.map(&large, memory);
    let elsewhere = memory + 8 * block_len + page_len::<B>();
    bench.map(&small, elsewhere);
    let leaf = bench
        .domain
        .table()
        .lookup(iopt_formats::Iova::new(*large.start()));
    assert_eq!(leaf.expect("it is mapped").size().bytes(), block_len);
    bench.assert_reached(&large, memory);
    bench.assert_reached(&small, elsewhere);
    // The second of them, and some of the pages.
    let part = *blocks::<B>(5, 1).start()..=small.start() + 3 * page_len::<B>() - 1;
    bench.unmap(&part);
    bench.assert_refused(&part);
    bench.assert_reached(&blocks::<B>(4, 1), memory);
    bench
        .domain
        .unmap(blocks::<B>(4, 3))
        .expect("the hardware answers");
    bench.assert_refused(&blocks::<B>(4, 3));
}

fn tables_are_freed_and_used_again<B: Behaviour>(behaviour: &B) {
    let bench = Bench::new(behaviour);
    let other = bench.machine.domain().expect("there is memory");
    let empty = bench.domain.table().table_count();
    for round in 0..4 {
        let all = blocks::<B>(8 + round, 3);
        let memory = MEMORY + page_len::<B>();
        bench.map(&all, memory);
        bench.assert_reached(&all, memory);
        let set = bench.domain.set();
        let unmapped = bench.domain.unmap_by(all.clone(), TablePolicy::Detach, set);
        unmapped.expect("the hardware answers");
        // Whoever takes the pages makes other tables of them.
        other
            .map(all.clone(), memory, Prot::RW)
            .expect("the hardware answers");
        bench.assert_refused(&all);
        let set = other.set();
        other
            .unmap_by(all, TablePolicy::Detach, set)
            .expect("the hardware answers");
    }
    bench.free_what_is_proven();
    // Those above the last block, and the one that was proven by.
    assert!(bench.domain.table().table_count() <= empty + 3);
}

fn a_block_replaces_an_empty_table<B: Behaviour>(behaviour: &B) {
    let bench = Bench::new(behaviour);
    let (block, memory) = (blocks::<B>(9, 1), MEMORY + page_len::<B>());
    bench.map(&block, memory);
    bench.assert_reached(&block, memory);
    bench.unmap(&block);
    bench.assert_refused(&block);
    bench.map(&block, MEMORY);
    bench.assert_reached(&block, MEMORY);
    bench.assert_clean();
    bench.unmap(&block);
    bench.assert_refused(&block);
}

fn devices_come_and_go<B: Behaviour>(behaviour: &B) {
    let bench = Bench::new(behaviour);
    let page = pages::<B>(3, 1);
    let other = bench.machine.domain().expect("there is memory");
    let elsewhere = MEMORY + 64 * page_len::<B>();
    bench.map(&page, MEMORY);
    other
        .map(page.clone(), elsewhere, Prot::RW)
        .expect("the hardware answers");
    for has_ats in [true, false] {
        bench.assert_reached(&page, MEMORY);
        for device in [PLAIN, CACHING] {
            bench
                .machine
                .detach(&bench.domain, device)
                .expect("the hardware answers");
        }
        bench.assert_refused(&page);
        for device in [PLAIN, CACHING] {
            bench
                .machine
                .attach(&other, device, has_ats)
                .expect("the hardware answers");
        }
        bench.assert_reached(&page, elsewhere);
        bench.assert_clean();
        for device in [PLAIN, CACHING] {
            bench
                .machine
                .detach(&other, device)
                .expect("the hardware answers");
            bench.attach(device, has_ats);
        }
    }
    // Nobody is told of what nobody caches.
    for device in [PLAIN, CACHING] {
        bench
            .machine
            .detach(&bench.domain, device)
            .expect("the hardware answers");
    }
    let before = bench.machine.iommu().statistics().command_count();
    bench.unmap(&page);
    let after = bench.machine.iommu().statistics().command_count();
    assert_eq!(before, after);
    bench.assert_refused(&page);
    // Whoever comes back finds nothing of before.
    bench.attach(PLAIN, false);
    bench.attach(CACHING, true);
    bench.assert_refused(&page);
}

fn one_page_is_mapped_again_and_again<B: Behaviour>(behaviour: &B) {
    let bench = Bench::new(behaviour);
    let page = pages::<B>(0x77, 1);
    for turn in 0..100 {
        let memory = MEMORY + turn * B::Format::GRANULE.bytes();
        bench.map(&page, memory);
        bench.assert_reached(&page, memory);
        bench.unmap(&page);
        bench.assert_refused(&page);
    }
}
