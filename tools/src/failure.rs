//! What ends the command before it has an answer.

use std::io;
use std::path::PathBuf;

use iopt_formats::ConfigError;
use iopt_formats::catalog::FormatName;
use iopt_tools::fixture::FixtureError;
use iopt_tools::flush::FlushFileError;
use iopt_tools::trace::TraceFileError;

use crate::replay::{ReplayError, SimulateError};
use crate::topology::TopologyError;
use crate::walk::WalkError;

/// Bad input or usage: one line on standard error, nothing on standard output, exit status 2.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    /// A file cannot be opened or read.
    #[error("{}: {error}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the system says.
        #[source]
        error: io::Error,
    },
    /// A trace is damaged or inconsistent.
    #[error(transparent)]
    Trace(#[from] TraceFileError),
    /// A flush file is damaged.
    #[error(transparent)]
    Flush(#[from] FlushFileError),
    /// A fixture is damaged.
    #[error(transparent)]
    Fixture(#[from] FixtureError),
    /// The options do not make a table of this format.
    #[error("{format}: {error}")]
    Config {
        /// The format.
        format: FormatName,
        /// What is impossible.
        #[source]
        error: ConfigError,
    },
    /// The level does not exist.
    #[error("--level {level}: {format} has the levels 0 to {max}")]
    Level {
        /// The format.
        format: FormatName,
        /// The level asked for.
        level: u8,
        /// The highest level.
        max: u8,
    },
    /// A replay cannot go on.
    #[error(transparent)]
    Replay(#[from] ReplayError),
    /// A simulation cannot go on.
    #[error(transparent)]
    Simulate(#[from] SimulateError),
    /// A walk cannot go on.
    #[error(transparent)]
    Walk(#[from] WalkError),
    /// A machine cannot be shown.
    #[error(transparent)]
    Topology(#[from] TopologyError),
    /// The answer cannot be written.
    #[error("standard output: {0}")]
    Output(#[source] io::Error),
}
