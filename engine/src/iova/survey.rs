//! What is where, found by looking at every bit.

#[cfg(test)]
use crate::iova::bits;
use crate::iova::bits::WORD_BITS;
use crate::iova::block::{Block, HELD, LISTED, OPEN};
use crate::iova::layout::CHUNK_COUNT;
use crate::iova::space::Space;
use crate::sync::atomic::{AtomicU64, Ordering};

/// What was found. Each bit counts as it is when it is looked at.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) struct Survey {
    /// Pages that are free.
    pub(super) free_count: usize,
    /// Pages of the longest run of free ones, whatever its alignment.
    pub(super) largest_run: usize,
    /// Chunks whose pages are given out one by one.
    pub(super) open_count: usize,
    /// Chunks that threads keep to.
    pub(super) held_count: usize,
    /// Open chunks that are listed as having room.
    pub(super) listed_count: usize,
    /// The end of a run that may go on.
    run: usize,
}

impl Survey {
    fn free(&mut self, count: usize) {
        self.free_count += count;
        self.run += count;
        self.largest_run = self.largest_run.max(self.run);
    }

    fn taken(&mut self) {
        self.run = 0;
    }

    /// Adds the lowest `count` bits of a word.
    fn word(&mut self, mut word: u64, mut count: usize) {
        while count > 0 {
            let free_count = (word.trailing_zeros() as usize).min(count);
            self.free(free_count);
            count -= free_count;
            word = word.checked_shr(free_count as u32).unwrap_or(0);
            let taken_count = (word.trailing_ones() as usize).min(count);
            if taken_count > 0 {
                self.taken();
            }
            count -= taken_count;
            word = word.checked_shr(taken_count as u32).unwrap_or(0);
        }
    }
}

impl Space {
    /// Looks at every page below `end`.
    pub(super) fn survey(&self, end: usize) -> Survey {
        let mut survey = Survey::default();
        for index in self.layout.blocks(&(0..end)) {
            let first = index * self.layout.block_pages();
            if !is_taken(&self.blocks, index) {
                survey.free((end - first).min(self.layout.block_pages()));
            } else if let Some(block) = self.directory.get(index)
                && self.open.is_marked(index)
            {
                self.survey_block(index, block, end, &mut survey);
            } else {
                survey.taken();
            }
        }
        survey
    }

    fn survey_block(&self, index: usize, block: &Block, end: usize, survey: &mut Survey) {
        for inside in self.layout.chunks_in(index, &(0..end)) {
            let chunk = index * CHUNK_COUNT + inside;
            let mut left = self.layout.pages_below(chunk, end);
            if !is_taken(block.chunks(), inside) {
                survey.free(left);
                continue;
            }
            let flags = block.flags(chunk);
            if flags & OPEN == 0 {
                survey.taken();
                continue;
            }
            survey.open_count += 1;
            survey.held_count += usize::from(flags & HELD != 0);
            survey.listed_count += usize::from(flags & LISTED != 0);
            for word in block.pages(chunk) {
                survey.word(word.load(Ordering::Relaxed), left.min(WORD_BITS));
                left = left.saturating_sub(WORD_BITS);
            }
        }
    }

    /// Checks V1 as far as bits show it, V4 and V5, while no call is running.
    #[cfg(test)]
    pub(super) fn check_at_rest(&self) {
        for index in 0..self.layout.block_count() {
            let Some(block) = self.directory.get(index) else {
                continue;
            };
            let is_open = self.open.is_marked(index);
            assert!(!is_open || is_taken(&self.blocks, index), "block {index}");
            let has_free = bits::find(block.chunks(), 0..CHUNK_COUNT, 1, 1, 0).is_some();
            assert!(is_open || !has_free, "a chunk of the closed block {index}");
            assert!(!has_free || self.roomy.is_marked(index), "block {index}");
            assert!(!block.has(LISTED) || self.listed.is_marked(index) || !is_open);
            let mut is_held = false;
            let mut is_whole = true;
            for inside in 0..CHUNK_COUNT {
                let chunk = index * CHUNK_COUNT + inside;
                let flags = block.flags(chunk);
                let free_count = bits::free_count(block.pages(chunk));
                is_held |= flags & HELD != 0;
                if flags & OPEN == 0 {
                    assert_eq!(free_count, 0, "pages of the closed chunk {chunk}");
                    is_whole &= !is_taken(block.chunks(), inside);
                    continue;
                }
                assert!(is_taken(block.chunks(), inside), "chunk {chunk}");
                assert!(
                    free_count == 0 || flags & (HELD | LISTED) != 0,
                    "chunk {chunk} is lost"
                );
                let is_idle = free_count == self.layout.chunk_pages();
                assert!(!is_idle || flags & HELD != 0, "chunk {chunk} lies idle");
                is_whole &= is_idle;
            }
            assert!(!is_open || !is_whole || is_held, "block {index} lies idle");
        }
    }
}

fn is_taken(words: &[AtomicU64], bit: usize) -> bool {
    let word = words.get(bit / WORD_BITS);
    word.is_none_or(|word| word.load(Ordering::Relaxed) >> (bit % WORD_BITS) & 1 != 0)
}
