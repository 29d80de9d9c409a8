//! What never changes about the domains and sources of a test.

use iopt_formats::{IovaRange, PageSize, Prot};

/// A source.
#[derive(Clone, Debug)]
pub struct SourceFacts {
    /// Size of a page.
    pub page: PageSize,
    /// Output address of each page.
    pub oas: Vec<u64>,
    /// Whether it may be written to.
    pub is_writable: bool,
    /// Whether its pages stay where they are.
    pub is_firm: bool,
    /// Which budget is charged.
    pub budget: Option<usize>,
}

impl SourceFacts {
    /// Returns the number of bytes.
    pub const fn len(&self) -> u64 {
        self.oas.len() as u64 * self.page.bytes()
    }

    /// Returns whether there is none.
    pub const fn is_empty(&self) -> bool {
        self.oas.is_empty()
    }

    /// Returns the output address of a byte.
    pub fn oa_of(&self, byte: u64) -> u64 {
        self.oas[(byte >> self.page.lg2()) as usize] + (byte & self.page.offset_mask())
    }

    /// Returns the places at which `offset .. offset + len` begins, ends, and is no longer consecutive
    /// in output addresses, or at every page.
    pub fn cuts(&self, offset: u64, len: u64, page_by_page: bool) -> Vec<u64> {
        let end = offset + len;
        let mut cuts = vec![offset];
        let first = (offset >> self.page.lg2()) + 1;
        for page in first..=(end - 1) >> self.page.lg2() {
            let follows = self.oas[page as usize]
                == self.oas[page as usize - 1].wrapping_add(self.page.bytes());
            if page_by_page || !follows {
                cuts.push(page << self.page.lg2());
            }
        }
        cuts.push(end);
        cuts
    }
}

/// A domain.
#[expect(clippy::struct_excessive_bools, reason = "each is a fact of its own")]
#[derive(Clone, Debug)]
pub struct DomainFacts {
    /// What it translates.
    pub aperture: IovaRange,
    /// Its smallest page.
    pub page: PageSize,
    /// Whether pages must not move.
    pub needs_pinned: bool,
    /// Whether it records writes.
    pub tracks_dirty: bool,
    /// Whether entries in use keep their memory type.
    pub keeps_memory: bool,
    /// Whether new entries say that they were written to.
    pub starts_dirty: bool,
    /// What it grants for each kind of right, by their index.
    pub effective: Vec<Option<Prot>>,
}

/// All of it.
#[derive(Clone, Debug)]
pub struct Facts {
    /// The sources.
    pub sources: Vec<SourceFacts>,
    /// The domains.
    pub domains: Vec<DomainFacts>,
    /// Bytes that each budget allows.
    pub budgets: Vec<u64>,
}
