//! The PASID table of one device at one unit in scalable mode.

use core::fmt;

use iopt_formats::command::Pasid;
use iopt_formats::command::vtd::{Descriptor, PasidCacheScope};
use iopt_formats::context::vtd::{
    PasidDirectory, PasidDirectoryEntry, PasidEntry, ScalableContext, Translation,
};

use crate::device::context::{Directory, LinkError, Unwritten};
use crate::device::vtd::instance::write;
use crate::device::vtd::stale::Told;
use crate::device::vtd::{CommandDevice, VtdUnit};
use crate::invalidation::SyncError;
use crate::invalidation::plan::vtd::Tag;
use crate::mem::{OutOfMemory, TableMemory};

/// The base-2 logarithm of the entries of one table.
const SPLIT: u8 = 6;
/// That of the PASIDs that a directory serves at least, and at most.
const FEWEST_LG2: u8 = 13;
const MOST_LG2: u8 = 20;

/// PASID entries behind a directory. Context entries that lead here go first, and hardware has forgotten them
/// when it is dropped.
pub struct PasidTables<M: TableMemory> {
    directory: PasidDirectory,
    entries: Directory<M, 8>,
}

/// What names a PASID entry in caches: its domain ID, and where its translations are.
#[derive(Clone, Copy)]
struct Name {
    domain_id: u16,
    translations: Tag,
}

impl<M: TableMemory + 'static> PasidTables<M> {
    /// Creates a directory for PASIDs of `bits` bits, or more if there is none as small, to which no context
    /// entry leads. All are blocked.
    ///
    /// # Errors
    ///
    /// [`OutOfMemory`], also if the memory is where no directory can be.
    pub fn new<D: CommandDevice>(unit: &VtdUnit<M, D>, bits: u8) -> Result<Self, OutOfMemory> {
        let count_lg2 = bits.clamp(FEWEST_LG2, MOST_LG2);
        let entries = Directory::two_level(unit.memory(), count_lg2, SPLIT, [0; 8])?;
        let directory = PasidDirectory::new(entries.base(), 1 << count_lg2);
        let directory = directory.map_err(|_| OutOfMemory {
            size: iopt_formats::PageSize::KIB_4,
        })?;
        Ok(Self { directory, entries })
    }

    /// Returns what context entries have to lead to.
    pub const fn directory(&self) -> PasidDirectory {
        self.directory
    }

    /// Returns a context entry that leads here, with requests without a PASID at PASID 0.
    pub(super) fn context(&self) -> ScalableContext {
        let context = ScalableContext::new(self.directory, 0);
        // Every directory serves 0.
        context.unwrap_or(ScalableContext::blocked())
    }

    /// Sees to it that a PASID has an entry.
    ///
    /// # Errors
    ///
    /// [`LinkError`].
    pub fn link<D: CommandDevice>(
        &mut self,
        unit: &VtdUnit<M, D>,
        pasid: Pasid,
    ) -> Result<(), LinkError> {
        let describe = |table| Some(PasidDirectoryEntry::new(table).ok()?.encode());
        let announce = || {
            if !unit.rules().has_caching_mode {
                return Ok(());
            }
            unit.instance().execute([entry_of(0, pasid)])
        };
        self.entries.link(pasid.get() as usize, describe, announce)
    }

    /// Returns the entry of a PASID as it was written last, if there is one.
    pub fn get(&self, pasid: Pasid) -> Option<PasidEntry> {
        let words = self.entries.get(pasid.get() as usize)?;
        PasidEntry::decode(words).ok()
    }

    /// Returns whether hardware may use another entry than the one that was written last.
    pub fn is_quarantined(&self, pasid: Pasid) -> bool {
        self.entries.is_quarantined(pasid.get() as usize)
    }

    /// Makes the entry of a PASID `entry`, so that hardware finds the old one, this one or one that blocks, and
    /// waits until it has forgotten the old one and all that was translated by it. Devices that cache
    /// translations are to be told after that (section 6.5.3).
    ///
    /// # Errors
    ///
    /// [`Unwritten`]. The PASID is blocked then, unless there was nothing to write.
    pub fn write<D: CommandDevice>(
        &mut self,
        unit: &VtdUnit<M, D>,
        pasid: Pasid,
        entry: &PasidEntry,
    ) -> Result<(), Unwritten> {
        let name = |words: [u64; 8]| {
            let entry = PasidEntry::decode(words).ok()?;
            let domain_id = entry.domain_id();
            let translations = match entry.translation() {
                Translation::Blocked => return None,
                Translation::Second(_) => Tag::SecondStage { domain_id },
                Translation::Nested { .. } => Tag::Combined { domain_id },
                // What passes is cached by PASID, too.
                Translation::First(_) | Translation::PassThrough => {
                    Tag::FirstStage { domain_id, pasid }
                }
            };
            Some(Name {
                domain_id,
                translations,
            })
        };
        let index = pasid.get() as usize;
        let (rules, words) = (unit.rules(), entry.encode());
        write(&mut self.entries, &rules, index, &words, name, |told| {
            forget(unit, pasid, told)
        })
    }
}

/// Makes hardware forget what it cached of a PASID entry. Entries of other devices go along.
fn forget<M: TableMemory + 'static, D: CommandDevice>(
    unit: &VtdUnit<M, D>,
    pasid: Pasid,
    told: Told<Name>,
) -> Result<(), SyncError> {
    let Told::Entries {
        entries,
        has_translations,
    } = told
    else {
        return unit.forget_everything();
    };
    let absent = unit.absent_id(entries.is_empty());
    let ids = entries.iter().map(|name| name.domain_id).chain(absent);
    unit.instance()
        .execute(ids.map(|domain_id| entry_of(domain_id, pasid)))?;
    if has_translations {
        unit.forget_translations(entries.iter().map(|name| name.translations))?;
    }
    Ok(())
}

const fn entry_of(domain_id: u16, pasid: Pasid) -> Descriptor {
    let scope = PasidCacheScope::Pasid { domain_id, pasid };
    Descriptor::PasidCache { scope }
}

impl<M: TableMemory> fmt::Debug for PasidTables<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.directory.fmt(f)
    }
}
