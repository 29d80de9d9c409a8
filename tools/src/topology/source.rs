//! Firmware's tables, from files.

use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use clap::Args;
use iopt::firmware::{Description, acpi, device_tree};
use iopt_tools::input;

use crate::failure::Failure;
use crate::topology::TopologyError;

/// Most bytes of one table.
const MAX_LEN: u64 = 64 << 20;

/// Where firmware's tables are.
#[derive(Args, Debug)]
#[group(required = true, multiple = false)]
pub(super) struct Source {
    /// A flattened device tree
    #[arg(long, value_name = "FILE")]
    dtb: Option<PathBuf>,
    /// A folder; its *.aml files are raw ACPI tables
    #[arg(long, value_name = "DIR")]
    acpi: Option<PathBuf>,
}

impl Source {
    /// Returns what the tables are, and where.
    pub(super) fn name(&self) -> (&'static str, &Path) {
        match (&self.dtb, &self.acpi) {
            (Some(path), _) => ("device tree", path),
            (None, Some(path)) => ("ACPI tables", path),
            // The command line is declared so that this cannot be.
            (None, None) => ("nothing", Path::new("")),
        }
    }

    /// Reads the tables.
    pub(super) fn read(&self) -> Result<Description, Failure> {
        match (&self.dtb, &self.acpi) {
            (Some(path), _) => {
                let blob = read(path, MAX_LEN)?;
                let path = path.clone();
                let description = device_tree::parse(&blob);
                Ok(description.map_err(|error| TopologyError::DeviceTree { path, error })?)
            }
            (None, Some(folder)) => read_tables(folder),
            (None, None) => Ok(Description::default()),
        }
    }
}

fn read_tables(folder: &Path) -> Result<Description, Failure> {
    let failure = |error| Failure::File {
        path: folder.into(),
        error,
    };
    let mut paths = Vec::new();
    for entry in fs::read_dir(folder).map_err(failure)? {
        let path = entry.map_err(failure)?.path();
        if path.extension().is_some_and(|extension| extension == "aml") {
            paths.push(path);
        }
    }
    if paths.is_empty() {
        let path = folder.into();
        return Err(TopologyError::NoTables { path }.into());
    }
    paths.sort();
    let mut tables = Vec::new();
    for path in paths {
        let table = read(&path, MAX_LEN)?;
        // Each by itself first, so that an error can name the file.
        acpi::parse(&[&table]).map_err(|error| TopologyError::Acpi { path, error })?;
        tables.push(table);
    }
    let tables: Vec<_> = tables.iter().map(Vec::as_slice).collect();
    let path = folder.to_owned();
    Ok(acpi::parse(&tables).map_err(|error| TopologyError::Acpi { path, error })?)
}

/// Reads a file of at most `limit` bytes, which may be gzip-compressed.
pub(super) fn read(path: &Path, limit: u64) -> Result<Vec<u8>, Failure> {
    let mut bytes = Vec::new();
    let result = input::open(path, limit).and_then(|mut file| file.read_to_end(&mut bytes));
    result.map(|_| bytes).map_err(|error| Failure::File {
        path: path.into(),
        error,
    })
}
