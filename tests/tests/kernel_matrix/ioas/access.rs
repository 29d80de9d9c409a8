//! Software pins, reads and writes.

use iopt::ioas::AccessError;
use iopt_formats::Iova;

use crate::fixture::{BASE, Driver, Fixture, HALF, PAGE, check_runs, range};
use crate::ioas::in_every_variant;

in_every_variant!(
    pins_of_any_length_stay_while_domains_come_and_go,
    an_unmap_asks_for_a_pin_and_it_goes,
    bytes_are_read_and_written_across_pages,
    bytes_are_read_and_written_where_the_address_divides_a_page,
);

fn pins_of_any_length_stay_while_domains_come_and_go(fixture: &mut Fixture) {
    let driver = Driver::default();
    let access = fixture.ioas.access(driver.clone());
    for page_count in 1..16 {
        let len = page_count * PAGE;
        let all = range(BASE, len);
        fixture.map(BASE, 0, len);
        let runs = driver.pin(&access, all);
        check_runs(fixture, &runs, all, 0);
        fixture.check_pinned(0, len);
        // The same range once more, and one inside of it, hold on their own.
        access.pin(all, true).expect("it is mapped");
        let inside = range(BASE + len - PAGE, PAGE);
        access.pin(inside, false).expect("it is mapped");
        assert_eq!(access.pin_count(), 3);
        access.unpin(all).expect("it is pinned twice");
        access.unpin(inside).expect("it is pinned");
        let refused = access.unpin(range(BASE, len + PAGE));
        assert!(matches!(refused, Err(AccessError::NotPinned { .. })));
        fixture.check_pinned(0, len);

        let late = fixture.attach();
        fixture.check_map_of(&late, all, 0);
        fixture.check_pinned(0, len);
        fixture.detach(&late);
        fixture.check_pinned(0, len);
        assert_eq!(driver.call_count(), (page_count - 1) as usize);
        assert_eq!(fixture.unmap(all).expect("the driver lets go"), len);
        assert_eq!(driver.call_count(), page_count as usize);
        fixture.check_unpinned();
    }
    let refused = access.pin(range(BASE, PAGE), false);
    assert!(matches!(refused, Err(AccessError::Hole { .. })));
    access.destroy().expect("no callback runs");
}

fn an_unmap_asks_for_a_pin_and_it_goes(fixture: &mut Fixture) {
    let driver = Driver::default();
    let access = fixture.ioas.access(driver.clone());
    let elsewhere = Driver::default();
    let other = fixture.ioas.access(elsewhere.clone());
    fixture.map(BASE, 0, 4 * PAGE);
    fixture.map(BASE + 4 * PAGE, 4 * PAGE, PAGE);
    driver.pin(&access, range(BASE + PAGE, 2 * PAGE));
    other
        .pin(range(BASE + 4 * PAGE, PAGE), true)
        .expect("it is mapped");
    assert_eq!(
        fixture.unmap(range(BASE, 4 * PAGE)).expect("it lets go"),
        4 * PAGE
    );
    assert_eq!((driver.call_count(), access.pin_count()), (1, 0));
    assert_eq!(
        (elsewhere.call_count(), other.pin_count()),
        (0, 1),
        "its area stays"
    );
    let gone = access.unpin(range(BASE + PAGE, 2 * PAGE));
    assert!(matches!(gone, Err(AccessError::NotPinned { .. })));
    fixture.check_pinned(4 * PAGE, PAGE);
    other.destroy().expect("no callback runs");
    access.destroy().expect("no callback runs");
}

fn bytes_are_read_and_written_across_pages(fixture: &mut Fixture) {
    copies(fixture, 0);
}

fn bytes_are_read_and_written_where_the_address_divides_a_page(fixture: &mut Fixture) {
    copies(fixture, HALF);
}

/// Reads and writes through an area that begins at byte `offset` of the memory, everywhere around the
/// edge of a page, with and without a pin.
fn copies(fixture: &mut Fixture, offset: u64) {
    let len = 16 * PAGE;
    let access = fixture.ioas.access(Driver::default());
    let memory = std::sync::Arc::clone(fixture.pages.source());
    // Two areas, so that a copy crosses from one to the other, too.
    fixture.map(BASE + offset, offset, len / 2);
    fixture.map(BASE + offset + len / 2, offset + len / 2, len / 2);
    let edge = BASE + PAGE + offset;
    let mut turn = 0_u8;
    for start in edge - 50..edge + 50 {
        for len in 1..64 {
            turn = turn.wrapping_add(1);
            let sent: Vec<u8> = (0..len).map(|index| turn ^ (index << 2)).collect();
            let mut got = vec![0; sent.len()];
            access.write(Iova::new(start), &sent).expect("it is mapped");
            memory.read(start - BASE, &mut got).expect("it is there");
            assert_eq!(got, sent, "{len} bytes written at {start:#x}");
            let flipped: Vec<u8> = sent.iter().map(|byte| !byte).collect();
            memory.write(start - BASE, &flipped).expect("it is there");
            access
                .read(Iova::new(start), &mut got)
                .expect("it is mapped");
            assert_eq!(got, flipped, "{len} bytes read at {start:#x}");
        }
    }
    let sent: Vec<u8> = (0..len).map(|index| (index % 251) as u8).collect();
    let mut got = vec![0; sent.len()];
    access
        .write(Iova::new(BASE + offset), &sent)
        .expect("it is mapped");
    memory.read(offset, &mut got).expect("it is there");
    assert_eq!(got, sent);
    got.fill(0);
    access
        .read(Iova::new(BASE + offset), &mut got)
        .expect("it is mapped");
    assert_eq!(got, sent);

    let beyond = access.write(Iova::new(BASE + offset + len - 1), b"no");
    assert!(matches!(beyond, Err(AccessError::Hole { iova }) if iova.get() == BASE + offset + len));
    memory.read(offset, &mut got).expect("it is there");
    assert_eq!(got, sent, "nothing was written");
    access.destroy().expect("no callback runs");
}
