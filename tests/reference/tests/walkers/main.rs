//! Tables written word by word, and what hardware makes of them.
//!
//! The words are worked out from the layouts of the manuals, not with the crate's own helpers.

mod amd;
mod arm;
mod arm_contiguous;
mod arm_geometry;
mod hostile;
mod nested;
mod riscv;
mod vtd;
mod x86;

use std::cell::Cell;

use iopt_reference::{Fault, Item, PageMap, Rigour, ScanError, Setup, Table, Translation};

const LIMIT: u64 = 1 << 16;

/// Builds a memory from `(address, word)` pairs.
fn memory(words: &[(u64, u64)]) -> PageMap {
    let mut memory = PageMap::new();
    for &(address, word) in words {
        memory.write64(address, word);
    }
    memory
}

/// Returns the input address and the translation of every leaf item.
fn leaves(table: &Table, memory: &PageMap) -> Result<Vec<(u64, Translation)>, ScanError> {
    let mut found = Vec::new();
    table.enumerate(memory, LIMIT, Rigour::Strict, |item| {
        assert_eq!(item.len, item.translation.item_len);
        found.push((item.iova, item.translation));
    })?;
    Ok(found)
}

/// Returns the address of the first word that a walk of `iova` reads.
fn first_read(table: &Table, iova: u64) -> Result<u64, Fault> {
    match table.walk(&|_| None, iova) {
        Err(Fault::MissingMemory { address }) => Ok(address),
        Err(fault) => Err(fault),
        Ok(_) => unreachable!("nothing was read"),
    }
}

/// Returns the rights as letters, as in `rwxu`.
fn rights(translation: &Translation) -> String {
    let Translation {
        read,
        write,
        execute,
        user,
        ..
    } = *translation;
    let letters = [(read, 'r'), (write, 'w'), (execute, 'x'), (user, 'u')];
    letters
        .iter()
        .map(|&(right, letter)| if right { letter } else { '-' })
        .collect()
}

#[test]
fn an_enumeration_stops_at_the_limit_of_items() {
    let table = Table::VtdSecond(iopt_reference::vtd::Config::new(0x1000, 3));
    let memory = memory(&[(0x1000, 0x83), (0x1008, 0x4000_0083), (0x1010, 0x8000_0083)]);
    let count = Cell::new(0);
    let scan = |limit| {
        table.enumerate(&memory, limit, Rigour::Strict, |_: Item| {
            count.set(count.get() + 1);
        })
    };
    assert_eq!(scan(2), Err(ScanError::Limit { limit: 2 }));
    assert_eq!(count.replace(0), 2);
    assert_eq!(scan(3), Ok(()));
    assert_eq!(count.get(), 3);
}

#[test]
fn an_enumeration_stops_at_the_limit_of_tables_even_without_items() {
    // Every entry of the root points at the same empty table.
    let mut memory = memory(&[(0x2000, 0)]);
    for index in 0..512 {
        memory.write64(0x1000 + 8 * index, 0x2003);
    }
    let table = Table::VtdSecond(iopt_reference::vtd::Config::new(0x1000, 3));
    let scan = |limit| table.enumerate(&memory, limit, Rigour::Strict, |_| ());
    assert_eq!(scan(512), Err(ScanError::Limit { limit: 512 }));
    assert_eq!(scan(513), Ok(()));
}

#[test]
fn a_table_that_is_its_own_ancestor_is_refused() {
    let memory = memory(&[(0x1008, 0x2003), (0x2000, 0x1003)]);
    let table = Table::VtdSecond(iopt_reference::vtd::Config::new(0x1000, 3));
    assert_eq!(
        leaves(&table, &memory),
        Err(ScanError::Loop { table: 0x1000 })
    );
    // A walk ends all the same: 0x1008 as a level 1 entry is a page.
    assert_eq!(table.walk(&memory, 0x4000_1000).unwrap().oa, 0x2000);
}

#[test]
fn a_missing_table_is_never_passed_over() {
    let memory = memory(&[(0x1000, 0x5003)]);
    let table = Table::VtdSecond(iopt_reference::vtd::Config::new(0x1000, 3));
    let scan = table.enumerate(&memory, LIMIT, Rigour::Lenient, |_| ());
    assert_eq!(scan, Err(ScanError::MissingMemory { address: 0x5000 }));
    assert_eq!(
        table.walk(&memory, 8 << 12),
        Err(Fault::MissingMemory { address: 0x5000 })
    );
}

#[test]
fn output_sizes_are_those_that_entries_can_hold() {
    let vtd = |oa_bits| {
        let config = iopt_reference::vtd::Config::new(0, 3);
        iopt_reference::vtd::Config { oa_bits, ..config }.check()
    };
    let x86 = |oa_bits| iopt_reference::x86::Config::vtd_first(0, 4, oa_bits).check();
    let amd = |oa_bits| {
        let config = iopt_reference::amd::Config::new(0, 3);
        iopt_reference::amd::Config { oa_bits, ..config }.check()
    };
    for check in [vtd, x86, amd] {
        assert_eq!((check(32), check(52)), (Ok(()), Ok(())));
        for oa_bits in [0, 31, 53, 255] {
            assert_eq!(check(oa_bits), Err(Setup::OutputBits { oa_bits }));
        }
    }
    let riscv = |oa_bits| {
        use iopt_reference::riscv::{Config, Stage};
        let config = Config::new(Stage::First, 0, 3);
        Config { oa_bits, ..config }.check()
    };
    assert_eq!(riscv(56), Ok(()));
    assert_eq!(riscv(57), Err(Setup::OutputBits { oa_bits: 57 }));
}

#[test]
fn illegal_settings_are_named_before_anything_is_read() {
    let table = Table::VtdSecond(iopt_reference::vtd::Config::new(0x1000, 6));
    let setup = Setup::Levels { levels: 6 };
    assert_eq!(table.check(), Err(setup));
    assert_eq!(table.walk(&memory(&[]), 0), Err(Fault::Setup(setup)));
    assert_eq!(leaves(&table, &memory(&[])), Err(ScanError::Setup(setup)));
    assert_eq!(
        Fault::Setup(setup).to_string(),
        "the format has no table of this level or levels: 6"
    );
}
