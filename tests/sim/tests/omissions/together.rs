//! Several at once: threads, IOMMUs, PASIDs, sizes; and everything again alike.

use std::sync::Arc;
use std::thread;

use iopt_reference::context::Binding;
use iopt_sim::{
    Architecture, Attachment, Clock, Config, Context, ContextTable, Iommu, Latencies, Law, Ledger,
    Memory as _, Ram, Rights, Tag,
};

use crate::machines::{AMD, RISCV, SMMU, amd_context, riscv_context, smmu_context};
use crate::rig::{DEVICE, DOMAIN, QUEUE, Rig, Words};
use crate::scenes::{FOUR_PAGES, LEVEL_1, LEVEL_2, OFFSET, detached_table, four_pages};

/// `TLBI_NSNH_ALL` and SYNC.
const EVERYTHING: [Words; 2] = [[0x30, 0], [0x46, 0]];

#[test]
fn iommus_share_a_clock() {
    let clock = Clock::new(100);
    let (ram, ledger) = (Arc::new(Ram::new()), Arc::new(Ledger::new()));
    let iommus = [1000, 300].map(|sync| {
        let config = Config {
            latencies: Latencies { walk: 0, sync },
            ..Config::new(SMMU.architecture)
        };
        let contexts = Arc::new(ContextTable::new());
        let iommu = Iommu::new(config, ram.clone(), contexts, ledger.clone(), &clock);
        iommu.write_base(SMMU.base);
        iommu
    });
    assert!(ram.write64(QUEUE, 0x46));
    for iommu in &iommus {
        iommu.write_tail(1);
    }
    let mut completed = [None; 2];
    for _ in 0..10 {
        clock.poll();
        for (iommu, completed) in iommus.iter().zip(&mut completed) {
            if completed.is_none() && iommu.statistics().syncs == 1 {
                *completed = Some(clock.now());
            }
        }
    }
    assert_eq!(completed, [Some(1000), Some(300)]);
}

#[test]
fn walks_take_their_time() {
    let rig = four_pages(&SMMU, smmu_context());
    // Four pages, each walked once, at 300 ns.
    assert_eq!(rig.clock.now(), 1200);
}

/// Runs one rig through some requests with two outcomes each.
fn outcomes(seed: u64) -> Vec<Option<u64>> {
    let contexts = Arc::new(ContextTable::new());
    contexts.set(DEVICE, None, Some(smmu_context()));
    let config = Config {
        seed,
        ..Config::new(SMMU.architecture)
    };
    let (rig, other) = (
        Rig::with_config(&SMMU, config, contexts),
        OFFSET + 0x10_0000,
    );
    rig.ledger.attach(DEVICE, None, Attachment::Domain(DOMAIN));
    for (index, table) in [0x1000, 0x2000, 0x3000].into_iter().enumerate() {
        let level = 3 - index as u64;
        rig.put(table, (SMMU.pointer)(table + 0x1000, level));
    }
    for index in 0..32 {
        let iova = index * 0x1000;
        for oa in [OFFSET, other] {
            rig.ledger
                .map(DOMAIN, iova..=iova + 0xfff, oa + iova, Rights::ALL);
            rig.put(LEVEL_1 + 8 * index, (SMMU.page)(oa + iova));
            rig.read(iova).expect("both are allowed");
        }
    }
    let read = |index: u64| rig.read(index * 0x1000).expect("both are allowed");
    (0..32).map(read).collect()
}

#[test]
fn one_seed_gives_the_same_outcomes_and_another_gives_others() {
    assert_eq!(outcomes(1), outcomes(1));
    assert_ne!(outcomes(1), outcomes(2));
    let drawn = outcomes(1);
    let is_old = |(index, oa): (u64, &Option<u64>)| *oa == Some(OFFSET + index * 0x1000);
    let old = (0..).zip(&drawn).filter(|pair| is_old(*pair)).count();
    assert!((1..32).contains(&old), "{old} of 32 are old");
}

#[test]
fn a_table_that_is_used_again_is_no_longer_the_one_that_a_pointer_is_for() {
    let mut rig = detached_table(&SMMU, smmu_context());
    // Leaves alone.
    rig.send(&[1, 2, 3, 4].map(|page| [0x12 | 5 << 48, page << 12 | 1]));
    rig.send(&[[0x46, 0]]);
    rig.wait();
    assert_eq!(rig.law(FOUR_PAGES), None);
    rig.ledger.table_freed(LEVEL_1);
    rig.ledger.table_allocated(LEVEL_1, 0x1000);
    assert_eq!(rig.law(FOUR_PAGES), Some(Law::FreedTable));
    rig.send(&EVERYTHING);
    rig.wait();
    assert_eq!(rig.law(FOUR_PAGES), None);
}

#[test]
fn a_report_says_what_was_cached_and_why_it_stayed() {
    let mut rig = four_pages(&SMMU, smmu_context());
    rig.send(&[[0x11 | 6 << 48, 0], [0x12 | 5 << 48, 0x2001], [0x46, 0]]);
    rig.wait();
    rig.ledger.forgotten(DOMAIN, FOUR_PAGES);
    let stale = rig.read(0x1008).expect_err("page 1 is stale");
    let reasons: Vec<_> = stale.history.iter().map(|passed| passed.reason).collect();
    let expected = [
        "another address space (ASID, PASID, PSCID)",
        "another range",
    ];
    assert_eq!(reasons, expected.map(Some));
    assert_eq!(stale.address, Some(OFFSET + 0x1008));
    let text = stale.to_string();
    for part in [
        "device 0x12 iova 0x1008",
        "[0x4008]=0x40001f43",
        "TLBI_NH_ASID",
    ] {
        assert!(text.contains(part), "{part} is missing in {text}");
    }
}

#[test]
fn pages_of_other_sizes_are_cached_whole_and_by_their_items() {
    // RISC-V, Svnapot: 16 words for 64 KiB; AMD, Next Level 7: eight words for 32 KiB. An SMMU's Contiguous bit is
    // in 16 words, whose output addresses count.
    let riscv_word = (OFFSET + 0x1_0000) >> 12 << 10 | 0b1000 << 10 | 1 << 63 | 0xdf;
    let amd_word = (OFFSET + 0x1_0000) | 0x3000 | 7 << 9 | 0b11 << 61 | 1;
    let fence = [2, 0];
    let wait = [1 << 60, 0];
    let pages = |low: u64, high: u64| [[low, high], wait];
    let vma = |high: u64| [[1 | 5 << 12 | 1 << 32 | 1 << 10, high], fence];
    let law = |rig: Rig, word: &dyn Fn(u64) -> u64, count: u64, commands: &[Words]| {
        let mut rig = rig;
        rig.send(&match rig.machine.architecture {
            Architecture::Amd(_) => [[8 << 60, 0], wait],
            Architecture::Riscv(_) => [[1, 0], fence],
            _ => EVERYTHING,
        });
        rig.wait();
        rig.ledger.forgotten(DOMAIN, FOUR_PAGES);
        let range = 0x1_0000..=0x1_0000 + count * 0x1000 - 1;
        rig.ledger
            .map(DOMAIN, range.clone(), OFFSET + 0x1_0000, Rights::ALL);
        for index in 0..count {
            rig.put(LEVEL_1 + 128 + 8 * index, word(index));
        }
        rig.warm(0x1_1000, OFFSET);
        rig.ledger.unmap(DOMAIN, range.clone());
        for index in 0..count {
            rig.put(LEVEL_1 + 128 + 8 * index, 0);
        }
        rig.law_after(commands, range)
    };
    let riscv = |commands: &[Words]| {
        law(
            four_pages(&RISCV, riscv_context()),
            &|_| riscv_word,
            16,
            commands,
        )
    };
    // The group goes with each of its pages, but the item that was met with its own page alone.
    assert_eq!(riscv(&vma(0x11 << 10)), None);
    assert_eq!(riscv(&vma(0x1f << 10)), Some(Law::Reach));
    assert_eq!(riscv(&vma(0x20 << 10)), Some(Law::Reach));
    // 64 KiB.
    assert_eq!(riscv(&vma(0x17 << 10 | 1 << 9)), None);
    let smmu = |pages: std::ops::RangeInclusive<u64>| {
        let rig = four_pages(&SMMU, smmu_context());
        let mut commands: Vec<Words> = pages.map(|page| [0x12 | 5 << 48, page << 12 | 1]).collect();
        commands.push([0x46, 0]);
        let word = |index| (SMMU.page)(OFFSET + 0x1_0000 + index * 0x1000) | 1 << 52;
        law(rig, &word, 16, &commands)
    };
    assert_eq!(smmu(0x10..=0x1f), None);
    assert_eq!(smmu(0x10..=0x10), Some(Law::Reach));
    assert_eq!(smmu(0x12..=0x1f), Some(Law::Reach));
    let amd = |commands: &[Words]| law(four_pages(&AMD, amd_context()), &|_| amd_word, 8, commands);
    let low = 3 << 60 | 9 << 32;
    assert_eq!(amd(&pages(low, 0x1_0000 | 0x3000 | 1)), None);
    assert_eq!(amd(&pages(low, 0x1_0000 | 0x1000 | 1)), Some(Law::Reach));
}

#[test]
fn a_device_remembers_by_pasid() {
    let asid = |space| Context {
        tag: Tag::first(Some(0), space),
        ..smmu_context()
    };
    let law = |commands: &[Words]| {
        let mut rig = four_pages(&SMMU, smmu_context());
        rig.send(&EVERYTHING);
        rig.wait();
        rig.ledger.forgotten(DOMAIN, FOUR_PAGES);
        rig.iommu.set_device_tlb(DEVICE, true);
        rig.ledger
            .map(DOMAIN, FOUR_PAGES, OFFSET + 0x1000, Rights::ALL);
        rig.put(LEVEL_1 + 8, (SMMU.page)(OFFSET + 0x1000));
        for pasid in [3, 4] {
            rig.contexts.set(DEVICE, Some(pasid), Some(asid(pasid)));
            rig.ledger
                .attach(DEVICE, Some(pasid), Attachment::Domain(DOMAIN));
            rig.iommu
                .access(DEVICE, Some(pasid), 0x1000, Rights::READ)
                .expect("nothing is stale yet");
        }
        rig.ledger.unmap(DOMAIN, FOUR_PAGES);
        rig.put(LEVEL_1 + 8, 0);
        rig.send(&EVERYTHING);
        rig.send(commands);
        rig.send(&[[0x46, 0]]);
        rig.wait();
        rig.ledger.forgotten(DOMAIN, FOUR_PAGES);
        let stale = rig.iommu.check_all().err();
        stale.map(|stale| (stale.law, stale.pasid))
    };
    let device = u64::from(DEVICE) << 32;
    let one = |pasid: u64| [0x40 | 1 << 11 | pasid << 12 | device, 52];
    assert_eq!(law(&[one(3), one(4)]), None);
    assert_eq!(law(&[one(3)]), Some((Law::Reach, Some(4))));
    // Without PASID, and with the Global bit, all of them.
    assert_eq!(law(&[[0x40 | device, 52]]), None);
    assert_eq!(law(&[[0x40 | 1 << 11 | 1 << 9 | device, 52]]), None);
}

#[test]
fn devices_of_several_threads_meet_nothing_stale() {
    let rig = four_pages(&SMMU, smmu_context());
    let mut rig = rig;
    rig.send(&EVERYTHING);
    rig.wait();
    rig.ledger.forgotten(DOMAIN, FOUR_PAGES);
    let iommu = Arc::clone(&rig.iommu);
    let devices: Vec<_> = (0..2)
        .map(|thread| {
            let iommu = Arc::clone(&iommu);
            thread::spawn(move || {
                for index in 0..400 {
                    let iova = (1 + (index + thread) % 4) * 0x1000;
                    iommu
                        .access(DEVICE, None, iova, Rights::READ)
                        .expect("the driver forgets nothing");
                }
            })
        })
        .collect();
    for round in 0..50 {
        let page = 1 + round % 4;
        let iova = page * 0x1000;
        rig.map(
            LEVEL_1 + 8 * page,
            (SMMU.page)(iova + OFFSET),
            iova,
            iova + OFFSET,
            0x1000,
        );
        thread::yield_now();
        rig.ledger.unmap(DOMAIN, iova..=iova + 0xfff);
        rig.put(LEVEL_1 + 8 * page, 0);
        rig.send(&[[0x12 | 5 << 48, iova | 1], [0x46, 0]]);
        rig.wait();
        rig.ledger.forgotten(DOMAIN, iova..=iova + 0xfff);
        rig.iommu.check_all().expect("the driver forgets nothing");
    }
    for device in devices {
        device.join().expect("no thread fails");
    }
}

#[test]
fn what_is_passed_through_needs_to_be_attached_so() {
    let context = Context {
        binding: Binding::PassThrough {
            read: true,
            write: true,
        },
        ..smmu_context()
    };
    let rig = Rig::new(&SMMU, context);
    assert_eq!(rig.law(0x1000..=0x1fff), Some(Law::Reach));
    rig.ledger.attach(DEVICE, None, Attachment::Identity);
    assert_eq!(rig.law(0x1000..=0x1fff), None);
}

#[test]
fn tables_without_a_mapping_in_the_ledger_reach_too_far() {
    let rig = Rig::new(&SMMU, smmu_context());
    for (table, level) in [(0x1000, 3), (0x2000, 2)] {
        rig.put(table, (SMMU.pointer)(table + 0x1000, level));
    }
    rig.put(LEVEL_2, (SMMU.block)(OFFSET));
    rig.ledger
        .map(DOMAIN, 0x1000..=0x1fff, OFFSET + 0x1000, Rights::ALL);
    // A whole block, where one page is allowed.
    rig.warm(0x1000, OFFSET);
    assert_eq!(
        rig.iommu.check_all().err().map(|stale| stale.law),
        Some(Law::Reach)
    );
    // Rights that nothing grants.
    rig.ledger.forgotten(DOMAIN, 0x1000..=0x1fff);
    rig.ledger.map(DOMAIN, 0..=0x1f_ffff, OFFSET, Rights::READ);
    assert_eq!(rig.law(0x1000..=0x1fff), Some(Law::Reach));
    rig.ledger.map(DOMAIN, 0..=0x1f_ffff, OFFSET, Rights::ALL);
    assert_eq!(rig.law(0x1000..=0x1fff), None);
}
