//! Looking up, in descriptions written by hand.

use std::vec::Vec;

use iopt_formats::IovaRange;

use crate::firmware::resolve::{Behind, Identity, Position, Seen, Who};
use crate::firmware::{
    Architecture, Description, Flaw, Instance, InstanceIndex, Location, NodeIndex, Output,
    PathStep, PciPath, Problem, Region, RegionKind, Rule, Subject, Topic,
};
use crate::topology::{PciAddress, RequesterId};

/// A function that is where the paths' last steps say, below those of device 1.
#[derive(Debug)]
struct At(u8);

impl Position for At {
    fn is_at(&self, path: &PciPath) -> bool {
        path.steps.last().is_some_and(|step| step.device == self.0)
    }

    fn is_below(&self, path: &PciPath) -> bool {
        self.is_at(path) || path.steps.last().is_some_and(|step| step.device == 1)
    }

    fn is_below_root_port(&self) -> bool {
        self.0 == 1
    }
}

fn path(segment: u16, device: u8) -> PciPath {
    PciPath {
        segment,
        start_bus: 0,
        steps: [PathStep {
            device,
            function: 0,
        }]
        .to_vec(),
    }
}

fn range(mask: u16, first: u16, last: u16) -> Subject {
    Subject::Requesters {
        segment: 0,
        mask,
        first: RequesterId::new(first),
        last: RequesterId::new(last),
    }
}

/// A description with one instance for each rule, in their order.
fn description(rules: Vec<(Subject, Output)>) -> Description {
    let mut description = Description::default();
    for (index, (subject, output)) in rules.into_iter().enumerate() {
        description.instances.push(Instance {
            architecture: Architecture::Other,
            location: Location::Unstated,
            name: format!("{index}"),
            is_enabled: true,
            is_coherent: None,
            itself: None,
            match_mask: 0,
        });
        description.rules.push(Rule {
            subject,
            instance: Some(InstanceIndex(index)),
            output,
            amd_settings: 0,
        });
    }
    description
}

fn address(segment: u16, requester: u16) -> PciAddress {
    PciAddress {
        segment,
        requester: RequesterId::new(requester),
    }
}

/// The instance and the ID of a requester of segment 0 that is device 5 at no path's end.
fn found(description: &Description, requester: u16) -> Option<(usize, Identity<'_>)> {
    match description.requester(address(0, requester), &At(5)) {
        Behind::Instance(seen) => Some((seen.instance.0, seen.identity)),
        _ => None,
    }
}

#[test]
fn the_output_is_the_id_under_the_mask_less_the_bound_plus_the_offset() {
    let description = description(vec![(range(0xff, 0x10, 0x1f), Output::Offset(0x1000))]);
    let number = |number| Some((0, Identity::Number(number)));
    assert_eq!(found(&description, 0x10), number(0x1000));
    assert_eq!(found(&description, 0x1f), number(0x100f));
    assert_eq!(found(&description, 0xab1f), number(0x100f));
    assert_eq!(found(&description, 0x0f), None);
    assert_eq!(found(&description, 0x20), None);
    let elsewhere = description.requester(address(1, 0x10), &At(5));
    assert_eq!(elsewhere, Behind::Unsaid);
}

#[test]
fn of_rules_that_fit_the_first_one_counts_and_the_rest_comes_last() {
    let description = description(vec![
        (Subject::Rest { segment: 0 }, Output::Offset(0)),
        (range(0xffff, 8, 15), Output::Fixed(1)),
        (range(0xffff, 0, 31), Output::Fixed(2)),
        (Subject::Rest { segment: 0 }, Output::Offset(7)),
    ]);
    assert_eq!(found(&description, 8), Some((1, Identity::Number(1))));
    assert_eq!(found(&description, 16), Some((2, Identity::Number(2))));
    assert_eq!(found(&description, 32), Some((0, Identity::Number(32))));
    assert_eq!(description.requester(address(1, 8), &At(5)), Behind::Unsaid);
}

#[test]
fn rules_without_an_instance_count_where_all_others_fail() {
    let mut description = description(vec![
        (range(0xffff, 0, 0xffff), Output::Offset(0)),
        (range(0xffff, 0, 7), Output::Offset(0)),
        (range(0xffff, 0, 15), Output::Offset(0)),
        (Subject::Rest { segment: 0 }, Output::Offset(0)),
    ]);
    description.rules[0].instance = None;
    description.instances[1].is_enabled = false;
    assert_eq!(found(&description, 7), Some((2, Identity::Number(7))));
    assert_eq!(found(&description, 16), Some((3, Identity::Number(16))));
    description.rules.pop();
    let nothing = description.requester(address(0, 16), &At(5));
    assert_eq!(nothing, Behind::Nothing(&description.rules[0]));
}

#[test]
fn paths_are_asked_of_the_position() {
    let description = description(vec![
        (Subject::Function(path(0, 5)), Output::Offset(0)),
        (Subject::Below(path(0, 1)), Output::Offset(0)),
        (Subject::Below(path(0, 6)), Output::Offset(0)),
    ]);
    let instance =
        |segment, device| match description.requester(address(segment, 0x28), &At(device)) {
            Behind::Instance(seen) => Some((seen.instance.0, seen.identity)),
            _ => None,
        };
    let number = Identity::Number(0x28);
    assert_eq!(instance(0, 5), Some((0, number)));
    assert_eq!(instance(0, 7), Some((1, number)));
    assert_eq!(instance(0, 6), Some((1, number)), "the first that fits");
    assert_eq!(instance(1, 5), None, "another segment");
}

#[test]
fn a_node_has_all_its_ids() {
    let node = |index| Subject::Node(NodeIndex(index));
    let mut description = description(vec![
        (node(0), Output::Cells(vec![0x10])),
        (node(1), Output::Fixed(7)),
        (node(0), Output::Cells(vec![0x20, 0x21])),
        (node(0), Output::Cells(vec![])),
    ]);
    let rules = description.rules.clone();
    let seen = |at: usize, identity| Seen {
        instance: InstanceIndex(at),
        identity,
        alias: None,
        rule: &rules[at],
    };
    assert_eq!(
        description.node(NodeIndex(0)),
        Behind::Instance(vec![
            seen(0, Identity::Number(0x10)),
            seen(2, Identity::Cells(&[0x20, 0x21])),
            seen(3, Identity::Cells(&[]))
        ])
    );
    let one = vec![seen(1, Identity::Number(7))];
    assert_eq!(description.node(NodeIndex(1)), Behind::Instance(one));
    assert_eq!(description.node(NodeIndex(2)), Behind::Unsaid);
    description.rules[2].instance = None;
    let two = vec![
        seen(0, Identity::Number(0x10)),
        seen(3, Identity::Cells(&[])),
    ];
    assert_eq!(description.node(NodeIndex(0)), Behind::Instance(two));
    description.instances[0].is_enabled = false;
    description.rules[3].instance = None;
    assert_eq!(description.node(NodeIndex(0)), Behind::Nothing(&rules[0]));
}

#[test]
fn inputs_are_looked_up_at_their_node() {
    let inputs = Subject::Inputs {
        node: NodeIndex(3),
        mask: 0xffff,
        first: 0x10,
        last: 0x1f,
    };
    let description = description(vec![(inputs, Output::Offset(0x100))]);
    let found = |node, id| match description.input(NodeIndex(node), id) {
        Behind::Instance(seen) => Some(seen.identity),
        _ => None,
    };
    assert_eq!(found(3, 0x1f), Some(Identity::Number(0x10f)));
    assert_eq!(found(3, 0x7_001f), Some(Identity::Number(0x10f)));
    assert_eq!(found(3, 0x20), None);
    assert_eq!(found(3, 0x0f), None);
    assert_eq!(found(2, 0x10), None);
    assert_eq!(description.node(NodeIndex(3)), Behind::Unsaid);
}

#[test]
fn who_is_behind_none_and_who_is_not_spoken_of_are_told_apart() {
    let mut description = description(vec![(range(0xffff, 0, 7), Output::Offset(0))]);
    description.rules[0].instance = None;
    let rule = description.rules[0].clone();
    assert_eq!(
        description.requester(address(0, 1), &At(5)),
        Behind::Nothing(&rule)
    );
    assert_eq!(description.requester(address(0, 8), &At(5)), Behind::Unsaid);
    // An ID that no number is left for is none.
    description.rules[0].instance = Some(InstanceIndex(0));
    description.rules[0].output = Output::Offset(u32::MAX);
    let rule = description.rules[0].clone();
    assert_eq!(
        description.requester(address(0, 1), &At(5)),
        Behind::Nothing(&rule)
    );
    // An index that leads out of the description is none, too.
    description.rules[0].instance = Some(InstanceIndex(1));
    let rule = description.rules[0].clone();
    assert_eq!(
        description.requester(address(0, 0), &At(5)),
        Behind::Nothing(&rule)
    );
}

#[test]
fn what_no_rule_speaks_of_may_be_in_a_sentence_that_cannot_be_read() {
    let mut description = description(vec![(range(0xffff, 0, 7), Output::Offset(0))]);
    let flaw = |topic, last| Flaw {
        topic,
        subject: Some(range(0xffff, 0, last)),
        name: "/pci".into(),
        property: "iommu-map",
        offset: 0,
        problem: Problem::Length { len: 3 },
    };
    description.flaws = vec![flaw(Topic::Region, 0xffff), flaw(Topic::Rule, 0xff)];
    let unreadable = flaw(Topic::Rule, 0xff);
    let position = At(5);
    assert!(matches!(
        description.requester(address(0, 7), &position),
        Behind::Instance(_)
    ));
    let found = description.requester(address(0, 8), &position);
    assert_eq!(found, Behind::Unreadable(&unreadable));
    assert_eq!(
        description.requester(address(0, 0x100), &position),
        Behind::Unsaid
    );
    assert_eq!(description.node(NodeIndex(0)), Behind::Unsaid);
    let text = unreadable.to_string();
    assert_eq!(
        text,
        "iommu-map of /pci, at byte 0: 3 bytes are no whole number of entries"
    );
}

#[test]
fn regions_are_those_for_it_and_those_for_everyone() {
    let mut description = description(vec![(range(0xffff, 0, 9), Output::Offset(0x100))]);
    let streams = |instance, first, last| Subject::Streams {
        instance: InstanceIndex(instance),
        first,
        last,
    };
    let region = |subject, kind| Region {
        subject,
        range: IovaRange::FULL,
        kind,
    };
    description.regions = vec![
        region(None, RegionKind::Msi),
        region(Some(range(0xffff, 8, 8)), RegionKind::Reserved),
        region(Some(Subject::Node(NodeIndex(0))), RegionKind::Reserved),
        region(Some(streams(0, 0x108, 0x109)), RegionKind::Reserved),
        region(Some(streams(1, 0x108, 0x109)), RegionKind::Reserved),
    ];
    let count = |who| description.regions_of(who).count();
    assert_eq!(count(Who::Requester(address(0, 7), &At(5))), 1);
    assert_eq!(
        count(Who::Requester(address(0, 8), &At(5))),
        3,
        "its own, its stream's, everyone's"
    );
    assert_eq!(count(Who::Requester(address(0, 9), &At(5))), 2);
    assert_eq!(count(Who::Requester(address(0, 10), &At(5))), 1);
    assert_eq!(count(Who::Node(NodeIndex(0))), 2);
    assert_eq!(count(Who::Input(NodeIndex(0), 8)), 1);
    assert!(description.reach_of(Who::Node(NodeIndex(0))).is_none());
    assert!(description.ats_of(Who::Node(NodeIndex(0))).is_none());
}
