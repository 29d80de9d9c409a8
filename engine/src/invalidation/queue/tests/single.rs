//! One thread, and hardware that moves when it is told to.

use super::toy::plain;
use super::*;
use crate::invalidation::queue::ShapeError;
use crate::sync::atomic::Ordering;

/// Whoever waits lets hardware move.
fn running(shape: Shape) -> Queue<Toy<Pair>> {
    queue(Toy::new(shape).consuming_in_pauses(2))
}

fn serials(queue: &Queue<Toy<Pair>>) -> Vec<u32> {
    let seen = queue.device().take_seen().into_iter();
    seen.filter(|seen| seen.opcode != Opcode::Sync as u8)
        .map(|seen| seen.serial)
        .collect()
}

#[test]
fn a_list_reaches_hardware_in_order_and_its_wait_ends() {
    for shape in [HEAD, STATUS] {
        let queue = running(shape);
        for lap in 0..if cfg!(miri) { 5 } else { 100 } {
            for (sync, count) in [(WithSync::Now, 3), (WithSync::Later, 2), (WithSync::Now, 1)] {
                let list: Vec<Pair> = (0..count).map(|step| plain(1, lap * 8 + step)).collect();
                let ticket = submit(&queue, &list, sync).unwrap();
                wait(&queue, ticket).unwrap();
                let sent: Vec<_> = (0..count).map(|step| lap * 8 + step).collect();
                assert_eq!(serials(&queue), sent);
            }
        }
    }
}

#[test]
fn a_list_that_is_longer_than_the_ring_arrives_in_parts() {
    for shape in [HEAD, STATUS] {
        let queue = running(shape);
        let list: Vec<Pair> = (0..1000).map(|serial| plain(1, serial)).collect();
        let ticket = submit(&queue, &list, WithSync::Now).unwrap();
        wait(&queue, ticket).unwrap();
        assert_eq!(serials(&queue), (0..1000).collect::<Vec<_>>());
    }
}

#[test]
fn up_to_64_commands_and_their_sync_are_one_reservation() {
    let shape = Shape {
        lg2_entries: 8,
        ..HEAD
    };
    for (count, tails) in [(0, 1), (1, 1), (64, 1), (65, 2), (128, 2), (129, 3)] {
        let queue = queue(Toy::<Pair>::new(shape));
        let list = vec![plain(1, 0); count];
        let ticket = submit(&queue, &list, WithSync::Now).unwrap();
        assert_eq!(queue.device().tail(), count as u32 + 1);
        assert_eq!(queue.device().tail_write_count(), tails, "{count}");
        queue.device().run();
        wait(&queue, ticket).unwrap();
    }
}

#[test]
fn nothing_is_not_waited_for() {
    let queue = queue(Toy::<Pair>::new(HEAD));
    let nothing = submit(&queue, &[], WithSync::Later).unwrap();
    assert!(nothing.is_nothing());
    wait(&queue, nothing).unwrap();
    assert_eq!((queue.device().tail(), queue.device().ticks()), (0, 0));
}

/// A SYNC alone stands behind what others sent.
#[test]
fn a_sync_may_come_without_commands() {
    for shape in [HEAD, STATUS] {
        let queue = running(shape);
        let earlier = send(&queue, &[Opcode::Plain], WithSync::Later);
        let barrier = submit(&queue, &[], WithSync::Now).unwrap();
        wait(&queue, barrier).unwrap();
        wait(&queue, earlier).unwrap();
        assert_eq!(queue.device().seen_sync_count(), 1);
    }
}

#[test]
fn tickets_join_a_sync_behind_them_and_only_such_a_one() {
    for shape in [HEAD, STATUS] {
        let queue = running(shape);
        let tickets = [(); 3].map(|()| send(&queue, &[Opcode::Plain], WithSync::Later));
        for ticket in tickets {
            wait(&queue, ticket).unwrap();
        }
        assert_eq!(queue.device().seen_sync_count(), 1);
        // This one's SYNC stands before the next one's command.
        wait(&queue, send(&queue, &[Opcode::Plain], WithSync::Now)).unwrap();
        let later = send(&queue, &[Opcode::Plain], WithSync::Later);
        wait(&queue, later).unwrap();
        assert_eq!(queue.device().seen_sync_count(), 3);
    }
}

#[test]
fn a_ticket_that_is_waited_for_late_is_done() {
    for shape in [HEAD, STATUS] {
        let queue = running(shape);
        let old = send(&queue, &[Opcode::Plain], WithSync::Now);
        let older = send(&queue, &[Opcode::Plain], WithSync::Later);
        for _ in 0..if cfg!(miri) { 10 } else { 100 } {
            wait(&queue, send(&queue, &[Opcode::Plain], WithSync::Now)).unwrap();
        }
        queue.device().set_steps_in_pause(0);
        wait(&queue, old).unwrap();
        wait(&queue, older).unwrap();
    }
}

/// Both take longer than all the rest: an access to a register, and often the clock.
#[test]
fn who_finds_it_done_reads_no_clock_and_no_head_that_tells_nothing_new() {
    for (shape, head_read_count) in [(HEAD, 1), (STATUS, 0)] {
        let queue = queue(Toy::<Pair>::new(shape));
        let ticket = send(&queue, &[Opcode::Plain], WithSync::Now);
        queue.device().run();
        queue.device().head_read_count.store(0, Ordering::Relaxed);
        wait(&queue, ticket).unwrap();
        let Toy {
            head_read_count: heads,
            clock_read_count: clocks,
            ..
        } = queue.device();
        let counts = [heads, clocks].map(|count| count.load(Ordering::Relaxed));
        assert_eq!(counts, [head_read_count, 0]);
    }
}

#[test]
fn a_queue_begins_where_hardware_stands() {
    for shape in [HEAD, STATUS] {
        let indices = if shape.has_wrap_bit { 16 } else { 8 };
        for index in 0..indices {
            // A number that somebody else left.
            let toy = Toy::<Pair>::starting_at(shape, index, index * 3).consuming_in_pauses(1);
            let queue = queue(toy);
            for serial in 0..40 {
                let list = [plain(1, 2 * serial), plain(1, 2 * serial + 1)];
                let ticket = submit(&queue, &list, WithSync::Now).unwrap();
                wait(&queue, ticket).unwrap();
            }
            assert_eq!(serials(&queue), (0..80).collect::<Vec<_>>());
        }
    }
}

#[test]
fn numbers_in_the_status_word_wrap() {
    for status in u32::MAX - 20..=u32::MAX {
        let toy = Toy::<Pair>::starting_at(STATUS, 5, status);
        let queue = queue(toy);
        for _ in 0..20 {
            let ticket = send(&queue, &[Opcode::Plain], WithSync::Now);
            let early = ticket;
            assert_eq!(wait(&queue, early), Err(SyncError::TimedOut));
            queue.device().run();
            wait(&queue, ticket).unwrap();
        }
    }
}

#[test]
fn numbers_that_come_in_the_other_order_confirm_what_they_say() {
    let queue = queue(Toy::<Pair>::new(STATUS));
    let toy = queue.device();
    toy.is_slow.store(true, Ordering::Relaxed);
    let [first, second] = [(); 2].map(|()| send(&queue, &[Opcode::Plain], WithSync::Now));
    toy.run();
    toy.answer_backwards();
    // Only the first one's number is left to be seen.
    assert_eq!(wait(&queue, second), Err(SyncError::TimedOut));
    wait(&queue, first).unwrap();
    let last = send(&queue, &[Opcode::Plain], WithSync::Now);
    assert_eq!(wait(&queue, last), Err(SyncError::TimedOut));
    toy.run();
    toy.answer();
    wait(&queue, last).unwrap();
}

/// Otherwise a number could be ahead of the last one by more than it can say.
#[test]
fn lists_get_a_sync_after_too_many_without() {
    // Seven lists of three are 21 entries, so that each eighth one gets a SYNC.
    for (shape, sync_count) in [(HEAD, 0), (STATUS, 3)] {
        let mut queue = running(shape);
        queue.sync_distance = 20;
        for _ in 0..30 {
            let _ = send(&queue, &[Opcode::Plain; 3], WithSync::Later);
        }
        queue.device().run();
        assert_eq!(queue.device().seen_sync_count(), sync_count);
    }
}

#[test]
fn a_device_that_contradicts_itself_gets_no_queue() {
    let make = |toy: Toy<Pair>| Queue::new(toy).map(|_| ());
    for (lg2_entries, has_wrap_bit) in [(0, true), (1, false), (25, true), (64, true), (255, false)]
    {
        let small = Toy::<Pair>::new(HEAD).with_false_shape(Shape {
            lg2_entries,
            has_wrap_bit,
            ..HEAD
        });
        assert_eq!(make(small), Err(ShapeError::Entries { lg2_entries }));
    }
    let large = Shape {
        lg2_entries: 4,
        ..HEAD
    };
    let error = make(Toy::new(HEAD).with_false_shape(large));
    let (needed, given) = (32, 16);
    assert_eq!(error, Err(ShapeError::Memory { needed, given }));
    for (shape, index) in [(HEAD, 16), (STATUS, 8), (HEAD, u32::MAX - 1)] {
        let toy = Toy::<Pair>::new(shape);
        toy.false_head.store(index, Ordering::Relaxed);
        assert_eq!(make(toy), Err(ShapeError::Head { index }));
    }
    for (lg2_entries, has_wrap_bit) in [(1, true), (2, false)] {
        let shape = Shape {
            lg2_entries,
            has_wrap_bit,
            ..HEAD
        };
        make(Toy::new(shape)).unwrap();
    }
}

/// The only list that fits at all still does.
#[test]
fn the_smallest_queue_works() {
    for (lg2_entries, has_wrap_bit) in [(1, true), (2, false)] {
        for completion in [Completion::Head, Completion::Status] {
            let queue = running(Shape {
                lg2_entries,
                least_lg2_entries: 1,
                has_wrap_bit,
                completion,
            });
            let list: Vec<Pair> = (0..50).map(|serial| plain(1, serial)).collect();
            for sync in [WithSync::Now, WithSync::Later] {
                let ticket = submit(&queue, &list, sync).unwrap();
                wait(&queue, ticket).unwrap();
                assert_eq!(serials(&queue), (0..50).collect::<Vec<_>>());
            }
        }
    }
}
