//! Commands as words.

use super::Command;
use super::fields::{AtcSpan, Msi, PageResponse, Signal, StreamSpan, shareability};
use super::target::{LEAF, NUM, SCALE, TG, TTL, Target};
use crate::command::{CommandError, Narrow, Pasid, attempt, check_reserved, when};
use crate::{Bits, Iova, Oa, bit};

const OPCODE: Bits<7, 0> = Bits;
const GLOBAL: u64 = bit(9);
const SSEC: u64 = bit(10);
const SSV: u64 = bit(11);
const SSID: Bits<31, 12> = Bits;
const SID: Bits<63, 32> = Bits;
const VMID: Bits<47, 32> = Bits;
const ASID: Bits<63, 48> = Bits;
const VA: Bits<63, 12> = Bits;
const IPA: Bits<55, 12> = Bits;
const PREFETCH_SIZE: Bits<4, 0> = Bits;
const PREFETCH_STRIDE: Bits<9, 5> = Bits;
const PREFETCH_NS: u64 = bit(11);
const RANGE: Bits<4, 0> = Bits;
const ATC_SIZE: Bits<5, 0> = Bits;
const GROUP: Bits<8, 0> = Bits;
const PRI_RESP: Bits<13, 12> = Bits;
const RESUME_ACTION: u64 = bit(12);
const RESUME_ABORT: u64 = bit(13);
const STAG: Bits<15, 0> = Bits;
const CS: Bits<13, 12> = Bits;
const MSH: Bits<23, 22> = Bits;
const MSI_ATTR: Bits<27, 24> = Bits;
const MSI_DATA: Bits<63, 32> = Bits;
const MSI_ADDRESS: Bits<55, 2> = Bits;

impl Command {
    /// Returns the words of the command, word 0 first.
    #[inline]
    pub const fn encode(&self) -> [u64; 2] {
        let opcode = self.opcode() as u64;
        let [word0, word1] = match *self {
            Self::PrefetchConfig {
                stream,
                substream,
                is_secure,
            } => [in_stream(stream, is_secure) | ssid(substream), 0],
            Self::PrefetchAddress {
                stream,
                substream,
                is_secure,
                address,
                count_lg2,
                stride_lg2,
                is_non_secure,
            } => [
                in_stream(stream, is_secure) | ssid(substream),
                address.get() & VA.mask()
                    | PREFETCH_SIZE.put(count_lg2.field())
                    | PREFETCH_STRIDE.put(stride_lg2.field())
                    | when(is_non_secure, PREFETCH_NS),
            ],
            Self::CfgiSte {
                stream,
                is_secure,
                is_leaf,
            } => [in_stream(stream, is_secure), when(is_leaf, LEAF)],
            Self::CfgiSteRange {
                stream,
                span,
                is_secure,
            } => [in_stream(stream, is_secure), RANGE.put(span.field())],
            Self::CfgiCd {
                stream,
                substream,
                is_secure,
                is_leaf,
            } => [
                in_stream(stream, is_secure) | SSID.put(substream.get() as u64),
                when(is_leaf, LEAF),
            ],
            Self::CfgiCdAll { stream, is_secure } | Self::StallTerm { stream, is_secure } => {
                [in_stream(stream, is_secure), 0]
            }
            Self::AtcInv {
                stream,
                substream,
                is_global,
                address,
                span,
            } => [
                SID.put(stream as u64) | ssid(substream) | when(is_global, GLOBAL),
                address.get() & VA.mask() | ATC_SIZE.put(span.pages_lg2() as u64),
            ],
            Self::PriResp {
                stream,
                substream,
                group,
                response,
            } => [
                SID.put(stream as u64) | ssid(substream),
                GROUP.put(group.field()) | PRI_RESP.put(response as u64),
            ],
            Self::Resume {
                stream,
                is_secure,
                stag,
                is_retry,
                is_abort,
            } => [
                in_stream(stream, is_secure)
                    | when(is_retry, RESUME_ACTION)
                    | when(is_abort, RESUME_ABORT),
                STAG.put(stag as u64),
            ],
            Self::Sync { signal, msi } => [
                CS.put(signal as u64)
                    | MSH.put(msi.shareability as u64)
                    | MSI_ATTR.put(msi.memory.field())
                    | MSI_DATA.put(msi.data as u64),
                msi.address.get() & MSI_ADDRESS.mask(),
            ],
            _ => self.encode_by_tag(),
        };
        [word0 | opcode, word1]
    }

    /// Encodes invalidations of one ASID, VMID or exception level, or of all; without the opcode.
    #[inline]
    const fn encode_by_tag(&self) -> [u64; 2] {
        match *self {
            Self::TlbiNhAll { vmid }
            | Self::TlbiS12Vmall { vmid }
            | Self::TlbiSS12Vmall { vmid } => [VMID.put(vmid as u64), 0],
            Self::TlbiNhAsid { vmid, asid } => [tags(vmid, asid), 0],
            Self::TlbiEl2Asid { asid } | Self::TlbiSEl2Asid { asid } => [tags(0, asid), 0],
            Self::TlbiNhVa { vmid, asid, target } => by_address(vmid, asid, target, VA.mask()),
            Self::TlbiNhVaa { vmid, target } => by_address(vmid, 0, target, VA.mask()),
            Self::TlbiEl3Va { target }
            | Self::TlbiEl2Vaa { target }
            | Self::TlbiSEl2Vaa { target } => by_address(0, 0, target, VA.mask()),
            Self::TlbiEl2Va { asid, target } | Self::TlbiSEl2Va { asid, target } => {
                by_address(0, asid, target, VA.mask())
            }
            Self::TlbiS2Ipa { vmid, target } | Self::TlbiSS2Ipa { vmid, target } => {
                by_address(vmid, 0, target, IPA.mask())
            }
            _ => [0, 0],
        }
    }

    /// Decodes the words of a command, word 0 first.
    ///
    /// Accepts what any implementation may accept; [`check`](Self::check) knows one implementation.
    ///
    /// # Errors
    ///
    /// [`CommandError`] if an opcode, a bit or a value is reserved.
    pub const fn decode(words: [u64; 2]) -> Result<Self, CommandError> {
        let opcode = OPCODE.get(words[0]) as u8;
        let Some([mask0, mask1]) = legal_bits(opcode) else {
            return Err(CommandError::UnknownOpcode {
                opcode: opcode as u16,
            });
        };
        attempt!(check_reserved(0, words[0], !(mask0 | OPCODE.mask())));
        attempt!(check_reserved(1, words[1], !mask1));
        match opcode {
            0x10..=0x2f | 0x50..=0x5f => Self::decode_by_tag(opcode, words),
            _ => Self::decode_other(opcode, words),
        }
    }

    /// Decodes invalidations of one ASID, VMID or exception level, whose reserved bits are clear.
    const fn decode_by_tag(opcode: u8, words: [u64; 2]) -> Result<Self, CommandError> {
        let vmid = VMID.get(words[0]) as u16;
        let asid = ASID.get(words[0]) as u16;
        let by_va = matches!(opcode, 0x12 | 0x13 | 0x1a | 0x22 | 0x23 | 0x52 | 0x53);
        let mask = if by_va { VA.mask() } else { IPA.mask() };
        // All zero, thus legal, in commands without an address.
        let target = attempt!(Target::decode(words, mask));
        Ok(match opcode {
            0x10 => Self::TlbiNhAll { vmid },
            0x11 => Self::TlbiNhAsid { vmid, asid },
            0x12 => Self::TlbiNhVa { vmid, asid, target },
            0x13 => Self::TlbiNhVaa { vmid, target },
            0x18 => Self::TlbiEl3All,
            0x1a => Self::TlbiEl3Va { target },
            0x20 => Self::TlbiEl2All,
            0x21 => Self::TlbiEl2Asid { asid },
            0x22 => Self::TlbiEl2Va { asid, target },
            0x23 => Self::TlbiEl2Vaa { target },
            0x28 => Self::TlbiS12Vmall { vmid },
            0x2a => Self::TlbiS2Ipa { vmid, target },
            0x50 => Self::TlbiSEl2All,
            0x51 => Self::TlbiSEl2Asid { asid },
            0x52 => Self::TlbiSEl2Va { asid, target },
            0x53 => Self::TlbiSEl2Vaa { target },
            0x58 => Self::TlbiSS12Vmall { vmid },
            0x5a => Self::TlbiSS2Ipa { vmid, target },
            _ => {
                return Err(CommandError::UnknownOpcode {
                    opcode: opcode as u16,
                });
            }
        })
    }

    /// Decodes the other commands, whose reserved bits are clear.
    const fn decode_other(opcode: u8, words: [u64; 2]) -> Result<Self, CommandError> {
        let [word0, word1] = words;
        let stream = SID.get(word0) as u32;
        let is_secure = word0 & SSEC != 0;
        let is_leaf = word1 & LEAF != 0;
        Ok(match opcode {
            0x01 => Self::PrefetchConfig {
                stream,
                substream: attempt!(substream(word0)),
                is_secure,
            },
            0x02 => Self::PrefetchAddress {
                stream,
                substream: attempt!(substream(word0)),
                is_secure,
                address: Iova::new(word1 & VA.mask()),
                count_lg2: Narrow::from_field(PREFETCH_SIZE.get(word1)),
                stride_lg2: Narrow::from_field(PREFETCH_STRIDE.get(word1)),
                is_non_secure: word1 & PREFETCH_NS != 0,
            },
            0x03 => Self::CfgiSte {
                stream,
                is_secure,
                is_leaf,
            },
            0x04 => Self::CfgiSteRange {
                stream,
                span: StreamSpan::from_field(RANGE.get(word1)),
                is_secure,
            },
            0x05 => Self::CfgiCd {
                stream,
                substream: Pasid::from_field(SSID.get(word0)),
                is_secure,
                is_leaf,
            },
            0x06 => Self::CfgiCdAll { stream, is_secure },
            0x30 => Self::TlbiNsnhAll,
            0x40 => Self::AtcInv {
                stream,
                substream: attempt!(substream(word0)),
                is_global: word0 & GLOBAL != 0,
                address: Iova::new(word1 & VA.mask()),
                span: attempt!(atc_span(ATC_SIZE.get(word1))),
            },
            0x41 => Self::PriResp {
                stream,
                substream: attempt!(substream(word0)),
                group: Narrow::from_field(GROUP.get(word1)),
                response: attempt!(PageResponse::from_field(PRI_RESP.get(word1))),
            },
            0x44 => Self::Resume {
                stream,
                is_secure,
                stag: STAG.get(word1) as u16,
                is_retry: word0 & RESUME_ACTION != 0,
                is_abort: word0 & RESUME_ABORT != 0,
            },
            0x45 => Self::StallTerm { stream, is_secure },
            0x46 => Self::Sync {
                signal: attempt!(Signal::from_field(CS.get(word0))),
                msi: Msi {
                    address: Oa::new(word1 & MSI_ADDRESS.mask()),
                    data: MSI_DATA.get(word0) as u32,
                    shareability: attempt!(shareability(MSH.get(word0))),
                    memory: Narrow::from_field(MSI_ATTR.get(word0)),
                },
            },
            0x60 => Self::TlbiSnhAll,
            _ => {
                return Err(CommandError::UnknownOpcode {
                    opcode: opcode as u16,
                });
            }
        })
    }
}

/// Returns the bits of both words that commands with `opcode` have, the opcode itself left out.
const fn legal_bits(opcode: u8) -> Option<[u64; 2]> {
    const STREAM: u64 = SID.mask() | SSEC;
    const SUBSTREAM: u64 = SSV | SSID.mask();
    const NUMBER: u64 = NUM.mask() | SCALE.mask();
    const HINT: u64 = TG.mask() | TTL.mask() | LEAF;
    Some(match opcode {
        0x01 => [STREAM | SUBSTREAM, 0],
        0x02 => [
            STREAM | SUBSTREAM,
            VA.mask() | PREFETCH_SIZE.mask() | PREFETCH_STRIDE.mask() | PREFETCH_NS,
        ],
        0x03 => [STREAM, LEAF],
        0x04 => [STREAM, RANGE.mask()],
        0x05 => [STREAM | SSID.mask(), LEAF],
        0x06 | 0x45 => [STREAM, 0],
        0x10 | 0x28 | 0x58 => [VMID.mask(), 0],
        0x11 => [VMID.mask() | ASID.mask(), 0],
        0x12 => [VMID.mask() | ASID.mask() | NUMBER, VA.mask() | HINT],
        0x13 => [VMID.mask() | NUMBER, VA.mask() | HINT],
        0x18 | 0x20 | 0x30 | 0x50 | 0x60 => [0, 0],
        0x1a | 0x23 | 0x53 => [NUMBER, VA.mask() | HINT],
        0x21 | 0x51 => [ASID.mask(), 0],
        0x22 | 0x52 => [ASID.mask() | NUMBER, VA.mask() | HINT],
        0x2a | 0x5a => [VMID.mask() | NUMBER, IPA.mask() | HINT],
        0x40 => [SID.mask() | SUBSTREAM | GLOBAL, VA.mask() | ATC_SIZE.mask()],
        0x41 => [SID.mask() | SUBSTREAM, GROUP.mask() | PRI_RESP.mask()],
        0x44 => [STREAM | RESUME_ACTION | RESUME_ABORT, STAG.mask()],
        0x46 => [
            CS.mask() | MSH.mask() | MSI_ATTR.mask() | MSI_DATA.mask(),
            MSI_ADDRESS.mask(),
        ],
        _ => return None,
    })
}

const fn in_stream(stream: u32, is_secure: bool) -> u64 {
    SID.put(stream as u64) | when(is_secure, SSEC)
}

const fn tags(vmid: u16, asid: u16) -> u64 {
    VMID.put(vmid as u64) | ASID.put(asid as u64)
}

const fn by_address(vmid: u16, asid: u16, target: Target, address_mask: u64) -> [u64; 2] {
    [
        tags(vmid, asid) | target.word0(),
        target.word1(address_mask),
    ]
}

const fn ssid(substream: Option<Pasid>) -> u64 {
    match substream {
        Some(pasid) => SSV | SSID.put(pasid.get() as u64),
        None => 0,
    }
}

/// Decodes SSV and `SubstreamID`, which has no meaning where SSV is clear.
const fn substream(word0: u64) -> Result<Option<Pasid>, CommandError> {
    let value = SSID.get(word0);
    if word0 & SSV != 0 {
        return Ok(Some(Pasid::from_field(value)));
    }
    match value {
        0 => Ok(None),
        _ => Err(CommandError::ReservedValue {
            field: "SubstreamID",
            value,
        }),
    }
}

const fn atc_span(value: u64) -> Result<AtcSpan, CommandError> {
    match AtcSpan::new(value as u8) {
        Some(span) => Ok(span),
        None => Err(CommandError::ReservedValue {
            field: "Size",
            value,
        }),
    }
}
