//! SMMUv3 (IHI 0070, sections 3.3 and 5.1 to 5.4).

use iopt_formats::armv8::{AnyFormat, Half, Rooted};
use iopt_formats::catalog::{FormatName, Visitor};
use iopt_formats::context::smmuv3::{
    Cd, CdAddress, CdError, DefaultSubstream, L1CdDesc, L1StreamDesc, Ste, SteAddress, SteError,
    StreamConfig, StreamTable,
};
use iopt_formats::walk::Root;
use iopt_formats::{Format, bit};

use crate::walk::route::{End, Tracer, illegal};
use crate::walk::subject::{Subject, subject};

/// SMMUEN of CR0: translation is enabled.
const ENABLED: u64 = bit(0);
/// ABORT of GBPA: while disabled, transactions abort instead of passing through.
const ABORT: u64 = bit(20);

/// The registers that say where stream tables are.
pub(super) struct Registers {
    pub(super) cr0: u64,
    pub(super) gbpa: u64,
    pub(super) strtab_base: u64,
    pub(super) strtab_base_cfg: u64,
}

/// Follows the entries of the stream `sid`.
pub(super) fn follow(tracer: &mut Tracer<'_>, registers: &Registers, sid: u32) -> Result<End, End> {
    if registers.cr0 & ENABLED == 0 {
        let aborts = registers.gbpa & ABORT != 0;
        return Ok(if aborts {
            End::Blocked
        } else {
            End::PassThrough
        });
    }
    let table = StreamTable::new(registers.strtab_base, registers.strtab_base_cfg as u32);
    let address = match table.address(sid) {
        None => return Ok(End::Blocked),
        Some(SteAddress::Ste(address)) => address,
        Some(SteAddress::L1(address)) => {
            let [word] = tracer.read(
                "level 1 stream table descriptor",
                address,
                &[L1StreamDesc::FIELDS],
            )?;
            match L1StreamDesc::new(word).address(&table, sid) {
                Some(address) => address,
                None => return Ok(End::Blocked),
            }
        }
    };
    let ste = Ste::new(tracer.read("STE", address, &Ste::FIELDS)?);
    if !ste.is_valid() {
        return Ok(End::Blocked);
    }
    match ste.config() {
        StreamConfig::Abort => Ok(End::Blocked),
        StreamConfig::Bypass => Ok(End::PassThrough),
        StreamConfig::Stage1 => stage1(tracer, &ste),
        StreamConfig::Stage2 => match ste.stage2() {
            Ok(Some(table)) => Ok(rooted(table)),
            Ok(None) | Err(SteError::Invalid) => Ok(End::Blocked),
            Err(error) => Err(illegal(error)),
        },
        StreamConfig::Nested => Ok(End::Unsupported("two stages")),
    }
}

/// Follows the CD that requests without a substream use, to its lower table if that is enabled.
fn stage1(tracer: &mut Tracer<'_>, ste: &Ste) -> Result<End, End> {
    let Some(table) = ste.cd_table().map_err(illegal)? else {
        return Ok(End::Blocked);
    };
    if table.count_lg2() > 0 {
        match ste.default_substream() {
            DefaultSubstream::Terminate => return Ok(End::Blocked),
            DefaultSubstream::Bypass => return Ok(End::PassThrough),
            DefaultSubstream::Substream0 => {}
        }
    }
    let address = match table.address(0) {
        None => return Ok(End::Blocked),
        Some(CdAddress::Cd(address)) => address,
        Some(CdAddress::L1(address)) => {
            let [word] = tracer.read("level 1 CD descriptor", address, &[L1CdDesc::FIELDS])?;
            match L1CdDesc::new(word).address(&table, 0) {
                Some(address) => address,
                None => return Ok(End::Blocked),
            }
        }
    };
    let cd = Cd::new(tracer.read("CD", address, &Cd::FIELDS)?);
    let table = match cd.table(Half::Lower) {
        Err(CdError::Disabled { .. }) => cd.table(Half::Upper),
        table => table,
    };
    match table {
        Ok(table) => Ok(rooted(table)),
        Err(CdError::Disabled { .. }) => Ok(End::Blocked),
        Err(error) => Err(illegal(error)),
    }
}

fn rooted(table: Rooted) -> End {
    let name = match table.format {
        AnyFormat::Stage1Kib4(_) => FormatName::ArmS1_4k,
        AnyFormat::Stage1Kib16(_) => FormatName::ArmS1_16k,
        AnyFormat::Stage1Kib64(_) => FormatName::ArmS1_64k,
        AnyFormat::Stage2Kib4(_) => FormatName::ArmS2_4k,
        AnyFormat::Stage2Kib16(_) => FormatName::ArmS2_16k,
        AnyFormat::Stage2Kib64(_) => FormatName::ArmS2_64k,
        AnyFormat::Lpae32(_) => FormatName::ArmLpae32,
        _ => return End::Unsupported("32-bit stage 2 tables"),
    };
    End::Table(table.format.visit(Wrap {
        name,
        root: table.root,
    }))
}

/// Makes a subject of a format that a configuration word chose.
struct Wrap {
    name: FormatName,
    root: Root,
}

impl Visitor for Wrap {
    type Output = Box<dyn Subject>;

    fn visit<F: Format>(self, format: F) -> Self::Output {
        subject(self.name, format, self.root)
    }
}
