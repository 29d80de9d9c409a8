//! What an entry of a guest's PASID table says, as far as a guest may say it (VT-d specification, revision 4.1,
//! section 9.6).

use iopt_formats::context::vtd::{
    ContextError, MemoryTypes, PasidEntry, Stage as Tables, Translation,
};
use iopt_formats::vtd::{FirstStage, SecondStage};

use crate::device::vtd::Features;

/// What a guest makes of the requests of a device, or of those with a PASID.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum GuestEntry {
    /// They are blocked: the entry is not present.
    Blocked,
    /// They have addresses of the guest's memory (`PGTT` 4).
    PassThrough,
    /// A first stage translates them to such addresses (`PGTT` 1).
    First(GuestFirst),
}

/// A guest's first stage.
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is an independent bit of the entry"
)]
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct GuestFirst {
    /// In the guest's memory.
    tables: Tables<FirstStage>,
    /// `SRE`.
    has_supervisor_requests: bool,
    /// `WPE`.
    has_write_protect: bool,
    /// `EAFE`.
    has_extended_accessed: bool,
    /// `PGSNP`.
    has_page_snoop: bool,
}

/// Why an entry of a guest's PASID table is refused.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum GuestEntryError {
    /// It is none: reserved bits or values.
    #[error(transparent)]
    Context(#[from] ContextError),
    /// The guest has no second stage (`PGTT` 2 and 3).
    #[error("a guest has no second stage of its own")]
    SecondStage,
    /// Memory types are the host's to choose (`CD`, `EMTE`, `PAT`).
    #[error("a guest does not choose memory types")]
    MemoryTypes,
    /// The guest has as many domains as it may have.
    #[error("the guest has too many domains")]
    TooMany,
    /// The hardware has no such first stage.
    #[error("the hardware does not support {what}")]
    Unsupported {
        /// What.
        what: &'static str,
    },
}

impl GuestEntry {
    /// Decodes the eight words of an entry. Its domain ID, its address width, `FPD` and `PWSNP` say nothing to the
    /// host, which has its own.
    ///
    /// # Errors
    ///
    /// [`GuestEntryError`], but for what hardware lacks.
    pub fn decode(words: [u64; 8]) -> Result<Self, GuestEntryError> {
        let entry = PasidEntry::decode(words)?;
        let tables = match entry.translation() {
            Translation::Blocked => return Ok(Self::Blocked),
            Translation::PassThrough => return Ok(Self::PassThrough),
            Translation::First(tables) => tables,
            Translation::Second(_) | Translation::Nested { .. } => {
                return Err(GuestEntryError::SecondStage);
            }
        };
        if entry.memory_types() != MemoryTypes::default() {
            return Err(GuestEntryError::MemoryTypes);
        }
        Ok(Self::First(GuestFirst {
            tables,
            has_supervisor_requests: entry.has_supervisor_requests(),
            has_write_protect: entry.has_write_protect(),
            has_extended_accessed: entry.has_extended_accessed(),
            has_page_snoop: entry.has_page_snoop(),
        }))
    }
}

impl GuestFirst {
    /// Checks what hardware has to have.
    pub(super) fn check(&self, features: &Features) -> Result<(), GuestEntryError> {
        let has_five_levels = self.tables.format().levels() == 5;
        let needs = [
            (true, features.has_first_stage, "first stages"),
            (
                has_five_levels,
                features.has_five_first_levels,
                "first stages of five levels (FSPM)",
            ),
            (
                self.has_supervisor_requests,
                features.has_supervisor_requests,
                "supervisor requests (SRE)",
            ),
            (
                self.has_extended_accessed,
                features.has_extended_accessed,
                "the extended accessed flag (EAFE)",
            ),
            (
                self.has_page_snoop,
                features.has_snoop_control,
                "accesses that are made to snoop (PGSNP)",
            ),
        ];
        match needs
            .into_iter()
            .find(|&(is_needed, has, _)| is_needed && !has)
        {
            Some((_, _, what)) => Err(GuestEntryError::Unsupported { what }),
            None => Ok(()),
        }
    }

    /// Returns the host's entry, without what all of its entries say.
    pub(super) const fn entry(&self, domain_id: u16, second: Tables<SecondStage>) -> PasidEntry {
        let mut entry = PasidEntry::nested(domain_id, self.tables, second);
        if self.has_supervisor_requests {
            entry = entry.with_supervisor_requests();
        }
        if self.has_write_protect {
            entry = entry.with_write_protect();
        }
        if self.has_extended_accessed {
            entry = entry.with_extended_accessed();
        }
        if self.has_page_snoop {
            entry = entry.with_page_snoop();
        }
        entry
    }
}
