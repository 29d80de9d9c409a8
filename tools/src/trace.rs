//! Traces of what a guest asked of its IOMMU.
//!
//! ```text
//! # iopt-trace 1
//! # page-size: 4096
//! # platform: q35 machine
//! # domain-end: a domain and its mappings end with its last detach
//! attach <t_ns> <domain> <device>
//! map    <t_ns> <domain> <iova> <oa> <len> <prot>
//! unmap  <t_ns> <domain> <iova> <len>
//! detach <t_ns> <domain> <device>
//! ```
//!
//! Fields are separated by one space. Times are decimal and never fall; addresses and lengths are
//! hexadecimal multiples of the page size; `prot` is a choice of the letters `r`, `w`, `m` (device
//! memory) and `c` (cache-coherent), in that order. Of the header only the page size is required.

use std::io::{self, BufRead};
use std::path::{Path, PathBuf};

use iopt_formats::{Iova, IovaRange, Oa, PageSize, Prot, Rights};

use crate::input::{self, LineError, Lines, decimal, hex};
use crate::model::ModelError;
use crate::trace::check::Checker;

mod check;
#[cfg(test)]
mod tests;

const MAGIC: &str = "# iopt-trace ";
const VERSION: &str = "1";

/// When a domain and what is still mapped in it end.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum DomainEnd {
    /// With the detach of its last device, as a virtio-iommu sees it.
    LastDetach,
    /// Not inside the trace: its mappings are unmapped one by one, before or after the detach.
    #[default]
    Never,
}

/// What a trace says about itself.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Header {
    /// The size that every address and length is a multiple of.
    pub page_size: PageSize,
    /// The machine, in words; empty if the trace does not say.
    pub platform: String,
    /// When domains end.
    pub domain_end: DomainEnd,
}

/// One line of a trace.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Operation {
    /// Number of the line, from 1.
    pub line: u64,
    /// Nanoseconds since the first operation.
    pub time_ns: u64,
    /// Number of the domain.
    pub domain: u32,
    /// What happened to it.
    pub action: Action,
}

/// What happened to a domain.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Action {
    /// A range was mapped.
    Map {
        /// The range.
        range: IovaRange,
        /// Where its first byte goes.
        oa: Oa,
        /// Rights and memory type.
        prot: Prot,
    },
    /// A range was unmapped.
    Unmap {
        /// The range.
        range: IovaRange,
    },
    /// A device was put into the domain.
    Attach {
        /// Its name.
        device: Box<str>,
    },
    /// A device was taken out of the domain.
    Detach {
        /// Its name.
        device: Box<str>,
    },
}

/// What is wrong with a trace.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TraceFault {
    /// The line cannot be read.
    #[error(transparent)]
    Line(#[from] LineError),
    /// The first line is not that of a trace.
    #[error("not a trace: the first line must be `{MAGIC}{VERSION}`")]
    Magic,
    /// The trace is of a version that this reader does not know.
    #[error("trace version {found:?} is not supported, only {VERSION}")]
    Version {
        /// The version found.
        found: String,
    },
    /// The header does not say how large a page is.
    #[error("the header has no `page-size`")]
    NoPageSize,
    /// A header value is not one of those that are possible.
    #[error("header `{key}` has the impossible value {value:?}")]
    Header {
        /// Key of the header.
        key: &'static str,
        /// The value found.
        value: String,
    },
    /// The line starts with no known operation.
    #[error("unknown operation {0:?}")]
    Unknown(String),
    /// The line has too few or too many fields.
    #[error("{operation} takes {expected} fields, not {found}")]
    FieldCount {
        /// The operation.
        operation: &'static str,
        /// How many fields it takes.
        expected: usize,
        /// How many the line has.
        found: usize,
    },
    /// A field is not a number of the kind that belongs there.
    #[error("{field} {text:?} is not {expected}")]
    Number {
        /// Which field.
        field: &'static str,
        /// The text found.
        text: String,
        /// What belongs there.
        expected: &'static str,
    },
    /// An address or length is no multiple of the page size.
    #[error("{field} {value:#x} is not a multiple of the page size")]
    Unaligned {
        /// Which field.
        field: &'static str,
        /// The value found.
        value: u64,
    },
    /// The range is empty or passes the end of the 64-bit space.
    #[error("{len:#x} bytes from {start:#x} are not a range of the 64-bit space")]
    Range {
        /// First byte.
        start: u64,
        /// Length.
        len: u64,
    },
    /// The rights are none, or not spelt as they should be.
    #[error("prot {0:?} is not a choice of `rwmc`, in that order, with `r` or `w`")]
    Prot(String),
    /// Time went back.
    #[error("time {time_ns} is before that of the line above, {previous_ns}")]
    Time {
        /// The time found.
        time_ns: u64,
        /// That of the line above.
        previous_ns: u64,
    },
    /// The operation does not fit what is mapped.
    #[error("domain {domain}: {fault}")]
    Mapping {
        /// The domain.
        domain: u32,
        /// What does not fit.
        fault: ModelError,
    },
    /// A device was attached twice.
    #[error("domain {domain}: {device} is attached already")]
    Attached {
        /// The domain.
        domain: u32,
        /// The device.
        device: String,
    },
    /// A device that is not attached was detached.
    #[error("domain {domain}: {device} is not attached")]
    NotAttached {
        /// The domain.
        domain: u32,
        /// The device.
        device: String,
    },
    /// A domain that has ended was used.
    #[error("domain {domain} ended with its last detach")]
    Ended {
        /// The domain.
        domain: u32,
    },
}

/// A fault and where it is.
#[derive(Debug, thiserror::Error)]
#[error("{line}: {fault}")]
pub struct TraceError {
    /// Number of the line, from 1.
    pub line: u64,
    /// What is wrong with it.
    #[source]
    pub fault: TraceFault,
}

/// Why a trace file cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TraceFileError {
    /// The file cannot be opened.
    #[error("{}: {error}", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// What the system says.
        #[source]
        error: io::Error,
    },
    /// A line is wrong.
    #[error("{}:{error}", path.display())]
    Trace {
        /// The file.
        path: PathBuf,
        /// The line and the fault.
        #[source]
        error: TraceError,
    },
}

/// The operations of a trace, read one by one.
#[derive(Debug)]
pub struct Reader<R> {
    header: Header,
    lines: Lines<R>,
    /// The line that ended the header.
    pending: Option<String>,
    previous_ns: u64,
    is_failed: bool,
}

impl<R: BufRead> Reader<R> {
    /// Reads the header.
    ///
    /// # Errors
    ///
    /// [`TraceError`] if this is no trace of a known version with a page size.
    pub fn new(reader: R) -> Result<Self, TraceError> {
        let mut lines = Lines::new(reader);
        let result = read_header(&mut lines);
        let (header, pending) = result.map_err(|fault| TraceError {
            line: lines.number(),
            fault,
        })?;
        Ok(Self {
            header,
            lines,
            pending,
            previous_ns: 0,
            is_failed: false,
        })
    }

    /// Returns what the trace says about itself.
    pub fn header(&self) -> &Header {
        &self.header
    }

    fn read(&mut self) -> Result<Option<Operation>, TraceFault> {
        let line = match &self.pending {
            Some(line) => line,
            None => match self.lines.read()? {
                Some(line) => line,
                None => return Ok(None),
            },
        };
        let parsed = parse(line, self.header.page_size);
        let (time_ns, domain, action) = parsed?;
        let previous_ns = self.previous_ns;
        if time_ns < previous_ns {
            return Err(TraceFault::Time {
                time_ns,
                previous_ns,
            });
        }
        self.previous_ns = time_ns;
        self.pending = None;
        Ok(Some(Operation {
            line: self.lines.number(),
            time_ns,
            domain,
            action,
        }))
    }
}

impl<R: BufRead> Iterator for Reader<R> {
    type Item = Result<Operation, TraceError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.is_failed {
            return None;
        }
        let result = self.read();
        self.is_failed = result.is_err();
        result
            .map_err(|fault| TraceError {
                line: self.lines.number(),
                fault,
            })
            .transpose()
    }
}

/// A whole trace in memory, checked: every map meets free pages and every unmap mapped ones.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Trace {
    /// What the trace says about itself.
    pub header: Header,
    /// The operations, in order.
    pub operations: Vec<Operation>,
    /// Figures that follow from them.
    pub figures: Figures,
}

/// Figures of a trace.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Figures {
    /// Number of maps.
    pub maps: u64,
    /// Number of unmaps.
    pub unmaps: u64,
    /// Most pages mapped at one time, all domains together.
    pub peak_live_pages: u64,
    /// Pages still mapped at the end.
    pub live_pages: u64,
    /// Map calls whose pages, or some of them, are still mapped at the end.
    pub live_mappings: u64,
    /// Number of domains.
    pub domains: u64,
}

impl Trace {
    /// Reads and checks the trace at `path`, plain or gzip-compressed.
    ///
    /// # Errors
    ///
    /// [`TraceFileError`] names the file and the line.
    pub fn open(path: &Path) -> Result<Self, TraceFileError> {
        let reader =
            input::open(path, input::MAX_TEXT_LEN).map_err(|error| TraceFileError::Open {
                path: path.into(),
                error,
            })?;
        Self::read(reader).map_err(|error| TraceFileError::Trace {
            path: path.into(),
            error,
        })
    }

    /// Reads and checks a trace.
    ///
    /// # Errors
    ///
    /// [`TraceError`] names the line.
    pub fn read(reader: impl BufRead) -> Result<Self, TraceError> {
        let mut reader = Reader::new(reader)?;
        let mut checker = Checker::new(&reader.header);
        let mut operations = Vec::new();
        for operation in &mut reader {
            let operation = operation?;
            checker.check(&operation).map_err(|fault| TraceError {
                line: operation.line,
                fault,
            })?;
            operations.push(operation);
        }
        let figures = checker.finish();
        Ok(Self {
            header: reader.header,
            operations,
            figures,
        })
    }
}

/// Reads up to the first line that does not start with `#`, which is returned as well.
fn read_header(lines: &mut Lines<impl BufRead>) -> Result<(Header, Option<String>), TraceFault> {
    let version = lines.read()?.and_then(|line| line.strip_prefix(MAGIC));
    match version.ok_or(TraceFault::Magic)? {
        VERSION => {}
        found => {
            return Err(TraceFault::Version {
                found: found.into(),
            });
        }
    }
    let mut page_size = None;
    let mut platform = String::new();
    let mut domain_end = DomainEnd::default();
    let pending = loop {
        let Some(line) = lines.read()? else {
            break None;
        };
        let Some(entry) = line.strip_prefix("# ") else {
            break Some(line.to_owned());
        };
        match entry.split_once(": ") {
            Some(("page-size", value)) => page_size = Some(parse_page_size(value)?),
            Some(("platform", value)) => value.clone_into(&mut platform),
            Some(("domain-end", value)) => domain_end = parse_domain_end(value)?,
            _ => {}
        }
    };
    let page_size = page_size.ok_or(TraceFault::NoPageSize)?;
    Ok((
        Header {
            page_size,
            platform,
            domain_end,
        },
        pending,
    ))
}

fn parse_page_size(value: &str) -> Result<PageSize, TraceFault> {
    let is_possible = |bytes: &u64| bytes.is_power_of_two() && (512..=1 << 30).contains(bytes);
    match decimal(value).filter(is_possible) {
        Some(bytes) => Ok(PageSize::from_lg2(bytes.ilog2() as u8)),
        None => Err(TraceFault::Header {
            key: "page-size",
            value: value.into(),
        }),
    }
}

fn parse_domain_end(value: &str) -> Result<DomainEnd, TraceFault> {
    if value.contains("end with its last detach") {
        Ok(DomainEnd::LastDetach)
    } else if value.contains("outlives its last detach") {
        Ok(DomainEnd::Never)
    } else {
        Err(TraceFault::Header {
            key: "domain-end",
            value: value.into(),
        })
    }
}

fn parse(line: &str, page: PageSize) -> Result<(u64, u32, Action), TraceFault> {
    let mut fields = [""; 7];
    let mut count = 0;
    for field in line.split(' ') {
        if let Some(slot) = fields.get_mut(count) {
            *slot = field;
        }
        count += 1;
    }
    let [name, time_ns, domain, a, b, c, d] = fields;
    let (operation, expected) = match name {
        "map" => ("map", 7),
        "unmap" => ("unmap", 5),
        "attach" => ("attach", 4),
        "detach" => ("detach", 4),
        _ => return Err(TraceFault::Unknown(name.chars().take(32).collect())),
    };
    if count != expected {
        return Err(TraceFault::FieldCount {
            operation,
            expected,
            found: count,
        });
    }
    let time_ns = decimal(time_ns)
        .ok_or_else(|| number("time", time_ns, "a decimal number of nanoseconds"))?;
    let domain = decimal(domain)
        .and_then(|id| u32::try_from(id).ok())
        .ok_or_else(|| number("domain", domain, "a decimal number of 32 bits"))?;
    let action = match operation {
        "map" => {
            let range = parse_range(a, c, page)?;
            let oa = parse_multiple("oa", b, page)?;
            if oa.checked_add(range.len_minus_one()).is_none() {
                let len = range.len_minus_one().saturating_add(1);
                return Err(TraceFault::Range { start: oa, len });
            }
            let prot = parse_prot(d).ok_or_else(|| TraceFault::Prot(d.into()))?;
            Action::Map {
                range,
                oa: Oa::new(oa),
                prot,
            }
        }
        "unmap" => Action::Unmap {
            range: parse_range(a, b, page)?,
        },
        "attach" => Action::Attach { device: a.into() },
        _ => Action::Detach { device: a.into() },
    };
    Ok((time_ns, domain, action))
}

fn parse_range(start: &str, len: &str, page: PageSize) -> Result<IovaRange, TraceFault> {
    let start = parse_multiple("iova", start, page)?;
    let len = parse_multiple("len", len, page)?;
    IovaRange::with_len(Iova::new(start), len).ok_or(TraceFault::Range { start, len })
}

fn parse_multiple(field: &'static str, text: &str, page: PageSize) -> Result<u64, TraceFault> {
    let value = hex(text).ok_or_else(|| number(field, text, "a hexadecimal number with 0x"))?;
    if page.divides(value) {
        Ok(value)
    } else {
        Err(TraceFault::Unaligned { field, value })
    }
}

fn parse_prot(text: &str) -> Option<Prot> {
    let mut rest = text;
    let mut take = |letter| match rest.strip_prefix(letter) {
        Some(after) => {
            rest = after;
            true
        }
        None => false,
    };
    let (read, write, device, coherent) = (take('r'), take('w'), take('m'), take('c'));
    if !rest.is_empty() || !(read || write) {
        return None;
    }
    let rights = Rights::USER
        .with_if(Rights::READ, read)
        .with_if(Rights::WRITE, write);
    let prot = Prot::RW.with_rights(rights);
    Some(match (device, coherent) {
        (true, _) => prot.device(),
        (false, true) => prot.cached(),
        (false, false) => prot,
    })
}

fn number(field: &'static str, text: &str, expected: &'static str) -> TraceFault {
    TraceFault::Number {
        field,
        text: text.into(),
        expected,
    }
}
