//! Why an operation on a table was refused.
//!
//! Every variant means that nothing changed, unless it says how far the operation came.

use iopt_formats::{ConfigError, Iova, IovaRange, Oa, PageSize, Prot};

use crate::invalidation::Quarantined;
use crate::mem::OutOfMemory;

/// Why a table cannot be made.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum TableError {
    /// The memory has no page for the root.
    #[error(transparent)]
    OutOfMemory(#[from] OutOfMemory),
    /// The format allows no page size at all.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The memory's walkers do not snoop, and the format has no software bit to say that a table
    /// was written back.
    #[error("this format cannot serve walkers that do not snoop")]
    NotSnooped,
}

/// Why a claim gives no [`Mapper`](crate::radix::Mapper).
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum MapperError {
    /// The claim is of another registry than the table's.
    #[error("the claim on {range} was issued by another registry")]
    ForeignClaim {
        /// What is claimed.
        range: IovaRange,
    },
    /// The claim reaches out of what the table decodes.
    #[error("the claim on {range} reaches out of the addresses that the table decodes")]
    OutsideWindow {
        /// What is claimed.
        range: IovaRange,
    },
}

/// Why nothing was mapped.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum MapError {
    /// The range or the output address is not a multiple of the smallest page.
    #[error("range {range} and output address {oa} are not multiples of {page}")]
    Unaligned {
        /// The range.
        range: IovaRange,
        /// The output address.
        oa: Oa,
        /// The smallest page of the table.
        page: PageSize,
    },
    /// The mapper's claim does not cover the range.
    #[error("range {range} is not inside the claim on {claim}")]
    OutsideClaim {
        /// The range.
        range: IovaRange,
        /// What is claimed.
        claim: IovaRange,
    },
    /// The runs of a list pass the last byte of the 64-bit space.
    #[error("{len:#x} bytes from {iova} pass the end of the address space")]
    Wraps {
        /// Where the piece would start.
        iova: Iova,
        /// Its bytes; 0 is refused as well.
        len: u64,
    },
    /// The output addresses do not fit the table's width.
    #[error("{len_minus_one:#x} + 1 bytes from output address {oa} do not fit {oa_bits} bits")]
    OaWidth {
        /// The output address.
        oa: Oa,
        /// Bytes to map, less one.
        len_minus_one: u64,
        /// Width of an output address in this table.
        oa_bits: u8,
    },
    /// The format has no entry for these rights.
    #[error("no entry of this format grants {prot}")]
    Prot {
        /// What was asked for.
        prot: Prot,
    },
    /// An address of the range is mapped.
    #[error("iova {iova} is already mapped")]
    Occupied {
        /// The lowest such address, to the page.
        iova: Iova,
    },
    /// No memory is left for a table.
    #[error(transparent)]
    OutOfMemory(#[from] OutOfMemory),
}

/// Why nothing was unmapped.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum UnmapError {
    /// The range is not a multiple of the smallest page.
    #[error("range {range} is not a multiple of {page}")]
    Unaligned {
        /// The range.
        range: IovaRange,
        /// The smallest page of the table.
        page: PageSize,
    },
    /// The mapper's claim does not cover the range, or an entry that it ends in.
    #[error("range {range} is not inside the claim on {claim}")]
    OutsideClaim {
        /// The range, or that of the entry.
        range: IovaRange,
        /// What is claimed.
        claim: IovaRange,
    },
    /// An address of the range is not mapped.
    #[error("iova {iova} is not mapped")]
    Hole {
        /// The lowest such address, to the page.
        iova: Iova,
    },
    /// The range starts or ends inside a larger entry.
    #[error("the range ends inside the {size} entry that holds iova {iova}")]
    Splits {
        /// An address of the range inside the entry.
        iova: Iova,
        /// The size of the entry.
        size: PageSize,
    },
}

/// Why no right was changed.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum ProtectError {
    /// As for unmapping: the range must consist of whole entries.
    #[error(transparent)]
    Range(#[from] UnmapError),
    /// The format has no entry for these rights.
    #[error("no entry of this format grants {prot}")]
    Prot {
        /// What was asked for.
        prot: Prot,
    },
    /// The memory type of a live entry must not change; unmap and map instead.
    #[error("the memory type at iova {iova} cannot change while it is mapped")]
    Memory {
        /// The first address of the entry.
        iova: Iova,
    },
}

/// Why dirty state cannot be read.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum DirtyError {
    /// The table's format is configured without dirty tracking.
    #[error("this table does not track dirty pages")]
    NotTracked,
    /// The mapper's claim does not cover the range, or an entry that it starts or ends in.
    #[error("range {range} is not inside the claim on {claim}")]
    OutsideClaim {
        /// The range.
        range: IovaRange,
        /// What is claimed.
        claim: IovaRange,
    },
}

/// Why no table was unlinked.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum CompactError {
    /// The mapper's claim does not cover the range.
    #[error("range {range} is not inside the claim on {claim}")]
    OutsideClaim {
        /// The range.
        range: IovaRange,
        /// What is claimed.
        claim: IovaRange,
    },
    /// The list of unlinked tables cannot grow.
    #[error("no memory is left for the list of unlinked tables")]
    OutOfMemory,
}

/// Why an entry was not cut or merged.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CutError {
    /// The mapper's claim does not cover the range, or an entry that it touches.
    #[error("range {range} is not inside the claim on {claim}")]
    OutsideClaim {
        /// The range, or that of the entry.
        range: IovaRange,
        /// What is claimed.
        claim: IovaRange,
    },
    /// The table has no page size up to the one asked for.
    #[error("the table has no page of at most {size}")]
    NoSize {
        /// The size asked for.
        size: PageSize,
    },
    /// The entry cannot change while it is live, and no fault window was allowed. Entries below
    /// it are done.
    #[error("the {size} entry at iova {iova} can change only with a window in which it faults")]
    NeedsFaultWindow {
        /// The first address of the entry.
        iova: Iova,
        /// Its size.
        size: PageSize,
    },
    /// The tables that a larger entry would replace find no room in the quarantine: call
    /// [`Table::reclaim`](crate::radix::Table::reclaim). Entries below are done; translations are
    /// as before.
    #[error("{limit} tables wait to be freed already")]
    QuarantineFull {
        /// Tables that may wait at one time.
        limit: usize,
    },
    /// No memory is left for a table. Entries below the one that needed it are done; translations
    /// are as before.
    #[error(transparent)]
    OutOfMemory(#[from] OutOfMemory),
    /// The hardware did not complete an invalidation on the way. Translations are as before, except
    /// that an entry in its fault window stays unmapped.
    #[error(transparent)]
    Quarantined(#[from] Quarantined),
}
