//! Guests with a unit of their own.

use alloc::sync::Weak;

use iopt_formats::command::Span;
use iopt_formats::command::vtd::PasidIotlbScope;
use iopt_formats::context::vtd::ContextError;
use iopt_formats::{Iova, IovaRange};

use super::*;
use crate::device::context::{GuestCommandError, GuestDeviceError, NestError, Refusal};
use crate::invalidation::{Changes, Invalidate as _, Kind};
use crate::sync::SYNC;

type Guest = GuestVtd<Heap, Queue>;

/// Nesting, supervisor requests, extended accessed flags, snoop control.
const NESTS: u64 = 1 << 26 | 1 << 31 | 1 << 34 | 1 << 7;

/// `P`, `PGTT` 1; a domain ID of the guest; four levels at `0x1234_5000`.
const ENTRY: [u64; 8] = [1 | 1 << 6, 77, 0x1234_5000, 0, 0, 0, 0, 0];

fn nesting(planner: Planner) -> World {
    let features = Features::from_registers(CAP, ECAP | NESTS, 48);
    let instance = Queue::instance_of(planner);
    let unit = Unit::new(features, TableMode::Scalable, Arc::new(Heap), instance);
    World::of(unit.expect("memory"))
}

fn world() -> World {
    nesting(PLANNER)
}

fn guest(world: &World, parent: &Arc<Domain>) -> Guest {
    Guest::new(&world.unit, parent).expect("it fits")
}

fn nest(guest: &Guest, words: [u64; 8]) -> Arc<Domain> {
    let entry = GuestEntry::decode(words).expect("a guest may say so");
    Arc::new(guest.nest(&entry).expect("hardware has it"))
}

/// Domain IDs are the unit's, and not one guest's.
#[test]
fn a_guest_has_but_so_many_domains() {
    let world = world();
    let parent = second();
    let guest = guest(&world, &parent).with_limit(2);
    let entry = |words| GuestEntry::decode(words).expect("a guest may say so");
    let make = |words| guest.nest(&entry(words));
    let first = make(ENTRY).expect("it has none");
    let passing = make([1 | 4 << 6, 0, 0, 0, 0, 0, 0, 0]).expect("it has one");
    assert_eq!(make(ENTRY).map(drop), Err(GuestEntryError::TooMany));
    // What blocks has no ID, and others have domains of their own.
    assert!(make([0; 8]).is_ok());
    let other = self::guest(&world, &parent);
    assert!(other.nest(&entry(ENTRY)).is_ok());
    drop(passing);
    assert!(make(ENTRY).is_ok());
    drop(first);
}

/// Removes a page at 0x5000 from the parent, or maps it, as hardware is told of it.
fn told(parent: &Domain, kind: Kind) {
    let page = IovaRange::with_len(Iova::new(0x5000), 0x1000).expect("it is within");
    let sizes = PageSizes::EMPTY.with(PageSize::KIB_4);
    let _waiting = SYNC.waiting();
    let set = parent.set().expect("it has tables");
    let ticket = set.submit(&Changes::leaves(page, sizes, kind));
    set.wait(ticket.expect("hardware answers"))
        .expect("hardware answers");
}

fn page() -> Span {
    Span::new(0x5000, 0).expect("one page")
}

const fn of_device(source_id: u16, pasid: Option<Pasid>, span: Span) -> Descriptor {
    let device = source(source_id);
    match pasid {
        None => Descriptor::DeviceTlb { device, span },
        Some(pasid) => Descriptor::PasidDeviceTlb {
            device,
            pasids: PasidScope::One(pasid),
            span,
        },
    }
}

#[test]
fn a_guests_entry_says_what_is_the_guests_and_nothing_else() {
    let world = world();
    let guest = guest(&world, &second());
    let decoded = |word: usize, bits: u64| {
        let mut words = ENTRY;
        words[word] |= bits;
        GuestEntry::decode(words)
    };
    assert_eq!(GuestEntry::decode([0; 8]), Ok(GuestEntry::Blocked));
    assert_eq!(
        GuestEntry::decode([1 | 4 << 6, 0, 0, 0, 0, 0, 0, 0]),
        Ok(GuestEntry::PassThrough)
    );
    for kind in [2, 3] {
        let refused = GuestEntry::decode([1 | kind << 6 | 1 << 2, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(refused, Err(GuestEntryError::SecondStage));
    }
    // CD, EMTE, PAT.
    for bits in [1 << 25, 1 << 26, 1 << 32] {
        assert_eq!(decoded(1, bits), Err(GuestEntryError::MemoryTypes));
    }
    for (word, bits) in [(0, 1 << 5), (1, 1 << 16), (2, 1 << 1), (3, 1), (7, 1)] {
        assert!(matches!(
            decoded(word, bits),
            Err(GuestEntryError::Context(ContextError::Reserved { .. }))
        ));
    }
    // What says nothing to the host: FPD, AW, PWSNP, DID.
    for (word, bits) in [(0, 2), (0, 3 << 2), (1, 1 << 23), (1, 0xff00)] {
        assert_eq!(decoded(word, bits), GuestEntry::decode(ENTRY));
    }
    // SRE, EAFE, PGSNP, FSPM 1, on hardware without.
    let plain = World::of({
        let features = Features::from_registers(CAP, ECAP | 1 << 26, 48);
        let instance = Queue::instance_of(PLANNER);
        let unit = Unit::new(features, TableMode::Scalable, Arc::new(Heap), instance);
        unit.expect("memory")
    });
    let elsewhere = self::guest(&plain, &second());
    for (word, bits) in [(2, 1), (2, 1 << 7), (1, 1 << 24), (2, 1 << 2)] {
        let entry = decoded(word, bits).expect("a guest may say so");
        assert!(matches!(
            elsewhere.nest(&entry),
            Err(GuestEntryError::Unsupported { .. })
        ));
        assert_eq!(guest.nest(&entry).is_ok(), bits != 1 << 2);
    }
}

#[test]
fn only_a_second_stage_of_the_host_that_fits_is_a_parent() {
    let world = world();
    let refused = |world: &World, parent: &Arc<Domain>| {
        let made = Guest::new(&world.unit, parent);
        made.map(|_| ()).err()
    };
    let none = Some(NestError::NoSecondStage);
    assert_eq!(refused(&world, &Arc::new(Domain::identity())), none);
    assert_eq!(refused(&world, &first()), none);
    let guest = guest(&world, &second());
    for words in [ENTRY, [1 | 4 << 6, 0, 0, 0, 0, 0, 0, 0], [0; 8]] {
        let nested = nest(&guest, words);
        assert_eq!(nested.kind(), DomainKind::Nested);
        assert_eq!(refused(&world, &nested), none);
    }
    let unsupported = Some(NestError::Unsupported);
    assert_eq!(
        refused(&World::new(TableMode::Scalable), &second()),
        unsupported
    );
    assert_eq!(
        refused(&World::new(TableMode::Legacy), &second()),
        unsupported
    );
    // It has to be told of maps.
    let caching = nesting(CACHING);
    assert_eq!(refused(&caching, &second()), Some(NestError::Foreign));
}

/// `PGTT` 3 with the guest's table and flags, the parent's table, and a domain ID of the host.
#[test]
fn an_entry_joins_what_both_say() {
    let world = world();
    let parent = second();
    let guest = guest(&world, &parent);
    let device = world.device(&[0x100], false, 5);
    attach(&device, None, &parent).expect("it fits");
    let of_parent = device.pasid_entry(0, pasid(0)).expect("it is there");
    let of_parent = of_parent.encode();
    let mut words = ENTRY;
    words[2] |= 1 | 1 << 4 | 1 << 7;
    words[1] |= 1 << 24;
    let nested = nest(&guest, words);
    for place in [None, Some(pasid(3))] {
        attach(&device, place, &nested).expect("it fits");
        let entry = device.pasid_entry(0, place.unwrap_or(pasid(0)));
        let entry = entry.expect("it is there").encode();
        assert_eq!(entry[0], of_parent[0] & !(7 << 6) | 3 << 6);
        let did = u64::from(world.id(&nested));
        assert_ne!(did, 77);
        assert_eq!(entry[1], of_parent[1] & !0xffff | did | 1 << 24);
        assert_eq!(entry[2], words[2]);
        assert_eq!(entry[3..], [0; 5]);
    }
    // The parent alone, under an ID that is not the parent's.
    let passed = nest(&guest, [1 | 4 << 6, 0, 0, 0, 0, 0, 0, 0]);
    attach(&device, None, &passed).expect("it fits");
    let entry = device.pasid_entry(0, pasid(0)).expect("it is there");
    let entry = entry.encode();
    assert_eq!([entry[0], entry[2]], [of_parent[0], 0]);
    attach(&device, None, &nest(&guest, [0; 8])).expect("it fits");
    assert!(world.is_blocked(&device, 0x100, None));
    let elsewhere = self::world();
    let stranger = elsewhere.device(&[0x100], false, 5);
    assert!(matches!(
        attach(&stranger, None, &nested),
        Err(AttachFailure::Foreign)
    ));
    device.block(Some(pasid(3)));
    assert_eq!(world.unit.domain_ids().used_count(), 0);
    assert_eq!(world.unit.domain_ids().quarantined_count(), 0);
}

/// A3.15, what is told: of every domain ID in use, and all that devices cache.
#[test]
fn what_the_parent_loses_goes_from_all_that_was_made_of_it() {
    let world = world();
    let parent = second();
    let guest = guest(&world, &parent);
    let devices = [0x100, 0x108].map(|id| world.device(&[id], true, 5));
    let (one, other) = (nest(&guest, ENTRY), nest(&guest, ENTRY));
    attach(&devices[0], None, &one).expect("it fits");
    attach(&devices[0], Some(pasid(3)), &one).expect("it fits");
    attach(&devices[0], Some(pasid(4)), &other).expect("it fits");
    attach(&devices[1], None, &parent).expect("it fits");
    let dids = [&one, &other, &parent].map(|domain| world.id(domain));
    assert_eq!(dids, [2, 3, 4]);
    world.commands();
    told(&parent, Kind::Removed);
    let pages = iotlb(IotlbScope::Pages {
        domain_id: 4,
        span: page(),
        is_leaf_only: true,
    });
    assert_eq!(
        world.commands(),
        [
            pages,
            domain(2),
            domain(3),
            of_device(0x108, None, page()),
            of_device(0x100, None, Span::ALL),
            of_device(0x100, Some(pasid(3)), Span::ALL),
            of_device(0x100, Some(pasid(4)), Span::ALL),
        ]
    );
    told(&parent, Kind::Added);
    assert_eq!(world.commands(), []);
    devices[0].block(Some(pasid(3)));
    devices[0].block(Some(pasid(4)));
    world.commands();
    told(&parent, Kind::Removed);
    assert_eq!(
        world.commands(),
        [
            pages,
            domain(2),
            of_device(0x108, None, page()),
            of_device(0x100, None, Span::ALL),
        ]
    );
    for device in &devices {
        device.block(None);
    }
    world.commands();
    told(&parent, Kind::Removed);
    assert_eq!(world.commands(), []);
    assert_eq!(world.unit.domain_ids().used_count(), 0);
    assert_eq!(world.unit.domain_ids().quarantined_count(), 0);
}

#[test]
fn the_parent_lives_as_long_as_anything_leads_to_it() {
    let world = world();
    let device = world.device(&[0x100], false, 0);
    let parent: Weak<Domain> = {
        let parent = second();
        attach(&device, None, &nest(&guest(&world, &parent), ENTRY)).expect("it fits");
        Arc::downgrade(&parent)
    };
    assert!(parent.upgrade().is_some());
    device.block(None);
    assert!(parent.upgrade().is_none());
}

/// A guest with a device that it calls 0x10, one domain without a PASID and with 3, another one with 4.
fn attached(world: &World, parent: &Arc<Domain>) -> (Guest, Device, [Arc<Domain>; 2]) {
    let guest = guest(world, parent);
    let device = world.device(&[0x100, 0x101], true, 5);
    guest.add_device(0x10, &[0x100, 0x101]).expect("it is free");
    let domains = [nest(&guest, ENTRY), nest(&guest, ENTRY)];
    attach(&device, None, &domains[0]).expect("it fits");
    attach(&device, Some(pasid(3)), &domains[0]).expect("it fits");
    attach(&device, Some(pasid(4)), &domains[1]).expect("it fits");
    world.commands();
    (guest, device, domains)
}

const fn pasid_iotlb(domain_id: u16, pasid: Pasid, scope: PasidIotlbScope) -> Descriptor {
    Descriptor::PasidIotlb {
        domain_id,
        pasid,
        scope,
    }
}

#[test]
fn a_guests_descriptors_are_carried_out_in_the_hosts_names() {
    let world = world();
    let (guest, device, domains) = attached(&world, &second());
    let [one, other] = [&domains[0], &domains[1]].map(|domain| world.id(domain));
    let scope = PasidIotlbScope::Pages {
        span: page(),
        is_leaf_only: true,
    };
    let wait = Descriptor::Wait {
        status: None,
        has_interrupt: false,
        is_fence: false,
        drains_page_requests: false,
    };
    let list = [
        pasid_iotlb(77, pasid(1), scope),
        Descriptor::Iotlb {
            scope: IotlbScope::Global,
            drains_reads: false,
            drains_writes: false,
        },
        wait,
        of_device(0x10, Some(pasid(1)), page()),
        wait,
    ];
    guest
        .invalidate(&domains[0], &list)
        .expect("a guest may give them");
    assert_eq!(
        world.commands(),
        [
            pasid_iotlb(one, pasid(0), scope),
            pasid_iotlb(one, pasid(3), scope),
            domain(one),
            of_device(0x100, None, page()),
            of_device(0x100, Some(pasid(3)), page()),
            of_device(0x101, None, page()),
            of_device(0x101, Some(pasid(3)), page()),
        ]
    );
    guest
        .invalidate(&domains[1], &list)
        .expect("a guest may give them");
    assert_eq!(
        world.commands(),
        [
            pasid_iotlb(other, pasid(4), scope),
            domain(other),
            of_device(0x100, Some(pasid(4)), page()),
            of_device(0x101, Some(pasid(4)), page()),
        ]
    );
    // Nothing where nothing is attached.
    device.block(Some(pasid(4)));
    world.commands();
    assert_eq!(guest.invalidate(&domains[1], &list), Ok(()));
    assert_eq!(world.commands(), []);
}

#[test]
fn a_descriptor_that_is_not_the_guests_ends_the_list() {
    let world = world();
    let parent = second();
    let (guest, _device, domains) = attached(&world, &parent);
    let own = world.id(&domains[1]);
    let fine = pasid_iotlb(0, pasid(0), PasidIotlbScope::All);
    let device = Refusal::Device { id: 0x100 };
    let pages = iotlb(IotlbScope::Pages {
        domain_id: own,
        span: page(),
        is_leaf_only: true,
    });
    for (descriptor, refusal) in [
        (ALL_CONTEXTS, Refusal::Forbidden),
        (ALL_PASIDS, Refusal::Forbidden),
        (pages, Refusal::Forbidden),
        (of_device(0x100, None, page()), device),
        (of_device(0x100, Some(pasid(4)), page()), device),
    ] {
        let list = [fine, fine, descriptor, fine];
        let refused = guest.invalidate(&domains[1], &list);
        assert_eq!(refused, Err(GuestCommandError { index: 2, refusal }));
        let own = pasid_iotlb(own, pasid(4), PasidIotlbScope::All);
        assert_eq!(world.commands(), [own, own]);
    }
    // Neither the host's domains, nor another guest's, nor what has no first stage.
    let stranger = self::guest(&world, &second());
    let passed = nest(&guest, [1 | 4 << 6, 0, 0, 0, 0, 0, 0, 0]);
    for domain in [&parent, &nest(&stranger, ENTRY), &passed, &first()] {
        let refused = guest.invalidate(domain, &[fine]);
        let refusal = Refusal::Forbidden;
        assert_eq!(refused, Err(GuestCommandError { index: 0, refusal }));
    }
    assert_eq!(world.commands(), []);
    assert_eq!(
        guest.add_device(0x10, &[1]),
        Err(GuestDeviceError::Unknown { id: 1 })
    );
    assert_eq!(
        guest.add_device(0x11, &[0x101]),
        Err(GuestDeviceError::Taken)
    );
    assert!(guest.remove_device(0x10) && !guest.remove_device(0x10));
}
