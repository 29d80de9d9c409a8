//! A mutual-exclusion lock with a class.

use core::ops::{Deref, DerefMut};

use crate::sync::backend;
use crate::sync::lockdep::{Class, Held, Label};

/// A mutual-exclusion lock without poisoning, for short critical sections that run no foreign code.
#[derive(Debug)]
pub(crate) struct Mutex<T> {
    label: Label,
    inner: backend::Mutex<T>,
}

impl<T> Mutex<T> {
    #[cfg(not(loom))]
    pub(crate) const fn new(class: &'static Class, value: T) -> Self {
        Self {
            label: Label::new(class),
            inner: backend::Mutex::new(value),
        }
    }

    #[cfg(loom)]
    pub(crate) fn new(class: &'static Class, value: T) -> Self {
        Self {
            label: Label::new(class),
            inner: backend::Mutex::new(value),
        }
    }

    /// Waits for the lock and takes it.
    #[inline]
    #[cfg_attr(debug_assertions, track_caller)]
    pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
        let held = self.label.taking(self, None);
        MutexGuard {
            inner: self.inner.lock(),
            _held: held,
        }
    }

    /// As [`lock`](Self::lock), for one of several locks of a class that one thread holds
    /// together: they are taken in rising order of `index`.
    #[inline]
    #[cfg_attr(debug_assertions, track_caller)]
    pub(crate) fn lock_nested(&self, index: usize) -> MutexGuard<'_, T> {
        let held = self.label.taking(self, Some(index));
        MutexGuard {
            inner: self.inner.lock(),
            _held: held,
        }
    }

    /// Borrows the data without locking, which `&mut self` makes unnecessary.
    pub(crate) fn get_mut(&mut self) -> &mut T {
        self.inner.get_mut()
    }
}

/// The right to use what a [`Mutex`] guards.
#[derive(Debug)]
pub(crate) struct MutexGuard<'a, T> {
    // Unlocked first, then forgotten.
    inner: backend::MutexGuard<'a, T>,
    _held: Held,
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

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::sync::lockdep::IS_CHECKED;
    use crate::sync::{TABLE_POOL, backend};

    #[test]
    fn checks_have_no_size_where_nothing_is_checked() {
        let checked = if IS_CHECKED { size_of::<&Class>() } else { 0 };
        assert_eq!(size_of::<Label>(), checked);
        assert_eq!(
            size_of::<Mutex<u64>>(),
            size_of::<backend::Mutex<u64>>() + checked
        );
        let held = if IS_CHECKED { 16 } else { 0 };
        assert_eq!(size_of::<Held>(), held);
        assert_eq!(
            size_of::<MutexGuard<'_, u64>>(),
            size_of::<backend::MutexGuard<'_, u64>>() + held
        );
        assert_eq!(core::mem::needs_drop::<Held>(), IS_CHECKED);
    }

    #[test]
    fn a_lock_gives_its_value_to_one_after_the_other() {
        let mut lock = Mutex::new(&TABLE_POOL, 1);
        *lock.lock() += 1;
        *lock.lock_nested(3) += 1;
        assert_eq!(*lock.get_mut(), 3);
    }
}
