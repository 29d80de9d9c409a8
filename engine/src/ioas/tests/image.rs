//! Address spaces that are written down and restored.

use alloc::vec::Vec;

use super::*;

/// An address space of two sources, three areas, a reservation, an allowed list and a window.
struct Scene {
    sources: [Arc<Simulated>; 2],
    pages: [Arc<Pages>; 2],
    ioas: Ioas,
}

impl Scene {
    fn new() -> Self {
        let sources = [source(64), source(8)];
        let pages = sources.each_ref().map(pages);
        let ioas = Ioas::new();
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
            ioas.map(fixed(&pages[number], iova, offset, len))
                .expect("it is free");
        }
        Self {
            sources,
            pages,
            ioas,
        }
    }

    fn save(&self) -> Vec<u8> {
        let name = |pages: &Arc<Pages>| u64::from(Arc::ptr_eq(pages, &self.pages[1]));
        self.ioas.save(name).expect("nobody uses it")
    }

    fn restore(&self, bytes: &[u8], domains: &[Arc<dyn Domain>]) -> Result<Ioas, RestoreError> {
        let pages = |name| self.pages.get(usize::try_from(name).ok()?).cloned();
        Ioas::from_saved(bytes, pages, domains)
    }

    fn pinned_count(&self) -> u64 {
        self.sources
            .iter()
            .map(|source| source.pinned_pages())
            .sum()
    }

    /// Returns a table with exactly what is mapped, as another program would have left it, without the
    /// page at `left_out` and with one more at `extra`.
    fn table(&self, left_out: Option<u64>, extra: Option<u64>) -> Arc<VtdDomain> {
        let format = SecondStage::new(39).expect("39 bits are a width");
        let table = Table::new(format, Heap).expect("there is memory");
        let mut claim = table.claim(range(0, 1 << 39)).expect("nobody else has one");
        let mut mapper = table
            .mapper(&mut claim)
            .expect("it is what the table decodes");
        let mut map = |iova: u64, oa: Oa| {
            if left_out != Some(iova) {
                let sync = mapper.map(range(iova, 0x1000), oa, Prot::RW);
                drop(sync.expect("it is free"));
            }
        };
        for page in 0..8 {
            let oa = |number: usize, page| self.sources[number].oa_of(page).expect("a page");
            map(0x10_0000 + page * 0x1000, oa(0, 2 + page));
            map(0x20_0000 + page * 0x1000, oa(1, page));
        }
        map(0x40_0000, self.sources[0].oa_of(3).expect("a page"));
        if let Some(extra) = extra {
            map(extra, Oa::new(0x1234_5000));
        }
        drop(claim);
        Arc::new(TableDomain::new(table, Callback::new(Box::new(|_| Ok(())))))
    }
}

#[test]
fn a_restored_space_is_what_was_saved() {
    let scene = Scene::new();
    let bytes = scene.save();
    let restored = scene.restore(&bytes, &[]).expect("it was saved");
    let again = restored.save(|pages| u64::from(Arc::ptr_eq(pages, &scene.pages[1])));
    assert_eq!(again.expect("nobody uses it"), bytes);
    assert_eq!(restored.iova_ranges(), scene.ioas.iova_ranges());
    let (table, dynamic, _) = domain();
    restored.attach(dynamic).expect("it fits");
    assert_eq!(looks_up(&table, 0x10_0000), scene.sources[0].oa_of(2));
    assert_eq!(scene.pinned_count(), 16);
    let chosen = restored.map(Mapping {
        place: Place::Anywhere,
        ..fixed(&scene.pages[0], 0, 0, 0x1000)
    });
    assert_eq!(chosen.expect("there is room"), range(0x1000, 0x1000));
}

#[test]
fn tables_are_taken_over_as_they_are() {
    let scene = Scene::new();
    let (_, dynamic, _) = domain();
    scene.ioas.attach(Arc::clone(&dynamic)).expect("it fits");
    let bytes = scene.save();
    scene.ioas.detach(&dynamic).expect("it is attached");
    let old = scene.table(None, None);
    let root = old.table().root();
    let dynamic: Arc<dyn Domain> = Arc::clone(&old) as Arc<dyn Domain>;
    let restored = scene.restore(&bytes, &[Arc::clone(&dynamic)]);
    let restored = restored.expect("it translates what was saved");
    assert_eq!((old.table().root(), scene.pinned_count()), (root, 16));
    assert_eq!(looks_up(&old, 0x20_7000), scene.sources[1].oa_of(7));
    let unmapped = restored.unmap(range(0x20_0000, 0x8000), Holes::Refused);
    assert_eq!(unmapped.expect("it is mapped"), 0x8000);
    assert_eq!((looks_up(&old, 0x20_7000), scene.pinned_count()), (None, 8));
    restored.detach(&dynamic).expect("it is attached");
    assert_eq!((looks_up(&old, 0x10_0000), scene.pinned_count()), (None, 0));
}

#[test]
fn tables_that_translate_something_else_are_refused() {
    let scene = Scene::new();
    let (_, dynamic, _) = domain();
    scene.ioas.attach(Arc::clone(&dynamic)).expect("it fits");
    let bytes = scene.save();
    scene.ioas.detach(&dynamic).expect("it is attached");
    let cases = [
        (Some(0x10_0000), None),
        (None, Some(0x10_8000)),
        (Some(0x10_7000), None),
        (Some(0x40_0000), None),
        (None, Some(0)),
        (None, Some((1 << 39) - 0x1000)),
    ];
    let case_count = if cfg!(miri) { 2 } else { cases.len() };
    for (left_out, extra) in cases.into_iter().take(case_count) {
        let old = scene.table(left_out, extra);
        let dynamic: Arc<dyn Domain> = Arc::clone(&old) as Arc<dyn Domain>;
        let refused = scene.restore(&bytes, &[dynamic]);
        assert!(
            matches!(refused, Err(RestoreError::Differs { number: 0, .. })),
            "{left_out:x?} {extra:x?}: {refused:?}"
        );
        assert_eq!(scene.pinned_count(), 0);
        // Nobody touched what the hardware may be walking.
        assert_eq!(looks_up(&old, 0x20_0000), scene.sources[1].oa_of(0));
    }
    let refused = scene.restore(&bytes, &[domain().1, domain().1]);
    assert!(matches!(
        refused,
        Err(RestoreError::DomainCount { saved: 1, given: 2 })
    ));
}

#[test]
fn a_corrupt_image_is_refused_whole() {
    let scene = Scene::new();
    let bytes = scene.save();
    let step = if cfg!(miri) { 67 } else { 1 };
    for place in (0..bytes.len()).step_by(step) {
        let mut corrupt = bytes.clone();
        corrupt[place] ^= 1 << (place % 8);
        assert!(scene.restore(&corrupt, &[]).is_err(), "byte {place}");
    }
    for len in (0..bytes.len()).step_by(step) {
        assert!(scene.restore(&bytes[..len], &[]).is_err(), "{len} bytes");
    }
}

/// Somebody who knows the checksum: whatever the words, the answer is an error or a space that keeps
/// the rules.
#[test]
#[cfg_attr(miri, ignore = "safe code alone, and much of it")]
fn words_with_a_right_checksum_are_not_believed_either() {
    let scene = Scene::new();
    let bytes = scene.save();
    let word_count = bytes.len() / 8;
    let mut refused_count = 0;
    let values = [
        0,
        1,
        2,
        3,
        12,
        64,
        0xfff,
        0x1000,
        1 << 32,
        u64::MAX - 1,
        u64::MAX,
    ];
    for (place, value) in (0..word_count - 1).flat_map(|place| values.map(|value| (place, value))) {
        let mut forged = bytes.clone();
        forged[8 * place..8 * place + 8].copy_from_slice(&value.to_le_bytes());
        let body = forged.len() - 8;
        let checksum = u64::from(crc32fast::hash(&forged[..body]));
        forged[body..].copy_from_slice(&checksum.to_le_bytes());
        match scene.restore(&forged, &[]) {
            Ok(ioas) => {
                let (_, dynamic, _) = domain();
                let _ = ioas.attach(dynamic);
                ioas.unmap_all().expect("nobody has pinned anything");
                assert_eq!(scene.pinned_count(), 0);
            }
            Err(_) => refused_count += 1,
        }
    }
    assert!(refused_count > word_count, "{refused_count}");
}
