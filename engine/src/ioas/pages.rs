//! Memory behind areas: pinned once, however many areas and accesses use it.
//!
//! [`Pages`] is a linear array of pages without IOVA. Areas, of any address space, and accesses *hold*
//! ranges of it, which may overlap. A page is pinned as long as somebody holds it.
//!
//! Pinned pages stand in one list, as runs of consecutive output addresses that equally many hold. A
//! hold divides the runs at its two ends, and each end stays a border as long as the hold lasts; then
//! the runs on both sides are one again. So a tree of all holds, which overlap, is not needed, and a
//! range that nobody else holds is one run that comes and goes.
//!
//! # Invariants
//!
//! - **N1** (once): at rest, the runs are exactly the pages that somebody holds, each with the number of
//!   holds; each was pinned once, and its output address is known.
//! - **N2** (charged): the budget is charged for the pages of the runs.
//! - **N3** (no failure on the way out): each hold begins where a run does and ends where one does, and
//!   runs count the holds that do. So releasing one divides no run, and allocates nothing.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;

use iopt_formats::Oa;

use crate::intervals::disjoint::DisjointList;
use crate::pin::{Budget, OaRun, PageRange, PinError, Source};
use crate::sync::{self, Mutex};

/// Memory that areas and accesses share.
pub struct Pages {
    source: Arc<dyn Source>,
    /// The source's; as a power of two.
    page_lg2: u8,
    page_count: u64,
    budget: Option<Arc<Budget>>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    runs: DisjointList<Run>,
    /// Pages of the runs.
    pinned_count: u64,
    /// Whether the exporter took the memory back: nothing more is pinned.
    is_revoked: bool,
}

/// Pinned pages.
#[derive(Clone, Copy, Debug)]
struct Run {
    /// Output address of the first.
    oa: Oa,
    /// How many hold them.
    count: u32,
    /// How many of these begin with the first page, and end with the last (N3).
    begin_count: u32,
    end_count: u32,
}

impl Pages {
    /// Creates the pages of a source, none of which is pinned yet. With a budget, pinned bytes are
    /// charged to it.
    pub fn new(source: Arc<dyn Source>, budget: Option<Arc<Budget>>) -> Arc<Self> {
        let state = State {
            runs: DisjointList::new(),
            pinned_count: 0,
            is_revoked: false,
        };
        let (page_lg2, page_count) = (source.page_size().lg2(), source.page_count());
        Arc::new(Self {
            source,
            page_lg2,
            page_count,
            budget,
            state: Mutex::new(&sync::PAGES, state),
        })
    }

    /// Returns where the pages come from.
    pub fn source(&self) -> &Arc<dyn Source> {
        &self.source
    }

    /// Returns the size of a page, as a power of two.
    pub(super) const fn page_lg2(&self) -> u8 {
        self.page_lg2
    }

    /// Returns the number of bytes; `u64::MAX` also for one more.
    pub const fn len(&self) -> u64 {
        self.page_count.saturating_mul(1 << self.page_lg2)
    }

    /// Returns whether there is none.
    pub const fn is_empty(&self) -> bool {
        self.page_count == 0
    }

    /// Returns how many pages are pinned.
    pub fn pinned_count(&self) -> u64 {
        self.state.lock().pinned_count
    }

    /// Holds `pages`, and pins those that nobody holds, under the lock: who holds many does so in pieces. Returns the first output address if they are one
    /// run.
    pub(super) fn hold(&self, pages: PageRange) -> Result<Option<Oa>, HoldError> {
        let mut state = self.state.lock();
        if state.is_revoked {
            return Err(HoldError::Revoked);
        }
        if state.runs.find(pages.first(), pages.last()).is_some() {
            return self.hold_some(&mut state, pages).map(|()| None);
        }
        self.charge(pages.count())?;
        let pinned = self.pin(&mut state, pages, true);
        if pinned.is_err() {
            self.discharge(pages.count());
        }
        let oa = pinned?;
        if oa.is_none() {
            state.border(pages, 1);
        }
        Ok(oa)
    }

    /// Holds pages of which some are held already.
    fn hold_some(&self, state: &mut State, pages: PageRange) -> Result<(), HoldError> {
        let holes = state.holes(pages)?;
        let new_count = holes
            .iter()
            .fold(0_u64, |sum, hole| sum.saturating_add(hole.count()));
        self.charge(new_count)?;
        let mut done_count = 0;
        let held = state.divide_at_ends(pages, self.page_lg2).and_then(|()| {
            holes.iter().try_for_each(|&hole| {
                self.pin(state, hole, false)?;
                done_count += 1;
                Ok(())
            })
        });
        if held.is_err() {
            for &done in &holes[..done_count] {
                self.unpin(state, done);
            }
            state.join_at_ends(pages, self.page_lg2);
            self.discharge(new_count);
            return held;
        }
        state.each_run_mut(pages, |run| run.count += 1);
        for &hole in &holes {
            // They came in with one hold, this one.
            state.each_run_mut(hole, |run| run.count -= 1);
        }
        state.border(pages, 1);
        Ok(())
    }

    /// Ends one hold of `pages`, and unpins what nobody holds any more.
    pub(super) fn release(&self, pages: PageRange) {
        let mut state = self.state.lock();
        let unpinned_count = match state.runs.find_exact(pages.first(), pages.last()) {
            Some(place) if state.runs.get(place).count == 1 => {
                state.runs.remove(place);
                state.pinned_count -= pages.count();
                self.source.unpin(pages);
                pages.count()
            }
            _ => self.release_some(&mut state, pages),
        };
        drop(state);
        self.discharge(unpinned_count);
    }

    /// Ends one hold of pages of which others are held on, or that are several runs.
    fn release_some(&self, state: &mut State, pages: PageRange) -> u64 {
        state.border(pages, -1);
        state.each_run_mut(pages, |run| run.count -= 1);
        let before = state.pinned_count;
        while let Some(unused) = state.take_unused(pages) {
            self.source.unpin(unused);
        }
        state.join_at_ends(pages, self.page_lg2);
        before - state.pinned_count
    }

    /// Divides a hold into one of both parts, which together are the whole and may share a page.
    pub(super) fn divide(&self, parts: [PageRange; 2]) -> Result<(), HoldError> {
        let mut state = self.state.lock();
        let [lower, upper] = parts;
        let divided = state.divide_at(upper.first(), self.page_lg2);
        let divided = divided.and_then(|()| match lower.last().checked_add(1) {
            Some(above) => state.divide_at(above, self.page_lg2),
            None => Ok(()),
        });
        if divided.is_err() {
            state.join_at_ends(upper, self.page_lg2);
            return divided;
        }
        if let Some(shared) = lower.intersection(upper) {
            state.each_run_mut(shared, |run| run.count += 1);
        }
        // The outer ends are those of the whole.
        state.change_at(lower.last(), |run| run.end_count += 1);
        state.change_at(upper.first(), |run| run.begin_count += 1);
        Ok(())
    }

    /// Lets nobody pin the pages any more, or again.
    pub(super) fn set_revoked(&self, is_revoked: bool) {
        self.state.lock().is_revoked = is_revoked;
    }

    /// Returns whether nobody may use the memory at this time.
    pub(super) fn is_revoked(&self) -> bool {
        self.state.lock().is_revoked
    }

    /// Calls `each` with the runs of `pages`, all of which are held, in order, until it returns false.
    /// Runs that follow each other at the same distance are one.
    pub(super) fn each_run(&self, pages: PageRange, mut each: impl FnMut(PageRange, Oa) -> bool) {
        let state = self.state.lock();
        let mut open: Option<(PageRange, Oa)> = None;
        for (first, last, run) in state.runs.overlapping(pages.first(), pages.last()) {
            let from = first.max(pages.first());
            let oa = Oa::new(run.oa.get() + ((from - first) << self.page_lg2));
            let Some(part) = PageRange::new(from, last.min(pages.last())) else {
                continue;
            };
            let joined = open.and_then(|(before, start)| {
                let end = start.get().checked_add(before.count() << self.page_lg2);
                let union = PageRange::new(before.first(), part.last());
                union
                    .filter(|_| end == Some(oa.get()))
                    .map(|union| (union, start))
            });
            if joined.is_none()
                && let Some((done, oa)) = open
                && !each(done, oa)
            {
                return;
            }
            open = joined.or(Some((part, oa)));
        }
        if let Some((done, oa)) = open {
            each(done, oa);
        }
    }

    fn charge(&self, page_count: u64) -> Result<(), HoldError> {
        match &self.budget {
            Some(budget) => Ok(budget.charge(self.bytes_of(page_count))?),
            None => Ok(()),
        }
    }

    fn discharge(&self, page_count: u64) {
        if let Some(budget) = &self.budget {
            budget.release(self.bytes_of(page_count));
        }
    }

    const fn bytes_of(&self, page_count: u64) -> u64 {
        page_count.saturating_mul(1 << self.page_lg2)
    }

    /// Pins `hole`, none of which is pinned, or nothing, with one hold. If it `is_hold`, of this very
    /// range, and one run, that is noted, and its first output address returned.
    fn pin(
        &self,
        state: &mut State,
        hole: PageRange,
        is_hold: bool,
    ) -> Result<Option<Oa>, HoldError> {
        let mut next = hole.first();
        let mut has_room = true;
        let mut whole = None;
        let mut add = |run: OaRun| {
            let Some(last) = run.page_count.checked_sub(1).map(|more| next + more) else {
                return;
            };
            whole = (run.page_count == hole.count() && is_hold).then_some(run.oa);
            if has_room {
                // A hold that is one run is noted at once.
                let border_count = u32::from(whole.is_some());
                let run = Run {
                    oa: run.oa,
                    count: 1,
                    begin_count: border_count,
                    end_count: border_count,
                };
                has_room = state.runs.insert(next, last, run).is_ok();
            }
            next = last.saturating_add(1);
        };
        if let Err(error) = self.source.pin(hole, &mut add) {
            // What it reported is void.
            state.forget(hole);
            return Err(error.into());
        }
        state.pinned_count += hole.count();
        if has_room {
            return Ok(whole);
        }
        self.unpin(state, hole);
        Err(HoldError::OutOfMemory)
    }

    /// Takes pages back that came in with this hold.
    fn unpin(&self, state: &mut State, pages: PageRange) {
        state.forget(pages);
        state.pinned_count -= pages.count();
        self.source.unpin(pages);
    }
}

impl State {
    /// Takes the runs of pages out that end where these do.
    fn forget(&mut self, pages: PageRange) {
        while let Some(place) = self.runs.find(pages.first(), pages.last()) {
            self.runs.remove(place);
        }
    }

    /// Returns the parts of `pages` that nobody holds.
    fn holes(&self, pages: PageRange) -> Result<Vec<PageRange>, HoldError> {
        let mut holes = Vec::new();
        let mut push = |first: u64, last: Option<u64>| -> Result<(), HoldError> {
            if let Some(hole) = last.and_then(|last| PageRange::new(first, last)) {
                holes.try_reserve(1).map_err(|_| HoldError::OutOfMemory)?;
                holes.push(hole);
            }
            Ok(())
        };
        let mut next = Some(pages.first());
        for (first, last, _) in self.runs.overlapping(pages.first(), pages.last()) {
            if let Some(from) = next {
                push(from, first.checked_sub(1))?;
            }
            next = last.checked_add(1);
        }
        if let Some(from) = next {
            push(from, Some(pages.last()))?;
        }
        Ok(holes)
    }

    /// Divides the runs that reach over the ends of `pages`.
    fn divide_at_ends(&mut self, pages: PageRange, page_lg2: u8) -> Result<(), HoldError> {
        self.divide_at(pages.first(), page_lg2)?;
        match pages.last().checked_add(1) {
            Some(above) => self.divide_at(above, page_lg2),
            None => Ok(()),
        }
    }

    fn divide_at(&mut self, page: u64, page_lg2: u8) -> Result<(), HoldError> {
        let Some(place) = self.runs.find(page, page) else {
            return Ok(());
        };
        let (first, last) = self.runs.bounds(place);
        if first == page {
            return Ok(());
        }
        let whole = *self.runs.get(place);
        let upper = Run {
            oa: Oa::new(whole.oa.get() + ((page - first) << page_lg2)),
            begin_count: 0,
            ..whole
        };
        self.runs.set_last(place, page - 1);
        if self.runs.insert(page, last, upper).is_err() {
            self.runs.set_last(place, last);
            return Err(HoldError::OutOfMemory);
        }
        self.change_at(page - 1, |lower| lower.end_count = 0);
        Ok(())
    }

    /// Joins the runs at the ends of `pages` that need not be divided any more.
    fn join_at_ends(&mut self, pages: PageRange, page_lg2: u8) {
        if let Some(above) = pages.last().checked_add(1) {
            self.join_at(above, page_lg2);
        }
        self.join_at(pages.first(), page_lg2);
    }

    fn join_at(&mut self, page: u64, page_lg2: u8) {
        let below = page
            .checked_sub(1)
            .and_then(|below| self.runs.find(below, below));
        let Some(below) = below else {
            return;
        };
        let (first, last) = self.runs.bounds(below);
        let lower = *self.runs.get(below);
        let Some(above) = self.runs.find(page, page).filter(|_| last + 1 == page) else {
            return;
        };
        let upper = *self.runs.get(above);
        let end = lower.oa.get().checked_add((page - first) << page_lg2);
        let is_border = lower.end_count > 0 || upper.begin_count > 0;
        if is_border || lower.count != upper.count || end != Some(upper.oa.get()) {
            return;
        }
        let (_, upper_last) = self.runs.bounds(above);
        self.runs.remove(above);
        if let Some(place) = self.runs.find(first, first) {
            self.runs.set_last(place, upper_last);
            self.runs.get_mut(place).end_count = upper.end_count;
        }
    }

    /// Counts a hold of `pages` more, or less, at its ends.
    fn border(&mut self, pages: PageRange, change: i32) {
        self.change_at(pages.first(), |run| {
            run.begin_count = run.begin_count.wrapping_add_signed(change);
        });
        self.change_at(pages.last(), |run| {
            run.end_count = run.end_count.wrapping_add_signed(change);
        });
    }

    fn change_at(&mut self, page: u64, change: impl FnOnce(&mut Run)) {
        if let Some(place) = self.runs.find(page, page) {
            change(self.runs.get_mut(place));
        }
    }

    /// Calls `change` with the runs of `pages`, at whose ends they are divided.
    fn each_run_mut(&mut self, pages: PageRange, mut change: impl FnMut(&mut Run)) {
        let mut next = self.runs.find(pages.first(), pages.last());
        while let Some(place) = next {
            let (first, _) = self.runs.bounds(place);
            if first > pages.last() {
                return;
            }
            change(self.runs.get_mut(place));
            next = self.runs.next(place);
        }
    }

    /// Takes the lowest runs of `pages` out that nobody holds, as far as they follow each other.
    fn take_unused(&mut self, pages: PageRange) -> Option<PageRange> {
        let mut runs = self.runs.overlapping(pages.first(), pages.last());
        let (first, mut last, _) = runs.find(|(.., run)| run.count == 0)?;
        for (next, reach, run) in runs {
            if run.count > 0 || next != last + 1 {
                break;
            }
            last = reach;
        }
        let unused = PageRange::new(first, last)?;
        self.forget(unused);
        self.pinned_count -= unused.count();
        Some(unused)
    }
}

impl fmt::Debug for Pages {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pages")
            .field("source", &self.source)
            .field("pinned_count", &self.pinned_count())
            .finish_non_exhaustive()
    }
}

/// Why pages cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HoldError {
    /// The source cannot pin them.
    #[error(transparent)]
    Pin(#[from] PinError),
    /// The budget does not allow that many.
    #[error(transparent)]
    Limit(#[from] crate::pin::LimitExceeded),
    /// Whoever asked for it changed their mind.
    #[error("the pin was cancelled")]
    Cancelled,
    /// Whoever lent the memory took it back.
    #[error("the memory was revoked")]
    Revoked,
    /// No memory to note them.
    #[error("no memory to note which pages are pinned")]
    OutOfMemory,
}
