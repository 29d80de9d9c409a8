//! PCI trees made of bytes, and their groups.

use iopt::topology::{
    Acs, AcsFlags, BusRange, Function, FunctionKind, GroupsError, Member, Node, Partition,
    PciAddress, PciTree, RequesterId, RootBus, Rule, Translation, TreeError, groups as find_groups,
};

/// Bytes of a function: bus, device and function, kind, flags, first and last bus below, ACS capable and on,
/// the requester ID of an alias, the one of the physical function.
pub(super) const FUNCTION_LEN: usize = 12;

/// Most functions of a tree.
const MAX_FUNCTIONS: usize = 32;

const KINDS: [FunctionKind; 10] = [
    FunctionKind::RootPort,
    FunctionKind::UpstreamPort,
    FunctionKind::DownstreamPort,
    FunctionKind::PciePciBridge,
    FunctionKind::PciPcieBridge,
    FunctionKind::ConventionalBridge,
    FunctionKind::Endpoint,
    FunctionKind::RootComplexEndpoint,
    FunctionKind::EventCollector,
    FunctionKind::Conventional,
];

/// Of the flags: several functions, isolated, an alias, a virtual function, segment 1, ACS, and how an IOMMU
/// translates it, two bits.
const MULTIFUNCTION: u8 = 1;
const ISOLATED: u8 = 1 << 1;
const ALIAS: u8 = 1 << 2;
const VIRTUAL: u8 = 1 << 3;
const SEGMENT: u8 = 1 << 4;
const HAS_ACS: u8 = 1 << 5;
const TRANSLATION: u8 = 3 << 6;

/// Returns the functions of bytes, and how each is translated.
pub(super) fn functions(bytes: &[u8]) -> Vec<(Function, Translation)> {
    let records = bytes.chunks_exact(FUNCTION_LEN).take(MAX_FUNCTIONS);
    records.map(function).collect()
}

fn function(record: &[u8]) -> (Function, Translation) {
    let id = |place: usize| {
        RequesterId::new(u16::from(record[place]) << 8 | u16::from(record[place + 1]))
    };
    let flags = record[3];
    let has = |flag: u8| flags & flag != 0;
    let address = PciAddress {
        segment: has(SEGMENT).into(),
        requester: id(0),
    };
    let kind = KINDS[usize::from(record[2]) % KINDS.len()];
    let mut function = Function::new(address, kind);
    function.is_multifunction = has(MULTIFUNCTION);
    function.is_isolated = has(ISOLATED);
    function.buses = (record[4] != 0).then_some(BusRange {
        secondary: record[4],
        subordinate: record[5],
    });
    function.acs = has(HAS_ACS).then_some(Acs {
        capable: AcsFlags::from_bits(record[6].into()),
        enabled: AcsFlags::from_bits(record[7].into()),
    });
    function.aliases.extend(has(ALIAS).then_some(id(8)));
    function.physical = has(VIRTUAL).then_some(id(10));
    let translation = match flags & TRANSLATION {
        0 => Translation::ById,
        TRANSLATION => Translation::Untranslated,
        other => Translation::Alike {
            instance: other.into(),
        },
    };
    (function, translation)
}

/// Makes the tree of functions below bus 0 of both segments, in the order given and in the opposite one.
pub(super) fn tree(functions: &[Function]) -> Result<PciTree, TreeError> {
    let roots = [0, 1].map(|segment| RootBus { segment, bus: 0 });
    let tree = PciTree::new(&roots, functions.iter().cloned());
    let turned = PciTree::new(&roots, functions.iter().rev().cloned());
    assert_eq!(turned, tree, "the order of functions counts");
    tree
}

/// A tree, and its groups by each rule.
pub fn groups(bytes: &[u8]) -> bool {
    let (functions, translations): (Vec<_>, Vec<_>) = functions(bytes).into_iter().unzip();
    let tree = match tree(&functions) {
        Ok(tree) => tree,
        Err(error) => {
            assert!(!error.to_string().is_empty());
            return false;
        }
    };
    check_tree(&tree, &functions);
    let members = functions.iter().zip(translations);
    let members: Vec<_> = members
        .map(|(function, translation)| Member {
            node: Node::Pci(function.address),
            translation,
        })
        .collect();
    for rule in [Rule::Reachability, Rule::Linux] {
        check_groups(&tree, &members, rule);
    }
    if let Some(first) = members.first() {
        let twice = [*first, *first];
        let refused = find_groups(&tree, &twice, Rule::Reachability);
        assert_eq!(
            refused.err(),
            Some(GroupsError::Duplicate { node: first.node })
        );
    }
    !members.is_empty()
}

fn check_tree(tree: &PciTree, functions: &[Function]) {
    assert_eq!(tree.functions().len(), functions.len());
    for function in functions {
        let address = function.address;
        assert_eq!(tree.get(address), Some(function));
        let ids = tree.requesters(address).expect("it is there");
        assert_eq!(ids.first(), Some(&address.requester));
        let parent = tree.parent(address);
        let Some(parent) = parent else {
            continue;
        };
        assert!(tree.is_below(address, parent.address) && !tree.is_below(parent.address, address));
        let buses = parent.buses.expect("something is below it");
        let bus = address.requester.bus();
        assert!((buses.secondary..=buses.subordinate).contains(&bus));
        assert_eq!(parent.address.segment, address.segment);
    }
}

fn check_groups(tree: &PciTree, members: &[Member], rule: Rule) {
    let found = |members: &[Member]| find_groups(tree, members, rule).expect("all are there, once");
    let partition = found(members);
    let turned: Vec<_> = members.iter().rev().copied().collect();
    assert_eq!(found(&turned), partition, "the order of members counts");
    let mut count = 0;
    for member in members {
        let group = partition.group_of(member.node);
        let is_untranslated = member.translation == Translation::Untranslated;
        assert_eq!(group.is_none(), is_untranslated);
        if let Some(group) = group {
            assert!(partition.members(group).contains(&member.node));
            count += 1;
        }
    }
    let in_groups: usize = partition.groups().map(|(_, nodes)| nodes.len()).sum();
    assert_eq!(
        in_groups, count,
        "a device is in two groups, or a stranger is in one"
    );
    if rule == Rule::Reachability {
        come_back(tree, members, &partition);
    }
}

/// Whoever leaves and comes back finds the same groups.
fn come_back(tree: &PciTree, members: &[Member], partition: &Partition) {
    let mut other = partition.clone();
    let gone = members.iter().step_by(2);
    for member in gone.clone() {
        let group = other.remove(member.node);
        assert_eq!(group.is_none(), partition.group_of(member.node).is_none());
    }
    for member in gone {
        // Whoever comes first may have a group of his own, until one comes who is in both.
        let added = other.add(tree, *member, |_| false);
        added.expect("no group is in use");
    }
    assert_eq!(&other, partition);
}

/// A root port with a function and a virtual one, a switch with two ports, a bridge to PCI with a device, and
/// what sits on the root bus.
pub(super) const MACHINE: [[u8; FUNCTION_LEN]; 12] = [
    [0, 0x08, 0, HAS_ACS, 1, 1, 0x1d, 0x1d, 0, 0, 0, 0],
    [1, 0x00, 6, ALIAS, 0, 0, 0, 0, 1, 1, 0, 0],
    [1, 0x80, 6, VIRTUAL, 0, 0, 0, 0, 0, 0, 1, 0],
    [0, 0x10, 0, HAS_ACS, 2, 5, 0x1d, 0, 0, 0, 0, 0],
    [2, 0x00, 1, 0, 3, 5, 0, 0, 0, 0, 0, 0],
    [3, 0x00, 2, HAS_ACS, 4, 4, 0x1d, 0x1d, 0, 0, 0, 0],
    [3, 0x08, 2, 0, 5, 5, 0, 0, 0, 0, 0, 0],
    [4, 0x00, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0],
    [5, 0x00, 6, ISOLATED | MULTIFUNCTION, 0, 0, 0, 0, 0, 0, 0, 0],
    [0, 0x48, 7, 1 << 6, 0, 0, 0, 0, 0, 0, 0, 0],
    [0, 0xf8, 7, MULTIFUNCTION | 1 << 6, 0, 0, 0, 0, 0, 0, 0, 0],
    [0, 0x00, 7, TRANSLATION, 0, 0, 0, 0, 0, 0, 0, 0],
];

/// A machine with PCI bridges below each other, in segment 1.
const CONVENTIONAL: [[u8; FUNCTION_LEN]; 5] = [
    [0, 0x10, 3, SEGMENT, 1, 3, 0, 0, 0, 0, 0, 0],
    [1, 0x08, 5, SEGMENT, 2, 2, 0, 0, 0, 0, 0, 0],
    [2, 0x18, 9, SEGMENT, 0, 0, 0, 0, 0, 0, 0, 0],
    [1, 0x10, 4, SEGMENT, 3, 3, 0, 0, 0, 0, 0, 0],
    [3, 0x00, 6, SEGMENT | HAS_ACS, 0, 0, 0x0c, 0x0c, 0, 0, 0, 0],
];

/// Two machines, and both in one.
pub fn seeds() -> Vec<Vec<u8>> {
    let (one, other) = (MACHINE.concat(), CONVENTIONAL.concat());
    let both = [one.clone(), other.clone()].concat();
    vec![one, other, both]
}
