//! One IOMMU with its memory, its queue and what is known of its devices.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use iopt::invalidation::Instance;
use iopt::invalidation::queue::{Entry as _, Queue, WithSync};
use iopt::sync::SYNC;
use iopt_formats::PageSize;
use iopt_sim::{
    Clock, Config, ContextTable, Contexts, Iommu, Latencies, Ledger, Outcome, Rights, StaleAccess,
};

use crate::behaviour::{Behaviour, EntryOf};
use crate::domain::{Domain, RigError};
use crate::memory::{Physical, Tables};
use crate::registers::Registers;

/// What is to be chosen of a machine beside the behaviour of its IOMMU.
#[derive(Clone, Copy, Debug)]
pub struct MachineConfig {
    /// Decides which of several outcomes a request gets.
    pub seed: u64,
    /// How long the IOMMU takes.
    pub latencies: Latencies,
    /// Virtual time that passes whenever somebody waits for the IOMMU, in ns.
    pub step_ns: u64,
    /// Virtual time that the queue gives hardware.
    pub limit: Duration,
    /// Bytes of memory at most.
    pub memory_len: usize,
    /// Logarithm of the entries of the queue, 8 or more.
    pub lg2_entries: u8,
    /// Lists go without a SYNC of their own, and whoever waits joins one.
    pub has_shared_syncs: bool,
}

impl Default for MachineConfig {
    fn default() -> Self {
        Self {
            seed: 0,
            latencies: Latencies::default(),
            step_ns: 100,
            limit: Duration::from_secs(1),
            memory_len: 256 << 20,
            lg2_entries: 8,
            has_shared_syncs: false,
        }
    }
}

/// The instance that domains of `B` are cached on.
type InstanceOf<B> = Instance<<B as Behaviour>::Planner, <B as Behaviour>::Device>;

/// A device as it was attached.
#[derive(Clone, Copy, Debug)]
struct Attached {
    /// The domain.
    id: u16,
    has_ats: bool,
}

/// A simulated IOMMU with its memory, and the engine's queue to it.
pub struct Machine<B: Behaviour> {
    behaviour: B,
    memory: Arc<Physical>,
    ledger: Arc<Ledger>,
    contexts: Arc<ContextTable>,
    clock: Arc<Clock>,
    iommu: Arc<Iommu>,
    instance: Arc<InstanceOf<B>>,
    last_id: AtomicU16,
    /// Devices that are attached; the lock is held while one comes or goes.
    devices: Mutex<BTreeMap<u16, Attached>>,
}

impl<B: Behaviour> Machine<B> {
    /// Creates a machine whose devices are all blocked.
    ///
    /// # Errors
    ///
    /// [`RigError`] if the system has no memory, or the queue cannot be as large.
    pub fn new(behaviour: B, config: MachineConfig) -> Result<Arc<Self>, RigError> {
        let table = Arc::new(ContextTable::new());
        let contexts = Arc::<ContextTable>::clone(&table);
        Self::build(behaviour, config, table, contexts)
    }

    /// Creates a machine whose IOMMU finds its devices' contexts by `contexts`. It has no use for
    /// [`attach`](Self::attach) and [`detach`](Self::detach).
    ///
    /// # Errors
    ///
    /// As [`new`](Self::new).
    pub fn with_contexts(
        behaviour: B,
        config: MachineConfig,
        contexts: Arc<dyn Contexts>,
    ) -> Result<Arc<Self>, RigError> {
        Self::build(behaviour, config, Arc::default(), contexts)
    }

    fn build(
        behaviour: B,
        config: MachineConfig,
        contexts: Arc<ContextTable>,
        found_by: Arc<dyn Contexts>,
    ) -> Result<Arc<Self>, RigError> {
        let memory = Arc::new(Physical::new(config.memory_len)?);
        let ledger = Arc::new(Ledger::new());
        let clock = Clock::new(config.step_ns);
        let simulated = Config {
            latencies: config.latencies,
            seed: config.seed,
            ..Config::new(behaviour.architecture())
        };
        let iommu = Iommu::new(
            simulated,
            Arc::<Physical>::clone(&memory),
            found_by,
            Arc::clone(&ledger),
            &clock,
        );
        let words = EntryOf::<B>::WORDS << config.lg2_entries;
        let len = (8 * words).next_power_of_two();
        let ring = memory.take(PageSize::from_lg2(len.ilog2() as u8))?;
        let status = memory.take(PageSize::KIB_4)?;
        let registers = Registers::new(
            Arc::clone(&iommu),
            Arc::clone(&clock),
            Arc::clone(&memory),
            (ring, words),
            status,
        );
        let device = behaviour.device(registers, status);
        iommu.write_base(behaviour.base(&device, ring));
        let queue = Queue::new(device)?.with_limit(config.limit);
        let instance = Instance::new(behaviour.planner(), queue);
        let instance = if config.has_shared_syncs {
            instance.with_shared_syncs()
        } else {
            instance
        };
        Ok(Arc::new(Self {
            behaviour,
            memory,
            ledger,
            contexts,
            clock,
            iommu,
            instance: Arc::new(instance),
            last_id: AtomicU16::new(0),
            devices: Mutex::default(),
        }))
    }

    /// Returns what its IOMMU is.
    pub const fn behaviour(&self) -> &B {
        &self.behaviour
    }

    /// Returns what devices may reach.
    pub const fn ledger(&self) -> &Arc<Ledger> {
        &self.ledger
    }

    /// Returns the contexts of devices.
    pub const fn contexts(&self) -> &Arc<ContextTable> {
        &self.contexts
    }

    /// Returns the virtual time.
    pub const fn clock(&self) -> &Arc<Clock> {
        &self.clock
    }

    /// Returns the IOMMU, to inject faults into and to ask for its statistics.
    pub const fn iommu(&self) -> &Arc<Iommu> {
        &self.iommu
    }

    /// Returns the engine's way to it.
    pub const fn instance(&self) -> &Arc<InstanceOf<B>> {
        &self.instance
    }

    /// Returns its memory.
    pub const fn memory(&self) -> &Arc<Physical> {
        &self.memory
    }

    /// Returns memory for tables.
    pub fn tables(&self) -> Tables {
        Tables::new(Arc::clone(&self.memory), Arc::clone(&self.ledger))
    }

    /// Creates a domain that maps nothing and that no device is attached to. Its number is never used again.
    ///
    /// # Errors
    ///
    /// [`RigError`] if there is no memory, or no number is left.
    pub fn domain(self: &Arc<Self>) -> Result<Domain<B>, RigError> {
        let last = self
            .last_id
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |last| {
                last.checked_add(1)
            });
        let last = last.map_err(|_| RigError::NoDomain)?;
        Domain::new(Arc::clone(self), last + 1)
    }

    /// Lets requests of `device`, which is blocked or attached to this domain already, use `domain`, and if it
    /// `has_ats`, lets it cache translations itself.
    ///
    /// # Errors
    ///
    /// [`RigError`] if the hardware does not answer, or there is no memory. If the hardware did not answer, the device
    /// may reach the domain, and counts as attached.
    pub fn attach(&self, domain: &Domain<B>, device: u16, has_ats: bool) -> Result<(), RigError> {
        let mut devices = self.devices();
        self.detach_locked(&mut devices, domain, device)?;
        let id = domain.id();
        let tags = self.behaviour.tags(id, device, has_ats);
        self.iommu.set_device_tlb(device.into(), has_ats);
        // The places before the context, so that whatever is cached is known.
        domain.set().attach(&self.instance, &tags)?;
        devices.insert(device, Attached { id, has_ats });
        let attachment = self.behaviour.attachment(domain.number());
        self.ledger.attach(device.into(), None, attachment);
        let context = self.behaviour.context(id, domain.table().root(), has_ats);
        self.contexts.set(device.into(), None, Some(context));
        self.forget_context(device)?;
        self.ledger.attach_done(device.into(), None);
        Ok(())
    }

    /// Blocks `device`, which was attached to `domain` or is blocked already.
    ///
    /// # Errors
    ///
    /// [`RigError`] if the hardware does not answer; it may reach the domain then.
    pub fn detach(&self, domain: &Domain<B>, device: u16) -> Result<(), RigError> {
        self.detach_locked(&mut self.devices(), domain, device)
    }

    fn detach_locked(
        &self,
        devices: &mut BTreeMap<u16, Attached>,
        domain: &Domain<B>,
        device: u16,
    ) -> Result<(), RigError> {
        let Some(&Attached { id, has_ats }) = devices.get(&device) else {
            return Ok(());
        };
        if id != domain.id() {
            return Err(RigError::OtherDomain);
        }
        self.ledger.detach(device.into(), None);
        self.contexts.set(device.into(), None, None);
        self.forget_context(device)?;
        // Only when nothing leads there any more is it worth to forget, and safe to stop being told.
        let tags = self.behaviour.tags(id, device, has_ats);
        self.instance.forget(&tags)?;
        domain.set().detach(&self.instance, &tags);
        devices.remove(&device);
        self.ledger.detach_done(device.into(), None);
        Ok(())
    }

    /// Makes the IOMMU forget the context of `device`.
    fn forget_context(&self, device: u16) -> Result<(), RigError> {
        let _waiting = SYNC.waiting();
        let entry = self.behaviour.forget_context(device);
        let queue = self.instance.queue();
        let ticket = queue.submit(&[entry], WithSync::Now)?;
        Ok(queue.wait(ticket)?)
    }

    /// Makes a request of `device` for the byte at `iova`.
    ///
    /// # Errors
    ///
    /// [`StaleAccess`] for the first of all outcomes that the hardware's caches allow which breaks a law.
    pub fn access(
        &self,
        device: u16,
        iova: u64,
        rights: Rights,
    ) -> Result<Outcome, Box<StaleAccess>> {
        self.iommu.access(device.into(), None, iova, rights)
    }

    /// Holds everything that is cached against the ledger.
    ///
    /// # Errors
    ///
    /// [`StaleAccess`] for the first entry that breaks a law.
    pub fn check_all(&self) -> Result<(), Box<StaleAccess>> {
        self.iommu.check_all()
    }

    fn devices(&self) -> MutexGuard<'_, BTreeMap<u16, Attached>> {
        self.devices.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<B: Behaviour> fmt::Debug for Machine<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Machine")
            .field("behaviour", &self.behaviour)
            .field("iommu", &self.iommu)
            .finish_non_exhaustive()
    }
}
