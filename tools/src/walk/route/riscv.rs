//! RISC-V IOMMU (architecture specification, chapter "Data Structures").

use iopt_formats::Level;
use iopt_formats::catalog::FormatName;
use iopt_formats::context::riscv::{
    Ddtp, DeviceContext, Features, FirstStage, FirstStageTables, LocateError, SecondStage,
};
use iopt_formats::walk::Root;

use crate::walk::route::{End, Tracer, illegal};
use crate::walk::subject::subject;

/// Follows the directory to the context of the device `sid`; `capabilities` and `fctl` say how.
pub(super) fn follow(
    tracer: &mut Tracer<'_>,
    [capabilities, fctl]: [u64; 2],
    ddtp: u64,
    sid: u32,
) -> Result<End, End> {
    let features = Features::new(capabilities, fctl as u32);
    let directory = match Ddtp::decode(ddtp, features).map_err(illegal)? {
        Ddtp::Off => return Ok(End::Blocked),
        Ddtp::Bare => return Ok(End::PassThrough),
        Ddtp::Directory(directory) => directory,
    };
    let address = match directory.locate(sid, tracer.words) {
        Ok(address) => address,
        Err(LocateError::NotValid { .. }) => return Ok(End::Blocked),
        Err(LocateError::Unreadable { address }) => return Err(End::Missing(address)),
        Err(error) => return Err(illegal(error)),
    };
    let words = tracer.read("device context", address, &DeviceContext::FIELDS)?;
    let Some(context) = DeviceContext::decode(words, features).map_err(illegal)? else {
        return Ok(End::Blocked);
    };
    let first = match context.first_stage() {
        FirstStage::Tables(tables) => tables,
        FirstStage::Directory(_) => return Ok(End::Unsupported("a process directory")),
    };
    Ok(match (first, context.second_stage()) {
        (FirstStageTables::Bare, SecondStage::Bare) => End::PassThrough,
        (FirstStageTables::Sv { format, root }, SecondStage::Bare) => {
            let names = [
                FormatName::RiscvSv39,
                FormatName::RiscvSv48,
                FormatName::RiscvSv57,
            ];
            End::Table(subject(by_height(names, root), format, root))
        }
        (FirstStageTables::Bare, SecondStage::Svx4 { format, root, .. }) => {
            let names = [
                FormatName::RiscvSv39x4,
                FormatName::RiscvSv48x4,
                FormatName::RiscvSv57x4,
            ];
            End::Table(subject(by_height(names, root), format, root))
        }
        _ => End::Unsupported("two stages, or tables of 32 bits"),
    })
}

/// Returns the name of a format with 3, 4 or 5 levels.
fn by_height(names: [FormatName; 3], root: Root) -> FormatName {
    let [three, four, five] = names;
    match root.level {
        Level(0..=2) => three,
        Level(3) => four,
        _ => five,
    }
}
