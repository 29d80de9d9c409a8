//! AMD-Vi.

use iopt_reference::context::amd::{Registers, devices, resolve};
use iopt_reference::context::{Binding, ContextFault};
use iopt_reference::{Fault, PageMap, Table, amd, x86};

use crate::{LIMIT, OPEN, ids, memory, put};

/// Enabled; a device table of one page, 128 entries.
const REGISTERS: Registers = Registers {
    devtab: 0x1000,
    control: 1,
};
const GCR3TRP: Registers = Registers {
    control: 1 | 1 << 58,
    ..REGISTERS
};

const V: u64 = 1;
const TV: u64 = 2;
const GIOV: u64 = 1 << 54;
const GV: u64 = 1 << 55;
const IR: u64 = 1 << 61;
const IW: u64 = 1 << 62;

/// The entry of device id 5.
fn dte(words: &[u64]) -> PageMap {
    memory(&[(0x1000 + 32 * 5, words)])
}

fn of(words: &[u64]) -> Result<Binding, ContextFault> {
    resolve(&REGISTERS, &dte(words), 5, None)
}

fn guest(root: u64, levels: u8) -> Table {
    Table::LongMode(x86::Config::new(root, levels))
}

#[test]
fn entries_without_a_table_decode_by_hand() {
    assert_eq!(
        resolve(&Registers::default(), &PageMap::new(), 5, None),
        Ok(OPEN)
    );
    assert_eq!(of(&[0]), Ok(OPEN));
    // V alone does not make the page table fields valid.
    assert_eq!(of(&[V | IR | IW | 0x7000 | 3 << 9]), Ok(Binding::Blocked));
    assert_eq!(of(&[V | TV]), Ok(Binding::Blocked));
    assert_eq!(of(&[V | TV | IR | IW]), Ok(OPEN));
    assert_eq!(
        of(&[V | TV | IR]),
        Ok(Binding::PassThrough {
            read: true,
            write: false
        })
    );
    let illegal = ContextFault::Illegal {
        field: "DTE.Mode",
        value: 7,
    };
    assert_eq!(of(&[V | TV | IR | IW | 7 << 9]), Err(illegal));
}

#[test]
fn host_tables_decode_by_hand() {
    // The first entry of a real table.
    let table = Table::AmdV1(amd::Config::new(0x23f_5000, 3));
    assert_eq!(of(&[0x6000_0000_023f_5603, 1]), Ok(Binding::Table(table)));
    let read_only = Table::AmdV1(amd::Config {
        write: false,
        ..amd::Config::new(0x23f_5000, 6)
    });
    assert_eq!(
        of(&[V | TV | IR | 6 << 9 | 0x23f_5000]),
        Ok(Binding::Table(read_only))
    );
}

#[test]
fn the_device_table_ends_where_the_register_says() {
    let memory = memory(&[(0x1fe0, &[V | TV]), (0x2000, &[V | TV])]);
    let fault = |device_id| Err(ContextFault::DeviceId { device_id });
    assert_eq!(
        resolve(&REGISTERS, &memory, 127, None),
        Ok(Binding::Blocked)
    );
    assert_eq!(resolve(&REGISTERS, &memory, 128, None), fault(128));
    let two_pages = Registers {
        devtab: 0x1001,
        ..REGISTERS
    };
    assert_eq!(
        resolve(&two_pages, &memory, 128, None),
        Ok(Binding::Blocked)
    );
    assert_eq!(
        resolve(&two_pages, &memory, u32::MAX, None),
        fault(u32::MAX)
    );
    assert_eq!(
        ids(&devices(&two_pages, &memory, LIMIT).unwrap()),
        [127, 128]
    );
    assert_eq!(
        devices(&two_pages, &memory, 255),
        Err(ContextFault::Limit { limit: 255 })
    );
}

#[test]
fn the_guest_cr3_table_pointer_is_in_three_pieces() {
    // 0xf_8765_4321_3000: bits 14:12 = 3, 30:15 = 0x8642, 51:31 = 0x1f0eca.
    let pointer = 0xf_8765_4321_3000u64;
    let words = [
        V | TV | GV | GIOV | (pointer >> 12 & 7) << 58,
        // With all bits between the pieces set (IOTLB to SysMgt), and a domain id.
        (pointer >> 15 & 0xffff) << 16 | (pointer >> 31) << 43 | 0x7ff << 32 | 0xffff,
        0,
        0,
    ];
    assert_eq!(words[0] >> 58 & 7, 3);
    assert_eq!(words[1] >> 16 & 0xffff, 0x8642);
    assert_eq!(words[1] >> 43, 0x1f_0eca);
    let mut memory = dte(&words);
    memory.write64(pointer, 0x9001);
    assert_eq!(resolve(&REGISTERS, &memory, 5, None), Ok(Binding::Blocked));
    memory.write64(0x1000 + 32 * 5, words[0] | IR | IW);
    assert_eq!(
        resolve(&REGISTERS, &memory, 5, None),
        Ok(Binding::Table(guest(0x9000, 4)))
    );
    // GuestPagingMode 1: five levels.
    memory.write64(0x1000 + 32 * 5 + 16, 1 << 54);
    assert_eq!(
        resolve(&REGISTERS, &memory, 5, None),
        Ok(Binding::Table(guest(0x9000, 5)))
    );
    memory.write64(0x1000 + 32 * 5 + 16, 2 << 54);
    let illegal = ContextFault::Illegal {
        field: "DTE.GuestPagingMode",
        value: 2,
    };
    assert_eq!(resolve(&REGISTERS, &memory, 5, None), Err(illegal));
}

/// V, TV, GV, both rights, `levels` of guest CR3 tables from 0x8000 on.
fn with_guest(levels: u64, more: u64) -> PageMap {
    let mut memory = dte(&[
        V | TV | GV | IR | IW | (levels - 1) << 56 | more,
        1 << 16,
        0,
        0,
    ]);
    put(&mut memory, 0x8000, &[0x9001]);
    memory
}

#[test]
fn guest_cr3_tables_have_one_to_three_levels() {
    let mut one = with_guest(1, 0);
    one.write64(0x8000 + 8 * 511, 0xa019);
    assert_eq!(
        resolve(&REGISTERS, &one, 5, Some(511)),
        Ok(Binding::Table(guest(0xa000, 4)))
    );
    assert_eq!(
        resolve(&REGISTERS, &one, 5, Some(1)),
        Err(ContextFault::NotValid { address: 0x8008 })
    );
    assert_eq!(
        resolve(&REGISTERS, &one, 5, Some(512)),
        Err(ContextFault::Pasid { pasid: Some(512) })
    );
    let mut two = with_guest(2, 0);
    two.write64(0x8010, 0xb001);
    two.write64(0xb018, 0xc001);
    assert_eq!(
        resolve(&REGISTERS, &two, 5, Some(2 << 9 | 3)),
        Ok(Binding::Table(guest(0xc000, 4)))
    );
    let mut three = with_guest(3, 0);
    three.write64(0x8008, 0xb001);
    three.write64(0xb010, 0xc001);
    three.write64(0xc018, 0xd001);
    let pasid = Some(1 << 18 | 2 << 9 | 3);
    assert_eq!(
        resolve(&REGISTERS, &three, 5, pasid),
        Ok(Binding::Table(guest(0xd000, 4)))
    );
    let four = with_guest(4, 0);
    let illegal = ContextFault::Illegal {
        field: "DTE.GLX",
        value: 3,
    };
    assert_eq!(resolve(&REGISTERS, &four, 5, Some(0)), Err(illegal));
}

#[test]
fn requests_without_pasid_use_the_guest_table_only_with_giov() {
    assert_eq!(resolve(&REGISTERS, &with_guest(1, 0), 5, None), Ok(OPEN));
    let table = Ok(Binding::Table(guest(0x9000, 4)));
    assert_eq!(resolve(&REGISTERS, &with_guest(1, GIOV), 5, None), table);
    assert_eq!(resolve(&REGISTERS, &with_guest(1, 0), 5, Some(0)), table);
    let no_guest = dte(&[V | TV | IR | IW]);
    let refused = Err(ContextFault::Pasid { pasid: Some(0) });
    assert_eq!(resolve(&REGISTERS, &no_guest, 5, Some(0)), refused);
}

#[test]
fn with_a_host_table_the_guest_table_is_nested() {
    let host = Table::AmdV1(amd::Config::new(0x2_0000, 1));
    let nested = Binding::Nested {
        first: guest(0x9000, 4),
        second: host,
    };
    let memory = with_guest(1, GIOV | 1 << 9 | 0x2_0000);
    assert_eq!(resolve(&REGISTERS, &memory, 5, None), Ok(nested));
    // GCR3TRPMode: the guest CR3 table is at guest address 0x8000, entry 8 of the host table.
    let missing = Fault::MissingMemory { address: 0x2_0040 };
    let fault = ContextFault::Second {
        ipa: 0x8000,
        fault: missing,
    };
    assert_eq!(resolve(&GCR3TRP, &memory, 5, None), Err(fault));
    let mut memory = memory;
    memory.write64(0x2_0040, IR | IW | 0x30_0001);
    memory.write64(0x30_0000, 0xe001);
    let nested = Binding::Nested {
        first: guest(0xe000, 4),
        second: host,
    };
    assert_eq!(resolve(&GCR3TRP, &memory, 5, None), Ok(nested));
}
