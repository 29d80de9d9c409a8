//! Three levels, in the shape of a RISC-V device directory: 7, 9 and 8 bits of a number.

use core::cell::Cell;

use super::*;
use crate::mem::Heap;

type Entries = Directory<Heap, 4>;

/// Entries of four words whose bit 0 makes them valid.
struct Words;

impl Rules<4> for Words {
    fn used(&self, entry: &[u64; 4]) -> [u64; 4] {
        if self.is_valid(entry) {
            [u64::MAX; 4]
        } else {
            [1, 0, 0, 0]
        }
    }

    fn is_valid(&self, entry: &[u64; 4]) -> bool {
        entry[0] & 1 != 0
    }
}

const INITIAL: [u64; 4] = [6; 4];
const NUMBER: usize = 0xc3_a5_71;

fn directory() -> Entries {
    Directory::three_level(&Arc::new(Heap), 24, [7, 9], INITIAL).expect("memory")
}

/// Links an entry; returns how many pointers were described, too.
fn link(directory: &mut Entries, index: usize) -> (Result<(), LinkError>, usize) {
    let count = Cell::new(0);
    let describe = |oa: Oa| {
        count.set(count.get() + 1);
        Some(oa.get() | 1)
    };
    let linked = directory.link(index, describe, || Ok(()));
    (linked, count.get())
}

/// Returns the entry that hardware finds: by the pointers, whatever the maps say.
fn find(directory: &Entries, index: usize) -> Option<[u64; 4]> {
    let Levels::More {
        first,
        pieces,
        middle,
        ..
    } = &directory.levels
    else {
        return None;
    };
    let pointer = |word: [u64; 1]| (word[0] & 1 != 0).then_some(Oa::new(word[0] & !1));
    let at = pointer(first.get(index >> 16)?)?;
    let mut tables = middle.as_ref()?.tables.0.iter().map(|(_, it)| it);
    let table = tables.find(|table| table.oa() == at)?;
    let at = pointer(table.get(index >> 7 & 0x1ff)?)?;
    let piece = pieces.0.iter().map(|(_, it)| it).find(|it| it.oa() == at)?;
    piece.get(index & 0x7f)
}

#[test]
fn pointers_lead_to_the_piece_of_each_number() {
    let mut directory = directory();
    assert_eq!(find(&directory, NUMBER), None);
    assert_eq!(link(&mut directory, NUMBER), (Ok(()), 2));
    // In the same piece, in another one of the same table, in other tables.
    assert_eq!(link(&mut directory, NUMBER ^ 0x7f), (Ok(()), 0));
    assert_eq!(link(&mut directory, NUMBER ^ 0x80), (Ok(()), 1));
    assert_eq!(link(&mut directory, NUMBER ^ 0x1_0000), (Ok(()), 2));
    assert_eq!(link(&mut directory, 0), (Ok(()), 2));
    assert_eq!(link(&mut directory, (1 << 24) - 1), (Ok(()), 2));
    let beyond = LinkError::Absent { index: 1 << 24 };
    assert_eq!(link(&mut directory, 1 << 24), (Err(beyond), 0));
    let target = [1, 2, 3, 4];
    let numbers = [NUMBER, NUMBER ^ 0x7f, NUMBER ^ 0x80, NUMBER ^ 0x1_0000, 0];
    for (nth, &number) in numbers.iter().enumerate() {
        let written = directory.write(&Words, number, &target, || Ok(()));
        assert!(written.is_ok());
        for (other, &number) in numbers.iter().enumerate() {
            let expected = Some(if other <= nth { target } else { INITIAL });
            assert_eq!(directory.get(number), expected, "{number:#x}");
            assert_eq!(find(&directory, number), expected, "{number:#x}");
        }
    }
}

#[test]
fn what_is_not_linked_is_not_there() {
    let mut directory = directory();
    assert_eq!(link(&mut directory, NUMBER), (Ok(()), 2));
    for absent in [NUMBER ^ 0x80, NUMBER ^ 0x1_0000, 1 << 24] {
        assert_eq!(directory.get(absent), None);
        let written = directory.write(&Words, absent, &INITIAL, || Ok(()));
        assert_eq!(written, Err(Unwritten::Absent { index: absent }));
    }
    // A table of pointers, or a piece, that the level above cannot hold.
    for held in 0..2 {
        let mut count = 0;
        let describe = |oa: Oa| {
            count += 1;
            (count <= held).then_some(oa.get() | 1)
        };
        let number = 0x10_0000 << held;
        let unfit = directory.link(number, describe, || Ok(()));
        assert!(matches!(unfit, Err(LinkError::Address { .. })));
        assert_eq!(directory.get(number), None);
        // It can be tried again.
        assert_eq!(link(&mut directory, number), (Ok(()), 2 - held));
    }
    // Hardware that does not answer knows the entry no less.
    let silent = directory.link(NUMBER, |_| None, || Err(SyncError::TimedOut));
    assert_eq!(silent, Err(LinkError::Sync(SyncError::TimedOut)));
    assert_eq!(directory.get(NUMBER), Some(INITIAL));
}
