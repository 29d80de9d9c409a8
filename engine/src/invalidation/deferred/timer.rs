//! A thread that flushes what waited long enough.

use alloc::sync::Arc;
use core::fmt;
use core::time::Duration;
use std::io;
use std::thread::{self, JoinHandle};

use crate::invalidation::Invalidate;
use crate::invalidation::deferred::{Deferred, Release};
use crate::sync::unmodelled::{AtomicBool, Ordering};

/// Flushes what is due until it is dropped, so that no removal waits much longer than 1.5 times the age of the
/// window, or a millisecond longer than that if this is more, however idle its thread. What hardware fails to
/// flush is tried again as often.
///
/// Who has an event loop calls [`Deferred::flush_due`] there instead.
pub struct Timer {
    is_stopped: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Timer {
    /// Starts the thread.
    ///
    /// # Errors
    ///
    /// What the system says if it gives no thread.
    pub fn start<I, R>(deferred: Arc<Deferred<I, R>>) -> io::Result<Self>
    where
        I: Invalidate + Send + Sync + 'static,
        R: Release + Send + 'static,
    {
        let is_stopped = Arc::new(AtomicBool::new(false));
        let stop = Arc::clone(&is_stopped);
        let interval = interval(deferred.window.age);
        let thread = thread::Builder::new()
            .name("iopt-flush".into())
            .spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    thread::park_timeout(interval);
                    // What fails stays queued, and those who defer hear of it when there is no room.
                    let _ = deferred.flush_due();
                }
            })?;
        Ok(Self {
            is_stopped,
            thread: Some(thread),
        })
    }
}

/// Returns how often it looks for what is `age` old.
fn interval(age: Duration) -> Duration {
    // Without an age it would do nothing else.
    (age / 2).max(Duration::from_millis(1))
}

impl Drop for Timer {
    fn drop(&mut self) {
        self.is_stopped.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            // It has panicked only if a release did, which was reported there.
            let _ = thread.join();
        }
    }
}

impl fmt::Debug for Timer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Timer").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timer_rests_whatever_the_age_is() {
        let millisecond = Duration::from_millis(1);
        assert_eq!(interval(Duration::ZERO), millisecond);
        assert_eq!(interval(10 * millisecond), 5 * millisecond);
        assert_eq!(interval(Duration::MAX), Duration::MAX / 2);
    }
}
