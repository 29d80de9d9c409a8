//! Chores of the workspace: `cargo xtask lint`, `cargo xtask mutants`.

mod layers;
mod lints;
mod mutants;
mod source;

use std::env;
use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use self::mutants::Choice;

const USAGE: &str = "usage: cargo xtask lint
       cargo xtask mutants [FILTER | --part NUMBER/COUNT]

  lint      check what rustc and clippy cannot know: layers, file length,
            foreign paths, unsafe code without reason or proof, ASCII
  mutants   run the engine's models under loom, then plant the bugs listed in
            tools/xtask/mutants.txt one by one (those whose name, file or test
            contains FILTER, or every COUNT-th from NUMBER on, so that the
            parts 1 to COUNT have each of them once): each must make its model
            fail

The models alone, and the searches that they make:
  RUSTFLAGS='--cfg loom' cargo test -p iopt --lib --release -- models

exit status: 0 nothing found, 1 findings, 2 bad usage or unreadable files";

/// Folders that are not ours to check.
const SKIPPED: &[&str] = &[".git", "target"];
/// Ends of the names of text files that the lints read.
const TEXT: &[&str] = &[
    ".rs",
    ".toml",
    ".md",
    ".txt",
    ".yml",
    ".yaml",
    ".sh",
    ".lock",
    "/run",
    ".editorconfig",
];

fn main() -> ExitCode {
    let arguments: Vec<_> = env::args().skip(1).collect();
    let outcome = match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["lint"] => lint(),
        ["mutants"] => workspace().and_then(|root| mutants::run(&root, Choice::All)),
        ["mutants", "--part", part] => {
            let choice = Choice::part(part).ok_or_else(|| io::Error::other(USAGE));
            choice.and_then(|choice| mutants::run(&workspace()?, choice))
        }
        ["mutants", filter] => {
            workspace().and_then(|root| mutants::run(&root, Choice::Containing(filter)))
        }
        _ => Err(io::Error::other(USAGE)),
    };
    outcome.unwrap_or_else(|error| {
        // Nowhere is left to report to if standard error is closed.
        let _ = writeln!(io::stderr(), "{error}");
        ExitCode::from(2)
    })
}

/// Checks every text file and prints a line for each finding.
fn lint() -> io::Result<ExitCode> {
    let root = workspace()?;
    let mut files = Vec::new();
    collect(&root, &mut files)?;
    files.sort();
    let mut failed = false;
    let mut out = io::stdout().lock();
    for file in &files {
        let name = file
            .strip_prefix(&root)
            .unwrap_or(file)
            .to_string_lossy()
            .replace('\\', "/");
        if !TEXT.iter().any(|end| name.ends_with(end)) {
            continue;
        }
        let text = fs::read_to_string(file)
            .map_err(|error| io::Error::new(error.kind(), format!("{name}: {error}")))?;
        for finding in lints::check(&name, &text) {
            failed |= !finding.is_warning();
            writeln!(out, "{finding}")?;
        }
    }
    Ok(if failed {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

/// Returns the nearest folder upwards whose manifest is a workspace.
fn workspace() -> io::Result<PathBuf> {
    let here = env::current_dir()?;
    let is_workspace = |folder: &Path| {
        fs::read_to_string(folder.join("Cargo.toml"))
            .is_ok_and(|manifest| manifest.lines().any(|line| line == "[workspace]"))
    };
    let found = here.ancestors().find(|folder| is_workspace(folder));
    found
        .map(Path::to_path_buf)
        .ok_or_else(|| io::Error::other("not inside the workspace"))
}

/// Adds every file below `folder`; links are not followed.
fn collect(folder: &Path, files: &mut Vec<PathBuf>) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let kind = entry.file_type()?;
        if kind.is_file() {
            files.push(entry.path());
        } else if kind.is_dir() && !SKIPPED.iter().any(|name| entry.file_name() == *name) {
            collect(&entry.path(), files)?;
        }
    }
    Ok(())
}
