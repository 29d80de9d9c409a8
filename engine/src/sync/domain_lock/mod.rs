//! The lock of a set of domains: many readers on many cores, now and then a writer.
//!
//! # State
//!
//! ```text
//!   DomainLock                         table of slots, one for the whole process
//!   +---------------------+            row = a thread's, 128 bytes
//!   | bias: on            |  read      +----+----+----+----+ ... +
//!   | number: 7           | ---------> |    |  7 |    |    |     |   thread 0 reads lock 7
//!   | queue: a semaphore  |            +----+----+----+----+ ... +
//!   | value               |            |    |    | 12 |    |     |   thread 1 reads lock 12
//!   +---------------------+            +----+----+----+----+ ... +
//! ```
//!
//! While the bias is on, a reader enters by a store to a slot of its own and loads of the lock, so
//! readers on different threads write no common cache line. A writer takes the queue, turns the
//! bias off, and waits until the lock's number has gone from all slots. Readers that find the bias
//! off, no free slot, or no row (more than 256 threads live) go through the queue, a semaphore that
//! lets writers in first; a writer that waits there turns the bias off at once. A reader that came
//! through the queue turns it on again, but not before nine times as long has passed as the last
//! writer needed to empty the slots: so that costs at most a tenth of the time.
//!
//! The idea is that of BRAVO (D. Dice, A. Kogan, USENIX ATC 2019), with rows that belong to threads
//! instead of a hash over all readers, hence a store where that needs an exchange; and with numbers
//! instead of the locks' addresses, which a guard that was forgotten would leave to the next lock
//! there.
//!
//! # Invariants
//!
//! - **D1** (exclusion): while a writer is inside, it holds the queue exclusively, the bias is off,
//!   and no slot holds the lock's number for a reader that goes on to read.
//! - **D2** (readers): a reader inside has its slot, entered while the bias was on, or shares the
//!   queue.
//! - **D3** (bias): it is turned on under the queue's mutex, by a reader that shares the queue,
//!   while no writer waits; and off by a writer that waits there, or is inside. So nobody enters by
//!   a slot once a writer waits, and it waits for each reader once.
//! - **D4** (slots): `may_have_slots` is set before the bias is turned on, and cleared by a writer
//!   that holds the queue and has seen all slots empty, with the bias off. A writer that finds it
//!   clear need not look.
//! - **D5** (downgrade): a writer that becomes a reader shares the queue from the moment on at
//!   which it no longer owns it.
//!
//! The queue's are Q1 to Q4 (`rwsem`), those of the slots S1 to S3 (`slots`).
//!
//! # Memory orderings
//!
//! - slot store, then bias load, against bias store, then slot load: a full barrier on each side
//!   (`barrier`). One of the two sees the other: a reader that finds the bias still on is seen and
//!   waited for; D1 follows.
//! - What readers did happens before the writer: they release their slot, which the writer acquires
//!   (S3), or unlock the queue.
//! - What a writer did happens before the readers: those of the queue lock it after; who turns the
//!   bias on does so under the queue and releases, and readers acquire by the load that lets them
//!   in.
//!
//! # What users owe
//!
//! Read sections are short: a writer waits for each that is under way, once. Who has much to do
//! under the lock does it in parts and looks, after each, whether the set is still the same. A
//! thread that reads does not read the same lock again (a writer may stand between the two; debug
//! builds report it), nor writes it.

#![expect(
    unsafe_code,
    reason = "guards turn the protocol's exclusion into references"
)]

mod barrier;
#[cfg(all(test, loom))]
mod models;
mod rwsem;
mod slots;
#[cfg(all(test, feature = "std", not(loom)))]
mod tests;

use core::cell::UnsafeCell;
use core::fmt;
use core::mem;
use core::ops::{Deref, DerefMut};
#[cfg(feature = "std")]
use core::time::Duration;

use crate::sync::atomic::{AtomicBool, Ordering};
use crate::sync::backend::{Deadline, now_ns};
use crate::sync::domain_lock::barrier::Barrier;
use crate::sync::domain_lock::rwsem::Rwsem;
use crate::sync::domain_lock::slots::Slot;
use crate::sync::lockdep::{Class, Held, Label};
use crate::sync::{DOMAIN, unmodelled};

#[cfg(all(test, loom))]
pub(super) use self::slots::start_model;

/// Revocations take at most one part in this many plus one of the time.
const REVOCATION_COST: u64 = 9;

/// A read-write lock whose readers scale with the cores.
///
/// Readers share: those that map, unmap or pin. A writer is alone: who attaches or detaches a
/// domain. A writer comes in before readers that ask later; it waits for each reader inside, so
/// read sections have to be short. Readers that wait come in after one writer at the latest.
///
/// A panic while the lock is held does not poison it.
///
/// # Examples
///
/// ```
/// use iopt::sync::DomainLock;
///
/// let domains = DomainLock::new(vec!["first"]);
/// assert_eq!(domains.read().len(), 1); // map, unmap, pin
///
/// let mut all = domains.write(); // attach, detach
/// all.push("second");
/// let all = all.downgrade();
/// assert_eq!(all.len(), 2);
/// assert!(domains.try_write().is_none());
/// ```
pub struct DomainLock<T> {
    /// Whether readers may enter by a slot (D3).
    bias: AtomicBool,
    /// Whether readers may stand in slots (D4). Ordered by the queue.
    may_have_slots: AtomicBool,
    barrier: Barrier,
    /// What stands in slots.
    number: usize,
    label: Label,
    /// The time from which on the bias pays again, in ns.
    bias_from: unmodelled::AtomicU64,
    queue: Rwsem,
    value: UnsafeCell<T>,
}

// SAFETY: by D1 and D2 a thread gets `&mut T` only while no other has any reference to the value,
// and several get `&T` at once; the former needs `T: Send`, the latter `T: Sync`.
unsafe impl<T: Send + Sync> Sync for DomainLock<T> {}

impl<T> DomainLock<T> {
    /// Creates an unlocked lock of the class [`DOMAIN`].
    pub fn new(value: T) -> Self {
        Self::with_class(&DOMAIN, value)
    }

    /// Creates an unlocked lock of a class of the caller's.
    pub fn with_class(class: &'static Class, value: T) -> Self {
        Self::with_barrier(class, Barrier::best(), value)
    }

    fn with_barrier(class: &'static Class, barrier: Barrier, value: T) -> Self {
        // Zero is a free slot. 64 bits do not wrap.
        static NEXT: unmodelled::AtomicUsize = unmodelled::AtomicUsize::new(1);
        Self {
            bias: AtomicBool::new(true),
            may_have_slots: AtomicBool::new(true),
            barrier,
            number: NEXT.fetch_add(1, Ordering::Relaxed),
            label: Label::new(class),
            bias_from: unmodelled::AtomicU64::new(0),
            queue: Rwsem::new(),
            value: UnsafeCell::new(value),
        }
    }

    /// Waits until no writer holds or waits for the lock, or one has left, and reads.
    ///
    /// # Panics
    ///
    /// In debug builds, if the order of locks forbids it (see [`lockdep`](crate::sync::lockdep)),
    /// as when the thread holds this lock.
    #[inline]
    #[cfg_attr(debug_assertions, track_caller)]
    pub fn read(&self) -> ReadGuard<'_, T> {
        let held = self.label.taking(self, None);
        let slot = self.enter();
        if slot.is_none() {
            self.queue_up(&mut Deadline::Never);
        }
        ReadGuard {
            shared: Shared { lock: self, slot },
            _held: held,
        }
    }

    /// Waits until nobody else holds the lock, and writes.
    ///
    /// # Panics
    ///
    /// In debug builds, if the order of locks forbids it (see [`lockdep`](crate::sync::lockdep)),
    /// as when the thread holds this lock.
    #[cfg_attr(debug_assertions, track_caller)]
    pub fn write(&self) -> WriteGuard<'_, T> {
        let held = self.label.taking(self, None);
        self.own(held, &mut Deadline::Never)
            .expect("a wait without a limit ends with the lock")
    }

    /// Reads if that needs no wait.
    #[inline]
    #[cfg_attr(debug_assertions, track_caller)]
    pub fn try_read(&self) -> Option<ReadGuard<'_, T>> {
        let slot = self.enter();
        if slot.is_none() && !self.queue.try_read() {
            return None;
        }
        Some(ReadGuard {
            shared: Shared { lock: self, slot },
            _held: self.label.took(self),
        })
    }

    /// Writes if nobody holds the lock.
    #[cfg_attr(debug_assertions, track_caller)]
    pub fn try_write(&self) -> Option<WriteGuard<'_, T>> {
        if !self.queue.try_write() {
            return None;
        }
        let exclusive = Exclusive { lock: self };
        if !self.expel(&mut Deadline::Now) {
            return None;
        }
        Some(WriteGuard {
            exclusive,
            held: self.label.took(self),
        })
    }

    /// As [`read`](Self::read), but gives up after `limit`.
    ///
    /// # Panics
    ///
    /// As [`read`](Self::read).
    #[cfg(feature = "std")]
    #[cfg_attr(debug_assertions, track_caller)]
    pub fn try_read_for(&self, limit: Duration) -> Option<ReadGuard<'_, T>> {
        let held = self.label.taking(self, None);
        let slot = self.enter();
        if slot.is_none() && !self.queue_up(&mut Deadline::after(limit)) {
            return None;
        }
        Some(ReadGuard {
            shared: Shared { lock: self, slot },
            _held: held,
        })
    }

    /// As [`write`](Self::write), but gives up after `limit`. Readers that waited for the writer
    /// meanwhile go on then.
    ///
    /// # Panics
    ///
    /// As [`write`](Self::write).
    #[cfg(feature = "std")]
    #[cfg_attr(debug_assertions, track_caller)]
    pub fn try_write_for(&self, limit: Duration) -> Option<WriteGuard<'_, T>> {
        let held = self.label.taking(self, None);
        self.own(held, &mut Deadline::after(limit))
    }

    /// Borrows the value without locking, which `&mut self` makes unnecessary.
    pub fn get_mut(&mut self) -> &mut T {
        self.value.get_mut()
    }

    /// Returns the value.
    pub fn into_inner(self) -> T {
        self.value.into_inner()
    }

    /// Enters by a slot.
    #[inline]
    fn enter(&self) -> Option<Slot> {
        if !self.bias.load(Ordering::Relaxed) {
            return None;
        }
        Slot::enter(self.number, &self.bias, self.barrier)
    }

    /// Enters through the queue. Returns whether that came before `deadline`.
    #[cold]
    fn queue_up(&self, deadline: &mut Deadline) -> bool {
        if !self.queue.read(deadline) {
            return false;
        }
        if !self.bias.load(Ordering::Relaxed) && now_ns() >= self.bias_from.load(Ordering::Relaxed)
        {
            self.queue.unless_writer(|| {
                self.may_have_slots.store(true, Ordering::Relaxed);
                self.bias.store(true, Ordering::Release);
            });
        }
        true
    }

    /// Waits until nobody else holds the lock.
    fn own(&self, held: Held, deadline: &mut Deadline) -> Option<WriteGuard<'_, T>> {
        let before_wait = || self.bias.store(false, Ordering::Relaxed);
        if !self.queue.write(deadline, before_wait) {
            return None;
        }
        let exclusive = Exclusive { lock: self };
        self.expel(deadline)
            .then_some(WriteGuard { exclusive, held })
    }

    /// Turns the bias off and waits for the readers in slots; the queue is held exclusively.
    /// Returns whether they left before `deadline`; if not, the next reader turns the bias on.
    fn expel(&self, deadline: &mut Deadline) -> bool {
        if !self.may_have_slots.load(Ordering::Relaxed) {
            return true;
        }
        let start = now_ns();
        self.bias.store(false, Ordering::Relaxed);
        self.barrier.between_store_and_loads();
        if !slots::wait_until_left(self.number, deadline) {
            return false;
        }
        self.may_have_slots.store(false, Ordering::Relaxed);
        let end = now_ns();
        let pause = end.saturating_sub(start).saturating_mul(REVOCATION_COST);
        self.bias_from
            .store(end.saturating_add(pause), Ordering::Relaxed);
        true
    }
}

impl<T> fmt::Debug for DomainLock<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DomainLock").finish_non_exhaustive()
    }
}

/// A reader's place: a slot, or a share of the queue (D2).
struct Shared<'a, T> {
    lock: &'a DomainLock<T>,
    slot: Option<Slot>,
}

impl<T> Drop for Shared<'_, T> {
    #[inline]
    fn drop(&mut self) {
        if self.slot.is_none() {
            self.lock.queue.unlock_read();
        }
    }
}

/// A writer's place: the queue.
struct Exclusive<'a, T> {
    lock: &'a DomainLock<T>,
}

impl<'a, T> Exclusive<'a, T> {
    fn downgrade(self) -> Shared<'a, T> {
        let lock = self.lock;
        // What is forgotten is a reference; the queue's share takes its place.
        mem::forget(self);
        lock.queue.downgrade();
        Shared { lock, slot: None }
    }
}

impl<T> Drop for Exclusive<'_, T> {
    fn drop(&mut self) {
        self.lock.queue.unlock_write();
    }
}

/// The right to read what a [`DomainLock`] guards, until dropped on the same thread.
#[must_use = "the lock is released as soon as the guard is dropped"]
pub struct ReadGuard<'a, T> {
    // Unlocked first, then forgotten.
    shared: Shared<'a, T>,
    _held: Held,
}

impl<T> Deref for ReadGuard<'_, T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        // SAFETY: the guard's place (D2) keeps writers out (D1), so nobody has `&mut` to the value.
        unsafe { &*self.shared.lock.value.get() }
    }
}

impl<T: fmt::Debug> fmt::Debug for ReadGuard<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}

/// The right to change what a [`DomainLock`] guards, until dropped on the same thread.
#[must_use = "the lock is released as soon as the guard is dropped"]
pub struct WriteGuard<'a, T> {
    // Unlocked first, then forgotten.
    exclusive: Exclusive<'a, T>,
    held: Held,
}

impl<'a, T> WriteGuard<'a, T> {
    /// Goes on as a reader. No writer comes in between.
    pub fn downgrade(self) -> ReadGuard<'a, T> {
        let Self { exclusive, held } = self;
        ReadGuard {
            shared: exclusive.downgrade(),
            _held: held,
        }
    }
}

impl<T> Deref for WriteGuard<'_, T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        // SAFETY: nobody else is inside (D1), and `&self` keeps this guard from giving out `&mut`.
        unsafe { &*self.exclusive.lock.value.get() }
    }
}

impl<T> DerefMut for WriteGuard<'_, T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: nobody else is inside (D1), and `&mut self` makes this the guard's only
        // reference.
        unsafe { &mut *self.exclusive.lock.value.get() }
    }
}

impl<T: fmt::Debug> fmt::Debug for WriteGuard<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}
