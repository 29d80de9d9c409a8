//! Every interleaving of removals and flushes.

use alloc::sync::Arc;

use iopt_formats::{Iova, IovaRange, PageSize, PageSizes};

use super::*;
use crate::invalidation::{Kind, TableId};
use crate::reclaim::Operation;
use crate::sync::atomic::AtomicBool;
use crate::sync::bounded_model;
use crate::sync::models::thread;

const WINDOW: Window = Window {
    queue_count: 2,
    capacity: 1,
    age: Duration::MAX,
};

/// One entry of a table for each thread, and an IOTLB that holds it and walks again whenever it may.
#[derive(Default)]
struct World {
    present: [AtomicBool; 2],
    cached: [AtomicBool; 2],
}

impl World {
    fn new() -> Arc<Self> {
        let world = Self::default();
        for (present, cached) in world.present.iter().zip(&world.cached) {
            present.store(true, Ordering::Relaxed);
            cached.store(true, Ordering::Relaxed);
        }
        Arc::new(world)
    }
}

impl Invalidate for Arc<World> {
    type Ticket = ();

    /// A walk just after the invalidation sees what is visible then.
    fn submit(&self, _: &Changes) -> Result<(), SyncError> {
        fence(Ordering::SeqCst);
        for (present, cached) in self.present.iter().zip(&self.cached) {
            if !present.load(Ordering::Relaxed) {
                cached.store(false, Ordering::Relaxed);
            }
        }
        Ok(())
    }

    fn wait(&self, (): ()) -> Result<(), SyncError> {
        Ok(())
    }
}

struct Check {
    world: Arc<World>,
    index: usize,
}

impl Release for Check {
    fn release(self, _: Flushed) {
        let is_cached = self.world.cached[self.index].load(Ordering::Relaxed);
        assert!(!is_cached, "released while the hardware reaches it");
    }
}

fn remove(world: &Arc<World>, deferred: &Deferred<Arc<World>, Check>, index: usize) {
    world.present[index].store(false, Ordering::Relaxed);
    let range = IovaRange::with_len(Iova::new((index as u64) << 12), 0x1000).expect("a page");
    let sizes = PageSizes::from_bits(PageSize::KIB_4.bytes());
    let changes = Changes::leaves(range, sizes, Kind::Removed);
    let gather = Gather::new(changes, TableId::next(), Operation::NONE);
    let world = Arc::clone(world);
    let deferred = deferred.defer(gather, Check { world, index });
    deferred.expect("the hardware works");
}

/// Either flushes for both, if the other was in time.
#[test]
fn a_flush_covers_only_what_was_visible_before_it() {
    bounded_model(3, || {
        let world = World::new();
        let deferred = Arc::new(Deferred::new(Arc::clone(&world), WINDOW));
        let other = {
            let (world, deferred) = (Arc::clone(&world), Arc::clone(&deferred));
            thread::spawn(move || remove(&world, &deferred, 1))
        };
        remove(&world, &deferred, 0);
        other.join().expect("no panic");
    });
}

/// One flushes all queues while the other adds to its own.
#[test]
fn who_flushes_all_releases_nothing_too_early() {
    bounded_model(3, || {
        let world = World::new();
        let window = Window {
            capacity: 2,
            ..WINDOW
        };
        let deferred = Arc::new(Deferred::new(Arc::clone(&world), window));
        let other = {
            let (world, deferred) = (Arc::clone(&world), Arc::clone(&deferred));
            thread::spawn(move || {
                remove(&world, &deferred, 1);
                deferred.flush_due().expect("the hardware works");
            })
        };
        remove(&world, &deferred, 0);
        deferred.flush().expect("the hardware works");
        other.join().expect("no panic");
        deferred.flush().expect("the hardware works");
        assert_eq!(deferred.waiting_count(), 0);
    });
}
