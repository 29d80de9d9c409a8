//! Guests with an SMMU of their own.

mod commands;

use alloc::sync::Weak;

use iopt_formats::command::smmuv3::{AtcSpan, Target};
use iopt_formats::context::smmuv3::SteRules;
use iopt_formats::context::update::plan;
use iopt_formats::{Iova, IovaRange, PageSize, PageSizes};

use super::*;
use crate::device::context::NestError;
use crate::device::smmuv3::Stalls;
use crate::device::testing_faults::Collector;
use crate::device::testing_smmu::Rig;
use crate::device::{AttachError, Condition, DomainKind};
use crate::invalidation::{Changes, Invalidate as _, Kind};
use crate::sync::SYNC;

type Guest = GuestSmmu<Heap, Recorder>;

/// `V`, `Config` 5, 2^5 CDs at `0x1234_5000`.
const WORD_0: u64 = 1 | 5 << 1 | 0x1234_5000 | 5 << 59;
/// `S1DSS` 2, `S1CIR` 1, `S1COR` 1, `S1CSH` 3.
const WORD_1: u64 = 2 | 1 << 2 | 1 << 4 | 3 << 6;
const EATS: u64 = 1 << 28;
const MEV: u64 = 1 << 19;
const STALLD: u64 = 1 << 27;
/// `S2PTW`, in word 2.
const PTW: u64 = 1 << 54;

fn own(words: [u64; 2]) -> GuestStream {
    GuestStream::decode(words).expect("a guest may say so")
}

fn nest(guest: &Guest, words: [u64; 2]) -> Arc<Domain> {
    Arc::new(guest.nest(&own(words)).expect("hardware has it"))
}

fn guest(world: &World, parent: &Arc<Domain>) -> Guest {
    Guest::for_coherent_devices(&world.smmu, parent).expect("it fits")
}

/// Removes a page at 0x5000 from the parent, as hardware is told of it.
fn unmap(parent: &Domain) {
    let page = IovaRange::with_len(Iova::new(0x5000), 0x1000).expect("it is within");
    let sizes = PageSizes::EMPTY.with(PageSize::KIB_4);
    told(parent, &Changes::leaves(page, sizes, Kind::Removed));
}

fn told(parent: &Domain, changes: &Changes) {
    let _waiting = SYNC.waiting();
    let set = parent.set().expect("it has tables");
    let ticket = set.submit(changes).expect("hardware answers");
    set.wait(ticket).expect("hardware answers");
}

fn s2_ipa(vmid: u16) -> Command {
    Command::TlbiS2Ipa {
        vmid,
        target: Target::single(Iova::new(0x5000), true),
    }
}

const fn cds_of(stream: u32) -> Command {
    Command::CfgiCdAll {
        stream,
        is_secure: false,
    }
}

const fn atc(stream: u32, address: u64, span: AtcSpan) -> Command {
    Command::AtcInv {
        stream,
        substream: None,
        is_global: false,
        address: Iova::new(address),
        span,
    }
}

#[test]
fn a_guests_entry_says_what_is_the_guests_and_nothing_else() {
    let forbidden = |words: [u64; 2]| GuestStream::decode(words);
    // By the specification: V to S1ContextPtr, S1CDMax; S1DSS to S1CSH, S1STALLD, EATS.
    let allowed = [0xf8ff_ffff_ffff_ffff_u64, 0x3800_00ff];
    for word in 0..2 {
        for bit in 0..64 {
            let mut words = [WORD_0, WORD_1];
            words[word] |= 1 << bit;
            let is_refused = forbidden(words)
                == Err(GuestStreamError::Forbidden {
                    word,
                    bits: 1 << bit,
                });
            assert_eq!(is_refused, allowed[word] >> bit & 1 == 0, "{word} {bit}");
        }
    }
    for config in 0..4 {
        assert_eq!(own([1 | config << 1, 0]), GuestStream::Abort);
    }
    // What is not valid is not read.
    assert_eq!(own([u64::MAX - 1, u64::MAX]), GuestStream::Abort);
    assert_eq!(own([1 | 4 << 1, 0]), GuestStream::Bypass);
    for config in [6, 7] {
        let refused = GuestStream::decode([1 | config << 1, 0]);
        assert_eq!(refused, Err(GuestStreamError::SecondStage));
    }
    for eats in [2, 3] {
        let refused = GuestStream::decode([WORD_0, WORD_1 | eats << 28]);
        assert_eq!(refused, Err(GuestStreamError::Ats));
    }
    // S1DSS 3, S1CSH 1 and S1Fmt 3 are reserved; the CDs are not where such a table can be.
    for words in [
        [WORD_0, WORD_1 | 1],
        [WORD_0, 1 << 6],
        [WORD_0 | 3 << 4, WORD_1],
        [WORD_0 | 0x400, WORD_1],
    ] {
        assert!(
            matches!(
                GuestStream::decode(words),
                Err(GuestStreamError::Undecodable(_))
            ),
            "{words:x?}"
        );
    }
    let GuestStream::Stage1 { stage1, has_ats } = own([WORD_0, WORD_1 | EATS | STALLD]) else {
        panic!("it translates");
    };
    assert!(has_ats && stage1.stalls_disabled);
    assert_eq!(stage1.cds.base().get(), 0x1234_5000);
    assert_eq!(stage1.cds.count_lg2(), 5);
    assert_eq!(stage1.default_substream, DefaultSubstream::Substream0);
}

#[test]
fn what_the_hardware_lacks_is_refused() {
    let world = World::new(Features {
        substream_bits: 5,
        has_two_level_cds: false,
        ..FEATURES
    });
    let guest = guest(&world, &stage2());
    let refused = |words| guest.nest(&own(words)).map(|_| ());
    assert_eq!(refused([WORD_0, WORD_1]), Ok(()));
    assert_eq!(
        refused([1 | 5 << 1 | 6 << 59, WORD_1]),
        Err(GuestStreamError::Substreams {
            count_lg2: 6,
            limit_lg2: 5
        })
    );
    assert_eq!(
        refused([WORD_0 | 1 << 4, WORD_1]),
        Err(GuestStreamError::TwoLevels)
    );
    // Without substreams nothing looks at S1Fmt.
    assert_eq!(refused([1 | 5 << 1 | 1 << 4, 0]), Ok(()));
}

#[test]
fn only_a_second_stage_of_the_host_that_fits_is_a_parent() {
    let world = World::new(FEATURES);
    let refused = |smmu, parent: Domain| Guest::new(smmu, &Arc::new(parent)).map(|_| ()).err();
    let smmu = &world.smmu;
    assert_eq!(
        refused(smmu, Domain::identity()),
        Some(NestError::NoSecondStage)
    );
    assert_eq!(
        refused(smmu, Domain::blocked()),
        Some(NestError::NoSecondStage)
    );
    assert_eq!(
        Guest::new(smmu, &stage1()).map(|_| ()).err(),
        Some(NestError::NoSecondStage)
    );
    // Not even what is nested itself.
    let guest = guest(&world, &stage2());
    for words in [[WORD_0, WORD_1], [1 | 4 << 1, 0], [0, 0]] {
        let nested = guest.nest(&own(words)).expect("hardware has it");
        assert_eq!(nested.kind(), DomainKind::Nested);
        assert_eq!(refused(smmu, nested), Some(NestError::NoSecondStage));
    }
    let narrow = World::new(Features {
        oa_bits: 40,
        ..FEATURES
    });
    assert_eq!(
        Guest::for_coherent_devices(&narrow.smmu, &stage2())
            .map(|_| ())
            .err(),
        Some(NestError::Foreign)
    );
    let single = World::new(Features {
        has_stage1: false,
        ..FEATURES
    });
    assert_eq!(
        Guest::for_coherent_devices(&single.smmu, &stage2())
            .map(|_| ())
            .err(),
        Some(NestError::Unsupported)
    );
}

/// Else it could have devices read what the memory held before it was the guest's.
#[test]
fn a_guest_does_not_decide_whether_devices_are_coherent() {
    let world = World::new(FEATURES);
    let format = Stage2::<12>::new(48, 48).expect("legal");
    let forced = format.with_forced_write_back();
    let make = |format| Arc::new(Domain::stage2(format, Arc::new(Heap)).expect("memory"));
    let refusal = |parent| Guest::new(&world.smmu, &parent).map(|_| ()).err();
    assert_eq!(refusal(make(format)), Some(NestError::Incoherent));
    assert_eq!(refusal(make(forced)), None);
    // But whoever knows the devices does.
    assert!(Guest::for_coherent_devices(&world.smmu, &make(format)).is_ok());
}

/// Its PASIDs are no places of the host, and so no handler's.
#[test]
fn a_domain_with_a_guests_cds_resolves_no_faults() {
    let rig = Rig::new();
    let parent = Arc::new(stage2_of_rig());
    let guest = GuestSmmu::for_coherent_devices(&rig.smmus[0], &parent).expect("it fits");
    let nest = |words| {
        let nested = guest.nest(&own(words)).expect("hardware has it");
        Arc::new(nested.with_faults(Collector::new()))
    };
    let refused = rig.attach(2, 0, &nest([WORD_0, WORD_1 | EATS]));
    assert!(matches!(
        refused,
        Err(AttachError::Failed {
            error: AttachFailure::Unsupported {
                what: "page requests with PASIDs of a guest"
            },
            ..
        })
    ));
    assert_eq!(rig.faults(2).count(), 0);
}

/// A device that never was led to the guest is not asked by each sync, whether or not it is there.
#[test]
fn what_was_prepared_in_vain_asks_no_device() {
    let world = World::new(FEATURES);
    let guest = guest(&world, &stage2());
    let [live, other] = [8, 9].map(|stream| world.device(&[stream], true, 0));
    let nested = nest(&guest, [WORD_0, WORD_1 | EATS]);
    attach(&live, None, &nested).expect("it fits");
    let hwpt: Arc<dyn Hwpt> = Arc::clone(&nested) as _;
    let prepared = other.prepare(None, &hwpt).expect("it fits");
    let users = |tag| world.users(&nested, tag);
    assert_eq!(users(Tag::AtsFull { stream: 9 }), 1);
    world.silence(true);
    drop(prepared);
    world.silence(false);
    assert_eq!(users(Tag::Descriptors { stream: 9 }), 1, "it may be cached");
    assert_eq!(users(Tag::AtsFull { stream: 9 }), 0);
    assert_eq!(users(Tag::AtsFull { stream: 8 }), 1);
}

/// The STE has the guest's words, the host's ATS and stage 2, and the guest's VMID.
#[test]
fn an_entry_joins_what_both_say() {
    let world = World::new(FEATURES);
    let parent = stage2();
    let guest = guest(&world, &parent);
    for (can_ats, eats, stored) in [(true, EATS, EATS), (true, 0, 0), (false, EATS, 0)] {
        let device = world.device(&[8, 9], can_ats, 5);
        attach(&device, None, &parent).expect("it fits");
        let of_parent = *world.ste(8).words();
        attach(&device, None, &nest(&guest, [WORD_0, WORD_1 | eats])).expect("it fits");
        let words = *world.ste(8).words();
        assert_eq!(world.ste(9), world.ste(8));
        let vmid = u64::from(guest.vmid().expect("it is attached"));
        assert_eq!(words[0], WORD_0 | 2 << 1, "both stages");
        let host = of_parent[1] & !EATS;
        assert_eq!(words[1], WORD_1 | stored | MEV | STALLD | host);
        assert_eq!(words[2] & !0xffff, of_parent[2] & !0xffff | PTW);
        assert_eq!(words[2] & 0xffff, vmid);
        assert_ne!(words[2] & 0xffff, of_parent[2] & 0xffff);
        assert_eq!(words[3..], of_parent[3..]);
        assert_eq!(device.has_ats(), stored != 0);
        // Stage 1 is bypassed, and ATS is refused; or all is.
        attach(&device, None, &nest(&guest, [1 | 4 << 1, 0])).expect("it fits");
        let words = *world.ste(8).words();
        assert_eq!(words[0], 1 | 6 << 1);
        assert_eq!(words[1], host | MEV);
        assert_eq!(words[2] & !0xffff, of_parent[2] & !0xffff | PTW);
        assert_eq!(words[2] & 0xffff, vmid);
        assert!(!device.has_ats());
        attach(&device, None, &nest(&guest, [0, 0])).expect("it fits");
        assert_eq!(world.ste(8).config(), StreamConfig::Abort);
        device.block(None);
    }
    assert_eq!(world.smmu.vmids().used_count(), 0);
}

/// Nobody but the host knows which devices may wait, and who would end that.
#[test]
fn a_guest_cannot_make_devices_wait_that_must_not() {
    let world = World::new(Features {
        stalls: Stalls::Allowed,
        ..FEATURES
    });
    let guest = guest(&world, &stage2());
    let device = world.device(&[8], false, 0);
    attach(&device, None, &nest(&guest, [WORD_0, WORD_1])).expect("it fits");
    assert!(world.ste(8).stage1_stalls_disabled());
}

/// Rows 20 and 21 of the transitions that drivers make, and those to and from what is not a guest's.
#[test]
fn a_guests_stream_changes_without_a_moment_in_between() {
    let world = World::new(FEATURES);
    let parent = stage2();
    let guest = guest(&world, &parent);
    let device = world.device(&[8], true, 5);
    let with_bypass = (WORD_1 & !3) | 1;
    let bypass = nest(&guest, [1 | 4 << 1, 0]);
    let nested = nest(&guest, [WORD_0, with_bypass | EATS]);
    let other = nest(&guest, [WORD_0, WORD_1 | EATS]);
    let identity = Arc::new(Domain::identity());
    let abort = nest(&guest, [0, 0]);
    let mut before = world.ste(8);
    for (domain, syncs, is_hitless) in [
        (&bypass, 2, true),
        (&nested, 2, true),
        (&bypass, 3, true),
        (&nested, 2, true),
        // S1DSS alone.
        (&other, 1, true),
        (&nested, 1, true),
        // The VMID, too.
        (&parent, 3, false),
        (&nested, 3, false),
        (&abort, 2, true),
        (&other, 2, true),
        (&identity, 2, true),
        (&nested, 2, true),
    ] {
        world.commands();
        attach(&device, None, domain).expect("it fits");
        let after = world.ste(8);
        let update = plan(&SteRules, before.words(), after.words());
        assert_eq!(update.is_hitless(), is_hitless, "{before:x?} {after:x?}");
        let is_ste = |command: &&Command| matches!(command, Command::CfgiSte { .. });
        let told = world.commands().iter().filter(is_ste).count();
        assert_eq!(told, syncs, "{before:x?} {after:x?}");
        before = after;
    }
}

/// A3.15, what is told: what changed in stage 2 is not an address that device or stage 1 know.
#[test]
fn what_the_parent_loses_goes_from_all_that_was_made_of_it() {
    let world = World::new(FEATURES);
    let parent = stage2();
    let (guest, other) = (guest(&world, &parent), guest(&world, &parent));
    let devices = [8, 9, 10, 11].map(|stream| world.device(&[stream], true, 5));
    let nested = nest(&guest, [WORD_0, WORD_1 | EATS]);
    let silent = nest(&other, [WORD_0, WORD_1]);
    attach(&devices[0], None, &nested).expect("it fits");
    attach(&devices[1], None, &nested).expect("it fits");
    attach(&devices[2], None, &silent).expect("it fits");
    attach(&devices[3], None, &parent).expect("it fits");
    let vmids = [
        guest.vmid().expect("it is attached"),
        other.vmid().expect("it is attached"),
        id(&world, &parent) as u16,
    ];
    assert_eq!(vmids, [1, 2, 3]);
    world.commands();
    unmap(&parent);
    let page = AtcSpan::new(0).expect("one page");
    assert_eq!(
        world.commands(),
        [
            s2_ipa(1),
            s2_ipa(2),
            s2_ipa(3),
            cds_of(8),
            cds_of(9),
            cds_of(10),
            Command::TlbiNhAll { vmid: 1 },
            Command::TlbiNhAll { vmid: 2 },
            atc(11, 0x5000, page),
            atc(8, 0, AtcSpan::ALL),
            atc(9, 0, AtcSpan::ALL),
        ]
    );
    // All of it at once: each VM whole, and it ends.
    told(&parent, &Changes::everything());
    let all = |vmid| Command::TlbiS12Vmall { vmid };
    assert_eq!(
        world.commands(),
        [
            all(1),
            all(2),
            all(3),
            cds_of(8),
            cds_of(9),
            cds_of(10),
            // Old CDs could make combined entries again until then.
            Command::TlbiNhAll { vmid: 1 },
            Command::TlbiNhAll { vmid: 2 },
            atc(11, 0, AtcSpan::ALL),
            atc(8, 0, AtcSpan::ALL),
            atc(9, 0, AtcSpan::ALL),
        ]
    );
    for device in &devices {
        device.block(None);
    }
    world.commands();
    unmap(&parent);
    assert_eq!(world.commands(), []);
    assert_eq!(world.smmu.vmids().used_count(), 0);
    assert_eq!(world.smmu.vmids().quarantined_count(), 0);
}

/// What stage 1 made stays while another device keeps the VMID, and is met again when stage 1 comes back.
#[test]
fn what_one_device_left_goes_while_another_keeps_the_vmid() {
    let world = World::new(FEATURES);
    let parent = stage2();
    let guest = guest(&world, &parent);
    let (one, other) = (world.device(&[8], false, 0), world.device(&[9], false, 0));
    attach(&one, None, &nest(&guest, [WORD_0, WORD_1])).expect("it fits");
    attach(&other, None, &nest(&guest, [1 | 4 << 1, 0])).expect("it fits");
    one.block(None);
    world.commands();
    unmap(&parent);
    let vmid = guest.vmid().expect("one is attached");
    assert_eq!(
        world.commands(),
        [s2_ipa(vmid), Command::TlbiNhAll { vmid }]
    );
    other.block(None);
    let all = Command::TlbiS12Vmall { vmid };
    assert!(world.commands().contains(&all));
    assert_eq!(guest.vmid(), None);
}

#[test]
fn the_parent_lives_as_long_as_anything_leads_to_it() {
    let world = World::new(FEATURES);
    let device = world.device(&[8], false, 0);
    let (parent, is_there): (_, fn(&Weak<Domain>) -> bool) = {
        let parent = stage2();
        let guest = guest(&world, &parent);
        attach(&device, None, &nest(&guest, [WORD_0, WORD_1])).expect("it fits");
        (Arc::downgrade(&parent), |weak| weak.upgrade().is_some())
    };
    assert!(is_there(&parent));
    // Hardware may still use it.
    world.silence(true);
    device.block(None);
    assert!(is_there(&parent) && device.is_quarantined());
    world.silence(false);
    attach(&device, None, &Arc::new(Domain::identity())).expect("hardware answers");
    // As a registry does after each attachment: domains end without a lock.
    assert_eq!(device.look_after(false), Condition::Sound);
    assert!(!is_there(&parent));
    assert_eq!(world.smmu.vmids().quarantined_count(), 0);
}

#[test]
fn a_guests_domain_has_no_other_place_than_the_guests_devices() {
    let world = World::new(FEATURES);
    let guest = guest(&world, &stage2());
    let device = world.device(&[8], false, 5);
    for words in [[WORD_0, WORD_1], [1 | 4 << 1, 0]] {
        let nested = nest(&guest, words);
        let refused = |place: Option<u32>, domain: &Arc<Domain>| {
            let refused = attach(&device, place.map(pasid), domain);
            matches!(refused, Err(AttachFailure::Unsupported { .. }))
        };
        assert!(refused(Some(3), &nested));
        attach(&device, None, &nested).expect("it fits");
        assert!(refused(Some(3), &stage1()));
        device.block(None);
        attach(&device, Some(pasid(3)), &stage1()).expect("nothing is in the way");
        assert!(refused(None, &nested));
        device.block(Some(pasid(3)));
        // Another SMMU would know the guest by another VMID, and never hear its commands.
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
            let parent = stage2();
            let guest = guest(&world, &parent);
            let domain = |has_ats| nest(&guest, [WORD_0, WORD_1 | if has_ats { EATS } else { 0 }]);
            let (old, new) = (domain(old_has), domain(new_has));
            let count = || world.users(&parent, Tag::AtsFull { stream: 8 });
            attach(&device, None, &old).expect("it fits");
            assert_eq!(count(), usize::from(old_has));
            world.commands();
            attach(&device, None, &new).expect("it fits");
            assert_eq!(count(), usize::from(new_has));
            assert_eq!(device.has_ats(), new_has);
            let told = world.commands();
            let is_told = told.contains(&atc(8, 0, AtcSpan::ALL));
            assert_eq!(is_told, old_has && new_has);
            device.block(None);
            assert_eq!(count(), 0);
        }
    }
}

fn stage2_of_rig() -> crate::device::testing_smmu::Domain {
    let format = Stage2::<12>::new(48, 48).expect("legal");
    crate::device::testing_smmu::Domain::stage2(format, Arc::new(Heap)).expect("memory")
}
