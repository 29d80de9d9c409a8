//! Every interleaving of one or two threads that send lists, and hardware.
//!
//! What a command speaks of is a cell: written before the command is sent, read by hardware that runs it,
//! and written again behind the wait. The model checker reports it if one of these is not ordered
//! behind the one before.

#![expect(unsafe_code, reason = "the cells that are watched are shared")]

use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::time::Duration;

use crate::invalidation::SyncError;
use crate::invalidation::queue::{Completion, Device, Fault, Head, Queue, Shape, Ticket, WithSync};
use crate::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use crate::sync::models::{UnsafeCell, thread};
use crate::sync::unmodelled::{self, AtomicBool};
use crate::sync::{Class, Mutex, bounded_model, model};

static HARDWARE: Class = Class::unranked("hardware of a model");

const SYNC: u64 = 1;
/// Commands of the cells from here on.
const PLAIN: u64 = 0x10;
/// The same that only a device could answer, and does not.
const SILENT: u64 = 0x20;
/// The same that hardware does not know.
const ILLEGAL: u64 = 0x30;

/// Faults by their code.
const FAULTS: [Option<Fault>; 3] = [None, Some(Fault::Timeout), Some(Fault::Illegal)];

/// Registers are relaxed: as with a real device, nothing but the queue's fences orders them.
struct Hardware {
    shape: Shape,
    ring: Box<[AtomicU64]>,
    tail: AtomicU32,
    head: AtomicU32,
    status: AtomicU32,
    fault: AtomicU32,
    /// What commands speak of.
    cells: [Cell; 3],
    state: Mutex<State>,
    /// Whether it moves when it is looked at, instead of on a thread of its own. Three threads that wait for
    /// each other are too much for a model.
    is_passive: bool,
    /// Whether nobody needs it any more.
    is_over: AtomicU32,
}

#[derive(Default)]
struct Cell {
    content: UnsafeCell<()>,
    /// Whether hardware ran a command for it.
    is_done: AtomicBool,
}

#[derive(Default)]
struct State {
    index: u32,
    is_silent: bool,
}

// SAFETY: accesses to the cells that nothing orders are what the models look for; `loom` reports them
// instead of letting them happen.
unsafe impl Sync for Hardware {}

type Small = Queue<Hardware>;

impl Hardware {
    fn active(shape: Shape) -> Arc<Small> {
        Self::queue(shape, false)
    }

    fn passive(shape: Shape) -> Arc<Small> {
        Self::queue(shape, true)
    }

    fn queue(shape: Shape, is_passive: bool) -> Arc<Small> {
        let hardware = Self {
            shape,
            ring: (0..2 << shape.lg2_entries)
                .map(|_| AtomicU64::new(0))
                .collect(),
            tail: AtomicU32::new(0),
            head: AtomicU32::new(0),
            status: AtomicU32::new(0),
            fault: AtomicU32::new(0),
            cells: Default::default(),
            state: Mutex::new(&HARDWARE, State::default()),
            is_passive,
            is_over: AtomicU32::new(0),
        };
        let queue = Queue::new(hardware).expect("the shape is sound");
        Arc::new(queue.with_limit(Duration::MAX))
    }

    /// Consumes entries until nobody needs it any more.
    fn run(&self) {
        while self.is_over.load(Ordering::Relaxed) == 0 {
            if !self.step() {
                thread::yield_now();
            }
        }
    }

    /// Consumes an entry; returns whether it could.
    fn step(&self) -> bool {
        let mut state = self.state.lock();
        let is_stopped = self.fault.load(Ordering::Acquire) != 0;
        if is_stopped || self.tail.load(Ordering::Acquire) == state.index {
            return false;
        }
        if let Some(fault) = self.execute(&mut state) {
            let code = FAULTS.iter().position(|&known| known == Some(fault));
            let code = code.expect("all are listed") as u32;
            self.fault.store(code, Ordering::Release);
            return false;
        }
        let bits = self.shape.lg2_entries + u8::from(self.shape.has_wrap_bit);
        state.index = (state.index + 1) % (1 << bits);
        self.head.store(state.index, Ordering::Release);
        true
    }

    fn execute(&self, state: &mut State) -> Option<Fault> {
        let slot = state.index as usize % (1 << self.shape.lg2_entries);
        let [first, second] = [0, 1].map(|word| self.ring[2 * slot + word].load(Ordering::Relaxed));
        assert_eq!(second, !first, "torn or stale at {}", state.index);
        if first & 0xf == SYNC {
            if core::mem::take(&mut state.is_silent) {
                return Some(Fault::Timeout);
            }
            self.status.store((first >> 32) as u32, Ordering::Release);
            return None;
        }
        if first & 0xf0 == ILLEGAL {
            return Some(Fault::Illegal);
        }
        state.is_silent |= first & 0xf0 == SILENT;
        let cell = &self.cells[(first & 0xf) as usize - 2];
        cell.content.with(|_| ());
        cell.is_done.store(true, unmodelled::Ordering::Relaxed);
        None
    }
}

impl Device for Hardware {
    type Entry = [u64; 2];

    fn shape(&self) -> Shape {
        self.shape
    }

    fn ring(&self) -> &[AtomicU64] {
        &self.ring
    }

    fn write_tail(&self, index: u32) {
        self.tail.store(index, Ordering::Relaxed);
    }

    fn head(&self) -> Head {
        while self.is_passive && self.step() {}
        let fault = self.fault.load(Ordering::Relaxed);
        // As a bus does it: the error is read before the head is.
        crate::sync::atomic::fence(Ordering::Acquire);
        Head {
            index: self.head.load(Ordering::Relaxed),
            fault: FAULTS[fault as usize],
        }
    }

    fn status(&self) -> u32 {
        self.status.load(Ordering::Relaxed)
    }

    fn sync_entry(&self, number: u32) -> [u64; 2] {
        entry(SYNC | u64::from(number) << 32)
    }

    fn acknowledge(&self, fault: Fault) {
        let code = self.fault.swap(0, Ordering::Relaxed);
        assert_eq!(
            FAULTS[code as usize],
            Some(fault),
            "it is acknowledged once"
        );
    }

    /// Time stands still.
    fn now_ns(&self) -> u64 {
        0
    }

    fn pause(&self, _turn: u32) {
        thread::yield_now();
    }
}

fn entry(word: u64) -> [u64; 2] {
    [word, !word]
}

/// Sends commands of `opcode` for cells, after writing these.
fn send(queue: &Small, opcode: u64, cells: &[usize], sync: WithSync) -> Ticket {
    let command = |&index: &usize| {
        let cell = &queue.device.cells[index];
        cell.content.with_mut(|_| ());
        cell.is_done.store(false, unmodelled::Ordering::Relaxed);
        entry(opcode | (index as u64 + 2))
    };
    let list: Vec<_> = cells.iter().map(command).collect();
    queue.submit(&list, sync).expect("time stands still")
}

/// Waits, and writes the cells again if hardware is done with them.
fn wait(queue: &Small, ticket: Ticket, cells: &[usize]) -> Result<(), SyncError> {
    let outcome = queue.wait(ticket);
    if outcome.is_ok() {
        for &index in cells {
            let cell = &queue.device.cells[index];
            let is_done = cell.is_done.load(unmodelled::Ordering::Relaxed);
            assert!(is_done, "hardware did nothing for {index}");
            cell.content.with_mut(|_| ());
        }
    }
    outcome
}

/// Runs `acts` side by side.
fn beside(queue: &Arc<Small>, acts: [fn(&Small); 2]) {
    let threads = acts.map(|act| {
        let queue = Arc::clone(queue);
        thread::spawn(move || act(&queue))
    });
    for thread in threads {
        thread.join().expect("the thread ends");
    }
}

/// Runs `act` beside hardware with a thread of its own.
fn beside_hardware(queue: &Arc<Small>, act: fn(&Small)) {
    let producer = {
        let queue = Arc::clone(queue);
        thread::spawn(move || {
            act(&queue);
            queue.device.is_over.store(1, Ordering::Relaxed);
        })
    };
    queue.device.run();
    producer.join().expect("the thread ends");
}

const fn shape(lg2_entries: u8, has_wrap_bit: bool, completion: Completion) -> Shape {
    Shape {
        lg2_entries,
        least_lg2_entries: 1,
        has_wrap_bit,
        completion,
    }
}

#[test]
fn hardware_sees_what_is_before_a_command_and_is_done_behind_the_wait() {
    for completion in [Completion::Head, Completion::Status] {
        model(move || {
            let queue = Hardware::active(shape(1, true, completion));
            beside_hardware(&queue, |queue| {
                let ticket = send(queue, PLAIN, &[0], WithSync::Now);
                wait(queue, ticket, &[0]).expect("nothing fails");
            });
        });
    }
}

/// Each list takes the ring once around.
#[test]
fn laps_follow_each_other() {
    bounded_model(2, || {
        let queue = Hardware::active(shape(1, true, Completion::Head));
        beside_hardware(&queue, |queue| {
            for _ in 0..3 {
                let ticket = send(queue, PLAIN, &[0], WithSync::Now);
                wait(queue, ticket, &[0]).expect("nothing fails");
            }
        });
    });
}

/// Nobody waits, so that only the two themselves can tell hardware of both lists.
#[test]
fn of_two_lists_hardware_is_told_whole_and_of_both() {
    model(|| {
        let queue = Hardware::passive(shape(2, true, Completion::Head));
        let other = {
            let queue = Arc::clone(&queue);
            thread::spawn(move || {
                let _ = send(&queue, PLAIN, &[0], WithSync::Later);
            })
        };
        let _ = send(&queue, PLAIN, &[1], WithSync::Later);
        // As far as it is told yet.
        while queue.device.step() {}
        other.join().expect("the thread ends");
        while queue.device.step() {}
        assert_eq!(queue.device.state.lock().index, 2);
    });
}

/// Two lists that each take more than half of the ring.
#[test]
fn lists_that_do_not_both_fit_wait_for_room() {
    bounded_model(2, || {
        let queue = Hardware::passive(shape(2, false, Completion::Head));
        beside(
            &queue,
            [
                |queue| {
                    let _ = send(queue, PLAIN, &[0], WithSync::Now);
                },
                |queue| {
                    let ticket = send(queue, PLAIN, &[1], WithSync::Now);
                    wait(queue, ticket, &[1]).expect("nothing fails");
                },
            ],
        );
    });
}

#[test]
fn a_waiter_joins_no_sync_that_stands_before_its_list() {
    for completion in [Completion::Head, Completion::Status] {
        bounded_model(2, move || {
            let queue = Hardware::passive(shape(2, true, completion));
            beside(
                &queue,
                [
                    |queue| {
                        let _ = send(queue, PLAIN, &[0], WithSync::Now);
                    },
                    |queue| {
                        let ticket = send(queue, PLAIN, &[1], WithSync::Later);
                        wait(queue, ticket, &[1]).expect("nothing fails");
                    },
                ],
            );
        });
    }
}

/// The other one's SYNC may find out, and the other one may be told first.
#[test]
fn a_failed_sync_fails_whoever_stands_before_it() {
    bounded_model(2, || {
        let queue = Hardware::passive(shape(3, true, Completion::Head));
        beside(
            &queue,
            [
                |queue| {
                    let ticket = send(queue, SILENT, &[0], WithSync::Later);
                    let outcome = wait(queue, ticket, &[]);
                    assert_eq!(outcome, Err(SyncError::DeviceTimedOut));
                },
                |queue| {
                    let ticket = send(queue, PLAIN, &[1], WithSync::Now);
                    let _ = wait(queue, ticket, &[1]);
                },
            ],
        );
    });
}

/// Both deal with it.
#[test]
fn a_refused_command_fails_its_own_list_and_only_that() {
    bounded_model(2, || {
        let queue = Hardware::passive(shape(2, true, Completion::Head));
        beside(
            &queue,
            [
                |queue| {
                    let ticket = send(queue, ILLEGAL, &[0], WithSync::Now);
                    assert_eq!(wait(queue, ticket, &[]), Err(SyncError::Refused));
                },
                |queue| {
                    let ticket = send(queue, PLAIN, &[1], WithSync::Now);
                    wait(queue, ticket, &[1]).expect("this list is sound");
                },
            ],
        );
    });
}

/// One runs hardware, another one looks, and the third hears of it without a look of its own. In this order,
/// because the checker starts from it and hardly finds its way there.
#[test]
fn what_one_saw_of_hardware_reaches_the_others() {
    for completion in [Completion::Head, Completion::Status] {
        model(move || {
            let queue = Hardware::active(shape(1, true, completion));
            let ticket = send(&queue, PLAIN, &[0], WithSync::Now);
            let hardware = {
                let queue = Arc::clone(&queue);
                thread::spawn(move || while queue.device.step() {})
            };
            let looking = {
                let queue = Arc::clone(&queue);
                thread::spawn(move || queue.poll())
            };
            let hearing = {
                let queue = Arc::clone(&queue);
                thread::spawn(move || {
                    if queue.outcome(ticket.first(), ticket.end()).is_some() {
                        wait(&queue, ticket, &[0]).expect("nothing fails");
                    }
                })
            };
            for thread in [hardware, looking, hearing] {
                thread.join().expect("the thread ends");
            }
        });
    }
}

/// Somebody reads the head, stands still while hardware goes around half of the ring, and goes on.
#[test]
fn a_late_look_at_the_head_confirms_nothing() {
    bounded_model(3, || {
        let queue = Hardware::active(shape(2, false, Completion::Head));
        let first = send(&queue, PLAIN, &[0], WithSync::Now);
        let other = {
            let queue = Arc::clone(&queue);
            thread::spawn(move || queue.poll())
        };
        while queue.device.step() {}
        wait(&queue, first, &[0]).expect("hardware is there");
        let second = send(&queue, PLAIN, &[0], WithSync::Now);
        let outcome = queue.outcome(second.first(), second.end());
        assert_eq!(outcome, None, "hardware has done nothing for it");
        other.join().expect("the thread ends");
    });
}

/// Somebody comes late to an error that another one dealt with, and stands still in the second look while the
/// ring goes around and hardware stops at the next error.
#[test]
fn a_late_look_at_an_error_fails_the_entry_that_hardware_stands_at() {
    bounded_model(3, || {
        let queue = Hardware::passive(shape(2, false, Completion::Head));
        let other = {
            let queue = Arc::clone(&queue);
            thread::spawn(move || queue.recover())
        };
        let first = send(&queue, PLAIN, &[0, 1], WithSync::Now);
        wait(&queue, first, &[0, 1]).expect("hardware is there");
        let _ = send(&queue, PLAIN, &[0], WithSync::Later);
        // At the index where the first list began.
        let refused = send(&queue, ILLEGAL, &[1], WithSync::Now);
        assert_eq!(wait(&queue, refused, &[]), Err(SyncError::Refused));
        other.join().expect("the thread ends");
    });
}
