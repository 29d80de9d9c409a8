//! The planner on toy entries whose words are easy to follow.

extern crate std;

use std::vec::Vec;

use super::testing::{check, check_closed, observe};
use super::{Fetch, Rules, Step, Unit, Update, plan};

/// Bit 0 of word 0: valid. Bits 7:1 of word 0 say which of words 1 to 3 are read.
#[derive(Clone, Copy, Debug)]
struct Toy {
    unit: Unit,
    fetch: Fetch,
    keeps_invalid: bool,
    safe: [u64; 4],
    preserved: [u64; 4],
    blocked: u64,
}

const TOY: Toy = Toy {
    unit: Unit::Bytes8,
    fetch: Fetch::AnyOrder,
    keeps_invalid: true,
    safe: [0; 4],
    preserved: [0; 4],
    blocked: 0,
};

impl Rules<4> for Toy {
    fn used(&self, entry: &[u64; 4]) -> [u64; 4] {
        let reads = |bit: u64| {
            if entry[0] >> bit & 1 == 0 {
                0
            } else {
                u64::MAX
            }
        };
        if self.is_valid(entry) {
            [u64::MAX, reads(1), reads(2), reads(3)]
        } else {
            [1, 0, 0, 0]
        }
    }

    fn is_valid(&self, entry: &[u64; 4]) -> bool {
        entry[0] & 1 != 0
    }

    fn unit(&self) -> Unit {
        self.unit
    }

    fn fetch(&self) -> Fetch {
        self.fetch
    }

    fn keeps_invalid(&self) -> bool {
        self.keeps_invalid
    }

    fn safe(&self, _: &[u64; 4], _: &[u64; 4]) -> [u64; 4] {
        self.safe
    }

    fn preserved(&self) -> [u64; 4] {
        self.preserved
    }

    fn blocked(&self) -> u64 {
        self.blocked
    }
}

/// The steps as pairs of "first word and number of words" and whether they end with a sync.
fn shape<const N: usize>(update: &Update<N>) -> Vec<(Vec<(usize, usize)>, bool)> {
    let stores = |step: &Step<N>| {
        step.stores()
            .map(|store| (store.first, store.words.len()))
            .collect()
    };
    let steps = update.steps().iter();
    steps
        .map(|step| (stores(step), step.needs_sync()))
        .collect()
}

macro_rules! steps {
    ($(([$($word:expr),*], $sync:expr)),*) => {
        std::vec![$((std::vec![$($word),*], $sync)),*]
    };
}

#[test]
fn an_entry_that_is_there_already_takes_no_step() {
    let update = check(&TOY, &[3, 5, 0, 0], &[3, 5, 0, 0]);
    assert_eq!(shape(&update), steps![]);
    assert!(update.is_hitless());
}

#[test]
fn the_valid_word_comes_last_and_leaves_first() {
    let (empty, full) = ([0; 4], [0xf, 1, 2, 3]);
    let update = check(&TOY, &empty, &full);
    let others = [(1, 1), (2, 1), (3, 1)];
    let [a, b, c] = others;
    assert_eq!(shape(&update), steps![([a, b, c], true), ([(0, 1)], true)]);
    assert!(!update.is_hitless() && !update.is_breaking());
    let update = check(&TOY, &full, &empty);
    assert_eq!(shape(&update), steps![([(0, 1)], true), ([a, b, c], true)]);
    assert!(!update.is_hitless() && !update.is_breaking());
}

#[test]
fn one_word_in_use_is_switched_between_what_is_not() {
    // Word 1 before, word 2 after; both stay in place while the other is read.
    let update = check(&TOY, &[3, 7, 0, 0], &[5, 0, 8, 0]);
    assert_eq!(
        shape(&update),
        steps![([(2, 1)], true), ([(0, 1)], true), ([(1, 1)], true)]
    );
    assert!(update.is_hitless());
    // Only a word that both read: one store.
    let update = check(&TOY, &[3, 7, 0, 0], &[3, 8, 0, 0]);
    assert_eq!(shape(&update), steps![([(1, 1)], true)]);
    // Words that nobody reads: one step.
    let update = check(&TOY, &[3, 7, 0, 0], &[3, 7, 1, 1]);
    assert_eq!(shape(&update), steps![([(2, 1), (3, 1)], true)]);
    assert!(update.is_hitless());
}

#[test]
fn two_words_in_use_block_meanwhile() {
    let update = check(&TOY, &[7, 1, 2, 0], &[7, 3, 4, 0]);
    assert_eq!(
        shape(&update),
        steps![([(0, 1)], true), ([(1, 1), (2, 1)], true), ([(0, 1)], true)]
    );
    assert!(update.is_breaking() && !update.is_hitless());
    let first = update.steps()[0]
        .stores()
        .next()
        .map(|store| store.words[0]);
    assert_eq!(first, Some(0));
}

#[test]
fn longer_units_switch_more_at_once() {
    let toy = Toy {
        unit: Unit::Bytes16,
        ..TOY
    };
    let update = check(&toy, &[3, 1, 0, 0], &[3 | 64, 2, 0, 0]);
    assert_eq!(shape(&update), steps![([(0, 2)], true)]);
    let update = check(&toy, &[3, 1, 0, 0], &[13, 0, 3, 4]);
    assert_eq!(shape(&update), steps![([(2, 2)], true), ([(0, 2)], true)]);
    let update = check(&toy, &[7, 1, 2, 0], &[7, 3, 4, 0]);
    assert_eq!(
        shape(&update),
        steps![([(0, 2)], true), ([(2, 2)], true), ([(0, 2)], true)]
    );
    // The other word of unit 0 stays while the entry blocks.
    let first = update.steps()[0].stores().next().map(|store| store.words);
    assert_eq!(first, Some(&[0, 1][..]));
    // A unit that is longer than the entry is all of it.
    let toy = Toy {
        unit: Unit::Bytes32,
        ..TOY
    };
    let update = check(&toy, &[7, 1, 2, 0], &[7, 3, 4, 0]);
    assert_eq!(shape(&update), steps![([(0, 4)], true)]);
    assert!(update.is_hitless());
}

#[test]
fn hardware_that_reads_all_at_once_needs_order_and_one_sync() {
    let toy = Toy {
        unit: Unit::Bytes16,
        fetch: Fetch::Whole,
        ..TOY
    };
    let update = check(&toy, &[3, 1, 0, 0], &[13, 0, 3, 4]);
    assert_eq!(shape(&update), steps![([(2, 2)], false), ([(0, 2)], true)]);
    let update = check(&toy, &[13, 0, 3, 4], &[3, 1, 0, 0]);
    assert_eq!(shape(&update), steps![([(0, 2)], false), ([(2, 2)], true)]);
    // What blocks is made known before anything else changes.
    let update = check(&toy, &[7, 1, 2, 0], &[7, 3, 4, 0]);
    assert_eq!(
        shape(&update),
        steps![([(0, 2)], true), ([(2, 2)], false), ([(0, 2)], true)]
    );
}

#[test]
fn hardware_that_reads_the_valid_bit_first_needs_fewer_syncs() {
    let toy = Toy {
        fetch: Fetch::ValidFirst,
        ..TOY
    };
    let forgets = Toy {
        keeps_invalid: false,
        ..toy
    };
    let (empty, full) = ([0; 4], [3, 1, 0, 0]);
    let appear = |sync| steps![([(1, 1)], false), ([(0, 1)], sync)];
    assert_eq!(shape(&check(&toy, &empty, &full)), appear(true));
    assert_eq!(shape(&check(&forgets, &empty, &full)), appear(false));
    for toy in [toy, forgets] {
        let update = check(&toy, &full, &empty);
        assert_eq!(shape(&update), steps![([(0, 1)], true), ([(1, 1)], false)]);
        // Between two valid entries, words may have been read long ago.
        let update = check(&toy, &[3, 7, 0, 0], &[5, 0, 8, 0]);
        assert_eq!(update.sync_count(), 3);
        let update = check(&toy, &[7, 1, 2, 0], &[7, 3, 4, 0]);
        assert_eq!(
            shape(&update),
            steps![
                ([(0, 1)], true),
                ([(1, 1), (2, 1)], false),
                ([(0, 1)], true)
            ]
        );
    }
}

#[test]
fn safe_bits_change_ahead_of_the_switch() {
    let toy = Toy {
        safe: [0, 0xf, 0, 0],
        ..TOY
    };
    let (from, to) = ([7, 1, 2, 0], [7, 3, 4, 0]);
    let update = check(&toy, &from, &to);
    assert_eq!(shape(&update), steps![([(1, 1)], true), ([(2, 1)], true)]);
    assert!(update.is_hitless());
    // Safe bits alone: one step, whatever words they stand in.
    let toy = Toy {
        safe: [0, 0xf, 0xf, 0],
        ..TOY
    };
    assert_eq!(
        shape(&check(&toy, &from, &to)),
        steps![([(1, 1), (2, 1)], true)]
    );
}

#[test]
fn bits_of_others_keep_their_values() {
    let toy = Toy {
        unit: Unit::Bytes16,
        preserved: [1 << 40, 0, !0xff, 0],
        blocked: 1,
        ..TOY
    };
    let current = [1 << 40 | 7, 1, 0xaa00 | 2, 0];
    let update = check(&toy, &current, &[7, 3, 0xbb00 | 4, 0]);
    let words: Vec<_> = update
        .steps()
        .iter()
        .flat_map(Step::stores)
        .map(|store| (store.first, store.words[0]))
        .collect();
    assert_eq!(words, [(0, 1 << 40 | 1), (2, 0xaa04), (0, 1 << 40 | 7)]);
    // A target that differs in such bits only is there already.
    assert_eq!(check(&toy, &current, &[7, 1, 2, 0]).steps(), []);
}

fn random(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state
}

#[test]
fn random_entries_are_never_torn() {
    let mut state = 0x9e37_79b9_7f4a_7c15;
    for _ in 0..4000 {
        let mut entry = || -> [u64; 4] {
            // Few values, so that words are often equal.
            let words = [0; 4].map(|_: u64| random(&mut state) & 3);
            [random(&mut state) & 0x1f, words[1], words[2], words[3]]
        };
        let (current, target, noise) = (entry(), entry(), entry());
        let safe = [0, 1, 0, 0].map(|bits| bits & noise[1]);
        for unit in [Unit::Bytes8, Unit::Bytes16, Unit::Bytes32] {
            for fetch in [Fetch::AnyOrder, Fetch::ValidFirst, Fetch::Whole] {
                for keeps_invalid in [false, true] {
                    let toy = Toy {
                        unit,
                        fetch,
                        keeps_invalid,
                        safe,
                        ..TOY
                    };
                    check_closed(&toy, &current, &noise);
                    check(&toy, &current, &target);
                }
            }
        }
    }
}

/// The observer finds what careless writers show.
#[test]
fn careless_updates_are_seen_to_tear() {
    let (from, to) = ([3, 7, 0, 0], [5, 0, 8, 0]);
    let update = plan(&TOY, &from, &to);
    let torn = |steps: &[Step<4>]| observe(&TOY, &from, &to, steps).torn.is_some();
    assert!(!torn(update.steps()));
    let [ahead, switch, behind] = update.steps() else {
        panic!("{update:?}");
    };
    for order in [
        [switch, ahead, behind],
        [ahead, behind, switch],
        [behind, switch, ahead],
    ] {
        assert!(torn(&order.map(|step| *step)), "{order:?}");
    }
    // Without the sync after either of the first two.
    for dropped in [0, 1] {
        let mut steps = [*ahead, *switch, *behind];
        steps[dropped].needs_sync = false;
        assert!(torn(&steps), "{dropped}");
    }
    // Everything in one step, or without blocking.
    let all = Step {
        words: to,
        stored: 0b111,
        ..*ahead
    };
    assert!(torn(&[all]));
    let (from, to) = ([7, 1, 2, 0], [7, 3, 4, 0]);
    let [_, others, unit0] = *plan(&TOY, &from, &to).steps() else {
        panic!("it breaks");
    };
    assert!(observe(&TOY, &from, &to, &[others, unit0]).torn.is_some());
}
