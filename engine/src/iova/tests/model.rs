//! Random calls against a model that knows nothing of words, chunks and blocks but where runs may lie.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use core::ops::Range;

use super::*;
use crate::intervals::random::{Random, rounds};

const CHUNK_PAGES: usize = 512;
const BLOCK_PAGES: usize = 512 * CHUNK_PAGES;

/// What is allocated, by first page.
struct Model {
    windows: Vec<Range<usize>>,
    live: BTreeMap<usize, usize>,
}

impl Model {
    /// Returns the free ranges, lowest first, as long as they can be.
    fn gaps(&self) -> Vec<Range<usize>> {
        let mut gaps = Vec::new();
        for window in &self.windows {
            let mut at = window.start;
            for (&start, &count) in self.live.range(window.clone()) {
                gaps.push(at..start);
                at = start + count;
            }
            gaps.push(at..window.end);
        }
        gaps.retain(|gap| !gap.is_empty());
        gaps
    }

    fn is_free(&self, pages: &Range<usize>) -> bool {
        let is_inside =
            |window: &Range<usize>| window.start <= pages.start && pages.end <= window.end;
        let below = self.live.range(..pages.end).next_back();
        self.windows.iter().any(is_inside)
            && below.is_none_or(|(start, count)| start + count <= pages.start)
    }

    /// Returns whether a run that is free lies where runs of its length may.
    fn may_lie(&self, run: Run, start: usize, end: usize) -> bool {
        let pages = start..start + run.count;
        if pages.end > end || !start.is_multiple_of(run.align) {
            return false;
        }
        let last = pages.end - 1;
        // What is longer takes its last chunk or block whole at first.
        let (is_place, whole) = if run.count <= 64 && run.align <= 64 {
            (start / 64 == last / 64, pages)
        } else if run.count < CHUNK_PAGES {
            let is_place = start.is_multiple_of(64) && start / CHUNK_PAGES == last / CHUNK_PAGES;
            (is_place, pages)
        } else if run.count < BLOCK_PAGES {
            let is_place =
                start.is_multiple_of(CHUNK_PAGES) && start / BLOCK_PAGES == last / BLOCK_PAGES;
            (is_place, start..pages.end.next_multiple_of(CHUNK_PAGES))
        } else {
            let is_place = start.is_multiple_of(BLOCK_PAGES);
            (is_place, start..pages.end.next_multiple_of(BLOCK_PAGES))
        };
        is_place && self.is_free(&whole)
    }

    /// Returns whether there is room for a run.
    fn has_room(&self, run: Run, end: usize) -> bool {
        let step = match run.count {
            0..CHUNK_PAGES => run.align,
            CHUNK_PAGES..BLOCK_PAGES => run.align.max(CHUNK_PAGES),
            _ => run.align.max(BLOCK_PAGES),
        };
        self.gaps().into_iter().any(|gap| {
            let starts = (gap.start.next_multiple_of(step)..gap.end).step_by(step);
            starts
                .into_iter()
                .any(|start| self.may_lie(run, start, end))
        })
    }
}

fn run(random: &mut Random) -> Run {
    let count = match random.below(20) {
        0..10 => 1 + random.index(4),
        10..14 => 1 + random.index(64),
        14..17 => 1 + random.index(CHUNK_PAGES),
        17..19 => CHUNK_PAGES + random.index(4 * CHUNK_PAGES),
        _ => BLOCK_PAGES + random.index(2) * random.index(3 * CHUNK_PAGES),
    };
    let align = if random.one_in(3) {
        1 << random.index(12)
    } else {
        count.next_power_of_two()
    };
    Run { count, align }
}

fn windows() -> Vec<Range<usize>> {
    let chunk = CHUNK_PAGES;
    let block = BLOCK_PAGES;
    Vec::from([
        1..1000,
        1030..1031,
        2 * chunk + 64..9 * chunk,
        9 * chunk + 1..14 * chunk,
        block..block + 3 * chunk + 7,
        2 * block..4 * block,
        4 * block + 5 * chunk..4 * block + 7 * chunk,
    ])
}

fn reach(random: &mut Random) -> Reach {
    let end = match random.below(4) {
        0 => 14 * CHUNK_PAGES - random.index(3),
        1 => random.index(5 * BLOCK_PAGES),
        _ => 5 * BLOCK_PAGES,
    };
    Reach {
        end,
        is_low_first: !random.one_in(4),
    }
}

fn check(space: &Space, model: &Model) {
    let gaps = model.gaps();
    let survey = space.survey(5 * BLOCK_PAGES);
    assert_eq!(
        survey.free_count,
        gaps.iter().map(ExactSizeIterator::len).sum::<usize>()
    );
    let largest = gaps.iter().map(ExactSizeIterator::len).max();
    assert_eq!(survey.largest_run, largest.unwrap_or(0));
    space.check_at_rest();
}

#[test]
fn random_calls_do_what_the_model_does() {
    for seed in 1..=rounds(40) as u64 {
        let mut random = Random::new(seed);
        let aperture = range(0, 5 * GIB - 1);
        let layout = Layout::new(aperture, PageSize::KIB_4).expect("few blocks");
        let windows = windows();
        let space = Space::new(layout, windows.clone().into_iter()).expect("memory");
        let live = BTreeMap::new();
        let mut model = Model { windows, live };
        let mut held = Vec::new();
        // Filled and emptied by turns.
        let mut is_filling = true;
        let mut refused_count = 0;
        for step in 0..if cfg!(miri) { 60 } else { 3000 } {
            if random.one_in(300) {
                is_filling = !is_filling;
            }
            if random.one_in(100) {
                space.leave_all();
            }
            if held.is_empty() || random.below(10) < if is_filling { 8 } else { 3 } {
                let (run, reach) = (run(&mut random), reach(&mut random));
                match space.take(run, &reach) {
                    Ok(start) => {
                        let pages = start..start + run.count;
                        assert!(model.is_free(&pages), "{run:?} at {start}, seed {seed}");
                        assert!(pages.end <= reach.end, "{run:?} at {start}, seed {seed}");
                        assert!(start.is_multiple_of(run.align), "{run:?} at {start}");
                        model.live.insert(start, run.count);
                        held.push((start, run.count));
                    }
                    Err(refusal) => {
                        assert_eq!(refusal, Refusal::NoRoom);
                        assert!(
                            !model.has_room(run, reach.end),
                            "{run:?}, seed {seed}, step {step}"
                        );
                        refused_count += 1;
                    }
                }
            } else {
                let (start, count) = held.swap_remove(random.index(held.len()));
                space.put(start, count);
                model.live.remove(&start);
            }
            if random.one_in(50) {
                check(&space, &model);
            }
        }
        assert!(cfg!(miri) || refused_count > 0);
        for (start, count) in held.drain(..) {
            space.put(start, count);
        }
        model.live.clear();
        check(&space, &model);
        space.leave_all();
        check(&space, &model);
        // Whole again, but for chunks that windows begin or end in.
        assert_eq!(space.survey(5 * BLOCK_PAGES).open_count, 5);
        let whole = Run {
            count: 2 * BLOCK_PAGES,
            align: 1,
        };
        let all = Reach {
            end: 5 * BLOCK_PAGES,
            is_low_first: true,
        };
        let taken = space.take(whole, &all);
        assert_eq!(taken, Ok(2 * BLOCK_PAGES));
    }
}

#[test]
fn every_page_is_given_out_before_a_refusal_and_all_are_free_again() {
    let layout = Layout::new(range(0, 5 * GIB - 1), PageSize::KIB_4).expect("few blocks");
    let windows = Vec::from([3..100, 600..600 + if cfg!(miri) { 70 } else { 3000 }]);
    let page_count: usize = windows.iter().map(ExactSizeIterator::len).sum();
    let space = Space::new(layout, windows.clone().into_iter()).expect("memory");
    let one = Run { count: 1, align: 1 };
    let all = Reach {
        end: layout.page_count(),
        is_low_first: true,
    };
    for _ in 0..2 {
        let mut pages: Vec<_> = core::iter::from_fn(|| space.take(one, &all).ok()).collect();
        pages.sort_unstable();
        assert!(pages.iter().copied().eq(windows.iter().cloned().flatten()));
        assert_eq!(space.survey(all.end).free_count, 0);
        for page in pages {
            space.put(page, 1);
        }
        assert_eq!(space.survey(all.end).free_count, page_count);
        space.check_at_rest();
    }
}
