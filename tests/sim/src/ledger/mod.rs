//! What devices may reach: the truth that caches are held against.
//!
//! Whoever drives a test tells it, whatever the tables say: a mapping before it can be met, an end when the
//! driver holds the proof of its flush. Between two calls that begin and end a change both old and new are
//! allowed, and neither is needed.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::rights::Rights;
use mappings::Mappings;
use tables::Tables;

mod mappings;
mod tables;

pub use tables::Generation;

/// A domain, by a number that the test chooses.
pub type DomainId = u64;

/// What the requests of a device are for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Attachment {
    /// The mappings of a domain.
    Domain(DomainId),
    /// Two stages: what leaves the guest's stage are input addresses of `parent`.
    Nested {
        /// The guest's mappings, if the test keeps them; else the guest may say what it likes.
        guest: Option<DomainId>,
        /// The second stage.
        parent: DomainId,
    },
    /// Everything, untranslated.
    Identity,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum State {
    Beginning,
    Lasting,
    Ending,
}

/// Where one request was led.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Reach {
    /// First and last input address.
    pub(crate) iova: (u64, u64),
    /// Where the first input address leads of the first of two stages.
    pub(crate) ipa: u64,
    /// Where the first input address leads.
    pub(crate) oa: u64,
    /// What is granted.
    pub(crate) rights: Rights,
    /// The input addresses are those of the second of two stages.
    pub(crate) is_second: bool,
}

type Requester = (u32, Option<u32>);

#[derive(Debug, Default)]
struct Inner {
    domains: BTreeMap<DomainId, Mappings>,
    devices: BTreeMap<Requester, Vec<(Attachment, State)>>,
    tables: Tables,
}

/// The ledger. Shared by the IOMMUs of a test.
#[derive(Debug, Default)]
pub struct Ledger {
    inner: Mutex<Inner>,
}

impl Ledger {
    /// Creates a ledger that allows nothing.
    pub fn new() -> Self {
        Self::default()
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Allows a mapping of `range` to the addresses from `oa` on, with `rights` at most. To be told before
    /// a device can meet it.
    pub fn map(&self, domain: DomainId, range: RangeInclusive<u64>, oa: u64, rights: Rights) {
        let mut inner = self.inner();
        let mappings = inner.domains.entry(domain).or_default();
        mappings.begin(*range.start(), *range.end(), oa, rights);
    }

    /// From now on devices must reach the mappings of `range`: told to the hardware as far as needed.
    pub fn map_done(&self, domain: DomainId, range: RangeInclusive<u64>) {
        if let Some(mappings) = self.inner().domains.get_mut(&domain) {
            mappings.settle(*range.start(), *range.end());
        }
    }

    /// From now on devices need not reach the mappings of `range` any more. To be told before their leaves
    /// are changed.
    pub fn unmap(&self, domain: DomainId, range: RangeInclusive<u64>) {
        if let Some(mappings) = self.inner().domains.get_mut(&domain) {
            mappings.end(*range.start(), *range.end());
        }
    }

    /// From now on nothing may lead to the mappings of `range` that end, or to any at all if none of them
    /// was said to end: to be told when the driver has the proof.
    pub fn forgotten(&self, domain: DomainId, range: RangeInclusive<u64>) {
        if let Some(mappings) = self.inner().domains.get_mut(&domain) {
            mappings.forget(*range.start(), *range.end());
        }
    }

    /// `len` bytes from `address` on hold a table.
    pub fn table_allocated(&self, address: u64, len: u64) {
        self.inner().tables.allocate(address, len);
    }

    /// The table at `address` is free, and nothing may read it any more.
    pub fn table_freed(&self, address: u64) {
        self.inner().tables.free(address);
    }

    /// Allows requests of a device to use `attachment`, besides those that it has. To be told before its
    /// context is changed.
    pub fn attach(&self, device: u32, pasid: Option<u32>, attachment: Attachment) {
        let mut inner = self.inner();
        let attachments = inner.devices.entry((device, pasid)).or_default();
        attachments.push((attachment, State::Beginning));
    }

    /// From now on the device must reach what its only attachment maps.
    pub fn attach_done(&self, device: u32, pasid: Option<u32>) {
        self.change(device, pasid, State::Beginning, State::Lasting);
    }

    /// From now on the device need not reach what its attachments map. To be told before its context is
    /// changed, and before a new attachment.
    pub fn detach(&self, device: u32, pasid: Option<u32>) {
        self.change(device, pasid, State::Beginning, State::Ending);
        self.change(device, pasid, State::Lasting, State::Ending);
    }

    /// From now on nothing may lead the device to the attachments that ended.
    pub fn detach_done(&self, device: u32, pasid: Option<u32>) {
        if let Some(attachments) = self.inner().devices.get_mut(&(device, pasid)) {
            attachments.retain(|(_, state)| *state != State::Ending);
        }
    }

    fn change(&self, device: u32, pasid: Option<u32>, from: State, to: State) {
        let mut inner = self.inner();
        let attachments = inner.devices.get_mut(&(device, pasid));
        for (_, state) in attachments.into_iter().flatten() {
            if *state == from {
                *state = to;
            }
        }
    }

    /// Returns everyone who has an attachment.
    pub(crate) fn requesters(&self) -> Vec<Requester> {
        let inner = self.inner();
        let attached = inner.devices.iter().filter(|(_, list)| !list.is_empty());
        attached.map(|(requester, _)| *requester).collect()
    }

    /// Returns whether something allows all of `reach`.
    pub(crate) fn allows(&self, requester: Requester, reach: &Reach) -> bool {
        let inner = self.inner();
        let attachments = inner.devices.get(&requester).into_iter().flatten();
        let maps = |domain: &DomainId, from: (u64, u64), to: u64| {
            let mappings = inner.domains.get(domain);
            mappings.is_some_and(|mappings| mappings.allow(from.0, from.1, to, reach.rights))
        };
        let iova = reach.iova;
        let ipas = (reach.ipa, reach.ipa.saturating_add(iova.1 - iova.0));
        attachments
            .map(|(attachment, _)| attachment)
            .any(|attachment| match attachment {
                Attachment::Domain(domain) => maps(domain, iova, reach.oa),
                Attachment::Nested { guest, parent } => {
                    let is_free = reach.is_second || guest.is_none();
                    (is_free || guest.is_some_and(|guest| maps(&guest, iova, reach.ipa)))
                        && maps(parent, ipas, reach.oa)
                }
                Attachment::Identity => reach.oa == iova.0,
            })
    }

    /// Returns whether a request must be let through: one attachment, and a mapping with the rights, both
    /// for good. What a guest's stage says is not known.
    pub(crate) fn needs(&self, requester: Requester, iova: u64, rights: Rights) -> bool {
        let inner = self.inner();
        match inner.devices.get(&requester).map(Vec::as_slice) {
            Some([(Attachment::Domain(domain), State::Lasting)]) => inner
                .domains
                .get(domain)
                .is_some_and(|mappings| mappings.need(iova, rights)),
            Some([(Attachment::Identity, State::Lasting)]) => true,
            _ => false,
        }
    }

    /// Returns which use of the page at `address` this is; `None` if it is not known as a table.
    pub(crate) fn generation(&self, address: u64) -> Option<Generation> {
        self.inner().tables.generation(address)
    }

    /// Returns whether the table at `address` is still, or again, what it was, as far as is known.
    pub(crate) fn is_live(&self, address: u64, generation: Option<Generation>) -> bool {
        let now = self.generation(address);
        match (generation, now) {
            (_, None) => true,
            (None, Some(now)) => !now.is_free(),
            (Some(then), Some(now)) => then == now && !now.is_free(),
        }
    }
}
