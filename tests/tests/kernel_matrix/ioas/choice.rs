//! Where areas may lie, and where they are placed.

use iopt::ioas::{AllowError, MapError, Place, ReserveError};
use iopt_formats::{Iova, IovaRange};
use iopt_tests::sink::{APERTURE_LAST, APERTURE_START};

use crate::fixture::{BASE, Fixture, HALF, PAGE, range, slice};
use crate::ioas::in_every_variant;

in_every_variant!(
    chosen_addresses_fit_the_length_the_reserved_and_the_allowed,
    a_reservation_of_nearly_everything_leaves_no_room,
    what_is_allowed_cannot_be_reserved_nor_the_other_way_round,
    free_ranges_are_what_nobody_reserved,
);

const OWNER: u64 = 7;

fn chosen_addresses_fit_the_length_the_reserved_and_the_allowed(fixture: &mut Fixture) {
    // The lowest bit of a length divides where it is placed.
    let lens = [
        PAGE,
        5 * PAGE,
        8 * PAGE,
        3 * 16 * PAGE,
        64 * PAGE,
        512 * PAGE,
    ];
    let mut mapped = Vec::new();
    for len in lens {
        let area = fixture.map_anywhere(0, len);
        // What the memory itself does not fit brings no larger page.
        let bits = len | fixture.pages.source().low_bits() | 2 << 20;
        assert!(
            area.start().get().trailing_zeros() >= bits.trailing_zeros(),
            "{area}"
        );
        assert_ne!(area.start().get(), 0);
        fixture.check_map(area, 0);
        mapped.push(area);
    }
    for area in mapped {
        fixture.unmap(area).expect("it is mapped");
    }

    let reserved = range(BASE, 0x10_0000);
    fixture.ioas.reserve(reserved, OWNER).expect("it is free");
    let mapped: Vec<IovaRange> = (0..8).map(|_| fixture.map_anywhere(0, 32 * PAGE)).collect();
    assert!(mapped.iter().all(|area| !area.overlaps(reserved)));
    for area in mapped {
        fixture.unmap(area).expect("it is mapped");
    }

    let over = fixture.ioas.allow(&[range(BASE + PAGE, 16 * PAGE)]);
    assert!(matches!(over, Err(AllowError::Reserved { with, .. }) if with == reserved));
    let allowed = [
        range(BASE + 0x20_0000, 8 * PAGE),
        range(BASE + 0x40_0000, 64 * PAGE),
    ];
    fixture.ioas.allow(&allowed).expect("nobody reserved it");
    let mut mapped = Vec::new();
    for len in [PAGE, 8 * PAGE, 32 * PAGE, 7 * PAGE] {
        let area = fixture.map_anywhere(0, len);
        assert!(
            allowed.iter().any(|allowed| allowed.contains(area)),
            "{area}"
        );
        mapped.push(area);
    }
    let full = fixture
        .ioas
        .map(slice(&fixture.pages, 0, 64 * PAGE, Place::Anywhere));
    assert!(matches!(full, Err(MapError::NoSpace { .. })));
    // What is placed by hand need not be allowed.
    fixture.map(BASE + 0x60_0000, 0, PAGE);
}

fn a_reservation_of_nearly_everything_leaves_no_room(fixture: &mut Fixture) {
    let last = Iova::new(u64::MAX);
    for start in [6, 1, 0] {
        let most = IovaRange::new(Iova::new(start), last).expect("it is in order");
        fixture
            .ioas
            .reserve(most, OWNER)
            .expect("nothing is mapped");
        for len in [HALF, PAGE, 5 * PAGE] {
            let mapped = fixture
                .ioas
                .map(slice(&fixture.pages, 0, len, Place::Anywhere));
            assert!(matches!(mapped, Err(MapError::NoSpace { .. })));
        }
        fixture.ioas.release_reserved(OWNER);
    }
    assert_eq!(fixture.ioas.area_count(), 0);
    fixture.map_anywhere(0, PAGE);
}

fn what_is_allowed_cannot_be_reserved_nor_the_other_way_round(fixture: &mut Fixture) {
    let ioas = &fixture.ioas;
    let allowed = range(BASE, 16 * PAGE);
    let inside = range(BASE + PAGE, PAGE);
    ioas.allow(&[allowed]).expect("nobody reserved it");
    let refused = ioas.reserve(inside, OWNER);
    assert_eq!(
        refused,
        Err(ReserveError::Allowed {
            range: inside,
            with: allowed
        })
    );
    ioas.allow(&[]).expect("an empty list is always possible");
    ioas.reserve(inside, OWNER)
        .expect("it is not allowed any more");
    let refused = ioas.allow(&[allowed]);
    assert_eq!(
        refused,
        Err(AllowError::Reserved {
            range: allowed,
            with: inside
        })
    );

    // The old list stays if the new one is wrong.
    ioas.release_reserved(OWNER);
    ioas.allow(&[allowed]).expect("nobody reserved it");
    let one_byte = range(BASE, 1);
    assert_eq!(
        ioas.allow(&[one_byte]),
        Err(AllowError::OneByte { range: one_byte })
    );
    let twice = ioas.allow(&[inside, range(BASE + 2 * PAGE - 1, PAGE)]);
    assert!(matches!(twice, Err(AllowError::Overlap { .. })));
    assert!(ioas.reserve(inside, OWNER).is_err());
    // An area keeps owners out, too.
    fixture.map(BASE + 32 * PAGE, 0, PAGE);
    let area = range(BASE + 32 * PAGE, PAGE);
    let refused = ioas.reserve(area, OWNER);
    assert_eq!(
        refused,
        Err(ReserveError::Occupied {
            range: area,
            with: area
        })
    );
}

fn free_ranges_are_what_nobody_reserved(fixture: &mut Fixture) {
    let (start, last, alignment) = if fixture.has_domain() {
        (APERTURE_START, APERTURE_LAST, HALF)
    } else {
        (0, u64::MAX, 1)
    };
    let [start, last] = [start, last].map(Iova::new);
    let all = IovaRange::new(start, last).expect("it is in order");
    assert_eq!(fixture.ioas.iova_ranges(), [all]);
    assert_eq!(fixture.ioas.alignment(), alignment);
    let reserved = range(BASE + PAGE, PAGE);
    fixture.ioas.reserve(reserved, OWNER).expect("it is free");
    let below = IovaRange::new(start, Iova::new(BASE + PAGE - 1)).expect("it is in order");
    let above = IovaRange::new(Iova::new(BASE + 2 * PAGE), last).expect("it is in order");
    assert_eq!(fixture.ioas.iova_ranges(), [below, above]);
    let refused = fixture.ioas.map(fixture.slice(BASE, 0, 2 * PAGE));
    assert!(matches!(refused, Err(MapError::Reserved { with, .. }) if with == reserved));
    // What is allowed makes no difference.
    fixture
        .ioas
        .allow(&[range(BASE + 16 * PAGE, PAGE)])
        .expect("nobody reserved it");
    assert_eq!(fixture.ioas.iova_ranges(), [below, above]);
    fixture.ioas.release_reserved(OWNER);
    assert_eq!(fixture.ioas.iova_ranges(), [all]);
}
