//! What a request needs and a translation allows.

use std::fmt;
use std::ops::BitAnd;

/// Reads, writes, both or nothing.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Rights {
    /// Reads are allowed, or asked for.
    pub read: bool,
    /// Writes are allowed, or asked for.
    pub write: bool,
}

impl Rights {
    /// Reads alone.
    pub const READ: Self = Self {
        read: true,
        write: false,
    };
    /// Writes alone.
    pub const WRITE: Self = Self {
        read: false,
        write: true,
    };
    /// Both.
    pub const ALL: Self = Self {
        read: true,
        write: true,
    };

    /// Returns whether nothing of `self` is missing in `other`.
    pub const fn is_within(self, other: Self) -> bool {
        (!self.read || other.read) && (!self.write || other.write)
    }
}

impl BitAnd for Rights {
    type Output = Self;

    fn bitand(self, other: Self) -> Self {
        Self {
            read: self.read && other.read,
            write: self.write && other.write,
        }
    }
}

impl fmt::Display for Rights {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match (self.read, self.write) {
            (true, true) => "rw",
            (true, false) => "r",
            (false, true) => "w",
            (false, false) => "nothing",
        })
    }
}
