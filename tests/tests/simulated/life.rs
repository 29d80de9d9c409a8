//! What a driver does all day, on every behaviour.

use iopt::radix::TablePolicy;
use iopt_formats::{Format, Prot};
use iopt_rig::Behaviour;
use iopt_sim::{Outcome, Rights};

use crate::machines::{Bench, CACHING, MEMORY, PLAIN, page_len};

on_each_behaviour! {
    pages_come_and_go
    rights_are_kept
    many_pages_come_and_go_at_once
    blocks_and_pages_go_together
    tables_are_freed_and_used_again
    a_block_replaces_an_empty_table
    devices_come_and_go
    one_page_is_mapped_again_and_again
}

fn pages_come_and_go<B: Behaviour>(behaviour: B) {
    let bench = Bench::new(behaviour);
    let all = bench.pages(0x100, 9);
    // No larger entries: the memory is at an odd page.
    let memory = MEMORY + page_len::<B>();
    // What is not there may be cached.
    bench.assert_refused(&all);
    bench.domain.map(all.clone(), memory, Prot::RW).unwrap();
    bench.assert_reached(&all, memory);
    let middle = bench.pages(0x103, 3);
    bench.assert_reached(&middle, memory + 3 * page_len::<B>());
    bench.domain.unmap(middle.clone()).unwrap();
    bench.assert_refused(&middle);
    bench.assert_reached(&bench.pages(0x100, 3), memory);
    bench.assert_reached(&bench.pages(0x106, 3), memory + 6 * page_len::<B>());
    bench.domain.unmap(all.clone()).unwrap();
    bench.assert_refused(&all);
    assert!(bench.machine.iommu().statistics().device_tlb_hits > 0);
}

fn rights_are_kept<B: Behaviour>(behaviour: B) {
    let bench = Bench::new(behaviour);
    let page = bench.pages(5, 1);
    bench.domain.map(page.clone(), MEMORY, Prot::R).unwrap();
    for device in [PLAIN, CACHING] {
        let read = bench.machine.access(device, *page.start(), Rights::READ);
        assert!(matches!(read, Ok(Outcome::Translated { .. })));
        let write = bench.machine.access(device, *page.start(), Rights::WRITE);
        assert!(matches!(write, Ok(Outcome::Refused(_))));
    }
}

fn many_pages_come_and_go_at_once<B: Behaviour>(behaviour: B) {
    let bench = Bench::new(behaviour);
    // More than a leaf table has, neither end at the border of one.
    let all = bench.pages(0x123, 3000);
    // Pages, because the memory is at an odd one.
    let memory = MEMORY + page_len::<B>();
    bench.domain.map(all.clone(), memory, Prot::RW).unwrap();
    bench.assert_reached(&all, memory);
    for (first, count) in [(0x123, 1), (0x200, 64), (0x300, 1000), (0x123, 3000)] {
        let part = bench.pages(first, count);
        bench.domain.unmap(part.clone()).unwrap();
        bench.assert_refused(&part);
    }
}

fn blocks_and_pages_go_together<B: Behaviour>(behaviour: B) {
    let bench = Bench::new(behaviour);
    let (blocks, pages) = (bench.blocks(4, 2), bench.blocks(6, 1));
    let block_len = pages.end() - pages.start() + 1;
    // Two blocks, and not one group of both.
    let memory = MEMORY + block_len;
    bench.domain.map(blocks.clone(), memory, Prot::RW).unwrap();
    let elsewhere = memory + 8 * block_len + page_len::<B>();
    bench
        .domain
        .map(pages.clone(), elsewhere, Prot::RW)
        .unwrap();
    let leaf = bench
        .domain
        .table()
        .lookup(iopt_formats::Iova::new(*blocks.start()));
    assert_eq!(leaf.unwrap().size().bytes(), block_len);
    bench.assert_reached(&blocks, memory);
    bench.assert_reached(&pages, elsewhere);
    // A block, and some of the pages.
    let part = *bench.blocks(5, 1).start()..=pages.start() + 3 * page_len::<B>() - 1;
    bench.domain.unmap(part.clone()).unwrap();
    bench.assert_refused(&part);
    bench.assert_reached(&bench.blocks(4, 1), memory);
    bench.domain.unmap(bench.blocks(4, 3)).unwrap();
    bench.assert_refused(&bench.blocks(4, 3));
}

fn tables_are_freed_and_used_again<B: Behaviour>(behaviour: B) {
    let bench = Bench::new(behaviour);
    let other = bench.machine.domain().unwrap();
    let empty = bench.domain.table().table_count();
    for round in 0..4 {
        let all = bench.blocks(8 + round, 3);
        let memory = MEMORY + page_len::<B>();
        bench.domain.map(all.clone(), memory, Prot::RW).unwrap();
        bench.assert_reached(&all, memory);
        let set = bench.domain.set();
        let unmapped = bench.domain.unmap_by(all.clone(), TablePolicy::Detach, set);
        unmapped.unwrap();
        // Whoever takes the pages makes other tables of them.
        other.map(all.clone(), memory, Prot::RW).unwrap();
        bench.assert_refused(&all);
        let set = other.set();
        other.unmap_by(all, TablePolicy::Detach, set).unwrap();
    }
    bench.free_what_is_proven();
    // Those above the last block, and the one that was proven by.
    assert!(bench.domain.table().table_count() <= empty + 3);
}

fn a_block_replaces_an_empty_table<B: Behaviour>(behaviour: B) {
    let bench = Bench::new(behaviour);
    let (block, memory) = (bench.blocks(9, 1), MEMORY + page_len::<B>());
    bench.domain.map(block.clone(), memory, Prot::RW).unwrap();
    bench.assert_reached(&block, memory);
    bench.domain.unmap(block.clone()).unwrap();
    bench.assert_refused(&block);
    bench.domain.map(block.clone(), MEMORY, Prot::RW).unwrap();
    bench.assert_reached(&block, MEMORY);
    bench.assert_clean();
    bench.domain.unmap(block.clone()).unwrap();
    bench.assert_refused(&block);
}

fn devices_come_and_go<B: Behaviour>(behaviour: B) {
    let bench = Bench::new(behaviour);
    let page = bench.pages(3, 1);
    let other = bench.machine.domain().unwrap();
    let elsewhere = MEMORY + 64 * page_len::<B>();
    bench.domain.map(page.clone(), MEMORY, Prot::RW).unwrap();
    other.map(page.clone(), elsewhere, Prot::RW).unwrap();
    for has_ats in [true, false] {
        bench.assert_reached(&page, MEMORY);
        for device in [PLAIN, CACHING] {
            bench.machine.detach(&bench.domain, device).unwrap();
        }
        bench.assert_refused(&page);
        for device in [PLAIN, CACHING] {
            bench.machine.attach(&other, device, has_ats).unwrap();
        }
        bench.assert_reached(&page, elsewhere);
        bench.assert_clean();
        for device in [PLAIN, CACHING] {
            bench.machine.detach(&other, device).unwrap();
            bench.attach(device, has_ats);
        }
    }
    // Nobody is told of what nobody caches.
    for device in [PLAIN, CACHING] {
        bench.machine.detach(&bench.domain, device).unwrap();
    }
    let before = bench.machine.iommu().statistics().command_count();
    bench.domain.unmap(page.clone()).unwrap();
    let after = bench.machine.iommu().statistics().command_count();
    assert_eq!(before, after);
    bench.assert_refused(&page);
}

fn one_page_is_mapped_again_and_again<B: Behaviour>(behaviour: B) {
    let bench = Bench::new(behaviour);
    let page = bench.pages(0x77, 1);
    for turn in 0..100 {
        let memory = MEMORY + turn * B::Format::GRANULE.bytes();
        bench.domain.map(page.clone(), memory, Prot::RW).unwrap();
        bench.assert_reached(&page, memory);
        bench.domain.unmap(page.clone()).unwrap();
        bench.assert_refused(&page);
    }
}
