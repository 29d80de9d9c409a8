//! Areas: ranges of IOVA that translate to a slice of some pages.
//!
//! # States
//!
//! ```text
//!   reserved --publish--> live --drain--> draining --tear down--> teardown --> gone
//!       |                  ^                  |                       `--> quarantined: the hardware
//!       `--> gone          `------resume------'                             may still use its pages
//! ```
//!
//! An area occupies its IOVA in every state. Reserved: its one maker fills it. Live: accesses may pin
//! its pages. Draining: an unmap waits until they have let go; none is added. Teardown: its one
//! unmapper empties it.
//!
//! # Invariants
//!
//! - **I1** (disjoint): no two areas of an address space share an address; the index refuses.
//! - **I2** (one changes): grants over an area are made by its maker while it is reserved, by its
//!   unmapper in teardown, and under its lock while it is live or draining; by nobody else.
//! - **I3** (held): while `is_held`, the area holds its pages; in a domain they are mapped only then.
//!   It changes under the area's lock, or by the one maker or unmapper.

use alloc::sync::Arc;
use core::fmt;
use core::ops::ControlFlow;

use iopt_formats::{Iova, IovaRange, Oa, Prot};
use smallvec::SmallVec;

use crate::domain::MapOp;
use crate::ioas::pages::{HoldError, Pages};
use crate::pin::PageRange;
use crate::sync::unmodelled::{AtomicBool, AtomicU8, Ordering};
use crate::sync::{self, Mutex};

/// Pages that are pinned at once, 1 GiB of 4 KiB: what a cancelled pin waits for at most.
const PIECE_PAGE_COUNT: u64 = if cfg!(test) { 8 } else { 1 << 18 };

/// Is told how many bytes are pinned, and says whether to go on.
pub(super) type Watch<'a> = &'a mut dyn FnMut(u64) -> ControlFlow<()>;

/// Runs on their way to the domains; mostly few.
pub(super) type Ops<'a> = SmallVec<[MapOp<'a>; 2]>;

/// What an area is made of; it never changes but for its rights.
pub(super) struct Area {
    range: IovaRange,
    pages: Arc<Pages>,
    /// Byte of the pages that the first address translates to.
    offset: u64,
    /// The key that a domain would have got that came at the same time.
    entered_at: u64,
    status: Mutex<Status>,
    /// See I3.
    is_held: AtomicBool,
    /// What the gap index knows of it, see [`Gaps`](crate::ioas::Gaps).
    gap: AtomicU8,
}

/// The gap index has not met the area.
const UNKNOWN: u8 = 0;
/// It holds the area's range.
const KNOWN: u8 = 1;
/// The area leaves the address space.
const GONE: u8 = 2;

/// What changes in the life of an area.
#[derive(Clone, Debug)]
pub(super) struct Status {
    pub(super) state: State,
    /// Domains with keys below are filled: they were in the set when the area was published, or came
    /// later and have been.
    pub(super) generation: u64,
    pub(super) prot: Prot,
    /// Pins of accesses inside the area, and reads and writes at this moment.
    pub(super) pin_count: usize,
    /// What devices wrote to and the tables cannot say any more, by the key of the domain.
    pub(super) faded: SmallVec<[(u64, IovaRange); 0]>,
}

impl Status {
    /// Calls `each` with what devices of a domain wrote to in `part` that its table cannot say any more,
    /// and forgets it if asked to.
    pub(super) fn each_faded(
        &mut self,
        key: u64,
        part: IovaRange,
        is_forgotten: bool,
        each: &mut dyn FnMut(IovaRange),
    ) {
        let faded = core::mem::take(&mut self.faded);
        for (of, entry) in faded {
            let met = entry.intersection(part).filter(|_| of == key);
            if let Some(met) = met {
                each(met);
            }
            match met {
                Some(met) if is_forgotten => {
                    let below = met.start().get().checked_sub(1).map(Iova::new);
                    let below = below.and_then(|last| IovaRange::new(entry.start(), last));
                    let above = met.last().checked_add(1);
                    let above = above.and_then(|start| IovaRange::new(start, entry.last()));
                    let rest = [below, above].into_iter().flatten();
                    self.faded.extend(rest.map(|rest| (key, rest)));
                }
                _ => self.faded.push((of, entry)),
            }
        }
    }
}

/// Where an area is in its life.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum State {
    Reserved,
    Live,
    Draining,
    Teardown,
    Quarantined,
}

impl Area {
    /// Creates a reserved area of `range` on the bytes of `pages` from `offset` on, which are there. It is
    /// entered at the time `entered_at`, as domains' keys count it, or was before.
    pub(super) fn new(
        range: IovaRange,
        pages: Arc<Pages>,
        offset: u64,
        prot: Prot,
        entered_at: u64,
    ) -> Arc<Self> {
        let status = Status {
            state: State::Reserved,
            generation: 0,
            prot,
            pin_count: 0,
            faded: SmallVec::new(),
        };
        Self::with_status(range, pages, offset, entered_at, status)
    }

    fn with_status(
        range: IovaRange,
        pages: Arc<Pages>,
        offset: u64,
        entered_at: u64,
        status: Status,
    ) -> Arc<Self> {
        Arc::new(Self {
            range,
            pages,
            offset,
            entered_at,
            status: Mutex::new(&sync::AREA, status),
            is_held: AtomicBool::new(false),
            gap: AtomicU8::new(UNKNOWN),
        })
    }

    /// Says that the gap index holds the area, unless it leaves. Under the lock of that index.
    pub(super) fn become_known(&self) -> bool {
        self.gap
            .compare_exchange(UNKNOWN, KNOWN, Ordering::Relaxed, Ordering::Relaxed)
            .is_ok()
    }

    /// Says that the area leaves. Returns whether the gap index holds it.
    pub(super) fn become_gone(&self) -> bool {
        self.gap.swap(GONE, Ordering::Relaxed) == KNOWN
    }

    /// Divides a live or draining area that nobody has pinned at `at`, which lies inside; both parts
    /// are as the whole is. The whole is void then.
    pub(super) fn divide(
        &self,
        status: &mut Status,
        at: Iova,
    ) -> Result<[Arc<Self>; 2], HoldError> {
        let whole = self.range;
        let below = Iova::new(at.get() - 1);
        let parts = [(whole.start(), below), (at, whole.last())].map(|(start, last)| {
            let range = IovaRange::new(start, last).expect("it lies inside");
            let status = status.clone();
            let (pages, offset) = (Arc::clone(&self.pages), self.byte_of(start));
            Self::with_status(range, pages, offset, self.entered_at, status)
        });
        if self.is_held() {
            let [lower, upper] = parts.each_ref().map(|part| self.pages_of(part.range));
            // Only the piece around the border is divided, if it is.
            let lower = PageRange::new(lower.last() & !(PIECE_PAGE_COUNT - 1), lower.last());
            let upper = PageRange::new(upper.first(), upper.first() | (PIECE_PAGE_COUNT - 1));
            let all = self.all_pages();
            let pieces =
                [lower, upper].map(|piece| piece.and_then(|piece| piece.intersection(all)));
            if let [Some(lower), Some(upper)] = pieces
                && lower.first() / PIECE_PAGE_COUNT == upper.first() / PIECE_PAGE_COUNT
            {
                self.pages.divide([lower, upper])?;
            }
        }
        for part in &parts {
            part.set_held(self.is_held());
        }
        status.state = State::Teardown;
        self.set_held(false);
        Ok(parts)
    }

    pub(super) const fn range(&self) -> IovaRange {
        self.range
    }

    pub(super) const fn pages(&self) -> &Arc<Pages> {
        &self.pages
    }

    pub(super) const fn entered_at(&self) -> u64 {
        self.entered_at
    }

    pub(super) const fn offset(&self) -> u64 {
        self.offset
    }

    /// Returns whether it holds its pages (I3).
    pub(super) fn is_held(&self) -> bool {
        self.is_held.load(Ordering::Relaxed)
    }

    /// Notes whether it holds its pages (I3).
    pub(super) fn set_held(&self, is_held: bool) {
        self.is_held.store(is_held, Ordering::Relaxed);
    }

    /// Lets go of the pages if it holds them.
    pub(super) fn release_held(&self) {
        if self.is_held() {
            self.set_held(false);
            self.release();
        }
    }

    /// Locks what changes.
    #[inline]
    pub(super) fn status(&self) -> impl core::ops::DerefMut<Target = Status> {
        self.status.lock()
    }

    /// Returns the byte of the pages that `iova`, inside the area, translates to.
    pub(super) fn byte_of(&self, iova: Iova) -> u64 {
        self.offset + (iova.get() - self.range.start().get())
    }

    /// Returns the pages that `part`, inside the area, translates to.
    pub(super) fn pages_of(&self, part: IovaRange) -> PageRange {
        let page_lg2 = self.pages.page_lg2();
        let first = self.byte_of(part.start()) >> page_lg2;
        let last = self.byte_of(part.last()) >> page_lg2;
        PageRange::new(first, last).expect("a part does not end before it starts")
    }

    /// Holds the area's pages. Returns the output address of its first byte if they are one run, and of
    /// one piece.
    pub(super) fn hold(&self) -> Result<Option<Oa>, HoldError> {
        self.hold_watched(&mut |_| ControlFlow::Continue(()))
    }

    /// As [`hold`](Self::hold); calls `watch`, with no lock of the pages held, behind each piece but the
    /// last, and gives up if it says so.
    pub(super) fn hold_watched(&self, watch: Watch<'_>) -> Result<Option<Oa>, HoldError> {
        let mut first = None;
        let mut is_one = true;
        for (index, piece) in self.pieces().enumerate() {
            let held = match self.pages.hold(piece) {
                Ok(oa) if piece.last() == self.all_pages().last() => Ok(oa),
                Ok(oa) => {
                    let done = piece.last() - self.all_pages().first() + 1;
                    match watch(done << self.pages.page_lg2()) {
                        ControlFlow::Continue(()) => Ok(oa),
                        ControlFlow::Break(()) => {
                            self.pages.release(piece);
                            Err(HoldError::Cancelled)
                        }
                    }
                }
                Err(error) => Err(error),
            };
            match held {
                Ok(oa) if index == 0 => first = oa,
                Ok(_) => is_one = false,
                Err(error) => {
                    self.pieces()
                        .take(index)
                        .for_each(|done| self.pages.release(done));
                    return Err(error);
                }
            }
        }
        let within = self.offset & ((1 << self.pages.page_lg2()) - 1);
        let first = first.filter(|_| is_one);
        Ok(first.map(|oa| Oa::new(oa.get() + within)))
    }

    /// Lets go of the area's pages.
    pub(super) fn release(&self) {
        self.pieces().for_each(|piece| self.pages.release(piece));
    }

    /// Returns the area's pages in pieces that are held one by one. They end at multiples, wherever the
    /// area begins: the pieces of a part are those of the whole.
    fn pieces(&self) -> impl Iterator<Item = PageRange> {
        let all = self.all_pages();
        let mut next = Some(all.first());
        core::iter::from_fn(move || {
            let first = next?;
            let last = (first | (PIECE_PAGE_COUNT - 1)).min(all.last());
            next = (last < all.last()).then_some(last + 1);
            PageRange::new(first, last)
        })
    }

    fn all_pages(&self) -> PageRange {
        self.pages_of(self.range)
    }

    /// Returns what maps the area, whose pages are one run from `oa` on.
    pub(super) fn whole_op(&self, oa: Oa, prot: Prot) -> MapOp<'_> {
        MapOp {
            range: self.range,
            oa,
            prot,
            source: &**self.pages.source(),
            offset: self.offset,
        }
    }

    /// Adds what maps the area from `from` on to `ops`, of which there are at most `limit`; returns
    /// where it stopped, or `None` at the end of the area. The pages are held.
    pub(super) fn ops<'a>(
        &'a self,
        from: Iova,
        prot: Prot,
        limit: usize,
        page_by_page: bool,
        ops: &mut Ops<'a>,
    ) -> Option<Iova> {
        let source = &**self.pages.source();
        let page_len = 1 << self.pages.page_lg2();
        let last_byte = self.byte_of(self.range.last());
        let mut next = Some(from);
        let rest = IovaRange::new(from, self.range.last())?;
        self.pages.each_run(self.pages_of(rest), |pages, oa| {
            let mut add = |first_byte: u64, last: u64, oa: u64| {
                if ops.len() == limit {
                    return false;
                }
                let start = self.range.start().get() + (first_byte - self.offset);
                let Some(range) = IovaRange::with_len(Iova::new(start), last - first_byte + 1)
                else {
                    return false;
                };
                ops.push(MapOp {
                    range,
                    oa: Oa::new(oa),
                    prot,
                    source,
                    offset: first_byte,
                });
                next = range
                    .last()
                    .checked_add(1)
                    .filter(|&next| next <= self.range.last());
                true
            };
            // The first and the last page of the area may be used in part.
            let run_byte = pages.first() * page_len;
            let first_byte = run_byte.max(self.byte_of(from));
            let run_last = (pages.last() * page_len + (page_len - 1)).min(last_byte);
            if !page_by_page {
                return add(first_byte, run_last, oa.get() + (first_byte - run_byte));
            }
            (pages.first()..=pages.last()).all(|page| {
                let first = (page * page_len).max(first_byte);
                let last = (page * page_len + (page_len - 1)).min(run_last);
                add(first, last, oa.get() + (first - run_byte))
            })
        });
        next
    }
}

impl fmt::Debug for Area {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Area")
            .field("range", &self.range)
            .field("offset", &self.offset)
            .finish_non_exhaustive()
    }
}
