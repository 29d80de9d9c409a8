//! The queue of those who cannot pass a [`DomainLock`](super::DomainLock) by their slot: a
//! read-write semaphore with turns.
//!
//! # State
//!
//! Everything is in [`State`], under one mutex that is never held for longer than a few
//! instructions. Its critical sections take no other lock, so it needs no class.
//!
//! # Invariants
//!
//! - **Q1** (exclusion): `has_writer` implies `readers == 0`.
//! - **Q2** (writers first): while a writer holds or waits, a reader that comes waits.
//! - **Q3** (turns): when a writer leaves, by unlocking or downgrading, all readers that wait are
//!   counted in at once, before the next writer: `turn` tells them. The same happens when the last
//!   waiting writer gives up.
//! - **Q4** (wake-ups): when nobody holds the semaphore and writers wait, one of them was notified
//!   and has not looked yet. It looks before it gives up.
//!
//! By Q2 a writer waits for those inside and for earlier writers, not for a stream of readers. By
//! Q3 a reader waits for one writer, not for a stream of them. Among writers there is no order.

use crate::sync::backend::{Condvar, Deadline, Left, Mutex, MutexGuard};

#[derive(Debug)]
pub(super) struct Rwsem {
    state: Mutex<State>,
    /// Notified when `turn` changes.
    turned: Condvar,
    /// Notified when a writer may try.
    freed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// Who reads, those included that were counted in and have not run since.
    readers: usize,
    has_writer: bool,
    /// Who waits for the next turn.
    waiting_readers: usize,
    waiting_writers: usize,
    turn: u64,
}

impl State {
    fn admits_readers(&self) -> bool {
        !self.has_writer && self.waiting_writers == 0
    }

    fn admits_writer(&self) -> bool {
        !self.has_writer && self.readers == 0
    }
}

impl Rwsem {
    pub(super) fn new() -> Self {
        Self {
            state: Mutex::new(State::default()),
            turned: Condvar::new(),
            freed: Condvar::new(),
        }
    }

    pub(super) fn try_read(&self) -> bool {
        let mut state = self.state.lock();
        let is_admitted = state.admits_readers();
        if is_admitted {
            state.readers += 1;
        }
        is_admitted
    }

    pub(super) fn try_write(&self) -> bool {
        let mut state = self.state.lock();
        let is_admitted = state.admits_writer();
        if is_admitted {
            state.has_writer = true;
        }
        is_admitted
    }

    /// Returns whether a reader came in before `deadline`.
    pub(super) fn read(&self, deadline: &mut Deadline) -> bool {
        let mut state = self.state.lock();
        if state.admits_readers() {
            state.readers += 1;
            return true;
        }
        state.waiting_readers += 1;
        let turn = state.turn;
        while state.turn == turn {
            state = match wait(&self.turned, state, deadline) {
                Ok(state) => state,
                Err(mut state) => {
                    state.waiting_readers -= 1;
                    return false;
                }
            };
        }
        true
    }

    /// Returns whether a writer came in before `deadline`. Calls `before_wait`, if it has to wait,
    /// when readers that come wait already.
    pub(super) fn write(&self, deadline: &mut Deadline, before_wait: impl Fn()) -> bool {
        let mut state = self.state.lock();
        state.waiting_writers += 1;
        while !state.admits_writer() {
            before_wait();
            state = match wait(&self.freed, state, deadline) {
                Ok(state) => state,
                Err(mut state) => {
                    state.waiting_writers -= 1;
                    if state.admits_readers() {
                        self.turn(&mut state);
                    }
                    return false;
                }
            };
        }
        state.waiting_writers -= 1;
        state.has_writer = true;
        true
    }

    pub(super) fn unlock_read(&self) {
        let mut state = self.state.lock();
        state.readers -= 1;
        self.notify_writer(&state);
    }

    pub(super) fn unlock_write(&self) {
        let mut state = self.state.lock();
        state.has_writer = false;
        self.turn(&mut state);
        self.notify_writer(&state);
    }

    /// Turns the writer into a reader; no other writer comes in between.
    pub(super) fn downgrade(&self) {
        let mut state = self.state.lock();
        state.has_writer = false;
        state.readers = 1;
        self.turn(&mut state);
    }

    /// Runs `act` unless a writer holds or waits, and keeps others from coming meanwhile.
    pub(super) fn unless_writer(&self, act: impl FnOnce()) {
        let state = self.state.lock();
        if state.admits_readers() {
            act();
        }
    }

    /// Counts in the readers that wait (Q3).
    fn turn(&self, state: &mut State) {
        if state.waiting_readers > 0 {
            state.readers += state.waiting_readers;
            state.waiting_readers = 0;
            state.turn = state.turn.wrapping_add(1);
            self.turned.notify_all();
        }
    }

    fn notify_writer(&self, state: &State) {
        if state.admits_writer() && state.waiting_writers > 0 {
            self.freed.notify_one();
        }
    }

    /// Returns how many writers wait.
    #[cfg(test)]
    pub(super) fn waiting_writers(&self) -> usize {
        self.state.lock().waiting_writers
    }

    /// Returns how many readers wait.
    #[cfg(test)]
    pub(super) fn waiting_readers(&self) -> usize {
        self.state.lock().waiting_readers
    }
}

/// Waits once, as long as `deadline` allows. Gives the lock back as an error if that is over.
fn wait<'a>(
    condvar: &Condvar,
    state: MutexGuard<'a, State>,
    deadline: &mut Deadline,
) -> Result<MutexGuard<'a, State>, MutexGuard<'a, State>> {
    match deadline.left() {
        Left::Forever => Ok(condvar.wait(state)),
        Left::For(limit) => Ok(condvar.wait_for(state, limit)),
        Left::Nothing => Err(state),
    }
}
