//! The memory of a process, as who knows processes shows it.

use alloc::sync::{Arc, Weak};
use core::fmt;

use iopt_formats::Oa;
use iopt_formats::armv8::Tcr;

use crate::device::fault::FaultHandler;
use crate::device::process::Process;

/// The memory of a process. Called with no lock of the engine held, if nothing else is said.
pub trait ProcessMemory: Send + Sync + fmt::Debug {
    /// Returns which process it is: two with equal identities are one. Always the same.
    fn identity(&self) -> u64;

    /// Returns where its tables are, and of which format. Always the same. They stay until the process has
    /// [exited](Process::exit), or `listener` is gone.
    fn tables(&self) -> ProcessTables;

    /// Begins to tell `listener` of changes of the tables and of the end of the process, also if it has come
    /// already. Called once for each listener.
    fn subscribe(&self, listener: Weak<Process>);

    /// Ends what [`subscribe`](Self::subscribe) began: `listener` is gone, or going. Unlike the others it may be called
    /// with locks of the engine held; it must call nothing of the engine.
    fn unsubscribe(&self, listener: &Weak<Process>) {
        let _ = listener;
    }

    /// Returns who makes pages be there that devices ask for. Always the same. `None`: all that devices use is
    /// there.
    fn fault_handler(&self) -> Option<Arc<dyn FaultHandler>> {
        None
    }
}

/// Tables that a CPU walks, too.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum ProcessTables {
    /// VMSAv8-64 stage 1.
    Armv8 {
        /// `TCR_EL1` and the half of it.
        tcr: Tcr,
        /// `MAIR_EL1`.
        mair: u64,
        /// `TTBR0_EL1` or `TTBR1_EL1`, without the ASID.
        root: Oa,
    },
    /// x86-64, with four or five levels.
    X86 {
        /// How many.
        levels: u8,
        /// `CR3`, without its flags.
        root: Oa,
    },
    /// Sv39, Sv48 or Sv57.
    Riscv {
        /// Three, four or five.
        levels: u8,
        /// What `satp` points to.
        root: Oa,
    },
}
