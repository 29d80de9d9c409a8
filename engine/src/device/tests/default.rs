//! Default domains: what they are, and who gets one.

use iopt_formats::{Iova, IovaRange, Prot};

use super::*;
use crate::firmware::RegionKind;

#[test]
fn what_a_device_uses_at_any_time_is_mapped_before_it_is_attached() {
    let mut devices = Vec::from([behind(0, 0, &[0]), behind(1, 0, &[0])]);
    for (device, start) in devices.iter_mut().zip([0x1000, 0x8000]) {
        let range = IovaRange::with_len(Iova::new(start), 0x1000).expect("it does not wrap");
        let direct = RegionKind::Direct {
            prot: Prot::RW,
            is_relaxable: false,
        };
        for kind in [RegionKind::Msi, direct, RegionKind::Reserved] {
            device.regions.push(DeviceRegion { range, kind });
        }
    }
    let rig = Rig::new(devices);
    rig.add_all();
    rig.register(0);
    let domain = rig.world.domain_of(node(0), None).expect("it is attached");
    let direct = rig.world.with(|world| world.direct.clone());
    assert_eq!(direct, [(domain, 0x1000), (domain, 0x8000)]);
}

#[test]
fn the_default_domain_is_chosen_by_all_members() {
    use DefaultKind::{Identity, Paging};

    let cases = [
        // What members want, what is configured, whether one is not trusted, what fails: the result.
        ([None, None], None, false, None, DomainKind::Paging, 0),
        (
            [None, Some(Identity)],
            None,
            false,
            None,
            DomainKind::Identity,
            0,
        ),
        (
            [Some(Paging), Some(Identity)],
            None,
            false,
            None,
            DomainKind::Identity,
            1,
        ),
        (
            [Some(Paging), Some(Identity)],
            Some(Paging),
            false,
            None,
            DomainKind::Paging,
            0,
        ),
        (
            [None, None],
            Some(Identity),
            false,
            None,
            DomainKind::Identity,
            0,
        ),
        (
            [None, None],
            Some(Identity),
            true,
            None,
            DomainKind::Paging,
            0,
        ),
        (
            [None, Some(Identity)],
            None,
            true,
            None,
            DomainKind::Blocked,
            1,
        ),
        (
            [None, None],
            Some(Identity),
            false,
            Some(Identity),
            DomainKind::Paging,
            1,
        ),
        (
            [None, None],
            None,
            false,
            Some(Paging),
            DomainKind::Blocked,
            1,
        ),
    ];
    for (wishes, default_kind, is_untrusted, failing, expected, report_count) in cases {
        let mut devices = Vec::from([behind(0, 0, &[0]), behind(1, 0, &[0])]);
        devices[0].is_untrusted = is_untrusted;
        let rig = Rig::with(parts(devices), |config| config.default_kind = default_kind);
        rig.world.with(|world| {
            let wishes = wishes.into_iter().enumerate();
            let wishes = wishes.filter_map(|(number, kind)| Some((node(number), kind?)));
            world.kinds = wishes.collect();
            world.failing_kinds = failing.into_iter().collect();
        });
        rig.add_all();
        rig.register(0);
        assert_eq!(rig.registry.snapshot().groups[0].current, expected);
        let reports = rig.world.with(|world| world.reports.clone());
        assert_eq!(reports.len(), report_count, "{reports:?}");
        let is_blocked = expected == DomainKind::Blocked;
        let bound = rig.bind(1).expect("it is settled");
        match bound {
            Binding::Translated(domain) => assert_eq!(domain.kind(), expected),
            Binding::Untranslated(why) => assert_eq!((is_blocked, why), (true, NoIommu::NoDomain)),
        }
        rig.check();
    }
}

/// Not all members can be attached to the first choice.
#[test]
fn a_group_that_cannot_be_attached_together_is_not_attached_in_part() {
    let rig = Rig::new((0..3).map(|number| behind(number, 0, &[0])).collect());
    rig.world
        .with(|world| world.failing_prepares.insert((node(2), None)));
    rig.add_all();
    rig.register(0);
    rig.check();
    assert_eq!(rig.world.report_count("NoDefaultDomain"), 1);
    rig.world.with(|world| {
        assert_eq!(world.undone, [node(1), node(0)], "in the reverse order");
        assert!(world.attached.is_empty() && world.finalized.is_empty());
        world.failing_prepares.clear();
    });
    // The next that comes is reason to try again, for all.
    assert_eq!(rig.remove(2), Removal::Done);
    rig.add(2);
    rig.check();
    assert_eq!(rig.world.with(|world| world.attached.len()), 3);
    assert_eq!(rig.world.with(|world| world.finalized.len()), 3);
}

/// The default domain comes when the group has been given away.
#[test]
fn a_default_domain_that_comes_late_is_not_attached_over_the_owners() {
    let rig = Rig::new((0..2).map(|number| behind(number, 0, &[0])).collect());
    let failing = BTreeSet::from([DefaultKind::Paging]);
    rig.world.with(|world| world.failing_kinds = failing);
    rig.add(0);
    rig.register(0);
    rig.registry.finish_initialization();
    let owner = Owner::new("owner");
    let ownership = rig
        .registry
        .claim_owner(node(0), &owner)
        .expect("nobody uses it");
    let paging = domain(&rig.world, DomainKind::Paging);
    let attached = rig.registry.attach(node(0), By::Owner(&ownership), &paging);
    attached.expect("it fits");
    rig.world.with(|world| world.failing_kinds.clear());
    rig.add(1);
    let owners = Some(number_of(&paging));
    assert!((0..2).all(|number| rig.world.domain_of(node(number), None) == owners));
    drop(ownership);
    rig.check();
    assert!(rig.world.domain_of(node(0), None) > owners);
}

/// It is noted as a newcomer twice, while an instance of its group is being registered.
#[test]
fn a_device_that_comes_twice_before_it_is_seen_to_is_told_once() {
    let rig = Rig::new(Vec::from([
        behind(0, 0, &[0]),
        behind(1, 0, &[1]),
        behind(2, 0, &[0]),
    ]));
    rig.registry.finish_initialization();
    rig.add(0);
    rig.register(0);
    rig.add(1);
    let gate = Gate::new();
    let inside = Arc::clone(&gate);
    rig.driver.on_probe(move |request| {
        if request.address() == node(1) {
            inside.stop();
        }
    });
    std::thread::scope(|scope| {
        let walk = scope.spawn(|| rig.register(1));
        gate.await_stop();
        rig.add(2);
        assert_eq!(rig.remove(2), Removal::Done);
        rig.add(2);
        assert_eq!(rig.bind(2).err(), Some(BindError::Defer));
        gate.go_on();
        walk.join().expect("it does not panic");
    });
    let mut finalized = rig.world.with(|world| world.finalized.clone());
    finalized.sort_unstable();
    assert_eq!(finalized, [node(0), node(1), node(2)]);
    rig.check();
}
