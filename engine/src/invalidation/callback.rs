//! Hardware that is a function of the user.

use core::fmt;

use crate::invalidation::{Changes, Invalidate, SyncError};

/// The wait of a [`Callback`] that is complete at once.
type AtOnce = fn(()) -> Result<(), SyncError>;

/// Calls functions of the user instead of hardware: for a VMM that keeps translations elsewhere, in the
/// cache of an emulated device or in a process of its own, and for tests.
///
/// The functions answer for what [`Invalidate`] asks: once the wait succeeds, nobody uses what went.
/// They are called under locks of an address space and must not call back into it. To name the type,
/// box them: `Callback<Box<dyn Fn(&Changes) -> Result<(), SyncError> + Send + Sync>>`.
///
/// ```
/// use std::sync::Mutex;
///
/// use iopt::invalidation::Callback;
/// use iopt::mem::Heap;
/// use iopt::radix::{Table, UnmapPolicy};
/// use iopt_formats::vtd::SecondStage;
/// use iopt_formats::{Iova, IovaRange, Oa, Prot};
///
/// let seen = Mutex::new(Vec::new());
/// let hardware = Callback::new(|changes| {
///     seen.lock().unwrap().extend(changes.range());
///     Ok(())
/// });
///
/// let table = Table::new(SecondStage::new(48)?, Heap)?;
/// let buffer = IovaRange::with_len(Iova::new(0x1000), 0x1000).unwrap();
/// let mut claim = table.claim(buffer)?;
/// let mut mapper = table.mapper(&mut claim)?;
/// mapper.map(buffer, Oa::new(0x8000), Prot::RW)?.sync(&hardware)?;
/// mapper.unmap(buffer, UnmapPolicy::Exact)?.gather.sync(&hardware)?;
/// assert_eq!(*seen.lock().unwrap(), [buffer]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy)]
pub struct Callback<S, W = AtOnce> {
    submit: S,
    wait: W,
}

impl<S> Callback<S>
where
    S: Fn(&Changes) -> Result<(), SyncError>,
{
    /// Creates one whose `submit` returns when all is done.
    pub const fn new(submit: S) -> Self {
        Self {
            submit,
            wait: |()| Ok(()),
        }
    }
}

impl<T, S, W> Callback<S, W>
where
    S: Fn(&Changes) -> Result<T, SyncError>,
    W: Fn(T) -> Result<(), SyncError>,
{
    /// Creates one whose `submit` begins, and whose `wait` ends, in bounded time, what the ticket names.
    pub const fn with_wait(submit: S, wait: W) -> Self {
        Self { submit, wait }
    }
}

impl<T, S, W> Invalidate for Callback<S, W>
where
    S: Fn(&Changes) -> Result<T, SyncError>,
    W: Fn(T) -> Result<(), SyncError>,
{
    type Ticket = T;

    fn submit(&self, changes: &Changes) -> Result<T, SyncError> {
        (self.submit)(changes)
    }

    fn wait(&self, ticket: T) -> Result<(), SyncError> {
        (self.wait)(ticket)
    }
}

impl<S, W> fmt::Debug for Callback<S, W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Callback").finish_non_exhaustive()
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use core::cell::{Cell, RefCell};

    use alloc::boxed::Box;
    use alloc::vec::Vec;

    use iopt_formats::riscv::Sv;
    use iopt_formats::{Iova, IovaRange, Oa, Prot};

    use super::*;
    use crate::invalidation::Flushed;
    use crate::mem::Heap;
    use crate::radix::{Table, UnmapPolicy};

    const BUFFER: IovaRange =
        IovaRange::with_len(Iova::new(0x1000), 0x1000).expect("it ends below the top");

    /// Unmaps a page and tells `hardware` of it.
    fn unmap(hardware: &impl Invalidate) -> Result<Flushed, SyncError> {
        let table = Table::new(Sv::sv48(), Heap).expect("there is memory");
        let mut claim = table.claim(BUFFER).expect("nobody has it");
        let mut mapper = table.mapper(&mut claim).expect("it is claimed");
        let mapped = mapper.map(BUFFER, Oa::new(0x8000), Prot::RW);
        assert!(mapped.expect("it is free").is_empty());
        let unmapped = mapper
            .unmap(BUFFER, UnmapPolicy::Exact)
            .expect("it is mapped");
        let synced = unmapped.gather.sync(hardware);
        synced.map_err(|quarantined| quarantined.error())
    }

    #[test]
    fn the_wait_gets_what_the_submission_named() {
        let told = RefCell::new(Vec::new());
        let awaited = RefCell::new(Vec::new());
        let hardware = Callback::with_wait(
            |changes: &Changes| {
                told.borrow_mut().extend(changes.range());
                Ok(told.borrow().len())
            },
            |ticket| {
                awaited.borrow_mut().push(ticket);
                Ok(())
            },
        );
        for _ in 0..2 {
            assert!(unmap(&hardware).is_ok_and(|flushed| flushed.covers(BUFFER)));
        }
        assert_eq!(*told.borrow(), [BUFFER; 2]);
        assert_eq!(*awaited.borrow(), [1, 2]);
    }

    #[test]
    fn either_function_may_fail_and_a_refused_submission_is_not_waited_for() {
        let wait_count = Cell::new(0);
        let wait = |()| {
            wait_count.set(wait_count.get() + 1);
            Err(SyncError::TimedOut)
        };
        let refused = Callback::with_wait(|_: &Changes| Err(SyncError::Refused), wait);
        assert_eq!(unmap(&refused).err(), Some(SyncError::Refused));
        assert_eq!(wait_count.get(), 0);
        let late = Callback::with_wait(|_: &Changes| Ok(()), wait);
        assert_eq!(unmap(&late).err(), Some(SyncError::TimedOut));
        assert_eq!(wait_count.get(), 1);
    }

    #[test]
    fn a_boxed_function_gives_a_type_with_a_name() {
        type Submit = Box<dyn Fn(&Changes) -> Result<(), SyncError> + Send + Sync>;
        let hardware: Callback<Submit> = Callback::new(Box::new(|_| Err(SyncError::Refused)));
        assert_eq!(unmap(&hardware).err(), Some(SyncError::Refused));
    }
}
