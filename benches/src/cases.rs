//! What the wall-clock benches of single operations do.
//!
//! | case | a call covers |
//! |---|---|
//! | 4K, 64K, 2M, 1G | one entry: a page, a block, or contiguous items where the format has them |
//! | 2M of 4K, 1G of 4K | as many entries as it takes: the output address fits small pages only |
//!
//! Warm calls repeat on tables that exist. Cold ones find nothing in the core's own caches; new
//! ones start in a table without any pages. Both go to another leaf table with each call, where
//! there are enough. A lookup is always of one address.

use std::hint::black_box;
use std::sync::OnceLock;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use iopt_formats::Format;

use crate::clock;
use crate::instructions::Operation;
use crate::pool::{PAGE_LEN, Page, leak_pages};
use crate::random::Random;
use crate::subject::{MakeSubject, Subject};
use crate::workload::{FIRST_IOVA, Make as _};

const KIB_4: u64 = 1 << 12;
const KIB_64: u64 = 1 << 16;
const MIB_2: u64 = 1 << 21;
const GIB_1: u64 = 1 << 30;

/// Memory that is read to fill a core's own caches with something else: 64 MiB.
const SWEEP_PAGE_COUNT: usize = (64 << 20) / PAGE_LEN;

/// How the tables are found.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum State {
    /// As the call before left them.
    Warm,
    /// In no cache of the core's own.
    Cold,
    /// Without any table but the root.
    New,
}

impl State {
    /// Returns the name as text.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Warm => "warm",
            Self::Cold => "cold",
            Self::New => "new",
        }
    }
}

/// Calls that cover addresses in one way.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    name: &'static str,
    len: u64,
    /// Output address less IOVA; decides which pages fit.
    oa_offset: u64,
    count: u64,
    /// Distance of calls that do not share a leaf table.
    sparse_stride: u64,
}

/// Every case.
pub const CASES: [Case; 6] = [
    Case {
        name: "4K",
        len: KIB_4,
        oa_offset: KIB_4,
        count: 511,
        sparse_stride: MIB_2,
    },
    Case {
        name: "64K",
        len: KIB_64,
        oa_offset: KIB_64,
        count: 31,
        sparse_stride: MIB_2,
    },
    Case {
        name: "2M",
        len: MIB_2,
        oa_offset: MIB_2,
        count: 255,
        sparse_stride: GIB_1,
    },
    Case {
        name: "1G",
        len: GIB_1,
        oa_offset: GIB_1,
        count: 255,
        sparse_stride: GIB_1,
    },
    Case {
        name: "2M of 4K",
        len: MIB_2,
        oa_offset: KIB_4,
        count: 128,
        sparse_stride: MIB_2,
    },
    Case {
        name: "1G of 4K",
        len: GIB_1,
        oa_offset: KIB_4,
        count: 1,
        sparse_stride: GIB_1,
    },
];

impl Case {
    /// Returns the name.
    pub const fn name(&self) -> &'static str {
        self.name
    }

    /// Returns how long `call_count` calls take, measured in as many whole rounds as hold them.
    pub fn elapsed<F: Format>(
        &self,
        format: F,
        operation: Operation,
        state: State,
        call_count: u64,
    ) -> Duration {
        let calls = self.calls(state);
        let probes = self.probes(&calls);
        let timed_count = match operation {
            Operation::Map | Operation::Unmap => calls.len(),
            Operation::Lookup | Operation::LookupAlone | Operation::LookupOwn => probes.len(),
        };
        let round_count = call_count.div_ceil(timed_count as u64).max(1);
        let make = MakeSubject(format);
        let round = |subject: &mut Subject<'_, F>| {
            if state == State::Cold {
                sweep();
            }
            let mapped = clock::time(|| self.map(subject, &calls));
            if state == State::Cold {
                sweep();
            }
            match operation {
                Operation::Map => {
                    self.unmap(subject, &calls);
                    mapped
                }
                Operation::Unmap => clock::time(|| self.unmap(subject, &calls)),
                Operation::Lookup | Operation::LookupAlone | Operation::LookupOwn => {
                    let found = clock::time(|| operation.look_up(subject, &probes));
                    self.unmap(subject, &calls);
                    found
                }
            }
        };
        let rounds = 0..round_count;
        let ns: f64 = if state == State::New {
            rounds.map(|_| make.with(round)).sum()
        } else {
            make.with(|subject| {
                self.map(subject, &calls);
                self.unmap(subject, &calls);
                rounds.map(|_| round(subject)).sum()
            })
        };
        let ns_of_call = ns / (round_count as f64 * timed_count as f64);
        Duration::from_secs_f64(ns_of_call * call_count as f64 / 1e9)
    }

    /// Returns the addresses of a round of calls.
    fn calls(&self, state: State) -> Vec<u64> {
        let stride = if state == State::Warm {
            self.len
        } else {
            self.sparse_stride
        };
        (0..self.count).map(|i| FIRST_IOVA + i * stride).collect()
    }

    /// Returns the addresses of a round of lookups: one for each entry, in random order if a call
    /// has several.
    fn probes(&self, calls: &[u64]) -> Vec<u64> {
        if self.oa_offset == self.len {
            return calls.to_vec();
        }
        let pages = |&call: &u64| (call..call + self.len).step_by(KIB_4 as usize);
        let mut probes: Vec<u64> = calls.iter().flat_map(pages).collect();
        Random::new(6).shuffle(&mut probes);
        probes
    }

    #[inline(never)]
    fn map<F: Format>(&self, subject: &mut Subject<'_, F>, calls: &[u64]) {
        for &iova in calls {
            subject.map(iova, iova + self.oa_offset, self.len);
        }
    }

    #[inline(never)]
    fn unmap<F: Format>(&self, subject: &mut Subject<'_, F>, calls: &[u64]) {
        for &iova in calls {
            subject.unmap(iova, self.len);
        }
    }
}

/// Fills the core's own caches with something else.
fn sweep() {
    static PAGES: OnceLock<&[Page]> = OnceLock::new();
    let pages = *PAGES.get_or_init(|| leak_pages(SWEEP_PAGE_COUNT));
    let lines = pages.iter().flat_map(|page| page.0.chunks_exact(8));
    black_box(lines.fold(0, |seen, line| seen | line[0].load(Relaxed)));
}
