//! One device, its queue and the domains in it.

use alloc::vec::Vec;
use core::fmt;
use core::time::Duration;

use iopt_formats::IovaRange;
use iopt_formats::command::virtio::{Config, Properties, Property, Request, feature};

use crate::domain::virtio::mappings::behind;
use crate::domain::virtio::member::Member;
use crate::domain::virtio::place::Whereabouts;
use crate::domain::virtio::requests::{Answer, Requests, Work};
use crate::domain::virtio::{RequestError, Transport};
use crate::sync::{self, Deadline, Left, Mutex, MutexGuard, SYNC, pause};

/// The time that the device has if nobody says otherwise.
const LIMIT: Duration = Duration::from_secs(1);

/// A virtio-iommu device behind its request queue, for all its domains; see the [module](super).
pub struct VirtioIommu<T> {
    config: Config,
    /// Bits of [`feature`].
    features: u64,
    limit: Duration,
    /// Held by who moves an endpoint, from request to answer (V6).
    endpoints: Mutex<()>,
    state: Mutex<State<T>>,
}

/// What the lock guards. Nobody waits for the device while holding it.
pub(super) struct State<T> {
    pub(super) requests: Requests<T>,
    domains: Vec<Member>,
    /// Requests that somebody waits for by name.
    awaited: Vec<u64>,
    /// Their answers.
    answers: Vec<Answer>,
    next_ticket: u64,
    /// Where to look for a number that is free.
    next_number: u32,
    /// Whether endpoints without a domain were blocked by writing to the configuration space.
    is_bypass_cleared: bool,
    /// Whether the device let a time pass: nothing new is asked of it before it has answered everything.
    is_overdue: bool,
}

/// What a step of [`VirtioIommu::pump`] did.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Step {
    /// It sent a request, or had none to send this time.
    Sent,
    /// There is nothing left to send.
    Done,
}

impl<T: Transport> VirtioIommu<T> {
    /// Takes a device over: in working order (`DRIVER_OK`), with `config` as read from its configuration space
    /// and `features` as negotiated, bit `n` for the [`feature`] `n`; `MAP_UNMAP` is among them. Nobody
    /// else sends requests.
    pub fn new(transport: T, config: Config, features: u64) -> Self {
        let capacity = transport.capacity();
        let state = State {
            requests: Requests::new(transport),
            domains: Vec::new(),
            awaited: Vec::with_capacity(capacity),
            answers: Vec::with_capacity(capacity),
            next_ticket: 0,
            next_number: 0,
            is_bypass_cleared: false,
            is_overdue: false,
        };
        Self {
            config,
            features,
            limit: LIMIT,
            endpoints: Mutex::new(&sync::ENDPOINTS, ()),
            state: Mutex::new(&sync::VIRTIO, state),
        }
    }

    /// Gives the device `limit` to answer a request that it was told of and is waited for, instead of a second.
    #[must_use]
    pub fn with_limit(self, limit: Duration) -> Self {
        Self { limit, ..self }
    }

    /// Returns the configuration.
    pub const fn config(&self) -> &Config {
        &self.config
    }

    /// Returns whether a [`feature`] was negotiated.
    pub const fn has_feature(&self, number: u32) -> bool {
        number < u64::BITS && self.features >> number & 1 != 0
    }

    /// Returns the numbers that domains may have.
    pub(super) const fn numbers(&self) -> (u32, u32) {
        if self.has_feature(feature::DOMAIN_RANGE) {
            (self.config.first_domain, self.config.last_domain)
        } else {
            (0, u32::MAX)
        }
    }

    /// Returns what can be mapped.
    pub(super) const fn aperture(&self) -> IovaRange {
        if self.has_feature(feature::INPUT_RANGE) {
            self.config.input_range
        } else {
            IovaRange::FULL
        }
    }

    /// Asks what is special about an endpoint: the reserved ranges, for an address space to
    /// [reserve](crate::ioas::Ioas::reserve) before the endpoint is attached. Without the feature `PROBE`,
    /// none. What stands behind a malformed property is lost.
    ///
    /// # Errors
    ///
    /// [`RequestError`]: [`NoEntry`](RequestError::NoEntry) if there is no such endpoint.
    #[doc(alias = "VIRTIO_IOMMU_T_PROBE")]
    pub fn probe(&self, endpoint: u32) -> Result<Vec<Property>, RequestError> {
        if !self.has_feature(feature::PROBE) {
            return Ok(Vec::new());
        }
        let answer = self.call(&Request::Probe { endpoint }, Work::Probe)?;
        let properties = Properties::new(&answer.properties);
        Ok(properties.map_while(Result::ok).collect())
    }

    /// Says that the device was reset and is in working order again, behind `transport`: nothing is
    /// under way, no endpoint attached, nothing mapped. Returns the transport of before.
    ///
    /// What was unmapped and not confirmed is now, so that quarantines can be
    /// [retried](crate::ioas::Ioas::retry_quarantined); what is mapped is sent again as endpoints
    /// are attached.
    pub fn was_reset(&self, transport: T) -> T {
        let mut state = self.state.lock();
        state.is_overdue = false;
        state.awaited.clear();
        for member in &mut state.domains {
            member.was_reset();
        }
        state.tidy();
        let old = state.requests.replace(transport);
        if state.is_bypass_cleared {
            // It should have survived.
            state.requests.write_bypass(false);
        }
        old
    }

    /// Returns whether the device has answered everything that it let a time pass for.
    pub(crate) fn is_answering(&self) -> bool {
        let mut state = self.state.lock();
        if state.is_overdue {
            state.collect();
        }
        !state.is_overdue
    }

    /// Sees to it that endpoints without a domain are blocked. Returns whether they are: otherwise they pass
    /// untranslated.
    pub(crate) fn block_idle(&self) -> bool {
        let can_write = self.has_feature(feature::BYPASS_CONFIG);
        let passes = self.config.is_bypass || (self.has_feature(feature::BYPASS) && !can_write);
        if !passes {
            return true;
        }
        let mut state = self.state.lock();
        state.is_bypass_cleared = can_write && state.requests.write_bypass(false);
        state.is_bypass_cleared
    }

    /// Keeps others from moving endpoints until the result is dropped.
    pub(super) fn lock_endpoints(&self) -> MutexGuard<'_, ()> {
        self.endpoints.lock()
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock()
    }

    /// Waits until `is_done`, which is asked after answers came in, once at least. A device that answers is
    /// waited for however long others keep it busy.
    ///
    /// # Errors
    ///
    /// [`RequestError::TimedOut`] if a request is late: nothing new is sent from then on.
    pub(super) fn wait_until(
        &self,
        is_done: impl FnMut(&mut State<T>) -> bool,
    ) -> Result<(), RequestError> {
        self.wait_or_lock(is_done)
            .map_err(|_state| RequestError::TimedOut)
    }

    /// As [`wait_until`](Self::wait_until), but if a request is late, the lock is held since the last look: nobody
    /// has taken an answer meanwhile.
    fn wait_or_lock(
        &self,
        mut is_done: impl FnMut(&mut State<T>) -> bool,
    ) -> Result<(), MutexGuard<'_, State<T>>> {
        let _waiting = SYNC.waiting();
        let mut deadline = Deadline::after(self.limit);
        let mut turn = 0;
        loop {
            let mut state = self.state.lock();
            state.requests.kick();
            if state.collect() {
                turn = 0;
            }
            if is_done(&mut state) {
                return Ok(());
            }
            if deadline.left() == Left::Nothing && state.requests.is_late(self.limit) {
                state.is_overdue = true;
                return Err(state);
            }
            drop(state);
            pause(turn);
            turn = turn.saturating_add(1);
        }
    }

    /// Takes steps until there is nothing left to send. Each may send one request, for which there is room:
    /// the device is told of them, and waited for, only where there is none.
    ///
    /// # Errors
    ///
    /// [`RequestError::TimedOut`] if the device makes no room, or was late before.
    pub(super) fn pump(
        &self,
        mut next: impl FnMut(&mut State<T>) -> Step,
    ) -> Result<(), RequestError> {
        loop {
            {
                let mut state = self.state.lock();
                if state.is_overdue {
                    state.collect();
                }
                if state.is_overdue {
                    return Err(RequestError::TimedOut);
                }
                while !state.requests.is_full() {
                    if next(&mut state) == Step::Done {
                        return Ok(());
                    }
                }
            }
            self.wait_until(|state| !state.requests.is_full())?;
        }
    }

    /// Sends a request and waits for its answer.
    pub(super) fn call(&self, request: &Request, work: Work) -> Result<Answer, RequestError> {
        let mut tag = None;
        self.pump(|state| {
            if tag.is_some() {
                return Step::Done;
            }
            let sent = state.requests.send(request, work, self.config.probe_size);
            state.awaited.push(sent);
            tag = Some(sent);
            Step::Done
        })?;
        let tag = tag.ok_or(RequestError::TimedOut)?;
        let mut answer = None;
        let waited = self.wait_or_lock(|state| {
            let place = state.answers.iter().position(|answer| answer.tag == tag);
            answer = place.map(|place| state.answers.swap_remove(place));
            // After a reset there is neither.
            answer.is_some() || !state.requests.has_tag(tag)
        });
        if let Err(mut state) = waited {
            state.awaited.retain(|&awaited| awaited != tag);
            if let Work::Attach { domain, endpoint } = work
                && let Some(member) = state.member(domain)
            {
                // It may be attached, so that whatever is removed has to be told.
                member.join(endpoint, Some(tag));
            }
        }
        let answer = answer.ok_or(RequestError::TimedOut)?;
        answer.result.map(|()| answer)
    }

    /// Sends what the device should have of `range` and has not. What comes of it shows in the mappings
    /// once it is answered.
    ///
    /// # Errors
    ///
    /// [`RequestError::TimedOut`]: not all was sent.
    pub(super) fn fill(&self, domain: u32, range: IovaRange) -> Result<(), RequestError> {
        let mut rest = Some(range);
        self.pump(|state| {
            let tag = state.requests.next_tag();
            let Some(member) = state.member(domain) else {
                return Step::Done;
            };
            let missing = rest.and_then(|rest| member.mappings.first_missing(rest));
            let Some((range, mapping)) = missing.filter(|_| member.is_live()) else {
                return Step::Done;
            };
            rest = rest.and_then(|rest| behind(range, rest));
            member.mappings.begin_map(range, tag);
            let request = Request::Map {
                domain,
                range,
                oa: mapping.oa,
                access: mapping.access,
            };
            state
                .requests
                .send(&request, Work::Map { domain, range }, 0);
            Step::Sent
        })
    }

    /// Asks the device to forget the mappings of `range`, which it has: those that were ended if there is
    /// a ticket, those that are to be replaced if not. Around direct ones.
    ///
    /// # Errors
    ///
    /// [`RequestError::TimedOut`]: not all was sent.
    pub(super) fn clear(
        &self,
        domain: u32,
        range: IovaRange,
        ticket: Option<u64>,
    ) -> Result<(), RequestError> {
        let mut rest = Some(range);
        self.pump(|state| {
            let member = state.member(domain);
            let part = member.and_then(|member| member.mappings.first_indirect(rest?));
            let Some(part) = part else {
                return Step::Done;
            };
            rest = rest.and_then(|rest| behind(part, rest));
            state.clear(domain, part, ticket);
            if rest.is_some() {
                Step::Sent
            } else {
                Step::Done
            }
        })
    }

    /// Waits until all is answered that changes mappings of `range` and is under way now. What others send
    /// meanwhile is not waited for: there may always be something.
    pub(super) fn settle(&self, domain: u32, range: IovaRange) -> Result<(), RequestError> {
        let mut end = None;
        self.wait_until(|state| {
            let end = *end.get_or_insert(state.requests.next_tag());
            let is_here = |of: IovaRange, _: Option<u64>| of.overlaps(range);
            let is_own = |work: Work| work.is_in(domain, is_here);
            !state.requests.has_before(end, is_own)
        })
    }
}

impl<T: Transport> State<T> {
    /// Takes all answers that there are, and notes what they say. Returns whether there was one.
    pub(super) fn collect(&mut self) -> bool {
        let mut has_some = false;
        while let Some(answer) = self.requests.collect() {
            has_some = true;
            if !answer.is_void {
                self.note(&answer);
            }
            if let Some(place) = self.awaited.iter().position(|&tag| tag == answer.tag) {
                self.awaited.swap_remove(place);
                self.answers.push(answer);
            }
        }
        self.is_overdue &= !self.requests.is_idle();
        has_some
    }

    fn note(&mut self, answer: &Answer) {
        let (tag, result) = (answer.tag, answer.result);
        match answer.work {
            Work::Map { domain, range } => {
                if let Some(member) = self.member(domain) {
                    member.mappings.mapped(range, tag, result);
                }
            }
            Work::Unmap { domain, range, .. } => {
                if let Some(member) = self.member(domain) {
                    member.mappings.unmapped(range, tag, result);
                }
            }
            Work::Attach { domain, endpoint } => match result {
                Ok(()) => {
                    // Out of the domain where it was, which may go with it.
                    self.leave_all(endpoint, Some(domain));
                    if let Some(member) = self.member(domain) {
                        member.join(endpoint, None);
                    }
                }
                // There is no such endpoint: the domain need not be there.
                Err(RequestError::NoEntry) => self.leave_all(endpoint, None),
                Err(error) => {
                    if let Some(member) = self.member(domain)
                        && !error.is_without_effect()
                    {
                        member.join(endpoint, Some(tag));
                    } else {
                        self.end_doubt(domain, endpoint, tag);
                    }
                }
            },
            Work::Detach { endpoint, .. } => {
                if result.is_ok() {
                    // It was in that domain, and so in no other one.
                    self.leave_all(endpoint, None);
                }
            }
            Work::Probe => {}
        }
    }

    /// Notes that an endpoint is in no domain any more, but for one that is kept.
    fn leave_all(&mut self, endpoint: u32, kept: Option<u32>) {
        let is_left =
            |member: &&Member| Some(member.number) != kept && member.seat(endpoint).is_some();
        while let Some(member) = self.domains.iter().find(is_left) {
            let domain = member.number;
            self.leave(domain, endpoint);
        }
    }

    /// Notes that an `ATTACH` did nothing, for which an endpoint counted as in the domain.
    fn end_doubt(&mut self, domain: u32, endpoint: u32, tag: u64) {
        let member = self.member(domain);
        if member.is_some_and(|member| member.is_doubted_for(endpoint, tag)) {
            self.leave(domain, endpoint);
        }
    }

    /// Notes that an endpoint is not in a domain any more. With the last one the device drops what is mapped.
    fn leave(&mut self, domain: u32, endpoint: u32) {
        let Some(member) = self.member(domain) else {
            return;
        };
        if member.leave(endpoint) && !member.is_live() {
            member.mappings.dropped();
            self.requests.make_void(domain);
            self.tidy();
        }
    }

    /// Returns where an endpoint is, as far as the device has said.
    pub(super) fn whereabouts(&self, endpoint: u32) -> Whereabouts {
        let seats = self.domains.iter().filter_map(|member| {
            let is_certain = member.seat(endpoint)?;
            Some((member.number, is_certain))
        });
        let mut found = Whereabouts::Nowhere;
        for (number, is_certain) in seats {
            found = match found {
                Whereabouts::Nowhere if is_certain => Whereabouts::In(number),
                _ => return Whereabouts::Unknown,
            };
        }
        found
    }

    /// Sends an `UNMAP`, for which there is room, if there is anything for it (V5). A domain without endpoints
    /// is empty already.
    pub(super) fn clear(&mut self, domain: u32, range: IovaRange, ticket: Option<u64>) {
        let tag = self.requests.next_tag();
        let member = self.member(domain);
        let Some(member) = member.filter(|member| member.is_live()) else {
            return;
        };
        let is_ended = ticket.is_some();
        if !member.mappings.begin_unmap(range, tag, is_ended) {
            return;
        }
        let work = Work::Unmap {
            domain,
            range,
            ticket,
        };
        self.requests
            .send(&Request::Unmap { domain, range }, work, 0);
    }

    pub(super) const fn new_ticket(&mut self) -> u64 {
        self.next_ticket += 1;
        self.next_ticket
    }

    pub(super) fn member(&mut self, number: u32) -> Option<&mut Member> {
        let mut members = self.domains.iter_mut();
        members.find(|member| member.number == number)
    }

    /// Returns a number from `first` to `last` that no domain has.
    pub(super) fn free_number(&mut self, first: u32, last: u32) -> Option<u32> {
        for _ in 0..=self.domains.len() {
            let candidate = self.next_number.clamp(first, last);
            self.next_number = if candidate < last {
                candidate + 1
            } else {
                first
            };
            if self.member(candidate).is_none() {
                return Some(candidate);
            }
        }
        None
    }

    /// Adds a domain. Returns false if there is no memory.
    pub(super) fn add(&mut self, number: u32) -> bool {
        let has_room = self.domains.try_reserve(1).is_ok();
        if has_room {
            self.domains.push(Member::new(number));
        }
        has_room
    }

    /// Forgets domains that nobody has any more, in software or in the device.
    pub(super) fn tidy(&mut self) {
        self.domains
            .retain(|member| !member.is_dropped || member.is_live());
    }
}

impl<T> fmt::Debug for VirtioIommu<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VirtioIommu")
            .field("config", &self.config)
            .finish_non_exhaustive()
    }
}
