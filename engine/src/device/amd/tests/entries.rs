//! Features and device tables, without anything attached.

use iopt_formats::context::amd::{
    Gcr3Table, GuestTables, HostTables, InterruptTable, Interrupts, Tracking, Translation,
    UpdateRules,
};
use iopt_formats::context::update::{Unit, plan};
use iopt_formats::walk::Root;
use iopt_formats::{Level, Oa, Rights};

use super::*;
use crate::device::context::{LinkError, Unwritten};

#[test]
fn the_registers_say_what_hardware_can() {
    // Of an emulated IOMMU.
    let capability = 1 << 24 | 1 << 26 | 1 << 27 | 0xf;
    let features = Features::from_registers(capability, 48 << 15 | 40 << 8 | 2 << 5, 0x29d3);
    assert!(features.has_ats);
    assert_eq!((features.host_levels, features.oa_bits), (6, 40));
    assert_eq!((features.guest_levels, features.gcr3_levels), (5, 1));
    assert!(!features.has_guest_default && !features.has_guest_tables());
    assert_eq!(features.usable_pasid_bits(), 0);
    // Without the register its value is nothing.
    let old = Features::from_registers(1 << 26, 0, u64::MAX);
    assert_eq!((old.host_levels, old.guest_levels, old.oa_bits), (4, 0, 32));
    assert!(!old.has_ats && !old.has_dirty);
    // Of a current processor.
    let extended = 0x2465_77ef_a225_4afa;
    let new = Features::from_registers(1 << 27 | 1 << 24, 48 << 8, extended);
    assert_eq!((new.host_levels, new.oa_bits), (6, 48));
    assert_eq!((new.guest_levels, new.gcr3_levels), (4, 2));
    assert_eq!((new.pasid_bits, new.segment_bits), (16, 3));
    assert!(new.has_guest_tables() && !new.has_dirty);
    assert_eq!(new.usable_pasid_bits(), 16);
    let one_level = Features {
        gcr3_levels: 1,
        ..new
    };
    assert_eq!(one_level.usable_pasid_bits(), 9);
    let reserved = Features::from_registers(u32::MAX, u32::MAX, u64::MAX);
    assert_eq!((reserved.host_levels, reserved.guest_levels), (0, 4));
    assert_eq!((reserved.gcr3_levels, reserved.pasid_bits), (1, 20));
    assert_eq!(reserved.oa_bits, 52);
}

fn iommu(segment_bits: u8, last_device_id: u16) -> Arc<AmdIommu<Heap, Queue>> {
    let features = Features {
        segment_bits,
        ..FEATURES
    };
    let planner = Planner {
        has_absent_entries: false,
    };
    let instance = Queue::instance_of(planner);
    AmdIommu::new(features, Arc::new(Heap), instance, last_device_id).expect("memory")
}

/// A1.5.
#[test]
fn a_device_without_a_driver_is_blocked_and_never_passes() {
    // Whole pages, up to the last device.
    for (last, count) in [
        (0, 128_u16),
        (127, 128),
        (128, 256),
        (0x7fff, 0x8000),
        (0xffff, 0x8000),
    ] {
        let iommu = iommu(0, last);
        let counts: Vec<_> = iommu.device_tables().iter().map(|it| it.count()).collect();
        assert_eq!(counts, [u32::from(count)]);
        let index = count.into();
        assert_eq!(iommu.link(count), Err(LinkError::Absent { index }));
        assert_eq!(iommu.dte(count), None);
        for device_id in 0..count {
            let entry = iommu.dte(device_id).expect("inside");
            assert_eq!(entry, Dte::blocked());
            assert_eq!(entry.translation(), Ok(Translation::Blocked));
        }
    }
    // An entry without V would let everything pass.
    let iommu = iommu(0, 127);
    let passing = Dte::pass_through(Rights::ALL).words();
    for words in [[0; 4], [passing[0] & !1, 0, 0, 0]] {
        iommu.write(7, Dte::new(words)).expect("hardware answers");
        assert_eq!(iommu.dte(7), Some(Dte::blocked()));
    }
}

#[test]
fn a_table_that_is_too_long_for_one_piece_has_two() {
    for (last, rest) in [(0xffff, 0x8000), (0x8000, 128)] {
        let iommu = iommu(1, last);
        let counts: Vec<_> = iommu.device_tables().iter().map(|it| it.count()).collect();
        assert_eq!(counts, [0x8000, rest]);
        iommu.link(last).expect("it is the last one");
        let entry = Dte::pass_through(Rights::ALL);
        iommu.write(0x8001, entry).expect("hardware answers");
        assert_eq!(iommu.dte(1), Some(Dte::blocked()));
        assert_eq!(iommu.dte(0x8001), Some(entry));
    }
}

#[test]
fn an_entry_is_written_and_hardware_told_of_it() {
    let world = World::new(FEATURES);
    let entry = Dte::pass_through(Rights::READ);
    world.iommu.write(5, entry).expect("hardware answers");
    assert_eq!(world.dte(5), entry);
    let told = Command::InvalidateDeviceTableEntry { device_id: 5 };
    assert_eq!(world.commands(), [told]);
    // Nothing changes.
    world.iommu.write(5, entry).expect("hardware answers");
    assert_eq!(world.commands(), []);
    let absent = world.iommu.write(0x200, entry);
    assert_eq!(absent, Err(Unwritten::Absent { index: 0x200 }));
    world.queue().set_silent(true);
    let failed = world.iommu.write(5, Dte::pass_through(Rights::ALL));
    assert!(matches!(failed, Err(Unwritten::Quarantined(_))));
    assert!(world.iommu.is_quarantined(5) && !world.iommu.is_quarantined(4));
    assert_eq!(world.dte(5), Dte::blocked());
    world.queue().set_silent(false);
    world.iommu.write(5, entry).expect("hardware answers");
    assert_eq!(
        (world.dte(5), world.iommu.is_quarantined(5)),
        (entry, false)
    );
}

#[test]
fn interrupts_and_translations_are_changed_apart_from_each_other() {
    let world = World::new(FEATURES);
    let table = InterruptTable::new(Oa::new(0x1234_5000), 9).expect("legal");
    let remapped = Dte::blocked().with_interrupts(Interrupts::Remapped(table));
    let write = |entry| world.iommu.write_interrupts(5, entry);
    write(remapped).expect("hardware answers");
    let device_id = 5;
    let told = [
        Command::InvalidateDeviceTableEntry { device_id },
        Command::InvalidateInterruptTable { device_id },
    ];
    assert_eq!(world.commands(), told);
    assert_eq!(world.dte(5), remapped);
    for entry in [Dte::pass_through(Rights::ALL), Dte::blocked()] {
        world.iommu.write(5, entry).expect("hardware answers");
        assert_eq!(world.dte(5), entry.with_interrupts_of(remapped));
    }
    // What another entry says of memory is nothing.
    let passing = Dte::pass_through(Rights::ALL).with_interrupts(Interrupts::Aborted);
    write(passing).expect("hardware answers");
    assert_eq!(world.dte(5), Dte::blocked().with_interrupts_of(passing));
    // What hardware did not confirm is told again, though nothing is to be stored, and though an update of what
    // is not theirs came in between.
    world.queue().set_silent(true);
    assert!(write(remapped).is_err());
    assert_eq!(world.dte(5), remapped);
    world.queue().set_silent(false);
    let entry = Dte::pass_through(Rights::ALL);
    world.iommu.write(5, entry).expect("hardware answers");
    world.commands();
    write(remapped).expect("hardware answers");
    assert_eq!(world.commands(), told);
    assert_eq!(world.dte(5), entry.with_interrupts_of(remapped));
}

/// The highest page that entries can name.
const HIGH: u64 = 0xf_ffff_ffff_f000;

/// Entries of all kinds, by what requests without a PASID meet.
fn entries() -> [Dte; 8] {
    let tables = |oa, level| {
        let root = Root {
            oa: Oa::new(oa),
            level: Level(level),
        };
        HostTables::new(root, Tracking::None).expect("it is aligned and low enough")
    };
    let guest = |oa, levels| {
        let table = Gcr3Table::new(Oa::new(oa), 2, levels).expect("legal");
        GuestTables::new(table)
    };
    let all = |oa, levels| guest(oa, levels).with_requests_without_pasid();
    [
        Dte::blocked(),
        Dte::pass_through(Rights::ALL),
        Dte::host(tables(0x1000, 3)).with_domain_id(1),
        Dte::host(tables(HIGH, 5)).with_domain_id(0xfffe).with_ats(),
        Dte::guest(all(0x1000, 4)).with_domain_id(2),
        Dte::guest(all(HIGH, 5)).with_domain_id(3).with_ats(),
        Dte::guest(guest(0x1000, 4)).with_domain_id(2),
        Dte::guest(all(0x7000, 4).with_host(tables(0x9000, 2))).with_domain_id(4),
    ]
}

/// A3.14: between any two stores of a word hardware finds the old entry, the new one, or one that blocks.
#[test]
fn hardware_never_meets_a_mixture_though_words_are_stored() {
    let rules = UpdateRules { unit: Unit::Bytes8 };
    let table = InterruptTable::new(Oa::new(0xffff_ffff_ffc0), 11).expect("legal");
    let (mut breaking, mut hitless) = (0, 0);
    for own in [Interrupts::Forwarded, Interrupts::Remapped(table)] {
        for from in entries() {
            let from = from.with_interrupts(own);
            for to in entries() {
                let new = to.with_interrupts_of(from);
                // What the new entry says of interrupts itself is none of its business.
                let update = plan(&rules, &from.words(), &to.words());
                let check = |now: [u64; 4]| {
                    let found = Dte::new(now);
                    assert_ne!(now[0] & 1, 0, "V is never cleared");
                    assert_eq!(found.interrupts(), from.interrupts());
                    let met = |entry: Dte| {
                        let used = Dte::used(entry.words());
                        core::array::from_fn::<_, 4, _>(|word| entry.words()[word] & used[word])
                    };
                    let is_known = met(found) == met(from) || met(found) == met(new);
                    let is_blocked = found.translation() == Ok(Translation::Blocked);
                    assert!(is_known || is_blocked, "{from:x?} -> {to:x?}: {now:x?}");
                };
                let mut words = from.words();
                for step in update.steps() {
                    let stores: Vec<_> = step.stores().collect();
                    assert!(stores.iter().all(|store| store.words.len() == 1));
                    // Any of a step's stores may have become visible.
                    for visible in 0..1_u32 << stores.len() {
                        let mut now = words;
                        for (number, store) in stores.iter().enumerate() {
                            if visible >> number & 1 != 0 {
                                now[store.first] = store.words[0];
                            }
                        }
                        check(now);
                    }
                    for store in stores {
                        words[store.first] = store.words[0];
                    }
                }
                assert_eq!(words, new.words());
                breaking += usize::from(update.is_breaking());
                hitless += usize::from(update.is_hitless());
            }
        }
    }
    assert!(breaking > 60 && hitless > 10, "{breaking} {hitless}");
}
