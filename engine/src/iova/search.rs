//! Finding free pages, and taking them.

use core::iter;
use core::ops::Range;

use crate::iova::bits::{self, SMALL};
use crate::iova::block::{Block, LISTED, OPEN};
use crate::iova::layout::{CHUNK_COUNT, Run};
use crate::iova::slots::{Hold, Slot};
use crate::iova::space::{NoMemory, Space};
use crate::sync::atomic::{AtomicU64, Ordering, fence};
use crate::sync::pause;

/// Calls for which a thread leaves the first zone out that had nothing.
const SKIP_COUNT: usize = 64;

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
    /// Takes a run out of the word that the thread took from last, if it may lie there and does; nothing
    /// else. Returns the first page and the word.
    #[inline]
    pub(super) fn take_quick(&self, run: Run, reach: &Reach) -> Option<(usize, &AtomicU64)> {
        let hold = self.slots.mine().hold(!reach.is_low_first);
        let chunk = hold.chunk();
        // For a thread that keeps to none it is 0.
        let end = self.layout.first_page(chunk.wrapping_add(1));
        if run.count > SMALL || run.align > SMALL || end > reach.end {
            return None;
        }
        let at = hold.word();
        let word = self.block_of(chunk)?.pages(chunk).get(at)?;
        let bit = bits::take_in_word(word, run.count, run.align.trailing_zeros() as usize)?;
        Some((self.layout.first_page(chunk) + at * SMALL + bit, word))
    }

    /// Takes a run of one page at least, and returns the first page.
    #[cfg(test)]
    pub(super) fn take(&self, run: Run, reach: &Reach) -> Result<usize, Refusal> {
        match self.take_quick(run, reach) {
            Some((page, _)) => Ok(page),
            None => self.take_elsewhere(run, reach),
        }
    }

    /// As [`take_quick`](Self::take_quick), in all of a chunk up to `end`.
    fn take_held(&self, hold: &Hold, run: Run, end: usize) -> Option<usize> {
        let chunk = hold.chunk();
        let block = self.block_of(chunk)?;
        let align_lg2 = run.align.trailing_zeros() as usize;
        let end = self.layout.pages_below(chunk, end);
        let words = block.pages(chunk);
        let page = bits::take_small(words, hold.word(), run.count, align_lg2, end)?;
        hold.note_word(page / SMALL);
        Some(self.layout.first_page(chunk) + page)
    }

    /// Takes a run wherever there is one.
    #[cold]
    pub(super) fn take_elsewhere(&self, run: Run, reach: &Reach) -> Result<usize, Refusal> {
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

    /// Takes a run out of the lowest listed chunk that has one, and keeps to that.
    fn take_listed(&self, slot: &Slot, run: Run, zone: &Range<usize>) -> Option<usize> {
        let mut marked = self.listed.iter(self.layout.blocks(zone));
        marked.find_map(|index| {
            let block = self.directory.get(index)?;
            let span = self.layout.chunks_in(index, zone);
            let found = block.flagged(LISTED, span).find_map(|chunk| {
                let chunk = index * CHUNK_COUNT + chunk;
                // Looked at first, so that a search for a long run leaves short ones where they are.
                if self.find_in_chunk(block, chunk, run, zone.end).is_none() {
                    if bits::free_count(block.pages(chunk)) == 0 {
                        // Others used it up.
                        self.leave(chunk);
                    }
                    return None;
                }
                if !block.hold_listed(chunk) {
                    return None;
                }
                self.enter(slot, block, chunk);
                self.take_in_chunk(slot, block, chunk, run, zone.end)
            });
            if found.is_none() {
                self.listed.clear_unless(index, || block.has(LISTED));
            }
            found
        })
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
                continue;
            }
            let last = chunk + count - 1;
            let page_count = self.layout.page_in_chunk(run.count);
            if page_count > 0 {
                open_chunk(block, last, page_count);
                if count == 1 {
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
            let mut open = block.flagged(OPEN, span);
            open.find_map(|chunk| visit(block, index * CHUNK_COUNT + chunk))
        })
    }

    /// Makes whole chunks of those of which nothing is used, also if threads keep to them.
    fn close_idle(&self, zone: &Range<usize>) {
        self.find_open(zone, |block, chunk| {
            if bits::is_free(block.pages(chunk), self.layout.chunk_pages()) {
                self.close_chunk(block, chunk);
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
