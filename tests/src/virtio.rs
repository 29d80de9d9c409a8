//! A virtio-iommu device of its own making: reads the bytes of requests by the offsets of the specification
//! (*VIRTIO 1.3*, section 5.13.6) and answers with the status that it asks for.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use iopt::domain::virtio::Transport;

pub(crate) const OK: u8 = 0;
pub(crate) const UNSUPPORTED: u8 = 2;
pub(crate) const DEVICE_ERROR: u8 = 3;
pub(crate) const INVALID: u8 = 4;
pub(crate) const RANGE: u8 = 5;
pub(crate) const NO_ENTRY: u8 = 6;
pub(crate) const NO_MEMORY: u8 = 8;

pub(crate) const ATTACH: u8 = 1;
pub(crate) const DETACH: u8 = 2;
pub(crate) const MAP: u8 = 3;
pub(crate) const UNMAP: u8 = 4;
pub(crate) const PROBE: u8 = 5;

const MMIO: u32 = 4;

/// What goes wrong.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Fault {
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

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Mapping {
    pub(crate) last: u64,
    pub(crate) phys: u64,
    pub(crate) flags: u32,
}

pub(crate) struct Sent {
    tag: u64,
    bytes: Vec<u8>,
    written_len: usize,
}

/// An order for the request of a type that follows so many others of it.
struct Order {
    kind: u8,
    /// The first address that it is for, if not for all.
    start: Option<u64>,
    left: u64,
    fault: Fault,
    is_lasting: bool,
}

#[derive(Default)]
pub(crate) struct State {
    pub(crate) granule: u64,
    pub(crate) input_range: (u64, u64),
    pub(crate) probe_size: usize,
    pub(crate) properties: Vec<u8>,
    pub(crate) takes_mmio: bool,
    /// Endpoints that there are, and in which domain.
    pub(crate) endpoints: BTreeMap<u32, Option<u32>>,
    pub(crate) domains: BTreeMap<u32, BTreeMap<u64, Mapping>>,
    capacity: usize,
    queue: Vec<Sent>,
    /// What it is silent about.
    pub(crate) late: Vec<Sent>,
    answers: VecDeque<(u64, Vec<u8>)>,
    /// How many answers to nothing come behind the others.
    pub(crate) stray_count: u64,
    /// Answers that are held back.
    pub(crate) held: VecDeque<(u64, Vec<u8>)>,
    orders: Vec<Order>,
    /// Whether requests of one kick are carried out in a random order.
    pub(crate) shuffle: Option<u64>,
    pub(crate) kick_count: u64,
    /// Of each request, in the order in which it was sent.
    pub(crate) kinds: Vec<u16>,
    /// Of each request that nobody ordered to fail, if it failed.
    pub(crate) refusals: Vec<(u8, u8)>,
    pub(crate) most_under_way: usize,
    /// Mistakes of the driver.
    pub(crate) mistakes: Vec<String>,
}

/// A handle on the device for the test, and the transport for the engine.
#[derive(Clone)]
pub(crate) struct Device(Arc<Mutex<State>>);

impl Device {
    pub(crate) fn new(capacity: usize) -> Self {
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

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Orders the request of a type to fail that follows `left` others of it, and all behind it if
    /// `is_lasting`.
    pub(crate) fn order(&self, kind: u8, left: u64, fault: Fault, is_lasting: bool) {
        self.state().orders.push(Order {
            kind,
            start: None,
            left,
            fault,
            is_lasting,
        });
    }

    /// Orders the requests of a type to fail that begin at an address.
    pub(crate) fn order_at(&self, kind: u8, start: u64, fault: Fault) {
        self.state().orders.push(Order {
            kind,
            start: Some(start),
            left: 0,
            fault,
            is_lasting: true,
        });
    }

    /// Lets nothing fail any more.
    pub(crate) fn heal(&self) {
        self.state().orders.clear();
    }

    /// Carries out what it was silent about.
    pub(crate) fn answer_late(&self) {
        let mut state = self.state();
        for sent in std::mem::take(&mut state.late) {
            let status = state.execute(&sent.bytes);
            state.answer(&sent, status);
        }
    }

    /// Gives the answer that it has held back for the longest time.
    pub(crate) fn release(&self) {
        let mut state = self.state();
        let answer = state.held.pop_front().expect("an answer is held back");
        state.answers.push_back(answer);
    }

    /// Resets the device: everything is forgotten, answers and all.
    pub(crate) fn reset(&self) {
        let mut state = self.state();
        state.late.clear();
        state.queue.clear();
        state.answers.clear();
        state.held.clear();
        state.orders.clear();
        state.domains.clear();
        for domain in state.endpoints.values_mut() {
            *domain = None;
        }
    }

    /// Waits until `is_so`, which another thread brings about.
    pub(crate) fn wait_until(&self, is_so: impl Fn(&State) -> bool) {
        while !is_so(&self.state()) {
            thread::yield_now();
        }
    }

    /// Returns the number of requests of a type.
    pub(crate) fn count(&self, kind: u8) -> usize {
        self.state().count(kind)
    }

    /// Returns what an endpoint reaches at an address: where, and the flags.
    pub(crate) fn translate(&self, endpoint: u32, iova: u64) -> Option<(u64, u32)> {
        let state = self.state();
        let domain = (*state.endpoints.get(&endpoint)?)?;
        let mappings = state.domains.get(&domain)?;
        let (&start, mapping) = mappings.range(..=iova).next_back()?;
        (iova <= mapping.last).then(|| (mapping.phys + (iova - start), mapping.flags))
    }

    /// Returns the number of mappings of a domain.
    pub(crate) fn mapping_count(&self, domain: u32) -> usize {
        let state = self.state();
        state.domains.get(&domain).map_or(0, BTreeMap::len)
    }

    /// Checks that the driver did nothing that it must not, and that nothing was refused unasked.
    pub(crate) fn assert_clean(&self) {
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

impl State {
    /// Returns the number of requests of a type.
    pub(crate) fn count(&self, kind: u8) -> usize {
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
        if flags != 0 {
            return INVALID;
        }
        let Some(&was) = self.endpoints.get(&endpoint) else {
            return NO_ENTRY;
        };
        if let Some(was) = was {
            self.detach(was, endpoint);
        }
        self.endpoints.insert(endpoint, Some(domain));
        self.domains.entry(domain).or_default();
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
        if flags & !known != 0 || last < start {
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
            order.kind == bytes[0] && (order.start.is_none() || order.start == start)
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
}
