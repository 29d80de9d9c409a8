//! One RISC-V IOMMU: its features, its queue, its device directory, its IDs.

use alloc::sync::Arc;
use core::fmt;

use iopt_formats::command::riscv::{Command, Function};
use iopt_formats::context::riscv::{
    Ddtp, DeviceContext, DeviceDirectory, DeviceOptions, Misconfigured, SecondStage,
};

use crate::device::context::{LinkError, Shares, Unwritten};
use crate::device::fault::Listeners;
use crate::device::ids::Ids;
use crate::device::riscv::changes::{self, Old};
use crate::device::riscv::features::BARE;
use crate::device::riscv::tables::DeviceContexts;
use crate::device::riscv::{CommandDevice, Features};
use crate::invalidation::plan::riscv::Riscv as Planner;
use crate::invalidation::{Instance, SyncError};
use crate::mem::{OutOfMemory, TableMemory};
use crate::sync::{CONTEXTS, Mutex};

/// Width of PSCID in contexts.
const PSCID_BITS: u8 = 20;
/// Width of GSCID in contexts.
const GSCID_BITS: u8 = 16;
/// Width of the requester in commands to devices; above it are segments.
const REQUESTER_BITS: u8 = 16;

/// An instance: what its user registers with a [`RiscvDriver`](crate::device::riscv::RiscvDriver).
pub struct RiscvIommu<M: TableMemory, D: CommandDevice> {
    features: Features,
    memory: Arc<M>,
    instance: Arc<Instance<Planner, D>>,
    pscids: Arc<Ids>,
    gscids: Arc<Ids>,
    directory: DeviceDirectory,
    contexts: Mutex<DeviceContexts<M>>,
    shares: Arc<Shares<DeviceContext>>,
    listeners: Listeners,
}

/// Why there is no such instance.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum RiscvIommuError {
    /// No memory for the device directory.
    #[error(transparent)]
    Memory(#[from] OutOfMemory),
    /// Its registers allow no context of those that the engine writes, or the directory cannot be.
    #[error(transparent)]
    Unusable(#[from] Misconfigured),
    /// It reads directories and tables as big-endian (`fctl.BE`), and the engine writes them little-endian.
    #[error("the IOMMU reads big-endian directories: clear fctl.BE")]
    BigEndian,
}

impl<M: TableMemory + 'static, D: CommandDevice> RiscvIommu<M, D> {
    /// Creates an instance with a device directory in `memory` whose contexts are all not valid, which blocks, and
    /// that hardware does not use yet.
    ///
    /// # Errors
    ///
    /// [`RiscvIommuError`].
    pub fn new(
        features: Features,
        memory: Arc<M>,
        instance: Arc<Instance<Planner, D>>,
    ) -> Result<Arc<Self>, RiscvIommuError> {
        if features.registers.is_big_endian() {
            return Err(RiscvIommuError::BigEndian);
        }
        // Among what is refused are IOMMUs for guests of 32 bits (`fctl.GXL`).
        features.context(BARE, SecondStage::Bare, DeviceOptions::default())?;
        let levels = features.device_levels;
        if !(1..=3).contains(&levels) {
            return Err(Misconfigured::DirectoryLevels { levels }.into());
        }
        let format = features.registers.context_format();
        let contexts = DeviceContexts::new(&memory, format, levels)?;
        let directory = DeviceDirectory::new(contexts.base(), levels, features.registers)?;
        Ok(Arc::new(Self {
            features,
            memory,
            instance,
            pscids: Ids::of_width(PSCID_BITS),
            gscids: Ids::of_width(GSCID_BITS),
            directory,
            contexts: Mutex::new(&CONTEXTS, contexts),
            shares: Shares::new(),
            listeners: Listeners::new(),
        }))
    }

    /// Returns what it can do.
    pub const fn features(&self) -> &Features {
        &self.features
    }

    /// Returns the way to its command queue.
    pub const fn instance(&self) -> &Arc<Instance<Planner, D>> {
        &self.instance
    }

    /// Returns what the register `ddtp` has to say; [`Ddtp::encode`] is its value.
    pub const fn ddtp(&self) -> Ddtp {
        Ddtp::Directory(self.directory)
    }

    /// Returns the PSCIDs, by which it knows domains of a first stage.
    pub const fn pscids(&self) -> &Arc<Ids> {
        &self.pscids
    }

    /// Returns the GSCIDs, by which it knows domains of a second stage.
    pub const fn gscids(&self) -> &Arc<Ids> {
        &self.gscids
    }

    /// Returns which devices have an ID.
    pub(super) const fn shares(&self) -> &Arc<Shares<DeviceContext>> {
        &self.shares
    }

    /// Returns whom its records are about.
    pub(super) const fn listeners(&self) -> &Listeners {
        &self.listeners
    }

    /// Returns the memory of its tables.
    pub(super) const fn memory(&self) -> &Arc<M> {
        &self.memory
    }

    /// Returns to which function commands for a device's own caches go: device IDs of PCI are requester IDs, and
    /// segments above them where there are several.
    pub(super) fn function(&self, device: u32) -> Function {
        let has_segments = self.directory.device_id_bits() > REQUESTER_BITS;
        Function {
            segment: has_segments.then_some((device >> REQUESTER_BITS) as u8),
            requester: device as u16,
        }
    }

    /// Sees to it that a device has a context.
    ///
    /// # Errors
    ///
    /// [`LinkError`].
    pub fn link(&self, device: u32) -> Result<(), LinkError> {
        let announce = || self.instance.execute(changes::device_directory());
        self.contexts.lock().link(device, announce)
    }

    /// Returns the words of a device's context as they were written last, if it has one; contexts in base format
    /// have the first four.
    pub fn words(&self, device: u32) -> Option<[u64; 8]> {
        self.contexts.lock().words(device)
    }

    /// Returns whether hardware may use another context than the one that was written last.
    pub fn is_quarantined(&self, device: u32) -> bool {
        self.contexts.lock().is_quarantined(device)
    }

    /// Makes the context of a device say `what`, or makes it not valid, which blocks, so that hardware finds the
    /// old one, this one or one that is not valid, and waits until it has forgotten the old one. For devices that
    /// no driver has. Nothing is told where nothing changes.
    ///
    /// # Errors
    ///
    /// [`Unwritten`]. The device is blocked then.
    pub fn write(&self, device: u32, what: Option<&DeviceContext>) -> Result<(), Unwritten> {
        let target = what.map_or([0; 8], |context| context.encode());
        let mut contexts = self.contexts.lock();
        let words = contexts.words(device);
        let index = device as usize;
        let words = words.ok_or(Unwritten::Absent { index })?;
        let old = if contexts.is_quarantined(device) {
            Old::Unknown
        } else {
            // One that hardware refuses has no translations.
            let context = DeviceContext::decode(words, self.features.registers);
            Old::of_device(context.ok().flatten())
        };
        let sync = || self.instance.execute(changes::device_context(device, old));
        contexts.write(device, &target, sync)
    }

    /// Carries out commands.
    pub(super) fn execute(
        &self,
        commands: impl IntoIterator<Item = Command, IntoIter: Clone>,
    ) -> Result<(), SyncError> {
        self.instance.execute(commands)
    }
}

impl<M: TableMemory, D: CommandDevice> fmt::Debug for RiscvIommu<M, D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RiscvIommu")
            .field("directory", &self.directory)
            .field("pscids", &self.pscids)
            .field("gscids", &self.gscids)
            .finish_non_exhaustive()
    }
}
