//! Where a guest's kernel flushed its IOTLB.
//!
//! ```text
//! # iopt-flush 1
//! flush <t_ns> <domain> all|sync <count>
//! ```
//!
//! A line says that a flush followed the first `count` operations of the trace: of everything in
//! the domain (`all`) or of what was unmapped in it since the flush before (`sync`).

use std::io::{self, BufRead};
use std::path::{Path, PathBuf};

use crate::input::{self, LineError, Lines, decimal};

const MAGIC: &str = "# iopt-flush ";
const VERSION: &str = "1";

/// How much a flush drops.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Scope {
    /// Everything that is cached for the domain.
    All,
    /// The ranges unmapped since the last flush.
    Sync,
}

/// One flush.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Flush {
    /// The domain.
    pub domain: u32,
    /// How much it drops.
    pub scope: Scope,
    /// Number of trace operations before it, of all domains.
    pub after: u64,
}

/// What is wrong with a flush file.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FlushFault {
    /// The line cannot be read.
    #[error(transparent)]
    Line(#[from] LineError),
    /// The first line is not that of a flush file.
    #[error("not a flush file: the first line must be `{MAGIC}{VERSION}`")]
    Magic,
    /// The file is of a version that this reader does not know.
    #[error("flush version {found:?} is not supported, only {VERSION}")]
    Version {
        /// The version found.
        found: String,
    },
    /// The line is no flush.
    #[error("not a line of the form `flush <t_ns> <domain> all|sync <count>`")]
    Syntax,
    /// The number of operations fell.
    #[error("the flush follows {after} operations, the one above {previous}")]
    Order {
        /// The number found.
        after: u64,
        /// That of the line above.
        previous: u64,
    },
}

/// Why a flush file cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FlushFileError {
    /// The file cannot be opened.
    #[error("{}: {error}", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// What the system says.
        #[source]
        error: io::Error,
    },
    /// A line is wrong.
    #[error("{}:{line}: {fault}", path.display())]
    Flush {
        /// The file.
        path: PathBuf,
        /// Number of the line, from 1.
        line: u64,
        /// What is wrong with it.
        #[source]
        fault: FlushFault,
    },
}

/// Reads the flush file at `path`, plain or gzip-compressed.
///
/// # Errors
///
/// [`FlushFileError`] names the file and the line.
pub fn open(path: &Path) -> Result<Vec<Flush>, FlushFileError> {
    let reader = input::open(path, input::MAX_TEXT_LEN).map_err(|error| FlushFileError::Open {
        path: path.into(),
        error,
    })?;
    read(reader).map_err(|(line, fault)| FlushFileError::Flush {
        path: path.into(),
        line,
        fault,
    })
}

/// Reads flushes, or returns the line that is wrong and how.
///
/// # Errors
///
/// The number of the line and the [`FlushFault`].
pub fn read(reader: impl BufRead) -> Result<Vec<Flush>, (u64, FlushFault)> {
    let mut lines = Lines::new(reader);
    read_lines(&mut lines).map_err(|fault| (lines.number(), fault))
}

fn read_lines(lines: &mut Lines<impl BufRead>) -> Result<Vec<Flush>, FlushFault> {
    let version = lines.read()?.and_then(|line| line.strip_prefix(MAGIC));
    match version.ok_or(FlushFault::Magic)? {
        VERSION => {}
        found => {
            return Err(FlushFault::Version {
                found: found.into(),
            });
        }
    }
    let mut flushes: Vec<Flush> = Vec::new();
    while let Some(line) = lines.read()? {
        if line.starts_with('#') {
            continue;
        }
        let flush = parse(line).ok_or(FlushFault::Syntax)?;
        let previous = flushes.last().map_or(0, |flush| flush.after);
        if flush.after < previous {
            return Err(FlushFault::Order {
                after: flush.after,
                previous,
            });
        }
        flushes.push(flush);
    }
    Ok(flushes)
}

fn parse(line: &str) -> Option<Flush> {
    let mut fields = line.strip_prefix("flush ")?.split(' ');
    let _time_ns = decimal(fields.next()?)?;
    let domain = u32::try_from(decimal(fields.next()?)?).ok()?;
    let scope = match fields.next()? {
        "all" => Scope::All,
        "sync" => Scope::Sync,
        _ => return None,
    };
    let after = decimal(fields.next()?)?;
    fields.next().is_none().then_some(Flush {
        domain,
        scope,
        after,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_text(text: &str) -> Result<Vec<Flush>, String> {
        read(text.as_bytes()).map_err(|(line, fault)| format!("{line}: {fault}"))
    }

    #[test]
    fn both_scopes_are_read() {
        let text = "# iopt-flush 1\n# a comment\nflush 0 0 all 0\nflush 77 3 sync 9\n";
        let expected = [
            Flush {
                domain: 0,
                scope: Scope::All,
                after: 0,
            },
            Flush {
                domain: 3,
                scope: Scope::Sync,
                after: 9,
            },
        ];
        assert_eq!(read_text(text).unwrap(), expected);
    }

    #[test]
    fn a_bad_file_is_refused_with_its_line() {
        let syntax = "2: not a line of the form `flush <t_ns> <domain> all|sync <count>`";
        for (text, error) in [
            (
                "",
                "1: not a flush file: the first line must be `# iopt-flush 1`",
            ),
            (
                "# iopt-flush 2\n",
                "1: flush version \"2\" is not supported, only 1",
            ),
            ("# iopt-flush 1\nflush 0 0 some 0\n", syntax),
            ("# iopt-flush 1\nflush 0 0 all\n", syntax),
            ("# iopt-flush 1\nflush 0 0 all 1 2\n", syntax),
            (
                "# iopt-flush 1\nflush 0 0 all 1",
                "2: the line is cut: it has no line end",
            ),
            (
                "# iopt-flush 1\nflush 0 0 all 5\nflush 0 0 all 4\n",
                "3: the flush follows 4 operations, the one above 5",
            ),
        ] {
            assert_eq!(read_text(text).unwrap_err(), error);
        }
    }
}
