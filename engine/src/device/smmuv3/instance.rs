//! One SMMU: its features, its queue, its stream table, its IDs.

use alloc::sync::Arc;
use core::fmt;

use iopt_formats::armv8::TableWalk;
use iopt_formats::command::smmuv3::Command;
use iopt_formats::context::smmuv3::{
    Attributes, L1StreamDesc, LayoutError, Ste, SteRules, Stream, StreamTable,
};

use crate::device::context::{Directory, LinkError, Shares, Unwritten};
use crate::device::fault::Listeners;
use crate::device::ids::Ids;
use crate::device::smmuv3::{CommandDevice, Features};
use crate::invalidation::plan::smmuv3::Smmuv3 as Planner;
use crate::invalidation::{Instance, SyncError};
use crate::mem::{OutOfMemory, TableMemory};
use crate::sync::{CONTEXTS, Mutex};

/// The base-2 logarithm of the STEs of a level 2 table.
const SPLIT: u8 = 8;
/// The base-2 logarithm of the streams of the largest first level, and of the largest linear table: 1 MiB.
const TWO_LEVEL_LIMIT: u8 = 17 + SPLIT;
const LINEAR_LIMIT: u8 = 14;

/// An instance: what its user registers with a [`Smmuv3Driver`](crate::device::smmuv3::Smmuv3Driver).
pub struct Smmu<M: TableMemory, D: CommandDevice> {
    features: Features,
    memory: Arc<M>,
    instance: Arc<Instance<Planner, D>>,
    asids: Arc<Ids>,
    vmids: Arc<Ids>,
    layout: StreamTable,
    streams: Mutex<Directory<M, 8>>,
    shares: Arc<Shares<Stream>>,
    listeners: Listeners,
}

/// Why there is no such instance.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum SmmuError {
    /// No memory for the stream table.
    #[error(transparent)]
    Memory(#[from] OutOfMemory),
    /// The memory is where no stream table can be.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// The memory is one that hardware is to read through the CPUs' caches, and it does not.
    #[error("the SMMU does not read memory through the caches of the CPUs")]
    Incoherent,
}

impl<M: TableMemory + 'static, D: CommandDevice> Smmu<M, D> {
    /// Creates an instance with a stream table in `memory` whose streams are all blocked, and that hardware
    /// does not use yet. Numbers beyond 2^25 streams, or 2^14 where tables have one level, are not covered.
    ///
    /// # Errors
    ///
    /// [`SmmuError`].
    pub fn new(
        features: Features,
        memory: Arc<M>,
        instance: Arc<Instance<Planner, D>>,
    ) -> Result<Arc<Self>, SmmuError> {
        if M::SNOOPED && !features.is_coherent {
            return Err(SmmuError::Incoherent);
        }
        let initial = *Ste::encode(&Stream::ABORT).words();
        let bits = features.stream_bits;
        let (streams, layout) = if features.has_two_level_streams && bits > SPLIT {
            let bits = bits.min(TWO_LEVEL_LIMIT);
            let streams = Directory::two_level(&memory, bits, SPLIT, initial)?;
            let layout = StreamTable::two_level(streams.base(), bits, SPLIT)?;
            (streams, layout)
        } else {
            let bits = bits.min(LINEAR_LIMIT);
            let streams = Directory::linear(&memory, bits, initial)?;
            let layout = StreamTable::linear(streams.base(), bits)?;
            (streams, layout)
        };
        let width = |is_wide| if is_wide { 16 } else { 8 };
        Ok(Arc::new(Self {
            features,
            memory,
            instance,
            asids: Ids::of_width(width(features.has_wide_asids)),
            vmids: Ids::of_width(width(features.has_wide_vmids)),
            layout,
            streams: Mutex::new(&CONTEXTS, streams),
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

    /// Returns what `SMMU_STRTAB_BASE` and `SMMU_STRTAB_BASE_CFG` have to say.
    pub const fn stream_table(&self) -> StreamTable {
        self.layout
    }

    /// Returns the ASIDs, by which it knows domains of stage 1.
    pub const fn asids(&self) -> &Arc<Ids> {
        &self.asids
    }

    /// Returns the VMIDs, by which it knows domains of stage 2.
    pub const fn vmids(&self) -> &Arc<Ids> {
        &self.vmids
    }

    /// Returns which devices its records are about.
    pub(super) const fn listeners(&self) -> &Listeners {
        &self.listeners
    }

    /// Returns which devices have a stream.
    pub(super) const fn shares(&self) -> &Arc<Shares<Stream>> {
        &self.shares
    }

    /// Returns the memory of its tables.
    pub(super) const fn memory(&self) -> &Arc<M> {
        &self.memory
    }

    /// Returns a stream that passes, as this hardware wants it said.
    pub(super) const fn bypass(&self) -> Stream {
        self.attributed(Stream::BYPASS)
    }

    /// Returns `stream` with incoming attributes kept, as this hardware wants it said.
    pub(super) const fn attributed(&self, stream: Stream) -> Stream {
        stream.with_attributes(if self.features.has_attribute_overrides {
            Attributes::INCOMING
        } else {
            Attributes::UNSUPPORTED
        })
    }

    /// Sees to it that a stream has an STE.
    ///
    /// # Errors
    ///
    /// [`LinkError`].
    pub fn link(&self, stream: u32) -> Result<(), LinkError> {
        let split = self.layout.split();
        let describe = |l2| {
            let desc = L1StreamDesc::encode(l2, split.unwrap_or(SPLIT)).ok()?;
            Some(desc.word())
        };
        // A descriptor that led nowhere may be cached.
        let announce = || self.forget_stream(stream, false);
        self.streams
            .lock()
            .link(stream as usize, describe, announce)
    }

    /// Returns the STE of a stream as it was written last, if it has one.
    pub fn ste(&self, stream: u32) -> Option<Ste> {
        self.streams.lock().get(stream as usize).map(Ste::new)
    }

    /// Returns whether hardware may use another STE than the one that was written last.
    pub fn is_quarantined(&self, stream: u32) -> bool {
        self.streams.lock().is_quarantined(stream as usize)
    }

    /// Makes the STE of a stream say `what`, so that hardware finds the old one, this one or one that blocks,
    /// and waits until it has forgotten the old one. For streams that no device of a driver has.
    ///
    /// # Errors
    ///
    /// [`Unwritten`]. The stream is blocked then.
    pub fn write(&self, stream: u32, what: &Stream) -> Result<(), Unwritten> {
        let target = *Ste::encode(what).words();
        let sync = || self.forget_stream(stream, true);
        let mut streams = self.streams.lock();
        streams.write(&SteRules, stream as usize, &target, sync)?;
        Ok(())
    }

    fn forget_stream(&self, stream: u32, is_leaf: bool) -> Result<(), SyncError> {
        self.instance.execute([Command::CfgiSte {
            stream,
            is_secure: false,
            is_leaf,
        }])
    }
}

/// Returns how tables in memory of this kind are read.
pub(super) const fn walk<M: TableMemory>() -> TableWalk {
    if M::SNOOPED {
        TableWalk::COHERENT
    } else {
        TableWalk::NON_COHERENT
    }
}

impl<M: TableMemory, D: CommandDevice> fmt::Debug for Smmu<M, D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Smmu")
            .field("layout", &self.layout)
            .field("asids", &self.asids)
            .field("vmids", &self.vmids)
            .finish_non_exhaustive()
    }
}
