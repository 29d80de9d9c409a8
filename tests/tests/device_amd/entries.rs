//! Entries written live: every store that hardware could see, and the words of a real table again.

use std::fs::File;
use std::io::Read as _;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use flate2::read::GzDecoder;
use iopt::device::Hwpt;
use iopt::device::amd::{AmdIommu, Features};
use iopt_formats::context::amd::{
    DeviceTable, Dte, Gcr3Entry, Gcr3Table, GuestTables, HostTables, InterruptTable, Interrupts,
    Tracking, Translation,
};
use iopt_formats::walk::Root;
use iopt_formats::{Level, Oa, PageSize, Rights};
use iopt_reference::Memory as _;
use iopt_reference::context::{Binding, ContextFault};
use iopt_rig::{Amd, Machine, MachineConfig, Physical};
use iopt_sim::{Attachment, Memory as _};
use serde_json::Value;

use crate::world::{Domain, IDS, Version, World};

type Bound = Result<Binding, ContextFault>;
/// What was found, one after the other.
type Seen<T> = Arc<Mutex<Vec<T>>>;

/// Whether nothing passes.
fn is_blocked(bound: &Bound) -> bool {
    matches!(bound, Err(_) | Ok(Binding::Blocked))
}

fn words(memory: &Physical, table: DeviceTable, id: u16) -> [u64; 4] {
    let at = table.entry(id).unwrap().get();
    std::array::from_fn(|word| memory.read64(at + 8 * word as u64).unwrap())
}

/// Entries of all kinds. Guest CR3 tables lead to page tables.
fn kinds(memory: &Physical) -> [Dte; 9] {
    let page = || memory.take(PageSize::KIB_4).unwrap();
    let host = |level| {
        let root = Root {
            oa: page(),
            level: Level(level),
        };
        HostTables::new(root, Tracking::None).unwrap()
    };
    let guest = |paging_levels| {
        let table = page();
        let entry = Gcr3Entry::new(page()).unwrap().encode();
        assert!(memory.write64(table.get(), entry));
        GuestTables::new(Gcr3Table::new(table, 1, paging_levels).unwrap())
    };
    let all = |paging_levels| guest(paging_levels).with_requests_without_pasid();
    [
        Dte::blocked(),
        Dte::pass_through(Rights::ALL),
        Dte::pass_through(Rights::READ),
        Dte::host(host(3)).with_domain_id(1),
        Dte::host(host(4)).with_domain_id(0xfffe).with_ats(),
        Dte::guest(all(4)).with_domain_id(2),
        Dte::guest(all(5)).with_domain_id(3).with_ats(),
        Dte::guest(guest(4)).with_domain_id(2),
        Dte::guest(all(4).with_host(host(2))).with_domain_id(4),
    ]
}

/// A3.14: whatever an entry becomes, after each single store hardware finds the old one, the new one, or one that
/// blocks, and the same interrupts.
#[test]
fn an_entry_is_old_new_or_blocking_after_each_store() {
    let world = World::new(1, false, 0);
    let memory = Arc::clone(world.rig.memory());
    let [table] = world.iommu.device_tables() else {
        panic!("one piece")
    };
    let (id, table) = (0x42, *table);
    let kinds = kinds(&memory);
    let remapping = InterruptTable::new(Oa::new(0xffff_ffff_ffc0), 11).unwrap();
    let mut count = 0;
    for interrupts in [Interrupts::Forwarded, Interrupts::Remapped(remapping)] {
        let own = Dte::blocked().with_interrupts(interrupts);
        world.iommu.write_interrupts(id, own).unwrap();
        for from in kinds {
            for to in kinds {
                world.iommu.write(id, from).unwrap();
                let seen: Seen<([u64; 4], Bound)> = Arc::default();
                let look = world.binding(id.into(), 0);
                let old = look();
                {
                    let (seen, memory) = (Arc::clone(&seen), Arc::clone(&memory));
                    let look = move || {
                        let found = (words(&memory, table, id), look());
                        seen.lock().unwrap().push(found);
                    };
                    world.watch.set(Some(Arc::new(look)));
                }
                // What the new one says of interrupts is nobody's business.
                let other = to.with_interrupts(Interrupts::Aborted);
                world.iommu.write(id, other).unwrap();
                world.watch.set(None);
                let new = world.binding(id.into(), 0)();
                assert_eq!(
                    words(&memory, table, id),
                    to.with_interrupts_of(own).words()
                );
                for (words, bound) in seen.lock().unwrap().iter() {
                    assert_eq!(words[0] & 1, 1, "V is never cleared");
                    assert_eq!(Dte::new(*words).with_interrupts_of(own).words(), *words);
                    let is_known = *bound == old || *bound == new || is_blocked(bound);
                    assert!(is_known, "{from:x?} -> {to:x?}: {words:x?}");
                    count += 1;
                }
            }
        }
    }
    assert!(count > 300, "{count}");
}

/// The same of a device whose domain changes, beside a PASID or alone: nor does a guest CR3 table ever lead to tables
/// that the entry describes wrongly.
#[test]
fn a_device_is_led_where_it_was_or_shall_be_or_nowhere() {
    let world = World::new(3, false, 12).owned();
    let spaces = [Version::One, Version::Two, Version::Two, Version::Wide]
        .map(|version| world.space(version as u64 + 1, version));
    let beside = world.space(9, Version::Two);
    let identity: Arc<dyn Hwpt> = Arc::new(Domain::identity());
    let attach = |kind: usize| match kind {
        0 => {
            world.detach(1, 0);
            true
        }
        1 => world.attach(1, 0, &identity, Attachment::Identity).is_ok(),
        kind => {
            let space = &spaces[kind - 2];
            let attachment = Attachment::Domain(space.number);
            world.attach(1, 0, &space.hwpt, attachment).is_ok()
        }
    };
    let mut count = 0;
    for has_pasid in [false, true] {
        if has_pasid {
            attach(0);
            world.attach_space(1, 5, &beside);
        }
        for from in 0..6 {
            for to in 0..6 {
                // Version 1, and others than four levels, are not for whoever has PASIDs.
                let is_one = |kind| kind == 2 || kind == 5;
                if has_pasid && (is_one(from) || is_one(to)) {
                    continue;
                }
                assert!(attach(from));
                let places = IDS[1].iter().flat_map(|&id| [(id, 0), (id, 5)]);
                let looks: Vec<_> = places.map(|(id, place)| world.binding(id, place)).collect();
                let old: Vec<Bound> = looks.iter().map(|look| look()).collect();
                let seen: Seen<Vec<Bound>> = Arc::default();
                {
                    let seen = Arc::clone(&seen);
                    let look = move || {
                        let now = looks.iter().map(|look| look()).collect();
                        seen.lock().unwrap().push(now);
                    };
                    world.watch.set(Some(Arc::new(look)));
                }
                assert!(attach(to), "{from} -> {to}");
                world.watch.set(None);
                let seen = seen.lock().unwrap();
                let new = seen.last().unwrap_or(&old);
                let place = |index: usize| &new[index];
                assert_eq!(place(0), place(2), "all IDs of a device are led alike");
                assert_eq!(is_blocked(place(0)), to == 0);
                assert_eq!(is_blocked(place(1)), !has_pasid);
                for bound in seen.iter().flat_map(|now| now.iter().zip(&old).zip(new)) {
                    let ((now, old), new) = bound;
                    let is_known = now == old || now == new || is_blocked(now);
                    assert!(is_known, "{from} -> {to}: {now:x?}");
                    count += 1;
                }
            }
        }
    }
    assert!(count > 500, "{count}");
}

fn unpack(file: &str) -> Vec<u8> {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let mut bytes = Vec::new();
    let packed = File::open(root.join("fixtures/tables").join(file)).unwrap();
    GzDecoder::new(packed).read_to_end(&mut bytes).unwrap();
    bytes
}

/// The device table of Linux, described, and written by the engine into one of its own: each entry has the same words.
#[test]
fn the_entries_of_linux_are_written_in_the_same_words() {
    /// TV: free in an entry that blocks, because Linux lets it stand without rights.
    const TRANSLATION_VALID: u64 = 2;

    let sidecar: Value = serde_json::from_slice(&unpack("amd-a.json.gz")).unwrap();
    let register = sidecar["registers"]["DEVTAB"].as_str().unwrap();
    let register = u64::from_str_radix(register.trim_start_matches("0x"), 16).unwrap();
    let theirs = DeviceTable::from_register(register).unwrap();
    let pages = unpack("amd-a.pages.gz");
    let page = |address: u64| {
        let mut records = pages.chunks_exact(8 + 0x1000);
        records.find(|record| record[..8] == (address & !0xfff).to_le_bytes())
    };
    let words_of = |id: u16| -> [u64; 4] {
        let at = theirs.entry(id).unwrap().get();
        let page = page(at).unwrap();
        let start = 8 + (at & 0xfff) as usize;
        std::array::from_fn(|word| {
            let bytes = &page[start + 8 * word..][..8];
            u64::from_le_bytes(bytes.try_into().unwrap())
        })
    };
    let machine = Machine::new(Amd::default(), MachineConfig::default()).unwrap();
    let features = Features::from_registers(1 << 27, 40 << 8, 0x29d3);
    let last = u16::try_from(theirs.count() - 1).unwrap();
    let memory = Arc::new(machine.tables());
    let iommu = AmdIommu::new(features, memory, Arc::clone(machine.instance()), last).unwrap();
    let [ours] = iommu.device_tables() else {
        panic!("one piece")
    };
    assert_eq!(ours.register() & 0xfff, theirs.register() & 0xfff);
    let (mut made, mut translated) = (0, 0);
    for id in 0..=last {
        let entry = Dte::new(words_of(id));
        let written = || words(machine.memory(), *ours, id);
        if !entry.is_valid() {
            // Linux never made it: everything passes there. Here nothing does.
            assert_eq!(entry.words(), [0; 4]);
            assert_eq!(written(), [1, 0, 0, 0]);
            continue;
        }
        let translation = entry.translation().unwrap();
        let described = Dte::of(translation).with_domain_id(entry.domain_id());
        let interrupts = Dte::blocked().with_interrupts_of(entry);
        iommu.write_interrupts(id, interrupts).unwrap();
        iommu.write(id, described).unwrap();
        let mut expected = entry.words();
        if translation == Translation::Blocked {
            expected[0] &= !TRANSLATION_VALID;
        }
        assert_eq!(written(), expected, "device {id:#x}");
        made += 1;
        translated += usize::from(matches!(translation, Translation::Host(_)));
    }
    assert_eq!(made, sidecar["streams"].as_array().unwrap().len());
    assert!(translated > 3);
}
