//! Contexts written live: what hardware could see whenever it is told, and the contexts of real directories again.

use std::fmt::Debug;
use std::fs::File;
use std::io::Read as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use flate2::read::GzDecoder;
use iopt::device::context::EntryTable;
use iopt::device::riscv::Features;
use iopt_formats::context::riscv::{
    self, Ddtp, DeviceContext, DeviceDirectory, DeviceOptions, FirstStage, FirstStageTables,
    MsiTable, ProcessDirectory, ProcessOptions, SecondStage, UpdateRules,
};
use iopt_formats::context::update::Rules;
use iopt_formats::riscv::{Sv, Svx4};
use iopt_formats::walk::Root;
use iopt_formats::{Format as _, Oa};
use iopt_reference::{Memory as _, PageMap};
use iopt_rig::{MachineConfig, Riscv};
use serde_json::Value;

use crate::world::{Rig, Unit};

/// Everything, with addresses of 56 bits; bit 22 is `MSI_FLAT`.
const CAPABILITIES: u64 = !0x3f_0000_0000 | 56 << 32;
const EXTENDED: riscv::Features = riscv::Features::new(CAPABILITIES, 0);
const BASE: riscv::Features = riscv::Features::new(CAPABILITIES & !(1 << 22), 0);
/// PPN of entries above the last level.
const PAGE_NUMBER: u64 = 0x003f_ffff_ffff_fc00;
const BARE: FirstStageTables = FirstStageTables::Bare;

fn machine() -> Arc<Rig> {
    Rig::new(Riscv::default(), MachineConfig::default()).unwrap()
}

/// Writes an entry and looks, whenever hardware is told, at what it would fetch.
fn check<const N: usize, T: PartialEq + Debug>(
    from: [u64; N],
    to: [u64; N],
    decode: impl Fn([u64; N]) -> Option<T>,
) where
    UpdateRules: Rules<N>,
{
    let machine = machine();
    let memory = Arc::new(machine.tables());
    let mut table: EntryTable<_, N> = EntryTable::new(&memory, 4, &from).unwrap();
    let at = Oa::new(table.oa().get() + 8 * N as u64);
    let found = || -> [u64; N] {
        let words = machine.memory().words(at, N).unwrap();
        std::array::from_fn(|word| u64::from_le(words[word].load(Ordering::SeqCst)))
    };
    let (old, new) = (decode(from), decode(to));
    let mut before = from;
    let (mut sync_count, mut was_invalid) = (0, false);
    let is_valid = |words: &[u64; N]| words[0] & 1 != 0;
    let written = table.write(&UpdateRules, 1, &to, || {
        let now = found();
        // Old, new or not valid, never a mixture.
        let decoded = decode(now);
        let is_whole = decoded.is_none() || decoded == old || decoded == new;
        assert!(is_whole, "{from:x?} -> {now:x?} -> {to:x?}");
        // From one valid context to another a single word changes, of those that are read.
        if is_valid(&before) && is_valid(&now) {
            let (was_read, is_read) = (UpdateRules.used(&before), UpdateRules.used(&now));
            let changes = |word: &usize| {
                (before[*word] ^ now[*word]) & (was_read[*word] | is_read[*word]) != 0
            };
            let changed = (0..N).filter(|word| changes(word)).count();
            assert!(changed <= 1, "{before:x?} -> {now:x?}");
        }
        was_invalid |= !is_valid(&now);
        before = now;
        sync_count += 1;
        Ok(())
    });
    assert_eq!(written, Ok(sync_count), "{from:x?} -> {to:x?}");
    assert_eq!(found(), to);
    assert_eq!(sync_count == 0, from == to);
    // Where more than one word is another one of what is read, hardware is told of a context that is not valid.
    let (was_read, is_read) = (UpdateRules.used(&from), UpdateRules.used(&to));
    let changes = |word: &usize| (from[*word] ^ to[*word]) & was_read[*word] & is_read[*word] != 0;
    if is_valid(&from) && is_valid(&to) && (1..N).filter(changes).count() > 1 {
        assert!(was_invalid, "{from:x?} -> {to:x?}");
    }
}

fn sv(format: Sv, root: u64) -> FirstStageTables {
    let level = format.geometry().top;
    let oa = Oa::new(root);
    FirstStageTables::Sv {
        format,
        root: Root { oa, level },
    }
}

fn svx4(format: Svx4, root: u64, gscid: u16) -> SecondStage {
    let level = format.geometry().top;
    let oa = Oa::new(root);
    SecondStage::Svx4 {
        format,
        root: Root { oa, level },
        gscid,
    }
}

/// Device contexts of every kind that the engine writes, and some that it does not.
fn device_contexts(features: riscv::Features) -> Vec<[u64; 8]> {
    let plain = DeviceOptions::default();
    let with_id = |pscid, has_ats| DeviceOptions {
        pscid,
        has_ats,
        ..plain
    };
    let msi = DeviceOptions {
        msi: Some(MsiTable {
            root: Oa::new(0x7000),
            mask: 0xff,
            pattern: 0x1234_0000,
        }),
        ..plain
    };
    let directory = ProcessDirectory::new(Oa::new(0x9000), 2, features).unwrap();
    let directory = FirstStage::Directory(directory.with_default_process());
    let tables = FirstStage::Tables;
    let (bare, none) = (tables(BARE), SecondStage::Bare);
    let one = tables(sv(Sv::sv48(), 0x5000));
    let moved = tables(sv(Sv::sv48(), 0x6000));
    let guest = svx4(Svx4::sv39x4(), 0x8000, 3);
    let mut made = vec![
        (bare, none, plain),
        (one, none, with_id(5, false)),
        (one, none, with_id(5, true)),
        (moved, none, with_id(5, false)),
        (moved, none, with_id(6, true)),
        (bare, guest, plain),
        (bare, guest, with_id(0, true)),
        (directory, none, plain),
        (directory, none, with_id(0, true)),
        (moved, guest, with_id(5, false)),
    ];
    if features == EXTENDED {
        made.extend([(bare, guest, msi), (moved, guest, msi)]);
    }
    let made = made.into_iter().map(|(first, second, options)| {
        DeviceContext::new(first, second, options, features)
            .unwrap()
            .encode()
    });
    [[0; 8]].into_iter().chain(made).collect()
}

/// Whether faults are reported may change ahead of the rest.
fn decoded(mut words: [u64; 8], features: riscv::Features) -> Option<DeviceContext> {
    words[0] |= (words[0] & 1) << 4;
    DeviceContext::decode(words, features).unwrap()
}

#[test]
fn live_contexts_change_by_one_store_or_are_not_valid_meanwhile() {
    let contexts = device_contexts(EXTENDED);
    for &from in &contexts {
        for &to in &contexts {
            check(from, to, |words| decoded(words, EXTENDED));
        }
    }
    let half = |[tc, iohgatp, ta, fsc, ..]: [u64; 8]| [tc, iohgatp, ta, fsc];
    let contexts: Vec<_> = device_contexts(BASE).into_iter().map(half).collect();
    for &from in &contexts {
        for &to in &contexts {
            check(from, to, |[tc, iohgatp, ta, fsc]| {
                decoded([tc, iohgatp, ta, fsc, 0, 0, 0, 0], BASE)
            });
        }
    }
    let directory = ProcessDirectory::new(Oa::new(0x9000), 3, EXTENDED).unwrap();
    let context = |tables, pscid| {
        let options = ProcessOptions {
            pscid,
            ..ProcessOptions::default()
        };
        let context = directory.make_context(tables, options);
        context.unwrap().encode()
    };
    let contexts = [
        [0; 2],
        context(BARE, 0),
        context(sv(Sv::sv39(), 0x5000), 5),
        context(sv(Sv::sv48(), 0x6000), 5),
        context(sv(Sv::sv48(), 0x6000), 6),
    ];
    for from in contexts {
        for to in contexts {
            check(from, to, |words| directory.decode_context(words).unwrap());
        }
    }
}

fn number(value: &Value) -> u64 {
    let text = value.as_str().unwrap();
    u64::from_str_radix(text.strip_prefix("0x").unwrap(), 16).unwrap()
}

fn unpack(name: &str) -> Vec<u8> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let file = File::open(path.join("fixtures/tables").join(name)).unwrap();
    let mut bytes = Vec::new();
    GzDecoder::new(file).read_to_end(&mut bytes).unwrap();
    bytes
}

/// The device directory of Linux, its contexts described, and written by the engine into a directory of its own:
/// each context has the same words where hardware finds it. Pages stand elsewhere, so that `ddtp` and what
/// leads from page to page differ in page numbers alone.
#[test]
fn the_contexts_of_linux_are_written_in_the_same_words() {
    let sidecar: Value = serde_json::from_slice(&unpack("riscv-sys.json.gz")).unwrap();
    let mut captured = PageMap::new();
    for record in unpack("riscv-sys.pages.gz").chunks_exact(8 + 0x1000) {
        let (address, page) = record.split_at(8);
        let address = u64::from_le_bytes(address.try_into().unwrap());
        captured.insert_page(address, page.try_into().unwrap());
    }
    let register = |name: &str| number(&sidecar["registers"][name]);
    let (capabilities, fctl) = (register("CAP"), register("FCTL") as u32);
    let registers = riscv::Features::new(capabilities, fctl);
    let Ddtp::Directory(theirs) = Ddtp::decode(register("DDTP"), registers).unwrap() else {
        panic!("there is a directory")
    };
    let machine = machine();
    let memory = Arc::new(machine.tables());
    let features = Features::new(capabilities, fctl, theirs.levels());
    let unit = Unit::new(features, memory, Arc::clone(machine.instance())).unwrap();
    // Where hardware would find it.
    let Ddtp::Directory(ours) = Ddtp::decode(unit.ddtp().encode(), registers).unwrap() else {
        panic!("there is a directory")
    };
    let moved = DeviceDirectory::new(theirs.root(), ours.levels(), registers);
    assert_eq!(moved, Ok(theirs));
    let read = |oa: Oa| {
        let words = machine.memory().words(oa, 1)?;
        Some(u64::from_le(words[0].load(Ordering::SeqCst)))
    };
    let mut written = 0;
    for stream in sidecar["streams"].as_array().unwrap() {
        let device = u32::try_from(stream["sid"].as_u64().unwrap()).unwrap();
        let words: Vec<u64> = stream["dc"]
            .as_array()
            .unwrap()
            .iter()
            .map(number)
            .collect();
        let words: [u64; 8] = words.try_into().unwrap();
        let context = DeviceContext::decode(words, registers).unwrap().unwrap();
        let described = DeviceContext::new(
            context.first_stage(),
            context.second_stage(),
            context.options(),
            registers,
        );
        unit.link(device).unwrap();
        unit.write(device, Some(&described.unwrap())).unwrap();
        // All words on the way, with where in its page each lies.
        let way = |directory: DeviceDirectory, read: &dyn Fn(Oa) -> Option<u64>| {
            let mut words = Vec::new();
            let at = directory.locate(device, |oa| {
                let word = read(oa)?;
                words.push((oa.get() & 0xfff, word & !PAGE_NUMBER));
                Some(word)
            });
            (at.unwrap(), words)
        };
        let (at, our_way) = way(ours, &read);
        let (their_at, their_way) = way(theirs, &|oa| captured.read64(oa.get()));
        assert_eq!(our_way, their_way);
        assert_eq!(our_way.len(), 2);
        assert_eq!(at.get() & 0xfff, their_at.get() & 0xfff);
        let found = (0..8).map(|word| read(Oa::new(at.get() + 8 * word)).unwrap());
        assert_eq!(found.collect::<Vec<_>>(), words, "{device:#x}");
        written += 1;
    }
    assert_eq!(written, 11);
    // Devices beside them are blocked, as those that Linux knows nothing of.
    assert_eq!(unit.words(1), Some([0; 8]));
}
