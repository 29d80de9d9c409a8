//! Many producers, and hardware on a thread of its own.

use alloc::sync::Arc;
use std::thread;

use super::toy::{Seen, plain};
use super::*;
use crate::sync::atomic::{AtomicBool, Ordering};

/// Lists that each producer sends.
const LIST_COUNT: u32 = if cfg!(miri) { 12 } else { 2000 };

/// Runs `produce` for producers 1 to 4 beside hardware, and returns what that has seen.
fn beside_hardware<E: ToyEntry + 'static>(
    shape: Shape,
    produce: impl Fn(&Queue<Toy<E>>, u8) + Copy + Send + 'static,
) -> Vec<Seen> {
    let queue = Queue::new(Toy::<E>::new(shape)).expect("the toy's shape is sound");
    let queue = Arc::new(queue.with_limit(Duration::from_secs(1_000_000)));
    let is_over = Arc::new(AtomicBool::new(false));
    let hardware = {
        let (queue, is_over) = (Arc::clone(&queue), Arc::clone(&is_over));
        thread::spawn(move || {
            while !is_over.load(Ordering::Relaxed) {
                if !queue.device().step() {
                    thread::yield_now();
                }
            }
        })
    };
    let producer = |number| {
        let queue = Arc::clone(&queue);
        thread::spawn(move || produce(&queue, number))
    };
    let producers: Vec<_> = (1..=4).map(producer).collect();
    for producer in producers {
        producer.join().expect("no thread panics");
    }
    is_over.store(true, Ordering::Relaxed);
    hardware.join().expect("no thread panics");
    queue.device().run();
    let reserved = queue.taken.reserved.load(Ordering::Relaxed);
    assert_eq!(queue.told.published.load(Ordering::Relaxed), reserved);
    queue.device().take_seen()
}

/// Checks that each producer's commands came in order, each once, and lists that fit in one piece.
fn check(seen: &[Seen], list_len: impl Fn(u8, u32) -> u32) {
    let mut next = [0; 5];
    let mut rest = seen.iter().filter(|seen| seen.opcode != Opcode::Sync as u8);
    while let Some(first) = rest.next() {
        let producer = first.producer;
        let list = first.serial >> 8;
        assert_eq!(first.serial, list << 8, "a list begins at its beginning");
        assert_eq!(list, next[usize::from(producer)], "producer {producer}");
        for step in 1..list_len(producer, list) {
            let command = rest.next().expect("the list goes on");
            assert_eq!(
                (command.producer, command.serial),
                (producer, list << 8 | step)
            );
        }
        next[usize::from(producer)] += 1;
    }
    assert_eq!(next[1..], [LIST_COUNT; 4]);
}

/// From one command to as many as the ring of eight takes with a SYNC.
fn small_len(producer: u8, list: u32) -> u32 {
    1 + (list + u32::from(producer)) % 6
}

fn produce<E: ToyEntry>(queue: &Queue<Toy<E>>, producer: u8) {
    let mut early = Ticket::NOTHING;
    for list in 0..LIST_COUNT {
        let len = small_len(producer, list);
        let commands: Vec<E> = (0..len)
            .map(|step| plain(producer, list << 8 | step))
            .collect();
        let sync = if list % 3 == 0 {
            WithSync::Now
        } else {
            WithSync::Later
        };
        let ticket = submit(queue, &commands, sync).expect("room comes");
        if list % 5 == 4 {
            wait(queue, early.and(ticket)).expect("hardware answers");
            early = Ticket::NOTHING;
        } else {
            early = early.and(ticket);
        }
    }
    wait(queue, early).expect("hardware answers");
}

#[test]
fn four_producers_lose_tear_repeat_and_mix_nothing_over_many_laps() {
    for completion in [Completion::Head, Completion::Status] {
        for has_wrap_bit in [true, false] {
            let shape = Shape {
                lg2_entries: 3,
                least_lg2_entries: 1,
                has_wrap_bit,
                completion,
            };
            check(&beside_hardware::<[u64; 2]>(shape, produce), small_len);
            check(&beside_hardware::<[u64; 4]>(shape, produce), small_len);
        }
    }
}

#[test]
fn four_producers_keep_the_ring_full() {
    for shape in [HEAD, STATUS] {
        let full_len = |_, _| 6;
        let seen = beside_hardware::<Pair>(shape, move |queue, producer| {
            for list in 0..LIST_COUNT {
                let command = |step| plain(producer, list << 8 | step);
                let commands: Vec<_> = (0..full_len(0, 0)).map(command).collect();
                let ticket = submit(queue, &commands, WithSync::Now).unwrap();
                wait(queue, ticket).unwrap();
            }
        });
        check(&seen, full_len);
    }
}

/// Some lists are bad, of all producers together fewer than are told apart; each waiter hears of its own,
/// and of no other one's.
#[test]
fn producers_hear_of_their_own_errors_only() {
    for shape in [HEAD, STATUS] {
        let _ = beside_hardware::<Pair>(shape, |queue, producer| {
            let distance = (LIST_COUNT / 50).max(3);
            for list in 0..LIST_COUNT {
                let is_bad = (list + u32::from(producer)) % distance == 0;
                let opcode = if is_bad {
                    Opcode::Illegal
                } else {
                    Opcode::Plain
                };
                let ticket = send(queue, &[Opcode::Plain, opcode], WithSync::Now);
                let outcome = if is_bad {
                    Err(SyncError::Refused)
                } else {
                    Ok(())
                };
                assert_eq!(wait(queue, ticket), outcome, "{producer} {list}");
            }
        });
    }
}

/// Devices that do not answer fail at least whoever asked them.
#[test]
fn nobody_takes_a_silent_device_for_an_answer() {
    for shape in [HEAD, STATUS] {
        let _ = beside_hardware::<Pair>(shape, |queue, producer| {
            for list in 0..LIST_COUNT {
                let is_bad = (list + u32::from(producer)) % 3 == 0;
                let opcode = if is_bad {
                    Opcode::Silent
                } else {
                    Opcode::Plain
                };
                let sync = if list % 2 == 0 {
                    WithSync::Now
                } else {
                    WithSync::Later
                };
                let ticket = send(queue, &[opcode], sync);
                let outcome = wait(queue, ticket);
                if is_bad {
                    assert_eq!(outcome, Err(SyncError::DeviceTimedOut), "{producer} {list}");
                }
            }
        });
    }
}
