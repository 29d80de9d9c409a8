use alloc::boxed::Box;

use iopt_formats::vtd::SecondStage;
use iopt_formats::{Iova, IovaRange, Oa, PageSize, Prot, Rights};

use super::*;
use crate::domain::{
    DomainError, Farewell, MapFailure, MapOp, NotFlushed, TableDomain, Taken, Tenant,
};
use crate::invalidation::{Callback, Changes, SyncError};
use crate::mem::Heap;
use crate::pin::{Budget, PageRange, Simulated, Source};
use crate::radix::Table;
use crate::sync::unmodelled::{AtomicU64, AtomicUsize, Ordering};

mod image;

/// Hardware that counts its syncs and can refuse them.
#[derive(Debug, Default)]
struct Hardware {
    sync_count: AtomicUsize,
    refuses: AtomicBool,
    /// Sizes of leaves that it forgot.
    forgotten_sizes: AtomicU64,
}

type Submit = Box<dyn Fn(&Changes) -> Result<(), SyncError> + Send + Sync>;
type VtdDomain = TableDomain<SecondStage, Heap, Callback<Submit>>;

fn domain() -> (Arc<VtdDomain>, Arc<dyn Domain>, &'static Hardware) {
    let hardware: &'static Hardware = Box::leak(Box::default());
    let submit: Submit = Box::new(|changes| {
        hardware.sync_count.fetch_add(1, Ordering::Relaxed);
        let refuses = hardware.refuses.load(Ordering::Relaxed);
        if refuses {
            Err(SyncError::Refused)
        } else {
            let sizes = changes.leaf_sizes().bits();
            hardware.forgotten_sizes.fetch_or(sizes, Ordering::Relaxed);
            Ok(())
        }
    });
    let format = SecondStage::new(39).expect("39 bits are a width");
    let table = Table::new(format, Heap).expect("there is memory");
    let domain = Arc::new(TableDomain::new(table, Callback::new(submit)));
    (Arc::clone(&domain), domain, hardware)
}

fn source(page_count: u64) -> Arc<Simulated> {
    Arc::new(Simulated::new(PageSize::KIB_4, page_count))
}

fn pages(source: &Arc<Simulated>) -> Arc<Pages> {
    Pages::new(Arc::clone(source) as Arc<dyn Source>, None)
}

fn range(start: u64, len: u64) -> IovaRange {
    IovaRange::with_len(Iova::new(start), len).expect("the range does not wrap")
}

fn fixed(pages: &Arc<Pages>, iova: u64, offset: u64, len: u64) -> Mapping<'_> {
    Mapping {
        pages,
        offset,
        len,
        prot: Prot::RW,
        place: Place::Fixed(Iova::new(iova)),
    }
}

fn looks_up(domain: &VtdDomain, iova: u64) -> Option<Oa> {
    let found = domain.table().lookup(Iova::new(iova));
    found.map(|found| found.oa())
}

#[test]
fn nothing_is_pinned_before_there_is_a_domain() {
    let source = source(16);
    let pages = pages(&source);
    let ioas = Ioas::new();
    ioas.map(fixed(&pages, 0x1_0000, 0x1000, 0x4000))
        .expect("it is free");
    assert_eq!(source.pinned_pages(), 0);
    let (table, dynamic, _) = domain();
    ioas.attach(Arc::clone(&dynamic)).expect("it fits");
    assert_eq!(source.pinned_pages(), 4);
    assert_eq!(looks_up(&table, 0x1_0000), source.oa_of(1));
    ioas.detach(&dynamic).expect("it is attached");
    assert_eq!(looks_up(&table, 0x1_0000), None);
    assert_eq!(source.pinned_pages(), 0);
    assert_eq!(ioas.unmap_all().expect("nothing is in the way"), 0x4000);
}

#[test]
fn two_domains_share_a_pin_and_an_unmap_takes_one_sync_each() {
    // More than one read section removes.
    let count = if cfg!(miri) { 66 } else { 200 };
    let source = source(1024);
    let pages = pages(&source);
    let ioas = Ioas::new();
    let (a, a_dyn, a_hardware) = domain();
    let (b, b_dyn, b_hardware) = domain();
    ioas.attach(a_dyn).expect("it fits");
    ioas.attach(Arc::clone(&b_dyn)).expect("it fits");
    for index in 0..count {
        ioas.map(fixed(
            &pages,
            0x10_0000 + index * 0x2000,
            index * 0x1000,
            0x1000,
        ))
        .expect("it is free");
    }
    assert_eq!(source.pinned_pages(), count);
    assert_eq!(
        looks_up(&a, 0x10_2123),
        source.oa_of(1).and_then(|oa| oa.checked_add(0x123))
    );
    assert_eq!(looks_up(&b, 0x10_2000), source.oa_of(1));
    assert_eq!(
        ioas.unmap_all().expect("nothing is in the way"),
        count * 0x1000
    );
    assert_eq!(a_hardware.sync_count.load(Ordering::Relaxed), 1);
    assert_eq!(b_hardware.sync_count.load(Ordering::Relaxed), 1);
    assert_eq!((source.pinned_pages(), ioas.area_count()), (0, 0));
    ioas.detach(&b_dyn).expect("it is attached");
}

#[test]
fn what_is_not_flushed_stays_pinned_until_it_is() {
    let source = source(4);
    let pages = pages(&source);
    let ioas = Ioas::new();
    let (_, dynamic, hardware) = domain();
    ioas.attach(Arc::clone(&dynamic)).expect("it fits");
    ioas.map(fixed(&pages, 0, 0, 0x4000)).expect("it is free");
    hardware.refuses.store(true, Ordering::Relaxed);
    let refused = ioas.unmap_all();
    assert!(matches!(
        refused,
        Err(UnmapError::Quarantined { bytes: 0x4000, .. })
    ));
    assert_eq!(source.pinned_pages(), 4);
    let busy = ioas.map(fixed(&pages, 0x1000, 0, 0x1000));
    assert!(matches!(busy, Err(MapError::Occupied { .. })));
    assert_eq!(ioas.retry_quarantined().area_count, 1);
    hardware.refuses.store(false, Ordering::Relaxed);
    assert_eq!(ioas.retry_quarantined(), Quarantined::default());
    assert_eq!((source.pinned_pages(), ioas.area_count()), (0, 0));
}

#[test]
fn a_domain_that_leaves_unflushed_keeps_what_it_may_reach() {
    let source = source(4);
    let pages = pages(&source);
    let ioas = Ioas::new();
    let (_, dynamic, hardware) = domain();
    ioas.attach(Arc::clone(&dynamic)).expect("it fits");
    ioas.map(fixed(&pages, 0, 0, 0x4000)).expect("it is free");
    hardware.refuses.store(true, Ordering::Relaxed);
    assert!(matches!(
        ioas.detach(&dynamic),
        Err(DetachError::NotFlushed(_))
    ));
    assert_eq!((ioas.domain_count(), source.pinned_pages()), (0, 4));
    assert!(matches!(
        ioas.unmap_all(),
        Err(UnmapError::Quarantined { .. })
    ));
    hardware.refuses.store(false, Ordering::Relaxed);
    assert_eq!(ioas.retry_quarantined(), Quarantined::default());
    assert_eq!(source.pinned_pages(), 0);
}

#[test]
fn a_domain_that_left_unflushed_stops_nothing_that_came_later() {
    let source = source(8);
    let pages = pages(&source);
    let ioas = Ioas::new();
    let (_, dead, dead_hardware) = domain();
    ioas.attach(Arc::clone(&dead)).expect("it fits");
    ioas.map(fixed(&pages, 0, 0, 0x4000)).expect("it is free");
    dead_hardware.refuses.store(true, Ordering::Relaxed);
    ioas.detach(&dead).expect_err("it is not flushed");
    let sync_count = dead_hardware.sync_count.load(Ordering::Relaxed);

    let (_, dynamic, _) = domain();
    ioas.attach(Arc::clone(&dynamic)).expect("it fits");
    let later = ioas.map(fixed(&pages, 0x10_0000, 0x4000, 0x4000));
    ioas.unmap(later.expect("it is free"), Holes::Refused)
        .expect("the dead domain never had it");
    assert_eq!(dead_hardware.sync_count.load(Ordering::Relaxed), sync_count);
    // What was there before it left is another matter, in part as well.
    ioas.split(Iova::new(0x2000)).expect("it is live");
    ioas.unmap(range(0x2000, 0x2000), Holes::Refused)
        .expect_err("the dead domain may have it");
}

#[test]
fn hardware_that_did_not_confirm_a_cut_is_told_of_the_large_page_before_the_pages_go() {
    let source = Arc::new(Simulated::new(PageSize::MIB_2, 1));
    let pages = Pages::new(Arc::clone(&source) as Arc<dyn Source>, None);
    let ioas = Ioas::new();
    let (_, dynamic, hardware) = domain();
    ioas.attach(Arc::clone(&dynamic)).expect("it fits");
    let mapping = fixed(&pages, 0, 0, 0x20_0000);
    let whole = ioas.map(mapping).expect("it is free");
    hardware.refuses.store(true, Ordering::Relaxed);
    ioas.cut(&dynamic, whole, PageSize::KIB_4)
        .expect_err("it is not flushed");
    assert_eq!(hardware.forgotten_sizes.load(Ordering::Relaxed), 0);
    hardware.refuses.store(false, Ordering::Relaxed);
    ioas.unmap(whole, Holes::Refused).expect("it answers again");
    let forgotten = hardware.forgotten_sizes.load(Ordering::Relaxed);
    let both = PageSize::MIB_2.bytes() | PageSize::KIB_4.bytes();
    assert_eq!(forgotten, both);
}

#[test]
fn a_domain_takes_no_grant_that_another_attachment_of_the_same_space_was_given() {
    /// Hands everything on to a domain, but for who it serves.
    #[derive(Debug)]
    struct Impostor(Arc<VtdDomain>);

    impl Domain for Impostor {
        fn caps(&self) -> Caps {
            self.0.caps()
        }
        fn bind(&self, _: Tenant) -> Result<(), Taken> {
            Ok(())
        }
        fn unbind(&self, _: Farewell) {}
        fn map_batch(&self, grant: &mut Grant<'_>, ops: &[MapOp<'_>]) -> Result<(), MapFailure> {
            self.0.map_batch(grant, ops)
        }
        fn unmap(
            &self,
            grant: &mut Grant<'_>,
            flush: &mut Flush,
            dirty: Option<&mut dyn FnMut(IovaRange)>,
        ) -> Result<u64, DomainError> {
            self.0.unmap(grant, flush, dirty)
        }
        fn sync(&self, flush: Flush) -> Result<(), NotFlushed> {
            self.0.sync(flush)
        }
        fn protect(
            &self,
            grant: &mut Grant<'_>,
            prot: Prot,
            flush: &mut Flush,
            lost: &mut dyn FnMut(IovaRange),
        ) -> Result<(), DomainError> {
            self.0.protect(grant, prot, flush, lost)
        }
    }

    let source = source(4);
    let pages = pages(&source);
    let ioas = Ioas::new();
    let (table, dynamic, _) = domain();
    ioas.attach(dynamic).expect("it fits");
    ioas.attach(Arc::new(Impostor(table))).expect("it says so");
    let refused = ioas.map(fixed(&pages, 0, 0, 0x4000));
    assert!(matches!(
        refused,
        Err(MapError::Quarantined {
            error: DomainError::Stranger
        } | MapError::Domain {
            error: DomainError::Stranger,
            ..
        })
    ));
}

#[test]
fn choice_keeps_the_low_bits_of_the_source_and_avoids_what_is_there() {
    let source = source(2048);
    let pages = pages(&source);
    let ioas = Ioas::new();
    ioas.map(fixed(&pages, 0x20_0000, 0, 0x1000))
        .expect("it is free");
    let mapping = |offset, len| Mapping {
        pages: &pages,
        offset,
        len,
        prot: Prot::RW,
        place: Place::Anywhere,
    };
    let large = ioas.map(mapping(0, 0x20_0000)).expect("there is room");
    assert_eq!(large.start(), Iova::new(0x40_0000));
    let small = ioas.map(mapping(0x1234, 0x10)).expect("there is room");
    assert_eq!(small.start(), Iova::new(0x1234));
    let other = ioas.map(mapping(0x1234, 0x10)).expect("there is room");
    assert_eq!(other.start(), Iova::new(0x2234));
    ioas.unmap(small, Holes::Refused).expect("it is mapped");
    let again = ioas.map(mapping(0x234, 0x10)).expect("there is room");
    assert_eq!(again.start(), Iova::new(0x1234));
}

/// Lets go at once, or never.
struct Yields(bool);

impl AccessOps for Yields {
    fn unmap(&self, access: &AccessHandle, range: IovaRange) {
        if self.0 {
            access.unpin(range).expect("it is pinned");
        }
    }
}

#[test]
fn an_unmap_asks_accesses_to_let_go() {
    let source = source(8);
    let pages = pages(&source);
    let ioas = Arc::new(Ioas::new());
    ioas.map(fixed(&pages, 0x1000, 0, 0x4000))
        .expect("it is free");
    let access = ioas.access(Yields(true));
    let runs = access
        .pin(range(0x1000, 0x4000), true)
        .expect("it is mapped");
    assert_eq!((runs.len(), source.pinned_pages()), (1, 4));
    access
        .write(Iova::new(0x1ffe), b"over")
        .expect("it is writable");
    let mut back = [0; 4];
    access
        .read(Iova::new(0x1ffe), &mut back)
        .expect("it is readable");
    assert_eq!(&back, b"over");
    assert_eq!(ioas.unmap_all().expect("it lets go"), 0x4000);
    assert_eq!((source.pinned_pages(), access.pin_count()), (0, 0));
    access.destroy().expect("no callback runs");

    ioas.map(fixed(&pages, 0x1000, 0, 0x4000))
        .expect("it is free");
    let access = ioas.access(Yields(false));
    access
        .pin(range(0x1000, 0x4000), true)
        .expect("it is mapped");
    assert!(matches!(ioas.unmap_all(), Err(UnmapError::Deadlock { .. })));
    access.unpin(range(0x1000, 0x4000)).expect("it is pinned");
    assert_eq!(ioas.unmap_all().expect("nothing is pinned"), 0x4000);
    drop((access, ioas, pages));
    assert_eq!(Arc::strong_count(&source), 1, "nobody keeps the memory");
}

#[test]
fn a_budget_limits_what_is_pinned() {
    let source = source(8);
    let budget = Arc::new(Budget::new(0x4000));
    let pages = Pages::new(
        Arc::clone(&source) as Arc<dyn Source>,
        Some(Arc::clone(&budget)),
    );
    let ioas = Ioas::new();
    let (_, dynamic, _) = domain();
    ioas.attach(dynamic).expect("it fits");
    ioas.map(fixed(&pages, 0, 0, 0x4000)).expect("it is free");
    ioas.map(fixed(&pages, 0x10_0000, 0, 0x4000))
        .expect("the same pages cost nothing");
    let refused = ioas.map(fixed(&pages, 0x20_0000, 0x3000, 0x2000));
    assert!(matches!(refused, Err(MapError::Hold(HoldError::Limit(_)))));
    assert_eq!((budget.used(), ioas.area_count()), (0x4000, 2));
    drop(ioas);
    assert_eq!((budget.used(), source.pinned_pages()), (0, 0));
}

#[test]
fn areas_are_copied_divided_protected_and_moved() {
    let source = source(64);
    let pages = pages(&source);
    let ioas = Ioas::new();
    let (table, dynamic, _) = domain();
    ioas.attach(Arc::clone(&dynamic)).expect("it fits");
    ioas.map(fixed(&pages, 0x10_0000, 0, 0x8000))
        .expect("it is free");
    ioas.map(fixed(&pages, 0x10_8000, 0x2_0000, 0x8000))
        .expect("it is free");
    let to = Place::Fixed(Iova::new(0x40_0000));
    let copy = ioas.copy(&ioas, range(0x10_4000, 0x8000), to, Prot::R);
    assert_eq!(copy.expect("it is mapped"), range(0x40_0000, 0x8000));
    assert_eq!(looks_up(&table, 0x40_0000), source.oa_of(4));
    assert_eq!(looks_up(&table, 0x40_4000), source.oa_of(32));
    assert_eq!((source.pinned_pages(), ioas.area_count()), (16, 4));

    ioas.split(Iova::new(0x10_3000))
        .expect("4K pages need no cut");
    assert_eq!(
        ioas.unmap(range(0x10_0000, 0x3000), Holes::Refused)
            .expect("a part"),
        0x3000
    );
    assert_eq!(looks_up(&table, 0x10_2000), None);
    assert_eq!(looks_up(&table, 0x10_3000), source.oa_of(3));
    assert_eq!(source.pinned_pages(), 13);

    ioas.protect(range(0x40_0000, 0x8000), Prot::RW)
        .expect("the memory is writable");
    let found = table
        .table()
        .lookup(Iova::new(0x40_0000))
        .expect("it is mapped");
    assert!(found.prot().can_write());
    let moved = ioas.remap(range(0x40_0000, 0x8000), Place::Fixed(Iova::new(0x80_0000)));
    assert_eq!(moved.expect("it is free"), range(0x80_0000, 0x8000));
    assert_eq!(looks_up(&table, 0x40_0000), None);
    assert_eq!(looks_up(&table, 0x80_0000), source.oa_of(4));
    let found = ioas.find_oa(source.oa_of(4).expect("a page"), 0x1000);
    assert_eq!(found, [range(0x10_4000, 0x1000), range(0x80_0000, 0x1000)]);
    drop(ioas);
    assert_eq!(source.pinned_pages(), 0);
}

#[test]
fn doorbells_are_mapped_once_for_each_domain() {
    let ioas = Ioas::new();
    let (table, dynamic, _) = domain();
    ioas.attach(Arc::clone(&dynamic)).expect("it fits");
    let window = range(0x800_0000, 0x10_0000);
    ioas.set_msi_window(Some(window)).expect("it is free");
    let doorbell = Oa::new(0xfee0_0040);
    let iova = ioas.map_msi(&dynamic, doorbell).expect("there is room");
    assert_eq!(iova, Iova::new(0x800_0040));
    assert_eq!(ioas.map_msi(&dynamic, doorbell).expect("it is there"), iova);
    assert_eq!(looks_up(&table, 0x800_0040), Some(doorbell));
    let source = source(1);
    let pages = pages(&source);
    assert!(matches!(
        ioas.map(fixed(&pages, 0x800_0000, 0, 0x1000)),
        Err(MapError::Reserved { .. })
    ));
    ioas.detach(&dynamic).expect("it is attached");
    assert_eq!(looks_up(&table, 0x800_0040), None);
}

/// Returns what the 0x40th byte of each page around the window is led to.
fn window_of(domain: &VtdDomain) -> impl Iterator<Item = (u64, Oa)> + '_ {
    let addresses = (0x7ff_f040_u64..0x801_0000).step_by(0x1000);
    addresses.filter_map(|iova| Some((iova, looks_up(domain, iova)?)))
}

/// A3.13: a device's interrupts arrive whatever domain it is led to, and no page of a user is in their way.
#[test]
fn doorbells_are_at_one_place_in_all_domains() {
    let ioas = Ioas::new();
    let domains = [domain(), domain(), domain()];
    for (_, dynamic, _) in &domains {
        ioas.attach(Arc::clone(dynamic)).expect("it fits");
    }
    let window = range(0x800_0000, 0x2000);
    ioas.set_msi_window(Some(window)).expect("it is free");
    let bells = [0x808_0040, 0x80a_0040].map(Oa::new);
    // In every domain in another order.
    let mut vectors = [None; 2];
    for (turn, (_, dynamic, _)) in domains.iter().enumerate() {
        for bell in [turn % 2, (turn + 1) % 2] {
            let iova = ioas.map_msi(dynamic, bells[bell]).expect("there is room");
            let vector = *vectors[bell].get_or_insert(iova);
            assert_eq!(iova, vector, "a vector stays as it was composed");
        }
    }
    // Whichever domain the device is led to, it rings each bell once, at the same place.
    for (table, _, _) in &domains {
        for (vector, bell) in vectors.into_iter().zip(bells) {
            let iova = vector.expect("it was mapped");
            let rung = window_of(table).filter(|&(_, oa)| oa == bell);
            assert_eq!(rung.collect::<Vec<_>>(), [(iova.get(), bell)]);
            let prot = table.table().lookup(iova).expect("it is mapped").prot();
            assert!(prot.rights().contains(Rights::WRITE) && !prot.rights().contains(Rights::READ));
        }
    }
    let source = source(1);
    let pages = pages(&source);
    for iova in [0x800_0000, 0x800_1000] {
        assert!(matches!(
            ioas.map(fixed(&pages, iova, 0, 0x1000)),
            Err(MapError::Reserved { .. })
        ));
    }
    let third = ioas.map_msi(&domains[0].1, Oa::new(0x80c_0040));
    assert!(matches!(third, Err(MsiError::Full { .. })), "{third:?}");
    for (table, _, _) in &domains {
        assert_eq!(window_of(table).count(), 2, "a failure leaves nothing");
    }
    // What one domain leaves, others keep.
    ioas.detach(&domains[0].1).expect("it is attached");
    let iova = vectors[0].expect("it was mapped").get();
    assert_eq!(looks_up(&domains[0].0, iova), None);
    assert_eq!(looks_up(&domains[1].0, iova), Some(bells[0]));
}

#[test]
fn a_long_pin_is_watched_and_can_be_cancelled() {
    // Pieces have eight pages here.
    let source = Arc::new(Simulated::new(PageSize::KIB_4, 64).scattered(3, 1));
    let pages = pages(&source);
    let ioas = Ioas::new();
    let (table, dynamic, _) = domain();
    ioas.attach(dynamic).expect("it fits");
    let mapping = fixed(&pages, 0x10_0000, 0x5000, 0x1_5000);
    let mut seen = Vec::new();
    let cancelled = ioas.map_watched(mapping, |bytes| {
        seen.push(bytes);
        if seen.len() == 2 {
            core::ops::ControlFlow::Break(())
        } else {
            core::ops::ControlFlow::Continue(())
        }
    });
    let is_cancelled = matches!(cancelled, Err(MapError::Hold(HoldError::Cancelled)));
    assert!(is_cancelled, "{cancelled:?}");
    assert_eq!(seen, [0x3000, 0xb000]);
    assert_eq!((source.pinned_pages(), ioas.area_count()), (0, 0));

    let go_on = |_| core::ops::ControlFlow::Continue(());
    ioas.map_watched(mapping, go_on).expect("nobody gives up");
    assert_eq!(source.pinned_pages(), 0x15);
    for page in 0..0x15 {
        let iova = 0x10_0000 + page * 0x1000;
        assert_eq!(looks_up(&table, iova), source.oa_of(5 + page), "{iova:#x}");
    }
    // Wherever an area is divided, its parts hold what it held.
    for iova in [0x10_3000, 0x10_b000, 0x10_c000, 0x11_4000] {
        ioas.split(Iova::new(iova))
            .expect("pages are mapped one by one");
        assert_eq!(source.pinned_pages(), 0x15);
    }
    for (start, last) in [
        (0x10_3000, 0x10_afff),
        (0x10_0000, 0x10_2fff),
        (0x10_c000, 0x11_3fff),
        (0x11_4000, 0x11_4fff),
        (0x10_b000, 0x10_bfff),
    ] {
        ioas.unmap(range(start, last - start + 1), Holes::Refused)
            .expect("a part");
    }
    assert_eq!((source.pinned_pages(), pages.pinned_count()), (0, 0));
}

#[test]
fn a_hold_is_divided_inside_a_page() {
    let source = source(16);
    let pages = pages(&source);
    let range = |first, last| PageRange::new(first, last).expect("it is a range");
    for border in 0..8 {
        pages.hold(range(0, 7)).expect("there is memory");
        pages.hold(range(2, 9)).expect("there is memory");
        let parts = [range(0, border), range(border, 7)];
        pages.divide(parts).expect("there is memory");
        assert_eq!(source.pinned_pages(), 10);
        pages.release(parts[0]);
        pages.release(range(2, 9));
        assert_eq!(source.pinned_pages(), 8 - border);
        pages.release(parts[1]);
        assert_eq!((source.pinned_pages(), pages.pinned_count()), (0, 0));
    }
}
