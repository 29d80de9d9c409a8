//! The table of configuration spaces in memory.
//!
//! PCI Firmware Specification 3.3, section 4.1.2. The address of an allocation is that of bus 0 of its
//! segment, also where its first bus is another one: the configuration space of bus `n` is `n` MiB above
//! it.

use alloc::collections::BTreeSet;
use alloc::format;
use alloc::vec::Vec;

use crate::firmware::acpi::error::{AcpiError, Fault};
use crate::firmware::acpi::table::{Part, Signature};
use crate::firmware::acpi::taken::Taken;
use crate::firmware::{Description, Host};

/// The signature.
pub const SIGNATURE: Signature = Signature(*b"MCFG");

/// The table.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Table {
    /// The revision.
    pub revision: u8,
    /// The allocations, in their order.
    pub allocations: Vec<Allocation>,
}

/// The configuration spaces of some buses.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Allocation {
    /// Where it is in the table.
    pub offset: usize,
    /// Where bus 0 of the segment has, or would have, its own.
    pub base: u64,
    /// The segment.
    pub segment: u16,
    /// The first and the last bus.
    pub buses: (u8, u8),
}

impl Table {
    /// Parses the table.
    ///
    /// # Errors
    ///
    /// Says which allocation is wrong, and why; also if two have the same bus.
    pub fn parse(bytes: &[u8]) -> Result<Self, AcpiError> {
        let (table, revision) = Part::open(SIGNATURE, bytes)?;
        table.need(44, "the table")?;
        let mut rest = table.rest(44);
        let mut allocations = Vec::new();
        let mut taken = Taken::default();
        while rest.len() != 0 {
            let allocation = rest.split(16, 16, "an allocation")?;
            let (first, last) = (
                allocation.u8(10, "the first bus")?,
                allocation.u8(11, "the last bus")?,
            );
            if last < first {
                let (first, last) = (first.into(), last.into());
                let fault = Fault::Reversed { first, last };
                return Err(allocation.error(10, "the buses", fault));
            }
            let base = allocation.u64(0, "the base address")?;
            // The last byte of the last bus.
            if base
                .checked_add((u64::from(last) << 20) + 0xf_ffff)
                .is_none()
            {
                return Err(allocation.error(0, "the base address", Fault::Overflow));
            }
            let segment = allocation.u16(8, "the segment")?;
            let key = |bus: u8| u64::from(segment) << 8 | u64::from(bus);
            let mut free = 0;
            taken.take(key(first), key(last), |first, last| {
                free += last - first + 1;
            });
            if free != u64::from(last - first) + 1 {
                return Err(allocation.error(10, "the buses", Fault::Overlap));
            }
            allocations.push(Allocation {
                offset: allocation.offset(),
                base,
                segment,
                buses: (first, last),
            });
        }
        Ok(Self {
            revision,
            allocations,
        })
    }

    /// Adds hosts. One that is known by its segment, but not where its configuration space is, becomes
    /// that of each allocation of the segment.
    pub(super) fn describe(&self, description: &mut Description) {
        let known = core::mem::take(&mut description.hosts);
        let name = |allocation: &Allocation| {
            let host = known.binary_search_by_key(&allocation.segment, |host| host.segment);
            match host.ok().and_then(|index| known.get(index)) {
                Some(host) => host.name.clone(),
                None => format!("MCFG allocation at {:#x}", allocation.offset),
            }
        };
        let mut hosts: Vec<_> = self
            .allocations
            .iter()
            .map(|allocation| Host {
                name: name(allocation),
                segment: allocation.segment,
                buses: allocation.buses,
                ecam: Some(allocation.base),
            })
            .collect();
        let found: BTreeSet<_> = hosts.iter().map(|host| host.segment).collect();
        hosts.extend(
            known
                .into_iter()
                .filter(|host| !found.contains(&host.segment)),
        );
        hosts.sort_by_key(|host| (host.segment, host.buses));
        description.hosts = hosts;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::firmware::acpi::testing::{Writer, fault};

    const WHAT: [u8; 4] = *b"MCFG";

    fn table() -> Writer {
        Writer::table(WHAT, 1).zeroes(8)
    }

    trait Allocate {
        fn allocation(self, base: u64, segment: u16, first: u8, last: u8) -> Self;
    }

    impl Allocate for Writer {
        fn allocation(self, base: u64, segment: u16, first: u8, last: u8) -> Self {
            self.u64(base).u16(segment).u8(first).u8(last).u32(0)
        }
    }

    #[test]
    fn the_address_of_an_allocation_is_that_of_bus_0_whatever_its_first_bus_is() {
        let bytes = table()
            .allocation(0xe000_0000, 0, 0x40, 0x7f)
            .allocation(0x40_1000_0000, 1, 0, 0xff)
            .allocation(0xc000_0000, 0, 0, 0x3f)
            .finish();
        let parsed = Table::parse(&bytes).expect("it is right");
        assert_eq!(parsed.allocations[0].buses, (0x40, 0x7f));
        assert_eq!(parsed.allocations[2].offset, 76);
        let mut description = Description::default();
        description.hosts.push(Host {
            name: "root".into(),
            segment: 1,
            buses: (0, 255),
            ecam: None,
        });
        description.hosts.push(Host {
            name: "other root".into(),
            segment: 9,
            buses: (0, 255),
            ecam: None,
        });
        parsed.describe(&mut description);
        let host = |name: &str, segment, buses, ecam| Host {
            name: name.into(),
            segment,
            buses,
            ecam,
        };
        assert_eq!(
            description.hosts,
            [
                host("MCFG allocation at 0x4c", 0, (0, 0x3f), Some(0xc000_0000)),
                host(
                    "MCFG allocation at 0x2c",
                    0,
                    (0x40, 0x7f),
                    Some(0xe000_0000)
                ),
                host("root", 1, (0, 0xff), Some(0x40_1000_0000)),
                host("other root", 9, (0, 0xff), None),
            ]
        );
    }

    #[test]
    fn what_is_wrong_with_an_allocation_is_said() {
        let parse = |table: Writer| Table::parse(&table.finish());
        assert_eq!(
            parse(table().allocation(0, 0, 2, 1)),
            fault(WHAT, 54, "the buses", Fault::Reversed { first: 2, last: 1 })
        );
        let highest = 0xffff_ffff_fff0_0000;
        assert_eq!(
            parse(table().allocation(highest, 0, 0, 0)).map(|_| ()),
            Ok(())
        );
        assert_eq!(
            parse(table().allocation(highest, 0, 0, 1)),
            fault(WHAT, 44, "the base address", Fault::Overflow)
        );
        let two = table().allocation(0, 7, 0, 9);
        assert_eq!(
            parse(two.clone().allocation(0, 8, 9, 9)).map(|_| ()),
            Ok(())
        );
        assert_eq!(
            parse(two.clone().allocation(0, 7, 9, 9)),
            fault(WHAT, 70, "the buses", Fault::Overlap)
        );
        assert_eq!(
            parse(two.clone().allocation(0, 7, 9, 12)),
            fault(WHAT, 70, "the buses", Fault::Overlap)
        );
        let short = Fault::Truncated {
            needed: 16,
            available: 15,
        };
        assert_eq!(
            parse(two.zeroes(15)),
            fault(WHAT, 60, "an allocation", short)
        );
        let short = Fault::Truncated {
            needed: 44,
            available: 40,
        };
        assert_eq!(
            parse(Writer::table(WHAT, 1).zeroes(4)),
            fault(WHAT, 0, "the table", short)
        );
    }
}
