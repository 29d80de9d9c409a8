//! Entries that Linux wrote for real devices, decoded and encoded again: VT-d's, AMD's, RISC-V's.
//!
//! They are the same word by word, but for bits that are named here.

#![expect(
    clippy::unwrap_used,
    reason = "a fixture that is not as described fails the test"
)]

use std::fs::File;
use std::io::Read as _;
use std::path::PathBuf;

use flate2::read::GzDecoder;
use iopt_formats::Oa;
use iopt_formats::context::amd::{DeviceTable, Dte, Interrupts, Translation};
use iopt_formats::context::riscv::{self, Ddtp, DeviceContext, DirectoryPage, Features};
use iopt_formats::context::vtd::{
    LegacyContext, PasidDirectoryEntry, PasidEntry, RootEntry, RootTable, ScalableContext,
    TableMode,
};
use iopt_reference::{Memory as _, PageMap};
use serde_json::Value;

struct Fixture {
    sidecar: Value,
    memory: PageMap,
}

impl Fixture {
    fn open(name: &str) -> Self {
        let sidecar = serde_json::from_slice(&unpack(&format!("{name}.json.gz"))).unwrap();
        let mut memory = PageMap::new();
        for record in unpack(&format!("{name}.pages.gz")).chunks_exact(8 + 0x1000) {
            let (address, page) = record.split_at(8);
            let address = u64::from_le_bytes(address.try_into().unwrap());
            memory.insert_page(address, page.try_into().unwrap());
        }
        Self { sidecar, memory }
    }

    fn register(&self, name: &str) -> u64 {
        let value = self.sidecar["registers"][name].as_str().unwrap();
        u64::from_str_radix(value.trim_start_matches("0x"), 16).unwrap()
    }

    /// Returns the ids of the devices that the sidecar lists.
    fn device_ids(&self) -> Vec<u32> {
        let streams = self.sidecar["streams"].as_array().unwrap();
        let id = |stream: &Value| stream["sid"].as_u64().unwrap().try_into().unwrap();
        streams.iter().map(id).collect()
    }

    fn word(&self, address: Oa) -> u64 {
        let word = self.memory.read64(address.get());
        word.unwrap_or_else(|| panic!("{address} was not captured"))
    }

    fn words<const N: usize>(&self, address: Oa) -> [u64; N] {
        std::array::from_fn(|index| self.word(Oa::new(address.get() + 8 * index as u64)))
    }
}

fn unpack(file: &str) -> Vec<u8> {
    let path: PathBuf = [env!("CARGO_MANIFEST_DIR"), "fixtures", "tables", file]
        .iter()
        .collect();
    let packed = File::open(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let mut bytes = Vec::new();
    GzDecoder::new(packed).read_to_end(&mut bytes).unwrap();
    bytes
}

/// Checks every root entry, and hands `check` the devfn and the address of each context entry that
/// the tables have, 256 per bus or half as many. Returns how many of them are present.
fn check_root(fixture: &Fixture, mode: TableMode, check: impl Fn(Oa) -> bool) -> usize {
    let register = fixture.register("RTADDR");
    let root = RootTable::decode(register).unwrap().unwrap();
    assert_eq!((root.encode(), root.mode()), (register, mode));
    let mut present = 0;
    for bus in 0..=255 {
        let words = fixture.words(root.entry(bus));
        let entry = RootEntry::decode(words, mode).unwrap();
        assert_eq!(entry.encode(), words, "bus {bus:#x}");
        for devfn in 0..=255 {
            if let Some(address) = entry.context(devfn) {
                present += usize::from(check(address));
            }
        }
    }
    present
}

fn check_legacy(name: &str) {
    let fixture = Fixture::open(name);
    let present = check_root(&fixture, TableMode::Legacy, |address| {
        let words = fixture.words(address);
        let context = LegacyContext::decode(words).unwrap();
        assert_eq!(context.encode(), words, "{address}");
        words != [0; 2]
    });
    assert_eq!(present, fixture.device_ids().len());
}

#[test]
fn vtd_legacy_entries_encode_again_as_linux_wrote_them() {
    check_legacy("vtd-a");
    check_legacy("vtd-vfio");
}

#[test]
fn vtd_scalable_entries_encode_again_as_linux_wrote_them() {
    let fixture = Fixture::open("vtd-sm-fs");
    let present = check_root(&fixture, TableMode::Scalable, |address| {
        let words = fixture.words(address);
        let context = ScalableContext::decode(words).unwrap();
        assert_eq!(context.encode(), words, "{address}");
        let Some(directory) = context.directory() else {
            return false;
        };
        let mut entries = 0;
        for pasid in (0..directory.pasid_count()).step_by(64) {
            let word = fixture.word(directory.entry(pasid).unwrap());
            let entry = PasidDirectoryEntry::decode(word).unwrap();
            assert_eq!(entry.encode(), word, "PASID {pasid:#x}");
            for pasid in pasid..pasid + 64 {
                let Some(address) = entry.entry(pasid) else {
                    continue;
                };
                // Its AW, without meaning for first-stage tables, is kept too.
                let words = fixture.words(address);
                let entry = PasidEntry::decode(words).unwrap();
                assert_eq!(entry.encode(), words, "PASID {pasid:#x}");
                entries += usize::from(words != [0; 8]);
            }
        }
        assert_eq!(entries, 1, "requests without a PASID use one");
        true
    });
    assert_eq!(present, fixture.device_ids().len());
}

#[test]
fn amd_entries_can_be_made_again_as_linux_wrote_them() {
    /// TV: free in an entry that blocks, because Linux lets it stand without rights.
    const TRANSLATION_VALID: u64 = 2;

    let fixture = Fixture::open("amd-a");
    let register = fixture.register("DEVTAB");
    let table = DeviceTable::from_register(register).unwrap();
    assert_eq!(table.register(), register);
    assert_eq!(DeviceTable::new(table.base(), table.count()), Ok(table));
    let (mut made, mut translated) = (0, 0);
    for device_id in 0..table.count().try_into().unwrap() {
        let words = fixture.words(table.entry(device_id).unwrap());
        let entry = Dte::new(words);
        if !entry.is_valid() {
            assert_eq!(words, [0; 4], "an entry that is never made");
            continue;
        }
        assert_eq!(entry.interrupts(), Ok(Interrupts::Forwarded));
        let translation = entry.translation().unwrap();
        let again = Dte::of(translation)
            .with_domain_id(entry.domain_id())
            .with_interrupts_of(entry);
        let free = match translation {
            Translation::Blocked => TRANSLATION_VALID,
            _ => 0,
        };
        let expected = [words[0] & !free, words[1], words[2], words[3]];
        assert_eq!(again.words(), expected, "device {device_id:#x}");
        made += 1;
        translated += usize::from(matches!(translation, Translation::Host(_)));
    }
    assert_eq!(made, fixture.device_ids().len());
    let domains = fixture.sidecar["domains"].as_array().unwrap();
    let ids = |domain: &Value| domain["sids"].as_array().unwrap().len();
    assert_eq!(translated, domains.iter().map(ids).sum::<usize>());
}

#[test]
fn riscv_entries_encode_again_as_linux_wrote_them() {
    let fixture = Fixture::open("riscv-sys");
    let fctl = fixture.register("FCTL").try_into().unwrap();
    let features = Features::new(fixture.register("CAP"), fctl);
    let register = fixture.register("DDTP");
    let ddtp = Ddtp::decode(register, features).unwrap();
    assert_eq!(ddtp.encode(), register);
    let Ddtp::Directory(directory) = ddtp else {
        panic!("{ddtp:?} is no directory")
    };
    let made = riscv::DeviceDirectory::new(directory.root(), directory.levels(), features);
    assert_eq!(made, Ok(directory));
    for device_id in fixture.device_ids() {
        let read = |address: Oa| {
            let word = fixture.word(address);
            let page = DirectoryPage::decode(word).unwrap().unwrap();
            assert_eq!(page.encode(), word, "{address}");
            Some(word)
        };
        let address = directory.locate(device_id, read).unwrap();
        let words = fixture.words(address);
        let context = DeviceContext::decode(words, features).unwrap().unwrap();
        assert_eq!(context.encode(), words, "device {device_id:#x}");
        let made = DeviceContext::new(
            context.first_stage(),
            context.second_stage(),
            context.options(),
            features,
        );
        assert_eq!(made, Ok(context));
    }
}
