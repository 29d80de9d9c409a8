//! The command queue of an SMMUv3.
//!
//! Source: *Arm System Memory Management Unit Architecture Specification, SMMU architecture version 3*
//! (IHI 0070), sections 3.5.1 (circular queues), 4.7.3 (`CMD_SYNC`), 6.3 (registers) and 7.1 (command queue
//! errors).

use core::fmt;

use iopt_formats::Oa;
use iopt_formats::command::smmuv3::{Command, ConsumerError, Msi, Signal};

use crate::invalidation::Encode;
use crate::invalidation::queue::platform::{Platform, lg2_entries};
use crate::invalidation::queue::{Completion, Device, Fault, Head, Shape};
use crate::sync::atomic::AtomicU64;

impl Encode<[u64; 2]> for Command {
    #[inline]
    fn entry(&self) -> [u64; 2] {
        self.encode()
    }
}

/// The registers of a command queue, of any security state. Stores reach the device before later ones, loads
/// are not made up.
pub trait Registers: Platform {
    /// Writes `SMMU_CMDQ_PROD`.
    fn set_cmdq_prod(&self, value: u32);

    /// Reads `SMMU_CMDQ_CONS`.
    fn cmdq_cons(&self) -> u32;

    /// Reads `SMMU_GERROR`.
    fn gerror(&self) -> u32;

    /// Reads `SMMU_GERRORN`.
    fn gerrorn(&self) -> u32;

    /// Makes the bits `mask` of `SMMU_GERRORN` those of `value` and leaves the others, which other errors
    /// are acknowledged by, perhaps on other threads.
    fn change_gerrorn(&self, mask: u32, value: u32);
}

/// `GERROR.CMDQ_ERR`: an error is active while the bit differs from that of `GERRORN`.
const CMDQ_ERR: u32 = 1;
/// `CMDQ_CONS.ERR`.
const ERR: u32 = 0x7f << 24;
/// What `CMDQS` of `SMMU_IDR1` says at most.
const MOST_LG2: u8 = 19;

/// A command queue that hardware reads, with completion shown by its consumer index.
pub struct CommandQueue<R> {
    registers: R,
}

impl<R: Registers> CommandQueue<R> {
    /// Creates the queue that `registers` belong to, which is enabled and empty.
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

    /// Returns what `SMMU_CMDQ_BASE` must hold for a ring at `address`, which is aligned to its size. Bits
    /// below 5 and above 55 are dropped.
    pub fn base(&self, address: Oa) -> u64 {
        address.get() & 0x00ff_ffff_ffff_ffe0 | u64::from(self.lg2_entries())
    }
}

impl<R: Registers> Device for CommandQueue<R> {
    type Entry = [u64; 2];

    fn shape(&self) -> Shape {
        Shape {
            lg2_entries: self.lg2_entries(),
            least_lg2_entries: 1,
            has_wrap_bit: true,
            completion: Completion::Head,
        }
    }

    fn ring(&self) -> &[AtomicU64] {
        self.registers.ring()
    }

    fn write_tail(&self, index: u32) {
        self.registers.set_cmdq_prod(index);
    }

    fn head(&self) -> Head {
        // A read of a register is dear. While an error is active ERR names it, in the register that says where
        // hardware stands; at other times it may hold anything.
        let cons = self.registers.cmdq_cons();
        if cons & ERR == 0 {
            return Head {
                index: cons,
                fault: None,
            };
        }
        let is_active = (self.registers.gerror() ^ self.registers.gerrorn()) & CMDQ_ERR != 0;
        let cons = self.registers.cmdq_cons();
        let fault = is_active.then(|| match ConsumerError::from_register(cons) {
            // What an unknown error is about is not known to be done either.
            Some(ConsumerError::Illegal | ConsumerError::Reserved(_)) => Fault::Illegal,
            Some(ConsumerError::AtcTimeout) => Fault::Timeout,
            Some(ConsumerError::Abort) | None => Fault::Fetch,
        });
        Head {
            // Reserved bits are left where they are, which makes a head that is none of hardware that is gone.
            index: cons & !ERR,
            fault,
        }
    }

    fn sync_entry(&self, _number: u32) -> [u64; 2] {
        let signal = Signal::None;
        let msi = Msi::NONE;
        Command::Sync { signal, msi }.encode()
    }

    fn acknowledge(&self, _fault: Fault) {
        let gerror = self.registers.gerror();
        self.registers.change_gerrorn(CMDQ_ERR, gerror);
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
