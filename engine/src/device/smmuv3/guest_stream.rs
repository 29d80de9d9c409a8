//! What a guest's STE says, as far as a guest may say it (IHI 0070, section 5.2).

use iopt_formats::Bits;
use iopt_formats::context::smmuv3::{Ats, CdTableFormat, Ste, SteError, StreamStage1};

use crate::device::smmuv3::Features;

const VALID: u64 = 1;
const CONFIG: Bits<3, 1> = Bits;
/// `V`, `Config`, `S1Fmt`, `S1ContextPtr`, `S1CDMax`.
const WORD_0: u64 = VALID
    | CONFIG.mask()
    | Bits::<5, 4>::mask(Bits)
    | Bits::<55, 6>::mask(Bits)
    | Bits::<63, 59>::mask(Bits);
/// `S1DSS`, `S1CIR`, `S1COR`, `S1CSH`, `S1STALLD`, `EATS`.
const WORD_1: u64 =
    Bits::<7, 0>::mask(Bits) | Bits::<27, 27>::mask(Bits) | Bits::<29, 28>::mask(Bits);

/// What a guest makes of the requests of a stream.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum GuestStream {
    /// They abort: the STE is not valid, or says so (`Config` 0 to 3).
    Abort,
    /// They have addresses of the guest's memory (`Config` 4). ATS requests are refused.
    Bypass,
    /// Stage 1 translates them to such addresses (`Config` 5).
    Stage1 {
        /// Its CDs, which are in the guest's memory.
        stage1: StreamStage1,
        /// ATS requests are answered (`EATS` 1).
        has_ats: bool,
    },
}

/// Why a guest's STE is refused.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum GuestStreamError {
    /// Bits are set that the host alone decides about, or that are reserved.
    #[error("bits {bits:#x} of word {word} are not a guest's to set")]
    Forbidden {
        /// Number of the word.
        word: usize,
        /// The bits, in place.
        bits: u64,
    },
    /// The guest has no stage 2 (`Config` 6 and 7).
    #[error("a guest has no stage 2 of its own")]
    SecondStage,
    /// `EATS` is neither 0 nor 1.
    #[error("a guest has no other ATS than full one")]
    Ats,
    /// A field has a value that is reserved, or the address of the CDs is not aligned to their table.
    #[error(transparent)]
    Undecodable(#[from] SteError),
    /// The hardware has fewer substreams (`S1CDMax`, `C_BAD_STE`).
    #[error("the hardware has 2^{limit_lg2} substreams, not 2^{count_lg2}")]
    Substreams {
        /// The base-2 logarithm of how many there shall be.
        count_lg2: u8,
        /// That of how many there are.
        limit_lg2: u8,
    },
    /// The hardware has no CD tables of two levels (`S1Fmt`, `C_BAD_STE`).
    #[error("the hardware has no CD tables of two levels")]
    TwoLevels,
}

impl GuestStream {
    /// Decodes words 0 and 1 of a guest's STE: `V`, `Config`, `S1Fmt`, `S1ContextPtr`, `S1CDMax`; `S1DSS`, `S1CIR`,
    /// `S1COR`, `S1CSH`, `S1STALLD`, `EATS`. All else is the host's, and has to be zero unless `V` is clear.
    ///
    /// # Errors
    ///
    /// [`GuestStreamError`], but for what hardware lacks.
    pub fn decode(words: [u64; 2]) -> Result<Self, GuestStreamError> {
        if words[0] & VALID == 0 {
            return Ok(Self::Abort);
        }
        for (word, allowed) in [WORD_0, WORD_1].into_iter().enumerate() {
            let bits = words[word] & !allowed;
            if bits != 0 {
                return Err(GuestStreamError::Forbidden { word, bits });
            }
        }
        match CONFIG.get(words[0]) {
            0..=3 => return Ok(Self::Abort),
            4 => return Ok(Self::Bypass),
            5 => {}
            _ => return Err(GuestStreamError::SecondStage),
        }
        let ste = Ste::new([words[0], words[1], 0, 0, 0, 0, 0, 0]);
        let has_ats = match ste.ats() {
            Ats::Refused => false,
            Ats::Full => true,
            Ats::SplitStage | Ats::Checked => return Err(GuestStreamError::Ats),
        };
        match ste.decode()?.get_stage1() {
            Some(stage1) => Ok(Self::Stage1 { stage1, has_ats }),
            None => Ok(Self::Abort),
        }
    }

    /// Checks what hardware has to have.
    pub(super) fn check(&self, features: &Features) -> Result<(), GuestStreamError> {
        let Self::Stage1 { stage1, .. } = self else {
            return Ok(());
        };
        let count_lg2 = stage1.cds.count_lg2();
        let limit_lg2 = features.substream_bits;
        if count_lg2 > limit_lg2 {
            return Err(GuestStreamError::Substreams {
                count_lg2,
                limit_lg2,
            });
        }
        if stage1.cds.format() != CdTableFormat::Linear && !features.has_two_level_cds {
            return Err(GuestStreamError::TwoLevels);
        }
        Ok(())
    }
}
