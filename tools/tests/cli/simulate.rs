//! `iopt replay --simulate`: traces before simulated IOMMUs that cache whatever they may.

use std::fs;

use flate2::read::GzDecoder;
use std::io::{BufRead as _, BufReader};

use crate::common::{fixture, iopt, json, refused};
use tempfile::TempDir;

const MODELS: [&str; 5] = ["smmuv3", "smmuv3-ril", "vtd", "amd", "riscv"];

/// Writes the first lines of a trace, so that a test in a debug build is over soon.
fn shortened(folder: &TempDir, name: &str, line_count: usize) -> String {
    let file = fs::File::open(fixture(&format!("traces/{name}.trace.gz"))).expect("it is there");
    let lines = BufReader::new(GzDecoder::new(file)).lines();
    let text: String = lines
        .take(line_count)
        .map(|line| line.expect("the trace is whole") + "\n")
        .collect();
    let path = folder.path().join(format!("{name}.trace"));
    fs::write(&path, text).expect("the folder can be written");
    path.to_str().expect("the path is UTF-8").into()
}

#[test]
fn no_simulated_iommu_reaches_what_was_unmapped() {
    let folder = TempDir::new().expect("a temporary folder can be made");
    let trace = shortened(&folder, "nvme-x86-strict", 1500);
    for model in MODELS {
        let strict = json(0, ["replay", "--simulate", model, "--json", &trace]);
        let deferred = [
            "replay",
            "--simulate",
            model,
            "--deferred",
            "--json",
            &trace,
        ];
        let deferred = json(0, deferred);
        for (report, is_deferred) in [(&strict, false), (&deferred, true)] {
            assert_eq!(report["simulated"], model);
            assert_eq!(report["deferred"], is_deferred);
            assert_eq!(report["stale_accesses"], 0, "{model}");
            assert_eq!(report["lost_accesses"], 0, "{model}");
            assert!(report["dma_accesses"].as_u64() > Some(2000), "{model}");
            assert!(report["commands"].as_u64() > report["syncs"].as_u64());
        }
        // Each unmap, and each of the three devices that come, syncs once.
        let unmaps = strict["unmaps"].as_u64().expect("a count");
        assert_eq!(strict["syncs"], unmaps + 3, "{model}");
        assert_eq!(strict["table_invalidations"], 0, "{model}");
        assert!(
            deferred["syncs"].as_u64() < strict["syncs"].as_u64(),
            "{model}"
        );
    }
}

/// A command for each page, or one for each range.
#[test]
fn ranges_save_commands() {
    let folder = TempDir::new().expect("a temporary folder can be made");
    let trace = shortened(&folder, "nvme-x86-strict", 1500);
    let commands = |model| {
        let report = json(0, ["replay", "--simulate", model, "--json", &trace]);
        report["commands"].as_u64().expect("a count")
    };
    assert!(commands("smmuv3") > 2 * commands("smmuv3-ril"));
}

#[test]
fn granules_of_a_trace_need_hardware_that_has_them() {
    let folder = TempDir::new().expect("a temporary folder can be made");
    let trace = shortened(&folder, "mixed-smmu16k-lazy", 500);
    let report = json(0, ["replay", "--simulate", "smmuv3-ril", "--json", &trace]);
    assert_eq!(report["stale_accesses"], 0);
    let line = refused(["replay", "--simulate", "amd", &trace]);
    assert!(
        line.ends_with("the simulated amd has no pages of 16 KiB"),
        "{line}"
    );
}

#[test]
fn people_read_the_same_figures() {
    let folder = TempDir::new().expect("a temporary folder can be made");
    let trace = shortened(&folder, "nvme-x86-lazy", 300);
    let output = iopt(["replay", "--simulate", "vtd", "--deferred", &trace]);
    assert_eq!(output.status, 0, "{output:?}");
    for text in ["on a simulated vtd, deferred, ", "syncs", "stale accesses"] {
        assert!(output.stdout.contains(text), "{output:?}");
    }
}

#[test]
fn options_of_the_other_replay_are_refused() {
    for option in [
        ["--format", "amd-v1"],
        ["--flush", "each"],
        ["--threads", "2"],
    ] {
        let [name, value] = option;
        let output = iopt(["replay", "--simulate", "vtd", name, value, "x.trace"]);
        assert_eq!(output.status, 2, "{output:?}");
        assert!(output.stderr.contains("cannot be used with"), "{output:?}");
    }
    let output = iopt(["replay", "--deferred", "x.trace"]);
    assert_eq!(output.status, 2, "{output:?}");
}
