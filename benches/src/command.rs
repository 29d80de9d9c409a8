//! What the benches with a command line of their own have in common.

use std::env;
use std::io::{self, Write as _};
use std::process::ExitCode;
use std::str::FromStr;

use iopt_formats::catalog::FormatName;

use crate::formats;

/// The arguments of a bench, one by one.
#[derive(Debug)]
pub struct Args<I> {
    args: I,
    option: String,
}

impl<I: Iterator<Item = String>> Args<I> {
    /// Creates the arguments out of those behind the program's name.
    pub const fn new(args: I) -> Self {
        Self {
            args,
            option: String::new(),
        }
    }

    /// Returns the next option.
    pub fn option(&mut self) -> Option<String> {
        self.option = self.args.next()?;
        Some(self.option.clone())
    }

    /// Returns the value of the option returned last.
    ///
    /// # Errors
    ///
    /// Fails if there is none.
    pub fn value(&mut self) -> Result<String, String> {
        let option = &self.option;
        self.args
            .next()
            .ok_or_else(|| format!("{option} needs a value"))
    }

    /// Returns the value of the option returned last as a number.
    ///
    /// # Errors
    ///
    /// Fails if it is none.
    pub fn number<T: FromStr>(&mut self) -> Result<T, String> {
        let text = self.value()?;
        text.parse().map_err(|_| format!("{text} is no number"))
    }

    /// Returns the value of the option returned last as a list.
    ///
    /// # Errors
    ///
    /// Fails if there is none.
    pub fn list(&mut self) -> Result<Vec<String>, String> {
        Ok(self.value()?.split(',').map(str::to_owned).collect())
    }

    /// Returns the value of the option returned last as a list of measured formats.
    ///
    /// # Errors
    ///
    /// Fails if one is not measured.
    pub fn formats(&mut self) -> Result<Vec<FormatName>, String> {
        let parse = |name: &String| {
            let format: FormatName = name.parse().map_err(|error| format!("{name}: {error}"))?;
            if formats::NAMES.contains(&format) {
                Ok(format)
            } else {
                Err(format!("{name} is not among the measured formats"))
            }
        };
        self.list()?.iter().map(parse).collect()
    }

    /// Returns the value of the option returned last as a list of `known` things, by their names.
    ///
    /// # Errors
    ///
    /// Fails if a name is not known.
    pub fn names<T: Copy>(
        &mut self,
        known: &[T],
        name_of: impl Fn(T) -> &'static str,
    ) -> Result<Vec<T>, String> {
        let find = |name: &String| {
            let found = known.iter().copied().find(|&item| name_of(item) == name);
            found.ok_or_else(|| format!("{name} is not known"))
        };
        self.list()?.iter().map(find).collect()
    }

    /// As [`names`](Self::names), of one thing.
    ///
    /// # Errors
    ///
    /// Fails unless the value is one name that is known.
    pub fn name<T: Copy>(
        &mut self,
        known: &[T],
        name_of: impl Fn(T) -> &'static str,
    ) -> Result<T, String> {
        match *self.names(known, name_of)? {
            [item] => Ok(item),
            _ => Err("one name is expected".to_owned()),
        }
    }

    /// Returns the error for the option returned last.
    ///
    /// # Errors
    ///
    /// Always fails.
    pub fn unknown<T>(&self) -> Result<T, String> {
        Err(format!("unknown option {}", self.option))
    }
}

/// Parses the arguments of the bench `name`, runs it and returns its exit status: 2 for wrong
/// arguments, 1 if it failed.
///
/// A test run builds benches and starts them without `--bench`; nothing is measured then.
pub fn main<O>(
    name: &str,
    parse: impl FnOnce(&mut Args<env::Args>) -> Result<O, String>,
    run: impl FnOnce(&O) -> io::Result<ExitCode>,
) -> ExitCode {
    let fail = |error: &dyn core::fmt::Display, code| {
        let _ = writeln!(io::stderr(), "{name}: {error}");
        ExitCode::from(code)
    };
    if !env::args().any(|arg| arg == "--bench") {
        return ExitCode::SUCCESS;
    }
    let mut args = env::args();
    let _ = args.next();
    match parse(&mut Args::new(args)) {
        Err(error) => fail(&error, 2),
        Ok(options) => run(&options).unwrap_or_else(|error| fail(&error, 1)),
    }
}

/// Returns the exit status of a bench whose gate, if it has one, found `not_met_count` bars that
/// are not met.
pub fn exit_code(is_gate: bool, not_met_count: usize) -> ExitCode {
    if is_gate && not_met_count > 0 {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(text: &str) -> Args<impl Iterator<Item = String>> {
        Args::new(text.split(' ').map(str::to_owned))
    }

    #[test]
    fn options_and_their_values_alternate() {
        let mut args = args("--rows P1,P2 --rounds 3 --json");
        assert_eq!(args.option().as_deref(), Some("--rows"));
        assert_eq!(args.list().unwrap(), ["P1", "P2"]);
        assert_eq!(args.option().as_deref(), Some("--rounds"));
        assert_eq!(args.number::<u32>(), Ok(3));
        assert_eq!(args.option().as_deref(), Some("--json"));
        assert_eq!(args.value().unwrap_err(), "--json needs a value");
        assert_eq!(args.option(), None);
    }

    #[test]
    fn formats_are_those_that_are_measured() {
        let mut args = args("--format vtd-ss,amd-v1 --format armv7s");
        args.option();
        assert_eq!(
            args.formats(),
            Ok(vec![FormatName::VtdSs, FormatName::AmdV1])
        );
        args.option();
        assert!(args.formats().is_err());
    }
}
