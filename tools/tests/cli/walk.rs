//! `iopt walk` on the fixtures, on damaged copies of them, and on tables written by hand.

use std::fs;
use std::path::{Path, PathBuf};

use crate::common::{fixture, gunzip, gzip, iopt, json, refused};
use serde_json::Value;
use tempfile::TempDir;

/// A copy of a fixture that a test damages.
struct Copy {
    folder: TempDir,
    name: &'static str,
    sidecar: Value,
    pages: Vec<u8>,
}

impl Copy {
    fn of(name: &'static str) -> Self {
        let file = |end: &str| gunzip(&fixture(&format!("tables/{name}.{end}.gz")));
        Self {
            folder: TempDir::new().expect("a temporary folder can be made"),
            name,
            sidecar: serde_json::from_slice(&file("json")).expect("the sidecar is JSON"),
            pages: file("pages"),
        }
    }

    /// Returns where the word at `address` is in the pages.
    fn word(&mut self, address: u64) -> &mut [u8] {
        let page = (address & !0xfff).to_le_bytes();
        let records = self.pages.chunks_exact_mut(8 + 4096);
        let record = records.into_iter().find(|record| record[..8] == page);
        let offset = 8 + (address as usize & 0xfff);
        &mut record.expect("the page is there")[offset..offset + 8]
    }

    /// Takes the page at `address` out.
    fn without_page(&mut self, address: u64) {
        let records = self.pages.chunks_exact(8 + 4096);
        let kept = records.filter(|record| record[..8] != address.to_le_bytes());
        self.pages = kept.flatten().copied().collect();
        let count = self.pages.len() / (8 + 4096);
        self.sidecar["pages"] = count.into();
    }

    fn pages_path(&self) -> PathBuf {
        self.folder.path().join(format!("{}.pages.gz", self.name))
    }

    /// Writes both files and returns the sidecar's path.
    fn write(&self) -> PathBuf {
        let json = serde_json::to_vec(&self.sidecar).expect("a JSON value can be written");
        let path = self.folder.path().join(format!("{}.json.gz", self.name));
        fs::write(&path, gzip(&json)).expect("the folder can be written");
        fs::write(self.pages_path(), gzip(&self.pages)).expect("the folder can be written");
        path
    }
}

fn check(path: &Path) -> [&str; 4] {
    [
        "walk",
        path.to_str().expect("the path is UTF-8"),
        "--check",
        "--json",
    ]
}

#[test]
fn every_fixture_gives_exactly_its_leaves() {
    for (name, domains, leaves, contexts) in [
        ("smmu-a", 5, 957, 1280),
        ("smmu-s2", 5, 958, 1280),
        ("vtd-a", 10, 5048, 14),
        ("vtd-sm-fs", 10, 5048, 13),
        ("vtd-vfio", 3, 5288, 5),
        ("amd-a", 6, 604, 252),
        ("riscv-sys", 0, 0, 11),
    ] {
        let path = fixture(&format!("tables/{name}.json.gz"));
        let report = json(0, check(&path));
        let number = |key: &str| report[key].as_u64();
        assert_eq!(number("domains"), Some(domains), "{name}");
        assert_eq!(number("leaves_expected"), Some(leaves), "{name}");
        assert_eq!(number("leaves_found"), Some(leaves), "{name}");
        assert_eq!(number("reference_leaves_found"), Some(leaves), "{name}");
        assert_eq!(number("contexts_expected"), Some(contexts), "{name}");
        assert_eq!(number("contexts_found"), Some(contexts), "{name}");
        assert_eq!(number("mismatches"), Some(0), "{name}");
        assert_eq!(report["command"], "walk");
        assert_eq!(report["fixture"], path.to_str().expect("the path is UTF-8"));
    }
}

#[test]
fn a_leaf_that_the_sidecar_has_otherwise_is_a_mismatch() {
    let mut copy = Copy::of("amd-a");
    copy.sidecar["domains"][1]["leaves"][0][1] = "0x2e21000".into();
    let report = json(1, check(&copy.write()));
    // One leaf is missing and another one unexpected, for the library and for the reference.
    assert_eq!(report["mismatches"], 4);
    assert_eq!(report["leaves_found"], report["leaves_expected"]);

    let output = iopt([
        "walk".as_ref(),
        copy.write().as_os_str(),
        "--check".as_ref(),
    ]);
    assert_eq!(output.status, 1);
    assert!(
        output
            .stdout
            .contains("mismatch: sid 40: missing leaf 0xfffe0000"),
        "{}",
        output.stdout
    );
}

#[test]
fn a_changed_leaf_word_is_a_mismatch() {
    let mut copy = Copy::of("smmu-a");
    // The leaf of IOVA 0xfffe0000 loses its write permission.
    copy.word(0x4805_2000 + 480 * 8)[0] |= 0x80;
    assert_eq!(json(1, check(&copy.write()))["mismatches"], 4);
}

#[test]
fn a_leaf_too_many_is_a_mismatch() {
    let mut copy = Copy::of("vtd-a");
    // The device 0 of bus 0 has an empty domain; its table gets a 1 GiB leaf at its third level.
    copy.word(0x0264_9000)
        .copy_from_slice(&0x0264_d003_u64.to_le_bytes());
    copy.word(0x0264_d000)
        .copy_from_slice(&0x4000_0083_u64.to_le_bytes());
    let report = json(1, check(&copy.write()));
    assert_eq!(report["leaves_found"], 5049);
}

#[test]
fn a_changed_context_is_a_mismatch() {
    // SMMUv3: the STE of stream 8 aborts.
    let mut copy = Copy::of("smmu-a");
    copy.word(0x4ba6_0200)[0] = 1;
    let report = json(1, check(&copy.write()));
    assert_eq!(report["contexts_found"], 1279);

    // RISC-V: the context of device 8 is not valid any more.
    let mut copy = Copy::of("riscv-sys");
    copy.word(0x8403_a200)[0] = 0;
    let report = json(1, check(&copy.write()));
    assert_eq!(report["contexts_found"], 10);

    // VT-d: a reserved bit in the context entry of device 8.
    let mut copy = Copy::of("vtd-a");
    copy.word(0x0264_a080)[0] |= 0x10;
    let report = json(1, check(&copy.write()));
    let details = report["details"].as_array().expect("details are a list");
    assert!(details.iter().any(|detail| {
        detail
            .as_str()
            .is_some_and(|why| why.contains("reserved bits 0x10"))
    }));
}

#[test]
fn a_device_in_the_wrong_domain_is_a_mismatch() {
    let mut copy = Copy::of("vtd-a");
    copy.sidecar["domains"][0]["sids"] = serde_json::json!([0, 8]);
    copy.sidecar["domains"][1]["sids"] = serde_json::json!([]);
    assert!(json(1, check(&copy.write()))["mismatches"].as_u64() > Some(0));
}

#[test]
fn a_device_in_no_domain_must_not_be_translated() {
    let mut copy = Copy::of("vtd-a");
    let domains = copy.sidecar["domains"]
        .as_array_mut()
        .expect("domains are a list");
    // The domain of the devices 32, 1024 and 1048.
    domains.remove(4);
    assert_eq!(json(1, check(&copy.write()))["mismatches"], 3);
}

#[test]
fn a_loop_in_the_tables_is_found_and_the_object_still_comes() {
    let mut copy = Copy::of("vtd-a");
    // An item of the level below the root points back to the root.
    copy.word(0x0264_9000)
        .copy_from_slice(&0x0264_9003_u64.to_le_bytes());
    let report = json(1, check(&copy.write()));
    let details = report["details"].as_array().expect("details are a list");
    assert!(
        details
            .iter()
            .any(|detail| detail.as_str().is_some_and(|why| why.contains("loop")))
    );
}

#[test]
fn one_address_is_walked_from_the_registers_on() {
    let path = fixture("tables/smmu-a.json.gz");
    let path = path.to_str().expect("the path is UTF-8");
    let output = iopt(["walk", path, "--sid", "8", "--iova", "0xfffe0010"]);
    assert_eq!((output.status, output.stderr.as_str()), (0, ""));
    for part in [
        "STE at 0x4ba60200",
        "S1DSS=0x2",
        "CD at 0x48055000",
        "T0SZ=0x10",
        "level 0 (3)  table 0x48052000  item 480  0x000000004458bf47",
        "AttrIndx=0x1",
        "\n0x4458b010  rw",
    ] {
        assert!(
            output.stdout.contains(part),
            "{part:?} in {}",
            output.stdout
        );
    }

    let report = json(
        0,
        ["walk", path, "--sid", "0x100", "--iova", "0x1000", "--json"],
    );
    let walk = &report["devices"][0]["walk"];
    assert_eq!(walk["translation"], Value::Null);
    assert_eq!(
        walk["fault"],
        "no translation: the item at level 2 is empty"
    );
    assert_eq!(walk["steps"].as_array().map(Vec::len), Some(2));
}

#[test]
fn a_device_that_no_table_translates_says_so() {
    let path = fixture("tables/smmu-a.json.gz");
    let path = path.to_str().expect("the path is UTF-8");
    let report = json(0, ["walk", path, "--sid", "0", "--json"]);
    assert_eq!(report["devices"][0]["end"], "blocked");
    let path = fixture("tables/riscv-sys.json.gz");
    let path = path.to_str().expect("the path is UTF-8");
    let report = json(0, ["walk", path, "--sid", "8", "--json"]);
    assert_eq!(report["devices"][0]["end"], "passed through");
}

#[test]
fn damaged_fixtures_are_refused() {
    // A page that a table leads to is gone; so the count is right, but the table is not there.
    let mut copy = Copy::of("smmu-a");
    copy.without_page(0x4805_2000);
    let line = refused(check(&copy.write()));
    let pages = copy.pages_path();
    let pages = pages.to_str().expect("the path is UTF-8");
    assert_eq!(
        line,
        format!("iopt: {pages}: no page holds the table word at 0x48052000")
    );

    let mut copy = Copy::of("amd-a");
    copy.sidecar["pages"] = 17.into();
    assert!(refused(check(&copy.write())).ends_with("16 pages, but the sidecar says 17"));

    let mut copy = Copy::of("amd-a");
    copy.pages.pop();
    assert!(refused(check(&copy.write())).ends_with("record 15 is cut short"));

    let mut copy = Copy::of("amd-a");
    copy.sidecar["registers"]
        .as_object_mut()
        .expect("an object")
        .remove("DEVTAB");
    assert!(refused(check(&copy.write())).ends_with("the sidecar has no register DEVTAB"));

    let mut copy = Copy::of("amd-a");
    copy.sidecar["registers"]["DEVTAB"] = "1a18001".into();
    assert!(
        refused(check(&copy.write())).contains("amd-a.json.gz: invalid value: string \"1a18001\"")
    );

    let mut copy = Copy::of("amd-a");
    copy.sidecar["pages_file"] = "../amd-a.pages.gz".into();
    assert!(
        refused(check(&copy.write())).ends_with("\"../amd-a.pages.gz\" is not a plain file name")
    );

    let mut copy = Copy::of("amd-a");
    copy.sidecar["format"] = "dart".into();
    assert!(refused(check(&copy.write())).contains("unknown variant `dart`"));
}

#[test]
fn cut_or_missing_files_are_refused() {
    let copy = Copy::of("amd-a");
    let path = copy.write();
    let bytes = fs::read(copy.pages_path()).expect("it was written");
    fs::write(copy.pages_path(), &bytes[..bytes.len() / 2]).expect("the folder can be written");
    assert!(refused(check(&path)).ends_with("amd-a.pages.gz: the gzip data is cut short"));
    fs::remove_file(copy.pages_path()).expect("it was written");
    assert!(refused(check(&path)).contains("amd-a.pages.gz: No such file"));

    let bytes = fs::read(&path).expect("it was written");
    fs::write(&path, &bytes[..bytes.len() / 2]).expect("the folder can be written");
    assert!(refused(check(&path)).ends_with("amd-a.json.gz: the gzip data is cut short"));
    fs::write(&path, b"{\"format\": ").expect("the folder can be written");
    assert!(refused(check(&path)).contains("amd-a.json.gz: EOF while parsing a value at line 1"));
}

#[test]
fn an_unknown_device_is_refused() {
    let path = fixture("tables/amd-a.json.gz");
    let line = refused([
        "walk",
        path.to_str().expect("the path is UTF-8"),
        "--sid",
        "4096",
    ]);
    assert!(
        line.ends_with("no device has the id 4096; there are 0, 40, 48, 56, 64, 248, 250, 251"),
        "{line}"
    );
}

/// Memory at 0x10000 with a VT-d second-stage table of three levels: a page at 0x201000 goes to
/// 0x5000, read and write; 1 GiB at 0x40000000 goes to 0x80000000, read only.
fn small_table() -> Vec<u8> {
    let mut words = vec![0_u64; 3 * 512];
    words[0] = 0x1_1003;
    words[1] = 0x8000_0081;
    words[512 + 1] = 0x1_2003;
    words[1024 + 1] = 0x5003;
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

/// Runs a walk in `memory`, which lies at 0x10000, with the root table there.
fn ram_arguments(folder: &TempDir, memory: &[u8], rest: &[&str]) -> Vec<String> {
    let path = folder.path().join("ram.bin");
    fs::write(&path, memory).expect("the folder can be written");
    let ram = format!("{}@0x10000", path.to_str().expect("the path is UTF-8"));
    let fixed = [
        "walk",
        "--ram",
        &ram,
        "--format",
        "vtd-ss",
        "--va-bits",
        "39",
        "--root",
        "0x10000",
    ];
    fixed
        .iter()
        .chain(rest)
        .map(|&argument| argument.to_owned())
        .collect()
}

#[test]
fn raw_memory_is_walked() {
    let folder = TempDir::new().expect("a temporary folder can be made");
    let report = json(
        0,
        ram_arguments(&folder, &small_table(), &["--iova", "0x201234", "--json"]),
    );
    assert_eq!(report["walk"]["translation"]["oa"], "0x5234");
    assert_eq!(report["walk"]["translation"]["rights"], "rw-u");
    let words: Vec<_> = report["walk"]["steps"]
        .as_array()
        .expect("steps are a list")
        .iter()
        .map(|step| step["word"].as_str().expect("a word is text"))
        .collect();
    assert_eq!(words, ["0x11003", "0x12003", "0x5003"]);

    let report = json(
        0,
        ram_arguments(&folder, &small_table(), &["--all", "--json"]),
    );
    let runs = report["listing"]["runs"]
        .as_array()
        .expect("runs are a list");
    let run = |index: usize, key: &str| runs[index][key].as_str().expect("text").to_owned();
    assert_eq!(report["listing"]["leaves"], 2);
    assert_eq!(
        (run(0, "iova"), run(0, "last"), run(0, "oa")),
        ("0x201000".into(), "0x201fff".into(), "0x5000".into())
    );
    assert_eq!(
        (run(1, "iova"), run(1, "oa"), run(1, "rights")),
        ("0x40000000".into(), "0x80000000".into(), "r--u".into())
    );
    assert_eq!(runs[1]["page_size"], 1 << 30);
}

#[test]
fn raw_memory_may_come_in_several_files() {
    let folder = TempDir::new().expect("a temporary folder can be made");
    let table = small_table();
    let second = folder.path().join("second.bin");
    fs::write(&second, &table[0x1000..]).expect("the folder can be written");
    let piece = format!("{}@0x11000", second.to_str().expect("the path is UTF-8"));
    let arguments = ram_arguments(
        &folder,
        &table[..0x1000],
        &["--ram", &piece, "--iova", "0x201000"],
    );
    let output = iopt(arguments);
    assert_eq!(output.status, 0, "{output:?}");
    assert!(
        output.stdout.contains("\n0x5000  rw-u"),
        "{}",
        output.stdout
    );
}

#[test]
fn a_loop_in_raw_memory_is_a_mismatch() {
    let folder = TempDir::new().expect("a temporary folder can be made");
    let mut table = small_table();
    table[0x1010..0x1018].copy_from_slice(&0x1_0003_u64.to_le_bytes());
    let report = json(1, ram_arguments(&folder, &table, &["--all", "--json"]));
    let error = report["listing"]["error"]
        .as_str()
        .expect("there is an error");
    assert!(error.starts_with("loop: the table at 0x10000"), "{error}");
}

#[test]
fn raw_memory_that_ends_too_early_is_refused() {
    let folder = TempDir::new().expect("a temporary folder can be made");
    let path = folder.path().join("ram.bin");
    let path = path.to_str().expect("the path is UTF-8");
    let short = &small_table()[..0x2000];
    let expected = format!(
        "iopt: {path}: too short: holds 0x10000 to 0x12000, but a table word is at 0x12008"
    );
    assert_eq!(
        refused(ram_arguments(&folder, short, &["--iova", "0x201000"])),
        expected
    );
    assert!(refused(ram_arguments(&folder, short, &["--all"])).contains("too short"));
    let line = refused(ram_arguments(
        &folder,
        short,
        &["--all", "--root", "0x8000"],
    ));
    assert!(line.contains("cannot be used multiple times"), "{line}");
    let line = refused(ram_arguments(&folder, short, &[]));
    assert_eq!(line, "iopt: --ram needs --iova or --all");
    let ram = format!("{path}@0x20000");
    let arguments = [
        "walk", "--ram", &ram, "--format", "vtd-ss", "--root", "0x8000", "--all",
    ];
    assert!(refused(arguments).contains("no file holds the table word at 0x8000"));
}
