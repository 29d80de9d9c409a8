//! Commands of the SMMUv3.
//!
//! Source: *Arm System Memory Management Unit Architecture Specification, SMMU architecture version 3*
//! (IHI 0070), chapter 4. A command is 16 bytes.
//!
//! ```
//! use iopt_formats::Iova;
//! use iopt_formats::command::smmuv3::{Command, Target};
//!
//! let command = Command::TlbiNhVa {
//!     vmid: 0,
//!     asid: 5,
//!     target: Target::single(Iova::new(0x1234_5000), true),
//! };
//! assert_eq!(command.encode(), [0x0005_0000_0000_0012, 0x1234_5001]);
//! assert_eq!(Command::decode(command.encode()), Ok(command));
//! ```

mod codec;
mod fields;
mod target;

#[cfg(test)]
mod tests;

pub use self::fields::{AtcSpan, ConsumerError, Msi, PageResponse, Signal, StreamSpan};
pub use self::target::{Range, Target};

use crate::Iova;
use crate::command::{CommandError, Narrow, Pasid};

/// A command. Streams are named by their `StreamID`, substreams by their `SubstreamID`.
///
/// The translation regimes are those of the queue's security state, if nothing else is said. A command that
/// the implementation lacks, or that is not for the queue's security state, is illegal there.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Command {
    /// `CMD_PREFETCH_CONFIG`: asks for the configuration of a stream to be cached (4.2.1).
    PrefetchConfig {
        /// The stream.
        stream: u32,
        /// Its substream, if it has some.
        substream: Option<Pasid>,
        /// The stream is secure (`SSec`).
        is_secure: bool,
    },
    /// `CMD_PREFETCH_ADDR`: asks for configuration and translations to be cached (4.2.2).
    PrefetchAddress {
        /// The stream.
        stream: u32,
        /// Its substream, if it has some.
        substream: Option<Pasid>,
        /// The stream is secure (`SSec`).
        is_secure: bool,
        /// The first address; bits below 12 are dropped.
        address: Iova,
        /// The base-2 logarithm of the number of translations (Size).
        count_lg2: Narrow<5>,
        /// The base-2 logarithm of the distance between them in units of 4 KiB (Stride).
        stride_lg2: Narrow<5>,
        /// The input of the secure stage 2 is a non-secure IPA (NS).
        is_non_secure: bool,
    },
    /// `CMD_CFGI_STE`: drops an STE and the CDs found through it (4.3.1).
    CfgiSte {
        /// The stream.
        stream: u32,
        /// The stream is secure (`SSec`).
        is_secure: bool,
        /// The L1 descriptors on the way stay (Leaf).
        is_leaf: bool,
    },
    /// `CMD_CFGI_STE_RANGE`: drops the STEs of an aligned group of streams (4.3.2). With
    /// [`StreamSpan::ALL`] its name is `CMD_CFGI_ALL`.
    CfgiSteRange {
        /// A stream of the group.
        stream: u32,
        /// The size of the group.
        span: StreamSpan,
        /// The streams are secure (`SSec`).
        is_secure: bool,
    },
    /// `CMD_CFGI_CD`: drops a CD (4.3.3).
    CfgiCd {
        /// The stream.
        stream: u32,
        /// Index of the CD, 0 if the stream has but one.
        substream: Pasid,
        /// The stream is secure (`SSec`).
        is_secure: bool,
        /// The L1 descriptor on the way stays (Leaf).
        is_leaf: bool,
    },
    /// `CMD_CFGI_CD_ALL`: drops all CDs of a stream (4.3.4).
    CfgiCdAll {
        /// The stream.
        stream: u32,
        /// The stream is secure (`SSec`).
        is_secure: bool,
    },
    /// `CMD_TLBI_NH_ALL`: all stage 1 entries of a VM at EL1, global ones included (4.4.2.1).
    TlbiNhAll {
        /// The VM.
        vmid: u16,
    },
    /// `CMD_TLBI_NH_ASID`: all entries of an address space but global ones (4.4.2.2).
    TlbiNhAsid {
        /// The VM.
        vmid: u16,
        /// The address space.
        asid: u16,
    },
    /// `CMD_TLBI_NH_VA`: entries of an address space, and global ones, by address (4.4.2.4).
    TlbiNhVa {
        /// The VM.
        vmid: u16,
        /// The address space.
        asid: u16,
        /// Which addresses.
        target: Target,
    },
    /// `CMD_TLBI_NH_VAA`: entries of all address spaces of a VM by address (4.4.2.3).
    TlbiNhVaa {
        /// The VM.
        vmid: u16,
        /// Which addresses.
        target: Target,
    },
    /// `CMD_TLBI_EL3_ALL`: all entries of EL3 (4.4.2.5). Only in the secure queue.
    TlbiEl3All,
    /// `CMD_TLBI_EL3_VA`: entries of EL3 by address (4.4.2.6). Only in the secure queue.
    TlbiEl3Va {
        /// Which addresses.
        target: Target,
    },
    /// `CMD_TLBI_EL2_ALL`: all entries of EL2 (4.4.2.7).
    TlbiEl2All,
    /// `CMD_TLBI_EL2_ASID`: entries of EL2-E2H of an address space but global ones (4.4.2.10).
    TlbiEl2Asid {
        /// The address space.
        asid: u16,
    },
    /// `CMD_TLBI_EL2_VA`: entries of EL2 or EL2-E2H by address (4.4.2.8).
    TlbiEl2Va {
        /// The address space; ignored unless `SMMU_CR2.E2H` is set.
        asid: u16,
        /// Which addresses.
        target: Target,
    },
    /// `CMD_TLBI_EL2_VAA`: entries of EL2 or EL2-E2H of all address spaces by address (4.4.2.9).
    TlbiEl2Vaa {
        /// Which addresses.
        target: Target,
    },
    /// `CMD_TLBI_S12_VMALL`: all entries of a VM, of all stages (4.4.3.2).
    TlbiS12Vmall {
        /// The VM.
        vmid: u16,
    },
    /// `CMD_TLBI_S2_IPA`: stage 2 entries by IPA (4.4.3.1). Entries that combine both stages may stay.
    TlbiS2Ipa {
        /// The VM.
        vmid: u16,
        /// Which IPAs.
        target: Target,
    },
    /// `CMD_TLBI_NSNH_ALL`: all non-secure entries but those of EL2 (4.4.4.1).
    TlbiNsnhAll,
    /// `CMD_ATC_INV`: what a device has cached (4.5.1).
    AtcInv {
        /// The device.
        stream: u32,
        /// The PASID of the request; `None` sends one without, which reaches what was asked for with any.
        substream: Option<Pasid>,
        /// Translations of all PASIDs are meant (Global); ignored without a PASID.
        is_global: bool,
        /// An address in the span; bits below 12 are dropped.
        address: Iova,
        /// How much.
        span: AtcSpan,
    },
    /// `CMD_PRI_RESP`: answers a group of page requests (4.5.2).
    PriResp {
        /// The device.
        stream: u32,
        /// The PASID of the requests, if they had one.
        substream: Option<Pasid>,
        /// The group (`PRGIndex`).
        group: Narrow<9>,
        /// The answer.
        response: PageResponse,
    },
    /// `CMD_RESUME`: ends the stall of a transaction (4.7.1).
    Resume {
        /// The stream of the transaction.
        stream: u32,
        /// The stream is secure (`SSec`).
        is_secure: bool,
        /// The transaction, as the event record names it.
        stag: u16,
        /// It is retried (Action), else ended.
        is_retry: bool,
        /// It ends with an abort (Abort), else reads as zero and ignores writes; ignored for a retry.
        is_abort: bool,
    },
    /// `CMD_STALL_TERM`: aborts the stalled transactions of a stream (4.7.2).
    StallTerm {
        /// The stream.
        stream: u32,
        /// The stream is secure (`SSec`).
        is_secure: bool,
    },
    /// `CMD_SYNC`: waits for the commands before it (4.7.3).
    Sync {
        /// How its completion is signalled.
        signal: Signal,
        /// The store of an interrupt.
        msi: Msi,
    },
    /// `CMD_TLBI_S_EL2_ALL`: all entries of secure EL2 (4.4.2.11). Only in the secure queue.
    TlbiSEl2All,
    /// `CMD_TLBI_S_EL2_ASID`: as [`TlbiEl2Asid`](Self::TlbiEl2Asid), of secure EL2 (4.4.2.14).
    TlbiSEl2Asid {
        /// The address space.
        asid: u16,
    },
    /// `CMD_TLBI_S_EL2_VA`: as [`TlbiEl2Va`](Self::TlbiEl2Va), of secure EL2 (4.4.2.12).
    TlbiSEl2Va {
        /// The address space; ignored unless `SMMU_S_CR2.E2H` is set.
        asid: u16,
        /// Which addresses.
        target: Target,
    },
    /// `CMD_TLBI_S_EL2_VAA`: as [`TlbiEl2Vaa`](Self::TlbiEl2Vaa), of secure EL2 (4.4.2.13).
    TlbiSEl2Vaa {
        /// Which addresses.
        target: Target,
    },
    /// `CMD_TLBI_S_S12_VMALL`: all secure entries of a VM, of all stages (4.4.3.4).
    TlbiSS12Vmall {
        /// The VM.
        vmid: u16,
    },
    /// `CMD_TLBI_S_S2_IPA`: secure stage 2 entries by secure IPA (4.4.3.3). The form for non-secure IPAs
    /// is not offered.
    TlbiSS2Ipa {
        /// The VM.
        vmid: u16,
        /// Which IPAs.
        target: Target,
    },
    /// `CMD_TLBI_SNH_ALL`: all secure entries but those of EL2 (4.4.4.2).
    TlbiSnhAll,
}

/// What of an implementation decides which commands by address are legal.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
pub struct Features {
    /// `SMMU_IDR3.RIL`: ranges and levels.
    pub has_range_invalidation: bool,
    /// `SMMU_IDR5.DS`: SCALE up to 39 instead of 31, and leaves of level 2 of the 16 KiB granule.
    pub has_wide_descriptors: bool,
}

impl Command {
    /// Refuses a target that an implementation with `features` does not have.
    ///
    /// # Errors
    ///
    /// [`CommandError::ReservedValue`] for a range or a level, for a SCALE above 31, and for level 2 of the
    /// 16 KiB granule.
    pub const fn check(&self, features: Features) -> Result<(), CommandError> {
        let Some(Target {
            range: Some(range), ..
        }) = self.target()
        else {
            return Ok(());
        };
        if !features.has_range_invalidation {
            return Err(CommandError::ReservedValue {
                field: "TG",
                value: target::tg(range.granule()),
            });
        }
        if features.has_wide_descriptors {
            return Ok(());
        }
        range.check_narrow()
    }

    /// Returns what a TLB invalidation by address drops; `None` for other commands.
    pub const fn target(&self) -> Option<Target> {
        match *self {
            Self::TlbiNhVa { target, .. }
            | Self::TlbiNhVaa { target, .. }
            | Self::TlbiEl3Va { target }
            | Self::TlbiEl2Va { target, .. }
            | Self::TlbiEl2Vaa { target }
            | Self::TlbiS2Ipa { target, .. }
            | Self::TlbiSEl2Va { target, .. }
            | Self::TlbiSEl2Vaa { target }
            | Self::TlbiSS2Ipa { target, .. } => Some(target),
            _ => None,
        }
    }

    /// Returns the opcode (4.1.1).
    pub const fn opcode(&self) -> u8 {
        match self {
            Self::PrefetchConfig { .. } => 0x01,
            Self::PrefetchAddress { .. } => 0x02,
            Self::CfgiSte { .. } => 0x03,
            Self::CfgiSteRange { .. } => 0x04,
            Self::CfgiCd { .. } => 0x05,
            Self::CfgiCdAll { .. } => 0x06,
            Self::TlbiNhAll { .. } => 0x10,
            Self::TlbiNhAsid { .. } => 0x11,
            Self::TlbiNhVa { .. } => 0x12,
            Self::TlbiNhVaa { .. } => 0x13,
            Self::TlbiEl3All => 0x18,
            Self::TlbiEl3Va { .. } => 0x1a,
            Self::TlbiEl2All => 0x20,
            Self::TlbiEl2Asid { .. } => 0x21,
            Self::TlbiEl2Va { .. } => 0x22,
            Self::TlbiEl2Vaa { .. } => 0x23,
            Self::TlbiS12Vmall { .. } => 0x28,
            Self::TlbiS2Ipa { .. } => 0x2a,
            Self::TlbiNsnhAll => 0x30,
            Self::AtcInv { .. } => 0x40,
            Self::PriResp { .. } => 0x41,
            Self::Resume { .. } => 0x44,
            Self::StallTerm { .. } => 0x45,
            Self::Sync { .. } => 0x46,
            Self::TlbiSEl2All => 0x50,
            Self::TlbiSEl2Asid { .. } => 0x51,
            Self::TlbiSEl2Va { .. } => 0x52,
            Self::TlbiSEl2Vaa { .. } => 0x53,
            Self::TlbiSS12Vmall { .. } => 0x58,
            Self::TlbiSS2Ipa { .. } => 0x5a,
            Self::TlbiSnhAll => 0x60,
        }
    }
}
