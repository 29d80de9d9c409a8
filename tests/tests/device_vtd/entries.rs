//! The tables of Linux, described, and written by the engine into tables of its own: each entry has the same words.
//! Tables stand elsewhere, so pointers from one to the next differ in addresses alone.

use std::fs::File;
use std::io::Read as _;
use std::path::PathBuf;
use std::sync::Arc;

use flate2::read::GzDecoder;
use iopt::device::vtd::{CommandDevice, ContextEntry, Features, PasidTables, VtdUnit};
use iopt::mem::TableMemory;
use iopt_formats::Oa;
use iopt_formats::command::Pasid;
use iopt_formats::context::vtd::{
    LegacyContext, PasidDirectory, PasidDirectoryEntry, PasidEntry, RootEntry, RootTable,
    ScalableContext, TableMode,
};
use iopt_reference::context::vtd::{Registers, devices};
use iopt_reference::{Memory, PageMap};
use iopt_rig::{Machine, MachineConfig, Vtd};
use serde_json::Value;

/// Bits of a pointer.
const POINTER: u64 = 0x000f_ffff_ffff_f000;
/// Context entries of all requester IDs, and more than there are.
const LIMIT: u64 = 1 << 17;

fn unpack(file: &str) -> Vec<u8> {
    let path: PathBuf = [env!("CARGO_MANIFEST_DIR"), "fixtures", "tables", file]
        .iter()
        .collect();
    let mut bytes = Vec::new();
    let packed = File::open(path).unwrap();
    GzDecoder::new(packed).read_to_end(&mut bytes).unwrap();
    bytes
}

/// Tables in memory, and the registers that lead to them.
struct Tables<'m> {
    registers: Registers,
    memory: &'m dyn Memory,
}

impl Tables<'_> {
    fn words<const N: usize>(&self, address: Oa) -> [u64; N] {
        std::array::from_fn(|index| {
            let word = self.memory.read64(address.get() + 8 * index as u64);
            word.unwrap_or_else(|| panic!("{address} is nowhere"))
        })
    }

    fn root(&self) -> RootTable {
        RootTable::decode(self.registers.rtaddr).unwrap().unwrap()
    }

    /// Returns where the context entry of a requester ID stands, if its table is there.
    fn context(&self, source_id: u16) -> Option<Oa> {
        let [bus, devfn] = source_id.to_be_bytes();
        let words = self.words(self.root().entry(bus));
        let entry = RootEntry::decode(words, self.root().mode()).unwrap();
        entry.context(devfn)
    }

    /// Returns the requester IDs whose entries are present.
    fn present(&self) -> Vec<u16> {
        let found = devices(&self.registers, self.memory, LIMIT).unwrap();
        found
            .iter()
            .map(|device| device.id.try_into().unwrap())
            .collect()
    }
}

fn open(name: &str) -> (Registers, PageMap) {
    let sidecar: Value = serde_json::from_slice(&unpack(&format!("{name}.json.gz"))).unwrap();
    let mut memory = PageMap::new();
    for record in unpack(&format!("{name}.pages.gz")).chunks_exact(8 + 0x1000) {
        let (address, page) = record.split_at(8);
        let address = u64::from_le_bytes(address.try_into().unwrap());
        memory.insert_page(address, page.try_into().unwrap());
    }
    let register = |name: &str| {
        let value = sidecar["registers"][name].as_str().unwrap();
        u64::from_str_radix(value.trim_start_matches("0x"), 16).unwrap()
    };
    let registers = Registers {
        cap: register("CAP"),
        ecap: register("ECAP"),
        gsts: register("GSTS") as u32,
        rtaddr: register("RTADDR"),
        host_address_bits: 52,
    };
    (registers, memory)
}

/// Checks that both lead all requester IDs to the same tables.
fn compare(ours: &Tables<'_>, theirs: &Tables<'_>) {
    let found = |tables: &Tables<'_>| devices(&tables.registers, tables.memory, LIMIT).unwrap();
    assert_eq!(found(ours), found(theirs));
    assert_eq!(ours.root().mode(), theirs.root().mode());
    // Context tables come for the same buses, and halves of buses.
    for source_id in (0..=u16::MAX).step_by(0x80) {
        let is_there = |tables: &Tables<'_>| tables.context(source_id).is_some();
        assert_eq!(is_there(ours), is_there(theirs), "{source_id:#x}");
    }
}

#[test]
fn legacy_tables_of_linux_are_written_in_the_same_words() {
    let mut count = 0;
    for name in ["vtd-a", "vtd-vfio"] {
        let (registers, memory) = open(name);
        let theirs = Tables {
            registers,
            memory: &memory,
        };
        let machine = Machine::new(Vtd::<2>::default(), MachineConfig::default()).unwrap();
        let features = Features::from_registers(registers.cap, registers.ecap, 52);
        assert_eq!(features.best_mode(), TableMode::Legacy);
        let tables = Arc::new(machine.tables());
        let instance = Arc::clone(machine.instance());
        let unit = VtdUnit::new(features, TableMode::Legacy, tables, instance).unwrap();
        let sources = theirs.present();
        count += sources.len();
        for &source_id in &sources {
            let words = theirs.words(theirs.context(source_id).unwrap());
            let entry = ContextEntry::Legacy(LegacyContext::decode(words).unwrap());
            unit.link(source_id).unwrap();
            unit.write(source_id, &entry).unwrap();
            assert_eq!(unit.context(source_id), Some(entry));
        }
        let ours = Tables {
            registers: Registers {
                rtaddr: unit.root_table().encode(),
                ..registers
            },
            memory: &**machine.memory(),
        };
        compare(&ours, &theirs);
        for source_id in 0..=u16::MAX {
            let words = |tables: &Tables<'_>| {
                let address = tables.context(source_id)?;
                Some(tables.words::<2>(address))
            };
            assert_eq!(words(&ours), words(&theirs), "{name} {source_id:#x}");
        }
    }
    assert!(count > 10, "{count}");
}

/// Writes what a directory of Linux leads to once more, and returns both, ours first.
fn rewrite<M: TableMemory + 'static, D: CommandDevice>(
    unit: &VtdUnit<M, D>,
    theirs: &Tables<'_>,
    directory: PasidDirectory,
) -> PasidTables<M> {
    let bits = directory.pasid_count().ilog2() as u8;
    let mut tables = PasidTables::new(unit, bits).unwrap();
    for number in 0..directory.pasid_count() {
        let [word] = theirs.words(directory.entry(number).unwrap());
        let table = PasidDirectoryEntry::decode(word).unwrap();
        let Some(address) = table.entry(number) else {
            continue;
        };
        let words = theirs.words(address);
        if words != [0; 8] {
            let pasid = Pasid::new(number).unwrap();
            let entry = PasidEntry::decode(words).unwrap();
            tables.link(unit, pasid).unwrap();
            tables.write(unit, pasid, &entry).unwrap();
            assert_eq!(tables.get(pasid), Some(entry));
        }
    }
    tables
}

#[test]
fn scalable_tables_of_linux_are_written_in_the_same_words() {
    let (registers, memory) = open("vtd-sm-fs");
    let theirs = Tables {
        registers,
        memory: &memory,
    };
    let machine = Machine::new(Vtd::<4>::default(), MachineConfig::default()).unwrap();
    let features = Features::from_registers(registers.cap, registers.ecap, 52);
    assert_eq!(features.best_mode(), TableMode::Scalable);
    let memory = Arc::new(machine.tables());
    let instance = Arc::clone(machine.instance());
    let unit = VtdUnit::new(features, TableMode::Scalable, memory, instance).unwrap();
    let mut all = Vec::new();
    for source_id in theirs.present() {
        let words = theirs.words(theirs.context(source_id).unwrap());
        let context = ScalableContext::decode(words).unwrap();
        let tables = rewrite(&unit, &theirs, context.directory().unwrap());
        let again = ScalableContext::new(tables.directory(), context.rid_pasid()).unwrap();
        let flags = [
            context.has_device_tlb(),
            context.has_pasid(),
            context.has_page_requests(),
        ];
        let again = if flags[0] {
            again.with_device_tlb()
        } else {
            again
        };
        let again = if flags[1] { again.with_pasid() } else { again };
        assert!(!flags[2], "no page requests");
        unit.link(source_id).unwrap();
        unit.write(source_id, &ContextEntry::Scalable(again))
            .unwrap();
        all.push((source_id, context, tables));
    }
    assert!(all.len() > 5);
    let ours = Tables {
        registers: Registers {
            rtaddr: unit.root_table().encode(),
            ..registers
        },
        memory: &**machine.memory(),
    };
    compare(&ours, &theirs);
    let mut entry_count = 0;
    for (source_id, context, tables) in &all {
        let words = |tables: &Tables<'_>| {
            let [low, rest @ ..] = tables.words::<4>(tables.context(*source_id).unwrap());
            (low & !POINTER, rest)
        };
        assert_eq!(words(&ours), words(&theirs), "{source_id:#x}");
        let directories = [tables.directory(), context.directory().unwrap()];
        for number in 0..directories[0].pasid_count() {
            let at = directories.map(|directory| directory.entry(number).unwrap());
            let [[ours_word], [theirs_word]] = [ours.words(at[0]), theirs.words(at[1])];
            assert_eq!(ours_word & !POINTER, theirs_word & !POINTER, "{number:#x}");
            let at = [ours_word, theirs_word]
                .map(|word| PasidDirectoryEntry::decode(word).unwrap().entry(number));
            let [Some(our), Some(their)] = at else {
                continue;
            };
            let words = ours.words::<8>(our);
            assert_eq!(words, theirs.words::<8>(their), "{number:#x}");
            entry_count += usize::from(words != [0; 8]);
        }
    }
    // That of requests without a PASID.
    assert_eq!(entry_count, all.len());
}
