//! Words and tables worked out by hand from the manual.

mod config;
mod foreign;
mod geometry;
mod laws;
mod vectors;

use crate::{Entry, Format, Leaf, Level, Memory, Oa, PageSize, Prot, Rights};

const KIB_64: PageSize = PageSize::KIB_64;
const MIB_32: PageSize = PageSize::from_lg2(25);
const MIB_512: PageSize = PageSize::from_lg2(29);
const GIB_16: PageSize = PageSize::from_lg2(34);
const GIB_64: PageSize = PageSize::from_lg2(36);
const GIB_512: PageSize = PageSize::from_lg2(39);
const TIB_4: PageSize = PageSize::from_lg2(42);

/// Unprivileged reads, writes and fetches of cached memory.
const RWX: Prot = Prot::RW.cached().executable();

/// Decodes a word that has to be a leaf.
fn leaf<F: Format>(format: &F, word: u64, level: Level) -> Leaf {
    match format.decode(word, level) {
        Ok(Entry::Leaf(leaf)) => leaf,
        other => panic!("{word:#x} at level {level} is {other:?}"),
    }
}

/// Decodes a word that has to be a table, to the rights that it leaves.
fn limit<F: Format>(format: &F, word: u64) -> Rights {
    match format.decode(word, Level(1)) {
        Ok(Entry::Table(table)) => table.limit,
        other => panic!("{word:#x} is {other:?}"),
    }
}

/// Checks the word of item `i`, both ways.
#[track_caller]
fn assert_item<F: Format>(
    format: &F,
    (oa, size, prot, i): (u64, PageSize, Prot, usize),
    word: u64,
) {
    let encoded = format.leaf_item(Oa::new(oa), size, prot, i);
    assert_eq!(
        encoded, word,
        "encoded {encoded:#018x}, by hand {word:#018x}"
    );
    let found = leaf(format, word, F::level_of(size));
    assert_eq!(found.oa, Oa::new(oa + i as u64 * found.span.bytes()));
    assert_eq!(
        (found.size, Some(found.prot)),
        (size, format.effective(prot))
    );
    assert!(found.accessed);
}

/// Checks the word of a leaf of one item, both ways.
#[track_caller]
fn assert_leaf<F: Format>(format: &F, oa: u64, size: PageSize, prot: Prot, word: u64) {
    assert_item(format, (oa, size, prot, 0), word);
}

const fn device(rights: Rights) -> Prot {
    Prot::new(rights, Memory::Device)
}
