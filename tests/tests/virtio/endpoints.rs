//! Endpoints come, move and go, and mappings with them.

use std::sync::Arc;

use iopt::domain::Domain;
use iopt::domain::virtio::{EndpointError, RequestError, VirtioDomain};
use iopt::ioas::{Holes, Ioas, MapError};
use iopt_formats::command::virtio::{Property, ReservedMemory};
use iopt_formats::{IovaRange, Prot};

use crate::{NUMBER, PAGE, World, range};
use iopt_tests::virtio::{DETACH, Fault, INVALID, MAP, NO_MEMORY, UNMAP};

#[test]
fn the_first_endpoint_gets_everything_again_in_one_batch() {
    let world = World::new(256);
    world.map(0x10_0000, 0, 40, Prot::RW).expect("it is free");
    world.domain.attach(2).expect("there is such an endpoint");
    assert_eq!(world.device.count(MAP), 40, "the second one finds it there");
    world.domain.detach(1).expect("it is attached");
    world.assert_reaches(2, 0x10_0000, 0, 40, 3);
    world.domain.detach(2).expect("it is attached");
    assert_eq!(world.device.mapping_count(NUMBER), 0);
    // Nobody is there: nothing is sent.
    world.map(0x20_0000, 40, 10, Prot::R).expect("it is free");
    world
        .ioas
        .unmap(range(0x10_0000, 40 * PAGE), Holes::Refused)
        .expect("it is mapped");
    world.map(0x10_0000, 100, 30, Prot::RW).expect("it is free");
    assert_eq!(
        (world.device.count(MAP), world.device.count(UNMAP)),
        (40, 0)
    );
    let before = world.device.state().kick_count;
    world.domain.attach(3).expect("there is such an endpoint");
    assert_eq!(world.device.count(MAP), 80);
    assert_eq!(world.device.state().kick_count, before + 2);
    world.assert_reaches(3, 0x10_0000, 100, 30, 3);
    world.assert_reaches(3, 0x20_0000, 40, 10, 1);
    world.ioas.unmap_all().expect("nothing is in the way");
    world.assert_empty();
    world.device.assert_clean();
}

#[test]
fn an_endpoint_that_moves_takes_the_old_domain_with_it() {
    let world = World::new(64);
    world.map(0x10_0000, 0, 4, Prot::RW).expect("it is free");
    let other = VirtioDomain::new(Arc::clone(&world.iommu), NUMBER + 1);
    let other = Arc::new(other.expect("it is free").without_pins());
    let ioas = Ioas::new();
    ioas.attach(Arc::clone(&other) as Arc<dyn Domain>)
        .expect("it fits");
    other.attach(1).expect("there is such an endpoint");
    assert_eq!(
        (world.domain.endpoint_count(), other.endpoint_count()),
        (0, 1)
    );
    assert_eq!(world.device.translate(1, 0x10_0000), None);
    // The old domain has nothing to tell, and everything when the endpoint comes back.
    world.map(0x20_0000, 4, 1, Prot::RW).expect("it is free");
    world.domain.attach(1).expect("there is such an endpoint");
    world.assert_reaches(1, 0x10_0000, 0, 4, 3);
    world.assert_reaches(1, 0x20_0000, 4, 1, 3);
    world.device.assert_clean();
}

#[test]
fn endpoints_that_do_not_fit_are_refused() {
    let world = World::new(64);
    assert!(matches!(
        world.domain.attach(1),
        Err(EndpointError::Attached)
    ));
    let unknown = world.domain.attach(99);
    assert!(matches!(
        unknown,
        Err(EndpointError::Request(RequestError::NoEntry))
    ));
    assert_eq!(world.domain.detach(2), Err(RequestError::Invalid));
    world.device.order(DETACH, 0, Fault::Status(INVALID), false);
    assert_eq!(world.domain.detach(1), Err(RequestError::Invalid));
    assert_eq!(world.domain.endpoint_count(), 1);
}

#[test]
fn an_attach_says_what_the_device_did_not_take_and_it_is_sent_again() {
    let world = World::new(64);
    world.map(0x10_0000, 0, 8, Prot::RW).expect("it is free");
    world.domain.detach(1).expect("it is attached");
    world.device.order(MAP, 5, Fault::Status(NO_MEMORY), true);
    let attached = world.domain.attach(1);
    let is_named = matches!(
        attached,
        Err(EndpointError::Fill { mapping, error: RequestError::NoMemory })
            if mapping == range(0x10_5000, PAGE)
    );
    assert!(is_named, "{attached:?}");
    world.device.heal();
    world.domain.refill().expect("there is room again");
    world.assert_reaches(1, 0x10_0000, 0, 8, 3);
    world.ioas.unmap_all().expect("nothing is in the way");
    world.assert_empty();
}

#[test]
fn a_probe_finds_what_an_address_space_has_to_reserve() {
    let world = World::new(64);
    let properties = [
        Property::ReservedMemory {
            subtype: ReservedMemory::Msi,
            range: range(0xfee0_0000, 0x10_0000),
        },
        Property::ReservedMemory {
            subtype: ReservedMemory::Reserved,
            range: range(0x1000, 0x1000),
        },
    ];
    world.device.state().properties = properties.map(|property| property.encode()).concat();
    assert_eq!(world.iommu.probe(4), Err(RequestError::NoEntry));
    let found = world.iommu.probe(1).expect("there is such an endpoint");
    assert_eq!(found, properties);
    for property in found {
        let Property::ReservedMemory { range, .. } = property else {
            panic!("{property:?}");
        };
        world.ioas.reserve(range, 1).expect("nothing is there");
    }
    let refused = world.map(0x1000, 0, 1, Prot::RW);
    assert!(matches!(refused, Err(MapError::Reserved { .. })));
    assert!(!world.ioas.iova_ranges().contains(&IovaRange::FULL));
}
