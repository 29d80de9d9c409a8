//! Software that uses an address space.
//!
//! # The protocol of letting go
//!
//! An unmap that meets pins calls [`AccessOps::unmap`] of those who hold them, with no lock of the engine
//! held, and tries again. Who destroys an access waits until no callback of it runs. So a user must not
//! hold, while destroying, a lock that the callback takes: debug builds report that the first time both
//! orders were seen, on one thread ([`ACCESS_UNMAP`](crate::sync::ACCESS_UNMAP)).

use alloc::collections::BTreeMap;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;
use core::mem;

use iopt_formats::{Iova, IovaRange, Oa};
use smallvec::SmallVec;

use crate::ioas::area::{Area, State};
use crate::ioas::pages::HoldError;
use crate::ioas::{AccessError, DestroyError, Ioas, LetGoError, PATIENCE, TRY_COUNT};
use crate::pin::{Kind, PageRange};
use crate::sync::lockdep;
use crate::sync::{self, ACCESS_UNMAP, Deadline, Left, Mutex, pause, thread_index};

/// What an access is told.
pub trait AccessOps: Send + Sync {
    /// Asks to unpin what lies in `range`, all or in part, before returning or soon after. Called with no
    /// lock of the engine held, from whatever thread unmaps, and possibly several times.
    fn unmap(&self, access: &AccessHandle, range: IovaRange);
}

/// An access of software to an address space; dropping it lets go of everything.
///
/// Pins and unpins may come from any thread, also from inside the callback.
pub struct Access(AccessHandle);

/// An access as its callback sees it: everything but destroying.
#[derive(Clone)]
pub struct AccessHandle(Arc<Registered>);

/// What an address space knows of an access.
pub(super) struct Registered {
    ops: Arc<dyn AccessOps>,
    state: Mutex<Binding>,
}

struct Binding {
    /// Where pins go.
    ioas: Option<Arc<Ioas>>,
    /// By first and last address, each with the pins of exactly that range.
    pins: BTreeMap<(Iova, Iova), Vec<Pin>>,
    /// Threads that run a callback at this moment.
    running: SmallVec<[usize; 2]>,
    /// No callback begins any more.
    is_ending: bool,
}

/// The parts of one pin.
type Pin = SmallVec<[(Arc<Area>, PageRange); 1]>;

/// A part of a pinned range with consecutive output addresses.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct PinnedRun {
    /// The IOVA.
    pub range: IovaRange,
    /// The first output address.
    pub oa: Oa,
}

impl Ioas {
    /// Creates an access to this address space.
    pub fn access(self: &Arc<Self>, ops: impl AccessOps + 'static) -> Access {
        let binding = Binding {
            ioas: Some(Arc::clone(self)),
            pins: BTreeMap::new(),
            running: SmallVec::new(),
            is_ending: false,
        };
        let registered = Arc::new(Registered {
            ops: Arc::new(ops),
            state: Mutex::new(&sync::ACCESS, binding),
        });
        self.accesses.lock().push(Arc::clone(&registered));
        Access(AccessHandle(registered))
    }

    /// Calls the accesses that have pinned a part of `range`. Returns whether there was one.
    pub(super) fn notify(&self, range: IovaRange) -> bool {
        let holders: SmallVec<[Arc<Registered>; 4]> = {
            let accesses = self.accesses.lock();
            let holders = accesses.iter().filter(|access| access.begin(range));
            holders.map(Arc::clone).collect()
        };
        for holder in &holders {
            let _end = RunningGuard(holder);
            let _running = ACCESS_UNMAP.running();
            lockdep::assert_none_held();
            holder.ops.unmap(&AccessHandle(Arc::clone(holder)), range);
        }
        !holders.is_empty()
    }

    /// Takes an access out of the list, which may have it once more.
    fn strike_out(&self, access: &Arc<Registered>) {
        let mut accesses = self.accesses.lock();
        if let Some(place) = accesses.iter().position(|other| Arc::ptr_eq(other, access)) {
            accesses.swap_remove(place);
        }
    }

    /// Uses the areas of `range` for a moment: nobody unmaps them meanwhile.
    fn enter(&self, range: IovaRange, is_write: bool) -> Result<Entered, AccessError> {
        let entries = self.index.overlapping(range);
        let entries = entries.map_err(|_| HoldError::OutOfMemory)?;
        let mut entered = Entered::default();
        let mut next = Some(range.start());
        for (entry, area) in entries {
            let hole = next.filter(|&next| next < entry.start());
            if let Some(iova) = hole {
                return Err(AccessError::Hole { iova });
            }
            let mut status = area.status();
            if status.state != State::Live {
                let iova = entry.start().max(range.start());
                return Err(AccessError::Hole { iova });
            }
            let prot = status.prot;
            if (is_write && !prot.can_write()) || (!is_write && !prot.can_read()) {
                return Err(AccessError::Rights { area: entry });
            }
            status.pin_count += 1;
            drop(status);
            next = entry.last().checked_add(1);
            entered.0.push(area);
        }
        match next.filter(|&next| next <= range.last()) {
            Some(iova) => Err(AccessError::Hole { iova }),
            None => Ok(entered),
        }
    }
}

/// Areas in use; not any more once it is dropped.
#[derive(Default)]
struct Entered(SmallVec<[Arc<Area>; 1]>);

impl Drop for Entered {
    fn drop(&mut self) {
        for area in &self.0 {
            area.status().pin_count -= 1;
        }
    }
}

/// Says that a callback ended, also if it panicked.
struct RunningGuard<'a>(&'a Registered);

impl Drop for RunningGuard<'_> {
    fn drop(&mut self) {
        let me = thread_index();
        let mut binding = self.0.state.lock();
        if let Some(place) = binding.running.iter().position(|&thread| thread == me) {
            binding.running.swap_remove(place);
        }
    }
}

impl Registered {
    /// Says that a callback begins, if the access has pinned a part of `range`.
    fn begin(&self, range: IovaRange) -> bool {
        let mut binding = self.state.lock();
        let has_pins = !binding.is_ending && binding.find_pin(range).is_some();
        if has_pins {
            binding.running.push(thread_index());
        }
        has_pins
    }
}

impl Binding {
    /// Returns a pinned range that shares an address with `range`.
    fn find_pin(&self, range: IovaRange) -> Option<(Iova, Iova)> {
        let below = self.pins.range(..=(range.last(), Iova::new(u64::MAX)));
        // Pinned ranges may overlap, so that one that begins far below may reach here.
        let mut pins = below.rev().map(|(&pin, _)| pin);
        pins.find(|&(_, last)| last >= range.start())
    }
}

impl AccessHandle {
    /// Pins a range and returns where it lies. Pages stay pinned until they are unpinned, and the range
    /// stays mapped at least until the access was told of an unmap.
    ///
    /// The range begins at a page, and so does every area inside of it.
    ///
    /// # Errors
    ///
    /// [`AccessError`]; nothing is pinned then.
    pub fn pin(&self, range: IovaRange, is_write: bool) -> Result<Vec<PinnedRun>, AccessError> {
        let ioas = self.ioas()?;
        let mut entered = ioas.enter(range, is_write)?;
        let mut pin = Pin::new();
        let mut runs = Vec::new();
        let mut pinned = Ok(());
        for area in &entered.0 {
            pinned = hold(area, range, is_write, &mut runs).map(|pages| {
                pin.push((Arc::clone(area), pages));
            });
            if pinned.is_err() {
                break;
            }
        }
        if pinned.is_ok() {
            let mut binding = self.0.state.lock();
            let is_same = binding
                .ioas
                .as_ref()
                .is_some_and(|now| Arc::ptr_eq(now, &ioas));
            if is_same && !binding.is_ending {
                let pins = binding
                    .pins
                    .entry((range.start(), range.last()))
                    .or_default();
                pins.push(pin);
                // Each pin counts in its areas as each use does.
                drop(mem::take(&mut entered.0));
                return Ok(runs);
            }
            pinned = Err(AccessError::Detached);
        }
        for (area, pages) in &pin {
            area.pages().release(*pages);
        }
        pinned.map(|()| runs)
    }

    /// Ends a pin of exactly this range.
    ///
    /// # Errors
    ///
    /// [`AccessError::NotPinned`].
    pub fn unpin(&self, range: IovaRange) -> Result<(), AccessError> {
        let key = (range.start(), range.last());
        let mut binding = self.0.state.lock();
        let pins = binding.pins.get_mut(&key);
        let pin = pins.and_then(|pins| Some((pins.pop()?, pins.is_empty())));
        let (pin, is_last) = pin.ok_or(AccessError::NotPinned { range })?;
        if is_last {
            binding.pins.remove(&key);
        }
        drop(binding);
        release(pin);
        Ok(())
    }

    /// Ends every pin that shares an address with `range`, and returns how many that were: all that a
    /// callback has to do which keeps nothing.
    pub fn unpin_all(&self, range: IovaRange) -> usize {
        let mut count = 0;
        loop {
            let mut binding = self.0.state.lock();
            let Some(key) = binding.find_pin(range) else {
                return count;
            };
            let pins = binding.pins.remove(&key).unwrap_or_default();
            drop(binding);
            count += pins.len();
            pins.into_iter().for_each(release);
        }
    }

    /// Reads from `iova` on, whatever the alignment.
    ///
    /// # Errors
    ///
    /// [`AccessError`]; nothing is read unless it is [`AccessError::Memory`].
    pub fn read(&self, iova: Iova, into: &mut [u8]) -> Result<(), AccessError> {
        let mut rest = into;
        self.each_part(iova, rest.len(), false, |area, offset, len| {
            let (part, behind) = mem::take(&mut rest).split_at_mut(len);
            rest = behind;
            area.pages().source().read(offset, part)
        })
    }

    /// Writes from `iova` on, whatever the alignment.
    ///
    /// # Errors
    ///
    /// [`AccessError`]; nothing is written unless it is [`AccessError::Memory`].
    pub fn write(&self, iova: Iova, from: &[u8]) -> Result<(), AccessError> {
        let mut rest = from;
        self.each_part(iova, rest.len(), true, |area, offset, len| {
            let (part, behind) = rest.split_at(len);
            rest = behind;
            area.pages().source().write(offset, part)
        })
    }

    /// Calls `each` with the areas of a range, the first byte in their pages and the number of bytes.
    fn each_part(
        &self,
        iova: Iova,
        len: usize,
        is_write: bool,
        mut each: impl FnMut(&Area, u64, usize) -> Result<(), crate::pin::PinError>,
    ) -> Result<(), AccessError> {
        let ioas = self.ioas()?;
        let len = len as u64;
        if len == 0 {
            return Ok(());
        }
        let range = IovaRange::with_len(iova, len).ok_or(AccessError::NoRange { iova, len })?;
        let entered = ioas.enter(range, is_write)?;
        if entered.0.iter().any(|area| area.pages().is_revoked()) {
            return Err(HoldError::Revoked.into());
        }
        for area in &entered.0 {
            if let Some(part) = area.range().intersection(range) {
                let len = part.len_minus_one() as usize + 1;
                each(area, area.byte_of(part.start()), len)?;
            }
        }
        Ok(())
    }

    fn ioas(&self) -> Result<Arc<Ioas>, AccessError> {
        let binding = self.0.state.lock();
        binding.ioas.clone().ok_or(AccessError::Detached)
    }

    /// Returns the number of pins.
    pub fn pin_count(&self) -> usize {
        let binding = self.0.state.lock();
        binding.pins.values().map(Vec::len).sum()
    }
}

impl Access {
    /// Leaves the address space: the callback is asked to let go of everything, then nothing more can be
    /// pinned until the access is bound again.
    ///
    /// # Errors
    ///
    /// [`LetGoError`]; the access is bound as before then.
    pub fn detach(&self) -> Result<(), LetGoError> {
        self.rebind(None)
    }

    /// Leaves the address space for another one.
    ///
    /// # Errors
    ///
    /// As for [`detach`](Self::detach).
    pub fn replace(&self, ioas: &Arc<Ioas>) -> Result<(), LetGoError> {
        self.rebind(Some(Arc::clone(ioas)))
    }

    fn rebind(&self, new: Option<Arc<Ioas>>) -> Result<(), LetGoError> {
        let access = &self.0.0;
        loop {
            let old = mem::take(&mut access.state.lock().ioas);
            if let Some(old) = old {
                self.let_go_of(&old)?;
            }
            if let Some(new) = &new {
                new.accesses.lock().push(Arc::clone(access));
            }
            let mut binding = access.state.lock();
            if binding.ioas.is_none() {
                binding.ioas = new;
                return Ok(());
            }
            drop(binding);
            // Somebody else bound it meanwhile: it leaves that space, too.
            if let Some(new) = &new {
                new.strike_out(access);
            }
        }
    }

    /// Asks the callback to let go of everything, and leaves a space, to which the access is not bound
    /// any more.
    fn let_go_of(&self, old: &Arc<Ioas>) -> Result<(), LetGoError> {
        let access = &self.0.0;
        let mut try_count = 0;
        while access.begin(IovaRange::FULL) {
            let is_stuck = try_count == TRY_COUNT;
            try_count += 1;
            let _end = RunningGuard(access);
            if is_stuck {
                let bound = || Arc::clone(old);
                access.state.lock().ioas.get_or_insert_with(bound);
                return Err(LetGoError);
            }
            let _running = ACCESS_UNMAP.running();
            lockdep::assert_none_held();
            access.ops.unmap(&self.0, IovaRange::FULL);
        }
        old.strike_out(access);
        Ok(())
    }

    /// Ends the access: waits until no callback of it runs, and lets go of what it still has pinned. None
    /// will run afterwards.
    ///
    /// # Errors
    ///
    /// [`DestroyError`] with the access, which is as before, if a callback does not end, or if it is this
    /// one that destroys it.
    ///
    /// # Panics
    ///
    /// Debug builds panic if the thread holds a lock that a callback takes.
    pub fn destroy(self) -> Result<(), DestroyError> {
        if self.0.0.state.lock().running.contains(&thread_index()) {
            return Err(DestroyError::InsideCallback { access: self });
        }
        let _waiting = ACCESS_UNMAP.waiting();
        if self.end() {
            Ok(())
        } else {
            self.0.0.state.lock().is_ending = false;
            Err(DestroyError::Stuck { access: self })
        }
    }

    /// Lets no callback begin, waits for those that run, and gives up everything. Returns false if they
    /// do not end.
    fn end(&self) -> bool {
        let access = &self.0.0;
        access.state.lock().is_ending = true;
        let mut deadline = Deadline::after(PATIENCE);
        let mut turn = 0;
        while !access.state.lock().running.is_empty() {
            if deadline.left() == Left::Nothing {
                return false;
            }
            pause(turn);
            turn = turn.saturating_add(1);
        }
        access.give_up();
        true
    }
}

impl Registered {
    fn give_up(self: &Arc<Self>) {
        let (ioas, pins) = {
            let mut binding = self.state.lock();
            binding.is_ending = true;
            (binding.ioas.take(), mem::take(&mut binding.pins))
        };
        for pin in pins.into_values().flatten() {
            release(pin);
        }
        if let Some(ioas) = ioas {
            ioas.accesses
                .lock()
                .retain(|other| !Arc::ptr_eq(other, self));
        }
    }
}

impl Drop for Access {
    fn drop(&mut self) {
        // No wait: a callback that runs keeps alive what it uses, and can pin nothing any more.
        self.0.0.give_up();
    }
}

/// Holds the part of `range` that lies in `area`, and adds where it lies to `runs`.
fn hold(
    area: &Area,
    range: IovaRange,
    is_write: bool,
    runs: &mut Vec<PinnedRun>,
) -> Result<PageRange, AccessError> {
    let Some(part) = area.range().intersection(range) else {
        return Err(AccessError::Hole {
            iova: range.start(),
        });
    };
    let source = area.pages().source();
    let page = source.page_size();
    if source.kind() == Kind::Device {
        return Err(AccessError::Device { area: area.range() });
    }
    if is_write && !source.is_writable() {
        return Err(AccessError::Rights { area: area.range() });
    }
    let first = area.byte_of(part.start());
    if !page.divides(first) {
        return Err(AccessError::Unaligned { range });
    }
    let pages = area.pages_of(part);
    area.pages().hold(pages)?;
    let last = area.byte_of(part.last());
    area.pages().each_run(pages, |run, oa| {
        let start = run.first() * page.bytes();
        let end = (run.last() * page.bytes() + page.offset_mask()).min(last);
        let iova = Iova::new(part.start().get() + (start - first));
        if let Some(range) = IovaRange::with_len(iova, end - start + 1) {
            runs.push(PinnedRun { range, oa });
        }
        true
    });
    Ok(pages)
}

/// Ends one pin.
fn release(pin: Pin) {
    for (area, pages) in pin {
        area.pages().release(pages);
        area.status().pin_count -= 1;
    }
}

impl core::ops::Deref for Access {
    type Target = AccessHandle;

    fn deref(&self) -> &AccessHandle {
        &self.0
    }
}

impl fmt::Debug for AccessHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Access")
            .field("pin_count", &self.pin_count())
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
