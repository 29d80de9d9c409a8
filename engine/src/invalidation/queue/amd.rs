//! The command buffer of an AMD-Vi IOMMU.
//!
//! Source: *AMD I/O Virtualization Technology (IOMMU) Specification*, document 48882, revision 3.10,
//! sections 2.4 "Commands", 2.4.1 "`COMPLETION_WAIT`", 2.5 "Event Logging" and 3.4 (MMIO registers).

use core::fmt;

use iopt_formats::Oa;
use iopt_formats::command::amd::{Command, Store};

use crate::invalidation::Encode;
use crate::invalidation::queue::platform::{Platform, lg2_entries};
use crate::invalidation::queue::{Completion, Device, Fault, Head, Shape};
use crate::sync::atomic::{AtomicU32, AtomicU64, Ordering};

impl Encode<[u64; 2]> for Command {
    fn entry(&self) -> [u64; 2] {
        self.encode()
    }
}

/// The registers of the command buffer, the word that completion waits store to, and what the event log says
/// of commands. Stores reach the IOMMU before later ones, loads are not made up.
pub trait Registers: Platform {
    /// Returns the status word, which completion waits store to. Always the same.
    fn status_word(&self) -> &AtomicU64;

    /// Writes the command buffer tail pointer, an offset in bytes (MMIO offset 2008h).
    fn set_tail(&self, value: u64);

    /// Reads the command buffer head pointer, an offset in bytes (MMIO offset 2000h).
    fn head(&self) -> u64;

    /// Reads the status register (MMIO offset 2020h).
    fn status(&self) -> u64;

    /// Returns the oldest event about commands that is not [acknowledged](Self::acknowledge), after reading
    /// the event log as far as it goes.
    fn event(&self) -> Option<Event>;

    /// Takes out `event`, which was dealt with and is the oldest one. If it is no
    /// [`InvalidationTimeout`](Event::InvalidationTimeout), or if the buffer stopped without an event, clears
    /// `CmdBufEn` and sets it, so that commands are fetched from the head on (MMIO offset 18h, bit 12), and
    /// returns when `CmdBufRun` reads 1 (MMIO offset 2020h, bit 4): until then the buffer counts as stopped again.
    fn acknowledge(&self, event: Option<Event>);
}

/// What the event log says of a command.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Event {
    /// `ILLEGAL_COMMAND_ERROR`: the buffer stopped at a command that is refused (event code 5).
    IllegalCommand,
    /// `COMMAND_HARDWARE_ERROR`: the buffer stopped at a command that could not be fetched (event code 6).
    CommandHardware,
    /// `IOTLB_INV_TIMEOUT`: a device did not answer an invalidation (event code 7). The buffer goes on, and the
    /// completion waits behind complete, as if it had.
    InvalidationTimeout,
}

/// Of the status register, `CmdBufRun`: commands are fetched.
const RUNNING: u64 = 1 << 4;
/// Logarithm of a command's bytes.
const LEN_LG2: u32 = 4;
/// Logarithms of the entries that `ComLen` may name.
const LEAST_LG2: u8 = 8;
const MOST_LG2: u8 = 15;

/// A command buffer that hardware reads, with completion shown by a status word.
pub struct CommandBuffer<R> {
    registers: R,
    status: Oa,
    /// The number of the status word when no time-out was known: later ones count only when none is.
    confirmed: AtomicU32,
}

impl<R: Registers> CommandBuffer<R> {
    /// Creates the buffer that `registers` belong to, which is enabled and empty, and whose `CmdBufRun` reads 1. The
    /// IOMMU finds the status word at the address `status`, a multiple of 8.
    pub fn new(registers: R, status: Oa) -> Self {
        let word = registers.status_word().load(Ordering::Relaxed);
        Self {
            registers,
            status,
            confirmed: AtomicU32::new(u64::from_le(word) as u32),
        }
    }

    /// Returns the registers.
    pub const fn registers(&self) -> &R {
        &self.registers
    }

    fn lg2_entries(&self) -> u8 {
        lg2_entries(self.registers.ring().len(), LEN_LG2 - 3, MOST_LG2)
    }

    /// Returns what the command buffer base address register must hold for a ring at `address`, which is
    /// aligned to 4 KiB and has a page or more. Bits below 12 and above 51 are dropped.
    pub fn base(&self, address: Oa) -> u64 {
        let lg2_entries = self.lg2_entries().max(LEAST_LG2);
        address.get() & 0x000f_ffff_ffff_f000 | u64::from(lg2_entries) << 56
    }
}

impl<R: Registers> Device for CommandBuffer<R> {
    type Entry = [u64; 2];

    fn shape(&self) -> Shape {
        Shape {
            lg2_entries: self.lg2_entries(),
            least_lg2_entries: LEAST_LG2,
            has_wrap_bit: false,
            completion: Completion::Status,
        }
    }

    fn ring(&self) -> &[AtomicU64] {
        self.registers.ring()
    }

    fn write_tail(&self, index: u32) {
        self.registers.set_tail(u64::from(index) << LEN_LG2);
    }

    fn head(&self) -> Head {
        // The log after the register: what stopped the buffer stands in it by then.
        let is_running = self.registers.status() & RUNNING != 0;
        let fault = match self.registers.event() {
            Some(Event::InvalidationTimeout) => Some(Fault::Unanswered),
            Some(Event::CommandHardware) => Some(Fault::Fetch),
            Some(Event::IllegalCommand) => Some(Fault::Illegal),
            // Stopped for what the log had no room for, or is not enabled for.
            None => (!is_running).then_some(Fault::Illegal),
        };
        let index = self.registers.head() >> LEN_LG2;
        let index = u32::try_from(index).unwrap_or(u32::MAX);
        Head { index, fault }
    }

    fn status(&self) -> u32 {
        let word = self.registers.status_word().load(Ordering::Acquire);
        let number = u64::from_le(word) as u32;
        let confirmed = self.confirmed.load(Ordering::Acquire);
        if number == confirmed {
            return number;
        }
        // A time-out is logged before the store of the wait behind it, perhaps behind another event. Whoever
        // deals with it makes everything fail that is not confirmed.
        if self.registers.event().is_some() {
            return confirmed;
        }
        self.confirmed.store(number, Ordering::Release);
        number
    }

    fn sync_entry(&self, number: u32) -> [u64; 2] {
        let wait = Command::CompletionWait {
            store: Some(Store {
                address: self.status.get(),
                data: u64::from(number),
            }),
            has_interrupt: false,
            is_fence: false,
        };
        wait.encode()
    }

    fn acknowledge(&self, fault: Fault) {
        let event = match fault {
            Fault::Unanswered | Fault::Dropped | Fault::Timeout => Some(Event::InvalidationTimeout),
            Fault::Fetch => Some(Event::CommandHardware),
            // Others are still to be dealt with: they came since the buffer stopped without one.
            Fault::Illegal => {
                let oldest = self.registers.event();
                oldest.filter(|&event| event == Event::IllegalCommand)
            }
        };
        self.registers.acknowledge(event);
    }

    fn now_ns(&self) -> u64 {
        self.registers.now_ns()
    }

    fn pause(&self, turn: u32) {
        self.registers.pause(turn);
    }
}

impl<R: Registers> fmt::Debug for CommandBuffer<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CommandBuffer")
            .field("lg2_entries", &self.lg2_entries())
            .field("status", &self.status)
            .finish_non_exhaustive()
    }
}
