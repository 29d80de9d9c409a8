//! Grace periods: when has every reader left that may have seen something?
//!
//! A reader holds a [`Pin`] while it follows pointers. Who unlinks something starts a [`Grace`]
//! afterwards; once that is over, no pin is left that existed at its start. Readers never wait, and
//! nobody waits for them: a grace period that does not end keeps memory, nothing else.

pub(crate) use self::imp::{Grace, Pin, pin};

#[cfg(all(feature = "std", not(loom)))]
mod imp {
    use core::sync::atomic::{AtomicBool, Ordering};
    use std::sync::{Arc, OnceLock};

    use crossbeam_epoch::{Collector, Guard, LocalHandle};

    /// Apart from the collector that all of a program shares: pins of others delay nothing here.
    fn collector() -> &'static Collector {
        static COLLECTOR: OnceLock<Collector> = OnceLock::new();
        COLLECTOR.get_or_init(Collector::new)
    }

    thread_local! {
        static HANDLE: LocalHandle = collector().register();
    }

    /// Keeps what a reader may see from being freed.
    #[derive(Debug)]
    pub(crate) struct Pin(Guard);

    impl Pin {
        /// Leaves and enters again: what was seen before may be freed.
        pub(crate) fn renew(&mut self) {
            self.0.repin();
        }
    }

    #[inline]
    pub(crate) fn pin() -> Pin {
        let guard = HANDLE.try_with(LocalHandle::pin);
        Pin(guard.unwrap_or_else(|_| collector().register().pin()))
    }

    /// The time until all pins of its start are gone.
    #[derive(Debug)]
    pub(crate) struct Grace(Arc<AtomicBool>);

    impl Grace {
        pub(crate) fn start() -> Self {
            let is_over = Arc::new(AtomicBool::new(false));
            let flag = Arc::clone(&is_over);
            let Pin(guard) = pin();
            guard.defer(move || flag.store(true, Ordering::Release));
            Self(is_over)
        }

        /// Returns whether it is known to be over.
        pub(crate) fn is_over(&self) -> bool {
            self.0.load(Ordering::Acquire)
        }

        /// Helps grace periods to end, as far as no reader stands in the way. Bounded.
        pub(crate) fn advance() {
            // The epoch moves on by one at a time, and a period is over after two.
            for _ in 0..3 {
                let Pin(guard) = pin();
                guard.flush();
            }
        }
    }
}

#[cfg(all(not(feature = "std"), not(loom)))]
mod imp {
    /// Without threads of its own the crate cannot tell when a reader has left: a reader borrows
    /// the table, and tables are freed under `&mut` only.
    #[derive(Debug)]
    pub(crate) struct Pin;

    impl Pin {
        #[expect(clippy::unused_self, reason = "the interface of the other kinds")]
        pub(crate) fn renew(&mut self) {}
    }

    #[inline]
    pub(crate) fn pin() -> Pin {
        Pin
    }

    /// A time that does not end.
    #[derive(Debug)]
    pub(crate) struct Grace;

    impl Grace {
        pub(crate) fn start() -> Self {
            Self
        }

        #[expect(clippy::unused_self, reason = "the interface of the other kinds")]
        pub(crate) fn is_over(&self) -> bool {
            false
        }

        pub(crate) fn advance() {}
    }
}

#[cfg(loom)]
mod imp {
    use alloc::collections::BTreeSet;

    use loom::sync::Mutex;

    /// The pins by the time of their start.
    #[derive(Debug, Default)]
    struct Clock {
        now: u64,
        pins: BTreeSet<u64>,
    }

    loom::lazy_static! {
        static ref CLOCK: Mutex<Clock> = Mutex::new(Clock::default());
    }

    fn with_clock<R>(act: impl FnOnce(&mut Clock) -> R) -> R {
        let mut clock = CLOCK.lock().expect("no model panics and goes on");
        clock.now += 1;
        act(&mut clock)
    }

    #[derive(Debug)]
    pub(crate) struct Pin(u64);

    impl Pin {
        pub(crate) fn renew(&mut self) {
            *self = pin();
        }
    }

    impl Drop for Pin {
        fn drop(&mut self) {
            with_clock(|clock| clock.pins.remove(&self.0));
        }
    }

    pub(crate) fn pin() -> Pin {
        with_clock(|clock| {
            clock.pins.insert(clock.now);
            Pin(clock.now)
        })
    }

    #[derive(Debug)]
    pub(crate) struct Grace(u64);

    impl Grace {
        pub(crate) fn start() -> Self {
            with_clock(|clock| Self(clock.now))
        }

        pub(crate) fn is_over(&self) -> bool {
            with_clock(|clock| clock.pins.first().is_none_or(|&first| first > self.0))
        }

        pub(crate) fn advance() {}
    }
}
