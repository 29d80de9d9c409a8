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
/// Pages of the table with an entry for each of 65536 devices.
const MOST_PAGES: u32 = 512;

/// Where the device table lies.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct DeviceTable {
    base: Oa,
    count: u32,
}

impl DeviceTable {
    /// Names of the register's fields.
    pub const FIELDS: &[Field] = &[Field::new("Size", 8, 0), Field::new("DevTabBase", 51, 12)];

    /// Describes the table of `count` entries at `base`.
    ///
    /// # Errors
    ///
    /// [`DeviceTableError::Base`] unless `base` is aligned to 4 KiB and below 2^52;
    /// [`DeviceTableError::Count`] unless `count` is a multiple of 128, up to 65536.
    pub const fn new(base: Oa, count: u32) -> Result<Self, DeviceTableError> {
        if base.get() & !BASE.mask() != 0 {
            return Err(DeviceTableError::Base { base });
        }
        let pages = count / ENTRIES_PER_PAGE;
        if !count.is_multiple_of(ENTRIES_PER_PAGE) || pages == 0 || pages > MOST_PAGES {
            return Err(DeviceTableError::Count { count });
        }
        Ok(Self { base, count })
    }

    /// Decodes the Device Table Base Address Register.
    ///
    /// # Errors
    ///
    /// [`DeviceTableError`] if a reserved bit is set.
    pub const fn from_register(word: u64) -> Result<Self, DeviceTableError> {
        let bits = word & !(SIZE.mask() | BASE.mask());
        if bits != 0 {
            return Err(DeviceTableError::Reserved { bits });
        }
        let count = (SIZE.get(word) as u32 + 1) * ENTRIES_PER_PAGE;
        Ok(Self {
            base: Oa::new(word & BASE.mask()),
            count,
        })
    }

    /// Returns the register's value.
    pub const fn register(self) -> u64 {
        self.base.get() | SIZE.put((self.count / ENTRIES_PER_PAGE - 1) as u64)
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

/// Why a device table, or the register that describes it, is impossible.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum DeviceTableError {
    /// Reserved bits are set in the Device Table Base Address Register.
    #[error("reserved bits {bits:#x} of the device table base address register are set")]
    Reserved {
        /// The bits, in place.
        bits: u64,
    },
    /// The address has no place in the register.
    #[error("the device table at {base} is not aligned to 4 KiB or has an address of over 52 bits")]
    Base {
        /// The address.
        base: Oa,
    },
    /// The register cannot express the length.
    #[error("a device table has 128 to 65536 entries, a multiple of 128, not {count}")]
    Count {
        /// The number of entries.
        count: u32,
    },
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
    fn every_possible_table_has_a_register_value() {
        let table = DeviceTable::new(Oa::new(0x1a1_8000), 256).expect("two pages");
        assert_eq!(table.register(), 0x1a1_8001);
        let largest = DeviceTable::new(Oa::new(0x000f_ffff_ffe0_0000), 0x1_0000);
        assert_eq!(
            largest.map(DeviceTable::register),
            Ok(0x000f_ffff_ffe0_01ff)
        );
        for pages in 1..=512 {
            let table = DeviceTable::new(Oa::new(0x1000), pages * 128).expect("1 to 512 pages");
            assert_eq!(DeviceTable::from_register(table.register()), Ok(table));
        }
        for count in [0, 1, 127, 129, 0x1_0080, u32::MAX] {
            let error = DeviceTableError::Count { count };
            assert_eq!(DeviceTable::new(Oa::new(0x1000), count), Err(error));
        }
        for n in (0..64).filter(|n| !(12..52).contains(n)) {
            let base = Oa::new(1 << n);
            assert_eq!(
                DeviceTable::new(base, 128),
                Err(DeviceTableError::Base { base })
            );
        }
    }

    #[test]
    fn reserved_bits_are_refused() {
        for bits in [1 << 9, 1 << 11, 1 << 52, 1 << 63] {
            let error = DeviceTableError::Reserved { bits };
            assert_eq!(DeviceTable::from_register(0x1a1_8001 | bits), Err(error));
        }
    }
}
