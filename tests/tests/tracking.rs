//! Dirty tracking of an address space: large pages cut ahead of it, what was written to as bytes of the
//! memory behind it, and large pages again afterwards.

use std::sync::Arc;

use iopt::ioas::{DirtyBitmap, DirtyError, Forget, Holes, Ioas, Mapping, Pages, Place};
use iopt::pin::{Simulated, Source};
use iopt_formats::amd::V1;
use iopt_formats::armv8::Stage2;
use iopt_formats::vtd::SecondStage;
use iopt_formats::{Iova, IovaRange, PageSize, Prot};
use iopt_tests::configuration::dirty_stage2;
use iopt_tests::space::fault::Faults;
use iopt_tests::space::witness::{Making, Witness, witness};

const START: u64 = 0x4000_0000;

const MIB_2: u64 = 2 << 20;

fn range(start: u64, len: u64) -> IovaRange {
    IovaRange::with_len(Iova::new(start), len).expect("it does not wrap")
}

struct Scene {
    ioas: Ioas,
    memory: Arc<Simulated>,
    pages: Arc<Pages>,
    witness: Box<dyn Witness>,
}

impl Scene {
    /// Maps 4 MiB from byte 2 MiB of the memory on.
    fn new(witness: Box<dyn Witness>) -> Self {
        let memory = Arc::new(Simulated::new(PageSize::KIB_4, 2048));
        let pages = Pages::new(Arc::clone(&memory) as Arc<dyn Source>, None);
        let ioas = Ioas::new();
        ioas.attach(Arc::clone(witness.domain())).expect("it fits");
        ioas.map(Mapping {
            pages: &pages,
            offset: MIB_2,
            len: 2 * MIB_2,
            prot: Prot::RW,
            place: Place::Fixed(Iova::new(START)),
        })
        .expect("it is free");
        let entry = witness.entry_at(START).expect("it is mapped");
        assert!(entry.len_minus_one() >= MIB_2 - 1, "{entry}");
        Self {
            ioas,
            memory,
            pages,
            witness,
        }
    }

    fn read(&self, forget: Forget) -> Vec<u64> {
        let mut bits = [0; 128];
        let mut bitmap = DirtyBitmap::new(Iova::new(START), PageSize::KIB_4, &mut bits);
        let read = self.ioas.read_dirty(
            self.witness.domain(),
            range(START, 2 * MIB_2),
            Holes::Refused,
            forget,
            &mut bitmap,
        );
        read.expect("it is tracked");
        (0..1024)
            .map(|page| page << 12)
            .filter(|at| bitmap.is_set(Iova::new(START + at)))
            .collect()
    }
}

fn goes_around(witness: Box<dyn Witness>) {
    let scene = Scene::new(witness);
    let (ioas, domain) = (&scene.ioas, scene.witness.domain());
    let whole = range(START, 2 * MIB_2);
    ioas.cut(domain, range(START, MIB_2), PageSize::KIB_4)
        .expect("it changes live entries");
    let entry = |at| scene.witness.entry_at(START + at).expect("it is mapped");
    assert_eq!(entry(0x5000), range(START + 0x5000, 0x1000));
    assert_eq!(entry(MIB_2).len(), Some(MIB_2));
    ioas.set_dirty_tracking(domain, true).expect("it can");
    assert_eq!(scene.read(Forget::No), [0; 0]);

    assert!(scene.witness.soil(START + 0x5000));
    assert!(scene.witness.soil(START + MIB_2 + 0x123));
    // The page that was cut is known exactly, the other one whole.
    let large = (MIB_2..2 * MIB_2).step_by(0x1000);
    let expected: Vec<u64> = core::iter::once(0x5000).chain(large).collect();
    assert_eq!(scene.read(Forget::No), expected);
    let dirty = ioas
        .dirty_pages(domain, whole, Forget::Yes)
        .expect("it is tracked");
    let dirty: Vec<_> = dirty
        .iter()
        .map(|dirty| {
            assert!(Arc::ptr_eq(&dirty.pages, &scene.pages));
            (dirty.offset, dirty.range)
        })
        .collect();
    assert_eq!(
        dirty,
        [
            (MIB_2 + 0x5000, range(START + 0x5000, 0x1000)),
            (2 * MIB_2, range(START + MIB_2, MIB_2)),
        ]
    );
    assert_eq!(scene.read(Forget::No), [0; 0]);

    // What was written to before the pages are one again is not lost.
    assert!(scene.witness.soil(START + 0x7000));
    ioas.merge(domain, whole).expect("it changes live entries");
    assert!(entry(0).len_minus_one() >= MIB_2 - 1);
    let merged = scene.read(Forget::Yes);
    assert!(merged.contains(&0x7000) && merged.contains(&0));

    let oa = scene.memory.oa_of(512 + 7).expect("a page");
    assert_eq!(ioas.find_oa(oa, 0x800), [range(START + 0x7000, 0x800)]);
    assert_eq!(
        ioas.unmap(whole, Holes::Refused).expect("it is mapped"),
        2 * MIB_2
    );
    assert_eq!(ioas.find_oa(oa, 0x800), []);
    assert_eq!(scene.memory.pinned_pages(), 0);
}

#[test]
fn pages_of_amd_are_cut_tracked_and_merged() {
    let sizes = V1::new().with_dirty();
    goes_around(witness(
        sizes,
        Making::default(),
        &Arc::new(Faults::default()),
    ));
}

#[test]
fn pages_of_vtd_are_cut_tracked_and_merged() {
    let format = SecondStage::new(39)
        .expect("39 bits are a width")
        .with_dirty();
    goes_around(witness(
        format,
        Making::default(),
        &Arc::new(Faults::default()),
    ));
}

/// By default nobody says that entries may change their size while they are in use.
#[test]
fn pages_of_arm_are_not_cut_while_devices_use_them() {
    let format = Stage2::<12>::new(44, 44).expect("both are widths");
    let format = dirty_stage2(format);
    let witness = witness(format, Making::default(), &Arc::new(Faults::default()));
    let scene = Scene::new(witness);
    let (ioas, domain) = (&scene.ioas, scene.witness.domain());
    let refused = ioas.cut(domain, range(START, MIB_2), PageSize::KIB_4);
    assert!(matches!(refused, Err(DirtyError::Domain(_))), "{refused:?}");
    let entry = scene.witness.entry_at(START).expect("it is mapped");
    assert_eq!(entry.len(), Some(MIB_2));
}
