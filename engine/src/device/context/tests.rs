//! Entries whose hardware answers, or does not; pieces that come when they are needed; attachments that
//! are counted.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::cell::{Cell, RefCell};

use iopt_formats::Oa;
use iopt_formats::armv8::Granule;
use iopt_formats::command::smmuv3::Command;
use iopt_formats::context::smmuv3::{Ste, SteRules, Stream};
use iopt_formats::context::update::plan;
use smallvec::{SmallVec, smallvec};

use super::*;
use crate::device::ids::{IdError, Ids};
use crate::device::testing::Recorder;
use crate::invalidation::plan::smmuv3::Tag;
use crate::invalidation::{InvalidationSet, NoHardware, SyncError};
use crate::mem::{FlushLine, Heap, NonSnooped};
use crate::radix::{Table, UnmapPolicy};

const ABORT: Stream = Stream::ABORT;
const BYPASS: Stream = Stream::BYPASS;

fn words(stream: &Stream) -> [u64; 8] {
    *Ste::encode(stream).words()
}

fn table() -> EntryTable<Heap, 8> {
    EntryTable::new(&Arc::new(Heap), 4, &words(&ABORT)).expect("memory")
}

#[test]
fn an_entry_becomes_what_was_planned_with_as_many_syncs() {
    let mut table = table();
    let sync_count = Cell::new(0);
    for target in [words(&BYPASS), words(&ABORT), [0; 8], words(&BYPASS)] {
        let current = table.get(2).expect("it is there");
        let planned = plan(&SteRules, &current, &target).sync_count();
        sync_count.set(0);
        let written = table.write(&SteRules, 2, &target, || {
            sync_count.set(sync_count.get() + 1);
            Ok(())
        });
        assert_eq!((written, sync_count.get()), (Ok(planned), planned));
        assert_eq!(table.get(2), Some(target));
    }
    // The others are what they were.
    assert_eq!(table.get(1), Some(words(&ABORT)));
    assert_eq!(table.get(4), None);
    let absent = table.write(&SteRules, 4, &[0; 8], || Ok(()));
    assert_eq!(absent, Err(Unwritten::Absent { index: 4 }));
}

#[test]
fn an_entry_whose_sync_fails_once_is_known_to_block() {
    for failing in 0..2 {
        let mut table = table();
        let sync_count = Cell::new(0);
        let written = table.write(&SteRules, 0, &words(&BYPASS), || {
            sync_count.set(sync_count.get() + 1);
            if sync_count.get() == failing + 1 {
                Err(SyncError::TimedOut)
            } else {
                Ok(())
            }
        });
        assert_eq!(written, Err(Unwritten::Blocked(SyncError::TimedOut)));
        assert_eq!(sync_count.get(), failing + 2);
        assert!(!table.is_quarantined(0));
        assert_eq!(table.get(0).map(|words| words[0]), Some(0));
    }
}

#[test]
fn an_entry_that_nobody_confirms_is_quarantined_until_hardware_answers() {
    let mut table = table();
    let target = words(&BYPASS);
    let is_alive = Cell::new(false);
    let sync_count = Cell::new(0);
    let mut write = || {
        let written = table.write(&SteRules, 3, &target, || {
            sync_count.set(sync_count.get() + 1);
            if is_alive.get() {
                Ok(())
            } else {
                Err(SyncError::TimedOut)
            }
        });
        let is_quarantined = table.is_quarantined(3);
        (written, is_quarantined, table.get(3))
    };
    let quarantined = Err(Unwritten::Quarantined(SyncError::TimedOut));
    let (written, is_quarantined, now) = write();
    assert_eq!((&written, is_quarantined), (&quarantined, true));
    assert_eq!(now.map(|words| words[0]), Some(0));
    // Again nothing is stored before hardware answers.
    let before = now;
    assert_eq!(write(), (quarantined, true, before));
    assert_eq!(sync_count.get(), 3);
    is_alive.set(true);
    // One word was stored in the first attempt already.
    assert_eq!(write(), (Ok(1), false, Some(target)));
    assert_eq!(sync_count.get(), 5);
}

#[test]
fn each_store_is_written_back_where_walkers_do_not_snoop() {
    #[derive(Default)]
    struct Lines(crate::sync::atomic::AtomicU32);

    impl FlushLine for Lines {
        fn flush_line(&self, _line: *const u8) {
            self.0.fetch_add(1, crate::sync::atomic::Ordering::Relaxed);
        }
    }

    let memory = Arc::new(NonSnooped::new(Heap, Lines::default()));
    let line_count = || {
        memory
            .flush()
            .0
            .load(crate::sync::atomic::Ordering::Relaxed)
    };
    let mut table: EntryTable<_, 8> = EntryTable::new(&memory, 64, &words(&ABORT)).expect("memory");
    assert_eq!(line_count(), 64);
    let current = table.get(7).expect("it is there");
    let update = plan(&SteRules, &current, &words(&BYPASS));
    let stores: usize = update
        .steps()
        .iter()
        .map(|step| step.stores().count())
        .sum();
    table
        .write(&SteRules, 7, &words(&BYPASS), || Ok(()))
        .expect("hardware answers");
    assert_eq!(line_count() as usize, 64 + stores);
}

#[test]
fn a_piece_comes_once_and_is_announced_for_each_number() {
    let memory = Arc::new(Heap);
    let mut directory: Directory<Heap, 8> =
        Directory::two_level(&memory, 12, 8, words(&ABORT)).expect("memory");
    assert_eq!(directory.get(0x123), None);
    let described = RefCell::new(Vec::new());
    let describe = |oa: Oa| {
        described.borrow_mut().push(oa);
        Some(oa.get() | 9)
    };
    let failed = directory.link(0x123, describe, || Err(SyncError::TimedOut));
    assert_eq!(failed, Err(LinkError::Sync(SyncError::TimedOut)));
    // There, but hardware may not know: a write would not be seen.
    let told = Cell::new(0);
    let tell = || {
        told.set(told.get() + 1);
        Ok(())
    };
    assert_eq!(directory.link(0x1ff, describe, tell), Ok(()));
    assert_eq!(directory.link(0x100, describe, tell), Ok(()));
    assert_eq!((described.borrow().len(), told.get()), (1, 2));
    assert_eq!(directory.get(0x1ff), Some(words(&ABORT)));
    assert_eq!(directory.get(0x200), None);
    let beyond = directory.link(0x1000, describe, tell);
    assert_eq!(beyond, Err(LinkError::Absent { index: 0x1000 }));
    let absent = directory.write(&SteRules, 0x200, &[0; 8], || Ok(()));
    assert_eq!(absent, Err(Unwritten::Absent { index: 0x200 }));
    let unfit = directory.link(0x200, |_| None, tell);
    assert!(matches!(unfit, Err(LinkError::Address { .. })));
}

#[test]
fn an_id_is_used_again_only_after_a_proof() {
    let ids = Ids::new(1..=3);
    let instance = Recorder::instance();
    let [first, second, third] = [(); 3].map(|()| ids.allocate().expect("three are free"));
    assert_eq!([first.get(), second.get(), third.get()], [1, 2, 3]);
    let exhausted = |quarantined_count| IdError::Exhausted {
        last: 3,
        quarantined_count,
    };
    assert_eq!(ids.allocate().err(), Some(exhausted(0)));
    // Lost.
    drop(second);
    assert_eq!(ids.allocate().err(), Some(exhausted(1)));
    // Not forgotten, then forgotten.
    let tags = [Tag::Stage1 {
        vmid: 0,
        asid: 1,
        granule: Granule::Kib4,
    }];
    instance.queue().device().set_silent(true);
    let (first, error) = first
        .forget(&instance, &tags)
        .expect_err("hardware is silent");
    assert_eq!(error, SyncError::TimedOut);
    assert_eq!(ids.allocate().err(), Some(exhausted(1)));
    instance.queue().device().set_silent(false);
    first.forget(&instance, &tags).expect("hardware answers");
    let again = ids.allocate().expect("one came back");
    assert_eq!(again.get(), 1);
    assert_eq!(ids.used_count(), 2);
    // A proof about all addresses, or none.
    let flush = |range| {
        let table = Table::new(iopt_formats::riscv::Sv::sv48(), Heap).expect("memory");
        let mut claim = table.claim(range).expect("nobody has it");
        let mut mapper = table.mapper(&mut claim).expect("it is claimed");
        let gather = mapper.unmap(range, UnmapPolicy::Sparse).expect("it can");
        gather.gather.sync(&NoHardware).expect("nothing fails")
    };
    let page = iopt_formats::IovaRange::with_len(iopt_formats::Iova::new(0x1000), 0x1000);
    let again = again
        .give_back(&flush(page.expect("a page")))
        .expect_err("a page is not everything");
    again.give_back_unused();
    assert_eq!(ids.allocate().expect("it is clean").get(), 1);
    drop(third);
    assert_eq!(ids.quarantined_count(), 3);
}

#[test]
fn pasids_of_all_begin_at_1() {
    let pasids = Ids::of_width(20);
    assert_eq!(pasids.allocate().expect("none is used").get(), 1);
    assert!(Ids::of_width(0).allocate().is_err());
    let one = Ids::of_width(1);
    let _first = one.allocate().expect("one is free");
    assert!(one.allocate().is_err());
}

#[test]
fn a_domain_has_one_id_at_an_instance_until_its_last_device_left() {
    let set = Arc::new(InvalidationSet::new().expect("memory"));
    let users = Users::new(Arc::clone(&set));
    let (one, other) = (Recorder::instance(), Recorder::instance());
    let (ids, other_ids) = (Ids::new(5..=9), Ids::new(7..=9));
    let tlb = |id: u32| Tag::Stage1 {
        vmid: 0,
        asid: id as u16,
        granule: Granule::Kib4,
    };
    let ats = |stream| Tag::Ats {
        stream,
        substream: None,
    };
    let with = |stream| move |id| -> SmallVec<[Tag; 4]> { smallvec![tlb(id), ats(stream)] };
    let mut first = users.join(&one, &ids, with(1)).expect("room");
    let mut second = users.join(&one, &ids, with(2)).expect("room");
    let third = users.join(&other, &other_ids, with(1)).expect("room");
    assert_eq!([first.id(), second.id(), third.id()], [5, 5, 7]);
    assert_eq!(set.users(&one, tlb(5)), 2);
    assert_eq!(set.users(&one, ats(1)), 1);
    assert_eq!(set.users(&other, tlb(7)), 1);
    first.set_live();
    // Others use it still: nothing is forgotten.
    first.leave().expect("nothing to ask for");
    first.leave().expect("it is left already");
    drop(first);
    assert_eq!(one.queue().device().take(), []);
    assert_eq!((set.users(&one, tlb(5)), set.users(&one, ats(1))), (1, 0));
    // The last one: not before hardware forgot.
    one.queue().device().set_silent(true);
    assert_eq!(second.leave(), Err(SyncError::TimedOut));
    assert_eq!((users.id(&one), set.users(&one, tlb(5))), (Some(5), 1));
    one.queue().device().set_silent(false);
    one.queue().device().take();
    second.leave().expect("hardware answers");
    let forgotten = Command::TlbiNhAsid { vmid: 0, asid: 5 };
    assert_eq!(one.queue().device().take(), [forgotten]);
    assert_eq!((users.id(&one), ids.used_count()), (None, 0));
    // Places of one device only are forgotten with it.
    let own = |stream: u16| move |_| -> SmallVec<[Tag; 4]> { smallvec![tlb(stream.into())] };
    let mut first = users.join(&one, &ids, own(100)).expect("room");
    let mut second = users.join(&one, &ids, own(101)).expect("room");
    let mut again = users.join(&one, &ids, own(101)).expect("room");
    first.set_live();
    again.leave().expect("nothing to ask for");
    assert_eq!(one.queue().device().take(), []);
    second.leave().expect("hardware answers");
    let forgotten = Command::TlbiNhAsid { vmid: 0, asid: 101 };
    assert_eq!(one.queue().device().take(), [forgotten]);
    assert_eq!((users.id(&one), set.users(&one, tlb(101))), (Some(5), 0));
    drop(first);
    assert_eq!((users.id(&one), ids.used_count()), (None, 0));
    // Never live: taken back without a word.
    drop(third);
    assert_eq!(other.queue().device().take(), []);
    assert_eq!(
        (other_ids.used_count(), other_ids.quarantined_count()),
        (0, 0)
    );
    let none = Ids::of_width(0);
    assert!(users.join(&one, &none, with(1)).is_err());
    assert_eq!(set.users(&one, ats(1)), 0);
}

#[test]
fn the_worst_of_what_is_known_counts() {
    use Outcome::{Blocked, Known, Unknown};

    let all = [Known, Blocked, Unknown];
    for (one, &first) in all.iter().enumerate() {
        for (other, &second) in all.iter().enumerate() {
            assert_eq!(first.and(second), all[one.max(other)]);
        }
    }
    let error = SyncError::TimedOut;
    let of = |written: Result<(), Unwritten>| Outcome::from(written);
    assert_eq!(of(Ok(())), Known);
    assert_eq!(of(Err(Unwritten::Blocked(error))), Blocked);
    assert_eq!(of(Err(Unwritten::Quarantined(error))), Unknown);
}
