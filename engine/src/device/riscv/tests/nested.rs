//! Guests with an IOMMU of their own.

mod commands;

use alloc::sync::Weak;

use iopt_formats::command::Span;
use iopt_formats::command::riscv::Target;
use iopt_formats::context::riscv::{Misconfigured, UpdateRules};
use iopt_formats::context::update::plan;
use iopt_formats::{Iova, IovaRange, PageSize, PageSizes};

use super::*;
use crate::device::context::{Architecture as _, NestError};
use crate::device::{Condition, DomainKind};
use crate::invalidation::{Changes, Invalidate as _, Kind};
use crate::sync::SYNC;

type Guest = GuestIommu<Heap, Queue>;

const V: u64 = 1;
const EN_ATS: u64 = 1 << 1;
const PDTV: u64 = 1 << 5;
const SADE: u64 = 1 << 8;
const DPE: u64 = 1 << 9;
/// `iosatp`: Sv48 tables at `0x1234_5000`.
const IOSATP: u64 = 9 << 60 | 0x1_2345;
/// `pdtp`: PD17 at `0x1234_5000`.
const PDTP: u64 = 2 << 60 | 0x1_2345;
const PSCID: u64 = 77 << 12;
const TABLES: [u64; 8] = [V, 0, PSCID, IOSATP, 0, 0, 0, 0];
const WITH_ATS: [u64; 8] = [V | EN_ATS, 0, PSCID, IOSATP, 0, 0, 0, 0];
const DIRECTORY: [u64; 8] = [V | PDTV | DPE, 0, 0, PDTP, 0, 0, 0, 0];
const PASSES: [u64; 8] = [V, 0, 0, 0, 0, 0, 0, 0];
const BLOCKS: [u64; 8] = [0; 8];

fn own(words: [u64; 8]) -> GuestContext {
    GuestContext::decode(words, &FEATURES).expect("a guest may say so")
}

fn nest(guest: &Guest, words: [u64; 8]) -> Arc<Domain> {
    Arc::new(guest.nest(&own(words)).expect("hardware has it"))
}

fn guest(world: &World, parent: &Arc<Domain>) -> Guest {
    Guest::new(&world.unit, parent).expect("it fits")
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

fn span(address: u64) -> Span {
    Span::new(address, 0).expect("a page")
}

fn gvma(gscid: u16) -> Command {
    let target = Some(Target {
        span: span(0x5000),
        is_leaf: true,
    });
    Command::IotinvalGvma {
        gscid: Some(gscid),
        target,
    }
}

const fn vma(gscid: u16) -> Command {
    Command::IotinvalVma {
        gscid: Some(gscid),
        pscid: None,
        target: None,
    }
}

const fn tlb(id: u16, pasid: Option<Pasid>, span: Span) -> Command {
    Command::AtsInval {
        function: function(id),
        pasid,
        is_global: false,
        span,
    }
}

#[test]
fn a_guests_context_says_what_is_the_guests_and_nothing_else() {
    let decode = |words| GuestContext::decode(words, &EXTENDED);
    let is_forbidden = |words| matches!(decode(words), Err(GuestContextError::Forbidden { .. }));
    // SADE, DTF, PSCID, and EN_ATS, with a root anywhere; GADE, which says nothing.
    for tc in [EN_ATS, 1 << 4, 1 << 7, SADE] {
        let words = [V | tc, 0, 0xffff_f000, IOSATP, 0, 0, 0, 0];
        assert!(decode(words).is_ok(), "{tc:#x}");
    }
    // EN_PRI, and the vendor's bits.
    assert!(is_forbidden([
        V | EN_ATS | 1 << 2,
        0,
        0,
        IOSATP,
        0,
        0,
        0,
        0
    ]));
    for bit in 24..32 {
        assert!(is_forbidden([V | 1 << bit, 0, 0, IOSATP, 0, 0, 0, 0]));
    }
    let with_qos = Features::new(CAPABILITIES | 1 << 41, 0, 2);
    for ta in [1 << 40, 1 << 52] {
        let refused = GuestContext::decode([V, 0, ta, IOSATP, 0, 0, 0, 0], &with_qos);
        assert!(matches!(refused, Err(GuestContextError::Forbidden { .. })));
    }
    for mode in [8, 9] {
        let second = [V, mode << 60 | 0x1000, 0, IOSATP, 0, 0, 0, 0];
        assert_eq!(decode(second), Err(GuestContextError::SecondStage));
    }
    // T2GPA is for those that have a second stage.
    let with_t2gpa = Features::new(CAPABILITIES | 1 << 26, 0, 2);
    assert_eq!(
        GuestContext::decode([V | EN_ATS | 1 << 3, 0, 0, IOSATP, 0, 0, 0, 0], &with_t2gpa),
        Err(Misconfigured::T2gpaWithoutSecondStage.into())
    );
    for features in [FEATURES, EXTENDED] {
        let msi = [V, 0, 0, IOSATP, 1 << 60 | 0x1000, 0, 0, 0];
        let refused = GuestContext::decode(msi, &features);
        assert_eq!(refused, Err(GuestContextError::MsiTable));
    }
    // Sv57 and, without AMO_HWAD, SADE are not there.
    let lacking = [V, 0, 0, 10 << 60 | 0x1000, 0, 0, 0, 0];
    let mode = 10;
    let refused = Err(Misconfigured::FirstStageMode { mode }.into());
    assert_eq!(decode(lacking), refused);
    let lacking = [V | SADE, 0, 0, IOSATP, 0, 0, 0, 0];
    assert_eq!(
        GuestContext::decode(lacking, &FEATURES),
        Err(Misconfigured::UpdatesUnsupported.into())
    );
    // What is not valid is not read.
    assert_eq!(decode([u64::MAX - 1; 8]), Ok(GuestContext::Blocked));
}

#[test]
fn a_context_that_was_decoded_for_other_hardware_is_refused() {
    let world = World::new(FEATURES);
    let guest = guest(&world, &second());
    let words = [V | SADE, 0, 0, IOSATP, 0, 0, 0, 0];
    let context = GuestContext::decode(words, &EXTENDED).expect("it has AMO_HWAD");
    assert_eq!(
        guest.nest(&context).map(|_| ()),
        Err(Misconfigured::UpdatesUnsupported.into())
    );
}

#[test]
fn only_a_second_stage_of_the_host_that_fits_is_a_parent() {
    let world = World::new(FEATURES);
    let refused = |world: &World, parent: &Arc<Domain>| Guest::new(&world.unit, parent).err();
    for parent in [Domain::identity(), Domain::blocked()] {
        let parent = Arc::new(parent);
        assert_eq!(refused(&world, &parent), Some(NestError::NoSecondStage));
    }
    assert_eq!(refused(&world, &first()), Some(NestError::NoSecondStage));
    // Not even what is nested itself.
    let guest = guest(&world, &second());
    for words in [TABLES, DIRECTORY, PASSES, BLOCKS] {
        let nested = nest(&guest, words);
        assert_eq!(nested.kind(), DomainKind::Nested);
        assert_eq!(refused(&world, &nested), Some(NestError::NoSecondStage));
    }
    let other = World::new(Features::new(CAPABILITIES & !SV39X4, 0, 2));
    assert_eq!(refused(&other, &second()), Some(NestError::Foreign));
}

/// The context has the guest's first stage, PSCID and switches, the host's ATS and second stage, and the guest's GSCID.
#[test]
fn a_context_joins_what_both_say() {
    for features in [FEATURES, EXTENDED] {
        let world = World::new(features);
        let parent = second();
        let guest = guest(&world, &parent);
        for (can_ats, words, stored) in [
            (true, WITH_ATS, EN_ATS),
            (true, TABLES, 0),
            (false, WITH_ATS, 0),
            (true, DIRECTORY, 0),
        ] {
            let device = world.device(&[8, 9], can_ats, 5);
            attach(&device, None, &parent).expect("it fits");
            let of_parent = world.words(8);
            attach(&device, None, &nest(&guest, words)).expect("it fits");
            let written = world.words(8);
            assert_eq!(world.words(9), written);
            let gscid = u64::from(guest.gscid().expect("it is attached"));
            assert_eq!(written[0], words[0] & !EN_ATS | stored);
            assert_eq!(written[1] & !(0xffff << 44), of_parent[1] & !(0xffff << 44));
            assert_eq!(written[1] >> 44 & 0xffff, gscid);
            assert_ne!(written[1], of_parent[1]);
            assert_eq!(written[2..], words[2..]);
            assert_eq!(device.has_ats(), stored != 0);
            // Hardware refuses none of it.
            assert!(world.context(8).is_some());
            // The guest's first stage is left out; or all is.
            attach(&device, None, &nest(&guest, PASSES)).expect("it fits");
            assert_eq!(world.words(8), [V, written[1], 0, 0, 0, 0, 0, 0]);
            assert!(!device.has_ats());
            attach(&device, None, &nest(&guest, BLOCKS)).expect("it fits");
            assert_eq!(world.context(8), None);
            assert_eq!(guest.gscid(), None);
            device.block(None);
        }
        world.assert_unused();
    }
}

/// A guest that changes its tables, or switches them off and on, changes one word of its context.
#[test]
fn a_guests_root_changes_without_a_moment_in_between() {
    let world = World::new(FEATURES);
    let guest = guest(&world, &second());
    let device = world.device(&[8], false, 5);
    attach(&device, None, &nest(&guest, TABLES)).expect("it fits");
    let elsewhere = [V, 0, PSCID, IOSATP + 1, 0, 0, 0, 0];
    let off = [V, 0, PSCID, 0, 0, 0, 0, 0];
    let mut before = world.words(8);
    for words in [elsewhere, off, TABLES] {
        world.commands();
        attach(&device, None, &nest(&guest, words)).expect("it fits");
        let after = world.words(8);
        assert_eq!(after[3], words[3]);
        assert!(plan(&UpdateRules, &before, &after).is_hitless());
        // What the old one left is under the GSCID.
        let all = Command::IotinvalGvma {
            gscid: Some(1),
            target: None,
        };
        assert_eq!(world.commands()[..3], [forget(8), vma(1), all]);
        before = after;
    }
    device.block(None);
}

/// A3.15, what is told: the second stage, then what was read by guests' contexts, then all that both stages made, under
/// every GSCID; then the devices. What changed is no address that the guest's tables know.
#[test]
fn what_the_parent_loses_goes_from_all_that_was_made_of_it() {
    let world = World::new(FEATURES);
    let parent = second();
    let (guest, other) = (guest(&world, &parent), guest(&world, &parent));
    let devices = [8, 9, 10, 11, 12].map(|id| world.device(&[id], true, 5));
    attach(&devices[0], None, &nest(&guest, WITH_ATS)).expect("it fits");
    attach(&devices[1], None, &nest(&guest, DIRECTORY)).expect("it fits");
    attach(&devices[2], None, &nest(&other, TABLES)).expect("it fits");
    attach(&devices[3], None, &parent).expect("it fits");
    attach(&devices[4], None, &nest(&guest, PASSES)).expect("it fits");
    assert_eq!((guest.gscid(), other.gscid()), (Some(1), Some(2)));
    assert_eq!(world.id(&parent), 3);
    world.commands();
    unmap(&parent);
    assert_eq!(
        world.commands(),
        [
            gvma(1),
            gvma(2),
            gvma(3),
            forget(8),
            forget(9),
            forget(10),
            vma(1),
            vma(2),
            tlb(11, None, span(0x5000)),
            tlb(8, None, Span::ALL),
        ]
    );
    told(&parent, &page(Kind::Added));
    assert_eq!(world.commands(), []);
    for device in &devices {
        device.block(None);
    }
    world.commands();
    unmap(&parent);
    assert_eq!(world.commands(), []);
    world.assert_unused();
}

/// Each part is complete before the next begins.
#[test]
fn what_was_read_is_forgotten_before_it_can_be_combined_again() {
    let world = World::new(FEATURES);
    let parent = second();
    let guest = guest(&world, &parent);
    let device = world.device(&[8], true, 5);
    attach(&device, None, &nest(&guest, WITH_ATS)).expect("it fits");
    let all = [gvma(1), forget(8), vma(1), tlb(8, None, Span::ALL)];
    for (answers, told) in [(0, 1), (1, 2), (2, 3), (3, 4)] {
        world.commands();
        let queue = world.unit.instance().queue().device();
        queue.fall_silent_after(answers);
        let _waiting = SYNC.waiting();
        let set = parent.set().expect("it has tables");
        let ticket = set.submit(&page(Kind::Removed));
        assert!(ticket.and_then(|ticket| set.wait(ticket)).is_err());
        assert_eq!(world.commands(), all[..told], "{answers}");
        world.silence(false);
    }
    device.block(None);
}

/// What the first stage made stays while another device keeps the GSCID, and is met again when a first stage is back.
#[test]
fn what_one_device_left_goes_while_another_keeps_the_gscid() {
    let world = World::new(FEATURES);
    let parent = second();
    let guest = guest(&world, &parent);
    let (one, other) = (world.device(&[8], false, 0), world.device(&[9], false, 0));
    attach(&one, None, &nest(&guest, TABLES)).expect("it fits");
    attach(&other, None, &nest(&guest, PASSES)).expect("it fits");
    one.block(None);
    world.commands();
    unmap(&parent);
    assert_eq!(world.commands(), [gvma(1), vma(1)]);
    other.block(None);
    assert!(world.commands().contains(&vma(1)));
    assert_eq!(guest.gscid(), None);
}

#[test]
fn the_parent_lives_as_long_as_anything_leads_to_it() {
    let world = World::new(FEATURES);
    let device = world.device(&[8], false, 0);
    let is_there = |weak: &Weak<Domain>| weak.upgrade().is_some();
    let parent = {
        let parent = second();
        let guest = guest(&world, &parent);
        attach(&device, None, &nest(&guest, TABLES)).expect("it fits");
        Arc::downgrade(&parent)
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
    world.assert_unused();
}

/// Their page requests would name processes of the guest.
#[test]
fn a_guests_process_directory_says_which_pasids_there_are() {
    let world = World::new(FEATURES);
    let guest = guest(&world, &second());
    for (words, has_pasids) in [(DIRECTORY, true), (TABLES, false)] {
        let nested = nest(&guest, words);
        let stage = nested.stage().expect("something is attached");
        assert_eq!(<Riscv<Heap, Queue>>::has_guest_pasids(stage), has_pasids);
    }
}

#[test]
fn a_guests_domain_has_no_other_place_than_the_guests_devices() {
    let world = World::new(FEATURES);
    let guest = guest(&world, &second());
    let device = world.device(&[8], false, 5);
    for words in [TABLES, DIRECTORY, PASSES] {
        let nested = nest(&guest, words);
        let refused = |place: Option<u32>, domain: &Arc<Domain>| {
            let refused = attach(&device, place.map(pasid), domain);
            matches!(refused, Err(AttachFailure::Unsupported { .. }))
        };
        assert!(refused(Some(3), &nested));
        attach(&device, None, &nested).expect("it fits");
        assert!(refused(Some(3), &first()));
        device.block(None);
        attach(&device, Some(pasid(3)), &first()).expect("nothing is in the way");
        assert!(refused(None, &nested));
        device.block(Some(pasid(3)));
        // Another IOMMU would know the guest by another GSCID, and never hear its commands.
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
            let parent = second();
            let guest = guest(&world, &parent);
            let domain = |has_ats| nest(&guest, if has_ats { WITH_ATS } else { TABLES });
            let (old, new) = (domain(old_has), domain(new_has));
            let tag = Tag::AtsFull {
                function: function(8),
                pasid: None,
            };
            attach(&device, None, &old).expect("it fits");
            assert_eq!(world.users(&parent, tag), usize::from(old_has));
            world.commands();
            attach(&device, None, &new).expect("it fits");
            assert_eq!(world.users(&parent, tag), usize::from(new_has));
            assert_eq!(device.has_ats(), new_has);
            let is_told = world.commands().contains(&tlb(8, None, Span::ALL));
            assert_eq!(is_told, old_has && new_has);
            device.block(None);
            assert_eq!(world.users(&parent, tag), 0);
        }
    }
}
