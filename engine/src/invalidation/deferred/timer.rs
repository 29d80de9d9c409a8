//! A thread that flushes what waited long enough.

use alloc::sync::Arc;
use core::fmt;
use std::io;
use std::thread::{self, JoinHandle};

use crate::invalidation::Invalidate;
use crate::invalidation::deferred::{Deferred, Release};
use crate::sync::unmodelled::{AtomicBool, Ordering};

/// Flushes what is due until it is dropped, so that no removal waits much longer than 1.5 times the age of the
/// window, however idle its thread.
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
        let interval = deferred.window.age / 2;
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
