//! What device trees of real machines say: QEMU's, some as Linux booted with them.
//!
//! The expected values were read off the trees by hand; where Linux ran, what it grouped agrees.

use iopt::firmware::{
    Architecture, Behind, Coherence, Description, Host, Identity, Instance, InstanceIndex,
    Location, Output, PciPath, Position, Rule, Subject, Supplier, Who, device_tree,
};
use iopt::topology::{PciAddress, RequesterId};
use iopt_tests::space::random::Random;

macro_rules! fixture {
    ($path:literal) => {
        include_bytes!(concat!("../fixtures/firmware/", $path))
    };
}

const SMMU: &[u8] = fixture!("smmu-a/guest.dtb");
const ARM_VIRTIO: &[u8] = fixture!("arm-dt-virtio/guest.dtb");
const ARM_ACPI: &[u8] = fixture!("arm-acpi-smmu/guest.dtb");
const RISCV: &[u8] = fixture!("riscv-sys/guest.dtb");

const ALL: [&[u8]; 10] = [
    SMMU,
    ARM_VIRTIO,
    ARM_ACPI,
    RISCV,
    fixture!("dtb/virt-smmuv3.dtb"),
    fixture!("dtb/virt-smmuv3-highmem-off.dtb"),
    fixture!("dtb/virt-noiommu.dtb"),
    fixture!("dtb/virt-virtio-iommu.dtb"),
    fixture!("dtb/riscv-iommu-sys.dtb"),
    fixture!("dtb/riscv-iommu-pci.dtb"),
];

/// None of these trees names a function by a path.
#[derive(Debug)]
struct Nowhere;

impl Position for Nowhere {
    fn is_at(&self, _: &PciPath) -> bool {
        false
    }

    fn is_below(&self, _: &PciPath) -> bool {
        false
    }

    fn is_below_root_port(&self) -> bool {
        false
    }
}

fn read(blob: &[u8]) -> Description {
    device_tree::parse(blob).expect("QEMU wrote it")
}

fn address(text: &str) -> PciAddress {
    text.parse().expect("it is one")
}

fn requesters(first: u16, last: u16) -> Subject {
    Subject::Requesters {
        segment: 0,
        mask: u16::MAX,
        first: RequesterId::new(first),
        last: RequesterId::new(last),
    }
}

fn offset(first: u16, last: u16, offset: u32) -> Rule {
    Rule {
        subject: requesters(first, last),
        instance: Some(InstanceIndex(0)),
        output: Output::Offset(offset),
        amd_settings: 0,
    }
}

/// The one host of each machine, of segment 0, and coherent.
fn with_host(name: &str, last_bus: u8, ecam: u64) -> Description {
    Description {
        hosts: vec![Host {
            name: name.into(),
            segment: 0,
            buses: (0, last_bus),
            ecam: Some(ecam),
        }],
        coherence: vec![Coherence {
            subject: requesters(0, u16::from(last_bus) << 8 | 0xff),
            is_coherent: true,
        }],
        ..Description::default()
    }
}

/// The same with one IOMMU, whose rules are about the host.
fn with_iommu(host: Description, instance: Instance, rules: &[Rule]) -> Description {
    let suppliers = host.coherence.iter().map(|host| Supplier {
        consumer: host.subject.clone(),
        instance: InstanceIndex(0),
    });
    Description {
        suppliers: suppliers.collect(),
        instances: vec![instance],
        rules: rules.to_vec(),
        ..host
    }
}

fn instance(
    architecture: Architecture,
    location: Location,
    name: &str,
    is_coherent: Option<bool>,
) -> Instance {
    Instance {
        architecture,
        location,
        name: name.into(),
        is_enabled: true,
        is_coherent,
        itself: None,
        match_mask: 0,
    }
}

#[test]
fn arms_machine_has_an_smmu_that_sees_every_requester_as_it_is() {
    let location = Location::Memory {
        base: 0x905_0000,
        len: Some(0x2_0000),
    };
    let name = "/smmuv3@9050000";
    let smmu = instance(Architecture::Smmuv3, location, name, Some(true));
    let host = with_host("/pcie@10000000", 0xff, 0x40_1000_0000);
    let expected = with_iommu(host, smmu.clone(), &[offset(0, 0xffff, 0)]);
    assert_eq!(read(SMMU), expected);
    assert_eq!(read(fixture!("dtb/virt-smmuv3.dtb")), expected);

    let host = with_host("/pcie@10000000", 0xf, 0x3f00_0000);
    let expected = with_iommu(host, smmu, &[offset(0, 0xffff, 0)]);
    assert_eq!(read(fixture!("dtb/virt-smmuv3-highmem-off.dtb")), expected);
}

#[test]
fn a_virtio_iommu_on_pci_sees_everyone_but_itself() {
    let location = Location::Pci(address("0000:00:09.0"));
    let name = "/pcie@10000000/virtio_iommu@9,0";
    let virtio = instance(Architecture::Virtio, location, name, Some(true));
    let host = with_host("/pcie@10000000", 0xff, 0x40_1000_0000);
    let rules = [offset(0, 0x47, 0), offset(0x49, 0xffff, 0x49)];
    let expected = with_iommu(host, virtio, &rules);
    assert_eq!(read(ARM_VIRTIO), expected);
    assert_eq!(read(fixture!("dtb/virt-virtio-iommu.dtb")), expected);
}

#[test]
fn risc_vs_machine_has_an_iommu_on_its_bus_or_on_pci() {
    let location = Location::Memory {
        base: 0x301_0000,
        len: Some(0x1000),
    };
    let name = "/soc/iommu@3010000";
    let system = instance(Architecture::Riscv, location, name, None);
    let host = || with_host("/soc/pci@30000000", 0xff, 0x3000_0000);
    // QEMU's map ends one short of the last requester, behind an entry without any.
    let expected = with_iommu(host(), system, &[offset(0, 0xfffe, 0)]);
    assert_eq!(read(RISCV), expected);
    assert_eq!(read(fixture!("dtb/riscv-iommu-sys.dtb")), expected);

    let location = Location::Pci(address("0000:00:09.0"));
    let name = "/soc/pci@30000000/iommu@48";
    let pci = instance(Architecture::Riscv, location, name, Some(true));
    let rules = [offset(0, 0x47, 0), offset(0x49, 0xffff, 0x49)];
    let expected = with_iommu(host(), pci, &rules);
    assert_eq!(read(fixture!("dtb/riscv-iommu-pci.dtb")), expected);
}

#[test]
fn a_machine_without_iommu_or_with_acpi_has_none_in_its_tree() {
    let expected = with_host("/pcie@10000000", 0xff, 0x40_1000_0000);
    assert_eq!(read(fixture!("dtb/virt-noiommu.dtb")), expected);
    assert_eq!(read(ARM_ACPI), Description::default());
}

/// The PCI functions that Linux saw, and whether each got a group.
fn functions(info: &str) -> Vec<(PciAddress, bool)> {
    let lines = info.lines().filter_map(|line| line.strip_prefix("PCI "));
    let functions: Vec<_> = lines
        .map(|line| {
            let name = line.split(' ').next().expect("a line has a word");
            (address(name), !line.contains(" grp= "))
        })
        .collect();
    assert!(functions.len() >= 10);
    functions
}

#[test]
fn whom_linux_grouped_is_behind_the_iommu_under_its_requester_id() {
    for (blob, info) in [
        (SMMU, &fixture!("smmu-a/guest-info.txt")[..]),
        (ARM_VIRTIO, fixture!("arm-dt-virtio/guest-info.txt")),
        (RISCV, fixture!("riscv-sys/guest-info.txt")),
    ] {
        let description = read(blob);
        let info = core::str::from_utf8(info).expect("Linux's messages are text");
        for (function, has_group) in functions(info) {
            let behind = description.requester(function, &Nowhere);
            let requester = u32::from(function.requester.get());
            let is_itself = description.instances[0].location == Location::Pci(function);
            match behind {
                Behind::Instance(seen) => {
                    assert_eq!(seen.instance, InstanceIndex(0));
                    assert_eq!(seen.identity, Identity::Number(requester));
                    assert!(!is_itself);
                }
                // Linux says of it: "no iommu-map translation for id 0x48".
                Behind::Unsaid => assert!(is_itself && !has_group, "{function}"),
                other => panic!("{function}: {other:?}"),
            }
        }
    }
}

/// Asks what a tree of rubbish may get wrong, too.
fn ask(description: &Description) {
    for requester in [0, 0x48, 0xffff] {
        let function = PciAddress {
            segment: 0,
            requester: RequesterId::new(requester),
        };
        let _ = description.requester(function, &Nowhere);
        let who = Who::Requester(function, &Nowhere);
        let _ = (
            description.regions_of(who).count(),
            description.reach_of(who),
        );
    }
}

fn word(blob: &[u8], at: usize) -> usize {
    let word = blob[at..at + 4].try_into().expect("four bytes");
    u32::from_be_bytes(word).try_into().expect("64-bit machine")
}

fn set_word(blob: &mut [u8], at: usize, word: usize) {
    let word = u32::try_from(word).expect("trees are small");
    blob[at..at + 4].copy_from_slice(&word.to_be_bytes());
}

#[test]
fn a_tree_that_is_cut_anywhere_is_refused() {
    for blob in ALL {
        let total = word(blob, 4);
        for len in 0..total {
            assert!(device_tree::parse(&blob[..len]).is_err(), "cut at {len}");
            let mut cut = blob[..len].to_vec();
            if len >= 40 {
                set_word(&mut cut, 4, len);
                assert!(device_tree::parse(&cut).is_err(), "ends at {len}");
            }
        }
        // The structure block's last word ends the tree; no shorter one is a tree.
        let (strings_len, structure_len) = (word(blob, 32), word(blob, 36));
        let mut cut = blob.to_vec();
        for len in (0..structure_len).step_by(3) {
            set_word(&mut cut, 36, len);
            assert!(device_tree::parse(&cut).is_err(), "structure of {len}");
        }
        set_word(&mut cut, 36, structure_len);
        // Not every name that is cut off is used.
        for len in 0..strings_len {
            set_word(&mut cut, 32, len);
            let _ = device_tree::parse(&cut);
        }
    }
}

#[test]
fn flipped_bytes_never_panic() {
    let mut random = Random::new(0x6664_7431);
    // The others differ from these in a few words.
    for blob in [ARM_VIRTIO, ARM_ACPI, RISCV] {
        let mut mutant = blob.to_vec();
        let mut accepted = 0;
        for at in 0..blob.len() {
            let [mask, ..] = random.any().to_le_bytes();
            mutant[at] ^= mask | 1;
            if let Ok(description) = device_tree::parse(&mutant) {
                ask(&description);
                accepted += 1;
            }
            mutant[at] = blob[at];
        }
        assert!(accepted > 0, "most bytes are values");
        for _ in 0..200 {
            let mut mutant = blob.to_vec();
            for _ in 0..8 {
                let [low, high, value, ..] = random.any().to_le_bytes();
                let at = usize::from(u16::from_le_bytes([low, high])) % blob.len();
                mutant[at] = value;
            }
            if let Ok(description) = device_tree::parse(&mutant) {
                ask(&description);
            }
        }
    }
}
