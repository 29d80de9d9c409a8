//! What a queue needs beside the registers of its hardware: memory and time.

use crate::sync::atomic::AtomicU64;

/// Memory and time of a queue, the same for all architectures.
pub trait Platform {
    /// Returns the memory that the queue's base register names: as many entries as the register says,
    /// a power of two. Always the same, for as long as the value lives.
    fn ring(&self) -> &[AtomicU64];

    /// Returns the time since any fixed moment, in ns. Never runs backwards on one thread, nor noticeably
    /// between two.
    ///
    /// The system's clock, unless implemented otherwise.
    #[cfg(feature = "std")]
    fn now_ns(&self) -> u64 {
        crate::sync::now_ns()
    }

    /// Returns the time since any fixed moment, in ns. Never runs backwards on one thread, nor noticeably
    /// between two.
    #[cfg(not(feature = "std"))]
    fn now_ns(&self) -> u64;

    /// Lets time pass before one looks at the hardware for the `turn`th time, counted from 0.
    ///
    /// Unless implemented otherwise, the processor rests, then other threads run, then this one sleeps;
    /// without `std` the processor rests.
    fn pause(&self, turn: u32) {
        #[cfg(feature = "std")]
        crate::sync::pause(turn);
        #[cfg(not(feature = "std"))]
        {
            let _ = turn;
            core::hint::spin_loop();
        }
    }
}

/// Returns the logarithm of the entries that `words` words of memory hold, `words_lg2` of them in one, at
/// most `most`.
pub(super) fn lg2_entries(words: usize, words_lg2: u32, most: u8) -> u8 {
    let lg2 = (words >> words_lg2).checked_ilog2().unwrap_or(0);
    u8::try_from(lg2).map_or(most, |lg2| lg2.min(most))
}
