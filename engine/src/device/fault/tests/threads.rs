//! Threads that answer, detach and let time pass at once.

use super::*;

#[test]
fn threads_that_answer_detach_and_wait_leave_no_group_unanswered() {
    let rounds = if cfg!(miri) { 20 } else { 2000 };
    let world = World::new();
    let faults = world.faults();
    let collector = Collector::new();
    thread::scope(|scope| {
        scope.spawn(|| {
            for round in 0..rounds {
                faults.report(&member(pasid(1), round, 1, true));
            }
        });
        scope.spawn(|| {
            for round in 0..rounds {
                for group in collector.take() {
                    // Refused or not: it is closed.
                    let _ = group.respond(PageResponse::Success);
                }
                if round % 7 == 0 {
                    world.pass(3);
                    faults.expire();
                }
            }
        });
        scope.spawn(|| {
            for _ in 0..rounds / 4 {
                attach(&faults, pasid(1), &collector);
                detach(&faults, pasid(1));
            }
        });
    });
    let mut counts: BTreeMap<u16, usize> = BTreeMap::new();
    for answer in world.answers() {
        let Origin::Group(group) = answer.origin else {
            panic!("no stalls")
        };
        *counts.entry(group).or_default() += 1;
    }
    assert_eq!(counts.len(), usize::from(rounds));
    assert!(counts.values().all(|&count| count == 1));
    drop(collector.take());
    assert!(world.answers().is_empty());
}
