//! Tables that Linux wrote for real devices, read from the registers on: exactly the domains and
//! leaves that the sidecar files list, which were checked against Linux's own trace.

#![expect(
    clippy::unwrap_used,
    reason = "a fixture that is not as described fails the test"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{BufReader, Read as _};
use std::path::PathBuf;

use flate2::read::GzDecoder;
use iopt_reference::context::{Binding, Device, amd, riscv, smmu, vtd};
use iopt_reference::{Fault, Item, PageMap, Rigour, Table};
use serde_json::Value;

const LIMIT: u64 = 1 << 20;

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
        number(&self.sidecar["registers"][name])
    }

    fn register32(&self, name: &str) -> u32 {
        self.register(name).try_into().unwrap()
    }

    /// Ids of the sidecar's streams for which `keep` holds.
    fn streams(&self, keep: impl Fn(&Value) -> bool) -> BTreeSet<u32> {
        let streams = self.sidecar["streams"].as_array().unwrap();
        streams
            .iter()
            .filter(|stream| keep(stream))
            .map(|stream| id(&stream["sid"]))
            .collect()
    }

    /// Checks all domains, `count` leaves in all, and that no other device translates.
    fn check_domains(&self, devices: &[Device], count: usize) {
        let bindings: BTreeMap<u32, Binding> = devices
            .iter()
            .map(|device| (device.id, device.binding.unwrap()))
            .collect();
        let mut translating = BTreeSet::new();
        let mut leaf_count = 0;
        for domain in self.sidecar["domains"].as_array().unwrap() {
            let sids: Vec<u32> = domain["sids"].as_array().unwrap().iter().map(id).collect();
            for sid in &sids {
                assert_eq!(
                    bindings[sid], bindings[&sids[0]],
                    "{sid:#x} shares a domain"
                );
            }
            let Binding::Table(table) = bindings[&sids[0]] else {
                panic!(
                    "{:#x} does not translate: {:?}",
                    sids[0], bindings[&sids[0]]
                );
            };
            leaf_count += self.check_leaves(&table, domain["leaves"].as_array().unwrap());
            translating.extend(sids);
        }
        let is_table =
            |binding: &Binding| matches!(binding, Binding::Table(_) | Binding::Nested { .. });
        let found: BTreeSet<u32> = bindings
            .iter()
            .filter(|(_, binding)| is_table(binding))
            .map(|(&id, _)| id)
            .collect();
        assert_eq!(found, translating);
        assert_eq!(leaf_count, count);
    }

    fn check_leaves(&self, table: &Table, leaves: &[Value]) -> usize {
        let expected: BTreeMap<u64, [u64; 3]> = leaves
            .iter()
            .map(|leaf| {
                (
                    number(&leaf[0]),
                    [
                        number(&leaf[1]),
                        leaf[2].as_u64().unwrap(),
                        number(&leaf[3]),
                    ],
                )
            })
            .collect();
        let mut found = BTreeMap::new();
        let note = |item: Item| {
            let translation = item.translation;
            found.insert(item.iova, [translation.oa, item.len, translation.word]);
        };
        table
            .enumerate(&self.memory, LIMIT, Rigour::Strict, note)
            .unwrap();
        assert_eq!(found, expected);
        assert_eq!(expected.len(), leaves.len());

        for (&iova, &[oa, len, word]) in &expected {
            for offset in [0, 8, len - 1] {
                let translation = table.walk(&self.memory, iova + offset).unwrap();
                assert_eq!(
                    (translation.oa, translation.item_len, translation.word),
                    (oa + offset, len, word)
                );
            }
            for neighbour in [iova.wrapping_sub(1), iova + len] {
                let is_mapped = expected
                    .range(..=neighbour)
                    .next_back()
                    .is_some_and(|(start, [_, len, _])| neighbour - start < *len);
                let walked = table.walk(&self.memory, neighbour);
                assert_eq!(walked.is_ok(), is_mapped, "{neighbour:#x}: {walked:?}");
                if let Err(fault) = walked {
                    assert!(
                        matches!(fault, Fault::NotMapped { .. } | Fault::OutOfWindow { .. }),
                        "{fault}"
                    );
                }
            }
        }
        leaves.len()
    }
}

fn unpack(file: &str) -> Vec<u8> {
    let path: PathBuf = [env!("CARGO_MANIFEST_DIR"), "..", "fixtures", "tables", file]
        .iter()
        .collect();
    let packed = File::open(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let mut bytes = Vec::new();
    GzDecoder::new(BufReader::new(packed))
        .read_to_end(&mut bytes)
        .unwrap();
    bytes
}

fn number(value: &Value) -> u64 {
    u64::from_str_radix(value.as_str().unwrap().trim_start_matches("0x"), 16).unwrap()
}

fn id(value: &Value) -> u32 {
    value.as_u64().unwrap().try_into().unwrap()
}

fn ids(devices: &[Device]) -> BTreeSet<u32> {
    devices.iter().map(|device| device.id).collect()
}

fn check_smmu(name: &str, count: usize) {
    let fixture = Fixture::open(name);
    let registers = smmu::Registers {
        idr0: fixture.register32("IDR0"),
        idr1: fixture.register32("IDR1"),
        idr3: 0,
        idr5: fixture.register32("IDR5"),
        cr0: fixture.register32("CR0"),
        gbpa: fixture.register32("GBPA"),
        strtab_base: fixture.register("STRTAB_BASE"),
        strtab_base_cfg: fixture.register32("STRTAB_BASE_CFG"),
    };
    let devices = smmu::devices(&registers, &fixture.memory, LIMIT).unwrap();
    assert_eq!(ids(&devices), fixture.streams(|_| true));
    let blocked = devices
        .iter()
        .filter(|device| device.binding == Ok(Binding::Blocked))
        .map(|device| device.id);
    assert_eq!(
        blocked.collect::<BTreeSet<_>>(),
        fixture.streams(|stream| stream["kind"] == "abort")
    );
    fixture.check_domains(&devices, count);
}

fn check_vtd(name: &str, count: usize) {
    let fixture = Fixture::open(name);
    let registers = vtd::Registers {
        cap: fixture.register("CAP"),
        ecap: fixture.register("ECAP"),
        gsts: fixture.register32("GSTS"),
        rtaddr: fixture.register("RTADDR"),
        host_address_bits: 39,
    };
    let devices = vtd::devices(&registers, &fixture.memory, LIMIT).unwrap();
    assert_eq!(ids(&devices), fixture.streams(|_| true));
    fixture.check_domains(&devices, count);
}

#[test]
fn smmu_stage_1_tables_of_linux_read_as_linux_mapped_them() {
    check_smmu("smmu-a", 957);
}

#[test]
fn smmu_stage_2_tables_of_linux_read_as_linux_mapped_them() {
    check_smmu("smmu-s2", 958);
}

#[test]
fn vtd_legacy_tables_of_linux_read_as_linux_mapped_them() {
    check_vtd("vtd-a", 5048);
}

#[test]
fn vtd_first_stage_tables_of_linux_read_as_linux_mapped_them() {
    check_vtd("vtd-sm-fs", 5048);
}

#[test]
fn vtd_tables_of_a_vfio_user_read_as_it_mapped_them() {
    check_vtd("vtd-vfio", 5288);
}

#[test]
fn amd_tables_of_linux_read_as_linux_mapped_them() {
    let fixture = Fixture::open("amd-a");
    let registers = amd::Registers {
        devtab: fixture.register("DEVTAB"),
        control: fixture.register("CONTROL"),
    };
    let devices = amd::devices(&registers, &fixture.memory, LIMIT).unwrap();
    assert_eq!(ids(&devices), fixture.streams(|_| true));
    fixture.check_domains(&devices, 604);
}

#[test]
fn riscv_identity_contexts_of_linux_pass_through() {
    let fixture = Fixture::open("riscv-sys");
    let registers = riscv::Registers {
        capabilities: fixture.register("CAP"),
        fctl: fixture.register32("FCTL"),
        ddtp: fixture.register("DDTP"),
    };
    let devices = riscv::devices(&registers, &fixture.memory, LIMIT).unwrap();
    assert_eq!(devices.len(), 11);
    assert_eq!(ids(&devices), fixture.streams(|_| true));
    for device in devices {
        assert_eq!(
            device.binding,
            Ok(Binding::PassThrough {
                read: true,
                write: true
            })
        );
    }
}
