//! `iopt topology`: who is behind which IOMMU, and in which group, by firmware's tables.

mod names;
mod pci;
mod picture;
mod print;
mod report;
mod source;

use std::fs;
use std::path::PathBuf;

use clap::{Args, ValueEnum};
use iopt::device::{Besides, Machine, MachineError, Resolution, ResolveError};
use iopt::firmware::DeviceTreeError;
use iopt::firmware::acpi::AcpiError;
use iopt::topology::Rule;

use crate::cli::Outcome;
use crate::failure::Failure;
use crate::output;
use crate::topology::pci::{Access, Functions};
use crate::topology::report::Report;
use crate::topology::source::Source;

/// Show who is behind which IOMMU, under which IDs, and in which group
///
/// Firmware's tables say who is behind which instance; PCI.JSON lists the PCI functions of the machine. Without
/// it only devices that firmware names have groups. If it has groups, too, those found are compared with
/// them: `expected_groups` by the rule `linux`, `reachability_groups` by the other one.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  iopt topology --dtb guest.dtb --pci pci.json
  iopt topology --acpi tables/ --pci pci.json --acs off --rule linux --json
  iopt topology --acpi tables/ --pci pci.json --svg machine.svg")]
pub(crate) struct TopologyArgs {
    #[command(flatten)]
    source: Source,
    /// The machine's PCI functions
    #[arg(long, value_name = "PCI.JSON")]
    pci: Option<PathBuf>,
    /// Access control (ACS) is otherwise than PCI.JSON has it
    #[arg(long, value_name = "STATE", requires = "pci")]
    acs: Option<Access>,
    /// What puts devices into one group
    #[arg(long, value_name = "RULE", value_enum, default_value_t = GroupRule::Reachability)]
    rule: GroupRule,
    /// Draw the machine into this file
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// What puts devices into one group.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
enum GroupRule {
    /// One reaches the other past the IOMMU, or the IOMMU cannot tell them apart
    Reachability,
    /// What Linux does up to 7.1; but devices whose IDs are equal are one group, where it refuses one
    Linux,
}

impl GroupRule {
    /// Returns how the command line has it.
    const fn name(self) -> &'static str {
        match self {
            Self::Reachability => "reachability",
            Self::Linux => "linux",
        }
    }
}

impl From<GroupRule> for Rule {
    fn from(rule: GroupRule) -> Self {
        match rule {
            GroupRule::Reachability => Self::Reachability,
            GroupRule::Linux => Self::Linux,
        }
    }
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TopologyError {
    /// A device tree is damaged.
    #[error("{}: {error}", path.display())]
    DeviceTree {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        #[source]
        error: DeviceTreeError,
    },
    /// A table is damaged, or there twice.
    #[error("{}: {error}", path.display())]
    Acpi {
        /// The file or the folder.
        path: PathBuf,
        /// What is wrong.
        #[source]
        error: AcpiError,
    },
    /// There is no table.
    #[error("{}: there is no *.aml file", path.display())]
    NoTables {
        /// The folder.
        path: PathBuf,
    },
    /// The functions of a machine are damaged, or no tree.
    #[error("{}: {reason}", path.display())]
    Pci {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// Devices cannot be resolved.
    #[error("{}: {error}", path.display())]
    Resolve {
        /// The file or folder of the tables.
        path: PathBuf,
        /// What is wrong.
        #[source]
        error: ResolveError,
    },
}

impl TopologyArgs {
    /// Runs the command.
    pub(crate) fn run(&self) -> Result<Outcome, Failure> {
        let description = self.source.read()?;
        let functions = match &self.pci {
            Some(path) => Functions::open(path, self.acs)?,
            None => Functions::default(),
        };
        let (_, path) = self.source.name();
        let failure = |error| TopologyError::Resolve {
            path: path.into(),
            error,
        };
        let rule = self.rule.into();
        let resolution = Resolution::new(&description, &functions.tree, &Besides::default(), rule)
            .map_err(failure)?;
        let machine = Machine::new(resolution.parts)
            .map_err(|error: MachineError| failure(ResolveError::Machine(error)))?;
        let report = Report::new(
            self,
            &description,
            &functions,
            &machine,
            &resolution.untranslated,
        );
        if let Some(path) = &self.svg {
            let picture = picture::draw(&functions.tree, &report);
            fs::write(path, picture).map_err(|error| Failure::File {
                path: path.clone(),
                error,
            })?;
        }
        if self.json {
            output::print_json(&report)?;
        } else {
            output::print(&report.text())?;
        }
        Ok(if report.agrees() {
            Outcome::Fine
        } else {
            Outcome::Mismatch
        })
    }
}
