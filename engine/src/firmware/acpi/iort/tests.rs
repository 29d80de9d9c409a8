//! Hand-made tables: what each node means, which mapping counts.

mod refused;

use alloc::vec;
use alloc::vec::Vec;

use iopt_formats::{Iova, IovaRange, Prot};

use super::*;
use crate::firmware::acpi::all_of;
use crate::firmware::acpi::iort::describe::pieces;
use crate::firmware::acpi::testing::{Writer, fault};
use crate::firmware::{
    Architecture, Bus, Coherence, Description, InstanceIndex, Location, NodeIndex, Output, Problem,
    Reach, Region, RegionKind, Rule, Subject, Topic, Who,
};
use crate::intervals::random::{Random, rounds};
use crate::topology::RequesterId;

const WHAT: [u8; 4] = *b"IORT";

/// A mapping: input base, IDs less one, output base, output reference, flags.
type Mapping = [u32; 5];

/// A table with these nodes, one behind the other from 48 on.
fn table(revision: u8, nodes: &[Vec<u8>]) -> Vec<u8> {
    let count = nodes.len() as u32;
    let writer = Writer::table(WHAT, revision).u32(count).u32(48).u32(0);
    nodes
        .iter()
        .fold(writer, |writer, node| writer.bytes(node))
        .finish()
}

/// A node: its header, its fields, its mappings.
fn node(kind: u8, revision: u8, fields: &Writer, mappings: &[Mapping]) -> Vec<u8> {
    let start = 16 + fields.len() as u32;
    let len = start as u16 + 20 * mappings.len() as u16;
    let writer = Writer::default().u8(kind).u16(len).u8(revision).u32(0);
    let writer = writer
        .u32(mappings.len() as u32)
        .u32(start)
        .bytes(&fields.clone().part());
    let fields = mappings.iter().flatten();
    fields
        .fold(writer, |writer, field| writer.u32(*field))
        .part()
}

/// 24 bytes.
fn its() -> Vec<u8> {
    node(0, 1, &Writer::default().u32(1).u32(7), &[])
}

/// 68 bytes without mappings; its interrupts have no wires.
fn smmuv3(revision: u8, base: u64, flags: u32, index: u32, mappings: &[Mapping]) -> Vec<u8> {
    let fields = Writer::default().u64(base).u32(flags).u32(0).u64(0).u32(0);
    let fields = fields.zeroes(16).u32(0).u32(index);
    node(4, revision, &fields, mappings)
}

/// 36 bytes without mappings.
fn root_complex(segment: u32, ats: u32, bits: u8, mappings: &[Mapping]) -> Vec<u8> {
    let fields = Writer::default()
        .u32(1)
        .u32(0x0300_0000)
        .u32(ats)
        .u32(segment);
    node(2, 3, &fields.u8(bits).zeroes(3), mappings)
}

/// 29 bytes, a name with its zero, and mappings.
fn named(name: &[u8], bits: u8, mappings: &[Mapping]) -> Vec<u8> {
    let fields = Writer::default().u32(0).u64(0).u8(bits).bytes(name);
    node(1, 4, &fields.u8(0), mappings)
}

/// 28 bytes, ranges of 20, and mappings.
fn reserved(flags: u32, ranges: &[(u64, u64)], mappings: &[Mapping]) -> Vec<u8> {
    let fields = Writer::default()
        .u32(flags)
        .u32(ranges.len() as u32)
        .u32(28);
    let fields = ranges.iter().fold(fields, |fields, range| {
        fields.u64(range.0).u64(range.1).u32(0)
    });
    node(6, 3, &fields, mappings)
}

fn describe(bytes: &[u8]) -> Result<Description, AcpiError> {
    let mut description = Description::default();
    Table::parse(bytes)?.describe(&mut description)?;
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

fn rule(subject: Subject, instance: Option<usize>, output: Output) -> Rule {
    Rule {
        subject,
        instance: instance.map(InstanceIndex),
        output,
        amd_settings: 0,
    }
}

/// Who is behind what in a table of an ITS group at 48, SMMUs at 72 and 140 and a root complex.
fn rules(mappings: &[Mapping]) -> Vec<Rule> {
    let nodes = [
        its(),
        smmuv3(4, 0x1000, 1, 0, &[]),
        smmuv3(4, 0x2000, 0, 0, &[]),
        root_complex(0, 0, 40, mappings),
    ];
    describe(&table(6, &nodes)).expect("it is right").rules
}

#[test]
fn the_number_of_ids_is_one_more_than_the_table_says() {
    assert_eq!(
        rules(&[[0x100, 0xff, 0x4_0000, 72, 0], [0x300, 0, 9, 140, 0]]),
        [
            rule(
                requesters(0, 0x100, 0x1ff),
                Some(0),
                Output::Offset(0x4_0000)
            ),
            rule(requesters(0, 0x300, 0x300), Some(1), Output::Offset(9)),
        ]
    );
}

#[test]
fn a_range_that_begins_with_the_last_id_of_another_gets_it() {
    // Counted as IDs, not as IDs less one, by the firmware.
    let expected = [
        rule(requesters(0, 0, 0xff), Some(0), Output::Offset(0)),
        rule(requesters(0, 0x100, 0x200), Some(1), Output::Offset(0x5000)),
    ];
    assert_eq!(
        rules(&[[0, 0x100, 0, 72, 0], [0x100, 0x100, 0x5000, 140, 0]]),
        expected
    );
    // In the other order the first one that has it counts: there it is not the last one.
    assert_eq!(
        rules(&[[0x100, 0x100, 0x5000, 140, 0], [0, 0x100, 0, 72, 0]]),
        expected
    );
}

#[test]
fn of_other_ranges_that_overlap_the_first_one_counts() {
    assert_eq!(
        rules(&[[0x80, 0x80, 0, 72, 0], [0, 0x1ff, 0x1000, 140, 0]]),
        [
            rule(requesters(0, 0, 0x7f), Some(1), Output::Offset(0x1000)),
            rule(requesters(0, 0x80, 0x100), Some(0), Output::Offset(0)),
            rule(requesters(0, 0x101, 0x1ff), Some(1), Output::Offset(0x1101)),
        ]
    );
}

#[test]
fn a_single_mapping_has_one_output_for_all_that_is_left() {
    assert_eq!(
        rules(&[
            [0x10, 0xf, 0, 72, 0],
            [5, 5, 0x77, 140, 1],
            [0, 0xffff, 0, 72, 0]
        ]),
        [
            rule(requesters(0, 0, 0xf), Some(1), Output::Fixed(0x77)),
            rule(requesters(0, 0x10, 0x1e), Some(0), Output::Offset(0)),
            rule(requesters(0, 0x1f, 0xffff), Some(1), Output::Fixed(0x77)),
        ]
    );
}

#[test]
fn who_goes_straight_to_an_its_is_behind_no_iommu() {
    assert_eq!(
        rules(&[[0, 0x4ff, 0, 72, 0], [0x500, 0xfaff, 0x500, 48, 0]]),
        [
            rule(requesters(0, 0, 0x4ff), Some(0), Output::Offset(0)),
            rule(requesters(0, 0x500, 0xffff), None, Output::Offset(0x500)),
        ]
    );
}

#[test]
fn ids_that_no_requester_has_give_no_rule() {
    assert_eq!(
        rules(&[
            [0xfff0, u32::MAX - 0xfff0, 1, 72, 0],
            [0x1_0000, 0, 0, 72, 0]
        ]),
        [rule(
            requesters(0, 0xfff0, 0xffff),
            Some(0),
            Output::Offset(1)
        )]
    );
}

#[test]
fn the_rules_say_for_every_id_what_following_it_says() {
    let mut random = Random::new(0x0107);
    for _ in 0..rounds(2000) {
        let mappings: Vec<Mapping> = (0..random.below(7))
            .map(|_| {
                let first = random.below(40) as u32;
                let flags = u32::from(random.one_in(9));
                let target = [48, 72, 140][random.index(3)];
                [
                    first,
                    random.below(20) as u32,
                    random.below(8) as u32 * 10,
                    target,
                    flags,
                ]
            })
            .collect();
        let nodes = [
            its(),
            smmuv3(4, 0x1000, 1, 0, &[]),
            smmuv3(4, 0x2000, 0, 0, &[]),
            root_complex(0, 0, 40, &mappings),
        ];
        let table = Table::parse(&table(6, &nodes)).expect("it is right");
        let pieces = pieces(&table.nodes[3], 0xffff).expect("it is right");
        for id in 0..64 {
            let mut fitting = pieces
                .iter()
                .filter(|piece| (piece.first..=piece.last).contains(&id));
            let said = fitting.next().map(|piece| {
                let distance = if piece.is_single { 0 } else { id - piece.first };
                (piece.output + distance, piece.target)
            });
            assert_eq!(said, table.map(3, id), "{id} of {mappings:?}");
            assert_eq!(fitting.next(), None);
        }
    }
}

#[test]
fn the_mapping_of_an_smmus_own_interrupts_counts_for_no_stream() {
    let own = [0, 0, 0xaa, 48, 1];
    let streams = [0, 0xff, 0x1000, 48, 0];
    // Revision, flags, index, whether the first mapping is its own.
    for (revision, flags, index, is_own) in [
        (0, 0, 0, false),
        (1, 0, 0, true),
        (4, 0, 0, true),
        (4, 0, 7, false),
        (5, 0, 0, false),
        (5, 1 << 4, 0, true),
    ] {
        let nodes = [
            its(),
            smmuv3(revision, 0x1000, flags, index, &[own, streams]),
        ];
        let table = Table::parse(&table(6, &nodes)).expect("it is right");
        let NodeKind::Smmuv3(smmu) = &table.nodes[1].kind else {
            panic!("{:?}", table.nodes[1]);
        };
        assert_eq!(smmu.own_mapping, is_own.then_some(0), "revision {revision}");
        assert_eq!(table.map(1, 5), Some((0x1005, 0)));
    }
    // All interrupts have wires.
    let mut bytes = smmuv3(4, 0x1000, 0, 0, &[own]);
    for (place, byte) in [(44, 1), (48, 2), (52, 3), (56, 4)] {
        bytes[place] = byte;
    }
    let table = Table::parse(&table(6, &[its(), bytes])).expect("it is right");
    assert!(
        matches!(&table.nodes[1].kind, NodeKind::Smmuv3(smmu) if smmu.own_mapping.is_none()
            && smmu.interrupts == [1, 2, 3, 4])
    );
}

#[test]
fn a_root_complex_says_its_segment_its_reach_and_who_may_use_device_tlbs() {
    let nodes = [
        smmuv3(4, 0x905_0000, 1, 0, &[]),
        root_complex(3, 1, 48, &[[0, 0xffff, 0, 48, 0]]),
        root_complex(2, 2, 0, &[]),
    ];
    let description = describe(&table(6, &nodes)).expect("it is right");
    assert_eq!(description.instances.len(), 1);
    assert_eq!(description.instances[0].architecture, Architecture::Smmuv3);
    assert_eq!(description.instances[0].is_coherent, Some(true));
    let location = Location::Memory {
        base: 0x905_0000,
        len: None,
    };
    assert_eq!(description.instances[0].location, location);
    assert_eq!(
        description.rules,
        [rule(requesters(3, 0, 0xffff), Some(0), Output::Offset(0))]
    );
    assert_eq!(
        description.reaches,
        [Reach {
            subject: all_of(3),
            address_bits: Some(48),
            ranges: vec![],
        }]
    );
    assert_eq!(description.ats.len(), 1);
    assert_eq!(description.ats[0].subject, all_of(3));
    assert!(!description.ats[0].is_required);
    let hosts: Vec<_> = description
        .hosts
        .iter()
        .map(|host| (host.segment, host.buses))
        .collect();
    assert_eq!(hosts, [(3, (0, 255)), (2, (0, 255))]);
    assert_eq!(
        description.coherence,
        [3, 2].map(|segment| Coherence {
            subject: all_of(segment),
            is_coherent: true,
        })
    );
}

#[test]
fn an_old_smmu_says_how_long_its_registers_are_and_that_its_walks_snoop() {
    let fields = Writer::default()
        .u64(0x1500_0000)
        .u64(0x10_0000)
        .u32(3)
        .u32(2);
    let fields = fields.u32(60).u32(1).u32(76).u32(1).u32(84);
    let fields = fields
        .u32(97)
        .u32(0)
        .u32(98)
        .u32(1)
        .u32(129)
        .u32(0)
        .u32(130)
        .u32(0);
    let bytes = table(0, &[node(3, 0, &fields, &[])]);
    let parsed = Table::parse(&bytes).expect("it is right");
    let interrupt = |gsiv, flags| Interrupt { gsiv, flags };
    let NodeKind::Smmu(smmu) = &parsed.nodes[0].kind else {
        panic!("{:?}", parsed.nodes[0]);
    };
    assert_eq!(smmu.global_interrupts, [interrupt(97, 0), interrupt(98, 1)]);
    assert_eq!(smmu.context_interrupts, [interrupt(129, 0)]);
    assert_eq!(smmu.counter_interrupts, [interrupt(130, 0)]);
    assert!(!smmu.has_broadcasts);
    let description = describe(&bytes).expect("it is right");
    let instance = &description.instances[0];
    assert_eq!(instance.architecture, Architecture::Smmu);
    let (base, len) = (0x1500_0000, Some(0x10_0000));
    assert_eq!(instance.location, Location::Memory { base, len });
    assert_eq!(instance.is_coherent, Some(true));
    assert_eq!(instance.name, "IORT SMMU at 0x30");
}

#[test]
fn a_named_component_has_the_ids_of_its_single_mappings_and_maps_those_of_its_bus() {
    let nodes = [
        smmuv3(4, 0x1000, 0, 0, &[]),
        named(
            b"\\_SB_.USB0",
            32,
            &[[0, 0, 0x40, 48, 1], [0, 0, 0x41, 48, 1]],
        ),
        named(b"\\_SB_.MCE0", 0, &[[0x10, 0x1f, 0x300, 48, 0]]),
    ];
    let description = describe(&table(6, &nodes)).expect("it is right");
    let names: Vec<_> = description
        .nodes
        .iter()
        .map(|node| node.name.as_str())
        .collect();
    assert_eq!(names, ["\\_SB_.USB0", "\\_SB_.MCE0"]);
    assert!(
        description
            .nodes
            .iter()
            .all(|node| node.bus == Bus::Platform)
    );
    let inputs = Subject::Inputs {
        node: NodeIndex(1),
        mask: u32::MAX,
        first: 0x10,
        last: 0x2f,
    };
    let all = Subject::Inputs {
        node: NodeIndex(0),
        mask: u32::MAX,
        first: 0,
        last: u32::MAX,
    };
    assert_eq!(
        description.rules,
        [
            rule(Subject::Node(NodeIndex(0)), Some(0), Output::Fixed(0x40)),
            rule(Subject::Node(NodeIndex(0)), Some(0), Output::Fixed(0x41)),
            // Of an ID on its bus the first one counts, whatever the ID.
            rule(all, Some(0), Output::Fixed(0x40)),
            rule(inputs, Some(0), Output::Offset(0x300)),
        ]
    );
    assert_eq!(description.reaches.len(), 1);
    assert_eq!(description.reaches[0].subject, Subject::Node(NodeIndex(0)));
    assert_eq!(description.reaches[0].address_bits, Some(32));
    assert!(!description.coherence[0].is_coherent);
}

#[test]
fn reserved_memory_is_a_region_of_its_streams_and_its_flags_say_which_kind() {
    let ranges = [(0x8000_0000, 0x1_0000), (0x9000_0000, 0x2_0000)];
    let streams = [0xdead, 1, 0x40, 48, 0];
    for (flags, prot, is_relaxable) in [
        (0, Prot::RW.device(), false),
        (1, Prot::RW.device(), true),
        (2 | 5 << 2, Prot::RW.cached().privileged(), false),
        (1 | 4 << 2, Prot::RW, true),
    ] {
        let nodes = [
            smmuv3(4, 0x1000, 0, 0, &[]),
            reserved(flags, &ranges, &[streams]),
        ];
        let expected = ranges.map(|(base, len)| Region {
            subject: Some(Subject::Streams {
                instance: InstanceIndex(0),
                first: 0x40,
                last: 0x41,
            }),
            range: IovaRange::with_len(Iova::new(base), len).expect("it is one"),
            kind: RegionKind::Direct { prot, is_relaxable },
        });
        let description = describe(&table(5, &nodes)).expect("it is right");
        assert_eq!(description.regions, expected);
        // Older tables meant something else.
        assert_eq!(
            describe(&table(4, &nodes)).expect("it is right").regions,
            []
        );
    }
}

#[test]
fn counters_belong_to_a_node() {
    let fields = Writer::default()
        .u64(0x2b42_0000)
        .u32(9)
        .u32(48)
        .u64(0x2b43_0000);
    let pmcg = node(5, 1, &fields, &[]);
    let parsed = Table::parse(&table(6, &[its(), pmcg])).expect("it is right");
    let expected = Pmcg {
        base: 0x2b42_0000,
        interrupt: 9,
        node: 0,
        second: Some(0x2b43_0000),
    };
    assert_eq!(parsed.nodes[1].kind, NodeKind::Pmcg(expected));
    let identifiers = vec![7];
    assert_eq!(parsed.nodes[0].kind, NodeKind::ItsGroup { identifiers });

    let fields = Writer::default().u64(0).u32(9).u32(49);
    let nodes = [its(), node(5, 0, &fields, &[])];
    let to = Fault::Reference { to: 49 };
    assert_eq!(
        Table::parse(&table(6, &nodes)),
        fault(WHAT, 72 + 28, "the node reference", to)
    );
}

#[test]
fn an_unknown_node_is_passed_over_and_who_goes_to_it_is_behind_nobody_knows_what() {
    let unknown = node(7, 0, &Writer::default().u64(5), &[[0, 0, 0, 48, 0]]);
    let nodes = [
        its(),
        unknown.clone(),
        root_complex(0, 0, 40, &[[0, 5, 0, 48, 0]]),
    ];
    let parsed = Table::parse(&table(6, &nodes)).expect("it is right");
    assert_eq!(parsed.nodes[1].kind, NodeKind::Unknown(7));
    // The IDs 0 to 5 go to it, 6 to the interrupt controller.
    let mappings = [[0, 5, 0, 72, 0], [6, 0, 6, 48, 0]];
    let nodes = [its(), unknown.clone(), root_complex(0, 0, 40, &mappings)];
    let description = describe(&table(6, &nodes)).expect("it is right");
    assert_eq!(
        description.rules,
        [rule(requesters(0, 6, 6), None, Output::Offset(6))]
    );
    let [flaw] = &description.flaws[..] else {
        panic!("{:?}", description.flaws);
    };
    assert_eq!((flaw.topic, flaw.offset), (Topic::Rule, 72));
    assert_eq!(flaw.subject, Some(requesters(0, 0, 5)));
    assert_eq!(flaw.problem, Problem::Value { value: 7 });
    // Streams of reserved memory are an SMMU's.
    let nodes = [its(), unknown, reserved(0, &[], &[[0, 0, 0, 72, 0]])];
    assert!(describe(&table(6, &nodes)).is_err());
}

#[test]
fn a_named_component_has_pasids_of_as_many_bits_as_its_flags_say() {
    for (flags, expected) in [(1, 0), (8 << 1, 8), (31 << 1 | 1, 20)] {
        let fields = Writer::default().u32(flags).u64(0).u8(0).bytes(b"NIC");
        let nodes = [node(1, 4, &fields.u8(0), &[])];
        let description = describe(&table(5, &nodes)).expect("it is right");
        let bits = description.pasid_bits(Who::Node(NodeIndex(0)));
        assert_eq!(bits, expected, "{flags:#x}");
    }
}
