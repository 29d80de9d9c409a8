//! VT-d.

use iopt_reference::context::vtd::{Registers, devices, resolve};
use iopt_reference::context::{Binding, ContextFault};
use iopt_reference::{PageMap, Setup, Table, vtd, x86};

use crate::{LIMIT, OPEN, ids, memory, put};

/// SAGAW: 3, 4 and 5 levels. SLLPS: 2 MiB and 1 GiB. SC and PT.
const LEGACY: Registers = Registers {
    cap: 0b1110 << 8 | 3 << 34,
    ecap: 1 << 7 | 1 << 6,
    gsts: 1 << 31,
    rtaddr: 0x1000,
    host_address_bits: 46,
};
const SCALABLE: Registers = Registers {
    rtaddr: 0x1000 | 1 << 10,
    ..LEGACY
};

/// The context entry of 01:02.3 in a legacy table.
fn legacy(low: u64, high: u64) -> PageMap {
    memory(&[(0x1010, &[0x2001, 0]), (0x2000 + 16 * 0x13, &[low, high])])
}

fn of_legacy(low: u64, high: u64) -> Result<Binding, ContextFault> {
    resolve(&LEGACY, &legacy(low, high), 0x113, None)
}

fn second(root: u64, levels: u8) -> Table {
    Table::VtdSecond(vtd::Config {
        oa_bits: 46,
        ..vtd::Config::new(root, levels)
    })
}

fn first(root: u64, levels: u8) -> Table {
    Table::LongMode(x86::Config::vtd_first(root, levels, 46))
}

#[test]
fn disabled_translation_lets_all_through() {
    let off = Registers { gsts: 0, ..LEGACY };
    assert_eq!(resolve(&off, &PageMap::new(), 0x113, None), Ok(OPEN));
    assert_eq!(devices(&off, &PageMap::new(), LIMIT), Ok(vec![]));
    // TTM 3: DMA is aborted.
    let abort = Registers {
        rtaddr: 3 << 10,
        ..LEGACY
    };
    assert_eq!(
        resolve(&abort, &PageMap::new(), 0, None),
        Ok(Binding::Blocked)
    );
    assert_eq!(devices(&abort, &PageMap::new(), LIMIT), Ok(vec![]));
    let reserved = Registers {
        rtaddr: 2 << 10,
        ..LEGACY
    };
    let illegal = ContextFault::Illegal {
        field: "RTADDR.TTM",
        value: 2,
    };
    assert_eq!(resolve(&reserved, &PageMap::new(), 0, None), Err(illegal));
}

#[test]
fn legacy_context_entries_decode_by_hand() {
    for (aw, levels) in [(1, 3), (2, 4), (3, 5)] {
        let binding = of_legacy(0x7001, 5 << 8 | aw);
        assert_eq!(binding, Ok(Binding::Table(second(0x7000, levels))));
        // TT 1: the same, and the device may keep translations.
        assert_eq!(of_legacy(0x7005, 5 << 8 | aw), binding);
    }
    assert_eq!(of_legacy(0x9, 2), Ok(OPEN));
    let illegal = |field, value| Err(ContextFault::Illegal { field, value });
    assert_eq!(of_legacy(0x700d, 2), illegal("TT", 3));
    assert_eq!(of_legacy(0x7001, 0), illegal("AW", 0));
    assert_eq!(of_legacy(0x7001, 4), illegal("AW", 4));
    let address = 0x2000 + 16 * 0x13;
    assert_eq!(
        of_legacy(0x7000, 2),
        Err(ContextFault::NotValid { address })
    );
    // The root is wider than the host.
    for root in [1 << 46, 1 << 63] {
        assert_eq!(
            of_legacy(root | 1, 2),
            Err(ContextFault::Setup(Setup::Root { root }))
        );
    }
}

#[test]
fn capabilities_limit_what_legacy_entries_may_say() {
    let pass_through = Registers {
        ecap: 1 << 6,
        ..LEGACY
    };
    assert_eq!(resolve(&pass_through, &legacy(9, 2), 0x113, None), Ok(OPEN));
    let narrow = Registers {
        cap: 1 << 9,
        ecap: 1 << 2,
        ..LEGACY
    };
    let illegal = |field, value| Err(ContextFault::Illegal { field, value });
    assert_eq!(
        resolve(&narrow, &legacy(0x7001, 2), 0x113, None),
        illegal("AW", 2)
    );
    assert_eq!(
        resolve(&narrow, &legacy(9, 1), 0x113, None),
        illegal("TT", 2)
    );
    let table = Table::VtdSecond(vtd::Config {
        root: 0x7000,
        levels: 3,
        oa_bits: 46,
        large_pages: 0,
        snoop_control: false,
        device_tlb: true,
    });
    assert_eq!(
        resolve(&narrow, &legacy(0x7001, 1), 0x113, None),
        Ok(Binding::Table(table))
    );
}

#[test]
fn requests_with_a_pasid_need_scalable_mode() {
    let refused = Err(ContextFault::Pasid { pasid: Some(1) });
    assert_eq!(
        resolve(&LEGACY, &legacy(0x7001, 2), 0x113, Some(1)),
        refused
    );
    let too_wide = Err(ContextFault::Pasid {
        pasid: Some(1 << 20),
    });
    assert_eq!(
        resolve(&LEGACY, &legacy(0x7001, 2), 0x113, Some(1 << 20)),
        too_wide
    );
}

#[test]
fn a_bus_without_context_table_has_no_devices() {
    let memory = legacy(0x7001, 2);
    let fault = |device_id| Err(ContextFault::DeviceId { device_id });
    assert_eq!(resolve(&LEGACY, &memory, 0x213, None), fault(0x213));
    assert_eq!(resolve(&LEGACY, &memory, 0x1_0000, None), fault(0x1_0000));
    assert_eq!(resolve(&LEGACY, &memory, 0xffff, None), fault(0xffff));
    assert_eq!(ids(&devices(&LEGACY, &memory, LIMIT).unwrap()), [0x113]);
    assert_eq!(
        devices(&LEGACY, &memory, 255),
        Err(ContextFault::Limit { limit: 255 })
    );
}

/// 01:12.3 (devfn 0x93, upper table) with PDTS 0, PASIDE, `RID_PRIV`, `RID_PASID` 0x41 and one PASID
/// entry there, and the same for PASID 0x1fff.
fn scalable(entry: [u64; 3]) -> PageMap {
    memory(&[
        (0x1010, &[0x2001, 0x3001]),
        (0x3000 + 32 * 0x13, &[0x4001 | 1 << 3, 1 << 20 | 0x41, 0, 0]),
        (0x4008, &[0x5001]),
        (0x4000 + 8 * 127, &[0x6001]),
        (0x5040, &entry),
        (0x6000 + 64 * 63, &entry),
    ])
}

fn of_scalable(entry: [u64; 3]) -> Result<Binding, ContextFault> {
    resolve(&SCALABLE, &scalable(entry), 0x193, None)
}

#[test]
fn pasid_entries_decode_by_hand() {
    // P, AW 2, PGTT.
    let second_stage = 0x7001 | 2 << 2 | 2 << 6;
    assert_eq!(
        of_scalable([second_stage, 5, 0]),
        Ok(Binding::Table(second(0x7000, 4)))
    );
    let first_stage = 1 | 1 << 6;
    assert_eq!(
        of_scalable([first_stage, 5, 0x8000]),
        Ok(Binding::Table(first(0x8000, 4)))
    );
    assert_eq!(
        of_scalable([first_stage, 5, 0x8004]),
        Ok(Binding::Table(first(0x8000, 5)))
    );
    let nested = Binding::Nested {
        first: first(0x8000, 4),
        second: second(0x7000, 5),
    };
    assert_eq!(
        of_scalable([0x7001 | 3 << 2 | 3 << 6, 5, 0x8001]),
        Ok(nested)
    );
    assert_eq!(of_scalable([1 | 4 << 6, 5, 0]), Ok(OPEN));
    let illegal = |field, value| Err(ContextFault::Illegal { field, value });
    assert_eq!(of_scalable([1 | 5 << 6, 0, 0]), illegal("PGTT", 5));
    assert_eq!(of_scalable([first_stage, 0, 0x8008]), illegal("FSPM", 2));
    assert_eq!(
        of_scalable([0, 0, 0]),
        Err(ContextFault::NotValid { address: 0x5040 })
    );
}

#[test]
fn the_pasid_indexes_directory_and_table() {
    let memory = scalable([0x7001 | 2 << 2 | 2 << 6, 5, 0]);
    let of = |pasid| resolve(&SCALABLE, &memory, 0x193, Some(pasid));
    let table = Ok(Binding::Table(second(0x7000, 4)));
    assert_eq!((of(0x41), of(0x1fff)), (table, table));
    assert_eq!(of(0x42), Err(ContextFault::NotValid { address: 0x5080 }));
    assert_eq!(of(0x80), Err(ContextFault::NotValid { address: 0x4010 }));
    // PDTS 0: 128 directory entries.
    assert_eq!(
        of(0x2000),
        Err(ContextFault::Pasid {
            pasid: Some(0x2000)
        })
    );
    // PDTS 1, 2 and 4: twice as many, and so on.
    let mut memory = memory.clone();
    for (pdts, pasid) in [(1, 0x2000), (2, 0x4000), (4, 0x1_0000)] {
        memory.write64(0x3000 + 32 * 0x13, 0x4001 | 1 << 3 | pdts << 9);
        let address = 0x4000 + 8 * (u64::from(pasid) >> 6);
        memory.write64(address, 0x6001);
        let found = resolve(&SCALABLE, &memory, 0x193, Some(pasid | 0x3f));
        assert_eq!(found, table);
        let refused = Err(ContextFault::Pasid {
            pasid: Some(2 * pasid),
        });
        assert_eq!(resolve(&SCALABLE, &memory, 0x193, Some(2 * pasid)), refused);
    }
    memory.write64(0x3000 + 32 * 0x13, 0x4001);
    let refused = Err(ContextFault::Pasid { pasid: Some(0x41) });
    assert_eq!(resolve(&SCALABLE, &memory, 0x193, Some(0x41)), refused);
    assert_eq!(resolve(&SCALABLE, &memory, 0x193, None), table);
}

#[test]
fn scalable_buses_have_two_context_tables() {
    let mut memory = scalable([1 | 4 << 6, 0, 0]);
    put(&mut memory, 0x2000 + 32 * 0x13, &[0x4001, 0x41]);
    assert_eq!(resolve(&SCALABLE, &memory, 0x113, None), Ok(OPEN));
    assert_eq!(
        ids(&devices(&SCALABLE, &memory, LIMIT).unwrap()),
        [0x113, 0x193]
    );
    memory.write64(0x1018, 0);
    assert_eq!(ids(&devices(&SCALABLE, &memory, LIMIT).unwrap()), [0x113]);
    let gone = Err(ContextFault::DeviceId { device_id: 0x193 });
    assert_eq!(resolve(&SCALABLE, &memory, 0x193, None), gone);
}
