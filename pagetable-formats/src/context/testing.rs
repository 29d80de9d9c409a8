//! For tests of entries: random words, and readers that look at an entry while it changes.

use super::update::{Fetch, Rules, plan};

/// A xorshift generator.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) const fn new(seed: u64) -> Self {
        Self(seed | 1)
    }

    pub(crate) const fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// Returns a number below `bound`.
    pub(crate) const fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
}

/// How often hardware is told, and whether anything but the two entries was there to be seen.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Seen {
    pub(crate) syncs: usize,
    pub(crate) is_breaking: bool,
}

/// Carries out the update and hands `check` every entry that a reader may put together: word by
/// word, the first one first, between two syncs; or the whole entry after any store.
///
/// A reader of single words meets the words of a step in any order, so each word that it reads later
/// is as old as the first one or newer.
pub(crate) fn watch<const N: usize, R: Rules<N>>(
    rules: &R,
    current: [u64; N],
    target: [u64; N],
    mut check: impl FnMut([u64; N]),
) -> Seen {
    let update = plan(rules, &current, &target);
    let mut reached = current;
    // What the entry held at each step since the last sync.
    let mut states = [[0; N]; 4];
    let mut count = 1;
    states[0] = current;
    for step in update.steps() {
        let before = reached;
        let stores = step.stores().count();
        assert!(stores > 0, "an empty step");
        // Every set of this step's stores, done while the others are not.
        for done in 0..1_u32 << stores {
            reached = before;
            for (index, store) in step.stores().enumerate() {
                if done >> index & 1 != 0 {
                    reached[store.first..store.first + store.words.len()]
                        .copy_from_slice(store.words);
                }
            }
            if rules.fetch() == Fetch::Whole {
                check(reached);
            }
        }
        states[count] = reached;
        count += 1;
        if step.needs_sync() {
            if rules.fetch() == Fetch::ValidFirst {
                read_in_pieces(rules, &states[..count], &mut check);
            }
            states[0] = reached;
            count = 1;
        }
    }
    if rules.fetch() == Fetch::ValidFirst {
        read_in_pieces(rules, &states[..count], &mut check);
    }
    let preserved = rules.preserved();
    for word in 0..N {
        let expected = target[word] & !preserved[word] | current[word] & preserved[word];
        assert_eq!(reached[word], expected, "word {word} in the end");
    }
    Seen {
        syncs: update.sync_count(),
        is_breaking: update.is_breaking(),
    }
}

/// Hands `check` what a reader may have read word by word while the entry held `states` in turn.
fn read_in_pieces<const N: usize, R: Rules<N>>(
    rules: &R,
    states: &[[u64; N]],
    check: &mut impl FnMut([u64; N]),
) {
    for (first, state) in states.iter().enumerate() {
        if !rules.is_valid(state) {
            check(*state);
            continue;
        }
        // One digit a word: which of the states from `first` on it was read in.
        let choices = states.len() - first;
        for mut choice in 0..choices.pow(N as u32 - 1) {
            let mut read = *state;
            for (word, value) in read.iter_mut().enumerate().skip(1) {
                *value = states[first + choice % choices][word];
                choice /= choices;
            }
            check(read);
        }
    }
}

/// Checks that `used` of the valid entry `words` is exactly what its meaning depends on: `meaning` is
/// the same after a flip of another bit, unless it is refused, and never after a flip of a used one.
pub(crate) fn check_used<const N: usize, M: PartialEq + core::fmt::Debug, E>(
    words: [u64; N],
    used: [u64; N],
    meaning: impl Fn([u64; N]) -> Result<M, E>,
) {
    let Ok(now) = meaning(words) else {
        panic!("{words:#x?} is refused")
    };
    for word in 0..N {
        for bit in 0..64 {
            let mut flipped = words;
            flipped[word] ^= 1 << bit;
            let then = meaning(flipped).ok();
            if used[word] >> bit & 1 == 0 {
                assert!(
                    then.is_none_or(|then| then == now),
                    "bit {bit} of word {word} of {words:#x?} is read"
                );
            } else {
                assert_ne!(
                    then.as_ref(),
                    Some(&now),
                    "bit {bit} of word {word} of {words:#x?} is not read"
                );
            }
        }
    }
}
