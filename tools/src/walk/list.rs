//! Everything that a table translates.

use std::fmt::Write as _;

use iopt_formats::walk::{Fault, Found, VisitError};
use iopt_formats::{Oa, PageSize, Prot};
use serde::ser::SerializeStruct as _;
use serde::{Serialize, Serializer};

use crate::output::{Align, Hex, Table};

/// Consecutive addresses that go to consecutive output addresses, in pages of one size and with
/// the same rights.
#[derive(Clone, Copy, Debug)]
struct Run {
    iova: u64,
    last: u64,
    oa: u64,
    page: PageSize,
    prot: Prot,
}

impl Serialize for Run {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut run = serializer.serialize_struct("Run", 6)?;
        run.serialize_field("iova", &Hex(self.iova))?;
        run.serialize_field("last", &Hex(self.last))?;
        run.serialize_field("oa", &Hex(self.oa))?;
        run.serialize_field("page_size", &self.page.bytes())?;
        run.serialize_field("rights", &self.prot.rights().to_string())?;
        run.serialize_field("memory", &format!("{:?}", self.prot.memory()))?;
        run.end()
    }
}

/// All that a table translates.
#[derive(Debug, Default)]
pub(crate) struct Listing {
    /// Leaf items found.
    leaves: u64,
    runs: Vec<Run>,
    /// Why the listing ends early.
    pub(crate) error: Option<VisitError>,
}

impl Serialize for Listing {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut listing = serializer.serialize_struct("Listing", 3)?;
        listing.serialize_field("leaves", &self.leaves)?;
        listing.serialize_field("runs", &self.runs)?;
        listing.serialize_field("error", &self.error.map(|error| error.to_string()))?;
        listing.end()
    }
}

impl Listing {
    /// Adds a leaf item, which follows the ones before.
    pub(crate) fn add(&mut self, found: &Found) {
        self.leaves += 1;
        let (iova, last) = (found.iova.start().get(), found.iova.last().get());
        let (oa, page, prot) = (found.oa.get(), found.leaf.size, found.prot);
        if let Some(run) = self.runs.last_mut() {
            let len = run.last.wrapping_sub(run.iova).wrapping_add(1);
            let continues = run.last.checked_add(1) == Some(iova)
                && run.oa.checked_add(len) == Some(oa)
                && (run.page, run.prot) == (page, prot);
            if continues {
                run.last = last;
                return;
            }
        }
        self.runs.push(Run {
            iova,
            last,
            oa,
            page,
            prot,
        });
    }

    /// Returns where the listing wanted to read and no memory was.
    pub(crate) fn missing(&self) -> Option<Oa> {
        match self.error {
            Some(VisitError::Fault {
                fault: Fault::Unreadable { address },
                ..
            }) => Some(address),
            _ => None,
        }
    }

    /// Returns the runs for people.
    pub(crate) fn text(&self) -> String {
        let mut table = Table::new([
            ("iova", Align::Right),
            ("last", Align::Right),
            ("oa", Align::Right),
            ("pages of", Align::Right),
            ("", Align::Left),
        ]);
        for run in &self.runs {
            table.row([
                format!("{:#x}", run.iova),
                format!("{:#x}", run.last),
                format!("{:#x}", run.oa),
                run.page.to_string(),
                run.prot.to_string(),
            ]);
        }
        let mut text = table.to_string();
        if let Some(error) = &self.error {
            let _ = writeln!(text, "stopped: {error}");
        }
        let _ = writeln!(
            text,
            "{} leaf items in {} runs",
            self.leaves,
            self.runs.len()
        );
        text
    }
}
