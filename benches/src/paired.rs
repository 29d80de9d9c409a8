//! Measurements that a noisy machine cannot bend: all sides in one process, in turns.
//!
//! Every side runs for a few milliseconds, then the next one, round about. A ratio is taken inside
//! each turn, where both sides saw the same machine, and the median of these ratios is the result.
//! A side that another process interrupted runs again, and when a yardstick spreads too far all the
//! same, the measurement is repeated.

use core::fmt;
use std::time::{Duration, Instant};

use crate::cpu;
use crate::workload::{Phase, Times};

/// Time that one side runs for before the next one does.
const BATCH: Duration = Duration::from_millis(2);

/// Time of a batch that other processes may have.
const MAX_WAIT: Duration = Duration::from_micros(20);

/// Batches that are thrown away at most because other processes had more.
const MAX_INTERRUPTED_COUNT: usize = 20;

/// Turns of a measurement: enough for a median that outliers do not move.
const TURN_COUNT: usize = 31;

/// Quartile ratio from which on a yardstick is too noisy to measure with.
const MAX_SPREAD: f64 = 1.10;

/// Attempts before a measurement is reported as too noisy.
const ATTEMPT_COUNT: usize = 3;

/// Something that is measured against something else.
pub struct Side<'a, K> {
    key: K,
    round: Box<dyn FnMut() -> Times + 'a>,
    round_count: u32,
    /// Time for which this process had to wait for a processor so far.
    waited: fn() -> Duration,
}

impl<'a, K> Side<'a, K> {
    /// Creates a side; `round` does some work and returns the time an entry.
    pub fn new(key: K, round: impl FnMut() -> Times + 'a) -> Self {
        let mut side = Self {
            key,
            round: Box::new(round),
            round_count: 1,
            waited: cpu::waited,
        };
        // The first round creates tables and warms caches.
        side.batch();
        loop {
            let start = Instant::now();
            side.batch();
            if start.elapsed() >= BATCH {
                return side;
            }
            side.round_count *= 2;
        }
    }

    /// Runs a batch that no other process interrupted, if the machine allows it.
    fn quiet_batch(&mut self) -> Times {
        for _ in 0..MAX_INTERRUPTED_COUNT {
            let waited = (self.waited)();
            let times = self.batch();
            if (self.waited)().saturating_sub(waited) <= MAX_WAIT {
                return times;
            }
        }
        self.batch()
    }

    fn batch(&mut self) -> Times {
        let mut sum = Times::default();
        for _ in 0..self.round_count {
            sum += (self.round)();
        }
        sum.divided_by(f64::from(self.round_count))
    }
}

impl<K: fmt::Debug> fmt::Debug for Side<'_, K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Side")
            .field("key", &self.key)
            .finish_non_exhaustive()
    }
}

/// What the turns of one measurement showed.
#[derive(Clone, Debug)]
pub struct Turns<K> {
    sides: Vec<(K, Vec<Times>)>,
}

impl<K: Copy + Eq> Turns<K> {
    /// Lets the sides run in turns, again while one of `yardsticks` is too noisy, at most three
    /// times; the quietest of these measurements is the result.
    pub fn measure(sides: &mut [Side<'_, K>], yardsticks: &[(K, Phase)]) -> Self {
        let noise = |turns: &Self| {
            let spreads = yardsticks
                .iter()
                .map(|&(key, phase)| turns.spread(key, phase));
            spreads.fold(1.0, f64::max)
        };
        let mut quietest = Self::once(sides);
        for _ in 1..ATTEMPT_COUNT {
            if noise(&quietest) <= MAX_SPREAD {
                break;
            }
            let again = Self::once(sides);
            if noise(&again) < noise(&quietest) {
                quietest = again;
            }
        }
        quietest
    }

    fn once(sides: &mut [Side<'_, K>]) -> Self {
        let mut times: Vec<Vec<Times>> = sides.iter().map(|_| Vec::new()).collect();
        for _ in 0..TURN_COUNT {
            for (side, times) in sides.iter_mut().zip(&mut times) {
                times.push(side.quiet_batch());
            }
        }
        Self {
            sides: sides.iter().map(|side| side.key).zip(times).collect(),
        }
    }

    fn series(&self, key: K, phase: Phase) -> Vec<f64> {
        let side = self.sides.iter().find(|(other, _)| *other == key);
        let (_, times) = side.expect("rows ask for sides that were measured");
        times.iter().map(|times| times.get(phase)).collect()
    }

    /// Returns p75 / p25 of a side.
    fn spread(&self, key: K, phase: Phase) -> f64 {
        let series = self.series(key, phase);
        quantile(&series, 0.75) / quantile(&series, 0.25)
    }

    /// Returns the median of each phase of a side.
    pub fn medians(&self, key: K) -> Times {
        Times::of_phases(|phase| quantile(&self.series(key, phase), 0.5))
    }

    /// Compares a side with a yardstick.
    pub fn compare(&self, subject: (K, Phase), yardstick: (K, Phase)) -> Comparison {
        let subjects = self.series(subject.0, subject.1);
        let yardsticks = self.series(yardstick.0, yardstick.1);
        let ratios: Vec<f64> = subjects
            .iter()
            .zip(&yardsticks)
            .map(|(s, y)| s / y)
            .collect();
        Comparison {
            ratio: quantile(&ratios, 0.5),
            min_ratio: quantile(&subjects, 0.0) / quantile(&yardsticks, 0.0),
            subject_ns: quantile(&subjects, 0.5),
            yardstick_ns: quantile(&yardsticks, 0.5),
            is_noisy: self.spread(yardstick.0, yardstick.1) > MAX_SPREAD,
        }
    }
}

/// A side against a yardstick.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Comparison {
    /// Median over the turns of the ratio inside a turn.
    pub ratio: f64,
    /// Fastest turn of the subject over the fastest turn of the yardstick. Close to `ratio` on a
    /// quiet machine.
    pub min_ratio: f64,
    /// Median of the subject, in nanoseconds an entry.
    pub subject_ns: f64,
    /// Median of the yardstick, in nanoseconds an entry.
    pub yardstick_ns: f64,
    /// Whether the yardstick spread too far in each attempt; the numbers are no result then.
    pub is_noisy: bool,
}

impl Comparison {
    /// Returns the median of each number over `rounds`: over the quiet ones if there are any.
    ///
    /// # Panics
    ///
    /// Panics if `rounds` is empty.
    pub fn median(rounds: &[Self]) -> Self {
        let quiet: Vec<Self> = rounds
            .iter()
            .copied()
            .filter(|round| !round.is_noisy)
            .collect();
        let rounds = if quiet.is_empty() { rounds } else { &quiet };
        let median =
            |get: fn(&Self) -> f64| quantile(&rounds.iter().map(get).collect::<Vec<_>>(), 0.5);
        Self {
            ratio: median(|round| round.ratio),
            min_ratio: median(|round| round.min_ratio),
            subject_ns: median(|round| round.subject_ns),
            yardstick_ns: median(|round| round.yardstick_ns),
            is_noisy: quiet.is_empty(),
        }
    }
}

/// Returns the value at the part `part`, 0 to 1, of the sorted values.
///
/// # Panics
///
/// Panics if there are no values.
pub fn quantile(values: &[f64], part: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let last = sorted.len().checked_sub(1).expect("a series has values");
    #[expect(clippy::cast_sign_loss, reason = "a part of a length is not negative")]
    let place = (last as f64 * part).round() as usize;
    sorted[place.min(last)]
}

#[cfg(test)]
#[expect(clippy::float_cmp, reason = "the values have exact representations")]
mod tests {
    use std::cell::Cell;

    use super::*;

    /// A side whose rounds take the times of a list, over and over, and that never waits: what the
    /// machine of the test does must not show.
    fn side(key: char, maps: &[f64]) -> Side<'_, char> {
        let mut maps = maps.iter().cycle();
        let mut next = move || *maps.next().expect("the list is not empty");
        let round = Box::new(move || Times {
            map: next(),
            ..Times::default()
        });
        Side {
            key,
            round,
            round_count: 1,
            waited: || Duration::ZERO,
        }
    }

    fn compare(subject: &[f64], yardstick: &[f64]) -> Comparison {
        let mut sides = [side('s', subject), side('y', yardstick)];
        let turns = Turns::measure(&mut sides, &[('y', Phase::Map)]);
        turns.compare(('s', Phase::Map), ('y', Phase::Map))
    }

    #[test]
    fn a_ratio_is_taken_inside_each_turn() {
        // Three times as slow, on a machine whose speed changes; in every third turn it changes
        // between the two. The ratio of the medians would be 1.5.
        let result = compare(&[3.0, 6.0, 3.0], &[1.0, 2.0, 2.0]);
        assert_eq!((result.ratio, result.min_ratio), (3.0, 3.0));
        assert!(result.is_noisy);
    }

    #[test]
    fn an_interrupted_batch_runs_again() {
        thread_local!(static CALL_COUNT: Cell<u32> = const { Cell::new(0) });
        let mut side = side('s', &[8.0, 9.0, 4.0, 7.0]);
        // Each batch looks before and after; the first two find 1 ms more.
        side.waited = || {
            let call = CALL_COUNT.replace(CALL_COUNT.get() + 1);
            Duration::from_millis(u64::from(call.min(3)))
        };
        assert_eq!(side.quiet_batch().map, 4.0);
        side.waited = || {
            let call = CALL_COUNT.replace(CALL_COUNT.get() + 1);
            Duration::from_millis(u64::from(call))
        };
        // A machine that never rests: the batch after the last attempt counts.
        let last = [7.0, 8.0, 9.0, 4.0][MAX_INTERRUPTED_COUNT % 4];
        assert_eq!(side.quiet_batch().map, last);
    }

    #[test]
    fn a_few_outliers_move_nothing() {
        let mut subject = vec![4.0; 31];
        subject[7..12].fill(400.0);
        let result = compare(&subject, &[2.0]);
        assert_eq!(
            (result.ratio, result.subject_ns, result.yardstick_ns),
            (2.0, 4.0, 2.0)
        );
        assert!(!result.is_noisy);
    }

    #[test]
    fn a_noisy_round_does_not_count_beside_quiet_ones() {
        let quiet = compare(&[4.0], &[2.0]);
        let noisy = Comparison {
            ratio: 9.0,
            is_noisy: true,
            ..quiet
        };
        assert_eq!(Comparison::median(&[noisy, quiet, noisy]), quiet);
        assert!(Comparison::median(&[noisy]).is_noisy);
    }

    #[test]
    fn quantiles_are_those_of_the_sorted_values() {
        let values = [5.0, 1.0, 4.0, 2.0, 3.0];
        assert_eq!(
            [0.0, 0.25, 0.5, 0.75, 1.0].map(|part| quantile(&values, part)),
            [1.0, 2.0, 3.0, 4.0, 5.0]
        );
    }
}
