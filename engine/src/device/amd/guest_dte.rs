//! What a guest's device table entry says, as far as a guest may say it (document 48882, section 2.2.2.1).

use iopt_formats::context::amd::{Dte, DteError, GuestTables, Translation};
use iopt_formats::{Bits, Rights, bit};

use crate::device::amd::Features;

/// PPR and GPRP.
const PAGE_REQUESTS: u64 = bit(52) | bit(53);
/// `IoCtl`, SD, EX and `SysMgt`.
const HOST_CONTROL: u64 = Bits::<36, 35>::mask(Bits) | Bits::<41, 38>::mask(Bits);
/// Bits of words 0, 1 and 3 that the host alone decides about. Word 2 is of interrupts but for `GuestPagingMode`.
const FORBIDDEN: [(usize, u64); 3] = [(0, PAGE_REQUESTS), (1, HOST_CONTROL), (3, u64::MAX)];

/// What a guest makes of the requests of a device.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum GuestDte {
    /// They are blocked: V without TV, or neither IR nor IW.
    Blocked,
    /// They have addresses of the guest's memory: not V, or `Mode` 0 without GV.
    PassThrough {
        /// The guest's domain ID.
        domain_id: u16,
        /// What they may do of reading and writing.
        rights: Rights,
        /// ATS requests are answered (the field I).
        has_ats: bool,
    },
    /// Version 2 tables translate them to such addresses.
    Tables {
        /// The guest's domain ID.
        domain_id: u16,
        /// The guest CR3 table, in the guest's memory.
        tables: GuestTables,
        /// ATS requests are answered (the field I).
        has_ats: bool,
    },
}

/// Why a guest's device table entry is refused.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum GuestDteError {
    /// Bits are set that the host alone decides about.
    #[error("bits {bits:#x} of word {word} are not a guest's to set")]
    Forbidden {
        /// Number of the word.
        word: usize,
        /// The bits, in place.
        bits: u64,
    },
    /// It is none: reserved bits or values.
    #[error(transparent)]
    Illegal(#[from] DteError),
    /// The guest has no version 1 tables (`Mode` 1 to 6).
    #[error("a guest has no version 1 tables of its own")]
    HostTables,
    /// The guest has as many domains as it may have.
    #[error("the guest has too many domains")]
    TooMany,
    /// The hardware has guest CR3 tables of fewer levels (GLX).
    #[error("the hardware has guest CR3 tables of {limit} levels, not {levels}")]
    Gcr3Levels {
        /// How many there shall be.
        levels: u8,
        /// How many there are at most.
        limit: u8,
    },
    /// The hardware has version 2 tables of fewer levels (`GuestPagingMode`).
    #[error("the hardware has version 2 tables of {limit} levels, not {levels}")]
    PagingLevels {
        /// How many there shall be.
        levels: u8,
        /// How many there are at most.
        limit: u8,
    },
}

impl GuestDte {
    /// Decodes the four words of an entry. What it says of interrupts is for whoever remaps them; HAD, the host's
    /// root, SE, SA and Cache say nothing to the host, which has its own.
    ///
    /// # Errors
    ///
    /// [`GuestDteError`], but for what hardware lacks.
    pub fn decode(words: [u64; 4]) -> Result<Self, GuestDteError> {
        let entry = Dte::new(words);
        if !entry.is_valid() {
            return Ok(Self::PassThrough {
                domain_id: 0,
                rights: Rights::ALL,
                has_ats: false,
            });
        }
        for (word, forbidden) in FORBIDDEN {
            let bits = words[word] & forbidden;
            if bits != 0 {
                return Err(GuestDteError::Forbidden { word, bits });
            }
        }
        let (domain_id, has_ats) = (entry.domain_id(), entry.has_ats());
        Ok(match entry.translation()? {
            Translation::Blocked => Self::Blocked,
            Translation::PassThrough { rights } => Self::PassThrough {
                domain_id,
                rights,
                has_ats,
            },
            Translation::Guest(tables) if tables.host().is_none() => Self::Tables {
                domain_id,
                tables,
                has_ats,
            },
            Translation::Host(_) | Translation::Guest(_) => return Err(GuestDteError::HostTables),
        })
    }

    /// Checks what hardware has to have.
    pub(super) fn check(&self, features: &Features) -> Result<(), GuestDteError> {
        let Self::Tables { tables, .. } = self else {
            return Ok(());
        };
        let gcr3 = tables.gcr3();
        let (levels, limit) = (gcr3.levels(), features.gcr3_levels);
        if levels > limit {
            return Err(GuestDteError::Gcr3Levels { levels, limit });
        }
        let (levels, limit) = (gcr3.paging_levels(), features.guest_levels);
        if levels > limit {
            return Err(GuestDteError::PagingLevels { levels, limit });
        }
        Ok(())
    }
}
