//! Callers that do not wait for their proof.

use std::thread;

use iopt::invalidation::{Changes, Flushed, Invalidate, SyncError};
use iopt::radix::TablePolicy;
use iopt_rig::Behaviour;
use iopt_sim::Law;

use super::{law, slow};
use crate::machines::{Bench, MEMORY, blocks, page_len, pages};

/// Hardware that is told, and not waited for.
struct Unwaited<'a, I>(&'a I);

impl<I: Invalidate> Invalidate for Unwaited<'_, I> {
    type Ticket = I::Ticket;

    fn submit(&self, changes: &Changes) -> Result<I::Ticket, SyncError> {
        self.0.submit(changes)
    }

    fn wait(&self, _: I::Ticket) -> Result<(), SyncError> {
        Ok(())
    }
}

on_each_behaviour! {
    memory_that_is_used_again_before_the_sync_is_seen
    an_iova_that_is_used_again_before_the_sync_is_seen
    a_table_that_is_freed_before_the_sync_is_seen
}

/// The unpin, after which the page is somebody else's.
fn memory_that_is_used_again_before_the_sync_is_seen<B: Behaviour>(behaviour: &B) {
    for waits in [false, true] {
        let bench = slow(behaviour);
        let page = pages::<B>(0x55, 1);
        bench.map(&page, MEMORY);
        bench.assert_reached(&page, MEMORY);
        let gather = bench
            .domain
            .removed(page.clone(), TablePolicy::Keep)
            .expect("the hardware answers");
        let pending = gather.submit(bench.domain.set());
        if waits {
            let flushed = pending.wait().expect("the hardware answers");
            bench.domain.forgotten(page.clone(), &flushed);
            bench.assert_refused(&page);
        } else {
            let number = bench.domain.number();
            bench.machine.ledger().forgotten(number, page.clone());
            assert_eq!(law(&bench), Some(Law::Reach));
            let _ = pending.wait().expect("the hardware answers");
            bench.assert_refused(&page);
        }
    }
}

/// A buffer at the old address, and devices still find the old one.
fn an_iova_that_is_used_again_before_the_sync_is_seen<B: Behaviour>(behaviour: &B) {
    let elsewhere = MEMORY + 7 * page_len::<B>();
    for waits in [false, true] {
        let bench = slow(behaviour);
        let page = pages::<B>(0x55, 1);
        bench.map(&page, MEMORY);
        bench.assert_reached(&page, MEMORY);
        let set = bench.domain.set();
        let removed = if waits {
            bench.domain.unmap(page.clone())
        } else {
            let keep = TablePolicy::Keep;
            bench.domain.unmap_by(page.clone(), keep, &Unwaited(set))
        };
        removed.expect("the hardware answers");
        bench.map(&page, elsewhere);
        if waits {
            bench.assert_reached(&page, elsewhere);
        } else if let Ok(outcomes) = bench.look(&page) {
            // Where maps are told, the next sync came too late for nobody.
            panic!("{outcomes:?}");
        }
    }
}

fn a_table_that_is_freed_before_the_sync_is_seen<B: Behaviour>(behaviour: &B) {
    for waits in [false, true] {
        let bench = slow(behaviour);
        let all = blocks::<B>(8, 2);
        let memory = MEMORY + page_len::<B>();
        bench.map(&all, memory);
        bench.assert_reached(&all, memory);
        let gather = bench
            .domain
            .removed(all.clone(), TablePolicy::Detach)
            .expect("there is room in the quarantine");
        let set = bench.domain.set();
        let flushed = if waits {
            gather.sync(set)
        } else {
            gather.sync(&Unwaited(set))
        };
        let flushed = flushed.expect("the hardware answers");
        // The leaves may be met for longer: the tables alone are the question.
        reclaim(&bench, &flushed);
        assert_eq!(law(&bench), (!waits).then_some(Law::FreedTable));
        if waits {
            bench.domain.forgotten(all.clone(), &flushed);
            bench.assert_refused(&all);
        }
    }
}

/// Frees what `flushed` proves, as soon as the readers of other tests have left.
fn reclaim<B: Behaviour>(bench: &Bench<B>, flushed: &Flushed) {
    for _ in 0..1_000_000 {
        bench.domain.table().reclaim(flushed);
        if bench.domain.table().quarantined_count() == 0 {
            return;
        }
        thread::yield_now();
    }
    panic!("somebody reads for ever");
}
