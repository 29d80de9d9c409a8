//! A0.4: each step that takes a device in fails once, beside a thread that reads all the time.

use super::*;
use crate::firmware::RegionKind;
use crate::sync::atomic::AtomicBool;
use iopt_formats::{Iova, IovaRange, Prot};

type Fail = fn(&mut Inner);

const STEPS: [(Fail, &str); 5] = [
    (
        |world| {
            world.failing_probes.insert(node(0));
        },
        "ProbeFailed",
    ),
    (
        |world| {
            world.fatal_probes.insert(node(0));
        },
        "ProbeFailed",
    ),
    (
        |world| {
            world.failing_kinds.insert(DefaultKind::Paging);
        },
        "NoDefaultDomain",
    ),
    (|world| world.fails_direct = true, "NoDefaultDomain"),
    (
        |world| {
            world.failing_prepares.insert((node(0), None));
        },
        "NoDefaultDomain",
    ),
];

/// Reads everything there is of a device, which has no endpoint whose driver did not take it in.
fn read(rig: &Rig) {
    let machine = rig.registry.machine();
    let known = machine.device(node(0)).expect("it is there");
    assert_eq!(known.streams[0].ids, [0]);
    let snapshot = rig.registry.snapshot();
    for group in &snapshot.groups {
        assert!(group.members.len() <= 2);
    }
    drop(rig.registry.endpoint(node(0)));
    drop(rig.registry.attached(node(0), None));
}

#[test]
fn whichever_step_fails_nothing_is_left_half_done_and_the_next_try_works() {
    for (fail, report) in STEPS {
        let mut devices = Vec::from([behind(0, 0, &[0]), behind(1, 1, &[0])]);
        devices[0].regions.push(DeviceRegion {
            range: IovaRange::with_len(Iova::new(0x1000), 0x1000).expect("it does not wrap"),
            kind: RegionKind::Direct {
                prot: Prot::RW,
                is_relaxable: false,
            },
        });
        let rig = Rig::new(devices);
        rig.register(0);
        rig.world.with(fail);
        let is_over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !is_over.load(Ordering::Acquire) {
                    read(&rig);
                }
            });
            for _ in 0..3 {
                rig.add(0);
                assert_eq!(rig.world.domain_of(node(0), None), None, "it is blocked");
                let bound = rig.bind(0);
                assert!(matches!(bound, Ok(Binding::Untranslated(_))), "{bound:?}");
                assert_eq!(rig.remove(0), Removal::Done);
                rig.check();
            }
            assert_eq!(rig.world.report_count(report), 3);
            rig.world.with(|world| {
                assert!(world.live.is_empty() && world.attached.is_empty());
                world.failing_probes.clear();
                world.fatal_probes.clear();
                world.failing_kinds.clear();
                world.fails_direct = false;
                world.failing_prepares.clear();
            });
            rig.add_all();
            for number in [0, 1] {
                assert!(matches!(rig.bind(number), Ok(Binding::Translated(_))));
            }
            is_over.store(true, Ordering::Release);
        });
        rig.check();
    }
}
