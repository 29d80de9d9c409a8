//! The device directory table (DDT) and the register that points to it.
//!
//! Source: sections "Device-directory-table pointer" and "Device-Directory-Table (DDT)".

use crate::{Bits, Field, Oa, bit};

use super::{
    ContextFormat, DeviceContext, Features, IndexBits, LocateError, Misconfigured, POINTER_FIELDS,
    POINTER_PPN, id_bits, locate, page_number, read_words,
};

/// `iommu_mode`.
const IOMMU_MODE: Bits<3, 0> = Bits;
/// `busy`: the IOMMU is still taking over an earlier write.
const BUSY: u64 = bit(4);

/// What the register `ddtp` says.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Ddtp {
    /// No request is allowed.
    Off,
    /// Addresses stay as they are.
    Bare,
    /// Requests go through a directory.
    Directory(DeviceDirectory),
}

impl Ddtp {
    /// Names of the register's fields.
    pub const FIELDS: &[Field] = &[
        Field::new("iommu_mode", 3, 0),
        Field::new("busy", 4, 4),
        Field::new("PPN", 53, 10),
    ];

    /// Decodes the register.
    ///
    /// # Errors
    ///
    /// [`ReservedMode`] unless `iommu_mode` is 0 to 4.
    pub const fn decode(word: u64, features: Features) -> Result<Self, ReservedMode> {
        let mode = IOMMU_MODE.get(word) as u8;
        match mode {
            0 => Ok(Self::Off),
            1 => Ok(Self::Bare),
            2..=4 => Ok(Self::Directory(DeviceDirectory {
                root: Oa::new(POINTER_PPN.get(word) << 12),
                levels: mode - 1,
                features,
            })),
            _ => Err(ReservedMode { mode }),
        }
    }

    /// Returns the register's value, `busy` clear. Without a directory, hardware ignores the page
    /// number: it is zero then.
    ///
    /// The number of levels changes through [`Off`](Self::Off) or [`Bare`](Self::Bare) only, and each
    /// write waits until [`is_busy`](Self::is_busy) says that the one before was taken over.
    pub const fn encode(self) -> u64 {
        match self {
            Self::Off => IOMMU_MODE.put(0),
            Self::Bare => IOMMU_MODE.put(1),
            Self::Directory(directory) => {
                IOMMU_MODE.put(directory.levels as u64 + 1)
                    | POINTER_PPN.put(directory.root.get() >> 12)
            }
        }
    }

    /// Returns whether the register `word` says that the IOMMU is still taking over an earlier
    /// write.
    pub const fn is_busy(word: u64) -> bool {
        word & BUSY != 0
    }
}

/// `iommu_mode` has a value that the specification reserves or leaves to the vendor.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("iommu_mode {mode} of ddtp is not known")]
pub struct ReservedMode {
    /// The value.
    pub mode: u8,
}

/// A device directory: from a `device_id` to a device context.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct DeviceDirectory {
    root: Oa,
    levels: u8,
    features: Features,
}

impl DeviceDirectory {
    /// Names of the fields of an entry above the last level.
    pub const FIELDS: &[Field] = POINTER_FIELDS;

    /// Describes the directory of `levels` levels, 1 to 3, at `root`.
    ///
    /// # Errors
    ///
    /// [`Misconfigured::DirectoryLevels`] for other numbers of levels; [`Misconfigured::Pointer`]
    /// unless `root` is aligned to 4 KiB and below 2^56.
    pub fn new(root: Oa, levels: u8, features: Features) -> Result<Self, Misconfigured> {
        page_number(root)?;
        if !(1..=3).contains(&levels) {
            return Err(Misconfigured::DirectoryLevels { levels });
        }
        Ok(Self {
            root,
            levels,
            features,
        })
    }

    /// Returns where the directory lies.
    pub const fn root(self) -> Oa {
        self.root
    }

    /// Returns the number of levels, 1 to 3.
    pub const fn levels(self) -> u8 {
        self.levels
    }

    /// Returns the width of the device ids that have an entry, in bits.
    pub fn device_id_bits(self) -> u8 {
        id_bits(self.levels, self.index_bits())
    }

    /// Finds the address of the context of `device_id`.
    ///
    /// `read` returns the 64-bit word at an address, or `None` where no memory is.
    ///
    /// # Errors
    ///
    /// The [`LocateError`] that the search ends in.
    pub fn locate(
        self,
        device_id: u32,
        mut read: impl FnMut(Oa) -> Option<u64>,
    ) -> Result<Oa, LocateError> {
        self.locate_with(device_id, &mut read)
    }

    /// Finds and decodes the context of `device_id`.
    ///
    /// # Errors
    ///
    /// The [`LocateError`] that the search ends in.
    pub fn context(
        self,
        device_id: u32,
        mut read: impl FnMut(Oa) -> Option<u64>,
    ) -> Result<DeviceContext, LocateError> {
        let address = self.locate_with(device_id, &mut read)?;
        let words = match self.features.context_format() {
            ContextFormat::Extended => read_words::<8>(address, &mut read)?,
            ContextFormat::Base => {
                let [tc, iohgatp, ta, fsc] = read_words::<4>(address, &mut read)?;
                [tc, iohgatp, ta, fsc, 0, 0, 0, 0]
            }
        };
        DeviceContext::decode(words, self.features)
            .map_err(|reason| LocateError::Misconfigured { address, reason })?
            .ok_or(LocateError::NotValid { address })
    }

    fn locate_with(
        self,
        device_id: u32,
        read: &mut impl FnMut(Oa) -> Option<u64>,
    ) -> Result<Oa, LocateError> {
        let len_lg2 = self.features.context_format().len_lg2();
        locate(
            self.root,
            self.levels,
            self.index_bits(),
            len_lg2,
            device_id,
            read,
        )
    }

    /// DDI: how a `device_id` is split.
    const fn index_bits(self) -> IndexBits {
        match self.features.context_format() {
            ContextFormat::Base => [7, 9, 8],
            ContextFormat::Extended => [6, 9, 9],
        }
    }
}

#[cfg(test)]
mod tests;
