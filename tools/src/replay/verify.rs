//! The tables, read by the reference walker, against the model of the trace.

use iopt_formats::{Format, Iova, IovaRange, Oa, PageSize, Prot, Rights};
use iopt_reference::{Fault, Item, Rigour, Translation};
use iopt_rig::Physical;
use iopt_tools::model::Model;

use crate::reference::memory_type;
use crate::replay::VerifyMode;

/// Descriptions kept of what does not match.
const MAX_DETAILS: usize = 8;
/// Pages inside a range that are looked up after each operation, besides both ends.
const SAMPLES: u64 = 3;
/// More leaf items or tables than any replay has room for.
const MAX_ITEMS: u64 = 1 << 32;

/// A table to judge.
pub(crate) struct Subject<'a, F> {
    /// Its format.
    pub(crate) format: F,
    /// The same table for the reference walker.
    pub(crate) table: iopt_reference::Table,
    /// Where its words are.
    pub(crate) tables: &'a Physical,
}

/// Follows one domain and counts what does not match.
#[derive(Debug)]
pub(crate) struct Verifier {
    mode: VerifyMode,
    page: PageSize,
    model: Model,
    /// Pages compared.
    pub(crate) checked: u64,
    /// Pages that differ.
    pub(crate) mismatches: u64,
    /// The first of them in words.
    pub(crate) details: Vec<String>,
}

impl Verifier {
    /// Creates the verifier of an empty domain; addresses are multiples of `page`.
    pub(crate) fn new(mode: VerifyMode, page: PageSize) -> Self {
        let model = Model::default();
        Self {
            mode,
            page,
            model,
            checked: 0,
            mismatches: 0,
            details: Vec::new(),
        }
    }

    /// Returns whether the table is compared after each operation.
    pub(crate) fn is_stepwise(&self) -> bool {
        self.mode == VerifyMode::All
    }

    /// Notes a map.
    pub(crate) fn mapped(&mut self, range: IovaRange, oa: Oa, prot: Prot) {
        if self.mode != VerifyMode::None {
            // The trace was checked before it was replayed.
            let _checked = self.model.map(range, oa, prot);
        }
    }

    /// Notes an unmap.
    pub(crate) fn unmapped(&mut self, range: IovaRange) {
        if self.mode != VerifyMode::None {
            let _checked = self.model.unmap(range);
        }
    }

    /// Compares the pages at both ends of `range`, those next to it, and a few inside.
    pub(crate) fn check_around<F: Format>(&mut self, subject: &Subject<'_, F>, range: IovaRange) {
        let (first, last) = (
            range.start().get(),
            range.last().get() & !self.page.offset_mask(),
        );
        let page_count = ((last - first) >> self.page.lg2()) + 1;
        let below = first.checked_sub(self.page.bytes());
        let above = last.checked_add(self.page.bytes());
        let inside = (1..=SAMPLES)
            .map(|i| first + ((page_count * i / (SAMPLES + 1)) << self.page.lg2()))
            .filter(|&iova| iova != first && iova != last);
        let ends = [
            below,
            Some(first),
            above,
            Some(last).filter(|_| last != first),
        ];
        let pages: Vec<u64> = ends.into_iter().flatten().chain(inside).collect();
        for iova in pages {
            self.check_page(subject, Iova::new(iova));
        }
    }

    fn check_page<F: Format>(&mut self, subject: &Subject<'_, F>, iova: Iova) {
        if !subject.format.geometry().contains(iova) {
            return;
        }
        self.checked += 1;
        let found = subject.table.walk(subject.tables, iova.get());
        match (self.model.lookup(iova), found) {
            (None, Err(Fault::NotMapped { .. })) => {}
            (Some((oa, prot)), Ok(found)) => {
                if let Err(why) = agrees(&subject.format, oa, prot, &found) {
                    self.mismatch(1, &format!("iova {iova}: {why}"));
                }
            }
            (None, Ok(found)) => {
                self.mismatch(
                    1,
                    &format!("iova {iova}: translates to {:#x}, not mapped", found.oa),
                );
            }
            (None, Err(fault)) => {
                self.mismatch(1, &format!("iova {iova}: {fault} where nothing is mapped"));
            }
            (Some((oa, _)), Err(fault)) => {
                self.mismatch(1, &format!("iova {iova}: {fault}, expected {oa}"));
            }
        }
    }

    /// Compares every leaf of the table with the model, and the model with every leaf.
    pub(crate) fn check_all<F: Format>(&mut self, subject: &Subject<'_, F>) {
        if self.mode == VerifyMode::None {
            return;
        }
        let mut items = Vec::new();
        let scanned = subject
            .table
            .enumerate(subject.tables, MAX_ITEMS, Rigour::Strict, |item| {
                items.push(item);
            });
        if let Err(error) = scanned {
            self.mismatch(1, &format!("the table cannot be read: {error}"));
        }
        let mut matched_bytes = 0;
        for item in items {
            matched_bytes += self.check_item(&subject.format, &item);
        }
        // Items never overlap, so what they match can only fall short of what is mapped.
        let live_bytes = self.model.live_bytes();
        if matched_bytes < live_bytes {
            let missing = self.pages(live_bytes - matched_bytes);
            self.checked += missing;
            self.mismatch(
                missing,
                &format!("{missing} mapped pages do not translate as they should"),
            );
        }
    }

    /// Compares one leaf item with the mappings that it covers, and returns how many of its bytes
    /// lie in mappings.
    fn check_item<F: Format>(&mut self, format: &F, item: &Item) -> u64 {
        self.checked += self.pages(item.len);
        let mut mapped_bytes = 0;
        let mut offset = 0;
        while offset < item.len {
            let iova = Iova::new(item.iova.wrapping_add(offset));
            let left = item.len - offset;
            let found = Translation {
                oa: item.translation.oa.wrapping_add(offset),
                ..item.translation
            };
            let next = self.model.extent_from(iova);
            let piece = if let Some(extent) = next.filter(|extent| extent.range.contains_addr(iova))
            {
                let rest = extent.range.last().get() - iova.get();
                let piece = left.min(rest.saturating_add(1));
                mapped_bytes += piece;
                if let Err(why) = agrees(format, extent.oa_of(iova), extent.prot, &found) {
                    self.mismatch(self.pages(piece), &format!("iova {iova}: {why}"));
                }
                piece
            } else {
                let gap = next.map(|extent| extent.range.start().get() - iova.get());
                let piece = left.min(gap.unwrap_or(left));
                let why = format!("iova {iova}: translates to {:#x}, not mapped", found.oa);
                self.mismatch(self.pages(piece), &why);
                piece
            };
            offset += piece;
        }
        mapped_bytes
    }

    fn pages(&self, bytes: u64) -> u64 {
        bytes.div_ceil(self.page.bytes())
    }

    fn mismatch(&mut self, pages: u64, detail: &str) {
        self.mismatches += pages;
        if self.details.len() < MAX_DETAILS {
            self.details.push(detail.to_owned());
        }
    }
}

/// Compares one translation with what was asked for.
fn agrees<F: Format>(format: &F, oa: Oa, asked: Prot, found: &Translation) -> Result<(), String> {
    if found.oa != oa.get() {
        return Err(format!("translates to {:#x}, expected {oa}", found.oa));
    }
    let Some(expected) = format.effective(asked) else {
        return Err(format!("translates, but {asked} cannot be mapped"));
    };
    // Execution counts only where the format controls it.
    let executable = format.effective(asked.executable());
    let controls_execution = executable.is_some_and(Prot::can_execute);
    let rights = Rights::NONE
        .with_if(Rights::READ, found.read)
        .with_if(Rights::WRITE, found.write)
        .with_if(Rights::EXECUTE, found.execute && controls_execution)
        .with_if(Rights::USER, found.user);
    if rights != expected.rights() {
        return Err(format!("grants {rights}, expected {}", expected.rights()));
    }
    match memory_type(found.memory) {
        Some(memory) if memory != expected.memory() => Err(format!(
            "memory type {memory:?}, expected {:?}",
            expected.memory()
        )),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests;
