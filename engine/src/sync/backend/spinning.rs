//! Spinning locks, for programs without an operating system.

use core::ops::{Deref, DerefMut};

use crate::sync::backend::pause;

#[derive(Debug, Default)]
pub(crate) struct Mutex<T>(spin::Mutex<T>);

impl<T> Mutex<T> {
    pub(crate) const fn new(value: T) -> Self {
        Self(spin::Mutex::new(value))
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
        MutexGuard {
            mutex: self,
            inner: self.0.lock(),
        }
    }

    pub(crate) fn get_mut(&mut self) -> &mut T {
        self.0.get_mut()
    }
}

/// Knows its mutex, so that a wait can take it again.
#[derive(Debug)]
pub(crate) struct MutexGuard<'a, T> {
    mutex: &'a Mutex<T>,
    inner: spin::MutexGuard<'a, T>,
}

impl<T> Deref for MutexGuard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.inner
    }
}

impl<T> DerefMut for MutexGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.inner
    }
}

/// Wakes all the time: who waits looks again.
#[derive(Debug, Default)]
pub(crate) struct Condvar;

#[expect(clippy::unused_self, reason = "the interface of the other backends")]
impl Condvar {
    pub(crate) const fn new() -> Self {
        Self
    }

    pub(crate) fn wait<'a, T>(&self, guard: MutexGuard<'a, T>) -> MutexGuard<'a, T> {
        let mutex = guard.mutex;
        drop(guard);
        pause(0);
        mutex.lock()
    }

    /// Nothing gives a limit where there is no clock.
    pub(crate) fn wait_for<'a, T>(
        &self,
        guard: MutexGuard<'a, T>,
        _limit: core::time::Duration,
    ) -> MutexGuard<'a, T> {
        self.wait(guard)
    }

    pub(crate) fn notify_one(&self) {}

    pub(crate) fn notify_all(&self) {}
}
