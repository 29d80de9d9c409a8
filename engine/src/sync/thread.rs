//! Small numbers for threads.

use core::marker::PhantomData;

/// Threads that have a number of their own at one time.
pub(crate) const MAX_THREADS: usize = if cfg!(loom) { 4 } else { 256 };

#[cfg(all(feature = "std", not(loom)))]
mod imp {
    use core::cell::Cell;
    use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

    use super::MAX_THREADS;

    /// The numbers in use.
    static USED: [AtomicU64; MAX_THREADS / 64] = [const { AtomicU64::new(0) }; MAX_THREADS / 64];

    /// All numbers that were ever given are below it.
    static LIMIT: AtomicUsize = AtomicUsize::new(0);

    const UNKNOWN: usize = usize::MAX;

    thread_local! {
        /// Without a destructor, so that reading it is one load.
        static INDEX: Cell<usize> = const { Cell::new(UNKNOWN) };
        static OWNER: Owner = Owner(take());
    }

    /// Gives the number back when the thread ends.
    struct Owner(usize);

    impl Drop for Owner {
        fn drop(&mut self) {
            INDEX.set(MAX_THREADS);
            if let Some(word) = USED.get(self.0 / 64) {
                word.fetch_and(!(1 << (self.0 % 64)), Ordering::Release);
            }
        }
    }

    /// Takes the lowest free number.
    fn take() -> usize {
        for (index, word) in USED.iter().enumerate() {
            let mut used = word.load(Ordering::Relaxed);
            while used != u64::MAX {
                let free = used.trailing_ones();
                match word.compare_exchange_weak(
                    used,
                    used | 1 << free,
                    Ordering::Acquire,
                    Ordering::Relaxed,
                ) {
                    Ok(_) => {
                        let index = index * 64 + free as usize;
                        LIMIT.fetch_max(index + 1, Ordering::Relaxed);
                        return index;
                    }
                    Err(now) => used = now,
                }
            }
        }
        MAX_THREADS
    }

    #[inline]
    pub(crate) fn thread_index() -> usize {
        match INDEX.get() {
            UNKNOWN => first_index(),
            index => index,
        }
    }

    #[cold]
    fn first_index() -> usize {
        // A thread that is about to end has none.
        let index = OWNER.try_with(|owner| owner.0).unwrap_or(MAX_THREADS);
        INDEX.set(index);
        index
    }

    pub(crate) fn thread_index_limit() -> usize {
        LIMIT.load(Ordering::Relaxed)
    }
}

#[cfg(all(not(feature = "std"), not(loom)))]
mod imp {
    pub(crate) fn thread_index() -> usize {
        super::MAX_THREADS
    }

    pub(crate) fn thread_index_limit() -> usize {
        0
    }
}

#[cfg(loom)]
mod imp {
    use core::sync::atomic::{AtomicUsize, Ordering};

    loom::lazy_static! {
        /// One of each execution. Threads get their numbers in the order in which they first ask,
        /// which a model repeats.
        static ref NEXT: AtomicUsize = AtomicUsize::new(0);
    }

    loom::thread_local! {
        static INDEX: usize = NEXT.fetch_add(1, Ordering::Relaxed).min(super::MAX_THREADS);
    }

    /// To be called before threads are: what is made on demand would give them an order.
    #[cfg(test)]
    pub(crate) fn start_model() {
        thread_index();
    }

    pub(crate) fn thread_index() -> usize {
        INDEX.with(|index| *index)
    }

    pub(crate) fn thread_index_limit() -> usize {
        super::MAX_THREADS
    }
}

/// Keeps what contains it on its thread.
#[derive(Clone, Copy, Debug)]
pub(crate) struct NotSend(PhantomData<*const ()>);

impl NotSend {
    pub(crate) const NEW: Self = Self(PhantomData);
}

/// Returns a number that no other living thread has, or [`MAX_THREADS`] if there are none left.
/// Programs without the standard library get that always.
pub(crate) use self::imp::thread_index;

/// Returns a number above all that threads got so far.
///
/// A thread that gets its number makes it visible by whatever makes visible what it does next.
pub(crate) use self::imp::thread_index_limit;

#[cfg(all(test, loom))]
pub(super) use self::imp::start_model;
