//! The yardsticks by name, and the loops among them as sides of a measurement.

use core::fmt;
use std::hint::black_box;
use std::sync::OnceLock;
use std::sync::atomic::AtomicU64;

use crate::clock;
use crate::pool::{Page, leak_pages};
use crate::random::Random;
use crate::workload::{FIRST_IOVA, Phase, Times};
use crate::yardstick::{
    VALID, Walk, check_and_clear, check_and_store, empty_calls, exchanges, store, zero,
    zero_and_store,
};

/// Tables of the loops that work out of the second-level cache: 512 KiB.
const L2_PAGE_COUNT: usize = 128;

/// Tables of the loop that works out of memory: 512 MiB.
const DRAM_PAGE_COUNT: usize = 1 << 17;

/// Tables that one round of that loop fills.
const DRAM_ROUND_COUNT: usize = 1 << 10;

const ITEM_COUNT: usize = 512;

/// Something to measure the engine against.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Yardstick {
    /// Stores.
    Y1,
    /// Checks and stores.
    Y2,
    /// Checks and clears.
    Y3,
    /// Zeroing and stores, in the caches.
    Y4a,
    /// Zeroing and stores, in memory.
    Y4b,
    /// Independent walks of 64 pages.
    Y5a,
    /// Independent walks of 65 536 pages in random order.
    Y5b,
    /// Dependent walks of 64 pages.
    Y5c,
    /// Calls.
    Y6,
    /// Compare-exchanges.
    Y7,
    /// The crate `page_table_multiarch`.
    Y8,
    /// The crate `aarch64-paging`.
    Y9,
    /// The crate `x86_64`.
    Y10,
    /// Zeroing of a page.
    Y12,
}

impl Yardstick {
    /// The loops.
    pub const LOOPS: [Self; 11] = [
        Self::Y1,
        Self::Y2,
        Self::Y3,
        Self::Y4a,
        Self::Y4b,
        Self::Y5a,
        Self::Y5b,
        Self::Y5c,
        Self::Y6,
        Self::Y7,
        Self::Y12,
    ];

    /// The crates.
    pub const PEERS: [Self; 3] = [Self::Y8, Self::Y9, Self::Y10];

    /// Returns the name with what it does.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Y1 => "Y1 store",
            Self::Y2 => "Y2 check+store",
            Self::Y3 => "Y3 check+clear",
            Self::Y4a => "Y4a zero+store, L2",
            Self::Y4b => "Y4b zero+store, DRAM",
            Self::Y5a => "Y5a walk, L1",
            Self::Y5b => "Y5b walk, L2",
            Self::Y5c => "Y5c walk, dependent",
            Self::Y6 => "Y6 call",
            Self::Y7 => "Y7 cmpxchg",
            Self::Y8 => "Y8 multiarch",
            Self::Y9 => "Y9 aarch64-paging",
            Self::Y10 => "Y10 x86_64",
            Self::Y12 => "Y12 zero a page",
        }
    }

    /// Returns whether it is a crate, so that it does the subject's own workload.
    pub const fn is_peer(self) -> bool {
        matches!(self, Self::Y8 | Self::Y9 | Self::Y10)
    }

    /// Returns whether it exists on this processor.
    pub const fn is_available(self) -> bool {
        cfg!(target_arch = "x86_64") || !matches!(self, Self::Y8 | Self::Y10)
    }

    /// Returns the phase in whose place its time stands, if `phase` is compared with it.
    pub const fn phase(self, phase: Phase) -> Phase {
        if self.is_peer() { phase } else { Phase::Map }
    }
}

impl fmt::Display for Yardstick {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// Does a round of work each time it is called and returns the time an entry.
pub type Rounds<'a> = Box<dyn FnMut() -> Times + 'a>;

/// Returns the rounds of a loop, each of which returns its time as that of [`Phase::Map`].
///
/// # Panics
///
/// Panics if `yardstick` is a crate.
pub fn rounds(yardstick: Yardstick) -> Rounds<'static> {
    match yardstick {
        Yardstick::Y1 => Box::new(|| over_l2(|_| {}, store)),
        Yardstick::Y2 => Box::new(|| {
            over_l2(zero, |page, word| {
                check_and_store(page, word).expect("the page was zeroed");
            })
        }),
        Yardstick::Y3 => Box::new(|| {
            over_l2(
                |page| store(page, VALID),
                |page, _| check_and_clear(page).expect("the page was filled"),
            )
        }),
        Yardstick::Y4a => Box::new(|| over_l2(|_| {}, zero_and_store)),
        Yardstick::Y4b => Box::new(dram_rounds()),
        Yardstick::Y5a => Box::new(|| walks(hot_walk(), Walk::throughput)),
        Yardstick::Y5b => Box::new(|| walks(wide_walk(), Walk::throughput)),
        Yardstick::Y5c => Box::new(|| walks(hot_walk(), Walk::dependent)),
        Yardstick::Y6 => Box::new(|| counted(4096, empty_calls)),
        Yardstick::Y7 => {
            let word = AtomicU64::new(0);
            Box::new(move || counted(4096, |count| exchanges(&word, count)))
        }
        Yardstick::Y12 => Box::new(|| {
            let page = &l2_pages()[0];
            counted(256, |count| (0..count).for_each(|_| zero(black_box(page))))
        }),
        Yardstick::Y8 | Yardstick::Y9 | Yardstick::Y10 => {
            panic!("{yardstick} is no loop")
        }
    }
}

fn l2_pages() -> &'static [Page] {
    static PAGES: OnceLock<&[Page]> = OnceLock::new();
    PAGES.get_or_init(|| leak_pages(L2_PAGE_COUNT))
}

/// Times `work` over a set of tables; `prepare` is not timed.
#[inline(always)]
fn over_l2(prepare: impl Fn(&Page), work: impl Fn(&Page, u64)) -> Times {
    let pages = l2_pages();
    pages.iter().for_each(prepare);
    let ns = clock::time(|| {
        for (page, word) in pages.iter().zip((FIRST_IOVA | VALID..).step_by(1 << 21)) {
            work(page, word);
        }
    });
    Times {
        map: ns / (L2_PAGE_COUNT * ITEM_COUNT) as f64,
        ..Times::default()
    }
}

fn dram_rounds() -> impl FnMut() -> Times {
    static PAGES: OnceLock<Vec<&Page>> = OnceLock::new();
    let pages = PAGES.get_or_init(|| {
        let mut pages: Vec<&Page> = leak_pages(DRAM_PAGE_COUNT).iter().collect();
        Random::new(4).shuffle(&mut pages);
        pages
    });
    let mut chunks = pages.chunks_exact(DRAM_ROUND_COUNT).cycle();
    move || {
        let chunk = chunks.next().expect("the cycle does not end");
        let ns = clock::time(|| {
            for (page, word) in chunk.iter().zip((FIRST_IOVA | VALID..).step_by(1 << 21)) {
                zero_and_store(page, word);
            }
        });
        Times {
            map: ns / (DRAM_ROUND_COUNT * ITEM_COUNT) as f64,
            ..Times::default()
        }
    }
}

fn hot_walk() -> &'static Walk {
    static WALK: OnceLock<Walk> = OnceLock::new();
    WALK.get_or_init(|| Walk::new((0..64).map(|i| FIRST_IOVA + i * 4096).collect()))
}

fn wide_walk() -> &'static Walk {
    static WALK: OnceLock<Walk> = OnceLock::new();
    WALK.get_or_init(|| {
        let mut iovas: Vec<u64> = (0..65_536).map(|i| FIRST_IOVA + i * 4096).collect();
        Random::new(5).shuffle(&mut iovas);
        Walk::new(iovas)
    })
}

fn walks(walk: &Walk, pass: fn(&Walk) -> u64) -> Times {
    let pass_count = 4096_usize.div_ceil(walk.count());
    let ns = clock::time(|| {
        for _ in 0..pass_count {
            black_box(pass(walk));
        }
    });
    Times {
        map: ns / (pass_count * walk.count()) as f64,
        ..Times::default()
    }
}

fn counted(count: u32, work: impl FnOnce(u64)) -> Times {
    Times {
        map: clock::time(|| work(u64::from(count))) / f64::from(count),
        ..Times::default()
    }
}
