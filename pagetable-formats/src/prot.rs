//! Rights and memory type of a mapping.

use core::fmt;

/// What may be done with a page. Every bit is a permission, so a walk intersects them.
#[derive(Clone, Copy, Default, Eq, Hash, PartialEq)]
pub struct Rights(u8);

impl Rights {
    /// No right at all.
    pub const NONE: Self = Self(0);
    /// Reads are allowed.
    pub const READ: Self = Self(1);
    /// Writes are allowed.
    pub const WRITE: Self = Self(2);
    /// Instruction fetches are allowed.
    pub const EXECUTE: Self = Self(4);
    /// Unprivileged requests are allowed. Nearly all DMA is unprivileged.
    pub const USER: Self = Self(8);
    /// All of the above.
    pub const ALL: Self = Self(15);

    /// Returns the rights that are in either set.
    #[must_use]
    pub const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Returns the rights that are in both sets.
    #[must_use]
    pub const fn intersection(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// Returns the rights of this set that are not in `other`.
    #[must_use]
    pub const fn difference(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// Returns whether every right of `other` is in this set.
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// Returns this set, with the rights of `other` added if `condition` holds.
    #[must_use]
    pub const fn with_if(self, other: Self, condition: bool) -> Self {
        if condition { self.union(other) } else { self }
    }
}

impl fmt::Display for Rights {
    /// Writes one letter a right, `r`, `w`, `x`, `u`, or a dash where it is missing.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let letters = [
            (Self::READ, "r"),
            (Self::WRITE, "w"),
            (Self::EXECUTE, "x"),
            (Self::USER, "u"),
        ];
        letters.into_iter().try_for_each(|(right, letter)| {
            f.write_str(if self.contains(right) { letter } else { "-" })
        })
    }
}

impl fmt::Debug for Rights {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// How the memory system treats accesses to a page.
///
/// Formats without memory types (VT-d second stage, x86-64, AMD) decode every page as
/// [`WriteBack`](Self::WriteBack), because the platform keeps DMA coherent there.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
#[repr(u8)]
pub enum Memory {
    /// Normal memory, not cached: what a device without coherent access needs.
    #[default]
    NonCacheable = 0,
    /// Normal memory, cached, coherent with the CPUs.
    WriteBack = 1,
    /// Registers of a device: no gathering, no speculation.
    Device = 2,
    /// Cached by a system cache only: inner non-cacheable, outer write-back.
    SystemCache = 3,
}

/// Rights and memory type that a mapping asks for, or that an entry grants.
///
/// ```
/// use iopt_formats::{Memory, Prot};
///
/// let ring = Prot::RW.cached();
/// assert!(ring.can_write() && !ring.can_execute());
/// assert_eq!(ring.memory(), Memory::WriteBack);
/// ```
#[derive(Clone, Copy, Eq, Hash, PartialEq)]
pub struct Prot(u8);

impl Prot {
    /// Unprivileged reads.
    pub const R: Self = Self::new(Rights::READ.union(Rights::USER), Memory::NonCacheable);
    /// Unprivileged writes. Several formats can only grant this together with reads.
    pub const W: Self = Self::new(Rights::WRITE.union(Rights::USER), Memory::NonCacheable);
    /// Unprivileged reads and writes.
    pub const RW: Self = Self::R.with(Rights::WRITE);
    /// The number of distinct values, for tables indexed by [`index`](Self::index).
    pub const COUNT: usize = 64;

    /// Creates a value from its parts.
    pub const fn new(rights: Rights, memory: Memory) -> Self {
        Self(rights.0 | (memory as u8) << 4)
    }

    /// Returns the rights.
    pub const fn rights(self) -> Rights {
        Rights(self.0 & Rights::ALL.0)
    }

    /// Returns the memory type.
    pub const fn memory(self) -> Memory {
        match self.0 >> 4 {
            0 => Memory::NonCacheable,
            1 => Memory::WriteBack,
            2 => Memory::Device,
            _ => Memory::SystemCache,
        }
    }

    /// Returns this value with `rights` added.
    #[must_use]
    pub const fn with(self, rights: Rights) -> Self {
        Self(self.0 | rights.0)
    }

    /// Returns this value with exactly `rights`.
    #[must_use]
    pub const fn with_rights(self, rights: Rights) -> Self {
        Self::new(rights, self.memory())
    }

    /// Returns this value with another memory type.
    #[must_use]
    pub const fn with_memory(self, memory: Memory) -> Self {
        Self::new(self.rights(), memory)
    }

    /// Returns this value for cached, coherent memory.
    #[must_use]
    pub const fn cached(self) -> Self {
        self.with_memory(Memory::WriteBack)
    }

    /// Returns this value for device registers.
    #[must_use]
    pub const fn device(self) -> Self {
        self.with_memory(Memory::Device)
    }

    /// Returns this value with instruction fetches allowed.
    #[must_use]
    pub const fn executable(self) -> Self {
        self.with(Rights::EXECUTE)
    }

    /// Returns this value for privileged requests only.
    #[must_use]
    pub const fn privileged(self) -> Self {
        Self(self.0 & !Rights::USER.0)
    }

    /// Returns whether reads are allowed.
    pub const fn can_read(self) -> bool {
        self.rights().contains(Rights::READ)
    }

    /// Returns whether writes are allowed.
    pub const fn can_write(self) -> bool {
        self.rights().contains(Rights::WRITE)
    }

    /// Returns whether instruction fetches are allowed.
    pub const fn can_execute(self) -> bool {
        self.rights().contains(Rights::EXECUTE)
    }

    /// Returns whether unprivileged requests are allowed.
    pub const fn is_user(self) -> bool {
        self.rights().contains(Rights::USER)
    }

    /// Returns a number below [`COUNT`](Self::COUNT) that is different for different values.
    #[inline]
    pub const fn index(self) -> usize {
        self.0 as usize & (Self::COUNT - 1)
    }

    /// Returns every value, in the order of [`index`](Self::index).
    pub fn all() -> impl Iterator<Item = Self> {
        (0..Self::COUNT as u8).map(Self)
    }
}

impl fmt::Display for Prot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let memory = match self.memory() {
            Memory::NonCacheable => "nc",
            Memory::WriteBack => "wb",
            Memory::Device => "device",
            Memory::SystemCache => "system-cache",
        };
        write!(f, "{} {memory}", self.rights())
    }
}

impl fmt::Debug for Prot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Prot({self})")
    }
}
