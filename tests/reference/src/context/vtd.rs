//! VT-d: root, context and PASID tables.
//!
//! Intel Virtualization Technology for Directed I/O, architecture specification: 3.4 mapping devices
//! to domains, 9.1 to 9.6 root entry to PASID table entry, 11.4 registers.

use super::{Binding, Budget, ContextFault, Device, check_pasid, read};
use crate::word::{bit, bits, in_place};
use crate::{Memory, Table, vtd, x86};

/// The registers that matter, as read, and the host address width.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Registers {
    /// `CAP_REG`.
    pub cap: u64,
    /// `ECAP_REG`.
    pub ecap: u64,
    /// `GSTS_REG`.
    pub gsts: u32,
    /// `RTADDR_REG`.
    pub rtaddr: u64,
    /// Host address width in bits, which the DMAR table tells. 52 if unknown.
    pub host_address_bits: u8,
}

impl Registers {
    /// TES: translation is enabled.
    fn is_enabled(&self) -> bool {
        bit(self.gsts.into(), 31)
    }

    /// TTM, bits 11:10 of the root table address register.
    fn is_scalable(&self) -> Result<bool, ContextFault> {
        match bits(self.rtaddr, 11, 10) {
            0 => Ok(false),
            1 => Ok(true),
            mode => Err(ContextFault::Illegal {
                field: "RTADDR.TTM",
                value: mode,
            }),
        }
    }

    /// Second stage with `aw`, which SAGAW (bits 12:8 of the capability register) must announce.
    fn second_stage(&self, root: u64, aw: u64) -> Result<Table, ContextFault> {
        if !(1..=3).contains(&aw) || bits(self.cap, 12, 8) >> aw & 1 == 0 {
            return Err(ContextFault::Illegal {
                field: "AW",
                value: aw,
            });
        }
        Ok(Table::VtdSecond(vtd::Config {
            root: in_place(root, 63, 12),
            levels: aw as u8 + 2,
            oa_bits: self.host_address_bits,
            large_pages: bits(self.cap, 37, 34) as u8 & 3,
            snoop_control: bit(self.ecap, 7),
            device_tlb: bit(self.ecap, 2),
        }))
    }

    /// First stage by qword 2 of a PASID entry.
    fn first_stage(&self, qword: u64) -> Result<Table, ContextFault> {
        let levels = match bits(qword, 3, 2) {
            0 => 4,
            1 => 5,
            mode => {
                return Err(ContextFault::Illegal {
                    field: "FSPM",
                    value: mode,
                });
            }
        };
        let root = in_place(qword, 63, 12);
        Ok(Table::LongMode(x86::Config::vtd_first(
            root,
            levels,
            self.host_address_bits,
        )))
    }
}

/// Finds the binding of a requester id and, with `pasid`, of one of its address spaces.
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
    if device_id > 0xffff {
        return Err(ContextFault::DeviceId { device_id });
    }
    if !registers.is_enabled() {
        return Ok(Binding::OPEN);
    }
    if bits(registers.rtaddr, 11, 10) == 3 {
        // Abort-DMA mode.
        return Ok(Binding::Blocked);
    }
    let binding = if registers.is_scalable()? {
        scalable(registers, memory, device_id, pasid)
    } else {
        legacy(registers, memory, device_id, pasid)
    };
    binding.and_then(Binding::check)
}

fn root_entry<M: Memory + ?Sized>(
    registers: &Registers,
    memory: &M,
    bus: u64,
) -> Result<[u64; 2], ContextFault> {
    read(memory, in_place(registers.rtaddr, 63, 12) + 16 * bus)
}

fn legacy<M: Memory + ?Sized>(
    registers: &Registers,
    memory: &M,
    device_id: u32,
    pasid: Option<u32>,
) -> Result<Binding, ContextFault> {
    let address = legacy_context(registers, memory, device_id)?;
    let [low, high] = read(memory, address)?;
    if !bit(low, 0) {
        return Err(ContextFault::NotValid { address });
    }
    if pasid.is_some() {
        return Err(ContextFault::Pasid { pasid });
    }
    match bits(low, 3, 2) {
        0 | 1 => registers
            .second_stage(low, bits(high, 2, 0))
            .map(Binding::Table),
        // PT, bit 6 of the extended capability register.
        2 if bit(registers.ecap, 6) => Ok(Binding::OPEN),
        tt => Err(ContextFault::Illegal {
            field: "TT",
            value: tt,
        }),
    }
}

fn legacy_context<M: Memory + ?Sized>(
    registers: &Registers,
    memory: &M,
    device_id: u32,
) -> Result<u64, ContextFault> {
    let [low, _] = root_entry(registers, memory, u64::from(device_id >> 8))?;
    if !bit(low, 0) {
        return Err(ContextFault::DeviceId { device_id });
    }
    Ok(in_place(low, 63, 12) + 16 * u64::from(device_id & 0xff))
}

fn scalable_context<M: Memory + ?Sized>(
    registers: &Registers,
    memory: &M,
    device_id: u32,
) -> Result<u64, ContextFault> {
    let [lower, upper] = root_entry(registers, memory, u64::from(device_id >> 8))?;
    // One table for functions 0 to 127 of a bus, one for the others.
    let entry = if device_id & 0x80 == 0 { lower } else { upper };
    if !bit(entry, 0) {
        return Err(ContextFault::DeviceId { device_id });
    }
    Ok(in_place(entry, 63, 12) + 32 * u64::from(device_id & 0x7f))
}

fn scalable<M: Memory + ?Sized>(
    registers: &Registers,
    memory: &M,
    device_id: u32,
    pasid: Option<u32>,
) -> Result<Binding, ContextFault> {
    let address = scalable_context(registers, memory, device_id)?;
    let context: [u64; 4] = read(memory, address)?;
    if !bit(context[0], 0) {
        return Err(ContextFault::NotValid { address });
    }
    // Requests with a PASID need PASIDE; those without one use RID_PASID.
    let index = match pasid {
        Some(_) if !bit(context[0], 3) => return Err(ContextFault::Pasid { pasid }),
        Some(index) => u64::from(index),
        None => bits(context[1], 19, 0),
    };
    // The directory has 2^(PDTS + 7) entries for 64 PASIDs each.
    let directory_bits = bits(context[0], 11, 9) as u32 + 7;
    if index >> 6 >> directory_bits != 0 {
        return Err(ContextFault::Pasid {
            pasid: Some(index as u32),
        });
    }
    let address = in_place(context[0], 63, 12) + 8 * (index >> 6);
    let [directory] = read(memory, address)?;
    if !bit(directory, 0) {
        return Err(ContextFault::NotValid { address });
    }
    let address = in_place(directory, 63, 12) + 64 * bits(index, 5, 0);
    let entry: [u64; 8] = read(memory, address)?;
    if !bit(entry[0], 0) {
        return Err(ContextFault::NotValid { address });
    }
    let aw = bits(entry[0], 4, 2);
    match bits(entry[0], 8, 6) {
        1 => registers.first_stage(entry[2]).map(Binding::Table),
        2 => registers.second_stage(entry[0], aw).map(Binding::Table),
        3 => {
            let second = Binding::Table(registers.second_stage(entry[0], aw)?);
            // Its root and pointers are guest addresses, of which the second stage has fewer bits.
            registers
                .first_stage(entry[2])
                .map(|first| second.nest(first))
        }
        4 => Ok(Binding::OPEN),
        pgtt => Err(ContextFault::Illegal {
            field: "PGTT",
            value: pgtt,
        }),
    }
}

/// Finds every requester id whose context entry is present, ascending.
///
/// `limit` bounds the context entries read, of which there are at most 65536.
///
/// # Errors
///
/// [`ContextFault::Limit`], [`ContextFault::MissingMemory`] for the root or a context table, or
/// [`ContextFault::Illegal`] for the mode of the root table.
pub fn devices<M: Memory + ?Sized>(
    registers: &Registers,
    memory: &M,
    limit: u64,
) -> Result<Vec<Device>, ContextFault> {
    let mut found = Vec::new();
    let mut budget = Budget::new(limit);
    if !registers.is_enabled() || bits(registers.rtaddr, 11, 10) == 3 {
        return Ok(found);
    }
    let is_scalable = registers.is_scalable()?;
    for id in 0..=0xffff {
        let address = if is_scalable {
            scalable_context(registers, memory, id)
        } else {
            legacy_context(registers, memory, id)
        };
        let address = match address {
            Ok(address) => address,
            Err(ContextFault::DeviceId { .. }) => continue,
            Err(fault) => return Err(fault),
        };
        budget.spend()?;
        let [word] = read(memory, address)?;
        if bit(word, 0) {
            found.push(Device {
                id,
                binding: resolve(registers, memory, id, None),
            });
        }
    }
    Ok(found)
}
