//! An address space with sinks and watched memory, which ends with everything given back.

use std::mem;
use std::sync::{Arc, Mutex};

use iopt::domain::Domain;
use iopt::ioas::{AccessHandle, AccessOps, Holes, Ioas, Mapping, Pages, Place, UnmapError};
use iopt::pin::{Simulated, Source};
use iopt_formats::{Iova, IovaRange, Oa, PageSize, Prot};
use iopt_tests::sink::{APERTURE_START, GRANULE, ModelSink, Reach, Watched};

/// Makes a module of each variant, with one test for each function that is named. `make` gets the
/// variant's arguments; the functions get what it makes.
macro_rules! in_variants {
    (@ $make:path, $variant:ident, $arguments:tt, [$($test:ident),* $(,)?]) => {
        mod $variant {
            $(
                #[test]
                fn $test() {
                    super::$test(&mut $make $arguments);
                }
            )*
        }
    };
    ($make:path, {$($variant:ident: $arguments:tt),* $(,)?}, $tests:tt) => {
        $($crate::fixture::in_variants!(@ $make, $variant, $arguments, $tests);)*
    };
}

pub(crate) use in_variants;

/// A page of memory.
pub(crate) const PAGE: u64 = 0x1000;
/// The smallest leaf of a sink: half a page.
pub(crate) const HALF: u64 = GRANULE.bytes();
/// A huge page of memory.
pub(crate) const HUGE: u64 = 0x20_0000;
/// The lowest address that sinks translate.
pub(crate) const BASE: u64 = APERTURE_START;
/// Pages of two huge pages, the largest memory that most tests need.
pub(crate) const PAGE_COUNT: u64 = 2 * HUGE / PAGE;

/// Pages in a row that are contiguous in memory.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Runs {
    /// One: each page is a run of its own.
    Single,
    /// A huge page.
    Huge,
}

/// What a test works with. Dropping it checks that nothing is left.
#[derive(Debug)]
pub(crate) struct Fixture {
    pub(crate) ioas: Arc<Ioas>,
    /// The attached domains.
    pub(crate) sinks: Vec<Arc<ModelSink>>,
    pub(crate) source: Arc<Watched>,
    pub(crate) pages: Arc<Pages>,
    pub(crate) reach: Reach,
}

pub(crate) fn range(start: u64, len: u64) -> IovaRange {
    IovaRange::with_len(Iova::new(start), len).expect("the range does not wrap")
}

pub(crate) fn at(iova: u64) -> Place {
    Place::Fixed(Iova::new(iova))
}

/// A slice of `pages` that software and devices read and write.
pub(crate) fn slice(pages: &Arc<Pages>, offset: u64, len: u64, place: Place) -> Mapping<'_> {
    Mapping {
        pages,
        offset,
        len,
        prot: Prot::RW,
        place,
    }
}

/// Simulated memory.
pub(crate) fn memory(page_count: u64, runs: Runs) -> Arc<Simulated> {
    let run_len = match runs {
        Runs::Single => 1,
        Runs::Huge => HUGE / PAGE,
    };
    Arc::new(Simulated::new(PageSize::KIB_4, page_count).scattered(17, run_len))
}

impl Fixture {
    /// Creates a space over `source` with `domain_count` small sinks.
    pub(crate) fn new(source: Arc<dyn Source>, domain_count: usize) -> Self {
        Self::with(source, (0..domain_count).map(|_| ModelSink::small()))
    }

    /// Creates a space over `source` with these sinks.
    pub(crate) fn with(source: Arc<dyn Source>, sinks: impl Iterator<Item = ModelSink>) -> Self {
        let reach = Reach::default();
        let source = Arc::new(Watched::new(source, &reach));
        let pages = Pages::new(Arc::clone(&source) as Arc<dyn Source>, None);
        let mut fixture = Self {
            ioas: Arc::new(Ioas::new()),
            sinks: Vec::new(),
            source,
            pages,
            reach,
        };
        for sink in sinks {
            let sink = fixture.watch(sink);
            let attached = fixture.ioas.attach(dynamic(&sink));
            attached.expect("nothing is mapped yet");
            fixture.sinks.push(sink);
        }
        fixture
    }

    /// Lets the memory know a sink.
    pub(crate) fn watch(&self, sink: ModelSink) -> Arc<ModelSink> {
        let sink = Arc::new(sink);
        self.reach.add(&sink);
        sink
    }

    /// Attaches one more sink.
    pub(crate) fn attach(&self) -> Arc<ModelSink> {
        let sink = self.watch(ModelSink::small());
        let attached = self.ioas.attach(dynamic(&sink));
        attached.expect("everything fits the sinks that are made for this");
        sink
    }

    /// Detaches a sink, and checks that it is empty.
    pub(crate) fn detach(&self, sink: &Arc<ModelSink>) {
        self.ioas.detach(&dynamic(sink)).expect("it is attached");
        assert_gone(sink);
    }

    pub(crate) fn has_domain(&self) -> bool {
        !self.sinks.is_empty()
    }

    /// The pages, to be mapped at `iova` from `offset` on.
    pub(crate) fn slice(&self, iova: u64, offset: u64, len: u64) -> Mapping<'_> {
        slice(&self.pages, offset, len, at(iova))
    }

    /// Maps at `iova`.
    pub(crate) fn map(&self, iova: u64, offset: u64, len: u64) {
        let mapped = self.ioas.map(self.slice(iova, offset, len));
        assert_eq!(mapped.expect("it is free"), range(iova, len));
    }

    /// Maps anywhere and returns where.
    pub(crate) fn map_anywhere(&self, offset: u64, len: u64) -> IovaRange {
        let mapped = self
            .ioas
            .map(slice(&self.pages, offset, len, Place::Anywhere));
        mapped.expect("there is room")
    }

    /// Unmaps whole areas without holes.
    pub(crate) fn unmap(&self, range: IovaRange) -> Result<u64, UnmapError> {
        self.ioas.unmap(range, Holes::Refused)
    }

    /// Checks that every sink translates `range` to the memory from `offset` on.
    pub(crate) fn check_map(&self, range: IovaRange, offset: u64) {
        for sink in &self.sinks {
            self.check_map_of(sink, range, offset);
        }
    }

    /// Checks that one sink translates `range` to the memory from `offset` on.
    pub(crate) fn check_map_of(&self, sink: &ModelSink, range: IovaRange, offset: u64) {
        let len = range.len().expect("it is no whole address space");
        for distance in (0..len).step_by(HALF as usize).chain([len - 1]) {
            let iova = Iova::new(range.start().get() + distance);
            let found = sink.translate(iova).map(|(oa, _)| oa);
            assert_eq!(found, self.oa_of(offset + distance), "at {iova}");
            assert!(found.is_some(), "{iova} is mapped");
        }
    }

    /// Returns where a byte of pinned memory lies.
    pub(crate) fn oa_of(&self, byte: u64) -> Option<Oa> {
        let oa = self.source.oa_of(byte / PAGE)?;
        oa.checked_add(byte % PAGE)
    }

    /// Checks that exactly the pages of `len` bytes from `offset` on are pinned, each once.
    pub(crate) fn check_pinned(&self, offset: u64, len: u64) {
        let (first, last) = (offset / PAGE, (offset + len - 1) / PAGE);
        // The source counts each page once only, and panics if it is pinned twice.
        assert_eq!(self.source.pinned_count(), last - first + 1);
        assert!(self.source.oa_of(first).is_some() && self.source.oa_of(last).is_some());
    }

    /// Checks that nothing is pinned.
    pub(crate) fn check_unpinned(&self) {
        assert_eq!(self.source.pinned_count(), 0);
        assert_eq!(self.pages.pinned_count(), 0);
    }

    /// Drops the space, and checks that it was the last who had it and took everything along.
    pub(crate) fn end(&mut self) {
        let ioas = mem::take(&mut self.ioas);
        assert_eq!(Arc::strong_count(&ioas), 1, "nobody else has the space");
        drop(ioas);
        self.check_unpinned();
        self.sinks.iter().for_each(|sink| assert_gone(sink));
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.end();
        }
    }
}

pub(crate) fn dynamic(sink: &Arc<ModelSink>) -> Arc<dyn Domain> {
    Arc::clone(sink) as Arc<dyn Domain>
}

/// Checks that a sink is out of its address space.
pub(crate) fn assert_gone(sink: &ModelSink) {
    sink.assert_clean();
    assert_eq!((sink.leaf_count(), sink.is_bound()), (0, false));
    assert!(!sink.has_unsynced());
}

/// Software that knows what it has pinned, and lets go when it is asked.
#[derive(Clone, Debug, Default)]
pub(crate) struct Driver(Arc<Mutex<Asked>>);

#[derive(Debug, Default)]
struct Asked {
    pinned: Vec<IovaRange>,
    call_count: usize,
}

impl Driver {
    /// Pins a range and returns its page runs.
    pub(crate) fn pin(&self, access: &AccessHandle, range: IovaRange) -> Vec<(IovaRange, Oa)> {
        let runs = access.pin(range, true).expect("it is mapped");
        self.0.lock().expect("no driver panics").pinned.push(range);
        runs.into_iter().map(|run| (run.range, run.oa)).collect()
    }

    /// Returns how often it was asked to let go.
    pub(crate) fn call_count(&self) -> usize {
        self.0.lock().expect("no driver panics").call_count
    }
}

impl AccessOps for Driver {
    fn unmap(&self, access: &AccessHandle, range: IovaRange) {
        let mut asked = self.0.lock().expect("no driver panics");
        asked.call_count += 1;
        asked.pinned.retain(|&pinned| {
            if pinned.overlaps(range) {
                access.unpin(pinned).expect("it was pinned");
            }
            !pinned.overlaps(range)
        });
    }
}

/// Software that never lets go.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Deaf;

impl AccessOps for Deaf {
    fn unmap(&self, _: &AccessHandle, _: IovaRange) {}
}

/// Checks that pinned runs cover `range` in order and lead to the memory from `offset` on.
pub(crate) fn check_runs(
    fixture: &Fixture,
    runs: &[(IovaRange, Oa)],
    range: IovaRange,
    offset: u64,
) {
    let mut next = range.start().get();
    for &(run, oa) in runs {
        assert_eq!(run.start().get(), next);
        let byte = offset + (next - range.start().get());
        for distance in (0..=run.len_minus_one()).step_by(PAGE as usize) {
            let wanted = fixture.oa_of(byte + distance);
            assert_eq!(oa.checked_add(distance), wanted);
        }
        next = run.last().get() + 1;
    }
    assert_eq!(next, range.last().get() + 1, "the runs cover all");
}
