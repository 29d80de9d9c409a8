//! `iopt replay` on the fixtures and on traces that no guest would make.

use std::fs;
use std::path::PathBuf;

use crate::common::{fixture, gzip, json, refused};
use serde_json::Value;
use tempfile::TempDir;

const HEAD: &str = "# iopt-trace 1\n# page-size: 4096\n";

fn trace(name: &str) -> String {
    fixture(&format!("traces/{name}.trace.gz"))
        .to_str()
        .expect("the path is UTF-8")
        .into()
}

/// Files of one test.
struct Files(TempDir);

impl Files {
    fn new() -> Self {
        Self(TempDir::new().expect("a temporary folder can be made"))
    }

    fn write(&self, name: &str, bytes: impl AsRef<[u8]>) -> String {
        let path: PathBuf = self.0.path().join(name);
        fs::write(&path, bytes).expect("the folder can be written");
        path.to_str().expect("the path is UTF-8").into()
    }
}

#[test]
fn real_traces_give_the_figures_that_they_were_captured_with() {
    for (name, format, operations, peak_live_pages, live_pages) in [
        ("nvme-x86-lazy", "vtd-ss", 56763, 1017, 45),
        ("nvme-x86-strict", "vtd-ss", 57294, 1049, 45),
        ("net-vtd-lazy", "vtd-ss", 79091, 4805, 4732),
        ("mixed-smmu16k-lazy", "arm-s1-16k", 59975, 773, 290),
        ("vfio-smmu", "arm-s1-4k", 64752, 1_097_052, 1),
        ("bringup-arm", "arm-s1-4k", 59953, 4810, 236),
    ] {
        let report = json(0, ["replay", &trace(name), "--verify", "all", "--json"]);
        let run = &report["runs"][0];
        assert_eq!(run["format"], format, "{name}");
        for figures in [run, &Value::Object(report.clone())] {
            assert_eq!(figures["operations"], operations, "{name}");
            assert_eq!(figures["peak_live_pages"], peak_live_pages, "{name}");
            assert_eq!(figures["live_pages"], live_pages, "{name}");
            assert_eq!(figures["mismatches"], 0, "{name}");
            // At least both ends and both neighbours of every operation.
            let changes = figures["maps"].as_u64().zip(figures["unmaps"].as_u64());
            let changes = changes.map(|(maps, unmaps)| maps + unmaps);
            assert!(
                figures["verified_pages"].as_u64() > changes.map(|count| 2 * count),
                "{name}"
            );
            assert!(figures["engine_ns"].as_u64() > Some(0), "{name}");
            assert!(figures["peak_table_pages"].as_u64() > Some(3), "{name}");
        }
    }
}

#[test]
fn threads_and_formats_change_no_count() {
    let counts = |arguments: &[&str]| {
        let name = trace("bringup-arm");
        let fixed = ["replay", &name, "--json"];
        let report = json(0, fixed.iter().chain(arguments));
        [
            "operations",
            "maps",
            "unmaps",
            "peak_live_pages",
            "live_pages",
            "mismatches",
        ]
        .map(|key| report[key].as_u64())
    };
    let expected = counts(&[]);
    assert_eq!(counts(&["--threads", "4"]), expected);
    assert_eq!(counts(&["--format", "amd-v1", "--threads", "2"]), expected);

    let table_pages = |threads| {
        let report = json(
            0,
            [
                "replay",
                &trace("bringup-arm"),
                "--threads",
                threads,
                "--json",
            ],
        );
        report["peak_table_pages"].as_u64()
    };
    assert_eq!(table_pages("1"), table_pages("3"));
}

#[test]
fn several_traces_are_summed_up() {
    let paths = [trace("nvme-x86-lazy"), trace("nvme-x86-strict")];
    let report = json(
        0,
        ["replay", &paths[0], &paths[1], "--verify", "none", "--json"],
    );
    assert_eq!(report["operations"], 56763 + 57294);
    assert_eq!(report["peak_live_pages"], 1049);
    assert_eq!(report["verified_pages"], 0);
    assert_eq!(report["runs"].as_array().map(Vec::len), Some(2));
}

#[test]
fn flushes_come_when_they_are_asked_for() {
    let path = trace("net-vtd-lazy");
    let invalidation = |flush: &str| {
        let report = json(
            0,
            [
                "replay", &path, "--flush", flush, "--verify", "end", "--json",
            ],
        );
        let number = |key: &str| report["invalidation"][key].as_u64().expect("a number");
        assert_eq!(number("ranges_gathered"), 39297);
        number("commands")
    };
    assert_eq!(invalidation("each"), 39297);
    let every = invalidation("every=64");
    assert!((39297 / 64..=39297 / 64 + 5).contains(&every), "{every}");
    let flushes = fixture("traces/net-vtd-lazy.flush.gz");
    let file = invalidation(flushes.to_str().expect("the path is UTF-8"));
    // 461 flushes, some of them with nothing unmapped before, and one at the end of each domain.
    assert!((300..=466).contains(&file), "{file}");
}

#[test]
fn every_format_replays_maps_of_all_sizes_and_partial_unmaps() {
    let listing = json(0, ["formats", "--json"]);
    let files = Files::new();
    for format in listing["formats"].as_array().expect("formats are a list") {
        let name = format["name"].as_str().expect("a name is text");
        let page = format["page_sizes"][0]
            .as_u64()
            .expect("a size is a number");
        let lines = format!(
            "# iopt-trace 1\n# page-size: {page}\n\
             map 0 0 0x0 0x4000000 {p3:#x} rw\n\
             unmap 0 0 {p1:#x} {p1:#x}\n\
             map 1 0 {p1:#x} 0x8000000 {p1:#x} rc\n\
             map 1 1 0x4000000 0x4000000 0x6000000 rwc\n\
             unmap 2 1 0x6000000 {p1:#x}\n\
             unmap 2 1 0x4000000 {p1:#x}\n\
             unmap 2 0 0x0 {p3:#x}\n\
             map 3 0 0x3ff0000 0xfff0000 0x20000 wm\n",
            p1 = page,
            p3 = 3 * page,
        );
        let path = files.write("a.trace", lines);
        let report = json(
            0,
            [
                "replay", &path, "--format", name, "--verify", "all", "--json",
            ],
        );
        assert_eq!(report["mismatches"], 0, "{name}");
        assert_eq!(
            report["live_pages"],
            0x600_0000 / page - 2 + 0x2_0000 / page,
            "{name}"
        );
    }
}

#[test]
fn a_domain_that_ends_gives_its_table_back() {
    let files = Files::new();
    let ends = "# domain-end: a domain and its mappings end with its last detach\n";
    let lines = "attach 0 0 a\nmap 0 0 0x0 0x0 0x1000 r\ndetach 1 0 a\nattach 2 1 a\n";
    let pages = |text: String| {
        let report = json(0, ["replay", &files.write("a.trace", text), "--json"]);
        (
            report["peak_table_pages"].as_u64(),
            report["live_pages"].as_u64(),
        )
    };
    assert_eq!(pages(format!("{HEAD}{ends}{lines}")), (Some(4), Some(0)));
    assert_eq!(pages(format!("{HEAD}{lines}")), (Some(5), Some(1)));
}

#[test]
fn an_empty_trace_is_replayed() {
    let files = Files::new();
    let report = json(0, ["replay", &files.write("a.trace", HEAD), "--json"]);
    assert_eq!(report["operations"], 0);
    assert_eq!(report["peak_table_pages"], 0);
}

#[test]
fn bad_traces_are_refused_with_file_line_and_reason() {
    let files = Files::new();
    let map = "map 0 0 0x1000 0x2000 0x2000 rw\n";
    for (text, line, reason) in [
        (
            "garbage\n".into(),
            1,
            "not a trace: the first line must be `# iopt-trace 1`",
        ),
        (
            "# iopt-trace 2\n".into(),
            1,
            "trace version \"2\" is not supported, only 1",
        ),
        (
            "# iopt-trace 1\n# mode: lazy\n".into(),
            3,
            "the header has no `page-size`",
        ),
        (
            format!("{HEAD}{map}map 0 0 0x2000 0x0 0x1000 r\n"),
            4,
            "domain 0: map over 0x2000, which is mapped already",
        ),
        (
            format!("{HEAD}unmap 0 0 0x2000 0x1000\n"),
            3,
            "domain 0: unmap of 0x2000, which is not mapped",
        ),
        (
            format!("{HEAD}{map}unmap 0 0 0x1000 0x3000\n"),
            4,
            "domain 0: unmap of 0x3000, which is not mapped",
        ),
        (
            format!("{HEAD}{map}unmap 0 0 0x10"),
            4,
            "the line is cut: it has no line end",
        ),
        (
            format!("{HEAD}{map}unmap 0 0\n"),
            4,
            "unmap takes 5 fields, not 3",
        ),
        (
            format!("{HEAD}map 0 0 0xg000 0x2000 0x2000 rw\n"),
            3,
            "iova \"0xg000\" is not a hexadecimal number with 0x",
        ),
        (
            format!("{HEAD}map 0 0 0x1000000000000 0x0 0x1000 rw\n"),
            3,
            "iova 0x1000000000000..=0x1000000000fff is outside of what the table decodes",
        ),
        (
            format!("{HEAD}map 0 0 0xfffffffff000 0x0 0x2000 rw\n"),
            3,
            "iova 0xfffffffff000..=0x1000000000fff is outside of what the table decodes",
        ),
        (
            format!("{HEAD}map 0 0 0x0 0x10000000000000 0x1000 rw\n"),
            3,
            "the output range from 0x10000000000000 does not fit 52 bits",
        ),
    ] {
        let path = files.write("bad.trace", text);
        let found = refused(["replay", &path, "--format", "vtd-ss", "--json"]);
        assert_eq!(found, format!("iopt: {path}:{line}: {reason}"));
    }
}

#[test]
fn damaged_files_are_refused() {
    let files = Files::new();
    let whole = gzip(format!("{HEAD}{}", "attach 0 0 a\ndetach 0 0 a\n".repeat(1000)).as_bytes());
    let path = files.write("cut.trace.gz", &whole[..whole.len() - 12]);
    let line = refused(["replay", &path]);
    assert!(line.starts_with(&format!("iopt: {path}:")), "{line}");
    assert!(line.ends_with("the gzip data is cut short"), "{line}");

    let mut damaged = whole.clone();
    let last = damaged.len() - 5;
    damaged[last] ^= 1;
    let line = refused(["replay", &files.write("damaged.trace.gz", damaged)]);
    assert!(line.ends_with("the gzip data is damaged"), "{line}");

    assert!(refused(["replay", "no-such.trace"]).starts_with("iopt: no-such.trace: No such file"));
    let folder = files.0.path().to_str().expect("the path is UTF-8");
    assert!(refused(["replay", folder]).contains("Is a directory"));
    let line = refused(["replay", &files.write("binary", [0xff, 0xfe, 0x0a])]);
    assert!(
        line.ends_with("binary:1: the line is not UTF-8 text"),
        "{line}"
    );
}

#[test]
fn a_page_size_that_the_format_lacks_is_refused() {
    let line = refused(["replay", &trace("mixed-smmu16k-lazy"), "--format", "vtd-ss"]);
    assert!(
        line.ends_with("page-size 16 KiB is not one of vtd-ss, which has 4 KiB, 2 MiB, 1 GiB"),
        "{line}"
    );
}

#[test]
fn flush_files_that_do_not_fit_are_refused() {
    let files = Files::new();
    let trace_path = files.write("a.trace", format!("{HEAD}attach 0 0 a\n"));
    let flush = files.write("a.flush", "# iopt-flush 1\nflush 0 0 all 2\n");
    let line = refused(["replay", &trace_path, "--flush", &flush]);
    assert_eq!(
        line,
        format!("iopt: {flush}: flush after 2 operations, but {trace_path} has 1")
    );
    let line = refused(["replay", &trace_path, &trace_path, "--flush", &flush]);
    assert!(
        line.ends_with("a flush file belongs to one trace, not to 2"),
        "{line}"
    );
    let bad = files.write("bad.flush", "# iopt-flush 1\nflush 0 0 some 1\n");
    assert!(
        refused(["replay", &trace_path, "--flush", &bad]).starts_with(&format!("iopt: {bad}:2: "))
    );
    assert!(
        refused(["replay", &trace_path, "--flush", "every=0"]).contains("not a number from 1 on")
    );
}

#[test]
fn both_halves_of_a_sign_extended_space_are_replayed() {
    let files = Files::new();
    let lines = "map 0 0 0x3ffffff000 0x1000 0x1000 rw\n\
                 map 0 0 0xffffffc000000000 0x4000 0x2000 r\n\
                 map 0 0 0xfffffffffffff000 0x2000 0x1000 w\n\
                 unmap 1 0 0xffffffc000000000 0x1000\n";
    let path = files.write("a.trace", format!("{HEAD}{lines}"));
    let report = json(
        0,
        [
            "replay",
            &path,
            "--format",
            "riscv-sv39",
            "--verify",
            "all",
            "--json",
        ],
    );
    assert_eq!(
        (&report["mismatches"], &report["live_pages"]),
        (&0.into(), &3.into())
    );

    let hole = files.write(
        "hole.trace",
        format!("{HEAD}map 0 0 0x3ffffff000 0x0 0x2000 rw\n"),
    );
    let line = refused(["replay", &hole, "--format", "riscv-sv39"]);
    assert!(
        line.ends_with(":3: iova 0x3ffffff000..=0x4000000fff is outside of what the table decodes"),
        "{line}"
    );
}

#[test]
fn tables_that_a_large_page_replaced_are_reclaimed() {
    // The same 2 MiB again and again: first as single pages, which need a leaf table, then as one
    // page, which takes the empty table's place.
    let files = Files::new();
    let round = "map 0 0 0x200000 0x1000 0x1000 rw\nunmap 0 0 0x200000 0x1000\n\
                 map 0 0 0x200000 0x200000 0x200000 rw\nunmap 0 0 0x200000 0x200000\n";
    let path = files.write("a.trace", format!("{HEAD}{}", round.repeat(50)));
    let report = json(
        0,
        [
            "replay", &path, "--format", "vtd-ss", "--verify", "all", "--json",
        ],
    );
    assert_eq!(report["mismatches"], 0);
    // Root, two levels, a leaf table, and one that waits for its flush.
    assert!(report["peak_table_pages"].as_u64() <= Some(5), "{report:?}");
}

#[test]
fn options_change_the_tables_but_not_what_they_translate() {
    let files = Files::new();
    let lower_text = "map 0 0 0x0 0x200000 0x40000 rwc\nmap 0 0 0x400000 0x400000 0x400000 wm\n\
                 unmap 1 0 0x10000 0x10000\n";
    let lower = files.write("lower.trace", format!("{HEAD}{lower_text}"));
    let head = "# iopt-trace 1\n# page-size: 65536\n";
    let high = "map 2 0 0x40000000000 0xf000000000000 0x400000000 r\n";
    let large = files.write("large.trace", format!("{head}{lower_text}{high}"));
    let upper = "map 0 0 0xffff000000000000 0x200000 0x40000 rwc\n\
                 map 0 0 0xffffffffffe00000 0x400000 0x200000 w\n\
                 unmap 1 0 0xffff000000010000 0x10000\n";
    let upper = files.write("upper.trace", format!("{HEAD}{upper}"));
    for (path, options) in [
        (&lower, "arm-s1-4k --dirty"),
        (&lower, "arm-s1-4k --lpa --ns"),
        (&large, "arm-s1-64k --lpa"),
        (&large, "arm-s2-64k --lpa"),
        (&upper, "arm-s1-4k --upper"),
        (&lower, "arm-s2-4k --s2fwb --dirty"),
        (&lower, "arm-s2-4k --va-bits 40 --oa-bits 40"),
        (&lower, "vtd-ss --dirty --snoop --levels 5"),
        (&lower, "vtd-ss --va-bits 39"),
        (&lower, "vtd-fs --sign-extended --execute-disable"),
        (&lower, "amd-v1 --levels 6 --snoop"),
        (&lower, "amd-v1 --va-bits 39 --dirty"),
        (&lower, "riscv-sv39 --svnapot --svpbmt"),
    ] {
        let mut arguments = vec!["replay", path, "--verify", "all", "--json", "--format"];
        arguments.extend(options.split(' '));
        assert_eq!(json(0, arguments)["mismatches"], 0, "{options}");
    }
    let line = refused(["replay", &lower, "--format", "arm-s1-4k", "--upper"]);
    assert!(
        line.ends_with("iova 0x0..=0x3ffff is outside of what the table decodes"),
        "{line}"
    );
    let line = refused(["replay", &lower, "--format", "vtd-ss", "--upper"]);
    assert!(
        line.starts_with("iopt: vtd-ss: the upper half is not possible here"),
        "{line}"
    );
}
