//! A virtio-iommu device of its own making: reads the bytes of requests by the offsets of the specification
//! (*VIRTIO 1.3*, section 5.13.6) and answers with the status that it asks for.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use iopt::domain::virtio::Transport;

/// Status: done.
pub const OK: u8 = 0;
/// Status: no such request.
pub const UNSUPPORTED: u8 = 2;
/// Status: the device failed.
pub const DEVICE_ERROR: u8 = 3;
/// Status: a field is wrong.
pub const INVALID: u8 = 4;
/// Status: a range does not fit.
pub const RANGE: u8 = 5;
/// Status: no such endpoint or domain.
pub const NO_ENTRY: u8 = 6;
/// Status: no memory is left.
pub const NO_MEMORY: u8 = 8;

/// Type of a request.
pub const ATTACH: u8 = 1;
/// Type of a request.
pub const DETACH: u8 = 2;
/// Type of a request.
pub const MAP: u8 = 3;
/// Type of a request.
pub const UNMAP: u8 = 4;
/// Type of a request.
pub const PROBE: u8 = 5;

const MMIO: u32 = 4;

/// What goes wrong.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Fault {
    /// It is not carried out, and this is the status.
    Status(u8),
    /// It is carried out, and this is the status.
    DoneBut(u8),
    /// It is not carried out, and comes back without a byte.
    Empty,
    /// Nothing comes back before [`Device::answer_late`], which carries it out.
    Silent,
    /// It is carried out, and the answer comes with [`Device::release`].
    Held,
}

/// A mapping, by its first address.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Mapping {
    /// The last address.
    pub last: u64,
    /// Where the first byte lies.
    pub phys: u64,
    /// `R`, `W` and `MMIO`.
    pub flags: u32,
}

/// A request.
#[derive(Debug)]
pub struct Sent {
    tag: u64,
    bytes: Vec<u8>,
    written_len: usize,
}

/// An order for the request of a type that follows so many others of it.
#[derive(Debug)]
struct Order {
    kind: u8,
    /// The first address that it is for, if not for all.
    start: Option<u64>,
    /// The endpoint that it is for, if not for all.
    endpoint: Option<u32>,
    left: u64,
    fault: Fault,
    is_lasting: bool,
}

/// The device.
#[derive(Debug, Default)]
pub struct State {
    /// The smallest page.
    pub granule: u64,
    /// The addresses that can be mapped.
    pub input_range: (u64, u64),
    /// Bytes of properties.
    pub probe_size: usize,
    /// Those of every endpoint.
    pub properties: Vec<u8>,
    /// Whether registers can be mapped.
    pub takes_mmio: bool,
    /// Whether it has domains in which addresses pass, and `bypass` can be written (`BYPASS_CONFIG`).
    pub takes_bypass: bool,
    /// `bypass` of the configuration space: whether endpoints in no domain pass.
    pub is_bypass: bool,
    /// Domains in which addresses pass.
    pub bypasses: BTreeSet<u32>,
    /// Endpoints that there are, and in which domain.
    pub endpoints: BTreeMap<u32, Option<u32>>,
    /// Domains that have an endpoint, and what is mapped.
    pub domains: BTreeMap<u32, BTreeMap<u64, Mapping>>,
    capacity: usize,
    queue: Vec<Sent>,
    /// What it is silent about.
    pub late: Vec<Sent>,
    answers: VecDeque<(u64, Vec<u8>)>,
    /// How many answers to nothing come behind the others.
    pub stray_count: u64,
    /// Answers that are held back.
    pub held: VecDeque<(u64, Vec<u8>)>,
    orders: Vec<Order>,
    /// Whether requests of one kick are carried out in a random order.
    pub shuffle: Option<u64>,
    /// How often it was told of requests.
    pub kick_count: u64,
    /// Of each request, in the order in which it was sent.
    pub kinds: Vec<u16>,
    /// How many requests of a type were about an endpoint.
    about: BTreeMap<(u8, u32), usize>,
    /// Of each request that nobody ordered to fail, if it failed.
    pub refusals: Vec<(u8, u8)>,
    /// How many requests there were at most.
    pub most_under_way: usize,
    /// Mistakes of the driver.
    pub mistakes: Vec<String>,
}

/// A handle on the device for the test, and the transport for the engine.
#[derive(Clone, Debug)]
pub struct Device(Arc<Mutex<State>>);

impl Device {
    /// Creates one with endpoints 1 to 3, in no domain, and room for so many requests.
    pub fn new(capacity: usize) -> Self {
        Self(Arc::new(Mutex::new(State {
            granule: 0x1000,
            input_range: (0, u64::MAX),
            probe_size: 64,
            takes_mmio: true,
            endpoints: (1..=3).map(|endpoint| (endpoint, None)).collect(),
            capacity,
            ..State::default()
        })))
    }

    /// Looks at it.
    pub fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Orders the request of a type to fail that follows `left` others of it, and all behind it if
    /// `is_lasting`.
    pub fn order(&self, kind: u8, left: u64, fault: Fault, is_lasting: bool) {
        self.state().orders.push(Order {
            kind,
            start: None,
            endpoint: None,
            left,
            fault,
            is_lasting,
        });
    }

    /// Orders the requests of a type to fail that begin at an address.
    pub fn order_at(&self, kind: u8, start: u64, fault: Fault) {
        self.state().orders.push(Order {
            kind,
            start: Some(start),
            endpoint: None,
            left: 0,
            fault,
            is_lasting: true,
        });
    }

    /// Orders the next request of a type to fail that is about an endpoint, or all of them if `is_lasting`.
    pub fn order_for(&self, kind: u8, endpoint: u32, fault: Fault, is_lasting: bool) {
        self.state().orders.push(Order {
            kind,
            start: None,
            endpoint: Some(endpoint),
            left: 0,
            fault,
            is_lasting,
        });
    }

    /// Lets nothing fail any more.
    pub fn heal(&self) {
        self.state().orders.clear();
    }

    /// Carries out what it was silent about.
    pub fn answer_late(&self) {
        let mut state = self.state();
        for sent in std::mem::take(&mut state.late) {
            let status = state.execute(&sent.bytes);
            state.answer(&sent, status);
        }
    }

    /// Gives the answer that it has held back for the longest time.
    pub fn release(&self) {
        let mut state = self.state();
        let answer = state.held.pop_front().expect("an answer is held back");
        state.answers.push_back(answer);
    }

    /// Takes an endpoint away, which leaves its domain.
    pub fn unplug(&self, endpoint: u32) {
        let mut state = self.state();
        if let Some(Some(domain)) = state.endpoints.get(&endpoint).copied() {
            state.detach(domain, endpoint);
        }
        state.endpoints.remove(&endpoint);
    }

    /// Resets the device: everything is forgotten, answers and all.
    pub fn reset(&self) {
        let mut state = self.state();
        state.late.clear();
        state.queue.clear();
        state.answers.clear();
        state.held.clear();
        state.orders.clear();
        state.domains.clear();
        state.bypasses.clear();
        for domain in state.endpoints.values_mut() {
            *domain = None;
        }
    }

    /// Waits until `is_so`, which another thread brings about.
    pub fn wait_until(&self, is_so: impl Fn(&State) -> bool) {
        while !is_so(&self.state()) {
            thread::yield_now();
        }
    }

    /// Returns the number of requests of a type.
    pub fn count(&self, kind: u8) -> usize {
        self.state().count(kind)
    }

    /// Returns what an endpoint reaches at an address: where, and the flags.
    pub fn translate(&self, endpoint: u32, iova: u64) -> Option<(u64, u32)> {
        let state = self.state();
        let passes = Some((iova, 3));
        let Some(domain) = *state.endpoints.get(&endpoint)? else {
            return passes.filter(|_| state.is_bypass);
        };
        if state.bypasses.contains(&domain) {
            return passes;
        }
        let mappings = state.domains.get(&domain)?;
        let (&start, mapping) = mappings.range(..=iova).next_back()?;
        (iova <= mapping.last).then(|| (mapping.phys + (iova - start), mapping.flags))
    }

    /// Returns the number of mappings of a domain.
    pub fn mapping_count(&self, domain: u32) -> usize {
        let state = self.state();
        state.domains.get(&domain).map_or(0, BTreeMap::len)
    }

    /// Checks that the driver did nothing that it must not, and that nothing was refused unasked.
    pub fn assert_clean(&self) {
        let state = self.state();
        assert!(state.mistakes.is_empty(), "{:?}", state.mistakes);
        assert!(state.refusals.is_empty(), "{:?}", state.refusals);
    }
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

/// Returns the domain and the addresses that a request changes, if it changes mappings.
fn place(bytes: &[u8]) -> Option<(u32, u64, u64)> {
    let is_change = matches!(bytes[0], MAP | UNMAP);
    is_change.then(|| (u32_at(bytes, 4), u64_at(bytes, 8), u64_at(bytes, 16)))
}

/// Returns the endpoint that a request is about, if it is about one.
fn endpoint_of(bytes: &[u8]) -> Option<u32> {
    match bytes[0] {
        ATTACH | DETACH => Some(u32_at(bytes, 8)),
        PROBE => Some(u32_at(bytes, 4)),
        _ => None,
    }
}

impl State {
    /// Returns the number of requests of a type that are about an endpoint.
    pub fn count_for(&self, kind: u8, endpoint: u32) -> usize {
        self.about.get(&(kind, endpoint)).copied().unwrap_or(0)
    }

    /// Returns the number of requests of a type.
    pub fn count(&self, kind: u8) -> usize {
        let sent = self.kinds.iter().filter(|&&sent| sent == kind.into());
        sent.count()
    }

    fn execute(&mut self, bytes: &[u8]) -> Option<u8> {
        let len = match bytes[0] {
            ATTACH | DETACH => 20,
            MAP => 36,
            UNMAP => 28,
            PROBE => 72,
            _ => return None,
        };
        if bytes.len() != len {
            self.mistakes
                .push(format!("a request of {} bytes", bytes.len()));
            return None;
        }
        let reserved: &[(usize, usize)] = match bytes[0] {
            ATTACH => &[(1, 4), (16, 20)],
            DETACH => &[(1, 4), (12, 20)],
            MAP => &[(1, 4)],
            UNMAP => &[(1, 4), (24, 28)],
            _ => &[(1, 4), (8, 72)],
        };
        if reserved
            .iter()
            .any(|&(from, to)| bytes[from..to].iter().any(|&byte| byte != 0))
        {
            self.mistakes.push(format!("reserved bytes: {bytes:x?}"));
            return Some(INVALID);
        }
        let (subject, endpoint) = (u32_at(bytes, 4), u32_at(bytes, 8));
        Some(match bytes[0] {
            ATTACH => self.attach(subject, endpoint, u32_at(bytes, 12)),
            DETACH => self.detach(subject, endpoint),
            MAP => self.map(subject, bytes),
            UNMAP => self.unmap(subject, u64_at(bytes, 8), u64_at(bytes, 16)),
            _ if self.endpoints.contains_key(&subject) => OK,
            _ => NO_ENTRY,
        })
    }

    fn attach(&mut self, domain: u32, endpoint: u32, flags: u32) -> u8 {
        let is_bypass = flags & 1 != 0;
        if flags & !1 != 0 || is_bypass && !self.takes_bypass {
            return INVALID;
        }
        let Some(&was) = self.endpoints.get(&endpoint) else {
            return NO_ENTRY;
        };
        if let Some(was) = was {
            self.detach(was, endpoint);
        }
        if self.domains.contains_key(&domain) && self.bypasses.contains(&domain) != is_bypass {
            return INVALID;
        }
        self.endpoints.insert(endpoint, Some(domain));
        self.domains.entry(domain).or_default();
        if is_bypass {
            self.bypasses.insert(domain);
        }
        OK
    }

    fn detach(&mut self, domain: u32, endpoint: u32) -> u8 {
        match self.endpoints.get(&endpoint) {
            None => return NO_ENTRY,
            Some(_) if !self.domains.contains_key(&domain) => return NO_ENTRY,
            Some(&of) if of != Some(domain) => return INVALID,
            Some(_) => {}
        }
        self.endpoints.insert(endpoint, None);
        if !self.endpoints.values().any(|&of| of == Some(domain)) {
            self.domains.remove(&domain);
            self.bypasses.remove(&domain);
        }
        OK
    }

    fn map(&mut self, domain: u32, bytes: &[u8]) -> u8 {
        let (start, last) = (u64_at(bytes, 8), u64_at(bytes, 16));
        let (phys, flags) = (u64_at(bytes, 24), u32_at(bytes, 32));
        let known = if self.takes_mmio { 3 | MMIO } else { 3 };
        let Some(mappings) = self.domains.get_mut(&domain) else {
            return NO_ENTRY;
        };
        if flags & !known != 0 || last < start || self.bypasses.contains(&domain) {
            return INVALID;
        }
        let is_inside = start >= self.input_range.0 && last <= self.input_range.1;
        if (start | phys | last.wrapping_add(1)) & (self.granule - 1) != 0 || !is_inside {
            return RANGE;
        }
        let below = mappings.range(..=last).next_back();
        if below.is_some_and(|(_, below)| below.last >= start) {
            return INVALID;
        }
        mappings.insert(start, Mapping { last, phys, flags });
        OK
    }

    fn unmap(&mut self, domain: u32, start: u64, last: u64) -> u8 {
        let Some(mappings) = self.domains.get_mut(&domain) else {
            return NO_ENTRY;
        };
        if last < start {
            return INVALID;
        }
        let met = |(&of, mapping): (&u64, &Mapping)| {
            (of <= last && mapping.last >= start).then_some((of, mapping.last))
        };
        let met: Vec<(u64, u64)> = mappings.iter().filter_map(met).collect();
        if met
            .iter()
            .any(|&(of, of_last)| of < start || of_last > last)
        {
            return RANGE;
        }
        for (of, _) in met {
            mappings.remove(&of);
        }
        OK
    }

    /// Returns what is to go wrong with a request.
    fn ordered(&mut self, bytes: &[u8]) -> Option<Fault> {
        let start = place(bytes).map(|(_, start, _)| start);
        let is_for = |order: &Order| {
            order.kind == bytes[0]
                && (order.start.is_none() || order.start == start)
                && (order.endpoint.is_none() || order.endpoint == endpoint_of(bytes))
        };
        let place = self.orders.iter().position(is_for)?;
        let order = &mut self.orders[place];
        if order.left > 0 {
            order.left -= 1;
            return None;
        }
        let fault = order.fault;
        if !order.is_lasting {
            self.orders.remove(place);
        }
        Some(fault)
    }

    fn answer(&mut self, sent: &Sent, status: Option<u8>) {
        let mut written = Vec::new();
        if let Some(status) = status {
            if sent.bytes[0] == PROBE {
                written.clone_from(&self.properties);
                written.resize(self.probe_size, 0);
            }
            written.extend([status, 0, 0, 0]);
            if written.len() != sent.written_len {
                self.mistakes
                    .push(format!("room for {} bytes", sent.written_len));
            }
        }
        self.answers.push_back((sent.tag, written));
    }

    fn random(&mut self, below: usize) -> usize {
        match &mut self.shuffle {
            None => 0,
            Some(seed) => {
                *seed ^= *seed << 13;
                *seed ^= *seed >> 7;
                *seed ^= *seed << 17;
                (*seed % below as u64) as usize
            }
        }
    }

    /// Notes requests under way that meet at an address and may not, as any of them may come first.
    fn check_order(&mut self) {
        let pending: Vec<_> = self.queue.iter().chain(&self.late).collect();
        let mut mistakes = Vec::new();
        for (index, one) in pending.iter().enumerate() {
            for other in &pending[..index] {
                let both = place(&one.bytes).zip(place(&other.bytes));
                let meet = both.is_some_and(|((domain, start, last), (of, first, end))| {
                    domain == of && start <= end && first <= last
                });
                if meet && (one.bytes[0] == MAP || other.bytes[0] == MAP) {
                    mistakes.push(format!("in any order: {:x?} {:x?}", other.bytes, one.bytes));
                }
            }
        }
        self.mistakes.append(&mut mistakes);
    }
}

impl Transport for Device {
    fn capacity(&self) -> usize {
        self.state().capacity
    }

    fn send(&mut self, tag: u64, request: &[u8], written_len: usize) {
        let mut state = self.state();
        state.kinds.push(request[0].into());
        if let Some(endpoint) = endpoint_of(request) {
            *state.about.entry((request[0], endpoint)).or_default() += 1;
        }
        state.queue.push(Sent {
            tag,
            bytes: request.to_vec(),
            written_len,
        });
        let under_way =
            state.queue.len() + state.late.len() + state.held.len() + state.answers.len();
        state.most_under_way = state.most_under_way.max(under_way);
    }

    fn kick(&mut self) {
        let mut state = self.state();
        state.kick_count += 1;
        state.check_order();
        while !state.queue.is_empty() {
            let len = state.queue.len();
            let place = state.random(len);
            let sent = state.queue.remove(place);
            let kind = sent.bytes[0];
            match state.ordered(&sent.bytes) {
                None => {
                    let status = state.execute(&sent.bytes);
                    if status != Some(OK) {
                        state.refusals.push((kind, status.unwrap_or(u8::MAX)));
                    }
                    state.answer(&sent, status);
                }
                Some(Fault::Status(status)) => state.answer(&sent, Some(status)),
                Some(Fault::DoneBut(status)) => {
                    state.execute(&sent.bytes);
                    state.answer(&sent, Some(status));
                }
                Some(Fault::Empty) => state.answer(&sent, None),
                Some(Fault::Silent) => state.late.push(sent),
                Some(Fault::Held) => {
                    let status = state.execute(&sent.bytes);
                    state.answer(&sent, status);
                    let answer = state.answers.pop_back();
                    state.held.extend(answer);
                }
            }
        }
    }

    fn collect(&mut self, answer: &mut dyn FnMut(u64, &[u8])) -> bool {
        let mut state = self.state();
        let mut next = state.answers.pop_front();
        if next.is_none() && state.stray_count > 0 {
            state.stray_count -= 1;
            next = Some((u64::MAX, Vec::new()));
        }
        drop(state);
        next.is_some_and(|(tag, bytes)| {
            answer(tag, &bytes);
            true
        })
    }

    fn write_bypass(&mut self, is_bypass: bool) -> bool {
        let mut state = self.state();
        if state.takes_bypass {
            state.is_bypass = is_bypass;
        }
        state.is_bypass == is_bypass
    }
}
