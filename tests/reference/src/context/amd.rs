//! AMD-Vi: device table entries and guest CR3 tables.
//!
//! AMD I/O Virtualization Technology (IOMMU) Specification (48882): 2.2.2 device table entry format,
//! 2.2.6 guest CR3 table, 3.4 MMIO registers. One device table; segments are not modelled.

use super::{Binding, Budget, ContextFault, Device, Through, check_pasid, read};
use crate::word::{bit, bits, exceeds, in_place};
use crate::{Memory, Table, amd, x86};

/// The registers that matter, as read.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Registers {
    /// Device table base address register.
    pub devtab: u64,
    /// IOMMU control register.
    pub control: u64,
}

impl Registers {
    fn is_enabled(&self) -> bool {
        bit(self.control, 0)
    }

    /// Entries of the device table: its size field counts 4 KiB pages, less one.
    fn count(&self) -> u64 {
        (bits(self.devtab, 8, 0) + 1) * 0x1000 / 32
    }

    fn entry(&self, device_id: u32) -> Result<u64, ContextFault> {
        if u64::from(device_id) >= self.count() {
            return Err(ContextFault::DeviceId { device_id });
        }
        Ok(in_place(self.devtab, 51, 12) + 32 * u64::from(device_id))
    }

    /// `GCR3TRPMode`: with two stages, the guest CR3 table is at guest addresses.
    fn has_guest_gcr3_table(&self) -> bool {
        bit(self.control, 58)
    }
}

/// Finds the binding of a device id and, with `pasid`, of one of its address spaces.
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
    if !registers.is_enabled() {
        return Ok(Binding::OPEN);
    }
    let dte: [u64; 4] = read(memory, registers.entry(device_id)?)?;
    let (is_valid, is_translated) = (bit(dte[0], 0), bit(dte[0], 1));
    if !is_valid {
        return Ok(Binding::OPEN);
    }
    if !is_translated {
        return Ok(Binding::Blocked);
    }
    let (read, write) = (bit(dte[0], 61), bit(dte[0], 62));
    let host = match bits(dte[0], 11, 9) as u8 {
        0 if !read && !write => Binding::Blocked,
        0 => Binding::PassThrough { read, write },
        7 => {
            return Err(ContextFault::Illegal {
                field: "DTE.Mode",
                value: 7,
            });
        }
        mode => Binding::Table(Table::AmdV1(amd::Config {
            root: in_place(dte[0], 51, 12),
            mode,
            read,
            write,
            oa_bits: 52,
        })),
    };
    let (gv, giov) = (bit(dte[0], 55), bit(dte[0], 54));
    let index = match pasid {
        Some(_) if !gv => return Err(ContextFault::Pasid { pasid }),
        Some(index) => index,
        // Requests without PASID use slot 0 with GIOV, else the host table alone.
        None if gv && giov => 0,
        None => return host.check(),
    };
    host.check()?;
    let root = gcr3(registers, memory, &dte, index, &host)?;
    let levels = match bits(dte[2], 55, 54) {
        0 => 4,
        1 => 5,
        mode => {
            return Err(ContextFault::Illegal {
                field: "DTE.GuestPagingMode",
                value: mode,
            });
        }
    };
    host.nest(Table::LongMode(x86::Config::amd_guest(root, levels)))
        .check()
}

/// Walks the guest CR3 table of one to three levels, 512 entries each.
fn gcr3<M: Memory + ?Sized>(
    registers: &Registers,
    memory: &M,
    dte: &[u64; 4],
    pasid: u32,
    host: &Binding,
) -> Result<u64, ContextFault> {
    let glx = bits(dte[0], 57, 56) as u32;
    if glx == 3 {
        return Err(ContextFault::Illegal {
            field: "DTE.GLX",
            value: 3,
        });
    }
    if exceeds(u64::from(pasid), 9 * (glx + 1)) {
        return Err(ContextFault::Pasid { pasid: Some(pasid) });
    }
    // The root pointer is in three pieces.
    let mut table =
        bits(dte[0], 60, 58) << 12 | bits(dte[1], 31, 16) << 15 | bits(dte[1], 63, 43) << 31;
    for level in (0..=glx).rev() {
        let index = bits(u64::from(pasid), 9 * level + 8, 9 * level);
        let address = table + 8 * index;
        let word = match host {
            Binding::Table(second) if registers.has_guest_gcr3_table() => {
                let through = Through { second, memory };
                let inner = second
                    .walk(memory, address)
                    .map_err(|fault| ContextFault::Second {
                        ipa: address,
                        fault,
                    })?;
                through
                    .read64(address)
                    .ok_or(ContextFault::MissingMemory { address: inner.oa })?
            }
            _ => memory
                .read64(address)
                .ok_or(ContextFault::MissingMemory { address })?,
        };
        if !bit(word, 0) {
            return Err(ContextFault::NotValid { address });
        }
        table = in_place(word, 51, 12);
    }
    Ok(table)
}

/// Finds every device id whose entry is valid, ascending. The other ids pass through.
///
/// `limit` bounds the entries read, of which there are at most 65536.
///
/// # Errors
///
/// [`ContextFault::Limit`], or [`ContextFault::MissingMemory`] for the device table.
pub fn devices<M: Memory + ?Sized>(
    registers: &Registers,
    memory: &M,
    limit: u64,
) -> Result<Vec<Device>, ContextFault> {
    let mut found = Vec::new();
    let mut budget = Budget::new(limit);
    if !registers.is_enabled() {
        return Ok(found);
    }
    for id in 0..registers.count() as u32 {
        budget.spend()?;
        let [word] = read(memory, registers.entry(id)?)?;
        if bit(word, 0) {
            found.push(Device {
                id,
                binding: resolve(registers, memory, id, None),
            });
        }
    }
    Ok(found)
}
