//! The register that points to the device table.
//!
//! Source: document 48882, section 3.4.1 "MMIO Offset 0000h Device Table Base Address Register".

use crate::{Bits, Field, Oa};

use super::Dte;

/// `Size`: number of 4 KiB pages of the table, less one.
const SIZE: Bits<8, 0> = Bits;
/// `DevTabBase`: address of the table.
const BASE: Bits<51, 12> = Bits;
const ENTRIES_PER_PAGE: u32 = 4096 / Dte::LEN as u32;

/// Where the device table lies.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct DeviceTable {
    base: Oa,
    count: u32,
}

impl DeviceTable {
    /// Names of the register's fields.
    pub const FIELDS: &[Field] = &[Field::new("Size", 8, 0), Field::new("DevTabBase", 51, 12)];

    /// Decodes the Device Table Base Address Register.
    ///
    /// # Errors
    ///
    /// [`DeviceTableError`] if a reserved bit is set.
    pub const fn from_register(word: u64) -> Result<Self, DeviceTableError> {
        let bits = word & !(SIZE.mask() | BASE.mask());
        if bits != 0 {
            return Err(DeviceTableError { bits });
        }
        let count = (SIZE.get(word) as u32 + 1) * ENTRIES_PER_PAGE;
        Ok(Self {
            base: Oa::new(word & BASE.mask()),
            count,
        })
    }

    /// Returns the address of the first entry.
    pub const fn base(self) -> Oa {
        self.base
    }

    /// Returns the number of entries: 128 to 65536.
    pub const fn count(self) -> u32 {
        self.count
    }

    /// Returns the address of the entry of `device_id`, or `None` if the table has none for it,
    /// so that the IOMMU aborts the device's requests.
    pub const fn entry(self, device_id: u16) -> Option<Oa> {
        if device_id as u32 >= self.count {
            return None;
        }
        self.base.checked_add(device_id as u64 * Dte::LEN)
    }
}

/// Reserved bits are set in the Device Table Base Address Register.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("reserved bits {bits:#x} of the device table base address register are set")]
pub struct DeviceTableError {
    /// The bits, in place.
    pub bits: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_register_gives_address_and_length() {
        // Read from an emulated IOMMU under Linux: two pages for the 256 functions of one bus.
        let table = DeviceTable::from_register(0x1a1_8001).expect("no reserved bit is set");
        assert_eq!((table.base(), table.count()), (Oa::new(0x1a1_8000), 256));
        assert_eq!(table.entry(0x28), Some(Oa::new(0x1a1_8500)));
        assert_eq!(table.entry(0xff), Some(Oa::new(0x1a1_9fe0)));
        assert_eq!(table.entry(0x100), None);
    }

    #[test]
    fn the_largest_table_has_an_entry_for_every_device() {
        let table = DeviceTable::from_register(0x000f_ffff_ffe0_01ff).expect("as above");
        assert_eq!(table.count(), 0x1_0000);
        assert_eq!(table.entry(0xffff), Some(Oa::new(0x000f_ffff_ffff_ffe0)));
    }

    #[test]
    fn reserved_bits_are_refused() {
        for bits in [1 << 9, 1 << 11, 1 << 52, 1 << 63] {
            let error = DeviceTableError { bits };
            assert_eq!(DeviceTable::from_register(0x1a1_8001 | bits), Err(error));
        }
    }
}
