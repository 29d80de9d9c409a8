//! What a replay does in each domain: the operations of the trace with the flushes between them.

use std::collections::BTreeMap;

use iopt_formats::{IovaRange, Oa, Prot};
use iopt_tools::flush::Flush;
use iopt_tools::trace::{Action, DomainEnd, Trace};

/// When the ranges of unmaps are invalidated.
#[derive(Clone, Debug)]
pub(crate) enum FlushMode {
    /// After each unmap.
    Each,
    /// After a number of unmaps of the domain.
    Every(u64),
    /// Where the guest's kernel did.
    File(Vec<Flush>),
}

/// One step of a domain.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Step {
    /// Position of the operation in the trace, from 0.
    pub(crate) index: u64,
    /// Line of the trace.
    pub(crate) line: u64,
    /// What to do.
    pub(crate) kind: StepKind,
}

/// What a step does.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum StepKind {
    /// Creates the table; the first step of every domain.
    Begin,
    /// Maps a range.
    Map {
        /// The range.
        range: IovaRange,
        /// Where it goes.
        oa: Oa,
        /// Rights and memory type.
        prot: Prot,
    },
    /// Unmaps a range.
    Unmap {
        /// The range.
        range: IovaRange,
    },
    /// Invalidates what was unmapped since the last flush.
    Flush,
    /// Drops the table with all that is mapped.
    End,
}

/// The steps of one domain, in order.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct DomainPlan {
    /// Number of the domain.
    pub(crate) id: u32,
    /// Its steps.
    pub(crate) steps: Vec<Step>,
}

/// Shares out the operations of `trace` to its domains, the busiest one first.
pub(crate) fn plan(trace: &Trace, flush: &FlushMode) -> Vec<DomainPlan> {
    let mut domains: BTreeMap<u32, Building> = BTreeMap::new();
    let mut flushes = match flush {
        FlushMode::File(flushes) => flushes.as_slice(),
        FlushMode::Each | FlushMode::Every(_) => &[],
    };
    for (index, operation) in (0..).zip(&trace.operations) {
        while let Some((first, rest)) = flushes.split_first().filter(|(f, _)| f.after <= index) {
            if let Some(domain) = domains.get_mut(&first.domain) {
                domain.flush(index.saturating_sub(1), operation.line);
            }
            flushes = rest;
        }
        let domain = domains.entry(operation.domain).or_default();
        let is_new = domain.steps.is_empty();
        let mut push = |kind| {
            domain.steps.push(Step {
                index,
                line: operation.line,
                kind,
            });
        };
        if is_new {
            push(StepKind::Begin);
        }
        match &operation.action {
            &Action::Map { range, oa, prot } => push(StepKind::Map { range, oa, prot }),
            &Action::Unmap { range } => push(StepKind::Unmap { range }),
            Action::Attach { .. } | Action::Detach { .. } => {}
        }
        match &operation.action {
            Action::Unmap { .. } => {
                domain.unflushed_unmaps += 1;
                let is_due = match flush {
                    FlushMode::Each => true,
                    FlushMode::Every(count) => domain.unflushed_unmaps >= *count,
                    FlushMode::File(_) => false,
                };
                if is_due {
                    domain.flush(index, operation.line);
                }
            }
            Action::Attach { .. } => domain.devices += 1,
            Action::Detach { .. } => {
                // The trace was checked: only attached devices are detached.
                domain.devices = domain.devices.saturating_sub(1);
                if domain.devices == 0 && trace.header.domain_end == DomainEnd::LastDetach {
                    domain.steps.push(Step {
                        index,
                        line: operation.line,
                        kind: StepKind::End,
                    });
                }
            }
            Action::Map { .. } => {}
        }
    }
    let mut plans: Vec<_> = domains
        .into_iter()
        .map(|(id, domain)| DomainPlan {
            id,
            steps: domain.steps,
        })
        .collect();
    plans.sort_by_key(|plan| std::cmp::Reverse(plan.steps.len()));
    plans
}

#[derive(Default)]
struct Building {
    steps: Vec<Step>,
    devices: u64,
    unflushed_unmaps: u64,
}

impl Building {
    fn flush(&mut self, index: u64, line: u64) {
        self.unflushed_unmaps = 0;
        self.steps.push(Step {
            index,
            line,
            kind: StepKind::Flush,
        });
    }
}

#[cfg(test)]
mod tests {
    use iopt_tools::flush::Scope;

    use super::*;

    const TRACE: &str = "# iopt-trace 1\n# page-size: 4096\n\
        # domain-end: a domain and its mappings end with its last detach\n\
        attach 0 0 a\n\
        map 0 1 0x0 0x0 0x3000 rw\n\
        unmap 0 1 0x0 0x1000\n\
        unmap 0 1 0x1000 0x1000\n\
        unmap 0 1 0x2000 0x1000\n\
        detach 0 0 a\n";

    /// Returns the steps of a domain as letters with the position of the operation.
    fn steps(flush: &FlushMode, id: u32) -> String {
        let trace = Trace::read(TRACE.as_bytes()).unwrap();
        let plans = plan(&trace, flush);
        let plan = plans.iter().find(|plan| plan.id == id).unwrap();
        let letter = |kind| match kind {
            StepKind::Begin => 'b',
            StepKind::Map { .. } => 'm',
            StepKind::Unmap { .. } => 'u',
            StepKind::Flush => 'f',
            StepKind::End => 'e',
        };
        let steps = plan
            .steps
            .iter()
            .map(|step| format!("{}{}", letter(step.kind), step.index));
        steps.collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn a_domain_begins_with_its_first_operation_and_ends_with_its_last_detach() {
        assert_eq!(steps(&FlushMode::Each, 0), "b0 e5");
    }

    #[test]
    fn flushes_follow_each_unmap_or_every_few() {
        assert_eq!(steps(&FlushMode::Each, 1), "b1 m1 u2 f2 u3 f3 u4 f4");
        assert_eq!(steps(&FlushMode::Every(2), 1), "b1 m1 u2 u3 f3 u4");
        assert_eq!(steps(&FlushMode::Every(9), 1), "b1 m1 u2 u3 u4");
    }

    #[test]
    fn flushes_of_a_file_fall_between_the_operations_that_it_counts() {
        let flush = |domain, after| Flush {
            domain,
            scope: Scope::Sync,
            after,
        };
        let file = [
            flush(1, 0),
            flush(7, 1),
            flush(1, 3),
            flush(0, 4),
            flush(1, 4),
        ];
        assert_eq!(
            steps(&FlushMode::File(file.into()), 1),
            "b1 m1 u2 f2 u3 f3 u4"
        );
    }

    #[test]
    fn the_busiest_domain_comes_first() {
        let trace = Trace::read(TRACE.as_bytes()).unwrap();
        let ids: Vec<_> = plan(&trace, &FlushMode::Each)
            .iter()
            .map(|plan| plan.id)
            .collect();
        assert_eq!(ids, [1, 0]);
    }
}
