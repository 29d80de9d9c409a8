//! Hardware that fails, and hardware that does nothing.

use super::toy::{entry, plain};
use super::*;
use crate::sync::atomic::Ordering;

#[test]
fn stuck_hardware_times_waits_out_and_late_completion_confuses_nobody() {
    for shape in [HEAD, STATUS] {
        let queue = queue(Toy::<Pair>::new(shape));
        let toy = queue.device();
        let mut tickets = Vec::new();
        for _ in 0..3 {
            let ticket = send(&queue, &[Opcode::Plain], WithSync::Now);
            let began = toy.ticks();
            assert_eq!(wait(&queue, ticket), Err(SyncError::TimedOut));
            assert_eq!(toy.ticks() - began, LIMIT);
            tickets.push(ticket);
        }
        // Two entries of the first list, whose SYNC is not the others'.
        assert!(toy.step() && toy.step());
        for (index, ticket) in tickets.into_iter().enumerate() {
            let outcome = if index == 0 {
                Ok(())
            } else {
                Err(SyncError::TimedOut)
            };
            assert_eq!(wait(&queue, ticket), outcome, "{index}");
        }
        toy.run();
        let last = send(&queue, &[Opcode::Plain], WithSync::Later);
        assert_eq!(wait(&queue, last), Err(SyncError::TimedOut));
        toy.run();
        wait(&queue, last).unwrap();
    }
}

#[test]
fn a_full_ring_refuses_after_the_limit_and_keeps_nothing() {
    for shape in [HEAD, STATUS] {
        let queue = queue(Toy::<Pair>::new(shape));
        let toy = queue.device();
        let capacity = if shape.has_wrap_bit { 8 } else { 7 };
        for serial in 0..capacity - 1 {
            let _ = submit(&queue, &[plain(1, serial)], WithSync::Later).unwrap();
        }
        // One entry is free, and that is not enough.
        for _ in 0..3 {
            let began = toy.ticks();
            let error = submit(&queue, &[plain(1, 99)], WithSync::Now).unwrap_err();
            assert_eq!(error, SyncError::QueueFull);
            assert_eq!(toy.ticks() - began, LIMIT);
        }
        let _ = submit(&queue, &[plain(1, capacity - 1)], WithSync::Later).unwrap();
        // Who waits finds no room for its SYNC.
        let without = Ticket::of_list(0, 1, false);
        assert_eq!(wait(&queue, without), Err(SyncError::QueueFull));
        toy.run();
        let ticket = submit(&queue, &[plain(1, capacity)], WithSync::Now).unwrap();
        toy.run();
        wait(&queue, ticket).unwrap();
        let serials: Vec<_> = toy.take_seen().iter().map(|seen| seen.serial).collect();
        assert_eq!(
            serials[..=capacity as usize],
            (0..=capacity).collect::<Vec<_>>()
        );
    }
}

#[test]
fn hardware_has_the_limit_for_room_and_again_for_the_sync() {
    let smallest = Shape {
        lg2_entries: 1,
        ..HEAD
    };
    let queue = queue(Toy::<Pair>::new(smallest).consuming_in_pauses(1));
    let toy = queue.device();
    // Three entries take longer than the limit, but none does.
    toy.pauses_to_step.store(45, Ordering::Relaxed);
    let _ = send(&queue, &[Opcode::Plain], WithSync::Later);
    let last = send(&queue, &[Opcode::Plain], WithSync::Later);
    assert_eq!(wait(&queue, last), Ok(()));
    assert!(toy.ticks() > LIMIT);
}

#[test]
fn a_refused_command_fails_its_list_and_no_other() {
    for shape in [HEAD, STATUS] {
        for lap in 0..20 {
            let queue = queue(Toy::<Pair>::starting_at(shape, lap % 8, lap));
            let before = send(&queue, &[Opcode::Plain], WithSync::Now);
            let bad = send(&queue, &[Opcode::Plain, Opcode::Illegal], WithSync::Now);
            let after = send(&queue, &[Opcode::Plain], WithSync::Now);
            queue.device().set_steps_in_pause(1);
            wait(&queue, after).unwrap();
            assert_eq!(wait(&queue, bad), Err(SyncError::Refused));
            wait(&queue, before).unwrap();
            // It fails everybody who joins a SYNC behind it, but not who comes later.
            let later = send(&queue, &[Opcode::Plain], WithSync::Later);
            wait(&queue, later).unwrap();
        }
    }
}

#[test]
fn a_refused_command_is_replaced_by_a_sync_and_the_rest_goes_on() {
    for shape in [HEAD, STATUS] {
        let queue = queue(Toy::<Pair>::new(shape).consuming_in_pauses(1));
        let list = [
            plain(1, 1),
            entry(Opcode::Illegal, 1, 2),
            entry(Opcode::Illegal, 1, 3),
            plain(1, 4),
        ];
        let ticket = submit(&queue, &list, WithSync::Later).unwrap();
        assert_eq!(wait(&queue, ticket), Err(SyncError::Refused));
        let next = send(&queue, &[Opcode::Plain], WithSync::Now);
        wait(&queue, next).unwrap();
        let opcodes: Vec<_> = queue
            .device()
            .take_seen()
            .iter()
            .map(|seen| seen.opcode)
            .collect();
        assert_eq!(opcodes[..5], [1, 2, 2, 1, 2]);
    }
}

/// The status word has room for one number, that of the replacement in the end.
#[test]
fn what_replaces_a_refused_command_confirms_what_is_before_it() {
    let queue = queue(Toy::<Pair>::new(STATUS));
    let toy = queue.device();
    toy.is_slow.store(true, Ordering::Relaxed);
    let before = send(&queue, &[Opcode::Plain], WithSync::Now);
    let bad = send(&queue, &[Opcode::Illegal], WithSync::Later);
    toy.run();
    queue.poll();
    toy.run();
    toy.answer();
    wait(&queue, before).unwrap();
    toy.is_slow.store(false, Ordering::Relaxed);
    toy.set_steps_in_pause(1);
    assert_eq!(wait(&queue, bad), Err(SyncError::Refused));
}

#[test]
fn a_sync_that_gives_up_fails_all_that_stood_before_it() {
    for shape in [HEAD, STATUS] {
        let error = Err(SyncError::DeviceTimedOut);
        let queue = queue(Toy::<Pair>::new(shape));
        let toy = queue.device();
        let silent = send(&queue, &[Opcode::Silent], WithSync::Later);
        let innocent = send(&queue, &[Opcode::Plain], WithSync::Later);
        let joined = send(&queue, &[Opcode::Plain], WithSync::Now);
        let after = send(&queue, &[Opcode::Plain], WithSync::Now);
        toy.set_steps_in_pause(1);
        wait(&queue, after).unwrap();
        // Although the last SYNC, which the first two would join, has succeeded.
        for ticket in [joined, silent, innocent] {
            assert_eq!(wait(&queue, ticket), error);
        }
        let retry = send(&queue, &[Opcode::Plain], WithSync::Later);
        wait(&queue, retry).unwrap();
    }
}

#[test]
fn all_that_hardware_dropped_fails_and_what_it_had_not_fetched_does_not() {
    let queue = queue(Toy::<Pair>::new(STATUS));
    let toy = queue.device();
    toy.is_slow.store(true, Ordering::Relaxed);
    let complete = send(&queue, &[], WithSync::Now);
    toy.run();
    toy.answer();
    let dropped = send(&queue, &[], WithSync::Now);
    let silent = send(&queue, &[Opcode::Silent], WithSync::Now);
    let not_fetched = send(&queue, &[Opcode::Plain], WithSync::Now);
    toy.set_steps_in_pause(1);
    assert_eq!(wait(&queue, dropped), Err(SyncError::DeviceTimedOut));
    assert_eq!(wait(&queue, silent), Err(SyncError::DeviceTimedOut));
    toy.is_slow.store(false, Ordering::Relaxed);
    wait(&queue, not_fetched).unwrap();
    wait(&queue, complete).unwrap();
}

#[test]
fn a_fetch_that_fails_is_tried_again() {
    for shape in [HEAD, STATUS] {
        let queue = queue(Toy::<Pair>::new(shape).consuming_in_pauses(1));
        queue.device().failing_fetches.store(5, Ordering::Relaxed);
        let ticket = send(&queue, &[Opcode::Plain], WithSync::Now);
        wait(&queue, ticket).unwrap();
        // But not for ever.
        queue
            .device()
            .failing_fetches
            .store(u32::MAX, Ordering::Relaxed);
        let ticket = send(&queue, &[Opcode::Plain], WithSync::Now);
        assert_eq!(wait(&queue, ticket), Err(SyncError::TimedOut));
    }
}

/// A ring full of commands that nobody waits for, with a bad one in it.
#[test]
fn who_waits_for_room_deals_with_errors() {
    for shape in [HEAD, STATUS] {
        let queue = queue(Toy::<Pair>::new(shape).consuming_in_pauses(1));
        let bad = send(&queue, &[Opcode::Illegal], WithSync::Later);
        let mut last = Ticket::NOTHING;
        for _ in 0..20 {
            last = send(&queue, &[Opcode::Plain; 3], WithSync::Later);
        }
        wait(&queue, last).unwrap();
        assert_eq!(wait(&queue, bad), Err(SyncError::Refused));
    }
}

#[test]
fn registers_of_hardware_that_is_gone_confirm_nothing() {
    for shape in [HEAD, STATUS] {
        let entries = if shape.has_wrap_bit { 16 } else { 8 };
        let queue = queue(Toy::<Pair>::new(shape));
        let toy = queue.device();
        let ticket = send(&queue, &[Opcode::Plain], WithSync::Now);
        for index in (3..entries + 4).chain([u32::MAX - 1, 0x8000_0001]) {
            toy.false_head.store(index, Ordering::Relaxed);
            let outcome = wait(&queue, ticket);
            assert_eq!(outcome, Err(SyncError::TimedOut), "{index}");
        }
        toy.false_head.store(u32::MAX, Ordering::Relaxed);
        toy.run();
        wait(&queue, ticket).unwrap();
    }
}
