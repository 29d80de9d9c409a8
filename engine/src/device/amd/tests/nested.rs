//! Guests with an IOMMU of their own.

mod commands;

use alloc::sync::Weak;

use iopt_formats::command::Span;
use iopt_formats::context::amd::{DteError, Translation};
use iopt_formats::{Iova, IovaRange, PageSize, PageSizes};

use super::*;
use crate::device::context::NestError;
use crate::device::{Condition, DomainKind};
use crate::invalidation::{Changes, Invalidate as _, Kind};
use crate::sync::SYNC;

type Guest = GuestIommu<Heap, Queue>;

const DOMAIN_ID: u64 = 77;
/// V, TV, `GIoV`, GV, GLX 1, bits 14:12 of the guest CR3 table, IR, IW.
const WORD_0: u64 = 3 | 3 << 54 | 1 << 56 | 5 << 58 | 3 << 61;
/// The guest's domain ID, bits 30:15 of the guest CR3 table, which is at `0x1234_5000`, and 51:31.
const WORD_1: u64 = DOMAIN_ID | (0x1234_5000 >> 15) << 16;
const ATS_ON: u64 = 1 << 32;
const TABLES: [u64; 4] = [WORD_0, WORD_1, 0, 0];
const WITH_ATS: [u64; 4] = [WORD_0, WORD_1 | ATS_ON, 0, 0];
/// V, TV, `Mode` 0, IR, IW.
const PASSES: [u64; 4] = [3 | 3 << 61, 77, 0, 0];
const BLOCKS: [u64; 4] = [1, 0, 0, 0];

fn own(words: [u64; 4]) -> GuestDte {
    GuestDte::decode(words).expect("a guest may say so")
}

fn nest(guest: &Guest, words: [u64; 4]) -> Arc<Domain> {
    Arc::new(guest.nest(&own(words)).expect("hardware has it"))
}

fn guest_of(world: &World, parent: &Arc<Domain>) -> Guest {
    Guest::new(&world.iommu, parent).expect("it fits")
}

/// Returns an entry with another domain ID.
const fn of_domain(words: [u64; 4], domain_id: u64) -> [u64; 4] {
    [words[0], words[1] & !0xffff | domain_id, words[2], words[3]]
}

/// Removes a page at 0x5000 from the parent, as hardware is told of it.
fn unmap(parent: &Domain) {
    told(parent, &page(Kind::Removed));
}

fn page(kind: Kind) -> Changes {
    let page = IovaRange::with_len(Iova::new(0x5000), 0x1000).expect("it is within");
    Changes::leaves(page, PageSizes::EMPTY.with(PageSize::KIB_4), kind)
}

fn told(parent: &Domain, changes: &Changes) {
    let _waiting = SYNC.waiting();
    let set = parent.set().expect("it has tables");
    let ticket = set.submit(changes).expect("hardware answers");
    set.wait(ticket).expect("hardware answers");
}

fn at_page(domain_id: u16) -> Command {
    Command::InvalidatePages {
        domain_id,
        pasid: None,
        has_tables: false,
        span: Span::new(0x5000, 0).expect("a page"),
    }
}

const fn whole(domain_id: u16) -> Command {
    Command::InvalidatePages {
        domain_id,
        pasid: None,
        has_tables: true,
        span: Span::ALL,
    }
}

const fn entry(device_id: u16) -> Command {
    Command::InvalidateDeviceTableEntry { device_id }
}

const fn device_tlb(device_id: u16, pasid: Option<Pasid>, span: Span) -> Command {
    Command::InvalidateIotlbPages {
        device_id,
        max_pending: 16,
        queue_id: device_id,
        pasid,
        span,
    }
}

#[test]
fn a_guests_entry_says_what_is_the_guests_and_nothing_else() {
    // PPR and GPRP; IoCtl, SD, EX and SysMgt; all that virtual IOMMUs and memory attributes have.
    let hosts = [0x0030_0000_0000_0000_u64, 0x03d8_0000_0000, 0, u64::MAX];
    // Bits 63 and 6:2, and GLX 3; 42; 59, 53:52 and GuestPagingMode 2.
    let reserved = [0x8200_0000_0000_007c_u64, 1 << 42, 0x08b0_0000_0000_0000, 0];
    for word in 0..4 {
        for bit in 0..64 {
            let mut words = TABLES;
            words[word] |= 1 << bit;
            let decoded = GuestDte::decode(words);
            let is_hosts = hosts[word] >> bit & 1 != 0;
            let refused = GuestDteError::Forbidden {
                word,
                bits: 1 << bit,
            };
            assert_eq!(decoded == Err(refused), is_hosts, "{word} {bit}");
            let is_illegal = matches!(decoded, Err(GuestDteError::Illegal(_)));
            assert_eq!(is_illegal, reserved[word] >> bit & 1 != 0, "{word} {bit}");
            let is_mode = word == 0 && (9..=11).contains(&bit);
            assert_eq!(decoded == Err(GuestDteError::HostTables), is_mode);
        }
    }
    let host_alone = [3 | 4 << 9 | 3 << 61, 0, 0, 0];
    assert_eq!(GuestDte::decode(host_alone), Err(GuestDteError::HostTables));
    let mode = [3 | 7 << 9, 0, 0, 0];
    let illegal = GuestDteError::Illegal(DteError::Mode);
    assert_eq!(GuestDte::decode(mode), Err(illegal));
    // Without V everything passes, and nothing else is read.
    let open = GuestDte::PassThrough {
        domain_id: 0,
        rights: iopt_formats::Rights::ALL,
        has_ats: false,
    };
    assert_eq!(own([0; 4]), open);
    assert_eq!(own([u64::MAX - 1, u64::MAX, u64::MAX, u64::MAX]), open);
    assert_eq!(own(BLOCKS), GuestDte::Blocked);
    assert_eq!(own([3, 77, 0, 0]), GuestDte::Blocked, "neither IR nor IW");
    let GuestDte::Tables {
        domain_id: 77,
        tables,
        has_ats: true,
    } = own(WITH_ATS)
    else {
        panic!("it translates");
    };
    let gcr3 = tables.gcr3();
    assert_eq!(gcr3.root().get(), 0x1234_5000);
    assert_eq!((gcr3.levels(), gcr3.paging_levels()), (2, 4));
    assert!(tables.serves_requests_without_pasid());
}

#[test]
fn what_the_hardware_lacks_is_refused() {
    let world = World::new(Features {
        guest_levels: 4,
        gcr3_levels: 2,
        ..FEATURES
    });
    let guest = guest_of(&world, &host());
    let refused = |words| guest.nest(&own(words)).map(|_| ());
    assert_eq!(refused(TABLES), Ok(()));
    let three = [WORD_0 & !(3 << 56) | 2 << 56, WORD_1, 0, 0];
    let (levels, limit) = (3, 2);
    assert_eq!(
        refused(three),
        Err(GuestDteError::Gcr3Levels { levels, limit })
    );
    let (levels, limit) = (5, 4);
    assert_eq!(
        refused([WORD_0, WORD_1, 1 << 54, 0]),
        Err(GuestDteError::PagingLevels { levels, limit })
    );
}

#[test]
fn only_version_1_tables_of_the_host_that_fit_are_a_parent() {
    let world = World::new(FEATURES);
    let refused = |world: &World, parent: &Arc<Domain>| Guest::new(&world.iommu, parent).err();
    for parent in [Domain::identity(), Domain::blocked()] {
        let parent = Arc::new(parent);
        assert_eq!(refused(&world, &parent), Some(NestError::NoSecondStage));
    }
    assert_eq!(refused(&world, &guest()), Some(NestError::NoSecondStage));
    // Not even what is nested itself.
    let guest = guest_of(&world, &host());
    for words in [TABLES, PASSES, BLOCKS] {
        let nested = nest(&guest, words);
        assert_eq!(nested.kind(), DomainKind::Nested);
        assert_eq!(refused(&world, &nested), Some(NestError::NoSecondStage));
    }
    for lacking in [
        Features {
            has_guest_addresses: false,
            ..FEATURES
        },
        Features {
            has_guest_default: false,
            ..FEATURES
        },
        Features {
            guest_levels: 0,
            ..FEATURES
        },
        Features {
            host_levels: 0,
            ..FEATURES
        },
    ] {
        let world = World::new(lacking);
        assert_eq!(refused(&world, &host()), Some(NestError::Unsupported));
    }
    let narrow = World::new(Features {
        oa_bits: 40,
        ..FEATURES
    });
    assert_eq!(refused(&narrow, &host()), Some(NestError::Foreign));
}

#[test]
fn the_second_register_says_whether_guest_tables_have_guest_addresses() {
    let features = Features::from_registers(1 << 27, 0, u64::MAX);
    assert!(!features.has_guest_addresses);
    assert!(features.with_second_register(1 << 3).has_guest_addresses);
    let others = features.with_second_register(!(1 << 3));
    assert!(!others.has_guest_addresses && !others.can_nest());
}

/// The guest's fields, the parent's Mode and root, and the host's name for the guest's domain ID.
#[test]
fn an_entry_joins_what_both_say() {
    let world = World::new(FEATURES);
    // So that the ID is none that a guest would name.
    let _taken = world.iommu.domain_ids().allocate().expect("one is free");
    let parent = host();
    let guest = guest_of(&world, &parent);
    for (can_ats, words, stored) in [
        (true, WITH_ATS, ATS_ON),
        (true, TABLES, 0),
        (false, WITH_ATS, 0),
    ] {
        let device = world.device(&[8, 9], can_ats, 5);
        attach(&device, None, &parent).expect("it fits");
        let of_parent = world.dte(8).words();
        attach(&device, None, &nest(&guest, words)).expect("it fits");
        assert_eq!(world.dte(9), world.dte(8));
        let written = world.dte(8).words();
        let id = u64::from(guest.domain_id(77).expect("it is attached"));
        assert_eq!(written[0], WORD_0 | of_parent[0]);
        assert_eq!(written[1], WORD_1 & !0xffff | id | stored);
        assert_eq!(written[2..], [0, 0]);
        assert_ne!(id, of_parent[1] & 0xffff);
        assert_eq!(device.has_ats(), stored != 0);
        let Ok(Translation::Guest(tables)) = world.dte(8).translation() else {
            panic!("it translates");
        };
        assert_eq!(tables.gcr3().root().get(), 0x1234_5000);
        assert!(tables.host().is_some());
        // The guest's tables are left out, or it allows but reads; or all is blocked.
        attach(&device, None, &nest(&guest, PASSES)).expect("it fits");
        assert_eq!(world.dte(8).words(), [of_parent[0], id, 0, 0]);
        assert!(!device.has_ats());
        let reads = [3 | 1 << 61, 77, 0, 0];
        attach(&device, None, &nest(&guest, reads)).expect("it fits");
        assert_eq!(world.dte(8).words()[0], of_parent[0] & !(1 << 62));
        let reads = [WORD_0 & !(1 << 62), WORD_1, 0, 0];
        attach(&device, None, &nest(&guest, reads)).expect("it fits");
        assert_eq!(
            world.dte(8).words()[0],
            (WORD_0 | of_parent[0]) & !(1 << 62)
        );
        attach(&device, None, &nest(&guest, BLOCKS)).expect("it fits");
        assert_eq!(world.dte(8), Dte::blocked());
        assert_eq!(guest.domain_id(77), None);
        device.block(None);
    }
    assert_eq!(world.iommu.domain_ids().used_count(), 1);
}

#[test]
fn each_domain_id_of_a_guest_is_one_of_the_host() {
    let world = World::new(FEATURES);
    let parent = host();
    let (guest, other) = (guest_of(&world, &parent), guest_of(&world, &parent));
    let devices = [8, 9, 10, 11].map(|id| world.device(&[id], false, 0));
    attach(&devices[0], None, &nest(&guest, TABLES)).expect("it fits");
    attach(&devices[1], None, &nest(&guest, TABLES)).expect("it fits");
    attach(&devices[2], None, &nest(&guest, of_domain(TABLES, 78))).expect("it fits");
    attach(&devices[3], None, &nest(&other, TABLES)).expect("it fits");
    let ids = [8, 9, 10, 11].map(|id| world.dte(id).domain_id());
    assert_eq!(ids, [1, 1, 2, 3]);
    assert_eq!(guest.domain_id(77), Some(1));
    assert_eq!(guest.domain_id(78), Some(2));
    assert_eq!((guest.domain_id(79), other.domain_id(78)), (None, None));
    // As long as one is attached, the name stays.
    devices[0].block(None);
    attach(&devices[0], None, &nest(&guest, PASSES)).expect("it fits");
    assert_eq!(world.dte(8).domain_id(), 1);
    for device in &devices {
        device.block(None);
    }
    assert_eq!(guest.domain_id(77), None);
    assert_eq!(world.iommu.domain_ids().used_count(), 0);
    assert_eq!(world.iommu.domain_ids().quarantined_count(), 0);
}

/// A3.15, what is told: translations of the host's tables, then what was read by guests' entries, then all that both
/// stages made, under every ID; then the devices. What changed is no address that the guest's tables know.
#[test]
fn what_the_parent_loses_goes_from_all_that_was_made_of_it() {
    let world = World::new(FEATURES);
    let parent = host();
    let guest = guest_of(&world, &parent);
    let devices = [8, 9, 10, 11].map(|id| world.device(&[id], true, 5));
    attach(&devices[0], None, &nest(&guest, WITH_ATS)).expect("it fits");
    attach(&devices[1], None, &nest(&guest, of_domain(TABLES, 78))).expect("it fits");
    attach(&devices[2], None, &nest(&guest, of_domain(PASSES, 78))).expect("it fits");
    attach(&devices[3], None, &parent).expect("it fits");
    let ids = [8, 9, 10, 11].map(|id| world.dte(id).domain_id());
    assert_eq!(ids, [1, 2, 2, 3]);
    world.commands();
    unmap(&parent);
    let at = Span::new(0x5000, 0).expect("a page");
    assert_eq!(
        world.commands(),
        [
            at_page(1),
            at_page(2),
            at_page(3),
            entry(8),
            entry(9),
            whole(1),
            whole(2),
            device_tlb(11, None, at),
            device_tlb(8, None, Span::ALL),
        ]
    );
    // What came is nothing that was cached.
    told(&parent, &page(Kind::Added));
    assert_eq!(world.commands(), []);
    for device in &devices {
        device.block(None);
    }
    world.commands();
    unmap(&parent);
    assert_eq!(world.commands(), []);
    assert_eq!(world.iommu.domain_ids().used_count(), 0);
}

/// Each part is complete before the next begins.
#[test]
fn what_was_read_is_forgotten_before_it_can_be_combined_again() {
    let world = World::new(FEATURES);
    let parent = host();
    let guest = guest_of(&world, &parent);
    let device = world.device(&[8], true, 5);
    attach(&device, None, &nest(&guest, WITH_ATS)).expect("it fits");
    for (answers, told) in [
        (0, &[at_page(1)][..]),
        (1, &[at_page(1), entry(8)]),
        (2, &[at_page(1), entry(8), whole(1)]),
        (
            3,
            &[
                at_page(1),
                entry(8),
                whole(1),
                device_tlb(8, None, Span::ALL),
            ],
        ),
    ] {
        world.commands();
        world.queue().fall_silent_after(answers);
        let _waiting = SYNC.waiting();
        let set = parent.set().expect("it has tables");
        let ticket = set.submit(&page(Kind::Removed));
        assert!(ticket.and_then(|ticket| set.wait(ticket)).is_err());
        assert_eq!(world.commands(), told, "{answers}");
        world.queue().set_silent(false);
    }
    device.block(None);
}

/// What the guest's tables made stays while another device keeps the ID, and is met again when such tables come back.
#[test]
fn what_one_device_left_goes_while_another_keeps_the_id() {
    let world = World::new(FEATURES);
    let parent = host();
    let guest = guest_of(&world, &parent);
    let (one, other) = (world.device(&[8], false, 0), world.device(&[9], false, 0));
    attach(&one, None, &nest(&guest, TABLES)).expect("it fits");
    attach(&other, None, &nest(&guest, PASSES)).expect("it fits");
    world.commands();
    one.block(None);
    assert_eq!(
        world.commands(),
        [entry(8), entry(8)],
        "twice is once too often, and harmless"
    );
    unmap(&parent);
    assert_eq!(world.commands(), [at_page(1), whole(1)]);
    other.block(None);
    assert!(world.commands().contains(&whole(1)));
    assert_eq!(guest.domain_id(77), None);
}

#[test]
fn the_parent_lives_as_long_as_anything_leads_to_it() {
    let world = World::new(FEATURES);
    let device = world.device(&[8], false, 0);
    let is_there = |weak: &Weak<Domain>| weak.upgrade().is_some();
    let parent = {
        let parent = host();
        let guest = guest_of(&world, &parent);
        attach(&device, None, &nest(&guest, TABLES)).expect("it fits");
        Arc::downgrade(&parent)
    };
    assert!(is_there(&parent));
    // Hardware may still use it.
    world.queue().set_silent(true);
    device.block(None);
    assert!(is_there(&parent) && device.is_quarantined());
    world.queue().set_silent(false);
    attach(&device, None, &Arc::new(Domain::identity())).expect("hardware answers");
    // As a registry does after each attachment: domains end without a lock.
    assert_eq!(device.look_after(false), Condition::Sound);
    assert!(!is_there(&parent));
    assert_eq!(world.iommu.domain_ids().quarantined_count(), 0);
}

/// Domain IDs are the IOMMU's, and not one guest's.
#[test]
fn a_guest_has_but_so_many_domains() {
    let world = World::new(FEATURES);
    let guest = guest_of(&world, &host()).with_limit(2);
    let make = |words| guest.nest(&GuestDte::decode(words).expect("a guest may say so"));
    let first = make(TABLES).expect("it has none");
    let passing = make(PASSES).expect("it has one");
    assert_eq!(make(TABLES).map(drop), Err(GuestDteError::TooMany));
    drop(first);
    let last = make(TABLES).expect("one is gone");
    assert!(make(PASSES).is_err());
    drop((passing, last));
}

/// Their page requests would name processes of the guest.
#[test]
fn a_guests_guest_cr3_table_says_which_pasids_there_are() {
    let world = World::new(FEATURES);
    let guest = guest_of(&world, &host());
    for (words, has_pasids) in [(TABLES, true), (PASSES, false)] {
        let nested = nest(&guest, words);
        let stage = nested.stage().expect("something is attached");
        assert_eq!(<AmdVi<Heap, Queue>>::has_guest_pasids(stage), has_pasids);
    }
}

#[test]
fn a_guests_domain_has_no_other_place_than_the_guests_devices() {
    let world = World::new(FEATURES);
    let nesting = guest_of(&world, &host());
    let device = world.device(&[8], false, 5);
    for words in [TABLES, PASSES] {
        let nested = nest(&nesting, words);
        let refused = |place: Option<u32>, domain: &Arc<Domain>| {
            let refused = attach(&device, place.map(pasid), domain);
            matches!(refused, Err(AttachFailure::Unsupported { .. }))
        };
        assert!(refused(Some(3), &nested));
        attach(&device, None, &nested).expect("it fits");
        assert!(refused(Some(3), &guest()));
        device.block(None);
        attach(&device, Some(pasid(3)), &guest()).expect("nothing is in the way");
        assert!(refused(None, &nested));
        device.block(Some(pasid(3)));
        // Another IOMMU would know the guest by other IDs, and never hear its commands.
        let elsewhere = World::new(FEATURES);
        let stranger = elsewhere.device(&[8], false, 5);
        assert!(matches!(
            attach(&stranger, None, &nested),
            Err(AttachFailure::Foreign)
        ));
    }
}

/// A3.3, for a device that its guest gives ATS, or not.
#[test]
fn the_host_counts_a_guests_devices_with_ats_exactly() {
    for old_has in [false, true] {
        for new_has in [false, true] {
            let world = World::new(FEATURES);
            let device = world.device(&[8], true, 0);
            let parent = host();
            let guest = guest_of(&world, &parent);
            let domain = |has_ats| nest(&guest, if has_ats { WITH_ATS } else { TABLES });
            let (old, new) = (domain(old_has), domain(new_has));
            let Tag::Ats { device: tlb, pasid } = ats(8, None) else {
                panic!("it is a device's");
            };
            let tag = Tag::AtsFull { device: tlb, pasid };
            attach(&device, None, &old).expect("it fits");
            assert_eq!(world.users(&parent, tag), usize::from(old_has));
            world.commands();
            attach(&device, None, &new).expect("it fits");
            assert_eq!(world.users(&parent, tag), usize::from(new_has));
            assert_eq!(device.has_ats(), new_has);
            let is_told = world.commands().contains(&device_tlb(8, None, Span::ALL));
            assert_eq!(is_told, old_has && new_has);
            device.block(None);
            assert_eq!(world.users(&parent, tag), 0);
        }
    }
}
