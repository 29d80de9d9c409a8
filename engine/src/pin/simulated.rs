//! Pages for tests and simulations, with a ledger of their pins.

use alloc::vec;
use alloc::vec::Vec;
use core::fmt;

use iopt_formats::{Oa, PageSize};

use crate::pin::{
    Access, Firmness, Kind, OaRun, Origin, PageRange, PinError, Source, check_bytes, check_pages,
    check_write,
};
use crate::sync::{Mutex, PINS};

/// Output address of the first page if nothing else is asked for: past 4 GiB, and aligned to any
/// leaf of 2 MiB and 1 GiB.
const DEFAULT_BASE: Oa = Oa::new(1 << 33);

/// Memory that exists in the program only, at made-up output addresses, which counts the pins of
/// each page and can be told to fail.
///
/// ```
/// use iopt::pin::{OaRun, PageRange, Simulated, Source};
/// use iopt_formats::PageSize;
///
/// let source = Simulated::new(PageSize::KIB_4, 64).scattered(7, 16);
/// let pages = PageRange::new(8, 23).unwrap();
/// let mut runs = Vec::new();
/// source.pin(pages, &mut |run: OaRun| runs.push(run.page_count))?;
/// assert_eq!(runs, [8, 8]);
/// assert_eq!((source.pin_count(8), source.pinned_pages()), (1, 16));
/// source.unpin(pages);
/// # Ok::<(), iopt::pin::PinError>(())
/// ```
pub struct Simulated {
    page_size: PageSize,
    page_count: u64,
    firmness: Firmness,
    kind: Kind,
    access: Access,
    layout: Layout,
    state: Mutex<State>,
}

/// Which page has which output address.
struct Layout {
    base: Oa,
    /// Pages of a run; each starts at a multiple of this.
    run_len: u64,
    /// Place of each run, in strides from `base`; empty if there is one run.
    places: Vec<u64>,
    /// Pages between the starts of two runs. More than `run_len`: no two runs are neighbours.
    stride: u64,
}

/// What pins and writes change.
struct State {
    pin_counts: Vec<u32>,
    pinned_count: u64,
    pin_calls_until_failure: Option<u64>,
    bytes: Vec<u8>,
}

impl Simulated {
    /// Creates `page_count` pages of zeroes at consecutive output addresses from 8 GiB on:
    /// writable RAM that does not claim to be real.
    ///
    /// # Panics
    ///
    /// Panics if there are no pages, or more than the program has address space for.
    pub fn new(page_size: PageSize, page_count: u64) -> Self {
        assert!(page_count > 0, "a source has at least one page");
        let len = page_count.checked_mul(page_size.bytes());
        let len = len.filter(|len| *len <= 1 << 46);
        let len = len.expect("simulated memory fits the program's address space");
        let state = State {
            pin_counts: vec![0; page_count as usize],
            pinned_count: 0,
            pin_calls_until_failure: None,
            bytes: vec![0; len as usize],
        };
        Self {
            page_size,
            page_count,
            firmness: Firmness::Simulated,
            kind: Kind::Ram,
            access: Access::ReadWrite,
            layout: Layout {
                base: DEFAULT_BASE,
                run_len: page_count,
                places: Vec::new(),
                stride: page_count,
            },
            state: Mutex::new(&PINS, state),
        }
    }

    /// Lets output addresses start at `base`.
    ///
    /// # Panics
    ///
    /// Panics unless `base` is a multiple of the page size below 2^62.
    #[must_use]
    pub fn with_base(mut self, base: Oa) -> Self {
        let is_valid = self.page_size.divides(base.get()) && base.get() < 1 << 62;
        assert!(is_valid, "{base} is no page below 2^62");
        self.layout.base = base;
        self
    }

    /// Shuffles runs of `run_len` pages in a way that `seed` decides, with gaps in between, so that
    /// no two of them are neighbours. Runs are aligned to their length, if that is a power of two
    /// and the base is.
    ///
    /// # Panics
    ///
    /// Panics if `run_len` is 0.
    #[must_use]
    pub fn scattered(mut self, seed: u64, run_len: u64) -> Self {
        assert!(run_len > 0, "a run has at least one page");
        let run_len = run_len.min(self.page_count);
        let run_count = self.page_count.div_ceil(run_len);
        let mut places: Vec<u64> = (0..run_count).collect();
        let mut random = seed;
        for index in (1..places.len()).rev() {
            // SplitMix64 needs no seed other than 0.
            random = random.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mixed = (random ^ (random >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            let other = (mixed ^ (mixed >> 31)) % (index as u64 + 1);
            places.swap(index, other as usize);
        }
        self.layout.run_len = run_len;
        self.layout.places = places;
        self.layout.stride = 2 * run_len.next_power_of_two();
        self
    }

    /// Claims to be as firm as `firmness`, for tests of those who ask.
    #[must_use]
    pub fn with_firmness(mut self, firmness: Firmness) -> Self {
        self.firmness = firmness;
        self
    }

    /// Claims to be `kind`; device memory can be neither read nor written by the program.
    #[must_use]
    pub fn with_kind(mut self, kind: Kind) -> Self {
        self.kind = kind;
        self
    }

    /// Restricts what may be done with the pages.
    #[must_use]
    pub fn with_access(mut self, access: Access) -> Self {
        self.access = access;
        self
    }

    /// Lets one later call of [`pin`](Source::pin) fail: the next one if `call_count` is 0, else
    /// the one after that many more. `None` takes the order back.
    pub fn fail_pin_after(&self, call_count: Option<u64>) {
        self.state.lock().pin_calls_until_failure = call_count;
    }

    /// Returns how often `page` is pinned: 0 or 1, and 0 for pages that do not exist.
    pub fn pin_count(&self, page: u64) -> u32 {
        let state = self.state.lock();
        state.pin_counts.get(page as usize).copied().unwrap_or(0)
    }

    /// Returns the number of pinned pages.
    pub fn pinned_pages(&self) -> u64 {
        self.state.lock().pinned_count
    }

    /// Returns the output address of `page`, or `None` if there is no such page.
    pub fn oa_of(&self, page: u64) -> Option<Oa> {
        (page < self.page_count).then(|| self.layout.oa_of(page, self.page_size))
    }
}

impl Layout {
    fn oa_of(&self, page: u64, page_size: PageSize) -> Oa {
        let run = page / self.run_len;
        let place = self.places.get(run as usize).copied().unwrap_or(run);
        let distance = place * self.stride + page % self.run_len;
        Oa::new(self.base.get() + distance * page_size.bytes())
    }

    /// Returns the last page of the run that `page` is in.
    fn last_of_run(&self, page: u64) -> u64 {
        page - page % self.run_len + (self.run_len - 1)
    }
}

impl State {
    /// Returns whether the call that asks is the one that is to fail.
    fn takes_failure(&mut self) -> bool {
        let Some(left) = self.pin_calls_until_failure else {
            return false;
        };
        self.pin_calls_until_failure = left.checked_sub(1);
        left == 0
    }
}

/// The indices of pages that a source has.
fn indices(pages: PageRange) -> core::ops::RangeInclusive<usize> {
    pages.first() as usize..=pages.last() as usize
}

impl Source for Simulated {
    fn page_size(&self) -> PageSize {
        self.page_size
    }

    fn page_count(&self) -> u64 {
        self.page_count
    }

    fn firmness(&self) -> Firmness {
        self.firmness
    }

    fn kind(&self) -> Kind {
        self.kind
    }

    fn is_writable(&self) -> bool {
        self.access.is_writable()
    }

    fn origin(&self) -> Origin<'_> {
        Origin::Oa(self.layout.oa_of(0, self.page_size))
    }

    /// As the trait says; a call that was told to fail gives [`PinError::NoMemory`].
    ///
    /// # Panics
    ///
    /// Panics if a page is pinned already.
    fn pin(&self, pages: PageRange, runs: &mut dyn FnMut(OaRun)) -> Result<(), PinError> {
        check_pages(pages, self.page_count)?;
        let pinned_twice = {
            let mut state = self.state.lock();
            if state.takes_failure() {
                let page_count = pages.count();
                return Err(PinError::NoMemory { page_count });
            }
            let counts = &mut state.pin_counts[indices(pages)];
            let pinned_twice = counts.iter().position(|count| *count != 0);
            if pinned_twice.is_none() {
                counts.fill(1);
                state.pinned_count += pages.count();
            }
            pinned_twice
        };
        if let Some(distance) = pinned_twice {
            panic!("page {} is pinned twice", pages.first() + distance as u64);
        }
        let mut page = pages.first();
        while page <= pages.last() {
            let last = self.layout.last_of_run(page).min(pages.last());
            runs(OaRun {
                oa: self.layout.oa_of(page, self.page_size),
                page_count: last - page + 1,
            });
            page = last + 1;
        }
        Ok(())
    }

    /// As the trait says.
    ///
    /// # Panics
    ///
    /// Panics if a page does not exist or is not pinned.
    fn unpin(&self, pages: PageRange) {
        let exists = check_pages(pages, self.page_count).is_ok();
        assert!(exists, "pages {pages} do not all exist");
        let not_pinned = {
            let mut state = self.state.lock();
            let counts = &mut state.pin_counts[indices(pages)];
            let not_pinned = counts.iter().position(|count| *count == 0);
            if not_pinned.is_none() {
                counts.fill(0);
                state.pinned_count -= pages.count();
            }
            not_pinned
        };
        if let Some(distance) = not_pinned {
            panic!("page {} is not pinned", pages.first() + distance as u64);
        }
    }

    fn read(&self, offset: u64, into: &mut [u8]) -> Result<(), PinError> {
        if self.kind == Kind::Device {
            return Err(PinError::NoAccess);
        }
        check_bytes(self, offset, into.len())?;
        let first = offset as usize;
        let state = self.state.lock();
        into.copy_from_slice(&state.bytes[first..first + into.len()]);
        Ok(())
    }

    fn write(&self, offset: u64, from: &[u8]) -> Result<(), PinError> {
        if self.kind == Kind::Device {
            return Err(PinError::NoAccess);
        }
        check_write(self, offset, from.len())?;
        let first = offset as usize;
        let mut state = self.state.lock();
        state.bytes[first..first + from.len()].copy_from_slice(from);
        Ok(())
    }
}

impl fmt::Debug for Simulated {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Simulated")
            .field("page_size", &self.page_size)
            .field("page_count", &self.page_count)
            .field("pinned_pages", &self.pinned_pages())
            .finish_non_exhaustive()
    }
}
