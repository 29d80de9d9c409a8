//! Pages that devices ask for: from a record of hardware to the handler of a domain, and back.
//!
//! ```text
//! hardware's queue -> decoder -> DeviceFaults::report -> group complete -> FaultHandler::handle
//!                                      |  nobody to hand it to                   | now or later,
//!                                      v                                         v any thread
//!                       PageResponder::respond <------------------- FaultGroup::respond, or dropped
//!                                      ^
//!                                      `--- time over, or the domain leaves the place
//! ```
//!
//! A device that can ask for pages has one [`DeviceFaults`] for as long as it is probed. Which domain answers
//! for requests with a PASID, or for those without one, says what is attached there: a domain with a
//! [`FaultHandler`] is *fault-capable*. Requests of a group ([`Origin::Group`]) are kept until its last one
//! comes; a transaction that waits ([`Origin::Stall`]) is a group of its own.
//!
//! # Invariants
//!
//! - **F1** (counted): the queue of a device exists exactly while a fault-capable attachment of it, or the
//!   preparation of one, lives. The device may ask for pages exactly while such an attachment is committed.
//! - **F2** (answered once): each group whose last request was reported is answered exactly once: by who got
//!   it, when its time is over, when its domain leaves the place, or at once if nobody can be asked.
//! - **F3** (drained): when [`DeviceFaults::change`] returns, no group that came for the old domain at that
//!   place is open, and no answer to one is sent any more.
//! - **F4** (no lock around strangers): handlers are called with no lock held, and nobody waits for one.
//! - **F5** (no mistaken identity), in `rounds`: what an instance's queue held when a domain left a place is handed
//!   over to none that comes after.
//!
//! Answers are sent under the device's lock. That makes F2 and F3 hold between who answers, who detaches and
//! who lets time pass, and bounds each of them by the command queue's limit alone.

mod group;
mod listeners;
mod mailbox;
#[cfg(all(test, loom))]
mod models;
mod partial;
mod queue;
mod request;
mod rounds;
#[cfg(all(test, not(loom)))]
mod tests;

pub use crate::device::fault::group::{FaultGroup, FaultHandler, RespondError};
pub use crate::device::fault::listeners::{ListenError, Listeners, Round};
pub use crate::device::fault::mailbox::{Cookie, Delivery, Mailbox, MailboxError};
pub use crate::device::fault::queue::{CountError, Counted, DeviceFaults, FaultSettings};
pub use crate::device::fault::request::{
    Answer, Origin, PageRequest, PageResponder, Reported, Requester,
};
pub use crate::device::fault::rounds::{Kept, Rounds};
pub use iopt_formats::command::PageResponse;
