//! Access Control Services: what keeps requests from leaving a port or a function sideways.

use core::fmt;
use core::ops::BitOr;

/// Controls of the ACS capability, by the bits of its capability and control registers (PCI Express
/// Base Specification 7.7.11.2 and 7.7.11.3).
#[derive(Clone, Copy, Default, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct AcsFlags(u16);

impl AcsFlags {
    /// None of them.
    pub const NONE: Self = Self(0);
    /// Source validation: requests whose ID is not of a bus below the port are refused.
    pub const SV: Self = Self(1);
    /// Translation blocking: requests that claim to be translated are refused.
    pub const TB: Self = Self(1 << 1);
    /// Peer-to-peer request redirect: requests go to the root complex, whomever they are for.
    pub const RR: Self = Self(1 << 2);
    /// Peer-to-peer completion redirect.
    pub const CR: Self = Self(1 << 3);
    /// Upstream forwarding: what was redirected from below is passed on, even if it is for below.
    pub const UF: Self = Self(1 << 4);
    /// Peer-to-peer egress control: a vector says which peers may be reached.
    pub const EC: Self = Self(1 << 5);
    /// Direct translated peer-to-peer: requests that an IOMMU translated need no redirect.
    pub const DT: Self = Self(1 << 6);
    /// What isolation asks of a port that leads downstream: SV, RR, CR and UF.
    pub const ISOLATION: Self = Self(Self::SV.0 | Self::RR.0 | Self::CR.0 | Self::UF.0);

    const NAMES: [&'static str; 7] = ["SV", "TB", "RR", "CR", "UF", "EC", "DT"];

    /// Creates a value from a register; bits without a name here are dropped.
    pub const fn from_bits(bits: u16) -> Self {
        Self(bits & 0x7f)
    }

    /// Returns the bits as the registers have them.
    pub const fn bits(self) -> u16 {
        self.0
    }

    /// Returns `true` if all of `flags` are set.
    pub const fn has(self, flags: Self) -> bool {
        self.0 & flags.0 == flags.0
    }

    /// Returns what both have.
    #[must_use]
    pub const fn and(self, flags: Self) -> Self {
        Self(self.0 & flags.0)
    }

    /// Returns these flags without `flags`.
    #[must_use]
    pub const fn without(self, flags: Self) -> Self {
        Self(self.0 & !flags.0)
    }

    /// Returns the flag with this name of the specification's, in capitals: `SV` to `DT`.
    pub fn from_name(name: &str) -> Option<Self> {
        let place = Self::NAMES.iter().position(|known| *known == name)?;
        Some(Self(1 << place))
    }
}

impl BitOr for AcsFlags {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl fmt::Debug for AcsFlags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let set = Self::NAMES.iter().enumerate();
        let set = set.filter(|(bit, _)| self.0 >> bit & 1 != 0);
        f.debug_set().entries(set.map(|(_, name)| name)).finish()
    }
}

/// The two registers of an ACS capability.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
pub struct Acs {
    /// What can be turned on. A function without a redirect, in a capability that is there, has nothing to
    /// redirect: it does no peer-to-peer. What a switch's downstream port lacks, it lacks.
    pub capable: AcsFlags,
    /// What is turned on.
    pub enabled: AcsFlags,
}

impl Acs {
    /// Returns `true` if `flags` are on, but for those that the capability does not have.
    pub(crate) const fn has_on_where_capable(self, flags: AcsFlags) -> bool {
        self.enabled.has(flags.and(self.capable))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_have_the_bits_of_the_registers() {
        // What a port of an emulated machine has, and what an operating system turned on there.
        let (capable, enabled) = (AcsFlags::from_bits(0x5f), AcsFlags::from_bits(0x1d));
        assert_eq!(capable.without(AcsFlags::EC), capable);
        assert!(capable.has(AcsFlags::TB | AcsFlags::DT) && !capable.has(AcsFlags::EC));
        assert_eq!(enabled, AcsFlags::ISOLATION);
        assert_eq!(format!("{enabled:?}"), r#"{"SV", "RR", "CR", "UF"}"#);
        assert_eq!(AcsFlags::from_bits(0xff80), AcsFlags::NONE);
    }

    #[test]
    fn every_flag_is_found_by_its_name() {
        for (bit, name) in AcsFlags::NAMES.iter().enumerate() {
            assert_eq!(
                AcsFlags::from_name(name).map(AcsFlags::bits),
                Some(1 << bit)
            );
        }
        assert_eq!(AcsFlags::from_name("XX"), None);
    }
}
