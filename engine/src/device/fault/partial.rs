//! Groups of page requests whose last one did not come yet.

use alloc::vec::Vec;
use core::time::Duration;

use iopt_formats::command::Pasid;

use crate::device::fault::queue::FaultSettings;
use crate::device::fault::request::{Origin, PageRequest, Reported, Requester};

/// How many groups a device can have on their way: their indices have 9 bits (*PCI Express Base Specification*, section
/// 10.4.1).
const GROUP_COUNT: usize = 512;

/// Requests that wait for the last one of their group.
///
/// A group of which something was not kept, for want of room or of patience, is remembered by its index alone: its last
/// request finds that it is not whole. If that never comes, one group that has the index later is taken for it. What a
/// domain that left would have got is nobody's: the rest of such a group is the next one's.
#[derive(Default)]
pub(super) struct Partials {
    groups: Vec<Partial>,
    /// Requests of all of them.
    request_count: usize,
    spoilt: [u64; GROUP_COUNT / 64],
}

struct Partial {
    requester: Requester,
    pasid: Option<Pasid>,
    group: u16,
    requests: Vec<PageRequest>,
    deadline: Duration,
}

/// What came of a group before its last request.
pub(super) struct Begun {
    /// In the order of arrival.
    pub(super) requests: Vec<PageRequest>,
    /// Whether that is all.
    pub(super) is_whole: bool,
}

impl Partials {
    pub(super) const fn len(&self) -> usize {
        self.groups.len()
    }

    /// Keeps a request that is not the last one of its group, as far as there is room.
    pub(super) fn keep(&mut self, reported: &Reported, deadline: Duration, limits: &FaultSettings) {
        let Origin::Group(group) = reported.origin else {
            return;
        };
        let has_room = self.request_count < limits.request_limit;
        let at = self.position(reported, group).or_else(|| {
            let has_room =
                self.groups.len() < limits.group_limit && self.groups.try_reserve(1).is_ok();
            if !has_room {
                return None;
            }
            self.groups.push(Partial {
                requester: reported.requester,
                pasid: reported.pasid,
                group,
                requests: Vec::new(),
                deadline,
            });
            Some(self.groups.len() - 1)
        });
        let partial = at.map(|at| &mut self.groups[at]).filter(|_| has_room);
        if let Some(partial) = partial
            && partial.requests.try_reserve(1).is_ok()
        {
            partial.requests.push(reported.request);
            self.request_count += 1;
        } else {
            self.spoil(group);
        }
    }

    /// Takes out what came before the last request of a group.
    pub(super) fn take(&mut self, last: &Reported) -> Begun {
        let mut begun = Begun {
            requests: Vec::new(),
            is_whole: true,
        };
        let Some(group) = last.origin.completes() else {
            return begun;
        };
        let (word, bit) = place(group);
        begun.is_whole = self.spoilt[word] & bit == 0;
        self.spoilt[word] &= !bit;
        if let Some(at) = self.position(last, group) {
            begun.requests = self.groups.swap_remove(at).requests;
            self.request_count -= begun.requests.len();
        }
        begun
    }

    /// Forgets everything: the groups were answered.
    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }

    /// Forgets what came for a place that a domain left.
    pub(super) fn leave(&mut self, place: Option<Pasid>) {
        self.groups.retain(|partial| partial.pasid != place);
        let counts = self.groups.iter().map(|partial| partial.requests.len());
        self.request_count = counts.sum();
    }

    /// Forgets groups whose last request did not come in time. Returns when to do it next, if anything is left.
    pub(super) fn expire(&mut self, now: Duration) -> Option<Duration> {
        let mut at = 0;
        while let Some(partial) = self.groups.get(at) {
            if partial.deadline <= now {
                let partial = self.groups.swap_remove(at);
                self.request_count -= partial.requests.len();
                self.spoil(partial.group);
            } else {
                at += 1;
            }
        }
        self.groups.iter().map(|partial| partial.deadline).min()
    }

    const fn spoil(&mut self, group: u16) {
        let (word, bit) = place(group);
        self.spoilt[word] |= bit;
    }

    fn position(&self, reported: &Reported, group: u16) -> Option<usize> {
        self.groups.iter().position(|partial| {
            partial.requester == reported.requester
                && partial.pasid == reported.pasid
                && partial.group == group
        })
    }
}

const fn place(group: u16) -> (usize, u64) {
    let index = group as usize % GROUP_COUNT;
    (index / 64, 1 << (index % 64))
}
