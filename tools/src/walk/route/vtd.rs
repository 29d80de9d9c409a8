//! VT-d, legacy and scalable mode (architecture specification, sections 3.4 and 9.1 to 9.6).

use iopt_formats::catalog::FormatName;
use iopt_formats::context::vtd::{
    LegacyContext, PasidDirectoryEntry, PasidEntry, RootEntry, RootTable, ScalableContext,
    TableMode, Translation,
};
use iopt_formats::{Oa, bit};

use crate::walk::route::{End, Tracer, illegal};
use crate::walk::subject::subject;

/// TES of the global status register: translation is enabled.
const TRANSLATION_ENABLED: u64 = bit(31);

/// Follows the entries of the requester `sid`.
pub(super) fn follow(
    tracer: &mut Tracer<'_>,
    gsts: u64,
    rtaddr: u64,
    sid: u32,
) -> Result<End, End> {
    if gsts & TRANSLATION_ENABLED == 0 {
        return Ok(End::PassThrough);
    }
    let Some(root_table) = RootTable::decode(rtaddr).map_err(illegal)? else {
        return Ok(End::Blocked);
    };
    let requester = u16::try_from(sid).map_err(|_| illegal("a requester id has 16 bits"))?;
    let [bus, devfn] = requester.to_be_bytes();
    let mode = root_table.mode();
    let words = tracer.read(
        "root entry",
        root_table.entry(bus),
        &RootEntry::fields(mode),
    )?;
    let root_entry = RootEntry::decode(words, mode).map_err(illegal)?;
    let Some(address) = root_entry.context(devfn) else {
        return Ok(End::Blocked);
    };
    let translation = match mode {
        TableMode::Legacy => {
            let words = tracer.read("context entry", address, &LegacyContext::FIELDS)?;
            LegacyContext::decode(words).map_err(illegal)?.translation()
        }
        TableMode::Scalable => match pasid_entry(tracer, address)? {
            Some(entry) => entry.translation(),
            None => Translation::Blocked,
        },
    };
    Ok(match translation {
        Translation::Blocked => End::Blocked,
        Translation::PassThrough => End::PassThrough,
        Translation::First(stage) => {
            End::Table(subject(FormatName::VtdFs, stage.format(), stage.root()))
        }
        Translation::Second(stage) => {
            End::Table(subject(FormatName::VtdSs, stage.format(), stage.root()))
        }
        Translation::Nested { .. } => End::Unsupported("two stages"),
    })
}

/// Follows a scalable context entry to the entry of the PASID that requests without one get.
fn pasid_entry(tracer: &mut Tracer<'_>, address: Oa) -> Result<Option<PasidEntry>, End> {
    let words = tracer.read("scalable context entry", address, &ScalableContext::FIELDS)?;
    let context = ScalableContext::decode(words).map_err(illegal)?;
    let pasid = context.rid_pasid();
    let Some(address) = context
        .directory()
        .and_then(|directory| directory.entry(pasid))
    else {
        return Ok(None);
    };
    let [word] = tracer.read(
        "PASID directory entry",
        address,
        &[PasidDirectoryEntry::FIELDS],
    )?;
    let directory_entry = PasidDirectoryEntry::decode(word).map_err(illegal)?;
    let Some(address) = directory_entry.entry(pasid) else {
        return Ok(None);
    };
    let words = tracer.read("PASID entry", address, &PasidEntry::FIELDS)?;
    PasidEntry::decode(words).map(Some).map_err(illegal)
}
