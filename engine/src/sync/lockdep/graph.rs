//! The orders in which the program has taken locks of different classes.
//!
//! A step from class A to class B says: some thread waited for a lock of B while it held one of A.
//! Steps are only added, and only if no circle comes of it, so the graph never has one.
//!
//! Most acquisitions repeat a step. Whether one is in the graph is told by a bit in [`KNOWN`],
//! without the graph's lock: a bit is set after its step was checked and entered, and never
//! cleared, so a bit that is seen needs no order with anything, and one that is missed costs a
//! second look.

use std::collections::BTreeMap;
use std::panic::Location;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use crate::sync::lockdep::Class;

/// Classes whose steps have bits; those of later ones are looked up.
const KNOWN_CLASSES: usize = 128;

/// The row is the class held, the bit the class taken.
static KNOWN: [[AtomicU64; KNOWN_CLASSES / 64]; KNOWN_CLASSES] =
    [const { [const { AtomicU64::new(0) }; KNOWN_CLASSES / 64] }; KNOWN_CLASSES];

static GRAPH: Mutex<Graph> = Mutex::new(Graph {
    class_count: 0,
    steps: BTreeMap::new(),
});

#[derive(Debug)]
struct Graph {
    class_count: usize,
    /// By the numbers of the classes held and taken.
    steps: BTreeMap<(usize, usize), Step>,
}

/// One class taken under another, and where both were taken when that was first seen.
#[derive(Clone, Copy, Debug)]
pub(super) struct Step {
    pub(super) held: &'static Class,
    pub(super) held_at: &'static Location<'static>,
    pub(super) taken: &'static Class,
    pub(super) taken_at: &'static Location<'static>,
}

impl Step {
    fn describe(&self, takes: &str) -> String {
        let Self {
            held,
            held_at,
            taken,
            taken_at,
        } = self;
        format!("{taken_at} {takes} {taken} under {held}, held since {held_at}")
    }
}

/// Enters a step between two classes. Returns what is wrong if it would close a circle; then it is
/// not entered.
pub(super) fn observe(step: Step) -> Result<(), String> {
    let bit = known_bit(step.held.number.get(), step.taken.number.get());
    if bit.is_some_and(|(word, mask)| word.load(Ordering::Relaxed) & mask != 0) {
        return Ok(());
    }
    let mut graph = GRAPH.lock().unwrap_or_else(PoisonError::into_inner);
    let from = graph.number(step.held);
    let to = graph.number(step.taken);
    let key = (from, to);
    if !graph.steps.contains_key(&key) {
        if let Some(path) = graph.path(to, from) {
            return Err(report(&step, &path));
        }
        graph.steps.insert(key, step);
    }
    if let Some((word, mask)) = known_bit(from, to) {
        word.fetch_or(mask, Ordering::Relaxed);
    }
    Ok(())
}

/// Returns the word and the bit of a step between classes that have numbers.
fn known_bit(from: usize, to: usize) -> Option<(&'static AtomicU64, u64)> {
    let (from, to) = (from.checked_sub(1)?, to.checked_sub(1)?);
    let word = KNOWN.get(from)?.get(to / 64)?;
    Some((word, 1 << (to % 64)))
}

impl Graph {
    /// Returns the class's number, from 1.
    fn number(&mut self, class: &'static Class) -> usize {
        if class.number.get() == 0 {
            self.class_count += 1;
            class.number.set(self.class_count);
        }
        class.number.get()
    }

    /// Returns the steps of some way between two classes.
    fn path(&self, from: usize, to: usize) -> Option<Vec<Step>> {
        let mut is_seen = alloc::vec![false; self.class_count + 1];
        let mut path = Vec::new();
        self.extend(from, to, &mut is_seen, &mut path)
            .then_some(path)
    }

    /// Appends a way to `path`. Returns whether there is one. Depth and time are bounded by the
    /// numbers of classes and steps.
    fn extend(&self, from: usize, to: usize, is_seen: &mut [bool], path: &mut Vec<Step>) -> bool {
        if from == to {
            return true;
        }
        for (&(_, next), step) in self.steps.range((from, 0)..=(from, usize::MAX)) {
            if core::mem::replace(&mut is_seen[next], true) {
                continue;
            }
            path.push(*step);
            if self.extend(next, to, is_seen, path) {
                return true;
            }
            path.pop();
        }
        false
    }
}

fn report(step: &Step, path: &[Step]) -> String {
    let mut text = step.describe("takes");
    text += ", but before:";
    for step in path {
        text += "\n  ";
        text += &step.describe("took");
    }
    text
}

#[cfg(test)]
mod tests {
    use alloc::vec;

    use super::*;

    /// Steps between many classes, more than have bits, against the definition of a circle.
    #[test]
    fn a_step_is_refused_if_and_only_if_it_closes_a_circle() {
        const COUNT: usize = if cfg!(miri) { 12 } else { 160 };
        const STEPS: usize = if cfg!(miri) { 100 } else { 6000 };
        let classes: &'static [Class] =
            Vec::leak((0..COUNT).map(|_| Class::unranked("drawn")).collect());
        let site = Location::caller();
        // Whether the first comes, in some steps, before the second.
        let mut is_before = vec![[false; COUNT]; COUNT];
        let mut state = 1_u64;
        let mut draw = || {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            (state >> 33) as usize % COUNT
        };
        let mut refused = 0;
        for _ in 0..STEPS {
            let (from, to) = (draw(), draw());
            if from == to {
                continue;
            }
            let step = Step {
                held: &classes[from],
                held_at: site,
                taken: &classes[to],
                taken_at: site,
            };
            let is_refused = observe(step).is_err();
            assert_eq!(is_refused, is_before[to][from], "{to} under {from}");
            refused += usize::from(is_refused);
            if !is_refused {
                let after = is_before[to];
                for (first, before) in is_before.iter_mut().enumerate() {
                    if first == from || before[from] {
                        before[to] = true;
                        for (is_later, is_after) in before.iter_mut().zip(after) {
                            *is_later |= is_after;
                        }
                    }
                }
            }
        }
        assert!(refused > STEPS / 8);
    }
}
