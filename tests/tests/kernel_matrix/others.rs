//! What needs no variant: an empty space, options, and which space a container uses.

use std::sync::Arc;

use iopt::domain::Domain as _;
use iopt::ioas::{AccessError, Ioas};
use iopt::pin::Budget;
use iopt_tests::sink::ModelSink;

use crate::fixture::{BASE, Driver, PAGE, PAGE_COUNT, Runs, at, memory, range, slice};

#[test]
fn a_space_without_anything_ends() {
    let ioas = Ioas::new();
    assert_eq!((ioas.area_count(), ioas.domain_count()), (0, 0));
    assert_eq!(ioas.unmap_all().expect("nothing is there"), 0);
    drop(ioas);
}

/// How pins are counted, and whether pages are mapped one by one, is no matter of the whole program.
#[test]
fn options_belong_to_one_space_or_one_memory() {
    let (one, other) = (Ioas::new(), Ioas::new());
    one.set_page_by_page(true).expect("there are no areas");
    assert_eq!((one.page_by_page(), other.page_by_page()), (true, false));

    let budget = Arc::new(Budget::new(2 * PAGE));
    let counted = iopt::ioas::Pages::new(memory(4, Runs::Huge), Some(Arc::clone(&budget)));
    let free = iopt::ioas::Pages::new(memory(4, Runs::Huge), None);
    let sink = Arc::new(ModelSink::small());
    one.attach(sink.clone()).expect("nothing is mapped");
    one.map(slice(&free, 0, 4 * PAGE, at(BASE)))
        .expect("nobody counts");
    assert_eq!(budget.used(), 0);
    let refused = one.map(slice(&counted, 0, 3 * PAGE, at(BASE + 4 * PAGE)));
    assert!(refused.is_err(), "that is one page too much");
    assert_eq!(budget.used(), 0);
    one.map(slice(&counted, 0, 2 * PAGE, at(BASE + 4 * PAGE)))
        .expect("as much as may be");
    assert_eq!(budget.used(), 2 * PAGE);
    drop(one);
    assert_eq!(budget.used(), 0);
    assert!(sink.caps().tracks_dirty);
    sink.assert_clean();
}

/// Which space a user works on is a binding of the user's: there is none, one, another, none again.
#[test]
fn an_access_is_bound_to_the_space_that_it_was_told() {
    let pages = iopt::ioas::Pages::new(memory(PAGE_COUNT, Runs::Huge), None);
    let spaces = [0, 1].map(|page| {
        let ioas = Arc::new(Ioas::new());
        ioas.map(slice(&pages, page * PAGE, PAGE, at(BASE)))
            .expect("it is free");
        pages
            .source()
            .write(page * PAGE, &[page as u8 + 1])
            .expect("it is there");
        ioas
    });
    let read = |access: &iopt::ioas::Access| {
        let mut byte = [0];
        access
            .read(iopt_formats::Iova::new(BASE), &mut byte)
            .map(|()| byte[0])
    };
    let access = spaces[0].access(Driver::default());
    assert_eq!(read(&access).expect("it is mapped"), 1);
    access.replace(&spaces[1]).expect("nothing is pinned");
    assert_eq!(read(&access).expect("it is mapped"), 2);
    access.detach().expect("nothing is pinned");
    assert!(matches!(read(&access), Err(AccessError::Detached)));
    let refused = access.pin(range(BASE, PAGE), false);
    assert!(matches!(refused, Err(AccessError::Detached)));
    access.detach().expect("it is detached already");
    access.replace(&spaces[0]).expect("nothing is pinned");
    assert_eq!(read(&access).expect("it is mapped"), 1);
    access.destroy().expect("no callback runs");
    for ioas in spaces {
        assert_eq!(Arc::strong_count(&ioas), 1, "nobody else has the space");
    }
}
