//! A table of any architecture.

use crate::{Fault, Item, Memory, Rigour, ScanError, Setup, Translation};
use crate::{amd, arm, riscv, vtd, x86};

/// A table of any architecture, with what is needed to walk it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Table {
    /// ARM long descriptors, Mali included.
    Arm(arm::Config),
    /// VT-d second stage.
    VtdSecond(vtd::Config),
    /// x86-64, VT-d first stage, AMD guest tables.
    LongMode(x86::Config),
    /// AMD host tables.
    AmdV1(amd::Config),
    /// RISC-V.
    Riscv(riscv::Config),
}

impl Table {
    /// Checks what can be checked without an address.
    ///
    /// # Errors
    ///
    /// Names the setting that is not legal.
    pub fn check(&self) -> Result<(), Setup> {
        match self {
            Self::Arm(config) => config.check(),
            Self::VtdSecond(config) => config.check(),
            Self::LongMode(config) => config.check(),
            Self::AmdV1(config) => config.check(),
            Self::Riscv(config) => config.check(),
        }
    }

    /// Translates `iova`.
    ///
    /// # Errors
    ///
    /// Returns the fault that hardware takes.
    pub fn walk<M: Memory + ?Sized>(&self, memory: &M, iova: u64) -> Result<Translation, Fault> {
        match self {
            Self::Arm(config) => arm::walk(config, memory, iova),
            Self::VtdSecond(config) => vtd::walk(config, memory, iova),
            Self::LongMode(config) => x86::walk(config, memory, iova),
            Self::AmdV1(config) => amd::walk(config, memory, iova),
            Self::Riscv(config) => riscv::walk(config, memory, iova),
        }
    }

    /// Calls `callback` for every leaf item, in the order of the tables. `limit` bounds the number
    /// of leaf items and, apart from it, the number of tables read.
    ///
    /// # Errors
    ///
    /// Stops at what [`ScanError`] names; the items until then were reported.
    pub fn enumerate<M: Memory + ?Sized>(
        &self,
        memory: &M,
        limit: u64,
        rigour: Rigour,
        callback: impl FnMut(Item),
    ) -> Result<(), ScanError> {
        match self {
            Self::Arm(config) => arm::enumerate(config, memory, limit, rigour, callback),
            Self::VtdSecond(config) => vtd::enumerate(config, memory, limit, rigour, callback),
            Self::LongMode(config) => x86::enumerate(config, memory, limit, rigour, callback),
            Self::AmdV1(config) => amd::enumerate(config, memory, limit, rigour, callback),
            Self::Riscv(config) => riscv::enumerate(config, memory, limit, rigour, callback),
        }
    }
}
