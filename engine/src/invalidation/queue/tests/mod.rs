//! Queues in front of simulated hardware.

mod errors;
mod fairness;
mod fake;
mod hardware;
mod single;
mod threads;
pub(in crate::invalidation) mod toy;

use core::time::Duration;

use super::{Completion, Queue, Shape, Ticket, WithSync};
use crate::invalidation::SyncError;
use crate::invalidation::queue::tests::toy::{Opcode, Toy, ToyEntry};
use crate::sync::SYNC;

type Pair = [u64; 2];

const HEAD: Shape = Shape {
    lg2_entries: 3,
    least_lg2_entries: 1,
    has_wrap_bit: true,
    completion: Completion::Head,
};
const STATUS: Shape = Shape {
    lg2_entries: 3,
    least_lg2_entries: 1,
    has_wrap_bit: false,
    completion: Completion::Status,
};

/// Ticks of the toy's clock that a wait may take where hardware is stuck.
const LIMIT: u64 = 100;

fn queue<E: ToyEntry>(toy: Toy<E>) -> Queue<Toy<E>> {
    Queue::new(toy)
        .expect("the toy's shape is sound")
        .with_limit(Duration::from_nanos(LIMIT))
}

fn submit<E: ToyEntry>(
    queue: &Queue<Toy<E>>,
    list: &[E],
    sync: WithSync,
) -> Result<Ticket, SyncError> {
    let _waiting = SYNC.waiting();
    queue.submit(list, sync)
}

fn send<E: ToyEntry>(queue: &Queue<Toy<E>>, opcodes: &[Opcode], sync: WithSync) -> Ticket {
    let list: Vec<E> = opcodes
        .iter()
        .map(|&opcode| toy::entry(opcode, 1, 0))
        .collect();
    submit(queue, &list, sync).expect("there is room")
}

fn wait<E: ToyEntry>(queue: &Queue<Toy<E>>, ticket: Ticket) -> Result<(), SyncError> {
    let _waiting = SYNC.waiting();
    queue.wait(ticket)
}
