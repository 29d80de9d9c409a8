//! What an address space is, in plain words: maps of areas, counts of users.
//!
//! Each operation returns what it gives, or every reason for which it may be refused; it is right if the
//! address space gives one of them.

mod access;
mod attach;
mod change;
mod map;

use std::collections::BTreeMap;
use std::sync::Arc;

use iopt_formats::{Iova, IovaRange, Prot};

use crate::space::facts::Facts;
use crate::space::refused::Refused;

pub(crate) use crate::space::model::access::join_runs;
pub use crate::space::model::access::{HeldPin, ModelAccess};
pub(crate) use crate::space::model::map::unreserved;

/// What an operation gives.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Output {
    /// Nothing.
    Nothing,
    /// Where it went.
    Range(IovaRange),
    /// Where several things went.
    Ranges(Vec<IovaRange>),
    /// How much went.
    Bytes(u64),
    /// Where a doorbell is.
    Iova(u64),
    /// What is pinned: IOVA and output address, joined.
    Runs(Vec<(IovaRange, u64)>),
}

/// What a model says of an operation.
pub type Verdict = Result<Output, Vec<Refused>>;

/// An area.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ModelArea {
    /// Where it lies.
    pub range: IovaRange,
    /// Which source.
    pub source: usize,
    /// The byte of it that the first address translates to.
    pub offset: u64,
    /// Rights.
    pub prot: Prot,
    /// Whether its pages are held, and mapped to every domain.
    pub is_held: bool,
    /// Whether it is in quarantine.
    pub is_quarantined: bool,
}

impl ModelArea {
    /// Returns the byte of the source that `iova` translates to.
    pub const fn byte_of(&self, iova: u64) -> u64 {
        self.offset + (iova - self.range.start().get())
    }

    /// Returns the number of bytes.
    pub const fn byte_count(&self) -> u64 {
        self.range.len_minus_one() + 1
    }
}

/// Who keeps areas out of a range.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Owner {
    /// A domain, by number.
    Domain(usize),
    /// A user.
    User(u64),
    /// Doorbells.
    Msi,
}

/// A domain of an address space.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Member {
    /// Its number.
    pub domain: usize,
    /// Whether what devices write to is tracked.
    pub is_tracking: bool,
    /// Addresses that devices wrote to, each with the entry that says so.
    pub soiled: Vec<(u64, IovaRange)>,
}

/// A doorbell that is mapped.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Doorbell {
    /// In which domain.
    pub domain: usize,
    /// First byte of its page.
    pub oa: u64,
    /// Where.
    pub range: IovaRange,
}

/// An address space.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct ModelSpace {
    /// Areas by their first address.
    pub areas: BTreeMap<u64, ModelArea>,
    /// Domains, in the order in which they came.
    pub members: Vec<Member>,
    /// Domains that left and are not flushed.
    pub leaving: Vec<usize>,
    /// What is reserved.
    pub reserved: Vec<(IovaRange, Owner)>,
    /// What is allowed, lowest first, neighbours joined.
    pub allowed: Vec<IovaRange>,
    /// Whether pages are mapped one by one.
    pub page_by_page: bool,
    /// Where doorbells go.
    pub msi: Option<IovaRange>,
    /// Doorbells.
    pub doorbells: Vec<Doorbell>,
}

impl ModelSpace {
    /// Returns the areas that share an address with `range`, lowest first.
    pub fn overlapping(&self, range: IovaRange) -> impl Iterator<Item = &ModelArea> {
        let first = self.areas.range(..=range.start().get()).next_back();
        let first = first.map_or(range.start().get(), |(&start, _)| start);
        self.areas
            .range(first..=range.last().get())
            .map(|(_, area)| area)
            .filter(move |area| area.range.overlaps(range))
    }

    /// Returns the area around `iova`.
    pub fn area_at(&self, iova: u64) -> Option<&ModelArea> {
        let (_, area) = self.areas.range(..=iova).next_back()?;
        area.range.contains_addr(Iova::new(iova)).then_some(area)
    }

    /// Returns the first address of `range` without an area.
    pub fn hole_in(&self, range: IovaRange) -> Option<u64> {
        let mut next = Some(range.start().get());
        for area in self.overlapping(range) {
            if next < Some(area.range.start().get()) {
                return next;
            }
            next = area.range.last().get().checked_add(1);
        }
        next.filter(|&next| next <= range.last().get())
    }
}

/// All address spaces of a test with all that they share.
#[derive(Clone, Debug)]
pub struct Model {
    /// What never changes.
    pub facts: Arc<Facts>,
    /// The address spaces.
    pub spaces: Vec<ModelSpace>,
    /// The accesses.
    pub accesses: Vec<ModelAccess>,
    /// How often each page of each source is held.
    pub users: Vec<Vec<u32>>,
    /// Whether a source's memory was taken back.
    pub is_revoked: Vec<bool>,
    /// Bytes charged to each budget.
    pub used: Vec<u64>,
}

impl Model {
    /// Creates `space_count` empty address spaces.
    pub fn new(facts: Arc<Facts>, space_count: usize) -> Self {
        let users = facts.sources.iter();
        let users = users.map(|source| vec![0; source.oas.len()]).collect();
        let is_revoked = vec![false; facts.sources.len()];
        let used = vec![0; facts.budgets.len()];
        Self {
            facts,
            spaces: vec![ModelSpace::default(); space_count],
            accesses: Vec::new(),
            users,
            is_revoked,
            used,
        }
    }

    /// Returns what every area of a space is aligned to.
    pub fn alignment(&self, space: usize) -> u64 {
        let space = &self.spaces[space];
        let domains = space.members.iter();
        let pages = domains.map(|member| self.facts.domains[member.domain].page.bytes());
        let page = if space.page_by_page { 0x1000 } else { 1 };
        pages.max().unwrap_or(1).max(page)
    }

    /// Returns the pages behind bytes of a source: first and last.
    fn pages(&self, source: usize, offset: u64, len: u64) -> (usize, usize) {
        let lg2 = self.facts.sources[source].page.lg2();
        (
            (offset >> lg2) as usize,
            ((offset + len - 1) >> lg2) as usize,
        )
    }

    /// Holds the pages behind bytes of a source, or says why not.
    fn hold(&mut self, source: usize, offset: u64, len: u64) -> Result<(), Refused> {
        if self.is_revoked[source] {
            return Err(Refused::Revoked);
        }
        let (first, last) = self.pages(source, offset, len);
        let unused = self.users[source][first..=last].iter();
        let new_count = unused.filter(|&&count| count == 0).count() as u64;
        let facts = &self.facts.sources[source];
        if let Some(budget) = facts.budget {
            let used = self.used[budget] + new_count * facts.page.bytes();
            if used > self.facts.budgets[budget] {
                return Err(Refused::Limit);
            }
            self.used[budget] = used;
        }
        for count in &mut self.users[source][first..=last] {
            *count += 1;
        }
        Ok(())
    }

    fn release(&mut self, source: usize, offset: u64, len: u64) {
        let (first, last) = self.pages(source, offset, len);
        let mut freed_count = 0;
        for count in &mut self.users[source][first..=last] {
            *count -= 1;
            freed_count += u64::from(*count == 0);
        }
        let facts = &self.facts.sources[source];
        if let Some(budget) = facts.budget {
            self.used[budget] -= freed_count * facts.page.bytes();
        }
    }

    /// Returns how many pages of a source are pinned.
    pub fn pinned_count(&self, source: usize) -> u64 {
        let users = self.users[source].iter();
        users.filter(|&&count| count > 0).count() as u64
    }

    /// Returns the pins of accesses inside an area, as numbers of access and pin.
    pub fn pins_in(&self, space: usize, range: IovaRange) -> Vec<(usize, usize)> {
        let mut found = Vec::new();
        for (number, access) in self.accesses.iter().enumerate() {
            if access.space != Some(space) {
                continue;
            }
            for (place, pin) in access.pins.iter().enumerate() {
                if pin.areas.iter().any(|area| area.overlaps(range)) {
                    found.push((number, place));
                }
            }
        }
        found
    }

    /// Puts areas that `next` has and this model does not in quarantine.
    pub fn quarantine_new(&mut self, next: &Self) {
        for (space, after) in next.spaces.iter().enumerate() {
            for (&start, area) in &after.areas {
                if self.spaces[space].areas.get(&start).map(|old| old.range) == Some(area.range) {
                    continue;
                }
                let mut area = area.clone();
                area.is_quarantined = true;
                area.is_held = true;
                self.hold_anyway(&area);
                self.spaces[space].areas.insert(start, area);
            }
        }
    }

    /// Puts an area in quarantine that was let go.
    pub(crate) fn quarantine_again(&mut self, space: usize, area: &ModelArea) {
        let start = area.range.start().get();
        self.hold_anyway(area);
        let area = ModelArea {
            is_held: true,
            is_quarantined: true,
            ..area.clone()
        };
        self.spaces[space].areas.insert(start, area);
    }

    /// Holds the pages of an area that were held a moment ago.
    fn hold_anyway(&mut self, area: &ModelArea) {
        let (first, last) = self.pages(area.source, area.offset, area.byte_count());
        let facts = &self.facts.sources[area.source];
        for count in &mut self.users[area.source][first..=last] {
            *count += 1;
            if let Some(budget) = facts.budget.filter(|_| *count == 1) {
                self.used[budget] += facts.page.bytes();
            }
        }
    }

    /// Adds an access.
    pub(crate) fn create(&mut self, space: usize) {
        self.accesses.push(ModelAccess {
            space: Some(space),
            ..ModelAccess::default()
        });
    }

    /// Returns what devices behind a domain should find at `iova`: `None` if the model cannot say.
    pub fn translation(&self, domain: usize, iova: u64) -> Option<Option<(u64, Prot)>> {
        let of = |space: &&ModelSpace| {
            let mut members = space.members.iter();
            members.any(|member| member.domain == domain)
        };
        let is_leaving = self
            .spaces
            .iter()
            .any(|space| space.leaving.contains(&domain));
        if is_leaving {
            return None;
        }
        let Some(space) = self.spaces.iter().find(of) else {
            return Some(None);
        };
        let doorbell = space.doorbells.iter().find(|doorbell| {
            doorbell.domain == domain && doorbell.range.contains_addr(Iova::new(iova))
        });
        if let Some(doorbell) = doorbell {
            let oa = doorbell.oa + (iova - doorbell.range.start().get());
            return Some(Some((oa, Prot::W.device())));
        }
        match space.area_at(iova) {
            Some(area) if area.is_quarantined => None,
            Some(area) if area.is_held => {
                let oa = self.facts.sources[area.source].oa_of(area.byte_of(iova));
                Some(Some((oa, area.prot)))
            }
            _ => Some(None),
        }
    }
}
