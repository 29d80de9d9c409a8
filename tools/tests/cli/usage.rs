//! What every subcommand has in common: help, usage errors, pipes; and the small subcommands.

use std::fs::OpenOptions;
use std::process::Stdio;

use crate::common::{command, fixture, iopt, json, refused};

#[test]
fn help_has_examples_and_no_colour_outside_a_terminal() {
    for subcommand in ["replay", "walk", "explain", "formats", "topology"] {
        let output = iopt([subcommand, "--help"]);
        assert_eq!((output.status, output.stderr.as_str()), (0, ""));
        let example = format!("iopt {subcommand} ");
        assert!(output.stdout.contains("Example") && output.stdout.contains(&example));
        assert!(!output.stdout.contains('\u{1b}'));
    }
    assert!(iopt(["--help"]).stdout.contains("Exit status: 0 fine; 1 "));
    assert!(iopt(["--version"]).stdout.starts_with("iopt 0."));
}

#[test]
fn wrong_usage_is_one_line() {
    for (arguments, part) in [
        (&[][..], "a command is missing"),
        (&["reply"], "unrecognized subcommand 'reply'"),
        (&["replay"], "required arguments were not provided: <TRACE>"),
        (
            &["replay", "x", "--threads", "0"],
            "'0' for '--threads <COUNT>': not a number from 1 to 1024",
        ),
        (
            &["replay", "x", "--verify", "some"],
            "'some' for '--verify <WHEN>'",
        ),
        (&["walk"], "required arguments were not provided: <FIXTURE>"),
        (&["walk", "x", "--ram", "y@0"], "cannot be used with"),
        (
            &["walk", "--ram", "y@0", "--root", "0"],
            "--format <FORMAT>",
        ),
        (
            &["walk", "--ram", "y", "--format", "vtd-ss", "--root", "0"],
            "not of the form FILE@BASE",
        ),
        (
            &["walk", "--ram", "y@0q", "--format", "vtd-ss", "--root", "0"],
            "BASE: invalid digit",
        ),
        (
            &["walk", "x", "--iova", "12q"],
            "'12q' for '--iova <ADDRESS>': invalid digit",
        ),
        (&["walk", "x", "--sid", "0x100000000"], "for '--sid <ID>'"),
        (
            &["explain", "--format", "vtd", "--level", "0", "1"],
            "'vtd' for '--format <FORMAT>': no such format",
        ),
        (
            &["explain", "--format", "vtd-ss", "--level", "0", "one"],
            "'one' for '<WORD>'",
        ),
        (
            &["explain", "--format", "vtd-ss", "--level", "256", "1"],
            "'256' for '--level <LEVEL>'",
        ),
        (
            &["explain", "--format", "vtd-ss", "--level", "4", "1"],
            "--level 4: vtd-ss has the levels 0 to 3",
        ),
        (
            &[
                "explain",
                "--format",
                "vtd-ss",
                "--va-bits",
                "99",
                "--level",
                "0",
                "1",
            ],
            "vtd-ss: ",
        ),
        (&["formats", "extra"], "unexpected argument 'extra'"),
    ] {
        let line = refused(arguments);
        assert!(
            line.starts_with("iopt: ") && line.contains(part),
            "{arguments:?}: {line}"
        );
    }
}

#[test]
fn a_closed_pipe_is_no_failure() {
    let path = fixture("tables/vtd-a.json.gz");
    // More than a pipe holds, so that the write meets the closed end.
    let arguments = ["walk", path.to_str().expect("the path is UTF-8"), "--json"];
    assert!(iopt(arguments).stdout.len() > 1 << 16);
    let mut child = command()
        .args(arguments)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the command is built");
    drop(child.stdout.take());
    let output = child.wait_with_output().expect("the command ends");
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(output.stderr, b"");
}

#[test]
#[cfg(target_os = "linux")]
fn a_full_disk_is_a_failure() {
    let full = OpenOptions::new()
        .write(true)
        .open("/dev/full")
        .expect("Linux has /dev/full");
    let output = command()
        .arg("formats")
        .stdout(full)
        .output()
        .expect("the command is built");
    assert_eq!(output.status.code(), Some(2));
    let line = String::from_utf8(output.stderr).expect("the command writes UTF-8");
    assert!(
        line.starts_with("iopt: standard output: No space left"),
        "{line}"
    );
}

#[test]
fn all_formats_are_listed() {
    let listing = json(0, ["formats", "--json"]);
    let formats = listing["formats"].as_array().expect("formats are a list");
    let find = |name| {
        formats
            .iter()
            .find(|format| format["name"] == name)
            .expect("it is listed")
    };
    assert_eq!(
        find("vtd-ss")["page_sizes"],
        serde_json::json!([4096, 2 << 20, 1 << 30])
    );
    assert_eq!(find("riscv-sv39")["va_bits"], 39);
    assert_eq!(find("riscv-sv39")["window"], "sign-extended");
    assert_eq!(find("arm-s1-16k")["page_sizes"][0], 16384);
    let text = iopt(["formats"]).stdout;
    assert_eq!(text.lines().count(), formats.len() + 1);
    assert!(text.lines().all(|line| line.len() <= 120), "{text}");
}

#[test]
fn words_are_explained() {
    let meaning = |arguments: &[&str]| {
        let report = json(0, ["explain", "--json"].iter().chain(arguments));
        report["meaning"]
            .as_str()
            .expect("a meaning is text")
            .to_owned()
    };
    let found = meaning(&["--format", "vtd-ss", "--level", "1", "0x123400083"]);
    assert_eq!(found, "leaf of 2 MiB to 0x123400000, rw-u wb, accessed");
    let found = meaning(&["--format", "vtd-ss", "--level", "1", "0x88001003"]);
    assert_eq!(found, "table of level 0 at 0x88001000");
    let found = meaning(&["--format", "vtd-ss", "--level", "0", "0"]);
    assert_eq!(found, "empty: translates nothing");
    let found = meaning(&[
        "--format",
        "arm-s1-4k",
        "--level",
        "0",
        "0x0010000123451f47",
    ]);
    assert!(
        found.starts_with("leaf of 64 KiB to 0x123451000, rw"),
        "{found}"
    );
    assert!(found.contains("one of 16"), "{found}");
    let found = meaning(&["--format", "amd-v1", "--level", "0", "0x6000000123457e01"]);
    assert!(
        found.starts_with("leaf of 64 KiB to 0x123450000, rw-u"),
        "{found}"
    );

    let report = json(
        0,
        [
            "explain",
            "--json",
            "--format",
            "arm-s1-4k",
            "--level",
            "0",
            "0x4458bf47",
        ],
    );
    assert_eq!(report["arch_level"], 3);
    assert_eq!(report["item_size"], 4096);
    let fields = report["fields"].as_array().expect("fields are a list");
    let value = |name| {
        fields
            .iter()
            .find(|field| field["name"] == name)
            .map(|field| &field["value"])
    };
    assert_eq!(value("AttrIndx"), Some(&"0x1".into()));
    assert_eq!(value("nG"), Some(&"0x1".into()));

    let output = iopt([
        "explain",
        "--format",
        "vtd-ss",
        "--level",
        "0",
        "0x8000000000001003",
    ]);
    assert!(
        output
            .stdout
            .starts_with("vtd-ss level 0 (level 1 of the architecture)"),
        "{}",
        output.stdout
    );
}

#[test]
fn a_reserved_word_is_explained_as_such() {
    let report = json(
        0,
        [
            "explain",
            "--json",
            "--format",
            "riscv-sv39",
            "--level",
            "0",
            "0x5",
        ],
    );
    assert_eq!(report["is_reserved"], true);
    assert!(
        report["meaning"]
            .as_str()
            .expect("text")
            .starts_with("reserved: ")
    );
}
