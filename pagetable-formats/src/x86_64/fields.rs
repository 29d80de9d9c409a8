//! Names of the fields of a long-mode entry.

use core::fmt;

use crate::Field;

/// Who reads the tables; it gives names to the bits that the codec leaves alone.
pub trait Walker: Copy + fmt::Debug + Eq + Send + Sync + 'static {
    /// The fields of every kind of entry.
    const FIELDS: Fields;
}

/// The fields of every kind of entry.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Fields {
    /// Of an entry that points to a table.
    pub table: &'static [Field],
    /// Of a leaf above level 0.
    pub large_page: &'static [Field],
    /// Of a leaf of level 0.
    pub page: &'static [Field],
}

/// Completes the fields that all walkers share with those of one walker, in every kind of entry and
/// in leaves.
macro_rules! name_fields {
    (everywhere: [$($every:expr),*], leaves: [$($leaf:expr),*] $(,)?) => {
        $crate::x86_64::Fields {
            table: &[
                $crate::Field::new("P", 0, 0),
                $crate::Field::new("R/W", 1, 1),
                $crate::Field::new("U/S", 2, 2),
                $crate::Field::new("PWT", 3, 3),
                $crate::Field::new("PCD", 4, 4),
                $crate::Field::new("A", 5, 5),
                $crate::Field::new("PS", 7, 7),
                $crate::Field::new("PND", 9, 9),
                $crate::Field::new("ADDR", 51, 12),
                $($every,)*
            ],
            large_page: &[
                $crate::Field::new("P", 0, 0),
                $crate::Field::new("R/W", 1, 1),
                $crate::Field::new("U/S", 2, 2),
                $crate::Field::new("PWT", 3, 3),
                $crate::Field::new("PCD", 4, 4),
                $crate::Field::new("A", 5, 5),
                $crate::Field::new("D", 6, 6),
                $crate::Field::new("PS", 7, 7),
                $crate::Field::new("G", 8, 8),
                $crate::Field::new("PAT", 12, 12),
                $crate::Field::new("ADDR", 51, 13),
                $($every,)*
                $($leaf,)*
            ],
            page: &[
                $crate::Field::new("P", 0, 0),
                $crate::Field::new("R/W", 1, 1),
                $crate::Field::new("U/S", 2, 2),
                $crate::Field::new("PWT", 3, 3),
                $crate::Field::new("PCD", 4, 4),
                $crate::Field::new("A", 5, 5),
                $crate::Field::new("D", 6, 6),
                $crate::Field::new("PAT", 7, 7),
                $crate::Field::new("G", 8, 8),
                $crate::Field::new("ADDR", 51, 12),
                $($every,)*
                $($leaf,)*
            ],
        }
    };
}

pub(crate) use name_fields;
