//! Containers of the older interface: version 1, where any part can be unmapped, and version 2, where
//! only what was mapped can.
//!
//! Version 1 maps page by page, and splits areas at both ends of what is to be unmapped.

use iopt::ioas::{AccessError, Holes, SplitError, UnmapError};
use iopt_formats::Iova;
use iopt_tests::sink::{APERTURE_LAST, APERTURE_START, Call};

use crate::fixture::{
    BASE, Driver, Fixture, HALF, HUGE, PAGE, PAGE_COUNT, Runs, in_variants, memory, range,
};

in_variants!(
    crate::compat::fixture,
    {
        version_1: (true),
        version_2: (false),
    },
    [
        large_pages_are_off_in_version_1,
        what_a_container_translates_is_listed,
        single_pages_are_unmapped_in_any_order,
        slices_of_huge_pages_are_unmapped_in_version_1_only,
        an_area_that_software_uses_is_not_divided,
    ]
);

struct Container {
    space: Fixture,
    is_version_1: bool,
}

fn fixture(is_version_1: bool) -> Container {
    let space = Fixture::new(memory(PAGE_COUNT, Runs::Huge), 1);
    let switched = space.ioas.set_page_by_page(is_version_1);
    switched.expect("nothing is mapped");
    Container {
        space,
        is_version_1,
    }
}

impl Container {
    /// Unmaps as the container does: a range that is empty succeeds.
    fn unmap(&self, start: u64, len: u64) -> Result<u64, UnmapError> {
        if self.is_version_1 {
            for border in [start, start + len] {
                match self.space.ioas.split(Iova::new(border)) {
                    Ok(()) | Err(SplitError::Hole { .. }) => {}
                    Err(error) => panic!("{border:#x}: {error}"),
                }
            }
        }
        self.space.ioas.unmap(range(start, len), Holes::Tolerated)
    }
}

fn large_pages_are_off_in_version_1(container: &mut Container) {
    let ioas = &container.space.ioas;
    assert_eq!(ioas.page_by_page(), container.is_version_1);
    let alignment = if container.is_version_1 { PAGE } else { HALF };
    assert_eq!(ioas.alignment(), alignment);
    container.space.map(BASE, 0, HUGE);
    let op_count = if container.is_version_1 { 512 } else { 1 };
    assert_eq!(container.space.sinks[0].count(Call::Op), op_count);
}

fn what_a_container_translates_is_listed(container: &mut Container) {
    let [start, last] = [APERTURE_START, APERTURE_LAST].map(Iova::new);
    let ranges = container.space.ioas.iova_ranges();
    assert_eq!(ranges.len(), 1);
    assert_eq!((ranges[0].start(), ranges[0].last()), (start, last));
}

/// The numbers below `count` in an order that skips about.
fn shuffled(count: u64) -> impl Iterator<Item = u64> {
    // 7 divides no power of two.
    assert!(count.is_power_of_two());
    (0..count).map(move |index| (index * 7 + 3) % count)
}

fn single_pages_are_unmapped_in_any_order(container: &mut Container) {
    let space = &container.space;
    assert_eq!(container.unmap(BASE, 16 * PAGE).expect("empty is fine"), 0);
    assert_eq!(space.ioas.unmap_all().expect("empty is fine"), 0);
    space.map(BASE, 0, PAGE);
    assert_eq!(space.ioas.unmap_all().expect("nothing is in the way"), PAGE);
    for index in shuffled(16) {
        space.map(BASE + index * PAGE, index * PAGE, PAGE);
    }
    space.check_map(range(BASE, 16 * PAGE), 0);
    for (done, index) in shuffled(16).enumerate() {
        let bytes = container.unmap(BASE + index * PAGE, PAGE);
        assert_eq!(bytes.expect("it is an area"), PAGE);
        assert_eq!(space.source.pinned_count(), 15 - done as u64);
    }
}

fn slices_of_huge_pages_are_unmapped_in_version_1_only(container: &mut Container) {
    let space = &container.space;
    space.map(BASE, 0, 2 * HUGE);
    let len = 2 * HUGE / 16;
    let mut left = 2 * HUGE;
    for index in shuffled(16) {
        let start = BASE + index * len;
        match container.unmap(start, len) {
            Ok(bytes) => {
                assert!(container.is_version_1);
                left -= bytes;
                assert_eq!(bytes, len);
                assert!(space.sinks[0].translate(Iova::new(start)).is_none());
                assert_eq!(space.source.oa_of(index * len / PAGE), None);
            }
            Err(UnmapError::Splits { .. }) => assert!(!container.is_version_1),
            Err(error) => panic!("{start:#x}: {error}"),
        }
        assert_eq!(space.sinks[0].bytes(), left);
        assert_eq!(space.source.pinned_count(), left / PAGE);
    }
    assert_eq!(left == 0, container.is_version_1);
    if container.is_version_1 {
        assert_eq!(space.ioas.area_count(), 0);
    } else {
        space.check_map(range(BASE, 2 * HUGE), 0);
    }
}

fn an_area_that_software_uses_is_not_divided(container: &mut Container) {
    let space = &container.space;
    space.map(BASE, 0, 4 * PAGE);
    let driver = Driver::default();
    let access = space.ioas.access(driver.clone());
    access.pin(range(BASE, PAGE), true).expect("it is mapped");
    let split = |iova| space.ioas.split(Iova::new(iova));
    assert!(matches!(split(BASE + PAGE), Err(SplitError::Busy { .. })));
    assert!(split(BASE).is_ok(), "there is nothing to divide");
    assert!(matches!(
        split(BASE + 4 * PAGE),
        Err(SplitError::Hole { .. })
    ));
    access.unpin(range(BASE, PAGE)).expect("it is pinned");
    assert!(matches!(split(BASE + 7), Err(SplitError::Unaligned { .. })));
    match split(BASE + PAGE) {
        Ok(()) => assert!(container.is_version_1),
        // Its runs are mapped whole, and the domain cannot cut them.
        Err(SplitError::Domain { .. }) => assert!(!container.is_version_1),
        Err(error) => panic!("{error}"),
    }
    let count = if container.is_version_1 { 2 } else { 1 };
    assert_eq!(space.ioas.area_count(), count);
    // Software need not know where areas touch.
    driver.pin(&access, range(BASE, 2 * PAGE));
    let refused = access.unpin(range(BASE, PAGE));
    assert!(matches!(refused, Err(AccessError::NotPinned { .. })));
    space.check_map(range(BASE, 4 * PAGE), 0);
    assert_eq!(
        space.ioas.unmap_all().expect("the driver lets go"),
        4 * PAGE
    );
}
