//! Operations on address spaces, as plain values.

use iopt_formats::{IovaRange, Prot};

/// Where something goes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum To {
    /// To this address.
    Fixed(u64),
    /// Wherever the address space likes.
    Anywhere,
}

/// A slice to map.
#[derive(Clone, Copy, Debug)]
pub struct Slice {
    /// Which source.
    pub source: usize,
    /// First byte.
    pub offset: u64,
    /// Bytes.
    pub len: u64,
    /// Rights.
    pub prot: Prot,
    /// Where it goes.
    pub to: To,
}

/// What an unmap reports besides.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Report {
    /// Nothing.
    None,
    /// What devices wrote to.
    Dirty,
}

/// One operation. Spaces, domains, sources and accesses are named by number.
#[expect(missing_docs, reason = "named as the methods and their arguments are")]
#[derive(Clone, Debug)]
pub enum Op {
    Map {
        space: usize,
        slice: Slice,
    },
    MapMany {
        space: usize,
        slices: Vec<Slice>,
    },
    Unmap {
        space: usize,
        range: IovaRange,
        tolerates_holes: bool,
        report: Report,
    },
    UnmapMany {
        space: usize,
        ranges: Vec<IovaRange>,
        tolerates_holes: bool,
    },
    Copy {
        into: usize,
        from: usize,
        range: IovaRange,
        to: To,
        prot: Prot,
    },
    Split {
        space: usize,
        iova: u64,
    },
    Remap {
        space: usize,
        range: IovaRange,
        to: To,
    },
    Protect {
        space: usize,
        range: IovaRange,
        prot: Prot,
    },
    Attach {
        space: usize,
        domain: usize,
    },
    Detach {
        space: usize,
        domain: usize,
    },
    Replace {
        space: usize,
        old: usize,
        new: usize,
    },
    Create {
        space: usize,
    },
    /// Lets an access hold on to its pins whatever it is asked, or not.
    SetStubborn {
        access: usize,
        is_stubborn: bool,
    },
    Pin {
        access: usize,
        range: IovaRange,
        is_write: bool,
    },
    Unpin {
        access: usize,
        range: IovaRange,
    },
    Read {
        access: usize,
        iova: u64,
        len: usize,
    },
    Write {
        access: usize,
        iova: u64,
        bytes: Vec<u8>,
    },
    Rebind {
        access: usize,
        space: Option<usize>,
    },
    Destroy {
        access: usize,
    },
    Reserve {
        space: usize,
        range: IovaRange,
        owner: u64,
    },
    Release {
        space: usize,
        owner: u64,
    },
    Allow {
        space: usize,
        ranges: Vec<IovaRange>,
    },
    PageByPage {
        space: usize,
        is_on: bool,
    },
    MsiWindow {
        space: usize,
        window: Option<IovaRange>,
    },
    MapMsi {
        space: usize,
        domain: usize,
        oa: u64,
    },
    /// In all address spaces.
    Revoke {
        source: usize,
    },
    /// In all address spaces.
    Restore {
        source: usize,
    },
    Track {
        space: usize,
        domain: usize,
        is_on: bool,
    },
    /// A device writes.
    Soil {
        domain: usize,
        iova: u64,
    },
    ReadDirty {
        space: usize,
        domain: usize,
        range: IovaRange,
        tolerates_holes: bool,
        forgets: bool,
    },
    Retry {
        space: usize,
    },
}
