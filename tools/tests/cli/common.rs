//! Running the built command, and damaging its inputs.

use std::ffi::OsStr;
use std::fs;
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::Command;

use flate2::Compression;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;
use serde_json::Value;

/// What a run of the command gave.
#[derive(Debug)]
pub(crate) struct Output {
    /// Exit status.
    pub(crate) status: i32,
    /// Standard output.
    pub(crate) stdout: String,
    /// Standard error.
    pub(crate) stderr: String,
}

/// Returns the path of the built command.
pub(crate) fn command() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_iopt"));
    command.env_remove("NO_COLOR");
    command
}

/// Runs the command.
pub(crate) fn iopt<S: AsRef<OsStr>>(arguments: impl IntoIterator<Item = S>) -> Output {
    let output = command()
        .args(arguments)
        .output()
        .expect("the command is built");
    let text = |bytes| String::from_utf8(bytes).expect("the command writes UTF-8");
    Output {
        status: output.status.code().expect("the command is not killed"),
        stdout: text(output.stdout),
        stderr: text(output.stderr),
    }
}

/// Runs the command with arguments that it must refuse, and returns its one line.
pub(crate) fn refused<S: AsRef<OsStr>>(arguments: impl IntoIterator<Item = S>) -> String {
    let output = iopt(arguments);
    assert_eq!(output.status, 2, "{output:?}");
    assert_eq!(output.stdout, "", "{output:?}");
    let mut lines = output.stderr.lines();
    let line = lines.next().expect("there is a line").to_owned();
    assert_eq!(lines.next(), None, "{output:?}");
    line
}

/// Runs the command and parses the one JSON object that it prints.
pub(crate) fn json<S: AsRef<OsStr>>(
    status: i32,
    arguments: impl IntoIterator<Item = S>,
) -> serde_json::Map<String, Value> {
    let output = iopt(arguments);
    assert_eq!(output.status, status, "{output:?}");
    assert_eq!(output.stderr, "", "{output:?}");
    let value = serde_json::from_str(&output.stdout).expect("standard output is one JSON value");
    let Value::Object(object) = value else {
        panic!("not an object: {value}")
    };
    assert_eq!(object["schema"], 1);
    object
}

/// Returns the path of a file of the project's fixtures.
pub(crate) fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../tests/fixtures")
        .join(name)
}

/// Returns the bytes of a gzip-compressed file.
pub(crate) fn gunzip(path: &Path) -> Vec<u8> {
    let mut bytes = Vec::new();
    let file = fs::File::open(path).expect("the fixture is there");
    GzDecoder::new(file)
        .read_to_end(&mut bytes)
        .expect("the fixture is whole");
    bytes
}

/// Returns `bytes`, gzip-compressed.
pub(crate) fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).expect("memory can be written");
    encoder.finish().expect("memory can be written")
}
