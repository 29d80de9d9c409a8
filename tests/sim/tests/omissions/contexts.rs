//! Contexts by real registers and words: what leads from devices to tables is cached too.

use std::sync::Arc;

use iopt_reference::context::{amd, riscv, smmu, vtd};
use iopt_sim::{Attachment, Contexts, Law, Outcome, Refusal, Rights};

use crate::machines::{AMD, AMD_ABSENT, Machine, RISCV, ROOT, SMMU, VTD, VTD_CACHING};
use crate::rig::{DEVICE, DOMAIN, Rig, Words};
use crate::vtd::FIRST;

/// Stream table, root table, device table, device directory; and what stands behind it.
const TABLE: u64 = 0x8_0000;
const BEHIND: u64 = 0x9_0000;
/// Tables of another domain.
const OTHER_ROOT: u64 = 0x3_0000;
const OTHER_DOMAIN: u64 = 2;
const IOVA: u64 = 0x1000;
const OA: u64 = 0x4000_0000;
const OTHER_OA: u64 = 0x5000_0000;

/// Builds tables at `root` and behind it that map one page.
fn link(rig: &Rig, domain: u64, root: u64, oa: u64) {
    let pointer = rig.machine.pointer;
    for level in 0..3 {
        let table = root + 0x1000 * level;
        rig.put(table, pointer(table + 0x1000, 3 - level));
    }
    rig.put(root + 0x3000 + 8, (rig.machine.page)(oa));
    rig.ledger.map(domain, IOVA..=IOVA + 0xfff, oa, Rights::ALL);
    rig.ledger.map_done(domain, IOVA..=IOVA + 0xfff);
}

fn rig(machine: &'static Machine, registers: impl Contexts + 'static) -> Rig {
    let rig = Rig::with_contexts(machine, Arc::new(registers));
    link(&rig, DOMAIN, ROOT, OA);
    link(&rig, OTHER_DOMAIN, OTHER_ROOT, OTHER_OA);
    rig
}

fn attach(rig: &Rig, domain: u64) {
    rig.ledger.attach(DEVICE, None, Attachment::Domain(domain));
}

/// Attaches to the first domain, meets its page, changes to the other one with `store`, sends the commands
/// and tells which law is broken.
fn law_of_change(
    mut rig: Rig,
    setup: &[(u64, u64)],
    store: &[(u64, u64)],
    commands: &[Words],
) -> Option<Law> {
    for &(address, word) in setup {
        rig.put(address, word);
    }
    attach(&rig, DOMAIN);
    rig.ledger.attach_done(DEVICE, None);
    assert_eq!(rig.read(IOVA).expect("nothing is stale yet"), Some(OA));
    rig.ledger.detach(DEVICE, None);
    attach(&rig, OTHER_DOMAIN);
    for &(address, word) in store {
        rig.put(address, word);
    }
    rig.send(commands);
    rig.wait();
    rig.ledger.detach_done(DEVICE, None);
    rig.ledger.attach_done(DEVICE, None);
    let law = rig.law(IOVA..=IOVA + 0xfff);
    if law.is_none() {
        rig.warm(IOVA, OTHER_OA - IOVA);
    }
    law
}

/// Asks in vain before the device has a context, gives it one, sends the commands and tells which law is
/// broken.
fn law_of_first(
    mut rig: Rig,
    setup: &[(u64, u64)],
    valid: &[(u64, u64)],
    commands: &[Words],
) -> Option<Law> {
    for &(address, word) in setup {
        rig.put(address, word);
    }
    assert_eq!(rig.read(IOVA).expect("nothing is attached"), None);
    attach(&rig, DOMAIN);
    for &(address, word) in valid {
        rig.put(address, word);
    }
    rig.send(commands);
    rig.wait();
    rig.ledger.attach_done(DEVICE, None);
    rig.law(IOVA..=IOVA + 0xfff)
}

const SMMU_REGISTERS: smmu::Registers = smmu::Registers {
    // Both stages, 16-bit ASIDs, 48 output bits, 4 KiB granules, 256 streams in a linear table.
    idr0: 1 << 12 | 0b11,
    idr1: 16,
    idr3: 0,
    idr5: 1 << 4 | 5,
    cr0: 1,
    gbpa: 0,
    strtab_base: TABLE,
    strtab_base_cfg: 8,
};
const STE: u64 = TABLE + 64 * DEVICE as u64;

/// 48 bits, 4 KiB granule, no TTB1, valid, 48 output bits, `AArch64`.
const fn cd(asid: u64) -> u64 {
    16 | 1 << 30 | 1 << 31 | 5 << 32 | 1 << 41 | asid << 48
}

/// Valid, stage 1, one CD.
const STE_WORD: u64 = 1 | 5 << 1 | BEHIND;

#[test]
fn a_changed_cd_is_told_before_its_translations() {
    let setup = [
        (STE, STE_WORD),
        (BEHIND, cd(5)),
        (BEHIND + 8, ROOT),
        (BEHIND + 56, 0),
    ];
    let store = [(BEHIND, cd(6)), (BEHIND + 8, OTHER_ROOT)];
    let law =
        |commands: &[Words]| law_of_change(rig(&SMMU, SMMU_REGISTERS), &setup, &store, commands);
    let device = u64::from(DEVICE) << 32;
    let (cfgi_cd, sync) = ([0x05 | device, 1], [0x46, 0]);
    assert_eq!(law(&[cfgi_cd, sync]), None);
    assert_eq!(law(&[[0x06 | device, 0], sync]), None);
    assert_eq!(law(&[[0x03 | device, 1], sync]), None);
    assert_eq!(law(&[[0x04, 31], sync]), None);
    assert_eq!(law(&[]), Some(Law::Reach));
    assert_eq!(law(&[cfgi_cd]), Some(Law::Reach));
    // Another substream, another stream.
    assert_eq!(law(&[[0x05 | device | 1 << 12, 1], sync]), Some(Law::Reach));
    assert_eq!(law(&[[0x05 | 3 << 32, 1], sync]), Some(Law::Reach));
    // With the same ASID, translations have to go as well.
    let same = [(BEHIND + 8, OTHER_ROOT)];
    let law =
        |commands: &[Words]| law_of_change(rig(&SMMU, SMMU_REGISTERS), &setup, &same, commands);
    let asid = [0x11 | 5 << 48, 0];
    assert_eq!(law(&[cfgi_cd, sync, asid, sync]), None);
    assert_eq!(law(&[cfgi_cd, sync]), Some(Law::Reach));
    assert_eq!(
        law(&[cfgi_cd, sync, [0x11 | 6 << 48, 0], sync]),
        Some(Law::Reach)
    );
    // The translations are fetched again while the old CD is in use.
    assert_eq!(law(&[asid, sync, cfgi_cd, sync]), Some(Law::Reach));
    assert_eq!(law(&[cfgi_cd, asid, sync]), Some(Law::Reach));
}

#[test]
fn a_cd_that_is_stored_after_its_command_is_caught() {
    let mut rig = rig(&SMMU, SMMU_REGISTERS);
    for (address, word) in [
        (STE, STE_WORD),
        (BEHIND, cd(5)),
        (BEHIND + 8, ROOT),
        (BEHIND + 56, 0),
    ] {
        rig.put(address, word);
    }
    attach(&rig, DOMAIN);
    rig.warm(IOVA, OA - IOVA);
    rig.ledger.detach(DEVICE, None);
    rig.send(&[[0x05 | u64::from(DEVICE) << 32, 1]]);
    rig.put(BEHIND, 0);
    rig.send(&[[0x46, 0]]);
    rig.wait();
    rig.ledger.detach_done(DEVICE, None);
    assert_eq!(rig.law(IOVA..=IOVA + 0xfff), Some(Law::Reach));
}

#[test]
fn an_ste_that_was_not_valid_is_cached() {
    let setup = [
        (STE, 0),
        (STE + 56, 0),
        (BEHIND, cd(5)),
        (BEHIND + 8, ROOT),
        (BEHIND + 56, 0),
    ];
    let valid = [(STE, STE_WORD)];
    let law =
        |commands: &[Words]| law_of_first(rig(&SMMU, SMMU_REGISTERS), &setup, &valid, commands);
    let cfgi_ste = [0x03 | u64::from(DEVICE) << 32, 1];
    assert_eq!(law(&[cfgi_ste, [0x46, 0]]), None);
    assert_eq!(law(&[]), Some(Law::Missed));
    assert_eq!(
        law(&[[0x05 | u64::from(DEVICE) << 32, 0], [0x46, 0]]),
        Some(Law::Missed)
    );
}

#[test]
fn second_stages_are_tagged_by_their_vmid() {
    // Stage 2 alone: VMID 7, 48 bits from level 0, 4 KiB, 48 output bits, AArch64, S2R.
    let stage2 = 7 | (16 | 2 << 6 | 5 << 16) << 32 | 1 << 51 | 1 << 58;
    let page = |oa: u64| oa | 0x7ff;
    let setup = [
        (STE, 1 | 6 << 1),
        (STE + 16, stage2),
        (STE + 24, ROOT),
        (STE + 56, 0),
        (ROOT + 0x3008, page(OA)),
        (OTHER_ROOT + 0x3008, page(OTHER_OA)),
    ];
    let store = [(STE + 24, OTHER_ROOT)];
    let law =
        |commands: &[Words]| law_of_change(rig(&SMMU, SMMU_REGISTERS), &setup, &store, commands);
    let (cfgi_ste, sync) = ([0x03 | u64::from(DEVICE) << 32, 1], [0x46, 0]);
    assert_eq!(law(&[cfgi_ste, sync, [0x28 | 7 << 32, 0], sync]), None);
    assert_eq!(
        law(&[cfgi_ste, sync, [0x28 | 6 << 32, 0], sync]),
        Some(Law::Reach)
    );
    assert_eq!(law(&[[0x28 | 7 << 32, 0], sync]), Some(Law::Reach));
}

const VTD_REGISTERS: vtd::Registers = vtd::Registers {
    // Tables of four levels; translation enabled; legacy root table.
    cap: 1 << 10,
    ecap: 0,
    gsts: 1 << 31,
    rtaddr: TABLE,
    host_address_bits: 48,
};
const CONTEXT_ENTRY: u64 = BEHIND + 16 * DEVICE as u64;

#[test]
fn a_changed_context_entry_is_told_with_its_domain() {
    let setup = [
        (TABLE, BEHIND | 1),
        (TABLE + 8, 0),
        (CONTEXT_ENTRY, ROOT | 1),
        (CONTEXT_ENTRY + 8, 2 | 9 << 8),
    ];
    let store = [(CONTEXT_ENTRY, OTHER_ROOT | 1)];
    let law =
        |commands: &[Words]| law_of_change(rig(&VTD, VTD_REGISTERS), &setup, &store, commands);
    let device = u64::from(DEVICE) << 32;
    let (context, wait) = ([1 | 3 << 4 | 9 << 16 | device, 0], [5, 0]);
    let domain = [2 | 2 << 4 | 9 << 16, 0];
    assert_eq!(law(&[context, wait, domain, wait]), None);
    assert_eq!(law(&[[1 | 1 << 4, 0], wait, domain, wait]), None);
    assert_eq!(law(&[context, wait]), Some(Law::Reach));
    assert_eq!(law(&[domain, wait]), Some(Law::Reach));
    // The new domain's number in the place of the old one's.
    let other = [1 | 3 << 4 | 8 << 16 | device, 0];
    assert_eq!(law(&[other, wait, domain, wait]), Some(Law::Reach));
}

#[test]
fn in_caching_mode_an_absent_context_entry_belongs_to_domain_0() {
    let setup = [(TABLE, BEHIND | 1), (TABLE + 8, 0), (CONTEXT_ENTRY, 0)];
    let valid = [(CONTEXT_ENTRY + 8, 2 | 9 << 8), (CONTEXT_ENTRY, ROOT | 1)];
    let law = |machine, commands: &[Words]| {
        law_of_first(rig(machine, VTD_REGISTERS), &setup, &valid, commands)
    };
    let context = |domain: u64| [1 | 3 << 4 | domain << 16 | u64::from(DEVICE) << 32, 0];
    assert_eq!(law(&VTD, &[]), None);
    assert_eq!(law(&VTD_CACHING, &[context(0), [5, 0]]), None);
    assert_eq!(law(&VTD_CACHING, &[context(9), [5, 0]]), Some(Law::Missed));
    assert_eq!(law(&VTD_CACHING, &[]), Some(Law::Missed));
}

const AMD_REGISTERS: amd::Registers = amd::Registers {
    devtab: TABLE,
    control: 1,
};
const DTE: u64 = TABLE + 32 * DEVICE as u64;

/// Valid, four levels, readable and writable.
const fn dte(root: u64) -> u64 {
    0b11 | 4 << 9 | root | 0b11 << 61
}

#[test]
fn a_changed_device_table_entry_is_told() {
    let setup = [(DTE, dte(ROOT)), (DTE + 8, 9), (DTE + 24, 0)];
    let store = [(DTE, dte(OTHER_ROOT)), (DTE + 8, 8)];
    let law =
        |commands: &[Words]| law_of_change(rig(&AMD, AMD_REGISTERS), &setup, &store, commands);
    let (entry, wait) = ([2 << 60 | u64::from(DEVICE), 0], [1 << 60, 0]);
    assert_eq!(law(&[entry, wait]), None);
    assert_eq!(law(&[[8 << 60, 0], wait]), None);
    assert_eq!(law(&[]), Some(Law::Reach));
    assert_eq!(law(&[[2 << 60 | 1, 0], wait]), Some(Law::Reach));
}

#[test]
fn a_blocking_device_table_entry_may_be_cached() {
    // TV = 0 blocks.
    let setup = [(DTE, 1), (DTE + 8, 9), (DTE + 24, 0)];
    let valid = [(DTE, dte(ROOT))];
    let law = |commands: &[Words]| {
        law_of_first(rig(&AMD_ABSENT, AMD_REGISTERS), &setup, &valid, commands)
    };
    let entry = [2 << 60 | u64::from(DEVICE), 0];
    assert_eq!(law(&[entry, [1 << 60, 0]]), None);
    assert_eq!(law(&[]), Some(Law::Missed));
}

const RISCV_REGISTERS: riscv::Registers = riscv::Registers {
    // Sv48, 56 address bits; one level of directory.
    capabilities: 1 << 10 | 56 << 32,
    fctl: 0,
    ddtp: 2 | TABLE >> 12 << 10,
};
const DC: u64 = TABLE + 32 * DEVICE as u64;

#[test]
fn a_changed_device_context_is_told() {
    let sv48 = |root: u64| 9 << 60 | root >> 12;
    let setup = [
        (DC, 1),
        (DC + 8, 0),
        (DC + 16, 5 << 12),
        (DC + 24, sv48(ROOT)),
    ];
    let store = [(DC + 24, sv48(OTHER_ROOT))];
    let law =
        |commands: &[Words]| law_of_change(rig(&RISCV, RISCV_REGISTERS), &setup, &store, commands);
    let device = u64::from(DEVICE) << 40 | 1 << 33;
    let (context, fence) = ([3 | device, 0], [2, 0]);
    let process = |pscid: u64| [1 | pscid << 12 | 1 << 32, 0];
    assert_eq!(law(&[context, fence, process(5), fence]), None);
    assert_eq!(law(&[context, fence, process(6), fence]), Some(Law::Reach));
    assert_eq!(law(&[process(5), fence]), Some(Law::Reach));
    assert_eq!(law(&[[3, 0], fence, process(5), fence]), None);
    let other = [3 | 1 << 33, 0];
    assert_eq!(law(&[other, fence, process(5), fence]), Some(Law::Reach));
}

#[test]
fn a_device_context_that_was_not_valid_is_not_cached() {
    let setup = [
        (DC, 0),
        (DC + 8, 0),
        (DC + 16, 5 << 12),
        (DC + 24, 9 << 60 | ROOT >> 12),
    ];
    let found = law_of_first(rig(&RISCV, RISCV_REGISTERS), &setup, &[(DC, 1)], &[]);
    assert_eq!(found, None);
}

/// PASID directory and table.
const DIRECTORY: u64 = 0xa_0000;
const PASIDS: u64 = 0xb_0000;

#[test]
fn a_changed_pasid_entry_is_told_with_domain_and_pasid() {
    let registers = vtd::Registers {
        rtaddr: TABLE | 1 << 10,
        ..VTD_REGISTERS
    };
    // Requests without PASID are those of PASID 3; second stage, four levels.
    let entry = |root: u64| 1 | 2 << 2 | 2 << 6 | root;
    let context = BEHIND + 32 * u64::from(DEVICE);
    let setup = [
        (TABLE, BEHIND | 1),
        (TABLE + 8, 0),
        (context, DIRECTORY | 1),
        (context + 8, 3),
        (DIRECTORY, PASIDS | 1),
        (PASIDS + 3 * 64, entry(ROOT)),
        (PASIDS + 3 * 64 + 8, 9),
    ];
    let store = [(PASIDS + 3 * 64, entry(OTHER_ROOT))];
    let law = |commands: &[Words]| law_of_change(rig(&VTD, registers), &setup, &store, commands);
    let (domain, wait) = ([2 | 2 << 4 | 9 << 16, 0], [5, 0]);
    assert_eq!(law(&[[7 | 9 << 16, 0], wait, domain, wait]), None);
    assert_eq!(law(&[[7 | 3 << 4, 0], wait, domain, wait]), None);
    assert_eq!(law(&[[7 | 9 << 16, 0], wait]), Some(Law::Reach));
    assert_eq!(
        law(&[[7 | 8 << 16, 0], wait, domain, wait]),
        Some(Law::Reach)
    );
    // The context cache is another one.
    let contexts = [1 | 1 << 4, 0];
    assert_eq!(law(&[contexts, wait, domain, wait]), Some(Law::Reach));
}

#[test]
fn requests_without_pasid_are_tagged_by_the_one_that_the_context_names() {
    let registers = vtd::Registers {
        rtaddr: TABLE | 1 << 10,
        ..VTD_REGISTERS
    };
    let context = BEHIND + 32 * u64::from(DEVICE);
    // First stage of four levels, PASID 3.
    let setup = [
        (TABLE, BEHIND | 1),
        (TABLE + 8, 0),
        (context, DIRECTORY | 1),
        (context + 8, 3),
        (DIRECTORY, PASIDS | 1),
        (PASIDS + 3 * 64, 1 | 1 << 6),
        (PASIDS + 3 * 64 + 8, 9),
        (PASIDS + 3 * 64 + 16, ROOT),
    ];
    let store = [(PASIDS + 3 * 64 + 16, OTHER_ROOT)];
    let law = |pasid: u64| {
        let commands = [
            [7 | 1 << 4 | 9 << 16 | pasid << 32, 0],
            [5, 0],
            [6 | 2 << 4 | 9 << 16 | pasid << 32, 0],
            [5, 0],
        ];
        law_of_change(rig(&FIRST, registers), &setup, &store, &commands)
    };
    assert_eq!(law(3), None);
    assert_eq!(law(0), Some(Law::Reach));
}

#[test]
fn requests_with_and_without_pasid_have_contexts_of_their_own() {
    let rig = rig(&AMD, AMD_REGISTERS);
    // Host table for requests without PASID; guest tables behind a GCR3 table of one level, in which there
    // is none.
    let (gv, gcr3) = (1 << 55, BEHIND);
    rig.put(DTE, dte(ROOT) | gv | (gcr3 >> 12 & 7) << 58);
    rig.put(DTE + 8, 9 | (gcr3 >> 15 & 0xffff) << 16);
    rig.put(DTE + 24, 0);
    rig.put(BEHIND, 0);
    attach(&rig, DOMAIN);
    rig.warm(IOVA, OA - IOVA);
    let outcome = rig.iommu.access(DEVICE, Some(5), IOVA, Rights::READ);
    let outcome = outcome.expect("a request with PASID reaches nothing");
    assert!(
        matches!(outcome, Outcome::Refused(Refusal::Context(_))),
        "{outcome:?}"
    );
}

#[test]
fn a_changed_process_context_is_told() {
    let registers = riscv::Registers {
        capabilities: RISCV_REGISTERS.capabilities | 1 << 38,
        ..RISCV_REGISTERS
    };
    let sv48 = |root: u64| 9 << 60 | root >> 12;
    // PDTV, and DPE: requests without a process are those of process 0. PD8.
    let setup = [
        (DC, 1 | 1 << 5 | 1 << 9),
        (DC + 8, 0),
        (DC + 16, 0),
        (DC + 24, 1 << 60 | BEHIND >> 12),
        (BEHIND, 1 | 5 << 12),
        (BEHIND + 8, sv48(ROOT)),
    ];
    let store = [(BEHIND + 8, sv48(OTHER_ROOT))];
    let law = |commands: &[Words]| law_of_change(rig(&RISCV, registers), &setup, &store, commands);
    let device = u64::from(DEVICE) << 40 | 1 << 33;
    let (process, fence) = ([3 | 1 << 7 | device, 0], [2, 0]);
    let vma = |pscid: u64| [1 | pscid << 12 | 1 << 32, 0];
    assert_eq!(law(&[process, fence, vma(5), fence]), None);
    assert_eq!(law(&[[3 | device, 0], fence, vma(5), fence]), None);
    assert_eq!(law(&[process, fence, vma(0), fence]), Some(Law::Reach));
    let other = [3 | 1 << 7 | 1 << 12 | device, 0];
    assert_eq!(law(&[other, fence, vma(5), fence]), Some(Law::Reach));
}

#[test]
fn two_stages_are_tagged_by_asid_and_vmid() {
    // The second stage maps the lowest GiB to itself by one block.
    let second_root = 0xc_0000;
    let stage2 = 7 | (16 | 2 << 6 | 5 << 16) << 32 | 1 << 51 | 1 << 58;
    let setup = [
        (STE, 1 | 7 << 1 | BEHIND),
        (STE + 16, stage2),
        (STE + 24, second_root),
        (STE + 56, 0),
        (second_root, (second_root + 0x1000) | 0b11),
        (second_root + 0x1000, 0x7fd),
        (BEHIND, cd(5)),
        (BEHIND + 8, ROOT),
        (BEHIND + 56, 0),
    ];
    let law = |commands: &[Words]| {
        let mut rig = rig(&SMMU, SMMU_REGISTERS);
        for (address, word) in setup {
            rig.put(address, word);
        }
        let parent = 3;
        rig.ledger.map(parent, 0..=0x3fff_ffff, 0, Rights::ALL);
        let nested = |guest| Attachment::Nested {
            guest: Some(guest),
            parent,
        };
        let [oa, other] = [0x1000_0000, 0x2000_0000];
        link(&rig, 4, ROOT, oa);
        link(&rig, 5, OTHER_ROOT, other);
        rig.ledger.attach(DEVICE, None, nested(4));
        assert_eq!(rig.read(IOVA).expect("nothing is stale yet"), Some(oa));
        rig.ledger.detach(DEVICE, None);
        rig.ledger.attach(DEVICE, None, nested(5));
        rig.put(BEHIND + 8, OTHER_ROOT);
        rig.send(commands);
        rig.wait();
        rig.ledger.detach_done(DEVICE, None);
        rig.law(IOVA..=IOVA + 0xfff)
    };
    let (cfgi_cd, sync) = ([0x05 | u64::from(DEVICE) << 32, 1], [0x46, 0]);
    let asid = |asid: u64, vmid: u64| [0x11 | vmid << 32 | asid << 48, 0];
    assert_eq!(law(&[cfgi_cd, sync, asid(5, 7), sync]), None);
    assert_eq!(law(&[cfgi_cd, sync, asid(5, 0), sync]), Some(Law::Reach));
    assert_eq!(law(&[cfgi_cd, sync, asid(6, 7), sync]), Some(Law::Reach));
    assert_eq!(law(&[asid(5, 7), sync]), Some(Law::Reach));
    // The second stage has not changed.
    assert_eq!(
        law(&[cfgi_cd, sync, [0x2a | 7 << 32, IOVA], sync]),
        Some(Law::Reach)
    );
}
