//! `iopt walk`: dumped tables, one address, all addresses, or all against the expected answer.

mod check;
mod list;
mod print;
mod route;
mod subject;

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use clap::Args;
use iopt_formats::catalog::{self, FormatName};
use iopt_formats::walk::VisitError;
use iopt_formats::{Iova, Oa};
use iopt_reference::context::Binding;
use iopt_tools::fixture::Fixture;
use iopt_tools::ram::Ram;
use serde::Serialize;

use crate::cli::{FormatOptions, Outcome, number};
use crate::failure::Failure;
use crate::output;
use crate::walk::list::Listing;
use crate::walk::print::WalkReport;
use crate::walk::route::{End, Entry, Judge, NoRegister};
use crate::walk::subject::{MakeSubject, Subject, Words, item_limit};

/// Walk dumped tables: a fixture from the registers on, or raw memory from a root on
///
/// A fixture is a sidecar (NAME.json.gz) with its pages file beside it. Without --iova, every domain
/// of it is listed. The format options complete --format; a fixture's registers say everything.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  iopt walk smmu-a.json.gz --check --json
  iopt walk vtd-a.json.gz --sid 512 --iova 0xffefd000
  iopt walk --ram guest.ram@0x40000000 --format arm-s1-4k --root 0x48056000 --iova 0xfffe0000
  iopt walk --ram low.bin@0 --ram high.bin@0x100000000 --format vtd-ss --root 0x23f9000 --all")]
pub(crate) struct WalkArgs {
    /// Sidecar of a fixture
    #[arg(
        value_name = "FIXTURE",
        required_unless_present = "ram",
        conflicts_with = "ram"
    )]
    fixture: Option<PathBuf>,
    /// Compare every device, domain and leaf of the fixture with its sidecar
    #[arg(long, conflicts_with_all = ["ram", "iova", "sid", "all"])]
    check: bool,
    /// Walk this address
    #[arg(long, value_name = "ADDRESS", value_parser = number)]
    iova: Option<u64>,
    /// Only the device with this requester or stream id
    #[arg(long, value_name = "ID", value_parser = sid, conflicts_with = "ram")]
    sid: Option<u32>,
    /// A file with the memory from the address BASE on; may be given several times
    #[arg(long, value_name = "FILE@BASE", value_parser = ram_piece, requires = "format", requires = "root")]
    ram: Vec<RamPiece>,
    /// Format of the table in the memory; `iopt formats` lists them
    #[arg(long, requires = "ram")]
    format: Option<FormatName>,
    /// Address of the root table in the memory
    #[arg(long, value_name = "ADDRESS", value_parser = number, requires = "ram")]
    root: Option<u64>,
    /// List everything that the table translates
    #[arg(long, conflicts_with = "iova")]
    all: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    options: FormatOptions,
}

/// A memory dump and its address.
#[derive(Clone, Debug, Eq, PartialEq)]
struct RamPiece {
    path: PathBuf,
    base: u64,
}

fn ram_piece(text: &str) -> Result<RamPiece, String> {
    let (path, base) = text.rsplit_once('@').ok_or("not of the form FILE@BASE")?;
    let base = number(base).map_err(|error| format!("BASE: {error}"))?;
    if path.is_empty() || !base.is_multiple_of(8) {
        return Err("FILE is empty or BASE is not a multiple of 8".into());
    }
    Ok(RamPiece {
        path: path.into(),
        base,
    })
}

fn sid(text: &str) -> Result<u32, String> {
    number(text).and_then(|sid| u32::try_from(sid).map_err(|error| error.to_string()))
}

/// Why a walk cannot go on.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WalkError {
    /// Neither one address nor all were asked for.
    #[error("--ram needs --iova or --all")]
    NothingToDo,
    /// The sidecar lacks a register.
    #[error("{}: {error}", path.display())]
    Register {
        /// The sidecar.
        path: PathBuf,
        /// Which register.
        #[source]
        error: NoRegister,
    },
    /// The sidecar knows no such device.
    #[error("{}: no device has the id {sid}; there are {known}", path.display())]
    NoDevice {
        /// The sidecar.
        path: PathBuf,
        /// The id asked for.
        sid: u32,
        /// The ids of the domains.
        known: String,
    },
    /// The device's requests go a way that the command does not follow.
    #[error("{}: device {sid} goes through {what}, which this command does not follow", path.display())]
    Unsupported {
        /// The sidecar.
        path: PathBuf,
        /// The device.
        sid: u32,
        /// What it goes through.
        what: &'static str,
    },
    /// The pages file lacks a page that a table leads to.
    #[error("{}: no page holds the table word at {address}", path.display())]
    NoPage {
        /// The pages file.
        path: PathBuf,
        /// Address of the word.
        address: Oa,
    },
    /// A memory dump ends before a table that an entry leads to.
    #[error("{}: too short: holds {base} to {end:#x}, but a table word is at {address}", path.display())]
    RamShort {
        /// The file.
        path: PathBuf,
        /// Its first address.
        base: Oa,
        /// The address behind its last one.
        end: u64,
        /// Address of the word.
        address: Oa,
    },
    /// No memory dump holds a table that an entry leads to.
    #[error("{}: no file holds the table word at {address}; this one starts at {base}", path.display())]
    RamOutside {
        /// The file that starts nearest.
        path: PathBuf,
        /// Its first address.
        base: Oa,
        /// Address of the word.
        address: Oa,
    },
    /// The tables are larger than anything real.
    #[error("{}: {error}", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// What was found.
        #[source]
        error: VisitError,
    },
}

impl WalkArgs {
    /// Runs the command.
    pub(crate) fn run(&self) -> Result<Outcome, Failure> {
        match (&self.fixture, self.format, self.root) {
            (Some(path), ..) => self.run_fixture(path),
            (None, Some(format), Some(root)) => self.run_ram(format, Oa::new(root)),
            // The command line is declared so that this cannot be.
            (None, ..) => Err(WalkError::NothingToDo.into()),
        }
    }

    fn run_fixture(&self, path: &Path) -> Result<Outcome, Failure> {
        let fixture = Fixture::open(path)?;
        if self.check {
            let report = check::check(path, &fixture)?;
            if self.json {
                output::print_json(&report)?;
            } else {
                output::print(&report.text())?;
            }
            return Ok(Outcome::of_mismatches(report.mismatches()));
        }
        let report = self.devices(path, &fixture)?;
        if self.json {
            output::print_json(&report)?;
        } else {
            output::print(&report.text())?;
        }
        Ok(report.outcome())
    }

    /// Walks for the device asked for, or for the first one of each domain.
    fn devices(&self, path: &Path, fixture: &Fixture) -> Result<FixtureReport, WalkError> {
        let first_of_each = || {
            fixture
                .domains
                .iter()
                .filter_map(|domain| domain.sids.first().copied())
        };
        let sids: Vec<u32> = match self.sid {
            Some(sid) if fixture.streams.iter().all(|stream| stream.sid != sid) => {
                let known = fixture.domains.iter().flat_map(|domain| &domain.sids);
                let known = known.map(u32::to_string).collect::<Vec<_>>().join(", ");
                return Err(WalkError::NoDevice {
                    path: path.into(),
                    sid,
                    known,
                });
            }
            Some(sid) => vec![sid],
            None => first_of_each().collect(),
        };
        let words = |oa| fixture.pages.word(oa);
        let no_page = |address| WalkError::NoPage {
            path: fixture.pages_path.clone(),
            address,
        };
        let limit = item_limit(fixture.pages.len());
        let source = Source {
            path,
            words: &words,
            limit,
            missing: &no_page,
        };
        let mut devices = Vec::new();
        for sid in sids {
            let register = |error| WalkError::Register {
                path: path.into(),
                error,
            };
            let route = route::find(fixture, &words, sid).map_err(register)?;
            let mut device = DeviceReport {
                sid,
                entries: route.entries,
                ..DeviceReport::default()
            };
            match route.end {
                End::Blocked => device.end = "blocked".into(),
                End::PassThrough => device.end = "passed through".into(),
                End::Illegal(why) => device.end = format!("illegal entry: {why}"),
                End::Missing(address) => return Err(no_page(address)),
                End::Unsupported(what) => {
                    return Err(WalkError::Unsupported {
                        path: path.into(),
                        sid,
                        what,
                    });
                }
                End::Table(table) => {
                    device.end = format!("{} table at {}", table.format(), table.root().oa);
                    let judge = Judge::new(fixture).map_err(register)?;
                    let judge = match judge.binding(&words, sid) {
                        Ok(Binding::Table(table)) => Some(table),
                        _ => None,
                    };
                    let answer = self.answer(table.as_ref(), judge.as_ref(), &source)?;
                    device.answer = Some(answer);
                }
            }
            devices.push(device);
        }
        Ok(FixtureReport {
            schema: 1,
            command: "walk",
            fixture: path.display().to_string(),
            devices,
        })
    }

    fn run_ram(&self, format: FormatName, root: Oa) -> Result<Outcome, Failure> {
        if self.iova.is_none() && !self.all {
            return Err(WalkError::NothingToDo.into());
        }
        let mut rams = Vec::new();
        for RamPiece { path, base } in &self.ram {
            let ram = Ram::open(path, Oa::new(*base));
            rams.push(ram.map_err(|error| Failure::File {
                path: path.clone(),
                error,
            })?);
        }
        let words = |oa| rams.iter().find_map(|ram| ram.word(oa));
        let options = self.options.options();
        let make = MakeSubject {
            name: format,
            options: &options,
            root,
        };
        let (table, judge) = catalog::with_format(format, &options, make)
            .map_err(|error| Failure::Config { format, error })?;
        let path = &self
            .ram
            .first()
            .map(|piece| piece.path.clone())
            .unwrap_or_default();
        let outside = |address| outside_ram(&rams, path, address);
        let len = rams.iter().map(Ram::len).fold(0, u64::saturating_add);
        let source = Source {
            path,
            words: &words,
            limit: item_limit(len),
            missing: &outside,
        };
        let answer = self.answer(table.as_ref(), Some(&judge), &source);
        // An error of the disk says more than what follows from it.
        for ram in &rams {
            if let Some(error) = ram.take_error() {
                return Err(Failure::File {
                    path: ram.path().into(),
                    error,
                });
            }
        }
        let names = rams
            .iter()
            .map(|ram| ram.path().display().to_string())
            .collect();
        let report = RamReport {
            schema: 1,
            command: "walk",
            ram: names,
            answer: answer?,
        };
        if self.json {
            output::print_json(&report)?;
        } else {
            output::print(&report.answer.text())?;
        }
        Ok(report.answer.outcome())
    }

    /// Walks one address, or lists everything.
    fn answer(
        &self,
        table: &dyn Subject,
        judge: Option<&iopt_reference::Table>,
        source: &Source<'_>,
    ) -> Result<Answer, WalkError> {
        let Some(iova) = self.iova else {
            let listing = table.list(source.words, source.limit);
            if let Some(address) = listing.missing() {
                return Err((source.missing)(address));
            }
            if let Some(error @ VisitError::TooLarge { .. }) = listing.error {
                return Err(WalkError::TooLarge {
                    path: source.path.into(),
                    error,
                });
            }
            return Ok(Answer::All(listing));
        };
        let mut walk = table.walk(Iova::new(iova), source.words);
        if let Some(address) = walk.missing() {
            return Err((source.missing)(address));
        }
        if let Some(judge) = judge {
            walk.judge(judge, source.words);
        }
        Ok(Answer::One(walk))
    }
}

/// Where tables are read from.
struct Source<'a> {
    /// The file to name.
    path: &'a Path,
    words: Words<'a>,
    /// Items read at most.
    limit: u64,
    /// Says that a word is missing.
    missing: &'a dyn Fn(Oa) -> WalkError,
}

/// Says why no dump holds `address`.
fn outside_ram(rams: &[Ram], first: &Path, address: Oa) -> WalkError {
    let below = rams
        .iter()
        .filter(|ram| ram.base() <= address)
        .max_by_key(|ram| ram.base());
    if let Some(ram) = below {
        let end = ram.base().get().saturating_add(ram.len());
        return WalkError::RamShort {
            path: ram.path().into(),
            base: ram.base(),
            end,
            address,
        };
    }
    let above = rams.iter().min_by_key(|ram| ram.base());
    let base = above.map_or(Oa::new(0), Ram::base);
    let path = above.map_or(first, Ram::path).into();
    WalkError::RamOutside {
        path,
        base,
        address,
    }
}

/// What was asked about a table.
#[derive(Debug, Serialize)]
enum Answer {
    /// One address.
    #[serde(rename = "walk")]
    One(WalkReport),
    /// Everything.
    #[serde(rename = "listing")]
    All(Listing),
}

impl Answer {
    fn text(&self) -> String {
        match self {
            Self::One(walk) => walk.text(),
            Self::All(listing) => listing.text(),
        }
    }

    fn outcome(&self) -> Outcome {
        let is_fine = match self {
            Self::One(walk) => walk.is_agreed(),
            Self::All(listing) => listing.error.is_none(),
        };
        if is_fine {
            Outcome::Fine
        } else {
            Outcome::Mismatch
        }
    }
}

#[derive(Debug, Default, Serialize)]
struct DeviceReport {
    sid: u32,
    entries: Vec<Entry>,
    end: String,
    /// What was asked, if a table translates.
    #[serde(flatten)]
    answer: Option<Answer>,
}

#[derive(Debug, Serialize)]
struct FixtureReport {
    schema: u32,
    command: &'static str,
    fixture: String,
    devices: Vec<DeviceReport>,
}

#[derive(Debug, Serialize)]
struct RamReport {
    schema: u32,
    command: &'static str,
    ram: Vec<String>,
    #[serde(flatten)]
    answer: Answer,
}

impl FixtureReport {
    fn text(&self) -> String {
        let mut text = String::new();
        for device in &self.devices {
            let _ = writeln!(text, "device {:#x}", device.sid);
            for entry in &device.entries {
                let _ = write!(text, "{entry}");
            }
            let _ = writeln!(text, "{}\n", device.end);
            if let Some(answer) = &device.answer {
                let _ = writeln!(text, "{}", answer.text());
            }
        }
        text
    }

    fn outcome(&self) -> Outcome {
        let answers = self
            .devices
            .iter()
            .filter_map(|device| device.answer.as_ref());
        let bad = answers.filter(|answer| answer.outcome() != Outcome::Fine);
        Outcome::of_mismatches(bad.count() as u64)
    }
}
