//! Entries that lead to tables: what was decoded encodes to the same words, but for bits that hardware does
//! not read.

use std::fmt::Debug;

use iopt_formats::context::amd::{DeviceTable, Dte, Gcr3Entry};
use iopt_formats::context::riscv::{
    Ddtp, DeviceContext, DirectoryPage, Features, FirstStage, ProcessContext,
};
use iopt_formats::context::smmuv3::{
    Cd, CdError, CdRules, CdTable, L1CdDesc, L1StreamDesc, Ste, SteAddress, SteRules, StreamTable,
};
use iopt_formats::context::update::Rules as _;
use iopt_formats::context::vtd::{
    LegacyContext, PasidDirectoryEntry, PasidEntry, RootEntry, RootTable, ScalableContext,
    TableMode,
};
use iopt_formats::{Iova, Oa};

use crate::fuzz::{joined, words};

/// Splits off the byte that says which structure it is, of `count`.
fn kind(bytes: &[u8], count: u8) -> (u8, &[u8]) {
    match bytes.split_first() {
        Some((&kind, rest)) => (kind % count, rest),
        None => (0, &[]),
    }
}

fn masked<const N: usize>(words: [u64; N], mask: [u64; N]) -> [u64; N] {
    std::array::from_fn(|word| words[word] & mask[word])
}

/// Checks what was decoded of `words`: hardware reads the same of what it encodes to, and that decodes to
/// the same again.
fn check<T: Debug + PartialEq, E: Debug + PartialEq, const N: usize>(
    words: [u64; N],
    decode: impl Fn([u64; N]) -> Result<T, E>,
    encode: impl Fn(&T) -> [u64; N],
    used: impl Fn([u64; N]) -> [u64; N],
) -> Option<T> {
    let value = decode(words).ok()?;
    let again = encode(&value);
    let read = used(words);
    assert_eq!(
        masked(again, read),
        masked(words, read),
        "{value:x?} of {words:#x?}"
    );
    assert_eq!(
        decode(again).as_ref(),
        Ok(&value),
        "{words:#x?} encode to {again:#x?}"
    );
    Some(value)
}

/// A stream table entry, a context descriptor, and what leads to them.
pub fn smmuv3(bytes: &[u8]) -> bool {
    let (kind, rest) = kind(bytes, 3);
    match kind {
        0 => {
            let ste = Ste::new(words(rest));
            if let Ok(Some(cds)) = ste.cd_table() {
                use_cd_table(&cds, rest);
            }
            let decode = |words| Ste::new(words).decode();
            let encode = |stream: &_| *Ste::encode(stream).words();
            let used = |words: [u64; 8]| SteRules.used(&words);
            check(*ste.words(), decode, encode, used).is_some()
        }
        1 => {
            let cd = Cd::new(words(rest));
            let (half, _) = cd.locate(Iova::new(words::<1>(rest)[0]));
            let table = cd.table(half);
            let decode = |words| Cd::new(words).decode();
            let encode = |context: &_| *Cd::encode(context).words();
            let used = |words: [u64; 8]| CdRules.used(&words);
            let context = check(*cd.words(), decode, encode, used);
            let is_known = matches!(table, Ok(_) | Err(CdError::Disabled { .. }));
            assert!(context.is_none() || is_known, "half of it is wrong");
            context.is_some()
        }
        _ => stream_table(rest),
    }
}

fn stream_table(bytes: &[u8]) -> bool {
    let [base, cfg, stream, l1] = words(bytes);
    let (cfg, stream) = (cfg as u32, stream as u32);
    let table = StreamTable::new(base, cfg);
    let again = StreamTable::new(table.base_register(), table.cfg_register());
    assert_eq!(again, table);
    let Some(address) = table.address(stream) else {
        return false;
    };
    let inside = |oa: Oa| assert!(oa >= table.base());
    match address {
        SteAddress::Ste(oa) => inside(oa),
        SteAddress::L1(oa) => {
            inside(oa);
            let descriptor = L1StreamDesc::new(l1);
            if let (Some(oa), Some(l2)) =
                (descriptor.address(&table, stream), descriptor.l2_table())
            {
                assert!(oa >= l2);
            }
        }
    }
    true
}

fn use_cd_table(cds: &CdTable, bytes: &[u8]) {
    let [.., substream, l1] = words::<10>(bytes);
    if cds.address(substream as u32).is_some() {
        assert!(u64::from(substream as u32) >> cds.count_lg2() == 0);
    }
    let descriptor = L1CdDesc::new(l1);
    let _ = descriptor.address(cds, substream as u32);
}

/// The entries of VT-d.
pub fn vtd(bytes: &[u8]) -> bool {
    let (kind, rest) = kind(bytes, 7);
    let all = |_: [u64; 1]| [0];
    match kind {
        0 => check(
            words(rest),
            LegacyContext::decode,
            |entry| entry.encode(),
            LegacyContext::used,
        )
        .is_some(),
        1 => {
            let (decode, used) = (ScalableContext::decode, ScalableContext::used);
            check(words(rest), decode, |entry| entry.encode(), used).is_some()
        }
        2 => check(
            words(rest),
            PasidEntry::decode,
            |entry| entry.encode(),
            PasidEntry::used,
        )
        .is_some(),
        3 | 4 => {
            let mode = [TableMode::Legacy, TableMode::Scalable][usize::from(kind == 4)];
            let decode = |words| RootEntry::decode(words, mode);
            // Of a half, nothing but P counts where that is clear.
            let used = |words: [u64; 2]| words.map(|word| if word & 1 == 0 { 1 } else { u64::MAX });
            let used = |words| match (mode, used(words)) {
                (TableMode::Legacy, [1, _]) => [1, 0],
                (_, used) => used,
            };
            check(words(rest), decode, |entry| entry.encode(), used).is_some()
        }
        5 => {
            let decode = |[word]: [u64; 1]| PasidDirectoryEntry::decode(word);
            let used = |[word]: [u64; 1]| [if word & 1 == 0 { 3 } else { u64::MAX }];
            check(words(rest), decode, |entry| [entry.encode()], used).is_some()
        }
        _ => {
            let decode = |[word]: [u64; 1]| RootTable::decode(word);
            let encode =
                |table: &Option<RootTable>| [table.map_or(RootTable::ABORT_DMA, RootTable::encode)];
            let found = check(words(rest), decode, encode, all);
            // The address of a root table that there is counts as a whole.
            if let Some(Some(table)) = found {
                assert_eq!([table.encode()], words(rest));
            }
            found.is_some()
        }
    }
}

/// A device table entry, an entry of a guest CR3 table, the register of the device table.
pub fn amd(bytes: &[u8]) -> bool {
    let (kind, rest) = kind(bytes, 3);
    match kind {
        0 => device_entry(Dte::new(words(rest))),
        1 => {
            let decode = |[word]: [u64; 1]| Gcr3Entry::decode(word);
            let encode = |entry: &Option<Gcr3Entry>| [entry.map_or(0, Gcr3Entry::encode)];
            let used = |[word]: [u64; 1]| [if word & 1 == 0 { 1 } else { u64::MAX }];
            check(words(rest), decode, encode, used).is_some()
        }
        _ => {
            let decode = |[word]: [u64; 1]| DeviceTable::from_register(word);
            let all = |_: [u64; 1]| [u64::MAX];
            let table = check(words(rest), decode, |table| [table.register()], all);
            table.is_some_and(|table| {
                let last = u16::try_from(table.count() - 1).expect("a table has 65536 at most");
                assert!(table.entry(last).is_some());
                assert!(last == u16::MAX || table.entry(last + 1).is_none());
                true
            })
        }
    }
}

/// Puts an entry together again from what it says.
fn device_entry(entry: Dte) -> bool {
    let (Ok(translation), Ok(interrupts), Ok(port_io)) =
        (entry.translation(), entry.interrupts(), entry.port_io())
    else {
        return false;
    };
    let mut again = Dte::of(translation)
        .with_domain_id(entry.domain_id())
        .with_port_io(port_io)
        .with_system_management(entry.system_management())
        .with_interrupts(interrupts);
    for (number, set) in SETTERS.iter().enumerate() {
        if flags(entry)[number] {
            again = set(again);
        }
    }
    // Without V, requests pass; no entry that is made lacks it.
    assert!(again.is_valid());
    if entry.is_valid() {
        assert_eq!(again.translation(), Ok(translation), "{entry:#x?}");
    }
    assert_eq!(again.interrupts(), Ok(interrupts), "{entry:#x?}");
    assert_eq!(flags(again), flags(entry), "{entry:#x?}");
    let rest = |entry: Dte| {
        let management = entry.system_management();
        (entry.domain_id(), entry.port_io(), management)
    };
    assert_eq!(rest(again), rest(entry), "{entry:#x?}");
    true
}

const SETTERS: [fn(Dte) -> Dte; 8] = [
    Dte::with_ats,
    Dte::with_page_requests,
    Dte::with_page_response_pasid,
    Dte::with_repeated_faults_suppressed,
    Dte::with_all_faults_suppressed,
    Dte::with_cache_hint,
    Dte::with_snoop_disabled,
    Dte::with_exclusion,
];

/// Returns what the setters set.
fn flags(entry: Dte) -> [bool; SETTERS.len()] {
    [
        entry.has_ats(),
        entry.has_page_requests(),
        entry.has_page_response_pasid(),
        entry.suppresses_faults(),
        entry.suppresses_all_faults(),
        entry.has_cache_hint(),
        entry.has_snoop_disabled(),
        entry.has_exclusion(),
    ]
}

/// A device context, a process context of its directory, the register of the directory and its pages. The
/// first word is the IOMMU's capabilities.
pub fn riscv(bytes: &[u8]) -> bool {
    let (kind, rest) = kind(bytes, 4);
    let [capabilities] = words(rest);
    let rest = rest.get(8..).unwrap_or_default();
    let features = Features::new(
        capabilities,
        u32::from(bytes.first().is_some_and(|&kind| kind & 0x80 != 0)) * 4,
    );
    match kind {
        0 | 1 => {
            let decode = |words| DeviceContext::decode(words, features);
            let encode =
                |context: &Option<DeviceContext>| context.map_or([0; 8], DeviceContext::encode);
            let used = |words| DeviceContext::used(words, features.context_format());
            let Some(Some(context)) = check(words(rest), decode, encode, used) else {
                return false;
            };
            let FirstStage::Directory(directory) = context.first_stage() else {
                return true;
            };
            let decode = |words| directory.decode_context(words);
            let encode =
                |context: &Option<ProcessContext>| context.map_or([0; 2], ProcessContext::encode);
            let [.., ta, fsc] = words::<10>(rest);
            check([ta, fsc], decode, encode, ProcessContext::used);
            true
        }
        2 => {
            let decode = |[word]: [u64; 1]| Ddtp::decode(word, features);
            let used = |[word]: [u64; 1]| {
                let mode = 0xf;
                [if word & mode < 2 {
                    mode
                } else {
                    mode | ((1 << 44) - 1) << 10
                }]
            };
            check(words(rest), decode, |register| [register.encode()], used).is_some()
        }
        _ => {
            let decode = |[word]: [u64; 1]| DirectoryPage::decode(word);
            let encode = |page: &Option<DirectoryPage>| [page.map_or(0, DirectoryPage::encode)];
            let used = |[word]: [u64; 1]| [if word & 1 == 0 { 1 } else { u64::MAX }];
            check(words(rest), decode, encode, used).is_some()
        }
    }
}

/// An entry of each stage as Linux writes it, both in one, and others.
pub fn smmuv3_seeds() -> Vec<Vec<u8>> {
    let stage2 = [0xd, 0, 0x044c_3594_0000_0001, 0x480d_f000, 0, 0, 0, 0];
    vec![
        joined(&[0], &[0x4805_500b, 0xd6, 0, 0, 0, 0, 0, 0]),
        joined(&[0], &stage2),
        joined(&[0], &[0x4805_500f, 0xd6, stage2[2], stage2[3], 0, 0, 0, 0]),
        joined(&[0], &[9, 0, 0, 0, 0, 0, 0, 0]),
        joined(&[0], &[1, 0, 0, 0, 0, 0, 0, 0]),
        joined(
            &[1],
            &[
                0x0001_e204_c000_3510,
                0x4805_6000,
                0,
                0xf404_ff44,
                0,
                0,
                0,
                0,
            ],
        ),
        joined(&[2], &[0x4000_0000_443b_4000, 0x1_0210, 0x48, 0x4400_0009]),
        joined(&[2], &[0x4000_0000_443b_4000, 0x10, 0x48, 0]),
    ]
}

/// Entries of each kind of translation.
pub fn vtd_seeds() -> Vec<Vec<u8>> {
    vec![
        joined(&[0], &[0x1234_5001, 0x0102]),
        joined(&[0], &[9, 0x0702]),
        joined(&[1], &[0x1234_5001 | 7 << 9, 0, 0, 0]),
        joined(&[2], &[0x1234_5001 | 2 << 2 | 2 << 6, 5, 0, 0, 0, 0, 0, 0]),
        joined(&[2], &[1 << 6 | 1, 5, 0x1234_5000, 0, 0, 0, 0, 0]),
        joined(
            &[2],
            &[3 << 6 | 2 << 2 | 0x1234_5001, 5, 0x5432_1000, 0, 0, 0, 0, 0],
        ),
        joined(&[2], &[4 << 6 | 2 << 2 | 1, 5, 0, 0, 0, 0, 0, 0]),
        joined(&[3], &[0x1234_5001, 0]),
        joined(&[4], &[0x1234_5001, 0x1234_6001]),
        joined(&[5], &[0x1234_5001]),
        joined(&[6], &[0x1234_5400]),
        joined(&[6], &[3 << 10]),
    ]
}

/// Entries of each kind of translation.
pub fn amd_seeds() -> Vec<Vec<u8>> {
    let rights = 3 << 61;
    vec![
        joined(&[0], &[3 | 3 << 9 | 0x1234_5000 | rights, 7, 0, 0]),
        joined(
            &[0],
            &[
                3 | 3 << 9 | 0x1234_5000 | rights,
                7,
                0x2000_0000_1234_5011,
                0,
            ],
        ),
        joined(&[0], &[3 | rights, 7, 0, 0]),
        joined(&[0], &[1, 7, 0, 0]),
        joined(&[0], &[3 | rights | 1 << 55 | 1 << 54 | 1 << 58, 7, 0, 0]),
        joined(&[1], &[0x1234_5001]),
        joined(&[2], &[0x1a1_8001]),
    ]
}

/// Contexts of each kind of translation.
pub fn riscv_seeds() -> Vec<Vec<u8>> {
    let everything = !0x3f_0000_0000 | 56 << 32;
    let (tables, guest) = (0x9000_0000_0008_8001, 0x8012_3000_0008_8004);
    let msi = [0x1000_0000_0008_9000, 0xff, 0x2_8000, 0];
    vec![
        joined(
            &[0],
            &[
                [everything, 0x47, guest, 0x4561_2300_abcd_e000, tables],
                [msi[0], msi[1], msi[2], 0, 0],
            ]
            .concat(),
        ),
        joined(&[0], &[everything, 1, 0, 0x7000, tables, 0, 0, 0, 0]),
        joined(&[0], &[everything, 1, guest, 0, 0, 0, 0, 0, 0]),
        // A directory of processes, and one of them.
        joined(
            &[0],
            &[
                everything,
                0x21,
                0,
                0,
                0x1000_0000_0008_8001,
                0,
                0,
                0,
                0,
                0x7001,
                tables,
            ],
        ),
        joined(&[2], &[everything, 0x22_2003]),
        joined(&[3], &[everything, 0x22_2001]),
    ]
}
