//! `iopt replay`: what a guest did to its IOMMU, done again on the engine, timed and verified.

mod engine;
mod plan;
mod report;
mod simulate;
mod verify;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::thread;

use clap::{Args, ValueEnum};
use indicatif::{ProgressBar, ProgressStyle};
use iopt::claim::ClaimError;
use iopt::invalidation::Quarantined;
use iopt::radix::{CutError, MapError, MapperError, TableError, UnmapError};
use iopt_formats::catalog::{self, FormatName, Options, Visitor};
use iopt_formats::{Format, IovaRange, Oa, PageSize, Prot};
use iopt_rig::Physical;
use iopt_tools::flush;
use iopt_tools::trace::{Action, Header, Trace};

use crate::cli::{FormatOptions, Outcome, shows_progress};
use crate::failure::Failure;
use crate::output;
use crate::reference;
use crate::replay::engine::{DomainRun, LineFault, Shared, decodes};
use crate::replay::plan::{DomainPlan, FlushMode, plan};
use crate::replay::report::{Report, Run};
use crate::replay::simulate::Model;
pub(crate) use crate::replay::simulate::SimulateError;

/// Address space for the tables of all domains of a trace; memory is used only where tables are.
const MAX_TABLES_LEN: usize = 1 << 30;

/// Replay traces of maps and unmaps on the engine, with one table for each domain
///
/// Times are those of the engine alone, one reading of the clock around each call included. The
/// totals of several traces are sums, and the peaks the highest of any trace.
#[derive(Args, Debug)]
#[command(after_help = "\
The format defaults to one that fits the trace: arm-s1-16k and arm-s1-64k for pages of these sizes;
for 4 KiB pages arm-s1-4k if the trace's platform is an SMMU or an Arm virt machine, amd-v1 for an
AMD IOMMU, riscv-sv48 for RISC-V, and vtd-ss for everything else.

Examples:
  iopt replay nvme-x86-strict.trace.gz
  iopt replay net-vtd-lazy.trace.gz --flush net-vtd-lazy.flush.gz --verify all
  iopt replay *.trace.gz --format amd-v1 --threads 4 --flush every=64 --json
  iopt replay nvme-x86-strict.trace.gz --simulate vtd
  iopt replay nvme-x86-lazy.trace.gz --simulate smmuv3-ril --deferred --json")]
pub(crate) struct ReplayArgs {
    /// Traces, plain or gzip-compressed
    #[arg(required = true, value_name = "TRACE")]
    traces: Vec<PathBuf>,
    /// The format of the tables; `iopt formats` lists them [default: one that fits the trace]
    #[arg(long)]
    format: Option<FormatName>,
    /// Threads that share out the domains
    #[arg(long, value_name = "COUNT", default_value_t = 1, value_parser = thread_count)]
    threads: usize,
    /// When unmaps are invalidated: after `each`, after `every=N` of a domain, or as in a flush FILE
    #[arg(long, value_name = "each|every=N|FILE", default_value = "each", value_parser = flush_choice)]
    flush: FlushChoice,
    /// When the tables are compared with the trace by a walker that shares no code with the engine
    #[arg(long, value_enum, value_name = "WHEN", default_value_t = VerifyMode::End)]
    verify: VerifyMode,
    /// Let a simulated IOMMU walk the tables, which caches whatever it may, and devices reach for what was
    /// mapped and unmapped; the format is the IOMMU's own
    #[arg(long, value_enum, value_name = "IOMMU", conflicts_with_all = ["format", "threads", "flush", "verify"])]
    simulate: Option<Model>,
    /// Leave invalidations for later, as Linux does: after 256 unmaps or 10 ms of a domain
    #[arg(long, requires = "simulate")]
    deferred: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    options: FormatOptions,
}

/// When the tables are compared with the trace.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub(crate) enum VerifyMode {
    /// Never
    None,
    /// Everything at the end of each domain
    End,
    /// The pages around each operation as well
    All,
}

#[derive(Clone, Debug, Eq, PartialEq)]
enum FlushChoice {
    Each,
    Every(u64),
    File(PathBuf),
}

fn thread_count(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(count @ 1..=1024) => Ok(count),
        _ => Err("not a number from 1 to 1024".into()),
    }
}

fn flush_choice(text: &str) -> Result<FlushChoice, String> {
    match text.strip_prefix("every=") {
        Some(count) => match count.parse() {
            Ok(0) | Err(_) => Err("N of every=N is not a number from 1 on".into()),
            Ok(count) => Ok(FlushChoice::Every(count)),
        },
        None if text == "each" => Ok(FlushChoice::Each),
        None => Ok(FlushChoice::File(text.into())),
    }
}

/// Why a trace cannot be replayed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReplayError {
    /// No table memory.
    #[error("no memory for tables: {0}")]
    Memory(#[source] io::Error),
    /// One flush file cannot belong to several traces.
    #[error("--flush {}: a flush file belongs to one trace, not to {count}", path.display())]
    FlushFile {
        /// The flush file.
        path: PathBuf,
        /// How many traces there are.
        count: usize,
    },
    /// The flush file counts more operations than the trace has.
    #[error("{}: flush after {after} operations, but {} has {count}", flush.display(), trace.display())]
    FlushCount {
        /// The flush file.
        flush: PathBuf,
        /// The trace.
        trace: PathBuf,
        /// Operations before the flush.
        after: u64,
        /// Operations of the trace.
        count: usize,
    },
    /// The format has no such page.
    #[error("{}: page-size {page} is not one of {format}, which has {sizes}", trace.display())]
    PageSize {
        /// The trace.
        trace: PathBuf,
        /// The page size of the trace.
        page: PageSize,
        /// The format.
        format: FormatName,
        /// The page sizes of the format.
        sizes: String,
    },
    /// An operation cannot be done.
    #[error("{}:{line}: {fault}", trace.display())]
    Operation {
        /// The trace.
        trace: PathBuf,
        /// The line.
        line: u64,
        /// What is wrong.
        #[source]
        fault: EngineFault,
    },
}

/// Why an operation of a trace cannot be done.
#[derive(Debug, thiserror::Error)]
pub(crate) enum EngineFault {
    /// The table does not decode the addresses.
    #[error("iova {range} is outside of what the table decodes")]
    OutsideWindow {
        /// The range.
        range: IovaRange,
    },
    /// The output addresses are too wide.
    #[error("the output range from {oa} does not fit {oa_bits} bits")]
    OaWidth {
        /// First output address.
        oa: Oa,
        /// Width of the table's output addresses.
        oa_bits: u8,
    },
    /// The format cannot express the rights.
    #[error("no entry of this format grants {prot}")]
    Prot {
        /// What was asked for.
        prot: Prot,
    },
    /// No table.
    #[error(transparent)]
    Table(#[from] TableError),
    /// No claim.
    #[error(transparent)]
    Claim(#[from] ClaimError),
    /// No mapper.
    #[error(transparent)]
    Mapper(#[from] MapperError),
    /// The engine refused to map.
    #[error("the engine refused the map: {0}")]
    Map(#[from] MapError),
    /// The engine refused to unmap.
    #[error("the engine refused the unmap: {0}")]
    Unmap(#[from] UnmapError),
    /// The engine refused to cut an entry that the unmap ends in.
    #[error("the engine refused to cut a large entry: {0}")]
    Cut(#[from] CutError),
    /// An invalidation failed.
    #[error(transparent)]
    Quarantined(#[from] Quarantined),
}

impl ReplayArgs {
    /// Runs the command.
    pub(crate) fn run(&self) -> Result<Outcome, Failure> {
        if let Some(model) = self.simulate {
            return simulate::simulate(&self.traces, model, self.deferred, self.json);
        }
        if let (FlushChoice::File(path), count @ 2..) = (&self.flush, self.traces.len()) {
            return Err(ReplayError::FlushFile {
                path: path.clone(),
                count,
            }
            .into());
        }
        let mut runs = Vec::new();
        for path in &self.traces {
            runs.push(self.replay(path)?);
        }
        let report = Report::new(runs);
        if self.json {
            output::print_json(&report)?;
        } else {
            output::print(&report.to_string())?;
        }
        Ok(Outcome::of_mismatches(report.mismatches()))
    }

    fn replay(&self, path: &Path) -> Result<Run, Failure> {
        let trace = Trace::open(path)?;
        let flush = self.flush_mode(path, &trace)?;
        let format = self.format.unwrap_or_else(|| fitting_format(&trace.header));
        let options = self.options.options();
        let plans = plan(&trace, &flush);
        let progress = progress_bar(path, plans.iter().map(|plan| plan.steps.len() as u64).sum());
        let replay = Replay {
            path,
            trace: &trace,
            plans: &plans,
            name: format,
            options: &options,
            threads: self.threads,
            verify: self.verify,
            progress: &progress,
        };
        let result = catalog::with_format(format, &options, replay);
        progress.finish_and_clear();
        let domains = result.map_err(|error| Failure::Config { format, error })??;
        Ok(Run::new(path, format, &trace, domains))
    }

    fn flush_mode(&self, trace_path: &Path, trace: &Trace) -> Result<FlushMode, Failure> {
        let path = match &self.flush {
            FlushChoice::Each => return Ok(FlushMode::Each),
            FlushChoice::Every(count) => return Ok(FlushMode::Every(*count)),
            FlushChoice::File(path) => path,
        };
        let flushes = flush::open(path)?;
        let after = flushes.last().map_or(0, |flush| flush.after);
        let count = trace.operations.len();
        if after > count as u64 {
            let (flush, trace) = (path.clone(), trace_path.into());
            return Err(ReplayError::FlushCount {
                flush,
                trace,
                after,
                count,
            }
            .into());
        }
        Ok(FlushMode::File(flushes))
    }
}

/// Returns the format that the guest's IOMMU, or one like it, walks.
fn fitting_format(header: &Header) -> FormatName {
    let platform = header.platform.to_lowercase();
    let mentions = |words: &[&str]| words.iter().any(|word| platform.contains(word));
    match header.page_size {
        PageSize::KIB_16 => FormatName::ArmS1_16k,
        PageSize::KIB_64 => FormatName::ArmS1_64k,
        _ if mentions(&["risc-v", "riscv"]) => FormatName::RiscvSv48,
        _ if mentions(&["amd-iommu", "amd iommu", "amd-vi"]) => FormatName::AmdV1,
        _ if mentions(&["smmu", "virt machine", "arm"]) => FormatName::ArmS1_4k,
        _ => FormatName::VtdSs,
    }
}

/// Returns a bar over `step_count` steps, which shows only on a terminal.
fn progress_bar(path: &Path, step_count: u64) -> ProgressBar {
    if !shows_progress() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new(step_count);
    let name = path
        .file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned();
    let style = ProgressStyle::with_template("{msg} [{bar:40}] {percent}%");
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    bar.with_message(name)
}

/// The domains of a trace, run on a format.
struct Replay<'a> {
    path: &'a Path,
    trace: &'a Trace,
    plans: &'a [DomainPlan],
    name: FormatName,
    options: &'a Options,
    threads: usize,
    verify: VerifyMode,
    progress: &'a ProgressBar,
}

impl Visitor for Replay<'_> {
    type Output = Result<Vec<DomainRun>, Failure>;

    fn visit<F: Format>(self, format: F) -> Self::Output {
        self.check(&format)?;
        let tables = Physical::new(MAX_TABLES_LEN).map_err(ReplayError::Memory)?;
        let steps_done = AtomicU64::new(0);
        let progress = || {
            // The bar takes a lock, so it is told only now and then.
            let done = steps_done.fetch_add(1, Ordering::Relaxed) + 1;
            if done.is_multiple_of(4096) {
                self.progress.set_position(done);
            }
        };
        let page = self.trace.header.page_size;
        let shared = Shared {
            tables: &tables,
            page,
            verify: self.verify,
            progress: &progress,
        };
        let reference = |root| reference::table(self.name, self.options, &format, root);
        let next = AtomicUsize::new(0);
        let is_failed = AtomicBool::new(false);
        let results: Mutex<Vec<Result<DomainRun, LineFault>>> = Mutex::new(Vec::new());
        let work = || {
            // A domain belongs to one thread, which keeps its operations in order.
            while let Some(plan) = self.plans.get(next.fetch_add(1, Ordering::Relaxed)) {
                if is_failed.load(Ordering::Relaxed) {
                    return;
                }
                let result = engine::run(format, &reference, plan, &shared);
                is_failed.fetch_or(result.is_err(), Ordering::Relaxed);
                results
                    .lock()
                    .expect("no thread panics while it holds the lock")
                    .push(result);
            }
        };
        thread::scope(|scope| {
            for _ in 1..self.threads.min(self.plans.len()) {
                scope.spawn(work);
            }
            work();
        });
        let results = results
            .into_inner()
            .expect("no thread panics while it holds the lock");
        let (runs, faults): (Vec<_>, Vec<_>) = results.into_iter().partition(Result::is_ok);
        let first = faults
            .into_iter()
            .filter_map(Result::err)
            .min_by_key(|&(line, _)| line);
        if let Some((line, fault)) = first {
            return Err(self.fault(line, fault).into());
        }
        let mut runs: Vec<_> = runs.into_iter().filter_map(Result::ok).collect();
        runs.sort_by_key(|run| run.id);
        Ok(runs)
    }
}

impl Replay<'_> {
    /// Checks that the format can express every operation.
    fn check<F: Format>(&self, format: &F) -> Result<(), ReplayError> {
        let page = self.trace.header.page_size;
        if !format.sizes().contains(page) {
            return Err(ReplayError::PageSize {
                trace: self.path.into(),
                page,
                format: self.name,
                sizes: format.sizes().to_string(),
            });
        }
        let (geometry, oa_bits) = (format.geometry(), format.oa_bits());
        for operation in &self.trace.operations {
            let range = match operation.action {
                Action::Map { range, .. } | Action::Unmap { range } => range,
                Action::Attach { .. } | Action::Detach { .. } => continue,
            };
            if !decodes(geometry, range) {
                return Err(self.fault(operation.line, EngineFault::OutsideWindow { range }));
            }
            if let Action::Map { oa, prot, .. } = operation.action {
                let last = oa.get().saturating_add(range.len_minus_one());
                if last.checked_shr(oa_bits.into()).unwrap_or(0) != 0 {
                    return Err(self.fault(operation.line, EngineFault::OaWidth { oa, oa_bits }));
                }
                if format.effective(prot).is_none() {
                    return Err(self.fault(operation.line, EngineFault::Prot { prot }));
                }
            }
        }
        Ok(())
    }

    fn fault(&self, line: u64, fault: EngineFault) -> ReplayError {
        ReplayError::Operation {
            trace: self.path.into(),
            line,
            fault,
        }
    }
}

#[cfg(test)]
mod tests {
    use iopt_tools::trace::DomainEnd;

    use super::*;

    #[test]
    fn the_format_fits_the_machine_and_the_page() {
        let fitting = |platform: &str, page_size| {
            let domain_end = DomainEnd::default();
            fitting_format(&Header {
                page_size,
                platform: platform.into(),
                domain_end,
            })
        };
        for (platform, page_size, format) in [
            (
                "q35 machine, TCG, 2 CPUs, virtio-iommu",
                PageSize::KIB_4,
                FormatName::VtdSs,
            ),
            (
                "q35 machine, intel-iommu, legacy mode",
                PageSize::KIB_4,
                FormatName::VtdSs,
            ),
            (
                "virt machine, TCG, 2 CPUs, virtio-iommu",
                PageSize::KIB_4,
                FormatName::ArmS1_4k,
            ),
            (
                "virt machine, SMMUv3 stage 1",
                PageSize::KIB_16,
                FormatName::ArmS1_16k,
            ),
            ("", PageSize::KIB_64, FormatName::ArmS1_64k),
            ("q35 machine, amd-iommu", PageSize::KIB_4, FormatName::AmdV1),
            (
                "RISC-V virt machine",
                PageSize::KIB_4,
                FormatName::RiscvSv48,
            ),
        ] {
            assert_eq!(fitting(platform, page_size), format, "{platform}");
        }
    }

    #[test]
    fn flush_choices_are_told_apart() {
        assert_eq!(flush_choice("each"), Ok(FlushChoice::Each));
        assert_eq!(flush_choice("every=50"), Ok(FlushChoice::Every(50)));
        assert_eq!(
            flush_choice("a.flush.gz"),
            Ok(FlushChoice::File("a.flush.gz".into()))
        );
        assert!(flush_choice("every=0").is_err());
        assert!(flush_choice("every=-1").is_err());
    }
}
