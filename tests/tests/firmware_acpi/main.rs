//! What ACPI tables of real virtual machines say, against what was read out of their bytes by hand and
//! against what Linux made of them; and that no damage to them does harm.

mod damage;

use std::fs;
use std::path::{Path, PathBuf};

use iopt::firmware::acpi::{dmar, ivrs, parse};
use iopt::firmware::{
    Architecture, Ats, Coherence, Description, Host, Instance, InstanceIndex, Itself, Location,
    Output, PathStep, PciPath, Reach, Region, RegionKind, Rule, Subject,
};
use iopt::topology::{PciAddress, RequesterId};
use iopt_formats::{Iova, IovaRange};

const MACHINES: [&str; 9] = [
    "arm-acpi-smmu",
    "arm-acpi-virtio",
    "vtd-a",
    "vtd-sm-fs",
    "vtd-vfio",
    "x86-dmar-pxb",
    "amd-a",
    "x86-ivrs-intremap",
    "x86-viot",
];

fn machine(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("fixtures/firmware")
        .join(name)
}

/// The tables of a machine.
fn tables(name: &str) -> Vec<Vec<u8>> {
    let files = fs::read_dir(machine(name)).expect("the machine is there");
    let mut files: Vec<_> = files
        .map(|file| file.expect("the directory can be read").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "aml"))
        .collect();
    files.sort();
    files
        .iter()
        .map(|path| fs::read(path).expect("the table can be read"))
        .collect()
}

fn describe(name: &str) -> Description {
    let tables = tables(name);
    let tables: Vec<&[u8]> = tables.iter().map(Vec::as_slice).collect();
    parse(&tables).expect("the tables are right")
}

fn instance(architecture: Architecture, location: Location, name: &str) -> Instance {
    Instance {
        architecture,
        location,
        name: name.into(),
        is_enabled: true,
        is_coherent: None,
        itself: None,
        match_mask: 0,
    }
}

fn host(name: &str, ecam: u64) -> Host {
    Host {
        name: name.into(),
        segment: 0,
        buses: (0, 0xff),
        ecam: Some(ecam),
    }
}

fn requesters(first: u16, last: u16) -> Subject {
    Subject::Requesters {
        segment: 0,
        mask: 0xffff,
        first: RequesterId::new(first),
        last: RequesterId::new(last),
    }
}

fn path(start_bus: u8, device: u8, function: u8) -> PciPath {
    PciPath {
        segment: 0,
        start_bus,
        steps: vec![PathStep { device, function }],
    }
}

fn endpoint(start_bus: u8, device: u8, function: u8) -> Subject {
    Subject::Function(path(start_bus, device, function))
}

fn bridge(start_bus: u8, device: u8, function: u8) -> Subject {
    Subject::Below(path(start_bus, device, function))
}

fn behind(subject: Subject, output: Output) -> Rule {
    Rule {
        subject,
        instance: Some(InstanceIndex(0)),
        output,
        amd_settings: 0,
    }
}

/// Functions that the only instance sees under their own IDs.
fn unchanged(first: u16, last: u16) -> Rule {
    behind(requesters(first, last), Output::Offset(first.into()))
}

fn region(start: u64, last: u64, kind: RegionKind) -> Region {
    Region {
        subject: None,
        range: IovaRange::new(Iova::new(start), Iova::new(last)).expect("it is one"),
        kind,
    }
}

fn interrupts() -> Region {
    region(0xfee0_0000, 0xfeef_ffff, RegionKind::Msi)
}

fn reach() -> Reach {
    Reach {
        subject: requesters(0, 0xffff),
        address_bits: Some(64),
        ranges: vec![],
    }
}

fn coherence() -> Coherence {
    Coherence {
        subject: requesters(0, 0xffff),
        is_coherent: true,
    }
}

#[test]
fn an_smmu_sees_the_buses_in_use_and_nothing_else() {
    let mut smmu = instance(
        Architecture::Smmuv3,
        Location::Memory {
            base: 0x905_0000,
            len: None,
        },
        "IORT SMMUv3 at 0x48",
    );
    smmu.is_coherent = Some(true);
    let expected = Description {
        instances: vec![smmu],
        hosts: vec![host("IORT root complex at 0xa0", 0x40_1000_0000)],
        rules: vec![
            unchanged(0, 0x4ff),
            Rule {
                subject: requesters(0x500, 0xffff),
                instance: None,
                output: Output::Offset(0x500),
                amd_settings: 0,
            },
        ],
        reaches: vec![reach()],
        coherence: vec![coherence()],
        ..Description::default()
    };
    assert_eq!(describe("arm-acpi-smmu"), expected);
}

#[test]
fn a_virtio_iommu_sees_its_range_but_itself() {
    let rules = || vec![unchanged(0, 0x47), unchanged(0x49, 0x4ff)];
    let iommu = || {
        let address: PciAddress = "0000:00:09.0".parse().expect("it is one");
        instance(
            Architecture::Virtio,
            Location::Pci(address),
            "VIOT virtio-iommu 0000:00:09.0",
        )
    };
    let expected = Description {
        instances: vec![iommu()],
        hosts: vec![host("MCFG allocation at 0x2c", 0xb000_0000)],
        rules: rules(),
        ..Description::default()
    };
    assert_eq!(describe("x86-viot"), expected);

    let mut rules = rules();
    rules.push(Rule {
        subject: requesters(0, 0xffff),
        instance: None,
        output: Output::Offset(0),
        amd_settings: 0,
    });
    let expected = Description {
        instances: vec![iommu()],
        hosts: vec![host("IORT root complex at 0x48", 0x40_1000_0000)],
        rules,
        reaches: vec![reach()],
        coherence: vec![coherence()],
        ..Description::default()
    };
    assert_eq!(describe("arm-acpi-virtio"), expected);
}

/// A unit at `fed9_0000` that sees these.
fn unit(subjects: Vec<Subject>, ats: Vec<Ats>) -> Description {
    let rule = |subject| behind(subject, Output::Offset(0));
    Description {
        instances: vec![instance(
            Architecture::Vtd,
            Location::Memory {
                base: 0xfed9_0000,
                len: Some(0x1000),
            },
            "DMAR unit at 0x30",
        )],
        hosts: vec![host("MCFG allocation at 0x2c", 0xb000_0000)],
        rules: subjects.into_iter().map(rule).collect(),
        regions: vec![interrupts()],
        ats,
        ..Description::default()
    }
}

#[test]
fn a_remapping_unit_sees_the_devices_of_its_scopes() {
    let subjects = || {
        vec![
            endpoint(0, 0, 0),
            bridge(0, 1, 0),
            bridge(0, 2, 0),
            bridge(0, 3, 0),
            bridge(0, 4, 0),
            endpoint(0, 8, 0),
            endpoint(0, 0x1f, 0),
            endpoint(0, 0x1f, 2),
            endpoint(0, 0x1f, 3),
        ]
    };
    assert_eq!(describe("vtd-a"), unit(subjects(), vec![]));
    assert_eq!(describe("vtd-sm-fs"), unit(subjects(), vec![]));
    let subjects = vec![
        endpoint(0, 0, 0),
        endpoint(0, 10, 0),
        endpoint(0, 0x1f, 0),
        endpoint(0, 0x1f, 2),
        endpoint(0, 0x1f, 3),
    ];
    assert_eq!(describe("vtd-vfio"), unit(subjects, vec![]));
}

#[test]
fn a_second_root_bus_is_seen_and_a_third_is_not() {
    let subjects = vec![
        bridge(0x20, 0, 0),
        endpoint(0, 0, 0),
        bridge(0, 1, 0),
        bridge(0, 2, 0),
        bridge(0, 3, 0),
        bridge(0, 4, 0),
        endpoint(0, 5, 0),
        endpoint(0, 6, 0),
        endpoint(0, 8, 0),
        endpoint(0, 0x1f, 0),
        endpoint(0, 0x1f, 2),
        endpoint(0, 0x1f, 3),
    ];
    let all = Ats {
        subject: Subject::BelowRootPorts { segment: 0 },
        is_required: false,
    };
    assert_eq!(describe("x86-dmar-pxb"), unit(subjects, vec![all]));
}

#[test]
fn scopes_of_interrupt_controllers_stay_in_the_typed_form() {
    let table = fs::read(machine("x86-dmar-pxb").join("DMAR.aml")).expect("it is there");
    let table = dmar::Table::parse(&table).expect("it is right");
    assert_eq!((table.address_bits, table.flags), (48, 1));
    let dmar::StructureKind::Unit(unit) = &table.structures[0].kind else {
        panic!("{table:?}");
    };
    assert_eq!((unit.scopes.len(), unit.is_rest), (13, false));
    let scope = &unit.scopes[0];
    assert_eq!(scope.kind, dmar::ScopeKind::IoApic);
    assert_eq!((scope.start_bus, scope.enumeration), (0xff, 0));
}

/// An IOMMU at `fed8_0000`, the function 01.0, that takes requests of device TLBs.
fn amd(name: &str, rules: Vec<Rule>, hosts: Vec<Host>) -> Description {
    let ats = |rule: &Rule| Ats {
        subject: rule.subject.clone(),
        is_required: false,
    };
    Description {
        instances: vec![Instance {
            itself: Some(Itself::Function(
                "0000:00:01.0".parse().expect("it is an address"),
            )),
            ..instance(
                Architecture::Amd,
                Location::Memory {
                    base: 0xfed8_0000,
                    len: None,
                },
                name,
            )
        }],
        hosts,
        ats: rules.iter().map(ats).collect(),
        rules,
        regions: vec![
            interrupts(),
            region(0xfd_0000_0000, 0xff_ffff_ffff, RegionKind::Reserved),
        ],
        ..Description::default()
    }
}

#[test]
fn of_the_two_blocks_of_an_amd_iommu_the_newer_one_counts() {
    let rules = [0, 0x28, 0x30, 0x38, 0x40, 0xf8, 0xfa, 0xfb];
    let rules = rules.map(|id| unchanged(id, id)).to_vec();
    let hosts = vec![host("MCFG allocation at 0x2c", 0xb000_0000)];
    let name = "IVRS IOMMU 0000:00:01.0 at 0x6c";
    assert_eq!(describe("amd-a"), amd(name, rules, hosts));

    let table = fs::read(machine("amd-a").join("IVRS.aml")).expect("it is there");
    let table = ivrs::Table::parse(&table).expect("it is right");
    let kinds: Vec<_> = table
        .hardware
        .iter()
        .map(|block| (block.kind, block.flags))
        .collect();
    assert_eq!(kinds, [(0x10, 0xd1), (0x11, 0x11)]);
    // As Linux printed them.
    assert_eq!(table.hardware[1].features, Some([0x29d3, 0]));
    assert_eq!(table.info, 0x2801);
}

#[test]
fn functions_below_a_pci_bridge_are_seen_under_its_id_and_their_own() {
    let own = [0, 0x10, 0x18, 0x20, 0x28, 0x40, 0xf8, 0xfa, 0xfb];
    let mut rules = own.map(|id| unchanged(id, id)).to_vec();
    rules.extend([unchanged(0x100, 0x1ff), unchanged(0x200, 0x2ff)]);
    rules.push(unchanged(0x300, 0x3ff));
    let (offset, alias) = (0x400, 0x400);
    rules.push(behind(
        requesters(0x400, 0x4ff),
        Output::Both { offset, alias },
    ));
    let name = "IVRS IOMMU 0000:00:01.0 at 0x9c";
    // Its entry for the I/O APIC names no device.
    assert_eq!(describe("x86-ivrs-intremap"), amd(name, rules, vec![]));
}

/// Returns whether a function is behind an instance. `bridges` are the functions and buses of bridges.
fn is_behind(description: &Description, id: RequesterId, bridges: &[(u16, u8)]) -> bool {
    let is_at = |path: &PciPath, id: RequesterId| {
        let [step] = path.steps[..] else {
            panic!("{path:?} has more than one step");
        };
        RequesterId::from_parts(path.start_bus, step.device, step.function) == Some(id)
    };
    let behind = description
        .rules
        .iter()
        .filter(|rule| rule.instance.is_some());
    let mut subjects = behind.map(|rule| &rule.subject);
    subjects.any(|subject| match subject {
        Subject::Requesters {
            mask, first, last, ..
        } => (first.get()..=last.get()).contains(&(id.get() & mask)),
        Subject::Function(path) => is_at(path, id),
        Subject::Below(path) => {
            let mut above = bridges.iter().filter(|(_, bus)| *bus == id.bus());
            is_at(path, id) || above.any(|(bridge, _)| is_at(path, RequesterId::new(*bridge)))
        }
        Subject::Node(_) => false,
        other => panic!("{other:?} is in none of the tables"),
    })
}

#[test]
fn who_has_a_group_in_linux_is_behind_an_iommu_and_who_has_none_is_not() {
    // Below each root port and bridge of the machines is one bus.
    let bridges = [
        (0x08, 1),
        (0x10, 2),
        (0x18, 3),
        (0x20, 4),
        (0x2000, 0x21),
        (0x4000, 0x41),
    ];
    let mut count = 0;
    for name in MACHINES
        .into_iter()
        .filter(|name| *name != "x86-ivrs-intremap")
    {
        // With VIOT and IORT, Linux looks only once a driver takes a device; and it knows the function
        // below the PCI bridge by the bridge's ID only.
        let untried: &[&str] = match name {
            "arm-acpi-smmu" => &["0000:00:00.0"],
            "arm-acpi-virtio" => &["0000:00:00.0", "0000:04:03.0"],
            "x86-viot" => &[
                "0000:00:1f.0",
                "0000:00:1f.2",
                "0000:00:1f.3",
                "0000:04:03.0",
            ],
            _ => &[],
        };
        let description = describe(name);
        let info = fs::read_to_string(machine(name).join("guest-info.txt")).expect("it is there");
        for line in info.lines().filter(|line| line.starts_with("PCI ")) {
            let words: Vec<_> = line.split(' ').collect();
            let address: PciAddress = words[1].parse().expect("it is one");
            let group = words[5]
                .strip_prefix("grp=")
                .expect("the sixth word is the group");
            let expected = !group.is_empty() || untried.contains(&words[1]);
            let found = is_behind(&description, address.requester, &bridges);
            assert_eq!(found, expected, "{name}: {line}");
            count += 1;
        }
    }
    assert_eq!(count, 94);
}

#[test]
fn linux_reserves_the_same_addresses_on_x86_where_they_come_from_tables() {
    for (name, expected) in [
        ("vtd-a", "0x00000000fee00000 0x00000000feefffff msi;"),
        (
            "amd-a",
            "0x00000000fee00000 0x00000000feefffff msi;\
             0x000000fd00000000 0x000000ffffffffff reserved;",
        ),
    ] {
        let said: Vec<String> = describe(name)
            .regions
            .iter()
            .map(|region| {
                let kind = match region.kind {
                    RegionKind::Msi => "msi",
                    RegionKind::Reserved => "reserved",
                    other => panic!("{other:?}"),
                };
                let (start, last) = (region.range.start().get(), region.range.last().get());
                format!("{start:#018x} {last:#018x} {kind};")
            })
            .collect();
        let said = said.concat();
        assert_eq!(said, expected);
        let info = fs::read_to_string(machine(name).join("guest-info.txt")).expect("it is there");
        let groups: Vec<_> = info
            .lines()
            .filter(|line| line.starts_with("GROUP "))
            .collect();
        assert!(groups.len() > 5);
        // The ISA bridge's first 16 MiB are a habit of the driver's, no table says it.
        let habit = "0x0000000000000000 0x0000000000ffffff direct-relaxable;";
        for group in groups {
            assert!(
                group.replace(habit, "").contains(&format!("rr={said} ")),
                "{group}"
            );
        }
    }
}
