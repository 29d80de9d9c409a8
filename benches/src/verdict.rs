//! Whether a bar is met.

use core::fmt;

/// What a measurement says about its bar.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Verdict {
    /// The promise is kept.
    Met,
    /// It is not, but nothing on this machine could.
    AsBare,
    /// It is not.
    NotMet,
    /// The machine was too noisy to tell.
    TooNoisy,
}

impl Verdict {
    /// Judges what may be `bar` at most.
    pub fn at_most<T: Copy + PartialOrd>(measured: T, bar: T) -> Self {
        if measured <= bar {
            Self::Met
        } else {
            Self::NotMet
        }
    }

    /// Judges what has to be `bar` at least.
    pub fn at_least<T: Copy + PartialOrd>(measured: T, bar: T) -> Self {
        Self::at_most(bar, measured)
    }

    /// Returns the verdict as text.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Met => "met",
            Self::AsBare => "as bare",
            Self::NotMet => "NOT MET",
            Self::TooNoisy => "too noisy",
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bar_is_met_by_what_reaches_it_exactly() {
        assert_eq!(Verdict::at_most(1.3, 1.3), Verdict::Met);
        assert_eq!(Verdict::at_most(1.4, 1.3), Verdict::NotMet);
        assert_eq!(Verdict::at_least(1.9, 1.9), Verdict::Met);
        assert_eq!(Verdict::at_least(1.8, 1.9), Verdict::NotMet);
        assert_eq!(Verdict::at_most(f64::NAN, 1.3), Verdict::NotMet);
    }
}
