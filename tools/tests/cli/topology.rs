//! `iopt topology` on the machines whose firmware and groups are known.

mod inputs;

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::fs;
use std::path::PathBuf;

use serde_json::{Map, Value, json as value};

use crate::common::{fixture, iopt, json};

/// A machine, and what is known of it besides its groups.
struct Machine {
    name: &'static str,
    /// What Linux reserves though no table of firmware says so.
    linux_own: &'static [(&'static str, &'static str)],
    /// Who is behind no IOMMU.
    untranslated: &'static [(&'static str, &'static str)],
}

/// The window in which Linux maps doorbells of interrupts; its driver's own choice.
const DOORBELLS: (&str, &str) = ("0x8000000", "0x80fffff");
const ITSELF: &str = "it is instance 0 itself";
const UNSAID: &str = "firmware says nothing of it";

const MACHINES: [Machine; 12] = [
    Machine {
        name: "amd-a",
        linux_own: &[],
        untranslated: &[("0000:00:01.0", ITSELF)],
    },
    Machine {
        name: "arm-acpi-smmu",
        linux_own: &[DOORBELLS],
        untranslated: &[],
    },
    // A virtio-iommu says by itself where interrupts go.
    Machine {
        name: "arm-acpi-virtio",
        linux_own: &[("0x8090000", "0x809ffff")],
        untranslated: &[("0000:00:09.0", ITSELF)],
    },
    Machine {
        name: "arm-dt-virtio",
        linux_own: &[("0x8090000", "0x809ffff")],
        untranslated: &[("0000:00:09.0", ITSELF)],
    },
    Machine {
        name: "riscv-sys",
        linux_own: &[],
        untranslated: &[],
    },
    Machine {
        name: "smmu-a",
        linux_own: &[DOORBELLS],
        untranslated: &[],
    },
    Machine {
        name: "smmu-s2",
        linux_own: &[DOORBELLS],
        untranslated: &[],
    },
    // A bridge to ISA may have a floppy drive behind it: Linux maps 16 MiB for those.
    Machine {
        name: "vtd-a",
        linux_own: &[("0x0", "0xffffff")],
        untranslated: &[],
    },
    Machine {
        name: "vtd-sm-fs",
        linux_own: &[("0x0", "0xffffff")],
        untranslated: &[],
    },
    Machine {
        name: "vtd-vfio",
        linux_own: &[("0x0", "0xffffff")],
        untranslated: &[],
    },
    Machine {
        name: "x86-dmar-pxb",
        linux_own: &[("0x0", "0xffffff")],
        untranslated: &[("0000:40:00.0", UNSAID), ("0000:41:00.0", UNSAID)],
    },
    Machine {
        name: "x86-viot",
        linux_own: &[("0xfee00000", "0xfeefffff")],
        untranslated: &[("0000:00:09.0", ITSELF)],
    },
];

impl Machine {
    fn folder(&self) -> PathBuf {
        fixture("firmware").join(self.name)
    }

    /// Returns the arguments that name its tables and its functions.
    fn arguments(&self) -> Vec<OsString> {
        let has_tables = fs::read_dir(self.folder())
            .expect("the machine is there")
            .any(|file| {
                file.expect("it can be listed").path().extension() == Some(OsStr::new("aml"))
            });
        let (option, path) = if has_tables {
            ("--acpi", self.folder())
        } else if self.name == "smmu-s2" {
            ("--dtb", fixture("firmware/smmu-a/guest.dtb"))
        } else {
            ("--dtb", self.folder().join("guest.dtb"))
        };
        let pci = self.folder().join("pci.json");
        [
            "topology".into(),
            option.into(),
            path.into(),
            "--pci".into(),
            pci.into(),
        ]
        .into()
    }

    fn report(&self, more: &[&str]) -> Map<String, Value> {
        let mut arguments = self.arguments();
        arguments.push("--json".into());
        arguments.extend(more.iter().map(OsString::from));
        json(0, arguments)
    }

    fn facts(&self) -> Value {
        let text = fs::read(self.folder().join("pci.json")).expect("the machine has functions");
        serde_json::from_slice(&text).expect("the fixture is JSON")
    }
}

fn text(value: &Value) -> &str {
    value.as_str().expect("there is a text")
}

fn list(value: &Value) -> &[Value] {
    value.as_array().expect("there is a list")
}

type Groups = BTreeSet<BTreeSet<String>>;

fn groups(value: &Value) -> Groups {
    let members = |group: &Value| list(group).iter().map(|name| text(name).into()).collect();
    list(value).iter().map(members).collect()
}

/// Returns groups without some members.
fn without(groups: &Groups, members: &BTreeSet<String>) -> Groups {
    let groups = groups.iter().map(|group| group - members);
    groups.filter(|group| !group.is_empty()).collect()
}

#[test]
fn machines_have_the_groups_that_are_known() {
    let mut folders = BTreeSet::new();
    for entry in fs::read_dir(fixture("firmware")).expect("the fixtures are there") {
        let path = entry.expect("the folder can be listed").path();
        if path.join("pci.json").exists() {
            folders.insert(path.file_name().expect("it has a name").to_owned());
        }
    }
    assert_eq!(
        folders,
        MACHINES.iter().map(|machine| machine.name.into()).collect()
    );

    for machine in MACHINES {
        let facts = machine.facts();
        let ungrouped = list(&facts["ungrouped"]).iter();
        let ungrouped: BTreeSet<_> = ungrouped.map(|one| text(&one["bdf"]).to_owned()).collect();
        for (rule, key) in [
            ("linux", "expected_groups"),
            ("reachability", "reachability_groups"),
        ] {
            let report = machine.report(&["--rule", rule]);
            let is_known = !facts[key].is_null();
            let expected = groups(&facts[if is_known { key } else { "expected_groups" }]);
            let listed = expected.iter().flatten().cloned().collect();
            // Whom Linux did not ask for, and whom its driver did not know, firmware knows.
            let found = without(&groups(&report["groups"]), &(&ungrouped - &listed));
            assert_eq!(found, expected, "{} {rule}", machine.name);
            let comparison = &report["comparison"];
            if is_known {
                assert_eq!(comparison["agrees"], true, "{} {rule}", machine.name);
                assert_eq!(comparison["against"], key);
                assert_eq!(comparison["same_count"], expected.len());
            } else {
                assert!(comparison.is_null(), "{} {rule}", machine.name);
            }
            assert_eq!(report["command"], "topology");
            assert_eq!(report["rule"], rule);
        }
    }
}

#[test]
fn every_function_is_in_one_group_or_behind_no_iommu() {
    for machine in MACHINES {
        let report = machine.report(&[]);
        let mut members = BTreeMap::new();
        for (place, group) in list(&report["groups"]).iter().enumerate() {
            assert!(!list(group).is_empty(), "{} {place}", machine.name);
            for member in list(group) {
                assert_eq!(members.insert(text(member), place), None, "{member}");
            }
        }
        let untranslated: Vec<_> = list(&report["untranslated"])
            .iter()
            .map(|device| (text(&device["address"]), text(&device["reason"])))
            .collect();
        assert_eq!(untranslated, machine.untranslated, "{}", machine.name);
        let devices = list(&report["devices"]);
        let functions = list(&machine.facts()["devices"]).len();
        assert_eq!(devices.len(), functions, "{}", machine.name);
        assert_eq!(members.len() + untranslated.len(), functions);
        for device in devices {
            let place = members.get(text(&device["address"]));
            let place = place.map(|place| value!(place)).unwrap_or_default();
            assert_eq!(device["group"], place, "{} {device}", machine.name);
            let is_behind = !list(&device["streams"]).is_empty();
            assert_eq!(is_behind, !device["group"].is_null(), "{device}");
            assert_eq!(device["untranslated"].is_null(), is_behind, "{device}");
        }
    }
}

/// First, last and kind.
type Region = [String; 3];

/// What `guest-info.txt` says.
#[derive(Default)]
struct Guest {
    group_of: BTreeMap<String, String>,
    /// By function, without those that are Linux's own.
    regions: BTreeMap<String, BTreeSet<Region>>,
}

fn hex(text: &str) -> String {
    let digits = text.strip_prefix("0x").expect("it is hexadecimal");
    let number = u64::from_str_radix(digits, 16).expect("it is a number");
    format!("{number:#x}")
}

impl Guest {
    fn of(machine: &Machine) -> Option<Self> {
        let path = machine.folder().join("guest-info.txt");
        let info = fs::read_to_string(path).ok()?;
        let mut guest = Self::default();
        for line in info.lines() {
            let words: Vec<_> = line.split(' ').collect();
            match words.as_slice() {
                ["PCI", address, _, _, _, group, ..] => {
                    let group = group.strip_prefix("grp=").expect("it says so");
                    if !group.is_empty() {
                        guest.group_of.insert((*address).into(), group.into());
                    }
                }
                ["GROUP", ..] => guest.group(machine, line),
                _ => {}
            }
        }
        Some(guest)
    }

    fn group(&mut self, machine: &Machine, line: &str) {
        let (_, rest) = line.split_once("rr=").expect("it says so");
        let (reserved, members) = rest.split_once("devs=").expect("it says so");
        let reserved = reserved.trim().split(';').filter(|text| !text.is_empty());
        let is_own = |[first, last, _]: &Region| {
            let own = machine.linux_own.iter();
            own.clone().any(|region| *region == (first, last))
        };
        let reserved: BTreeSet<_> = reserved
            .map(|region| {
                let words: Vec<_> = region.split(' ').collect();
                [hex(words[0]), hex(words[1]), words[2].into()]
            })
            .filter(|region| !is_own(region))
            .collect();
        for member in members.split_whitespace() {
            self.regions.insert(member.into(), reserved.clone());
        }
    }
}

#[test]
fn regions_and_groups_are_those_that_linux_showed() {
    let mut region_count = 0;
    let mut machine_count = 0;
    for machine in MACHINES {
        let Some(guest) = Guest::of(&machine) else {
            continue;
        };
        machine_count += 1;
        let report = machine.report(&["--rule", "linux"]);
        let mut pairs = BTreeSet::new();
        for device in list(&report["devices"]) {
            let address = text(&device["address"]);
            let Some(group) = guest.group_of.get(address) else {
                continue;
            };
            let place = device["group"].as_u64().expect("it has one");
            pairs.insert((group, place));
            let found: BTreeSet<Region> = list(&device["regions"])
                .iter()
                .map(|region| ["start", "last", "kind"].map(|key| text(&region[key]).into()))
                .collect();
            assert_eq!(found, guest.regions[address], "{} {address}", machine.name);
            region_count += found.len();
        }
        // One group here for each one there, and the other way round.
        let ours: BTreeSet<_> = pairs.iter().map(|pair| pair.1).collect();
        let theirs: BTreeSet<_> = guest.group_of.values().collect();
        let counts = (ours.len(), theirs.len());
        assert_eq!(counts, (pairs.len(), pairs.len()), "{}", machine.name);
    }
    assert_eq!(machine_count, 11);
    assert!(region_count > 40, "{region_count}");
}

fn machine(name: &str) -> Machine {
    let mut machines = MACHINES.into_iter();
    machines
        .find(|machine| machine.name == name)
        .expect("it is listed")
}

#[test]
fn instances_and_id_maps_are_firmwares() {
    for (name, architecture, location, subject, ids) in [
        ("amd-a", "amd", "0xfed80000", "0000:00:00.0", value!("0x0")),
        (
            "arm-acpi-smmu",
            "smmuv3",
            "0x9050000",
            "0000:00:00.0 to 04:1f.7",
            value!("0x0 to 0x4ff"),
        ),
        (
            "arm-dt-virtio",
            "virtio",
            "0000:00:09.0",
            "0000:00:00.0 to 00:08.7",
            value!("0x0 to 0x47"),
        ),
        (
            "riscv-sys",
            "riscv",
            "0x3010000",
            "0000:00:00.0 to ff:1f.6",
            value!("0x0 to 0xfffe"),
        ),
        (
            "smmu-a",
            "smmuv3",
            "0x9050000",
            "0000:00:00.0 to ff:1f.7",
            value!("0x0 to 0xffff"),
        ),
        (
            "vtd-vfio",
            "vtd",
            "0xfed90000",
            "at 0000:00:00.0",
            value!("their IDs"),
        ),
        (
            "x86-viot",
            "virtio",
            "0000:00:09.0",
            "0000:00:00.0 to 00:08.7",
            value!("0x0 to 0x47"),
        ),
    ] {
        let report = machine(name).report(&[]);
        let [instance] = list(&report["instances"]) else {
            panic!("{name} has one instance")
        };
        assert_eq!(instance["architecture"], architecture, "{name}");
        assert_eq!(instance["location"], location, "{name}");
        let rule = &list(&report["id_maps"])[0];
        assert_eq!(
            *rule,
            value!({ "subject": subject, "instance": 0, "ids": ids }),
            "{name}"
        );
    }
    // Below a bridge to PCI a function is known by the bridge's name for it, too.
    let report = machine("smmu-a").report(&[]);
    let mut devices = list(&report["devices"]).iter();
    let device = devices.find(|device| device["address"] == "0000:04:03.0");
    let streams = &device.expect("it is there")["streams"];
    assert_eq!(
        *streams,
        value!([{ "instance": 0, "ids": ["0x400", "0x418"] }])
    );
}

#[test]
fn a_device_tree_alone_and_tables_without_functions_show_instances() {
    for (name, architecture, location) in [
        ("riscv-iommu-pci", Some("riscv"), "0000:00:09.0"),
        ("riscv-iommu-sys", Some("riscv"), "0x3010000"),
        ("virt-noiommu", None, ""),
        ("virt-smmuv3-highmem-off", Some("smmuv3"), "0x9050000"),
        ("virt-smmuv3", Some("smmuv3"), "0x9050000"),
        ("virt-virtio-iommu", Some("virtio"), "0000:00:09.0"),
    ] {
        let path = fixture(&format!("firmware/dtb/{name}.dtb"));
        let arguments = ["topology".as_ref(), "--dtb".as_ref(), path.as_os_str()];
        let report = json(0, arguments.into_iter().chain(["--json".as_ref()]));
        let first = list(&report["instances"]).first();
        assert_eq!(
            first.map(|instance| text(&instance["architecture"])),
            architecture
        );
        if let Some(instance) = first {
            assert_eq!(instance["location"], location, "{name}");
        }
        assert_eq!(list(&report["groups"]).len(), 0);
        let text = iopt(arguments).stdout;
        assert!(text.contains("no functions are given"), "{text}");
    }
    let tables = fixture("firmware/x86-ivrs-intremap");
    let report = json(
        0,
        [
            "topology".as_ref(),
            "--acpi".as_ref(),
            tables.as_os_str(),
            "--json".as_ref(),
        ],
    );
    assert_eq!(report["instances"][0]["architecture"], "amd");
    // The I/O APIC that it speaks of is no device that could be in a group.
    assert_eq!(list(&report["devices"]).len(), 0);
    assert_eq!(list(&report["groups"]).len(), 0);
}

#[test]
fn access_control_is_what_the_command_line_says() {
    // All is off in the file, and a port is one with what is below.
    let off = machine("smmu-a").report(&["--acs", "off"]);
    assert_eq!(off["groups"], machine("smmu-a").report(&[])["groups"]);
    let on = machine("smmu-a").report(&["--acs", "on", "--rule", "linux"]);
    assert_eq!(list(&off["groups"]).len() + 3, list(&on["groups"]).len());
    // Groups of a machine that is set up otherwise are nothing to compare with.
    assert!(on["comparison"].is_null());
    let on = machine("vtd-a").report(&["--acs", "on"]);
    assert_eq!(on["groups"], machine("vtd-a").report(&[])["groups"]);
    let off = machine("vtd-a").report(&["--acs", "off"]);
    assert_eq!(list(&off["groups"]).len() + 3, list(&on["groups"]).len());
}

#[test]
fn the_answer_for_people_has_all_tables_in_narrow_lines() {
    let mut arguments = machine("x86-dmar-pxb").arguments();
    arguments.extend(["--rule".into(), "linux".into()]);
    let text = iopt(arguments).stdout;
    for part in [
        "IOMMU instances: 1\n",
        "ID maps: 12\n",
        "Reserved regions: 1\n",
        "Groups: 14\n",
        "Behind no IOMMU: 2\n",
        "all 14 groups are those of expected_groups\n",
        "\n      4  0000:00:04.0  PCIe-PCI bridge  0: 0x20\n         0000:04:03.0  conventional     0: 0x400, 0x418\n",
        "\n  0000:40:00.0  firmware says nothing of it\n",
    ] {
        assert!(text.contains(part), "{part:?} of {text}");
    }
    let tables = text.lines().skip(3);
    assert!(tables.clone().all(|line| line.len() <= 100), "{text}");
    assert!(!text.contains('\u{1b}'));
}
