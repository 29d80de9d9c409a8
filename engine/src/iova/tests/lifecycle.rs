//! From allocated to free again.

use core::cell::RefCell;

use iopt_formats::{Level, Oa, Prot};

use super::*;
use core::time::Duration;

use crate::invalidation::deferred::{Deferred, Window};
use crate::invalidation::{Changes, Flushed, Invalidate, Kind, NoHardware, SyncError};
use crate::radix::{TablePolicy, UnmapPolicy};

/// Notes what it is told, and fails as long as it is to.
#[derive(Default)]
struct Recorder {
    told: RefCell<Vec<Changes>>,
    fails: RefCell<bool>,
}

impl Invalidate for Recorder {
    type Ticket = ();

    fn submit(&self, changes: &Changes) -> Result<(), SyncError> {
        self.told.borrow_mut().push(*changes);
        Ok(())
    }

    fn wait(&self, (): ()) -> Result<(), SyncError> {
        if *self.fails.borrow() {
            Err(SyncError::TimedOut)
        } else {
            Ok(())
        }
    }
}

/// A table and a space of 1 GiB.
fn pair() -> (Table<SecondStage, Heap>, IovaSpace) {
    let table = table();
    let config = IovaConfig::new(range(0, GIB - 1));
    let space = IovaSpace::new(&table, config).expect("a space");
    (table, space)
}

#[test]
fn a_range_that_no_mapper_saw_is_free_again_without_a_sync() {
    let (_table, space) = pair();
    let first = space.alloc(&IovaRequest::new(PAGE)).expect("room");
    let place = first.range();
    first.cancel();
    let second = space.alloc(&IovaRequest::new(PAGE)).expect("room");
    assert_eq!(second.range(), place);
    drop(second);
    assert_eq!(space.statistics().used_len, 0);
    assert_eq!(space.statistics().leaked_count, 0);
}

#[test]
fn a_mapped_range_is_free_again_once_the_hardware_was_told() {
    let (table, space) = pair();
    let hardware = Recorder::default();
    let mut buffer = space
        .alloc(&IovaRequest::new(2 * PAGE))
        .expect("room")
        .into_allocation();
    let place = buffer.range();
    let mut mapper = buffer.mapper(&table).expect("its table");
    mapper
        .map(place, Oa::new(0x8_0000), Prot::RW)
        .expect("nothing there")
        .sync(&NoHardware)
        .expect("no hardware");
    let withdrawn = buffer.withdraw(&table).expect("whole pages");
    assert!(table.lookup(place.start()).is_none());
    assert_eq!(space.statistics().used_len, 2 * PAGE);
    let pending = withdrawn.submit(&hardware);
    assert_eq!(space.statistics().used_len, 2 * PAGE);
    let flushed = pending.wait().expect("it answers");
    assert!(flushed.covers(place));
    assert_eq!(flushed.table(), table.id());
    assert_eq!(space.statistics().used_len, 0);
    assert_eq!(hardware.told.borrow().len(), 1);
}

#[test]
fn what_hardware_does_not_confirm_stays_allocated_until_it_does() {
    let (table, space) = pair();
    let hardware = Recorder::default();
    let buffer = space
        .alloc(&IovaRequest::new(PAGE))
        .expect("room")
        .into_allocation();
    let place = buffer.range();
    *hardware.fails.borrow_mut() = true;
    let withdrawn = buffer.withdraw(&table).expect("nothing is mapped");
    let quarantined = withdrawn.sync(&hardware).expect_err("it does not answer");
    assert_eq!(
        (quarantined.error(), quarantined.range()),
        (SyncError::TimedOut, place)
    );
    let other = space.alloc(&IovaRequest::new(PAGE)).expect("room");
    assert_ne!(other.range(), place);
    *hardware.fails.borrow_mut() = false;
    quarantined
        .into_withdrawn()
        .sync(&hardware)
        .expect("it answers");
    drop(other);
    assert_eq!(space.statistics().used_len, 0);
}

#[test]
fn the_hardware_is_told_of_the_whole_range_whatever_was_unmapped_before() {
    let (table, space) = pair();
    let hardware = Recorder::default();
    let mut buffer = space
        .alloc(&IovaRequest::new(CHUNK))
        .expect("room")
        .into_allocation();
    let place = buffer.range();
    let mut mapper = buffer.mapper(&table).expect("its table");
    mapper
        .map(place, Oa::new(0x4000_0000), Prot::RW)
        .expect("nothing there")
        .sync(&NoHardware)
        .expect("no hardware");
    // Not synced: the large page may still be in the hardware.
    let _forgotten = mapper
        .unmap(place, UnmapPolicy::Exact)
        .expect("all is mapped");
    let page = range(place.start().get(), place.start().get() + PAGE - 1);
    mapper
        .map(page, Oa::new(0x8_0000), Prot::RW)
        .expect("nothing there")
        .sync(&NoHardware)
        .expect("no hardware");
    let withdrawn = buffer.withdraw(&table).expect("whole pages");
    assert_eq!(withdrawn.range(), place);
    withdrawn.sync(&hardware).expect("it answers");
    let told = hardware.told.borrow();
    assert_eq!(
        (told.len(), told[0].range(), told[0].kind()),
        (1, Some(place), Kind::Removed)
    );
    assert!(told[0].leaf_sizes().contains(PageSize::KIB_4));
    assert!(told[0].leaf_sizes().contains(PageSize::MIB_2));
}

#[test]
fn a_withdrawal_tells_of_tables_and_sizes_whose_own_gathers_were_lost() {
    let table = table();
    let config = IovaConfig::new(range(0, GIB - 1));
    let space = IovaSpace::new(&table, config).expect("a space");
    let hardware = Recorder::default();
    let request = IovaRequest::new(CHUNK).with_alignment(PageSize::MIB_2);
    let new = || space.alloc(&request).expect("room").into_allocation();
    let map = |buffer: &mut IovaAllocation<'_>, oa| {
        let range = buffer.range();
        let mut mapper = buffer.mapper(&table).expect("its table");
        let mapped = mapper.map(range, Oa::new(oa), Prot::RW).expect("room");
        mapped.sync(&NoHardware).expect("nothing to do");
    };

    // A large leaf whose removal was not confirmed, and small ones in its place.
    let mut buffer = new();
    let range = buffer.range();
    map(&mut buffer, 0x8000_0000);
    let mut mapper = buffer.mapper(&table).expect("its table");
    let _lost = mapper
        .unmap(range, UnmapPolicy::Exact)
        .expect("mapped")
        .gather;
    map(&mut buffer, 0x8000_1000);
    let withdrawn = buffer.withdraw(&table).expect("its table");
    let sizes = withdrawn.changes().leaf_sizes();
    assert!(sizes.contains(PageSize::MIB_2) && sizes.contains(PageSize::KIB_4));
    assert!(withdrawn.changes().is_leaf_only(), "no table waits");
    withdrawn.sync(&hardware).expect("it answers");

    // A table that was unlinked, and its removal not confirmed.
    let mut buffer = new();
    let range = buffer.range();
    map(&mut buffer, 0x8000_1000);
    let mut mapper = buffer.mapper(&table).expect("its table");
    mapper.set_table_policy(TablePolicy::Detach);
    let gather = mapper
        .unmap(range, UnmapPolicy::Exact)
        .expect("mapped")
        .gather;
    assert!(
        gather.changes().has_table(Level(1)),
        "or this test says nothing"
    );
    drop(gather);
    let withdrawn = buffer.withdraw(&table).expect("its table");
    assert!(withdrawn.changes().has_table(Level(1)));
    withdrawn.sync(&hardware).expect("it answers");
}

#[test]
fn what_is_dropped_without_a_proof_leaks_visibly_and_is_never_given_out_again() {
    let (table, space) = pair();
    let hardware = Recorder::default();
    *hardware.fails.borrow_mut() = true;
    let new = || {
        space
            .alloc(&IovaRequest::new(PAGE))
            .expect("room")
            .into_allocation()
    };
    let mut places = Vec::new();
    let mut note = |place| places.push(place);
    let buffer = new();
    note(buffer.range());
    drop(buffer);
    let withdrawn = new().withdraw(&table).expect("nothing is mapped");
    note(withdrawn.range());
    drop(withdrawn);
    let quarantined = new()
        .withdraw(&table)
        .expect("nothing")
        .sync(&hardware)
        .expect_err("it fails");
    note(quarantined.range());
    drop(quarantined);
    let pending = new()
        .withdraw(&table)
        .expect("nothing is mapped")
        .submit(&hardware);
    note(pending.range());
    drop(pending);
    let mut batch = IovaBatch::with_limit(4).expect("memory");
    let withdrawn = new().withdraw(&table).expect("nothing is mapped");
    note(withdrawn.range());
    batch.add(withdrawn).expect("room");
    drop(batch);
    let statistics = space.statistics();
    assert_eq!(
        (statistics.leaked_count, statistics.leaked_len),
        (5, 5 * PAGE)
    );
    let rest = core::iter::from_fn(|| space.alloc(&IovaRequest::new(PAGE)).ok());
    for page in rest.take(1024).collect::<Vec<_>>() {
        assert!(!places.contains(&page.range()));
    }
    // Nor is it claimed by anybody else.
    drop(space);
    assert!(table.claim(places[0]).is_err());
}

#[test]
fn claims_are_given_back_by_a_space_that_leaked_nothing() {
    let (table, space) = pair();
    let everything = range(0, GIB - 1);
    assert!(table.claim(everything).is_err());
    drop(space.alloc(&IovaRequest::new(PAGE)));
    drop(space);
    assert!(table.claim(everything).is_ok());
}

#[test]
fn other_tables_give_no_mapper() {
    let (table, space) = pair();
    let other = self::table();
    let mut buffer = space
        .alloc(&IovaRequest::new(PAGE))
        .expect("room")
        .into_allocation();
    assert!(buffer.mapper(&other).is_err());
    let refused = buffer.withdraw(&other).expect_err("not its table");
    let buffer = refused.into_allocation();
    buffer
        .withdraw(&table)
        .expect("its table")
        .sync(&NoHardware)
        .expect("no hardware");
    assert_eq!(space.statistics().leaked_count, 0);
}

#[test]
fn a_batch_frees_all_with_one_sync_or_none() {
    let (table, space) = pair();
    let (other_table, other_space) = pair();
    let hardware = Recorder::default();
    let mut batch = IovaBatch::with_limit(3).expect("memory");
    assert!(batch.sync(&hardware).expect("nothing to do").is_none());
    let new = || {
        let fresh = space.alloc(&IovaRequest::new(PAGE)).expect("room");
        fresh
            .into_allocation()
            .withdraw(&table)
            .expect("nothing is mapped")
    };
    for _ in 0..3 {
        batch.add(new()).expect("room");
    }
    let refused = batch.add(new()).expect_err("it is full");
    *hardware.fails.borrow_mut() = true;
    assert_eq!(
        batch.sync(&hardware).expect_err("it fails"),
        SyncError::TimedOut
    );
    assert_eq!((batch.len(), space.statistics().used_len), (3, 4 * PAGE));
    *hardware.fails.borrow_mut() = false;
    let flushed = batch
        .sync(&hardware)
        .expect("it answers")
        .expect("there were some");
    assert!(flushed.covers(range(0, 3 * PAGE - 1)));
    assert_eq!(
        (batch.is_empty(), space.statistics().used_len),
        (true, PAGE)
    );
    batch.add(refused.withdrawn).expect("room");
    batch.sync(&hardware).expect("it answers");
    assert_eq!(space.statistics().used_len, 0);

    // Gathers of another table are not joined.
    batch.add(new()).expect("room");
    let fresh = other_space.alloc(&IovaRequest::new(PAGE)).expect("room");
    let withdrawn = fresh
        .into_allocation()
        .withdraw(&other_table)
        .expect("nothing is mapped");
    let refused = batch.add(withdrawn).expect_err("another table");
    refused.withdrawn.sync(&hardware).expect("it answers");
    batch.sync(&hardware).expect("it answers");
    assert_eq!(other_space.statistics().used_len, 0);
}

#[test]
fn hardware_that_panics_leaves_nothing_in_a_batch_for_a_later_proof() {
    struct Panics;

    impl Invalidate for Panics {
        type Ticket = ();

        fn submit(&self, _: &Changes) -> Result<(), SyncError> {
            panic!("a bug of the hardware's driver");
        }

        fn wait(&self, (): ()) -> Result<(), SyncError> {
            Ok(())
        }
    }

    let (table, space) = pair();
    let mut batch = IovaBatch::with_limit(3).expect("memory");
    let fresh = space.alloc(&IovaRequest::new(PAGE)).expect("room");
    let withdrawn = fresh.into_allocation().withdraw(&table).expect("its table");
    batch.add(withdrawn).expect("room");
    let caught = std::panic::catch_unwind(core::panic::AssertUnwindSafe(|| batch.sync(&Panics)));
    assert!(caught.is_err());
    assert!(batch.is_empty());
    assert_eq!(space.statistics().leaked_count, 1);
}

#[test]
fn a_deferred_range_is_free_again_after_the_common_flush_and_not_before() {
    let (table, space) = pair();
    let window = Window {
        queue_count: 1,
        capacity: 2,
        age: Duration::MAX,
    };
    let hardware = Recorder::default();
    let released = RefCell::new(Vec::new());
    let deferred = Deferred::new(&hardware, window);
    let withdraw = || {
        let mut buffer = space
            .alloc(&IovaRequest::new(PAGE))
            .expect("room")
            .into_allocation();
        let range = buffer.range();
        let mut mapper = buffer.mapper(&table).expect("its table");
        let mapped = mapper.map(range, Oa::new(0x8000_0000), Prot::RW);
        mapped
            .expect("it is empty")
            .sync(&NoHardware)
            .expect("nothing to do");
        buffer.withdraw(&table).expect("its table")
    };
    let note = |range: IovaRange| {
        let released = &released;
        move |flushed: Flushed| {
            assert!(flushed.covers(range));
            released.borrow_mut().push(range);
        }
    };
    let first = withdraw();
    let place = first.range();
    first.defer(&deferred, note(place)).expect("there is room");
    assert_eq!(space.statistics().used_len, PAGE);
    let second = withdraw();
    assert_ne!(
        second.range(),
        place,
        "what waits for its flush is not used again"
    );
    *hardware.fails.borrow_mut() = true;
    for withdrawn in [second, withdraw(), withdraw()] {
        let note = note(withdrawn.range());
        let result = withdrawn.defer(&deferred, note);
        result.expect("there is room, also beside a flush that failed");
    }
    let last = withdraw();
    let note = note(last.range());
    let refused = last.defer(&deferred, note);
    let refused = refused.expect_err("no room, and flushes fail");
    assert_eq!(refused.error, SyncError::TimedOut);
    assert!(released.borrow().is_empty());

    *hardware.fails.borrow_mut() = false;
    deferred.flush().expect("the hardware works again");
    assert_eq!(released.borrow().len(), 4);
    let last = refused.withdrawn.sync(&hardware);
    assert!(last.is_ok());
    assert_eq!(space.statistics().used_len, 0);
    assert_eq!(space.statistics().leaked_count, 0);
}
