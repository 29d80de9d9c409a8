//! A guest's first stage over a second stage that changes: what the hardware caches of both together is found
//! by addresses that the host does not know.

use std::sync::{Arc, OnceLock};

use iopt::invalidation::NoHardware;
use iopt::invalidation::plan::amd::{Amd as AmdPlanner, Device as AmdDevice, Tag as AmdTag};
use iopt::invalidation::plan::riscv::{Riscv as RiscvPlanner, Tag as RiscvTag};
use iopt::invalidation::plan::smmuv3::{Smmuv3 as SmmuPlanner, Tag as SmmuTag};
use iopt::invalidation::plan::vtd::{Tag as VtdTag, Vtd as VtdPlanner};
use iopt::radix::Table;
use iopt_formats::amd::V1;
use iopt_formats::armv8::{Granule, Stage1, Stage2};
use iopt_formats::command::amd::Command;
use iopt_formats::command::riscv::{Command as RiscvCommand, Function};
use iopt_formats::command::vtd::{Device as VtdDevice, QueueDepth};
use iopt_formats::command::{Narrow, Pasid, Span};
use iopt_formats::riscv::{Sv, Svx4};
use iopt_formats::walk::Root;
use iopt_formats::x86_64::AmdV2;
use iopt_formats::{Format, Iova, IovaRange, Oa, Prot, vtd};
use iopt_reference as reference;
use iopt_reference::context::Binding;
use iopt_rig::{Amd, Behaviour, EntryOf, Registers, Riscv, Smmuv3, TagOf, Vtd};
use iopt_sim::{Architecture, Attachment, Context, DomainId, Law, Outcome, Rights, Tag};

use super::{Broken, Change};
use crate::machines::{Bench, CACHING, MEMORY, PLAIN};

/// The guest's tables, which are made after the machine: of the device without a TLB, and of the one that has one.
type Guest = Arc<OnceLock<[reference::Table; 2]>>;

/// The spaces of the guest's processes: ASIDs, PASIDs, PSCIDs.
const PROCESSES: [u32; 2] = [5, 6];

/// An SMMU whose domains are second stages below a guest's first stages.
#[derive(Clone, Debug, Default)]
struct NestedSmmu(Guest);

/// Such a VT-d unit.
#[derive(Clone, Debug, Default)]
struct NestedVtd(Guest);

/// Such an AMD-Vi IOMMU.
#[derive(Clone, Debug, Default)]
struct NestedAmd(Guest);

/// Such a RISC-V IOMMU.
#[derive(Clone, Debug, Default)]
struct NestedRiscv(Guest);

const SMMU: Smmuv3<12> = Smmuv3 {
    has_ranges: true,
    has_contiguous_erratum: false,
};

const VTD: Vtd<2> = Vtd {
    has_caching_mode: false,
    max_order: Some(18),
};

const AMD: Amd = Amd {
    has_absent_entries: false,
};

const RISCV: Riscv = Riscv {
    has_non_leaf: true,
    has_ranges: true,
};

/// Puts a second stage below the guest's tables of a device, once there are some.
fn nested(guest: &Guest, second: reference::Table, id: u16, has_ats: bool) -> Context {
    let tables = guest.get().expect("the guest has its tables by now");
    let space = usize::from(has_ats);
    Context {
        binding: Binding::Nested {
            first: tables[space],
            second,
        },
        tag: Tag::combined(id.into(), PROCESSES[space]),
        has_ats,
    }
}

impl Behaviour for NestedSmmu {
    type Format = Stage2<12>;
    type Planner = SmmuPlanner;
    type Device = <Smmuv3<12> as Behaviour>::Device;

    fn architecture(&self) -> Architecture {
        SMMU.architecture()
    }

    fn planner(&self) -> SmmuPlanner {
        SMMU.planner()
    }

    fn device(&self, registers: Registers, status: Oa) -> Self::Device {
        SMMU.device(registers, status)
    }

    fn base(&self, device: &Self::Device, ring: Oa) -> u64 {
        SMMU.base(device, ring)
    }

    fn format(&self) -> Stage2<12> {
        Stage2::new(48, 48).expect("a legal second stage")
    }

    fn tags(&self, id: u16, device: u16, has_ats: bool) -> Vec<TagOf<Self>> {
        let granule = Granule::Kib4;
        let own = [
            SmmuTag::Stage2 { vmid: id, granule },
            SmmuTag::Combined { vmid: id, granule },
        ];
        let stream = device.into();
        let ats = has_ats.then_some(SmmuTag::AtsFull { stream });
        own.into_iter().chain(ats).collect()
    }

    fn attachment(&self, domain: DomainId) -> Attachment {
        let (guest, parent) = (None, domain);
        Attachment::Nested { guest, parent }
    }

    fn context(&self, id: u16, root: Root, has_ats: bool) -> Context {
        use reference::arm::{Config, Granule, Half};
        let half = Half::new(root.oa.get(), 48, Granule::K4);
        let start = 3 - root.level.0.cast_signed();
        let second = Config::stage2(half, start, self.format().oa_bits());
        nested(&self.0, reference::Table::Arm(second), id, has_ats)
    }

    fn forget_context(&self, device: u16) -> EntryOf<Self> {
        SMMU.forget_context(device)
    }
}

impl Behaviour for NestedVtd {
    type Format = vtd::SecondStage;
    type Planner = VtdPlanner;
    type Device = <Vtd<2> as Behaviour>::Device;

    fn architecture(&self) -> Architecture {
        VTD.architecture()
    }

    fn planner(&self) -> VtdPlanner {
        VTD.planner()
    }

    fn device(&self, registers: Registers, status: Oa) -> Self::Device {
        VTD.device(registers, status)
    }

    fn base(&self, device: &Self::Device, ring: Oa) -> u64 {
        VTD.base(device, ring)
    }

    fn format(&self) -> vtd::SecondStage {
        VTD.format()
    }

    fn tags(&self, id: u16, device: u16, has_ats: bool) -> Vec<TagOf<Self>> {
        let own = [
            VtdTag::SecondStage { domain_id: id },
            VtdTag::Combined { domain_id: id },
        ];
        let device = VtdDevice {
            source_id: device,
            physical_function: 0,
            queue_depth: QueueDepth::new(32),
        };
        let pasid = None;
        let ats = has_ats.then_some(VtdTag::AtsFull { device, pasid });
        own.into_iter().chain(ats).collect()
    }

    fn attachment(&self, domain: DomainId) -> Attachment {
        let (guest, parent) = (None, domain);
        Attachment::Nested { guest, parent }
    }

    fn context(&self, id: u16, root: Root, has_ats: bool) -> Context {
        let Binding::Table(second) = VTD.context(id, root, has_ats).binding else {
            unreachable!("a domain of one stage is a table");
        };
        nested(&self.0, second, id, has_ats)
    }

    fn forget_context(&self, device: u16) -> EntryOf<Self> {
        VTD.forget_context(device)
    }
}

impl Behaviour for NestedAmd {
    type Format = V1;
    type Planner = AmdPlanner;
    type Device = <Amd as Behaviour>::Device;

    fn architecture(&self) -> Architecture {
        AMD.architecture()
    }

    fn planner(&self) -> AmdPlanner {
        AMD.planner()
    }

    fn device(&self, registers: Registers, status: Oa) -> Self::Device {
        AMD.device(registers, status)
    }

    fn base(&self, device: &Self::Device, ring: Oa) -> u64 {
        AMD.base(device, ring)
    }

    fn format(&self) -> V1 {
        AMD.format()
    }

    fn tags(&self, id: u16, device: u16, has_ats: bool) -> Vec<TagOf<Self>> {
        let pasid = None;
        let own = [
            AmdTag::Iotlb {
                domain_id: id,
                pasid,
            },
            AmdTag::Combined { domain_id: id },
        ];
        let device = AmdDevice {
            device_id: device,
            queue_id: device,
            max_pending: 32,
        };
        let ats = has_ats.then_some(AmdTag::AtsFull { device, pasid });
        own.into_iter().chain(ats).collect()
    }

    fn attachment(&self, domain: DomainId) -> Attachment {
        let (guest, parent) = (None, domain);
        Attachment::Nested { guest, parent }
    }

    fn context(&self, id: u16, root: Root, has_ats: bool) -> Context {
        let Binding::Table(second) = AMD.context(id, root, has_ats).binding else {
            unreachable!("a domain of one stage is a table");
        };
        nested(&self.0, second, id, has_ats)
    }

    fn forget_context(&self, device: u16) -> EntryOf<Self> {
        AMD.forget_context(device)
    }
}

impl Behaviour for NestedRiscv {
    type Format = Svx4;
    type Planner = RiscvPlanner;
    type Device = <Riscv as Behaviour>::Device;

    fn architecture(&self) -> Architecture {
        RISCV.architecture()
    }

    fn planner(&self) -> RiscvPlanner {
        RISCV.planner()
    }

    fn device(&self, registers: Registers, status: Oa) -> Self::Device {
        RISCV.device(registers, status)
    }

    fn base(&self, device: &Self::Device, ring: Oa) -> u64 {
        RISCV.base(device, ring)
    }

    fn format(&self) -> Svx4 {
        Svx4::sv48x4().with_svnapot()
    }

    fn tags(&self, id: u16, device: u16, has_ats: bool) -> Vec<TagOf<Self>> {
        let own = [
            RiscvTag::SecondStage { gscid: id },
            RiscvTag::Combined { gscid: id },
        ];
        let function = Function {
            segment: None,
            requester: device,
        };
        let pasid = None;
        let ats = has_ats.then_some(RiscvTag::AtsFull { function, pasid });
        own.into_iter().chain(ats).collect()
    }

    fn attachment(&self, domain: DomainId) -> Attachment {
        let (guest, parent) = (None, domain);
        Attachment::Nested { guest, parent }
    }

    fn context(&self, id: u16, root: Root, has_ats: bool) -> Context {
        use reference::riscv::{Config, Stage};
        let second = Config {
            oa_bits: self.format().oa_bits(),
            ..Config::new(Stage::G, root.oa.get(), root.level.0 + 1)
        };
        nested(&self.0, reference::Table::Riscv(second), id, has_ats)
    }

    fn forget_context(&self, device: u16) -> EntryOf<Self> {
        RISCV.forget_context(device)
    }
}

/// Where the guest maps one page, in each space twice, and where it believes that its memory is.
const GUEST_PAGES: [u64; 2] = [0x7654_3000, 0x12_3456_7000];
const GUEST_MEMORY: u64 = 0x20_0000_0000;

/// A guest's page is used by all its names, and its memory taken away from below; returns which law that breaks.
fn memory_is_taken_from_a_guest<B: Behaviour, F: Format>(
    behaviour: B,
    guest: &Guest,
    format: F,
    judge: fn(Root) -> reference::Table,
) -> Option<Law> {
    let machine = iopt_rig::Machine::new(behaviour, iopt_rig::MachineConfig::default())
        .expect("there is memory");
    let domain = machine.domain().expect("there is memory");
    let bench = Bench { machine, domain };
    // The guest has its tables where they are.
    let tables = PROCESSES.map(|_| {
        let tables = Table::new(format, bench.machine.tables()).expect("there is memory");
        for page in GUEST_PAGES {
            let place = IovaRange::with_len(Iova::new(page), 0x1000).expect("a range of the table");
            let mut claim = tables.claim(place).expect("a range of the table");
            let mut mapper = tables.mapper(&mut claim).expect("a range of the table");
            let mapped = mapper
                .map(place, Oa::new(GUEST_MEMORY), Prot::RW)
                .expect("there is memory");
            let _ = mapped.sync(&NoHardware).expect("the hardware answers");
        }
        tables
    });
    let roots = [judge(tables[0].root()), judge(tables[1].root())];
    guest.set(roots).expect("set once");
    let below = 0x4000_0000..=0x7fff_ffff;
    bench.map(&below, 0x4000_0000);
    let memory = GUEST_MEMORY..=GUEST_MEMORY + 0xfff;
    bench.map(&memory, MEMORY);
    bench.attach(PLAIN, false);
    bench.attach(CACHING, true);
    let names = [PLAIN, CACHING].map(|device| GUEST_PAGES.map(|page| (device, page)));
    for &(device, page) in names.as_flattened() {
        let reached = bench.machine.access(device, page, Rights::ALL);
        let oa = match reached.expect("nothing is stale yet") {
            Outcome::Translated { oa, .. } => Some(oa),
            Outcome::Refused(_) => None,
        };
        assert_eq!(oa, Some(MEMORY));
    }
    bench.unmap(&memory);
    let mut names = names.as_flattened().iter();
    let stale = names.find_map(|&(device, page)| {
        let again = bench.machine.access(device, page, Rights::ALL);
        again.err().map(|stale| stale.law)
    });
    stale.or_else(|| super::law(&bench))
}

/// Drops what a plan has for some places.
macro_rules! without {
    ($law:ident, $tag:pat) => {
        $law(|tag, _, commands| match tag {
            $tag => Vec::new(),
            _ => commands,
        })
    };
}

/// A3.15.
#[test]
fn what_an_smmu_combined_of_both_stages_is_flushed_or_seen() {
    let judge = |root: Root| {
        use reference::arm::{Config, Granule, Half};
        let half = Half::new(root.oa.get(), 48, Granule::K4);
        reference::Table::Arm(Config::stage1(half, 48))
    };
    let format = Stage1::<12>::new(48, 48).unwrap();
    let law = |change: Change<NestedSmmu>| {
        let guest = Guest::default();
        let broken = Broken::new(NestedSmmu(Arc::clone(&guest)), change);
        memory_is_taken_from_a_guest(broken, &guest, format, judge)
    };
    assert_eq!(law(|_, _, commands| commands), None);
    for law in [
        without!(law, SmmuTag::Combined { .. }),
        without!(law, SmmuTag::Stage2 { .. }),
        without!(law, SmmuTag::AtsFull { .. }),
    ] {
        assert_eq!(law, Some(Law::Reach));
    }
    // Both at once: what is combined is made again of the second stage that is still there.
    let guest = Guest::default();
    let hasty = Broken::<_, true> {
        inside: NestedSmmu(Arc::clone(&guest)),
        change: |_, _, commands| commands,
    };
    let law = memory_is_taken_from_a_guest(hasty, &guest, format, judge);
    assert_eq!(law, Some(Law::Reach));
}

fn long_mode(root: Root) -> reference::Table {
    let config = reference::x86::Config::new(root.oa.get(), root.level.0 + 1);
    reference::Table::LongMode(config)
}

/// A3.15.
#[test]
fn what_a_vtd_unit_combined_of_both_stages_is_flushed_or_seen() {
    let format = vtd::FirstStage::new(47).unwrap();
    let law = |change: Change<NestedVtd>| {
        let guest = Guest::default();
        let broken = Broken::new(NestedVtd(Arc::clone(&guest)), change);
        memory_is_taken_from_a_guest(broken, &guest, format, long_mode)
    };
    assert_eq!(law(|_, _, commands| commands), None);
    for law in [
        without!(law, VtdTag::Combined { .. }),
        without!(law, VtdTag::AtsFull { .. }),
    ] {
        assert_eq!(law, Some(Law::Reach));
    }
    // What tells of combined entries names the whole domain, the second stage with it.
    assert_eq!(without!(law, VtdTag::SecondStage { .. }), None);
}

/// A3.15.
#[test]
fn what_an_amd_iommu_combined_of_both_tables_is_flushed_or_seen() {
    let format = AmdV2::new(47).unwrap();
    let law = |change: Change<NestedAmd>| {
        let guest = Guest::default();
        let broken = Broken::new(NestedAmd(Arc::clone(&guest)), change);
        memory_is_taken_from_a_guest(broken, &guest, format, long_mode)
    };
    assert_eq!(law(|_, _, commands| commands), None);
    for law in [
        without!(law, AmdTag::Combined { .. }),
        without!(law, AmdTag::AtsFull { .. }),
        // One of the guest's PASIDs, and one page: the guest has others.
        law(|tag, _, commands| match tag {
            AmdTag::Combined { domain_id } => vec![Command::InvalidatePages {
                domain_id: *domain_id,
                pasid: Pasid::new(PROCESSES[0]),
                has_tables: true,
                span: Span::ALL,
            }],
            _ => commands,
        }),
        law(|tag, _, commands| match tag {
            AmdTag::Combined { domain_id } => vec![Command::InvalidatePages {
                domain_id: *domain_id,
                pasid: None,
                has_tables: true,
                span: Span::new(GUEST_MEMORY, 0).unwrap(),
            }],
            _ => commands,
        }),
    ] {
        assert_eq!(law, Some(Law::Reach));
    }
    // All of a domain are the host tables' own translations, too.
    assert_eq!(without!(law, AmdTag::Iotlb { .. }), None);
}

/// A3.15.
#[test]
fn what_a_riscv_iommu_combined_of_both_stages_is_flushed_or_seen() {
    let judge = |root: Root| {
        use reference::riscv::{Config, Stage};
        let config = Config::new(Stage::First, root.oa.get(), root.level.0 + 1);
        reference::Table::Riscv(config)
    };
    let format = Sv::sv48();
    let law = |change: Change<NestedRiscv>| {
        let guest = Guest::default();
        let broken = Broken::new(NestedRiscv(Arc::clone(&guest)), change);
        memory_is_taken_from_a_guest(broken, &guest, format, judge)
    };
    assert_eq!(law(|_, _, commands| commands), None);
    for law in [
        without!(law, RiscvTag::Combined { .. }),
        without!(law, RiscvTag::SecondStage { .. }),
        without!(law, RiscvTag::AtsFull { .. }),
        // One of the guest's PSCIDs: the guest has others.
        law(|tag, _, commands| match tag {
            RiscvTag::Combined { gscid } => vec![RiscvCommand::IotinvalVma {
                gscid: Some(*gscid),
                pscid: Narrow::new(PROCESSES[0]),
                target: None,
            }],
            _ => commands,
        }),
    ] {
        assert_eq!(law, Some(Law::Reach));
    }
    // Both at once: what is combined is made again of the second stage that is still there.
    let guest = Guest::default();
    let hasty = Broken::<_, true> {
        inside: NestedRiscv(Arc::clone(&guest)),
        change: |_, _, commands| commands,
    };
    let law = memory_is_taken_from_a_guest(hasty, &guest, format, judge);
    assert_eq!(law, Some(Law::Reach));
}
