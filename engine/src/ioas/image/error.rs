//! Why an address space is not written down, or not restored.

use iopt_formats::IovaRange;

use crate::domain::DomainError;
use crate::ioas::pages::HoldError;

/// Why an address space was not written down.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum SaveError {
    /// The area is pinned by an access, made or unmapped at this moment, or quarantined.
    #[error("the area {area} is busy")]
    Busy {
        /// The area.
        area: IovaRange,
    },
    /// A domain left and was not flushed.
    #[error("a domain left and was not flushed")]
    Leaving,
    /// No memory for the result.
    #[error("no memory to write an address space down")]
    OutOfMemory,
}

/// Why an address space was not restored.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RestoreError {
    /// The bytes do not begin as those of an address space do.
    #[error("these bytes are no address space")]
    NoImage,
    /// They have a version that is not known.
    #[error("version {version} of an address space is not known")]
    Version {
        /// The version.
        version: u64,
    },
    /// They are not as they were written.
    #[error("the {what} of a saved address space is corrupt")]
    Corrupt {
        /// What is wrong.
        what: &'static str,
    },
    /// Nobody knows memory of this name.
    #[error("there is no memory of the name {name:#x}")]
    UnknownPages {
        /// The name.
        name: u64,
    },
    /// The memory of this name has other pages.
    #[error("the memory of the name {name:#x} has other pages than it had")]
    OtherPages {
        /// The name.
        name: u64,
    },
    /// There were more domains, or fewer.
    #[error("{saved} domains were saved, and {given} are given")]
    DomainCount {
        /// How many were attached.
        saved: usize,
        /// How many there are now.
        given: usize,
    },
    /// The domain serves somebody else.
    #[error("domain {number} serves somebody else")]
    Taken {
        /// Its number.
        number: usize,
    },
    /// The domain's aperture or page sizes do not fit what is mapped.
    #[error("domain {number} does not fit what is mapped")]
    Unfit {
        /// Its number.
        number: usize,
    },
    /// The domain translates something else than it should.
    #[error("domain {number} translates something else at {range}")]
    Differs {
        /// Its number.
        number: usize,
        /// Where.
        range: IovaRange,
    },
    /// The domain cannot tell what it translates.
    #[error("domain {number} does not tell what it translates: {error}")]
    Domain {
        /// Its number.
        number: usize,
        /// Why.
        #[source]
        error: DomainError,
    },
    /// The memory cannot be pinned.
    #[error(transparent)]
    Hold(#[from] HoldError),
    /// No memory.
    #[error("no memory to restore an address space")]
    OutOfMemory,
}
