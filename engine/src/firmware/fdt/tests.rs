//! The reader of blobs: what it finds, and what it refuses with which error.

use std::vec::Vec;

use crate::firmware::fdt::writer::Writer;
use crate::firmware::fdt::{Event, FdtError, MAX_DEPTH, MAX_NAME, Reservation, Tree};

/// Where the structure block of a [`Writer`] without reservations begins.
const STRUCTURE: usize = 56;

fn walk(blob: &[u8]) -> Result<Vec<Event<'_>>, FdtError> {
    Tree::new(blob)?.events().collect()
}

fn refused(blob: &[u8]) -> FdtError {
    walk(blob).expect_err("it is malformed")
}

/// A blob with another word in its header, or anywhere.
fn with_word(mut blob: Vec<u8>, at: usize, word: u32) -> Vec<u8> {
    blob[at..at + 4].copy_from_slice(&word.to_be_bytes());
    blob
}

fn word(blob: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(blob[at..at + 4].try_into().expect("four bytes"))
}

fn small() -> Vec<u8> {
    Writer::new()
        .text("model", "a")
        .begin("child@1")
        .cells("reg", &[1, 2])
        .end()
        .finish()
}

#[test]
fn a_walk_finds_nodes_and_properties_in_their_order() {
    let blob = Writer::bare()
        .word(4)
        .begin("")
        .word(4)
        .text("model", "a")
        .word(4)
        .bytes("odd", &[1, 2, 3, 4, 5])
        .begin("child@1")
        .bytes("empty", &[])
        .end()
        .word(4)
        .begin("child@2")
        .end()
        .end()
        .word(4)
        .word(9)
        .blob();
    let found = walk(&blob).expect("it is sound");
    let shown: Vec<_> = found
        .iter()
        .map(|event| match event {
            Event::Begin(name) => (*name, &b"begin"[..]),
            Event::Property(property) => (property.name, property.value),
            Event::End => ("", &b"end"[..]),
        })
        .collect();
    assert_eq!(
        shown,
        [
            ("", &b"begin"[..]),
            ("model", b"a\0"),
            ("odd", &[1, 2, 3, 4, 5]),
            ("child@1", b"begin"),
            ("empty", b""),
            ("", b"end"),
            ("child@2", b"begin"),
            ("", b"end"),
            ("", b"end"),
        ]
    );
    for event in found {
        if let Event::Property(property) = event {
            let end = property.offset + property.value.len();
            assert_eq!(&blob[property.offset..end], property.value);
        }
    }
}

#[test]
fn nodes_are_found_by_path_and_their_properties_by_name() {
    let blob = Writer::new()
        .text("z", "1")
        .text("a", "2")
        .text("a", "3")
        .begin("soc")
        .begin("uart@1000")
        .text("m", "4")
        .end()
        .end()
        .finish();
    let tree = Tree::new(&blob).expect("it is sound");
    let nodes = tree.nodes().expect("it is sound");
    let all: Vec<_> = nodes.iter().collect();
    let paths: Vec<_> = all.iter().map(|node| nodes.path(*node)).collect();
    assert_eq!(paths, ["/", "/soc", "/soc/uart@1000"]);
    let value = |node: usize, name| nodes.property(all[node], name).map(|found| found.value);
    assert_eq!(value(0, "z"), Some(&b"1\0"[..]));
    assert_eq!(value(0, "a"), Some(&b"2\0"[..]), "the first one counts");
    assert_eq!(value(0, "m"), None);
    assert_eq!(
        value(1, "a"),
        None,
        "those of the node around are not its own"
    );
    assert_eq!(value(2, "m"), Some(&b"4\0"[..]));
}

#[test]
fn the_reservations_are_read_up_to_the_empty_one() {
    let blob = Writer::new()
        .reserve(0x8000_0000, 0x1000)
        .reserve(0, 1)
        .reserve(u64::MAX, 0)
        .finish();
    let tree = Tree::new(&blob).expect("it is sound");
    let found: Result<Vec<_>, _> = tree.reservations().collect();
    let [first, second, third] = [(0x8000_0000, 0x1000), (0, 1), (u64::MAX, 0)]
        .map(|(address, size)| Reservation { address, size });
    assert_eq!(found, Ok([first, second, third].to_vec()));
}

#[test]
fn reservations_without_an_end_are_truncated() {
    // They are moved to the end, where one of them is all there is room for.
    let mut blob = small();
    let at = blob.len().next_multiple_of(8);
    blob.resize(at, 0);
    blob.extend([1; 16]);
    let total = u32::try_from(blob.len()).expect("tests are small");
    let blob = with_word(blob, 4, total);
    let blob = with_word(blob, 16, total - 16);
    let tree = Tree::new(&blob).expect("its header is sound");
    let found: Vec<_> = tree.reservations().collect();
    assert_eq!(found.len(), 2);
    assert_eq!(
        found[1],
        Err(FdtError::Truncated {
            structure: "memory reservation block",
            offset: blob.len(),
            needed: 16,
            available: 0
        })
    );
}

#[test]
fn version_16_has_no_size_of_the_structure_block() {
    let blob = with_word(small(), 20, 16);
    // Where version 17 has that size is no header any more: rubbish does no harm.
    let blob = with_word(blob, 36, u32::MAX);
    assert_eq!(walk(&blob), walk(&small()));
    let later = with_word(small(), 20, 18);
    assert_eq!(
        walk(&later),
        walk(&small()),
        "it says that it is compatible"
    );
}

#[test]
fn a_header_is_refused_for_each_of_its_fields() {
    let truncated = |structure, offset, needed, available| FdtError::Truncated {
        structure,
        offset,
        needed,
        available,
    };
    let blob = small();
    let len = blob.len();
    let strings = word(&blob, 12) as usize;

    assert_eq!(refused(&[]), truncated("header", 0, 4, 0));
    assert_eq!(refused(&blob[..22]), truncated("header", 20, 4, 2));
    assert_eq!(
        refused(&with_word(small(), 0, 0xedfe_0dd0)),
        FdtError::Magic { found: 0xedfe_0dd0 }
    );
    for (version, compatible) in [(15, 15), (18, 18), (17, 18)] {
        let blob = with_word(with_word(small(), 20, version), 24, compatible);
        assert_eq!(
            refused(&blob),
            FdtError::Version {
                version,
                compatible
            }
        );
    }
    assert_eq!(
        refused(&blob[..len - 1]),
        truncated("tree", 0, len, len - 1)
    );
    assert_eq!(
        refused(&with_word(small(), 4, 39)),
        truncated("header", 0, 40, 39)
    );
    let past = u32::try_from(len + 4).expect("tests are small");
    let strings_size = word(&blob, 32) as usize;
    assert_eq!(
        refused(&with_word(small(), 12, past)),
        truncated("strings block", len + 4, strings_size, 0)
    );
    assert_eq!(
        refused(&with_word(small(), 32, 0xffff_ffff)),
        truncated("strings block", strings, 0xffff_ffff, len - strings)
    );
    assert_eq!(
        refused(&with_word(small(), 36, 0xffff_ffff)),
        truncated("structure block", STRUCTURE, 0xffff_ffff, len - STRUCTURE)
    );
    assert_eq!(
        refused(&with_word(small(), 16, past)),
        truncated("memory reservation block", len + 4, 0, 0)
    );
    assert_eq!(
        refused(&with_word(with_word(small(), 8, 58), 36, 4)),
        FdtError::Alignment {
            structure: "structure block",
            offset: 58
        }
    );
    assert_eq!(
        refused(&with_word(small(), 16, 44)),
        FdtError::Alignment {
            structure: "memory reservation block",
            offset: 44
        }
    );
    assert_eq!(
        refused(&with_word(small(), 8, 36)),
        FdtError::Overlap {
            first: "header",
            second: "structure block",
            offset: 36
        }
    );
    // One reservation and the empty one, from 40 to 72.
    let reserved = || Writer::new().reserve(1, 2).cells("a", &[]).finish();
    assert!(Tree::new(&reserved()).is_ok());
    for (field, name) in [(8, "structure block"), (12, "strings block")] {
        let expected = FdtError::Overlap {
            first: "memory reservation block",
            second: name,
            offset: 68,
        };
        let blob = with_word(reserved(), field, 68);
        assert_eq!(refused(&blob), expected);
    }
    let earlier = u32::try_from(strings - 1).expect("tests are small");
    assert_eq!(
        refused(&with_word(small(), 12, earlier)),
        FdtError::Overlap {
            first: "structure block",
            second: "strings block",
            offset: strings - 1
        }
    );
}

#[test]
fn a_walk_is_refused_for_each_thing_that_is_out_of_place() {
    let at = |writer: &Writer| STRUCTURE + writer.at();

    let writer = Writer::new();
    let offset = at(&writer);
    assert_eq!(
        refused(&writer.word(5).finish()),
        FdtError::Token { offset, token: 5 }
    );

    let writer = Writer::new().begin("a").end();
    let offset = at(&writer);
    assert_eq!(
        refused(&writer.text("b", "").finish()),
        FdtError::Property { offset }
    );

    assert_eq!(
        refused(&Writer::bare().text("b", "").finish()),
        FdtError::Property { offset: STRUCTURE }
    );
    assert_eq!(
        refused(&Writer::bare().finish()),
        FdtError::Unbalanced { offset: STRUCTURE }
    );

    let writer = Writer::new().begin("a").end().end();
    let offset = at(&writer);
    assert_eq!(refused(&writer.finish()), FdtError::Unbalanced { offset });

    let writer = Writer::new().begin("a").end();
    let offset = at(&writer);
    assert_eq!(
        refused(&writer.word(9).blob()),
        FdtError::Unbalanced { offset }
    );

    assert_eq!(
        refused(&Writer::bare().word(9).blob()),
        FdtError::Root { offset: STRUCTURE }
    );
    let writer = Writer::new().end();
    let offset = at(&writer);
    assert_eq!(
        refused(&writer.begin("").finish()),
        FdtError::Root { offset }
    );

    let writer = Writer::new();
    let offset = at(&writer);
    let truncated = |offset, needed, available| FdtError::Truncated {
        structure: "structure block",
        offset,
        needed,
        available,
    };
    assert_eq!(refused(&writer.blob()), truncated(offset, 4, 0));
    let writer = Writer::new().word(3).word(100).word(0);
    let offset = at(&writer);
    assert_eq!(refused(&writer.finish()), truncated(offset, 100, 8));
}

#[test]
fn nodes_are_nested_up_to_the_limit_and_no_deeper() {
    let nested = |depth: usize| {
        let writer = (1..depth).fold(Writer::new(), |writer, _| writer.begin("n"));
        let offset = STRUCTURE + writer.at();
        let blob = (1..depth).fold(writer, |writer, _| writer.end()).finish();
        (blob, offset)
    };
    let (blob, end) = nested(MAX_DEPTH);
    assert_eq!(walk(&blob).expect("it is sound").len(), 2 * MAX_DEPTH);
    let (blob, _) = nested(MAX_DEPTH + 1);
    assert_eq!(refused(&blob), FdtError::Depth { offset: end });
}

#[test]
fn names_end_within_the_limit_and_are_printable() {
    let longest = "n".repeat(MAX_NAME);
    let blob = Writer::new()
        .begin(&longest)
        .text(&longest, "")
        .end()
        .finish();
    walk(&blob).expect("it is sound");

    let name = |structure, offset| FdtError::Name { structure, offset };
    let longer = "n".repeat(MAX_NAME + 1);
    let offset = STRUCTURE + Writer::new().at() + 4;
    for bad in [&longer, "a\u{7}", "\u{e9}"] {
        let blob = Writer::new().begin(bad).end().finish();
        assert_eq!(refused(&blob), name("structure block", offset));
        let blob = Writer::new().text(bad, "").finish();
        let strings = word(&blob, 12) as usize;
        assert_eq!(refused(&blob), name("strings block", strings));
    }
    // A name that begins behind the strings, and one whose zero is behind them.
    let blob = Writer::new().text("ab", "").finish();
    let strings = word(&blob, 12) as usize;
    let name_at = STRUCTURE + Writer::new().at() + 8;
    assert_eq!(
        refused(&with_word(blob.clone(), name_at, 4)),
        name("strings block", strings + 4)
    );
    assert_eq!(
        refused(&with_word(blob, 32, 2)),
        name("strings block", strings)
    );
}

#[test]
fn a_walk_stops_after_an_error() {
    let blob = Writer::new().word(5).finish();
    let events: Vec<_> = Tree::new(&blob)
        .expect("its header is sound")
        .events()
        .collect();
    assert_eq!(events.len(), 2);
    assert!(events[0].is_ok() && events[1].is_err());
}
