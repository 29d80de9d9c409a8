//! Hand-made tables that are wrong, each with what is said of it.

use super::*;
use crate::firmware::acpi::iort::describe::REGIONS;
use crate::firmware::acpi::testing::seal;

#[test]
fn reserved_memory_that_is_nowhere_or_everywhere_is_refused() {
    let of = |ranges: &[(u64, u64)], mappings: &[Mapping]| {
        let nodes = [smmuv3(4, 0x1000, 0, 0, &[]), reserved(0, ranges, mappings)];
        describe(&table(6, &nodes)).map(|description| description.regions.len())
    };
    let one = [0, 0, 5, 48, 0];
    let zero = Fault::Value { value: 0 };
    assert_eq!(
        of(&[(0x1000, 0)], &[one]),
        fault(WHAT, 152, "a memory range", zero)
    );
    let top = u64::MAX - 0xfff;
    assert_eq!(of(&[(top, 0x1000)], &[one]), Ok(1));
    assert_eq!(
        of(&[(top, 0x1001)], &[one]),
        fault(WHAT, 144, "a memory range", Fault::Overflow)
    );
    assert_eq!(
        of(&[(0, 1)], &[[0, 1, u32::MAX, 48, 0]]),
        fault(WHAT, 172, "the output base", Fault::Overflow)
    );
    let ranges: Vec<_> = (0..64).map(|index| (index << 16, 0x1000)).collect();
    assert_eq!(of(&ranges, &[one; 64]), Ok(REGIONS));
    let many = Fault::TooMany { limit: REGIONS };
    // The first range of mapping 65.
    assert_eq!(
        of(&ranges, &[one; 65]),
        fault(WHAT, 144, "a memory range", many)
    );
}

#[test]
fn references_that_could_make_a_loop_or_lead_nowhere_are_refused() {
    let refused = |nodes: &[Vec<u8>], offset, to| {
        let expected = fault(WHAT, offset, "an output reference", Fault::Reference { to });
        assert_eq!(Table::parse(&table(6, nodes)), expected);
    };
    // An SMMU to itself, to another one that goes back, and to the root complex before it.
    refused(&[smmuv3(4, 0, 0, 1, &[[0, 9, 0, 48, 0]])], 128, 48);
    let one = smmuv3(4, 0, 0, 1, &[[0, 9, 0, 136, 0]]);
    let other = smmuv3(4, 0, 0, 1, &[[0, 9, 0, 48, 0]]);
    refused(&[one, other], 128, 136);
    let root = root_complex(0, 0, 40, &[[0, 9, 0, 104, 0]]);
    refused(&[root, smmuv3(4, 0, 0, 1, &[[0, 9, 0, 48, 0]])], 184, 48);
    refused(&[root_complex(0, 0, 40, &[[0, 9, 0, 48, 0]])], 96, 48);
    // Into a node, before the first one, past the last one.
    for to in [0, 40, 49, 104, u32::MAX] {
        let root = root_complex(0, 0, 40, &[[0, 9, 0, to, 0]]);
        refused(&[root], 96, to.into());
    }
    let nodes = [its(), reserved(0, &[], &[[0, 0, 0, 48, 0]])];
    refused(&nodes, 112, 48);
}

#[test]
fn numbers_that_are_too_large_are_refused() {
    let root = |mapping| describe(&table(6, &[its(), root_complex(0, 0, 0, &[mapping])]));
    assert!(root([1, u32::MAX - 1, 0, 48, 0]).is_ok());
    assert_eq!(
        root([1, u32::MAX, 0, 48, 0]),
        fault(WHAT, 112, "the number of IDs", Fault::Overflow)
    );
    // A single mapping has no inputs.
    assert!(root([1, u32::MAX, 0, 48, 1]).is_ok());
    assert!(root([0, 0xf, u32::MAX - 0xf, 48, 0]).is_ok());
    assert_eq!(
        root([0, 0x10, u32::MAX - 0xf, 48, 0]),
        fault(WHAT, 116, "the output base", Fault::Overflow)
    );
    let what = "the segment of a root complex";
    let value = Fault::Value { value: 0x1_0000 };
    let nodes = [its(), root_complex(0x1_0000, 0, 0, &[])];
    assert_eq!(describe(&table(6, &nodes)), fault(WHAT, 100, what, value));
    let nodes = [root_complex(1, 0, 0, &[]), root_complex(1, 0, 0, &[])];
    assert_eq!(
        describe(&table(6, &nodes)),
        fault(WHAT, 112, what, Fault::Duplicate)
    );
}

#[test]
fn nodes_that_do_not_fit_are_refused() {
    let parse = |edit: fn(&mut Vec<u8>)| {
        let mut bytes = table(6, &[its(), root_complex(0, 0, 40, &[[0, 9, 0, 48, 0]])]);
        edit(&mut bytes);
        seal(&mut bytes);
        Table::parse(&bytes).map(|_| ())
    };
    let short = |needed, available| Fault::Truncated { needed, available };
    assert_eq!(parse(|_| {}), Ok(()));
    // The length of the root complex: none, less than its header, less than its fields, too much.
    assert_eq!(
        parse(|bytes| bytes[73..75].fill(0)),
        fault(WHAT, 72, "a node", Fault::Length { len: 0 })
    );
    assert_eq!(
        parse(|bytes| bytes[73] = 15),
        fault(WHAT, 72, "a node", Fault::Length { len: 15 })
    );
    assert_eq!(
        parse(|bytes| bytes[73] = 32),
        fault(WHAT, 72, "a node", short(33, 32))
    );
    assert_eq!(
        parse(|bytes| bytes[73] = 57),
        fault(WHAT, 72, "a node", short(57, 56))
    );
    // One node more than there is, and very many more.
    assert_eq!(
        parse(|bytes| bytes[36] = 3),
        fault(WHAT, 128, "a node", short(16, 0))
    );
    assert_eq!(
        parse(|bytes| bytes[36..40].fill(0xff)),
        fault(WHAT, 128, "a node", short(16, 0))
    );
    // Nodes that begin in the header, and past the end.
    assert_eq!(
        parse(|bytes| bytes[40] = 47),
        fault(WHAT, 40, "the offset of the nodes", Fault::Overlap)
    );
    assert_eq!(
        parse(|bytes| bytes[40..44].fill(0xff)),
        fault(WHAT, 0xffff_ffff, "a node", short(16, 0))
    );
    // Mappings: more than fit, so many that their size has no number of 32 bits, over the fields.
    assert_eq!(
        parse(|bytes| bytes[80] = 2),
        fault(WHAT, 108, "ID mappings", short(40, 20))
    );
    assert_eq!(
        parse(|bytes| bytes[80..84].fill(0xff)),
        fault(WHAT, 108, "ID mappings", short(0x13_ffff_ffec, 20))
    );
    assert_eq!(
        parse(|bytes| bytes[84] = 32),
        fault(WHAT, 104, "ID mappings", Fault::Overlap)
    );
    assert_eq!(
        parse(|bytes| bytes[84] = 0),
        fault(WHAT, 72, "ID mappings", Fault::Overlap)
    );
    // ITS identifiers that do not fit.
    assert_eq!(
        parse(|bytes| bytes[64] = 2),
        fault(WHAT, 68, "ITS identifiers", short(8, 4))
    );
    assert_eq!(
        Table::parse(&Writer::table(WHAT, 6).zeroes(8).finish()),
        fault(WHAT, 0, "the table", short(48, 44))
    );
}

#[test]
fn a_name_without_an_end_is_refused() {
    let mut component = named(b"\\_SB_.USB0", 32, &[]);
    component[39] = b'1';
    assert_eq!(
        Table::parse(&table(6, &[component])),
        fault(WHAT, 77, "the name of a device", Fault::Text)
    );
}

#[test]
fn memory_ranges_over_mappings_are_refused() {
    let mut node = reserved(0, &[(0, 0x1000)], &[[0, 0, 0, 48, 0]]);
    node[24] = 48;
    let nodes = [smmuv3(4, 0x1000, 0, 0, &[]), node];
    assert_eq!(
        Table::parse(&table(6, &nodes)),
        fault(WHAT, 164, "memory ranges", Fault::Overlap)
    );
}

#[test]
fn mappings_do_not_lie_over_the_name_of_a_device() {
    let component = || named(b"NAME", 0, &[[0, 0, 0, 48, 0]]);
    let nodes = [its(), component()];
    assert!(Table::parse(&table(6, &nodes)).is_ok());
    let mut bytes = table(6, &nodes);
    let start = 72 + 12;
    // The name is at 29 of the node, with its zero to 33.
    bytes[start..start + 4].copy_from_slice(&33_u32.to_le_bytes());
    seal(&mut bytes);
    let over = fault(WHAT, 72 + 33, "ID mappings", Fault::Overlap);
    assert_eq!(Table::parse(&bytes), over);
}
