//! Trees of a few functions: what is refused, who asks under which ID, where paths lead.

use super::*;
use crate::topology::FunctionKind::{
    Conventional, ConventionalBridge, DownstreamPort, Endpoint, PciPcieBridge, PciePciBridge,
    RootPort, UpstreamPort,
};

fn address(text: &str) -> PciAddress {
    text.parse().expect("the test writes an address")
}

fn function(text: &str, kind: FunctionKind) -> Function {
    Function::new(address(text), kind)
}

fn bridge(text: &str, kind: FunctionKind, secondary: u8, subordinate: u8) -> Function {
    Function {
        buses: Some(BusRange {
            secondary,
            subordinate,
        }),
        ..function(text, kind)
    }
}

fn virtual_function(text: &str, physical: &str) -> Function {
    Function {
        physical: Some(address(physical).requester),
        ..function(text, Endpoint)
    }
}

const ROOT: RootBus = RootBus { segment: 0, bus: 0 };

fn tree(functions: &[Function]) -> Result<PciTree, TreeError> {
    let tree = PciTree::new(&[ROOT], functions.to_vec());
    let reversed = PciTree::new(&[ROOT], functions.iter().rev().cloned());
    assert_eq!(tree, reversed, "an order of functions made a difference");
    tree
}

/// A port with a switch, one of whose ports has a bridge below, and a second root port.
fn machine() -> Vec<Function> {
    vec![
        bridge("0:0:1.0", RootPort, 1, 6),
        bridge("0:1:0.0", UpstreamPort, 2, 6),
        bridge("0:2:0.0", DownstreamPort, 3, 3),
        bridge("0:2:1.0", DownstreamPort, 4, 6),
        function("0:3:0.0", Endpoint),
        bridge("0:4:0.0", PciePciBridge, 5, 6),
        function("0:5:3.0", Conventional),
        bridge("0:5:4.0", ConventionalBridge, 6, 6),
        function("0:6:2.1", Conventional),
        bridge("0:0:2.0", RootPort, 0x20, 0x2f),
        function("0:20:0.0", Endpoint),
    ]
}

#[test]
fn bridges_are_found_above_their_buses_in_every_order() {
    let tree = tree(&machine()).expect("it is a tree");
    let parent = |text| tree.parent(address(text)).map(|bridge| bridge.address);
    assert_eq!(parent("0:0:1.0"), None);
    assert_eq!(parent("0:2:1.0"), Some(address("0:1:0.0")));
    assert_eq!(parent("0:6:2.1"), Some(address("0:5:4.0")));
    assert!(tree.is_below(address("0:6:2.1"), address("0:0:1.0")));
    assert!(!tree.is_below(address("0:6:2.1"), address("0:0:2.0")));
    assert!(!tree.is_below(address("0:0:1.0"), address("0:0:1.0")));
    assert!(
        tree.functions()
            .is_sorted_by_key(|function| function.address)
    );
}

#[test]
fn what_is_no_tree_is_refused_with_the_function_that_does_not_fit() {
    let refused = |changes: &[Function]| {
        let mut functions = machine();
        for change in changes {
            functions.retain(|function| function.address != change.address);
        }
        functions.extend_from_slice(changes);
        tree(&functions).expect_err("it is no tree")
    };
    let mut twice = machine();
    twice.push(function("0:5:3.0", Endpoint));
    assert_eq!(
        PciTree::new(&[ROOT], twice),
        Err(TreeError::Duplicate {
            address: address("0:5:3.0")
        })
    );
    assert_eq!(
        refused(&[bridge("0:3:0.0", Endpoint, 7, 7)]),
        TreeError::NoBridge {
            address: address("0:3:0.0")
        }
    );
    for (secondary, subordinate) in [(2, 2), (1, 6), (0, 6), (6, 5)] {
        assert_eq!(
            refused(&[bridge("0:2:1.0", DownstreamPort, secondary, subordinate)]),
            TreeError::Buses {
                address: address("0:2:1.0"),
                secondary,
                subordinate
            }
        );
    }
    assert_eq!(
        refused(&[bridge("0:2:1.0", DownstreamPort, 4, 7)]),
        TreeError::Outside {
            address: address("0:2:1.0"),
            parent: address("0:1:0.0")
        }
    );
    assert_eq!(
        refused(&[bridge("0:2:0.0", DownstreamPort, 3, 4)]),
        TreeError::Overlap {
            first: address("0:2:0.0"),
            second: address("0:2:1.0")
        }
    );
    assert_eq!(
        refused(&[bridge("0:0:1.0", RootPort, 1, 0x20)]),
        TreeError::Overlap {
            first: address("0:0:1.0"),
            second: address("0:0:2.0")
        }
    );
    assert_eq!(
        refused(&[bridge("0:2:0.0", DownstreamPort, 4, 6)]),
        TreeError::Overlap {
            first: address("0:2:0.0"),
            second: address("0:2:1.0")
        }
    );
    assert_eq!(
        refused(&[function("0:21:0.0", Endpoint)]),
        TreeError::NoBus {
            address: address("0:21:0.0")
        }
    );
    let roots = [ROOT, RootBus { segment: 0, bus: 4 }];
    assert_eq!(
        PciTree::new(&roots, machine()),
        Err(TreeError::RootBelow {
            address: address("0:0:1.0"),
            bus: 4
        })
    );
    let roots = [RootBus { segment: 1, bus: 0 }];
    assert_eq!(
        PciTree::new(&roots, machine()),
        Err(TreeError::NoBus {
            address: address("0:0:1.0")
        })
    );
}

#[test]
fn a_virtual_function_is_below_what_is_above_its_physical_one() {
    let mut functions = machine();
    functions.push(virtual_function("0:20:0.1", "0:20:0.0"));
    functions.push(virtual_function("0:21:10.0", "0:20:0.0"));
    let made = tree(&functions).expect("the port passes bus 21 on");
    for text in ["0:20:0.1", "0:21:10.0"] {
        let parent = made.parent(address(text)).map(|bridge| bridge.address);
        assert_eq!(parent, Some(address("0:0:2.0")));
    }

    let refused = |change: Function| {
        let mut functions = machine();
        functions.push(change);
        tree(&functions).expect_err("it is no tree")
    };
    let physical = address("0:20:1.0").requester;
    assert_eq!(
        refused(virtual_function("0:20:0.1", "0:20:1.0")),
        TreeError::NoPhysical {
            address: address("0:20:0.1"),
            physical
        }
    );
    functions.push(virtual_function("0:20:0.2", "0:20:0.1"));
    assert_eq!(
        tree(&functions),
        Err(TreeError::NoPhysical {
            address: address("0:20:0.2"),
            physical: address("0:20:0.1").requester
        })
    );
    // Beyond the port's buses, on another bridge's bus, on a root bus.
    for text in ["0:30:0.0", "0:3:0.1", "0:0:5.0"] {
        let address = address(text);
        assert_eq!(
            refused(virtual_function(text, "0:20:0.0")),
            TreeError::VirtualBus { address }
        );
    }
    // From one root bus to another one, or to none.
    let roots = [ROOT, RootBus { segment: 0, bus: 8 }];
    for (text, is_there) in [("0:8:5.0", false), ("0:9:5.0", true)] {
        let device = [
            function("0:0:5.0", FunctionKind::RootComplexEndpoint),
            virtual_function(text, "0:0:5.0"),
        ];
        assert_eq!(PciTree::new(&roots, device).is_ok(), is_there, "{text}");
    }
    let mut port = bridge("0:20:0.1", RootPort, 0x22, 0x22);
    port.physical = Some(address("0:20:0.0").requester);
    assert_eq!(
        refused(port),
        TreeError::VirtualBridge {
            address: address("0:20:0.1")
        }
    );
}

#[test]
fn requests_arrive_under_the_ids_of_quirks_and_of_bridges_on_the_way() {
    let mut functions = machine();
    functions[8].aliases = vec![address("0:6:2.0").requester, address("0:6:2.1").requester];
    let made = tree(&functions).expect("it is a tree");
    let requesters = |tree: &PciTree, text| {
        let requesters = tree.requesters(address(text)).expect("it is there");
        let texts = requesters.iter().map(|requester| format!("{requester}"));
        texts.collect::<Vec<_>>().join(" ")
    };
    assert_eq!(requesters(&made, "0:3:0.0"), "03:00.0");
    assert_eq!(requesters(&made, "0:4:0.0"), "04:00.0");
    assert_eq!(requesters(&made, "0:5:3.0"), "05:03.0 05:00.0");
    assert_eq!(requesters(&made, "0:5:4.0"), "05:04.0 05:00.0");
    assert_eq!(
        requesters(&made, "0:6:2.1"),
        "06:02.1 06:02.0 05:04.0 05:00.0"
    );
    assert_eq!(made.requesters(address("0:6:2.0")), None);

    let reverse = tree(&[
        bridge("0:0:1e.0", ConventionalBridge, 1, 2),
        bridge("0:1:5.0", PciPcieBridge, 2, 2),
        function("0:2:0.0", Endpoint),
    ]);
    let reverse = reverse.expect("it is a tree");
    assert_eq!(requesters(&reverse, "0:2:0.0"), "02:00.0 01:05.0 00:1e.0");
}

#[test]
fn a_path_leads_through_the_buses_that_bridges_have_now() {
    let made = tree(&machine()).expect("it is a tree");
    let at = |start, steps: &[(u8, u8)]| {
        let end = made.at_path(0, start, steps.iter().copied())?;
        Some(end.address)
    };
    let bridge = [(1, 0), (0, 0), (1, 0), (0, 0)];
    assert_eq!(at(0, &bridge), Some(address("0:4:0.0")));
    assert_eq!(at(0, &[(2, 0), (0, 0)]), Some(address("0:20:0.0")));
    assert_eq!(at(4, &[(0, 0), (3, 0)]), Some(address("0:5:3.0")));
    for steps in [
        &[][..],
        &[(3, 0)],
        &[(2, 0), (0, 0), (0, 0)],
        &[(32, 0)],
        &[(1, 8)],
    ] {
        assert_eq!(at(0, steps), None, "{steps:?}");
    }

    let position = |text| made.position(address(text), 0, 0, bridge);
    assert_eq!(position("0:4:0.0"), Position::At);
    assert_eq!(position("0:6:2.1"), Position::Below);
    assert_eq!(position("0:3:0.0"), Position::Elsewhere);
    assert_eq!(position("0:0:1.0"), Position::Elsewhere);
    let elsewhere = made.position(address("0:6:2.1"), 1, 0, bridge);
    assert_eq!(elsewhere, Position::Elsewhere);
}

#[test]
fn segments_are_trees_of_their_own() {
    let roots = [ROOT, RootBus { segment: 7, bus: 0 }];
    let mut functions = machine();
    functions.extend(machine().into_iter().map(|mut function| {
        function.address.segment = 7;
        function
    }));
    let tree = PciTree::new(&roots, functions).expect("both are trees");
    let parent = tree.parent(address("7:3:0.0")).map(|bridge| bridge.address);
    assert_eq!(parent, Some(address("7:2:0.0")));
}

#[test]
fn functions_of_all_buses_of_many_segments_make_a_tree() {
    let segments = if cfg!(miri) { 1 } else { 8 };
    let roots: Vec<_> = (0..segments)
        .map(|segment| RootBus { segment, bus: 0 })
        .collect();
    let mut functions = Vec::new();
    for segment in 0..segments {
        for number in 0..=u16::MAX {
            let requester = RequesterId::new(number);
            let address = PciAddress { segment, requester };
            let (bus, place) = (requester.bus(), number & 0xff);
            // Each bus leads to the next one.
            functions.push(if place == 0 && bus < u8::MAX {
                let buses = BusRange {
                    secondary: bus + 1,
                    subordinate: u8::MAX,
                };
                Function {
                    buses: Some(buses),
                    ..Function::new(address, ConventionalBridge)
                }
            } else if place < 64 {
                Function::new(address, Conventional)
            } else {
                continue;
            });
        }
    }
    let count = functions.len();
    let tree = PciTree::new(&roots, functions).expect("it is a tree");
    assert_eq!(tree.functions().len(), count);
    let last = tree.functions()[count - 1].address;
    // Its own, and one of each bridge.
    assert_eq!(tree.requesters(last).map(|all| all.len()), Some(256));
}
