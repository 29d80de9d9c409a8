//! One remapping unit: its features, its queue, its root and context tables, its domain IDs.

use alloc::sync::Arc;
use core::fmt;

use iopt_formats::command::Narrow;
use iopt_formats::command::vtd::{ContextScope, Descriptor, IotlbScope, PasidCacheScope};
use iopt_formats::context::update::{Rules, plan};
use iopt_formats::context::vtd::{
    ContextError, LegacyContext, RootEntry, RootTable, ScalableContext, TableMode, Translation,
    UpdateRules,
};
use smallvec::SmallVec;

use crate::device::context::{Directory, LinkError, Shares, Unwritten};
use crate::device::fault::Listeners;
use crate::device::ids::Ids;
use crate::device::vtd::stale::{Stale, Told};
use crate::device::vtd::{CommandDevice, Features, Scope};
use crate::invalidation::plan::vtd::{Tag, Vtd as Planner};
use crate::invalidation::queue::Entry as _;
use crate::invalidation::{Instance, SyncError};
use crate::mem::{OutOfMemory, TableMemory};
use crate::sync::{CONTEXTS, Mutex};

/// The domain ID of all that passes untranslated. 0 is nobody's: with caching mode it names what is not
/// present (section 6.1), and without it does no harm to leave it alone.
pub(super) const PASS_THROUGH_ID: u16 = 1;

/// An instance: what its user registers with a [`VtdDriver`](crate::device::vtd::VtdDriver).
pub struct VtdUnit<M: TableMemory, D: CommandDevice> {
    features: Features,
    memory: Arc<M>,
    instance: Arc<Instance<Planner, D>>,
    domain_ids: Arc<Ids>,
    root: RootTable,
    scope: Option<Scope>,
    contexts: Mutex<Contexts<M>>,
    shares: Arc<Shares<ContextEntry>>,
    listeners: Listeners,
}

/// Context entries behind root entries, one word of which leads to one table in either mode.
enum Contexts<M: TableMemory> {
    /// Only every other word: the second one of a root entry is reserved.
    Legacy(Directory<M, 2>),
    Scalable(Directory<M, 4>),
}

/// What a context entry says.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum ContextEntry {
    /// In legacy mode.
    Legacy(LegacyContext),
    /// In scalable mode.
    Scalable(ScalableContext),
}

/// Why there is no such unit.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum UnitError {
    /// Scalable mode needs hardware that has it, and a queue with descriptors of 256 bits.
    #[error("the unit has no scalable mode, or a queue without it")]
    NotScalable,
    /// No memory for the root table.
    #[error(transparent)]
    Memory(#[from] OutOfMemory),
    /// The memory is where no root table can be.
    #[error(transparent)]
    Root(#[from] ContextError),
}

/// What is behind a context entry of scalable mode that changes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Behind {
    /// No PASID entry is present, nor was since hardware was told.
    Nothing,
    Anything,
}

impl<M: TableMemory + 'static, D: CommandDevice> VtdUnit<M, D> {
    /// Creates a unit with a root table in `memory` behind which every request is blocked, and that hardware
    /// does not use yet.
    ///
    /// # Errors
    ///
    /// [`UnitError`].
    pub fn new(
        features: Features,
        mode: TableMode,
        memory: Arc<M>,
        instance: Arc<Instance<Planner, D>>,
    ) -> Result<Self, UnitError> {
        let (contexts, base) = match mode {
            TableMode::Legacy => {
                let contexts = Directory::two_level(&memory, 17, 8, [0; 2])?;
                let base = contexts.base();
                (Contexts::Legacy(contexts), base)
            }
            TableMode::Scalable if !features.has_scalable_mode || D::Entry::WORDS != 4 => {
                return Err(UnitError::NotScalable);
            }
            TableMode::Scalable => {
                let contexts = Directory::two_level(&memory, 16, 7, [0; 4])?;
                let base = contexts.base();
                (Contexts::Scalable(contexts), base)
            }
        };
        let last = (1_u32 << features.domain_id_bits.min(16)) - 1;
        Ok(Self {
            features,
            memory,
            instance,
            domain_ids: Ids::new(u32::from(PASS_THROUGH_ID) + 1..=last),
            root: RootTable::new(mode, base)?,
            scope: None,
            contexts: Mutex::new(&CONTEXTS, contexts),
            shares: Shares::new(),
            listeners: Listeners::new(),
        })
    }

    /// Lets the unit say itself which devices it serves: needed where it is registered as
    /// [anonymous](crate::device::Identity::Anonymous), and without meaning elsewhere.
    #[must_use]
    pub fn with_scope(self, scope: Scope) -> Self {
        Self {
            scope: Some(scope),
            ..self
        }
    }

    /// Returns what it can do.
    pub const fn features(&self) -> &Features {
        &self.features
    }

    /// Returns the way to its queue.
    pub const fn instance(&self) -> &Arc<Instance<Planner, D>> {
        &self.instance
    }

    /// Returns what `RTADDR_REG` has to say. When hardware has taken it, it is to
    /// [forget](Self::forget_everything) what it had before.
    pub const fn root_table(&self) -> RootTable {
        self.root
    }

    /// Returns the domain IDs, by which it knows domains.
    pub const fn domain_ids(&self) -> &Arc<Ids> {
        &self.domain_ids
    }

    /// Returns whom it serves, if it knows.
    pub const fn scope(&self) -> Option<&Scope> {
        self.scope.as_ref()
    }

    /// Returns which devices have a requester ID.
    pub(super) const fn shares(&self) -> &Arc<Shares<ContextEntry>> {
        &self.shares
    }

    /// Returns whom its records are about.
    pub(super) const fn listeners(&self) -> &Listeners {
        &self.listeners
    }

    /// Returns an entry that blocks.
    pub(super) const fn blocked(&self) -> ContextEntry {
        match self.root.mode() {
            TableMode::Legacy => ContextEntry::Legacy(LegacyContext::blocked()),
            TableMode::Scalable => ContextEntry::Scalable(ScalableContext::blocked()),
        }
    }

    /// Returns the memory of its tables.
    pub(super) const fn memory(&self) -> &Arc<M> {
        &self.memory
    }

    /// Returns how its entries change. What is not present is told of where it is cached, and where writes stay
    /// in a buffer until the unit is told anything (section 6.8).
    pub(super) fn rules(&self) -> UpdateRules {
        let planner = self.instance.planner();
        UpdateRules {
            has_caching_mode: planner.has_caching_mode || planner.has_write_buffer,
        }
    }

    /// Sees to it that a requester ID has a context entry.
    ///
    /// # Errors
    ///
    /// [`LinkError`].
    pub fn link(&self, source_id: u16) -> Result<(), LinkError> {
        // A root entry that is not present is dropped with all others only (section 6.5.2.1).
        let announce = || {
            if !self.rules().has_caching_mode {
                return Ok(());
            }
            let scope = ContextScope::Global;
            self.instance.execute([Descriptor::ContextCache { scope }])
        };
        match &mut *self.contexts.lock() {
            Contexts::Legacy(contexts) => {
                let describe = |table| Some(RootEntry::legacy(Some(table)).ok()?.encode()[0]);
                contexts.link(legacy_index(source_id), describe, announce)
            }
            Contexts::Scalable(contexts) => {
                let describe =
                    |table| Some(RootEntry::scalable(Some(table), None).ok()?.encode()[0]);
                contexts.link(source_id.into(), describe, announce)
            }
        }
    }

    /// Returns the context entry of a requester ID as it was written last, if it has one.
    pub fn context(&self, source_id: u16) -> Option<ContextEntry> {
        match &*self.contexts.lock() {
            Contexts::Legacy(contexts) => {
                let words = contexts.get(legacy_index(source_id))?;
                LegacyContext::decode(words).ok().map(ContextEntry::Legacy)
            }
            Contexts::Scalable(contexts) => {
                let context = ScalableContext::decode(contexts.get(source_id.into())?);
                context.ok().map(ContextEntry::Scalable)
            }
        }
    }

    /// Returns whether hardware may use another entry than the one that was written last.
    pub fn is_quarantined(&self, source_id: u16) -> bool {
        match &*self.contexts.lock() {
            Contexts::Legacy(contexts) => contexts.is_quarantined(legacy_index(source_id)),
            Contexts::Scalable(contexts) => contexts.is_quarantined(source_id.into()),
        }
    }

    /// Makes the context entry of a requester ID say `entry`, so that hardware finds the old one, this one or one
    /// that blocks, and waits until it has forgotten the old one and all that was translated by it. For requester
    /// IDs that no device of a driver has; who lets such a device cache translations tells it.
    ///
    /// # Errors
    ///
    /// [`Unwritten`]; [`Unwritten::Absent`] also for an entry of the other mode. The requester ID is blocked
    /// then, unless there was nothing to write.
    pub fn write(&self, source_id: u16, entry: &ContextEntry) -> Result<(), Unwritten> {
        self.change(source_id, entry, Behind::Anything)
    }

    pub(super) fn change(
        &self,
        source_id: u16,
        entry: &ContextEntry,
        behind: Behind,
    ) -> Result<(), Unwritten> {
        let rules = self.rules();
        match (&mut *self.contexts.lock(), entry) {
            (Contexts::Legacy(contexts), ContextEntry::Legacy(entry)) => {
                let index = legacy_index(source_id);
                let words = entry.encode();
                let id = |words: [u64; 2]| {
                    let context = LegacyContext::decode(words).ok()?;
                    let is_present = context.translation() != Translation::Blocked;
                    is_present.then(|| context.domain_id())
                };
                write(contexts, &rules, index, &words, id, |told| {
                    self.forget_legacy(source_id, told)
                })
            }
            (Contexts::Scalable(contexts), ContextEntry::Scalable(entry)) => {
                let words = entry.encode();
                let id = |words: [u64; 4]| (words[0] & 1 != 0).then_some(());
                write(contexts, &rules, source_id.into(), &words, id, |told| {
                    self.forget_scalable(source_id, behind, told)
                })
            }
            _ => Err(Unwritten::Absent {
                index: source_id.into(),
            }),
        }
    }

    /// Makes hardware forget all entries and all translations.
    ///
    /// # Errors
    ///
    /// [`SyncError`].
    pub fn forget_everything(&self) -> Result<(), SyncError> {
        let scope = ContextScope::Global;
        self.instance
            .execute([Descriptor::ContextCache { scope }])?;
        self.forget_pasids_and_translations()
    }

    fn forget_pasids_and_translations(&self) -> Result<(), SyncError> {
        if self.root.mode() == TableMode::Scalable {
            let scope = PasidCacheScope::Global;
            self.instance.execute([Descriptor::PasidCache { scope }])?;
        }
        let planner = self.instance.planner();
        self.instance.execute([Descriptor::Iotlb {
            scope: IotlbScope::Global,
            drains_reads: planner.has_read_drain,
            drains_writes: planner.has_write_drain,
        }])
    }

    /// Makes hardware forget what it cached of the entry of a device; by domain ID, as caches have them.
    fn forget_legacy(&self, source_id: u16, told: Told<u16>) -> Result<(), SyncError> {
        let Told::Entries {
            entries,
            has_translations,
        } = told
        else {
            return self.forget_everything();
        };
        let absent = self.absent_id(entries.is_empty());
        let ids = entries.iter().copied().chain(absent);
        self.instance
            .execute(ids.map(|domain_id| context_of(source_id, domain_id)))?;
        if has_translations {
            // Waits for what was translated before, too.
            let tags = entries.iter();
            let tags = tags.map(|&domain_id| Tag::SecondStage { domain_id });
            self.forget_translations(tags)?;
        }
        Ok(())
    }

    /// Makes hardware forget what it cached of the entry of a device. Such entries have no domain ID, and the
    /// field is ignored.
    fn forget_scalable(
        &self,
        source_id: u16,
        behind: Behind,
        told: Told<()>,
    ) -> Result<(), SyncError> {
        let Told::Entries {
            entries,
            has_translations,
        } = told
        else {
            return self.forget_everything();
        };
        self.instance.execute([context_of(source_id, 0)])?;
        if has_translations && !entries.is_empty() && behind == Behind::Anything {
            return self.forget_pasids_and_translations();
        }
        Ok(())
    }

    /// Returns the ID of entries that are not present, if anything is to be told about them: they are cached, or
    /// there is nothing else to be told and a write buffer to be flushed.
    pub(super) fn absent_id(&self, is_alone: bool) -> Option<u16> {
        (is_alone || self.instance.planner().has_caching_mode).then_some(0)
    }

    /// Makes hardware forget all that it translated, place by place.
    pub(super) fn forget_translations(
        &self,
        tags: impl Iterator<Item = Tag>,
    ) -> Result<(), SyncError> {
        let mut tags: SmallVec<[Tag; 2]> = tags.collect();
        tags.sort_unstable();
        self.instance.forget(&tags)
    }
}

/// Writes an entry, and has hardware told of it. `id` returns what names it in caches, if it is present.
pub(super) fn write<M: TableMemory, R: Rules<N>, T: Copy, const N: usize>(
    entries: &mut Directory<M, N>,
    rules: &R,
    index: usize,
    target: &[u64; N],
    id: impl Fn([u64; N]) -> Option<T>,
    tell: impl Fn(Told<T>) -> Result<(), SyncError>,
) -> Result<(), Unwritten> {
    let current = entries.get(index).ok_or(Unwritten::Absent { index })?;
    let mut stale = Stale::new(id(current), id(*target));
    stale.is_breaking = plan(rules, &current, target).is_breaking();
    stale.is_unknown = entries.is_quarantined(index);
    entries.write(rules, index, target, || stale.sync(&tell))?;
    Ok(())
}

/// Returns the place of a context entry where the second words of root entries count, too.
fn legacy_index(source_id: u16) -> usize {
    let source_id = usize::from(source_id);
    source_id & 0xff | (source_id & 0xff00) << 1
}

fn context_of(source_id: u16, domain_id: u16) -> Descriptor {
    Descriptor::ContextCache {
        scope: ContextScope::Device {
            domain_id,
            source_id,
            function_mask: Narrow::default(),
        },
    }
}

impl<M: TableMemory, D: CommandDevice> fmt::Debug for VtdUnit<M, D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VtdUnit")
            .field("root", &self.root)
            .field("domain_ids", &self.domain_ids)
            .finish_non_exhaustive()
    }
}
