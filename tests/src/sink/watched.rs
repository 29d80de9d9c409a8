//! Sources that check when their pages are unpinned.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, Weak};

use iopt::pin::{Firmness, Kind, OaRun, Origin, PageRange, PinError, Source};
use iopt_formats::{Oa, PageSize};

use crate::sink::{ModelSink, lock};

/// The sinks that devices of a test use, as its sources see them.
#[derive(Clone, Debug, Default)]
pub struct Reach(Arc<Mutex<Vec<Weak<ModelSink>>>>);

impl Reach {
    /// Adds a sink.
    pub fn add(&self, sink: &Arc<ModelSink>) {
        lock(&self.0).push(Arc::downgrade(sink));
    }

    /// Returns whether a sink reaches one of `len` bytes of memory.
    pub fn contains(&self, oa: Oa, len: u64) -> bool {
        let sinks = lock(&self.0);
        let mut sinks = sinks.iter().filter_map(Weak::upgrade);
        sinks.any(|sink| sink.reaches(oa, len))
    }
}

/// A source that checks, when a page is unpinned, that no device reaches it any more, and that each page
/// is pinned once.
///
/// # Panics
///
/// `pin` and `unpin` panic otherwise.
#[derive(Debug)]
pub struct Watched {
    source: Arc<dyn Source>,
    reach: Reach,
    /// Output addresses of pinned pages.
    pinned: Mutex<BTreeMap<u64, Oa>>,
}

impl Watched {
    /// Watches the pages of `source` for the sinks of `reach`.
    pub fn new(source: Arc<dyn Source>, reach: &Reach) -> Self {
        Self {
            source,
            reach: reach.clone(),
            pinned: Mutex::default(),
        }
    }

    /// Returns the number of pinned pages.
    pub fn pinned_count(&self) -> u64 {
        lock(&self.pinned).len() as u64
    }

    /// Returns the output address of a pinned page.
    pub fn oa_of(&self, page: u64) -> Option<Oa> {
        lock(&self.pinned).get(&page).copied()
    }
}

impl Source for Watched {
    fn page_size(&self) -> PageSize {
        self.source.page_size()
    }

    fn page_count(&self) -> u64 {
        self.source.page_count()
    }

    fn firmness(&self) -> Firmness {
        self.source.firmness()
    }

    fn kind(&self) -> Kind {
        self.source.kind()
    }

    fn is_writable(&self) -> bool {
        self.source.is_writable()
    }

    fn low_bits(&self) -> u64 {
        self.source.low_bits()
    }

    fn origin(&self) -> Origin<'_> {
        self.source.origin()
    }

    fn pin(&self, pages: PageRange, runs: &mut dyn FnMut(OaRun)) -> Result<(), PinError> {
        let mut found = Vec::new();
        self.source.pin(pages, &mut |run| found.push(run))?;
        let mut page = pages.first();
        let mut pinned = lock(&self.pinned);
        for run in &found {
            for distance in 0..run.page_count {
                let oa = run.oa.get() + distance * self.page_size().bytes();
                let old = pinned.insert(page, Oa::new(oa));
                assert_eq!(old, None, "page {page} is pinned once");
                page += 1;
            }
        }
        drop(pinned);
        assert_eq!(page, pages.last() + 1, "all pages were pinned");
        found.into_iter().for_each(runs);
        Ok(())
    }

    fn unpin(&self, pages: PageRange) {
        let mut pinned = lock(&self.pinned);
        for page in pages.first()..=pages.last() {
            let oa = pinned
                .remove(&page)
                .expect("only pinned pages are unpinned");
            let is_reached = self.reach.contains(oa, self.page_size().bytes());
            assert!(
                !is_reached,
                "a device reaches page {page}, which is unpinned"
            );
        }
        drop(pinned);
        self.source.unpin(pages);
    }

    fn read(&self, offset: u64, into: &mut [u8]) -> Result<(), PinError> {
        self.source.read(offset, into)
    }

    fn write(&self, offset: u64, from: &[u8]) -> Result<(), PinError> {
        self.source.write(offset, from)
    }
}
