//! Large calls: 16 GiB in one area, and 10^4 areas in one unmap.
//!
//! The 16 GiB lie at consecutive output addresses, as memory that was carved out at boot does, so
//! that the source gives one run. They start at a multiple of 1 GiB, or one large leaf off.

use core::fmt;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::Relaxed;

use iopt::domain::TableDomain;
use iopt::invalidation::{Changes, Invalidate, SyncError};
use iopt::ioas::{Holes, Ioas, Mapping, Pages, Place};
use iopt::pin::{Access, Fixed, Kind};
use iopt_formats::{Iova, IovaRange, Oa, PageSize};

use crate::clock;
use crate::ioas::space::{Engine, PAGE_LEN, PROT, Space as _, large_source, new_table};
use crate::paired::{Side, Turns};
use crate::row::{Bar, Row};
use crate::subject::range;
use crate::workload::{FIRST_IOVA, Phase, Times};

/// What a map of 16 GiB may take, in microseconds.
pub const MAX_LARGE_US: f64 = 1000.0;

/// Bytes of the large area.
const LARGE_LEN: u64 = 16 << 30;

/// Areas of one unmap.
const MANY_COUNT: u64 = 10_000;

const NS_PER_US: f64 = 1e3;

/// Measures the map of 16 GiB and its unmap.
pub fn measure_large() -> Vec<Row> {
    let engine = Engine::new(1);
    let leaves: [(&str, u64); 2] = [("2 MiB leaves", 2 << 20), ("1 GiB leaves", 1 << 30)];
    let sources = leaves.map(|(_, leaf_len)| large_pages(leaf_len));
    let mut sides: Vec<Side<'_, usize>> = sources
        .iter()
        .enumerate()
        .map(|(place, pages)| Side::new(place, || large_round(&engine.ioas, pages)))
        .collect();
    let turns = Turns::measure(&mut sides, &[(0, Phase::Map), (1, Phase::Map)]);
    let mut rows = Vec::new();
    for (place, (how, leaf_len)) in leaves.into_iter().enumerate() {
        let leaf_count = (LARGE_LEN / leaf_len) as f64;
        let medians = turns.medians(place);
        let map = turns.compare((place, Phase::Map), (place, Phase::Map));
        let row = |what, ns: f64| {
            Row::new(what, how, ns / NS_PER_US, "us").beside("ns a leaf", ns / leaf_count)
        };
        let bar = Bar::AtMost(MAX_LARGE_US);
        rows.push(row("map 16 GiB", medians.map).with_bar(bar, map.is_noisy));
        rows.push(row("unmap 16 GiB", medians.unmap));
    }
    rows
}

/// Pages whose largest leaf is `leaf_len`: one leaf off what the next larger one needs.
fn large_pages(leaf_len: u64) -> Arc<Pages> {
    let start = Oa::new(FIRST_IOVA + leaf_len);
    let page_count = LARGE_LEN / PAGE_LEN;
    let fixed = Fixed::new(
        start,
        PageSize::KIB_4,
        page_count,
        Kind::Ram,
        Access::ReadWrite,
    );
    Pages::new(Arc::new(fixed.expect("the memory fits 64 bits")), None)
}

const fn large_mapping(pages: &Arc<Pages>) -> Mapping<'_> {
    Mapping {
        pages,
        offset: 0,
        len: LARGE_LEN,
        prot: PROT,
        place: Place::Fixed(Iova::new(FIRST_IOVA)),
    }
}

fn large_round(ioas: &Ioas, pages: &Arc<Pages>) -> Times {
    let whole = range(FIRST_IOVA, LARGE_LEN);
    Times {
        map: clock::time(|| {
            let mapped = ioas.map(large_mapping(pages));
            mapped.expect("nothing is mapped there");
        }),
        unmap: clock::time(|| {
            let unmapped = ioas.unmap(whole, Holes::Refused);
            unmapped.expect("all of it is mapped");
        }),
        ..Times::default()
    }
}

/// Hardware that counts how often it is told something.
#[derive(Clone, Debug, Default)]
struct Counting(Arc<AtomicUsize>);

impl Counting {
    /// Returns how often it was told something since the last call.
    fn take(&self) -> usize {
        self.0.swap(0, Relaxed)
    }
}

impl Invalidate for Counting {
    type Ticket = ();

    fn submit(&self, _: &Changes) -> Result<(), SyncError> {
        self.0.fetch_add(1, Relaxed);
        Ok(())
    }

    fn wait(&self, (): ()) -> Result<(), SyncError> {
        Ok(())
    }
}

/// How many areas are unmapped at once.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Call {
    /// As one range.
    Range,
    /// As a list of ranges.
    List,
    /// With a call for each, to compare with.
    OneByOne,
}

impl Call {
    const ALL: [Self; 3] = [Self::Range, Self::List, Self::OneByOne];

    const fn as_str(self) -> &'static str {
        match self {
            Self::Range => "unmap of a range",
            Self::List => "unmap_many of a list",
            Self::OneByOne => "unmap of each",
        }
    }

    /// Returns how often the hardware is told something.
    const fn sync_count(self) -> u64 {
        match self {
            Self::Range | Self::List => 1,
            Self::OneByOne => MANY_COUNT,
        }
    }
}

/// A space whose hardware counts.
struct Counted {
    ioas: Ioas,
    pages: Arc<Pages>,
    counting: Counting,
    ranges: Vec<IovaRange>,
}

impl fmt::Debug for Counted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Counted").finish_non_exhaustive()
    }
}

impl Counted {
    fn new() -> Self {
        let counting = Counting::default();
        let ioas = Ioas::new();
        let domain = TableDomain::new(new_table(), counting.clone());
        let attached = ioas.attach(Arc::new(domain));
        attached.expect("an empty domain fits an empty space");
        let areas = (0..MANY_COUNT).map(|index| range(FIRST_IOVA + index * PAGE_LEN, PAGE_LEN));
        Self {
            ioas,
            pages: Engine::memory(large_source(MANY_COUNT)),
            counting,
            ranges: areas.collect(),
        }
    }

    /// Maps all areas, unmaps them, and returns what each took, and how often the unmap told the
    /// hardware.
    fn round(&self, call: Call) -> (Times, usize) {
        let map = clock::time(|| {
            for &range in &self.ranges {
                let mapped = self.ioas.map(Mapping {
                    pages: &self.pages,
                    offset: range.start().get() - FIRST_IOVA,
                    len: PAGE_LEN,
                    prot: PROT,
                    place: Place::Fixed(range.start()),
                });
                mapped.expect("nothing is mapped there");
            }
        });
        self.counting.take();
        let unmap = clock::time(|| {
            let unmapped = match call {
                Call::Range => {
                    let whole = range(FIRST_IOVA, MANY_COUNT * PAGE_LEN);
                    self.ioas.unmap(whole, Holes::Refused)
                }
                Call::List => self.ioas.unmap_many(&self.ranges, Holes::Refused),
                Call::OneByOne => self
                    .ranges
                    .iter()
                    .map(|&range| self.ioas.unmap(range, Holes::Refused))
                    .sum(),
            };
            let bytes = unmapped.expect("all of it is mapped");
            assert_eq!(bytes, MANY_COUNT * PAGE_LEN, "all of it was mapped");
        });
        let times = Times {
            map,
            unmap,
            ..Times::default()
        };
        (times.divided_by(MANY_COUNT as f64), self.counting.take())
    }
}

/// Measures the unmap of 10^4 areas, and counts what the hardware is told.
pub fn measure_many() -> Vec<Row> {
    let counted = Counted::new();
    let mut sync_counts = [0; Call::ALL.len()];
    let mut sides: Vec<Side<'_, usize>> = Call::ALL
        .into_iter()
        .zip(&mut sync_counts)
        .enumerate()
        .map(|(place, (call, sync_count))| {
            let counted = &counted;
            Side::new(place, move || {
                let (times, count) = counted.round(call);
                *sync_count = count.max(*sync_count);
                times
            })
        })
        .collect();
    let turns = Turns::measure(&mut sides, &[]);
    drop(sides);
    let mut rows = Vec::new();
    for (place, call) in Call::ALL.into_iter().enumerate() {
        let medians = turns.medians(place);
        let what = "unmap 10000 areas";
        rows.push(
            Row::new(what, call.as_str(), medians.unmap, "ns an area")
                .beside("ns to map one", medians.map),
        );
        let syncs = Row::new(what, call.as_str(), sync_counts[place] as f64, "syncs");
        let bar = Bar::AtMost(call.sync_count() as f64);
        rows.push(match call {
            Call::Range | Call::List => syncs.with_bar(bar, false),
            Call::OneByOne => syncs,
        });
    }
    rows
}

#[cfg(test)]
mod tests {
    use iopt::invalidation::NoHardware;

    use super::*;

    #[test]
    fn many_areas_take_one_sync_and_each_takes_one_alone() {
        let counted = Counted::new();
        for call in Call::ALL {
            let (_, sync_count) = counted.round(call);
            assert_eq!(sync_count as u64, call.sync_count(), "{call:?}");
        }
    }

    #[test]
    fn the_large_area_has_the_leaves_that_it_says() {
        let domain = Arc::new(TableDomain::new(new_table(), NoHardware));
        let ioas = Ioas::new();
        ioas.attach(Arc::clone(&domain) as _).expect("it fits");
        for leaf_len in [2 << 20, 1 << 30] {
            let pages = large_pages(leaf_len);
            let mapped = ioas.map(large_mapping(&pages));
            mapped.expect("nothing is mapped there");
            let last = Iova::new(FIRST_IOVA + LARGE_LEN - 1);
            let found = domain.table().lookup(last).expect("it is mapped");
            assert_eq!(found.size().bytes(), leaf_len);
            ioas.unmap_all().expect("nothing is in the way");
        }
    }
}
