//! Every outcome that the caches allow for one request, and what each leaves in them.

use std::sync::Arc;

use iopt_reference::context::{Binding, BindingFault, ContextFault};
use iopt_reference::{Fault, Table, Translation};

use crate::behaviour::Absences;
use crate::context_cache::CachedContext;
use crate::contexts::{Context, Contexts};
use crate::iotlb::{LeafEntry, Origin, Target};
use crate::ledger::{Generation, Ledger};
use crate::lineage::{self, Parent, drops_context, drops_leaf, drops_table};
use crate::memory::{Memory, Read, Recorder};
use crate::report::Source;
use crate::rights::Rights;
use crate::shape::{Shape, is_global};
use crate::span::{Slot, Span};
use crate::state::State;
use crate::tag::{Stage, Tag};
use crate::walk_cache::TableEntry;

/// Why a request is refused.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Refusal {
    /// By the device's context.
    Context(ContextFault),
    /// By the tables.
    Tables(BindingFault),
    /// By a cached absence.
    Absent,
    /// By the rights of the translation.
    Rights(Rights),
}

/// A translation.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Hit {
    pub(crate) span: Span,
    pub(crate) target: Target,
}

impl Hit {
    /// Returns where `iova` leads: input of the second of two stages, and output.
    pub(crate) fn at(&self, iova: u64) -> (u64, u64) {
        let offset = iova.wrapping_sub(self.span.start);
        let add = |address: u64| address.wrapping_add(offset);
        (add(self.target.ipa), add(self.target.oa))
    }
}

/// One outcome.
#[derive(Clone, Debug)]
pub(crate) struct Candidate {
    pub(crate) outcome: Result<Hit, Refusal>,
    pub(crate) source: Source,
    /// What it was made from.
    pub(crate) parents: Vec<Parent>,
    /// Device TLBs get what the IOTLB entry says.
    pub(crate) leaf: Option<Arc<LeafEntry>>,
}

/// A read of a table that is none any more.
#[derive(Clone, Debug)]
pub(crate) struct FreedRead {
    pub(crate) address: u64,
    pub(crate) source: Source,
}

/// Everything that a request needs.
pub(crate) struct Machine<'a> {
    pub(crate) state: &'a mut State,
    pub(crate) memory: &'a dyn Memory,
    pub(crate) contexts: &'a dyn Contexts,
    pub(crate) ledger: &'a Ledger,
    pub(crate) absences: Absences,
    pub(crate) now: u64,
    pub(crate) device: u32,
    pub(crate) pasid: Option<u32>,
    pub(crate) freed: Vec<FreedRead>,
}

/// A context that the request may be bound to.
#[derive(Clone, Debug)]
pub(crate) struct Bound {
    pub(crate) result: Result<Context, ContextFault>,
    /// The cached entry, if it is dropped.
    pub(crate) parents: Vec<Parent>,
    /// The cached entry, or where the look-up went on from.
    pub(crate) cached: Option<CachedContext>,
}

impl Machine<'_> {
    /// Returns every context that the caches allow, and the one that is there.
    pub(crate) fn bounds(&mut self) -> Vec<Bound> {
        let (device, pasid) = (self.device, self.pasid);
        let cached = self.state.contexts.find(device, pasid);
        let mut bounds: Vec<Bound> = Vec::new();
        for entry in cached.into_iter().map(Some).chain([None]) {
            let dropped = entry.iter().filter(|entry| entry.is_dropped);
            let parents: Vec<_> = dropped
                .map(|entry| Parent::Context(Arc::new(entry.clone())))
                .collect();
            let known = entry
                .as_ref()
                .filter(|entry| entry.pasid == pasid)
                .and_then(|entry| entry.meaning.clone());
            let result = known.unwrap_or_else(|| {
                let words = entry.as_ref().map_or(&[][..], |entry| &entry.words);
                let recorder = Recorder::new(self.memory, words);
                let resolution = self.contexts.resolve(&recorder, device, pasid);
                let commands = self.state.commands;
                let caches_invalid = self.absences.contexts;
                let request = (device, pasid);
                let State {
                    contexts, pending, ..
                } = &mut *self.state;
                let is_dropped = |entry: &CachedContext| {
                    lineage::is_dropped(pending, &parents, |effect| drops_context(effect, entry))
                };
                contexts.insert(request, &resolution, commands, is_dropped, caches_invalid);
                resolution.result
            });
            // What survives the next sync is the worse one.
            match bounds.iter_mut().find(|bound| bound.result == result) {
                Some(bound) if parents.is_empty() => {
                    if !bound.parents.is_empty() {
                        bound.parents = parents;
                        bound.cached = entry;
                    }
                }
                Some(_) => {}
                None => bounds.push(Bound {
                    result,
                    parents,
                    cached: entry,
                }),
            }
        }
        bounds
    }

    /// Returns every outcome for `iova` within a context.
    pub(crate) fn outcomes(
        &mut self,
        context: &Context,
        iova: u64,
        parents: &[Parent],
    ) -> Vec<Candidate> {
        let alone = |outcome| {
            vec![Candidate {
                outcome,
                source: Source::Context,
                parents: parents.to_vec(),
                leaf: None,
            }]
        };
        match &context.binding {
            Binding::Blocked => alone(Err(Refusal::Tables(BindingFault::Blocked))),
            Binding::PassThrough { read, write } => {
                let span = Span::around(iova, 12);
                let target = Target {
                    oa: span.start,
                    ipa: span.start,
                    rights: Rights {
                        read: *read,
                        write: *write,
                    },
                };
                alone(Ok(Hit { span, target }))
            }
            Binding::Table(table) => self.one_stage(table, context.tag, iova, parents),
            Binding::Nested { first, second } => {
                self.two_stages(first, second, context.tag, iova, parents)
            }
        }
    }

    /// What the IOTLB holds for an address.
    pub(crate) fn cached(&self, tag: Tag, iova: u64, parents: &[Parent]) -> Vec<Candidate> {
        let mut found = self.state.iotlb.find(tag, iova);
        if tag.stage != Stage::Second {
            found.extend(self.state.iotlb.find(tag.of_global(), iova));
        }
        let candidate = |slot: Slot<LeafEntry>| Candidate {
            outcome: match slot.entry.target {
                Some(target) => Ok(Hit {
                    span: slot.entry.span,
                    target,
                }),
                None => Err(Refusal::Absent),
            },
            source: Source::Iotlb(Arc::clone(&slot.entry)),
            parents: joined(
                parents,
                slot.is_dropped
                    .then(|| Parent::Leaf(Arc::clone(&slot.entry))),
            ),
            leaf: Some(slot.entry),
        };
        found.into_iter().map(candidate).collect()
    }

    fn origin(&self, words: Vec<Read>) -> Origin {
        Origin {
            time: self.now,
            commands: self.state.commands,
            device: self.device,
            pasid: self.pasid,
            words,
        }
    }

    pub(crate) fn one_stage(
        &mut self,
        table: &Table,
        tag: Tag,
        iova: u64,
        parents: &[Parent],
    ) -> Vec<Candidate> {
        let mut candidates = self.cached(tag, iova, parents);
        let pointers = self.state.walk_cache.find(tag, iova);
        for pointer in pointers.into_iter().map(Some).chain([None]) {
            let table = pointer.as_ref().map_or(*table, |slot| slot.entry.table);
            let parents = joined(parents, dropped_pointer(pointer.as_ref()));
            let replayed = pointer
                .as_ref()
                .map_or(&[][..], |slot| &slot.entry.origin.words);
            let recorder = Recorder::new(self.memory, replayed);
            let result = table.walk(&recorder, iova);
            let reads = recorder.into_reads();
            let source = if let Some(slot) = &pointer {
                Source::WalkCache(Arc::clone(&slot.entry))
            } else {
                self.state.statistics.walks += 1;
                Source::Walk(reads.clone())
            };
            self.check_reads(pointer.as_ref(), &reads, result.err(), &source);
            let shape = Shape::new(&table, iova, &reads);
            self.cache_pointers(&table, tag, iova, &shape, &reads, replayed.len(), &parents);
            match result {
                Ok(translation) => {
                    let leaf = self.cache_leaf(&table, tag, iova, &shape, reads, &translation);
                    candidates.extend(self.met(leaf, iova, &source, &parents));
                }
                Err(fault) => {
                    if matches!(fault, Fault::NotMapped { .. }) {
                        self.cache_absence(tag, iova, &shape, &reads, &parents);
                    }
                    candidates.push(Candidate {
                        outcome: Err(Refusal::Tables(BindingFault::First(fault))),
                        source,
                        parents,
                        leaf: None,
                    });
                }
            }
        }
        candidates
    }

    /// Caches a leaf, and the item of it that was met where it is a group; returns what they say.
    pub(crate) fn met(
        &mut self,
        leaf: LeafEntry,
        iova: u64,
        source: &Source,
        parents: &[Parent],
    ) -> impl Iterator<Item = Candidate> + use<> {
        let leaves = [leaf.item_at(iova), Some(leaf)].map(|leaf| {
            let leaf = leaf?;
            self.insert_leaf(leaf.clone(), parents);
            let (span, target) = (leaf.span, leaf.target?);
            Some(Candidate {
                outcome: Ok(Hit { span, target }),
                source: source.clone(),
                parents: parents.to_vec(),
                leaf: Some(Arc::new(leaf)),
            })
        });
        leaves.into_iter().flatten()
    }

    /// Looks for reads of freed tables among those that were not served again.
    fn check_reads(
        &mut self,
        pointer: Option<&Slot<TableEntry>>,
        reads: &[Read],
        fault: Option<Fault>,
        source: &Source,
    ) {
        let replayed = pointer.map_or(0, |slot| slot.entry.origin.words.len());
        let mut generation = pointer.and_then(|slot| slot.entry.next.1);
        let missing = match fault {
            Some(Fault::MissingMemory { address }) => Some(address),
            _ => None,
        };
        let fresh = reads.iter().skip(replayed).map(|read| read.address);
        for address in fresh.chain(missing) {
            // A pointer is for one use of the page; what is read from memory is for the use now.
            if !self.ledger.is_live(address, generation.take()) {
                self.freed.push(FreedRead {
                    address,
                    source: source.clone(),
                });
            }
        }
    }

    fn generation(&self, address: u64) -> (u64, Option<Generation>) {
        (address & !0xfff, self.ledger.generation(address))
    }

    /// Caches the pointers that a walk followed, but for those that it was served from the cache.
    #[expect(clippy::too_many_arguments, reason = "all of them describe one walk")]
    pub(crate) fn cache_pointers(
        &mut self,
        table: &Table,
        tag: Tag,
        iova: u64,
        shape: &Shape,
        reads: &[Read],
        replayed: usize,
        parents: &[Parent],
    ) {
        for index in replayed..reads.len().saturating_sub(1) {
            let entry = TableEntry {
                tag,
                span: Span::around(iova, shape.items[index]),
                granule_lg2: shape.granule_lg2,
                table: *table,
                next: self.generation(reads[index + 1].address),
                origin: self.origin(reads[..=index].to_vec()),
            };
            let State {
                walk_cache,
                pending,
                ..
            } = &mut *self.state;
            walk_cache.insert(entry, |entry| {
                lineage::is_dropped(pending, parents, |effect| drops_table(effect, entry))
            });
        }
    }

    pub(crate) fn insert_leaf(&mut self, entry: LeafEntry, parents: &[Parent]) {
        let State { iotlb, pending, .. } = &mut *self.state;
        iotlb.insert(entry, |entry| {
            lineage::is_dropped(pending, parents, |effect| drops_leaf(effect, entry))
        });
    }

    pub(crate) fn cache_leaf(
        &mut self,
        table: &Table,
        tag: Tag,
        iova: u64,
        shape: &Shape,
        reads: Vec<Read>,
        translation: &Translation,
    ) -> LeafEntry {
        let span = Span::around(iova, translation.page_len.trailing_zeros());
        let offset = iova - span.start;
        let is_global = tag.stage != Stage::Second && is_global(table, translation.word);
        LeafEntry {
            tag: if is_global { tag.of_global() } else { tag },
            span,
            item_lg2: shape.items.last().copied().unwrap_or(span.lg2),
            granule_lg2: shape.granule_lg2,
            target: Some(Target {
                oa: translation.oa.wrapping_sub(offset),
                ipa: span.start,
                rights: Rights {
                    read: translation.read,
                    write: translation.write,
                },
            }),
            is_table: false,
            origin: self.origin(reads),
        }
    }

    fn cache_absence(
        &mut self,
        tag: Tag,
        iova: u64,
        shape: &Shape,
        reads: &[Read],
        parents: &[Parent],
    ) {
        let is_cached = match tag.stage {
            Stage::Second => self.absences.leaves,
            Stage::First => self.absences.leaves && self.absences.first_stages,
            Stage::Combined => false,
        };
        let Some(&item_lg2) = shape.items.last().filter(|_| is_cached) else {
            return;
        };
        let absence = LeafEntry {
            tag,
            span: Span::around(iova, shape.granule_lg2),
            item_lg2: shape.granule_lg2,
            granule_lg2: shape.granule_lg2,
            target: None,
            is_table: false,
            origin: self.origin(reads.to_vec()),
        };
        if item_lg2 > shape.granule_lg2 && self.absences.tables {
            let entry = LeafEntry {
                span: Span::around(iova, item_lg2),
                item_lg2,
                is_table: true,
                ..absence.clone()
            };
            self.insert_leaf(entry, parents);
        }
        self.insert_leaf(absence, parents);
    }
}

/// Returns the pointer that a walk goes on from, if it is dropped.
pub(crate) fn dropped_pointer(pointer: Option<&Slot<TableEntry>>) -> Option<Parent> {
    pointer
        .filter(|slot| slot.is_dropped)
        .map(|slot| Parent::Table(Arc::clone(&slot.entry)))
}

pub(crate) fn joined(parents: &[Parent], more: Option<Parent>) -> Vec<Parent> {
    parents.iter().cloned().chain(more).collect()
}
