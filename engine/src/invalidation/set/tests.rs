use core::time::Duration;

use super::*;
use crate::invalidation::queue::tests::toy::{Opcode, Seen, Toy, entry};
use crate::invalidation::queue::{Completion, Queue, Shape, WithSync};
use crate::invalidation::{Gather, Quarantined};
use crate::invalidation::{Kind, TableId};
use crate::reclaim::Operation;
use iopt_formats::{Iova, IovaRange, PageSize, PageSizes};

const SHAPE: Shape = Shape {
    lg2_entries: 5,
    least_lg2_entries: 1,
    has_wrap_bit: true,
    completion: Completion::Head,
};

/// A place with the number of its phase and one of its own; each change costs one command.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
struct Tag(u8, u8);

#[derive(Clone, Copy, Debug)]
struct Plain {
    opcode: Opcode,
}

#[derive(Clone, Copy, Debug)]
struct Mark(Opcode, Tag);

impl Encode<[u64; 2]> for Mark {
    fn entry(&self) -> [u64; 2] {
        let Self(opcode, Tag(phase, number)) = *self;
        entry(opcode, phase, number.into())
    }
}

impl Planner for Plain {
    type Command = Mark;
    type Tag = Tag;

    fn plan(&self, tag: &Tag, changes: &Changes, mut emit: impl FnMut(Mark)) {
        if changes.range().is_some() {
            emit(Mark(self.opcode, *tag));
        }
    }

    fn phase(tag: &Tag) -> Phase {
        match tag.0 {
            0 => Phase::Iotlb,
            1 => Phase::CombinedEntries,
            _ => Phase::DeviceTlb,
        }
    }

    fn can_repeat(&Mark(_, Tag(phase, _)): &Mark) -> bool {
        phase < 2
    }
}

type Hardware = Toy<[u64; 2]>;

/// An instance that consumes while somebody waits, or does not.
fn instance(opcode: Opcode, is_alive: bool) -> Arc<Instance<Plain, Hardware>> {
    let toy = Toy::new(SHAPE).consuming_in_pauses(u32::from(is_alive) * 4);
    let queue = Queue::new(toy).expect("the shape is sound");
    let queue = queue.with_limit(Duration::from_nanos(100));
    Arc::new(Instance::new(Plain { opcode }, queue))
}

fn works() -> Arc<Instance<Plain, Hardware>> {
    instance(Opcode::Plain, true)
}

fn set() -> InvalidationSet<Plain, Hardware> {
    InvalidationSet::new().expect("memory")
}

/// What was consumed: phase and number, or `None` for a SYNC.
fn consumed(instance: &Instance<Plain, Hardware>) -> Vec<Option<(u8, u32)>> {
    let seen = instance.queue().device().take_seen().into_iter();
    seen.map(
        |Seen {
             opcode,
             producer,
             serial,
         }| { (opcode != Opcode::Sync as u8).then_some((producer, serial)) },
    )
    .collect()
}

fn removal() -> Gather {
    let range = IovaRange::with_len(Iova::new(0x1000), 0x1000).expect("a page");
    let sizes = PageSizes::from_bits(PageSize::KIB_4.bytes());
    let changes = Changes::leaves(range, sizes, Kind::Removed);
    Gather::new(changes, TableId::next(), Operation::NONE)
}

fn sync(set: &InvalidationSet<Plain, Hardware>) -> Result<(), SyncError> {
    let flushed = removal().sync(set);
    flushed
        .map(drop)
        .map_err(|quarantined: Quarantined| quarantined.error())
}

#[test]
fn a_domain_without_devices_needs_no_hardware() {
    assert_eq!(sync(&set()), Ok(()));
}

#[test]
fn each_place_hears_of_a_change_once_in_the_order_of_phases() {
    let (set, one, other) = (set(), works(), works());
    set.attach(&one, &[Tag(2, 7), Tag(0, 3)]).expect("room");
    set.attach(&one, &[Tag(0, 3), Tag(1, 3)]).expect("room");
    set.attach(&other, &[Tag(0, 4)]).expect("room");
    assert_eq!(sync(&set), Ok(()));
    let expected = [Some((0, 3)), None, Some((1, 3)), None, Some((2, 7)), None];
    assert_eq!(consumed(&one), expected);
    assert_eq!(consumed(&other), [Some((0, 4)), None]);
}

#[test]
fn a_submission_is_waited_for_after_other_work() {
    let (set, one) = (set(), works());
    set.attach(&one, &[Tag(0, 3), Tag(2, 7)]).expect("room");
    let pending = removal().submit(&set);
    assert_eq!(consumed(&one), [], "nobody has waited yet");
    assert!(pending.wait().is_ok());
    assert_eq!(consumed(&one).len(), 4);
}

/// Hardware that moves only when it is told to.
#[test]
fn who_looks_now_and_then_need_not_wait() {
    for shares in [false, true] {
        let set = set();
        let queue = Queue::new(Toy::new(SHAPE)).expect("the shape is sound");
        let mut one = Instance::new(
            Plain {
                opcode: Opcode::Plain,
            },
            queue,
        );
        if shares {
            one = one.with_shared_syncs();
        }
        let one = Arc::new(one);
        set.attach(&one, &[Tag(0, 3), Tag(2, 7)]).expect("room");
        let mut pending = removal().submit(&set);
        let mut looks = 0;
        while !pending.is_done() {
            one.queue().device().run();
            looks += 1;
        }
        assert!((2..=4).contains(&looks), "{looks}");
        let expected = [Some((0, 3)), None, Some((2, 7)), None];
        assert_eq!(consumed(&one), expected);
        assert!(pending.wait().is_ok());
    }
}

#[test]
fn who_looks_helps_all_instances_on() {
    let set = set();
    let instances = [(), ()].map(|()| {
        let queue = Queue::new(Toy::new(SHAPE)).expect("the shape is sound");
        let opcode = Opcode::Plain;
        Arc::new(Instance::new(Plain { opcode }, queue).with_shared_syncs())
    });
    for instance in &instances {
        set.attach(instance, &[Tag(0, 3)]).expect("room");
    }
    let mut pending = removal().submit(&set);
    assert!(!pending.is_done());
    for instance in &instances {
        instance.queue().device().run();
        assert_eq!(consumed(instance), [Some((0, 3)), None]);
    }
    assert!(pending.is_done());
    assert!(pending.wait().is_ok());
}

#[test]
fn who_looks_sees_a_failure_and_sends_nothing_more() {
    let (set, failing) = (set(), instance(Opcode::Illegal, false));
    set.attach(&failing, &[Tag(0, 3), Tag(2, 7)]).expect("room");
    let mut pending = removal().submit(&set);
    while !pending.is_done() {
        failing.queue().device().run();
    }
    failing.queue().device().run();
    assert!(!consumed(&failing).contains(&Some((2, 7))));
    assert!(pending.is_done());
    let quarantined = pending.wait().expect_err("the command was refused");
    assert_eq!(quarantined.error(), SyncError::Refused);
}

#[test]
fn those_who_wait_share_a_sync_if_told_so() {
    let set = set();
    let toy = Toy::new(SHAPE).consuming_in_pauses(4);
    let queue = Queue::new(toy).expect("the shape is sound");
    let opcode = Opcode::Plain;
    let one = Arc::new(Instance::new(Plain { opcode }, queue).with_shared_syncs());
    set.attach(&one, &[Tag(0, 3)]).expect("room");
    let pendings = [0; 3].map(|_| removal().submit(&set));
    for pending in pendings.into_iter().rev() {
        assert!(pending.wait().is_ok());
    }
    let command = Some((0, 3));
    assert_eq!(consumed(&one), [command, command, command, None]);
}

/// Else a device would ask for what the IOMMU of another one still holds.
#[test]
fn a_later_phase_waits_for_the_first_on_all_instances() {
    let (set, one, stuck) = (set(), works(), instance(Opcode::Plain, false));
    set.attach(&one, &[Tag(0, 3), Tag(2, 7)]).expect("room");
    set.attach(&stuck, &[Tag(0, 4)]).expect("room");
    assert_eq!(sync(&set), Err(SyncError::TimedOut));
    assert_eq!(consumed(&one), [Some((0, 3)), None]);
}

#[test]
fn one_instance_that_fails_fails_the_whole() {
    for failing in [
        instance(Opcode::Illegal, true),
        instance(Opcode::Plain, false),
    ] {
        for first in [true, false] {
            let (set, one) = (set(), works());
            let mut instances = [&one, &failing];
            if first {
                instances.reverse();
            }
            for instance in instances {
                set.attach(instance, &[Tag(0, 3)]).expect("room");
            }
            assert!(sync(&set).is_err());
        }
    }
}

#[test]
fn places_are_told_until_their_last_user_leaves() {
    let (set, one) = (set(), works());
    let tags = [Tag(0, 3), Tag(2, 7)];
    set.attach(&one, &tags).expect("room");
    set.attach(&one, &tags[..1]).expect("room");
    assert_eq!(set.users(&one, tags[0]), 2);
    set.detach(&one, &tags);
    assert_eq!(sync(&set), Ok(()));
    assert_eq!(consumed(&one), [Some((0, 3)), None]);
    set.detach(&one, &tags[..1]);
    assert_eq!(sync(&set), Ok(()));
    assert_eq!(consumed(&one), []);
    assert_eq!(set.users(&one, tags[0]), 0);
}

#[test]
fn forgetting_goes_through_the_phases_too() {
    let one = works();
    one.forget(&[Tag(0, 3), Tag(0, 4), Tag(2, 7)])
        .expect("it works");
    let expected = [Some((0, 3)), Some((0, 4)), None, Some((2, 7)), None];
    assert_eq!(consumed(&one), expected);
}

#[test]
fn an_instance_too_many_is_refused_and_one_more_place_is_not() {
    let set = set();
    let instances: Vec<_> = (0..INSTANCE_LIMIT).map(|_| works()).collect();
    for instance in &instances {
        set.attach(instance, &[Tag(0, 1)]).expect("room");
    }
    assert_eq!(set.attach(&works(), &[Tag(0, 1)]), Err(SetError::Instances));
    set.attach(&instances[5], &[Tag(0, 2)])
        .expect("it is known");
    assert_eq!(set.users(&instances[5], Tag(0, 2)), 1);
}

/// The list of one place is longer than what is handed over at once.
#[test]
fn long_lists_end_with_one_sync() {
    let (set, one) = (set(), works());
    let tags: Vec<_> = (0..150).map(|number| Tag(0, number)).collect();
    set.attach(&one, &tags).expect("room");
    assert_eq!(sync(&set), Ok(()));
    let seen = consumed(&one);
    assert_eq!(seen.len(), 151);
    assert_eq!(seen[150], None);
}

/// Hardware that drops all that is under way when a device does not answer, and hardware that only fails a SYNC.
fn with_silence() -> [Arc<Instance<Plain, Hardware>>; 2] {
    let dropping = Shape {
        has_wrap_bit: false,
        completion: Completion::Status,
        ..SHAPE
    };
    [SHAPE, dropping].map(|shape| {
        let toy = Toy::new(shape).consuming_in_pauses(4);
        let queue = Queue::new(toy).expect("the shape is sound");
        let opcode = Opcode::Plain;
        Arc::new(Instance::new(Plain { opcode }, queue))
    })
}

/// Has somebody else ask a device that does not answer.
fn ask_silent_device(instance: &Instance<Plain, Hardware>) {
    let silent = [entry(Opcode::Silent, 9, 9)];
    let _waiting = SYNC.waiting();
    let sent = instance.queue().submit(&silent, WithSync::Later);
    assert!(!sent.expect("there is room").is_nothing());
}

#[test]
fn the_silent_device_of_another_one_fails_nobody() {
    let tags = [Tag(0, 3), Tag(1, 3)];
    for one in with_silence() {
        let set = set();
        set.attach(&one, &tags).expect("room");
        ask_silent_device(&one);
        assert_eq!(sync(&set), Ok(()));
        ask_silent_device(&one);
        assert_eq!(one.forget(&tags), Ok(()));
        ask_silent_device(&one);
        let commands = tags.map(|tag| Mark(Opcode::Plain, tag));
        assert_eq!(one.execute(commands), Ok(()));
        ask_silent_device(&one);
        let executed = set.execute(&one, |places, emit| {
            places.tags().for_each(|tag| emit(Mark(Opcode::Plain, tag)));
        });
        assert_eq!(executed, Ok(()));
        // Whoever looks now and then is told the same.
        ask_silent_device(&one);
        let mut pending = removal().submit(&set);
        while !pending.is_done() {
            one.queue().device().run();
        }
        assert!(pending.wait().is_ok());
    }
}

#[test]
fn who_asks_a_silent_device_fails_at_once() {
    for one in with_silence() {
        let set = set();
        set.attach(&one, &[Tag(2, 7)]).expect("room");
        ask_silent_device(&one);
        assert_eq!(sync(&set), Err(SyncError::DeviceTimedOut));
        ask_silent_device(&one);
        let own = [
            Mark(Opcode::Plain, Tag(0, 3)),
            Mark(Opcode::Plain, Tag(2, 7)),
        ];
        assert_eq!(one.execute(own), Err(SyncError::DeviceTimedOut));
        let told = consumed(&one).into_iter().flatten();
        assert_eq!(told.filter(|&(phase, _)| phase == 2).count(), 2);
    }
}

#[test]
fn a_list_is_not_sent_again_for_ever() {
    let (set, one) = (set(), instance(Opcode::Silent, true));
    set.attach(&one, &[Tag(0, 3)]).expect("room");
    assert_eq!(sync(&set), Err(SyncError::DeviceTimedOut));
    let told = consumed(&one).into_iter().flatten().count();
    assert_eq!(told, 4, "once, and three times more");
}

/// Else whoever sends the next SYNC hears of devices that are none of his.
#[test]
fn each_part_of_a_long_list_that_asks_devices_has_a_sync() {
    let (set, one) = (set(), works());
    let tags: Vec<_> = (0..150).map(|number| Tag(2, number)).collect();
    set.attach(&one, &tags).expect("room");
    assert_eq!(sync(&set), Ok(()));
    let seen = consumed(&one);
    // 31 commands and a SYNC fill the ring.
    assert!(seen.chunks(32).all(|part| part.contains(&None)), "{seen:?}");
    assert_eq!(seen.iter().flatten().count(), 150);
    assert_eq!(seen.last(), Some(&None));
    // Those that others are to share, too.
    let toy = Toy::new(SHAPE).consuming_in_pauses(4);
    let queue = Queue::new(toy).expect("the shape is sound");
    let opcode = Opcode::Plain;
    let one = Instance::new(Plain { opcode }, queue).with_shared_syncs();
    one.forget(&tags[..70]).expect("it works");
    let seen = consumed(&one);
    assert!(seen.chunks(32).all(|part| part.contains(&None)), "{seen:?}");
}
