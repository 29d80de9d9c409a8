//! What a guest's device context says, as far as a guest may say it (section "Device-context fields").

use iopt_formats::Bits;
use iopt_formats::context::riscv::{
    DeviceContext, DeviceOptions, FirstStage, Misconfigured, SecondStage,
};

use crate::device::riscv::Features;
use crate::device::riscv::features::BARE;

/// MODE of `msiptp`, word 4.
const MSI_MODE: Bits<63, 60> = Bits;

/// What a guest makes of the requests of a device.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum GuestContext {
    /// They are blocked: the context is not valid.
    Blocked,
    /// A first stage translates them to addresses of the guest's memory, or they have such.
    First(GuestFirst),
}

/// A guest's first stage, which may be none.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct GuestFirst {
    /// In the guest's memory.
    pub(super) first: FirstStage,
    /// `EN_ATS`, DTF, SADE, SBE, SXL and PSCID are the guest's.
    pub(super) options: DeviceOptions,
}

/// Why a guest's device context is refused.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum GuestContextError {
    /// It is none, or none that this hardware has.
    #[error(transparent)]
    Misconfigured(#[from] Misconfigured),
    /// The guest has no second stage (MODE of `iohgatp`).
    #[error("a guest has no second stage of its own")]
    SecondStage,
    /// The guest has no MSI page table (MODE of `msiptp`).
    #[error("a guest has no MSI page table of its own")]
    MsiTable,
    /// It is the host's to say.
    #[error("a guest does not choose {what}")]
    Forbidden {
        /// What.
        what: &'static str,
    },
}

impl GuestContext {
    /// Decodes the eight words of a context for hardware with `features`; the last four are zero in base format. GADE
    /// says nothing to the host, whose second stage it is.
    ///
    /// # Errors
    ///
    /// [`GuestContextError`].
    pub fn decode(words: [u64; 8], features: &Features) -> Result<Self, GuestContextError> {
        let Some(context) = DeviceContext::decode(words, features.registers)? else {
            return Ok(Self::Blocked);
        };
        if context.second_stage() != SecondStage::Bare {
            return Err(GuestContextError::SecondStage);
        }
        // Hardware of base format does not look there.
        if MSI_MODE.get(words[4]) != 0 {
            return Err(GuestContextError::MsiTable);
        }
        let options = context.options();
        let forbidden = [
            (options.has_page_requests, "page requests (EN_PRI)"),
            (options.custom != 0, "what a vendor added to contexts"),
            (
                options.rcid != 0 || options.mcid != 0,
                "resources and their monitors (RCID, MCID)",
            ),
        ];
        if let Some((_, what)) = forbidden.into_iter().find(|&(is_set, _)| is_set) {
            return Err(GuestContextError::Forbidden { what });
        }
        Ok(Self::First(GuestFirst {
            first: context.first_stage(),
            options: DeviceOptions {
                has_second_stage_updates: false,
                ..options
            },
        }))
    }
}

impl GuestFirst {
    /// Returns whether hardware reads memory of the guest to find a translation.
    pub(super) fn has_tables(&self) -> bool {
        self.first != BARE
    }

    /// Checks what hardware has to have, over a second stage of the host.
    pub(super) fn check(
        &self,
        features: &Features,
        second: SecondStage,
    ) -> Result<(), GuestContextError> {
        features.context(self.first, second, self.options)?;
        Ok(())
    }
}
