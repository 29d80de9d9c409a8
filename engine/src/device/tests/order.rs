//! In whatever order devices, instances and drivers come, the end is the same.

use super::*;

/// What can happen, each once.
#[derive(Clone, Copy, Debug)]
enum Event {
    Add(usize),
    Register(usize),
    Bind(usize),
}

const EVENTS: [Event; 7] = [
    Event::Add(0),
    Event::Add(1),
    Event::Add(2),
    Event::Register(0),
    Event::Register(1),
    Event::Bind(0),
    Event::Bind(2),
];

/// Two devices in one group behind one instance, and one behind both; the first two want different
/// default domains.
fn devices() -> Vec<Resolved> {
    Vec::from([
        behind(0, 0, &[0]),
        behind(1, 0, &[0]),
        behind(2, 1, &[0, 1]),
    ])
}

/// Lets events happen, with each driver tried again after each event until it is bound, as long as that
/// is deferred. Returns what became of it.
fn play(parts: MachineParts, events: &[Event]) -> (Snapshot, u64) {
    let rig = Rig::of(parts);
    rig.world.with(|world| {
        world.kinds.insert(node(0), DefaultKind::Paging);
        world.kinds.insert(node(1), DefaultKind::Identity);
    });
    let mut deferred = BTreeSet::new();
    for event in events {
        match *event {
            Event::Add(number) => rig.add(number),
            Event::Register(number) => rig.register(number),
            Event::Bind(number) => {
                deferred.insert(number);
            }
        }
        deferred.retain(|&number| match rig.bind(number) {
            Ok(Binding::Translated(_)) => false,
            // A driver of a device that was not added is not tried.
            Err(BindError::Defer | BindError::Unknown(_)) => true,
            other => panic!("{other:?}"),
        });
        rig.check();
    }
    assert_eq!(deferred, BTreeSet::new());
    rig.world.with(|world| {
        assert!(world.probe_counts.values().all(|&count| count == 1));
        world.finalized.sort_unstable();
        assert_eq!(world.finalized, [node(0), node(1), node(2)]);
    });
    assert_eq!(rig.world.report_count("KindConflict"), 1);
    (rig.registry.snapshot(), rig.registry.state_hash())
}

fn each_order(events: &mut [Event], from: usize, each: &mut impl FnMut(&[Event])) {
    if from == events.len() {
        each(events);
    }
    for index in from..events.len() {
        events.swap(from, index);
        each_order(events, from + 1, each);
        events.swap(from, index);
    }
}

fn check_all_orders(parts: &MachineParts) -> Snapshot {
    let mut events = EVENTS;
    let expected = play(parts.clone(), &events);
    let mut count = 0;
    each_order(&mut events, 0, &mut |events| {
        count += 1;
        if cfg!(miri) && count % 500 != 0 {
            return;
        }
        assert_eq!(play(parts.clone(), events), expected, "{events:?}");
    });
    assert_eq!(count, 5040);
    expected.0
}

/// A1.1.
#[test]
fn all_orders_of_seven_events_end_in_the_same_state() {
    let snapshot = check_all_orders(&parts(devices()));
    assert_eq!(snapshot.groups.len(), 2);
    assert_eq!(snapshot.groups[0].members, [node(0), node(1)]);
    assert_eq!(snapshot.groups[0].current, DomainKind::Identity);
    assert_eq!(snapshot.groups[1].current, DomainKind::Paging);
    assert!(snapshot.devices[2].is_bound && !snapshot.devices[1].is_bound);
}

/// A1.13.
#[test]
fn supplier_edges_and_circles_of_them_change_nothing() {
    let edge = |consumer, instance| SupplierEdge {
        consumer: node(consumer),
        instance: InstanceIndex(instance),
    };
    let mut circle = parts(devices());
    // Instances that are devices themselves and need each other.
    circle.devices.push(behind(3, 3, &[1]));
    circle.devices.push(behind(4, 4, &[0]));
    circle.instances[0].hardware = Some(node(3));
    circle.instances[1].hardware = Some(node(4));
    let without = check_all_orders(&circle);
    circle.suppliers = Vec::from([edge(0, 0), edge(2, 1), edge(3, 1), edge(4, 0)]);
    assert_eq!(check_all_orders(&circle), without);
}

#[test]
fn the_binding_order_puts_suppliers_first_and_cuts_circles() {
    let edge = |consumer, instance| SupplierEdge {
        consumer: node(consumer),
        instance: InstanceIndex(instance),
    };
    let mut parts = parts((0..4).map(|number| behind(number, number, &[])).collect());
    parts.instances = alloc::vec![InstanceFacts::default(); 3];
    for (instance, hardware) in [3, 0, 2].into_iter().enumerate() {
        parts.instances[instance].hardware = Some(node(hardware));
    }
    // 1 needs 3, which needs 2; 2 and 0 need each other.
    parts.suppliers = Vec::from([edge(1, 0), edge(3, 2), edge(2, 1), edge(0, 2)]);
    let machine = Machine::new(parts).expect("it is one");
    let order = machine.binding_order();
    assert_eq!(order.len(), 4);
    let place = |number| {
        let mut order = order.iter();
        order
            .position(|&device| device == node(number))
            .expect("it is listed")
    };
    assert!(place(3) < place(1) && place(2) < place(3));
}

/// Whoever looks for the suppliers of each device among all does not end.
#[test]
fn a_binding_order_of_many_devices_is_no_endless_work() {
    let count = if cfg!(any(miri, loom)) { 20 } else { 40_000 };
    let mut parts = parts(
        (0..count)
            .map(|number| behind(number, number, &[]))
            .collect(),
    );
    parts.instances = alloc::vec![InstanceFacts::default()];
    parts.instances[0].hardware = Some(node(count - 1));
    let edges = (0..count - 1).rev().map(|consumer| SupplierEdge {
        consumer: node(consumer),
        instance: InstanceIndex(0),
    });
    parts.suppliers = edges.collect();
    let order = Machine::new(parts).expect("it is one").binding_order();
    assert_eq!((order.len(), order[0]), (count, node(count - 1)));
}
