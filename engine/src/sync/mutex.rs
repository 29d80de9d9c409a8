//! A mutual-exclusion lock with a class.

use core::ops::{Deref, DerefMut};

use crate::sync::{Class, backend};

/// A mutual-exclusion lock without poisoning, for short critical sections that run no foreign code.
#[derive(Debug)]
pub(crate) struct Mutex<T> {
    inner: backend::Mutex<T>,
}

impl<T> Mutex<T> {
    #[cfg(not(loom))]
    pub(crate) const fn new(class: &'static Class, value: T) -> Self {
        let _ = class;
        Self {
            inner: backend::Mutex::new(value),
        }
    }

    #[cfg(loom)]
    pub(crate) fn new(class: &'static Class, value: T) -> Self {
        let _ = class;
        Self {
            inner: backend::Mutex::new(value),
        }
    }

    /// Waits for the lock and takes it.
    pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
        MutexGuard {
            inner: self.inner.lock(),
        }
    }

    /// As [`lock`](Self::lock), for one of several locks of a class that one thread holds
    /// together: they are taken in rising order of `index`.
    pub(crate) fn lock_nested(&self, index: usize) -> MutexGuard<'_, T> {
        let _ = index;
        self.lock()
    }

    /// Borrows the data without locking, which `&mut self` makes unnecessary.
    pub(crate) fn get_mut(&mut self) -> &mut T {
        self.inner.get_mut()
    }
}

/// The right to use what a [`Mutex`] guards.
#[derive(Debug)]
pub(crate) struct MutexGuard<'a, T> {
    inner: backend::MutexGuard<'a, T>,
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
