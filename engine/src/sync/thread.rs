//! Small numbers for threads.

/// Threads that have a number of their own at one time.
pub(crate) const MAX_THREADS: usize = if cfg!(loom) { 4 } else { 256 };

#[cfg(all(feature = "std", not(loom)))]
mod imp {
    use core::cell::Cell;
    use core::sync::atomic::{AtomicU64, Ordering};

    use super::MAX_THREADS;

    /// The numbers in use.
    static USED: [AtomicU64; MAX_THREADS / 64] = [const { AtomicU64::new(0) }; MAX_THREADS / 64];

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
                    Ok(_) => return index * 64 + free as usize,
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
}

#[cfg(all(not(feature = "std"), not(loom)))]
mod imp {
    pub(crate) fn thread_index() -> usize {
        super::MAX_THREADS
    }
}

#[cfg(loom)]
mod imp {
    use core::sync::atomic::{AtomicUsize, Ordering};

    /// Not of the model: threads get their numbers in the order in which they first ask, which a
    /// model repeats.
    static NEXT: AtomicUsize = AtomicUsize::new(0);

    loom::thread_local! {
        static INDEX: usize = NEXT.fetch_add(1, Ordering::Relaxed).min(super::MAX_THREADS);
    }

    #[cfg(test)]
    pub(crate) fn start_model() {
        NEXT.store(0, Ordering::Relaxed);
    }

    pub(crate) fn thread_index() -> usize {
        INDEX.with(|index| *index)
    }
}

/// Returns a number that no other living thread has, or [`MAX_THREADS`] if there are none left.
/// Programs without the standard library get that always.
pub(crate) use self::imp::thread_index;

#[cfg(all(test, loom))]
pub(super) use self::imp::start_model;
