//! An address space as bytes, for a program that another one takes over from.
//!
//! # Format, version 1
//!
//! Words of 64 bits, little-endian:
//!
//! ```text
//! magic, version, flags, length in bytes
//! number of pages, areas, allowed ranges, reservations, domains, doorbells; window (start, last)
//! pages         name, lg2 of the page size, number of pages
//! areas         start, last, number of the pages, offset, rights
//! allowed       start, last
//! reservations  start, last, owner
//! domains       alignment asked for, aperture (start, last)
//! doorbells     number of the domain, output address, IOVA (start, last)
//! CRC-32 of everything above
//! ```
//!
//! Whoever reads it believes nothing: lengths, order, disjointness, bounds and alignment are those of
//! [`map`](Ioas::map) again, and the domains are asked what they translate.

mod error;

use alloc::sync::Arc;
use alloc::vec::Vec;

use iopt_formats::{Iova, IovaRange, Oa, PageSize, Prot};

use crate::domain::{Domain, Farewell, Flush, Grant, MapOp, Tenant, TenantId};
use crate::ioas::area::{Area, Ops, State};
use crate::ioas::map::may_grant;
use crate::ioas::msi::Doorbell;
use crate::ioas::unconfirmed::Unconfirmed;
use crate::ioas::{Attached, Ioas, Owner, Pages, is_aligned};
use crate::pin::{Access, Fixed, Kind};
use crate::stripes::EnterError;

pub use crate::ioas::image::error::{RestoreError, SaveError};

/// "IOPTIOAS".
const MAGIC: u64 = u64::from_le_bytes(*b"IOPTIOAS");

const VERSION: u64 = 1;

/// Every page is mapped by itself.
const PAGE_BY_PAGE: u64 = 1;

/// There is a window for doorbells.
const HAS_WINDOW: u64 = 2;

/// Words of the head, and of each record.
const HEAD: usize = 12;
const PAGES: usize = 3;
const AREA: usize = 5;
const ALLOWED: usize = 2;
const RESERVED: usize = 3;
const DOMAIN: usize = 3;
const DOORBELL: usize = 4;

impl Ioas {
    /// Writes down what is mapped here, what is reserved and allowed, and which domains there are. `name`
    /// names the memory to whoever restores it; what is pinned, and by whom, is not part of it.
    ///
    /// Nothing may change meanwhile, or it stands in the result or not.
    ///
    /// # Errors
    ///
    /// [`SaveError`] if an area is in use by an access, made or unmapped at this moment, or quarantined.
    pub fn save(&self, mut name: impl FnMut(&Arc<Pages>) -> u64) -> Result<Vec<u8>, SaveError> {
        let msi = self.attaching.lock();
        let entries = self.index.overlapping(IovaRange::FULL);
        let entries = entries.map_err(|_| SaveError::OutOfMemory)?;
        let mut pages: Vec<&Arc<Pages>> = Vec::new();
        let mut areas = Vec::new();
        for (range, area) in &entries {
            let status = area.status();
            if status.state != State::Live || status.pin_count > 0 {
                return Err(SaveError::Busy { area: *range });
            }
            let known = pages
                .iter()
                .position(|known| Arc::ptr_eq(known, area.pages()));
            let number = known.unwrap_or_else(|| {
                pages.push(area.pages());
                pages.len() - 1
            });
            areas.push((*range, number, area.offset(), status.prot));
        }
        let domains = self.domains.read();
        if !domains.leaving.is_empty() {
            return Err(SaveError::Leaving);
        }
        let allowed = domains.reservations.allowed();
        let reserved: Vec<_> = domains
            .reservations
            .reserved()
            .filter_map(|(range, owner)| match owner {
                Owner::User(owner) => Some((range, owner)),
                Owner::Domain(_) | Owner::Msi => None,
            })
            .collect();
        let place_of = |key| domains.list.iter().position(|attached| attached.key == key);
        let doorbells = msi.pages.iter();
        let doorbells =
            doorbells.filter_map(|doorbell| Some((place_of(doorbell.domain)?, doorbell)));
        let doorbells: Vec<_> = doorbells.collect();

        let mut writer = Writer(Vec::new());
        let flags = [
            (self.page_by_page(), PAGE_BY_PAGE),
            (msi.window.is_some(), HAS_WINDOW),
        ];
        let flags = flags.into_iter().filter(|(is_set, _)| *is_set);
        let word_count = HEAD
            + PAGES * pages.len()
            + AREA * areas.len()
            + ALLOWED * allowed.len()
            + RESERVED * reserved.len()
            + DOMAIN * domains.list.len()
            + DOORBELL * doorbells.len()
            + 1;
        let room = writer.0.try_reserve_exact(8 * word_count);
        room.map_err(|_| SaveError::OutOfMemory)?;
        writer.words([MAGIC, VERSION, flags.map(|(_, flag)| flag).sum()]);
        writer.words([8 * word_count as u64]);
        let counts = [
            pages.len(),
            areas.len(),
            allowed.len(),
            reserved.len(),
            domains.list.len(),
            doorbells.len(),
        ];
        writer.words(counts.map(|count| count as u64));
        writer.range(msi.window.unwrap_or(IovaRange::FULL));
        for &pages in &pages {
            let page_count = pages.source().page_count();
            writer.words([name(pages), pages.page_lg2().into(), page_count]);
        }
        for (range, number, offset, prot) in areas {
            writer.range(range);
            writer.words([number as u64, offset, prot.index() as u64]);
        }
        for &range in allowed {
            writer.range(range);
        }
        for (range, owner) in reserved {
            writer.range(range);
            writer.words([owner]);
        }
        for attached in &domains.list {
            let page = attached.caps.sizes.smallest().map_or(0, PageSize::lg2);
            writer.words([page.into()]);
            writer.range(attached.caps.aperture);
        }
        for (place, doorbell) in doorbells {
            writer.words([place as u64, doorbell.oa.get()]);
            writer.range(doorbell.range);
        }
        let checksum = crc32fast::hash(&writer.0);
        writer.words([checksum.into()]);
        Ok(writer.0)
    }

    /// Makes the address space again that [`save`](Self::save) wrote down. `pages` finds the memory by its
    /// name.
    ///
    /// Without `domains` there are none, and nothing is pinned, until they are attached. Else they are
    /// those that were attached, in the same order, with the tables that hardware goes on to walk: they
    /// are taken over as they are, after each was asked whether it translates exactly what it should.
    ///
    /// # Errors
    ///
    /// [`RestoreError`]; nothing is pinned then, and no domain was changed.
    pub fn from_saved(
        bytes: &[u8],
        mut pages: impl FnMut(u64) -> Option<Arc<Pages>>,
        domains: &[Arc<dyn Domain>],
    ) -> Result<Self, RestoreError> {
        let image = Image::parse(bytes)?;
        let ioas = Self::new();
        let mut known = Vec::new();
        for record in image.records(&image.pages) {
            let &[name, page_lg2, page_count] = record else {
                continue;
            };
            let pages = pages(name).ok_or(RestoreError::UnknownPages { name })?;
            if u64::from(pages.page_lg2()) != page_lg2 || pages.source().page_count() != page_count
            {
                return Err(RestoreError::OtherPages { name });
            }
            known.push(pages);
        }
        let areas = ioas.enter_image(&image, &known)?;
        if !domains.is_empty() && domains.len() != image.domains.count {
            return Err(RestoreError::DomainCount {
                saved: image.domains.count,
                given: domains.len(),
            });
        }
        let mut held = Vec::new();
        let taken = ioas.take_over(&image, &areas, domains, &mut held);
        if let Err(error) = taken {
            let mut set = ioas.domains.write();
            let list = core::mem::take(&mut set.list);
            drop(set);
            for attached in &list {
                attached.domain.unbind(Farewell(attached.tenant));
            }
            for area in held {
                area.release_held();
            }
            return Err(error);
        }
        Ok(ioas)
    }

    /// Enters everything but domains.
    fn enter_image(
        &self,
        image: &Image,
        pages: &[Arc<Pages>],
    ) -> Result<Vec<Arc<Area>>, RestoreError> {
        let refused = |what| RestoreError::Corrupt { what };
        let is_page_by_page = image.flags & PAGE_BY_PAGE != 0;
        self.set_page_by_page(is_page_by_page)
            .map_err(|_| refused("flags"))?;
        let mut areas = Vec::new();
        for record in image.records(&image.areas) {
            let &[start, last, number, offset, prot] = record else {
                continue;
            };
            let range = range(start, last).ok_or(refused("range of an area"))?;
            let pages = pages
                .get(number as usize)
                .ok_or(refused("pages of an area"))?;
            let end = offset.checked_add(range.len_minus_one());
            let prot = Prot::all().find(|known| known.index() as u64 == prot);
            let prot = prot.filter(|&prot| may_grant(pages.source().is_writable(), prot));
            let prot = prot.ok_or(refused("rights of an area"))?;
            let alignment = PageSize::from_lg2(if is_page_by_page { 12 } else { 0 });
            let is_inside = end.is_some_and(|end| end < pages.len());
            if !is_inside || !is_aligned(range, offset, alignment) {
                return Err(refused("slice of an area"));
            }
            let area = Area::new(range, Arc::clone(pages), offset, prot, 0);
            area.status().state = State::Live;
            let entered = self.index.insert(range, Arc::clone(&area), |()| ());
            entered.map_err(|error| match error {
                EnterError::Overlap(_) => refused("areas that overlap"),
                EnterError::OutOfMemory => RestoreError::OutOfMemory,
            })?;
            areas.push(area);
        }
        for record in image.records(&image.reserved) {
            let &[start, last, owner] = record else {
                continue;
            };
            let range = range(start, last).ok_or(refused("range of a reservation"))?;
            self.reserve(range, owner)
                .map_err(|_| refused("reservation"))?;
        }
        if let Some(window) = image.window {
            self.set_msi_window(Some(window))
                .map_err(|_| refused("window"))?;
        }
        let allowed = image.records(&image.allowed);
        let allowed = allowed.map(|record| range(*record.first()?, *record.last()?));
        let allowed = allowed.collect::<Option<Vec<_>>>();
        let allowed = allowed.ok_or(refused("allowed range"))?;
        self.allow(&allowed)
            .map_err(|_| refused("allowed ranges"))?;
        Ok(areas)
    }

    /// Attaches domains that translate everything already. Areas that hold their pages stand in `held`.
    fn take_over(
        &self,
        image: &Image,
        areas: &[Arc<Area>],
        domains: &[Arc<dyn Domain>],
        held: &mut Vec<Arc<Area>>,
    ) -> Result<(), RestoreError> {
        if domains.is_empty() {
            return Ok(());
        }
        for area in areas {
            area.hold()?;
            area.set_held(true);
            held.push(Arc::clone(area));
        }
        for (number, domain) in domains.iter().enumerate() {
            let caps = domain.caps();
            let tenant = TenantId::fresh();
            domain
                .bind(Tenant(tenant))
                .map_err(|_| RestoreError::Taken { number })?;
            let page = caps.sizes.smallest().unwrap_or(PageSize::from_lg2(0));
            let narrowed = self.narrow(caps.aperture, page);
            let checked = narrowed.and_then(|(key, alignment)| {
                self.check_areas(caps.aperture, alignment)?;
                Ok(key)
            });
            let key = checked.map_err(|_| {
                domain.unbind(Farewell(tenant));
                RestoreError::Unfit { number }
            })?;
            self.domains.write().list.push(Attached {
                domain: Arc::clone(domain),
                tenant,
                caps,
                key,
                is_tracking: false,
                unsynced: Flush::new(),
                unconfirmed: Unconfirmed::new(),
            });
            let doorbells = image
                .doorbells_of(number)
                .ok_or(RestoreError::Corrupt { what: "doorbell" })?;
            check_tables(number, &**domain, tenant, areas, &doorbells)?;
            let mut msi = self.attaching.lock();
            for (oa, range) in doorbells {
                let doorbell = Doorbell {
                    domain: key,
                    oa,
                    range,
                };
                msi.pages.push(doorbell);
            }
            drop(msi);
            for area in areas {
                area.status().generation = key + 1;
            }
        }
        Ok(())
    }
}

/// Asks a domain whether it translates all areas and doorbells as it should, and nothing else.
fn check_tables(
    number: usize,
    domain: &dyn Domain,
    tenant: TenantId,
    areas: &[Arc<Area>],
    doorbells: &[(Oa, IovaRange)],
) -> Result<(), RestoreError> {
    let check = |range: IovaRange, ops: &[MapOp<'_>]| {
        // I2: nobody else knows the address space yet.
        let holds = domain.holds(&mut Grant::new(tenant, range), ops);
        match holds {
            Ok(true) => Ok(()),
            Ok(false) => Err(RestoreError::Differs { number, range }),
            Err(error) => Err(RestoreError::Domain { number, error }),
        }
    };
    let mut used = Vec::new();
    for area in areas {
        let mut ops = Ops::new();
        let prot = area.status().prot;
        let rest = area.ops(area.range().start(), prot, usize::MAX, false, &mut ops);
        debug_assert_eq!(rest, None, "there is no limit");
        check(area.range(), &ops)?;
        used.push(area.range());
    }
    for &(oa, range) in doorbells {
        let page = range.len().filter(|len| len.is_power_of_two());
        let page = page.map(|len| PageSize::from_lg2(len.trailing_zeros() as u8));
        let source =
            page.and_then(|page| Fixed::new(oa, page, 1, Kind::Device, Access::ReadWrite).ok());
        let source = source.ok_or(RestoreError::Corrupt { what: "doorbell" })?;
        let op = MapOp {
            range,
            oa,
            prot: Prot::W.device(),
            source: &source,
            offset: 0,
        };
        check(range, &[op])?;
        used.push(range);
    }
    used.sort_unstable_by_key(|range| range.start());
    let aperture = domain.caps().aperture;
    let mut next = Some(aperture.start());
    for range in used {
        let below = range.start().get().checked_sub(1).map(Iova::new);
        let hole = next
            .zip(below)
            .and_then(|(start, last)| IovaRange::new(start, last));
        if let Some(hole) = hole {
            check(hole, &[])?;
        }
        next = range.last().checked_add(1);
    }
    match next.and_then(|start| IovaRange::new(start, aperture.last())) {
        Some(hole) => check(hole, &[]),
        None => Ok(()),
    }
}

fn range(start: u64, last: u64) -> Option<IovaRange> {
    IovaRange::new(Iova::new(start), Iova::new(last))
}

struct Writer(Vec<u8>);

impl Writer {
    fn words<const N: usize>(&mut self, words: [u64; N]) {
        for word in words {
            self.0.extend(word.to_le_bytes());
        }
    }

    fn range(&mut self, range: IovaRange) {
        self.words([range.start().get(), range.last().get()]);
    }
}

/// Bytes that are what they claim to be in length and checksum.
struct Image {
    words: Vec<u64>,
    flags: u64,
    window: Option<IovaRange>,
    pages: Records,
    areas: Records,
    allowed: Records,
    reserved: Records,
    domains: Records,
    doorbells: Records,
}

/// Where records of one kind stand.
struct Records {
    first: usize,
    count: usize,
    len: usize,
}

impl Image {
    fn parse(bytes: &[u8]) -> Result<Self, RestoreError> {
        let cut = RestoreError::Corrupt { what: "length" };
        let (chunks, rest) = bytes.as_chunks::<8>();
        if !rest.is_empty() || chunks.len() <= HEAD {
            return Err(cut);
        }
        let mut words = Vec::new();
        let room = words.try_reserve_exact(chunks.len());
        room.map_err(|_| RestoreError::OutOfMemory)?;
        words.extend(chunks.iter().map(|&chunk| u64::from_le_bytes(chunk)));
        if words[0] != MAGIC {
            return Err(RestoreError::NoImage);
        }
        if words[1] != VERSION {
            return Err(RestoreError::Version { version: words[1] });
        }
        if words[3] != bytes.len() as u64 {
            return Err(cut);
        }
        let body = &bytes[..bytes.len() - 8];
        if words[words.len() - 1] != u64::from(crc32fast::hash(body)) {
            return Err(RestoreError::Corrupt { what: "checksum" });
        }
        let flags = words[2];
        if flags & !(PAGE_BY_PAGE | HAS_WINDOW) != 0 {
            return Err(RestoreError::Corrupt { what: "flags" });
        }
        let mut first = HEAD;
        let mut records = |count: u64, len: usize| {
            let count = usize::try_from(count).ok()?;
            let records = Records { first, count, len };
            first = first.checked_add(count.checked_mul(len)?)?;
            (first < words.len()).then_some(records)
        };
        let mut next = |index: usize, len| records(words[4 + index], len);
        let parts = (|| {
            Some((
                next(0, PAGES)?,
                next(1, AREA)?,
                next(2, ALLOWED)?,
                next(3, RESERVED)?,
                next(4, DOMAIN)?,
                next(5, DOORBELL)?,
            ))
        })();
        let (pages, areas, allowed, reserved, domains, doorbells) = parts.ok_or(cut)?;
        if first + 1 != words.len() {
            return Err(RestoreError::Corrupt { what: "length" });
        }
        let window = range(words[10], words[11]).ok_or(RestoreError::Corrupt { what: "window" })?;
        let window = (flags & HAS_WINDOW != 0).then_some(window);
        Ok(Self {
            words,
            flags,
            window,
            pages,
            areas,
            allowed,
            reserved,
            domains,
            doorbells,
        })
    }

    fn records(&self, records: &Records) -> impl Iterator<Item = &[u64]> {
        let Records { first, count, len } = *records;
        self.words[first..first + count * len].chunks_exact(len)
    }

    /// Returns the doorbells of a domain, or `None` if one is not possible.
    fn doorbells_of(&self, domain: usize) -> Option<Vec<(Oa, IovaRange)>> {
        let records = self.records(&self.doorbells);
        let records = records.filter(|record| record.first() == Some(&(domain as u64)));
        let doorbells = records.map(|record| {
            let &[_, oa, start, last] = record else {
                return None;
            };
            let range = range(start, last)?;
            let is_inside = self.window.is_some_and(|window| window.contains(range));
            is_inside.then_some((Oa::new(oa), range))
        });
        doorbells.collect()
    }
}
