//! The contract of `Source`, on every source of the module.

#[cfg(all(feature = "std", target_os = "linux"))]
mod real;

use alloc::vec::Vec;

use iopt_formats::{Oa, PageSize};

use crate::pin::{Access, Fixed, Kind, OaRun, PageRange, PinError, Simulated, Source};

fn pages(first: u64, last: u64) -> PageRange {
    PageRange::new(first, last).unwrap()
}

/// Pins, and returns the output address of every page as runs report them.
fn pin(source: &dyn Source, pages: PageRange) -> Result<Vec<u64>, PinError> {
    let page_len = source.page_size().bytes();
    let mut oas = Vec::new();
    let mut note = |run: OaRun| {
        assert!(source.page_size().divides(run.oa.get()), "{run:?}");
        assert!(run.page_count > 0, "{run:?}");
        oas.extend((0..run.page_count).map(|page| run.oa.get() + page * page_len));
    };
    source.pin(pages, &mut note)?;
    assert_eq!(oas.len() as u64, pages.count());
    Ok(oas)
}

/// Checks what every source of at least 8 pages, none of which is pinned, promises. None is pinned
/// afterwards.
fn check_contract(source: &dyn Source) {
    let page_count = source.page_count();
    let last = page_count - 1;
    let all = pin(source, pages(0, last)).unwrap();

    // In any pieces, across the borders of pins.
    source.unpin(pages(1, 1));
    source.unpin(pages(3, last));
    assert_eq!(pin(source, pages(4, 6)).unwrap(), all[4..=6]);
    assert_eq!(pin(source, pages(1, 1)).unwrap(), [all[1]]);
    source.unpin(pages(0, 2));
    source.unpin(pages(4, 6));
    assert_eq!(pin(source, pages(0, last)).unwrap(), all);
    source.unpin(pages(0, last));

    for beyond in [pages(last, page_count), pages(u64::MAX, u64::MAX)] {
        let error = PinError::OutOfRange {
            pages: beyond,
            page_count,
        };
        assert_eq!(pin(source, beyond), Err(error));
    }
    // The last page was left alone.
    assert_eq!(
        pin(source, pages(last, last)).unwrap(),
        all[last as usize..]
    );
    source.unpin(pages(last, last));
}

/// Checks copies of a source of at least 2 pages that the program can reach.
fn check_copies(source: &dyn Source) {
    let page_len = source.page_size().bytes();
    let len = source.page_count() * page_len;
    let mut bytes = [0; 11];
    for offset in [0, page_len - 5, len - 11] {
        let wanted: [u8; 11] = core::array::from_fn(|index| (offset as u8) ^ (index as u8 + 1));
        source.read(offset, &mut bytes).unwrap();
        let before = bytes;
        let written = source.write(offset, &wanted);
        source.read(offset, &mut bytes).unwrap();
        if source.is_writable() {
            assert_eq!((written, bytes), (Ok(()), wanted));
        } else {
            assert_eq!((written, bytes), (Err(PinError::ReadOnly), before));
        }
    }
    source.read(len, &mut []).unwrap();
    for offset in [len - 10, len, u64::MAX] {
        let beyond = PinError::BeyondEnd { offset, len: 11 };
        assert_eq!(source.read(offset, &mut bytes), Err(beyond));
        if source.is_writable() {
            assert_eq!(source.write(offset, &bytes), Err(beyond));
        }
    }
}

#[test]
fn simulated_pages_keep_the_contract() {
    for (seed, run_len) in [(0, 1), (1, 3), (2, 8), (3, 100)] {
        let source = Simulated::new(PageSize::KIB_4, 21).scattered(seed, run_len);
        check_contract(&source);
        check_copies(&source);
        assert_eq!(source.pinned_pages(), 0);
    }
    let source = Simulated::new(PageSize::KIB_4, 8).with_access(Access::ReadOnly);
    check_contract(&source);
    check_copies(&source);
}

#[test]
fn fixed_memory_keeps_the_contract() {
    let start = Oa::new(0x40_0000);
    let fixed = Fixed::new(start, PageSize::MIB_2, 8, Kind::Device, Access::ReadOnly);
    check_contract(&fixed.unwrap());
}

#[test]
fn scattered_runs_are_aligned_and_never_neighbours() {
    let base = Oa::new(1 << 40);
    let source = Simulated::new(PageSize::KIB_4, 64)
        .with_base(base)
        .scattered(5, 8);
    let mut runs = Vec::new();
    source.pin(pages(0, 63), &mut |run| runs.push(run)).unwrap();
    assert_eq!(runs.len(), 8);
    let mut starts: Vec<u64> = runs.iter().map(|run| run.oa.get()).collect();
    assert!(!starts.is_sorted(), "the seed shuffles");
    starts.sort_unstable();
    assert!(starts[0] >= base.get());
    assert!(starts.iter().all(|start| start % 0x8000 == 0));
    assert!(starts.windows(2).all(|pair| pair[1] - pair[0] > 0x8000));
    for page in [0, 9, 63] {
        let run = &runs[page as usize / 8];
        let oa = run.oa.get() + page % 8 * 0x1000;
        assert_eq!(source.oa_of(page), Some(Oa::new(oa)));
    }
    assert_eq!(source.oa_of(64), None);
}

#[test]
fn simulated_pins_fail_once_when_told_to() {
    let source = Simulated::new(PageSize::KIB_4, 8);
    source.fail_pin_after(Some(1));
    assert!(pin(&source, pages(0, 0)).is_ok());
    let no_memory = PinError::NoMemory { page_count: 3 };
    assert_eq!(pin(&source, pages(1, 3)), Err(no_memory));
    assert_eq!(source.pinned_pages(), 1);
    assert!(pin(&source, pages(1, 3)).is_ok());
    assert_eq!((source.pin_count(3), source.pin_count(4)), (1, 0));
    source.fail_pin_after(Some(0));
    source.fail_pin_after(None);
    assert!(pin(&source, pages(4, 4)).is_ok());
}

#[test]
#[should_panic(expected = "page 3 is pinned twice")]
fn simulated_pages_are_not_pinned_twice() {
    let source = Simulated::new(PageSize::KIB_4, 8);
    pin(&source, pages(3, 3)).unwrap();
    let pinned = pin(&source, pages(2, 4));
    unreachable!("{pinned:?}");
}

#[test]
#[should_panic(expected = "page 4 is not pinned")]
fn simulated_pages_are_not_unpinned_twice() {
    let source = Simulated::new(PageSize::KIB_4, 8);
    pin(&source, pages(3, 3)).unwrap();
    source.unpin(pages(3, 4));
}

#[test]
fn simulated_device_memory_is_out_of_reach() {
    let source = Simulated::new(PageSize::KIB_4, 8).with_kind(Kind::Device);
    assert_eq!(source.read(0, &mut [0]), Err(PinError::NoAccess));
    assert_eq!(source.write(0, &[0]), Err(PinError::NoAccess));
    check_contract(&source);
}
