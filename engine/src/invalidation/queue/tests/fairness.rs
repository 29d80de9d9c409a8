//! Who waits for room, and whom a caller that stands still holds up.

use alloc::sync::Arc;
use std::thread;

use super::toy::plain;
use super::*;

/// Without a line, small lists would take each entry that comes free.
#[test]
fn a_list_that_needs_much_room_is_not_passed_by_those_that_need_little() {
    for shape in [HEAD, STATUS] {
        let queue = Queue::new(Toy::<Pair>::new(shape)).unwrap();
        let queue = Arc::new(queue.with_limit(Duration::from_secs(1_000_000)));
        let capacity = if shape.has_wrap_bit { 8 } else { 7 };
        let _ = submit(&queue, &vec![plain(0, 0); capacity - 1], WithSync::Now).unwrap();
        let large = {
            let queue = Arc::clone(&queue);
            thread::spawn(move || {
                let _ = submit(&queue, &vec![plain(1, 0); capacity - 1], WithSync::Now).unwrap();
            })
        };
        while queue.done.line.is_empty() {
            thread::yield_now();
        }
        // Enough for the small lists that come now, which are later and ask for less.
        assert!(queue.device().step());
        queue.device().advance(1);
        queue.device().set_steps_in_pause(1);
        for _ in 0..capacity {
            let _ = submit(&queue, &[plain(2, 0)], WithSync::Later).unwrap();
        }
        large.join().unwrap();
        queue.device().run();
        let seen = queue.device().take_seen();
        let order: Vec<_> = seen
            .iter()
            .map(|seen| seen.producer)
            .filter(|&by| by != 0)
            .collect();
        let (large, small) = order.split_at(capacity - 1);
        assert!(large.iter().all(|&by| by == 1), "{order:?}");
        assert!(small.iter().all(|&by| by == 2), "{order:?}");
    }
}

/// Not even who submits behind it: hardware is told when it goes on.
#[test]
fn who_reserved_and_does_not_write_blocks_nobody() {
    for shape in [HEAD, STATUS] {
        let queue = queue(Toy::<Pair>::new(shape));
        let toy = queue.device();
        let mut patience = super::super::Patience::new(0);
        let start = queue.reserve(1, &mut patience).unwrap();
        let ticket = send(&queue, &[Opcode::Plain], WithSync::Now);
        assert_eq!((toy.ticks(), toy.tail()), (0, 0));
        assert_eq!(wait(&queue, ticket), Err(SyncError::TimedOut));
        assert_eq!(toy.tail(), 0);
        queue.fill(start, &[plain(2, 7)], false);
        assert_eq!(toy.tail(), 3);
        toy.run();
        wait(&queue, ticket).unwrap();
        assert_eq!(toy.take_seen()[0].producer, 2);
    }
}

/// As when an owner that others keep busy stops.
#[test]
fn who_waits_has_hardware_told_of_what_an_owner_left() {
    for shape in [HEAD, STATUS] {
        let queue = queue(Toy::<Pair>::new(shape).consuming_in_pauses(1));
        // An owner that does nothing yet.
        queue
            .told
            .asks
            .store(1, crate::sync::atomic::Ordering::Relaxed);
        let ticket = send(&queue, &[Opcode::Plain], WithSync::Now);
        assert_eq!(wait(&queue, ticket), Err(SyncError::TimedOut));
        assert_eq!(queue.device().tail(), 0);
        queue
            .told
            .asks
            .store(0, crate::sync::atomic::Ordering::Relaxed);
        wait(&queue, ticket).unwrap();
    }
}
