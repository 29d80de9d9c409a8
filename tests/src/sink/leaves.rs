//! The leaves of a sink, and its counts.

use std::collections::{BTreeMap, BTreeSet};

use iopt::domain::{DomainError, TenantId};
use iopt_formats::{Iova, IovaRange, Oa, PageSize, Prot};

use crate::sink::{Call, Violation};

/// What a leaf's dirty bit says.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Written {
    No,
    Yes,
    /// The bit was cleared, and the hardware, not told yet, takes it for set: writes are lost.
    Stale {
        ticket: u64,
    },
}

/// A leaf; `begins` and `ends` say whether a mapping does so here, so that an unmap may.
#[derive(Clone, Copy, Debug)]
pub(super) struct Leaf {
    pub(super) size: PageSize,
    pub(super) oa: Oa,
    pub(super) prot: Prot,
    pub(super) begins: bool,
    pub(super) ends: bool,
    pub(super) written: Written,
}

impl Leaf {
    pub(super) fn range(&self, start: u64) -> IovaRange {
        IovaRange::with_len(Iova::new(start), self.size.bytes()).expect("a leaf was mapped")
    }
}

/// Failures to come.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    pub(super) kinds: Vec<Call>,
    /// Calls of these kinds before the first that fails.
    pub(super) left: u64,
    /// Whether all later ones fail, too.
    pub(super) is_lasting: bool,
}

#[derive(Default)]
pub(super) struct State {
    pub(super) tenant: Option<TenantId>,
    pub(super) leaves: BTreeMap<u64, Leaf>,
    /// The leaves by output address and IOVA, with their last output address.
    pub(super) by_oa: BTreeMap<(u64, u64), u64>,
    /// Output addresses, first and last, of leaves that were removed and not synced, with the ticket.
    pub(super) unsynced: Vec<(u64, u64, u64)>,
    pub(super) ticket_count: u64,
    pub(super) is_tracking: bool,
    pub(super) counts: BTreeMap<Call, u64>,
    pub(super) mapped_bytes: u64,
    pub(super) unmapped_bytes: u64,
    pub(super) plan: Option<Plan>,
    pub(super) fired_count: u64,
    pub(super) violations: Vec<Violation>,
}

impl State {
    /// Counts a call, and fails if it was told to.
    pub(super) fn call(&mut self, call: Call) -> Result<(), DomainError> {
        *self.counts.entry(call).or_default() += 1;
        let Some(plan) = self.plan.as_mut().filter(|plan| plan.kinds.contains(&call)) else {
            return Ok(());
        };
        if let Some(left) = plan.left.checked_sub(1) {
            plan.left = left;
            return Ok(());
        }
        if !plan.is_lasting {
            self.plan = None;
        }
        self.fired_count += 1;
        // Maps mostly fail for want of memory.
        Err(match call {
            Call::Map | Call::Op => DomainError::OutOfMemory,
            _ => DomainError::Unsupported {
                what: "what the test told it to fail",
            },
        })
    }

    /// Returns a name for what is about to change.
    pub(super) const fn ticket(&mut self) -> u64 {
        self.ticket_count += 1;
        self.ticket_count
    }

    /// Notes that hardware was told of the changes with these tickets, and of nothing else.
    pub(super) fn confirm(&mut self, tickets: &[u64]) {
        let confirmed: BTreeSet<u64> = tickets.iter().copied().collect();
        self.unsynced
            .retain(|(.., ticket)| !confirmed.contains(ticket));
        for leaf in self.leaves.values_mut() {
            if let Written::Stale { ticket } = leaf.written
                && confirmed.contains(&ticket)
            {
                leaf.written = Written::No;
            }
        }
    }

    pub(super) fn insert(&mut self, start: u64, leaf: Leaf) {
        let oa_last = leaf.oa.get() + leaf.size.offset_mask();
        self.by_oa.insert((leaf.oa.get(), start), oa_last);
        self.leaves.insert(start, leaf);
    }

    pub(super) fn remove(&mut self, start: u64) -> Option<Leaf> {
        let leaf = self.leaves.remove(&start)?;
        self.by_oa.remove(&(leaf.oa.get(), start));
        Some(leaf)
    }

    pub(super) fn leaf_at(&self, iova: u64) -> Option<(u64, Leaf)> {
        let (&start, &leaf) = self.leaves.range(..=iova).next_back()?;
        (iova - start <= leaf.size.offset_mask()).then_some((start, leaf))
    }

    /// Returns the leaves that share an address with `range`, in rising order.
    pub(super) fn overlapping(&self, range: IovaRange) -> impl Iterator<Item = (u64, Leaf)> {
        let first = self.leaf_at(range.start().get());
        let from = first.map_or(range.start().get(), |(start, _)| start);
        let leaves = self.leaves.range(from..=range.last().get());
        leaves.map(|(&start, &leaf)| (start, leaf))
    }
}
