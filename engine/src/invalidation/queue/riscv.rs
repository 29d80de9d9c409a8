//! The command queue of a RISC-V IOMMU.
//!
//! Source: *RISC-V IOMMU Architecture Specification*, version 1.0.1, sections "Command-Queue (CQ)" and
//! "Memory-mapped register interface" (`cqb`, `cqh`, `cqt`, `cqcsr`). Commands are little-endian: `fctl.BE`
//! is clear.

use core::fmt;

use iopt_formats::Oa;
use iopt_formats::command::riscv::Command;

use crate::invalidation::Encode;
use crate::invalidation::queue::platform::{Platform, lg2_entries};
use crate::invalidation::queue::{Completion, Device, Fault, Head, Shape};
use crate::sync::atomic::AtomicU64;

impl Encode<[u64; 2]> for Command {
    fn entry(&self) -> [u64; 2] {
        self.encode()
    }
}

/// The registers of the command queue. Stores reach the device before later ones, loads are not made up.
pub trait Registers: Platform {
    /// Writes `cqt`.
    fn set_cqt(&self, value: u32);

    /// Reads `cqh`.
    fn cqh(&self) -> u32;

    /// Reads `cqcsr`.
    fn cqcsr(&self) -> u32;

    /// Clears bits of `cqcsr` that a one clears; the others keep what they say.
    fn clear_cqcsr(&self, bits: u32);
}

/// Of `cqcsr`: an access to the queue, or the store of an `IOFENCE.C`, faulted.
const CQMF: u32 = 1 << 8;
/// A device did not answer, and the `IOFENCE.C` at the head gave up.
const CMD_TO: u32 = 1 << 9;
/// The command at the head is illegal.
const CMD_ILL: u32 = 1 << 10;
/// What a queue of ours can count; `LOG2SZ-1` of `cqb` could say 32.
const MOST_LG2: u8 = 24;

/// A command queue that hardware reads, with completion shown by its head.
pub struct CommandQueue<R> {
    registers: R,
}

impl<R: Registers> CommandQueue<R> {
    /// Creates the queue that `registers` belong to, which is on and empty.
    pub const fn new(registers: R) -> Self {
        Self { registers }
    }

    /// Returns the registers.
    pub const fn registers(&self) -> &R {
        &self.registers
    }

    fn lg2_entries(&self) -> u8 {
        lg2_entries(self.registers.ring().len(), 1, MOST_LG2)
    }

    /// Returns what `cqb` must hold for a ring at `address`, which is aligned to its size and to 4 KiB. Bits
    /// below 12 and above 55 are dropped.
    pub fn base(&self, address: Oa) -> u64 {
        let page = address.get() >> 12 & 0x0fff_ffff_ffff;
        page << 10 | u64::from(self.lg2_entries().saturating_sub(1))
    }
}

impl<R: Registers> Device for CommandQueue<R> {
    type Entry = [u64; 2];

    fn shape(&self) -> Shape {
        Shape {
            lg2_entries: self.lg2_entries(),
            least_lg2_entries: 1,
            has_wrap_bit: false,
            completion: Completion::Head,
        }
    }

    fn ring(&self) -> &[AtomicU64] {
        self.registers.ring()
    }

    fn write_tail(&self, index: u32) {
        self.registers.set_cqt(index);
    }

    fn head(&self) -> Head {
        let errors = self.registers.cqcsr();
        let has = |bit: u32| errors & bit != 0;
        let fault = if has(CMD_ILL) {
            Some(Fault::Illegal)
        } else if has(CMD_TO) {
            Some(Fault::Timeout)
        } else if has(CQMF) {
            Some(Fault::Fetch)
        } else {
            None
        };
        let index = self.registers.cqh();
        Head { index, fault }
    }

    fn sync_entry(&self, _number: u32) -> [u64; 2] {
        // Whatever was translated before is through, too: its pages may be used for something else.
        let fence = Command::IofenceC {
            store: None,
            has_interrupt: false,
            has_read_order: true,
            has_write_order: true,
        };
        fence.encode()
    }

    fn acknowledge(&self, fault: Fault) {
        self.registers.clear_cqcsr(match fault {
            Fault::Illegal => CMD_ILL,
            Fault::Timeout | Fault::Dropped | Fault::Unanswered => CMD_TO,
            Fault::Fetch => CQMF,
        });
    }

    fn now_ns(&self) -> u64 {
        self.registers.now_ns()
    }

    fn pause(&self, turn: u32) {
        self.registers.pause(turn);
    }
}

impl<R: Registers> fmt::Debug for CommandQueue<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CommandQueue")
            .field("lg2_entries", &self.lg2_entries())
            .finish_non_exhaustive()
    }
}
