//! What a table must say: an ordered map of entries and nothing clever.
//!
//! The model knows from the format what its contract promises (sizes, rights, widths) and decides
//! everything else by trying all possibilities: which size to use, what to refuse, which tables
//! must exist.

use std::collections::{BTreeMap, BTreeSet};

use iopt_formats::{Format, Geometry, Iova, IovaRange, Level, Oa, PageSize, PageSizes, Prot};

use crate::refusal::Refusal;

/// One translation.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Entry {
    /// First IOVA, a multiple of the size.
    pub start: Iova,
    /// Bytes that it translates.
    pub size: PageSize,
    /// Output address of the first byte.
    pub oa: Oa,
    /// What it grants.
    pub prot: Prot,
    /// Whether it says that it was written to.
    pub is_dirty: bool,
}

impl Entry {
    /// Returns the IOVA that it translates.
    pub fn range(&self) -> IovaRange {
        IovaRange::with_len(self.start, self.size.bytes()).expect("an aligned entry does not wrap")
    }

    /// Returns the output address of `iova`, which it translates.
    pub fn oa_of(&self, iova: Iova) -> Oa {
        Oa::new(self.oa.get() + (iova.get() - self.start.get()))
    }
}

/// Consecutive IOVA with consecutive output and equal rights.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Run {
    /// The IOVA.
    pub range: IovaRange,
    /// Output address of the first byte.
    pub oa: Oa,
    /// What all of it grants.
    pub prot: Prot,
}

/// The model of one table.
#[derive(Clone, Debug)]
pub struct Model<F> {
    format: F,
    entries: BTreeMap<Iova, Entry>,
    /// Level of the root.
    top: Level,
    /// Tables below the root by level and by IOVA over their span, empty ones included.
    tables: BTreeSet<(u8, u64)>,
    /// Tables that were taken out since somebody asked.
    unlinked: Vec<(Level, IovaRange)>,
}

impl<F: Format> Model<F> {
    /// Creates the model of an empty table.
    pub fn new(format: F) -> Self {
        let top = format.geometry().top;
        Self {
            format,
            entries: BTreeMap::new(),
            top,
            tables: BTreeSet::new(),
            unlinked: Vec::new(),
        }
    }

    /// Returns every entry, lowest first.
    pub fn entries(&self) -> impl Iterator<Item = Entry> {
        self.entries.values().copied()
    }

    /// Returns the number of entries.
    pub fn entry_count(&self) -> usize {
        self.entries.len()
    }

    /// Returns the entry that translates `iova`.
    pub fn lookup(&self, iova: Iova) -> Option<Entry> {
        let (_, entry) = self.entries.range(..=iova).next_back()?;
        entry.range().contains_addr(iova).then_some(*entry)
    }

    /// Returns the entries that translate a byte of `range`, lowest first.
    pub fn overlapping(&self, range: IovaRange) -> Vec<Entry> {
        let first = self
            .lookup(range.start())
            .map_or(range.start(), |entry| entry.start);
        self.entries
            .range(first..=range.last())
            .map(|(_, entry)| *entry)
            .collect()
    }

    /// Returns the maximal runs inside `range`.
    pub fn runs(&self, range: IovaRange) -> Vec<Run> {
        let mut runs: Vec<Run> = Vec::new();
        for entry in self.overlapping(range) {
            let part = entry
                .range()
                .intersection(range)
                .expect("the entry overlaps the range");
            let next = Run {
                range: part,
                oa: entry.oa_of(part.start()),
                prot: entry.prot,
            };
            match runs
                .last_mut()
                .and_then(|run| joined(*run, next).map(|both| (run, both)))
            {
                Some((run, both)) => *run = both,
                None => runs.push(next),
            }
        }
        runs
    }

    /// Returns the IOVA of `range` whose entries are dirty, neighbours joined.
    pub fn dirty(&self, range: IovaRange) -> Vec<IovaRange> {
        let dirty = self
            .overlapping(range)
            .into_iter()
            .filter(|entry| entry.is_dirty);
        join_ranges(dirty.map(|entry| entry.range()))
    }

    /// Returns the level of the root.
    pub fn top(&self) -> Level {
        self.top
    }

    /// Returns the number of tables, the root included.
    pub fn table_count(&self) -> usize {
        self.tables.len() + 1
    }

    /// Adds levels at the top until the root decodes `last`; the old root becomes a table.
    pub fn grow(&mut self, last: Iova) {
        while !self.reaches(self.top, last) {
            self.tables.insert((self.top.0, 0));
            self.top = Level(self.top.0 + 1);
        }
    }

    /// Returns whether a root of level `top` decodes `iova`, which the table decodes when grown.
    pub fn reaches(&self, top: Level, iova: Iova) -> bool {
        top >= self.format.geometry().max_top || iova.get() >> span_lg2::<F>(top.0) == 0
    }

    /// Adds the tables from the root down to `level` on the path of `iova`.
    fn link(&mut self, iova: Iova, level: Level) {
        for level in level.0..self.top.0 {
            self.tables
                .insert((level, iova.get() >> span_lg2::<F>(level)));
        }
    }

    /// Returns the tables whose span lies inside `range`.
    fn tables_in(&self, range: IovaRange) -> Vec<(u8, u64)> {
        let is_inside = |table: &&(u8, u64)| range.contains(table_range::<F>(**table));
        self.tables.iter().filter(is_inside).copied().collect()
    }

    fn unlink(&mut self, table: (u8, u64)) {
        if self.tables.remove(&table) {
            self.unlinked
                .push((Level(table.0), table_range::<F>(table)));
        }
    }

    /// Returns the tables that were taken out since the last call: level and IOVA.
    pub fn take_unlinked(&mut self) -> Vec<(Level, IovaRange)> {
        std::mem::take(&mut self.unlinked)
    }

    /// Adds the tables that mappings of `range` with the smallest pages need; entries above level
    /// 0 stay.
    pub fn reserve(&mut self, range: IovaRange) {
        self.grow(range.last());
        let bottom = F::level_of(self.page());
        let lg2 = span_lg2::<F>(bottom.0);
        for number in range.start().get() >> lg2..=range.last().get() >> lg2 {
            let start = Iova::new(number << lg2);
            match self.lookup(start).map(|entry| F::level_of(entry.size)) {
                Some(level) if level > bottom => self.link(start, level),
                _ => self.link(start, bottom),
            }
        }
    }

    /// Removes the tables inside `range` that hold nothing.
    pub fn compact(&mut self, range: IovaRange) {
        for table in self.tables_in(range) {
            let (level, number) = table;
            // Device contexts may still point to a root that there was before.
            let was_root = number == 0 && Level(level) >= self.format.geometry().top;
            if !was_root && self.overlapping(table_range::<F>(table)).is_empty() {
                self.unlink(table);
            }
        }
    }

    /// Returns whether an entry of `size` may start at `start`: none takes the place of a root.
    fn fits_beside_roots(&self, start: u64, size: PageSize) -> bool {
        let geometry = self.format.geometry();
        start != 0 || geometry.top == geometry.max_top || size.lg2() < span_lg2::<F>(geometry.top.0)
    }

    /// Returns the entries that mapping `range` to `oa` makes: at each step the largest size that
    /// divides both addresses and does not reach past the range.
    ///
    /// `None` if that takes more than `limit` entries, or if no size of `sizes` fits.
    pub fn pieces(
        &self,
        range: IovaRange,
        oa: Oa,
        sizes: PageSizes,
        limit: usize,
    ) -> Option<Vec<(Iova, Oa, PageSize)>> {
        let mut pieces = Vec::new();
        let (mut iova, mut oa) = (range.start(), oa);
        loop {
            let left = range.last().get() - iova.get();
            let fits = |lg2: &u8| {
                let size = PageSize::from_lg2(*lg2);
                sizes.contains(size)
                    && self.fits_beside_roots(iova.get(), size)
                    && iova.get().is_multiple_of(size.bytes())
                    && oa.get().is_multiple_of(size.bytes())
                    && size.bytes() - 1 <= left
            };
            let size = PageSize::from_lg2((0..64).rev().find(fits)?);
            pieces.push((iova, oa, size));
            if pieces.len() > limit {
                return None;
            }
            if size.bytes() - 1 == left {
                return Some(pieces);
            }
            iova = iova.checked_add(size.bytes())?;
            oa = oa.checked_add(size.bytes())?;
        }
    }

    /// Returns why `range` cannot be mapped to `oa`.
    pub fn map_refusals(
        &self,
        claim: IovaRange,
        range: IovaRange,
        oa: Oa,
        prot: Prot,
    ) -> Vec<Refusal> {
        let mut refusals = self.range_refusals(claim, range);
        if !self.page().divides(oa.get()) && !refusals.contains(&Refusal::Unaligned) {
            refusals.push(Refusal::Unaligned);
        }
        let last = u128::from(oa.get()) + u128::from(range.len_minus_one());
        if last >> self.format.oa_bits() != 0 {
            refusals.push(Refusal::OaWidth);
        }
        if self.format.effective(prot).is_none() {
            refusals.push(Refusal::Prot);
        }
        if let Some(entry) = self.overlapping(range).first() {
            refusals.push(Refusal::Occupied(entry.start.max(range.start())));
        }
        refusals
    }

    /// Returns why `range` cannot be named in an operation under `claim`.
    pub fn range_refusals(&self, claim: IovaRange, range: IovaRange) -> Vec<Refusal> {
        let mut refusals = Vec::new();
        let end = range.last().get().wrapping_add(1);
        if !self.page().divides(range.start().get()) || !self.page().divides(end) {
            refusals.push(Refusal::Unaligned);
        }
        if !claim.contains(range) {
            refusals.push(Refusal::OutsideClaim);
        }
        refusals
    }

    /// Returns why `range` is no sequence of whole entries: its first hole, the entry that its
    /// start divides and the entry that its end divides.
    pub fn exact_refusals(&self, range: IovaRange) -> Vec<Refusal> {
        let mut refusals = self.split_refusals(range);
        refusals.extend(self.first_hole(range).map(Refusal::Hole));
        refusals
    }

    /// Returns why `range` does not consist of whole entries and holes.
    pub fn split_refusals(&self, range: IovaRange) -> Vec<Refusal> {
        let entries = self.overlapping(range);
        let split = entries
            .iter()
            .filter(|entry| !range.contains(entry.range()));
        split
            .map(|entry| Refusal::Splits(entry.start, entry.size))
            .collect()
    }

    /// Returns the first address of `range` that is not mapped.
    pub fn first_hole(&self, range: IovaRange) -> Option<Iova> {
        let mut next = range.start();
        for entry in self.overlapping(range) {
            if entry.start > next {
                return Some(next);
            }
            let last = entry.range().last();
            if last >= range.last() {
                return None;
            }
            next = Iova::new(last.get() + 1);
        }
        Some(next)
    }

    /// Maps `range`, which [`map_refusals`](Self::map_refusals) does not refuse.
    pub fn map(&mut self, range: IovaRange, oa: Oa, prot: Prot) {
        let prot = self
            .format
            .effective(prot)
            .expect("the rights were checked");
        self.grow(range.last());
        self.fill(range, oa, prot, self.format.sizes());
    }

    /// Makes entries of `sizes`. An empty table in the way of a large entry is removed, except
    /// where the architecture forbids that without a break: smaller entries go there then.
    fn fill(&mut self, range: IovaRange, oa: Oa, prot: Prot, sizes: PageSizes) {
        let pieces = self
            .pieces(range, oa, sizes, usize::MAX)
            .expect("every page has a size");
        for (start, oa, size) in pieces {
            let entry = Entry {
                start,
                size,
                oa,
                prot,
                is_dirty: self.starts_dirty(oa, size, prot),
            };
            let in_the_way = self.tables_in(entry.range());
            if F::BREAK_BEFORE_MAKE && !in_the_way.is_empty() {
                let smaller = sizes.up_to(size).without(size);
                self.fill(entry.range(), oa, prot, smaller);
                continue;
            }
            for table in in_the_way {
                self.unlink(table);
            }
            self.insert(entry);
        }
    }

    /// Removes every entry that overlaps `range` and returns them.
    pub fn remove(&mut self, range: IovaRange) -> Vec<Entry> {
        let removed = self.overlapping(range);
        for entry in &removed {
            self.entries.remove(&entry.start);
        }
        removed
    }

    /// Adds an entry where nothing is mapped.
    pub fn insert(&mut self, entry: Entry) {
        let overlapping = self.overlapping(entry.range());
        assert_eq!(overlapping, [], "the model maps what is mapped");
        self.link(entry.start, F::level_of(entry.size));
        self.entries.insert(entry.start, entry);
    }

    /// Changes each entry that overlaps `range` in place.
    pub fn update(&mut self, range: IovaRange, change: impl Fn(&mut Entry)) {
        for entry in self.overlapping(range) {
            change(
                self.entries
                    .get_mut(&entry.start)
                    .expect("the entry exists"),
            );
        }
    }

    /// Returns the entries that an unmap of whole entries removes: those from the start of `range`
    /// up to its end or to the first hole.
    ///
    /// # Errors
    ///
    /// The one reason to refuse: the start lies inside an entry, or the last entry leaves `claim`.
    pub fn whole_entries(&self, claim: IovaRange, range: IovaRange) -> Result<Vec<Entry>, Refusal> {
        let mut entries: Vec<Entry> = Vec::new();
        for entry in self.overlapping(range) {
            let expected = entries.last().map_or(Some(range.start()), |before| {
                before.range().last().checked_add(1)
            });
            if entry.start < range.start() {
                return Err(Refusal::Splits(entry.start, entry.size));
            }
            if Some(entry.start) != expected {
                break;
            }
            if !claim.contains(entry.range()) {
                return Err(Refusal::OutsideClaim);
            }
            entries.push(entry);
        }
        Ok(entries)
    }

    /// Replaces the entry that starts at `start` by entries of the sizes that `size_at` says,
    /// which divide it.
    pub fn cut(
        &mut self,
        start: Iova,
        size_at: impl Fn(Iova) -> Option<PageSize>,
    ) -> Option<Vec<Entry>> {
        let old = self.entries.remove(&start)?;
        let mut pieces = Vec::new();
        let mut offset = 0;
        while offset < old.size.bytes() {
            let start = Iova::new(old.start.get() + offset);
            let size =
                size_at(start).filter(|size| *size <= old.size && size.divides(start.get()))?;
            let piece = Entry {
                start,
                size,
                oa: old.oa_of(start),
                ..old
            };
            self.insert(piece);
            pieces.push(piece);
            offset += size.bytes();
        }
        Some(pieces)
    }

    /// Joins entries inside `range` to the largest ones that could have been mapped instead, and
    /// returns those.
    pub fn merge(&mut self, range: IovaRange) -> Vec<Entry> {
        let mut merged = Vec::new();
        let sizes: Vec<_> = self.format.sizes().iter().collect();
        for size in sizes.into_iter().rev() {
            let starts = self
                .overlapping(range)
                .into_iter()
                .map(|entry| entry.start.get() & !size.offset_mask());
            let starts: BTreeSet<u64> = starts.collect();
            for start in starts {
                let block = IovaRange::with_len(Iova::new(start), size.bytes());
                let block = block.filter(|block| range.contains(*block));
                merged.extend(block.and_then(|block| self.merge_block(block, size)));
            }
        }
        merged
    }

    fn merge_block(&mut self, block: IovaRange, size: PageSize) -> Option<Entry> {
        let parts = self.overlapping(block);
        let [run] = self.runs(block)[..] else {
            return None;
        };
        if run.range != block || !size.divides(run.oa.get()) || parts.len() < 2 {
            return None;
        }
        if !self.fits_beside_roots(block.start().get(), size) {
            return None;
        }
        let is_dirty = parts.iter().any(|part| part.is_dirty);
        self.remove(block);
        for table in self.tables_in(block) {
            self.unlink(table);
        }
        let entry = Entry {
            start: block.start(),
            size,
            oa: run.oa,
            prot: run.prot,
            is_dirty,
        };
        self.insert(entry);
        Some(entry)
    }

    /// Gives `range`, which consists of whole entries, new rights; returns whether a dirty state
    /// went because the new rights cannot record it.
    pub fn protect(&mut self, range: IovaRange, prot: Prot) -> bool {
        let prot = self
            .format
            .effective(prot)
            .expect("the rights were checked");
        let tracks = self.tracks_dirty(prot);
        let was_dirty = self
            .overlapping(range)
            .iter()
            .any(|entry| entry.is_dirty && !tracks);
        self.update(range, |entry| {
            entry.prot = prot;
            entry.is_dirty &= tracks;
        });
        was_dirty
    }

    /// Returns whether hardware records writes through an entry of `prot`.
    pub fn tracks_dirty(&self, prot: Prot) -> bool {
        self.format.dirty_rule().is_some() && prot.can_write()
    }

    /// Returns whether a new entry says that it was written to, as ARM demands.
    pub fn starts_dirty(&self, oa: Oa, size: PageSize, prot: Prot) -> bool {
        let word = self.format.leaf_item(oa, size, prot, 0);
        self.format
            .dirty_rule()
            .is_some_and(|rule| rule.is_dirty(word))
    }

    /// Returns the smallest page that the configuration allows.
    pub fn page(&self) -> PageSize {
        self.format
            .sizes()
            .smallest()
            .expect("every format has a size")
    }

    /// Returns the format.
    pub fn format(&self) -> &F {
        &self.format
    }
}

/// Returns the base-2 logarithm of the bytes that a table of `level` below the root spans.
fn span_lg2<F: Format>(level: u8) -> u8 {
    F::item_lg2(Level(level)) + F::item_count_lg2()
}

/// Returns the IOVA that a table spans, given by level and by IOVA over its span.
fn table_range<F: Format>((level, number): (u8, u64)) -> IovaRange {
    let span = PageSize::from_lg2(span_lg2::<F>(level));
    let range = IovaRange::with_len(Iova::new(number << span.lg2()), span.bytes());
    range.expect("a table's span does not wrap")
}

/// Returns the parts of the 64-bit space that a table of `geometry` decodes, lowest first.
pub fn windows(geometry: Geometry) -> Vec<IovaRange> {
    let mask = geometry.va_mask();
    let start = 0_u64.wrapping_sub(geometry.bias());
    let last = start.wrapping_add(mask);
    let bounds = if start <= last {
        vec![(start, last)]
    } else {
        vec![(0, last), (start, u64::MAX)]
    };
    let ranges = bounds
        .into_iter()
        .map(|(start, last)| IovaRange::new(Iova::new(start), Iova::new(last)));
    ranges
        .map(|range| range.expect("each part rises"))
        .collect()
}

/// Returns the windows of a table of `geometry`, each divided in the middle.
pub fn halves(geometry: Geometry) -> Vec<IovaRange> {
    let divided = windows(geometry).into_iter().flat_map(|window| {
        let middle = window.start().get() + window.len_minus_one() / 2;
        let low = IovaRange::new(window.start(), Iova::new(middle));
        let high = IovaRange::new(Iova::new(middle + 1), window.last());
        [low, high].map(|half| half.expect("a window has two halves"))
    });
    divided.collect()
}

/// Joins ranges that touch; they rise.
pub fn join_ranges(ranges: impl IntoIterator<Item = IovaRange>) -> Vec<IovaRange> {
    let mut joined: Vec<IovaRange> = Vec::new();
    for range in ranges {
        match joined.last_mut() {
            Some(before) if before.last().checked_add(1) == Some(range.start()) => {
                *before = IovaRange::new(before.start(), range.last()).expect("the ranges rise");
            }
            _ => joined.push(range),
        }
    }
    joined
}

fn joined(run: Run, next: Run) -> Option<Run> {
    let is_next = run.range.last().checked_add(1)? == next.range.start()
        && run.oa.get().checked_add(run.range.len()?)? == next.oa.get()
        && run.prot == next.prot;
    let range = IovaRange::new(run.range.start(), next.range.last())?;
    is_next.then_some(Run { range, ..run })
}
