//! The configuration space.

use super::{range, to_bytes, to_words};
use crate::command::CommandError;
use crate::{Bits, IovaRange, PageSizes};

/// Feature bits.
pub mod feature {
    /// [`input_range`](super::Config::input_range) counts.
    pub const INPUT_RANGE: u32 = 0;
    /// [`first_domain`](super::Config::first_domain) and [`last_domain`](super::Config::last_domain) count.
    pub const DOMAIN_RANGE: u32 = 1;
    /// The device has `MAP` and `UNMAP`.
    pub const MAP_UNMAP: u32 = 2;
    /// Endpoints without a domain are not translated, rather than blocked. Superseded by `BYPASS_CONFIG`.
    pub const BYPASS: u32 = 3;
    /// The device has `PROBE`.
    pub const PROBE: u32 = 4;
    /// A `MAP` may say that registers are mapped.
    pub const MMIO: u32 = 5;
    /// [`is_bypass`](super::Config::is_bypass) counts, and may be written; an `ATTACH` may ask for bypass.
    pub const BYPASS_CONFIG: u32 = 6;
}

/// The configuration space. Some fields count only with a [`feature`].
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Config {
    /// `page_size_mask`: sizes that mappings are best made of. The smallest one is the granule, of which
    /// addresses and lengths are multiples. Not empty.
    pub page_sizes: PageSizes,
    /// Addresses that can be mapped; all without the feature.
    pub input_range: IovaRange,
    /// The smallest number of a domain.
    pub first_domain: u32,
    /// The largest number of a domain; without the feature, all 32 bits.
    pub last_domain: u32,
    /// Bytes of the properties in the answer to a probe.
    pub probe_size: u32,
    /// Whether endpoints without a domain are not translated, rather than blocked.
    pub is_bypass: bool,
}

const LOW: Bits<31, 0> = Bits;
const HIGH: Bits<63, 32> = Bits;
const BYPASS: Bits<39, 32> = Bits;

impl Config {
    /// Bytes of the configuration space.
    pub const LEN: usize = 40;

    /// Returns the bytes of the configuration space.
    pub fn encode(&self) -> [u8; Self::LEN] {
        to_bytes([
            self.page_sizes.bits(),
            self.input_range.start().get(),
            self.input_range.last().get(),
            LOW.put(self.first_domain.into()) | HIGH.put(self.last_domain.into()),
            LOW.put(self.probe_size.into()) | BYPASS.put(self.is_bypass.into()),
        ])
    }

    /// Decodes the bytes of the configuration space; a driver ignores what is reserved in it.
    ///
    /// # Errors
    ///
    /// [`CommandError::ReservedValue`] if there is no page size, if the input or the domain range ends
    /// before it starts, or if `bypass` is neither 0 nor 1.
    pub fn decode(bytes: &[u8; Self::LEN]) -> Result<Self, CommandError> {
        let [page_sizes, start, end, domains, last] = to_words(bytes);
        let reserved = |field, value| Err(CommandError::ReservedValue { field, value });
        if page_sizes == 0 {
            return reserved("page_size_mask", 0);
        }
        if HIGH.get(domains) < LOW.get(domains) {
            return reserved("domain_range.end", HIGH.get(domains));
        }
        if BYPASS.get(last) > 1 {
            return reserved("bypass", BYPASS.get(last));
        }
        Ok(Self {
            page_sizes: PageSizes::from_bits(page_sizes),
            input_range: range("input_range.end", start, end)?,
            first_domain: LOW.get(domains) as u32,
            last_domain: HIGH.get(domains) as u32,
            probe_size: LOW.get(last) as u32,
            is_bypass: BYPASS.get(last) == 1,
        })
    }
}
