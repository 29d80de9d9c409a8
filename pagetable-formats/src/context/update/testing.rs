//! Hardware that reads an entry at the worst moments: finds out all that it may see of an update.

extern crate std;

use std::vec;
use std::vec::Vec;

use super::{Fetch, Rules, Step, Update, plan};

impl<const N: usize> Step<N> {
    /// Returns the step of a writer that forgets to sync.
    pub(crate) const fn without_sync(mut self) -> Self {
        self.needs_sync = false;
        self
    }
}

/// What a reader may find.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Seen<const N: usize> {
    /// An entry that is neither the old one nor the new one, and lets something pass.
    pub(crate) torn: Option<[u64; N]>,
    /// Whether there is an entry that is not valid, or blocks.
    pub(crate) is_blocked: bool,
    /// What the entry holds in the end.
    pub(crate) reached: [u64; N],
}

/// Finds everything that hardware may read while `steps` are carried out.
///
/// A fetch begins and ends between two syncs. Stores of a step are tried first to last and last to
/// first. [`Fetch::AnyOrder`]: each unit is read at any moment, so that it has any of the values
/// that it has between two syncs, independent of the others. [`Fetch::ValidFirst`]: likewise if the
/// entry was valid; if not, the other units are not read before the first one, and not at all if that
/// is not valid. [`Fetch::Whole`]: all are read at once, at any moment.
pub(crate) fn observe<const N: usize, R: Rules<N>>(
    rules: &R,
    current: &[u64; N],
    target: &[u64; N],
    steps: &[Step<N>],
) -> Seen<N> {
    let mut seen = Seen {
        torn: None,
        is_blocked: false,
        reached: *current,
    };
    for is_reversed in [false, true] {
        let mut words = *current;
        // What the entry held since the last sync.
        let mut states = vec![words];
        for step in steps {
            let mut stores: Vec<_> = step.stores().collect();
            if is_reversed {
                stores.reverse();
            }
            for store in stores {
                words[store.first..][..store.words.len()].copy_from_slice(store.words);
                states.push(words);
            }
            if step.needs_sync() {
                fetch(rules, &states, |entry| {
                    judge(rules, current, target, entry, &mut seen);
                });
                states = vec![words];
            }
        }
        fetch(rules, &states, |entry| {
            judge(rules, current, target, entry, &mut seen);
        });
        seen.reached = words;
    }
    seen
}

/// Calls `found` with all that one fetch may read from an entry with these `states`, first to last.
fn fetch<const N: usize, R: Rules<N>>(
    rules: &R,
    states: &[[u64; N]],
    mut found: impl FnMut(&[u64; N]),
) {
    match rules.fetch() {
        Fetch::Whole => states.iter().for_each(found),
        Fetch::AnyOrder => mixtures(rules, states, 0, states[0], &mut found),
        Fetch::ValidFirst if rules.is_valid(&states[0]) => {
            mixtures(rules, states, 0, states[0], &mut found);
        }
        Fetch::ValidFirst => {
            for (moment, state) in states.iter().enumerate() {
                if rules.is_valid(state) {
                    mixtures(rules, &states[moment..], 1, *state, &mut found);
                } else {
                    found(state);
                }
            }
        }
    }
}

/// Calls `found` with `entry` and all values of its units from `index` on.
fn mixtures<const N: usize, R: Rules<N>>(
    rules: &R,
    states: &[[u64; N]],
    index: usize,
    entry: [u64; N],
    found: &mut impl FnMut(&[u64; N]),
) {
    let unit = rules.unit().words().min(N);
    let words = index * unit..(index + 1) * unit;
    if words.start == N {
        return found(&entry);
    }
    let mut tried: Vec<&[u64]> = Vec::new();
    for state in states {
        let value = &state[words.clone()];
        if !tried.contains(&value) {
            tried.push(value);
            let mut entry = entry;
            entry[words.clone()].copy_from_slice(value);
            mixtures(rules, states, index + 1, entry, found);
        }
    }
}

fn judge<const N: usize, R: Rules<N>>(
    rules: &R,
    current: &[u64; N],
    target: &[u64; N],
    entry: &[u64; N],
    seen: &mut Seen<N>,
) {
    let (used_now, used_then) = (rules.used(current), rules.used(target));
    let safe = rules.safe(current, target);
    let safe: [u64; N] = core::array::from_fn(|word| safe[word] & used_now[word] & used_then[word]);
    let used = rules.used(entry);
    let preserved = rules.preserved();
    let is_like = |other: &[u64; N]| {
        let other_used = rules.used(other);
        (0..N).all(|word| {
            let read = (used[word] | other_used[word]) & !safe[word] & !preserved[word];
            (entry[word] ^ other[word]) & read == 0
        })
    };
    let blocks = (entry[0] ^ rules.blocked()) & used[0] & !preserved[0] == 0;
    seen.is_blocked |= blocks || !rules.is_valid(entry);
    if !blocks && !is_like(current) && !is_like(target) {
        seen.torn = Some(*entry);
    }
}

/// Plans the update, and checks that nothing but the old entry, the new one or, if the update says
/// so, a blocking one is ever seen, and that the new one stands there in the end.
pub(crate) fn check<const N: usize, R: Rules<N>>(
    rules: &R,
    current: &[u64; N],
    target: &[u64; N],
) -> Update<N> {
    let update = plan(rules, current, target);
    let seen = observe(rules, current, target, update.steps());
    let context = || std::format!("{current:x?} -> {target:x?}: {update:x?}");
    assert_eq!(seen.torn, None, "{}", context());
    let preserved = rules.preserved();
    for word in 0..N {
        let expected = current[word] & preserved[word] | target[word] & !preserved[word];
        assert_eq!(seen.reached[word], expected, "{}", context());
    }
    let are_valid = rules.is_valid(current) && rules.is_valid(target);
    assert_eq!(update.is_hitless(), are_valid && !update.is_breaking());
    if are_valid {
        assert_eq!(seen.is_blocked, update.is_breaking(), "{}", context());
    }
    update
}

/// Checks that an entry uses the bits that it uses whatever the other bits are.
pub(crate) fn check_closed<const N: usize, R: Rules<N>>(
    rules: &R,
    entry: &[u64; N],
    noise: &[u64; N],
) {
    let used = rules.used(entry);
    let other = core::array::from_fn(|word| entry[word] & used[word] | noise[word] & !used[word]);
    assert_eq!(rules.used(&other), used, "{entry:x?} and {other:x?}");
    assert_eq!(rules.is_valid(&other), rules.is_valid(entry));
}
