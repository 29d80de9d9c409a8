//! What one IOMMU holds.

use std::collections::{BTreeSet, VecDeque};
use std::fmt;

use crate::atc::Atcs;
use crate::behaviour::{Architecture, Effect};
use crate::context_cache::ContextCache;
use crate::injection::Injections;
use crate::iotlb::Iotlb;
use crate::queue::{self, Queue};
use crate::report::Logged;
use crate::statistics::Statistics;
use crate::walk_cache::WalkCache;

/// Commands that are remembered for reports.
const MOST_LOGGED: usize = 1 << 14;

pub(crate) struct State {
    pub(crate) queue: Box<dyn Queue>,
    pub(crate) iotlb: Iotlb,
    pub(crate) walk_cache: WalkCache,
    pub(crate) atcs: Atcs,
    pub(crate) contexts: ContextCache,
    pub(crate) log: VecDeque<Logged>,
    /// Commands consumed.
    pub(crate) commands: u64,
    /// What was consumed since the last sync, by command.
    pub(crate) pending: Vec<Vec<Effect>>,
    /// When the sync at the head is complete, if it has begun.
    pub(crate) sync_due: Option<u64>,
    /// The sync at the head does not complete.
    pub(crate) is_stuck: bool,
    /// The command at the head was counted for injections.
    pub(crate) is_counted: bool,
    /// A device did not answer since the last sync.
    pub(crate) has_timed_out: bool,
    pub(crate) injections: Injections,
    pub(crate) statistics: Statistics,
    /// Everyone who made a request.
    pub(crate) requesters: BTreeSet<(u32, Option<u32>)>,
    random: u64,
}

impl State {
    pub(crate) fn new(architecture: &Architecture, seed: u64) -> Self {
        Self {
            queue: queue::of(architecture),
            iotlb: Iotlb::default(),
            walk_cache: WalkCache::default(),
            atcs: Atcs::default(),
            contexts: ContextCache::default(),
            log: VecDeque::new(),
            commands: 0,
            pending: Vec::new(),
            sync_due: None,
            is_stuck: false,
            is_counted: false,
            has_timed_out: false,
            injections: Injections::default(),
            statistics: Statistics::default(),
            requesters: BTreeSet::new(),
            random: seed,
        }
    }

    pub(crate) fn log(&mut self, logged: Logged) {
        if self.log.len() == MOST_LOGGED {
            self.log.pop_front();
        }
        self.log.push_back(logged);
    }

    /// Returns a number below `count`, which is not 0 (splitmix64).
    pub(crate) fn draw(&mut self, count: usize) -> usize {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.random;
        mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((mixed ^ mixed >> 31) % count as u64) as usize
    }
}

impl fmt::Debug for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("State")
            .field("commands", &self.commands)
            .field("leaves", &self.iotlb.len())
            .field("pointers", &self.walk_cache.len())
            .finish_non_exhaustive()
    }
}
