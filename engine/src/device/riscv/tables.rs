//! Directories in memory: of devices, and of one device's processes.
//!
//! Source: *RISC-V IOMMU Architecture Specification*, sections "Device-Directory-Table" and
//! "Process-Directory-Table". All their pages have 4 KiB.

use alloc::sync::Arc;
use core::fmt;

use iopt_formats::Oa;
use iopt_formats::command::Pasid;
use iopt_formats::context::riscv::{
    ContextFormat, DeviceContext, DeviceOptions, DirectoryPage, FirstStage, FirstStageTables,
    ProcessContext, ProcessDirectory, ProcessOptions, SecondStage, UpdateRules,
};

use crate::device::context::{Directory, LinkError, Target, Unwritten};
use crate::device::riscv::changes::{self, Old};
use crate::device::riscv::{CommandDevice, Features, RiscvIommu, Stage};
use crate::invalidation::SyncError;
use crate::mem::{OutOfMemory, TableMemory};

/// How IDs are split, lowest level first: DDI of contexts in base and in extended format, PDI.
const BASE: [u8; 3] = [7, 9, 8];
const EXTENDED: [u8; 3] = [6, 9, 9];
const PROCESSES: [u8; 3] = [8, 9, 3];

/// Creates a directory of `levels` levels whose entries are all not valid.
fn directory<M: TableMemory, const N: usize>(
    memory: &Arc<M>,
    levels: u8,
    [leaf, middle, top]: [u8; 3],
) -> Result<Directory<M, N>, OutOfMemory> {
    match levels {
        1 => Directory::linear(memory, leaf, [0; N]),
        2 => Directory::two_level(memory, leaf + middle, leaf, [0; N]),
        _ => Directory::three_level(memory, leaf + middle + top, [leaf, middle], [0; N]),
    }
}

/// Returns the entry above the last level that leads to the page at an address.
fn pointer(oa: Oa) -> Option<u64> {
    DirectoryPage::new(oa).ok().map(DirectoryPage::encode)
}

/// The device directory of an IOMMU, in the format that it reads.
pub(super) enum DeviceContexts<M: TableMemory> {
    Base(Directory<M, 4>),
    Extended(Directory<M, 8>),
}

impl<M: TableMemory> DeviceContexts<M> {
    pub(super) fn new(
        memory: &Arc<M>,
        format: ContextFormat,
        levels: u8,
    ) -> Result<Self, OutOfMemory> {
        Ok(match format {
            ContextFormat::Base => Self::Base(directory(memory, levels, BASE)?),
            ContextFormat::Extended => Self::Extended(directory(memory, levels, EXTENDED)?),
        })
    }

    pub(super) const fn base(&self) -> Oa {
        match self {
            Self::Base(contexts) => contexts.base(),
            Self::Extended(contexts) => contexts.base(),
        }
    }

    pub(super) fn link(
        &mut self,
        device: u32,
        announce: impl FnOnce() -> Result<(), SyncError>,
    ) -> Result<(), LinkError> {
        match self {
            Self::Base(contexts) => contexts.link(device as usize, pointer, announce),
            Self::Extended(contexts) => contexts.link(device as usize, pointer, announce),
        }
    }

    pub(super) fn words(&self, device: u32) -> Option<[u64; 8]> {
        match self {
            Self::Base(contexts) => {
                let [tc, iohgatp, ta, fsc] = contexts.get(device as usize)?;
                Some([tc, iohgatp, ta, fsc, 0, 0, 0, 0])
            }
            Self::Extended(contexts) => contexts.get(device as usize),
        }
    }

    pub(super) fn is_quarantined(&self, device: u32) -> bool {
        match self {
            Self::Base(contexts) => contexts.is_quarantined(device as usize),
            Self::Extended(contexts) => contexts.is_quarantined(device as usize),
        }
    }

    pub(super) fn write(
        &mut self,
        device: u32,
        target: &[u64; 8],
        sync: impl FnMut() -> Result<(), SyncError>,
    ) -> Result<(), Unwritten> {
        let index = device as usize;
        match self {
            Self::Base(contexts) => {
                let [tc, iohgatp, ta, fsc, ..] = *target;
                contexts.write(&UpdateRules, index, &[tc, iohgatp, ta, fsc], sync)?;
            }
            Self::Extended(contexts) => {
                contexts.write(&UpdateRules, index, target, sync)?;
            }
        }
        Ok(())
    }
}

/// The process directory of one device at one IOMMU.
pub(super) struct ProcessTable<M: TableMemory> {
    root: ProcessDirectory,
    contexts: Directory<M, 2>,
}

impl<M: TableMemory + 'static> ProcessTable<M> {
    /// Creates one for process IDs of `bits` bits, or as many as the IOMMU can have, all of whose contexts are not
    /// valid, and that no device context leads to. `None` if the IOMMU has none.
    pub(super) fn new(
        features: &Features,
        memory: &Arc<M>,
        bits: u8,
    ) -> Result<Option<Self>, LinkError> {
        let Some(levels) = features.process_levels(bits) else {
            return Ok(None);
        };
        let contexts: Directory<M, 2> = directory(memory, levels, PROCESSES)?;
        let address = contexts.base();
        let root = ProcessDirectory::new(address, levels, features.registers);
        // How tables below it are read is the device context's to say.
        let options = DeviceOptions::default();
        let context = root.and_then(|root| device_context(features, root, options));
        match context.map(DeviceContext::first_stage) {
            Ok(FirstStage::Directory(root)) => Ok(Some(Self { root, contexts })),
            _ => Err(LinkError::Address { address }),
        }
    }

    /// Returns the device context that leads here.
    pub(super) fn device_context(
        &self,
        features: &Features,
        options: DeviceOptions,
    ) -> Option<DeviceContext> {
        device_context(features, self.root, options).ok()
    }

    /// Returns the process context that leads where requests are to go; `None` blocks.
    pub(super) fn context(&self, target: Target<(&Stage, u32)>) -> Option<ProcessContext> {
        let (tables, pscid) = match target {
            Target::Blocked => return None,
            Target::Identity => (FirstStageTables::Bare, 0),
            Target::Stage((stage, id)) => (stage.first()?, id),
        };
        let options = ProcessOptions {
            pscid,
            ..ProcessOptions::default()
        };
        self.root.make_context(tables, options).ok()
    }

    /// Sees to it that there is a context for `process`.
    pub(super) fn link<D: CommandDevice>(
        &mut self,
        unit: &RiscvIommu<M, D>,
        devices: &[u32],
        process: Pasid,
    ) -> Result<(), LinkError> {
        let announce = || unit.execute(changes::process_directory(devices));
        let index = process.get() as usize;
        self.contexts.link(index, pointer, announce)
    }

    /// Makes the context of `process` say `what`, or makes it not valid.
    pub(super) fn write<D: CommandDevice>(
        &mut self,
        unit: &RiscvIommu<M, D>,
        devices: &[u32],
        process: Pasid,
        what: Option<&ProcessContext>,
    ) -> Result<(), Unwritten> {
        let target = what.map_or([0; 2], |context| context.encode());
        let index = process.get() as usize;
        let Some(words) = self.contexts.get(index) else {
            // A piece that never came holds no valid context.
            return match what {
                None => Ok(()),
                Some(_) => Err(Unwritten::Absent { index }),
            };
        };
        let old = if self.contexts.is_quarantined(index) {
            Old::Unknown
        } else {
            let context = self.root.decode_context(words);
            Old::of_process(context.ok().flatten())
        };
        let sync = || unit.execute(changes::process_context(devices, process, old));
        self.contexts.write(&UpdateRules, index, &target, sync)?;
        Ok(())
    }

    /// Returns the words of the context of `process` as they were written last.
    pub(super) fn words(&self, process: Pasid) -> Option<[u64; 2]> {
        self.contexts.get(process.get() as usize)
    }
}

/// Makes the device context that leads to a process directory. Hardware sets A and D if it can, which changes nothing
/// in tables that have them set already.
fn device_context(
    features: &Features,
    root: ProcessDirectory,
    options: DeviceOptions,
) -> Result<DeviceContext, iopt_formats::context::riscv::Misconfigured> {
    let options = DeviceOptions {
        has_first_stage_updates: features.has_updates(),
        ..options
    };
    let first = FirstStage::Directory(root.with_default_process());
    features.context(first, SecondStage::Bare, options)
}

impl<M: TableMemory> fmt::Debug for ProcessTable<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.root.fmt(f)
    }
}
