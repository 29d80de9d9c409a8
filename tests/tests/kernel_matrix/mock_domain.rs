//! One or two domains over memory that lies in single pages, in huge pages, or in a file.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use iopt::ioas::{AttachError, DirtyError, HoldError, Ioas, MapError, SplitError};
use iopt::pin::{Access, FileMemory, MemoryError, PinError, Simulated, Source};
use iopt_formats::{Iova, PageSize, Prot};
use iopt_tests::sink::{Call, ModelSink};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};

use crate::fixture::{
    BASE, Driver, Fixture, HALF, HUGE, PAGE, PAGE_COUNT, Runs, assert_gone, at, check_runs,
    dynamic, in_variants, memory, range, slice,
};

in_variants!(
    crate::mock_domain::fixture,
    {
        one_domain: (1, crate::mock_domain::Kind::Pages),
        one_domain_large: (1, crate::mock_domain::Kind::Huge),
        two_domains: (2, crate::mock_domain::Kind::Pages),
        two_domains_large: (2, crate::mock_domain::Kind::Huge),
        one_domain_file: (1, crate::mock_domain::Kind::File),
        one_domain_file_large: (1, crate::mock_domain::Kind::LargeFile),
    },
    [
        memory_that_is_not_there_is_not_mapped,
        a_later_write_does_not_move_what_is_mapped_for_reading,
        every_alignment_pins_each_page_once,
        every_alignment_survives_domains_that_come_and_go,
        memory_that_an_access_brought_is_copied_to_other_spaces,
        a_domain_takes_the_place_of_another,
        domains_are_made_by_hand_and_refuse_what_they_cannot_do,
    ]
);

/// What the memory is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Kind {
    Pages,
    Huge,
    File,
    /// A file as long as two huge pages, one run.
    LargeFile,
}

impl Kind {
    const fn is_file(self) -> bool {
        matches!(self, Self::File | Self::LargeFile)
    }

    /// Bytes of memory.
    const fn len(self) -> u64 {
        match self {
            Self::Pages | Self::File => 8 * PAGE,
            Self::Huge | Self::LargeFile => 2 * HUGE,
        }
    }
}

/// A space, and what it maps.
struct MockDomain {
    space: Fixture,
    kind: Kind,
    /// What lies behind the watched source.
    simulated: Option<Arc<Simulated>>,
    file: Option<OwnedFd>,
}

fn fixture(domain_count: usize, kind: Kind) -> MockDomain {
    let file = kind.is_file().then(|| {
        let file = memfd_create("kernel-matrix", MemfdFlags::CLOEXEC).expect("files take no room");
        ftruncate(&file, kind.len()).expect("it is empty");
        file
    });
    let simulated = (!kind.is_file()).then(|| match kind {
        Kind::Huge => memory(PAGE_COUNT, Runs::Huge),
        _ => memory(8, Runs::Single),
    });
    let source: Arc<dyn Source> = match (&simulated, &file) {
        (Some(simulated), _) => Arc::clone(simulated) as Arc<dyn Source>,
        (None, Some(file)) => Arc::new(map_file(file, 0, kind.len()).expect("it is as long")),
        (None, None) => unreachable!("memory is simulated or a file"),
    };
    MockDomain {
        space: Fixture::new(source, domain_count),
        kind,
        simulated,
        file,
    }
}

fn map_file(file: &OwnedFd, offset: u64, len: u64) -> Result<FileMemory, MemoryError> {
    let file = file.try_clone().expect("there are descriptors left");
    FileMemory::new(file, offset, len as usize, Access::ReadWrite)
}

fn memory_that_is_not_there_is_not_mapped(fixture: &mut MockDomain) {
    let space = &fixture.space;
    space.map(BASE, 0, PAGE);
    space.check_map(range(BASE, PAGE), 0);
    space.check_pinned(0, PAGE);
    assert_eq!(space.unmap(range(BASE, PAGE)).expect("it is mapped"), PAGE);
    let len = fixture.kind.len();
    let beyond = space.ioas.map(space.slice(BASE, len - PAGE, 2 * PAGE));
    assert!(matches!(beyond, Err(MapError::OutsidePages { .. })));

    if let Some(file) = &fixture.file {
        let beyond = map_file(file, 0, len + PAGE);
        assert!(matches!(beyond, Err(MemoryError::BeyondFile { .. })));
        ftruncate(file, len / 2).expect("files become shorter");
        // The second half is gone, then all of it.
        for (start, len) in [(0, len), (len / 2, PAGE)] {
            let refused = space.ioas.map(space.slice(BASE, start, len));
            let error = refused.expect_err("there is nothing behind it");
            let is_fault = matches!(
                error,
                MapError::Hold(HoldError::Pin(PinError::Fault { .. }))
            );
            assert!(is_fault, "{error}");
        }
        space.map(BASE, 0, len / 2);
        space.unmap(range(BASE, len / 2)).expect("it is mapped");
        ftruncate(file, 0).expect("files become shorter");
        let refused = space.ioas.map(space.slice(BASE, 0, PAGE));
        assert!(matches!(refused, Err(MapError::Hold(HoldError::Pin(_)))));
    }
    if let Some(simulated) = &fixture.simulated {
        simulated.fail_pin_after(Some(0));
        let refused = space.ioas.map(space.slice(BASE, 0, len));
        assert!(matches!(refused, Err(MapError::Hold(HoldError::Pin(_)))));
    }
    assert_eq!(space.ioas.area_count(), 0);
    space.check_unpinned();
    assert!(space.sinks.iter().all(|sink| sink.leaf_count() == 0));
}

fn a_later_write_does_not_move_what_is_mapped_for_reading(fixture: &mut MockDomain) {
    let space = &fixture.space;
    let mapping = iopt::ioas::Mapping {
        prot: Prot::R,
        ..space.slice(BASE, 0, PAGE)
    };
    space.ioas.map(mapping).expect("it is free");
    space.check_map(range(BASE, PAGE), 0);
    let before = space.oa_of(0);
    let access = space.ioas.access(Driver::default());
    assert!(
        access.write(Iova::new(BASE), b"late").is_err(),
        "the area is for reading"
    );
    space
        .pages
        .source()
        .write(0, b"late")
        .expect("the memory is not");
    assert_eq!(space.oa_of(0), before);
    space.check_map(range(BASE, PAGE), 0);
    let mut got = [0; 4];
    access
        .read(Iova::new(BASE), &mut got)
        .expect("it is readable");
    assert_eq!(&got, b"late");
    assert!(
        !space.sinks[0].write(Iova::new(BASE)),
        "devices may not write, either"
    );

    // Memory that cannot be written at all is refused where somebody wants to.
    let simulated = Simulated::new(PageSize::KIB_4, 1).with_access(Access::ReadOnly);
    let pages = iopt::ioas::Pages::new(Arc::new(simulated), None);
    let refused = space.ioas.map(slice(&pages, 0, PAGE, at(BASE + PAGE)));
    assert!(matches!(refused, Err(MapError::Rights)));
}

/// Calls `each` with the first byte and the number of bytes of every part of the memory that begins and
/// ends at one of its sixteenths.
fn each_alignment(kind: Kind, mut each: impl FnMut(u64, u64)) {
    let step = kind.len() / 16;
    assert!(step >= HALF);
    for first in 0..16 {
        for end in first + 1..=16 {
            each(first * step, (end - first) * step);
        }
    }
}

fn every_alignment_pins_each_page_once(fixture: &mut MockDomain) {
    let space = &fixture.space;
    each_alignment(fixture.kind, |start, len| {
        let area = space.map_anywhere(start, len);
        assert_eq!(area.len(), Some(len));
        space.check_map(area, start);
        space.check_pinned(start, len);
        assert_eq!(space.unmap(area).expect("it is mapped"), len);
        space.check_unpinned();
    });
}

fn every_alignment_survives_domains_that_come_and_go(fixture: &mut MockDomain) {
    let space = &fixture.space;
    each_alignment(fixture.kind, |start, len| {
        let area = space.map_anywhere(start, len);
        let late = space.attach();
        space.check_map_of(&late, area, start);
        space.check_pinned(start, len);
        space.detach(&late);
        space.check_pinned(start, len);
        space.check_map(area, start);
        assert_eq!(space.unmap(area).expect("it is mapped"), len);
        space.check_unpinned();
    });
}

fn memory_that_an_access_brought_is_copied_to_other_spaces(fixture: &mut MockDomain) {
    let space = &fixture.space;
    let len = fixture.kind.len();
    let mut own = Arc::new(Ioas::new());
    own.map(slice(&space.pages, 0, len, at(0)))
        .expect("it is free");
    let driver = Driver::default();
    let access = own.access(driver.clone());
    for turn in 0..3 {
        let runs = driver.pin(&access, range(0, len));
        check_runs(space, &runs, range(0, len), 0);
        space.check_pinned(0, len);
        let copied = space.ioas.copy(&own, range(0, len), at(BASE), Prot::RW);
        assert_eq!(copied.expect("it is free"), range(BASE, len));
        space.check_map(range(BASE, len), 0);
        space.check_pinned(0, len);
        // What the access left behind does not outlive its space; what was copied does.
        let next = Arc::new(Ioas::new());
        let copied = next.copy(&own, range(0, len), at(0), Prot::RW);
        assert_eq!(copied.expect("it is free"), range(0, len));
        access.replace(&next).expect("the driver lets go");
        assert_eq!((driver.call_count(), access.pin_count()), (turn + 1, 0));
        assert_eq!(Arc::strong_count(&own), 1, "the access is gone");
        own = next;
        space.check_map(range(BASE, len), 0);
        space.check_pinned(0, len);
        assert_eq!(space.unmap(range(BASE, len)).expect("it is mapped"), len);
        space.check_unpinned();
    }
    access.destroy().expect("no callback runs");
}

fn a_domain_takes_the_place_of_another(fixture: &mut MockDomain) {
    let space = &mut fixture.space;
    let len = fixture.kind.len();
    space.map(BASE, 0, len);
    let old = Arc::clone(&space.sinks[0]);
    let same = space.ioas.replace(&dynamic(&old), dynamic(&old));
    same.expect("itself is as good");
    space.check_map(range(BASE, len), 0);

    let new = space.watch(ModelSink::small());
    let replaced = space.ioas.replace(&dynamic(&old), dynamic(&new));
    replaced.expect("it fits");
    space.sinks[0] = Arc::clone(&new);
    assert_gone(&old);
    // Nobody else has a domain that nobody uses.
    assert_eq!(Arc::into_inner(old).map(|old| old.leaf_count()), Some(0));
    space.check_map(range(BASE, len), 0);
    space.check_pinned(0, len);

    // Whatever is wrong with the new one, the old one stays.
    let failing = space.watch(ModelSink::small());
    failing.fail(&[Call::Op], 0, false);
    let refused = space.ioas.replace(&dynamic(&new), dynamic(&failing));
    assert!(matches!(refused, Err(AttachError::Fill(_))));
    assert_eq!(failing.fired_count(), 1);
    assert_gone(&failing);
    let narrow = space.watch(ModelSink::small().with_aperture(range(0, BASE)));
    let refused = space.ioas.replace(&dynamic(&new), dynamic(&narrow));
    assert!(matches!(refused, Err(AttachError::Aperture { .. })));
    assert_gone(&narrow);
    let elsewhere = Ioas::new();
    elsewhere
        .attach(dynamic(&failing))
        .expect("nothing is to be mapped");
    let refused = space.ioas.replace(&dynamic(&new), dynamic(&failing));
    assert!(matches!(refused, Err(AttachError::Taken(_))));
    elsewhere
        .detach(&dynamic(&failing))
        .expect("it is attached");
    assert_eq!(space.ioas.domain_count(), space.sinks.len());
    space.check_map(range(BASE, len), 0);
    space.check_pinned(0, len);

    // To another space it goes by way of none.
    elsewhere
        .map(slice(&space.pages, 0, PAGE, at(BASE)))
        .expect("it is free");
    space.detach(&new);
    elsewhere.attach(dynamic(&new)).expect("it is free");
    space.check_map_of(&new, range(BASE, PAGE), 0);
    elsewhere.detach(&dynamic(&new)).expect("it is attached");
    assert_gone(&new);
    space.sinks.remove(0);
    space.check_map(range(BASE, len), 0);
}

fn domains_are_made_by_hand_and_refuse_what_they_cannot_do(fixture: &mut MockDomain) {
    let space = &mut fixture.space;
    let len = fixture.kind.len();
    space.map(BASE, 0, len);
    // Each takes the place of the one before, and the last that of the first.
    let by_hand: Vec<Arc<ModelSink>> = (0..4)
        .map(|_| space.watch(ModelSink::small().without_tracking()))
        .collect();
    let first = Arc::clone(&space.sinks[0]);
    for new in by_hand.iter().chain([&first]) {
        let old = Arc::clone(&space.sinks[0]);
        let twice = space.ioas.attach(dynamic(&old));
        assert!(matches!(twice, Err(AttachError::Taken(_))), "it is busy");
        let replaced = space.ioas.replace(&dynamic(&old), dynamic(new));
        replaced.expect("it fits");
        assert_gone(&old);
        space.sinks[0] = Arc::clone(new);
        space.check_map(range(BASE, len), 0);
        space.check_pinned(0, len);
    }
    // A domain beside the others, and an area that comes later.
    space.ioas.attach(dynamic(&by_hand[0])).expect("it is free");
    space.check_map_of(&by_hand[0], range(BASE, len), 0);
    space.map(BASE + len, 0, PAGE);
    space.check_map_of(&by_hand[0], range(BASE + len, PAGE), 0);

    let tracked = space.ioas.set_dirty_tracking(&dynamic(&by_hand[0]), true);
    assert!(matches!(tracked, Err(DirtyError::Domain(_))));
    let cut = space.ioas.split(Iova::new(BASE + HALF));
    assert!(matches!(cut, Err(SplitError::Domain { .. })));
    assert_eq!(space.ioas.area_count(), 2);
    space.detach(&by_hand[0]);
}
