//! Checks the order in which threads take locks, before a deadlock needs two of them.
//!
//! Every lock belongs to a [`Class`]. Debug builds of programs with the standard library check each
//! acquisition by what the thread holds already, and panic on
//!
//! - a lock that the thread holds (also shared, since a writer may stand between the two),
//! - a ranked lock under one of the same or a higher rank ([`CLASSES`](crate::sync::CLASSES)),
//! - a second lock of a class, unless both have an index and the index rises,
//! - an order of classes that, with the orders seen before in the whole program, makes a circle.
//!   One thread that takes A then B, and some day B then A, is enough; the report names where each
//!   step was taken.
//!
//! The panic comes before the lock is touched, and the thread holds what it held. A lock that is
//! only tried may stand anywhere, since nobody waits for it; but what is taken while it is held may
//! not. Release builds check nothing, and the marks that locks and guards carry for it have no
//! size.
//!
//! # Waits are locks too
//!
//! Something that is waited for gets a class as well, a *pseudo-lock*: what runs holds
//! [`Class::running`] meanwhile, and who waits for its end holds [`Class::waiting`]. To run in
//! something never blocks, so it gives no order by itself; the locks taken inside do, and so do the
//! locks held by who waits:
//!
//! ```
//! use iopt::sync::{ACCESS_UNMAP, Class};
//!
//! static DRIVER: Class = Class::unranked("driver lock"); // of a lock that the engine cannot see
//!
//! fn callback() {
//!     let _held = DRIVER.holding(); // and lock
//! }
//! {
//!     let _running = ACCESS_UNMAP.running(); // the engine, around the callback
//!     callback();
//! }
//! let close_under_the_lock = || {
//!     let _held = DRIVER.holding(); // and lock
//!     let _waiting = ACCESS_UNMAP.waiting(); // the engine, until no callback is left
//! };
//! let result = std::panic::catch_unwind(close_under_the_lock); // the first run
//! assert_eq!(result.is_err(), iopt::sync::lockdep::IS_CHECKED);
//! ```
//!
//! # Own code
//!
//! `tracing-mutex` 0.3 checks orders too, but an order there is one between two *instances*, of
//! which only the innermost held one counts. It has no classes (the second pair of a kind has to be
//! met on its own), no ranks, no nesting by index, no way to hold a thing without waiting for it
//! (what "runs inside" needs), its identities are private to its own locks, and every acquisition
//! locks one graph. None of that can be added from outside.

#[cfg(all(debug_assertions, feature = "std", not(loom)))]
mod checked;
#[cfg(all(debug_assertions, feature = "std", not(loom)))]
mod graph;
#[cfg(all(test, debug_assertions, feature = "std", not(loom)))]
mod tests;
#[cfg(not(all(debug_assertions, feature = "std", not(loom))))]
mod unchecked;

use core::fmt;

#[cfg(all(debug_assertions, feature = "std", not(loom)))]
use self::checked as imp;
#[cfg(not(all(debug_assertions, feature = "std", not(loom))))]
use self::unchecked as imp;
use crate::sync::thread::NotSend;

/// Whether this build checks orders.
pub const IS_CHECKED: bool = cfg!(all(debug_assertions, feature = "std", not(loom)));

/// What locks have in common that are taken for the same purpose: their place in the order.
///
/// A class is a `static`. The engine's classes have ranks, see [`CLASSES`](crate::sync::CLASSES);
/// those of its users have none and are checked by the orders that the program shows.
pub struct Class {
    name: &'static str,
    kind: Kind,
    rank: Option<u16>,
    #[cfg_attr(
        not(all(debug_assertions, feature = "std", not(loom))),
        expect(dead_code, reason = "only checks read it")
    )]
    number: imp::Number,
}

/// What a class stands for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Kind {
    /// A lock, of which a thread holds one at a time.
    Lock,
    /// Locks of which a thread may hold several, taken in rising order of an index.
    Indexed,
    /// A lock of the engine that its users take and hold around calls, of which a thread holds one at a
    /// time.
    Lent,
    /// Something that is waited for.
    Wait,
    /// A lock outside the engine.
    Foreign,
}

impl Class {
    /// Creates a class for locks outside the engine. Make it a `static`.
    ///
    /// `name` is what reports call it.
    pub const fn unranked(name: &'static str) -> Self {
        Self {
            name,
            kind: Kind::Foreign,
            rank: None,
            number: imp::Number::new(),
        }
    }

    pub(crate) const fn ranked(name: &'static str, kind: Kind, rank: u16) -> Self {
        Self {
            name,
            kind,
            rank: Some(rank),
            number: imp::Number::new(),
        }
    }

    /// Returns what reports call the class.
    pub const fn name(&self) -> &'static str {
        self.name
    }

    /// Returns the rank, by which the engine's locks are taken in rising order; `None` outside the
    /// engine.
    pub const fn rank(&self) -> Option<u16> {
        self.rank
    }

    /// Says that this thread is about to take a lock of this class and holds it until the result
    /// is dropped. For locks that this crate does not know; call it first, then lock.
    ///
    /// # Panics
    ///
    /// Panics if [`IS_CHECKED`] and the order is wrong.
    #[cfg_attr(debug_assertions, track_caller)]
    pub fn holding(&'static self) -> Held {
        imp::acquire(self, Request::waiting_for(0, None))
    }

    /// As [`holding`](Self::holding), for one of several locks of the class that this thread holds
    /// together, taken in rising order of `index`.
    ///
    /// # Panics
    ///
    /// Panics if [`IS_CHECKED`] and the order is wrong.
    #[cfg_attr(debug_assertions, track_caller)]
    pub fn holding_nested(&'static self, index: usize) -> Held {
        imp::acquire(self, Request::waiting_for(0, Some(index)))
    }

    /// Says that this thread runs, until the result is dropped, inside something that others wait
    /// for. Never a mistake by itself.
    #[cfg_attr(debug_assertions, track_caller)]
    pub fn running(&'static self) -> Held {
        imp::acquire(self, Request::without_waiting(0))
    }

    /// Says that this thread waits, until the result is dropped, for the end of everything that
    /// [runs](Self::running) in this class.
    ///
    /// # Panics
    ///
    /// Panics if [`IS_CHECKED`] and this thread runs in it itself, or holds a lock that may be
    /// taken there.
    #[cfg_attr(debug_assertions, track_caller)]
    pub fn waiting(&'static self) -> Held {
        imp::acquire(self, Request::waiting_for(0, None))
    }

    /// Checks that this thread holds a lock of this class, or runs in it.
    ///
    /// # Panics
    ///
    /// Panics if [`IS_CHECKED`] and it does not.
    #[cfg_attr(debug_assertions, track_caller)]
    pub fn assert_held(&'static self) {
        imp::assert_held(self);
    }
}

impl fmt::Debug for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Class")
            .field("name", &self.name)
            .field("kind", &self.kind)
            .field("rank", &self.rank)
            .finish_non_exhaustive()
    }
}

impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.rank {
            Some(rank) => write!(f, "\"{}\" (rank {rank})", self.name),
            None => write!(f, "\"{}\"", self.name),
        }
    }
}

/// Checks that this thread holds no lock of the engine, as before it calls a stranger.
///
/// Pseudo-locks and locks that the engine's users hold, their own or lent ones, may be held.
///
/// # Panics
///
/// Panics if [`IS_CHECKED`] and it holds one.
#[cfg_attr(debug_assertions, track_caller)]
pub fn assert_none_held() {
    imp::assert_none_held();
}

/// What a thread holds, runs in or waits for, until it is dropped on the same thread.
#[derive(Debug)]
#[must_use = "it ends as soon as it is dropped"]
pub struct Held {
    _mark: imp::Mark,
    _not_send: NotSend,
}

/// How something is acquired.
#[derive(Clone, Copy, Debug)]
#[cfg_attr(
    not(all(debug_assertions, feature = "std", not(loom))),
    expect(dead_code, reason = "only checks read it")
)]
struct Request {
    /// Which lock of the class; zero if that is not known.
    instance: usize,
    /// Its place among the locks of the class.
    index: Option<usize>,
    /// Whether the thread may have to wait for it.
    may_wait: bool,
}

impl Request {
    const fn waiting_for(instance: usize, index: Option<usize>) -> Self {
        Self {
            instance,
            index,
            may_wait: true,
        }
    }

    const fn without_waiting(instance: usize) -> Self {
        Self {
            instance,
            index: None,
            may_wait: false,
        }
    }
}

/// The class of one lock, as the lock keeps it; without a size where nothing is checked.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Label(imp::ClassRef);

impl Label {
    pub(crate) const fn new(class: &'static Class) -> Self {
        Self(imp::ClassRef::new(class))
    }

    /// Checks the order before a thread waits for `lock`, the `index`th of its class if it is one
    /// of several.
    #[inline]
    #[cfg_attr(debug_assertions, track_caller)]
    pub(crate) fn taking<L>(self, lock: &L, index: Option<usize>) -> Held {
        let instance = core::ptr::from_ref(lock).addr();
        self.0.acquire(Request::waiting_for(instance, index))
    }

    /// Notes that a thread got `lock` without waiting.
    #[inline]
    #[cfg_attr(debug_assertions, track_caller)]
    pub(crate) fn took<L>(self, lock: &L) -> Held {
        let instance = core::ptr::from_ref(lock).addr();
        self.0.acquire(Request::without_waiting(instance))
    }
}
