//! What a sink is asked, and what its user does wrong.

use iopt_formats::IovaRange;

/// What a sink can be told to fail, and what it counts.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Call {
    /// Serving an address space.
    Bind,
    /// A batch of runs, before its first.
    Map,
    /// One run of a batch.
    Op,
    /// A removal; nothing of it is removed if it fails.
    Unmap,
    /// Telling the hardware.
    Sync,
    /// New rights.
    Protect,
    /// Cutting leaves.
    Cut,
    /// Beginning or ending to record what devices write to.
    Track,
    /// Reporting what devices wrote to.
    Dirty,
}

impl Call {
    /// Every kind.
    pub const ALL: [Self; 9] = [
        Self::Bind,
        Self::Map,
        Self::Op,
        Self::Unmap,
        Self::Sync,
        Self::Protect,
        Self::Cut,
        Self::Track,
        Self::Dirty,
    ];
}

/// What a user of the sink did that the contract forbids.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[expect(missing_docs, reason = "the values are what was met")]
pub enum Violation {
    /// A run reaches out of its grant.
    OutsideGrant { op: IovaRange, grant: IovaRange },
    /// A grant reaches out of the aperture.
    OutsideAperture { range: IovaRange },
    /// A run meets something mapped.
    Occupied { op: IovaRange, with: IovaRange },
    /// The runs of a batch do not rise.
    Disorder { op: IovaRange },
    /// Two calls at the same time share an address.
    Shared { range: IovaRange, with: IovaRange },
    /// An unmap begins or ends inside something that was mapped at once and not cut there.
    Divided { unmap: IovaRange, leaf: IovaRange },
    /// New rights for a range that is not mapped whole.
    ProtectHole { range: IovaRange },
    /// A domain that needs pinned pages got some that may move.
    NotFirm { op: IovaRange },
    /// A call by somebody who is not the tenant.
    Stranger,
    /// The tenant left something mapped, or not synced.
    LeftBehind { leaf_count: usize },
}
