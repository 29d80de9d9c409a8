//! `cargo xtask mutants`: do the models find the bugs that they are there for?
//!
//! A model that passes says nothing until it has failed once. For each race of the engine the list
//! holds bugs (an ordering weakened, a check dropped) and the model that must find them; here each
//! is planted in a copy of the engine, and the model must fail. A mutant that does not apply any
//! more, does not compile or does not end counts as an error too: it shows nothing.

mod list;
mod workshop;

use std::fs;
use std::io::{self, Write as _};
use std::num::NonZero;
use std::path::Path;
use std::process::ExitCode;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use self::list::Mutant;
use self::workshop::{Build, Outcome, Workshop};

/// The list, from the root of the workspace.
pub(crate) const LIST: &str = "tools/xtask/mutants.txt";
/// Time for all models without a bug. Generous: it only ends what would not end.
const SOUND_LIMIT: Duration = Duration::from_secs(900);
/// The same for one model with a bug.
const MUTANT_LIMIT: Duration = Duration::from_secs(300);
/// Lines shown of a long output.
const SHOWN_LINES: usize = 40;

/// What became of a mutant.
#[derive(Clone, Debug, Eq, PartialEq)]
enum Verdict {
    /// The model failed, as it must.
    Killed,
    /// The model passed.
    Survived,
    /// The model neither passed nor failed in its time.
    Stopped,
    /// There was nothing to run, for the reason given.
    Broken(String),
}

/// Which mutants of the list are planted.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Choice<'a> {
    /// All.
    All,
    /// Those with this text in their name, file or test.
    Containing(&'a str),
    /// Every `count`-th, from the one behind `skipped` others on.
    Part {
        /// How many come before the first one.
        skipped: usize,
        /// How many parts there are.
        count: usize,
    },
}

impl<'a> Choice<'a> {
    /// Parses `NUMBER/COUNT`, of which the number begins with 1.
    pub(crate) fn part(text: &'a str) -> Option<Self> {
        let (number, count) = text.split_once('/')?;
        let (number, count) = (number.parse::<usize>().ok()?, count.parse().ok()?);
        let skipped = number.checked_sub(1)?;
        (skipped < count).then_some(Self::Part { skipped, count })
    }

    fn has(self, index: usize, mutant: &Mutant) -> bool {
        match self {
            Self::All => true,
            Self::Containing(text) => mutant.matches(text),
            Self::Part { skipped, count } => index % count == skipped,
        }
    }
}

/// Plants the chosen bugs of the list, each in a copy without another.
pub(crate) fn run(root: &Path, choice: Choice<'_>) -> io::Result<ExitCode> {
    let list = fs::read_to_string(root.join(LIST))?;
    let mutants = list::parse(&list).map_err(|error| other(&format!("{LIST}: {error}")))?;
    let chosen = mutants.into_iter().enumerate();
    let chosen = chosen.filter(|(index, mutant)| choice.has(*index, mutant));
    let mutants: Vec<_> = chosen.map(|(_, mutant)| mutant).collect();
    if mutants.is_empty() {
        return Err(other(&format!("{LIST} has no such mutant")));
    }
    // A compiler and a model keep one core busy for most of their time.
    let count = thread::available_parallelism().map_or(1, NonZero::get);
    let workshops = (0..count.min(mutants.len())).map(|number| Workshop::new(root, number));
    let workshops = workshops.collect::<io::Result<Vec<_>>>()?;
    let mut out = io::stdout().lock();
    let Some(tests) = sound(&workshops[0], &mutants, choice, &mut out)? else {
        return Ok(ExitCode::FAILURE);
    };
    let began = Instant::now();
    let killed = judge_all(&workshops, &mutants, &tests, &mut out)?;
    let (count, seconds) = (mutants.len(), began.elapsed().as_secs_f64());
    writeln!(out, "{killed} of {count} mutants killed in {seconds:.1} s")?;
    Ok(if killed == count {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Judges all `mutants`, one at a time in each of the `workshops`. Returns how many were killed.
fn judge_all(
    workshops: &[Workshop],
    mutants: &[Mutant],
    tests: &[String],
    out: &mut impl io::Write,
) -> io::Result<usize> {
    let next = AtomicUsize::new(0);
    let (judged, verdicts) = mpsc::channel();
    thread::scope(|scope| {
        for workshop in workshops {
            let (next, judged) = (&next, judged.clone());
            scope.spawn(move || {
                while let Some(mutant) = mutants.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let began = Instant::now();
                    let verdict = if tests.contains(&mutant.test) {
                        judge(workshop, mutant)
                    } else {
                        Ok(Verdict::Broken("there is no such test".to_owned()))
                    };
                    if judged.send((mutant, verdict, began.elapsed())).is_err() {
                        break;
                    }
                }
            });
        }
        drop(judged);
        let mut killed = 0;
        for (mutant, verdict, time) in &verdicts {
            let verdict = verdict?;
            killed += usize::from(verdict == Verdict::Killed);
            report(mutant, &verdict, time, out)?;
        }
        Ok(killed)
    })
}

fn report(
    mutant: &Mutant,
    verdict: &Verdict,
    time: Duration,
    out: &mut impl io::Write,
) -> io::Result<()> {
    let (word, reason) = match verdict {
        Verdict::Killed => ("killed", ""),
        Verdict::Survived => ("SURVIVED", ""),
        Verdict::Stopped => ("DID NOT END", ""),
        Verdict::Broken(reason) => ("BROKEN", reason.as_str()),
    };
    let seconds = time.as_secs_f64();
    let Mutant { name, test, .. } = mutant;
    writeln!(out, "{word:<11} {seconds:5.1} s  {test}: {name}")?;
    if !reason.is_empty() {
        writeln!(out, "{}", indented(reason))?;
    }
    Ok(())
}

/// Builds and runs the models without a bug: all of them, or those of `mutants` that contain something.
/// Returns the names of all tests, or nothing if one fails.
fn sound(
    workshop: &Workshop,
    mutants: &[Mutant],
    choice: Choice<'_>,
    out: &mut impl io::Write,
) -> io::Result<Option<Vec<String>>> {
    let began = Instant::now();
    let program = match workshop.build()? {
        Build::Tests(program) => program,
        Build::Errors(text) => {
            writeln!(out, "the models do not compile:\n{}", indented(&text))?;
            return Ok(None);
        }
    };
    let built = began.elapsed().as_secs_f64();
    let tests = names(workshop, &program)?;
    let mut arguments = Vec::new();
    if matches!(choice, Choice::Containing(_)) {
        arguments.push("--exact");
        arguments.extend(mutants.iter().map(|mutant| mutant.test.as_str()));
    }
    let outcome = workshop.run(&program, &arguments, SOUND_LIMIT)?;
    if outcome != Outcome::Passed {
        let failure = match outcome {
            Outcome::Stopped => "do not end",
            Outcome::Failed | Outcome::Passed => "fail",
        };
        let text = indented(&workshop.output()?);
        writeln!(out, "the models {failure} without a bug:\n{text}")?;
        return Ok(None);
    }
    let ran = began.elapsed().as_secs_f64() - built;
    writeln!(
        out,
        "the models without a bug pass: {built:.1} s to build, {ran:.1} s to run"
    )?;
    Ok(Some(tests))
}

/// Returns the names of the tests in a program.
fn names(workshop: &Workshop, program: &Path) -> io::Result<Vec<String>> {
    workshop.run(program, &["--list"], SOUND_LIMIT)?;
    let output = workshop.output()?;
    let names = output
        .lines()
        .filter_map(|line| line.strip_suffix(": test"));
    Ok(names.map(str::to_owned).collect())
}

/// Plants one bug, runs its model and takes the bug out again.
fn judge(workshop: &Workshop, mutant: &Mutant) -> io::Result<Verdict> {
    let file = &mutant.file;
    let source = match workshop.read(file) {
        Ok(source) => source,
        Err(error) => return Ok(Verdict::Broken(format!("{file}: {error}"))),
    };
    let changed = match mutant.apply(&source) {
        Ok(changed) => changed,
        Err(reason) => return Ok(Verdict::Broken(reason)),
    };
    workshop.write(file, &changed)?;
    let verdict = match workshop.build()? {
        Build::Errors(text) => Verdict::Broken(format!("it does not compile:\n{text}")),
        Build::Tests(program) => {
            let arguments = ["--exact", &mutant.test];
            match workshop.run(&program, &arguments, MUTANT_LIMIT)? {
                Outcome::Passed => Verdict::Survived,
                Outcome::Failed => Verdict::Killed,
                Outcome::Stopped => Verdict::Stopped,
            }
        }
    };
    workshop.write(file, &source)?;
    Ok(verdict)
}

fn other(text: &str) -> io::Error {
    io::Error::other(text)
}

/// Returns the last lines of `text`, each with a margin.
fn indented(text: &str) -> String {
    let lines: Vec<_> = text.lines().collect();
    let shown = &lines[lines.len().saturating_sub(SHOWN_LINES)..];
    format!("    {}", shown.join("\n    "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parts_have_each_mutant_once() {
        let text = "mutant: a\nfile: b\ntest: c\n- d\n+ e\n";
        let mutant = &list::parse(text).unwrap()[0];
        let parts = ["1/3", "2/3", "3/3"].map(|part| Choice::part(part).unwrap());
        for index in 0..10 {
            let having = parts.iter().filter(|part| part.has(index, mutant));
            assert_eq!(having.count(), 1);
        }
        for text in ["", "1", "0/3", "4/3", "1/0", "-1/3", "1/3/3"] {
            assert!(Choice::part(text).is_none(), "{text}");
        }
    }
}
