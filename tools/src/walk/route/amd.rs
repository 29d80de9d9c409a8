//! AMD-Vi (document 48882, sections 2.2.2 and 3.4).

use iopt_formats::bit;
use iopt_formats::catalog::FormatName;
use iopt_formats::context::amd::{DeviceTable, Dte, Translation};

use crate::walk::route::{End, Tracer, illegal};
use crate::walk::subject::subject;

/// `IommuEn` of the control register.
const ENABLED: u64 = bit(0);

/// Follows the entry of the device `sid`.
pub(super) fn follow(
    tracer: &mut Tracer<'_>,
    control: u64,
    devtab: u64,
    sid: u32,
) -> Result<End, End> {
    if control & ENABLED == 0 {
        return Ok(End::PassThrough);
    }
    let table = DeviceTable::from_register(devtab).map_err(illegal)?;
    let device_id = u16::try_from(sid).map_err(|_| illegal("a device id has 16 bits"))?;
    let Some(address) = table.entry(device_id) else {
        return Ok(End::Blocked);
    };
    let dte = Dte::new(tracer.read("DTE", address, &Dte::FIELDS)?);
    Ok(match dte.translation().map_err(illegal)? {
        Translation::Blocked => End::Blocked,
        Translation::PassThrough { .. } => End::PassThrough,
        Translation::Host(host) => {
            End::Table(subject(FormatName::AmdV1, host.format(), host.root()))
        }
        Translation::Guest(_) => End::Unsupported("guest tables"),
    })
}
