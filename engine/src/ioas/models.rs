//! Operations of several threads on one address space, in every interleaving with few preemptions.
//!
//! The memory knows the domains: a page that is unpinned while one of them still maps it, or has not
//! flushed it, fails the model (L2).

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::sync::Arc;
use alloc::vec::Vec;

use iopt_formats::{Iova, IovaRange, Oa, PageSize, PageSizes, Prot};
use loom::thread;

use super::*;
use crate::domain::{
    Caps, Domain, DomainError, Farewell, Flush, Grant, MapFailure, MapOp, NotFlushed, Taken, Tenant,
};
use crate::pin::{Firmness, Kind, OaRun, Origin, PageRange, PinError, Source};
use crate::sync::bounded_model;

const PAGE: u64 = 0x1000;

/// What every model's domains map, and what their hardware may still know.
#[derive(Default)]
struct World {
    /// By domain and IOVA.
    mapped: BTreeMap<(u64, u64), u64>,
    /// Output pages that were removed and not flushed, by domain and ticket.
    stale: BTreeSet<(u64, u64, u64)>,
    next_ticket: u64,
    pinned: BTreeSet<u64>,
}

type Shared = Arc<loom::sync::Mutex<World>>;

fn with<R>(world: &Shared, work: impl FnOnce(&mut World) -> R) -> R {
    work(&mut world.lock().expect("no model panics and goes on"))
}

struct Sink {
    number: u64,
    world: Shared,
}

impl fmt::Debug for Sink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sink {}", self.number)
    }
}

fn pages_of(range: IovaRange) -> impl Iterator<Item = u64> {
    (range.start().get()..=range.last().get()).step_by(PAGE as usize)
}

impl Domain for Sink {
    fn caps(&self) -> Caps {
        Caps {
            sizes: PageSizes::from_bits(PAGE),
            aperture: IovaRange::FULL,
            needs_pinned: false,
            tracks_dirty: false,
        }
    }

    fn bind(&self, _: Tenant) -> Result<(), Taken> {
        Ok(())
    }

    fn unbind(&self, _: Farewell) {
        with(&self.world, |world| {
            let mut left = world
                .mapped
                .keys()
                .filter(|(number, _)| *number == self.number);
            assert_eq!(left.next(), None, "a domain is empty when it leaves");
            let mut stale = world.stale.iter().map(|&(number, ..)| number);
            assert!(
                stale.all(|number| number != self.number),
                "a domain is flushed when it leaves"
            );
        });
    }

    fn map_batch(&self, _: &mut Grant<'_>, ops: &[MapOp<'_>]) -> Result<(), MapFailure> {
        with(&self.world, |world| {
            for op in ops {
                for (index, iova) in pages_of(op.range).enumerate() {
                    let oa = op.oa.get() + index as u64 * PAGE;
                    assert!(world.pinned.contains(&oa), "what is mapped is pinned");
                    let old = world.mapped.insert((self.number, iova), oa);
                    assert_eq!(old, None, "nothing is mapped twice");
                }
            }
        });
        Ok(())
    }

    fn unmap(
        &self,
        grant: &mut Grant<'_>,
        flush: &mut Flush,
        _: Option<&mut dyn FnMut(IovaRange)>,
    ) -> Result<u64, DomainError> {
        let range = grant.range();
        let keys = (self.number, range.start().get())..=(self.number, range.last().get());
        let (count, ticket) = with(&self.world, |world| {
            world.next_ticket += 1;
            let ticket = world.next_ticket;
            let gone: Vec<_> = world
                .mapped
                .range(keys)
                .map(|(&key, &oa)| (key, oa))
                .collect();
            for &(key, oa) in &gone {
                world.mapped.remove(&key);
                world.stale.insert((self.number, ticket, oa));
            }
            (gone.len(), ticket)
        });
        if count > 0 {
            flush.mark(ticket);
        }
        Ok(count as u64 * PAGE)
    }

    fn sync(&self, flush: Flush) -> Result<(), NotFlushed> {
        with(&self.world, |world| {
            world.stale.retain(|(number, ticket, _)| {
                *number != self.number || !flush.tickets().contains(ticket)
            });
        });
        Ok(())
    }

    fn protect(
        &self,
        _: &mut Grant<'_>,
        _: Prot,
        _: &mut Flush,
        _: &mut dyn FnMut(IovaRange),
    ) -> Result<(), DomainError> {
        Ok(())
    }
}

/// Pages at output addresses of twice their offsets, so that each is a run of its own, and a section.
#[derive(Clone)]
struct Memory(Shared);

impl fmt::Debug for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("memory")
    }
}

impl Source for Memory {
    fn page_size(&self) -> PageSize {
        PageSize::KIB_4
    }

    fn page_count(&self) -> u64 {
        2
    }

    fn firmness(&self) -> Firmness {
        Firmness::Simulated
    }

    fn kind(&self) -> Kind {
        Kind::Ram
    }

    fn is_writable(&self) -> bool {
        true
    }

    fn origin(&self) -> Origin<'_> {
        Origin::Oa(Oa::new(0))
    }

    fn pin(&self, pages: PageRange, runs: &mut dyn FnMut(OaRun)) -> Result<(), PinError> {
        for page in pages.first()..=pages.last() {
            let is_new = with(&self.0, |world| world.pinned.insert(2 * page * PAGE));
            assert!(is_new, "nothing is pinned twice");
            runs(OaRun {
                oa: Oa::new(2 * page * PAGE),
                page_count: 1,
            });
        }
        Ok(())
    }

    fn unpin(&self, pages: PageRange) {
        with(&self.0, |world| {
            for oa in (pages.first()..=pages.last()).map(|page| 2 * page * PAGE) {
                assert!(world.pinned.remove(&oa), "what is unpinned was pinned");
                let is_mapped = world.mapped.values().any(|&mapped| mapped == oa);
                let is_stale = world.stale.iter().any(|&(.., stale)| stale == oa);
                assert!(
                    !is_mapped && !is_stale,
                    "L2: a device may still reach {oa:#x}"
                );
            }
        });
    }

    fn read(&self, _: u64, _: &mut [u8]) -> Result<(), PinError> {
        Ok(())
    }

    fn write(&self, _: u64, _: &[u8]) -> Result<(), PinError> {
        Ok(())
    }
}

struct Scene {
    world: Shared,
    ioas: Arc<Ioas>,
    pages: Arc<Pages>,
}

impl Scene {
    fn new() -> Self {
        let world = Shared::default();
        Self {
            ioas: Arc::new(Ioas::new()),
            pages: Pages::new(Arc::new(Memory(Arc::clone(&world))), None),
            world,
        }
    }

    fn sink(&self, number: u64) -> Arc<dyn Domain> {
        Arc::new(Sink {
            number,
            world: Arc::clone(&self.world),
        })
    }

    fn map(&self, iova: u64, page_count: u64) -> Result<IovaRange, MapError> {
        self.map_from(0, iova, page_count)
    }

    fn map_from(&self, offset: u64, iova: u64, page_count: u64) -> Result<IovaRange, MapError> {
        self.ioas.map(Mapping {
            pages: &self.pages,
            offset,
            len: page_count * PAGE,
            prot: Prot::RW,
            place: Place::Fixed(Iova::new(iova)),
        })
    }

    /// Runs two pieces of work beside each other, the first on another thread.
    fn beside<A: 'static, B>(
        self: &Arc<Self>,
        other: impl FnOnce(&Self) -> A + 'static,
        own: impl FnOnce(&Self) -> B,
    ) -> (A, B) {
        let scene = Arc::clone(self);
        let other = thread::spawn(move || other(&scene));
        let own = own(self);
        (other.join().expect("no thread panics"), own)
    }

    /// Checks that exactly the pages of mapped areas are pinned, and mapped to every domain.
    fn check(&self, domain_count: usize) {
        let mut mapped = Vec::new();
        self.ioas.index.each(|range, _| mapped.push(range));
        mapped.sort_unstable_by_key(|range| range.start());
        mapped.dedup();
        let page_count: usize = mapped.iter().map(|&range| pages_of(range).count()).sum();
        with(&self.world, |world| {
            assert_eq!(world.mapped.len(), page_count * domain_count);
            let oas: BTreeSet<_> = world.mapped.values().copied().collect();
            assert_eq!(world.pinned, oas, "pinned is what is mapped");
        });
    }
}

fn page(iova: u64, count: u64) -> IovaRange {
    IovaRange::with_len(Iova::new(iova), count * PAGE).expect("it does not wrap")
}

#[test]
fn an_unmap_beside_the_map_of_the_same_area_takes_it_or_nothing() {
    bounded_model(3, || {
        let scene = Arc::new(Scene::new());
        scene.ioas.attach(scene.sink(1)).expect("it fits");
        let (unmapped, mapped) = scene.beside(
            |scene| scene.ioas.unmap(page(0, 2), Holes::Refused),
            |scene| scene.map(0, 2),
        );
        mapped.expect("nothing is in the way");
        let is_known = matches!(
            unmapped,
            Ok(_) | Err(UnmapError::Hole { .. } | UnmapError::Busy { .. })
        );
        assert!(is_known, "{unmapped:?}");
        assert_eq!(scene.ioas.area_count(), usize::from(unmapped.is_err()));
        scene.check(1);
    });
}

#[test]
fn of_two_maps_that_overlap_one_succeeds() {
    bounded_model(3, || {
        let scene = Arc::new(Scene::new());
        scene.ioas.attach(scene.sink(1)).expect("it fits");
        let (theirs, ours) = scene.beside(|scene| scene.map(PAGE, 2), |scene| scene.map(0, 2));
        assert!(theirs.is_ok() != ours.is_ok());
        scene.check(1);
    });
}

#[test]
fn a_domain_attached_between_chunks_of_a_map_gets_all_of_it() {
    bounded_model(3, || {
        let scene = Arc::new(Scene::new());
        scene.ioas.attach(scene.sink(1)).expect("it fits");
        let (attached, mapped) = scene.beside(
            |scene| scene.ioas.attach(scene.sink(2)),
            |scene| scene.map(0, 2),
        );
        attached.expect("it fits");
        mapped.expect("nothing is in the way");
        scene.check(2);
    });
}

#[test]
fn an_attach_beside_an_unmap_leaves_nothing_behind() {
    bounded_model(3, || {
        let scene = Arc::new(Scene::new());
        scene.ioas.attach(scene.sink(1)).expect("it fits");
        scene.map(0, 2).expect("nothing is in the way");
        let (attached, unmapped) = scene.beside(
            |scene| scene.ioas.attach(scene.sink(2)),
            |scene| scene.ioas.unmap_all(),
        );
        attached.expect("it fits");
        unmapped.expect("nobody has pinned it");
        scene.check(2);
    });
}

#[test]
fn a_detach_beside_an_unmap_unpins_nothing_too_early() {
    bounded_model(3, || {
        let scene = Arc::new(Scene::new());
        let sink = scene.sink(1);
        scene.ioas.attach(Arc::clone(&sink)).expect("it fits");
        scene.map(0, 1).expect("nothing is in the way");
        let (detached, unmapped) = scene.beside(
            move |scene| scene.ioas.detach(&sink),
            |scene| scene.ioas.unmap_all(),
        );
        detached.expect("it is attached");
        unmapped.expect("nobody has pinned it");
        with(&scene.world, |world| assert!(world.pinned.is_empty()));
    });
}

#[test]
fn an_unmap_beside_two_domains_that_leave_unpins_nothing_too_early() {
    bounded_model(3, || {
        let scene = Arc::new(Scene::new());
        let sinks = [scene.sink(1), scene.sink(2)];
        for sink in &sinks {
            scene.ioas.attach(Arc::clone(sink)).expect("it fits");
        }
        scene.map(0, 1).expect("nothing is in the way");
        let (detached, unmapped) = scene.beside(
            move |scene| sinks.map(|sink| scene.ioas.detach(&sink)),
            |scene| scene.ioas.unmap_all(),
        );
        detached.map(|detached| detached.expect("it is attached"));
        unmapped.expect("nobody has pinned it");
        with(&scene.world, |world| assert!(world.pinned.is_empty()));
    });
}

/// The domain may have been emptied of the first area and not of the second.
#[test]
fn an_unmap_does_not_take_a_domain_for_emptied_that_is_not_so_far() {
    bounded_model(3, || {
        let scene = Arc::new(Scene::new());
        let sink = scene.sink(1);
        scene.ioas.attach(Arc::clone(&sink)).expect("it fits");
        scene.map(0, 1).expect("nothing is in the way");
        scene
            .map_from(PAGE, PAGE, 1)
            .expect("nothing is in the way");
        let (detached, unmapped) = scene.beside(
            move |scene| scene.ioas.detach(&sink),
            |scene| scene.ioas.unmap(page(PAGE, 1), Holes::Refused),
        );
        detached.expect("it is attached");
        unmapped.expect("nobody has pinned it");
        with(&scene.world, |world| assert!(world.pinned.is_empty()));
    });
}

/// Of two areas that one unmap removes, each in a section of its own.
#[test]
fn a_domain_that_leaves_between_two_sections_of_an_unmap_is_flushed_by_then() {
    bounded_model(3, || {
        let scene = Arc::new(Scene::new());
        let sink = scene.sink(1);
        scene.ioas.attach(Arc::clone(&sink)).expect("it fits");
        scene.map(0, 1).expect("nothing is in the way");
        scene
            .map_from(PAGE, PAGE, 1)
            .expect("nothing is in the way");
        let (detached, unmapped) = scene.beside(
            move |scene| scene.ioas.detach(&sink),
            |scene| scene.ioas.unmap_all(),
        );
        detached.expect("it is attached");
        unmapped.expect("nobody has pinned it");
        with(&scene.world, |world| assert!(world.pinned.is_empty()));
    });
}

#[test]
fn a_detach_beside_a_map_leaves_nothing_pinned() {
    bounded_model(3, || {
        let scene = Arc::new(Scene::new());
        let sink = scene.sink(1);
        scene.ioas.attach(Arc::clone(&sink)).expect("it fits");
        let (detached, mapped) = scene.beside(
            move |scene| scene.ioas.detach(&sink),
            |scene| scene.map(0, 2),
        );
        detached.expect("it is attached");
        mapped.expect("nothing is in the way");
        with(&scene.world, |world| assert!(world.pinned.is_empty()));
        assert_eq!(scene.ioas.unmap_all().expect("it is live"), 2 * PAGE);
    });
}

#[test]
fn a_copy_beside_the_unmap_of_its_source_is_whole_or_nothing() {
    bounded_model(3, || {
        let scene = Arc::new(Scene::new());
        scene.ioas.attach(scene.sink(1)).expect("it fits");
        scene.map(0, 2).expect("nothing is in the way");
        let (unmapped, copied) = scene.beside(
            |scene| scene.ioas.unmap(page(0, 2), Holes::Refused),
            |scene| {
                let place = Place::Fixed(Iova::new(4 * PAGE));
                scene.ioas.copy(&scene.ioas, page(0, 2), place, Prot::R)
            },
        );
        unmapped.expect("nobody has pinned it");
        let is_hole = matches!(copied, Err(CopyError::Hole { .. }));
        assert!(copied.is_ok() || is_hole, "{copied:?}");
        scene.check(1);
    });
}

/// Lets go of its one page.
struct Yields;

impl AccessOps for Yields {
    fn unmap(&self, access: &AccessHandle, _: IovaRange) {
        // It may have been unpinned by its own thread meanwhile.
        let _ = access.unpin(page(0, 1));
    }
}

#[test]
fn an_unmap_beside_pin_and_destroy_ends_with_nothing_pinned() {
    bounded_model(3, || {
        let scene = Arc::new(Scene::new());
        scene.map(0, 1).expect("nothing is in the way");
        let access = scene.ioas.access(Yields);
        let (unmapped, ()) = scene.beside(
            |scene| scene.ioas.unmap_all(),
            move |scene| {
                let pinned = access.pin(page(0, 1), true);
                let is_hole = matches!(pinned, Err(AccessError::Hole { .. }));
                assert!(pinned.is_ok() || is_hole, "{pinned:?}");
                let area_count = scene.ioas.area_count();
                if access.pin_count() > 0 {
                    assert_eq!(area_count, 1, "what is pinned is mapped");
                }
                access.destroy().expect("callbacks end");
            },
        );
        // Time may pass while somebody pins, of which the model lets pass little.
        match unmapped {
            Err(UnmapError::Deadlock { .. }) => scene.ioas.unmap_all(),
            unmapped => unmapped,
        }
        .expect("nothing is pinned any more");
        with(&scene.world, |world| assert!(world.pinned.is_empty()));
        assert_eq!(scene.ioas.area_count(), 0);
    });
}
