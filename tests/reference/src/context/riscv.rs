//! RISC-V IOMMU: device and process directories.
//!
//! RISC-V IOMMU Architecture Specification, 1.0: device directory table, process directory table,
//! process to translate an IOVA, capabilities. Not modelled: MSI page tables, which redirect single
//! pages of a guest; 32-bit tables; big-endian tables.

use super::{Binding, Budget, ContextFault, Device, Through, check_pasid, read};
use crate::riscv::{Config, Stage};
use crate::word::{bit, bits, exceeds};
use crate::{Memory, Table};

/// The registers that matter, as read.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Registers {
    /// `capabilities`.
    pub capabilities: u64,
    /// `fctl`.
    pub fctl: u32,
    /// `ddtp`.
    pub ddtp: u64,
}

impl Registers {
    /// `iommu_mode`.
    fn mode(&self) -> u64 {
        bits(self.ddtp, 3, 0)
    }

    /// Levels of the device directory, if there is one.
    fn levels(&self) -> Result<u32, ContextFault> {
        match self.mode() {
            mode @ 2..=4 => Ok(mode as u32 - 1),
            mode => Err(ContextFault::Illegal {
                field: "ddtp.iommu_mode",
                value: mode,
            }),
        }
    }

    /// `MSI_FLAT`: device contexts have the extended format.
    fn is_extended(&self) -> bool {
        bit(self.capabilities, 22)
    }

    /// Base-2 logarithm of the bytes of a device context.
    fn context_bits(&self) -> u32 {
        if self.is_extended() { 6 } else { 5 }
    }

    /// Lowest device id bit of `DDI[level]`, the index of a directory table; level 0 holds contexts.
    fn shift(&self, level: u32) -> u32 {
        if level == 0 {
            0
        } else {
            9 * level + 3 - self.context_bits()
        }
    }

    /// Address of the device context, by the process to locate it.
    fn context<M: Memory + ?Sized>(&self, memory: &M, device_id: u32) -> Result<u64, ContextFault> {
        let id = u64::from(device_id);
        let levels = self.levels()?;
        // A page holds 2^12 bytes of contexts; ids have 24 bits.
        if exceeds(id, self.shift(levels).min(24)) {
            return Err(ContextFault::DeviceId { device_id });
        }
        let mut table = bits(self.ddtp, 53, 10) << 12;
        for level in (1..levels).rev() {
            let address = table + 8 * bits(id, self.shift(level + 1) - 1, self.shift(level));
            table = pointer(memory, address)?;
        }
        Ok(table + (bits(id, self.shift(1) - 1, 0) << self.context_bits()))
    }
}

/// Reads a non-leaf directory entry: V and PPN, the rest reserved.
fn pointer<M: Memory + ?Sized>(memory: &M, address: u64) -> Result<u64, ContextFault> {
    let [word] = read(memory, address)?;
    if !bit(word, 0) {
        return Err(ContextFault::NotValid { address });
    }
    if bits(word, 9, 1) != 0 || bits(word, 63, 54) != 0 {
        return Err(ContextFault::Illegal {
            field: "directory entry",
            value: word,
        });
    }
    Ok(bits(word, 53, 10) << 12)
}

/// Finds the binding of a device id and, with `pasid`, of one of its processes.
///
/// # Errors
///
/// Returns which entry is missing or wrong.
pub fn resolve<M: Memory + ?Sized>(
    registers: &Registers,
    memory: &M,
    device_id: u32,
    pasid: Option<u32>,
) -> Result<Binding, ContextFault> {
    check_pasid(pasid)?;
    match registers.mode() {
        0 => return Ok(Binding::Blocked),
        1 => return Ok(Binding::OPEN),
        _ => {}
    }
    let address = registers.context(memory, device_id)?;
    let [tc, iohgatp, ta, fsc] = read(memory, address)?;
    if !bit(tc, 0) {
        return Err(ContextFault::NotValid { address });
    }
    check_context(registers, tc, iohgatp, ta)?;
    let second = g_stage(registers, tc, iohgatp)?;
    let behind = second.map_or(Binding::OPEN, |config| Binding::Table(Table::Riscv(config)));
    behind.check()?;
    let atp = if bit(tc, 5) {
        match process_context(registers, memory, tc, fsc, pasid, &behind)? {
            Some(atp) => atp,
            // Bare first stage.
            None => return Ok(behind),
        }
    } else if pasid.is_some() {
        return Err(ContextFault::Pasid { pasid });
    } else {
        fsc
    };
    let Some(mut first) = first_stage(registers, tc, atp)? else {
        return Ok(behind);
    };
    if second.is_some() {
        // Guest addresses are as wide as an entry holds; the second stage checks them.
        first.oa_bits = 56;
    }
    behind.nest(Table::Riscv(first)).check()
}

/// The device-context configuration checks on `tc` and `ta`.
fn check_context(
    registers: &Registers,
    tc: u64,
    iohgatp: u64,
    ta: u64,
) -> Result<(), ContextFault> {
    let [en_ats, en_pri, t2gpa, pdtv, prpr, gade, sade, dpe] =
        [1, 2, 3, 5, 6, 7, 8, 9].map(|n| bit(tc, n));
    let has_amo_hwad = bit(registers.capabilities, 24);
    let is_wrong = bits(tc, 23, 12) != 0
        || bits(tc, 63, 32) != 0
        || en_ats && !bit(registers.capabilities, 25)
        || (en_pri || t2gpa) && !en_ats
        || prpr && !en_pri
        || t2gpa && (bits(iohgatp, 63, 60) == 0 || !bit(registers.capabilities, 26))
        || dpe && !pdtv
        || (gade || sade) && !has_amo_hwad;
    if is_wrong {
        return Err(ContextFault::Illegal {
            field: "DC.tc",
            value: tc,
        });
    }
    // PSCID, and RCID and MCID with the QoS extension (capability 41).
    let has_qos = bit(registers.capabilities, 41);
    if bits(ta, 11, 0) != 0 || bits(ta, 39, 32) != 0 || bits(ta, 63, 40) != 0 && !has_qos {
        return Err(ContextFault::Illegal {
            field: "DC.ta",
            value: ta,
        });
    }
    // SBE: the byte order of implicit accesses must be that of the IOMMU.
    if bit(tc, 10) || bit(registers.fctl.into(), 0) {
        return Err(ContextFault::Unsupported {
            field: "big-endian tables",
        });
    }
    Ok(())
}

/// Decodes MODE 8 to 10 of iosatp and iohgatp; `first` is the capability bit of MODE 8.
fn levels(
    registers: &Registers,
    atp: u64,
    first: u32,
    field: &'static str,
) -> Result<Option<u8>, ContextFault> {
    let mode = bits(atp, 63, 60);
    match mode {
        0 => Ok(None),
        8..=10 if bit(registers.capabilities, first + mode as u32 - 8) => Ok(Some(mode as u8 - 5)),
        _ => Err(ContextFault::Illegal { field, value: atp }),
    }
}

fn g_stage(registers: &Registers, tc: u64, iohgatp: u64) -> Result<Option<Config>, ContextFault> {
    // GXL: Sv32x4.
    if bit(registers.fctl.into(), 2) {
        return Err(ContextFault::Unsupported { field: "fctl.GXL" });
    }
    Ok(
        levels(registers, iohgatp, 17, "DC.iohgatp")?.map(|levels| Config {
            hardware_ad: bit(tc, 7),
            ..config(registers, Stage::G, iohgatp, levels)
        }),
    )
}

fn first_stage(registers: &Registers, tc: u64, atp: u64) -> Result<Option<Config>, ContextFault> {
    // SXL: Sv32.
    if bit(tc, 11) {
        return Err(ContextFault::Unsupported { field: "DC.tc.SXL" });
    }
    if bits(atp, 59, 44) != 0 {
        return Err(ContextFault::Illegal {
            field: "iosatp",
            value: atp,
        });
    }
    if bits(atp, 59, 44) != 0 {
        return Err(ContextFault::Illegal {
            field: "iosatp",
            value: atp,
        });
    }
    Ok(levels(registers, atp, 9, "iosatp")?.map(|levels| Config {
        hardware_ad: bit(tc, 8),
        ..config(registers, Stage::First, atp, levels)
    }))
}

fn config(registers: &Registers, stage: Stage, atp: u64, levels: u8) -> Config {
    Config {
        // Svpbmt is a capability; Svnapot is mandatory.
        svpbmt: bit(registers.capabilities, 15),
        // PAS.
        oa_bits: (bits(registers.capabilities, 37, 32) as u8).clamp(32, 56),
        ..Config::new(stage, bits(atp, 43, 0) << 12, levels)
    }
}

/// Finds the first stage's address and mode by process id. `None` means a bare first stage.
fn process_context<M: Memory + ?Sized>(
    registers: &Registers,
    memory: &M,
    tc: u64,
    pdtp: u64,
    pasid: Option<u32>,
    behind: &Binding,
) -> Result<Option<u64>, ContextFault> {
    // MODE 1 to 3: PD8, PD17, PD20, announced by capabilities 38 to 40; bits 59:44 are reserved.
    let mode = bits(pdtp, 63, 60) as u32;
    let width = match mode {
        _ if bits(pdtp, 59, 44) != 0 => None,
        0 => Some(20),
        1 if bit(registers.capabilities, 38) => Some(8),
        2 if bit(registers.capabilities, 39) => Some(17),
        3 if bit(registers.capabilities, 40) => Some(20),
        _ => None,
    };
    let width = width.ok_or(ContextFault::Illegal {
        field: "pdtp",
        value: pdtp,
    })?;
    // DPE: requests without a process id are those of process 0.
    let id = match pasid {
        _ if mode == 0 => return Ok(None),
        Some(id) => u64::from(id),
        None if bit(tc, 9) => 0,
        None => return Ok(None),
    };
    if exceeds(id, width) {
        return Err(ContextFault::Pasid { pasid });
    }
    // With a G-stage, the directory is at guest addresses.
    match behind {
        Binding::Table(second) => {
            let through = Through { second, memory };
            process_entry(&through, pdtp, mode, id)
                .map(Some)
                .map_err(|fault| match fault {
                    ContextFault::MissingMemory { address } => match second.walk(memory, address) {
                        Err(fault) => ContextFault::Second {
                            ipa: address,
                            fault,
                        },
                        Ok(inner) => ContextFault::MissingMemory { address: inner.oa },
                    },
                    fault => fault,
                })
        }
        _ => process_entry(memory, pdtp, mode, id).map(Some),
    }
}

fn process_entry<M: Memory + ?Sized>(
    memory: &M,
    pdtp: u64,
    levels: u32,
    id: u64,
) -> Result<u64, ContextFault> {
    // PDI[0] has 8 bits, PDI[1] nine, PDI[2] three.
    let fields = [(7, 0), (16, 8), (19, 17)];
    let mut table = bits(pdtp, 43, 0) << 12;
    for &(high, low) in fields[1..levels as usize].iter().rev() {
        table = pointer(memory, table + 8 * bits(id, high, low))?;
    }
    let address = table + 16 * bits(id, 7, 0);
    let [ta, fsc] = read(memory, address)?;
    if !bit(ta, 0) {
        return Err(ContextFault::NotValid { address });
    }
    // V, ENS, SUM and PSCID.
    if bits(ta, 11, 3) != 0 || bits(ta, 63, 32) != 0 {
        return Err(ContextFault::Illegal {
            field: "PC.ta",
            value: ta,
        });
    }
    Ok(fsc)
}

/// Finds every device id whose context is valid, ascending.
///
/// `limit` bounds the entries read, of the directory and contexts.
///
/// # Errors
///
/// [`ContextFault::Limit`], [`ContextFault::MissingMemory`] for the directory, or
/// [`ContextFault::Illegal`] for its mode or entries.
pub fn devices<M: Memory + ?Sized>(
    registers: &Registers,
    memory: &M,
    limit: u64,
) -> Result<Vec<Device>, ContextFault> {
    if registers.mode() <= 1 {
        return Ok(Vec::new());
    }
    let root = bits(registers.ddtp, 53, 10) << 12;
    let mut directory = Directory {
        registers,
        memory,
        budget: Budget::new(limit),
        found: Vec::new(),
    };
    directory.visit(registers.levels()? - 1, root, 0)?;
    Ok(directory.found)
}

/// A device directory being read.
struct Directory<'a, M: ?Sized> {
    registers: &'a Registers,
    memory: &'a M,
    budget: Budget,
    found: Vec<Device>,
}

impl<M: Memory + ?Sized> Directory<'_, M> {
    /// Reads a table of `level`, whose ids begin with `base`. Level 0 holds contexts.
    fn visit(&mut self, level: u32, table: u64, base: u32) -> Result<(), ContextFault> {
        let registers = self.registers;
        let shift = registers.shift(level);
        for index in 0..1u32 << (registers.shift(level + 1).min(24) - shift) {
            self.budget.spend()?;
            let id = base | index << shift;
            let entry_bits = if level == 0 {
                registers.context_bits()
            } else {
                3
            };
            let address = table + (u64::from(index) << entry_bits);
            let [word] = read(self.memory, address)?;
            if !bit(word, 0) {
                continue;
            }
            if level > 0 {
                self.visit(level - 1, pointer(self.memory, address)?, id)?;
            } else {
                let binding = resolve(registers, self.memory, id, None);
                self.found.push(Device { id, binding });
            }
        }
        Ok(())
    }
}
