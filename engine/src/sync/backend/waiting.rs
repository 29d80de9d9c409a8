//! Time, and waiting for something that nobody announces.

use core::time::Duration;

pub(crate) use self::imp::{now_ns, pause};

/// How much longer to wait.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Left {
    /// As long as it takes.
    Forever,
    /// That long.
    For(Duration),
    /// No longer.
    Nothing,
}

/// When to give up.
#[derive(Debug)]
pub(crate) enum Deadline {
    Never,
    Now,
    #[cfg_attr(
        not(feature = "std"),
        expect(dead_code, reason = "only a clock gives one")
    )]
    At(imp::End),
}

impl Deadline {
    /// Ends in `limit`, or never if the clock does not reach that far.
    #[cfg(feature = "std")]
    pub(crate) fn after(limit: Duration) -> Self {
        imp::End::after(limit).map_or(Self::Never, Self::At)
    }

    pub(crate) fn left(&mut self) -> Left {
        match self {
            Self::Never => Left::Forever,
            Self::Now => Left::Nothing,
            Self::At(end) => end.left().map_or(Left::Nothing, Left::For),
        }
    }
}

#[cfg(all(feature = "std", not(loom)))]
mod imp {
    use core::time::Duration;
    use std::sync::OnceLock;
    use std::thread;
    use std::time::Instant;

    #[derive(Debug)]
    pub(crate) struct End(Instant);

    impl End {
        pub(super) fn after(limit: Duration) -> Option<Self> {
            Instant::now().checked_add(limit).map(Self)
        }

        pub(super) fn left(&mut self) -> Option<Duration> {
            let left = self.0.saturating_duration_since(Instant::now());
            (!left.is_zero()).then_some(left)
        }
    }

    /// Returns the time since some moment of this program, in ns.
    pub(crate) fn now_ns() -> u64 {
        static START: OnceLock<Instant> = OnceLock::new();
        let since = START.get_or_init(Instant::now).elapsed();
        u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
    }

    /// Lets time pass before one looks for the `turn`th time: first the processor rests, then
    /// other threads run, then this one sleeps.
    pub(crate) fn pause(turn: u32) {
        match turn {
            0..64 => core::hint::spin_loop(),
            64..96 => thread::yield_now(),
            _ => thread::sleep(Duration::from_micros(20)),
        }
    }
}

#[cfg(all(not(feature = "std"), not(loom)))]
mod imp {
    use core::time::Duration;

    /// There is no clock.
    #[derive(Debug)]
    pub(crate) enum End {}

    impl End {
        pub(super) fn left(&mut self) -> Option<Duration> {
            match *self {}
        }
    }

    pub(crate) fn now_ns() -> u64 {
        0
    }

    pub(crate) fn pause(_turn: u32) {
        core::hint::spin_loop();
    }
}

#[cfg(loom)]
mod imp {
    use core::time::Duration;

    /// The number of looks that are left. A model has no clock, and one that yields runs again only
    /// when the others have ended or wait: so no time is over at once, and any other when nothing
    /// else goes on.
    #[derive(Debug)]
    pub(crate) struct End(u32);

    impl End {
        #[cfg(feature = "std")]
        pub(super) fn after(limit: Duration) -> Option<Self> {
            let looks = if limit.is_zero() { 0 } else { 2 };
            (limit != Duration::MAX).then_some(Self(looks))
        }

        pub(super) fn left(&mut self) -> Option<Duration> {
            self.0 = self.0.checked_sub(1)?;
            Some(Duration::from_nanos(1))
        }
    }

    pub(crate) fn now_ns() -> u64 {
        0
    }

    pub(crate) fn pause(_turn: u32) {
        loom::thread::yield_now();
    }
}
