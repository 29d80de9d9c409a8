//! One IOMMU: its features, its queue, its device table, its domain IDs.

use alloc::sync::Arc;
use core::fmt;

use iopt_formats::command::amd::Command;
use iopt_formats::context::amd::{DeviceTable, DeviceTableError, Dte, UpdateRules};
use iopt_formats::context::update::{Fetch, Rules, Unit};
use smallvec::SmallVec;

use crate::device::amd::{CommandDevice, Features};
use crate::device::context::{EntryTable, LinkError, Shares, Unwritten};
use crate::device::fault::Listeners;
use crate::device::ids::Ids;
use crate::invalidation::plan::amd::Amd as Planner;
use crate::invalidation::{Instance, SyncError};
use crate::mem::{OutOfMemory, TableMemory};
use crate::sync::{CONTEXTS, Mutex};

/// The base-2 logarithm of the entries of the largest piece, 1 MiB, which is half of a whole table.
const SEGMENT_LG2: u32 = 15;
/// Entries of the smallest table, and a factor of all.
const PAGE_ENTRIES: u32 = 128;

/// How entries change: software stores words.
const RULES: UpdateRules = UpdateRules { unit: Unit::Bytes8 };

/// An instance: what its user registers with an [`AmdDriver`](crate::device::amd::AmdDriver).
pub struct AmdIommu<M: TableMemory, D: CommandDevice> {
    features: Features,
    memory: Arc<M>,
    instance: Arc<Instance<Planner, D>>,
    domain_ids: Arc<Ids>,
    numbers: Arc<Ids>,
    layout: SmallVec<[DeviceTable; 2]>,
    segments: Mutex<SmallVec<[EntryTable<M, 4>; 2]>>,
    shares: Arc<Shares<Dte>>,
    listeners: Listeners,
}

/// Why there is no such instance.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum AmdIommuError {
    /// No memory for the device table.
    #[error(transparent)]
    Memory(#[from] OutOfMemory),
    /// The memory is where no device table can be.
    #[error(transparent)]
    Layout(#[from] DeviceTableError),
}

impl<M: TableMemory + 'static, D: CommandDevice> AmdIommu<M, D> {
    /// Creates an instance with a device table in `memory` for the devices up to `last_device_id`. All of them
    /// are blocked, their interrupts pass, and hardware does not use it yet. IDs from 8000h on are covered only
    /// where tables may have segments.
    ///
    /// # Errors
    ///
    /// [`AmdIommuError`].
    pub fn new(
        features: Features,
        memory: Arc<M>,
        instance: Arc<Instance<Planner, D>>,
        last_device_id: u16,
    ) -> Result<Arc<Self>, AmdIommuError> {
        let all = (u32::from(last_device_id) + 1).next_multiple_of(PAGE_ENTRIES);
        let first = all.min(1 << SEGMENT_LG2);
        let more = if features.segment_bits > 0 {
            all - first
        } else {
            0
        };
        let mut layout = SmallVec::new();
        let mut segments = SmallVec::new();
        for count in [first, more].into_iter().filter(|&count| count > 0) {
            let segment = EntryTable::new(&memory, count as usize, &Dte::blocked().words())?;
            layout.push(DeviceTable::new(segment.oa(), count)?);
            segments.push(segment);
        }
        Ok(Arc::new(Self {
            features,
            memory,
            instance,
            domain_ids: Ids::of_width(16),
            numbers: Ids::new(0..=u32::MAX),
            layout,
            segments: Mutex::new(&CONTEXTS, segments),
            shares: Shares::new(),
            listeners: Listeners::new(),
        }))
    }

    /// Returns what it can do.
    pub const fn features(&self) -> &Features {
        &self.features
    }

    /// Returns the way to its command buffer.
    pub const fn instance(&self) -> &Arc<Instance<Planner, D>> {
        &self.instance
    }

    /// Returns what the Device Table Base Address Register has to say (MMIO offset 0) and, if there are two, that
    /// of segment 1 (100h): then `DevTabSegEn` of the control register is 1.
    pub fn device_tables(&self) -> &[DeviceTable] {
        &self.layout
    }

    /// Returns the domain IDs: of domains with version 1 tables, and of devices with version 2 tables. Others use
    /// 0.
    pub const fn domain_ids(&self) -> &Arc<Ids> {
        &self.domain_ids
    }

    /// Returns numbers that hardware never sees, for domains that it does not know by one.
    pub(super) const fn numbers(&self) -> &Arc<Ids> {
        &self.numbers
    }

    /// Returns which devices have an ID.
    pub(super) const fn shares(&self) -> &Arc<Shares<Dte>> {
        &self.shares
    }

    /// Returns whom its entries are about.
    pub(super) const fn listeners(&self) -> &Listeners {
        &self.listeners
    }

    /// Returns the memory of its tables.
    pub(super) const fn memory(&self) -> &Arc<M> {
        &self.memory
    }

    /// Sees to it that a device has an entry.
    ///
    /// # Errors
    ///
    /// [`LinkError::Absent`] beyond the end of the table.
    pub fn link(&self, device_id: u16) -> Result<(), LinkError> {
        let index = device_id.into();
        let entry = self.dte(device_id);
        entry.map(drop).ok_or(LinkError::Absent { index })
    }

    /// Returns the entry of a device as it was written last, if it has one.
    pub fn dte(&self, device_id: u16) -> Option<Dte> {
        let segments = self.segments.lock();
        let (segment, index) = place(device_id);
        segments.get(segment)?.get(index).map(Dte::new)
    }

    /// Returns whether hardware may use another entry than the one that was written last.
    pub fn is_quarantined(&self, device_id: u16) -> bool {
        let segments = self.segments.lock();
        let (segment, index) = place(device_id);
        let segment = segments.get(segment);
        segment.is_some_and(|segment| segment.is_quarantined(index))
    }

    /// Makes the entry of a device say what `entry` says of all but interrupts, so that hardware finds the old
    /// one, this one or one that blocks, and waits until it has forgotten the old one. One without V, which would
    /// let everything pass, blocks. For IDs that no device of a driver has.
    ///
    /// # Errors
    ///
    /// [`Unwritten`]. The device is blocked then.
    pub fn write(&self, device_id: u16, entry: Dte) -> Result<(), Unwritten> {
        let entry = if entry.is_valid() {
            entry
        } else {
            Dte::blocked()
        };
        let sync = || {
            self.instance
                .execute([Command::InvalidateDeviceTableEntry { device_id }])
        };
        self.change(&RULES, device_id, entry, sync)?;
        Ok(())
    }

    /// Makes the entry of a device say what `entry` says of interrupts, and waits until hardware has forgotten
    /// what it said, and what the table there did. For whoever remaps them, at any time.
    ///
    /// # Errors
    ///
    /// [`Unwritten`]. The entry says it, and hardware may not know, unless it was
    /// [confirmed](Unwritten::Blocked) in the end. Requests to memory are led where they were.
    pub fn write_interrupts(&self, device_id: u16, entry: Dte) -> Result<(), Unwritten> {
        let sync = || {
            self.instance.execute([
                Command::InvalidateDeviceTableEntry { device_id },
                Command::InvalidateInterruptTable { device_id },
            ])
        };
        if self.change(&InterruptRules, device_id, entry, sync)? == 0 {
            // Hardware may not have confirmed it when it was written.
            sync().map_err(Unwritten::Quarantined)?;
        }
        Ok(())
    }

    fn change(
        &self,
        rules: &dyn Rules<4>,
        device_id: u16,
        entry: Dte,
        sync: impl FnMut() -> Result<(), SyncError>,
    ) -> Result<usize, Unwritten> {
        let mut segments = self.segments.lock();
        let (segment, index) = place(device_id);
        let absent = Unwritten::Absent {
            index: device_id.into(),
        };
        let segment = segments.get_mut(segment).ok_or(absent)?;
        segment.write(rules, index, &entry.words(), sync)
    }
}

/// Returns the segment of a device's entry, and its place there.
const fn place(device_id: u16) -> (usize, usize) {
    let id = device_id as usize;
    (id >> SEGMENT_LG2, id & ((1 << SEGMENT_LG2) - 1))
}

/// How interrupt fields change: in one store, because they are in one word. All else stays.
struct InterruptRules;

impl Rules<4> for InterruptRules {
    fn used(&self, _entry: &[u64; 4]) -> [u64; 4] {
        [0, 0, Dte::INTERRUPT_FIELDS, 0]
    }

    fn is_valid(&self, _entry: &[u64; 4]) -> bool {
        true
    }

    fn fetch(&self) -> Fetch {
        Fetch::Whole
    }

    fn preserved(&self) -> [u64; 4] {
        [u64::MAX, u64::MAX, !Dte::INTERRUPT_FIELDS, u64::MAX]
    }
}

impl<M: TableMemory, D: CommandDevice> fmt::Debug for AmdIommu<M, D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AmdIommu")
            .field("layout", &self.layout)
            .field("domain_ids", &self.domain_ids)
            .finish_non_exhaustive()
    }
}
