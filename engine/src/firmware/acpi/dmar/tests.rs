//! Hand-made tables: units and their scopes, reserved memory, device TLBs, what is refused.

use alloc::vec;
use alloc::vec::Vec;

use iopt_formats::{Iova, IovaRange, Prot};

use super::*;
use crate::firmware::acpi::testing::{Writer, fault};
use crate::firmware::{
    Architecture, Ats, Description, InstanceIndex, Location, NodeIndex, Output, PciPath, Region,
    RegionKind, Rule, Subject,
};

const WHAT: [u8; 4] = *b"DMAR";

fn table(structures: &[Vec<u8>]) -> Vec<u8> {
    let writer = Writer::table(WHAT, 1).u8(47).u8(1).zeroes(10);
    let structures = structures.iter();
    structures
        .fold(writer, |writer, structure| writer.bytes(structure))
        .finish()
}

fn structure(kind: u16, fields: Writer, scopes: &[Vec<u8>]) -> Vec<u8> {
    let scopes = scopes.concat();
    let len = 4 + fields.len() + scopes.len();
    let writer = Writer::default().u16(kind).u16(len as u16);
    writer.bytes(&fields.part()).bytes(&scopes).part()
}

/// 16 bytes and scopes.
fn unit(flags: u8, size: u8, segment: u16, base: u64, scopes: &[Vec<u8>]) -> Vec<u8> {
    let fields = Writer::default().u8(flags).u8(size).u16(segment).u64(base);
    structure(0, fields, scopes)
}

/// 8 bytes and scopes.
fn flagged(kind: u16, flags: u8, segment: u16, scopes: &[Vec<u8>]) -> Vec<u8> {
    structure(kind, Writer::default().u8(flags).u8(0).u16(segment), scopes)
}

fn scope(kind: u8, enumeration: u8, start_bus: u8, steps: &[(u8, u8)]) -> Vec<u8> {
    let len = 6 + 2 * steps.len() as u8;
    let writer = Writer::default().u8(kind).u8(len).u16(0);
    let writer = writer.u8(enumeration).u8(start_bus);
    let steps = steps.iter();
    steps
        .fold(writer, |writer, step| writer.u8(step.0).u8(step.1))
        .part()
}

fn path(segment: u16, start_bus: u8, steps: &[(u8, u8)]) -> PciPath {
    let step = |&(device, function): &(u8, u8)| PathStep { device, function };
    PciPath {
        segment,
        start_bus,
        steps: steps.iter().map(step).collect(),
    }
}

fn describe(structures: &[Vec<u8>]) -> Result<Description, AcpiError> {
    let mut description = Description::default();
    Table::parse(&table(structures))?.describe(&mut description)?;
    Ok(description)
}

fn rule(subject: Subject, instance: usize, output: Output) -> Rule {
    Rule {
        subject,
        instance: Some(InstanceIndex(instance)),
        output,
        amd_settings: 0,
    }
}

#[test]
fn the_unit_of_the_rest_comes_last_wherever_it_stands() {
    let structures = [
        unit(
            1,
            0,
            0,
            0xfed9_1000,
            &[scope(3, 2, 0xf0, &[(31, 7)]), scope(4, 0, 0, &[(31, 0)])],
        ),
        unit(0, 3, 0, 0xfed9_0000, &[scope(1, 0, 0, &[(2, 0)])]),
        unit(
            0,
            0,
            1,
            0xfed9_2000,
            &[scope(2, 0, 0x20, &[(0, 0), (3, 1)])],
        ),
        unit(1, 0, 1, 0xfed9_3000, &[scope(1, 0, 0, &[(9, 0)])]),
    ];
    let description = describe(&structures).expect("it is right");
    let locations: Vec<_> = description
        .instances
        .iter()
        .map(|instance| (instance.architecture, instance.location))
        .collect();
    let at = |base, len| {
        let len = Some(len);
        (Architecture::Vtd, Location::Memory { base, len })
    };
    assert_eq!(
        locations,
        [
            at(0xfed9_1000, 0x1000),
            at(0xfed9_0000, 0x8000),
            at(0xfed9_2000, 0x1000),
            at(0xfed9_3000, 0x1000),
        ]
    );
    let id = || Output::Offset(0);
    assert_eq!(
        description.rules,
        [
            rule(Subject::Function(path(0, 0, &[(2, 0)])), 1, id()),
            rule(Subject::Below(path(1, 0x20, &[(0, 0), (3, 1)])), 2, id()),
            rule(Subject::Function(path(1, 0, &[(9, 0)])), 3, id()),
            rule(Subject::Rest { segment: 0 }, 0, id()),
            rule(Subject::Rest { segment: 1 }, 3, id()),
        ]
    );
    // Interrupt controllers and timers stay in the typed form.
    let table = Table::parse(&table(&structures)).expect("it is right");
    assert_eq!(table.address_bits, 48);
    let StructureKind::Unit(unit) = &table.structures[0].kind else {
        panic!("{table:?}");
    };
    assert_eq!(
        (unit.scopes[0].kind, unit.scopes[0].enumeration),
        (ScopeKind::IoApic, 2)
    );
    assert_eq!(
        (unit.scopes[0].start_bus, unit.scopes[0].offset),
        (0xf0, 64)
    );
    assert_eq!(unit.scopes[1].kind, ScopeKind::Hpet);
}

#[test]
fn a_device_of_the_namespace_has_the_id_of_its_path() {
    let name = Writer::default().zeroes(3).u8(4).bytes(b"\\_SB.I2C1\0");
    let structures = [
        unit(0, 0, 0, 0xfed9_0000, &[scope(5, 4, 0, &[(0x15, 1)])]),
        structure(4, name, &[]),
        structure(
            1,
            Writer::default().u32(0).u64(0).u64(0xfff),
            &[scope(5, 4, 0, &[(0x15, 1)])],
        ),
    ];
    let description = describe(&structures).expect("it is right");
    assert_eq!(description.nodes[0].name, "\\_SB.I2C1");
    let node = || Subject::Node(NodeIndex(0));
    assert_eq!(description.rules, [rule(node(), 0, Output::Fixed(0xa9))]);
    assert_eq!(description.regions[0].subject, Some(node()));
}

#[test]
fn reserved_memory_is_a_region_of_each_of_its_devices() {
    let fields = Writer::default()
        .u16(0)
        .u16(2)
        .u64(0x7b80_0000)
        .u64(0x7fff_ffff);
    let scopes = [
        scope(1, 0, 0, &[(2, 0)]),
        scope(2, 0, 0, &[(0x1c, 4)]),
        scope(3, 0, 0, &[(0, 0)]),
    ];
    let description = describe(&[structure(1, fields, &scopes)]).expect("it is right");
    let region = |subject| Region {
        subject: Some(subject),
        range: IovaRange::new(Iova::new(0x7b80_0000), Iova::new(0x7fff_ffff)).expect("it is one"),
        kind: RegionKind::Direct {
            prot: Prot::RW,
            is_relaxable: false,
        },
    };
    assert_eq!(
        description.regions,
        [
            region(Subject::Function(path(2, 0, &[(2, 0)]))),
            region(Subject::Below(path(2, 0, &[(0x1c, 4)]))),
        ]
    );
}

#[test]
fn device_tlbs_are_for_whom_root_ports_and_packages_say() {
    let port = scope(2, 0, 0, &[(1, 0)]);
    let inside = scope(1, 0, 0, &[(3, 0)]);
    let structures = [
        flagged(2, 1, 5, core::slice::from_ref(&port)),
        flagged(2, 0, 6, &[port]),
        flagged(5, 0, 0, core::slice::from_ref(&inside)),
        flagged(5, 1, 0, &[inside]),
    ];
    let ats = |subject, is_required| Ats {
        subject,
        is_required,
    };
    assert_eq!(
        describe(&structures).expect("it is right").ats,
        [
            ats(Subject::BelowRootPorts { segment: 5 }, false),
            ats(Subject::Below(path(6, 0, &[(1, 0)])), false),
            ats(Subject::Function(path(0, 0, &[(3, 0)])), false),
            ats(Subject::Function(path(0, 0, &[(3, 0)])), true),
        ]
    );
}

#[test]
fn affinities_properties_and_what_is_unknown_stay_in_the_typed_form() {
    let mut property = scope(1, 0, 0, &[(3, 0)]);
    property[2] = 5;
    let structures = [
        structure(3, Writer::default().u32(0).u64(0xfed9_0000).u32(3), &[]),
        structure(6, Writer::default().u16(0).u16(1), &[property]),
        structure(7, Writer::default(), &[]),
        unit(0, 0, 0, 0xfed9_0000, &[scope(9, 0, 0, &[(1, 1)])]),
    ];
    let parsed = Table::parse(&table(&structures)).expect("it is right");
    let kinds: Vec<_> = parsed
        .structures
        .iter()
        .map(|structure| &structure.kind)
        .collect();
    let affinity = StructureKind::Affinity {
        base: 0xfed9_0000,
        proximity: 3,
    };
    assert_eq!(kinds[0], &affinity);
    assert!(
        matches!(kinds[1], StructureKind::Properties { segment: 1, scopes } if scopes[0].flags == 5)
    );
    assert_eq!(kinds[2], &StructureKind::Unknown(7));
    assert!(matches!(kinds[3], StructureKind::Unit(unit)
        if unit.scopes[0].kind == ScopeKind::Unknown(9)));
    let description = describe(&structures).expect("it is right");
    assert_eq!(
        (description.instances.len(), description.rules),
        (1, vec![])
    );
}

#[test]
fn what_is_there_twice_or_nowhere_is_refused() {
    let twice = [unit(0, 0, 0, 0x1000, &[]), unit(0, 0, 1, 0x1000, &[])];
    assert_eq!(
        describe(&twice),
        fault(WHAT, 72, "a unit", Fault::Duplicate)
    );
    let twice = [unit(1, 0, 0, 0x1000, &[]), unit(1, 0, 0, 0x2000, &[])];
    let what = "a unit for the rest of a segment";
    assert_eq!(describe(&twice), fault(WHAT, 68, what, Fault::Duplicate));
    let name = || structure(4, Writer::default().zeroes(3).u8(4).bytes(b"A\0"), &[]);
    let what = "the number of a device";
    assert_eq!(
        describe(&[name(), name()]),
        fault(WHAT, 65, what, Fault::Duplicate)
    );
    let nobody = unit(0, 0, 0, 0x1000, &[scope(5, 3, 0, &[(0, 0)])]);
    let to = Fault::Reference { to: 3 };
    assert_eq!(
        describe(&[name(), nobody]),
        fault(WHAT, 78, "the enumeration ID", to)
    );
    // Nor is a region or a device TLB nobody's.
    let fields = Writer::default().u32(0).u64(0x1000).u64(0x1fff);
    let region = structure(1, fields, &[scope(5, 3, 0, &[(0, 0)])]);
    let what = "the enumeration ID";
    assert_eq!(describe(&[region]), fault(WHAT, 76, what, to));
    let tlbs = flagged(5, 0, 0, &[scope(5, 3, 0, &[(0, 0)])]);
    assert_eq!(describe(&[tlbs]), fault(WHAT, 60, what, to));
    let deep = unit(0, 0, 0, 0x1000, &[scope(5, 4, 0, &[(0, 0), (1, 0)])]);
    let what = "the scope of a namespace device";
    assert_eq!(
        describe(&[name(), deep]),
        fault(WHAT, 75, what, Fault::Length { len: 10 })
    );
}

#[test]
fn values_without_a_meaning_are_refused() {
    let zero = Fault::Value { value: 0 };
    assert_eq!(
        describe(&[unit(0, 0, 0, 0, &[])]),
        fault(WHAT, 56, "the base address", zero)
    );
    let of = |scope| describe(&[unit(0, 0, 0, 0x1000, &[scope])]).map(|_| ());
    assert_eq!(of(scope(1, 0, 0, &[(31, 7)])), Ok(()));
    let value = Fault::Value { value: 32 };
    assert_eq!(
        of(scope(1, 0, 0, &[(0, 0), (32, 0)])),
        fault(WHAT, 72, "a device", value)
    );
    let value = Fault::Value { value: 8 };
    assert_eq!(
        of(scope(1, 0, 0, &[(0, 8)])),
        fault(WHAT, 71, "a function", value)
    );
    let fields = Writer::default().u32(0).u64(0x2000).u64(0x1fff);
    let (first, last) = (0x2000, 0x1fff);
    assert_eq!(
        describe(&[structure(1, fields, &[])]),
        fault(
            WHAT,
            56,
            "a reserved memory region",
            Fault::Reversed { first, last }
        )
    );
    let narrow = Writer::table(WHAT, 1).u8(10).zeroes(11).finish();
    assert_eq!(
        Table::parse(&narrow),
        fault(
            WHAT,
            36,
            "the host address width",
            Fault::Value { value: 10 }
        )
    );
    let endless = structure(4, Writer::default().zeroes(4).bytes(b"ABC"), &[]);
    assert_eq!(
        describe(&[endless]),
        fault(WHAT, 56, "the name of a device", Fault::Text)
    );
}

#[test]
fn structures_and_scopes_that_do_not_fit_are_refused() {
    let short = |needed, available| Fault::Truncated { needed, available };
    let parse = |structure: &[u8]| Table::parse(&table(&[structure.to_vec()])).map(|_| ());
    let good = unit(0, 0, 0, 0x1000, &[scope(1, 0, 0, &[(1, 0)])]);
    assert_eq!(parse(&good), Ok(()));
    let edited = |at: usize, value| {
        let mut bytes = good.clone();
        bytes[at] = value;
        parse(&bytes)
    };
    let (what, inner) = ("a structure", "a device scope");
    assert_eq!(
        edited(2, 0),
        fault(WHAT, 48, what, Fault::Length { len: 0 })
    );
    assert_eq!(
        edited(2, 3),
        fault(WHAT, 48, what, Fault::Length { len: 3 })
    );
    assert_eq!(edited(2, 25), fault(WHAT, 48, what, short(25, 24)));
    assert_eq!(edited(2, 21), fault(WHAT, 64, inner, short(8, 5)));
    assert_eq!(
        edited(2, 17),
        fault(WHAT, 65, "the length of a device scope", short(1, 0))
    );
    assert_eq!(edited(2, 22), fault(WHAT, 64, inner, short(8, 6)));
    assert_eq!(
        edited(17, 0),
        fault(WHAT, 64, inner, Fault::Length { len: 0 })
    );
    assert_eq!(
        edited(17, 6),
        fault(WHAT, 64, inner, Fault::Length { len: 6 })
    );
    assert_eq!(edited(17, 9), fault(WHAT, 64, inner, short(9, 8)));
    let mut odd = [good.clone(), vec![0]].concat();
    odd[2] = 25;
    odd[17] = 9;
    assert_eq!(
        parse(&odd),
        fault(WHAT, 65, inner, Fault::Length { len: 9 })
    );
    assert_eq!(parse(&good[..3]), fault(WHAT, 48, what, short(4, 3)));
    // Each kind of structure without its last field.
    for (kind, len, at, field, needed) in [
        (0, 15, 8, "the base address", 8),
        (1, 23, 0, "a reserved memory region", 24),
        (2, 7, 6, "the segment", 2),
        (3, 19, 16, "the proximity domain", 4),
        (4, 7, 7, "the number of a device", 1),
        (5, 7, 6, "the segment", 2),
        (6, 7, 6, "the segment", 2),
    ] {
        let bytes = structure(kind, Writer::default().zeroes(len - 4), &[]);
        assert_eq!(
            parse(&bytes),
            fault(WHAT, 48 + at, field, short(needed, needed - 1)),
            "type {kind}"
        );
    }
}
