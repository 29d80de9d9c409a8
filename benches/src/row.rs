//! One number that a bench prints, and what is promised of it.

use core::fmt;

use crate::verdict::Verdict;

/// How far a number may miss its bar, as times the bar, for noise to be the reason.
const NOISE: f64 = 1.25;

/// What a number has to be.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Bar {
    /// This at most.
    AtMost(f64),
    /// This at least.
    AtLeast(f64),
}

impl Bar {
    /// Judges a number.
    pub fn judge(self, value: f64) -> Verdict {
        match self {
            Self::AtMost(bar) => Verdict::at_most(value, bar),
            Self::AtLeast(bar) => Verdict::at_least(value, bar),
        }
    }

    /// As [`judge`](Self::judge), of a number that noise may have moved.
    fn judge_noisy(self, value: f64) -> Verdict {
        let easier = match self {
            Self::AtMost(bar) => Self::AtMost(bar * NOISE),
            Self::AtLeast(bar) => Self::AtLeast(bar / NOISE),
        };
        match (self.judge(value), easier.judge(value)) {
            (Verdict::NotMet, Verdict::Met) => Verdict::TooNoisy,
            (verdict, _) => verdict,
        }
    }
}

impl fmt::Display for Bar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AtMost(bar) => write!(f, "<= {bar}"),
            Self::AtLeast(bar) => write!(f, ">= {bar}"),
        }
    }
}

/// One number of one question.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// What was done.
    pub what: String,
    /// How it was done, or by whom.
    pub how: String,
    /// The number.
    pub value: f64,
    /// Its unit.
    pub unit: &'static str,
    /// What is promised of it.
    pub bar: Option<Bar>,
    /// Whether the promise is kept.
    pub verdict: Option<Verdict>,
    /// Further numbers, each with its name.
    pub beside: Vec<(&'static str, f64)>,
}

impl Row {
    /// Creates a row without a promise.
    pub fn new(what: &str, how: &str, value: f64, unit: &'static str) -> Self {
        Self {
            what: what.to_owned(),
            how: how.to_owned(),
            value,
            unit,
            bar: None,
            verdict: None,
            beside: Vec::new(),
        }
    }

    /// Adds a promise. A noisy number that misses it by little neither keeps nor breaks it.
    #[must_use]
    pub fn with_bar(mut self, bar: Bar, is_noisy: bool) -> Self {
        self.bar = Some(bar);
        self.verdict = Some(if is_noisy {
            bar.judge_noisy(self.value)
        } else {
            bar.judge(self.value)
        });
        self
    }

    /// Says that the machine gave no number.
    #[must_use]
    pub fn too_noisy(mut self) -> Self {
        self.verdict = Some(Verdict::TooNoisy);
        self
    }

    /// Adds a number that explains the first.
    #[must_use]
    pub fn beside(mut self, name: &'static str, value: f64) -> Self {
        self.beside.push((name, value));
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_promise_is_judged_in_its_direction() {
        let row = |bar, is_noisy| {
            let row = Row::new("pairs", "engine", 2.0, "ns").with_bar(bar, is_noisy);
            row.verdict.expect("it has a bar")
        };
        assert_eq!(row(Bar::AtMost(2.0), false), Verdict::Met);
        assert_eq!(row(Bar::AtMost(1.9), false), Verdict::NotMet);
        assert_eq!(row(Bar::AtMost(1.9), true), Verdict::TooNoisy);
        assert_eq!(row(Bar::AtMost(1.5), true), Verdict::NotMet);
        assert_eq!(row(Bar::AtLeast(1.9), true), Verdict::Met);
        assert_eq!(row(Bar::AtLeast(2.1), false), Verdict::NotMet);
        assert_eq!(row(Bar::AtLeast(2.1), true), Verdict::TooNoisy);
        assert_eq!(row(Bar::AtLeast(3.0), true), Verdict::NotMet);
    }
}
