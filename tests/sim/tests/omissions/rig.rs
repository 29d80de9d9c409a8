//! One IOMMU with a queue, memory and a ledger.

use std::sync::Arc;

use iopt_sim::{
    Attachment, Clock, Config, Context, ContextTable, Contexts, Iommu, Law, Ledger, Memory as _,
    Outcome, Ram, Refusal, Rights, StaleAccess,
};

use crate::machines::Machine;

/// Where the queue is; it has 64 entries of 16 bytes, or as many as fit one page where sizes are pages.
pub(crate) const QUEUE: u64 = 0x10_0000;
pub(crate) const DEVICE: u32 = 0x12;
/// The domain of the ledger that everything is mapped in.
pub(crate) const DOMAIN: u64 = 1;

pub(crate) type Words = [u64; 2];

pub(crate) struct Rig {
    pub(crate) machine: &'static Machine,
    pub(crate) ram: Arc<Ram>,
    pub(crate) ledger: Arc<Ledger>,
    pub(crate) clock: Arc<Clock>,
    /// The contexts, unless they are read from words.
    pub(crate) contexts: Arc<ContextTable>,
    pub(crate) iommu: Arc<Iommu>,
    pub(crate) tail: u64,
}

impl Rig {
    /// Builds an IOMMU in which the device has the context that `machine` names.
    pub(crate) fn new(machine: &'static Machine, context: Context) -> Self {
        let contexts = Arc::new(ContextTable::new());
        contexts.set(DEVICE, None, Some(context));
        let config = Config {
            orders_device_tlb: machine.orders_device_tlb,
            ..Config::new(machine.architecture)
        };
        let rig = Self::with_config(machine, config, contexts);
        rig.ledger.attach(DEVICE, None, Attachment::Domain(DOMAIN));
        rig.ledger.attach_done(DEVICE, None);
        rig
    }

    pub(crate) fn with_config(
        machine: &'static Machine,
        config: Config,
        contexts: Arc<ContextTable>,
    ) -> Self {
        let found = contexts.clone();
        Self {
            contexts,
            ..Self::build(machine, config, found)
        }
    }

    pub(crate) fn with_contexts(machine: &'static Machine, contexts: Arc<dyn Contexts>) -> Self {
        Self::build(machine, Config::new(machine.architecture), contexts)
    }

    fn build(machine: &'static Machine, config: Config, contexts: Arc<dyn Contexts>) -> Self {
        let (ram, ledger) = (Arc::new(Ram::new()), Arc::new(Ledger::new()));
        let clock = Clock::new(100);
        let iommu = Iommu::new(config, ram.clone(), contexts, ledger.clone(), &clock);
        iommu.write_base(machine.base);
        Self {
            machine,
            ram,
            ledger,
            clock,
            contexts: Arc::default(),
            iommu,
            tail: 0,
        }
    }

    pub(crate) fn put(&self, address: u64, word: u64) {
        assert!(self.ram.write64(address, word));
    }

    /// Writes commands to the queue, and the tail behind them.
    pub(crate) fn send(&mut self, commands: &[Words]) {
        for words in commands {
            let slot = QUEUE + self.tail % self.machine.entries * 16;
            self.put(slot, words[0]);
            self.put(slot + 8, words[1]);
            self.tail = (self.tail + 1) % (self.machine.entries * self.machine.laps);
        }
        self.iommu.write_tail(self.tail << self.machine.shift);
    }

    /// Waits until the head is at the tail.
    ///
    /// Fails if it does not get there.
    pub(crate) fn wait(&self) {
        for _ in 0..1000 {
            // The SMMU's register keeps the code of the last error above the index.
            if self.iommu.read_head() & 0xff_ffff == self.tail << self.machine.shift {
                return;
            }
            self.clock.poll();
        }
        panic!(
            "the queue does not go on: head {:#x}",
            self.iommu.read_head()
        );
    }

    /// Maps a page or a block of `len` bytes for the device: tells the ledger and writes the leaf.
    pub(crate) fn map(&self, slot: u64, word: u64, iova: u64, oa: u64, len: u64) {
        self.ledger
            .map(DOMAIN, iova..=iova + len - 1, oa, Rights::ALL);
        self.put(slot, word);
        self.ledger.map_done(DOMAIN, iova..=iova + len - 1);
    }

    /// Accesses an address for reading, and returns where it led.
    pub(crate) fn read(&self, iova: u64) -> Result<Option<u64>, Box<StaleAccess>> {
        match self.iommu.access(DEVICE, None, iova, Rights::READ)? {
            Outcome::Translated { oa, .. } => Ok(Some(oa)),
            Outcome::Refused(Refusal::Rights(_)) => panic!("everything here can be read"),
            Outcome::Refused(_) => Ok(None),
        }
    }

    /// Fills the caches with an address that is mapped to itself plus `offset`.
    pub(crate) fn warm(&self, iova: u64, offset: u64) {
        assert_eq!(
            self.read(iova).expect("nothing is stale yet"),
            Some(iova + offset)
        );
    }

    /// Sends commands, waits, takes `range` for forgotten, and tells which law is broken, by an entry of a
    /// cache and by an access to one of the pages.
    pub(crate) fn law_after(
        &mut self,
        commands: &[Words],
        range: std::ops::RangeInclusive<u64>,
    ) -> Option<Law> {
        self.send(commands);
        self.wait();
        self.ledger.forgotten(DOMAIN, range.clone());
        self.law(range)
    }

    /// Tells which law is broken.
    pub(crate) fn law(&self, range: std::ops::RangeInclusive<u64>) -> Option<Law> {
        let cached = self.iommu.check_all().err().map(|stale| stale.law);
        let mut accessed = None;
        for iova in range.step_by(0x1000) {
            accessed = accessed.or(self.read(iova).err().map(|stale| stale.law));
        }
        // What is absent and larger than a page is found by those alone who ask for it.
        if cached.is_some() {
            assert_eq!(
                cached, accessed,
                "an entry is stale, and nobody can reach it"
            );
        }
        // What the accesses left is allowed as a whole.
        accessed = accessed.or_else(|| self.iommu.check_all().err().map(|stale| stale.law));
        accessed
    }
}
