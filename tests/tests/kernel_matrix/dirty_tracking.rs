//! What devices wrote to, for nine sizes of memory, with small leaves and with large ones.

use std::sync::Arc;

use iopt::ioas::{DirtyBitmap, DirtyError, Forget, Holes};
use iopt_formats::{Iova, PageSize};
use iopt_tests::sink::{GRANULE, LARGE_LEAF, ModelSink};

use crate::fixture::{BASE, Fixture, PAGE, Runs, dynamic, in_variants, memory, range};

in_variants!(
    crate::dirty_tracking::fixture,
    {
        kib_8: (8 << 10, false),
        kib_16: (16 << 10, false),
        kib_64: (64 << 10, false),
        kib_128: (128 << 10, false),
        kib_320: (320 << 10, false),
        mib_64: (64 << 20, false),
        mib_64_large: (64 << 20, true),
        mib_128: (128 << 20, false),
        mib_128_large: (128 << 20, true),
    },
    [
        a_domain_that_cannot_track_is_not_asked_to,
        tracking_begins_with_nothing_written_and_ends,
        what_a_domain_can_do_is_known_before,
        every_second_leaf_is_reported_once,
        every_second_leaf_is_reported_again_unless_it_is_forgotten,
    ]
);

/// A space whose memory is mapped once.
struct DirtyTracking {
    space: Fixture,
    len: u64,
    leaf: PageSize,
}

fn fixture(len: u64, is_large: bool) -> DirtyTracking {
    let (sink, leaf) = if is_large {
        (ModelSink::huge(), LARGE_LEAF)
    } else {
        (ModelSink::small(), GRANULE)
    };
    // Runs are huge pages in both, so that small leaves are none of the memory's doing.
    let space = Fixture::with(memory(len / PAGE, Runs::Huge), [sink].into_iter());
    let switched = space.ioas.set_page_by_page(!is_large);
    switched.expect("nothing is mapped");
    space.map(BASE, 0, len);
    assert_eq!(space.sinks[0].leaf_count() as u64, len / leaf.bytes());
    DirtyTracking { space, len, leaf }
}

impl DirtyTracking {
    fn sink(&self) -> &Arc<ModelSink> {
        &self.space.sinks[0]
    }

    fn track(&self, is_on: bool) {
        let tracked = self
            .space
            .ioas
            .set_dirty_tracking(&dynamic(self.sink()), is_on);
        tracked.expect("it can");
        assert_eq!(self.sink().is_tracking(), is_on);
    }

    /// Writes to every second leaf, from the first on.
    fn write(&self) {
        for start in (0..self.len).step_by(2 * self.leaf.bytes() as usize) {
            assert!(self.sink().write(Iova::new(BASE + start)), "it is mapped");
        }
    }

    /// Checks that a read sets exactly the bits of every second leaf, or none, in a bitmap that lies
    /// `place` bytes into a page; bits that were set stay, and nothing around is touched.
    fn check(&self, forget: Forget, place: usize, is_written: bool) {
        let bit_count = self.len / GRANULE.bytes();
        let byte_count = bit_count.div_ceil(8) as usize;
        let mut all = vec![0x5a; place + byte_count + 64];
        let bits = &mut all[place..place + byte_count];
        bits.fill(0);
        let mut bitmap = DirtyBitmap::new(Iova::new(BASE), GRANULE, bits);
        let read = self.space.ioas.read_dirty(
            &dynamic(self.sink()),
            range(BASE, self.len),
            Holes::Refused,
            forget,
            &mut bitmap,
        );
        read.expect("it is tracked");
        let leaf_bits = self.leaf.bytes() / GRANULE.bytes();
        for bit in 0..bit_count {
            let is_set = bits[(bit / 8) as usize] & 1 << (bit % 8) != 0;
            let wanted = is_written && (bit / leaf_bits).is_multiple_of(2);
            assert_eq!(is_set, wanted, "bit {bit}");
        }
        let around = all[..place].iter().chain(&all[place + byte_count..]);
        assert!(around.copied().all(|byte| byte == 0x5a));
    }
}

/// Where bitmaps lie in a page: at its start, in its middle, and where no word begins.
const PLACES: [usize; 3] = [0, 0x800, 0xff1];

fn a_domain_that_cannot_track_is_not_asked_to(fixture: &mut DirtyTracking) {
    let ioas = &fixture.space.ioas;
    let plain = fixture.space.watch(ModelSink::small().without_tracking());
    ioas.attach(dynamic(&plain)).expect("it need not track");
    let refused = ioas.set_dirty_tracking(&dynamic(&plain), true);
    assert!(matches!(refused, Err(DirtyError::Domain(_))));
    assert!(!plain.is_tracking());
    // The one beside it is not touched by that.
    fixture.track(true);
    fixture.write();
    fixture.check(Forget::Yes, 0, true);
    fixture.space.detach(&plain);
}

fn tracking_begins_with_nothing_written_and_ends(fixture: &mut DirtyTracking) {
    fixture.track(true);
    fixture.track(true);
    fixture.write();
    fixture.track(false);
    fixture.track(false);
    let mut bits = [0];
    let mut bitmap = DirtyBitmap::new(Iova::new(BASE), GRANULE, &mut bits);
    let read = fixture.space.ioas.read_dirty(
        &dynamic(fixture.sink()),
        range(BASE, PAGE),
        Holes::Refused,
        Forget::No,
        &mut bitmap,
    );
    assert!(matches!(read, Err(DirtyError::NotTracking)));
    assert_eq!(bitmap.count(), 0);
    // What was written before it begins again is forgotten, and what is written then is not lost.
    fixture.track(true);
    fixture.check(Forget::No, 0, false);
    fixture.write();
    fixture.check(Forget::No, 0, true);
    let stranger = dynamic(&Arc::new(ModelSink::small()));
    let tracked = fixture.space.ioas.set_dirty_tracking(&stranger, true);
    assert!(matches!(tracked, Err(DirtyError::NotAttached)));
}

fn what_a_domain_can_do_is_known_before(fixture: &mut DirtyTracking) {
    use iopt::domain::Domain as _;
    let plain = fixture.space.watch(ModelSink::small().without_tracking());
    fixture.space.ioas.attach(dynamic(&plain)).expect("it fits");
    for sink in [fixture.sink(), &plain] {
        let tracked = fixture.space.ioas.set_dirty_tracking(&dynamic(sink), true);
        assert_eq!(tracked.is_ok(), sink.caps().tracks_dirty);
    }
    assert_ne!(
        fixture.sink().caps().tracks_dirty,
        plain.caps().tracks_dirty
    );
    fixture.space.detach(&plain);
}

fn every_second_leaf_is_reported_once(fixture: &mut DirtyTracking) {
    fixture.track(true);
    for place in PLACES {
        fixture.write();
        fixture.check(Forget::Yes, place, true);
        fixture.check(Forget::Yes, place, false);
    }
}

fn every_second_leaf_is_reported_again_unless_it_is_forgotten(fixture: &mut DirtyTracking) {
    fixture.track(true);
    fixture.write();
    for place in PLACES {
        fixture.check(Forget::No, place, true);
        fixture.check(Forget::No, place, true);
    }
    fixture.check(Forget::Yes, 0, true);
    fixture.check(Forget::No, 0, false);
}
