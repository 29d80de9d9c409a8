//! Devices that use the memory of processes, through the processes' own tables (SVA).
//!
//! ```text
//! ProcessMemory (a user's) --- changed, exit ---> Process: one PASID --- bind ---> Bond: one for each device
//!                                                    |                               |
//!                                                    v                               v
//!                                     ProcessDomain: a Hwpt of kind Process   attached at the PASID
//! ```
//!
//! # Invariants
//!
//! - **S1** (one PASID): a process has one PASID, at all devices, from the making of its [`Process`] until that
//!   is gone, which is after all that may lead to its tables. Nobody else has it before all is read that devices
//!   asked for with it.
//! - **S2** (one handle): while a [`Bond`] of a device and a process lives, who binds them again gets that one. What
//!   is attached for them is detached once, when the last bond in the device's group is gone.
//! - **S3** (no walk): when [`Process::exit`] returns `Ok`, no device walks the process's tables any more, nor uses
//!   what it cached of them. The PASIDs stay attached until their bonds are gone.

mod asids;
mod bond;
mod domain;
mod memory;
#[cfg(all(test, loom))]
mod models;
mod processes;
#[cfg(all(test, not(loom)))]
mod tests;

pub use crate::device::process::asids::{
    AsidHolder, PinError, RenumberError, SharedAsid, SharedAsids,
};
pub use crate::device::process::bond::{BindProcessError, Bond, Right};
pub use crate::device::process::domain::{ExitError, ProcessDomain};
pub use crate::device::process::memory::{ProcessMemory, ProcessTables};
pub use crate::device::process::processes::{Process, ProcessError, Processes};
