//! A3.11: ASIDs of CPUs and of domains on hardware that caches under both alike.

use alloc::collections::BTreeMap;
use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;

use super::{AsidHolder, LOG, PinError, RenumberError, SharedAsid, SharedAsids};
use crate::device::ids::{Id, IdError};
use crate::invalidation::SyncError;
use crate::sync::{Class, Mutex};

/// Of the tests' own locks: held while a domain moves.
static HELD: Class = Class::unranked("ASIDs of a test");

/// Whose memory a request reaches.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
enum Space {
    Process(u32),
    Domain(u32),
}

/// An instance whose TLB keeps all that it may.
#[derive(Default)]
struct Hardware {
    /// The ASID and the tables that the context of a device names, and whether the ASID is the CPUs' (`ASET`
    /// clear).
    contexts: BTreeMap<u32, (u32, Space, bool)>,
    /// By ASID and page. Lookups are blind to whose an ASID is; broadcasts need not be.
    tlb: BTreeMap<(u32, u64), (Space, bool)>,
    is_silent: bool,
}

struct World {
    hardware: Mutex<Hardware>,
    asids: Arc<SharedAsids>,
}

impl World {
    fn new(bits: u8) -> Arc<Self> {
        Arc::new(Self {
            hardware: Mutex::new(&LOG, Hardware::default()),
            asids: SharedAsids::of_width(bits),
        })
    }

    fn with<R>(&self, work: impl FnOnce(&mut Hardware) -> R) -> R {
        work(&mut self.hardware.lock())
    }

    /// Makes each device access some pages, and checks that it reaches what is meant.
    fn check(&self) {
        self.with(|hardware| {
            for (&(asid, space, is_shared), page) in
                hardware.contexts.values().zip([1, 2].iter().cycle())
            {
                for page in [*page, 3] {
                    let cached = hardware.tlb.entry((asid, page));
                    let (reached, _) = *cached.or_insert((space, is_shared));
                    assert_eq!(reached, space, "page {page} under ASID {asid}");
                }
            }
        });
    }

    /// What a CPU broadcasts when it changes an address space.
    fn broadcast(&self, asid: u32) {
        self.with(|hardware| {
            let is_hit = |own: u32, is_shared: bool| own == asid && is_shared;
            hardware
                .tlb
                .retain(|&(own, _), &mut (_, is_shared)| !is_hit(own, is_shared));
        });
    }

    fn forget(&self, asid: u32) {
        self.with(|hardware| hardware.tlb.retain(|&(own, _), _| own != asid));
    }

    fn lead(&self, device: u32, context: (u32, Space, bool)) {
        self.with(|hardware| hardware.contexts.insert(device, context));
    }

    fn block(&self, device: u32) {
        self.with(|hardware| hardware.contexts.remove(&device));
    }

    /// Leads a device to a process, with the CPUs' ASID.
    fn bind(
        self: &Arc<Self>,
        device: u32,
        asid: u32,
        process: u32,
    ) -> Result<SharedAsid, PinError> {
        let shared = self.asids.pin(asid)?;
        self.lead(device, (shared.get(), Space::Process(process), true));
        Ok(shared)
    }

    fn unbind(&self, device: u32, shared: SharedAsid) {
        self.block(device);
        self.forget(shared.get());
        shared.release();
    }
}

/// A domain of the instance's own, with some devices.
struct Domain {
    world: Weak<World>,
    number: u32,
    devices: Vec<u32>,
    id: Mutex<Vec<Id>>,
}

impl Domain {
    fn new(world: &Arc<World>, number: u32, devices: &[u32]) -> Result<Arc<Self>, IdError> {
        let id = world.asids.allocate()?;
        let asid = id.get();
        let domain = Arc::new(Self {
            world: Arc::downgrade(world),
            number,
            devices: devices.to_vec(),
            id: Mutex::new(&HELD, Vec::new()),
        });
        let holder = Arc::downgrade(&domain);
        world.asids.hold(&id, holder);
        domain.id.lock().push(id);
        for &device in devices {
            world.lead(device, (asid, Space::Domain(number), false));
        }
        Ok(domain)
    }

    fn asid(&self) -> u32 {
        self.id.lock()[0].get()
    }

    /// Ends it.
    fn leave(&self, world: &World) {
        for &device in &self.devices {
            world.block(device);
        }
        for id in self.id.lock().drain(..) {
            world.forget(id.get());
            id.give_back_unused();
        }
    }
}

impl AsidHolder for Domain {
    fn renumber(&self, old: u32, new: Id) -> Result<Id, RenumberError> {
        let world = self.world.upgrade().expect("it lives");
        let mut ids = self.id.lock();
        let Some(at) = ids.iter().position(|id| id.get() == old) else {
            return Ok(new);
        };
        let number = new.get();
        let context = (number, Space::Domain(self.number), false);
        ids.push(new);
        for &device in &self.devices {
            world.check();
            world.lead(device, context);
            if world.with(|hardware| hardware.is_silent) {
                return Err(SyncError::TimedOut.into());
            }
        }
        world.check();
        world.forget(old);
        world.check();
        Ok(ids.swap_remove(at))
    }
}

/// A3.11.
#[test]
fn a_domain_with_the_asid_of_a_process_moves_and_both_stay_apart() {
    let world = World::new(8);
    let domain = Domain::new(&world, 7, &[1, 2]).expect("there are ASIDs");
    let other = Domain::new(&world, 8, &[3]).expect("there are ASIDs");
    let old = domain.asid();
    world.check();
    let shared = world.bind(9, old, 70).expect("it moves");
    assert_eq!(shared.get(), old);
    assert!(![old, other.asid()].contains(&domain.asid()));
    world.check();
    // Pinned again it is the same, and nobody moves.
    let moved = domain.asid();
    let again = world.bind(10, old, 70).expect("it is pinned");
    assert_eq!(domain.asid(), moved);
    world.check();
    // Broadcasts reach the process's translations alone.
    world.broadcast(old);
    world.with(|hardware| {
        assert!(hardware.tlb.keys().all(|&(asid, _)| asid != old));
        assert!(hardware.tlb.keys().any(|&(asid, _)| asid == moved));
    });
    world.check();
    world.unbind(9, shared);
    // Still the CPUs', until the last one goes.
    assert!(matches!(world.asids.ids().take(old), Ok(None)));
    world.check();
    world.unbind(10, again);
    domain.leave(&world);
    other.leave(&world);
    assert_eq!(world.asids.ids().used_count(), 0);
    assert_eq!(world.asids.ids().quarantined_count(), 0);
}

#[test]
fn a_number_that_nobody_has_is_pinned_where_it_is() {
    let world = World::new(16);
    let shared = world.bind(1, 0x1234, 1).expect("it is free");
    let domains: Vec<_> = (0..4)
        .map(|number| Domain::new(&world, number, &[10 + number]).expect("ASIDs"))
        .collect();
    assert_eq!(
        domains.iter().map(|it| it.asid()).collect::<Vec<_>>(),
        [1, 2, 3, 4]
    );
    world.check();
    // Neither 0 nor what is wider than the instance has it.
    for number in [0, 0x1_0000] {
        assert!(matches!(
            world.asids.pin(number),
            Err(PinError::Taken { .. })
        ));
    }
    drop(shared);
    for domain in domains {
        domain.leave(&world);
    }
    assert_eq!(
        world.asids.ids().used_count(),
        1,
        "dropped, it stays in use"
    );
}

#[test]
fn a_domain_that_cannot_move_keeps_its_asid_and_the_process_gets_none() {
    let world = World::new(2);
    let domains = [1, 2, 3].map(|number| Domain::new(&world, number, &[number]).expect("ASIDs"));
    let asids = domains.each_ref().map(|it| it.asid());
    // None is left to move to.
    assert!(matches!(
        world.asids.pin(2),
        Err(PinError::Id(IdError::Exhausted { .. }))
    ));
    assert_eq!(domains.each_ref().map(|it| it.asid()), asids);
    world.check();
    domains[0].leave(&world);
    // Hardware says nothing: both numbers stay the domain's.
    world.with(|hardware| hardware.is_silent = true);
    assert!(matches!(world.asids.pin(2), Err(PinError::Renumber(_))));
    world.with(|hardware| hardware.is_silent = false);
    assert_eq!(domains[1].id.lock().len(), 2);
    assert_eq!(world.asids.ids().used_count(), 3);
    world.check();
    domains[1].leave(&world);
    let shared = world.bind(9, 2, 9).expect("it is free now");
    world.check();
    world.unbind(9, shared);
    // Allocated, and nobody is named yet.
    let id = world.asids.allocate().expect("there are some");
    let number = id.get();
    assert_eq!(
        world.asids.pin(number).err(),
        Some(PinError::Taken { number })
    );
    id.give_back_unused();
}

#[test]
fn processes_and_domains_that_come_and_go_never_meet() {
    for start in 1..20_u64 {
        let world = World::new(5);
        let mut seed = start << 24 | 0x51;
        let mut below = |count: u64| {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            ((seed >> 20) % count) as u32
        };
        let mut domains: Vec<Arc<Domain>> = Vec::new();
        let mut bonds: Vec<(u32, SharedAsid)> = Vec::new();
        for step in 0..300 {
            match below(5) {
                0 | 1 => domains.extend(Domain::new(&world, step, &[2 * step, 2 * step + 1]).ok()),
                2 if !domains.is_empty() => {
                    let at = below(domains.len() as u64) as usize;
                    domains.swap_remove(at).leave(&world);
                }
                3 if !bonds.is_empty() => {
                    let at = below(bonds.len() as u64) as usize;
                    let (device, shared) = bonds.swap_remove(at);
                    world.unbind(device, shared);
                }
                _ => {
                    // The CPUs have one process for each ASID.
                    let asid = 1 + below(31);
                    let device = 10_000 + step;
                    if let Ok(shared) = world.bind(device, asid, asid) {
                        bonds.push((device, shared));
                    }
                }
            }
            world.check();
            world.broadcast(1 + below(31));
            world.check();
            let used = domains.iter().map(|it| it.asid());
            let used: Vec<_> = used.collect();
            assert!(
                bonds
                    .iter()
                    .all(|(_, shared)| !used.contains(&shared.get()))
            );
        }
        for (device, shared) in bonds {
            world.unbind(device, shared);
        }
        for domain in domains {
            domain.leave(&world);
        }
        assert_eq!(world.asids.ids().used_count(), 0);
        assert_eq!(world.asids.ids().quarantined_count(), 0);
    }
}
