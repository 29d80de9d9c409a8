//! A group: devices that isolation cannot part, attached to the same domains at the same time.
//!
//! # Invariants
//!
//! - **P1** (together): when the lock is free, every member that joined, and is not being reset, is attached
//!   to `current`, and each of them that has PASIDs to what `pasids` says; all other members are blocked.
//! - **P2** (two phases): what is attached changes by preparing all members and then committing all, or by
//!   blocking all. So an error leaves everything as it was.
//! - **P3** (owner or drivers): if there is an owner, no driver uses the default domain, and the default
//!   domain is not what is attached.
//! - **P4** (one driver's own): while a driver has attached a domain of its own, no other driver is bound that uses
//!   the default domain, and no other member joins.

use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::sync::Arc;
use alloc::vec::Vec;

use iopt_formats::command::Pasid;
use smallvec::SmallVec;

use crate::device::{AttachFailure, Condition, Driver, Endpoint, Hwpt, Owner, Prepared};
use crate::sync::{GROUP, Mutex, MutexGuard};

/// What was attached before. To be dropped once the lock is free: the domain may end with it.
pub(super) type Old = SmallVec<[Arc<dyn Hwpt>; 1]>;

pub(super) struct Group(Mutex<Inner>);

pub(super) struct Inner {
    /// By number of the device.
    pub(super) members: BTreeMap<usize, Member>,
    /// Members that were not seen to yet, and some that are gone.
    pub(super) newcomers: Vec<usize>,
    pub(super) default: Option<Arc<dyn Hwpt>>,
    /// What requests without a PASID meet; `None` is nothing: they are blocked.
    pub(super) current: Option<Arc<dyn Hwpt>>,
    pub(super) pasids: BTreeMap<Pasid, Arc<dyn Hwpt>>,
    pub(super) owner: Option<Claim>,
    /// Drivers that use the default domain.
    pub(super) driver_count: usize,
    /// The device whose driver has attached a domain of its own.
    pub(super) private_of: Option<usize>,
}

pub(super) struct Member {
    pub(super) generation: u64,
    pub(super) endpoint: Arc<dyn Endpoint>,
    pub(super) driver: Arc<dyn Driver>,
    /// Whether it takes part in what is attached.
    pub(super) has_joined: bool,
    /// Whether its driver was told of its default domain.
    pub(super) is_told: bool,
    pub(super) is_resetting: bool,
    /// As it was reported last.
    pub(super) condition: Condition,
}

/// Somebody's exclusive use.
pub(super) struct Claim {
    pub(super) owner: Arc<Owner>,
    pub(super) count: usize,
}

/// A member that cannot be attached.
#[derive(Debug)]
pub(super) struct Unfit {
    pub(super) number: usize,
    pub(super) error: AttachFailure,
}

impl Member {
    pub(super) fn has_pasids(&self) -> bool {
        self.endpoint.max_pasids() > 0
    }

    /// Whether what is attached reaches it.
    fn is_attached(&self) -> bool {
        self.has_joined && !self.is_resetting
    }
}

impl Group {
    pub(super) fn new() -> Self {
        Self(Mutex::new(
            &GROUP,
            Inner {
                members: BTreeMap::new(),
                newcomers: Vec::new(),
                default: None,
                current: None,
                pasids: BTreeMap::new(),
                owner: None,
                driver_count: 0,
                private_of: None,
            },
        ))
    }

    #[cfg_attr(debug_assertions, track_caller)]
    pub(super) fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock()
    }
}

impl Inner {
    pub(super) fn is_resetting(&self) -> bool {
        self.members.values().any(|member| member.is_resetting)
    }

    fn attached(&self) -> impl Iterator<Item = (usize, &Member)> {
        let members = self
            .members
            .iter()
            .map(|(&number, member)| (number, member));
        members.filter(|(_, member)| member.is_attached())
    }

    /// Returns whether members wait for the default domain to be what is attached.
    pub(super) fn has_left_out(&self) -> bool {
        self.default.is_some() && self.members.values().any(|member| !member.has_joined)
    }

    /// Returns whether the default domain is what is attached, or there is neither.
    pub(super) fn is_in_default(&self) -> bool {
        let default = self.default.as_ref();
        default.map_or(self.current.is_none(), |default| self.is_current(default))
    }

    pub(super) fn is_current(&self, domain: &Arc<dyn Hwpt>) -> bool {
        let current = self.current.as_ref();
        current.is_some_and(|current| core::ptr::addr_eq(Arc::as_ptr(current), Arc::as_ptr(domain)))
    }

    /// Attaches all members to `domain`, or none of them.
    pub(super) fn attach(&mut self, domain: &Arc<dyn Hwpt>) -> Result<Old, Unfit> {
        commit_all(prepare_all(self.attached(), None, domain)?);
        Ok(self
            .current
            .replace(Arc::clone(domain))
            .into_iter()
            .collect())
    }

    /// Attaches all members to `domain`, for requests with a PASID or without one, or none of them. A device that
    /// was left out takes part again, as it is named.
    pub(super) fn attach_named(
        &mut self,
        number: usize,
        place: Option<Pasid>,
        domain: &Arc<dyn Hwpt>,
    ) -> Result<Old, Unfit> {
        let named = self.members.get(&number);
        let named = named.filter(|it| !it.has_joined && !it.is_resetting);
        let named = || named.map(|member| (number, member)).into_iter();
        let takes_part = |(_, member): &(usize, &Member)| place.is_none() || member.has_pasids();
        let members = self.attached().chain(named());
        let mut prepared = prepare_all(members.filter(takes_part), place, domain)?;
        // And to all else that the group is attached to.
        if let Some(current) = self.current.as_ref().filter(|_| place.is_some()) {
            prepared.extend(prepare_all(named(), None, current)?);
        }
        for (&pasid, other) in self
            .pasids
            .iter()
            .filter(|(pasid, _)| Some(**pasid) != place)
        {
            let members = named().filter(|(_, member)| member.has_pasids());
            prepared.extend(prepare_all(members, Some(pasid), other)?);
        }
        commit_all(prepared);
        if let Some(member) = self.members.get_mut(&number) {
            member.has_joined |= !member.is_resetting;
        }
        // Programmed first, known to others afterwards.
        let old = match place {
            None => self.current.replace(Arc::clone(domain)),
            Some(pasid) => self.pasids.insert(pasid, Arc::clone(domain)),
        };
        Ok(old.into_iter().collect())
    }

    /// Blocks all members.
    pub(super) fn block(&mut self) -> Old {
        for (_, member) in self.attached() {
            member.endpoint.block(None);
        }
        self.current.take().into_iter().collect()
    }

    /// Blocks a PASID of all members.
    pub(super) fn block_pasid(&mut self, pasid: Pasid) -> Old {
        let old = self.pasids.remove(&pasid);
        for (_, member) in self.attached().filter(|(_, member)| member.has_pasids()) {
            member.endpoint.block(Some(pasid));
        }
        old.into_iter().collect()
    }

    /// Goes back to the default domain, where there is one, without any PASID. Returns who cannot, as
    /// which nothing is attached then.
    pub(super) fn restore(&mut self) -> (Old, Option<Unfit>) {
        let mut old = Old::new();
        self.private_of = None;
        while let Some((&pasid, _)) = self.pasids.first_key_value() {
            old.extend(self.block_pasid(pasid));
        }
        let attached = match self.default.clone() {
            None => Ok(self.block()),
            // Nothing that could fail is done for nothing.
            Some(default) if self.is_current(&default) => Ok(Old::new()),
            Some(default) => self.attach(&default),
        };
        match attached {
            Ok(current) => {
                old.extend(current);
                (old, None)
            }
            Err(unfit) => {
                old.extend(self.block());
                (old, Some(unfit))
            }
        }
    }

    /// Lets one member, which is blocked, take part: attaches it to all that the group is attached to, or
    /// leaves it out.
    pub(super) fn join(&mut self, number: usize) -> Result<(), Unfit> {
        self.reattach(number)?;
        if let Some(member) = self.members.get_mut(&number) {
            member.has_joined = true;
        }
        Ok(())
    }

    /// Attaches one member, which is blocked, to all that the group is attached to, or leaves it blocked.
    pub(super) fn reattach(&self, number: usize) -> Result<(), Unfit> {
        let Some(member) = self.members.get(&number) else {
            return Ok(());
        };
        let one = || core::iter::once((number, member));
        let mut prepared = Vec::new();
        if let Some(current) = &self.current {
            prepared.push(prepare_all(one(), None, current)?);
        }
        if member.has_pasids() {
            for (&pasid, domain) in &self.pasids {
                prepared.push(prepare_all(one(), Some(pasid), domain)?);
            }
        }
        prepared.into_iter().for_each(commit_all);
        Ok(())
    }

    /// Blocks one member, whatever it is attached to.
    pub(super) fn part(&self, number: usize) {
        if let Some(member) = self.members.get(&number) {
            for &pasid in self.pasids.keys().filter(|_| member.has_pasids()) {
                member.endpoint.block(Some(pasid));
            }
            member.endpoint.block(None);
        }
    }

    /// Forgets what was attached, as no member is left.
    pub(super) fn forget(&mut self) -> Old {
        let mut old = Old::new();
        self.private_of = None;
        old.extend(self.default.take());
        old.extend(self.current.take());
        while let Some((_, domain)) = self.pasids.pop_first() {
            old.push(domain);
        }
        old
    }
}

type Preparations<'a> = SmallVec<[Box<dyn Prepared + 'a>; 2]>;

fn prepare_all<'a>(
    members: impl Iterator<Item = (usize, &'a Member)>,
    pasid: Option<Pasid>,
    domain: &Arc<dyn Hwpt>,
) -> Result<Preparations<'a>, Unfit> {
    let mut prepared = Preparations::new();
    for (number, member) in members {
        match member.endpoint.prepare(pasid, domain) {
            Ok(one) => prepared.push(one),
            Err(error) => {
                // Taken back in the reverse order.
                while prepared.pop().is_some() {}
                return Err(Unfit { number, error });
            }
        }
    }
    Ok(prepared)
}

fn commit_all(prepared: Preparations<'_>) {
    for one in prepared {
        one.commit();
    }
}
