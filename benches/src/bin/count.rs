//! Counts the instructions of one map, unmap and lookup with plain valgrind.
//!
//! ```text
//! cargo run --release -p iopt-benches --bin count
//! ```
//!
//! Each count is taken twice, over some operations and over twice as many with the same setup; the
//! difference divided by the number of operations is what one of them takes. The exit status is 1
//! if one takes more than its budget.

use std::io::{self, Write as _};
use std::process::{Command, ExitCode};
use std::{env, error::Error};

use iopt_benches::formats;
use iopt_benches::instructions::{Operation, Pages, prepare};
use iopt_formats::catalog::FormatName;

/// Operations of the smaller count.
const COUNT: u32 = 250;

/// First argument of the process that is counted.
const CHILD: &str = "--counted";

fn main() -> ExitCode {
    let args: Vec<String> = env::args().skip(1).collect();
    let done = match args
        .iter()
        .map(String::as_str)
        .collect::<Vec<_>>()
        .as_slice()
    {
        [] => count_all(),
        [CHILD, format, operation, pages, count] => run(format, operation, pages, count),
        _ => Err("the program takes no arguments".into()),
    };
    done.unwrap_or_else(|error| {
        let _ = writeln!(io::stderr(), "count: {error}");
        ExitCode::from(2)
    })
}

/// Counts everything and prints a table.
fn count_all() -> Result<ExitCode, Box<dyn Error>> {
    let mut out = io::stdout().lock();
    writeln!(out, "instructions an operation, 4 KiB pages, loop included")?;
    writeln!(
        out,
        "{:10} {:12} {:8} {:>8} {:>7}",
        "table", "", "pages", "counted", "budget"
    )?;
    let mut is_over = false;
    for format in formats::NAMES {
        for operation in Operation::ALL {
            for pages in Pages::ALL {
                let counted = count(format, operation, pages)?;
                let budget = operation.budget();
                let verdict = if counted > f64::from(budget) {
                    "OVER"
                } else {
                    ""
                };
                is_over |= !verdict.is_empty();
                let (format, operation) = (format.as_str(), operation.as_str());
                let pages = pages.as_str();
                writeln!(
                    out,
                    "{format:10} {operation:12} {pages:8} {counted:8.1} {budget:7} {verdict}"
                )?;
            }
        }
    }
    Ok(if is_over {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

/// Returns the instructions of one operation.
fn count(format: FormatName, operation: Operation, pages: Pages) -> Result<f64, Box<dyn Error>> {
    let total = |count: u32| -> Result<u32, Box<dyn Error>> {
        let counted = Command::new("valgrind")
            .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
            .arg(env::current_exe()?)
            .args([CHILD, format.as_str(), operation.as_str(), pages.as_str()])
            .arg(count.to_string())
            .output()
            .map_err(|error| format!("cannot run valgrind: {error}"))?;
        let text = String::from_utf8_lossy(&counted.stderr);
        if !counted.status.success() {
            return Err(format!("the counted process failed:\n{text}").into());
        }
        let (_, collected) = text
            .split_once("Collected : ")
            .ok_or("valgrind reported no count")?;
        let digits = collected.split_whitespace().next().unwrap_or_default();
        Ok(digits.parse()?)
    };
    let (once, twice) = (total(COUNT)?, total(2 * COUNT)?);
    Ok((f64::from(twice) - f64::from(once)) / f64::from(COUNT))
}

/// Runs what is counted.
fn run(
    format: &str,
    operation: &str,
    pages: &str,
    count: &str,
) -> Result<ExitCode, Box<dyn Error>> {
    let operation = Operation::ALL
        .into_iter()
        .find(|known| known.as_str() == operation);
    let pages = Pages::ALL.into_iter().find(|known| known.as_str() == pages);
    let (operation, pages) = operation.zip(pages).ok_or("no such operation or pages")?;
    prepare(format.parse()?, operation, pages, count.parse()?)();
    Ok(ExitCode::SUCCESS)
}
