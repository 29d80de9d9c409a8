//! Comparing address spaces with their model.

use std::collections::BTreeSet;
use std::ops::RangeInclusive;
use std::sync::Arc;

use iopt::ioas::Quarantined;
use iopt_formats::{Iova, IovaRange, Prot};

use crate::check::{Mismatch, ensure_eq};
use crate::space::model::{ModelArea, ModelSpace, unreserved};
use crate::space::op::{Op, To};
use crate::space::witness::Seen;
use crate::space::world::{SPACE_COUNT, World};

/// Pages of a touched range that are looked at one by one.
const PAGE_LIMIT: u64 = 24;

const PAGE: u64 = 0x1000;

impl World {
    /// Compares what an operation touched, and all counts.
    pub(super) fn check_touched(&self, op: &Op) -> Result<(), Mismatch> {
        let at = |error: Mismatch| Mismatch::new(format!("after {op:x?}: {error}"));
        self.check_counts().map_err(at)?;
        let spaces = self.model.spaces.iter();
        let areas = spaces.flat_map(|space| space.areas.values().map(|area| area.range));
        let is_wide = matches!(
            op,
            Op::Attach { .. } | Op::Detach { .. } | Op::Replace { .. } | Op::Restore { .. }
        );
        let areas = areas.filter(|_| is_wide);
        for range in touched(op)
            .into_iter()
            .chain(areas)
            .chain(self.placed.iter().copied())
        {
            for domain in 0..self.setting.domains.len() {
                self.check_around(domain, range).map_err(at)?;
            }
        }
        Ok(())
    }

    /// Compares what is counted.
    fn check_counts(&self) -> Result<(), Mismatch> {
        for (number, source) in self.setting.sources.iter().enumerate() {
            let expected = self.model.pinned_count(number);
            ensure_eq(
                format_args!("pinned pages of source {number}"),
                &source.simulated.pinned_pages(),
                &expected,
            )?;
            ensure_eq(
                format_args!("pages of source {number} that know of a pin"),
                &source.pages.pinned_count(),
                &expected,
            )?;
        }
        for (number, budget) in self.setting.budgets.iter().enumerate() {
            ensure_eq(
                format_args!("bytes of budget {number}"),
                &budget.used(),
                &self.model.used[number],
            )?;
        }
        for (number, ioas) in self.spaces.iter().enumerate() {
            let space = &self.model.spaces[number];
            ensure_eq("areas", &ioas.area_count(), &space.areas.len())?;
            ensure_eq("domains", &ioas.domain_count(), &space.members.len())?;
            ensure_eq(
                "alignment",
                &ioas.alignment(),
                &self.model.alignment(number),
            )?;
            ensure_eq("quarantine", &ioas.quarantined(), &quarantined(space))?;
        }
        for (number, access) in self.accesses.iter().enumerate() {
            if let Some((access, _)) = access {
                let expected = self.model.accesses[number].pins.len();
                ensure_eq("pins of an access", &access.pin_count(), &expected)?;
            }
        }
        Ok(())
    }

    /// Compares the translations of a domain at the ends of `range` and inside.
    fn check_around(&self, domain: usize, range: IovaRange) -> Result<(), Mismatch> {
        let (start, last) = (range.start().get(), range.last().get());
        let middle = start + (last - start) / 2;
        let mut addresses = BTreeSet::from([start, middle, last]);
        addresses.extend(
            [start.checked_sub(1), last.checked_add(1)]
                .into_iter()
                .flatten(),
        );
        let page_count = (last - start) / PAGE + 1;
        let step = page_count.div_ceil(PAGE_LIMIT) * PAGE;
        let mut next = Some(start);
        while let Some(address) = next.filter(|&address| address < last) {
            addresses.insert(address);
            next = address.checked_add(step);
        }
        addresses
            .into_iter()
            .try_for_each(|iova| self.check_address(domain, iova))
    }

    fn check_address(&self, domain: usize, iova: u64) -> Result<(), Mismatch> {
        let Some(expected) = self.model.translation(domain, iova) else {
            return Ok(());
        };
        let expected = expected.and_then(|(oa, prot)| self.seen(domain, oa, prot));
        let found = self.setting.domains[domain].walk(iova)?;
        ensure_eq(
            format_args!("domain {domain} at {iova:#x}"),
            &found,
            &expected,
        )
    }

    /// Returns what hardware sees of a page that is mapped with `prot`.
    fn seen(&self, domain: usize, oa: u64, prot: Prot) -> Option<Seen> {
        let effective = self.model.facts.domains[domain].effective[prot.index()]?;
        Some(Seen {
            oa,
            can_read: effective.can_read(),
            can_write: effective.can_write(),
        })
    }

    /// Compares everything: every item of every table, every page of every source.
    ///
    /// # Errors
    ///
    /// The first [`Mismatch`].
    pub fn check_all(&self) -> Result<(), Mismatch> {
        self.check_counts()?;
        for (number, source) in self.setting.sources.iter().enumerate() {
            for (page, &count) in self.model.users[number].iter().enumerate() {
                let found = source.simulated.pin_count(page as u64);
                ensure_eq(
                    format_args!("pins of page {page} of source {number}"),
                    &found,
                    &u32::from(count > 0),
                )?;
            }
        }
        for number in 0..SPACE_COUNT {
            let free = unreserved(&self.model.spaces[number], IovaRange::FULL);
            ensure_eq("ranges", &self.spaces[number].iova_ranges(), &free)?;
        }
        (0..self.setting.domains.len()).try_for_each(|domain| self.check_domain(domain))
    }

    /// Compares every item of a domain's table.
    fn check_domain(&self, domain: usize) -> Result<(), Mismatch> {
        let mut space = self.model.spaces.iter();
        let space = space.find(|space| {
            let mut members = space.members.iter();
            members.any(|member| member.domain == domain)
        });
        let is_leaving = |space: &ModelSpace| space.leaving.contains(&domain);
        if self.model.spaces.iter().any(is_leaving) {
            return Ok(());
        }
        let mut bytes = 0;
        for item in self.setting.domains[domain].items()? {
            let last = item.iova + (item.len - 1);
            for (iova, oa) in [
                (item.iova, item.seen.oa),
                (last, item.seen.oa + (item.len - 1)),
            ] {
                let Some(expected) = self.model.translation(domain, iova) else {
                    continue;
                };
                let expected = expected.and_then(|(oa, prot)| self.seen(domain, oa, prot));
                let found = Some(Seen { oa, ..item.seen });
                ensure_eq(
                    format_args!("item of domain {domain} at {iova:#x}"),
                    &found,
                    &expected,
                )?;
            }
            let is_quarantined = space.and_then(|space| space.area_at(item.iova));
            if is_quarantined.is_none_or(|area| !area.is_quarantined) {
                bytes += item.len;
            }
        }
        let expected = space.map_or(0, |space| {
            let areas = space.areas.values();
            let held = areas.filter(|area| area.is_held && !area.is_quarantined);
            let doorbells = space.doorbells.iter();
            let doorbells = doorbells.filter(|doorbell| doorbell.domain == domain);
            held.map(ModelArea::byte_count).sum::<u64>()
                + doorbells
                    .map(|doorbell| doorbell.range.len_minus_one() + 1)
                    .sum::<u64>()
        });
        ensure_eq(format_args!("bytes in domain {domain}"), &bytes, &expected)
    }

    /// Checks that no pin, no charge and no table is left.
    pub(super) fn check_nothing_left(self) -> Result<(), Mismatch> {
        for (number, source) in self.setting.sources.iter().enumerate() {
            ensure_eq(
                format_args!("pages of source {number} at the end"),
                &source.simulated.pinned_pages(),
                &0,
            )?;
        }
        for budget in &self.setting.budgets {
            ensure_eq("a budget at the end", &budget.used(), &0)?;
        }
        for (number, domain) in self.setting.domains.into_iter().enumerate() {
            let left = domain.items()?;
            ensure_eq(
                format_args!("items of domain {number} at the end"),
                &left.len(),
                &0,
            )?;
            ensure_eq(
                format_args!("tables of domain {number} at the end"),
                &domain.compact()?,
                &0,
            )?;
            let memory = Arc::clone(domain.memory());
            drop(domain);
            ensure_eq(
                format_args!("table pages of domain {number} at the end"),
                &memory.page_count(),
                &0,
            )?;
        }
        Ok(())
    }
}

/// Returns what a space of the model keeps in quarantine.
fn quarantined(space: &ModelSpace) -> Quarantined {
    let areas = space.areas.values().filter(|area| area.is_quarantined);
    Quarantined {
        area_count: areas.clone().count(),
        bytes: areas.map(ModelArea::byte_count).sum(),
        domain_count: space.leaving.len(),
    }
}

/// Returns the ranges that an operation may have changed.
fn touched(op: &Op) -> Vec<IovaRange> {
    let at = |to: To, len: u64| match to {
        To::Fixed(iova) => IovaRange::with_len(Iova::new(iova), len),
        To::Anywhere => None,
    };
    let ends = |ends: RangeInclusive<u64>| {
        IovaRange::new(Iova::new(*ends.start()), Iova::new(*ends.end()))
    };
    match *op {
        Op::Map { slice, .. } => at(slice.to, slice.len).into_iter().collect(),
        Op::MapMany { ref slices, .. } => {
            let ranges = slices.iter().filter_map(|slice| at(slice.to, slice.len));
            ranges.collect()
        }
        Op::UnmapMany { ref ranges, .. } => ranges.clone(),
        Op::Copy { range, to, .. } | Op::Remap { range, to, .. } => {
            let to = range.len().and_then(|len| at(to, len));
            to.into_iter().chain([range]).collect()
        }
        Op::Split { iova, .. } => ends(iova.saturating_sub(1)..=iova).into_iter().collect(),
        Op::Unmap { range, .. } | Op::Protect { range, .. } | Op::Pin { range, .. } => vec![range],
        _ => Vec::new(),
    }
}
