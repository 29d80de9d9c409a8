//! Hand-made tables: entries, which of several blocks counts, memory, what is refused.

use alloc::vec;
use alloc::vec::Vec;

use iopt_formats::{Iova, IovaRange, Prot};

use super::*;
use crate::firmware::acpi::testing::{Writer, fault};
use crate::firmware::{
    Architecture, Description, InstanceIndex, Location, NodeIndex, Output, Region, RegionKind,
    Rule, Subject,
};

const WHAT: [u8; 4] = *b"IVRS";

fn table(blocks: &[Vec<u8>]) -> Vec<u8> {
    let writer = Writer::table(WHAT, 2).u32(0x0020_3041).zeroes(8);
    blocks
        .iter()
        .fold(writer, |writer, block| writer.bytes(block))
        .finish()
}

/// 24 or 40 bytes, and entries.
fn hardware(kind: u8, flags: u8, function: u16, entries: &[&[u8]]) -> Vec<u8> {
    let entries = entries.concat();
    let fixed = if kind == 0x10 { 24 } else { 40 };
    let writer = Writer::default()
        .u8(kind)
        .u8(flags)
        .u16(fixed + entries.len() as u16);
    let writer = writer
        .u16(function)
        .u16(0x40)
        .u64(0xfeb8_0000)
        .u16(0)
        .u16(0)
        .u32(0x44);
    let writer = if kind == 0x10 {
        writer
    } else {
        writer.u64(0x29d3).u64(7)
    };
    writer.bytes(&entries).part()
}

/// 32 bytes.
fn memory(kind: u8, flags: u8, functions: (u16, u16), start: u64, len: u64) -> Vec<u8> {
    let writer = Writer::default().u8(kind).u8(flags).u16(32);
    let writer = writer.u16(functions.0).u16(functions.1).u16(3).zeroes(6);
    writer.u64(start).u64(len).part()
}

fn describe(blocks: &[Vec<u8>]) -> Result<Description, AcpiError> {
    let mut description = Description::default();
    Table::parse(&table(blocks))?.describe(&mut description)?;
    Ok(description)
}

fn requesters(segment: u16, first: u16, last: u16) -> Subject {
    Subject::Requesters {
        segment,
        mask: 0xffff,
        first: RequesterId::new(first),
        last: RequesterId::new(last),
    }
}

fn rule(subject: Subject, output: Output, amd_settings: u8) -> Rule {
    Rule {
        subject,
        instance: Some(InstanceIndex(0)),
        output,
        amd_settings,
    }
}

/// The rules of a block of an IOMMU at 00:00.2.
fn rules(entries: &[&[u8]]) -> Vec<Rule> {
    describe(&[hardware(0x10, 0, 2, entries)])
        .expect("it is right")
        .rules
}

#[test]
fn functions_keep_their_ids_and_may_have_an_alias_besides() {
    let both = |offset, alias| Output::Both { offset, alias };
    assert_eq!(
        rules(&[
            &[2, 0x08, 0x00, 0xd7],
            &[0, 0, 0, 0],
            &[3, 0x00, 0x01, 0x01, 0, 0, 0, 0, 4, 0xff, 0x01, 0xee],
            &[0x42, 0x10, 0x03, 0x30, 0, 0xa0, 0x00, 0],
            &[0x43, 0x00, 0x04, 0x80, 0, 0x08, 0x04, 0, 4, 0x0f, 0x04, 0],
            &[0x46, 0x00, 0x05, 0x02, 0, 0, 0, 0x80],
            &[0x47, 0x00, 0x06, 0x04, 0, 0, 0, 0, 4, 0x01, 0x06, 0],
        ]),
        [
            rule(requesters(0, 0x08, 0x08), Output::Offset(0x08), 0xd7),
            // Who others are aliases of.
            rule(requesters(0, 0xa0, 0xa0), Output::Offset(0xa0), 0x30),
            rule(requesters(0, 0x100, 0x1ff), Output::Offset(0x100), 0x01),
            rule(requesters(0, 0x310, 0x310), both(0x310, 0xa0), 0x30),
            rule(requesters(0, 0x400, 0x40f), both(0x400, 0x408), 0x80),
            rule(requesters(0, 0x500, 0x500), Output::Offset(0x500), 0x02),
            rule(requesters(0, 0x600, 0x601), Output::Offset(0x600), 0x04),
        ]
    );
}

#[test]
fn a_later_entry_counts_and_the_iommu_is_not_behind_itself() {
    assert_eq!(
        rules(&[
            &[1, 0, 0, 0x11],
            &[3, 0x00, 0x01, 0x22, 4, 0x10, 0x01, 0],
            &[2, 0x05, 0x01, 0x33],
            &[2, 0x02, 0x00, 0x44],
        ]),
        [
            rule(requesters(0, 0, 1), Output::Offset(0), 0x11),
            rule(requesters(0, 3, 0xff), Output::Offset(3), 0x11),
            rule(requesters(0, 0x100, 0x104), Output::Offset(0x100), 0x22),
            rule(requesters(0, 0x105, 0x105), Output::Offset(0x105), 0x33),
            rule(requesters(0, 0x106, 0x110), Output::Offset(0x106), 0x22),
            rule(requesters(0, 0x111, 0xffff), Output::Offset(0x111), 0x11),
        ]
    );
}

#[test]
fn named_devices_have_one_id_and_interrupt_controllers_and_timers_are_no_devices() {
    let named = |uid: &[u8]| {
        let writer = Writer::default().u8(0xf0).u16(0x98).u8(0x40);
        writer
            .bytes(b"AMDI0040")
            .bytes(b"PNP0D40\0")
            .bytes(uid)
            .part()
    };
    let number = [&[1, 8][..], &7_u64.to_le_bytes()].concat();
    let text = [&[2, 5][..], b"ABCD\0"].concat();
    let blocks = [hardware(
        0x40,
        0x10,
        2,
        &[
            &[0x48, 0, 0, 0xd7, 0x21, 0xa0, 0x00, 1],
            &[0x48, 0, 0, 0x00, 0x00, 0xa1, 0x00, 2],
            &named(&number),
            &named(&text),
            &named(&[0, 0]),
        ],
    )];
    let description = describe(&blocks).expect("it is right");
    let names: Vec<_> = description
        .nodes
        .iter()
        .map(|node| node.name.as_str())
        .collect();
    assert_eq!(names, ["AMDI0040:7", "AMDI0040:ABCD", "AMDI0040"]);
    let node = |index| Subject::Node(NodeIndex(index));
    assert_eq!(
        description.rules,
        [
            rule(node(0), Output::Fixed(0x98), 0x40),
            rule(node(1), Output::Fixed(0x98), 0x40),
            rule(node(2), Output::Fixed(0x98), 0x40),
        ]
    );
    assert_eq!(description.ats.len(), 3);
    // The typed form has them all.
    let table = Table::parse(&table(&blocks)).expect("it is right");
    let special = table.hardware[0].entries.iter();
    let special: Vec<_> = special
        .filter_map(|entry| match entry {
            Entry::Special {
                kind,
                handle,
                source,
                settings,
            } => Some((*kind, *handle, source.get(), settings.data)),
            _ => None,
        })
        .collect();
    let expected = [
        (SpecialKind::IoApic, 33, 0xa0, 0xd7),
        (SpecialKind::Hpet, 0, 0xa1, 0),
    ];
    assert_eq!(special, expected);
}

#[test]
fn of_blocks_of_one_iommu_the_one_with_the_largest_type_counts() {
    let blocks = [
        hardware(0x10, 0, 2, &[&[1, 0, 0, 0]]),
        hardware(0x10, 0, 3, &[&[2, 7, 0, 0]]),
        hardware(0x40, 0, 2, &[&[2, 9, 0, 0]]),
        hardware(0x11, 0, 2, &[&[1, 0, 0, 0]]),
        hardware(0x99, 0, 4, &[]),
    ];
    let description = describe(&blocks).expect("it is right");
    let names: Vec<_> = description
        .instances
        .iter()
        .map(|instance| instance.name.as_str())
        .collect();
    assert_eq!(
        names,
        [
            "IVRS IOMMU 0000:00:00.3 at 0x4c",
            "IVRS IOMMU 0000:00:00.2 at 0x68"
        ]
    );
    let instance = &description.instances[1];
    assert_eq!(instance.architecture, Architecture::Amd);
    let (base, len) = (0xfeb8_0000, None);
    assert_eq!(instance.location, Location::Memory { base, len });
    let itself = instance.pci_function().map(|address| address.to_string());
    assert_eq!(itself.as_deref(), Some("0000:00:00.2"));
    let subjects: Vec<_> = description
        .rules
        .iter()
        .map(|rule| (rule.instance, rule.subject.clone()))
        .collect();
    assert_eq!(
        subjects,
        [
            (Some(InstanceIndex(0)), requesters(0, 7, 7)),
            (Some(InstanceIndex(1)), requesters(0, 9, 9)),
        ]
    );
    // The typed form has them all.
    let table = Table::parse(&table(&blocks)).expect("it is right");
    let kinds: Vec<_> = table.hardware.iter().map(|block| block.kind).collect();
    assert_eq!(kinds, [0x10, 0x10, 0x40, 0x11]);
    assert_eq!(table.hardware[0].features, None);
    assert_eq!(table.hardware[2].features, Some([0x29d3, 7]));

    let twice = [hardware(0x11, 0, 2, &[]), hardware(0x11, 0, 2, &[])];
    assert_eq!(
        describe(&twice),
        fault(WHAT, 92, "the block of an IOMMU", Fault::Duplicate)
    );
}

#[test]
fn device_tlbs_are_for_all_of_an_iommu_that_takes_them_but_whom_it_is_forbidden() {
    let entries: [&[u8]; 2] = [&[2, 8, 0, 0], &[0x46, 0x10, 0, 0, 0, 0, 0, 0x80]];
    let ats = |flags| {
        let description = describe(&[hardware(0x11, flags, 2, &entries)]).expect("it is right");
        description
            .ats
            .into_iter()
            .map(|ats| ats.subject)
            .collect::<Vec<_>>()
    };
    assert_eq!(ats(0xef), []);
    assert_eq!(ats(0x10), [requesters(0, 8, 8)]);
}

#[test]
fn memory_is_mapped_with_its_rights_or_not_at_all() {
    let direct = |prot| RegionKind::Direct {
        prot,
        is_relaxable: false,
    };
    for (kind, flags, first, last, expected) in [
        (0x20, 7, 0, 0xffff, direct(Prot::RW)),
        (0x21, 3, 0x10, 0x10, direct(Prot::R)),
        (0x22, 5, 0x10, 0x1f, direct(Prot::W)),
        (0x22, 1, 0x10, 0x1f, RegionKind::Reserved),
        (0x21, 8, 0x10, 0x10, direct(Prot::RW)),
    ] {
        let block = memory(kind, flags, (0x10, 0x1f), 0xb000_0000, 0x20_0000);
        let region = Region {
            subject: Some(requesters(3, first, last)),
            range: IovaRange::with_len(Iova::new(0xb000_0000), 0x20_0000).expect("it is one"),
            kind: expected,
        };
        assert_eq!(
            describe(&[block]).expect("it is right").regions,
            vec![region]
        );
    }
}

#[test]
fn memory_that_is_none_is_refused() {
    let of = |block| describe(&[block]).map(|_| ());
    let zero = Fault::Value { value: 0 };
    let what = "the length of a memory block";
    assert_eq!(
        of(memory(0x21, 1, (0, 0), 0, 0)),
        fault(WHAT, 72, what, zero)
    );
    assert_eq!(of(memory(0x21, 1, (0, 0), u64::MAX, 1)), Ok(()));
    assert_eq!(
        of(memory(0x21, 1, (0, 0), u64::MAX, 2)),
        fault(WHAT, 72, what, Fault::Overflow)
    );
    let what = "the flags of a memory block";
    let value = Fault::Value { value: 6 };
    assert_eq!(
        of(memory(0x21, 6, (0, 0), 0, 1)),
        fault(WHAT, 49, what, value)
    );
    let (first, last) = (2, 1);
    assert_eq!(
        of(memory(0x22, 1, (2, 1), 0, 1)),
        fault(WHAT, 52, "the functions", Fault::Reversed { first, last })
    );
}

#[test]
fn ranges_have_a_start_and_an_end() {
    let of = |entries: &[&[u8]]| describe(&[hardware(0x10, 0, 2, entries)]).map(|_| ());
    let what = "a range of functions";
    let start = [3, 0x10, 0, 0];
    let unfinished = |at| fault(WHAT, at, what, Fault::Unfinished);
    assert_eq!(of(&[&[2, 1, 0, 0], &start]), unfinished(76));
    assert_eq!(
        of(&[&start, &[2, 1, 0, 0], &[4, 0x11, 0, 0]]),
        unfinished(72)
    );
    assert_eq!(of(&[&start, &start, &[4, 0x11, 0, 0]]), unfinished(72));
    assert_eq!(of(&[&start, &[4, 0x10, 0, 0]]), Ok(()));
    let (first, last) = (0x10, 0x0f);
    assert_eq!(
        of(&[&start, &[4, 0x0f, 0, 0]]),
        fault(WHAT, 77, what, Fault::Reversed { first, last })
    );
    assert_eq!(
        of(&[&[4, 0x10, 0, 0]]),
        fault(WHAT, 72, "the end of a range", Fault::Value { value: 4 })
    );
}

#[test]
fn entries_and_blocks_that_do_not_fit_are_refused() {
    let of = |entries: &[&[u8]]| describe(&[hardware(0x10, 0, 2, entries)]).map(|_| ());
    let short = |needed, available| Fault::Truncated { needed, available };
    let what = "a device entry";
    assert_eq!(of(&[&[2, 0, 0]]), fault(WHAT, 72, what, short(4, 3)));
    assert_eq!(
        of(&[&[0x42, 0, 0, 0, 0, 0, 0]]),
        fault(WHAT, 72, what, short(8, 7))
    );
    // Unknown ones are passed over, by the length of their type, up to 0x7f.
    assert_eq!(of(&[&[9, 1, 1, 1], &[0x7f, 1, 1, 1, 2, 2, 2, 2]]), Ok(()));
    assert_eq!(
        of(&[&[0x80; 32]]),
        fault(
            WHAT,
            72,
            "the type of a device entry",
            Fault::Value { value: 0x80 }
        )
    );
    assert_eq!(
        of(&[&[0x48, 0, 0, 0, 0, 0, 0, 3]]),
        fault(
            WHAT,
            79,
            "the kind of a special device",
            Fault::Value { value: 3 }
        )
    );

    let named = |format: u8, len: u8, uid: &[u8]| {
        let writer = Writer::default().u8(0xf0).u16(0x98).u8(0);
        let writer = writer.bytes(b"AMDI0040").zeroes(8).u8(format).u8(len);
        of(&[&writer.bytes(uid).part()])
    };
    assert_eq!(named(0, 0, &[]), Ok(()));
    assert_eq!(named(2, 9, b"ABCD"), fault(WHAT, 72, what, short(31, 26)));
    assert_eq!(
        named(1, 4, &[0; 4]),
        fault(
            WHAT,
            93,
            "the length of a unique ID",
            Fault::Length { len: 4 }
        )
    );
    assert_eq!(
        named(3, 0, &[]),
        fault(
            WHAT,
            92,
            "the format of a unique ID",
            Fault::Value { value: 3 }
        )
    );
    assert_eq!(
        named(2, 1, &[0x80]),
        fault(WHAT, 94, "a unique ID", Fault::Text)
    );
    assert_eq!(
        of(&[&[0xf0; 21]]),
        fault(WHAT, 93, "the length of a unique ID", short(1, 0))
    );
    let mut nameless = vec![0; 22];
    nameless[0] = 0xf0;
    assert_eq!(
        of(&[&nameless]),
        fault(WHAT, 76, "the hardware ID", Fault::Text)
    );

    let block = |at: usize, value| {
        let mut bytes = hardware(0x11, 0, 2, &[]);
        bytes[at] = value;
        Table::parse(&table(&[bytes])).map(|_| ())
    };
    let what = "a block";
    assert_eq!(block(2, 40), Ok(()));
    assert_eq!(block(2, 0), fault(WHAT, 48, what, Fault::Length { len: 0 }));
    assert_eq!(
        block(2, 39),
        fault(WHAT, 48, what, Fault::Length { len: 39 })
    );
    assert_eq!(block(2, 41), fault(WHAT, 48, what, short(41, 40)));
    let mut bytes = hardware(0x11, 0, 2, &[]);
    bytes[8..16].fill(0);
    assert_eq!(
        Table::parse(&table(&[bytes])),
        fault(WHAT, 56, "the base address", Fault::Value { value: 0 })
    );
    assert_eq!(
        Table::parse(&table(&[vec![0x99, 0, 4]])),
        fault(WHAT, 48, what, short(4, 3))
    );
    let mut bytes = memory(0x21, 1, (0, 0), 0, 1);
    bytes[2] = 31;
    assert_eq!(
        Table::parse(&table(&[bytes])),
        fault(WHAT, 48, what, Fault::Length { len: 31 })
    );
}
