//! Finding free pages, and taking them.

use core::iter;
use core::ops::Range;

use iopt_formats::Iova;

use crate::iova::bits::{self, SMALL};
use crate::iova::block::{Block, LISTED, OPEN};
use crate::iova::layout::{CHUNK_COUNT, Run};
use crate::iova::room;
use crate::iova::slots::{Hold, Slot};
use crate::iova::space::{NoMemory, Space};
use crate::sync::atomic::{AtomicU64, Ordering, fence};
use crate::sync::pause;

/// Calls for which a thread leaves the first zone out that had nothing.
const SKIP_COUNT: usize = 64;

/// Listed chunks that a search looks at in vain, before it takes a free one: so it takes no longer where
/// there are many.
const LOOK_COUNT: usize = 8;

/// Searches before a refusal, if others move free pages all the time.
const ATTEMPT_COUNT: u32 = 128;

/// Which way round a space is searched, and up to where.
#[derive(Clone, Debug)]
pub(super) struct Reach {
    /// The first page that is out of reach.
    pub(super) end: usize,
    /// Whether what lies below 4 GiB comes first.
    pub(super) is_low_first: bool,
}

/// Why no pages are taken.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Refusal {
    /// It is for no pages.
    Empty,
    /// There is no such run.
    NoRoom,
    /// There is no memory for the allocator's own data.
    NoMemory,
}

impl From<NoMemory> for Refusal {
    fn from(NoMemory: NoMemory) -> Self {
        Self::NoMemory
    }
}

/// How a search goes about.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Effort {
    /// Looks where it is likely to pay.
    Hints,
    /// Looks everywhere, also at what others keep to.
    All,
}

impl Space {
    /// Takes a page out of the word that the thread took from last, if the word ends at `limit` or below;
    /// nothing else. Returns its number and the word.
    ///
    /// What is called in line keeps everything in registers: an atomic operation waits for all stores
    /// before it.
    #[inline]
    pub(super) fn take_page(&self, is_low_first: bool, limit: Iova) -> Option<(usize, &AtomicU64)> {
        let (at, word) = self.quick_word(is_low_first, limit)?;
        Some((at * SMALL + bits::take_one(word)?, word))
    }

    /// As [`take_page`](Self::take_page), for a run that lies in one word.
    #[inline]
    pub(super) fn take_quick(
        &self,
        run: Run,
        is_low_first: bool,
        limit: Iova,
    ) -> Option<(usize, &AtomicU64)> {
        if !(1..=SMALL).contains(&run.count) || run.align > SMALL {
            return None;
        }
        let (at, word) = self.quick_word(is_low_first, limit)?;
        let bit = bits::take_in_word(word, run.count, run.align.trailing_zeros() as usize)?;
        Some((at * SMALL + bit, word))
    }

    /// Returns the word that the thread took from last, and its number, if it ends at `limit` or below.
    #[inline]
    fn quick_word(&self, is_low_first: bool, limit: Iova) -> Option<(usize, &AtomicU64)> {
        let at = self.slots.mine().hold(!is_low_first).word();
        // For a thread that keeps to none there is no word.
        let word = self.word(at)?;
        (self.layout.last_of_word(at) <= limit).then_some((at, word))
    }

    /// Takes a run of one page at least, and returns the first page.
    #[cfg(test)]
    pub(super) fn take(&self, run: Run, reach: &Reach) -> Result<usize, Refusal> {
        let quick = reach.end.checked_sub(1).and_then(|last| {
            let limit = self.layout.range_of(last, 1).last();
            if run == (Run { count: 1, align: 1 }) {
                self.take_page(reach.is_low_first, limit)
            } else {
                self.take_quick(run, reach.is_low_first, limit)
            }
        });
        quick.map_or_else(|| self.take_elsewhere(run, reach), |(page, _)| Ok(page))
    }

    /// As [`take_quick`](Self::take_quick), in all of a chunk up to `end`.
    fn take_held(&self, hold: &Hold, run: Run, end: usize) -> Option<usize> {
        let chunk = hold.chunk();
        let block = self.block_of(chunk)?;
        let align_lg2 = run.align.trailing_zeros() as usize;
        let end = self.layout.pages_below(chunk, end);
        let words = block.pages(chunk);
        // Of another chunk if several threads share the slot.
        let from = self.layout.page_in_chunk(hold.word().wrapping_mul(SMALL)) / SMALL;
        let page = bits::take_small(words, from, run.count, align_lg2, end)?;
        let page = self.layout.first_page(chunk) + page;
        hold.note_word(page / SMALL);
        Some(page)
    }

    /// Takes a run wherever there is one.
    #[cold]
    pub(super) fn take_elsewhere(&self, run: Run, reach: &Reach) -> Result<usize, Refusal> {
        if run.count == 0 {
            return Err(Refusal::Empty);
        }
        let slot = self.slots.mine();
        let zones = self.zones(reach);
        let has_choice = zones.iter().all(|zone| !zone.is_empty());
        let first = usize::from(has_choice && slot.skips_first());
        for (index, zone) in zones.iter().enumerate().skip(first) {
            if let Some(page) = self.take_in(slot, run, zone, Effort::Hints)? {
                return Ok(page);
            }
            if index == 0 && has_choice {
                slot.skip_first(SKIP_COUNT);
            }
        }
        for attempt in 0..ATTEMPT_COUNT {
            let ended_count = self.slots.ended_count();
            for zone in zones.iter().chain(iter::once(&(0..reach.end))) {
                if let Some(page) = self.take_in(slot, run, zone, Effort::All)? {
                    return Ok(page);
                }
            }
            fence(Ordering::Acquire);
            if self.slots.begun_count() == ended_count {
                break;
            }
            pause(attempt);
        }
        Err(Refusal::NoRoom)
    }

    /// Returns where to look, and where then.
    fn zones(&self, reach: &Reach) -> [Range<usize>; 2] {
        let low = 0..self.layout.low_end().min(reach.end);
        let high = self.layout.low_end()..reach.end;
        if reach.is_low_first {
            [low, high]
        } else {
            [high, low]
        }
    }

    fn take_in(
        &self,
        slot: &Slot,
        run: Run,
        zone: &Range<usize>,
        effort: Effort,
    ) -> Result<Option<usize>, NoMemory> {
        if zone.end.saturating_sub(zone.start) < run.count {
            return Ok(None);
        }
        if run.count < self.layout.chunk_pages() {
            return self.take_pages(slot, run, zone, effort);
        }
        if effort == Effort::All {
            self.close_idle(zone);
        }
        if run.count < self.layout.block_pages() {
            self.take_chunks(slot, run, zone, effort)
        } else {
            self.take_blocks(slot, run, zone)
        }
    }

    /// Takes a run that is shorter than a chunk.
    fn take_pages(
        &self,
        slot: &Slot,
        run: Run,
        zone: &Range<usize>,
        effort: Effort,
    ) -> Result<Option<usize>, NoMemory> {
        if effort == Effort::Hints {
            let hold = slot.hold(zone.start >= self.layout.low_end());
            let held = hold.chunk();
            let found = if run.count <= SMALL && run.align <= SMALL {
                self.take_held(hold, run, zone.end)
            } else {
                let block = self.block_of(held);
                block.and_then(|block| self.take_in_chunk(slot, block, held, run, zone.end))
            };
            if found.is_some() {
                return Ok(found);
            }
            if let Some(page) = self.take_listed(slot, run, zone) {
                return Ok(Some(page));
            }
        }
        let start = self.take_chunks(slot, run, zone, effort)?;
        if start.is_some() || effort == Effort::Hints {
            return Ok(start);
        }
        // Others lose least where most is left.
        let half = self.layout.chunk_pages() / 2;
        let stolen = [half, 1].into_iter().find_map(|least| {
            self.find_open(zone, |block, chunk| {
                let is_roomy = bits::free_count(block.pages(chunk)) >= least;
                let page = is_roomy.then(|| self.take_in_chunk(slot, block, chunk, run, zone.end));
                page.flatten().inspect(|_| self.enter(slot, block, chunk))
            })
        });
        Ok(stolen)
    }

    /// Takes a run out of the lowest listed chunk that is known to have one, and keeps to that if runs like
    /// it come out of one word.
    fn take_listed(&self, slot: &Slot, run: Run, zone: &Range<usize>) -> Option<usize> {
        let mut left_count = LOOK_COUNT;
        let mut marked = self.listed.iter(self.layout.blocks(zone));
        marked.find_map(|index| {
            let block = self.directory.get(index)?;
            let span = self.layout.chunks_in(index, zone);
            let mut listed = block.listed(run.count, span);
            let found = listed.find_map(|chunk| {
                let chunk = index * CHUNK_COUNT + chunk;
                left_count = left_count.checked_sub(1)?;
                self.take_from_listed(slot, block, chunk, run, zone)
            });
            if found.is_none() {
                self.listed.clear_unless(index, || block.has(LISTED));
            }
            found
        })
    }

    fn take_from_listed(
        &self,
        slot: &Slot,
        block: &Block,
        chunk: usize,
        run: Run,
        zone: &Range<usize>,
    ) -> Option<usize> {
        // Looked at first, so that a search for a long run leaves short ones where they are.
        if self.find_in_chunk(block, chunk, run, zone.end).is_none() {
            match room::of_chunk(block.pages(chunk)) {
                // Others used it up.
                0 => self.leave(chunk),
                room => block.note_room(chunk, room),
            }
            return None;
        }
        if self.keeps_to(slot, run, zone) {
            if !block.hold_listed(chunk) {
                return None;
            }
            self.enter(slot, block, chunk);
        }
        self.take_in_chunk(slot, block, chunk, run, zone.end)
    }

    /// Returns whether a thread keeps to the chunk that it takes a run from: a long run is no reason to
    /// leave one that has room for short ones.
    fn keeps_to(&self, slot: &Slot, run: Run, zone: &Range<usize>) -> bool {
        let hold = slot.hold(zone.start >= self.layout.low_end());
        run.count <= SMALL || hold.chunk() == Hold::NONE
    }

    /// Returns where a run, shorter than a chunk, is free below `end` in a chunk.
    fn find_in_chunk(&self, block: &Block, chunk: usize, run: Run, end: usize) -> Option<usize> {
        if !self.layout.is_start(chunk, run.align) {
            return None;
        }
        let end = self.layout.pages_below(chunk, end);
        let words = block.pages(chunk);
        if run.count <= SMALL && run.align <= SMALL {
            let align_lg2 = run.align.trailing_zeros() as usize;
            return bits::find_small(words, run.count, align_lg2, end);
        }
        // Runs of several words begin with one.
        let align = run.align.clamp(SMALL, self.layout.chunk_pages());
        bits::find(words, 0..end, run.count, align, 0)
    }

    /// Takes a run, shorter than a chunk, out of a chunk.
    fn take_in_chunk(
        &self,
        slot: &Slot,
        block: &Block,
        chunk: usize,
        run: Run,
        end: usize,
    ) -> Option<usize> {
        let words = block.pages(chunk);
        loop {
            let page = self.find_in_chunk(block, chunk, run, end)?;
            let _move = slot.begin_move();
            if bits::take(words, page, run.count) {
                return Some(self.layout.first_page(chunk) + page);
            }
            if run.count > SMALL {
                // Pages were taken and are free again: nobody else need have seen them.
                self.settle_put(block, chunk, true);
            }
        }
    }

    /// Takes free chunks for a run that is shorter than a block, and opens the last one if the run ends
    /// inside. The thread keeps to it if that is the only one.
    fn take_chunks(
        &self,
        slot: &Slot,
        run: Run,
        zone: &Range<usize>,
        effort: Effort,
    ) -> Result<Option<usize>, NoMemory> {
        let marks = match effort {
            Effort::Hints => &self.roomy,
            Effort::All => &self.open,
        };
        let found = marks.iter(self.layout.blocks(zone)).find_map(|index| {
            let block = self.directory.get(index)?;
            let found = self.take_chunks_of(slot, index, block, run, zone);
            if found.is_none() {
                let has = || bits::find(block.chunks(), 0..CHUNK_COUNT, 1, 1, 0).is_some();
                self.roomy.clear_unless(index, has);
            }
            found
        });
        if found.is_some() {
            return Ok(found);
        }
        let fits = |index: &usize| self.find_chunks(*index, None, run, zone).is_some();
        let span = self.layout.blocks(zone);
        let mut from = span.start;
        while let Some(index) = bits::find(&self.blocks, from..span.end, 1, 1, 0) {
            from = index + 1;
            if !fits(&index) {
                continue;
            }
            let block = self.block_or_make(index)?;
            let _move = slot.begin_move();
            if !bits::take(&self.blocks, index, 1) {
                continue;
            }
            bits::store_prefix(block.chunks(), 0);
            self.open.mark(index);
            self.roomy.mark(index);
            if let Some(page) = self.take_chunks_of(slot, index, block, run, zone) {
                return Ok(Some(page));
            }
        }
        Ok(None)
    }

    fn take_chunks_of(
        &self,
        slot: &Slot,
        index: usize,
        block: &Block,
        run: Run,
        zone: &Range<usize>,
    ) -> Option<usize> {
        loop {
            let chunk = self.find_chunks(index, Some(block), run, zone)?;
            let count = run.count.div_ceil(self.layout.chunk_pages());
            let _move = slot.begin_move();
            if !bits::take(block.chunks(), chunk % CHUNK_COUNT, count) {
                if count > 1 {
                    // What was taken in vain is back, and others may have found the block full meanwhile (V4).
                    self.roomy.mark(index);
                }
                continue;
            }
            let last = chunk + count - 1;
            let page_count = self.layout.page_in_chunk(run.count);
            if page_count > 0 {
                open_chunk(block, last, page_count);
                if count == 1 && self.keeps_to(slot, run, zone) {
                    self.enter(slot, block, last);
                } else {
                    self.list_new(block, last);
                }
            }
            return Some(self.layout.first_page(chunk));
        }
    }

    /// Returns the lowest place for a run that begins with a chunk of a block, or of a block that is free
    /// as a whole.
    fn find_chunks(
        &self,
        index: usize,
        block: Option<&Block>,
        run: Run,
        zone: &Range<usize>,
    ) -> Option<usize> {
        let layout = &self.layout;
        let count = run.count.div_ceil(layout.chunk_pages());
        let first = index * CHUNK_COUNT;
        let span = layout.chunks_in(index, zone);
        let align = (run.align / layout.chunk_pages()).max(1);
        let offset = layout.absolute_block(index) * CHUNK_COUNT;
        let chunk = match block {
            Some(block) => bits::find(block.chunks(), span, count, align, offset)?,
            None => (span.start + offset).next_multiple_of(align) - offset,
        };
        let is_inside = chunk + count <= CHUNK_COUNT;
        let end = layout.first_page(first + chunk) + run.count;
        (is_inside && end <= zone.end).then_some(first + chunk)
    }

    /// Takes blocks for a run of one block at least, and opens the last one if the run ends inside.
    fn take_blocks(
        &self,
        slot: &Slot,
        run: Run,
        zone: &Range<usize>,
    ) -> Result<Option<usize>, NoMemory> {
        let layout = &self.layout;
        let parts = layout.parts(run.count);
        let count = run.count.div_ceil(layout.block_pages());
        let align = (run.align / layout.block_pages()).max(1);
        let offset = layout.absolute_block(0);
        let mut span = layout.blocks(zone);
        span.start = zone.start.div_ceil(layout.block_pages());
        loop {
            let found = bits::find(&self.blocks, span.clone(), count, align, offset);
            let Some(index) = found else {
                return Ok(None);
            };
            let start = index * layout.block_pages();
            if start + run.count > zone.end {
                return Ok(None);
            }
            let last = index + count - 1;
            let tail = if count > parts.blocks {
                Some(self.block_or_make(last)?)
            } else {
                None
            };
            let _move = slot.begin_move();
            if !bits::take(&self.blocks, index, count) {
                continue;
            }
            if let Some(block) = tail {
                let chunk_count = parts.chunks + usize::from(parts.pages > 0);
                if parts.pages > 0 {
                    let chunk = last * CHUNK_COUNT + parts.chunks;
                    open_chunk(block, chunk, parts.pages);
                    self.list_new(block, chunk);
                }
                bits::store_prefix(block.chunks(), chunk_count);
                self.open.mark(last);
                self.roomy.mark(last);
            }
            return Ok(Some(start));
        }
    }

    /// Calls `visit` with the open chunks of a zone, lowest first, until it returns something.
    fn find_open<R>(
        &self,
        zone: &Range<usize>,
        mut visit: impl FnMut(&Block, usize) -> Option<R>,
    ) -> Option<R> {
        self.open.iter(self.layout.blocks(zone)).find_map(|index| {
            let block = self.directory.get(index)?;
            let span = self.layout.chunks_in(index, zone);
            let mut open = block.open(span);
            open.find_map(|chunk| visit(block, index * CHUNK_COUNT + chunk))
        })
    }

    /// Makes whole chunks of those of which nothing is used, also if threads keep to them.
    fn close_idle(&self, zone: &Range<usize>) {
        self.find_open(zone, |block, chunk| {
            if bits::is_free(block.pages(chunk), self.layout.chunk_pages()) {
                // Whoever kept to it may have let go, and found nothing free meanwhile (V4).
                if !self.close_chunk(block, chunk) {
                    self.settle_put(block, chunk, true);
                }
            }
            None::<()>
        });
    }
}

/// Opens a chunk that the caller owns, whose first `count` pages stay its own.
fn open_chunk(block: &Block, chunk: usize, count: usize) {
    block.set(chunk, OPEN);
    bits::store_prefix(block.pages(chunk), count);
}
