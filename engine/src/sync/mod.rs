//! Locks and atomics: the only module that names `std::sync` or `spin`.
//!
//! With the feature `std` a [`Mutex`] blocks in the operating system; without it, it spins. Both
//! guard short critical sections that run no foreign code.

pub(crate) use core::sync::atomic;

#[cfg(feature = "std")]
mod imp {
    use std::sync::{MutexGuard, PoisonError};

    /// A mutual-exclusion lock without poisoning: every critical section of the engine leaves its
    /// data valid at each step, so a panic inside one hides nothing.
    #[derive(Debug, Default)]
    pub(crate) struct Mutex<T>(std::sync::Mutex<T>);

    impl<T> Mutex<T> {
        pub(crate) const fn new(value: T) -> Self {
            Self(std::sync::Mutex::new(value))
        }

        /// Waits for the lock and takes it.
        pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
            self.0.lock().unwrap_or_else(PoisonError::into_inner)
        }

        /// Borrows the data without locking, which `&mut self` makes unnecessary.
        pub(crate) fn get_mut(&mut self) -> &mut T {
            self.0.get_mut().unwrap_or_else(PoisonError::into_inner)
        }
    }
}

#[cfg(not(feature = "std"))]
mod imp {
    use spin::MutexGuard;

    /// A spinning mutual-exclusion lock.
    #[derive(Debug, Default)]
    pub(crate) struct Mutex<T>(spin::Mutex<T>);

    impl<T> Mutex<T> {
        pub(crate) const fn new(value: T) -> Self {
            Self(spin::Mutex::new(value))
        }

        /// Waits for the lock and takes it.
        pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
            self.0.lock()
        }

        /// Borrows the data without locking, which `&mut self` makes unnecessary.
        pub(crate) fn get_mut(&mut self) -> &mut T {
            self.0.get_mut()
        }
    }
}

pub(crate) use imp::Mutex;
