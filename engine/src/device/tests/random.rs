//! A1.2: random traces, on one thread against what the machine says, and on several.

use super::*;
use crate::intervals::random::Random;
use crate::sync::lockdep;

const DEVICE_COUNT: usize = 64;
const INSTANCE_COUNT: usize = 8;

/// How many traces: some hundreds as a test, more if `IOPT_DEVICE_TRACES` says so.
fn trace_count(usual: usize) -> usize {
    let wanted = std::env::var("IOPT_DEVICE_TRACES").ok();
    let wanted = wanted.and_then(|count| count.parse().ok());
    wanted.unwrap_or(if cfg!(miri) { 2 } else { usual })
}

fn machine(random: &mut Random) -> MachineParts {
    let device_count = 1 + random.index(DEVICE_COUNT);
    let instance_count = 1 + random.index(INSTANCE_COUNT);
    let group_count = 1 + random.index(device_count);
    let mut devices = Vec::new();
    for number in 0..device_count {
        let mut instances = BTreeSet::from([random.index(instance_count)]);
        match random.below(8) {
            0 => instances.clear(),
            1 => drop(instances.insert(random.index(instance_count))),
            _ => {}
        }
        let instances: Vec<_> = instances.into_iter().collect();
        devices.push(behind(number, random.index(group_count), &instances));
    }
    let fact = |tells_devices_apart| InstanceFacts {
        tells_devices_apart,
        ..InstanceFacts::default()
    };
    MachineParts {
        devices,
        instances: (0..instance_count)
            .map(|_| fact(!random.one_in(8)))
            .collect(),
        ..MachineParts::default()
    }
}

/// Chooses what devices want, which is as settled as the machine.
fn wishes(random: &mut Random, rig: &Rig) {
    for device in rig.registry.machine().devices() {
        let kind = match random.below(6) {
            0 => DefaultKind::Identity,
            1 => DefaultKind::Paging,
            _ => continue,
        };
        rig.world
            .with(|world| world.kinds.insert(device.address, kind));
    }
}

/// Groups that are owned, by the device that was named.
type Owned = Vec<(DeviceAddress, Ownership)>;

/// Attaches or detaches something, by whatever right there is; without one it fails.
fn change(random: &mut Random, rig: &Rig, device: DeviceAddress, owned: &Owned) {
    let index = random.index(owned.len().max(1));
    let (device, by) = match owned.get(index).filter(|_| !random.one_in(3)) {
        Some((owned, ownership)) => (*owned, By::Owner(ownership)),
        None => (device, By::Driver),
    };
    let changed = if random.one_in(3) {
        rig.registry.detach(device, by)
    } else {
        let kind = [DomainKind::Paging, DomainKind::Nested][random.index(2)];
        let domain = domain(&rig.world, kind);
        rig.registry.attach(device, by, &domain)
    };
    let is_expected = matches!(
        changed,
        Ok(()) | Err(AttachError::NotOwner | AttachError::NoIommu { .. } | AttachError::Unknown(_))
    );
    assert!(is_expected, "{changed:?}");
}

/// A machine that becomes known little by little.
struct Growth {
    whole: MachineParts,
    first_count: usize,
    /// Whether time passes, once all has come that is there from the start.
    has_time: bool,
}

impl Growth {
    fn new(random: &mut Random, has_time: bool) -> Self {
        let whole = machine(random);
        let first_count = 1 + random.index(whole.devices.len());
        Self {
            whole,
            first_count,
            has_time,
        }
    }

    /// Returns what is known at first.
    fn first(&self) -> MachineParts {
        self.parts_of(self.first_count)
    }

    /// Returns what a registry knows by now.
    fn known(&self, rig: &Rig) -> MachineParts {
        self.parts_of(rig.registry.machine().devices().len())
    }

    fn parts_of(&self, count: usize) -> MachineParts {
        MachineParts {
            devices: self.whole.devices[..count].to_vec(),
            ..self.whole.clone()
        }
    }

    /// Makes some more devices known, unless one of them would join two groups, or somebody else knows more.
    fn grow(&self, random: &mut Random, rig: &Rig) {
        let known_count = rig.registry.machine().devices().len();
        let count = known_count + 1 + random.index(4);
        let parts = self.parts_of(count.min(self.whole.devices.len()));
        let grown = rig.registry.grow(Machine::new(parts).expect("it is one"));
        let is_expected = matches!(
            grown,
            Ok(()) | Err(GrowError::Joined { .. } | GrowError::Gone { .. })
        );
        assert!(is_expected, "{grown:?}");
    }
}

/// One event. Bound drivers that an unregistration meets are no failure.
fn step(random: &mut Random, rig: &Rig, growth: &Growth, owner: &Arc<Owner>, owned: &mut Owned) {
    let registry = &rig.registry;
    let machine = registry.machine();
    let mut devices = machine.devices();
    let device = devices.nth(random.index(devices.len()));
    let device = device.expect("it is in range").address;
    let instance = described(random.index(registry.machine().instances().len()));
    match random.below(20) {
        0..4 => drop(registry.add_device(device)),
        4..7 => drop(registry.register(rig.registration(instance))),
        7..9 => drop(rig.bind_at(device)),
        9 => registry.unbind_device(device).expect("it is there"),
        10 => {
            let guard = registry.lock_device(device).expect("it is there");
            guard.remove();
        }
        11..13 => {
            let claimed = registry.claim_owner(device, owner);
            owned.extend(claimed.map(|ownership| (device, ownership)));
        }
        13 => drop((!owned.is_empty()).then(|| owned.swap_remove(random.index(owned.len())))),
        14..16 => change(random, rig, device, owned),
        16 => registry.tick(),
        17 => growth.grow(random, rig),
        18 if growth.has_time => {
            registry.finish_initialization();
            rig.later(random.below(8));
        }
        _ => {
            let unregistered = registry.unregister(instance);
            assert!(!matches!(unregistered, Err(UnregisterError::Stuck)));
        }
    }
    lockdep::assert_none_held();
}

/// Lets everything come that has not, and compares with a registry where all came in one order.
fn check_end(parts: MachineParts, rig: &Rig) {
    let settle = |rig: &Rig| {
        rig.add_all();
        for number in 0..rig.registry.machine().instances().len() {
            let registered = rig.registry.register(rig.registration(described(number)));
            let is_there = matches!(registered, Err(RegisterError::Twice { .. }));
            assert!(registered.is_ok() || is_there, "{registered:?}");
        }
        for device in rig.registry.machine().devices() {
            rig.registry
                .unbind_device(device.address)
                .expect("it is there");
        }
        // Instances came under some of the drivers.
        rig.add_all();
        rig.check();
    };
    settle(rig);
    let fresh = Rig::of(parts);
    let kinds = rig.world.with(|world| world.kinds.clone());
    fresh.world.with(|world| world.kinds = kinds);
    settle(&fresh);
    assert_eq!(rig.registry.snapshot(), fresh.registry.snapshot());
    let finalized = rig.world.with(|world| world.finalized.clone());
    for device in rig.registry.machine().devices() {
        let probe_count = rig
            .world
            .with(|world| world.probe_counts.get(&device.address).copied());
        let told = finalized.iter().filter(|&&told| told == device.address);
        assert!(
            told.count() <= probe_count.unwrap_or(0),
            "told once for each probe"
        );
    }
}

#[test]
fn random_traces_end_where_an_orderly_one_does() {
    for seed in 1..=trace_count(400) {
        let mut random = Random::new(seed as u64);
        let growth = Growth::new(&mut random, seed % 2 == 0);
        let rig = Rig::of(growth.first());
        // Once groups do not wait for all of their members, who comes first decides.
        if !growth.has_time {
            wishes(&mut random, &rig);
        }
        let (owner, mut owned) = (Owner::new("owner"), Owned::new());
        for _ in 0..random.below(200) {
            step(&mut random, &rig, &growth, &owner, &mut owned);
            if random.one_in(16) {
                rig.check_grown();
            }
        }
        drop(owned);
        check_end(growth.known(&rig), &rig);
    }
}

#[test]
fn threads_that_do_random_things_end_where_an_orderly_trace_does() {
    for seed in 1..=trace_count(60) {
        let mut random = Random::new(1000 + seed as u64);
        let growth = Growth::new(&mut random, seed % 2 == 0);
        let rig = Rig::of(growth.first());
        if !growth.has_time {
            wishes(&mut random, &rig);
        }
        std::thread::scope(|scope| {
            for thread in 0..3 {
                let (rig, growth) = (&rig, &growth);
                let mut random = Random::new((seed * 3 + thread + 1) as u64);
                scope.spawn(move || {
                    let (owner, mut owned) = (Owner::new("owner"), Owned::new());
                    for _ in 0..80 {
                        step(&mut random, rig, growth, &owner, &mut owned);
                    }
                });
            }
        });
        check_end(growth.known(&rig), &rig);
    }
}
