//! What the command is given: copies of a machine's files that are damaged or say something else, wrong
//! usage, and the examples of its help.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json as value};
use tempfile::TempDir;

use crate::common::{fixture, gzip, iopt, json, refused};
use crate::topology::machine;

/// A folder with a machine's files.
fn copy(name: &str) -> (TempDir, PathBuf) {
    let folder = TempDir::new().expect("a temporary folder can be made");
    for entry in fs::read_dir(machine(name).folder()).expect("the machine is there") {
        let path = entry.expect("it can be listed").path();
        let to = folder.path().join(path.file_name().expect("it has a name"));
        fs::copy(&path, to).expect("the folder can be written");
    }
    let path = folder.path().to_owned();
    (folder, path)
}

fn arguments(folder: &Path) -> Vec<OsString> {
    let pci = folder.join("pci.json");
    [
        "topology".into(),
        "--acpi".into(),
        folder.into(),
        "--pci".into(),
        pci.into(),
    ]
    .into()
}

#[test]
fn groups_that_the_file_has_otherwise_are_a_mismatch() {
    let (_folder, path) = copy("vtd-a");
    let mut facts = machine("vtd-a").facts();
    facts["expected_groups"][4] = value!(["0000:00:04.0"]);
    fs::write(path.join("pci.json"), facts.to_string()).expect("the folder can be written");
    let mut linux = arguments(&path);
    linux.extend(["--rule".into(), "linux".into()]);
    let output = iopt(&linux);
    assert_eq!((output.status, output.stderr.as_str()), (1, ""));
    for line in [
        "mismatch: 9 groups are those of expected_groups\n",
        "mismatch: missing group 0000:00:04.0\n",
        "mismatch: unexpected group 0000:00:04.0 0000:04:03.0\n",
    ] {
        assert!(output.stdout.contains(line), "{}", output.stdout);
    }
    linux.push("--json".into());
    let comparison = &json(1, linux)["comparison"];
    assert_eq!(comparison["agrees"], false);
    assert_eq!(comparison["missing"], value!([["0000:00:04.0"]]));
    // By the other rule the file says nothing.
    assert_eq!(iopt(arguments(&path)).status, 0);
}

#[test]
fn bad_input_is_one_line_that_names_the_file() {
    let (_folder, path) = copy("x86-viot");
    let refused_with = |part: &str| {
        let line = refused(arguments(&path));
        let at = format!("iopt: {}", path.display());
        assert!(line.starts_with(&at) && line.contains(part), "{line}");
    };
    let write = |name: &str, bytes: &[u8]| {
        fs::write(path.join(name), bytes).expect("the folder can be written");
    };
    let pci = |change: &dyn Fn(&mut Value)| {
        let mut facts = machine("x86-viot").facts();
        change(&mut facts);
        write("pci.json", facts.to_string().as_bytes());
    };
    write("pci.json", b"{\"root_buses\": [0]");
    refused_with("pci.json: EOF while parsing");
    pci(&|facts| facts["devices"][0]["bdf"] = "0000:00:20.0".into());
    refused_with("pci.json: there is no device 20 with a function 0");
    pci(&|facts| facts["devices"][0]["type"] = "toaster".into());
    refused_with("pci.json: unknown variant `toaster`");
    pci(&|facts| facts["devices"][0]["acs_enabled"] = value!(["XX"]));
    refused_with("pci.json: access control has no \"XX\"");
    pci(&|facts| facts["devices"][1]["bdf"] = facts["devices"][0]["bdf"].clone());
    refused_with("pci.json: 0000:00:00.0 is there twice");
    pci(&|facts| facts["expected_groups"][0] = value!(["0000:07:00.0"]));
    refused_with("pci.json: expected_groups: there is no function 0000:07:00.0");
    pci(&|facts| facts["expected_groups"][0] = facts["expected_groups"][1].clone());
    refused_with("is there twice");
    pci(&|facts| facts["devices"][0]["physical"] = "0001:00:00.0".into());
    refused_with("pci.json: 0001:00:00.0 is not of the segment of 0000:00:00.0");
    pci(&|facts| facts["root_buses"] = value!(["0000:zz"]));
    refused_with("pci.json: ");
    pci(&|_| {});
    assert_eq!(iopt(arguments(&path)).status, 0);

    let table = fs::read(path.join("VIOT.aml")).expect("it was copied");
    write("VIOT.aml", &table[..table.len() - 1]);
    refused_with("VIOT.aml: VIOT table");
    write("VIOT.aml", &[]);
    refused_with("VIOT.aml: ");
    write("VIOT.aml", &table);
    write("VIOT2.aml", &table);
    refused_with(": VIOT table");
    fs::remove_file(path.join("VIOT2.aml")).expect("it was written");
    write("MCFG.aml", b"\x1f\x8b and no gzip");
    refused_with("MCFG.aml: ");
    for name in ["VIOT.aml", "MCFG.aml"] {
        fs::remove_file(path.join(name)).expect("it was written");
    }
    refused_with("there is no *.aml file");
    let line = refused(["topology", "--acpi", "nowhere"]);
    assert!(line.starts_with("iopt: nowhere: "), "{line}");

    let blob = fs::read(fixture("firmware/dtb/virt-smmuv3.dtb")).expect("the fixture is there");
    let dtb = |bytes: &[u8]| {
        write("a.dtb", bytes);
        let path = path.join("a.dtb");
        ["topology".into(), OsString::from("--dtb"), path.into()]
    };
    for bytes in [&blob[..blob.len() / 2], b"", b"no device tree"] {
        let line = refused(dtb(bytes));
        assert!(line.contains("a.dtb: "), "{line}");
    }
    assert_eq!(iopt(dtb(&gzip(&blob))).status, 0);
}

#[test]
fn wrong_usage_is_refused() {
    let line = refused(["topology"]);
    assert!(line.contains("<--dtb <FILE>|--acpi <DIR>>"), "{line}");
    let line = refused(["topology", "--dtb", "a", "--acpi", "b"]);
    assert!(line.contains("cannot be used with"), "{line}");
    let line = refused(["topology", "--dtb", "a", "--acs", "on"]);
    assert!(line.contains("--pci"), "{line}");
    let line = refused(["topology", "--dtb", "a", "--rule", "some"]);
    assert!(line.contains("'some' for '--rule <RULE>'"), "{line}");
    let folder = TempDir::new().expect("a temporary folder can be made");
    let svg = folder.path().join("no/such/folder.svg");
    let mut arguments = machine("vtd-a").arguments();
    arguments.extend(["--svg".into(), svg.into()]);
    let line = refused(arguments);
    assert!(line.contains("folder.svg: No such file"), "{line}");
}

#[test]
fn the_examples_of_the_help_run() {
    let folder = TempDir::new().expect("a temporary folder can be made");
    let machine = machine("arm-acpi-smmu");
    let svg = folder.path().join("machine.svg");
    let help = iopt(["topology", "--help"]).stdout;
    let examples: Vec<_> = help
        .lines()
        .filter_map(|line| line.trim().strip_prefix("iopt topology "))
        .collect();
    assert_eq!(examples.len(), 3);
    for example in examples {
        let words = example.split(' ').map(|word| match word {
            "guest.dtb" => fixture("firmware/smmu-a/guest.dtb").into(),
            "pci.json" => machine.folder().join(word).into(),
            "tables/" => machine.folder().into(),
            "machine.svg" => svg.clone().into(),
            word => OsString::from(word),
        });
        let output = iopt([OsString::from("topology")].into_iter().chain(words));
        assert_eq!(
            (output.status, output.stderr.as_str()),
            (0, ""),
            "{example}"
        );
    }
    assert!(svg.exists());
}
