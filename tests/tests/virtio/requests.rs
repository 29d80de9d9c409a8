//! What is sent, and when.

use std::sync::Arc;

use iopt::domain::virtio::{NumberError, VirtioDomain, VirtioError, VirtioIommu};
use iopt::domain::{Domain, DomainError};
use iopt::ioas::{Holes, Ioas, MapError, Mapping, Pages, Place, SplitError};
use iopt::pin::{Kind, Simulated, Source};
use iopt::radix::FaultWindow;
use iopt_formats::command::virtio::feature;
use iopt_formats::{Iova, PageSize, Prot};

use crate::{FEATURES, LIMIT, NUMBER, PAGE, World, config, range};
use iopt_tests::virtio::{Device, MAP, UNMAP};

#[test]
fn a_batch_of_maps_is_one_kick() {
    let world = World::new(256);
    let before = world.device.state().kick_count;
    world.map(0x10_0000, 0, 100, Prot::RW).expect("it is free");
    assert_eq!(world.device.count(MAP), 100);
    assert_eq!(world.device.state().kick_count, before + 1);
    world.assert_reaches(1, 0x10_0000, 0, 100, 3);
    world.device.assert_clean();
}

#[test]
fn unmaps_wait_for_their_sync_and_take_one_request_an_area() {
    let world = World::new(256);
    let ranges: Vec<_> = (0..10)
        .map(|area| range(0x10_0000 + area * 0x1_0000, 3 * PAGE))
        .collect();
    for (area, range) in (0..).zip(&ranges) {
        let mapped = world.map(range.start().get(), area * 3, 3, Prot::R);
        mapped.expect("it is free");
    }
    let before = world.device.state().kick_count;
    let bytes = world.ioas.unmap_many(&ranges, Holes::Refused);
    assert_eq!(bytes.expect("they are mapped"), 30 * PAGE);
    assert_eq!(world.device.count(UNMAP), 10);
    assert_eq!(world.device.state().kick_count, before + 1);
    world.assert_empty();
    world.device.assert_clean();
}

#[test]
fn a_full_queue_is_kicked_and_emptied() {
    for capacity in [1, 2, 7] {
        let world = World::new(capacity);
        world.device.state().shuffle = Some(9);
        for area in 0..20 {
            let mapped = world.map(0x10_0000 + area * 0x1_0000, area * 5, 5, Prot::RW);
            mapped.expect("it is free");
        }
        world.assert_reaches(1, 0x10_0000, 0, 5, 3);
        world.assert_reaches(1, 0x10_0000 + 19 * 0x1_0000, 95, 5, 3);
        world.ioas.unmap_all().expect("nothing is in the way");
        assert_eq!(world.device.state().most_under_way, capacity);
        world.assert_empty();
        world.device.assert_clean();
    }
}

#[test]
fn rights_are_flags_and_registers_need_their_feature() {
    let world = World::new(16);
    let registers = Simulated::new(PageSize::KIB_4, 4).with_kind(Kind::Device);
    let registers = Pages::new(Arc::new(registers) as Arc<dyn Source>, None);
    for (index, (prot, flags)) in (0..).zip([
        (Prot::R, 1),
        (Prot::W, 2),
        (Prot::RW, 3),
        (Prot::RW.cached(), 3),
        (Prot::RW.executable(), 3),
        (Prot::R.device(), 5),
        (Prot::RW.device(), 7),
    ]) {
        let iova = 0x10_0000 + index * PAGE;
        let mapping = |pages, offset| Mapping {
            pages,
            offset,
            len: PAGE,
            prot,
            place: Place::Fixed(Iova::new(iova)),
        };
        let is_registers = flags & 4 != 0;
        let pages = if is_registers {
            &registers
        } else {
            &world.pages
        };
        world.ioas.map(mapping(pages, 0)).expect("it is free");
        let found = world.device.translate(1, iova).map(|(_, flags)| flags);
        assert_eq!(found, Some(flags), "{prot}");
    }
    world.device.assert_clean();

    let device = Device::new(4);
    let without = FEATURES & !(1 << feature::MMIO);
    let iommu = Arc::new(VirtioIommu::new(device.clone(), config(), without));
    let domain = VirtioDomain::new(iommu, NUMBER).expect("it is free");
    let domain = Arc::new(domain.without_pins());
    let ioas = Ioas::new();
    ioas.attach(domain as Arc<dyn Domain>).expect("it fits");
    let refused = ioas.map(Mapping {
        pages: &registers,
        offset: 0,
        len: PAGE,
        prot: Prot::RW.device(),
        place: Place::Fixed(Iova::new(0)),
    });
    let error = match refused {
        Err(MapError::Domain {
            error: DomainError::Other(error),
            ..
        }) => error,
        other => panic!("{other:?}"),
    };
    let expected = VirtioError::Rights {
        prot: Prot::RW.device(),
    };
    assert_eq!(error.downcast_ref(), Some(&expected));
    assert_eq!(ioas.area_count(), 0);
}

#[test]
fn granule_and_input_range_bind_the_address_space() {
    let device = Device::new(4);
    let mut config = config();
    config.page_sizes = iopt_formats::PageSizes::from_bits(0xffff_ffff_ffff_0000);
    config.input_range = range(0x1_0000, 0x100_0000);
    device.state().granule = 0x1_0000;
    device.state().input_range = (0x1_0000, 0x100_ffff);
    let new = |features| {
        let iommu = Arc::new(VirtioIommu::new(device.clone(), config, features));
        let domain = VirtioDomain::new(iommu, NUMBER).expect("it is free");
        Arc::new(domain.without_pins())
    };
    assert_eq!(new(0).caps().aperture, iopt_formats::IovaRange::FULL);
    let domain = new(FEATURES);
    domain.attach(2).expect("there is such an endpoint");
    let ioas = Ioas::new();
    ioas.attach(domain as Arc<dyn Domain>).expect("it fits");
    assert_eq!(ioas.alignment(), 0x1_0000);
    let source = Simulated::new(PageSize::KIB_64, 4);
    let pages = Pages::new(Arc::new(source) as Arc<dyn Source>, None);
    let map = |iova, len| {
        ioas.map(Mapping {
            pages: &pages,
            offset: 0,
            len,
            prot: Prot::RW,
            place: Place::Fixed(Iova::new(iova)),
        })
    };
    assert!(matches!(map(0, 0x1_0000), Err(MapError::Reserved { .. })));
    assert!(matches!(
        map(0x100_0000, 0x2_0000),
        Err(MapError::Reserved { .. })
    ));
    assert!(matches!(
        map(0x1_1000, 0x1_0000),
        Err(MapError::Unaligned { .. })
    ));
    map(0x1_0000, 0x1_0000).expect("the lowest");
    map(0x100_0000, 0x1_0000).expect("the highest");
    device.assert_clean();
}

#[test]
fn numbers_are_used_once_and_bound() {
    let device = Device::new(4);
    let iommu = crate::iommu(&device, LIMIT);
    let new = |number| VirtioDomain::new(Arc::clone(&iommu), number);
    let outside = NumberError::OutOfRange {
        first: 1,
        last: 100,
    };
    assert_eq!(new(0).err(), Some(outside));
    assert_eq!(new(101).err(), Some(outside));
    let one = new(100).expect("it is free");
    assert_eq!(new(100).err(), Some(NumberError::InUse));
    one.attach(1).expect("there is such an endpoint");
    drop(one);
    assert_eq!(
        new(100).err(),
        Some(NumberError::InUse),
        "the device has it still"
    );
    let other = new(1).expect("it is free");
    other.attach(1).expect("there is such an endpoint");
    new(100).expect("its last endpoint left");
    device.assert_clean();
}

#[test]
fn mappings_are_replaced_only_if_devices_may_fault() {
    let world = World::with(64, FaultWindow::Refuse, LIMIT);
    world.domain.attach(1).expect("there is such an endpoint");
    let run = Simulated::new(PageSize::KIB_4, 4);
    let run = Pages::new(Arc::new(run) as Arc<dyn Source>, None);
    let mapping = Mapping {
        pages: &run,
        offset: 0,
        len: 4 * PAGE,
        prot: Prot::RW,
        place: Place::Fixed(Iova::new(0)),
    };
    world.ioas.map(mapping).expect("it is free");
    let refused = world.ioas.split(Iova::new(PAGE));
    let unsupported = |error: &DomainError| matches!(error, DomainError::Unsupported { .. });
    assert!(matches!(refused, Err(SplitError::Domain { error, .. }) if unsupported(&error)));
    world
        .ioas
        .protect(range(0, 4 * PAGE), Prot::R)
        .expect_err("it needs a window");
    assert_eq!(
        world.device.translate(1, 0).map(|(_, flags)| flags),
        Some(3)
    );
    world
        .ioas
        .protect(range(0, 4 * PAGE), Prot::RW)
        .expect("nothing changes");
    // Between runs nothing needs to be divided.
    world.map(0x10_0000, 0, 4, Prot::RW).expect("it is free");
    world
        .ioas
        .split(Iova::new(0x10_2000))
        .expect("mappings end there");
    world
        .ioas
        .unmap(range(0x10_2000, 2 * PAGE), Holes::Refused)
        .expect("a part");
    world.assert_reaches(1, 0x10_0000, 0, 2, 3);
    // Nor does it while nobody is there to fault.
    world.domain.detach(1).expect("it is attached");
    world
        .ioas
        .protect(range(0, 4 * PAGE), Prot::R)
        .expect("nobody uses it");
    world.ioas.split(Iova::new(PAGE)).expect("nobody uses it");
    world.domain.attach(1).expect("there is such an endpoint");
    assert_eq!(
        world.device.translate(1, PAGE).map(|(_, flags)| flags),
        Some(1)
    );
    world
        .ioas
        .unmap(range(0, PAGE), Holes::Refused)
        .expect("a part");
    assert_eq!(world.device.mapping_count(NUMBER), 3);
    world.device.assert_clean();
}

#[test]
fn a_mapping_is_divided_where_it_is_cut_and_nowhere_else() {
    let world = World::new(64);
    let run = Simulated::new(PageSize::KIB_4, 16);
    let run = Pages::new(Arc::new(run) as Arc<dyn Source>, None);
    let mapping = Mapping {
        pages: &run,
        offset: 0,
        len: 16 * PAGE,
        prot: Prot::RW,
        place: Place::Fixed(Iova::new(0x10_0000)),
    };
    world.ioas.map(mapping).expect("it is free");
    let starts = || {
        let state = world.device.state();
        let starts = state.domains[&NUMBER].keys();
        starts
            .map(|start| (start - 0x10_0000) / PAGE)
            .collect::<Vec<_>>()
    };
    let translations = || {
        (0..16)
            .map(|page| world.device.translate(1, 0x10_0000 + page * PAGE))
            .collect::<Vec<_>>()
    };
    let before = translations();
    world
        .ioas
        .split(Iova::new(0x10_3000))
        .expect("there is a window");
    assert_eq!(starts(), [0, 3]);
    world
        .ioas
        .split(Iova::new(0x10_8000))
        .expect("there is a window");
    assert_eq!(starts(), [0, 3, 8]);
    world
        .ioas
        .cut(&world.dynamic, range(0x10_9000, 2 * PAGE), PageSize::KIB_4)
        .expect("there is a window");
    assert_eq!(starts(), [0, 3, 8, 9, 10, 11]);
    assert_eq!(translations(), before);
    world.ioas.unmap_all().expect("nothing is in the way");
    world.assert_empty();
    world.device.assert_clean();
}
