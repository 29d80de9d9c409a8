//! Requests under way, and what comes of them.

use alloc::vec::Vec;
use core::time::Duration;

use iopt_formats::IovaRange;
use iopt_formats::command::virtio::Request;

use crate::domain::virtio::{RequestError, Transport};
use crate::sync::now_ns;

/// Why a request is under way.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Work {
    Map {
        domain: u32,
        range: IovaRange,
    },
    /// Has a ticket if it is to be for good.
    Unmap {
        domain: u32,
        range: IovaRange,
        ticket: Option<u64>,
    },
    Attach {
        domain: u32,
        endpoint: u32,
    },
    Detach {
        domain: u32,
        endpoint: u32,
    },
    Probe,
}

impl Work {
    /// Returns whether it concerns mappings of a domain that `matches`.
    pub(super) fn is_in(
        self,
        of: u32,
        matches: impl FnOnce(IovaRange, Option<u64>) -> bool,
    ) -> bool {
        match self {
            Self::Map { domain, range } => domain == of && matches(range, None),
            Self::Unmap {
                domain,
                range,
                ticket,
            } => domain == of && matches(range, ticket),
            Self::Attach { .. } | Self::Detach { .. } | Self::Probe => false,
        }
    }
}

struct UnderWay {
    tag: u64,
    work: Work,
    written_len: usize,
    /// When the device was told of it.
    told_ns: Option<u64>,
    /// Whether mappings of the domain were dropped since, so that the answer says nothing of them.
    is_void: bool,
}

/// What a request came to.
pub(super) struct Answer {
    pub(super) tag: u64,
    pub(super) work: Work,
    pub(super) result: Result<(), RequestError>,
    pub(super) is_void: bool,
    /// What a probe brought.
    pub(super) properties: Vec<u8>,
}

/// The queue of one device.
pub(super) struct Requests<T> {
    transport: T,
    /// Never longer than its capacity, which is that of the transport.
    under_way: Vec<UnderWay>,
    next_tag: u64,
    needs_kick: bool,
}

impl<T: Transport> Requests<T> {
    pub(super) fn new(transport: T) -> Self {
        let capacity = transport.capacity().max(1);
        Self {
            transport,
            under_way: Vec::with_capacity(capacity),
            next_tag: 0,
            needs_kick: false,
        }
    }

    pub(super) fn is_full(&self) -> bool {
        self.under_way.len() >= self.transport.capacity().max(1)
    }

    pub(super) const fn is_idle(&self) -> bool {
        self.under_way.is_empty()
    }

    /// Returns the tag of the request that is sent next; those of requests sent before are lower.
    pub(super) const fn next_tag(&self) -> u64 {
        self.next_tag
    }

    /// Sends a request; there is room for it. Returns its tag.
    pub(super) fn send(&mut self, request: &Request, work: Work, probe_size: u32) -> u64 {
        let tag = self.next_tag;
        self.next_tag += 1;
        let written_len = usize::try_from(request.written_len(probe_size)).unwrap_or(usize::MAX);
        self.under_way.push(UnderWay {
            tag,
            work,
            written_len,
            told_ns: None,
            is_void: false,
        });
        let bytes = request.encode();
        self.transport.send(tag, bytes.as_slice(), written_len);
        self.needs_kick = true;
        tag
    }

    pub(super) fn kick(&mut self) {
        if self.needs_kick {
            self.needs_kick = false;
            let now_ns = now_ns();
            for sent in &mut self.under_way {
                sent.told_ns.get_or_insert(now_ns);
            }
            self.transport.kick();
        }
    }

    /// Says what becomes of endpoints without a domain.
    pub(super) fn write_bypass(&mut self, is_bypass: bool) -> bool {
        self.transport.write_bypass(is_bypass)
    }

    /// Returns whether the device has known of a request for `limit` and not answered it. Without requests, it
    /// is late with whatever is waited for.
    pub(super) fn is_late(&self, limit: Duration) -> bool {
        let oldest = self.under_way.iter().filter_map(|sent| sent.told_ns).min();
        oldest.is_none_or(|told_ns| {
            let age_ns = now_ns().saturating_sub(told_ns);
            u128::from(age_ns) >= limit.as_nanos()
        })
    }

    /// Takes an answer, if there is one. What answers no request is passed over, though not for ever: a lock is
    /// held.
    pub(super) fn collect(&mut self) -> Option<Answer> {
        let Self {
            transport,
            under_way,
            ..
        } = self;
        for _ in 0..transport.capacity().max(1) {
            let mut found = None;
            let has_answer = transport.collect(&mut |tag, bytes| {
                // An answer to nothing is the transport's mistake, and harmless.
                let Some(place) = under_way.iter().position(|sent| sent.tag == tag) else {
                    return;
                };
                let sent = under_way.swap_remove(place);
                let result = RequestError::of_answer(bytes, sent.written_len);
                let properties = match sent.work {
                    Work::Probe if result.is_ok() => {
                        bytes[..sent.written_len - Request::TAIL_LEN].to_vec()
                    }
                    _ => Vec::new(),
                };
                found = Some(Answer {
                    tag,
                    work: sent.work,
                    result,
                    is_void: sent.is_void,
                    properties,
                });
            });
            if found.is_some() || !has_answer {
                return found;
            }
        }
        None
    }

    /// Returns whether something is under way that `matches`.
    pub(super) fn has(&self, matches: impl FnMut(Work) -> bool) -> bool {
        self.has_before(self.next_tag, matches)
    }

    /// As [`has`](Self::has), of the requests with lower tags than `tag`.
    pub(super) fn has_before(&self, tag: u64, mut matches: impl FnMut(Work) -> bool) -> bool {
        let mut sent = self.under_way.iter();
        sent.any(|sent| sent.tag < tag && !sent.is_void && matches(sent.work))
    }

    /// Returns whether the request with a tag is under way.
    pub(super) fn has_tag(&self, tag: u64) -> bool {
        self.under_way.iter().any(|sent| sent.tag == tag)
    }

    /// Returns whether something of a domain is under way, be it void.
    pub(super) fn has_any_of(&self, domain: u32) -> bool {
        self.under_way
            .iter()
            .any(|sent| sent.work.is_in(domain, |_, _| true))
    }

    /// Says that the device has dropped the mappings of a domain.
    pub(super) fn make_void(&mut self, domain: u32) {
        for sent in &mut self.under_way {
            sent.is_void |= sent.work.is_in(domain, |_, _| true);
        }
    }

    /// Goes on with another transport, in which nothing is under way.
    pub(super) fn replace(&mut self, transport: T) -> T {
        self.under_way.clear();
        self.under_way.reserve(transport.capacity().max(1));
        self.needs_kick = false;
        core::mem::replace(&mut self.transport, transport)
    }
}
