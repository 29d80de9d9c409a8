//! What the drivers of all architectures need to lead devices to tables: entries that hardware reads while
//! they change, tables of them, and what it takes to be known as a domain's device.
//!
//! ```text
//! Directory ---> EntryTable ---> entries        in memory that hardware reads
//! Users     ---> Attachment                     places of a set, and the ID that a domain has at an instance
//! ```
//!
//! An attachment is made before the entry leads to the domain and [left](Attachment::leave) after it leads
//! elsewhere and hardware has forgotten the entry: in between every sync of the domain reaches the device.

mod directory;
mod live;
#[cfg(all(test, not(loom)))]
mod tests;
mod users;

pub use crate::device::context::directory::{Directory, LinkError};
pub use crate::device::context::live::{EntryTable, Unwritten};
pub use crate::device::context::users::{Attachment, JoinDomainError, Users};
