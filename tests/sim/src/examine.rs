//! Holding outcomes and cached entries against the ledger.

use std::sync::Arc;

use iopt_reference::context::Binding;

use crate::atc::AtcEntry;
use crate::behaviour::Effect;
use crate::context_cache::CachedContext;
use crate::iommu::Outcome;
use crate::iotlb::LeafEntry;
use crate::ledger::Reach;
use crate::report::{Law, MOST_PASSED, Passed, Source, StaleAccess};
use crate::rights::Rights;
use crate::tag::Stage;
use crate::translate::{Candidate, Hit, Machine, Refusal};

/// The requests of one device and PASID.
pub(crate) struct Examiner<'a> {
    pub(crate) machine: Machine<'a>,
}

/// Base-2 logarithm of the bytes that a device is told of at least.
const PIECE_LG2: u32 = 12;

/// An outcome, and the cached context that it depends on.
type Examined = (Candidate, Option<CachedContext>);

impl Examiner<'_> {
    fn requester(&self) -> (u32, Option<u32>) {
        (self.machine.device, self.machine.pasid)
    }

    pub(crate) fn access(
        &mut self,
        iova: u64,
        rights: Rights,
    ) -> Result<Outcome, Box<StaleAccess>> {
        let requester = self.requester();
        self.machine.state.requesters.insert(requester);
        let was_needed = self.machine.ledger.needs(requester, iova, rights);
        let candidates = self.candidates(iova);
        if let Some(freed) = self.machine.freed.first().cloned() {
            let report = self.report(Law::FreedTable, iova, freed.source, None);
            return Err(Box::new(StaleAccess {
                address: Some(freed.address),
                ..report
            }));
        }
        // A change that began or ended meanwhile leaves both possible.
        let is_needed = was_needed && self.machine.ledger.needs(requester, iova, rights);
        for (candidate, context) in &candidates {
            self.judge(candidate, context.as_ref(), iova, rights, is_needed)?;
        }
        let drawn = self.machine.state.draw(candidates.len().max(1));
        let Some((candidate, _)) = candidates.into_iter().nth(drawn) else {
            return Ok(Outcome::Refused(Refusal::Absent));
        };
        Ok(match candidate.outcome {
            Ok(hit) if rights.is_within(hit.target.rights) => {
                let (_, oa) = hit.at(iova);
                let rights = hit.target.rights;
                Outcome::Translated { oa, rights }
            }
            Ok(hit) => Outcome::Refused(Refusal::Rights(hit.target.rights)),
            Err(refusal) => Outcome::Refused(refusal),
        })
    }

    /// Returns every outcome, and lets a device with a TLB remember the translations.
    fn candidates(&mut self, iova: u64) -> Vec<Examined> {
        let (device, pasid) = self.requester();
        let mut candidates: Vec<Examined> = Vec::new();
        for entry in self.machine.state.atcs.find(device, pasid, iova) {
            let hit = Hit {
                span: entry.span,
                target: entry.target,
            };
            candidates.push((
                Candidate {
                    outcome: Ok(hit),
                    source: Source::DeviceTlb(Box::new(entry)),
                    parents: Vec::new(),
                    leaf: None,
                },
                None,
            ));
        }
        if !candidates.is_empty() {
            self.machine.state.statistics.device_tlb_hits += 1;
        }
        for bound in self.machine.bounds() {
            let context = match bound.result {
                Ok(context) => context,
                Err(fault) => {
                    let refused = Candidate {
                        outcome: Err(Refusal::Context(fault)),
                        source: Source::Context,
                        parents: bound.parents,
                        leaf: None,
                    };
                    candidates.push((refused, bound.cached));
                    continue;
                }
            };
            let outcomes = self.machine.outcomes(&context, iova, &bound.parents);
            let is_hit = |candidate: &Candidate| matches!(candidate.source, Source::Iotlb(_));
            if outcomes.iter().any(is_hit) {
                self.machine.state.statistics.iotlb_hits += 1;
            }
            for candidate in outcomes {
                if context.has_ats {
                    self.remember(&candidate, iova);
                }
                candidates.push((candidate, bound.cached.clone()));
            }
        }
        candidates
    }

    /// Lets the device remember what the IOTLB entry says, whole and of the smallest page around the request: that
    /// is all which it may have been told.
    fn remember(&mut self, candidate: &Candidate, iova: u64) {
        let Some(leaf) = &candidate.leaf else {
            return;
        };
        let piece = leaf.piece_at(iova, PIECE_LG2);
        for part in [LeafEntry::clone(leaf), piece] {
            let Some(target) = part.target else { continue };
            let machine = &mut self.machine;
            machine.state.atcs.insert(AtcEntry {
                device: machine.device,
                pasid: machine.pasid,
                span: part.span,
                target,
                from: LeafEntry::clone(leaf),
                time: machine.now,
                commands: machine.state.commands,
                is_dropped: false,
            });
        }
    }

    fn judge(
        &self,
        candidate: &Candidate,
        context: Option<&CachedContext>,
        iova: u64,
        rights: Rights,
        is_needed: bool,
    ) -> Result<(), Box<StaleAccess>> {
        let report = |law| self.report(law, iova, candidate.source.clone(), context.cloned());
        match candidate.outcome {
            Ok(hit) => {
                let (ipa, oa) = hit.at(iova);
                let granted = hit.target.rights;
                let reach = Reach {
                    iova: (iova, iova),
                    ipa,
                    oa,
                    rights: granted,
                    is_second: false,
                };
                let found = if !self.machine.ledger.allows(self.requester(), &reach) {
                    Law::Reach
                } else if is_needed && !rights.is_within(granted) {
                    Law::Missed
                } else {
                    return Ok(());
                };
                Err(Box::new(StaleAccess {
                    address: Some(oa),
                    rights: Some(granted),
                    ..report(found)
                }))
            }
            Err(_) if is_needed => Err(Box::new(report(Law::Missed))),
            Err(_) => Ok(()),
        }
    }

    /// Examines whole entries, asked for or not.
    pub(crate) fn check_all(&mut self) -> Result<(), Box<StaleAccess>> {
        let requester = self.requester();
        for bound in self.machine.bounds() {
            let Ok(context) = bound.result else { continue };
            if context.binding == Binding::Blocked {
                // Its names lead nowhere: no request looks for what is cached under them.
                continue;
            }
            let tags = [
                context.tag,
                context.tag.of_global(),
                context.tag.of_second(),
            ];
            let is_nested = context.tag.stage == Stage::Combined;
            let is_meant = |tag| tags[..2].contains(&tag) || is_nested && tag == tags[2];
            for slot in self.machine.state.iotlb.under(is_meant) {
                let is_second = is_nested && slot.entry.tag.stage == Stage::Second;
                let source = Source::Iotlb(Arc::clone(&slot.entry));
                self.check_leaf(&slot.entry, is_second, source, bound.cached.as_ref())?;
            }
            for slot in self.machine.state.walk_cache.under(is_meant) {
                let (address, generation) = slot.entry.next;
                if !self.machine.ledger.is_live(address, generation) {
                    let source = Source::WalkCache(Arc::clone(&slot.entry));
                    let start = slot.entry.span.start;
                    let report = self.report(Law::FreedTable, start, source, bound.cached);
                    return Err(Box::new(StaleAccess {
                        address: Some(address),
                        ..report
                    }));
                }
            }
        }
        let entries = self.machine.state.atcs.entries();
        let own: Vec<_> = entries
            .filter(|entry| (entry.device, entry.pasid) == requester)
            .cloned()
            .collect();
        for entry in own {
            let leaf = LeafEntry {
                span: entry.span,
                target: Some(entry.target),
                ..entry.from.clone()
            };
            self.check_leaf(&leaf, false, Source::DeviceTlb(Box::new(entry)), None)?;
        }
        Ok(())
    }

    fn check_leaf(
        &self,
        entry: &LeafEntry,
        is_second: bool,
        source: Source,
        context: Option<&CachedContext>,
    ) -> Result<(), Box<StaleAccess>> {
        let start = entry.span.start;
        let requester = self.requester();
        let report = |law, source| self.report(law, start, source, context.cloned());
        let Some(target) = entry.target else {
            let nothing = Rights {
                read: false,
                write: false,
            };
            let is_needed = self.machine.ledger.needs(requester, start, nothing);
            return if is_needed && !entry.is_table {
                Err(Box::new(report(Law::Missed, source)))
            } else {
                Ok(())
            };
        };
        let reach = Reach {
            iova: (start, entry.span.last()),
            ipa: target.ipa,
            oa: target.oa,
            rights: target.rights,
            is_second,
        };
        if self.machine.ledger.allows(requester, &reach) {
            return Ok(());
        }
        Err(Box::new(StaleAccess {
            address: Some(target.oa),
            rights: Some(target.rights),
            ..report(Law::Reach, source)
        }))
    }

    fn report(
        &self,
        law: Law,
        iova: u64,
        source: Source,
        context: Option<CachedContext>,
    ) -> StaleAccess {
        let mut history = self.history(&source);
        if let Some(context) = &context {
            let keeps = |effect: &Effect| match effect {
                Effect::Context(request) => Some(request.keeps(context)),
                _ => None,
            };
            history.extend(self.passed(context.commands, keeps));
        }
        StaleAccess {
            law,
            device: self.machine.device,
            pasid: self.machine.pasid,
            iova,
            address: None,
            rights: None,
            source,
            context,
            history,
        }
    }

    fn history(&self, source: &Source) -> Vec<Passed> {
        let leaf = |entry: &LeafEntry, effect: &Effect| match effect {
            Effect::Tlb(request) => Some(request.keeps_leaf(entry)),
            _ => None,
        };
        match source {
            Source::Iotlb(entry) => {
                self.passed(entry.origin.commands, |effect| leaf(entry, effect))
            }
            Source::WalkCache(entry) => self.passed(entry.origin.commands, |effect| match effect {
                Effect::Tlb(request) => Some(request.keeps_table(entry)),
                _ => None,
            }),
            Source::DeviceTlb(entry) => {
                let from = &entry.from;
                let mut history = self.passed(from.origin.commands, |effect| leaf(from, effect));
                history.extend(self.passed(entry.commands, |effect| match effect {
                    Effect::Atc(request) => Some(request.keeps(entry)),
                    _ => None,
                }));
                history
            }
            Source::Walk(_) | Source::Context => Vec::new(),
        }
    }

    /// Returns the last commands since `from` that were about entries of a kind.
    fn passed(
        &self,
        from: u64,
        keeps: impl Fn(&Effect) -> Option<Option<&'static str>>,
    ) -> Vec<Passed> {
        let log = self.machine.state.log.iter().rev();
        let since = log.take_while(|logged| logged.number >= from);
        let mut passed: Vec<_> = since
            .filter_map(|logged| logged.passed(&keeps))
            .take(MOST_PASSED)
            .collect();
        passed.reverse();
        passed
    }
}
