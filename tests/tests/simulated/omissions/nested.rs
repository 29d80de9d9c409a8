//! A guest's first stage over a second stage that changes: what the hardware caches of both together is found
//! by addresses that the host does not know.

use std::sync::{Arc, OnceLock};

use iopt::invalidation::NoHardware;
use iopt::invalidation::plan::smmuv3::{Smmuv3 as SmmuPlanner, Tag as SmmuTag};
use iopt::invalidation::plan::vtd::{Tag as VtdTag, Vtd as VtdPlanner};
use iopt::radix::Table;
use iopt_formats::armv8::{Granule, Stage1, Stage2};
use iopt_formats::command::Pasid;
use iopt_formats::walk::Root;
use iopt_formats::{Format, Iova, IovaRange, Oa, Prot, vtd};
use iopt_reference::context::Binding;
use iopt_rig::{Behaviour, EntryOf, Registers, Smmuv3, TagOf, Vtd};
use iopt_sim::{Architecture, Attachment, Context, DomainId, Law, Outcome, Rights, Tag};

use super::{Broken, Change};
use crate::machines::{Bench, MEMORY, PLAIN};

/// The guest's table, which is made after the machine.
type Guest = Arc<OnceLock<iopt_reference::Table>>;

/// The space of the guest's process.
const PROCESS: u16 = 5;

/// An SMMU whose domains are second stages below a guest's first stage.
#[derive(Clone, Debug, Default)]
struct NestedSmmu(Guest);

/// A VT-d unit whose domains are second stages below a guest's first stage.
#[derive(Clone, Debug, Default)]
struct NestedVtd(Guest);

const SMMU: Smmuv3<12> = Smmuv3 {
    has_ranges: true,
    has_contiguous_erratum: false,
};

const VTD: Vtd<2> = Vtd {
    has_caching_mode: false,
    max_order: Some(18),
};

/// Puts a second stage below the guest's table, once there is one.
fn nested(guest: &Guest, second: iopt_reference::Table, tag: Tag) -> Context {
    let first = *guest.get().expect("the guest has its table by now");
    Context {
        binding: Binding::Nested { first, second },
        tag,
        has_ats: false,
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

    fn tags(&self, id: u16, _device: u16, _has_ats: bool) -> Vec<TagOf<Self>> {
        let granule = Granule::Kib4;
        vec![
            SmmuTag::Stage2 { vmid: id, granule },
            SmmuTag::Combined { vmid: id, granule },
        ]
    }

    fn attachment(&self, domain: DomainId) -> Attachment {
        let (guest, parent) = (None, domain);
        Attachment::Nested { guest, parent }
    }

    fn context(&self, id: u16, root: Root, _has_ats: bool) -> Context {
        use iopt_reference::arm::{Config, Granule, Half};
        let half = Half::new(root.oa.get(), 48, Granule::K4);
        let start = 3 - root.level.0.cast_signed();
        let second = Config::stage2(half, start, self.format().oa_bits());
        let tag = Tag::combined(id.into(), PROCESS.into());
        nested(&self.0, iopt_reference::Table::Arm(second), tag)
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

    fn tags(&self, id: u16, _device: u16, _has_ats: bool) -> Vec<TagOf<Self>> {
        vec![
            VtdTag::SecondStage { domain_id: id },
            VtdTag::Combined { domain_id: id },
        ]
    }

    fn attachment(&self, domain: DomainId) -> Attachment {
        let (guest, parent) = (None, domain);
        Attachment::Nested { guest, parent }
    }

    fn context(&self, id: u16, root: Root, has_ats: bool) -> Context {
        let Binding::Table(second) = VTD.context(id, root, has_ats).binding else {
            unreachable!("a domain of one stage is a table");
        };
        nested(&self.0, second, Tag::combined(id.into(), PROCESS.into()))
    }

    fn forget_context(&self, device: u16) -> EntryOf<Self> {
        VTD.forget_context(device)
    }
}

/// Where the guest maps a page, and where it believes that its memory is.
const GUEST_PAGE: u64 = 0x7654_3000;
const GUEST_MEMORY: u64 = 0x80_0000_0000;

/// A guest's page is used, and its memory taken away from below; returns which law that breaks.
fn memory_is_taken_from_a_guest<B: Behaviour, F: Format>(
    behaviour: B,
    guest: &Guest,
    format: F,
    judge: fn(Root) -> iopt_reference::Table,
) -> Option<Law> {
    let machine = iopt_rig::Machine::new(behaviour, iopt_rig::MachineConfig::default())
        .expect("there is memory");
    let domain = machine.domain().expect("there is memory");
    let bench = Bench { machine, domain };
    // The guest has its tables where they are.
    let tables = Table::new(format, bench.machine.tables()).expect("there is memory");
    let place = IovaRange::with_len(Iova::new(GUEST_PAGE), 0x1000).expect("a range of the table");
    let mut claim = tables.claim(place).expect("a range of the table");
    let mut mapper = tables.mapper(&mut claim).expect("a range of the table");
    let mapped = mapper
        .map(place, Oa::new(GUEST_MEMORY), Prot::RW)
        .expect("there is memory");
    let _ = mapped.sync(&NoHardware).expect("the hardware answers");
    guest.set(judge(tables.root())).expect("set once");
    let below = 0x4000_0000..=0x7fff_ffff;
    bench.map(&below, 0x4000_0000);
    let memory = GUEST_MEMORY..=GUEST_MEMORY + 0xfff;
    bench.map(&memory, MEMORY);
    bench.attach(PLAIN, false);
    let reached = bench.machine.access(PLAIN, GUEST_PAGE, Rights::ALL);
    let oa = match reached.expect("nothing is stale yet") {
        Outcome::Translated { oa, .. } => Some(oa),
        Outcome::Refused(_) => None,
    };
    assert_eq!(oa, Some(MEMORY));
    bench.unmap(&memory);
    let again = bench.machine.access(PLAIN, GUEST_PAGE, Rights::ALL);
    again.err().map(|stale| stale.law)
}

#[test]
fn what_an_smmu_combined_of_both_stages_is_flushed_or_seen() {
    let judge = |root: Root| {
        use iopt_reference::arm::{Config, Granule, Half};
        let half = Half::new(root.oa.get(), 48, Granule::K4);
        iopt_reference::Table::Arm(Config::stage1(half, 48))
    };
    let format = Stage1::<12>::new(48, 48).unwrap();
    let law = |change: Change<NestedSmmu>| {
        let guest = Guest::default();
        let broken = Broken::new(NestedSmmu(Arc::clone(&guest)), change);
        memory_is_taken_from_a_guest(broken, &guest, format, judge)
    };
    assert_eq!(law(|_, _, commands| commands), None);
    let without_combined = law(|tag, _, commands| match tag {
        SmmuTag::Combined { .. } => Vec::new(),
        _ => commands,
    });
    assert_eq!(without_combined, Some(Law::Reach));
    let without_second = law(|tag, _, commands| match tag {
        SmmuTag::Stage2 { .. } => Vec::new(),
        _ => commands,
    });
    assert_eq!(without_second, Some(Law::Reach));
    // Both at once: what is combined is made again of the second stage that is still there.
    let guest = Guest::default();
    let hasty = Broken::<_, true> {
        inside: NestedSmmu(Arc::clone(&guest)),
        change: |_, _, commands| commands,
    };
    let law = memory_is_taken_from_a_guest(hasty, &guest, format, judge);
    assert_eq!(law, Some(Law::Reach));
}

#[test]
fn what_a_vtd_unit_combined_of_both_stages_is_flushed_or_seen() {
    let judge = |root: Root| {
        let config = iopt_reference::x86::Config::new(root.oa.get(), root.level.0 + 1);
        iopt_reference::Table::LongMode(config)
    };
    assert!(Pasid::new(PROCESS.into()).is_some());
    let format = vtd::FirstStage::new(47).unwrap();
    let law = |change: Change<NestedVtd>| {
        let guest = Guest::default();
        let broken = Broken::new(NestedVtd(Arc::clone(&guest)), change);
        memory_is_taken_from_a_guest(broken, &guest, format, judge)
    };
    assert_eq!(law(|_, _, commands| commands), None);
    let without_combined = law(|tag, _, commands| match tag {
        VtdTag::Combined { .. } => Vec::new(),
        _ => commands,
    });
    assert_eq!(without_combined, Some(Law::Reach));
    // What tells of combined entries names the whole domain, the second stage with it.
    let without_second = law(|tag, _, commands| match tag {
        VtdTag::SecondStage { .. } => Vec::new(),
        _ => commands,
    });
    assert_eq!(without_second, None);
}
