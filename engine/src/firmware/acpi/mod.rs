//! ACPI tables that describe IOMMUs.
//!
//! Each table has a typed form that says all that it says, and what that means for who is behind which
//! IOMMU is one [`Description`]. Only raw tables are needed, header and all, as a hypervisor hands them
//! out or as an operating system shows them.
//!
//! | table | of | says |
//! |---|---|---|
//! | [`iort`] | Arm | SMMUs, who is behind them, who is behind none |
//! | [`viot`] | virtio | virtio-iommus, and who is behind them |
//! | [`dmar`] | Intel | remapping units, their devices by path, memory in use, who may use device TLBs |
//! | [`ivrs`] | AMD | IOMMUs, their devices by ID, memory in use |
//! | [`mcfg`] | all | where configuration spaces are |

mod error;
mod table;
mod taken;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

pub mod dmar;
pub mod iort;
pub mod ivrs;
pub mod mcfg;
pub mod viot;

use iopt_formats::{Iova, IovaRange};

pub use crate::firmware::acpi::error::{AcpiError, Fault};
pub use crate::firmware::acpi::table::Signature;
use crate::firmware::{Architecture, Description, Region, RegionKind, Subject};
use crate::topology::RequesterId;

/// Describes what tables say, in any order; those with other signatures are passed over.
///
/// Instances come in the order of the tables above. A rule of an instance comes before those that say that
/// somebody is behind none: where a VIOT is beside an IORT, the latter tells about interrupts only.
///
/// # Errors
///
/// Says which table is there twice, or which part of one is wrong.
///
/// ```
/// use iopt::firmware::acpi::parse;
///
/// let mut table = *b"XSDT\x24\0\0\0\x01\0OEM   PLATFORM\x01\0\0\0MAKE\x01\0\0\0";
/// assert!(parse(&[&table])?.instances.is_empty()); // not one of those tables
///
/// table[..4].copy_from_slice(b"DMAR");
/// let error = parse(&[&table]).unwrap_err();
/// assert_eq!(error.to_string(), "DMAR table, byte 0x0: the bytes add up to 0xf, not to 0");
/// # Ok::<(), iopt::firmware::acpi::AcpiError>(())
/// ```
pub fn parse(tables: &[&[u8]]) -> Result<Description, AcpiError> {
    let [mut iort, mut viot, mut dmar, mut ivrs, mut mcfg] = [const { None }; 5];
    for bytes in tables {
        let signature = Signature::of(bytes)?;
        let place = match signature {
            iort::SIGNATURE => &mut iort,
            viot::SIGNATURE => &mut viot,
            dmar::SIGNATURE => &mut dmar,
            ivrs::SIGNATURE => &mut ivrs,
            mcfg::SIGNATURE => &mut mcfg,
            _ => continue,
        };
        if place.replace(bytes).is_some() {
            return Err(AcpiError {
                table: signature,
                offset: 0,
                what: "the table",
                fault: Fault::Duplicate,
            });
        }
    }
    let mut description = Description::default();
    if let Some(bytes) = iort {
        iort::Table::parse(bytes)?.describe(&mut description)?;
    }
    if let Some(bytes) = viot {
        viot::Table::parse(bytes)?.describe(&mut description)?;
    }
    if let Some(bytes) = dmar {
        dmar::Table::parse(bytes)?.describe(&mut description)?;
    }
    if let Some(bytes) = ivrs {
        ivrs::Table::parse(bytes)?.describe(&mut description)?;
    }
    description.hosts.sort_by_key(|host| host.segment);
    if let Some(bytes) = mcfg {
        mcfg::Table::parse(bytes)?.describe(&mut description);
    }
    description
        .rules
        .sort_by_key(|rule| rule.instance.is_none());
    architectural_regions(&mut description);
    Ok(description)
}

/// Adds addresses that an architecture takes from everyone: interrupts of x86 at `0xfee0_0000`, 1 MiB
/// (Intel VT-d specification, "Handling Requests to Interrupt Address Range"; AMD 48882, "special address
/// controls"), and of AMD's what `HyperTransport` uses for itself, the last 12 GiB of 40 bits (the same
/// table).
fn architectural_regions(description: &mut Description) {
    let has = |architecture| {
        let mut instances = description.instances.iter();
        instances.any(|instance| instance.architecture == architecture)
    };
    let (has_vtd, has_amd) = (has(Architecture::Vtd), has(Architecture::Amd));
    let mut add = |start, last, kind| {
        if let Some(range) = IovaRange::new(Iova::new(start), Iova::new(last)) {
            description.regions.push(Region {
                subject: None,
                range,
                kind,
            });
        }
    };
    if has_vtd || has_amd {
        add(0xfee0_0000, 0xfeef_ffff, RegionKind::Msi);
    }
    if has_amd {
        add(0xfd_0000_0000, 0xff_ffff_ffff, RegionKind::Reserved);
    }
}

/// All requesters of a segment.
const fn all_of(segment: u16) -> Subject {
    Subject::Requesters {
        segment,
        mask: u16::MAX,
        first: RequesterId::MIN,
        last: RequesterId::MAX,
    }
}
