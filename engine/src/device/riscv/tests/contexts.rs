//! What contexts say, and what hardware is told when they change.

use alloc::vec::Vec;

use iopt_formats::context::riscv::{ContextFormat, Ddtp, DeviceOptions, Misconfigured};
use iopt_formats::{Format as _, Level};

use super::*;
use crate::device::NewDomainError;
use crate::device::context::Architecture as _;
use crate::device::riscv::changes::{Old, device_context, process_context};
use crate::device::riscv::domain::common;
use crate::device::riscv::features::{BARE, FIRST_STAGES, SECOND_STAGES};

#[test]
fn the_registers_say_what_hardware_can() {
    // Of an emulated IOMMU.
    let features = Features::new(0x78_e2cf_0f10, 2, 3);
    assert!(features.has_ats() && !features.has_updates());
    assert_eq!(features.registers.context_format(), ContextFormat::Extended);
    assert!(features.has_process_levels(1) && !features.has_process_levels(2));
    assert_eq!(features.process_bits(), 8);
    assert_eq!(features.process_levels(5), Some(1));
    // The largest one that there is.
    assert_eq!(features.process_levels(20), Some(1));
    for format in [Sv::sv39(), Sv::sv48(), Sv::sv57()] {
        assert!(features.fits_first(&format) && !features.fits_first(&format.with_svpbmt()));
        assert!(!features.fits_first(&format.with_dirty()));
    }
    let small = Features::new(SV39 | SV48X4 | AMO_HWAD | PD17 | 40 << 32, 0, 1);
    assert!(!small.has_ats() && small.has_updates());
    assert_eq!(
        (small.process_bits(), small.process_levels(8)),
        (17, Some(2))
    );
    let narrow = Sv::sv39().with_oa_bits(40).expect("legal");
    assert!(small.fits_first(&narrow.with_dirty()) && !small.fits_first(&Sv::sv39()));
    assert!(!small.fits_first(&Sv::sv48().with_oa_bits(40).expect("legal")));
    assert!(small.fits_second(&Svx4::sv48x4().with_oa_bits(40).expect("legal")));
    assert!(!small.fits_second(&Svx4::sv39x4().with_oa_bits(40).expect("legal")));
    // Process directories lead to tables of a first stage, of which there are none.
    assert_eq!(Features::new(SV48X4 | PD8 | PAS, 0, 1).process_bits(), 0);
}

#[test]
fn hardware_that_reads_other_bytes_or_other_addresses_is_refused() {
    let new = |features| {
        let instance = Recorder::<Command>::instance_of(Planner::default());
        RiscvIommu::new(features, Arc::new(Heap), instance).map(|_| ())
    };
    let big = Features::new(CAPABILITIES, 1, 1);
    assert_eq!(new(big), Err(RiscvIommuError::BigEndian));
    // Guests of 32 bits.
    let narrow = Features::new(CAPABILITIES | 1 << 8 | 1 << 16, 4, 1);
    assert_eq!(new(narrow), Err(Misconfigured::SupervisorWidth.into()));
    for levels in [0, 4] {
        let error = Misconfigured::DirectoryLevels { levels };
        assert_eq!(
            new(Features::new(CAPABILITIES, 0, levels)),
            Err(error.into())
        );
    }
    assert_eq!(new(FEATURES), Ok(()));
}

/// A1.5: whoever has no driver is blocked, before it is linked and after.
#[test]
fn devices_come_blocked_in_directories_of_all_kinds() {
    for (extended, levels, bits) in [
        (0, 1, 7),
        (0, 2, 16),
        (0, 3, 24),
        (MSI_FLAT, 1, 6),
        (MSI_FLAT, 2, 15),
        (MSI_FLAT, 3, 24),
    ] {
        let world = World::new(Features::new(CAPABILITIES | extended, 0, levels));
        let Ddtp::Directory(directory) = world.unit.ddtp() else {
            panic!("there is a directory")
        };
        assert_eq!(
            (directory.levels(), directory.device_id_bits()),
            (levels, bits)
        );
        let last = (1 << bits) - 1;
        assert_eq!(world.unit.words(last).is_some(), levels == 1);
        world.unit.link(last).expect("hardware answers");
        assert_eq!(world.words(last), [0; 8]);
        let everything = Command::IodirInvalDdt { device: None };
        let told = if levels == 1 {
            vec![]
        } else {
            vec![everything]
        };
        assert_eq!(world.commands(), told);
        let identity = world.unit.features().registers;
        let identity = DeviceContext::new(
            FirstStage::Tables(FirstStageTables::Bare),
            SecondStage::Bare,
            DeviceOptions::default(),
            identity,
        );
        let identity = identity.expect("legal");
        world
            .unit
            .write(last, Some(&identity))
            .expect("hardware answers");
        assert_eq!(world.context(last), Some(identity));
        // The neighbour is another one.
        assert_eq!(world.words(last - 1), [0; 8]);
        world.unit.write(last, None).expect("hardware answers");
        assert_eq!(world.context(last), None);
        if bits < 24 {
            assert!(world.unit.link(last + 1).is_err());
        }
    }
}

/// The guidelines for invalidations, device contexts and process contexts.
#[test]
fn what_is_told_of_a_change_depends_on_what_was_there() {
    let device = |old| device_context(7, old).collect::<Vec<_>>();
    let ddt = forget(7);
    let vma = |gscid, pscid: Option<u32>| Command::IotinvalVma {
        gscid,
        pscid: pscid.map(|id| Narrow::new(id).expect("20 bits")),
        target: None,
    };
    let gvma = |gscid| Command::IotinvalGvma {
        gscid,
        target: None,
    };
    assert_eq!(device(Old::Nothing), [ddt]);
    assert_eq!(device(Old::Process(5)), [ddt, vma(None, Some(5))]);
    assert_eq!(device(Old::Host), [ddt, vma(None, None)]);
    assert_eq!(
        device(Old::Guest(9)),
        [ddt, vma(Some(9), None), gvma(Some(9))]
    );
    assert_eq!(device(Old::Unknown), [ddt, vma(None, None), gvma(None)]);
    let pdt = |id| Command::IodirInvalPdt {
        device: Narrow::new(id).expect("24 bits"),
        process: pasid(3),
    };
    let process = process_context(&[7, 8], pasid(3), Old::Process(5));
    assert_eq!(
        process.collect::<Vec<_>>(),
        [pdt(7), pdt(8), vma(None, Some(5))]
    );

    // Of contexts as they stand in memory.
    let features = EXTENDED.registers;
    let of =
        |words: [u64; 8]| Old::of_device(DeviceContext::decode(words, features).expect("legal"));
    assert_eq!(of([0; 8]), Old::Nothing);
    assert_eq!(of([1, 0, 0, 0, 0, 0, 0, 0]), Old::Nothing);
    assert_eq!(of([1, 0, 5 << 12, 9 << 60, 0, 0, 0, 0]), Old::Process(5));
    assert_eq!(of([0x221, 0, 0, 1 << 60, 0, 0, 0, 0]), Old::Host);
    assert_eq!(of([1, 8 << 60 | 9 << 44, 0, 0, 0, 0, 0, 0]), Old::Guest(9));
    assert_eq!(
        of([1, 8 << 60 | 9 << 44, 5 << 12, 9 << 60, 0, 0, 0, 0]),
        Old::Guest(9)
    );
}

/// The table at the head of the module, of devices without PASIDs.
#[test]
fn a_device_context_leads_to_the_domain_itself_without_pasids() {
    for features in [FEATURES, EXTENDED] {
        let world = World::new(features);
        let device = world.device(&[8, 9], false, 0);
        let (one, guest) = (first(), second());
        let both = || {
            assert_eq!(world.words(8), world.words(9));
            world.words(8)
        };
        assert_eq!(both(), [0; 8]);
        attach(&device, None, &Arc::new(Domain::identity())).expect("it fits");
        assert_eq!(both(), [1, 0, 0, 0, 0, 0, 0, 0]);
        attach(&device, None, &one).expect("it fits");
        let [tc, iohgatp, ta, fsc, rest @ ..] = both();
        assert_eq!((tc, iohgatp, rest), (1, 0, [0; 4]));
        assert_eq!(ta, u64::from(world.id(&one)) << 12);
        // Sv48.
        assert_eq!(fsc >> 60, 9);
        attach(&device, None, &guest).expect("it fits");
        let [tc, iohgatp, ta, fsc, ..] = both();
        assert_eq!((tc, ta, fsc), (1, 0, 0));
        // Sv39x4.
        assert_eq!(
            (iohgatp >> 60, iohgatp >> 44 & 0xffff),
            (8, world.id(&guest).into())
        );
        let context = world.context(8).expect("it is valid");
        let SecondStage::Svx4 { root, .. } = context.second_stage() else {
            panic!("{context:?}")
        };
        assert_eq!(root.level, Level(2));
        attach(&device, None, &Arc::new(Domain::blocked())).expect("nothing is needed");
        assert_eq!(both(), [0; 8]);
        world.assert_unused();
    }
}

/// Likewise, of devices with PASIDs.
#[test]
fn a_device_context_leads_to_processes_with_pasids() {
    for (features, bits, levels) in [(FEATURES, 8, 1), (EXTENDED, 17, 2), (FEATURES, 20, 3)] {
        let world = World::new(features);
        let device = world.device(&[8, 9], false, bits);
        let (one, other) = (first(), first());
        let high = pasid((1 << bits) - 1);
        let default = || device.process_words(0, pasid(0)).expect("it is there");
        let directory = || {
            assert_eq!(world.words(8), world.words(9));
            let context = world.context(8).expect("it is valid");
            let FirstStage::Directory(directory) = context.first_stage() else {
                panic!("{context:?}")
            };
            assert!(directory.has_default_process());
            assert_eq!(directory.levels(), levels);
            world.words(8)
        };
        assert_eq!((world.words(8), default()), ([0; 8], [0; 2]));
        attach(&device, None, &Arc::new(Domain::identity())).expect("it fits");
        let with_processes = directory();
        assert_eq!(default(), [1, 0]);
        world.commands();
        attach(&device, Some(high), &one).expect("it fits");
        let [ta, fsc] = device.process_words(0, high).expect("it is there");
        assert_eq!(ta, u64::from(world.id(&one)) << 12 | 1);
        assert_eq!(fsc >> 60, 9);
        // Requests without a PASID go on meanwhile: their contexts are not touched.
        assert_eq!((directory(), default()), (with_processes, [1, 0]));
        let is_for_devices = |command: &Command| matches!(command, Command::IodirInvalDdt { .. });
        let announced = world.commands().into_iter().filter(is_for_devices).count();
        assert_eq!(announced, if levels == 1 { 0 } else { 2 });
        attach(&device, None, &other).expect("it fits");
        assert_eq!(directory(), with_processes);
        assert_eq!(default()[0], u64::from(world.id(&other)) << 12 | 1);
        device.block(None);
        assert_eq!((directory(), default()), (with_processes, [0; 2]));
        device.block(Some(high));
        assert_eq!(world.words(8), [0; 8]);
        assert_eq!(device.process_words(0, high), Some([0; 2]));
        attach(&device, Some(high), &one).expect("it fits");
        assert_eq!((directory(), default()), (with_processes, [0; 2]));
        device.block(Some(high));
        let guest = second();
        attach(&device, None, &guest).expect("no PASID is in the way");
        assert_eq!(world.context(8).expect("valid").first_stage(), BARE);
        attach(&device, None, &one).expect("it fits");
        assert_eq!(directory(), with_processes);
        device.release();
        assert_eq!((world.words(8), default()), ([0; 8], [0; 2]));
        world.assert_unused();
    }
}

#[test]
fn the_commands_of_a_commit_are_those_of_the_guidelines() {
    let world = World::new(FEATURES);
    let device = world.device(&[8], false, 0);
    let (one, other) = (first(), first());
    let keeps = world.device(&[9], false, 0);
    for domain in [&one, &other] {
        // Another device has it too, so that leaving it takes no command.
        attach(&keeps, None, domain).expect("it fits");
        attach(&device, None, domain).expect("it fits");
    }
    let two = world.device(&[10, 11], false, 0);
    attach(&two, None, &one).expect("it fits");
    let id = |domain| Narrow::new(world.id(domain)).expect("20 bits");
    let vma = |pscid| Command::IotinvalVma {
        gscid: None,
        pscid: Some(pscid),
        target: None,
    };
    world.commands();
    // Two words change, so that the context is not valid meanwhile.
    attach(&device, None, &one).expect("it fits");
    let told = [forget(8), vma(id(&other)), forget(8), vma(id(&other))];
    assert_eq!(world.commands(), told);
    // The same again: nothing changes.
    attach(&device, None, &one).expect("it fits");
    assert_eq!(world.commands(), []);
    device.block(None);
    assert_eq!(world.commands(), [forget(8), vma(id(&one))]);
    attach(&device, None, &one).expect("it fits");
    assert_eq!(world.commands(), [forget(8)]);
    device.block(None);
    world.commands();
    let one_id = id(&one);
    two.block(None);
    let told = [10, 11].map(|device| [forget(device), vma(one_id)]);
    let mut told = told.concat();
    // The last one: the domain's own translations go, before its number is another's.
    told.push(vma(one_id));
    assert_eq!(world.commands(), told);
}

#[test]
fn flags_that_hardware_sets_are_wanted_where_it_can() {
    /// GADE and SADE.
    const SECOND: u64 = 1 << 7;
    const FIRST: u64 = 1 << 8;
    let world = World::new(EXTENDED);
    let dirty = Domain::first_stage(Sv::sv39().with_dirty(), Arc::new(Heap), MapSide::Silent);
    let dirty = Arc::new(dirty.expect("memory"));
    let dirty_guest =
        Domain::second_stage(Svx4::sv39x4().with_dirty(), Arc::new(Heap), MapSide::Silent);
    let dirty_guest = Arc::new(dirty_guest.expect("memory"));
    let device = world.device(&[8], false, 0);
    attach(&device, None, &dirty).expect("it fits");
    assert_eq!(world.words(8)[0], 1 | FIRST);
    attach(&device, None, &dirty_guest).expect("it fits");
    assert_eq!(world.words(8)[0], 1 | SECOND);
    attach(&device, None, &first()).expect("it fits");
    assert_eq!(world.words(8)[0], 1);
    let device = world.device(&[9], false, 8);
    attach(&device, Some(pasid(5)), &dirty).expect("it fits");
    // V, PDTV, DPE.
    assert_eq!(world.words(9)[0], 0x221 | FIRST);
    let words = world.words(9);
    attach(&device, Some(pasid(5)), &first()).expect("it fits");
    assert_eq!(world.words(9), words);
    let none = World::new(FEATURES);
    let device = none.device(&[9], false, 8);
    let refused = attach(&device, Some(pasid(5)), &dirty);
    assert!(matches!(refused, Err(AttachFailure::Foreign)));
    attach(&device, Some(pasid(5)), &first()).expect("it fits");
    assert_eq!(none.words(9)[0], 0x221);
}

#[test]
fn domains_get_the_format_that_all_their_instances_have() {
    let walked = |all: &[Features]| {
        let features: Vec<_> = all.iter().collect();
        let first = common(FIRST_STAGES, &features, Features::fits_first);
        let second = common(SECOND_STAGES, &features, Features::fits_second);
        let first = first.map(|format| (1, format.mode(), format.oa_bits(), format.has_svpbmt()));
        first.or(second.map(|format| (2, format.mode(), format.oa_bits(), format.has_svpbmt())))
    };
    let of = |capabilities| Features::new(capabilities, 0, 1);
    let svpbmt = 1 << 15;
    assert_eq!(walked(&[FEATURES]), Some((1, 9, 56, false)));
    assert_eq!(walked(&[of(CAPABILITIES | svpbmt)]), Some((1, 9, 56, true)));
    let both = [of(CAPABILITIES | svpbmt), of(SV39 | SV39X4 | 44 << 32)];
    assert_eq!(walked(&both), Some((1, 8, 44, false)));
    let guests = of(SV48X4 | SV39X4 | PAS);
    assert_eq!(walked(&[guests, FEATURES]), Some((2, 9, 56, false)));
    let memory = Arc::new(Heap);
    let made = |features: &[&Features]| {
        domain::translate::<Heap, Queue>(&memory, features, MapSide::Silent)
    };
    assert!(made(&[&FEATURES]).is_ok() && made(&[&guests, &FEATURES]).is_ok());
    for none in [&[of(SV48X4 | PAS), of(SV39X4 | PAS)][..], &[of(PAS)], &[]] {
        assert_eq!(walked(none), None);
        let features: Vec<_> = none.iter().collect();
        assert!(matches!(made(&features), Err(NewDomainError::Unsupported)));
    }
}

#[test]
fn requesters_of_many_devices_have_segments() {
    let world = World::new(Features::new(CAPABILITIES, 0, 3));
    let qualified = Function {
        segment: Some(0x12),
        requester: 0x3456,
    };
    assert_eq!(world.unit.function(0x12_3456), qualified);
    let world = World::new(FEATURES);
    assert_eq!(world.unit.function(0x3456), function(0x3456));
}

/// A3.7: whoever caches what is not valid is told of what is mapped.
#[test]
fn domains_are_told_of_maps_where_hardware_caches_what_is_not_valid() {
    let memory = Arc::new(Heap);
    for needs_map_invalidation in [false, true] {
        let planner = Planner {
            needs_map_invalidation,
            ..Planner::default()
        };
        let instance = Recorder::instance_of(planner);
        let world = World {
            unit: RiscvIommu::new(FEATURES, Arc::new(Heap), instance).expect("memory"),
            switches: Arc::new(Switches(Mutex::new(&LOG, Vec::new()))),
        };
        let device = world.device(&[8], false, 0);
        let made = Riscv::<Heap, Queue>::translate(&memory, &[&device]).expect("it fits all");
        let made = Arc::new(made);
        attach(&device, None, &made).expect("it fits");
        let id = world.id(&made);
        world.commands();
        let range = iopt_formats::IovaRange::with_len(iopt_formats::Iova::new(0x1000), 0x1000);
        let region = crate::device::DirectRegion {
            range: range.expect("a page"),
            oa: iopt_formats::Oa::new(0x1000),
            prot: iopt_formats::Prot::RW,
        };
        made.map_direct(region).expect("nothing is there");
        let is_about = |command: &Command| {
            matches!(command, Command::IotinvalVma { pscid: Some(pscid), .. }
                if pscid.get() == id)
        };
        let is_told = world.commands().iter().any(is_about);
        assert_eq!(is_told, needs_map_invalidation);
        let silent = attach(&device, None, &first());
        assert_eq!(silent.is_err(), needs_map_invalidation);
    }
}
