//! Instruction counts: what is counted and what it may cost.
//!
//! Counts do not move with the machine's load, so they are the numbers to gate changes with. Two
//! front ends count the same work: the bench `instructions` under `gungraun`, and the program
//! `count` under plain `valgrind`.

use iopt_formats::Format;
use iopt_formats::catalog::{FormatName, Visitor};

use crate::formats;
use crate::subject::Subject;
use crate::workload::{
    Tables, Workload, WorkloadName, translate_alone, translate_batch, translate_own,
};

const PAGE_LEN: u64 = 4096;

/// One operation on one page of 4 KiB.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Operation {
    /// Map, and sync what is left to do.
    Map,
    /// Unmap, gather and sync.
    Unmap,
    /// Look up, many at a time.
    Lookup,
    /// Look up one address on its own.
    LookupAlone,
    /// Look up what nobody else may change, many at a time.
    LookupOwn,
}

impl Operation {
    /// Every operation.
    pub const ALL: [Self; 5] = [
        Self::Map,
        Self::Unmap,
        Self::Lookup,
        Self::LookupAlone,
        Self::LookupOwn,
    ];

    /// Returns the name as text.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Map => "map",
            Self::Unmap => "unmap",
            Self::Lookup => "lookup",
            Self::LookupAlone => "lookup-alone",
            Self::LookupOwn => "lookup-own",
        }
    }

    /// Returns the instructions that one operation may take, the loop around it included.
    pub const fn budget(self) -> u32 {
        match self {
            Self::Map => 80,
            Self::Unmap => 90,
            Self::Lookup => 50,
            // The address is compared with the claim.
            Self::LookupOwn => 55,
            // An epoch is entered and left.
            Self::LookupAlone => 115,
        }
    }

    /// Looks `iovas` up in this operation's way.
    ///
    /// # Panics
    ///
    /// Panics if the operation is no lookup.
    pub fn look_up<T: Tables>(self, tables: &T, iovas: &[u64]) {
        match self {
            Self::Map | Self::Unmap => panic!("{} is no lookup", self.as_str()),
            Self::Lookup => translate_batch(tables, iovas),
            Self::LookupAlone => translate_alone(tables, iovas),
            Self::LookupOwn => translate_own(tables, iovas),
        }
    }
}

/// The pages that operations are counted on.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Pages {
    /// Those of one leaf table, in order (W1).
    Hot,
    /// Those of 128 leaf tables, in random order (W3).
    Random,
}

impl Pages {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Hot, Self::Random];

    /// Returns the name as text.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Hot => "hot",
            Self::Random => "random",
        }
    }
}

/// Work that is ready to be counted; to be called once.
pub type Work = Box<dyn FnMut()>;

/// Prepares `count` operations, at most 511, on the tables of `format`.
///
/// All tables of the workload exist before the work starts, and its pages are mapped unless the
/// work maps them.
///
/// # Panics
///
/// Panics if `format` is none of [`formats::NAMES`] or there are not so many pages.
pub fn prepare(format: FormatName, operation: Operation, pages: Pages, count: usize) -> Work {
    let workload = Workload::new(match pages {
        Pages::Hot => WorkloadName::W1,
        Pages::Random => WorkloadName::W3,
    });
    formats::visit(
        format,
        Prepare {
            operation,
            workload,
            count,
        },
    )
    .expect("a measured format")
}

struct Prepare {
    operation: Operation,
    workload: Workload,
    count: usize,
}

impl Visitor for Prepare {
    type Output = Work;

    fn visit<F: Format>(self, format: F) -> Work {
        let mut subject = Subject::leak(format);
        let Self {
            operation,
            workload,
            count,
        } = self;
        workload.map(&mut subject);
        if operation == Operation::Map {
            workload.unmap(&mut subject);
        }
        match operation {
            Operation::Map => Box::new(move || map(&mut subject, &workload.iovas()[..count])),
            Operation::Unmap => Box::new(move || unmap(&mut subject, &workload.iovas()[..count])),
            Operation::Lookup | Operation::LookupAlone | Operation::LookupOwn => {
                Box::new(move || operation.look_up(&subject, &workload.iovas()[..count]))
            }
        }
    }
}

#[inline(never)]
fn map<F: Format>(subject: &mut Subject<'_, F>, iovas: &[u64]) {
    for &iova in iovas {
        subject.map(iova, iova + PAGE_LEN, PAGE_LEN);
    }
}

#[inline(never)]
fn unmap<F: Format>(subject: &mut Subject<'_, F>, iovas: &[u64]) {
    for &iova in iovas {
        subject.unmap(iova, PAGE_LEN);
    }
}
