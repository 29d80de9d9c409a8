//! A copy of the engine in which bugs are planted, built for its models and run.

use std::env;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// The packages that are copied, as folders of the workspace.
const PACKAGES: &[&str] = &["pagetable-formats", "engine"];
/// A folder that is left behind.
const SKIPPED: &str = "target";
/// The profile of the copy. Models spend their time in `loom`; the rest is built for each mutant,
/// or once and seldom runs.
const PROFILE: &str = "[profile.mutants]
inherits = \"release\"
opt-level = 0
codegen-units = 16
lto = \"off\"

[profile.mutants.package.loom]
opt-level = 2

[profile.mutants.package.generator]
opt-level = 2
";

/// How a program ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Outcome {
    /// It succeeded.
    Passed,
    /// It failed or was killed by a signal of its own making.
    Failed,
    /// It was stopped at its time limit.
    Stopped,
}

/// What a build gave.
#[derive(Debug)]
pub(super) enum Build {
    /// The program that runs the tests.
    Tests(PathBuf),
    /// Nothing; the text is the compiler's.
    Errors(String),
}

/// A copy of the engine.
#[derive(Debug)]
pub(super) struct Workshop {
    /// The workspace that holds the copy.
    copy: PathBuf,
    /// What is built; kept from one run to the next.
    target: PathBuf,
}

impl Workshop {
    /// Copies what the engine needs from the workspace at `root`. Workshops of different numbers share nothing.
    pub(super) fn new(root: &Path, number: usize) -> io::Result<Self> {
        let target = env::var_os("CARGO_TARGET_DIR").map_or(root.join("target"), PathBuf::from);
        // The compiler runs in another folder than this program.
        let base = env::current_dir()?
            .join(target)
            .join(format!("mutants/{number}"));
        let workshop = Self {
            copy: base.join("workspace"),
            target: base.join("target"),
        };
        if workshop.copy.exists() {
            fs::remove_dir_all(&workshop.copy)?;
        }
        for package in PACKAGES {
            copy(&root.join(package), &workshop.copy.join(package))?;
        }
        let manifest = fs::read_to_string(root.join("Cargo.toml"))?;
        fs::write(workshop.copy.join("Cargo.toml"), trimmed(&manifest))?;
        fs::copy(root.join("Cargo.lock"), workshop.copy.join("Cargo.lock"))?;
        Ok(workshop)
    }

    /// Returns the text of `file`, a path from the root of the workspace.
    pub(super) fn read(&self, file: &str) -> io::Result<String> {
        fs::read_to_string(self.copy.join(file))
    }

    /// Gives `file` another text.
    pub(super) fn write(&self, file: &str, text: &str) -> io::Result<()> {
        fs::write(self.copy.join(file), text)
    }

    /// Builds the models.
    pub(super) fn build(&self) -> io::Result<Build> {
        let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let output = Command::new(cargo)
            .args(["test", "--package", "iopt", "--lib", "--no-run"])
            .args(["--profile", "mutants", "--message-format"])
            .arg("json-render-diagnostics")
            .current_dir(&self.copy)
            .env("CARGO_TARGET_DIR", &self.target)
            .env("CARGO_INCREMENTAL", "1")
            .env("RUSTFLAGS", "--cfg loom")
            .env_remove("CARGO_ENCODED_RUSTFLAGS")
            .stdin(Stdio::null())
            .output()?;
        if !output.status.success() {
            let errors = String::from_utf8_lossy(&output.stderr).into_owned();
            return Ok(Build::Errors(errors));
        }
        let messages = String::from_utf8_lossy(&output.stdout);
        let program = messages.lines().find_map(executable);
        let program = program.ok_or_else(|| io::Error::other("cargo names no test program"))?;
        Ok(Build::Tests(program))
    }

    /// Runs a program of [`build`](Self::build) for `limit` at most; what it printed is in
    /// [`output`](Self::output) afterwards.
    pub(super) fn run(
        &self,
        program: &Path,
        arguments: &[&str],
        limit: Duration,
    ) -> io::Result<Outcome> {
        let output = File::create(self.output_file())?;
        let child = Command::new(program)
            .args(arguments)
            .current_dir(&self.copy)
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .spawn()?;
        Ok(match wait(child, limit)? {
            Some(status) if status.success() => Outcome::Passed,
            Some(_) => Outcome::Failed,
            None => Outcome::Stopped,
        })
    }

    /// Returns what the last program printed.
    pub(super) fn output(&self) -> io::Result<String> {
        let output = fs::read(self.output_file())?;
        Ok(String::from_utf8_lossy(&output).into_owned())
    }

    fn output_file(&self) -> PathBuf {
        self.copy.join("output.txt")
    }
}

/// Waits for the end of `child`, but kills it at the `limit`.
fn wait(mut child: Child, limit: Duration) -> io::Result<Option<ExitStatus>> {
    let began = Instant::now();
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if began.elapsed() >= limit {
            child.kill()?;
            child.wait()?;
            return Ok(None);
        }
        thread::sleep(Duration::from_millis(5));
    }
}

/// Returns the program that a message of cargo names.
fn executable(message: &str) -> Option<PathBuf> {
    let message: serde_json::Value = serde_json::from_str(message).ok()?;
    message.get("executable")?.as_str().map(PathBuf::from)
}

/// Returns the manifest of a workspace of [`PACKAGES`] that shares all settings with `manifest` but
/// the profiles.
fn trimmed(manifest: &str) -> String {
    let mut shared = format!("[workspace]\nresolver = \"3\"\nmembers = {PACKAGES:?}\n\n");
    let mut is_shared = false;
    for line in manifest.lines() {
        if line.starts_with('[') {
            is_shared = line.starts_with("[workspace.");
        }
        if is_shared {
            shared.push_str(line);
            shared.push('\n');
        }
    }
    shared + PROFILE
}

/// Copies a folder; links are not followed.
fn copy(from: &Path, to: &Path) -> io::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let (kind, name) = (entry.file_type()?, entry.file_name());
        if kind.is_file() {
            fs::copy(entry.path(), to.join(name))?;
        } else if kind.is_dir() && name != SKIPPED {
            copy(&entry.path(), &to.join(name))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_has_its_own_members_and_profile() {
        let manifest = "# A.\n[workspace]\nresolver = \"3\"\nmembers = [\n    \"a\",\n]\n\n\
             [workspace.package]\nedition = \"2024\"\n\n[profile.release]\nlto = \"fat\"\n\n\
             [workspace.lints.rust]\nunsafe_code = \"deny\"\n";
        let expected = format!(
            "[workspace]\nresolver = \"3\"\nmembers = [\"pagetable-formats\", \"engine\"]\n\n\
             [workspace.package]\nedition = \"2024\"\n\n\
             [workspace.lints.rust]\nunsafe_code = \"deny\"\n{PROFILE}"
        );
        assert_eq!(trimmed(manifest), expected);
    }

    #[test]
    fn the_test_program_is_found_among_messages() {
        assert_eq!(executable("Compiling a"), None);
        assert_eq!(executable("{\"executable\":null}"), None);
        let found = executable("{\"reason\":\"a\",\"executable\":\"/b/c\"}");
        assert_eq!(found, Some(PathBuf::from("/b/c")));
    }

    #[test]
    fn a_program_that_does_not_end_is_stopped() {
        let sleeper = |seconds| Command::new("sleep").arg(seconds).spawn().unwrap();
        assert_eq!(wait(sleeper("3600"), Duration::ZERO).unwrap(), None);
        let status = wait(sleeper("0"), Duration::MAX).unwrap();
        assert!(status.is_some_and(|status| status.success()));
    }

    #[test]
    fn a_copy_is_deep_and_leaves_build_outputs_behind() {
        let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        for folder in ["src/a", "target/debug"] {
            fs::create_dir_all(from.path().join(folder)).unwrap();
            fs::write(from.path().join(folder).join("b"), "c").unwrap();
        }
        copy(from.path(), &to.path().join("new")).unwrap();
        let copied = fs::read_to_string(to.path().join("new/src/a/b")).unwrap();
        assert_eq!(copied, "c");
        assert!(!to.path().join("new/target").exists());
    }
}
