//! Command queues: rings in memory with registers, one module an architecture.

use crate::behaviour::Architecture;
pub(crate) use crate::contexts::{bit, bits};

mod amd;
mod riscv;
mod smmuv3;
mod vtd;

/// Why a queue stops, or on AMD what its event log says.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Stop {
    /// The command at the head is illegal.
    Illegal,
    /// Reading the command at the head, or storing a completion, failed.
    Abort,
    /// A device did not answer an invalidation before the sync at the head. AMD's command buffer goes on.
    DeviceTimeout,
}

/// The registers of a queue, as raw words of the architecture.
pub(crate) trait Queue: Send {
    /// Writes the base register: the queue is empty and enabled.
    fn write_base(&mut self, word: u64);
    /// Writes the tail register.
    fn write_tail(&mut self, word: u64);
    /// Reads the head register.
    fn head(&self) -> u64;
    /// Reads the error register.
    fn errors(&self) -> u64;
    /// Writes what acknowledges errors and lets the queue go on.
    fn acknowledge(&mut self, word: u64);
    /// Returns the address of the command at the head, if the queue runs and has one.
    fn next(&self) -> Option<u64>;
    /// Passes the command at the head.
    fn consume(&mut self);
    /// Stops at the head, or where the architecture does not stop for it, logs it.
    fn stop(&mut self, reason: Stop);
    /// Returns the oldest event of the log, where the architecture has one.
    fn event(&self) -> Option<Stop> {
        None
    }
    /// Takes the oldest event out of the log.
    fn take_event(&mut self) -> Option<Stop> {
        None
    }
}

/// Returns the queue of an architecture.
pub(crate) fn of(architecture: &Architecture) -> Box<dyn Queue> {
    match architecture {
        Architecture::SmmuV3(_) => Box::<smmuv3::CommandQueue>::default(),
        Architecture::Vtd(_) => Box::new(vtd::InvalidationQueue::new(architecture.entry_len())),
        Architecture::Amd(_) => Box::<amd::CommandBuffer>::default(),
        Architecture::Riscv(_) => Box::<riscv::CommandQueue>::default(),
    }
}
