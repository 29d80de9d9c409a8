//! The hitless writer: from one entry to another while hardware reads it.
//!
//! An entry is larger than what hardware reads, or software stores, at once. Written carelessly, it
//! shows a device a mixture: the table of one configuration with the widths of another. [`plan`]
//! finds the shortest sequence of stores and syncs that shows only the old entry, the new one or,
//! where nothing else is possible, one that blocks. It is a pure function; whoever owns the entry
//! carries the steps out.
//!
//! Everything follows from one observation: hardware reads only those bits that the configuration
//! makes it read ([`Rules::used`]). With units of what is stored and read at once:
//!
//! 1. bits that hardware does not read now change at any time, unit by unit;
//! 2. if then a single unit differs in what hardware will read, one store switches from the old
//!    entry to the new one;
//! 3. bits that hardware reads no longer change at any time.
//!
//! If several units differ after 1, the entry blocks meanwhile: unit 0, the others, unit 0 again.
//! The valid bit needs no rule of its own: an invalid entry uses nothing but that bit, so that it is
//! what 2 stores last when an entry becomes valid, and first when it ceases to be.
//!
//! Between two of these phases hardware must not hold a word that it read before the first one. A
//! sync (invalidate what is cached of the entry, wait for it) makes sure of that; how much of that
//! is needed depends on how hardware fetches the entry ([`Fetch`]).

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

/// How many bytes are stored and read at once.
///
/// The smaller one of what software stores in one piece and what hardware reads in one piece: a
/// reader sees all of such an aligned unit as it was before a store, or all of it as after.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Unit {
    /// One word.
    Bytes8,
    /// Two words.
    Bytes16,
    /// Four words.
    Bytes32,
}

impl Unit {
    /// Returns the length in words.
    pub const fn words(self) -> usize {
        match self {
            Self::Bytes8 => 1,
            Self::Bytes16 => 2,
            Self::Bytes32 => 4,
        }
    }
}

/// How hardware fetches an entry of several units.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Fetch {
    /// Unit by unit, in any order, at any time since the last sync, even of an invalid entry.
    AnyOrder,
    /// In any order, but if the entry is not valid, nothing of it except unit 0, which holds the
    /// valid bit, is used later. Nothing is assumed of entries that were valid all the time.
    ValidFirst,
    /// The whole entry at once, although software stores it in units: only the order of stores
    /// counts.
    Whole,
}

/// What the writer must know about entries of `N` words.
///
/// Implementations keep two laws. *Closed*: two entries that agree in the bits that the first one
/// uses use the same bits. *Valid*: a `blocked` entry uses bits of unit 0 only as far as their
/// values let something pass.
pub trait Rules<const N: usize> {
    /// Returns the bits that hardware reads if it finds `entry`.
    fn used(&self, entry: &[u64; N]) -> [u64; N];

    /// Returns whether the entry is one that hardware acts on (`V`, `P`).
    fn is_valid(&self, entry: &[u64; N]) -> bool;

    /// Returns what is stored and read at once. A unit longer than the entry means all of it.
    fn unit(&self) -> Unit {
        Unit::Bytes8
    }

    /// Returns how hardware fetches the units.
    fn fetch(&self) -> Fetch {
        Fetch::AnyOrder
    }

    /// Returns whether hardware may keep an entry that it found not valid, so that it must be told
    /// once the entry becomes valid. Without meaning for [`Fetch::AnyOrder`], which always may.
    fn keeps_invalid(&self) -> bool {
        true
    }

    /// Returns the bits that may change apart from the others where both entries use them,
    /// because any mixture of their values is harmless on the way from `current` to `target`.
    fn safe(&self, current: &[u64; N], target: &[u64; N]) -> [u64; N] {
        let _ = (current, target);
        [0; N]
    }

    /// Returns the bits that belong to somebody else: they keep their current values, whatever the
    /// target says. Their owner must not store them during the update.
    fn preserved(&self) -> [u64; N] {
        [0; N]
    }

    /// Returns word 0 of an entry that blocks, whatever the other words hold.
    fn blocked(&self) -> u64 {
        0
    }
}

/// Stores in any order, all of them after those of the step before.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Step<const N: usize> {
    words: [u64; N],
    /// Bit n: word n is stored. All words of a unit are, or none.
    stored: u8,
    unit: u8,
    needs_sync: bool,
}

impl<const N: usize> Step<N> {
    const NONE: Self = Self {
        words: [0; N],
        stored: 0,
        unit: 1,
        needs_sync: false,
    };

    /// Returns the stores, each of one unit.
    pub fn stores(&self) -> impl Iterator<Item = Store<'_>> {
        let unit = usize::from(self.unit);
        let units = self.words.chunks_exact(unit).enumerate();
        units
            .map(move |(index, words)| Store {
                first: index * unit,
                words,
            })
            .filter(|store| self.stored >> store.first & 1 != 0)
    }

    /// Returns whether hardware must be told about the entry, and have confirmed, before the next
    /// step or, after the last one, before the update is done. Otherwise the stores need only be
    /// ordered before those of the next step.
    pub const fn needs_sync(&self) -> bool {
        self.needs_sync
    }
}

/// One store of a unit.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Store<'a> {
    /// Index of the first word.
    pub first: usize,
    /// The words, as many as a unit has.
    pub words: &'a [u64],
}

/// The way from one entry to another.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Update<const N: usize> {
    steps: [Step<N>; 3],
    count: u8,
    is_breaking: bool,
    is_hitless: bool,
}

impl<const N: usize> Update<N> {
    /// Returns the steps, three at most, none if the entry is what it shall be.
    pub fn steps(&self) -> &[Step<N>] {
        &self.steps[..usize::from(self.count)]
    }

    /// Returns whether hardware finds a valid entry at every moment: both entries are, and none in
    /// between blocks.
    pub const fn is_hitless(&self) -> bool {
        self.is_hitless
    }

    /// Returns whether hardware may find a blocking entry that is neither the old one nor the new
    /// one.
    pub const fn is_breaking(&self) -> bool {
        self.is_breaking
    }

    /// Returns how often hardware must be told.
    pub fn sync_count(&self) -> usize {
        self.steps().iter().filter(|step| step.needs_sync).count()
    }
}

/// Collects steps, leaving out what changes nothing.
struct Planner<const N: usize> {
    update: Update<N>,
    /// What the entry holds after the steps so far.
    reached: [u64; N],
    unit: usize,
}

impl<const N: usize> Planner<N> {
    /// Adds a step that brings the units for which `is_meant` holds to `target`, unless they hold
    /// that already.
    fn step(&mut self, target: &[u64; N], is_meant: impl Fn(usize) -> bool, needs_sync: bool) {
        let mut stored = 0;
        for first in (0..N).step_by(self.unit) {
            let words = first..first + self.unit;
            if is_meant(first / self.unit) && self.reached[words.clone()] != target[words.clone()] {
                self.reached[words.clone()].copy_from_slice(&target[words.clone()]);
                stored |= words.fold(0, |mask, word| mask | 1 << word);
            }
        }
        if stored != 0 {
            self.update.steps[usize::from(self.update.count)] = Step {
                words: self.reached,
                stored,
                unit: self.unit as u8,
                needs_sync,
            };
            self.update.count += 1;
        }
    }

    /// Returns the update. Where no step needs a sync for the sake of the next one, the one that
    /// ends an update that does not break stands after all stores.
    fn finish(mut self, fetch: Fetch) -> Update<N> {
        if let (Fetch::Whole, false) = (fetch, self.update.is_breaking) {
            let steps = &mut self.update.steps[..usize::from(self.update.count)];
            let needs_sync = steps.iter().any(|step| step.needs_sync);
            for step in &mut *steps {
                step.needs_sync = false;
            }
            if let Some(last) = steps.last_mut() {
                last.needs_sync = needs_sync;
            }
        }
        self.update
    }
}

/// Returns the shortest way from `current`, which hardware may be reading, to `target`.
///
/// Bits of [`Rules::preserved`] in `target` count as those of `current`. The steps assume that
/// hardware was told of everything that led to `current`, and that nobody else stores the entry.
pub fn plan<const N: usize, R: Rules<N> + ?Sized>(
    rules: &R,
    current: &[u64; N],
    target: &[u64; N],
) -> Update<N> {
    const {
        assert!(
            N.is_power_of_two() && N <= 8,
            "steps note words in eight bits, and units divide entries"
        );
    }
    let unit = rules.unit().words().min(N);
    let preserved = rules.preserved();
    let target = merge(&preserved, current, target);
    let (used_now, used_then) = (rules.used(current), rules.used(&target));
    let safe = rules.safe(current, &target);
    // What the entry holds until the switch. A safe bit that one side alone uses is not special.
    let held = core::array::from_fn(|word| used_now[word] & !(safe[word] & used_then[word]));
    let ahead = merge(&held, current, &target);
    let mut critical = (0..N / unit).filter(|index| {
        let mut words = index * unit..(index + 1) * unit;
        words.any(|word| (ahead[word] ^ target[word]) & used_then[word] != 0)
    });

    let (was_valid, is_valid) = (rules.is_valid(current), rules.is_valid(&target));
    let fetch = rules.fetch();
    // Whether hardware may have read a word of the entry before the step and use it after it.
    let lingers = |is_readable| match fetch {
        Fetch::AnyOrder => true,
        Fetch::ValidFirst => is_readable,
        Fetch::Whole => false,
    };
    // Whether hardware may hold the old entry, all of it.
    let is_kept = match fetch {
        Fetch::AnyOrder => true,
        Fetch::ValidFirst | Fetch::Whole => was_valid || rules.keeps_invalid(),
    };
    let mut planner = Planner {
        update: Update {
            steps: [Step::NONE; 3],
            count: 0,
            is_breaking: false,
            is_hitless: was_valid && is_valid,
        },
        reached: *current,
        unit,
    };
    match (critical.next(), critical.next()) {
        (None, _) => planner.step(&target, |_| true, is_kept),
        (Some(critical), None) => {
            planner.step(&ahead, |index| index != critical, lingers(was_valid));
            planner.step(&target, |index| index == critical, is_kept);
            planner.step(&target, |_| true, lingers(is_valid));
        }
        (Some(_), Some(_)) => {
            let blocked = rules.blocked();
            let mut blocking = *current;
            blocking[0] = blocked & !preserved[0] | current[0] & preserved[0];
            planner.step(&blocking, |index| index == 0, true);
            planner.step(&target, |index| index != 0, lingers(false));
            planner.step(&target, |index| index == 0, true);
            planner.update.is_breaking = true;
            planner.update.is_hitless = false;
        }
    }
    planner.finish(fetch)
}

/// Returns the bits of `set` where `mask` is set, and those of `clear` elsewhere.
fn merge<const N: usize>(mask: &[u64; N], set: &[u64; N], clear: &[u64; N]) -> [u64; N] {
    core::array::from_fn(|word| set[word] & mask[word] | clear[word] & !mask[word])
}
