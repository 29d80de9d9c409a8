//! Two stages in a row.

use iopt_reference::context::{Binding, BindingFault, Through};
use iopt_reference::{Fault, Memory as _, MemoryAttributes, PageMap, Table, riscv, vtd, x86};

use crate::{memory, rights};

/// The second stage maps IPAs 0 to 2 MiB to `0x1000_0000` on, read-only from `0x10_0000`, and
/// nothing from `0x18_0000`.
fn second() -> Table {
    Table::VtdSecond(vtd::Config::new(0x1000, 3))
}

/// The root of the first stage, an IPA; its tables lie one after the other.
fn first() -> Table {
    Table::LongMode(x86::Config::vtd_first(0x10_000, 4, 39))
}

fn both_stages(page: u64) -> PageMap {
    let mut memory = memory(&[
        (0x1000, 0x2003),
        (0x2000, 0x3003),
        (0x1001_0000, 0x1_1027),
        (0x1001_1000, 0x1_2027),
        (0x1001_2000, 0x1_3027),
        (0x1001_3000, page),
    ]);
    for index in 0..0x180 {
        let right = if index < 0x100 { 3 } else { 1 };
        memory.write64(0x3000 + 8 * index, 0x1000_0000 | index << 12 | right);
    }
    memory
}

fn binding() -> Binding {
    Binding::Nested {
        first: first(),
        second: second(),
    }
}

#[test]
fn tables_and_pages_of_the_first_stage_go_through_the_second() {
    let page = binding().walk(&both_stages(0x5067), 0xabc).unwrap();
    assert_eq!((page.oa, page.page_len), (0x1000_5abc, 0x1000));
    assert_eq!(rights(&page), "rwxu");
    // Without the second stage those tables are not there.
    assert_eq!(
        first().walk(&both_stages(0x5067), 0),
        Err(Fault::MissingMemory { address: 0x1_0000 })
    );
}

#[test]
fn rights_of_both_stages_are_intersected() {
    let mut write_only = both_stages(0x5067);
    write_only.write64(0x3028, 0x1000_5002);
    assert_eq!(rights(&binding().walk(&write_only, 0).unwrap()), "-w-u");
    assert_eq!(
        rights(&binding().walk(&both_stages(0x10_5067), 0).unwrap()),
        "r-xu"
    );
    assert_eq!(
        rights(&binding().walk(&both_stages(0x5065), 0).unwrap()),
        "r-xu"
    );
    assert_eq!(
        rights(&binding().walk(&both_stages(0x5063), 0).unwrap()),
        "rwx-"
    );
}

#[test]
fn the_smaller_of_both_entries_counts() {
    let mut memory = both_stages(0);
    // A first-stage page of 2 MiB at IPA 0.
    memory.write64(0x1001_2000, 0xe7);
    let page = binding().walk(&memory, 0x7_fabc).unwrap();
    assert_eq!(
        (page.oa, page.page_len, page.item_len),
        (0x1007_fabc, 0x1000, 0x1000)
    );
}

#[test]
fn a_fault_names_the_stage_and_the_address() {
    let fault = Fault::NotMapped { level: 1 };
    // The page lies behind a hole.
    assert_eq!(
        binding().walk(&both_stages(0x18_0067), 0x123),
        Err(BindingFault::Second {
            ipa: 0x18_0123,
            fault
        })
    );
    // A table lies behind a hole.
    let mut memory = both_stages(0);
    memory.write64(0x1001_1000, 0x18_0027);
    assert_eq!(
        binding().walk(&memory, 8 << 21),
        Err(BindingFault::Second {
            ipa: 0x18_0040,
            fault
        })
    );
    assert_eq!(
        binding().walk(&both_stages(0), 0),
        Err(BindingFault::First(fault))
    );
    // A table lies behind the second stage, where there is no memory.
    let mut memory = both_stages(0);
    memory.write64(0x1001_1000, 0x17_f027);
    let missing = Fault::MissingMemory { address: 0x17_f000 };
    assert_eq!(
        binding().walk(&memory, 0),
        Err(BindingFault::First(missing))
    );
}

#[test]
fn memory_behind_the_second_stage_needs_the_right_to_read() {
    let mut memory = both_stages(0);
    memory.write64(0x3028, 0x1000_5002);
    memory.write64(0x1000_5000, 7);
    memory.write64(0x1000_6000, 8);
    let through = Through {
        second: &second(),
        memory: &memory,
    };
    assert_eq!(through.read64(0x5000), None);
    assert_eq!(through.read64(0x6000), Some(8));
}

#[test]
fn one_stage_or_none_need_no_second() {
    let table = Table::Riscv(riscv::Config::new(riscv::Stage::First, 0x1000, 3));
    let memory = memory(&[(0x1000, 0x5000_00d7)]);
    assert_eq!(
        Binding::Table(table).walk(&memory, 5).unwrap().oa,
        0x1_4000_0005
    );
    let open = Binding::PassThrough {
        read: true,
        write: false,
    };
    let page = open.walk(&memory, 0xdead_beef).unwrap();
    assert_eq!((page.oa, rights(&page).as_str()), (0xdead_beef, "r-xu"));
    assert_eq!((page.memory, page.word), (MemoryAttributes::Unstated, 0));
    assert_eq!(
        Binding::Blocked.walk(&memory, 0),
        Err(BindingFault::Blocked)
    );
}
