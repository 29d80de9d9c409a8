//! A simulated IOMMU: registers on one side, requests of devices on the other.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use iopt_reference::context::Binding;

use crate::atc::AtcEntry;
use crate::behaviour::{Architecture, Command, Completion, Effect};
use crate::clock::{Clock, Latencies, Timed};
use crate::contexts::Contexts;
use crate::examine::Examiner;
use crate::injection::{Event, Injection};
use crate::invalidation::{AtcDrop, Tables};
use crate::iotlb::Origin;
use crate::ledger::Ledger;
use crate::memory::Memory;
use crate::queue::Stop;
use crate::report::{Logged, StaleAccess};
use crate::rights::Rights;
use crate::span::Span;
use crate::state::State;
use crate::statistics::Statistics;
use crate::tag::Tag;
use crate::translate::{Machine, Refusal};

/// How an IOMMU behaves.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Config {
    /// The architecture and its features.
    pub architecture: Architecture,
    /// How long it takes.
    pub latencies: Latencies,
    /// Decides which of several outcomes a request gets.
    pub seed: u64,
    /// Invalidations of device TLBs are sent when the commands before them are complete, without a sync
    /// between them. Off, a device may be told early, ask again and get what is still cached.
    pub orders_device_tlb: bool,
}

impl Config {
    /// Creates a configuration with the usual latencies that orders nothing by itself.
    pub fn new(architecture: Architecture) -> Self {
        Self {
            architecture,
            latencies: Latencies::default(),
            seed: 0,
            orders_device_tlb: false,
        }
    }
}

/// What a request got.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Outcome {
    /// It was let through.
    Translated {
        /// Output address.
        oa: u64,
        /// What the translation allows.
        rights: Rights,
    },
    /// It was refused.
    Refused(Refusal),
}

/// Dropped leaves that are looked up again, and pointers, of each command.
const MOST_REFILLED: usize = 64;

/// An IOMMU that caches whatever it may and forgets only what it must.
///
/// Everything takes one lock, so any threads may use it. Commands are consumed whenever a register is
/// touched, a request comes or the clock is polled.
pub struct Iommu {
    config: Config,
    memory: Arc<dyn Memory>,
    contexts: Arc<dyn Contexts>,
    ledger: Arc<Ledger>,
    clock: Arc<Clock>,
    state: Mutex<State>,
}

impl Iommu {
    /// Creates an IOMMU whose caches and queue are empty.
    pub fn new(
        config: Config,
        memory: Arc<dyn Memory>,
        contexts: Arc<dyn Contexts>,
        ledger: Arc<Ledger>,
        clock: &Arc<Clock>,
    ) -> Arc<Self> {
        let state = Mutex::new(State::new(&config.architecture, config.seed));
        let iommu = Arc::new(Self {
            config,
            memory,
            contexts,
            ledger,
            clock: Arc::clone(clock),
            state,
        });
        let weak: Weak<Self> = Arc::downgrade(&iommu);
        clock.listen(weak);
        iommu
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes the register of the queue's base and size, as the architecture lays it out: `CMDQ_BASE`,
    /// `IQA_REG`, command buffer base address, `cqb`. The queue becomes empty and is enabled.
    pub fn write_base(&self, word: u64) {
        self.state().queue.write_base(word);
    }

    /// Writes the tail register: `CMDQ_PROD`, `IQT_REG`, command buffer tail pointer, `cqt`.
    pub fn write_tail(&self, word: u64) {
        let mut state = self.state();
        state.queue.write_tail(word);
        self.consume(&mut state);
    }

    /// Reads the head register: `CMDQ_CONS` with ERR, `IQH_REG`, command buffer head pointer, `cqh`.
    pub fn read_head(&self) -> u64 {
        let mut state = self.state();
        self.consume(&mut state);
        state.queue.head()
    }

    /// Reads the register that tells of errors: `GERROR`, `FSTS_REG`, IOMMU status, `cqcsr`.
    pub fn read_errors(&self) -> u64 {
        let mut state = self.state();
        self.consume(&mut state);
        state.queue.errors()
    }

    /// Writes the register that acknowledges errors: `GERRORN`, `FSTS_REG`, IOMMU control, `cqcsr`. The
    /// queue goes on at the head.
    pub fn acknowledge(&self, word: u64) {
        let mut state = self.state();
        state.queue.acknowledge(word);
        self.consume(&mut state);
    }

    /// Returns the oldest event about commands in the event log, which AMD's IOMMU alone has.
    pub fn event(&self) -> Option<Stop> {
        let mut state = self.state();
        self.consume(&mut state);
        state.queue.event()
    }

    /// Takes the event out of the log that [`event`](Self::event) returned.
    pub fn take_event(&self) -> Option<Stop> {
        self.state().queue.take_event()
    }

    /// Gives a device a TLB, or takes it away; it is empty afterwards.
    pub fn set_device_tlb(&self, device: u32, is_enabled: bool) {
        self.state().atcs.set_enabled(device, is_enabled);
    }

    /// Lets a fault happen.
    pub fn inject(&self, injection: Injection) {
        self.state().injections.add(injection);
    }

    /// Lets a sync complete that was stuck.
    pub fn release_sync(&self) {
        let mut state = self.state();
        state.is_stuck = false;
        self.consume(&mut state);
    }

    /// Returns what was counted.
    pub fn statistics(&self) -> Statistics {
        self.state().statistics.clone()
    }

    /// Makes a request of a device, with its PASID or without one, for the byte at `iova`.
    ///
    /// Every outcome that the caches allow is held against the ledger, and leaves in the caches what it
    /// may; one of them, drawn by the seed, is returned.
    ///
    /// # Errors
    ///
    /// Returns the first outcome that breaks a law.
    pub fn access(
        &self,
        device: u32,
        pasid: Option<u32>,
        iova: u64,
        rights: Rights,
    ) -> Result<Outcome, Box<StaleAccess>> {
        let mut state = self.state();
        self.consume(&mut state);
        let walks = state.statistics.walks;
        let outcome = self
            .examiner(&mut state, device, pasid)
            .access(iova, rights);
        if state.statistics.walks > walks {
            self.clock.advance(self.config.latencies.walk);
        }
        outcome
    }

    /// Holds everything that is cached, and that a device can be led to, against the ledger: whole entries,
    /// whether or not anybody asks for them.
    ///
    /// # Errors
    ///
    /// Returns the first entry that breaks a law.
    pub fn check_all(&self) -> Result<(), Box<StaleAccess>> {
        let mut state = self.state();
        self.consume(&mut state);
        let mut requesters = state.requesters.clone();
        requesters.extend(self.ledger.requesters());
        for (device, pasid) in requesters {
            self.examiner(&mut state, device, pasid).check_all()?;
        }
        Ok(())
    }

    fn examiner<'a>(
        &'a self,
        state: &'a mut State,
        device: u32,
        pasid: Option<u32>,
    ) -> Examiner<'a> {
        Examiner {
            machine: Machine {
                state,
                memory: &*self.memory,
                contexts: &*self.contexts,
                ledger: &self.ledger,
                absences: self.config.architecture.absences(),
                now: self.clock.now(),
                device,
                pasid,
                freed: Vec::new(),
            },
        }
    }

    /// Consumes commands as far as the clock allows.
    fn consume(&self, state: &mut State) {
        while let Some(address) = state.queue.next() {
            if !self.step(state, address) {
                return;
            }
        }
    }

    /// Consumes the command at the head; returns whether the head moved.
    fn step(&self, state: &mut State, address: u64) -> bool {
        let mut words = [0; 4];
        for (index, word) in (0..self.config.architecture.entry_len() / 8).zip(&mut words) {
            let Some(read) = self.memory.read64(address.wrapping_add(8 * index)) else {
                state.queue.stop(Stop::Abort);
                return false;
            };
            *word = read;
        }
        if !state.is_counted && state.injections.strikes(Event::Command) {
            state.queue.stop(Stop::Illegal);
            return false;
        }
        let Ok(command) = self.config.architecture.decode(words) else {
            state.queue.stop(Stop::Illegal);
            return false;
        };
        let sync = command.effects.iter().find_map(|effect| match effect {
            Effect::Sync(completion) => Some(*completion),
            _ => None,
        });
        if let Some(completion) = sync {
            let is_first = !state.is_counted;
            state.is_counted = true;
            if is_first && state.injections.strikes(Event::Sync) {
                state.is_stuck = true;
            }
            if !self.sync(state, completion) {
                return false;
            }
        }
        state.is_counted = false;
        self.apply(state, words, command);
        state.queue.consume();
        true
    }

    /// Completes a sync if it is due; returns whether it did.
    fn sync(&self, state: &mut State, completion: Completion) -> bool {
        let now = self.clock.now();
        let due = *state
            .sync_due
            .get_or_insert(now + self.config.latencies.sync);
        if state.is_stuck || now < due {
            return false;
        }
        state.sync_due = None;
        if state.has_timed_out {
            state.has_timed_out = false;
            state.queue.stop(Stop::DeviceTimeout);
            if state.queue.next().is_none() {
                state.is_counted = false;
                return false;
            }
            // It goes on, and this sync proves nothing about devices.
        } else {
            state.atcs.sync();
        }
        state.iotlb.sync();
        state.walk_cache.sync();
        state.contexts.sync();
        state.pending.clear();
        state.statistics.syncs += 1;
        let is_stored = match completion {
            Completion::Head => true,
            Completion::Store32 { address, word } => self.memory.write32(address, word),
            Completion::Store64 { address, word } => self.memory.write64(address, word),
        };
        if !is_stored {
            state.queue.stop(Stop::Abort);
        }
        is_stored
    }

    /// Does what a command says, early: what it drops can be used until the next sync, and nothing that is
    /// cached after it is dropped.
    fn apply(&self, state: &mut State, words: [u64; 4], command: Command) {
        *state.statistics.commands.entry(command.name).or_default() += 1;
        if !command.effects.is_empty() {
            state.pending.push(command.effects.clone());
        }
        for effect in &command.effects {
            match effect {
                Effect::Tlb(request) => {
                    let is_meant = |tag| request.names.is_meant(tag);
                    if request.tables != Tables::None {
                        state.statistics.table_invalidations += 1;
                    }
                    let keeps = |entry: &_| request.keeps_leaf(entry);
                    let leaves = state.iotlb.drop_where(is_meant, request.range, keeps);
                    let keeps = |entry: &_| request.keeps_table(entry);
                    let tables = state.walk_cache.drop_where(is_meant, request.range, keeps);
                    for entry in leaves.iter().take(MOST_REFILLED) {
                        self.refill(state, entry.tag, entry.span, &entry.origin);
                    }
                    for entry in tables.iter().take(MOST_REFILLED) {
                        self.refill(state, entry.tag, entry.span, &entry.origin);
                    }
                }
                Effect::Atc(request) => self.invalidate_device_tlb(state, request),
                Effect::Context(request) => {
                    let dropped = state.contexts.drop_where(|entry| request.keeps(entry));
                    for (device, pasid) in dropped {
                        self.examiner(state, device, pasid).machine.bounds();
                    }
                }
                Effect::Sync(_) => {}
            }
        }
        let logged = Logged {
            number: state.commands,
            time: self.clock.now(),
            name: command.name,
            words,
            effects: command.effects,
        };
        state.log(logged);
        state.commands += 1;
    }

    /// Translates anew what was dropped, as a prefetcher may: a command that came before the store which it
    /// is for has missed it, and so has one that came before another which it depends on.
    fn refill(&self, state: &mut State, tag: Tag, span: Span, origin: &Origin) {
        let walks = state.statistics.walks;
        let Origin { device, pasid, .. } = *origin;
        let mut machine = self.examiner(state, device, pasid).machine;
        for bound in machine.bounds() {
            let Ok(context) = bound.result else { continue };
            if context.tag == tag || context.tag.of_global() == tag {
                machine.outcomes(&context, span.start, &bound.parents);
            } else if let Binding::Nested { second, .. } = &context.binding
                && context.tag.of_second() == tag
            {
                machine.one_stage(second, tag, span.start, &bound.parents);
            }
        }
        // Nobody asked.
        state.statistics.walks = walks;
    }

    /// Tells a device to forget, which asks again at once for whatever the IOTLB still holds.
    fn invalidate_device_tlb(&self, state: &mut State, request: &AtcDrop) {
        if state.injections.strikes(Event::DeviceInvalidation) {
            state.has_timed_out = true;
            return;
        }
        state.atcs.drop_where(request);
        let (start, last) = (request.span.start, request.span.last());
        let requesters = state.requesters.clone();
        let is_meant = |requester: &&(u32, Option<u32>)| {
            requester.0 == request.device && state.atcs.is_enabled(requester.0)
        };
        let requesters: Vec<_> = requesters.iter().filter(is_meant).copied().collect();
        for (device, pasid) in requesters {
            let bounds = self.examiner(state, device, pasid).machine.bounds();
            let contexts = bounds.into_iter().filter_map(|bound| bound.result.ok());
            for context in contexts.filter(|context| context.has_ats) {
                let tags = [context.tag, context.tag.of_global()];
                let slots = state.iotlb.under(|tag| tags.contains(&tag));
                for slot in slots {
                    let Some(target) = slot.entry.target else {
                        continue;
                    };
                    let is_late = self.config.orders_device_tlb && slot.is_dropped;
                    if is_late || !slot.entry.span.overlaps(start, last) {
                        continue;
                    }
                    state.atcs.insert(AtcEntry {
                        device,
                        pasid,
                        span: slot.entry.span,
                        target,
                        from: (*slot.entry).clone(),
                        time: self.clock.now(),
                        commands: state.commands,
                        is_dropped: false,
                    });
                }
            }
        }
    }
}

impl Timed for Iommu {
    fn run(&self) {
        let mut state = self.state();
        self.consume(&mut state);
    }
}

impl fmt::Debug for Iommu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Iommu")
            .field("config", &self.config)
            .field("state", &*self.state())
            .finish_non_exhaustive()
    }
}
