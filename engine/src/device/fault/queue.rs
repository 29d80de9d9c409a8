//! The page requests of one device: who is to answer, and what is open.

use alloc::boxed::Box;
use alloc::collections::TryReserveError;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;
use core::time::Duration;

use iopt_formats::command::{PageResponse, Pasid};

use crate::device::fault::group::{Fate, FaultGroup, FaultHandler, RespondError};
use crate::device::fault::partial::{Begun, Partials};
use crate::device::fault::request::{Answer, Origin, PageResponder, Reported, Requester};
use crate::device::fault::rounds::{Doubt, Doubts, Kept, Mark, Rounds, Unread};
use crate::device::{Clock, DeviceAddress, DeviceControl, SystemClock};
use crate::invalidation::SyncError;
use crate::sync::{FAULTS, Mutex, lockdep};

/// How the page requests of a device are treated.
#[derive(Clone, Debug)]
pub struct FaultSettings {
    /// What the time is.
    pub clock: Arc<dyn Clock>,
    /// How long a handler may take to answer, and how long the last request of a group may take to come.
    pub patience: Duration,
    /// How many groups of a device may wait for an answer, and how many for their last request: as many as it
    /// may have on their way.
    pub group_limit: usize,
    /// How many requests of incomplete groups are kept.
    pub request_limit: usize,
}

impl Default for FaultSettings {
    /// Ten seconds by the system's clock, 512 groups, 4096 requests.
    fn default() -> Self {
        Self {
            clock: Arc::new(SystemClock),
            patience: Duration::from_secs(10),
            group_limit: 512,
            request_limit: 4096,
        }
    }
}

/// The page requests of one device.
pub struct DeviceFaults {
    address: DeviceAddress,
    control: Arc<dyn DeviceControl>,
    responder: Arc<dyn PageResponder>,
    settings: FaultSettings,
    needs_pasids: bool,
    inner: Mutex<Inner>,
}

struct Inner {
    /// Fault-capable attachments and preparations.
    count: usize,
    /// There is one while there is any of these; F1.
    queue: Option<Box<Queue>>,
    /// Who answers, by PASID. Has room for all that are being prepared.
    places: Vec<(Option<Pasid>, Arc<dyn FaultHandler>)>,
    /// Whether the device may ask.
    is_enabled: bool,
    /// Whether it might at any time.
    has_asked: bool,
    doubts: Doubts,
    /// Groups whose answer hardware did not take.
    lost_count: usize,
}

#[derive(Default)]
struct Queue {
    partial: Partials,
    open: Vec<Open>,
}

/// A group that waits for its answer.
pub(super) struct Open {
    pub(super) fate: Arc<Fate>,
    requester: Requester,
    pasid: Option<Pasid>,
    origin: Origin,
    deadline: Duration,
}

/// Why a fault-capable domain cannot be attached.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("no memory for the page requests of a device")]
pub struct CountError;

impl From<TryReserveError> for CountError {
    fn from(_: TryReserveError) -> Self {
        Self
    }
}

/// A fault-capable attachment that is about to be. It is counted, until it is dropped or what it became is
/// replaced.
#[must_use = "dropped, it is not counted any more"]
pub struct Counted {
    faults: Arc<DeviceFaults>,
    /// Gone once it is attached.
    handler: Option<Arc<dyn FaultHandler>>,
}

impl Drop for Counted {
    fn drop(&mut self) {
        if self.handler.is_some() {
            let queue = self.faults.inner.lock().uncount();
            drop(queue);
        }
    }
}

impl fmt::Debug for Counted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Counted").finish_non_exhaustive()
    }
}

impl DeviceFaults {
    /// Creates what a device has that asks for nothing yet.
    pub fn new(
        address: DeviceAddress,
        control: Arc<dyn DeviceControl>,
        responder: Arc<dyn PageResponder>,
        settings: FaultSettings,
    ) -> Arc<Self> {
        let inner = Inner {
            count: 0,
            queue: None,
            places: Vec::new(),
            is_enabled: false,
            has_asked: false,
            doubts: Doubts::default(),
            lost_count: 0,
        };
        let needs_pasids = control.needs_pasids_in_responses(address);
        Arc::new(Self {
            address,
            control,
            responder,
            settings,
            needs_pasids,
            inner: Mutex::new(&FAULTS, inner),
        })
    }

    /// Returns which device it is.
    pub const fn address(&self) -> DeviceAddress {
        self.address
    }

    /// Returns how many fault-capable attachments and preparations there are.
    pub fn count(&self) -> usize {
        self.inner.lock().count
    }

    /// Returns whether there is a queue.
    pub fn has_queue(&self) -> bool {
        self.inner.lock().queue.is_some()
    }

    /// Returns how many groups wait for an answer.
    pub fn open_count(&self) -> usize {
        let inner = self.inner.lock();
        inner.queue.as_ref().map_or(0, |queue| queue.open.len())
    }

    /// Returns how many groups wait for their last request.
    pub fn partial_count(&self) -> usize {
        let inner = self.inner.lock();
        inner.queue.as_ref().map_or(0, |queue| queue.partial.len())
    }

    /// Returns how many answers hardware did not take.
    pub fn lost_count(&self) -> usize {
        self.inner.lock().lost_count
    }

    /// Counts an attachment of a domain with this handler, which is about to be made. The first one makes the
    /// queue.
    ///
    /// # Errors
    ///
    /// [`CountError`], with nothing counted.
    pub fn prepare(
        self: &Arc<Self>,
        handler: Arc<dyn FaultHandler>,
    ) -> Result<Counted, CountError> {
        let mut inner = self.inner.lock();
        // Each that is counted has a place, or will have one.
        let needed = (inner.count + 1).saturating_sub(inner.places.len());
        inner.places.try_reserve(needed)?;
        if inner.queue.is_none() {
            inner.queue = Some(Box::default());
        }
        inner.count += 1;
        Ok(Counted {
            faults: Arc::clone(self),
            handler: Some(handler),
        })
    }

    /// Says that records of the device come in a queue with these rounds, at one of its instances.
    pub(super) fn read_by(
        &self,
        port: usize,
        has_stalls: bool,
        rounds: &Arc<Rounds>,
        left: Option<Mark>,
    ) -> Result<(), CountError> {
        let mut inner = self.inner.lock();
        inner.doubts.enter(port, has_stalls, rounds, left)
    }

    /// Gets room for as many places to be [left](Self::leave).
    ///
    /// # Errors
    ///
    /// [`CountError`].
    pub fn reserve(&self, place_count: usize) -> Result<(), CountError> {
        self.inner.lock().doubts.reserve(place_count)
    }

    /// Says that contexts lead requests of a place elsewhere, fault-capable or not: to something else if
    /// `is_replaced`, or nowhere. What the queues of records hold of that place is handed over to nobody; `kept` stays
    /// until it is read (F5). Comes before [`change`](Self::change). Cannot fail, and allocates nothing.
    pub fn leave(&self, place: Option<Pasid>, is_replaced: bool, kept: Option<&Kept>) {
        self.forget_passed();
        let mut inner = self.inner.lock();
        if inner.has_asked {
            let doubt = if is_replaced {
                Doubt::Retry
            } else {
                Doubt::GiveUp
            };
            inner.doubts.leave(place, doubt, kept);
        }
    }

    /// Lets go of what was kept until records were read that are read by now.
    pub fn forget_passed(&self) {
        while let Some(passed) = self.take_passed() {
            drop(passed);
        }
    }

    fn take_passed(&self) -> Option<Unread> {
        self.inner.lock().doubts.take_passed()
    }

    /// Returns how many places were left with records that may be unread, once for each queue.
    pub fn unread_count(&self) -> usize {
        self.forget_passed();
        self.inner.lock().doubts.len()
    }

    /// Says that what is attached at a place is about to be replaced by something, fault-capable if `is_capable`.
    /// If no fault-capable domain remains the device may not ask any more. Comes before ATS is disabled and
    /// before contexts change.
    ///
    /// One change of a device's attachments at a time, as under its lock.
    pub fn begin_change(&self, place: Option<Pasid>, is_capable: bool) {
        let ends = {
            let mut inner = self.inner.lock();
            let mut others = inner.places.iter().filter(|(other, _)| *other != place);
            let ends = inner.is_enabled && !is_capable && others.next().is_none();
            inner.is_enabled &= !ends;
            ends
        };
        if ends {
            self.control.set_page_requests(self.address, false);
        }
    }

    /// Says that the device goes: it may not ask any more, whatever is attached. Comes before ATS is disabled.
    pub fn forbid(&self) {
        let was_enabled = core::mem::take(&mut self.inner.lock().is_enabled);
        if was_enabled {
            self.control.set_page_requests(self.address, false);
        }
    }

    /// Says that contexts lead requests of a place elsewhere: `new` answers from now on, or nobody. What the old
    /// domain has not answered is answered with [`PageResponse::Invalid`] (F3). With the first fault-capable
    /// domain the device may ask for pages; so this comes after ATS was enabled. Cannot fail, and allocates
    /// nothing.
    ///
    /// One change of a device's attachments at a time, as under its lock.
    pub fn change(&self, place: Option<Pasid>, new: Option<Counted>) {
        let handler = new.and_then(|mut new| {
            debug_assert!(
                core::ptr::eq(&raw const *new.faults, self),
                "of this device"
            );
            new.handler.take()
        });
        let (old, queue, begins) = {
            let mut inner = self.inner.lock();
            let at = inner.places.iter().position(|(other, _)| *other == place);
            let old = at.map(|at| inner.places.swap_remove(at));
            if old.is_some() {
                self.close(&mut inner, place);
            }
            let begins = handler.is_some() && !inner.is_enabled;
            if let Some(handler) = handler {
                // Reserved in `prepare`.
                inner.places.push((place, handler));
                inner.is_enabled = true;
                inner.has_asked = true;
            }
            let queue = old.as_ref().and_then(|_| inner.uncount());
            (old, queue, begins)
        };
        // Handlers are strangers, also in their end.
        drop((old, queue));
        if begins {
            self.control.set_page_requests(self.address, true);
        }
    }

    /// Takes in a request that hardware reported. If it completes a group, the handler is called.
    ///
    /// Markers that ask for nothing (Stop Marker) are not requests.
    pub fn report(self: &Arc<Self>, reported: &Reported) {
        lockdep::assert_none_held();
        let now = self.settings.clock.now();
        let handed = {
            let mut inner = self.inner.lock();
            match self.enter(&mut inner, reported, now) {
                Entered::Kept => None,
                Entered::Complete(handler, group) => Some((handler, group)),
                Entered::Answered(response) => {
                    let answer = self.answer(
                        reported.requester,
                        reported.pasid,
                        reported.origin,
                        response,
                    );
                    // Counted there; nobody asked.
                    let _ = self.send(&mut inner, &answer);
                    None
                }
            }
        };
        if let Some((handler, group)) = handed {
            lockdep::assert_none_held();
            handler.handle(group);
        }
    }

    /// Says that hardware lost requests and answered their groups itself: what is kept of groups whose last
    /// request did not come is forgotten. To be called once all records were reported that had room.
    pub fn forget_partial(&self) {
        if let Some(queue) = &mut self.inner.lock().queue {
            queue.partial.clear();
        }
    }

    /// Answers, with [`PageResponse::Invalid`], what was not answered in time, and forgets groups whose last
    /// request did not come in time. Returns when to call it next, if anything is left.
    pub fn expire(&self) -> Option<Duration> {
        let now = self.settings.clock.now();
        let mut inner = self.inner.lock();
        let mut is_dead = false;
        while let Some(open) = inner.take_open(|open| open.deadline <= now) {
            open.fate.set_timed_out();
            self.send_invalid(&mut inner, &open, &mut is_dead);
        }
        let queue = inner.queue.as_mut()?;
        let partial = queue.partial.expire(now);
        let open = queue.open.iter().map(|open| open.deadline);
        open.chain(partial).min()
    }

    /// Answers an open group.
    pub(super) fn respond(
        &self,
        fate: &Arc<Fate>,
        response: PageResponse,
    ) -> Result<(), RespondError> {
        let now = self.settings.clock.now();
        let mut inner = self.inner.lock();
        let open = inner.take_open(|open| fate.is_of(open));
        let open = open.ok_or_else(|| fate.error())?;
        if open.deadline <= now {
            self.send_invalid(&mut inner, &open, &mut false);
            return Err(RespondError::TimedOut);
        }
        let answer = self.answer(open.requester, open.pasid, open.origin, response);
        Ok(self.send(&mut inner, &answer)?)
    }

    fn enter(self: &Arc<Self>, inner: &mut Inner, reported: &Reported, now: Duration) -> Entered {
        let pasid = reported.pasid;
        let Some(queue) = &mut inner.queue else {
            return Entered::refused(reported);
        };
        let begun = reported.is_complete().then(|| queue.partial.take(reported));
        let mut places = inner.places.iter();
        let Some((_, handler)) = places.find(|(place, _)| *place == pasid) else {
            return Entered::refused(reported);
        };
        let has_stalls = matches!(reported.origin, Origin::Stall(_));
        let port = reported.requester.port;
        if let Some(doubt) = inner.doubts.find(port, has_stalls, pasid) {
            return Entered::doubtful(reported, doubt);
        }
        let deadline = now.saturating_add(self.settings.patience);
        let Some(begun) = begun else {
            queue.partial.keep(reported, deadline, &self.settings);
            return Entered::Kept;
        };
        let Begun {
            mut requests,
            is_whole,
        } = begun;
        let has_room = queue.open.len() < self.settings.group_limit
            && queue.open.try_reserve(1).is_ok()
            && requests.try_reserve(1).is_ok();
        if !is_whole || !has_room {
            return Entered::refused(reported);
        }
        requests.push(reported.request);
        let fate = Fate::new();
        queue.open.push(Open {
            fate: Arc::clone(&fate),
            requester: reported.requester,
            pasid,
            origin: reported.origin,
            deadline,
        });
        let group = FaultGroup {
            faults: Arc::clone(self),
            pasid,
            requests,
            fate,
            has_responded: false,
        };
        Entered::Complete(Arc::clone(handler), group)
    }

    /// Answers and forgets all that came for a place.
    fn close(&self, inner: &mut Inner, place: Option<Pasid>) {
        let mut is_dead = false;
        while let Some(open) = inner.take_open(|open| open.pasid == place) {
            open.fate.set_detached();
            self.send_invalid(inner, &open, &mut is_dead);
        }
        if let Some(queue) = &mut inner.queue {
            queue.partial.leave(place);
        }
    }

    /// Answers one of several; when hardware does not take one it is not asked about the others, each of which
    /// would take all of its time.
    fn send_invalid(&self, inner: &mut Inner, open: &Open, is_dead: &mut bool) {
        if *is_dead {
            inner.lost_count += 1;
            return;
        }
        let answer = self.answer(
            open.requester,
            open.pasid,
            open.origin,
            PageResponse::Invalid,
        );
        // Counted there; who asked is told that it is too late.
        *is_dead = self.send(inner, &answer).is_err();
    }

    fn send(&self, inner: &mut Inner, answer: &Answer) -> Result<(), SyncError> {
        let sent = self.responder.respond(self.address, answer);
        inner.lost_count += usize::from(sent.is_err());
        sent
    }

    fn answer(
        &self,
        requester: Requester,
        pasid: Option<Pasid>,
        origin: Origin,
        response: PageResponse,
    ) -> Answer {
        Answer {
            requester,
            pasid: pasid.filter(|_| self.needs_pasids),
            origin,
            response,
        }
    }
}

/// What becomes of a request.
enum Entered {
    /// More of its group follows.
    Kept,
    /// Somebody is to answer its group.
    Complete(Arc<dyn FaultHandler>, FaultGroup),
    /// Nobody can, or should.
    Answered(PageResponse),
}

impl Entered {
    const fn refused(reported: &Reported) -> Self {
        Self::answered(reported, PageResponse::Invalid)
    }

    const fn doubtful(reported: &Reported, doubt: Doubt) -> Self {
        match doubt {
            Doubt::Retry => Self::answered(reported, PageResponse::Success),
            Doubt::GiveUp => Self::refused(reported),
        }
    }

    const fn answered(reported: &Reported, response: PageResponse) -> Self {
        if reported.is_complete() {
            Self::Answered(response)
        } else {
            Self::Kept
        }
    }
}

impl Inner {
    /// Returns the queue after the last one, to be dropped without the lock.
    #[must_use]
    fn uncount(&mut self) -> Option<Box<Queue>> {
        self.count -= 1;
        if self.count == 0 {
            self.queue.take()
        } else {
            None
        }
    }

    fn take_open(&mut self, is_meant: impl Fn(&Open) -> bool) -> Option<Open> {
        let open = &mut self.queue.as_mut()?.open;
        let at = open.iter().position(is_meant)?;
        Some(open.remove(at))
    }
}

impl fmt::Debug for DeviceFaults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let inner = self.inner.lock();
        f.debug_struct("DeviceFaults")
            .field("address", &self.address)
            .field("count", &inner.count)
            .field("is_enabled", &inner.is_enabled)
            .field("lost_count", &inner.lost_count)
            .finish_non_exhaustive()
    }
}
