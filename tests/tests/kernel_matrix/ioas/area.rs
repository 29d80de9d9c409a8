//! Areas are mapped, unmapped and copied.

use iopt::ioas::{CopyError, Holes, Ioas, MapError, UnmapError};
use iopt_formats::Prot;

use crate::fixture::{BASE, Fixture, HALF, PAGE, at, range};
use crate::ioas::in_every_variant;

in_every_variant!(
    areas_neither_overlap_nor_are_they_divided,
    an_unmap_takes_whole_areas_and_tells_their_bytes,
    areas_are_copied_inside_a_space_and_to_another,
    lengths_that_divide_a_leaf_are_refused_once_there_is_a_domain,
    a_copy_begins_and_ends_anywhere_inside_areas,
);

fn areas_neither_overlap_nor_are_they_divided(fixture: &mut Fixture) {
    for index in 0..10 {
        let unmapped = fixture.unmap(range(BASE + index * PAGE, PAGE));
        assert!(matches!(unmapped, Err(UnmapError::Hole { .. })));
    }
    for index in 0..10 {
        fixture.map(BASE + index * PAGE, index * PAGE, PAGE);
        fixture.check_map(range(BASE + index * PAGE, PAGE), index * PAGE);
    }
    for index in 0..10 {
        let bytes = fixture.unmap(range(BASE + index * PAGE, PAGE));
        assert_eq!(bytes.expect("it is mapped"), PAGE);
    }
    fixture.check_unpinned();

    fixture.map(BASE + 16 * PAGE, 0, 8 * PAGE);
    for part in [range(BASE + 16 * PAGE, PAGE), range(BASE + 23 * PAGE, PAGE)] {
        let unmapped = fixture.unmap(part);
        assert!(matches!(unmapped, Err(UnmapError::Splits { .. })));
    }
    let over = [
        range(BASE + 16 * PAGE, 8 * PAGE),
        range(BASE + 16 * PAGE, PAGE),
        range(BASE + 17 * PAGE, PAGE),
        range(BASE + 15 * PAGE, 2 * PAGE),
        range(BASE + 23 * PAGE, 2 * PAGE),
    ];
    for over in over {
        let len = over.len().expect("it is short");
        let mapped = fixture.ioas.map(fixture.slice(over.start().get(), 0, len));
        let with = range(BASE + 16 * PAGE, 8 * PAGE);
        assert!(matches!(mapped, Err(MapError::Occupied { with: met, .. }) if met == with));
    }
    fixture.check_map(range(BASE + 16 * PAGE, 8 * PAGE), 0);
    assert_eq!(
        fixture.ioas.unmap_all().expect("nothing is in the way"),
        8 * PAGE
    );
    assert_eq!(fixture.ioas.unmap_all().expect("nothing is there"), 0);
}

fn an_unmap_takes_whole_areas_and_tells_their_bytes(fixture: &mut Fixture) {
    let start = |index: u64| BASE + 10 * PAGE + index * 16 * PAGE;
    for index in 0..4 {
        fixture.map(start(index), index * 8 * PAGE, 8 * PAGE);
    }
    // One page of the first area is left out, then one of the last.
    for divides in [
        range(start(0) + PAGE, 56 * PAGE),
        range(start(0), 3 * 16 * PAGE + 7 * PAGE),
    ] {
        let unmapped = fixture.ioas.unmap(divides, Holes::Tolerated);
        assert!(matches!(unmapped, Err(UnmapError::Splits { .. })));
        assert_eq!(fixture.ioas.area_count(), 4, "all or none");
        (0..4).for_each(|index| fixture.check_map(range(start(index), 8 * PAGE), index * 8 * PAGE));
    }
    let all = range(BASE, 80 * PAGE);
    let refused = fixture.ioas.unmap(all, Holes::Refused);
    assert!(matches!(refused, Err(UnmapError::Hole { iova }) if iova.get() == BASE));
    assert_eq!(fixture.ioas.area_count(), 4);
    let sync_counts: Vec<u64> = sync_counts(fixture);
    let bytes = fixture.ioas.unmap(all, Holes::Tolerated);
    assert_eq!(bytes.expect("whole areas"), 32 * PAGE);
    let one_more: Vec<u64> = sync_counts.iter().map(|count| count + 1).collect();
    assert_eq!(
        self::sync_counts(fixture),
        one_more,
        "one sync for each domain"
    );
    fixture.check_unpinned();
}

fn sync_counts(fixture: &Fixture) -> Vec<u64> {
    let counts = fixture.sinks.iter();
    counts
        .map(|sink| sink.count(iopt_tests::sink::Call::Sync))
        .collect()
}

fn areas_are_copied_inside_a_space_and_to_another(fixture: &mut Fixture) {
    fixture.map(BASE, 0, PAGE);
    let source = range(BASE, PAGE);
    let copied = fixture
        .ioas
        .copy(&fixture.ioas, source, at(BASE + PAGE), Prot::RW);
    assert_eq!(copied.expect("it is free"), range(BASE + PAGE, PAGE));
    fixture.check_map(range(BASE + PAGE, PAGE), 0);
    let other = Ioas::new();
    let copied = other.copy(&fixture.ioas, source, at(0), Prot::RW);
    assert_eq!(copied.expect("it is free"), range(0, PAGE));
    if fixture.has_domain() {
        fixture.check_pinned(0, PAGE);
    }
    fixture
        .unmap(range(BASE, 2 * PAGE))
        .expect("both are mapped");
    fixture.check_unpinned();
    // What the other space shares is there still.
    let back = fixture
        .ioas
        .copy(&other, range(0, PAGE), at(BASE), Prot::RW);
    assert_eq!(back.expect("it is free"), source);
    fixture.check_map(source, 0);
    assert_eq!(other.unmap_all().expect("nothing is in the way"), PAGE);
    fixture.check_map(source, 0);
}

fn lengths_that_divide_a_leaf_are_refused_once_there_is_a_domain(fixture: &mut Fixture) {
    let alignment = if fixture.has_domain() { HALF } else { 1 };
    assert_eq!(fixture.ioas.alignment(), alignment);
    for len in 1..=2 * PAGE {
        let mapping = crate::fixture::slice(&fixture.pages, 0, len, iopt::ioas::Place::Anywhere);
        match fixture.ioas.map(mapping) {
            Ok(mapped) => {
                assert_eq!(len % alignment, 0, "{len} bytes fit no leaves");
                assert_eq!(mapped.len(), Some(len));
                fixture.check_map(mapped, 0);
                assert_eq!(fixture.unmap(mapped).expect("it is mapped"), len);
            }
            Err(MapError::Unaligned {
                alignment: told, ..
            }) => {
                assert_ne!(len % alignment, 0, "{len} bytes fit");
                assert_eq!(told, alignment);
            }
            Err(error) => panic!("{len} bytes: {error}"),
        }
    }
}

/// A source range slides over two areas that touch, in steps that fit nothing.
fn a_copy_begins_and_ends_anywhere_inside_areas(fixture: &mut Fixture) {
    let step = if fixture.has_domain() { HALF } else { 511 };
    let first = BASE + 16 * PAGE;
    fixture.map(first, 0, 8 * PAGE);
    fixture.map(first + 8 * PAGE, 8 * PAGE, 8 * PAGE);
    let len = 3 * PAGE;
    let to = BASE + 64 * PAGE;
    let mut copied_count = 0;
    for start in (first - len - step..first + 16 * PAGE + step).step_by(step as usize) {
        let is_inside = start >= first && start + len <= first + 16 * PAGE;
        let copied = fixture
            .ioas
            .copy(&fixture.ioas, range(start, len), at(to), Prot::RW);
        match copied {
            Ok(copied) => {
                assert!(is_inside, "{start:#x} reaches out");
                assert_eq!(copied, range(to, len));
                fixture.check_map(copied, start - first);
                assert_eq!(fixture.unmap(copied).expect("it is mapped"), len);
                copied_count += 1;
            }
            Err(CopyError::Hole { .. }) => assert!(!is_inside, "{start:#x} is mapped"),
            Err(error) => panic!("{start:#x}: {error}"),
        }
    }
    let inside = (first - len - step..=first + 13 * PAGE).step_by(step as usize);
    assert_eq!(copied_count, inside.filter(|&start| start >= first).count());
}
