//! An address space that outlives its program: written down, its tables handed over in shared memory, and
//! restored while devices could go on.

#![cfg(target_os = "linux")]
#![expect(
    unsafe_code,
    reason = "adopts memory that another address space has filled"
)]

use std::mem;
use std::sync::Arc;

use iopt::domain::{Domain, TableDomain};
use iopt::invalidation::NoHardware;
use iopt::ioas::{Holes, Ioas, Mapping, Pages, Place, RestoreError};
use iopt::mem::{Arena, ArenaConfig, Backing, HugePages};
use iopt::pin::{Access, Fixed, Kind, Source};
use iopt::radix::{Table, TableConfig};
use iopt_formats::vtd::SecondStage;
use iopt_formats::walk::Root;
use iopt_formats::{Iova, IovaRange, Oa, PageSize, Prot};

const MIB_2: u64 = 2 << 20;

type Shared = TableDomain<SecondStage, Arc<Arena>, NoHardware>;

fn config() -> ArenaConfig {
    ArenaConfig::new(4 << 20)
        .with_base(Oa::new(0x4130_0000))
        .with_huge_pages(HugePages::NotAsked)
        .with_backing(Backing::Shared)
}

fn format() -> SecondStage {
    SecondStage::new(39).expect("39 bits are a width")
}

/// Memory of the guest: the same output addresses in every program.
fn pages(first_mib: u64) -> Arc<Pages> {
    let start = Oa::new(first_mib << 20);
    let memory = Fixed::new(start, PageSize::KIB_4, 2048, Kind::Ram, Access::ReadWrite);
    let memory: Arc<dyn Source> = Arc::new(memory.expect("it fits 64 bits"));
    Pages::new(memory, None)
}

fn range(start: u64, len: u64) -> IovaRange {
    IovaRange::with_len(Iova::new(start), len).expect("it does not wrap")
}

/// What the predecessor leaves: the file of its arena, the root, and the bytes.
fn predecessor() -> (std::os::fd::OwnedFd, Root, Vec<u8>) {
    let arena = Arc::new(Arena::with_config(config()).expect("a small memory file"));
    let file = arena.shared_fd().expect("the arena is shared");
    let file = file.try_clone_to_owned().expect("one more descriptor");
    let table = Table::new(format(), arena).expect("there is memory");
    let domain = Arc::new(TableDomain::new(table, NoHardware));
    let ioas = Ioas::new();
    ioas.attach(Arc::clone(&domain) as Arc<dyn Domain>)
        .expect("it fits");
    for (number, pages) in (0..).zip([pages(1024), pages(4096)]) {
        for (iova, offset, len) in [(0x1000, 0x3000, 0x5000), (4 * MIB_2, 0, 2 * MIB_2)] {
            ioas.map(Mapping {
                pages: &pages,
                offset,
                len,
                prot: Prot::RW,
                place: Place::Fixed(Iova::new(iova + (number << 30))),
            })
            .expect("it is free");
        }
    }
    let bytes = ioas.save(|pages| pages.source().low_bits() >> 20);
    let bytes = bytes.expect("nobody uses it");
    let root = domain.table().root();
    // The program ends without a chance to take its tables down.
    mem::forget((ioas, domain));
    (file, root, bytes)
}

fn successor(file: std::os::fd::OwnedFd, root: Root) -> (Arc<Arena>, Arc<Shared>) {
    // SAFETY: the predecessor has ended, and nothing else writes to the file.
    let arena = unsafe { Arena::adopt(file, config()) };
    let arena = Arc::new(arena.expect("an arena of this length"));
    let table = Table::adopt(format(), Arc::clone(&arena), TableConfig::new(), root);
    let table = table.expect("a whole table");
    // SAFETY: devices start at the one root, which was adopted, and nothing is cached.
    unsafe { arena.free_rest() };
    (arena, Arc::new(TableDomain::new(table, NoHardware)))
}

#[test]
#[cfg_attr(miri, ignore = "needs memory files")]
fn an_address_space_goes_on_in_another_program() {
    let (file, root, bytes) = predecessor();
    let (_arena, domain) = successor(file, root);
    let dynamic = Arc::clone(&domain) as Arc<dyn Domain>;
    let find = |name| (name == 1024 || name == 4096).then(|| pages(name));
    let ioas = Ioas::from_saved(&bytes, find, &[Arc::clone(&dynamic)]);
    let ioas = ioas.expect("the table translates what was saved");
    assert_eq!(domain.table().root(), root);
    let oa = |iova| {
        let found = domain.table().lookup(Iova::new(iova));
        found.map(|found| found.oa().get())
    };
    assert_eq!(oa(0x1000), Some((1024 << 20) + 0x3000));
    assert_eq!(
        oa((1 << 30) + 5 * MIB_2 + 7),
        Some((4096 << 20) + MIB_2 + 7)
    );

    let more = ioas.map(Mapping {
        pages: &pages(1024),
        offset: 0,
        len: 0x1000,
        prot: Prot::R,
        place: Place::Anywhere,
    });
    assert_eq!(more.expect("there is room").start(), Iova::new(0x6000));
    let unmapped = ioas.unmap(range(4 * MIB_2, 2 * MIB_2), Holes::Refused);
    assert_eq!(unmapped.expect("it is an area"), 2 * MIB_2);
    assert_eq!(oa(4 * MIB_2), None);
    ioas.detach(&dynamic).expect("it is attached");
    assert_eq!(oa(0x1000), None);
}

#[test]
#[cfg_attr(miri, ignore = "needs memory files")]
fn other_memory_is_not_taken_for_the_same() {
    let (file, root, bytes) = predecessor();
    let (_arena, domain) = successor(file, root);
    let dynamic = Arc::clone(&domain) as Arc<dyn Domain>;
    let moved = |name| Some(pages(name + 2));
    let refused = Ioas::from_saved(&bytes, moved, &[dynamic]);
    let is_refused = matches!(refused, Err(RestoreError::Differs { number: 0, .. }));
    assert!(is_refused, "{refused:?}");
    // The table is as hardware walks it.
    assert!(domain.table().lookup(Iova::new(0x1000)).is_some());
}
