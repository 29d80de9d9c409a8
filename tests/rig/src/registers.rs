//! The registers of a simulated IOMMU, as the engine's queues want them.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::thread;

use iopt::invalidation::queue::{Platform, amd, riscv, smmuv3, vtd};
use iopt_formats::Oa;
use iopt_sim::{Clock, Iommu, Stop};

use crate::memory::Physical;

/// The registers of the queue of one simulated IOMMU of any architecture, with the queue's memory and virtual
/// time.
pub struct Registers {
    iommu: Arc<Iommu>,
    clock: Arc<Clock>,
    memory: Arc<Physical>,
    ring: Oa,
    word_count: usize,
    status: Oa,
    /// `GERRORN`, which the simulation can only be told.
    gerrorn: AtomicU32,
}

/// Looks after which others run: who waits may wait for them.
const PATIENT_TURN: u32 = 8;

impl Registers {
    /// Takes `word_count` words from `ring` on for the queue, and the word at `status`.
    ///
    /// # Panics
    ///
    /// Panics if they are not inside the memory.
    pub(crate) fn new(
        iommu: Arc<Iommu>,
        clock: Arc<Clock>,
        memory: Arc<Physical>,
        (ring, word_count): (Oa, usize),
        status: Oa,
    ) -> Self {
        assert!(memory.words(ring, word_count).is_some());
        assert!(memory.words(status, 1).is_some());
        Self {
            iommu,
            clock,
            memory,
            ring,
            word_count,
            status,
            gerrorn: AtomicU32::new(0),
        }
    }

    fn status_word(&self) -> &AtomicU64 {
        let words = self.memory.words(self.status, 1);
        &words.expect("checked when made")[0]
    }
}

impl Platform for Registers {
    fn ring(&self) -> &[AtomicU64] {
        let words = self.memory.words(self.ring, self.word_count);
        words.expect("checked when made")
    }

    fn now_ns(&self) -> u64 {
        self.clock.now()
    }

    fn pause(&self, turn: u32) {
        if turn > PATIENT_TURN {
            thread::yield_now();
        }
        self.clock.poll();
    }
}

impl smmuv3::Registers for Registers {
    fn set_cmdq_prod(&self, value: u32) {
        self.iommu.write_tail(value.into());
    }

    fn cmdq_cons(&self) -> u32 {
        self.iommu.read_head() as u32
    }

    fn gerror(&self) -> u32 {
        self.iommu.read_errors() as u32
    }

    fn gerrorn(&self) -> u32 {
        self.gerrorn.load(Ordering::Acquire)
    }

    fn change_gerrorn(&self, mask: u32, value: u32) {
        let change = |old: u32| Some(old & !mask | value & mask);
        // One thread alone acknowledges, and the closure never refuses.
        let _ = self
            .gerrorn
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, change);
        self.iommu.acknowledge(self.gerrorn().into());
    }
}

impl vtd::Registers for Registers {
    fn status_word(&self) -> &AtomicU64 {
        self.status_word()
    }

    fn set_iqt(&self, value: u64) {
        self.iommu.write_tail(value);
    }

    fn iqh(&self) -> u64 {
        self.iommu.read_head()
    }

    fn fsts(&self) -> u32 {
        self.iommu.read_errors() as u32
    }

    fn clear_fsts(&self, bits: u32) {
        self.iommu.acknowledge(bits.into());
    }
}

impl amd::Registers for Registers {
    fn status_word(&self) -> &AtomicU64 {
        self.status_word()
    }

    fn set_tail(&self, value: u64) {
        self.iommu.write_tail(value);
    }

    fn head(&self) -> u64 {
        self.iommu.read_head()
    }

    fn status(&self) -> u64 {
        self.iommu.read_errors()
    }

    fn event(&self) -> Option<amd::Event> {
        self.iommu.event().map(|event| match event {
            Stop::Illegal => amd::Event::IllegalCommand,
            Stop::Abort => amd::Event::CommandHardware,
            Stop::DeviceTimeout => amd::Event::InvalidationTimeout,
        })
    }

    fn acknowledge(&self, _event: Option<amd::Event>) {
        const CMD_BUF_EN: u64 = 1 << 12;
        if self.iommu.take_event() != Some(Stop::DeviceTimeout) {
            self.iommu.acknowledge(0);
            self.iommu.acknowledge(CMD_BUF_EN);
        }
    }
}

impl riscv::Registers for Registers {
    fn set_cqt(&self, value: u32) {
        self.iommu.write_tail(value.into());
    }

    fn cqh(&self) -> u32 {
        self.iommu.read_head() as u32
    }

    fn cqcsr(&self) -> u32 {
        self.iommu.read_errors() as u32
    }

    fn clear_cqcsr(&self, bits: u32) {
        self.iommu.acknowledge(bits.into());
    }
}

impl fmt::Debug for Registers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registers")
            .field("ring", &self.ring)
            .field("status", &self.status)
            .finish_non_exhaustive()
    }
}
