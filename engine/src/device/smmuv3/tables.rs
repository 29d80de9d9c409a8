//! The context descriptors of one device at one SMMU.

use alloc::sync::Arc;
use core::fmt;

use iopt_formats::command::Pasid;
use iopt_formats::command::smmuv3::Command;
use iopt_formats::context::smmuv3::{
    Cd, CdRules, CdTable, CdTableFormat, DefaultSubstream, L1CdDesc, StreamStage1,
};

use crate::device::context::{Directory, LinkError, Unwritten};
use crate::device::smmuv3::instance::walk;
use crate::device::smmuv3::{CommandDevice, Smmu, Stalls};
use crate::invalidation::SyncError;
use crate::mem::{OutOfMemory, TableMemory};

/// The base-2 logarithm of the CDs of a level 2 table, and of the largest linear one: 64 KiB.
const SPLIT: u8 = 10;

pub(super) struct CdTables<M: TableMemory> {
    layout: CdTable,
    cds: Directory<M, 8>,
}

impl<M: TableMemory + 'static> CdTables<M> {
    /// Creates a table of `2^count_lg2` CDs, none of them valid, which no STE leads to.
    pub(super) fn new<D: CommandDevice>(
        smmu: &Smmu<M, D>,
        count_lg2: u8,
    ) -> Result<Self, OutOfMemory> {
        let memory: &Arc<M> = smmu.memory();
        let initial = *Cd::INVALID.words();
        let (cds, format, count_lg2) = if smmu.features().has_two_level_cds && count_lg2 > SPLIT {
            let cds = Directory::two_level(memory, count_lg2, SPLIT, initial)?;
            (cds, CdTableFormat::Kib64Leaves, count_lg2)
        } else {
            let count_lg2 = count_lg2.min(SPLIT);
            let cds = Directory::linear(memory, count_lg2, initial)?;
            (cds, CdTableFormat::Linear, count_lg2)
        };
        // Pages are aligned to their size, and addresses below 2^52.
        let layout = CdTable::with_layout(cds.base(), format, count_lg2);
        let layout = layout.map_err(|_| OutOfMemory {
            size: iopt_formats::PageSize::KIB_4,
        })?;
        Ok(Self { layout, cds })
    }

    /// Returns the base-2 logarithm of the number of CDs that a table for substreams of `bits` bits has.
    pub(super) const fn count_lg2(has_two_levels: bool, bits: u8) -> u8 {
        if has_two_levels || bits < SPLIT {
            bits
        } else {
            SPLIT
        }
    }

    /// Returns the stage 1 of an STE that leads here.
    pub(super) fn stage1<D: CommandDevice>(
        &self,
        smmu: &Smmu<M, D>,
        default_substream: DefaultSubstream,
        can_stall: bool,
    ) -> StreamStage1 {
        StreamStage1 {
            cds: self.layout,
            fetch: walk::<M>(),
            default_substream,
            // Otherwise each CD says whether it stalls.
            stalls_disabled: smmu.features().stalls == Stalls::Allowed && !can_stall,
            is_el2: false,
        }
    }

    /// Sees to it that there is a CD for `pasid`.
    pub(super) fn link<D: CommandDevice>(
        &mut self,
        smmu: &Smmu<M, D>,
        streams: &[u32],
        pasid: Pasid,
    ) -> Result<(), LinkError> {
        let layout = self.layout;
        let describe = |l2| Some(L1CdDesc::encode(&layout, l2).ok()?.word());
        // A descriptor that led nowhere may be cached, too.
        let announce = || forget(smmu, streams, pasid, false);
        self.cds.link(pasid.get() as usize, describe, announce)
    }

    /// Makes the CD of `pasid`, which is there, `cd`.
    pub(super) fn write<D: CommandDevice>(
        &mut self,
        smmu: &Smmu<M, D>,
        streams: &[u32],
        pasid: Pasid,
        cd: &Cd,
    ) -> Result<(), Unwritten> {
        let sync = || forget(smmu, streams, pasid, true);
        let index = pasid.get() as usize;
        self.cds.write(&CdRules, index, cd.words(), sync)?;
        Ok(())
    }

    /// Returns the CD of `pasid` as it was written last.
    pub(super) fn get(&self, pasid: Pasid) -> Option<Cd> {
        self.cds.get(pasid.get() as usize).map(Cd::new)
    }
}

/// Makes an SMMU forget a CD of all streams that share it.
fn forget<M: TableMemory + 'static, D: CommandDevice>(
    smmu: &Smmu<M, D>,
    streams: &[u32],
    substream: Pasid,
    is_leaf: bool,
) -> Result<(), SyncError> {
    let commands = streams.iter().map(|&stream| Command::CfgiCd {
        stream,
        substream,
        is_secure: false,
        is_leaf,
    });
    smmu.instance().execute(commands)
}

impl<M: TableMemory> fmt::Debug for CdTables<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.layout.fmt(f)
    }
}
