//! Operations at random, most of which are possible.

use iopt_formats::{Iova, IovaRange, Prot};

use crate::space::fault::FailPoint;
use crate::space::op::{Op, Report, Slice, To};
use crate::space::random::Random;
use crate::space::world::{Orders, World};

const PAGE: u64 = 0x1000;

/// Areas of one space from which on more go than come.
const AREA_COUNT: usize = 24;

/// Accesses that live at one time.
const ACCESS_COUNT: usize = 3;

/// Rights of areas, the most common ones often.
const PROTS: [Prot; 6] = [
    Prot::RW,
    Prot::RW,
    Prot::RW,
    Prot::R,
    Prot::W,
    Prot::RW.cached(),
];

/// Draws operations.
#[derive(Debug)]
pub struct Plan {
    random: Random,
    /// Whether anything is told to fail.
    has_failures: bool,
}

impl Plan {
    /// Creates the plan of a seed.
    pub const fn new(seed: u64, has_failures: bool) -> Self {
        Self {
            random: Random::new(seed),
            has_failures,
        }
    }

    /// Returns the next operation, and what of it is to fail.
    pub fn next(&mut self, world: &World) -> (Op, Orders) {
        let op = self.op(world);
        let orders = if self.has_failures && self.random.is_one_in(3) {
            self.orders(world, &op)
        } else {
            Orders::default()
        };
        (op, orders)
    }

    #[expect(clippy::too_many_lines, reason = "one arm for each operation")]
    fn op(&mut self, world: &World) -> Op {
        let model = world.model();
        let space = self.random.below(model.spaces.len() as u64) as usize;
        let state = &model.spaces[space];
        let has_leftovers =
            !state.leaving.is_empty() || state.areas.values().any(|area| area.is_quarantined);
        if has_leftovers && self.random.is_one_in(4) {
            return Op::Retry { space };
        }
        let is_full = state.areas.len() > AREA_COUNT;
        let domain = self.random.below(model.facts.domains.len() as u64) as usize;
        let source = self.random.below(model.facts.sources.len() as u64) as usize;
        let (map, unmap) = if is_full { (6, 40) } else { (24, 14) };
        let weights = [
            map, 4, unmap, 3, 8, 5, 4, 5, 5, 4, 2, 9, 5, 5, 2, 1, 2, 2, 2, 2, 3, 2, 6, 4,
        ];
        match self.random.weighted(&weights) {
            0 => {
                let slice = self.slice(world, space);
                Op::Map { space, slice }
            }
            1 => {
                let count = 1 + self.random.below(4);
                let slices = (0..count).map(|_| self.slice(world, space)).collect();
                Op::MapMany { space, slices }
            }
            2 => Op::Unmap {
                space,
                range: self.mapped(world, space),
                tolerates_holes: self.random.is_one_in(2),
                report: *self.random.pick(&[Report::None, Report::Dirty]),
            },
            3 => {
                let count = self.random.below(4);
                let ranges = (0..count).map(|_| self.mapped(world, space)).collect();
                Op::UnmapMany {
                    space,
                    ranges,
                    tolerates_holes: self.random.is_one_in(2),
                }
            }
            4 => {
                let from = self.random.below(model.spaces.len() as u64) as usize;
                Op::Copy {
                    into: space,
                    from,
                    range: self.mapped(world, from),
                    to: self.to(world, space),
                    prot: *self.random.pick(&PROTS),
                }
            }
            5 => Op::Split {
                space,
                iova: self.inside(world, space),
            },
            6 => Op::Remap {
                space,
                range: self.mapped(world, space),
                to: self.to(world, space),
            },
            7 => Op::Protect {
                space,
                range: self.mapped(world, space),
                prot: *self.random.pick(&PROTS[..5]),
            },
            8 => Op::Attach { space, domain },
            9 => Op::Detach {
                space,
                domain: self.member(world, space).unwrap_or(domain),
            },
            10 => Op::Replace {
                space,
                old: self.member(world, space).unwrap_or(domain),
                new: domain,
            },
            11 => self.pin(world, space),
            12 => self.unpin(world, space),
            13 => self.copy_bytes(world, space),
            14 => self.manage_access(world, space),
            15 => Op::Reserve {
                space,
                range: self.window(),
                owner: self.random.below(3),
            },
            16 => Op::Release {
                space,
                owner: self.random.below(3),
            },
            17 => {
                let count = self.random.below(3) * self.random.below(2);
                let ranges = (0..count).map(|_| self.window()).collect();
                Op::Allow { space, ranges }
            }
            18 => Op::PageByPage {
                space,
                is_on: self.random.is_one_in(2),
            },
            19 => self.doorbell(world, space),
            20 => {
                if model.is_revoked[source] || self.random.is_one_in(2) {
                    Op::Restore { source }
                } else {
                    Op::Revoke { source }
                }
            }
            21 => Op::Track {
                space,
                domain: self.member(world, space).unwrap_or(domain),
                is_on: !self.random.is_one_in(4),
            },
            22 => Op::Soil {
                domain: self.member(world, space).unwrap_or(domain),
                iova: self.inside(world, space),
            },
            _ => self.read_dirty(world, space, domain),
        }
    }

    /// Returns what is to fail of `op`.
    fn orders(&mut self, world: &World, op: &Op) -> Orders {
        use FailPoint::{Hardware, Map, Pin, Protect, Sync, Unmap};
        let (points, takes_tables): (&[FailPoint], bool) = match op {
            Op::Map { .. } | Op::MapMany { .. } | Op::Copy { .. } | Op::Remap { .. } => {
                (&[Pin, Map, Map, Unmap, Sync, Hardware], true)
            }
            Op::Unmap { .. } | Op::UnmapMany { .. } | Op::Detach { .. } => {
                (&[Unmap, Sync, Hardware], false)
            }
            Op::Protect { .. } => (&[Protect, Sync, Hardware], false),
            Op::Attach { .. } | Op::Replace { .. } | Op::Restore { .. } => (&[Pin, Map], true),
            Op::Pin { .. } => (&[Pin], false),
            Op::Split { .. } => (&[Hardware], true),
            Op::MapMsi { .. } => (&[Map, Hardware], true),
            Op::Revoke { source } if is_mapped_once(world, *source) => {
                (&[Unmap, Sync, Hardware], false)
            }
            _ => return Orders::default(),
        };
        if takes_tables && self.random.is_one_in(4) {
            return Orders {
                points: Vec::new(),
                table_pages: Some(self.random.below(4) as usize),
            };
        }
        // Nor what rights hold that could not be changed, and not be changed back.
        let is_single = matches!(
            op,
            Op::Attach { .. } | Op::Replace { .. } | Op::Protect { .. }
        );
        let count = if is_single {
            1
        } else {
            1 + self.random.below(2)
        };
        let points = (0..count).map(|_| {
            let point = *self.random.pick(points);
            (point, self.random.weighted(&[4, 2, 1]) as u64)
        });
        Orders {
            points: points.collect(),
            table_pages: None,
        }
    }

    /// Returns something to map.
    fn slice(&mut self, world: &World, space: usize) -> Slice {
        let model = world.model();
        let source = self.random.below(model.facts.sources.len() as u64) as usize;
        let bytes = model.facts.sources[source].len();
        let unit = self.unit(world, space);
        let len = match self.random.weighted(&[40, 12, 6, 2, 1]) {
            0 => (1 + self.random.below(8)) * unit,
            1 => (1 + self.random.below(64)) * unit,
            2 => 0x20_0000,
            3 => bytes,
            _ => self.random.below(3) * bytes,
        };
        let room = bytes.saturating_sub(len) / unit + 1;
        let offset = match self.random.weighted(&[20, 4, 1]) {
            0 => self.random.below(room) * unit,
            1 => 0,
            _ => self.random.below(bytes),
        };
        let mut to = self.to(world, space);
        if let To::Fixed(iova) = to
            && self.random.is_one_in(3)
        {
            // As large pages need it.
            let oa = model.facts.sources[source].oas[0];
            let low = (oa + offset) & 0x1f_ffff;
            to = To::Fixed(iova & !0x1f_ffff | low);
        }
        let prot = if model.facts.sources[source].is_writable || self.random.is_one_in(10) {
            *self.random.pick(&PROTS)
        } else {
            Prot::R
        };
        Slice {
            source,
            offset,
            len,
            prot,
            to,
        }
    }

    /// Returns what lengths and addresses are mostly multiples of.
    fn unit(&mut self, world: &World, space: usize) -> u64 {
        let alignment = world.model().alignment(space);
        match self.random.weighted(&[30, 4, 1]) {
            0 => alignment.max(PAGE),
            1 => 0x1_0000,
            _ => *self.random.pick(&[0x200, 0x800, PAGE]),
        }
    }

    fn to(&mut self, world: &World, space: usize) -> To {
        if self.random.is_one_in(4) {
            To::Anywhere
        } else {
            To::Fixed(self.free(world, space))
        }
    }

    /// Returns an address that is often free.
    fn free(&mut self, world: &World, space: usize) -> u64 {
        let unit = self.unit(world, space);
        match self.random.weighted(&[20, 6, 3, 1, 5]) {
            0 => 0x40_0000 + self.random.below(1024) * unit,
            1 => 0x4000_0000 + self.random.below(8) * 0x20_0000,
            2 => self.random.below(32) * unit,
            3 => {
                let domains = &world.model().facts.domains;
                let facts = self.random.pick(domains);
                let end = facts.aperture.last().get().wrapping_add(1);
                end.wrapping_sub(self.random.below(24) * unit)
            }
            _ => {
                let areas = &world.model().spaces[space].areas;
                let count = areas.len().max(1) as u64;
                let place = self.random.below(count) as usize;
                let area = areas.values().nth(place);
                area.map_or(unit, |area| area.range.last().get().wrapping_add(1))
            }
        }
    }

    /// Returns a range that is mostly mapped.
    fn mapped(&mut self, world: &World, space: usize) -> IovaRange {
        let areas = &world.model().spaces[space].areas;
        if areas.is_empty() {
            return self.window();
        }
        let first = self.random.below(areas.len() as u64) as usize;
        let mut ranges = areas.values().map(|area| area.range).skip(first);
        let Some(range) = ranges.next() else {
            return self.window();
        };
        let more = ranges.nth(self.random.below(3) as usize).unwrap_or(range);
        let (start, last) = (range.start().get(), range.last().get());
        let found = match self.random.weighted(&[24, 6, 4, 1, 1]) {
            0 => Some(range),
            1 => IovaRange::new(range.start(), more.last()),
            2 => {
                let unit = self.unit(world, space);
                let page_count = (last - start) / unit + 1;
                let from = start + self.random.below(page_count) * unit;
                let len = (1 + self.random.below(page_count)) * unit;
                let to = from.saturating_add(len - 1).min(last);
                IovaRange::new(Iova::new(from.min(to)), Iova::new(to))
            }
            3 => IovaRange::new(Iova::new(start.saturating_sub(PAGE)), range.last()),
            _ => Some(IovaRange::FULL),
        };
        found.unwrap_or(range)
    }

    /// Returns an address that is mostly mapped, at a page.
    fn inside(&mut self, world: &World, space: usize) -> u64 {
        let range = self.mapped(world, space);
        let (start, last) = (range.start().get(), range.last().get());
        let unit = self.unit(world, space);
        let page_count = ((last - start) / unit).saturating_add(1);
        start.saturating_add(self.random.below(page_count).saturating_mul(unit))
    }

    /// Returns a range of some pages, mostly free.
    fn window(&mut self) -> IovaRange {
        let start = match self.random.weighted(&[8, 2, 1]) {
            0 => 0x40_0000 + self.random.below(2048) * PAGE,
            1 => 0x8000_0000 + self.random.below(16) * PAGE,
            _ => 0,
        };
        let len = *self
            .random
            .pick(&[1, PAGE, 16 * PAGE, 64 * PAGE, 1024 * PAGE]);
        IovaRange::with_len(Iova::new(start), len).unwrap_or(IovaRange::FULL)
    }

    fn member(&mut self, world: &World, space: usize) -> Option<usize> {
        let members = &world.model().spaces[space].members;
        if members.is_empty() {
            return None;
        }
        Some(self.random.pick(members).domain)
    }

    fn access(&mut self, world: &World) -> Option<usize> {
        let accesses = world.model().accesses.iter().enumerate();
        let living = accesses.filter(|(_, access)| !access.is_destroyed);
        let living: Vec<usize> = living.map(|(number, _)| number).collect();
        (!living.is_empty()).then(|| *self.random.pick(&living))
    }

    fn pin(&mut self, world: &World, space: usize) -> Op {
        let Some(access) = self.access(world) else {
            return Op::Create { space };
        };
        let bound = world.model().accesses[access].space.unwrap_or(space);
        Op::Pin {
            access,
            range: self.mapped(world, bound),
            is_write: self.random.is_one_in(3),
        }
    }

    fn unpin(&mut self, world: &World, space: usize) -> Op {
        let Some(access) = self.access(world) else {
            return Op::Create { space };
        };
        let pins = &world.model().accesses[access].pins;
        let range = if pins.is_empty() || self.random.is_one_in(12) {
            self.window()
        } else {
            self.random.pick(pins).range
        };
        Op::Unpin { access, range }
    }

    fn copy_bytes(&mut self, world: &World, space: usize) -> Op {
        let Some(access) = self.access(world) else {
            return Op::Create { space };
        };
        let bound = world.model().accesses[access].space.unwrap_or(space);
        let iova = self
            .inside(world, bound)
            .wrapping_sub(self.random.below(32));
        let len = self.random.below(96) as usize;
        if self.random.is_one_in(2) {
            return Op::Read { access, iova, len };
        }
        let bytes = (0..len).map(|_| self.random.any() as u8).collect();
        Op::Write {
            access,
            iova,
            bytes,
        }
    }

    fn manage_access(&mut self, world: &World, space: usize) -> Op {
        let accesses = world.model().accesses.iter();
        let living_count = accesses.filter(|access| !access.is_destroyed).count();
        let access = self.access(world);
        let Some(access) = access.filter(|_| living_count >= ACCESS_COUNT) else {
            return Op::Create { space };
        };
        match self.random.below(6) {
            0 => Op::Destroy { access },
            1 => Op::Rebind {
                access,
                space: None,
            },
            2 | 3 => Op::Rebind {
                access,
                space: Some(space),
            },
            _ => Op::SetStubborn {
                access,
                is_stubborn: self.random.is_one_in(4),
            },
        }
    }

    fn doorbell(&mut self, world: &World, space: usize) -> Op {
        let state = &world.model().spaces[space];
        let member = self.member(world, space);
        let member = member.filter(|_| state.msi.is_some() && !self.random.is_one_in(4));
        if let Some(domain) = member {
            let oa = 0xfee0_0000 + self.random.below(8) * 0x8040;
            return Op::MapMsi { space, domain, oa };
        }
        let window = (!self.random.is_one_in(4)).then(|| self.window());
        Op::MsiWindow { space, window }
    }

    fn read_dirty(&mut self, world: &World, space: usize, domain: usize) -> Op {
        let range = self.mapped(world, space);
        let state = &world.model().spaces[space];
        // Whatever divides a page would forget more than it reports.
        let areas = state.overlapping(range);
        let is_whole = areas.into_iter().all(|area| range.contains(area.range));
        let is_short = range.len_minus_one() < 8192 * PAGE;
        let forgets = is_whole && is_short && self.random.is_one_in(2);
        Op::ReadDirty {
            space,
            domain: self.member(world, space).unwrap_or(domain),
            range,
            tolerates_holes: self.random.is_one_in(2),
            forgets,
        }
    }
}

/// Returns whether one area at most has pages of a source mapped.
fn is_mapped_once(world: &World, source: usize) -> bool {
    let areas = world
        .model()
        .spaces
        .iter()
        .flat_map(|space| space.areas.values());
    areas
        .filter(|area| area.source == source && area.is_held)
        .count()
        <= 1
}
