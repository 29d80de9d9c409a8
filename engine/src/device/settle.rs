//! What becomes of members of a group that are probed: the default domain, once it is known of every member
//! what becomes of it.
//!
//! One thread at a time sees to a group, with no lock held around what it asks drivers. Whoever comes
//! meanwhile leaves a note and is seen to by the same thread. A group is not touched while an instance of
//! one of its members is being registered or unregistered; the end of either looks at it again. A registration
//! that fails does not wait for who sees to a group: so a member is the same only with the same endpoint.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::mem;

use iopt_formats::Oa;

use crate::device::group::{Inner, Member, Old};
use crate::device::registry::{About, Running, State};
use crate::device::walk::is_same;
use crate::device::{
    DefaultKind, DirectRegion, DomainKind, Driver, Endpoint, Hwpt, NoDefaultDomain, Registry,
    Report,
};
use crate::firmware::RegionKind;
use crate::sync::{FINALIZE, MutexGuard, lockdep};

/// A member as whoever sees to it knows it.
struct Seen {
    number: usize,
    generation: u64,
    endpoint: Arc<dyn Endpoint>,
    driver: Arc<dyn Driver>,
}

impl Registry {
    /// Sees to newcomers of a group, unless it is too early.
    pub(super) fn settle(&self, group: usize) {
        while let Some(running) = self.begin_settling(group) {
            let mut working = Working {
                registry: self,
                group,
                is_done: false,
            };
            self.settle_newcomers(group, &running);
            working.is_done = true;
            drop((working, running));
            self.look_at(group);
        }
    }

    /// Sees to those again that could not have what their group was attached to.
    pub(super) fn settle_left_out(&self, group: usize) {
        {
            let mut state = self.lock();
            let mut inner = self.groups[group].lock();
            let members = inner.members.iter();
            let left_out = members.filter(|(_, member)| !member.has_joined);
            let left_out: Vec<_> = left_out.map(|(&number, _)| number).collect();
            inner.newcomers.extend(left_out);
            state.slots[group].has_newcomers = true;
        }
        self.settle(group);
    }

    fn begin_settling(&self, group: usize) -> Option<Running<'_>> {
        let mut state = self.lock();
        let machine = self.machine();
        let identities = machine.instances_of(group).iter();
        let mut instances = identities.filter_map(|identity| state.instances.get(identity));
        if instances.any(|instance| instance.is_walking || instance.is_dying) {
            return None;
        }
        let slot = &mut state.slots[group];
        let is_time = slot.has_newcomers
            && !slot.is_working
            && (slot.unsettled_count == 0 || slot.is_complete);
        if !is_time {
            return None;
        }
        slot.has_newcomers = false;
        slot.is_working = true;
        Some(self.running(&mut state, About::Settle(group, None)))
    }

    fn settle_newcomers(&self, group: usize, running: &Running<'_>) {
        let (seen, default) = {
            let mut inner = self.groups[group].lock();
            let newcomers = mem::take(&mut inner.newcomers);
            let see = |(&number, member): (&usize, &Member)| Seen {
                number,
                generation: member.generation,
                endpoint: Arc::clone(&member.endpoint),
                driver: Arc::clone(&member.driver),
            };
            let seen: Vec<_> = if inner.default.is_none() {
                inner.members.iter().map(see).collect()
            } else {
                let members = newcomers.iter();
                let members = members.filter_map(|number| inner.members.get_key_value(number));
                members.map(see).collect()
            };
            (seen, inner.default.clone())
        };
        match default {
            None => self.found(group, &seen),
            Some(default) => self.join(group, &seen, &default),
        }
        for seen in &seen {
            self.finalize(group, seen, running);
        }
    }

    /// Gives a group its default domain, with all members at once.
    fn found(&self, group: usize, seen: &[Seen]) {
        let address = self.machine().first_of(group);
        let mut chosen = self.choose(group, seen);
        if let Ok(DefaultKind::Identity) = chosen {
            match self.found_as(DefaultKind::Identity, group, seen) {
                Ok(()) => return,
                Err(error) => {
                    let group = address;
                    self.tell([Report::IdentityFailed { group, error }]);
                    chosen = Ok(DefaultKind::Paging);
                }
            }
        }
        let founded = chosen.and_then(|kind| self.found_as(kind, group, seen));
        if let Err(error) = founded {
            let group = address;
            self.tell([Report::NoDefaultDomain { group, error }]);
        }
    }

    /// Chooses by all members, so that it does not depend on who came first.
    fn choose(&self, group: usize, seen: &[Seen]) -> Result<DefaultKind, NoDefaultDomain> {
        lockdep::assert_none_held();
        let mut drivers = seen
            .windows(2)
            .map(|pair| (&pair[0].driver, &pair[1].driver));
        if !drivers.all(|(one, other)| is_same(one, other)) {
            return Err(NoDefaultDomain::Mixed);
        }
        let mut wants_identity = false;
        let mut wants_paging = false;
        for seen in seen {
            match seen.endpoint.default_kind() {
                Some(DefaultKind::Identity) => wants_identity = true,
                Some(DefaultKind::Paging) => wants_paging = true,
                None => {}
            }
        }
        let machine = self.machine();
        let members = machine.members_of(group).iter();
        let mut members = members.map(|&number| machine.resolved(number));
        if members.any(|device| device.is_untrusted) {
            return if wants_identity {
                Err(NoDefaultDomain::Untrusted)
            } else {
                Ok(DefaultKind::Paging)
            };
        }
        if let Some(kind) = self.config.default_kind {
            return Ok(kind);
        }
        if wants_identity && wants_paging {
            let group = machine.first_of(group);
            self.tell([Report::KindConflict { group }]);
        }
        Ok(if wants_identity {
            DefaultKind::Identity
        } else {
            DefaultKind::Paging
        })
    }

    fn found_as(
        &self,
        kind: DefaultKind,
        group: usize,
        seen: &[Seen],
    ) -> Result<(), NoDefaultDomain> {
        let Some(first) = seen.first() else {
            return Ok(());
        };
        let endpoints: Vec<_> = seen.iter().map(|seen| Arc::clone(&seen.endpoint)).collect();
        lockdep::assert_none_held();
        let domain = first.driver.new_domain(kind, &endpoints)?;
        for seen in seen {
            self.map_direct(&domain, seen.number)?;
        }
        let mut inner = self.groups[group].lock();
        inner.default = Some(Arc::clone(&domain));
        let newcomers = inner.present(seen);
        if inner.owner.is_some() || inner.private_of.is_some() {
            // What is attached is the owner's business; some of them may take part in it already.
            self.join_all(inner, &newcomers);
            return Ok(());
        }
        for &number in &newcomers {
            if let Some(member) = inner.members.get_mut(&number) {
                member.has_joined = true;
            }
        }
        let attached = inner.attach(&domain);
        if attached.is_err() {
            inner.default = None;
        }
        drop(inner);
        attached
            .map(drop::<Old>)
            .map_err(|unfit| NoDefaultDomain::Attach {
                device: self.machine().address(unfit.number),
                error: unfit.error,
            })
    }

    /// Brings newcomers into a group that has its default domain, each for itself.
    fn join(&self, group: usize, seen: &[Seen], default: &Arc<dyn Hwpt>) {
        for seen in seen {
            let prepared = if self.may_join(default, seen.number) {
                self.map_direct(default, seen.number)
            } else {
                Err(NoDefaultDomain::Untrusted)
            };
            if let Err(error) = prepared {
                let group = self.machine().address(seen.number);
                self.tell([Report::NoDefaultDomain { group, error }]);
                continue;
            }
            let inner = self.groups[group].lock();
            let newcomers = inner.present(core::slice::from_ref(seen));
            self.join_all(inner, &newcomers);
        }
    }

    /// Returns whether a device may have a domain that was chosen when it may not have been known yet.
    fn may_join(&self, domain: &Arc<dyn Hwpt>, number: usize) -> bool {
        domain.kind() != DomainKind::Identity || !self.machine().resolved(number).is_untrusted
    }

    fn join_all(&self, mut inner: MutexGuard<'_, Inner>, newcomers: &[usize]) {
        let mut unfit = Vec::new();
        let mut untrusted = Vec::new();
        for &number in newcomers {
            let is_new = !inner
                .members
                .get(&number)
                .is_some_and(|member| member.has_joined);
            // P4; seen to again when that ends.
            if !is_new || inner.private_of.is_some() {
                continue;
            }
            let current = inner.current.as_ref();
            if current.is_none_or(|current| self.may_join(current, number)) {
                unfit.extend(inner.join(number).err());
            } else {
                untrusted.push(number);
            }
        }
        drop(inner);
        self.tell(untrusted.into_iter().map(|number| Report::NoDefaultDomain {
            group: self.machine().address(number),
            error: NoDefaultDomain::Untrusted,
        }));
        self.tell(unfit.into_iter().map(|unfit| Report::LeftBlocked {
            device: self.machine().address(unfit.number),
            error: unfit.error,
        }));
    }

    /// Maps what a device uses at any time.
    fn map_direct(&self, domain: &Arc<dyn Hwpt>, number: usize) -> Result<(), NoDefaultDomain> {
        lockdep::assert_none_held();
        let machine = self.machine();
        let device = machine.resolved(number);
        for region in &device.regions {
            let (oa, prot) = match region.kind {
                RegionKind::Direct { prot, .. } => (region.range.start().get(), prot),
                RegionKind::Mapped { oa, prot } => (oa, prot),
                RegionKind::Reserved | RegionKind::Msi => continue,
            };
            let direct = DirectRegion {
                range: region.range,
                oa: Oa::new(oa),
                prot,
            };
            let device = device.address;
            domain
                .map_direct(direct)
                .map_err(|error| NoDefaultDomain::Direct { device, error })?;
        }
        Ok(())
    }

    /// Tells the driver of a newcomer, if it joined; then drivers of devices may bind.
    fn finalize(&self, group: usize, seen: &Seen, running: &Running<'_>) {
        let number = seen.number;
        let needs_telling = {
            let mut state = self.lock();
            if !state.is_present(seen) {
                return;
            }
            running.tells(&mut state, Some(number));
            let mut inner = self.groups[group].lock();
            let has_default = inner.default.is_some();
            let member = inner.members.get_mut(&number);
            member.is_some_and(|member| {
                let needs_telling = has_default && member.has_joined && !member.is_told;
                member.is_told |= needs_telling;
                needs_telling
            })
        };
        let _end = Telling {
            registry: self,
            seen,
            running,
        };
        if needs_telling {
            let _running = FINALIZE.running();
            lockdep::assert_none_held();
            seen.driver.finalize(&seen.endpoint);
        }
    }
}

/// Who sees to a group. Dropped before all is done, as a driver panicked, it leaves the rest to the next one.
struct Working<'a> {
    registry: &'a Registry,
    group: usize,
    is_done: bool,
}

impl Drop for Working<'_> {
    fn drop(&mut self) {
        let group = self.group;
        let old = {
            let mut state = self.registry.lock();
            let mut inner = self.registry.groups[group].lock();
            if !self.is_done {
                let members = inner.members.keys().copied();
                let left = members.filter(|&number| !state.is_settled(number));
                let left: Vec<_> = left.collect();
                inner.newcomers.extend(left);
            }
            let slot = &mut state.slots[group];
            slot.is_working = false;
            slot.has_newcomers |= !self.is_done;
            slot.is_complete = slot.endpoint_count > 0;
            (slot.endpoint_count == 0).then(|| inner.forget())
        };
        drop(old);
    }
}

/// A newcomer whose driver is told. It is settled when this is dropped.
struct Telling<'a> {
    registry: &'a Registry,
    seen: &'a Seen,
    running: &'a Running<'a>,
}

impl Drop for Telling<'_> {
    fn drop(&mut self) {
        let (registry, seen) = (self.registry, self.seen);
        let is_handed_over = {
            let mut state = registry.lock();
            self.running.tells(&mut state, None);
            state.mark_settled(seen);
            let device = state.device(seen.number);
            device
                .is_some_and(|device| device.generation == seen.generation && device.is_handed_over)
        };
        if is_handed_over {
            registry.release(seen.number, &seen.endpoint);
        }
    }
}

impl Inner {
    /// Returns those that are still members.
    fn present(&self, seen: &[Seen]) -> Vec<usize> {
        let is_present = |seen: &&Seen| {
            let member = self.members.get(&seen.number);
            member.is_some_and(|member| Arc::ptr_eq(&member.endpoint, &seen.endpoint))
        };
        let seen = seen.iter().filter(is_present);
        seen.map(|seen| seen.number).collect()
    }
}

impl State {
    fn is_present(&self, seen: &Seen) -> bool {
        let device = self.device(seen.number);
        let probed = device.and_then(|device| device.probed());
        probed.is_some_and(|probed| Arc::ptr_eq(&probed.endpoint, &seen.endpoint))
    }

    fn is_settled(&self, number: usize) -> bool {
        let probed = self.device(number).and_then(|device| device.probed());
        probed.is_some_and(|probed| probed.is_settled)
    }

    fn mark_settled(&mut self, seen: &Seen) {
        let device = self.device_mut(seen.number);
        let probed = device.and_then(|device| device.probed_mut());
        if let Some(probed) = probed.filter(|it| Arc::ptr_eq(&it.endpoint, &seen.endpoint)) {
            probed.is_settled = true;
        }
    }
}
