//! Address spaces that were written down: whoever reads them back believes nothing.

use std::sync::Arc;

use iopt::domain::{Domain, TableDomain};
use iopt::invalidation::NoHardware;
use iopt::ioas::{Ioas, Mapping, Pages, Place, RestoreError};
use iopt::mem::Heap;
use iopt::pin::{Simulated, Source};
use iopt::radix::Table;
use iopt_formats::vtd::SecondStage;
use iopt_formats::{Iova, IovaRange, PageSize, Prot};

/// How many pages the memory of each name has.
const PAGES: [u64; 2] = [64, 8];

/// Memory, by its names.
struct Memory {
    sources: [Arc<Simulated>; 2],
    pages: [Arc<Pages>; 2],
}

impl Memory {
    fn new() -> Self {
        let sources = PAGES.map(|count| Arc::new(Simulated::new(PageSize::KIB_4, count)));
        let pages = sources.each_ref().map(|source| {
            let source = Arc::clone(source) as Arc<dyn Source>;
            Pages::new(source, None)
        });
        Self { sources, pages }
    }

    fn restore(&self, bytes: &[u8]) -> Result<Ioas, RestoreError> {
        let pages = |name: u64| self.pages.get(usize::try_from(name).ok()?).cloned();
        Ioas::from_saved(bytes, pages, &[])
    }

    fn save(&self, ioas: &Ioas) -> Vec<u8> {
        let name = |pages: &Arc<Pages>| u64::from(Arc::ptr_eq(pages, &self.pages[1]));
        ioas.save(name).expect("nobody uses it")
    }

    fn is_pinned(&self) -> bool {
        self.sources.iter().any(|source| source.pinned_pages() > 0)
    }
}

/// Bytes as they are, then with a right length and checksum.
pub fn saved(bytes: &[u8]) -> bool {
    let memory = Memory::new();
    if let Err(error) = memory.restore(bytes) {
        assert!(!error.to_string().is_empty());
    }
    let is_restored = sealed(bytes).is_some_and(|sealed| check(&memory, &sealed));
    assert!(!memory.is_pinned());
    is_restored
}

/// Writes the length and the checksum. `None` if there is no place for them.
fn sealed(bytes: &[u8]) -> Option<Vec<u8>> {
    let mut sealed = bytes.to_vec();
    sealed.truncate(bytes.len() / 8 * 8);
    let len = sealed.len() as u64;
    sealed.get_mut(24..32)?.copy_from_slice(&len.to_le_bytes());
    let (body, sum) = sealed.split_last_chunk_mut::<8>()?;
    *sum = u64::from(crc32fast::hash(body)).to_le_bytes();
    Some(sealed)
}

fn check(memory: &Memory, bytes: &[u8]) -> bool {
    let ioas = match memory.restore(bytes) {
        Ok(ioas) => ioas,
        Err(error) => {
            assert!(!error.to_string().is_empty());
            return false;
        }
    };
    // Domains are not restored here, and reservations may come in another order; what is written down of
    // what was read does not change any more.
    let once = memory.save(&ioas);
    let again = memory.restore(&once).expect("it was written down");
    assert_eq!(memory.save(&again), once);
    assert_eq!(again.iova_ranges(), ioas.iova_ranges());
    drop(again);
    assert!(!memory.is_pinned());
    let format = SecondStage::new(39).expect("39 bits are a width");
    let table = Table::new(format, Heap).expect("there is memory");
    let domain: Arc<dyn Domain> = Arc::new(TableDomain::new(table, NoHardware));
    if ioas.attach(Arc::clone(&domain)).is_ok() {
        ioas.detach(&domain).expect("it is attached");
    }
    ioas.unmap_all().expect("nobody has pinned anything");
    true
}

fn range(start: u64, len: u64) -> IovaRange {
    IovaRange::with_len(Iova::new(start), len).expect("it does not wrap")
}

/// An address space with some of everything, and an empty one.
pub fn seeds() -> Vec<Vec<u8>> {
    let memory = Memory::new();
    let ioas = Ioas::new();
    let empty = memory.save(&ioas);
    ioas.reserve(range(0xf000_0000, 0x1000_0000), 7)
        .expect("nothing is there");
    ioas.set_msi_window(Some(range(0x800_0000, 0x10_0000)))
        .expect("it is free");
    ioas.allow(&[range(0x1000, 0x700_0000)])
        .expect("nothing is reserved there");
    for (number, iova, offset, len) in [
        (0, 0x10_0000, 0x2000, 0x8000),
        (1, 0x20_0000, 0, 0x8000),
        (0, 0x40_0000, 0x3000, 0x1000),
    ] {
        ioas.map(Mapping {
            pages: &memory.pages[number],
            offset,
            len,
            prot: Prot::RW,
            place: Place::Fixed(Iova::new(iova)),
        })
        .expect("it is free");
    }
    let full = memory.save(&ioas);
    vec![empty, full]
}
