//! `iopt replay --simulate`: the operations of a trace on tables that a simulated IOMMU walks, which caches
//! whatever it may and forgets only what the engine's commands make it forget.
//!
//! After each map a device reaches for the first and the last page, and after each unmap again. Every outcome
//! that the caches allow is held against what the trace says.

mod report;
mod run;

use std::fmt;
use std::path::PathBuf;

use clap::ValueEnum;
use iopt_formats::{IovaRange, PageSize};
use iopt_rig::{Amd, Behaviour, RigError, Riscv, Smmuv3, Vtd};
use iopt_tools::trace::Trace;

use crate::cli::Outcome;
use crate::failure::Failure;
use crate::output;
use crate::replay::simulate::report::{Report, Run};
use crate::replay::simulate::run::Simulation;

/// The IOMMU that is simulated.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub(crate) enum Model {
    /// SMMUv3 that is told address by address
    Smmuv3,
    /// SMMUv3 with range invalidation
    Smmuv3Ril,
    /// VT-d, second stage
    Vtd,
    /// AMD-Vi, version 1 tables
    Amd,
    /// RISC-V IOMMU, first stage
    Riscv,
}

impl fmt::Display for Model {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Smmuv3 => "smmuv3",
            Self::Smmuv3Ril => "smmuv3-ril",
            Self::Vtd => "vtd",
            Self::Amd => "amd",
            Self::Riscv => "riscv",
        })
    }
}

/// Why a trace cannot be simulated.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SimulateError {
    /// The IOMMU has no such page.
    #[error("{}: the simulated {model} has no pages of {page}", trace.display())]
    PageSize {
        /// The trace.
        trace: PathBuf,
        /// The page size of the trace.
        page: PageSize,
        /// The IOMMU.
        model: Model,
    },
    /// The machine cannot be made.
    #[error("no machine to simulate: {0}")]
    Machine(#[source] RigError),
    /// An operation cannot be done.
    #[error("{}:{line}: {fault}", trace.display())]
    Operation {
        /// The trace.
        trace: PathBuf,
        /// The line.
        line: u64,
        /// What is wrong.
        #[source]
        fault: SimulateFault,
    },
}

/// Why an operation cannot be done.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SimulateFault {
    /// The engine or the machine refused.
    #[error(transparent)]
    Rig(#[from] RigError),
    /// There are too many devices.
    #[error("the simulated machine has numbers for 65535 devices")]
    Devices,
    /// The hardware did not confirm an unmap.
    #[error("the simulated IOMMU did not confirm the unmap of {range}")]
    NotDeferred {
        /// The range.
        range: IovaRange,
    },
}

/// A trace on its way through a machine.
struct Replay<'a> {
    path: &'a PathBuf,
    trace: &'a Trace,
    model: Model,
    is_deferred: bool,
}

impl Replay<'_> {
    fn run(&self) -> Result<Run, Failure> {
        let has_ranges = self.model == Model::Smmuv3Ril;
        let page = self.trace.header.page_size;
        match (self.model, page) {
            (Model::Smmuv3 | Model::Smmuv3Ril, PageSize::KIB_4) => {
                self.run_on(smmu::<12>(has_ranges))
            }
            (Model::Smmuv3 | Model::Smmuv3Ril, PageSize::KIB_16) => {
                self.run_on(smmu::<14>(has_ranges))
            }
            (Model::Smmuv3 | Model::Smmuv3Ril, PageSize::KIB_64) => {
                self.run_on(smmu::<16>(has_ranges))
            }
            (Model::Vtd, PageSize::KIB_4) => self.run_on(Vtd::<2>::default()),
            (Model::Amd, PageSize::KIB_4) => self.run_on(Amd::default()),
            (Model::Riscv, PageSize::KIB_4) => self.run_on(Riscv::default()),
            (model, page) => Err(SimulateError::PageSize {
                trace: self.path.clone(),
                page,
                model,
            }
            .into()),
        }
    }

    fn run_on<B: Behaviour>(&self, behaviour: B) -> Result<Run, Failure> {
        let simulation = Simulation::new(behaviour, self.is_deferred, self.trace.header.domain_end);
        let mut simulation = simulation.map_err(SimulateError::Machine)?;
        for operation in &self.trace.operations {
            simulation
                .step(operation)
                .map_err(|fault| self.fault(operation.line, fault))?;
        }
        let last = self.trace.operations.last().map_or(0, |last| last.line);
        let found = simulation
            .finish()
            .map_err(|fault| self.fault(last, fault))?;
        Ok(Run::new(self.path, self.trace, found))
    }

    fn fault(&self, line: u64, fault: SimulateFault) -> SimulateError {
        SimulateError::Operation {
            trace: self.path.clone(),
            line,
            fault,
        }
    }
}

fn smmu<const GRANULE_LG2: u8>(has_ranges: bool) -> Smmuv3<GRANULE_LG2> {
    Smmuv3 {
        has_ranges,
        has_contiguous_erratum: false,
    }
}

/// Simulates each trace and prints what was found.
pub(crate) fn simulate(
    traces: &[PathBuf],
    model: Model,
    is_deferred: bool,
    json: bool,
) -> Result<Outcome, Failure> {
    let mut runs = Vec::new();
    for path in traces {
        let trace = Trace::open(path)?;
        let replay = Replay {
            path,
            trace: &trace,
            model,
            is_deferred,
        };
        runs.push(replay.run()?);
    }
    let report = Report::new(model, is_deferred, runs);
    if json {
        output::print_json(&report)?;
    } else {
        output::print(&report.to_string())?;
    }
    Ok(Outcome::of_mismatches(report.mismatches()))
}
