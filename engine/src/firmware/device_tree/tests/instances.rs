//! Instances and hosts: what they are, where they are, whether they may be used.

use std::vec::Vec;

use crate::firmware::device_tree::tests::{
    flaws, iommu, node, open_host, open_iommu, read, rule, tree,
};
use crate::firmware::fdt::writer::Writer;
use crate::firmware::{Architecture, Host, Location, Output, Problem, Topic};

fn architectures(writer: Writer) -> Vec<Architecture> {
    let instances = read(writer).instances;
    instances
        .iter()
        .map(|instance| instance.architecture)
        .collect()
}

fn locations(writer: Writer) -> Vec<Location> {
    let instances = read(writer).instances;
    instances.iter().map(|instance| instance.location).collect()
}

fn memory(base: u64) -> Location {
    Location::Memory {
        base,
        len: Some(0x1000),
    }
}

#[test]
fn an_instance_is_what_it_is_compatible_with() {
    use Architecture::{Other, Riscv, Smmu, Smmuv3, Virtio};

    for (compatible, architecture) in [
        ("arm,smmu-v3", Smmuv3),
        ("vendor,own\0arm,smmu-v3", Smmuv3),
        ("arm,smmu-v1", Smmu),
        ("qcom,sc7180-smmu-500\0arm,mmu-500", Smmu),
        ("qcom,adreno-smmu\0qcom,smmu-v2", Smmu),
        ("riscv,iommu", Riscv),
        ("riscv,pci-iommu", Riscv),
        ("pci1efd,edf1", Riscv),
        ("virtio,pci-iommu\0pci1af4,1057", Virtio),
    ] {
        let writer = tree().begin("iommu").text("compatible", compatible).end();
        assert_eq!(architectures(writer), [architecture], "{compatible}");
    }
    for (compatible, architecture) in [("virtio,mmio", Virtio), ("apple,dart", Other), ("", Other)]
    {
        let writer = tree().begin("iommu").text("compatible", compatible);
        assert_eq!(architectures(writer.end()), [], "{compatible}");
        let writer = tree().begin("iommu").text("compatible", compatible);
        let writer = writer.cells("#iommu-cells", &[1]).end();
        assert_eq!(architectures(writer), [architecture], "{compatible}");
    }
}

#[test]
fn registers_are_where_the_buses_above_put_them() {
    assert_eq!(locations(iommu(tree(), 1, 1)), [memory(0x1000)]);
    let bus = |ranges: &[u32]| {
        let writer = tree()
            .begin("soc")
            .cells("#address-cells", &[1])
            .cells("#size-cells", &[1]);
        let writer = writer.cells("ranges", ranges);
        let writer = writer
            .begin("bus")
            .cells("#address-cells", &[1])
            .cells("#size-cells", &[1]);
        iommu(writer.bytes("ranges", &[]), 3, 1).end().end()
    };
    assert_eq!(
        locations(bus(&[])),
        [memory(0x3000)],
        "empty: nothing changes"
    );
    let ranges = [0, 0x10_0000, 0x1000, 0x3000, 0x20_0000, 0x1000];
    assert_eq!(locations(bus(&ranges)), [memory(0x20_0000)]);
    assert_eq!(locations(bus(&[0x2000, 0x8000, 0x2000])), [memory(0x9000)]);
    // One byte less, and the registers are behind the range.
    let description = read(bus(&[0x2000, 0x8000, 0x1000]));
    assert_eq!(description.instances[0].location, Location::Unstated);
    let nowhere = Problem::NoTranslation { address: 0x3000 };
    assert_eq!(flaws(&description), [(Topic::Instance, "reg", nowhere)]);
    assert_eq!(description.flaws[0].name, "/soc/bus/iommu@1000");
}

#[test]
fn a_bus_without_ranges_leads_nowhere() {
    let writer = tree()
        .begin("soc")
        .cells("#address-cells", &[1])
        .cells("#size-cells", &[1]);
    let description = read(iommu(writer, 1, 1).end());
    let nowhere = Problem::NoTranslation { address: 0x1000 };
    assert_eq!(flaws(&description), [(Topic::Instance, "reg", nowhere)]);
}

#[test]
fn an_instance_can_be_without_registers() {
    let writer = tree().begin("grants").cells("#iommu-cells", &[1]).end();
    let description = read(writer);
    assert_eq!(description.instances[0].location, Location::Unstated);
    assert_eq!(description.flaws, []);
}

#[test]
fn registers_in_cells_that_do_not_fit_are_a_flaw() {
    let with_reg = |writer: Writer, reg: &[u32]| {
        let writer = writer.begin("iommu").text("compatible", "riscv,iommu");
        read(writer.cells("reg", reg).end())
    };
    let found = with_reg(tree(), &[1, 2, 3]);
    assert_eq!(
        flaws(&found),
        [(Topic::Instance, "reg", Problem::Length { len: 12 })]
    );
    // Without a word on cells addresses have two and sizes have one.
    let found = with_reg(Writer::new(), &[1, 0, 0x1000]);
    assert_eq!(found.instances[0].location, memory(1 << 32));
    let cells = |path: &str| Problem::Cells {
        name: "#address-cells",
        path: path.into(),
    };
    for count in [5, u32::MAX] {
        let found = with_reg(Writer::new().cells("#address-cells", &[count]), &[1, 2, 3]);
        assert_eq!(flaws(&found), [(Topic::Instance, "reg", cells("/"))]);
    }
    let found = with_reg(Writer::new().cells("#address-cells", &[3]), &[1, 2, 3, 4]);
    let too_large = Problem::Length { len: 16 };
    assert_eq!(flaws(&found), [(Topic::Instance, "reg", too_large)]);
}

#[test]
fn a_pci_instance_is_on_the_bus_that_the_bridge_above_has() {
    let instance = |writer: Writer, reg: u32| {
        let writer = writer
            .begin("iommu@9")
            .text("compatible", "riscv,pci-iommu");
        writer.cells("reg", &[reg, 0, 0, 0, 0]).end()
    };
    let located = |writer: Writer| match locations(writer)[..] {
        [Location::Pci(address)] => address.to_string(),
        ref other => panic!("{other:?}"),
    };
    let host = || open_host(tree(), "pci").cells("linux,pci-domain", &[2]);
    assert_eq!(located(instance(host(), 0x4800).end()), "0002:00:09.0");
    let later = host().cells("bus-range", &[0x20, 0x2f]);
    assert_eq!(located(instance(later, 0x4d00).end()), "0002:20:09.5");
    let bridge = || open_host(host(), "bridge").cells("reg", &[0x800, 0, 0, 0, 0]);
    assert_eq!(
        located(instance(bridge(), 0x5_4800).end().end()),
        "0002:05:09.0"
    );
    let numbered = bridge().cells("bus-range", &[6, 7]);
    assert_eq!(
        located(instance(numbered, 0x4800).end().end()),
        "0002:06:09.0"
    );
}

#[test]
fn who_is_behind_a_disabled_iommu_is_behind_none() {
    for (status, is_enabled) in [
        ("okay", true),
        ("ok", true),
        ("disabled", false),
        ("reserved", false),
        ("fail-sss", false),
    ] {
        let writer = open_iommu(tree(), 1, 1).text("status", status).end();
        let found = read(writer.begin("nic").cells("iommus", &[1, 7]).end());
        assert_eq!(found.instances[0].is_enabled, is_enabled, "{status}");
        let instance = is_enabled.then_some(0);
        let expected = rule(node(0), instance, Output::Cells([7].to_vec()));
        assert_eq!(found.rules, [expected]);
        assert_eq!(found.suppliers.len(), usize::from(is_enabled));
        assert_eq!(found.flaws, []);
    }
    let writer = tree()
        .begin("soc")
        .cells("#address-cells", &[1])
        .cells("#size-cells", &[1]);
    let writer = writer.bytes("ranges", &[]).text("status", "disabled");
    assert!(!read(iommu(writer, 1, 1).end()).instances[0].is_enabled);
}

#[test]
fn walks_are_coherent_as_the_closest_node_says() {
    let coherence = |outer: &str, inner: &str, compatible: &str| {
        let name = |writer: Writer, name: &str| match name {
            "" => writer,
            name => writer.bytes(name, &[]),
        };
        let writer = name(tree(), outer).begin("soc").begin("iommu");
        let writer = name(writer, inner).text("compatible", compatible);
        read(writer.end().end()).instances[0].is_coherent
    };
    for compatible in ["arm,smmu-v3", "arm,mmu-500", "riscv,iommu"] {
        assert_eq!(coherence("", "dma-coherent", compatible), Some(true));
        assert_eq!(coherence("dma-coherent", "", compatible), Some(true));
        assert_eq!(
            coherence("dma-coherent", "dma-noncoherent", compatible),
            Some(false)
        );
        assert_eq!(
            coherence("dma-noncoherent", "dma-coherent", compatible),
            Some(true)
        );
    }
    assert_eq!(coherence("", "", "arm,smmu-v3"), Some(false));
    assert_eq!(coherence("", "", "arm,mmu-500"), Some(false));
    assert_eq!(coherence("", "", "riscv,iommu"), None);
}

#[test]
fn hosts_have_the_segments_and_buses_they_say_and_others_are_free() {
    let host = |writer: Writer, segment: Option<u32>| {
        let writer = open_host(writer, "pci");
        match segment {
            Some(segment) => writer.cells("linux,pci-domain", &[segment]).end(),
            None => writer.end(),
        }
    };
    let writer = [None, Some(1), None, Some(0x1_0000)]
        .into_iter()
        .fold(tree(), host);
    let writer = open_host(writer, "off").text("status", "disabled").end();
    let writer = open_host(writer, "last").cells("bus-range", &[1, 0x100]);
    // A bridge is no host, though it is of the same type.
    let found = read(open_host(writer, "bridge").end().end());
    let segments: Vec<_> = found.hosts.iter().map(|host| host.segment).collect();
    assert_eq!(segments, [0, 1, 2, 3, 4]);
    assert_eq!(
        flaws(&found),
        [
            (
                Topic::Host,
                "linux,pci-domain",
                Problem::Value { value: 0x1_0000 }
            ),
            (
                Topic::Host,
                "bus-range",
                Problem::Value {
                    value: 1 << 32 | 0x100
                }
            ),
        ]
    );
}

#[test]
fn the_configuration_space_is_told_as_if_it_began_at_bus_zero() {
    let host = |compatible: &str| {
        let writer = open_host(tree(), "pci@4000000").text("compatible", compatible);
        let writer = writer.cells("reg", &[0x400_0000, 0x100_0000]);
        read(writer.cells("bus-range", &[0x10, 0x1f]).end()).hosts
    };
    let expected = |ecam| Host {
        name: "/pci@4000000".into(),
        segment: 0,
        buses: (0x10, 0x1f),
        ecam,
    };
    assert_eq!(host("pci-host-ecam-generic"), [expected(Some(0x300_0000))]);
    assert_eq!(host("pci-host-cam-generic"), [expected(None)]);
}

#[test]
fn an_iommu_below_a_bridge_without_bus_numbers_is_nowhere_rather_than_on_bus_0() {
    let of = |range: Option<&[u32]>, reg| {
        let writer = open_host(tree(), "pci")
            .begin("bridge")
            .text("device_type", "pci");
        let writer = writer.cells("reg", &[0x800, 0, 0, 0, 0]);
        let writer = match range {
            Some(range) => writer.cells("bus-range", range),
            None => writer,
        };
        let writer = writer.begin("iommu").text("compatible", "virtio,pci-iommu");
        let found = read(writer.cells("reg", &[reg, 0, 0, 0, 0]).end().end().end());
        (found.instances[0].location, flaws(&found).pop())
    };
    let at = |text: &str| Location::Pci(text.parse().expect("it is one"));
    let problem = Problem::Value { value: 0 };
    let flaw = Some((Topic::Instance, "reg", problem));
    assert_eq!(of(None, 0), (Location::Unstated, flaw));
    assert_eq!(of(None, 0x2_0000), (at("0000:02:00.0"), None));
    assert_eq!(of(Some(&[3, 4]), 0), (at("0000:03:00.0"), None));
}
