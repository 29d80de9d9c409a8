//! Operations on the address spaces themselves.

use std::sync::Arc;

use iopt::ioas::{DirtyBitmap, Forget, Holes, Ioas, LetGoError, Mapping, PinnedRun, Place};
use iopt_formats::{Iova, IovaRange, Oa, PageSize};

use crate::check::Mismatch;
use crate::space::holder::{Holder, Yields};
use crate::space::model::{Output, join_runs};
use crate::space::op::{Op, Report, Slice, To};
use crate::space::refused::Refused;
use crate::space::world::World;

/// What an operation gave, and which pages devices wrote to, if it asked.
type Found = (Result<Output, Refused>, Option<Vec<u64>>);

/// The most pages of which an operation asks what devices wrote to.
pub(super) const BITMAP_PAGES: u64 = 8192;

impl World {
    /// Runs an operation on the address spaces.
    #[expect(clippy::too_many_lines, reason = "one arm for each operation")]
    pub(super) fn run(&mut self, op: &Op) -> Result<Found, Mismatch> {
        let domain_at = |domain: usize| self.setting.domains[domain].domain();
        let mut marked = None;
        let result = match *op {
            Op::Map { space, slice } => {
                let mapped = self.spaces[space].map(self.mapping(slice));
                mapped.map(Output::Range).map_err(Refused::from)
            }
            Op::MapMany { space, ref slices } => {
                let mappings: Vec<_> = slices.iter().map(|&slice| self.mapping(slice)).collect();
                let mapped = self.spaces[space].map_many(&mappings);
                mapped
                    .map(Output::Ranges)
                    .map_err(|failed| failed.error.into())
            }
            Op::Unmap {
                space,
                range,
                tolerates_holes,
                report,
            } => {
                let holes = holes(tolerates_holes);
                let ioas = &self.spaces[space];
                let unmapped = if report == Report::Dirty {
                    let (unmapped, pages) =
                        with_bitmap(range, |bits| ioas.unmap_with_dirty(range, holes, bits));
                    marked = Some(pages);
                    unmapped
                } else {
                    ioas.unmap(range, holes)
                };
                unmapped.map(Output::Bytes).map_err(Refused::from)
            }
            Op::UnmapMany {
                space,
                ref ranges,
                tolerates_holes,
            } => {
                let unmapped = self.spaces[space].unmap_many(ranges, holes(tolerates_holes));
                unmapped.map(Output::Bytes).map_err(Refused::from)
            }
            Op::Copy {
                into,
                from,
                range,
                to,
                prot,
            } => {
                let copied = self.spaces[into].copy(&self.spaces[from], range, place(to), prot);
                copied.map(Output::Range).map_err(Refused::from)
            }
            Op::Split { space, iova } => nothing(self.spaces[space].split(Iova::new(iova))),
            Op::Remap { space, range, to } => {
                let moved = self.spaces[space].remap(range, place(to));
                moved.map(Output::Range).map_err(Refused::from)
            }
            Op::Protect { space, range, prot } => nothing(self.spaces[space].protect(range, prot)),
            Op::Attach { space, domain } => {
                nothing(self.spaces[space].attach(Arc::clone(domain_at(domain))))
            }
            Op::Detach { space, domain } => nothing(self.spaces[space].detach(domain_at(domain))),
            Op::Replace { space, old, new } => {
                let new = Arc::clone(domain_at(new));
                nothing(self.spaces[space].replace(domain_at(old), new))
            }
            Op::Reserve {
                space,
                range,
                owner,
            } => nothing(self.spaces[space].reserve(range, owner)),
            Op::Release { space, owner } => {
                self.spaces[space].release_reserved(owner);
                Ok(Output::Nothing)
            }
            Op::Allow { space, ref ranges } => nothing(self.spaces[space].allow(ranges)),
            Op::PageByPage { space, is_on } => nothing(self.spaces[space].set_page_by_page(is_on)),
            Op::MsiWindow { space, window } => nothing(self.spaces[space].set_msi_window(window)),
            Op::MapMsi { space, domain, oa } => {
                let mapped = self.spaces[space].map_msi(domain_at(domain), Oa::new(oa));
                let iova = mapped.map(|iova| Output::Iova(iova.get()));
                iova.map_err(Refused::from)
            }
            Op::Track {
                space,
                domain,
                is_on,
            } => nothing(self.spaces[space].set_dirty_tracking(domain_at(domain), is_on)),
            Op::ReadDirty {
                space,
                domain,
                range,
                tolerates_holes,
                forgets,
            } => {
                let forget = if forgets { Forget::Yes } else { Forget::No };
                let ioas = &self.spaces[space];
                let (read, pages) = with_bitmap(range, |bits| {
                    let holes = holes(tolerates_holes);
                    ioas.read_dirty(domain_at(domain), range, holes, forget, bits)
                });
                marked = Some(pages);
                nothing(read)
            }
            Op::Retry { space } => {
                self.spaces[space].retry_quarantined();
                Ok(Output::Nothing)
            }
            ref op => self.run_access(op)?,
        };
        Ok((result, marked))
    }

    /// Runs an operation of an access.
    fn run_access(&mut self, op: &Op) -> Result<Result<Output, Refused>, Mismatch> {
        if let &Op::Create { space } = op {
            let holder = Arc::new(Holder::default());
            let access = self.spaces[space].access(Yields(Arc::clone(&holder)));
            self.accesses.push(Some((access, holder)));
            return Ok(Ok(Output::Nothing));
        }
        let (&Op::SetStubborn { access, .. }
        | &Op::Pin { access, .. }
        | &Op::Unpin { access, .. }
        | &Op::Rebind { access, .. }
        | &Op::Destroy { access }) = op
        else {
            return Err(Mismatch::new(format!("{op:?} is run elsewhere")));
        };
        if let Op::Destroy { .. } = op {
            let destroyed = self.accesses[access]
                .take()
                .map(|(access, _)| access.destroy());
            let destroyed = destroyed.unwrap_or(Ok(()));
            destroyed.map_err(|error| Mismatch::new(format!("destroy: {error}")))?;
            return Ok(Ok(Output::Nothing));
        }
        let Some((handle, holder)) = &self.accesses[access] else {
            return Err(Mismatch::new(format!("{op:?} of a destroyed access")));
        };
        Ok(match *op {
            Op::SetStubborn { is_stubborn, .. } => {
                holder.set_stubborn(is_stubborn);
                Ok(Output::Nothing)
            }
            Op::Pin {
                range, is_write, ..
            } => {
                let pinned = handle.pin(range, is_write);
                if pinned.is_ok() {
                    holder.pins().push(range);
                }
                let of_run = |run: PinnedRun| (run.range, run.oa.get());
                let runs = pinned.map(|runs| join_runs(runs.into_iter().map(of_run).collect()));
                runs.map(Output::Runs).map_err(Refused::from)
            }
            Op::Unpin { range, .. } => {
                let unpinned = handle.unpin(range);
                let mut pins = holder.pins();
                if unpinned.is_ok()
                    && let Some(place) = pins.iter().rposition(|&pin| pin == range)
                {
                    pins.remove(place);
                }
                drop(pins);
                nothing(unpinned)
            }
            Op::Rebind { space, .. } => {
                let rebound = match space {
                    Some(space) => handle.replace(&self.spaces[space]),
                    None => handle.detach(),
                };
                rebound
                    .map(|()| Output::Nothing)
                    .map_err(|LetGoError| Refused::Stuck)
            }
            _ => Ok(Output::Nothing),
        })
    }

    fn mapping(&self, slice: Slice) -> Mapping<'_> {
        Mapping {
            pages: &self.setting.sources[slice.source].pages,
            offset: slice.offset,
            len: slice.len,
            prot: slice.prot,
            place: place(slice.to),
        }
    }

    /// Returns an address space.
    pub fn space(&self, space: usize) -> &Arc<Ioas> {
        &self.spaces[space]
    }
}

fn nothing<E: Into<Refused>>(result: Result<(), E>) -> Result<Output, Refused> {
    result.map(|()| Output::Nothing).map_err(Into::into)
}

const fn place(to: To) -> Place {
    match to {
        To::Fixed(iova) => Place::Fixed(Iova::new(iova)),
        To::Anywhere => Place::Anywhere,
    }
}

const fn holes(is_tolerated: bool) -> Holes {
    if is_tolerated {
        Holes::Tolerated
    } else {
        Holes::Refused
    }
}

/// Calls `ask` with a bitmap over `range`; returns also the first address of each page that it set.
fn with_bitmap<T>(range: IovaRange, ask: impl FnOnce(&mut DirtyBitmap<'_>) -> T) -> (T, Vec<u64>) {
    let page = PageSize::KIB_4;
    let base = range.start().get() & !page.offset_mask();
    let page_count = ((range.last().get() - base) >> page.lg2()) + 1;
    let page_count = page_count.min(BITMAP_PAGES);
    let mut bits = vec![0; page_count.div_ceil(8) as usize];
    let mut bitmap = DirtyBitmap::new(Iova::new(base), page, &mut bits);
    let result = ask(&mut bitmap);
    let pages = (0..page_count).map(|index| base + index * page.bytes());
    let marked = pages
        .filter(|&iova| bitmap.is_set(Iova::new(iova)))
        .collect();
    (result, marked)
}
