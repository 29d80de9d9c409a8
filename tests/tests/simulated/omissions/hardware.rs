//! Hardware that fails, and drivers that take it for success.

use std::time::Duration;

use iopt::invalidation::plan::{Phase, Planner as _};
use iopt::invalidation::queue::{Ticket, WithSync};
use iopt::invalidation::{Changes, Encode as _, Invalidate, SyncError};
use iopt::radix::TablePolicy;
use iopt::sync::SYNC;
use iopt_rig::{Behaviour, Machine, MachineConfig, RigError};
use iopt_sim::{Injection, Law};

use super::{law, slow};
use crate::machines::{Bench, CACHING, MEMORY, PLAIN, pages};

/// Hardware whose errors nobody hears of.
struct Deaf<'a, I>(&'a I);

impl<I: Invalidate> Invalidate for Deaf<'_, I> {
    type Ticket = I::Ticket;

    fn submit(&self, changes: &Changes) -> Result<I::Ticket, SyncError> {
        self.0.submit(changes)
    }

    fn wait(&self, ticket: I::Ticket) -> Result<(), SyncError> {
        let _ = self.0.wait(ticket);
        Ok(())
    }
}

on_each_behaviour! {
    a_time_out_that_is_taken_for_success_is_seen
    a_silent_device_that_is_taken_for_success_is_seen
    a_refused_command_that_is_taken_for_success_is_seen
    a_sync_that_stood_too_early_is_seen
    the_silent_device_of_another_one_quarantines_nothing
}

/// Injects a fault into an unmap, which fails and leaves the page allowed, or which is taken for a success;
/// returns the error.
fn fail<B: Behaviour>(behaviour: &B, injection: Injection, is_deaf: bool) -> Option<SyncError> {
    let config = MachineConfig {
        limit: Duration::from_micros(100),
        ..MachineConfig::default()
    };
    let bench = Bench::with_config(behaviour, config);
    let page = pages::<B>(0x55, 1);
    bench.map(&page, MEMORY);
    bench.assert_reached(&page, MEMORY);
    bench.machine.iommu().inject(injection);
    let (keep, set) = (TablePolicy::Keep, bench.domain.set());
    if is_deaf {
        let unmapped = bench.domain.unmap_by(page, keep, &Deaf(set));
        unmapped.expect("the hardware answers");
        assert_eq!(law(&bench), Some(Law::Reach));
        return None;
    }
    let unmapped = bench.domain.unmap_by(page.clone(), keep, set);
    let Err(RigError::Quarantined(quarantined)) = unmapped else {
        panic!("{unmapped:?}");
    };
    // In quarantine nothing is reached that must not be.
    bench.assert_clean();
    let error = quarantined.error();
    bench.machine.iommu().release_sync();
    let flushed = quarantined
        .into_gather()
        .sync(set)
        .expect("the hardware answers");
    bench.domain.forgotten(page.clone(), &flushed);
    bench.assert_refused(&page);
    Some(error)
}

fn a_time_out_that_is_taken_for_success_is_seen<B: Behaviour>(behaviour: &B) {
    let stuck = Injection::StuckSync(0);
    assert_eq!(fail(behaviour, stuck, false), Some(SyncError::TimedOut));
    assert_eq!(fail(behaviour, stuck, true), None);
}

fn a_silent_device_that_is_taken_for_success_is_seen<B: Behaviour>(behaviour: &B) {
    let silent = Injection::DeviceTimeout(0);
    let timed_out = Some(SyncError::DeviceTimedOut);
    assert_eq!(fail(behaviour, silent, false), timed_out);
    assert_eq!(fail(behaviour, silent, true), None);
}

fn a_refused_command_that_is_taken_for_success_is_seen<B: Behaviour>(behaviour: &B) {
    let illegal = Injection::Illegal(0);
    assert_eq!(fail(behaviour, illegal, false), Some(SyncError::Refused));
    assert_eq!(fail(behaviour, illegal, true), None);
}

/// Tells the places of devices without TLB, and returns the ticket of a list without a SYNC.
fn send<B: Behaviour>(machine: &Machine<B>, id: u16, changes: &Changes) -> Ticket {
    let planner = machine.instance().planner();
    let mut list = Vec::new();
    for tag in machine.behaviour().tags(id, PLAIN, false) {
        planner.plan(&tag, changes, |command| list.push(command.entry()));
    }
    let submitted = machine.instance().queue().submit(&list, WithSync::Later);
    submitted.expect("there is room")
}

/// Another list's SYNC stood before ours, and we waited for that one.
fn a_sync_that_stood_too_early_is_seen<B: Behaviour>(behaviour: &B) {
    for is_early in [true, false] {
        let bench = slow(behaviour);
        bench
            .machine
            .detach(&bench.domain, CACHING)
            .expect("the hardware answers");
        let page = pages::<B>(0x55, 1);
        bench.map(&page, MEMORY);
        let reached = bench
            .machine
            .access(PLAIN, *page.start(), iopt_sim::Rights::ALL);
        reached.expect("nothing is stale yet");
        let gather = bench
            .domain
            .removed(page.clone(), TablePolicy::Keep)
            .expect("the hardware answers");
        let queue = bench.machine.instance().queue();
        let _waiting = SYNC.waiting();
        let others = queue
            .submit(&[], WithSync::Now)
            .expect("the hardware answers");
        let ours = send(&bench.machine, bench.domain.id(), gather.changes());
        queue
            .wait(if is_early { others } else { ours })
            .expect("the hardware answers");
        let number = bench.domain.number();
        bench.machine.ledger().forgotten(number, page);
        let expected = is_early.then_some(Law::Reach);
        assert_eq!(law(&bench), expected);
        drop(gather);
    }
    let phases = behaviour.tags(1, PLAIN, false);
    assert!(
        phases
            .iter()
            .all(|tag| B::Planner::phase(tag) == Phase::Iotlb)
    );
}

/// All that the hardware has under way may fail with it, also what asks no device.
fn the_silent_device_of_another_one_quarantines_nothing<B: Behaviour>(behaviour: &B) {
    let bench = slow(behaviour);
    bench
        .machine
        .detach(&bench.domain, CACHING)
        .expect("the hardware answers");
    let page = pages::<B>(0x55, 1);
    bench.map(&page, MEMORY);
    let instance = bench.machine.instance();
    bench.machine.iommu().inject(Injection::DeviceTimeout(0));
    let everything = Changes::everything();
    let mut others = Vec::new();
    for tag in behaviour.tags(9, CACHING, true) {
        if B::Planner::phase(&tag) == Phase::DeviceTlb {
            let planner = instance.planner();
            planner.plan(&tag, &everything, |command| others.push(command.entry()));
        }
    }
    assert!(!others.is_empty());
    let others = {
        let _waiting = SYNC.waiting();
        let submitted = instance.queue().submit(&others, WithSync::Now);
        submitted.expect("there is room")
    };
    let unmapped = bench
        .domain
        .unmap_by(page.clone(), TablePolicy::Keep, bench.domain.set());
    unmapped.expect("no device was to answer");
    bench.assert_refused(&page);
    let _waiting = SYNC.waiting();
    let failed = instance.queue().wait(others);
    assert_eq!(failed, Err(SyncError::DeviceTimedOut));
}
