//! Two stages: every way to combine what is cached of both.

use std::cell::RefCell;
use std::sync::Arc;

use iopt_reference::Table;
use iopt_reference::context::BindingFault;

use crate::iotlb::Target;
use crate::lineage::Parent;
use crate::memory::Read;
use crate::report::Source;
use crate::rights::Rights;
use crate::shape::Shape;
use crate::span::{Slot, Span};
use crate::tag::Tag;
use crate::translate::{Candidate, Hit, Machine, Refusal, dropped_pointer, joined};
use crate::walk_cache::TableEntry;

/// Most combinations that are tried for one request.
const MOST_COMBINATIONS: usize = 64;

impl Machine<'_> {
    /// Returns every outcome for `iova` of a first stage behind a second one.
    pub(crate) fn two_stages(
        &mut self,
        first: &Table,
        second: &Table,
        tag: Tag,
        iova: u64,
        parents: &[Parent],
    ) -> Vec<Candidate> {
        let mut candidates = self.cached(tag, iova, parents);
        let pointers = self.state.walk_cache.find(tag, iova);
        for pointer in pointers.into_iter().map(Some).chain([None]) {
            let first = pointer.as_ref().map_or(*first, |slot| slot.entry.table);
            if pointer.is_none() {
                self.state.statistics.walks += 1;
            }
            let mut choices = Vec::new();
            for _ in 0..MOST_COMBINATIONS {
                let parents = joined(parents, dropped_pointer(pointer.as_ref()));
                let walk = TwoStageWalk {
                    first,
                    second,
                    tag,
                    pointer: pointer.as_ref(),
                };
                candidates.extend(self.two_stage_walk(&walk, iova, parents, &mut choices));
                if !next_choices(&mut choices) {
                    break;
                }
            }
        }
        candidates
    }

    fn two_stage_walk(
        &mut self,
        walk: &TwoStageWalk<'_>,
        iova: u64,
        parents: Vec<Parent>,
        choices: &mut Vec<Choice>,
    ) -> Vec<Candidate> {
        let replayed = walk
            .pointer
            .map_or(&[][..], |slot| &slot.entry.origin.words);
        let between = Between {
            inner: RefCell::new(BetweenInner {
                machine: self,
                choices,
                position: 0,
                reads: Vec::new(),
                parents,
                refusal: None,
            }),
            second: walk.second,
            tag: walk.tag.of_second(),
            replayed,
        };
        let outer = walk.first.walk(&between, iova);
        let inner = outer.ok().map(|outer| (outer, between.translate(outer.oa)));
        let BetweenInner {
            reads,
            parents,
            refusal,
            ..
        } = between.inner.into_inner();
        let source = match walk.pointer {
            Some(slot) => Source::WalkCache(Arc::clone(&slot.entry)),
            None => Source::Walk(reads.clone()),
        };
        let shape = Shape::new(&walk.first, iova, &reads);
        let (first, tag) = (&walk.first, walk.tag);
        self.cache_pointers(first, tag, iova, &shape, &reads, replayed.len(), &parents);
        let Some((outer, Some(hit))) = inner else {
            let fault = outer.err().map(BindingFault::First).map(Refusal::Tables);
            return vec![Candidate {
                outcome: Err(refusal.or(fault).unwrap_or(Refusal::Absent)),
                source,
                parents,
                leaf: None,
            }];
        };
        let mut leaf = self.cache_leaf(first, tag, iova, &shape, reads, &outer);
        let (_, oa) = hit.at(outer.oa);
        // The smaller of both sizes.
        leaf.span = Span::around(iova, leaf.span.lg2.min(hit.span.lg2));
        let offset = iova - leaf.span.start;
        let target = Target {
            oa: oa.wrapping_sub(offset),
            ipa: outer.oa.wrapping_sub(offset),
            rights: Rights {
                read: outer.read,
                write: outer.write,
            } & hit.target.rights,
        };
        leaf.target = Some(target);
        self.met(leaf, iova, &source, &parents).collect()
    }
}

/// One way through two stages.
struct TwoStageWalk<'a> {
    first: Table,
    second: &'a Table,
    tag: Tag,
    /// Where the first stage goes on from.
    pointer: Option<&'a Slot<TableEntry>>,
}

/// Which of the outcomes of the second stage is taken at one point of a walk.
struct Choice {
    taken: usize,
    count: usize,
}

/// Moves on to the next combination; returns whether there is one.
fn next_choices(choices: &mut Vec<Choice>) -> bool {
    while let Some(choice) = choices.last_mut() {
        if choice.taken + 1 < choice.count {
            choice.taken += 1;
            return true;
        }
        choices.pop();
    }
    false
}

/// Memory behind the second stage, of whose outcomes one is chosen at each read.
struct Between<'a, 'b, 'c> {
    inner: RefCell<BetweenInner<'a, 'b>>,
    second: &'c Table,
    tag: Tag,
    replayed: &'c [Read],
}

struct BetweenInner<'a, 'b> {
    machine: &'a mut Machine<'b>,
    choices: &'a mut Vec<Choice>,
    position: usize,
    reads: Vec<Read>,
    parents: Vec<Parent>,
    refusal: Option<Refusal>,
}

impl Between<'_, '_, '_> {
    /// Translates an output address of the first stage.
    fn translate(&self, ipa: u64) -> Option<Hit> {
        let mut inner = self.inner.borrow_mut();
        let inner = &mut *inner;
        let found = inner.machine.one_stage(self.second, self.tag, ipa, &[]);
        let mut distinct: Vec<Candidate> = Vec::new();
        for candidate in found {
            let is_same = |other: &&mut Candidate| other.outcome == candidate.outcome;
            match distinct.iter_mut().find(is_same) {
                Some(other) if candidate.parents.is_empty() => other.parents.clear(),
                Some(_) => {}
                None => distinct.push(candidate),
            }
        }
        if inner.position == inner.choices.len() {
            inner.choices.push(Choice {
                taken: 0,
                count: distinct.len(),
            });
        }
        let taken = inner.choices[inner.position].taken;
        inner.position += 1;
        // The cache may have changed between two combinations.
        let candidate = distinct.get(taken).or(distinct.first())?;
        inner.parents.extend(candidate.parents.iter().cloned());
        match candidate.outcome {
            Ok(hit) => Some(hit),
            Err(refusal) => {
                inner.refusal = Some(match refusal {
                    Refusal::Tables(BindingFault::First(fault)) => {
                        Refusal::Tables(BindingFault::Second { ipa, fault })
                    }
                    refusal => refusal,
                });
                None
            }
        }
    }
}

impl iopt_reference::Memory for Between<'_, '_, '_> {
    fn read64(&self, ipa: u64) -> Option<u64> {
        let index = self.inner.borrow().reads.len();
        let read = if let Some(read) = self.replayed.get(index) {
            *read
        } else {
            let hit = self.translate(ipa).filter(|hit| hit.target.rights.read)?;
            let (_, address) = hit.at(ipa);
            let word = self.inner.borrow().machine.memory.read64(address)?;
            Read { address, word }
        };
        self.inner.borrow_mut().reads.push(read);
        Some(read.word)
    }
}
