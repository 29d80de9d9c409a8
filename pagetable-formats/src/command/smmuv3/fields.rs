//! What fields of commands and of the queue's registers mean.

use crate::armv8::Shareability;
use crate::command::{CommandError, Narrow, Span};
use crate::{Bits, Oa};

/// Number of low bits in which the streams of an aligned group differ: 1 to 32 (Range, which is one less).
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct StreamSpan(Narrow<5>);

impl StreamSpan {
    /// All streams: with it the command is called `CMD_CFGI_ALL`.
    pub const ALL: Self = Self(Narrow::MAX);

    /// Returns the span of `2^streams_lg2` streams, or `None` if that is not 1 to 32.
    pub const fn new(streams_lg2: u8) -> Option<Self> {
        match streams_lg2 {
            1..=32 => Some(Self(Narrow::from_field(streams_lg2 as u64 - 1))),
            _ => None,
        }
    }

    /// Returns the base-2 logarithm of the number of streams, 1 to 32.
    pub const fn streams_lg2(self) -> u8 {
        self.0.get() as u8 + 1
    }

    pub(super) const fn from_field(range: u64) -> Self {
        Self(Narrow::from_field(range))
    }

    pub(super) const fn field(self) -> u64 {
        self.0.field()
    }
}

/// The power of two of 4 KiB units that an ATC invalidation spans: 0 to 52 (Size).
///
/// ```
/// use iopt_formats::command::Span;
/// use iopt_formats::command::smmuv3::AtcSpan;
/// use iopt_formats::{Iova, IovaRange};
///
/// // The pages 7 to 10 lie in the sixteen from 0 on.
/// let range = IovaRange::new(Iova::new(0x7000), Iova::new(0xafff)).unwrap();
/// assert_eq!(AtcSpan::of(Span::covering(range)).pages_lg2(), 4);
/// ```
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct AtcSpan(u8);

impl AtcSpan {
    /// The whole address space.
    pub const ALL: Self = Self(52);

    /// Returns the span of `2^pages_lg2` units of 4 KiB, or `None` if that is above 52.
    pub const fn new(pages_lg2: u8) -> Option<Self> {
        if pages_lg2 <= Self::ALL.0 {
            Some(Self(pages_lg2))
        } else {
            None
        }
    }

    /// Returns how much `block` is. Unlike a block, a span has no place: the hardware aligns the address of the
    /// command, whatever stands in the bits below.
    pub const fn of(block: Span) -> Self {
        Self(block.order())
    }

    /// Returns the base-2 logarithm of the number of 4 KiB units, 0 to 52.
    pub const fn pages_lg2(self) -> u8 {
        self.0
    }
}

/// How a group of page requests ended (Resp of `CMD_PRI_RESP`).
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum PageResponse {
    /// An error that paging cannot mend, and the device sends no more requests (`ResponseFailure`).
    Failure = 0,
    /// At least one page could not be paged in (`InvalidRequest`).
    Invalid = 1,
    /// All pages are there.
    Success = 2,
}

impl PageResponse {
    pub(super) const fn from_field(value: u64) -> Result<Self, CommandError> {
        match value {
            0 => Ok(Self::Failure),
            1 => Ok(Self::Invalid),
            2 => Ok(Self::Success),
            _ => Err(CommandError::ReservedValue {
                field: "Resp",
                value,
            }),
        }
    }
}

/// How the completion of a `CMD_SYNC` is signalled (CS).
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
pub enum Signal {
    /// Not at all: the consumer index passes the command.
    #[default]
    None = 0,
    /// By an interrupt: the store that [`Msi`] says, a wire, or both.
    Interrupt = 1,
    /// By an event, as the instruction SEV sends one.
    Event = 2,
}

impl Signal {
    pub(super) const fn from_field(value: u64) -> Result<Self, CommandError> {
        match value {
            0 => Ok(Self::None),
            1 => Ok(Self::Interrupt),
            2 => Ok(Self::Event),
            _ => Err(CommandError::ReservedValue { field: "CS", value }),
        }
    }
}

/// The 32-bit store that signals a `CMD_SYNC`; ignored unless the signal is an interrupt.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Msi {
    /// Where to (`MSIAddress`), 0 for no store; bits below 2 and above 55 are dropped.
    pub address: Oa,
    /// What (`MSIData`).
    pub data: u32,
    /// The shareability of the store (MSH).
    pub shareability: Shareability,
    /// The memory type of the store (`MSIAttr`, encoded as `STE.MemAttr`); 0 is Device-nGnRnE.
    pub memory: Narrow<4>,
}

impl Msi {
    /// No store.
    pub const NONE: Self = Self {
        address: Oa::new(0),
        data: 0,
        shareability: Shareability::None,
        memory: Narrow::MIN,
    };
}

pub(super) const fn shareability(value: u64) -> Result<Shareability, CommandError> {
    match value {
        1 => Err(CommandError::ReservedValue {
            field: "MSH",
            value,
        }),
        _ => Ok(Shareability::from_bits(value)),
    }
}

/// Why hardware stopped consuming commands: `SMMU_CMDQ_CONS.ERR` (IHI 0070, section 7.1).
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum ConsumerError {
    /// `CERROR_ILL`: the command at the consumer index is illegal. Software replaces it before it goes on.
    Illegal,
    /// `CERROR_ABT`: the command could not be read.
    Abort,
    /// `CERROR_ATC_INV_SYNC`: a device did not answer an ATC invalidation before the `CMD_SYNC` at the
    /// consumer index.
    AtcTimeout,
    /// A code that the specification reserves.
    Reserved(Narrow<7>),
}

impl ConsumerError {
    const ERR: Bits<30, 24> = Bits;

    /// Decodes the register; `None` is no error. It says something only while `SMMU_GERROR.CMDQ_ERR`
    /// differs from `SMMU_GERRORN.CMDQ_ERR`.
    pub const fn from_register(cons: u32) -> Option<Self> {
        match Self::ERR.get(cons as u64) {
            0 => None,
            1 => Some(Self::Illegal),
            2 => Some(Self::Abort),
            3 => Some(Self::AtcTimeout),
            code => Some(Self::Reserved(Narrow::from_field(code))),
        }
    }

    /// Returns the register's field, in place.
    pub const fn to_register(self) -> u32 {
        let code = match self {
            Self::Illegal => 1,
            Self::Abort => 2,
            Self::AtcTimeout => 3,
            Self::Reserved(code) => code.field(),
        };
        Self::ERR.put(code) as u32
    }
}
