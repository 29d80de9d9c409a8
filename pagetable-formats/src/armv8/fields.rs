//! Names of the descriptor fields, for people who read tables (DDI 0487, tables D8-50 to D8-53).

use super::granule::item_lg2;
use super::shape::{TABLE_OR_PAGE, VALID};
use crate::{Field, Level};

/// Which descriptors a table has.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Dialect {
    Stage1,
    Stage2,
    Mali,
}

/// A list of fields that is put together at compile time.
struct List {
    fields: [Field; 20],
    len: usize,
}

impl List {
    const fn new() -> Self {
        Self {
            fields: [Field::new("Valid", 0, 0); 20],
            len: 1,
        }
    }

    const fn with(mut self, name: &'static str, hi: u8, lo: u8) -> Self {
        self.fields[self.len] = Field::new(name, hi, lo);
        self.len += 1;
        self
    }

    fn as_slice(&'static self) -> &'static [Field] {
        &self.fields[..self.len]
    }
}

/// Where the address stands in a descriptor whose lowest address bit in place is `lo`.
const fn with_address(list: List, granule: u8, wide: bool, name: &'static str, lo: u8) -> List {
    match (granule, wide) {
        (16, true) => list.with(name, 47, lo).with("OA[51:48]", 15, 12),
        (_, true) => list.with(name, 49, lo).with("OA[51:50]", 9, 8),
        (_, false) => list.with(name, 47, lo),
    }
}

/// The fields of a leaf of `level`.
const fn leaf(dialect: Dialect, granule: u8, wide: bool, level: Level) -> List {
    // Levels without blocks have no fields that would need a place.
    let item = item_lg2(granule, level);
    let lo = if item < 47 { item } else { 47 };
    let mut list = with_address(List::new(), granule, wide, "OA", lo);
    list = list.with("Type", 1, 1);
    list = match dialect {
        Dialect::Stage1 => list
            .with("AttrIndx", 4, 2)
            .with("NS", 5, 5)
            .with("AP[2:1]", 7, 6)
            .with("nG", 11, 11)
            .with("GP", 50, 50)
            .with("PXN", 53, 53)
            .with("UXN", 54, 54),
        Dialect::Stage2 => list
            .with("MemAttr", 5, 2)
            .with("S2AP", 7, 6)
            .with("XN", 54, 53),
        Dialect::Mali => list
            .with("AttrIndx", 4, 2)
            .with("Access", 7, 6)
            .with("XN", 54, 53),
    };
    if !wide || granule == 16 {
        list = list.with("SH", 9, 8);
    }
    if matches!(dialect, Dialect::Mali) {
        return list;
    }
    if level.0 > 0 {
        list = list.with("nT", 16, 16);
    }
    list.with("AF", 10, 10)
        .with("DBM", 51, 51)
        .with("Contiguous", 52, 52)
        .with("Software", 58, 55)
        .with("PBHA", 62, 59)
}

/// The fields of a table descriptor.
const fn table(dialect: Dialect, granule: u8, wide: bool) -> List {
    let list = with_address(List::new(), granule, wide, "NLTA", granule).with("Type", 1, 1);
    match dialect {
        Dialect::Stage1 => list
            .with("PXNTable", 59, 59)
            .with("UXNTable", 60, 60)
            .with("APTable", 62, 61)
            .with("NSTable", 63, 63),
        Dialect::Stage2 | Dialect::Mali => list,
    }
}

/// The lists of one granule, stage and width; all are made at compile time.
struct Lists {
    page: List,
    blocks: [List; 3],
    table: List,
}

impl Lists {
    const fn new(dialect: Dialect, granule: u8, wide: bool) -> Self {
        Self {
            page: leaf(dialect, granule, wide, Level(0)),
            blocks: [
                leaf(dialect, granule, wide, Level(1)),
                leaf(dialect, granule, wide, Level(2)),
                leaf(dialect, granule, wide, Level(3)),
            ],
            table: table(dialect, granule, wide),
        }
    }
}

const INVALID: &[Field] = &[Field::new("Valid", 0, 0), Field::new("IGNORED", 63, 1)];

/// Returns the fields of `word` in a table of `level`.
pub(super) fn of<const G: u8>(
    dialect: Dialect,
    wide: bool,
    word: u64,
    level: Level,
) -> &'static [Field] {
    let lists = match (dialect, wide) {
        (Dialect::Stage1, false) => const { &Lists::new(Dialect::Stage1, G, false) },
        (Dialect::Stage1, true) => const { &Lists::new(Dialect::Stage1, G, true) },
        (Dialect::Stage2, false) => const { &Lists::new(Dialect::Stage2, G, false) },
        (Dialect::Stage2, true) => const { &Lists::new(Dialect::Stage2, G, true) },
        (Dialect::Mali, _) => const { &Lists::new(Dialect::Mali, G, false) },
    };
    if word & VALID == 0 {
        INVALID
    } else if level == Level::LEAF {
        lists.page.as_slice()
    } else if word & TABLE_OR_PAGE != 0 {
        lists.table.as_slice()
    } else {
        lists.blocks[usize::from(level.0.min(3)) - 1].as_slice()
    }
}
