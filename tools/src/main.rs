//! The `iopt` command.

mod cli;
mod explain;
mod failure;
mod formats;
mod output;
mod reference;
mod replay;
mod topology;
mod walk;

use std::process::ExitCode;

fn main() -> ExitCode {
    cli::run()
}
